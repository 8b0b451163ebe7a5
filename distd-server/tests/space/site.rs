//! An origin in a directory, without its network, and small releases of chosen chunks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::cut::CutParams;
use distd_core::manifest::Kind;
use distd_core::names::Name;
use distd_core::packing::{HashedChunk, Packer, Unpacker};
use distd_core::{ChunkHash, ChunkId, ManifestId};
use distd_server::db::{ChannelMove, MoveBy, UploadId};
use distd_server::ingest::{CommitRequest, IngestError, Run};
use distd_server::origin::{GcOptions, Origin, Places, Tuning};
use distd_server::patches::PatchOptions;
use distd_server::publisher::Publisher;

/// Time for which the bytes of removed releases stay, seconds.
pub(crate) const GRACE: i64 = 3600;

/// Length of a chunk.
const CHUNK_BYTES: usize = 8 << 10;

pub(crate) fn name(text: impl ToString) -> Name {
    text.to_string().parse().expect("a name")
}

pub(crate) fn os() -> Name {
    name("os")
}

/// Chunk number `n`: noise, the same for the same number.
pub(crate) fn chunk(n: u64) -> Vec<u8> {
    let mut raw = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut raw);
    raw
}

pub(crate) fn hashes(chunks: &[u64]) -> Vec<ChunkHash> {
    chunks.iter().map(|n| ChunkHash::of(&chunk(*n))).collect()
}

fn cut() -> CutParams {
    CutParams::new(4096, 8192, 65_536).expect("sizes")
}

/// An open origin and its place.
pub(crate) struct Site {
    pub(crate) origin: Arc<Origin>,
    pub(crate) path: PathBuf,
}

impl Site {
    pub(crate) async fn open(path: &Path) -> Self {
        let patches = PatchOptions { enabled: false, ..PatchOptions::default() };
        let gc = GcOptions { grace: Duration::from_secs(GRACE as u64), period: Duration::ZERO };
        let tuning = Tuning { patches, gc, ..Tuning::default() };
        let origin = Origin::open(&Places::in_dir(path), tuning).await.expect("an origin");
        origin.sweep_at_start().await.expect("swept");
        Self { origin, path: path.to_owned() }
    }

    /// Ends without another step, as a kill does, and starts again.
    pub(crate) async fn reopened(self) -> Self {
        let Self { origin, path } = self;
        origin.db().close().await;
        drop(origin);
        Self::open(&path).await
    }

    /// Begins or resumes the upload of a version and sends what is missing of its chunks.
    pub(crate) async fn send(
        &self,
        version: &Name,
        chunks: &[u64],
        now: i64,
    ) -> Result<UploadId, IngestError> {
        let ingest = self.origin.ingest();
        ingest.db().ensure_product(&os(), cut(), now).await?;
        self.origin.make_way(&os(), version).await.expect("no removal stands in the way");
        let upload = ingest.begin_upload(&os(), version, &Publisher::unbound("ci"), now).await?.id;
        let missing = ingest.missing(&upload, &hashes(chunks)).await?;
        let mut packer = Packer::new(3);
        let missing = missing.into_iter().map(|n| {
            let raw = chunk(chunks[n as usize]);
            HashedChunk { hash: ChunkHash::of(&raw), packed: packer.pack(&raw) }
        });
        ingest.put_chunks(&upload, missing.collect(), now).await?;
        Ok(upload)
    }

    /// Commits an upload and publishes the release.
    pub(crate) async fn commit(
        &self,
        upload: &UploadId,
        chunks: &[u64],
        now: i64,
    ) -> Result<ManifestId, IngestError> {
        let whole: Vec<u8> = chunks.iter().flat_map(|n| chunk(*n)).collect();
        let run = |hash: &ChunkHash| Run { hash: *hash, len: CHUNK_BYTES as u32, repeat: 1 };
        let request = CommitRequest {
            kind: Kind::File,
            cut: cut(),
            runs: hashes(chunks).iter().map(run).collect(),
            blake3: blake3::hash(&whole).into(),
            bytes: whole.len() as u64,
        };
        let done = self.origin.ingest().commit(upload, request, "ci", now).await?;
        self.origin.publish_release(&done).await.expect("published");
        Ok(done.manifest)
    }

    pub(crate) async fn point(&self, channel: &str, version: &Name) -> bool {
        let wanted = ChannelMove { product: &os(), channel: &name(channel), version, downgrade: true };
        self.origin.set_channel(wanted, &MoveBy::origin()).await.is_ok()
    }

    /// Reads one chunk through the serving side and checks it.
    pub(crate) async fn read(&self, id: ChunkId) -> Option<ChunkHash> {
        let chunk = self.origin.chunks().chunk(id).await.ok()??;
        let mut unpacker = Unpacker::default();
        let raw = unpacker.unpack(chunk.codec, &chunk.bytes, chunk.raw_len, &chunk.hash);
        raw.is_ok().then_some(chunk.hash)
    }

    /// Ids and hashes of the chunks of a manifest.
    pub(crate) async fn entries(&self, manifest: &ManifestId) -> Vec<(ChunkId, ChunkHash)> {
        let manifest = self.origin.ingest().manifest(manifest).await.expect("the manifest is there");
        manifest.entries().map(|at| (at.entry.id, at.entry.hash)).collect()
    }

    /// Whether every chunk of a manifest can be read.
    pub(crate) async fn is_whole(&self, manifest: &ManifestId) -> bool {
        for (id, hash) in self.entries(manifest).await {
            if self.read(id).await != Some(hash) {
                return false;
            }
        }
        true
    }

    /// Every release that has a row, in any state, with its manifest.
    pub(crate) async fn rows(&self) -> Vec<(Name, ManifestId)> {
        let rows = self.origin.db().every_release().await.expect("read");
        rows.into_iter().map(|row| (row.version, row.manifest)).collect()
    }
}
