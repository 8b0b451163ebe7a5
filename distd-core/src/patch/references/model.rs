//! The stream: what comes before the bytes, and the bytes of each segment.

use std::io;

use super::coder::{Bit, Coder, Number};
use super::layout::{Cursor, Key, Layout, moved};
use super::limits::{segments_max, table_bits};
use super::literal::{Around, CLASSES, Literals};
use super::sites::{Guides, KINDS, Kind, Mode, Site};
use crate::patch::PatchError;
use crate::patch::matches::Segment;

/// Bytes of the target for which one mode counts.
pub(super) const BLOCK: usize = 512;

/// Bytes that one bit stands for where everything is as predicted.
const GROUP: usize = 16;

/// Bytes that the decoder gathers before it hands them on.
const OUT_BYTES: usize = 1 << 18;

/// Bytes before a literal that its models look at.
const BEFORE: usize = 8;

/// Classes of literals.
const DIFFERS: u8 = 0;
const FIELD: u8 = 1;
const EXTRA: u8 = 2;

const _: () = assert!(EXTRA as usize + 1 == CLASSES);

/// Codes the segments of a target.
///
/// # Errors
/// [`PatchError`] unless the segments make a target of `target_len` bytes and lie in the base.
pub(super) fn code_segments<C: Coder>(
    coder: &mut C,
    segments: &[Segment],
    base_len: usize,
    target_len: usize,
) -> Result<Vec<Segment>, PatchError> {
    let mut numbers: [Number; 3] = Default::default();
    let (mut stays, mut goes_along) = ([Bit::default(); 4], [Bit::default(); 4]);
    let count = numbers[0].code(coder, segments.len() as u64);
    if count > segments_max(target_len).min(target_len) as u64 {
        return Err(PatchError::Damaged("too many segments"));
    }
    let mut out = Vec::new();
    let (mut expected, mut sum, mut last_extra, mut context) = (0i64, 0usize, 0i64, 0);
    let none = Segment { base: 0, add: 0, extra: 0 };
    for n in 0..count as usize {
        let wanted = segments.get(n).copied().unwrap_or(none);
        let left = target_len - sum;
        let add = numbers[1].code(coder, wanted.add as u64);
        let extra = numbers[2].code(coder, wanted.extra as u64);
        let lengths = usize::try_from(add).ok().zip(usize::try_from(extra).ok());
        let (add, extra) = lengths
            .filter(|(add, extra)| add.checked_add(*extra).is_some_and(|both| (1..=left).contains(&both)))
            .ok_or(PatchError::Length(target_len))?;
        // The base goes on where the segment before ended, or behind as many bytes as were extra.
        let seek = wanted.base as i64 - expected;
        let seek = if coder.bit(seek == 0, &mut stays[context]) {
            context = 1;
            0
        } else if coder.bit(seek == last_extra, &mut goes_along[context]) {
            context = 2;
            last_extra
        } else {
            context = 3;
            numbers[0].signed(coder, seek)
        };
        let base = expected.checked_add(seek).and_then(|base| usize::try_from(base).ok());
        let base = base
            .filter(|base| base.checked_add(add).is_some_and(|end| end <= base_len))
            .ok_or(PatchError::Damaged("a segment lies outside the base"))?;
        out.push(Segment { base, add, extra });
        (expected, last_extra) = ((base + add) as i64, extra as i64);
        sum += add + extra;
    }
    if sum == target_len { Ok(out) } else { Err(PatchError::Length(target_len)) }
}

/// Adaptive probabilities of everything but literals.
struct Models {
    modes: [[Bit; 16]; 16],
    hits: [[Bit; 64]; KINDS],
    copies: [Bit; KINDS],
    fields: [[Bit; 16]; KINDS],
    equal: Vec<[Bit; 256]>,
    groups: [[Bit; 64]; 16],
    literals: Literals,
}

/// Coding of the bytes of a target, in one direction.
pub(super) struct Stream<'a, C> {
    coder: C,
    base: &'a [u8],
    /// The target; empty for a decoder.
    target: &'a [u8],
    /// Modes to code, in order; empty for a decoder.
    modes: &'a [Mode],
    guides: Guides,
    models: Models,
    sink: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    /// Bytes made and not handed on yet.
    out: Vec<u8>,
    /// Place in the target of the first byte of `out`.
    out_at: usize,
    /// Number of modes coded so far.
    mode_count: usize,
    mode: Mode,
    /// Whether each of the last bytes differed; the newest in the lowest bit.
    differed: u32,
    /// Bytes since something differed from its prediction.
    calm: usize,
    /// Whether each of the last groups was as predicted.
    calm_groups: usize,
    /// Whether each of the last fields of a kind was as predicted.
    hit: [u8; KINDS],
}

/// Error of a stream.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The payload is damaged.
    Patch(PatchError),
    /// The sink failed.
    Sink(io::Error),
}

impl From<PatchError> for StreamError {
    fn from(error: PatchError) -> Self {
        Self::Patch(error)
    }
}

impl<'a, C: Coder> Stream<'a, C> {
    /// A stream of `target_len` bytes.
    pub(super) fn new(
        coder: C,
        base: &'a [u8],
        (target, modes): (&'a [u8], &'a [Mode]),
        target_len: usize,
        guides: Guides,
        sink: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Self {
        let models = Models {
            modes: Default::default(),
            hits: [[Bit::default(); 64]; KINDS],
            copies: Default::default(),
            fields: [[Bit::default(); 16]; KINDS],
            equal: vec![[Bit::default(); 256]; Mode::ALL.len() * 4],
            groups: [[Bit::default(); 64]; 16],
            literals: Literals::new(table_bits(target_len)),
        };
        Self {
            coder,
            base,
            target,
            modes,
            guides,
            models,
            sink,
            out: Vec::new(),
            out_at: 0,
            mode_count: 0,
            mode: Mode::Plain,
            differed: 0,
            calm: 0,
            calm_groups: 0,
            hit: [0; KINDS],
        }
    }

    /// Codes all segments; returns the coder.
    pub(super) fn run(mut self, segments: &[Segment], mut cursors: [Cursor; 2]) -> Result<C, StreamError> {
        for segment in segments {
            self.copy(segment, &mut cursors)?;
            for _ in 0..segment.extra {
                let byte = self.literal(None, EXTRA);
                self.out.push(byte);
                if self.out.len() >= OUT_BYTES {
                    self.flush(BEFORE)?;
                }
            }
        }
        self.flush(0)?;
        Ok(self.coder)
    }

    fn place(&self) -> usize {
        self.out_at + self.out.len()
    }

    /// Hands the bytes on, except the last `kept`.
    fn flush(&mut self, kept: usize) -> Result<(), StreamError> {
        let count = self.out.len().saturating_sub(kept);
        (self.sink)(&self.out[..count]).map_err(StreamError::Sink)?;
        self.out.drain(..count);
        self.out_at += count;
        Ok(())
    }

    /// Byte of the target, for an encoder.
    fn actual(&self, at: usize) -> u8 {
        self.target.get(at).copied().unwrap_or(0)
    }

    /// Whether the target has these bytes next, for an encoder.
    fn comes(&self, bytes: &[u8]) -> bool {
        let at = self.place();
        self.target.get(at..at + bytes.len()) == Some(bytes)
    }

    /// Codes the part of a segment that resembles the base.
    fn copy(&mut self, segment: &Segment, [olds, news]: &mut [Cursor; 2]) -> Result<(), StreamError> {
        let start = self.place();
        let end = start + segment.add;
        let mut mode_until = start;
        while self.place() < end {
            if self.out.len() >= OUT_BYTES {
                self.flush(BEFORE)?;
            }
            let place = self.place();
            if place >= mode_until {
                self.code_mode()?;
                mode_until = (place / BLOCK + 1) * BLOCK;
            }
            let at = segment.base + (place - start);
            let ((old, old_left), (new, new_left)) = (olds.key(at), news.key(place));
            let len = old_left.min(new_left).min(mode_until.min(end) - place);
            self.stretch(Here { at, left: end - place, old, new }, len);
        }
        if mode_until < end {
            // A field that ends with the segment went over the border of a last, short block, for
            // which an encoder has listed a mode. A decoder has no list.
            self.mode_count += 1;
        }
        Ok(())
    }

    /// Codes `len` bytes, or a field more.
    fn stretch(&mut self, here: Here, len: usize) {
        let mut done = 0;
        while done < len {
            if self.calm >= GROUP && len - done >= GROUP {
                let count = self.group(here.after(done));
                if count > 0 {
                    done += count;
                    continue;
                }
            }
            done += self.element(here.after(done));
        }
    }

    fn site(&self, here: Here) -> Option<Site> {
        let site = self.guides.site(self.mode, self.base, here.at, here.old, here.new)?;
        (site.len <= here.left).then_some(site)
    }

    /// Codes whether the next bytes are all as predicted; returns their number if they are.
    fn group(&mut self, here: Here) -> usize {
        let (mut bytes, mut count) = ([0; GROUP + 8], 0);
        if self.mode == Mode::Plain {
            bytes[..GROUP].copy_from_slice(&self.base[here.at..here.at + GROUP]);
            count = GROUP;
        }
        while count < GROUP {
            let next = here.after(count);
            if let Some(site) = self.site(next) {
                bytes[count..count + site.len].copy_from_slice(site.wanted());
                count += site.len;
            } else {
                bytes[count] = self.base[next.at];
                count += 1;
            }
        }
        let bytes = &bytes[..count];
        let actual = self.comes(bytes);
        let calm = (self.calm / GROUP).ilog2().min(7) as usize;
        let context = calm << 3 | self.calm_groups & 7;
        let is_calm = self.coder.bit(actual, &mut self.models.groups[self.mode as usize][context]);
        self.calm_groups = self.calm_groups << 1 | usize::from(is_calm);
        if !is_calm {
            self.calm = 0;
            return 0;
        }
        self.out.extend_from_slice(bytes);
        self.calm += count;
        self.differed = 0;
        count
    }

    /// Codes a field or a byte; returns its length.
    fn element(&mut self, here: Here) -> usize {
        if let Some(site) = self.site(here) {
            self.field(&site, here);
            return site.len;
        }
        let (place, old) = (self.place(), self.base[here.at]);
        let context = (self.differed & 0xFF) as usize;
        let model = &mut self.models.equal[self.mode as usize * 4 + place % 4][context];
        let actual = self.target.get(place) == Some(&old);
        let equal = self.coder.bit(actual, model);
        self.differed = self.differed << 1 | u32::from(!equal);
        self.calm = if equal { self.calm + 1 } else { 0 };
        let byte = if equal { old } else { self.literal(Some(old), DIFFERS) };
        self.out.push(byte);
        1
    }

    /// Codes the mode of the next block.
    fn code_mode(&mut self) -> Result<(), PatchError> {
        let wanted = self.modes.get(self.mode_count).copied().unwrap_or(Mode::Plain) as u8;
        self.mode_count += 1;
        let contexts = &mut self.models.modes[self.mode as usize];
        let mut node = 1usize;
        for at in (0..4).rev() {
            let bit = self.coder.bit(wanted >> at & 1 == 1, &mut contexts[node]);
            node = node << 1 | usize::from(bit);
        }
        let mode = Mode::ALL.get(node & 0xF).ok_or(PatchError::Damaged("unknown kind of content"))?;
        self.mode = *mode;
        Ok(())
    }

    fn literal(&mut self, predicted: Option<u8>, class: u8) -> u8 {
        let tail = &self.out[self.out.len().saturating_sub(BEFORE)..];
        let before = tail.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let actual = self.actual(self.place());
        self.models.literals.code(&mut self.coder, actual, Around { before, predicted, class })
    }

    /// Codes a field that the map predicts: as predicted, as in the base, or otherwise.
    fn field(&mut self, site: &Site, here: Here) {
        let old = &self.base[here.at..here.at + site.len];
        let kind = site.kind as usize;
        let same = old == site.wanted();
        let context = usize::from(self.hit[kind] & 31) << 1 | usize::from(same);
        let actual = self.comes(site.wanted());
        let hit = self.coder.bit(actual, &mut self.models.hits[kind][context]);
        self.hit[kind] = self.hit[kind] << 1 | u8::from(hit);
        if hit {
            self.out.extend_from_slice(site.wanted());
            self.calm += site.len;
            return;
        }
        self.calm = 0;
        let actual = self.comes(old);
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..site.len];
        if !same && self.coder.bit(actual, &mut self.models.copies[kind]) {
            bytes.copy_from_slice(old);
        } else {
            self.other(site, bytes);
        }
        self.out.extend_from_slice(bytes);
        self.guides.learn(site, bytes, here.new);
    }

    /// Codes a field that is neither as predicted nor as in the base. Its high bytes come first,
    /// because they are as predicted more often.
    fn other(&mut self, site: &Site, bytes: &mut [u8]) {
        let (place, kind) = (self.place(), site.kind as usize);
        let mut equal = true;
        for n in 0..site.len {
            let n = if site.kind == Kind::Index24 { n } else { site.len - 1 - n };
            let (wanted, actual) = (site.predicted[n], self.actual(place + n));
            let model = &mut self.models.fields[kind][n << 1 | usize::from(equal)];
            equal = self.coder.bit(actual == wanted, model);
            bytes[n] = if equal {
                wanted
            } else {
                let before = u64::from(wanted) | (n as u64) << 8 | (kind as u64) << 16 | 1 << 31;
                let around = Around { before, predicted: Some(wanted), class: FIELD };
                self.models.literals.code(&mut self.coder, actual, around)
            };
        }
    }
}

/// Place in a copied part.
#[derive(Clone, Copy)]
struct Here {
    /// Place in the base.
    at: usize,
    /// Bytes to the end of the part.
    left: usize,
    /// Keys of the places in base and target.
    old: Key,
    new: Key,
}

impl Here {
    fn after(self, bytes: usize) -> Self {
        let by = bytes as u64;
        let (at, left) = (self.at + bytes, self.left - bytes);
        Self { at, left, old: moved(self.old, by), new: moved(self.new, by) }
    }
}

/// Returns the cursors over the keys of a base and a target.
pub(super) fn cursors(base: (&Layout, usize), target: (&Layout, usize)) -> [Cursor; 2] {
    [Cursor::new(base.0, base.1), Cursor::new(target.0, target.1)]
}
