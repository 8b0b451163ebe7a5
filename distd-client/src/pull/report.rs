//! Results of pulls and plans.

use std::collections::BTreeMap;
use std::path::PathBuf;

use distd_core::fleet::report::SourceBytes;
use distd_core::{ArtifactHash, ManifestId};
use distd_peer::net::Carrier;
use serde::Serialize;

use super::left_out::Count;
use crate::text::table;

/// Bytes received, by kind of sender.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct BySource {
    pub(super) origin: u64,
    pub(super) relay: u64,
    pub(super) peer: u64,
    pub(super) http: u64,
}

/// Result of a pull; the one object that `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub(super) product: String,
    pub(super) version: String,
    /// Version that this device had before an allowed downgrade; `None` for any other pull.
    pub(super) downgraded_from: Option<String>,
    pub(super) artifact_bytes: u64,
    pub(super) held_bytes: u64,
    pub(super) fetched_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) wire_bytes_by_source: BySource,
    /// Packed chunk bytes sent to neighbours during the pull.
    pub(super) served_bytes: u64,
    pub(super) chunk_bytes: u64,
    /// Bytes of payloads received.
    pub(super) patch_bytes: u64,
    pub(super) patches_applied: u64,
    /// Number of patches that failed, so that their chunks had to be fetched.
    pub(super) patches_failed: u64,
    /// Raw bytes that patches rebuilt.
    pub(super) rebuilt_bytes: u64,
    pub(super) metadata_bytes: u64,
    /// Bytes of manifest nodes and of the indexes of patch sets.
    pub(super) node_bytes: u64,
    pub(super) refetched_verified_bytes: u64,
    /// Packed bytes that arrived twice because the last chunks are asked of two peers.
    pub(super) duplicate_bytes: u64,
    pub(super) requests: u64,
    pub(super) round_trips: u64,
    pub(super) seconds: f64,
    pub(super) manifest: ManifestId,
    pub(super) blake3: ArtifactHash,
    pub(super) resumed: bool,
    pub(super) already_there: bool,
    /// Parts of a tree that were left out, by kind.
    pub(super) left_out: BTreeMap<String, Count>,
    /// Directory with files that were edited or that did not belong to distd; `None` if there were
    /// none.
    #[serde(rename = "kept")]
    pub(super) found: Option<PathBuf>,
    /// Transport by which each parent was reached, by address.
    pub(super) transport: BTreeMap<String, Carrier>,
}

/// Result of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    pub(super) product: String,
    pub(super) version: String,
    /// Version that this device has if the pull is an allowed downgrade; `None` otherwise.
    pub(super) downgraded_from: Option<String>,
    pub(super) manifest: ManifestId,
    pub(super) artifact_bytes: u64,
    pub(super) held_bytes: u64,
    /// Bytes of the chunks on the wire; `None` when no parent can tell.
    pub(super) fetch_bytes: Option<u64>,
    /// Bytes of the chunks uncompressed.
    pub(super) fetch_raw_bytes: u64,
    pub(super) fetch_chunks: u64,
    pub(super) fetch_ranges: usize,
    /// Number of patches to fetch and apply.
    pub(super) patches: u64,
    /// Bytes of the patches' payloads.
    pub(super) patch_bytes: u64,
    /// Bytes that the patched chunks would take on the wire without patches, as the origin packed
    /// them.
    pub(super) patched_chunk_bytes: u64,
    pub(super) batches: u64,
    /// Bytes received for the plan itself: metadata, manifest nodes, and the indexes of patch sets.
    pub(super) wire_bytes: u64,
    /// Sources of the artifact's bytes.
    pub(super) sources: Vec<SourcePlan>,
}

/// One source of a plan.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SourcePlan {
    /// `seeds`, `patches` or `chunks`.
    pub(super) source: &'static str,
    /// Bytes of the artifact that come from the source.
    pub(super) artifact_bytes: u64,
    /// Bytes on the wire without headers of frames; `None` when no parent can tell.
    pub(super) wire_bytes: Option<u64>,
    /// Number of batches to request.
    pub(super) requests: u64,
    /// Estimated seconds: the transfer at the link's rate measured while planning, and the work of
    /// one core.
    pub(super) seconds: f64,
}

/// Returns the note that a pull is a downgrade, or nothing.
fn back_from(version: Option<&str>) -> String {
    version.map(|version| format!(" (back from {version})")).unwrap_or_default()
}

impl Outcome {
    /// Bytes of the pull by source, as reports have them.
    pub fn source_bytes(&self) -> SourceBytes {
        let BySource { origin, relay, peer, .. } = self.wire_bytes_by_source;
        SourceBytes { disk: self.held_bytes, neighbours: peer, relay, origin }
    }

    /// Returns the result as text for people.
    pub fn summary(&self) -> String {
        let state = if self.already_there { "already there" } else { "in place" };
        let by = &self.wire_bytes_by_source;
        format!(
            "{} {}{} {state}: {} bytes, {} held, {} rebuilt by {} patches, {} received (neighbours {}, relay {}, origin {}) in {:.1} s\nblake3 {}",
            self.product,
            self.version,
            back_from(self.downgraded_from.as_deref()),
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
    /// Returns the plan as text for people.
    pub fn summary(&self) -> String {
        let head =
            ["FROM", "OF THE ARTIFACT", "ON THE WIRE", "REQUESTS", "SECONDS"].map(str::to_owned).to_vec();
        let row = |source: &SourcePlan| {
            let wire = source.wire_bytes.map_or_else(|| "not known".to_owned(), |bytes| bytes.to_string());
            let (name, bytes) = (source.source.to_owned(), source.artifact_bytes.to_string());
            vec![name, bytes, wire, source.requests.to_string(), format!("{:.1}", source.seconds)]
        };
        let rows: Vec<_> = std::iter::once(head).chain(self.sources.iter().map(row)).collect();
        format!(
            "{} {}{}: {} bytes; {} patches for {} bytes of chunks, {} chunks in {} ranges; {} bytes received for this plan\n{}",
            self.product,
            self.version,
            back_from(self.downgraded_from.as_deref()),
            self.artifact_bytes,
            self.patches,
            self.patched_chunk_bytes,
            self.fetch_chunks,
            self.fetch_ranges,
            self.wire_bytes,
            table(&rows)
        )
    }
}
