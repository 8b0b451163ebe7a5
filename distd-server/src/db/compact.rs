//! Chunks that move out of packs that are mostly unused. docs/store.md, "Compaction", has the order
//! and what each crash leaves.

use std::collections::BTreeSet;

use distd_core::ChunkId;
use sqlx::any::AnyRow;

use super::bulk::LIST_MAX;
use super::chunks::{LOCATION, read};
use super::ids::IdTx;
use super::row::{Columns, signed};
use super::{ChunkRow, Db, DbError, Location, PackId, UnixSeconds, doomed, failed};

const WHAT: &str = "move chunks to another pack";

/// A pack and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparsePack {
    /// The pack.
    pub id: PackId,
    /// Its object's length.
    pub bytes: u64,
    /// Stored bytes of the chunks that lie in it.
    pub live_bytes: u64,
}

/// Old place of a chunk, and its new one in the pack that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedChunk {
    /// The chunk.
    pub id: ChunkId,
    /// Its old place.
    pub from: Location,
    /// First byte in the new pack.
    pub offset: u64,
}

impl Db {
    /// Packs of which at least one in `share` bytes is unused, the least used first, at most
    /// `limit`. Those of open uploads and those that were emptied are left out. Reads the row of
    /// every chunk.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn sparse_packs(&self, share: u64, limit: u32) -> Result<Vec<SparsePack>, DbError> {
        let rows = sqlx::query(
            "SELECT p.id AS id, p.bytes AS bytes, CAST(COALESCE(SUM(c.stored_len), 0) AS BIGINT) AS live \
             FROM packs p LEFT JOIN chunks c ON c.pack = p.id WHERE p.upload IS NULL AND p.emptied IS NULL \
             GROUP BY p.id, p.bytes \
             HAVING (p.bytes - COALESCE(SUM(c.stored_len), 0) - COUNT(c.id) * 41 - 48) * $1 >= p.bytes \
             ORDER BY COALESCE(SUM(c.stored_len), 0) * 1.0 / p.bytes, p.id LIMIT $2",
        )
        .bind(signed(share))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        let read = |row: &AnyRow| {
            Ok(SparsePack {
                id: PackId(row.number("id")?),
                bytes: row.number("bytes")?,
                live_bytes: row.number("live")?,
            })
        };
        rows.and_then(|rows| rows.iter().map(read).collect())
            .map_err(failed("look for packs that are mostly unused"))
    }

    /// The chunks that lie in a pack, in the order of their bytes.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn chunks_of_pack(&self, pack: PackId) -> Result<Vec<ChunkRow>, DbError> {
        let sql = format!("SELECT id, hash, {LOCATION} FROM chunks WHERE pack = $1 ORDER BY pack_offset");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(signed(pack.0)).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the chunks of a pack"))
    }

    /// Records a pack that is durable and noted as doomed, and moves these chunks to it; chunks
    /// that were deleted or moved meanwhile are left alone. Packs that are then empty are marked.
    /// Returns the number of chunks moved; if it is zero nothing is recorded, and the pack stays
    /// doomed.
    ///
    /// No commit, recording of patch sets or withdrawal runs meanwhile.
    ///
    /// # Errors
    /// [`DbError::Query`]; the answer may be lost, so delete nothing then.
    pub async fn move_chunks(
        &self,
        object: &str,
        bytes: u64,
        chunks: &[MovedChunk],
        now: UnixSeconds,
    ) -> Result<u64, DbError> {
        let mut ids = IdTx::begin(self).await?;
        let engine = ids.engine();
        let row = sqlx::query(
            "INSERT INTO packs (object, bytes, upload, created) VALUES ($1, $2, NULL, $3) RETURNING id",
        )
        .bind(object.to_owned())
        .bind(signed(bytes))
        .bind(now)
        .fetch_one(&mut *ids.tx)
        .await
        .map_err(failed(WHAT))?;
        let pack = row.number("id").map_err(failed(WHAT))?;
        let moved = ids.move_to(PackId(pack), chunks).await?;
        let sources: BTreeSet<PackId> = chunks.iter().map(|chunk| chunk.from.pack).collect();
        if moved == 0 {
            ids.tx.rollback().await.map_err(failed(WHAT))?;
            return Ok(0);
        }
        for source in sources {
            mark_emptied(&mut ids.tx, source, now).await.map_err(failed(WHAT))?;
        }
        doomed::spare(&mut *ids.tx, engine, &[object.to_owned()]).await.map_err(failed(WHAT))?;
        ids.tx.commit().await.map_err(failed(WHAT))?;
        Ok(moved)
    }

    /// Marks a pack in which no chunk lies.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_if_empty(&self, pack: PackId, now: UnixSeconds) -> Result<(), DbError> {
        let mut ids = IdTx::begin(self).await?;
        mark_emptied(&mut ids.tx, pack, now).await.map_err(failed(WHAT))?;
        ids.tx.commit().await.map_err(failed(WHAT))
    }

    /// Bytes of packs that were emptied and are still there for their readers.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn emptied_bytes(&self) -> Result<u64, DbError> {
        let what = "sum up the packs that were emptied";
        let row = sqlx::query(
            "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM packs WHERE emptied IS NOT NULL",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed(what))?;
        row.number("bytes").map_err(failed(what))
    }

    /// Forgets packs that were emptied at `until` or before, and enters their objects in `doomed`.
    /// Returns the names of the objects and the sum of their bytes.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forget_emptied(&self, until: UnixSeconds) -> Result<(Vec<String>, u64), DbError> {
        let what = "forget packs that were emptied";
        const EMPTIED: &str = "emptied <= $1 AND upload IS NULL \
                               AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id)";
        let mut tx = self.begin_write().await?;
        let sql = format!(
            "INSERT INTO doomed (object, since) SELECT object, 0 FROM packs WHERE {EMPTIED} \
             ON CONFLICT (object) DO NOTHING"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(until).execute(&mut *tx).await.map_err(failed(what))?;
        let sql = format!("DELETE FROM packs WHERE {EMPTIED} RETURNING object, bytes");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(until).fetch_all(&mut *tx).await;
        let mut objects = Vec::new();
        let mut bytes = 0;
        for row in rows.map_err(failed(what))? {
            objects.push(row.text("object").map_err(failed(what))?);
            bytes += row.number("bytes").map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        Ok((objects, bytes))
    }
}

async fn mark_emptied(
    tx: &mut sqlx::Transaction<'static, sqlx::Any>,
    pack: PackId,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE packs SET emptied = $1 WHERE id = $2 AND upload IS NULL AND emptied IS NULL \
         AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id)",
    )
    .bind(now)
    .bind(signed(pack.0))
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Rows of one listing: [`LIST_MAX`] is more than a round takes.
pub(crate) const SPARSE_MAX: u32 = LIST_MAX as u32;
