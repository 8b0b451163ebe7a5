//! Unpacked chunks used last.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::db::{Location, PackId};

/// Raw bytes held at most: the bases of a few neighbouring jobs, which are mostly the same chunks.
const CACHE_BYTES_MAX: usize = 64 << 20;

/// Pack, and first byte in it.
pub(super) type Key = (PackId, u64);

/// The raw bytes of chunks, by place; shared by both releases and all jobs.
#[derive(Debug, Default)]
pub(super) struct ChunkCache(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    chunks: HashMap<Key, (u64, Arc<[u8]>)>,
    /// The one used longest ago first.
    order: BTreeMap<u64, Key>,
    tick: u64,
    bytes: usize,
}

pub(super) fn key(at: &Location) -> Key {
    (at.pack, at.offset)
}

impl ChunkCache {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        // Nothing is left half-done inside the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<[u8]>> {
        let held = &mut *self.held();
        let (used, chunk) = held.chunks.get_mut(&key)?;
        held.order.remove(used);
        held.tick += 1;
        *used = held.tick;
        held.order.insert(held.tick, key);
        Some(chunk.clone())
    }

    pub(super) fn put(&self, key: Key, chunk: Arc<[u8]>) {
        let held = &mut *self.held();
        held.tick += 1;
        held.bytes += chunk.len();
        held.order.insert(held.tick, key);
        if let Some((used, before)) = held.chunks.insert(key, (held.tick, chunk)) {
            held.order.remove(&used);
            held.bytes -= before.len();
        }
        while held.bytes > CACHE_BYTES_MAX
            && let Some((_, oldest)) = held.order.pop_first()
        {
            if let Some((_, gone)) = held.chunks.remove(&oldest) {
                held.bytes -= gone.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_and_the_bytes_are_bounded() {
        let cache = ChunkCache::default();
        let key = |n| (PackId(1), n);
        let chunk: Arc<[u8]> = vec![7; 1 << 20].into();
        for n in 0..1000 {
            cache.put(key(n), chunk.clone());
            cache.put(key(n), chunk.clone());
            assert!(cache.get(key(0)).is_some(), "used all the time");
            let held = cache.held();
            assert!(held.bytes <= CACHE_BYTES_MAX && held.bytes == held.chunks.len() << 20);
            assert_eq!(held.order.len(), held.chunks.len());
        }
        assert!(cache.get(key(1)).is_none());
        assert!(cache.get(key(999)).is_some());
    }
}
