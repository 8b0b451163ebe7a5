//! Pieces: the recipes of files with deflate streams, instructions to pack a view again bit for
//! bit. Shared by the formats of such files.
//!
//! Every number is an LEB128 varint of at most 4 bytes:
//!
//! ```text
//! version      1 byte: 1 files of gzip members, 3 zip archives and PNG files
//! pieces up to the end, each of them
//!   0  literal            length, then that many bytes of the region (headers, trailers, padding)
//!   1  a deflate stream   length of its plain text in the view, length of corrections, corrections
//!   2  continuation       of the stream in the piece before: the same fields
//! and in version 3
//!   3  copy               number of bytes of the view to copy as they are
//!   4  IDAT chunks        length of the data of each chunk, length of the data of all: that many
//!                         bytes made by the next pieces lie in chunks with length, type and CRC,
//!                         the last chunk with the rest
//! ```
//!
//! The unpack recipe of either version is the version byte.
//!
//! Corrections come from the crate `preflate-rs` (0.7), which makes them for a piece of a stream.
//! They hold the parameters of the compressor in the first piece of each stream, and every place
//! where the compressor did something else than these parameters predict.
//!
//! The crate panics on some damaged corrections and does not bound the work that others cause. So
//! this module turns a panic into an error, and a recipe may only be used if its hash comes from
//! signed metadata. The remaining risk is an origin that wants to waste its own devices' time.

use std::io::{self, Cursor, Read, SeekFrom, Write};
use std::ops::Range;

use preflate_rs::{ExitCode, PreflateStreamProcessor, RecreateStreamProcessor};

use super::corrections::{caught, config};
use super::error::{NoView, RecipeError};
use super::format::{RECIPE_MAX, Unpacked, ViewSink};
use super::frames::Framer;
use crate::cut::ReadAt;

/// First byte of the recipes of formats that have bytes between their streams: zip and PNG. Both
/// read all pieces, so they share the version.
pub(super) const STREAMS_VERSION: u8 = 3;

/// Most plain text of a piece, bytes: a little more than the most that gzip puts into one block.
pub const PIECE_PLAIN_MAX: usize = 9 << 20;

/// Numbers of packed bytes that are taken apart together, tried in this order. The compressor's
/// parameters are estimated from the first piece, and a long piece can give a worse estimate: for
/// the reference initrd, 256 KiB need 5 kB of corrections, 1 MiB needs 175 kB and three times the
/// time. For other files a short piece is worse: zlib's parameters show best in a small file as a
/// whole.
const STEPS: [usize; 4] = [256 << 10, 2 << 20, 64 << 10, 1 << 20];

/// Packed bytes at the start of a file with which the steps are compared.
const TRIAL_BYTES: u64 = 2 << 20;

/// If the corrections take less than one part in this many of the packed bytes, no other step is
/// tried.
const RECOGNISED_PART: u64 = 1000;

/// A view is not worth it if its recipe takes more than one part in this many of the packed bytes.
const RECIPE_PART: u64 = 8;

/// A view of a file is not worth it if the streams take less than one part in this many of its
/// bytes.
const STREAMED_PART: u64 = 8;

/// Most packed bytes of one piece. A stream with longer blocks has no view.
const PACKED_MAX: usize = 4 << 20;

/// Most bytes at the end of a file that are not made from its view.
pub const LITERAL_MAX: u64 = 64 << 10;

/// Largest number of a recipe.
const NUMBER_MAX: u64 = (1 << 28) - 1;

/// Pieces that a recipe may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKinds {
    /// Literals and deflate streams.
    Streams,
    /// Copies and IDAT chunks too.
    All,
}

/// Function that takes a file apart up to `until`, to its end, or to bytes that are not of the
/// format. Returns the offset up to which the recipe covers the file.
pub(super) type TakeApart = fn(&dyn ReadAt, u64, &mut Pieces, &mut dyn Write) -> io::Result<u64>;

/// Makes the recipe of a file, and writes its view to `sink` from the current position on.
///
/// Bytes at the end that no stream can make (a file whose tail is elsewhere, damage) become a
/// literal of at most [`LITERAL_MAX`] bytes. Every piece is packed again and compared, so a recipe
/// always fits. A view has at most `max` bytes. About 15 MB/s of plain text on one core.
///
/// # Errors
/// Any error from reading the file or writing to `sink`.
pub(super) fn unpack(
    version: u8,
    take_apart: TakeApart,
    file: &dyn ReadAt,
    max: u64,
    mut sink: &mut dyn ViewSink,
) -> io::Result<Unpacked> {
    let mut tries = Vec::new();
    for step in STEPS {
        let mut trial = Pieces::new(version, step, max);
        let at = take_apart(file, TRIAL_BYTES, &mut trial, &mut io::sink())?;
        let cost = ((trial.recipe.len() as u64 + trial.lost) * TRIAL_BYTES).checked_div(at);
        tries.extend(cost.map(|cost| (cost, step)));
        if tries.last().is_some_and(|(cost, _)| *cost < TRIAL_BYTES / RECOGNISED_PART) {
            break;
        }
    }
    tries.sort_unstable();
    let start = sink.stream_position()?;
    for (_, step) in tries {
        sink.seek(SeekFrom::Start(start))?;
        let mut whole = Pieces::new(version, step, max);
        let at = take_apart(file, u64::MAX, &mut whole, &mut sink)?;
        if file.len() - at <= LITERAL_MAX && whole.streamed > file.len() / STREAMED_PART {
            whole.literal(file, at..file.len())?;
            if whole.recipe.len() as u64 <= (file.len() / RECIPE_PART).min(RECIPE_MAX as u64) {
                return Ok(Unpacked::of_file(whole.recipe, whole.plain));
            }
        }
    }
    Ok(Unpacked::without(NoView::NotWorth))
}

/// Pieces into which a file was taken apart.
pub(super) struct Pieces {
    step: usize,
    plain_max: u64,
    recipe: Vec<u8>,
    /// Bytes of the view so far.
    plain: u64,
    /// Packed bytes of the streams that were taken apart.
    streamed: u64,
    /// Bytes of streams that stay packed in the view. They count against a step like its
    /// corrections.
    pub(super) lost: u64,
}

impl Pieces {
    fn new(version: u8, step: usize, plain_max: u64) -> Self {
        Self { step, plain_max, recipe: vec![version], plain: 0, streamed: 0, lost: 0 }
    }

    /// Adds a range of the file to the recipe as it is.
    pub(super) fn literal(&mut self, file: &dyn ReadAt, range: Range<u64>) -> io::Result<()> {
        let len = (range.end - range.start) as usize;
        if len > 0 {
            self.recipe.push(0);
            put(&mut self.recipe, len);
            let from = self.recipe.len();
            self.recipe.resize(from + len, 0);
            file.read_exact_at(&mut self.recipe[from..], range.start)?;
        }
        Ok(())
    }

    /// Position in the recipe, for [`back_to`](Self::back_to).
    pub(super) fn mark(&self) -> usize {
        self.recipe.len()
    }

    /// Drops the literals added since `mark`.
    pub(super) fn back_to(&mut self, mark: usize) {
        self.recipe.truncate(mark);
    }

    /// Bytes by which the view may still grow.
    pub(super) fn room(&self) -> u64 {
        self.plain_max - self.plain
    }

    /// Copies a range into the view as it is; returns whether there was room.
    pub(super) fn copy(
        &mut self,
        file: &dyn ReadAt,
        range: Range<u64>,
        sink: &mut dyn Write,
    ) -> io::Result<bool> {
        let len = range.end - range.start;
        if len > self.room() {
            return Ok(false);
        }
        let mut left = len;
        while left > 0 {
            let here = left.min(NUMBER_MAX);
            self.recipe.push(3);
            put(&mut self.recipe, here as usize);
            left -= here;
        }
        copy(file, range, len, sink)?;
        self.plain += len;
        Ok(true)
    }

    /// Records that the next `total` bytes made lie in IDAT chunks of `size` bytes of data.
    pub(super) fn frames(&mut self, size: u64, total: u64) {
        self.recipe.push(4);
        put(&mut self.recipe, size as usize);
        put(&mut self.recipe, total as usize);
    }

    /// Takes the stream at the start of `range` apart as far as possible. Returns the offset
    /// reached, and whether the stream ends there.
    pub(super) fn stream(
        &mut self,
        file: &dyn ReadAt,
        range: Range<u64>,
        until: u64,
        sink: &mut dyn Write,
    ) -> io::Result<(u64, bool)> {
        let mut parser = PreflateStreamProcessor::new(&config(PIECE_PLAIN_MAX - (1 << 20)));
        let mut again = RecreateStreamProcessor::new();
        let (mut at, mut take, mut packed) = (range.start, self.step, Vec::new());
        while !parser.is_done() {
            if at >= until {
                return Ok((at, false));
            }
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            packed.resize(take.min(left), 0);
            file.read_exact_at(&mut packed, at)?;
            let piece = match caught(|| parser.decompress(&packed)) {
                Some(Ok(piece)) if piece.compressed_size > 0 => piece,
                // No block ends in the bytes given: give more, up to the limit.
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
                _ => return Ok((at, false)),
            };
            let text = parser.plain_text().text();
            let made = caught(|| again.recompress(&mut Cursor::new(text), &piece.corrections));
            let sound = matches!(&made, Some(Ok((made, _))) if *made == packed[..piece.compressed_size]);
            let room = self.recipe.len() + piece.corrections.len() + 16 <= RECIPE_MAX;
            if !sound || !room || text.len() > PIECE_PLAIN_MAX || text.len() as u64 > self.room() {
                return Ok((at, false));
            }
            self.recipe.push(if at == range.start { 1 } else { 2 });
            put(&mut self.recipe, text.len());
            put(&mut self.recipe, piece.corrections.len());
            self.recipe.extend_from_slice(&piece.corrections);
            sink.write_all(text)?;
            self.plain += text.len() as u64;
            self.streamed += piece.compressed_size as u64;
            at += piece.compressed_size as u64;
            parser.shrink_to_dictionary();
            take = self.step;
        }
        Ok((at, true))
    }
}

/// Packs a view again; `recipe` lacks its version byte. Returns the number of bytes written.
pub(super) fn repack(
    kinds: PieceKinds,
    mut recipe: &[u8],
    mut view: &mut dyn Read,
    mut sink: &mut dyn Write,
) -> Result<u64, RecipeError> {
    let recipe = &mut recipe;
    let (mut packer, mut text, mut sink) = (None, Vec::new(), Framer::new(&mut sink));
    while let [kind, rest @ ..] = *recipe {
        *recipe = rest;
        let len = number(recipe)?;
        match kind {
            0 => {
                sink.write_all(take(recipe, len)?)?;
                continue;
            }
            1 | 2 => {}
            3 if kinds == PieceKinds::All => {
                if io::copy(&mut (&mut view).take(len as u64), &mut sink)? != len as u64 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                continue;
            }
            4 if kinds == PieceKinds::All => {
                sink.frame(len, number(recipe)?)?;
                continue;
            }
            _ => return Err(RecipeError::Damaged("unknown piece")),
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
            _ => packer
                .as_mut()
                .ok_or(RecipeError::Damaged("a piece continues a stream that did not begin"))?,
        };
        let made = caught(|| packer.recompress(&mut Cursor::new(&text), corrections));
        let Some(Ok((packed, _))) = made else {
            return Err(RecipeError::Damaged("corrections do not fit the view"));
        };
        sink.write_all(&packed)?;
    }
    sink.finish()
}

/// Copies as much of a range as `max` allows; returns the number of bytes copied.
pub(super) fn copy(file: &dyn ReadAt, range: Range<u64>, max: u64, sink: &mut dyn Write) -> io::Result<u64> {
    let len = (range.end - range.start).min(max);
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(64 << 10)];
    let mut done = 0;
    while done < len {
        let here = buffer.len().min(usize::try_from(len - done).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..here], range.start + done)?;
        sink.write_all(&buffer[..here])?;
        done += here as u64;
    }
    Ok(len)
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
