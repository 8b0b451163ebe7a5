//! Objects to be deleted: the proof that distd made them and that nothing needs them.
//!
//! A row goes in with the transaction that takes an object's last use away, or before an object is
//! put that only a later transaction names; it goes out when the object is deleted, or named. So a
//! crash in between leaves nothing that would have to be guessed at.
//!
//! Table `doomed`: objects of the store to be deleted unless a pack's row names them: objects of
//! aborted uploads, and of patch sets in progress.

use sqlx::{Any, Executor};

use super::bulk::LIST_MAX;
use super::row::Columns;
use super::{Db, DbError, Engine, UnixSeconds, failed};

const WHAT: &str = "note which objects are to be deleted";

/// Takes objects off the list.
pub(super) async fn spare<'e>(
    on: impl Executor<'e, Database = Any>,
    engine: Engine,
    objects: &[String],
) -> Result<(), sqlx::Error> {
    let sql = format!("DELETE FROM doomed WHERE object IN ({})", engine.list(1, objects.len()));
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    for object in objects {
        query = query.bind(object.clone());
    }
    query.execute(on).await.map(drop)
}

impl Db {
    /// Notes an object that is about to be put and that no row names yet.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn doom(&self, object: &str, now: UnixSeconds) -> Result<(), DbError> {
        sqlx::query("INSERT INTO doomed (object, since) VALUES ($1, $2) ON CONFLICT (object) DO NOTHING")
            .bind(object.to_owned())
            .bind(now)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed(WHAT))
    }

    /// Objects to be deleted, of those noted at `until` or before.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn doomed(&self, until: UnixSeconds) -> Result<Vec<String>, DbError> {
        let rows = sqlx::query(
            "SELECT object FROM doomed WHERE since <= $1 \
             AND NOT EXISTS (SELECT 1 FROM packs WHERE packs.object = doomed.object) ORDER BY object",
        )
        .bind(until)
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(|row| row.text("object")).collect())
            .map_err(failed("list the objects that are to be deleted"))
    }

    /// Takes deleted objects off the list.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forget_doomed(&self, objects: &[String]) -> Result<(), DbError> {
        for names in objects.chunks(LIST_MAX) {
            spare(&self.pool, self.engine, names).await.map_err(failed(WHAT))?;
        }
        Ok(())
    }
}
