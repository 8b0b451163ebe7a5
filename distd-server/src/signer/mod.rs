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
mod roots;
#[cfg(test)]
mod tests;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use link::{SignerError, SignerLink};
pub use process::{SignerProcessError, run};
pub(crate) use wire::PublicKey;

use crate::tuf::KeyError;
use roots::KnownRoots;

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

    /// Shows the holder a root of the repository, signed, JSON, in the order of the versions. The
    /// holder compares it with the roots that it remembers beside the keys, so that nobody who can
    /// write to the store chooses a root. Returns the version of the newest root that the holder
    /// knows.
    ///
    /// # Errors
    /// [`KeyError::OtherRoot`] or [`SignerError::Refused`] when the root is not this realm's.
    pub(crate) fn follow_root(&self, root: &[u8]) -> Result<u64, KeyError> {
        match self {
            Self::ThisProcess(dir) => KnownRoots::load(&dir.join(TUF_KEYS))?.follow(root),
            Self::Signer(link) => Ok(link.follow_root(root)?),
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
