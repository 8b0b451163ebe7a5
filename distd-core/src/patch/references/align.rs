//! Segments of a target whose references differ from those of its base: the part of the encoder
//! that makes moved code and tables of addresses count as equal.

use std::ops::Range;

use super::layout::{Cursor, Layout, beside, moved};
use super::sites::{Kind, Known, x86_field};
use super::{lists, tables};
use crate::patch::matches::{Segment, segments};

/// Bytes of a base or target, and their addresses.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) layout: &'a Layout,
}

/// Part of a target that resembles a part of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) at: usize,
    pub(super) base: usize,
    pub(super) len: usize,
}

impl Copied {
    pub(super) fn shift(&self) -> isize {
        self.base as isize - self.at as isize
    }

    fn range(&self) -> Range<usize> {
        self.at..self.at + self.len
    }
}

/// Bytes of a part that are judged together.
const BLOCK: usize = 256;

/// Shortest gap that is looked into.
const GAP_MIN: usize = 32;

/// Finds the segments of the target.
///
/// Memory: base and target twice, and 4 bytes for each byte of the base.
pub(super) fn align(base: Side<'_>, target: Side<'_>, origin: u64) -> Vec<Segment> {
    if base.layout.extents.is_empty() || target.layout.extents.is_empty() {
        let mut found = segments(base.bytes, target.bytes);
        // An empty target has an empty segment there.
        found.retain(|segment| segment.add + segment.extra > 0);
        return found;
    }
    let (old, new) = (without_references(base), without_references(target));
    let first = copied(&segments(&old, &new));
    let mut parts = without_bad(&first, [&old, &new], [base.bytes, target.bytes]);
    drop((old, new));
    parts.extend(tables::find(base, target, &parts, origin));
    parts.sort_unstable_by_key(|part| part.at);
    let left = |parts: &[Copied]| Gaps::new(parts.iter().map(Copied::range), target.bytes.len());
    parts.extend(lists::find(base, target, &parts, &left(&parts).ranges().collect::<Vec<_>>()));
    // In the gaps that are left, the first pass may have found something.
    for gap in left(&parts).ranges().collect::<Vec<_>>() {
        let from = first.partition_point(|part| part.at + part.len <= gap.start);
        for part in first[from..].iter().take_while(|part| part.at < gap.end) {
            let (start, end) = (part.at.max(gap.start), (part.at + part.len).min(gap.end));
            parts.push(Copied { at: start, base: part.base + (start - part.at), len: end - start });
        }
    }
    joined(parts, target.bytes.len())
}

/// Returns the bytes with zeros in place of the references of code.
fn without_references(side: Side<'_>) -> Vec<u8> {
    let known = Known::new(side.layout, side.bytes.len());
    let mut cursor = Cursor::new(side.layout, side.bytes.len());
    let mut out = side.bytes.to_vec();
    let mut at = 0;
    while at < out.len() {
        let found = x86_field(side.bytes, at).filter(|(kind, value)| {
            let site = cursor.key(at).0;
            match kind {
                Kind::Absolute => holds_address(side.bytes[at - 1]) && known.has(beside(site, *value)),
                _ => known.has(moved(site, value.wrapping_add(4))),
            }
        });
        if found.is_some() {
            out[at..at + 4].fill(0);
            at += 4;
        } else {
            at += 1;
        }
    }
    out
}

/// Whether an instruction may have an address behind this byte: an opcode with an operand of 4
/// bytes or a ModRM or SIB byte.
fn holds_address(before: u8) -> bool {
    before & 0xF8 == 0xC0 || before & 0xC7 == 0x04 || before & 0xC0 == 0x80
}

/// Returns the parts of segments that resemble the base.
pub(super) fn copied(segments: &[Segment]) -> Vec<Copied> {
    let mut at = 0;
    let mut out = Vec::new();
    for segment in segments {
        if segment.add > 0 {
            out.push(Copied { at, base: segment.base, len: segment.add });
        }
        at += segment.add + segment.extra;
    }
    out
}

/// Returns the segments of a target of `target_len` bytes with these parts, which do not overlap.
pub(super) fn joined(mut parts: Vec<Copied>, target_len: usize) -> Vec<Segment> {
    parts.sort_unstable_by_key(|part| part.at);
    let mut out: Vec<Segment> = Vec::new();
    let first = parts.first().map_or(target_len, |part| part.at);
    if first > 0 {
        out.push(Segment { base: 0, add: 0, extra: first });
    }
    for (n, part) in parts.iter().enumerate() {
        let end = parts.get(n + 1).map_or(target_len, |next| next.at);
        let extra = end - part.at - part.len;
        match out.last_mut() {
            Some(last) if last.add > 0 && last.extra == 0 && last.base + last.add == part.base => {
                last.add += part.len;
                last.extra = extra;
            }
            _ => out.push(Segment { base: part.base, add: part.len, extra }),
        }
    }
    out
}

/// Returns the parts without their blocks in which too much differs. These are mostly tables, in
/// which some bytes agree by chance. `plain` are base and target as they are, `masked` without
/// references.
fn without_bad(parts: &[Copied], masked: [&[u8]; 2], plain: [&[u8]; 2]) -> Vec<Copied> {
    let mut out = Vec::new();
    for part in parts {
        let (mut from, mut open) = (0, None::<Copied>);
        while from < part.len {
            let to = ((part.at + from) / BLOCK * BLOCK + BLOCK - part.at).min(part.len);
            let wrong = |[base, target]: [&[u8]; 2]| {
                let old = &base[part.base + from..part.base + to];
                let new = &target[part.at + from..part.at + to];
                old.iter().zip(new).filter(|(old, new)| old != new).count()
            };
            // Code that moved differs in its references alone, a table in most of its entries.
            if wrong(masked) * 5 > to - from || wrong(plain) * 4 > to - from {
                out.extend(open.take());
            } else if let Some(open) = &mut open {
                open.len += to - from;
            } else {
                open = Some(Copied { at: part.at + from, base: part.base + from, len: to - from });
            }
            from = to;
        }
        out.extend(open);
    }
    out
}

/// Ranges that no part covers, one behind the other.
pub(super) struct Gaps {
    /// Place of each range in all of them, and the range.
    starts: Vec<(usize, Range<usize>)>,
    /// Bytes of all ranges.
    pub(super) len: usize,
}

impl Gaps {
    /// Gaps of `len` bytes between ranges that may overlap, except the shortest.
    pub(super) fn new(ranges: impl Iterator<Item = Range<usize>>, len: usize) -> Self {
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.push(len..len);
        let mut gaps = Self { starts: Vec::new(), len: 0 };
        let mut at = 0;
        for range in ranges {
            if range.start >= at + GAP_MIN {
                gaps.starts.push((gaps.len, at..range.start));
                gaps.len += range.start - at;
            }
            at = at.max(range.end);
        }
        gaps
    }

    /// Takes ranges that do not overlap, in order.
    pub(super) fn of(ranges: Vec<Range<usize>>) -> Self {
        let mut gaps = Self { starts: Vec::with_capacity(ranges.len()), len: 0 };
        for range in ranges {
            let len = range.end - range.start;
            gaps.starts.push((gaps.len, range));
            gaps.len += len;
        }
        gaps
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.starts.iter().map(|(_, range)| range.clone())
    }

    /// Returns the place of a byte of the gaps, and the number of bytes from it to the end of its
    /// gap.
    ///
    /// # Panics
    /// If `at` is not below `len`.
    pub(super) fn place(&self, at: usize) -> (usize, usize) {
        let behind = self.starts.partition_point(|(start, _)| *start <= at);
        let (start, range) = &self.starts[behind - 1];
        let place = range.start + (at - start);
        assert!(place < range.end, "a place within the gaps");
        (place, range.end - place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_segments_fill_a_target() {
        let part = |at, base, len| Copied { at, base, len };
        let parts = vec![part(200, 10, 50), part(100, 500, 20), part(250, 60, 50)];
        let segments = joined(parts.clone(), 400);
        let segment = |base, add, extra| Segment { base, add, extra };
        assert_eq!(segments, [segment(0, 0, 100), segment(500, 20, 80), segment(10, 100, 100)]);
        assert_eq!(copied(&segments), [part(100, 500, 20), part(200, 10, 100)]);
        let gaps = Gaps::new(parts.iter().map(Copied::range), 400);
        assert_eq!(gaps.ranges().collect::<Vec<_>>(), [0..100, 120..200, 300..400]);
        assert_eq!(
            (gaps.len, gaps.place(99), gaps.place(100), gaps.place(279)),
            (280, (99, 1), (120, 80), (399, 1))
        );
        assert_eq!(joined(Vec::new(), 0), []);
    }

    #[test]
    fn bad_blocks_are_left_out() {
        let base = vec![1; 1024];
        let mut target = base.clone();
        target[300..400].fill(2);
        let sides = [&base[..], &target[..]];
        let parts = without_bad(&[Copied { at: 0, base: 0, len: 1024 }], sides, sides);
        let part = |at, len| Copied { at, base: at, len };
        assert_eq!(parts, [part(0, 256), part(512, 512)]);
    }
}
