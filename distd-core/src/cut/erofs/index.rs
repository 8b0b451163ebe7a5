//! The cluster index of a compressed file: one entry per logical cluster, in one of three encodings.
//!
//! *Full* entries are 8 bytes each. *Compact* ones come in packs that share one block address: 8 bytes
//! for 2 entries, and optionally 32 bytes for 16. Nothing here reads or remembers: bytes in, entry out.

use super::MapError;
use super::image::{u16_at, u32_at};

/// What an entry says about its logical cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// An extent starts in it.
    Head {
        kind: HeadKind,
        /// Where in the logical cluster it starts, bytes.
        within: u16,
        /// First block of its physical cluster.
        block: u32,
        /// Whether the physical cluster holds more than this extent.
        partial: bool,
    },
    /// The extent of an earlier one goes on.
    Rest {
        /// Blocks of the physical cluster. Only the first entry behind a head has it.
        blocks: Option<u16>,
    },
}

/// How the extent of a head is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadKind {
    Plain,
    /// With the first algorithm of the inode.
    First,
    /// With the second.
    Second,
}

/// Marks a distance as a count of blocks instead.
const BLOCKS_FLAG: u16 = 1 << 11;

const KIND_REST: u8 = 2;

fn head_kind(kind: u8) -> HeadKind {
    match kind {
        0 => HeadKind::Plain,
        1 => HeadKind::First,
        _ => HeadKind::Second,
    }
}

/// Where each entry lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index {
    /// Image offset of the first entry.
    pub(super) start: u64,
    /// Logical clusters.
    pub(super) count: u64,
    pub(super) compact: bool,
    /// Compact only: 4-byte entries in front, then 2-byte ones, then 4-byte ones again.
    front: u64,
    middle: u64,
    /// Log2 of the bytes of a logical cluster.
    pub(super) cluster_bits: u32,
    /// Whether physical clusters of the first algorithm have a block count; in a compact index, all.
    pub(super) big: bool,
}

/// One pack (or one full entry): its offset in the image, its bytes, and which of its entries is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: usize,
    slot: usize,
}

impl Index {
    /// `blocks` are those of the file's content, which size the parts of a compact index; `packed` says
    /// whether 2-byte entries are in use. `start` is a multiple of 8.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] for logical clusters the encoding cannot describe.
    pub(super) fn new(
        start: u64,
        size: u64,
        (block_bits, cluster_bits): (u32, u32),
        compact: Option<bool>,
        big: bool,
    ) -> Result<Self, MapError> {
        let blocks = size.div_ceil(1 << block_bits);
        let count = size.div_ceil(1 << cluster_bits);
        // Entries of 2 bytes start at a multiple of 32, so that their packs do not cross blocks.
        let front = ((32 - start % 32) % 32 / 4).min(blocks);
        let middle = if compact == Some(true) { (blocks - front) / 16 * 16 } else { 0 };
        let bits_max = match compact {
            None => u32::MAX,
            Some(_) if middle > 0 => 12,
            Some(_) => 14,
        };
        if cluster_bits > bits_max {
            return Err(MapError::Unsupported("logical clusters too large for a compact index"));
        }
        Ok(Self { start, count, compact: compact.is_some(), front, middle, cluster_bits, big })
    }

    /// Where entry `number` lies. `None` if no image is that long.
    pub(super) fn place(&self, number: u64) -> Option<Place> {
        if !self.compact {
            let offset = self.start.checked_add(number.checked_mul(8)?)?;
            return Some(Place { offset, bytes: 8, slot: 0 });
        }
        let (in_front, rest) = (number.min(self.front), number.saturating_sub(self.front));
        let (in_middle, behind) = (rest.min(self.middle), rest.saturating_sub(self.middle));
        let short = rest < self.middle && number >= self.front;
        let at = self
            .start
            .checked_add(in_front.checked_mul(4)?)?
            .checked_add(in_middle.checked_mul(2)?)?
            .checked_add(behind.checked_mul(4)?)?;
        let (bytes, entry_bytes) = if short { (32, 2) } else { (8, 4) };
        let slot = (at % bytes / entry_bytes) as usize;
        Some(Place { offset: at - at % bytes, bytes: bytes as usize, slot })
    }

    /// Reads one entry from the bytes at its [`Place`].
    ///
    /// # Errors
    /// [`MapError::Damaged`] for what no writer makes.
    pub(super) fn entry(&self, place: Place, bytes: &[u8]) -> Result<Entry, MapError> {
        let entry = if self.compact { self.compact_entry(place, bytes)? } else { full_entry(bytes) };
        match entry {
            Entry::Head { within, .. } if u64::from(within) >= 1 << self.cluster_bits => {
                Err(MapError::Damaged("an extent starts behind its logical cluster"))
            }
            entry => Ok(entry),
        }
    }

    fn compact_entry(&self, place: Place, pack: &[u8]) -> Result<Entry, MapError> {
        let slots = if place.bytes == 32 { 16 } else { 2 };
        // A block count needs 12 bits even where offsets would do with fewer.
        let low_bits = self.cluster_bits.max(12);
        let field_bits = (place.bytes - 4) * 8 / slots;
        let field = |slot: usize| {
            let bit = slot * field_bits;
            let word = u32_at(pack, bit / 8) >> (bit % 8);
            ((word & ((1 << low_bits) - 1)) as u16, (word >> low_bits & 3) as u8)
        };
        let (low, kind) = field(place.slot);
        if kind == KIND_REST {
            let blocks = (low & BLOCKS_FLAG != 0).then_some(low & !BLOCKS_FLAG);
            if blocks.is_some() && !self.big {
                return Err(MapError::Damaged("a block count where there is none"));
            }
            return Ok(Entry::Rest { blocks });
        }
        // The pack has the address before its first head; each head in front of this one adds what it
        // takes. Entries that are no heads lead back to theirs, which may be in an earlier pack.
        let mut blocks = u32::from(!self.big);
        let mut slot = place.slot;
        while slot > 0 {
            slot -= 1;
            let (low, kind) = field(slot);
            if kind != KIND_REST {
                blocks += 1;
            } else if !self.big {
                let Some(head) = slot.checked_sub(usize::from(low)) else { break };
                slot = head;
                blocks += 1;
            } else if low & BLOCKS_FLAG != 0 {
                // It is right behind its head, which is counted by this.
                slot = slot.saturating_sub(1);
                blocks += u32::from(low & !BLOCKS_FLAG);
            } else if low < 2 {
                return Err(MapError::Damaged("a distance to a head without a block count"));
            } else {
                // To the entry with the block count, one behind the head.
                let Some(count) = slot.checked_sub(usize::from(low) - 2) else { break };
                slot = count;
            }
        }
        let base = u32_at(pack, place.bytes - 4);
        // Off by one below zero on purpose: a file at block 0 of an image without block counts.
        let block = base.wrapping_add(blocks);
        Ok(Entry::Head { kind: head_kind(kind), within: low, block, partial: false })
    }
}

fn full_entry(bytes: &[u8]) -> Entry {
    let advice = u16_at(bytes, 0);
    let kind = (advice & 3) as u8;
    if kind == KIND_REST {
        let distance = u16_at(bytes, 4);
        return Entry::Rest { blocks: (distance & BLOCKS_FLAG != 0).then_some(distance & !BLOCKS_FLAG) };
    }
    Entry::Head {
        kind: head_kind(kind),
        within: u16_at(bytes, 2),
        block: u32_at(bytes, 4),
        partial: advice & 0x8000 != 0,
    }
}
