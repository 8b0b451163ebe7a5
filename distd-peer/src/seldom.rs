//! Rate limit for log lines that any peer can cause: one line a minute of each kind, with the
//! number of suppressed ones.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum time between two lines of one key.
const EVERY: Duration = Duration::from_secs(60);

/// Maximum number of keys remembered. A new key beyond it clears all of them.
const KEYS_MAX: usize = 4096;

/// Counts events by key and tells when a line is due.
#[derive(Debug)]
pub struct Seldom<K> {
    last: Mutex<HashMap<K, (Instant, u64)>>,
}

impl<K> Default for Seldom<K> {
    fn default() -> Self {
        Self { last: Mutex::default() }
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Counts one event of `key`. Returns `Some` when a line is due, with the number of events
    /// since the last line, this one included.
    pub fn due(&self, key: K) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= KEYS_MAX && !last.contains_key(&key) {
            last.clear();
        }
        let now = Instant::now();
        match last.get_mut(&key) {
            Some((at, count)) if now.duration_since(*at) < EVERY => {
                *count += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1 + 1),
            None => {
                last.insert(key, (now, 0));
                Some(1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_key_is_one_line_and_hides_no_other_key() {
        let seldom = Seldom::default();
        assert_eq!(seldom.due(1), Some(1));
        assert!((0..1000).all(|_| seldom.due(1).is_none()));
        assert_eq!(seldom.due(2), Some(1));
        if let Some((at, _)) = seldom.last.lock().expect("no holder panics").get_mut(&1) {
            *at -= EVERY;
        }
        assert_eq!(seldom.due(1), Some(1001));
    }
}
