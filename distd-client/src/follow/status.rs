//! State of a device for whoever stands before it: a file that the agent writes at each look and
//! each step, and that `distd status` and `distd why` read. It needs no running agent.

use std::io;
use std::path::Path;

use distd_core::error::Chain;
use distd_core::fleet::report::{Attempt, AttemptState};
use distd_core::fleet::rollout::Held;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};

use crate::disk::side;

/// File in the state directory.
const FILE_NAME: &str = "status.json";

/// Largest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// State of a device that follows a channel, as its agent saw it last. Times are unix seconds by
/// the device's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Product.
    pub product: Name,
    /// Channel that the device follows.
    pub channel: Name,
    /// Version that runs; `None` while there is none.
    pub version: Option<Name>,
    /// Slot that runs; `None` in a directory.
    pub slot: Option<Name>,
    /// Version that the device is to run, by its last look.
    pub wanted: Option<Name>,
    /// Why it does not install the release of the rollout.
    pub held: Option<Held>,
    /// Its newest attempt.
    pub attempt: Option<Attempt>,
    /// Whether it is about to leave the release of that attempt.
    #[serde(default)]
    pub going_back: bool,
    /// Time of the last look at the channel that succeeded.
    pub looked: Option<u64>,
    /// Why the last look failed; `None` when it did not.
    pub error: Option<String>,
    /// Time at which the agent wrote this.
    pub written: u64,
}

impl Status {
    /// The attempt that has not ended.
    pub fn under_way(&self) -> Option<&Attempt> {
        self.attempt.as_ref().filter(|attempt| !attempt.state.has_ended())
    }

    /// Why the device runs what it runs, in one sentence.
    pub fn why(&self) -> String {
        let runs = self.version.as_ref().map_or("no release", Name::as_str);
        let head = format!("{}:{}: this device runs {runs}", self.product, self.channel);
        if let Some(attempt) = self.under_way() {
            let doing = match attempt.state {
                _ if self.going_back => "it goes back from",
                AttemptState::Restarting => "it restarts into",
                AttemptState::Checking => "it checks",
                AttemptState::Activating => "it activates",
                _ => "it fetches",
            };
            return format!("{head}; {doing} {}", attempt.version);
        }
        if let Some(error) = &self.error {
            return format!("{head}; its last look at the channel failed: {error}");
        }
        match (&self.held, &self.wanted) {
            (Some(held), _) => format!("{head}: {held}"),
            (None, Some(wanted)) if self.version.as_ref() == Some(wanted) => {
                format!("{head}, the release of its channel")
            }
            (None, Some(wanted)) => match self.attempt.as_ref().filter(|at| at.version == *wanted) {
                Some(Attempt { failure: Some(failure), .. }) => {
                    format!(
                        "{head}; {wanted} failed here ({}: {}), and it waits",
                        failure.kind, failure.detail
                    )
                }
                _ => format!("{head}, and is to run {wanted}"),
            },
            (None, None) => format!("{head}, and has not seen its channel yet"),
        }
    }
}

/// Writes the state of the device whose state directory is `data`.
pub(super) fn write(status: &Status, data: &Path) {
    if let Err(error) = side::write_json(&data.join(FILE_NAME), status) {
        tracing::warn!(error = %Chain(&error), "{FILE_NAME} is not written; distd status tells an earlier state");
    }
}

/// Reads the state of the device whose state directory is `data`; `None` when its agent has written
/// none.
///
/// # Errors
/// When the file cannot be read, or is damaged.
pub fn read_status(data: &Path) -> io::Result<Option<Status>> {
    let Some(bytes) = side::read(&data.join(FILE_NAME), FILE_BYTES_MAX).map_err(io::Error::other)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::report::{FailureKind, FailureNote, SourceBytes};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn attempt(state: AttemptState) -> Attempt {
        Attempt {
            rollout: None,
            product: name("os"),
            version: name("2"),
            number: 1,
            state,
            failure: (state == AttemptState::Failed)
                .then(|| FailureNote::new(FailureKind::Storage, "no room")),
            began: 1,
            seconds: 2,
            bytes: SourceBytes::default(),
        }
    }

    #[test]
    fn each_state_has_its_sentence_and_survives_its_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read_status(dir.path()).expect("reads"), None);
        let status = Status {
            product: name("os"),
            channel: name("stable"),
            version: Some(name("1")),
            slot: Some(name("a")),
            wanted: Some(name("1")),
            held: None,
            attempt: None,
            going_back: false,
            looked: Some(3),
            error: None,
            written: 4,
        };
        write(&status, dir.path());
        assert_eq!(read_status(dir.path()).expect("reads"), Some(status.clone()));
        let head = "os:stable: this device runs 1";
        assert_eq!(status.why(), format!("{head}, the release of its channel"));
        let held = Status { held: Some(Held::Paused), ..status.clone() };
        assert_eq!(held.why(), format!("{head}: the rollout is paused"));
        let new = Status { wanted: Some(name("2")), ..status.clone() };
        assert_eq!(new.why(), format!("{head}, and is to run 2"));
        let checking = Status { attempt: Some(attempt(AttemptState::Checking)), ..new.clone() };
        assert_eq!(checking.why(), format!("{head}; it checks 2"));
        let back = Status { going_back: true, ..checking.clone() };
        assert_eq!(back.why(), format!("{head}; it goes back from 2"));
        let failed = Status { attempt: Some(attempt(AttemptState::Failed)), ..new };
        assert_eq!(failed.why(), format!("{head}; 2 failed here (storage: no room), and it waits"));
        let away = Status { error: Some("no parent".into()), ..status.clone() };
        assert_eq!(away.why(), format!("{head}; its last look at the channel failed: no parent"));
        let fresh = Status { version: None, wanted: None, ..status };
        assert_eq!(fresh.why(), "os:stable: this device runs no release, and has not seen its channel yet");
        std::fs::write(dir.path().join(FILE_NAME), "{").expect("write");
        assert!(read_status(dir.path()).is_err());
    }
}
