//! Reports of nodes. One row a node and one for each rollout that it tried: a node that reports
//! often, or another time, adds none.
//!
//! Table `node_reports`: number and time of the newest report of each node.
//!
//! Table `node_running`: what each node runs, by its newest report, with copies of all that the
//! sums over the fleet need (`fleet.rs`).
//!
//! Table `rollout_attempts`: the newest attempt of each node at each rollout.

use std::collections::HashMap;

use distd_core::NodeId;
use distd_core::api::EventKind;
use distd_core::fleet::receipts::SignedReceipt;
use distd_core::fleet::report::{Attempt, AttemptState, Report, Running, SourceBytes};
use distd_core::fleet::rollout::{Held, RolloutId};
use distd_core::fleet::state::{Seen, held_now};
use distd_core::names::Name;
use distd_core::text::shown;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::receipts::put_receipts;
use super::rollouts::UNDER_WAY;
use super::row::{Columns, claimed, impossible};
use super::webhooks::emit;
use super::{Db, DbError, UnixSeconds, failed};

/// Condition on the state of an attempt: it has not ended ([`AttemptState::has_ended`]).
const NOT_ENDED: &str = "IN ('fetching', 'activating', 'restarting', 'checking')";

/// States of an attempt that a webhook is told of.
const FAILED: [AttemptState; 2] = [AttemptState::Failed, AttemptState::RolledBack];

/// Longest text about a failure in an event, characters.
const EVENT_DETAIL_MAX: usize = 200;

/// Result of recording a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutReport {
    /// It is recorded.
    Recorded,
    /// A report of the node with this or a higher number was recorded before.
    Known,
}

/// A node that follows a channel, as far as a rollout is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The node.
    pub node: NodeId,
    /// Version that it runs; `None` while it has none.
    pub version: Option<Name>,
    /// Why it does not install the release of the rollout.
    pub held: Option<HeldFrom>,
    /// State and number of its newest attempt at the rollout; `None` without one.
    pub attempt: Option<(AttemptState, u32)>,
    /// Whether its labels bring it into the first wave of the rollout.
    pub comes_first: bool,
}

impl Follower {
    /// The report as far as the state of the update to `goal` is concerned.
    pub fn seen(&self, goal: &Name) -> Seen<'_> {
        let held = self.held.as_ref().and_then(|held| held.now(goal));
        Seen { version: self.version.as_ref(), held, attempt: self.attempt }
    }
}

/// Why a node does not install a release, and from which one this keeps it: both as the database
/// has them, in one column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFrom {
    /// The reason.
    #[serde(flatten)]
    pub held: Held,
    /// Version of the release. Only a failure has it: other reasons count for any release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Name>,
}

impl HeldFrom {
    /// The reason `held`, which keeps a node from the release `from`.
    pub fn new(held: Held, from: Option<&Name>) -> Self {
        Self { held, from: from.filter(|_| matches!(held, Held::Failed { .. })).cloned() }
    }

    /// The reason on the way to `goal`, as [`held_now`] says.
    pub fn now(&self, goal: &Name) -> Option<Held> {
        held_now(Some(self.held), self.from.as_ref(), goal)
    }
}

/// Newest report of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// Time at which it came.
    pub received: UnixSeconds,
    /// Releases that run on the node.
    pub running: Vec<RunningRow>,
}

/// Release of a channel that runs on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningRow {
    /// Product.
    pub product: Name,
    /// Channel that the node follows.
    pub channel: Name,
    /// Version; `None` while it has none.
    pub version: Option<Name>,
    /// Why the node does not install the release of the channel's rollout.
    pub held: Option<HeldFrom>,
}

/// Newest attempt of a node at a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// The node.
    pub node: NodeId,
    /// Number of the attempt on the node, from 1.
    pub number: u32,
    /// Its state.
    pub state: AttemptState,
    /// Kind of the failure; empty without one.
    pub failure: String,
    /// Text about the failure.
    pub detail: String,
    /// Seconds from its begin to its end, or so far.
    pub seconds: u64,
    /// Bytes by source.
    pub bytes: SourceBytes,
}

pub(super) fn read_state(row: &AnyRow) -> Result<Option<AttemptState>, sqlx::Error> {
    let Some(text) = row.text_or_none("state")? else { return Ok(None) };
    let found = AttemptState::ALL.into_iter().find(|state| state.as_str() == text);
    found.map(Some).ok_or_else(|| impossible("state"))
}

pub(super) fn read_held(row: &AnyRow) -> Result<Option<HeldFrom>, sqlx::Error> {
    let text = row.text_or_none("held")?;
    let unknown = HeldFrom { held: Held::Unknown, from: None };
    Ok(text.map(|text| serde_json::from_str(&text).unwrap_or(unknown)))
}

pub(super) fn read_attempt(row: &AnyRow) -> Result<AttemptRow, sqlx::Error> {
    Ok(AttemptRow {
        node: row.parsed("node")?,
        number: row.number32("number")?,
        state: read_state(row)?.ok_or_else(|| impossible("state"))?,
        failure: row.text("failure")?,
        detail: row.text("detail")?,
        seconds: row.number("seconds")?,
        bytes: SourceBytes {
            disk: row.number("disk")?,
            neighbours: row.number("neighbours")?,
            relay: row.number("relay")?,
            origin: row.number("origin")?,
        },
    })
}

/// Whether the failure of an attempt is not recorded yet.
async fn is_news(
    tx: &mut Transaction<'static, Any>,
    rollout: &RolloutId,
    node: &NodeId,
    attempt: &Attempt,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT number, state FROM rollout_attempts WHERE rollout = $1 AND node = $2")
        .bind(rollout.to_string())
        .bind(node.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(true) };
    let (number, state) = (row.number32("number")?, read_state(&row)?);
    Ok(number < attempt.number
        || (number == attempt.number && state.is_none_or(|state| !FAILED.contains(&state))))
}

/// Tells the webhooks that an attempt of a node failed: its rollout, the node and its number; kind
/// and text of the failure.
async fn tell_of_failure(
    tx: &mut Transaction<'static, Any>,
    (rollout, node, number): (&RolloutId, &str, u32),
    (kind, detail): (&str, String),
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    let row = sqlx::query("SELECT product, channel, version FROM rollouts WHERE id = $1")
        .bind(rollout.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(()) };
    let data = json!({
        "node": node,
        "rollout": rollout.to_string(),
        "product": row.text("product")?,
        "channel": row.text("channel")?,
        "version": row.text("version")?,
        "attempt": number,
        "failure": kind,
        "detail": detail,
    });
    emit(tx, EventKind::NodeUpdateFailed, &data, now).await
}

impl Db {
    /// Records the report of a node. `running` and `attempts` are those parts of it that the node
    /// may report; attempts are at rollouts that are known.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_report(
        &self,
        node: &NodeId,
        report: &Report,
        running: &[&Running],
        attempts: &[(RolloutId, &Attempt)],
        now: UnixSeconds,
    ) -> Result<PutReport, DbError> {
        self.put_report_with(node, report, running, attempts, Vec::new(), now).await
    }

    /// As [`put_report`](Self::put_report), and adds the node's receipts to the log in the same
    /// transaction. The caller has checked their signatures.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_report_with(
        &self,
        node: &NodeId,
        report: &Report,
        running: &[&Running],
        attempts: &[(RolloutId, &Attempt)],
        receipts: Vec<SignedReceipt>,
        now: UnixSeconds,
    ) -> Result<PutReport, DbError> {
        let what = "record the report";
        let mut tx = self.begin_write().await?;
        let put = sqlx::query(
            "INSERT INTO node_reports (node, sequence, reported, received, boot, follows) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (node) DO UPDATE SET sequence = excluded.sequence, reported = excluded.reported, \
             received = excluded.received, boot = excluded.boot, follows = excluded.follows WHERE node_reports.sequence < excluded.sequence",
        )
        .bind(node.to_string())
        .bind(claimed(report.sequence))
        .bind(claimed(report.at))
        .bind(now)
        .bind(hex::encode(&report.boot))
        .bind(running.len() as i64)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if put.rows_affected() == 0 {
            return Ok(PutReport::Known);
        }
        let mut failures = Vec::new();
        for (rollout, attempt) in attempts {
            if FAILED.contains(&attempt.state)
                && is_news(&mut tx, rollout, node, attempt).await.map_err(failed(what))?
            {
                failures.push((rollout, *attempt));
            }
            let (kind, detail) = attempt
                .failure
                .as_ref()
                .map_or(("", ""), |failure| (failure.kind.as_str(), failure.detail.as_str()));
            sqlx::query(
                "INSERT INTO rollout_attempts (rollout, node, number, state, failure, detail, began, seconds, disk, \
                 neighbours, relay, origin, first_received, received) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
                 ON CONFLICT (rollout, node) DO UPDATE SET number = excluded.number, state = excluded.state, \
                 failure = excluded.failure, detail = excluded.detail, began = excluded.began, \
                 seconds = excluded.seconds, disk = excluded.disk, neighbours = excluded.neighbours, \
                 relay = excluded.relay, origin = excluded.origin, received = excluded.received, first_received = CASE \
                 WHEN rollout_attempts.number = excluded.number THEN rollout_attempts.first_received \
                 ELSE excluded.first_received END WHERE rollout_attempts.number <= excluded.number",
            )
            .bind(rollout.to_string())
            .bind(node.to_string())
            .bind(i64::from(attempt.number))
            .bind(attempt.state.as_str())
            .bind(kind)
            .bind(detail.to_owned())
            .bind(claimed(attempt.began))
            .bind(claimed(attempt.seconds))
            .bind(claimed(attempt.bytes.disk))
            .bind(claimed(attempt.bytes.neighbours))
            .bind(claimed(attempt.bytes.relay))
            .bind(claimed(attempt.bytes.origin))
            .bind(now)
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        }
        sqlx::query("DELETE FROM node_running WHERE node = $1")
            .bind(node.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        for runs in running {
            let held = runs.held.map(|held| HeldFrom::new(held, runs.held_from.as_ref()));
            let held = held.map(|held| serde_json::to_string(&held).expect("words encode"));
            sqlx::query(
                sqlx::AssertSqlSafe(format!(
                    "INSERT INTO node_running (node, product, channel, version, held, received, rollout, attempt, \
                     attempt_state, failure) SELECT $1, $2, $3, $4, $5, $6, a.rollout, a.number, a.state, a.failure \
                     FROM (SELECT 1 AS one) x LEFT JOIN rollout_attempts a ON a.node = $7 AND a.rollout = \
                     (SELECT id FROM rollouts WHERE product = $8 AND channel = $9 AND {UNDER_WAY}) WHERE 1 = 1 \
                     ON CONFLICT (node, product, channel) DO NOTHING"
                )),
            )
            .bind(node.to_string())
            .bind(runs.product.to_string())
            .bind(runs.channel.to_string())
            .bind(runs.version.as_ref().map(ToString::to_string))
            .bind(held)
            .bind(now)
            .bind(node.to_string())
            .bind(runs.product.to_string())
            .bind(runs.channel.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        }
        put_receipts(&mut tx, node, receipts, &report.log, now).await.map_err(failed(what))?;
        for (rollout, attempt) in failures {
            let (kind, detail) = attempt
                .failure
                .as_ref()
                .map_or(("", ""), |failure| (failure.kind.as_str(), failure.detail.as_str()));
            let failure = (kind, shown(detail, EVENT_DETAIL_MAX));
            tell_of_failure(&mut tx, (rollout, &node.to_string(), attempt.number), failure, now)
                .await
                .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        Ok(PutReport::Recorded)
    }

    /// Ends attempts at a rollout whose end was not reported within `timeout` seconds since the
    /// origin first heard of them. Returns their number. A later report of the node replaces that.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn time_out_attempts(
        &self,
        rollout: &RolloutId,
        timeout: u64,
        now: UnixSeconds,
    ) -> Result<u64, DbError> {
        let what = "end attempts that take too long";
        let mut tx = self.begin_write().await?;
        let done = sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE rollout_attempts SET state = 'failed', failure = 'timeout', \
             detail = 'no end was reported in time' \
             WHERE rollout = $1 AND state {NOT_ENDED} AND first_received < $2 RETURNING node, number"
        )))
        .bind(rollout.to_string())
        .bind(now.saturating_sub(claimed(timeout)))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(what))?;
        if !done.is_empty() {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "UPDATE node_running SET attempt_state = 'failed', failure = 'timeout' WHERE rollout = $1 \
                 AND attempt_state {NOT_ENDED} AND node IN \
                 (SELECT node FROM rollout_attempts WHERE rollout = $2 AND state = 'failed' AND failure = 'timeout')"
            )))
            .bind(rollout.to_string())
            .bind(rollout.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        }
        for row in &done {
            let node = row.text("node").map_err(failed(what))?;
            let number = row.number32("number").map_err(failed(what))?;
            let failure = ("timeout", "no end was reported in time".to_owned());
            tell_of_failure(&mut tx, (rollout, &node, number), failure, now).await.map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        Ok(done.len() as u64)
    }

    /// Nodes that follow a channel, are not revoked, and reported at `since` or later or tried
    /// `rollout`, each with its attempt at that rollout.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn followers(
        &self,
        product: &Name,
        channel: &Name,
        rollout: Option<&RolloutId>,
        since: UnixSeconds,
    ) -> Result<Vec<Follower>, DbError> {
        let rows = sqlx::query(
            "SELECT r.node AS node, r.version AS version, r.held AS held, a.state AS state, a.number AS number \
             FROM node_running r \
             JOIN node_reports p ON p.node = r.node JOIN nodes n ON n.id = r.node \
             LEFT JOIN rollout_attempts a ON a.node = r.node AND a.rollout = $1 \
             WHERE r.product = $2 AND r.channel = $3 AND (p.received >= $4 OR a.node IS NOT NULL) \
             AND n.revoked IS NULL",
        )
        .bind(rollout.map(ToString::to_string).unwrap_or_default())
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(since)
        .fetch_all(&self.pool)
        .await;
        let follower = |row: &AnyRow| {
            Ok(Follower {
                node: row.parsed("node")?,
                version: row.text_or_none("version")?.map(|_| row.parsed("version")).transpose()?,
                held: read_held(row)?,
                attempt: match read_state(row)? {
                    Some(state) => Some((state, row.number32("number")?)),
                    None => None,
                },
                comes_first: false,
            })
        };
        rows.and_then(|rows| rows.iter().map(follower).collect())
            .map_err(failed("list the nodes that follow the channel"))
    }

    /// Gives attempts at a rollout that have not ended their whole time again, because the rollout
    /// goes on after it stood still.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn restart_attempts(&self, rollout: &RolloutId, now: UnixSeconds) -> Result<(), DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE rollout_attempts SET first_received = $1 WHERE rollout = $2 AND state {NOT_ENDED}"
        )))
        .bind(now)
        .bind(rollout.to_string())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("restart the rollout's attempts"))
    }

    /// Newest report of every node that has sent one, or of `node` alone, by node id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn reports(&self, node: Option<&str>) -> Result<HashMap<String, ReportRow>, DbError> {
        let what = "list the reports of nodes";
        let all = node.is_none();
        let rows = sqlx::query("SELECT node, received FROM node_reports WHERE $1 = 1 OR node = $2")
            .bind(i64::from(all))
            .bind(node.unwrap_or_default().to_owned())
            .fetch_all(&self.pool)
            .await
            .map_err(failed(what))?;
        let mut reports = HashMap::new();
        for row in &rows {
            let received = row.time("received").map_err(failed(what))?;
            let node = row.text("node").map_err(failed(what))?;
            reports.insert(node, ReportRow { received, running: Vec::new() });
        }
        let rows = sqlx::query(
            "SELECT node, product, channel, version, held FROM node_running WHERE $1 = 1 OR node = $2 \
             ORDER BY product, channel",
        )
        .bind(i64::from(all))
        .bind(node.unwrap_or_default().to_owned())
        .fetch_all(&self.pool)
        .await
        .map_err(failed(what))?;
        let running = |row: &AnyRow| -> Result<RunningRow, sqlx::Error> {
            Ok(RunningRow {
                product: row.parsed("product")?,
                channel: row.parsed("channel")?,
                version: row.text_or_none("version")?.map(|_| row.parsed("version")).transpose()?,
                held: read_held(row)?,
            })
        };
        for row in &rows {
            let node = row.text("node").map_err(failed(what))?;
            if let Some(report) = reports.get_mut(&node) {
                report.running.push(running(row).map_err(failed(what))?);
            }
        }
        Ok(reports)
    }

    /// Newest attempt of each node at a rollout, by node.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn attempts(&self, rollout: &RolloutId) -> Result<Vec<AttemptRow>, DbError> {
        let rows = sqlx::query(
            "SELECT node, number, state, failure, detail, seconds, disk, neighbours, relay, origin \
             FROM rollout_attempts WHERE rollout = $1 ORDER BY node",
        )
        .bind(rollout.to_string())
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(read_attempt).collect())
            .map_err(failed("list the rollout's attempts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_that_has_not_ended_is_timed_out() {
        let open = AttemptState::ALL.into_iter().filter(|state| !state.has_ended());
        let words: Vec<String> = open.map(|state| format!("'{}'", state.as_str())).collect();
        assert_eq!(NOT_ENDED, format!("IN ({})", words.join(", ")));
    }
}
