//! Listing of the names in an artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};

use crate::cut::erofs::{Attributes, Reader, is_packed_inode};
use crate::cut::{ReadAt, RegionKind, Regions, Volume, volumes};

/// Most names listed. Further files have no name here: some of them are then reported as new
/// although they are not, and the report says so.
const NAMES_MAX: usize = 1 << 20;
/// Most bytes of all names together.
const NAMES_BYTES_MAX: usize = 64 << 20;

/// Fields of an inode that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) modified: (i64, u32),
    pub(super) attributes: Attributes,
    /// Whether this name is the first one of its inode.
    pub(super) first: bool,
}

/// Names in an artifact.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Inode of each name; `None` in an artifact without inodes.
    pub(super) names: BTreeMap<Box<[u8]>, Option<Inode>>,
    /// Ranges of the times in the inodes, in order of discovery.
    pub(super) times: Vec<Range<u64>>,
    /// Ranges of the data addresses and inode numbers, in order of discovery.
    pub(super) addresses: Vec<Range<u64>>,
    /// Offsets of the images whose names are listed.
    pub(super) images: Vec<u64>,
    /// Whether no name was left out.
    pub(super) complete: bool,
    pub(super) name_bytes: usize,
}

impl Listing {
    /// Lists the names in the directories of images, in partitions or not, and the names of the
    /// regions of anything else, without headers of archives.
    pub(super) fn of<R: ReadAt + ?Sized>(artifact: &R, regions: &Regions) -> Self {
        let mut listing = Self { complete: true, ..Self::default() };
        for volume in volumes(artifact) {
            let image = volume.reader(artifact);
            if Reader::open(&image).and_then(|reader| listing.add_image(&volume, &reader)).is_none() {
                listing.add_regions(regions, &volume);
            }
        }
        listing
    }

    /// Adds the names of the regions in a volume.
    fn add_regions(&mut self, regions: &Regions, volume: &Volume) {
        let files = regions
            .all()
            .iter()
            .filter(|region| region.kind != RegionKind::Metadata && volume.range.contains(&region.start));
        for name in files.filter_map(|region| regions.name(region)) {
            // A long file has many regions.
            if !self.names.contains_key(name) && !self.add(name, None) {
                break;
            }
        }
    }

    /// Adds the names of an image; adds none, and returns `None`, if the image is not sound.
    fn add_image<R: ReadAt + ?Sized>(&mut self, volume: &Volume, reader: &Reader<'_, R>) -> Option<()> {
        let mut listing = Self { complete: true, ..Self::default() };
        let mut linked = BTreeSet::new();
        let base = volume.range.start;
        let at = |range: Range<u64>| base + range.start..base + range.end;
        reader.entries(|entry| {
            let links = entry.attributes.links;
            let first = match entry.raw {
                Some(raw) if links > 1 => linked.insert(raw.times().start),
                _ => true,
            };
            if first && let Some(raw) = entry.raw {
                listing.times.push(at(raw.times()));
                listing.addresses.push(at(raw.address()));
            }
            let inode = Inode { modified: entry.modified, attributes: entry.attributes, first };
            if listing.add(&volume.name(entry.path), Some(inode)) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        self.complete &= listing.complete;
        self.name_bytes += listing.name_bytes;
        self.names.extend(listing.names);
        self.times.extend(listing.times);
        self.addresses.extend(listing.addresses);
        self.images.push(base);
        Some(())
    }

    fn add(&mut self, name: &[u8], inode: Option<Inode>) -> bool {
        self.name_bytes += name.len();
        if self.names.len() == NAMES_MAX || self.name_bytes > NAMES_BYTES_MAX {
            self.complete = false;
            return false;
        }
        self.names.insert(name.into(), inode);
        true
    }

    /// Returns whether the artifact has the name `path`.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        is_packed_inode(path) || self.names.contains_key(path)
    }
}
