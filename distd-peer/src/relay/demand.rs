//! Sink of a relay's fetch: chunks go into the store, and the waiting batches are told of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::ChunkId;
use distd_core::error::Chain;
use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{Demand, RelayedEnd, WaiterId};
use tokio::sync::mpsc;

use crate::driver::{ChunkSink, SinkError};
use crate::serve::NodeBudget;
use crate::store::EdgeStore;

/// News of a chunk for a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkNews {
    /// The chunk is in the store.
    Held(ChunkId),
    /// No parent has the chunk.
    Gone(ChunkId),
}

/// The demand for chunks, and the tasks of the batches that wait.
#[derive(Default)]
struct Waiting {
    demand: Demand<Arc<NodeBudget>>,
    /// News takes 16 bytes a chunk, so the channels need no bound other than that of the requests.
    tasks: HashMap<WaiterId, mpsc::UnboundedSender<ChunkNews>>,
}

impl Waiting {
    fn tell(&self, waiters: &[WaiterId], news: ChunkNews) {
        for tx in waiters.iter().filter_map(|waiter| self.tasks.get(waiter)) {
            // A task that has just ended leaves next.
            let _ = tx.send(news);
        }
    }
}

/// The waiters of one swarm, shared by the tasks of their batches and by the swarm's driver, whose
/// sink this is.
pub(super) struct SharedDemand {
    store: Arc<EdgeStore>,
    waiting: Mutex<Waiting>,
    /// Chunks fetched from a parent.
    pub(super) fetched: AtomicU64,
    /// Chunks fetched although the store had them. Must stay 0.
    pub(super) refetched: AtomicU64,
}

impl SharedDemand {
    pub(super) fn new(store: Arc<EdgeStore>) -> Self {
        let waiting = Mutex::default();
        Self { store, waiting, fetched: AtomicU64::new(0), refetched: AtomicU64::new(0) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a batch that will wait, and returns the receiver of its news.
    pub(super) fn enter(&self) -> (WaiterId, mpsc::UnboundedReceiver<ChunkNews>) {
        let (tx, news) = mpsc::unbounded_channel();
        let mut waiting = self.waiting();
        let waiter = waiting.demand.waiter();
        waiting.tasks.insert(waiter, tx);
        (waiter, news)
    }

    /// Makes `waiter` wait for `chunks` on behalf of the node of `budget`. Calls `want` under the
    /// lock, before any other task can report these chunks as unwanted. Returns the chunks that
    /// nobody waited for before.
    pub(super) fn wait_for(
        &self,
        waiter: WaiterId,
        budget: &Arc<NodeBudget>,
        chunks: &ChunkRanges,
        want: impl FnOnce(ChunkRanges),
    ) -> ChunkRanges {
        let mut waiting = self.waiting();
        let fresh = waiting.demand.wait_for(waiter, budget, chunks);
        want(chunks.clone());
        fresh
    }

    /// Ends a batch. Calls `finish` under the lock: all news was sent to the batch's task, and
    /// none follows. Calls `want_no_more` with the chunks that nobody waits for any more.
    /// Returns the chunks to charge for.
    pub(super) fn leave(
        &self,
        waiter: WaiterId,
        finish: impl FnOnce() -> RelayedEnd,
        want_no_more: impl FnOnce(ChunkRanges),
    ) -> ChunkRanges {
        let mut waiting = self.waiting();
        waiting.tasks.remove(&waiter);
        let end = finish();
        let unwanted = waiting.demand.leave(waiter, &end.open);
        if end.wants_no_more && !unwanted.is_empty() {
            want_no_more(unwanted);
        }
        end.charged
    }
}

impl ChunkSink for SharedDemand {
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
        let charged = {
            let mut waiting = self.waiting();
            let met = waiting.demand.handle_fetched(entry.id);
            waiting.tell(&met.waiters, ChunkNews::Held(entry.id));
            met.charged
        };
        if let Some(asker) = charged {
            asker.charge(packed.bytes.len() as u64);
        }
        Ok(())
    }

    fn holds(&self, entry: &Entry) -> bool {
        let held = self.store.contains(&entry.hash).unwrap_or(false);
        if held {
            let mut waiting = self.waiting();
            let waiters = waiting.demand.handle_not_fetched(entry.id);
            waiting.tell(&waiters, ChunkNews::Held(entry.id));
        }
        held
    }

    fn unavailable(&self, chunks: &ChunkRanges) {
        let mut waiting = self.waiting();
        for id in chunks.ids() {
            let waiters = waiting.demand.handle_not_fetched(id);
            waiting.tell(&waiters, ChunkNews::Gone(id));
        }
    }

    fn given_up(&self, chunks: &ChunkRanges) {
        self.waiting().demand.handle_given_up(chunks);
    }
}
