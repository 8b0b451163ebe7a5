//! Which patches to fetch: those that cost less than the chunks they save.
//!
//! Pure, and independent of how many sets there are: patches name chunks and not positions, so the sets of
//! v1→v2 and v2→v3, one behind the other, are a way from v1 to v3.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Method, SetPatch};
use crate::ChunkId;

/// A patch by its set and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchRef {
    /// Index of the set, in the order given.
    pub set: usize,
    /// Number of the patch in its set.
    pub patch: usize,
}

/// One set that could be used.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Its patches.
    pub patches: &'a [SetPatch],
    /// Length of each payload, bytes.
    pub payloads: &'a [u32],
}

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimize {
    /// Bytes alone.
    Bytes,
    /// Time, over a link of so many bytes a second: seconds of this device's processor are weighed against seconds of
    /// the link.
    Time {
        /// Bytes the link carries in a second.
        link: u64,
    },
}

impl Optimize {
    /// What applying a patch costs, as bytes of the link.
    fn work(self, patch: &SetPatch) -> u64 {
        let Self::Time { link } = self else { return 0 };
        match patch.method() {
            Some(Method::Repack | Method::Inflate) => (processor(patch).as_secs_f64() * link as f64) as u64,
            // Decoded faster than as many chunks are unpacked: no reason against a patch.
            _ => 0,
        }
    }
}

/// How long one core takes to apply a patch, about: what machines do in a second differs by several times.
fn processor(patch: &SetPatch) -> Duration {
    let (bytes, rate) = match patch.method() {
        // What is packed has two to four times as many bytes inside, and those take the time.
        Some(Method::Repack) => (patch.base_ids().count() as u64 * VIEW_CHUNK_BYTES, REPACK_RATE),
        Some(Method::Inflate) => (patch.target_bytes() as u64, INFLATE_RATE),
        _ => (patch.target_bytes() as u64, DECODE_RATE),
    };
    Duration::from_secs_f64(bytes as f64 / rate as f64)
}

// Bytes in a second of one core, measured on the reference pairs (docs/benchmarks.md, "Patches"): content that is packed again,
// by gzip and by LZ4 alike; content that is unpacked; what patches of the other codecs rebuild.
const REPACK_RATE: u64 = 30_000_000;
const INFLATE_RATE: u64 = 200_000_000;
const DECODE_RATE: u64 = 250_000_000;

/// Bytes of a view's chunk: those of the reference pairs' views have 11 kB on average at the default cut.
const VIEW_CHUNK_BYTES: u64 = 11_000;

/// What to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Patches, in the order in which they are to be applied.
    pub patches: Vec<PatchRef>,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// What they rebuild would cost as chunks, as far as it is wanted, bytes (the origin's own packing).
    pub saved_bytes: u64,
    /// Wanted chunks that no chosen patch rebuilds, and chunks that a chosen patch needs as base, ascending.
    pub chunks: Vec<ChunkId>,
    /// Chunks that a chosen patch rebuilds for another one only: not wanted themselves.
    pub passing: Vec<ChunkId>,
    /// What applying the patches takes of one core, about.
    pub processor: Duration,
}

/// Chooses among `offers`, sets in the order of their use, what brings the `wanted` chunks (sorted) with the fewest bytes.
///
/// `held` are chunks that can be read on this device. A base that is neither held nor rebuilt by an earlier patch must
/// be `wanted` itself, else its patch is left alone. Patches of unknown methods are not offered by the caller's leave: they
/// are skipped here.
///
/// Cost: a few passes over all patches; memory 16 bytes a target chunk.
pub fn choose(
    wanted: &[ChunkId],
    held: impl Fn(ChunkId) -> bool,
    offers: &[Offer<'_>],
    optimize: Optimize,
) -> Choice {
    let is_wanted = |id: &ChunkId| wanted.binary_search(id).is_ok();
    let all: Vec<(PatchRef, &SetPatch, u64)> = offers
        .iter()
        .enumerate()
        .flat_map(|(set, offer)| {
            let patches = offer.patches.iter().zip(offer.payloads).enumerate();
            patches.map(move |(patch, (body, payload))| (PatchRef { set, patch }, body, u64::from(*payload)))
        })
        .filter(|(_, patch, _)| patch.method().is_some())
        .collect();

    // Forwards: which patches could be applied at all, and which chunks that are not wanted they bring.
    let mut made: BTreeSet<ChunkId> = BTreeSet::new();
    let mut usable = Vec::with_capacity(all.len());
    for (_, patch, _) in &all {
        let ok = patch.base_ids().all(|id| held(id) || is_wanted(&id) || made.contains(&id));
        if ok {
            made.extend(patch.target_chunks().map(|(id, _)| id).filter(|id| !is_wanted(id)));
        }
        usable.push(ok);
    }

    // Backwards: whatever a later patch needs is wanted of the ones before it.
    let mut open: BTreeMap<ChunkId, ()> =
        wanted.iter().filter(|id| !held(**id)).map(|id| (*id, ())).collect();
    let mut choice = Choice::default();
    for ((at, patch, payload), usable) in all.iter().zip(&usable).rev() {
        if !usable {
            continue;
        }
        let (mut needed, mut needed_bytes, mut must) = (Vec::new(), 0u64, false);
        for (id, len) in patch.target_chunks() {
            if open.contains_key(&id) {
                needed_bytes += u64::from(len);
                must |= !is_wanted(&id);
                needed.push(id);
            }
        }
        // Of what all its targets cost as chunks, the part that is needed.
        let total = patch.target_bytes() as u64;
        let saved = (u128::from(patch.packed) * u128::from(needed_bytes) / u128::from(total.max(1))) as u64;
        if needed.is_empty() || (!must && saved <= payload.saturating_add(optimize.work(patch))) {
            continue;
        }
        for id in &needed {
            open.remove(id);
            if !is_wanted(id) {
                choice.passing.push(*id);
            }
        }
        open.extend(patch.base_ids().filter(|id| !held(*id)).map(|id| (id, ())));
        choice.patches.push(*at);
        choice.payload_bytes += payload;
        choice.saved_bytes += saved;
        choice.processor += processor(patch);
    }
    choice.patches.reverse();
    choice.passing.sort_unstable();
    // What is open and not wanted was made by a usable patch, which was then chosen: nothing of it is left.
    choice.chunks = open.into_keys().collect();
    choice
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::TargetRun;

    fn patch(bases: &[u64], targets: &[u64], packed: u64) -> SetPatch {
        let run = |id: &u64| TargetRun { first: ChunkId(*id), lens: vec![1000] };
        SetPatch {
            codec: 1,
            packed,
            bases: bases.iter().map(|id| ChunkId(*id)..=ChunkId(*id)).collect(),
            targets: targets.iter().map(run).collect(),
        }
    }

    fn ids(ids: &[u64]) -> Vec<ChunkId> {
        ids.iter().copied().map(ChunkId).collect()
    }

    fn numbers(choice: &Choice) -> Vec<(usize, usize)> {
        choice.patches.iter().map(|at| (at.set, at.patch)).collect()
    }

    /// Chunks below 100 are held.
    fn run(wanted: &[u64], sets: &[Vec<SetPatch>], payloads: &[Vec<u32>]) -> Choice {
        let offers: Vec<_> =
            sets.iter().zip(payloads).map(|(patches, payloads)| Offer { patches, payloads }).collect();
        choose(&ids(wanted), |id| id.0 < 100, &offers, Optimize::Bytes)
    }

    #[test]
    fn a_patch_is_taken_when_it_costs_less_than_its_chunks() {
        let sets = [vec![patch(&[1], &[200, 201], 900), patch(&[2], &[202], 300)]];
        let choice = run(&[200, 201, 202, 203], &sets, &[vec![100, 301]]);
        assert_eq!(numbers(&choice), [(0, 0)]);
        assert_eq!((choice.payload_bytes, choice.saved_bytes), (100, 900));
        assert_eq!(choice.chunks, ids(&[202, 203]));
    }

    #[test]
    fn only_the_part_that_is_still_wanted_counts() {
        let sets = [vec![patch(&[1], &[200, 201, 202, 203], 1000)]];
        assert_eq!(run(&[200], &sets, &[vec![300]]).chunks, ids(&[200]));
        assert_eq!(numbers(&run(&[200, 201], &sets, &[vec![300]])), [(0, 0)]);
    }

    #[test]
    fn a_base_that_another_patch_rebuilds_brings_that_patch_and_one_nobody_has_drops_it() {
        let sets = [vec![patch(&[1], &[200], 500), patch(&[200], &[201], 500), patch(&[999], &[202], 500)]];
        let choice = run(&[200, 201, 202], &sets, &[vec![10, 10, 10]]);
        assert_eq!(numbers(&choice), [(0, 0), (0, 1)]);
        assert_eq!(choice.chunks, ids(&[202]));
        // Already there: the first patch is not needed for the second.
        let choice = run(&[201, 202], &sets, &[vec![10, 10, 10]]);
        assert_eq!(numbers(&choice), [(0, 0), (0, 1)]);
        assert_eq!(choice.passing, ids(&[200]));
    }

    #[test]
    fn a_wanted_chunk_may_be_a_base_and_is_then_fetched() {
        let sets = [vec![patch(&[201], &[200], 500)]];
        let choice = run(&[200, 201], &sets, &[vec![10]]);
        assert_eq!(numbers(&choice), [(0, 0)]);
        assert_eq!(choice.chunks, ids(&[201]));
    }

    #[test]
    fn two_sets_are_a_way_when_no_direct_one_is_there() {
        // v1 to v2 rebuilds 200 and 201; v2 to v3 rebuilds 300 out of 200 and keeps 201.
        let sets =
            [vec![patch(&[1], &[200], 500), patch(&[2], &[201], 500)], vec![patch(&[200], &[300], 500)]];
        let choice = run(&[201, 300], &sets, &[vec![10, 10], vec![10]]);
        assert_eq!(numbers(&choice), [(0, 0), (0, 1), (1, 0)]);
        assert_eq!(choice.passing, ids(&[200]));
        assert!(choice.chunks.is_empty());
    }

    #[test]
    fn a_view_is_packed_again_only_where_the_link_is_slower_than_that() {
        let view = crate::limits::VIEW_IDS_FROM;
        let mut repack = patch(&[view], &[200], 900);
        repack.codec = Method::REPACK;
        let patches = [patch(&[1], &[view], 0), repack];
        let offers = [Offer { patches: &patches, payloads: &[10, 10] }];
        let run = |optimize| numbers(&choose(&ids(&[200]), |id| id.0 < 100, &offers, optimize));
        assert_eq!(run(Optimize::Bytes), [(0, 0), (0, 1)]);
        assert_eq!(run(Optimize::Time { link: 1_000_000 }), [(0, 0), (0, 1)]);
        assert_eq!(run(Optimize::Time { link: 100_000_000 }), []);
    }

    #[test]
    fn unknown_methods_are_left_alone() {
        let mut unknown = patch(&[1], &[200], 500);
        unknown.codec = 99;
        assert_eq!(run(&[200], &[vec![unknown]], &[vec![1]]).chunks, ids(&[200]));
    }
}
