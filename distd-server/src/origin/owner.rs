//! The process that may sign into a store: the one that started on it last, with the database that
//! the store belongs to.
//!
//! Nothing locks a bucket, and PostgreSQL's lock can be lost with its connection. Therefore the
//! store itself names its owner, in an object that is read again before each write of metadata. A
//! process that finds another owner there is overtaken: it signs nothing more, and ends.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::DisagreementError;
use crate::db::Db;
use crate::store::{Store, StoreError};
use distd_peer::random;

/// Object that names the owner: id of the database and id of the process, hexadecimal, with a blank
/// between them.
const OWNER: &str = "owner";

/// Reason why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Another process has started on this store.
    #[error("another distd-server has taken the store over: stop one of the two, then start the other again")]
    Overtaken,
    /// The object that names the owner is gone.
    #[error("the store lacks the object owner, which names the process that signs: start this origin again")]
    Unnamed,
    /// This process follows one that leads, which signs.
    #[error("this distd-server is a replica that does not lead: ask the one that does")]
    Follows,
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// This process's claim on a store; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    store: Store,
    /// Content of the object while this process owns the store; unset until it was taken.
    claim: Arc<OnceLock<String>>,
    /// Whether another process signs.
    follows: bool,
    overtaken: CancellationToken,
}

impl Owner {
    /// Creates an owner without a claim, which refuses nothing.
    pub(crate) fn new(store: Store) -> Self {
        Self { store, claim: Arc::default(), follows: false, overtaken: CancellationToken::new() }
    }

    /// Creates the owner of a replica that does not lead, which refuses everything.
    pub(crate) fn following(store: Store) -> Self {
        Self { follows: true, ..Self::new(store) }
    }

    /// Whether another process signs.
    pub(super) fn follows(&self) -> bool {
        self.follows
    }

    /// Takes the store for this process, unless it belongs to another database.
    ///
    /// # Errors
    /// [`DisagreementError::OtherDatabase`]; [`DisagreementError::Db`],
    /// [`DisagreementError::Store`].
    pub(crate) async fn take(&self, db: &Db, place: &str) -> Result<(), DisagreementError> {
        if self.claim.get().is_some() {
            return Ok(());
        }
        let database = db.id(&hex::encode(random::bytes::<16>())).await?;
        let claim = format!("{database} {}", hex::encode(random::bytes::<16>()));
        let found = match self.named().await? {
            None if self.store.put_new(OWNER, claim.clone().into_bytes()).await? => None,
            // Another process was faster.
            None => self.named().await?,
            found => found,
        };
        if let Some(found) = found {
            check_database(&found, database, place)?;
            self.store.put(OWNER, claim.clone().into_bytes()).await?;
        }
        // The claim is set once: only the one task that opens the origin calls `take`.
        let _ = self.claim.set(claim);
        Ok(())
    }

    /// Refuses a store that belongs to another database than `db`. Takes nothing.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) async fn check_same(db: &Db, store: &Store, place: &str) -> Result<(), DisagreementError> {
        let Some(found) = Self::new(store.clone()).named().await? else { return Ok(()) };
        check_database(&found, db.known_id().await?.unwrap_or_default(), place)
    }

    /// Makes the store this database's, whichever database it belonged to.
    pub(super) async fn give(db: &Db, store: &Store) -> Result<(), DisagreementError> {
        let database = db.id(&hex::encode(random::bytes::<16>())).await?;
        Ok(store
            .put(OWNER, format!("{database} {}", hex::encode(random::bytes::<16>())).into_bytes())
            .await?)
    }

    /// Refuses when another process has taken the store since. From then on this process stays
    /// [overtaken](Self::overtaken).
    ///
    /// # Errors
    /// [`OwnerError`].
    pub(crate) async fn check(&self) -> Result<(), OwnerError> {
        if self.follows {
            return Err(OwnerError::Follows);
        }
        let Some(claim) = self.claim.get() else { return Ok(()) };
        if self.overtaken.is_cancelled() {
            return Err(OwnerError::Overtaken);
        }
        match self.named().await? {
            Some(found) if found == *claim => Ok(()),
            Some(_) => {
                self.overtaken.cancel();
                Err(OwnerError::Overtaken)
            }
            None => Err(OwnerError::Unnamed),
        }
    }

    /// A token that is cancelled once a [check](Self::check) has found another owner.
    pub(super) fn overtaken(&self) -> CancellationToken {
        self.overtaken.clone()
    }

    async fn named(&self) -> Result<Option<String>, StoreError> {
        let named = self.store.get(OWNER).await?;
        Ok(named.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }
}

/// Refuses `found`, the content of the object, when it names another database.
fn check_database(found: &str, database: String, place: &str) -> Result<(), DisagreementError> {
    let owner = found.split(' ').next().unwrap_or_default().to_owned();
    if owner == database {
        return Ok(());
    }
    Err(DisagreementError::OtherDatabase { store: place.to_owned(), owner, database })
}
