//! View and recipe of new files, at the origin.

use std::io::{self, SeekFrom, Write};
use std::ops::Range;

use super::coder::{Decoded, Packing, Part, Setting, Whole};
use super::repack::cost;
use super::scan::{Segment, Stream, scan};
use super::unpack::decode;
use super::{Kind, STEP_COPY, STEP_CUT, STEP_GZIP, STEP_LITERAL, STEP_ZEROS, VERSION, lzma2, zstd};
use crate::cut::ReadAt;
use crate::patch::Cost;
use crate::patch::view::Same;
use crate::patch::view::error::NoView;
use crate::patch::view::format::{
    Packed, PackedFile, RECIPE_MAX, Unpacked, ViewFormat, ViewLimits, ViewSink,
};
use crate::patch::view::gzip::Gzip;
use crate::patch::view::pieces::copy;
use crate::proto::put_varint;

/// A view is not worth it if the streams take less than one part in this many of the file.
const STREAMED_PART: u64 = 8;

/// Most content that attempts with wrong settings may pack, for each byte of content. The right
/// settings pack it once more.
const ATTEMPTS: u64 = 3;

/// Content that attempts may pack for any stream, bytes: a wrong setting shows after the first
/// 64 KiB of packed bytes, which may be 2 MiB of content.
const ATTEMPTS_MIN: u64 = 32 << 20;

/// Work of attempts that a group may take beside [`ATTEMPTS`] times its content, in bytes of
/// content: a packer has to be set up also for a stream of few bytes.
const WORK_MIN: u64 = 256 << 20;

/// Bytes of a packer's memory that are cleared in the time in which it packs a byte of content.
const CLEARED_PART: u64 = 256;

/// Writes the view of a group of new files to `sink`, from the current position on, and makes the
/// recipe that packs it again.
///
/// # Errors
/// Any error from reading the artifact or writing to `sink`.
pub(super) fn unpack(
    kind: Kind,
    packed: &Packed<'_>,
    limits: ViewLimits,
    mut sink: &mut dyn ViewSink,
) -> io::Result<Unpacked> {
    let start = sink.stream_position()?;
    let mut made = Unpacked { recipe: vec![VERSION], view_bytes: 0, files: Vec::new() };
    let memory = limits.memory.min(Cost::MEMORY_MAX);
    let mut maker = Maker { memory, last: None, work: WORK_MIN };
    for file in packed.files {
        sink.seek(SeekFrom::Start(start + made.view_bytes))?;
        let file = Packed { artifact: packed.artifact, files: std::slice::from_ref(file) };
        let mut view = View { recipe: Vec::new(), bytes: 0, max: limits.bytes - made.view_bytes };
        let whole = Whole::of(&file)?;
        if !whole.behind.is_empty() {
            view.recipe.push(STEP_CUT);
            put_varint(&mut view.recipe, file.len());
            put_varint(&mut view.recipe, whole.behind.len() as u64);
        }
        let result = maker.file(kind, &whole, &mut view, &mut sink)?;
        made.files.push(result.and_then(|()| {
            let most = (file.len() / STREAMED_PART).min((RECIPE_MAX - made.recipe.len()) as u64);
            let all = [&made.recipe[..], &view.recipe].concat();
            if view.recipe.len() as u64 > most || cost(&all[1..]).is_err() {
                return Err(NoView::NotWorth);
            }
            let from = made.view_bytes;
            made.recipe = all;
            made.view_bytes += view.bytes;
            Ok(from..made.view_bytes)
        }));
    }
    sink.seek(SeekFrom::Start(start + made.view_bytes))?;
    if made.files.iter().all(Result::is_err) {
        made.recipe.clear();
    }
    Ok(made)
}

/// View of one file so far.
struct View {
    recipe: Vec<u8>,
    bytes: u64,
    /// Most bytes of view.
    max: u64,
}

/// Search for settings. The setting of one stream is the first guess for the next.
struct Maker {
    memory: u64,
    last: Option<Setting>,
    /// Work that attempts for the streams so far have left, in bytes of content.
    work: u64,
}

impl Maker {
    /// Makes the view of one file, if every stream in it can be packed again.
    fn file(
        &mut self,
        kind: Kind,
        file: &dyn ReadAt,
        view: &mut View,
        mut sink: &mut dyn ViewSink,
    ) -> io::Result<Result<(), NoView>> {
        let scan = scan(kind, file)?;
        if scan.streamed() <= file.len() / STREAMED_PART && !scan.holds_packed {
            return Ok(Err(NoView::NotWorth));
        }
        for segment in &scan.segments {
            let range = segment.range();
            let len = range.end - range.start;
            match segment {
                Segment::Skip(_) => {
                    view.recipe.push(STEP_LITERAL);
                    put_varint(&mut view.recipe, len);
                    copy(file, range.clone(), len, &mut view.recipe)?;
                }
                Segment::Zeros(_) => {
                    view.recipe.push(STEP_ZEROS);
                    put_varint(&mut view.recipe, len);
                }
                Segment::Copy(_) => {
                    if len > view.max - view.bytes {
                        return Ok(Err(NoView::TooLong));
                    }
                    view.recipe.push(STEP_COPY);
                    put_varint(&mut view.recipe, len);
                    view.bytes += copy(file, range.clone(), len, sink)?;
                }
                Segment::Stream(_, Stream::Gzip) => {
                    let limits = ViewLimits { bytes: view.max - view.bytes, memory: self.memory };
                    let part = Part { file, start: range.start, end: range.end };
                    let made = gzip(&part, limits, &mut *sink)?;
                    let Some((_, recipe)) = made.recipe.split_first() else {
                        return Ok(Err(NoView::NotReproduced));
                    };
                    view.recipe.push(STEP_GZIP);
                    put_varint(&mut view.recipe, made.view_bytes);
                    put_varint(&mut view.recipe, recipe.len() as u64);
                    view.recipe.extend_from_slice(recipe);
                    view.bytes += made.view_bytes;
                }
                Segment::Stream(_, stream) => {
                    let max = view.max - view.bytes;
                    let (plain, end) = decode(stream, file, range, max, &mut sink)?;
                    if end == Decoded::Damaged {
                        return Ok(Err(if plain == max { NoView::TooLong } else { NoView::Damaged }));
                    }
                    let Some(setting) = self.setting(stream, plain, file, range)? else {
                        return Ok(Err(NoView::NotReproduced));
                    };
                    setting.put(plain, &mut view.recipe);
                    view.bytes += plain;
                    self.last = Some(setting);
                }
            }
        }
        Ok(Ok(()))
    }

    /// Finds the setting that packs the content of a stream, `plain` bytes, to the same bytes.
    fn setting(
        &mut self,
        stream: &Stream,
        plain: u64,
        file: &dyn ReadAt,
        range: &Range<u64>,
    ) -> io::Result<Option<Setting>> {
        let mut wrong = Vec::new();
        let mut work = ATTEMPTS.saturating_mul(plain).saturating_add(ATTEMPTS_MIN);
        // The right attempt is paid for as well.
        self.work = self.work.saturating_add((ATTEMPTS + 1).saturating_mul(plain));
        for setting in settings(stream, plain, self.last.as_ref()) {
            if setting.memory(plain) > self.memory {
                continue;
            }
            let trial = setting.for_trial().filter(|_| plain > zstd::TRIAL);
            if trial.as_ref().is_some_and(|trial| wrong.contains(trial)) {
                continue;
            }
            let seems_wrong = match &trial {
                Some(trial) => !seems_right(trial, stream, plain, file, range)?,
                None => false,
            };
            let (is_right, taken) = if seems_wrong {
                wrong.extend(trial);
                (false, zstd::TRIAL)
            } else {
                let mut same = Same { packed: file, at: range.start, buffer: Vec::new() };
                let (packed, taken) = attempt(&setting, stream, plain, file, range, &mut same)?;
                (packed && same.at == range.end, taken)
            };
            let spent = taken.max(setting.memory(plain) / CLEARED_PART);
            self.work = self.work.saturating_sub(spent);
            if is_right {
                return Ok(Some(setting));
            }
            work = work.saturating_sub(spent);
            if work == 0 || self.work == 0 {
                break;
            }
        }
        Ok(None)
    }
}

fn gzip(part: &Part<'_>, limits: ViewLimits, sink: &mut dyn ViewSink) -> io::Result<Unpacked> {
    let parts = std::iter::once(0..part.len()).collect();
    let files = [PackedFile::new(Vec::new(), parts)];
    Gzip.unpack(&Packed { artifact: part, files: &files }, limits, sink)
}

/// Returns the settings to try, the likeliest first.
fn settings(stream: &Stream, plain: u64, last: Option<&Setting>) -> Vec<Setting> {
    let mut all: Vec<Setting> = match stream {
        Stream::Lzma2 { chain, properties } => {
            let setting = |preset| lzma2::Setting { preset, properties: *properties, chain: chain.clone() };
            lzma2::PRESETS.into_iter().map(|preset| Setting::Lzma2(setting(preset))).collect()
        }
        Stream::Zstd(frame) => frame.settings(plain).into_iter().map(Setting::Zstd).collect(),
        Stream::Gzip => Vec::new(),
    };
    // Sort is stable: only those like the last one move to the front.
    all.sort_by_key(|setting| !last.is_some_and(|last| setting.is_like(last)));
    all
}

/// Packs a stream's content again. Returns whether the packer took all, and the content given to
/// it in bytes. A writer below that fails ends the attempt.
///
/// # Errors
/// Any error from reading the file.
fn attempt(
    setting: &Setting,
    stream: &Stream,
    plain: u64,
    file: &dyn ReadAt,
    range: &Range<u64>,
    out: &mut dyn Write,
) -> io::Result<(bool, u64)> {
    let Some(mut packing) = Packing::new(setting, plain, out) else { return Ok((false, 0)) };
    let decoded = decode(stream, file, range, plain, &mut packing);
    let taken = plain - packing.left();
    Ok((decoded.is_ok() && packing.finish().is_ok(), taken))
}

/// Returns whether the first block of a frame comes out the same. A packer with a thread of its own
/// makes no byte before it has taken a whole job, and cannot be stopped within it.
fn seems_right(
    setting: &Setting,
    stream: &Stream,
    plain: u64,
    file: &dyn ReadAt,
    range: &Range<u64>,
) -> io::Result<bool> {
    let mut first = First { file, range: range.clone(), made: 0, same: 0 };
    let Some(mut packing) = Packing::new(setting, plain, &mut first) else { return Ok(false) };
    // The decoder stops at the bound.
    let given = decode(stream, file, range, zstd::TRIAL, &mut packing);
    if given.is_err() || packing.flush_packer().is_err() {
        return Ok(false);
    }
    drop(packing);
    Ok(first.made > 0 && first.same >= first.made - first.made / 4)
}

/// Writer that counts the bytes up to the first that differs from those of a file.
struct First<'a> {
    file: &'a dyn ReadAt,
    range: Range<u64>,
    made: u64,
    same: u64,
}

impl Write for First<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.same == self.made {
            let at = self.range.start + self.made;
            let count = bytes.len().min(self.range.end.saturating_sub(at) as usize);
            let mut packed = vec![0; count];
            self.file.read_exact_at(&mut packed, at)?;
            let same = packed.iter().zip(bytes).take_while(|(one, other)| one == other).count();
            self.same += same as u64;
        }
        self.made += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
