//! Packing of blocks on a device.

use std::io::{Read, Write};

use super::coder::{Packer, Setting};
use super::{Head, STEP_CORRECTED, STEP_LITERAL, STEP_PACKED, STEP_SETTING, STEP_STORED, STEP_TABLE};
use crate::bounds::VIEW_BYTES_MAX;
use crate::cut::squashfs::{TABLE_BLOCK_BYTES, header_of};
use crate::patch::Cost;
use crate::patch::view::corrections;
use crate::patch::view::error::RecipeError;
use crate::patch::view::reader::Reader;

/// Bytes of content packed in a second by corrections, about, and the memory that takes, bytes.
const CORRECTED_RATE: u64 = 10_000_000;
const CORRECTED_MEMORY: u64 = 8 << 20;

/// Step of a recipe.
enum Step<'r> {
    Setting(Setting),
    Packed(u64),
    Stored(u64),
    Table(u64),
    Corrected { bytes: usize, header: &'r [u8], corrections: &'r [u8] },
    Literal(&'r [u8]),
}

/// Reads the steps behind the head of a recipe. Each run of packed blocks is a step of its own.
fn steps<'r>(
    head: Head,
    mut reader: Reader<'r>,
    mut each: impl FnMut(Step<'r>) -> Result<(), RecipeError>,
) -> Result<(), RecipeError> {
    while let Some(kind) = reader.byte() {
        match kind {
            STEP_SETTING => each(Step::Setting(Setting::take(head.packing, &mut reader)?))?,
            STEP_PACKED => {
                for _ in 0..reader.number()? {
                    each(Step::Packed(reader.within(VIEW_BYTES_MAX)? as u64))?;
                }
            }
            STEP_STORED => each(Step::Stored(reader.within(VIEW_BYTES_MAX)? as u64))?,
            STEP_TABLE => each(Step::Table(reader.within(VIEW_BYTES_MAX)? as u64))?,
            STEP_CORRECTED => {
                let (bytes, header) = (reader.within(head.block_bytes as u64)?, reader.bytes(2)?);
                let len = reader.within(head.block_bytes as u64)?;
                each(Step::Corrected { bytes, header, corrections: reader.bytes(len)? })?;
            }
            STEP_LITERAL => {
                let len = reader.within(head.block_bytes as u64 + 2)?;
                each(Step::Literal(reader.bytes(len)?))?;
            }
            _ => return Err(RecipeError::Damaged("unknown step")),
        }
    }
    Ok(())
}

/// Returns the cost of packing by a recipe, which lacks its version byte.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that is not sound, or needs more than any [`Cost`].
pub(super) fn cost(recipe: &[u8]) -> Result<Cost, RecipeError> {
    let mut reader = Reader(recipe);
    let head = Head::take(&mut reader)?;
    let block = head.block_bytes as u64;
    let (mut memory, mut rate) = (0, u64::MAX);
    steps(head, reader, |step| {
        match step {
            Step::Setting(setting) => {
                (memory, rate) = (memory.max(setting.memory(block)), rate.min(setting.rate()));
            }
            Step::Corrected { .. } => {
                (memory, rate) = (memory.max(CORRECTED_MEMORY + 8 * block), rate.min(CORRECTED_RATE));
            }
            _ => {}
        }
        Ok(())
    })?;
    Cost::new(memory + 3 * block, rate).ok_or(RecipeError::Damaged("it needs too much memory"))
}

/// Packs a view by a recipe that lacks its version byte. Returns the bytes written.
pub(super) fn repack(recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
    cost(recipe)?;
    let mut reader = Reader(recipe);
    let head = Head::take(&mut reader)?;
    let mut repacking = Repacking { view, packed, packer: Packer::default(), setting: None, written: 0 };
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    steps(head, reader, |step| match step {
        Step::Setting(setting) => {
            repacking.setting = Some(setting);
            Ok(())
        }
        Step::Packed(bytes) => repacking.each_block(bytes, head.block_bytes, |repacking, plain| {
            repacking.pack(plain, head.block_bytes, &mut out)?;
            repacking.put(&out)
        }),
        Step::Table(bytes) => repacking.each_block(bytes, TABLE_BLOCK_BYTES, |repacking, plain| {
            match repacking.pack(plain, plain.len() - 1, &mut out) {
                Ok(()) => {
                    repacking.put(&header_of(out.len(), false))?;
                    repacking.put(&out)
                }
                Err(Unpacked::NoSetting) => Err(Unpacked::NoSetting.into()),
                Err(Unpacked::NoRoom) => {
                    repacking.put(&header_of(plain.len(), true))?;
                    repacking.put(plain)
                }
            }
        }),
        Step::Stored(bytes) => repacking.each_block(bytes, head.block_bytes, Repacking::put),
        Step::Corrected { bytes, header, corrections } => {
            plain.resize(bytes, 0);
            repacking.view.read_exact(&mut plain)?;
            let stream = corrections::apply(&plain, corrections);
            let stream = stream.ok_or(RecipeError::Damaged("corrections do not fit"))?;
            repacking.put(header)?;
            repacking.put(&stream)?;
            repacking.put(&adler(&plain))
        }
        Step::Literal(bytes) => repacking.put(bytes),
    })?;
    Ok(repacking.written)
}

/// Reason why a block was not packed.
enum Unpacked {
    NoSetting,
    NoRoom,
}

impl From<Unpacked> for RecipeError {
    fn from(why: Unpacked) -> Self {
        Self::Damaged(match why {
            Unpacked::NoSetting => "it has no setting",
            Unpacked::NoRoom => "a packed block is too long",
        })
    }
}

struct Repacking<'a> {
    view: &'a mut dyn Read,
    packed: &'a mut dyn Write,
    packer: Packer,
    setting: Option<Setting>,
    written: u64,
}

impl Repacking<'_> {
    /// Reads `bytes` bytes of the view in blocks of at most `most` bytes.
    fn each_block(
        &mut self,
        bytes: u64,
        most: usize,
        mut each: impl FnMut(&mut Self, &[u8]) -> Result<(), RecipeError>,
    ) -> Result<(), RecipeError> {
        let (mut left, mut plain) = (bytes, Vec::new());
        while left > 0 {
            plain.resize(usize::try_from(left).unwrap_or(most).min(most), 0);
            self.view.read_exact(&mut plain)?;
            left -= plain.len() as u64;
            each(self, &plain)?;
        }
        Ok(())
    }

    fn pack(&mut self, plain: &[u8], room: usize, out: &mut Vec<u8>) -> Result<(), Unpacked> {
        let setting = self.setting.as_ref().ok_or(Unpacked::NoSetting)?;
        self.packer.pack(setting, plain, room, out).ok_or(Unpacked::NoRoom)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), RecipeError> {
        self.packed.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the checksum at the end of a zlib stream (RFC 1950, section 8.2).
pub(super) fn adler(bytes: &[u8]) -> [u8; 4] {
    const PRIME: u32 = 65_521;
    // The most bytes after which the sums still fit.
    const RUN: usize = 5552;
    let (mut low, mut high) = (1, 0);
    for run in bytes.chunks(RUN) {
        for byte in run {
            low += u32::from(*byte);
            high += low;
        }
        (low, high) = (low % PRIME, high % PRIME);
    }
    (high << 16 | low).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zlib() {
        assert_eq!(adler(b""), [0, 0, 0, 1]);
        assert_eq!(adler(b"Wikipedia"), 0x11E6_0398_u32.to_be_bytes());
        let long = vec![0xFF; 1 << 20];
        let mut packed = vec![0; 1 << 20];
        let mut compress = flate2::Compress::new(flate2::Compression::new(1), true);
        compress.compress(&long, &mut packed, flate2::FlushCompress::Finish).expect("zlib packs");
        let end = compress.total_out() as usize;
        assert_eq!(adler(&long), packed[end - 4..end]);
    }
}
