//! Rollouts: how they begin, what is signed about them, and their next steps (docs/rollouts.md).

mod devices;
mod turns;

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use distd_core::NodeId;
use distd_core::api::{Approval, RolloutVerb};
use distd_core::error::Chain;
use distd_core::fleet::rollout::{
    AfterHalt, Policy, PolicyError, RolloutDoc, RolloutId, RolloutState, Step, Threshold, WaveCounts,
    next_step, point_of, wave_of,
};
use distd_core::names::Name;
use distd_core::text::shown;
use distd_peer::clock::unix_now;
use distd_peer::random;
use distd_peer::trust::tuf::ChannelDoc;

use self::devices::{Chosen, commonest, count};
use super::patches::ListPatchesError;
use super::{Origin, OwnerError, SetChannelError, signed};
use crate::db::{
    ApproveRollout, BeginRollout, ChannelMove, ChannelRow, DbError, Follower, MoveBy, NewRollout,
    PatchSetState, RolloutRow, RolloutStage, SetChannelOutcome, WaveRow,
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
    /// The order is not about the rollout that is under way.
    #[error("the rollout that is under way is {id}, and the order does not name it")]
    OtherRollout {
        /// The rollout that is under way.
        id: RolloutId,
    },
    /// The rollout waits for no approval.
    #[error("the rollout waits for no approval")]
    NoApproval,
    /// The token that began the rollout cannot approve it.
    #[error("this token began the rollout, and another one approves it")]
    SameToken,
    /// The rollout is in a state that the order does not fit.
    #[error("the rollout is {}, so it cannot be {order}", stage.as_str())]
    Stage {
        /// State of the rollout.
        stage: RolloutStage,
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

impl From<ListPatchesError> for RolloutError {
    fn from(error: ListPatchesError) -> Self {
        match error {
            ListPatchesError::Db(error) => Self::Db(error),
            ListPatchesError::Publish(error) => Self::Publish(error),
        }
    }
}

/// A rollout with the counts of its waves.
#[derive(Clone, Debug)]
pub struct RolloutStatus {
    /// The rollout.
    pub row: RolloutRow,
    /// Its waves, in order.
    pub waves: Vec<WaveStatus>,
    /// Devices that come first.
    first: HashSet<NodeId>,
}

impl RolloutStatus {
    /// Wave of a device, from 0.
    pub fn wave_of(&self, node: &NodeId) -> Option<usize> {
        let thresholds: Vec<u64> = self.waves.iter().map(|wave| wave.row.upto.0).collect();
        wave_of(&thresholds, point_of(&self.row.id, node, self.first.contains(node)))
    }

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

/// Patch sets to the release of a rollout.
#[derive(Default)]
struct Patches {
    /// Text about each, for an operator.
    sets: Vec<String>,
    /// Whether some are not made yet.
    is_waiting: bool,
}

impl Patches {
    fn note(&self) -> String {
        if self.sets.is_empty() { String::new() } else { format!("; patches {}", self.sets.join(", ")) }
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
        self.prepare_files(product, policy.requires.iter().chain([version])).await?;
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
        let chosen = Chosen::of(product, channel, version, policy);
        let followers = self.followers(chosen, None, now).await?;
        if followers.is_empty() {
            let (product, channel, _) = named();
            return Err(RolloutError::NoDevices { product, channel });
        }
        let id = RolloutId(random::bytes());
        let points =
            followers.iter().map(|follower| point_of(&id, &follower.node, follower.comes_first)).collect();
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
    async fn patches_for(&self, row: &RolloutRow, followers: &[Follower]) -> Result<Patches, DbError> {
        let mut patches = Patches::default();
        if !self.patches.options().enabled {
            return Ok(patches);
        }
        let Some(release) = self.db.release(&row.product, &row.version).await? else { return Ok(patches) };
        let sets = self.db.patch_sets(&row.product).await?;
        for version in commonest(followers, &row.version) {
            let Some(old) = self.db.release(&row.product, version).await? else { continue };
            let set = sets.iter().find(|set| set.key.from == old.manifest && set.key.to == release.manifest);
            // The same bytes, or a release that came later.
            let Some(set) = set else { continue };
            patches.sets.push(match set.state {
                PatchSetState::Queued | PatchSetState::Building => {
                    patches.is_waiting = true;
                    format!("none from {version} in time")
                }
                PatchSetState::Failed => {
                    let why = set.error.as_deref().unwrap_or("unknown reason");
                    format!("none from {version} ({})", shown(why, PATCH_ERROR_MAX))
                }
                PatchSetState::Ready if set.set.is_none() => format!("none from {version} (nothing saved)"),
                PatchSetState::Ready => format!("from {version}"),
            });
        }
        Ok(patches)
    }

    /// The thing that an open rollout without an open wave waits for, as a word; `None` when it
    /// waits for nothing but the next look.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rollout_waits_for(&self, status: &RolloutStatus) -> Result<Option<&'static str>, DbError> {
        let row = &status.row;
        if row.stage != RolloutStage::Open || status.waves.iter().any(|wave| wave.row.opened.is_some()) {
            return Ok(None);
        }
        if row.approval == Approval::Wanted {
            return Ok(Some("approval"));
        }
        if row.policy.not_before.is_some_and(|time| unix_now() < time) {
            return Ok(Some("time"));
        }
        let patches = self.patches_for(row, &self.followers_of(row).await?).await?;
        Ok(patches.is_waiting.then_some("patches"))
    }

    /// Carries an operator's order about the rollout of a channel out, in the name of `by`. With an
    /// expected id the order is about that rollout alone; an approval needs it.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn order_rollout(
        &self,
        product: &Name,
        channel: &Name,
        (order, expected): (RolloutVerb, Option<&RolloutId>),
        reason: &str,
        by: &MoveBy,
    ) -> Result<RolloutStatus, RolloutError> {
        self.owner.check().await?;
        let turn = self.publishing.lock().await;
        let none = || RolloutError::NoneUnderWay { product: product.clone(), channel: channel.clone() };
        let row = self.db.rollout_under_way(product, channel).await?.ok_or_else(none)?;
        let is_expected = expected.map_or(order != RolloutVerb::Approve, |expected| *expected == row.id);
        if !is_expected {
            return Err(RolloutError::OtherRollout { id: row.id });
        }
        let (from, to, participle): (&[RolloutStage], RolloutStage, &'static str) = match order {
            RolloutVerb::Approve => {
                if row.stage != RolloutStage::Open {
                    return Err(RolloutError::Stage { stage: row.stage, order: "approved" });
                }
                match self.db.approve_rollout(&row, reason, by, signed(unix_now())).await? {
                    ApproveRollout::Approved => {}
                    ApproveRollout::NotWanted => return Err(RolloutError::NoApproval),
                    ApproveRollout::SameToken => return Err(RolloutError::SameToken),
                }
                drop(turn);
                self.rollouts_due.notify_one();
                let row = self.db.rollout(&row.id).await?.unwrap_or(row);
                return Ok(self.rollout_status(&row).await?);
            }
            RolloutVerb::Pause => (&[RolloutStage::Open], RolloutStage::Paused, "paused"),
            RolloutVerb::Resume => {
                (&[RolloutStage::Paused, RolloutStage::Halted], RolloutStage::Open, "resumed")
            }
            RolloutVerb::Halt => {
                (&[RolloutStage::Open, RolloutStage::Paused], RolloutStage::Halted, "halted")
            }
            RolloutVerb::Rollback => (
                &[RolloutStage::Open, RolloutStage::Paused, RolloutStage::Halted],
                RolloutStage::RolledBack,
                "rolled back",
            ),
        };
        if row.stage == to {
            // The order again: what it says may not be signed yet.
            self.publish_channel(product, channel).await?;
            return Ok(self.rollout_status(&row).await?);
        }
        if !from.contains(&row.stage) {
            return Err(RolloutError::Stage { stage: row.stage, order: participle });
        }
        if to == RolloutStage::Open {
            // Devices stood still meanwhile.
            self.db.restart_attempts(&row.id, signed(unix_now())).await?;
        }
        if row.stage == RolloutStage::Halted && to == RolloutStage::Open {
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
        stage: RolloutStage,
        reason: &str,
        by: &MoveBy,
    ) -> Result<(), RolloutError> {
        let now = signed(unix_now());
        let RolloutRow { product, channel, version, .. } = row;
        // The channel moves first. Cut off in between, the rollout is as it was: the origin takes
        // its step again, and an operator gives the order again.
        let moves = match stage {
            RolloutStage::RolledBack => {
                self.db.channel(product, channel).await?.map(|row| (row.version, true))
            }
            RolloutStage::Complete => Some((version.clone(), false)),
            _ => None,
        };
        let (mut stage, mut reason) = (stage, reason);
        if let Some((version, downgrade)) = &moves {
            let wanted = ChannelMove { product, channel, version, downgrade: *downgrade };
            match self.db.set_channel(wanted, by, now).await? {
                SetChannelOutcome::Set { .. } | SetChannelOutcome::Unchanged(_) => {}
                SetChannelOutcome::Older { .. } | SetChannelOutcome::UnknownRelease => {
                    (stage, reason) = (RolloutStage::Halted, "the channel could not be moved to the release");
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
            self.db.set_rollout_stage(&row, RolloutStage::Superseded, reason, by, signed(unix_now())).await?;
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
            Some(row) if row.stage != RolloutStage::Halted => {
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
            None => RolloutStage::Superseded,
            Some(signed_as) if row.stage == RolloutStage::Open && signed_as.state != RolloutState::Open => {
                RolloutStage::Halted
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
        self.count_waves(row, &self.followers_of(row).await?).await
    }

    async fn count_waves(&self, row: &RolloutRow, followers: &[Follower]) -> Result<RolloutStatus, DbError> {
        let waves = self.db.rollout_waves(&row.id).await?;
        let first = followers.iter().filter(|follower| follower.comes_first);
        Ok(RolloutStatus {
            waves: count(row, &waves, followers),
            first: first.map(|follower| follower.node).collect(),
            row: row.clone(),
        })
    }

    /// What is signed about the rollout of a channel; `None` when none is under way.
    pub(super) async fn rollout_doc(&self, channel: &ChannelRow) -> Result<Option<RolloutDoc>, DbError> {
        let Some(row) = self.db.rollout_under_way(&channel.product, &channel.channel).await? else {
            return Ok(None);
        };
        let Some(state) = row.stage.as_seen() else { return Ok(None) };
        let Some(release) = self.db.release(&row.product, &row.version).await? else { return Ok(None) };
        let waves = self.db.rollout_waves(&row.id).await?;
        let doc = RolloutDoc {
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
            ..RolloutDoc::unreadable()
        };
        Ok(Some(doc.with_conditions(&row.policy.conditions)))
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
            for row in rows.iter().filter(|row| row.stage == RolloutStage::Open) {
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
        let Some(row) = self.db.rollout(&row.id).await?.filter(|row| row.stage == RolloutStage::Open) else {
            return Ok(());
        };
        if row.approval == Approval::Wanted || row.policy.not_before.is_some_and(|time| now < time) {
            return Ok(());
        }
        // The end was cut off after the channel had moved.
        let channel = self.db.channel(&row.product, &row.channel).await?;
        if channel.is_some_and(|channel| channel.version == row.version) {
            return self
                .enter_stage(&row, RolloutStage::Complete, "every wave succeeded", &MoveBy::origin())
                .await;
        }
        self.db.time_out_attempts(&row.id, row.policy.timeout, signed(now)).await?;
        let followers = self.followers_of(&row).await?;
        let status = self.count_waves(&row, &followers).await?;
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
                let mut note = String::new();
                if wave == 0 {
                    let patches = self.patches_for(&row, &followers).await?;
                    if patches.is_waiting && now < row.patches_until() {
                        return Ok(());
                    }
                    // A set that is made may not be listed yet.
                    self.list_patches(&row.product).await?;
                    note = self.patches_for(&row, &followers).await?.note();
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
                    AfterHalt::Stay => RolloutStage::Halted,
                    AfterHalt::Back => RolloutStage::RolledBack,
                };
                self.enter_stage(&row, stage, &reason, &MoveBy::origin()).await
            }
            // The conditions end with the rollout: devices that wait because of them must not begin
            // all at once.
            Step::Complete
                if !row.policy.conditions.is_none() && counts.iter().any(|wave| wave.waiting() > 0) =>
            {
                Ok(())
            }
            Step::Complete => {
                let reason = "every wave succeeded";
                self.enter_stage(&row, RolloutStage::Complete, reason, &MoveBy::origin()).await
            }
        }
    }
}
