//! Sessions of people who signed in at the web page, and what changed since they looked.
//!
//! Table `web_sessions`: SHA-256 of each session's secret, the API token, its end.

use super::api_tokens::{ApiTokenRow, read};
use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// Numbers of which one differs once something that the web page shows has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebStamp {
    /// Number of the last entry of the audit log.
    pub audit: u64,
    /// Time at which the newest report came, unix seconds.
    pub reports: u64,
    /// Number of nodes that have reported.
    pub nodes: u64,
    /// Id of the last change of a rollout.
    pub rollouts: u64,
    /// Sum over the times of patch sets.
    pub patches: u64,
}

/// Most sessions of one API token. A further one ends the oldest.
const SESSIONS_MAX: i64 = 100;

impl Db {
    /// Begins a session of the token `token`, both named by the hash of their secret, and forgets
    /// the sessions that have ended.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_session(
        &self,
        session: &[u8; 32],
        token: &[u8; 32],
        now: UnixSeconds,
        ends: UnixSeconds,
    ) -> Result<(), DbError> {
        let what = "begin a session";
        let mut tx = self.begin_write().await?;
        sqlx::query("DELETE FROM web_sessions WHERE ends < $1")
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        sqlx::query(
            "DELETE FROM web_sessions WHERE token = $1 AND secret_sha256 NOT IN \
             (SELECT secret_sha256 FROM web_sessions WHERE token = $1 ORDER BY created DESC, secret_sha256 LIMIT $2)",
        )
        .bind(token.as_slice())
        .bind(SESSIONS_MAX - 1)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        sqlx::query("INSERT INTO web_sessions (secret_sha256, token, created, ends) VALUES ($1, $2, $3, $4)")
            .bind(session.as_slice())
            .bind(token.as_slice())
            .bind(now)
            .bind(ends)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// The API token of a session that has not ended. The token may have: ask
    /// [`ApiTokenRow::is_valid`].
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn session(
        &self,
        session: &[u8; 32],
        now: UnixSeconds,
    ) -> Result<Option<ApiTokenRow>, DbError> {
        let row = sqlx::query(
            "SELECT t.secret_sha256, t.label, t.scopes, t.products, t.created, t.expires, t.revoked \
             FROM web_sessions s JOIN api_tokens t ON t.secret_sha256 = s.token \
             WHERE s.secret_sha256 = $1 AND s.ends >= $2",
        )
        .bind(session.as_slice())
        .bind(now)
        .fetch_optional(&self.pool)
        .await;
        row.and_then(|row| row.as_ref().map(read).transpose()).map_err(failed("read a session"))
    }

    /// Ends a session.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn end_session(&self, session: &[u8; 32]) -> Result<(), DbError> {
        let done = sqlx::query("DELETE FROM web_sessions WHERE secret_sha256 = $1")
            .bind(session.as_slice())
            .execute(&self.pool)
            .await;
        done.map(drop).map_err(failed("end a session"))
    }

    /// Ends all sessions of an API token.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn end_sessions(&self, token: &[u8; 32]) -> Result<(), DbError> {
        let done = sqlx::query("DELETE FROM web_sessions WHERE token = $1")
            .bind(token.as_slice())
            .execute(&self.pool)
            .await;
        done.map(drop).map_err(failed("end the sessions"))
    }

    /// State of all that the web page shows, in numbers.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn web_stamp(&self) -> Result<WebStamp, DbError> {
        let row = sqlx::query(
            "SELECT (SELECT value FROM counters WHERE name = 'audit') AS audit, \
             (SELECT COALESCE(MAX(received), 0) FROM node_reports) AS reports, \
             (SELECT COUNT(*) FROM node_reports) AS nodes, \
             (SELECT COALESCE(MAX(id), 0) FROM rollout_events) AS rollouts, \
             (SELECT CAST(COALESCE(SUM(COALESCE(finished, 0) + COALESCE(started, 0)), 0) AS BIGINT) \
              FROM patch_sets WHERE state <> 'queued') AS patches",
        )
        .fetch_one(&self.pool)
        .await;
        let read = |row: &sqlx::any::AnyRow| {
            Ok(WebStamp {
                audit: row.number("audit")?,
                reports: row.number("reports")?,
                nodes: row.number("nodes")?,
                rollouts: row.number("rollouts")?,
                patches: row.number("patches")?,
            })
        };
        row.and_then(|row| read(&row)).map_err(failed("look for changes"))
    }
}
