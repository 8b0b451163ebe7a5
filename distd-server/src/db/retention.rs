//! Policies of retention: which releases of a product are kept.
//!
//! Table `retention`: number of the newest releases and days for which a product's releases are
//! kept, whatever uses them; a product without a row keeps all.

use std::collections::BTreeMap;

use distd_core::api::Retention;
use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;

use super::audit::append;
use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

const WHAT: &str = "change what the product keeps";

fn read(row: &AnyRow) -> Result<(Name, Retention), sqlx::Error> {
    let number = |column| {
        let number = row.number_or_none(column)?;
        Ok::<_, sqlx::Error>(number.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
    };
    let retention =
        Retention { keep: number("keep")?, days: number("days")?, may_empty: row.number("may_empty")? != 0 };
    Ok((row.parsed("product")?, retention))
}

impl Db {
    /// Sets the policy of a product, or removes it; `false` when there is no such product, or no
    /// policy to remove.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_retention(
        &self,
        product: &Name,
        retention: Option<Retention>,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin_write().await?;
        let done = match retention {
            Some(Retention { keep, days, may_empty }) => {
                sqlx::query(
                    "INSERT INTO retention (product, keep, days, may_empty) \
                     SELECT name, $1, $2, $3 FROM products WHERE name = $4 \
                     ON CONFLICT (product) DO UPDATE SET keep = excluded.keep, days = excluded.days, \
                     may_empty = excluded.may_empty",
                )
                .bind(keep.map(i64::from))
                .bind(days.map(i64::from))
                .bind(i64::from(may_empty))
                .bind(product.to_string())
                .execute(&mut *tx)
                .await
            }
            None => {
                let sql = "DELETE FROM retention WHERE product = $1";
                sqlx::query(sql).bind(product.to_string()).execute(&mut *tx).await
            }
        };
        if done.map_err(failed(WHAT))?.rows_affected() == 0 {
            return Ok(false);
        }
        let details = json!({ "retention": retention });
        append(&mut tx, &self.acting.at(now), "product.retention", product.as_str(), &details)
            .await
            .map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))?;
        Ok(true)
    }

    /// The policy of each product that has one.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn retentions(&self) -> Result<BTreeMap<Name, Retention>, DbError> {
        let rows = sqlx::query("SELECT product, keep, days, may_empty FROM retention").fetch_all(&self.pool);
        let rows = rows.await.and_then(|rows| rows.iter().map(read).collect());
        rows.map_err(failed("read what products keep"))
    }
}
