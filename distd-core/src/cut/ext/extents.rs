//! Maps of files: trees of extents, and the block maps of ext2 and ext3.

use super::FileSystem;
use super::inode::Inode;
use crate::bounds::REGIONS_MAX;
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at};

const EXTENT_MAGIC: u16 = 0xF30A;

/// Bytes of a header, and of each entry behind it.
const ENTRY: usize = 12;

/// Deepest tree: the kernel accepts five levels.
const DEPTH_MAX: u16 = 5;

/// Lengths above this are of extents that were reserved and not written: they read as zeros.
const WRITTEN_MAX: u16 = 32_768;

/// Blocks that an inode names itself, in a block map. Three more lead to blocks of block numbers,
/// over one, two and three levels.
const DIRECT: u64 = 12;

/// Run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Number of the first block in the file.
    pub(super) first: u64,
    /// Number of the first block in the file system.
    pub(super) block: u64,
    pub(super) count: u64,
}

/// Runs so far; consecutive ones are joined.
#[derive(Default)]
struct Runs(Vec<Run>);

impl Runs {
    /// Adds a run; `None` if it does not lie behind the last one, or there are too many.
    fn add(&mut self, run: Run) -> Option<()> {
        if let Some(last) = self.0.last_mut() {
            let end = last.first + last.count;
            if run.first < end {
                return None;
            }
            if run.first == end && last.block + last.count == run.block {
                last.count += run.count;
                return Some(());
            }
        }
        if self.0.len() == REGIONS_MAX {
            return None;
        }
        self.0.push(run);
        Some(())
    }
}

impl<R: ReadAt + ?Sized> FileSystem<'_, R> {
    /// Returns the runs of a file's data, in file order; up to the damage in a damaged map. `None`
    /// when the file system has asked for too much work, or cannot be read.
    pub(super) fn runs(&mut self, inode: &Inode) -> Option<Vec<Run>> {
        let mut runs = Runs::default();
        if inode.is_inline() || inode.size == 0 {
            return Some(runs.0);
        }
        let walked = if inode.has_extents() {
            self.tree(&inode.map, DEPTH_MAX, &mut runs)
        } else {
            self.block_map(inode, &mut runs)
        };
        if walked.is_none() && self.is_exhausted() { None } else { Some(runs.0) }
    }

    /// Walks a node of a tree of extents, which has at most `depth` levels below it.
    fn tree(&mut self, node: &[u8], depth: u16, runs: &mut Runs) -> Option<()> {
        let (count, levels) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        if u16_at(node, 0) != EXTENT_MAGIC || levels > depth || (count + 1) * ENTRY > node.len() {
            return None;
        }
        for entry in node[ENTRY..(count + 1) * ENTRY].chunks_exact(ENTRY) {
            if levels > 0 {
                let child = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                let child = self.block(child)?;
                self.tree(&child, levels - 1, runs)?;
                continue;
            }
            let len = u16_at(entry, 4);
            if (1..=WRITTEN_MAX).contains(&len) {
                let block = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
                runs.add(Run { first: u64::from(u32_at(entry, 0)), block, count: u64::from(len) })?;
            }
        }
        Some(())
    }

    fn block_map(&mut self, inode: &Inode, runs: &mut Runs) -> Option<()> {
        let blocks = inode.size.div_ceil(self.block_bytes());
        let mut at = 0;
        for direct in 0..DIRECT.min(blocks) {
            Self::add_block(at, u32_at(&inode.map, 4 * direct as usize), runs)?;
            at += 1;
        }
        for level in 1..=3 {
            let root = u32_at(&inode.map, 4 * (DIRECT as usize + level - 1));
            self.indirect(root, level as u32, &mut at, blocks, runs)?;
        }
        Some(())
    }

    /// Walks a block of block numbers with `level - 1` levels below it. `at` is the number of the
    /// next block in the file.
    fn indirect(
        &mut self,
        number: u32,
        level: u32,
        at: &mut u64,
        blocks: u64,
        runs: &mut Runs,
    ) -> Option<()> {
        if *at >= blocks {
            return Some(());
        }
        let per_block_bits = self.block_bits - 2;
        if number == 0 {
            *at = at.saturating_add(1 << (per_block_bits * level));
            return Some(());
        }
        let block = self.block(u64::from(number))?;
        for raw in block.chunks_exact(4) {
            let number = u32_at(raw, 0);
            if *at >= blocks {
                break;
            }
            if level > 1 {
                self.indirect(number, level - 1, at, blocks, runs)?;
            } else {
                Self::add_block(*at, number, runs)?;
                *at += 1;
            }
        }
        Some(())
    }

    fn add_block(first: u64, number: u32, runs: &mut Runs) -> Option<()> {
        // 0 is a hole.
        if number == 0 { Some(()) } else { runs.add(Run { first, block: u64::from(number), count: 1 }) }
    }
}
