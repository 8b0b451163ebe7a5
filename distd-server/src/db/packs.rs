//! Packs: the objects that hold chunks.

use distd_core::ChunkHash;

use super::bulk::{LIST_MAX, ROWS_MAX, padded, padded_len};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, UploadId, failed};
use distd_core::packing::Codec;

/// A pack's row; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

/// A chunk as it lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Hash of the raw bytes.
    pub hash: ChunkHash,
    /// Where its stored bytes begin in the pack.
    pub offset: u32,
    /// Stored length, bytes.
    pub stored_len: u32,
    /// Raw length, bytes.
    pub raw_len: u32,
    /// Form of the stored bytes.
    pub codec: Codec,
}

impl Db {
    /// Records a pack that is durable in the object store, and its chunks, as part of an upload, whose end moves
    /// to `expires`. `false`, and nothing recorded, when the upload is not open: delete the object then.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn record_pack(
        &self,
        upload: &UploadId,
        object: &str,
        bytes: u64,
        chunks: &[PackEntry],
        now: UnixSeconds,
        expires: UnixSeconds,
    ) -> Result<bool, DbError> {
        let what = "record the pack";
        let mut tx = self.begin_write().await?;
        // Also locks the upload's row, so that an abort or commit comes before or after, never between.
        let open = sqlx::query("UPDATE uploads SET expires = $1 WHERE id = $2 AND state = 'open'")
            .bind(expires)
            .bind(upload.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if open.rows_affected() == 0 {
            return Ok(false);
        }
        let row = sqlx::query(
            "INSERT INTO packs (object, bytes, upload, created) VALUES ($1, $2, $3, $4) RETURNING id",
        )
        .bind(object.to_owned())
        .bind(signed(bytes))
        .bind(upload.to_string())
        .bind(now)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(what))?;
        let pack = row.number("id").map_err(failed(what))?;
        for rows in chunks.chunks(ROWS_MAX) {
            let sql = format!(
                "INSERT INTO upload_chunks (upload, hash, pack, pack_offset, stored_len, raw_len, codec) \
                 VALUES {} ON CONFLICT (upload, hash) DO NOTHING",
                self.engine.values(rows.len(), 7)
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows.len() == ROWS_MAX);
            for chunk in rows {
                query = query
                    .bind(upload.to_string())
                    .bind(chunk.hash.as_bytes().as_slice())
                    .bind(signed(pack))
                    .bind(i64::from(chunk.offset))
                    .bind(i64::from(chunk.stored_len))
                    .bind(i64::from(chunk.raw_len))
                    .bind(i64::from(chunk.codec.code()));
            }
            query.execute(&mut *tx).await.map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
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

    /// Which of these objects are packs that the database knows.
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
}
