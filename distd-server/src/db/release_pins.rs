//! Pins of releases: an operator's word that a release stays.
//!
//! Table `release_pins`: why, when and by whom a release was pinned.

use distd_core::names::Name;
use serde_json::{Value, json};
use sqlx::{Any, Transaction};

use super::audit::append;
use super::withdraw::lock_release;
use super::{Db, DbError, UnixSeconds, failed};

const WHAT: &str = "pin the release";

impl Db {
    /// Pins a release that is not being removed; a later pin replaces the reason. `false` when
    /// there is no such release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pin_release(
        &self,
        product: &Name,
        version: &Name,
        why: &str,
        label: &str,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin_write().await?;
        lock_release(&mut tx, product, version).await.map_err(failed(WHAT))?;
        let done = sqlx::query(
            "INSERT INTO release_pins (product, version, why, pinned, label) \
             SELECT product, version, $1, $2, $3 FROM releases \
             WHERE product = $4 AND version = $5 AND removing IS NULL \
             ON CONFLICT (product, version) DO UPDATE SET why = excluded.why, pinned = excluded.pinned, \
             label = excluded.label",
        )
        .bind(why.to_owned())
        .bind(now)
        .bind(label.to_owned())
        .bind(product.to_string())
        .bind(version.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed(WHAT))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        self.note(tx, ("release.pin", json!({ "why": why })), (product, version), now).await?;
        Ok(true)
    }

    /// Removes the pin of a release; `false` when it has none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn unpin_release(
        &self,
        product: &Name,
        version: &Name,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin_write().await?;
        let done = sqlx::query("DELETE FROM release_pins WHERE product = $1 AND version = $2")
            .bind(product.to_string())
            .bind(version.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(WHAT))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        self.note(tx, ("release.unpin", json!({})), (product, version), now).await?;
        Ok(true)
    }

    /// Ends a transaction with its entry in the audit log.
    async fn note(
        &self,
        mut tx: Transaction<'static, Any>,
        (action, details): (&str, Value),
        (product, version): (&Name, &Name),
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let subject = format!("{product}@{version}");
        append(&mut tx, &self.acting.at(now), action, &subject, &details).await.map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))
    }
}
