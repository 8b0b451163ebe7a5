//! Whether database, store and signed metadata belong together and agree, before anything is
//! changed.

use std::collections::{BTreeMap, BTreeSet};

use distd_core::names::Name;
use futures::TryStreamExt;

use super::owner::Owner;
use crate::db::{Db, DbError, ReleaseRow};
use crate::store::{Store, StoreError};
use crate::tuf::{Listed, RepositoryError, TufRepository};

/// Object that names the store's realm: the SHA-256 of the realm's CA, hexadecimal.
const REALM: &str = "realm";

/// Names listed in a message.
const NAMED_MAX: usize = 5;

/// Disagreement between an origin's parts. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DisagreementError {
    /// The database is another realm's.
    #[error(
        "the database {database} belongs to realm {found}, this data directory to realm {wanted}: give --db the \
         database of this realm"
    )]
    ForeignDatabase {
        /// Its address, without a password.
        database: String,
        /// Its realm.
        found: String,
        /// This origin's realm.
        wanted: String,
    },
    /// The store is another realm's.
    #[error(
        "the store {store} belongs to realm {found}, this data directory to realm {wanted}: give --store the store \
         of this realm"
    )]
    ForeignStore {
        /// Its address.
        store: String,
        /// Its realm.
        found: String,
        /// This origin's realm.
        wanted: String,
    },
    /// An empty database beside a store in use.
    #[error(
        "the database {database} is empty, but the store {store} has {releases} releases and {packs} packs: give --db \
         the right database or restore it from a backup; if it is lost, distd-server fsck --repair rebuilds the \
         releases from the store (API tokens and nodes are then made anew)"
    )]
    EmptyDatabase {
        /// Its address, without a password.
        database: String,
        /// The store.
        store: String,
        /// Releases that the TUF repository lists.
        releases: usize,
        /// Packs in the store.
        packs: usize,
    },
    /// A store without a repository beside a database in use.
    #[error(
        "the database {database} has {releases} releases, but the store {store} holds no TUF repository: give --store \
         the right store, or restore it from a backup"
    )]
    EmptyStore {
        /// Its address, without a password.
        database: String,
        /// The store.
        store: String,
        /// Releases in the database.
        releases: u64,
    },
    /// A database that is older than the repository.
    #[error(
        "the signed metadata lists {count} releases that the database does not have ({names}): restore a newer database, or \
         run distd-server fsck --repair, which takes them over from the store"
    )]
    OlderDatabase {
        /// Number of the releases.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// A release whose row names another manifest than the signed metadata.
    #[error(
        "{name} has other contents in the database than in the signed metadata: restore both from one backup"
    )]
    OtherRelease {
        /// The release.
        name: String,
    },
    /// The store is another database's.
    #[error(
        "the store {store} belongs to database {owner}, this one is {database}: two databases on one store would sign \
         over each other; give --db that database, or another --store; if it is lost, distd-server fsck --repair takes the \
         store over for this one"
    )]
    OtherDatabase {
        /// The store.
        store: String,
        /// Id of the database that it belongs to.
        owner: String,
        /// Id of this one.
        database: String,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The TUF repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Parts that are compared.
pub(crate) struct Parties<'a> {
    pub(crate) db: &'a Db,
    /// Its address.
    pub(crate) database: String,
    pub(crate) store: &'a Store,
    /// Its address.
    pub(crate) place: String,
    /// This origin's realm.
    pub(crate) realm: String,
}

impl Parties<'_> {
    /// Compares what can be compared before the repository is opened, which would make one in an
    /// empty store.
    pub(crate) async fn check_owners(&self) -> Result<(), DisagreementError> {
        let wanted = self.realm.clone();
        if let Some(found) = self.db.realm().await?.filter(|found| *found != wanted) {
            return Err(DisagreementError::ForeignDatabase {
                database: self.database.clone(),
                found,
                wanted,
            });
        }
        let said = self.store.get(REALM).await?;
        let said = said.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        if let Some(found) = said.filter(|found| *found != wanted) {
            return Err(DisagreementError::ForeignStore { store: self.place.clone(), found, wanted });
        }
        let releases = self.db.contents().await?.releases;
        if releases > 0 && self.has_no_repository().await? {
            let (database, store) = (self.database.clone(), self.place.clone());
            return Err(DisagreementError::EmptyStore { database, store, releases });
        }
        Ok(())
    }

    /// Compares the rows with the signed metadata.
    pub(crate) async fn check_releases(
        &self,
        repository: &TufRepository,
    ) -> Result<Listed, DisagreementError> {
        let listed = repository.listed().await?;
        if self.db.contents().await?.is_new() {
            let mut packs = 0;
            let mut objects = self.store.list("packs");
            while objects.try_next().await?.is_some() {
                packs += 1;
            }
            if packs > 0 || !listed.releases.is_empty() {
                return Err(DisagreementError::EmptyDatabase {
                    database: self.database.clone(),
                    store: self.place.clone(),
                    releases: listed.releases.len(),
                    packs,
                });
            }
        }
        let comparison = Comparison::of(&listed, self.db.all_releases().await?, self.db.withdrawn().await?);
        if let Some(name) = comparison.differing.first() {
            return Err(DisagreementError::OtherRelease { name: name.clone() });
        }
        if !comparison.without_row.is_empty() {
            let count = comparison.without_row.len();
            let names = comparison.without_row.iter().take(NAMED_MAX);
            let mut names: Vec<_> = names.map(|(product, version)| format!("{product}@{version}")).collect();
            if count > NAMED_MAX {
                names.push("…".to_owned());
            }
            return Err(DisagreementError::OlderDatabase { count, names: names.join(", ") });
        }
        Ok(listed)
    }

    /// Whether the store is new.
    pub(super) async fn has_no_repository(&self) -> Result<bool, DisagreementError> {
        Ok(self.store.get("tuf/timestamp.json").await?.is_none())
    }

    /// Records the owner of database and store, once they were found to belong together.
    pub(super) async fn adopt(&self, owner: &Owner) -> Result<(), DisagreementError> {
        self.db.set_realm(&self.realm).await?;
        owner.take(self.db, &self.place).await?;
        if self.store.get(REALM).await?.is_none() {
            self.store.put(REALM, format!("{}\n", self.realm).into_bytes()).await?;
        }
        Ok(())
    }
}

/// Makes a store this database's, whichever database it belonged to, on an operator's order.
pub(crate) async fn give_store(db: &Db, store: &Store, realm: &str) -> Result<(), DisagreementError> {
    db.set_realm(realm).await?;
    Owner::give(db, store).await
}

/// Differences between the rows and the listed releases.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Listed releases without a row.
    pub(crate) without_row: Vec<(Name, Name)>,
    /// Rows that are not listed.
    pub(crate) unlisted: Vec<ReleaseRow>,
    /// Releases whose row names another manifest.
    pub(crate) differing: Vec<String>,
}

impl Comparison {
    /// Compares `rows` with the listed releases. Releases that are being withdrawn may be listed or
    /// not.
    pub(crate) fn of(listed: &Listed, rows: Vec<ReleaseRow>, withdrawn: Vec<ReleaseRow>) -> Self {
        let mut out = Self::default();
        let by_name: BTreeMap<_, _> =
            listed.releases.iter().map(|r| ((r.product.clone(), r.version.clone()), r.manifest())).collect();
        let mut seen = BTreeSet::new();
        for row in rows {
            let name = (row.product.clone(), row.version.clone());
            match by_name.get(&name) {
                Some(manifest) if manifest.is_some_and(|manifest| manifest != row.manifest) => {
                    out.differing.push(format!("{}@{}", row.product, row.version));
                }
                Some(_) => {}
                None => out.unlisted.push(row),
            }
            seen.insert(name);
        }
        seen.extend(withdrawn.into_iter().map(|row| (row.product, row.version)));
        out.without_row = by_name.into_keys().filter(|name| !seen.contains(name)).collect();
        out
    }
}
