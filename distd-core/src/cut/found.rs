//! Conversion of the runs of file data that a walk of a file system found to regions of the whole
//! file system.

use std::ops::Range;

use super::region::NAMES_BYTES_MAX;
use super::{RegionKind, Regions};
use crate::bounds::{PATH_BYTES_MAX, REGIONS_MAX};

/// Run of one file's data.
struct Run {
    start: u64,
    end: u64,
    /// Index of the file, in order of discovery.
    file: u32,
    kind: RegionKind,
}

/// Runs and file names that a walk found.
pub(super) struct Found {
    /// Length of what the file system lies in, bytes. No run ends behind it.
    len: u64,
    runs: Vec<Run>,
    names: Vec<u8>,
    /// End of each file's name in `names`, by index of the file.
    name_ends: Vec<u32>,
    /// Whether some file data lies at unknown places.
    unmapped: bool,
}

impl Found {
    pub(super) fn new(len: u64) -> Self {
        Self { len, runs: Vec::new(), names: Vec::new(), name_ends: Vec::new(), unmapped: false }
    }

    /// Adds `start..end` as data of the current file; `None` behind the end, or if there are too
    /// many runs.
    pub(super) fn add(&mut self, start: u64, end: u64, kind: RegionKind) -> Option<()> {
        if end > self.len || self.runs.len() == REGIONS_MAX {
            return None;
        }
        self.runs.push(Run { start, end, file: self.name_ends.len() as u32, kind });
        Some(())
    }

    /// Returns the number of runs so far, for the functions that take a mark.
    pub(super) fn mark(&self) -> usize {
        self.runs.len()
    }

    /// Removes the runs added since `mark` and records that some file data lies at unknown places.
    pub(super) fn forget(&mut self, mark: usize) {
        self.runs.truncate(mark);
        self.unmapped = true;
    }

    /// Returns the runs added since `mark`, in the order in which they were added.
    pub(super) fn since(&self, mark: usize) -> Vec<Range<u64>> {
        self.runs[mark..].iter().map(|run| run.start..run.end).collect()
    }

    /// Removes the runs added since `mark`, to add them again in other pieces.
    pub(super) fn take_back(&mut self, mark: usize) {
        self.runs.truncate(mark);
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

    /// Sorts the runs and fills the gaps between them. Bytes from `used` on, the length of the file
    /// system according to itself, are plain where no file is.
    pub(super) fn lay_out(self, used: u64) -> Option<Regions> {
        let between = if self.unmapped { RegionKind::Plain } else { RegionKind::Metadata };
        self.lay_out_between(|out, end| {
            out.push(end.min(used).saturating_sub(out.total()), between, None);
            out.push(end - out.total(), RegionKind::Plain, None);
        })
    }

    /// Sorts the runs and lets `fill` add regions from the end of the last one up to an offset,
    /// where no file is.
    pub(super) fn lay_out_between(self, mut fill: impl FnMut(&mut Regions, u64)) -> Option<Regions> {
        let Self { mut runs, names, name_ends, len, .. } = self;
        // Where files share blocks, the run that starts first keeps them; on a tie, the run found
        // first.
        runs.sort_unstable_by_key(|run| (run.start, run.file, run.end));
        let mut out = Regions::default();
        for run in runs {
            let start = run.start.max(out.total());
            if start >= run.end {
                continue;
            }
            fill(&mut out, start);
            let file = run.file as usize;
            let from = file.checked_sub(1).map_or(0, |previous| name_ends[previous]) as usize;
            let name = &names[from..name_ends[file] as usize];
            out.push(run.end - start, run.kind, Some(name));
            if out.all().len() + 3 > REGIONS_MAX {
                return None;
            }
        }
        fill(&mut out, len);
        (out.all().len() <= REGIONS_MAX).then_some(out)
    }
}
