//! Errors of metadata resolution, each with what to do about it.

use super::memory::{FetchError, SourceError};
use super::wire::WireError;
use crate::trust::files::FileError;

/// Reason why a target was not resolved. Nothing unverified is ever returned or stored.
#[derive(Debug, thiserror::Error)]
pub enum TufError {
    /// Signed metadata has expired: a freeze attack, an origin that is down, or a wrong clock.
    #[error(
        "the {which} metadata has expired; check this machine's clock, then whether the parent reaches the \
         origin and the origin runs"
    )]
    Expired {
        /// Role of the metadata.
        which: String,
    },
    /// The metadata is older than metadata seen before.
    #[error(
        "the parent offers older {which} metadata than this device has seen; use another parent and tell the origin's operator"
    )]
    RolledBack {
        /// Role of the metadata.
        which: String,
        /// Version seen before.
        held: u64,
        /// Version offered; 0 for a role that is gone.
        offered: u64,
    },
    /// The metadata is not signed by the keys that must sign it.
    #[error(
        "the {which} metadata is not signed by the realm's keys; use another parent and tell the origin's operator"
    )]
    BadSignature {
        /// Role of the metadata.
        which: String,
        /// Error of the signature check.
        #[source]
        cause: Box<tough::schema::Error>,
    },
    /// Files do not belong together, or a file has changed bytes.
    #[error(
        "the parent offers metadata or a target that differs from what was signed; try again, then use another parent"
    )]
    Mismatch(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file is not the expected JSON.
    #[error("the parent offers malformed metadata; try again, then use another parent")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file that the metadata names is missing.
    #[error("the parent lacks {name}; try again, then use another parent")]
    Missing {
        /// Name or URL of the file.
        name: String,
    },
    /// The realm has no such release or channel.
    #[error("the realm has no {0}; see what there is with: distd release ls, distd channel show")]
    UnknownTarget(String),
    /// A signed target has a size or contents that no distd makes.
    #[error("{target} is signed but unusable; publish it again with a matching version of distd")]
    BadTarget {
        /// Name of the target.
        target: String,
        /// Underlying error, if there is one.
        #[source]
        cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// This machine's clock is more than an hour behind the time at which the origin signed the
    /// offered metadata.
    #[error(
        "this machine's clock is behind: it says {}, and the origin signed this metadata at {}; set the clock, \
         then try again",
        utc(*now),
        utc(*signed_at)
    )]
    ClockBehind {
        /// This machine's clock, unix seconds.
        now: u64,
        /// Origin's clock at the signing, unix seconds.
        signed_at: u64,
    },
    /// The source did not answer.
    #[error("no metadata could be fetched; check the parent's address and the network")]
    Source(#[source] SourceError),
    /// The source's answer does not decode.
    #[error("the parent's metadata answer is unusable; use another parent")]
    Answer(#[from] WireError),
    /// The trusted state could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The trusted state could not be locked.
    #[error("the directory of trusted metadata could not be used; check the disk and its permissions")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Formats a time for operators, in UTC.
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

impl TufError {
    /// Whether a damaged cache could be the cause, so that fetching everything anew may help.
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
