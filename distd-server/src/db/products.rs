//! Products: named lines of artifacts and how they are cut.
//!
//! Table `products`: name and cut parameters; `last_sequence`, the last number given to a release;
//! `file_name`, pattern of the names of files under which other update clients know releases.

use distd_core::cut::CutParams;
use distd_core::file_name::FilePattern;
use distd_core::names::Name;
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::audit::append;
use super::row::{Columns, impossible, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// One product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductRow {
    /// Its name.
    pub name: Name,
    /// Cut parameters of its releases.
    pub cut: CutParams,
    /// Time at which it was made.
    pub created: UnixSeconds,
    /// Pattern of the names of its files; `None` without one.
    pub file_name: Option<FilePattern>,
}

const COLUMNS: &str = "name, cut_min, cut_avg, cut_max, created, file_name";

fn read(row: &AnyRow) -> Result<ProductRow, sqlx::Error> {
    let (min, avg, max) = (row.number32("cut_min")?, row.number32("cut_avg")?, row.number32("cut_max")?);
    Ok(ProductRow {
        name: row.parsed("name")?,
        cut: CutParams::new(min, avg, max).map_err(|_| impossible("cut_min"))?,
        created: row.time("created")?,
        file_name: row.text_or_none("file_name")?.map(|_| row.parsed("file_name")).transpose()?,
    })
}

/// Cut parameters in the audit log.
fn details(cut: CutParams) -> Value {
    json!({"cut": [cut.min(), cut.avg(), cut.max()]})
}

/// The last number given to a release of a product, raised to `at_least`; `None` when there is no
/// such product. The caller's transaction has the product's row locked until it ends.
pub(super) async fn last_sequence<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    at_least: u64,
) -> Result<Option<u64>, sqlx::Error> {
    let row = sqlx::query(
        "UPDATE products SET last_sequence = CASE WHEN last_sequence < $1 THEN $1 ELSE last_sequence END \
         WHERE name = $2 RETURNING last_sequence",
    )
    .bind(signed(at_least))
    .bind(product.to_string())
    .fetch_optional(on)
    .await?;
    row.map(|row| row.number("last_sequence")).transpose()
}

/// Numbers of a second: enough that releases made one after the other do not run ahead of the
/// clock.
const PER_SECOND: u64 = 1000;

/// The first and the last number of the second `now`.
pub(super) fn numbers_of(now: UnixSeconds) -> (u64, u64) {
    let first = u64::try_from(now).unwrap_or(0).saturating_mul(PER_SECOND);
    (first, first.saturating_add(PER_SECOND - 1))
}

/// Returns the number of a product's next release: the first number of this second, or one more
/// than the last number if that is higher. So the numbers keep growing when the database is lost or
/// an older one comes back, as long as the clock is not behind.
pub(super) async fn next_sequence<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    now: UnixSeconds,
) -> Result<u64, sqlx::Error> {
    let row = sqlx::query(
        "UPDATE products SET last_sequence = CASE WHEN last_sequence < $1 THEN $1 ELSE last_sequence + 1 END \
         WHERE name = $2 RETURNING last_sequence",
    )
    .bind(signed(numbers_of(now).0))
    .bind(product.to_string())
    .fetch_one(on)
    .await?;
    row.number("last_sequence")
}

impl Db {
    /// Makes a product unless it is there; returns the product's row, and whether it was made
    /// now.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ensure_product(
        &self,
        name: &Name,
        cut: CutParams,
        now: UnixSeconds,
    ) -> Result<(ProductRow, bool), DbError> {
        let what = "create the product";
        let mut tx = self.begin_write().await?;
        let made = sqlx::query(
            "INSERT INTO products (name, cut_min, cut_avg, cut_max, created) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(name.to_string())
        .bind(i64::from(cut.min()))
        .bind(i64::from(cut.avg()))
        .bind(i64::from(cut.max()))
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?
        .rows_affected();
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM products WHERE name = $1"));
        let row = sqlx::query(sql).bind(name.to_string()).fetch_one(&mut *tx).await.map_err(failed(what))?;
        if made == 1 {
            append(&mut tx, &self.acting.at(now), "product.set", name.as_str(), &details(cut))
                .await
                .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        Ok((read(&row).map_err(failed(what))?, made == 1))
    }

    /// Changes how later releases of a product are cut; `false` when there is no such product.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_product_cut(&self, name: &Name, cut: CutParams) -> Result<bool, DbError> {
        let what = "change the product";
        let mut tx = self.begin_write().await?;
        let done =
            sqlx::query("UPDATE products SET cut_min = $1, cut_avg = $2, cut_max = $3 WHERE name = $4")
                .bind(i64::from(cut.min()))
                .bind(i64::from(cut.avg()))
                .bind(i64::from(cut.max()))
                .bind(name.to_string())
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        append(&mut tx, &self.acting, "product.set", name.as_str(), &details(cut))
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// One product.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn product(&self, name: &Name) -> Result<Option<ProductRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM products WHERE name = $1"));
        let row = sqlx::query(sql).bind(name.to_string()).fetch_optional(&self.pool).await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the product"))
    }

    /// Every product, by name.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn products(&self) -> Result<Vec<ProductRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM products ORDER BY name"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the products"))
    }
}
