//! Alignment of lists of indices of three bytes. Every element differs from the base's by a little,
//! because the listed things are numbered anew, so no two are equal.

use std::ops::Range;

use super::align::{Copied, Side};

/// Largest difference of indices that may belong to the same element.
const NEAR: u32 = 2048;
/// Elements that are compared, and those of them that must be near.
const WINDOW: usize = 24;
const WINDOW_NEAR: usize = 16;
/// Shortest gap that may be such a list.
const GAP_MIN: usize = 4096;
/// Bytes by which an alignment is looked for on either side.
const REACH: isize = 600;
/// Searches in vain before a gap is given up. Each takes some 100 µs.
const SEARCHES_MAX: usize = 2000;
/// Bytes between two searches in vain.
const STEP: usize = 48;

fn index(bytes: &[u8], at: usize) -> Option<u32> {
    let [a, b, c] = *bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes([0, a, b, c]))
}

struct Lists<'a> {
    base: &'a [u8],
    target: &'a [u8],
}

impl Lists<'_> {
    fn is_near(&self, at: usize, old: usize) -> bool {
        match (index(self.target, at), index(self.base, old)) {
            (Some(new), Some(old)) => new != 0 && old != 0 && new.abs_diff(old) < NEAR,
            _ => false,
        }
    }

    /// Number of the next elements that are near; 0 if it is below [`WINDOW_NEAR`].
    fn near(&self, at: usize, old: usize) -> usize {
        let mut missing = 0;
        for n in 0..WINDOW {
            missing += usize::from(!self.is_near(at + 3 * n, old + 3 * n));
            if missing > WINDOW - WINDOW_NEAR {
                return 0;
            }
        }
        WINDOW - missing
    }

    /// Returns the shift near `shift` with which the elements at `at` fit best.
    fn search(&self, at: usize, shift: isize) -> Option<isize> {
        let count = |by: isize| {
            let old = at.checked_add_signed(shift + by)?;
            Some(self.near(at, old)).filter(|count| *count > 0 && self.is_near(at, old))
        };
        let fits = (-REACH..=REACH).filter_map(|by| Some((count(by)?, std::cmp::Reverse(by.abs()), by)));
        fits.max().map(|(_, _, by)| shift + by)
    }
}

/// Finds lists in the gaps of the target, with the alignment of the part before each gap at first.
/// `parts` are ascending.
pub(super) fn find(base: Side<'_>, target: Side<'_>, parts: &[Copied], gaps: &[Range<usize>]) -> Vec<Copied> {
    let lists = Lists { base: base.bytes, target: target.bytes };
    let mut out = Vec::new();
    for gap in gaps.iter().filter(|gap| gap.len() >= GAP_MIN) {
        let before = parts.partition_point(|part| part.at < gap.start);
        let Some(before) = parts[..before].last() else { continue };
        let mut shift = before.shift();
        let (mut at, mut open, mut vain) = (gap.start, None::<Copied>, 0);
        while at + 3 <= gap.end && vain < SEARCHES_MAX {
            let old = at.checked_add_signed(shift).unwrap_or(usize::MAX - REACH as usize);
            if let Some(open) = &mut open
                && lists.is_near(at, old)
                && (lists.near(at, old) > 0 || at + 3 * WINDOW > gap.end)
            {
                open.len += 3;
                at += 3;
                continue;
            }
            out.extend(open.take());
            if let Some(found) = lists.search(at, shift) {
                shift = found;
                let base = at.checked_add_signed(shift).unwrap_or(0);
                open = Some(Copied { at, base, len: 3 });
                at += 3;
            } else {
                vain += 1;
                at += if vain % 3 == 0 { STEP + 1 } else { 1 };
            }
        }
        out.extend(open);
    }
    out
}
