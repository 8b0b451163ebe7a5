//! Holder of the realm's private keys: the CA's, those of the TUF roles, and the OpenPGP key
//! (docs/trust.md, "The signer").
//!
//! Goals: the process that decodes images, patches and requests from the network never has these
//! keys in its memory. It also cannot get a signature that would outlast its own compromise: no
//! certificate of another CA, no TUF key that the signer did not make, nothing that is valid longer
//! than the origin's own metadata. Non-goals: the signer does not judge releases. An attacker who
//! controls the origin's process can have a release signed; taking that release back needs no new
//! keys.
//!
//! `distd-server serve` starts a signer of its own, or connects to one that runs as another user.
//! The two processes exchange one request at a time over a Unix socket. Commands that an operator
//! runs while the origin is stopped use the keys in their own process.

mod link;
mod openpgp;
mod policy;
mod process;
mod roots;
#[cfg(test)]
mod tests;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use link::{SignerError, SignerLink};
pub(crate) use openpgp::OpenPgpKey;
pub use openpgp::OpenPgpPublic;
pub use policy::Validity;
pub use process::{SignerProcessError, run};
pub(crate) use wire::PublicKey;

use distd_peer::clock::unix_now;

use crate::tuf::KeyError;
use roots::KnownRoots;

/// Directory of the TUF keys, within the directory of all keys.
pub(crate) const TUF_KEYS: &str = "tuf-keys";

/// Place of the realm's private keys.
#[derive(Clone, Debug)]
pub enum KeyHolder {
    /// Files under this directory, read by this process: `realm/ca.key` and `tuf-keys/`.
    ThisProcess(PathBuf),
    /// A signer process.
    Signer(Arc<SignerLink>),
}

impl KeyHolder {
    /// Keys of an origin whose data directory is `data`, used in this process.
    pub fn in_dir(data: &Path) -> Self {
        Self::ThisProcess(data.to_owned())
    }

    /// Shows the holder a root of the repository, as signed JSON. The caller shows all roots in the
    /// order of their versions. The holder compares them with the roots that it remembers beside
    /// the keys, so that write access to the store is not enough to choose a root. Returns the
    /// version of the newest root that the holder knows.
    ///
    /// # Errors
    /// [`KeyError::OtherRoot`] or [`SignerError::Refused`] when the root is not this realm's.
    pub(crate) fn follow_root(&self, root: &[u8]) -> Result<u64, KeyError> {
        match self {
            Self::ThisProcess(dir) => KnownRoots::load(&dir.join(TUF_KEYS))?.follow(root),
            Self::Signer(link) => Ok(link.follow_root(root)?),
        }
    }

    /// Public half of the realm's OpenPGP key, which is made at the first need.
    ///
    /// # Errors
    /// [`KeyError`]
    pub(crate) fn openpgp(&self) -> Result<OpenPgpPublic, KeyError> {
        match self {
            Self::ThisProcess(dir) => Ok(OpenPgpKey::load_or_create(dir, unix_now())?.public()),
            Self::Signer(link) => Ok(link.openpgp()?),
        }
    }

    /// Detached OpenPGP signature of one line of `SHA256SUMS`.
    ///
    /// # Errors
    /// [`KeyError`]; [`SignerError::Refused`] of a message that is no such line.
    pub(crate) fn sign_sum(&self, line: &str) -> Result<Vec<u8>, KeyError> {
        match self {
            Self::ThisProcess(dir) => {
                policy::check_sum(line.as_bytes()).map_err(SignerError::Refused)?;
                let now = unix_now();
                Ok(OpenPgpKey::load_or_create(dir, now)?.sign(line.as_bytes(), now))
            }
            Self::Signer(link) => Ok(link.sign_sum(line.as_bytes())?),
        }
    }

    /// Name of the holder for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::ThisProcess(dir) => dir.join(TUF_KEYS).display().to_string(),
            Self::Signer(link) => link.describe(),
        }
    }
}
