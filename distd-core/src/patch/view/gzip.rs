//! gzip members (RFC 1952) one behind the other, as they lie in a file.

use std::io::{self, Write};
use std::ops::Range;

use miniz_oxide::inflate::stream::{InflateState, inflate as step};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

use crate::cut::ReadAt;

/// Shortest header.
pub(super) const HEADER_MIN: usize = 10;

/// CRC and length behind each stream.
pub(super) const TRAILER: u64 = 8;

/// Longest header taken: names are short.
const HEADER_MAX: usize = 4096;

/// Bytes read at once.
const INPUT: usize = 64 << 10;

const OUTPUT: usize = 256 << 10;

pub(super) fn is_magic(head: &[u8]) -> bool {
    // Deflate, and none of the reserved flags.
    matches!(head, [0x1F, 0x8B, 8, flags, ..] if flags & 0xE0 == 0)
}

/// Length of the header that starts at `range.start`; `None` where there is none.
pub(super) fn header<R: ReadAt + ?Sized>(artifact: &R, range: Range<u64>) -> io::Result<Option<u64>> {
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(HEADER_MAX).min(HEADER_MAX);
    let mut head = vec![0; len];
    artifact.read_exact_at(&mut head, range.start)?;
    Ok(header_len(&head).map(|len| len as u64))
}

fn header_len(head: &[u8]) -> Option<usize> {
    if head.len() < HEADER_MIN || !is_magic(head) {
        return None;
    }
    let flags = head[3];
    let mut at = HEADER_MIN;
    if flags & 4 != 0 {
        let extra = head.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([extra[0], extra[1]]));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            at += head.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    (at <= head.len()).then_some(at)
}

/// Writes the view of a packed file, its sound part at least; its length.
///
/// Stops at the first damage, at the end of the last member, and at `max` bytes: this is a base, and a short one is
/// still one. Memory: 400 KiB.
///
/// # Errors
/// What reading or writing reports.
pub fn inflate<R: ReadAt + ?Sized>(file: &R, max: u64, sink: &mut impl Write) -> io::Result<u64> {
    let (mut at, mut total) = (0, 0);
    while let Some(header) = header(file, at..file.len())? {
        let (end, plain) = stream(file, at + header..file.len(), max - total, sink)?;
        total += plain;
        match end {
            Some(end) => at = end.saturating_add(TRAILER),
            None => break,
        }
    }
    Ok(total)
}

/// Inflates one stream: where it ends, if it does, and how long its plain text is.
fn stream<R: ReadAt + ?Sized>(
    artifact: &R,
    range: Range<u64>,
    max: u64,
    sink: &mut impl Write,
) -> io::Result<(Option<u64>, u64)> {
    let mut state = InflateState::new_boxed(DataFormat::Raw);
    let (mut input, mut output) = (vec![0; INPUT], vec![0; OUTPUT]);
    let (mut at, mut plain) = (range.start, 0u64);
    loop {
        let len = INPUT.min(usize::try_from(range.end - at).unwrap_or(INPUT));
        artifact.read_exact_at(&mut input[..len], at)?;
        let mut rest = &input[..len];
        loop {
            let result = step(&mut state, rest, &mut output, MZFlush::None);
            if plain + result.bytes_written as u64 > max {
                return Ok((None, plain));
            }
            plain += result.bytes_written as u64;
            sink.write_all(&output[..result.bytes_written])?;
            rest = &rest[result.bytes_consumed..];
            at += result.bytes_consumed as u64;
            match result.status {
                Ok(MZStatus::StreamEnd) => return Ok((Some(at), plain)),
                Ok(_) if result.bytes_consumed + result.bytes_written > 0 => {}
                // It stands still: more input, if there is any.
                _ if rest.is_empty() && at < range.end && len > 0 => break,
                _ => return Ok((None, plain)),
            }
            if rest.is_empty() && result.bytes_written < output.len() {
                break;
            }
        }
        if at >= range.end {
            return Ok((None, plain));
        }
    }
}
