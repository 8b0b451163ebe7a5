//! Recipes for gzip files: how a view is packed again, bit for bit.
//!
//! Every number an LEB128 varint of at most 4 bytes:
//!
//! ```text
//! version      1 byte, 1
//! pieces up to the end, each
//!   0  literal            length, then so many bytes of the region (headers, trailers, padding)
//!   1  a deflate stream   length of its plain text in the view, length of its corrections, corrections
//!   2  the stream before  the same, continued
//! ```
//!
//! Corrections are what crate `preflate-rs` (0.7) makes of so much of a stream: the parameters of the compressor in the
//! first piece of each stream, then wherever the compressor did something else than these say.
//!
//! That crate panics on some damaged corrections and has no bound on the work others make it do. So a panic is
//! caught here and is an error, and recipes are to be taken only by a hash from signed metadata: what that leaves is an
//! origin that wants to waste its own devices' time.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use preflate_rs::{ExitCode, PreflateConfig, PreflateStreamProcessor, RecreateStreamProcessor};

use super::version::{GZIP_VERSION, RECIPE_MAX, RecipeError};
use crate::cut::{ReadAt, gzip};

/// Most plain text of a piece, bytes: what gzip puts into one block at the very most, and some.
pub const PIECE_PLAIN_MAX: usize = 9 << 20;

/// Packed bytes looked at together. The estimate of the compressor's parameters comes from the first piece, and a
/// long one can be worse: of the reference initrd 256 KiB need 5 kB of corrections, 1 MiB 175 kB and three times the
/// time. Of other files a short one is: zlib's parameters show best in all of a small file.
const STEPS: [usize; 4] = [256 << 10, 2 << 20, 64 << 10, 1 << 20];

/// Packed bytes of the start of a file that tell how well each step does.
const TRIAL_BYTES: u64 = 2 << 20;

/// Corrections below this part of the packed bytes: no other step is tried.
const RECOGNISED_PART: u64 = 1000;

/// A recipe above this part of the packed bytes is not worth a view.
const RECIPE_PART: u64 = 8;

/// Most packed bytes of one piece: a stream whose blocks are longer has no view.
const PACKED_MAX: usize = 4 << 20;

/// Most bytes of a file that are not made from its view, at its end.
pub const LITERAL_MAX: u64 = 64 << 10;

/// Longest search of a chain: zlib's and gzip's level 9.
const CHAIN_MAX: u32 = 4096;

/// What [`unpack`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// How to pack the view again, at most [`RECIPE_MAX`] bytes.
    pub recipe: Vec<u8>,
    /// Length of the view: bytes that count from where the sink stood.
    pub view_bytes: u64,
}

/// The recipe of a packed file, and its view into `sink` from where that stands. `None` for a file that has no view
/// worth the name.
///
/// What no stream can be made of (the end of a file whose tail is elsewhere, damage) becomes a literal of at most
/// [`LITERAL_MAX`] bytes. Every piece is packed again and compared, so a recipe always fits. A view stays below `max`
/// bytes. About 15 MB/s of plain text on one core.
///
/// # Errors
/// What reading or writing reports.
pub fn unpack<R: ReadAt + ?Sized>(
    file: &R,
    max: u64,
    sink: &mut (impl Write + Seek),
) -> io::Result<Option<Unpacked>> {
    let mut tries = Vec::new();
    for step in STEPS {
        let mut trial = Unpacking::new(file, step, max);
        trial.run(TRIAL_BYTES, &mut io::sink())?;
        let cost = (trial.recipe.len() as u64 * TRIAL_BYTES).checked_div(trial.at);
        tries.extend(cost.map(|cost| (cost, step)));
        if tries.last().is_some_and(|(cost, _)| *cost < TRIAL_BYTES / RECOGNISED_PART) {
            break;
        }
    }
    tries.sort_unstable();
    let start = sink.stream_position()?;
    for (_, step) in tries {
        sink.seek(SeekFrom::Start(start))?;
        let mut whole = Unpacking::new(file, step, max);
        whole.run(u64::MAX, sink)?;
        if file.len() - whole.at <= LITERAL_MAX && whole.plain > 0 {
            literal(file, whole.at..file.len(), &mut whole.recipe)?;
            if whole.recipe.len() as u64 <= (file.len() / RECIPE_PART).min(RECIPE_MAX as u64) {
                return Ok(Some(Unpacked { recipe: whole.recipe, view_bytes: whole.plain }));
            }
        }
    }
    Ok(None)
}

fn literal<R: ReadAt + ?Sized>(file: &R, range: Range<u64>, recipe: &mut Vec<u8>) -> io::Result<()> {
    let len = (range.end - range.start) as usize;
    if len > 0 {
        recipe.push(0);
        put(recipe, len);
        let from = recipe.len();
        recipe.resize(from + len, 0);
        file.read_exact_at(&mut recipe[from..], range.start)?;
    }
    Ok(())
}

/// A file being taken apart.
struct Unpacking<'a, R: ?Sized> {
    file: &'a R,
    step: usize,
    plain_max: u64,
    recipe: Vec<u8>,
    /// Bytes of the file the recipe covers.
    at: u64,
    /// Bytes of view.
    plain: u64,
}

impl<'a, R: ReadAt + ?Sized> Unpacking<'a, R> {
    fn new(file: &'a R, step: usize, plain_max: u64) -> Self {
        Self { file, step, plain_max, recipe: vec![GZIP_VERSION], at: 0, plain: 0 }
    }

    /// Goes on until `until`, the end, or something that is no stream.
    fn run(&mut self, until: u64, sink: &mut impl Write) -> io::Result<()> {
        while let Some(header) = gzip::header(self.file, self.at..self.file.len())? {
            let before = (self.recipe.len(), self.at);
            literal(self.file, self.at..self.at + header.len, &mut self.recipe)?;
            self.at += header.len;
            let begin = self.at;
            let done = self.stream(until, sink)?;
            if self.at == begin {
                // Not a piece of it: the header belongs to what is left.
                self.recipe.truncate(before.0);
                self.at = before.1;
            }
            if !done {
                break;
            }
            let trailer = (self.at + gzip::TRAILER).min(self.file.len());
            literal(self.file, self.at..trailer, &mut self.recipe)?;
            self.at = trailer;
        }
        Ok(())
    }

    /// Takes one stream apart, as far as that works; whether to its end.
    fn stream(&mut self, until: u64, sink: &mut impl Write) -> io::Result<bool> {
        let config = PreflateConfig {
            max_chain_length: CHAIN_MAX,
            plain_text_limit: PIECE_PLAIN_MAX - (1 << 20),
            verify_compression: false,
        };
        let mut parser = PreflateStreamProcessor::new(&config);
        let mut again = RecreateStreamProcessor::new();
        let (begin, mut take, mut packed) = (self.at, self.step, Vec::new());
        while !parser.is_done() {
            if self.at >= until {
                return Ok(false);
            }
            let left = usize::try_from(self.file.len() - self.at).unwrap_or(usize::MAX);
            packed.resize(take.min(left), 0);
            self.file.read_exact_at(&mut packed, self.at)?;
            let piece = match caught(|| parser.decompress(&packed)) {
                Some(Ok(piece)) if piece.compressed_size > 0 => piece,
                // No block ends in it: more, within reason.
                Some(Ok(_)) if take < left.min(PACKED_MAX) => {
                    take += self.step;
                    continue;
                }
                Some(Err(error))
                    if error.exit_code() == ExitCode::ShortRead && take < left.min(PACKED_MAX) =>
                {
                    take += self.step;
                    continue;
                }
                _ => return Ok(false),
            };
            let text = parser.plain_text().text();
            let made = caught(|| again.recompress(&mut Cursor::new(text), &piece.corrections));
            let sound = matches!(&made, Some(Ok((made, _))) if *made == packed[..piece.compressed_size]);
            let room = self.recipe.len() + piece.corrections.len() + 16 <= RECIPE_MAX;
            if !sound
                || !room
                || text.len() > PIECE_PLAIN_MAX
                || self.plain + text.len() as u64 > self.plain_max
            {
                return Ok(false);
            }
            self.recipe.push(if self.at == begin { 1 } else { 2 });
            put(&mut self.recipe, text.len());
            put(&mut self.recipe, piece.corrections.len());
            self.recipe.extend_from_slice(&piece.corrections);
            sink.write_all(text)?;
            self.plain += text.len() as u64;
            self.at += piece.compressed_size as u64;
            parser.shrink_to_dictionary();
            take = self.step;
        }
        Ok(true)
    }
}

/// Packs a view again; `recipe` without its version byte. Bytes written.
pub(super) fn repack(
    mut recipe: &[u8],
    view: &mut impl Read,
    sink: &mut impl Write,
) -> Result<u64, RecipeError> {
    let recipe = &mut recipe;
    let (mut packer, mut text, mut written) = (None, Vec::new(), 0);
    while let [kind, rest @ ..] = *recipe {
        *recipe = rest;
        let len = number(recipe)?;
        if *kind == 0 {
            let literal = take(recipe, len)?;
            sink.write_all(literal)?;
            written += literal.len() as u64;
            continue;
        }
        if len > PIECE_PLAIN_MAX {
            return Err(RecipeError::Damaged("a piece is too long"));
        }
        let corrections = number(recipe)?;
        let corrections = take(recipe, corrections)?;
        text.resize(len, 0);
        view.read_exact(&mut text)?;
        let packer = match kind {
            1 => packer.insert(RecreateStreamProcessor::new()),
            2 => packer.as_mut().ok_or(RecipeError::Damaged("a stream that never began goes on"))?,
            _ => return Err(RecipeError::Damaged("unknown piece")),
        };
        let made = caught(|| packer.recompress(&mut Cursor::new(&text), corrections));
        let Some(Ok((packed, _))) = made else {
            return Err(RecipeError::Damaged("corrections do not fit"));
        };
        sink.write_all(&packed)?;
        written += packed.len() as u64;
    }
    Ok(written)
}

/// `None` when `work` panics. What it worked on is not used any more then.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn put(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number(bytes: &mut &[u8]) -> Result<usize, RecipeError> {
    let mut number = 0;
    for shift in 0..4 {
        let byte = take(bytes, 1)?[0];
        number |= usize::from(byte & 0x7F) << (7 * shift);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(RecipeError::Damaged("a number is too large"))
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], RecipeError> {
    let (taken, rest) = bytes.split_at_checked(len).ok_or(RecipeError::Damaged("it ends early"))?;
    *bytes = rest;
    Ok(taken)
}
