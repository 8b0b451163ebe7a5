//! The one among several origins on a PostgreSQL database that leads: it signs, collects and makes
//! all changes that only one process may make.
//!
//! A leader holds a term, which it renews. Time is the database's. A process cannot know that its
//! term has ended while it stands still, so nothing depends on that: whoever takes the term over
//! first raises its number and then ends the database sessions of every leader before. A session of
//! an earlier leader that opens later is refused when it finds the higher number.
//!
//! Table `leader`: the term, one row: its number, who holds it, where the others reach the holder,
//! a secret by which the holder knows requests that the others pass on, and when it ends, unix
//! milliseconds.

use std::str::FromStr;
use std::time::Duration;

use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, ConnectOptions, Connection};

use super::row::{Columns, signed};
use super::{Db, DbError, failed, redact};

/// Time for which a term holds unless it is renewed. A leader that stood still this long is
/// succeeded.
pub const TERM: Duration = Duration::from_secs(10);

/// Longest wait until the sessions of an earlier leader have ended.
const SESSIONS_END: Duration = Duration::from_secs(20);

/// Name of the sessions of leaders, before the number of the term.
const SESSION: &str = "distd leader ";

/// Time of the database, unix milliseconds.
const NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

/// The term as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderRow {
    /// Its number.
    pub epoch: u64,
    /// Name of the process that holds it, or held it last.
    pub holder: String,
    /// Address of the holder's HTTP side.
    pub address: String,
    /// Secret by which the holder knows requests that others pass on.
    pub secret: String,
    /// Whether the term holds.
    pub is_held: bool,
}

/// A term that this process holds. It ends some time after this value is dropped, or at once when
/// it is [given back](Self::give_back).
#[derive(Debug)]
pub struct Term {
    connection: AnyConnection,
    database: String,
    epoch: u64,
}

impl Term {
    /// Takes the term for `holder`, unless another process holds it: `None` then. When this
    /// returns a term, no session of an earlier leader is left.
    ///
    /// # Errors
    /// [`DbError::Open`], [`DbError::Query`].
    pub async fn try_take(
        database: &str,
        holder: &str,
        address: &str,
        secret: &str,
    ) -> Result<Option<Self>, DbError> {
        let mut connection = connect(database).await?;
        let what = "take the term of the leader";
        let ends = signed(TERM.as_millis() as u64);
        let sql = format!(
            "INSERT INTO leader (id, epoch, holder, address, secret, until) VALUES (1, 1, $1, $2, $3, {NOW} + $4) \
             ON CONFLICT (id) DO UPDATE SET epoch = leader.epoch + 1, holder = excluded.holder, \
             address = excluded.address, secret = excluded.secret, until = excluded.until \
             WHERE leader.until < {NOW} RETURNING epoch"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(holder.to_owned())
            .bind(address.to_owned())
            .bind(secret.to_owned())
            .bind(ends)
            .fetch_optional(&mut connection)
            .await
            .map_err(failed(what))?;
        let Some(row) = row else { return Ok(None) };
        let epoch = row.number("epoch").map_err(failed(what))?;
        let mut term = Self { connection, database: database.to_owned(), epoch };
        match tokio::time::timeout(SESSIONS_END, term.end_earlier_sessions()).await {
            Ok(ended) => ended.map(|()| Some(term)),
            Err(_) => {
                tracing::error!("the sessions of an earlier leader do not end: this process does not lead");
                term.give_back().await?;
                Ok(None)
            }
        }
    }

    /// Ends every session of leaders before this one, and returns when they are gone.
    async fn end_earlier_sessions(&mut self) -> Result<(), DbError> {
        let what = "end the sessions of an earlier leader";
        loop {
            // Renewed, because ending them may take longer than a term.
            self.renew().await?;
            let row = sqlx::query(
                "SELECT COUNT(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity \
                 WHERE datname = current_database() AND starts_with(application_name, $1) AND application_name <> $2",
            )
            .bind(SESSION)
            .bind(session_of(self.epoch))
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed(what))?;
            if row.number("ended").map_err(failed(what))? == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Number of the term, higher than that of every term before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Renews the term; `false` when another process has taken it since. A connection that broke
    /// off is made again.
    ///
    /// # Errors
    /// [`DbError::Open`], [`DbError::Query`]: the term may hold or not.
    pub async fn renew(&mut self) -> Result<bool, DbError> {
        if self.connection.ping().await.is_err() {
            self.connection = connect(&self.database).await?;
        }
        let ends = signed(TERM.as_millis() as u64);
        self.set_end(&format!("{NOW} + {ends}"), "renew the term of the leader").await
    }

    /// Ends the term, so that another process need not wait for its end.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn give_back(mut self) -> Result<(), DbError> {
        self.set_end("0", "give back the term of the leader").await.map(drop)
    }

    async fn set_end(&mut self, end: &str, what: &'static str) -> Result<bool, DbError> {
        let sql = format!("UPDATE leader SET until = {end} WHERE id = 1 AND epoch = $1");
        let done = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(signed(self.epoch))
            .execute(&mut self.connection)
            .await
            .map_err(failed(what))?;
        Ok(done.rows_affected() == 1)
    }
}

async fn connect(database: &str) -> Result<AnyConnection, DbError> {
    sqlx::any::install_default_drivers();
    let open = |cause| DbError::Open { address: redact(database), cause };
    AnyConnectOptions::from_str(database).map_err(open)?.connect().await.map_err(open)
}

/// Name of the database sessions of the leader with this number.
fn session_of(epoch: u64) -> String {
    format!("{SESSION}{epoch}")
}

/// The address `database` with the name that sessions of the leader `epoch` have.
pub(super) fn leading(database: &str, epoch: u64) -> Result<String, DbError> {
    let mut url = url::Url::parse(database).map_err(|_| DbError::Address(redact(database)))?;
    url.query_pairs_mut().append_pair("application_name", &session_of(epoch));
    Ok(url.into())
}

/// Refuses a new session of the leader `epoch` when there has been a later one.
pub(super) async fn check_epoch(connection: &mut AnyConnection, epoch: u64) -> Result<(), sqlx::Error> {
    let row = sqlx::query("SELECT epoch FROM leader WHERE id = 1").fetch_one(&mut *connection).await?;
    let newest: u64 = row.number("epoch")?;
    if newest == epoch {
        return Ok(());
    }
    Err(sqlx::Error::Configuration("another distd-server leads since".into()))
}

impl Db {
    /// The term of the leader; `None` before there was one.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn leader(&self) -> Result<Option<LeaderRow>, DbError> {
        if self.is_local() {
            return Ok(None);
        }
        let what = "read who leads";
        let sql = format!(
            "SELECT epoch, holder, address, secret, CASE WHEN until >= {NOW} THEN 1 ELSE 0 END AS held FROM leader"
        );
        let row =
            sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_optional(&self.pool).await.map_err(failed(what))?;
        let read = |row: sqlx::any::AnyRow| {
            Ok(LeaderRow {
                epoch: row.number("epoch")?,
                holder: row.text("holder")?,
                address: row.text("address")?,
                secret: row.text("secret")?,
                is_held: row.number("held")? == 1,
            })
        };
        row.map(read).transpose().map_err(failed(what))
    }
}
