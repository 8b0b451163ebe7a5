//! An upload becomes a release.

use std::collections::HashMap;

use bytes::Bytes;
pub use distd_core::api::Run;
use distd_core::bounds::{ARTIFACT_BYTES_MAX, TREE_LISTING_BYTES_MAX};
use distd_core::cut::CutParams;
use distd_core::error::Chain;
use distd_core::manifest::{Builder, Entry, Kind, Manifest};
use distd_core::ranges::ChunkRanges;
use distd_core::{ArtifactHash, ChunkHash, ChunkId, ManifestId};

use super::index::{LockedIndex, UploadIndex};
use super::{Ingest, IngestError, manifest_object};
use crate::db::{BeginCommit, CommitTx, ReleaseRow, UnixSeconds, UploadId, UploadRow};

/// Runs given their ids at once. Few compared with the runs of a large artifact, many for one
/// query.
const RUNS_AT_ONCE: usize = 65_536;

/// Most runs of a commit: 335 MB of them.
const RUNS_MAX: usize = 1 << 23;

/// Most chunks shorter than the smallest that the cut parameters allow: one for each region of an
/// artifact.
const SHORT_CHUNKS_MAX: u64 = 1 << 20;

/// A publisher's statement about an artifact whose chunks are uploaded.
#[derive(Clone, Debug)]
pub struct CommitRequest {
    /// File or tree.
    pub kind: Kind,
    /// Cut parameters.
    pub cut: CutParams,
    /// Its chunks in artifact order.
    pub runs: Vec<Run>,
    /// BLAKE3 of the whole artifact.
    pub blake3: ArtifactHash,
    /// Its length, bytes.
    pub bytes: u64,
}

/// A commit whose artifact was read back.
#[derive(Debug)]
pub struct Prepared {
    row: UploadRow,
    /// Release of this version, if it exists already.
    released: Option<ReleaseRow>,
    request: CommitRequest,
    /// Whether that release has lost something, which the commit replaces.
    heals: bool,
}

/// Approximate upper bound of the bytes that the manifest of a commit takes in the store.
fn manifest_bytes(request: &CommitRequest) -> u64 {
    request.runs.iter().map(|run| u64::from(run.repeat)).sum::<u64>().saturating_mul(48)
}

/// A release, new or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitResult {
    /// Its manifest.
    pub manifest: ManifestId,
    /// The root node's bytes, which TUF signs.
    pub root: Bytes,
    /// Whether the version had been released with the same bytes, so that nothing changed.
    pub already_existed: bool,
    /// Chunks that got an id now.
    pub new_chunks: u64,
    /// The release as recorded.
    pub release: ReleaseRow,
}

impl CommitRequest {
    fn check(&self, bytes_max: u64) -> Result<(), IngestError> {
        let bad = |why| Err(IngestError::BadList(why));
        if self.bytes == 0 {
            return bad("the artifact is empty, which is no release anyone wants");
        }
        // Each region ends with a chunk that may be shorter than the smallest: a file of a tree, a
        // member of an archive.
        let chunks = self.runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.repeat.into()));
        if self.runs.len() > RUNS_MAX || chunks > self.bytes / u64::from(self.cut.min()) + SHORT_CHUNKS_MAX {
            return bad("there are more chunks than the cut parameters make of so many bytes");
        }
        let mut sum = 0u64;
        for run in &self.runs {
            if run.repeat == 0 || run.len == 0 || run.len > self.cut.max() {
                return bad("a chunk is empty, or longer than the cut parameters allow");
            }
            // Both are below 2^32, so the product fits; the bound below keeps the sum from
            // overflowing.
            sum = sum.saturating_add(u64::from(run.len) * u64::from(run.repeat));
        }
        if sum != self.bytes || sum > ARTIFACT_BYTES_MAX {
            return bad("the chunks' lengths do not add up to the artifact's, or to more than 16 TiB");
        }
        if self.bytes > bytes_max {
            return Err(IngestError::TooLarge { bytes: self.bytes, bytes_max });
        }
        match self.kind {
            Kind::Tree { listing_bytes } if listing_bytes > self.bytes.min(TREE_LISTING_BYTES_MAX) => {
                bad("the tree listing is longer than the artifact or 256 MiB")
            }
            // The origin makes these itself.
            Kind::PatchSet { .. } => bad("a patch set is not pushed"),
            _ => Ok(()),
        }
    }
}

impl Ingest {
    /// Makes a release of an upload whose chunks are all there. The whole artifact is read back and
    /// its hash compared; then ids, rows, manifest and release come into being together or not at
    /// all.
    ///
    /// A version that was released with the same bytes is found again, whether or not the upload is
    /// still open, so a commit whose answer got lost can be repeated. Publish
    /// [`CommitResult::root`] afterwards, in either case.
    ///
    /// # Errors
    /// [`IngestError`]. The upload stays open, except when it was over before or the version is
    /// taken.
    pub async fn commit(
        &self,
        upload: &UploadId,
        request: CommitRequest,
        by: &str,
        now: UnixSeconds,
    ) -> Result<CommitResult, IngestError> {
        let row = self.db.upload(upload).await?.ok_or_else(|| IngestError::UnknownUpload(upload.clone()))?;
        let prepared = self.prepare(row, request).await?;
        self.finish(prepared, by, now).await
    }

    /// Does the first part of a [`commit`](Self::commit): checks the list and reads the whole
    /// artifact back. Changes nothing, so the future may be dropped.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn prepare(&self, row: UploadRow, request: CommitRequest) -> Result<Prepared, IngestError> {
        request.check(self.limits.artifact_bytes_max)?;
        let released = self.db.release(&row.product, &row.version).await?;
        if let Some(release) = &released
            && (release.blake3 != request.blake3 || !self.is_damaged(&release.manifest))
        {
            return Ok(Prepared { row, released, request, heals: false });
        }
        row.must_be_open()?;
        if released.is_none() {
            self.check_quotas(&row.product, &row.token, 0, request.bytes).await?;
        }
        self.check_room(manifest_bytes(&request))?;
        self.indexes.lock(&self.db, &row.id).await?.refresh(&self.db, &row.id).await?;
        self.verify(&row, &request).await?;
        let heals = released.is_some();
        Ok(Prepared { row, released, request, heals })
    }

    /// Does the second part of a [`commit`](Self::commit). The future must not be dropped half-way.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn finish(
        &self,
        prepared: Prepared,
        by: &str,
        now: UnixSeconds,
    ) -> Result<CommitResult, IngestError> {
        let Prepared { row, released, request, heals } = prepared;
        if let Some(release) = released.clone().filter(|_| !heals) {
            return self.found(&row, release, &request).await;
        }
        let index = self.indexes.lock(&self.db, &row.id).await?;
        let begun = match heals {
            false => self.db.begin_commit(&row.id).await?,
            true => self.db.begin_healing(&row.id).await?,
        };
        match begun {
            BeginCommit::Ready(tx) => self.release(tx, index, &row, request, by, now, released).await,
            BeginCommit::Released(release) => self.found(&row, *release, &request).await,
            BeginCommit::Withdrawn => {
                self.indexes.forget(&row.id);
                if let Some(objects) = self.db.abort_upload(&row.id, None).await? {
                    self.delete_all(&objects).await?;
                }
                Err(IngestError::Withdrawn { product: row.product, version: row.version })
            }
            BeginCommit::Closed => Err(IngestError::UploadOver(row.id)),
        }
    }

    /// Makes the release, or replaces the lost chunks of `damaged` by uploaded ones.
    #[expect(clippy::too_many_arguments, reason = "what a commit is made of, used once")]
    async fn release(
        &self,
        mut tx: CommitTx,
        mut index: LockedIndex,
        upload: &UploadRow,
        request: CommitRequest,
        by: &str,
        now: UnixSeconds,
        damaged: Option<ReleaseRow>,
    ) -> Result<CommitResult, IngestError> {
        let CommitRequest { kind, cut, mut runs, blake3, bytes } = request;
        // Asked again under the lock of commits: another one may have taken what was left.
        if damaged.is_none()
            && let Some(over) = tx.over_quota(&upload.product, &upload.token, bytes).await?
        {
            return Err(IngestError::OverQuota(Box::new(over)));
        }
        let mut builder = Builder::new(cut, kind);
        let mut healed = 0;
        // The list is freed while the manifest grows: of a large artifact the two are the largest
        // things in memory.
        runs.reverse();
        while !runs.is_empty() {
            let mut batch = runs.split_off(runs.len().saturating_sub(RUNS_AT_ONCE));
            batch.reverse();
            runs.shrink_to_fit();
            let hashes: Vec<ChunkHash> = batch.iter().map(|run| run.hash).collect();
            let ids = assign(&mut tx, &mut index, &upload.id, &hashes).await?;
            healed += self.relocate(&mut tx, &mut index, &upload.id, &hashes).await?;
            for (run, id) in batch.iter().zip(ids) {
                for _ in 0..run.repeat {
                    builder.push(Entry { id, hash: run.hash, len: run.len });
                }
            }
        }
        let manifest = builder.finish(blake3);
        let root = manifest.root_bytes().clone();
        let already_existed = damaged.is_some();
        let release = match damaged {
            Some(release) if release.manifest != manifest.id() => return Err(IngestError::OtherCut),
            Some(release) => release,
            None => {
                let sequence = tx.number(&upload.product, now).await?;
                let row = ReleaseRow::of(&manifest, &upload.product, &upload.version, by, now);
                ReleaseRow { sequence, ..row }
            }
        };
        let file = manifest.to_file_bytes();
        drop(manifest);
        self.store.put(&manifest_object(&release.manifest), file).await?;
        let new_chunks = tx.given();
        let unused = tx.finish((!already_existed).then_some(&release)).await?;
        drop(index);
        self.indexes.forget(&upload.id);
        if let Err(error) = self.delete_all(&unused).await {
            // The release stands; the next sweep deletes the packs.
            tracing::warn!(
                error = %Chain(&error),
                "could not delete packs that hold nothing new"
            );
        }
        if healed > 0 || already_existed {
            tracing::info!(
                product = %release.product, version = %release.version, chunks = healed,
                "chunks that the store had lost are back"
            );
            self.look_again().await?;
        }
        Ok(CommitResult { manifest: release.manifest, root, already_existed, new_chunks, release })
    }

    /// Moves the rows of chunks in lost packs to the packs of the upload. Returns their number.
    async fn relocate(
        &self,
        tx: &mut CommitTx,
        index: &mut UploadIndex,
        upload: &UploadId,
        hashes: &[ChunkHash],
    ) -> Result<usize, IngestError> {
        if self.losses.is_empty() {
            return Ok(0);
        }
        let mut moved = HashMap::new();
        for (hash, place) in hashes.iter().zip(tx.places(hashes).await?) {
            if let Some((id, pack)) = place
                && self.losses.has_pack(pack)
            {
                let location = index.locate(tx, upload, hash).await?;
                moved.insert(id, location.ok_or(IngestError::MissingChunk(*hash))?);
            }
        }
        let moved: Vec<_> = moved.into_iter().collect();
        tx.relocate(&moved).await?;
        Ok(moved.len())
    }

    /// The version is released: the same bytes are found, others refused. Either way the upload has
    /// no use any more.
    async fn found(
        &self,
        upload: &UploadRow,
        release: ReleaseRow,
        request: &CommitRequest,
    ) -> Result<CommitResult, IngestError> {
        self.indexes.forget(&upload.id);
        if let Some(objects) = self.db.abort_upload(&upload.id, None).await? {
            self.delete_all(&objects).await?;
        }
        self.existing(release, request.blake3).await
    }

    /// A release that is there, when it has these bytes.
    pub(super) async fn existing(
        &self,
        release: ReleaseRow,
        blake3: ArtifactHash,
    ) -> Result<CommitResult, IngestError> {
        let ReleaseRow { product, version, manifest, blake3: released, .. } = release.clone();
        if released != blake3 {
            return Err(IngestError::VersionTaken { product, version, blake3: released });
        }
        let root = self.manifest(&manifest).await?.root_bytes().clone();
        Ok(CommitResult { manifest, root, already_existed: true, new_chunks: 0, release })
    }

    /// Ids of the chunks of a release or patch set; `None` when its manifest is lost.
    ///
    /// # Errors
    /// [`IngestError::Store`].
    pub async fn manifest_chunks(&self, id: &ManifestId) -> Result<Option<ChunkRanges>, IngestError> {
        match self.manifest(id).await {
            Ok(manifest) => Ok(Some(manifest.entries().map(|at| at.entry.id).collect())),
            Err(IngestError::MissingManifest(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The manifest of a release, read from the store and checked.
    ///
    /// # Errors
    /// [`IngestError::MissingManifest`] when it is missing or damaged, [`IngestError::Store`].
    pub async fn manifest(&self, id: &ManifestId) -> Result<Manifest, IngestError> {
        let bytes = self.store.get(&manifest_object(id)).await?.ok_or(IngestError::MissingManifest(*id))?;
        match Manifest::from_file_bytes(bytes) {
            Ok(manifest) if manifest.id() == *id => Ok(manifest),
            _ => Err(IngestError::MissingManifest(*id)),
        }
    }
}

/// Returns the ids of the next chunks of the artifact. Hashes without an id get new ids, in order.
async fn assign(
    tx: &mut CommitTx,
    index: &mut UploadIndex,
    upload: &UploadId,
    hashes: &[ChunkHash],
) -> Result<Vec<ChunkId>, IngestError> {
    let known = tx.ids(hashes).await?;
    // Place of each new chunk in `fresh`: a chunk may be among `hashes` more than once.
    let mut places: HashMap<ChunkHash, usize> = HashMap::new();
    let mut fresh = Vec::new();
    for (hash, id) in hashes.iter().zip(&known) {
        if id.is_none() && !places.contains_key(hash) {
            let location = index.locate(tx, upload, hash).await?;
            places.insert(*hash, fresh.len());
            fresh.push((*hash, location.ok_or(IngestError::MissingChunk(*hash))?));
        }
    }
    let given = tx.give_ids(&fresh).await?;
    Ok(hashes.iter().zip(known).map(|(hash, id)| id.unwrap_or_else(|| given[places[hash]])).collect())
}
