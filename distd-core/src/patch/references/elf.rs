//! Layouts of ELF files.

use super::layout::Extent;

/// First address of bytes that a loader puts nowhere; their distances are those in the file.
const UNLOADED: u64 = 1 << 46;

/// Most program headers read.
const HEADERS_MAX: usize = 64;

/// Bytes at the start of a file in which the head of an ELF file is looked for. A kernel image has
/// its setup code before its kernel.
pub(in crate::patch) const HEAD_BYTES: usize = 64 << 10;

/// Returns the extents of a file by its first bytes: those of the ELF file in it, or nothing.
/// Places are offsets in the file.
pub(in crate::patch) fn extents(head: &[u8], file: u16) -> Vec<Extent> {
    let head = &head[..head.len().min(HEAD_BYTES)];
    let mut from = 0;
    while let Some(at) = head[from..].windows(4).position(|four| four == b"\x7fELF") {
        let start = from + at;
        if let Some(extents) = of_elf(&head[start..], start, file) {
            return extents;
        }
        from = start + 4;
    }
    Vec::new()
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Extents of the little-endian ELF file whose head is `elf`, and which lies at `start`.
fn of_elf(elf: &[u8], start: usize, file: u16) -> Option<Vec<Extent>> {
    let wide = match elf.get(4..7)? {
        [2, 1, 1] => true,
        [1, 1, 1] => false,
        _ => return None,
    };
    let word = if wide { 8 } else { 4 };
    let place = usize::try_from(number(elf, if wide { 0x20 } else { 0x1C }, word)?).ok()?;
    let size = number(elf, if wide { 0x36 } else { 0x2A }, 2)? as usize;
    let count = number(elf, if wide { 0x38 } else { 0x2C }, 2)? as usize;
    let mut parts: Vec<(usize, u64, usize)> = Vec::new();
    for index in 0..count.min(HEADERS_MAX) {
        let at = place.checked_add(index * size)?;
        const LOAD: u64 = 1;
        if number(elf, at, 4)? != LOAD {
            continue;
        }
        // Offset, address and size in the file; narrow headers have the flags behind them.
        let field = |n: usize| number(elf, at.checked_add(if wide { 8 } else { 4 } * n)?, word);
        let (offset, address, len) = (field(1)?, field(2)?, field(4)?);
        let offset = usize::try_from(offset).ok()?.checked_add(start)?;
        parts.push((offset, address, usize::try_from(len).ok()?));
    }
    parts.retain(|(_, _, len)| *len > 0);
    parts.sort_unstable();
    let mut out = Vec::new();
    let unloaded = |at: usize| Extent { at, file, address: UNLOADED.wrapping_add(at as u64) };
    let mut end = 0;
    for (at, address, len) in parts {
        if at > end || out.is_empty() {
            out.push(unloaded(end));
        }
        out.push(Extent { at, file, address });
        end = at.checked_add(len)?;
    }
    out.push(unloaded(end));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Head of an ELF file with one part: 0x300 bytes at offset 0x100 have the address 0x4100.
    fn elf(wide: bool) -> Vec<u8> {
        let mut head = vec![0; 0x100];
        head[..7].copy_from_slice(&[0x7F, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1]);
        let word = if wide { 8 } else { 4 };
        let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_le_bytes());
        let (place, size, count) = if wide { (0x20, 0x36, 0x38) } else { (0x1C, 0x2A, 0x2C) };
        put(place, 0x40);
        put(size, 0x38);
        put(count, 1);
        put(0x40, 1);
        put(0x40 + word, 0x100);
        put(0x40 + 2 * word, 0x4100);
        put(0x40 + 4 * word, 0x300);
        head
    }

    #[test]
    fn loaded_parts_have_their_addresses() {
        for wide in [false, true] {
            let extents = extents(&[b"some setup \x7fELF code".to_vec(), elf(wide)].concat(), 5);
            let starts: Vec<_> = extents.iter().map(|extent| (extent.at, extent.address)).collect();
            assert_eq!(starts, [(0, UNLOADED), (0x114, 0x4100), (0x414, UNLOADED + 0x414)]);
            assert!(extents.iter().all(|extent| extent.file == 5));
        }
    }

    #[test]
    fn a_damaged_head_gives_extents_or_nothing() {
        for wide in [false, true] {
            let whole = elf(wide);
            for at in 0..whole.len() {
                let _ = extents(&whole[..at], 0);
                for value in [0, 1, 0x7F, 0xFF] {
                    let mut bad = whole.clone();
                    bad[at] = value;
                    let found = extents(&bad, 0);
                    assert!(found.is_sorted_by_key(|extent| extent.at));
                }
            }
        }
    }
}
