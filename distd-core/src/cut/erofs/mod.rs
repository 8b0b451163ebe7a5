//! Reader for EROFS images: finds regions and reads the extent maps of compressed files.
//!
//! `erofs-rs` reads the superblock, inodes and directories. The extent maps are read here, because
//! `erofs-rs` does not expose them. On-disk format: Linux `fs/erofs/erofs_fs.h`; exact rules:
//! docs/formats.md, "Cutting".
//!
//! [`regions`](super::regions) returns the borders. To look into a compressed file, open a
//! [`Reader`] and iterate over the file's [`Extent`]s:
//!
//! ```
//! use std::ops::ControlFlow;
//! use distd_core::cut::erofs::{ExtentData, Reader};
//!
//! # fn packed_bytes(artifact: &[u8]) -> Option<u64> {
//! let reader = Reader::open(artifact)?;
//! let mut bytes = 0;
//! reader.packed_files(|file| {
//!     let Ok(extents) = file.extents() else { return ControlFlow::Continue(()) };
//!     for extent in extents.map_while(Result::ok) {
//!         if let ExtentData::Cluster { len, .. } = extent.data {
//!             bytes += len;
//!         }
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! # Some(bytes)
//! # }
//! # assert_eq!(packed_bytes(&[0; 5000]), None);
//! ```

mod codec;
mod decode;
mod entries;
mod flat;
mod header;
mod image;
mod index;
mod map;

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use erofs_rs::r#async::EroFS;
use erofs_rs::types::{
    Inode, InodeCompact, InodeExtended, Layout, MAGIC_NUMBER, SUPER_BLOCK_OFFSET, SuperBlock,
};

use self::image::{Image, Shared};
use super::found::Found;
use super::gzip::Budget;
use super::{ReadAt, RegionKind, Regions, path_in_partition, pe};
use crate::bounds::ARTIFACT_BYTES_MAX;

pub use codec::{Codecs, Coding};
pub(crate) use decode::Decoder;
pub use entries::{Attributes, ImageEntry, RawInode, SUPERBLOCK_IDENTITY, SUPERBLOCK_TIMES};
pub use map::{CLUSTER_BYTES_MAX, EXTENT_BYTES_MAX, Extent, ExtentData, Extents, MapError, PackedFile};

/// Name hint of the packed inode, a file without a name that holds the ends of other files. No path
/// of a file in an image starts with a slash.
pub const PACKED_INODE_NAME: &[u8] = b"/packed-inode";

/// Returns whether a name is that of the packed inode of an image, in a partition or not.
pub(crate) fn is_packed_inode(name: &[u8]) -> bool {
    path_in_partition(name).unwrap_or(name) == PACKED_INODE_NAME
}

/// Largest block size accepted, as a power of two: Linux mounts no image with blocks above its page
/// size, which is at most 64 KiB.
const BLOCK_BITS_MAX: u8 = 16;

/// Deepest directory accepted. The walk holds one block per level; with [`BLOCK_BITS_MAX`] that is
/// 32 MiB.
const DEPTH_MAX: usize = 512;

/// Shortest inline tail that is a region of its own, bytes.
///
/// Inodes hold block addresses, so nearly all of them change when one file grows, and a tail cut
/// together with inodes is sent again each time. The cost of adding a 100 kB file to an 800 MB
/// Debian tree, in new chunks at zstd level 9, is 14.6 MB without borders around tails. With
/// borders it is 2.9 MB for tails from 1024 bytes on, 1.6 MB from 512, 1.3 MB from 256 and 1.2 MB
/// from 128; the last step saves about as much as its entries cost in the manifest. Inline clusters
/// of the same tree packed with lz4 behave alike: 21.7 MB without any borders, then 2.1, 1.2, 0.87,
/// 0.78.
const TAIL_MIN: u64 = 256;

/// Bit set in the numbers of inodes that live in the metabox. The metabox is itself a file, so a
/// table behind such an inode has no known offset in the artifact.
const NID_METABOX: u64 = 1 << 63;

const FEATURE_FRAGMENTS: u32 = 0x20;
const FEATURE_48BIT: u32 = 0x80;

/// Returns the regions of `artifact` if it is a sound EROFS image, `None` for anything else.
pub(super) fn regions<R: ReadAt + ?Sized>(artifact: &R, budget: &mut Budget) -> Option<Regions> {
    Reader::open(artifact)?.regions(artifact, budget)
}

/// Returns whether `artifact` has the magic number of an EROFS image.
pub(super) fn is_image<R: ReadAt + ?Sized>(artifact: &R) -> bool {
    let mut magic = [0; 4];
    artifact.read_exact_at(&mut magic, SUPER_BLOCK_OFFSET).is_ok()
        && u32::from_le_bytes(magic) == MAGIC_NUMBER
}

/// Layout of the image according to its superblock.
struct Geometry {
    len: u64,
    block_bits: u8,
    meta_start: u64,
    wide: bool,
    /// Bytes that the file system covers according to the superblock, at most `len`.
    used: u64,
    features: u32,
}

/// An open EROFS image.
///
/// Reads metadata only, through a cache of 4 MiB. The bytes it may read are bounded by a small
/// multiple of the artifact's length; each [`packed_files`](Self::packed_files) and each
/// [`packed_file`](Self::packed_file) starts with the full allowance.
pub struct Reader<'a, R: ReadAt + ?Sized> {
    image: Arc<Image<'a, R>>,
    fs: EroFS<Shared<'a, R>>,
    geometry: Geometry,
}

impl<'a, R: ReadAt + ?Sized> Reader<'a, R> {
    /// Opens `artifact`; `None` if it is not an EROFS image, needs other devices, or has unknown
    /// features.
    pub fn open(artifact: &'a R) -> Option<Self> {
        let len = artifact.len();
        let lens = SUPER_BLOCK_OFFSET + SuperBlock::size() as u64..=ARTIFACT_BYTES_MAX;
        if !lens.contains(&len) || !is_image(artifact) {
            return None;
        }
        let image = Arc::new(Image::new(artifact));
        let fs = ready(EroFS::new(Shared(Arc::clone(&image))))?.ok()?;
        let superblock = fs.super_block();
        let block_bits = superblock.blk_size_bits;
        if block_bits > BLOCK_BITS_MAX {
            return None;
        }
        let geometry = Geometry {
            len,
            block_bits,
            meta_start: u64::from(superblock.meta_blk_addr) << block_bits,
            wide: superblock.feature_incompat & FEATURE_48BIT != 0,
            used: superblock.block_count().checked_mul(1 << block_bits)?.min(len),
            features: superblock.feature_incompat,
        };
        Some(Self { image, fs, geometry })
    }

    /// Size of a block in bytes.
    pub fn block_bytes(&self) -> u64 {
        1 << self.geometry.block_bits
    }

    /// Parameters of the compression algorithms in use; `None` if their records do not parse.
    pub fn codecs(&self) -> Option<Codecs> {
        codec::codecs(&self.image, self.fs.super_block())
    }

    /// Inode number of the packed inode, if there is one.
    pub fn packed_nid(&self) -> Option<u64> {
        let superblock = self.fs.super_block();
        let fragments = superblock.feature_incompat & FEATURE_FRAGMENTS != 0;
        (fragments && superblock.packed_nid != 0).then_some(superblock.packed_nid)
    }

    /// Calls `visit` with each compressed file once, in directory order, and with the packed inode
    /// last. Memory grows with the number of files, not with their sizes.
    ///
    /// `None` if the image is not sound; [`regions`](super::regions) then returns one plain region.
    pub fn packed_files(
        &self,
        mut visit: impl FnMut(PackedFile<'_, 'a, R>) -> ControlFlow<()>,
    ) -> Option<()> {
        self.image.refill();
        self.walk(|path, inode| {
            let flow = PackedFile::new(self, inode, path).map(&mut visit);
            Some(flow.unwrap_or(ControlFlow::Continue(())))
        })
    }

    /// Calls `visit` with the path of each uncompressed file whose last bytes are in no region of
    /// it, because they are few and lie behind the inode, and with the range of these bytes.
    ///
    /// `None` if the image is not sound.
    pub(crate) fn short_tails(&self, mut visit: impl FnMut(&[u8], Range<u64>)) -> Option<()> {
        self.image.refill();
        self.walk(|path, inode| {
            if inode.is_file()
                && let Some(tail) = self.short_tail(&inode)
            {
                visit(path, tail);
            }
            Some(ControlFlow::Continue(()))
        })
    }

    /// Returns the compressed file with this inode number; `None` if there is no such file.
    pub fn packed_file(&self, nid: u64) -> Option<PackedFile<'_, 'a, R>> {
        self.image.refill();
        let inode = ready(self.fs.get_inode(nid))?.ok()?;
        PackedFile::new(self, inode, b"")
    }

    fn regions(&self, artifact: &'a R, budget: &mut Budget) -> Option<Regions> {
        let mut found = Found::new(self.geometry.len);
        let mut kernels = pe::KernelImages::new(self.geometry.len);
        self.walk(|path, inode| {
            let mark = found.mark();
            let mut is_named = false;
            match inode.layout()? {
                Layout::CompressedFull | Layout::CompressedCompact => {
                    match self.packed_runs(inode, &mut found) {
                        Ok(()) => {}
                        Err(MapError::Unreadable) => return None,
                        Err(MapError::Unsupported(_) | MapError::Damaged(_)) => found.forget(mark),
                    }
                }
                layout => {
                    self.flat_runs(&inode, layout, &mut found)?;
                    is_named = kernels.split(artifact, path, inode.data_size(), mark, &mut found, budget)?;
                }
            }
            if !is_named {
                found.finish_file(mark, path);
            }
            Some(ControlFlow::Continue(()))
        })?;
        found.lay_out(self.geometry.used)
    }

    /// Adds the physical clusters of one file. Consecutive clusters become one run.
    fn packed_runs(&self, inode: Inode, found: &mut Found) -> Result<(), MapError> {
        let Some(file) = PackedFile::new(self, inode, b"") else { return Ok(()) };
        let mut run: Option<(u64, u64)> = None;
        let mut add = |start, end| found.add(start, end, RegionKind::Packed).ok_or(MapError::Unreadable);
        for extent in file.extents()? {
            match extent?.data {
                ExtentData::Fragment { .. } => {}
                ExtentData::Cluster { start, len, inline: true, .. } => {
                    if len >= TAIL_MIN {
                        add(start, start + len)?;
                    }
                }
                ExtentData::Cluster { start, len, .. } => match &mut run {
                    Some((_, end)) if *end == start => *end = start + len,
                    _ => {
                        if let Some((start, end)) = run.replace((start, start + len)) {
                            add(start, end)?;
                        }
                    }
                },
            }
        }
        run.map_or(Ok(()), |(start, end)| add(start, end))
    }

    /// Calls `each` once with every regular file that is not empty, and at the end with the packed
    /// inode. `None` if the image is not sound, or when `each` returns `None`.
    fn walk(&self, mut each: impl FnMut(&[u8], Inode) -> Option<ControlFlow<()>>) -> Option<()> {
        let mut seen_files = BTreeSet::new();
        let flow = self.walk_all(|path, inode| {
            // A hard link is another name of the same file, with the same extents.
            if !inode.is_file() || inode.data_size() == 0 || !seen_files.insert(inode.id()) {
                return Some(ControlFlow::Continue(()));
            }
            each(path, inode)
        })?;
        if flow.is_break() {
            return Some(());
        }
        if let Some(nid) = self.packed_nid().filter(|nid| !seen_files.contains(nid)) {
            let inode = ready(self.fs.get_inode(nid))?.ok()?;
            if inode.is_file() && inode.data_size() > 0 {
                // The walk ends here, whatever `each` returns.
                let _ = each(PACKED_INODE_NAME, inode)?;
            }
        }
        Some(())
    }

    /// Calls `each` with everything below the root, once per name. `None` under the conditions of
    /// [`walk`](Self::walk).
    fn walk_all(
        &self,
        mut each: impl FnMut(&[u8], Inode) -> Option<ControlFlow<()>>,
    ) -> Option<ControlFlow<()>> {
        let mut seen_dirs = BTreeSet::from([self.fs.super_block().root_inode_id()]);
        let mut entries = ready(self.fs.walk_dir("/"))?.ok()?;
        while let Some(entry) = ready(entries.next_entry())? {
            let entry = entry.ok()?;
            let inode = entry.inode;
            if entry.depth > DEPTH_MAX {
                return None;
            }
            // A directory has one parent. A second parent would let a small image unfold into an
            // endless tree.
            if inode.is_dir() && !seen_dirs.insert(inode.id()) {
                return None;
            }
            let path = entry.dir_entry.path();
            let path = path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes());
            if each(path, inode)?.is_break() {
                return Some(ControlFlow::Break(()));
            }
        }
        Some(ControlFlow::Continue(()))
    }

    /// Returns the first bytes of the raw inode, and the offset behind the inode and its
    /// attributes, where an inline tail, a chunk table or an index starts.
    fn behind_inode(&self, inode: &Inode) -> Option<([u8; InodeCompact::size()], u64)> {
        let start =
            inode.id().checked_mul(InodeCompact::size() as u64)?.checked_add(self.geometry.meta_start)?;
        let mut raw = [0; InodeCompact::size()];
        self.image.read(&mut raw, start)?;
        let size = if raw[0] & 1 == 0 { InodeCompact::size() } else { InodeExtended::size() };
        Some((raw, start.checked_add((size + inode.xattr_size()) as u64)?))
    }
}

/// Returns the result of a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
