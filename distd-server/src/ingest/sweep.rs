//! Leftovers of interrupted work: expired uploads, and objects that no row names.

use distd_core::ManifestId;
use futures::TryStreamExt;

use super::{Ingest, IngestError, manifest_object};
use crate::db::UnixSeconds;

/// Age up to which an object without a row counts as another replica's work under way, seconds. A
/// pack is recorded seconds after it was stored.
const ORPHAN_SECONDS: i64 = 24 * 3600;

/// Time for which an ended upload is remembered, to answer a late commit, seconds: a week.
const REMEMBER_SECONDS: i64 = 7 * 24 * 3600;

/// Names asked about in one query.
const NAMES_AT_ONCE: usize = 1000;

/// Number of objects of a kind that may be swept whatever their share: the packs that sinks had put
/// when the process ended, a manifest or two.
const ORPHANS_FREE: usize = 8;

/// Share of the objects of a kind that may be swept: one in so many.
const ORPHANS_SHARE: usize = 10;

/// Other processes that may be writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepScope {
    /// None: the database and the store are this machine's and this process has just started.
    Alone,
    /// Other replicas: only an object that is a day old is an orphan.
    Shared,
}

/// Result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Uploads that expired.
    pub uploads: u64,
    /// Packs that no row named, or that were noted as doomed.
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

    /// Aborts every upload that has expired. Call it hourly.
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
    /// Objects that the database noted as doomed go. Of others that no row names, no more than
    /// eight or a tenth of all are deleted without an operator's order: so many objects come from
    /// no crash, but from a database of another time or place.
    ///
    /// # Errors
    /// [`IngestError::SweepTooLarge`], and nothing but doomed objects was deleted;
    /// [`IngestError::Db`], [`IngestError::Store`]; what is left is done next time.
    pub async fn sweep_orphans(&self, scope: SweepScope, now: UnixSeconds) -> Result<Swept, IngestError> {
        self.sweep(scope, now, false).await
    }

    /// As [`sweep_orphans`](Self::sweep_orphans), however much there is, on an operator's order.
    /// No other process may write meanwhile.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`].
    pub async fn sweep_everything(&self, now: UnixSeconds) -> Result<Swept, IngestError> {
        self.sweep(SweepScope::Alone, now, true).await
    }

    async fn sweep(&self, scope: SweepScope, now: UnixSeconds, all: bool) -> Result<Swept, IngestError> {
        // Uploads that sent more than they committed leave packs that are partly used, too.
        self.compaction.wake();
        let mut swept = Swept { uploads: self.expire(now).await?, ..Swept::default() };
        let modified_max = match scope {
            SweepScope::Alone => {
                swept.temporary = self.store.sweep_interrupted_puts().await?;
                i64::MAX
            }
            SweepScope::Shared => now - ORPHAN_SECONDS,
        };
        let doomed = self.db.doomed(modified_max).await?;
        self.delete_all(&doomed).await?;
        swept.packs += doomed.len() as u64;

        // A database that names missing packs is older than the store: the packs that it does not
        // know may hold the only copies.
        if all {
            self.look_for_losses().await?;
        }
        if self.losses.has_packs() {
            tracing::error!("packs are missing: none that the database does not know is deleted");
            return Ok(swept);
        }
        let packs = self.orphans("packs", modified_max).await?;
        let manifests = self.orphans("manifests", modified_max).await?;
        if !all {
            packs.check()?;
            manifests.check()?;
        }
        for name in &packs.names {
            self.store.delete(name).await?;
            swept.packs += 1;
        }
        for names in manifests.names.chunks(NAMES_AT_ONCE) {
            let suspects: Vec<ManifestId> = names.iter().filter_map(manifest_id).collect();
            swept.manifests += self.delete_unnamed_manifests(&suspects).await?;
        }
        Ok(swept)
    }

    /// Deletes those of the manifests that nothing names, while no commit runs. Returns their
    /// number.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`].
    pub async fn delete_unnamed_manifests(&self, manifests: &[ManifestId]) -> Result<u64, IngestError> {
        let unnamed = self.db.unreleased_manifests(manifests).await?;
        for id in &unnamed.ids {
            self.store.delete(&manifest_object(id)).await?;
        }
        let deleted = unnamed.ids.len() as u64;
        unnamed.end().await?;
        Ok(deleted)
    }

    /// Objects among `packs` or `manifests` that no row names and that were put at `modified_max`
    /// or before.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`].
    pub async fn orphans(
        &self,
        kind: &'static str,
        modified_max: UnixSeconds,
    ) -> Result<Orphans, IngestError> {
        let mut found = Orphans { kind, names: Vec::new(), total: 0 };
        let mut objects = self.store.list(kind).try_chunks(NAMES_AT_ONCE);
        while let Some(objects) = objects.try_next().await.map_err(|e| e.1)? {
            found.total += objects.len();
            let old = objects.into_iter().filter(|object| object.modified <= modified_max);
            let mut names: Vec<String> = old.map(|object| object.name).collect();
            let known = if kind == "packs" {
                self.db.packs_known(&names).await?
            } else {
                names.retain(|name| manifest_id(name).is_some());
                // Looked at without the lock that stops commits: mostly there is nothing to delete.
                let ids: Vec<ManifestId> = names.iter().filter_map(manifest_id).collect();
                self.db.manifests_named(&ids).await?
            };
            found
                .names
                .extend(names.into_iter().zip(known).filter(|(_, known)| !known).map(|(name, _)| name));
        }
        Ok(found)
    }
}

fn manifest_id(object: impl AsRef<str>) -> Option<ManifestId> {
    object.as_ref().strip_prefix("manifests/")?.parse().ok()
}

/// Objects that no row names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphans {
    kind: &'static str,
    /// Their names.
    pub names: Vec<String>,
    /// Number of objects of this kind.
    pub total: usize,
}

impl Orphans {
    /// Refuses more objects than crashes can have left.
    ///
    /// # Errors
    /// [`IngestError::SweepTooLarge`].
    pub fn check(&self) -> Result<(), IngestError> {
        let orphans = self.names.len();
        if orphans <= ORPHANS_FREE.max(self.total / ORPHANS_SHARE) {
            return Ok(());
        }
        Err(IngestError::SweepTooLarge { kind: self.kind, orphans, total: self.total })
    }
}
