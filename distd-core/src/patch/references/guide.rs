//! Map of addresses of the base to addresses of the target.

use std::collections::BTreeMap;

use super::layout::{EXTENTS_MAX, Key, Layout, Stretch, moved};
use crate::patch::matches::Segment;

/// Addresses that moved by one distance.
#[derive(Clone, Copy, Debug)]
struct Run {
    from: Key,
    to: Key,
    shift: u64,
}

/// Map of addresses: what the segments say, and what earlier references said.
#[derive(Clone, Debug, Default)]
pub(super) struct Guide {
    /// Ascending, apart from each other.
    runs: Vec<Run>,
    /// Shifts of single addresses.
    learned: BTreeMap<Key, u64>,
    /// Most addresses that are learned; each takes some 50 bytes.
    learned_max: usize,
}

/// State of a guide before it learned an address.
pub(super) type Undo = (Key, Option<u64>);

impl Guide {
    /// Map that the segments make, of a base and a target with these layouts and lengths; `None` if
    /// the map has more parts than segments and layouts explain: a segment that goes through many
    /// short extents again and again has a part for each of them.
    pub(super) fn new(
        segments: &[Segment],
        base: (&Layout, usize),
        target: (&Layout, usize),
    ) -> Option<Self> {
        let (bases, targets) = (base.0.stretches(base.1), target.0.stretches(target.1));
        let find = |stretches: &[Stretch], at: usize| {
            let behind = stretches.partition_point(|stretch| stretch.at <= at);
            let stretch = stretches[..behind].last().filter(|stretch| at < stretch.end)?;
            Some((moved(stretch.key, (at - stretch.at) as u64), stretch.end - at))
        };
        let runs_max = segments.len() + 2 * EXTENTS_MAX;
        let mut runs = Vec::new();
        let mut at = 0;
        for segment in segments {
            let mut done = 0;
            while done < segment.add {
                let places = (find(&bases, segment.base + done), find(&targets, at + done));
                let (Some((from, old_left)), Some((to, new_left))) = places else { break };
                let len = (segment.add - done).min(old_left).min(new_left);
                if runs.len() == runs_max {
                    return None;
                }
                runs.push(Run { from, to: from.saturating_add(len as u64), shift: to.wrapping_sub(from) });
                done += len;
            }
            at += segment.add + segment.extra;
        }
        Some(Self::of(runs))
    }

    /// Returns the map from the target to the base. It has nothing of what the guide learned.
    pub(super) fn inverse(&self) -> Self {
        let swap = |run: &Run| Run {
            from: run.from.wrapping_add(run.shift),
            to: run.to.wrapping_add(run.shift),
            shift: run.shift.wrapping_neg(),
        };
        Self::of(self.runs.iter().map(swap).filter(|run| run.from < run.to).collect())
    }

    /// Sorts runs and takes them apart: where two have an address, the longer one keeps it.
    fn of(mut runs: Vec<Run>) -> Self {
        runs.sort_by_key(|run| (run.from, run.to));
        let mut kept: Vec<Run> = Vec::with_capacity(runs.len());
        for mut run in runs {
            if let Some(last) = kept.last_mut()
                && run.from < last.to
            {
                if run.to - run.from > last.to - last.from {
                    last.to = run.from;
                } else {
                    run.from = last.to;
                }
            }
            if run.from < run.to {
                kept.push(run);
            }
        }
        kept.retain(|run| run.from < run.to);
        Self { runs: kept, learned: BTreeMap::new(), learned_max: 0 }
    }

    /// Returns the map, which now learns up to `max` addresses.
    pub(super) fn learning(mut self, max: usize) -> Self {
        self.learned_max = max;
        self
    }

    /// Returns the key in the target that belongs to a key in the base. An address between runs
    /// moves like the nearest run, or learned address, before it.
    pub(super) fn find(&self, old: Key) -> Key {
        let learned = self.learned.range(..=old).next_back().map(|(at, shift)| (*at, *shift));
        if let Some((at, shift)) = learned
            && at == old
        {
            return old.wrapping_add(shift);
        }
        let behind = self.runs.partition_point(|run| run.from <= old);
        let run = self.runs[..behind].last();
        let shift = match (run, learned) {
            (Some(run), Some((at, shift))) if run.to <= old && run.to < at => shift,
            (Some(run), _) => run.shift,
            (None, Some((_, shift))) => shift,
            (None, None) => 0,
        };
        old.wrapping_add(shift)
    }

    /// Returns the key that belongs to `old` by what was learned of keys from `floor` on alone.
    pub(super) fn find_learned(&self, old: Key, floor: Key) -> Key {
        let near = self.learned.range(floor..=old).next_back();
        near.map_or(old, |(_, shift)| old.wrapping_add(*shift))
    }

    /// Notes where a reference of the target leads that led to `old` in the base. Returns what
    /// [`undo`](Self::undo) needs; `None` when the guide is full.
    pub(super) fn learn(&mut self, old: Key, new: Key) -> Option<Undo> {
        let room = self.learned.len() < self.learned_max;
        room.then(|| (old, self.learned.insert(old, new.wrapping_sub(old))))
    }

    pub(super) fn undo(&mut self, (old, before): Undo) {
        match before {
            Some(shift) => drop(self.learned.insert(old, shift)),
            None => drop(self.learned.remove(&old)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Extent;
    use super::*;

    #[test]
    fn addresses_follow_segments_and_what_was_learned() {
        let segments = [Segment { base: 10, add: 20, extra: 5 }, Segment { base: 50, add: 10, extra: 0 }];
        let none = Layout::default();
        let mut guide = Guide::new(&segments, (&none, 100), (&none, 35)).expect("few parts").learning(1);
        let find = |guide: &Guide, keys: &[Key]| keys.iter().map(|key| guide.find(*key)).collect::<Vec<_>>();
        assert_eq!(find(&guide, &[0, 10, 29, 30, 50, 59, 70]), [0, 0, 19, 20, 25, 34, 45]);
        let undo = guide.learn(40, 41).expect("room");
        assert_eq!(find(&guide, &[39, 40, 49, 50]), [29, 41, 50, 25]);
        assert_eq!(guide.inverse().find(30), 55);
        assert_eq!(guide.learn(45, 41), None, "it is full");
        guide.undo(undo);
        assert_eq!(guide.find(40), 30);
    }

    #[test]
    fn a_map_of_many_short_extents_is_refused() {
        // Each segment goes through a thousand extents of one byte.
        let extents: Vec<Extent> =
            (0..1000).map(|at| Extent { at, file: 0, address: at as u64 * 0x100 }).collect();
        let layout = Layout::of(extents, 1000);
        let none = Layout::default();
        let segments = |count: usize| vec![Segment { base: 0, add: 1000, extra: 0 }; count];
        let make = |count: usize| Guide::new(&segments(count), (&layout, 1000), (&none, count * 1000));
        assert!(make(10).is_some());
        assert!(make(100).is_none());
    }
}
