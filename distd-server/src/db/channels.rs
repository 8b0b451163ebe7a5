//! Channels: named pointers to a release. Each change is a transaction with its entry in the
//! history (`moves.rs`).
//!
//! Table `channels`: product and channel → version; `counter` grows by one with each change;
//! `downgrade_from` where devices were ordered back.

use distd_core::names::Name;
use sqlx::any::AnyRow;

use super::moves::{self, MoveBy, NewMove};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed, products, releases};

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRow {
    /// The product.
    pub product: Name,
    /// The channel.
    pub channel: Name,
    /// The version it points to.
    pub version: Name,
    /// Number that grows by one with each change.
    pub counter: u64,
    /// Time of its last change.
    pub updated: UnixSeconds,
    /// Devices with releases up to this number may come back to the version; `None` where that was
    /// not ordered.
    pub downgrade_from: Option<u64>,
}

/// Order to point a channel to a release.
#[derive(Clone, Copy, Debug)]
pub struct ChannelMove<'a> {
    /// The product.
    pub product: &'a Name,
    /// The channel.
    pub channel: &'a Name,
    /// The version.
    pub version: &'a Name,
    /// Whether devices with a later release are to come back to it.
    pub downgrade: bool,
}

/// Result of setting a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetChannelOutcome {
    /// It points there now.
    Set {
        /// The channel.
        row: ChannelRow,
        /// The version it pointed to before.
        from: Option<Name>,
    },
    /// It pointed there already; the counter did not move.
    Unchanged(ChannelRow),
    /// The channel has pointed to a later release, and a downgrade was not ordered.
    Older {
        /// The latest release it has pointed to, as long as it is known.
        newest: Option<Name>,
    },
    /// There is no such release.
    UnknownRelease,
}

const COLUMNS: &str = "product, channel, version, counter, updated, downgrade_from";

fn read(row: &AnyRow) -> Result<ChannelRow, sqlx::Error> {
    Ok(ChannelRow {
        product: row.parsed("product")?,
        channel: row.parsed("channel")?,
        version: row.parsed("version")?,
        counter: row.number("counter")?,
        updated: row.time("updated")?,
        downgrade_from: row.number_or_none("downgrade_from")?,
    })
}

impl Db {
    /// Points a channel to a release.
    ///
    /// A release with a lower number than one that the channel has pointed to before, also under an
    /// earlier life of its name, is older: it needs an order. An order reaches up to every release
    /// there is at `now`, so that it also holds for devices that have more than this database knows
    /// of, as after a restored backup.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_channel(
        &self,
        wanted: ChannelMove<'_>,
        by: &MoveBy,
        now: UnixSeconds,
    ) -> Result<SetChannelOutcome, DbError> {
        let what = "set the channel";
        let ChannelMove { product, channel, version, downgrade } = wanted;
        let mut tx = self.begin_write().await?;
        // The product's row first: two replicas that move its channels take turns.
        let last = products::last_sequence(&mut *tx, product, 0).await.map_err(failed(what))?;
        let sequence = releases::sequence_of(&mut *tx, product, version).await.map_err(failed(what))?;
        let (Some(last), Some(sequence)) = (last, sequence) else {
            return Ok(SetChannelOutcome::UnknownRelease);
        };
        let select = format!("SELECT {COLUMNS} FROM channels WHERE product = $1 AND channel = $2");
        let before = sqlx::query(sqlx::AssertSqlSafe(select.clone()))
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_optional(&mut *tx)
            .await
            .and_then(|row| row.as_ref().map(read).transpose())
            .map_err(failed(what))?;
        if let Some(row) = before.as_ref().filter(|row| row.version == *version) {
            // A repeated order says nothing new until there is another release to come back from.
            if !downgrade || row.downgrade_from.is_some_and(|order| order >= last) {
                return Ok(SetChannelOutcome::Unchanged(row.clone()));
            }
        }
        let highest = moves::highest(&mut *tx, product, channel).await.map_err(failed(what))?;
        if let Some(highest) = highest.filter(|highest| sequence < *highest && !downgrade) {
            let row =
                sqlx::query("SELECT version FROM releases WHERE product = $1 AND sequence = $2 LIMIT 1")
                    .bind(product.to_string())
                    .bind(signed(highest))
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(failed(what))?;
            let newest = row.map(|row| row.parsed("version")).transpose().map_err(failed(what))?;
            return Ok(SetChannelOutcome::Older { newest });
        }
        let order = match downgrade {
            true => {
                // Later releases get higher numbers than the order's.
                let order = last.max(products::numbers_of(now).1);
                products::last_sequence(&mut *tx, product, order).await.map_err(failed(what))?;
                Some(order)
            }
            false => None,
        };
        sqlx::query(
            "INSERT INTO channels (product, channel, version, counter, updated, downgrade_from) \
             VALUES ($1, $2, $3, 1, $4, $5) ON CONFLICT (product, channel) DO UPDATE SET \
             version = excluded.version, counter = channels.counter + 1, updated = excluded.updated, \
             downgrade_from = excluded.downgrade_from",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(version.to_string())
        .bind(now)
        .bind(order.map(signed))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        let row = sqlx::query(sqlx::AssertSqlSafe(select))
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_one(&mut *tx)
            .await
            .and_then(|row| read(&row))
            .map_err(failed(what))?;
        let from = before.map(|before| before.version);
        let entry = NewMove {
            product,
            channel,
            from: from.as_ref(),
            to: Some(version),
            highest: highest.unwrap_or(0).max(sequence),
            downgrade_from: order,
            by,
        };
        moves::insert(&mut tx, &entry, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(SetChannelOutcome::Set { row, from })
    }

    /// Sets a channel to what is signed for it with a later counter than the row has, or than no
    /// row.
    ///
    /// # Errors
    /// [`DbError::Query`], also when there is no such release.
    pub async fn take_over_channel(&self, signed_as: &ChannelRow, now: UnixSeconds) -> Result<(), DbError> {
        let what = "take the channel over";
        let ChannelRow { product, channel, version, counter, downgrade_from, .. } = signed_as;
        let mut tx = self.begin_write().await?;
        products::last_sequence(&mut *tx, product, downgrade_from.unwrap_or(0))
            .await
            .map_err(failed(what))?;
        let before = sqlx::query("SELECT version FROM channels WHERE product = $1 AND channel = $2")
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_optional(&mut *tx)
            .await
            .and_then(|row| row.map(|row| row.parsed("version")).transpose())
            .map_err(failed(what))?;
        let changed = sqlx::query(
            "INSERT INTO channels (product, channel, version, counter, updated, downgrade_from) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (product, channel) DO UPDATE SET \
             version = excluded.version, counter = excluded.counter, updated = excluded.updated, \
             downgrade_from = excluded.downgrade_from WHERE channels.counter < excluded.counter",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(version.to_string())
        .bind(signed(*counter))
        .bind(now)
        .bind(downgrade_from.map(signed))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?
        .rows_affected();
        if changed == 1 {
            let row = sqlx::query("SELECT sequence FROM releases WHERE product = $1 AND version = $2")
                .bind(product.to_string())
                .bind(version.to_string())
                .fetch_one(&mut *tx)
                .await;
            let sequence = row.and_then(|row| row.number("sequence")).map_err(failed(what))?;
            let highest = moves::highest(&mut *tx, product, channel).await.map_err(failed(what))?;
            let entry = NewMove {
                product,
                channel,
                from: before.as_ref(),
                to: Some(version),
                // The list of releases that the channel has had is lost; an order reached all of
                // them.
                highest: highest.unwrap_or(0).max(sequence).max(downgrade_from.unwrap_or(0)),
                downgrade_from: *downgrade_from,
                by: &MoveBy::origin(),
            };
            moves::insert(&mut tx, &entry, now).await.map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))
    }

    /// Removes a channel; `false` when there is none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn remove_channel(
        &self,
        product: &Name,
        channel: &Name,
        by: &MoveBy,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let what = "remove the channel";
        let mut tx = self.begin_write().await?;
        let gone = sqlx::query("DELETE FROM channels WHERE product = $1 AND channel = $2 RETURNING version")
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_optional(&mut *tx)
            .await
            .and_then(|row| row.map(|row| row.parsed("version")).transpose())
            .map_err(failed(what))?;
        let Some(from) = gone else { return Ok(false) };
        let highest = moves::highest(&mut *tx, product, channel).await.map_err(failed(what))?;
        let entry = NewMove {
            product,
            channel,
            from: Some(&from),
            to: None,
            highest: highest.unwrap_or(0),
            downgrade_from: None,
            by,
        };
        moves::insert(&mut tx, &entry, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
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
