//! Reader for ext2, ext3 and ext4 file systems: the data of their files. On-disk format:
//! <https://docs.kernel.org/filesystems/ext4/>.
//!
//! A file system that was in use may have a journal with blocks that are newer than those in their
//! places. Regions follow the blocks in their places: a wrong border costs a good cut and no more.

mod dir;
mod extents;
mod inode;

use std::collections::BTreeSet;

use self::inode::Inode;
use super::bytes::{u16_at, u32_at};
use super::found::Found;
use super::gzip::Budget;
use super::pe::KernelImages;
use super::{ReadAt, RegionKind, Regions};
use crate::bounds::{ARTIFACT_BYTES_MAX, PATH_BYTES_MAX};

/// Offset and length of the superblock, bytes.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;

const MAGIC: u16 = 0xEF53;

/// Inode numbers with a meaning.
const ROOT: u32 = 2;
const JOURNAL: u32 = 8;

/// Name hint of the journal. No path of a file in a file system starts with a slash.
const JOURNAL_NAME: &[u8] = b"/journal";

/// Incompatible features that are known: file types in directories, a journal to be replayed, block
/// groups with their descriptors inside, extents, 64-bit block numbers, multi-mount protection,
/// flexible groups, values of attributes in inodes, a checksum seed, large directories, inline
/// data, encryption, case folding.
const KNOWN: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const META_GROUPS: u32 = 0x10;
const WIDE: u32 = 0x80;

/// Largest block, as a power of two: 64 KiB.
const BLOCK_BITS_MAX: u32 = 16;

/// Deepest directory read.
const DEPTH_MAX: usize = 512;

/// Bytes of directories, extent blocks and inodes that may be read, for each byte of the file
/// system and in addition. A sound one needs less than one for each byte.
const WORK_PER_BYTE: u64 = 2;
const WORK_FLOOR: u64 = 16 << 20;
const WORK_CEILING: u64 = 4 << 30;

/// Memory that an entry or a pending directory takes beside its name, bytes.
const HELD_BYTES: u64 = 64;

/// Shortest file that is a region of its own, bytes. Sending shorter data again costs about as much
/// as an entry in the manifest.
const FILE_MIN: u64 = 256;

/// Returns the regions of an ext file system; `None` for anything else.
pub(super) fn regions<R: ReadAt + ?Sized>(volume: &R, budget: &mut Budget) -> Option<Regions> {
    let mut fs = FileSystem::open(volume)?;
    let mut found = Found::new(volume.len());
    let mut kernels = KernelImages::new(volume.len());
    let mut seen_files = BTreeSet::from([JOURNAL]);
    let mut seen_dirs = BTreeSet::from([ROOT]);
    let mut pending = vec![(Vec::new(), 0, ROOT)];
    if let Some(journal) = fs.inode(JOURNAL)? {
        let mark = found.mark();
        fs.add_runs(&journal, &mut found)?;
        found.finish_file(mark, JOURNAL_NAME);
    }
    while let Some((path, depth, number)) = pending.pop() {
        let Some(directory) = fs.inode(number)?.filter(Inode::is_dir) else { continue };
        for entry in fs.entries(&directory)? {
            let name: Vec<u8> =
                if path.is_empty() { entry.name } else { [&path[..], b"/", &entry.name].concat() };
            let Some(inode) = fs.inode(entry.inode)? else { continue };
            if inode.is_dir() {
                // A directory has one parent.
                if depth < DEPTH_MAX && name.len() <= PATH_BYTES_MAX && seen_dirs.insert(entry.inode) {
                    fs.hold(name.len())?;
                    pending.push((name, depth + 1, entry.inode));
                }
            } else if inode.is_file() && inode.size >= FILE_MIN && seen_files.insert(entry.inode) {
                let mark = found.mark();
                fs.add_runs(&inode, &mut found)?;
                if !kernels.split(volume, &name, inode.size, mark, &mut found, budget)? {
                    found.finish_file(mark, &name);
                }
            }
        }
    }
    found.lay_out(fs.used)
}

/// An open file system.
struct FileSystem<'v, R: ReadAt + ?Sized> {
    volume: &'v R,
    block_bits: u32,
    /// Bytes that the file system covers.
    used: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: u64,
    /// Bytes of a group's descriptor, and the first block of descriptors.
    descriptor_bytes: u64,
    descriptors: u64,
    /// Bytes that may still be read.
    work: u64,
}

impl<'v, R: ReadAt + ?Sized> FileSystem<'v, R> {
    fn open(volume: &'v R) -> Option<Self> {
        let mut raw = [0; SUPERBLOCK_BYTES];
        if volume.len() > ARTIFACT_BYTES_MAX {
            return None;
        }
        volume.read_exact_at(&mut raw, SUPERBLOCK).ok()?;
        if u16_at(&raw, 56) != MAGIC {
            return None;
        }
        let block_bits = u32_at(&raw, 24).checked_add(10).filter(|bits| *bits <= BLOCK_BITS_MAX)?;
        let features = u32_at(&raw, 96);
        let is_old = u32_at(&raw, 76) == 0;
        let inode_bytes = if is_old { 128 } else { u64::from(u16_at(&raw, 88)) };
        let descriptor_bytes = if features & WIDE != 0 { u64::from(u16_at(&raw, 254)) } else { 32 };
        let high = if features & WIDE != 0 { u64::from(u32_at(&raw, 336)) << 32 } else { 0 };
        let blocks = u64::from(u32_at(&raw, 4)) | high;
        let sound = features & !KNOWN == 0
            // The descriptors of such groups lie apart, which only very large file systems need.
            && features & META_GROUPS == 0
            && (128..=1 << block_bits).contains(&inode_bytes)
            && (32..=1024).contains(&descriptor_bytes)
            && u32_at(&raw, 40) > 0;
        let used = blocks.checked_mul(1 << block_bits).filter(|used| sound && *used <= volume.len())?;
        Some(Self {
            volume,
            block_bits,
            used,
            inodes: u32_at(&raw, 0),
            inodes_per_group: u32_at(&raw, 40),
            inode_bytes,
            descriptor_bytes,
            descriptors: u64::from(u32_at(&raw, 20)) + 1,
            work: used.saturating_mul(WORK_PER_BYTE).saturating_add(WORK_FLOOR).min(WORK_CEILING),
        })
    }

    fn block_bytes(&self) -> u64 {
        1 << self.block_bits
    }

    /// Reads bytes of the file system; `None` outside it, on an error of the source, or when the
    /// file system has asked for too much work.
    fn read(&mut self, buf: &mut [u8], offset: u64) -> Option<()> {
        self.work = self.work.checked_sub(buf.len() as u64)?;
        let end = offset.checked_add(buf.len() as u64)?;
        if end > self.used {
            return None;
        }
        self.volume.read_exact_at(buf, offset).ok()
    }

    /// Counts bytes of memory that are held for a name as work. `None` when that is too much.
    fn hold(&mut self, bytes: usize) -> Option<()> {
        self.work = self.work.checked_sub(bytes as u64 + HELD_BYTES)?;
        Some(())
    }

    /// Returns whether the file system has asked for too much work.
    fn is_exhausted(&self) -> bool {
        self.work < self.block_bytes()
    }

    /// Reads a block; `None` as in [`read`](Self::read).
    fn block(&mut self, number: u64) -> Option<Vec<u8>> {
        let mut block = vec![0; self.block_bytes() as usize];
        self.read(&mut block, number.checked_mul(self.block_bytes())?)?;
        Some(block)
    }

    /// Adds the data of a file, in file order and at its exact length. `None` if there are too many
    /// runs or too much work; a damaged map only ends the file.
    fn add_runs(&mut self, inode: &Inode, found: &mut Found) -> Option<()> {
        let size = inode.size;
        for run in self.runs(inode)? {
            let from = run.first << self.block_bits;
            let len = (run.count << self.block_bits).min(size.saturating_sub(from));
            let start = run.block.checked_mul(self.block_bytes());
            // A map may name any block.
            let start = start.filter(|start| *start <= self.used && len <= self.used - start);
            if let Some(start) = start.filter(|_| len > 0) {
                found.add(start, start + len, RegionKind::File)?;
            }
        }
        Some(())
    }
}
