//! Giving chunk ids, in a transaction that holds the chunk counter.
//!
//! A transaction that gives ids takes the counter's row first, so such transactions take turns, on
//! every replica: ids are given without gaps between neighbours of one artifact, and a hash gets
//! one id only.
//!
//! Table `counters`: `chunk_id`, the last chunk id given, whose row is also the lock that
//! serialises commits and the recording of patch sets; `tokens`, the row that serialises
//! revocations of API tokens; `fleet`, which grows with each change of groups and grants, and whose
//! row serialises them; `gc`, when releases were last collected; `audit` and `webhook`, the numbers
//! of the newest entry of the audit log and of the newest event.

use std::collections::HashMap;

use distd_core::{ChunkHash, ChunkId};
use sqlx::{Any, Transaction};

use super::bulk::{LIST_MAX, ROWS_MAX};
use super::chunks::{ids_of, places_of};
use super::row::{Columns, signed};
use super::{Db, DbError, Engine, Location, MovedChunk, PackId, failed};

const WHAT: &str = "give chunk ids";

/// Transaction that may give ids. If it is dropped without a commit, nothing has changed.
#[derive(Debug)]
pub(super) struct IdTx {
    pub(super) tx: Transaction<'static, Any>,
    engine: Engine,
    last_id: u64,
    given: u64,
    given_bytes: u64,
}

impl IdTx {
    /// Begins a transaction as soon as no other one gives ids.
    pub(super) async fn begin(db: &Db) -> Result<Self, DbError> {
        let mut tx = db.begin_write().await?;
        let row = sqlx::query("UPDATE counters SET value = value WHERE name = 'chunk_id' RETURNING value")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("lock the chunk counter"))?;
        let last_id = row.number("value").map_err(failed("lock the chunk counter"))?;
        Ok(Self { tx, engine: db.engine, last_id, given: 0, given_bytes: 0 })
    }

    /// Ids of hashes in the order given; `None` for a hash without an id.
    pub(super) async fn ids(&mut self, hashes: &[ChunkHash]) -> Result<Vec<Option<ChunkId>>, DbError> {
        let mut all = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(LIST_MAX) {
            let found = ids_of(&mut *self.tx, self.engine, batch).await.map_err(failed(WHAT))?;
            let found: HashMap<ChunkHash, ChunkId> = found.into_iter().collect();
            all.extend(batch.iter().map(|hash| found.get(hash).copied()));
        }
        Ok(all)
    }

    /// Ids and packs of hashes in the order given; `None` for a hash without an id.
    pub(super) async fn places(
        &mut self,
        hashes: &[ChunkHash],
    ) -> Result<Vec<Option<(ChunkId, PackId)>>, DbError> {
        let mut all = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(LIST_MAX) {
            let found = places_of(&mut *self.tx, self.engine, batch).await.map_err(failed(WHAT))?;
            let found: HashMap<ChunkHash, (ChunkId, PackId)> =
                found.into_iter().map(|(hash, id, at)| (hash, (id, at.pack))).collect();
            all.extend(batch.iter().map(|hash| found.get(hash).copied()));
        }
        Ok(all)
    }

    /// Writes the new places of chunks, each of which occurs once. [`ROWS_MAX`] rows a statement.
    pub(super) async fn relocate(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), DbError> {
        for rows in chunks.chunks(ROWS_MAX) {
            let sql = format!(
                "WITH moved (id, pack, pack_offset, stored_len, raw_len, codec) AS (VALUES {}) UPDATE chunks SET \
                 pack = moved.pack, pack_offset = moved.pack_offset, stored_len = moved.stored_len, \
                 raw_len = moved.raw_len, codec = moved.codec FROM moved WHERE chunks.id = moved.id",
                self.engine.values(rows.len(), 6)
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows.len() == ROWS_MAX);
            for (id, location) in rows {
                query = query
                    .bind(signed(id.0))
                    .bind(signed(location.pack.0))
                    .bind(signed(location.offset))
                    .bind(i64::from(location.stored_len))
                    .bind(i64::from(location.raw_len))
                    .bind(i64::from(location.codec.code()));
            }
            query.execute(&mut *self.tx).await.map_err(failed("move chunks out of a lost pack"))?;
        }
        Ok(())
    }

    /// Moves chunks, each of which occurs once, to a new pack, except for those that were deleted
    /// or moved since they were read. [`ROWS_MAX`] rows a statement. Returns the number moved.
    pub(super) async fn move_to(&mut self, pack: PackId, chunks: &[MovedChunk]) -> Result<u64, DbError> {
        let mut moved = 0;
        for rows in chunks.chunks(ROWS_MAX) {
            let sql = format!(
                "WITH moved (id, from_pack, from_offset, pack_offset) AS (VALUES {}) UPDATE chunks SET pack = {}, \
                 pack_offset = moved.pack_offset FROM moved WHERE chunks.id = moved.id \
                 AND chunks.pack = moved.from_pack AND chunks.pack_offset = moved.from_offset",
                self.engine.values(rows.len(), 4),
                self.engine.list(rows.len() * 4 + 1, 1)
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows.len() == ROWS_MAX);
            for chunk in rows {
                query = query
                    .bind(signed(chunk.id.0))
                    .bind(signed(chunk.from.pack.0))
                    .bind(signed(chunk.from.offset))
                    .bind(signed(chunk.offset));
            }
            let done = query
                .bind(signed(pack.0))
                .execute(&mut *self.tx)
                .await
                .map_err(failed("move chunks to another pack"))?;
            moved += done.rows_affected();
        }
        Ok(moved)
    }

    /// Gives the next ids to chunks that have none, in order. Fails when one of them has an id.
    pub(super) async fn give(&mut self, chunks: &[(ChunkHash, Location)]) -> Result<Vec<ChunkId>, DbError> {
        let first = self.last_id + 1;
        let mut ids = first..;
        for rows in chunks.chunks(ROWS_MAX) {
            let sql = format!(
                "INSERT INTO chunks (id, hash, pack, pack_offset, stored_len, raw_len, codec) VALUES {}",
                self.engine.values(rows.len(), 7)
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows.len() == ROWS_MAX);
            for ((hash, location), id) in rows.iter().zip(&mut ids) {
                query = query
                    .bind(signed(id))
                    .bind(hash.as_bytes().as_slice())
                    .bind(signed(location.pack.0))
                    .bind(signed(location.offset))
                    .bind(i64::from(location.stored_len))
                    .bind(i64::from(location.raw_len))
                    .bind(i64::from(location.codec.code()));
            }
            query.execute(&mut *self.tx).await.map_err(failed(WHAT))?;
        }
        self.last_id += chunks.len() as u64;
        self.given += chunks.len() as u64;
        self.given_bytes += chunks.iter().map(|(_, at)| u64::from(at.stored_len)).sum::<u64>();
        Ok((first..=self.last_id).map(ChunkId).collect())
    }

    /// Engine of the database.
    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    /// Number of ids that this transaction has given.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// Stored bytes of the chunks that this transaction gave ids to.
    pub(super) fn given_bytes(&self) -> u64 {
        self.given_bytes
    }

    /// Stores the last id given in the counter.
    pub(super) async fn count(&mut self) -> Result<(), DbError> {
        sqlx::query("UPDATE counters SET value = $1 WHERE name = 'chunk_id'")
            .bind(signed(self.last_id))
            .execute(&mut *self.tx)
            .await
            .map(drop)
            .map_err(failed(WHAT))
    }
}
