//! Encoding of jobs as patches.

use std::io;
use std::ops::Range;

use super::layouts::Growing;
use super::ranges::bytes_of;
use super::{ChunkSpan, Of, Side, Span};
use crate::bounds::{
    PATCH_BASE_BYTES_MAX, PATCH_LARGE_BYTES_MAX, PATCH_LARGE_PAYLOAD_BYTES_MAX, PATCH_TARGET_BYTES_MAX,
};
use crate::cut::ReadAt;
use crate::patch::codec::encode_references;
use crate::patch::references::{self, Layout};
use crate::patch::{Effort, PatchMethod, encode};

/// Chunks to rebuild together, and the chunks that make their base. Jobs can be built in any order
/// and concurrently; their patches must be applied in the order of the jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchJob {
    /// Indices of chunks of the new release, in the order in which their bytes make the target.
    pub targets: Vec<Range<u32>>,
    /// Chunks whose bytes make the base, in this order; empty for a solid segment.
    pub bases: Vec<Span>,
    /// Whether the job is one large file, with the bounds of [`Method::Large`].
    ///
    /// [`Method::Large`]: crate::patch::Method::Large
    pub large: bool,
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
    /// Payload for [`decode`](crate::patch::decode), at most `PATCH_PAYLOAD_BYTES_MAX` bytes. Of a
    /// large patch the coded bytes, which travel as [`LargePayload`](crate::patch::LargePayload).
    pub payload: Vec<u8>,
    /// Whether the job was [large](PatchJob::large).
    pub large: bool,
}

/// A patch must save one part in this many of its target, as packing must for a chunk.
const SAVED_MIN: usize = 16;

/// If a suffix-array difference takes less than one part in this many of the target, zstd is not
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
    let max = if job.large { PATCH_LARGE_BYTES_MAX } else { PATCH_BASE_BYTES_MAX };
    let (mut base, mut layout) = (Vec::new(), Growing::default());
    for span in &job.bases {
        match span.of {
            Of::Old => read(old, &span.chunks, max, &mut base)?,
            Of::New => read(new, &span.chunks, max, &mut base)?,
        }
        match span.of {
            Of::Old => layout.add(old, Of::Old as u8, &span.chunks)?,
            Of::New => layout.add(new, Of::New as u8, &span.chunks)?,
        }
    }
    let layout = layout.finish();
    let base = Base { bytes: &base, layout: &layout };
    if job.large {
        return Ok(large(job, base, new)?.into_iter().collect());
    }
    let mut patches = Vec::new();
    split(&job.targets, job, base, new, effort, &mut patches)?;
    Ok(patches)
}

/// Bytes of a base and their addresses.
#[derive(Clone, Copy)]
struct Base<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
}

/// Returns the bytes of chunks of the new release, and their addresses.
fn target_of<S: ReadAt + ?Sized>(
    targets: &[Range<u32>],
    new: Side<'_, S>,
    max: usize,
) -> io::Result<(Vec<u8>, Layout)> {
    let (mut target, mut layout) = (Vec::new(), Growing::default());
    for range in targets {
        read(new, range, max, &mut target)?;
        layout.add(new, Of::New as u8, range)?;
    }
    Ok((target, layout.finish()))
}

/// Builds the patch of a large job.
fn large<S: ReadAt + ?Sized>(job: &PatchJob, base: Base<'_>, new: Side<'_, S>) -> io::Result<Option<Patch>> {
    let (target, layout) = target_of(&job.targets, new, PATCH_LARGE_BYTES_MAX)?;
    let payload = references::encode(base.bytes, &target, [base.layout, &layout], target.len() / EXTRA_PART)
        .filter(|payload| {
            payload.len() <= PATCH_LARGE_PAYLOAD_BYTES_MAX && saves(payload.len(), target.len())
        });
    Ok(payload.map(|payload| Patch {
        codec: PatchMethod::References,
        targets: job.targets.clone(),
        bases: job.bases.clone(),
        payload,
        large: true,
    }))
}

fn saves(payload: usize, target: usize) -> bool {
    payload <= target - target.div_ceil(SAVED_MIN)
}

fn split<S: ReadAt + ?Sized>(
    targets: &[Range<u32>],
    job: &PatchJob,
    base: Base<'_>,
    new: Side<'_, S>,
    effort: Effort,
    patches: &mut Vec<Patch>,
) -> io::Result<()> {
    let (target, layout) = target_of(targets, new, PATCH_TARGET_BYTES_MAX)?;
    if let Some((codec, payload)) = best(base, &target, &layout, effort) {
        if saves(payload.len(), target.len()) {
            let (targets, bases) = (targets.to_vec(), job.bases.clone());
            patches.push(Patch { codec, targets, bases, payload, large: false });
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
fn best(base: Base<'_>, target: &[u8], layout: &Layout, effort: Effort) -> Option<(PatchMethod, Vec<u8>)> {
    let with = |method| Some((method, encode(method, base.bytes, target, effort)?));
    if base.bytes.is_empty() {
        return with(PatchMethod::Zstd);
    }
    let references = encode_references(base.bytes, target, [base.layout, layout], target.len() / EXTRA_PART)
        .map(|payload| (PatchMethod::References, payload));
    // Codec 3 decodes more slowly, and devices of earlier versions do not know it: it has to be
    // worth that.
    let suffix = with(PatchMethod::Suffix);
    let most = suffix.as_ref().map_or(usize::MAX, |(_, p)| p.len() / REFERENCES_PART.1 * REFERENCES_PART.0);
    let smaller = references.filter(|(_, payload)| payload.len() <= most).or(suffix);
    if smaller.as_ref().is_some_and(|(_, payload)| payload.len() < target.len() / ZSTD_TRIED) {
        return smaller;
    }
    with(PatchMethod::Zstd).into_iter().chain(smaller).min_by_key(|(_, payload)| payload.len())
}

/// Codec 3 is not tried if more than one part in this many of the target is new: such bytes decode
/// slowly, and zstd packs them nearly as well.
const EXTRA_PART: usize = 2;

/// A payload of codec 3 may have this part of the bytes of one of codec 2, at most.
const REFERENCES_PART: (usize, usize) = (7, 8);

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
