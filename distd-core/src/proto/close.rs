//! Codes that travel in RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE (docs/protocol.md, "Close codes").

use std::fmt;

/// Why a stream or connection was ended. Never renumbered; unknown codes read as [`CloseCode::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Done, nothing wrong.
    Done,
    /// The peer broke the protocol.
    Protocol,
    /// The manifest is not known here.
    NoManifest,
    /// The peer's certificate does not allow this.
    Unauthorised,
    /// A chunk or node did not match its hash.
    IntegrityFailed,
    /// No version in common.
    Version,
    /// Too busy; try later or elsewhere.
    Busy,
    /// No progress for too long.
    Stalled,
    /// The other side withdrew the request (RFC 7574 CANCEL).
    Cancelled,
    /// This side failed.
    Internal,
    /// A code of a later version.
    Unknown(u64),
}

impl CloseCode {
    /// The number on the wire.
    pub fn code(self) -> u64 {
        match self {
            Self::Done => 0,
            Self::Protocol => 1,
            Self::NoManifest => 2,
            Self::Unauthorised => 3,
            Self::IntegrityFailed => 4,
            Self::Version => 5,
            Self::Busy => 6,
            Self::Stalled => 7,
            Self::Cancelled => 8,
            Self::Internal => 9,
            Self::Unknown(code) => code,
        }
    }

    /// Reads a number from the wire.
    pub fn from_code(code: u64) -> Self {
        match code {
            0 => Self::Done,
            1 => Self::Protocol,
            2 => Self::NoManifest,
            3 => Self::Unauthorised,
            4 => Self::IntegrityFailed,
            5 => Self::Version,
            6 => Self::Busy,
            7 => Self::Stalled,
            8 => Self::Cancelled,
            9 => Self::Internal,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Protocol => "protocol error",
            Self::NoManifest => "manifest unknown there",
            Self::Unauthorised => "not authorised",
            Self::IntegrityFailed => "wrong bytes",
            Self::Version => "no version in common",
            Self::Busy => "busy",
            Self::Stalled => "no progress",
            Self::Cancelled => "cancelled",
            Self::Internal => "failed there",
            Self::Unknown(code) => return write!(f, "close code {code}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back_as_themselves() {
        for code in 0..32 {
            assert_eq!(CloseCode::from_code(code).code(), code);
        }
    }
}
