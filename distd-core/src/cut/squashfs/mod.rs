//! Reader for SquashFS 4.0 images: the packed blocks of their files, of the ends of files that
//! share blocks (fragments), and of their tables. On-disk format: Linux `fs/squashfs/squashfs_fs.h`
//! and <https://docs.kernel.org/filesystems/squashfs.html>.
//!
//! The tables are unpacked while the image is cut: the places of all files are in them. Exact
//! rules: docs/formats.md, "Cutting".

mod inode;
mod superblock;
mod table;
mod unpack;

use std::collections::BTreeSet;
use std::ops::Range;

use self::inode::Inode;
use self::superblock::Superblock;
use self::table::Tables;
use super::bytes::{u32_at, u64_at};
use super::found::Found;
use super::{ReadAt, RegionKind, Regions};
use crate::bounds::{ARTIFACT_BYTES_MAX, PATH_BYTES_MAX};

pub(crate) use inode::{BlockLen, Tail};
pub(crate) use superblock::{BLOCK_BITS, Packing};
pub(crate) use table::{HEADER_BYTES, TABLE_BLOCK_BYTES, header, header_of};
pub(crate) use unpack::Unpacker;

/// Deepest directory read.
const DEPTH_MAX: usize = 512;

/// Bytes that may be read and unpacked, for each byte of the image and in addition. Tables unpack
/// to less than the image in any image with data.
const WORK_PER_BYTE: u64 = 4;
const WORK_FLOOR: u64 = 64 << 20;
const WORK_CEILING: u64 = 16 << 30;

/// Memory that a pending directory takes beside its name, bytes.
const HELD_BYTES: u64 = 64;

/// Most blocks of fragments: with blocks of the usual 128 KiB, they hold 128 GiB.
const FRAGMENTS_MAX: u32 = 1 << 20;

/// Bytes of an entry in the table of fragments.
const FRAGMENT_BYTES: u64 = 16;

/// Shortest end of a file, and shortest table, that is a region of its own, bytes. Sending shorter
/// data again costs about as much as an entry in the manifest.
const REGION_MIN: u64 = 256;

/// Returns whether `artifact` begins as an image does.
pub(super) fn is_image<R: ReadAt + ?Sized>(artifact: &R) -> bool {
    let mut magic = [0; superblock::MAGIC.len()];
    artifact.read_exact_at(&mut magic, 0).is_ok() && magic == *superblock::MAGIC
}

/// Returns the regions of an image; `None` for anything else, and for one that is not sound.
pub(super) fn regions<R: ReadAt + ?Sized>(volume: &R) -> Option<Regions> {
    let reader = Reader::open(volume)?;
    let mut found = Found::new(volume.len());
    let mut tails: Vec<(Range<u64>, Vec<u8>)> = Vec::new();
    reader.files(|file| {
        let mark = found.mark();
        let len: u64 = file.blocks.iter().map(|block| u64::from(block.bytes())).sum();
        if len > 0 {
            let is_packed = file.blocks.iter().any(|block| block.bytes() > 0 && !block.is_stored());
            let kind = if is_packed { RegionKind::Packed } else { RegionKind::File };
            found.add(file.start, file.start.checked_add(len)?, kind)?;
            found.finish_file(mark, file.path);
        }
        // The ends of files that are not packed lie in the image as they are.
        if let Some((start, len)) = file.tail.and_then(|tail| reader.stored_tail(tail))
            && len >= REGION_MIN
        {
            tails.push((start..start + len, file.path.to_vec()));
        }
        Some(())
    })?;
    let mut add = |range: &Range<u64>, kind: RegionKind, name: &[u8]| {
        let mark = found.mark();
        found.add(range.start, range.end, kind)?;
        found.finish_file(mark, name);
        Some(())
    };
    for (range, name) in &tails {
        add(range, RegionKind::File, name)?;
    }
    for fragment in reader.fragments() {
        if !fragment.len.is_stored() {
            add(&fragment.range(), RegionKind::Packed, &fragment.name())?;
        }
    }
    for (name, range) in reader.tables() {
        if range.end - range.start >= REGION_MIN {
            add(&range, RegionKind::Packed, name)?;
        }
    }
    found.lay_out(reader.superblock.used)
}

/// Regular file of an image.
pub(crate) struct File<'f> {
    /// Path without a leading slash.
    pub(crate) path: &'f [u8],
    /// Offset of the first block in the image.
    pub(crate) start: u64,
    /// Length of the content, bytes.
    pub(crate) size: u64,
    /// Blocks of content, one behind the other; the last may be short.
    pub(crate) blocks: &'f [BlockLen],
    /// End of the content in a block of fragments.
    pub(crate) tail: Option<Tail>,
}

/// Block with the ends of files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    index: u32,
    /// Offset in the image.
    pub(crate) start: u64,
    pub(crate) len: BlockLen,
}

impl Fragment {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Range in the image, bytes.
    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.start + u64::from(self.len.bytes())
    }

    /// Name of the block's region. No path of a file in an image starts with a slash.
    pub(crate) fn name(&self) -> Vec<u8> {
        format!("/fragment-{}", self.index).into_bytes()
    }
}

/// An open image.
pub(crate) struct Reader<'v, R: ReadAt + ?Sized> {
    volume: &'v R,
    tables: Tables<'v, R>,
    superblock: Superblock,
    fragments: Vec<Fragment>,
}

impl<'v, R: ReadAt + ?Sized> Reader<'v, R> {
    /// Opens an image; `None` if it is none, is packed by an algorithm without a decoder, or its
    /// table of fragments is damaged.
    pub(crate) fn open(volume: &'v R) -> Option<Self> {
        if volume.len() > ARTIFACT_BYTES_MAX {
            return None;
        }
        let superblock = Superblock::read(volume)?;
        let work = superblock.used.saturating_mul(WORK_PER_BYTE).saturating_add(WORK_FLOOR);
        let tables = Tables::new(volume, superblock.packing, work.min(WORK_CEILING));
        let mut reader = Self { volume, tables, superblock, fragments: Vec::new() };
        reader.fragments = reader.read_fragments()?;
        Some(reader)
    }

    pub(crate) fn packing(&self) -> Packing {
        self.superblock.packing
    }

    /// Length of a block of data, bytes.
    pub(crate) fn block_bytes(&self) -> u32 {
        self.superblock.block_bytes
    }

    /// Blocks with the ends of files, by index.
    pub(crate) fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// Calls `each` once with each regular file that is not empty. `None` if the image is not
    /// sound, or when `each` returns `None`.
    pub(crate) fn files(&self, mut each: impl FnMut(File<'_>) -> Option<()>) -> Option<()> {
        let inodes = self.superblock.inode_table..self.superblock.directory_table;
        let directories = self.superblock.directory_table..self.superblock.used;
        let (mut seen_files, mut seen_dirs) = (BTreeSet::new(), BTreeSet::from([self.superblock.root]));
        let mut pending = vec![(Vec::new(), 0, self.superblock.root)];
        let inode = |place| Inode::read(&mut self.tables.at(&inodes, place)?, self.block_bytes());
        while let Some((path, depth, place)) = pending.pop() {
            let Inode::Directory(start, bytes) = inode(place)? else { return None };
            if bytes == 0 {
                continue;
            }
            inode::entries(&mut self.tables.at(&directories, start)?, bytes, |entry| {
                let name: Vec<u8> =
                    if path.is_empty() { entry.name } else { [&path[..], b"/", &entry.name].concat() };
                if name.len() > PATH_BYTES_MAX {
                    return None;
                }
                match inode(entry.inode)? {
                    Inode::Directory(..) => {
                        // A directory has one parent. A second parent would let a small image
                        // unfold into an endless tree.
                        if depth == DEPTH_MAX || !seen_dirs.insert(entry.inode) {
                            return None;
                        }
                        self.tables.spend(name.len() as u64 + HELD_BYTES)?;
                        pending.push((name, depth + 1, entry.inode));
                    }
                    // A hard link is another name of the same file.
                    Inode::File(file) if file.size > 0 && seen_files.insert(entry.inode) => {
                        let end = file.start.checked_add(file.packed_bytes())?;
                        if end > self.volume.len() {
                            return None;
                        }
                        each(File {
                            path: &name,
                            start: file.start,
                            size: file.size,
                            blocks: &file.blocks,
                            tail: file.tail,
                        })?;
                    }
                    Inode::File(_) | Inode::Other => {}
                }
                Some(())
            })?;
        }
        Some(())
    }

    /// Returns name and range of each table that is packed.
    pub(crate) fn tables(&self) -> Vec<(&'static [u8], Range<u64>)> {
        let of = &self.superblock;
        let lists = [
            (&b"/fragments"[..], of.fragment_table, u64::from(of.fragments) * FRAGMENT_BYTES),
            (b"/exports", of.export_table, u64::from(of.inodes) * 8),
            (b"/ids", Some(of.id_table), u64::from(of.ids) * 4),
        ];
        // Each of these tables lies in front of the list of its blocks.
        let listed = lists.into_iter().filter_map(|(name, list, bytes)| {
            let list = list?;
            Some((name, self.first_block(list, bytes)?..list))
        });
        let listed: Vec<(&'static [u8], Range<u64>)> = listed.collect();
        let xattrs = self.xattr_tables();
        let behind = listed.iter().chain(&xattrs).map(|(_, range)| range.start);
        let directories = behind.filter(|start| *start > of.directory_table).min();
        let mut all: Vec<(&'static [u8], Range<u64>)> =
            vec![(b"/inodes", of.inode_table..of.directory_table)];
        all.extend(directories.map(|end| (&b"/directories"[..], of.directory_table..end)));
        all.extend(listed);
        all.extend(xattrs);
        all.retain(|(_, range)| range.start < range.end && range.end <= of.used);
        all.retain(|(_, range)| self.tables.walk(range) == Some(true));
        all
    }

    /// Returns the start of the first block of a table of `bytes` bytes, from the list at `list`.
    fn first_block(&self, list: u64, bytes: u64) -> Option<u64> {
        if bytes == 0 {
            return None;
        }
        let mut raw = [0; 8];
        self.tables.raw(&mut raw, list)?;
        Some(u64::from_le_bytes(raw))
    }

    /// Returns the tables of extended attributes: their values, and their places.
    fn xattr_tables(&self) -> Vec<(&'static [u8], Range<u64>)> {
        let tables = || {
            let list = self.superblock.xattr_table?;
            let mut raw = [0; 16];
            self.tables.raw(&mut raw, list)?;
            let ids = self.first_block(list.checked_add(16)?, u64::from(u32_at(&raw, 8)))?;
            let values: (&'static [u8], _) = (b"/xattrs", u64_at(&raw, 0)..ids);
            Some(vec![values, (b"/xattr-ids", ids..list)])
        };
        tables().unwrap_or_default()
    }

    fn read_fragments(&self) -> Option<Vec<Fragment>> {
        let (count, Some(list)) = (self.superblock.fragments, self.superblock.fragment_table) else {
            return Some(Vec::new());
        };
        if count == 0 {
            return Some(Vec::new());
        }
        if count > FRAGMENTS_MAX {
            return None;
        }
        let start = self.first_block(list, u64::from(count))?;
        let mut cursor = self.tables.at(&(start..list), 0)?;
        let entry = |index: u32| {
            let raw: [u8; FRAGMENT_BYTES as usize] = cursor.take()?;
            let (start, len) = (u64_at(&raw, 0), BlockLen::new(u32_at(&raw, 8))?);
            let is_inside = start.checked_add(u64::from(len.bytes()))? <= self.volume.len();
            is_inside.then_some(Fragment { index, start, len })
        };
        (0..count).map(entry).collect()
    }

    /// Returns place and length of a file's end in the image, if its block is not packed.
    fn stored_tail(&self, tail: Tail) -> Option<(u64, u64)> {
        let fragment = self.fragments.get(tail.fragment as usize)?;
        let end = tail.offset.checked_add(tail.len)?;
        let is_stored = fragment.len.is_stored() && end <= fragment.len.bytes();
        is_stored.then(|| (fragment.start + u64::from(tail.offset), u64::from(tail.len)))
    }
}
