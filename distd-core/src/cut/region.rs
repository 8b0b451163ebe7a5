//! Regions: the borders that a format reader gives to the cutter.

use std::ops::Range;

use super::{NAME_SEPARATOR, ReadAt, disk, gzip, path_in_partition, volume};
use crate::bounds::{ARTIFACT_BYTES_MAX, PATH_BYTES_MAX, REGIONS_MAX};

/// Content of a region, as far as its format reader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RegionKind {
    /// The reader knows nothing about these bytes.
    Plain,
    /// Structures around files: superblock, inodes, directories, attributes; headers in an archive.
    Metadata,
    /// Data of one file, padding included.
    File,
    /// Compressed data of one file, whole physical clusters as they lie in the artifact.
    Packed,
}

/// One run of an artifact's bytes with a cut at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Offset of the first byte in the artifact.
    pub start: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Kind of content.
    pub kind: RegionKind,
    name_start: u32,
    name_len: u16,
}

impl Region {
    /// Offset of the first byte behind the region.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Most bytes of name hints kept. Later regions have no name: it is only a hint.
pub(super) const NAMES_BYTES_MAX: usize = 64 << 20;

/// The regions of one artifact: sorted, without gap or overlap, covering all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    list: Vec<Region>,
    names: Vec<u8>,
}

impl Regions {
    /// Returns one region over all `len` bytes; none if `len` is zero.
    pub fn plain(len: u64) -> Self {
        let mut regions = Self::default();
        regions.push(len, RegionKind::Plain, None);
        regions
    }

    /// Lays regions of the given lengths one behind the other. Zero lengths are left out. A name
    /// hint longer than [`PATH_BYTES_MAX`] is dropped.
    ///
    /// `None` if there are more than [`REGIONS_MAX`] or they add up to more than
    /// [`ARTIFACT_BYTES_MAX`].
    pub fn from_parts<'a>(
        parts: impl IntoIterator<Item = (u64, RegionKind, Option<&'a [u8]>)>,
    ) -> Option<Self> {
        let mut regions = Self::default();
        for (len, kind, name) in parts {
            let total = regions.total().checked_add(len)?;
            if total > ARTIFACT_BYTES_MAX || (len > 0 && regions.list.len() == REGIONS_MAX) {
                return None;
            }
            regions.push(len, kind, name);
        }
        Some(regions)
    }

    pub(super) fn push(&mut self, len: u64, kind: RegionKind, name: Option<&[u8]>) {
        if len == 0 {
            return;
        }
        let mut region = Region { start: self.total(), len, kind, name_start: 0, name_len: 0 };
        if let Some(name) = name
            && name.len() <= PATH_BYTES_MAX
            && self.names.len() + name.len() <= NAMES_BYTES_MAX
        {
            region.name_start = self.names.len() as u32;
            region.name_len = name.len() as u16;
            self.names.extend_from_slice(name);
        }
        self.list.push(region);
    }

    /// All regions in artifact order.
    pub fn all(&self) -> &[Region] {
        &self.list
    }

    /// Path of the file that a region belongs to, if known: raw bytes without a leading slash. The
    /// path comes from the artifact, unchecked: use it in messages and to pair old files with new
    /// ones, never to open a file.
    pub fn name(&self, region: &Region) -> Option<&[u8]> {
        let start = region.name_start as usize;
        let name = self.names.get(start..start + usize::from(region.name_len))?;
        (!name.is_empty()).then_some(name)
    }

    /// Length of the artifact, bytes.
    pub fn total(&self) -> u64 {
        self.list.last().map_or(0, Region::end)
    }

    /// Joins the regions between which there is no border: those that end where `is_border` is
    /// false. Joined regions keep a kind and a name that they have in common, and a name also where
    /// they are parts of one file.
    #[must_use]
    pub fn with_borders(&self, is_border: impl Fn(u64) -> bool) -> Self {
        let mut out = Self::default();
        let mut open: Vec<&Region> = Vec::new();
        for (index, region) in self.list.iter().enumerate() {
            open.push(region);
            if index + 1 < self.list.len() && !is_border(region.end()) {
                continue;
            }
            let len = open.iter().map(|region| region.len).sum();
            let same = |one: &&&Region| (one.kind, self.name(one)) == (region.kind, self.name(region));
            if open.iter().all(|one| same(&one)) {
                out.push(len, region.kind, self.name(region));
            } else {
                let file = self.name(region).map(file_of);
                let is_one = file.is_some() && open.iter().all(|one| self.name(one).map(file_of) == file);
                let kind = if is_one { RegionKind::File } else { RegionKind::Plain };
                out.push(len, kind, file.filter(|_| is_one));
            }
            open.clear();
        }
        out
    }

    /// Splits the regions into at most `n` ranges of indices into [`all`](Self::all), in order,
    /// with about the same number of bytes each.
    ///
    /// Cutting the ranges separately and concatenating the results equals cutting the whole,
    /// because a region border is always a cut. Fewer than `n` ranges come back when a region is
    /// too long to share; none for an empty artifact.
    pub fn split(&self, n: usize) -> Vec<Range<usize>> {
        let n = n.max(1) as u128;
        let total = u128::from(self.total());
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut from = 0;
        for (index, region) in self.list.iter().enumerate() {
            let target = total * (parts.len() as u128 + 1) / n;
            if u128::from(region.end()) >= target {
                parts.push(from..index + 1);
                from = index + 1;
                // A long region may reach past several targets.
                while from < self.list.len()
                    && total * (parts.len() as u128 + 1) / n <= u128::from(region.end())
                {
                    parts.push(from..from);
                }
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

/// Returns the name of the file in a file system to which a region with this name belongs.
fn file_of(name: &[u8]) -> &[u8] {
    let path = path_in_partition(name).unwrap_or(name);
    let end = path.windows(NAME_SEPARATOR.len()).position(|two| two == NAME_SEPARATOR);
    &name[..name.len() - end.map_or(0, |end| path.len() - end)]
}

/// Finds the regions of an artifact.
///
/// Never fails: an artifact of an unknown format, or one that is damaged, built to hurt or
/// unreadable, is one plain region (and an unreadable artifact fails later, when it is cut). Reads
/// only metadata, except for gzip files, which are read whole. Time and memory are bounded by a
/// small multiple of the length, whatever the content says.
pub fn regions<R: ReadAt + ?Sized>(artifact: &R) -> Regions {
    let mut budget = gzip::Budget::of(artifact.len());
    volume::regions(artifact, &mut budget)
        .or_else(|| disk::regions(artifact, &mut budget))
        .unwrap_or_else(|| Regions::plain(artifact.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_artifact_has_no_region_and_a_foreign_one_has_one() {
        assert!(regions(&[][..]).all().is_empty());
        assert_eq!(regions(&[1; 5000][..]), Regions::plain(5000));
        assert_eq!(Regions::plain(5000).all().len(), 1);
    }

    #[test]
    fn names_are_kept_and_too_long_ones_are_dropped() {
        let long = vec![b'x'; PATH_BYTES_MAX + 1];
        let regions = Regions::from_parts([
            (5, RegionKind::File, Some(&b"a/b"[..])),
            (0, RegionKind::File, Some(b"empty")),
            (7, RegionKind::Plain, None),
            (9, RegionKind::File, Some(&long)),
        ])
        .expect("small");
        let names: Vec<_> = regions.all().iter().map(|r| regions.name(r)).collect();
        assert_eq!(names, [Some(&b"a/b"[..]), None, None]);
        assert_eq!(regions.total(), 21);
        assert_eq!(Regions::from_parts([(u64::MAX, RegionKind::Plain, None); 2]), None);
    }

    #[test]
    fn regions_without_a_border_between_them_are_joined() {
        let parts = [
            (10, RegionKind::Metadata, &b"esp///a.efi//"[..]),
            (20, RegionKind::File, b"esp///a.efi//.linux"),
            (30, RegionKind::File, b"esp///b"),
            (40, RegionKind::Metadata, b""),
        ];
        let regions = Regions::from_parts(
            parts.map(|(len, kind, name)| (len, kind, Some(name).filter(|name| !name.is_empty()))),
        )
        .expect("small");
        let joined = |borders: &[u64]| -> Vec<_> {
            let joined = regions.with_borders(|at| borders.contains(&at));
            let named = joined
                .all()
                .iter()
                .map(|region| (region.len, region.kind, joined.name(region).unwrap_or_default().to_vec()));
            named.collect()
        };
        assert_eq!(regions.with_borders(|_| true), regions);
        assert_eq!(joined(&[30, 60])[0], (30, RegionKind::File, b"esp///a.efi".to_vec()));
        assert_eq!(
            joined(&[30, 60])[1..],
            [(30, RegionKind::File, b"esp///b".to_vec()), (40, RegionKind::Metadata, Vec::new())]
        );
        assert_eq!(
            joined(&[10]),
            [(10, RegionKind::Metadata, b"esp///a.efi//".to_vec()), (90, RegionKind::Plain, Vec::new())]
        );
        assert_eq!(joined(&[]), [(100, RegionKind::Plain, Vec::new())]);
    }

    proptest! {
        #[test]
        fn splitting_keeps_every_region_once_and_in_order(
            lens in prop::collection::vec(prop_oneof![0u64..10, 0u64..100_000], 0..60), n in 0usize..9,
        ) {
            let regions = Regions::from_parts(lens.iter().map(|len| (*len, RegionKind::Plain, None)))
                .expect("small");
            let parts = regions.split(n);
            prop_assert!(parts.len() <= n.max(1));
            prop_assert_eq!(
                parts.into_iter().flatten().collect::<Vec<_>>(),
                (0..regions.all().len()).collect::<Vec<_>>()
            );
        }
    }
}
