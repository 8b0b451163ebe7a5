//! Entries of directories, with long names.

use crate::cut::bytes::{u16_at, u32_at};

/// Bytes of an entry.
pub(super) const ENTRY: usize = 32;

const READ_ONLY_HIDDEN_SYSTEM_VOLUME: u8 = 0x0F;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;

/// Offsets in an entry of the 13 characters of a part of a long name.
const LONG_CHARS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Most parts of a long name: 255 characters.
const LONG_PARTS_MAX: u8 = 20;

/// Meaning of one entry, together with the entries before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// No entry follows.
    End,
    /// A deleted entry, a label, or a part of a name.
    None,
    Dir {
        name: Vec<u8>,
        cluster: u32,
    },
    File {
        name: Vec<u8>,
        cluster: u32,
        size: u64,
    },
}

/// Collects the parts of long names, which stand before their entry, the last part first.
#[derive(Default)]
pub(super) struct Names {
    units: Vec<u16>,
    /// Number of the part that comes next, 0 when the name is whole.
    next: u8,
    checksum: u8,
}

impl Names {
    pub(super) fn entry(&mut self, raw: &[u8]) -> Entry {
        if raw[0] == 0 {
            return Entry::End;
        }
        if raw[0] == 0xE5 {
            (self.units, self.next) = (Vec::new(), 0);
            return Entry::None;
        }
        let attributes = raw[11];
        if attributes & 0x3F == READ_ONLY_HIDDEN_SYSTEM_VOLUME {
            self.part(raw);
            return Entry::None;
        }
        let long = self.take(raw);
        if attributes & VOLUME != 0 || raw[0] == b'.' {
            return Entry::None;
        }
        let name = long.unwrap_or_else(|| short_name(raw));
        let cluster = u32::from(u16_at(raw, 26)) | u32::from(u16_at(raw, 20)) << 16;
        if attributes & DIRECTORY != 0 {
            Entry::Dir { name, cluster }
        } else {
            Entry::File { name, cluster, size: u64::from(u32_at(raw, 28)) }
        }
    }

    fn part(&mut self, raw: &[u8]) {
        let (number, is_last) = (raw[0] & 0x3F, raw[0] & 0x40 != 0);
        if is_last && (1..=LONG_PARTS_MAX).contains(&number) {
            self.units = vec![0; usize::from(number) * LONG_CHARS.len()];
            (self.next, self.checksum) = (number, raw[13]);
        }
        if number == 0 || number != self.next || raw[13] != self.checksum {
            self.units.clear();
            self.next = 0;
            return;
        }
        let start = (usize::from(number) - 1) * LONG_CHARS.len();
        for (unit, at) in self.units.iter_mut().skip(start).zip(LONG_CHARS) {
            *unit = u16_at(raw, at);
        }
        self.next -= 1;
    }

    /// Returns the long name that the parts make for a short entry, if they are whole.
    fn take(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        let (units, parts_left) = (std::mem::take(&mut self.units), std::mem::take(&mut self.next));
        if units.is_empty() || parts_left != 0 || checksum(&raw[..11]) != self.checksum {
            return None;
        }
        let units = units.into_iter().take_while(|unit| *unit != 0 && *unit != 0xFFFF);
        let name: String =
            char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        (!name.is_empty()).then(|| name.into_bytes())
    }
}

fn checksum(short: &[u8]) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// Returns the short name, in small letters where the entry says so.
fn short_name(raw: &[u8]) -> Vec<u8> {
    let part = |range: std::ops::Range<usize>, small: bool| -> Vec<u8> {
        let end = raw[range.clone()].iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let bytes = &raw[range.start..range.start + end];
        if small { bytes.to_ascii_lowercase() } else { bytes.to_vec() }
    };
    let (mut name, extension) = (part(0..8, raw[12] & 0x08 != 0), part(8..11, raw[12] & 0x10 != 0));
    if !extension.is_empty() {
        name.push(b'.');
        name.extend(extension);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(name: &[u8; 11], attributes: u8) -> [u8; ENTRY] {
        let mut raw = [0; ENTRY];
        raw[..11].copy_from_slice(name);
        raw[11] = attributes;
        raw[26] = 7;
        raw[28] = 100;
        raw
    }

    fn long(number: u8, text: &str, of: &[u8; 11]) -> [u8; ENTRY] {
        let mut raw = [0xFF; ENTRY];
        (raw[0], raw[11], raw[12], raw[13]) = (number, READ_ONLY_HIDDEN_SYSTEM_VOLUME, 0, checksum(of));
        (raw[26], raw[27]) = (0, 0);
        for (at, unit) in LONG_CHARS.into_iter().zip(text.encode_utf16().chain([0])) {
            raw[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        raw
    }

    fn file(name: &str) -> Entry {
        Entry::File { name: name.into(), cluster: 7, size: 100 }
    }

    #[test]
    fn a_long_name_counts_when_its_parts_are_whole() {
        let of = b"LINUX-~1EFI";
        let mut names = Names::default();
        assert_eq!(names.entry(&long(0x42, "7-amd64.efi", of)), Entry::None);
        assert_eq!(names.entry(&long(1, "linux-6.12.11", of)), Entry::None);
        assert_eq!(names.entry(&short(of, 0)), file("linux-6.12.117-amd64.efi"));
        // The next entry has no long name.
        assert_eq!(names.entry(&short(of, 0)), file("LINUX-~1.EFI"));
        names.entry(&long(0x42, "7-amd64.efi", of));
        assert_eq!(names.entry(&short(of, 0)), file("LINUX-~1.EFI"), "a part is missing");
        names.entry(&long(0x41, "x", b"ANOTHER EFI"));
        assert_eq!(names.entry(&short(of, 0)), file("LINUX-~1.EFI"), "the parts are of another entry");
    }

    #[test]
    fn a_part_without_its_beginning_makes_no_name() {
        let of = b"LINUX-~1EFI";
        let mut deleted = short(of, 0);
        deleted[0] = 0xE5;
        for between in [deleted, short(b"README     ", 0)] {
            let mut names = Names::default();
            names.entry(&long(0x43, "behind", of));
            names.entry(&between);
            assert_eq!(names.entry(&long(2, "linux-6.12.11", of)), Entry::None);
            assert_eq!(names.entry(&long(1, "linux-6.12.11", of)), Entry::None);
            assert_eq!(names.entry(&short(of, 0)), file("LINUX-~1.EFI"));
        }
    }

    #[test]
    fn short_names_have_the_case_that_the_entry_says() {
        let mut raw = short(b"KERNEL  IMG", 0);
        raw[12] = 0x18;
        assert_eq!(Names::default().entry(&raw), file("kernel.img"));
        assert_eq!(Names::default().entry(&short(b"README     ", 0)), file("README"));
        assert_eq!(Names::default().entry(&short(b"EFI        ", 0x08)), Entry::None);
        let dir = Entry::Dir { name: b"EFI".to_vec(), cluster: 7 };
        assert_eq!(Names::default().entry(&short(b"EFI        ", 0x10)), dir);
    }
}
