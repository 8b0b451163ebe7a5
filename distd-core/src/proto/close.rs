//! Codes that travel in RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE (docs/protocol.md, "Close
//! codes").

use std::fmt;

/// Reason why a stream or connection ended. Numbers never change; unknown codes read as
/// [`CloseCode::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// The work is done and nothing is wrong.
    Done,
    /// The peer broke the protocol.
    Protocol,
    /// The sender does not know the manifest.
    NoManifest,
    /// The peer's certificate does not allow this.
    Unauthorised,
    /// A chunk or node did not match its hash.
    IntegrityFailed,
    /// The two sides have no version in common.
    Version,
    /// The sender is too busy; try later or elsewhere.
    Busy,
    /// The peer made no progress for too long.
    Stalled,
    /// The sender withdrew its request (RFC 7574 CANCEL).
    Cancelled,
    /// The sender failed.
    Internal,
    /// A code of a later version.
    Unknown(u64),
}

impl CloseCode {
    /// Returns the number on the wire.
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

    /// Returns the code with this number.
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
            Self::NoManifest => "manifest not known",
            Self::Unauthorised => "not authorised",
            Self::IntegrityFailed => "bytes did not match their hash",
            Self::Version => "no version in common",
            Self::Busy => "busy",
            Self::Stalled => "no progress",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal error",
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
