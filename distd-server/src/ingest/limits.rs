//! Limits of publishers: sizes, quotas, and the part of the disk that is reserved.

use std::path::{Path, PathBuf};

use distd_core::names::Name;

use super::{Ingest, IngestError};
use distd_peer::filesystem::Space;

/// Limits of publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngestLimits {
    /// Longest artifact, bytes: the most that a commit may make the origin hash.
    pub artifact_bytes_max: u64,
    /// Most bytes of one token's open uploads.
    pub upload_bytes_max: u64,
    /// Most open uploads of one token.
    pub uploads_max: u64,
}

impl Default for IngestLimits {
    fn default() -> Self {
        Self { artifact_bytes_max: 64 << 30, upload_bytes_max: 256 << 30, uploads_max: 64 }
    }
}

/// Part of a disk, one in so many bytes, that publishers and patches leave free.
const RESERVE_SHARE: u64 = 20;

/// Largest reserve of the disk, bytes: enough for months of renewed certificates and metadata.
const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// Returns the number of free bytes of a disk, less the reserve: a twentieth of the disk or 1 GiB,
/// whichever is less. A disk whose system reports no sizes is taken to have room enough.
fn room(directory: &Path) -> u64 {
    match Space::at(directory) {
        Ok(Space { total, free, .. }) => free.saturating_sub((total / RESERVE_SHARE).min(RESERVE_BYTES_MAX)),
        Err(_) => u64::MAX,
    }
}

impl Ingest {
    /// The limits.
    pub fn limits(&self) -> IngestLimits {
        self.limits
    }

    /// Sets the limits, and the directories on whose disks a reserve is kept besides the store's.
    #[must_use]
    pub fn with_limits(mut self, limits: IngestLimits, directories: Vec<PathBuf>) -> Self {
        self.limits = limits;
        self.directories = directories.into();
        self
    }

    /// Refuses `bytes` that would take from the reserve.
    ///
    /// # Errors
    /// [`IngestError::NoRoom`].
    pub fn check_room(&self, bytes: u64) -> Result<(), IngestError> {
        let directories = self.directories.iter().map(PathBuf::as_path).chain(self.store.directory());
        match directories.map(room).min() {
            Some(room) if room < bytes => Err(IngestError::NoRoom),
            _ => Ok(()),
        }
    }

    /// Refuses `more` bytes that would take a token's open uploads above their quota.
    ///
    /// # Errors
    /// [`IngestError::Quota`], [`IngestError::Db`].
    pub async fn check_quota(&self, token: &str, more: u64) -> Result<(), IngestError> {
        let bytes_max = self.limits.upload_bytes_max;
        if self.db.uncommitted_bytes(token).await?.saturating_add(more) > bytes_max {
            return Err(IngestError::Quota { bytes_max });
        }
        Ok(())
    }

    /// Refuses so many more bytes of new chunks, as stored, and of releases that would take a
    /// product or a token above its quota.
    ///
    /// # Errors
    /// [`IngestError::OverQuota`], [`IngestError::Db`].
    pub async fn check_quotas(
        &self,
        product: &Name,
        token: &str,
        stored: u64,
        released: u64,
    ) -> Result<(), IngestError> {
        match self.db.over_quota(product, token, stored, released).await? {
            Some(over) => Err(IngestError::OverQuota(Box::new(over))),
            None => Ok(()),
        }
    }

    /// Refuses an upload of so many bytes, announced before its first chunk, that could not become
    /// a release.
    ///
    /// # Errors
    /// [`IngestError::TooLarge`].
    pub fn check_announced(&self, bytes: u64) -> Result<(), IngestError> {
        let bytes_max = self.limits.artifact_bytes_max;
        if bytes > bytes_max { Err(IngestError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
    }
}
