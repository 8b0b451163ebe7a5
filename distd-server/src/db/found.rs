//! Chunks of lost packs that lie in other packs of the store.

use std::collections::HashMap;

use distd_core::ChunkHash;

use super::bulk::ROWS_MAX;
use super::ids::IdTx;
use super::row::{Columns, signed};
use super::{Db, DbError, Location, PackId, UnixSeconds, doomed, failed};
use crate::store::pack::PackEntry;

const WHAT: &str = "move chunks of a lost pack to where they were found";

/// Most chunks of one [`Db::relocate_found`]: one statement, and a short transaction.
pub const FOUND_MAX: usize = ROWS_MAX;

impl Db {
    /// Whether the rows of chunks name a pack.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pack_has_chunks(&self, pack: PackId) -> Result<bool, DbError> {
        let row = sqlx::query("SELECT id FROM chunks WHERE pack = $1 LIMIT 1")
            .bind(signed(pack.0))
            .fetch_optional(&self.pool)
            .await;
        row.map(|row| row.is_some()).map_err(failed("look for chunks of a pack"))
    }

    /// Moves the rows of chunks that lie in a pack for which `is_lost` holds to the pack `object`,
    /// which is in the store with a length of `bytes`, and in which the caller has found and
    /// verified the chunks. At most [`FOUND_MAX`] entries. All in one transaction.
    ///
    /// The pack gets a row where it has none, and is no longer doomed or emptied. A pack of an open
    /// upload stays the upload's, and nothing moves to it: the end of an upload deletes its packs.
    /// Returns the number of chunks moved.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn relocate_found(
        &self,
        object: &str,
        bytes: u64,
        entries: &[PackEntry],
        is_lost: &(dyn Fn(PackId) -> bool + Sync),
        now: UnixSeconds,
    ) -> Result<u64, DbError> {
        debug_assert!(entries.len() <= FOUND_MAX, "callers bound the transaction");
        let mut ids = IdTx::begin(self).await?;
        let engine = ids.engine();
        sqlx::query(
            "INSERT INTO packs (object, bytes, upload, created) VALUES ($1, $2, NULL, $3) \
             ON CONFLICT (object) DO NOTHING",
        )
        .bind(object.to_owned())
        .bind(signed(bytes))
        .bind(now)
        .execute(&mut *ids.tx)
        .await
        .map_err(failed(WHAT))?;
        let row = sqlx::query("SELECT id, bytes, upload FROM packs WHERE object = $1")
            .bind(object.to_owned())
            .fetch_one(&mut *ids.tx)
            .await
            .map_err(failed(WHAT))?;
        let pack = PackId(row.number("id").map_err(failed(WHAT))?);
        let of_upload = row.text_or_none("upload").map_err(failed(WHAT))?.is_some();
        if of_upload || is_lost(pack) || row.number("bytes").map_err(failed(WHAT))? != bytes {
            return Ok(0);
        }
        let by_hash: HashMap<ChunkHash, &PackEntry> =
            entries.iter().map(|entry| (entry.hash, entry)).collect();
        let hashes: Vec<ChunkHash> = by_hash.keys().copied().collect();
        let mut moved = Vec::new();
        for (hash, place) in hashes.iter().zip(ids.places(&hashes).await?) {
            let Some((id, _)) = place.filter(|(_, pack)| is_lost(*pack)) else { continue };
            let entry = by_hash[hash];
            let location = Location {
                pack,
                offset: u64::from(entry.offset),
                stored_len: entry.stored_len,
                raw_len: entry.raw_len,
                codec: entry.codec,
            };
            moved.push((id, location));
        }
        if moved.is_empty() {
            return Ok(0);
        }
        ids.relocate(&moved).await?;
        sqlx::query("UPDATE packs SET emptied = NULL WHERE id = $1")
            .bind(signed(pack.0))
            .execute(&mut *ids.tx)
            .await
            .map_err(failed(WHAT))?;
        doomed::spare(&mut *ids.tx, engine, &[object.to_owned()]).await.map_err(failed(WHAT))?;
        ids.tx.commit().await.map_err(failed(WHAT))?;
        Ok(moved.len() as u64)
    }
}
