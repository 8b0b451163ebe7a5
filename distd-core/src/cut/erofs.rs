//! Region reader for EROFS images: where each file's data lies.
//!
//! Superblock, inodes and directories are read by `erofs-rs`; only the extent maps are ours, since it
//! does not expose them. On-disk format: Linux `fs/erofs/erofs_fs.h`.
//!
//! Compressed files (and the packed inode their fragments live in) are not mapped yet: their physical
//! clusters stay in the regions between the files, see [`extents_of`].

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use erofs_rs::r#async::EroFS;
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::{
    Inode, InodeCompact, InodeExtended, LAYOUT_CHUNK_FORMAT_48BIT, LAYOUT_CHUNK_FORMAT_BITS,
    LAYOUT_CHUNK_FORMAT_INDEXES, Layout, MAGIC_NUMBER, SUPER_BLOCK_OFFSET, SuperBlock,
};

use super::region::NAMES_BYTES_MAX;
use super::{ReadAt, RegionKind, Regions};
use crate::limits::{ARTIFACT_BYTES_MAX, PATH_BYTES_MAX, REGIONS_MAX};

/// Largest block size taken, as a power of two: Linux mounts none above its page size, 64 KiB at most.
const BLOCK_BITS_MAX: u8 = 16;

/// Deepest directory taken. The walk holds one block per level; with [`BLOCK_BITS_MAX`] that is 32 MiB.
const DEPTH_MAX: usize = 512;

/// Shortest inline tail that is a region of its own, bytes.
///
/// Inodes hold block addresses, so nearly all of them change when one file grows, and a tail cut together
/// with inodes is sent again each time. Adding a 100 kB file to an 800 MB Debian tree costs, in new chunks
/// at zstd level 9, 14.6 MB without borders around tails, 2.9 MB with them from 1024 bytes on, 1.6 MB from
/// 512, 1.3 MB from 256, 1.2 MB from 128; the last step is about what its entries cost in the manifest.
const TAIL_MIN: u64 = 256;

/// `inode_data`, the data union, lies here in both inode forms.
const INODE_DATA_OFFSET: usize = 16;

/// Inode numbers with this bit live in the metabox, itself a file: their tables have no place of ours.
const NID_METABOX: u64 = 1 << 63;

/// Regions of `artifact` if it is a sound EROFS image, `None` for anything else.
pub(super) fn regions<R: ReadAt + ?Sized>(artifact: &R) -> Option<Regions> {
    let len = artifact.len();
    let mut magic = [0; 4];
    if !(SUPER_BLOCK_OFFSET + SuperBlock::size() as u64..=ARTIFACT_BYTES_MAX).contains(&len) {
        return None;
    }
    artifact.read_exact_at(&mut magic, SUPER_BLOCK_OFFSET).ok()?;
    if u32::from_le_bytes(magic) != MAGIC_NUMBER {
        return None;
    }
    let image = Image::new(artifact);
    let fs = ready(EroFS::new(&image))?.ok()?;
    let superblock = fs.super_block();
    let walk = Walk {
        image: &image,
        len,
        block_bits: superblock.blk_size_bits,
        meta_start: u64::from(superblock.meta_blk_addr) << superblock.blk_size_bits,
        wide: superblock.feature_incompat & 0x80 != 0,
        used: superblock.block_count().checked_mul(1 << superblock.blk_size_bits)?.min(len),
    };
    if walk.block_bits > BLOCK_BITS_MAX {
        return None;
    }
    walk.run(&fs)
}

/// A run of one file's data.
struct Extent {
    start: u64,
    end: u64,
    /// Index of the file in order of discovery.
    file: u32,
}

/// What the walk found.
#[derive(Default)]
struct Found {
    extents: Vec<Extent>,
    names: Vec<u8>,
    /// End of each file's name in `names`.
    name_ends: Vec<u32>,
    /// Whether some data lies where we do not know.
    unmapped: bool,
}

struct Walk<'i, 'a, R: ReadAt + ?Sized> {
    image: &'i Image<'a, R>,
    len: u64,
    block_bits: u8,
    meta_start: u64,
    wide: bool,
    /// Bytes the file system says it covers.
    used: u64,
}

impl<'a, R: ReadAt + ?Sized> Walk<'_, 'a, R> {
    fn run(&self, fs: &EroFS<&Image<'a, R>>) -> Option<Regions> {
        let mut found = Found::default();
        let mut seen_dirs = BTreeSet::from([fs.super_block().root_inode_id()]);
        let mut seen_files = BTreeSet::new();
        let mut entries = ready(fs.walk_dir("/"))?.ok()?;
        while let Some(entry) = ready(entries.next_entry())? {
            let entry = entry.ok()?;
            let inode = entry.inode;
            if entry.depth > DEPTH_MAX {
                return None;
            }
            // A directory has one parent; two would let a small image unfold into an endless tree.
            if inode.is_dir() && !seen_dirs.insert(inode.id()) {
                return None;
            }
            // A hard link shows its file once more, with the same extents.
            if !inode.is_file() || inode.data_size() == 0 || !seen_files.insert(inode.id()) {
                continue;
            }
            let before = found.extents.len();
            self.extents_of(&inode, &mut found)?;
            if found.extents.len() > before {
                let path = entry.dir_entry.path();
                let path = path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes());
                if path.len() <= PATH_BYTES_MAX && found.names.len() + path.len() <= NAMES_BYTES_MAX {
                    found.names.extend_from_slice(path);
                }
                found.name_ends.push(found.names.len() as u32);
            }
        }
        self.lay_out(found)
    }

    /// Adds the extents of one file's data, whole blocks.
    ///
    /// The last part of an inline file lies behind its inode; it is an extent of its own exact length.
    /// `None` if one lies outside the image.
    fn extents_of(&self, inode: &Inode, found: &mut Found) -> Option<()> {
        let size = inode.data_size();
        match inode.layout()? {
            Layout::FlatPlain => match self.start_block(inode)? {
                Some(block) => self.add(block, size, found),
                None => Some(()),
            },
            Layout::FlatInline => {
                let blocks = (size - 1) >> self.block_bits;
                match self.start_block(inode)? {
                    Some(block) if blocks > 0 => self.add(block, blocks << self.block_bits, found)?,
                    _ => {}
                }
                self.add_tail(inode, size - (blocks << self.block_bits), found)
            }
            Layout::ChunkBased => self.chunks_of(inode, found),
            // Each physical cluster run will be a region of its own kind here.
            Layout::CompressedFull | Layout::CompressedCompact => {
                found.unmapped = true;
                Some(())
            }
        }
    }

    /// The first bytes of the raw inode, and the offset behind it and its attributes, where an inline
    /// tail or a chunk table is.
    fn behind_inode(&self, inode: &Inode) -> Option<([u8; InodeCompact::size()], u64)> {
        let start = inode.id().checked_mul(InodeCompact::size() as u64)?.checked_add(self.meta_start)?;
        let mut raw = [0; InodeCompact::size()];
        self.image.read(&mut raw, start)?;
        let size = if raw[0] & 1 == 0 { InodeCompact::size() } else { InodeExtended::size() };
        Some((raw, start.checked_add((size + inode.xattr_size()) as u64)?))
    }

    /// Where a flat file's blocks start; inner `None` for a hole.
    fn start_block(&self, inode: &Inode) -> Option<Option<u64>> {
        if inode.id() & NID_METABOX != 0 {
            // The inode is in a file of its own, which we would have to unpack: the data stays unmapped.
            return Some(None);
        }
        let (raw, _) = self.behind_inode(inode)?;
        let low = u64::from(u32_at(&raw, INODE_DATA_OFFSET));
        // 48-bit addresses: the high bits take the place of the link count in a compact inode of one
        // link (format bit 4), and of nb_blocks_hi in an extended one.
        let compact_wide = raw[0] & 1 == 0 && raw[0] & 0x10 != 0;
        let extended_wide = raw[0] & 1 != 0 && self.wide;
        let wide = compact_wide || extended_wide;
        let block = if wide { low | u64::from(u16_at(&raw, 6)) << 32 } else { low };
        let hole = if wide { (1 << 48) - 1 } else { u64::from(u32::MAX) };
        Some((block != hole).then_some(block))
    }

    /// Notes the inline tail, if it is long enough to be worth its own borders.
    fn add_tail(&self, inode: &Inode, bytes: u64, found: &mut Found) -> Option<()> {
        if inode.id() & NID_METABOX != 0 || bytes < TAIL_MIN {
            return Some(());
        }
        let start = self.behind_inode(inode)?.1;
        self.add_bytes(start, start.checked_add(bytes)?, found)
    }

    /// Extents of a chunk-based file, from the block map or chunk index behind its inode.
    fn chunks_of(&self, inode: &Inode, found: &mut Found) -> Option<()> {
        if inode.id() & NID_METABOX != 0 {
            return Some(());
        }
        let (raw, behind) = self.behind_inode(inode)?;
        let format = u16_at(&raw, INODE_DATA_OFFSET);
        let chunk_bits = u32::from(format & LAYOUT_CHUNK_FORMAT_BITS) + u32::from(self.block_bits);
        let indexed = format & LAYOUT_CHUNK_FORMAT_INDEXES != 0;
        let unit: u64 = if indexed { 8 } else { 4 };
        let mask: u64 = if indexed && format & LAYOUT_CHUNK_FORMAT_48BIT != 0 {
            (1 << 48) - 1
        } else {
            u64::from(u32::MAX)
        };
        let table = behind.checked_next_multiple_of(unit)?;
        let size = inode.data_size();
        let count = ((size - 1) >> chunk_bits) + 1;
        if table.checked_add(count.checked_mul(unit)?)? > self.len {
            return None;
        }
        // Adjacent chunks are one extent, as long as the file is laid out in order.
        let mut run: Option<(u64, u64)> = None;
        let mut page = [0; 4096];
        for index in 0..count {
            let within = (index * unit) as usize % page.len();
            if within == 0 {
                let here = page.len().min(((count - index) * unit) as usize);
                self.image.read(&mut page[..here], table + index * unit)?;
            }
            let record = &page[within..within + unit as usize];
            let block = if indexed {
                // Without a device table, which we do not take, the device id means nothing.
                u64::from(u32_at(record, 4)) | u64::from(u16_at(record, 0)) << 32
            } else {
                u64::from(u32_at(record, 0))
            } & mask;
            let bytes = (size - (index << chunk_bits)).min(1 << chunk_bits);
            run = match run {
                _ if block == mask => {
                    self.add_run(run, found)?;
                    None
                }
                Some((first, len))
                    if len.is_multiple_of(1 << self.block_bits)
                        && first + (len >> self.block_bits) == block =>
                {
                    Some((first, len.checked_add(bytes)?))
                }
                _ => {
                    self.add_run(run, found)?;
                    Some((block, bytes))
                }
            };
        }
        self.add_run(run, found)
    }

    fn add_run(&self, run: Option<(u64, u64)>, found: &mut Found) -> Option<()> {
        run.map_or(Some(()), |(block, bytes)| self.add(block, bytes, found))
    }

    /// Notes `bytes` from `block` on as data of the file being read, up to the end of its last block.
    fn add(&self, block: u64, bytes: u64, found: &mut Found) -> Option<()> {
        let start = block.checked_mul(1 << self.block_bits)?;
        let end = start.checked_add(bytes)?;
        if end > self.len {
            return None;
        }
        // Only the padding may be cut off, when the artifact ends without it.
        self.add_bytes(start, end.next_multiple_of(1 << self.block_bits).min(self.len), found)
    }

    fn add_bytes(&self, start: u64, end: u64, found: &mut Found) -> Option<()> {
        if end > self.len || found.extents.len() == REGIONS_MAX {
            return None;
        }
        found.extents.push(Extent { start, end, file: found.name_ends.len() as u32 });
        Some(())
    }

    /// Sorts the extents and fills the gaps.
    fn lay_out(&self, found: Found) -> Option<Regions> {
        let Found { mut extents, names, name_ends, unmapped } = found;
        // Where files share blocks, the one that starts first keeps them; on a tie, the one found first.
        extents.sort_unstable_by_key(|extent| (extent.start, extent.file, extent.end));
        let mut out = Regions::default();
        let between = if unmapped { RegionKind::Plain } else { RegionKind::Metadata };
        for extent in extents {
            let start = extent.start.max(out.total());
            if start >= extent.end {
                continue;
            }
            self.fill(&mut out, start, between);
            let file = extent.file as usize;
            let from = file.checked_sub(1).map_or(0, |previous| name_ends[previous]) as usize;
            let name = &names[from..name_ends[file] as usize];
            out.push(extent.end - start, RegionKind::File, Some(name));
            if out.all().len() + 3 > REGIONS_MAX {
                return None;
            }
        }
        self.fill(&mut out, self.len, between);
        Some(out)
    }

    /// Covers what lies before `end` and belongs to no file; behind the file system nothing is known.
    fn fill(&self, out: &mut Regions, end: u64, between: RegionKind) {
        out.push(end.min(self.used).saturating_sub(out.total()), between, None);
        out.push(end - out.total(), RegionKind::Plain, None);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Result of a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Bytes of one cache line. Inodes and directories lie scattered between the files in blocks of 4 KiB, so
/// longer lines mostly fetch file data. The walk of an 800 MB image takes 0.03 s from the page cache.
const LINE_BYTES: usize = 16 << 10;

/// Lines kept, 4 MiB in all.
const LINES: usize = 256;

/// Work allowed per byte of image, in bytes copied or read. An 800 MB Debian image needs 0.2, one of tiny
/// files a few; one whose directories or chunk tables point at the same bytes over and over runs out.
const WORK_PER_BYTE: u64 = 16;
/// Work any image may do: small ones with many hard links need more per byte.
const WORK_FLOOR: u64 = 64 << 20;
/// Work no image may do, a guess at half a minute.
const WORK_CEILING: u64 = 64 << 30;
/// What one read costs beside its bytes.
const WORK_PER_READ: u64 = 64;

/// A reader for `erofs-rs` that keeps recent lines and stops when the image asks for too much.
struct Image<'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    len: u64,
    state: Mutex<State>,
}

struct State {
    /// Direct-mapped: line `n` lives in slot `n % LINES`.
    lines: Vec<Option<(u64, Box<[u8]>)>>,
    work_left: u64,
}

impl<'a, R: ReadAt + ?Sized> Image<'a, R> {
    fn new(artifact: &'a R) -> Self {
        let len = artifact.len();
        let work_left = (len.saturating_mul(WORK_PER_BYTE).saturating_add(WORK_FLOOR)).min(WORK_CEILING);
        Self { artifact, len, state: Mutex::new(State { lines: vec![None; LINES], work_left }) }
    }

    /// Fills `buf` from `offset` on; `None` outside the image, on an error of the source, or when the
    /// image has used up its work.
    fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Option<()> {
        if offset.checked_add(buf.len() as u64)? > self.len {
            return None;
        }
        // Nothing panics while it is held, except the source itself; then there is no point going on.
        let state = &mut *self.state.lock().ok()?;
        state.work_left = state.work_left.checked_sub(WORK_PER_READ + buf.len() as u64)?;
        while !buf.is_empty() {
            let number = offset / LINE_BYTES as u64;
            let slot = &mut state.lines[number as usize % LINES];
            let line = match slot {
                Some((held, line)) if *held == number => &*line,
                _ => {
                    state.work_left = state.work_left.checked_sub(LINE_BYTES as u64)?;
                    let start = number * LINE_BYTES as u64;
                    let mut line = vec![0; (self.len - start).min(LINE_BYTES as u64) as usize];
                    self.artifact.read_exact_at(&mut line, start).ok()?;
                    &*slot.insert((number, line.into_boxed_slice())).1
                }
            };
            let within = (offset % LINE_BYTES as u64) as usize;
            let count = buf.len().min(line.len() - within);
            buf[..count].copy_from_slice(&line[within..within + count]);
            buf = &mut buf[count..];
            offset += count as u64;
        }
        Some(())
    }
}

impl<R: ReadAt + ?Sized> AsyncImage for &Image<'_, R> {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        self.read(buf, offset).ok_or_else(|| erofs_rs::Error::OutOfBounds("read refused".into()))
    }
}
