//! Tables of an image: blocks of at most 8 KiB of structures, each with two bytes in front that say
//! its length and whether it is packed.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use super::{Packing, Unpacker};
use crate::cut::ReadAt;
use crate::lru::Lru;

/// Most bytes that a block of a table unpacks to.
pub(crate) const TABLE_BLOCK_BYTES: usize = 8192;

/// Length of the header of a block, bytes.
pub(crate) const HEADER_BYTES: usize = 2;

/// Bit of the header of a block that is not packed.
const STORED: u16 = 0x8000;

/// Memory for unpacked blocks, bytes.
const CACHE_BYTES: u64 = 2 << 20;

/// Work that a read of a few bytes counts, bytes.
const READ_WORK: u64 = 64;

/// Reads the header of a block of a table. Returns the length of the block behind the header, and
/// whether it is stored as it is.
pub(crate) fn header(header: [u8; HEADER_BYTES]) -> (usize, bool) {
    let header = u16::from_le_bytes(header);
    (usize::from(header & !STORED), header & STORED != 0)
}

/// Returns the header of a block.
pub(crate) fn header_of(len: usize, is_stored: bool) -> [u8; HEADER_BYTES] {
    let len = len as u16 & !STORED;
    (if is_stored { len | STORED } else { len }).to_le_bytes()
}

/// Unpacked block, and the offset behind it in the image.
#[derive(Clone)]
struct Block {
    plain: Arc<[u8]>,
    end: u64,
}

/// Reader of tables. Bounds the bytes that are read and unpacked.
pub(super) struct Tables<'v, R: ?Sized> {
    volume: &'v R,
    unpacker: RefCell<Unpacker>,
    cache: RefCell<Lru<u64, Block>>,
    /// Bytes that may still be read or unpacked.
    work: Cell<u64>,
}

impl<'v, R: ReadAt + ?Sized> Tables<'v, R> {
    pub(super) fn new(volume: &'v R, packing: Packing, work: u64) -> Self {
        Self {
            volume,
            unpacker: RefCell::new(Unpacker::new(packing)),
            cache: RefCell::new(Lru::new(CACHE_BYTES)),
            work: Cell::new(work),
        }
    }

    /// Counts work; `None` when the image asks for too much.
    pub(super) fn spend(&self, bytes: u64) -> Option<()> {
        self.work.set(self.work.get().checked_sub(bytes.saturating_add(READ_WORK))?);
        Some(())
    }

    /// Reads bytes that lie in no block, such as a list of blocks.
    pub(super) fn raw(&self, bytes: &mut [u8], offset: u64) -> Option<()> {
        self.spend(bytes.len() as u64)?;
        self.volume.read_exact_at(bytes, offset).ok()
    }

    /// Returns the block at `start`, which ends before `end`.
    fn block(&self, start: u64, end: u64) -> Option<Block> {
        if let Some(block) = self.cache.borrow_mut().get(&start) {
            self.spend(0)?;
            return Some(block.clone()).filter(|block| block.end <= end);
        }
        let (len, is_stored) = self.header_at(start, end)?;
        let mut packed = vec![0; len];
        self.raw(&mut packed, start + HEADER_BYTES as u64)?;
        let plain = if is_stored {
            packed
        } else {
            self.spend(TABLE_BLOCK_BYTES as u64)?;
            let mut plain = vec![0; TABLE_BLOCK_BYTES];
            let made = self.unpacker.borrow_mut().unpack(&packed, &mut plain)?;
            plain.truncate(made);
            plain
        };
        let block = Block { plain: plain.into(), end: start + (HEADER_BYTES + len) as u64 };
        self.cache.borrow_mut().put(start, block.clone(), TABLE_BLOCK_BYTES as u64);
        Some(block)
    }

    fn header_at(&self, start: u64, end: u64) -> Option<(usize, bool)> {
        let mut raw = [0; HEADER_BYTES];
        self.raw(&mut raw, start)?;
        let (len, is_stored) = header(raw);
        let fits = start.checked_add((HEADER_BYTES + len) as u64)? <= end;
        (fits && (1..=TABLE_BLOCK_BYTES).contains(&len)).then_some((len, is_stored))
    }

    /// Returns whether blocks fill `table` from its start to its end, and whether any is packed.
    pub(super) fn walk(&self, table: &Range<u64>) -> Option<bool> {
        let (mut at, mut is_packed) = (table.start, false);
        while at < table.end {
            let (len, is_stored) = self.header_at(at, table.end)?;
            is_packed |= !is_stored;
            at += (HEADER_BYTES + len) as u64;
        }
        (at == table.end).then_some(is_packed)
    }

    /// Returns a reader of a table from `place` on, which is the start of a block behind the start
    /// of the table, shifted by 16 bits, plus an offset in the unpacked block.
    pub(super) fn at(&self, table: &Range<u64>, place: u64) -> Option<Cursor<'_, 'v, R>> {
        let block = table.start.checked_add(place >> 16)?;
        let offset = (place & 0xFFFF) as usize;
        (block < table.end && offset < TABLE_BLOCK_BYTES).then_some(Cursor {
            tables: self,
            block,
            end: table.end,
            offset,
        })
    }
}

/// Place in a table, from which on structures are read.
pub(super) struct Cursor<'t, 'v, R: ?Sized> {
    tables: &'t Tables<'v, R>,
    block: u64,
    end: u64,
    offset: usize,
}

impl<R: ReadAt + ?Sized> Cursor<'_, '_, R> {
    /// Reads the next bytes; `None` where the table ends or is damaged.
    pub(super) fn read(&mut self, mut bytes: &mut [u8]) -> Option<()> {
        self.tables.spend(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let block = self.tables.block(self.block, self.end)?;
            let plain: &[u8] = &block.plain;
            let rest = plain.get(self.offset..)?;
            let count = rest.len().min(bytes.len());
            bytes[..count].copy_from_slice(&rest[..count]);
            bytes = &mut bytes[count..];
            self.offset += count;
            if self.offset == plain.len() {
                (self.block, self.offset) = (block.end, 0);
            }
        }
        Some(())
    }

    /// Reads a structure of known length.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut raw = [0; N];
        self.read(&mut raw)?;
        Some(raw)
    }
}
