//! Channels: named pointers to a release.

use distd_core::names::Name;
use sqlx::any::AnyRow;

use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRow {
    /// The product.
    pub product: Name,
    /// The channel.
    pub channel: Name,
    /// The version it points to.
    pub version: Name,
    /// Grows by one with each change.
    pub counter: u64,
    /// When it last changed.
    pub updated: UnixSeconds,
}

/// What became of setting a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetChannelOutcome {
    /// It points there now.
    Set(ChannelRow),
    /// It pointed there already; the counter did not move.
    Unchanged(ChannelRow),
    /// There is no such release.
    UnknownRelease,
}

const COLUMNS: &str = "product, channel, version, counter, updated";

fn read(row: &AnyRow) -> Result<ChannelRow, sqlx::Error> {
    Ok(ChannelRow {
        product: row.parsed("product")?,
        channel: row.parsed("channel")?,
        version: row.parsed("version")?,
        counter: row.number("counter")?,
        updated: row.time("updated")?,
    })
}

impl Db {
    /// Points a channel to a release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_channel(
        &self,
        product: &Name,
        channel: &Name,
        version: &Name,
        now: UnixSeconds,
    ) -> Result<SetChannelOutcome, DbError> {
        let what = "set the channel";
        let mut tx = self.begin_write().await?;
        let known = sqlx::query(
            "SELECT version FROM releases WHERE product = $1 AND version = $2 AND withdrawn IS NULL",
        )
        .bind(product.to_string())
        .bind(version.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(what))?;
        if known.is_none() {
            return Ok(SetChannelOutcome::UnknownRelease);
        }
        // The WHERE makes two replicas that set the same version count once.
        let changed = sqlx::query(
            "INSERT INTO channels (product, channel, version, counter, updated) VALUES ($1, $2, $3, 1, $4) \
             ON CONFLICT (product, channel) DO UPDATE SET version = excluded.version, \
             counter = channels.counter + 1, updated = excluded.updated \
             WHERE channels.version <> excluded.version",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(version.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?
        .rows_affected();
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM channels WHERE product = $1 AND channel = $2"
        ));
        let row = sqlx::query(sql)
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(what))?;
        let row = read(&row).map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(if changed == 1 { SetChannelOutcome::Set(row) } else { SetChannelOutcome::Unchanged(row) })
    }

    /// Sets a channel to what is signed for it with a later counter than the row has, or than no row.
    ///
    /// # Errors
    /// [`DbError::Query`], also when there is no such release.
    pub async fn take_over_channel(
        &self,
        product: &Name,
        channel: &Name,
        version: &Name,
        counter: u64,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO channels (product, channel, version, counter, updated) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (product, channel) DO UPDATE SET version = excluded.version, \
             counter = excluded.counter, updated = excluded.updated WHERE channels.counter < excluded.counter",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(version.to_string())
        .bind(signed(counter))
        .bind(now)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("take the channel over"))
    }

    /// Removes a channel; `false` when there is none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn remove_channel(&self, product: &Name, channel: &Name) -> Result<bool, DbError> {
        let done = sqlx::query("DELETE FROM channels WHERE product = $1 AND channel = $2")
            .bind(product.to_string())
            .bind(channel.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("remove the channel"))?;
        Ok(done.rows_affected() == 1)
    }

    /// One channel.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn channel(&self, product: &Name, channel: &Name) -> Result<Option<ChannelRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM channels WHERE product = $1 AND channel = $2"
        ));
        let row = sqlx::query(sql)
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_optional(&self.pool)
            .await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the channel"))
    }

    /// Every channel of every product, by name: compare with the TUF repository at start.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn channels(&self) -> Result<Vec<ChannelRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM channels ORDER BY product, channel"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the channels"))
    }
}
