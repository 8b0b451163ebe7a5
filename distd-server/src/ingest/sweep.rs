//! What interrupted work left behind: expired uploads, and objects that no row names.

use std::future::ready;

use distd_core::ManifestId;
use futures::TryStreamExt;

use super::{Ingest, IngestError, manifest_object};
use crate::db::UnixSeconds;

/// Objects without a row are another replica's work under way until they are this old, seconds. A pack is recorded
/// seconds after it was stored.
const ORPHAN_SECONDS: i64 = 24 * 3600;

/// Ended uploads are remembered this long, seconds, to answer a late commit: a week.
const REMEMBER_SECONDS: i64 = 7 * 24 * 3600;

/// Names asked about in one query.
const NAMES_AT_ONCE: usize = 1000;

/// Who else may be writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepScope {
    /// Nobody: the database and the store are this machine's and this process has just started.
    Alone,
    /// Other replicas: only what is a day old is an orphan.
    Shared,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Uploads given up.
    pub uploads: u64,
    /// Packs that no row named.
    pub packs: u64,
    /// Manifests that no release named.
    pub manifests: u64,
    /// Temporary files.
    pub temporary: u64,
}

impl Ingest {
    /// The scope for a sweep at start: alone if both the database and the store are this machine's.
    pub fn scope_at_start(&self) -> SweepScope {
        if self.db.is_local() && self.store.is_local() { SweepScope::Alone } else { SweepScope::Shared }
    }

    /// Gives up every upload whose time is over. Call it hourly.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`]; what is left is done next time.
    pub async fn expire(&self, now: UnixSeconds) -> Result<u64, IngestError> {
        let mut expired = 0;
        for upload in self.db.uploads_expired(now).await? {
            if let Some(objects) = self.db.abort_upload(&upload.id, Some(now)).await? {
                self.indexes.forget(&upload.id);
                self.delete_all(&objects).await?;
                expired += 1;
            }
        }
        self.db.forget_uploads(now - REMEMBER_SECONDS).await?;
        Ok(expired)
    }

    /// Removes what crashes left behind. Call it at start, and daily with [`SweepScope::Shared`].
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`]; what is left is done next time.
    pub async fn sweep_orphans(&self, scope: SweepScope, now: UnixSeconds) -> Result<Swept, IngestError> {
        let mut swept = Swept { uploads: self.expire(now).await?, ..Swept::default() };
        let modified_max = match scope {
            SweepScope::Alone => {
                swept.temporary = self.store.sweep_interrupted_puts().await?;
                i64::MAX
            }
            SweepScope::Shared => now - ORPHAN_SECONDS,
        };
        let old =
            |prefix| self.store.list(prefix).try_filter(move |object| ready(object.modified <= modified_max));

        let mut packs = old("packs").try_chunks(NAMES_AT_ONCE);
        while let Some(objects) = packs.try_next().await.map_err(|e| e.1)? {
            let names: Vec<String> = objects.into_iter().map(|object| object.name).collect();
            let known = self.db.packs_known(&names).await?;
            for (name, _) in names.iter().zip(known).filter(|(_, known)| !known) {
                self.store.delete(name).await?;
                swept.packs += 1;
            }
        }

        let mut manifests = old("manifests").try_chunks(NAMES_AT_ONCE);
        while let Some(objects) = manifests.try_next().await.map_err(|e| e.1)? {
            let id = |name: String| name.strip_prefix("manifests/")?.parse::<ManifestId>().ok();
            let ids: Vec<ManifestId> = objects.into_iter().filter_map(|object| id(object.name)).collect();
            // Looked at before without the lock that stops commits: mostly there is nothing to delete.
            let released = self.db.manifests_released(&ids).await?;
            let suspects: Vec<_> =
                ids.into_iter().zip(released).filter(|(_, r)| !r).map(|(id, _)| id).collect();
            if suspects.is_empty() {
                continue;
            }
            let orphans = self.db.unreleased_manifests(&suspects).await?;
            for id in &orphans.ids {
                self.store.delete(&manifest_object(id)).await?;
                swept.manifests += 1;
            }
            orphans.end().await?;
        }
        Ok(swept)
    }
}
