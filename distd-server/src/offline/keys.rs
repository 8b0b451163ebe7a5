//! Changing TUF keys.

use std::path::PathBuf;

use distd_peer::clock::unix_now;

use super::own::{OwnError, check_present, own};
use super::{is_begun, is_origin};
use crate::locks::{LockError, Locks};
use crate::origin::Places;
use crate::realm::{Authority, RealmError};
use crate::signer::{KeyHolder, OpenPgpKey, OpenPgpPublic};
use crate::tuf::{KeyError, Options, RepositoryError, RotatableRole, TufRepository};

/// Error of changing keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// No such role.
    #[error("there is no role {0:?} whose key can be changed: choose root, targets, snapshot or timestamp")]
    UnknownRole(String),
    /// Not an origin's directory.
    #[error("{} holds no origin: give --data the directory that distd-server serve uses", .0.display())]
    NoOrigin(PathBuf),
    /// No repository.
    #[error("the store {0} holds no TUF repository: give --store the store of this origin")]
    NoRepository(String),
    /// The origin runs, or something else has its places.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The origin's places are not this process's to write.
    #[error(transparent)]
    Own(#[from] OwnError),
    /// The metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] crate::tuf::StoreError),
    /// The repository, or a key that is needed.
    #[error(
        "the key of {role} was not changed; where root keys are kept elsewhere: distd-server root prepare --rotate {role}"
    )]
    Rotate {
        /// The role.
        role: String,
        /// The cause.
        #[source]
        cause: RepositoryError,
    },
    /// The CA cannot be used.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The CA's key is in a signer.
    #[error("the signer renews no CA: give its directory with --keys")]
    InSigner,
    /// The next OpenPGP key is where the signer's keys are.
    #[error("the signer shows only the key that signs: give its directory with --keys")]
    NextInSigner,
    /// The OpenPGP key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The repository cannot be opened.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

pub(super) fn parse(role: &str) -> Result<RotatableRole, KeysError> {
    match role {
        "root" => Ok(RotatableRole::Root),
        "targets" => Ok(RotatableRole::Targets),
        "snapshot" => Ok(RotatableRole::Snapshot),
        "timestamp" => Ok(RotatableRole::Timestamp),
        other => Err(KeysError::UnknownRole(other.to_owned())),
    }
}

/// Makes a new certificate of the CA's key. Nodes and tokens stay as they are, and the origin may
/// run. Returns the file and the certificate's end, unix seconds.
///
/// # Errors
/// [`KeysError::Realm`]; [`KeysError::InSigner`]
pub fn renew_ca(places: &Places) -> Result<(PathBuf, u64), KeysError> {
    let KeyHolder::ThisProcess(keys) = &places.keys else { return Err(KeysError::InSigner) };
    let end = Authority::renew(keys, unix_now())?;
    Ok((keys.join("realm/ca.pem"), end))
}

/// Public half of the OpenPGP key that signs, or with `next` of the one that is to sign later. A
/// missing key is made. The origin may run.
///
/// # Errors
/// [`KeysError::NoOrigin`]; [`KeysError::NextInSigner`]; [`KeysError::Key`]
pub fn openpgp_key(places: &Places, next: bool) -> Result<OpenPgpPublic, KeysError> {
    if !is_origin(&places.data) {
        return Err(KeysError::NoOrigin(places.data.clone()));
    }
    match &places.keys {
        KeyHolder::ThisProcess(keys) if next => {
            Ok(OpenPgpKey::load_or_create_next(keys, unix_now())?.public())
        }
        KeyHolder::Signer(_) if next => Err(KeysError::NextInSigner),
        keys => Ok(keys.openpgp()?),
    }
}

/// Gives roles new keys, one after the other. The origin must not run.
///
/// # Errors
/// [`KeysError`]; roles before the one that is named have their new keys.
pub async fn rotate(places: &Places, roles: &[String]) -> Result<(), KeysError> {
    let roles: Vec<_> =
        roles.iter().map(|role| Ok((role, parse(role)?))).collect::<Result<_, KeysError>>()?;
    if !is_origin(&places.data) {
        return Err(KeysError::NoOrigin(places.data.clone()));
    }
    check_present(places)?;
    let _locks = Locks::take(places).await?;
    rotate_locked(places, &roles, false).await
}

/// Versions that are passed over behind a restored backup: more than were published since it was
/// made.
const SKIPPED: u64 = 1_000_000;

/// Gives roles new keys as [`rotate`] does, under locks that the caller holds. With `behind_backup`
/// the versions of the metadata go past all that devices may have seen.
pub(super) async fn rotate_locked(
    places: &Places,
    roles: &[(&String, RotatableRole)],
    behind_backup: bool,
) -> Result<(), KeysError> {
    let owned = own(places).await?;
    if !is_begun(&owned.metadata).await? {
        return Err(KeysError::NoRepository(places.store.clone()));
    }
    let now = unix_now();
    let repository = TufRepository::open(owned.metadata, &places.keys, Options::default(), now).await?;
    if behind_backup {
        repository.skip_versions(SKIPPED, now).await?;
    }
    for (name, role) in roles {
        let rotated = repository.rotate_key(*role, now).await;
        rotated.map_err(|cause| KeysError::Rotate { role: (*name).clone(), cause })?;
    }
    owned.db.close().await;
    Ok(())
}
