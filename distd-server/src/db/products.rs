//! Products: named lines of artifacts and how they are cut.

use distd_core::cut::CutParams;
use distd_core::names::Name;
use sqlx::any::AnyRow;

use super::row::{Columns, impossible};
use super::{Db, DbError, UnixSeconds, failed};

/// One product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductRow {
    /// Its name.
    pub name: Name,
    /// How its releases are cut.
    pub cut: CutParams,
    /// When it was made.
    pub created: UnixSeconds,
}

const COLUMNS: &str = "name, cut_min, cut_avg, cut_max, created";

fn read(row: &AnyRow) -> Result<ProductRow, sqlx::Error> {
    let (min, avg, max) = (row.number32("cut_min")?, row.number32("cut_avg")?, row.number32("cut_max")?);
    Ok(ProductRow {
        name: row.parsed("name")?,
        cut: CutParams::new(min, avg, max).map_err(|_| impossible("cut_min"))?,
        created: row.time("created")?,
    })
}

impl Db {
    /// Makes a product unless it is there; gives what is there afterwards, and whether it was made now.
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
        tx.commit().await.map_err(failed(what))?;
        Ok((read(&row).map_err(failed(what))?, made == 1))
    }

    /// Changes how later releases of a product are cut; `false` when there is no such product.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_product_cut(&self, name: &Name, cut: CutParams) -> Result<bool, DbError> {
        let done =
            sqlx::query("UPDATE products SET cut_min = $1, cut_avg = $2, cut_max = $3 WHERE name = $4")
                .bind(i64::from(cut.min()))
                .bind(i64::from(cut.avg()))
                .bind(i64::from(cut.max()))
                .bind(name.to_string())
                .execute(&self.pool)
                .await
                .map_err(failed("change the product"))?;
        Ok(done.rows_affected() == 1)
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
