//! Search for deflate streams in a zip archive (APPNOTE.TXT 6.3.10, section 4.3.7).
//!
//! Only local headers are searched for. Anything may lie between them: padding, data descriptors,
//! or stored data, in which the headers of archives within the archive are found too. The end of a
//! stream is found by unpacking it.

use std::io;
use std::ops::Range;

use crate::cut::ReadAt;

/// Bytes of a local header before the name.
const HEADER: usize = 30;

/// Flags of data that is not plain deflate: encrypted, patched, strongly encrypted, masked headers.
const FLAGS_OTHER: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;

/// Flag for lengths that follow the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;

const DEFLATE: u16 = 8;

/// Bytes searched at once: the first window, then all others. The next header is mostly near.
const WINDOWS: [usize; 2] = [1 << 10, 64 << 10];

pub(super) fn is_magic(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04")
}

/// Returns the range in which the data of the next file packed by deflate may lie, at `from` or
/// behind. The range ends with the archive if the header does not state a length.
///
/// # Errors
/// Any error from reading the file.
pub(super) fn next_stream<R: ReadAt + ?Sized>(file: &R, mut from: u64) -> io::Result<Option<Range<u64>>> {
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
