//! IDAT chunks of a PNG file (PNG 1.2, sections 3.2 and 4.1.3), as a recipe makes them.

use std::io::{self, Write};

use crc::{CRC_32_ISO_HDLC, Crc, Digest, Table};

use super::error::RecipeError;

/// Type of the chunks that hold a picture's zlib stream.
pub(super) const IDAT: &[u8; 4] = b"IDAT";

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Begins the CRC of an IDAT chunk, which covers type and data.
pub(super) fn frame_digest() -> Digest<'static, u32, Table<1>> {
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
