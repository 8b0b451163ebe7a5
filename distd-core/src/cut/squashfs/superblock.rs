//! Superblock of a SquashFS 4.0 image.

use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at, u64_at};

/// Length of the superblock, bytes.
const BYTES: usize = 96;

pub(crate) const MAGIC: &[u8; 4] = b"hsqs";

/// Log2 of the shortest and the longest block of data: 4 KiB and 1 MiB.
pub(crate) const BLOCK_BITS: std::ops::RangeInclusive<u16> = 12..=20;

/// Offset of a table that the image does not have.
const NONE: u64 = u64::MAX;

/// Algorithm by which an image packs its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Packing {
    /// zlib streams.
    Gzip,
    /// xz files of one block.
    Xz,
    /// LZ4 blocks.
    Lz4,
    /// zstd frames.
    Zstd,
}

impl Packing {
    /// Returns the algorithm with this number in a superblock; `None` for LZMA and LZO, which have
    /// no decoder here, and for unknown ones.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Gzip,
            4 => Self::Xz,
            5 => Self::Lz4,
            6 => Self::Zstd,
            _ => return None,
        })
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Gzip => 1,
            Self::Xz => 4,
            Self::Lz4 => 5,
            Self::Zstd => 6,
        }
    }
}

/// Fields of a superblock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    pub(super) inodes: u32,
    /// Length of a block of data, bytes.
    pub(super) block_bytes: u32,
    /// Number of blocks with the ends of files.
    pub(super) fragments: u32,
    pub(super) packing: Packing,
    /// Number of different owners and groups.
    pub(super) ids: u16,
    /// Place of the root directory's inode.
    pub(super) root: u64,
    /// Length of the image, bytes. What lies behind it is padding.
    pub(super) used: u64,
    pub(super) id_table: u64,
    pub(super) xattr_table: Option<u64>,
    pub(super) inode_table: u64,
    pub(super) directory_table: u64,
    pub(super) fragment_table: Option<u64>,
    pub(super) export_table: Option<u64>,
}

impl Superblock {
    /// Reads the superblock of an image; `None` for anything else, and for an algorithm without a
    /// decoder.
    pub(super) fn read<R: ReadAt + ?Sized>(volume: &R) -> Option<Self> {
        let mut raw = [0; BYTES];
        volume.read_exact_at(&mut raw, 0).ok()?;
        if !raw.starts_with(MAGIC) || u16_at(&raw, 28) != 4 || u16_at(&raw, 30) != 0 {
            return None;
        }
        let (block_bytes, bits) = (u32_at(&raw, 12), u16_at(&raw, 22));
        let used = u64_at(&raw, 40);
        let sound = BLOCK_BITS.contains(&bits)
            && block_bytes == 1 << bits
            && (BYTES as u64..=volume.len()).contains(&used);
        let table = |at| Some(u64_at(&raw, at)).filter(|start| *start != NONE);
        let found = Self {
            inodes: u32_at(&raw, 4),
            block_bytes,
            fragments: u32_at(&raw, 16),
            packing: Packing::from_number(u16_at(&raw, 20))?,
            ids: u16_at(&raw, 26),
            root: u64_at(&raw, 32),
            used,
            id_table: u64_at(&raw, 48),
            xattr_table: table(56),
            inode_table: u64_at(&raw, 64),
            directory_table: u64_at(&raw, 72),
            fragment_table: table(80),
            export_table: table(88),
        };
        let in_order = found.inode_table < found.directory_table && found.directory_table < used;
        (sound && in_order).then_some(found)
    }
}
