//! The file `DIR/follow.json`: attempts at releases, the newest first. Each step of an attempt is
//! written before it is taken, so that a process that starts after a crash knows where to go on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use distd_core::fleet::report::{Attempt, AttemptState, FailureKind, FailureNote};
use distd_core::fleet::rollout::{ATTEMPTS_MAX, RolloutId};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::{Deserialize, Serialize};

use super::failures::Failures;
use crate::disk::side;

/// Name of the file in the state directory.
const FILE_NAME: &str = "follow.json";

/// Most attempts that are kept: twice as many as a rollout may allow.
const ENTRIES_MAX: usize = 2 * ATTEMPTS_MAX as usize;

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// One attempt, with what only this device needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) attempt: Attempt,
    /// Rollout that led to the attempt, that of a version which it requires included.
    #[serde(default)]
    pub(super) led_by: Option<RolloutId>,
    /// Wave of the device in it, from 0.
    #[serde(default)]
    pub(super) wave: Option<usize>,
    /// Release to go back to; `None` when there was none before.
    pub(super) from: Option<Name>,
    /// Time after which the attempt has failed, seconds.
    pub(super) timeout: u64,
    /// Number of times that the release was about to become the current one.
    #[serde(default)]
    pub(super) activations: u32,
    /// Number of times that the system was to restart into the release.
    #[serde(default)]
    pub(super) starts: u32,
    /// Slot to which the release is written; `None` in a directory.
    #[serde(default)]
    pub(super) slot: Option<Name>,
    /// Boot in which the release was ordered to start, or the device to leave it, 32 hexadecimal
    /// digits; `None` before.
    #[serde(default)]
    pub(super) boot: Option<String>,
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
        Self {
            attempt,
            led_by: None,
            wave: None,
            from,
            timeout,
            activations: 0,
            starts: 0,
            slot: None,
            boot: None,
            checks: 0,
            going_back: None,
            counted: false,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
        FailureKind::Integrity
        | FailureKind::Activation
        | FailureKind::Boot
        | FailureKind::Health
        | FailureKind::Operator => true,
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
    /// Reads the journal in `data`. A damaged file counts as empty: the place says what
    /// runs, and the release is installed and checked again where it is not.
    pub(super) fn load(data: &Path) -> Self {
        let path = data.join(FILE_NAME);
        let contents = side::read_json(&path, FILE_BYTES_MAX);
        Self { path, contents }
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
        let mut contents = self.contents.clone();
        if let Some(entry) = contents.entries.first_mut().filter(|e| !e.attempt.state.has_ended()) {
            change(entry);
            entry.attempt.seconds = unix_now().saturating_sub(entry.attempt.began);
        }
        self.replace(contents)
    }

    /// Forgets the attempt that has not ended: the device was told not to go on.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        if self.under_way().is_some() {
            let mut contents = self.contents.clone();
            contents.entries.remove(0);
            self.replace(contents)?;
        }
        Ok(())
    }

    /// Number of attempts by each rollout that failed for reasons which are not the release's.
    pub(super) fn passing_failures(&self) -> BTreeMap<RolloutId, u32> {
        let mut counted = BTreeMap::new();
        for Attempt { rollout, failure, .. } in self.contents.entries.iter().map(|entry| &entry.attempt) {
            let is_passing = failure.as_ref().is_some_and(|failure| !blames_the_release(failure.kind));
            if let Some(id) = rollout.filter(|_| is_passing) {
                *counted.entry(id).or_default() += 1;
            }
        }
        counted
    }

    /// Highest number of an attempt by a rollout; 0 without one.
    pub(super) fn last_number(&self, rollout: Option<RolloutId>) -> u32 {
        let of = self.contents.entries.iter().map(|entry| &entry.attempt).filter(|a| a.rollout == rollout);
        of.map(|attempt| attempt.number).max().unwrap_or(0)
    }

    /// Release that ran before the newest attempt at `version` that succeeded.
    pub(super) fn before(&self, version: &Name) -> Option<&Name> {
        let succeeded = |entry: &&Entry| {
            entry.attempt.version == *version && entry.attempt.state == AttemptState::Succeeded
        };
        self.contents.entries.iter().find(succeeded)?.from.as_ref()
    }

    /// Counts failures of releases that are not counted yet among the device's.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn settle(&mut self, failures: &mut Failures, data: &Path) -> io::Result<()> {
        let mut contents = self.contents.clone();
        let (mut counted, mut taken_back) = (false, false);
        for entry in contents.entries.iter_mut().filter(|entry| !entry.counted) {
            let Attempt { product, version, failure, .. } = &entry.attempt;
            match failure.as_ref().map(|failure| failure.kind).filter(|kind| blames_the_release(*kind)) {
                None => continue,
                Some(FailureKind::Operator) => {
                    failures.take_back(product, version);
                    taken_back = true;
                }
                Some(_) => failures.count(product, version),
            }
            (entry.counted, counted) = (true, true);
        }
        if taken_back {
            // Cut off in between, the decision of a person holds, and is noted again.
            failures.store(data)?;
        }
        if counted {
            // Cut off in between, the release is tried once more, and not once less.
            self.replace(contents)?;
            failures.store(data)?;
        }
        Ok(())
    }

    /// Begins an attempt; one that has not ended, at another release, is forgotten.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn begin(&mut self, entry: Entry) -> io::Result<()> {
        let mut contents = self.contents.clone();
        if self.under_way().is_some() {
            contents.entries.remove(0);
        }
        contents.entries.insert(0, entry);
        contents.entries.truncate(ENTRIES_MAX);
        self.replace(contents)
    }

    /// Writes other contents durably. When that fails, those so far stay.
    fn replace(&mut self, contents: Contents) -> io::Result<()> {
        side::write_json(&self.path, &contents)?;
        self.contents = contents;
        Ok(())
    }

    /// Returns the number of the next report. It grows also when the clock was set back.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn next_sequence(&mut self) -> io::Result<u64> {
        let by_clock = unix_now().saturating_mul(1000);
        let sequence = by_clock.max(self.contents.sequence.saturating_add(1));
        self.replace(Contents { sequence, ..self.contents.clone() })?;
        Ok(sequence)
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
        for n in 0..50 {
            journal.begin(entry(&n.to_string(), AttemptState::Failed)).expect("written");
        }
        assert_eq!(journal.attempts().count(), ENTRIES_MAX);
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
        assert_eq!(journal.passing_failures(), [(RolloutId([1; 16]), 2)].into());
        assert_eq!((journal.last_number(Some(RolloutId([1; 16]))), journal.last_number(None)), (1, 0));
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
        let ahead = Contents { sequence: u64::MAX / 2, ..journal.contents.clone() };
        journal.replace(ahead).expect("written");
        let later = Journal::load(dir.path()).next_sequence().expect("written");
        assert!(first < later && later == u64::MAX / 2 + 1);
        std::fs::write(dir.path().join(FILE_NAME), "[1").expect("write");
        assert!(Journal::load(dir.path()).under_way().is_none());
    }
}
