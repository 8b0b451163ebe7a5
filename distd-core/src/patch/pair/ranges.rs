//! Sets of chunk indices, and the bytes they cover.

use std::ops::Range;

use super::ChunkSpan;

/// Set of chunk indices as ordered ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IndexRanges(Vec<Range<u32>>);

impl IndexRanges {
    pub(super) fn insert(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|held| held.end < range.start);
        let last = first + self.0[first..].partition_point(|held| held.start <= range.end);
        let merged = self.0[first..last]
            .iter()
            .fold(range, |all, held| all.start.min(held.start)..all.end.max(held.end));
        self.0.splice(first..last, [merged]);
    }

    pub(super) fn bytes(&self, chunks: &[ChunkSpan]) -> u64 {
        self.0.iter().map(|range| bytes_of(chunks, range.clone())).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u32>> {
        self.0.iter()
    }

    /// Joins ranges with at most `gap_max` bytes between them.
    pub(super) fn fill_gaps(&mut self, chunks: &[ChunkSpan], gap_max: u64) {
        let mut filled: Vec<Range<u32>> = Vec::with_capacity(self.0.len());
        for range in self.0.drain(..) {
            match filled.last_mut() {
                Some(last) if bytes_of(chunks, last.end..range.start) <= gap_max => last.end = range.end,
                _ => filled.push(range),
            }
        }
        self.0 = filled;
    }
}

impl IntoIterator for IndexRanges {
    type Item = Range<u32>;
    type IntoIter = std::vec::IntoIter<Range<u32>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Raw bytes of a range of chunks.
pub(super) fn bytes_of(chunks: &[ChunkSpan], range: Range<u32>) -> u64 {
    match chunks.get(range.start as usize..range.end as usize) {
        Some([first, .., last]) => last.offset + u64::from(last.len) - first.offset,
        Some([only]) => u64::from(only.len),
        _ => 0,
    }
}

/// Returns the chunks that have a byte in `start..end`.
pub(super) fn covering(chunks: &[ChunkSpan], start: u64, end: u64) -> Range<u32> {
    let first = chunks.partition_point(|chunk| chunk.offset + u64::from(chunk.len) <= start);
    let last = chunks.partition_point(|chunk| chunk.offset < end);
    first as u32..last.max(first) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::ChunkHash;

    proptest! {
        #[test]
        fn ranges_behave_like_a_set_of_indices(
            inserts in prop::collection::vec((0u32..40, 0u32..6), 0..20), gap in 0u64..50,
        ) {
            let chunks: Vec<_> = (0..50)
                .map(|n| ChunkSpan { offset: n * 10, len: 10, hash: ChunkHash([0; 32]) })
                .collect();
            let (mut ranges, mut model) = (IndexRanges::default(), BTreeSet::new());
            for (start, len) in inserts {
                ranges.insert(start..start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(ranges.bytes(&chunks), model.len() as u64 * 10);
            prop_assert_eq!(ranges.clone().into_iter().flatten().collect::<BTreeSet<_>>(), model.clone());
            ranges.fill_gaps(&chunks, gap);
            let filled: Vec<_> = ranges.into_iter().collect();
            prop_assert!(filled.windows(2).all(|two| u64::from(two[1].start - two[0].end) * 10 > gap));
            prop_assert!(model.iter().all(|index| filled.iter().any(|range| range.contains(index))));
        }
    }
}
