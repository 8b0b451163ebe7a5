//! Parts that the metadata of all roles share: names, validity, hashes, signatures and errors.

use std::collections::HashMap;
use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use distd_peer::trust::tuf::StoreError;
use serde::de::DeserializeOwned;
use tough::schema::{Hashes, Metafile, Role, Signature, Signed, Targets};

use super::keys::{KeyError, SigningKey};
use super::root::{Missing, RootFile};

/// Seconds in a day.
const DAY: u64 = 24 * 3600;
/// Version of the TUF specification that the metadata states.
pub(super) const SPEC: &str = "1.0.0";
/// Delegated roles, with the targets that each may sign. Opening a repository adds the roles that
/// are newer than it.
pub(super) const DELEGATED: [(&str, &str); 3] =
    [("releases", "releases/*/*"), ("channels", "channels/*/*"), ("patches", "patches/*")];

/// Roles that have keys of their own.
pub(crate) fn key_roles() -> impl Iterator<Item = &'static str> {
    ["root", "targets", "snapshot", "timestamp"].into_iter().chain(DELEGATED.map(|(name, _)| name))
}

/// Validity of a role's metadata, seconds.
pub(super) fn lifetime(role: &str) -> u64 {
    match role {
        "timestamp" => DAY,
        "snapshot" => 7 * DAY,
        "root" => 365 * DAY,
        _ => 90 * DAY,
    }
}

/// Reason why the repository could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The metadata store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file is missing.
    #[error("the TUF repository lacks {0}: restore it from a backup")]
    Missing(String),
    /// Another process has published since the state was read.
    #[error("another distd-server has published at the same time: nothing was published, so try again")]
    PublishedElsewhere,
    /// A file is not the one that this origin signed.
    #[error("{name} in the TUF repository is not what this origin signed: restore it from a backup")]
    Altered {
        /// Name of the file.
        name: String,
        /// The cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The first root waits for signatures by keys that are kept elsewhere.
    #[error("{missing}")]
    FirstRootUnsigned {
        /// The root so far.
        file: Box<RootFile>,
        /// Signatures that it lacks.
        missing: Missing,
    },
    /// The root does not follow the one in force.
    #[error("root {version} cannot follow root {in_force}, which is in force: prepare a new one")]
    RootOutdated {
        /// Version of the root.
        version: u64,
        /// Version in force; 0 if there is none.
        in_force: u64,
    },
    /// No root key, or more than one, has an id that begins with this text.
    #[error(
        "no root key, or more than one, has an id that begins with {0:?}: look the ids up with distd-server root show"
    )]
    NoSuchRootKey(String),
    /// The number of keys or of signatures is out of bounds.
    #[error(
        "a root cannot have {keys} root keys and need {threshold} signatures: choose at most 32 keys, and no more signatures than keys"
    )]
    RootThreshold {
        /// Number of root keys.
        keys: usize,
        /// Number of signatures that the root would need.
        threshold: u64,
    },
    /// Metadata could not be made.
    #[error("could not make TUF metadata")]
    Schema(#[source] Box<dyn std::error::Error + Send + Sync>),
}

pub(super) fn schema(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RepositoryError {
    RepositoryError::Schema(e.into())
}

pub(super) fn altered<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    name: &str,
) -> impl FnOnce(E) -> RepositoryError + use<E> {
    let name = name.to_owned();
    move |cause| RepositoryError::Altered { name, cause: cause.into() }
}

pub(super) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, RepositoryError> {
    serde_json::from_slice(bytes).map_err(altered(name))
}

/// Expiry of metadata of `role` that is signed at `now`, unix seconds.
pub(crate) fn expires_after(role: &str, now: u64) -> u64 {
    now.saturating_add(lifetime(role))
}

/// Expiry as the metadata states it, of unix seconds.
pub(super) fn expiry(at: u64) -> Result<jiff::Timestamp, RepositoryError> {
    jiff::Timestamp::from_second(i64::try_from(at).map_err(schema)?).map_err(schema)
}

pub(super) fn expires(role: &str, now: u64) -> Result<jiff::Timestamp, RepositoryError> {
    expiry(expires_after(role, now))
}

pub(super) fn next(version: NonZeroU64) -> NonZeroU64 {
    version.saturating_add(1)
}

pub(super) fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: digest(&SHA256, bytes).as_ref().to_vec().into(), _extra: HashMap::new() }
}

pub(super) fn metafile(version: NonZeroU64, bytes: &[u8]) -> Metafile {
    Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(hashes(bytes)),
        version,
        _extra: HashMap::new(),
    }
}

/// Metadata of a role that lists nothing yet.
pub(super) fn empty_role(name: &str, now: u64) -> Result<Targets, RepositoryError> {
    let mut role = Targets::new(SPEC.to_owned(), NonZeroU64::MIN, expires(name, now)?);
    role.delegations = None;
    Ok(role)
}

/// Signs the canonical JSON of metadata with each key. The file's fields are sorted, so equal input
/// gives equal bytes.
pub(super) fn sign<T: Role>(role: T, keys: &[&SigningKey]) -> Result<Bytes, RepositoryError> {
    let message = role.canonical_form().map_err(schema)?;
    let signatures = keys.iter().map(|key| {
        let sig = key.sign(&message)?;
        Ok(Signature { keyid: key.id.clone(), sig: sig.into() })
    });
    let signatures = signatures.collect::<Result<_, KeyError>>()?;
    let value = serde_json::to_value(Signed { signed: role, signatures }).map_err(schema)?;
    Ok(serde_json::to_vec(&value).map_err(schema)?.into())
}
