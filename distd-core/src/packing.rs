//! Packing of a single chunk for travel and storage: raw, or one zstd frame if that is smaller.

use bytes::Bytes;

use crate::ChunkHash;
use crate::bounds::CHUNK_BYTES_MAX;
pub use crate::proto::frame::Codec;

/// Default zstd level for chunks. On the reference pair (docs/benchmarks.md) level 3 saves 1.3 % of
/// the bytes and costs a third more time than level 1, and a push shares the processor with
/// cutting, hashing and the origin.
pub const LEVEL_DEFAULT: i32 = 1;

/// A chunk as it is stored and sent. The chunk's hash is that of the raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedChunk {
    /// Packing of `bytes`.
    pub codec: Codec,
    /// Raw length, bytes.
    pub raw_len: u32,
    /// The packed bytes, never more than `raw_len`.
    pub bytes: Bytes,
}

/// A packed chunk with the hash that names it. Where the chunk comes from outside, the hash is a
/// claim until [`HashedChunk::verify`] has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedChunk {
    /// Hash of the raw bytes.
    pub hash: ChunkHash,
    /// The chunk as it is stored and sent.
    pub packed: PackedChunk,
}

impl HashedChunk {
    /// Checks that the bytes unpack to a chunk with the hash.
    ///
    /// # Errors
    /// As [`Unpacker::unpack`].
    pub fn verify(&self, unpacker: &mut Unpacker) -> Result<(), UnpackError> {
        let PackedChunk { codec, raw_len, bytes } = &self.packed;
        unpacker.unpack(*codec, bytes, *raw_len, &self.hash).map(drop)
    }
}

/// Reason why a packed chunk is not the expected chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The bytes do not unpack to the expected length.
    #[error("chunk {0} does not unpack to its {1} bytes")]
    Length(ChunkHash, u32),
    /// The unpacked bytes have another hash.
    #[error("chunk {expected} arrived as {actual}")]
    HashMismatch {
        /// Hash of the expected chunk.
        expected: ChunkHash,
        /// Hash of the unpacked bytes.
        actual: ChunkHash,
    },
}

/// Packs chunks, reusing one compression context.
pub struct Packer {
    context: zstd::bulk::Compressor<'static>,
}

impl Packer {
    /// Returns a packer at zstd `level`.
    pub fn new(level: i32) -> Self {
        let mut context = zstd::bulk::Compressor::new(level).expect("a zstd context needs only memory");
        // The chunk hash is the checksum, so frames carry none of their own.
        context
            .set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(false))
            .expect("the parameter exists in every zstd of this decade");
        Self { context }
    }

    /// Packs one chunk. The chunk stays raw unless zstd saves at least a sixteenth: below that,
    /// unpacking costs more than it saves.
    ///
    /// # Panics
    /// If `raw` is longer than `CHUNK_BYTES_MAX`; cut parameters keep chunks below it.
    pub fn pack(&mut self, raw: &[u8]) -> PackedChunk {
        assert!(raw.len() <= CHUNK_BYTES_MAX, "cut parameters bound chunks");
        let raw_len = raw.len() as u32;
        let worth = raw.len() - raw.len().div_ceil(16);
        match self.context.compress(raw) {
            Ok(packed) if packed.len() <= worth => {
                PackedChunk { codec: Codec::Zstd, raw_len, bytes: packed.into() }
            }
            _ => PackedChunk { codec: Codec::Raw, raw_len, bytes: Bytes::copy_from_slice(raw) },
        }
    }
}

/// Unpacks and verifies chunks, reusing one decompression context and one buffer.
pub struct Unpacker {
    context: zstd::bulk::Decompressor<'static>,
    buffer: Vec<u8>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self {
            context: zstd::bulk::Decompressor::new().expect("a zstd context needs only memory"),
            buffer: Vec::new(),
        }
    }
}

impl Unpacker {
    /// Returns the raw bytes of chunk `hash`, which is `raw_len` bytes long. They are valid until
    /// the next call. Raw chunks are returned as the given slice, without a copy.
    ///
    /// # Errors
    /// [`UnpackError`]. Never more than `raw_len` (at most `CHUNK_BYTES_MAX`) bytes are written.
    pub fn unpack<'b>(
        &'b mut self,
        codec: Codec,
        bytes: &'b [u8],
        raw_len: u32,
        hash: &ChunkHash,
    ) -> Result<&'b [u8], UnpackError> {
        let raw = self.unpack_unverified(codec, bytes, raw_len).ok_or(UnpackError::Length(*hash, raw_len))?;
        let actual = ChunkHash::of(raw);
        if actual != *hash {
            return Err(UnpackError::HashMismatch { expected: *hash, actual });
        }
        Ok(raw)
    }

    /// Unpacks a chunk into `raw`, which has the chunk's length, without hashing it: for callers
    /// that hash several chunks at once.
    ///
    /// # Errors
    /// [`UnpackError::Length`] when the bytes do not unpack to `raw.len()` bytes; the content of
    /// `raw` is undefined then.
    pub fn unpack_unverified_into(
        &mut self,
        codec: Codec,
        bytes: &[u8],
        raw: &mut [u8],
        hash: &ChunkHash,
    ) -> Result<(), UnpackError> {
        let fits = match codec {
            Codec::Raw if bytes.len() == raw.len() => {
                raw.copy_from_slice(bytes);
                true
            }
            Codec::Raw => false,
            Codec::Zstd => self.context.decompress_to_buffer(bytes, raw).is_ok_and(|len| len == raw.len()),
        };
        if fits { Ok(()) } else { Err(UnpackError::Length(*hash, raw.len() as u32)) }
    }

    /// Returns the unpacked bytes without hashing them; `None` if they are not exactly `raw_len`
    /// bytes (at most `CHUNK_BYTES_MAX`). No more than that are ever written.
    fn unpack_unverified<'b>(&'b mut self, codec: Codec, bytes: &'b [u8], raw_len: u32) -> Option<&'b [u8]> {
        let len = raw_len as usize;
        if len > CHUNK_BYTES_MAX {
            return None;
        }
        let raw = match codec {
            Codec::Raw => bytes,
            Codec::Zstd => {
                self.buffer.resize(len, 0);
                let written = self.context.decompress_to_buffer(bytes, &mut self.buffer[..]).ok()?;
                &self.buffer[..written]
            }
        };
        (raw.len() == len).then_some(raw)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bomb_and_a_wrong_length_are_refused_within_the_raw_length() {
        let raw = vec![0u8; CHUNK_BYTES_MAX];
        let hash = ChunkHash::of(&raw);
        let packed = Packer::new(LEVEL_DEFAULT).pack(&raw);
        assert_eq!(packed.codec, Codec::Zstd);
        let mut unpacker = Unpacker::default();
        for len in [1, 100, raw.len() as u32 - 1, u32::MAX] {
            assert!(unpacker.unpack(packed.codec, &packed.bytes, len, &hash).is_err(), "{len}");
        }
        assert_eq!(unpacker.unpack(packed.codec, &packed.bytes, raw.len() as u32, &hash), Ok(&raw[..]));
    }

    #[test]
    fn a_hash_mismatch_names_both_hashes() {
        let (wanted, sent) = (ChunkHash::of(b"wanted"), b"sent!!");
        let result = Unpacker::default().unpack(Codec::Raw, sent, 6, &wanted).map(<[u8]>::to_vec);
        assert_eq!(result, Err(UnpackError::HashMismatch { expected: wanted, actual: ChunkHash::of(sent) }));
    }

    proptest! {
        #[test]
        fn every_chunk_comes_back(raw in prop::collection::vec(any::<u8>(), 1..5000), repeat in 1usize..8) {
            let raw = raw.repeat(repeat);
            let packed = Packer::new(LEVEL_DEFAULT).pack(&raw);
            prop_assert!(packed.bytes.len() <= raw.len());
            let mut unpacker = Unpacker::default();
            let hash = ChunkHash::of(&raw);
            prop_assert_eq!(unpacker.unpack(packed.codec, &packed.bytes, packed.raw_len, &hash), Ok(&raw[..]));
        }

        #[test]
        fn random_packed_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500), len in 0u32..100_000) {
            prop_assert!(Unpacker::default().unpack(Codec::Zstd, &bytes, len, &ChunkHash([0; 32])).is_err());
        }
    }
}
