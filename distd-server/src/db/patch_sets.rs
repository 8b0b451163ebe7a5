//! Patch sets: which pairs of releases have one, and which wait for theirs.
//!
//! Table `patch_sets`: pairs of manifests of a product: queued, building, ready or failed, and the
//! manifest of the set (docs/store.md, "Patch sets"); `removing` while its bytes are on their way
//! out; while it is being made `worker`, the process that makes it (empty: the origin), and
//! `held_until`, the time at which another process may take it; `unlisted` until the list that
//! devices read is signed with it.

pub use distd_core::api::PatchSetState;
use distd_core::names::Name;
use distd_core::{ChunkHash, ChunkId, ManifestId};
use sqlx::any::AnyRow;

use super::ids::IdTx;
use super::row::{Columns, signed};
use super::{Db, DbError, Engine, Location, PackId, ReleaseRow, UnixSeconds, doomed, failed};

/// Rows of one listing.
const ROWS_MAX: i64 = 1000;

/// Time after which another process may take a set that a worker does not hold any more, seconds.
pub const HELD_SECONDS: i64 = 60;

/// Condition of a set that waits to be made at the time in this parameter: queued, or lost by its
/// worker.
fn waits(now: &str) -> String {
    format!("(state = 'queued' OR (state = 'building' AND worker <> '' AND held_until < {now}))")
}

/// Condition of a set that the maker in this parameter makes.
fn made_by(maker: &str) -> String {
    format!("state = 'building' AND worker = {maker}")
}

/// Name of a process that makes patch sets; empty for the origin that leads, of which there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maker(pub String);

/// Start of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// Another release.
    Pair,
    /// Nothing.
    Solid,
}

/// Identity of a set: releases of equal bytes have one set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchSetKey {
    /// The product.
    pub product: Name,
    /// The manifest a device has; [`ManifestId::NOTHING`] for a set that needs none.
    pub from: ManifestId,
    /// The manifest it gets.
    pub to: ManifestId,
}

impl PatchSetKey {
    /// Start of the set.
    pub fn kind(&self) -> SetKind {
        if self.from == ManifestId::NOTHING { SetKind::Solid } else { SetKind::Pair }
    }
}

/// One patch set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchSetRow {
    /// The set.
    pub key: PatchSetKey,
    /// The version it starts from, as asked for first; `None` for a set that starts from nothing.
    pub from_version: Option<Name>,
    /// The version it leads to, as asked for first.
    pub to_version: Name,
    /// Its state; a set that is made is `Building` until the list that devices read names it.
    pub state: PatchSetState,
    /// Manifest of the set; `None` until it is made, and then too when no patch would save
    /// anything.
    pub set: Option<ManifestId>,
    /// Length of the set, bytes.
    pub bytes: u64,
    /// Stored bytes of its targets as chunks.
    pub packed: u64,
    /// Number of its patches.
    pub patches: u64,
    /// Cause of the order: a token's label, or the origin's own step.
    pub requested_by: String,
    /// Cause of its failure.
    pub error: Option<String>,
    /// Time at which it was asked for.
    pub created: UnixSeconds,
    /// Time at which its making last began.
    pub started: Option<UnixSeconds>,
    /// Time at which it was made or had failed.
    pub finished: Option<UnixSeconds>,
}

/// Result of making a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MadeSet {
    /// Its manifest; `None` when no patch saves anything.
    pub set: Option<ManifestId>,
    /// Its length, bytes.
    pub bytes: u64,
    /// Stored bytes of its targets as chunks.
    pub packed: u64,
    /// Number of patches.
    pub patches: u64,
}

const COLUMNS: &str = "product, from_version, to_version, from_manifest, to_manifest, state, set_manifest, bytes, \
                       packed, patches, requested_by, error, created, started, finished, unlisted";

const KEY: &str = "product = $1 AND from_manifest = $2 AND to_manifest = $3";

fn read(row: &AnyRow) -> Result<PatchSetRow, sqlx::Error> {
    Ok(PatchSetRow {
        key: PatchSetKey {
            product: row.parsed("product")?,
            from: ManifestId(row.hash("from_manifest")?),
            to: ManifestId(row.hash("to_manifest")?),
        },
        from_version: match row.text("from_version")?.as_str() {
            "" => None,
            _ => Some(row.parsed("from_version")?),
        },
        to_version: row.parsed("to_version")?,
        state: match row.parsed("state")? {
            PatchSetState::Ready if row.number("unlisted")? > 0 => PatchSetState::Building,
            state => state,
        },
        set: row.hash_or_none("set_manifest")?.map(ManifestId),
        bytes: row.number("bytes")?,
        packed: row.number("packed")?,
        patches: row.number("patches")?,
        requested_by: row.text("requested_by")?,
        error: row.text_or_none("error")?,
        created: row.time("created")?,
        started: row.time_or_none("started")?,
        finished: row.time_or_none("finished")?,
    })
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

/// A statement that has [`KEY`] first.
fn with_key<'q>(sql: String, key: &PatchSetKey) -> Query<'q> {
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.product.to_string())
        .bind(key.from.as_bytes().to_vec())
        .bind(key.to.as_bytes().to_vec())
}

impl Db {
    /// Queues the set between two releases of one product, or from nothing to one. A set that is
    /// there stays as it is, except a failed one, which is tried again, and one that is being
    /// removed, which stays and has to be listed again. Returns the row, and whether it changed.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn queue_patch_set<'r>(
        &self,
        from: impl Into<Option<&'r ReleaseRow>>,
        to: &ReleaseRow,
        by: &str,
        now: UnixSeconds,
    ) -> Result<(PatchSetRow, bool), DbError> {
        let what = "queue a patch set";
        let from = from.into();
        let from_manifest = from.map_or(ManifestId::NOTHING, |from| from.manifest);
        let key = PatchSetKey { product: to.product.clone(), from: from_manifest, to: to.manifest };
        let leaving = format!("SELECT 1 FROM patch_sets WHERE {KEY} AND removing IS NOT NULL");
        let leaving = with_key(leaving, &key).fetch_optional(&self.pool).await.map_err(failed(what))?;
        let (mut tx, kept) = match leaving {
            // Under the lock of removals: one that has read which sets go takes their chunks.
            Some(_) => {
                let mut tx = IdTx::begin(self).await?.tx;
                let sql =
                    format!("UPDATE patch_sets SET removing = NULL WHERE {KEY} AND removing IS NOT NULL");
                let kept = with_key(sql, &key).execute(&mut *tx).await.map_err(failed(what))?.rows_affected();
                (tx, kept)
            }
            None => (self.begin_write().await?, 0),
        };
        let sql = "INSERT INTO patch_sets (product, from_manifest, to_manifest, from_version, to_version, state, \
                   requested_by, created) VALUES ($1, $2, $3, $4, $5, 'queued', $6, $7) \
                   ON CONFLICT (product, from_manifest, to_manifest) DO UPDATE SET state = 'queued', error = NULL, \
                   finished = NULL WHERE patch_sets.state = 'failed'";
        let queued = with_key(sql.to_owned(), &key)
            .bind(from.map(|from| from.version.to_string()).unwrap_or_default())
            .bind(to.version.to_string())
            .bind(by.to_owned())
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?
            .rows_affected();
        let row = with_key(format!("SELECT {COLUMNS} FROM patch_sets WHERE {KEY}"), &key)
            .fetch_one(&mut *tx)
            .await
            .and_then(|row| read(&row))
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok((row, queued + kept > 0))
    }

    /// Takes the set of a kind that has waited longest for `maker`; it is `building` from then on.
    /// A set that a worker has not [held](Self::hold_patch_set) any more waits, too.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn take_patch_set(
        &self,
        kind: SetKind,
        maker: &Maker,
        now: UnixSeconds,
    ) -> Result<Option<PatchSetRow>, DbError> {
        let what = "take a patch set from the queue";
        let mut tx = self.begin_write().await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM patch_sets WHERE {} AND from_version {} '' \
             ORDER BY created, product, to_version, from_version LIMIT 1{}",
            waits("$1"),
            match kind {
                SetKind::Pair => "<>",
                SetKind::Solid => "=",
            },
            match self.engine {
                Engine::Sqlite => "",
                // Workers that ask at once get one set each.
                Engine::Postgres => " FOR UPDATE SKIP LOCKED",
            }
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(what))?;
        let Some(row) = row.as_ref().map(read).transpose().map_err(failed(what))? else { return Ok(None) };
        // The WHERE lets only one of two processes that saw the same row take it.
        let sql = format!(
            "UPDATE patch_sets SET state = 'building', started = $4, worker = $5, held_until = $6 \
             WHERE {KEY} AND {}",
            waits("$4")
        );
        let taken = with_key(sql, &row.key)
            .bind(now)
            .bind(maker.0.clone())
            .bind(now + HELD_SECONDS)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        let taken = taken.rows_affected() == 1;
        Ok(taken.then_some(PatchSetRow { state: PatchSetState::Building, started: Some(now), ..row }))
    }

    /// Says that `maker` still makes a set; `false` when it is another's by now, or gone. A worker
    /// that does not say so for [`HELD_SECONDS`] loses it.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn hold_patch_set(
        &self,
        key: &PatchSetKey,
        maker: &Maker,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let sql = format!("UPDATE patch_sets SET held_until = $4 WHERE {KEY} AND {}", made_by("$5"));
        let done = with_key(sql, key)
            .bind(now + HELD_SECONDS)
            .bind(maker.0.clone())
            .execute(&self.pool)
            .await
            .map_err(failed("record that a patch set is being made"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Puts a set that `maker` took and does not make back into the queue.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn give_back_patch_set(&self, key: &PatchSetKey, maker: &Maker) -> Result<(), DbError> {
        let sql = format!(
            "UPDATE patch_sets SET state = 'queued', started = NULL WHERE {KEY} AND {}",
            made_by("$4")
        );
        let done = with_key(sql, key).bind(maker.0.clone()).execute(&self.pool).await;
        done.map(drop).map_err(failed("queue a patch set again"))
    }

    /// Puts sets whose making was cut off back into the queue, at `now`: those of an earlier
    /// origin, and of workers that hold them no more. Returns their number.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn requeue_patch_sets(&self, now: UnixSeconds) -> Result<u64, DbError> {
        let sql = "UPDATE patch_sets SET state = 'queued', started = NULL WHERE state = 'building' \
                   AND (worker = '' OR held_until < $1)";
        let done =
            sqlx::query(sql).bind(now).execute(&self.pool).await.map_err(failed("queue patch sets again"))?;
        Ok(done.rows_affected())
    }

    /// Products with sets that are made and that the signed list does not name yet.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn products_to_list(&self) -> Result<Vec<Name>, DbError> {
        let rows = sqlx::query("SELECT DISTINCT product FROM patch_sets WHERE unlisted = 1")
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(|row| row.parsed("product")).collect())
            .map_err(failed("list the products with new patch sets"))
    }

    /// Sets of a product that are made and that the signed list does not name yet.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn sets_to_list(&self, product: &Name) -> Result<Vec<PatchSetKey>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM patch_sets WHERE product = $1 AND unlisted = 1");
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(product.to_string()).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(|row| Ok(read(row)?.key)).collect())
            .map_err(failed("list the new patch sets"))
    }

    /// Records that signed lists name these sets.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn sets_are_listed(&self, sets: &[PatchSetKey]) -> Result<(), DbError> {
        let what = "record that patch sets are listed";
        for key in sets {
            let sql = format!("UPDATE patch_sets SET unlisted = 0 WHERE {KEY}");
            with_key(sql, key).execute(&self.pool).await.map_err(failed(what))?;
        }
        Ok(())
    }

    /// Records why the making of a set failed.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn fail_patch_set(
        &self,
        key: &PatchSetKey,
        maker: &Maker,
        error: &str,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let sql = format!(
            "UPDATE patch_sets SET state = 'failed', error = $4, finished = $5 WHERE {KEY} AND {}",
            made_by("$6")
        );
        let done = with_key(sql, key)
            .bind(error.to_owned())
            .bind(now)
            .bind(maker.0.clone())
            .execute(&self.pool)
            .await;
        done.map(drop).map_err(failed("record that a patch set failed"))
    }

    /// One set.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn patch_set(&self, key: &PatchSetKey) -> Result<Option<PatchSetRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM patch_sets WHERE {KEY}");
        let row = with_key(sql, key).fetch_optional(&self.pool).await;
        row.and_then(|row| row.as_ref().map(read).transpose()).map_err(failed("read the patch set"))
    }

    /// The sets of a product, the one asked for last first; at most 1000.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn patch_sets(&self, product: &Name) -> Result<Vec<PatchSetRow>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM patch_sets WHERE product = $1 \
             ORDER BY created DESC, to_version DESC, from_version DESC LIMIT $2"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(product.to_string())
            .bind(ROWS_MAX)
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the patch sets"))
    }

    /// The sets of a product that devices can use, the newest first, at most `limit`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn patch_sets_usable(&self, product: &Name, limit: u32) -> Result<Vec<PatchSetRow>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM patch_sets WHERE product = $1 AND set_manifest IS NOT NULL AND removing IS NULL \
             ORDER BY finished DESC, created DESC, to_manifest, from_manifest LIMIT $2"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(product.to_string())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the patch sets"))
    }

    /// Every set that has a manifest.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn patch_sets_with_manifest(&self) -> Result<Vec<(PatchSetKey, ManifestId)>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM patch_sets WHERE set_manifest IS NOT NULL");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        let read = |row: &AnyRow| read(row).map(|row| row.set.map(|set| (row.key, set)));
        rows.and_then(|rows| rows.iter().filter_map(|row| read(row).transpose()).collect())
            .map_err(failed("list the patch sets"))
    }

    /// Sets whose removal began at `until` or before.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn sets_removing(&self, until: UnixSeconds) -> Result<Vec<PatchSetRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM patch_sets WHERE removing IS NOT NULL AND removing <= $1");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(until).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the patch sets"))
    }

    /// Every set that is ready and is not being removed, of every product, the newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn sets_ready(&self) -> Result<Vec<PatchSetRow>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM patch_sets WHERE state = 'ready' AND removing IS NULL \
             ORDER BY finished DESC, created DESC, to_manifest, from_manifest"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the patch sets"))
    }

    /// Puts a set whose contents are lost back into the queue.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn remake_patch_set(&self, key: &PatchSetKey) -> Result<(), DbError> {
        let sql = format!(
            "UPDATE patch_sets SET state = 'queued', set_manifest = NULL, started = NULL, finished = NULL WHERE {KEY}"
        );
        let done = with_key(sql, key).execute(&self.pool).await;
        done.map(drop).map_err(failed("queue a patch set again"))
    }

    /// Number of sets that wait, are being made, or are not listed yet.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn patch_sets_waiting(&self) -> Result<u64, DbError> {
        let what = "count the patch sets that wait";
        let row =
            sqlx::query("SELECT COUNT(*) AS waiting FROM patch_sets WHERE state IN ('queued', 'building') OR unlisted = 1")
                .fetch_one(&self.pool)
                .await
                .map_err(failed(what))?;
        row.number("waiting").map_err(failed(what))
    }

    /// Begins to record a set whose packs are durable. No commit runs meanwhile.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_patch_set(&self, now: UnixSeconds) -> Result<PatchSetTx, DbError> {
        Ok(PatchSetTx { ids: IdTx::begin(self).await?, now })
    }
}

/// A set being recorded. Dropped, it leaves everything as it was.
#[derive(Debug)]
pub struct PatchSetTx {
    ids: IdTx,
    now: UnixSeconds,
}

impl PatchSetTx {
    /// Records a pack that is durable in the object store, and is not doomed from then on.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn record_pack(&mut self, object: &str, bytes: u64) -> Result<PackId, DbError> {
        let what = "record the pack";
        let row = sqlx::query(
            "INSERT INTO packs (object, bytes, upload, created) VALUES ($1, $2, NULL, $3) RETURNING id",
        )
        .bind(object.to_owned())
        .bind(signed(bytes))
        .bind(self.now)
        .fetch_one(&mut *self.ids.tx)
        .await
        .map_err(failed(what))?;
        let (named, engine) = ([object.to_owned()], self.ids.engine());
        doomed::spare(&mut *self.ids.tx, engine, &named).await.map_err(failed(what))?;
        Ok(PackId(row.number("id").map_err(failed(what))?))
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

    /// Makes the set ready and commits. `false`, and nothing changed, when `maker` does not make it
    /// any more.
    ///
    /// Its manifest must be durable in the object store before.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn finish(mut self, key: &PatchSetKey, maker: &Maker, made: &MadeSet) -> Result<bool, DbError> {
        let what = "record the patch set";
        self.ids.count().await?;
        let sql = format!(
            "UPDATE patch_sets SET state = 'ready', set_manifest = $4, bytes = $5, packed = $6, patches = $7, \
             error = NULL, finished = $8, unlisted = $9 WHERE {KEY} AND {}",
            made_by("$10")
        );
        let done = with_key(sql, key)
            .bind(made.set.map(|set| set.as_bytes().to_vec()))
            .bind(signed(made.bytes))
            .bind(signed(made.packed))
            .bind(signed(made.patches))
            .bind(self.now)
            .bind(i64::from(made.set.is_some()))
            .bind(maker.0.clone())
            .execute(&mut *self.ids.tx)
            .await
            .map_err(failed(what))?;
        if done.rows_affected() == 0 {
            self.ids.tx.rollback().await.map_err(failed(what))?;
            return Ok(false);
        }
        self.ids.tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }
}
