//! Chunks: the place of each one, by id and by hash.
//!
//! Table `chunks`: id ↔ hash, and where it lies: pack, offset, stored length, raw length, codec.
//! Chunks of an open upload have no rows: the origin keeps them in memory, 40 bytes each, and reads
//! them again from the `chunk_index` of the upload's packs when it restarts. A row for each,
//! written, read and deleted again, took a quarter of the origin's time in a push.

use std::collections::HashMap;

use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkHash, ChunkId};
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::bulk::{LIST_MAX, padded, padded_len};
use super::row::{Columns, impossible, signed};
use super::{Db, DbError, Engine, PackId, failed};
use distd_core::packing::Codec;

/// Ranges in one statement: an expression of SQLite may be a thousand deep.
const RANGES_AT_ONCE: usize = 400;

/// Place of a chunk's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// First byte in the pack.
    pub offset: u64,
    /// Stored length, bytes.
    pub stored_len: u32,
    /// Raw length, bytes.
    pub raw_len: u32,
    /// Form of the stored bytes.
    pub codec: Codec,
}

/// A chunk that some release has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRow {
    /// Its id.
    pub id: ChunkId,
    /// Its hash.
    pub hash: ChunkHash,
    /// Its place.
    pub location: Location,
}

pub(super) const LOCATION: &str = "pack, pack_offset, stored_len, raw_len, codec";

pub(super) fn read_location(row: &AnyRow) -> Result<Location, sqlx::Error> {
    Ok(Location {
        pack: PackId(row.number("pack")?),
        offset: row.number("pack_offset")?,
        stored_len: row.number32("stored_len")?,
        raw_len: row.number32("raw_len")?,
        codec: u8::try_from(row.number("codec")?)
            .ok()
            .and_then(Codec::from_code)
            .ok_or_else(|| impossible("codec"))?,
    })
}

pub(super) fn read(row: &AnyRow) -> Result<ChunkRow, sqlx::Error> {
    Ok(ChunkRow {
        id: ChunkId(row.number("id")?),
        hash: ChunkHash(row.hash("hash")?),
        location: read_location(row)?,
    })
}

// Hashes are looked up by joining a VALUES list and not by `IN`: a prepared `IN` of parameters is
// compared one by one in PostgreSQL, 18 s for the 70 000 chunks of an image. CROSS JOIN keeps
// SQLite from exchanging the loops.

/// Returns the rows of those hashes that have one, as `read` reads these columns of the table `c`;
/// at most [`LIST_MAX`] hashes.
async fn by_hash<'e, T>(
    on: impl Executor<'e, Database = Any>,
    engine: Engine,
    hashes: &[ChunkHash],
    columns: &str,
    read: impl Fn(&AnyRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, sqlx::Error> {
    let sql = format!(
        "WITH wanted (hash) AS (VALUES {}) SELECT {columns} FROM wanted CROSS JOIN chunks c \
         WHERE c.hash = wanted.hash",
        engine.values(padded_len(hashes), 1)
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for hash in padded(hashes) {
        query = query.bind(hash.as_bytes().as_slice());
    }
    query.fetch_all(on).await?.iter().map(read).collect()
}

/// Ids of those hashes that have one; at most [`LIST_MAX`] hashes. The index of hashes alone
/// answers this.
pub(super) async fn ids_of<'e>(
    on: impl Executor<'e, Database = Any>,
    engine: Engine,
    hashes: &[ChunkHash],
) -> Result<Vec<(ChunkHash, ChunkId)>, sqlx::Error> {
    let read = |row: &AnyRow| Ok((ChunkHash(row.hash("hash")?), ChunkId(row.number("id")?)));
    by_hash(on, engine, hashes, "c.id, c.hash", read).await
}

/// Ids and places of those hashes that have an id; at most [`LIST_MAX`] hashes.
pub(super) async fn places_of<'e>(
    on: impl Executor<'e, Database = Any>,
    engine: Engine,
    hashes: &[ChunkHash],
) -> Result<Vec<(ChunkHash, ChunkId, Location)>, sqlx::Error> {
    let columns = format!("c.id, c.hash, {LOCATION}");
    let read = |row: &AnyRow| read(row).map(|row| (row.hash, row.id, row.location));
    by_hash(on, engine, hashes, &columns, read).await
}

impl Db {
    /// Returns the ids and places of the chunks, in the order of `hashes`; `None` for a chunk that
    /// no release has.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn places(&self, hashes: &[ChunkHash]) -> Result<Vec<Option<(ChunkId, Location)>>, DbError> {
        let mut all = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(LIST_MAX) {
            let found =
                places_of(&self.pool, self.engine, batch).await.map_err(failed("find chunks by hash"))?;
            let found: HashMap<ChunkHash, (ChunkId, Location)> =
                found.into_iter().map(|(hash, id, location)| (hash, (id, location))).collect();
            all.extend(batch.iter().map(|hash| found.get(hash).copied()));
        }
        Ok(all)
    }

    /// Ids of hashes in the order given; `None` for a hash without an id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn chunk_ids(&self, hashes: &[ChunkHash]) -> Result<Vec<Option<ChunkId>>, DbError> {
        let mut all = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(LIST_MAX) {
            let found =
                ids_of(&self.pool, self.engine, batch).await.map_err(failed("find chunks by hash"))?;
            let found: HashMap<_, _> = found.into_iter().collect();
            all.extend(batch.iter().map(|hash| found.get(hash).copied()));
        }
        Ok(all)
    }

    /// Chunks from `first` to `last` inclusive, by id, at most `limit` of them. Ids that are not
    /// there are left out.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn chunks_in(
        &self,
        first: ChunkId,
        last: ChunkId,
        limit: u32,
    ) -> Result<Vec<ChunkRow>, DbError> {
        let sql = format!(
            "SELECT id, hash, {LOCATION} FROM chunks WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT $3"
        );
        // Ids come from peers and may be anything; no chunk has an id above the largest there can
        // be.
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(i64::try_from(first.0).unwrap_or(i64::MAX))
            .bind(i64::try_from(last.0).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("find chunks by id"))
    }

    /// Number of chunks in ranges of ids that do not overlap, and their stored bytes.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn chunks_cost(&self, ranges: &ChunkRanges) -> Result<(u64, u64), DbError> {
        let what = "add up chunks by id";
        let ranges: Vec<String> = ranges
            .iter()
            .map(|range| format!("id BETWEEN {} AND {}", range.start().0, range.end().0))
            .collect();
        let (mut chunks, mut bytes) = (0, 0);
        for some in ranges.chunks(RANGES_AT_ONCE) {
            // SUM of BIGINT is NUMERIC in PostgreSQL. Numbers alone are put into the statement.
            let sql = format!(
                "SELECT COUNT(*) AS chunks, CAST(COALESCE(SUM(stored_len), 0) AS BIGINT) AS bytes FROM chunks WHERE {}",
                some.join(" OR ")
            );
            let row =
                sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&self.pool).await.map_err(failed(what))?;
            chunks += row.number("chunks").map_err(failed(what))?;
            bytes += row.number("bytes").map_err(failed(what))?;
        }
        Ok((chunks, bytes))
    }

    /// The highest chunk id given so far; 0 for none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn last_chunk_id(&self) -> Result<u64, DbError> {
        let what = "read the chunk counter";
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'chunk_id'")
            .fetch_one(&self.pool)
            .await
            .map_err(failed(what))?;
        row.number("value").map_err(failed(what))
    }

    /// Chunks by id, in no particular order; ids that are not there are left out.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn chunks_by_id(&self, ids: &[ChunkId]) -> Result<Vec<ChunkRow>, DbError> {
        let what = "find chunks by id";
        let mut found = Vec::with_capacity(ids.len());
        for batch in ids.chunks(LIST_MAX) {
            let sql = format!(
                "SELECT id, hash, {LOCATION} FROM chunks WHERE id IN ({})",
                self.engine.list(1, padded_len(batch))
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            for id in padded(batch) {
                query = query.bind(signed(id.0.min(i64::MAX as u64)));
            }
            let rows = query.fetch_all(&self.pool).await.map_err(failed(what))?;
            for row in &rows {
                found.push(read(row).map_err(failed(what))?);
            }
        }
        Ok(found)
    }
}
