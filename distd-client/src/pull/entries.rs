//! The chunks of the artifact being pulled, in artifact order.

use std::sync::Arc;

use distd_core::manifest::{ChunkAt, Manifest};
use distd_core::{ChunkHash, Position};
use distd_peer::table::ChunkTable;

/// Number of positions from one stored offset to the next.
const STRIDE: usize = 32;

/// Every chunk with its offset, by position. Takes 4 bytes per chunk in addition to the table,
/// which has the chunks themselves.
#[derive(Debug)]
pub(super) struct Entries {
    table: Arc<ChunkTable>,
    /// Index in the table of the chunk at each position.
    order: Vec<u32>,
    /// Offset of every [`STRIDE`]th chunk, in bytes.
    offsets: Vec<u64>,
}

impl Entries {
    /// Lists the chunks of `manifest`, all of which must be in `table`.
    pub(super) fn of(manifest: &Manifest, table: Arc<ChunkTable>) -> Self {
        let chunks = usize::try_from(manifest.root().chunks).unwrap_or(0).min(1 << 20);
        let (mut order, mut offsets) = (Vec::with_capacity(chunks), Vec::with_capacity(chunks / STRIDE + 1));
        for at in manifest.entries() {
            if order.len().is_multiple_of(STRIDE) {
                offsets.push(at.offset);
            }
            order.push(table.index_of(at.entry.id).expect("a table has every chunk of its manifest"));
        }
        Self { table, order, offsets }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn get(&self, position: Position) -> ChunkAt {
        let index = position.index();
        let known = index / STRIDE;
        let before = &self.order[known * STRIDE..index];
        let before: u64 = before.iter().map(|index| u64::from(self.table.at(*index).len)).sum();
        ChunkAt { offset: self.offsets[known] + before, entry: self.table.at(self.order[index]) }
    }

    /// Returns the position of the chunk that has the byte at `offset`; `None` behind the end.
    pub(super) fn at(&self, offset: u64) -> Option<Position> {
        let stride = self.offsets.partition_point(|start| *start <= offset).checked_sub(1)?;
        let mut end = self.offsets[stride];
        for index in stride * STRIDE..self.order.len().min((stride + 1) * STRIDE) {
            end += u64::from(self.table.at(self.order[index]).len);
            if offset < end {
                return Some(Position::of_index(index));
            }
        }
        None
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Position, ChunkAt)> + '_ {
        let mut offset = 0;
        self.order.iter().enumerate().map(move |(index, in_table)| {
            let entry = self.table.at(*in_table);
            let at = ChunkAt { offset, entry };
            offset += u64::from(entry.len);
            (Position::of_index(index), at)
        })
    }
}

/// Hash of `len` zero bytes, for the one length into which long runs of zeros are cut.
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
