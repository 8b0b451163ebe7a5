//! Volumes: file systems and files that lie in a partition, or are a whole artifact.

use super::gzip::Budget;
use super::{ReadAt, Regions, archive, erofs, ext, fat, pe, squashfs, verity};

/// Returns the regions of a volume; `None` if no reader knows its format.
pub(super) fn regions<R: ReadAt + ?Sized>(volume: &R, budget: &mut Budget) -> Option<Regions> {
    let inside = erofs::regions(volume, budget)
        .or_else(|| squashfs::regions(volume))
        .or_else(|| archive::regions(volume, budget))
        .or_else(|| fat::regions(volume, budget))
        .or_else(|| ext::regions(volume, budget))
        .or_else(|| pe::regions(volume, budget));
    match verity::locate(volume) {
        Some(tree) => {
            let inside = inside.unwrap_or_else(|| Regions::plain(volume.len()));
            Some(verity::with_tree(&inside, &tree, volume.len()))
        }
        None => inside,
    }
}
