//! The file `DIR/follow.json`: attempts at releases, the newest first. Each step of an attempt is
//! written before it is taken, so that a process that starts after a crash knows where to go on.

use std::io;
use std::path::{Path, PathBuf};

use distd_core::error::Chain;
use distd_core::fleet::report::{Attempt, AttemptState, FailureKind, FailureNote, REPORT_ATTEMPTS_MAX};
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::{Deserialize, Serialize};

use super::failures::Failures;
use crate::disk::side;

/// Name of the file in the state directory.
const FILE_NAME: &str = "follow.json";

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// One attempt, with what only this device needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) attempt: Attempt,
    /// Release to go back to; `None` when there was none before.
    pub(super) from: Option<Name>,
    /// Time after which the attempt has failed, seconds.
    pub(super) timeout: u64,
    /// Number of times that the release was about to become the current one.
    #[serde(default)]
    pub(super) activations: u32,
    /// Number of checks that have begun.
    #[serde(default)]
    pub(super) checks: u32,
    /// Why the device is going back to `from`; set before it does.
    #[serde(default)]
    pub(super) going_back: Option<FailureNote>,
    /// Whether the failure of the release is counted among the device's.
    #[serde(default)]
    pub(super) counted: bool,
}

impl Entry {
    /// Begins an entry. `from` is the release to go back to, `timeout` in seconds.
    pub(super) fn new(attempt: Attempt, from: Option<Name>, timeout: u64) -> Self {
        Self { attempt, from, timeout, activations: 0, checks: 0, going_back: None, counted: false }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    #[serde(default)]
    entries: Vec<Entry>,
    /// Number of the last report.
    #[serde(default)]
    sequence: u64,
}

/// Whether a failure of this kind is the release's, so that no rollout offers it to the device
/// again. Others may pass: an attempt by another rollout, or later by the channel, is a new one.
fn blames_the_release(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Integrity | FailureKind::Activation | FailureKind::Health => true,
        FailureKind::Network
        | FailureKind::Refused
        | FailureKind::Storage
        | FailureKind::Timeout
        | FailureKind::Other => false,
    }
}

/// The journal of a device.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    contents: Contents,
}

impl Journal {
    /// Reads the journal in `data`. A damaged file counts as empty: the link `current` says what
    /// runs, and the release is installed and checked again where it is not.
    pub(super) fn load(data: &Path) -> Self {
        let path = data.join(FILE_NAME);
        let contents = match side::read(&path, FILE_BYTES_MAX) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(error = %Chain(&error), "{FILE_NAME} is damaged; it begins anew");
                Contents::default()
            }),
            Ok(None) => Contents::default(),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "{FILE_NAME} cannot be read; it begins anew");
                Contents::default()
            }
        };
        Self { path, contents }
    }

    /// Writes the journal durably.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn store(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&self.contents).map_err(io::Error::other)?;
        side::write_atomic(&self.path, &text).map_err(io::Error::other)
    }

    /// All attempts, the newest first.
    pub(super) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.contents.entries.iter().map(|entry| &entry.attempt)
    }

    /// The newest attempt.
    pub(super) fn last(&self) -> Option<&Entry> {
        self.contents.entries.first()
    }

    /// The attempt that has not ended.
    pub(super) fn under_way(&self) -> Option<&Entry> {
        self.contents.entries.first().filter(|entry| !entry.attempt.state.has_ended())
    }

    /// Changes the attempt that has not ended, and writes the journal.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        if let Some(entry) = self.contents.entries.first_mut().filter(|e| !e.attempt.state.has_ended()) {
            change(entry);
            entry.attempt.seconds = unix_now().saturating_sub(entry.attempt.began);
        }
        self.store()
    }

    /// Forgets the attempt that has not ended: the device was told not to go on.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        if self.under_way().is_some() {
            self.contents.entries.remove(0);
            self.store()?;
        }
        Ok(())
    }

    /// Number of attempts at a release by a rollout, or without one, that failed by reasons which
    /// are not the release's.
    pub(super) fn passing_failures(&self, version: &Name, rollout: Option<RolloutId>) -> u32 {
        let is_one = |entry: &&Entry| {
            let Attempt { version: tried, rollout: by, state, failure, .. } = &entry.attempt;
            let is_passing = failure.as_ref().is_some_and(|failure| !blames_the_release(failure.kind));
            tried == version && *by == rollout && *state == AttemptState::Failed && is_passing
        };
        u32::try_from(self.contents.entries.iter().filter(is_one).count()).unwrap_or(u32::MAX)
    }

    /// Counts failures of releases that are not counted yet among the device's.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn settle(&mut self, failures: &mut Failures, data: &Path) -> io::Result<()> {
        let mut changed = false;
        for entry in self.contents.entries.iter_mut().filter(|entry| !entry.counted) {
            let failure = entry.attempt.failure.as_ref();
            if failure.is_some_and(|failure| blames_the_release(failure.kind)) {
                failures.count(&entry.attempt.product, &entry.attempt.version);
                entry.counted = true;
                changed = true;
            }
        }
        if changed {
            failures.store(data)?;
            self.store()?;
        }
        Ok(())
    }

    /// Begins an attempt; one that has not ended, at another release, is forgotten.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn begin(&mut self, entry: Entry) -> io::Result<()> {
        if self.under_way().is_some() {
            self.contents.entries.remove(0);
        }
        self.contents.entries.insert(0, entry);
        self.contents.entries.truncate(REPORT_ATTEMPTS_MAX);
        self.store()
    }

    /// Returns the number of the next report. It grows also when the clock was set back.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn next_sequence(&mut self) -> io::Result<u64> {
        let by_clock = unix_now().saturating_mul(1000);
        self.contents.sequence = by_clock.max(self.contents.sequence.saturating_add(1));
        self.store()?;
        Ok(self.contents.sequence)
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::report::SourceBytes;

    use super::*;

    fn entry(version: &str, state: AttemptState) -> Entry {
        let attempt = Attempt {
            rollout: None,
            product: "os".parse().expect("a name"),
            version: version.parse().expect("a name"),
            number: 1,
            state,
            failure: None,
            began: 0,
            seconds: 0,
            bytes: SourceBytes::default(),
        };
        Entry::new(attempt, None, 60)
    }

    #[test]
    fn the_attempt_under_way_survives_and_ends_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut journal = Journal::load(dir.path());
        assert!(journal.under_way().is_none());
        journal.begin(entry("1", AttemptState::Fetching)).expect("written");
        journal.begin(entry("2", AttemptState::Fetching)).expect("written");
        assert_eq!(journal.attempts().count(), 1, "the attempt at 1 never ended");
        journal.change(|entry| entry.attempt.state = AttemptState::Checking).expect("written");
        let mut journal = Journal::load(dir.path());
        let under_way = journal.under_way().expect("under way");
        assert_eq!(under_way.attempt.state, AttemptState::Checking);
        assert!(under_way.attempt.seconds > 1_000_000, "it began in 1970");
        journal.change(|entry| entry.attempt.state = AttemptState::Succeeded).expect("written");
        journal.change(|entry| entry.attempt.state = AttemptState::Failed).expect("written");
        assert!(journal.under_way().is_none());
        assert_eq!(journal.attempts().next().map(|a| a.state), Some(AttemptState::Succeeded));
        for n in 0..20 {
            journal.begin(entry(&n.to_string(), AttemptState::Failed)).expect("written");
        }
        assert_eq!(journal.attempts().count(), REPORT_ATTEMPTS_MAX);
    }

    #[test]
    fn a_failure_of_the_release_is_counted_once_and_others_are_the_rollouts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let failed = |kind| {
            let mut entry = entry("2", AttemptState::Failed);
            entry.attempt.failure = Some(FailureNote::new(kind, ""));
            entry.attempt.rollout = Some(RolloutId([1; 16]));
            entry
        };
        let (mut journal, mut failures) = (Journal::load(dir.path()), Failures::default());
        for kind in [FailureKind::Health, FailureKind::Storage, FailureKind::Timeout] {
            journal.begin(failed(kind)).expect("written");
        }
        for _ in 0..2 {
            journal.settle(&mut failures, dir.path()).expect("written");
        }
        let (os, two) = ("os".parse().expect("a name"), "2".parse().expect("a name"));
        assert_eq!(failures.of(&os, &two), 1);
        assert_eq!(super::super::failures::load(dir.path()), failures);
        assert_eq!(journal.passing_failures(&two, Some(RolloutId([1; 16]))), 2);
        assert_eq!(journal.passing_failures(&two, Some(RolloutId([2; 16]))), 0);
        assert_eq!(journal.passing_failures(&two, None), 0);
        journal.begin(entry("3", AttemptState::Fetching)).expect("written");
        journal.forget().expect("written");
        journal.forget().expect("nothing to forget");
        assert_eq!(Journal::load(dir.path()).attempts().count(), 3);
    }

    #[test]
    fn numbers_of_reports_grow_across_restarts_and_a_damaged_file_begins_anew() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut journal = Journal::load(dir.path());
        let first = journal.next_sequence().expect("written");
        journal.contents.sequence = u64::MAX / 2;
        journal.store().expect("written");
        let later = Journal::load(dir.path()).next_sequence().expect("written");
        assert!(first < later && later == u64::MAX / 2 + 1);
        std::fs::write(dir.path().join(FILE_NAME), "[1").expect("write");
        assert!(Journal::load(dir.path()).under_way().is_none());
    }
}
