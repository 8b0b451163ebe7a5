//! The shortest way through patch sets from what is held to what is wanted.

use crate::ManifestId;

/// One set as its list names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The manifest it starts from; to who names [`ManifestId::NOTHING`] as held, that of a set that needs none.
    pub from: ManifestId,
    /// The manifest it leads to.
    pub to: ManifestId,
    /// Length of the set, bytes.
    pub bytes: u64,
}

/// Most sets in one route. Each costs a manifest, an index and patches of patches; a device further behind takes chunks.
pub const ROUTE_LEGS_MAX: usize = 4;

/// Indices of the legs that lead from one of `held` to `to` with the fewest bytes, in the order of their use; empty when
/// there is no way in [`ROUTE_LEGS_MAX`] legs, or nothing to do.
///
/// Cost: [`ROUTE_LEGS_MAX`] passes over `legs`, with a manifest looked up in each.
pub fn route(legs: &[Leg], held: &[ManifestId], to: ManifestId) -> Vec<usize> {
    if held.contains(&to) {
        return Vec::new();
    }
    // Best way to each end so far, one leg longer with each pass (Bellman and Ford).
    let mut best: Vec<(ManifestId, u64, Vec<usize>)> = held.iter().map(|id| (*id, 0, Vec::new())).collect();
    for _ in 0..ROUTE_LEGS_MAX {
        let before = best.clone();
        for (index, leg) in legs.iter().enumerate() {
            let Some((_, bytes, way)) = before.iter().find(|(end, ..)| *end == leg.from) else { continue };
            let bytes = bytes.saturating_add(leg.bytes);
            let known = best.iter().position(|(end, ..)| *end == leg.to);
            if known.is_some_and(|known| best[known].1 <= bytes) {
                continue;
            }
            let mut way = way.clone();
            way.push(index);
            match known {
                Some(known) => best[known] = (leg.to, bytes, way),
                None => best.push((leg.to, bytes, way)),
            }
        }
    }
    best.into_iter().find(|(end, ..)| *end == to).map(|(.., way)| way).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ManifestId {
        ManifestId([n; 32])
    }

    fn legs(list: &[(u8, u8, u64)]) -> Vec<Leg> {
        list.iter().map(|(from, to, bytes)| Leg { from: id(*from), to: id(*to), bytes: *bytes }).collect()
    }

    #[test]
    fn the_way_with_the_fewest_bytes_is_taken_direct_or_not() {
        let all = legs(&[(1, 2, 10), (2, 3, 10), (1, 3, 25), (3, 4, 1)]);
        assert_eq!(route(&all, &[id(1)], id(3)), [0, 1]);
        assert_eq!(route(&all, &[id(1)], id(4)), [0, 1, 3]);
        assert_eq!(route(&all, &[id(1), id(2)], id(3)), [1]);
        let direct = legs(&[(1, 2, 10), (2, 3, 10), (1, 3, 19)]);
        assert_eq!(route(&direct, &[id(1)], id(3)), [2]);
    }

    #[test]
    fn there_may_be_no_way_or_nothing_to_do_and_circles_end() {
        let all = legs(&[(1, 2, 10), (2, 1, 10), (2, 2, 0), (5, 6, 1)]);
        assert_eq!(route(&all, &[id(1)], id(6)), []);
        assert_eq!(route(&all, &[id(1)], id(1)), []);
        assert_eq!(route(&all, &[], id(2)), []);
        let long: Vec<_> = (1..9).map(|n| (n, n + 1, 1)).collect();
        assert_eq!(route(&legs(&long), &[id(1)], id(5)).len(), 4);
        assert_eq!(route(&legs(&long), &[id(1)], id(6)), []);
    }
}
