//! Pairing: finds the bytes of the old release, or of the new one rebuilt earlier, that help to
//! rebuild each new chunk.
//!
//! A **unit** is a run of wanted chunks in one region. The search for its base looks
//! 1. around the chunks that the new file shares with the old file of the same name: at the old
//!    bytes between the held chunks before and behind the unit;
//! 2. in the file of the same name, or else in the file of the same name with version numbers
//!    folded ([`fold`]);
//! 3. by content: at sampled anchors of the old release and of the units already placed.
//!
//! A file with more wanted bytes than a job may have is one *large* job, if a caller allows those
//! and the old release has a file of its name.
//!
//! Units are taken in artifact order, so that a patch rebuilds neighbours (mostly files of one
//! directory) and names few ranges of chunks. They fill a [`PatchJob`] up to the limits. Units
//! without a base go to solid segments, sorted so that similar files meet. A file system's own
//! structures have jobs of their own; the base of such a job is the old structures that the new
//! release no longer has.
//!
//! The same input gives the same jobs on every machine. Memory: 16 bytes an anchor, of which there
//! are at most [`ANCHORS_MAX`] on either side; about 120 bytes a chunk of either side (sorted
//! hashes); three times the names; and the bytes of one unit.

mod anchors;
mod budget;
mod job;
mod large;
mod layouts;
mod names;
mod needs;
mod ranges;
mod spans;

use std::io;
use std::ops::Range;

pub use anchors::ANCHORS_MAX;
pub use budget::PairOptions;
pub use job::{Patch, PatchJob, build};
pub use large::large_memory;
pub use names::fold;
pub use needs::{Need, needs, needs_beside};
pub use spans::{ChunkSpan, Of, Side, Span};

use crate::ChunkHash;
use crate::cut::{ReadAt, Region, RegionKind, Regions};
use anchors::{Anchors, Hit};
use budget::Open;
use names::{Files, WHOLE_FILE_MAX};
use ranges::{IndexRanges, bytes_of};
use spans::{ANCHOR_MARGIN, covers};

/// Returns the jobs that rebuild every wanted chunk of `new`, in an order in which each base is
/// available when it is needed.
///
/// `needs` has one entry per chunk of `new`, from [`needs()`] or changed by the caller. Reads all
/// of `old` and the wanted bytes of `new` once; takes about 1 s of one core for an 800 MB image.
///
/// # Errors
/// Any error from reading either side.
///
/// # Panics
/// If `needs` and `new.chunks` differ in length.
pub fn pair<R: ReadAt + ?Sized, S: ReadAt + ?Sized>(
    old: Side<'_, R>,
    new: Side<'_, S>,
    needs: &[Need],
    options: PairOptions,
) -> io::Result<Vec<PatchJob>> {
    assert_eq!(needs.len(), new.chunks.len(), "one need per chunk");
    let shift = anchors::shift_for(old.regions.total().max(new.regions.total()));
    let mut old_anchors = Anchors::new(shift);
    if options.by_content {
        old_anchors.scan(old)?;
    }
    let mut pairing = Pairing {
        old,
        new,
        needs,
        options,
        old_files: Files::of(old.regions, old.chunks),
        new_files: Files::of(new.regions, new.chunks),
        old_anchors,
        new_anchors: Anchors::new(shift),
        old_by_hash: by_hash(old.chunks),
        state: needs
            .iter()
            .map(|need| if *need == Need::Held { State::Ready } else { State::Absent })
            .collect(),
        open: Open::default(),
        jobs: Vec::new(),
        solid: Vec::new(),
        structures: Vec::new(),
        lost: lost_structures(old, new),
    };
    pairing.run()?;
    Ok(pairing.finish())
}

fn is_structure(regions: &Regions, region: &Region) -> bool {
    region.kind == RegionKind::Metadata && regions.name(region).is_none()
}

/// Returns the structures of the old release that the new release no longer has.
fn lost_structures<R: ReadAt + ?Sized, S: ReadAt + ?Sized>(
    old: Side<'_, R>,
    new: Side<'_, S>,
) -> IndexRanges {
    let mut kept: Vec<_> = new.chunks.iter().map(|chunk| chunk.hash).collect();
    kept.sort_unstable();
    let mut lost = IndexRanges::default();
    let mut index = 0;
    for region in old.regions.all() {
        let structure = is_structure(old.regions, region);
        while let Some(chunk) = old.chunks.get(index as usize).filter(|chunk| chunk.offset < region.end()) {
            if structure && kept.binary_search(&chunk.hash).is_err() {
                lost.insert(index..index + 1);
            }
            index += 1;
        }
    }
    lost
}

fn by_hash(chunks: &[ChunkSpan]) -> Vec<(ChunkHash, u32)> {
    let mut list: Vec<_> = chunks.iter().zip(0u32..).map(|(chunk, index)| (chunk.hash, index)).collect();
    list.sort_unstable();
    list
}

/// Whether a chunk of the new release can serve as base.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    /// The chunk is a target of the job being filled.
    Open,
    Ready,
}

/// Consecutive wanted chunks of one region.
struct Unit {
    region: usize,
    chunks: Range<u32>,
}

struct Pairing<'a, R: ReadAt + ?Sized, S: ReadAt + ?Sized> {
    old: Side<'a, R>,
    new: Side<'a, S>,
    needs: &'a [Need],
    options: PairOptions,
    old_files: Files<'a>,
    new_files: Files<'a>,
    old_anchors: Anchors,
    new_anchors: Anchors,
    old_by_hash: Vec<(ChunkHash, u32)>,
    state: Vec<State>,
    open: Open,
    jobs: Vec<PatchJob>,
    solid: Vec<Unit>,
    /// Units that belong to the file system's structures.
    structures: Vec<Unit>,
    /// Old structures that the new release no longer has, in order. The wanted structures are their
    /// successors.
    lost: IndexRanges,
}

impl<R: ReadAt + ?Sized, S: ReadAt + ?Sized> Pairing<'_, R, S> {
    fn run(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for region in 0..self.new.regions.all().len() {
            let chunks = self.new_files.chunks_of_region(region);
            if self.place_large(region, &mut bytes)? {
                continue;
            }
            let mut next = chunks.start;
            while next < chunks.end {
                if self.needs[next as usize] != Need::Wanted {
                    next += 1;
                    continue;
                }
                let mut unit = Unit { region, chunks: next..next + 1 };
                while unit.chunks.end < chunks.end
                    && self.needs[unit.chunks.end as usize] == Need::Wanted
                    && bytes_of(self.new.chunks, next..unit.chunks.end + 1)
                        <= self.options.target_bytes_max as u64
                {
                    unit.chunks.end += 1;
                }
                next = unit.chunks.end;
                let structure = is_structure(self.new.regions, &self.new.regions.all()[region]);
                if self.options.by_name && structure && !self.lost.is_empty() {
                    self.structures.push(unit);
                } else {
                    self.place(unit, &mut bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Finds a base for the unit and puts it into a job.
    fn place(&mut self, unit: Unit, bytes: &mut Vec<u8>) -> io::Result<()> {
        let len = bytes_of(self.new.chunks, unit.chunks.clone());
        bytes.resize(len as usize, 0);
        self.new.bytes.read_exact_at(bytes, self.new.chunks[unit.chunks.start as usize].offset)?;
        let anchors = if self.options.by_content { self.new_anchors.sample(bytes) } else { Vec::new() };
        let hits = self.hits(&anchors.iter().map(|(key, _)| *key).collect::<Vec<_>>());

        let mut base = if self.options.by_name { self.by_name(&unit, len, &hits) } else { Vec::new() };
        if self.options.by_content && !hits.is_empty() {
            let inside = hits.iter().filter(|hit| covers(&base, hit)).count();
            // The base found by name covers less than half of the hits, so it belongs to a
            // different file of the same name. Add the places of the hits.
            if inside * 2 < hits.len() {
                let budget = (2 * len + 8 * ANCHOR_MARGIN).min(WHOLE_FILE_MAX);
                base.extend(self.windows(&hits, budget));
            }
        }
        if base.is_empty() {
            self.state[unit.chunks.start as usize..unit.chunks.end as usize].fill(State::Ready);
            self.remember(&unit, &anchors);
            self.solid.push(unit);
            return Ok(());
        }
        self.join(&unit, len, base);
        self.remember(&unit, &anchors);
        Ok(())
    }

    /// Adds the unit's anchors, so that later units can find it.
    fn remember(&mut self, unit: &Unit, anchors: &[(u64, usize)]) {
        let start = self.new.chunks[unit.chunks.start as usize].offset;
        let mut index = unit.chunks.start;
        for (key, at) in anchors {
            let at = start + *at as u64;
            while self.new.chunks[index as usize].offset + u64::from(self.new.chunks[index as usize].len)
                <= at
            {
                index += 1;
            }
            self.new_anchors.insert(*key, index);
        }
    }

    fn hits(&self, keys: &[u64]) -> Vec<Hit> {
        let mut hits = Vec::new();
        for key in keys {
            self.old_anchors.find(*key, |chunk| hits.push(Hit { of: Of::Old, chunk }));
            self.new_anchors.find(*key, |chunk| {
                if self.state[chunk as usize] != State::Absent {
                    hits.push(Hit { of: Of::New, chunk });
                }
            });
        }
        hits.sort_unstable();
        hits
    }
}
