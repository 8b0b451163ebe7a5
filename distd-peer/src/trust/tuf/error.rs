//! What can be wrong with metadata, and what to do about it.

use tough::schema::RoleType;

use super::memory::{FetchError, SourceError};
use super::wire::WireError;
use crate::trust::files::FileError;

/// Why a target was not resolved. Nothing unverified is ever returned or kept.
#[derive(Debug, thiserror::Error)]
pub enum TufError {
    /// Signed metadata ran out: a freeze attack, an origin that is down, or a wrong clock.
    #[error(
        "the {which} metadata has expired; check this machine's clock, then whether the parent reaches the \
         origin and the origin runs"
    )]
    Expired {
        /// The role.
        which: String,
    },
    /// Older than what has been seen before.
    #[error(
        "the parent offers older {which} metadata than this device has seen; use another parent and tell the origin's operator"
    )]
    RolledBack {
        /// The role.
        which: String,
        /// The cause.
        #[source]
        cause: Box<tough::error::Error>,
    },
    /// Not signed by the keys that must sign it.
    #[error(
        "the {which} metadata is not signed by the realm's keys; use another parent and tell the origin's operator"
    )]
    BadSignature {
        /// The role.
        which: String,
        /// The cause.
        #[source]
        cause: Box<tough::error::Error>,
    },
    /// Files that do not belong together, or a file with changed bytes.
    #[error(
        "the parent offers metadata or a target that differs from what was signed; try again, then use another parent"
    )]
    Mismatch(#[source] Box<tough::error::Error>),
    /// Not the JSON it should be.
    #[error("the parent offers malformed metadata; try again, then use another parent")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file the metadata names is not there.
    #[error("the parent lacks {name}; try again, then use another parent")]
    Missing {
        /// Its name or URL.
        name: String,
    },
    /// The realm has no such release or channel.
    #[error("the realm has no {0}; see what there is with: distd release ls, distd channel show")]
    UnknownTarget(String),
    /// A target whose size or contents no distd makes.
    #[error("{target} is signed but unusable; publish it again with a matching version of distd")]
    BadTarget {
        /// The target.
        target: String,
        /// The cause, where there is one.
        #[source]
        cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The clock is behind the time at which the origin signed what it now offers.
    #[error(
        "this machine's clock is behind: it says {}, and the origin signed this metadata at {}; set the clock, \
         then try again",
        utc(*now),
        utc(*signed_at)
    )]
    ClockBehind {
        /// This machine's clock, unix seconds.
        now: u64,
        /// The origin's at the signing, unix seconds.
        signed_at: u64,
    },
    /// The clock was set back while an update went on.
    #[error("this machine's clock was set back in the middle of the update; try again")]
    ClockStepped(#[source] Box<tough::error::Error>),
    /// The source did not answer.
    #[error("no metadata could be fetched; check the parent's address and the network")]
    Source(#[source] SourceError),
    /// The source answered with something else.
    #[error("the parent's metadata answer is unusable; use another parent")]
    Answer(#[from] WireError),
    /// The trusted state could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The trusted state could not be locked, or `tough` could not use its directory.
    #[error("the directory of trusted metadata could not be used; check the disk and its permissions")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A time as an operator reads it, UTC.
fn utc(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{unix_seconds} s"), |t| t.to_string())
}

impl From<FetchError> for TufError {
    fn from(e: FetchError) -> Self {
        match e {
            FetchError::Source(cause) => Self::Source(cause),
            FetchError::Wire(cause) => Self::Answer(cause),
        }
    }
}

impl From<tough::error::Error> for TufError {
    fn from(e: tough::error::Error) -> Self {
        use tough::error::Error as E;
        let role = |r: &RoleType| r.to_string();
        let cause = Box::new(e);
        match &*cause {
            E::ExpiredMetadata { role: r, .. } => Self::Expired { which: role(r) },
            E::OlderMetadata { role: r, .. } => Self::RolledBack { which: role(r), cause },
            E::OlderSnapshotInTimestamp { .. } => Self::RolledBack { which: "snapshot".into(), cause },
            E::SnapshotRoleMissing { role: r, .. } | E::SnapshotRoleRollback { role: r, .. } => {
                Self::RolledBack { which: r.trim_end_matches(".json").to_owned(), cause }
            }
            E::VerifyMetadata { role: r, .. } => Self::BadSignature { which: role(r), cause },
            E::VerifyTrustedMetadata { .. } => Self::BadSignature { which: "trusted root".into(), cause },
            E::VerifyRoleMetadata { role: r, .. } => Self::BadSignature { which: r.clone(), cause },
            E::SystemTimeSteppedBackward { .. } => Self::ClockStepped(cause),
            E::ParseMetadata { .. }
            | E::ParseTrustedMetadata { .. }
            | E::TimestampMetaLength { .. }
            | E::MissingSnapshotMeta { .. }
            | E::SnapshotTargetsMetaMissing { .. }
            | E::MetaMissing { .. }
            | E::RoleNotInMeta { .. }
            | E::DelegatedRolesNotConsistent { .. }
            | E::MaxUpdatesExceeded { .. }
            | E::InvalidPath { .. } => Self::Malformed(cause),
            E::Transport { url, source, .. } => {
                // A file that is there but too long or of another hash comes as a cause in the transport error.
                let differs = std::error::Error::source(source).is_some();
                if differs { Self::Mismatch(cause) } else { Self::Missing { name: url.path().to_owned() } }
            }
            E::VersionMismatch { .. } | E::HashMismatch { .. } | E::MaxSizeExceeded { .. } => {
                Self::Mismatch(cause)
            }
            E::DatastoreInit { .. }
            | E::DatastoreCreate { .. }
            | E::DatastoreOpen { .. }
            | E::DatastoreRemove { .. }
            | E::DatastoreSerialize { .. } => Self::Store(cause),
            _ => Self::Malformed(cause),
        }
    }
}

impl TufError {
    /// Whether a damaged cache could be the reason, so that fetching everything anew may help.
    pub(super) fn may_be_cache(&self) -> bool {
        matches!(
            self,
            Self::RolledBack { .. }
                | Self::BadSignature { .. }
                | Self::Mismatch(_)
                | Self::Malformed(_)
                | Self::Missing { .. }
        )
    }
}
