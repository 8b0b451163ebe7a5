//! [`Places`]: admission to a limited number of places, shared fairly by key.
//!
//! Goals: no key can keep others out by taking all places; the place that is given away is the
//! oldest of the key with most places. Non-goals: queues and a clock; closing the connection that
//! lost its place, which is the caller's.
//!
//! Example with three places, at most two for each key: A, A and B are admitted. Another A takes
//! the place of the first A. A C takes the place of the older A, because A has more places than C
//! would have. Another B, with A, B and C admitted, finds no key with more places than B. It may
//! only take the place of the B before it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::time::Timestamp;

/// A taken place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceId(u64);

/// Outcome of the arrival of a connection, or of anything else that wants a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The arrival has this place.
    In(PlaceId),
    /// The arrival has the first place; the holder of the second place has lost it.
    InsteadOf(PlaceId, PlaceId),
    /// The arrival gets no place.
    Full,
}

/// A fixed number of places, shared by key: an address prefix or a node.
#[derive(Debug)]
pub struct Places<K> {
    max: usize,
    /// How long a place is safe from arrivals of its own key, so that a burst does not displace
    /// itself.
    safe: Duration,
    next: u64,
    taken: usize,
    /// Taken places of each key, the oldest first.
    keys: BTreeMap<K, VecDeque<(PlaceId, Timestamp)>>,
}

impl<K: Ord + Clone> Places<K> {
    /// Makes `max` places. Each is safe from arrivals of its own key for the time `safe`.
    pub fn new(max: usize, safe: Duration) -> Self {
        Self { max, safe, next: 0, taken: 0, keys: BTreeMap::new() }
    }

    /// Returns the number of taken places.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Returns the number of places that `key` has.
    pub fn taken_by(&self, key: &K) -> usize {
        self.keys.get(key).map_or(0, VecDeque::len)
    }

    /// An arrival of `key`, which may have `key_max` places, at `now`.
    pub fn handle_arrival(&mut self, now: Timestamp, key: K, key_max: usize) -> Admission {
        let own = self.taken_by(&key);
        let victim = if own >= key_max.min(self.max) {
            Some(key.clone())
        } else if self.taken >= self.max {
            let most = self.keys.iter().max_by_key(|(_, places)| places.len());
            let Some((most, count)) = most.map(|(key, places)| (key.clone(), places.len())) else {
                return Admission::Full;
            };
            if count > own + 1 {
                Some(most)
            } else if own > 0 {
                // No key has more places, but `key` may still replace its own oldest.
                Some(key.clone())
            } else {
                return Admission::Full;
            }
        } else {
            None
        };
        let Some(victim) = victim else { return Admission::In(self.take(now, key)) };
        let Some((oldest, since)) = self.keys.get(&victim).and_then(|places| places.front()).copied() else {
            return Admission::Full;
        };
        if victim == key && now.since(since) < self.safe {
            return Admission::Full;
        }
        self.handle_left(&victim, oldest);
        Admission::InsteadOf(self.take(now, key), oldest)
    }

    fn take(&mut self, now: Timestamp, key: K) -> PlaceId {
        self.next += 1;
        self.taken += 1;
        let id = PlaceId(self.next);
        self.keys.entry(key).or_default().push_back((id, now));
        id
    }

    /// Frees a place of `key`. Nothing changes if the place was given away before.
    pub fn handle_left(&mut self, key: &K, id: PlaceId) {
        let Some(places) = self.keys.get_mut(key) else { return };
        if let Some(at) = places.iter().position(|(place, _)| *place == id) {
            places.remove(at);
            self.taken -= 1;
        }
        if places.is_empty() {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAFE: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    #[test]
    fn the_key_with_most_places_makes_room_and_a_burst_does_not_displace_itself() {
        let mut places = Places::new(3, SAFE);
        let Admission::In(first) = places.handle_arrival(at(0), 'a', 2) else { panic!("room") };
        let Admission::In(second) = places.handle_arrival(at(0), 'a', 2) else { panic!("room") };
        assert_eq!(places.handle_arrival(at(1), 'a', 2), Admission::Full, "both are young");
        let Admission::InsteadOf(third, gone) = places.handle_arrival(at(2), 'a', 2) else { panic!("old") };
        assert_eq!(gone, first);
        assert!(matches!(places.handle_arrival(at(2), 'b', 2), Admission::In(_)));
        let Admission::InsteadOf(_, gone) = places.handle_arrival(at(2), 'c', 2) else {
            panic!("a has most")
        };
        assert_eq!(gone, second);
        assert_eq!(places.handle_arrival(at(2), 'd', 2), Admission::Full, "each has one");
        assert_eq!(places.handle_arrival(at(2), 'b', 2), Admission::Full, "its own is young");
        places.handle_left(&'a', third);
        places.handle_left(&'a', third);
        assert_eq!(places.taken(), 2);
        assert!(matches!(places.handle_arrival(at(2), 'd', 2), Admission::In(_)));
    }

    proptest! {
        /// After any arrivals and departures the bounds hold, and a key without a place gets one
        /// unless no key has two.
        #[test]
        fn bounds_hold_and_a_new_key_gets_a_place_if_any_key_has_two(
            events in proptest::collection::vec((0_u8..5, 0_u64..4, any::<bool>()), 1..200),
        ) {
            let mut places = Places::new(8, Duration::ZERO);
            let mut held: Vec<(u8, PlaceId)> = Vec::new();
            let mut now = 0;
            for (key, later, leaves) in events {
                now += later;
                if leaves && !held.is_empty() {
                    let (key, id) = held.remove(usize::from(key) % held.len());
                    places.handle_left(&key, id);
                    continue;
                }
                let own = places.taken_by(&key);
                let most = (0..5).map(|k| places.taken_by(&k)).max().unwrap_or(0);
                match places.handle_arrival(at(now), key, 4) {
                    Admission::In(id) => held.push((key, id)),
                    Admission::InsteadOf(id, gone) => {
                        held.retain(|(_, other)| *other != gone);
                        held.push((key, id));
                    }
                    Admission::Full => prop_assert!(own == 0 && most <= 1),
                }
                prop_assert!(places.taken() <= 8 && places.taken() == held.len());
                prop_assert!((0..5).all(|k| places.taken_by(&k) <= 4));
            }
        }
    }
}
