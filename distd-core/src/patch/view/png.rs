//! The zlib stream of a PNG file and the IDAT chunks that hold it (PNG 1.2, sections 3.2 and
//! 4.1.3).

use std::io::{self, Write};
use std::ops::Range;

use crc::{CRC_32_ISO_HDLC, Crc, Digest, Table};

use super::version::RecipeError;
use crate::cut::ReadAt;

const MAGIC: &[u8] = b"\x89PNG\r\n\x1A\n";

/// Bytes of length and type before the data of a chunk.
const HEAD: usize = 8;

const CRC_LEN: u64 = 4;

const IDAT: &[u8; 4] = b"IDAT";

/// Shortest data of an IDAT chunk, unless it is the last, bytes. Encoders use 8192 and more, and
/// each chunk costs one read.
const FRAME_MIN: u64 = 256;

/// Longest stream, bytes: the largest number that a recipe can hold.
const STREAM_MAX: u64 = (1 << 28) - 1;

/// Most chunks accepted before the first IDAT.
const CHUNKS_MAX: usize = 1024;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

pub(super) fn is_magic(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Zlib stream in IDAT chunks that all have the same length; only the last may be shorter.
#[derive(Debug)]
pub(super) struct Framed<'a, R: ?Sized> {
    file: &'a R,
    start: u64,
    /// Bytes of data in a chunk, except the last.
    pub(super) size: u64,
    /// Bytes of data in all chunks.
    total: u64,
}

impl<'a, R: ReadAt + ?Sized> Framed<'a, R> {
    /// Finds the chunks and checks their CRCs; `None` if they are damaged or differ in length.
    /// Memory: 64 KiB.
    ///
    /// # Errors
    /// Any error from reading the file.
    pub(super) fn find(file: &'a R) -> io::Result<Option<Self>> {
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

    fn from_first(file: &'a R, start: u64, size: u64) -> io::Result<Option<Self>> {
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
        Ok((total > 0).then_some(Self { file, start, size, total }))
    }

    /// Range of the chunks in the file.
    pub(super) fn range(&self) -> Range<u64> {
        let around = HEAD as u64 + CRC_LEN;
        self.start..self.start + self.total + self.total.div_ceil(self.size) * around
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Framed<'_, R> {
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
fn chunk<R: ReadAt + ?Sized>(file: &R, at: u64) -> io::Result<Option<([u8; 4], Range<u64>)>> {
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

fn frame_digest() -> Digest<'static, u32, Table<1>> {
    let mut digest = CRC.digest();
    digest.update(IDAT);
    digest
}

/// Writer that puts bytes into IDAT chunks while frames are set, and counts the bytes it writes to
/// the sink.
pub(super) struct Framer<'a, W> {
    sink: &'a mut W,
    pub(super) written: u64,
    frames: Option<Frames>,
}

struct Frames {
    size: usize,
    /// Bytes of data for which no chunk is open yet.
    left: usize,
    /// Open chunk: bytes of data that it still takes, and the CRC so far.
    open: Option<(usize, Digest<'static, u32, Table<1>>)>,
}

impl<'a, W: Write> Framer<'a, W> {
    pub(super) fn new(sink: &'a mut W) -> Self {
        Self { sink, written: 0, frames: None }
    }

    /// Puts the next `total` bytes into chunks of `size` bytes, the last one with the rest.
    pub(super) fn frame(&mut self, size: usize, total: usize) -> Result<(), RecipeError> {
        if self.frames.is_some() || size == 0 || total == 0 {
            return Err(RecipeError::Damaged("IDAT chunks of no bytes, or inside others"));
        }
        self.frames = Some(Frames { size, left: total, open: None });
        Ok(())
    }

    /// Ends the output and returns the number of bytes written to the sink.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`] if the chunks need more data.
    pub(super) fn finish(self) -> Result<u64, RecipeError> {
        match self.frames {
            Some(_) => Err(RecipeError::Damaged("its IDAT chunks are not full")),
            None => Ok(self.written),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl<W: Write> Write for Framer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let Some(mut frames) = self.frames.take() else {
            self.put(bytes)?;
            return Ok(bytes.len());
        };
        let (left, mut digest) = match frames.open.take() {
            Some(open) => open,
            None => {
                let len = frames.size.min(frames.left);
                frames.left -= len;
                self.put(&(len as u32).to_be_bytes())?;
                self.put(IDAT)?;
                (len, frame_digest())
            }
        };
        let now = &bytes[..bytes.len().min(left)];
        digest.update(now);
        self.put(now)?;
        if now.len() < left {
            frames.open = Some((left - now.len(), digest));
        } else {
            self.put(&digest.finalize().to_be_bytes())?;
        }
        if frames.open.is_some() || frames.left > 0 {
            self.frames = Some(frames);
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
