//! Pipeline of the chunks to the origin: cut, ask, pack, send, in artifact order, with a bound on
//! each stage.
//!
//! Memory at most: 4 windows of 8 MiB (one being filled, two being asked about, one being packed),
//! as much again between the stages before them, 2 bodies of up to 16 MiB being sent and one being
//! filled. The list of chunks adds 40 bytes for each run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use distd_client::api::{ApiError, Upload};
use distd_client::cutting::{Buffers, CutBatch, CutError, CutResult, Fresh, Source, cut};
use distd_client::progress::Progress;
use distd_core::api::{HASHES_MAX, RecordHead};
use distd_core::cut::ReadAt;
use distd_core::packing::Packer;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes of the batches whose chunks are asked for in one question.
const WINDOW_BYTES: usize = 8 << 20;

/// Largest number of hashes in one window: tiny chunks must not make the question unboundedly long.
const WINDOW_HASHES: usize = 8192;

const _: () = assert!(WINDOW_HASHES <= HASHES_MAX / 2);

/// Number of windows being asked about at once.
const WINDOWS_ASKED: usize = 2;

/// Stored bytes in one body; the last batch may add up to 4 MiB more. The origin makes at least one
/// pack of each body, and packs should be large.
const BODY_BYTES: usize = 12 << 20;

/// Number of bodies being sent at once.
const BODIES_SENT: usize = 2;

/// Reasons why the chunks did not reach the origin.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipelineError {
    /// A request to the origin failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The artifact could not be cut.
    #[error(transparent)]
    Cut(#[from] CutError),
}

/// Totals of the sent chunks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// Bytes as stored, that is compressed.
    pub(super) bytes: u64,
    /// Number of chunks.
    pub(super) chunks: u64,
}

/// A batch, reduced to the chunks that the origin lacks, and the pool for its memory.
struct Job {
    batch: CutBatch,
    buffers: Buffers,
}

/// Chunk records of one batch, with the number of chunks and their unpacked bytes.
#[derive(Default)]
struct Packed {
    records: Bytes,
    chunks: u64,
    raw_bytes: u64,
}

/// Records for one request.
#[derive(Default)]
struct Body {
    records: Vec<Bytes>,
    stored: usize,
    chunks: u64,
    raw_bytes: u64,
}

/// A task that is aborted when its handle is dropped: a push that failed must not continue to send.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T: Send + 'static> Task<T> {
    fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    async fn join(mut self) -> T {
        (&mut self.0).await.expect("tasks of the push neither panic nor are aborted while awaited")
    }
}

/// Sends every chunk of `source` that the origin lacks.
///
/// # Errors
/// [`PipelineError`].
pub(super) async fn send_missing(
    source: Arc<Source>,
    regions: distd_core::cut::Regions,
    upload: &Upload,
    level: i32,
    progress: Arc<dyn Progress>,
) -> Result<(CutResult, Sent), PipelineError> {
    let buffers = Buffers::default();
    let (tx, rx) = mpsc::channel(1);
    let params = upload.cut();
    let cutting = {
        let (buffers, progress) = (buffers.clone(), progress.clone());
        spawn_blocking(move || {
            cut(&*source, regions.all(), params, &buffers, &tx, &|bytes| progress.add(bytes))
        })
    };
    let sent = send_batches(rx, upload, level, &buffers, &*progress).await?;
    let cut = cutting.await.expect("cutting does not panic")?;
    Ok((cut, sent))
}

async fn send_batches(
    rx: mpsc::Receiver<CutBatch>,
    upload: &Upload,
    level: i32,
    buffers: &Buffers,
    progress: &dyn Progress,
) -> Result<Sent, PipelineError> {
    let packers = available_parallelism().map_or(2, usize::from).clamp(2, 4);
    // Each stage is a task of its own, so earlier stages continue up to their bound while a later
    // stage waits.
    let bodies = windows(rx)
        .map(|window| Task::spawn(ask(upload.clone(), window)))
        .map(Task::join)
        .buffered(WINDOWS_ASKED)
        .map_ok(|window| stream::iter(window.into_iter().map(Ok::<_, ApiError>)))
        .try_flatten()
        .map_ok(|(batch, known_bytes)| {
            progress.add(known_bytes);
            let job = Job { batch, buffers: buffers.clone() };
            let packing = Task(spawn_blocking(move || pack(job, level)));
            async move { Ok(packing.join().await) }
        })
        .try_buffered(packers);
    let total = bodies_of(bodies)
        .map_ok(|body| {
            let upload = upload.clone();
            let sending = Task::spawn(async move {
                upload.put_chunks(&body.records).await?;
                Ok::<_, ApiError>(body)
            });
            sending.join()
        })
        .try_buffered(BODIES_SENT)
        .try_fold(Sent::default(), |mut sent, body| {
            progress.add(body.raw_bytes);
            sent.bytes += body.stored as u64;
            sent.chunks += body.chunks;
            async move { Ok(sent) }
        })
        .await?;
    Ok(total)
}

/// Collects batches until a window is full.
fn windows(rx: mpsc::Receiver<CutBatch>) -> impl Stream<Item = Vec<CutBatch>> {
    stream::unfold((rx, None::<CutBatch>), |(mut rx, mut kept)| async move {
        let mut window = Vec::new();
        let (mut bytes, mut hashes) = (0, 0);
        while bytes < WINDOW_BYTES {
            let next = match kept.take() {
                Some(batch) => Some(batch),
                None => rx.recv().await,
            };
            let Some(batch) = next else { break };
            if hashes > 0 && hashes + batch.fresh.len() > WINDOW_HASHES {
                kept = Some(batch);
                break;
            }
            bytes += batch.batch.data().len();
            hashes += batch.fresh.len();
            window.push(batch);
        }
        (!window.is_empty()).then_some((window, (rx, kept)))
    })
}

/// Reduces each batch to the fresh chunks that the origin lacks, and returns with it the number of
/// its bytes that need not be sent.
async fn ask(upload: Upload, mut window: Vec<CutBatch>) -> Result<Vec<(CutBatch, u64)>, ApiError> {
    let hashes: Vec<_> = window.iter().flat_map(|batch| &batch.fresh).map(|fresh| fresh.hash).collect();
    let mut missing = VecDeque::with_capacity(hashes.len());
    for part in hashes.chunks(HASHES_MAX) {
        missing.extend(upload.missing(part).await?);
    }
    for batch in &mut window {
        batch.fresh.retain(|_| missing.pop_front().unwrap_or(true));
    }
    let known = |batch: &CutBatch| {
        let missing: u64 = batch.fresh.iter().map(|fresh| u64::from(fresh.len)).sum();
        batch.batch.data().len() as u64 - missing
    };
    Ok(window
        .into_iter()
        .map(|batch| {
            let known = known(&batch);
            (batch, known)
        })
        .collect())
}

/// Packs the remaining chunks of a batch into records and returns the batch's memory to the pool.
fn pack(job: Job, level: i32) -> Packed {
    let Job { batch: CutBatch { batch, fresh }, buffers } = job;
    if fresh.is_empty() {
        buffers.give(batch);
        return Packed::default();
    }
    let mut packer = Packer::new(level);
    let mut packed = Packed::default();
    let mut records = Vec::new();
    for Fresh { hash, start, len } in fresh {
        let chunk = packer.pack(&batch.data()[start as usize..(start + len) as usize]);
        // The packed length is at most `raw_len`.
        let stored_len = chunk.bytes.len() as u32;
        RecordHead { hash, codec: chunk.codec, raw_len: chunk.raw_len, stored_len }.encode_into(&mut records);
        records.extend_from_slice(&chunk.bytes);
        packed.chunks += 1;
        packed.raw_bytes += u64::from(len);
    }
    buffers.give(batch);
    // The vector grew by doubling. Drop the unused capacity, which would otherwise stay allocated
    // while the body is queued.
    records.shrink_to_fit();
    packed.records = records.into();
    packed
}

/// Collects packed batches until a body is full.
fn bodies_of(
    packed: impl Stream<Item = Result<Packed, ApiError>>,
) -> impl Stream<Item = Result<Body, ApiError>> {
    let packed = Box::pin(packed);
    stream::try_unfold(packed, |mut packed| async move {
        let mut body = Body::default();
        while body.stored < BODY_BYTES {
            let Some(next) = packed.try_next().await? else { break };
            body.stored += next.records.len();
            body.chunks += next.chunks;
            body.raw_bytes += next.raw_bytes;
            if !next.records.is_empty() {
                body.records.push(next.records);
            }
        }
        Ok((body.chunks > 0).then_some((body, packed)))
    })
}

/// Returns the BLAKE3 that a release of `source` would have, without sending anything.
///
/// # Errors
/// As reading reports.
pub(super) fn hash_only(
    source: &Source,
    progress: &dyn Progress,
) -> std::io::Result<distd_core::ArtifactHash> {
    debug_assert!(!source.is_empty(), "an empty source was refused when it was opened");
    distd_client::local::hash_reader(source, &|bytes| progress.add(bytes))
}
