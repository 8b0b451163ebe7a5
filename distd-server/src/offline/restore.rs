//! An origin made again from a backup.
//!
//! Devices may have seen later metadata than the backup has. The keys of snapshot and timestamp are
//! changed, and with them devices forget which versions they have seen (docs/trust.md, "Changing a
//! key").

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use distd_peer::trust::files::{self, FileError};

use super::backup::{Backed, BackupError, FORMAT, KEYS, MARK, copy_file, copy_tree};
use super::keys::{KeysError, rotate_locked};
use crate::db::sqlite_path;
use crate::locks::{LockError, Locks};
use crate::origin::{LOG_RESTORED, Places};
use crate::store::directory_of;
use crate::tuf::RotatableRole;

/// Error of a restore; nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not a backup.
    #[error("{} is no whole backup: it lacks backup.json, which distd-server backup writes last", .0.display())]
    NoBackup(PathBuf),
    /// A backup of a newer version.
    #[error("{} was made by a newer distd-server: use that version", .0.display())]
    Newer(PathBuf),
    /// The target is in use.
    #[error("{} is not empty: restore into a new directory, or move this one away first", .0.display())]
    NotEmpty(PathBuf),
    /// A part that the backup does not have.
    #[error("the backup holds no {what}: restore it by its own tools and name it with {option}")]
    Lacks {
        /// The part.
        what: &'static str,
        /// The option.
        option: &'static str,
    },
    /// A directory cannot be looked at.
    #[error("could not read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Copying failed.
    #[error(transparent)]
    Copy(#[from] BackupError),
    /// Another process is there.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Result of a restore.
#[derive(Debug)]
pub struct Restored {
    /// Content of the backup.
    pub backup: Backed,
    /// Reason why the keys of snapshot and timestamp were not changed: mostly root keys that are
    /// kept elsewhere. Devices that saw later metadata refuse this origin until the keys are
    /// changed.
    pub keys: Option<KeysError>,
}

/// Makes an origin at `places` from the backup in `from`.
///
/// # Errors
/// [`RestoreError`].
pub async fn restore(places: &Places, from: &Path) -> Result<Restored, RestoreError> {
    let no_backup = || RestoreError::NoBackup(from.to_owned());
    let mark = files::read(&from.join(MARK))?.ok_or_else(no_backup)?;
    let backup: Backed = serde_json::from_slice(&mark).map_err(|_| no_backup())?;
    if backup.format > FORMAT {
        return Err(RestoreError::Newer(from.to_owned()));
    }
    let (database, store) = (sqlite_path(&places.db), directory_of(&places.store));
    if database.is_some() && !backup.database {
        return Err(RestoreError::Lacks { what: "database", option: "--db" });
    }
    if store.is_some() && !backup.objects {
        return Err(RestoreError::Lacks { what: "objects", option: "--store" });
    }
    for directory in [Some(&places.data), store.as_ref()].into_iter().flatten() {
        must_be_empty(directory)?;
    }
    if let Some(path) = database.as_ref().filter(|path| path.exists()) {
        return Err(RestoreError::NotEmpty(path.clone()));
    }
    files::create_private_dir(&places.data)?;
    let _locks = Locks::take(places).await?;
    if let Some(store) = &store {
        copy_tree(&from.join("objects"), store)?;
    }
    if let Some(path) = &database {
        copy_file(&from.join("distd.sqlite"), path)?;
    }
    let token = from.join("admin.token");
    if token.is_file() {
        copy_file(&token, &places.data.join("admin.token"))?;
    }
    for name in KEYS {
        if from.join(name).is_dir() {
            copy_tree(&from.join(name), &places.data.join(name))?;
        }
    }
    // Nodes may have seen a later log than the backup has, and the store's memory of it is as old.
    files::write_atomic(&places.data.join(LOG_RESTORED), b"", 0o600)?;
    let roles = ["snapshot".to_owned(), "timestamp".to_owned()];
    let roles = [(&roles[0], RotatableRole::Snapshot), (&roles[1], RotatableRole::Timestamp)];
    let keys = rotate_locked(places, &roles, true).await.err();
    Ok(Restored { backup, keys })
}

/// Whether nothing but locks is in a directory, or it is not there.
fn must_be_empty(directory: &Path) -> Result<(), RestoreError> {
    let failed = |e| RestoreError::Read(directory.to_owned(), e);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if name != "lock" {
            return Err(RestoreError::NotEmpty(directory.to_owned()));
        }
    }
    Ok(())
}
