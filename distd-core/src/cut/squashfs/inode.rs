//! Inodes and directories.

use super::table::Cursor;
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at, u64_at};

/// Bytes that all inodes begin with.
const COMMON_BYTES: usize = 16;

/// Types of inodes, each in a short and a long form.
const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const LONG_DIRECTORY: u16 = 8;
const LONG_FILE: u16 = 9;

/// Fragment of a file that has none.
const NO_FRAGMENT: u32 = u32::MAX;

/// Bytes that a directory states beyond its entries: those of `.` and `..`.
const DOTS: u32 = 3;

/// Bytes of the header of a run of entries, and of an entry before its name.
const RUN_BYTES: usize = 12;
const ENTRY_BYTES: usize = 8;

/// Most entries in a run.
const RUN_MAX: u32 = 256;

/// Length of a block as an inode or the table of fragments states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockLen(u32);

impl BlockLen {
    /// Bit of a block that is not packed.
    const STORED: u32 = 1 << 24;

    pub(super) fn new(raw: u32) -> Option<Self> {
        (raw < Self::STORED << 1).then_some(Self(raw))
    }

    /// Returns the length of a packed block of `bytes` bytes, for tests.
    #[cfg(test)]
    pub(crate) fn of_packed(bytes: u32) -> Self {
        Self(bytes & !Self::STORED)
    }

    /// Length in the image, bytes; 0 for a block of zeros that the image does not hold.
    pub(crate) fn bytes(self) -> u32 {
        self.0 & !Self::STORED
    }

    /// Whether the block lies in the image as it is.
    pub(crate) fn is_stored(self) -> bool {
        self.0 & Self::STORED != 0
    }
}

/// End of a file, in a block of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Index of the block.
    pub(crate) fragment: u32,
    /// Offset in the unpacked block.
    pub(crate) offset: u32,
    /// Length in bytes.
    pub(crate) len: u32,
}

/// Regular file.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) blocks: Vec<BlockLen>,
    pub(super) tail: Option<Tail>,
}

/// Inode, as far as data needs it.
pub(super) enum Inode {
    /// Place of the first entry in the table of directories, and the length of all entries.
    Directory(u64, u32),
    /// Regular file.
    File(File),
    /// Anything else.
    Other,
}

impl Inode {
    /// Reads an inode; `None` if it is damaged.
    pub(super) fn read<R: ReadAt + ?Sized>(cursor: &mut Cursor<'_, '_, R>, block_bytes: u32) -> Option<Self> {
        let common: [u8; COMMON_BYTES] = cursor.take()?;
        let directory = |block: u32, offset: u16, size: u32| {
            Self::Directory(u64::from(block) << 16 | u64::from(offset), size.saturating_sub(DOTS))
        };
        Some(match u16_at(&common, 0) {
            DIRECTORY => {
                let raw: [u8; 16] = cursor.take()?;
                directory(u32_at(&raw, 0), u16_at(&raw, 10), u32::from(u16_at(&raw, 8)))
            }
            LONG_DIRECTORY => {
                let raw: [u8; 24] = cursor.take()?;
                directory(u32_at(&raw, 8), u16_at(&raw, 18), u32_at(&raw, 4))
            }
            FILE => {
                let raw: [u8; 16] = cursor.take()?;
                let fragment = (u32_at(&raw, 4), u32_at(&raw, 8));
                let (start, size) = (u64::from(u32_at(&raw, 0)), u64::from(u32_at(&raw, 12)));
                Self::File(File::read(cursor, block_bytes, start, size, fragment)?)
            }
            LONG_FILE => {
                let raw: [u8; 40] = cursor.take()?;
                let fragment = (u32_at(&raw, 28), u32_at(&raw, 32));
                let (start, size) = (u64_at(&raw, 0), u64_at(&raw, 8));
                Self::File(File::read(cursor, block_bytes, start, size, fragment)?)
            }
            _ => Self::Other,
        })
    }
}

impl File {
    fn read<R: ReadAt + ?Sized>(
        cursor: &mut Cursor<'_, '_, R>,
        block_bytes: u32,
        start: u64,
        size: u64,
        (fragment, offset): (u32, u32),
    ) -> Option<Self> {
        let block = u64::from(block_bytes);
        let has_tail = fragment != NO_FRAGMENT;
        let count = if has_tail { size / block } else { size.div_ceil(block) };
        let len = (size % block) as u32;
        let tail = (has_tail && len > 0).then_some(Tail { fragment, offset, len });
        let mut blocks = Vec::new();
        // The table ends before a length that is a lie takes much memory.
        for _ in 0..count {
            blocks.push(BlockLen::new(u32::from_le_bytes(cursor.take()?))?);
        }
        Some(Self { start, size, blocks, tail })
    }

    /// Length of all blocks in the image, bytes.
    pub(super) fn packed_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.bytes())).sum()
    }
}

/// Entry of a directory.
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    /// Place of the inode in the table of inodes.
    pub(super) inode: u64,
}

/// Reads the entries of a directory; `None` if one is damaged.
pub(super) fn entries<R: ReadAt + ?Sized>(
    cursor: &mut Cursor<'_, '_, R>,
    bytes: u32,
    mut each: impl FnMut(Entry) -> Option<()>,
) -> Option<()> {
    let mut left = u64::from(bytes);
    while left > 0 {
        let run: [u8; RUN_BYTES] = cursor.take()?;
        left = left.checked_sub(RUN_BYTES as u64)?;
        let (count, start) = (u32_at(&run, 0).checked_add(1)?, u64::from(u32_at(&run, 4)));
        if count > RUN_MAX {
            return None;
        }
        for _ in 0..count {
            let raw: [u8; ENTRY_BYTES] = cursor.take()?;
            let mut name = vec![0; usize::from(u16_at(&raw, 6)) + 1];
            cursor.read(&mut name)?;
            left = left.checked_sub((ENTRY_BYTES + name.len()) as u64)?;
            each(Entry { name, inode: start << 16 | u64::from(u16_at(&raw, 0)) })?;
        }
    }
    Some(())
}
