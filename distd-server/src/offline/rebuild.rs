//! Rows made again from what the store and the signed metadata say.

use std::collections::{BTreeMap, HashMap};

use distd_core::names::Name;
use distd_core::{ChunkHash, ChunkId, ManifestId};
use distd_peer::clock::unix_now;
use futures::TryStreamExt;

use crate::db::{Db, DbError, ReleaseRow, Restoration};
use crate::ingest::{Ingest, IngestError};
use crate::origin::signed;
use crate::store::pack::{PackEntry, read_index};
use crate::store::{Store, StoreError};
use crate::tuf::Listed;

/// Error of rebuilding the rows of a release.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The metadata does not say which manifest it is.
    #[error("the signed metadata of {0} names no manifest")]
    Unnamed(String),
    /// The manifest is lost.
    #[error("the manifest {0} is not in the store")]
    Manifest(ManifestId),
    /// A chunk is lost.
    #[error("chunk {0} is in no pack of the store")]
    Chunk(ChunkHash),
    /// The database was written to since.
    #[error("chunk id {0} belongs to another chunk in this database")]
    TakenId(ChunkId),
    /// Reading a manifest or a pack failed.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Places of the chunks in packs that no row names.
pub(super) struct UnknownPacks {
    chunks: HashMap<ChunkHash, (usize, PackEntry)>,
    /// Object and length.
    packs: Vec<(String, u64)>,
}

impl UnknownPacks {
    /// Reads every pack that no row names, whole. Some 60 bytes of memory for each chunk.
    pub(super) async fn read(db: &Db, store: &Store) -> Result<Self, RebuildError> {
        let mut out = Self { chunks: HashMap::new(), packs: Vec::new() };
        let mut objects = store.list("packs");
        while let Some(object) = objects.try_next().await? {
            if db.packs_known(std::slice::from_ref(&object.name)).await? == [true] {
                continue;
            }
            let Some(bytes) = store.get(&object.name).await? else { continue };
            let entries = tokio::task::spawn_blocking(move || read_index(&bytes));
            let Ok(entries) = entries.await.expect("reading an index does not panic") else {
                tracing::warn!(pack = object.name, "a pack that no row names is damaged and of no use");
                continue;
            };
            let number = out.packs.len();
            out.packs.push((object.name, object.bytes));
            for entry in entries {
                out.chunks.entry(entry.hash).or_insert((number, entry));
            }
        }
        Ok(out)
    }
}

/// Raises the chunk counter above every id that any manifest of the store names: an id that was
/// given once is never given to another chunk, even if its own chunk is gone.
pub(super) async fn raise_counter(db: &Db, ingest: &Ingest) -> Result<(), RebuildError> {
    let mut highest = 0;
    let mut objects = ingest.store().list("manifests");
    while let Some(object) = objects.try_next().await? {
        let Some(id) = object.name.strip_prefix("manifests/").and_then(|id| id.parse().ok()) else {
            continue;
        };
        match ingest.manifest(&id).await {
            Ok(manifest) => {
                highest = manifest.entries().map(|at| at.entry.id.0).fold(highest, u64::max);
            }
            Err(IngestError::MissingManifest(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(db.raise_chunk_counter(highest).await?)
}

/// Makes the row of one listed release, and those of its packs and chunks that lack one.
pub(super) async fn rebuild(
    db: &Db,
    ingest: &Ingest,
    packs: &UnknownPacks,
    listed: &Listed,
    name: &(Name, Name),
) -> Result<(), RebuildError> {
    let (product, version) = name;
    let unnamed = || RebuildError::Unnamed(format!("{product}@{version}"));
    let found = listed.releases.iter().find(|r| r.product == *product && r.version == *version);
    let id = found.and_then(|release| release.manifest()).ok_or_else(unnamed)?;
    // A release that was signed before there were numbers is older than every release with one.
    let sequence = found.and_then(|release| release.sequence()).unwrap_or(0);
    let manifest = match ingest.manifest(&id).await {
        Err(IngestError::MissingManifest(id)) => return Err(RebuildError::Manifest(id)),
        other => other?,
    };
    let mut wanted: BTreeMap<ChunkId, ChunkHash> = BTreeMap::new();
    for at in manifest.entries() {
        wanted.insert(at.entry.id, at.entry.hash);
    }
    let ids: Vec<ChunkId> = wanted.keys().copied().collect();
    for row in db.chunks_by_id(&ids).await? {
        match wanted.remove(&row.id) {
            Some(hash) if hash != row.hash => return Err(RebuildError::TakenId(row.id)),
            _ => {}
        }
    }
    let hashes: Vec<ChunkHash> = wanted.values().copied().collect();
    for (id, known) in wanted.keys().zip(db.chunk_ids(&hashes).await?) {
        if known.is_some() {
            return Err(RebuildError::TakenId(*id));
        }
    }
    let mut restoration = Restoration::default();
    for (id, hash) in wanted {
        let (pack, entry) = packs.chunks.get(&hash).ok_or(RebuildError::Chunk(hash))?;
        let (object, bytes) = &packs.packs[*pack];
        let chunks = restoration.packs.entry(object.clone()).or_insert((*bytes, Vec::new()));
        chunks.1.push((id, *entry));
    }
    let now = signed(unix_now());
    // The signed metadata lists the release already.
    let row = ReleaseRow {
        published: Some(now),
        sequence,
        ..ReleaseRow::of(&manifest, product, version, "fsck", now)
    };
    Ok(db.restore_release(&row, manifest.root().cut, &restoration).await?)
}
