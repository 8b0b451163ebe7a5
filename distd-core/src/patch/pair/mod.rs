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
mod job;
mod names;
mod needs;
mod ranges;

use std::io;
use std::ops::Range;

pub use anchors::ANCHORS_MAX;
pub use job::{Patch, PatchJob, build};
pub use names::fold;
pub use needs::{Need, needs, needs_beside};

use crate::ChunkHash;
use crate::bounds::{PATCH_BASE_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use crate::cut::{ReadAt, Region, RegionKind, Regions};
use anchors::{Anchors, Hit};
use names::Files;
use ranges::{IndexRanges, bytes_of};

/// Place of one chunk in an artifact. A list of spans covers the artifact without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Offset of the first byte.
    pub offset: u64,
    /// Length in bytes, never zero.
    pub len: u32,
    /// Hash of the raw bytes.
    pub hash: ChunkHash,
}

/// One of the two releases: its bytes, regions and chunks.
///
/// Content unpacked from an artifact ([`view`](crate::patch::view)) is appended to the artifact:
/// its bytes, regions and chunks follow those of the artifact, and its regions are named with
/// [`NAME_SEPARATOR`](crate::cut::NAME_SEPARATOR).
#[derive(Debug)]
pub struct Side<'a, R: ReadAt + ?Sized> {
    /// Bytes of the artifact and of the views behind it.
    pub bytes: &'a R,
    /// Regions with their name hints.
    pub regions: &'a Regions,
    /// Chunks, at most `u32::MAX`, covering all regions; a region border is a chunk border.
    pub chunks: &'a [ChunkSpan],
}

impl<R: ReadAt + ?Sized> Clone for Side<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: ReadAt + ?Sized> Copy for Side<'_, R> {}

/// Release to which a range of chunks belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Of {
    /// The old release.
    Old,
    /// The new release; the chunks are held or rebuilt by an earlier job.
    New,
}

/// Consecutive chunks that serve as base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Release to which the chunks belong.
    pub of: Of,
    /// Indices of the chunks in artifact order.
    pub chunks: Range<u32>,
}

/// Rules for the search of bases, and bounds of one patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairOptions {
    /// Most raw bytes that one job rebuilds, `1..=PATCH_TARGET_BYTES_MAX`.
    pub target_bytes_max: usize,
    /// Most raw bytes in the base of one job, `1..=PATCH_BASE_BYTES_MAX`.
    pub base_bytes_max: usize,
    /// Whether bases are looked up by name.
    pub by_name: bool,
    /// Whether bases are looked up by content.
    pub by_content: bool,
}

impl Default for PairOptions {
    /// All rules, jobs up to the limits.
    fn default() -> Self {
        Self {
            target_bytes_max: PATCH_TARGET_BYTES_MAX,
            base_bytes_max: PATCH_BASE_BYTES_MAX,
            by_name: true,
            by_content: true,
        }
    }
}

/// Largest file that serves as base as a whole, bytes.
const WHOLE_FILE_MAX: u64 = 6 << 20;

/// Bytes added on either side of the old bytes between two held chunks, because chunk borders hide
/// where exactly the two files differ.
const AROUND_MARGIN: u64 = 64 << 10;

/// Bytes added on either side of a chunk in which an anchor was found.
const ANCHOR_MARGIN: u64 = 32 << 10;

/// Longest hole in a base that is filled, bytes: naming a range costs a few bytes, bytes of base
/// cost nothing on the wire.
const BASE_GAP_MAX: u64 = 16 << 10;

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

/// Job being filled.
#[derive(Default)]
struct Open {
    targets: IndexRanges,
    bases: [IndexRanges; 2],
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

    /// Adds a unit and its base to the open job, or to a new job if the open one is full.
    fn join(&mut self, unit: &Unit, len: u64, base: Vec<Span>) {
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
        });
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

    /// Returns the base found by name: that of the namesake with the most hits.
    fn by_name(&self, unit: &Unit, len: u64, hits: &[Hit]) -> Vec<Span> {
        let region = &self.new.regions.all()[unit.region];
        let Some(name) = self.new.regions.name(region) else { return Vec::new() };
        let own = self.new_files.exact(name);
        let mut best: Option<(usize, Vec<Span>)> = None;
        for (of, file) in self.namesakes(name) {
            // If both files have the same number of parts (a body and a tail), only the matching
            // part counts; otherwise the whole file.
            let part = own
                .filter(|own| own.chunks.len() == file.chunks.len())
                .and_then(|own| own.chunks.iter().position(|part| part.contains(&unit.chunks.start)));
            let parts = part.map_or(&file.chunks[..], |part| &file.chunks[part..=part]);
            let spans = self.of_parts(of, parts, unit, len, hits);
            let spans: Vec<Span> = spans.into_iter().flat_map(|span| self.usable(span)).collect();
            let count = hits.iter().filter(|hit| covers(&spans, hit)).count();
            if !spans.is_empty() && best.as_ref().is_none_or(|(most, _)| count > *most) {
                best = Some((count, spans));
            }
        }
        let (_, spans) = best.unwrap_or_default();
        match self.around(unit, len, &spans) {
            Some(narrow) if hits.iter().all(|hit| !covers(&spans, hit) || covers(&narrow, hit)) => narrow,
            _ => spans,
        }
    }

    /// Returns all parts of a namesake. If they are long, returns windows: around the hits, most
    /// hits first, or without hits at the same relative position.
    fn of_parts(&self, of: Of, parts: &[Range<u32>], unit: &Unit, len: u64, hits: &[Hit]) -> Vec<Span> {
        let whole: Vec<_> = parts.iter().map(|chunks| Span { of, chunks: chunks.clone() }).collect();
        let bytes = parts.iter().map(|chunks| bytes_of(self.chunks(of), chunks.clone())).sum();
        if bytes <= WHOLE_FILE_MAX {
            return whole;
        }
        let inside: Vec<Hit> = hits.iter().copied().filter(|hit| covers(&whole, hit)).collect();
        if !inside.is_empty() {
            return self.windows(&inside, (2 * len + 8 * ANCHOR_MARGIN).min(WHOLE_FILE_MAX));
        }
        let region = &self.new.regions.all()[unit.region];
        let into = self.new.chunks[unit.chunks.start as usize].offset - region.start;
        let at = scaled(into, region.len, bytes);
        self.slice(of, parts, at.saturating_sub(len / 2), 2 * len + AROUND_MARGIN)
    }

    /// Returns `take` bytes of some parts, starting `skip` bytes into them, as whole chunks.
    fn slice(&self, of: Of, parts: &[Range<u32>], mut skip: u64, mut take: u64) -> Vec<Span> {
        let chunks = self.chunks(of);
        let mut out = Vec::new();
        for part in parts {
            let bytes = bytes_of(chunks, part.clone());
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let start = chunks[part.start as usize].offset + skip;
            let end = (start + take).min(start - skip + bytes);
            take -= end - start;
            skip = 0;
            let window = ranges::covering(chunks, start, end);
            out.push(Span { of, chunks: window.start.max(part.start)..window.end.min(part.end) });
            if take == 0 {
                break;
            }
        }
        out
    }

    /// Returns the files with a matching name, best first.
    fn namesakes(&self, name: &[u8]) -> Vec<(Of, &names::File)> {
        let inner = names::inner(name);
        let mut found = Vec::new();
        if let Some(inner) = inner {
            found.extend(self.new_files.exact(inner).map(|file| (Of::New, file)));
        }
        let old = |name| self.old_files.exact(name).or_else(|| self.old_files.folded(name));
        found.extend(old(name).map(|file| (Of::Old, file)));
        found.extend(inner.and_then(old).map(|file| (Of::Old, file)));
        found
    }

    /// Returns the parts of a span that can serve as base now.
    fn usable(&self, span: Span) -> Vec<Span> {
        if span.of == Of::Old {
            return vec![span];
        }
        let mut out: Vec<Span> = Vec::new();
        for index in span.chunks {
            if self.state[index as usize] == State::Absent {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.chunks.end == index => last.chunks.end += 1,
                _ => out.push(Span { of: Of::New, chunks: index..index + 1 }),
            }
        }
        out
    }

    /// Returns the old bytes between the held chunks before and behind the unit, if `within`
    /// contains both.
    fn around(&self, unit: &Unit, len: u64, within: &[Span]) -> Option<Vec<Span>> {
        let region = self.new_files.chunks_of_region(unit.region);
        let old_of = |index: u32| {
            let hash = self.new.chunks[index as usize].hash;
            let from = self.old_by_hash.partition_point(|(other, _)| *other < hash);
            self.old_by_hash[from..]
                .iter()
                .take_while(|(other, _)| *other == hash)
                .map(|(_, chunk)| *chunk)
                .find(|chunk| covers(within, &Hit { of: Of::Old, chunk: *chunk }))
        };
        let before = unit.chunks.start.checked_sub(1).filter(|index| region.contains(index)).and_then(old_of);
        let behind = Some(unit.chunks.end).filter(|index| region.contains(index)).and_then(old_of);
        let (before, behind) = (before?, behind?);
        let bytes = (before < behind).then(|| bytes_of(self.old.chunks, before..behind + 1))?;
        if bytes > 4 * len + AROUND_MARGIN {
            return None;
        }
        let start = self.old.chunks[before as usize].offset.saturating_sub(AROUND_MARGIN);
        let end = self.old.chunks[behind as usize].offset + AROUND_MARGIN;
        let window = ranges::covering(self.old.chunks, start, end);
        Some(
            within
                .iter()
                .filter(|span| span.of == Of::Old)
                .map(|span| Span {
                    of: Of::Old,
                    chunks: span.chunks.start.max(window.start)..span.chunks.end.min(window.end),
                })
                .filter(|span| !span.chunks.is_empty())
                .collect(),
        )
    }

    /// Returns runs of bytes around hits, those with the most hits first, up to `budget` bytes.
    fn windows(&self, hits: &[Hit], budget: u64) -> Vec<Span> {
        let mut windows: Vec<(usize, Of, u64, u64)> = Vec::new();
        for hit in hits {
            let chunk = &self.chunks(hit.of)[hit.chunk as usize];
            let start = chunk.offset.saturating_sub(ANCHOR_MARGIN);
            let end = chunk.offset + u64::from(chunk.len) + ANCHOR_MARGIN;
            match windows.last_mut() {
                Some((count, of, from, to)) if *of == hit.of && start <= *to && end - *from <= budget => {
                    *count += 1;
                    *to = end;
                }
                _ => windows.push((1, hit.of, start, end)),
            }
        }
        windows.sort_unstable_by_key(|(count, of, start, _)| (std::cmp::Reverse(*count), *of, *start));
        let (mut left, mut out) = (budget, Vec::new());
        for (_, of, start, end) in windows {
            if end - start <= left {
                left -= end - start;
                let chunks = ranges::covering(self.chunks(of), start, end);
                out.extend(self.usable(Span { of, chunks }));
            }
        }
        out
    }

    fn chunks(&self, of: Of) -> &[ChunkSpan] {
        match of {
            Of::Old => self.old.chunks,
            Of::New => self.new.chunks,
        }
    }

    /// Closes the last job and makes the solid jobs. Solid jobs come first, because others may use
    /// their chunks as base.
    fn finish(mut self) -> Vec<PatchJob> {
        self.close();
        let mut solid = std::mem::take(&mut self.solid);
        let key = |unit: &Unit| {
            let region = &self.new.regions.all()[unit.region];
            let name = self.new.regions.name(region).unwrap_or_default();
            (region.kind, names::extension(name), name, unit.chunks.start)
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
            jobs.push(PatchJob { targets: targets.into_iter().collect(), bases });
        }
        jobs
    }
}

/// Returns the value that is to `other` as `part` is to `whole`.
fn scaled(part: u64, whole: u64, other: u64) -> u64 {
    (u128::from(part) * u128::from(other) / u128::from(whole.max(1))) as u64
}

/// Returns whether a hit lies in one of the spans.
fn covers(spans: &[Span], hit: &Hit) -> bool {
    spans.iter().any(|span| span.of == hit.of && span.chunks.contains(&hit.chunk))
}
