//! A copy of a whole origin, made while it runs or not.
//!
//! `timestamp.json` is read first, then the database is copied, then the objects: so the rows of
//! the copy have every release that its metadata lists. If the origin deletes an object meanwhile,
//! the check at the end finds it missing, and the copy is made again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use distd_peer::trust::files::{self, FileError};
use serde::{Deserialize, Serialize};

use super::is_origin;
use crate::db::{Db, DbError, sqlite_path};
use crate::origin::Places;
use crate::store::{Store, StoreError, directory_of};

/// File that says what a backup is; written last, so a backup that was cut off has none.
pub(super) const MARK: &str = "backup.json";

/// Version of the layout.
pub(super) const FORMAT: u32 = 1;

/// Most copies that are made because the origin deleted an object during the one before.
const TRIES: usize = 3;

/// Directories that are copied whole, beside database and objects.
pub(super) const KEYS: [&str; 2] = ["realm", "tuf-keys"];

/// Object that makes everything else current.
const TIMESTAMP: &str = "tuf/timestamp.json";

/// Error of a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Not an origin's directory.
    #[error("{} holds no origin: give --data the directory that distd-server serve uses", .0.display())]
    NoOrigin(PathBuf),
    /// The directory is in use.
    #[error("{} is not empty: name a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// A file cannot be copied.
    #[error("could not copy {}: check permissions and free space", .0.display())]
    Copy(PathBuf, #[source] io::Error),
    /// A file of the trust directory cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store lacks packs.
    #[error("the store lacks {0}, which the database names: look with distd-server fsck")]
    Incomplete(String),
}

/// Content of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backed {
    /// Version of the layout.
    pub format: u32,
    /// Time at which it was begun, unix seconds.
    pub created: u64,
    /// SHA-256 of the realm's CA, hexadecimal.
    pub realm: String,
    /// Whether the database is in it: PostgreSQL is copied by its own tools.
    pub database: bool,
    /// Whether the objects are in it: a bucket is copied by its own tools.
    pub objects: bool,
    /// Releases in the database.
    pub releases: u64,
}

/// Copies an origin to `to`, a new or empty directory.
///
/// # Errors
/// [`BackupError`]; what is in `to` is no backup then.
pub async fn backup(places: &Places, to: &Path) -> Result<Backed, BackupError> {
    if !is_origin(&places.data) {
        return Err(BackupError::NoOrigin(places.data.clone()));
    }
    files::create_private_dir(to)?;
    if fs::read_dir(to).map_err(copy_failed(to))?.next().is_some() {
        return Err(BackupError::NotEmpty(to.to_owned()));
    }
    let db = Db::open_read_only(&places.db).await?;
    let mut tries = 0;
    let backed = loop {
        tries += 1;
        match copy(places, &db, to).await {
            Err(BackupError::Incomplete(_)) if tries < TRIES => {}
            other => break other?,
        }
    };
    db.close().await;
    let text = serde_json::to_vec_pretty(&backed).expect("names and numbers always encode");
    files::write_atomic(&to.join(MARK), &text, 0o600)?;
    Ok(backed)
}

async fn copy(places: &Places, db: &Db, to: &Path) -> Result<Backed, BackupError> {
    let created = unix_now();
    for name in KEYS {
        // A signer's keys are elsewhere.
        if places.data.join(name).is_dir() {
            copy_tree(&places.data.join(name), &to.join(name))?;
        }
    }
    let token = places.data.join("admin.token");
    if token.is_file() {
        copy_file(&token, &to.join("admin.token"))?;
    }
    let store = Store::open_present(&places.store)?;
    let timestamp = store.get(TIMESTAMP).await?;
    let sqlite = sqlite_path(&places.db).is_some();
    if sqlite {
        let copy = to.join("distd.sqlite");
        remove_if_there(&copy)?;
        db.snapshot(&copy).await?;
    }
    // Without a copy of its own the database itself says what there must be.
    let rows = if sqlite { Db::open_present(&address_of(to)).await? } else { db.clone() };
    let (packs, releases) = (rows.packs().await?, rows.contents().await?.releases);
    let realm = rows.realm().await?.unwrap_or_default();
    if sqlite {
        rows.close().await;
    }
    let directory = directory_of(&places.store);
    if let Some(from) = &directory {
        let objects = to.join("objects");
        copy_tree(from, &objects)?;
        if let Some(timestamp) = timestamp {
            files::write_atomic(&objects.join(TIMESTAMP), &timestamp, 0o600)?;
        }
    }
    for (_, object, bytes) in packs {
        let found = match &directory {
            Some(_) => fs::metadata(to.join("objects").join(&object)).ok().map(|found| found.len()),
            None => store.len(&object).await?,
        };
        if found != Some(bytes) {
            return Err(BackupError::Incomplete(object));
        }
    }
    Ok(Backed { format: FORMAT, created, realm, database: sqlite, objects: directory.is_some(), releases })
}

/// Address of the copied database.
fn address_of(backup: &Path) -> String {
    format!("sqlite:{}", backup.join("distd.sqlite").display())
}

fn copy_failed(path: &Path) -> impl Fn(io::Error) -> BackupError {
    move |e| BackupError::Copy(path.to_owned(), e)
}

fn remove_if_there(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(copy_failed(path)(e)),
        _ => Ok(()),
    }
}

/// Copies a directory and what is below it, durably. Files that are there with the same length
/// stay: objects never change. Locks and temporary files are left out, and so is what goes away
/// meanwhile.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<(), BackupError> {
    files::create_private_dir(to)?;
    for entry in fs::read_dir(from).map_err(copy_failed(from))? {
        let entry = entry.map_err(copy_failed(from))?;
        let (source, name) = (entry.path(), entry.file_name());
        let text = name.to_string_lossy();
        if text == "lock" || text.starts_with('.') || text.contains('#') {
            continue;
        }
        let target = to.join(&name);
        match fs::metadata(&source) {
            Ok(found) if found.is_dir() => copy_tree(&source, &target)?,
            Ok(found) if fs::metadata(&target).is_ok_and(|copied| copied.len() == found.len()) => {}
            Ok(_) => copy_file(&source, &target)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(copy_failed(&source)(e)),
        }
    }
    File::open(to).and_then(|directory| directory.sync_all()).map_err(copy_failed(to))
}

pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    let failed = copy_failed(from);
    match fs::copy(from, to) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && !from.exists() => return Ok(()),
        Err(e) => return Err(failed(e)),
    }
    File::open(to).and_then(|file| file.sync_all()).map_err(failed)
}
