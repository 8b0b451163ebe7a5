//! Cost of a file system's own structures if less had changed in them: the same bytes with some
//! fields blanked on both sides, cut and compared again.

use std::io;
use std::ops::Range;

use super::ExplainError;
use super::chunks::{Held, list, scan};
use super::listing::Listing;
use crate::cut::erofs::{SUPERBLOCK_IDENTITY, SUPERBLOCK_TIMES};
use crate::cut::verity::is_hash_tree;
use crate::cut::{CutParams, ReadAt, Region, RegionKind, Regions};

/// Smallest saving that counts: this many bytes, and one part in `NOISE_PART` of the structures.
/// Different bytes pack a little better or worse whatever they mean, and a checksum is blanked with
/// the times.
const NOISE_BYTES: u64 = 64;
const NOISE_PART: u64 = 1000;

/// Cost of the structures on the wire, now and with fewer differences. Each number includes the
/// blanked fields of the numbers before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MetadataCost {
    /// Cost as they are.
    pub wire_bytes: u64,
    /// Cost with the same times everywhere.
    pub without_times: u64,
    /// Cost with, in addition, the same UUID and volume name.
    pub without_identity: u64,
    /// Cost with, in addition, the same data addresses and inode numbers.
    pub without_addresses: u64,
    /// Bytes before packing: as they are, and with the same times.
    #[serde(skip)]
    pub(super) raw: [u64; 2],
}

/// Metadata regions of an artifact, joined, with some fields blanked.
struct Structures<'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    /// Start of each region here and in the artifact.
    spans: Vec<(u64, u64)>,
    len: u64,
    regions: Regions,
    /// Blanked ranges of the artifact, sorted.
    blanks: Vec<Range<u64>>,
}

/// One side of the comparison: bytes, regions and names.
pub(super) struct Side<'a, R: ReadAt + ?Sized> {
    pub(super) artifact: &'a R,
    pub(super) regions: &'a Regions,
    pub(super) listing: &'a Listing,
}

/// Measures the structures of an image; all zeros for an artifact without structures.
pub(super) fn measure<A: ReadAt + ?Sized, B: ReadAt + ?Sized>(
    old: &Side<'_, A>,
    new: &Side<'_, B>,
    (params, level): (CutParams, i32),
) -> Result<MetadataCost, ExplainError> {
    let mut costs = [(0, 0); 4];
    for (blanked, cost) in costs.iter_mut().enumerate() {
        let old = Structures::of(old, blanked);
        let new = Structures::of(new, blanked);
        let all = |structures: &Regions| 0..structures.all().len();
        let held = list(&old, &old.regions, all(&old.regions), params, &|_| {}).map_err(ExplainError::Old)?;
        let held = Held::of([held]);
        let found = scan(&new, &new.regions, all(&new.regions), (params, level), &held, &|_| {});
        *cost = found.map_err(ExplainError::New)?.cost();
    }
    let mut wire = costs.map(|(_, wire)| wire);
    for step in 1..wire.len() {
        if wire[step] + NOISE_BYTES.max(wire[0] / NOISE_PART) > wire[step - 1] {
            wire[step] = wire[step - 1];
        }
    }
    let [wire_bytes, without_times, without_identity, without_addresses] = wire;
    let raw_without_times = if without_times < wire_bytes { costs[1].0.min(costs[0].0) } else { costs[0].0 };
    let raw = [costs[0].0, raw_without_times];
    Ok(MetadataCost { wire_bytes, without_times, without_identity, without_addresses, raw })
}

impl<'a, R: ReadAt + ?Sized> Structures<'a, R> {
    /// Joins the structures and blanks the first `blanked` of: times, identity, addresses.
    fn of(side: &Side<'a, R>, blanked: usize) -> Self {
        let listing = side.listing;
        let in_superblocks = |fields: &[Range<u64>]| -> Vec<Range<u64>> {
            let of_image = |base: &u64| {
                let base = *base;
                fields.iter().map(move |field| base + field.start..base + field.end).collect::<Vec<_>>()
            };
            listing.images.iter().flat_map(of_image).collect()
        };
        let mut blanks: Vec<Range<u64>> = Vec::new();
        if blanked > 0 {
            blanks.extend(in_superblocks(&SUPERBLOCK_TIMES));
            blanks.extend(listing.times.iter().cloned());
        }
        if blanked > 1 {
            blanks.extend(in_superblocks(&SUPERBLOCK_IDENTITY));
        }
        if blanked > 2 {
            blanks.extend(listing.addresses.iter().cloned());
        }
        // Ranges of a hostile image may overlap; each of them is blanked all the same.
        blanks.sort_unstable_by_key(|blank| (blank.start, blank.end));
        let is_tree = |region: &Region| side.regions.name(region).is_some_and(is_hash_tree);
        let is_own = |region: &&Region| region.kind == RegionKind::Metadata && !is_tree(region);
        let own = || side.regions.all().iter().filter(is_own);
        let parts = own().map(|region| (region.len, RegionKind::Metadata, None));
        let regions = Regions::from_parts(parts).expect("no more regions than the artifact has");
        let spans = regions.all().iter().zip(own()).map(|(here, there)| (here.start, there.start)).collect();
        Self { artifact: side.artifact, spans, len: regions.total(), regions, blanks }
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Structures<'_, R> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buf.is_empty() {
            let index = self.spans.partition_point(|(here, _)| *here <= offset) - 1;
            let (here, there) = self.spans[index];
            let end = self.spans.get(index + 1).map_or(self.len, |(next, _)| *next);
            let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buf.len());
            let (piece, rest) = buf.split_at_mut(count);
            let start = there + (offset - here);
            self.artifact.read_exact_at(piece, start)?;
            self.blank(piece, start);
            buf = rest;
            offset += count as u64;
        }
        Ok(())
    }
}

impl<R: ReadAt + ?Sized> Structures<'_, R> {
    fn blank(&self, piece: &mut [u8], start: u64) {
        let end = start + piece.len() as u64;
        // No blank is longer than 32 bytes.
        let first = self.blanks.partition_point(|blank| blank.start + 32 <= start);
        for blank in self.blanks[first..].iter().take_while(|blank| blank.start < end) {
            let (from, to) = (blank.start.max(start), blank.end.min(end));
            if from < to {
                piece[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_joined_without_files_and_blanked() {
        let image: Vec<u8> = (0..200).collect();
        let parts = [
            (50, RegionKind::Metadata, None),
            (50, RegionKind::File, None),
            (100, RegionKind::Metadata, None),
        ];
        let regions = Regions::from_parts(parts).expect("small");
        let listing = Listing { times: vec![10..20, 95..105, 190..210], ..Listing::default() };
        let side = Side { artifact: &image, regions: &regions, listing: &listing };
        let structures = Structures::of(&side, 1);
        let mut whole: Vec<u8> = (0..50).chain(100..200).collect();
        whole[10..20].fill(0);
        whole[50..55].fill(0);
        whole[140..150].fill(0);
        for at in 0..150 {
            for len in [1, 7, 40, 150 - at] {
                let mut buf = vec![1; len.min(150 - at)];
                structures.read_exact_at(&mut buf, at as u64).expect("inside");
                assert_eq!(buf, whole[at..at + buf.len()], "{at}");
            }
        }
        assert!(structures.read_exact_at(&mut [0; 2], 149).is_err());
    }
}
