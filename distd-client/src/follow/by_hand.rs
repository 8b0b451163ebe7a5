//! Execution of orders that somebody at the device gives to its agent: to look, to begin now, to
//! put updates off, to go back (docs/rollouts.md, "By hand").

use distd_core::error::Chain;
use distd_core::fleet::report::{Attempt, AttemptState, FailureKind, FailureNote, SourceBytes};
use distd_core::fleet::rollout::Held;
use distd_core::names::Name;
use distd_peer::clock::unix_now;

use super::deferral::Deferral;
use super::journal::Entry;
use super::orders::{Answer, Given, Order};
use super::reports::rollout_of;
use super::step::{Step, TIMEOUT, local, text};

/// Conditions of the device that an order sets aside for one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pressed {
    /// An attempt begins without the device's own conditions.
    pub(super) now: bool,
    /// A release that failed here is tried again.
    pub(super) again: bool,
}

impl Step {
    /// Carries out an order and answers it.
    pub(super) async fn obey(&mut self, given: Given) {
        let answer = match given.order {
            Order::Check {} => self.check_channel().await,
            Order::Now { again } => self.begin_now(again).await,
            Order::Defer { seconds } => self.defer(seconds),
            Order::RollBack { to } => self.roll_back(to).await,
        };
        self.report().await;
        let answer = match answer {
            Ok(()) => match self.last_status() {
                Some(status) => Answer::Done { status: Box::new(status) },
                None => Answer::refused("the state of the device is unknown", "look at the agent's log"),
            },
            Err(refused) => refused,
        };
        // Whoever gave the order may have gone.
        let _ = given.answer.send(answer);
    }

    async fn check_channel(&mut self) -> Result<(), Answer> {
        let looked = self.look_only().await;
        self.note_look(looked.as_ref().err());
        looked.map_err(|error| {
            let reason = format!("the channel could not be looked at: {}", text(&error));
            Answer::refused(reason, "see whether a parent can be reached, and run the command again")
        })
    }

    async fn begin_now(&mut self, again: bool) -> Result<(), Answer> {
        self.set_deferral(None)?;
        self.pressed = Pressed { now: true, again };
        let taken = self.take().await;
        self.pressed = Pressed::default();
        self.note_look(taken.as_ref().err());
        taken.map_err(|error| {
            let reason = format!("no release was installed: {}", text(&error));
            Answer::refused(reason, "the agent tries again by itself; see: distd status")
        })
    }

    /// Puts updates off, or ends that.
    fn defer(&mut self, seconds: u64) -> Result<(), Answer> {
        if seconds == 0 {
            if matches!(self.held, Some(Held::Deferred { .. })) {
                self.held = None;
            }
            return self.set_deferral(None);
        }
        let (now, max) = (unix_now(), self.request.defer_max.as_secs());
        if max == 0 {
            let next = "follow.defer_seconds of client.toml is 0; the operator can pause the rollout";
            return Err(Answer::refused("updates cannot be put off on this device", next));
        }
        let deferral = Deferral::load(&self.request.data).extended(now, seconds, max);
        let Some(until) = deferral.holds(now, max) else {
            let reason = "updates were put off as long as this device allows";
            let next = "install the release: distd update now; or let the operator pause the rollout";
            return Err(Answer::refused(reason, next));
        };
        self.set_deferral(Some(deferral))?;
        self.held = Some(Held::Deferred { until });
        Ok(())
    }

    fn set_deferral(&self, deferral: Option<Deferral>) -> Result<(), Answer> {
        let data = &self.request.data;
        let noted = match deferral {
            Some(deferral) => deferral.store(data).map_err(|error| Chain(&error).to_string()),
            None => Deferral::remove(data).map_err(|error| Chain(&error).to_string()),
        };
        noted.map_err(|error| {
            let reason = format!("the deferral cannot be changed: {error}");
            Answer::refused(reason, "look at the permissions of the state directory and the space there")
        })
    }

    /// End of the time for which somebody at the device has put updates off.
    pub(super) fn deferred_until(&self) -> Option<u64> {
        let max = self.request.defer_max.as_secs();
        Deferral::load(&self.request.data).holds(unix_now(), max)
    }

    /// Forgets a deferral: what was put off has begun, or there is nothing to put off.
    pub(super) fn end_deferral(&self) {
        if let Err(error) = Deferral::remove(&self.request.data) {
            tracing::warn!(error = %Chain(&error), "the note of a deferral stays");
        }
    }

    /// Takes the device back from the release that runs, which worked. The device does not install
    /// that release again unless it is told to.
    async fn roll_back(&mut self, to: Option<Name>) -> Result<(), Answer> {
        let failed = |error: anyhow::Error| {
            let reason = format!("the device did not go back: {}", text(&error));
            Answer::refused(reason, "the agent tries again by itself; see: distd status")
        };
        if let Some(entry) = self.journal.under_way() {
            let reason = format!("an attempt at {} is under way", entry.attempt.version);
            return Err(Answer::refused(reason, "wait for its end: distd status"));
        }
        let Some(version) = self.place.running().map_err(failed)? else {
            let next = "install a release first: distd update now";
            return Err(Answer::refused("no release that distd installed runs here", next));
        };
        let back = self.whole_release_before(&version, to.as_ref())?;
        let rollout = rollout_of(&self.journal, &version);
        let attempt = Attempt {
            rollout,
            product: self.request.product.clone(),
            version: version.clone(),
            number: self.journal.last_number(rollout).saturating_add(1),
            state: AttemptState::Checking,
            failure: None,
            began: unix_now(),
            seconds: 0,
            bytes: SourceBytes::default(),
        };
        let note = FailureNote::new(FailureKind::Operator, &format!("taken back to {back} by hand"));
        let entry = Entry {
            slot: self.place.booted_slot().cloned(),
            boot: self.place.booted_slot().map(|_| self.boot.to_string()),
            going_back: Some(note.clone()),
            ..Entry::new(attempt, Some(back), TIMEOUT)
        };
        self.journal.begin(entry).map_err(local).map_err(failed)?;
        self.go_back(&version, note).await.map_err(failed)
    }

    /// The release to which the device can go back from `version`: `to`, or the one before.
    fn whole_release_before(&self, version: &Name, to: Option<&Name>) -> Result<Name, Answer> {
        let (product, data) = (&self.request.product, &self.request.data);
        let here = self.place.others_that_are_whole(product, data);
        let next = "see what runs: distd status; an operator can order another release: distd channel set";
        if let Some(to) = to {
            return match here.contains(to) && to != version {
                true => Ok(to.clone()),
                false => {
                    Err(Answer::refused(format!("release {to} is not here, whole, beside {version}"), next))
                }
            };
        }
        let before = self.journal.before(version).filter(|before| here.contains(before));
        match (before, here.as_slice()) {
            (Some(before), _) => Ok(before.clone()),
            (None, [only]) => Ok(only.clone()),
            (None, []) => Err(Answer::refused("no other release is here, whole", next)),
            (None, several) => {
                let names: Vec<&str> = several.iter().map(Name::as_str).collect();
                let reason = format!("it is unknown which release ran before; {} are here", names.join(", "));
                Err(Answer::refused(reason, "name one: distd rollback --to VERSION"))
            }
        }
    }
}
