//! The chunks of the artifact being pulled, in artifact order.

use distd_core::ChunkHash;
use distd_core::manifest::{ChunkAt, Manifest};

/// Every chunk with its offset, by position. 56 bytes each.
#[derive(Debug, Default)]
pub(super) struct Entries(Vec<ChunkAt>);

impl Entries {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let mut list = Vec::with_capacity(usize::try_from(manifest.root().chunks).unwrap_or(0).min(1 << 20));
        list.extend(manifest.entries());
        Self(list)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, position: usize) -> &ChunkAt {
        &self.0[position]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &ChunkAt)> {
        self.0.iter().enumerate()
    }
}

/// Hash of `len` zero bytes, for the one length that long runs of zeros are cut into.
#[derive(Debug)]
pub(super) struct ZeroChunk {
    len: u32,
    hash: ChunkHash,
}

impl ZeroChunk {
    pub(super) fn new(len: u32) -> Self {
        Self { len, hash: ChunkHash::of(&vec![0; len as usize]) }
    }

    pub(super) fn is(&self, at: &ChunkAt) -> bool {
        at.entry.len == self.len && at.entry.hash == self.hash
    }
}
