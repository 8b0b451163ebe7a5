//! A whole file comes in and the origin cuts it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use distd_core::cut::{Batch, Batches, CutParams, ReadAt, regions};
use distd_core::error::Chain;
use distd_core::manifest::Kind;
use distd_core::names::Name;
use distd_core::packing::{HashedChunk, PackedChunk, Packer};
use distd_core::{ArtifactHash, ChunkHash};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::commit::{CommitRequest, CommitResult, Run};
use super::{Ingest, IngestError, PackingSink};
use crate::db::UnixSeconds;
use crate::publisher::Publisher;

/// Batches of 4 MiB that wait for the next stage; as many again are being compressed. With the two
/// in the hands of threads there are six, 24 MiB in all. Two batches keep two cores busy.
const BATCHES_MAX: usize = 2;

/// Request to make a release of a file.
#[derive(Clone, Debug)]
pub struct FileRequest {
    /// The product.
    pub product: Name,
    /// The version to make.
    pub version: Name,
    /// Cut parameters.
    pub cut: CutParams,
    /// Its publisher.
    pub by: Publisher,
}

/// An open file as an artifact.
#[derive(Debug)]
pub struct FileHandle {
    file: File,
    len: u64,
}

impl FileHandle {
    /// Opens a file or block device.
    ///
    /// # Errors
    /// Errors of opening the file and reading its length.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    /// A file that is open already.
    ///
    /// # Errors
    /// The error of the seek that measures the file.
    pub fn of(mut file: File) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }
}

impl ReadAt for FileHandle {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// A batch of an artifact with its chunks hashed.
struct Hashed {
    batch: Arc<Batch>,
    hashes: Vec<ChunkHash>,
}

impl Ingest {
    /// Cuts a file, stores what is new and makes the release: the same manifest id as when the
    /// command line cuts it. An error leaves no release, and what was stored for it is given back.
    ///
    /// # Errors
    /// [`IngestError`].
    pub async fn ingest_file(
        &self,
        request: &FileRequest,
        file: FileHandle,
        now: UnixSeconds,
    ) -> Result<CommitResult, IngestError> {
        let FileRequest { product, version, by, .. } = request;
        let file = Arc::new(file);
        match self.db.release(product, version).await? {
            // The same bytes heal a damaged release, whatever the quotas are.
            Some(release) => {
                let hash = hash_file(file.clone()).await?;
                if release.blake3 != hash || !self.is_damaged(&release.manifest) {
                    return self.existing(release, hash).await;
                }
            }
            None => self.check_quotas(product, &by.token, 0, file.len).await?,
        }
        let upload = self.begin_upload(product, version, by, now).await?;
        let result = async {
            let sink = self.sink(&upload, now).await?;
            let commit = self.cut_into(sink, file, request.cut).await?;
            self.finish(self.prepare(upload.clone(), commit).await?, &by.label, now).await
        };
        match result.await {
            Ok(done) => Ok(done),
            Err(error) => {
                // Best effort: an upload that cannot be aborted now expires later.
                if let Err(abort) = self.abort(&upload.id).await {
                    tracing::debug!(error = %Chain(&abort), "could not abort the upload");
                }
                Err(error)
            }
        }
    }

    /// Cuts a file in three stages: one thread reads and cuts the file and hashes the whole; others
    /// hash chunks; others compress the new chunks.
    async fn cut_into(
        &self,
        mut sink: PackingSink,
        file: Arc<FileHandle>,
        cut: CutParams,
    ) -> Result<CommitRequest, IngestError> {
        let (tx, mut rx) = mpsc::channel::<JoinHandle<Hashed>>(1);
        // Buffers go round: freed by one thread and allocated by another they cost twice the
        // memory.
        let (used_tx, used_rx) = std::sync::mpsc::channel::<Vec<u8>>();
        let cutter = spawn_blocking(move || cut_file(&file, cut, &tx, &used_rx));
        let mut runs: Vec<Run> = Vec::new();
        let mut packing = VecDeque::new();
        // Chunks that are being compressed and are not in the sink's pack yet.
        let mut sent: BTreeSet<ChunkHash> = BTreeSet::new();
        while let Some(hashed) = rx.recv().await {
            let Hashed { batch, hashes } = hashed.await.expect("hashing does not panic");
            for (chunk, hash) in batch.chunks().zip(&hashes) {
                let len = chunk.data.len() as u32;
                match runs.last_mut() {
                    Some(run) if run.hash == *hash && run.repeat < u32::MAX => run.repeat += 1,
                    _ => runs.push(Run { hash: *hash, len, repeat: 1 }),
                }
            }
            let wanted = sink.wanted(&hashes).await?;
            let wanted: Vec<bool> =
                wanted.iter().zip(&hashes).map(|(w, hash)| *w && sent.insert(*hash)).collect();
            let level = self.zstd_level;
            let used = used_tx.clone();
            packing.push_back(spawn_blocking(move || {
                let packed = pack_wanted(&batch, &hashes, &wanted, level);
                if let Some(batch) = Arc::into_inner(batch) {
                    // The cutter is gone after the last batch.
                    let _ = used.send(batch.into_buffer());
                }
                packed
            }));
            while packing.len() >= BATCHES_MAX {
                append(&mut sink, &mut packing, &mut sent).await?;
            }
        }
        while !packing.is_empty() {
            append(&mut sink, &mut packing, &mut sent).await?;
        }
        let (blake3, bytes) = cutter.await.expect("cutting does not panic")?;
        sink.finish().await?;
        Ok(CommitRequest { kind: Kind::File, cut, runs, blake3, bytes })
    }
}

type Packing = VecDeque<JoinHandle<Vec<HashedChunk>>>;

/// Compresses the chunks that are wanted, into one allocation: thousands of small ones, kept until
/// their pack is stored, would leave holes all over the heap.
fn pack_wanted(batch: &Batch, hashes: &[ChunkHash], wanted: &[bool], level: i32) -> Vec<HashedChunk> {
    let mut packer = Packer::new(level);
    let mut bytes = Vec::with_capacity(batch.data().len());
    let mut packed = Vec::new();
    for ((chunk, hash), _) in batch.chunks().zip(hashes).zip(wanted).filter(|(_, wanted)| **wanted) {
        let chunk = packer.pack(chunk.data);
        bytes.extend_from_slice(&chunk.bytes);
        packed.push((*hash, chunk.codec, chunk.raw_len, chunk.bytes.len()));
    }
    bytes.shrink_to_fit();
    let mut bytes = Bytes::from(bytes);
    packed
        .into_iter()
        .map(|(hash, codec, raw_len, len)| HashedChunk {
            hash,
            packed: PackedChunk { codec, raw_len, bytes: bytes.split_to(len) },
        })
        .collect()
}

async fn append(
    sink: &mut PackingSink,
    packing: &mut Packing,
    sent: &mut BTreeSet<ChunkHash>,
) -> Result<(), IngestError> {
    let Some(batch) = packing.pop_front() else { return Ok(()) };
    let chunks = batch.await.expect("compressing does not panic");
    for chunk in &chunks {
        sent.remove(&chunk.hash);
    }
    sink.append(chunks).await
}

/// Reads a file once, in order: sends its batches and returns the hash and length of the whole.
fn cut_file(
    file: &FileHandle,
    cut: CutParams,
    tx: &mpsc::Sender<JoinHandle<Hashed>>,
    used: &std::sync::mpsc::Receiver<Vec<u8>>,
) -> Result<(ArtifactHash, u64), IngestError> {
    let runtime = tokio::runtime::Handle::current();
    let regions = regions(file);
    let mut batches = Batches::new(file, regions.all(), cut);
    let mut whole = blake3::Hasher::new();
    let mut bytes = 0;
    while let Some(batch) = batches.next_batch(used.try_recv().unwrap_or_default()).map_err(changed)? {
        let batch = Arc::new(batch);
        let ours = batch.clone();
        let hashed = runtime.spawn_blocking(move || Hashed { hashes: hash_chunks(&batch), batch });
        if tx.blocking_send(hashed).is_err() {
            // The receiver gave up, and returns the reason itself.
            break;
        }
        whole.update(ours.data());
        bytes += ours.data().len() as u64;
    }
    Ok((whole.finalize().into(), bytes))
}

fn hash_chunks(batch: &Batch) -> Vec<ChunkHash> {
    // All chunks known to be zero are equal, so the first one's hash serves for all.
    let mut zero = None;
    let hash = |chunk: distd_core::cut::CutChunk<'_>| {
        if chunk.zero {
            *zero.get_or_insert_with(|| ChunkHash::of(chunk.data))
        } else {
            ChunkHash::of(chunk.data)
        }
    };
    batch.chunks().map(hash).collect()
}

/// A file that ends early was cut shorter meanwhile.
fn changed(cause: io::Error) -> IngestError {
    if cause.kind() == io::ErrorKind::UnexpectedEof {
        IngestError::FileChanged
    } else {
        IngestError::File(cause)
    }
}

async fn hash_file(file: Arc<FileHandle>) -> Result<ArtifactHash, IngestError> {
    let hash = spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < file.len() {
            let len = buffer.len().min(usize::try_from(file.len() - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..len], at).map_err(changed)?;
            hasher.update(&buffer[..len]);
            at += len as u64;
        }
        Ok(hasher.finalize().into())
    });
    hash.await.expect("hashing does not panic")
}
