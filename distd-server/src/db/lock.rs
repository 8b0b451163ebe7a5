//! The lock of a PostgreSQL database: held by one session, so by one process.

use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, ConnectOptions, Connection, Row};
use std::str::FromStr;

use super::{DbError, failed, redact};

/// Number of the advisory lock, within one database: `distd` in ASCII.
const KEY: i64 = 0x64_6973_7464;

/// Number of sessions that may hold the lock at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// One.
    Alone,
    /// Any number, while none holds it alone: origins and workers on one database.
    Shared,
}

/// A connection of its own that holds the lock; the lock ends with it.
#[derive(Debug)]
pub struct SessionLock(AnyConnection);

impl SessionLock {
    /// Takes the lock of a PostgreSQL database; `None` when another session has it.
    ///
    /// # Errors
    /// [`DbError::Open`], [`DbError::Query`].
    pub async fn try_take(address: &str, kind: LockKind) -> Result<Option<Self>, DbError> {
        sqlx::any::install_default_drivers();
        let open = |cause| DbError::Open { address: redact(address), cause };
        let options = AnyConnectOptions::from_str(address).map_err(open)?;
        let mut connection = options.connect().await.map_err(open)?;
        let sql = match kind {
            LockKind::Alone => "SELECT CASE WHEN pg_try_advisory_lock($1) THEN 1 ELSE 0 END AS got",
            LockKind::Shared => "SELECT CASE WHEN pg_try_advisory_lock_shared($1) THEN 1 ELSE 0 END AS got",
        };
        let row = sqlx::query(sql)
            .bind(KEY)
            .fetch_one(&mut connection)
            .await
            .map_err(failed("lock the database"))?;
        let got: i32 = row.try_get("got").map_err(failed("lock the database"))?;
        Ok((got == 1).then_some(Self(connection)))
    }

    /// Whether the session still lives, and the lock with it.
    pub async fn is_held(&mut self) -> bool {
        self.0.ping().await.is_ok()
    }
}
