//! A release as a string of bytes, read from the packs that hold its chunks.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use distd_core::ChunkId;
use distd_core::cut::{ReadAt, Regions, regions};
use distd_core::manifest::Manifest;
use distd_core::packing::Unpacker;
use distd_core::patch::pair::ChunkSpan;
use tokio::runtime::Handle;

use super::cache::{ChunkCache, Key, key};
use super::{CHUNKS_MAX, MakeError};
use crate::db::{Db, Location};
use crate::store::PackReader;

/// Raw bytes fetched from the store at once. They are in memory in addition to the caller's buffer.
const FETCH_BYTES: u64 = 4 << 20;

/// Hashes looked up in one query.
const ROWS_AT_ONCE: usize = 4096;

/// Release whose chunks can be read at any offset, from threads that may block. The hash of each
/// chunk is checked.
///
/// Takes about 90 bytes a chunk.
#[derive(Debug)]
pub(super) struct StoredArtifact {
    spans: Vec<ChunkSpan>,
    ids: Vec<ChunkId>,
    places: Vec<Location>,
    len: u64,
    packs: PackReader,
    cache: Arc<ChunkCache>,
    runtime: Handle,
}

impl StoredArtifact {
    pub(super) async fn open(
        manifest: &Manifest,
        db: &Db,
        packs: &PackReader,
        cache: &Arc<ChunkCache>,
    ) -> Result<Self, MakeError> {
        let chunks = manifest.root().chunks;
        if chunks > CHUNKS_MAX {
            return Err(MakeError::TooManyChunks { manifest: manifest.id(), chunks });
        }
        let (mut spans, mut ids) = (Vec::with_capacity(chunks as usize), Vec::with_capacity(chunks as usize));
        let mut len = 0;
        for at in manifest.entries() {
            spans.push(ChunkSpan { offset: len, len: at.entry.len, hash: at.entry.hash });
            ids.push(at.entry.id);
            len += u64::from(at.entry.len);
        }
        let mut places = Vec::with_capacity(spans.len());
        for batch in spans.chunks(ROWS_AT_ONCE) {
            let hashes: Vec<_> = batch.iter().map(|span| span.hash).collect();
            for (span, place) in batch.iter().zip(db.places(&hashes).await?) {
                let place = place.map(|(_, place)| place).filter(|place| place.raw_len == span.len);
                places.push(place.ok_or(MakeError::MissingChunk(span.hash))?);
            }
        }
        let (packs, cache, runtime) = (packs.clone(), cache.clone(), Handle::current());
        Ok(Self { spans, ids, places, len, packs, cache, runtime })
    }

    /// Artifact without a byte: the old side of a set from nothing.
    pub(super) fn nothing(packs: &PackReader, cache: &Arc<ChunkCache>) -> Self {
        let (spans, ids, places) = (Vec::new(), Vec::new(), Vec::new());
        let (packs, cache, runtime) = (packs.clone(), cache.clone(), Handle::current());
        Self { spans, ids, places, len: 0, packs, cache, runtime }
    }

    /// Chunks in artifact order.
    pub(super) fn spans(&self) -> &[ChunkSpan] {
        &self.spans
    }

    /// Id of the chunk at `index`.
    pub(super) fn id(&self, index: u32) -> ChunkId {
        self.ids[index as usize]
    }

    /// Length of the chunk at `index` as stored, bytes. This is its cost on the wire.
    pub(super) fn stored_len(&self, index: u32) -> u64 {
        u64::from(self.places[index as usize].stored_len)
    }

    /// Regions of the artifact. Borders that this build would make and that are not in the stored
    /// chunks are left out: the release was cut before their format was known.
    pub(super) fn regions(&self) -> Regions {
        let found = regions(self);
        if found.total() != self.len {
            return Regions::plain(self.len);
        }
        found.with_borders(|at| {
            at == self.len || self.spans.binary_search_by_key(&at, |span| span.offset).is_ok()
        })
    }

    /// Raw bytes of the chunks in `wanted`, by place; each place is read once.
    fn fetch(&self, wanted: &[u32]) -> io::Result<HashMap<Key, Arc<[u8]>>> {
        let mut found = HashMap::new();
        let mut missing: Vec<u32> = Vec::new();
        for index in wanted {
            let place = key(&self.places[*index as usize]);
            if found.contains_key(&place) {
                continue;
            }
            // An empty value marks the chunk as requested, so that a repeat is fetched once.
            let chunk = self.cache.get(place).unwrap_or_else(|| {
                missing.push(*index);
                Arc::default()
            });
            found.insert(place, chunk);
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let places: Vec<Location> = missing.iter().map(|index| self.places[*index as usize]).collect();
        let stored = self.runtime.block_on(async {
            match &places[..] {
                // Single reads mostly go forward, and the reader's blocks bring the next chunks
                // with them.
                [one] => self.packs.read_one(one).await.map(|bytes| vec![bytes]),
                many => self.packs.read_many(many).await,
            }
        });
        let mut unpacker = Unpacker::default();
        for ((index, place), bytes) in missing.iter().zip(&places).zip(stored.map_err(io::Error::other)?) {
            let span = &self.spans[*index as usize];
            let raw = unpacker.unpack(place.codec, &bytes, span.len, &span.hash).map_err(io::Error::other)?;
            let raw: Arc<[u8]> = raw.into();
            self.cache.put(key(place), raw.clone());
            found.insert(key(place), raw);
        }
        Ok(found)
    }
}

impl ReadAt for StoredArtifact {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut next = self.spans.partition_point(|span| span.offset + u64::from(span.len) <= offset);
        let mut position = offset;
        while position < end {
            let from = self.spans[next].offset;
            let last = self.spans[next..]
                .iter()
                .take_while(|span| span.offset < end && span.offset - from < FETCH_BYTES)
                .count();
            let batch: Vec<u32> = (next..next + last).map(|index| index as u32).collect();
            let chunks = self.fetch(&batch)?;
            for span in &self.spans[next..next + last] {
                let chunk: &[u8] = &chunks[&key(&self.places[next])];
                let within = (position - span.offset) as usize;
                let len = (chunk.len() - within).min((end - position) as usize);
                let at = (position - offset) as usize;
                buf[at..at + len].copy_from_slice(&chunk[within..within + len]);
                position += len as u64;
                next += 1;
            }
        }
        Ok(())
    }
}
