//! The next TUF root, on its way between the origin and keys that are kept elsewhere:
//! `DIR/root-next.json`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use distd_peer::filesystem;
use distd_peer::trust::files::{self, FileError};

use super::Origin;
use crate::tuf::{
    KeyError, Missing, Options, RepositoryError, RootChange, RootFile, RootFileError, read_public_key,
};

/// Name of the file in the data directory.
const NEXT_ROOT: &str = "root-next.json";

/// Name of the lock file beside it.
const LOCK: &str = "root-next.lock";

/// Error of reading the next root or of putting it in force.
#[derive(Debug, thiserror::Error)]
pub enum NextRootError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The content of the file is not a root.
    #[error("{} is unusable", .0.display())]
    Content(PathBuf, #[source] RootFileError),
    /// The lock cannot be taken.
    #[error("could not lock {}: check its permissions and free space", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    /// An outdated file stays in the way.
    #[error("could not rename {}", .0.display())]
    PutAside(PathBuf, #[source] io::Error),
    /// Longer than a root can be.
    #[error("{} is longer than 1 MiB: it is no root", .0.display())]
    TooLong(PathBuf),
    /// The TUF repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// The right to read and change `root-next.json`, until dropped. The origin and the commands of an
/// operator change the file at the same time.
#[derive(Debug)]
pub struct NextRootLock {
    _file: File,
}

impl NextRootLock {
    /// Waits for the lock. Each holder has it for one read and one write.
    ///
    /// # Errors
    /// [`NextRootError::Lock`]
    pub fn take(data: &Path) -> Result<Self, NextRootError> {
        let path = data.join(LOCK);
        filesystem::lock(&path)
            .map(|file| Self { _file: file })
            .map_err(|error| NextRootError::Lock(path, error))
    }

    /// Takes the lock unless another process has it.
    ///
    /// # Errors
    /// [`NextRootError::Lock`]
    fn try_take(data: &Path) -> Result<Option<Self>, NextRootError> {
        let path = data.join(LOCK);
        match filesystem::try_lock(&path) {
            Ok(file) => Ok(file.map(|file| Self { _file: file })),
            Err(error) => Err(NextRootError::Lock(path, error)),
        }
    }
}

/// Path of the next root.
pub fn next_root_path(data: &Path) -> PathBuf {
    data.join(NEXT_ROOT)
}

/// Reads a root that is carried from key to key; `None` when there is no file.
///
/// # Errors
/// [`NextRootError`]
pub fn read_root_file(path: &Path) -> Result<Option<RootFile>, NextRootError> {
    if std::fs::metadata(path).is_ok_and(|found| found.len() > RootFile::BYTES_MAX) {
        return Err(NextRootError::TooLong(path.to_owned()));
    }
    let Some(bytes) = files::read(path)? else { return Ok(None) };
    RootFile::parse(&bytes).map(Some).map_err(|error| NextRootError::Content(path.to_owned(), error))
}

/// Writes such a file.
///
/// # Errors
/// [`FileError`]
pub fn write_root_file(path: &Path, root: &RootFile) -> Result<(), FileError> {
    files::write_atomic(path, &root.to_bytes(), 0o600)
}

/// Options of the first root, from the files of public root keys and the root that they have
/// signed.
pub(super) fn first_root_options(
    data: &Path,
    offline_root: &[PathBuf],
    root_threshold: std::num::NonZeroU64,
) -> Result<Options, super::OpenError> {
    let keys = offline_root.iter().map(|path| read_public_key(path)).collect::<Result<Vec<_>, KeyError>>();
    let offline_root = keys.map_err(RepositoryError::from)?;
    let first_root = if offline_root.is_empty() { None } else { read_root_file(&next_root_path(data))? };
    Ok(Options { root_threshold, offline_root, first_root })
}

impl Origin {
    /// Puts the root in `DIR/root-next.json` in force once it has all signatures, and removes the
    /// file. Returns what the root lacks; `None` when no root waits or a command changes the file
    /// at this moment. A file that can never be installed, because another root of its version is
    /// in force, is renamed, so that its signatures are not lost.
    ///
    /// # Errors
    /// [`NextRootError`]; the file stays.
    pub async fn take_next_root(&self) -> Result<Option<Missing>, NextRootError> {
        let path = next_root_path(&self.data);
        let Some(_lock) = NextRootLock::try_take(&self.data)? else { return Ok(None) };
        let Some(file) = read_root_file(&path)? else { return Ok(None) };
        let in_force = self.repository.root_file().await?.version();
        if file.version() <= in_force {
            self.repository.retire_unlisted().await?;
            if self.repository.was_installed(&file).await? {
                // Left by a crash after its installation, or the first root.
                files::remove(&path)?;
            } else {
                let aside = self.data.join(format!("root-next.{}-outdated.json", file.version()));
                std::fs::rename(&path, &aside).map_err(|e| NextRootError::PutAside(path.clone(), e))?;
                tracing::error!(
                    in_force,
                    "a proposed root is outdated and was renamed to {}: run distd-server root prepare again",
                    aside.display()
                );
            }
            return Ok(None);
        }
        let missing = self.repository.install_root(&file, unix_now()).await?;
        if missing.is_none() {
            tracing::info!(version = missing.version, "a new TUF root is in force");
            files::remove(&path)?;
        }
        Ok(Some(missing))
    }

    /// Writes the next root for its keys, which are kept elsewhere, unless one waits already.
    ///
    /// # Errors
    /// [`NextRootError`]
    pub(super) async fn ask_for_next_root(&self) -> Result<(), NextRootError> {
        let path = next_root_path(&self.data);
        if let Some(_lock) = NextRootLock::try_take(&self.data)?
            && read_root_file(&path)?.is_none()
        {
            let root = self.repository.propose_root(&RootChange::default(), unix_now()).await?;
            write_root_file(&path, &root)?;
        }
        tracing::error!(
            "the TUF root runs out and its keys are not here: sign {} with distd-server root sign",
            path.display()
        );
        Ok(())
    }
}
