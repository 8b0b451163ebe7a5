//! Approximate matches between a target and a base: the segments of a suffix-array difference.
//!
//! After Colin Percival's "Naive differences of executable code" (2003): an alignment of target and
//! base is kept as long as no exact match elsewhere is clearly better. In a shifted binary most
//! bytes agree, and those that do not (addresses) differ by the same few amounts.

/// Part of the target: `add` bytes that resemble the base from offset `base` on, then `extra` bytes
/// that resemble nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) base: usize,
    pub(super) add: usize,
    pub(super) extra: usize,
}

/// Exact bytes by which a match elsewhere must exceed the current alignment: about the cost of a
/// new segment.
const GAIN_MIN: usize = 8;

/// Length of an exact run from which the current alignment is kept without a search.
const RUN_KEPT: usize = 24;

/// Length above which a segment ends, bytes: to divide a part between two alignments takes 16 bytes
/// of memory for each byte of it. More than any target of a small job.
const SEGMENT_BYTES_MAX: usize = 4 << 20;

/// Splits `target` into segments, from its first byte on.
pub(super) fn segments(base: &[u8], target: &[u8]) -> Vec<Segment> {
    let index = Index::new(base);
    let mut out = Vec::new();
    // The current segment starts at `start` in the target and at `start + shift` in the base.
    let (mut start, mut shift) = (0usize, 0isize);
    let mut at = 0;
    while at < target.len() {
        let aligned = at.checked_add_signed(shift).and_then(|from| base.get(from..)).unwrap_or_default();
        let run = common(aligned, &target[at..]);
        if run >= RUN_KEPT || run == target.len() - at {
            at += run;
            // All of it resembles the base so far.
            if at - start > SEGMENT_BYTES_MAX {
                out.push(segment(start, shift, at, at));
                start = at;
            }
            continue;
        }
        let (place, len) = index.longest(&target[at..]);
        let agreed = aligned.iter().zip(&target[at..at + len]).filter(|(a, b)| a == b).count();
        if len > agreed + GAIN_MIN {
            let place_shift = place as isize - at as isize;
            let (forward, back) = divide(base, target, start..at, shift, place_shift);
            if back > 0 || !out.is_empty() {
                out.push(segment(start, shift, forward, back));
            }
            (start, shift) = (back, place_shift);
            at += len;
        } else {
            at += run.max(1);
        }
    }
    let (forward, _) = divide(base, target, start..target.len(), shift, isize::MAX);
    if start < target.len() || out.is_empty() {
        out.push(segment(start, shift, forward, target.len()));
    }
    out
}

fn segment(start: usize, shift: isize, forward: usize, end: usize) -> Segment {
    // A segment without added bytes uses nothing of the base, so any place will do.
    let base = if forward > start { start.saturating_add_signed(shift) } else { 0 };
    Segment { base, add: forward - start, extra: end - forward }
}

/// Divides `span` between two alignments. Returns the end of `left` and the start of `right`, in
/// order, such that the agreeing bytes exceed the others by the most. The bytes between the two
/// points follow neither alignment.
fn divide(
    base: &[u8],
    target: &[u8],
    span: std::ops::Range<usize>,
    left: isize,
    right: isize,
) -> (usize, usize) {
    let score = |at: usize, shift: isize| match at.checked_add_signed(shift).and_then(|from| base.get(from)) {
        Some(byte) if *byte == target[at] => Some(1i32),
        Some(_) => Some(-1),
        None => None,
    };
    // Best end of `left` at or before each point, with its score.
    let mut ends = Vec::with_capacity(span.len() + 1);
    let (mut sum, mut best) = (0, (0, span.start));
    ends.push(best);
    let mut open = true;
    for at in span.clone() {
        match score(at, left) {
            Some(one) if open => sum += one,
            _ => open = false,
        }
        if open && sum > best.0 {
            best = (sum, at + 1);
        }
        ends.push(best);
    }
    let (mut sum, mut most, mut found) = (0, best.0, (best.1, span.end));
    for at in span.clone().rev() {
        let Some(one) = score(at, right) else { break };
        sum += one;
        let (before, end) = ends[at - span.start];
        if before + sum > most {
            (most, found) = (before + sum, (end, at));
        }
    }
    found
}

fn common(a: &[u8], b: &[u8]) -> usize {
    let blocks =
        a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0).take_while(|(a, b)| a == b).count() * 16;
    blocks + a[blocks..].iter().zip(&b[blocks..]).take_while(|(a, b)| a == b).count()
}

/// Sorted suffixes of a base, and the start of those with each pair of first bytes.
struct Index<'a> {
    base: &'a [u8],
    suffixes: Vec<i32>,
    starts: Vec<u32>,
}

impl<'a> Index<'a> {
    fn new(base: &'a [u8]) -> Self {
        let mut suffixes = vec![0; base.len()];
        divsufsort::sort_in_place(base, &mut suffixes);
        // The first two bytes save sixteen of some twenty-two steps. The last suffix has only one
        // byte and is left out.
        let mut starts = vec![0u32; (1 << 16) + 1];
        for pair in base.windows(2) {
            starts[usize::from(u16::from_be_bytes([pair[0], pair[1]])) + 1] += 1;
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        suffixes.retain(|suffix| *suffix as usize + 1 < base.len());
        Self { base, suffixes, starts }
    }

    /// Returns place in the base and length of the longest match with the start of `wanted`; zeros
    /// if not even two bytes match.
    fn longest(&self, wanted: &[u8]) -> (usize, usize) {
        let [first, second, ..] = wanted else { return (0, 0) };
        let bucket = usize::from(u16::from_be_bytes([*first, *second]));
        let (mut low, mut high) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        let mut best = (0, 0);
        // All suffixes of the range share the bytes that its two ends are known to share with
        // `wanted`.
        let (mut low_len, mut high_len) = (2, 2);
        while low < high {
            let middle = low + (high - low) / 2;
            let place = self.suffixes[middle] as usize;
            let known = low_len.min(high_len);
            let len = known + common(&self.base[place + known..], &wanted[known..]);
            if len > best.1 {
                best = (place, len);
            }
            if len == wanted.len() {
                break;
            }
            let less = self.base.get(place + len).is_none_or(|byte| *byte < wanted[len]);
            if less {
                (low, low_len) = (middle + 1, len);
            } else {
                (high, high_len) = (middle, len);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn segments_cover_the_target_and_stay_in_the_base(
            base in prop::collection::vec(0u8..4, 0..400), target in prop::collection::vec(0u8..4, 0..400),
        ) {
            let segments = segments(&base, &target);
            prop_assert_eq!(segments.iter().map(|s| s.add + s.extra).sum::<usize>(), target.len());
            prop_assert!(segments.iter().all(|s| s.base + s.add <= base.len()));
        }

        #[test]
        fn the_longest_match_is_as_long_as_a_search_finds(
            base in prop::collection::vec(0u8..3, 0..200), wanted in prop::collection::vec(0u8..3, 2..40),
        ) {
            let naive = (0..base.len()).map(|at| common(&base[at..], &wanted)).max().unwrap_or(0);
            let (place, len) = Index::new(&base).longest(&wanted);
            prop_assert_eq!(len, if naive < 2 { 0 } else { naive });
            prop_assert!(len == 0 || base[place..place + len] == wanted[..len]);
        }
    }
}
