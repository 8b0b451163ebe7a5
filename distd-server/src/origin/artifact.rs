//! The bytes of a release, read from the store by offset.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use distd_core::error::Chain;
use distd_core::packing::Unpacker;
use distd_peer::gateway::FileBytes;

use super::manifests::LoadedManifest;
use crate::store::Chunks;

/// Most bytes read at once, apart from one chunk.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Most chunks read at once: bounds the rows asked for where chunks are tiny.
const READ_CHUNKS_MAX: usize = 1024;

/// A release's artifact in the store.
pub(crate) struct ArtifactBytes {
    loaded: Arc<LoadedManifest>,
    chunks: Chunks,
}

impl ArtifactBytes {
    pub(super) fn new(loaded: Arc<LoadedManifest>, chunks: Chunks) -> Self {
        Self { loaded, chunks }
    }
}

#[async_trait]
impl FileBytes for ArtifactBytes {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        let enough = range.end.min(range.start.saturating_add(READ_BYTES_MAX));
        let run: Vec<_> = self
            .loaded
            .manifest
            .entries_at(range.start)
            .take_while(|at| at.offset < enough)
            .take(READ_CHUNKS_MAX)
            .collect();
        let Some(start) = run.first().map(|at| at.offset) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the range lies behind the artifact"));
        };
        let ids: Vec<_> = run.iter().map(|at| at.entry.id).collect();
        let failed = |error: crate::store::ChunkReadError| {
            tracing::error!(error = %Chain(&error), "a release could not be read from the store");
            io::Error::other(error)
        };
        let stored = self.chunks.all(&ids).await.map_err(failed)?;
        let unpacking = move || -> io::Result<Bytes> {
            let mut unpacker = Unpacker::default();
            let mut bytes = BytesMut::new();
            for (at, chunk) in run.iter().zip(stored) {
                let Some(chunk) = chunk else {
                    return Err(io::Error::other(format!("the store has no chunk {}", at.entry.id)));
                };
                let raw = unpacker.unpack(chunk.codec, &chunk.bytes, at.entry.len, &at.entry.hash);
                bytes.extend_from_slice(raw.map_err(|error| {
                    tracing::error!(id = %at.entry.id, error = %Chain(&error), "a stored chunk has rotted: restore its pack");
                    io::Error::other(error)
                })?);
            }
            Ok(bytes.freeze())
        };
        let bytes = tokio::task::spawn_blocking(unpacking).await.map_err(io::Error::other)??;
        let from = usize::try_from(range.start - start).map_err(io::Error::other)?;
        let to = usize::try_from((range.end - start).min(bytes.len() as u64)).map_err(io::Error::other)?;
        Ok(bytes.slice(from..to))
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Ok(self.loaded.manifest.entries().map(|at| at.entry.len).collect())
    }
}
