//! A manifest's chunks by id: what a batch is checked against.

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
    /// The table of a manifest. An id that stands for two hashes keeps the first: the other can then never verify,
    /// which is right, for no origin gives such ids.
    pub fn of(manifest: &Manifest) -> Self {
        Self::of_all(&[manifest])
    }

    /// The table of several manifests together.
    pub fn of_all(manifests: &[&Manifest]) -> Self {
        let entries = manifests.iter().flat_map(|manifest| manifest.entries());
        let mut chunks: Vec<_> = entries.map(|at| (at.entry.id, at.entry.hash, at.entry.len)).collect();
        chunks.sort_by_key(|(id, ..)| *id);
        chunks.dedup_by_key(|(id, ..)| *id);
        chunks.shrink_to_fit();
        let ids = chunks.iter().map(|(id, ..)| *id).collect();
        Self { chunks, ids }
    }

    /// What `other` does not have.
    pub fn without(mut self, other: &Self) -> Self {
        self.chunks.retain(|(id, ..)| other.get(*id).is_none());
        self.chunks.shrink_to_fit();
        self.ids = self.ids.difference(&other.ids);
        self
    }

    /// The chunk with this id.
    pub fn get(&self, id: ChunkId) -> Option<Entry> {
        let index = self.chunks.binary_search_by_key(&id, |(id, ..)| *id).ok()?;
        let (id, hash, len) = self.chunks[index];
        Some(Entry { id, hash, len })
    }

    /// All ids.
    pub fn ids(&self) -> &ChunkRanges {
        &self.ids
    }

    /// All chunks in id order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.chunks.iter().map(|&(id, hash, len)| Entry { id, hash, len })
    }
}
