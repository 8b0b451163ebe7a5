//! The cache: files by their SHA-256, within a bound.
//!
//! A file is here under its own hash, so one package of two mirrors is one file. The time of access
//! of a file (set by this process, not by the kernel) is when it was last given, and its time of
//! modification is the `Last-Modified` of its mirror. So a restart loses nothing, and there is no
//! database to damage.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, FileTimes};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_lc_rs::digest;
use bytes::Bytes;
use distd_core::error::Chain;

use super::index::{Sha256, Sum};
use super::marks::{self, Marks};
use crate::filesystem;
use crate::gateway::FileBytes;

/// Most bytes read from a file at once.
const READ_BYTES: u64 = 128 << 10;

/// Directories in the cache: whole files, files on their way.
pub(super) const OBJECTS: &str = "objects";
pub(super) const PARTIAL: &str = "partial";

/// Directory with an empty file for each hash that a command has pinned.
pub(super) const PINS: &str = "pins";

/// File that one process locks.
const LOCK: &str = "lock";

/// Bounds of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most bytes of the files.
    pub max_bytes: u64,
    /// Free space that is left on the file system, bytes.
    pub min_free_bytes: u64,
}

/// Counters of a cache.
#[derive(Debug, Default)]
pub struct StoreCounters {
    /// Files that were removed to make room.
    pub evicted: AtomicU64,
    /// Files for which there was no room.
    pub unstored: AtomicU64,
    /// Files that were damaged on the disk.
    pub rotten: AtomicU64,
}

/// A file of the cache, open.
#[derive(Debug)]
pub struct Stored {
    /// Hash and length.
    pub sum: Sum,
    /// `Last-Modified` of its mirror, unix seconds.
    pub modified: u64,
    file: File,
}

impl Stored {
    /// A handle of its own to read the file from its beginning.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn reopen(&self) -> io::Result<File> {
        // A duplicate would share its position with other readers.
        use std::os::fd::AsRawFd;
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Reads all of a file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![0; usize::try_from(self.sum.bytes).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut out, 0)?;
        Ok(out)
    }
}

#[async_trait]
impl FileBytes for Arc<Stored> {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        let stored = self.clone();
        tokio::task::spawn_blocking(move || read_at(&stored.file, range)).await.map_err(io::Error::other)?
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Reads from the start of `range`: some bytes, and none beyond its end.
pub(super) fn read_at(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = (range.end - range.start).min(READ_BYTES);
    let mut out = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let read = file.read_at(&mut out, range.start)?;
    out.truncate(read);
    Ok(out.into())
}

#[derive(Debug)]
struct Object {
    bytes: u64,
    modified: u64,
    /// When it was last given, nanoseconds since 1970.
    used: u64,
    is_pinned: bool,
    /// Whether its hash was verified since this process started.
    is_verified: bool,
    open: Weak<Stored>,
}

impl Object {
    /// A file that was found in the directory.
    fn of(meta: &fs::Metadata) -> io::Result<Self> {
        Ok(Self {
            bytes: meta.len(),
            modified: nanoseconds(meta.modified()?) / 1_000_000_000,
            used: nanoseconds(meta.accessed()?),
            is_pinned: false,
            is_verified: false,
            open: Weak::new(),
        })
    }
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<Sha256, Object>,
    /// Objects in the order of their last use.
    order: BTreeSet<(u64, Sha256)>,
    bytes: u64,
    /// Bytes of files on their way.
    reserved: u64,
}

/// The cache of a proxy.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    bounds: Bounds,
    state: Mutex<State>,
    /// Counters.
    pub counters: StoreCounters,
    _lock: File,
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX)
}

impl Store {
    /// Opens the cache in `dir`, which is made when it is missing. Files on their way, of a process
    /// that was killed, are removed.
    ///
    /// # Errors
    /// Those of the file system; `WouldBlock` when another process has the cache.
    pub fn open(dir: &Path, bounds: Bounds) -> io::Result<Self> {
        crate::trust::files::create_private_dir(dir).map_err(io::Error::other)?;
        let lock = filesystem::try_lock(&dir.join(LOCK))?;
        let lock = lock.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("another process has the cache {}", dir.display()),
            )
        })?;
        fs::create_dir_all(dir.join(OBJECTS))?;
        fs::create_dir_all(dir.join(PARTIAL))?;
        for partial in fs::read_dir(dir.join(PARTIAL))?.flatten() {
            fs::remove_file(partial.path())?;
        }
        let store = Self {
            dir: dir.to_owned(),
            bounds,
            state: Mutex::default(),
            counters: StoreCounters::default(),
            _lock: lock,
        };
        store.load()?;
        Ok(store)
    }

    fn load(&self) -> io::Result<()> {
        let mut state = self.state();
        for group in fs::read_dir(self.dir.join(OBJECTS))? {
            let group = group?;
            if !group.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(group.path())? {
                let entry = entry?;
                // A file that is none of ours stays, and is not counted.
                let Some(sha256) = entry.file_name().to_str().and_then(hash_of) else { continue };
                let meta = entry.metadata()?;
                state.put(sha256, Object::of(&meta)?);
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, sha256: &Sha256) -> PathBuf {
        let name = hex::encode(sha256);
        self.dir.join(OBJECTS).join(&name[..2]).join(name)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Takes note of a file that a command put into the directory.
    fn look_for(&self, sha256: &Sha256) {
        if !self.has(sha256)
            && let Ok(meta) = fs::metadata(self.path(sha256))
            && let Ok(object) = Object::of(&meta)
        {
            self.state().put(*sha256, object);
        }
    }

    /// Whether a file is there.
    pub fn has(&self, sha256: &Sha256) -> bool {
        self.state().objects.contains_key(sha256)
    }

    /// Whether a file is there and no command has removed it.
    pub(super) fn still_has(&self, sha256: &Sha256) -> bool {
        self.has(sha256) && self.path(sha256).exists()
    }

    /// Opens a file, and takes note that it was used. The hash is verified when this process opens
    /// the file for the first time; a file that is damaged is removed. Blocks.
    pub fn get(&self, sha256: &Sha256) -> Option<Arc<Stored>> {
        self.look_for(sha256);
        let (stored, is_verified) = {
            let mut state = self.state();
            let object = state.touch(sha256)?;
            let (bytes, modified) = (object.bytes, object.modified);
            let stored = match object.open.upgrade() {
                Some(stored) => stored,
                None => {
                    let file = match File::open(self.path(sha256)) {
                        Ok(file) => file,
                        Err(error) => {
                            tracing::warn!(error = %Chain(&error), "a file of the cache is gone");
                            state.forget(sha256);
                            return None;
                        }
                    };
                    let sum = Sum { sha256: *sha256, bytes };
                    let stored = Arc::new(Stored { sum, modified, file });
                    object.open = Arc::downgrade(&stored);
                    stored
                }
            };
            (stored, object.is_verified)
        };
        let now = FileTimes::new().set_accessed(SystemTime::now());
        // Where times cannot be set, a restart forgets which files were used last.
        let _ = stored.file.set_times(now);
        if !is_verified {
            let right = stored.reopen().and_then(|file| sum_of(file, stored.sum.bytes));
            if !right.is_ok_and(|sum| sum == *sha256) {
                self.counters.rotten.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(file = hex::encode(sha256), "a file of the cache was damaged and is removed");
                self.remove(sha256);
                return None;
            }
            if let Some(object) = self.state().objects.get_mut(sha256) {
                object.is_verified = true;
            }
        }
        let before = marks::read(&self.path(sha256));
        marks::write(&stored.file, &Marks { given: before.given.saturating_add(1), ..before });
        Some(stored)
    }

    /// Keeps a file from being removed to make room, or no longer.
    pub fn pin(&self, sha256: &Sha256, is_pinned: bool) {
        if let Some(object) = self.state().objects.get_mut(sha256) {
            object.is_pinned = is_pinned;
        }
    }

    /// Removes a file; whoever reads it reads on. Returns whether it was there.
    pub fn remove(&self, sha256: &Sha256) -> bool {
        // The order matters: a file without an entry would not be counted.
        let removed = fs::remove_file(self.path(sha256));
        if let Err(error) = &removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(error = %Chain(error), "a file of the cache cannot be removed");
            return false;
        }
        self.state().forget(sha256)
    }

    /// Whether a file of `bytes` would have room if others were removed. Removes and reserves
    /// nothing: nobody has answered yet.
    pub fn may_fit(&self, bytes: u64) -> bool {
        let removable = self.bytes();
        let free = self.free_bytes().saturating_add(removable);
        bytes <= self.bounds.max_bytes && free >= bytes.saturating_add(self.bounds.min_free_bytes)
    }

    /// Makes room for a file of `bytes`, and opens a place for it. `None` when there is no room, or
    /// the file system refuses. Blocks.
    pub fn begin(self: &Arc<Self>, bytes: u64) -> Option<Partial> {
        let begun = self.reserve(bytes).then(|| self.place(bytes));
        match begun {
            Some(Ok(partial)) => return Some(partial),
            Some(Err(error)) => {
                self.state().reserved -= bytes;
                tracing::warn!(error = %Chain(&error), "the cache takes no file");
            }
            None => {}
        }
        self.counters.unstored.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn place(self: &Arc<Self>, bytes: u64) -> io::Result<Partial> {
        let file = tempfile::NamedTempFile::new_in(self.dir.join(PARTIAL))?;
        if bytes > 0 {
            match rustix::fs::fallocate(file.as_file(), rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes) {
                // Without the call, a full disk is noticed by a write.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Partial { store: self.clone(), reserved: bytes, file: Some(file) })
    }

    /// Removes files until one of `bytes` fits; false when it cannot.
    fn reserve(&self, bytes: u64) -> bool {
        loop {
            let victim = {
                let mut state = self.state();
                let taken = state.bytes.saturating_add(state.reserved).saturating_add(bytes);
                if bytes > self.bounds.max_bytes {
                    return false;
                }
                if taken <= self.bounds.max_bytes
                    && self.free_bytes() >= bytes.saturating_add(self.bounds.min_free_bytes)
                {
                    state.reserved += bytes;
                    return true;
                }
                state.victim(|sha256| self.dir.join(PINS).join(hex::encode(sha256)).exists())
            };
            let Some(victim) = victim else { return false };
            if !self.remove(&victim) {
                return false;
            }
            self.counters.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn free_bytes(&self) -> u64 {
        match rustix::fs::statvfs(&self.dir) {
            Ok(space) => space.f_bavail.saturating_mul(space.f_frsize),
            Err(_) => u64::MAX,
        }
    }
}

impl State {
    fn put(&mut self, sha256: Sha256, object: Object) {
        self.bytes += object.bytes;
        self.order.insert((object.used, sha256));
        if let Some(before) = self.objects.insert(sha256, object) {
            self.bytes -= before.bytes;
            // The same file under the same time is the same entry.
            if self.objects.get(&sha256).is_some_and(|object| object.used != before.used) {
                self.order.remove(&(before.used, sha256));
            }
        }
    }

    fn touch(&mut self, sha256: &Sha256) -> Option<&mut Object> {
        let last = self.order.last().map_or(0, |(used, _)| *used);
        let object = self.objects.get_mut(sha256)?;
        self.order.remove(&(object.used, *sha256));
        object.used = nanoseconds(SystemTime::now()).max(last + 1);
        self.order.insert((object.used, *sha256));
        Some(object)
    }

    fn forget(&mut self, sha256: &Sha256) -> bool {
        let Some(object) = self.objects.remove(sha256) else { return false };
        self.order.remove(&(object.used, *sha256));
        self.bytes -= object.bytes;
        true
    }

    /// The file to remove next: the one that was not used for longest, of those that nobody reads.
    fn victim(&self, is_pinned: impl Fn(&Sha256) -> bool) -> Option<Sha256> {
        let is_free = |sha256: &Sha256| {
            let object = self.objects.get(sha256);
            object.is_some_and(|object| !object.is_pinned && object.open.strong_count() == 0)
                && !is_pinned(sha256)
        };
        self.order.iter().map(|(_, sha256)| *sha256).find(is_free)
    }
}

/// A file on its way into the cache. A drop removes it.
#[derive(Debug)]
pub struct Partial {
    store: Arc<Store>,
    reserved: u64,
    file: Option<tempfile::NamedTempFile>,
}

impl Partial {
    /// Bytes for which there is room.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Makes room for `bytes` in all; false when there is none. Blocks.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.reserved);
        if bytes > self.store.bounds.max_bytes || !self.store.reserve(more) {
            self.store.counters.unstored.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.reserved += more;
        true
    }

    /// A handle to write and to read the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn handle(&self) -> io::Result<File> {
        self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.as_file().try_clone()
    }

    /// Puts the file, whose bytes are verified, under its hash. `name` is what commands show.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(mut self, sum: Sum, modified: u64, name: &str) -> io::Result<Arc<Stored>> {
        let temporary = self.file.take().ok_or(io::ErrorKind::NotFound)?;
        let now = SystemTime::now();
        let times =
            FileTimes::new().set_accessed(now).set_modified(UNIX_EPOCH + Duration::from_secs(modified));
        marks::write(temporary.as_file(), &Marks { name: name.to_owned(), given: 1 });
        temporary.as_file().set_len(sum.bytes)?;
        temporary.as_file().set_times(times)?;
        let path = self.store.path(&sum.sha256);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Nothing is synced: a file that a power cut damages is found by its hash.
        let file = temporary.persist(&path).map_err(|error| error.error)?;
        let stored = Arc::new(Stored { sum, modified, file });
        let mut state = self.store.state();
        let last = state.order.last().map_or(0, |(used, _)| *used);
        let object = Object {
            bytes: sum.bytes,
            modified,
            used: nanoseconds(now).max(last + 1),
            is_pinned: false,
            is_verified: true,
            open: Arc::downgrade(&stored),
        };
        state.put(sum.sha256, object);
        Ok(stored)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.store.state().reserved -= self.reserved;
    }
}

/// The hash in the name of a file; `None` for another name.
pub(super) fn hash_of(name: &str) -> Option<Sha256> {
    let is_lower = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_lower { hex::decode(name).ok()?.try_into().ok() } else { None }
}

/// SHA-256 of a file that has `bytes`. A longer or shorter file is an error.
pub(super) fn sum_of(mut file: File, bytes: u64) -> io::Result<Sha256> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut left = bytes;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        left = left.checked_sub(read as u64).ok_or(io::ErrorKind::InvalidData)?;
        context.update(&buffer[..read]);
    }
    if left > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(finish(context))
}

/// The hash of what a context has taken.
pub(super) fn finish(context: digest::Context) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// SHA-256 of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> Sha256 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(bytes);
    finish(context)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    use crate::apt::shelf::Shelf;

    const ROOMY: Bounds = Bounds { max_bytes: 1000, min_free_bytes: 0 };

    fn put(store: &Arc<Store>, bytes: &[u8]) -> Option<Sha256> {
        let partial = store.begin(bytes.len() as u64)?;
        partial.handle().expect("a handle").write_all(bytes).expect("write");
        let sum = Sum { sha256: sha256(bytes), bytes: bytes.len() as u64 };
        partial.keep(sum, 86400, "name").expect("kept");
        Some(sum.sha256)
    }

    fn open(dir: &Path, bounds: Bounds) -> Arc<Store> {
        Arc::new(Store::open(dir, bounds).expect("opens"))
    }

    #[test]
    fn the_file_not_used_for_longest_makes_room_and_one_that_is_read_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), ROOMY);
        let [a, b, c] = [1u8, 2, 3].map(|n| put(&store, &[n; 300]).expect("room"));
        store.get(&a).expect("there");
        let reading = store.get(&b).expect("there");
        store.get(&c).expect("there");
        store.get(&a).expect("there");
        // In the order of their last use: b, c, a. b is being read.
        let d = put(&store, &[4; 300]).expect("room");
        assert!(store.has(&a) && store.has(&b) && !store.has(&c) && store.has(&d));
        assert_eq!(reading.bytes().expect("reads"), [2; 300]);
        drop(reading);
        store.pin(&b, true);
        put(&store, &[5; 700]).expect("room");
        assert!(store.has(&b) && !store.has(&a) && !store.has(&d));
        assert_eq!(store.bytes(), 1000);
        assert!(put(&store, &[6; 701]).is_none(), "a pinned file stays");
        assert!(put(&store, &[6; 1001]).is_none());
        assert_eq!(store.counters.unstored.load(Ordering::Relaxed), 2);
        assert!(store.has(&b), "nothing is removed for a file that cannot fit");
    }

    #[test]
    fn a_restart_keeps_files_their_order_and_their_dates() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), ROOMY);
        let [a, b] = [1u8, 2].map(|n| put(&store, &[n; 400]).expect("room"));
        store.get(&a).expect("there");
        fs::write(dir.path().join(PARTIAL).join("left"), "x").expect("write");
        assert!(Store::open(dir.path(), ROOMY).is_err(), "one process has a cache");
        drop(store);
        let store = open(dir.path(), ROOMY);
        assert!(!dir.path().join(PARTIAL).join("left").exists());
        assert_eq!(store.get(&b).expect("there").modified, 86400);
        let listed = Shelf::new(dir.path()).list().expect("lists");
        assert_eq!(
            listed.iter().map(|item| item.sha256.clone()).collect::<Vec<_>>(),
            [b, a].map(hex::encode)
        );
        drop(store);
        let store = open(dir.path(), ROOMY);
        put(&store, &[3; 400]).expect("room");
        assert!(store.has(&b) && !store.has(&a));
    }

    #[test]
    fn commands_change_the_cache_of_a_process_that_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), ROOMY);
        let shelf = Shelf::new(dir.path());
        let [a, b] = [1u8, 2].map(|n| put(&store, &[n; 400]).expect("room"));
        let item = |sha256: &Sha256| shelf.find(&hex::encode(sha256)).expect("finds").remove(0);
        assert!(item(&a).marks.given == 1 || item(&a).marks == Marks::default(), "no notes on this disk");
        shelf.pin(&item(&a)).expect("pins");
        put(&store, &[3; 400]).expect("room");
        assert!(store.has(&a) && !store.has(&b), "a file that is pinned stays");
        shelf.remove(&item(&a)).expect("removes");
        assert!(store.get(&a).is_none() && !store.has(&a), "it is gone");
        let package = dir.path().join("a.deb");
        fs::write(&package, "!<arch>\ndebian-binary and more").expect("write");
        shelf.import(&package).expect("imports");
        let sum = sha256(b"!<arch>\ndebian-binary and more");
        assert_eq!(store.get(&sum).expect("given").sum.bytes, 30);
    }

    #[test]
    fn a_damaged_file_is_not_given() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), ROOMY);
        let [a, b] = [1u8, 2].map(|n| put(&store, &[n; 40]).expect("room"));
        let (path, short) = (store.path(&a), store.path(&b));
        drop(store);
        fs::write(&path, [9; 40]).expect("write");
        fs::write(&short, [2; 39]).expect("write");
        let store = open(dir.path(), ROOMY);
        assert!(store.get(&a).is_none() && store.get(&b).is_none());
        assert!(!path.exists() && !store.has(&a));
        assert_eq!((store.bytes(), store.counters.rotten.load(Ordering::Relaxed)), (0, 2));
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), ROOMY);
        let partial = store.begin(900).expect("room");
        assert!(store.begin(101).is_none(), "the room is promised");
        drop(partial);
        assert_eq!(fs::read_dir(dir.path().join(PARTIAL)).expect("a directory").count(), 0);
        assert!(store.begin(1000).is_some());
    }

    #[test]
    fn a_file_without_a_stated_length_gets_its_room_in_steps() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), ROOMY);
        let a = put(&store, &[1; 600]).expect("room");
        assert!(store.may_fit(1000) && !store.may_fit(1001));
        let mut partial = store.begin(0).expect("room");
        assert!(partial.grow(400) && store.has(&a), "{}", partial.reserved());
        assert!(partial.grow(401) && !store.has(&a));
        assert!(!partial.grow(1001));
        drop(partial);
        assert!(store.begin(1000).is_some());
    }

    #[test]
    fn free_space_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path(), Bounds { max_bytes: 1000, min_free_bytes: u64::MAX });
        assert!(store.begin(1).is_none());
        assert_eq!(store.counters.unstored.load(Ordering::Relaxed), 1);
    }
}
