//! Rollouts and their waves. Each change is a transaction with its entry among the events, and the
//! channel's counter grows with it, because the signed document of the channel changes.
//!
//! Table `rollouts`: release, channel, policy and state; at most one of a channel that has not
//! ended.
//!
//! Table `rollout_waves`: threshold of each wave, and since when it is open.
//!
//! Table `rollout_events`: every change, with its token or the origin.

pub use distd_core::api::RolloutStage;
use distd_core::api::{Approval, Word};
use distd_core::fleet::rollout::{Gate, Policy, RolloutId, Threshold};
use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Executor, Transaction};

use super::audit::{Actor, append};
use super::moves::{self, MoveBy};
use super::row::{Columns, impossible, signed};
use super::{Db, DbError, UnixSeconds, approvals, failed, releases};

/// Condition on the state of a rollout that has not ended.
pub(super) const UNDER_WAY: &str = "state IN ('open', 'paused', 'halted')";

/// One rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutRow {
    /// Its id.
    pub id: RolloutId,
    /// Product.
    pub product: Name,
    /// Channel.
    pub channel: Name,
    /// Version that it leads to.
    pub version: Name,
    /// Version that the channel pointed to when it began.
    pub from: Name,
    /// Its state.
    pub stage: RolloutStage,
    /// Why it is in this state; empty where nothing needs saying.
    pub reason: String,
    /// Its policy.
    pub policy: Policy,
    /// Whether it waits for the approval of a second token.
    pub approval: Approval,
    /// Failures in open waves when it was last resumed after a halt.
    pub forgiven: u64,
    /// Time of its begin.
    pub created: UnixSeconds,
    /// Time of its last change.
    pub updated: UnixSeconds,
}

/// One wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaveRow {
    /// Its threshold.
    pub upto: Threshold,
    /// Time since which it is open.
    pub opened: Option<UnixSeconds>,
}

/// One change of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutEvent {
    /// Time of the change.
    pub at: UnixSeconds,
    /// Kind of the change, a word.
    pub event: String,
    /// Text for an operator.
    pub detail: String,
    /// The token, or the origin.
    pub by: MoveBy,
}

/// A rollout to begin.
#[derive(Clone, Debug)]
pub struct NewRollout<'a> {
    /// Its id.
    pub id: RolloutId,
    /// Product.
    pub product: &'a Name,
    /// Channel.
    pub channel: &'a Name,
    /// Version that it leads to.
    pub version: &'a Name,
    /// Policy.
    pub policy: &'a Policy,
    /// Thresholds of its waves.
    pub waves: &'a [Threshold],
}

/// Result of beginning a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginRollout {
    /// It has begun; no wave is open yet.
    Begun(Box<RolloutRow>),
    /// There is no such channel.
    UnknownChannel,
    /// There is no such release.
    UnknownRelease,
    /// The channel points to this release already.
    Same,
    /// The release is older than one that the channel has pointed to.
    Older,
    /// Another rollout of the channel is under way.
    UnderWay(Box<RolloutRow>),
}

const COLUMNS: &str = "id, product, channel, version, from_version, state, reason, waves, soak, success, halt_on, \
                       attempts, timeout, after_halt, not_before, selector, requires, patch_wait, conditions, approval, \
                       forgiven, created, updated";

fn read(row: &AnyRow) -> Result<RolloutRow, sqlx::Error> {
    Ok(RolloutRow {
        id: row.parsed("id")?,
        product: row.parsed("product")?,
        channel: row.parsed("channel")?,
        version: row.parsed("version")?,
        from: row.parsed("from_version")?,
        stage: row.parsed("state")?,
        reason: row.text("reason")?,
        policy: Policy {
            waves: row.parsed("waves")?,
            gate: Gate {
                soak: row.number("soak")?,
                success: row.parsed("success")?,
                halt_on: row.parsed("halt_on")?,
            },
            attempts: row.number32("attempts")?,
            timeout: row.number("timeout")?,
            after_halt: match Word::from_text(&row.text("after_halt")?) {
                Word::Known(after_halt) => after_halt,
                Word::Other(_) => return Err(impossible("after_halt")),
            },
            not_before: row.number_or_none("not_before")?,
            selector: row.text_or_none("selector")?.map(|_| row.parsed("selector")).transpose()?,
            requires: names(&row.text("requires")?)?,
            patch_wait: row.number("patch_wait")?,
            conditions: serde_json::from_str(&row.text("conditions")?)
                .map_err(|_| impossible("conditions"))?,
        },
        approval: row.parsed("approval")?,
        forgiven: row.number("forgiven")?,
        created: row.time("created")?,
        updated: row.time("updated")?,
    })
}

fn requires_text(requires: &[Name]) -> String {
    requires.iter().map(Name::as_str).collect::<Vec<_>>().join(",")
}

fn names(text: &str) -> Result<Vec<Name>, sqlx::Error> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|_| impossible("requires"))).collect()
}

/// Adds a change to the events and to the audit log.
pub(super) async fn add_event(
    tx: &mut Transaction<'static, Any>,
    id: &RolloutId,
    (event, detail): (&str, &str),
    by: &MoveBy,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO rollout_events (rollout, at, event, detail, token, label) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id.to_string())
    .bind(now)
    .bind(event.to_owned())
    .bind(detail.to_owned())
    .bind(by.token.clone())
    .bind(by.label.clone())
    .execute(&mut **tx)
    .await?;
    let row = sqlx::query("SELECT product, channel, version FROM rollouts WHERE id = $1")
        .bind(id.to_string())
        .fetch_one(&mut **tx)
        .await?;
    let subject = format!("{}:{}", row.text("product")?, row.text("channel")?);
    let details = json!({"rollout": id.to_string(), "version": row.text("version")?, "detail": detail});
    append(tx, &Actor::by(by, now), &format!("rollout.{event}"), &subject, &details).await
}

/// Counts a change of the channel's document.
async fn count_change(
    tx: &mut Transaction<'static, Any>,
    product: &Name,
    channel: &Name,
    now: UnixSeconds,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE channels SET counter = counter + 1, updated = $1 WHERE product = $2 AND channel = $3",
    )
    .bind(now)
    .bind(product.to_string())
    .bind(channel.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The rollout of a channel that has not ended.
async fn under_way<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    channel: &Name,
) -> Result<Option<RolloutRow>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE product = $1 AND channel = $2 AND {UNDER_WAY}");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(product.to_string())
        .bind(channel.to_string())
        .fetch_optional(on)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Product and channel of a rollout, and the versions that it requires.
pub(super) type RequiredVersions = (Name, Name, Vec<Name>);

/// Versions that rollouts under way require.
pub(super) async fn versions_required<'e>(
    on: impl Executor<'e, Database = Any>,
) -> Result<Vec<RequiredVersions>, sqlx::Error> {
    let sql = format!("SELECT product, channel, requires FROM rollouts WHERE {UNDER_WAY} AND requires <> ''");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(on).await?;
    let required =
        |row: &AnyRow| Ok((row.parsed("product")?, row.parsed("channel")?, names(&row.text("requires")?)?));
    rows.iter().map(required).collect()
}

impl Db {
    /// Begins a rollout; a halted one of the same channel is superseded.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_rollout(
        &self,
        new: &NewRollout<'_>,
        by: &MoveBy,
        now: UnixSeconds,
    ) -> Result<BeginRollout, DbError> {
        let what = "record the rollout";
        let NewRollout { id, product, channel, version, policy, waves } = new;
        let mut tx = self.begin_write().await?;
        // The row of the channel is locked first: two rollouts of it take turns.
        if !count_change(&mut tx, product, channel, now).await.map_err(failed(what))? {
            return Ok(BeginRollout::UnknownChannel);
        }
        let row = sqlx::query("SELECT version FROM channels WHERE product = $1 AND channel = $2")
            .bind(product.to_string())
            .bind(channel.to_string())
            .fetch_one(&mut *tx)
            .await;
        let from: Name = row.and_then(|row| row.parsed("version")).map_err(failed(what))?;
        if from == **version {
            return Ok(BeginRollout::Same);
        }
        let sequence = releases::sequence_of(&mut *tx, product, version).await.map_err(failed(what))?;
        let Some(sequence) = sequence else { return Ok(BeginRollout::UnknownRelease) };
        let highest = moves::highest(&mut *tx, product, channel).await.map_err(failed(what))?;
        if highest.is_some_and(|highest| sequence < highest) {
            return Ok(BeginRollout::Older);
        }
        let active = under_way(&mut *tx, product, channel).await.map_err(failed(what))?;
        if let Some(active) = active {
            if active.stage != RolloutStage::Halted {
                return Ok(BeginRollout::UnderWay(Box::new(active)));
            }
            let reason = format!("a rollout of {version} began");
            enter_stage(&mut tx, &active.id, RolloutStage::Superseded, &reason, by, now)
                .await
                .map_err(failed(what))?;
        }
        // An order to go back that reaches the new release would take devices off it.
        sqlx::query(
            "UPDATE channels SET downgrade_from = NULL WHERE product = $1 AND channel = $2 AND downgrade_from >= $3",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(signed(sequence))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        sqlx::query(
            "INSERT INTO rollouts (id, product, channel, version, from_version, state, reason, waves, soak, success, \
             halt_on, attempts, timeout, after_halt, not_before, selector, requires, patch_wait, conditions, forgiven, \
             unsigned, created, updated) VALUES ($1, $2, $3, $4, $5, 'open', '', $6, $7, $8, $9, $10, $11, $12, $13, $14, \
             $15, $16, $17, 0, 1, $18, $19)",
        )
        .bind(id.to_string())
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(version.to_string())
        .bind(from.to_string())
        .bind(policy.waves.to_string())
        .bind(signed(policy.gate.soak))
        .bind(policy.gate.success.to_string())
        .bind(policy.gate.halt_on.to_string())
        .bind(i64::from(policy.attempts))
        .bind(signed(policy.timeout))
        .bind(Word::from(policy.after_halt).to_string())
        .bind(policy.not_before.map(signed))
        .bind(policy.selector.as_ref().map(ToString::to_string))
        .bind(requires_text(&policy.requires))
        .bind(signed(policy.patch_wait))
        .bind(serde_json::to_string(&policy.conditions).expect("conditions are always JSON"))
        .bind(now)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        for (wave, upto) in waves.iter().enumerate() {
            sqlx::query("INSERT INTO rollout_waves (rollout, wave, upto, opened) VALUES ($1, $2, $3, NULL)")
                .bind(id.to_string())
                .bind(wave as i64)
                .bind(upto.to_string())
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        }
        let approval = approvals::want(&mut tx, id, product, channel).await.map_err(failed(what))?;
        let detail = format!("{from} to {version}, waves {}", policy.waves);
        add_event(&mut tx, id, ("started", &detail), by, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(BeginRollout::Begun(Box::new(RolloutRow {
            id: *id,
            product: (*product).clone(),
            channel: (*channel).clone(),
            version: (*version).clone(),
            from,
            stage: RolloutStage::Open,
            reason: String::new(),
            policy: (*policy).clone(),
            approval,
            forgiven: 0,
            created: now,
            updated: now,
        })))
    }

    /// Opens the wave `wave` (from 0) of an open rollout; `note` is added to the event. `false`
    /// when the rollout is not open, or the wave is open already.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn open_wave(
        &self,
        row: &RolloutRow,
        wave: usize,
        note: &str,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let what = "open the wave";
        let mut tx = self.begin_write().await?;
        count_change(&mut tx, &row.product, &row.channel, now).await.map_err(failed(what))?;
        let opened = sqlx::query(
            "UPDATE rollout_waves SET opened = $1 WHERE rollout = $2 AND wave = $3 AND opened IS NULL \
             AND EXISTS (SELECT 1 FROM rollouts WHERE id = $4 AND state = 'open')",
        )
        .bind(now)
        .bind(row.id.to_string())
        .bind(wave as i64)
        .bind(row.id.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if opened.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("UPDATE rollouts SET unsigned = 1 WHERE id = $1")
            .bind(row.id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let detail = format!("wave {} of {}{note}", wave + 1, row.policy.waves.sizes().len());
        add_event(&mut tx, &row.id, ("opened", &detail), &MoveBy::origin(), now)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// Brings a rollout from the state that `row` has into another; `false` when it is in another
    /// state by now.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_rollout_stage(
        &self,
        row: &RolloutRow,
        stage: RolloutStage,
        reason: &str,
        by: &MoveBy,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let what = "change the rollout";
        let mut tx = self.begin_write().await?;
        count_change(&mut tx, &row.product, &row.channel, now).await.map_err(failed(what))?;
        let sql = "SELECT state FROM rollouts WHERE id = $1";
        let now_in = sqlx::query(sql).bind(row.id.to_string()).fetch_one(&mut *tx).await;
        if now_in.and_then(|row| row.text("state")).map_err(failed(what))? != row.stage.as_str() {
            return Ok(false);
        }
        enter_stage(&mut tx, &row.id, stage, reason, by, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// Channels with a change of a rollout that is not signed yet.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollouts_unsigned(&self) -> Result<Vec<(Name, Name)>, DbError> {
        let rows = sqlx::query("SELECT DISTINCT product, channel FROM rollouts WHERE unsigned = 1")
            .fetch_all(&self.pool)
            .await;
        let channel = |row: &AnyRow| Ok((row.parsed("product")?, row.parsed("channel")?));
        rows.and_then(|rows| rows.iter().map(channel).collect()).map_err(failed("list unsigned rollouts"))
    }

    /// Records that the document of a channel is signed as of the change `counter`, with its
    /// rollouts; `None` for a channel that is gone. After a later change nothing is recorded.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollouts_are_signed(
        &self,
        product: &Name,
        channel: &Name,
        counter: Option<u64>,
    ) -> Result<(), DbError> {
        sqlx::query(
            "UPDATE rollouts SET unsigned = 0 WHERE product = $1 AND channel = $2 AND unsigned = 1 AND $3 = \
             COALESCE((SELECT counter FROM channels WHERE product = $4 AND channel = $5), -1)",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(counter.map_or(-1, signed))
        .bind(product.to_string())
        .bind(channel.to_string())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("record the signature of the rollout"))
    }

    /// Records the failures for which a rollout is not to halt again.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forgive_failures(&self, id: &RolloutId, failures: u64) -> Result<(), DbError> {
        sqlx::query("UPDATE rollouts SET forgiven = $1 WHERE id = $2")
            .bind(signed(failures))
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("record the failures of the rollout"))
    }

    /// The rollout of a channel that has not ended.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollout_under_way(
        &self,
        product: &Name,
        channel: &Name,
    ) -> Result<Option<RolloutRow>, DbError> {
        under_way(&self.pool, product, channel).await.map_err(failed("read the rollout"))
    }

    /// Versions that rollouts under way require, each with product and channel.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub(super) async fn versions_required(&self) -> Result<Vec<RequiredVersions>, DbError> {
        versions_required(&self.pool).await.map_err(failed("list the versions that rollouts require"))
    }

    /// One rollout.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollout(&self, id: &RolloutId) -> Result<Option<RolloutRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(&self.pool).await;
        row.and_then(|row| row.as_ref().map(read).transpose()).map_err(failed("read the rollout"))
    }

    /// Every rollout that has not ended.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollouts_under_way(&self) -> Result<Vec<RolloutRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE {UNDER_WAY} ORDER BY created, id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the rollouts"))
    }

    /// The newest rollouts of a channel, at most `limit`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollouts_of(
        &self,
        product: &Name,
        channel: &Name,
        limit: u32,
    ) -> Result<Vec<RolloutRow>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM rollouts WHERE product = $1 AND channel = $2 ORDER BY created DESC, id LIMIT $3"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(product.to_string())
            .bind(channel.to_string())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the channel's rollouts"))
    }

    /// Waves of a rollout, in order.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollout_waves(&self, id: &RolloutId) -> Result<Vec<WaveRow>, DbError> {
        let rows = sqlx::query("SELECT upto, opened FROM rollout_waves WHERE rollout = $1 ORDER BY wave")
            .bind(id.to_string())
            .fetch_all(&self.pool)
            .await;
        let wave =
            |row: &AnyRow| Ok(WaveRow { upto: row.parsed("upto")?, opened: row.time_or_none("opened")? });
        rows.and_then(|rows| rows.iter().map(wave).collect()).map_err(failed("read the rollout's waves"))
    }

    /// Changes of a rollout, the first one first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn rollout_events(&self, id: &RolloutId) -> Result<Vec<RolloutEvent>, DbError> {
        let rows = sqlx::query(
            "SELECT at, event, detail, token, label FROM rollout_events WHERE rollout = $1 ORDER BY id",
        )
        .bind(id.to_string())
        .fetch_all(&self.pool)
        .await;
        let event = |row: &AnyRow| {
            Ok(RolloutEvent {
                at: row.time("at")?,
                event: row.text("event")?,
                detail: row.text("detail")?,
                by: MoveBy { token: row.text("token")?, label: row.text("label")? },
            })
        };
        rows.and_then(|rows| rows.iter().map(event).collect()).map_err(failed("read the rollout's history"))
    }
}

/// Writes another state of a rollout and its event.
async fn enter_stage(
    tx: &mut Transaction<'static, Any>,
    id: &RolloutId,
    stage: RolloutStage,
    reason: &str,
    by: &MoveBy,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE rollouts SET state = $1, reason = $2, updated = $3, unsigned = 1 WHERE id = $4")
        .bind(stage.as_str())
        .bind(reason.to_owned())
        .bind(now)
        .bind(id.to_string())
        .execute(&mut **tx)
        .await?;
    let event = if stage == RolloutStage::Open { "resumed" } else { stage.as_str() };
    add_event(tx, id, (event, reason), by, now).await
}
