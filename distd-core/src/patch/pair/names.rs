//! Lookup of files by name: exact, and with version numbers folded; and the base that a file of the
//! same name offers.

use std::ops::Range;

use super::anchors::Hit;
use super::ranges::bytes_of;
use super::spans::{ANCHOR_MARGIN, AROUND_MARGIN, covers, scaled};
use super::{ChunkSpan, Of, Pairing, Span, Unit};
use crate::cut::{NAME_SEPARATOR, ReadAt, Regions, path_in_partition};

/// Largest file that serves as base as a whole, bytes.
pub(super) const WHOLE_FILE_MAX: u64 = 6 << 20;

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
    /// Sorted paths of the files in partitions, without the names of the partitions.
    paths: Vec<(&'a [u8], u32)>,
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
        let path = |(name, file): &(&'a [u8], u32)| Some((path_in_partition(name)?, *file));
        let mut paths: Vec<_> = exact.iter().filter_map(path).collect();
        paths.sort_unstable();
        Self { region_starts, files, exact, folded, paths }
    }

    pub(super) fn chunks_of_region(&self, region: usize) -> Range<u32> {
        self.region_starts[region]..self.region_starts[region + 1]
    }

    pub(super) fn exact(&self, name: &[u8]) -> Option<&File> {
        let found = self.exact.binary_search_by_key(&name, |(name, _)| name).ok()?;
        Some(&self.files[self.exact[found].1 as usize])
    }

    /// Returns the file at this path in any partition; the first in order of partition names.
    pub(super) fn in_partition(&self, path: &[u8]) -> Option<&File> {
        let at = self.paths.partition_point(|(other, _)| *other < path);
        let (other, file) = self.paths.get(at)?;
        (*other == path).then(|| &self.files[*file as usize])
    }

    pub(super) fn folded(&self, name: &[u8]) -> Option<&File> {
        let name = fold(name);
        let behind = self.folded.partition_point(|(other, _)| *other <= name);
        let (other, file) = self.folded.get(behind.checked_sub(1)?)?;
        (*other == name).then(|| &self.files[*file as usize])
    }
}

impl<R: ReadAt + ?Sized, S: ReadAt + ?Sized> Pairing<'_, R, S> {
    /// Returns the base found by name: that of the namesake with the most hits.
    pub(super) fn by_name(&self, unit: &Unit, len: u64, hits: &[Hit]) -> Vec<Span> {
        let region = &self.new.regions.all()[unit.region];
        let Some(name) = self.new.regions.name(region) else { return Vec::new() };
        let own = self.new_files.exact(name);
        let mut best: Option<(usize, Vec<Span>)> = None;
        for (of, file) in self.namesakes(name) {
            // If both files have the same number of parts (a body and a tail), only the matching
            // part counts; otherwise the whole file.
            let part = own
                .filter(|own| own.chunks.len() == file.chunks.len())
                .and_then(|own| own.chunks.iter().position(|part| part.contains(&unit.chunks.start)));
            let parts = part.map_or(&file.chunks[..], |part| &file.chunks[part..=part]);
            let spans = self.of_parts(of, parts, unit, len, hits);
            let spans: Vec<Span> = spans.into_iter().flat_map(|span| self.usable(span)).collect();
            let count = hits.iter().filter(|hit| covers(&spans, hit)).count();
            if !spans.is_empty() && best.as_ref().is_none_or(|(most, _)| count > *most) {
                best = Some((count, spans));
            }
        }
        let (_, spans) = best.unwrap_or_default();
        match self.around(unit, len, &spans) {
            Some(narrow) if hits.iter().all(|hit| !covers(&spans, hit) || covers(&narrow, hit)) => narrow,
            _ => spans,
        }
    }

    /// Returns all parts of a namesake. If they are long, returns windows: around the hits, most
    /// hits first, or without hits at the same relative position.
    fn of_parts(&self, of: Of, parts: &[Range<u32>], unit: &Unit, len: u64, hits: &[Hit]) -> Vec<Span> {
        let whole: Vec<_> = parts.iter().map(|chunks| Span { of, chunks: chunks.clone() }).collect();
        let bytes = parts.iter().map(|chunks| bytes_of(self.chunks(of), chunks.clone())).sum();
        if bytes <= WHOLE_FILE_MAX {
            return whole;
        }
        let inside: Vec<Hit> = hits.iter().copied().filter(|hit| covers(&whole, hit)).collect();
        if !inside.is_empty() {
            return self.windows(&inside, (2 * len + 8 * ANCHOR_MARGIN).min(WHOLE_FILE_MAX));
        }
        let region = &self.new.regions.all()[unit.region];
        let into = self.new.chunks[unit.chunks.start as usize].offset - region.start;
        let at = scaled(into, region.len, bytes);
        self.slice(of, parts, at.saturating_sub(len / 2), 2 * len + AROUND_MARGIN)
    }

    /// Returns the files with a matching name, best first.
    pub(super) fn namesakes(&self, name: &[u8]) -> Vec<(Of, &File)> {
        let inner = inner(name);
        let mut found = Vec::new();
        // A file inside a packed one is mostly also in the file system of some partition. A file of
        // a partition is no base of itself.
        let is_inside = inner.is_some() && inner != path_in_partition(name);
        if let Some(inner) = inner.filter(|_| is_inside) {
            let new = &self.new_files;
            found.extend(new.exact(inner).or_else(|| new.in_partition(inner)).map(|file| (Of::New, file)));
        }
        let files = &self.old_files;
        let old = |name| {
            files
                .exact(name)
                .or_else(|| files.folded(name))
                .or_else(|| files.in_partition(path_in_partition(name).unwrap_or(name)))
        };
        found.extend(old(name).map(|file| (Of::Old, file)));
        found.extend(inner.and_then(old).map(|file| (Of::Old, file)));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkHash;
    use crate::cut::RegionKind;

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
    fn a_file_is_found_by_its_path_in_any_partition() {
        let parts = ["b///usr/x", "root///usr/x", "usr/y", "root///boot/i//usr/x"];
        let parts = parts.map(|name| (10, RegionKind::File, Some(name.as_bytes())));
        let regions = Regions::from_parts(parts).expect("small");
        let hash = |at: u64| ChunkHash::of(&at.to_le_bytes());
        let chunks: Vec<_> =
            (0..4).map(|at| ChunkSpan { offset: 10 * at, len: 10, hash: hash(at) }).collect();
        let files = Files::of(&regions, &chunks);
        let chunks = |path: &str| files.in_partition(path.as_bytes()).map(|file| file.chunks.clone());
        assert_eq!(chunks("usr/x"), Some(std::iter::once(0..1).collect()));
        assert_eq!(chunks("usr/y"), None, "it is in no partition");
        assert_eq!(chunks("usr"), None);
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
