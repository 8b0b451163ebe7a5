//! Sink of fetched chunks: passes them on to their positions in the target.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::ChunkId;
use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::ranges::ChunkRanges;
use distd_peer::driver::{ChunkSink, SinkError, Verified};

use super::patches::Arrivals;
use super::place::Placer;

/// Chunks that arrived in one fetch. At its end a few chunks are asked of two peers, and both peers
/// may send them.
#[derive(Default)]
pub(super) struct ReceivedCounts {
    chunks: Mutex<ChunkRanges>,
    /// Packed bytes of chunks that arrived twice.
    pub(super) duplicate_bytes: AtomicU64,
}

impl ReceivedCounts {
    /// Chunks that arrived.
    pub(super) fn chunks(&self) -> ChunkRanges {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the arrival of a chunk; returns false if the chunk had arrived before.
    pub(super) fn first(&self, id: ChunkId, packed: &PackedChunk) -> bool {
        let first = self.chunks.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        if !first {
            self.duplicate_bytes.fetch_add(packed.bytes.len() as u64, Ordering::Relaxed);
        }
        first
    }
}

/// Writes arriving chunks into the target.
pub(super) struct TargetSink {
    placer: Arc<Placer>,
    /// Patches that wait for a chunk as their base.
    arrivals: Option<Arc<Arrivals>>,
    /// Packed bytes of the chunks.
    pub(super) chunk_bytes: AtomicU64,
    pub(super) received: ReceivedCounts,
}

impl TargetSink {
    pub(super) fn new(placer: Arc<Placer>, arrivals: Option<Arc<Arrivals>>) -> Self {
        Self { placer, arrivals, chunk_bytes: AtomicU64::new(0), received: ReceivedCounts::default() }
    }
}

impl ChunkSink for TargetSink {
    fn accept(&self, entry: &Entry, packed: &PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        self.accept_all(&[Verified { entry, packed, raw }])
    }

    fn accept_all(&self, chunks: &[Verified<'_>]) -> Result<(), SinkError> {
        let first = |chunk: &&Verified<'_>| self.received.first(chunk.entry.id, chunk.packed);
        let fresh: Vec<&Verified<'_>> = chunks.iter().filter(first).collect();
        self.placer
            .place_all(fresh.iter().map(|chunk| (chunk.entry.id, chunk.raw)))
            .map_err(|e| SinkError(e.into()))?;
        for chunk in fresh {
            self.chunk_bytes.fetch_add(chunk.packed.bytes.len() as u64, Ordering::Relaxed);
            if let Some(arrivals) = &self.arrivals {
                arrivals.base(chunk.entry.id.into(), true);
            }
        }
        Ok(())
    }
}
