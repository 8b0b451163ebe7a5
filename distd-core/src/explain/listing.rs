//! Listing of the names in an artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};

use crate::cut::erofs::{Attributes, PACKED_INODE_NAME, Reader};
use crate::cut::{ReadAt, RegionKind, Regions};

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
    /// Whether no name was left out.
    pub(super) complete: bool,
    pub(super) name_bytes: usize,
}

impl Listing {
    /// Lists the names in the directories of an image. For any other artifact, lists the names of
    /// its regions, without headers of archives.
    pub(super) fn of<R: ReadAt + ?Sized>(artifact: &R, regions: &Regions) -> Self {
        Reader::open(artifact).and_then(|reader| Self::of_image(&reader)).unwrap_or_else(|| {
            let mut listing = Self { complete: true, ..Self::default() };
            let files = regions.all().iter().filter(|region| region.kind != RegionKind::Metadata);
            for name in files.filter_map(|region| regions.name(region)) {
                // A long file has many regions.
                if !listing.names.contains_key(name) && !listing.add(name, None) {
                    break;
                }
            }
            listing
        })
    }

    fn of_image<R: ReadAt + ?Sized>(reader: &Reader<'_, R>) -> Option<Self> {
        let mut listing = Self { complete: true, ..Self::default() };
        let mut linked = BTreeSet::new();
        reader.entries(|entry| {
            let links = entry.attributes.links;
            let first = match entry.raw {
                Some(raw) if links > 1 => linked.insert(raw.times().start),
                _ => true,
            };
            if first && let Some(raw) = entry.raw {
                listing.times.push(raw.times());
                listing.addresses.push(raw.address());
            }
            let inode = Inode { modified: entry.modified, attributes: entry.attributes, first };
            if listing.add(entry.path, Some(inode)) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Some(listing)
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
        path == PACKED_INODE_NAME || self.names.contains_key(path)
    }
}
