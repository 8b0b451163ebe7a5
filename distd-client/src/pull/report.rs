//! What pulls and plans report.

use distd_core::{ArtifactHash, ManifestId};
use serde::Serialize;

/// Bytes received, by who sent them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct BySource {
    pub(super) origin: u64,
    pub(super) relay: u64,
    pub(super) peer: u64,
    pub(super) http: u64,
}

/// What a pull did; the one object that `--json` ends with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(super) product: String,
    pub(super) version: String,
    pub(super) artifact_bytes: u64,
    pub(super) held_bytes: u64,
    pub(super) fetched_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) wire_bytes_by_source: BySource,
    /// Packed chunk bytes sent to neighbours meanwhile.
    pub(super) served_bytes: u64,
    pub(super) chunk_bytes: u64,
    /// Payloads received.
    pub(super) patch_bytes: u64,
    pub(super) patches_applied: u64,
    /// Patches whose chunks had to be fetched after all.
    pub(super) patches_failed: u64,
    /// Raw bytes that patches brought.
    pub(super) rebuilt_bytes: u64,
    pub(super) metadata_bytes: u64,
    /// Manifest nodes, and the indexes of patch sets.
    pub(super) node_bytes: u64,
    pub(super) refetched_verified_bytes: u64,
    pub(super) requests: u64,
    pub(super) round_trips: u64,
    pub(super) seconds: f64,
    pub(super) manifest: ManifestId,
    pub(super) blake3: ArtifactHash,
    pub(super) resumed: bool,
    pub(super) already_there: bool,
}

/// What a pull would do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanReport {
    pub(super) product: String,
    pub(super) version: String,
    pub(super) manifest: ManifestId,
    pub(super) artifact_bytes: u64,
    pub(super) held_bytes: u64,
    /// Uncompressed: what the link carries is less.
    pub(super) fetch_raw_bytes: u64,
    pub(super) fetch_chunks: u64,
    pub(super) fetch_ranges: usize,
    /// Patches to fetch and apply.
    pub(super) patches: u64,
    /// Bytes of their payloads.
    pub(super) patch_bytes: u64,
    /// What their chunks would cost without them, as the origin packed them.
    pub(super) patched_chunk_bytes: u64,
    pub(super) batches: u64,
    /// What planning itself received: metadata and manifest nodes.
    pub(super) wire_bytes: u64,
}

impl Outcome {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        let state = if self.already_there { "already there" } else { "in place" };
        let by = &self.wire_bytes_by_source;
        format!(
            "{} {} {state}: {} bytes, {} held, {} rebuilt by {} patches, {} received (neighbours {}, relay {}, origin {}) in {:.1} s\nblake3 {}",
            self.product,
            self.version,
            self.artifact_bytes,
            self.held_bytes,
            self.rebuilt_bytes,
            self.patches_applied,
            self.wire_bytes,
            by.peer,
            by.relay,
            by.origin,
            self.seconds,
            self.blake3
        )
    }
}

impl PlanReport {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} {}: {} bytes, {} held; to fetch: {} patches of {} bytes (for {} bytes of chunks), {} chunks in {} ranges, \
             {} bytes before compression; {} requests",
            self.product,
            self.version,
            self.artifact_bytes,
            self.held_bytes,
            self.patches,
            self.patch_bytes,
            self.patched_chunk_bytes,
            self.fetch_chunks,
            self.fetch_ranges,
            self.fetch_raw_bytes,
            self.batches
        )
    }
}
