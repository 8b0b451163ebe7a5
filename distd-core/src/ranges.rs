//! Sets of chunk ids as sorted, disjoint, inclusive ranges.
//!
//! The new chunks of a release are numbered in a row, so a few ranges say what is wanted or held however many
//! chunks there are (RFC 7574 §4.3.2, addressing method 4: 64-bit chunk ranges, end inclusive).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::ChunkId;

/// A set of chunk ids.
///
/// Insert, remove and lookup cost O(log ranges) and what they merge or split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkRanges {
    /// Start → inclusive end. No two ranges touch.
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl ChunkRanges {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of ids.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of ranges: what the set costs on the wire, times 16 bytes.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = RangeInclusive<ChunkId>> + '_ {
        self.ranges.iter().map(|(&start, &end)| ChunkId(start)..=ChunkId(end))
    }

    /// Every id in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.ranges.iter().flat_map(|(&start, &end)| (start..=end).map(ChunkId))
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: ChunkId) -> bool {
        self.ranges.range(..=id.0).next_back().is_some_and(|(_, &end)| end >= id.0)
    }

    /// Whether the whole of `range` is in the set.
    pub fn contains_range(&self, range: &RangeInclusive<ChunkId>) -> bool {
        self.ranges.range(..=range.start().0).next_back().is_some_and(|(_, &end)| end >= range.end().0)
    }

    /// Adds one id; false if it was there.
    pub fn insert(&mut self, id: ChunkId) -> bool {
        let before = self.len;
        self.insert_range(id..=id);
        self.len > before
    }

    /// Adds a range; an empty one changes nothing.
    pub fn insert_range(&mut self, range: RangeInclusive<ChunkId>) {
        let (mut start, mut end) = (range.start().0, range.end().0);
        if start > end {
            return;
        }
        // Swallow every range that overlaps or touches.
        let from =
            self.ranges.range(..=start).next_back().map_or(start, |(&s, &e)| {
                if e >= start || e.checked_add(1) == Some(start) { s } else { start }
            });
        let upto = end.saturating_add(1);
        let touched: Vec<(u64, u64)> = self.ranges.range(from..=upto).map(|(&s, &e)| (s, e)).collect();
        for (s, e) in touched {
            self.ranges.remove(&s);
            self.len -= e - s + 1;
            start = start.min(s);
            end = end.max(e);
        }
        self.len += end - start + 1;
        self.ranges.insert(start, end);
    }

    /// Takes one id out; false if it was not there.
    pub fn remove(&mut self, id: ChunkId) -> bool {
        let Some((&start, &end)) = self.ranges.range(..=id.0).next_back() else { return false };
        if end < id.0 {
            return false;
        }
        self.ranges.remove(&start);
        if start < id.0 {
            self.ranges.insert(start, id.0 - 1);
        }
        if id.0 < end {
            self.ranges.insert(id.0 + 1, end);
        }
        self.len -= 1;
        true
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        for range in other.iter() {
            self.insert_range(range);
        }
    }

    /// What is in both. Costs O(ranges of both).
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let (mut left, mut right) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        while let (Some(&(&ls, &le)), Some(&(&rs, &re))) = (left.peek(), right.peek()) {
            let (start, end) = (ls.max(rs), le.min(re));
            if start <= end {
                out.insert_range(ChunkId(start)..=ChunkId(end));
            }
            if le < re {
                left.next()
            } else {
                right.next()
            };
        }
        out
    }

    /// What is here and not in `other`. Costs O(ranges of both).
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let mut cuts = other.ranges.iter().peekable();
        for (&start, &end) in &self.ranges {
            let mut start = start;
            while let Some(&(&cs, &ce)) = cuts.peek() {
                if ce < start {
                    cuts.next();
                    continue;
                }
                if cs > end {
                    break;
                }
                if cs > start {
                    out.insert_range(ChunkId(start)..=ChunkId(cs - 1));
                }
                if ce >= end {
                    // Later ranges of ours may still touch this cut: it stays.
                    start = u64::MAX;
                    break;
                }
                start = ce + 1;
                cuts.next();
            }
            if start <= end && start != u64::MAX {
                out.insert_range(ChunkId(start)..=ChunkId(end));
            }
        }
        out
    }

    /// Takes up to `count` of the lowest ids out and returns them.
    pub fn take_first(&mut self, count: u64) -> Self {
        let mut out = Self::new();
        while out.len < count {
            let Some((start, end)) = self.ranges.pop_first() else { break };
            let last = end.min(start + (count - out.len - 1));
            self.len -= end - start + 1;
            if last < end {
                self.ranges.insert(last + 1, end);
                self.len += end - last;
            }
            out.insert_range(ChunkId(start)..=ChunkId(last));
        }
        out
    }
}

impl ChunkRanges {
    /// The `n`-th id, counted from zero in ascending order.
    pub fn nth(&self, mut n: u64) -> Option<ChunkId> {
        for (&start, &end) in &self.ranges {
            let len = end - start + 1;
            if n < len {
                return Some(ChunkId(start + n));
            }
            n -= len;
        }
        None
    }

    /// Takes up to `count` ids out and returns them: the lowest from `from` on, then the lowest below it.
    pub fn take_from(&mut self, from: ChunkId, count: u64) -> Self {
        let below: Self = match from.0.checked_sub(1) {
            Some(last) => self.intersection(&[ChunkId(0)..=ChunkId(last)].into_iter().collect()),
            None => Self::new(),
        };
        let mut above = self.difference(&below);
        let mut out = above.take_first(count);
        let mut below_left = below;
        out.extend(&below_left.take_first(count - out.len));
        above.extend(&below_left);
        *self = above;
        out
    }
}

impl FromIterator<ChunkId> for ChunkRanges {
    fn from_iter<I: IntoIterator<Item = ChunkId>>(ids: I) -> Self {
        let mut out = Self::new();
        for id in ids {
            out.insert(id);
        }
        out
    }
}

impl FromIterator<RangeInclusive<ChunkId>> for ChunkRanges {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<ChunkId>>>(ranges: I) -> Self {
        let mut out = Self::new();
        for range in ranges {
            out.insert_range(range);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &ChunkRanges) -> BTreeSet<u64> {
        ranges.ids().map(|id| id.0).collect()
    }

    fn well_formed(ranges: &ChunkRanges) {
        let mut last: Option<u64> = None;
        for r in ranges.iter() {
            assert!(last.is_none_or(|l| l + 1 < r.start().0), "ranges touch");
            assert!(r.start() <= r.end());
            last = Some(r.end().0);
        }
        assert_eq!(ranges.len(), set(ranges).len() as u64);
    }

    proptest! {
        #[test]
        fn operations_agree_with_a_plain_set(
            ops in prop::collection::vec((0u64..200, 0u64..20, 0u8..3), 0..60),
            other in prop::collection::vec((0u64..200, 0u64..20), 0..30),
            take in 0u64..100,
        ) {
            let (mut ranges, mut model) = (ChunkRanges::new(), BTreeSet::new());
            for (start, len, op) in ops {
                match op {
                    0 => { ranges.insert_range(ChunkId(start)..=ChunkId(start + len)); model.extend(start..=start + len); }
                    1 => prop_assert_eq!(ranges.remove(ChunkId(start)), model.remove(&start)),
                    _ => prop_assert_eq!(ranges.insert(ChunkId(start)), model.insert(start)),
                }
                well_formed(&ranges);
                prop_assert_eq!(&set(&ranges), &model);
                prop_assert_eq!(ranges.contains(ChunkId(start)), model.contains(&start));
            }
            let second: ChunkRanges = other.iter().map(|&(s, l)| ChunkId(s)..=ChunkId(s + l)).collect();
            let second_model = set(&second);
            let (both, less) = (ranges.intersection(&second), ranges.difference(&second));
            well_formed(&both);
            well_formed(&less);
            prop_assert_eq!(set(&both), model.intersection(&second_model).copied().collect());
            prop_assert_eq!(set(&less), model.difference(&second_model).copied().collect());
            let mut rotated = ranges.clone();
            let from_there = rotated.take_from(ChunkId(take), take);
            well_formed(&rotated);
            let order = model.iter().filter(|id| **id >= take).chain(model.iter().filter(|id| **id < take));
            prop_assert_eq!(set(&from_there), order.copied().take(take as usize).collect());
            prop_assert_eq!(from_there.len() + rotated.len(), ranges.len());
            prop_assert_eq!(ranges.nth(take).map(|id| id.0), model.iter().nth(take as usize).copied());
            let first = ranges.take_first(take);
            well_formed(&ranges);
            prop_assert_eq!(set(&first), model.iter().copied().take(take as usize).collect());
            prop_assert_eq!(set(&ranges), model.iter().copied().skip(take as usize).collect());
        }
    }

    #[test]
    fn the_largest_id_does_not_overflow() {
        let mut ranges = ChunkRanges::new();
        ranges.insert_range(ChunkId(u64::MAX - 1)..=ChunkId(u64::MAX));
        assert!(ranges.contains(ChunkId(u64::MAX)));
        assert_eq!(ranges.len(), 2);
    }
}
