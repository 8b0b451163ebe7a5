//! One process at a time: on a data directory, on a database, on a directory store.
//!
//! Two origins on one database or store would sweep away each other's uploads and sign metadata
//! over each other's heads. A lock on a file ends with its process, however that ends; PostgreSQL's
//! advisory lock ends with its session. Replicas share the database's lock and elect a leader
//! (docs/replicas.md); what must run alone is refused while they run.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distd_peer::filesystem;
use distd_peer::trust::files::{FileError, create_private_dir};
use tokio_util::sync::CancellationToken;

use crate::db::{DbError, LockKind, SessionLock, sqlite_path};
use crate::origin::Places;

/// Longest wait for a lock of PostgreSQL: a server may take seconds to notice that a killed process
/// is gone.
const WAIT: Duration = Duration::from_secs(10);

/// Time between two looks at a lock of PostgreSQL.
const LOOK: Duration = Duration::from_secs(2);

/// Error of taking a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A directory cannot be made.
    #[error("could not make the place of a lock: check permissions and free space")]
    Directory(#[from] FileError),
    /// A file cannot be opened.
    #[error("could not lock {}: check its permissions and free space", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// Another process has the data directory.
    #[error("another distd-server uses {}: stop it, or give this one another --data directory", .0.display())]
    Data(PathBuf),
    /// Another process has the database.
    #[error("another distd-server uses the database {0}: stop it, or give this one another --db")]
    Database(String),
    /// A process that works alone has the database.
    #[error(
        "a distd-server that works alone uses the database {0}: stop it, or start it with the setting replica too"
    )]
    NotShared(String),
    /// Another process has the store.
    #[error("another distd-server uses the store {}: stop it, or give this one another --store", .0.display())]
    Store(PathBuf),
    /// The database cannot be asked.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Locks held until dropped.
#[derive(Debug)]
pub struct Locks {
    _files: Vec<File>,
    lost: CancellationToken,
    keeper: Option<tokio::task::JoinHandle<()>>,
}

impl Locks {
    /// Takes every lock there is for these places, making directories that are not there.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn take(places: &Places) -> Result<Self, LockError> {
        let data = &places.data;
        create_private_dir(data)?;
        make_private(data).map_err(|e| LockError::File(data.clone(), e))?;
        let files = lock_files(places).into_iter().map(|(path, taken)| file(&path, taken));
        Self::with(files.collect::<Result<_, _>>()?, places, LockKind::Alone).await
    }

    /// Takes the locks of a process that shares its database with others: that of the data
    /// directory alone, and that of the database with them.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn take_among_replicas(places: &Places) -> Result<Self, LockError> {
        let data = &places.data;
        create_private_dir(data)?;
        make_private(data).map_err(|e| LockError::File(data.clone(), e))?;
        let lock = file(&data.join("lock"), LockError::Data(data.clone()))?;
        Self::with(vec![lock], places, LockKind::Shared).await
    }

    /// Takes the locks of these places for a command that only reads. The locks are refused while
    /// an origin runs, and an origin does not start while they are held. Several commands that only
    /// read share them. Nothing is made or changed: a lock file that is not there is passed over.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn share(places: &Places) -> Result<Self, LockError> {
        let files =
            lock_files(places).into_iter().filter_map(|(path, taken)| shared(&path, taken).transpose());
        Self::with(files.collect::<Result<_, _>>()?, places, LockKind::Alone).await
    }

    /// Takes the lock of the database too, where that is PostgreSQL.
    async fn with(files: Vec<File>, places: &Places, kind: LockKind) -> Result<Self, LockError> {
        let lost = CancellationToken::new();
        let mut keeper = None;
        if sqlite_path(&places.db).is_none() {
            let lock = wait_for(&places.db, kind).await?;
            keeper = Some(tokio::spawn(keep(lock, (places.db.clone(), kind), lost.clone())));
        }
        Ok(Self { _files: files, lost, keeper })
    }

    /// A token that is cancelled when another process has taken a lock that this one had lost with
    /// its connection to the database.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// Removes the access of other users to a data directory that is empty or an origin's.
fn make_private(data: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let found = std::fs::metadata(data)?;
    let ours = found.uid() == rustix::process::geteuid().as_raw()
        && (data.join("realm/ca.pem").exists() || std::fs::read_dir(data)?.next().is_none());
    if ours && found.mode() & 0o077 != 0 {
        std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// The lock files of these places, and the error when another process has locked one.
fn lock_files(places: &Places) -> Vec<(PathBuf, LockError)> {
    let data = &places.data;
    let mut files = vec![(data.join("lock"), LockError::Data(data.clone()))];
    if let Some(path) = sqlite_path(&places.db) {
        // Not the database itself: closing any handle on it would end SQLite's own locks in this
        // process.
        let mut name = path.into_os_string();
        name.push("-lock");
        files.push((name.into(), LockError::Database(places.db.clone())));
    }
    if let Some(directory) = crate::store::directory_of(&places.store) {
        files.push((directory.join("lock"), LockError::Store(directory)));
    }
    files
}

/// Locks a file that is there, together with others that lock it so; `None` when it is not there.
fn shared(path: &Path, taken: LockError) -> Result<Option<File>, LockError> {
    match filesystem::try_lock_shared(path) {
        Ok(Some(file)) => Ok(Some(file)),
        Ok(None) => Err(taken),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LockError::File(path.to_owned(), error)),
    }
}

fn file(path: &Path, taken: LockError) -> Result<File, LockError> {
    if let Some(parent) = path.parent() {
        create_private_dir(parent)?;
    }
    let locked = filesystem::try_lock(path).map_err(|e| LockError::File(path.to_owned(), e))?;
    locked.ok_or(taken)
}

async fn wait_for(address: &str, kind: LockKind) -> Result<SessionLock, LockError> {
    let until = tokio::time::Instant::now() + WAIT;
    loop {
        if let Some(lock) = SessionLock::try_take(address, kind).await? {
            return Ok(lock);
        }
        if tokio::time::Instant::now() >= until {
            let address = crate::db::redact(address);
            return Err(match kind {
                LockKind::Alone => LockError::Database(address),
                LockKind::Shared => LockError::NotShared(address),
            });
        }
        tokio::time::sleep(LOOK / 4).await;
    }
}

/// Watches a lock that ends with its connection: takes it again when the server comes back, and
/// cancels `lost` when another process was faster.
async fn keep(mut lock: SessionLock, (address, kind): (String, LockKind), lost: CancellationToken) {
    loop {
        tokio::time::sleep(LOOK).await;
        if lock.is_held().await {
            continue;
        }
        tracing::warn!("the connection that holds the database's lock broke off");
        lock = loop {
            match SessionLock::try_take(&address, kind).await {
                Ok(Some(lock)) => break lock,
                Ok(None) => {
                    tracing::error!("another distd-server has taken the database over");
                    lost.cancel();
                    return;
                }
                // The server is away; nothing can be written meanwhile.
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        tracing::info!("the database's lock is held again");
    }
}
