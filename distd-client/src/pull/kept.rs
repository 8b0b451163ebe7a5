//! Files kept beside an artifact: its manifest, and of a tree its listing and a list of everything that could not be had of it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distd_core::limits::TREE_LISTING_BYTES_MAX;
use distd_core::manifest::Manifest;

use super::left_out::LeftOut;
use crate::disk::side::{self, SideError, with_suffix};

/// Largest manifest file read: one of a 1 TiB artifact.
const MANIFEST_FILE_MAX: u64 = 4 << 30;

/// Largest list of what was left out that is read.
pub(super) const LEFT_OUT_BYTES_MAX: u64 = 64 << 20;

/// Name of the listing, behind that of the tree.
const LISTING_SUFFIX: &str = ".distd-tree";

/// Name of the list of what was left out, behind that of the tree.
const LEFT_OUT_SUFFIX: &str = ".distd-left-out";

/// Whether `path` is a block device.
pub(crate) fn is_block_device(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(meta) => meta.file_type().is_block_device(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        // Nothing else is taken there (docs/cli.md, "Paths of artifacts"), and `/dev` is no place
        // for files of ours.
        Err(_) => path.starts_with("/dev"),
    }
}

/// Beginning of the names of all files kept for the artifact at `path`: the path itself, or for a block device, whose directory is no place for files, a
/// name in the state directory. `path` is in its one form, so each device has one name.
pub(super) fn base(path: &Path, data: &Path) -> PathBuf {
    if is_block_device(path) {
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        return data.join("slots").join(&name[..32]);
    }
    path.to_owned()
}

/// Where the manifest of the artifact at `path` is kept.
pub(super) fn manifest_path(path: &Path, data: &Path) -> PathBuf {
    with_suffix(&base(path, data), ".distd")
}

/// A file of a pull in progress.
pub(super) fn part_path(path: &Path, data: &Path, suffix: &str) -> PathBuf {
    let base = base(path, data);
    // Slots were named so before; a pull that was interrupted goes on.
    let base = if base == path { base } else { with_suffix(&base, ".distd") };
    with_suffix(&base, suffix)
}

/// The directory in which a tree is built.
pub(super) fn staging_path(out: &Path) -> PathBuf {
    with_suffix(out, ".distd-part")
}

/// Where the listing of the tree at `path` is kept.
pub(super) fn listing_path(path: &Path) -> PathBuf {
    with_suffix(path, LISTING_SUFFIX)
}

/// Where it is kept what of the tree at `path` could not be had here.
pub(super) fn left_out_path(path: &Path) -> PathBuf {
    with_suffix(path, LEFT_OUT_SUFFIX)
}

/// A manifest with the listing it speaks of, for a tree.
pub(crate) struct Kept {
    pub(crate) manifest: Manifest,
    /// Bytes of a tree's listing.
    pub(crate) listing: Option<Vec<u8>>,
    /// Whether it is still that of a pull which did not come to its end.
    pub(super) part: bool,
}

impl Kept {
    /// A manifest that was named, for the artifact at `path`.
    pub(crate) fn named(manifest: Manifest, path: &Path) -> Self {
        Self { manifest, listing: kept_listing(path), part: false }
    }
}

/// The listing kept beside the tree at `path`.
fn kept_listing(path: &Path) -> Option<Vec<u8>> {
    side::read_anyones(&listing_path(path), TREE_LISTING_BYTES_MAX).ok()
}

/// The manifest of the pull in progress, as far as there is one.
pub(super) fn read_part_manifest(path: &Path, data: &Path) -> Option<Manifest> {
    read_manifest(&part_path(path, data, ".distd-part-manifest"))
}

/// Manifests that may be that of the artifact at `path`: the one kept beside it, and the one of a pull that was cut off right before it
/// kept it.
pub(super) fn candidates(path: &Path, data: &Path) -> Vec<Kept> {
    let mut found = Vec::new();
    if let Some(manifest) = read_kept_manifest(path, data) {
        let listing = kept_listing(path);
        found.push(Kept { manifest, listing, part: false });
    }
    if let Some(manifest) = read_part_manifest(path, data) {
        let staged = side::read_anyones(&staging_path(path).join("listing"), TREE_LISTING_BYTES_MAX);
        let listing =
            staged.or_else(|_| side::read_anyones(&listing_path(path), TREE_LISTING_BYTES_MAX)).ok();
        found.push(Kept { manifest, listing, part: true });
    }
    found
}

/// The kept manifest of `path`; `None` when there is none or it is damaged.
pub(crate) fn read_kept_manifest(path: &Path, data: &Path) -> Option<Manifest> {
    read_manifest(&manifest_path(path, data))
}

fn read_manifest(file: &Path) -> Option<Manifest> {
    let bytes = match side::read_anyones(file, MANIFEST_FILE_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "kept manifest cannot be read");
            return None;
        }
    };
    match Manifest::from_file_bytes(Bytes::from(bytes)) {
        Ok(manifest) => Some(manifest),
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "kept manifest is damaged; the artifact is cut again");
            None
        }
    }
}

/// Keeps the manifest that a pull of `path` wrote when it began: no second copy of it is made, so that a full disk cannot
/// spoil a finished pull.
pub(super) fn keep_part_manifest(path: &Path, data: &Path) -> Result<(), SideError> {
    side::replace(&part_path(path, data, ".distd-part-manifest"), &manifest_path(path, data))
}

/// Everything that could not be had of the tree at `path` when it was put there.
pub(super) fn read_left_out(path: &Path) -> LeftOut {
    let bytes = side::read_anyones(&left_out_path(path), LEFT_OUT_BYTES_MAX).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Device and inode of what is at `path` itself.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
