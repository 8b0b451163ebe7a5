//! An artifact of this machine as a source of chunks, without a copy of it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use distd_core::api::{RUN_BYTES, Run};
use distd_core::cut::{CutParams, ReadAt};
use distd_core::manifest::{Builder, Entry, Kind, Manifest};
use distd_core::{ArtifactHash, ChunkHash, ChunkId};
use distd_peer::share::ChunkBytes;
use tokio::sync::mpsc;

use crate::cutting::{Buffers, CutBatch, CutError, Source, cut};
use crate::failure::{Code, Failure};
use crate::progress::Progress;
use crate::pull::SHARED_CHUNKS_MAX;

/// Batches between the thread that cuts and the one that gives their memory back.
const BATCHES: usize = 2;

/// A file or directory, its manifest, and where in it each chunk first lies.
pub struct LocalArtifact {
    source: Arc<Source>,
    manifest: Arc<Manifest>,
    /// Offset of the chunk with id `n + 1`.
    offsets: Vec<u64>,
}

impl LocalArtifact {
    /// Reads and cuts the artifact at `path`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] or [`Code::Unusable`].
    pub fn cut(path: &Path, progress: &dyn Progress) -> anyhow::Result<Self> {
        let source = Source::open_any(path)?;
        progress.begin(source.len(), "cutting");
        let params = CutParams::default();
        let regions = source.regions()?;
        let (tx, mut batches) = mpsc::channel::<CutBatch>(BATCHES);
        let buffers = Buffers::default();
        let cut = std::thread::scope(|scope| {
            let buffers_back = buffers.clone();
            scope.spawn(move || {
                while let Some(batch) = batches.blocking_recv() {
                    progress.add(batch.batch.data().len() as u64);
                    buffers_back.give(batch.batch);
                }
            });
            let cut = cut(&source, regions.all(), params, &buffers, &tx, &|bytes| progress.add(bytes));
            // The other thread ends when nobody can send.
            drop(tx);
            cut
        });
        let cut = cut.map_err(|error| match error {
            CutError::Read(error) => source.read_failure(error),
            error => Failure::new(Code::Unusable, error.into()).into(),
        })?;
        source.check_unchanged()?;
        if cut.chunks > SHARED_CHUNKS_MAX {
            let error = anyhow!("{} has {} chunks, more than a share may have", path.display(), cut.chunks);
            return Err(Failure::new(Code::Unusable, error).next("share parts of it").into());
        }
        let kind = source.listing_bytes().map_or(Kind::File, |listing_bytes| Kind::Tree { listing_bytes });
        let manifest = manifest_of(&cut.runs, kind, params, cut.blake3);
        if manifest.root().bytes != source.len() {
            // The length is that of the bytes that were read and hashed, not of a later look.
            return Err(source.read_failure(std::io::ErrorKind::UnexpectedEof.into()));
        }
        progress.end();
        Ok(Self::new(source, Arc::new(manifest)))
    }

    /// Opens an artifact that was cut before. Chunks that changed since are found when they are
    /// read.
    ///
    /// # Errors
    /// Failures with [`Code::Local`], and with [`Code::Unusable`] when its length is another one.
    pub fn reopen(path: &Path, manifest: Arc<Manifest>) -> anyhow::Result<Self> {
        let source = Source::open_any(path)?;
        let root = manifest.root();
        let listing_bytes = match root.kind {
            Kind::Tree { listing_bytes } => Some(listing_bytes),
            _ => None,
        };
        if source.len() != root.bytes || source.listing_bytes() != listing_bytes {
            let error = anyhow!("{} changed since it was shared", path.display());
            return Err(Failure::new(Code::Unusable, error).next("share it again").into());
        }
        Ok(Self::new(source, manifest))
    }

    fn new(source: Source, manifest: Arc<Manifest>) -> Self {
        let mut offsets = Vec::new();
        for at in manifest.entries() {
            // Ids count up with the first place of each chunk.
            if at.entry.id.0 == offsets.len() as u64 + 1 {
                offsets.push(at.offset);
            }
        }
        Self { source: Arc::new(source), manifest, offsets }
    }

    /// Manifest of the artifact.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }
}

/// Builds the manifest of the chunks in `runs`. Ids count up from 1 with the first place of each
/// chunk.
fn manifest_of(runs: &[u8], kind: Kind, params: CutParams, blake3: ArtifactHash) -> Manifest {
    let mut builder = Builder::new(params, kind);
    let mut ids: HashMap<ChunkHash, ChunkId> = HashMap::new();
    let (runs, _) = runs.as_chunks::<RUN_BYTES>();
    for run in runs {
        let Run { hash, len, repeat } = Run::decode(run);
        let next = ChunkId(ids.len() as u64 + 1);
        let id = *ids.entry(hash).or_insert(next);
        (0..repeat).for_each(|_| builder.push(Entry { id, hash, len }));
    }
    builder.finish(blake3)
}

impl ChunkBytes for LocalArtifact {
    fn read(&self, entry: &Entry, buffer: &mut [u8]) -> bool {
        let index = usize::try_from(entry.id.0.wrapping_sub(1)).unwrap_or(usize::MAX);
        let Some(offset) = self.offsets.get(index) else { return false };
        self.source.read_exact_at(buffer, *offset).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Ignored;

    #[test]
    fn every_chunk_of_the_manifest_is_read_where_it_lies() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        let mut bytes = vec![0; 3 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes.extend_from_slice(&vec![0; 2 << 20]);
        let again = bytes[..1 << 20].to_vec();
        bytes.extend_from_slice(&again);
        std::fs::write(&path, &bytes).expect("write");
        let local = LocalArtifact::cut(&path, &Ignored).expect("cut");
        let root = local.manifest().root();
        assert_eq!((root.bytes, root.blake3), (bytes.len() as u64, blake3::hash(&bytes).into()));
        let again = LocalArtifact::reopen(&path, local.manifest().clone()).expect("open");
        let mut whole = Vec::new();
        for at in local.manifest().entries() {
            let mut buffer = vec![1; at.entry.len as usize];
            assert!(again.read(&at.entry, &mut buffer));
            whole.extend_from_slice(&buffer);
        }
        assert!(whole == bytes);
        let none = Entry { id: ChunkId(0), hash: ChunkHash::of(b""), len: 1 };
        assert!(!local.read(&none, &mut [0]));
    }

    #[test]
    fn an_empty_file_and_one_byte_have_a_manifest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        for (bytes, chunks) in [(&b""[..], 0), (b"x", 1)] {
            std::fs::write(&path, bytes).expect("write");
            let local = LocalArtifact::cut(&path, &Ignored).expect("cut");
            assert_eq!(local.manifest().root().chunks, chunks);
            assert_eq!(local.manifest().root().blake3, blake3::hash(bytes).into());
        }
    }

    #[test]
    fn a_file_of_another_length_is_not_opened_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, b"one").expect("write");
        let local = LocalArtifact::cut(&path, &Ignored).expect("cut");
        std::fs::write(&path, b"three").expect("write");
        assert!(LocalArtifact::reopen(&path, local.manifest().clone()).is_err());
    }
}
