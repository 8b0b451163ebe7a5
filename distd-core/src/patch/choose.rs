//! Choice of the patches to fetch: those that cost less than the chunks they save.
//!
//! A pure function that needs no direct set between two releases: patches name chunks and not
//! positions, so the sets of v1→v2 and v2→v3 together are a route from v1 to v3.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Method, PatchChunkId, PatchMethod, SetPatch};
use crate::ChunkId;

/// Reference to a patch: its set and its number in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchRef {
    /// Index of the set, in the order of the offers.
    pub set: usize,
    /// Number of the patch in its set.
    pub patch: usize,
}

/// Patch set that could be used.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Patches of the set.
    pub patches: &'a [SetPatch],
    /// Length of each payload, bytes.
    pub payloads: &'a [u32],
}

/// Cost that the choice minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimize {
    /// Bytes fetched, nothing else.
    Bytes,
    /// Time. Seconds of this device's processor are weighed against seconds of the link.
    Time {
        /// Bytes that the link carries in a second.
        link: u64,
    },
    /// Chunks fetched: every patch whose payload is at hand is used. A payload of `u32::MAX` bytes
    /// is not at hand.
    AtHand,
}

/// Conditions of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Cost that the choice minimises.
    pub optimize: Optimize,
    /// Most memory for a patch that states its memory, bytes. A patch above it counts as unknown.
    pub memory: u64,
}

/// A choice on a device with memory for every patch.
impl From<Optimize> for Terms {
    fn from(optimize: Optimize) -> Self {
        Self { optimize, memory: u64::MAX }
    }
}

impl Terms {
    fn allow(&self, patch: &SetPatch) -> bool {
        patch.method().is_some_and(|method| method.memory().is_none_or(|bytes| bytes <= self.memory))
    }
}

impl Optimize {
    /// Whether a payload of this length can be had.
    fn is_there(self, payload: u64) -> bool {
        self != Self::AtHand || payload < u64::from(u32::MAX)
    }

    /// Whether a patch saves less than it costs.
    fn is_dear(self, saved: u64, payload: u64, patch: &SetPatch) -> bool {
        self != Self::AtHand && saved <= payload.saturating_add(self.work(patch))
    }

    /// Cost of applying a patch, expressed in bytes of the link.
    fn work(self, patch: &SetPatch) -> u64 {
        let Self::Time { link } = self else { return 0 };
        match patch.method() {
            Some(
                Method::Repack(_)
                | Method::Inflate(_)
                | Method::HashTree
                | Method::Large(_)
                | Method::Buffer(PatchMethod::References),
            ) => (processor(patch).as_secs_f64() * link as f64) as u64,
            // Other patches decode faster than the chunks they replace would unpack, so nothing is
            // charged.
            _ => 0,
        }
    }
}

/// Estimates how long one core takes to apply a patch. Real machines differ from this by several
/// times.
fn processor(patch: &SetPatch) -> Duration {
    let (bytes, rate) = match patch.method() {
        // Packed files hold two to four times their own bytes of content, and packing that content
        // takes the time.
        Some(Method::Repack(cost)) => (patch.base_ids().count() as u64 * VIEW_CHUNK_BYTES, cost.rate()),
        Some(Method::Inflate(_)) => (patch.target_bytes() as u64, INFLATE_RATE),
        Some(Method::Large(_) | Method::Buffer(PatchMethod::References)) => {
            (patch.target_bytes() as u64, REFERENCES_RATE)
        }
        Some(Method::HashTree) => (patch.base_ids().count() as u64 * CHUNK_BYTES, HASH_RATE),
        _ => (patch.target_bytes() as u64, DECODE_RATE),
    };
    Duration::from_secs_f64(bytes as f64 / rate as f64)
}

// Bytes per second of one core, measured on the reference pairs (docs/benchmarks.md, "Patches"):
// content unpacked; bytes rebuilt by patches of the codecs that work in memory. The rate at which
// content is packed again is that of its Cost.
const INFLATE_RATE: u64 = 200_000_000;
const DECODE_RATE: u64 = 250_000_000;
const REFERENCES_RATE: u64 = 25_000_000;
/// Bytes of data per second of one core that go into a hash tree, without instructions for SHA.
const HASH_RATE: u64 = 300_000_000;

/// Average length of a chunk in bytes, at the default cut.
const CHUNK_BYTES: u64 = 16_384;

/// Average length of a view's chunk in bytes: 11 kB in the views of the reference pairs, at the
/// default cut.
const VIEW_CHUNK_BYTES: u64 = 11_000;

/// Patches and chunks to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Patches, in the order in which they must be applied.
    pub patches: Vec<PatchRef>,
    /// Bytes of the patches' payloads.
    pub payload_bytes: u64,
    /// Bytes that the rebuilt chunks would cost as chunks, in the origin's own packing. Counts only
    /// chunks that are needed.
    pub saved_bytes: u64,
    /// Chunks to fetch, ascending: wanted chunks that no chosen patch rebuilds, and those that a
    /// chosen patch needs as base before any patch rebuilds them.
    pub chunks: Vec<ChunkId>,
    /// Transient chunks, ascending: chosen patches rebuild them only as bases of other patches;
    /// they are not wanted themselves.
    pub transient: Vec<PatchChunkId>,
    /// Estimated time of one core to apply the patches.
    pub processor: Duration,
}

/// Chooses the patches among `offers` that bring the `wanted` chunks with the fewest bytes.
/// `wanted` is sorted; `offers` are in the order of their use.
///
/// `held` tells whether a chunk can be read on this device; a chunk of a view never can. A base
/// that is neither held nor rebuilt by an earlier patch must itself be `wanted`, else its patch is
/// not used. The caller need not remove patches of unknown methods, or those that need more memory
/// than the device has: they are skipped here, and so are the patches that need their targets.
///
/// Cost: a few passes over all patches; memory 16 bytes a target chunk.
pub fn choose(
    wanted: &[ChunkId],
    held: impl Fn(ChunkId) -> bool,
    offers: &[Offer<'_>],
    terms: impl Into<Terms>,
) -> Choice {
    let terms = terms.into();
    let is_wanted = |id: PatchChunkId| id.chunk().is_some_and(|id| wanted.binary_search(&id).is_ok());
    let is_held = |id: PatchChunkId| id.chunk().is_some_and(&held);
    let all: Vec<(PatchRef, &SetPatch, u64)> = offers
        .iter()
        .enumerate()
        .flat_map(|(set, offer)| {
            let patches = offer.patches.iter().zip(offer.payloads).enumerate();
            patches.map(move |(patch, (body, payload))| (PatchRef { set, patch }, body, u64::from(*payload)))
        })
        .filter(|(_, patch, payload)| terms.allow(patch) && terms.optimize.is_there(*payload))
        .collect();

    // Forwards: which patches can be applied at all, and which chunks that are not wanted do they
    // make.
    let mut made: BTreeSet<PatchChunkId> = BTreeSet::new();
    let mut usable = Vec::with_capacity(all.len());
    for (_, patch, _) in &all {
        let ok = patch.base_ids().all(|id| is_held(id) || is_wanted(id) || made.contains(&id));
        if ok {
            made.extend(patch.target_chunks().map(|(id, _)| id).filter(|id| !is_wanted(*id)));
        }
        usable.push(ok);
    }

    // Backwards: the bases of a chosen patch are open, so that patches before it may rebuild them.
    let mut open: BTreeMap<PatchChunkId, ()> =
        wanted.iter().filter(|id| !held(**id)).map(|id| ((*id).into(), ())).collect();
    let mut choice = Choice::default();
    for ((at, patch, payload), usable) in all.iter().zip(&usable).rev() {
        if !usable {
            continue;
        }
        let (mut needed, mut needed_bytes, mut must) = (Vec::new(), 0u64, false);
        for (id, len) in patch.target_chunks() {
            if open.contains_key(&id) {
                needed_bytes += u64::from(len);
                must |= !is_wanted(id);
                needed.push(id);
            }
        }
        // All targets cost `packed` as chunks; count the share of the needed ones.
        let total = patch.target_bytes() as u64;
        let saved = (u128::from(patch.packed) * u128::from(needed_bytes) / u128::from(total.max(1))) as u64;
        if needed.is_empty() || (!must && terms.optimize.is_dear(saved, *payload, patch)) {
            continue;
        }
        for id in &needed {
            open.remove(id);
            if !is_wanted(*id) {
                choice.transient.push(*id);
            }
        }
        open.extend(patch.base_ids().filter(|id| !is_held(*id)).map(|id| (id, ())));
        choice.patches.push(*at);
        choice.payload_bytes += payload;
        choice.saved_bytes += saved;
        choice.processor += processor(patch);
    }
    choice.patches.reverse();
    choice.transient.sort_unstable();
    // An open chunk that is not wanted comes from an earlier usable patch, and that patch was then
    // chosen. So all remaining open chunks are wanted.
    choice.chunks = open.into_keys().filter_map(PatchChunkId::chunk).collect();
    choice
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{Cost, TargetRun, ViewChunkId};

    fn patch(bases: &[u64], targets: &[u64], packed: u64) -> SetPatch {
        patch_of(&patch_ids(bases), &patch_ids(targets), packed)
    }

    fn patch_of(bases: &[PatchChunkId], targets: &[PatchChunkId], packed: u64) -> SetPatch {
        let run = |id: &PatchChunkId| TargetRun { first: *id, lens: vec![1000] };
        SetPatch {
            codec: 1,
            packed,
            bases: bases.iter().map(|id| *id..=*id).collect(),
            targets: targets.iter().map(run).collect(),
        }
    }

    fn patch_ids(ids: &[u64]) -> Vec<PatchChunkId> {
        ids.iter().map(|id| ChunkId(*id).into()).collect()
    }

    fn ids(ids: &[u64]) -> Vec<ChunkId> {
        ids.iter().copied().map(ChunkId).collect()
    }

    fn numbers(choice: &Choice) -> Vec<(usize, usize)> {
        choice.patches.iter().map(|at| (at.set, at.patch)).collect()
    }

    /// Runs [`choose`] on a device that holds all chunks below 100.
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
    fn every_payload_at_hand_is_used_and_no_other() {
        let patches = vec![patch(&[1], &[200, 201], 10), patch(&[2], &[202], 900)];
        let offers = [Offer { patches: &patches, payloads: &[0, u32::MAX] }];
        // As a part of the first patch's targets, 201 saves less than a byte.
        let choice = choose(&ids(&[201, 202]), |id| id.0 < 100, &offers, Optimize::AtHand);
        assert_eq!((numbers(&choice), choice.chunks), (vec![(0, 0)], ids(&[202])));
        let choice = choose(&ids(&[200]), |id| id.0 < 100, &offers, Optimize::AtHand);
        assert_eq!(numbers(&choice), [(0, 0)]);
    }

    #[test]
    fn a_patch_brings_the_patch_of_its_base_and_is_dropped_without_a_base() {
        let sets = [vec![patch(&[1], &[200], 500), patch(&[200], &[201], 500), patch(&[999], &[202], 500)]];
        let choice = run(&[200, 201, 202], &sets, &[vec![10, 10, 10]]);
        assert_eq!(numbers(&choice), [(0, 0), (0, 1)]);
        assert_eq!(choice.chunks, ids(&[202]));
        // 200 is not wanted here: the first patch rebuilds it as transient base of the second.
        let choice = run(&[201, 202], &sets, &[vec![10, 10, 10]]);
        assert_eq!(numbers(&choice), [(0, 0), (0, 1)]);
        assert_eq!(choice.transient, patch_ids(&[200]));
    }

    #[test]
    fn a_wanted_chunk_may_be_a_base_and_is_then_fetched() {
        let sets = [vec![patch(&[201], &[200], 500)]];
        let choice = run(&[200, 201], &sets, &[vec![10]]);
        assert_eq!(numbers(&choice), [(0, 0)]);
        assert_eq!(choice.chunks, ids(&[201]));
    }

    #[test]
    fn two_sets_form_a_route_when_there_is_no_direct_set() {
        // v1 to v2 rebuilds 200 and 201; v2 to v3 rebuilds 300 out of 200 and keeps 201.
        let sets =
            [vec![patch(&[1], &[200], 500), patch(&[2], &[201], 500)], vec![patch(&[200], &[300], 500)]];
        let choice = run(&[201, 300], &sets, &[vec![10, 10], vec![10]]);
        assert_eq!(numbers(&choice), [(0, 0), (0, 1), (1, 0)]);
        assert_eq!(choice.transient, patch_ids(&[200]));
        assert!(choice.chunks.is_empty());
    }

    #[test]
    fn a_view_is_packed_again_only_if_the_link_is_slower_than_packing() {
        let view = PatchChunkId::from(ViewChunkId(0));
        let mut repack = patch_of(&[view], &patch_ids(&[200]), 900);
        repack.codec = Method::Repack(Cost::UNSTATED).number();
        let patches = [patch_of(&patch_ids(&[1]), &[view], 0), repack];
        let offers = [Offer { patches: &patches, payloads: &[10, 10] }];
        let run = |optimize| numbers(&choose(&ids(&[200]), |id| id.0 < 100, &offers, optimize));
        assert_eq!(run(Optimize::Bytes), [(0, 0), (0, 1)]);
        assert_eq!(run(Optimize::Time { link: 1_000_000 }), [(0, 0), (0, 1)]);
        assert_eq!(run(Optimize::Time { link: 100_000_000 }), []);
    }

    #[test]
    fn a_view_that_needs_more_memory_than_the_device_has_costs_its_chunks() {
        let views = [0, 1].map(|n| PatchChunkId::from(ViewChunkId(n)));
        let cost = Cost::new(100 << 20, 1_000_000).expect("a class");
        let mut inflate = patch_of(&patch_ids(&[2]), &[views[1]], 0);
        inflate.codec = Method::Inflate(Cost::new(1, 1).expect("a class")).number();
        let mut repack = patch_of(&[views[0]], &patch_ids(&[200]), 900);
        repack.codec = Method::Repack(cost).number();
        let patches = [inflate, patch_of(&[views[1]], &[views[0]], 0), repack];
        let offers = [Offer { patches: &patches, payloads: &[1, 10, 10] }];
        let run = |memory| {
            let terms = Terms { optimize: Optimize::Bytes, memory };
            choose(&ids(&[200]), |id| id.0 < 100, &offers, terms)
        };
        assert_eq!(numbers(&run(128 << 20)), [(0, 0), (0, 1), (0, 2)]);
        let without = run((128 << 20) - 1);
        assert_eq!((numbers(&without), without.chunks), (vec![], ids(&[200])));
        // The same view on a link that is quicker than packing at the rate of its class.
        let slow =
            |link| choose(&ids(&[200]), |id| id.0 < 100, &offers, Optimize::Time { link }).patches.len();
        assert_eq!([slow(60_000), slow(1_000_000)], [3, 0]);
    }

    #[test]
    fn patches_of_unknown_methods_are_skipped() {
        let mut unknown = patch(&[1], &[200], 500);
        unknown.codec = 99;
        assert_eq!(run(&[200], &[vec![unknown]], &[vec![1]]).chunks, ids(&[200]));
    }
}
