//! Container of xz files (The .xz File Format, version 1.2.1). All of it but the data of the blocks
//! stays in the recipe: some sixty bytes of a file.

use std::io;

use crc::{CRC_32_ISO_HDLC, Crc};

use super::lzma2::{self, Chain};
use super::scan::{Peek, Segment, Stream};
use crate::patch::view::reader::Reader;

const MAGIC: &[u8; 6] = b"\xFD7zXZ\0";
const FOOTER_MAGIC: &[u8; 2] = b"YZ";

/// Flags of a stream whose check is CRC32.
const CRC32_FLAGS: [u8; 2] = [0, 1];

const CRC_BYTES: usize = 4;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

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
pub(in crate::patch::view) fn chain(header: &[u8]) -> Option<Chain> {
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

/// Returns the filters of the first block of a file, and the properties of its LZMA2 data; `None`
/// if the file is cut off or has unknown filters.
pub(in crate::patch::view) fn first_block(file: &[u8]) -> Option<(Chain, u8)> {
    let start = ENDS as usize;
    let size = (usize::from(*file.get(start)?) + 1) * 4;
    let chain = chain(file.get(start..start + size)?)?;
    // The first chunk that is packed has the properties. Its control byte is at least 0xC0.
    let properties = match file.get(start + size..)? {
        [control, _, _, _, _, properties, ..] if *control >= 0xC0 => *properties,
        _ => lzma2::PROPERTIES,
    };
    Some((chain, properties))
}

/// Returns the file of one block that `lzma_stream_buffer_encode` makes around LZMA2 data: `plain`
/// is its content. The check is CRC32. The header of the block has room for the longest data that
/// the content could give, and states both lengths.
pub(in crate::patch::view) fn one_block(data: &[u8], plain: &[u8], chain: &Chain) -> Vec<u8> {
    let mut filters = Vec::new();
    chain.put(&mut filters);
    let flags = [0xC0 | (filters[0] - 1)];
    let (packed, whole) = (number(data.len() as u64), number(plain.len() as u64));
    // Uncompressed chunks of 64 KiB with three bytes in front, and one byte at the end.
    let most = plain.len() + plain.len().div_ceil(64 << 10) * 3 + 1;
    let room = 2 + number(most as u64).len() + whole.len() + filters.len() - 1;
    let room = room.next_multiple_of(4);
    let mut header = vec![(room / 4) as u8];
    header.extend([&flags[..], &packed, &whole, &filters[1..]].concat());
    header.resize(room, 0);
    let mut out = [&MAGIC[..], &CRC32_FLAGS, &crc(&CRC32_FLAGS)].concat();
    let with_crc = |bytes: &[u8]| [bytes, &crc(bytes)].concat();
    out.extend(with_crc(&header));
    out.extend_from_slice(data);
    let unpadded = header.len() + CRC_BYTES + data.len() + CRC_BYTES;
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(crc(plain));
    let mut index = [&[0, 1][..], &number(unpadded as u64), &whole].concat();
    index.resize(index.len().next_multiple_of(4), 0);
    let index = with_crc(&index);
    let footer = [&(index.len() as u32 / 4 - 1).to_le_bytes()[..], &CRC32_FLAGS].concat();
    out.extend([&index[..], &crc(&footer), &footer, FOOTER_MAGIC].concat());
    out
}

fn crc(bytes: &[u8]) -> [u8; CRC_BYTES] {
    CRC.checksum(bytes).to_le_bytes()
}

/// Encodes a number as xz files have it: seven bits a byte, the lowest first.
fn number(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
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
