//! zstd frames (RFC 8878), and the library called as the tool `zstd` calls it.

use std::io::{self, Write};

use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

use super::coder::{Decoded, Packer, Sink, damaged};
use super::scan::Peek;
use crate::cut::ReadAt;
use crate::patch::view::error::RecipeError;
use crate::patch::view::reader::Reader;
use crate::proto::{put_varint, unzigzag, zigzag};

pub(super) const MAGIC: u32 = 0xFD2F_B528;

/// First magic number of frames that hold no content; the low four bits are free.
const SKIPPABLE: u32 = 0x184D_2A50;

/// Log2 of the longest window: that of level 22, with which Linux packs itself.
const WINDOW_BITS_MAX: u8 = 27;

/// Bytes read and written at once.
const PIECE: usize = 128 << 10;

/// Most content that is packed in one call, bytes: the call holds all of it.
const AT_ONCE_MAX: u64 = 16 << 20;

/// Content of the first block of a frame, bytes. All ways to call the packer make the same first
/// block, so that one trial of a level stands for all of them.
pub(super) const TRIAL: u64 = 128 << 10;

/// Levels, the likeliest first. The negative ones are those of `--fast` with small numbers.
const LEVELS: [i8; 29] = [
    3, 19, 9, 22, 1, 6, 15, 12, 18, 10, 16, 17, 2, 4, 5, 7, 8, 11, 13, 14, 20, 21, -1, -2, -3, -4, -5, -6, -7,
];

/// Log2 of window, chains and hashes of the levels 0 to 22 for content of more than 256 KiB; 0
/// stands for the negative levels (zstd 1.5, `clevels.h`).
const SIZES: [(u8, u8, u8); 23] = [
    (19, 12, 13),
    (19, 13, 14),
    (20, 15, 16),
    (21, 16, 17),
    (21, 18, 18),
    (21, 18, 19),
    (21, 18, 19),
    (21, 19, 20),
    (21, 19, 20),
    (22, 20, 21),
    (22, 21, 22),
    (22, 21, 22),
    (22, 22, 23),
    (22, 22, 22),
    (22, 22, 23),
    (22, 23, 23),
    (22, 22, 22),
    (23, 23, 22),
    (23, 23, 22),
    (23, 24, 22),
    (25, 25, 23),
    (26, 26, 24),
    (27, 27, 25),
];

const WORKER: u8 = 1;
const END_WITH_CONTENT: u8 = 1 << 1;
const AT_ONCE: u8 = 1 << 2;
const CHECKSUM: u8 = 1 << 3;
const LENGTH: u8 = 1 << 4;
const LONG: u8 = 1 << 5;

/// Settings of the packer of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    level: i8,
    /// Any of the flags above.
    flags: u8,
    /// Log2 of the window; 0 leaves it to the level.
    window_bits: u8,
}

impl Setting {
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        let level = i8::try_from(unzigzag(reader.number()?)).ok().filter(|level| LEVELS.contains(level));
        let level = level.ok_or(RecipeError::Damaged("unknown level"))?;
        let (flags, window_bits) = (reader.expect_byte()?, reader.expect_byte()?);
        let is_window = window_bits == 0 || (10..=WINDOW_BITS_MAX).contains(&window_bits);
        if flags >= 1 << 6 || flags & WORKER != 0 && flags & AT_ONCE != 0 || !is_window {
            return Err(RecipeError::Damaged("a setting is out of bounds"));
        }
        Ok(Self { level, flags, window_bits })
    }

    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_varint(out, zigzag(i64::from(self.level)));
        out.extend_from_slice(&[self.flags, self.window_bits]);
    }

    /// Whether two settings differ in nothing but what the header of a frame says.
    pub(super) fn is_like(self, other: Self) -> bool {
        let stated = CHECKSUM | LENGTH;
        self.level == other.level && self.flags | stated == other.flags | stated
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether all content is given to the packer in one call.
    pub(super) fn at_once(self) -> bool {
        self.has(AT_ONCE)
    }

    /// Returns the setting for a trial: the same, packed block by block.
    pub(super) fn for_trial(self) -> Self {
        Self { flags: self.flags & (CHECKSUM | LENGTH | LONG), ..self }
    }

    /// Memory to pack `plain` bytes, bytes: the tables of the level and the bytes that the library
    /// holds, which are the window, or some jobs and what they made.
    pub(super) fn memory(self, plain: u64) -> u64 {
        let (window, mut chains, mut hashes) = SIZES[usize::from(self.level.max(0).unsigned_abs())];
        let window = if self.window_bits > 0 { self.window_bits } else { window };
        if self.has(LENGTH) {
            let bits = u64::BITS - plain.max(1 << 10).leading_zeros();
            (chains, hashes) = (chains.min(bits as u8 + 1), hashes.min(bits as u8 + 1));
        }
        // The table of long matches, which the highest levels have by themselves for the longest
        // windows.
        let is_long = self.has(LONG) || (self.level >= 16 && window >= 27);
        let long = if is_long { 9u64 << window.saturating_sub(4) } else { 0 };
        let tables = (4u64 << chains) + (5 << hashes) + long + (3 << 20);
        let job = 1u64 << (window + 2).clamp(20, 30);
        let held = match (self.has(WORKER), self.has(AT_ONCE)) {
            (true, _) => plain.min(4 * job + (1 << window)) + plain.min(2 * job),
            (_, true) => 2 * plain,
            _ => plain.min(1 << window) + (1 << 20),
        };
        tables + held
    }

    /// Bytes of content packed in a second by one core, about.
    pub(super) fn rate(self) -> u64 {
        match self.level {
            ..=9 => 30_000_000,
            10..=12 => 10_000_000,
            13..=17 => 3_000_000,
            _ => 1_000_000,
        }
    }

    pub(super) fn packer(self, plain: u64) -> Option<Box<dyn Packer>> {
        if self.has(AT_ONCE) && plain > AT_ONCE_MAX {
            return None;
        }
        let mut context = CCtx::try_create()?;
        let mut set = |parameter| context.set_parameter(parameter).ok();
        set(CParameter::CompressionLevel(i32::from(self.level)))?;
        set(CParameter::ChecksumFlag(self.has(CHECKSUM)))?;
        set(CParameter::ContentSizeFlag(self.has(LENGTH)))?;
        if self.window_bits > 0 {
            set(CParameter::WindowLog(u32::from(self.window_bits)))?;
        }
        if self.has(LONG) {
            set(CParameter::EnableLongDistanceMatching(true))?;
        }
        if self.has(WORKER) {
            set(CParameter::NbWorkers(1))?;
        }
        if self.has(LENGTH) {
            context.set_pledged_src_size(Some(plain)).ok()?;
        }
        Some(Box::new(Zstd { context, flags: self.flags, piece: vec![0; PIECE] }))
    }
}

/// Packer. Its thread, where it has one, is the library's: other bytes come out without it.
struct Zstd {
    context: CCtx<'static>,
    flags: u8,
    piece: Vec<u8>,
}

impl Zstd {
    fn run(&mut self, plain: &[u8], end: ZSTD_EndDirective, out: &mut dyn Write) -> io::Result<()> {
        let mut input = InBuffer::around(plain);
        loop {
            let mut output = OutBuffer::around(&mut self.piece[..]);
            let left = self.context.compress_stream2(&mut output, &mut input, end).map_err(|_| damaged())?;
            let made = output.pos();
            out.write_all(&self.piece[..made])?;
            let is_done = match end {
                ZSTD_EndDirective::ZSTD_e_continue => input.pos() == plain.len(),
                _ => left == 0,
            };
            if is_done {
                return Ok(());
            }
        }
    }
}

impl Packer for Zstd {
    fn pack(&mut self, plain: &[u8], is_last: bool, out: &mut dyn Write) -> io::Result<()> {
        if self.flags & AT_ONCE != 0 && is_last {
            let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
            self.context.compress2(&mut packed, plain).map_err(|_| damaged())?;
            return out.write_all(&packed);
        }
        if is_last && self.flags & END_WITH_CONTENT != 0 {
            return self.run(plain, ZSTD_EndDirective::ZSTD_e_end, out);
        }
        self.run(plain, ZSTD_EndDirective::ZSTD_e_continue, out)?;
        if is_last { self.run(&[], ZSTD_EndDirective::ZSTD_e_end, out) } else { Ok(()) }
    }

    fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.run(&[], ZSTD_EndDirective::ZSTD_e_flush, out)
    }
}

/// Returns the memory to unpack a frame with this window, bytes.
pub(super) fn unpack_memory(window_bits: u8) -> u64 {
    (1 << window_bits) + (1 << 20)
}

/// Reads log2 of a window.
pub(super) fn take_window(reader: &mut Reader<'_>) -> Result<u8, RecipeError> {
    let bits = reader.expect_byte()?;
    if (10..=WINDOW_BITS_MAX).contains(&bits) {
        Ok(bits)
    } else {
        Err(RecipeError::Damaged("its window is too long"))
    }
}

/// Contents of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Log2 of the window; 0 if the window is the content.
    window_bits: u8,
    has_length: bool,
    has_checksum: bool,
}

impl Frame {
    /// Log2 of the window, or of what stands for it in a frame of `plain` bytes.
    pub(super) fn window_bits_of(self, plain: u64) -> u8 {
        let bits = u64::BITS - plain.leading_zeros();
        if self.window_bits == 0 { (bits as u8).clamp(10, WINDOW_BITS_MAX) } else { self.window_bits }
    }

    /// Log2 of the longest window, where the length of the content is not known.
    pub(super) fn window_bits_max(self) -> u8 {
        if self.window_bits == 0 { WINDOW_BITS_MAX } else { self.window_bits }
    }

    /// Returns the settings that may have made the frame of `plain` bytes, the likeliest first:
    /// with a worker, as `zstd` has packed since 1.5, then in one call and in many.
    pub(super) fn settings(self, plain: u64) -> Vec<Setting> {
        let stated = if self.has_length { LENGTH } else { 0 } | if self.has_checksum { CHECKSUM } else { 0 };
        let ends: &[u8] = if self.has_length {
            &[WORKER | END_WITH_CONTENT, AT_ONCE, END_WITH_CONTENT, 0]
        } else {
            &[WORKER, 0, WORKER | END_WITH_CONTENT]
        };
        let of_level = |level: i8| SIZES[usize::from(level.max(0).unsigned_abs())].0;
        // A short content shortens the window, so it says nothing about the level.
        let fits = |level: i8| {
            let natural = of_level(level);
            self.window_bits == 0
                || self.window_bits == natural
                || self.window_bits < natural && self.has_length
        };
        let mut settings = Vec::new();
        for end in ends {
            if end & AT_ONCE != 0 && plain > AT_ONCE_MAX {
                continue;
            }
            let flags = stated | end;
            let usual = LEVELS.into_iter().filter(|level| fits(*level));
            settings.extend(usual.map(|level| Setting { level, flags, window_bits: 0 }));
        }
        // `--long`, which sets a window of 128 MiB, or one that is no level's.
        let is_long = self.window_bits == WINDOW_BITS_MAX || !LEVELS.into_iter().any(fits);
        if self.window_bits > 0 && is_long {
            let flags = stated | ends[0] | LONG;
            let long = |level| Setting { level, flags, window_bits: self.window_bits };
            settings.extend(LEVELS.into_iter().map(long));
        }
        settings
    }
}

/// Returns the window of the frame at the start of `head`, or what stands for it.
pub(super) fn window(head: &[u8]) -> Option<u64> {
    let [_, _, _, _, flags, window, ..] = *head else { return None };
    Some(if flags & 0x20 != 0 { 0 } else { u64::from(window >> 3) + 10 })
}

/// Bytes at `at`, as far as zstd knows them.
pub(super) enum Next {
    /// A frame up to this offset.
    Frame(Frame, u64),
    /// A frame without content up to this offset.
    Skippable(u64),
}

/// Reads the headers of the frame and of its blocks at `at`; `None` if there is no whole frame, or
/// one that has no view: it needs a dictionary, or a window above the bound.
pub(super) fn next(file: &mut Peek<'_>, at: u64) -> io::Result<Option<Next>> {
    let Some(head) = file.head::<14>(at)? else { return Ok(None) };
    let number =
        |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
    if number(0) & !0xF == SKIPPABLE {
        let end = at + 8 + u64::from(number(4));
        return Ok((end <= file.len()).then_some(Next::Skippable(end)));
    }
    let flags = head[4];
    let is_single = flags & 0x20 != 0;
    if number(0) != MAGIC || flags & 0x0B != 0 {
        return Ok(None);
    }
    // A window that is no power of two is of another packer.
    if !is_single && head[5] & 7 != 0 {
        return Ok(None);
    }
    let window_bits = if is_single { 0 } else { (head[5] >> 3) + 10 };
    let length = match flags >> 6 {
        0 => u64::from(is_single),
        log => 1 << log,
    };
    if window_bits > WINDOW_BITS_MAX {
        return Ok(None);
    }
    let frame = Frame { window_bits, has_length: length > 0, has_checksum: flags & 4 != 0 };
    let mut at = at + 5 + u64::from(!is_single) + length;
    loop {
        let Some([low, middle, high]) = file.head::<3>(at)? else { return Ok(None) };
        let block = u32::from_le_bytes([low, middle, high, 0]);
        at += 3 + match block >> 1 & 3 {
            1 => 1,
            3 => return Ok(None),
            _ => u64::from(block >> 3),
        };
        if block & 1 != 0 {
            break;
        }
    }
    at += if frame.has_checksum { 4 } else { 0 };
    Ok((at <= file.len()).then_some(Next::Frame(frame, at)))
}

/// Unpacks the frame in `packed` to `sink`, which refuses bytes that are too many.
pub(super) fn unpack(window_bits: u8, packed: &dyn ReadAt, sink: &mut dyn Write) -> io::Result<Decoded> {
    let Some(mut context) = DCtx::try_create() else { return Ok(Decoded::Damaged) };
    let bound = DParameter::WindowLogMax(u32::from(window_bits));
    if context.set_parameter(bound).is_err() {
        return Ok(Decoded::Damaged);
    }
    let (mut at, mut bytes, mut piece) = (0, Vec::new(), vec![0; PIECE]);
    let mut sink = Sink::new(sink);
    while at < packed.len() {
        bytes.resize(PIECE.min(usize::try_from(packed.len() - at).unwrap_or(PIECE)), 0);
        packed.read_exact_at(&mut bytes, at)?;
        at += bytes.len() as u64;
        let mut input = InBuffer::around(&bytes);
        loop {
            let mut output = OutBuffer::around(&mut piece[..]);
            let Ok(left) = context.decompress_stream(&mut output, &mut input) else {
                return Ok(Decoded::Damaged);
            };
            let (made, room) = (output.pos(), output.capacity());
            sink.write_all(&piece[..made])?;
            if left == 0 {
                let is_whole = at == packed.len() && input.pos() == bytes.len();
                return Ok(if is_whole { Decoded::Whole } else { Decoded::Damaged });
            }
            if input.pos() == bytes.len() && made < room {
                break;
            }
        }
    }
    Ok(Decoded::Damaged)
}
