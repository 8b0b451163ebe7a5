//! Fetched chunks on their way to where they belong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_peer::driver::{ChunkSink, SinkError};

use super::patches::Arrivals;
use super::place::Placer;

/// Writes what arrives.
pub(super) struct TargetSink {
    placer: Arc<Placer>,
    /// Patches that wait for a chunk as their base.
    arrivals: Option<Arc<Arrivals>>,
    /// Packed bytes of chunks.
    pub(super) chunk_bytes: AtomicU64,
}

impl TargetSink {
    pub(super) fn new(placer: Arc<Placer>, arrivals: Option<Arc<Arrivals>>) -> Self {
        Self { placer, arrivals, chunk_bytes: AtomicU64::new(0) }
    }
}

impl ChunkSink for TargetSink {
    fn accept(&self, entry: &Entry, packed: PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        self.placer.place(entry.id, raw).map_err(|e| SinkError(e.into()))?;
        self.chunk_bytes.fetch_add(packed.bytes.len() as u64, Ordering::Relaxed);
        if let Some(arrivals) = &self.arrivals {
            arrivals.base(entry.id, true);
        }
        Ok(())
    }
}
