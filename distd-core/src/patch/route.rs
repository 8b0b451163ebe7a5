//! Shortest route through patch sets from the held manifests to the wanted one.

use crate::ManifestId;

/// Patch set, as listed in the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Manifest that the set starts from: [`ManifestId::NOTHING`] for a set that needs none, which
    /// the caller then names among the held manifests.
    pub from: ManifestId,
    /// Manifest that the set leads to.
    pub to: ManifestId,
    /// Length of the set in bytes.
    pub bytes: u64,
}

/// Most sets in one route. Each set costs a manifest, an index and patches of patches; a device
/// further behind fetches chunks.
pub const ROUTE_LEGS_MAX: usize = 4;

/// Returns the indices of the legs that lead from one of `held` to `to` with the fewest bytes, in
/// the order of their use. Empty when there is no route of at most [`ROUTE_LEGS_MAX`] legs, or when
/// `to` is held.
///
/// Cost: [`ROUTE_LEGS_MAX`] passes over `legs`, each with a lookup of two manifests per leg.
pub fn route(legs: &[Leg], held: &[ManifestId], to: ManifestId) -> Vec<usize> {
    if held.contains(&to) {
        return Vec::new();
    }
    // Best route to each manifest so far; each pass allows one more leg (Bellman and Ford).
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
    fn the_route_with_the_fewest_bytes_is_taken_direct_or_not() {
        let all = legs(&[(1, 2, 10), (2, 3, 10), (1, 3, 25), (3, 4, 1)]);
        assert_eq!(route(&all, &[id(1)], id(3)), [0, 1]);
        assert_eq!(route(&all, &[id(1)], id(4)), [0, 1, 3]);
        assert_eq!(route(&all, &[id(1), id(2)], id(3)), [1]);
        let direct = legs(&[(1, 2, 10), (2, 3, 10), (1, 3, 19)]);
        assert_eq!(route(&direct, &[id(1)], id(3)), [2]);
    }

    #[test]
    fn a_missing_or_unneeded_route_is_empty_and_cycles_end() {
        let all = legs(&[(1, 2, 10), (2, 1, 10), (2, 2, 0), (5, 6, 1)]);
        assert!(route(&all, &[id(1)], id(6)).is_empty());
        assert!(route(&all, &[id(1)], id(1)).is_empty());
        assert!(route(&all, &[], id(2)).is_empty());
        let long: Vec<_> = (1..9).map(|n| (n, n + 1, 1)).collect();
        assert_eq!(route(&legs(&long), &[id(1)], id(5)).len(), 4);
        assert!(route(&legs(&long), &[id(1)], id(6)).is_empty());
    }
}
