//! The edge store: verified chunks in segment files, with an index in redb.
//!
//! Order of durability: segment data, then index, then HAVE. Appended chunks can be read at once,
//! and are indexed when [`EdgeStore::commit`] runs. After a crash, the tail of each segment that is
//! not yet in the index is scanned, and no record that reached the disk is lost: each record
//! contains its chunk hash. See docs/store.md, "Edge store".

mod index;
mod manifests;
mod record;
mod segment;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use distd_core::ChunkHash;
use distd_core::error::Chain;
use distd_core::packing::{HashedChunk, PackedChunk};

pub use index::Location;

use crate::filesystem::{self, Space};
use index::Index;
use record::{HEADER_BYTES, Header};
use segment::{Segment, SegmentId};

/// Layout version in the file `VERSION`.
const LAYOUT_VERSION: &str = "2\n";

/// The previous layout version, whose records are read as they are.
const LAYOUT_BEFORE: &str = "1\n";

/// Maximum number of bytes kept in memory when the disk refuses chunks: enough for the batches in
/// flight.
const UNSTORED_BYTES_MAX: usize = 32 << 20;

/// Bounds of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Maximum number of bytes in segment files; beyond it the oldest segments are evicted.
    pub max_bytes: u64,
    /// Free space the store leaves on its file system, bytes.
    pub min_free_bytes: u64,
    /// Size at which a segment is closed, bytes. A segment is the unit of eviction.
    pub segment_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { max_bytes: 10_000_000_000, min_free_bytes: 256_000_000, segment_bytes: 64 << 20 }
    }
}

/// Reason why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("edge store: could not {op} {path}", path = path.display())]
    Io {
        /// Attempted operation, a verb for the message.
        op: &'static str,
        /// File or directory concerned.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        cause: io::Error,
    },
    /// The index (redb) failed.
    #[error(
        "edge store: the index failed; if this happens again, delete index.redb: the next start rebuilds it from the segments"
    )]
    Index(#[source] Box<redb::Error>),
    /// Another process has the store open.
    #[error("edge store at {0} is in use by another distd process: stop it or choose another --data")]
    InUse(PathBuf),
    /// The store was written by a newer build.
    #[error(
        "edge store at {0} was written by a newer distd (layout {1:?}): upgrade this one or choose another --data"
    )]
    Newer(PathBuf, String),
}

impl StoreError {
    fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { op, path: path.to_owned(), cause }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Index(Box::new(error.into()))
    }
}

/// Findings of opening a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Chunks found in segment tails that were not indexed.
    pub tail_chunks: u64,
    /// Bytes of torn records, cut off.
    pub torn_bytes: u64,
    /// Whether the whole index was rebuilt from the segments.
    pub rebuilt: bool,
}

/// Counters for `/metrics` and tests.
#[derive(Debug, Default)]
pub struct StoreCounters {
    /// Chunks whose bytes were damaged on disk. They are dropped, to be fetched again.
    pub rotten: AtomicU64,
    /// Chunks that could not be stored and are served from memory.
    pub unstored: AtomicU64,
    /// Segments evicted.
    pub evicted_segments: AtomicU64,
}

struct Inner {
    active: Segment,
    /// Locations of the chunks appended since the last commit.
    pending: HashMap<ChunkHash, Location>,
    /// Sizes of all segments, closed and active. The order of keys is the order of age.
    sizes: std::collections::BTreeMap<SegmentId, u64>,
    /// Verified chunks that the disk refused, oldest first.
    unstored: VecDeque<HashedChunk>,
    unstored_bytes: usize,
}

/// A store of verified chunks on disk. All methods block on the disk and are safe to call from
/// several threads.
pub struct EdgeStore {
    dir: PathBuf,
    config: StoreConfig,
    index: Index,
    inner: Mutex<Inner>,
    /// Lock file, held for the life of the store.
    _lock: fs::File,
    /// Counters of this store.
    pub counters: StoreCounters,
}

impl EdgeStore {
    /// Opens or creates a store in `dir`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: &Path, config: StoreConfig) -> Result<(Self, Recovered), StoreError> {
        let segments = dir.join("segments");
        fs::create_dir_all(&segments).map_err(StoreError::io("create", &segments))?;
        fs::create_dir_all(dir.join("manifests")).map_err(StoreError::io("create", dir))?;
        let lock = lock(dir)?;
        check_version(dir)?;
        let mut recovered = Recovered::default();
        let existing = segment::list(&segments)?;
        let (index, fresh) = Index::open(&dir.join("index.redb"))?;
        recovered.rebuilt = fresh && !existing.is_empty();
        let mut sizes = std::collections::BTreeMap::new();
        let mut last = None;
        for id in existing {
            let mut seg = Segment::open(&segments, id)?;
            let indexed = if fresh { 0 } else { index.indexed_len(id)? };
            let scan = seg.scan(indexed)?;
            if !scan.found.is_empty() || scan.torn_bytes > 0 {
                recovered.tail_chunks += scan.found.len() as u64;
                recovered.torn_bytes += scan.torn_bytes;
                seg.truncate(scan.good_len)?;
                seg.sync()?;
                index.add(id, scan.good_len, scan.found.iter().map(|(h, l)| (h, l)))?;
            }
            sizes.insert(id, seg.len());
            last = Some(seg);
        }
        let active = match last {
            Some(seg) if seg.len() < config.segment_bytes => seg,
            Some(seg) => Segment::create(&segments, seg.id().next())?,
            None => Segment::create(&segments, SegmentId(1))?,
        };
        sizes.insert(active.id(), active.len());
        let inner =
            Inner { active, pending: HashMap::new(), sizes, unstored: VecDeque::new(), unstored_bytes: 0 };
        let store = Self {
            dir: dir.to_owned(),
            config,
            index,
            inner: Mutex::new(inner),
            _lock: lock,
            counters: StoreCounters::default(),
        };
        Ok((store, recovered))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held cannot leave the maps in a state that contradicts the
        // disk.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a verified chunk. A chunk that is already held touches no file. Returns true if the
    /// chunk is on disk. Returns false if the disk refused it: the chunk stays in memory for a
    /// while, so that it can be passed on all the same.
    pub fn put(&self, hash: &ChunkHash, chunk: &PackedChunk) -> Result<bool, StoreError> {
        // An unreadable index must not keep a chunk from being passed on.
        if self.contains(hash).unwrap_or(false) {
            return Ok(true);
        }
        let mut inner = self.inner();
        if inner.pending.contains_key(hash) {
            return Ok(true);
        }
        match self.append(&mut inner, hash, chunk) {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!(
                    error = %Chain(&error),
                    "chunk could not be stored on disk; keeping it in memory"
                );
                self.counters.unstored.fetch_add(1, Ordering::Relaxed);
                inner.unstored_bytes += chunk.bytes.len();
                inner.unstored.push_back(HashedChunk { hash: *hash, packed: chunk.clone() });
                while inner.unstored_bytes > UNSTORED_BYTES_MAX {
                    let Some(old) = inner.unstored.pop_front() else { break };
                    inner.unstored_bytes -= old.packed.bytes.len();
                }
                Ok(false)
            }
        }
    }

    fn append(&self, inner: &mut Inner, hash: &ChunkHash, chunk: &PackedChunk) -> Result<(), StoreError> {
        let record = (HEADER_BYTES + chunk.bytes.len()) as u64;
        if inner.active.len() > 0 && inner.active.len() + record > self.config.segment_bytes {
            self.commit_locked(inner)?;
            let next = Segment::create(&self.dir.join("segments"), inner.active.id().next())?;
            inner.active = next;
        }
        self.make_room(inner, record)?;
        let header = Header::of(*hash, chunk);
        let offset = inner.active.append(&header, &chunk.bytes)?;
        let location = Location { segment: inner.active.id(), offset, header };
        inner.pending.insert(*hash, location);
        let (id, len) = (inner.active.id(), inner.active.len());
        inner.sizes.insert(id, len);
        Ok(())
    }

    /// Evicts whole segments, oldest first, until `more` bytes fit below `max_bytes` and leave
    /// `min_free_bytes` free.
    fn make_room(&self, inner: &mut Inner, more: u64) -> Result<(), StoreError> {
        let mut total: u64 = inner.sizes.values().sum();
        let cramped = || {
            Ok::<bool, StoreError>(free_bytes(&self.dir)? < self.config.min_free_bytes.saturating_add(more))
        };
        while total + more > self.config.max_bytes || cramped()? {
            let active = inner.active.id();
            let Some((&oldest, &len)) = inner.sizes.iter().find(|(id, _)| **id != active) else { break };
            self.evict(oldest)?;
            inner.sizes.remove(&oldest);
            total -= len;
        }
        if cramped()? {
            return Err(StoreError::Io {
                op: "leave the free-space floor on the file system of",
                path: self.dir.clone(),
                cause: io::ErrorKind::StorageFull.into(),
            });
        }
        Ok(())
    }

    fn evict(&self, id: SegmentId) -> Result<(), StoreError> {
        let segments = self.dir.join("segments");
        // The index goes first: it must never name a missing file. A file that the index does not
        // name is at worst scanned again.
        let mut seg = Segment::open(&segments, id)?;
        let scan = seg.scan(0)?;
        self.index.remove(id, scan.found.iter().map(|(h, _)| h))?;
        segment::remove(&segments, id)?;
        self.counters.evicted_segments.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes everything appended so far durable and indexed. Cheap if nothing was appended.
    pub fn commit(&self) -> Result<(), StoreError> {
        self.commit_locked(&mut self.inner())
    }

    fn commit_locked(&self, inner: &mut Inner) -> Result<(), StoreError> {
        if inner.pending.is_empty() {
            return Ok(());
        }
        inner.active.sync()?;
        self.index.add(inner.active.id(), inner.active.len(), inner.pending.iter())?;
        inner.pending.clear();
        Ok(())
    }

    /// Whether the chunk can be served, from disk or from memory.
    pub fn contains(&self, hash: &ChunkHash) -> Result<bool, StoreError> {
        Ok(self.locate(hash)?.is_some() || self.inner().unstored.iter().any(|chunk| chunk.hash == *hash))
    }

    /// Returns the location of each chunk on disk. Looks at appended chunks first, so that a chunk
    /// committed meanwhile is found in the index. Does not hold the lock during the index look-ups,
    /// of which there can be a hundred thousand.
    pub fn locate_each<'a>(
        &self,
        hashes: impl Iterator<Item = &'a ChunkHash>,
    ) -> Result<Vec<Option<Location>>, StoreError> {
        let inner = self.inner();
        let pending: Vec<_> = hashes.map(|hash| (hash, inner.pending.get(hash).copied())).collect();
        drop(inner);
        let reader = self.index.reader()?;
        let locate = |(hash, pending): (&ChunkHash, Option<Location>)| match pending {
            Some(location) => Ok(Some(location)),
            None => reader.get(hash),
        };
        pending.into_iter().map(locate).collect()
    }

    fn locate(&self, hash: &ChunkHash) -> Result<Option<Location>, StoreError> {
        if let Some(location) = self.inner().pending.get(hash) {
            return Ok(Some(*location));
        }
        self.index.reader()?.get(hash)
    }

    /// Returns the chunk, or `None` if it is not held. A damaged record counts as not held: it is
    /// counted and removed from the index, to be fetched again.
    pub fn get(&self, hash: &ChunkHash) -> Result<Option<PackedChunk>, StoreError> {
        let Some(location) = self.locate(hash)? else {
            let inner = self.inner();
            let unstored = inner.unstored.iter().find(|chunk| chunk.hash == *hash);
            return Ok(unstored.map(|chunk| chunk.packed.clone()));
        };
        match segment::read_run(&self.dir.join("segments"), &[location]) {
            Ok(bytes) if location.header.rot_check.passes(&bytes) => Ok(Some(location.chunk(bytes))),
            // The record was evicted between look-up and read, or is damaged. Either way it is not
            // here any more.
            result if is_gone(&result) => {
                self.counters.rotten.fetch_add(1, Ordering::Relaxed);
                if self.locate(hash)? == Some(location) {
                    self.inner().pending.remove(hash);
                    self.index.forget(hash)?;
                }
                Ok(None)
            }
            // For example too many open files: the chunk cannot be read now, which says nothing
            // about its record.
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "chunk could not be read");
                Ok(None)
            }
            Ok(_) => Ok(None),
        }
    }

    /// Returns for each chunk the result of [`Self::get`], but reads adjacent records in one go.
    /// `places`, as long as `hashes`, gives the locations that are already known.
    pub fn get_each(
        &self,
        hashes: &[ChunkHash],
        places: &[Option<Location>],
    ) -> Result<Vec<Option<PackedChunk>>, StoreError> {
        let unknown = hashes.iter().zip(places).filter(|(_, place)| place.is_none());
        let mut looked_up = self.locate_each(unknown.map(|(hash, _)| hash))?.into_iter();
        let located: Vec<Option<Location>> =
            places.iter().map(|place| place.or_else(|| looked_up.next().flatten())).collect();
        let mut found = vec![None; hashes.len()];
        let mut order: Vec<usize> = (0..hashes.len()).filter(|at| located[*at].is_some()).collect();
        order.sort_unstable_by_key(|at| located[*at].map(|location| (location.segment, location.offset)));
        let places: Vec<Location> = order.iter().filter_map(|at| located[*at]).collect();
        let mut done = 0;
        while done < places.len() {
            let run = &places[done..done + segment::run_len(&places[done..])];
            // Chunks of a run that fails, and records that fail their check, are read one by one
            // below.
            if let Ok(bytes) = segment::read_run(&self.dir.join("segments"), run) {
                for (place, at) in run.iter().zip(&order[done..]) {
                    let from = (place.offset - run[0].offset) as usize;
                    let bytes = bytes.slice(from..from + place.header.stored_len as usize);
                    found[*at] = place.header.rot_check.passes(&bytes).then(|| place.chunk(bytes));
                }
            }
            done += run.len();
        }
        for (hash, found) in hashes.iter().zip(&mut found) {
            // Evicted since the look-up, damaged, or only in memory.
            if found.is_none() {
                *found = self.get(hash)?;
            }
        }
        Ok(found)
    }

    /// Most bytes of chunks that the store keeps.
    pub fn max_bytes(&self) -> u64 {
        self.config.max_bytes
    }

    /// Total size of the segment files, bytes.
    pub fn bytes(&self) -> u64 {
        self.inner().sizes.values().sum()
    }
}

/// Whether a read showed that the record differs from its entry in the index.
fn is_gone(read: &Result<Bytes, StoreError>) -> bool {
    match read {
        Ok(_) => true,
        Err(StoreError::Io { cause, .. }) => {
            matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
        }
        Err(_) => false,
    }
}

/// Whether a process has the store in `dir` open. One that cannot be looked at counts as open.
pub fn is_in_use(dir: &Path) -> bool {
    match filesystem::try_lock_shared(&dir.join("lock")) {
        Ok(lock) => lock.is_none(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn lock(dir: &Path) -> Result<fs::File, StoreError> {
    let path = dir.join("lock");
    // A file system without locks cannot prove that no other relay writes to the store.
    filesystem::try_lock(&path)
        .map_err(StoreError::io("lock", &path))?
        .ok_or_else(|| StoreError::InUse(dir.to_owned()))
}

fn check_version(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("VERSION");
    let version = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        read => Some(read.map_err(StoreError::io("read", &path))?),
    };
    match version.as_deref() {
        Some(LAYOUT_VERSION) => Ok(()),
        None | Some(LAYOUT_BEFORE) => {
            fs::write(&path, LAYOUT_VERSION).map_err(StoreError::io("write", &path))
        }
        Some(other) => Err(StoreError::Newer(dir.to_owned(), other.trim().to_owned())),
    }
}

fn free_bytes(dir: &Path) -> Result<u64, StoreError> {
    Ok(Space::at(dir).map_err(StoreError::io("stat", dir))?.free)
}

#[cfg(test)]
mod tests;
