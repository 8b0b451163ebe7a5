//! The patch sets that lead from a held release to the wanted one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distd_core::ChunkId;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::manifest::{ChunkAt, Entry, Kind, Manifest};
use distd_core::packing::PackedChunk;
use distd_core::patch::{Choice, Leg, Offer, Optimize, SetIndex, Terms, choose, route};
use distd_core::planner::HeldIndex;
use distd_core::ranges::ChunkRanges;
use distd_peer::bundle::Bundle;
use distd_peer::driver::{ChunkSink, SinkError};
use distd_peer::table::ChunkTable;
use distd_peer::trust::tuf::PatchSetRef;

use super::apply::held;
use crate::pull::network::Network;

/// Largest packed index read, in bytes: that of a set over some two million chunks. Larger sets are
/// skipped, to limit the device's memory.
const INDEX_BYTES_MAX: u64 = 8 << 20;

/// A patch set whose index was fetched.
pub(in crate::pull) struct Set {
    pub(in crate::pull) manifest: Arc<Manifest>,
    pub(in crate::pull) index: SetIndex,
    /// Chunk with the payload of each patch.
    pub(in crate::pull) payloads: Vec<Entry>,
    /// Offset of each payload in the set, in bytes.
    pub(in crate::pull) offsets: Vec<u64>,
    /// Chunks after the payloads, which form the outline; empty if the set has none.
    pub(super) outline: Vec<ChunkAt>,
}

impl Set {
    /// Returns whether the set contains an outline, from which the manifest of its target can be
    /// built.
    pub(super) fn has_outline(&self) -> bool {
        !self.outline.is_empty()
    }
}

/// Resource to save when patches are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Aim {
    /// Bytes on the link, whatever processor time that costs.
    Bytes,
    /// Time, assuming a link that is faster than this device.
    Time,
    /// Time, at the measured rate of the link.
    #[default]
    Auto,
}

/// Rate assumed by [`Aim::Time`], in bytes per second: gigabit Ethernet.
const FAST_LINK: u64 = 125_000_000;

/// Smallest number of bytes from which a rate is measured: fewer arrive with the first flight.
const MEASURED_MIN: u64 = 32 << 10;

/// Rate of the link, in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(in crate::pull) struct LinkRate(u64);

impl LinkRate {
    /// Measures the rate from the time until `bytes` were received. The time includes waiting, so
    /// the link seems slower than it is. With too few bytes to measure, the link counts as fast.
    pub(in crate::pull) fn measured(bytes: u64, time: Duration) -> Self {
        if bytes < MEASURED_MIN {
            return Self(FAST_LINK);
        }
        Self((bytes as f64 / time.as_secs_f64().max(0.001)) as u64)
    }

    /// The rate of a link of which nothing is known: a fast one.
    pub(in crate::pull) fn unknown() -> Self {
        Self(FAST_LINK)
    }

    /// Returns how long `bytes` take, in seconds.
    pub(in crate::pull) fn seconds(self, bytes: u64) -> f64 {
        bytes as f64 / self.0.max(1) as f64
    }
}

/// The sets to use, in the order of their use; mostly one or none.
#[derive(Default)]
pub(in crate::pull) struct Offers {
    pub(in crate::pull) sets: Vec<Set>,
    aim: Aim,
    /// Memory for views, bytes.
    pub(super) view_memory: u64,
    /// Chunks of each set that can be had; `None`: all of them.
    there: Option<Vec<ChunkRanges>>,
}

impl Offers {
    /// Returns the sets that lead from `held`, or from nothing, to `to` with the fewest bytes.
    pub(in crate::pull) fn route(
        known: &[PatchSetRef],
        held: &[ManifestId],
        to: ManifestId,
    ) -> Vec<PatchSetRef> {
        let legs: Vec<Leg> =
            known.iter().map(|set| Leg { from: set.from, to: set.to, bytes: set.bytes }).collect();
        // A device that has an old release can also start from nothing. The whole release
        // compressed as one piece is therefore the most that an update costs.
        let held: Vec<ManifestId> = held.iter().copied().chain([ManifestId::NOTHING]).collect();
        route(&legs, &held, to).into_iter().map(|leg| known[leg]).collect()
    }

    /// Fetches the indexes of the sets of a route. If one cannot be fetched, logs a warning and
    /// returns no sets. `view_memory` is the device's memory for views, in bytes. With a `bundle`,
    /// only its payloads can be had.
    pub(in crate::pull) async fn fetch(
        network: &Network,
        route: &[PatchSetRef],
        (aim, view_memory): (Aim, u64),
        bundle: Option<&Bundle>,
    ) -> Self {
        let mut sets = Vec::new();
        for known in route {
            match load(network, known).await {
                Ok(mut set) => {
                    set.index.move_views(sets.len());
                    sets.push(set);
                }
                Err(error) => {
                    tracing::warn!(set = %known.set, error = %Chain(error.as_ref()), "patch set not used; fetching chunks instead");
                    sets.clear();
                    break;
                }
            }
        }
        let there = bundle.map(|bundle| {
            let part = |set: &Set| bundle.swarms().iter().find(|part| part.manifest() == set.manifest.id());
            sets.iter().map(|set| part(set).map(|part| part.held().clone()).unwrap_or_default()).collect()
        });
        Self { sets, aim, view_memory, there }
    }

    /// Returns every chunk of a release that some patch has as base.
    pub(in crate::pull) fn bases(&self) -> ChunkRanges {
        let patches = self.sets.iter().flat_map(|set| &set.index.patches);
        let bases = patches.flat_map(|patch| &patch.bases);
        bases.filter_map(|range| Some(range.start().chunk()?..=range.end().chunk()?)).collect()
    }

    /// Returns the patches that yield all of `wanted` (sorted), whatever they cost in bytes and
    /// time.
    pub(super) fn choose_all(&self, wanted: &[ChunkId], held: impl Fn(ChunkId) -> bool) -> Choice {
        let costs: Vec<Vec<u32>> = self.sets.iter().map(|set| vec![0; set.payloads.len()]).collect();
        choose(wanted, held, &self.offered(&costs), self.terms(Optimize::Bytes))
    }

    /// Returns the patches worth fetching for a release of which nothing is transferred yet.
    /// `table` lists its chunks; those of `missing` are wanted, and all others are in place.
    /// `seeds` are the manifests of held releases, and `index` has their chunks.
    pub(in crate::pull) fn choose_before(
        &self,
        (table, missing): (&Arc<ChunkTable>, &ChunkRanges),
        (seeds, index): (&[&Manifest], &HeldIndex),
        link: LinkRate,
    ) -> Choice {
        let wanted: Vec<ChunkId> = missing.ids().collect();
        let bases = self.bases();
        let tables = [table.clone(), Arc::new(ChunkTable::of_those(seeds, |id| bases.contains(id)))];
        let held_here =
            |id| held(index, &tables, id).is_some() || (table.get(id).is_some() && !missing.contains(id));
        self.choose(&wanted, held_here, |_, _| false, link)
    }

    /// Returns all patches that yield `wanted` chunks (sorted), whatever they cost, as long as
    /// their payloads can be had.
    pub(in crate::pull) fn choose_at_hand(
        &self,
        wanted: &[ChunkId],
        held: impl Fn(ChunkId) -> bool,
        is_here: impl Fn(usize, usize) -> bool,
    ) -> Choice {
        choose(wanted, held, &self.offered(&self.costs(is_here)), self.terms(Optimize::AtHand))
    }

    /// Bytes to fetch for each payload of each set: 0 for one that `is_here`, `u32::MAX` for one
    /// that cannot be had.
    fn costs(&self, is_here: impl Fn(usize, usize) -> bool) -> Vec<Vec<u32>> {
        let of_set = |(set, body): (usize, &Set)| {
            let is_there = |id| self.there.as_ref().is_none_or(|there| there[set].contains(id));
            let cost = |(patch, entry): (usize, &Entry)| match is_here(set, patch) {
                true => 0,
                false if is_there(entry.id) => entry.len,
                false => u32::MAX,
            };
            body.payloads.iter().enumerate().map(cost).collect()
        };
        self.sets.iter().enumerate().map(of_set).collect()
    }

    fn terms(&self, optimize: Optimize) -> Terms {
        Terms { optimize, memory: self.view_memory }
    }

    fn offered<'a>(&'a self, costs: &'a [Vec<u32>]) -> Vec<Offer<'a>> {
        let offer =
            |(set, costs): (&'a Set, &'a Vec<u32>)| Offer { patches: &set.index.patches, payloads: costs };
        self.sets.iter().zip(costs).map(offer).collect()
    }

    /// Returns the patches worth fetching for the `wanted` chunks (sorted). `held` says which
    /// chunks can be read here; a payload for which `is_here` returns true costs nothing.
    pub(in crate::pull) fn choose(
        &self,
        wanted: &[ChunkId],
        held: impl Fn(ChunkId) -> bool,
        is_here: impl Fn(usize, usize) -> bool,
        link: LinkRate,
    ) -> Choice {
        let optimize = match self.aim {
            _ if self.there.is_some() => Optimize::AtHand,
            Aim::Bytes => Optimize::Bytes,
            Aim::Time => Optimize::Time { link: FAST_LINK },
            Aim::Auto => Optimize::Time { link: link.0 },
        };
        choose(wanted, held, &self.offered(&self.costs(is_here)), self.terms(optimize))
    }
}

async fn load(network: &Network, known: &PatchSetRef) -> anyhow::Result<Set> {
    let manifest = network.manifest_of(known.set, None, &[]).await?;
    let Kind::PatchSet { index_bytes } = manifest.root().kind else { anyhow::bail!("it is not a patch set") };
    anyhow::ensure!(index_bytes <= INDEX_BYTES_MAX, "its index of {index_bytes} bytes is too large");
    let mut head = Vec::new();
    let (mut payloads, mut offsets) = (Vec::new(), Vec::new());
    for at in manifest.entries() {
        if at.offset < index_bytes {
            head.push(at);
        } else {
            payloads.push(at.entry);
            offsets.push(at.offset);
        }
    }
    let in_head: u64 = head.iter().map(|at| u64::from(at.entry.len)).sum();
    anyhow::ensure!(in_head == index_bytes, "its index does not end where a chunk ends");
    let wanted: ChunkRanges = head.iter().map(|at| at.entry.id).collect();
    let sink = Arc::new(Memory::default());
    let table = Arc::new(ChunkTable::of(&manifest));
    network.fetch(manifest.id(), table, sink.clone(), wanted, None).await?;
    let mut bytes = Vec::with_capacity(index_bytes as usize);
    {
        let pieces = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
        for at in &head {
            let piece = pieces.iter().find(|(id, _)| *id == at.entry.id);
            bytes.extend_from_slice(&piece.ok_or_else(|| anyhow::anyhow!("its index is incomplete"))?.1);
        }
    }
    let index = SetIndex::decode(&bytes)?;
    let count = index.patches.len();
    anyhow::ensure!(
        index.from == known.from && index.to == known.to && count <= payloads.len(),
        "its index is not that of the set that was signed"
    );
    let behind = payloads.split_off(count).into_iter().zip(offsets.split_off(count));
    let outline = behind.map(|(entry, offset)| ChunkAt { offset, entry }).collect();
    Ok(Set { manifest: Arc::new(manifest), index, payloads, offsets, outline })
}

/// Sink that keeps arriving chunks in memory; used only for an index.
#[derive(Default)]
struct Memory(Mutex<Vec<(ChunkId, Vec<u8>)>>);

impl ChunkSink for Memory {
    fn accept(&self, entry: &Entry, _: &PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((entry.id, raw.to_vec()));
        Ok(())
    }
}
