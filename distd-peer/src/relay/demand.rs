//! Waiting askers of each chunk: however many wait, the relay fetches the chunk from its parent
//! once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::ChunkId;
use distd_core::error::Chain;
use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::ranges::ChunkRanges;
use tokio::sync::mpsc;

use crate::driver::{ChunkSink, DriverHandle, SinkError};
use crate::serve::NodeBudget;
use crate::store::EdgeStore;
use crate::table::ChunkTable;

/// News of a chunk for a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The chunk is in the store.
    Held(ChunkId),
    /// No parent has the chunk.
    Gone(ChunkId),
}

/// A chunk that is wanted or in flight.
struct Wanted {
    /// First node that asked for the chunk, charged for it if nobody waits any more when it comes.
    asker: Arc<NodeBudget>,
    waiters: Vec<mpsc::UnboundedSender<Arrival>>,
}

/// The waiters of one swarm, and the sink of its driver.
pub(super) struct Demand {
    store: Arc<EdgeStore>,
    /// Wanted chunks. An entry without waiters is a chunk whose waiters left and that may still
    /// come.
    wanted: Mutex<HashMap<ChunkId, Wanted>>,
    /// Chunks fetched from a parent.
    pub(super) fetched: AtomicU64,
    /// Chunks fetched although the store had them. Must stay 0.
    pub(super) refetched: AtomicU64,
}

impl Demand {
    pub(super) fn new(store: Arc<EdgeStore>) -> Self {
        Self { store, wanted: Mutex::default(), fetched: AtomicU64::new(0), refetched: AtomicU64::new(0) }
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<ChunkId, Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a waiter for `chunks` on behalf of the node of `budget`. Calls `want` under the
    /// lock, before any other task can report these chunks as unwanted. Arrivals take 8 bytes each,
    /// so the channel needs no bound other than that of the request. Returns the chunks that nobody
    /// waited for before: their cost is this node's.
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

    /// Drops waiters that left, and calls `unwanted` with those of `chunks` that nobody waits for
    /// any more.
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

    /// Notifies all waiters of a chunk. Returns the first asker if no waiter is left.
    fn tell(&self, id: ChunkId, arrival: Arrival) -> Option<Arc<NodeBudget>> {
        let wanted = self.wanted().remove(&id)?;
        let told = wanted.waiters.iter().filter(|tx| tx.send(arrival).is_ok()).count();
        (told == 0).then_some(wanted.asker)
    }
}

/// One asker's registration, withdrawn on drop, which includes the end of the asker's connection.
pub(super) struct Waiter<'s> {
    pub(super) demand: &'s Demand,
    pub(super) driver: &'s DriverHandle,
    pub(super) budget: &'s Arc<NodeBudget>,
    pub(super) table: &'s ChunkTable,
    /// Chunks requested and not answered yet.
    pub(super) open: ChunkRanges,
    /// Open chunks that are fetched on this asker's behalf alone, or that it requested first.
    pub(super) own: ChunkRanges,
    /// Chunks that arrived and were not sent to the asker yet.
    pub(super) unsent: ChunkRanges,
    pub(super) arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// Whether the asker was told that its wait failed. It will ask again, so its open chunks are
    /// still to be fetched.
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
            // One failed write must not end the swarm: the waiters find nothing in the store, and
            // ask again.
            tracing::error!(
                error = %Chain(&error),
                "chunk could not be stored; its askers will ask again"
            );
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
            // Another asker may have begun to wait meanwhile.
            if all.get(&id).is_some_and(|wanted| wanted.waiters.is_empty()) {
                all.remove(&id);
            }
        }
    }
}
