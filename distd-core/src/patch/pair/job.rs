//! From a job to the patches that do it.

use std::io;
use std::ops::Range;

use super::ranges::bytes_of;
use super::{ChunkSpan, Of, Side, Span};
use crate::cut::ReadAt;
use crate::limits::{PATCH_BASE_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use crate::patch::{Codec, Effort, encode};

/// Chunks to rebuild, and what may help. Jobs can be built in any order and at once; applied, they come in theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchJob {
    /// Indices of chunks of the new release, in the order in which their bytes make the target.
    pub targets: Vec<Range<u32>>,
    /// Chunks whose bytes make the base, in this order; none for a solid segment.
    pub bases: Vec<Span>,
}

/// A finished patch between two lists of chunks; a publisher replaces indices by ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// How the payload works.
    pub codec: Codec,
    /// Indices of chunks of the new release, in the order in which their bytes make the target.
    pub targets: Vec<Range<u32>>,
    /// Chunks whose bytes make the base, in this order; none for a solid segment.
    pub bases: Vec<Span>,
    /// What [`decode`](crate::patch::decode) takes, at most `PATCH_PAYLOAD_BYTES_MAX` bytes.
    pub payload: Vec<u8>,
}

/// A patch must save this part of its target, as chunks must when they are packed.
const SAVED_MIN: usize = 16;

/// Where the suffix-array difference leaves less than this part of the target, zstd leaves more. A guess.
const ZSTD_TRIED: usize = 12;

/// The patches of a job: one, or several when a payload came out too long. Chunks of the job that are in none of
/// them are not worth a patch.
///
/// Depends on nothing but its arguments: a caller may build jobs on as many threads as it likes. Memory: base and target, and what [`encode`] says.
///
/// # Errors
/// What reading either side reports; [`io::ErrorKind::InvalidInput`] for a job above the limits or outside `old`
/// and `new`.
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
    // The payload would be too long to travel: two halves, each with the whole base.
    let Some((left, right)) = halves(targets, new.chunks) else { return Ok(()) };
    split(&left, job, base, new, effort, patches)?;
    split(&right, job, base, new, effort, patches)
}

/// The codec with the fewest bytes. The suffix-array difference is an order of magnitude quicker than a high zstd level
/// with a base, and nearly always smaller where most of the target resembles the base; then zstd is not tried.
fn best(base: &[u8], target: &[u8], effort: Effort) -> Option<(Codec, Vec<u8>)> {
    if base.is_empty() {
        return Some((Codec::Zstd, encode(Codec::Zstd, base, target, effort)?));
    }
    let suffix = encode(Codec::Suffix, base, target, effort);
    if suffix.as_ref().is_some_and(|payload| payload.len() < target.len() / ZSTD_TRIED) {
        return suffix.map(|payload| (Codec::Suffix, payload));
    }
    let zstd = encode(Codec::Zstd, base, target, effort).map(|payload| (Codec::Zstd, payload));
    suffix.map(|payload| (Codec::Suffix, payload)).into_iter().chain(zstd).min_by_key(|(_, p)| p.len())
}

type Runs = Vec<Range<u32>>;

/// Two runs of about as many bytes; `None` for a single chunk.
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

/// Appends the bytes of some chunks; together at most `max`.
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
