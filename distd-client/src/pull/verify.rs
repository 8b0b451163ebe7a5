//! Check of an artifact in place.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::anyhow;
use distd_core::manifest::{Kind, Manifest};
use distd_core::{ArtifactHash, ChunkHash, ManifestId};
use serde::Serialize;

use super::compare::{Differences, compare};
use super::kept::{self, Kept, read_left_out};
use super::layout::Layout;
use super::ours::is_listing_of;
use super::seeds::{SeedFile, open_bytes};
use super::staging::Staging;
use crate::failure::{Code, Failure};
use crate::whole_hash::{PIECE_BYTES, Pieces, whole_hash};

/// Result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    manifest: ManifestId,
    blake3: ArtifactHash,
    artifact_bytes: u64,
    bad_chunks: u64,
    bad_bytes: u64,
    /// Wrong lengths, and everything else about a tree except the content of its files.
    differences: Differences,
}

impl VerifyReport {
    /// Returns whether the artifact is exactly as it was released.
    pub fn is_intact(&self) -> bool {
        self.bad_chunks == 0 && self.differences.count == 0
    }

    /// Returns the result as text for people.
    pub fn summary(&self) -> String {
        if self.is_intact() {
            return format!("intact: {} bytes, blake3 {}", self.artifact_bytes, self.blake3);
        }
        let mut lines = vec![format!(
            "damaged: {} chunks, {} of {} bytes; {} other differences",
            self.bad_chunks, self.bad_bytes, self.artifact_bytes, self.differences.count
        )];
        lines.extend(self.differences.named.iter().map(|found| {
            let path = if found.path.is_empty() { "the directory itself" } else { &found.path };
            format!("{path} {}", found.what)
        }));
        lines.join("\n")
    }
}

/// Checks the artifact at `path` against the manifest kept beside it.
///
/// # Errors
/// Failures with [`Code::NotFound`] when no manifest is kept.
pub fn verify_kept(path: &Path, data: &Path) -> anyhow::Result<VerifyReport> {
    let mut report = None;
    // A pull that was interrupted just before it kept the manifest left a complete artifact.
    for kept in kept::candidates(path, data) {
        if kept.part && !may_be_of(path, &kept) {
            continue;
        }
        let found = verify(path, data, &kept)?;
        if found.is_intact() {
            return Ok(found);
        }
        report.get_or_insert(found);
    }
    report.ok_or_else(|| {
        let error = anyhow!("no manifest is kept beside {}", path.display());
        let next = "name one with --manifest FILE, or pull the artifact with distd";
        Failure::new(Code::NotFound, error).next(next).into()
    })
}

/// Returns whether the manifest of an unfinished pull may be that of the artifact at `path`.
pub(super) fn may_be_of(path: &Path, kept: &Kept) -> bool {
    match kept.manifest.root().kind {
        Kind::Tree { .. } => Staging::of(path).is_in_place() || !kept::staging_path(path).exists(),
        // An unfinished file still has its staging name; a device has no staging file.
        _ => kept::is_block_device(path) || !kept::staging_path(path).exists(),
    }
}

/// Checks the artifact at `path`, of the device whose state directory is `data`, against a manifest
/// and, for a tree, its listing.
///
/// # Errors
/// Failures with [`Code::Local`] when the artifact cannot be opened; bytes that cannot be read
/// count as bad.
pub fn verify(path: &Path, data: &Path, kept: &Kept) -> anyhow::Result<VerifyReport> {
    let manifest = &kept.manifest;
    let root = manifest.root();
    let local = |error: anyhow::Error| {
        Failure::new(Code::Local, error.context(format!("could not read {}", path.display())))
    };
    let meta = fs::metadata(path).map_err(|e| local(e.into()))?;
    let mut report = VerifyReport {
        manifest: manifest.id(),
        blake3: root.blake3,
        artifact_bytes: root.bytes,
        bad_chunks: 0,
        bad_bytes: 0,
        differences: Differences::default(),
    };
    let differences = &mut report.differences;
    let bytes = match root.kind {
        Kind::Tree { listing_bytes } if meta.is_dir() => {
            let listing = kept.listing.clone().unwrap_or_default();
            if !is_listing_of(&listing, listing_bytes, manifest) {
                let error = anyhow!("no listing that fits its manifest is kept beside {}", path.display());
                let next = "pull it again: what still matches is kept";
                return Err(Failure::new(Code::Integrity, error).next(next).into());
            }
            let layout = Layout::new(&listing).map_err(|e| local(e.into()))?;
            let staged = kept.part.then(|| Staging::of(path).read_left_out()).flatten();
            let left_out = staged.unwrap_or_else(|| read_left_out(path));
            *differences = compare(path, &layout.listing, &left_out).map_err(|e| local(e.into()))?;
            SeedFile::of_tree(path, listing).map_err(local)?
        }
        Kind::File if !meta.is_dir() => {
            if meta.is_file() && meta.size() != root.bytes {
                differences.add("", format!("has {} bytes instead of {}", meta.size(), root.bytes));
            }
            let bytes = open_bytes(path, data).map_err(local)?;
            if let SeedFile::Spread(spread) = &bytes {
                for (place, len, wanted) in spread.wrong_lengths() {
                    differences.add(place.to_string_lossy(), format!("has {len} bytes instead of {wanted}"));
                }
            }
            bytes
        }
        _ => {
            let what = if meta.is_dir() { "a directory" } else { "not a directory" };
            return Err(Failure::new(
                Code::Integrity,
                anyhow!("{} is {what}, unlike its release", path.display()),
            )
            .next("pull it again")
            .into());
        }
    };
    let whole = whole_hash(root.bytes, || Read { bytes: &bytes, buffer: vec![0; PIECE_BYTES] });
    if whole.is_ok_and(|whole| whole == root.blake3) {
        return Ok(report);
    }
    count_bad(&bytes, manifest, &mut report);
    // All chunks match but the whole does not: the manifest contradicts itself, so nothing in it
    // can be trusted.
    if report.bad_chunks == 0 {
        report.bad_chunks = root.chunks;
        report.bad_bytes = root.bytes;
    }
    Ok(report)
}

fn count_bad(bytes: &SeedFile, manifest: &Manifest, report: &mut VerifyReport) {
    let mut buffer = Vec::new();
    for at in manifest.entries() {
        buffer.resize(at.entry.len as usize, 0);
        if bytes.read_at(at.offset, &mut buffer).is_err() || ChunkHash::of(&buffer) != at.entry.hash {
            report.bad_chunks += 1;
            report.bad_bytes += u64::from(at.entry.len);
        }
    }
}

/// Reader of one hashing thread.
struct Read<'b> {
    bytes: &'b SeedFile,
    buffer: Vec<u8>,
}

impl Pieces for Read<'_> {
    fn piece(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        self.bytes.read_at(offset, &mut self.buffer[..len])?;
        Ok(&self.buffer[..len])
    }
}
