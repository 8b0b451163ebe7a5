//! Lookup of files by name: exact, and with version numbers folded.

use std::ops::Range;

use super::ChunkSpan;
use crate::cut::{NAME_SEPARATOR, Regions};

/// Returns the part of a name behind the last separator, the name inside a packed region; `None` if
/// there is none.
pub(super) fn inner(name: &[u8]) -> Option<&[u8]> {
    let at = name.windows(NAME_SEPARATOR.len()).rposition(|two| two == NAME_SEPARATOR)?;
    Some(&name[at + NAME_SEPARATOR.len()..]).filter(|inner| !inner.is_empty())
}

/// Returns the text behind the last dot of a path's last component; empty if it has no dot.
pub(super) fn extension(name: &[u8]) -> &[u8] {
    let file = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    file.iter().rposition(|byte| *byte == b'.').map_or(&[], |dot| &file[dot + 1..])
}

/// Replaces every version number in a name by `#`.
///
/// A version number is a run of digits, together with further digits that a single `.`, `-`, `_`,
/// `+`, `~` or `:` joins to it: `libfoo.so.1.2.3` and `libfoo.so.1.10` are `libfoo.so.#`,
/// `6.12.41+deb13-amd64` is `#+deb#-amd#`.
pub fn fold(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        if !name[at].is_ascii_digit() {
            out.push(name[at]);
            at += 1;
            continue;
        }
        out.push(b'#');
        loop {
            while name.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            match name.get(at..at + 2) {
                Some([b'.' | b'-' | b'_' | b'+' | b'~' | b':', digit]) if digit.is_ascii_digit() => at += 1,
                _ => break,
            }
        }
    }
    out
}

/// Chunks of all regions with one name.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) chunks: Vec<Range<u32>>,
    pub(super) bytes: u64,
}

/// Files of one release.
pub(super) struct Files<'a> {
    /// First chunk of each region, and at the end the number of chunks in all regions.
    region_starts: Vec<u32>,
    files: Vec<File>,
    /// Sorted names, each with the index of its file.
    exact: Vec<(&'a [u8], u32)>,
    /// Sorted folded names. If several files fold to the same name, the last in order of name
    /// counts, mostly the newest.
    folded: Vec<(Vec<u8>, u32)>,
}

impl<'a> Files<'a> {
    pub(super) fn of(regions: &'a Regions, chunks: &[ChunkSpan]) -> Self {
        let mut region_starts = Vec::with_capacity(regions.all().len() + 1);
        let mut named: Vec<(&[u8], usize)> = Vec::new();
        let mut next = 0;
        for (index, region) in regions.all().iter().enumerate() {
            region_starts.push(next);
            while chunks.get(next as usize).is_some_and(|chunk| chunk.offset < region.end()) {
                next += 1;
            }
            if let Some(name) = regions.name(region) {
                named.push((name, index));
            }
        }
        region_starts.push(next);
        named.sort_unstable();
        let (mut files, mut exact): (Vec<File>, Vec<(&[u8], u32)>) = (Vec::new(), Vec::new());
        for (name, index) in named {
            if exact.last().is_none_or(|(last, _)| *last != name) {
                exact.push((name, files.len() as u32));
                files.push(File::default());
            }
            if let Some(file) = files.last_mut() {
                file.chunks.push(region_starts[index]..region_starts[index + 1]);
                file.bytes += regions.all()[index].len;
            }
        }
        let mut folded: Vec<_> = exact.iter().map(|(name, file)| (fold(name), *file)).collect();
        folded.sort_unstable();
        Self { region_starts, files, exact, folded }
    }

    pub(super) fn chunks_of_region(&self, region: usize) -> Range<u32> {
        self.region_starts[region]..self.region_starts[region + 1]
    }

    pub(super) fn exact(&self, name: &[u8]) -> Option<&File> {
        let found = self.exact.binary_search_by_key(&name, |(name, _)| name).ok()?;
        Some(&self.files[self.exact[found].1 as usize])
    }

    pub(super) fn folded(&self, name: &[u8]) -> Option<&File> {
        let name = fold(name);
        let behind = self.folded.partition_point(|(other, _)| *other <= name);
        let (other, file) = self.folded.get(behind.checked_sub(1)?)?;
        (*other == name).then(|| &self.files[*file as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_fold_and_other_names_stay_apart() {
        for (a, b) in [
            ("usr/lib/modules/6.12.41+deb13-amd64/a.ko", "usr/lib/modules/6.12.48+deb13-amd64/a.ko"),
            ("usr/lib/libfoo.so.1.2.3", "usr/lib/libfoo.so.1.10"),
            ("boot/vmlinuz-6.1.0-50-amd64", "boot/vmlinuz-6.1.0-56-amd64"),
            ("lib/python3.11/x.cpython-311.pyc", "lib/python3.13/x.cpython-313.pyc"),
        ] {
            assert_eq!(fold(a.as_bytes()), fold(b.as_bytes()), "{a}");
        }
        for (a, b) in [("liba.so.1", "libb.so.1"), ("a-", "a-1"), ("1.a", "1a"), ("1..2", "1.2")] {
            assert_ne!(fold(a.as_bytes()), fold(b.as_bytes()), "{a} {b}");
        }
    }

    #[test]
    fn parts_of_names_are_found() {
        assert_eq!(inner(b"boot/initrd//usr/bin/mount"), Some(&b"usr/bin/mount"[..]));
        assert_eq!(inner(b"a//"), None);
        assert_eq!(inner(b"usr/bin/mount"), None);
        assert_eq!(extension(b"a.d/b.tar.gz"), b"gz");
        assert_eq!(extension(b"a.d/b"), b"");
    }
}
