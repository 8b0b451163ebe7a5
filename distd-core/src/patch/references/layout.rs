//! Addresses of bytes: where a program's loader puts the parts of its file.

use super::coder::{Coder, Number};
use crate::patch::PatchError;

/// Bits of an address within a file's space. Addresses are sign-extended from them, as those of a
/// kernel are.
const ADDRESS_BITS: u32 = 48;

/// Lowest bits of a key, which hold the address.
pub(super) const LOW: u64 = (1 << ADDRESS_BITS) - 1;

/// Address of a byte: in the high bits the number of its file, in [`LOW`] the address itself.
pub(super) type Key = u64;

/// Part of a base or target whose bytes have consecutive addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::patch) struct Extent {
    /// Place of the first byte. The extent ends where the next one begins.
    pub(in crate::patch) at: usize,
    /// Number of the file that the bytes belong to, in this base or target.
    pub(in crate::patch) file: u16,
    /// Address of the first byte.
    pub(in crate::patch) address: u64,
}

/// Addresses of the bytes of a base or target. Bytes before the first extent have their places as
/// addresses, in file 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::patch) struct Layout {
    /// Extents, by ascending places.
    pub(in crate::patch) extents: Vec<Extent>,
}

/// Most extents of a layout.
pub(super) const EXTENTS_MAX: usize = 1 << 14;

/// Returns the key of an address in a file.
pub(super) fn key(file: u16, address: u64) -> Key {
    u64::from(file) << ADDRESS_BITS | address & LOW
}

/// Returns the address of a key, sign-extended.
pub(super) fn address(key: Key) -> u64 {
    ((key << (64 - ADDRESS_BITS)) as i64 >> (64 - ADDRESS_BITS)) as u64
}

/// Returns the key with this address in the same file.
pub(super) fn beside(key: Key, address: u64) -> Key {
    key & !LOW | address & LOW
}

/// Returns the key whose address is higher by `shift`, in the same file.
pub(super) fn moved(key: Key, shift: u64) -> Key {
    beside(key, key.wrapping_add(shift))
}

/// Run of bytes with consecutive addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) at: usize,
    pub(super) end: usize,
    pub(super) key: Key,
}

impl Layout {
    /// Layout of `len` bytes, of as many of its extents as a payload may have.
    pub(in crate::patch) fn of(mut extents: Vec<Extent>, len: usize) -> Self {
        extents.retain(|extent| extent.at <= len);
        extents.truncate(EXTENTS_MAX);
        Self { extents }
    }

    /// Returns all stretches of a base or target of `len` bytes.
    pub(super) fn stretches(&self, len: usize) -> Vec<Stretch> {
        let first = self.extents.first().map_or(len, |extent| extent.at.min(len));
        let ends = self.extents.iter().skip(1).map(|extent| extent.at.min(len)).chain([len]);
        let extents = self.extents.iter().zip(ends);
        let stretches = extents.map(|(extent, end)| Stretch {
            at: extent.at,
            end,
            key: key(extent.file, extent.address),
        });
        std::iter::once(Stretch { at: 0, end: first, key: 0 })
            .chain(stretches)
            .filter(|stretch| stretch.at < stretch.end)
            .collect()
    }

    /// Codes a layout of a base or target of `len` bytes.
    ///
    /// # Errors
    /// [`PatchError::Damaged`] for a layout outside the bytes.
    pub(super) fn code<C: Coder>(&self, coder: &mut C, len: usize) -> Result<Self, PatchError> {
        let damaged = || PatchError::Damaged("a layout is out of bounds");
        let mut numbers: [Number; 4] = Default::default();
        let count = numbers[0].code(coder, self.extents.len() as u64);
        if count > EXTENTS_MAX as u64 {
            return Err(damaged());
        }
        let none = Extent { at: 0, file: 0, address: 0 };
        let mut extents: Vec<Extent> = Vec::new();
        for n in 0..count as usize {
            let last = n.checked_sub(1).map_or(none, |n| extents[n]);
            let wanted = self.extents.get(n).copied().unwrap_or(none);
            let step = numbers[1].code(coder, wanted.at.saturating_sub(last.at) as u64);
            let file = numbers[2].code(coder, u64::from(wanted.file.saturating_sub(last.file)));
            // An address mostly has the distance of its place, or is a multiple of a page away.
            let expected = last.address.wrapping_add(step);
            let moved = numbers[3].signed(coder, wanted.address.wrapping_sub(expected) as i64);
            let at = usize::try_from(step).ok().and_then(|step| last.at.checked_add(step));
            let file = u16::try_from(file).ok().and_then(|file| last.file.checked_add(file));
            extents.push(Extent {
                at: at.filter(|at| *at <= len).ok_or_else(damaged)?,
                file: file.ok_or_else(damaged)?,
                address: expected.wrapping_add(moved as u64),
            });
        }
        Ok(Self { extents })
    }
}

/// Lookup of keys by places that mostly ascend.
#[derive(Debug)]
pub(super) struct Cursor {
    stretches: Vec<Stretch>,
    index: usize,
}

impl Cursor {
    pub(super) fn new(layout: &Layout, len: usize) -> Self {
        Self { stretches: layout.stretches(len), index: 0 }
    }

    /// Returns the key of the byte at `at`, and the number of bytes from it to the end of its
    /// stretch, at least 1.
    pub(super) fn key(&mut self, at: usize) -> (Key, usize) {
        let holds = |stretch: &Stretch| stretch.at <= at && at < stretch.end;
        if !self.stretches.get(self.index).is_some_and(holds) {
            let behind = self.stretches.partition_point(|stretch| stretch.at <= at);
            self.index = behind.saturating_sub(1);
        }
        match self.stretches.get(self.index).filter(|stretch| holds(stretch)) {
            Some(stretch) => (moved(stretch.key, (at - stretch.at) as u64), stretch.end - at),
            None => (at as u64, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coder::{Decoder, Encoder};
    use super::*;

    #[test]
    fn addresses_survive_and_are_found() {
        let extent = |at, file, address| Extent { at, file, address };
        let layout = Layout::of(
            vec![
                extent(10, 0, 0xFFFF_FFFF_8100_0000),
                extent(50, 0, 0),
                extent(50, 3, 0x40_0000),
                extent(70, 3, 0x60_0000),
                extent(81, 3, 0),
            ],
            80,
        );
        let mut encoder = Encoder::new();
        assert_eq!(layout.code(&mut encoder, 80), Ok(layout.clone()));
        let bytes = encoder.finish();
        assert_eq!(Layout::default().code(&mut Decoder::new(&bytes), 80), Ok(layout.clone()));
        let short = Layout::default().code(&mut Decoder::new(&bytes), 60);
        assert_eq!(short, Err(PatchError::Damaged("a layout is out of bounds")));
        let mut cursor = Cursor::new(&layout, 80);
        for (at, file, address_of, left) in [
            (0, 0, 0, 10),
            (9, 0, 9, 1),
            (12, 0, 0xFFFF_FFFF_8100_0002, 38),
            (79, 3, 0x60_0009, 1),
            (50, 3, 0x40_0000, 20),
        ] {
            let (found, to_end) = cursor.key(at);
            assert_eq!((found >> 48, address(found), to_end), (file, address_of, left), "{at}");
        }
    }
}
