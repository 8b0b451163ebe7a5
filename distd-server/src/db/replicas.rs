//! The processes that work on this database together.
//!
//! Table `replicas`: each origin and each worker: its kind (`origin` or `worker`), the address of
//! an origin's HTTP side, the version of its program, and when it last said that it runs, unix
//! seconds.

use sqlx::any::AnyRow;

use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// Time after which a process that said nothing more is forgotten, seconds.
const FORGOTTEN: i64 = 24 * 3600;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Name of the process, new at each start.
    pub id: String,
    /// `origin` or `worker`.
    pub kind: String,
    /// Address of an origin's HTTP side; empty for a worker.
    pub address: String,
    /// Version of its program.
    pub version: String,
    /// Time at which it last said that it runs.
    pub seen: UnixSeconds,
}

impl Db {
    /// Records that a process runs, and forgets those that were not heard of for a day.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn note_replica(&self, row: &ReplicaRow) -> Result<(), DbError> {
        let what = "record that this process runs";
        sqlx::query(
            "INSERT INTO replicas (id, kind, address, version, seen) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (id) DO UPDATE SET seen = excluded.seen",
        )
        .bind(row.id.clone())
        .bind(row.kind.clone())
        .bind(row.address.clone())
        .bind(row.version.clone())
        .bind(row.seen)
        .execute(&self.pool)
        .await
        .map_err(failed(what))?;
        let sql = "DELETE FROM replicas WHERE seen < $1";
        let done = sqlx::query(sql).bind(row.seen - FORGOTTEN).execute(&self.pool).await;
        done.map(drop).map_err(failed(what))
    }

    /// Forgets a process that ends.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forget_replica(&self, id: &str) -> Result<(), DbError> {
        let done =
            sqlx::query("DELETE FROM replicas WHERE id = $1").bind(id.to_owned()).execute(&self.pool).await;
        done.map(drop).map_err(failed("record that this process ends"))
    }

    /// The processes, the one heard of last first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn replicas(&self) -> Result<Vec<ReplicaRow>, DbError> {
        let sql = "SELECT id, kind, address, version, seen FROM replicas ORDER BY seen DESC, id";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        let read = |row: &AnyRow| {
            Ok(ReplicaRow {
                id: row.text("id")?,
                kind: row.text("kind")?,
                address: row.text("address")?,
                version: row.text("version")?,
                seen: row.time("seen")?,
            })
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the processes"))
    }
}
