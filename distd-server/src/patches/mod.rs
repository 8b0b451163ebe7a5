//! Making patch sets: one at a time, in the background, within bounds of memory and cores. A set from nothing takes longest
//! and is waited for by the fewest: between two of its jobs it makes way for sets between releases.
//!
//! A set is an artifact: its index and one chunk for each payload (docs/formats.md, "Patch set"). So what is made here
//! is served, cached and swarmed by what serves releases. docs/store.md, "Patch sets", has the order of writes.

mod artifact;
mod cache;
mod make;
mod packs;
mod record;
mod views;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use distd_core::{ChunkHash, ManifestId};
use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;

use crate::db::{Db, DbError, MadeSet, PatchSetRow, SetKind};
use crate::ingest::{Ingest, IngestError};
use crate::store::{ReadError, Store, StoreError};

/// Chunks of a release between which patches are made: 34 GB at the default cut. Lists of both releases' chunks and
/// the search for bases then take some 500 MB.
pub const CHUNKS_MAX: u64 = 1 << 21;

/// Wait after the database or the store failed.
pub(crate) const AGAIN: Duration = Duration::from_secs(60);

/// Whether patches are made, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchOptions {
    /// Releases and channels ask for sets.
    pub enabled: bool,
    /// Releases ask for a set from nothing too, for devices that hold nothing of use.
    pub solid_sets: bool,
    /// Jobs at once.
    pub threads: NonZeroUsize,
    /// zstd level of what the codecs pack, 1 to 22.
    pub level: i32,
    /// What jobs under way may take together, bytes; a job that alone takes more goes alone.
    pub memory_bytes: u64,
}

impl Default for PatchOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            enabled: true,
            solid_sets: true,
            threads,
            // On the reference pair 12 takes 54 s and 20.6 MB, 19 takes 82 s and 19.8 MB (docs/benchmarks.md, "Patches").
            level: 12,
            // The largest jobs take 200 MiB each.
            memory_bytes: (threads.get() as u64 * (256 << 20)).min(4 << 30),
        }
    }
}

/// Why a set was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The origin stops.
    #[error("the origin stopped")]
    Stopped,
    /// A release has more chunks than [`CHUNKS_MAX`].
    #[error("manifest {manifest} has {chunks} chunks, patches are made for at most {CHUNKS_MAX}")]
    TooManyChunks {
        /// The release's manifest.
        manifest: ManifestId,
        /// How many it has.
        chunks: u64,
    },
    /// A chunk of a release has no row.
    #[error("chunk {0} of a release is missing: restore the database from its backup")]
    MissingChunk(ChunkHash),
    /// A release could not be read through.
    #[error("could not read a release's stored chunks")]
    Content(#[source] std::io::Error),
    /// A pack that was just stored is not what it was.
    #[error("pack {0} was stored and came back damaged: check the object store's medium")]
    Damaged(String),
    /// A thread that worked on it panicked.
    #[error("making patches panicked: please report it with the log")]
    Panicked(#[source] tokio::task::JoinError),
    /// The set would be beyond what devices take.
    #[error("the set's index would be too long")]
    TooLarge,
    /// The manifest of a release.
    #[error(transparent)]
    Manifest(#[from] IngestError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Packs could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What was made by this process.
#[derive(Debug, Default)]
pub struct PatchCounters {
    /// Sets that devices can use.
    pub ready: AtomicU64,
    /// Pairs of releases between which no patch saves anything.
    pub empty: AtomicU64,
    /// Sets that could not be made.
    pub failed: AtomicU64,
    /// Bytes of the sets made.
    pub bytes: AtomicU64,
    /// What their targets cost as chunks, bytes.
    pub packed: AtomicU64,
    /// Patches that did not rebuild what they should and were not used.
    pub wrong: AtomicU64,
}

/// Makes patch sets out of a database and a store.
#[derive(Debug)]
pub struct PatchMaker {
    db: Db,
    store: Store,
    ingest: Ingest,
    /// For views, in files without a name.
    spool: PathBuf,
    options: PatchOptions,
    wake: [Notify; 2],
    turn: RwLock<()>,
    /// What it has done.
    pub counters: PatchCounters,
}

impl PatchMaker {
    /// A maker that does nothing until it is told to.
    pub fn new(ingest: Ingest, spool: PathBuf, options: PatchOptions) -> Self {
        let (db, store) = (ingest.db().clone(), ingest.store().clone());
        let (wake, turn, counters) = Default::default();
        Self { db, store, ingest, spool, options, wake, turn, counters }
    }

    /// Its options.
    pub fn options(&self) -> &PatchOptions {
        &self.options
    }

    /// Says that something was queued.
    pub fn wake(&self, kind: SetKind) {
        self.wake[kind as usize].notify_one();
    }

    pub(crate) fn count_failure(&self) {
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until a set of the kind was queued.
    pub(crate) async fn woken(&self, kind: SetKind) {
        self.wake[kind as usize].notified().await;
    }

    /// Makes a set that was [taken](Db::take_patch_set) from the queue, and records it. `None` when another replica
    /// has done so meanwhile.
    ///
    /// Dropped or failed, it leaves at most objects that no row names, for the sweep.
    ///
    /// # Errors
    /// [`MakeError`]; the row stays as it is.
    pub async fn make(
        &self,
        row: &PatchSetRow,
        stop: &CancellationToken,
    ) -> Result<Option<MadeSet>, MakeError> {
        let made = self.make_and_record(row, stop).await?;
        if let Some(made) = &made {
            let result = if made.set.is_some() { &self.counters.ready } else { &self.counters.empty };
            result.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes.fetch_add(made.bytes, Ordering::Relaxed);
            self.counters.packed.fetch_add(made.packed, Ordering::Relaxed);
        }
        Ok(made)
    }
}
