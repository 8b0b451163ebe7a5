//! Sets of chunk ids, or of positions, as sorted, disjoint, inclusive ranges.
//!
//! The new chunks of a release have consecutive ids, so a few ranges describe any number of wanted
//! or held chunks (RFC 7574 §4.3.2, addressing method 4: 64-bit chunk ranges, end inclusive).

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use crate::{ChunkId, Position};

/// A set of chunk ids.
pub type ChunkRanges = Ranges<ChunkId>;

/// A number of which [`Ranges`] makes sets; implemented by [`ChunkId`] and [`Position`].
pub trait Ordinal: Copy + sealed::Number {}

impl<T: Copy + sealed::Number> Ordinal for T {}

mod sealed {
    use super::{ChunkId, Position};

    /// Conversion of a newtype from and to its number.
    pub trait Number {
        fn of(number: u64) -> Self;
        fn number(self) -> u64;
    }

    impl Number for ChunkId {
        fn of(number: u64) -> Self {
            Self(number)
        }

        fn number(self) -> u64 {
            self.0
        }
    }

    impl Number for Position {
        fn of(number: u64) -> Self {
            Self(number)
        }

        fn number(self) -> u64 {
            self.0
        }
    }
}

/// A set of numbers of one kind, called ids below whatever they number.
///
/// A lookup costs O(log ranges). An insert or a removal also moves the ranges behind it (16 bytes
/// each), which is cheap for the hundreds of ranges of a swarm. Ranges from a peer are added by
/// [`Ranges::extend`], in O(ranges of both).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<T> {
    /// Start and inclusive end, ascending. No two ranges touch.
    ranges: Vec<(u64, u64)>,
    len: u64,
    of: PhantomData<T>,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { ranges: Vec::new(), len: 0, of: PhantomData }
    }
}

impl<T: Ordinal> Ranges<T> {
    /// Returns the empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of ids.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set has no id.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the number of ranges. Each takes 16 bytes on the wire.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Returns the ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = RangeInclusive<T>> + '_ {
        self.ranges.iter().map(|&(start, end)| T::of(start)..=T::of(end))
    }

    /// Returns every id in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = T> + '_ {
        self.ranges.iter().flat_map(|&(start, end)| (start..=end).map(T::of))
    }

    /// Returns the index of the first range that ends at `id` or later.
    fn at(&self, id: u64) -> usize {
        self.ranges.partition_point(|&(_, end)| end < id)
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: T) -> bool {
        self.contains_range(&(id..=id))
    }

    /// Whether the whole of `range` is in the set.
    pub fn contains_range(&self, range: &RangeInclusive<T>) -> bool {
        let found = self.ranges.get(self.at(range.start().number()));
        found.is_some_and(|&(start, end)| start <= range.start().number() && end >= range.end().number())
    }

    /// Adds one id; false if the set had it already.
    pub fn insert(&mut self, id: T) -> bool {
        let before = self.len;
        self.insert_range(id..=id);
        self.len > before
    }

    /// Adds a range; an empty one changes nothing.
    pub fn insert_range(&mut self, range: RangeInclusive<T>) {
        let (start, end) = (range.start().number(), range.end().number());
        if start > end {
            return;
        }
        // All ranges that overlap or touch the new one become one range.
        let from = self.at(start.saturating_sub(1));
        let behind = self.ranges[from..].partition_point(|&(s, _)| s <= end.saturating_add(1));
        let touched = &self.ranges[from..from + behind];
        let (Some(&(first, _)), Some(&(_, last))) = (touched.first(), touched.last()) else {
            self.ranges.insert(from, (start, end));
            self.len += end - start + 1;
            return;
        };
        self.len -= touched.iter().map(|&(s, e)| e - s + 1).sum::<u64>();
        let whole = (start.min(first), end.max(last));
        self.ranges[from] = whole;
        self.ranges.drain(from + 1..from + behind);
        self.len += whole.1 - whole.0 + 1;
    }

    /// Adds a range that starts no earlier than the last one.
    fn push(&mut self, start: u64, end: u64) {
        if let Some((_, last)) = self.ranges.last_mut()
            && start <= last.saturating_add(1)
        {
            if end > *last {
                self.len += end - *last;
                *last = end;
            }
            return;
        }
        self.ranges.push((start, end));
        self.len += end - start + 1;
    }

    /// Removes one id; false if the set did not have it.
    pub fn remove(&mut self, id: T) -> bool {
        let id = id.number();
        let at = self.at(id);
        let Some(&(start, end)) = self.ranges.get(at).filter(|(start, _)| *start <= id) else {
            return false;
        };
        match (start == id, end == id) {
            (true, true) => {
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at].0 += 1,
            (false, true) => self.ranges[at].1 -= 1,
            (false, false) => {
                self.ranges[at].1 = id - 1;
                self.ranges.insert(at + 1, (id + 1, end));
            }
        }
        self.len -= 1;
        true
    }

    /// Adds all of `other`. Costs O(ranges of both).
    pub fn extend(&mut self, other: &Self) {
        if self.is_empty() {
            return self.clone_from(other);
        }
        if other.range_count() <= 2 {
            return other.iter().for_each(|range| self.insert_range(range));
        }
        let ranges = Vec::with_capacity(self.range_count() + other.range_count());
        let mut out = Self { ranges, len: 0, of: PhantomData };
        let (mut left, mut right) = (&self.ranges[..], &other.ranges[..]);
        while let (Some(l), Some(r)) = (left.first(), right.first()) {
            let (next, rest) = if l.0 <= r.0 { (l, &mut left) } else { (r, &mut right) };
            out.push(next.0, next.1);
            *rest = &rest[1..];
        }
        left.iter().chain(right).for_each(|&(start, end)| out.push(start, end));
        *self = out;
    }

    /// Returns the ids in both sets. Costs O(ranges of both).
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::new();
        self.overlaps(other, |start, end| {
            out.push(start, end);
            true
        });
        out
    }

    /// Whether any id is in both sets.
    pub fn intersects(&self, other: &Self) -> bool {
        let mut found = false;
        self.overlaps(other, |_, _| {
            found = true;
            false
        });
        found
    }

    /// Calls `each` with every range of ids in both sets, in ascending order, until `each` returns
    /// false.
    fn overlaps(&self, other: &Self, mut each: impl FnMut(u64, u64) -> bool) {
        let (mut left, mut right) = (&self.ranges[..], &other.ranges[..]);
        while let (Some(&(ls, le)), Some(&(rs, re))) = (left.first(), right.first()) {
            let (start, end) = (ls.max(rs), le.min(re));
            if start <= end && !each(start, end) {
                return;
            }
            if le < re {
                left = &left[1..];
            } else {
                right = &right[1..];
            }
        }
    }

    /// Returns the ids in this set that are not in `other`. Costs O(ranges of both).
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let mut cuts = &other.ranges[..];
        for &(start, end) in &self.ranges {
            let mut start = start;
            let mut rest = true;
            while let Some(&(cs, ce)) = cuts.first() {
                if ce < start {
                    cuts = &cuts[1..];
                    continue;
                }
                if cs > end {
                    break;
                }
                if cs > start {
                    out.push(start, cs - 1);
                }
                if ce >= end {
                    // Keep this cut: later ranges of `self` may overlap it too.
                    rest = false;
                    break;
                }
                start = ce + 1;
                cuts = &cuts[1..];
            }
            if rest {
                out.push(start, end);
            }
        }
        out
    }

    /// Removes up to `count` of the lowest ids and returns them.
    pub fn take_first(&mut self, count: u64) -> Self {
        let mut out = Self::new();
        let mut whole = 0;
        for (start, end) in &mut self.ranges {
            let Some(most) = (count - out.len).checked_sub(1) else { break };
            let last = (*end).min(start.saturating_add(most));
            out.push(*start, last);
            if last < *end {
                *start = last + 1;
                break;
            }
            whole += 1;
        }
        self.ranges.drain(..whole);
        self.len -= out.len;
        out
    }

    /// Returns the `n`-th id, counted from zero in ascending order; `None` if the set has fewer.
    pub fn nth(&self, mut n: u64) -> Option<T> {
        for &(start, end) in &self.ranges {
            let len = end - start + 1;
            if n < len {
                return Some(T::of(start + n));
            }
            n -= len;
        }
        None
    }

    /// Removes up to `count` ids and returns them: the lowest from `from` on, then the lowest below
    /// `from`.
    pub fn take_from(&mut self, from: T, count: u64) -> Self {
        let from = from.number();
        let at = self.at(from);
        let mut above = Self { ranges: self.ranges.split_off(at), len: 0, of: PhantomData };
        if let Some((start, _)) = above.ranges.first_mut()
            && *start < from
        {
            self.ranges.push((*start, from - 1));
            *start = from;
        }
        above.len = above.ranges.iter().map(|&(start, end)| end - start + 1).sum();
        self.len -= above.len;
        let mut out = above.take_first(count);
        out.extend(&self.take_first(count - out.len));
        self.extend(&above);
        out
    }
}

impl<T: Ordinal> FromIterator<T> for Ranges<T> {
    fn from_iter<I: IntoIterator<Item = T>>(ids: I) -> Self {
        ids.into_iter().map(|id| id..=id).collect()
    }
}

impl<T: Ordinal> FromIterator<RangeInclusive<T>> for Ranges<T> {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<T>>>(ranges: I) -> Self {
        let mut out = Self::new();
        // Ranges that come out of order. They may be many, so they are sorted once at the end.
        let mut late = Vec::new();
        for range in ranges {
            let (start, end) = (range.start().number(), range.end().number());
            if start > end {
                continue;
            }
            if out.ranges.last().is_none_or(|last| last.0 <= start) {
                out.push(start, end);
            } else {
                late.push((start, end));
            }
        }
        if !late.is_empty() {
            late.sort_unstable();
            let mut sorted = Self::new();
            late.into_iter().for_each(|(start, end)| sorted.push(start, end));
            out.extend(&sorted);
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
            let mut either = ranges.clone();
            either.extend(&second);
            well_formed(&either);
            prop_assert_eq!(set(&either), model.union(&second_model).copied().collect());
            prop_assert_eq!(ranges.intersects(&second), !both.is_empty());
            prop_assert_eq!(&model.iter().rev().map(|id| ChunkId(*id)).collect::<ChunkRanges>(), &ranges);
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
