//! A manifest's chunks by id, against which received batches are checked.

use distd_core::manifest::{Entry, Manifest};
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkHash, ChunkId};

/// Every distinct chunk of a manifest, sorted by id. 48 bytes a chunk.
#[derive(Debug, Default)]
pub struct ChunkTable {
    chunks: Vec<(ChunkId, ChunkHash, u32)>,
    ids: ChunkRanges,
}

impl ChunkTable {
    /// Builds the table of a manifest. If one id stands for two hashes, the first is kept and the
    /// second can never verify. That is right, as no origin gives such ids.
    pub fn of(manifest: &Manifest) -> Self {
        Self::of_those(&[manifest], |_| true)
    }

    /// Builds the table of those chunks of several manifests for which `wanted` is true.
    pub fn of_those(manifests: &[&Manifest], wanted: impl Fn(ChunkId) -> bool) -> Self {
        let entries = manifests.iter().flat_map(|manifest| manifest.entries());
        let entries = entries.filter(|at| wanted(at.entry.id));
        let mut chunks: Vec<_> = entries.map(|at| (at.entry.id, at.entry.hash, at.entry.len)).collect();
        chunks.sort_by_key(|(id, ..)| *id);
        chunks.dedup_by_key(|(id, ..)| *id);
        chunks.shrink_to_fit();
        let ids = chunks.iter().map(|(id, ..)| *id).collect();
        Self { chunks, ids }
    }

    /// Returns the chunk with this id.
    pub fn get(&self, id: ChunkId) -> Option<Entry> {
        self.index_of(id).map(|index| self.at(index))
    }

    /// Returns the index of the chunk with this id in the order of ids.
    pub fn index_of(&self, id: ChunkId) -> Option<u32> {
        // A manifest of 2^32 chunks does not fit in memory.
        self.chunks.binary_search_by_key(&id, |(id, ..)| *id).ok().map(|index| index as u32)
    }

    /// Returns the chunk at an index in the order of ids.
    ///
    /// # Panics
    /// If `index` is not below the number of chunks.
    pub fn at(&self, index: u32) -> Entry {
        let (id, hash, len) = self.chunks[index as usize];
        Entry { id, hash, len }
    }

    /// Ids of all chunks.
    pub fn ids(&self) -> &ChunkRanges {
        &self.ids
    }

    /// Iterates over all chunks in id order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.chunks.iter().map(|&(id, hash, len)| Entry { id, hash, len })
    }
}
