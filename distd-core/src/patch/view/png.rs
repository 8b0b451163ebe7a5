//! Views of PNG files: their one zlib stream, and the IDAT chunks that hold it (PNG 1.2, sections
//! 3.2 and 4.1.3).

use std::io::{self, Read, Write};
use std::ops::Range;

use super::error::RecipeError;
use super::format::{HEAD_BYTES, Packed, Unpacked, ViewFormat, ViewLimits, ViewSink};
use super::frames::{IDAT, frame_digest};
use super::pieces::{self, PieceKinds, Pieces, STREAMS_VERSION, copy};
use crate::cut::{ReadAt, gzip};

const MAGIC: &[u8] = b"\x89PNG\r\n\x1A\n";

/// Bytes of length and type before the data of a chunk.
const HEAD: usize = 8;

const CRC_LEN: u64 = 4;

/// Shortest data of an IDAT chunk, unless it is the last, bytes. Encoders use 8192 and more, and
/// each chunk costs one read.
const FRAME_MIN: u64 = 256;

/// Longest stream, bytes: the largest number that a recipe can hold.
const STREAM_MAX: u64 = (1 << 28) - 1;

/// Most chunks accepted before the first IDAT.
const CHUNKS_MAX: usize = 1024;

/// Bytes of the header before the deflate stream of a zlib stream (RFC 1950).
const ZLIB_HEAD: u64 = 2;

/// PNG files. The view has the plain text of the zlib stream between the other bytes.
#[derive(Debug)]
pub(super) struct Png;

impl ViewFormat for Png {
    fn version(&self) -> u8 {
        STREAMS_VERSION
    }

    fn name(&self) -> &'static str {
        "png"
    }

    fn detects(&self, head: &[u8]) -> bool {
        head.starts_with(MAGIC)
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
        let Some(framed) = Framed::find(packed)? else { return Ok(0) };
        let frames = framed.range();
        let mut total = copy(packed, 0..frames.start, max, view)?;
        total += copy(&framed, 0..ZLIB_HEAD, max - total, view)?;
        let (end, plain) = gzip::stream(&framed, ZLIB_HEAD..framed.len(), max - total, &mut view)?;
        total += plain;
        let Some(end) = end else { return Ok(total) };
        total += copy(&framed, end..framed.len(), max - total, view)?;
        Ok(total + copy(packed, frames.end..packed.len(), max - total, view)?)
    }
}

fn take_apart(file: &dyn ReadAt, until: u64, pieces: &mut Pieces, sink: &mut dyn Write) -> io::Result<u64> {
    let Some(framed) = Framed::find(file)? else { return Ok(0) };
    let frames = framed.range();
    if !pieces.copy(file, 0..frames.start, sink)? {
        return Ok(0);
    }
    pieces.frames(framed.size, framed.len());
    pieces.copy(&framed, 0..ZLIB_HEAD, sink)?;
    let (reached, is_whole) = pieces.stream(&framed, ZLIB_HEAD..framed.len(), until, sink)?;
    let is_whole = is_whole
        && pieces.copy(&framed, reached..framed.len(), sink)?
        && pieces.copy(file, frames.end..file.len(), sink)?;
    // Another step may succeed where this one failed. The rest cannot become a literal, because the
    // chunks would stay open.
    Ok(if is_whole {
        file.len()
    } else if reached < until {
        0
    } else {
        reached
    })
}

/// Zlib stream in IDAT chunks that all have the same length; only the last may be shorter.
struct Framed<'a> {
    file: &'a dyn ReadAt,
    start: u64,
    /// Bytes of data in a chunk, except the last.
    size: u64,
    /// Bytes of data in all chunks.
    total: u64,
}

impl<'a> Framed<'a> {
    /// Finds the chunks of a PNG file and checks their CRCs; `None` if they are damaged or differ
    /// in length, or hold no stream. Memory: 64 KiB.
    ///
    /// # Errors
    /// Any error from reading the file.
    fn find(file: &'a dyn ReadAt) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD_BYTES];
        if file.len() >= HEAD_BYTES as u64 {
            file.read_exact_at(&mut head, 0)?;
        }
        if !Png.detects(&head) {
            return Ok(None);
        }
        let mut at = MAGIC.len() as u64;
        for _ in 0..CHUNKS_MAX {
            let Some((kind, data)) = chunk(file, at)? else { break };
            if kind == *IDAT {
                return Self::from_first(file, at, data.end - data.start);
            }
            at = data.end + CRC_LEN;
        }
        Ok(None)
    }

    fn from_first(file: &'a dyn ReadAt, start: u64, size: u64) -> io::Result<Option<Self>> {
        let (mut at, mut total, mut is_last) = (start, 0, false);
        let mut buffer = vec![0; 64 << 10];
        while let Some((_, data)) = chunk(file, at)?.filter(|(kind, _)| kind == IDAT) {
            let len = data.end - data.start;
            if is_last || len > size || len == 0 || total + len > STREAM_MAX {
                return Ok(None);
            }
            is_last = len < size;
            if !is_last && size < FRAME_MIN && total > 0 {
                return Ok(None);
            }
            let mut digest = frame_digest();
            let mut from = data.start;
            while from < data.end {
                let here = buffer.len().min(usize::try_from(data.end - from).unwrap_or(buffer.len()));
                file.read_exact_at(&mut buffer[..here], from)?;
                digest.update(&buffer[..here]);
                from += here as u64;
            }
            let mut told = [0; CRC_LEN as usize];
            file.read_exact_at(&mut told, data.end)?;
            if u32::from_be_bytes(told) != digest.finalize() {
                return Ok(None);
            }
            total += len;
            at = data.end + CRC_LEN;
        }
        Ok((total > ZLIB_HEAD).then_some(Self { file, start, size, total }))
    }

    /// Range of the chunks in the file.
    fn range(&self) -> Range<u64> {
        let around = HEAD as u64 + CRC_LEN;
        self.start..self.start + self.total + self.total.div_ceil(self.size) * around
    }
}

impl ReadAt for Framed<'_> {
    fn len(&self) -> u64 {
        self.total
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.total) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buf.is_empty() {
            let (index, within) = (offset / self.size, offset % self.size);
            let here = buf.len().min(usize::try_from(self.size - within).unwrap_or(usize::MAX));
            let (now, later) = buf.split_at_mut(here);
            let before = (index + 1) * HEAD as u64 + index * CRC_LEN;
            self.file.read_exact_at(now, self.start + before + offset)?;
            (buf, offset) = (later, offset + here as u64);
        }
        Ok(())
    }
}

/// Returns type and data range of the chunk at `at`; `None` if no chunk fits there.
fn chunk(file: &dyn ReadAt, at: u64) -> io::Result<Option<([u8; 4], Range<u64>)>> {
    let start = at + HEAD as u64;
    if start > file.len() {
        return Ok(None);
    }
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, at)?;
    let [a, b, c, d, kind @ ..] = head;
    let end = start + u64::from(u32::from_be_bytes([a, b, c, d]));
    Ok((end + CRC_LEN <= file.len()).then_some((kind, start..end)))
}
