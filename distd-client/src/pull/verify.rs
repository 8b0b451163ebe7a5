//! Checking an artifact in place.

use std::path::Path;

use anyhow::Context;
use distd_core::manifest::Manifest;
use distd_core::{ArtifactHash, ChunkHash, ManifestId};
use serde::Serialize;

use super::seeds::open_artifact;
use crate::exit::{Code, Failure};

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VerifyReport {
    manifest: ManifestId,
    blake3: ArtifactHash,
    artifact_bytes: u64,
    bad_chunks: u64,
    bad_bytes: u64,
}

impl VerifyReport {
    /// Whether every chunk matched.
    pub(crate) fn is_intact(&self) -> bool {
        self.bad_chunks == 0
    }

    /// For people.
    pub(crate) fn summary(&self) -> String {
        if self.is_intact() {
            format!("intact: {} bytes, blake3 {}", self.artifact_bytes, self.blake3)
        } else {
            format!(
                "damaged: {} chunks, {} of {} bytes",
                self.bad_chunks, self.bad_bytes, self.artifact_bytes
            )
        }
    }
}

/// Checks the artifact at `path` chunk by chunk, and as a whole.
///
/// # Errors
/// Failures with [`Code::Local`] when it cannot be opened; bytes that cannot be read count as bad.
pub(crate) fn verify(path: &Path, manifest: &Manifest) -> anyhow::Result<VerifyReport> {
    let bytes = open_artifact(path)
        .with_context(|| format!("could not read {}", path.display()))
        .map_err(|e| Failure::new(Code::Local, e))?;
    let root = manifest.root();
    let mut report = VerifyReport {
        manifest: manifest.id(),
        blake3: root.blake3,
        artifact_bytes: root.bytes,
        bad_chunks: 0,
        bad_bytes: 0,
    };
    let mut whole = blake3::Hasher::new();
    let mut buffer = Vec::new();
    for at in manifest.entries() {
        buffer.resize(at.entry.len as usize, 0);
        if bytes.read_at(at.offset, &mut buffer).is_err() || ChunkHash::of(&buffer) != at.entry.hash {
            report.bad_chunks += 1;
            report.bad_bytes += u64::from(at.entry.len);
        }
        whole.update(&buffer);
    }
    // Chunks that all match and a whole that does not: the manifest contradicts itself, and nothing it says counts.
    if report.is_intact() && ArtifactHash::from(whole.finalize()) != root.blake3 {
        report.bad_chunks = root.chunks;
        report.bad_bytes = root.bytes;
    }
    Ok(report)
}
