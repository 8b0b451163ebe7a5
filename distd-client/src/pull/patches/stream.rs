//! Patches that take more than fits into memory: packed files unpacked, and views packed again.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::Mutex;

use distd_core::cut::ReadAt;
use distd_core::patch::{SetPatch, view};
use distd_core::{ChunkHash, ChunkId};

use super::apply::{Done, Work, lock, read_base};
use super::passing::Passing;

/// What either keeps in memory, about (see `distd_core::patch::view`): it works alone or beside small patches.
pub(super) const MEMORY: usize = 12 << 20;

/// Chunks one behind the other as one run of bytes.
struct Joined<'w> {
    work: &'w Work,
    /// First byte and id of each chunk.
    starts: Vec<(u64, ChunkId)>,
    len: u64,
    /// The chunk read last: reading is sequential, in pieces longer and shorter than chunks.
    last: Mutex<(Option<usize>, Vec<u8>)>,
}

impl<'w> Joined<'w> {
    fn new(work: &'w Work, ids: impl Iterator<Item = ChunkId>) -> Option<Self> {
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

/// Reads it from the start.
struct Reader<'j>(&'j Joined<'j>, u64);

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = buf.len().min(usize::try_from(self.0.len - self.1).unwrap_or(usize::MAX));
        self.0.read_exact_at(&mut buf[..count], self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}

/// Writes to a place set aside.
struct Aside<'p> {
    passing: &'p Passing,
    at: u64,
    left: u64,
}

impl Write for Aside<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.passing.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks a packed file; `None` when it is not the one the set was made of.
pub(super) fn inflate(work: &Work, patch: &SetPatch, recipe: &[u8]) -> Option<Done> {
    let packed = Joined::new(work, patch.base_ids())?;
    let bytes = patch.target_bytes() as u64;
    let at = work.passing.reserve(bytes);
    let mut sink = Aside { passing: &work.passing, at, left: bytes };
    let result = view::unpack_with(recipe, &packed, bytes, &mut sink);
    if let Err(error) = &result {
        tracing::debug!(error = error as &dyn std::error::Error, "a packed file does not unpack");
    }
    if result.ok()? != bytes {
        return None;
    }
    work.passing.publish(at, patch.target_chunks());
    Some(Done::default())
}

/// Cuts what comes into target chunks and puts each in place.
struct Chunked<'w, I> {
    work: &'w Work,
    targets: I,
    current: Option<(ChunkId, u32)>,
    raw: Vec<u8>,
    done: Done,
    /// The target's own error, which is not the patch's.
    failed: Option<io::Error>,
}

impl<I: Iterator<Item = (ChunkId, u32)>> Write for Chunked<'_, I> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (id, len) = match self.current.or_else(|| self.targets.next()) {
            Some(current) => current,
            // More than the packed file has.
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        self.current = Some((id, len));
        let count = bytes.len().min(len as usize - self.raw.len());
        self.raw.extend_from_slice(&bytes[..count]);
        if self.raw.len() == len as usize {
            match self.work.entry(id) {
                Some(entry) if entry.hash == ChunkHash::of(&self.raw) => {
                    match self.work.place(id, &self.raw) {
                        Ok(placed) => self.done.placed_bytes += placed,
                        Err(error) => {
                            self.failed = Some(error);
                            return Err(io::ErrorKind::Other.into());
                        }
                    }
                }
                Some(_) => drop(self.done.wrong.insert(id)),
                // In place already, from a seed or an earlier run.
                None if self.work.tables[0].get(id).is_some() => {}
                // Of a release in between: base of a later set's patches.
                None => {
                    if self.work.passing.write(id, &self.raw).is_err() {
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
/// The target's.
pub(super) fn repack(work: &Work, patch: &SetPatch, recipe: &[u8]) -> io::Result<Option<Done>> {
    let Some(view) = Joined::new(work, patch.base_ids()) else { return Ok(None) };
    let mut sink = Chunked {
        work,
        targets: patch.target_chunks(),
        current: None,
        raw: Vec::new(),
        done: Done::default(),
        failed: None,
    };
    let result = view::repack(recipe, &mut Reader(&view, 0), &mut sink);
    if let Some(error) = sink.failed {
        return Err(error);
    }
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "a view does not pack again");
    }
    // Whatever did not get its turn did not come out; what did is good.
    let rest: BTreeSet<ChunkId> = sink.current.into_iter().chain(sink.targets).map(|(id, _)| id).collect();
    let mut done = sink.done;
    done.wrong.extend(rest);
    Ok(Some(done))
}
