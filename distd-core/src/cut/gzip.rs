//! gzip members (RFC 1952) one behind the other, as they lie in a file.

use std::io::{self, Write};
use std::ops::Range;

use miniz_oxide::inflate::stream::{InflateState, inflate as step};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

use super::ReadAt;

/// Length of the shortest header, bytes.
pub(crate) const HEADER_MIN: usize = 10;

/// Bytes of CRC and length behind each stream.
pub(crate) const TRAILER: u64 = 8;

/// Longest header accepted, bytes. Names are short.
const HEADER_MAX: usize = 4096;

/// Bytes read at once.
const INPUT: usize = 64 << 10;

const OUTPUT: usize = 256 << 10;

pub(crate) fn is_magic(head: &[u8]) -> bool {
    // Compression method deflate, and none of the reserved flags.
    matches!(head, [0x1F, 0x8B, 8, flags, ..] if flags & 0xE0 == 0)
}

/// A member's header.
pub(crate) struct Header {
    /// Length of the header, bytes.
    pub(crate) len: u64,
    /// Name of the file that was packed, if the header has one.
    name: Option<Vec<u8>>,
}

/// Reads the header that starts at `range.start`; `None` if there is none.
///
/// # Errors
/// Any error from reading the artifact.
pub(crate) fn header<R: ReadAt + ?Sized>(artifact: &R, range: Range<u64>) -> io::Result<Option<Header>> {
    let left = range.end.saturating_sub(range.start);
    if left < HEADER_MIN as u64 {
        return Ok(None);
    }
    let len = usize::try_from(left).unwrap_or(HEADER_MAX).min(HEADER_MAX);
    let mut head = vec![0; len];
    artifact.read_exact_at(&mut head, range.start)?;
    Ok(parse(&head))
}

fn parse(head: &[u8]) -> Option<Header> {
    if head.len() < HEADER_MIN || !is_magic(head) {
        return None;
    }
    let flags = head[3];
    let mut at = HEADER_MIN;
    if flags & 4 != 0 {
        let extra = head.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([extra[0], extra[1]]));
    }
    let mut name = None;
    for text in [8, 16] {
        if flags & text != 0 {
            let len = head.get(at..)?.iter().position(|byte| *byte == 0)?;
            if text == 8 && len > 0 {
                name = Some(head[at..at + len].to_vec());
            }
            at += len + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    (at <= head.len()).then_some(Header { len: at as u64, name })
}

/// Bytes that may still be unpacked to find members. Bounded because a small artifact can unpack to
/// a thousand times its length.
pub(super) struct Budget(u64);

/// Bytes that may be unpacked for each byte of the artifact. Text seldom shrinks to less than a
/// tenth.
const WORK_PER_BYTE: u64 = 64;
/// Bytes that may be unpacked in addition, whatever the artifact's length.
const WORK_FLOOR: u64 = 64 << 20;

impl Budget {
    /// Budget for an artifact of `len` bytes.
    pub(super) fn of(len: u64) -> Self {
        Self(len.saturating_mul(WORK_PER_BYTE).saturating_add(WORK_FLOOR))
    }
}

/// Consecutive gzip members.
#[derive(Default)]
pub(super) struct Members {
    /// Offset in the artifact behind each member.
    pub(super) ends: Vec<u64>,
    /// Name of the file, if the first member's header has one.
    pub(super) name: Option<Vec<u8>>,
}

/// Finds the members from `range.start` on, up to a member that is damaged or costs more than is
/// left of `budget`. Each member is unpacked, because nothing else shows where it ends.
///
/// # Errors
/// Any error from reading the artifact.
pub(super) fn members<R: ReadAt + ?Sized>(
    artifact: &R,
    range: Range<u64>,
    budget: &mut Budget,
) -> io::Result<Members> {
    let (mut found, mut at) = (Members::default(), range.start);
    while let Some(header) = header(artifact, at..range.end)? {
        let Some(left) = budget.0.checked_sub((INPUT + OUTPUT) as u64) else { break };
        let (end, plain) = stream(artifact, at + header.len..range.end, left, &mut io::sink())?;
        budget.0 = left - plain;
        let Some(end) = end.filter(|end| range.end - end >= TRAILER) else { break };
        let mut length = [0; 4];
        artifact.read_exact_at(&mut length, end + TRAILER - 4)?;
        if u32::from_le_bytes(length) != plain as u32 {
            break;
        }
        if found.ends.is_empty() {
            found.name = header.name;
        }
        at = end + TRAILER;
        found.ends.push(at);
    }
    Ok(found)
}

/// Inflates one stream into `sink`. Returns the offset behind the stream, `None` if it is damaged
/// or does not end within `max` bytes of plain text, and the number of plain bytes written, at most
/// `max`. Needs 400 KiB of memory.
///
/// # Errors
/// Any error from reading the artifact or writing to `sink`.
pub(crate) fn stream<R: ReadAt + ?Sized>(
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
                // The decoder made no progress: give it more input, if there is any.
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
