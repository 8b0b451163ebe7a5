//! Uploads: chunks on their way to a release.
//!
//! Table `uploads`: open, committed or aborted; at most one open for a version and token (partial
//! unique index); the token's id and products.

use std::fmt;
use std::str::FromStr;

use distd_core::names::Name;
use sqlx::any::AnyRow;

use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};
use crate::publisher::{Products, Publisher};

/// Names an upload: 32 lower-case hexadecimal digits, drawn at random.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(String);

/// The string is not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an upload id has 32 lower-case hexadecimal digits")]
pub struct ParseUploadIdError;

impl UploadId {
    /// From 16 random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(hex::encode(bytes))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UploadId {
    type Err = ParseUploadIdError;

    fn from_str(s: &str) -> Result<Self, ParseUploadIdError> {
        if s.len() == 32 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(s.to_owned()))
        } else {
            Err(ParseUploadIdError)
        }
    }
}

/// State of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// Takes chunks.
    Open,
    /// Became a release.
    Committed,
    /// Given up or expired.
    Aborted,
}

impl FromStr for UploadState {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        match s {
            "open" => Ok(Self::Open),
            "committed" => Ok(Self::Committed),
            "aborted" => Ok(Self::Aborted),
            _ => Err(()),
        }
    }
}

/// One upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// Its id.
    pub id: UploadId,
    /// The product.
    pub product: Name,
    /// The version it is to become.
    pub version: Name,
    /// Its state.
    pub state: UploadState,
    /// Time at which it began.
    pub created: UnixSeconds,
    /// Time at which it is given up unless more chunks come.
    pub expires: UnixSeconds,
    /// Label of the token that began it.
    pub created_by: String,
    /// Id of the token that began it; empty for uploads from before tokens had uploads.
    pub token: String,
    /// The products of that token.
    pub products: Products,
}

/// An open upload, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// The upload.
    pub row: UploadRow,
    /// Bytes of its packs.
    pub bytes: u64,
}

/// Result of beginning an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginUpload {
    /// The open upload: new, or begun earlier for this version.
    Open(UploadRow),
    /// There is no such product.
    UnknownProduct,
    /// The token has as many open uploads as it may have.
    TooMany,
    /// The version is a release that was withdrawn.
    Withdrawn,
}

const COLUMNS: &str = "id, product, version, state, created, expires, created_by, token, products";

fn read(row: &AnyRow) -> Result<UploadRow, sqlx::Error> {
    Ok(UploadRow {
        id: row.parsed("id")?,
        product: row.parsed("product")?,
        version: row.parsed("version")?,
        state: row.parsed("state")?,
        created: row.time("created")?,
        expires: row.time("expires")?,
        created_by: row.text("created_by")?,
        token: row.text("token")?,
        products: Products::of_row(&row.text("products")?),
    })
}

/// Query for the bytes of a token's open uploads, which runs for each pack that comes.
const UNCOMMITTED: &str = "SELECT CAST(COALESCE(SUM(packs.bytes), 0) AS BIGINT) AS bytes FROM uploads JOIN packs \
                           ON packs.upload = uploads.id WHERE uploads.token = $1 AND uploads.state = 'open'";

impl Db {
    /// Opens an upload under `fresh`, or returns the open one that this token began for this
    /// version and moves its end to `expires`. Each token has an upload of its own; the first
    /// commit makes the release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    #[expect(clippy::too_many_arguments, reason = "the columns of the row")]
    pub async fn begin_upload(
        &self,
        fresh: UploadId,
        product: &Name,
        version: &Name,
        by: &Publisher,
        now: UnixSeconds,
        expires: UnixSeconds,
        uploads_max: u64,
    ) -> Result<BeginUpload, DbError> {
        let what = "begin the upload";
        let mut tx = self.begin_write().await?;
        let known = sqlx::query("SELECT name FROM products WHERE name = $1")
            .bind(product.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(what))?;
        if known.is_none() {
            return Ok(BeginUpload::UnknownProduct);
        }
        let withdrawn = sqlx::query(
            "SELECT 1 FROM releases WHERE product = $1 AND version = $2 AND withdrawn IS NOT NULL",
        )
        .bind(product.to_string())
        .bind(version.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(what))?;
        if withdrawn.is_some() {
            return Ok(BeginUpload::Withdrawn);
        }
        let row = sqlx::query(
            "SELECT CAST(COUNT(*) AS BIGINT) AS uploads, \
             CAST(COALESCE(SUM(CASE WHEN product = $2 AND version = $3 THEN 1 ELSE 0 END), 0) AS BIGINT) AS same \
             FROM uploads WHERE token = $1 AND state = 'open'",
        )
        .bind(by.token.clone())
        .bind(product.to_string())
        .bind(version.to_string())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(what))?;
        let count = |column| row.number(column).map_err(failed(what));
        if count("same")? == 0 && count("uploads")? >= uploads_max {
            return Ok(BeginUpload::TooMany);
        }
        sqlx::query(
            "INSERT INTO uploads (id, product, version, state, created, expires, created_by, token, products) \
             VALUES ($1, $2, $3, 'open', $4, $5, $6, $7, $8) \
             ON CONFLICT (product, version, token) WHERE state = 'open' DO UPDATE SET expires = excluded.expires",
        )
        .bind(fresh.to_string())
        .bind(product.to_string())
        .bind(version.to_string())
        .bind(now)
        .bind(expires)
        .bind(by.label.clone())
        .bind(by.token.clone())
        .bind(by.products.to_row())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM uploads WHERE product = $1 AND version = $2 AND token = $3 AND state = 'open'"
        ));
        let row = sqlx::query(sql)
            .bind(product.to_string())
            .bind(version.to_string())
            .bind(by.token.clone())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(BeginUpload::Open(read(&row).map_err(failed(what))?))
    }

    /// One upload.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn upload(&self, id: &UploadId) -> Result<Option<UploadRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM uploads WHERE id = $1"));
        let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(&self.pool).await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the upload"))
    }

    /// Every open upload, the oldest first, with the bytes of its packs.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn uploads_open(&self) -> Result<Vec<OpenUpload>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS}, (SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM packs WHERE packs.upload = uploads.id) \
             AS held FROM uploads WHERE state = 'open' ORDER BY created, id"
        ));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        let open = |row: &AnyRow| Ok(OpenUpload { row: read(row)?, bytes: row.number("held")? });
        rows.and_then(|rows| rows.iter().map(open).collect()).map_err(failed("list the open uploads"))
    }

    /// Bytes of packs in the open uploads of a token.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn uncommitted_bytes(&self, token: &str) -> Result<u64, DbError> {
        let what = "add up the uploads of a token";
        let row = sqlx::query(UNCOMMITTED)
            .bind(token.to_owned())
            .fetch_one(&self.pool)
            .await
            .map_err(failed(what))?;
        row.number("bytes").map_err(failed(what))
    }

    /// Open uploads that have expired at `now`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn uploads_expired(&self, now: UnixSeconds) -> Result<Vec<UploadRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM uploads WHERE state = 'open' AND expires < $1"
        ));
        let rows = sqlx::query(sql).bind(now).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list expired uploads"))
    }

    /// Aborts an open upload: its packs leave the database. Returns the names of the pack
    /// objects, which are noted as doomed, for the caller to delete, or `None` when the upload is
    /// not open.
    ///
    /// With `expired_at`, only if it is still expired then: chunks that arrive meanwhile save it.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn abort_upload(
        &self,
        id: &UploadId,
        expired_at: Option<UnixSeconds>,
    ) -> Result<Option<Vec<String>>, DbError> {
        let what = "abort the upload";
        let mut tx = self.begin_write().await?;
        let closed = sqlx::query(
            "UPDATE uploads SET state = 'aborted' WHERE id = $1 AND state = 'open' AND expires < $2",
        )
        .bind(id.to_string())
        .bind(expired_at.unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if closed.rows_affected() == 0 {
            return Ok(None);
        }
        sqlx::query(
            "INSERT INTO doomed (object, since) SELECT object, 0 FROM packs WHERE upload = $1 \
             ON CONFLICT (object) DO NOTHING",
        )
        .bind(id.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        let rows = sqlx::query("DELETE FROM packs WHERE upload = $1 RETURNING object")
            .bind(id.to_string())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed(what))?;
        let objects: Result<_, _> = rows.iter().map(|row| row.text("object")).collect();
        let objects = objects.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(Some(objects))
    }

    /// Forgets uploads that ended before `before`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forget_uploads(&self, before: UnixSeconds) -> Result<u64, DbError> {
        let done = sqlx::query("DELETE FROM uploads WHERE state <> 'open' AND expires < $1")
            .bind(before)
            .execute(&self.pool)
            .await
            .map_err(failed("forget old uploads"))?;
        Ok(done.rows_affected())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;

    #[tokio::test]
    async fn the_packs_of_a_token_are_added_up_by_indexes_alone() {
        let directory = tempfile::tempdir().expect("tempdir");
        let address = format!("sqlite:{}/db", directory.path().display());
        let db = Db::open(&address).await.expect("opens");
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {UNCOMMITTED}"));
        let plan = sqlx::query(sql).bind("token").fetch_all(&db.pool).await.expect("a plan");
        let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
        let packs = "SEARCH packs USING COVERING INDEX packs_upload_bytes (upload=?)";
        assert!(plan.iter().any(|step| step == packs), "{plan:?}");
        assert_eq!(plan.len(), 2, "and the open uploads, of which a token has few: {plan:?}");
        db.close().await;
    }
}
