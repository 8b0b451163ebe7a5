//! Packing of a view, by a recipe.

use std::io::{self, Read, Write};

use super::coder::{Setting, pack};
use super::unpack::TAIL_MAX;
use super::{STEP_COPY, STEP_CUT, STEP_GZIP, STEP_LITERAL, STEP_LZMA2, STEP_ZEROS, STEP_ZSTD};
use crate::bounds::VIEW_BYTES_MAX;
use crate::patch::Cost;
use crate::patch::view::error::RecipeError;
use crate::patch::view::format::RECIPE_MAX;
use crate::patch::view::pieces::{self, PieceKinds};
use crate::patch::view::reader::Reader;

/// Memory for the content and the state of gzip's packer, bytes: `patch::view`, "Memory".
const GZIP_MEMORY: u64 = 16 << 20;

/// Bytes of content that gzip's packer takes in a second.
const GZIP_RATE: u64 = 30_000_000;

/// Memory that the packers of all streams may take one after the other, bytes, beside
/// [`SETUP_PART`] times the content: a step of ten bytes may ask for a packer of a gigabyte.
const SETUP_MAX: u64 = 32 << 30;

/// Packers of modules take 16 MiB for some 100 KiB of content, far less than this.
const SETUP_PART: u64 = 64;

/// Step of a recipe.
enum Step<'r> {
    Literal(&'r [u8]),
    Copy(u64),
    Stream(u64, Setting),
    Gzip(u64, &'r [u8]),
    Zeros(u64),
    Cut(u64, u64),
}

impl<'r> Step<'r> {
    fn take(reader: &mut Reader<'r>) -> Result<Option<Self>, RecipeError> {
        let Some(kind) = reader.byte() else { return Ok(None) };
        let len = reader.number()?;
        if len > VIEW_BYTES_MAX {
            return Err(RecipeError::Damaged("a number is out of bounds"));
        }
        Ok(Some(match kind {
            STEP_LITERAL => Self::Literal(reader.bytes(len as usize)?),
            STEP_COPY => Self::Copy(len),
            STEP_LZMA2 | STEP_ZSTD => Self::Stream(len, Setting::take(kind, reader)?),
            STEP_GZIP => {
                let count = reader.within(RECIPE_MAX as u64)?;
                Self::Gzip(len, reader.bytes(count)?)
            }
            STEP_ZEROS => Self::Zeros(len),
            STEP_CUT => Self::Cut(len, reader.within(TAIL_MAX)? as u64),
            _ => return Err(RecipeError::Damaged("unknown step")),
        }))
    }

    /// Bytes of view that the step takes, and the memory and rate with which it packs them.
    fn work(&self) -> (u64, u64, u64) {
        match self {
            Self::Literal(_) | Self::Zeros(_) | Self::Copy(_) | Self::Cut(..) => (0, 0, 1),
            Self::Stream(plain, setting) => (*plain, setting.memory(*plain), setting.rate()),
            Self::Gzip(plain, _) => (*plain, GZIP_MEMORY, GZIP_RATE),
        }
    }
}

/// Returns the cost of packing by a recipe, which lacks its version byte.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that is not sound, or needs more memory than any class.
pub(super) fn cost(recipe: &[u8]) -> Result<Cost, RecipeError> {
    let mut reader = Reader(recipe);
    let (mut memory, mut setup, mut bytes, mut seconds) = (0, 0u64, 0u64, 0.0);
    let mut copied = 0u64;
    while let Some(step) = Step::take(&mut reader)? {
        let (plain, held, rate) = step.work();
        if let Step::Copy(len) | Step::Zeros(len) = step {
            copied += len;
        }
        if bytes.saturating_add(plain).saturating_add(copied) > 2 * VIEW_BYTES_MAX {
            return Err(RecipeError::Damaged("it makes too many bytes"));
        }
        memory = memory.max(held);
        setup += held;
        bytes += plain;
        seconds += plain as f64 / rate as f64;
    }
    if setup > SETUP_MAX.saturating_add(bytes.saturating_mul(SETUP_PART)) {
        return Err(RecipeError::Damaged("it has too many streams for their memory"));
    }
    let rate = if bytes == 0 { u64::MAX } else { (bytes as f64 / seconds).ceil() as u64 };
    Cost::new(memory, rate).ok_or(RecipeError::Damaged("it needs too much memory"))
}

/// Packs a view again; `recipe` lacks its version byte. Returns the number of bytes written.
pub(super) fn repack(
    recipe: &[u8],
    mut view: &mut dyn Read,
    sink: &mut dyn Write,
) -> Result<u64, RecipeError> {
    // A step that no class has memory for is refused before any other is run.
    cost(recipe)?;
    let mut reader = Reader(recipe);
    let mut sink = Counted { below: sink, written: 0, until_cut: 0, cut: 0 };
    while let Some(step) = Step::take(&mut reader)? {
        match step {
            Step::Literal(bytes) => sink.write_all(bytes)?,
            Step::Copy(len) => {
                if io::copy(&mut (&mut view).take(len), &mut sink)? != len {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            Step::Stream(plain, setting) => pack(&setting, plain, &mut view, &mut sink)?,
            Step::Gzip(plain, recipe) => {
                let mut view = (&mut view).take(plain);
                pieces::repack(PieceKinds::Streams, recipe, &mut view, &mut sink)?;
                if view.limit() > 0 {
                    return Err(RecipeError::Damaged("its pieces do not take all of the view"));
                }
            }
            Step::Cut(len, dropped) => (sink.until_cut, sink.cut) = (len, dropped),
            Step::Zeros(len) => drop(io::copy(&mut io::repeat(0).take(len), &mut sink)?),
        }
    }
    Ok(sink.written)
}

/// Writer that counts, and drops the last bytes of a file.
struct Counted<'s> {
    below: &'s mut dyn Write,
    written: u64,
    /// Bytes written before some are dropped, and the number of these.
    until_cut: u64,
    cut: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > 2 * VIEW_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.cut > 0 && self.until_cut == 0 {
            let dropped = bytes.len().min(usize::try_from(self.cut).unwrap_or(usize::MAX));
            self.cut -= dropped as u64;
            return Ok(dropped);
        }
        let most = if self.cut > 0 { self.until_cut } else { u64::MAX };
        let count = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let count = self.below.write(&bytes[..count])?;
        self.until_cut = self.until_cut.saturating_sub(count as u64);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.below.flush()
    }
}
