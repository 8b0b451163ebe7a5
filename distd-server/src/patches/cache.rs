//! Cache of unpacked chunks, bounded in bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::lru::Lru;

use crate::db::{Location, PackId};

/// Most raw bytes in the cache: the bases of a few neighbouring jobs, which share most of their
/// chunks.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// Place of a chunk: its pack, and its first byte in that pack.
pub(super) type Key = (PackId, u64);

/// Raw bytes of chunks by place, shared by both releases and all jobs.
#[derive(Debug)]
pub(super) struct ChunkCache(Mutex<Lru<Key, Arc<[u8]>>>);

impl Default for ChunkCache {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(CACHE_BYTES_MAX)))
    }
}

pub(super) fn key(at: &Location) -> Key {
    (at.pack, at.offset)
}

impl ChunkCache {
    fn held(&self) -> MutexGuard<'_, Lru<Key, Arc<[u8]>>> {
        // The code under the lock does not panic, so the data is consistent even in a poisoned
        // lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<[u8]>> {
        self.held().get(&key).cloned()
    }

    pub(super) fn put(&self, key: Key, chunk: Arc<[u8]>) {
        let bytes = chunk.len() as u64;
        self.held().put(key, chunk, bytes);
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
            assert!(held.weight() <= CACHE_BYTES_MAX && held.weight() == (held.len() as u64) << 20);
        }
        assert!(cache.get(key(1)).is_none());
        assert!(cache.get(key(999)).is_some());
    }
}
