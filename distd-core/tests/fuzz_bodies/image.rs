//! Fuzz bodies of region readers, extent maps and archives.

use std::ops::ControlFlow;

use distd_core::bounds::PATH_BYTES_MAX;
use distd_core::cut::erofs::{CLUSTER_BYTES_MAX, EXTENT_BYTES_MAX, ExtentData, Reader};
use distd_core::cut::{Batches, CutParams, Region, Regions, regions as find_regions};
use distd_core::patch::view::parts;

use super::memory::within;

/// Checks that regions are sorted, without gap or overlap, and cover all of `len`, with names
/// within bounds.
fn assert_covers(regions: &Regions, len: u64) {
    let mut at = 0;
    for region in regions.all() {
        assert_eq!(region.start, at);
        assert!(region.len > 0);
        at = region.end();
        assert!(regions.name(region).is_none_or(|name| name.len() <= PATH_BYTES_MAX));
    }
    assert_eq!(at, len);
    assert_eq!(regions.total(), len);
}

/// Regions cover any bytes, the same each time, and chunks cover the regions with any window.
pub fn regions(data: &[u8]) {
    // 4 MiB of cache, a block of 64 KiB for each of 512 levels, and the memory of the regions.
    let found = within((40 << 20) + 64 * data.len(), || find_regions(data));
    assert_covers(&found, data.len() as u64);
    assert_eq!(found, find_regions(data));
    let parts = found.split(3);
    assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>(), (0..found.all().len()).collect::<Vec<_>>());

    let params = CutParams::new(64, 256, 1024).expect("valid parameters");
    let cuts = |window| {
        let mut batches = Batches::new(data, found.all(), params).with_window(window);
        let mut ends = Vec::new();
        while let Some(batch) = batches.next_batch(Vec::new()).expect("memory reads") {
            for chunk in batch.chunks() {
                assert!((1..=1024).contains(&chunk.data.len()));
                assert_eq!(chunk.offset, ends.last().copied().unwrap_or(0));
                assert!(!chunk.zero || chunk.data.iter().all(|byte| *byte == 0));
                ends.push(chunk.offset + chunk.data.len() as u64);
            }
        }
        ends
    };
    let ends = cuts(1 << 20);
    assert_eq!(ends, cuts(2048));
    assert!(found.all().iter().map(Region::end).all(|end| ends.binary_search(&end).is_ok()));
}

/// Extents of compressed files follow each other from 0 to the file's size, in clusters inside the
/// image.
pub fn erofs_maps(data: &[u8]) {
    let Some(reader) = Reader::open(data) else { return };
    let whole = reader.packed_files(|file| {
        let Ok(extents) = file.extents() else { return ControlFlow::Continue(()) };
        let mut at = 0;
        for extent in extents {
            let Ok(extent) = extent else { return ControlFlow::Continue(()) };
            assert_eq!(extent.start, at);
            assert!(extent.len > 0);
            at += extent.len;
            if let ExtentData::Cluster { start, len, .. } = extent.data {
                assert!((1..=CLUSTER_BYTES_MAX).contains(&len) && extent.len <= EXTENT_BYTES_MAX);
                assert!(start + len <= data.len() as u64);
            }
        }
        assert_eq!(at, file.size());
        ControlFlow::Continue(())
    });
    // An image that is not sound is one plain region.
    if whole.is_none() {
        assert_eq!(find_regions(data), Regions::plain(data.len() as u64));
    }
    let _ = reader.entries(|entry| {
        assert!(!entry.path.starts_with(b"/"));
        ControlFlow::Continue(())
    });
}

/// Parts cover a view, whether the view is an archive or not.
pub fn archive_parts(data: &[u8]) {
    let parts = parts(data, 0..data.len() as u64, b"view").expect("memory reads");
    assert_eq!(parts.iter().map(|(len, ..)| len).sum::<u64>(), data.len() as u64);
    assert!(parts.iter().all(|(len, _, name)| *len > 0 && name.starts_with(b"view//")));
}
