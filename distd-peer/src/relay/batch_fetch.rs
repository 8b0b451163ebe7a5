//! [`BatchFetch`]: the chunks of one batch that a relay fetches from its parents, with their
//! permits, news and charges.

use std::sync::Arc;

use distd_core::ChunkId;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{RelayedBatch, WaiterId};
use tokio::sync::{SemaphorePermit, mpsc};

use super::demand::{ChunkNews, SharedDemand};
use crate::driver::DriverHandle;
use crate::serve::NodeBudget;
use crate::table::ChunkTable;

/// A [`RelayedBatch`] that requests its chunks from a driver. It holds one permit of the asker's
/// node for each chunk that it requested and has not answered. On drop, which includes the end of
/// the asker's connection, the batch stops waiting. Chunks that no other batch waits for are no
/// longer fetched, unless the asker was told to ask again.
pub(super) struct BatchFetch<'a> {
    demand: &'a SharedDemand,
    driver: &'a DriverHandle,
    budget: &'a Arc<NodeBudget>,
    table: &'a ChunkTable,
    waiter: WaiterId,
    pub(super) news: mpsc::UnboundedReceiver<ChunkNews>,
    /// Permits of the asker's node that the batch has.
    permits: Option<SemaphorePermit<'a>>,
    pub(super) batch: RelayedBatch,
}

impl<'a> BatchFetch<'a> {
    /// Registers a batch, whose chunks the store lacks, with the demand. Nothing is requested
    /// before [`Self::top_up`].
    pub(super) fn new(
        demand: &'a SharedDemand,
        driver: &'a DriverHandle,
        budget: &'a Arc<NodeBudget>,
        table: &'a ChunkTable,
        lacking: ChunkRanges,
    ) -> Self {
        let (waiter, news) = demand.enter();
        let batch = RelayedBatch::new(lacking);
        Self { demand, driver, budget, table, waiter, news, permits: None, batch }
    }

    /// Gives back the permits of answered chunks, and requests as many more as there are permits
    /// for.
    pub(super) fn top_up(&mut self) {
        let surplus = self.batch.return_room();
        if let Some(permits) = &mut self.permits {
            drop(permits.split(surplus));
        }
        let budget: &'a NodeBudget = self.budget;
        let count = self.batch.poll_room(budget.ahead().available_permits(), || budget.is_spent());
        // Another batch of the node may take the permits first. Then this one waits for its next
        // chunk, or for permits.
        if count > 0
            && let Ok(permits) = budget.ahead().try_acquire_many(u32::try_from(count).unwrap_or(u32::MAX))
        {
            self.add_permits(permits);
        }
    }

    /// Waits for permits for `count` chunks, and requests as many.
    pub(super) async fn wait_for_permits(&mut self, count: usize) {
        let budget: &'a NodeBudget = self.budget;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let Ok(permits) = budget.ahead().acquire_many(count).await else { return };
        self.add_permits(permits);
        self.top_up();
    }

    /// Adds permits, and requests as many chunks.
    fn add_permits(&mut self, permits: SemaphorePermit<'a>) {
        let next = self.batch.handle_room(permits.num_permits());
        match &mut self.permits {
            Some(held) => held.merge(permits),
            None => self.permits = Some(permits),
        }
        self.request(&next);
    }

    fn request(&mut self, chunks: &ChunkRanges) {
        let want = |chunks| self.driver.want(chunks);
        let fresh = self.demand.wait_for(self.waiter, self.budget, chunks, want);
        self.batch.handle_fresh(&fresh);
    }

    /// Requests again a chunk that was evicted before it was read.
    pub(super) fn again(&mut self, id: ChunkId) {
        self.request(&[id].into_iter().collect());
    }
}

impl Drop for BatchFetch<'_> {
    fn drop(&mut self) {
        let (batch, news) = (&mut self.batch, &mut self.news);
        let finish = || {
            while let Ok(chunk) = news.try_recv() {
                if let ChunkNews::Held(id) = chunk {
                    batch.handle_held(id);
                }
            }
            std::mem::take(batch).finish()
        };
        let charged = self.demand.leave(self.waiter, finish, |chunks| self.driver.want_no_more(chunks));
        // How long these chunks are when packed is not known before they arrive.
        let length = |id| self.table.get(id).map_or(0, |entry| u64::from(entry.len));
        self.budget.charge(charged.ids().map(length).sum());
    }
}
