//! Views of zip archives (APPNOTE.TXT 6.3.10, section 4.3.7).
//!
//! Only local headers are searched for. Anything may lie between them: padding, data descriptors,
//! or stored data, in which the headers of archives within the archive are found too. The end of a
//! stream is found by unpacking it.

use std::io::{self, Read, Write};
use std::ops::Range;

use super::error::RecipeError;
use super::format::{HEAD_BYTES, Packed, Unpacked, ViewFormat, ViewLimits, ViewSink};
use super::pieces::{self, PieceKinds, Pieces, STREAMS_VERSION, copy};
use crate::cut::{ReadAt, gzip};

/// Bytes of a local header before the name.
const HEADER: usize = 30;

/// Flags of data that is not plain deflate: encrypted, patched, strongly encrypted, masked headers.
const FLAGS_OTHER: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;

/// Flag for lengths that follow the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;

const DEFLATE: u16 = 8;

/// Bytes searched at once: the first window, then all others. The next header is mostly near.
const WINDOWS: [usize; 2] = [1 << 10, 64 << 10];

/// Streams with less plain text than this stay packed: unpacking them saves nothing.
const PLAIN_MIN: u64 = 64;

/// Number of failures after which the rest of a file stays as it is, because each costs time. A
/// failure is data that is not a stream, or a stream that cannot be packed again.
const FAILED_MAX: usize = 8;

/// Zip archives. The view has the plain text of each deflate stream in its place between the other
/// bytes, so that headers are paired like everything else.
#[derive(Debug)]
pub(super) struct Zip;

impl ViewFormat for Zip {
    fn version(&self) -> u8 {
        STREAMS_VERSION
    }

    fn name(&self) -> &'static str {
        "zip"
    }

    fn detects(&self, head: &[u8]) -> bool {
        is_magic(head)
    }

    fn unpack(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        pieces::unpack(self.version(), take_apart, packed, limits.bytes, view)
    }

    fn repack(&self, recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
        pieces::repack(PieceKinds::All, recipe, view, packed)
    }

    /// Memory: 400 KiB.
    fn unpack_base(
        &self,
        _recipe: &[u8],
        packed: &dyn ReadAt,
        max: u64,
        mut view: &mut dyn Write,
    ) -> Result<u64, RecipeError> {
        if !starts_with_header(packed)? {
            return Ok(0);
        }
        let (mut at, mut total) = (0, 0);
        while let Some(data) = next_stream(packed, at)? {
            total += copy(packed, at..data.start, max - total, view)?;
            let (end, plain) = gzip::stream(packed, data, max - total, &mut view)?;
            total += plain;
            match end {
                Some(end) => at = end,
                None => return Ok(total),
            }
        }
        Ok(total + copy(packed, at..packed.len(), max - total, view)?)
    }
}

fn take_apart(file: &dyn ReadAt, until: u64, pieces: &mut Pieces, sink: &mut dyn Write) -> io::Result<u64> {
    let (mut at, mut failed) = (0, 0);
    while failed < FAILED_MAX
        && at < until
        && let Some(data) = next_stream(file, at)?
    {
        if !pieces.copy(file, at..data.start, sink)? {
            return Ok(at);
        }
        at = data.start;
        let (end, plain) = gzip::stream(file, data.clone(), pieces.room(), &mut io::sink())?;
        match end {
            Some(_) if plain < PLAIN_MIN => {}
            Some(end) => {
                let (reached, is_whole) = pieces.stream(file, at..end, until, sink)?;
                if !is_whole && reached < until {
                    failed += 1;
                    pieces.lost += end - reached;
                }
                at = reached;
            }
            None => failed += 1,
        }
    }
    if at < until && pieces.copy(file, at..file.len(), sink)? {
        at = file.len();
    }
    Ok(at)
}

fn is_magic(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04")
}

fn starts_with_header(file: &dyn ReadAt) -> io::Result<bool> {
    let mut head = [0; HEAD_BYTES];
    if file.len() >= HEAD_BYTES as u64 {
        file.read_exact_at(&mut head, 0)?;
    }
    Ok(is_magic(&head))
}

/// Returns the range in which the data of the next file packed by deflate may lie, at `from` or
/// behind. The range ends with the archive if the header does not state a length.
///
/// # Errors
/// Any error from reading the file.
fn next_stream(file: &dyn ReadAt, mut from: u64) -> io::Result<Option<Range<u64>>> {
    let mut window = Vec::new();
    let mut size = WINDOWS[0];
    while let Some(left) = file.len().checked_sub(from).filter(|left| *left >= HEADER as u64) {
        window.resize(size.min(usize::try_from(left).unwrap_or(size)), 0);
        file.read_exact_at(&mut window, from)?;
        for (at, head) in window.windows(HEADER).enumerate() {
            if is_magic(head)
                && let Some(data) = data(head, from + at as u64, file.len())
            {
                return Ok(Some(data));
            }
        }
        // The bytes at the end of the window that are too short for a header may begin one.
        from += (window.len() - HEADER + 1) as u64;
        size = WINDOWS[1];
    }
    Ok(None)
}

fn data(head: &[u8], at: u64, end: u64) -> Option<Range<u64>> {
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let flags = half(6);
    if flags & FLAGS_OTHER != 0 || half(8) != DEFLATE {
        return None;
    }
    let start = at + HEADER as u64 + u64::from(half(26)) + u64::from(half(28));
    let packed = u64::from(half(18)) | u64::from(half(20)) << 16;
    // All ones: the length is in an extra field (zip64).
    let is_told = flags & FLAG_DESCRIPTOR == 0 && packed != u64::from(u32::MAX);
    let end = if is_told { end.min(start + packed) } else { end };
    (start < end).then_some(start..end)
}
