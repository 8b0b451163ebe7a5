//! Devices whose update client speaks hawkBit's DDI (docs/ddi.md): the origin decides for them what
//! a device of distd decides by itself, and reports in their name.

use distd_core::fleet::report::{
    Attempt, AttemptState, FailureKind, FailureNote, REPORT_DETAIL_MAX, Report, Running, SourceBytes,
};
use distd_core::fleet::rollout::{Decision, Device, Held, RolloutDoc, RolloutId, TurnAnswer};
use distd_core::fleet::window::is_open;
use distd_core::fleet::{LabelMap, Right};
use distd_core::names::Name;
use distd_core::text::shown;
use distd_peer::clock::unix_now;
use distd_peer::rates::local_time;

use super::files::FILE;
use super::{Origin, signed};
use crate::db::{
    ChannelRow, DbError, DdiActionRow, DdiDeviceRow, DdiState, HeldFrom, NewDdiAction, ReleaseRow,
    UnixSeconds,
};

/// Age of a report from which on it is made again although nothing has changed, seconds: a device
/// that polls is online.
const REPORT_AGAIN: i64 = 1800;

/// Fact of a device that names the version that it runs.
const VERSION_FACT: &str = "version";

/// What a device is offered when it polls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DdiOffer {
    /// Nothing.
    Nothing,
    /// An action that it is to confirm.
    Confirm(DdiActionRow),
    /// An action.
    Deploy(DdiActionRow),
    /// An action that it is to stop.
    Cancel(DdiActionRow),
}

/// What a device says about an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DdiNews {
    /// It is at work.
    Works {
        /// Whether it installs already.
        installs: bool,
        /// How far it is; empty when it does not say.
        detail: String,
    },
    /// It has installed the release.
    Succeeded,
    /// It could not.
    Failed {
        /// What it says about that.
        detail: String,
    },
}

/// Release that a device is to install.
struct Target {
    version: Name,
    rollout: Option<RolloutId>,
    /// Number of the attempt.
    number: u32,
    /// Whether somebody at the device has to agree.
    confirm: bool,
    /// Whether the device asks for a turn before it begins.
    turns: bool,
    /// Whether a window in which it may begin is open.
    open: bool,
}

impl Target {
    fn is_of(&self, action: &DdiActionRow) -> bool {
        action.version == self.version && action.rollout == self.rollout
    }
}

/// The origin's decision for a device.
#[derive(Default)]
struct Decided {
    target: Option<Target>,
    held: Option<HeldFrom>,
}

impl Origin {
    /// Decides for a device that polls, opens or calls back its action, and reports in its name.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn ddi_poll(&self, device: &DdiDeviceRow) -> Result<DdiOffer, DbError> {
        let now = unix_now();
        let mut decided = self.decide_for(device, now).await?;
        let open = self.db.open_ddi_action(&device.node).await?;
        let offer = match open {
            Some(action) => self.offer_open(action, &decided, signed(now)).await?,
            None => None,
        };
        let offer = match (offer, &decided.target) {
            (Some(offer), _) => offer,
            (None, None) => DdiOffer::Nothing,
            (None, Some(target)) => match self.begin_for(device, target, now).await? {
                Ok(action) => offer_of(action),
                Err(held) => {
                    decided.held = Some(HeldFrom::new(held, Some(&target.version)));
                    DdiOffer::Nothing
                }
            },
        };
        self.report_if_new(device, decided.held, signed(now)).await?;
        Ok(offer)
    }

    /// What becomes of an open action; `None` when it is closed now.
    async fn offer_open(
        &self,
        action: DdiActionRow,
        decided: &Decided,
        now: UnixSeconds,
    ) -> Result<Option<DdiOffer>, DbError> {
        let target = decided.target.as_ref();
        // A device of distd that installs already ends that too.
        let held = decided.held.as_ref().map(|held| held.held);
        let only_paused = held == Some(Held::Paused) && action.state == DdiState::Activating;
        let is_wanted = target.is_some_and(|target| target.is_of(&action));
        let (state, offer): (_, fn(DdiActionRow) -> DdiOffer) = match action.state {
            DdiState::Canceling => return Ok(Some(DdiOffer::Cancel(action))),
            DdiState::Confirming if is_wanted && target.is_some_and(|target| target.confirm) => {
                return Ok(Some(DdiOffer::Confirm(action)));
            }
            DdiState::Confirming if is_wanted => (DdiState::Offered, DdiOffer::Deploy),
            _ if is_wanted || action.uncancelable || only_paused => {
                return Ok(Some(DdiOffer::Deploy(action)));
            }
            // The device has not looked at it, so it needs not be told.
            DdiState::Confirming | DdiState::Offered => {
                self.db.move_ddi_action(&action, DdiState::Canceled, now).await?;
                return Ok(None);
            }
            _ => (DdiState::Canceling, DdiOffer::Cancel),
        };
        self.db.move_ddi_action(&action, state, now).await?;
        Ok(Some(offer(DdiActionRow { state, ..action })))
    }

    /// Opens an action, unless something holds the device up now.
    async fn begin_for(
        &self,
        device: &DdiDeviceRow,
        target: &Target,
        now: u64,
    ) -> Result<Result<DdiActionRow, Held>, DbError> {
        if !target.open {
            return Ok(Err(Held::Window));
        }
        if let Some(rollout) = target.rollout.filter(|_| target.turns) {
            match self.decide_turn(&device.node, &rollout, target.number).await? {
                Some(TurnAnswer::Begin) => {}
                Some(TurnAnswer::Wait(_)) | None => return Ok(Err(Held::Turn)),
            }
        }
        let new = NewDdiAction {
            node: &device.node,
            product: &device.product,
            version: &target.version,
            rollout: target.rollout.as_ref(),
            number: target.number,
            state: if target.confirm { DdiState::Confirming } else { DdiState::Offered },
        };
        self.db.begin_ddi_action(&new, signed(now)).await.map(Ok)
    }

    /// Decides which release a device is to install at `now` (unix seconds), as a device of distd
    /// decides for itself.
    async fn decide_for(&self, device: &DdiDeviceRow, now: u64) -> Result<Decided, DbError> {
        let DdiDeviceRow { product, channel, node, .. } = device;
        let Some(row) = self.db.channel(product, channel).await? else { return Ok(Decided::default()) };
        let pins = self.db.pins_of(&node.to_string()).await?;
        let rollout = self.rollout_doc(&row).await?;
        let goal = rollout.as_ref().map_or_else(|| row.version.clone(), |doc| doc.version.clone());
        let (version, followed, held) = match (pins.get(product), rollout) {
            (Some(pin), _) => (pin.clone(), None, Some(Held::Pinned)),
            (None, None) => (row.version.clone(), None, None),
            (None, Some(doc)) => match self.decide_rollout(device, &doc).await? {
                (Decision::Follow, number) => (doc.version.clone(), Some((doc, number)), None),
                (Decision::Via(version), _) => (version, None, None),
                (Decision::Hold(held), _) => (row.version.clone(), None, Some(held)),
            },
        };
        let held_from = |held: Option<Held>| held.map(|held| HeldFrom::new(held, Some(&goal)));
        if device.installed.as_ref() == Some(&version) {
            return Ok(Decided { target: None, held: held_from(held) });
        }
        let release = self.db.release(product, &version).await?.filter(|row| row.kind == FILE);
        let Some(release) = release else { return Ok(Decided { target: None, held: held_from(held) }) };
        if !self.may_install(device, &row, &release, held).await? {
            return Ok(Decided { target: None, held: held_from(held) });
        }
        let target = match followed {
            Some((doc, number)) => Target {
                version,
                rollout: Some(doc.id),
                number,
                confirm: doc.is_soft(now) && !device.auto_confirm,
                turns: doc.turns,
                open: is_open(&doc.windows, local_time(None)),
            },
            // A release that failed is not tried again before the channel has changed.
            None if device.failed == Some((version.clone(), row.counter)) => {
                let held = held.or(Some(Held::Failed { attempts: 1 }));
                return Ok(Decided { target: None, held: held_from(held) });
            }
            None => Target { version, rollout: None, number: 1, confirm: false, turns: false, open: true },
        };
        Ok(Decided { target: Some(target), held: held_from(held) })
    }

    /// The decision about a rollout, and the number that an attempt of the device would have.
    async fn decide_rollout(
        &self,
        device: &DdiDeviceRow,
        doc: &RolloutDoc,
    ) -> Result<(Decision, u32), DbError> {
        let (failures, number) = match self.db.newest_attempt(&doc.id, &device.node).await? {
            None => (0, 1),
            Some((AttemptState::Failed | AttemptState::RolledBack, number)) => {
                (number, number.saturating_add(1))
            }
            Some((AttemptState::Succeeded, number)) => (number.saturating_sub(1), number.saturating_add(1)),
            Some((_, number)) => (number.saturating_sub(1), number),
        };
        let member = self.db.member(&device.node.to_string()).await?;
        let about = Device {
            node: &device.node,
            labels: member.as_ref().map(|row| &row.member.labels),
            installed: device.installed.as_ref(),
            failures,
            asks_for_turns: true,
        };
        Ok((doc.decide(&about), number))
    }

    /// Whether a device may install a release: it may read it, and does not go back without an
    /// order.
    async fn may_install(
        &self,
        device: &DdiDeviceRow,
        channel: &ChannelRow,
        release: &ReleaseRow,
        held: Option<Held>,
    ) -> Result<bool, DbError> {
        let rights = self.rights_of(&device.node, &[release.manifest]).await?;
        if !rights.first().is_some_and(|found| found.rights.has(Right::Read)) {
            return Ok(false);
        }
        let Some(installed) = &device.installed else { return Ok(true) };
        let Some(had) = self.db.release(&device.product, installed).await? else { return Ok(true) };
        Ok(release.sequence >= had.sequence
            || held == Some(Held::Pinned)
            || channel.downgrade_from.is_some_and(|order| had.sequence <= order))
    }

    /// Takes what a device says about its action. What it says about an action that is over changes
    /// nothing.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn ddi_news(
        &self,
        device: &DdiDeviceRow,
        action: &DdiActionRow,
        news: &DdiNews,
    ) -> Result<(), DbError> {
        let now = signed(unix_now());
        let (state, failure) = match news {
            _ if action.state.has_ended() => return Ok(()),
            DdiNews::Succeeded => (DdiState::Succeeded, None),
            DdiNews::Failed { detail } => (DdiState::Failed, Some(detail)),
            DdiNews::Works { .. } if action.state == DdiState::Canceling => return Ok(()),
            DdiNews::Works { installs, .. } => {
                let installs = *installs || action.state == DdiState::Activating;
                (if installs { DdiState::Activating } else { DdiState::Fetching }, None)
            }
        };
        let moved = state == action.state || self.db.move_ddi_action(action, state, now).await?;
        if !moved {
            // Another request was faster; the device repeats what counts.
            return Ok(());
        }
        match state {
            DdiState::Succeeded => {
                self.db.set_ddi_installed(&device.node, Some(&action.version), None).await?;
            }
            DdiState::Failed if action.rollout.is_none() => {
                self.note_failure(device, &action.version).await?
            }
            _ => {}
        }
        if state != action.state {
            let failure = failure.map(|detail| FailureNote {
                kind: if action.state == DdiState::Activating {
                    FailureKind::Activation
                } else {
                    FailureKind::Network
                },
                detail: bounded(detail),
            });
            self.report_attempt(device, action, attempt_state(state), failure, now).await?;
        }
        if let (DdiNews::Works { detail, .. }, Some(rollout)) = (news, &action.rollout)
            && !detail.is_empty()
        {
            self.db.note_progress(rollout, &device.node, &bounded(detail), now).await?;
        }
        Ok(())
    }

    /// Notes that a device has looked at its action: from now on it counts as begun.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn ddi_begun(&self, device: &DdiDeviceRow, action: &DdiActionRow) -> Result<(), DbError> {
        if action.state != DdiState::Offered {
            return Ok(());
        }
        self.ddi_news(device, action, &DdiNews::Works { installs: false, detail: String::new() }).await
    }

    /// Takes a device's answer to a call back: it stopped, or goes on.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn ddi_canceled(&self, action: &DdiActionRow, stopped: bool) -> Result<(), DbError> {
        if action.state == DdiState::Canceling {
            let state = if stopped { DdiState::Canceled } else { DdiState::Fetching };
            self.db.move_ddi_action(action, state, signed(unix_now())).await?;
        }
        Ok(())
    }

    /// Takes the answer of somebody at the device: the action may begin, or waits on.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn ddi_confirmed(&self, action: &DdiActionRow, agreed: bool) -> Result<(), DbError> {
        if agreed && action.state == DdiState::Confirming {
            self.db.move_ddi_action(action, DdiState::Offered, signed(unix_now())).await?;
        }
        Ok(())
    }

    /// Takes the attributes of a device as its facts. `version`, where it names a release of the
    /// product, is what the device runs: after a way back it differs from what was installed last.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn ddi_attributes(&self, device: &DdiDeviceRow, facts: &LabelMap) -> Result<(), DbError> {
        let now = signed(unix_now());
        self.db.put_ddi_facts(&device.node, facts, now).await?;
        let says = facts.iter().find(|(key, _)| key.as_str() == VERSION_FACT);
        let Some(runs) = says.and_then(|(_, value)| value.as_str().parse::<Name>().ok()) else {
            return Ok(());
        };
        if device.installed.as_ref() == Some(&runs)
            || self.db.release(&device.product, &runs).await?.is_none()
        {
            return Ok(());
        }
        let last = self.db.newest_ddi_action(&device.node).await?;
        self.db.set_ddi_installed(&device.node, Some(&runs), device.failed_ref()).await?;
        let device = DdiDeviceRow { installed: Some(runs), ..device.clone() };
        let Some(last) = last.filter(|last| last.state == DdiState::Succeeded) else { return Ok(()) };
        match last.rollout {
            None => self.note_failure(&device, &last.version).await,
            Some(_) => {
                let note = FailureNote {
                    kind: FailureKind::Boot,
                    detail: "the device runs another version than it installed".to_owned(),
                };
                self.report_attempt(&device, &last, AttemptState::RolledBack, Some(note), now).await
            }
        }
    }

    /// Notes that the channel's own release failed on a device.
    async fn note_failure(&self, device: &DdiDeviceRow, version: &Name) -> Result<(), DbError> {
        let channel = self.db.channel(&device.product, &device.channel).await?;
        let counter = channel.map_or(0, |row| row.counter);
        self.db.set_ddi_installed(&device.node, device.installed.as_ref(), Some((version, counter))).await
    }

    /// Reports an attempt in the name of a device.
    async fn report_attempt(
        &self,
        device: &DdiDeviceRow,
        action: &DdiActionRow,
        state: AttemptState,
        failure: Option<FailureNote>,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let installed = match state {
            AttemptState::Succeeded => Some(action.version.clone()),
            _ => device.installed.clone(),
        };
        // The bytes may have been sent since the action was read.
        let bytes = self.db.ddi_action(&device.node, action.id).await?.map_or(0, |action| action.bytes);
        let began = action.began.unwrap_or(now);
        let attempt = Attempt {
            rollout: action.rollout,
            product: action.product.clone(),
            version: action.version.clone(),
            number: action.number,
            state,
            failure,
            began: u64::try_from(began).unwrap_or(0),
            seconds: u64::try_from(now.saturating_sub(began)).unwrap_or(0),
            bytes: SourceBytes { origin: bytes, ..SourceBytes::default() },
        };
        self.report_for(device, installed, None, action.rollout.map(|id| (id, attempt)), now).await
    }

    /// Reports what a device runs, if the newest report says something else or is old.
    async fn report_if_new(
        &self,
        device: &DdiDeviceRow,
        held: Option<HeldFrom>,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let id = device.node.to_string();
        let newest = self.db.reports(Some(&id)).await?.remove(&id);
        let is_said = newest.is_some_and(|report| {
            now.saturating_sub(report.received) < REPORT_AGAIN
                && matches!(&report.running[..], [runs] if (&runs.product, &runs.channel) == (&device.product, &device.channel)
                    && (&runs.version, &runs.held) == (&device.installed, &held))
        });
        match is_said {
            true => Ok(()),
            false => self.report_for(device, device.installed.clone(), held, None, now).await,
        }
    }

    async fn report_for(
        &self,
        device: &DdiDeviceRow,
        installed: Option<Name>,
        held: Option<HeldFrom>,
        attempt: Option<(RolloutId, Attempt)>,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let channel = (device.product.clone(), device.channel.clone());
        let rights = self.rights_on(&device.node, std::slice::from_ref(&channel)).await?;
        if !rights.is_some_and(|rights| rights.first().is_some_and(|rights| rights.has(Right::Report))) {
            return Ok(());
        }
        let (product, channel) = channel;
        let (held, held_from) = held.map(|held| (held.held, held.from)).unzip();
        let held_from = held_from.flatten();
        let running = Running { product, channel, version: installed, manifest: None, held, held_from };
        let report = Report {
            sequence: self.db.next_ddi_report(&device.node).await?,
            at: u64::try_from(now).unwrap_or(0),
            ..Report::default()
        };
        let attempts: Vec<(RolloutId, &Attempt)> =
            attempt.iter().map(|(id, attempt)| (*id, attempt)).collect();
        self.db.put_report(&device.node, &report, &[&running], &attempts, now).await?;
        self.rollouts_due.notify_one();
        Ok(())
    }
}

/// The link for an action that was just read or made.
fn offer_of(action: DdiActionRow) -> DdiOffer {
    match action.state {
        DdiState::Confirming => DdiOffer::Confirm(action),
        DdiState::Canceling => DdiOffer::Cancel(action),
        _ => DdiOffer::Deploy(action),
    }
}

fn attempt_state(state: DdiState) -> AttemptState {
    match state {
        DdiState::Succeeded => AttemptState::Succeeded,
        DdiState::Failed | DdiState::Canceled => AttemptState::Failed,
        DdiState::Activating => AttemptState::Activating,
        _ => AttemptState::Fetching,
    }
}

/// A device's text, safe to show and no longer than a device of distd could report.
fn bounded(text: &str) -> String {
    let mut text = shown(text, REPORT_DETAIL_MAX);
    while text.len() > REPORT_DETAIL_MAX {
        text.pop();
    }
    text
}
