//! The fleet over time, for charts.
//!
//! Table `fleet_history`: devices of each channel by version, at multiples of ten minutes.

use distd_core::names::Name;

use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// Distance of two counts, seconds.
const DISTANCE: i64 = 600;

/// Devices of a channel that ran one version at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    /// Time of the count.
    pub at: UnixSeconds,
    /// Version; empty for devices that had none.
    pub version: String,
    /// Devices.
    pub devices: u64,
}

/// Ages in seconds, each with the distance in seconds of the counts that are kept beyond it.
const KEPT: [(i64, i64); 3] = [(2 * 86_400, 3600), (60 * 86_400, 86_400), (800 * 86_400, i64::MAX)];

impl Db {
    /// Records how many devices run each version now, once for each multiple of ten minutes, and
    /// thins out what is older than two days.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn count_history(&self, now: UnixSeconds) -> Result<(), DbError> {
        let what = "count the devices of each version";
        let at = now - now.rem_euclid(DISTANCE);
        // Most looks find the count, and take no turn of writers.
        let counted = sqlx::query("SELECT 1 FROM fleet_history WHERE at >= $1 LIMIT 1")
            .bind(at)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(what))?;
        if counted.is_some() {
            return Ok(());
        }
        let mut tx = self.begin_write().await?;
        sqlx::query(
            "INSERT INTO fleet_history (at, product, channel, version, devices) \
             SELECT $1, r.product, r.channel, COALESCE(r.version, ''), COUNT(*) FROM node_running r \
             WHERE r.node NOT IN (SELECT id FROM nodes WHERE revoked IS NOT NULL OR role <> 'leaf') \
             GROUP BY r.product, r.channel, COALESCE(r.version, '') ON CONFLICT DO NOTHING",
        )
        .bind(at)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        for (age, distance) in KEPT {
            sqlx::query("DELETE FROM fleet_history WHERE at < $1 AND at % $2 <> 0")
                .bind(now - age)
                .bind(distance)
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))
    }

    /// Devices of a channel by version since `since`, the oldest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn history(
        &self,
        product: &Name,
        channel: &Name,
        since: UnixSeconds,
    ) -> Result<Vec<HistoryRow>, DbError> {
        let rows = sqlx::query(
            "SELECT at, version, devices FROM fleet_history \
             WHERE product = $1 AND channel = $2 AND at >= $3 ORDER BY at, version",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(since)
        .fetch_all(&self.pool)
        .await;
        let read = |row: &sqlx::any::AnyRow| {
            Ok(HistoryRow {
                at: row.time("at")?,
                version: row.text("version")?,
                devices: row.number("devices")?,
            })
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("read the fleet's history"))
    }
}
