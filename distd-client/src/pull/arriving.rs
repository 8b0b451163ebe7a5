//! The artifact of a running pull, read while it arrives.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distd_core::{ChunkHash, ManifestId, Position};
use tokio::sync::{Notify, mpsc};

use super::entries::Entries;
use super::journal::Journal;
use super::target::Target;

/// Most bytes read at once, apart from one chunk.
const READ_BYTES_MAX: u64 = 128 << 10;

/// Most bytes that one reader asks for before others.
const HURRY_BYTES_MAX: u64 = 256 << 10;

/// Most requests for chunks that wait; more are dropped, as the pull brings them in any case.
pub(super) const URGENT_MAX: usize = 256;

/// The artifact of a running pull. Each read is verified by the hashes of its chunks, whatever the
/// journal of the pull says.
pub struct Arriving {
    entries: Arc<Entries>,
    target: Arc<dyn Target>,
    journal: Arc<Mutex<Journal>>,
    arrived: Arc<Notify>,
    /// Positions that a reader waits for, and that should come before others.
    urgent: mpsc::Sender<Position>,
    manifest: ManifestId,
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arriving").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl Arriving {
    pub(super) fn new(
        manifest: ManifestId,
        entries: Arc<Entries>,
        target: Arc<dyn Target>,
        journal: Arc<Mutex<Journal>>,
    ) -> (Self, mpsc::Receiver<Position>) {
        let arrived = journal.lock().unwrap_or_else(PoisonError::into_inner).arrived();
        let (urgent, wanted) = mpsc::channel(URGENT_MAX);
        (Self { entries, target, journal, arrived, urgent, manifest }, wanted)
    }

    /// Manifest of the artifact.
    pub fn manifest(&self) -> ManifestId {
        self.manifest
    }

    /// Waits until the first chunk of `range` is in place. Never returns for a chunk that does not
    /// come: whoever calls this also watches the pull.
    ///
    /// # Errors
    /// When the range begins behind the end of the artifact.
    pub async fn wait(&self, range: &Range<u64>) -> io::Result<()> {
        let first = self.first(range)?;
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            // From here on no signal is missed.
            arrived.as_mut().enable();
            if self.is_there(first) {
                return Ok(());
            }
            arrived.await;
        }
    }

    /// Asks for the chunks at the start of `range` that are not in place before others.
    pub fn hurry(&self, range: &Range<u64>) {
        let end = range.end.min(range.start.saturating_add(HURRY_BYTES_MAX));
        let (Some(first), Some(last)) =
            (self.entries.at(range.start), self.entries.at(end.saturating_sub(1)))
        else {
            return;
        };
        for position in (first.0..=last.0).map(Position) {
            if !self.is_there(position) {
                // A full queue means that the pull is busy with other chunks that readers wait for.
                let _ = self.urgent.try_send(position);
            }
        }
    }

    /// Reads the bytes at the start of `range` that are in place, verified; `None` if a chunk is
    /// not there or not right.
    ///
    /// # Errors
    /// When the range begins behind the end of the artifact.
    pub async fn read(self: &Arc<Self>, range: Range<u64>) -> io::Result<Option<Bytes>> {
        let (this, first) = (self.clone(), self.first(&range)?);
        tokio::task::spawn_blocking(move || this.read_verified(first, &range)).await.map_err(io::Error::other)
    }

    fn first(&self, range: &Range<u64>) -> io::Result<Position> {
        let behind = || io::Error::new(io::ErrorKind::InvalidInput, "the range lies behind the artifact");
        self.entries.at(range.start).ok_or_else(behind)
    }

    fn is_there(&self, position: Position) -> bool {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).contains(position)
    }

    fn read_verified(&self, first: Position, range: &Range<u64>) -> Option<Bytes> {
        let start = self.entries.get(first).offset;
        let enough = range.end.min(range.start.saturating_add(READ_BYTES_MAX));
        let mut run = Vec::new();
        let mut end = start;
        {
            let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            let mut position = first;
            while end < enough && position.index() < self.entries.len() && journal.contains(position) {
                let at = self.entries.get(position);
                end = at.offset + u64::from(at.entry.len);
                run.push(at);
                position = Position(position.0 + 1);
            }
        }
        let mut buffer = vec![0; usize::try_from(end - start).ok()?];
        self.target.read_at(start, &mut buffer).ok()?;
        let sound = run.iter().take_while(|at| {
            let from = (at.offset - start) as usize;
            ChunkHash::of(&buffer[from..from + at.entry.len as usize]) == at.entry.hash
        });
        let end = sound.last().map(|at| at.offset + u64::from(at.entry.len))?.min(range.end);
        let bytes = Bytes::from(buffer);
        Some(bytes.slice((range.start - start) as usize..(end - start) as usize))
    }
}
