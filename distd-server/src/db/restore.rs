//! Rows made again from the store: for a database that is lost or older than its store.

use std::collections::BTreeMap;

use distd_core::ChunkId;
use distd_core::cut::CutParams;

use super::audit::append;
use super::row::{Columns, signed};
use super::{Db, DbError, ReleaseRow, failed, products, releases};
use crate::store::pack::PackEntry;

const WHAT: &str = "make the rows of a release again";

/// Packs and chunks that lack rows: by object, its length and its chunks with their ids.
#[derive(Clone, Debug, Default)]
pub struct Restoration {
    /// By object.
    pub packs: BTreeMap<String, (u64, Vec<(ChunkId, PackEntry)>)>,
}

impl Db {
    /// Raises the chunk counter to at least `id`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn raise_chunk_counter(&self, id: u64) -> Result<(), DbError> {
        sqlx::query("UPDATE counters SET value = $1 WHERE name = 'chunk_id' AND value < $1")
            .bind(signed(id))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("raise the chunk counter"))
    }

    /// Inserts a release with packs and chunks that lack rows, all or nothing. The product is made
    /// when it is not there.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn restore_release(
        &self,
        release: &ReleaseRow,
        cut: CutParams,
        rows: &Restoration,
    ) -> Result<(), DbError> {
        self.ensure_product(&release.product, cut, release.created).await?;
        let mut tx = self.begin_write().await?;
        for (object, (bytes, chunks)) in &rows.packs {
            // A release restored before may have brought the pack.
            sqlx::query(
                "INSERT INTO packs (object, bytes, upload, created) VALUES ($1, $2, NULL, $3) \
                 ON CONFLICT (object) DO NOTHING",
            )
            .bind(object.clone())
            .bind(signed(*bytes))
            .bind(release.created)
            .execute(&mut *tx)
            .await
            .map_err(failed(WHAT))?;
            let row = sqlx::query("SELECT id FROM packs WHERE object = $1")
                .bind(object.clone())
                .fetch_one(&mut *tx)
                .await
                .map_err(failed(WHAT))?;
            let pack = row.number("id").map_err(failed(WHAT))?;
            for (id, entry) in chunks {
                sqlx::query(
                    "INSERT INTO chunks (id, hash, pack, pack_offset, stored_len, raw_len, codec) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7)",
                )
                .bind(signed(id.0))
                .bind(entry.hash.as_bytes().as_slice())
                .bind(signed(pack))
                .bind(i64::from(entry.offset))
                .bind(i64::from(entry.stored_len))
                .bind(i64::from(entry.raw_len))
                .bind(i64::from(entry.codec.code()))
                .execute(&mut *tx)
                .await
                .map_err(failed(WHAT))?;
            }
        }
        products::last_sequence(&mut *tx, &release.product, release.sequence).await.map_err(failed(WHAT))?;
        releases::insert(&mut *tx, release).await.map_err(failed(WHAT))?;
        let (subject, details) = (releases::subject(release), releases::details(release));
        append(&mut tx, &self.acting, "release.restore", &subject, &details).await.map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))
    }
}
