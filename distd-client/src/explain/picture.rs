//! The treemap of a report: nested directories, a tile for each path, and the area of each.

use std::collections::BTreeMap;

use distd_core::explain::treemap::{Rect, squarify};
use distd_core::explain::{Kind, Report};

use super::text::{place, shown};

/// Deepest directory that gets a frame of its own. Deeper entries are drawn side by side.
const DEPTH_MAX: usize = 24;

/// Smallest tile in square pixels. Smaller tiles of a directory are drawn as one. With the page's
/// area this bounds the number of tiles.
const TILE_MIN: f64 = 16.0;

/// A rectangle of the picture.
pub(super) struct Tile {
    /// Position and size in the picture.
    pub(super) area: Rect,
    /// Kind of the item; `None` if the tile combines items of several kinds.
    pub(super) kind: Option<Kind>,
    /// Bytes on the wire.
    pub(super) bytes: u64,
    /// Last name of the path, or a description of items that have none or are combined; made
    /// printable, but not yet escaped.
    pub(super) label: String,
    /// Whole path, and further details such as the old path.
    pub(super) title: String,
}

/// Frame of a directory with more than one changed path.
pub(super) struct Frame {
    /// Position and size in the picture.
    pub(super) area: Rect,
    /// Depth of the directory; 0 for directories in the root.
    pub(super) depth: usize,
}

/// Everything to draw. The tiles cover the whole area without overlap.
#[derive(Default)]
pub(super) struct Picture {
    pub(super) tiles: Vec<Tile>,
    pub(super) frames: Vec<Frame>,
}

/// One path that costs bytes.
struct Item<'r> {
    parts: Vec<&'r [u8]>,
    kind: Kind,
    bytes: u64,
    title: String,
}

impl Picture {
    /// Lays out `report` in `area`.
    pub(super) fn of(report: &Report, area: Rect) -> Self {
        let items: Vec<Item<'_>> = report
            .paths
            .iter()
            .map(|cost| {
                let path = cost.path.as_deref().unwrap_or_default();
                let old = cost.old_path.as_ref().map_or(String::new(), |old| format!("\nwas {}", shown(old)));
                let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
                Item { parts, kind: cost.kind, bytes: cost.wire_bytes, title: place(cost) + &old }
            })
            .collect();
        let mut picture = Self::default();
        picture.directory(&items.iter().collect::<Vec<_>>(), 0, area);
        picture
    }

    fn directory(&mut self, items: &[&Item<'_>], depth: usize, area: Rect) {
        // One name may be a file in one artifact and a directory in the other, so files and
        // directories are grouped apart.
        let mut groups: BTreeMap<&[u8], Vec<&Item<'_>>> = BTreeMap::new();
        let mut single: Vec<Vec<&Item<'_>>> = Vec::new();
        for item in items {
            if depth + 1 < item.parts.len() && depth < DEPTH_MAX {
                groups.entry(item.parts[depth]).or_default().push(item);
            } else {
                single.push(vec![item]);
            }
        }
        let bytes = |group: &[&Item<'_>]| group.iter().map(|item| item.bytes).sum::<u64>();
        let mut groups: Vec<(u64, Vec<&Item<'_>>)> =
            groups.into_values().chain(single).map(|group| (bytes(&group), group)).collect();
        groups.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let total: u64 = groups.iter().map(|(bytes, _)| bytes).sum();
        let least = TILE_MIN * total as f64 / (area.w * area.h).max(f64::MIN_POSITIVE);
        let drawn = groups.partition_point(|(bytes, _)| *bytes as f64 >= least);
        let small: Vec<&Item<'_>> = groups.drain(drawn..).flat_map(|(_, group)| group).collect();
        let small_bytes = bytes(&small);
        let mut weights: Vec<u64> = groups.iter().map(|(bytes, _)| *bytes).collect();
        if small_bytes > 0 {
            weights.push(small_bytes);
        }
        let areas = squarify(&weights, area);
        for ((bytes, group), area) in groups.iter().zip(&areas) {
            match &group[..] {
                [item] => {
                    let label = item.parts.last().map_or_else(|| item.title.clone(), |name| shown(name));
                    self.tiles.push(Tile {
                        area: *area,
                        kind: Some(item.kind),
                        bytes: *bytes,
                        label,
                        title: item.title.clone(),
                    });
                }
                group => {
                    self.directory(group, depth + 1, *area);
                    self.frames.push(Frame { area: *area, depth });
                }
            }
        }
        if let Some(area) = areas.get(groups.len()) {
            let inside: Vec<String> =
                small[0].parts.iter().take(depth.min(small[0].parts.len())).map(|part| shown(part)).collect();
            let first = small[0].kind;
            self.tiles.push(Tile {
                area: *area,
                kind: small.iter().all(|item| item.kind == first).then_some(first),
                bytes: small_bytes,
                label: format!("{} more", small.len()),
                title: format!("{} more in /{}", small.len(), inside.join("/")),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn every_byte_has_its_share_of_the_area() {
        let long = "d/".repeat(200) + "end";
        let many: Vec<String> = (0..3000).map(|n| format!("usr/lib/{}/{n}", n % 17)).collect();
        let mut paths: Vec<(&str, u64)> =
            many.iter().map(|path| (&path[..], 100 + path.len() as u64)).collect();
        paths.extend([("usr/lib/3", 90_000), (&long, 70_000), ("a", 1), ("", 10_000)]);
        let report = report(&paths);
        let area = Rect { x: 0.0, y: 0.0, w: 200.0, h: 150.0 };
        let picture = Picture::of(&report, area);
        let bytes: u64 = picture.tiles.iter().map(|tile| tile.bytes).sum();
        assert_eq!(bytes, report.wire_bytes);
        assert!(picture.tiles.len() < 3000, "small ones are one");
        for (index, tile) in picture.tiles.iter().enumerate() {
            let Rect { x, y, w, h } = tile.area;
            let share = 200.0 * 150.0 * tile.bytes as f64 / bytes as f64;
            assert!((w * h - share).abs() < 1e-3, "{}: {} for {share}", tile.title, w * h);
            assert!(x >= -1e-6 && y >= -1e-6 && x + w <= 200.0 + 1e-6 && y + h <= 150.0 + 1e-6);
            for other in &picture.tiles[..index] {
                let along = |a: f64, aw: f64, b: f64, bw: f64| ((a + aw).min(b + bw) - a.max(b)).max(0.0);
                let both = along(x, w, other.area.x, other.area.w) * along(y, h, other.area.y, other.area.h);
                assert!(both < 1e-3, "{} on {}", tile.title, other.title);
            }
        }
    }
}
