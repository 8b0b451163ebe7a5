//! What pulls and plans report.

use std::collections::BTreeMap;
use std::path::PathBuf;

use distd_core::{ArtifactHash, ManifestId};
use distd_peer::net::Carrier;
use serde::Serialize;

use super::left_out::Count;
use crate::output::table;

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
    /// The version that this device had, when a channel led back from it with leave.
    pub(super) downgraded_from: Option<String>,
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
    /// Packed bytes that came twice because the last chunks are asked of two.
    pub(super) duplicate_bytes: u64,
    pub(super) requests: u64,
    pub(super) round_trips: u64,
    pub(super) seconds: f64,
    pub(super) manifest: ManifestId,
    pub(super) blake3: ArtifactHash,
    pub(super) resumed: bool,
    pub(super) already_there: bool,
    /// Parts of a tree that could not be had here, by kind.
    pub(super) left_out: BTreeMap<String, Count>,
    /// Where files are now that were in the tree and not distd's, or that were edited.
    #[serde(rename = "kept")]
    pub(super) found: Option<PathBuf>,
    /// What each parent was reached over, by address.
    pub(super) transport: BTreeMap<String, Carrier>,
}

/// What a pull would do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanReport {
    pub(super) product: String,
    pub(super) version: String,
    /// The version that this device has, when a channel leads back from it with leave.
    pub(super) downgraded_from: Option<String>,
    pub(super) manifest: ManifestId,
    pub(super) artifact_bytes: u64,
    pub(super) held_bytes: u64,
    /// Chunks as the link carries them; none when no parent can tell.
    pub(super) fetch_bytes: Option<u64>,
    /// The same uncompressed.
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
    /// What planning itself received: metadata, manifest nodes, and the indexes of patch sets.
    pub(super) wire_bytes: u64,
    /// Where the artifact's bytes come from.
    pub(super) sources: Vec<SourcePlan>,
}

/// One source of a plan.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SourcePlan {
    /// `seeds`, `patches` or `chunks`.
    pub(super) source: &'static str,
    /// Bytes of the artifact that it brings.
    pub(super) artifact_bytes: u64,
    /// What the link carries for it, headers of frames apart; none when no parent can tell.
    pub(super) wire_bytes: Option<u64>,
    /// Batches asked for.
    pub(super) requests: u64,
    /// What the link takes for it at the rate it showed while the plan was made, and what one core takes; about.
    pub(super) seconds: f64,
}

/// Says that a device goes back.
fn back_from(version: Option<&str>) -> String {
    version.map(|version| format!(" (back from {version})")).unwrap_or_default()
}

impl Outcome {
    /// For people.
    pub(crate) fn summary(&self) -> String {
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
    /// For people.
    pub(crate) fn summary(&self) -> String {
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
