//! Coders of streams: settings, packers and their input, whatever the algorithm.

use std::io::{self, Read, Write};
use std::ops::Range;

use super::{lzma2, zstd};
use crate::cut::ReadAt;
use crate::patch::view::error::RecipeError;
use crate::patch::view::format::Packed;
use crate::patch::view::reader::Reader;
use crate::proto::put_varint;

/// Bytes of content given to a packer at once: the input buffer of zstd's tool.
const PIECE: usize = 128 << 10;

/// Packer of one stream.
pub(in crate::patch::view) trait Packer {
    /// Packs the next bytes of content, or the last ones, and writes all that is ready.
    fn pack(&mut self, plain: &[u8], is_last: bool, out: &mut dyn Write) -> io::Result<()>;

    /// Writes as much as can be made of the content so far. Does nothing where the packer holds
    /// little back.
    fn flush(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// End of unpacking a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// The stream ended where its packed bytes end.
    Whole,
    /// The stream is damaged. The bytes before the damage are good.
    Damaged,
}

/// Algorithm and settings with which a stream is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Lzma2(lzma2::Setting),
    Zstd(zstd::Setting),
}

impl Setting {
    /// Kind of the step of a recipe that packs with this setting.
    pub(super) fn step(&self) -> u8 {
        match self {
            Self::Lzma2(_) => super::STEP_LZMA2,
            Self::Zstd(_) => super::STEP_ZSTD,
        }
    }

    pub(super) fn take(step: u8, reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        match step {
            super::STEP_LZMA2 => lzma2::Setting::take(reader).map(Self::Lzma2),
            super::STEP_ZSTD => zstd::Setting::take(reader).map(Self::Zstd),
            _ => Err(RecipeError::Damaged("unknown step")),
        }
    }

    /// Writes the step that packs `plain` bytes of view.
    pub(super) fn put(&self, plain: u64, out: &mut Vec<u8>) {
        out.push(self.step());
        put_varint(out, plain);
        match self {
            Self::Lzma2(setting) => setting.put(out),
            Self::Zstd(setting) => setting.put(out),
        }
    }

    /// Memory to pack `plain` bytes, bytes; an upper bound.
    pub(super) fn memory(&self, plain: u64) -> u64 {
        match self {
            Self::Lzma2(setting) => setting.memory(),
            Self::Zstd(setting) => setting.memory(plain),
        }
    }

    /// Bytes of content packed in a second by one core, about.
    pub(super) fn rate(&self) -> u64 {
        match self {
            Self::Lzma2(setting) => setting.rate(),
            Self::Zstd(setting) => setting.rate(),
        }
    }

    /// Returns the setting with which the first block is tried before a stream is packed as a
    /// whole; `None` where an attempt may end at any byte.
    pub(super) fn for_trial(&self) -> Option<Self> {
        match self {
            Self::Lzma2(_) => None,
            Self::Zstd(setting) => Some(Self::Zstd(setting.for_trial())),
        }
    }

    /// Whether two settings differ in nothing but what the headers of a stream say.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Lzma2(one), Self::Lzma2(other)) => one.preset == other.preset,
            (Self::Zstd(one), Self::Zstd(other)) => one.is_like(*other),
            _ => false,
        }
    }

    fn packer(&self, plain: u64) -> Option<Box<dyn Packer>> {
        match self {
            Self::Lzma2(setting) => setting.packer(),
            Self::Zstd(setting) => setting.packer(plain),
        }
    }

    /// Bytes of content that the packer is given at once.
    fn piece(&self, plain: u64) -> usize {
        match self {
            Self::Zstd(setting) if setting.at_once() => usize::try_from(plain).unwrap_or(PIECE),
            _ => PIECE,
        }
    }
}

/// Writer that packs `plain` bytes of content.
pub(super) struct Packing<'o> {
    packer: Box<dyn Packer>,
    out: &'o mut dyn Write,
    piece: usize,
    held: Vec<u8>,
    /// Content not yet given to the packer, `held` included.
    left: u64,
    has_ended: bool,
}

impl<'o> Packing<'o> {
    /// `None` if no packer takes the setting.
    pub(super) fn new(setting: &Setting, plain: u64, out: &'o mut dyn Write) -> Option<Self> {
        let (packer, piece) = (setting.packer(plain)?, setting.piece(plain));
        Some(Self { packer, out, piece, held: Vec::new(), left: plain, has_ended: false })
    }

    /// Content that was not packed yet, bytes.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Packs what is held, and writes what the packer holds back.
    pub(super) fn flush_packer(&mut self) -> io::Result<()> {
        self.packer.pack(&self.held, false, self.out)?;
        self.left -= self.held.len() as u64;
        self.held.clear();
        self.packer.flush(self.out)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// Content that is missing.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // An empty stream has no last content that ends it.
        if self.has_ended { Ok(()) } else { self.packer.pack(&[], true, self.out) }
    }
}

impl Write for Packing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = (self.left - self.held.len() as u64).min((self.piece - self.held.len()) as u64);
        let count = bytes.len().min(missing as usize);
        if count == 0 && !bytes.is_empty() {
            return Err(damaged());
        }
        self.held.extend_from_slice(&bytes[..count]);
        let is_last = self.held.len() as u64 == self.left;
        if is_last || self.held.len() == self.piece {
            self.packer.pack(&self.held, is_last, self.out)?;
            self.left -= self.held.len() as u64;
            self.held.clear();
            self.has_ended = is_last;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs the next `plain` bytes of a view.
///
/// # Errors
/// [`RecipeError::Damaged`] for a setting that no packer takes; else errors of reading and writing.
pub(super) fn pack(
    setting: &Setting,
    plain: u64,
    view: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<(), RecipeError> {
    let unknown = RecipeError::Damaged("a setting is out of bounds");
    let mut packing = Packing::new(setting, plain, out).ok_or(unknown)?;
    let mut piece = vec![0; PIECE];
    let mut left = plain;
    while left > 0 {
        let count = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        view.read_exact(&mut piece[..count])?;
        packing.write_all(&piece[..count])?;
        left -= count as u64;
    }
    Ok(packing.finish()?)
}

/// Range of a file, read as a file of its own.
pub(super) struct Part<'a> {
    pub(super) file: &'a dyn ReadAt,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl ReadAt for Part<'_> {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.end - self.start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buf, self.start + offset)
    }
}

/// File with bytes behind those that lie in its parts.
pub(super) struct Whole<'a> {
    pub(super) file: &'a dyn ReadAt,
    /// Range of the file's bytes in `file`.
    pub(super) range: Range<u64>,
    pub(super) behind: Vec<u8>,
}

impl<'a> Whole<'a> {
    /// Reads the bytes behind the parts of a packed file, if there are any. The first file counts.
    pub(super) fn of(packed: &'a Packed<'a>) -> io::Result<Self> {
        let mut behind = Vec::new();
        if let Some(tail) = packed.files.first().and_then(|file| file.tail.as_ref()) {
            behind.resize(tail.end.saturating_sub(tail.start) as usize, 0);
            packed.artifact.read_exact_at(&mut behind, tail.start)?;
        }
        Ok(Self { file: packed, range: 0..packed.len(), behind })
    }
}

impl ReadAt for Whole<'_> {
    fn len(&self) -> u64 {
        self.range.end - self.range.start + self.behind.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = self.range.end - self.range.start;
        let before = len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (own, behind) = buf.split_at_mut(before);
        if !own.is_empty() {
            self.file.read_exact_at(own, self.range.start + offset)?;
        }
        let from = offset.saturating_sub(len) as usize;
        let bytes = self.behind.get(from..).and_then(|bytes| bytes.get(..behind.len()));
        behind.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Writer that remembers whether the writer below failed: a decoder's errors and those of its
/// output look alike.
pub(super) struct Sink<'s> {
    below: &'s mut dyn Write,
    pub(super) failed: Option<()>,
}

impl<'s> Sink<'s> {
    pub(super) fn new(below: &'s mut dyn Write) -> Self {
        Self { below, failed: None }
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.below.write(bytes).inspect_err(|_| self.failed = Some(()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.below.flush()
    }
}

/// Writer of at most `left` bytes; counts those written. What is too long fails.
pub(super) struct Bounded<'s> {
    below: &'s mut dyn Write,
    left: u64,
    pub(super) written: u64,
    /// Whether bytes were refused.
    pub(super) is_full: bool,
}

impl<'s> Bounded<'s> {
    pub(super) fn new(below: &'s mut dyn Write, left: u64) -> Self {
        Self { below, left, written: 0, is_full: false }
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            self.is_full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = self.below.write(&bytes[..count])?;
        self.left -= count as u64;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.below.flush()
    }
}

pub(super) fn damaged() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
