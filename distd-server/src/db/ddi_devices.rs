//! DDI devices and the nodes that stand for them.
//!
//! Table `ddi_devices`: the node of each controller id, its channel, and the version that it
//! installed.

use distd_core::NodeId;
use distd_core::bounds::LABELS_MAX;
use distd_core::fleet::LabelMap;
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::reports::read_state;
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// Beginning of `public_key` in the row of a node that stands for a DDI device. No key begins so.
pub const DDI_KEY_PREFIX: &[u8] = b"ddi\0";

/// A DDI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdiDeviceRow {
    /// The id that the device calls itself.
    pub controller: String,
    /// The node that stands for it.
    pub node: NodeId,
    /// Time at which the node was revoked.
    pub revoked: Option<UnixSeconds>,
    /// Product that it installs.
    pub product: Name,
    /// Channel that it follows.
    pub channel: Name,
    /// Whether a target token names it.
    pub by_target: bool,
    /// Version that it installed last; `None` while that is unknown.
    pub installed: Option<Name>,
    /// Release of the channel that failed last, and the channel's counter then.
    pub failed: Option<(Name, u64)>,
    /// Time at which its attributes came; `None` before the first time.
    pub attributes: Option<UnixSeconds>,
    /// Whether it confirms every action by itself.
    pub auto_confirm: bool,
}

impl DdiDeviceRow {
    /// The release that failed last, as [`Db::set_ddi_installed`] takes it.
    pub fn failed_ref(&self) -> Option<(&Name, u64)> {
        self.failed.as_ref().map(|(version, counter)| (version, *counter))
    }
}

const SELECT: &str = "SELECT d.controller AS controller, d.node AS node, d.product AS product, \
     d.channel AS channel, d.by_target AS by_target, d.installed AS installed, d.failed AS failed, \
     d.failed_at AS failed_at, d.attributes AS attributes, d.auto_confirm AS auto_confirm, n.revoked AS revoked \
     FROM ddi_devices d JOIN nodes n ON n.id = d.node WHERE d.controller = $1";

fn read(row: &AnyRow) -> Result<DdiDeviceRow, sqlx::Error> {
    let name = |column| row.text_or_none(column)?.map(|_| row.parsed::<Name>(column)).transpose();
    let failed_at = row.number("failed_at")?;
    Ok(DdiDeviceRow {
        controller: row.text("controller")?,
        node: row.parsed("node")?,
        revoked: row.time_or_none("revoked")?,
        product: row.parsed("product")?,
        channel: row.parsed("channel")?,
        by_target: row.number("by_target")? == 1,
        installed: name("installed")?,
        failed: name("failed")?.map(|version| (version, failed_at)),
        attributes: row.time_or_none("attributes")?,
        auto_confirm: row.number("auto_confirm")? == 1,
    })
}

/// The device with this controller id.
pub(super) async fn find<'e>(
    on: impl Executor<'e, Database = Any>,
    controller: &str,
) -> Result<Option<DdiDeviceRow>, sqlx::Error> {
    let row = sqlx::query(SELECT).bind(controller.to_owned()).fetch_optional(on).await?;
    row.as_ref().map(read).transpose()
}

impl Db {
    /// The device with this controller id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ddi_device(&self, controller: &str) -> Result<Option<DdiDeviceRow>, DbError> {
        find(&self.pool, controller).await.map_err(failed("read the DDI device"))
    }

    /// Records the version that a device runs, and that of a release that failed there.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_ddi_installed(
        &self,
        node: &NodeId,
        installed: Option<&Name>,
        failed_release: Option<(&Name, u64)>,
    ) -> Result<(), DbError> {
        sqlx::query("UPDATE ddi_devices SET installed = $1, failed = $2, failed_at = $3 WHERE node = $4")
            .bind(installed.map(ToString::to_string))
            .bind(failed_release.map(|(version, _)| version.to_string()))
            .bind(signed(failed_release.map_or(0, |(_, counter)| counter)))
            .bind(node.to_string())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("record the version of the DDI device"))
    }

    /// Lets a device confirm every action by itself, or not.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_ddi_auto_confirm(&self, node: &NodeId, auto_confirm: bool) -> Result<(), DbError> {
        sqlx::query("UPDATE ddi_devices SET auto_confirm = $1 WHERE node = $2")
            .bind(i64::from(auto_confirm))
            .bind(node.to_string())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("record the confirmation of the DDI device"))
    }

    /// Counts a report that the origin makes for a device; returns its number.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn next_ddi_report(&self, node: &NodeId) -> Result<u64, DbError> {
        let row =
            sqlx::query("UPDATE ddi_devices SET reports = reports + 1 WHERE node = $1 RETURNING reports")
                .bind(node.to_string())
                .fetch_one(&self.pool)
                .await;
        row.and_then(|row| row.number("reports")).map_err(failed("count the report of the DDI device"))
    }

    /// Replaces the facts of a device by those that it reported at `now`; those beyond
    /// [`LABELS_MAX`] are left out. Facts decide no rights.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_ddi_facts(
        &self,
        node: &NodeId,
        facts: &LabelMap,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let what = "record the facts of the DDI device";
        let mut tx = self.begin_write().await?;
        sqlx::query("UPDATE ddi_devices SET attributes = $1 WHERE node = $2")
            .bind(now)
            .bind(node.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        sqlx::query("DELETE FROM node_labels WHERE node = $1 AND source = 'fact'")
            .bind(node.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        for (key, value) in facts.iter().take(LABELS_MAX) {
            sqlx::query("INSERT INTO node_labels (node, source, key, value) VALUES ($1, 'fact', $2, $3)")
                .bind(node.to_string())
                .bind(key.to_string())
                .bind(value.to_string())
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))
    }

    /// State and number of a device's newest attempt at a rollout.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn newest_attempt(
        &self,
        rollout: &RolloutId,
        node: &NodeId,
    ) -> Result<Option<(AttemptState, u32)>, DbError> {
        let row = sqlx::query("SELECT state, number FROM rollout_attempts WHERE rollout = $1 AND node = $2")
            .bind(rollout.to_string())
            .bind(node.to_string())
            .fetch_optional(&self.pool)
            .await;
        let read = |row: &AnyRow| Ok(read_state(row)?.map(|state| (state, row.number32("number"))));
        let found = row.and_then(|row| row.as_ref().map_or(Ok(None), read));
        let found = found.and_then(|found| match found {
            Some((state, number)) => Ok(Some((state, number?))),
            None => Ok(None),
        });
        found.map_err(failed("read the attempt of the DDI device"))
    }

    /// Notes how far an attempt that has not ended is, for operators.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn note_progress(
        &self,
        rollout: &RolloutId,
        node: &NodeId,
        detail: &str,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        sqlx::query(
            "UPDATE rollout_attempts SET detail = $1, received = $2 WHERE rollout = $3 AND node = $4 \
             AND state NOT IN ('succeeded', 'failed', 'rolled_back')",
        )
        .bind(detail.to_owned())
        .bind(now)
        .bind(rollout.to_string())
        .bind(node.to_string())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("note the progress of the DDI device"))
    }
}
