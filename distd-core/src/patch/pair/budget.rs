//! Jobs within the limits of a patch.

use std::ops::Range;

use super::names::extension;
use super::ranges::{IndexRanges, bytes_of};
use super::spans::scaled;
use super::{Of, Pairing, PatchJob, Span, State, Unit};
use crate::bounds::{PATCH_BASE_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use crate::cut::ReadAt;

/// Rules for the search of bases, and bounds of one patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairOptions {
    /// Most raw bytes that one job rebuilds, `1..=PATCH_TARGET_BYTES_MAX`.
    pub target_bytes_max: usize,
    /// Most raw bytes in the base of one job, `1..=PATCH_BASE_BYTES_MAX`.
    pub base_bytes_max: usize,
    /// Most memory that building the job of one large file may take ([`large_memory`]), bytes; 0
    /// for no such jobs.
    ///
    /// [`large_memory`]: super::large_memory
    pub large_memory_max: u64,
    /// Whether bases are looked up by name.
    pub by_name: bool,
    /// Whether bases are looked up by content.
    pub by_content: bool,
}

impl Default for PairOptions {
    /// All rules, jobs up to the limits, none for large files.
    fn default() -> Self {
        Self {
            target_bytes_max: PATCH_TARGET_BYTES_MAX,
            base_bytes_max: PATCH_BASE_BYTES_MAX,
            large_memory_max: 0,
            by_name: true,
            by_content: true,
        }
    }
}

/// Longest hole in a base that is filled, bytes: naming a range costs a few bytes, bytes of base
/// cost nothing on the wire.
const BASE_GAP_MAX: u64 = 16 << 10;

/// Job being filled.
#[derive(Default)]
pub(super) struct Open {
    targets: IndexRanges,
    bases: [IndexRanges; 2],
}

impl<R: ReadAt + ?Sized, S: ReadAt + ?Sized> Pairing<'_, R, S> {
    /// Adds a unit and its base to the open job, or to a new job if the open one is full.
    pub(super) fn join(&mut self, unit: &Unit, len: u64, base: Vec<Span>) {
        let waits = base.iter().any(|span| {
            span.of == Of::New && span.chunks.clone().any(|index| self.state[index as usize] == State::Open)
        });
        let full = self.open.targets.bytes(self.new.chunks) + len > self.options.target_bytes_max as u64;
        if waits || full || !self.fits(&base) {
            self.close();
        }
        for span in base {
            // A span above the limit is left out. Windows are chosen smaller, so only tests reach
            // this case.
            if self.fits(std::slice::from_ref(&span)) {
                self.open.bases[span.of as usize].insert(span.chunks);
            }
        }
        self.state[unit.chunks.start as usize..unit.chunks.end as usize].fill(State::Open);
        self.open.targets.insert(unit.chunks.clone());
    }

    fn fits(&self, more: &[Span]) -> bool {
        let mut bases = self.open.bases.clone();
        for span in more {
            bases[span.of as usize].insert(span.chunks.clone());
        }
        bases[0].bytes(self.old.chunks) + bases[1].bytes(self.new.chunks)
            <= self.options.base_bytes_max as u64
    }

    fn close(&mut self) {
        let mut open = std::mem::take(&mut self.open);
        for range in open.targets.iter() {
            self.state[range.start as usize..range.end as usize].fill(State::Ready);
        }
        if open.targets.is_empty() {
            return;
        }
        // Fill the holes in the base if the limit allows. This needs every chunk at hand, which is
        // so in the old release only.
        let mut filled = open.bases[0].clone();
        filled.fill_gaps(self.old.chunks, BASE_GAP_MAX);
        if filled.bytes(self.old.chunks) + open.bases[1].bytes(self.new.chunks)
            <= self.options.base_bytes_max as u64
        {
            open.bases[0] = filled;
        }
        let [old, new] = open.bases;
        let spans = |of, ranges: IndexRanges| ranges.into_iter().map(move |chunks| Span { of, chunks });
        self.jobs.push(PatchJob {
            targets: open.targets.into_iter().collect(),
            bases: spans(Of::Old, old).chain(spans(Of::New, new)).collect(),
            large: false,
        });
    }

    /// Closes the last job and makes the solid jobs. Solid jobs come first, because others may use
    /// their chunks as base.
    pub(super) fn finish(mut self) -> Vec<PatchJob> {
        self.close();
        let mut solid = std::mem::take(&mut self.solid);
        let key = |unit: &Unit| {
            let region = &self.new.regions.all()[unit.region];
            let name = self.new.regions.name(region).unwrap_or_default();
            (region.kind, extension(name), name, unit.chunks.start)
        };
        solid.sort_by(|a, b| key(a).cmp(&key(b)));
        let mut jobs: Vec<PatchJob> = Vec::new();
        let mut room = 0;
        for unit in solid {
            let len = bytes_of(self.new.chunks, unit.chunks.clone());
            if len > room {
                jobs.push(PatchJob::default());
                room = self.options.target_bytes_max as u64;
            }
            room = room.saturating_sub(len);
            if let Some(job) = jobs.last_mut() {
                job.targets.push(unit.chunks);
            }
        }
        jobs.extend(self.structure_jobs());
        jobs.append(&mut self.jobs);
        jobs
    }

    /// Makes the jobs for the file system's structures. Inodes differ from their predecessors by a
    /// block address here and there, as long as nothing else lies between them. So the base is the
    /// lost structures alone, in order: all of them, or a window at the same relative position.
    fn structure_jobs(&mut self) -> Vec<PatchJob> {
        let structures = std::mem::take(&mut self.structures);
        let wanted: u64 = structures.iter().map(|unit| bytes_of(self.new.chunks, unit.chunks.clone())).sum();
        let lost: Vec<Range<u32>> = self.lost.iter().cloned().collect();
        let all = self.lost.bytes(self.old.chunks);
        let room = self.options.base_bytes_max as u64;
        let (mut jobs, mut done, mut units) = (Vec::new(), 0, structures.into_iter().peekable());
        while units.peek().is_some() {
            let (mut targets, begin) = (IndexRanges::default(), done);
            while let Some(unit) = units.peek() {
                let len = bytes_of(self.new.chunks, unit.chunks.clone());
                if done - begin + len > self.options.target_bytes_max as u64 && done > begin {
                    break;
                }
                targets.insert(unit.chunks.clone());
                done += len;
                units.next();
            }
            let middle = scaled(begin + (done - begin) / 2, wanted, all);
            let start = middle.saturating_sub(room / 2).min(all.saturating_sub(room));
            let mut bases = self.slice(Of::Old, &lost, start, room);
            // The window is rounded to whole chunks at both ends and may exceed the limit.
            while bases.iter().map(|span| bytes_of(self.old.chunks, span.chunks.clone())).sum::<u64>() > room
            {
                bases.pop();
            }
            jobs.push(PatchJob { targets: targets.into_iter().collect(), bases, large: false });
        }
        jobs
    }
}
