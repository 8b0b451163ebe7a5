//! API tokens: only the SHA-256 of each secret is known here.
//!
//! Table `api_tokens`: SHA-256 of each secret, scopes, patterns of products, expiry.

use serde_json::json;
use sqlx::any::AnyRow;

use super::audit::append;
use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// Length of a token's id, bytes. The id is the head of the SHA-256 of the token's secret.
const ID_BYTES: usize = 8;

/// Id of a token in hexadecimal digits, which names it in lists and for revocation.
pub fn token_id(secret_sha256: &[u8; 32]) -> String {
    hex::encode(&secret_sha256[..ID_BYTES])
}

/// One API token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// Name that operators see; shown as the author of releases.
    pub label: String,
    /// Scopes, separated by commas.
    pub scopes: String,
    /// Patterns of products, separated by commas.
    pub products: String,
    /// Time at which it was made.
    pub created: UnixSeconds,
    /// Last second it may be used; `None` for ever.
    pub expires: Option<UnixSeconds>,
    /// Time of its revocation; `None` while it is not revoked.
    pub revoked: Option<UnixSeconds>,
}

impl ApiTokenRow {
    /// Whether it may be used at `now`.
    pub fn is_valid(&self, now: UnixSeconds) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|end| now <= end)
    }
}

const COLUMNS: &str = "secret_sha256, label, scopes, products, created, expires, revoked";

pub(super) fn read(row: &AnyRow) -> Result<ApiTokenRow, sqlx::Error> {
    Ok(ApiTokenRow {
        secret_sha256: row.hash("secret_sha256")?,
        label: row.text("label")?,
        scopes: row.text("scopes")?,
        products: row.text("products")?,
        created: row.time("created")?,
        expires: row.time_or_none("expires")?,
        revoked: row.time_or_none("revoked")?,
    })
}

impl Db {
    /// Records a new token; a token that is there already stays as it is.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_api_token(&self, token: &ApiTokenRow) -> Result<(), DbError> {
        let what = "record the API token";
        let mut tx = self.begin_write().await?;
        let made = sqlx::query(
            "INSERT INTO api_tokens (secret_sha256, label, scopes, products, created, expires, revoked) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (secret_sha256) DO NOTHING",
        )
        .bind(token.secret_sha256.as_slice())
        .bind(token.label.clone())
        .bind(token.scopes.clone())
        .bind(token.products.clone())
        .bind(token.created)
        .bind(token.expires)
        .bind(token.revoked)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if made.rows_affected() == 1 {
            let ApiTokenRow { label, scopes, products, expires, .. } = token;
            let details = json!({"label": label, "scopes": scopes, "products": products, "expires": expires});
            let id = token_id(&token.secret_sha256);
            append(&mut tx, &self.acting.at(token.created), "token.make", &id, &details)
                .await
                .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))
    }

    /// Records a person whom the OpenID provider `issuer` knows, as a token that nobody holds: with
    /// the label, scopes and end of `person`. `false` if the person was revoked, which stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_person(&self, person: &ApiTokenRow, issuer: &str) -> Result<bool, DbError> {
        let what = "record the person";
        let ApiTokenRow { secret_sha256, label, scopes, products, created, expires, .. } = person;
        let mut tx = self.begin_write().await?;
        let put = sqlx::query(
            "INSERT INTO api_tokens (secret_sha256, label, scopes, products, created, expires, revoked) \
             VALUES ($1, $2, $3, $4, $5, $6, NULL) ON CONFLICT (secret_sha256) DO UPDATE SET \
             label = excluded.label, scopes = excluded.scopes, expires = excluded.expires \
             WHERE api_tokens.revoked IS NULL",
        )
        .bind(secret_sha256.as_slice())
        .bind(label.clone())
        .bind(scopes.clone())
        .bind(products.clone())
        .bind(*created)
        .bind(*expires)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if put.rows_affected() == 0 {
            return Ok(false);
        }
        let details = json!({"label": label, "scopes": scopes, "issuer": issuer, "expires": expires});
        append(&mut tx, &self.acting.at(*created), "token.person", &token_id(secret_sha256), &details)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// The token with this hash, valid or not: ask [`ApiTokenRow::is_valid`].
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn api_token(&self, secret_sha256: &[u8; 32]) -> Result<Option<ApiTokenRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_tokens WHERE secret_sha256 = $1"));
        let row = sqlx::query(sql).bind(secret_sha256.as_slice()).fetch_optional(&self.pool).await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the API token"))
    }

    /// Every token, newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, DbError> {
        let sql =
            sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_tokens ORDER BY created DESC, label"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the API tokens"))
    }

    /// Revokes a token, unless it is the last valid one with the scope `admin`. The time of the
    /// first revocation stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn revoke_api_token(
        &self,
        secret_sha256: &[u8; 32],
        now: UnixSeconds,
    ) -> Result<RevokeToken, DbError> {
        let what = "revoke the API token";
        let mut tx = self.begin_write().await?;
        // Two admins that revoke each other at once take turns, on PostgreSQL too, so that the
        // second sees the first gone.
        sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'tokens'")
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let admin = |table: &str| {
            format!(
                "({table}.revoked IS NULL AND ({table}.expires IS NULL OR {table}.expires >= $1) \
                 AND (',' || {table}.scopes || ',') LIKE '%,admin,%')"
            )
        };
        let sql = format!(
            "UPDATE api_tokens SET revoked = COALESCE(revoked, $1) WHERE secret_sha256 = $2 AND (NOT {} OR EXISTS \
             (SELECT 1 FROM api_tokens other WHERE other.secret_sha256 <> $2 AND {}))",
            admin("api_tokens"),
            admin("other")
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(secret_sha256.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if done.rows_affected() == 1 {
            let id = token_id(secret_sha256);
            append(&mut tx, &self.acting.at(now), "token.revoke", &id, &json!({}))
                .await
                .map_err(failed(what))?;
            tx.commit().await.map_err(failed(what))?;
            return Ok(RevokeToken::Revoked);
        }
        let known = sqlx::query("SELECT 1 FROM api_tokens WHERE secret_sha256 = $1")
            .bind(secret_sha256.as_slice())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(what))?;
        Ok(if known.is_some() { RevokeToken::LastAdmin } else { RevokeToken::Unknown })
    }
}

/// Result of revoking a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokeToken {
    /// The token is revoked, now or before.
    Revoked,
    /// The token stays: without it no administrator is left.
    LastAdmin,
    /// There is no such token.
    Unknown,
}
