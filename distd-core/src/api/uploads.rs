//! Uploads: chunk records, the commit, and their bounds.

use bytes::Buf;
use serde::{Deserialize, Serialize};

use crate::bounds::CHUNK_BYTES_MAX;
use crate::cut::CutParams;
use crate::manifest::Kind;
use crate::packing::Codec;
use crate::{ArtifactHash, ChunkHash};

/// Most hashes in one question for the missing chunks.
pub const HASHES_MAX: usize = 65_536;

/// Largest body of chunk records, bytes.
pub const CHUNKS_BYTES_MAX: u64 = 32 << 20;

/// Largest body of a commit, bytes: 6.7 million runs, about 100 GB of artifact.
pub const LIST_BYTES_MAX: u64 = 256 << 20;

/// Length of a chunk record's head, bytes: hash, codec, raw length, stored length.
pub const RECORD_HEAD_BYTES: usize = 32 + 1 + 4 + 4;

/// Length of a run in a chunk list, bytes: hash, length, repeat.
pub const RUN_BYTES: usize = 32 + 4 + 4;

/// Most chunks of an artifact, repeats counted: 16 TiB in chunks of the largest default size.
/// Bounds the time that a short list with large repeat counts can take.
pub const ARTIFACT_CHUNKS_MAX: u64 = 1 << 28;

/// An open upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Upload {
    /// Id of the upload, 32 hexadecimal digits.
    pub upload: String,
    /// Cut parameters for the artifact.
    #[cfg_attr(feature = "openapi", schema(value_type = super::Cut))]
    pub cut: CutParams,
    /// Whether the upload was begun before. If so, ask which chunks are missing.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub resumed: bool,
}

/// Result of a request that sent chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stored {
    /// Number of chunks that the origin did not have.
    pub stored: u64,
}

/// Announcement of the artifact that an upload is to become.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Announced {
    /// Length of the artifact, bytes. An upload that could never be committed is refused at once.
    pub bytes: Option<u64>,
}

/// An open upload in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OpenUploadInfo {
    /// Id of the upload.
    pub upload: String,
    /// Name of its product.
    pub product: String,
    /// Version that it is to become.
    pub version: String,
    /// Bytes of its packs.
    pub bytes: u64,
    /// Label of the token that began it.
    pub by: String,
    /// Id of that token.
    pub token: String,
    /// Time at which it began, unix seconds.
    pub created: i64,
    /// Time at which it expires unless more chunks arrive, unix seconds.
    pub expires: i64,
}

/// Open uploads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UploadList {
    /// Uploads, oldest first.
    pub uploads: Vec<OpenUploadInfo>,
}

/// Head of a chunk record. The packed bytes of the chunk follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Hash of the chunk's raw bytes.
    pub hash: ChunkHash,
    /// Packing of the chunk.
    pub codec: Codec,
    /// Length of the chunk, bytes, never zero.
    pub raw_len: u32,
    /// Length of the packed bytes, `1..=raw_len`.
    pub stored_len: u32,
}

/// Reason why a record's head is refused, as the end of a sentence: "record number 3 has …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The code names no codec.
    #[error("an unknown codec")]
    Codec,
    /// A length is zero or too large.
    #[error("a length out of bounds")]
    Length,
}

impl RecordHead {
    /// Appends the encoded head, [`RECORD_HEAD_BYTES`].
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.hash.as_bytes());
        out.push(self.codec.code());
        out.extend_from_slice(&self.raw_len.to_be_bytes());
        out.extend_from_slice(&self.stored_len.to_be_bytes());
    }

    /// Decodes a head and checks its lengths.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(head: &[u8; RECORD_HEAD_BYTES]) -> Result<Self, RecordError> {
        let (hash, mut numbers) = head.split_at(32);
        let hash = ChunkHash::from_slice(hash).expect("the head begins with 32 bytes of hash");
        let codec = Codec::from_code(numbers.get_u8()).ok_or(RecordError::Codec)?;
        let (raw_len, stored_len) = (numbers.get_u32(), numbers.get_u32());
        if raw_len == 0 || raw_len as usize > CHUNK_BYTES_MAX || stored_len == 0 || stored_len > raw_len {
            return Err(RecordError::Length);
        }
        Ok(Self { hash, codec, raw_len, stored_len })
    }
}

/// A chunk of an artifact that follows itself `repeat - 1` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Hash of the chunk's raw bytes.
    pub hash: ChunkHash,
    /// Length of the chunk, bytes.
    pub len: u32,
    /// Number of times that the chunk stands there.
    pub repeat: u32,
}

impl Run {
    /// Appends the encoded run, [`RUN_BYTES`].
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.hash.as_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
        out.extend_from_slice(&self.repeat.to_be_bytes());
    }

    /// Decodes a run.
    pub fn decode(run: &[u8; RUN_BYTES]) -> Self {
        let (hash, mut numbers) = run.split_at(32);
        let hash = ChunkHash::from_slice(hash).expect("a run begins with 32 bytes of hash");
        Self { hash, len: numbers.get_u32(), repeat: numbers.get_u32() }
    }
}

/// Body of a commit, a msgpack map, but for its list of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Bytes of the listing of a tree; `None` for a file.
    pub listing_bytes: Option<u64>,
    /// Sizes that its chunks were cut with.
    pub cut: CutParams,
    /// Length of the artifact, bytes.
    pub bytes: u64,
    /// BLAKE3 of the artifact.
    pub blake3: ArtifactHash,
}

/// Reason why a body is no commit.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The body is not the msgpack map.
    #[error("the body is not a commit: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// The chunk list ends within a run.
    #[error("the length of the chunk list is not a multiple of {RUN_BYTES} bytes")]
    List,
    /// The repeat counts add up to too many chunks.
    #[error("the artifact has {0} chunks, more than {ARTIFACT_CHUNKS_MAX}")]
    Chunks(u64),
    /// A file with a listing.
    #[error("the artifact is a file, and a file has no listing")]
    Listing,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitBody<'a> {
    kind: KindWord,
    #[serde(default)]
    listing_bytes: u64,
    cut: CutParams,
    bytes: u64,
    blake3: ArtifactHash,
    #[serde(borrow)]
    chunks: &'a serde_bytes::Bytes,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindWord {
    File,
    Tree,
}

impl Commit {
    /// Returns the kind of the artifact.
    pub fn kind(&self) -> Kind {
        self.listing_bytes.map_or(Kind::File, |listing_bytes| Kind::Tree { listing_bytes })
    }

    /// Encodes the body up to its list of chunks, which follows as `list_bytes` bytes of
    /// [`Run`]s. The list comes last so that it is never copied.
    pub fn head(&self, list_bytes: u32) -> Vec<u8> {
        let kind = if self.listing_bytes.is_some() { "tree" } else { "file" };
        let mut out = Vec::new();
        let encode = |out: &mut Vec<u8>| {
            rmp::encode::write_map_len(out, 6)?;
            rmp::encode::write_str(out, "kind")?;
            rmp::encode::write_str(out, kind)?;
            rmp::encode::write_str(out, "listing_bytes")?;
            rmp::encode::write_uint(out, self.listing_bytes.unwrap_or(0))?;
            rmp::encode::write_str(out, "cut")?;
            rmp::encode::write_array_len(out, 3)?;
            for size in [self.cut.min(), self.cut.avg(), self.cut.max()] {
                rmp::encode::write_uint(out, size.into())?;
            }
            rmp::encode::write_str(out, "bytes")?;
            rmp::encode::write_uint(out, self.bytes)?;
            rmp::encode::write_str(out, "blake3")?;
            rmp::encode::write_bin(out, self.blake3.as_bytes())?;
            rmp::encode::write_str(out, "chunks")?;
            rmp::encode::write_bin_len(out, list_bytes)
        };
        encode(&mut out).expect("a vector takes every write");
        out
    }

    /// Decodes a body: the commit and its list of chunks.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn decode(body: &[u8]) -> Result<(Self, Vec<Run>), CommitError> {
        let CommitBody { kind, listing_bytes, cut, bytes, blake3, chunks } = rmp_serde::from_slice(body)?;
        let (records, rest) = chunks.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(CommitError::List);
        }
        let runs: Vec<Run> = records.iter().map(Run::decode).collect();
        let count = runs.iter().fold(0_u64, |sum, run| sum.saturating_add(run.repeat.into()));
        if count > ARTIFACT_CHUNKS_MAX {
            return Err(CommitError::Chunks(count));
        }
        let listing_bytes = match kind {
            KindWord::File if listing_bytes != 0 => return Err(CommitError::Listing),
            KindWord::File => None,
            KindWord::Tree => Some(listing_bytes),
        };
        Ok((Self { listing_bytes, cut, bytes, blake3 }, runs))
    }
}
