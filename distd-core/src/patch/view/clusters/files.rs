//! Search for the compressed files of an image, and their grouping into views.

use std::ops::{ControlFlow, Range};

use super::{ANY, LZ4};
use crate::bounds::VIEW_BYTES_MAX;
use crate::cut::erofs::{Coding, Extent, ExtentData, Reader};
use crate::cut::{ReadAt, Regions, Volume, volumes};
use crate::patch::view::error::NoView;
use crate::patch::view::find::{Found, Group, packed_region_at, split_by_weight};
use crate::patch::view::format::{PackedFile, ViewFormat};
use crate::patch::view::map::{ClusterMap, Piece};

/// Approximate bytes of content in one view. A device must have room for that much, and loses that
/// much of an update's patches when one of the view's chunks is damaged. Each view costs an entry
/// and two payloads in its set, some hundred bytes.
const GROUP_BYTES: u64 = 32 << 20;

/// Finds the files of EROFS images, in partitions or not, that have clusters packed by LZ4, deflate
/// or zstd; see [`find`](crate::patch::view::find). `without` has all files that are too long for a
/// view, wanted or not.
pub(in crate::patch::view) fn find<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    mut wanted: impl FnMut(&[u8], &[Range<u64>]) -> bool,
) -> Found {
    let (mut found, mut files) = (Found::default(), Vec::new());
    for volume in volumes(artifact) {
        let image = volume.reader(artifact);
        if let Some(reader) = Reader::open(&image) {
            find_in(&volume, &reader, regions, &mut wanted, &mut found, &mut files);
        }
    }
    files.sort_by_key(|file| file.parts.first().map(|part| part.start));
    found.groups.extend(split_by_weight(files, GROUP_BYTES, weight).into_iter().map(group));
    found
}

/// Adds the files of the image in one volume.
fn find_in<R: ReadAt + ?Sized>(
    volume: &Volume,
    reader: &Reader<'_, R>,
    regions: &Regions,
    wanted: &mut impl FnMut(&[u8], &[Range<u64>]) -> bool,
    found: &mut Found,
    files: &mut Vec<PackedFile>,
) {
    let codecs = reader.codecs().unwrap_or_default();
    let _ = reader.packed_files(|file| {
        let name = volume.name(file.path());
        if file.size() > VIEW_BYTES_MAX {
            found.without.push((name, NoView::TooLong));
            return ControlFlow::Continue(());
        }
        let mut parts = Vec::new();
        let mut map = ClusterMap {
            plain_bytes: 0,
            block_bytes: reader.block_bytes() as u32,
            zeros_in_front: codecs.zeros_in_front,
            window_bits: codecs.zstd_window_bits,
            pieces: Vec::new(),
        };
        let mut add = |extent: &Extent| push(&mut map, &mut parts, volume.range.start, extent, regions);
        let result = file
            .extents()
            .and_then(|mut extents| extents.try_for_each(|extent| extent.map(|extent| add(&extent))))
            .map_err(NoView::Map)
            .and_then(|()| check(&map, &name, &parts, regions));
        if wanted(&name, &parts) {
            match result {
                Ok(()) => files.push(PackedFile { clusters: Some(map), ..PackedFile::new(name, parts) }),
                Err(why) => found.without.push((name, why)),
            }
        }
        ControlFlow::Continue(())
    });
}

/// Returns files as a group of their format. LZ4 alone keeps the older version, so that a device
/// that knows no other algorithm can still pack such files.
fn group(files: Vec<PackedFile>) -> Group {
    let is_lz4 = files.iter().filter_map(|file| file.clusters.as_ref()).all(ClusterMap::is_lz4);
    let format: &'static dyn ViewFormat = if is_lz4 { &LZ4 } else { &ANY };
    Group { format, files }
}

/// Adds an extent of an image that begins at `base` in the artifact.
fn push(map: &mut ClusterMap, parts: &mut Vec<Range<u64>>, base: u64, extent: &Extent, regions: &Regions) {
    // Only the last extent can be a fragment. Its content lies in the packed inode, which may
    // have a view of its own.
    let ExtentData::Cluster { start, len, coding, inline, .. } = extent.data else { return };
    let start = base + start;
    let turn = match coding {
        Coding::Lz4 | Coding::Deflate | Coding::Zstd => None,
        Coding::Shifted => Some(0),
        // Less than a block, and blocks have at most 64 KiB, so the offset fits into 16 bits.
        Coding::Interlaced => Some((extent.start % u64::from(map.block_bytes)) as u16),
        // `check` recognises this piece by its length: no other cluster has zero bytes.
        Coding::Lzma => {
            let turn = Some(0);
            map.pieces.push(Piece { start, packed: 0, plain: 0, coding, turn, inline, listed: false });
            return;
        }
    };
    let listed = !inline || packed_region_at(regions, start).is_some_and(|(end, _)| end == start + len);
    if listed {
        match parts.last_mut() {
            Some(part) if part.end == start && !inline => part.end = start + len,
            _ => parts.push(start..start + len),
        }
    }
    map.plain_bytes += extent.len;
    let (packed, plain) = (len as u32, extent.len as u32);
    map.pieces.push(Piece { start, packed, plain, coding, turn, inline, listed });
}

fn check(map: &ClusterMap, name: &[u8], parts: &[Range<u64>], regions: &Regions) -> Result<(), NoView> {
    let is_whole = |part: &Range<u64>| {
        packed_region_at(regions, part.start)
            .is_some_and(|(end, found)| end == part.end && found == Some(name))
    };
    let long_turn = |piece: &Piece| {
        piece.turn.is_some_and(|turn| turn > 0) && (piece.packed != map.block_bytes || piece.inline)
    };
    if map.pieces.iter().any(|piece| piece.packed == 0 || long_turn(piece)) {
        return Err(NoView::Algorithm);
    }
    if parts.is_empty() {
        return Err(NoView::NoClusters);
    }
    if map.pieces.iter().all(|piece| piece.turn.is_some()) {
        return Err(NoView::Plain);
    }
    if !parts.iter().all(is_whole) {
        return Err(NoView::Shared);
    }
    Ok(())
}

/// Bytes that a file counts in its group. Deflate streams count more, because their corrections can
/// take a tenth of them, and a recipe has no room for the corrections of a whole group.
fn weight(file: &PackedFile) -> u64 {
    let Some(map) = &file.clusters else { return 0 };
    let deflated = map.pieces.iter().any(|piece| piece.coding == Coding::Deflate);
    map.plain_bytes * if deflated { 4 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(plain_bytes: u64) -> PackedFile {
        let clusters = ClusterMap {
            plain_bytes,
            block_bytes: 4096,
            zeros_in_front: true,
            window_bits: 0,
            pieces: Vec::new(),
        };
        PackedFile { clusters: Some(clusters), ..PackedFile::new(Vec::new(), Vec::new()) }
    }

    #[test]
    fn groups_hold_all_files_in_order_and_long_ones_alone() {
        let sizes = [1, 255, 4096, 65_536, 300_000, 1_500_000, 9_000_000, 40 << 20, 12_300].repeat(20);
        let files: Vec<_> = sizes.iter().copied().map(file).collect();
        let groups = split_by_weight(files.clone(), GROUP_BYTES, weight);
        assert_eq!(groups.concat(), files);
        for group in &groups {
            let bytes: u64 = group.iter().map(weight).sum();
            assert!(bytes <= GROUP_BYTES || group.len() == 1, "{bytes}");
        }
        for two in groups.windows(2) {
            let with_next: u64 = two[0].iter().chain(&two[1][..1]).map(weight).sum();
            assert!(with_next > GROUP_BYTES, "{with_next}");
        }
    }
}
