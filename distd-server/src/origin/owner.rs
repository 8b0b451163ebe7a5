//! Which process may sign into a store: the one that started on it last, with the database that the
//! store belongs to.
//!
//! Nothing locks a bucket, and PostgreSQL's lock can be lost with its connection. So the store
//! itself says whose it is, in an object that is read again before each write of metadata.

use std::sync::{Arc, OnceLock};

use super::DisagreementError;
use crate::db::Db;
use crate::ingest::random;
use crate::store::{Store, StoreError};

/// Object that says whose store it is: the database's id and the process's, hexadecimal, a blank between.
const OWNER: &str = "owner";

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Another process has started on this store.
    #[error("another distd-server has taken the store over: stop one of the two, then start the other again")]
    Overtaken,
    /// The store cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// This process's claim on a store; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    store: Store,
    /// What the object says while the store is ours; unset until it was taken.
    claim: Arc<OnceLock<String>>,
}

impl Owner {
    /// No claim yet: nothing is refused.
    pub(super) fn new(store: Store) -> Self {
        Self { store, claim: Arc::default() }
    }

    /// Takes the store for this process, unless it is another database's.
    ///
    /// # Errors
    /// [`DisagreementError::OtherDatabase`]; the database or the store failed.
    pub(super) async fn take(&self, db: &Db, place: &str) -> Result<(), DisagreementError> {
        if self.claim.get().is_some() {
            return Ok(());
        }
        let database = db.id(&hex::encode(random())).await?;
        let claim = format!("{database} {}", hex::encode(random()));
        let found = match self.said().await? {
            None if self.store.put_new(OWNER, claim.clone().into_bytes()).await? => None,
            // Another process was faster.
            None => self.said().await?,
            found => found,
        };
        if let Some(found) = found {
            let owner = found.split(' ').next().unwrap_or_default().to_owned();
            if owner != database {
                return Err(DisagreementError::OtherDatabase { store: place.to_owned(), owner, database });
            }
            self.store.put(OWNER, claim.clone().into_bytes()).await?;
        }
        // Set once: `take` is called by the one task that opens the origin.
        let _ = self.claim.set(claim);
        Ok(())
    }

    /// Makes the store this database's, whosever it is.
    pub(super) async fn give(db: &Db, store: &Store) -> Result<(), DisagreementError> {
        let database = db.id(&hex::encode(random())).await?;
        Ok(store.put(OWNER, format!("{database} {}", hex::encode(random())).into_bytes()).await?)
    }

    /// Refuses when another process has taken the store since.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub(super) async fn check(&self) -> Result<(), OwnerError> {
        match self.claim.get() {
            Some(claim) if self.said().await?.as_ref() != Some(claim) => Err(OwnerError::Overtaken),
            _ => Ok(()),
        }
    }

    async fn said(&self) -> Result<Option<String>, StoreError> {
        let said = self.store.get(OWNER).await?;
        Ok(said.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }
}
