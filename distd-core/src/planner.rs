//! The plan of a pull, made before a byte moves: wanted chunks compared with held ones.
//!
//! Pure: the caller says which chunks it can read locally; the plan says how much of the artifact
//! is held and which chunk ids to fetch.

use crate::ChunkHash;
use crate::manifest::{ChunkAt, Manifest};
use crate::ranges::ChunkRanges;

/// A seed and an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldAt {
    /// Index of the seed in the caller's list.
    pub seed: u32,
    /// Byte offset in the seed.
    pub offset: u64,
}

/// Index over this device's seeds: for each chunk, a place where it can be read.
///
/// The key is the first eight bytes of the chunk's hash, with the chunk's length. A reader has to
/// hash a chunk from a seed anyway, since the seed may be damaged; two chunks with the same key
/// cost one read in vain. 24 bytes for each distinct chunk.
#[derive(Debug, Default)]
pub struct HeldIndex {
    /// Sorted by [`HeldIndex::finish`]. Of equal keys, the earliest seed comes first.
    chunks: Vec<Held>,
    sorted: bool,
}

/// First eight bytes of the hash, length, seed, offset.
type Held = (u64, u32, u32, u64);

fn start_of(hash: &ChunkHash) -> u64 {
    u64::from_be_bytes(*hash.0.first_chunk().expect("a hash has 32 bytes"))
}

impl HeldIndex {
    /// Returns an empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk of `len` bytes.
    pub fn insert(&mut self, hash: ChunkHash, len: u32, at: HeldAt) {
        self.chunks.push((start_of(&hash), len, at.seed, at.offset));
        self.sorted = false;
    }

    /// Adds every chunk of the manifest of a seed.
    pub fn insert_manifest(&mut self, seed: u32, manifest: &Manifest) {
        for ChunkAt { offset, entry } in manifest.entries() {
            self.insert(entry.hash, entry.len, HeldAt { seed, offset });
        }
    }

    /// Sorts the index. Call this before [`HeldIndex::find`].
    pub fn finish(&mut self) {
        self.chunks.sort_unstable();
        self.chunks.dedup_by_key(|(start, len, ..)| (*start, *len));
        self.chunks.shrink_to_fit();
        self.sorted = true;
    }

    /// Returns the place where the chunk `hash` of `len` bytes should be. The caller has to hash
    /// the bytes it reads there.
    ///
    /// # Panics
    /// If [`HeldIndex::finish`] has not run since the last insert.
    pub fn find(&self, hash: &ChunkHash, len: u32) -> Option<HeldAt> {
        assert!(self.sorted, "finish() sorts the index before it is searched");
        let wanted = (start_of(hash), len);
        let index = self.chunks.binary_search_by_key(&wanted, |(start, len, ..)| (*start, *len)).ok()?;
        let (_, _, seed, offset) = self.chunks[index];
        Some(HeldAt { seed, offset })
    }

    /// Returns the number of distinct chunks.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether the index has no chunk.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// The work of one pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Length of the artifact in bytes.
    pub artifact_bytes: u64,
    /// Raw bytes of the chunks that are held already (in the target or a seed), repeats counted.
    pub held_bytes: u64,
    /// Raw bytes of the distinct chunks to fetch. The link carries them packed.
    pub fetch_raw_bytes: u64,
    /// Ids of the chunks to fetch.
    pub fetch: ChunkRanges,
    /// Number of batches for [`Plan::fetch`].
    pub batches: u64,
}

/// Plans one pull. `held` says of each chunk whether it can be read locally.
///
/// Cost: one walk over the manifest, and memory for the ranges only.
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
