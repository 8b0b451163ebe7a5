//! Packs: immutable objects of many chunks back to back, with an index at the end (docs/store.md,
//! "Pack").

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use distd_core::ChunkHash;
use distd_core::bounds::CHUNK_BYTES_MAX;
use distd_core::packing::{Codec, HashedChunk};
use object_store::PutPayload;

/// Bytes of chunks from which on a pack is sealed: many enough that reading a pack is sequential,
/// few enough that some packs fit in memory.
pub const PACK_BYTES: usize = 16 << 20;

/// Most bytes of chunks that a pack can hold. [`PACK_BYTES`] and one more chunk stay below it.
pub const PACK_BYTES_MAX: usize = 32 << 20;

/// Most chunks of a pack; reached only by a product with tiny chunks. Bounds the index to 5.4 MB.
pub const PACK_CHUNKS_MAX: usize = 131_072;

/// Last bytes of a pack.
pub const PACK_MAGIC: &[u8; 8] = b"distdpk1";

/// Bytes of an index entry: hash, raw length, stored length, codec.
pub const ENTRY_BYTES: usize = 32 + 4 + 4 + 1;

/// Bytes behind the index: chunk count, bytes of chunks, BLAKE3 of all before it, magic.
pub const TRAILER_BYTES: usize = 4 + 4 + 32 + 8;

/// Longest object that can be a pack, bytes.
pub const PACK_OBJECT_BYTES_MAX: u64 =
    (PACK_BYTES_MAX + PACK_CHUNKS_MAX * ENTRY_BYTES + TRAILER_BYTES) as u64;

/// Error of reading an object as a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The object is too short, or lacks [`PACK_MAGIC`] at its end.
    #[error("not a distd pack")]
    Magic,
    /// The object has another BLAKE3 than it states.
    #[error("pack is damaged")]
    Damaged,
    /// The index contradicts itself or the bounds.
    #[error("pack has an impossible index")]
    Index,
}

/// A chunk as it lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Hash of the raw bytes.
    pub hash: ChunkHash,
    /// Position of its stored bytes in the pack.
    pub offset: u32,
    /// Stored length, bytes.
    pub stored_len: u32,
    /// Raw length, bytes.
    pub raw_len: u32,
    /// Form of the stored bytes.
    pub codec: Codec,
}

/// Collects chunks for one pack. Holds the stored bytes as they arrive, without copying.
#[derive(Debug, Default)]
pub struct PackWriter {
    parts: Vec<Bytes>,
    entries: Vec<PackEntry>,
    bytes: usize,
}

/// A finished pack, to be put in the store.
#[derive(Debug)]
pub struct SealedPack {
    /// The object's bytes.
    pub payload: PutPayload,
    /// Its length.
    pub bytes: u64,
    /// Its chunks.
    pub entries: Vec<PackEntry>,
    /// The same as they stand in the object.
    pub index: Bytes,
}

impl PackWriter {
    /// Whether the pack has no chunk.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it is time to [`seal`](Self::seal).
    pub fn is_full(&self) -> bool {
        self.bytes >= PACK_BYTES || self.entries.len() >= PACK_CHUNKS_MAX
    }

    /// Bytes of chunks so far: where the next one will begin.
    pub fn bytes(&self) -> u32 {
        self.bytes as u32
    }

    /// Appends a chunk.
    ///
    /// # Panics
    /// When the pack [is full](Self::is_full) or the chunk is longer than `CHUNK_BYTES_MAX`.
    pub fn push(&mut self, chunk: HashedChunk) {
        let HashedChunk { hash, packed: chunk } = chunk;
        assert!(!self.is_full() && chunk.bytes.len() <= CHUNK_BYTES_MAX, "callers seal and bound");
        self.entries.push(PackEntry {
            hash,
            offset: self.bytes as u32,
            stored_len: chunk.bytes.len() as u32,
            raw_len: chunk.raw_len,
            codec: chunk.codec,
        });
        self.bytes += chunk.bytes.len();
        self.parts.push(chunk.bytes);
    }

    /// Ends the pack. Hashes all of it: some ten milliseconds.
    pub fn seal(mut self) -> SealedPack {
        let mut footer = BytesMut::with_capacity(self.entries.len() * ENTRY_BYTES + TRAILER_BYTES);
        for entry in &self.entries {
            footer.put_slice(entry.hash.as_bytes());
            footer.put_u32(entry.raw_len);
            footer.put_u32(entry.stored_len);
            footer.put_u8(entry.codec.code());
        }
        let index_bytes = footer.len();
        footer.put_u32(self.entries.len() as u32);
        footer.put_u32(self.bytes as u32);
        let mut hasher = blake3::Hasher::new();
        for part in &self.parts {
            hasher.update(part);
        }
        hasher.update(&footer);
        footer.put_slice(hasher.finalize().as_bytes());
        footer.put_slice(PACK_MAGIC);
        let footer = footer.freeze();
        // The index is copied, so that remembering it does not keep the whole pack in memory.
        let index = Bytes::copy_from_slice(&footer[..index_bytes]);
        self.parts.push(footer);
        let payload: PutPayload = self.parts.into_iter().collect();
        SealedPack { bytes: payload.content_length() as u64, payload, entries: self.entries, index }
    }
}

/// Reads a whole pack back: its chunks, with every byte of it checked. For rebuilding the rows of a
/// lost database.
///
/// # Errors
/// [`PackError`].
pub fn read_index(object: &[u8]) -> Result<Vec<PackEntry>, PackError> {
    let (body, mut trailer) =
        object.len().checked_sub(TRAILER_BYTES).map(|at| object.split_at(at)).ok_or(PackError::Magic)?;
    if !trailer.ends_with(PACK_MAGIC) {
        return Err(PackError::Magic);
    }
    let hashed = body.len() + 8;
    let (count, chunk_bytes) = (trailer.get_u32() as usize, trailer.get_u32() as usize);
    if trailer[..32] != *blake3::hash(&object[..hashed]).as_bytes() {
        return Err(PackError::Damaged);
    }
    if count > PACK_CHUNKS_MAX
        || chunk_bytes > PACK_BYTES_MAX
        || chunk_bytes + count * ENTRY_BYTES != body.len()
    {
        return Err(PackError::Index);
    }
    let entries = parse_index(&body[chunk_bytes..])?;
    let end = entries.last().map_or(0, |entry| entry.offset + entry.stored_len);
    if end as usize == chunk_bytes { Ok(entries) } else { Err(PackError::Index) }
}

/// Position of the index in a pack of `object_bytes` bytes, from the pack's last [`TRAILER_BYTES`].
/// The hash in the trailer is not checked: see [`read_index`].
///
/// # Errors
/// [`PackError::Magic`], [`PackError::Index`].
pub fn index_range(mut trailer: &[u8], object_bytes: u64) -> Result<Range<u64>, PackError> {
    if trailer.len() != TRAILER_BYTES || !trailer.ends_with(PACK_MAGIC) {
        return Err(PackError::Magic);
    }
    let (count, chunk_bytes) = (trailer.get_u32() as usize, trailer.get_u32() as usize);
    if count > PACK_CHUNKS_MAX || chunk_bytes > PACK_BYTES_MAX {
        return Err(PackError::Index);
    }
    let index = chunk_bytes as u64..(chunk_bytes + count * ENTRY_BYTES) as u64;
    if index.end + TRAILER_BYTES as u64 == object_bytes { Ok(index) } else { Err(PackError::Index) }
}

/// The chunks of a pack from its index alone.
///
/// # Errors
/// [`PackError::Index`].
pub fn parse_index(index: &[u8]) -> Result<Vec<PackEntry>, PackError> {
    let (records, rest) = index.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() || records.len() > PACK_CHUNKS_MAX {
        return Err(PackError::Index);
    }
    let mut entries = Vec::with_capacity(records.len());
    let mut offset = 0u32;
    for record in records {
        let (hash, mut numbers) = record.split_at(32);
        let hash = ChunkHash::from_slice(hash).expect("a record begins with 32 bytes of hash");
        let (raw_len, stored_len) = (numbers.get_u32(), numbers.get_u32());
        let codec = Codec::from_code(numbers.get_u8()).ok_or(PackError::Index)?;
        if raw_len as usize > CHUNK_BYTES_MAX || stored_len as usize > PACK_BYTES_MAX - offset as usize {
            return Err(PackError::Index);
        }
        entries.push(PackEntry { hash, offset, stored_len, raw_len, codec });
        offset += stored_len;
    }
    Ok(entries)
}

/// Object name of a pack named by 16 random bytes. Two levels, so that a directory store has no
/// huge directory.
pub fn object_name(random: [u8; 16]) -> String {
    let name = hex::encode(random);
    format!("packs/{}/{name}", &name[..2])
}

#[cfg(test)]
mod tests {
    use distd_core::packing::{PackedChunk, Packer};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = PackWriter::default();
        for n in 0..5u8 {
            let raw = vec![n; 100 * (usize::from(n) + 1)];
            // Raw, for zstd may learn to compress better.
            let chunk =
                PackedChunk { codec: Codec::Raw, raw_len: raw.len() as u32, bytes: raw.clone().into() };
            writer.push(HashedChunk { hash: ChunkHash::of(&raw), packed: chunk });
        }
        let sealed = writer.seal();
        assert_eq!(sealed.entries[4].offset, 1000);
        sealed.payload.into_iter().flatten().collect()
    }

    #[test]
    fn the_golden_pack_keeps_its_bytes() {
        const GOLDEN: &[u8] = include_bytes!("../../tests/testdata/pack_v1.bin");
        assert!(sample() == GOLDEN, "a pack's bytes changed");
        assert_eq!(read_index(GOLDEN).expect("golden").len(), 5);
    }

    #[test]
    fn a_pack_reads_back_and_any_flipped_or_missing_byte_is_refused() {
        let object = sample();
        let entries = read_index(&object).expect("own pack");
        for entry in &entries {
            let at = entry.offset as usize;
            assert_eq!(ChunkHash::of(&object[at..at + entry.stored_len as usize]), entry.hash);
        }
        for n in 0..object.len() {
            let mut bad = object.clone();
            bad[n] ^= 1;
            assert!(read_index(&bad).is_err(), "flip at {n}");
            assert!(read_index(&object[..n]).is_err(), "truncated to {n}");
        }
    }

    #[test]
    fn an_index_is_found_by_the_trailer_alone_and_never_outside_the_object() {
        let object = sample();
        let (bytes, at) = (object.len() as u64, object.len() - TRAILER_BYTES);
        let index = index_range(&object[at..], bytes).expect("own trailer");
        let index = &object[index.start as usize..index.end as usize];
        assert_eq!(parse_index(index), read_index(&object));
        for other in [0, bytes - 1, bytes + 1, u64::MAX] {
            assert_eq!(index_range(&object[at..], other), Err(PackError::Index), "{other}");
        }
        assert_eq!(index_range(&object[at + 1..], bytes), Err(PackError::Magic));
        let mut huge = object[at..].to_vec();
        huge[..8].fill(0xff);
        assert_eq!(index_range(&huge, bytes), Err(PackError::Index));
    }

    #[test]
    fn a_pack_ends_at_its_size_whatever_the_chunks() {
        let mut writer = PackWriter::default();
        let chunk = Packer::new(3).pack(&vec![7; CHUNK_BYTES_MAX]);
        let raw = PackedChunk { codec: Codec::Raw, bytes: vec![7; CHUNK_BYTES_MAX].into(), ..chunk };
        while !writer.is_full() {
            writer.push(HashedChunk { hash: ChunkHash([0; 32]), packed: raw.clone() });
        }
        assert!((PACK_BYTES..PACK_BYTES_MAX).contains(&(writer.seal().bytes as usize)));
    }
}
