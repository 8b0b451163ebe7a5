//! Files kept beside an artifact: its manifest and, for a tree, its listing and a list of
//! everything that was left out.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distd_core::bounds::TREE_LISTING_BYTES_MAX;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;

use super::left_out::LeftOut;
use crate::disk::side::{self, SideError, with_suffix};

/// Largest manifest file read, in bytes: that of an artifact of 1 TiB.
const MANIFEST_FILE_MAX: u64 = 4 << 30;

/// Largest list of left-out parts read, in bytes.
pub(super) const LEFT_OUT_BYTES_MAX: u64 = 64 << 20;

/// Suffix of the listing's name, after the name of the tree.
const LISTING_SUFFIX: &str = ".distd-tree";

/// Suffix of the left-out list's name, after the name of the tree.
const LEFT_OUT_SUFFIX: &str = ".distd-left-out";

/// Returns whether `path` is a block device.
pub(crate) fn is_block_device(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(meta) => meta.file_type().is_block_device(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        // Below `/dev` only block devices are accepted (docs/cli.md, "Paths of artifacts"), and
        // distd must not put files there.
        Err(_) => path.starts_with("/dev"),
    }
}

/// Returns the prefix of the names of all files kept for the artifact at `path`. It is the path
/// itself, or for a block device a name in the state directory, because `/dev` is no place for
/// files. `path` is in its one form, so each device has one name.
pub(super) fn base(path: &Path, data: &Path) -> PathBuf {
    if is_block_device(path) {
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        return data.join("slots").join(&name[..32]);
    }
    path.to_owned()
}

/// Returns the path of the manifest kept for the artifact at `path`.
pub(super) fn manifest_path(path: &Path, data: &Path) -> PathBuf {
    with_suffix(&base(path, data), ".distd")
}

/// Returns the path of a file of a pull in progress.
pub(super) fn part_path(path: &Path, data: &Path, suffix: &str) -> PathBuf {
    let base = base(path, data);
    // Earlier versions named the files of slots this way; the name stays so that an interrupted
    // pull can continue.
    let base = if base == path { base } else { with_suffix(&base, ".distd") };
    with_suffix(&base, suffix)
}

/// Returns the directory in which a tree is built.
pub(super) fn staging_path(out: &Path) -> PathBuf {
    with_suffix(out, ".distd-part")
}

/// Removes the files kept beside the artifact at `path`, which is gone. One that is missing is no
/// error.
///
/// # Errors
/// As the system reports.
pub(crate) fn remove_side_files(path: &Path, data: &Path) -> io::Result<()> {
    for file in [manifest_path(path, data), listing_path(path), left_out_path(path)] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the path of the listing kept for the tree at `path`.
pub(super) fn listing_path(path: &Path) -> PathBuf {
    with_suffix(path, LISTING_SUFFIX)
}

/// Returns the path of the list of what was left out of the tree at `path`.
pub(super) fn left_out_path(path: &Path) -> PathBuf {
    with_suffix(path, LEFT_OUT_SUFFIX)
}

/// A manifest and, for a tree, its listing.
pub struct Kept {
    pub(crate) manifest: Manifest,
    /// Encoded listing of a tree.
    pub listing: Option<Vec<u8>>,
    /// Whether the manifest belongs to a pull that did not finish.
    pub(super) part: bool,
}

impl Kept {
    /// Combines a manifest named by the user with the listing kept for the artifact at `path`.
    pub fn named(manifest: Manifest, path: &Path) -> Self {
        Self { manifest, listing: kept_listing(path), part: false }
    }
}

/// Reads the listing kept beside the tree at `path`.
fn kept_listing(path: &Path) -> Option<Vec<u8>> {
    side::read_anyones(&listing_path(path), TREE_LISTING_BYTES_MAX).ok()
}

/// Reads the manifest of the pull in progress, if there is one.
pub(super) fn read_part_manifest(path: &Path, data: &Path) -> Option<Manifest> {
    read_manifest(&part_path(path, data, ".distd-part-manifest"))
}

/// Whether a pull to `path` has begun and not ended.
pub(super) fn has_part(path: &Path, data: &Path) -> bool {
    part_path(path, data, ".distd-part-manifest").exists()
}

/// Returns the manifests that may belong to the artifact at `path`: the one kept beside it, and
/// that of a pull that was interrupted just before it kept its manifest.
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

/// Reads the manifest kept for `path`; `None` when it is missing or damaged.
pub fn read_kept_manifest(path: &Path, data: &Path) -> Option<Manifest> {
    read_manifest(&manifest_path(path, data))
}

fn read_manifest(file: &Path) -> Option<Manifest> {
    let bytes = match side::read_anyones(file, MANIFEST_FILE_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %file.display(), error = %Chain(&error), "kept manifest cannot be read");
            return None;
        }
    };
    match Manifest::from_file_bytes(Bytes::from(bytes)) {
        Ok(manifest) => Some(manifest),
        Err(error) => {
            tracing::warn!(path = %file.display(), error = %Chain(&error), "kept manifest is damaged; the artifact is cut again");
            None
        }
    }
}

/// Keeps the manifest that a pull of `path` wrote when it began. The file is renamed and not
/// copied, so that a full disk cannot spoil a finished pull.
pub(super) fn keep_part_manifest(path: &Path, data: &Path) -> Result<(), SideError> {
    side::replace(&part_path(path, data, ".distd-part-manifest"), &manifest_path(path, data))
}

/// Reads the list of what was left out of the tree at `path` when it was installed.
pub(super) fn read_left_out(path: &Path) -> LeftOut {
    let bytes = side::read_anyones(&left_out_path(path), LEFT_OUT_BYTES_MAX).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Returns the device and inode of `path` itself; a link is not followed.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
