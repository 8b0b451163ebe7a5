//! Unpacking of old blocks on a device.

use std::io::{self, Write};

use super::{Head, STEP_PACKED, STEP_STORED, STEP_TABLE};
use crate::cut::ReadAt;
use crate::cut::squashfs::{HEADER_BYTES, TABLE_BLOCK_BYTES, Unpacker, header};
use crate::patch::Cost;
use crate::patch::view::error::RecipeError;
use crate::patch::view::pieces::copy;
use crate::patch::view::reader::Reader;

/// Bytes of content unpacked in a second by the slowest decoder, that of xz.
const RATE: u64 = 60_000_000;

/// Memory of the decoders beside the blocks, bytes.
const MEMORY: u64 = 4 << 20;

/// Returns the cost of unpacking by a recipe, which lacks its version byte.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that is not sound.
pub(super) fn cost(recipe: &[u8]) -> Result<Cost, RecipeError> {
    let head = Head::take(&mut Reader(recipe))?;
    Cost::new(MEMORY + 3 * head.block_bytes as u64, RATE)
        .ok_or(RecipeError::Damaged("it needs too much memory"))
}

/// Writes the view of packed bytes, by an unpack recipe that lacks its version byte. Stops at the
/// first damage in the packed bytes and at `max` bytes.
pub(super) fn unpack(
    recipe: &[u8],
    packed: &dyn ReadAt,
    max: u64,
    view: &mut dyn Write,
) -> Result<u64, RecipeError> {
    let mut reader = Reader(recipe);
    let head = Head::take(&mut reader)?;
    let mut blocks = Blocks::new(head, packed, 0, max, view);
    while let Some(kind) = reader.byte() {
        let goes_on = match kind {
            STEP_PACKED => {
                let mut goes_on = true;
                for _ in 0..reader.number()? {
                    let len = reader.within(head.block_bytes as u64)?;
                    goes_on = goes_on && blocks.packed(len as u64)?;
                }
                goes_on
            }
            STEP_STORED => blocks.stored(reader.number()?)?,
            STEP_TABLE => blocks.table(reader.number()?)?,
            _ => return Err(RecipeError::Damaged("unknown step")),
        };
        if !goes_on {
            break;
        }
    }
    Ok(blocks.written())
}

/// Unpacks blocks that lie one behind the other. Its functions return whether the block was sound
/// and there was room for its content.
pub(super) struct Blocks<'a> {
    file: &'a dyn ReadAt,
    at: u64,
    left: u64,
    max: u64,
    block_bytes: usize,
    unpacker: Unpacker,
    sink: &'a mut dyn Write,
    block: Vec<u8>,
    plain: Vec<u8>,
}

impl<'a> Blocks<'a> {
    /// Begins at `start` of `file`, and writes at most `max` bytes.
    pub(super) fn new(
        head: Head,
        file: &'a dyn ReadAt,
        start: u64,
        max: u64,
        sink: &'a mut dyn Write,
    ) -> Self {
        Self {
            file,
            at: start,
            left: max,
            max,
            block_bytes: head.block_bytes,
            unpacker: Unpacker::new(head.packing),
            sink,
            block: Vec::new(),
            plain: Vec::new(),
        }
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.max - self.left
    }

    /// Unpacks a block of `len` bytes.
    pub(super) fn packed(&mut self, len: u64) -> io::Result<bool> {
        if len > self.block_bytes as u64 || !self.has(len) {
            return Ok(false);
        }
        self.unpack(len as usize, self.block_bytes)
    }

    /// Copies `len` bytes that are not packed.
    pub(super) fn stored(&mut self, len: u64) -> io::Result<bool> {
        if !self.has(len) || len > self.left {
            return Ok(false);
        }
        let copied = copy(self.file, self.at..self.at + len, len, self.sink)?;
        self.at += len;
        self.left -= copied;
        Ok(copied == len)
    }

    /// Unpacks the blocks of a table of `len` bytes.
    pub(super) fn table(&mut self, len: u64) -> io::Result<bool> {
        if !self.has(len) {
            return Ok(false);
        }
        let end = self.at + len;
        while self.at < end {
            let mut raw = [0; HEADER_BYTES];
            if end - self.at < HEADER_BYTES as u64 {
                return Ok(false);
            }
            self.file.read_exact_at(&mut raw, self.at)?;
            self.at += HEADER_BYTES as u64;
            let (len, is_stored) = header(raw);
            if len > TABLE_BLOCK_BYTES || end - self.at < len as u64 {
                return Ok(false);
            }
            let is_whole = match is_stored {
                true => self.stored(len as u64)?,
                false => self.unpack(len, TABLE_BLOCK_BYTES)?,
            };
            if !is_whole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has(&self, len: u64) -> bool {
        self.file.len().saturating_sub(self.at) >= len
    }

    fn unpack(&mut self, len: usize, plain_max: usize) -> io::Result<bool> {
        self.block.resize(len, 0);
        self.file.read_exact_at(&mut self.block, self.at)?;
        self.plain.resize(plain_max, 0);
        let Some(made) = self.unpacker.unpack(&self.block, &mut self.plain) else { return Ok(false) };
        if made as u64 > self.left {
            return Ok(false);
        }
        self.sink.write_all(&self.plain[..made])?;
        self.at += len as u64;
        self.left -= made as u64;
        Ok(true)
    }
}
