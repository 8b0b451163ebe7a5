//! Attempts that a crash or a restart cut off, and the way back from a release that does not work.

use std::time::Instant;

use distd_core::error::Chain;
use distd_core::fleet::report::{AttemptState, FailureKind, FailureNote};
use distd_core::names::Name;

use super::hooks::Hook;
use super::journal::Entry;
use super::place::Activated;
use super::step::{Step, local, text};
use crate::disk::side;

/// Number of times that the way to the new release, or its check, may be cut off by a crash of the
/// device or of this process before the release counts as not working.
pub(super) const CUT_OFF_MAX: u32 = 3;

/// Number of restarts in a row by which a device leaves a slot that is no default and does not
/// work, before it stays and waits for help: the default may not start.
const LEAVE_MAX: u32 = 2;

/// File in the state directory with the number of these restarts.
const LEFT: &str = "left";

/// A device's step after its start, by what its journal and its place say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: the look at the channel decides.
    Look,
    /// The pull finds the release in place, and the steps after it are taken again.
    Again,
    /// The release runs and is checked.
    Check,
    /// The release does not run, and its attempt has failed.
    Fail,
    /// The release runs, and the device leaves it.
    GoBack,
    /// The release before runs again.
    WentBack,
}

/// Facts on which the next step depends.
#[derive(Clone, Copy, Debug)]
struct Facts {
    state: AttemptState,
    /// Whether the device had decided to leave the release.
    going_back: bool,
    /// Whether the place has slots, so that a restart changes what runs.
    has_slots: bool,
    /// Whether the release runs.
    runs: bool,
    /// Whether the system has not restarted since the release was to start.
    same_boot: bool,
    activations: u32,
    starts: u32,
    tries: u32,
    checks: u32,
}

/// Decides how an attempt goes on.
fn next(facts: Facts) -> Next {
    let Facts { state, has_slots, runs, .. } = facts;
    if facts.going_back {
        return if has_slots && !runs { Next::WentBack } else { Next::GoBack };
    }
    // The boot loader started the slot before, by itself or by an order.
    let fell_back = if facts.starts < facts.tries { Next::Again } else { Next::WentBack };
    match state {
        AttemptState::Activating | AttemptState::Restarting if runs => Next::Check,
        AttemptState::Activating if facts.activations >= CUT_OFF_MAX => Next::Fail,
        AttemptState::Activating => Next::Again,
        AttemptState::Restarting if facts.same_boot => Next::Look,
        AttemptState::Restarting => fell_back,
        AttemptState::Checking if runs && facts.checks < CUT_OFF_MAX => Next::Check,
        AttemptState::Checking if has_slots && !runs => fell_back,
        AttemptState::Checking => Next::GoBack,
        AttemptState::Fetching
        | AttemptState::Succeeded
        | AttemptState::Failed
        | AttemptState::RolledBack
        | AttemptState::Unknown => Next::Look,
    }
}

impl Step {
    /// Continues an attempt that a crash or a restart cut off. A release that was cut off too
    /// often, on its way to run or while it was checked, does not work. Returns whether the device
    /// goes on to look at its channel: one that is about to restart into another release does not.
    pub(super) async fn recover(&mut self) -> anyhow::Result<bool> {
        let Some(entry) = self.journal.under_way().cloned() else { return self.adopt().await };
        // Before the attempt's release is activated, what runs may be a slot that is no default.
        if entry.attempt.state == AttemptState::Fetching && !self.adopt().await? {
            return Ok(false);
        }
        let version = entry.attempt.version.clone();
        let runs = match (self.place.booted_slot(), &entry.slot) {
            (Some(booted), Some(slot)) => booted == slot,
            (Some(_), None) => false,
            (None, _) => self.place.running()?.as_ref() == Some(&version),
        };
        let facts = Facts {
            state: entry.attempt.state,
            going_back: entry.going_back.is_some(),
            has_slots: self.place.booted_slot().is_some(),
            runs,
            same_boot: entry.boot == Some(self.boot.to_string()),
            activations: entry.activations,
            starts: entry.starts,
            tries: self.tries,
            checks: entry.checks,
        };
        match next(facts) {
            Next::Look => {}
            Next::Check => self.check(&version).await?,
            Next::Again => {
                self.journal.change(|entry| entry.attempt.state = AttemptState::Fetching).map_err(local)?;
            }
            Next::Fail => {
                let detail = format!("it was cut off {} times", entry.activations);
                self.fail(&version, FailureKind::Activation, detail).await?;
            }
            Next::GoBack => {
                let failure = entry.going_back.clone().unwrap_or_else(|| why_leave(&entry, runs));
                self.go_back(&version, failure).await?;
            }
            Next::WentBack => {
                let failure = entry.going_back.clone().unwrap_or_else(|| why_left(&entry));
                // The boot loader's own decision may hold for one boot.
                self.place.protect().await?;
                self.went_back(&version, failure).await?;
            }
        }
        // Another order would make the release that is left the default.
        Ok(self.journal.under_way().is_none_or(|entry| entry.going_back.is_none()))
    }

    /// Checks a release that runs until the next restart only although no attempt says so: the
    /// journal was lost, or somebody started the slot by hand. Nothing begins on a release that
    /// does not work, since what begins makes the slot that runs the default; the system restarts
    /// into the default then. Returns whether the device goes on.
    async fn adopt(&mut self) -> anyhow::Result<bool> {
        if !self.place.is_unconfirmed().await? {
            self.left(0);
            if !self.is_adopted {
                match self.place.refresh().await {
                    Ok(()) => self.is_adopted = true,
                    Err(error) => {
                        tracing::warn!(error = %Chain(error.as_ref()), "the slot that runs could not be marked good");
                    }
                }
            }
            return Ok(true);
        }
        let version = self.place.running()?;
        let shown = version.as_ref().map_or("unknown", Name::as_str);
        tracing::info!(
            version = shown,
            "the release that runs is checked, because the boot loader would leave it"
        );
        match self.run(Hook::Health, version.as_ref()).await {
            Ok(()) => {
                self.place.confirm().await?;
                Ok(true)
            }
            Err(error) => {
                let error = text(&error);
                let before = self.times_left();
                if before >= LEAVE_MAX {
                    tracing::error!(
                        version = shown,
                        error,
                        "the release does not work, and the default does not start"
                    );
                    return Ok(false);
                }
                tracing::warn!(version = shown, error, "the release does not work; the default starts");
                if self.restarter.order().await? {
                    self.left(before + 1);
                }
                Ok(false)
            }
        }
    }

    /// Number of restarts in a row that were to lead to the default slot.
    fn times_left(&self) -> u32 {
        let text = side::read(&self.request.data.join(LEFT), 16).ok().flatten();
        text.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok()).unwrap_or(0)
    }

    /// Remembers the number of restarts in a row that were to lead to the default slot.
    fn left(&self, times: u32) {
        let path = self.request.data.join(LEFT);
        let noted = match times {
            0 => side::remove(&path),
            _ => side::write_atomic(&path, times.to_string().as_bytes()),
        };
        if let Err(error) = noted {
            tracing::warn!(error = %Chain(&error), "the number of restarts is not remembered");
        }
    }

    /// Goes back to the release before the current one, which does not work. Cut off anywhere, it
    /// is done again from the beginning.
    pub(super) async fn go_back(&mut self, version: &Name, failure: FailureNote) -> anyhow::Result<()> {
        let from = self.release_before(version);
        tracing::warn!(%version, detail = failure.detail, "the release does not work; going back");
        self.journal.change(|entry| entry.going_back = Some(failure.clone())).map_err(local)?;
        match self.place.go_back(from.as_ref()).await? {
            Activated::Now => self.went_back(version, failure).await,
            Activated::AfterRestart => self.restarter.order().await.map(drop),
        }
    }

    /// Ends an attempt after which the release before runs again.
    async fn went_back(&mut self, version: &Name, failure: FailureNote) -> anyhow::Result<()> {
        tracing::warn!(%version, detail = failure.detail, "the device went back");
        self.remember_release(self.release_before(version)).await?;
        self.paused = Some((version.clone(), Instant::now()));
        if let Err(error) = self.run(Hook::RolledBack, Some(version)).await {
            tracing::warn!(error = %Chain(error.as_ref()), "the device went back, and its hook failed");
        }
        let back = |entry: &mut Entry| {
            entry.attempt.state = AttemptState::RolledBack;
            entry.attempt.failure = Some(failure);
        };
        self.journal.change(back).map_err(local)?;
        self.settle()
    }
}

/// Reason for which a release that was being checked is left.
fn why_leave(entry: &Entry, runs: bool) -> FailureNote {
    let detail = match runs {
        true => format!("the check was cut off {} times", entry.checks),
        false => "another release was made the current one during the check".to_owned(),
    };
    FailureNote::new(FailureKind::Health, &detail)
}

/// Reason for which the boot loader left a release.
fn why_left(entry: &Entry) -> FailureNote {
    let slot = entry.slot.as_ref().map_or("?", Name::as_str);
    let detail = match entry.attempt.state {
        AttemptState::Checking => {
            format!("the system restarted while the release in slot {slot} was checked")
        }
        _ => format!("slot {slot} did not start, and the boot loader went back"),
    };
    FailureNote::new(FailureKind::Boot, &detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(state: AttemptState, runs: bool, same_boot: bool) -> Facts {
        Facts {
            state,
            going_back: false,
            has_slots: true,
            runs,
            same_boot,
            activations: 1,
            starts: 1,
            tries: 1,
            checks: 1,
        }
    }

    /// Each state of an attempt, and where the device finds itself after a crash.
    #[test]
    fn an_attempt_goes_on_from_each_state() {
        use AttemptState::{Activating, Checking, Fetching, Restarting};
        let of = |state, runs, same_boot| next(slots(state, runs, same_boot));
        assert_eq!(of(Fetching, false, false), Next::Look);
        assert_eq!(of(Activating, false, true), Next::Again);
        assert_eq!(of(Activating, false, false), Next::Again);
        assert_eq!(of(Activating, true, false), Next::Check);
        assert_eq!(of(Restarting, false, true), Next::Look);
        assert_eq!(of(Restarting, true, false), Next::Check);
        assert_eq!(of(Restarting, false, false), Next::WentBack);
        assert_eq!(of(Checking, true, true), Next::Check);
        assert_eq!(of(Checking, true, false), Next::Check);
        assert_eq!(of(Checking, false, false), Next::WentBack);
    }

    #[test]
    fn a_release_is_tried_as_often_as_the_device_allows() {
        use AttemptState::{Activating, Checking, Restarting};
        let twice = |state| next(Facts { tries: 2, ..slots(state, false, false) });
        assert_eq!((twice(Restarting), twice(Checking)), (Next::Again, Next::Again));
        let cut_off = Facts { activations: CUT_OFF_MAX, ..slots(Activating, false, true) };
        assert_eq!(next(cut_off), Next::Fail);
        let checked = Facts { checks: CUT_OFF_MAX, ..slots(Checking, true, true) };
        assert_eq!(next(checked), Next::GoBack);
    }

    #[test]
    fn a_device_that_leaves_a_release_leaves_it() {
        let leaves = |runs| Facts { going_back: true, ..slots(AttemptState::Checking, runs, true) };
        assert_eq!((next(leaves(true)), next(leaves(false))), (Next::GoBack, Next::WentBack));
        let directory = Facts { has_slots: false, ..leaves(false) };
        assert_eq!(next(directory), Next::GoBack, "the link is replaced again");
        let other = Facts { going_back: false, ..directory };
        assert_eq!(next(other), Next::GoBack, "somebody else replaced the link");
    }
}
