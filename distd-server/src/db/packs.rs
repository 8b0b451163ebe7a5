//! Packs: the objects that hold chunks.
//!
//! Table `packs`: object name and length; `upload` while its chunks belong to no release, and then
//! `chunk_index`, the index the pack ends with; `emptied` once its chunks were moved to other packs
//! (docs/store.md, "Compaction").

use distd_core::ChunkId;
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::bulk::{LIST_MAX, padded, padded_len};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, UploadId, failed};
use crate::store::pack::{ENTRY_BYTES, TRAILER_BYTES};

/// Number of a pack's row; no number is given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

/// Reader of the indexes of packs.
pub trait PackIndexes {
    /// The index of a pack; `None` once its upload is over.
    ///
    /// # Errors
    /// [`DbError::Query`].
    fn pack_index(&mut self, pack: PackId) -> impl Future<Output = Result<Option<Vec<u8>>, DbError>> + Send;
}

impl PackIndexes for Db {
    async fn pack_index(&mut self, pack: PackId) -> Result<Option<Vec<u8>>, DbError> {
        read_index(&self.pool, pack).await
    }
}

pub(super) async fn read_index<'e>(
    on: impl Executor<'e, Database = Any>,
    pack: PackId,
) -> Result<Option<Vec<u8>>, DbError> {
    let what = "read the index of a pack";
    let row = sqlx::query("SELECT chunk_index FROM packs WHERE id = $1 AND chunk_index IS NOT NULL")
        .bind(signed(pack.0))
        .fetch_optional(on)
        .await
        .map_err(failed(what))?;
    row.map(|row| row.blob("chunk_index")).transpose().map_err(failed(what))
}

/// Bytes of packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackUsage {
    /// Bytes of all packs.
    pub bytes: u64,
    /// Number of all packs.
    pub packs: u64,
    /// Bytes of the packs of open uploads.
    pub uploads: u64,
    /// Bytes of packs that were emptied and are still there for their readers.
    pub emptied: u64,
    /// Stored bytes of the chunks of releases and patch sets.
    pub live: u64,
    /// Number of those chunks.
    pub chunks: u64,
}

impl PackUsage {
    /// Bytes that no chunk uses, in packs that are neither an open upload's nor emptied. The
    /// indexes of the packs are no such bytes.
    pub fn dead(&self) -> u64 {
        let index = self.chunks * ENTRY_BYTES as u64 + self.packs * TRAILER_BYTES as u64;
        self.bytes.saturating_sub(self.uploads + self.emptied + self.live + index)
    }
}

impl Db {
    /// Records a pack that is durable in the object store, with the index of its chunks, as part of
    /// an upload, whose end moves to `expires`. `None`, and nothing recorded, when the upload is
    /// not open: delete the object then.
    ///
    /// Chunks get rows of their own only when they get ids. One row a chunk for an upload that may
    /// never be committed, by hash and so all over the table, took a quarter of the origin's time
    /// in a push.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn record_pack(
        &self,
        upload: &UploadId,
        object: &str,
        bytes: u64,
        index: &[u8],
        now: UnixSeconds,
        expires: UnixSeconds,
    ) -> Result<Option<PackId>, DbError> {
        let what = "record the pack";
        let mut tx = self.begin_write().await?;
        // Also locks the upload's row, so that an abort or commit comes before or after, never
        // between.
        let open = sqlx::query("UPDATE uploads SET expires = $1 WHERE id = $2 AND state = 'open'")
            .bind(expires)
            .bind(upload.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if open.rows_affected() == 0 {
            return Ok(None);
        }
        let row = sqlx::query(
            "INSERT INTO packs (object, bytes, upload, created, chunk_index) VALUES ($1, $2, $3, $4, $5) \
             RETURNING id",
        )
        .bind(object.to_owned())
        .bind(signed(bytes))
        .bind(upload.to_string())
        .bind(now)
        .bind(index)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(what))?;
        let pack = row.number("id").map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(Some(PackId(pack)))
    }

    /// The packs of an open upload, ascending.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn upload_packs(&self, upload: &UploadId) -> Result<Vec<PackId>, DbError> {
        let what = "list the packs of the upload";
        let rows = sqlx::query("SELECT id FROM packs WHERE upload = $1 ORDER BY id")
            .bind(upload.to_string())
            .fetch_all(&self.pool)
            .await
            .map_err(failed(what))?;
        rows.iter().map(|row| Ok(PackId(row.number("id")?))).collect::<Result<_, _>>().map_err(failed(what))
    }

    /// Object names of packs.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pack_objects(&self, packs: &[PackId]) -> Result<Vec<(PackId, String)>, DbError> {
        let what = "find packs";
        let mut found = Vec::with_capacity(packs.len());
        for ids in packs.chunks(LIST_MAX) {
            let sql = format!(
                "SELECT id, object FROM packs WHERE id IN ({})",
                self.engine.list(1, padded_len(ids))
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            for id in padded(ids) {
                query = query.bind(signed(id.0));
            }
            for row in query.fetch_all(&self.pool).await.map_err(failed(what))? {
                found.push((
                    PackId(row.number("id").map_err(failed(what))?),
                    row.text("object").map_err(failed(what))?,
                ));
            }
        }
        Ok(found)
    }

    /// Whether each of these objects is a pack that the database knows.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn packs_known(&self, objects: &[String]) -> Result<Vec<bool>, DbError> {
        let what = "find packs";
        let mut known = std::collections::HashSet::new();
        for names in objects.chunks(LIST_MAX) {
            let sql =
                format!("SELECT object FROM packs WHERE object IN ({})", self.engine.list(1, names.len()));
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
            for name in names {
                query = query.bind(name.clone());
            }
            for row in query.fetch_all(&self.pool).await.map_err(failed(what))? {
                known.insert(row.text("object").map_err(failed(what))?);
            }
        }
        Ok(objects.iter().map(|name| known.contains(name)).collect())
    }

    /// The pack of an object.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pack_of(&self, object: &str) -> Result<Option<PackId>, DbError> {
        let row = sqlx::query("SELECT id FROM packs WHERE object = $1")
            .bind(object.to_owned())
            .fetch_optional(&self.pool)
            .await;
        row.and_then(|row| row.map(|row| Ok(PackId(row.number("id")?))).transpose())
            .map_err(failed("find the pack"))
    }

    /// Every pack: its row, its object and the object's length.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn packs(&self) -> Result<Vec<(PackId, String, u64)>, DbError> {
        let rows = sqlx::query("SELECT id, object, bytes FROM packs ORDER BY id").fetch_all(&self.pool).await;
        let read = |row: &AnyRow| Ok((PackId(row.number("id")?), row.text("object")?, row.number("bytes")?));
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the packs"))
    }

    /// Ids of the chunks in a pack.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pack_chunks(&self, pack: PackId) -> Result<Vec<ChunkId>, DbError> {
        let rows = sqlx::query("SELECT id FROM chunks WHERE pack = $1 ORDER BY id")
            .bind(signed(pack.0))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(|row| Ok(ChunkId(row.number("id")?))).collect())
            .map_err(failed("list the chunks of a pack"))
    }

    /// Forgets a pack in which no chunk lies any more and that no upload has. Returns `false`
    /// otherwise.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forget_empty_pack(&self, pack: PackId) -> Result<bool, DbError> {
        let done = sqlx::query(
            "DELETE FROM packs WHERE id = $1 AND upload IS NULL \
             AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id)",
        )
        .bind(signed(pack.0))
        .execute(&self.pool)
        .await
        .map_err(failed("forget a lost pack"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Bytes of all packs known: what the chunks cost in the object store.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pack_bytes(&self) -> Result<u64, DbError> {
        let what = "sum up the packs";
        let row = sqlx::query("SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM packs")
            .fetch_one(&self.pool)
            .await
            .map_err(failed(what))?;
        row.number("bytes").map_err(failed(what))
    }

    /// Bytes of the packs that hold chunks of releases and patch sets: in all, of chunks that are
    /// used, and of uploads that are open.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pack_usage(&self) -> Result<PackUsage, DbError> {
        let what = "sum up the packs";
        let packs = sqlx::query(
            "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS every, COUNT(*) AS packs, \
             CAST(COALESCE(SUM(CASE WHEN upload IS NOT NULL THEN bytes ELSE 0 END), 0) AS BIGINT) AS uploads, \
             CAST(COALESCE(SUM(CASE WHEN emptied IS NOT NULL THEN bytes ELSE 0 END), 0) AS BIGINT) AS emptied \
             FROM packs",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed(what))?;
        let chunks = sqlx::query(
            "SELECT CAST(COALESCE(SUM(stored_len), 0) AS BIGINT) AS live, COUNT(*) AS chunks FROM chunks",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed(what))?;
        let read = || -> Result<PackUsage, sqlx::Error> {
            Ok(PackUsage {
                bytes: packs.number("every")?,
                packs: packs.number("packs")?,
                uploads: packs.number("uploads")?,
                emptied: packs.number("emptied")?,
                live: chunks.number("live")?,
                chunks: chunks.number("chunks")?,
            })
        };
        read().map_err(failed(what))
    }
}
