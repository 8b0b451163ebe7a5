//! The right of a command to write.
//!
//! A command that changes the database, the store or the signed metadata takes the same locks as an
//! origin, and then the object `owner` of the store: so it is refused while an origin runs on this
//! machine, and an origin that runs where the locks are not seen is overtaken and ends.

use std::path::Path;
use std::sync::Arc;

use distd_peer::trust::files;
use distd_peer::trust::identity::certificate_from_pem;
use distd_peer::trust::token::sha256;

use crate::db::{Db, DbError, redact, sqlite_path};
use crate::origin::{DisagreementError, ObjectMetadata, Owner, Parties, Places};
use crate::realm::RealmError;
use crate::store::{Store, StoreError};

/// Error of taking an origin's places for writing.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// The certificate of the CA cannot be read.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Parts of different realms, or a store of another database.
    #[error(transparent)]
    Disagreement(#[from] DisagreementError),
}

/// An origin's parts that this process owns.
pub(super) struct Owned {
    pub(super) db: Db,
    /// Signed metadata, written only as long as no other process takes the store.
    pub(super) metadata: Arc<ObjectMetadata>,
}

/// Takes an origin's places, whose [locks](crate::locks::Locks) the caller holds. A database of an
/// earlier release is brought up to date.
///
/// # Errors
/// [`OwnError`]; database and store are as they were then.
pub(super) async fn own(places: &Places) -> Result<Owned, OwnError> {
    let realm = hex::encode(ca_fingerprint(&places.data)?);
    let store = Store::open_present(&places.store)?;
    store.check().await?;
    let db = Db::open_and_migrate(&places.db).await?;
    let parties =
        Parties { db: &db, database: redact(&places.db), store: &store, place: places.store.clone(), realm };
    parties.check_owners().await?;
    let owner = take(&parties).await?;
    Ok(Owned { db, metadata: Arc::new(ObjectMetadata::owned(owner, store)) })
}

/// Takes the store for this process, once the owners of the parts were compared.
///
/// # Errors
/// [`DisagreementError`], nothing was taken then.
pub(super) async fn take(parties: &Parties<'_>) -> Result<Owner, DisagreementError> {
    let owner = Owner::new(parties.store.clone());
    // A database gets its id beside its realm.
    parties.db.set_realm(&parties.realm).await?;
    owner.take(parties.db, &parties.place).await?;
    Ok(owner)
}

/// Refuses places whose store or SQLite database is not there, before locks are taken, which makes
/// their directories.
///
/// # Errors
/// [`OwnError`].
pub(super) fn check_present(places: &Places) -> Result<(), OwnError> {
    Store::open_present(&places.store)?;
    match sqlite_path(&places.db).filter(|path| !path.is_file()) {
        Some(_) => Err(DbError::Absent(places.db.clone()).into()),
        None => Ok(()),
    }
}

/// SHA-256 of the CA's certificate in a data directory. Reads the copy that the origin keeps there,
/// wherever the key is, and makes nothing.
///
/// # Errors
/// [`RealmError`].
pub(super) fn ca_fingerprint(data: &Path) -> Result<[u8; 32], RealmError> {
    let path = data.join("realm/ca.pem");
    let damaged = || RealmError::Certificate(path.clone());
    let pem = files::read(&path)?.ok_or_else(damaged)?;
    Ok(sha256(&certificate_from_pem(&pem).map_err(|_| damaged())?))
}
