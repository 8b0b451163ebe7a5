//! Attribution of fresh chunks to paths and kinds.

use std::collections::{BTreeMap, BTreeSet};

use super::chunks::Scan;
use super::contents::Content;
use super::listing::Listing;
use super::metadata::MetadataCost;
use super::report::{Count, Kind, KindCost, PathCost, Times, Uncompressed};
use crate::cut::erofs::is_packed_inode;
use crate::cut::verity::is_hash_tree;
use crate::cut::{Region, RegionKind, Regions};
use crate::patch::pair::fold;

/// A file that shares less than one part in this many of its bytes with an old file, and has no old
/// namesake, is new: licence texts and zeros are in many files.
const SHARED_PART: u64 = 4;

/// Statistics of a path of the new artifact.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stat {
    /// Bytes of the file in the artifact.
    pub(super) bytes: u64,
    pub(super) held: u64,
    pub(super) raw: u64,
    pub(super) wire: u64,
    /// Part of `wire` that is compressed clusters.
    pub(super) packed_wire: u64,
    /// Largest number of held bytes in one region, and the old region that they come from.
    from: Option<(u64, u32)>,
}

/// Statistics by path, and the sums for bytes that belong to no path.
pub(super) struct Stats<'a> {
    pub(super) paths: BTreeMap<&'a [u8], Stat>,
    metadata: (u64, u64),
    hash_trees: (u64, u64),
    unknown: (u64, u64),
}

impl<'a> Stats<'a> {
    pub(super) fn of(regions: &'a Regions, scan: &Scan) -> Self {
        let mut stats =
            Self { paths: BTreeMap::new(), metadata: (0, 0), hash_trees: (0, 0), unknown: (0, 0) };
        // Headers of archives are structures, although their regions have names.
        let file_name =
            |region: &Region| regions.name(region).filter(|_| region.kind != RegionKind::Metadata);
        for region in regions.all() {
            if let Some(name) = file_name(region) {
                stats.paths.entry(name).or_default().bytes += region.len;
            }
        }
        for held in &scan.held {
            let Some(name) = file_name(&regions.all()[held.region as usize]) else { continue };
            let stat = stats.paths.entry(name).or_default();
            stat.held += held.bytes;
            if stat.from.is_none_or(|(most, _)| held.bytes > most) {
                stat.from = Some((held.bytes, held.from));
            }
        }
        for fresh in &scan.fresh {
            let (raw, wire) = (u64::from(fresh.raw), u64::from(fresh.wire));
            let region = &regions.all()[fresh.region as usize];
            let sum = match (region.kind, regions.name(region)) {
                (RegionKind::File | RegionKind::Packed, Some(name)) => {
                    let stat = stats.paths.entry(name).or_default();
                    if region.kind == RegionKind::Packed {
                        stat.packed_wire += wire;
                    }
                    (&mut stat.raw, &mut stat.wire)
                }
                (RegionKind::Metadata, Some(name)) if is_hash_tree(name) => {
                    (&mut stats.hash_trees.0, &mut stats.hash_trees.1)
                }
                (RegionKind::Metadata, _) => (&mut stats.metadata.0, &mut stats.metadata.1),
                _ => (&mut stats.unknown.0, &mut stats.unknown.1),
            };
            *sum.0 += raw;
            *sum.1 += wire;
        }
        stats
    }

    /// Returns whether the file at `path` has compressed clusters to send.
    pub(super) fn has_fresh_clusters(&self, path: &[u8]) -> bool {
        self.paths.get(path).is_some_and(|stat| stat.packed_wire > 0)
    }

    /// Returns whether the packed inode of an image has compressed clusters to send.
    pub(super) fn has_fresh_fragments(&self) -> bool {
        self.paths.iter().any(|(path, stat)| is_packed_inode(path) && stat.packed_wire > 0)
    }

    /// Returns one line per path and kind, most bytes first.
    pub(super) fn costs(
        &self,
        old: &Listing,
        origins: &BTreeMap<&[u8], Vec<u8>>,
        contents: &BTreeMap<Box<[u8]>, Content>,
        metadata: &MetadataCost,
    ) -> Vec<PathCost> {
        let mut costs = Vec::new();
        let mut push = |path: Option<&[u8]>, kind, old_path: Option<&Vec<u8>>, (raw_bytes, wire_bytes)| {
            if raw_bytes > 0 || wire_bytes > 0 {
                let (path, old_path) = (path.map(<[u8]>::to_vec), old_path.cloned());
                costs.push(PathCost { path, kind, old_path, raw_bytes, wire_bytes });
            }
        };
        for (path, stat) in &self.paths {
            if is_packed_inode(path) {
                push(None, Kind::Fragments, None, (stat.raw, stat.wire));
                continue;
            }
            // Amount by which the file's clusters cost more than their content would.
            let content = contents.get(*path).filter(|content| !content.failed);
            let wire = content.map_or(0, |content| stat.packed_wire.saturating_sub(content.wire));
            let raw = part(stat.raw, wire, stat.wire);
            let origin = origins.get(path);
            let kind = match origin {
                _ if old.has(path) => Kind::Changed,
                Some(_) => Kind::Renamed,
                None => Kind::New,
            };
            push(Some(path), Kind::Compression, None, (raw, wire));
            push(Some(path), kind, origin, (stat.raw - raw, stat.wire - wire));
        }
        let (raw, wire) = self.metadata;
        // The times were measured on the structures alone, which include chunks that are also in a
        // file.
        let noise = metadata.wire_bytes - metadata.without_times;
        let noise = (part(raw, metadata.raw[0] - metadata.raw[1], metadata.raw[0]), noise.min(wire));
        push(None, Kind::Times, None, noise);
        push(None, Kind::Metadata, None, (raw - noise.0, wire - noise.1));
        push(None, Kind::HashTree, None, self.hash_trees);
        push(None, Kind::Unknown, None, self.unknown);
        costs.sort_by(|a, b| (b.wire_bytes, &a.path, a.kind).cmp(&(a.wire_bytes, &b.path, b.kind)));
        costs
    }

    /// Returns the old path of each file whose path is new.
    pub(super) fn origins(&self, old: &Listing, old_regions: &Regions) -> BTreeMap<&'a [u8], Vec<u8>> {
        let unmatched = || self.paths.iter().filter(|(path, _)| !old.has(path));
        let wanted: BTreeSet<Vec<u8>> = unmatched().map(|(path, _)| fold(path)).collect();
        let mut folded: BTreeMap<Vec<u8>, &[u8]> = BTreeMap::new();
        if !wanted.is_empty() {
            for name in old.names.keys() {
                let key = fold(name);
                if wanted.contains(&key) {
                    // If several old names match, the last in order of name counts, mostly the
                    // newest.
                    folded.insert(key, name);
                }
            }
        }
        let mut origins = BTreeMap::new();
        for (path, stat) in unmatched() {
            let from =
                stat.from.and_then(|(_, region)| old_regions.name(&old_regions.all()[region as usize]));
            let by_content = from.filter(|_| stat.held * SHARED_PART >= stat.bytes);
            if let Some(origin) = by_content.or_else(|| folded.get(&fold(path)).copied()) {
                origins.insert(*path, origin.to_vec());
            }
        }
        origins
    }

    /// Counts the files with a new path and no fresh chunk.
    pub(super) fn moved(&self, old: &Listing) -> Count {
        let moved = self.paths.iter().filter(|(path, stat)| stat.raw == 0 && stat.held > 0 && !old.has(path));
        moved.fold(Count::default(), |count, (_, stat)| Count {
            files: count.files + 1,
            bytes: count.bytes + stat.bytes,
        })
    }

    /// Compares the times in the inodes of both images.
    pub(super) fn times(&self, old: &Listing, new: &Listing) -> Option<Times> {
        let mut times = Times::default();
        for (path, inode) in &new.names {
            let (Some(new), Some(Some(old))) = (inode.filter(|inode| inode.first), old.names.get(path))
            else {
                continue;
            };
            times.inodes += 1;
            if new.modified != old.modified {
                times.differ += 1;
                let same_content = self.paths.get(&**path).is_none_or(|stat| stat.raw == 0);
                times.differ_only_in_time += u64::from(same_content && new.attributes == old.attributes);
            }
        }
        (times.inodes > 0).then_some(times)
    }

    /// Returns the delta with contents in place of clusters; `None` if there are no clusters to
    /// send.
    pub(super) fn uncompressed(
        &self,
        contents: &BTreeMap<Box<[u8]>, Content>,
        (raw, wire): (u64, u64),
    ) -> Option<Uncompressed> {
        let mut sum = Uncompressed { raw_bytes: raw, wire_bytes: wire, ..Uncompressed::default() };
        let mut replace = |stat: &Stat, content: Content| {
            let clusters = part(stat.raw, stat.packed_wire, stat.wire);
            sum.raw_bytes = sum.raw_bytes - clusters + content.raw;
            sum.wire_bytes = sum.wire_bytes - stat.packed_wire + content.wire;
        };
        let packed = self.paths.values().any(|stat| stat.packed_wire > 0);
        let whole = contents.values().all(|content| !content.failed);
        for (path, content) in contents {
            let stat = self.paths.get(&**path).copied().unwrap_or_default();
            if content.failed {
                sum.files_not_unpacked += 1;
            } else {
                replace(&stat, *content);
                sum.files += 1;
            }
        }
        // The packed inode holds content of the other files, so it costs nothing more once all of
        // them are unpacked.
        for (_, stat) in self.paths.iter().filter(|(path, _)| whole && is_packed_inode(path)) {
            replace(stat, Content::default());
        }
        packed.then_some(sum)
    }
}

/// Sums the costs per kind.
pub(super) fn by_kind(costs: &[PathCost]) -> Vec<KindCost> {
    let sum = |kind| {
        let own = || costs.iter().filter(move |cost| cost.kind == kind);
        KindCost {
            kind,
            paths: own().count() as u64,
            raw_bytes: own().map(|cost| cost.raw_bytes).sum(),
            wire_bytes: own().map(|cost| cost.wire_bytes).sum(),
        }
    };
    Kind::ALL.into_iter().map(sum).filter(|cost| cost.paths > 0).collect()
}

/// Returns the share of `whole` that `of` has in `all`.
pub(super) fn part(whole: u64, of: u64, all: u64) -> u64 {
    (u128::from(whole) * u128::from(of.min(all)) / u128::from(all.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::super::chunks::Fresh;
    use super::*;
    use crate::cut::erofs::PACKED_INODE_NAME;

    #[test]
    fn the_packed_inode_is_fragments_and_plain_regions_are_unknown() {
        let parts = [
            (1000, RegionKind::Metadata, None),
            (1000, RegionKind::Packed, Some(PACKED_INODE_NAME)),
            (1000, RegionKind::Plain, None),
            (1000, RegionKind::Packed, Some(&b"f"[..])),
        ];
        let regions = Regions::from_parts(parts).expect("small");
        let fresh = |region: u32| Fresh { key: [region as u8; 16], region, raw: 1000, wire: 100 + region };
        let scan = Scan { fresh: (0..4).map(fresh).collect(), ..Scan::default() };
        let stats = Stats::of(&regions, &scan);
        assert!(stats.has_fresh_clusters(PACKED_INODE_NAME) && stats.has_fresh_clusters(b"f"));
        let content = |wire, failed| Content { raw: 500, wire, failed };
        let costs = |contents: &BTreeMap<Box<[u8]>, Content>| {
            let costs =
                stats.costs(&Listing::default(), &BTreeMap::new(), contents, &MetadataCost::default());
            costs.into_iter().map(|cost| (cost.kind, cost.wire_bytes)).collect::<BTreeMap<_, _>>()
        };
        let contents = BTreeMap::from([(b"f"[..].into(), content(40, false))]);
        let others = [(Kind::Fragments, 101), (Kind::Unknown, 102), (Kind::Metadata, 100)];
        let split = [(Kind::New, 40), (Kind::Compression, 63)];
        assert_eq!(costs(&contents), others.into_iter().chain(split).collect());
        let sum = stats.uncompressed(&contents, (4000, 406)).expect("clusters");
        assert_eq!((sum.wire_bytes, sum.files), (406 - 101 - 103 + 40, 1));

        // A file that could not be unpacked keeps its cost and kind, and so does the packed inode.
        let contents = BTreeMap::from([(b"f"[..].into(), content(0, true))]);
        assert_eq!(costs(&contents), others.into_iter().chain([(Kind::New, 103)]).collect());
        let sum = stats.uncompressed(&contents, (4000, 406)).expect("clusters");
        assert_eq!((sum.wire_bytes, sum.files_not_unpacked), (406, 1));
    }
}
