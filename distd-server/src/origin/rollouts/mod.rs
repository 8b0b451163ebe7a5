//! Rollouts: how they begin, what is signed about them, and their next steps (docs/rollouts.md).

mod devices;

use std::collections::BTreeSet;
use std::time::Duration;

use distd_core::error::Chain;
use distd_core::fleet::rollout::{
    AfterHalt, Policy, PolicyError, ROLLOUT_FORM, RolloutDoc, RolloutId, RolloutState, Step, Threshold,
    WaveCounts, next_step, point,
};
use distd_core::names::Name;
use distd_core::text::shown;
use distd_peer::clock::unix_now;
use distd_peer::random;
use distd_peer::trust::tuf::ChannelDoc;

use self::devices::{Chosen, commonest, count};
use super::{Origin, OwnerError, SetChannelError, signed};
use crate::db::{
    BeginRollout, ChannelMove, ChannelRow, DbError, Follower, MoveBy, NewRollout, PatchSetState, RolloutRow,
    SetChannelOutcome, Stage, WaveRow,
};
use crate::tuf::PublishError;

/// Longest time between two looks at a rollout that is under way: time-outs are noticed then, and
/// reports that came to another replica.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Longest reason of a failed patch set in an event, characters.
const PATCH_ERROR_MAX: usize = 100;

/// Pause between two looks at rollouts.
const GATHER: Duration = Duration::from_millis(300);

/// Error of beginning or changing a rollout.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// There is no such channel.
    #[error("{product} has no channel {channel}")]
    UnknownChannel {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
    },
    /// There is no such release.
    #[error("{product} has no release {version}")]
    UnknownRelease {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// The channel points to the release already.
    #[error("{product}:{channel} points to {version} already")]
    Same {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
        /// The version.
        version: Name,
    },
    /// The release is older than one that the channel has pointed to.
    #[error("{product}@{version} is older than what {product}:{channel} has pointed to")]
    Older {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
        /// The version.
        version: Name,
    },
    /// Another rollout of the channel is under way.
    #[error("a rollout of {product}@{version} to {product}:{channel} is under way")]
    UnderWay {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
        /// The version that it leads to.
        version: Name,
    },
    /// No rollout of the channel is under way.
    #[error("no rollout of {product}:{channel} is under way")]
    NoneUnderWay {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
    },
    /// No device reports that it follows the channel, so nothing would gate the waves.
    #[error("no device reports that it follows {product}:{channel}")]
    NoDevices {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
    },
    /// The rollout is in a state that the order does not fit.
    #[error("the rollout is {}, so it cannot be {order}", stage.as_str())]
    Stage {
        /// State of the rollout.
        stage: Stage,
        /// The order, as a participle.
        order: &'static str,
    },
    /// The policy is out of bounds.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Another process signs for this store now.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The rollout is changed in the database but not signed yet: the origin signs it at one of its
    /// next looks.
    #[error("could not publish the rollout")]
    Publish(#[from] PublishError),
}

/// An operator's order about a rollout that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutOrder {
    /// No device begins until the rollout is resumed.
    Pause,
    /// Goes on after a pause or a halt.
    Resume,
    /// No device begins.
    Halt,
    /// Ends the rollout: devices that have the release go back to the release of the channel.
    RollBack,
}

/// A rollout with the counts of its waves.
#[derive(Clone, Debug)]
pub struct RolloutStatus {
    /// The rollout.
    pub row: RolloutRow,
    /// Its waves, in order.
    pub waves: Vec<WaveStatus>,
}

impl RolloutStatus {
    /// Devices in open waves that have failed.
    fn failed(&self) -> u64 {
        self.waves.iter().filter(|wave| wave.row.opened.is_some()).map(|wave| wave.counts.failed).sum()
    }
}

impl RolloutRow {
    /// Time until which the first wave waits for patches, unix seconds.
    fn patches_until(&self) -> u64 {
        u64::try_from(self.created).unwrap_or(0).saturating_add(self.policy.patch_wait)
    }
}

/// Patch sets to the release of a rollout, as text for an operator.
enum Patches {
    /// Some are not made yet.
    Waiting(Vec<String>),
    /// Each is made, has failed, or saves nothing.
    Ended(Vec<String>),
}

impl Patches {
    fn note(self) -> String {
        let (Self::Waiting(sets) | Self::Ended(sets)) = self;
        if sets.is_empty() { String::new() } else { format!("; patches {}", sets.join(", ")) }
    }
}

/// A wave with its devices.
#[derive(Clone, Copy, Debug)]
pub struct WaveStatus {
    /// The wave.
    pub row: WaveRow,
    /// Its devices.
    pub counts: WaveCounts,
}

impl Origin {
    /// Begins a rollout of a release to a channel, in the name of `by`.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn start_rollout(
        &self,
        (product, channel, version): (&Name, &Name, &Name),
        policy: &Policy,
        by: &MoveBy,
    ) -> Result<RolloutStatus, RolloutError> {
        policy.check()?;
        self.owner.check().await?;
        let named = || (product.clone(), channel.clone(), version.clone());
        let turn = self.publishing.lock().await;
        let now = unix_now();
        let unknown = || RolloutError::UnknownRelease { product: product.clone(), version: version.clone() };
        self.db.release(product, version).await?.filter(|r| r.published.is_some()).ok_or_else(unknown)?;
        if self.db.channel(product, channel).await?.is_none() {
            let (product, channel, _) = named();
            return Err(RolloutError::UnknownChannel { product, channel });
        }
        for required in &policy.requires {
            let release = self.db.release(product, required).await?;
            if release.is_none_or(|release| release.published.is_none()) {
                return Err(RolloutError::UnknownRelease {
                    product: product.clone(),
                    version: required.clone(),
                });
            }
        }
        let chosen = Chosen { product, channel, version, selector: policy.selector.as_ref() };
        let followers = self.followers(chosen, None, now).await?;
        if followers.is_empty() {
            let (product, channel, _) = named();
            return Err(RolloutError::NoDevices { product, channel });
        }
        let id = RolloutId(random::bytes());
        let points = followers.iter().map(|follower| point(&id, &follower.node)).collect();
        let waves: Vec<Threshold> = policy.waves.thresholds(points).into_iter().map(Threshold).collect();
        let new = NewRollout { id, product, channel, version, policy, waves: &waves };
        let (product, channel, version) = named();
        let row = match self.db.begin_rollout(&new, by, signed(now)).await? {
            BeginRollout::Begun(row) => *row,
            BeginRollout::UnknownChannel => return Err(RolloutError::UnknownChannel { product, channel }),
            BeginRollout::UnknownRelease => return Err(RolloutError::UnknownRelease { product, version }),
            BeginRollout::Same => return Err(RolloutError::Same { product, channel, version }),
            BeginRollout::Older => return Err(RolloutError::Older { product, channel, version }),
            BeginRollout::UnderWay(other) => {
                return Err(RolloutError::UnderWay { product, channel, version: other.version });
            }
        };
        self.queue_for_rollout(&row, &followers).await?;
        self.publish_channel(&product, &channel).await?;
        drop(turn);
        self.rollouts_due.notify_one();
        self.rollout_status(&row).await.map_err(Into::into)
    }

    /// Queues the patch sets from the releases that most devices of a rollout run.
    async fn queue_for_rollout(&self, row: &RolloutRow, followers: &[Follower]) -> Result<(), DbError> {
        if !self.patches.options().enabled {
            return Ok(());
        }
        let Some(release) = self.db.release(&row.product, &row.version).await? else { return Ok(()) };
        for version in commonest(followers, &row.version) {
            if let Some(old) = self.db.release(&row.product, version).await?
                && old.manifest != release.manifest
            {
                self.queue(Some(&old), &release, "rollout").await?;
            }
        }
        Ok(())
    }

    /// State of the patch sets from the releases that most devices of a rollout run.
    async fn patches_for(&self, row: &RolloutRow) -> Result<Patches, DbError> {
        if !self.patches.options().enabled {
            return Ok(Patches::Ended(Vec::new()));
        }
        let Some(release) = self.db.release(&row.product, &row.version).await? else {
            return Ok(Patches::Ended(Vec::new()));
        };
        let chosen = Chosen {
            product: &row.product,
            channel: &row.channel,
            version: &row.version,
            selector: row.policy.selector.as_ref(),
        };
        let followers = self.followers(chosen, Some(&row.id), unix_now()).await?;
        let sets = self.db.patch_sets(&row.product).await?;
        let (mut waiting, mut ended) = (Vec::new(), Vec::new());
        for version in commonest(&followers, &row.version) {
            let Some(old) = self.db.release(&row.product, version).await? else { continue };
            let set = sets.iter().find(|set| set.key.from == old.manifest && set.key.to == release.manifest);
            match set {
                Some(set) if matches!(set.state, PatchSetState::Queued | PatchSetState::Building) => {
                    waiting.push(version.clone());
                    ended.push(format!("none from {version} in time"));
                }
                Some(set) if set.state == PatchSetState::Failed => {
                    let why = set.error.as_deref().unwrap_or("unknown reason");
                    ended.push(format!("none from {version} ({})", shown(why, PATCH_ERROR_MAX)));
                }
                Some(set) if set.set.is_none() => ended.push(format!("none from {version} (nothing saved)")),
                Some(_) => ended.push(format!("from {version}")),
                // The same bytes, or a release that came later.
                None => {}
            }
        }
        Ok(if waiting.is_empty() { Patches::Ended(ended) } else { Patches::Waiting(ended) })
    }

    /// What an open rollout without an open wave waits for, as a word; `None` when it waits for
    /// nothing but the next look.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rollout_waits_for(&self, status: &RolloutStatus) -> Result<Option<&'static str>, DbError> {
        let row = &status.row;
        if row.stage != Stage::Open || status.waves.iter().any(|wave| wave.row.opened.is_some()) {
            return Ok(None);
        }
        if row.policy.not_before.is_some_and(|time| unix_now() < time) {
            return Ok(Some("time"));
        }
        Ok(matches!(self.patches_for(row).await?, Patches::Waiting(_)).then_some("patches"))
    }

    /// Carries an operator's order about the rollout of a channel out, in the name of `by`.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn order_rollout(
        &self,
        product: &Name,
        channel: &Name,
        order: RolloutOrder,
        reason: &str,
        by: &MoveBy,
    ) -> Result<RolloutStatus, RolloutError> {
        self.owner.check().await?;
        let turn = self.publishing.lock().await;
        let none = || RolloutError::NoneUnderWay { product: product.clone(), channel: channel.clone() };
        let row = self.db.rollout_under_way(product, channel).await?.ok_or_else(none)?;
        let (from, to, participle): (&[Stage], Stage, &'static str) = match order {
            RolloutOrder::Pause => (&[Stage::Open], Stage::Paused, "paused"),
            RolloutOrder::Resume => (&[Stage::Paused, Stage::Halted], Stage::Open, "resumed"),
            RolloutOrder::Halt => (&[Stage::Open, Stage::Paused], Stage::Halted, "halted"),
            RolloutOrder::RollBack => {
                (&[Stage::Open, Stage::Paused, Stage::Halted], Stage::RolledBack, "rolled back")
            }
        };
        if row.stage == to {
            // The order again: what it says may not be signed yet.
            self.publish_channel(product, channel).await?;
            return Ok(self.rollout_status(&row).await?);
        }
        if !from.contains(&row.stage) {
            return Err(RolloutError::Stage { stage: row.stage, order: participle });
        }
        if to == Stage::Open {
            // Devices stood still meanwhile.
            self.db.restart_attempts(&row.id, signed(unix_now())).await?;
        }
        if row.stage == Stage::Halted && to == Stage::Open {
            // The operator knows of these failures.
            let failed = self.rollout_status(&row).await?.failed();
            self.db.forgive_failures(&row.id, failed).await?;
        }
        self.enter_stage(&row, to, reason, by).await?;
        drop(turn);
        self.rollouts_due.notify_one();
        let row = self.db.rollout(&row.id).await?.unwrap_or(row);
        Ok(self.rollout_status(&row).await?)
    }

    /// Brings a rollout into another state and signs what devices are to know of it. The caller
    /// holds the turn of publications.
    async fn enter_stage(
        &self,
        row: &RolloutRow,
        stage: Stage,
        reason: &str,
        by: &MoveBy,
    ) -> Result<(), RolloutError> {
        let now = signed(unix_now());
        let RolloutRow { product, channel, version, .. } = row;
        // The channel moves first. Cut off in between, the rollout is as it was: the origin takes
        // its step again, and an operator gives the order again.
        let moves = match stage {
            Stage::RolledBack => self.db.channel(product, channel).await?.map(|row| (row.version, true)),
            Stage::Complete => Some((version.clone(), false)),
            _ => None,
        };
        let (mut stage, mut reason) = (stage, reason);
        if let Some((version, downgrade)) = &moves {
            let wanted = ChannelMove { product, channel, version, downgrade: *downgrade };
            match self.db.set_channel(wanted, by, now).await? {
                SetChannelOutcome::Set { .. } | SetChannelOutcome::Unchanged(_) => {}
                SetChannelOutcome::Older { .. } | SetChannelOutcome::UnknownRelease => {
                    (stage, reason) = (Stage::Halted, "the channel could not be moved to the release");
                }
            }
        }
        self.db.set_rollout_stage(row, stage, reason, by, now).await?;
        self.publish_channel(product, channel).await?;
        tracing::info!(
            %product, %channel, %version, rollout = %row.id, stage = stage.as_str(), reason, by = by.label,
            "rollout changed"
        );
        Ok(())
    }

    /// Ends the rollout of a channel, whatever its state, because it has lost its place. Devices
    /// that have the release keep it.
    ///
    /// # Errors
    /// [`DbError`].
    pub(super) async fn end_rollout(
        &self,
        product: &Name,
        channel: &Name,
        reason: &str,
        by: &MoveBy,
    ) -> Result<(), DbError> {
        if let Some(row) = self.db.rollout_under_way(product, channel).await? {
            self.db.set_rollout_stage(&row, Stage::Superseded, reason, by, signed(unix_now())).await?;
        }
        Ok(())
    }

    /// Refuses that a channel is set by hand while a rollout of it is open or paused. The caller
    /// holds the turn of publications.
    pub(super) async fn check_no_rollout(
        &self,
        product: &Name,
        channel: &Name,
    ) -> Result<(), SetChannelError> {
        match self.db.rollout_under_way(product, channel).await? {
            Some(row) if row.stage != Stage::Halted => {
                let (product, channel) = (product.clone(), channel.clone());
                Err(SetChannelError::RolloutUnderWay { product, channel, version: row.version })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Ends or halts the rollout that the database has of a channel, where the signed document says
    /// less: the database was restored, and devices must not begin what was stopped since.
    pub(super) async fn take_over_rollout(&self, doc: &ChannelDoc) -> Result<(), DbError> {
        let (product, channel) = (&doc.product, &doc.channel);
        let Some(row) = self.db.rollout_under_way(product, channel).await? else { return Ok(()) };
        let stage = match doc.rollout.as_ref().filter(|signed_as| signed_as.id == row.id) {
            None => Stage::Superseded,
            Some(signed_as) if row.stage == Stage::Open && signed_as.state != RolloutState::Open => {
                Stage::Halted
            }
            Some(_) => return Ok(()),
        };
        let reason = "the database was restored to an earlier state";
        tracing::warn!(%product, %channel, rollout = %row.id, stage = stage.as_str(), reason, "rollout changed");
        self.db.set_rollout_stage(&row, stage, reason, &MoveBy::origin(), signed(unix_now())).await?;
        Ok(())
    }

    /// Counts the devices of each wave of a rollout.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rollout_status(&self, row: &RolloutRow) -> Result<RolloutStatus, DbError> {
        let waves = self.db.rollout_waves(&row.id).await?;
        let RolloutRow { product, channel, version, policy, .. } = row;
        let chosen = Chosen { product, channel, version, selector: policy.selector.as_ref() };
        let followers = self.followers(chosen, Some(&row.id), unix_now()).await?;
        Ok(RolloutStatus { waves: count(row, &waves, &followers), row: row.clone() })
    }

    /// What is signed about the rollout of a channel; `None` when none is under way.
    pub(super) async fn rollout_doc(&self, channel: &ChannelRow) -> Result<Option<RolloutDoc>, DbError> {
        let Some(row) = self.db.rollout_under_way(&channel.product, &channel.channel).await? else {
            return Ok(None);
        };
        let Some(state) = row.stage.as_seen() else { return Ok(None) };
        let Some(release) = self.db.release(&row.product, &row.version).await? else { return Ok(None) };
        let waves = self.db.rollout_waves(&row.id).await?;
        Ok(Some(RolloutDoc {
            form: ROLLOUT_FORM,
            id: row.id,
            version: row.version,
            manifest: release.manifest,
            state,
            open: waves.iter().take_while(|wave| wave.opened.is_some()).count(),
            waves: waves.iter().map(|wave| wave.upto).collect(),
            attempts: row.policy.attempts,
            timeout: row.policy.timeout,
            selector: row.policy.selector.as_ref().map(ToString::to_string),
            requires: row.policy.requires,
        }))
    }

    /// Takes the steps of rollouts that are due, and waits for the next, for as long as the origin
    /// runs.
    pub async fn drive_rollouts(&self) {
        let mut failing = BTreeSet::new();
        loop {
            let rows = self.db.rollouts_under_way().await.unwrap_or_else(|error| {
                tracing::error!(error = %Chain(&error), "rollouts could not be read");
                Vec::new()
            });
            if let Err(error) = self.sign_rollouts().await {
                tracing::error!(error = %Chain(&error), "a change of a rollout is not signed yet; trying again");
            }
            for row in rows.iter().filter(|row| row.stage == Stage::Open) {
                match self.step_rollout(row).await {
                    Ok(()) => drop(failing.remove(&row.id)),
                    // Once a rollout, not at each look.
                    Err(error) if failing.insert(row.id) => {
                        tracing::error!(rollout = %row.id, error = %Chain(&error), "the rollout's next step failed; trying again");
                    }
                    Err(_) => {}
                }
            }
            // Time to gather reports that come together.
            tokio::time::sleep(GATHER).await;
            let _ = tokio::time::timeout(LOOK_EVERY, self.rollouts_due.notified()).await;
        }
    }

    /// Signs changes of rollouts whose signature failed, so that devices learn of them.
    async fn sign_rollouts(&self) -> Result<(), RolloutError> {
        let mut failed = Ok(());
        for (product, channel) in self.db.rollouts_unsigned().await? {
            let _turn = self.publishing.lock().await;
            self.owner.check().await?;
            // Another channel must not wait for this one.
            if let Err(error) = self.publish_channel(&product, &channel).await {
                failed = Err(error.into());
            }
        }
        failed
    }

    /// Takes the next steps of an open rollout, until it waits for reports or for a time.
    async fn step_rollout(&self, row: &RolloutRow) -> Result<(), RolloutError> {
        let _turn = self.publishing.lock().await;
        self.owner.check().await?;
        let now = unix_now();
        // An operator may have been faster.
        let Some(row) = self.db.rollout(&row.id).await?.filter(|row| row.stage == Stage::Open) else {
            return Ok(());
        };
        if row.policy.not_before.is_some_and(|time| now < time) {
            return Ok(());
        }
        // The end was cut off after the channel had moved.
        let channel = self.db.channel(&row.product, &row.channel).await?;
        if channel.is_some_and(|channel| channel.version == row.version) {
            return self.enter_stage(&row, Stage::Complete, "every wave succeeded", &MoveBy::origin()).await;
        }
        self.db.time_out_attempts(&row.id, row.policy.timeout, signed(now)).await?;
        let status = self.rollout_status(&row).await?;
        let forgiven = row.forgiven.min(status.failed());
        if forgiven < row.forgiven {
            // Devices that had failed have succeeded since: other failures count in full.
            self.db.forgive_failures(&row.id, forgiven).await?;
        }
        let waves = status.waves;
        let counts: Vec<WaveCounts> = waves.iter().map(|wave| wave.counts).collect();
        let opened = waves.iter().map_while(|wave| wave.row.opened);
        let opened: Vec<u64> = opened.map(|at| u64::try_from(at).unwrap_or(0)).collect();
        match next_step(&row.policy.gate, forgiven, &opened, &counts, now) {
            Step::Wait(_) => Ok(()),
            Step::Open(wave) => {
                let note = match wave {
                    0 => match self.patches_for(&row).await? {
                        Patches::Waiting(_) if now < row.patches_until() => return Ok(()),
                        patches => patches.note(),
                    },
                    _ => String::new(),
                };
                if wave == 0 {
                    // A set that is made may not be listed yet.
                    let listed = self.patches_change(&row.product).await?;
                    self.repository.apply(vec![listed], now).await?;
                }
                if self.db.open_wave(&row, wave, &note, signed(now)).await? {
                    let (product, channel) = (&row.product, &row.channel);
                    tracing::info!(%product, %channel, rollout = %row.id, wave = wave + 1, "wave opened");
                    self.publish_channel(product, channel).await?;
                }
                Ok(())
            }
            Step::Halt { failed, members } => {
                let reason = format!("{failed} of {members} devices in open waves failed");
                let stage = match row.policy.after_halt {
                    AfterHalt::Stay => Stage::Halted,
                    AfterHalt::Back => Stage::RolledBack,
                };
                self.enter_stage(&row, stage, &reason, &MoveBy::origin()).await
            }
            Step::Complete => {
                let reason = "every wave succeeded";
                self.enter_stage(&row, Stage::Complete, reason, &MoveBy::origin()).await
            }
        }
    }
}
