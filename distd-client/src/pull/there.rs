//! Check whether the wanted release is already in place, so that nothing has to be written.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use distd_core::ManifestId;
use distd_core::manifest::{Kind, Manifest};

use super::clean;
use super::kept::{self, Kept};
use super::request::PATCH_FILES;
use super::request::PullRequest;
use super::staging::Staging;
use super::target::locked;
use super::tree::staging_failure;
use super::verify::{may_be_of, verify};
use crate::disk::lock::Lock;
use crate::disk::side;
use crate::disk::spread::{Places, Spread};
use crate::failure::{Code, Failure};

/// Returns the manifest of the release if the target holds it: the content and, for a tree,
/// everything in the listing were verified. If a pull was interrupted after its final check, its
/// last steps are done now.
///
/// # Errors
/// Failures of finishing such a pull. Any other problem at the target is left to the pull to
/// repair.
pub(super) async fn find(request: &PullRequest, wanted: ManifestId) -> anyhow::Result<Option<Arc<Manifest>>> {
    let (out, data) = (request.out.clone(), request.data.clone());
    tokio::task::spawn_blocking(move || look(&out, &data, wanted)).await?
}

fn look(out: &Path, data: &Path, wanted: ManifestId) -> anyhow::Result<Option<Arc<Manifest>>> {
    if !out.exists() {
        return Ok(None);
    }
    for kept in kept::candidates(out, data) {
        if kept.manifest.id() != wanted || (kept.part && !may_be_of(out, &kept)) {
            continue;
        }
        match verify(out, data, &kept) {
            Ok(report) if report.is_intact() => {
                if kept.part {
                    complete(out, data, &kept)?;
                } else if kept::read_part_manifest(out, data).is_none()
                    && let Err(error) = clean::leftovers(out, data)
                {
                    tracing::warn!(error = &*error, "could not remove the state of a finished pull");
                }
                let lock = kept::part_path(out, data, ".distd-lock");
                if lock.exists() {
                    // A killed pull left the lock file; taking and dropping the lock removes it. A
                    // running pull keeps its lock.
                    drop(Lock::take(lock));
                }
                return Ok(Some(Arc::new(kept.manifest)));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = &*error, "the artifact in place could not be checked");
            }
        }
    }
    Ok(None)
}

/// Does the last steps of a pull whose artifact is in place.
fn complete(out: &Path, data: &Path, kept: &Kept) -> anyhow::Result<()> {
    let _lock = locked(Lock::take(kept::part_path(out, data, ".distd-lock")), out)?;
    let staging = Staging::of(out);
    if matches!(kept.manifest.root().kind, Kind::Tree { .. }) {
        staging.check().map_err(staging_failure)?;
        staging.settle(None).map_err(staging_failure)?;
    } else {
        // The pull may have been killed before it flushed a device: its bytes were read from the
        // cache of the system, and a power cut would still lose them.
        let synced = match Places::of(out, data)? {
            Some(places) => Spread::open(out, &places).and_then(|spread| Ok(spread.sync()?)),
            None => File::open(out).and_then(|file| file.sync_all()).map_err(anyhow::Error::from),
        };
        let synced = synced.with_context(|| format!("could not sync {}", out.display()));
        synced.map_err(|error| Failure::new(Code::Local, error))?;
    }
    kept::keep_part_manifest(out, data).map_err(Failure::from)?;
    for suffix in PATCH_FILES.iter().chain(&[".distd-part-journal"]) {
        side::remove(&kept::part_path(out, data, suffix)).map_err(Failure::from)?;
    }
    staging.end();
    Ok(())
}
