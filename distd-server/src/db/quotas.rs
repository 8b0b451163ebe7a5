//! Quotas: how many bytes a product or an API token may have at the origin.
//!
//! Table `quotas`: bounds of the bytes of new chunks and of releases, for products and tokens.

use std::fmt;

use distd_core::api::EventKind;
use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, AnyConnection, Transaction};

use super::audit::append;
use super::row::{Columns, signed};
use super::webhooks::emit;
use super::{Db, DbError, UnixSeconds, failed};

const WHAT: &str = "change the quota";

/// The one that a quota is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuotaOf {
    /// A product.
    Product(Name),
    /// An API token, by its id.
    Token(String),
}

impl QuotaOf {
    /// The kind in words and in the database.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Product(_) => "product",
            Self::Token(_) => "token",
        }
    }

    /// The product's name, the token's id.
    pub fn name(&self) -> &str {
        match self {
            Self::Product(product) => product.as_str(),
            Self::Token(token) => token,
        }
    }
}

impl fmt::Display for QuotaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// A quota, and how much of it is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaRow {
    /// The one that it is for.
    pub of: QuotaOf,
    /// Most bytes of new chunks, as stored; `None` without a bound.
    pub stored_max: Option<u64>,
    /// Most bytes of releases; `None` without a bound.
    pub released_max: Option<u64>,
    /// Stored bytes of the chunks that came with its releases, and of its open uploads.
    pub stored: u64,
    /// Bytes of its releases.
    pub released: u64,
}

/// The part of a quota that does not suffice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{of} may have {max} bytes of {what} and has {used}: {more} more are too many")]
pub struct OverQuota {
    /// The one whose quota it is.
    pub of: QuotaOf,
    /// `new chunks` or `releases`.
    pub what: &'static str,
    /// The bound.
    pub max: u64,
    /// Bytes taken.
    pub used: u64,
    /// Bytes asked for.
    pub more: u64,
}

const COLUMNS: &str = "kind, name, stored, released";

fn read(row: &AnyRow) -> Result<QuotaRow, sqlx::Error> {
    let of = match row.text("kind")?.as_str() {
        "product" => QuotaOf::Product(row.parsed("name")?),
        _ => QuotaOf::Token(row.text("name")?),
    };
    Ok(QuotaRow {
        of,
        stored_max: row.number_or_none("stored")?,
        released_max: row.number_or_none("released")?,
        stored: 0,
        released: 0,
    })
}

/// Fills in how much is taken.
async fn with_use(connection: &mut AnyConnection, mut quota: QuotaRow) -> Result<QuotaRow, sqlx::Error> {
    let kind = quota.of.kind();
    let sql = format!(
        "SELECT CAST(COALESCE(SUM(stored), 0) AS BIGINT) AS stored, CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS released \
         FROM releases WHERE {kind} = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(quota.of.name().to_owned());
    let row = row.fetch_one(&mut *connection).await?;
    let sql = format!(
        "SELECT CAST(COALESCE(SUM(packs.bytes), 0) AS BIGINT) AS open FROM uploads JOIN packs \
         ON packs.upload = uploads.id WHERE uploads.{kind} = $1 AND uploads.state = 'open'"
    );
    let open = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(quota.of.name().to_owned());
    let open = open.fetch_one(&mut *connection).await?;
    quota.stored = row.number("stored")? + open.number("open")?;
    quota.released = row.number("released")?;
    Ok(quota)
}

/// First quota of a product or a token that does not suffice for `stored` more bytes of new chunks
/// and `released` more bytes of releases.
pub(super) async fn exceeded(
    connection: &mut AnyConnection,
    product: &Name,
    token: &str,
    stored: u64,
    released: u64,
) -> Result<Option<OverQuota>, sqlx::Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM quotas WHERE kind = 'product' AND name = $1 OR kind = 'token' AND name = $2 ORDER BY kind"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(product.to_string())
        .bind(token.to_owned())
        .fetch_all(&mut *connection)
        .await?;
    for row in &rows {
        let quota = with_use(connection, read(row)?).await?;
        for (what, max, used, more) in [
            ("new chunks", quota.stored_max, quota.stored, stored),
            ("releases", quota.released_max, quota.released, released),
        ] {
            if let Some(max) = max.filter(|max| more > 0 && used.saturating_add(more) > *max) {
                return Ok(Some(OverQuota { of: quota.of, what, max, used, more }));
            }
        }
    }
    Ok(None)
}

/// Share of a quota, in hundredths, from which on it counts as nearly full, and below which it does
/// no longer.
const NEARLY_FULL: u64 = 90;
const FREE_AGAIN: u64 = 80;

/// Tells the webhooks when more than nine tenths of a quota of a product or a token are taken: once
/// until less than eight tenths are.
pub(super) async fn tell_if_nearly_full(
    tx: &mut Transaction<'static, Any>,
    product: &Name,
    token: &str,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "SELECT {COLUMNS}, told FROM quotas WHERE kind = 'product' AND name = $1 OR kind = 'token' AND name = $2"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(product.to_string())
        .bind(token.to_owned())
        .fetch_all(&mut **tx)
        .await?;
    for row in &rows {
        let was_told = row.time_or_none("told")?.is_some();
        let quota = with_use(tx, read(row)?).await?;
        let share = |max: Option<u64>, used: u64| max.map_or(0, |max| used.saturating_mul(100) / max.max(1));
        let taken = share(quota.stored_max, quota.stored).max(share(quota.released_max, quota.released));
        let is_told = taken >= NEARLY_FULL || (was_told && taken >= FREE_AGAIN);
        if is_told == was_told {
            continue;
        }
        sqlx::query("UPDATE quotas SET told = $1 WHERE kind = $2 AND name = $3")
            .bind(is_told.then_some(now))
            .bind(quota.of.kind())
            .bind(quota.of.name().to_owned())
            .execute(&mut **tx)
            .await?;
        if is_told {
            let data = json!({
                "kind": quota.of.kind(),
                "name": quota.of.name(),
                "percent": taken,
                "stored_bytes": quota.stored,
                "stored_bytes_max": quota.stored_max,
                "release_bytes": quota.released,
                "release_bytes_max": quota.released_max,
            });
            emit(tx, EventKind::QuotaNearlyFull, &data, now).await?;
        }
    }
    Ok(())
}

impl Db {
    /// First quota of a product or a token that does not suffice for so many bytes more.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn over_quota(
        &self,
        product: &Name,
        token: &str,
        stored: u64,
        released: u64,
    ) -> Result<Option<OverQuota>, DbError> {
        let what = "look at the quotas";
        let mut connection = self.pool.acquire().await.map_err(failed(what))?;
        exceeded(&mut connection, product, token, stored, released).await.map_err(failed(what))
    }

    /// Sets a quota, or removes it when neither is bounded. `false` when there is no quota to
    /// remove.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_quota(
        &self,
        of: &QuotaOf,
        stored_max: Option<u64>,
        released_max: Option<u64>,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin_write().await?;
        let removes = stored_max.is_none() && released_max.is_none();
        let done = if removes {
            sqlx::query("DELETE FROM quotas WHERE kind = $1 AND name = $2")
                .bind(of.kind())
                .bind(of.name().to_owned())
                .execute(&mut *tx)
                .await
        } else {
            sqlx::query(
                "INSERT INTO quotas (kind, name, stored, released) VALUES ($1, $2, $3, $4) ON CONFLICT (kind, name) \
                 DO UPDATE SET stored = excluded.stored, released = excluded.released, told = NULL",
            )
            .bind(of.kind())
            .bind(of.name().to_owned())
            .bind(stored_max.map(signed))
            .bind(released_max.map(signed))
            .execute(&mut *tx)
            .await
        };
        if done.map_err(failed(WHAT))?.rows_affected() == 0 {
            return Ok(false);
        }
        let details = json!({ "stored_bytes": stored_max, "release_bytes": released_max });
        let action = if removes { "quota.remove" } else { "quota.set" };
        append(&mut tx, &self.acting.at(now), action, &of.to_string(), &details)
            .await
            .map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))?;
        Ok(true)
    }

    /// Every quota, with how much of it is taken; those of products first, by name.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn quotas(&self) -> Result<Vec<QuotaRow>, DbError> {
        let what = "list the quotas";
        let mut connection = self.pool.acquire().await.map_err(failed(what))?;
        let sql = format!("SELECT {COLUMNS} FROM quotas ORDER BY kind, name");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *connection).await;
        let mut quotas = Vec::new();
        for row in rows.map_err(failed(what))? {
            let quota = read(&row).map_err(failed(what))?;
            quotas.push(with_use(&mut connection, quota).await.map_err(failed(what))?);
        }
        Ok(quotas)
    }
}
