//! Request bodies until they are whole. A body stays in memory while it arrives fast and there is
//! room, and goes to a file without a name otherwise. So a slow caller takes neither memory nor one
//! of the few sinks from others.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::body::Incoming;
use super::{ApiError, App};

/// Number of bodies of one token that may be under way at once.
const BODIES_MAX: usize = 16;

/// Longest time for which a request waits for one of its token's places.
const WAIT: Duration = Duration::from_secs(30);

/// Bytes received between two checks of quota and disk.
const LOOK_BYTES: u64 = 8 << 20;

/// Memory for the bodies of all callers, bytes: the longest body that the command line sends, once
/// for each of the three sinks.
const HELD_BYTES_MAX: usize = 48 << 20;

/// Size of a block of memory, bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// Number of blocks that a body on the disk collects before they are written.
const BLOCKS_PER_WRITE: usize = 4;

/// Longest time for which an incomplete body stays in memory: 12 MiB at 50 Mbit/s.
const HOLD: Duration = Duration::from_secs(2);

/// Bytes of a file read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Bodies that are under way.
pub(super) struct Spooling {
    tokens: Mutex<HashMap<String, OfToken>>,
    /// One permit for each block of memory.
    room: Arc<Semaphore>,
    disk_bytes: AtomicU64,
}

struct OfToken {
    places: Arc<Semaphore>,
    /// Bytes on the disk.
    bytes: u64,
    /// Places that are taken or waited for.
    users: usize,
}

impl Default for Spooling {
    fn default() -> Self {
        Self::with_room(HELD_BYTES_MAX / BLOCK_BYTES)
    }
}

impl Spooling {
    fn with_room(blocks: usize) -> Self {
        Self {
            tokens: Mutex::default(),
            room: Arc::new(Semaphore::new(blocks)),
            disk_bytes: AtomicU64::new(0),
        }
    }

    fn tokens<T>(&self, act: impl FnOnce(&mut HashMap<String, OfToken>) -> T) -> T {
        act(&mut self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Number of bodies that have a place or wait for one.
    pub(super) fn bodies(&self) -> u64 {
        self.tokens(|tokens| tokens.values().map(|of| of.users as u64).sum())
    }

    /// Bytes of memory that bodies take.
    pub(super) fn held_bytes(&self) -> u64 {
        let free = self.room.available_permits() * BLOCK_BYTES;
        HELD_BYTES_MAX.saturating_sub(free) as u64
    }

    /// Bytes that bodies take on the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Place for a body of `token`; waits up to [`WAIT`] while the token's places are taken.
    async fn place(self: &Arc<Self>, token: &str) -> Result<Place, ApiError> {
        let places = self.tokens(|tokens| {
            let new = || OfToken { places: Arc::new(Semaphore::new(BODIES_MAX)), bytes: 0, users: 0 };
            let of = tokens.entry(token.to_owned()).or_insert_with(new);
            of.users += 1;
            of.places.clone()
        });
        // The place is counted before the wait. If the request ends during the wait, the drop of
        // the place takes the count back.
        let (spooling, token) = (self.clone(), token.to_owned());
        let mut place = Place { spooling, token, bytes: AtomicU64::new(0), permit: None };
        match timeout(WAIT, places.acquire_owned()).await {
            Ok(Ok(permit)) => place.permit = Some(permit),
            _ => return Err(ApiError::busy("this token has as many bodies under way as it may have")),
        }
        Ok(place)
    }
}

/// One of a token's places, and the bytes that its body has on the disk.
struct Place {
    spooling: Arc<Spooling>,
    token: String,
    bytes: AtomicU64,
    /// `None` while the request waits for the place.
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Counts further bytes on the disk.
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.spooling.disk_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.spooling.tokens(|tokens| {
            if let Some(of) = tokens.get_mut(&self.token) {
                of.bytes += bytes;
            }
        });
    }

    /// Bytes that all bodies of the token have on the disk.
    fn of_token(&self) -> u64 {
        self.spooling.tokens(|tokens| tokens.get(&self.token).map_or(0, |of| of.bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.spooling.disk_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.spooling.tokens(|tokens| {
            if let Some(of) = tokens.get_mut(&self.token) {
                of.bytes -= bytes;
                of.users -= 1;
                if of.users == 0 {
                    tokens.remove(&self.token);
                }
            }
        });
    }
}

/// Bytes of a body in memory. A block with a permit holds at most [`BLOCK_BYTES`].
struct Block {
    bytes: BytesMut,
    /// `None` if no permit was free; the block is then written to the disk at once.
    _room: Option<OwnedSemaphorePermit>,
}

/// File without a name, so that nothing of it remains after a crash. Its place is given back once
/// the file's space is free.
struct Unnamed {
    file: Option<File>,
    place: Arc<Place>,
}

impl Unnamed {
    fn create(directory: &Path, place: Arc<Place>) -> io::Result<Self> {
        Ok(Self { file: Some(tempfile::tempfile_in(directory)?), place })
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("the file is there until the drop")
    }

    fn write(&self, blocks: VecDeque<Block>) -> io::Result<()> {
        for block in blocks {
            self.file().write_all(&block.bytes)?;
            self.place.add(block.bytes.len() as u64);
        }
        Ok(())
    }

    fn read_piece(&self) -> io::Result<Vec<u8>> {
        let mut piece = Vec::with_capacity(PIECE_BYTES as usize);
        self.file().take(PIECE_BYTES).read_to_end(&mut piece)?;
        Ok(piece)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        // Freeing gigabytes takes a while, so it happens on a blocking thread.
        let all = (self.file.take(), self.place.clone());
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(all))),
            Err(_) => drop(all),
        }
    }
}

/// Body that is still being received.
struct Growing {
    directory: PathBuf,
    place: Arc<Place>,
    blocks: VecDeque<Block>,
    written: Written,
}

/// Part of a body that is on the disk. Writing goes on while more of the body arrives.
#[derive(Default)]
enum Written {
    #[default]
    Nothing,
    Writing(JoinHandle<io::Result<Unnamed>>),
    Done(Unnamed),
}

impl Written {
    /// Waits until the pending write has ended, and returns the file.
    async fn file(self) -> io::Result<Option<Unnamed>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Writing(task) => task.await.expect("writing a body does not panic").map(Some),
            Self::Done(file) => Ok(Some(file)),
        }
    }
}

impl Growing {
    fn new(directory: PathBuf, place: Place) -> Self {
        Self { directory, place: Arc::new(place), blocks: VecDeque::new(), written: Written::Nothing }
    }

    /// Takes a piece of the body, into memory as far as there is room.
    async fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            let last = self.blocks.back_mut().map(|block| &mut block.bytes);
            let Some(bytes) = last.filter(|bytes| bytes.len() < bytes.capacity()) else {
                self.make_room(rest).await?;
                if self.blocks.is_empty() {
                    return Ok(());
                }
                continue;
            };
            let (now, later) = rest.split_at(rest.len().min(bytes.capacity() - bytes.len()));
            bytes.extend_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    /// Begins a block. Without a free permit, writes the blocks in memory and the piece to the
    /// disk, and leaves no block.
    async fn make_room(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.is_on_disk() && self.blocks.len() >= BLOCKS_PER_WRITE {
            self.settle().await?;
            self.write_out();
        }
        let room = match self.place.spooling.room.clone().try_acquire_owned() {
            Ok(room) => room,
            Err(_) => {
                self.blocks.push_back(Block { bytes: BytesMut::from(piece), _room: None });
                self.write_out();
                return self.settle().await;
            }
        };
        let bytes = BytesMut::with_capacity(BLOCK_BYTES);
        self.blocks.push_back(Block { bytes, _room: Some(room) });
        Ok(())
    }

    /// Starts to write the blocks in memory to the file.
    fn write_out(&mut self) {
        let (before, blocks) = (std::mem::take(&mut self.written), std::mem::take(&mut self.blocks));
        let (directory, place) = (self.directory.clone(), self.place.clone());
        self.written = Written::Writing(tokio::spawn(async move {
            let before = before.file().await?;
            let write = spawn_blocking(move || {
                let file = before.map_or_else(|| Unnamed::create(&directory, place), Ok)?;
                file.write(blocks)?;
                Ok(file)
            });
            write.await.expect("writing a body does not panic")
        }));
    }

    /// Waits until the pending write has ended.
    async fn settle(&mut self) -> io::Result<()> {
        if let Some(file) = std::mem::take(&mut self.written).file().await? {
            self.written = Written::Done(file);
        }
        Ok(())
    }

    fn is_on_disk(&self) -> bool {
        !matches!(self.written, Written::Nothing)
    }

    /// Whole body. It is in a file if `in_file` is set or if a part of it was already written.
    async fn whole(mut self, in_file: bool) -> io::Result<Spooled> {
        if in_file || self.is_on_disk() {
            self.write_out();
        }
        let file = self.written.file().await?;
        if let Some(file) = &file {
            file.file().rewind()?;
        }
        Ok(Spooled { blocks: self.blocks, file, place: self.place })
    }
}

/// Body that has arrived whole.
pub(super) struct Spooled {
    /// Blocks in order, if the body is in memory.
    blocks: VecDeque<Block>,
    file: Option<Unnamed>,
    place: Arc<Place>,
}

/// Next bytes of a body. They count as memory in use until the piece is dropped.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Spooled {
    /// Length of the body, bytes.
    pub(super) fn len(&self) -> u64 {
        let held: usize = self.blocks.iter().map(|block| block.bytes.len()).sum();
        held as u64 + self.place.bytes.load(Ordering::Relaxed)
    }

    /// File of the body; `None` if the body is in memory.
    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref().map(Unnamed::file)
    }

    /// Next bytes of the body; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Piece>> {
        if let Some(file) = self.file.take() {
            let read = spawn_blocking(move || file.read_piece().map(|piece| (file, piece)));
            let (file, piece) = read.await.expect("reading a body does not panic")?;
            self.file = Some(file);
            return Ok((!piece.is_empty()).then(|| Piece { bytes: piece.into(), _room: None }));
        }
        let block = self.blocks.pop_front();
        Ok(block.map(|Block { bytes, _room }| Piece { bytes: bytes.freeze(), _room }))
    }

    /// Reads the whole body into one vector. The caller has bounded its length.
    pub(super) async fn read(mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(usize::try_from(self.len()).unwrap_or(0));
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece.bytes);
        }
        Ok(all)
    }
}

/// Purpose of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The body is read once, in order.
    Once,
    /// The body becomes a file, whose bytes count against the token's quota.
    File,
}

impl App {
    /// Receives a whole body that `token` sends.
    pub(super) async fn spool<const MAX: u64>(
        &self,
        token: &str,
        mut body: Incoming<MAX>,
        purpose: Use,
    ) -> Result<Spooled, ApiError> {
        let ingest = self.origin.ingest();
        let in_file = purpose == Use::File;
        ingest.check_room(body.announced().unwrap_or(0))?;
        if in_file {
            ingest.check_quota(token, body.announced().unwrap_or(0)).await?;
        }
        let place = self.spooling.place(token).await?;
        let mut growing = Growing::new(self.origin.spool().to_owned(), place);
        if in_file {
            growing.write_out();
        }
        let mut unlooked = 0;
        let hold = sleep(HOLD);
        tokio::pin!(hold);
        loop {
            let next = {
                // One future until it ends, because it measures how long the origin has waited for
                // the caller.
                let next = body.next();
                tokio::pin!(next);
                loop {
                    tokio::select! {
                        biased;
                        piece = &mut next => break piece?,
                        () = &mut hold, if !growing.blocks.is_empty() => growing.write_out(),
                    }
                }
            };
            let Some(piece) = next else { break };
            self.metrics.received_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if growing.blocks.is_empty() {
                hold.as_mut().reset(tokio::time::Instant::now() + HOLD);
            }
            growing.push(&piece).await.map_err(ApiError::internal)?;
            unlooked += piece.len() as u64;
            if unlooked >= LOOK_BYTES {
                unlooked = 0;
                ingest.check_room(0)?;
                if in_file {
                    ingest.check_quota(token, growing.place.of_token()).await?;
                }
            }
        }
        growing.whole(in_file).await.map_err(ApiError::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[tokio::test]
    async fn a_body_keeps_its_bytes_in_memory_and_on_disk_and_memory_stays_bounded() {
        let directory = tempfile::tempdir().expect("tempdir");
        // (blocks of memory, whether the body has to be in a file, whether a body that exceeds the
        // memory is in a file)
        for (room, in_file, file) in
            [(0, false, true), (1, false, true), (3, false, true), (64, false, false), (64, true, true)]
        {
            for (len, piece) in [(0, 1), (1, 1), (3 << 20, 16_411), (5 << 20, 1 << 20), (3 << 20, 3 << 20)] {
                let spooling = Arc::new(Spooling::with_room(room));
                let place = spooling.place("token").await.expect("a place");
                let mut growing = Growing::new(directory.path().to_owned(), place);
                if in_file {
                    growing.write_out();
                }
                let bytes = noise(len);
                for piece in bytes.chunks(piece) {
                    growing.push(piece).await.expect("room on the disk");
                    let held: usize = growing.blocks.iter().map(|block| block.bytes.capacity()).sum();
                    assert!(held <= room * BLOCK_BYTES, "{held} of {room} blocks");
                }
                let spooled = growing.whole(in_file).await.expect("whole");
                assert_eq!(
                    spooled.file.is_some(),
                    in_file || (file && len > room * BLOCK_BYTES),
                    "{room} {len}"
                );
                assert_eq!(spooled.len(), len as u64);
                let on_disk = if spooled.file.is_some() { len as u64 } else { 0 };
                assert_eq!((spooling.disk_bytes(), spooling.bodies()), (on_disk, 1));
                assert!(spooled.read().await.expect("reads") == bytes, "{room} {len} {piece}");
                assert_eq!(spooling.room.available_permits(), room, "all permits are given back");
            }
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 0, "no file has a name");
    }

    #[tokio::test]
    async fn a_place_is_given_back_after_its_file_and_each_token_has_a_limited_number() {
        let directory = tempfile::tempdir().expect("tempdir");
        let spooling = Arc::new(Spooling::with_room(0));
        let mut bodies = Vec::new();
        for _ in 0..BODIES_MAX {
            let place = spooling.place("token").await.expect("a place");
            let mut growing = Growing::new(directory.path().to_owned(), place);
            growing.push(&[1; 1000]).await.expect("room on the disk");
            bodies.push(growing.whole(false).await.expect("whole"));
        }
        assert_eq!(spooling.disk_bytes(), BODIES_MAX as u64 * 1000);
        let waits = tokio::spawn({
            let spooling = spooling.clone();
            async move { spooling.place("token").await.map(drop).is_ok() }
        });
        let other = spooling.place("other").await.expect("another token has places of its own");
        while spooling.bodies() < BODIES_MAX as u64 + 2 {
            tokio::task::yield_now().await;
        }
        assert!(!waits.is_finished());
        drop(bodies.pop());
        assert!(waits.await.expect("no panic"), "the waiting request gets the place that was given back");
        drop((bodies, other));
        // Files are deleted on other threads.
        while spooling.bodies() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(spooling.disk_bytes(), 0);
    }
}
