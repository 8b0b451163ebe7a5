//! Downloads of files whose hash is known, each once however many ask for it.
//!
//! All who want a file read it while it arrives. The last 64 KiB wait until the hash of the whole
//! is right, so that a caller never gets all of a file that is wrong: its response ends before its
//! length.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest;
use bytes::Bytes;
use http::StatusCode;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::address::Address;
use super::index::Sum;
use super::mirror::{Answer, MirrorError};
use super::store::{Partial, Store, Stored, finish, read_at};
use crate::gateway::FileBytes;

/// Bytes at the end of a file that wait for its hash.
pub(super) const HELD_BACK: u64 = 64 << 10;

/// Most addresses that one download asks.
const SOURCES_MAX: usize = 8;

/// Room that is made at once for a file whose length no server states, bytes.
const GROWTH: u64 = 4 << 20;

/// Longest wait for bytes before the pace is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Pace below which a source is left, if there is another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Longest silence.
    pub(super) silence: Duration,
    /// Fewest bytes in `window`.
    pub(super) bytes: u64,
    /// Time in which they are counted.
    pub(super) window: Duration,
}

/// Measurement of a source's pace.
struct Pacer {
    pace: Pace,
    heard: Instant,
    since: Instant,
    bytes: u64,
}

impl Pacer {
    fn new(pace: Pace) -> Self {
        Self { pace, heard: Instant::now(), since: Instant::now(), bytes: 0 }
    }

    fn count(&mut self, bytes: u64) {
        self.heard = Instant::now();
        self.bytes += bytes;
    }

    /// Whether the source is too slow now.
    fn is_slow(&mut self) -> bool {
        if self.since.elapsed() < self.pace.window {
            return self.heard.elapsed() >= self.pace.silence;
        }
        let is_slow = self.bytes < self.pace.bytes;
        (self.since, self.bytes) = (Instant::now(), 0);
        is_slow || self.heard.elapsed() >= self.pace.silence
    }
}

/// How the reading of an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The file is whole.
    Whole,
    /// The source was too slow, and there is another.
    Left,
}

/// Reason why a download failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server answered with this status.
    #[error("the mirror answered with status {0}")]
    Status(StatusCode),
    /// The bytes are not those of the file.
    #[error("{0}")]
    WrongBytes(String),
    /// The server cannot be reached, or broke off.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy may not ask the server.
    #[error("{0}")]
    Refused(String),
    /// The disk takes no more.
    #[error("the disk takes no more")]
    Disk,
}

impl From<MirrorError> for Failure {
    fn from(error: MirrorError) -> Self {
        let text = distd_core::error::Chain(&error).to_string();
        if error.is_refusal() { Self::Refused(text) } else { Self::Unreachable(text) }
    }
}

/// How far a download is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Whether a server sends the file.
    is_begun: bool,
    /// Bytes that were written.
    written: u64,
    /// Its end.
    end: Option<Result<Arc<Stored>, Failure>>,
}

/// Mirrors of one download: the addresses at which its askers asked for the file.
#[derive(Debug, Default)]
struct Sources {
    /// Every address, with the reason why it gave no file.
    all: Vec<(Address, Option<Failure>)>,
    /// Addresses that were not asked.
    untried: VecDeque<Address>,
    /// Addresses that were left because they were slow and another was there.
    slow: VecDeque<Address>,
    /// Addresses that sent bytes.
    senders: Vec<Address>,
    /// Whether the download asks no further address.
    is_closed: bool,
}

/// A download under way. It belongs to all who asked for the file.
#[derive(Debug)]
pub struct Flight {
    /// Sum of the file.
    pub sum: Sum,
    /// `Last-Modified`, unix seconds.
    pub modified: OnceLock<u64>,
    /// The file, from when a server sends it.
    file: OnceLock<File>,
    sources: Mutex<Sources>,
    progress: watch::Sender<Progress>,
}

impl Flight {
    pub(super) fn new(sum: Sum) -> Arc<Self> {
        let (file, progress) = (OnceLock::new(), watch::Sender::new(Progress::default()));
        Arc::new(Self { sum, modified: OnceLock::new(), file, sources: Mutex::default(), progress })
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the address of an asker. False when the download has no use for it any more, or has too
    /// many.
    pub(super) fn offer(&self, address: &Address) -> bool {
        let mut sources = self.sources();
        if sources.all.iter().any(|(known, _)| known == address) {
            return true;
        }
        if sources.is_closed || sources.all.len() >= SOURCES_MAX {
            return false;
        }
        sources.all.push((address.clone(), None));
        sources.untried.push_back(address.clone());
        true
    }

    /// The address of the one who began the download.
    pub(super) fn first_source(&self) -> Option<Address> {
        self.sources().all.first().map(|(address, _)| address.clone())
    }

    /// The address to ask next; `None`, from then on, when all have failed.
    pub(super) fn next_source(&self) -> Option<Address> {
        let mut sources = self.sources();
        let next = sources.untried.pop_front().or_else(|| sources.slow.pop_front());
        sources.is_closed = next.is_none();
        next
    }

    /// Whether there is an address that was not asked.
    pub(super) fn has_untried(&self) -> bool {
        !self.sources().untried.is_empty()
    }

    /// Leaves an address for one that was not asked. It is asked again when the others fail.
    pub(super) fn was_slow(&self, address: Address) {
        self.sources().slow.push_back(address);
    }

    /// Notes why an address gave no file.
    pub(super) fn failed_at(&self, address: &Address, failure: Failure) {
        let mut sources = self.sources();
        if let Some((_, noted)) = sources.all.iter_mut().find(|(known, _)| known == address) {
            *noted = Some(failure);
        }
    }

    /// The reason of the failure for the asker at `address`: that of its own mirror, if it was
    /// asked.
    pub(super) fn failure_for(&self, address: &Address, failure: Failure) -> Failure {
        let sources = self.sources();
        let own = sources.all.iter().find(|(known, _)| known == address);
        own.and_then(|(_, own)| own.clone()).unwrap_or(failure)
    }

    /// Notes that an address sends the file.
    pub(super) fn sends(&self, address: &Address) {
        let mut sources = self.sources();
        if !sources.senders.contains(address) {
            sources.senders.push(address.clone());
        }
    }

    /// Whether bytes are of another mirror than that of the asker at `address`.
    pub(super) fn is_of_others(&self, address: &Address) -> bool {
        self.sources().senders.iter().any(|sender| sender != address)
    }

    /// Waits until bytes come, or until the download failed.
    pub(super) async fn begun(&self) -> Result<(), Failure> {
        let mut progress = self.progress.subscribe();
        let begun = progress.wait_for(|progress| progress.is_begun || progress.end.is_some()).await;
        match begun {
            Ok(progress) => match &progress.end {
                Some(Err(failure)) => Err(failure.clone()),
                _ => Ok(()),
            },
            Err(_) => Err(Failure::Unreachable("the download was given up".into())),
        }
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) -> Result<Arc<Stored>, Failure> {
        let mut progress = self.progress.subscribe();
        let given_up = Err(Failure::Unreachable("the download was given up".into()));
        match progress.wait_for(|progress| progress.end.is_some()).await {
            Ok(progress) => progress.end.clone().unwrap_or(given_up),
            Err(_) => given_up,
        }
    }

    pub(super) fn end(&self, end: Result<Arc<Stored>, Failure>) {
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    /// Whether the download is over.
    pub(super) fn is_over(&self) -> bool {
        self.progress.borrow().end.is_some()
    }
}

#[async_trait]
impl FileBytes for Flight {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        let end = self.sum.bytes - HELD_BACK.min(self.sum.bytes);
        let mut progress = self.progress.subscribe();
        let there = |progress: &Progress| match &progress.end {
            Some(Ok(_)) => self.sum.bytes,
            _ => progress.written.min(end),
        };
        let readable = {
            let state = progress.wait_for(|state| state.end.is_some() || there(state) > range.start);
            let state = state.await.map_err(|_| io::Error::other("the download was given up"))?;
            if let Some(Err(failure)) = &state.end {
                return Err(io::Error::other(failure.clone()));
            }
            there(&state)
        };
        let file = self.file.get().ok_or_else(|| io::Error::other("the download has no file"))?;
        let (file, range) = (file.try_clone()?, range.start..range.end.min(readable));
        tokio::task::spawn_blocking(move || read_at(&file, range)).await.map_err(io::Error::other)?
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Place of a download in the cache, with the hash of what was written.
struct Place {
    context: digest::Context,
    file: File,
    partial: Partial,
}

/// Writer of a download: it hashes and writes what servers send, one after the other.
pub(super) struct Writer {
    flight: Arc<Flight>,
    store: Arc<Store>,
    /// `None` until a server sends the file.
    place: Option<Place>,
    pub(super) written: u64,
}

impl Writer {
    pub(super) fn new(flight: &Arc<Flight>, store: &Arc<Store>) -> Self {
        Self { flight: flight.clone(), store: store.clone(), place: None, written: 0 }
    }

    /// Makes room for the file when the first bytes of it are here: for all of it if the server
    /// states the length, which was compared with that of the index, else as bytes come.
    async fn open(&mut self, answer: &Answer) -> Result<(), Failure> {
        if self.place.is_some() {
            return Ok(());
        }
        let room = if answer.length().is_some() { self.flight.sum.bytes } else { 0 };
        let store = self.store.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let partial = store.begin(room)?;
            let (file, reader) = (partial.handle().ok()?, partial.handle().ok()?);
            let context = digest::Context::new(&digest::SHA256);
            Some((Place { context, file, partial }, reader))
        });
        let (place, reader) = opened.await.ok().flatten().ok_or(Failure::Disk)?;
        self.place = Some(place);
        // The writer opens one file, once.
        let _ = self.flight.file.set(reader);
        Ok(())
    }

    /// Writes the body of an answer, whose first byte has the number `from` in the file. Bytes that
    /// were written before are skipped. A source slower than `pace` is left if `may_leave` says so.
    ///
    /// # Errors
    /// [`Failure`]; what came until then is written.
    pub(super) async fn take(
        &mut self,
        answer: &mut Answer,
        from: u64,
        pace: Pace,
        may_leave: impl Fn() -> bool,
    ) -> Result<Taken, Failure> {
        let mut skip = self.written.saturating_sub(from);
        let mut pacer = Pacer::new(pace);
        loop {
            let waited = timeout(TICK.min(pace.silence), answer.next()).await;
            let is_silent = waited.is_err();
            if let Ok(next) = waited {
                let Some(bytes) = next? else { break };
                pacer.count(bytes.len() as u64);
                self.open(answer).await?;
                self.add(bytes, &mut skip).await?;
            }
            if self.written < self.flight.sum.bytes && pacer.is_slow() && may_leave() {
                return Ok(Taken::Left);
            }
            if is_silent && pacer.heard.elapsed() >= answer.stall {
                return Err(answer.stalled().into());
            }
        }
        self.open(answer).await?;
        if self.written < self.flight.sum.bytes {
            return Err(Failure::Unreachable("the mirror sent less than it said".into()));
        }
        Ok(Taken::Whole)
    }

    /// Writes bytes, without the `skip` that were written before.
    async fn add(&mut self, mut bytes: Bytes, skip: &mut u64) -> Result<(), Failure> {
        let skipped = (*skip).min(bytes.len() as u64);
        *skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        if bytes.len() as u64 > self.flight.sum.bytes - self.written {
            return Err(Failure::WrongBytes("the mirror sends more than the index lists".into()));
        }
        if bytes.is_empty() { Ok(()) } else { self.write(bytes).await }
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let mut place = self.place.take().ok_or(Failure::Disk)?;
        let (written, whole) = (self.written + bytes.len() as u64, self.flight.sum.bytes);
        let work = tokio::task::spawn_blocking(move || {
            if written > place.partial.reserved() && !place.partial.grow(whole.min(written + GROWTH)) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            place.context.update(&bytes);
            place.file.write_all(&bytes).map(|()| place)
        });
        let Ok(Ok(place)) = work.await else { return Err(Failure::Disk) };
        self.place = Some(place);
        self.written = written;
        self.flight.progress.send_modify(|progress| {
            progress.is_begun = true;
            progress.written = written;
        });
        Ok(())
    }

    /// Whether all bytes were written.
    pub(super) fn is_whole(&self) -> bool {
        self.place.is_some() && self.written == self.flight.sum.bytes
    }

    /// The file, if its bytes are right.
    pub(super) fn finish(self) -> Option<Partial> {
        let place = self.place?;
        (finish(place.context) == self.flight.sum.sha256).then_some(place.partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str) -> Address {
        Address::parse(&format!("http://{host}/a.deb")).expect("an address")
    }

    #[test]
    fn each_asker_adds_its_mirror_and_hears_of_its_own_failure() {
        let flight = Flight::new(Sum { sha256: [1; 32], bytes: 5 });
        let gone = Failure::Status(StatusCode::NOT_FOUND);
        let away = Failure::Unreachable("away".into());
        assert!(flight.offer(&at("a")) && flight.offer(&at("b")) && flight.offer(&at("a")));
        assert_eq!(flight.next_source(), Some(at("a")));
        assert!(flight.has_untried());
        flight.was_slow(at("a"));
        assert_eq!(flight.next_source(), Some(at("b")));
        flight.failed_at(&at("b"), gone.clone());
        assert!(!flight.has_untried());
        // The slow one is better than none.
        assert_eq!(flight.next_source(), Some(at("a")));
        assert!(flight.offer(&at("c")) && flight.has_untried());
        flight.failed_at(&at("a"), away.clone());
        assert_eq!(flight.next_source(), Some(at("c")));
        assert_eq!(flight.next_source(), None);
        assert!(!flight.offer(&at("d")), "it would be asked by nobody");
        assert_eq!(flight.failure_for(&at("b"), away.clone()), gone);
        assert_eq!(flight.failure_for(&at("d"), away.clone()), away);
        flight.sends(&at("a"));
        assert!(flight.is_of_others(&at("c")) && !flight.is_of_others(&at("a")));
        let many = Flight::new(flight.sum);
        let taken = (0..2 * SOURCES_MAX).filter(|n| many.offer(&at(&format!("h{n}")))).count();
        assert_eq!(taken, SOURCES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_slow_when_it_is_silent_or_trickles() {
        let pace = Pace { silence: Duration::from_secs(5), bytes: 1000, window: Duration::from_secs(10) };
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        let mut pacer = Pacer::new(pace);
        pass(4).await;
        assert!(!pacer.is_slow());
        pacer.count(1);
        pass(4).await;
        assert!(!pacer.is_slow());
        pass(1).await;
        assert!(pacer.is_slow(), "silent");
        // 999 bytes in 10 s are too few, 1000 are not.
        let mut pacer = Pacer::new(pace);
        for (bytes, is_slow) in [(333, true), (334, false)] {
            for _ in 0..3 {
                pacer.count(bytes);
                pass(3).await;
                assert!(!pacer.is_slow());
            }
            pass(1).await;
            assert_eq!(pacer.is_slow(), is_slow, "{bytes}");
        }
    }
}
