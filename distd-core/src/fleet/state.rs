//! State of a device in the fleet, by what it reported (docs/fleet.md, "State of the fleet").
//!
//! Two axes are kept apart: whether the device is heard of, and how far its update is on a channel.
//! The counts of a rollout's waves follow the same [`standing`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::report::AttemptState;
use super::rollout::Held;
use crate::names::Name;

/// Longest time between two reports of a device that runs, seconds.
pub const REPORT_PERIOD: u64 = 3600;

/// Age of the newest report above which a device is offline, seconds.
pub const OFFLINE_AFTER: u64 = 3 * REPORT_PERIOD;

/// Words of an enum, the same in JSON, SQL and on the command line.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),* $(,)? }) => {
        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The value as a word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl FromStr for $name {
            type Err = UnknownState;

            fn from_str(s: &str) -> Result<Self, UnknownState> {
                let found = Self::ALL.iter().find(|state| state.as_str() == s);
                found.copied().ok_or(UnknownState(&[$($word),*]))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// A word that names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("choose one of {}", .0.join(", "))]
pub struct UnknownState(&'static [&'static str]);

/// Whether a device is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Contact {
    /// Its newest report is at most [`OFFLINE_AFTER`] old.
    Online,
    /// Its newest report is older.
    Offline,
    /// It has never reported.
    Unknown,
}

words!(Contact { Online => "online", Offline => "offline", Unknown => "unknown" });

impl Contact {
    /// The contact of a device whose newest report the origin took at `reported`. Both times are
    /// unix seconds by the origin's clock.
    pub fn of(reported: Option<i64>, now: i64) -> Self {
        match reported {
            None => Self::Unknown,
            Some(at) if at < Self::online_since(now) => Self::Offline,
            Some(_) => Self::Online,
        }
    }

    /// Time of the oldest report with which a device is online at `now`, unix seconds.
    pub fn online_since(now: i64) -> i64 {
        now.saturating_sub(OFFLINE_AFTER as i64)
    }
}

/// State of the update of a device on one channel that it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// It runs the release that it is to run, and no attempt is under way.
    UpToDate,
    /// It runs another release, nothing holds it back, and no attempt is under way.
    Outdated,
    /// An attempt is under way.
    Updating,
    /// As many attempts as the rollout allows have failed on it.
    Failed,
    /// It says why it does not install the release.
    Held,
    /// The channel was removed, or the device follows none.
    Unknown,
}

words!(UpdateState {
    UpToDate => "up_to_date",
    Outdated => "outdated",
    Updating => "updating",
    Failed => "failed",
    Held => "held",
    Unknown => "unknown",
});

/// Report of a device about one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Version that it runs; `None` while it has none.
    pub version: Option<&'a Name>,
    /// Why it does not install the release of the rollout, as [`held_now`] says.
    pub held: Option<Held>,
    /// State and number of its newest attempt at the rollout under way; `None` without one.
    pub attempt: Option<(AttemptState, u32)>,
}

/// The release that the devices of a channel are to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal<'a> {
    /// Version of the rollout that is under way, or else of the channel.
    pub version: &'a Name,
    /// Failed attempts after which a device gives up.
    pub attempts: u32,
}

/// The reason that a device has reported, as long as it may be one on the way to `goal`. A device
/// that does not know of a new rollout still says that the release before, `from`, has failed.
pub fn held_now(held: Option<Held>, from: Option<&Name>, goal: &Name) -> Option<Held> {
    held.filter(|held| !matches!(held, Held::Failed { .. }) || from.is_none_or(|from| from == goal))
}

/// Result of a device, as far as a wave of a rollout is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It runs the release, and no attempt is under way.
    Succeeded,
    /// As many attempts as the rollout allows have failed, in this rollout or an earlier one.
    Failed,
    /// An attempt is under way.
    Trying,
    /// It has not begun, or is to try again.
    Waiting,
}

/// Result of a device on the way to `goal`.
pub fn standing(seen: &Seen<'_>, goal: &Goal<'_>) -> Standing {
    let runs_it = seen.version == Some(goal.version);
    match seen.attempt {
        Some((AttemptState::Failed | AttemptState::RolledBack, number)) if number >= goal.attempts => {
            Standing::Failed
        }
        Some((AttemptState::Succeeded, _)) | None if runs_it => Standing::Succeeded,
        // The release failed on the device before the rollout, and is not tried again.
        None if matches!(seen.held, Some(Held::Failed { .. })) => Standing::Failed,
        // A failed attempt that may be repeated is not under way: the device may be gone for good.
        Some((AttemptState::Succeeded | AttemptState::Failed | AttemptState::RolledBack, _)) | None => {
            Standing::Waiting
        }
        Some(_) => Standing::Trying,
    }
}

/// State of the update of a device; `goal` is `None` when the channel is gone.
pub fn update_state(seen: &Seen<'_>, goal: Option<&Goal<'_>>) -> UpdateState {
    let Some(goal) = goal else { return UpdateState::Unknown };
    match standing(seen, goal) {
        Standing::Succeeded => UpdateState::UpToDate,
        Standing::Failed => UpdateState::Failed,
        Standing::Trying => UpdateState::Updating,
        Standing::Waiting if seen.held.is_some() => UpdateState::Held,
        Standing::Waiting => UpdateState::Outdated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_device_counts_by_its_attempt_and_what_it_runs() {
        use AttemptState::{Checking, Failed, RolledBack, Succeeded};
        let version = name("2");
        let goal = Goal { version: &version, attempts: 2 };
        let of = |runs: &str, attempt, held| {
            let seen = Seen { version: Some(&name(runs)), held, attempt };
            (standing(&seen, &goal), update_state(&seen, Some(&goal)))
        };
        let waiting = (Standing::Waiting, UpdateState::Outdated);
        let failed = (Standing::Failed, UpdateState::Failed);
        let succeeded = (Standing::Succeeded, UpdateState::UpToDate);
        let trying = (Standing::Trying, UpdateState::Updating);
        assert_eq!(of("1", None, None), waiting);
        assert_eq!(of("2", None, None), succeeded);
        assert_eq!(of("1", Some((Checking, 1)), None), trying);
        assert_eq!(of("2", Some((Checking, 1)), None), trying);
        assert_eq!(of("2", Some((Succeeded, 1)), None), succeeded);
        // It went elsewhere after it had succeeded.
        assert_eq!(of("1", Some((Succeeded, 1)), None), waiting);
        assert_eq!(of("1", Some((RolledBack, 1)), None), waiting);
        assert_eq!(of("1", Some((RolledBack, 2)), None), failed);
        assert_eq!(of("1", Some((Failed, 2)), None), failed);
        assert_eq!(of("1", None, Some(Held::Failed { attempts: 1 })), failed);
        assert_eq!(of("1", Some((AttemptState::Unknown, 1)), None), trying);
        // A reason matters only to a device that runs another release.
        let held = (Standing::Waiting, UpdateState::Held);
        assert_eq!(of("1", None, Some(Held::Wave { wave: 2, of: 4 })), held);
        assert_eq!(of("1", Some((Failed, 1)), Some(Held::Paused)), held);
        assert_eq!(of("2", None, Some(Held::Pinned)), succeeded);
        let seen = Seen { version: None, held: None, attempt: None };
        assert_eq!(update_state(&seen, Some(&goal)), UpdateState::Outdated);
        assert_eq!(update_state(&seen, None), UpdateState::Unknown);
    }

    #[test]
    fn a_failure_of_the_release_before_is_none_of_the_next_one() {
        let (failed, goal, before) = (Some(Held::Failed { attempts: 1 }), name("4"), name("3"));
        assert_eq!(held_now(failed, Some(&before), &goal), None);
        assert_eq!(held_now(failed, Some(&goal), &goal), failed);
        assert_eq!(held_now(failed, None, &goal), failed);
        assert_eq!(held_now(Some(Held::Pinned), Some(&before), &goal), Some(Held::Pinned));
    }

    #[test]
    fn a_device_is_offline_after_three_reports_that_did_not_come() {
        let now = 1_000_000;
        assert_eq!(Contact::of(None, now), Contact::Unknown);
        assert_eq!(Contact::of(Some(now - 10_800), now), Contact::Online);
        assert_eq!(Contact::of(Some(now - 10_801), now), Contact::Offline);
        // The clock of the origin was set back.
        assert_eq!(Contact::of(Some(now + 5), now), Contact::Online);
    }

    #[test]
    fn words_are_the_same_in_json_and_in_text() {
        for state in UpdateState::ALL {
            assert_eq!(serde_json::to_string(state).expect("JSON"), format!("\"{state}\""));
            assert_eq!(state.as_str().parse(), Ok(*state));
        }
        for contact in Contact::ALL {
            assert_eq!(serde_json::to_string(contact).expect("JSON"), format!("\"{contact}\""));
        }
        let error = "late".parse::<Contact>().expect_err("no word").to_string();
        assert!(error.contains("online, offline, unknown"), "{error}");
    }
}
