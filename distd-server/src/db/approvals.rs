//! Channels whose rollouts a second token approves, and these approvals.
//!
//! Table `channel_approvals`: the channels. A rollout takes the wish over when it begins.

use distd_core::api::Approval;
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use serde_json::json;
use sqlx::{Any, Executor};

use super::audit::append;
use super::moves::MoveBy;
use super::rollouts::add_event;
use super::{Db, DbError, RolloutRow, UnixSeconds, failed};

/// Result of approving a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApproveRollout {
    /// It is approved, now or before.
    Approved,
    /// It waits for no approval.
    NotWanted,
    /// The token began the rollout, and another one approves it.
    SameToken,
}

/// Whether the rollouts of a channel need an approval.
pub(super) async fn is_wanted<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    channel: &Name,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT 1 FROM channel_approvals WHERE product = $1 AND channel = $2")
        .bind(product.to_string())
        .bind(channel.to_string())
        .fetch_optional(on)
        .await?;
    Ok(row.is_some())
}

impl Db {
    /// Has the rollouts of a channel that begin from now on wait for the approval of a second
    /// token, or not.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_approval(&self, product: &Name, channel: &Name, is_wanted: bool) -> Result<(), DbError> {
        let what = "set the channel's approval";
        let mut tx = self.begin_write().await?;
        let sql = match is_wanted {
            true => "INSERT INTO channel_approvals (product, channel) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            false => "DELETE FROM channel_approvals WHERE product = $1 AND channel = $2",
        };
        sqlx::query(sql)
            .bind(product.to_string())
            .bind(channel.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let (subject, details) = (format!("{product}:{channel}"), json!({"wanted": is_wanted}));
        append(&mut tx, &self.acting, "channel.approval", &subject, &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// Whether the rollouts of a channel need an approval.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn needs_approval(&self, product: &Name, channel: &Name) -> Result<bool, DbError> {
        is_wanted(&self.pool, product, channel).await.map_err(failed("read the channel's approval"))
    }

    /// Approves a rollout in the name of `by`, which must not be the token that began it.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn approve_rollout(
        &self,
        row: &RolloutRow,
        reason: &str,
        by: &MoveBy,
        now: UnixSeconds,
    ) -> Result<ApproveRollout, DbError> {
        let what = "approve the rollout";
        match row.approval {
            Approval::None => return Ok(ApproveRollout::NotWanted),
            Approval::Given => return Ok(ApproveRollout::Approved),
            Approval::Wanted => {}
        }
        let mut tx = self.begin_write().await?;
        let began = sqlx::query(
            "SELECT 1 FROM rollout_events WHERE rollout = $1 AND event = 'started' AND token = $2",
        )
        .bind(row.id.to_string())
        .bind(by.token.clone())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(what))?;
        if began.is_some() {
            return Ok(ApproveRollout::SameToken);
        }
        let done = sqlx::query(
            "UPDATE rollouts SET approval = 'given', updated = $1 WHERE id = $2 AND approval = 'wanted'",
        )
        .bind(now)
        .bind(row.id.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if done.rows_affected() == 1 {
            add_event(&mut tx, &row.id, ("approved", reason), by, now).await.map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        Ok(ApproveRollout::Approved)
    }
}

/// Notes whether a rollout that begins waits for an approval.
pub(super) async fn want(
    tx: &mut sqlx::Transaction<'static, Any>,
    id: &RolloutId,
    product: &Name,
    channel: &Name,
) -> Result<Approval, sqlx::Error> {
    if !is_wanted(&mut **tx, product, channel).await? {
        return Ok(Approval::None);
    }
    sqlx::query("UPDATE rollouts SET approval = 'wanted' WHERE id = $1")
        .bind(id.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(Approval::Wanted)
}
