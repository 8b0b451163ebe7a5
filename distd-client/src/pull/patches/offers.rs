//! The patch sets that lead from what is held to what is wanted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distd_core::ChunkId;
use distd_core::ManifestId;
use distd_core::manifest::{ChunkAt, Entry, Kind, Manifest};
use distd_core::packing::PackedChunk;
use distd_core::patch::{Choice, Leg, Offer, Optimize, SetIndex, choose, route};
use distd_core::ranges::ChunkRanges;
use distd_peer::driver::{ChunkSink, SinkError};
use distd_peer::table::ChunkTable;
use distd_peer::trust::tuf::PatchSetRef;

use crate::pull::wanted::Realm;

/// Largest packed index read, bytes: that of a set over some two million chunks. Larger sets are passed over, so that
/// a device stays within its memory.
const INDEX_BYTES_MAX: u64 = 8 << 20;

/// A patch set whose index is here.
pub(in crate::pull) struct Set {
    pub(in crate::pull) manifest: Arc<Manifest>,
    pub(in crate::pull) index: SetIndex,
    /// The chunk of each patch's payload.
    pub(in crate::pull) payloads: Vec<Entry>,
    /// Where each payload lies in the set, bytes.
    pub(in crate::pull) offsets: Vec<u64>,
    /// The chunks behind the payloads: the outline, where the set has one.
    pub(super) outline: Vec<ChunkAt>,
}

impl Set {
    /// Whether the set tells the manifest it leads to.
    pub(super) fn has_outline(&self) -> bool {
        !self.outline.is_empty()
    }
}

/// What a pull is to save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Aim {
    /// Bytes of the link, whatever the processor has to do.
    Bytes,
    /// Time, on a link that is faster than this device.
    Time,
    /// Time, on the link as it is measured.
    #[default]
    Auto,
}

/// What [`Aim::Time`] takes the link for, bytes a second: gigabit Ethernet.
const FAST_LINK: u64 = 125_000_000;

/// Fewer bytes than this say nothing of a link's rate: they come with the first flight.
const MEASURED_MIN: u64 = 32 << 10;

/// How fast the link is, bytes a second.
#[derive(Clone, Copy, Debug)]
pub(in crate::pull) struct Link(u64);

impl Link {
    /// From how long it took until so many bytes were received. Waiting is part of it, so that a link seems slower than
    /// it is; too few bytes to tell leave it fast.
    pub(in crate::pull) fn measured(bytes: u64, time: Duration) -> Self {
        if bytes < MEASURED_MIN {
            return Self(FAST_LINK);
        }
        Self((bytes as f64 / time.as_secs_f64().max(0.001)) as u64)
    }

    /// How long so many bytes take.
    pub(in crate::pull) fn seconds(self, bytes: u64) -> f64 {
        bytes as f64 / self.0.max(1) as f64
    }
}

/// The sets to use, in the order of their use; mostly one or none.
#[derive(Default)]
pub(in crate::pull) struct Offers {
    pub(in crate::pull) sets: Vec<Set>,
    aim: Aim,
}

impl Offers {
    /// The sets that lead from `held`, or from nothing, to `to` with the fewest bytes.
    pub(in crate::pull) fn route(
        known: &[PatchSetRef],
        held: &[ManifestId],
        to: ManifestId,
    ) -> Vec<PatchSetRef> {
        let legs: Vec<Leg> =
            known.iter().map(|set| Leg { from: set.from, to: set.to, bytes: set.bytes }).collect();
        // Who holds an old release holds nothing, too: the whole release compressed as one is the most an update costs.
        let held: Vec<ManifestId> = held.iter().copied().chain([ManifestId::NOTHING]).collect();
        route(&legs, &held, to).into_iter().map(|leg| known[leg]).collect()
    }

    /// Fetches the indexes of sets. One that cannot be had is a warning, and there are none.
    pub(in crate::pull) async fn fetch(realm: &Realm, route: &[PatchSetRef], aim: Aim) -> Self {
        let mut sets = Vec::new();
        for known in route {
            match load(realm, known).await {
                Ok(mut set) => {
                    set.index.move_views(sets.len());
                    sets.push(set);
                }
                Err(error) => {
                    tracing::warn!(set = %known.set, %error, "patches left alone; chunks come instead");
                    sets.clear();
                    break;
                }
            }
        }
        Self { sets, aim }
    }

    /// Every chunk that some patch has as base.
    pub(in crate::pull) fn bases(&self) -> ChunkRanges {
        let patches = self.sets.iter().flat_map(|set| &set.index.patches);
        patches.flat_map(|patch| &patch.bases).cloned().collect()
    }

    /// The patches that bring all of `wanted` (sorted), whatever they cost.
    pub(super) fn choose_all(&self, wanted: &[ChunkId], held: impl Fn(ChunkId) -> bool) -> Choice {
        let costs: Vec<Vec<u32>> = self.sets.iter().map(|set| vec![0; set.payloads.len()]).collect();
        choose(wanted, held, &self.offered(&costs), Optimize::Bytes)
    }

    fn offered<'a>(&'a self, costs: &'a [Vec<u32>]) -> Vec<Offer<'a>> {
        let offer =
            |(set, costs): (&'a Set, &'a Vec<u32>)| Offer { patches: &set.index.patches, payloads: costs };
        self.sets.iter().zip(costs).map(offer).collect()
    }

    /// The patches worth fetching for `wanted` chunks (sorted). `held` is what can be read here; a payload that
    /// `is_here` already costs nothing.
    pub(in crate::pull) fn choose(
        &self,
        wanted: &[ChunkId],
        held: impl Fn(ChunkId) -> bool,
        is_here: impl Fn(usize, usize) -> bool,
        link: Link,
    ) -> Choice {
        let optimize = match self.aim {
            Aim::Bytes => Optimize::Bytes,
            Aim::Time => Optimize::Time { link: FAST_LINK },
            Aim::Auto => Optimize::Time { link: link.0 },
        };
        let costs: Vec<Vec<u32>> = self
            .sets
            .iter()
            .enumerate()
            .map(|(set, body)| {
                let cost = |(patch, entry): (usize, &Entry)| if is_here(set, patch) { 0 } else { entry.len };
                body.payloads.iter().enumerate().map(cost).collect()
            })
            .collect();
        choose(wanted, held, &self.offered(&costs), optimize)
    }
}

async fn load(realm: &Realm, known: &PatchSetRef) -> anyhow::Result<Set> {
    let manifest = realm.manifest_of(known.set, None, &[]).await?;
    let Kind::PatchSet { index_bytes } = manifest.root().kind else { anyhow::bail!("it is no patch set") };
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
    realm.fetch(manifest.id(), table, sink.clone(), wanted, None).await?;
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

/// Keeps what arrives in memory; for an index alone.
#[derive(Default)]
struct Memory(Mutex<Vec<(ChunkId, Vec<u8>)>>);

impl ChunkSink for Memory {
    fn accept(&self, entry: &Entry, _: &PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((entry.id, raw.to_vec()));
        Ok(())
    }
}
