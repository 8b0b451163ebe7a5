//! The origin put together: storage, trust and publication behind one handle that HTTP and QUIC
//! share.

mod agree;
mod bundles;
mod bytes;
mod capabilities;
mod content;
mod ddi;
mod elsewhere;
mod files;
mod fleet;
mod gc;
mod halts;
mod manifests;
mod metadata;
mod owner;
mod patches;
mod publish;
mod receipts;
mod registry;
mod reports;
mod revoked;
mod rights;
mod rollouts;
mod root;
mod statements;
mod webhooks;
mod withdraw;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_peer::clock::unix_now;
use distd_peer::metrics::DurationsBy;
use distd_peer::news::Newsroom;
use distd_peer::trust::report::ReportPace;
use distd_peer::trust::revoked::Revoked;
use distd_peer::trust::tls::Credentials;
use distd_peer::trust::tuf::wire::end_of;

use self::bytes::ArtifactBytes;
use self::manifests::ManifestCache;
use crate::db::{Db, DbError, UnixSeconds, redact};
use crate::ingest::{Ingest, IngestError, IngestLimits};
use crate::patches::{PatchMaker, PatchOptions};
use crate::realm::{OriginCert, Realm, RealmError};
use crate::signer::{KeyHolder, OpenPgpPublic};
use crate::store::{Chunks, Store, StoreError};
use crate::tuf::{
    Answerer, Listed, MetadataStore, Missing, Options, PublishError, RepositoryError, TufRepository,
};

pub use agree::DisagreementError;
pub(crate) use agree::{Comparison, Parties, give_store};
pub use bundles::{BundleMetadataError, ForBundle};
pub(crate) use bytes::ReadBytesError;
pub use content::OriginContent;
pub use ddi::{DdiNews, DdiOffer};
pub use elsewhere::SeenElsewhere;
pub use files::DigestsError;
pub use fleet::{FleetFilter, FleetSelection};
pub use gc::{Collected, GcOptions, Plan, RetentionError, SetVerdict, Verdict};
pub use metadata::ObjectMetadata;
pub(crate) use owner::Owner;
pub use owner::OwnerError;
pub use patches::RequestPatchesError;
pub use publish::{PublishReleaseError, SetChannelError};
pub(crate) use receipts::LOG_RESTORED;
pub use receipts::LogError;
pub use reports::TakeReportsError;
pub use revoked::RevokedListError;
pub use rights::NodeRights;
pub use rollouts::{RolloutError, RolloutStatus, WaveStatus};
pub use root::{NextRootError, NextRootLock, next_root_path, read_root_file, write_root_file};
pub(crate) use webhooks::{SECRET_BYTES, secret_text};
pub use webhooks::{WebhookError, WebhookOptions};
pub use withdraw::{RemoveOrder, WithdrawError};

/// Places of an origin's parts.
#[derive(Clone, Debug)]
pub struct Places {
    /// Keys, spool and, by default, everything else.
    pub data: PathBuf,
    /// `sqlite:PATH` or `postgres://…`.
    pub db: String,
    /// A directory or `s3://…`.
    pub store: String,
    /// Holder of the CA's key and the TUF keys.
    pub keys: KeyHolder,
}

impl Places {
    /// Everything under one directory.
    pub fn in_dir(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            db: format!("sqlite:{}", data.join("distd.sqlite").display()),
            store: data.join("objects").display().to_string(),
            keys: KeyHolder::in_dir(data),
        }
    }
}

/// Part that a process has among those on its database and store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The only one.
    Alone,
    /// One of several replicas, which signs and collects, with the number of its term.
    Leads(u64),
    /// One of several replicas, which serves what is there and writes what any of them may write.
    Follows,
}

/// Settings of an origin's work.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Names and addresses its HTTPS certificate is for, besides `localhost`.
    pub hosts: Vec<String>,
    /// Validity of node certificates.
    pub cert_validity: Duration,
    /// Validity of the capabilities of nodes.
    pub capability_validity: Duration,
    /// Longest validity of the metadata in a bundle.
    pub bundle_validity: Duration,
    /// zstd level for files that the origin cuts.
    pub zstd_level: i32,
    /// Whether patches are made, and how.
    pub patches: PatchOptions,
    /// Limits of publishers.
    pub limits: IngestLimits,
    /// When releases that nothing keeps are removed.
    pub gc: GcOptions,
    /// Where webhooks may lead.
    pub webhooks: WebhookOptions,
    /// Files with the public root keys of a new realm; if there is none, the origin makes a root
    /// key.
    pub offline_root: Vec<PathBuf>,
    /// Number of root keys that must sign a root of a new realm.
    pub root_threshold: NonZeroU64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            cert_validity: Duration::from_secs(24 * 3600),
            capability_validity: Duration::from_secs(15 * 60),
            bundle_validity: Duration::ZERO,
            zstd_level: distd_core::packing::LEVEL_DEFAULT,
            patches: PatchOptions::default(),
            limits: IngestLimits::default(),
            gc: GcOptions::default(),
            webhooks: WebhookOptions::default(),
            offline_root: Vec::new(),
            root_threshold: NonZeroU64::MIN,
        }
    }
}

/// Error of opening an origin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be made or used.
    #[error("could not use the data directory {}", .0.display())]
    Data(PathBuf, #[source] std::io::Error),
    /// The clock is wrong, and keys would be made by it.
    #[error(
        "this machine's clock says {now}, but this program was built {built}: set the clock first, or the certificate \
         authority made now would end too early for ever"
    )]
    Clock {
        /// The clock's time, UTC.
        now: String,
        /// Time at which the program was built, UTC.
        built: String,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The realm cannot be used.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The TUF repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The next root cannot be used.
    #[error(transparent)]
    NextRoot(#[from] NextRootError),
    /// The first root waits for keys that are kept elsewhere.
    #[error(
        "the realm begins with a root that its keys have signed, and {missing}\n\
         next: distd-server root sign {} --key FILE, where the key is; bring the file back to its place; start again",
        path.display()
    )]
    FirstRootUnsigned {
        /// The file.
        path: PathBuf,
        /// Signatures that it lacks.
        missing: Missing,
    },
    /// A ceremony was begun, and its keys are not named any more.
    #[error(
        "{} waits to be the first root of this realm: name its keys with --offline-root and --root-threshold as before, \
         or remove the file to begin with a root key of the origin's own", .0.display()
    )]
    OfflineRootNotNamed(PathBuf),
    /// Another process signs for this store now.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The log of receipts cannot be continued.
    #[error("could not continue the log of receipts")]
    Log(#[from] LogError),
    /// Its parts do not belong together.
    #[error(transparent)]
    Disagreement(#[from] DisagreementError),
    /// A withdrawal that was cut off could not be finished.
    #[error("could not finish a withdrawal that was cut off")]
    Withdraw(#[from] WithdrawError),
    /// Cleaning up after the last run failed.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// Webhooks cannot be sent.
    #[error(transparent)]
    Webhooks(#[from] WebhookError),
    /// The releases that the last run had committed could not be published.
    #[error("could not publish releases that were committed before")]
    Publish(#[from] PublishError),
}

/// An open origin.
pub struct Origin {
    db: Db,
    ingest: Ingest,
    manifests: ManifestCache,
    chunks: Chunks,
    patches: PatchMaker,
    realm: Realm,
    repository: TufRepository,
    metadata: Arc<ObjectMetadata>,
    answerer: Answerer,
    credentials: Arc<Credentials>,
    capability_validity: Duration,
    bundle_validity: Duration,
    hosts: Vec<String>,
    owner: Owner,
    data: PathBuf,
    spool: PathBuf,
    revoked: Arc<Revoked>,
    news: Arc<Newsroom>,
    rules: rights::RuleCache,
    report_pace: ReportPace,
    newest_head: receipts::NewestHead,
    keys: KeyHolder,
    /// Public half of the OpenPGP key, once somebody has asked for it.
    openpgp: std::sync::OnceLock<OpenPgpPublic>,
    digests: files::Digests,
    /// Signalled when a rollout may have a next step.
    rollouts_due: tokio::sync::Notify,
    /// Readings of the list of revoked nodes take turns.
    revoking: tokio::sync::Mutex<()>,
    /// Publications take turns, so that a channel's counter and its document agree.
    publishing: tokio::sync::Mutex<()>,
    /// Times that signing and storing took, by what was published.
    publications: DurationsBy,
    gc: GcOptions,
    webhooks: webhooks::Sender,
    /// Products whose list of patch sets has to be signed again.
    relist: std::sync::Mutex<std::collections::BTreeSet<distd_core::names::Name>>,
}

impl Origin {
    /// Opens an origin, making what is missing. The caller holds the [locks](crate::locks::Locks)
    /// of these places.
    ///
    /// Database, store and metadata are compared before anything in them is changed: what belongs
    /// to another realm, or to another time, is refused. Work that an earlier run left half done is
    /// finished; objects that it left behind are [swept](Self::sweep_at_start) later.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(places: &Places, tuning: Tuning) -> Result<Arc<Self>, OpenError> {
        Self::open_as(places, tuning, Part::Alone).await
    }

    /// As [`open`](Self::open), for one of several processes. One that follows changes nothing, and
    /// waits for the one that leads to begin the realm.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_as(places: &Places, tuning: Tuning, part: Part) -> Result<Arc<Self>, OpenError> {
        let Tuning {
            hosts,
            cert_validity,
            capability_validity,
            bundle_validity,
            zstd_level,
            patches,
            limits,
            gc,
            webhooks,
            offline_root,
            root_threshold,
        } = tuning;
        let now = unix_now();
        let data = &places.data;
        let failed = |e| OpenError::Data(data.clone(), e);
        if !data.join("realm/ca.pem").exists() {
            check_clock(now, built())?;
        }
        std::fs::create_dir_all(data).map_err(failed)?;
        let spool = data.join("spool");
        // Spooled uploads end with the connection that brought them.
        match std::fs::remove_dir_all(&spool) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => std::fs::create_dir_all(&spool).map_err(failed)?,
        }
        let realm = Realm::open(data, &places.keys, now)?.with_node_validity(cert_validity.as_secs());
        let cert: OriginCert = realm.origin_cert(&hosts, now)?;
        let credentials = realm.credentials(&cert)?;
        let db = match part {
            Part::Alone | Part::Follows => Db::open(&places.db).await?,
            Part::Leads(epoch) => Db::open_leading(&places.db, epoch).await?,
        };
        let store = Store::open(&places.store)?;
        store.check().await?;
        let parties = Parties {
            db: &db,
            database: redact(&places.db),
            store: &store,
            place: places.store.clone(),
            realm: hex::encode(realm.ca_fingerprint()),
        };
        parties.check_owners().await?;
        let owner = match part {
            Part::Alone | Part::Leads(_) => Owner::new(store.clone()),
            Part::Follows => Owner::following(store.clone()),
        };
        let metadata = Arc::new(ObjectMetadata::owned(owner.clone(), store.clone()));
        let (repository, listed) = if part == Part::Follows {
            Owner::check_same(&db, &store, &places.store).await?;
            (TufRepository::open_present(metadata.clone(), &places.keys).await?, None)
        } else {
            if parties.has_no_repository().await? {
                // The store is taken before a repository is made: of two origins that begin here at
                // once, only one makes it.
                parties.adopt(&owner).await?;
            }
            let repository = open_repository(places, &metadata, &offline_root, root_threshold, now).await?;
            let listed = parties.check_releases(&repository).await?;
            parties.adopt(&owner).await?;
            (repository, Some(listed))
        };
        let ingest = Ingest::new(db.clone(), store.clone())
            .with_zstd_level(zstd_level)
            .with_limits(limits, vec![spool.clone()]);
        let chunks = Chunks::new(db.clone(), store.clone());
        let news = Newsroom::open(data, realm.ca_der().clone());
        let origin = Arc::new(Self {
            answerer: Answerer::new(metadata.clone()),
            digests: files::Digests::new(db.clone(), ingest.clone(), chunks.clone()),
            keys: places.keys.clone(),
            openpgp: Default::default(),
            chunks,
            patches: PatchMaker::new(ingest.clone(), spool.clone(), patches),
            db,
            manifests: ManifestCache::new(ingest.clone()),
            ingest,
            realm,
            repository,
            metadata,
            credentials,
            capability_validity,
            bundle_validity,
            hosts,
            owner,
            data: data.clone(),
            spool,
            revoked: Arc::default(),
            news,
            rules: Default::default(),
            report_pace: ReportPace::default(),
            newest_head: Default::default(),
            rollouts_due: tokio::sync::Notify::new(),
            revoking: tokio::sync::Mutex::new(()),
            publishing: tokio::sync::Mutex::new(()),
            publications: DurationsBy::short(),
            gc,
            webhooks: webhooks::Sender::new(webhooks)?,
            relist: Default::default(),
        });
        if let Some(listed) = listed {
            origin.finish_earlier_work(&listed).await?;
        }
        origin.refresh_revoked().await?;
        Ok(origin)
    }

    /// Finishes what an earlier process left half done, once this one may sign.
    async fn finish_earlier_work(&self, listed: &Listed) -> Result<(), OpenError> {
        // A file that cannot be used must not keep a realm from signing its timestamp.
        match self.take_next_root().await {
            Ok(Some(missing)) if !missing.is_none() => {
                tracing::warn!("{missing}: distd-server root show says more");
            }
            Ok(_) => {}
            Err(error) => {
                let error = tracing::field::display(Chain(&error));
                tracing::error!(
                    error,
                    "the next TUF root was not put in force: prepare it again with --replace"
                );
            }
        }
        self.name_losses().await?;
        let cut_off = self.db.requeue_patch_sets(signed(unix_now())).await?;
        if cut_off > 0 {
            tracing::info!(cut_off, "patch sets are made again");
        }
        self.resume_log().await?;
        self.publish_pending(listed).await?;
        Ok(self.resume_withdrawals(listed).await?)
    }

    /// Logs the losses of the store, and puts patch sets that lost a chunk back into the queue.
    async fn name_losses(&self) -> Result<(), OpenError> {
        let losses = self.ingest.look_for_losses().await?;
        if losses.is_empty() {
            return Ok(());
        }
        let (packs, manifests) = (losses.packs.len(), losses.manifests.len());
        tracing::error!(
            packs,
            manifests,
            first = losses.packs.first().or(losses.manifests.first()),
            "the object store lacks objects that the database names: restore them from a backup"
        );
        for (product, version) in &losses.releases {
            tracing::error!(%product, %version, "the release cannot be served whole: push the same bytes again");
        }
        for set in &losses.patch_sets {
            self.db.remake_patch_set(set).await?;
        }
        Ok(())
    }

    /// Deletes what crashes left in the store. Call it when the origin is about to serve, before it
    /// does: then no other process writes, and a process that cannot serve has deleted nothing.
    ///
    /// # Errors
    /// [`IngestError`]; a sweep that would take too much is logged, takes nothing and is no error.
    pub async fn sweep_at_start(&self) -> Result<(), IngestError> {
        match self.ingest.sweep_orphans(self.ingest.scope_at_start(), signed(unix_now())).await {
            Ok(swept) => tracing::info!(?swept, "swept"),
            Err(error @ IngestError::SweepTooLarge { .. }) => {
                tracing::error!(error = %Chain(&error), "nothing was swept");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The manifests that were used last.
    pub(crate) fn manifests(&self) -> &ManifestCache {
        &self.manifests
    }

    /// The bytes of a release's artifact, by its manifest.
    ///
    /// # Errors
    /// As [`Ingest::manifest`].
    pub(crate) async fn artifact(&self, manifest: ManifestId) -> Result<ArtifactBytes, IngestError> {
        let loaded = self.manifests.load(&manifest).await?;
        Ok(ArtifactBytes::new(loaded.manifest.clone(), self.chunks.clone()))
    }

    /// Uploads and commits.
    pub fn ingest(&self) -> &Ingest {
        &self.ingest
    }

    /// Chunks by id.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// The maker of patch sets.
    pub fn patches(&self) -> &PatchMaker {
        &self.patches
    }

    /// Times that publications took, by what was published.
    pub fn publications(&self) -> &DurationsBy {
        &self.publications
    }

    /// Ends of the validity of the timestamp and of the root, unix seconds; `None` for one that
    /// cannot be read.
    pub async fn metadata_ends(&self) -> [(&'static str, Option<u64>); 2] {
        let (timestamp, root) =
            tokio::join!(self.metadata.get("timestamp.json"), self.repository.root_json());
        let timestamp = timestamp.ok().flatten().and_then(|json| end_of(&json));
        [("timestamp", timestamp), ("root", root.ok().and_then(|json| end_of(&json)))]
    }

    /// Directories whose disks matter, with their uses.
    pub fn directories(&self) -> Vec<(&'static str, &Path)> {
        let store = self.ingest.store().directory().map(|directory| ("store", directory));
        [("data", self.data.as_path())].into_iter().chain(store).collect()
    }

    /// The CA.
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The TUF files, as served under `/tuf/`.
    pub fn metadata(&self) -> &Arc<ObjectMetadata> {
        &self.metadata
    }

    /// Key and certificate of HTTPS and QUIC.
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// Directory for whole-file uploads; emptied at start.
    pub fn spool(&self) -> &Path {
        &self.spool
    }

    /// Whether another process signs, and this one serves what is there.
    pub fn follows(&self) -> bool {
        self.owner.follows()
    }

    /// Looks whether another process has taken the store. Call it every few seconds.
    ///
    /// # Errors
    /// [`OwnerError`]; with [`OwnerError::Overtaken`] this process must end.
    pub async fn check_owner(&self) -> Result<(), OwnerError> {
        self.owner.check().await
    }

    /// Waits until this process finds that another one has taken the store.
    pub async fn overtaken(&self) {
        self.owner.overtaken().cancelled_owned().await;
    }

    /// Does the work that is due from time to time: signs metadata again, expires uploads, renews
    /// the origin's certificate, compacts packs. Returns the time until it is due again, seconds.
    ///
    /// # Errors
    /// The first thing that failed; call again after a while.
    pub async fn maintain(&self) -> Result<u64, OpenError> {
        let now = unix_now();
        // An overtaken process signs nothing, and deletes nothing that another may need.
        self.owner.check().await?;
        let refreshed = self.repository.refresh(now).await?;
        if refreshed.root_key_needed
            && let Err(error) = self.ask_for_next_root().await
        {
            let error = tracing::field::display(Chain(&error));
            tracing::error!(
                error,
                "the TUF root runs out, and the next one could not be written for its keys"
            );
        }
        let expired = self.ingest.expire(signed(now)).await?;
        if expired > 0 {
            tracing::info!(expired, "uploads given up");
        }
        self.renew_certificate()?;
        // Removals come before compaction, which they give work to.
        let space = match self.look_after_space(signed(now)).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "releases could not be removed");
                3600
            }
        };
        // Compaction comes last, and its failure is no failure of maintenance: space can wait,
        // signatures cannot.
        let more = match self.ingest.compact(signed(now)).await {
            Ok(compacted) => {
                if compacted.packs > 0 || compacted.deleted > 0 {
                    tracing::info!(?compacted, "packs that were mostly unused");
                }
                compacted.more
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "packs could not be compacted");
                false
            }
        };
        // Uploads need maintenance every hour. It runs at most once a minute.
        let latest = if more { 60 } else { 3600 };
        Ok(refreshed.next.saturating_sub(now).min(space).clamp(60, latest))
    }
}

/// Opens the repository. The first root of a realm whose root keys are elsewhere is left for them.
async fn open_repository(
    places: &Places,
    metadata: &Arc<ObjectMetadata>,
    offline_root: &[PathBuf],
    root_threshold: NonZeroU64,
    now: u64,
) -> Result<TufRepository, OpenError> {
    let begun = metadata.get("1.root.json").await.map_err(RepositoryError::from)?.is_some();
    if !begun && offline_root.is_empty() && next_root_path(&places.data).exists() {
        return Err(OpenError::OfflineRootNotNamed(next_root_path(&places.data)));
    }
    // The lock is held until the file is written: an operator may hand in a signed copy at the same
    // time.
    let lock = if begun { None } else { Some(NextRootLock::take(&places.data)?) };
    let options = match begun {
        true => Options::default(),
        false => root::first_root_options(&places.data, offline_root, root_threshold)?,
    };
    match TufRepository::open(metadata.clone(), &places.keys, options, now).await {
        Err(RepositoryError::FirstRootUnsigned { file, missing }) => {
            let path = next_root_path(&places.data);
            write_root_file(&path, &file).map_err(NextRootError::from)?;
            drop(lock);
            Err(OpenError::FirstRootUnsigned { path, missing })
        }
        other => Ok(other?),
    }
}

/// Time at which this program was built, unix seconds.
fn built() -> u64 {
    env!("DISTD_BUILT").parse().expect("the build script writes a number")
}

/// Most seconds that a clock may be behind the build's: two machines never agree exactly.
const CLOCK_SECONDS: u64 = 24 * 3600;

/// Refuses a clock that is before the build: a CA of ten years made in 1970 is expired for every
/// client that looks at dates.
fn check_clock(now: u64, built: u64) -> Result<(), OpenError> {
    if now.saturating_add(CLOCK_SECONDS) >= built {
        return Ok(());
    }
    let text = |seconds| {
        let time = jiff::Timestamp::from_second(signed(seconds));
        time.map_or_else(|_| seconds.to_string(), |time| time.to_string())
    };
    Err(OpenError::Clock { now: text(now), built: text(built) })
}

/// Unix seconds as the database counts them.
pub fn signed(seconds: u64) -> UnixSeconds {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_made_by_a_clock_that_is_before_the_build() {
        for (now, good) in
            [(0, false), (162_864_000, false), (1_800_000_000 - 90_000, false), (1_800_000_000, true)]
        {
            assert_eq!(check_clock(now, 1_800_000_000).is_ok(), good, "{now}");
        }
        let error = check_clock(162_864_000, 1_800_000_000).expect_err("1975").to_string();
        assert!(error.contains("1975-03-01") && error.contains("set the clock"), "{error}");
        assert!(check_clock(unix_now(), built()).is_ok());
    }
}
