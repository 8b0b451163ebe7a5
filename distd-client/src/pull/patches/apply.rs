//! Application of patches while their payloads arrive: in order, on all cores, within a memory
//! limit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use distd_core::bounds::PATCH_BASE_BYTES_MAX;
use distd_core::error::Chain;
use distd_core::manifest::Entry;
use distd_core::patch::{
    Choice, Cost, Method, PatchChunkId, PatchMethod, PatchRef, SetPatch, decode, references_memory,
};
use distd_core::planner::{HeldAt, HeldIndex};
use distd_core::{ChunkHash, ChunkId};
use distd_peer::table::ChunkTable;

use super::offers::Offers;
use super::payloads::Payloads;
use super::stream;
use super::transient::TransientChunks;
use crate::pull::place::Placer;
use crate::pull::seeds::Seeds;
use crate::threads::on_all_cores;

/// Bytes of bases and targets in memory at once, over all threads. A patch that needs more than the
/// free part waits; a patch that needs more than the whole works alone.
const BYTES_AT_ONCE: u64 = 6 << 20;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arrivals that patches wait for.
#[derive(Default)]
pub(in crate::pull) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    payloads: BTreeSet<PatchRef>,
    /// Chunks that no seed holds; the value says whether the chunk arrived, or cannot arrive any
    /// more.
    bases: BTreeMap<PatchChunkId, bool>,
    /// Nothing more is fetched.
    fetched: bool,
    /// A thread failed; all others stop.
    aborted: bool,
}

impl Arrivals {
    /// Records that a payload is in its file.
    pub(in crate::pull) fn payload(&self, at: PatchRef) {
        lock(&self.state).payloads.insert(at);
        self.changed.notify_all();
    }

    /// Records that a chunk is in place, or will not be.
    pub(in crate::pull) fn base(&self, id: PatchChunkId, in_place: bool) {
        lock(&self.state).bases.insert(id, in_place);
        self.changed.notify_all();
    }

    /// Records that nothing more is fetched. A base that is not here by now comes out of a patch,
    /// or not at all.
    pub(in crate::pull) fn all_fetched(&self) {
        lock(&self.state).fetched = true;
        self.changed.notify_all();
    }

    /// Stops all waiting threads after an error.
    fn abort(&self) {
        lock(&self.state).aborted = true;
        self.changed.notify_all();
    }

    /// Waits for a payload and some bases; returns false when one of them will not come. For a base
    /// that an earlier patch makes (`is_made`), that patch reports whether the base is there.
    fn wait(&self, at: PatchRef, bases: &[PatchChunkId], is_made: impl Fn(PatchChunkId) -> bool) -> bool {
        let mut state = lock(&self.state);
        // Check the bases one after the other: a view has thousands, and each is looked up once.
        let mut bases = bases.iter().peekable();
        loop {
            while let Some(in_place) = bases.peek().and_then(|id| state.bases.get(id)) {
                if !in_place {
                    return false;
                }
                bases.next();
            }
            let here = state.payloads.contains(&at);
            if bases.peek().is_none() && here {
                return true;
            }
            let comes = here && bases.peek().is_none_or(|id| is_made(**id));
            if state.aborted || (state.fetched && !comes) {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Everything needed to apply patches.
pub(in crate::pull) struct Work {
    pub(in crate::pull) offers: Arc<Offers>,
    pub(in crate::pull) choice: Choice,
    pub(in crate::pull) payloads: Vec<Arc<Payloads>>,
    /// Positions of the artifact's chunks; `None` when all rebuilt chunks are set aside.
    pub(in crate::pull) placer: Option<Arc<Placer>>,
    pub(in crate::pull) seeds: Arc<Seeds>,
    pub(in crate::pull) index: Arc<HeldIndex>,
    /// Chunks of the wanted artifact, and those of the seeds.
    pub(in crate::pull) tables: [Arc<ChunkTable>; 2],
    pub(in crate::pull) arrivals: Arc<Arrivals>,
    /// Store of transient chunks, which only other patches need.
    pub(in crate::pull) transient: TransientChunks,
}

impl Work {
    /// Returns the entry of a chunk that is to be put in place; `None` for any other chunk.
    pub(super) fn entry(&self, id: PatchChunkId) -> Option<Entry> {
        self.placer.as_ref()?.entry(id.chunk()?)
    }

    /// Returns whether the wanted artifact has the chunk.
    pub(super) fn is_of_artifact(&self, id: PatchChunkId) -> bool {
        id.chunk().is_some_and(|id| self.tables[0].get(id).is_some())
    }

    /// Returns the raw length of a chunk that may be a base; `None` if it is unknown.
    pub(super) fn len_of(&self, id: PatchChunkId) -> Option<u32> {
        let known = |id| self.tables.iter().find_map(|table| table.get(id)).map(|entry| entry.len);
        id.chunk().and_then(known).or_else(|| self.transient.len(id))
    }

    /// Puts the chunk of an [entry](Self::entry) in place; returns the bytes written.
    pub(super) fn place(&self, entry: &Entry, raw: &[u8]) -> io::Result<u64> {
        self.placer.as_ref().map_or(Ok(0), |placer| placer.place_missing(entry.id, raw))
    }
}

/// Result of applying patches.
#[derive(Debug, Default)]
pub(in crate::pull) struct Applied {
    pub(in crate::pull) patches: u64,
    pub(in crate::pull) failed: u64,
    /// Raw bytes of the chunks put in place.
    pub(in crate::pull) rebuilt_bytes: u64,
    /// Wanted chunks that patches did not yield, ascending; these have to be fetched.
    pub(in crate::pull) missing: Vec<ChunkId>,
}

/// Applies the chosen patches as their payloads arrive; returns when all are applied or have
/// failed.
///
/// # Errors
/// The target's errors. A failed patch is not an error: its chunks are in [`Applied::missing`].
pub(in crate::pull) fn apply_all(work: &Work) -> io::Result<Applied> {
    let mut made: Vec<PatchChunkId> = work
        .choice
        .patches
        .iter()
        .flat_map(|at| work.offers.sets[at.set].index.patches[at.patch].target_chunks())
        .map(|(id, _)| id)
        .collect();
    made.sort_unstable();
    let is_made = |id| made.binary_search(&id).is_ok();
    let next = AtomicUsize::new(0);
    let room = Rooms { buffers: Room::of(BYTES_AT_ONCE), views: Room::of(work.offers.view_memory) };
    let total = Mutex::new(Applied::default());
    let run = || -> io::Result<()> {
        // Take the patches in order, so that a patch never waits for a patch that no thread has
        // begun.
        while let Some(at) = work.choice.patches.get(next.fetch_add(1, Ordering::Relaxed)) {
            let patch = &work.offers.sets[at.set].index.patches[at.patch];
            let late: Vec<PatchChunkId> = patch.base_ids().filter(|id| is_late(work, *id)).collect();
            let mut missing = Vec::new();
            let ready = work.arrivals.wait(*at, &late, is_made);
            let done = if ready { apply_one(work, *at, patch, &room)? } else { None };
            for (id, _) in patch.target_chunks() {
                let came = done.as_ref().is_some_and(|done| !done.wrong.contains(&id));
                if !came && let Some(entry) = work.entry(id) {
                    missing.push(entry.id);
                }
                work.arrivals.base(id, came);
            }
            let rebuilt = done.as_ref().map_or(0, |done| done.placed_bytes);
            let failed = done.is_none_or(|done| !done.wrong.is_empty());
            if failed {
                tracing::debug!(
                    set = at.set,
                    patch = at.patch,
                    ready,
                    "patch failed; fetching its chunks instead"
                );
            }
            let mut total = lock(&total);
            total.patches += u64::from(!failed);
            total.failed += u64::from(failed);
            total.rebuilt_bytes += rebuilt;
            total.missing.append(&mut missing);
        }
        Ok(())
    };
    on_all_cores(run, || work.arrivals.abort())?;
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.missing.sort_unstable();
    total.missing.dedup();
    Ok(total)
}

/// Returns the seed offset of a held chunk, and the chunk's entry.
pub(in crate::pull) fn held(
    index: &HeldIndex,
    tables: &[Arc<ChunkTable>; 2],
    id: ChunkId,
) -> Option<(HeldAt, Entry)> {
    let entry = tables.iter().find_map(|table| table.get(id))?;
    Some((index.find(&entry.hash, entry.len)?, entry))
}

/// Returns whether a patch has to wait for a base: no seed has it, and no earlier run put it in
/// place.
fn is_late(work: &Work, id: PatchChunkId) -> bool {
    id.chunk().and_then(|id| held(&work.index, &work.tables, id)).is_none()
        && (work.entry(id).is_some() || work.choice.transient.binary_search(&id).is_ok())
}

/// Result of a patch that was applied, at least in part.
#[derive(Default)]
pub(super) struct Done {
    pub(super) placed_bytes: u64,
    /// Target chunks that came out with a wrong hash.
    pub(super) wrong: BTreeSet<PatchChunkId>,
}

fn apply_one(work: &Work, at: PatchRef, patch: &SetPatch, room: &Rooms) -> io::Result<Option<Done>> {
    let codec = match patch.method() {
        Some(Method::Buffer(codec)) => codec,
        Some(method @ (Method::Inflate(_) | Method::Repack(_) | Method::HashTree | Method::Large(_))) => {
            let _held = room.take(method.cost());
            let Some(recipe) = work.payloads[at.set].read(at.patch) else { return Ok(None) };
            return match method {
                Method::Inflate(_) => Ok(stream::inflate(work, patch, &recipe)),
                Method::HashTree => stream::compute(work, patch, &recipe),
                Method::Large(_) => stream::large(work, patch, &recipe),
                _ => stream::repack(work, patch, &recipe),
            };
        }
        None => return Ok(None),
    };
    let Some(base_bytes) = base_bytes(work, patch) else { return Ok(None) };
    let target_bytes = patch.target_bytes();
    // The base, the target, and a window over both, or what codec 3 keeps of references.
    let beside = match codec {
        PatchMethod::References => references_memory(target_bytes as u64),
        _ => (base_bytes + target_bytes) as u64,
    };
    let _held = room.buffers.take((base_bytes + target_bytes) as u64 + beside);
    let mut base = Vec::with_capacity(base_bytes);
    for id in patch.base_ids() {
        if read_base(work, id, &mut base).is_none() {
            return Ok(None);
        }
    }
    let Some(payload) = work.payloads[at.set].read(at.patch) else { return Ok(None) };
    let target = match decode(codec, &base, &payload, target_bytes) {
        Ok(target) => target,
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "patch does not decode");
            return Ok(None);
        }
    };
    drop((base, payload));
    let mut done = Done { placed_bytes: 0, wrong: BTreeSet::new() };
    let mut rest = &target[..];
    for (id, len) in patch.target_chunks() {
        let (raw, behind) = rest.split_at(len as usize);
        rest = behind;
        match work.entry(id) {
            Some(entry) if entry.len == len && entry.hash == ChunkHash::of(raw) => {
                done.placed_bytes += work.place(&entry, raw)?;
            }
            Some(_) => drop(done.wrong.insert(id)),
            // The chunk is in place since an earlier run.
            None if work.is_of_artifact(id) => {}
            // The chunk is not the artifact's but transient. The hashes of the chunks made from it
            // verify it.
            None => {
                if let Err(error) = work.transient.write(id, raw) {
                    tracing::debug!(error = %Chain(&error), "could not store a transient chunk");
                    done.wrong.insert(id);
                }
            }
        }
    }
    Ok(Some(done))
}

/// Returns the length of all bases together, in bytes; `None` when a base is unknown or the bases
/// are too large.
fn base_bytes(work: &Work, patch: &SetPatch) -> Option<usize> {
    let mut bytes = 0usize;
    for id in patch.base_ids() {
        bytes += work.len_of(id)? as usize;
        if bytes > PATCH_BASE_BYTES_MAX {
            return None;
        }
    }
    Some(bytes)
}

pub(super) fn read_base(work: &Work, id: PatchChunkId, out: &mut Vec<u8>) -> Option<()> {
    let from = out.len();
    if let Some((at, entry)) = id.chunk().and_then(|id| held(&work.index, &work.tables, id)) {
        out.resize(from + entry.len as usize, 0);
        let read = work.seeds.seeds[at.seed as usize].read_at(at.offset, &mut out[from..]);
        if read.is_ok() && ChunkHash::of(&out[from..]) == entry.hash {
            return Some(());
        }
        out.truncate(from);
    }
    if let Some(placer) = &work.placer
        && let Some(of_artifact) = id.chunk().filter(|id| work.tables[0].get(*id).is_some())
        && placer.read(of_artifact, out).is_some()
    {
        return Some(());
    }
    out.truncate(from);
    work.transient.read(id, out)
}

/// Approximate memory for a view whose patch states none, in bytes (see `distd_core::patch::view`).
/// It exceeds the room for buffers, so such a patch works alone there.
const UNSTATED: u64 = 12 << 20;

/// Memory budgets of the threads.
struct Rooms {
    /// For patches that work in memory.
    buffers: Room,
    /// For views whose patches state their memory.
    views: Room,
}

impl Rooms {
    fn take(&self, cost: Cost) -> Taken<'_> {
        if cost == Cost::UNSTATED { self.buffers.take(UNSTATED) } else { self.views.take(cost.memory()) }
    }
}

/// Memory budget in bytes, shared by the threads.
struct Room {
    max: u64,
    taken: Mutex<u64>,
    freed: Condvar,
}

struct Taken<'r> {
    room: &'r Room,
    bytes: u64,
}

impl Room {
    fn of(max: u64) -> Self {
        Self { max, taken: Mutex::default(), freed: Condvar::new() }
    }

    /// Waits until there is room. A patch that needs more than all of it works alone.
    fn take(&self, bytes: u64) -> Taken<'_> {
        let mut taken = lock(&self.taken);
        while *taken > 0 && *taken + bytes > self.max {
            taken = self.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes;
        Taken { room: self, bytes }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *lock(&self.room.taken) -= self.bytes;
        self.room.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: PatchRef = PatchRef { set: 0, patch: 1 };

    fn chunk(id: u64) -> PatchChunkId {
        ChunkId(id).into()
    }

    #[test]
    fn a_base_that_another_patch_makes_is_waited_for_after_all_was_fetched() {
        let arrivals = Arc::new(Arrivals::default());
        arrivals.payload(AT);
        arrivals.all_fetched();
        let waiting = {
            let arrivals = arrivals.clone();
            std::thread::spawn(move || arrivals.wait(AT, &[chunk(7), chunk(8)], |_| true))
        };
        arrivals.base(chunk(8), true);
        arrivals.base(chunk(7), true);
        assert!(waiting.join().expect("no panic"));
    }

    #[test]
    fn views_share_their_memory_and_one_that_needs_more_works_alone() {
        let room = Room::of(100);
        let (one, other) = (room.take(60), room.take(40));
        assert_eq!(*lock(&room.taken), 100);
        std::thread::scope(|scope| {
            let third = scope.spawn(|| {
                let _third = room.take(41);
                *lock(&room.taken)
            });
            drop(one);
            // Freeing 60 is what the third waits for: 40 and 41 fit.
            assert_eq!(third.join().expect("no panic"), 81);
        });
        drop(other);
        assert_eq!(*lock(&room.taken), 0);
        let _large = room.take(1000);
        assert_eq!(*lock(&room.taken), 1000);
    }

    #[test]
    fn waiting_ends_when_a_base_or_payload_cannot_arrive() {
        let arrivals = Arrivals::default();
        arrivals.base(chunk(1), false);
        arrivals.payload(AT);
        assert!(!arrivals.wait(AT, &[chunk(1)], |_| true));
        arrivals.all_fetched();
        assert!(!arrivals.wait(AT, &[chunk(2)], |_| false));
        assert!(!arrivals.wait(PatchRef { set: 0, patch: 2 }, &[], |_| true), "its payload did not come");
        arrivals.abort();
        assert!(!arrivals.wait(AT, &[chunk(2)], |_| true));
    }
}
