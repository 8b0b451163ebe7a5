//! Cache of unpacked chunks, bounded in bytes; the least recently used leave first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::db::{Location, PackId};

/// Most raw bytes in the cache: the bases of a few neighbouring jobs, which share most of their
/// chunks.
const CACHE_BYTES_MAX: usize = 64 << 20;

/// Place of a chunk: its pack, and its first byte in that pack.
pub(super) type Key = (PackId, u64);

/// Raw bytes of chunks by place, shared by both releases and all jobs.
#[derive(Debug, Default)]
pub(super) struct ChunkCache(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    chunks: HashMap<Key, (u64, Arc<[u8]>)>,
    /// Least recently used first.
    order: BTreeMap<u64, Key>,
    tick: u64,
    bytes: usize,
}

pub(super) fn key(at: &Location) -> Key {
    (at.pack, at.offset)
}

impl ChunkCache {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        // The code under the lock does not panic, so the data is consistent even in a poisoned
        // lock.
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
    fn recently_used_chunks_stay_and_the_bytes_are_bounded() {
        let cache = ChunkCache::default();
        let key = |n| (PackId(1), n);
        let chunk: Arc<[u8]> = vec![7; 1 << 20].into();
        for n in 0..1000 {
            cache.put(key(n), chunk.clone());
            cache.put(key(n), chunk.clone());
            assert!(cache.get(key(0)).is_some(), "a chunk in constant use stays");
            let held = cache.held();
            assert!(held.bytes <= CACHE_BYTES_MAX && held.bytes == held.chunks.len() << 20);
            assert_eq!(held.order.len(), held.chunks.len());
        }
        assert!(cache.get(key(1)).is_none());
        assert!(cache.get(key(999)).is_some());
    }
}
