//! Takes a file apart into streams and the bytes around them.

use std::io;
use std::ops::Range;

use super::lzma2::Chain;
use super::{Kind, kernel, xz, zstd};
use crate::cut::archive::Members;
use crate::cut::{ReadAt, gzip};
use crate::patch::view::FORMATS;
use crate::patch::view::format::HEAD_BYTES;

/// Most segments of a file. A gigabyte in blocks of 3 MiB has a thousand.
const SEGMENTS_MAX: usize = 8192;

/// Longest run of bytes that stays in the recipe. Longer runs are copied into the view.
const SKIP_MAX: u64 = 4096;

/// Bytes read at once.
const WINDOW: usize = 4096;

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Bytes that the view lacks.
    Skip(Range<u64>),
    /// Zeros, which the view lacks too: the padding of a block.
    Zeros(Range<u64>),
    /// Bytes that the view has as they are.
    Copy(Range<u64>),
    /// Stream of which the view has the content.
    Stream(Range<u64>, Stream),
}

/// Algorithm of a stream, and what its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Lzma2 {
        chain: Chain,
        properties: u8,
    },
    Zstd(zstd::Frame),
    /// Members of gzip up to the end of the range, perhaps with other bytes behind them.
    Gzip,
}

impl Segment {
    /// Adds a segment, unless it is empty; returns whether there was room.
    pub(super) fn add(segments: &mut Vec<Self>, segment: Self) -> bool {
        let range = segment.range();
        if range.is_empty() {
            return true;
        }
        let segment = match segment {
            Self::Skip(range) if range.end - range.start > SKIP_MAX => Self::Copy(range),
            segment => segment,
        };
        if segments.len() < SEGMENTS_MAX {
            segments.push(segment);
            return true;
        }
        false
    }

    pub(super) fn range(&self) -> &Range<u64> {
        match self {
            Self::Skip(range) | Self::Zeros(range) | Self::Copy(range) | Self::Stream(range, _) => range,
        }
    }
}

/// Segments of a file.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// All bytes of the file, in order.
    pub(super) segments: Vec<Segment>,
    /// Whether an archive in the file holds files that may have views themselves.
    pub(super) holds_packed: bool,
}

impl Scan {
    /// Packed bytes of all streams.
    pub(super) fn streamed(&self) -> u64 {
        let bytes = |segment: &Segment| match segment {
            Segment::Stream(range, _) => range.end - range.start,
            _ => 0,
        };
        self.segments.iter().map(bytes).sum()
    }
}

/// Takes a file apart. Reads headers alone, a few bytes for each 64 KiB of a stream.
///
/// # Errors
/// Any error from reading the file.
pub(super) fn scan(kind: Kind, file: &dyn ReadAt) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut peek = Peek::new(file);
    let range = match kind {
        Kind::Kernel => kernel::payload(&mut peek)?.unwrap_or(0..0),
        _ => 0..file.len(),
    };
    Segment::add(&mut scan.segments, Segment::Copy(0..range.start));
    let mut at = range.start;
    peek.end = range.end;
    while at < range.end
        && let Some(end) = segment(kind, &mut peek, at, &mut scan)?
    {
        at = end;
    }
    // A stream that was taken apart in part is no stream.
    while scan.segments.last().is_some_and(|segment| segment.range().end > at) {
        scan.segments.pop();
    }
    if !Segment::add(&mut scan.segments, Segment::Copy(at..file.len())) {
        scan.segments.clear();
    }
    Ok(scan)
}

/// Adds what lies at `at`, and returns where it ends; `None` if it is unknown.
fn segment(kind: Kind, file: &mut Peek<'_>, at: u64, scan: &mut Scan) -> io::Result<Option<u64>> {
    let Some(head) = file.head::<6>(at)? else { return Ok(None) };
    if xz::is_magic(&head) {
        return xz::stream(file, at, &mut scan.segments);
    }
    let many = kind != Kind::Kernel;
    let (segment, end) = match head {
        [0, ..] if many => {
            let end = file.end_of_zeros(at)?;
            (Segment::Zeros(at..end), end)
        }
        [0x1F, 0x8B, ..] if gzip::is_magic(&head) => (Segment::Stream(at..file.end, Stream::Gzip), file.end),
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2'] if kind == Kind::Archive => {
            let Some(end) = archive(file, at, scan)? else { return Ok(None) };
            (Segment::Copy(at..end), end)
        }
        _ => match zstd::next(file, at)? {
            Some(zstd::Next::Frame(frame, end)) => (Segment::Stream(at..end, Stream::Zstd(frame)), end),
            Some(zstd::Next::Skippable(end)) if many => (Segment::Skip(at..end), end),
            _ => return Ok(None),
        },
    };
    Ok(Segment::add(&mut scan.segments, segment).then_some(end))
}

/// Returns the end of the archives at `at`.
fn archive(file: &mut Peek<'_>, at: u64, scan: &mut Scan) -> io::Result<Option<u64>> {
    let mut members = Members::new(file.file, at..file.end);
    while let Some(member) = members.next()? {
        if scan.holds_packed || member.data.end - member.data.start < HEAD_BYTES as u64 {
            continue;
        }
        let mut head = [0; HEAD_BYTES];
        file.file.read_exact_at(&mut head, member.data.start)?;
        scan.holds_packed = FORMATS.iter().any(|format| format.detects(&head));
    }
    let end = members.rest();
    Ok((end > at).then_some(end))
}

/// Reader of headers, which lie near each other.
pub(super) struct Peek<'f> {
    pub(super) file: &'f dyn ReadAt,
    /// End of the range that is read.
    end: u64,
    window: Vec<u8>,
    start: u64,
}

impl<'f> Peek<'f> {
    fn new(file: &'f dyn ReadAt) -> Self {
        Self { file, end: file.len(), window: Vec::new(), start: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Returns the bytes at `at`, zeros in place of those behind the end; `None` if there are none.
    pub(super) fn head<const N: usize>(&mut self, at: u64) -> io::Result<Option<[u8; N]>> {
        if at >= self.end {
            return Ok(None);
        }
        let count = (self.end - at).min(N as u64) as usize;
        if at < self.start || at + count as u64 > self.start + self.window.len() as u64 {
            self.window.resize(WINDOW.min(usize::try_from(self.end - at).unwrap_or(WINDOW)), 0);
            self.file.read_exact_at(&mut self.window, at)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        let mut head = [0; N];
        head[..count].copy_from_slice(&self.window[from..from + count]);
        Ok(Some(head))
    }

    /// Returns `len` bytes at `at`; `None` if there are fewer.
    pub(super) fn bytes(&mut self, at: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        if at > self.end || self.end - at < len as u64 {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(Some(bytes))
    }

    fn end_of_zeros(&self, mut at: u64) -> io::Result<u64> {
        let mut window = [0; WINDOW];
        while at < self.end {
            let count = (self.end - at).min(WINDOW as u64) as usize;
            self.file.read_exact_at(&mut window[..count], at)?;
            let zeros = window[..count].iter().take_while(|byte| **byte == 0).count();
            at += zeros as u64;
            if zeros < count {
                break;
            }
        }
        Ok(at)
    }
}
