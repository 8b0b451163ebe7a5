//! Removing what interrupted pulls left, when nobody is to go on with them.

use std::fs;
use std::path::{Path, PathBuf};

use super::job::PATCH_FILES;
use super::kept::{part_path, staging_path};
use super::staging::Staging;
use super::target::locked;
use super::tree::staging_failure;
use crate::disk::lock::Lock;
use crate::disk::side::{self, with_suffix};
use crate::exit::Failure;

/// Removes what interrupted pulls left of the artifact at `path`, which stays as it is; the files that are gone.
///
/// # Errors
/// Failures when a pull is at work there, or something is not distd's.
pub(crate) fn clean(path: &Path, data: &Path) -> anyhow::Result<Vec<PathBuf>> {
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
    for suffix in PATCH_FILES.iter().chain(&[".distd-part-manifest", ".distd-part-journal"]) {
        let file = part_path(path, data, suffix);
        for file in [with_suffix(&file, ".part"), file] {
            if fs::symlink_metadata(&file).is_ok() {
                side::remove(&file).map_err(Failure::from)?;
                removed.push(file);
            }
        }
    }
    Ok(removed)
}
