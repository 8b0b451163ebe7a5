//! Cutting and hashing of an artifact on this machine, on threads of their own, one batch ahead of
//! each other: one thread reads and cuts, another hashes the chunks, and a third hashes the whole
//! artifact at the same time. `source` reads a file, a block device or a directory.

mod source;

pub use source::Source;

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::cut::{Batch, Batches, CutParams, ReadAt, Region};
use distd_core::{ArtifactHash, ChunkHash};
use tokio::sync::mpsc;

use distd_core::api::{LIST_BYTES_MAX, RUN_BYTES, Run};

/// Number of buffers kept for later batches. More are in flight only for moments.
const SPARE_BUFFERS: usize = 6;

/// Bytes of a commit reserved for everything but its list of chunks.
const COMMIT_HEAD_MAX: usize = 4096;

/// Reasons why cutting ended early.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The artifact could not be read.
    #[error("could not read the artifact")]
    Read(#[source] io::Error),
    /// The artifact has more chunks than one commit can list.
    #[error("the artifact has more chunks than one manifest can list")]
    TooManyChunks,
    /// Nobody takes the batches any more, because of an error elsewhere.
    #[error("stopped")]
    Stopped,
}

/// A chunk of a batch that is new in this artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Hash of the chunk.
    pub hash: ChunkHash,
    /// Offset of the chunk in the batch's data, in bytes.
    pub start: u32,
    /// Length of the chunk in bytes.
    pub len: u32,
}

/// A batch, and those of its chunks that the origin is asked about.
#[derive(Debug)]
pub struct CutBatch {
    /// The batch.
    pub batch: Batch,
    /// The chunks that are new.
    pub fresh: Vec<Fresh>,
}

/// Result of cutting a whole artifact.
pub struct CutResult {
    /// Runs in artifact order, encoded as in a commit.
    pub runs: Vec<u8>,
    /// Number of chunks, including repeats.
    pub chunks: u64,
    /// BLAKE3 of the whole artifact.
    pub blake3: ArtifactHash,
}

/// Pool of buffers from finished batches.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Returns a batch's memory to the pool.
    pub fn give(&self, batch: Batch) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BUFFERS {
            spare.push(batch.into_buffer());
        }
    }
}

/// Recently seen chunks, in 8 MiB whatever the artifact's size. A chunk that was forgotten is asked
/// for again; by then the origin has it.
struct Seen(Vec<[u8; 16]>);

impl Seen {
    const SLOTS: usize = 1 << 19;

    fn new() -> Self {
        Self(vec![[0; 16]; Self::SLOTS])
    }

    /// Returns whether `hash` was not seen recently, and records it as seen.
    fn is_new(&mut self, hash: &ChunkHash) -> bool {
        // Half a hash distinguishes chunks well enough: finding two chunks with the same 128 bits
        // takes 2^64 hashes and only makes the finder's own commit fail.
        let half: &[u8; 16] = hash.as_bytes().first_chunk().expect("16 of 32 bytes");
        let [.., a, b, c] = *hash.as_bytes();
        let index = u32::from_be_bytes([0, a, b, c]) as usize % Self::SLOTS;
        let slot = &mut self.0[index];
        let new = slot != half;
        *slot = *half;
        new
    }
}

/// The list of chunks under construction, with repeats folded.
#[derive(Default)]
struct Runs {
    bytes: Vec<u8>,
    last: Option<(ChunkHash, u32, u32)>,
    chunks: u64,
}

impl Runs {
    fn push(&mut self, hash: ChunkHash, len: u32) -> Result<(), CutError> {
        self.chunks += 1;
        match &mut self.last {
            Some((last, _, repeat)) if *last == hash && *repeat < u32::MAX => *repeat += 1,
            _ => {
                self.flush()?;
                self.last = Some((hash, len, 1));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CutError> {
        if let Some((hash, len, repeat)) = self.last.take() {
            if (self.bytes.len() + RUN_BYTES + COMMIT_HEAD_MAX) as u64 > LIST_BYTES_MAX {
                return Err(CutError::TooManyChunks);
            }
            Run { hash, len, repeat }.encode_into(&mut self.bytes);
        }
        Ok(())
    }
}

/// Cuts and hashes all of `source`. Batches with fresh chunks are sent to `out` in artifact order;
/// `passed` counts the bytes of batches without any. Blocks until the end.
///
/// # Errors
/// [`CutError`].
pub fn cut<R: ReadAt>(
    source: &R,
    regions: &[Region],
    params: CutParams,
    buffers: &Buffers,
    out: &mpsc::Sender<CutBatch>,
    passed: &dyn Fn(u64),
) -> Result<CutResult, CutError> {
    let mut whole = blake3::Hasher::new();
    let mut runs = Runs::default();
    let mut seen = Seen::new();
    let mut zero = None;
    std::thread::scope(|scope| {
        let (tx, batches) = sync_channel(1);
        scope.spawn(move || read_and_cut(source, regions, params, buffers, &tx));
        for batch in batches {
            let batch = batch.map_err(CutError::Read)?;
            let hashes = hash_batch(&batch, &mut whole, &mut zero);
            let mut fresh = Vec::new();
            let mut at = 0;
            for (chunk, hash) in batch.chunks().zip(hashes) {
                // A batch is far smaller than 4 GiB.
                let len = chunk.data.len() as u32;
                runs.push(hash, len)?;
                if seen.is_new(&hash) {
                    fresh.push(Fresh { hash, start: at, len });
                }
                at += len;
            }
            if fresh.is_empty() {
                passed(u64::from(at));
                buffers.give(batch);
            } else {
                out.blocking_send(CutBatch { batch, fresh }).map_err(|_| CutError::Stopped)?;
            }
        }
        Ok(())
    })?;
    runs.flush()?;
    Ok(CutResult { runs: runs.bytes, chunks: runs.chunks, blake3: whole.finalize().into() })
}

fn read_and_cut<R: ReadAt>(
    source: &R,
    regions: &[Region],
    params: CutParams,
    buffers: &Buffers,
    out: &SyncSender<io::Result<Batch>>,
) {
    let mut batches = Batches::new(source, regions, params);
    loop {
        let next = batches.next_batch(buffers.take());
        let failed = next.is_err();
        let Some(next) = next.transpose() else { return };
        // The receiver is gone: an error elsewhere ends the push.
        if out.send(next).is_err() || failed {
            return;
        }
    }
}

/// Hashes the chunks on this thread while a second thread hashes the whole artifact.
fn hash_batch(batch: &Batch, whole: &mut blake3::Hasher, zero: &mut Option<ChunkHash>) -> Vec<ChunkHash> {
    if batch.chunks().all(|chunk| chunk.zero) {
        // Zero chunks need no hashing, so both cores may hash the whole artifact. This matters for
        // a file that is mostly holes.
        whole.update_rayon(batch.data());
        return hash_chunks(batch, zero);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| whole.update(batch.data()));
        hash_chunks(batch, zero)
    })
}

fn hash_chunks(batch: &Batch, zero: &mut Option<ChunkHash>) -> Vec<ChunkHash> {
    batch
        .chunks()
        .map(|chunk| {
            if chunk.zero {
                // All zero chunks are alike, so their hash is computed once.
                *zero.get_or_insert_with(|| ChunkHash::of(chunk.data))
            } else {
                ChunkHash::of(chunk.data)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use distd_core::cut::regions;

    use super::*;

    /// Returns bytes without repeats, the same on every run.
    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn run(source: &Vec<u8>) -> (CutResult, Vec<(ChunkHash, Vec<u8>)>) {
        let regions = regions(source);
        let (tx, mut rx) = mpsc::channel(1000);
        let buffers = Buffers::default();
        let result = cut(source, regions.all(), CutParams::default(), &buffers, &tx, &|_| {}).expect("cut");
        drop(tx);
        let mut fresh = Vec::new();
        while let Some(CutBatch { batch, fresh: these }) = rx.blocking_recv() {
            for Fresh { hash, start, len } in these {
                fresh.push((hash, batch.data()[start as usize..(start + len) as usize].to_vec()));
            }
        }
        (result, fresh)
    }

    /// Rebuilds the artifact from the runs and the fresh chunks.
    fn rebuild(result: &CutResult, fresh: &[(ChunkHash, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for run in result.runs.chunks(RUN_BYTES) {
            let hash = ChunkHash::from_slice(&run[..32]).expect("32 bytes");
            let repeat = u32::from_be_bytes(run[36..].try_into().expect("4 bytes"));
            let (_, data) = fresh.iter().find(|(known, _)| *known == hash).expect("every chunk comes once");
            assert_eq!(run[32..36], (data.len() as u32).to_be_bytes());
            (0..repeat).for_each(|_| out.extend_from_slice(data));
        }
        out
    }

    #[test]
    fn runs_and_fresh_chunks_make_the_artifact_and_each_chunk_comes_once() {
        let mut source = noise(9 << 20);
        source.extend_from_slice(&vec![0; 20 << 20]);
        let again = source[..3 << 20].to_vec();
        source.extend_from_slice(&again);
        let (result, fresh) = run(&source);
        assert!(rebuild(&result, &fresh) == source);
        assert_eq!(result.blake3, blake3::hash(&source).into());
        let distinct: HashSet<_> = fresh.iter().map(|(hash, _)| *hash).collect();
        assert_eq!(distinct.len(), fresh.len());
        assert!(fresh.iter().all(|(hash, data)| ChunkHash::of(data) == *hash));
    }

    #[test]
    fn a_long_hole_is_one_run_and_one_chunk() {
        let (result, fresh) = run(&vec![0; 64 << 20]);
        assert!(result.runs.len() <= 2 * RUN_BYTES && fresh.len() <= 2);
        assert_eq!(result.chunks, 1024);
    }

    #[test]
    fn cutting_stops_when_the_receiver_is_gone() {
        let source = noise(9 << 20);
        let (tx, rx) = mpsc::channel(1);
        drop(rx);
        let regions = regions(&source);
        let result = cut(&source, regions.all(), CutParams::default(), &Buffers::default(), &tx, &|_| {});
        assert!(matches!(result, Err(CutError::Stopped)));
    }
}
