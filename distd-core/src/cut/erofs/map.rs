//! Extent maps of compressed files.

use erofs_rs::types::{Inode, Layout};

use super::Reader;
use super::codec::Coding;
use super::header::Header;
use super::index::{Entry, HeadKind, Index};
use crate::cut::ReadAt;

/// Most bytes of one physical cluster, the limit of Linux.
pub const CLUSTER_BYTES_MAX: u64 = 1 << 20;

/// Most bytes that one cluster unpacks to, the limit of Linux.
pub const EXTENT_BYTES_MAX: u64 = 12 << 20;

/// Error for a compressed file whose map cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The image may be valid, but this feature is not known here.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// No valid image contains this.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// The artifact could not be read, or the image asks for more work than any sound image.
    #[error("the image could not be read")]
    Unreadable,
}

/// Run of a compressed file's content that is stored in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte in the file.
    pub start: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Place of the content.
    pub data: ExtentData,
}

/// Place of an [`Extent`]'s content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentData {
    /// In a physical cluster, which other extents may share.
    Cluster {
        /// Offset of the cluster's first byte in the artifact.
        start: u64,
        /// Length of the cluster in bytes, `1..=`[`CLUSTER_BYTES_MAX`]. The cluster lies inside the
        /// artifact.
        len: u64,
        /// Coding that unpacks the cluster.
        coding: Coding,
        /// Whether the cluster unpacks to more than this extent, which is then a prefix of the
        /// result.
        partial: bool,
        /// Whether the cluster lies behind the file's index, at its exact length, instead of in
        /// blocks.
        inline: bool,
    },
    /// In the content of the packed inode. The packed inode may be shorter than the fragment's end.
    Fragment {
        /// Offset of the first byte in the packed inode's content.
        offset: u64,
    },
}

/// A compressed file of an EROFS image.
pub struct PackedFile<'r, 'a, R: ReadAt + ?Sized> {
    reader: &'r Reader<'a, R>,
    inode: Inode,
    path: &'r [u8],
}

impl<'r, 'a, R: ReadAt + ?Sized> PackedFile<'r, 'a, R> {
    /// Wraps an inode; `None` if it is not compressed or is empty.
    pub(super) fn new(reader: &'r Reader<'a, R>, inode: Inode, path: &'r [u8]) -> Option<Self> {
        let compressed = matches!(inode.layout(), Some(Layout::CompressedFull | Layout::CompressedCompact));
        (compressed && inode.is_file() && inode.data_size() > 0).then_some(Self { reader, inode, path })
    }

    /// One of the file's paths, raw bytes without a leading slash;
    /// [`PACKED_INODE_NAME`](super::PACKED_INODE_NAME) for the packed inode; empty when the file
    /// was looked up by number.
    pub fn path(&self) -> &'r [u8] {
        self.path
    }

    /// Inode number of the file, the same for all its hard links.
    pub fn nid(&self) -> u64 {
        self.inode.id()
    }

    /// Length of the content in bytes, never zero.
    pub fn size(&self) -> u64 {
        self.inode.data_size()
    }

    /// Returns the file's extents in order of content.
    ///
    /// # Errors
    /// [`MapError`] if the header of the file's index is not valid. The iterator reports later
    /// errors.
    pub fn extents(&self) -> Result<Extents<'r, 'a, R>, MapError> {
        Extents::new(self.reader, &self.inode)
    }
}

/// Iterator over the extents of one file. The extents follow each other without gap from 0 to the
/// file's size, unless an error ends the iteration. Holds at most a few KiB of the index.
pub struct Extents<'r, 'a, R: ReadAt + ?Sized> {
    reader: &'r Reader<'a, R>,
    size: u64,
    header: Header,
    index: Index,
    /// Number of the next index entry to read.
    next: u64,
    head: Option<Head>,
    /// Part of the index that was read, and `page_start` its offset in the image.
    page: Vec<u8>,
    page_start: u64,
    done: bool,
}

/// Head whose extent has no known end yet.
#[derive(Clone, Copy)]
struct Head {
    number: u64,
    start: u64,
    kind: HeadKind,
    block: u32,
    partial: bool,
    /// Block count in the entry right behind the head, inner `None` without a count. `None` while
    /// that entry is unread, or if it is a head too.
    rest: Option<Option<u16>>,
}

impl<'r, 'a, R: ReadAt + ?Sized> Extents<'r, 'a, R> {
    fn new(reader: &'r Reader<'a, R>, inode: &Inode) -> Result<Self, MapError> {
        let (header, index) = Header::read(reader, inode)?;
        // An index without entries stands for one extent that is the whole content.
        let whole = Head { number: 0, start: 0, kind: HeadKind::Plain, block: 0, partial: false, rest: None };
        Ok(Self {
            reader,
            size: inode.data_size(),
            header,
            index,
            next: 0,
            head: (index.count == 0).then_some(whole),
            page: Vec::new(),
            page_start: 0,
            done: false,
        })
    }

    /// Size of a logical cluster in bytes. The index has one entry per logical cluster.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.index.cluster_bits
    }

    /// Image offset behind the index, where an inline cluster starts.
    fn index_end(&self) -> Result<u64, MapError> {
        let last = self.index.place(self.index.count - 1);
        last.and_then(|place| place.offset.checked_add(place.bytes as u64))
            .filter(|end| *end <= self.reader.geometry.len)
            .ok_or(MapError::Damaged("an index behind the end of the image"))
    }

    fn entry(&mut self, number: u64) -> Result<Entry, MapError> {
        let place =
            self.index.place(number).ok_or(MapError::Damaged("an index behind the end of the image"))?;
        let held = place.offset.checked_sub(self.page_start).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            self.page.get(from..from.checked_add(place.bytes)?)
        });
        if let Some(bytes) = held {
            return self.index.entry(place, bytes);
        }
        // Read up to the next multiple of `PAGE_BYTES`. Packs are aligned to their size, so none of
        // them crosses such a border.
        let end = (place.offset | (PAGE_BYTES - 1)).saturating_add(1).min(self.index_end()?);
        let bytes = usize::try_from(end.saturating_sub(place.offset)).unwrap_or(0);
        self.page.resize(bytes, 0);
        self.page_start = place.offset;
        self.reader.image.charge(bytes as u64 * WORK_PER_INDEX_BYTE).ok_or(MapError::Unreadable)?;
        self.reader.image.read(&mut self.page, place.offset).ok_or(MapError::Unreadable)?;
        match self.page.get(..place.bytes) {
            Some(bytes) => self.index.entry(place, bytes),
            None => Err(MapError::Damaged("an index behind the end of the image")),
        }
    }

    fn step(&mut self) -> Result<Option<Extent>, MapError> {
        while self.next < self.index.count {
            let number = self.next;
            let entry = self.entry(number)?;
            self.next += 1;
            match entry {
                Entry::Rest { blocks } => match &mut self.head {
                    None => return Err(MapError::Damaged("an index that does not start with a head")),
                    Some(head) if head.number + 1 == number => head.rest = Some(blocks),
                    Some(_) => {}
                },
                Entry::Head { kind, within, block, partial } => {
                    let start = (number << self.index.cluster_bits).saturating_add(u64::from(within));
                    if start >= self.size && self.head.is_some() {
                        // This head is in the last logical cluster, but behind the content: its
                        // extent is empty.
                        continue;
                    }
                    let head = Head { number, start, kind, block, partial, rest: None };
                    match self.head.replace(head) {
                        None if start == 0 => {}
                        None => return Err(MapError::Damaged("an index that does not start with a head")),
                        Some(before) => return self.extent(before, start, false).map(Some),
                    }
                }
            }
        }
        self.head.take().map(|head| self.extent(head, self.size, true)).transpose()
    }

    fn extent(&self, head: Head, end: u64, last: bool) -> Result<Extent, MapError> {
        let Head { start, .. } = head;
        let len = end - start;
        if last && let Some(low) = self.header.fragment {
            let high = if self.header.wide_fragment { u64::from(head.block) << 32 } else { 0 };
            let offset = low | high;
            offset.checked_add(len).ok_or(MapError::Damaged("a fragment that ends above 2^64"))?;
            return Ok(Extent { start, len, data: ExtentData::Fragment { offset } });
        }
        let coding = match head.kind {
            HeadKind::Plain => Some(self.header.plain),
            HeadKind::First => self.header.codings[0],
            HeadKind::Second => self.header.codings[1],
        };
        let coding = coding.ok_or(MapError::Damaged("an algorithm the superblock does not list"))?;
        let inline = last && self.header.inline_bytes > 0;
        let (from, bytes) = if inline { self.inline_cluster()? } else { self.cluster(head)? };
        if bytes > CLUSTER_BYTES_MAX || len > EXTENT_BYTES_MAX {
            return Err(MapError::Unsupported("a cluster longer than Linux accepts"));
        }
        if head.kind == HeadKind::Plain && len > bytes {
            return Err(MapError::Damaged("a plain extent longer than its cluster"));
        }
        if from.checked_add(bytes).is_none_or(|end| end > self.reader.geometry.len) {
            return Err(MapError::Damaged("a cluster behind the end of the image"));
        }
        let partial = head.partial;
        let data = ExtentData::Cluster { start: from, len: bytes, coding, partial, inline };
        Ok(Extent { start, len, data })
    }

    fn inline_cluster(&self) -> Result<(u64, u64), MapError> {
        let (from, bytes) = (self.index_end()?, u64::from(self.header.inline_bytes));
        let block = 1 << self.reader.geometry.block_bits;
        if from % block + bytes > block {
            return Err(MapError::Damaged("an inline cluster that crosses blocks"));
        }
        Ok((from, bytes))
    }

    fn cluster(&self, head: Head) -> Result<(u64, u64), MapError> {
        let block_bits = self.reader.geometry.block_bits;
        let big = self.header.big[usize::from(head.kind != HeadKind::First)];
        let blocks = match head.rest {
            Some(count) if big => {
                count.filter(|count| *count > 0).ok_or(MapError::Damaged("a head without a block count"))?
            }
            _ => 1,
        };
        Ok((u64::from(head.block) << block_bits, u64::from(blocks) << block_bits))
    }
}

impl<R: ReadAt + ?Sized> Iterator for Extents<'_, '_, R> {
    type Item = Result<Extent, MapError>;

    /// Returns the next extent. An error is the last item.
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.step().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// Bytes of the index read at once.
const PAGE_BYTES: u64 = 4096;

/// Work charged per byte of index. Decoding costs more than copying: entries of 2 bytes take about
/// 10 ns each.
const WORK_PER_INDEX_BYTE: u64 = 8;
