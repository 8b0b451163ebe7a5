//! The bytes of a release, in order or by offset, read from the store and checked chunk by chunk.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ChunkId;
use distd_core::error::Chain;
use distd_core::manifest::{Entry, Manifest};
use distd_core::packing::{UnpackError, Unpacker};
use distd_peer::gateway::FileBytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::db::ChunkRow;
use crate::store::{ChunkReadError, Chunks};

/// Raw bytes of one piece at least, except of the last one. A piece has at most one chunk more.
const PIECE_BYTES: u64 = 1 << 20;

/// Most chunks of one piece: bounds the rows asked for where chunks are tiny.
const PIECE_CHUNKS: usize = 2048;

/// Pieces that wait for their reader.
const PIECES_AHEAD: usize = 1;

/// Tries to read a piece: a pack may be compacted away between the look at its row and the read.
const TRIES: usize = 3;

/// Reason why bytes of a release cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadBytesError {
    /// The database or the store failed.
    #[error(transparent)]
    Chunks(#[from] ChunkReadError),
    /// A chunk of the release is not in the database.
    #[error("the store has lost the chunk {0}")]
    Missing(ChunkId),
    /// The range begins behind the end.
    #[error("the range lies behind the artifact")]
    Behind,
    /// A chunk has rotted.
    #[error("a stored chunk has rotted")]
    Rotten(#[source] UnpackError),
}

/// A release's artifact in the store, read by offset.
pub(crate) struct ArtifactBytes {
    manifest: Arc<Manifest>,
    chunks: Chunks,
}

impl ArtifactBytes {
    pub(super) fn new(manifest: Arc<Manifest>, chunks: Chunks) -> Self {
        Self { manifest, chunks }
    }
}

impl ArtifactBytes {
    /// Reads a piece from the start of `range`.
    async fn piece(&self, range: &Range<u64>) -> Result<Bytes, ReadBytesError> {
        let enough = range.end.min(range.start.saturating_add(PIECE_BYTES));
        let entries = self.manifest.entries_at(range.start);
        let run: Vec<_> = entries.take_while(|at| at.offset < enough).take(PIECE_CHUNKS).collect();
        let start = run.first().map(|at| at.offset).ok_or(ReadBytesError::Behind)?;
        let raw = read_piece(&self.chunks, run.into_iter().map(|at| at.entry).collect()).await?;
        let end = (start + raw.len() as u64).min(range.end);
        Ok(raw.slice((range.start - start) as usize..(end - start) as usize))
    }

    /// Reads the bytes `range` in a task of its own, which stops when its reader goes away. Takes
    /// some 8 MiB of memory. The pieces come in order; the first error ends them.
    pub(crate) fn in_order(self, range: Range<u64>) -> mpsc::Receiver<Result<Bytes, ReadBytesError>> {
        let (tx, rx) = mpsc::channel(PIECES_AHEAD);
        tokio::spawn(async move {
            let mut left = range;
            while !left.is_empty() {
                let read = self.piece(&left).await;
                left.start = match &read {
                    Ok(piece) => left.start + piece.len() as u64,
                    Err(_) => left.end,
                };
                if tx.send(read).await.is_err() {
                    return;
                }
            }
        });
        rx
    }
}

#[async_trait]
impl FileBytes for ArtifactBytes {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        self.piece(&range).await.map_err(|error| {
            tracing::error!(error = %Chain(&error), "a release could not be read from the store");
            io::Error::other(error)
        })
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Ok(self.manifest.entries().map(|at| at.entry.len).collect())
    }
}

async fn read_piece(chunks: &Chunks, piece: Vec<Entry>) -> Result<Bytes, ReadBytesError> {
    let mut tried = 1;
    loop {
        match try_piece(chunks, &piece).await {
            Err(ReadBytesError::Chunks(ChunkReadError::Read(_))) if tried < TRIES => tried += 1,
            other => return other,
        }
    }
}

async fn try_piece(chunks: &Chunks, piece: &[Entry]) -> Result<Bytes, ReadBytesError> {
    // A chunk that repeats is read once.
    let mut places: HashMap<ChunkId, usize> = HashMap::new();
    let mut ids = Vec::new();
    for entry in piece {
        places.entry(entry.id).or_insert_with(|| {
            ids.push(entry.id);
            ids.len() - 1
        });
    }
    let rows = chunks.rows(&ids).await.map_err(ChunkReadError::from)?;
    let rows: Vec<ChunkRow> = rows
        .into_iter()
        .zip(&ids)
        .map(|(row, id)| row.ok_or(ReadBytesError::Missing(*id)))
        .collect::<Result<_, _>>()?;
    let locations: Vec<_> = rows.iter().map(|row| row.location).collect();
    let stored = chunks.packs().read_many(&locations).await.map_err(ChunkReadError::from)?;
    let order: Vec<(usize, Entry)> = piece.iter().map(|entry| (places[&entry.id], *entry)).collect();
    let unpack = spawn_blocking(move || {
        let mut unpacker = Unpacker::default();
        let mut raw = Vec::with_capacity(order.iter().map(|(_, entry)| entry.len as usize).sum());
        let mut last: Option<(usize, Range<usize>)> = None;
        for (place, entry) in order {
            match &last {
                // Runs of one chunk are common: zeros.
                Some((before, range)) if *before == place => raw.extend_from_within(range.clone()),
                _ => {
                    let codec = rows[place].location.codec;
                    let bytes = unpacker.unpack(codec, &stored[place], entry.len, &entry.hash);
                    let from = raw.len();
                    raw.extend_from_slice(bytes.map_err(ReadBytesError::Rotten)?);
                    last = Some((place, from..raw.len()));
                }
            }
        }
        Ok(Bytes::from(raw))
    });
    unpack.await.expect("unpacking does not panic")
}
