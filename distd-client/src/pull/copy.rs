//! Copying of held chunks: read, hash and write in long runs, on all cores.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use distd_core::planner::HeldAt;
use distd_core::{ChunkHash, Position};

use super::entries::Entries;
use super::journal::Journal;
use super::seeds::SeedFile;
use super::target::Target;
use crate::threads::on_all_cores;

/// Longest run that is read and written at once, in bytes.
const RUN_BYTES_MAX: u64 = 1 << 20;

/// Chunks that are adjacent both in the artifact and in one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: Position,
    count: u64,
    from: HeldAt,
    offset: u64,
    bytes: u64,
}

impl Run {
    /// Returns the position behind the run.
    fn end(&self) -> Position {
        Position(self.first.0 + self.count)
    }

    fn positions(&self) -> impl Iterator<Item = Position> + use<> {
        (self.first.0..self.end().0).map(Position)
    }
}

fn runs(entries: &Entries, held: &[(Position, HeldAt)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(position, from) in held {
        let at = entries.get(position);
        let len = u64::from(at.entry.len);
        if let Some(run) = runs.last_mut()
            && run.end() == position
            && run.from.seed == from.seed
            && run.from.offset + run.bytes == from.offset
            && run.bytes + len <= RUN_BYTES_MAX
        {
            run.count += 1;
            run.bytes += len;
            continue;
        }
        runs.push(Run { first: position, count: 1, from, offset: at.offset, bytes: len });
    }
    runs
}

/// Result of copying.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Bytes copied.
    pub(super) bytes: u64,
    /// Positions whose seed had other bytes; these chunks have to be fetched.
    pub(super) failed: Vec<Position>,
}

/// Copies the `held` positions (ascending) into the target; every chunk is hashed as it is read.
///
/// # Errors
/// The target's errors. A seed that cannot be read is not an error; its chunks count as failed.
pub(super) fn copy_held(
    entries: &Entries,
    held: &[(Position, HeldAt)],
    seeds: &[SeedFile],
    target: &dyn Target,
    journal: &Mutex<Journal>,
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<Copied> {
    let runs = runs(entries, held);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Copied::default());
    let work = || -> io::Result<()> {
        let mut buffer = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let mut copied = Copied::default();
            copy_run(entries, run, &seeds[run.from.seed as usize], target, &mut buffer, &mut copied)?;
            {
                let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
                for position in run.positions() {
                    if !copied.failed.contains(&position) {
                        journal.add(position);
                    }
                }
            }
            progress(copied.bytes);
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.bytes += copied.bytes;
            total.failed.append(&mut copied.failed);
        }
        Ok(())
    };
    on_all_cores(work, || stop.store(true, Ordering::Relaxed))?;
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.failed.sort_unstable();
    Ok(total)
}

fn copy_run(
    entries: &Entries,
    run: &Run,
    seed: &SeedFile,
    target: &dyn Target,
    buffer: &mut Vec<u8>,
    copied: &mut Copied,
) -> io::Result<()> {
    buffer.resize(run.bytes as usize, 0);
    // If the seed ends early or fails to read, read its chunks one by one, so that the readable
    // chunks still count.
    let whole = seed.read_at(run.from.offset, buffer).is_ok();
    let mut at = 0;
    let mut good_from = 0;
    for position in run.positions() {
        let entry = entries.get(position).entry;
        let end = at + entry.len as usize;
        let read = whole || seed.read_at(run.from.offset + at as u64, &mut buffer[at..end]).is_ok();
        if !read || ChunkHash::of(&buffer[at..end]) != entry.hash {
            write(target, run.offset, good_from..at, buffer)?;
            good_from = end;
            copied.failed.push(position);
        } else {
            copied.bytes += u64::from(entry.len);
        }
        at = end;
    }
    write(target, run.offset, good_from..at, buffer)
}

fn write(target: &dyn Target, offset: u64, range: std::ops::Range<usize>, buffer: &[u8]) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    target.write_at(offset + range.start as u64, &buffer[range])
}

/// Returns those of `positions` whose chunk is already in the target, by hashing the target's
/// bytes.
pub(super) fn held_in_place(entries: &Entries, positions: &[Position], target: &dyn Target) -> Vec<Position> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    // Give adjacent positions to one thread, so that reads are sequential.
    let pieces: Vec<&[Position]> = positions.chunks(256).collect();
    let work = || {
        let mut buffer = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut mine = Vec::new();
            for &position in *piece {
                let at = entries.get(position);
                buffer.resize(at.entry.len as usize, 0);
                if target.read_at(at.offset, &mut buffer).is_ok() && ChunkHash::of(&buffer) == at.entry.hash {
                    mine.push(position);
                }
            }
            found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable();
    found
}
