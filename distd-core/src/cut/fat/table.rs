//! Chains of clusters.

use std::ops::Range;

use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at};

/// Bytes of the table kept in memory. Chains mostly go forward.
const WINDOW: u64 = 64 << 10;

/// Number of times that the table may be read. Fragmented files jump in it, but mostly by little.
const LOADS: u64 = 256;

/// Table of the next cluster of each cluster.
pub(super) struct Table<'v, R: ?Sized> {
    volume: &'v R,
    range: Range<u64>,
    bits: u8,
    window: Vec<u8>,
    /// Offset in the table of the window.
    from: u64,
    /// Bytes that may still be loaded. A chain may jump from one end of the table to the other.
    left: u64,
}

impl<'v, R: ReadAt + ?Sized> Table<'v, R> {
    /// Opens the table in `range`, whose entries have `bits` bits; `None` if it cannot be read.
    pub(super) fn new(volume: &'v R, range: Range<u64>, bits: u8) -> Option<Self> {
        let mut table = Self { volume, range, bits, window: Vec::new(), from: 0, left: 0 };
        table.left = LOADS * (table.range.end - table.range.start) + (1 << 20);
        table.load(0)?;
        Some(table)
    }

    fn load(&mut self, at: u64) -> Option<()> {
        let len = self.range.end - self.range.start;
        // An entry of 12 bits may lie on both sides of a border.
        self.from = (at / WINDOW * WINDOW).min(len.saturating_sub(1));
        self.window.resize((len - self.from).min(WINDOW + 1) as usize, 0);
        self.left = self.left.checked_sub(self.window.len() as u64)?;
        self.volume.read_exact_at(&mut self.window, self.range.start + self.from).ok()
    }

    /// Returns the cluster behind `cluster` in its chain; `Some(None)` at the end of a chain,
    /// `None` if the table cannot be read. The number may be any.
    pub(super) fn next(&mut self, cluster: u32) -> Option<Option<u32>> {
        let at = u64::from(cluster) * u64::from(self.bits) / 8;
        let bytes = u64::from(self.bits).div_ceil(8);
        if at < self.from || at + bytes > self.from + self.window.len() as u64 {
            self.load(at)?;
        }
        let within = (at - self.from) as usize;
        let entry = self.window.get(within..within + bytes as usize)?;
        let next = match self.bits {
            12 if cluster.is_multiple_of(2) => u32::from(u16_at(entry, 0) & 0xFFF),
            12 => u32::from(u16_at(entry, 0) >> 4),
            16 => u32::from(u16_at(entry, 0)),
            _ => u32_at(entry, 0) & 0x0FFF_FFFF,
        };
        // The last eight numbers of each width end a chain, or mark a bad cluster.
        let end = match self.bits {
            12 => 0xFF7,
            16 => 0xFFF7,
            _ => 0x0FFF_FFF7,
        };
        Some((next >= 2 && next < end).then_some(next))
    }
}

/// Clusters that belong to a file or directory: one bit for each.
pub(super) struct Clusters {
    count: u64,
    taken: Vec<u64>,
}

impl Clusters {
    pub(super) fn new(count: u64) -> Self {
        Self { count, taken: vec![0; count.div_ceil(64) as usize] }
    }

    /// Takes a cluster; returns false if it is taken or does not exist.
    pub(super) fn take(&mut self, cluster: u32) -> bool {
        let Some(index) = u64::from(cluster).checked_sub(2).filter(|index| *index < self.count) else {
            return false;
        };
        if self.is_taken(index) {
            return false;
        }
        self.taken[index as usize / 64] |= 1 << (index % 64);
        true
    }

    /// Returns whether the cluster with this index, from 0 on, is taken.
    pub(super) fn is_taken(&self, index: u64) -> bool {
        index < self.count && self.taken[index as usize / 64] >> (index % 64) & 1 == 1
    }

    /// Returns the index behind the run of clusters that are taken, or not, as `index` is; the run
    /// is followed up to `until`.
    pub(super) fn run_end(&self, index: u64, until: u64) -> u64 {
        let taken = self.is_taken(index);
        let mut end = index + 1;
        while end < self.count.min(until) && self.is_taken(end) == taken {
            // Whole words of equal bits are passed at once.
            let word = self.taken[end as usize / 64];
            let whole = end.is_multiple_of(64) && word == if taken { u64::MAX } else { 0 };
            end += if whole { 64 } else { 1 };
        }
        end.min(self.count)
    }
}
