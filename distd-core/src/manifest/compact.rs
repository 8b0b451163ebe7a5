//! Compact leaves, for a receiver that holds an earlier manifest: an entry the receiver knows is
//! sent as its chunk id alone.
//!
//! When block addresses move in an image, a few entries of nearly every leaf change. Sending the
//! 32-byte hashes of all other entries again would make the manifest the larger part of a small
//! update. An id stands for one hash for ever, so the id is enough. The receiver hashes the rebuilt
//! leaf and compares it, as it does with any other node (docs/decisions/0004).

use bytes::{BufMut, Bytes, BytesMut};

use super::NODE_ENTRIES_MAX;
use super::node::{Entry, NodeError, decode_leaf, encode_leaf};
use crate::bounds::CHUNK_BYTES_MAX;
use crate::proto::{put_varint, take_varint, unzigzag, zigzag};
use crate::{ChunkHash, ChunkId};

/// Last known and last new id written. An id is sent as the difference to the last id of the same
/// kind, so a run of either kind costs one byte a chunk.
#[derive(Default)]
struct Last {
    known: u64,
    fresh: u64,
}

/// Returns the compact form of a leaf for a receiver that can look up every id for which `known` is
/// true. Returns `None` when two ids are so far apart (2^60 and more) that the plain form is
/// better.
///
/// # Errors
/// [`NodeError`] when `leaf` is not a leaf.
pub fn compact_leaf(leaf: &[u8], known: impl Fn(ChunkId) -> bool) -> Result<Option<Bytes>, NodeError> {
    let mut out = BytesMut::new();
    let mut last = Last::default();
    for entry in decode_leaf(leaf)? {
        let is_known = known(entry.id);
        let reference = if is_known { &mut last.known } else { &mut last.fresh };
        // Both ids are below 2^63.
        let step = zigzag(entry.id.0 as i64 - *reference as i64 - 1);
        *reference = entry.id.0;
        if step >= 1 << 61 {
            return Ok(None);
        }
        put_varint(&mut out, step << 1 | u64::from(is_known));
        if !is_known {
            put_varint(&mut out, u64::from(entry.len));
            out.put_slice(&entry.hash.0);
        }
    }
    Ok(Some(out.freeze()))
}

/// Returns the leaf that a compact form stands for; `find` looks up the entries this side holds.
/// The caller must still check that the leaf has the requested hash.
///
/// # Errors
/// [`NodeError`] when the form is damaged or names an id this side does not hold.
pub fn expand_leaf(
    mut compact: &[u8],
    find: impl Fn(ChunkId) -> Option<(ChunkHash, u32)>,
) -> Result<Bytes, NodeError> {
    let mut entries = Vec::new();
    let mut last = Last::default();
    while !compact.is_empty() {
        if entries.len() == NODE_ENTRIES_MAX {
            return Err(NodeError::Bounds("the number of entries"));
        }
        let head = take_varint(&mut compact).ok_or(NodeError::Malformed)?;
        let is_known = head & 1 == 1;
        let reference = if is_known { &mut last.known } else { &mut last.fresh };
        let id = (*reference as i64)
            .checked_add(1)
            .and_then(|next| next.checked_add(unzigzag(head >> 1)))
            .filter(|id| *id > 0)
            .ok_or(NodeError::Bounds("a chunk id"))? as u64;
        *reference = id;
        let id = ChunkId(id);
        let (hash, len) = if is_known {
            find(id).ok_or(NodeError::Bounds("a chunk id that is not held"))?
        } else {
            let len = take_varint(&mut compact).ok_or(NodeError::Malformed)?;
            let (hash, rest) = compact.split_at_checked(32).ok_or(NodeError::Malformed)?;
            compact = rest;
            let hash = ChunkHash::from_slice(hash).ok_or(NodeError::Malformed)?;
            let len = u32::try_from(len).ok().filter(|l| *l > 0 && *l as usize <= CHUNK_BYTES_MAX);
            (hash, len.ok_or(NodeError::Bounds("a chunk length"))?)
        };
        entries.push(Entry { id, hash, len });
    }
    if entries.is_empty() {
        return Err(NodeError::Bounds("the number of entries"));
    }
    Ok(encode_leaf(&entries))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(id: u64) -> Entry {
        Entry { id: ChunkId(id), hash: ChunkHash::of(&id.to_be_bytes()), len: 1 + (id % 60_000) as u32 }
    }

    #[test]
    fn a_run_of_known_chunks_costs_a_byte_each() {
        let leaf = encode_leaf(&(5000..5200).map(entry).collect::<Vec<_>>());
        let compact = compact_leaf(&leaf, |_| true).expect("a leaf").expect("near ids");
        assert!(compact.len() <= 203, "{}", compact.len());
        assert!(expand_leaf(&compact, |_| None).is_err(), "an id that is not held is no chunk");
    }

    proptest! {
        #[test]
        fn a_compacted_leaf_expands_to_the_same_bytes(
            ids in prop::collection::vec(prop_oneof![1u64..500, 1u64..i64::MAX as u64], 1..256),
            odd_known in any::<bool>(),
        ) {
            let entries: Vec<_> = ids.iter().map(|id| entry(*id)).collect();
            let table: BTreeMap<_, _> = entries.iter().map(|e| (e.id, (e.hash, e.len))).collect();
            let leaf = encode_leaf(&entries);
            if let Some(compact) = compact_leaf(&leaf, |id| (id.0 % 2 == 1) == odd_known).expect("a leaf") {
                let back = expand_leaf(&compact, |id| table.get(&id).copied()).expect("own form");
                prop_assert_eq!(back, leaf);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = expand_leaf(&bytes, |id| Some((ChunkHash([1; 32]), (id.0 % 9) as u32 + 1)));
            let _ = compact_leaf(&bytes, |_| false);
        }
    }
}
