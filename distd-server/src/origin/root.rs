//! The next TUF root, on its way between the origin and keys that are kept elsewhere: `DIR/root-next.json`.

use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use distd_peer::trust::files::{self, FileError};

use super::Origin;
use crate::tuf::{
    KeyError, Missing, Options, RepositoryError, RootChange, RootFile, RootFileError, read_public_key,
};

/// Name of the file in the data directory.
const NEXT_ROOT: &str = "root-next.json";

/// Why the next root was not read or put in force.
#[derive(Debug, thiserror::Error)]
pub enum NextRootError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is in it.
    #[error("{} is unusable", .0.display())]
    Content(PathBuf, #[source] RootFileError),
    /// Longer than a root can be.
    #[error("{} is longer than 1 MiB: it is no root", .0.display())]
    TooLong(PathBuf),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Where the next root lies.
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

/// How the first root is made, from the files of public root keys and what came back from them.
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
    /// file. What it lacks otherwise; `None` when no root waits.
    ///
    /// # Errors
    /// [`NextRootError`]; the file stays.
    pub async fn take_next_root(&self) -> Result<Option<Missing>, NextRootError> {
        let path = next_root_path(&self.data);
        let Some(file) = read_root_file(&path)? else { return Ok(None) };
        let in_force = self.repository.root_file().await?.version();
        if file.version() <= in_force {
            // Left by a crash behind its installation, or the first root.
            self.repository.retire_unlisted().await?;
            files::remove(&path)?;
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
        if read_root_file(&path)?.is_none() {
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
