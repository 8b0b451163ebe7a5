//! Writing of a bundle, from its first byte to its last.

use std::io::{self, Write};

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::proto::frame::{Data, Node};

use super::format::{CHUNKS_MAX, Head, Kind, MAGIC, METADATA_PIECE};
use crate::trust::tuf::wire::Answer;

/// Writer of one bundle. A file without [`Self::finish`] is refused by every reader.
pub struct BundleWriter<W: Write> {
    out: W,
    hash: blake3::Hasher,
    records: u64,
    bytes: u64,
    chunks: u64,
}

impl<W: Write> BundleWriter<W> {
    /// Begins a bundle.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, head: &Head) -> io::Result<Self> {
        let mut this = Self { out, hash: blake3::Hasher::new(), records: 0, bytes: 0, chunks: 0 };
        this.put(MAGIC)?;
        let json = serde_json::to_vec(head).map_err(io::Error::other)?;
        this.record(Kind::Head, &[&json])?;
        Ok(this)
    }

    /// Adds signed metadata: files by their names in the repository, in pieces that a reader
    /// unpacks.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn metadata(&mut self, files: &[(String, Bytes)]) -> io::Result<()> {
        let (mut piece, mut len) = (Answer::default(), 0);
        for (name, bytes) in files {
            if len + bytes.len() > METADATA_PIECE && !piece.files.is_empty() {
                self.record(Kind::Metadata, &[&std::mem::take(&mut piece).encode()])?;
                len = 0;
            }
            len += bytes.len();
            piece.files.push((name.clone(), bytes.clone()));
        }
        self.record(Kind::Metadata, &[&piece.encode()])
    }

    /// Adds a capability of any node.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn capability(&mut self, capability: &[u8]) -> io::Result<()> {
        self.record(Kind::Capability, &[capability])
    }

    /// Begins the swarm of a manifest.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn swarm(&mut self, manifest: ManifestId) -> io::Result<()> {
        self.record(Kind::Swarm, &[&manifest.0])
    }

    /// Adds a node of the swarm's manifest.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn node(&mut self, node: &Node) -> io::Result<()> {
        self.record(Kind::Node, &[&[node.level], &node.bytes])
    }

    /// Adds a chunk of the swarm.
    ///
    /// # Errors
    /// As [`Self::new`], and when there are more than a reader takes.
    pub fn chunk(&mut self, chunk: &Data) -> io::Result<()> {
        self.chunks += 1;
        if self.chunks > CHUNKS_MAX {
            return Err(io::Error::other(format!("a bundle has at most {CHUNKS_MAX} chunks")));
        }
        self.record(Kind::Chunk, &[&chunk.id.0.to_be_bytes(), &[chunk.codec.code()], &chunk.bytes])
    }

    /// Ends the bundle. Returns what it was written to, and its length in bytes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let (hash, records) = (*self.hash.finalize().as_bytes(), self.records.to_be_bytes());
        self.record(Kind::End, &[&hash, &records])?;
        self.out.flush()?;
        Ok((self.out, self.bytes))
    }

    fn record(&mut self, kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if !kind.lengths().contains(&len) {
            return Err(io::Error::other(format!("a record of {len} bytes has no place in a bundle")));
        }
        self.records += 1;
        let len = u32::try_from(len).map_err(io::Error::other)?.to_be_bytes();
        self.put(&[kind as u8])?;
        self.put(&len)?;
        parts.iter().try_for_each(|part| self.put(part))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}
