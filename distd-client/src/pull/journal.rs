//! Journal of the chunks that were written and verified; it survives kills and power loss.
//!
//! The journal only saves work. On resume, chunks that it does not list are hashed in place, so a
//! chunk that reached the target is never fetched again, even if the kill came before the journal
//! listed it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use distd_core::ranges::Ranges;
use distd_core::{ManifestId, Position};
use distd_peer::share::Holdings;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::entries::Entries;
use crate::disk::side::{self, SideError, write_atomic};

/// Largest journal read, in bytes. If every second chunk of the largest artifact is done, each
/// makes a range of some 20 bytes.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u8,
    manifest: ManifestId,
    /// Positions in artifact order, as inclusive ranges.
    done: Vec<(u64, u64)>,
}

/// Positions of chunks that are in the target, for one manifest.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    manifest: ManifestId,
    done: Ranges<Position>,
    written: u64,
    /// Set when the pull is over: nothing is written any more.
    closed: bool,
    /// Holdings that announce the journal's chunks to neighbours; `None` when the exchange is off.
    told: Option<(Arc<Entries>, Arc<Holdings>)>,
    /// Wakes those who wait for a chunk.
    arrived: Arc<Notify>,
}

impl Journal {
    /// Opens the journal at `path`; it is empty unless the file belongs to this manifest.
    pub(super) fn open(path: PathBuf, manifest: ManifestId, chunks: u64) -> Self {
        let mut journal = Self {
            path,
            manifest,
            done: Ranges::new(),
            written: 0,
            closed: false,
            told: None,
            arrived: Arc::default(),
        };
        let Ok(Some(bytes)) = side::read(&journal.path, JOURNAL_BYTES_MAX) else { return journal };
        match rmp_serde::from_slice::<Wire>(&bytes) {
            Ok(wire) if wire.version == 1 && wire.manifest == manifest => {
                for (start, end) in wire.done {
                    if start <= end && end < chunks {
                        journal.done.insert_range(Position(start)..=Position(end));
                    }
                }
                journal.written = journal.done.len();
            }
            _ => {
                tracing::debug!(path = %journal.path.display(), "journal is of another pull and starts empty")
            }
        }
        journal
    }

    /// Adds every chunk in the target to `holdings`, now and whenever one is added.
    pub(super) fn tell(&mut self, entries: Arc<Entries>, holdings: Arc<Holdings>) {
        let done = self.done.ids().map(|position| entries.get(position).entry.id);
        holdings.add(done);
        self.told = Some((entries, holdings));
    }

    /// Signal of each chunk that is added.
    pub(super) fn arrived(&self) -> Arc<Notify> {
        self.arrived.clone()
    }

    pub(super) fn add(&mut self, position: Position) {
        self.done.insert(position);
        self.arrived.notify_waiters();
        if let Some((entries, holdings)) = &self.told {
            holdings.add([entries.get(position).entry.id]);
        }
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.done.contains(position)
    }

    /// Replaces all positions by these.
    pub(super) fn replace(&mut self, positions: impl Iterator<Item = Position>) {
        self.done = positions.collect();
        self.written = u64::MAX;
    }

    /// Returns whether there are unwritten changes.
    pub(super) fn is_dirty(&self) -> bool {
        !self.closed && self.done.len() != self.written
    }

    /// Returns a snapshot, to be written once the data that it lists is durable.
    pub(super) fn snapshot(&mut self) -> (PathBuf, Vec<u8>) {
        self.written = self.done.len();
        let done = self.done.iter().map(|r| (r.start().0, r.end().0)).collect();
        let wire = Wire { version: 1, manifest: self.manifest, done };
        (self.path.clone(), rmp_serde::to_vec(&wire).expect("numbers and bytes always encode"))
    }

    /// Writes a snapshot.
    ///
    /// # Errors
    /// [`SideError`].
    pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), SideError> {
        write_atomic(path, bytes)
    }

    /// Closes the journal and removes its file at the end of the pull.
    ///
    /// # Errors
    /// [`SideError`].
    pub(super) fn remove(&mut self) -> Result<(), SideError> {
        self.closed = true;
        side::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_journal_reads_back_and_one_of_another_manifest_is_empty() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("j");
        let mut journal = Journal::open(path.clone(), ManifestId([1; 32]), 100);
        for position in [0, 1, 2, 99] {
            journal.add(Position(position));
        }
        assert!(journal.is_dirty());
        let (to, bytes) = journal.snapshot();
        Journal::write(&to, &bytes).expect("write");
        let again = Journal::open(path.clone(), ManifestId([1; 32]), 100);
        assert!(!again.is_dirty());
        assert_eq!((0..100).filter(|p| again.contains(Position(*p))).collect::<Vec<_>>(), [0, 1, 2, 99]);
        assert!(!Journal::open(path.clone(), ManifestId([2; 32]), 100).contains(Position(0)));
        // Positions beyond the artifact are ignored.
        assert!(!Journal::open(path.clone(), ManifestId([1; 32]), 99).contains(Position(99)));
        fs::write(&path, b"garbage").expect("write");
        assert!(!Journal::open(path, ManifestId([1; 32]), 100).contains(Position(0)));
    }
}
