//! The newest TUF root that the holder of the keys has been shown: `tuf-keys/newest-root.json`.
//!
//! A root names the keys of every role, so a wrongly signed root outlasts everything else. The
//! holder therefore follows the roots as a device does, from the first one on. The signer signs
//! only the successor of the newest root, with the same root keys and threshold, so that every root
//! it ever signed leads to the same next one. Root keys are changed only by commands that an
//! operator runs and that use the key files themselves.

use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use distd_peer::trust::files;
use distd_peer::trust::token::sha256;
use tough::schema::{RoleType, Root, Signed};

use crate::tuf::KeyError;

/// The newest root, in the form in which the origin published it.
const NEWEST_ROOT: &str = "newest-root.json";

/// Times at which the newest roots were followed, unix seconds, JSON.
const ROOT_TIMES: &str = "followed-roots.json";

/// Most roots in [`A_DAY`]. Devices fetch each root between theirs and the newest, so a long chain
/// made by an attacker would stay a burden. A restored backup and a rotation of all keys take six.
const ROOTS_MAX: usize = 16;

/// Seconds in a day.
const A_DAY: u64 = 24 * 3600;

/// SHA-256 of the realm's first root, hexadecimal.
const FIRST_ROOT: &str = "first-root.sha256";

/// Roots of the realm that the holder of the keys knows.
#[derive(Debug)]
pub(super) struct KnownRoots {
    tuf_keys: PathBuf,
    newest: Option<Signed<Root>>,
}

impl KnownRoots {
    /// Reads the newest known root from the directory of the TUF keys.
    ///
    /// # Errors
    /// [`KeyError::File`]; [`KeyError::KnownRoot`] if the file is not a root.
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
                self.note_time(unix_now())?;
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

    /// Times at which the last roots were followed, at most [`ROOTS_MAX`] of them, unix seconds.
    fn times(&self) -> Result<Vec<u64>, KeyError> {
        let path = self.tuf_keys.join(ROOT_TIMES);
        let times = files::read(&path)?.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        Ok(times.map_err(|error| KeyError::KnownRoot(path, error))?.unwrap_or_default())
    }

    fn note_time(&self, now: u64) -> Result<(), KeyError> {
        let mut times = self.times()?;
        times.push(now);
        let kept = &times[times.len().saturating_sub(ROOTS_MAX)..];
        let bytes = serde_json::to_vec(kept).expect("numbers always encode");
        Ok(files::write_atomic(&self.tuf_keys.join(ROOT_TIMES), &bytes, 0o600)?)
    }

    /// Checks that `root`, which a root key is to sign at `now` (unix seconds), is the newest root
    /// or follows it with the same root keys and threshold.
    ///
    /// # Errors
    /// The reason for the refusal.
    pub(super) fn check_successor(&self, root: &Root, now: u64) -> Result<(), String> {
        let Some(Signed { signed: newest, .. }) = &self.newest else {
            return match root.version.get() {
                1 => Ok(()),
                version => Err(format!("root {version} has no predecessor that this signer knows")),
            };
        };
        if root == newest {
            return Ok(());
        }
        let (version, before) = (root.version, newest.version);
        if version != before.saturating_add(1) {
            return Err(format!(
                "root {version} cannot follow root {before}, the newest that this signer knows"
            ));
        }
        let of_root = |root: &Root| root.roles.get(&RoleType::Root).cloned();
        let same_roles = root.roles.len() == newest.roles.len()
            && newest.roles.keys().all(|role| root.roles.contains_key(role));
        if of_root(root) != of_root(newest) || !same_roles || root._extra != newest._extra {
            return Err(format!(
                "root {version} has other root keys or roles than root {before}: give the command that changes them the \
                 signer's directory with --keys"
            ));
        }
        let times = self.times().map_err(|error| error.to_string())?;
        let today = times.iter().filter(|time| now.saturating_sub(**time) < A_DAY).count();
        if today >= ROOTS_MAX {
            return Err(format!(
                "{today} roots were made within a day: wait a day, and investigate if you made none"
            ));
        }
        Ok(())
    }
}
