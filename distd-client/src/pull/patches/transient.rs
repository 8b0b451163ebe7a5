//! Transient chunks, which only a later patch needs: those of intermediate releases, and the
//! unpacked content of packed files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use distd_core::error::Chain;
use distd_core::patch::PatchChunkId;

use crate::disk::side::{self, SideError};

/// Store of transient chunks: a file beside the target that lives until all patches are applied.
/// The chunks are not verified; the chunks made from them are.
pub(in crate::pull) struct TransientChunks {
    path: PathBuf,
    file: Option<File>,
    chunks: Mutex<Chunks>,
}

#[derive(Default)]
struct Chunks {
    /// End of the file, in bytes.
    end: u64,
    /// Offset and length of each chunk.
    places: BTreeMap<PatchChunkId, (u64, u32)>,
}

impl TransientChunks {
    /// Creates the file if any chunk is `wanted`. If that fails, all writes fail, and so do the
    /// patches that need these chunks.
    pub(in crate::pull) fn open(path: PathBuf, wanted: bool) -> Self {
        let file = wanted.then(|| side::open_empty(&path)).and_then(|opened| {
            let failed = |error: &SideError| {
                let error = tracing::field::display(Chain(error));
                tracing::warn!(path = %path.display(), error, "could not create the file for transient chunks");
            };
            opened.inspect_err(failed).ok()
        });
        Self { path, file, chunks: Mutex::default() }
    }

    fn chunks(&self) -> std::sync::MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the length of a chunk in the file; `None` if the chunk is not there.
    pub(super) fn len(&self, id: PatchChunkId) -> Option<u32> {
        self.chunks().places.get(&id).map(|(_, len)| *len)
    }

    /// Reserves `bytes`; returns their offset.
    pub(super) fn reserve(&self, bytes: u64) -> u64 {
        let mut chunks = self.chunks();
        let at = chunks.end;
        chunks.end += bytes;
        at
    }

    /// Writes into a range that was [reserved](Self::reserve).
    ///
    /// # Errors
    /// The file's errors.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.write_all_at(bytes, offset)
    }

    /// Makes chunks readable that were written one after the other from `offset` on.
    pub(super) fn publish(&self, mut offset: u64, ids: impl Iterator<Item = (PatchChunkId, u32)>) {
        let mut chunks = self.chunks();
        for (id, len) in ids {
            chunks.places.insert(id, (offset, len));
            offset += u64::from(len);
        }
    }

    /// Writes one chunk and makes it readable.
    ///
    /// # Errors
    /// The file's errors.
    pub(super) fn write(&self, id: PatchChunkId, raw: &[u8]) -> io::Result<()> {
        let at = self.reserve(raw.len() as u64);
        self.write_at(at, raw)?;
        self.publish(at, std::iter::once((id, raw.len() as u32)));
        Ok(())
    }

    /// Appends a chunk to `out`; `None` if it cannot be read.
    pub(super) fn read(&self, id: PatchChunkId, out: &mut Vec<u8>) -> Option<()> {
        let (at, len) = self.chunks().places.get(&id).copied()?;
        let from = out.len();
        out.resize(from + len as usize, 0);
        self.file.as_ref()?.read_exact_at(&mut out[from..], at).ok()
    }

    /// Lists the chunks in the file: id, offset and length.
    pub(super) fn list(&self) -> Vec<(PatchChunkId, u64, u32)> {
        self.chunks().places.iter().map(|(id, (offset, len))| (*id, *offset, *len)).collect()
    }

    /// Removes the file from its directory and returns the open handle, which stays readable.
    pub(super) fn into_file(self) -> Option<File> {
        self.remove();
        self.file
    }

    /// Removes the file.
    pub(in crate::pull) fn remove(&self) {
        if self.file.is_some()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %Chain(&error), "could not remove the file of transient chunks");
        }
    }
}
