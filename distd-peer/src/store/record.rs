//! One record of a segment file: a fixed header, then the packed chunk (docs/store.md, "Segments").

use distd_core::ChunkHash;
use distd_core::limits::CHUNK_BYTES_MAX;
use distd_core::packing::{Codec, PackedChunk};

/// Bytes of a record's header.
pub(super) const HEADER_BYTES: usize = 56;

/// First bytes of each record, so that a scan knows a header from a torn tail.
const MAGIC: [u8; 4] = *b"dch1";

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) hash: ChunkHash,
    pub(super) raw_len: u32,
    pub(super) stored_len: u32,
    pub(super) codec: Codec,
    /// First eight bytes of the BLAKE3 of the packed bytes: finds rot without unpacking. It vouches for nothing; the chunk
    /// hash does, at whoever receives the chunk.
    pub(super) rot_check: u64,
}

/// Rot check of packed bytes.
pub(super) fn rot_check(packed: &[u8]) -> u64 {
    let hash = blake3::hash(packed);
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes"))
}

impl Header {
    pub(super) fn of(hash: ChunkHash, chunk: &PackedChunk) -> Self {
        Self {
            hash,
            raw_len: chunk.raw_len,
            stored_len: chunk.bytes.len() as u32,
            codec: chunk.codec,
            rot_check: rot_check(&chunk.bytes),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.codec.code();
        out[8..12].copy_from_slice(&self.raw_len.to_be_bytes());
        out[12..16].copy_from_slice(&self.stored_len.to_be_bytes());
        out[16..24].copy_from_slice(&self.rot_check.to_be_bytes());
        out[24..56].copy_from_slice(&self.hash.0);
        out
    }

    /// `None` when the bytes are no header this build wrote.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC || bytes[5..8] != [0; 3] {
            return None;
        }
        let header = Self {
            codec: Codec::from_code(bytes[4])?,
            raw_len: number(8),
            stored_len: number(12),
            rot_check: u64::from_be_bytes(bytes[16..24].try_into().expect("eight bytes")),
            hash: ChunkHash::from_slice(&bytes[24..56])?,
        };
        let sound = header.stored_len > 0
            && header.raw_len as usize <= CHUNK_BYTES_MAX
            && header.stored_len <= header.raw_len;
        sound.then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_keeps_its_golden_bytes_and_a_damaged_one_is_none() {
        let chunk = PackedChunk { codec: Codec::Zstd, raw_len: 300, bytes: b"packed".as_slice().into() };
        let header = Header::of(ChunkHash([7; 32]), &chunk);
        let bytes = header.encode();
        assert_eq!(
            hex::encode(bytes),
            format!("64636831010000000000012c00000006{:016x}{}", rot_check(b"packed"), "07".repeat(32))
        );
        assert_eq!(Header::decode(&bytes), Some(header));
        for i in [0, 3, 4, 5, 7, 8, 12] {
            let mut bad = bytes;
            bad[i] ^= 0xff;
            assert_eq!(Header::decode(&bad), None, "byte {i}");
        }
    }
}
