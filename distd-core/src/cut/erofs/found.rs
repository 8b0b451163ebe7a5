//! Conversion of the runs of file data that a walk found to regions of the whole image.

use super::super::region::NAMES_BYTES_MAX;
use super::Geometry;
use crate::bounds::{PATH_BYTES_MAX, REGIONS_MAX};
use crate::cut::{RegionKind, Regions};

/// Run of one file's data.
struct Run {
    start: u64,
    end: u64,
    /// Index of the file, in order of discovery.
    file: u32,
    packed: bool,
}

/// Runs and file names that a walk found.
#[derive(Default)]
pub(super) struct Found {
    runs: Vec<Run>,
    names: Vec<u8>,
    /// End of each file's name in `names`, by index of the file.
    name_ends: Vec<u32>,
    /// Whether some file data lies at unknown places.
    unmapped: bool,
}

impl Found {
    /// Adds `start..end` as data of the current file; `None` outside the image, or if there are too
    /// many runs.
    pub(super) fn add(&mut self, start: u64, end: u64, packed: bool, geometry: &Geometry) -> Option<()> {
        if end > geometry.len || self.runs.len() == REGIONS_MAX {
            return None;
        }
        self.runs.push(Run { start, end, file: self.name_ends.len() as u32, packed });
        Some(())
    }

    /// Returns the number of runs so far, for [`Found::forget`] and [`Found::finish_file`].
    pub(super) fn mark(&self) -> usize {
        self.runs.len()
    }

    /// Removes the runs added since `mark` and records that some file data lies at unknown places.
    pub(super) fn forget(&mut self, mark: usize) {
        self.runs.truncate(mark);
        self.unmapped = true;
    }

    /// Ends the current file: names the file to which all runs since `mark` belong.
    pub(super) fn finish_file(&mut self, mark: usize, name: &[u8]) {
        if self.runs.len() == mark {
            return;
        }
        if name.len() <= PATH_BYTES_MAX && self.names.len() + name.len() <= NAMES_BYTES_MAX {
            self.names.extend_from_slice(name);
        }
        self.name_ends.push(self.names.len() as u32);
    }

    /// Sorts the runs and fills the gaps between them.
    pub(super) fn lay_out(self, geometry: &Geometry) -> Option<Regions> {
        let Self { mut runs, names, name_ends, unmapped } = self;
        // Where files share blocks, the run that starts first keeps them; on a tie, the run found
        // first.
        runs.sort_unstable_by_key(|run| (run.start, run.file, run.end));
        let mut out = Regions::default();
        let between = if unmapped { RegionKind::Plain } else { RegionKind::Metadata };
        for run in runs {
            let start = run.start.max(out.total());
            if start >= run.end {
                continue;
            }
            fill(&mut out, start, between, geometry);
            let file = run.file as usize;
            let from = file.checked_sub(1).map_or(0, |previous| name_ends[previous]) as usize;
            let name = &names[from..name_ends[file] as usize];
            let kind = if run.packed { RegionKind::Packed } else { RegionKind::File };
            out.push(run.end - start, kind, Some(name));
            if out.all().len() + 3 > REGIONS_MAX {
                return None;
            }
        }
        fill(&mut out, geometry.len, between, geometry);
        Some(out)
    }
}

/// Covers the bytes before `end` that belong to no file. Nothing is known of bytes behind the file
/// system, so they are plain.
fn fill(out: &mut Regions, end: u64, between: RegionKind, geometry: &Geometry) {
    out.push(end.min(geometry.used).saturating_sub(out.total()), between, None);
    out.push(end - out.total(), RegionKind::Plain, None);
}
