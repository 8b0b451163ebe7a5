//! Cache with a bounded total weight; the entries used least recently leave first.

use std::collections::BTreeMap;

/// Entries by key, each with a weight, for instance its bytes.
///
/// An operation takes the logarithm of the number of entries. The cache has no clock and no lock:
/// "recently" is the order of the calls.
#[derive(Debug)]
pub struct Lru<K, V> {
    /// Tick of the last use, weight and value.
    entries: BTreeMap<K, (u64, u64, V)>,
    /// Keys by the tick of their last use.
    order: BTreeMap<u64, K>,
    tick: u64,
    weight: u64,
    weight_max: u64,
}

impl<K: Ord + Clone, V> Lru<K, V> {
    /// Makes an empty cache for entries of `weight_max` together.
    pub const fn new(weight_max: u64) -> Self {
        Self { entries: BTreeMap::new(), order: BTreeMap::new(), tick: 0, weight: 0, weight_max }
    }

    /// Returns the value of `key`, which counts as used now.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let (used, _, value) = self.entries.get_mut(key)?;
        self.tick += 1;
        self.order.remove(used);
        self.order.insert(self.tick, key.clone());
        *used = self.tick;
        Some(value)
    }

    /// Returns the values, in no particular order. None of them counts as used.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values().map(|(_, _, value)| value)
    }

    /// Stores a value, in place of an earlier one of the same key. Returns what left: the earlier
    /// value, and the entries used least recently as long as the weight is above its bound. A value
    /// that is heavier than the bound leaves at once.
    pub fn put(&mut self, key: K, value: V, weight: u64) -> Vec<(K, V)> {
        let mut gone: Vec<(K, V)> = self.remove(&key).map(|value| (key.clone(), value)).into_iter().collect();
        self.tick += 1;
        self.weight = self.weight.saturating_add(weight);
        self.order.insert(self.tick, key.clone());
        self.entries.insert(key, (self.tick, weight, value));
        while self.weight > self.weight_max
            && let Some(key) = self.order.first_key_value().map(|(_, key)| key.clone())
        {
            gone.extend(self.remove(&key).map(|value| (key, value)));
        }
        gone
    }

    /// Returns the value of `key`, which counts as used now; `make` makes one if there is none.
    pub fn get_or_put(&mut self, key: K, weight: u64, make: impl FnOnce() -> V) -> V
    where
        V: Clone,
    {
        if let Some(value) = self.get(&key) {
            return value.clone();
        }
        let value = make();
        self.put(key, value.clone(), weight);
        value
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (used, weight, value) = self.entries.remove(key)?;
        self.order.remove(&used);
        self.weight -= weight;
        Some(value)
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the weight of all entries together.
    pub fn weight(&self) -> u64 {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_entry_used_least_recently_leaves_first() {
        let mut cache = Lru::new(3);
        for key in [1, 2, 3] {
            assert!(cache.put(key, key * 10, 1).is_empty());
        }
        assert_eq!(cache.get(&1), Some(&10));
        assert_eq!(cache.put(4, 40, 1), [(2, 20)]);
        assert_eq!(cache.put(1, 11, 2), [(1, 10), (3, 30)]);
        assert_eq!((cache.get(&1).copied(), cache.get(&4).copied(), cache.weight()), (Some(11), Some(40), 3));
        assert_eq!(cache.put(5, 50, 9), [(1, 11), (4, 40), (5, 50)], "heavier than the bound");
        assert!(cache.is_empty() && cache.weight() == 0);
        assert_eq!(cache.get_or_put(6, 1, || 60), 60);
        assert_eq!(cache.get_or_put(6, 1, || unreachable!("it is there")), 60);
    }

    proptest! {
        #[test]
        fn it_holds_what_a_list_in_order_of_use_would_hold(calls in prop::collection::vec((0u8..12, 0u64..6, any::<bool>()), 0..200)) {
            let mut cache = Lru::new(20);
            let mut list: Vec<(u8, u64)> = Vec::new();
            for (key, weight, puts) in calls {
                let at = list.iter().position(|(known, _)| *known == key);
                if puts {
                    at.map(|at| list.remove(at));
                    list.push((key, weight));
                    while list.iter().map(|(_, weight)| weight).sum::<u64>() > 20 {
                        list.remove(0);
                    }
                    cache.put(key, weight, weight);
                } else {
                    let held = at.map(|at| list.remove(at));
                    list.extend(held);
                    prop_assert_eq!(cache.get(&key).copied(), held.map(|(_, weight)| weight));
                }
                prop_assert_eq!(cache.len(), list.len());
                prop_assert_eq!(cache.weight(), list.iter().map(|(_, weight)| weight).sum::<u64>());
                let order: Vec<u8> = cache.order.values().copied().collect();
                prop_assert_eq!(order, list.iter().map(|(key, _)| *key).collect::<Vec<_>>());
            }
        }
    }
}
