//! Removal of the files of interrupted pulls that will not be continued.

use std::fs;
use std::path::{Path, PathBuf};

use super::kept::{part_path, staging_path};
use super::request::PATCH_FILES;
use super::staging::Staging;
use super::target::locked;
use super::tree::staging_failure;
use crate::disk::lock::Lock;
use crate::disk::side::{self, with_suffix};
use crate::failure::Failure;

/// Removes the files that interrupted pulls left of the artifact at `path`, and returns their
/// paths. The artifact itself is not touched.
///
/// # Errors
/// Failures when a pull is running there, or when a file does not belong to distd.
pub fn clean(path: &Path, data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    clean_all(path, data, &left(path, data))
}

/// Removes files that a pull could not remove after it put the artifact in place. If there are
/// none, nothing is locked or written.
///
/// # Errors
/// As [`clean`].
pub(super) fn leftovers(path: &Path, data: &Path) -> anyhow::Result<()> {
    let there = |file: &PathBuf| fs::symlink_metadata(file).is_ok();
    let left = left(path, data);
    if !left.iter().any(there) && !there(&staging_path(path)) {
        return Ok(());
    }
    clean_all(path, data, &left).map(drop)
}

/// Returns the paths that a pull may leave, in addition to the staging directory.
fn left(path: &Path, data: &Path) -> Vec<PathBuf> {
    let suffixes = PATCH_FILES.iter().chain(&[".distd-part-manifest", ".distd-part-journal"]);
    let files = suffixes.map(|suffix| part_path(path, data, suffix));
    files.flat_map(|file| [with_suffix(&file, ".part"), file]).collect()
}

fn clean_all(path: &Path, data: &Path, left: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let lock = part_path(path, data, ".distd-lock");
    if !lock.parent().is_some_and(Path::is_dir) {
        return Ok(Vec::new());
    }
    let _lock = locked(Lock::take(lock), path)?;
    let mut removed = Vec::new();
    let staging = staging_path(path);
    if fs::symlink_metadata(&staging).is_ok() {
        Staging::of(path).clear().map_err(staging_failure)?;
        removed.push(staging);
    }
    for file in left {
        if fs::symlink_metadata(file).is_ok() {
            side::remove(file).map_err(Failure::from)?;
            removed.push(file.clone());
        }
    }
    Ok(removed)
}
