//! Reports: what a device runs, and how its attempts at rollouts went (docs/rollouts.md,
//! "Reports").
//!
//! A report states everything that the device has to say, so the newest replaces all others: it
//! may be sent twice, overtaken or lost.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::receipts::RECEIPT_BYTES_MAX;
use super::rollout::{Held, RolloutId};
use crate::ManifestId;
use crate::names::Name;

/// Longest encoded report, bytes.
pub const REPORT_BYTES_MAX: usize = 4 << 10;

/// Most releases in a report.
pub const REPORT_RUNNING_MAX: usize = 8;

/// Most attempts in a report, the newest.
pub const REPORT_ATTEMPTS_MAX: usize = 8;

/// Most receipts in a report, the first ones that wait.
pub const REPORT_RECEIPTS_MAX: usize = 4;

/// Longest text about a fault of the log, bytes.
pub const REPORT_FAULT_MAX: usize = 100;

/// Longest text about a failure, bytes.
pub const REPORT_DETAIL_MAX: usize = 200;

/// State of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AttemptState {
    /// The device gets the release and writes it.
    Fetching,
    /// The release is written and verified, and is made the one that runs.
    Activating,
    /// The release starts with the next boot, and the device restarts or waits for its restart.
    Restarting,
    /// The release runs, and the device checks whether it works.
    Checking,
    /// The release runs and works.
    Succeeded,
    /// The attempt ended before the release ran.
    Failed,
    /// The release ran and did not work; the device went back to the one before.
    RolledBack,
    /// A state that only later releases of distd know.
    #[serde(other)]
    Unknown,
}

impl AttemptState {
    /// Every state that this build knows.
    pub const ALL: [Self; 7] = [
        Self::Fetching,
        Self::Activating,
        Self::Restarting,
        Self::Checking,
        Self::Succeeded,
        Self::Failed,
        Self::RolledBack,
    ];

    /// The state as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Activating => "activating",
            Self::Restarting => "restarting",
            Self::Checking => "checking",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the attempt has ended.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::RolledBack)
    }
}

impl fmt::Display for AttemptState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FailureKind {
    /// No parent gave the release.
    Network,
    /// The realm refused the device, or the release was withdrawn.
    Refused,
    /// Bytes did not match what was signed, or the medium lost them.
    Integrity,
    /// The device could not write: no room, no permission, a broken medium.
    Storage,
    /// The release could not be made the one that runs.
    Activation,
    /// The boot loader went back to the release before: the release did not start, or the system
    /// restarted before it was found to work.
    Boot,
    /// The release ran and its check failed or did not end in time.
    Health,
    /// The attempt took longer than the rollout allows.
    Timeout,
    /// Somebody at the device took it back from the release.
    Operator,
    /// A kind that only later releases of distd know.
    #[serde(other)]
    Other,
}

impl FailureKind {
    /// The kind as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Refused => "refused",
            Self::Integrity => "integrity",
            Self::Storage => "storage",
            Self::Activation => "activation",
            Self::Boot => "boot",
            Self::Health => "health",
            Self::Timeout => "timeout",
            Self::Operator => "operator",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Failure of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureNote {
    /// Its kind.
    pub kind: FailureKind,
    /// Text for an operator, at most [`REPORT_DETAIL_MAX`] bytes.
    pub detail: String,
}

/// Bytes of an attempt by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBytes {
    /// Bytes of the artifact that the device had.
    pub disk: u64,
    /// Bytes received from neighbours.
    pub neighbours: u64,
    /// Bytes received from relays.
    pub relay: u64,
    /// Bytes received from origins.
    pub origin: u64,
}

/// One attempt at a rollout, or at a change of the channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The rollout; `None` for a release that the channel itself pointed to.
    pub rollout: Option<RolloutId>,
    /// Product.
    pub product: Name,
    /// Version that the device tried to install.
    pub version: Name,
    /// Number of the attempt on this device, from 1.
    pub number: u32,
    /// State.
    pub state: AttemptState,
    /// Failure, when the state is failed or rolled back.
    pub failure: Option<FailureNote>,
    /// Time of its begin by the device's clock, unix seconds.
    pub began: u64,
    /// Time since, to its end, seconds.
    pub seconds: u64,
    /// Bytes by source.
    pub bytes: SourceBytes,
}

/// Release that runs on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Product.
    pub product: Name,
    /// Channel that the device follows.
    pub channel: Name,
    /// Version; `None` when the device has none yet.
    pub version: Option<Name>,
    /// Manifest of that release.
    pub manifest: Option<ManifestId>,
    /// Reason why the device does not install the release of the channel's rollout.
    pub held: Option<Held>,
    /// Version of that release; `None` without a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_from: Option<Name>,
}

/// Head of the log of receipts that a device keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSeen {
    /// Number of entries.
    pub size: u64,
    /// Time at which the origin signed it, unix seconds.
    pub at: u64,
}

/// A device's part in the log of receipts (docs/receipts.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// Receipts that are not known to be in the log, the first one first, each with its signature
    /// before it; at most [`REPORT_RECEIPTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<ByteBuf>,
    /// Newest head that the device has verified; `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadSeen>,
    /// Fault of the log that the device found, in words; empty without one. At most
    /// [`REPORT_FAULT_MAX`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fault: String,
    /// Number of receipts of the device that the log hides.
    #[serde(default)]
    pub hidden: u32,
}

impl LogReport {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Report of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Number of the report. A later report of the device has a higher one.
    pub sequence: u64,
    /// Time by the device's clock, unix seconds.
    pub at: u64,
    /// Id of the system's boot, 16 bytes.
    #[serde(with = "serde_bytes")]
    pub boot: Vec<u8>,
    /// Releases that run.
    pub running: Vec<Running>,
    /// Attempts, the newest first.
    pub attempts: Vec<Attempt>,
    /// Receipts, and what the device knows of their log.
    #[serde(default, skip_serializing_if = "LogReport::is_empty")]
    pub log: LogReport,
}

/// Reason why bytes are no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The report, a list or a text in it is too long.
    #[error("the report is larger than allowed")]
    TooLarge,
    /// The bytes are not msgpack of this shape.
    #[error("the report is malformed")]
    Malformed(#[source] rmp_serde::decode::Error),
}

impl Report {
    /// Encodes the report as msgpack with names of fields.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("names and numbers always encode")
    }

    /// Decodes bytes from the network or a file, within the bounds above.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() > REPORT_BYTES_MAX {
            return Err(ReportError::TooLarge);
        }
        let mut report: Self = rmp_serde::from_slice(bytes).map_err(ReportError::Malformed)?;
        let is_long = |note: &FailureNote| note.detail.len() > REPORT_DETAIL_MAX;
        // Control characters of a program's output would be in the way of terminals and databases.
        for note in report.attempts.iter_mut().filter_map(|attempt| attempt.failure.as_mut()) {
            note.detail = printable(&note.detail);
        }
        report.log.fault = printable(&report.log.fault);
        let too_large = report.running.len() > REPORT_RUNNING_MAX
            || report.attempts.len() > REPORT_ATTEMPTS_MAX
            || report.boot.len() != 16
            || report.log.receipts.len() > REPORT_RECEIPTS_MAX
            || report.log.receipts.iter().any(|bytes| bytes.len() > 64 + RECEIPT_BYTES_MAX)
            || report.log.fault.len() > REPORT_FAULT_MAX
            || report.attempts.iter().filter_map(|attempt| attempt.failure.as_ref()).any(is_long);
        if too_large { Err(ReportError::TooLarge) } else { Ok(report) }
    }
}

/// Number of a report; its other fields may be of a later form.
#[derive(Deserialize)]
struct Head {
    sequence: u64,
}

/// Returns the number of an encoded report, for a node that only passes it on.
///
/// # Errors
/// [`ReportError`].
pub fn sequence_of(bytes: &[u8]) -> Result<u64, ReportError> {
    if bytes.len() > REPORT_BYTES_MAX {
        return Err(ReportError::TooLarge);
    }
    rmp_serde::from_slice::<Head>(bytes).map(|head| head.sequence).map_err(ReportError::Malformed)
}

/// Returns the text with blanks in place of control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl FailureNote {
    /// Makes a note whose text is cut to [`REPORT_DETAIL_MAX`] bytes and has no control characters.
    pub fn new(kind: FailureKind, detail: &str) -> Self {
        let detail = printable(detail);
        let end = (0..=REPORT_DETAIL_MAX.min(detail.len())).rev().find(|at| detail.is_char_boundary(*at));
        Self { kind, detail: detail[..end.unwrap_or(0)].to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            sequence: 7,
            at: 1000,
            boot: vec![1; 16],
            running: vec![Running {
                product: "os".parse().expect("a name"),
                channel: "stable".parse().expect("a name"),
                version: Some("1".parse().expect("a name")),
                manifest: Some(ManifestId([2; 32])),
                held: Some(Held::Wave { wave: 2, of: 4 }),
                held_from: Some("2".parse().expect("a name")),
            }],
            attempts: vec![Attempt {
                rollout: Some(RolloutId([3; 16])),
                product: "os".parse().expect("a name"),
                version: "2".parse().expect("a name"),
                number: 1,
                state: AttemptState::RolledBack,
                failure: Some(FailureNote::new(FailureKind::Health, "exit 1")),
                began: 900,
                seconds: 20,
                bytes: SourceBytes { disk: 1, neighbours: 2, relay: 3, origin: 4 },
            }],
            log: LogReport {
                receipts: vec![ByteBuf::from(vec![1; 170])],
                head: Some(HeadSeen { size: 9, at: 10 }),
                fault: String::new(),
                hidden: 0,
            },
        }
    }

    #[test]
    fn a_report_survives_its_bytes_and_is_small() {
        let bytes = report().encode();
        assert_eq!(Report::decode(&bytes).expect("a report"), report());
        assert!(bytes.len() < 700, "{}", bytes.len());
    }

    #[test]
    fn what_is_too_large_or_malformed_is_refused() {
        let mut many = report();
        many.attempts = vec![many.attempts[0].clone(); REPORT_ATTEMPTS_MAX + 1];
        assert!(matches!(Report::decode(&many.encode()), Err(ReportError::TooLarge)));
        let mut long = report();
        long.attempts[0].failure =
            Some(FailureNote { kind: FailureKind::Health, detail: "x".repeat(REPORT_DETAIL_MAX + 1) });
        assert!(matches!(Report::decode(&long.encode()), Err(ReportError::TooLarge)));
        let short = Report { boot: vec![1; 15], ..report() };
        assert!(matches!(Report::decode(&short.encode()), Err(ReportError::TooLarge)));
        let mut full = report();
        full.log.receipts = vec![ByteBuf::new(); REPORT_RECEIPTS_MAX + 1];
        assert!(matches!(Report::decode(&full.encode()), Err(ReportError::TooLarge)));
        full.log = LogReport { fault: "x".repeat(REPORT_FAULT_MAX + 1), ..LogReport::default() };
        assert!(matches!(Report::decode(&full.encode()), Err(ReportError::TooLarge)));
        assert!(matches!(Report::decode(&[0xc1]), Err(ReportError::Malformed(_))));
        assert!(matches!(Report::decode(&vec![0; REPORT_BYTES_MAX + 1]), Err(ReportError::TooLarge)));
        assert_eq!(FailureNote::new(FailureKind::Health, &"ä".repeat(150)).detail.len(), 200);
        let mut nul = report();
        nul.attempts[0].failure = Some(FailureNote { kind: FailureKind::Health, detail: "a\0b\n".into() });
        let read = Report::decode(&nul.encode()).expect("a report");
        assert_eq!(read.attempts[0].failure.as_ref().map(|note| note.detail.as_str()), Some("a b "));
        assert_eq!(FailureNote::new(FailureKind::Health, "a\0b").detail, "a b");
    }

    #[test]
    fn words_of_later_releases_lose_no_report() {
        #[derive(Serialize)]
        struct Later {
            sequence: u64,
            running: &'static str,
        }
        let later =
            rmp_serde::to_vec_named(&Later { sequence: 9, running: "a map by then" }).expect("encodes");
        assert_eq!(sequence_of(&later).expect("a number"), 9);
        assert!(Report::decode(&later).is_err() && sequence_of(b"x").is_err());
        let json = serde_json::to_string(&report()).expect("JSON");
        let later = json.replace("rolled_back", "deferred").replace("\"wave\"", "\"battery\"");
        let read: Report = serde_json::from_str(&later).expect("a report");
        assert_eq!(
            (read.attempts[0].state, read.running[0].held),
            (AttemptState::Unknown, Some(Held::Unknown))
        );
    }

    #[test]
    fn the_largest_report_that_a_device_makes_fits() {
        let mut full = report();
        let name: Name = "n".repeat(100).parse().expect("a name");
        full.running[0] = Running { product: name.clone(), ..full.running[0].clone() };
        let attempt = Attempt {
            product: name.clone(),
            version: name,
            failure: Some(FailureNote::new(FailureKind::Health, &"x".repeat(REPORT_DETAIL_MAX))),
            ..full.attempts[0].clone()
        };
        full.attempts = vec![attempt; 2];
        full.log.receipts = vec![ByteBuf::from(vec![0; 64 + RECEIPT_BYTES_MAX]); REPORT_RECEIPTS_MAX];
        assert!(full.encode().len() <= REPORT_BYTES_MAX, "{}", full.encode().len());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_report_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = Report::decode(&bytes);
        }
    }
}
