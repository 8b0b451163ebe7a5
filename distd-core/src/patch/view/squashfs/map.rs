//! Map of the blocks of one file, of a block of fragments, or of a table.

use std::ops::Range;

use crate::cut::squashfs::{BlockLen, Packing, TABLE_BLOCK_BYTES};

/// Blocks one behind the other in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::patch::view) struct BlockMap {
    pub(super) packing: Packing,
    /// Most bytes of content in a block of data.
    pub(super) block_bytes: u32,
    /// Offset of the first block in the artifact.
    pub(super) start: u64,
    pub(super) content: Content,
}

/// Content of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A file; blocks of no bytes stand for zeros, which the view lacks.
    File(Vec<BlockLen>),
    /// The ends of files in one block, with their names, in order and without overlap.
    Fragment(BlockLen, Vec<(Range<u32>, Vec<u8>)>),
    /// A table of this many bytes, whose blocks have headers.
    Table(u64),
}

impl BlockMap {
    /// Approximate bytes of content.
    pub(super) fn weight(&self) -> u64 {
        match &self.content {
            Content::File(blocks) => blocks.len() as u64 * u64::from(self.block_bytes),
            Content::Fragment(..) => u64::from(self.block_bytes),
            // Tables unpack to some three times their length.
            Content::Table(bytes) => bytes * 3,
        }
    }

    /// Most bytes of content in a block.
    pub(super) fn plain_max(&self) -> usize {
        match &self.content {
            Content::Table(_) => TABLE_BLOCK_BYTES,
            _ => self.block_bytes as usize,
        }
    }

    /// Returns names and ranges of the parts of a view of `len` bytes; the whole has the name
    /// `name`.
    pub(in crate::patch::view) fn named(&self, name: &[u8], range: Range<u64>) -> Vec<(Vec<u8>, Range<u64>)> {
        let Content::Fragment(_, ends) = &self.content else { return vec![(name.to_vec(), range)] };
        let (mut out, mut done) = (Vec::new(), range.start);
        let place = |offset: u32| range.start.saturating_add(u64::from(offset)).min(range.end);
        for (end, path) in ends {
            let (from, to) = (place(end.start), place(end.end));
            if done < from {
                out.push((name.to_vec(), done..from));
            }
            if from < to {
                out.push((path.clone(), from..to));
            }
            done = done.max(to);
        }
        if done < range.end {
            out.push((name.to_vec(), done..range.end));
        }
        out
    }
}
