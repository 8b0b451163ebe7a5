//! Turns of devices in rollouts that let only some begin at once (docs/rollouts.md, "Turns").
//!
//! Table `rollout_turns`: the devices that were told that they may begin. Whether a turn is over
//! follows from the device's reports, and is noted when another device asks.

use distd_core::NodeId;
use distd_core::fleet::report::{AttemptState, FailureKind};
use distd_core::fleet::rollout::{Conditions, Ended, TurnAnswer, TurnCounts, TurnSeen, is_over, may_begin};
use sqlx::any::AnyRow;
use sqlx::{Any, AnyConnection, Executor, Transaction};

use super::reports::read_state;
use super::row::{Columns, signed};
use super::{Db, DbError, RolloutRow, UnixSeconds, failed};

/// A device that asks for a turn.
#[derive(Clone, Copy, Debug)]
pub struct TurnAsker<'a> {
    /// The device.
    pub node: &'a NodeId,
    /// Its group: the value of the label that the rollout names, empty without it.
    pub group: &'a str,
    /// Number of the attempt that it wants to begin, from 1.
    pub number: u32,
}

/// A turn that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnRow {
    /// The device.
    pub node: NodeId,
    /// Its group.
    pub group: String,
    /// Time at which the turn was given.
    pub granted: UnixSeconds,
}

const UNDER_WAY: &str = "SELECT t.node AS node, t.of_group AS of_group, t.number AS number, t.granted AS granted, \
     a.number AS attempt, a.state AS state, a.failure AS failure, r.received AS heard, n.revoked AS revoked \
     FROM rollout_turns t JOIN nodes n ON n.id = t.node \
     LEFT JOIN rollout_attempts a ON a.rollout = t.rollout AND a.node = t.node \
     LEFT JOIN node_reports r ON r.node = t.node \
     WHERE t.rollout = $1 AND t.is_over = 0 AND t.node <> $2 AND ($3 = 1 OR t.of_group = $4) ORDER BY t.granted";

fn seen(row: &AnyRow) -> Result<TurnSeen, sqlx::Error> {
    let attempt = match read_state(row)? {
        None => None,
        Some(state) => {
            let ended = match state {
                _ if !state.has_ended() => Ended::No,
                AttemptState::Failed if row.text("failure")? == FailureKind::Timeout.to_string() => {
                    Ended::TimedOut
                }
                _ => Ended::Yes,
            };
            Some((row.number32("attempt")?, ended))
        }
    };
    Ok(TurnSeen {
        granted: row.number("granted")?,
        number: row.number32("number")?,
        attempt,
        heard: row.number_or_none("heard")?,
        is_revoked: row.time_or_none("revoked")?.is_some(),
    })
}

/// Number of turns of others than the asker that are not over: all, or those of its group alone,
/// and those of its group.
async fn under_way<'e>(
    on: impl Executor<'e, Database = Any>,
    row: &RolloutRow,
    asker: &TurnAsker<'_>,
    of_all: bool,
    now: u64,
) -> Result<(u64, u64), sqlx::Error> {
    let rows = sqlx::query(UNDER_WAY)
        .bind(row.id.to_string())
        .bind(asker.node.to_string())
        .bind(i64::from(of_all))
        .bind(asker.group.to_owned())
        .fetch_all(on)
        .await?;
    let (mut all, mut of_group) = (0, 0);
    for found in &rows {
        if !is_over(&seen(found)?, row.policy.timeout, is_strict(row), now) {
            all += 1;
            of_group += u64::from(found.text("of_group")? == asker.group);
        }
    }
    Ok((all, of_group))
}

/// Whether a device that falls silent stays under way.
fn is_strict(row: &RolloutRow) -> bool {
    row.policy.conditions.budget.is_some()
}

/// Notes which turns of a rollout are over, so that later looks read fewer.
async fn note_over(
    tx: &mut Transaction<'static, Any>,
    row: &RolloutRow,
    now: u64,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query(UNDER_WAY)
        .bind(row.id.to_string())
        .bind(String::new())
        .bind(1i64)
        .bind(String::new())
        .fetch_all(&mut **tx)
        .await?;
    for found in &rows {
        if is_over(&seen(found)?, row.policy.timeout, is_strict(row), now) {
            sqlx::query("UPDATE rollout_turns SET is_over = 1 WHERE rollout = $1 AND node = $2")
                .bind(row.id.to_string())
                .bind(found.text("node")?)
                .execute(&mut **tx)
                .await?;
        }
    }
    Ok(())
}

/// Decides by the conditions of a rollout about a device that asks for a turn.
async fn decide(
    db: &mut AnyConnection,
    row: &RolloutRow,
    asker: &TurnAsker<'_>,
    now: u64,
) -> Result<TurnAnswer, sqlx::Error> {
    let conditions: &Conditions = &row.policy.conditions;
    let id = row.id.to_string();
    let has = sqlx::query(
        "SELECT 1 FROM rollout_turns WHERE rollout = $1 AND node = $2 AND is_over = 0 AND number = $3",
    )
    .bind(id.clone())
    .bind(asker.node.to_string())
    .bind(i64::from(asker.number))
    .fetch_optional(&mut *db)
    .await?;
    if has.is_some() {
        return Ok(TurnAnswer::Begin);
    }
    let mut counts = TurnCounts::default();
    if let Some(rate) = conditions.rate {
        let recent =
            sqlx::query("SELECT COUNT(*) AS given FROM rollout_turns WHERE rollout = $1 AND granted > $2")
                .bind(id)
                .bind(signed(now).saturating_sub(signed(rate.period)))
                .fetch_one(&mut *db)
                .await?;
        counts.recent = recent.number("given")?;
    }
    if conditions.at_once.is_some() || conditions.budget.is_some() {
        let of_all = conditions.at_once.is_some();
        (counts.under_way, counts.of_group) = under_way(&mut *db, row, asker, of_all, now).await?;
    }
    Ok(may_begin(conditions, &counts, !asker.group.is_empty()))
}

impl Db {
    /// Gives a device its turn in a rollout at `now` (unix seconds), if the conditions of the
    /// rollout allow it. A device that has a turn keeps it.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn take_turn(
        &self,
        row: &RolloutRow,
        asker: &TurnAsker<'_>,
        now: u64,
    ) -> Result<TurnAnswer, DbError> {
        let what = "give the device a turn";
        // Most devices that ask wait, and these change nothing.
        let mut connection = self.pool.acquire().await.map_err(failed(what))?;
        let answer = decide(&mut connection, row, asker, now).await.map_err(failed(what))?;
        drop(connection);
        if answer != TurnAnswer::Begin {
            return Ok(answer);
        }
        let mut tx = self.begin_write().await?;
        let answer = take_turn(&mut tx, row, asker, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(answer)
    }

    /// The turns in a rollout that are not over at `now` (unix seconds), the first given first; at
    /// most `limit`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn turns(&self, row: &RolloutRow, limit: usize, now: u64) -> Result<Vec<TurnRow>, DbError> {
        let what = "list the rollout's turns";
        let rows = sqlx::query(UNDER_WAY)
            .bind(row.id.to_string())
            .bind(String::new())
            .bind(1i64)
            .bind(String::new())
            .fetch_all(&self.pool)
            .await
            .map_err(failed(what))?;
        let mut turns = Vec::new();
        for found in &rows {
            let read = || -> Result<Option<TurnRow>, sqlx::Error> {
                if is_over(&seen(found)?, row.policy.timeout, is_strict(row), now) {
                    return Ok(None);
                }
                Ok(Some(TurnRow {
                    node: found.parsed("node")?,
                    group: found.text("of_group")?,
                    granted: found.time("granted")?,
                }))
            };
            turns.extend(read().map_err(failed(what))?);
            if turns.len() == limit {
                break;
            }
        }
        Ok(turns)
    }
}

async fn take_turn(
    tx: &mut Transaction<'static, Any>,
    row: &RolloutRow,
    asker: &TurnAsker<'_>,
    now: u64,
) -> Result<TurnAnswer, sqlx::Error> {
    let (id, node) = (row.id.to_string(), asker.node.to_string());
    // Devices of one rollout take turns here, so that two do not get the last place.
    sqlx::query("UPDATE rollouts SET updated = updated WHERE id = $1")
        .bind(id.clone())
        .execute(&mut **tx)
        .await?;
    let answer = decide(tx, row, asker, now).await?;
    if answer == TurnAnswer::Begin {
        note_over(tx, row, now).await?;
        sqlx::query(
            "INSERT INTO rollout_turns (rollout, node, of_group, number, granted, is_over) \
             VALUES ($1, $2, $3, $4, $5, 0) ON CONFLICT (rollout, node) DO UPDATE SET \
             of_group = excluded.of_group, number = excluded.number, \
             granted = CASE WHEN rollout_turns.number = excluded.number AND rollout_turns.is_over = 0 \
             THEN rollout_turns.granted ELSE excluded.granted END, is_over = 0",
        )
        .bind(id)
        .bind(node)
        .bind(asker.group.to_owned())
        .bind(i64::from(asker.number))
        .bind(signed(now))
        .execute(&mut **tx)
        .await?;
    }
    Ok(answer)
}
