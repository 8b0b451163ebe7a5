//! Search for the packed blocks of SquashFS images, and their grouping into views.

use std::collections::BTreeMap;
use std::ops::Range;

use super::SQUASHFS;
use super::map::{BlockMap, Content};
use crate::bounds::VIEW_BYTES_MAX;
use crate::cut::squashfs::{Reader, Tail};
use crate::cut::{ReadAt, Regions, Volume, volumes};
use crate::patch::view::error::NoView;
use crate::patch::view::find::{Found, Group, packed_region_at, split_by_weight};
use crate::patch::view::format::PackedFile;

/// Approximate bytes of content in one view: a device loses that much of an update's patches when
/// one of the view's chunks is damaged, and its cores share the packing of views.
const GROUP_BYTES: u64 = 16 << 20;

/// Ends of files by the block of fragments that has them.
type Ends = BTreeMap<u32, Vec<(Range<u32>, Vec<u8>)>>;

/// Finds the packed files, blocks of fragments and tables of SquashFS images, in partitions or not;
/// see [`find`](crate::patch::view::find). A block of fragments is wanted if one of the names in it
/// is.
pub(in crate::patch::view) fn find<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    mut wanted: impl FnMut(&[u8], &[Range<u64>]) -> bool,
) -> Found {
    let mut found = Found::default();
    for volume in volumes(artifact) {
        let image = volume.reader(artifact);
        if let Some(reader) = Reader::open(&image) {
            let mut in_image = InImage { volume: &volume, regions, files: Vec::new(), without: Vec::new() };
            if in_image.add(&reader, &mut wanted).is_some() {
                let InImage { mut files, without, .. } = in_image;
                found.without.extend(without);
                files.sort_by_key(|file| file.parts.first().map(|part| part.start));
                let weight = |file: &PackedFile| file.blocks.as_ref().map_or(0, BlockMap::weight);
                let groups = split_by_weight(files, GROUP_BYTES, weight);
                found.groups.extend(groups.into_iter().map(|files| Group { format: &SQUASHFS, files }));
            }
        }
    }
    found
}

/// Files found in one image.
struct InImage<'a> {
    volume: &'a Volume,
    regions: &'a Regions,
    files: Vec<PackedFile>,
    without: Vec<(Vec<u8>, NoView)>,
}

impl InImage<'_> {
    /// `None` if the image is not sound.
    fn add<R: ReadAt + ?Sized>(
        &mut self,
        reader: &Reader<'_, R>,
        wanted: &mut impl FnMut(&[u8], &[Range<u64>]) -> bool,
    ) -> Option<()> {
        let base = self.volume.range.start;
        let map = |start: u64, content| BlockMap {
            packing: reader.packing(),
            block_bytes: reader.block_bytes(),
            start: base + start,
            content,
        };
        let mut ends = Ends::new();
        reader.files(|file| {
            let name = self.volume.name(file.path);
            if let Some(Tail { fragment, offset, len }) = file.tail {
                let range = offset..offset.checked_add(len)?;
                ends.entry(fragment).or_default().push((range, name.clone()));
            }
            if file.blocks.iter().all(|block| block.is_stored() || block.bytes() == 0) {
                return Some(());
            }
            if file.size > VIEW_BYTES_MAX {
                self.without.push((name, NoView::TooLong));
                return Some(());
            }
            let len: u64 = file.blocks.iter().map(|block| u64::from(block.bytes())).sum();
            let range = base + file.start..base + file.start + len;
            if wanted(&name, std::slice::from_ref(&range)) {
                self.push(name, range, map(file.start, Content::File(file.blocks.to_vec())));
            }
            Some(())
        })?;
        for fragment in reader.fragments().iter().filter(|fragment| !fragment.len.is_stored()) {
            let mut inside = ends.remove(&fragment.index()).unwrap_or_default();
            inside.sort_by_key(|(range, _)| (range.start, range.end));
            // Equal files share their end: the first one found has it, as it has the blocks. A
            // hostile image may state any range.
            let mut done = 0;
            inside.retain(|(range, _)| {
                let is_apart = range.start >= done;
                if is_apart {
                    done = range.end;
                }
                is_apart
            });
            let (name, inner) = (self.volume.name(&fragment.name()), fragment.range());
            let range = base + inner.start..base + inner.end;
            let parts = std::slice::from_ref(&range);
            if wanted(&name, parts) || inside.iter().any(|(_, path)| wanted(path, parts)) {
                self.push(name, range, map(fragment.start, Content::Fragment(fragment.len, inside)));
            }
        }
        for (name, inner) in reader.tables() {
            let name = self.volume.name(name);
            let range = base + inner.start..base + inner.end;
            if wanted(&name, std::slice::from_ref(&range)) {
                let content = Content::Table(inner.end - inner.start);
                self.push(name, range, map(inner.start, content));
            }
        }
        Some(())
    }

    /// Adds a file, if its bytes are a region of the artifact.
    fn push(&mut self, name: Vec<u8>, range: Range<u64>, map: BlockMap) {
        let region = packed_region_at(self.regions, range.start);
        if region.is_some_and(|(end, found)| end == range.end && found == Some(&name[..])) {
            let blocks = Some(map);
            self.files.push(PackedFile { blocks, ..PackedFile::new(name, vec![range]) });
        } else {
            self.without.push((name, NoView::Shared));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut::squashfs::Packing;

    #[test]
    fn the_parts_of_a_block_of_fragments_cover_it_whatever_it_says() {
        let names = |ends: &[(u32, u32)], len: u64| {
            let ends = ends.iter().map(|(from, to)| (*from..*to, format!("{from}").into_bytes())).collect();

            let content = Content::Fragment(crate::cut::squashfs::BlockLen::of_packed(9), ends);
            let map = BlockMap { packing: Packing::Gzip, block_bytes: 4096, start: 0, content };
            map.named(b"/fragment-0", 10..10 + len)
        };
        for (ends, len) in
            [(&[(0, 5), (5, 9)][..], 9), (&[(2, 5), (7, 9)], 12), (&[(0, 50)], 9), (&[(40, 50)], 9), (&[], 3)]
        {
            let parts = names(ends, len);
            assert_eq!(parts.first().map(|(_, range)| range.start), Some(10));
            assert_eq!(parts.last().map(|(_, range)| range.end), Some(10 + len));
            assert!(parts.windows(2).all(|two| two[0].1.end == two[1].1.start), "{parts:?}");
        }
        assert_eq!(names(&[(2, 5)], 9)[1], (b"2".to_vec(), 12..15));
    }
}
