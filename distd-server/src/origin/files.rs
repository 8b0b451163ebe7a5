//! Releases as files for other update clients: their digests, and what a channel's document says of
//! them (docs/formats.md, "Channel files").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::file_name::{FilePattern, sum_line};
use distd_core::fleet::rollout::RolloutDoc;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::gateway::NamedFile;
use distd_peer::trust::tuf::{ChannelFiles, FileSum};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use md5::{Digest, Md5};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::bytes::{ArtifactBytes, ReadBytesError};
use super::{Origin, SetChannelError, signed};
use crate::db::{ChannelRow, Db, DbError, FileDigests, FileSignature, ReleaseRow};
use crate::ingest::{Ingest, IngestError};
use crate::signer::OpenPgpPublic;
use crate::store::Chunks;
use crate::tuf::KeyError;

/// Releases whose digests are computed at once; each takes a core.
const AT_ONCE: usize = 2;

/// Kind of the releases that are files.
pub(super) const FILE: &str = "file";

/// Reason why a release has no digests.
#[derive(Debug, thiserror::Error)]
pub enum DigestsError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The manifest cannot be read.
    #[error(transparent)]
    Manifest(#[from] IngestError),
    /// The bytes cannot be read.
    #[error(transparent)]
    Bytes(#[from] ReadFault),
    /// The task was stopped, as at the end of the process.
    #[error("the computation was stopped")]
    Stopped,
}

/// Reason why the bytes of a release cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read the release's bytes")]
pub struct ReadFault(#[source] ReadBytesError);

/// Result of a computation that several callers may wait for.
type Computed = Result<FileDigests, Arc<DigestsError>>;

/// A computation under way.
type Running = Shared<BoxFuture<'static, Computed>>;

/// Digests of releases, each computed once.
#[derive(Clone)]
pub(crate) struct Digests {
    db: Db,
    ingest: Ingest,
    chunks: Chunks,
    /// By manifest: a version may be withdrawn and released again with other bytes.
    running: Arc<Mutex<BTreeMap<ManifestId, Running>>>,
    turns: Arc<Semaphore>,
}

impl Digests {
    pub(super) fn new(db: Db, ingest: Ingest, chunks: Chunks) -> Self {
        Self { db, ingest, chunks, running: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Digests of a release, from the database or computed in a task of its own, which goes on when
    /// the caller goes away.
    ///
    /// # Errors
    /// [`DigestsError`]; the next call computes again.
    pub(crate) async fn of(&self, release: &ReleaseRow) -> Computed {
        let (product, version) = (&release.product, &release.version);
        if let Some(found) = self.db.file_digests(product, version).await.map_err(DigestsError::from)? {
            return Ok(found);
        }
        let key = release.manifest;
        let running = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let place = running.entry(key);
            place.or_insert_with(|| self.clone().start(key, release.clone())).clone()
        };
        running.await
    }

    fn start(self, key: ManifestId, release: ReleaseRow) -> Running {
        let task = tokio::spawn(async move {
            let computed = self.compute(&release).await;
            self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            computed.map_err(Arc::new)
        });
        task.map(|ended| ended.unwrap_or_else(|_| Err(Arc::new(DigestsError::Stopped)))).boxed().shared()
    }

    async fn compute(&self, release: &ReleaseRow) -> Result<FileDigests, DigestsError> {
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        let manifest = Arc::new(self.ingest.manifest(&release.manifest).await?);
        let len = manifest.root().bytes;
        let mut pieces = ArtifactBytes::new(manifest, self.chunks.clone()).in_order(0..len);
        let mut hashes = (Context::new(&SHA256), Context::new(&SHA1_FOR_LEGACY_USE_ONLY), Md5::new());
        while let Some(piece) = pieces.recv().await {
            let piece = piece.map_err(ReadFault)?;
            hashes = spawn_blocking(move || {
                let (mut sha256, mut sha1, mut md5) = hashes;
                sha256.update(&piece);
                sha1.update(&piece);
                md5.update(&piece);
                (sha256, sha1, md5)
            })
            .await
            .expect("hashing does not panic");
        }
        let (sha256, sha1, md5) = hashes;
        let digests = FileDigests {
            sha256: sha256.finish().as_ref().try_into().expect("32 bytes"),
            sha1: sha1.finish().as_ref().try_into().expect("20 bytes"),
            md5: md5.finalize().into(),
        };
        let ReleaseRow { product, version, .. } = release;
        let is_current = |row: &ReleaseRow| row.manifest == release.manifest;
        if self.db.release(product, version).await?.as_ref().is_some_and(is_current) {
            self.db.put_file_digests(product, version, &digests).await?;
        }
        tracing::info!(%product, %version, bytes = len, "digests of the release were computed");
        Ok(digests)
    }
}

impl Origin {
    /// Digests of a release of kind file.
    ///
    /// # Errors
    /// [`DigestsError`].
    pub async fn file_digests(&self, release: &ReleaseRow) -> Result<FileDigests, Arc<DigestsError>> {
        self.digests.of(release).await
    }

    /// Public half of the realm's OpenPGP key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn openpgp_key(&self) -> Result<&OpenPgpPublic, KeyError> {
        match self.openpgp.get() {
            Some(known) => Ok(known),
            // The holder gives every caller the same key.
            None => self.keys.openpgp().map(|key| self.openpgp.get_or_init(|| key)),
        }
    }

    /// Sets or removes the file name of a product in the name of `db`'s actor, and signs the
    /// documents of its channels. `false` when there is no such product.
    ///
    /// # Errors
    /// [`SetChannelError`]. Where the change is in the database but not signed, the same call again
    /// or a restart signs it.
    pub async fn set_file_name(
        &self,
        db: &Db,
        product: &Name,
        pattern: Option<&FilePattern>,
    ) -> Result<bool, SetChannelError> {
        if !db.set_file_name(product, pattern, signed(unix_now())).await? {
            return Ok(false);
        }
        let channels = self.db.channels().await?;
        let channels: Vec<&ChannelRow> = channels.iter().filter(|row| row.product == *product).collect();
        if pattern.is_some() {
            // Before the turn of publications is taken: other products must not wait.
            for row in &channels {
                let rollout = self.rollout_doc(row).await?;
                self.compute_digests(product, led_to(row, rollout.as_ref())).await?;
            }
        }
        let _turn = self.publishing.lock().await;
        for row in channels {
            self.publish_channel(product, &row.channel).await?;
        }
        Ok(true)
    }

    /// Computes the digests of versions of a product with a file name, so that the turn of
    /// publications finds them. A failure is logged: the documents then lack the sum.
    pub(super) async fn prepare_files<'a>(
        &self,
        product: &Name,
        versions: impl IntoIterator<Item = &'a Name>,
    ) -> Result<(), DbError> {
        if self.db.product(product).await?.is_some_and(|row| row.file_name.is_some()) {
            self.compute_digests(product, versions.into_iter().collect()).await?;
        }
        Ok(())
    }

    async fn compute_digests(&self, product: &Name, versions: BTreeSet<&Name>) -> Result<(), DbError> {
        for version in versions {
            if let Some(release) = self.db.release(product, version).await?.filter(|row| row.kind == FILE) {
                // The publication that follows logs a failure.
                let _ = self.file_digests(&release).await;
            }
        }
        Ok(())
    }

    /// What the document of a channel says of files; `None` for a product without a file name. A
    /// release whose sum cannot be computed or signed is left out: clients that need it find
    /// nothing to install, and all others go on.
    pub(super) async fn channel_files(
        &self,
        row: &ChannelRow,
        rollout: Option<&RolloutDoc>,
    ) -> Result<Option<ChannelFiles>, DbError> {
        let product = &row.product;
        let Some(name) = self.db.product(product).await?.and_then(|row| row.file_name) else {
            return Ok(None);
        };
        let mut sums = BTreeMap::new();
        for version in led_to(row, rollout) {
            let Some(release) = self.db.release(product, version).await?.filter(|row| row.kind == FILE)
            else {
                continue;
            };
            match self.file_sum(&release, &name).await {
                Ok(sum) => drop(sums.insert(version.clone(), sum)),
                Err(error) => {
                    let error = tracing::field::display(Chain(error.as_ref()));
                    tracing::error!(%product, %version, error, "the release has no sum in its channel's document");
                }
            }
        }
        Ok(Some(ChannelFiles { name, sums }))
    }

    /// Name of a release's file, with its sum and signature if a channel has led to the release;
    /// `None` for a product without a file name. Computes nothing.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn named_file(&self, release: &ReleaseRow) -> Result<Option<NamedFile>, DbError> {
        let ReleaseRow { product, version, .. } = release;
        let Some(pattern) = self.db.product(product).await?.and_then(|row| row.file_name) else {
            return Ok(None);
        };
        let name = pattern.name_of(version);
        let signature = self.db.file_signature(product, version).await?.filter(|kept| kept.name == name);
        let digests = self.db.file_digests(product, version).await?;
        let sums = digests
            .zip(signature)
            .map(|(digests, kept)| (sum_line(&digests.sha256, &name), Some(kept.signature.into())));
        Ok(Some(NamedFile { name, sums }))
    }

    async fn file_sum(
        &self,
        release: &ReleaseRow,
        pattern: &FilePattern,
    ) -> Result<FileSum, Box<dyn std::error::Error + Send + Sync>> {
        let ReleaseRow { product, version, .. } = release;
        let sha256 = self.file_digests(release).await?.sha256;
        let (name, key) = (pattern.name_of(version), self.openpgp_key()?.fingerprint.clone());
        // A signature states when it was made, so it is kept: the document must not change with
        // each start.
        if let Some(kept) = self.db.file_signature(product, version).await?
            && (&kept.name, &kept.signed_by) == (&name, &key)
        {
            return Ok(FileSum { sha256, signature: kept.signature });
        }
        let signature = self.keys.sign_sum(&sum_line(&sha256, &name))?;
        let made = FileSignature { name, signed_by: key, signature };
        self.db.put_file_signature(product, version, &made).await?;
        Ok(FileSum { sha256, signature: made.signature })
    }
}

/// Versions to which a channel may lead a device.
fn led_to<'a>(row: &'a ChannelRow, rollout: Option<&'a RolloutDoc>) -> BTreeSet<&'a Name> {
    let of_rollout = rollout.into_iter().flat_map(|doc| doc.requires.iter().chain([&doc.version]));
    of_rollout.chain([&row.version]).collect()
}
