//! What is held against what is wanted: a plan, before a byte moves.
//!
//! Pure: the caller says where each chunk could be read locally, the plan says what to copy and which ids to ask for.

use crate::ChunkHash;
use crate::manifest::{ChunkAt, Manifest};
use crate::ranges::ChunkRanges;

/// A seed and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldAt {
    /// Index of the seed, in the caller's order.
    pub seed: u32,
    /// Byte offset in the seed.
    pub offset: u64,
}

/// Where chunks can be read on this device: an index over its seeds.
///
/// By the first eight bytes of a chunk's hash and its length: whoever reads it hashes it anyway, for a seed may have rotted, so that
/// two chunks that agree in both are a read in vain. 24 bytes a distinct chunk.
#[derive(Debug, Default)]
pub struct HeldIndex {
    /// Sorted once [`HeldIndex::finish`] ran; the first of equals is the earliest seed.
    chunks: Vec<Held>,
    sorted: bool,
}

/// Start of the hash, length, and where.
type Held = (u64, u32, u32, u64);

fn start_of(hash: &ChunkHash) -> u64 {
    u64::from_be_bytes(*hash.0.first_chunk().expect("a hash has 32 bytes"))
}

impl HeldIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk of `len` bytes.
    pub fn insert(&mut self, hash: ChunkHash, len: u32, at: HeldAt) {
        self.chunks.push((start_of(&hash), len, at.seed, at.offset));
        self.sorted = false;
    }

    /// Adds every chunk of a seed that has its manifest.
    pub fn insert_manifest(&mut self, seed: u32, manifest: &Manifest) {
        for ChunkAt { offset, entry } in manifest.entries() {
            self.insert(entry.hash, entry.len, HeldAt { seed, offset });
        }
    }

    /// Sorts; call before looking anything up.
    pub fn finish(&mut self) {
        self.chunks.sort_unstable();
        self.chunks.dedup_by_key(|(start, len, ..)| (*start, *len));
        self.chunks.shrink_to_fit();
        self.sorted = true;
    }

    /// Where `hash` with `len` bytes should be held: to be checked by whoever reads it.
    ///
    /// # Panics
    /// When [`HeldIndex::finish`] has not run since the last insert.
    pub fn find(&self, hash: &ChunkHash, len: u32) -> Option<HeldAt> {
        assert!(self.sorted, "finish() sorts the index before it is searched");
        let wanted = (start_of(hash), len);
        let index = self.chunks.binary_search_by_key(&wanted, |(start, len, ..)| (*start, *len)).ok()?;
        let (_, _, seed, offset) = self.chunks[index];
        Some(HeldAt { seed, offset })
    }

    /// Number of distinct chunks.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// What a pull will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Length of the artifact.
    pub artifact_bytes: u64,
    /// Bytes that are held already (in the target or a seed).
    pub held_bytes: u64,
    /// Raw bytes of the distinct chunks to fetch: what the link carries before compression.
    pub fetch_raw_bytes: u64,
    /// The chunks to fetch.
    pub fetch: ChunkRanges,
    /// Number of batches that ask for them.
    pub batches: u64,
}

/// Plans one pull. `held` answers, per chunk, whether it can be read locally.
///
/// Cost: one walk of the manifest, memory for the ranges only.
pub fn plan(manifest: &Manifest, batch_chunks: u64, mut held: impl FnMut(&ChunkAt) -> bool) -> Plan {
    let mut plan = Plan { artifact_bytes: manifest.root().bytes, ..Plan::default() };
    for at in manifest.entries() {
        if held(&at) {
            plan.held_bytes += u64::from(at.entry.len);
        } else if plan.fetch.insert(at.entry.id) {
            plan.fetch_raw_bytes += u64::from(at.entry.len);
        }
    }
    plan.batches = plan.fetch.len().div_ceil(batch_chunks.max(1));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut::CutParams;
    use crate::manifest::{Builder, Entry, Kind};
    use crate::{ArtifactHash, ChunkId};

    fn manifest(chunks: &[u64]) -> Manifest {
        let mut builder = Builder::new(CutParams::default(), Kind::File);
        for n in chunks {
            builder.push(Entry { id: ChunkId(*n), hash: ChunkHash::of(&n.to_be_bytes()), len: 1000 });
        }
        builder.finish(ArtifactHash([0; 32]))
    }

    #[test]
    fn a_repeated_chunk_is_fetched_once_and_a_held_one_never() {
        let old = manifest(&[1, 2, 3]);
        let new = manifest(&[1, 4, 4, 3, 5]);
        let mut index = HeldIndex::new();
        index.insert_manifest(0, &old);
        index.finish();
        let plan = plan(&new, 1, |at| index.find(&at.entry.hash, at.entry.len).is_some());
        assert_eq!(plan.held_bytes, 2000);
        assert_eq!(plan.fetch_raw_bytes, 2000);
        assert_eq!(plan.fetch.ids().collect::<Vec<_>>(), [ChunkId(4), ChunkId(5)]);
        assert_eq!(plan.batches, 2);
    }

    #[test]
    fn the_first_seed_wins_and_a_wrong_length_is_no_match() {
        let mut index = HeldIndex::new();
        let hash = ChunkHash::of(b"x");
        index.insert(hash, 10, HeldAt { seed: 1, offset: 0 });
        index.insert(hash, 10, HeldAt { seed: 0, offset: 7 });
        index.finish();
        assert_eq!(index.find(&hash, 10), Some(HeldAt { seed: 0, offset: 7 }));
        assert_eq!(index.find(&hash, 11), None);
    }
}
