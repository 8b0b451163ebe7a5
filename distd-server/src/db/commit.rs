//! The one transaction that makes an upload a release.
//!
//! It takes the chunk counter's row first, so commits run one after the other, on every replica.

use distd_core::names::Name;
use distd_core::{ChunkHash, ChunkId, ManifestId};

use super::audit::{Actor, append};
use super::ids::IdTx;
use super::moves::MoveBy;
use super::packs::{PackId, PackIndexes, read_index};
use super::quotas::tell_if_nearly_full;
use super::releases::{self, ReleaseRow};
use super::row::{Columns, signed};
use super::{Db, DbError, Location, OverQuota, UnixSeconds, UploadId, failed, products, quotas};

const WHAT: &str = "commit the upload";

/// Result of beginning a commit.
#[derive(Debug)]
pub enum BeginCommit {
    /// The commit can continue.
    Ready(CommitTx),
    /// The version has been released meanwhile.
    Released(Box<ReleaseRow>),
    /// The version is a release that was withdrawn.
    Withdrawn,
    /// The upload is not open.
    Closed,
}

/// A commit under way. Dropped, it leaves everything as it was.
#[derive(Debug)]
pub struct CommitTx {
    ids: IdTx,
    upload: UploadId,
}

impl Db {
    /// Begins the commit of an upload and closes it to chunks.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_commit(&self, upload: &UploadId) -> Result<BeginCommit, DbError> {
        let mut ids = IdTx::begin(self).await?;
        let tx = &mut ids.tx;
        let sql = sqlx::AssertSqlSafe(format!(
            // Not by EXISTS: SQLite would look at every release.
            "SELECT {}, withdrawn FROM releases WHERE product = (SELECT product FROM uploads WHERE id = $1) \
             AND version = (SELECT version FROM uploads WHERE id = $1)",
            releases::COLUMNS
        ));
        let released = sqlx::query(sql)
            .bind(upload.to_string())
            .fetch_optional(&mut **tx)
            .await
            .and_then(|row| {
                let read = |row| Ok((releases::read(row)?, row.time_or_none("withdrawn")?));
                row.as_ref().map(read).transpose()
            })
            .map_err(failed(WHAT))?;
        match released {
            Some((_, Some(_))) => return Ok(BeginCommit::Withdrawn),
            Some((release, None)) => return Ok(BeginCommit::Released(Box::new(release))),
            None => {}
        }
        close_upload(ids, upload).await
    }

    /// Begins to replace lost chunks of an existing release by chunks of an upload; otherwise as
    /// [`begin_commit`](Self::begin_commit).
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_healing(&self, upload: &UploadId) -> Result<BeginCommit, DbError> {
        close_upload(IdTx::begin(self).await?, upload).await
    }

    /// Manifests among `manifests` that no release and no patch set names. No commit can run until
    /// the result is [ended](UnreleasedManifests::end) or dropped.
    ///
    /// Without the lock a commit could store the very manifest between the query and its deletion.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn unreleased_manifests(
        &self,
        manifests: &[ManifestId],
    ) -> Result<UnreleasedManifests, DbError> {
        let mut lock = IdTx::begin(self).await?;
        let mut ids = Vec::new();
        for manifest in manifests {
            let named = releases::is_named(&mut *lock.tx, manifest).await;
            if !named.map_err(failed("look for manifests without a release"))? {
                ids.push(*manifest);
            }
        }
        Ok(UnreleasedManifests { ids, lock })
    }
}

/// Closes an upload to chunks.
async fn close_upload(mut ids: IdTx, upload: &UploadId) -> Result<BeginCommit, DbError> {
    let tx = &mut ids.tx;
    let closed = sqlx::query("UPDATE uploads SET state = 'committed' WHERE id = $1 AND state = 'open'")
        .bind(upload.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed(WHAT))?;
    if closed.rows_affected() == 0 {
        return Ok(BeginCommit::Closed);
    }
    Ok(BeginCommit::Ready(CommitTx { ids, upload: upload.clone() }))
}

/// Manifests without a release, and the lock that keeps them so.
#[derive(Debug)]
pub struct UnreleasedManifests {
    /// The manifests.
    pub ids: Vec<ManifestId>,
    lock: IdTx,
}

impl UnreleasedManifests {
    /// Lets commits run again.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn end(self) -> Result<(), DbError> {
        self.lock.tx.rollback().await.map_err(failed("let commits run again"))
    }
}

/// Reads through the commit's own connection: a commit that waits for a second connection may wait
/// for another commit, which waits for this one.
impl PackIndexes for CommitTx {
    async fn pack_index(&mut self, pack: PackId) -> Result<Option<Vec<u8>>, DbError> {
        read_index(&mut *self.ids.tx, pack).await
    }
}

impl CommitTx {
    /// Ids of hashes in the order given; `None` for a hash without an id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ids(&mut self, hashes: &[ChunkHash]) -> Result<Vec<Option<ChunkId>>, DbError> {
        self.ids.ids(hashes).await
    }

    /// Gives the next ids to chunks that have none, in order.
    ///
    /// # Errors
    /// [`DbError::Query`], also when one of them has an id.
    pub async fn give_ids(&mut self, chunks: &[(ChunkHash, Location)]) -> Result<Vec<ChunkId>, DbError> {
        self.ids.give(chunks).await
    }

    /// Ids and packs of chunks in the order given; `None` for a chunk without an id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn places(&mut self, hashes: &[ChunkHash]) -> Result<Vec<Option<(ChunkId, PackId)>>, DbError> {
        self.ids.places(hashes).await
    }

    /// Moves chunks of lost packs to other packs.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn relocate(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), DbError> {
        self.ids.relocate(chunks).await
    }

    /// Number of ids given so far.
    pub fn given(&self) -> u64 {
        self.ids.given()
    }

    /// First quota of the product or the token that does not suffice for `released` more bytes of
    /// releases.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn over_quota(
        &mut self,
        product: &Name,
        token: &str,
        released: u64,
    ) -> Result<Option<OverQuota>, DbError> {
        quotas::exceeded(&mut self.ids.tx, product, token, 0, released).await.map_err(failed(WHAT))
    }

    /// Numbers the release that this commit makes.
    ///
    /// # Errors
    /// [`DbError::Query`], also when there is no such product.
    pub async fn number(&mut self, product: &Name, now: UnixSeconds) -> Result<u64, DbError> {
        products::next_sequence(&mut *self.ids.tx, product, now).await.map_err(failed(WHAT))
    }

    /// Inserts the release, unless it is there, and commits. Returns the objects of packs in which
    /// no chunk is new, for the caller to delete.
    ///
    /// The manifest must be durable in the object store before.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn finish(mut self, release: Option<&ReleaseRow>) -> Result<Vec<String>, DbError> {
        let upload = self.upload.to_string();
        self.ids.count().await?;
        let tx = &mut self.ids.tx;
        if let Some(release) = release {
            releases::insert(&mut **tx, release).await.map_err(failed(WHAT))?;
        }
        sqlx::query(
            "INSERT INTO doomed (object, since) SELECT object, 0 FROM packs WHERE upload = $1 \
             AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id) ON CONFLICT (object) DO NOTHING",
        )
        .bind(upload.clone())
        .execute(&mut **tx)
        .await
        .map_err(failed(WHAT))?;
        let unused = sqlx::query(
            "DELETE FROM packs WHERE upload = $1 \
             AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id) RETURNING object",
        )
        .bind(upload.clone())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(WHAT))?;
        sqlx::query("UPDATE packs SET upload = NULL, chunk_index = NULL WHERE upload = $1")
            .bind(upload)
            .execute(&mut **tx)
            .await
            .map_err(failed(WHAT))?;
        if let Some(release) = release {
            let row = sqlx::query("SELECT token, created_by FROM uploads WHERE id = $1")
                .bind(self.upload.to_string())
                .fetch_one(&mut *self.ids.tx)
                .await;
            let by =
                row.and_then(|row| Ok(MoveBy { token: row.text("token")?, label: row.text("created_by")? }));
            let by = by.map_err(failed(WHAT))?;
            sqlx::query("UPDATE releases SET token = $1, stored = $2 WHERE product = $3 AND version = $4")
                .bind(by.token.clone())
                .bind(signed(self.ids.given_bytes()))
                .bind(release.product.to_string())
                .bind(release.version.to_string())
                .execute(&mut *self.ids.tx)
                .await
                .map_err(failed(WHAT))?;
            let acting = Actor::by(&by, release.created);
            let (subject, details) = (releases::subject(release), releases::details(release));
            append(&mut self.ids.tx, &acting, "release.publish", &subject, &details)
                .await
                .map_err(failed(WHAT))?;
            tell_if_nearly_full(&mut self.ids.tx, &release.product, &by.token, release.created)
                .await
                .map_err(failed(WHAT))?;
        }
        self.ids.tx.commit().await.map_err(failed(WHAT))?;
        let objects: Result<_, _> = unused.iter().map(|row| row.text("object")).collect();
        objects.map_err(failed(WHAT))
    }
}
