//! Named entries of an image (files, directories, links, devices) with the attributes in their
//! inodes.

use std::ops::{ControlFlow, Range};

use erofs_rs::types::{Inode, InodeCompact, InodeExtended, Layout, SUPER_BLOCK_OFFSET};

use super::{NID_METABOX, Reader, ready};
use crate::cut::ReadAt;
use crate::cut::bytes::u16_at;

/// Attributes of a file in its inode, without times and addresses. Two releases of an unchanged
/// file have equal attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Type and permissions, as in `st_mode`.
    pub mode: u16,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Number of hard links.
    pub links: u32,
    /// Bytes of content; for a directory, of its table.
    pub size: u64,
    /// Bytes of extended attributes.
    pub xattr_bytes: u32,
}

/// Place of an inode in the image. Its methods return byte ranges of the artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawInode {
    start: u64,
    extended: bool,
    flat: bool,
}

/// File, directory, link or device, under one of its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageEntry<'p> {
    /// Path as raw bytes without a leading slash; empty for the root.
    pub path: &'p [u8],
    /// Modification time: seconds since 1970 and nanoseconds.
    pub modified: (i64, u32),
    /// Attributes of the inode other than the time.
    pub attributes: Attributes,
    /// Place of the inode; `None` for an inode in the metabox, which is itself a file.
    pub raw: Option<RawInode>,
}

impl RawInode {
    /// Range of the modification time.
    pub fn times(&self) -> Range<u64> {
        if self.extended { self.start + 32..self.start + 44 } else { self.start + 12..self.start + 16 }
    }

    /// Range of the data's address, if the inode has one, and of the inode's number. Both change in
    /// every inode behind a file that grew or is new.
    pub fn address(&self) -> Range<u64> {
        self.start + if self.flat { 16 } else { 20 }..self.start + 24
    }
}

/// Ranges of the superblock's times, and of the checksum over them.
pub const SUPERBLOCK_TIMES: [Range<u64>; 3] = [within(4, 8), within(24, 36), within(108, 112)];

/// Range of the superblock's UUID and volume name.
pub const SUPERBLOCK_IDENTITY: [Range<u64>; 1] = [within(48, 80)];

const fn within(from: u64, to: u64) -> Range<u64> {
    SUPER_BLOCK_OFFSET + from..SUPER_BLOCK_OFFSET + to
}

impl<R: ReadAt + ?Sized> Reader<'_, R> {
    /// Calls `visit` with every named entry: the root first, then the others in directory order. A
    /// file with several names is visited once per name.
    ///
    /// `None` if the image is not sound; [`regions`](crate::cut::regions) then returns one plain
    /// region.
    pub fn entries(&self, mut visit: impl FnMut(ImageEntry<'_>) -> ControlFlow<()>) -> Option<()> {
        self.image.refill();
        let root = ready(self.fs.get_inode(self.fs.super_block().root_inode_id()))?.ok()?;
        if visit(self.entry(b"", &root)?).is_break() {
            return Some(());
        }
        self.walk_all(|path, inode| Some(visit(self.entry(path, &inode)?))).map(drop)
    }

    fn entry<'p>(&self, path: &'p [u8], inode: &Inode) -> Option<ImageEntry<'p>> {
        let raw = if inode.id() & NID_METABOX != 0 { None } else { Some(self.raw_inode(inode)?) };
        let attributes = Attributes {
            mode: raw.map_or(0, |(_, mode)| mode),
            uid: inode.uid(),
            gid: inode.gid(),
            links: inode.nlink(),
            size: inode.data_size(),
            xattr_bytes: inode.xattr_size() as u32,
        };
        Some(ImageEntry { path, modified: inode.modified_unix(), attributes, raw: raw.map(|(raw, _)| raw) })
    }

    fn raw_inode(&self, inode: &Inode) -> Option<(RawInode, u16)> {
        let (raw, behind) = self.behind_inode(inode)?;
        let extended = raw[0] & 1 != 0;
        let size = if extended { InodeExtended::size() } else { InodeCompact::size() };
        let start = behind.checked_sub((size + inode.xattr_size()) as u64)?;
        let flat = matches!(inode.layout(), Some(Layout::FlatPlain | Layout::FlatInline));
        Some((RawInode { start, extended, flat }, u16_at(&raw, 4)))
    }
}
