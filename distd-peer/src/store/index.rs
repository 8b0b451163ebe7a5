//! Index of the edge store: maps chunk hashes to locations in segments, in redb.

use std::path::Path;

use bytes::Bytes;
use distd_core::ChunkHash;
use distd_core::packing::{Codec, PackedChunk};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use super::StoreError;
use super::record::{Header, RotCheck};
use super::segment::SegmentId;

/// Size of redb's page cache, bytes. The index of 100 000 chunks is 9 MB, and few of its pages are
/// hot.
const CACHE_BYTES: usize = 8 << 20;

/// Chunk hash → segment, offset, raw length, stored length, codec, rot check and its kind: 29 bytes
/// big-endian.
const CHUNKS: TableDefinition<'_, &[u8; 32], &[u8; 29]> = TableDefinition::new("chunks");

/// Segment → length up to which it is indexed.
const SEGMENTS: TableDefinition<'_, u32, u64> = TableDefinition::new("segments");

/// Location of a chunk in the segment files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    pub(super) segment: SegmentId,
    /// Offset of the packed bytes, after the record's header.
    pub(super) offset: u64,
    pub(super) header: Header,
}

impl Location {
    /// Makes the chunk from its packed bytes.
    pub(super) fn chunk(&self, bytes: Bytes) -> PackedChunk {
        PackedChunk { codec: self.header.codec, raw_len: self.header.raw_len, bytes }
    }

    /// Offset after the packed bytes.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.header.stored_len)
    }

    fn encode(&self) -> [u8; 29] {
        let mut out = [0; 29];
        out[..4].copy_from_slice(&self.segment.0.to_be_bytes());
        // A segment is far smaller than 4 GiB.
        out[4..8].copy_from_slice(&(self.offset as u32).to_be_bytes());
        out[8..12].copy_from_slice(&self.header.raw_len.to_be_bytes());
        out[12..16].copy_from_slice(&self.header.stored_len.to_be_bytes());
        out[16] = self.header.codec.code();
        let (kind, check) = self.header.rot_check.encode();
        out[17..25].copy_from_slice(&check);
        out[25] = kind;
        out
    }

    fn decode(hash: ChunkHash, bytes: &[u8; 29]) -> Option<Self> {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Some(Self {
            segment: SegmentId(number(0)),
            offset: u64::from(number(4)),
            header: Header {
                hash,
                raw_len: number(8),
                stored_len: number(12),
                codec: Codec::from_code(bytes[16])?,
                rot_check: RotCheck::decode(bytes[25], &bytes[17..25])?,
            },
        })
    }
}

pub(super) struct Index(Database);

/// A consistent snapshot of the index for many look-ups.
pub(super) struct Reader(ReadOnlyTable<&'static [u8; 32], &'static [u8; 29]>);

impl Reader {
    pub(super) fn get(&self, hash: &ChunkHash) -> Result<Option<Location>, StoreError> {
        Ok(self.0.get(&hash.0)?.and_then(|value| Location::decode(*hash, value.value())))
    }
}

impl Index {
    /// Opens or creates an index. Returns true if the index is empty because it is new or was
    /// damaged, and must be filled from the segments.
    pub(super) fn open(path: &Path) -> Result<(Self, bool), StoreError> {
        let existed = path.exists();
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let (db, fresh) = match opened {
            Ok(db) => (db, !existed),
            Err(redb::DatabaseError::Storage(redb::StorageError::Corrupted(reason))) => {
                tracing::warn!(reason, "index is damaged; rebuilding it from the segments");
                std::fs::remove_file(path).map_err(StoreError::io("remove", path))?;
                (Database::builder().set_cache_size(CACHE_BYTES).create(path)?, true)
            }
            Err(e) => return Err(e.into()),
        };
        let txn = db.begin_write()?;
        txn.open_table(CHUNKS)?;
        txn.open_table(SEGMENTS)?;
        txn.commit()?;
        Ok((Self(db), fresh))
    }

    pub(super) fn reader(&self) -> Result<Reader, StoreError> {
        Ok(Reader(self.0.begin_read()?.open_table(CHUNKS)?))
    }

    /// Length up to which `segment` is indexed.
    pub(super) fn indexed_len(&self, segment: SegmentId) -> Result<u64, StoreError> {
        let table = self.0.begin_read()?.open_table(SEGMENTS)?;
        Ok(table.get(segment.0)?.map_or(0, |len| len.value()))
    }

    /// Adds chunks of one segment, which is indexed up to `len` after that. Durable on return.
    pub(super) fn add<'a>(
        &self,
        segment: SegmentId,
        len: u64,
        chunks: impl Iterator<Item = (&'a ChunkHash, &'a Location)>,
    ) -> Result<(), StoreError> {
        let mut txn = self.0.begin_write()?;
        // Without quick repair, redb walks the whole index after the process was killed.
        txn.set_quick_repair(true);
        {
            let mut table = txn.open_table(CHUNKS)?;
            for (hash, location) in chunks {
                table.insert(&hash.0, &location.encode())?;
            }
            txn.open_table(SEGMENTS)?.insert(segment.0, len)?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Removes the chunks of an evicted segment whose location in the index is still in that
    /// segment.
    pub(super) fn remove<'a>(
        &self,
        segment: SegmentId,
        hashes: impl Iterator<Item = &'a ChunkHash>,
    ) -> Result<(), StoreError> {
        let txn = self.0.begin_write()?;
        {
            let mut table = txn.open_table(CHUNKS)?;
            for hash in hashes {
                let here = table
                    .get(&hash.0)?
                    .and_then(|value| Location::decode(*hash, value.value()))
                    .is_some_and(|location| location.segment == segment);
                if here {
                    table.remove(&hash.0)?;
                }
            }
            txn.open_table(SEGMENTS)?.remove(segment.0)?;
        }
        txn.commit()?;
        Ok(())
    }

    pub(super) fn forget(&self, hash: &ChunkHash) -> Result<(), StoreError> {
        let txn = self.0.begin_write()?;
        txn.open_table(CHUNKS)?.remove(&hash.0)?;
        txn.commit()?;
        Ok(())
    }
}
