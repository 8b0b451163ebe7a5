//! Patches whose targets are too large for memory: packed files are unpacked, views are packed
//! again, hash trees are computed, and large files are rebuilt.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::Mutex;

use distd_core::ChunkHash;
use distd_core::cut::ReadAt;
use distd_core::error::Chain;
use distd_core::patch::view::{self, RecipeError};
use distd_core::patch::{Cost, Method, PatchChunkId, SetPatch, hash_tree, rebuild_large};

use super::apply::{Done, Work, lock, read_base};
use super::transient::TransientChunks;

/// Consecutive chunks read as one sequence of bytes.
struct Joined<'w> {
    work: &'w Work,
    /// Offset and id of each chunk.
    starts: Vec<(u64, PatchChunkId)>,
    len: u64,
    /// Chunk read last. Reads are sequential, in pieces longer or shorter than chunks.
    last: Mutex<(Option<usize>, Vec<u8>)>,
}

impl<'w> Joined<'w> {
    fn new(work: &'w Work, ids: impl Iterator<Item = PatchChunkId>) -> Option<Self> {
        let (mut starts, mut len) = (Vec::new(), 0);
        for id in ids {
            starts.push((len, id));
            len += u64::from(work.len_of(id)?);
        }
        Some(Self { work, starts, len, last: Mutex::default() })
    }
}

impl ReadAt for Joined<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        let mut last = lock(&self.last);
        while !buf.is_empty() {
            let index = self.starts.partition_point(|(start, _)| *start <= offset);
            let index =
                index.checked_sub(1).filter(|_| offset < self.len).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (start, id) = self.starts[index];
            if last.0 != Some(index) {
                last.0 = None;
                last.1.clear();
                read_base(self.work, id, &mut last.1).ok_or(io::ErrorKind::InvalidData)?;
                last.0 = Some(index);
            }
            let within = &last.1[(offset - start) as usize..];
            let count = within.len().min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            now.copy_from_slice(&within[..count]);
            (buf, offset) = (later, offset + count as u64);
        }
        Ok(())
    }
}

/// Reads a [`Joined`] from its start.
struct Reader<'j>(&'j Joined<'j>, u64);

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = buf.len().min(usize::try_from(self.0.len - self.1).unwrap_or(usize::MAX));
        self.0.read_exact_at(&mut buf[..count], self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}

/// Writes into a reserved range of the transient chunks' file.
struct Aside<'p> {
    transient: &'p TransientChunks,
    at: u64,
    left: u64,
}

impl Write for Aside<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.transient.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns whether a recipe needs no more memory than the index of the set says. Only the index was
/// compared with this device's memory.
fn is_within(patch: &SetPatch, cost: Result<Cost, RecipeError>) -> bool {
    let stated = patch.method().and_then(Method::memory);
    match cost {
        Ok(cost) if stated.is_some_and(|stated| cost.memory() <= stated) => true,
        Ok(cost) => {
            tracing::debug!(bytes = cost.memory(), "a recipe needs more memory than its set says");
            false
        }
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "a recipe is not sound");
            false
        }
    }
}

/// Unpacks a packed file; `None` when the file is not the one that the set was made from.
pub(super) fn inflate(work: &Work, patch: &SetPatch, recipe: &[u8]) -> Option<Done> {
    if !is_within(patch, view::unpack_cost(recipe)) {
        return None;
    }
    let packed = Joined::new(work, patch.base_ids())?;
    let bytes = patch.target_bytes() as u64;
    let at = work.transient.reserve(bytes);
    let mut sink = Aside { transient: &work.transient, at, left: bytes };
    let result = view::unpack_base(recipe, &packed, bytes, &mut sink);
    if let Err(error) = &result {
        tracing::debug!(error = %Chain(error), "a packed file does not unpack");
    }
    if result.ok()? != bytes {
        return None;
    }
    work.transient.publish(at, patch.target_chunks());
    Some(Done::default())
}

/// Cuts the output into target chunks and puts each in place.
struct Chunked<'w, I> {
    work: &'w Work,
    targets: I,
    current: Option<(PatchChunkId, u32)>,
    raw: Vec<u8>,
    done: Done,
    /// Error of the target, as opposed to a failure of the patch.
    failed: Option<io::Error>,
}

impl<I: Iterator<Item = (PatchChunkId, u32)>> Write for Chunked<'_, I> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (id, len) = match self.current.or_else(|| self.targets.next()) {
            Some(current) => current,
            // The output is longer than the packed file.
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        self.current = Some((id, len));
        let count = bytes.len().min(len as usize - self.raw.len());
        self.raw.extend_from_slice(&bytes[..count]);
        if self.raw.len() == len as usize {
            match self.work.entry(id) {
                Some(entry) if entry.hash == ChunkHash::of(&self.raw) => {
                    match self.work.place(&entry, &self.raw) {
                        Ok(placed) => self.done.placed_bytes += placed,
                        Err(error) => {
                            self.failed = Some(error);
                            return Err(io::ErrorKind::Other.into());
                        }
                    }
                }
                Some(_) => drop(self.done.wrong.insert(id)),
                // The chunk is in place already, from a seed or an earlier run.
                None if self.work.is_of_artifact(id) => {}
                // The chunk belongs to an intermediate release and is a base for patches of a later
                // set.
                None => {
                    if self.work.transient.write(id, &self.raw).is_err() {
                        self.done.wrong.insert(id);
                    }
                }
            }
            self.current = None;
            self.raw.clear();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs a view again.
///
/// # Errors
/// The target's errors.
pub(super) fn repack(work: &Work, patch: &SetPatch, recipe: &[u8]) -> io::Result<Option<Done>> {
    if !is_within(patch, view::cost(recipe)) {
        return Ok(None);
    }
    rebuild(work, patch, |base, out| view::repack(recipe, base, out))
}

/// Computes a part of a hash tree.
///
/// # Errors
/// The target's errors.
pub(super) fn compute(work: &Work, patch: &SetPatch, recipe: &[u8]) -> io::Result<Option<Done>> {
    rebuild(work, patch, |base, out| {
        hash_tree::compute(recipe, &mut io::BufReader::with_capacity(64 << 10, base), out)
    })
}

/// Rebuilds a large file, whose base is held in memory.
///
/// # Errors
/// The target's errors.
pub(super) fn large(work: &Work, patch: &SetPatch, payload: &[u8]) -> io::Result<Option<Done>> {
    let Some(memory) = patch.method().and_then(Method::memory) else { return Ok(None) };
    let bytes = patch.target_bytes() as u64;
    let base_bytes: Option<u64> = patch.base_ids().map(|id| work.len_of(id).map(u64::from)).sum();
    let Some(base_bytes) = base_bytes.filter(|bytes| *bytes <= memory) else { return Ok(None) };
    rebuild(work, patch, |base, out| {
        let mut held = Vec::with_capacity(base_bytes as usize);
        base.take(base_bytes).read_to_end(&mut held)?;
        let rebuilt = rebuild_large(&held, payload, bytes, memory, &mut |bytes| out.write_all(bytes))?;
        rebuilt.map(|()| bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error).into())
    })
}

/// Makes the targets with `run`, which reads the base once, in order, and returns the number of
/// bytes that it wrote.
fn rebuild(
    work: &Work,
    patch: &SetPatch,
    run: impl FnOnce(&mut dyn Read, &mut dyn Write) -> Result<u64, RecipeError>,
) -> io::Result<Option<Done>> {
    let Some(base) = Joined::new(work, patch.base_ids()) else { return Ok(None) };
    let mut sink = Chunked {
        work,
        targets: patch.target_chunks(),
        current: None,
        raw: Vec::new(),
        done: Done::default(),
        failed: None,
    };
    let result = run(&mut Reader(&base, 0), &mut sink);
    if let Some(error) = sink.failed {
        return Err(error);
    }
    if let Err(error) = result {
        tracing::debug!(error = %Chain(&error), "a streaming patch fails");
    }
    // Target chunks that the output did not reach are missing; the chunks before them are good.
    let rest: BTreeSet<PatchChunkId> =
        sink.current.into_iter().chain(sink.targets).map(|(id, _)| id).collect();
    let mut done = sink.done;
    done.wrong.extend(rest);
    Ok(Some(done))
}
