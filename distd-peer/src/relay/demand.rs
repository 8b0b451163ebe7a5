//! Who waits for which chunk: one upstream fetch, however many ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::ChunkId;
use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::ranges::ChunkRanges;
use tokio::sync::mpsc;

use crate::driver::{ChunkSink, DriverHandle, SinkError};
use crate::serve::NodeBudget;
use crate::store::EdgeStore;
use crate::table::ChunkTable;

/// What a waiter learns of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is in the store.
    Held(ChunkId),
    /// No parent has it.
    Gone(ChunkId),
}

/// A chunk that is on its way, or asked for.
struct Wanted {
    /// Asked for it first: charged for it when nobody waits any more.
    asker: Arc<NodeBudget>,
    waiters: Vec<mpsc::UnboundedSender<Arrival>>,
}

/// The waiters of one swarm, and the sink its driver fills.
pub(super) struct Demand {
    store: Arc<EdgeStore>,
    /// Without waiters when those of a chunk went away and it may come all the same.
    wanted: Mutex<HashMap<ChunkId, Wanted>>,
    /// Chunks fetched from a parent.
    pub(super) fetched: AtomicU64,
    /// Chunks fetched although the store had them: must stay 0.
    pub(super) refetched: AtomicU64,
}

impl Demand {
    pub(super) fn new(store: Arc<EdgeStore>) -> Self {
        Self { store, wanted: Mutex::default(), fetched: AtomicU64::new(0), refetched: AtomicU64::new(0) }
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<ChunkId, Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers for `chunks` on behalf of the node of `budget`, and calls `want` before anybody else may say
    /// that they are not waited for. Ids are 8 bytes each, so the channel needs no bound beyond the request's
    /// own. Returns those that nobody waited for before: what they cost is this node's.
    pub(super) fn wait_for(
        &self,
        chunks: &ChunkRanges,
        budget: &Arc<NodeBudget>,
        tx: &mpsc::UnboundedSender<Arrival>,
        want: impl FnOnce(ChunkRanges),
    ) -> ChunkRanges {
        let mut fresh = ChunkRanges::new();
        let mut all = self.wanted();
        for id in chunks.ids() {
            let new = || Wanted { asker: budget.clone(), waiters: Vec::new() };
            let wanted = all.entry(id).or_insert_with(new);
            if wanted.waiters.is_empty() {
                wanted.asker = budget.clone();
                fresh.insert(id);
            }
            wanted.waiters.push(tx.clone());
        }
        want(chunks.clone());
        fresh
    }

    /// Drops waiters that went away, and calls `unwanted` with those of `chunks` that nobody waits for any more.
    fn forget_gone(&self, chunks: &ChunkRanges, unwanted: impl FnOnce(ChunkRanges)) {
        let mut all = self.wanted();
        let mut forgotten = ChunkRanges::new();
        for id in chunks.ids() {
            if let Some(wanted) = all.get_mut(&id).filter(|wanted| !wanted.waiters.is_empty()) {
                wanted.waiters.retain(|tx| !tx.is_closed());
                if wanted.waiters.is_empty() {
                    forgotten.insert(id);
                }
            }
        }
        if !forgotten.is_empty() {
            unwanted(forgotten);
        }
    }

    /// Tells all who wait. Returns the first asker when there is nobody left to tell.
    fn tell(&self, id: ChunkId, arrival: Arrival) -> Option<Arc<NodeBudget>> {
        let wanted = self.wanted().remove(&id)?;
        let told = wanted.waiters.iter().filter(|tx| tx.send(arrival).is_ok()).count();
        (told == 0).then_some(wanted.asker)
    }
}

/// One asker's place among those who wait; given up when it is dropped, with the task of a connection that is gone too.
pub(super) struct Waiter<'s> {
    pub(super) demand: &'s Demand,
    pub(super) driver: &'s DriverHandle,
    pub(super) budget: &'s Arc<NodeBudget>,
    pub(super) table: &'s ChunkTable,
    /// Asked for, and not answered yet.
    pub(super) open: ChunkRanges,
    /// Those of them that are fetched on this asker's behalf alone or first.
    pub(super) own: ChunkRanges,
    /// Those that came and were not sent to it yet.
    pub(super) unsent: ChunkRanges,
    pub(super) arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// It waited in vain and was told so: it will ask again, and what it waited for is still to be fetched.
    pub(super) is_told: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.arrivals.close();
        while let Ok(arrival) = self.arrivals.try_recv() {
            if let Arrival::Held(id) = arrival {
                self.unsent.insert(id);
            }
        }
        let length = |id| self.table.get(id).map_or(0, |entry| u64::from(entry.len));
        self.budget.charge(self.unsent.intersection(&self.own).ids().map(length).sum());
        self.demand.forget_gone(&self.open, |unwanted| {
            if !self.is_told {
                self.driver.want_no_more(unwanted);
            }
        });
    }
}

impl ChunkSink for Demand {
    fn accept(&self, entry: &Entry, packed: &PackedChunk, _raw: &[u8]) -> Result<(), SinkError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let put = self.store.contains(&entry.hash).and_then(|held| {
            self.refetched.fetch_add(u64::from(held), Ordering::Relaxed);
            self.store.put(&entry.hash, packed)
        });
        if let Err(error) = put {
            // One bad write must not end the swarm: whoever waits finds nothing, and asks again.
            tracing::error!(error = &error as &dyn std::error::Error, "chunk not stored");
        }
        if let Some(asker) = self.tell(entry.id, Arrival::Held(entry.id)) {
            asker.charge(packed.bytes.len() as u64);
        }
        Ok(())
    }

    fn holds(&self, entry: &Entry) -> bool {
        let held = self.store.contains(&entry.hash).unwrap_or(false);
        if held {
            self.tell(entry.id, Arrival::Held(entry.id));
        }
        held
    }

    fn unavailable(&self, chunks: &ChunkRanges) {
        for id in chunks.ids() {
            self.tell(id, Arrival::Gone(id));
        }
    }

    fn given_up(&self, chunks: &ChunkRanges) {
        let mut all = self.wanted();
        for id in chunks.ids() {
            // Somebody may wait again.
            if all.get(&id).is_some_and(|wanted| wanted.waiters.is_empty()) {
                all.remove(&id);
            }
        }
    }
}
