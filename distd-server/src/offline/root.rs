//! The ceremony of root keys that are kept away from the origin: keys made, roots proposed, signed,
//! handed in.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distd_peer::clock::unix_now;
use distd_peer::trust::files::FileError;

use super::keys::{KeysError, parse};
use super::{is_origin, metadata_in};
use crate::origin::{
    NextRootError, NextRootLock, ObjectMetadata, Places, next_root_path, read_root_file, write_root_file,
};
use crate::store::{Store, StoreError};
use crate::tuf::{
    KeyError, Missing, OfflineKey, Options, RepositoryError, RootChange, RootFile, RootFileError,
    TufRepository, read_public_key,
};

/// Error of a step of the ceremony.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not an origin's directory.
    #[error("{} holds no origin: give --data the directory that distd-server serve uses", .0.display())]
    NoOrigin(PathBuf),
    /// No such file.
    #[error("there is no file {}", .0.display())]
    NoFile(PathBuf),
    /// Another proposal waits.
    #[error("{} waits for signatures: sign and install it, or say --replace", .0.display())]
    Waiting(PathBuf),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A role is unknown or cannot be changed.
    #[error(transparent)]
    Role(#[from] KeysError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file of a root cannot be used.
    #[error(transparent)]
    NextRoot(#[from] NextRootError),
    /// The content of the file of a root cannot be used.
    #[error(transparent)]
    RootFile(#[from] RootFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The TUF repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Changes that the next root is to make.
#[derive(Clone, Debug, Default)]
pub struct RootOrder {
    /// Files of public root keys to list.
    pub add: Vec<PathBuf>,
    /// Beginnings of ids of root keys to list no more.
    pub remove: Vec<String>,
    /// Number of root keys that must sign.
    pub threshold: Option<NonZeroU64>,
    /// Roles that get new keys.
    pub rotate: Vec<String>,
    /// Whether to give up a proposal that waits.
    pub replace: bool,
}

/// Result of [`show_root`].
#[derive(Clone, Debug)]
pub struct RootShown {
    /// The root in force, one line for each thing.
    pub in_force: Vec<String>,
    /// The root that waits, likewise, and what it lacks.
    pub waiting: Option<(Vec<String>, Missing)>,
}

/// Makes a root key in a new file, and its public half beside it. Returns the key's id in
/// hexadecimal.
///
/// # Errors
/// [`KeyError`]
pub fn new_root_key(path: &Path) -> Result<String, KeyError> {
    Ok(hex::encode(OfflineKey::create(path)?.id()))
}

/// Writes the next root to the data directory, for its keys to sign. The origin may run. Returns
/// the file, and what the root lacks.
///
/// # Errors
/// [`RootError`]
pub async fn prepare_root(places: &Places, order: &RootOrder) -> Result<(PathBuf, Missing), RootError> {
    let path = next_root_path(&places.data);
    let repository = open(places).await?;
    let _lock = NextRootLock::take(&places.data)?;
    if !order.replace
        && let Some(waiting) = read_root_file(&path)?
        && waiting.version() > repository.root_file().await?.version()
    {
        return Err(RootError::Waiting(path));
    }
    let add = order.add.iter().map(|path| read_public_key(path)).collect::<Result<_, _>>()?;
    let rotate = order.rotate.iter().map(|role| parse(role)).collect::<Result<_, _>>()?;
    let change = RootChange { add, remove: order.remove.clone(), threshold: order.threshold, rotate };
    let root = repository.propose_root(&change, unix_now()).await?;
    write_root_file(&path, &root)?;
    let missing = repository.root_missing(&root).await?;
    Ok((path, missing))
}

/// Reads the root in a file, wherever the file is. Returns what the root says, one line for each
/// thing.
///
/// # Errors
/// [`RootError`]
pub fn show_root_file(path: &Path) -> Result<Vec<String>, RootError> {
    let root = read_root_file(path)?.ok_or_else(|| RootError::NoFile(path.to_owned()))?;
    Ok(root.describe())
}

/// Signs the root in a file with keys in files. Returns what the root says, and the ids of those
/// keys that it does not list itself.
///
/// # Errors
/// [`RootError`]; the file is as it was then.
pub fn sign_root(path: &Path, keys: &[PathBuf]) -> Result<(Vec<String>, Vec<String>), RootError> {
    let mut root = read_root_file(path)?.ok_or_else(|| RootError::NoFile(path.to_owned()))?;
    let mut unlisted = Vec::new();
    for key in keys {
        let key = OfflineKey::read(key)?;
        if !root.sign(&key)? {
            unlisted.push(hex::encode(key.id()));
        }
    }
    write_root_file(path, &root)?;
    Ok((root.describe(), unlisted))
}

/// Hands in signed copies of the root that waits. The origin takes it over within a minute, or when
/// it starts, once nothing is missing.
///
/// # Errors
/// [`RootError`]; nothing was changed then.
pub async fn install_root(places: &Places, copies: &[PathBuf]) -> Result<Option<Missing>, RootError> {
    let path = next_root_path(&places.data);
    if !is_origin(&places.data) {
        return Err(RootError::NoOrigin(places.data.clone()));
    }
    let _lock = NextRootLock::take(&places.data)?;
    let mut root = read_root_file(&path)?;
    for copy in copies {
        let copy = read_root_file(copy)?.ok_or_else(|| RootError::NoFile(copy.clone()))?;
        match &mut root {
            Some(root) => root.merge(copy)?,
            None => root = Some(copy),
        }
    }
    let Some(root) = root else { return Err(RootError::NoFile(path)) };
    // In a realm without a root, the first start of the origin checks the signatures.
    let missing = match metadata(places).await? {
        Some(_) => Some(open(places).await?.root_missing(&root).await?),
        None => None,
    };
    write_root_file(&path, &root)?;
    Ok(missing)
}

/// The root in force, and the one that waits.
///
/// # Errors
/// [`RootError`]
pub async fn show_root(places: &Places) -> Result<RootShown, RootError> {
    let repository = open(places).await?;
    let in_force = repository.root_file().await?;
    let waiting: Option<RootFile> = read_root_file(&next_root_path(&places.data))?;
    let waiting = match waiting.filter(|root| root.version() > in_force.version()) {
        Some(root) => Some((root.describe(), repository.root_missing(&root).await?)),
        None => None,
    };
    Ok(RootShown { in_force: in_force.describe(), waiting })
}

async fn metadata(places: &Places) -> Result<Option<Arc<ObjectMetadata>>, RootError> {
    Ok(metadata_in(Store::open_present(&places.store)?).await.map_err(RepositoryError::from)?)
}

async fn open(places: &Places) -> Result<TufRepository, RootError> {
    let found = if is_origin(&places.data) { metadata(places).await? } else { None };
    let metadata = found.ok_or_else(|| RootError::NoOrigin(places.data.clone()))?;
    Ok(TufRepository::open(metadata, &places.keys, Options::default(), unix_now()).await?)
}
