//! Inodes.

use super::FileSystem;
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at};

/// Bytes of an inode that are read: those of the first version, which have all that counts here.
const BYTES: usize = 128;

/// Bytes of the map in an inode.
pub(super) const MAP_BYTES: usize = 60;

const TYPE: u16 = 0xF000;
const FILE: u16 = 0x8000;
const DIRECTORY: u16 = 0x4000;

const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

/// Inode, as far as it says where data lies.
#[derive(Debug)]
pub(super) struct Inode {
    mode: u16,
    flags: u32,
    pub(super) size: u64,
    pub(super) map: [u8; MAP_BYTES],
}

impl Inode {
    pub(super) fn is_file(&self) -> bool {
        self.mode & TYPE == FILE
    }

    pub(super) fn is_dir(&self) -> bool {
        self.mode & TYPE == DIRECTORY
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    /// Returns whether the data lies in the inode and its attributes.
    pub(super) fn is_inline(&self) -> bool {
        self.flags & INLINE != 0
    }
}

impl<R: ReadAt + ?Sized> FileSystem<'_, R> {
    /// Reads an inode; `Some(None)` if there is none with this number, it is not in use, or it
    /// cannot be read. `None` when the file system has asked for too much work.
    pub(super) fn inode(&mut self, number: u32) -> Option<Option<Inode>> {
        let inode = self.used_inode(number);
        if inode.is_none() && self.is_exhausted() { None } else { Some(inode) }
    }

    fn used_inode(&mut self, number: u32) -> Option<Inode> {
        let index = number.checked_sub(1).filter(|index| *index < self.inodes)?;
        let (group, within) =
            (u64::from(index / self.inodes_per_group), u64::from(index % self.inodes_per_group));
        // The superblock is in block 0 or 1; the descriptors follow in the next block.
        let descriptor = self.descriptors * self.block_bytes() + group * self.descriptor_bytes;
        let mut raw = [0; 64];
        let len = self.descriptor_bytes.min(64) as usize;
        self.read(&mut raw[..len], descriptor)?;
        let table = u64::from(u32_at(&raw, 8)) | u64::from(u32_at(&raw, 40)) << 32;
        let offset = table.checked_mul(self.block_bytes())?.checked_add(within * self.inode_bytes)?;
        let mut raw = [0; BYTES];
        self.read(&mut raw, offset)?;
        let mode = u16_at(&raw, 0);
        let is_used = mode != 0 && u16_at(&raw, 26) > 0;
        let mut map = [0; MAP_BYTES];
        map.copy_from_slice(&raw[40..40 + MAP_BYTES]);
        let size = u64::from(u32_at(&raw, 4)) | u64::from(u32_at(&raw, 108)) << 32;
        is_used.then_some(Inode { mode, flags: u32_at(&raw, 32), size, map })
    }
}
