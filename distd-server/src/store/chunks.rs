//! Chunks for serving: by id, in stored form.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distd_core::packing::Codec;
use distd_core::{ChunkHash, ChunkId};

use super::{PackReader, ReadError, Store};
use crate::db::{ChunkRow, Db, DbError};

/// Number of rows read by one query: an id and those behind it, which are usually asked for next.
const ROWS_AHEAD: u32 = 256;

/// Maximum number of rows remembered, about 100 bytes each.
const ROWS_MAX: usize = 32_768;

/// Error of reading chunks.
#[derive(Debug, thiserror::Error)]
pub enum ChunkReadError {
    /// The database failed.
    #[error("could not look up chunks")]
    Db(#[from] DbError),
    /// The packs could not be read.
    #[error("could not read chunks from their packs")]
    Read(#[from] ReadError),
}

/// A chunk as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// Its id.
    pub id: ChunkId,
    /// Hash of the raw bytes.
    pub hash: ChunkHash,
    /// Form of `bytes`.
    pub codec: Codec,
    /// Raw length, bytes.
    pub raw_len: u32,
    /// The stored bytes.
    pub bytes: Bytes,
}

impl StoredChunk {
    fn new(row: &ChunkRow, bytes: Bytes) -> Self {
        let at = &row.location;
        Self { id: row.id, hash: row.hash, codec: at.codec, raw_len: at.raw_len, bytes }
    }
}

/// The chunks of all releases; cheap to clone. Holds at most 32 MiB of blocks and 4 MiB of rows.
#[derive(Clone, Debug)]
pub struct Chunks {
    db: Db,
    packs: PackReader,
    // A remembered row becomes outdated only when its chunk is moved out of a pack that is lost or
    // mostly unused. Such a pack is deleted soon, and the read that fails then drops the row.
    rows: Arc<Mutex<HashMap<ChunkId, ChunkRow>>>,
}

impl Chunks {
    /// Chunks of a database and its store.
    pub fn new(db: Db, store: Store) -> Self {
        Self { packs: PackReader::new(db.clone(), store), db, rows: Arc::default() }
    }

    /// Reads one chunk; `None` if no chunk has the id. Reading a run of ids one by one costs one
    /// query and a few long reads.
    ///
    /// # Errors
    /// [`ChunkReadError`].
    pub async fn chunk(&self, id: ChunkId) -> Result<Option<StoredChunk>, ChunkReadError> {
        let Some(row) = self.row(id).await? else { return Ok(None) };
        match self.packs.read_one(&row.location).await {
            Ok(bytes) => Ok(Some(StoredChunk::new(&row, bytes))),
            Err(error) => {
                // A chunk whose pack was lost may lie in another pack now.
                self.rows.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                match self.row(id).await? {
                    Some(moved) if moved.location != row.location => {
                        let bytes = self.packs.read_one(&moved.location).await?;
                        Ok(Some(StoredChunk::new(&moved, bytes)))
                    }
                    _ => Err(error.into()),
                }
            }
        }
    }

    async fn row(&self, id: ChunkId) -> Result<Option<ChunkRow>, DbError> {
        if let Some(row) = self.rows.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Some(*row));
        }
        let last = ChunkId(id.0.saturating_add(u64::from(ROWS_AHEAD) - 1));
        let found = self.db.chunks_in(id, last, ROWS_AHEAD).await?;
        let wanted = found.first().copied().filter(|row| row.id == id);
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.len() + found.len() > ROWS_MAX {
            rows.clear();
        }
        rows.extend(found.into_iter().map(|row| (row.id, row)));
        Ok(wanted)
    }

    /// Reads the chunks from `first` to `last` inclusive as far as their stored bytes fit in
    /// `budget_bytes`, but at least one and at most 1024. The caller continues behind the last
    /// chunk returned. The list is empty if no id of the range has a chunk.
    ///
    /// # Errors
    /// [`ChunkReadError`].
    pub async fn run(
        &self,
        first: ChunkId,
        last: ChunkId,
        budget_bytes: usize,
    ) -> Result<Vec<StoredChunk>, ChunkReadError> {
        let mut rows = self.db.chunks_in(first, last, 4 * ROWS_AHEAD).await?;
        let mut sum = 0;
        let fit = rows.iter().take_while(|row| {
            sum += row.location.stored_len as usize;
            sum <= budget_bytes
        });
        let fit = fit.count().max(1);
        rows.truncate(fit);
        let locations: Vec<_> = rows.iter().map(|row| row.location).collect();
        let bytes = self.packs.read_many(&locations).await?;
        Ok(rows.iter().zip(bytes).map(|(row, bytes)| StoredChunk::new(row, bytes)).collect())
    }

    /// Hashes and places of chunks by id, in the order given; `None` for an id that no chunk has.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rows(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>, DbError> {
        let found: HashMap<_, _> = self.db.chunks_by_id(ids).await?.into_iter().map(|r| (r.id, r)).collect();
        Ok(ids.iter().map(|id| found.get(id).copied()).collect())
    }

    /// Reader of the packs that hold the chunks.
    pub fn packs(&self) -> &PackReader {
        &self.packs
    }
}
