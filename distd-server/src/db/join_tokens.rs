//! Join tokens: only the public key of each is known here.
//!
//! Table `join_tokens`: public key of each token, uses left, revocation.
//!
//! Table `join_token_uses`: the nodes that used each token.

use std::collections::HashMap;

use distd_core::api::label_texts;
use distd_core::fleet::LabelMap;
use serde_json::json;
use sqlx::any::AnyRow;

use super::audit::append;
use super::row::Columns;
use super::row::signed;
use super::{Db, DbError, UnixSeconds, failed, labels};

/// Length of a join token's id: the first hexadecimal digits of its public key.
const JOIN_ID_DIGITS: usize = 16;

/// Id of a join token, which names it in lists and for revocation.
pub fn join_token_id(public_key: &str) -> String {
    public_key.chars().take(JOIN_ID_DIGITS).collect()
}

/// One join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinTokenRow {
    /// Ed25519 public key, hexadecimal.
    pub public_key: String,
    /// Role it gives.
    pub role: String,
    /// Number of nodes that it may still bring in.
    pub uses_left: u64,
    /// Last second it may be used.
    pub expires: UnixSeconds,
    /// Name that operators see.
    pub label: String,
    /// Time at which it was made.
    pub created: UnixSeconds,
    /// Time of its revocation: from then on it brings in no node.
    pub revoked: Option<UnixSeconds>,
}

const COLUMNS: &str = "public_key, role, uses_left, expires, label, created, revoked";

fn read(row: &AnyRow) -> Result<JoinTokenRow, sqlx::Error> {
    Ok(JoinTokenRow {
        public_key: row.text("public_key")?,
        role: row.text("role")?,
        uses_left: row.number("uses_left")?,
        expires: row.time("expires")?,
        label: row.text("label")?,
        created: row.time("created")?,
        revoked: row.time_or_none("revoked")?,
    })
}

/// Locks the row of a token until the transaction ends, and reads it. On PostgreSQL a read alone
/// would lock nothing, and two replicas would take the same last use.
pub(super) async fn lock(
    tx: &mut sqlx::Transaction<'static, sqlx::Any>,
    public_key: &str,
) -> Result<Option<JoinTokenRow>, sqlx::Error> {
    let sql =
        format!("UPDATE join_tokens SET uses_left = uses_left WHERE public_key = $1 RETURNING {COLUMNS}");
    let row =
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(public_key.to_owned()).fetch_optional(&mut **tx).await?;
    row.as_ref().map(read).transpose()
}

impl Db {
    /// Records a new token, and the labels that nodes get when they enrol with it.
    ///
    /// # Errors
    /// [`DbError::Query`], also when the key is there already.
    pub async fn put_join_token(&self, token: &JoinTokenRow, labels: &LabelMap) -> Result<(), DbError> {
        let what = "record the join token";
        let mut tx = self.begin_write().await?;
        sqlx::query(
            "INSERT INTO join_tokens (public_key, role, uses_left, expires, label, created) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(token.public_key.clone())
        .bind(token.role.clone())
        .bind(signed(token.uses_left))
        .bind(token.expires)
        .bind(token.label.clone())
        .bind(token.created)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        labels::put_on_token(&mut tx, &token.public_key, labels).await.map_err(failed(what))?;
        let details = json!({
            "role": token.role,
            "uses": token.uses_left,
            "expires": token.expires,
            "label": token.label,
            "labels": label_texts(labels),
        });
        let id = join_token_id(&token.public_key);
        append(&mut tx, &self.acting.at(token.created), "join-token.make", &id, &details)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// One token.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn join_token(&self, public_key: &str) -> Result<Option<JoinTokenRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM join_tokens WHERE public_key = $1"));
        let row = sqlx::query(sql).bind(public_key.to_owned()).fetch_optional(&self.pool).await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the join token"))
    }

    /// Every token, newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn join_tokens(&self) -> Result<Vec<JoinTokenRow>, DbError> {
        let sql =
            sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM join_tokens ORDER BY created DESC, label"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the join tokens"))
    }

    /// Number of nodes that each token has brought in, by public key.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn join_token_uses(&self) -> Result<HashMap<String, u64>, DbError> {
        let rows = sqlx::query("SELECT token, COUNT(*) AS nodes FROM join_token_uses GROUP BY token")
            .fetch_all(&self.pool);
        let rows = rows.await;
        rows.and_then(|rows| rows.iter().map(|row| Ok((row.text("token")?, row.number("nodes")?))).collect())
            .map_err(failed("count the uses of join tokens"))
    }

    /// Revokes a token; nodes that it brought in stay. Returns `false` when there is no such token.
    /// The time of the first revocation stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn revoke_join_token(&self, public_key: &str, now: UnixSeconds) -> Result<bool, DbError> {
        let what = "revoke the join token";
        let mut tx = self.begin_write().await?;
        let done =
            sqlx::query("UPDATE join_tokens SET revoked = COALESCE(revoked, $1) WHERE public_key = $2")
                .bind(now)
                .bind(public_key.to_owned())
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        self.note_revoked(&mut tx, public_key, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    async fn note_revoked(
        &self,
        tx: &mut sqlx::Transaction<'static, sqlx::Any>,
        public_key: &str,
        now: UnixSeconds,
    ) -> Result<(), sqlx::Error> {
        let id = join_token_id(public_key);
        append(tx, &self.acting.at(now), "join-token.revoke", &id, &json!({})).await
    }

    /// Revokes a node, and the tokens that brought it in, in one transaction. Returns the public
    /// keys of those; `None` when there is no such node.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn revoke_node_and_tokens(
        &self,
        node: &str,
        now: UnixSeconds,
    ) -> Result<Option<Vec<String>>, DbError> {
        let what = "revoke the node and its join token";
        let mut tx = self.begin_write().await?;
        let done = sqlx::query("UPDATE nodes SET revoked = COALESCE(revoked, $1) WHERE id = $2")
            .bind(now)
            .bind(node.to_owned())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if done.rows_affected() == 0 {
            return Ok(None);
        }
        let rows = sqlx::query(
            "UPDATE join_tokens SET revoked = COALESCE(revoked, $1) WHERE EXISTS (SELECT 1 FROM join_token_uses \
             WHERE token = join_tokens.public_key AND node = $2) RETURNING public_key",
        )
        .bind(now)
        .bind(node.to_owned())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(what))?;
        let tokens: Result<Vec<String>, _> = rows.iter().map(|row| row.text("public_key")).collect();
        let tokens = tokens.map_err(failed(what))?;
        append(&mut tx, &self.acting.at(now), "node.revoke", node, &json!({})).await.map_err(failed(what))?;
        for token in &tokens {
            self.note_revoked(&mut tx, token, now).await.map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(Some(tokens))
    }
}
