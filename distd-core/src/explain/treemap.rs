//! Squarified treemaps: rectangles with given areas that are as close to squares as possible.
//!
//! Bruls, Huizing, van Wijk: Squarified Treemaps (2000).

/// Rectangle, in any unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub w: f64,
    /// Height.
    pub h: f64,
}

/// Returns one rectangle per weight, in the same order. The rectangles cover `area` without
/// overlap, each in proportion to its weight; all are empty if all weights are zero. Looks best
/// with the heaviest first. `O(n)`.
pub fn squarify(weights: &[u64], area: Rect) -> Vec<Rect> {
    let mut rest = area;
    let mut left: f64 = weights.iter().map(|weight| *weight as f64).sum();
    if left == 0.0 {
        return vec![Rect { w: 0.0, h: 0.0, ..area }; weights.len()];
    }
    let mut out = Vec::with_capacity(weights.len());
    let mut from = 0;
    while from < weights.len() {
        let (end, sum) = row(&weights[from..], left, rest);
        let end = from + end;
        // The last row takes the remaining area, so that rounding leaves no gap.
        let part = if end == weights.len() { 1.0 } else { sum / left.max(f64::MIN_POSITIVE) };
        let (strip, behind) = cut(rest, part, rest.w >= rest.h);
        let mut inner = strip;
        let mut of_row = sum;
        for (index, weight) in weights[from..end].iter().enumerate() {
            let weight = *weight as f64;
            let last = from + index + 1 == end;
            let part = if last { 1.0 } else { weight / of_row.max(f64::MIN_POSITIVE) };
            let (tile, next) = cut(inner, part, rest.w < rest.h);
            out.push(tile);
            inner = next;
            of_row -= weight;
        }
        rest = behind;
        left -= sum;
        from = end;
    }
    out
}

/// Returns how many weights make the first row, and their sum. A row grows as long as its most
/// elongated rectangle gets no more elongated.
fn row(weights: &[u64], total: f64, area: Rect) -> (usize, f64) {
    let side = area.w.min(area.h);
    let scale = area.w * area.h / total.max(f64::MIN_POSITIVE);
    let worst = |sum: f64, least: f64, most: f64| {
        let (sum, least, most) = (sum * scale, least * scale, most * scale);
        (side * side * most / (sum * sum)).max(sum * sum / (side * side * least))
    };
    let (mut sum, mut least, mut most) = (0.0, f64::INFINITY, 0.0f64);
    let mut ratio = f64::INFINITY;
    for (index, weight) in weights.iter().enumerate() {
        let weight = *weight as f64;
        let (next_least, next_most) = (least.min(weight), most.max(weight));
        let next = worst(sum + weight, next_least, next_most);
        // Zero weights and empty areas give a ratio that is not a number; then one row is as good
        // as another.
        if index > 0 && next > ratio {
            return (index, sum);
        }
        (sum, least, most, ratio) = (sum + weight, next_least, next_most, next);
    }
    (weights.len(), sum)
}

/// Splits a rectangle into its first `part` and the rest: left and right if `upright`, else upper
/// and lower.
fn cut(area: Rect, part: f64, upright: bool) -> (Rect, Rect) {
    let part = part.clamp(0.0, 1.0);
    if upright {
        let w = area.w * part;
        (Rect { w, ..area }, Rect { x: area.x + w, w: area.w - w, ..area })
    } else {
        let h = area.h * part;
        (Rect { h, ..area }, Rect { y: area.y + h, h: area.h - h, ..area })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn overlap(a: &Rect, b: &Rect) -> f64 {
        let along = |a: f64, aw: f64, b: f64, bw: f64| ((a + aw).min(b + bw) - a.max(b)).max(0.0);
        along(a.x, a.w, b.x, b.w) * along(a.y, a.h, b.y, b.h)
    }

    #[test]
    fn zero_weights_have_no_area() {
        let area = Rect { x: 1.0, y: 2.0, w: 10.0, h: 10.0 };
        assert!(squarify(&[0, 0], area).iter().all(|tile| tile.w == 0.0 && tile.h == 0.0));
        assert!(squarify(&[], area).is_empty());
    }

    #[test]
    fn equal_weights_in_a_square_are_squares() {
        let tiles = squarify(&[5; 4], Rect { x: 1.0, y: 2.0, w: 10.0, h: 10.0 });
        assert!(
            tiles.iter().all(|tile| (tile.w - 5.0).abs() < 1e-9 && (tile.h - 5.0).abs() < 1e-9),
            "{tiles:?}"
        );
    }

    proptest! {
        #[test]
        fn tiles_cover_the_area_in_proportion_and_never_overlap(
            mut weights in prop::collection::vec(prop_oneof![0u64..3, 1u64..1000, 1u64..1 << 40], 1..120),
            sorted: bool, w in 1.0f64..3000.0, h in 1.0f64..3000.0,
        ) {
            if sorted {
                weights.sort_unstable_by(|a, b| b.cmp(a));
            }
            let area = Rect { x: 3.0, y: 5.0, w, h };
            let tiles = squarify(&weights, area);
            prop_assert_eq!(tiles.len(), weights.len());
            let total: f64 = weights.iter().map(|weight| *weight as f64).sum();
            prop_assume!(total > 0.0);
            let unit = 1e-6 * w * h;
            let covered: f64 = tiles.iter().map(|tile| tile.w * tile.h).sum();
            prop_assert!((covered - w * h).abs() < unit, "{covered} of {}", w * h);
            for (index, (tile, weight)) in tiles.iter().zip(&weights).enumerate() {
                prop_assert!(tile.w >= 0.0 && tile.h >= 0.0);
                prop_assert!(tile.x >= 3.0 - 1e-6 && tile.x + tile.w <= 3.0 + w + 1e-6);
                prop_assert!(tile.y >= 5.0 - 1e-6 && tile.y + tile.h <= 5.0 + h + 1e-6);
                prop_assert!((tile.w * tile.h - w * h * *weight as f64 / total).abs() < unit);
                for other in &tiles[..index] {
                    prop_assert!(overlap(tile, other) < unit, "{tile:?} {other:?}");
                }
            }
        }

        #[test]
        fn the_heaviest_tile_is_not_thin(n in 1usize..60) {
            let weights: Vec<u64> = (0..n).map(|n| 1000 / (n as u64 + 1)).collect();
            for tile in squarify(&weights, Rect { x: 0.0, y: 0.0, w: 1200.0, h: 700.0 }) {
                prop_assert!(tile.w / tile.h < 12.0 && tile.h / tile.w < 12.0, "{tile:?}");
            }
        }
    }
}
