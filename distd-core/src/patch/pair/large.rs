//! Jobs of large files.

use std::io;
use std::ops::Range;

use super::ranges::bytes_of;
use super::spans::covers;
use super::{Need, Of, Pairing, PatchJob, Span, State, Unit};
use crate::bounds::PATCH_LARGE_BYTES_MAX;
use crate::cut::ReadAt;

/// One in this many anchors of a file must be in the old file of its name. Anchors depend on 64
/// bytes, in which moved code has one changed reference or more.
const HITS_MIN: usize = 64;

/// Wanted bytes above which a file is one job: below, small jobs save nearly as much, also on
/// devices that have not the memory for a large one.
const LARGE_MIN: u64 = 4 << 20;

/// Returns the memory that [`build`](super::build) takes for a large job with a base and a target
/// of these lengths, bytes: both twice, and the suffix array of the base.
pub fn large_memory(base: u64, target: u64) -> u64 {
    (16 << 20) + 6 * base + 2 * target
}

impl<R: ReadAt + ?Sized, S: ReadAt + ?Sized> Pairing<'_, R, S> {
    /// Makes a job of a whole region, if the region has more wanted bytes than [`LARGE_MIN`] and a
    /// job of several files may have, and the old release has a file of its name that resembles it.
    /// Returns whether it did.
    pub(super) fn place_large(&mut self, region: usize, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let targets = self.wanted_runs(region);
        let wanted: u64 = targets.iter().map(|run| bytes_of(self.new.chunks, run.clone())).sum();
        if !self.options.by_name || wanted <= LARGE_MIN.max(self.options.target_bytes_max as u64) {
            return Ok(false);
        }
        let Some(bases) = self.large_base(region, wanted) else { return Ok(false) };
        let (mut all, mut hits) = (0, 0);
        let mut remembered = Vec::new();
        for run in self.pieces(&targets) {
            let unit = Unit { region, chunks: run };
            bytes.resize(bytes_of(self.new.chunks, unit.chunks.clone()) as usize, 0);
            self.new.bytes.read_exact_at(bytes, self.new.chunks[unit.chunks.start as usize].offset)?;
            let anchors = self.new_anchors.sample(bytes);
            let keys: Vec<u64> = anchors.iter().map(|(key, _)| *key).collect();
            all += keys.len();
            hits += self.hits(&keys).iter().filter(|hit| covers(&bases, hit)).count();
            remembered.push((unit, anchors));
        }
        if self.options.by_content && hits * HITS_MIN < all {
            return Ok(false);
        }
        for run in &targets {
            self.state[run.start as usize..run.end as usize].fill(State::Ready);
        }
        for (unit, anchors) in remembered {
            self.remember(&unit, &anchors);
        }
        self.jobs.push(PatchJob { targets, bases, large: true });
        Ok(true)
    }

    /// Returns the runs of wanted chunks of a region.
    fn wanted_runs(&self, region: usize) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let wanted = |index: &u32| self.needs[*index as usize] == Need::Wanted;
        for index in self.new_files.chunks_of_region(region).filter(wanted) {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }

    /// Returns the old file of a region's name, if both fit into a job.
    fn large_base(&self, region: usize, wanted: u64) -> Option<Vec<Span>> {
        let name = self.new.regions.name(&self.new.regions.all()[region])?;
        let (_, file) = self.namesakes(name).into_iter().find(|(of, _)| *of == Of::Old)?;
        let most = PATCH_LARGE_BYTES_MAX as u64;
        let fits = wanted <= most
            && file.bytes <= most
            && large_memory(file.bytes, wanted) <= self.options.large_memory_max;
        let span = |chunks: &Range<u32>| Span { of: Of::Old, chunks: chunks.clone() };
        fits.then(|| file.chunks.iter().filter(|chunks| !chunks.is_empty()).map(span).collect())
    }

    /// Divides runs of chunks so that each is short enough to be read at once.
    fn pieces(&self, runs: &[Range<u32>]) -> Vec<Range<u32>> {
        let mut pieces = Vec::new();
        for run in runs {
            let mut piece = run.start..run.start;
            for index in run.clone() {
                let more = piece.start..index + 1;
                if bytes_of(self.new.chunks, more.clone()) > self.options.target_bytes_max as u64 {
                    pieces.push(piece);
                    piece = index..index + 1;
                } else {
                    piece = more;
                }
            }
            pieces.push(piece);
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}
