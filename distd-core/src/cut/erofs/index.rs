//! Cluster index of a compressed file: one entry per logical cluster, in one of three encodings.
//!
//! *Full* entries are 8 bytes each. *Compact* entries come in packs that share one block address: 8
//! bytes for 2 entries, and optionally 32 bytes for 16. This module does no I/O and keeps no state:
//! the caller passes bytes and gets an entry.

use super::MapError;
use crate::cut::bytes::{u16_at, u32_at};

/// Content of an index entry, which describes one logical cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// An extent starts in this logical cluster.
    Head {
        kind: HeadKind,
        /// Offset in the logical cluster at which the extent starts, bytes.
        within: u16,
        /// First block of the extent's physical cluster.
        block: u32,
        /// Whether the physical cluster holds more than this extent.
        partial: bool,
    },
    /// The extent of an earlier logical cluster continues.
    Rest {
        /// Blocks of the physical cluster. Only the first entry behind a head has this count.
        blocks: Option<u16>,
    },
}

/// Storage of an extent, named in its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadKind {
    Plain,
    /// Compressed with the inode's first algorithm.
    First,
    /// Compressed with the inode's second algorithm.
    Second,
}

/// Flag in the distance field of an entry: the field holds a count of blocks instead.
const BLOCKS_FLAG: u16 = 1 << 11;

const KIND_REST: u8 = 2;

fn head_kind(kind: u8) -> HeadKind {
    match kind {
        0 => HeadKind::Plain,
        1 => HeadKind::First,
        _ => HeadKind::Second,
    }
}

/// Layout of an index: where each entry lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index {
    /// Image offset of the first entry.
    pub(super) start: u64,
    /// Number of logical clusters, which is the number of entries.
    pub(super) count: u64,
    pub(super) compact: bool,
    /// Compact index only: number of leading 4-byte entries. They are followed by `middle` 2-byte
    /// entries, then by 4-byte entries again.
    front: u64,
    middle: u64,
    /// Log2 of the bytes of a logical cluster.
    pub(super) cluster_bits: u32,
    /// Whether physical clusters of the first algorithm have a block count; in a compact index, of
    /// either algorithm.
    pub(super) big: bool,
}

/// Place of one entry: the offset in the image and the length of its pack (or of the full entry
/// itself), and the entry's slot in the pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: usize,
    slot: usize,
}

impl Index {
    /// Lays out the index of a file of `size` bytes. `start` is a multiple of 8. `compact` is
    /// `None` for a full index, else whether 2-byte entries are in use. The parts of a compact
    /// index are sized by the blocks of the file's content, not by its logical clusters.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] for logical clusters that are too large for the encoding.
    pub(super) fn new(
        start: u64,
        size: u64,
        (block_bits, cluster_bits): (u32, u32),
        compact: Option<bool>,
        big: bool,
    ) -> Result<Self, MapError> {
        let blocks = size.div_ceil(1 << block_bits);
        let count = size.div_ceil(1 << cluster_bits);
        // The 2-byte entries start at a multiple of 32, so that their packs do not cross blocks.
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

    /// Returns the place of entry `number`; `None` if no image is long enough to contain it.
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

    /// Decodes one entry from the bytes at its [`Place`].
    ///
    /// # Errors
    /// [`MapError::Damaged`] for an entry that no writer makes.
    pub(super) fn entry(&self, place: Place, bytes: &[u8]) -> Result<Entry, MapError> {
        let entry = if self.compact { self.compact_entry(place, bytes)? } else { full_entry(bytes) };
        match entry {
            Entry::Head { within, .. } if u64::from(within) >= 1 << self.cluster_bits => {
                Err(MapError::Damaged("an extent that starts behind its logical cluster"))
            }
            entry => Ok(entry),
        }
    }

    fn compact_entry(&self, place: Place, pack: &[u8]) -> Result<Entry, MapError> {
        let slots = if place.bytes == 32 { 16 } else { 2 };
        // A block count needs 12 bits even where offsets would need fewer.
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
                return Err(MapError::Damaged("a block count in a file without block counts"));
            }
            return Ok(Entry::Rest { blocks });
        }
        // The pack stores the block of its first head, or without block counts the number before
        // it. Each head in front of this one adds the blocks that it occupies. An entry that is not
        // a head leads back to its head, which may be in an earlier pack.
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
                // This entry is right behind its head; the count covers the head's blocks.
                slot = slot.saturating_sub(1);
                blocks += u32::from(low & !BLOCKS_FLAG);
            } else if low < 2 {
                return Err(MapError::Damaged("a distance to a head that skips the head's block count"));
            } else {
                // Go to the entry with the block count, which is one behind the head.
                let Some(count) = slot.checked_sub(usize::from(low) - 2) else { break };
                slot = count;
            }
        }
        let base = u32_at(pack, place.bytes - 4);
        // Wraps on purpose: for a file at block 0 of an image without block counts, the pack stores
        // -1.
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
