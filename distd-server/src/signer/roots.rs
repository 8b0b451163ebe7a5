//! The newest TUF root that the holder of the keys has been shown: `tuf-keys/root.json`.
//!
//! A root names the keys of every role, so a root that is signed wrongly outlasts everything else.
//! The holder therefore follows the roots as a device does, from the first one on, and the signer
//! signs a root only to prolong the newest. A root that changes keys or thresholds is signed where
//! a person is: by the commands `keys rotate` and `root`.

use std::path::{Path, PathBuf};

use distd_peer::trust::files;
use distd_peer::trust::token::sha256;
use tough::schema::{Root, Signed};

use super::policy::CLOCK_SECONDS;
use crate::tuf::{KeyError, renewal_due};

/// The newest root, in the form in which the origin published it.
const NEWEST_ROOT: &str = "root.json";

/// SHA-256 of the realm's first root, hexadecimal.
const FIRST_ROOT: &str = "first-root.sha256";

/// What the holder of the keys knows about the realm's roots.
#[derive(Debug)]
pub(super) struct KnownRoots {
    tuf_keys: PathBuf,
    newest: Option<Signed<Root>>,
}

impl KnownRoots {
    /// Reads what is known in the directory of the TUF keys.
    ///
    /// # Errors
    /// [`KeyError::File`]; [`KeyError::KnownRoot`] when the file holds no root.
    pub(super) fn load(tuf_keys: &Path) -> Result<Self, KeyError> {
        let path = tuf_keys.join(NEWEST_ROOT);
        let newest = files::read(&path)?.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        let newest = newest.map_err(|error| KeyError::KnownRoot(path, error))?;
        Ok(Self { tuf_keys: tuf_keys.to_owned(), newest })
    }

    /// Takes note of a root of the origin's repository, signed, JSON. Roots come in the order of
    /// their versions; the first is pinned by its hash, each later one is signed by the keys of the
    /// root before it. Returns the version of the newest root that is known.
    ///
    /// # Errors
    /// [`KeyError::OtherRoot`] when the root is not one of this realm's; [`KeyError::File`].
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<u64, KeyError> {
        let other = |why: &str| KeyError::OtherRoot(why.to_owned());
        let root: Signed<Root> = serde_json::from_slice(bytes).map_err(|_| other("it is malformed"))?;
        let version = root.signed.version.get();
        if version == 1 {
            self.check_first(bytes)?;
        }
        match &self.newest {
            Some(newest) if version < newest.signed.version.get() => {}
            Some(newest) if version == newest.signed.version.get() => {
                if root.signed != newest.signed {
                    return Err(other("another root of this version is known"));
                }
            }
            before => {
                let expected = before.as_ref().map_or(1, |before| before.signed.version.get() + 1);
                if version != expected {
                    return Err(other("the roots before it are not known"));
                }
                let rules = before.iter().map(|before| &before.signed).chain([&root.signed]);
                for rule in rules {
                    rule.verify_role(&root).map_err(|_| other("its signatures are not sufficient"))?;
                }
                files::write_atomic(&self.tuf_keys.join(NEWEST_ROOT), bytes, 0o600)?;
                self.newest = Some(root);
            }
        }
        Ok(self.newest.as_ref().map_or(0, |newest| newest.signed.version.get()))
    }

    /// Compares the first root with the pinned one. A first root is pinned when it is first seen.
    fn check_first(&self, bytes: &[u8]) -> Result<(), KeyError> {
        let (path, hash) = (self.tuf_keys.join(FIRST_ROOT), hex::encode(sha256(bytes)));
        match files::read(&path)? {
            Some(pinned) if pinned.trim_ascii() == hash.as_bytes() => Ok(()),
            Some(_) => Err(KeyError::OtherRoot("it is not the first root of this realm".to_owned())),
            None => Ok(files::write_atomic(&path, hash.as_bytes(), 0o600)?),
        }
    }

    /// Checks that `root`, which a root key is to sign at `now` (unix seconds), is the newest root
    /// or prolongs it and changes nothing else.
    ///
    /// # Errors
    /// The reason for the refusal.
    pub(super) fn check_prolongs(&self, root: &Root, now: u64) -> Result<(), String> {
        let Some(Signed { signed: newest, .. }) = &self.newest else {
            return match root.version.get() {
                1 => Ok(()),
                version => Err(format!("root {version} has no predecessor that this signer knows")),
            };
        };
        if root == newest {
            return Ok(());
        }
        let mut prolonged = newest.clone();
        prolonged.version = newest.version.saturating_add(1);
        prolonged.expires = root.expires;
        if *root != prolonged {
            return Err(format!(
                "root {} is not root {} with a later end: stop the origin and use distd-server keys rotate or \
                 distd-server root, which sign with the keys themselves",
                root.version, newest.version
            ));
        }
        if !renewal_due("root", newest.expires, now.saturating_add(CLOCK_SECONDS)) {
            return Err(format!(
                "root {} holds until {} and is not due for renewal",
                newest.version, newest.expires
            ));
        }
        Ok(())
    }
}
