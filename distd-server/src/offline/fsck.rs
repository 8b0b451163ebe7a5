//! Check of store, rows and signed metadata against each other, and the repairs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use distd_peer::clock::unix_now;
use serde::Serialize;

use super::own::{ca_fingerprint, take};
use super::rebuild::{RebuildError, UnknownPacks, raise_counter, rebuild};
use super::{is_begun, is_origin};
use crate::db::{Actor, Db, DbError, redact};
use crate::ingest::{Ingest, IngestError};
use crate::locks::{LockError, Locks};
use crate::origin::{
    Comparison, DisagreementError, ObjectMetadata, OpenError, Origin, Owner, Parties, Places, Tuning,
    give_store, signed,
};
use crate::realm::RealmError;
use crate::store::pack::read_index;
use crate::store::{Store, StoreError};
use crate::tuf::{Options, RepositoryError, TufRepository};

/// Prefix of damaged packs that were put aside. They are not deleted, since a part of them may
/// still be of use.
const ASIDE: &str = "damaged/";

/// Options of a check.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsckOptions {
    /// Whether to mend what can be mended.
    pub repair: bool,
    /// Whether to delete packs and manifests that no row names, however many; needs `repair`.
    pub delete_unknown: bool,
    /// Whether to read every pack and compare its hash.
    pub check_data: bool,
}

/// Error of a check.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// Not an origin's directory.
    #[error("{} holds no origin: give --data the directory that distd-server serve uses", .0.display())]
    NoOrigin(PathBuf),
    /// An option without the one that it needs.
    #[error("--delete-unknown changes the store: say --repair as well")]
    NeedsRepair,
    /// The store has no repository.
    #[error("the store {0} holds no TUF repository: give --store the store of this origin")]
    NoRepository(String),
    /// The origin runs, or something else has its places.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The CA cannot be used.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// Parts of different realms.
    #[error(transparent)]
    Disagreement(#[from] DisagreementError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] crate::tuf::StoreError),
    /// The TUF repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Looking at packs failed.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// Rows could not be made again.
    #[error("could not make rows again")]
    Rebuild(#[from] RebuildError),
    /// The origin could not be opened after repairs.
    #[error("could not open the origin after the repair")]
    Open(#[from] OpenError),
}

/// Findings of a check, and their repairs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FsckReport {
    /// Releases in the database.
    pub releases: usize,
    /// Packs in the database.
    pub packs: usize,
    /// Releases that the signed metadata lists and no row has.
    pub without_row: Vec<String>,
    /// Releases in the database that the signed metadata does not list.
    pub unlisted: Vec<String>,
    /// Releases whose row names another manifest than the signed metadata.
    pub differing: Vec<String>,
    /// Packs and manifests that rows name and the store does not have.
    pub lost: Vec<String>,
    /// Packs whose bytes are not what they were; `None` when they were not read.
    pub rotten: Option<Vec<String>>,
    /// Releases that cannot be served whole.
    pub damaged: Vec<String>,
    /// Packs and manifests that no row names.
    pub unknown: Vec<String>,
    /// Chunks of lost packs that the repair found in other packs.
    pub found_again: u64,
    /// Fault of the audit log, in words.
    pub audit: Option<String>,
    /// Repairs that were made, in words.
    pub repaired: Vec<String>,
    /// Repairs that were not possible, and why.
    pub left: Vec<String>,
}

impl FsckReport {
    /// Whether something is wrong that was not mended. Objects that no row names do not count: they
    /// cost only space.
    pub fn is_sound(&self) -> bool {
        self.without_row.is_empty()
            && self.unlisted.is_empty()
            && self.differing.is_empty()
            && self.lost.is_empty()
            && self.rotten.as_ref().is_none_or(Vec::is_empty)
            && self.damaged.is_empty()
            && self.audit.is_none()
            && self.left.is_empty()
    }
}

/// Checks an origin, and mends it if `repair` is set. The origin must not run. Without `repair`
/// nothing is written: neither to the database nor to the store.
///
/// # Errors
/// [`FsckError`].
pub async fn fsck(places: &Places, options: FsckOptions) -> Result<FsckReport, FsckError> {
    if options.delete_unknown && !options.repair {
        return Err(FsckError::NeedsRepair);
    }
    if !is_origin(&places.data) {
        return Err(FsckError::NoOrigin(places.data.clone()));
    }
    // The store is looked for before locks are taken, because taking locks makes its directory. A
    // lost database is no error: the repair makes it again.
    Store::open_present(&places.store)?;
    let _locks = match options.repair {
        true => Locks::take(places).await?,
        false => Locks::share(places).await?,
    };
    let mut mended = Mended::default();
    if options.repair {
        mended = repair(places, options).await?;
    }
    let look = Look::open(places, Purpose::Look).await?;
    // After a repair the packs were read already.
    let mut report = look.report(options.check_data && !options.repair).await?;
    report.found_again = mended.found_again;
    (report.repaired, report.left) = (mended.done, mended.left);
    look.db.close().await;
    Ok(report)
}

/// Purpose of opening an origin's places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Look,
    Repair,
}

/// Everything that is looked at.
struct Look {
    db: Db,
    store: Store,
    ingest: Ingest,
    repository: TufRepository,
    /// SHA-256 of the realm's CA, hexadecimal.
    realm: String,
}

impl Look {
    /// Opens everything. With [`Purpose::Look`] nothing is made or changed. With
    /// [`Purpose::Repair`] a lost database is made again, and the store is taken.
    async fn open(places: &Places, purpose: Purpose) -> Result<Self, FsckError> {
        let realm = hex::encode(ca_fingerprint(&places.data)?);
        let store = Store::open_present(&places.store)?;
        store.check().await?;
        let mut metadata = ObjectMetadata::read_only(store.clone());
        if !is_begun(&metadata).await? {
            return Err(FsckError::NoRepository(places.store.clone()));
        }
        let db = match purpose {
            Purpose::Repair => Db::open(&places.db).await?.acting(Actor::operator(), signed(unix_now())),
            Purpose::Look => Db::open_read_only(&places.db).await?,
        };
        let parties = Parties {
            db: &db,
            database: redact(&places.db),
            store: &store,
            place: places.store.clone(),
            realm,
        };
        parties.check_owners().await?;
        if purpose == Purpose::Repair {
            metadata = match Self::owner(&parties).await? {
                Some(owner) => ObjectMetadata::owned(owner, store.clone()),
                None => ObjectMetadata::new(store.clone()),
            };
        }
        let realm = parties.realm;
        let repository =
            TufRepository::open(Arc::new(metadata), &places.keys, Options::default(), unix_now()).await?;
        let ingest = Ingest::new(db.clone(), store.clone());
        Ok(Self { db, store, ingest, repository, realm })
    }

    /// Takes the store for a repair, so that an origin elsewhere stops signing; `None` when the
    /// store belongs to another database, or this one is empty: [`give_store`] makes the store this
    /// database's once the repair has found them to agree.
    async fn owner(parties: &Parties<'_>) -> Result<Option<Owner>, FsckError> {
        if parties.db.contents().await?.is_new() {
            return Ok(None);
        }
        match take(parties).await {
            Ok(owner) => Ok(Some(owner)),
            Err(DisagreementError::OtherDatabase { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn report(&self, read_packs: bool) -> Result<FsckReport, FsckError> {
        let listed = self.repository.listed().await?;
        let rows = self.db.all_releases().await?;
        let mut out =
            FsckReport { releases: rows.len(), packs: self.db.packs().await?.len(), ..FsckReport::default() };
        let name = |(product, version)| format!("{product}@{version}");
        let comparison = Comparison::of(&listed, rows, self.db.withdrawn().await?);
        out.without_row = comparison.without_row.into_iter().map(name).collect();
        out.unlisted =
            comparison.unlisted.iter().map(|row| format!("{}@{}", row.product, row.version)).collect();
        out.differing = comparison.differing;
        if read_packs {
            out.rotten = Some(self.rotten().await?);
        }
        out.audit = self.db.check_audit().await?.err().map(|fault| fault.to_string());
        let losses = self.ingest.look_for_losses().await?;
        out.lost = losses.packs.into_iter().chain(losses.manifests).collect();
        out.damaged = losses.releases.into_iter().map(name).collect();
        let doomed: BTreeSet<String> = self.db.doomed(i64::MAX).await?.into_iter().collect();
        for kind in ["packs", "manifests"] {
            let names = self.ingest.orphans(kind, i64::MAX).await?.names;
            out.unknown.extend(names.into_iter().filter(|name| !doomed.contains(name)));
        }
        Ok(out)
    }

    /// Packs that rows name and whose bytes are not what they were.
    async fn rotten(&self) -> Result<Vec<String>, FsckError> {
        let mut rotten = Vec::new();
        for (_, object, bytes) in self.db.packs().await? {
            let Some(found) = self.store.get(&object).await? else { continue };
            // A pack of another length counts as lost already.
            if found.len() as u64 != bytes {
                continue;
            }
            let read = tokio::task::spawn_blocking(move || read_index(&found).is_ok());
            if !read.await.expect("reading an index does not panic") {
                rotten.push(object);
            }
        }
        Ok(rotten)
    }
}

/// The result of a repair.
#[derive(Debug, Default)]
struct Mended {
    /// Repairs that were made, in words.
    done: Vec<String>,
    /// Repairs that were not possible, and why.
    left: Vec<String>,
    /// Chunks of lost packs that were found in other packs.
    found_again: u64,
}

/// Mends the origin's places as far as possible. Each step can be cut off and repeated.
async fn repair(places: &Places, options: FsckOptions) -> Result<Mended, FsckError> {
    let Mended { mut done, mut left, .. } = Mended::default();
    let look = Look::open(places, Purpose::Repair).await?;
    let listed = look.repository.listed().await?;
    let comparison = Comparison::of(&listed, look.db.all_releases().await?, look.db.withdrawn().await?);
    if !comparison.without_row.is_empty() {
        let packs = UnknownPacks::read(&look.db, &look.store).await?;
        raise_counter(&look.db, &look.ingest).await?;
        for name in &comparison.without_row {
            let (product, version) = name;
            match rebuild(&look.db, &look.ingest, &packs, &listed, name).await {
                Ok(()) => done.push(format!("{product}@{version}: its rows are made again from the store")),
                Err(error @ (RebuildError::Db(_) | RebuildError::Store(_) | RebuildError::Ingest(_))) => {
                    return Err(error.into());
                }
                Err(error) => left.push(format!("{product}@{version}: {error}")),
            }
        }
    }
    if !comparison.without_row.is_empty() && look.db.grants().await?.is_empty() {
        done.push(
            "nodes, labels, groups and grants were in the database alone: grant releases with distd grant add, and \
             let nodes enrol again"
                .to_owned(),
        );
    }
    if options.check_data {
        for object in look.rotten().await? {
            if let Some(bytes) = look.store.get(&object).await? {
                look.store.put(&format!("{ASIDE}{object}"), bytes).await?;
                look.store.delete(&object).await?;
                done.push(format!("{object}: damaged, put aside as {ASIDE}{object}"));
            }
        }
    }
    // Before anything is deleted: a pack that no row names can hold the only copy.
    let found_again = look.ingest.find_lost_chunks(signed(unix_now())).await?;
    if found_again > 0 {
        done.push(format!("found again: {found_again} chunks of lost packs, in other packs"));
    }
    let unlisted: Vec<String> =
        comparison.unlisted.iter().map(|row| format!("{}@{}", row.product, row.version)).collect();
    let mend = left.is_empty() && comparison.differing.is_empty();
    if options.delete_unknown && mend {
        // This process holds the locks: no other one records objects meanwhile.
        let swept = look.ingest.sweep_everything(signed(unix_now())).await?;
        done.push(format!(
            "{} packs and {} manifests that no row names are deleted",
            swept.packs, swept.manifests
        ));
    } else if options.delete_unknown {
        left.push("nothing is deleted while releases lack their rows".to_owned());
    }
    if mend && !look.db.contents().await?.is_new() {
        give_store(&look.db, &look.store, &look.realm).await?;
    }
    look.db.close().await;
    drop(look);
    if mend {
        // Opening the origin lists unlisted releases, takes channels over, and marks the owner of
        // database and store.
        match Origin::open(places, Tuning::default()).await {
            Ok(origin) => origin.db().close().await,
            Err(OpenError::Disagreement(DisagreementError::EmptyDatabase { packs, .. })) => {
                left.push(format!(
                    "the database is empty, and {packs} packs belong to no release that the signed metadata lists: \
                     --delete-unknown deletes them"
                ));
                return Ok(Mended { done, left, found_again });
            }
            Err(error) => return Err(error.into()),
        }
        done.extend(unlisted.into_iter().map(|name| format!("{name}: the signed metadata lists it again")));
    }
    Ok(Mended { done, left, found_again })
}

/// The report in words, one finding a line.
impl std::fmt::Display for FsckReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.repaired {
            writeln!(f, "mended: {line}")?;
        }
        for line in &self.left {
            writeln!(f, "not mended: {line}")?;
        }
        let findings: [(&[String], &str); 7] = [
            (
                &self.without_row,
                "in the signed metadata and in no row: fsck --repair takes it over from the store",
            ),
            (
                &self.unlisted,
                "not in the signed metadata: distd-server serve, or fsck --repair, lists it again",
            ),
            (
                &self.differing,
                "its row names another manifest than the signed metadata: restore both from one backup",
            ),
            (
                &self.lost,
                "named by rows and not in the store, or of another length: restore it from a backup",
            ),
            (
                self.rotten.as_deref().unwrap_or_default(),
                "damaged: restore it from a backup, or fsck --repair --check-data puts it aside",
            ),
            (&self.damaged, "cannot be served whole: push the same bytes again, or restore the store"),
            (&self.unknown, "named by no row: the sweep, or fsck --repair --delete-unknown, deletes it"),
        ];
        for (names, what) in findings {
            for name in names {
                writeln!(f, "{name}: {what}")?;
            }
        }
        let verdict = if self.is_sound() { "sound" } else { "not sound" };
        write!(f, "{} releases, {} packs: {verdict}", self.releases, self.packs)
    }
}
