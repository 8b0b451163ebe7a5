//! Container of xz files (The .xz File Format, version 1.2.1). All of it but the data of the blocks
//! stays in the recipe: some sixty bytes of a file.

use std::io;

use super::lzma2::{self, Chain};
use super::scan::{Peek, Segment, Stream};
use crate::patch::view::reader::Reader;

const MAGIC: &[u8; 6] = b"\xFD7zXZ\0";

/// Bytes of the header of a stream, and of its footer.
const ENDS: u64 = 12;

/// Longest number in the index, bytes.
const NUMBER_MAX: usize = 9;

pub(super) fn is_magic(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Returns the encoded dictionary of the first block of a file that starts with `head`, whose
/// header `head` holds.
pub(super) fn dictionary(head: &[u8]) -> Option<u64> {
    let size = (usize::from(*head.get(12)?) + 1) * 4;
    chain(head.get(12..12 + size)?).map(|chain| chain.dictionary_bytes())
}

/// Reads the filters in the header of a block.
fn chain(header: &[u8]) -> Option<Chain> {
    let (flags, mut rest) = (*header.get(1)?, header.get(2..header.len() - 4)?);
    if flags & 0x3C != 0 {
        return None;
    }
    // Lengths of the block, packed and plain, where they are stated.
    for stated in [flags & 0x40, flags & 0x80] {
        if stated != 0 {
            let len = 1 + rest.iter().take(NUMBER_MAX).position(|byte| byte & 0x80 == 0)?;
            rest = &rest[len..];
        }
    }
    Chain::of_header(usize::from(flags & 3) + 1, &mut Reader(rest)).ok()
}

/// Adds the stream at `start` to `segments`, and returns the offset behind it; `None` if there is
/// no whole stream, or one with unknown filters.
///
/// # Errors
/// Any error from reading the file.
pub(super) fn stream(
    file: &mut Peek<'_>,
    start: u64,
    segments: &mut Vec<Segment>,
) -> io::Result<Option<u64>> {
    let Some(head) = file.head::<12>(start)? else { return Ok(None) };
    if !is_magic(&head) || head[6] != 0 || head[7] > 15 {
        return Ok(None);
    }
    let check = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64][usize::from(head[7])];
    let (mut at, mut skipped, mut blocks) = (start + ENDS, start, 0);
    loop {
        let Some([size]) = file.head::<1>(at)? else { return Ok(None) };
        if size == 0 {
            break;
        }
        let size = (usize::from(size) + 1) * 4;
        let Some(header) = file.bytes(at, size)? else { return Ok(None) };
        let Some(chain) = chain(&header) else { return Ok(None) };
        let data = at + size as u64;
        let Some(form) = lzma2::walk(file, data)? else { return Ok(None) };
        let end = data + form.packed;
        if end > file.len() || !Segment::add(segments, Segment::Skip(skipped..data)) {
            return Ok(None);
        }
        let stream = Stream::Lzma2 { chain, properties: form.properties };
        if !Segment::add(segments, Segment::Stream(data..end, stream)) {
            return Ok(None);
        }
        (skipped, at, blocks) = (end, data + form.packed.next_multiple_of(4) + check, blocks + 1);
    }
    let Some(end) = index_end(file, at, blocks)? else { return Ok(None) };
    let end = end + ENDS;
    if end > file.len() || !Segment::add(segments, Segment::Skip(skipped..end)) {
        return Ok(None);
    }
    Ok(Some(end))
}

/// Returns the end of the index at `start`, which has to list as many blocks as there are.
fn index_end(file: &mut Peek<'_>, start: u64, blocks: u64) -> io::Result<Option<u64>> {
    let mut at = start + 1;
    for index in 0..=2 * blocks {
        let (mut number, mut len) = (0u64, 0);
        loop {
            let Some([byte]) = file.head::<1>(at + len as u64)? else { return Ok(None) };
            number |= u64::from(byte & 0x7F) << (7 * len);
            len += 1;
            if byte & 0x80 == 0 {
                break;
            }
            if len == NUMBER_MAX {
                return Ok(None);
            }
        }
        at += len as u64;
        if index == 0 && number != blocks {
            return Ok(None);
        }
    }
    Ok(Some(start + (at - start).next_multiple_of(4) + 4))
}
