//! Reading of bundles: of a whole one, whose hash is checked, and of what is there of one that was
//! not finished.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use distd_core::bounds::MANIFEST_BYTES_MAX;
use distd_core::proto::frame::{Codec, Data, Node};
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkId, ManifestId, NodeId};

use super::format::{
    ANSWERS_MAX, BundleError, CHUNK_HEAD, CHUNKS_MAX, Head, Kind, MAGIC, METADATA_BYTES_MAX, NODES_MAX,
    RECORD_HEAD, SWARMS_MAX,
};
use crate::trust::tuf::wire::Answer;

/// Bytes read at once.
const READ: usize = 256 << 10;

/// Place of a chunk in the file.
#[derive(Clone, Copy, Debug)]
struct ChunkPlace {
    id: ChunkId,
    /// Offset of the codec, which comes before the packed bytes.
    offset: u64,
    /// Length of the packed bytes.
    len: u32,
}

/// Place of a node in the file.
#[derive(Clone, Copy, Debug)]
struct NodePlace {
    level: u8,
    offset: u64,
    len: u32,
}

/// Nodes and chunks of one manifest.
#[derive(Debug)]
pub struct SwarmPart {
    manifest: ManifestId,
    nodes: Vec<NodePlace>,
    nodes_len: u64,
    /// Sorted by id.
    chunks: Vec<ChunkPlace>,
    held: ChunkRanges,
}

impl SwarmPart {
    /// Manifest of the swarm.
    pub fn manifest(&self) -> ManifestId {
        self.manifest
    }

    /// Ids of the chunks.
    pub fn held(&self) -> &ChunkRanges {
        &self.held
    }

    /// Number of packed bytes of the chunks.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks.iter().map(|place| u64::from(place.len)).sum()
    }

    /// Number of bytes of the nodes.
    pub fn node_bytes(&self) -> u64 {
        self.nodes_len
    }

    fn place(&self, id: ChunkId) -> Option<ChunkPlace> {
        let found = self.chunks.binary_search_by_key(&id, |place| place.id).ok()?;
        Some(self.chunks[found])
    }
}

/// An open bundle.
#[derive(Debug)]
pub struct Bundle {
    file: File,
    head: Head,
    metadata: Vec<(String, Bytes)>,
    capabilities: Vec<Bytes>,
    swarms: Vec<SwarmPart>,
    /// Hash of everything before the end.
    hash: [u8; 32],
    bytes: u64,
}

impl Bundle {
    /// Opens the bundle at `path`, reads it once and checks its hash. The hash finds accidents;
    /// whoever uses nodes, chunks and metadata verifies them.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let mut scan = Scan::new(File::open(path)?)?;
        loop {
            match scan.next()? {
                Some(Step::End) => break,
                Some(_) => {}
                None => return Err(BundleError::Short),
            }
        }
        scan.finish()
    }

    /// Calls `found` with the swarm and the bytes of each whole chunk in the file at `path`, which
    /// may be a bundle that was not finished. Nothing is verified.
    ///
    /// # Errors
    /// [`BundleError`] when the file cannot be read, or those of `found`.
    pub fn salvage(
        path: &Path,
        mut found: impl FnMut(ManifestId, Data) -> io::Result<()>,
    ) -> Result<(), BundleError> {
        let mut scan = match File::open(path).map(Scan::new)? {
            Ok(scan) => scan,
            Err(BundleError::Io(error)) => return Err(error.into()),
            Err(_) => return Ok(()),
        };
        loop {
            match scan.next() {
                Ok(Some(Step::Chunk(manifest, place))) => {
                    if let Ok(chunk) = read_chunk(&scan.file, place) {
                        found(manifest, chunk)?;
                    }
                }
                Ok(Some(Step::Other)) => {}
                Err(BundleError::Io(error)) => return Err(error.into()),
                // What follows cannot be read.
                Ok(Some(Step::End) | None) | Err(_) => return Ok(()),
            }
        }
    }

    /// What the bundle is.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Length of the file, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Signed metadata: files by their names in the repository.
    pub fn metadata(&self) -> &[(String, Bytes)] {
        &self.metadata
    }

    /// Capabilities of any node.
    pub fn capabilities(&self) -> &[Bytes] {
        &self.capabilities
    }

    /// Swarms, that of the release first.
    pub fn swarms(&self) -> &[SwarmPart] {
        &self.swarms
    }

    /// Id that stands for the bundle in a list of peers.
    pub fn node(&self) -> NodeId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.hash[..16]);
        NodeId(id)
    }

    /// Index of the swarm of a manifest.
    pub(super) fn swarm_of(&self, manifest: &ManifestId) -> Option<usize> {
        self.swarms.iter().position(|swarm| swarm.manifest == *manifest)
    }

    /// Reads the nodes of a swarm.
    pub(super) fn nodes(&self, swarm: usize) -> io::Result<Vec<Node>> {
        let read = |place: &NodePlace| {
            let mut bytes = vec![0; place.len as usize];
            self.file.read_exact_at(&mut bytes, place.offset)?;
            Ok(Node { level: place.level, bytes: bytes.into() })
        };
        self.swarms[swarm].nodes.iter().map(read).collect()
    }

    /// Reads a chunk; `None` when the swarm's part does not have it.
    pub(crate) fn chunk(&self, swarm: usize, id: ChunkId) -> io::Result<Option<Data>> {
        self.swarms[swarm].place(id).map(|place| read_chunk(&self.file, place)).transpose()
    }

    /// Length of a chunk's packed bytes.
    pub(super) fn chunk_len(&self, swarm: usize, id: ChunkId) -> Option<u64> {
        self.swarms[swarm].place(id).map(|place| u64::from(place.len))
    }
}

fn read_chunk(file: &File, place: ChunkPlace) -> io::Result<Data> {
    let mut bytes = vec![0; place.len as usize + 1];
    file.read_exact_at(&mut bytes, place.offset)?;
    let codec = Codec::from_code(bytes[0]).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Data { id: place.id, codec, bytes: Bytes::from(bytes).slice(1..) })
}

/// Outcome of reading one record.
enum Step {
    Chunk(ManifestId, ChunkPlace),
    Other,
    End,
}

/// Reader of the records of a file, in order.
struct Scan {
    /// Second handle of the same file, for reads at an offset.
    file: File,
    from: BufReader<File>,
    hash: blake3::Hasher,
    offset: u64,
    records: u64,
    head: Option<Head>,
    metadata: Vec<(String, Bytes)>,
    answers: usize,
    metadata_bytes: usize,
    capabilities: Vec<Bytes>,
    swarms: Vec<SwarmPart>,
    chunks: u64,
    nodes: u64,
}

impl Scan {
    fn new(file: File) -> Result<Self, BundleError> {
        if !file.metadata()?.is_file() {
            return Err(BundleError::NoBundle);
        }
        let mut this = Self {
            from: BufReader::with_capacity(READ, file.try_clone()?),
            file,
            hash: blake3::Hasher::new(),
            offset: 0,
            records: 0,
            head: None,
            metadata: Vec::new(),
            answers: 0,
            metadata_bytes: 0,
            capabilities: Vec::new(),
            swarms: Vec::new(),
            chunks: 0,
            nodes: 0,
        };
        let mut magic = [0; MAGIC.len()];
        match this.take(&mut magic) {
            Ok(()) if magic == *MAGIC => Ok(this),
            Err(BundleError::Io(error)) => Err(error.into()),
            _ => Err(BundleError::NoBundle),
        }
    }

    /// Reads the next record; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<Step>, BundleError> {
        if self.from.fill_buf()?.is_empty() {
            return Ok(None);
        }
        // The hash in the last record is over everything before that record.
        let before = self.hash.clone();
        let mut head = [0; RECORD_HEAD];
        self.take(&mut head)?;
        let kind = Kind::from_code(head[0]).ok_or(BundleError::Unknown(head[0]))?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !kind.lengths().contains(&len) {
            return Err(BundleError::Malformed("a record has a wrong length"));
        }
        if (kind == Kind::Head) != (self.records == 0) {
            return Err(BundleError::Malformed("its head is not the first record"));
        }
        let step = match kind {
            Kind::Chunk => self.read_place(len)?,
            Kind::Node => {
                self.read_node(len)?;
                Step::Other
            }
            _ => {
                let body = self.body(len)?;
                self.read_small(kind, body, &before)?
            }
        };
        self.records += 1;
        Ok(Some(step))
    }

    fn read_small(&mut self, kind: Kind, body: Bytes, before: &blake3::Hasher) -> Result<Step, BundleError> {
        match kind {
            Kind::Head => {
                let head = serde_json::from_slice(&body);
                self.head = Some(head.map_err(|_| BundleError::Malformed("its head is no JSON of a head"))?);
            }
            Kind::Metadata => {
                self.answers += 1;
                if self.answers > ANSWERS_MAX {
                    return Err(BundleError::TooMany("pieces of metadata"));
                }
                let answer = Answer::decode(&body);
                let answer = answer.map_err(|_| BundleError::Malformed("its metadata does not decode"))?;
                for (name, bytes) in answer.files {
                    self.metadata_bytes += name.len() + bytes.len();
                    if self.metadata_bytes > METADATA_BYTES_MAX {
                        return Err(BundleError::TooMany("bytes of metadata"));
                    }
                    // What is verified and what is kept must be the same file.
                    if self.metadata.iter().any(|(known, _)| *known == name) {
                        return Err(BundleError::Malformed("it has a metadata file twice"));
                    }
                    self.metadata.push((name, bytes));
                }
            }
            Kind::Capability if self.capabilities.len() < ANSWERS_MAX => self.capabilities.push(body),
            Kind::Swarm if self.swarms.len() < SWARMS_MAX => {
                let manifest = ManifestId::from_slice(&body).ok_or(BundleError::Malformed("a bad id"))?;
                if self.swarms.iter().any(|swarm| swarm.manifest == manifest) {
                    return Err(BundleError::Malformed("it has a swarm twice"));
                }
                let held = ChunkRanges::default();
                self.swarms.push(SwarmPart {
                    manifest,
                    nodes: Vec::new(),
                    nodes_len: 0,
                    chunks: Vec::new(),
                    held,
                });
            }
            Kind::End => {
                let (hash, records) = body.split_at(32);
                if hash != before.finalize().as_bytes() || records != self.records.to_be_bytes() {
                    return Err(BundleError::Damaged);
                }
                return Ok(Step::End);
            }
            _ => return Err(BundleError::Malformed("it has too many records of one kind")),
        }
        Ok(Step::Other)
    }

    fn read_node(&mut self, len: usize) -> Result<(), BundleError> {
        let offset = self.offset + 1;
        let body = self.body(len)?;
        self.nodes += 1;
        let swarm = self.swarms.last_mut().ok_or(BundleError::Malformed("a node has no swarm"))?;
        // Readers hold the nodes of a manifest in memory.
        swarm.nodes_len += len as u64;
        if self.nodes > NODES_MAX || swarm.nodes_len > MANIFEST_BYTES_MAX {
            return Err(BundleError::TooMany("manifest nodes"));
        }
        swarm.nodes.push(NodePlace { level: body[0], offset, len: (len - 1) as u32 });
        Ok(())
    }

    fn read_place(&mut self, len: usize) -> Result<Step, BundleError> {
        let mut id = [0; CHUNK_HEAD - 1];
        self.take(&mut id)?;
        let place = ChunkPlace {
            id: ChunkId(u64::from_be_bytes(id)),
            offset: self.offset,
            len: (len - CHUNK_HEAD) as u32,
        };
        self.pass(len - id.len())?;
        self.chunks += 1;
        if self.chunks > CHUNKS_MAX {
            return Err(BundleError::TooMany("chunks"));
        }
        let swarm = self.swarms.last_mut().ok_or(BundleError::Malformed("a chunk has no swarm"))?;
        if place.id.0 == 0 || place.id.0 > i64::MAX as u64 {
            return Err(BundleError::Malformed("a chunk has an impossible id"));
        }
        swarm.chunks.push(place);
        Ok(Step::Chunk(swarm.manifest, place))
    }

    fn body(&mut self, len: usize) -> Result<Bytes, BundleError> {
        let mut body = vec![0; len];
        self.take(&mut body)?;
        Ok(body.into())
    }

    /// Reads exactly the bytes of `into`.
    fn take(&mut self, into: &mut [u8]) -> Result<(), BundleError> {
        self.from.read_exact(into).map_err(short)?;
        self.hash.update(into);
        self.offset += into.len() as u64;
        Ok(())
    }

    /// Hashes `len` bytes and forgets them.
    fn pass(&mut self, mut len: usize) -> Result<(), BundleError> {
        while len > 0 {
            let there = self.from.fill_buf()?;
            let some = there.len().min(len);
            if some == 0 {
                return Err(BundleError::Short);
            }
            self.hash.update(&there[..some]);
            self.from.consume(some);
            self.offset += some as u64;
            len -= some;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Bundle, BundleError> {
        if !self.from.fill_buf()?.is_empty() {
            return Err(BundleError::Malformed("bytes follow its end"));
        }
        let head = self.head.ok_or(BundleError::Malformed("it has no head"))?;
        for swarm in &mut self.swarms {
            swarm.chunks.sort_unstable_by_key(|place| place.id);
            swarm.held = swarm.chunks.iter().map(|place| place.id).collect();
        }
        if self.swarms.first().is_none_or(|swarm| swarm.manifest != head.release.manifest) {
            return Err(BundleError::Malformed("its first swarm is not that of its release"));
        }
        Ok(Bundle {
            file: self.file,
            head,
            metadata: self.metadata,
            capabilities: self.capabilities,
            swarms: self.swarms,
            hash: *self.hash.finalize().as_bytes(),
            bytes: self.offset,
        })
    }
}

fn short(error: io::Error) -> BundleError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BundleError::Short,
        _ => error.into(),
    }
}
