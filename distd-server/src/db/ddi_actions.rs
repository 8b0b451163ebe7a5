//! What DDI devices are told to do.
//!
//! Table `ddi_actions`: at most one action of a device is open, and the last few that have ended
//! are kept.

use distd_core::NodeId;
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use sqlx::any::AnyRow;

use super::row::{Columns, impossible, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// Ended actions of a device that are kept.
const ENDED_KEPT: i64 = 16;

/// Condition: the action is open.
pub(super) const OPEN: &str = "state IN ('confirming', 'offered', 'fetching', 'activating', 'canceling')";

/// State of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DdiState {
    /// The device is to confirm it.
    Confirming,
    /// The device may begin, and has not looked at it yet.
    Offered,
    /// The device has begun.
    Fetching,
    /// The device installs.
    Activating,
    /// The device is told to stop.
    Canceling,
    /// The device has installed the release.
    Succeeded,
    /// The device could not.
    Failed,
    /// It ended without a result.
    Canceled,
}

impl DdiState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Confirming,
        Self::Offered,
        Self::Fetching,
        Self::Activating,
        Self::Canceling,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
    ];

    /// The state as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirming => "confirming",
            Self::Offered => "offered",
            Self::Fetching => "fetching",
            Self::Activating => "activating",
            Self::Canceling => "canceling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Whether the action is over.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdiActionRow {
    /// Its id, from 1.
    pub id: u64,
    /// Node of the device.
    pub node: NodeId,
    /// Product.
    pub product: Name,
    /// Version to install.
    pub version: Name,
    /// The rollout; `None` for the channel's own release.
    pub rollout: Option<RolloutId>,
    /// Number of the attempt on the device.
    pub number: u32,
    /// State.
    pub state: DdiState,
    /// Whether the device refused to cancel it.
    pub uncancelable: bool,
    /// Bytes of the artifact that were sent.
    pub bytes: u64,
    /// Time at which the device began; `None` before.
    pub began: Option<UnixSeconds>,
}

/// An action to make.
#[derive(Clone, Copy, Debug)]
pub struct NewDdiAction<'a> {
    /// Node of the device.
    pub node: &'a NodeId,
    /// Product.
    pub product: &'a Name,
    /// Version to install.
    pub version: &'a Name,
    /// The rollout; `None` for the channel's own release.
    pub rollout: Option<&'a RolloutId>,
    /// Number of the attempt on the device.
    pub number: u32,
    /// [`DdiState::Confirming`] or [`DdiState::Offered`].
    pub state: DdiState,
}

const COLUMNS: &str = "id, node, product, version, rollout, number, state, uncancelable, bytes, began";

fn read(row: &AnyRow) -> Result<DdiActionRow, sqlx::Error> {
    let state = row.text("state")?;
    let state = DdiState::ALL.into_iter().find(|known| known.as_str() == state);
    Ok(DdiActionRow {
        id: row.number("id")?,
        node: row.parsed("node")?,
        product: row.parsed("product")?,
        version: row.parsed("version")?,
        rollout: row.text_or_none("rollout")?.map(|_| row.parsed("rollout")).transpose()?,
        number: row.number32("number")?,
        state: state.ok_or_else(|| impossible("state"))?,
        uncancelable: row.number("uncancelable")? == 1,
        bytes: row.number("bytes")?,
        began: row.time_or_none("began")?,
    })
}

impl Db {
    /// Makes an action. Where the device has an open one, as another request of the device may have
    /// made, that one is returned.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_ddi_action(
        &self,
        new: &NewDdiAction<'_>,
        now: UnixSeconds,
    ) -> Result<DdiActionRow, DbError> {
        let what = "make the DDI action";
        let mut tx = self.begin_write().await?;
        // The device's row is locked, so that two requests of a device take turns.
        sqlx::query("UPDATE ddi_devices SET reports = reports WHERE node = $1")
            .bind(new.node.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let sql = format!("SELECT {COLUMNS} FROM ddi_actions WHERE node = $1 AND {OPEN}");
        let open = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(new.node.to_string());
        if let Some(row) = open.fetch_optional(&mut *tx).await.map_err(failed(what))? {
            return read(&row).map_err(failed(what));
        }
        sqlx::query(
            "DELETE FROM ddi_actions WHERE node = $1 AND id NOT IN \
             (SELECT id FROM ddi_actions WHERE node = $2 ORDER BY id DESC LIMIT $3)",
        )
        .bind(new.node.to_string())
        .bind(new.node.to_string())
        .bind(ENDED_KEPT - 1)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        let sql = format!(
            "INSERT INTO ddi_actions (node, product, version, rollout, number, state, uncancelable, bytes, began, changed) \
             VALUES ($1, $2, $3, $4, $5, $6, 0, 0, NULL, $7) RETURNING {COLUMNS}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(new.node.to_string())
            .bind(new.product.to_string())
            .bind(new.version.to_string())
            .bind(new.rollout.map(ToString::to_string))
            .bind(i64::from(new.number))
            .bind(new.state.as_str())
            .bind(now)
            .fetch_one(&mut *tx)
            .await
            .and_then(|row| read(&row))
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(row)
    }

    /// The open action of a device.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn open_ddi_action(&self, node: &NodeId) -> Result<Option<DdiActionRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM ddi_actions WHERE node = $1 AND {OPEN}");
        self.one_ddi_action(&sql, node.to_string()).await
    }

    /// The newest action of a device, open or not.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn newest_ddi_action(&self, node: &NodeId) -> Result<Option<DdiActionRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM ddi_actions WHERE node = $1 ORDER BY id DESC LIMIT 1");
        self.one_ddi_action(&sql, node.to_string()).await
    }

    /// The action of a device with this id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ddi_action(&self, node: &NodeId, id: u64) -> Result<Option<DdiActionRow>, DbError> {
        let Ok(id) = i64::try_from(id) else { return Ok(None) };
        let sql = format!("SELECT {COLUMNS} FROM ddi_actions WHERE node = $1 AND id = {id}");
        self.one_ddi_action(&sql, node.to_string()).await
    }

    async fn one_ddi_action(&self, sql: &str, node: String) -> Result<Option<DdiActionRow>, DbError> {
        let row =
            sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).bind(node).fetch_optional(&self.pool).await;
        row.and_then(|row| row.as_ref().map(read).transpose()).map_err(failed("read the DDI action"))
    }

    /// Brings an open action from the state that it has into another; `false` when it has another
    /// state by now.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn move_ddi_action(
        &self,
        action: &DdiActionRow,
        state: DdiState,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        // An action from which the device cannot be called back goes on as before.
        let uncancelable = action.state == DdiState::Canceling && !state.has_ended();
        let began = !matches!(state, DdiState::Confirming | DdiState::Offered | DdiState::Canceled);
        let done = sqlx::query(
            "UPDATE ddi_actions SET state = $1, uncancelable = $2, began = CASE WHEN $3 = 1 \
             THEN COALESCE(began, $4) ELSE began END, changed = $5 WHERE id = $6 AND state = $7",
        )
        .bind(state.as_str())
        .bind(i64::from(uncancelable || action.uncancelable))
        .bind(i64::from(began))
        .bind(now)
        .bind(now)
        .bind(signed(action.id))
        .bind(action.state.as_str())
        .execute(&self.pool)
        .await
        .map_err(failed("change the DDI action"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Adds bytes of the artifact that were sent for an action.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn add_ddi_bytes(&self, id: u64, bytes: u64) -> Result<(), DbError> {
        sqlx::query("UPDATE ddi_actions SET bytes = bytes + $1 WHERE id = $2")
            .bind(signed(bytes))
            .bind(signed(id))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("count the bytes of the DDI action"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_states_are_those_that_have_not_ended() {
        let open = DdiState::ALL.into_iter().filter(|state| !state.has_ended());
        let words: Vec<String> = open.map(|state| format!("'{}'", state.as_str())).collect();
        assert_eq!(OPEN, format!("state IN ({})", words.join(", ")));
        let migration = include_str!("../../migrations/0018_ddi.sql");
        assert!(migration.contains(&format!("WHERE {OPEN};")), "the unique index is over the same");
        let all: Vec<String> = DdiState::ALL.iter().map(|state| format!("'{}'", state.as_str())).collect();
        assert!(migration.contains(&format!("CHECK (state IN ({}))", all.join(", "))));
    }
}
