//! Record of a segment file: a fixed header, then the packed chunk (docs/store.md, "Segments").

use distd_core::ChunkHash;
use distd_core::bounds::CHUNK_BYTES_MAX;
use distd_core::packing::{Codec, PackedChunk};
use twox_hash::XxHash3_64;

/// Size of a record's header, bytes.
pub(super) const HEADER_BYTES: usize = 56;

/// First bytes of each record, by which a scan distinguishes a header from a torn tail.
const MAGIC: [u8; 4] = *b"dch1";

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) hash: ChunkHash,
    pub(super) raw_len: u32,
    pub(super) stored_len: u32,
    pub(super) codec: Codec,
    pub(super) rot_check: RotCheck,
}

/// Checksum that detects damaged packed bytes without unpacking them. It proves nothing about the
/// content; the receiver checks the chunk hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotCheck {
    /// First eight bytes of the BLAKE3, in records of layout 1.
    Blake3(u64),
    /// XXH3, 64 bits, without a seed: bit rot is no adversary, and a relay reads each byte it
    /// sends.
    Xxh3(u64),
}

impl RotCheck {
    fn of(packed: &[u8]) -> Self {
        Self::Xxh3(XxHash3_64::oneshot(packed))
    }

    /// Computes the checksum of layout 1.
    pub(super) fn of_layout_1(packed: &[u8]) -> Self {
        let hash = blake3::hash(packed);
        Self::Blake3(u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes")))
    }

    /// Whether `packed` are the bytes that the checksum was made of.
    pub(super) fn passes(self, packed: &[u8]) -> bool {
        self == match self {
            Self::Blake3(_) => Self::of_layout_1(packed),
            Self::Xxh3(_) => Self::of(packed),
        }
    }

    /// Returns the kind and the value.
    pub(super) fn encode(self) -> (u8, [u8; 8]) {
        match self {
            Self::Blake3(value) => (0, value.to_be_bytes()),
            Self::Xxh3(value) => (1, value.to_be_bytes()),
        }
    }

    /// Returns `None` for a kind that this build does not know.
    ///
    /// # Panics
    /// If `value` is not eight bytes long.
    pub(super) fn decode(kind: u8, value: &[u8]) -> Option<Self> {
        let value = u64::from_be_bytes(value.try_into().expect("eight bytes"));
        match kind {
            0 => Some(Self::Blake3(value)),
            1 => Some(Self::Xxh3(value)),
            _ => None,
        }
    }
}

impl Header {
    pub(super) fn of(hash: ChunkHash, chunk: &PackedChunk) -> Self {
        Self {
            hash,
            raw_len: chunk.raw_len,
            stored_len: chunk.bytes.len() as u32,
            codec: chunk.codec,
            rot_check: RotCheck::of(&chunk.bytes),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        let (kind, check) = self.rot_check.encode();
        out[4] = self.codec.code();
        out[5] = kind;
        out[8..12].copy_from_slice(&self.raw_len.to_be_bytes());
        out[12..16].copy_from_slice(&self.stored_len.to_be_bytes());
        out[16..24].copy_from_slice(&check);
        out[24..56].copy_from_slice(&self.hash.0);
        out
    }

    /// Returns `None` if the bytes are not a header that this build could have written.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC || bytes[6..8] != [0; 2] {
            return None;
        }
        let header = Self {
            codec: Codec::from_code(bytes[4])?,
            raw_len: number(8),
            stored_len: number(12),
            rot_check: RotCheck::decode(bytes[5], &bytes[16..24])?,
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
    fn a_header_keeps_its_golden_bytes_and_a_damaged_one_is_refused() {
        let chunk = PackedChunk { codec: Codec::Zstd, raw_len: 300, bytes: b"packed".as_slice().into() };
        let header = Header::of(ChunkHash([7; 32]), &chunk);
        let bytes = header.encode();
        assert_eq!(
            hex::encode(bytes),
            // XXH3 of "packed", computed by another implementation.
            format!("64636831010100000000012c000000065f67a2b7d2136dc0{}", "07".repeat(32))
        );
        assert_eq!(Header::decode(&bytes), Some(header));
        for i in [0, 3, 4, 5, 7, 8, 12] {
            let mut bad = bytes;
            bad[i] ^= 0xff;
            assert_eq!(Header::decode(&bad), None, "byte {i}");
        }
    }

    #[test]
    fn a_record_of_layout_1_is_checked_with_the_checksum_of_layout_1() {
        let hash = blake3::hash(b"packed");
        let first = u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes"));
        let old = Header {
            hash: ChunkHash([7; 32]),
            raw_len: 300,
            stored_len: 6,
            codec: Codec::Zstd,
            rot_check: RotCheck::Blake3(first),
        };
        let bytes = old.encode();
        assert_eq!(hex::encode(&bytes[..24]), format!("64636831010000000000012c00000006{first:016x}"));
        assert_eq!(Header::decode(&bytes), Some(old));
        assert!(old.rot_check.passes(b"packed") && !old.rot_check.passes(b"pickled"));
    }
}
