//! Patches of large files: one job for a whole file, so that the patch sees where all of it moved.
//!
//! The method is codec 3, but the payload may be longer than a chunk. Its first bytes then travel
//! as *pieces*: chunks of the set like those of views, which patches without a base make, and which
//! stand at the end of the large patch's base. The payload of the patch itself is the number of
//! bytes in pieces, a varint (RFC 9000 §16), and the rest of the coded bytes.
//!
//! A device holds the base, the payload and the tables of the decoder in memory, and writes the
//! target as it comes. The method's number states that memory.

use std::io;

use super::references;
use super::{Cost, PatchError};
use crate::bounds::{CHUNK_BYTES_MAX, PATCH_LARGE_BYTES_MAX, PATCH_LARGE_PAYLOAD_BYTES_MAX};
use crate::proto::{put_varint, take_varint};

/// Bytes of a piece. A patch that makes one has the piece and a frame around it as payload, which
/// must fit into a chunk.
const PIECE_BYTES: usize = CHUNK_BYTES_MAX - 4096;

/// Coded bytes of a large patch, as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargePayload {
    /// Chunks that stand at the end of the base, in order.
    pub pieces: Vec<Vec<u8>>,
    /// Payload of the patch.
    pub own: Vec<u8>,
}

impl LargePayload {
    /// Divides the coded bytes of a patch.
    pub fn new(coded: &[u8]) -> Self {
        Self::divided(coded, PIECE_BYTES)
    }

    fn divided(coded: &[u8], piece: usize) -> Self {
        let before = coded.len().saturating_sub(piece).next_multiple_of(piece).min(coded.len());
        let (pieces, rest) = coded.split_at(before);
        let mut own = Vec::with_capacity(rest.len() + 8);
        put_varint(&mut own, before as u64);
        own.extend_from_slice(rest);
        Self { pieces: pieces.chunks(piece).map(<[u8]>::to_vec).collect(), own }
    }
}

/// Returns the cost of rebuilding a target from a base and coded bytes of these lengths; `None` if
/// no device has the memory. The rate has no meaning.
pub fn large_cost(base: u64, coded: u64, target: u64) -> Option<Cost> {
    let memory = base.checked_add(coded.checked_mul(2)?)?.checked_add(references::memory(target))?;
    Cost::new(memory, u64::MAX)
}

/// Rebuilds a large target, `target_len` bytes, into `sink`, in order. `base` ends in the pieces,
/// and `own` is the payload. The result is not verified.
///
/// # Errors
/// The inner error for a payload that is damaged, or needs more than `memory` bytes; the outer one
/// from `sink`.
pub fn rebuild_large(
    base: &[u8],
    own: &[u8],
    target_len: u64,
    memory: u64,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Result<(), PatchError>> {
    let mut rest = own;
    let pieces = take_varint(&mut rest).and_then(|pieces| usize::try_from(pieces).ok());
    let Some(from) = pieces.and_then(|pieces| base.len().checked_sub(pieces)) else {
        return Ok(Err(PatchError::Damaged("it has more bytes in pieces than its base")));
    };
    let (base, pieces) = base.split_at(from);
    let coded = pieces.len() + rest.len();
    for (what, bytes, max) in [
        ("base", base.len(), PATCH_LARGE_BYTES_MAX),
        ("target", usize::try_from(target_len).unwrap_or(usize::MAX), PATCH_LARGE_BYTES_MAX),
        ("payload", coded, PATCH_LARGE_PAYLOAD_BYTES_MAX),
    ] {
        if bytes > max {
            return Ok(Err(PatchError::TooLong { what, bytes, max }));
        }
    }
    let cost = large_cost(base.len() as u64, coded as u64, target_len);
    if cost.is_none_or(|cost| cost.memory() > memory) {
        return Ok(Err(PatchError::Damaged("it needs more memory than its set says")));
    }
    let coded = [pieces, rest].concat();
    references::decode(base, &coded, target_len as usize, sink)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::references::{Layout, encode};

    fn rebuilt(base: &[u8], own: &[u8], len: u64, memory: u64) -> Result<Vec<u8>, PatchError> {
        let mut out = Vec::new();
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        rebuild_large(base, own, len, memory, &mut sink).expect("the sink does not fail")?;
        Ok(out)
    }

    #[test]
    fn a_payload_longer_than_a_chunk_travels_in_pieces() {
        let mut state = 7u64;
        let noise = |_| crate::random::splitmix(&mut state) as u8;
        let target: Vec<u8> = (0..20_000).map(noise).collect();
        let none = Layout::default();
        let coded = encode(b"some base", &target, [&none, &none], usize::MAX).expect("few segments");
        let payload = LargePayload::divided(&coded, 8000);
        assert_eq!(payload.pieces.len(), 2);
        assert!(payload.pieces.iter().all(|piece| piece.len() == 8000));
        let base = [b"some base".to_vec(), payload.pieces.concat()].concat();
        let len = target.len() as u64;
        let memory = large_cost(9, coded.len() as u64, len).expect("a class").memory();
        assert_eq!(rebuilt(&base, &payload.own, len, memory).as_deref(), Ok(&target[..]));
        let refused = Err(PatchError::Damaged("it needs more memory than its set says"));
        assert_eq!(rebuilt(&base, &payload.own, len, memory / 2), refused);
        let refused = Err(PatchError::Damaged("it has more bytes in pieces than its base"));
        assert_eq!(rebuilt(&base[10..], &payload.own, len, memory), refused);
        assert!(rebuilt(&base, b"", len, memory).is_err());
    }

    #[test]
    fn the_division_keeps_all_bytes_and_never_leaves_a_payload_above_a_chunk() {
        for len in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 3 * PIECE_BYTES - 1] {
            let payload = LargePayload::new(&vec![1; len]);
            let mut rest = &payload.own[..];
            let pieces = payload.pieces.concat().len();
            assert_eq!(take_varint(&mut rest), Some(pieces as u64));
            assert_eq!(pieces + rest.len(), len);
            assert!(payload.own.len() <= CHUNK_BYTES_MAX, "{len}");
        }
    }
}
