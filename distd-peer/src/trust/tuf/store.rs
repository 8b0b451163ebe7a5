//! Verified metadata of a device on disk: `DIR/tuf/trusted`, which prevents rollback, and
//! `DIR/tuf/cache`, which saves bytes.
//!
//! Each file is replaced atomically. Files in `trusted` are replaced only by verified ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::TufError;
use super::walk::{Seen, Verified};
use crate::filesystem;
use crate::trust::files::{self, FileError};
use crate::trust::token::sha256;

/// Files of `trusted`, which make a rollback visible.
const TIMESTAMP: &str = "timestamp.json";
const SNAPSHOT: &str = "snapshot.json";
const ROOT: &str = "root.json";

/// File of earlier versions with the clock's reading at the last update. It proves nothing, and a
/// clock that was ahead once would lock the device out.
const LEFT_BEHIND: [&str; 1] = ["latest_known_time.json"];

/// Maximum size of a cache file that is read, bytes.
const CACHE_FILE_BYTES_MAX: u64 = 16 << 20;

pub(super) struct Store {
    trusted: PathBuf,
    cache: PathBuf,
    dir: PathBuf,
}

/// Lock on the directory, held until dropped.
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

    /// Waits until no other process uses the directory.
    pub(super) fn lock(&self) -> Result<Locked, TufError> {
        let locked = filesystem::lock(&self.dir.join("lock"));
        locked.map(|file| Locked { _file: file }).map_err(|e| TufError::Store(e.into()))
    }

    /// Newest root that this device has verified; `None` before the first update.
    pub(super) fn trusted_root(&self) -> Result<Option<Vec<u8>>, FileError> {
        files::read(&self.trusted.join(ROOT))
    }

    /// The timestamp and snapshot that no update may roll back.
    pub(super) fn seen(&self) -> Result<Seen, FileError> {
        let read = |name| files::read(&self.trusted.join(name));
        Ok(Seen { timestamp: read(TIMESTAMP)?, snapshot: read(SNAPSHOT)? })
    }

    /// Forgets the seen timestamp and snapshot, because their keys have changed.
    pub(super) fn forget_seen(&self) -> Result<(), FileError> {
        [TIMESTAMP, SNAPSHOT].iter().try_for_each(|name| files::remove(&self.trusted.join(name)))
    }

    /// Stores what was verified. The root is written last: until it is on disk, the next update
    /// goes through the same key rotation again.
    pub(super) fn set_trusted(&self, verified: Option<&Verified>, root: &[u8]) -> Result<(), FileError> {
        if let Some(verified) = verified {
            self.set(SNAPSHOT, &verified.snapshot_bytes)?;
            self.set(TIMESTAMP, &verified.timestamp_bytes)?;
        }
        self.set(ROOT, root)?;
        LEFT_BEHIND.iter().try_for_each(|name| files::remove(&self.trusted.join(name)))
    }

    fn set(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let path = self.trusted.join(name);
        // Flash memory wears out: unchanged bytes are not written again.
        if files::read(&path)?.as_deref() == Some(bytes) {
            return Ok(());
        }
        files::write_atomic(&path, bytes, 0o600)
    }

    /// Returns the cached files, by their name in the repository. Unreadable files are left out.
    pub(super) fn cached(&self) -> BTreeMap<String, Bytes> {
        let mut out = BTreeMap::new();
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let small = entry.metadata().is_ok_and(|m| m.is_file() && m.len() <= CACHE_FILE_BYTES_MAX);
            if !small || name.starts_with('.') {
                continue;
            }
            let Ok(bytes) = fs::read(entry.path()) else { continue };
            let bytes = Bytes::from(bytes);
            if name.starts_with(LONG) {
                // The name is stored before the contents.
                let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { continue };
                let Ok(long) = std::str::from_utf8(&bytes[..end]) else { continue };
                out.insert(long.to_owned(), bytes.slice(end + 1..));
            } else {
                out.insert(name.replace(',', "/"), bytes);
            }
        }
        out
    }

    /// Makes the cache contain exactly the files in `keep`.
    pub(super) fn set_cached(&self, keep: &BTreeMap<String, Bytes>) -> Result<(), FileError> {
        let files: BTreeMap<String, Bytes> =
            keep.iter().map(|(name, bytes)| cache_file(name, bytes)).collect();
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let kept = entry.file_name().into_string().is_ok_and(|name| files.contains_key(&name));
            if !kept {
                files::remove(&entry.path())?;
            }
        }
        for (name, bytes) in &files {
            let path = self.cache.join(name);
            if fs::read(&path).ok().as_deref() != Some(bytes) {
                files::write_atomic(&path, bytes, 0o600)?;
            }
        }
        Ok(())
    }
}

/// Maximum length of a file name in the cache, bytes. Together with the suffix of a temporary file
/// it fits file systems that encrypt names (eCryptfs: 143 bytes).
const NAME_MAX: usize = 120;

/// Prefix of the hashed file name of a file with a longer name.
const LONG: &str = "long-";

/// Returns the cache file for a file of the repository: its name and its contents.
fn cache_file(name: &str, bytes: &Bytes) -> (String, Bytes) {
    // Names hold no comma: they are role names, hex and `Name`s.
    let short = name.replace('/', ",");
    if short.len() <= NAME_MAX && !short.starts_with(LONG) {
        return (short, bytes.clone());
    }
    let file = format!("{LONG}{}", hex::encode(&sha256(name.as_bytes())[..16]));
    (file, [name.as_bytes(), b"\n", bytes].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_length_are_cached_and_found_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(dir.path()).expect("open");
        let long = format!("targets/releases/{}/{}.{}", "p".repeat(100), "a".repeat(64), "1".repeat(100));
        let keep: BTreeMap<String, Bytes> = [
            ("timestamp.json".to_owned(), Bytes::from_static(b"{}")),
            (long, Bytes::from_static(b"line\nline")),
            ("long-x".to_owned(), Bytes::new()),
        ]
        .into();
        store.set_cached(&keep).expect("kept");
        assert_eq!(store.cached(), keep);
        for entry in fs::read_dir(&store.cache).expect("list").flatten() {
            assert!(entry.file_name().len() <= NAME_MAX);
        }
        store.set_cached(&BTreeMap::new()).expect("emptied");
        assert_eq!(fs::read_dir(&store.cache).expect("list").count(), 0);
    }
}
