//! Everything an image has a name for, with what its inode says beside where the data is.

use std::ops::{ControlFlow, Range};

use erofs_rs::types::{Inode, InodeCompact, InodeExtended, Layout, SUPER_BLOCK_OFFSET};

use super::image::u16_at;
use super::{NID_METABOX, Reader, ready};
use crate::cut::ReadAt;

/// What an inode says about its file, without times and places. Two releases of a file nobody touched agree
/// in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Type and permissions, as in `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub links: u32,
    /// Bytes of content, of a directory those of its table.
    pub size: u64,
    /// Bytes of extended attributes.
    pub xattr_bytes: u32,
}

/// Where an inode lies in the image. The ranges are of the artifact, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawInode {
    start: u64,
    extended: bool,
    flat: bool,
}

/// A file, directory, link or device by one of its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageEntry<'p> {
    /// Raw bytes without a leading slash; empty for the root.
    pub path: &'p [u8],
    /// Modification time: seconds since 1970 and nanoseconds.
    pub modified: (i64, u32),
    /// The rest of what the inode says.
    pub attributes: Attributes,
    /// `None` when it is in the metabox, which is a file itself.
    pub raw: Option<RawInode>,
}

impl RawInode {
    /// Where the modification time is.
    pub fn times(&self) -> Range<u64> {
        if self.extended { self.start + 32..self.start + 44 } else { self.start + 12..self.start + 16 }
    }

    /// Where the address of the data is, if it is one, and the inode's number: what changes in every inode
    /// behind a file that grew or is new.
    pub fn address(&self) -> Range<u64> {
        self.start + if self.flat { 16 } else { 20 }..self.start + 24
    }
}

/// Where the superblock has times, and the checksum over them.
pub const SUPERBLOCK_TIMES: [Range<u64>; 3] = [within(4, 8), within(24, 36), within(108, 112)];

/// Where the superblock has the UUID and the volume's name.
pub const SUPERBLOCK_IDENTITY: [Range<u64>; 1] = [within(48, 80)];

const fn within(from: u64, to: u64) -> Range<u64> {
    SUPER_BLOCK_OFFSET + from..SUPER_BLOCK_OFFSET + to
}

impl<R: ReadAt + ?Sized> Reader<'_, R> {
    /// Hands out everything that has a name, the root first, then in directory order; a file with several
    /// names once for each.
    ///
    /// `None` if the image is not sound, where [`regions`](crate::cut::regions) gives one plain region.
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
