//! The file `DIR/installed.json`: artifacts that pulls have installed on this device, for an agent
//! to serve.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use distd_core::ManifestId;
use distd_core::error::Chain;
use serde::{Deserialize, Serialize};

use crate::disk::lock::{Patience, lock};
use crate::disk::side;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "installed.json";

/// Largest number of artifacts remembered; the oldest are dropped. A device has two slots and a few
/// files.
const INSTALLED_MAX: usize = 16;

/// An installed artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Path of the artifact; its manifest is kept beside it.
    pub path: PathBuf,
    /// Manifest of the artifact when it was installed.
    pub manifest: ManifestId,
}

/// Returns the installed artifacts, newest first. A missing or damaged file gives an empty list.
pub fn list(data: &Path) -> Vec<Installed> {
    let Ok(bytes) = fs::read(data.join(FILE_NAME)) else { return Vec::new() };
    let mut list: Vec<Installed> = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&error), "{FILE_NAME} is unreadable: an agent serves nothing until the next pull");
        Vec::new()
    });
    list.truncate(INSTALLED_MAX);
    list
}

/// Puts an artifact at the front of the list and removes the earlier entry with the same path.
///
/// # Errors
/// As the system reports.
pub fn remember(data: &Path, path: &Path, manifest: ManifestId) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    // Two pulls may end at the same time.
    let lock_path = data.join("installed.lock");
    let (held, _) = side::open(&lock_path).map_err(io::Error::other)?;
    lock(&held, &lock_path, Patience::Some).map_err(io::Error::other)?;
    let mut installed = vec![Installed { path: path.clone(), manifest }];
    installed.extend(list(data).into_iter().filter(|old| old.path != path && old.path.exists()));
    installed.truncate(INSTALLED_MAX);
    side::write_json(&data.join(FILE_NAME), &installed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_comes_first_and_a_path_has_one_entry() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let paths: Vec<_> = ["a", "b", "c"].iter().map(|name| dir.path().join(name)).collect();
        for path in &paths {
            fs::write(path, "x").expect("write");
        }
        let id = |n| ManifestId([n; 32]);
        remember(dir.path(), &paths[0], id(1)).expect("remember");
        remember(dir.path(), &paths[1], id(1)).expect("remember");
        remember(dir.path(), &paths[0], id(2)).expect("remember");
        let names = |list: Vec<Installed>| -> Vec<_> {
            list.iter().map(|i| (i.path.file_name().expect("a name").to_owned(), i.manifest)).collect()
        };
        assert_eq!(names(list(dir.path())), [("a".into(), id(2)), ("b".into(), id(1))]);
        fs::remove_file(&paths[0]).expect("remove");
        remember(dir.path(), &paths[2], id(3)).expect("remember");
        assert_eq!(names(list(dir.path())), [("c".into(), id(3)), ("b".into(), id(1))]);
        fs::write(dir.path().join(FILE_NAME), "[").expect("write");
        assert!(list(dir.path()).is_empty());
    }
}
