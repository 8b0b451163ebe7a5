//! Fetched chunks into the target, at every place they belong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::ChunkId;
use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::ranges::ChunkRanges;
use distd_peer::driver::{ChunkSink, SinkError};

use super::entries::Entries;
use super::journal::Journal;
use super::target::Target;

/// Writes what arrives.
pub(super) struct TargetSink {
    target: Arc<dyn Target>,
    journal: Arc<Mutex<Journal>>,
    /// Chunk id, offset, position; sorted.
    places: Vec<(ChunkId, u64, usize)>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
    /// Packed bytes of chunks.
    pub(super) chunk_bytes: AtomicU64,
    /// Chunks that arrived though they were written already: must stay 0.
    pub(super) repeated: AtomicU64,
}

impl TargetSink {
    pub(super) fn new(
        target: Arc<dyn Target>,
        journal: Arc<Mutex<Journal>>,
        entries: &Entries,
        missing: impl Iterator<Item = usize>,
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Self {
        let mut places: Vec<_> = missing
            .map(|position| {
                let at = entries.get(position);
                (at.entry.id, at.offset, position)
            })
            .collect();
        places.sort_unstable();
        Self {
            target,
            journal,
            places,
            progress,
            chunk_bytes: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
        }
    }

    /// What is to be fetched.
    pub(super) fn wanted(&self) -> ChunkRanges {
        self.places.iter().map(|(id, ..)| *id).collect()
    }
}

impl ChunkSink for TargetSink {
    fn accept(&self, entry: &Entry, packed: PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        let first = self.places.partition_point(|(id, ..)| *id < entry.id);
        let places = self.places[first..].iter().take_while(|(id, ..)| *id == entry.id);
        for (_, offset, position) in places {
            self.target.write_at(*offset, raw).map_err(|e| SinkError(e.into()))?;
            let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            if journal.contains(*position) {
                self.repeated.fetch_add(1, Ordering::Relaxed);
            }
            journal.add(*position);
            (self.progress)(u64::from(entry.len));
        }
        self.chunk_bytes.fetch_add(packed.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
