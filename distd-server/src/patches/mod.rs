//! Making of patch sets: one of each kind at a time, in the background, within bounds of memory and
//! cores. A set from nothing takes longest, and the fewest devices wait for it, so between two of
//! its jobs it yields to sets between releases.
//!
//! A set is an artifact: its index and one chunk for each payload (docs/formats.md, "Patch set").
//! So the code that serves, caches and shares releases does the same with sets. docs/store.md,
//! "Patch sets", has the order of writes.

mod artifact;
mod cache;
mod make;
mod packs;
mod queue;
mod record;
mod trees;
mod views;

pub use queue::NextError;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use distd_core::{ChunkHash, ManifestId};
use distd_peer::metrics::DurationsBy;
use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;

use crate::db::{Db, DbError, MadeSet, Maker, PatchSetRow, SetKind};
use crate::ingest::{Ingest, IngestError};
use crate::store::{ReadError, Store, StoreError};

/// Most chunks of a release for which patches are made: 34 GB at the default cut. The chunk lists
/// of both releases and the search for bases then take about 500 MB.
pub const CHUNKS_MAX: u64 = 1 << 21;

/// Pause before the next attempt after the database or the store failed.
pub(crate) const AGAIN: Duration = Duration::from_secs(60);

/// Settings for the making of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchOptions {
    /// Whether releases and channels request sets.
    pub enabled: bool,
    /// Whether releases also request a set from nothing, for devices that hold nothing useful.
    pub solid_sets: bool,
    /// Number of jobs at once.
    pub threads: NonZeroUsize,
    /// zstd level at which the codecs pack, 1 to 22.
    pub level: i32,
    /// Memory that all running jobs may take together, bytes. A job that needs more runs alone.
    pub memory_bytes: u64,
}

impl Default for PatchOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            enabled: true,
            solid_sets: true,
            threads,
            // On the reference pair, level 12 takes 54 s and makes 20.6 MB, and level 19 takes
            // 82 s and makes 19.8 MB (docs/benchmarks.md, "Patches").
            level: 12,
            // The largest jobs take 200 MiB each.
            memory_bytes: (threads.get() as u64 * (256 << 20)).min(4 << 30),
        }
    }
}

/// Reason why a set was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The origin is stopping.
    #[error("the origin stopped")]
    Stopped,
    /// A release has more chunks than [`CHUNKS_MAX`].
    #[error("manifest {manifest} has {chunks} chunks, and patches are made for at most {CHUNKS_MAX}")]
    TooManyChunks {
        /// Manifest of the release.
        manifest: ManifestId,
        /// Number of its chunks.
        chunks: u64,
    },
    /// A chunk of a release has no row.
    #[error("chunk {0} of a release is missing: restore the database from its backup")]
    MissingChunk(ChunkHash),
    /// The chunks of a release could not be read.
    #[error("could not read a release's stored chunks")]
    Content(#[source] std::io::Error),
    /// A pack that was just stored reads back with other bytes.
    #[error("pack {0} was stored but reads back damaged: check the object store's medium")]
    Damaged(String),
    /// A thread that made patches panicked.
    #[error("making patches panicked: please report it with the log")]
    Panicked(#[source] tokio::task::JoinError),
    /// The set exceeds the bounds that devices enforce.
    #[error("the set has more patches or a longer index than devices accept")]
    TooLarge,
    /// The manifest of a release could not be read.
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

/// Counters of this process.
#[derive(Debug)]
pub struct PatchCounters {
    /// Sets with at least one patch.
    pub ready: AtomicU64,
    /// Sets without a patch, because none would save anything.
    pub empty: AtomicU64,
    /// Sets that could not be made.
    pub failed: AtomicU64,
    /// Bytes of the sets that were made.
    pub bytes: AtomicU64,
    /// Bytes of the chunks that those sets rebuild, as sent without patches.
    pub packed: AtomicU64,
    /// Patches that did not rebuild their targets and were not used.
    pub wrong: AtomicU64,
    /// Times that making a set took, by kind and result.
    pub seconds: DurationsBy,
}

impl Default for PatchCounters {
    fn default() -> Self {
        Self {
            ready: AtomicU64::default(),
            empty: AtomicU64::default(),
            failed: AtomicU64::default(),
            bytes: AtomicU64::default(),
            packed: AtomicU64::default(),
            wrong: AtomicU64::default(),
            seconds: DurationsBy::long(),
        }
    }
}

impl PatchCounters {
    /// Counts the time that making a set took, and whether it was made.
    pub(crate) fn took(&self, kind: SetKind, is_made: bool, duration: Duration) {
        let kind = if kind == SetKind::Solid { "solid" } else { "pair" };
        let result = if is_made { "made" } else { "failed" };
        self.seconds.observe(&vec![("kind", kind.into()), ("result", result.into())], duration);
    }
}

/// Maker of patch sets from a database and a store.
#[derive(Debug)]
pub struct PatchMaker {
    db: Db,
    store: Store,
    ingest: Ingest,
    /// Directory for the views, in files without a name.
    spool: PathBuf,
    options: PatchOptions,
    /// Signals that a set was queued, one for each [`SetKind`].
    wake: [Notify; 2],
    /// Held exclusively while a set between releases is made; each job of a set from nothing shares
    /// it.
    turn: RwLock<()>,
    /// Name of this process among those that make sets.
    maker: Maker,
    /// Counters of this process.
    pub counters: PatchCounters,
}

impl PatchMaker {
    /// Creates a maker, which works only in [`Self::make`].
    pub fn new(ingest: Ingest, spool: PathBuf, options: PatchOptions) -> Self {
        let (db, store) = (ingest.db().clone(), ingest.store().clone());
        let (wake, turn, counters) = Default::default();
        Self { db, store, ingest, spool, options, wake, turn, maker: Maker::default(), counters }
    }

    /// Gives this process a name among those that make sets; without one it is the origin that
    /// leads.
    pub fn named(self, maker: Maker) -> Self {
        Self { maker, ..self }
    }

    /// Name of this process among those that make sets.
    pub fn maker(&self) -> &Maker {
        &self.maker
    }

    /// Options of this maker.
    pub fn options(&self) -> &PatchOptions {
        &self.options
    }

    /// Signals that a set of `kind` was queued.
    pub fn wake(&self, kind: SetKind) {
        self.wake[kind as usize].notify_one();
    }

    pub(crate) fn count_failure(&self) {
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until a set of `kind` is queued.
    pub(crate) async fn woken(&self, kind: SetKind) {
        self.wake[kind as usize].notified().await;
    }

    /// Makes a set that was [taken](Db::take_patch_set) from the queue, and records it. `None` if
    /// another replica has recorded it meanwhile.
    ///
    /// If this future fails or is dropped, it leaves at most objects that no row names, which the
    /// sweep deletes.
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
