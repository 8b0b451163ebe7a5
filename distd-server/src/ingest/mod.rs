//! Ingest: uploads of chunks or of whole files, and the commit that makes a release of one.
//!
//! Both ways in end in the same rows, the same packs and the same manifest id. A chunk is
//! acknowledged when the pack that holds it is durable and recorded, so an acknowledged chunk is
//! never sent again, whichever process dies. docs/store.md, "Ingest", has the order of writes and
//! what each crash leaves.

mod commit;
mod compact;
mod file;
mod found;
mod index;
mod limits;
mod losses;
mod receive;
mod sweep;
mod verify;
mod visible;

pub use commit::{CommitRequest, CommitResult, Prepared, Run};
pub use compact::{Compacted, Compaction, EMPTIED_SECONDS};
pub use file::{FileHandle, FileRequest};
pub use limits::IngestLimits;
pub use losses::LossReport;
pub use receive::PackingSink;
pub use sweep::{Orphans, SweepScope, Swept};

use self::index::UploadIndexes;
use self::losses::Losses;
use self::visible::{ProductChunks, Seen};

use std::path::PathBuf;
use std::sync::Arc;

use distd_core::names::Name;
use distd_core::packing::{HashedChunk, LEVEL_DEFAULT, UnpackError};
use distd_core::{ArtifactHash, ChunkHash, ChunkId, ManifestId};
use tokio::sync::Semaphore;

use crate::db::{
    BeginUpload, Db, DbError, Location, OverQuota, PackId, UnixSeconds, UploadId, UploadRow, UploadState,
};
use crate::publisher::Publisher;
use crate::store::pack::PackError;
use crate::store::{PackReader, ReadError, Store, StoreError};
use distd_peer::random;

/// Time without a new chunk after which an upload is given up, seconds: a day, for publishers who
/// take their machine home.
pub const UPLOAD_SECONDS: i64 = 24 * 3600;

/// Packs being filled at once. Each holds up to 17 MiB and as much again on its way through the
/// verifiers, so this bounds ingest to about 100 MiB.
const SINKS_MAX: usize = 3;

/// Error of ingest. A message states the fact; http/error.rs adds what a publisher should do. Where
/// only the operator can help, the message says how.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// There is no such product.
    #[error("there is no product {0}")]
    UnknownProduct(Name),
    /// There is no such upload.
    #[error("there is no upload {0}")]
    UnknownUpload(UploadId),
    /// The upload was committed, aborted or expired.
    #[error("upload {0} has ended: it was committed, aborted or has expired")]
    UploadOver(UploadId),
    /// The token has too many open uploads.
    #[error("this token has {uploads_max} open uploads, as many as it may have")]
    TooManyUploads {
        /// The bound.
        uploads_max: u64,
    },
    /// The token's open uploads hold too many bytes.
    #[error("this token's open uploads may have {bytes_max} bytes together")]
    Quota {
        /// The bound.
        bytes_max: u64,
    },
    /// A product or a token has too many bytes.
    #[error(transparent)]
    OverQuota(Box<OverQuota>),
    /// The version is a release that was withdrawn.
    #[error("{product}@{version} was withdrawn")]
    Withdrawn {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// The artifact is too long.
    #[error("an artifact of {bytes} bytes is longer than this origin takes: {bytes_max}")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Only the reserve of the disk is left.
    #[error("the disk is full but for the reserve that renewals and signed metadata need")]
    NoRoom,
    /// A tree that no device would take.
    #[error("devices would refuse the tree's listing")]
    BadTree(#[source] distd_core::tree::DecodeListingError),
    /// A chunk's lengths are outside the bounds.
    #[error("the length of chunk number {index} is out of bounds")]
    ChunkBounds {
        /// Its place in the batch, from 0.
        index: u64,
    },
    /// A chunk's bytes are not what its hash says.
    #[error("chunk number {index} was refused")]
    BadChunk {
        /// Its place in the batch, from 0.
        index: u64,
        /// The fault, with the hash.
        #[source]
        cause: UnpackError,
    },
    /// The list of chunks contradicts itself.
    #[error("the list of chunks is wrong: {0}")]
    BadList(&'static str),
    /// The list names a chunk that was never uploaded.
    #[error("chunk {0} was not uploaded")]
    MissingChunk(ChunkHash),
    /// The chunks do not add up to the artifact.
    #[error("the chunks make an artifact with BLAKE3 {actual}, not {expected}")]
    WrongArtifact {
        /// The publisher's hash.
        expected: ArtifactHash,
        /// The hash of the chunks.
        actual: ArtifactHash,
    },
    /// The version exists with other bytes.
    #[error("{product}@{version} is already released with other bytes (BLAKE3 {blake3})")]
    VersionTaken {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
        /// BLAKE3 of the artifact it has.
        blake3: ArtifactHash,
    },
    /// A chunk that the origin holds is damaged.
    #[error("a stored chunk is damaged: restore the object store from its backup")]
    StoredChunk(#[source] UnpackError),
    /// The index of an upload's pack makes no sense.
    #[error("the database's index of pack {pack:?} is damaged: abort the upload and push again")]
    DamagedIndex {
        /// The pack.
        pack: PackId,
        /// The fault.
        #[source]
        cause: PackError,
    },
    /// The manifest of a release is not in the store.
    #[error("manifest {0} is missing from the object store: restore the object store from its backup")]
    MissingManifest(ManifestId),
    /// The file to cut could not be read.
    #[error("could not read the file to cut")]
    File(#[source] std::io::Error),
    /// Too many objects of the store are in no row of the database; crashes leave fewer.
    #[error(
        "{orphans} of {total} {kind} in the object store are in no row of the database, and none was deleted: is it \
         this store's database? look with distd-server fsck; if they are to go: distd-server fsck --repair \
         --delete-unknown"
    )]
    SweepTooLarge {
        /// `packs` or `manifests`.
        kind: &'static str,
        /// Number of objects that no row names.
        orphans: usize,
        /// Number of all objects.
        total: usize,
    },
    /// A damaged release was pushed again, cut in another way.
    #[error(
        "the release is damaged, and these chunks are cut in another way than its own: push another version"
    )]
    OtherCut,
    /// The file changed while it was cut.
    #[error("the file changed while it was cut: push a file that nobody writes to")]
    FileChanged,
    /// The database failed.
    #[error("the database failed")]
    Db(#[from] DbError),
    /// The store failed.
    #[error("the object store failed")]
    Store(#[from] StoreError),
    /// Packs could not be read.
    #[error("stored packs could not be read")]
    Read(#[from] ReadError),
}

/// Takes uploads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ingest {
    db: Db,
    store: Store,
    packs: PackReader,
    indexes: Arc<UploadIndexes>,
    losses: Arc<Losses>,
    sinks: Arc<Semaphore>,
    // One permit: reading a whole artifact back keeps both cores and some 40 MiB busy.
    verifiers: Arc<Semaphore>,
    // A permit of their own, so that small artifacts do not wait for large ones.
    small_verifiers: Arc<Semaphore>,
    visible: Arc<ProductChunks>,
    compaction: Arc<Compaction>,
    limits: IngestLimits,
    directories: Arc<[PathBuf]>,
    zstd_level: i32,
}

impl Ingest {
    /// Creates an ingest into a database and a store. Files that the origin cuts are compressed at
    /// the default level.
    pub fn new(db: Db, store: Store) -> Self {
        let losses = Arc::<Losses>::default();
        Self {
            packs: PackReader::new(db.clone(), store.clone()),
            db,
            store,
            indexes: Arc::new(UploadIndexes::new(losses.clone())),
            losses,
            sinks: Arc::new(Semaphore::new(SINKS_MAX)),
            verifiers: Arc::new(Semaphore::new(1)),
            small_verifiers: Arc::new(Semaphore::new(1)),
            visible: Arc::default(),
            compaction: Arc::new(Compaction::new(true)),
            limits: IngestLimits::default(),
            directories: Arc::default(),
            zstd_level: LEVEL_DEFAULT,
        }
    }

    /// Compresses files that the origin cuts at another zstd level.
    pub fn with_zstd_level(mut self, level: i32) -> Self {
        self.zstd_level = level;
        self
    }

    /// Begins an upload, or continues the open one that this publisher began for this version: the
    /// chunks it has need not be sent again. An upload ends [`UPLOAD_SECONDS`] after its last
    /// chunk.
    ///
    /// # Errors
    /// [`IngestError::UnknownProduct`], [`IngestError::TooManyUploads`],
    /// [`IngestError::Withdrawn`], [`IngestError::Db`].
    pub async fn begin_upload(
        &self,
        product: &Name,
        version: &Name,
        by: &Publisher,
        now: UnixSeconds,
    ) -> Result<UploadRow, IngestError> {
        Ok(self.begin_or_resume(product, version, by, now).await?.0)
    }

    /// Does the same as [`begin_upload`](Self::begin_upload), and also returns whether the upload
    /// was begun before.
    ///
    /// # Errors
    /// As [`begin_upload`](Self::begin_upload).
    pub async fn begin_or_resume(
        &self,
        product: &Name,
        version: &Name,
        by: &Publisher,
        now: UnixSeconds,
    ) -> Result<(UploadRow, bool), IngestError> {
        let fresh = UploadId::from_random(random::bytes());
        let (expires, uploads_max) = (now + UPLOAD_SECONDS, self.limits.uploads_max);
        let begun = self.db.begin_upload(fresh.clone(), product, version, by, now, expires, uploads_max);
        match begun.await? {
            BeginUpload::Open(row) => {
                let resumed = row.id != fresh;
                Ok((row, resumed))
            }
            BeginUpload::TooMany => Err(IngestError::TooManyUploads { uploads_max }),
            BeginUpload::UnknownProduct => Err(IngestError::UnknownProduct(product.clone())),
            BeginUpload::Withdrawn => {
                Err(IngestError::Withdrawn { product: product.clone(), version: version.clone() })
            }
        }
    }

    /// The upload, which must be open.
    ///
    /// # Errors
    /// [`IngestError::UnknownUpload`], [`IngestError::UploadOver`], [`IngestError::Db`].
    pub async fn open_upload(&self, upload: &UploadId) -> Result<UploadRow, IngestError> {
        match self.db.upload(upload).await? {
            None => Err(IngestError::UnknownUpload(upload.clone())),
            Some(row) => row.must_be_open().map(|()| row),
        }
    }

    /// Returns the indexes, ascending, of the hashes that neither a release of the publisher's
    /// products nor this upload has: these chunks must be sent.
    ///
    /// # Errors
    /// As [`open_upload`](Self::open_upload).
    pub async fn missing(&self, upload: &UploadId, hashes: &[ChunkHash]) -> Result<Vec<u32>, IngestError> {
        self.missing_from(&self.open_upload(upload).await?, hashes).await
    }

    /// Returns the same as [`missing`](Self::missing), for a caller that has the upload's row.
    ///
    /// # Errors
    /// [`IngestError`].
    pub async fn missing_from(
        &self,
        upload: &UploadRow,
        hashes: &[ChunkHash],
    ) -> Result<Vec<u32>, IngestError> {
        let seen = self.seen_by(&upload.products).await?;
        let mut index = self.indexes.lock(&self.db, &upload.id).await?;
        index.refresh(&self.db, &upload.id).await?;
        let released = self.released_to(&seen, hashes).await?;
        let missing = |(hash, at): (&ChunkHash, &Option<Location>)| at.is_none() && !index.has(hash);
        Ok((0u32..).zip(hashes.iter().zip(&released)).filter(|(_, h)| missing(*h)).map(|(n, _)| n).collect())
    }

    /// Ids and places, in the order given, of the chunks that a release has and the store did not
    /// lose.
    async fn released(&self, hashes: &[ChunkHash]) -> Result<Vec<Option<(ChunkId, Location)>>, DbError> {
        let mut found = self.db.places(hashes).await?;
        if !self.losses.is_empty() {
            for place in &mut found {
                *place = place.take().filter(|(_, at)| !self.losses.has_pack(at.pack));
            }
        }
        Ok(found)
    }

    /// Places of chunks in this upload or in a release, in the order given.
    async fn locate(
        &self,
        upload: &UploadId,
        seen: &Seen,
        hashes: &[ChunkHash],
    ) -> Result<Vec<Option<Location>>, IngestError> {
        let mut index = self.indexes.lock(&self.db, upload).await?;
        let mut found = Vec::with_capacity(hashes.len());
        for hash in hashes {
            found.push(index.locate(&mut self.db.clone(), upload, hash).await?);
        }
        drop(index);
        let of_releases: Vec<usize> = (0..hashes.len()).filter(|n| found[*n].is_none()).collect();
        let rest: Vec<ChunkHash> = of_releases.iter().map(|n| hashes[*n]).collect();
        for (n, location) in of_releases.into_iter().zip(self.released_to(seen, &rest).await?) {
            found[n] = location;
        }
        Ok(found)
    }

    /// Takes a batch of chunks, and makes all of them durable. Returns the number of new ones.
    ///
    /// Send about 16 MiB at once: each batch becomes at least one pack.
    ///
    /// # Errors
    /// [`IngestError::BadChunk`] and [`IngestError::ChunkBounds`] name the chunk; packs that were
    /// full before it are kept, so ask what is [`missing`](Self::missing).
    pub async fn put_chunks(
        &self,
        upload: &UploadId,
        chunks: Vec<HashedChunk>,
        now: UnixSeconds,
    ) -> Result<u64, IngestError> {
        let mut sink = self.sink(&self.open_upload(upload).await?, now).await?;
        for chunk in chunks {
            sink.push(chunk).await?;
        }
        sink.finish().await
    }

    /// Aborts an upload: it makes no release, and the space of its packs is freed.
    ///
    /// # Errors
    /// As [`open_upload`](Self::open_upload), and [`IngestError::Store`] when a pack could not be
    /// deleted; the sweep at the next start deletes it then.
    pub async fn abort(&self, upload: &UploadId) -> Result<(), IngestError> {
        match self.db.abort_upload(upload, None).await? {
            Some(objects) => {
                self.indexes.forget(upload);
                self.delete_all(&objects).await
            }
            None => self.open_upload(upload).await.map(drop),
        }
    }

    /// Deletes objects that the database has noted as doomed.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`]; the next sweep continues.
    pub(crate) async fn delete_all(&self, objects: &[String]) -> Result<(), IngestError> {
        for object in objects {
            self.store.delete(object).await?;
        }
        Ok(self.db.forget_doomed(objects).await?)
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl UploadRow {
    /// Refuses an upload that is over.
    ///
    /// # Errors
    /// [`IngestError::UploadOver`].
    pub fn must_be_open(&self) -> Result<(), IngestError> {
        match self.state {
            UploadState::Open => Ok(()),
            UploadState::Committed | UploadState::Aborted => Err(IngestError::UploadOver(self.id.clone())),
        }
    }
}

/// Object name of a manifest.
pub fn manifest_object(id: &ManifestId) -> String {
    format!("manifests/{id}")
}
