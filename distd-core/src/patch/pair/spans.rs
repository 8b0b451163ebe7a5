//! Both releases as spans of chunks, and the choice of spans as base: around hits of anchors,
//! between held chunks, at a relative position.

use std::ops::Range;

use super::anchors::Hit;
use super::ranges::{self, bytes_of};
use super::{Pairing, State, Unit};
use crate::ChunkHash;
use crate::cut::{ReadAt, Regions};

/// Place of one chunk in an artifact. A list of spans covers the artifact without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Offset of the first byte.
    pub offset: u64,
    /// Length in bytes, never zero.
    pub len: u32,
    /// Hash of the raw bytes.
    pub hash: ChunkHash,
}

/// One of the two releases: its bytes, regions and chunks.
///
/// Content unpacked from an artifact ([`view`](crate::patch::view)) is appended to the artifact:
/// its bytes, regions and chunks follow those of the artifact, and its regions are named with
/// [`NAME_SEPARATOR`](crate::cut::NAME_SEPARATOR).
#[derive(Debug)]
pub struct Side<'a, R: ReadAt + ?Sized> {
    /// Bytes of the artifact and of the views behind it.
    pub bytes: &'a R,
    /// Regions with their name hints.
    pub regions: &'a Regions,
    /// Chunks, at most `u32::MAX`, covering all regions; a region border is a chunk border.
    pub chunks: &'a [ChunkSpan],
}

impl<R: ReadAt + ?Sized> Clone for Side<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: ReadAt + ?Sized> Copy for Side<'_, R> {}

/// Release to which a range of chunks belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Of {
    /// The old release.
    Old,
    /// The new release; the chunks are held or rebuilt by an earlier job.
    New,
}

/// Consecutive chunks that serve as base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Release to which the chunks belong.
    pub of: Of,
    /// Indices of the chunks in artifact order.
    pub chunks: Range<u32>,
}

/// Bytes added on either side of the old bytes between two held chunks, because chunk borders hide
/// where exactly the two files differ.
pub(super) const AROUND_MARGIN: u64 = 64 << 10;

/// Bytes added on either side of a chunk in which an anchor was found.
pub(super) const ANCHOR_MARGIN: u64 = 32 << 10;

impl<R: ReadAt + ?Sized, S: ReadAt + ?Sized> Pairing<'_, R, S> {
    /// Returns `take` bytes of some parts, starting `skip` bytes into them, as whole chunks.
    pub(super) fn slice(&self, of: Of, parts: &[Range<u32>], mut skip: u64, mut take: u64) -> Vec<Span> {
        let chunks = self.chunks(of);
        let mut out = Vec::new();
        for part in parts {
            let bytes = bytes_of(chunks, part.clone());
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let start = chunks[part.start as usize].offset + skip;
            let end = (start + take).min(start - skip + bytes);
            take -= end - start;
            skip = 0;
            let window = ranges::covering(chunks, start, end);
            out.push(Span { of, chunks: window.start.max(part.start)..window.end.min(part.end) });
            if take == 0 {
                break;
            }
        }
        out
    }

    /// Returns the parts of a span that can serve as base now.
    pub(super) fn usable(&self, span: Span) -> Vec<Span> {
        if span.of == Of::Old {
            return vec![span];
        }
        let mut out: Vec<Span> = Vec::new();
        for index in span.chunks {
            if self.state[index as usize] == State::Absent {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.chunks.end == index => last.chunks.end += 1,
                _ => out.push(Span { of: Of::New, chunks: index..index + 1 }),
            }
        }
        out
    }

    /// Returns the old bytes between the held chunks before and behind the unit, if `within`
    /// contains both.
    pub(super) fn around(&self, unit: &Unit, len: u64, within: &[Span]) -> Option<Vec<Span>> {
        let region = self.new_files.chunks_of_region(unit.region);
        let old_of = |index: u32| {
            let hash = self.new.chunks[index as usize].hash;
            let from = self.old_by_hash.partition_point(|(other, _)| *other < hash);
            self.old_by_hash[from..]
                .iter()
                .take_while(|(other, _)| *other == hash)
                .map(|(_, chunk)| *chunk)
                .find(|chunk| covers(within, &Hit { of: Of::Old, chunk: *chunk }))
        };
        let before = unit.chunks.start.checked_sub(1).filter(|index| region.contains(index)).and_then(old_of);
        let behind = Some(unit.chunks.end).filter(|index| region.contains(index)).and_then(old_of);
        let (before, behind) = (before?, behind?);
        let bytes = (before < behind).then(|| bytes_of(self.old.chunks, before..behind + 1))?;
        if bytes > 4 * len + AROUND_MARGIN {
            return None;
        }
        let start = self.old.chunks[before as usize].offset.saturating_sub(AROUND_MARGIN);
        let end = self.old.chunks[behind as usize].offset + AROUND_MARGIN;
        let window = ranges::covering(self.old.chunks, start, end);
        Some(
            within
                .iter()
                .filter(|span| span.of == Of::Old)
                .map(|span| Span {
                    of: Of::Old,
                    chunks: span.chunks.start.max(window.start)..span.chunks.end.min(window.end),
                })
                .filter(|span| !span.chunks.is_empty())
                .collect(),
        )
    }

    /// Returns runs of bytes around hits, those with the most hits first, up to `budget` bytes.
    pub(super) fn windows(&self, hits: &[Hit], budget: u64) -> Vec<Span> {
        let mut windows: Vec<(usize, Of, u64, u64)> = Vec::new();
        for hit in hits {
            let chunk = &self.chunks(hit.of)[hit.chunk as usize];
            let start = chunk.offset.saturating_sub(ANCHOR_MARGIN);
            let end = chunk.offset + u64::from(chunk.len) + ANCHOR_MARGIN;
            match windows.last_mut() {
                Some((count, of, from, to)) if *of == hit.of && start <= *to && end - *from <= budget => {
                    *count += 1;
                    *to = end;
                }
                _ => windows.push((1, hit.of, start, end)),
            }
        }
        windows.sort_unstable_by_key(|(count, of, start, _)| (std::cmp::Reverse(*count), *of, *start));
        let (mut left, mut out) = (budget, Vec::new());
        for (_, of, start, end) in windows {
            if end - start <= left {
                left -= end - start;
                let chunks = ranges::covering(self.chunks(of), start, end);
                out.extend(self.usable(Span { of, chunks }));
            }
        }
        out
    }

    pub(super) fn chunks(&self, of: Of) -> &[ChunkSpan] {
        match of {
            Of::Old => self.old.chunks,
            Of::New => self.new.chunks,
        }
    }
}

/// Returns the value that is to `other` as `part` is to `whole`.
pub(super) fn scaled(part: u64, whole: u64, other: u64) -> u64 {
    (u128::from(part) * u128::from(other) / u128::from(whole.max(1))) as u64
}

/// Returns whether a hit lies in one of the spans.
pub(super) fn covers(spans: &[Span], hit: &Hit) -> bool {
    spans.iter().any(|span| span.of == hit.of && span.chunks.contains(&hit.chunk))
}
