//! Unpacking of old files: the unpack recipe at the origin, and the view by it on a device.

use std::io::{self, SeekFrom, Write};
use std::ops::Range;

use super::coder::{Bounded, Decoded, Part, Whole};
use super::lzma2::{self, Chain};
use super::scan::{Segment, Stream, scan};
use super::{Kind, STEP_COPY, STEP_GZIP, STEP_LZMA2, STEP_ZSTD, VERSION, zstd};
use crate::cut::ReadAt;
use crate::patch::Cost;
use crate::patch::view::error::{NoView, RecipeError};
use crate::patch::view::format::{Packed, RECIPE_MAX, Unpacked, ViewFormat, ViewLimits, ViewSink};
use crate::patch::view::gzip::Gzip;
use crate::patch::view::pieces::copy;
use crate::patch::view::reader::Reader;
use crate::proto::put_varint;

/// Kind of the step that leaves bytes out.
const STEP_SKIP: u8 = 0;

/// Kind of the step that has the last bytes of a file.
const STEP_TAIL: u8 = 5;

/// Longest tail that is in no region, bytes.
pub(super) const TAIL_MAX: u64 = 4096;

/// Bytes of content unpacked in a second by the slowest decoder, LZMA2's.
const RATE: u64 = 60_000_000;

/// Memory of gzip's decoder, bytes.
const GZIP_MEMORY: u64 = 1 << 20;

/// Writes the content of a stream to `sink`; returns the bytes written, and how the stream ended.
///
/// # Errors
/// Any error from reading the file or writing to `sink`.
pub(super) fn decode(
    stream: &Stream,
    file: &dyn ReadAt,
    range: &Range<u64>,
    max: u64,
    sink: &mut dyn Write,
) -> io::Result<(u64, Decoded)> {
    let decoder = match stream {
        Stream::Lzma2 { chain, .. } => Decoder::Lzma2(chain.clone()),
        Stream::Zstd(frame) => Decoder::Zstd(frame.window_bits_max()),
        Stream::Gzip => Decoder::Gzip,
    };
    decoder.run(&Part { file, start: range.start, end: range.end }, max, sink)
}

enum Decoder {
    Lzma2(Chain),
    Zstd(u8),
    Gzip,
}

impl Decoder {
    fn run(&self, packed: &dyn ReadAt, max: u64, sink: &mut dyn Write) -> io::Result<(u64, Decoded)> {
        let mut sink = Bounded::new(sink, max);
        let result = match self {
            Self::Lzma2(chain) => lzma2::unpack(chain, packed, &mut sink),
            Self::Zstd(window_bits) => zstd::unpack(*window_bits, packed, &mut sink),
            Self::Gzip => match Gzip.unpack_base(&[], packed, max, &mut sink) {
                Ok(_) => Ok(Decoded::Whole),
                Err(RecipeError::Io(error)) => Err(error),
                Err(RecipeError::Damaged(_)) => Ok(Decoded::Damaged),
            },
        };
        match result {
            Err(_) if sink.is_full => Ok((sink.written, Decoded::Damaged)),
            result => Ok((sink.written, result?)),
        }
    }

    fn memory(&self) -> u64 {
        match self {
            Self::Lzma2(chain) => chain.unpack_memory(),
            Self::Zstd(window_bits) => zstd::unpack_memory(*window_bits),
            Self::Gzip => GZIP_MEMORY,
        }
    }

    fn take(kind: u8, reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        match kind {
            STEP_LZMA2 => Chain::take(reader).map(Self::Lzma2),
            STEP_ZSTD => zstd::take_window(reader).map(Self::Zstd),
            STEP_GZIP => Ok(Self::Gzip),
            _ => Err(RecipeError::Damaged("unknown step")),
        }
    }
}

/// Writes the view of old files to `sink`, from the current position on, and makes the recipe with
/// which a device does the same.
///
/// # Errors
/// Any error from reading the artifact or writing to `sink`.
pub(super) fn unpack_old(
    kind: Kind,
    packed: &Packed<'_>,
    limits: ViewLimits,
    mut sink: &mut dyn ViewSink,
) -> io::Result<Unpacked> {
    let start = sink.stream_position()?;
    let mut made = Unpacked { recipe: vec![VERSION], view_bytes: 0, files: Vec::new() };
    for file in packed.files {
        sink.seek(SeekFrom::Start(start + made.view_bytes))?;
        let file = Packed { artifact: packed.artifact, files: std::slice::from_ref(file) };
        let (whole, mut recipe) = (Whole::of(&file)?, Vec::new());
        if !whole.behind.is_empty() {
            recipe.push(STEP_TAIL);
            put_varint(&mut recipe, file.len());
            put_varint(&mut recipe, whole.behind.len() as u64);
            recipe.extend_from_slice(&whole.behind);
        }
        let max = limits.bytes - made.view_bytes;
        let written = unpack_file(kind, &whole, ViewLimits { bytes: max, ..limits }, &mut recipe, &mut sink)?;
        made.files.push(match written {
            Some(written) if made.recipe.len() + recipe.len() <= RECIPE_MAX => {
                let from = made.view_bytes;
                made.recipe.append(&mut recipe);
                made.view_bytes += written;
                Ok(from..made.view_bytes)
            }
            _ => Err(NoView::NotWorth),
        });
    }
    sink.seek(SeekFrom::Start(start + made.view_bytes))?;
    if made.view_bytes == 0 {
        made.recipe.clear();
    }
    Ok(made)
}

/// Unpacks one old file as far as it is sound; returns the bytes written. `None` if no stream is.
fn unpack_file(
    kind: Kind,
    file: &dyn ReadAt,
    limits: ViewLimits,
    recipe: &mut Vec<u8>,
    sink: &mut dyn Write,
) -> io::Result<Option<u64>> {
    let scan = scan(kind, file)?;
    let (mut written, mut has_stream, mut at) = (0, scan.holds_packed, 0);
    for segment in &scan.segments {
        let range = segment.range();
        let len = range.end - range.start;
        match segment {
            Segment::Skip(_) | Segment::Zeros(_) => {
                recipe.push(STEP_SKIP);
                put_varint(recipe, len);
            }
            Segment::Copy(_) => {
                if len > limits.bytes - written {
                    break;
                }
                recipe.push(STEP_COPY);
                put_varint(recipe, len);
                written += copy(file, range.clone(), len, sink)?;
            }
            Segment::Stream(_, stream) => {
                let (plain, end) = decode(stream, file, range, limits.bytes - written, sink)?;
                let decoder = match stream {
                    Stream::Lzma2 { chain, .. } => Decoder::Lzma2(chain.clone()),
                    Stream::Zstd(frame) => Decoder::Zstd(frame.window_bits_of(plain)),
                    Stream::Gzip => Decoder::Gzip,
                };
                if end != Decoded::Whole || plain == 0 || decoder.memory() > limits.memory {
                    break;
                }
                has_stream = true;
                written += plain;
                put_stream(&decoder, len, recipe);
            }
        }
        at = range.end;
    }
    // The next file of the group begins where this one ends.
    if at < file.len() {
        recipe.push(STEP_SKIP);
        put_varint(recipe, file.len() - at);
    }
    Ok(has_stream.then_some(written).filter(|written| *written > 0))
}

fn put_stream(decoder: &Decoder, len: u64, recipe: &mut Vec<u8>) {
    let kind = match decoder {
        Decoder::Lzma2(_) => STEP_LZMA2,
        Decoder::Zstd(_) => STEP_ZSTD,
        Decoder::Gzip => STEP_GZIP,
    };
    recipe.push(kind);
    put_varint(recipe, len);
    match decoder {
        Decoder::Lzma2(chain) => chain.put(recipe),
        Decoder::Zstd(window_bits) => recipe.push(*window_bits),
        Decoder::Gzip => {}
    }
}

/// Returns the cost of unpacking by a recipe, which lacks its version byte.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that is not sound.
pub(super) fn cost(recipe: &[u8]) -> Result<Cost, RecipeError> {
    let (mut reader, mut memory) = (Reader(recipe), 0);
    while let Some(kind) = reader.byte() {
        reader.number()?;
        if kind == STEP_TAIL {
            let len = reader.within(TAIL_MAX)?;
            reader.bytes(len)?;
        } else if kind > STEP_COPY {
            memory = memory.max(Decoder::take(kind, &mut reader)?.memory());
        }
    }
    Cost::new(memory, RATE).ok_or(RecipeError::Damaged("it needs too much memory"))
}

/// Writes the view of packed bytes, by an unpack recipe that lacks its version byte. Stops at the
/// first damage in the packed bytes and at `max` bytes.
pub(super) fn unpack(
    recipe: &[u8],
    packed: &dyn ReadAt,
    max: u64,
    view: &mut dyn Write,
) -> Result<u64, RecipeError> {
    cost(recipe)?;
    let (mut reader, mut at, mut written) = (Reader(recipe), 0u64, 0);
    // One file with its tail, or all packed bytes; `at` counts from its start.
    let rest = |start: u64| Whole { file: packed, range: start..packed.len(), behind: Vec::new() };
    let mut whole = rest(0);
    while let Some(kind) = reader.byte() {
        let len = reader.number()?;
        if !whole.behind.is_empty() && at == whole.len() {
            (whole, at) = (rest(whole.range.end), 0);
        }
        if kind == STEP_TAIL {
            let start = whole.range.start.saturating_add(at).min(packed.len());
            let end = start.saturating_add(len).min(packed.len());
            let count = reader.within(TAIL_MAX)?;
            whole = Whole { file: packed, range: start..end, behind: reader.bytes(count)?.to_vec() };
            at = 0;
            continue;
        }
        let decoder = match kind {
            STEP_SKIP | STEP_COPY => None,
            kind => Some(Decoder::take(kind, &mut reader)?),
        };
        let end = at.saturating_add(len).min(whole.len());
        match decoder {
            None if kind == STEP_SKIP => {}
            None => written += copy(&whole, at..end, max - written, view)?,
            Some(decoder) => {
                let part = Part { file: &whole, start: at, end };
                let (plain, result) = decoder.run(&part, max - written, view)?;
                written += plain;
                if result == Decoded::Damaged {
                    break;
                }
            }
        }
        at = end;
    }
    Ok(written)
}
