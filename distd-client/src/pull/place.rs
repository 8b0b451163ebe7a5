//! Writes verified chunks into the target, at all their positions.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use distd_core::manifest::{ChunkAt, Entry};
use distd_core::{ChunkHash, ChunkId, Position};
use distd_peer::share::ChunkBytes;

use super::entries::Entries;
use super::journal::Journal;
use super::target::Target;

/// Number of positions of one chunk that are read before the chunk counts as missing.
const PLACES_TRIED: usize = 4;

/// Number of pieces written in one call; the system accepts at most 1024.
const PIECES_MAX: usize = 256;

/// The artifact being pulled, as neighbours read it.
pub(super) struct Placed {
    entries: Arc<Entries>,
    target: Arc<dyn Target>,
    /// Chunk ids with a position each, sorted; computed at the first request.
    places: OnceLock<Vec<(ChunkId, u32)>>,
}

impl Placed {
    pub(super) fn new(entries: Arc<Entries>, target: Arc<dyn Target>) -> Self {
        Self { entries, target, places: OnceLock::new() }
    }

    fn places(&self) -> &[(ChunkId, u32)] {
        self.places.get_or_init(|| {
            let number = |(position, at): (Position, ChunkAt)| (at.entry.id, position.0 as u32);
            let mut places: Vec<_> = self.entries.iter().map(number).collect();
            places.sort_unstable();
            places
        })
    }
}

impl ChunkBytes for Placed {
    fn read(&self, entry: &Entry, buffer: &mut [u8]) -> bool {
        let places = self.places();
        let first = places.partition_point(|(id, _)| *id < entry.id);
        // A chunk with several positions may not be at all of them yet.
        places[first..].iter().take_while(|(id, _)| *id == entry.id).take(PLACES_TRIED).any(
            |(_, position)| {
                let at = self.entries.get(Position(u64::from(*position)));
                self.target.read_at(at.offset, buffer).is_ok() && ChunkHash::of(buffer) == entry.hash
            },
        )
    }
}

/// Writes each missing chunk once to all its positions.
pub(super) struct Placer {
    target: Arc<dyn Target>,
    journal: Arc<Mutex<Journal>>,
    entries: Arc<Entries>,
    /// Chunk ids and positions, sorted.
    places: Vec<(ChunkId, Position)>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
    /// Bytes of chunks that arrived although they were already written; must stay 0.
    repeated_bytes: AtomicU64,
}

impl Placer {
    /// Makes a placer for the chunks at the `missing` positions.
    pub(super) fn new(
        target: Arc<dyn Target>,
        journal: Arc<Mutex<Journal>>,
        entries: Arc<Entries>,
        missing: impl Iterator<Item = Position>,
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Self {
        let mut places: Vec<_> = missing.map(|position| (entries.get(position).entry.id, position)).collect();
        places.sort_unstable();
        places.shrink_to_fit();
        Self { target, journal, entries, places, progress, repeated_bytes: AtomicU64::new(0) }
    }

    /// Returns the ids of the missing chunks, ascending, each once.
    pub(super) fn ids(&self) -> Vec<ChunkId> {
        let mut ids: Vec<_> = self.places.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        ids
    }

    fn positions(&self, id: ChunkId) -> impl Iterator<Item = Position> + '_ {
        let first = self.places.partition_point(|(other, _)| *other < id);
        self.places[first..].iter().take_while(move |(other, _)| *other == id).map(|(_, position)| *position)
    }

    /// Returns the manifest's entry of a missing chunk; `None` for any other chunk.
    pub(super) fn entry(&self, id: ChunkId) -> Option<Entry> {
        self.positions(id).next().map(|position| self.entries.get(position).entry)
    }

    /// Returns the number of raw bytes at all positions of `ids`.
    pub(super) fn placed_bytes(&self, ids: impl Iterator<Item = ChunkId>) -> u64 {
        ids.flat_map(|id| self.positions(id)).map(|at| u64::from(self.entries.get(at).entry.len)).sum()
    }

    /// Writes chunks whose bytes matched their hashes. Adjacent chunks are written in one call.
    ///
    /// # Errors
    /// The target's errors; chunks written before the error are in the journal.
    pub(super) fn place_all<'c>(&self, chunks: impl Iterator<Item = (ChunkId, &'c [u8])>) -> io::Result<()> {
        let mut places: Vec<(u64, Position, &[u8])> = chunks
            .flat_map(|(id, raw)| self.positions(id).map(move |position| (position, raw)))
            .map(|(position, raw)| (self.entries.get(position).offset, position, raw))
            .collect();
        places.sort_unstable_by_key(|(offset, ..)| *offset);
        for run in places.chunk_by(|(offset, _, raw), (next, ..)| offset + raw.len() as u64 == *next) {
            for part in run.chunks(PIECES_MAX) {
                let pieces: Vec<&[u8]> = part.iter().map(|(.., raw)| *raw).collect();
                self.target.write_pieces_at(part[0].0, &pieces)?;
                let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
                for (_, position, raw) in part {
                    if journal.contains(*position) {
                        self.repeated_bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
                    }
                    journal.add(*position);
                }
                drop(journal);
                (self.progress)(pieces.iter().map(|piece| piece.len() as u64).sum());
            }
        }
        Ok(())
    }

    /// Writes a chunk to those of its positions that lack it; returns the bytes written.
    ///
    /// # Errors
    /// The target's errors.
    pub(super) fn place_missing(&self, id: ChunkId, raw: &[u8]) -> io::Result<u64> {
        let mut bytes = 0;
        for position in self.positions(id) {
            let lock = || self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            if lock().contains(position) {
                continue;
            }
            self.target.write_at(self.entries.get(position).offset, raw)?;
            lock().add(position);
            (self.progress)(raw.len() as u64);
            bytes += raw.len() as u64;
        }
        Ok(bytes)
    }

    /// Appends a chunk of the artifact to `buffer`, read back from the target and hashed; `None`
    /// when it is not in place.
    pub(super) fn read(&self, id: ChunkId, buffer: &mut Vec<u8>) -> Option<()> {
        // Chunks that an earlier run placed are not among the missing ones. They need a linear
        // search, which is rare.
        let earlier = || self.entries.iter().find(|(_, at)| at.entry.id == id).map(|(position, _)| position);
        let position = self.positions(id).next().or_else(earlier)?;
        let at = self.entries.get(position);
        let from = buffer.len();
        buffer.resize(from + at.entry.len as usize, 0);
        self.target.read_at(at.offset, &mut buffer[from..]).ok()?;
        (ChunkHash::of(&buffer[from..]) == at.entry.hash).then_some(())
    }

    /// Returns the number of bytes of chunks that arrived although they were already written.
    pub(super) fn repeated_bytes(&self) -> u64 {
        self.repeated_bytes.load(Ordering::Relaxed)
    }
}
