//! What the device has verified, on disk: `DIR/tuf/trusted` (never led back) and `DIR/tuf/cache` (bytes saved).
//!
//! `tough` writes its state in place; a crash in between would leave a file it ignores, and with it the
//! protection against rollback. So each update works on a copy, taken over file by file, atomically.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::TufError;
use crate::trust::files::{self, FileError};

/// State that makes rollback visible. The root comes last: until it is there, the next update goes through
/// the same key rotation again.
const TRUSTED: [&str; 3] = ["timestamp.json", "snapshot.json", "root.json"];
/// The clock's reading at the last update, which `tough` keeps in its directory and which earlier releases took
/// over. Nothing vouches for it, so it is left behind: a clock that was ahead once would lock the device out.
const TIME: &str = "latest_known_time.json";

/// Longest cache file read, bytes.
const CACHE_FILE_BYTES_MAX: u64 = 16 << 20;

pub(super) struct Store {
    trusted: PathBuf,
    cache: PathBuf,
    dir: PathBuf,
}

/// Holds the lock on the directory until dropped.
pub(super) struct Locked {
    _file: fs::File,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self, FileError> {
        let dir = dir.join("tuf");
        let (trusted, cache) = (dir.join("trusted"), dir.join("cache"));
        files::create_private_dir(&trusted)?;
        files::create_private_dir(&cache)?;
        Ok(Self { trusted, cache, dir })
    }

    /// Waits until no other process works in the directory.
    pub(super) fn lock(&self) -> Result<Locked, TufError> {
        let lock = || -> io::Result<fs::File> {
            let file = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.dir.join("lock"))?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map(|file| Locked { _file: file }).map_err(|e| TufError::Store(e.into()))
    }

    /// The newest root this device has verified.
    pub(super) fn trusted_root(&self) -> Result<Option<Vec<u8>>, FileError> {
        files::read(&self.trusted.join("root.json"))
    }

    /// A copy of the trusted state for one update.
    pub(super) fn stage(&self) -> Result<tempfile::TempDir, TufError> {
        let io = |e: io::Error| TufError::Store(e.into());
        // What a killed update left behind; the lock says no other is running.
        for entry in fs::read_dir(&self.dir).map_err(io)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("staging-") {
                fs::remove_dir_all(entry.path()).map_err(io)?;
            }
        }
        let staging = tempfile::Builder::new().prefix("staging-").tempdir_in(&self.dir).map_err(io)?;
        for name in TRUSTED {
            if let Some(bytes) = files::read(&self.trusted.join(name))? {
                fs::write(staging.path().join(name), bytes).map_err(io)?;
            }
        }
        Ok(staging)
    }

    /// Takes over what the update verified, also after one that failed half way: a root or timestamp that
    /// was accepted stays accepted.
    pub(super) fn commit(&self, staging: &Path) -> Result<(), FileError> {
        for name in TRUSTED {
            let (from, to) = (staging.join(name), self.trusted.join(name));
            match files::read(&from)? {
                Some(new) if files::read(&to)?.as_ref() == Some(&new) => {}
                Some(new) => files::write_atomic(&to, &new, 0o600)?,
                // Removed by a key rotation; a root is never removed.
                None if name != "root.json" => files::remove(&to)?,
                None => {}
            }
        }
        files::remove(&self.trusted.join(TIME))
    }

    /// The cached files, by their name in the repository. Unreadable ones are as good as none.
    pub(super) fn cached(&self) -> BTreeMap<String, Bytes> {
        let mut out = BTreeMap::new();
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let small = entry.metadata().is_ok_and(|m| m.is_file() && m.len() <= CACHE_FILE_BYTES_MAX);
            if small
                && !name.starts_with('.')
                && let Ok(bytes) = fs::read(entry.path())
            {
                out.insert(name.replace(',', "/"), Bytes::from(bytes));
            }
        }
        out
    }

    /// Makes the cache hold exactly `keep`.
    pub(super) fn set_cached(&self, keep: &BTreeMap<String, Bytes>) -> Result<(), FileError> {
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let kept = entry.file_name().into_string().is_ok_and(|n| keep.contains_key(&n.replace(',', "/")));
            if !kept {
                files::remove(&entry.path())?;
            }
        }
        for (name, bytes) in keep {
            // Names hold no comma: they are role names, hex and `Name`s.
            let path = self.cache.join(name.replace('/', ","));
            if fs::read(&path).ok().as_deref() != Some(bytes) {
                files::write_atomic(&path, bytes, 0o600)?;
            }
        }
        Ok(())
    }
}
