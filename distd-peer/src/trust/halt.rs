//! Verification of halt notices, and the file that keeps them (docs/rollouts.md, "Halt notices").

use std::path::Path;

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::fleet::{HALT_BYTES_MAX, HaltMalformed, SignedHalt, halt_message};
use distd_core::swarm::NOTICES_MAX;

use super::files::{self, FileError};
use super::seal::{SealError, verify_by_ca};

/// Name of the file in a state directory: notices, each u16 length (big-endian) and bytes.
pub const FILE_NAME: &str = "halts";

/// Reason why a notice is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HaltRefused {
    /// It does not parse.
    #[error(transparent)]
    Malformed(#[from] HaltMalformed),
    /// It is not signed by the realm's CA.
    #[error("the halt notice is not signed by the realm")]
    Seal(#[from] SealError),
}

/// Checks the signature of a notice against the CA's certificate.
///
/// # Errors
/// [`HaltRefused::Seal`].
pub fn verify(signed: &SignedHalt, ca_der: &[u8]) -> Result<(), HaltRefused> {
    Ok(verify_by_ca(ca_der, &halt_message(&signed.notice), &signed.signature)?)
}

/// Reads the notices that the state directory `data` keeps, at most [`NOTICES_MAX`]. One that is
/// damaged, not the realm's, or over at `now` (unix seconds) is left out, with those after a
/// damaged length.
pub fn kept(data: &Path, ca_der: &[u8], now: u64) -> Vec<SignedHalt> {
    let path = data.join(FILE_NAME);
    let bytes = match files::read(&path) {
        Ok(bytes) => Bytes::from(bytes.unwrap_or_default()),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "kept halt notices cannot be read");
            return Vec::new();
        }
    };
    let (mut notices, mut rest) = (Vec::new(), bytes);
    while rest.len() >= 2 && notices.len() < NOTICES_MAX {
        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        if length > HALT_BYTES_MAX || length > rest.len() - 2 {
            tracing::warn!(path = %path.display(), "the file of halt notices is damaged");
            break;
        }
        let one = rest.split_to(2 + length).slice(2..);
        match SignedHalt::decode(&one).map_err(HaltRefused::from).and_then(|signed| {
            verify(&signed, ca_der)?;
            Ok(signed)
        }) {
            Ok(signed) if signed.notice.is_over(now) => {}
            Ok(signed) => notices.push(signed),
            Err(error) => tracing::warn!(error = %Chain(&error), "a kept halt notice is not used"),
        }
    }
    notices
}

/// Keeps notices, encoded, in the state directory `data`. Blocks: writes a file.
///
/// # Errors
/// [`FileError`].
pub fn keep<'n>(data: &Path, notices: impl Iterator<Item = &'n Bytes>) -> Result<(), FileError> {
    let mut text = Vec::new();
    for notice in notices {
        text.extend_from_slice(&u16::try_from(notice.len()).unwrap_or(0).to_be_bytes());
        text.extend_from_slice(notice);
    }
    files::write_atomic(&data.join(FILE_NAME), &text, 0o600)
}
