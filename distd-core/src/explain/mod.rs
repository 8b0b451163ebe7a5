//! Explanation of the delta between two artifacts: where it comes from, and what would make it
//! smaller.
//!
//! [`explain`] cuts both artifacts as a push would, looks at every chunk of the new artifact that
//! the old one lacks, and reports the file it belongs to and the reason why it is sent. The effect
//! of other options of `mkfs.erofs` is measured where the bytes are available: for structures with
//! their times blanked, for compressed files with their content. [`treemap`] draws the result.
//!
//! Memory: two windows of the artifact per thread, 20 bytes per chunk of the old artifact (1/800 of
//! it), 40 per new chunk, and the names. Each artifact is read at most twice, front to back.

mod chunks;
mod classify;
mod contents;
mod hints;
mod listing;
mod metadata;
mod report;
pub mod treemap;
mod unpack;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use crate::cut::{CutParams, ReadAt, Regions};
use crate::packing::LEVEL_DEFAULT;

use self::chunks::{Held, Scan};
use self::classify::Stats;
use self::contents::{Content, Contents, Share, Wanted};
use self::listing::Listing;
use self::metadata::Side;

pub use hints::{Advice, Hint, Method};
pub use metadata::MetadataCost;
pub use report::{Count, Kind, KindCost, PathCost, Report, Times, Uncompressed};

/// Services of the caller that this crate does not have: threads and a display of progress.
pub trait Host: Sync {
    /// Runs both closures, concurrently if possible.
    fn join<A: Send, B: Send>(&self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B);

    /// Reports that `bytes` more of the two artifacts have been cut. All calls together add up to
    /// the length of both.
    fn advance(&self, bytes: u64);

    /// Reports the phase that begins now: `old`, `new`, `names` or `contents`.
    fn phase(&self, phase: &'static str);
}

/// [`Host`] with one thread and no display.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Host for Alone {
    fn join<A: Send, B: Send>(&self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
        (a(), b())
    }

    fn advance(&self, _bytes: u64) {}

    fn phase(&self, _phase: &'static str) {}
}

/// Parameters of cutting and packing.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sizes of the chunks.
    pub params: CutParams,
    /// zstd level at which each chunk is packed.
    pub level: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self { params: CutParams::default(), level: LEVEL_DEFAULT }
    }
}

/// Error that names the artifact that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The old artifact could not be read.
    #[error("could not read the old artifact")]
    Old(#[source] io::Error),
    /// The new artifact could not be read.
    #[error("could not read the new artifact")]
    New(#[source] io::Error),
}

/// Explains the delta from `old` to `new`, each given with its regions
/// ([`regions`](crate::cut::regions), or the regions of a tree).
///
/// # Errors
/// [`ExplainError`] if an artifact cannot be read. The content of an image is never an error: in a
/// damaged image nothing has a name.
pub fn explain<A, B, H>(
    (old, old_regions): (&A, &Regions),
    (new, new_regions): (&B, &Regions),
    options: Options,
    host: &H,
) -> Result<Report, ExplainError>
where
    A: ReadAt + ?Sized,
    B: ReadAt + ?Sized,
    H: Host,
{
    let Options { params, level } = options;
    let how = (params, level);
    let advance = |bytes| host.advance(bytes);

    host.phase("old");
    let [first, second] = halves(old_regions);
    let list = |part| chunks::list(old, old_regions, part, params, &advance);
    let (first, second) = host.join(|| list(first), || list(second));
    let held = Held::of([first.map_err(ExplainError::Old)?, second.map_err(ExplainError::Old)?]);

    host.phase("new");
    let [first, second] = halves(new_regions);
    let scan = |part| chunks::scan(new, new_regions, part, how, &held, &advance);
    let (first, second) = host.join(|| scan(first), || scan(second));
    let scan = Scan::of([first.map_err(ExplainError::New)?, second.map_err(ExplainError::New)?]);

    host.phase("names");
    let (old_listing, new_listing) =
        host.join(|| Listing::of(old, old_regions), || Listing::of(new, new_regions));
    let side = Side { artifact: new, regions: new_regions, listing: &new_listing };
    let metadata =
        metadata::measure(&Side { artifact: old, regions: old_regions, listing: &old_listing }, &side, how)?;

    let stats = Stats::of(new_regions, &scan);
    let contents = contents(old, new, how, &held, &stats, host)?;

    let total = scan.cost();
    let origins = stats.origins(&old_listing, old_regions);
    let paths = stats.costs(&old_listing, &origins, &contents, &metadata);
    let mut report = Report {
        old_bytes: old.len(),
        new_bytes: new.len(),
        level,
        chunks: scan.fresh.len() as u64,
        raw_bytes: total.0,
        wire_bytes: total.1,
        kinds: classify::by_kind(&paths),
        paths,
        moved: stats.moved(&old_listing),
        metadata,
        times: stats.times(&old_listing, &new_listing),
        uncompressed: stats.uncompressed(&contents, total),
        transparency: None,
        hints: Vec::new(),
        all_names: old_listing.complete && new_listing.complete,
    };
    report.hints = hints::hints(&report, &stats);
    Ok(report)
}

/// Returns the cost of the compressed files with something to send, if they were not compressed;
/// empty if there are no such files.
fn contents<A: ReadAt + ?Sized, B: ReadAt + ?Sized, H: Host>(
    old: &A,
    new: &B,
    how: (CutParams, i32),
    held: &Held,
    stats: &Stats<'_>,
    host: &H,
) -> Result<BTreeMap<Box<[u8]>, Content>, ExplainError> {
    if !stats.paths.values().any(|stat| stat.packed_wire > 0) {
        return Ok(BTreeMap::new());
    }
    host.phase("contents");
    let share = |index| Share { index, of: 2 };
    let list = |index| contents::list(old, share(index), how.0);
    let (first, second) = host.join(|| list(0), || list(1));
    let inside = Held::of([first.map_err(ExplainError::Old)?, second.map_err(ExplainError::Old)?]);
    let wanted =
        Wanted { path: &|path| stats.has_fresh_clusters(path), fragments: stats.has_fresh_fragments() };
    let scan = |index| contents::scan(new, share(index), how, &wanted, &[held, &inside]);
    let (first, second) = host.join(|| scan(0), || scan(1));
    Ok(Contents::by_path([first.map_err(ExplainError::New)?, second.map_err(ExplainError::New)?]))
}

/// Splits the regions into two parts of about the same number of bytes. The second is empty if
/// there is only one region.
fn halves(regions: &Regions) -> [Range<usize>; 2] {
    let parts = regions.split(2);
    let end = regions.all().len();
    [parts.first().cloned().unwrap_or(0..end), parts.get(1).cloned().unwrap_or(end..end)]
}
