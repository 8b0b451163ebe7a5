//! Sampled anchors: places that are recognised wherever their content moved.
//!
//! A gear hash rolls over the bytes. Where its top bits are zero, the place is an anchor, and the
//! whole hash, which depends on the 64 bytes before, is its key. Both sides sample the same places
//! of the same content, so equal keys nearly always mean equal content; a wrong guess costs bytes,
//! never correctness.

use std::collections::BTreeMap;
use std::io;

use super::{Of, Side};
use crate::cut::ReadAt;
use crate::random::splitmix;

/// Most anchors kept of one side: 64 MB. Content behind the last of them is not indexed.
pub const ANCHORS_MAX: usize = 4 << 20;

/// Smallest mean distance of anchors, log2 of bytes: a file of some KiB then has a few anchors.
const SHIFT_MIN: u32 = 10;

/// Most places of one key. A key with more is padding or part of a table, and does not help to find
/// a base.
const PLACES_MAX: usize = 4;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Bytes that a gear hash depends on: each shifts it by one of its 64 bits.
const WINDOW: usize = 64;

const GEAR: [u64; 256] = gear();

/// Pseudo-random numbers from splitmix64, started at zero so that they are the same everywhere.
const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let (mut n, mut state) = (0, 0u64);
    while n < 256 {
        table[n] = splitmix(&mut state);
        n += 1;
    }
    table
}

/// Place where an anchor of a unit was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    pub(super) of: Of,
    pub(super) chunk: u32,
}

/// Returns the sampling shift that keeps the anchors of `total` bytes well below [`ANCHORS_MAX`].
pub(super) fn shift_for(total: u64) -> u32 {
    (SHIFT_MIN..40).find(|shift| total >> shift <= ANCHORS_MAX as u64 / 2).unwrap_or(40)
}

/// Keys of anchors and the chunks that contain them.
pub(super) struct Anchors {
    shift: u32,
    /// Anchors of a scan, sorted.
    scanned: Vec<(u64, u32)>,
    /// Anchors inserted later; the first place of a key counts.
    added: BTreeMap<u64, u32>,
}

impl Anchors {
    pub(super) fn new(shift: u32) -> Self {
        Self { shift, scanned: Vec::new(), added: BTreeMap::new() }
    }

    /// Returns the keys of `bytes` and the offsets at which they end, except those whose window
    /// starts before `bytes`.
    pub(super) fn sample(&self, bytes: &[u8]) -> Vec<(u64, usize)> {
        let mut out = Vec::new();
        roll(bytes, 0, self.shift, |key, at| {
            if at >= WINDOW {
                out.push((key, at));
            }
        });
        out
    }

    /// Adds the anchors of a whole release.
    pub(super) fn scan<R: ReadAt + ?Sized>(&mut self, side: Side<'_, R>) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let (mut hash, mut at, mut index) = (0, 0, 0);
        let total = side.chunks.last().map_or(0, |chunk| chunk.offset + u64::from(chunk.len));
        while at < total && self.scanned.len() < ANCHORS_MAX {
            let len = READ_BYTES.min(usize::try_from(total - at).unwrap_or(READ_BYTES));
            side.bytes.read_exact_at(&mut buffer[..len], at)?;
            hash = roll(&buffer[..len], hash, self.shift, |key, within| {
                let place = at + within as u64;
                while side.chunks[index].offset + u64::from(side.chunks[index].len) <= place {
                    index += 1;
                }
                if self.scanned.len() < ANCHORS_MAX {
                    self.scanned.push((key, index as u32));
                }
            });
            at += len as u64;
        }
        self.scanned.sort_unstable();
        self.scanned.dedup();
        Ok(())
    }

    pub(super) fn insert(&mut self, key: u64, chunk: u32) {
        if self.added.len() < ANCHORS_MAX {
            self.added.entry(key).or_insert(chunk);
        }
    }

    /// Reports the chunks that contain a key, unless the scan found too many places to be of use.
    pub(super) fn find(&self, key: u64, mut report: impl FnMut(u32)) {
        let first = self.scanned.partition_point(|(other, _)| *other < key);
        let count =
            self.scanned[first..].iter().take(PLACES_MAX + 1).take_while(|(other, _)| *other == key).count();
        if count <= PLACES_MAX {
            self.scanned[first..first + count].iter().for_each(|(_, chunk)| report(*chunk));
        }
        if let Some(chunk) = self.added.get(&key) {
            report(*chunk);
        }
    }
}

/// Rolls `hash` over `bytes` and reports each anchor at its end.
fn roll(bytes: &[u8], mut hash: u64, shift: u32, mut anchor: impl FnMut(u64, usize)) -> u64 {
    let limit = 1u64 << (64 - shift);
    for (at, byte) in bytes.iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash < limit {
            anchor(hash, at);
        }
    }
    hash
}
