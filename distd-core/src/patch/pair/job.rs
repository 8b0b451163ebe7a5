//! Encoding of jobs as patches.

use std::io;
use std::ops::Range;

use super::ranges::bytes_of;
use super::{ChunkSpan, Of, Side, Span};
use crate::bounds::{PATCH_BASE_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use crate::cut::ReadAt;
use crate::patch::{Effort, PatchMethod, encode};

/// Chunks to rebuild together, and the chunks that make their base. Jobs can be built in any order
/// and concurrently; their patches must be applied in the order of the jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchJob {
    /// Indices of chunks of the new release, in the order in which their bytes make the target.
    pub targets: Vec<Range<u32>>,
    /// Chunks whose bytes make the base, in this order; empty for a solid segment.
    pub bases: Vec<Span>,
}

/// Finished patch between two lists of chunks. The publisher replaces indices by ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Method by which the payload rebuilds the targets.
    pub codec: PatchMethod,
    /// Indices of chunks of the new release, in the order in which their bytes make the target.
    pub targets: Vec<Range<u32>>,
    /// Chunks whose bytes make the base, in this order; empty for a solid segment.
    pub bases: Vec<Span>,
    /// Payload for [`decode`](crate::patch::decode), at most `PATCH_PAYLOAD_BYTES_MAX` bytes.
    pub payload: Vec<u8>,
}

/// A patch must save one part in this many of its target, as packing must for a chunk.
const SAVED_MIN: usize = 16;

/// If the suffix-array difference takes less than one part in this many of the target, zstd is not
/// tried, because it would take more. A guess.
const ZSTD_TRIED: usize = 12;

/// Builds the patches of a job: one, or several when a payload came out too long. Chunks of the job
/// that are in none of the patches are not worth one.
///
/// The result depends on the arguments alone, so a caller may build jobs on any number of threads.
/// Memory: base and target, and the needs of [`encode`].
///
/// # Errors
/// Any error from reading either side; [`io::ErrorKind::InvalidInput`] for a job above the limits
/// or outside `old` and `new`.
pub fn build<R: ReadAt + ?Sized, S: ReadAt + ?Sized>(
    job: &PatchJob,
    old: Side<'_, R>,
    new: Side<'_, S>,
    effort: Effort,
) -> io::Result<Vec<Patch>> {
    let mut base = Vec::new();
    for span in &job.bases {
        match span.of {
            Of::Old => read(old, &span.chunks, PATCH_BASE_BYTES_MAX, &mut base)?,
            Of::New => read(new, &span.chunks, PATCH_BASE_BYTES_MAX, &mut base)?,
        }
    }
    let mut patches = Vec::new();
    split(&job.targets, job, &base, new, effort, &mut patches)?;
    Ok(patches)
}

fn split<S: ReadAt + ?Sized>(
    targets: &[Range<u32>],
    job: &PatchJob,
    base: &[u8],
    new: Side<'_, S>,
    effort: Effort,
    patches: &mut Vec<Patch>,
) -> io::Result<()> {
    let mut target = Vec::new();
    for range in targets {
        read(new, range, PATCH_TARGET_BYTES_MAX, &mut target)?;
    }
    let best = best(base, &target, effort);
    if let Some((codec, payload)) = best {
        if payload.len() <= target.len() - target.len().div_ceil(SAVED_MIN) {
            patches.push(Patch { codec, targets: targets.to_vec(), bases: job.bases.clone(), payload });
        }
        return Ok(());
    }
    // The payload is longer than a chunk may be: split the job in two halves, each with the whole
    // base.
    let Some((left, right)) = halves(targets, new.chunks) else { return Ok(()) };
    split(&left, job, base, new, effort, patches)?;
    split(&right, job, base, new, effort, patches)
}

/// Encodes with the codec that needs the fewest bytes. The suffix-array difference is an order of
/// magnitude quicker than a high zstd level with a base, and nearly always smaller if most of the
/// target resembles the base; zstd is not tried then.
fn best(base: &[u8], target: &[u8], effort: Effort) -> Option<(PatchMethod, Vec<u8>)> {
    if base.is_empty() {
        return Some((PatchMethod::Zstd, encode(PatchMethod::Zstd, base, target, effort)?));
    }
    let suffix = encode(PatchMethod::Suffix, base, target, effort);
    if suffix.as_ref().is_some_and(|payload| payload.len() < target.len() / ZSTD_TRIED) {
        return suffix.map(|payload| (PatchMethod::Suffix, payload));
    }
    let zstd = encode(PatchMethod::Zstd, base, target, effort).map(|payload| (PatchMethod::Zstd, payload));
    suffix.map(|payload| (PatchMethod::Suffix, payload)).into_iter().chain(zstd).min_by_key(|(_, p)| p.len())
}

type Runs = Vec<Range<u32>>;

/// Splits the targets into two lists of about the same number of bytes; `None` for a single chunk.
fn halves(targets: &[Range<u32>], chunks: &[ChunkSpan]) -> Option<(Runs, Runs)> {
    let indices: Vec<u32> = targets.iter().cloned().flatten().collect();
    let total: u64 = targets.iter().map(|range| bytes_of(chunks, range.clone())).sum();
    let mut sum = 0;
    let middle = indices
        .iter()
        .position(|index| {
            sum += u64::from(chunks[*index as usize].len);
            sum * 2 >= total
        })?
        .clamp(1, indices.len().checked_sub(1).filter(|last| *last > 0)?);
    let runs = |indices: &[u32]| {
        let mut runs = Runs::new();
        for index in indices {
            match runs.last_mut() {
                Some(run) if run.end == *index => run.end += 1,
                _ => runs.push(*index..*index + 1),
            }
        }
        runs
    };
    Some((runs(&indices[..middle]), runs(&indices[middle..])))
}

/// Appends the bytes of a range of chunks to `out`, which may grow to `max` bytes.
fn read<R: ReadAt + ?Sized>(
    side: Side<'_, R>,
    chunks: &Range<u32>,
    max: usize,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let first = side.chunks.get(chunks.start as usize).ok_or_else(invalid)?;
    if chunks.end as usize > side.chunks.len() {
        return Err(invalid());
    }
    let bytes = bytes_of(side.chunks, chunks.clone());
    let from = out.len();
    let to = usize::try_from(bytes).ok().and_then(|bytes| from.checked_add(bytes)).filter(|to| *to <= max);
    out.resize(to.ok_or_else(invalid)?, 0);
    side.bytes.read_exact_at(&mut out[from..], first.offset)
}
