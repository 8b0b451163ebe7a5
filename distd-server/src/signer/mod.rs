//! Who holds the realm's private keys: the CA's and those of the TUF roles. docs/trust.md, "The signer".
//!
//! Goals: the process that decodes images, patches and requests from the network never has these
//! keys in its memory, and cannot get a signature that would outlast its own compromise: no
//! certificate of another CA, no TUF key that the signer did not make, nothing that holds longer
//! than the origin's own metadata. Non-goals: to judge a release. Whoever controls the origin's
//! process can have a release signed; taking it back needs no new keys.
//!
//! `distd-server serve` starts a signer of its own, or connects to one that runs as another user. The two speak over a
//! Unix socket, one request at a time. Commands that an operator runs while the origin is stopped
//! use the keys in their own process.

mod link;
mod policy;
mod process;
#[cfg(test)]
mod tests;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use link::{SignerError, SignerLink};
pub use process::{SignerProcessError, run};
pub(crate) use wire::PublicKey;

use crate::tuf::{KeyError, pin_first_root};

/// Directory of the TUF keys, within the directory of all keys.
pub(crate) const TUF_KEYS: &str = "tuf-keys";

/// Where the realm's private keys are.
#[derive(Clone, Debug)]
pub enum KeyHolder {
    /// In files under this directory, read by this process: `realm/ca.key` and `tuf-keys/`.
    ThisProcess(PathBuf),
    /// In a signer.
    Signer(Arc<SignerLink>),
}

impl KeyHolder {
    /// The keys of an origin whose data directory is `data`, in this process.
    pub fn in_dir(data: &Path) -> Self {
        Self::ThisProcess(data.to_owned())
    }

    /// The SHA-256 (hexadecimal) of the realm's first root, which the holder remembers beside the
    /// keys, so that nobody who can write to the store chooses it; `sha256` when none was
    /// remembered.
    ///
    /// # Errors
    /// [`KeyError`]
    pub(crate) fn first_root(&self, sha256: &str) -> Result<String, KeyError> {
        match self {
            Self::ThisProcess(dir) => pin_first_root(&dir.join(TUF_KEYS), sha256),
            Self::Signer(link) => Ok(link.first_root(sha256)?),
        }
    }

    /// Names the holder, for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::ThisProcess(dir) => dir.join(TUF_KEYS).display().to_string(),
            Self::Signer(link) => link.describe(),
        }
    }
}
