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

/// A [`RelayedBatch`] that requests its chunks from a driver. It is withdrawn on drop, which
/// includes the end of the asker's connection.
pub(super) struct BatchFetch<'a> {
    demand: &'a SharedDemand,
    driver: &'a DriverHandle,
    budget: &'a Arc<NodeBudget>,
    table: &'a ChunkTable,
    waiter: WaiterId,
    pub(super) news: mpsc::UnboundedReceiver<ChunkNews>,
    /// Permits of the asker's node that the batch has.
    room: Option<SemaphorePermit<'a>>,
    pub(super) batch: RelayedBatch,
}

impl<'a> BatchFetch<'a> {
    /// Enters a batch whose chunks the store lacks. Nothing is requested before
    /// [`Self::top_up`].
    pub(super) fn new(
        demand: &'a SharedDemand,
        driver: &'a DriverHandle,
        budget: &'a Arc<NodeBudget>,
        table: &'a ChunkTable,
        lacking: ChunkRanges,
    ) -> Self {
        let (waiter, news) = demand.enter();
        let batch = RelayedBatch::new(lacking);
        Self { demand, driver, budget, table, waiter, news, room: None, batch }
    }

    /// Gives back the room of answered chunks, and requests as many more as there is room for.
    pub(super) fn top_up(&mut self) {
        let surplus = self.batch.return_room();
        if let Some(room) = &mut self.room {
            drop(room.split(surplus));
        }
        let budget: &'a NodeBudget = self.budget;
        let permits = self.batch.poll_room(budget.ahead().available_permits(), || budget.is_spent());
        // Another batch of the node may take the permits first. Then this one waits for its next
        // chunk, or for room.
        if permits > 0
            && let Ok(room) = budget.ahead().try_acquire_many(u32::try_from(permits).unwrap_or(u32::MAX))
        {
            self.take(room);
        }
    }

    /// Waits until there is room for a few chunks, and requests them.
    pub(super) async fn wait_for_room(&mut self, permits: usize) {
        let budget: &'a NodeBudget = self.budget;
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let Ok(room) = budget.ahead().acquire_many(permits).await else { return };
        self.take(room);
        self.top_up();
    }

    fn take(&mut self, room: SemaphorePermit<'a>) {
        let next = self.batch.handle_room(room.num_permits());
        match &mut self.room {
            Some(held) => held.merge(room),
            None => self.room = Some(room),
        }
        self.request(&next);
    }

    fn request(&mut self, chunks: &ChunkRanges) {
        let want = |chunks| self.driver.want(chunks);
        let fresh = self.demand.wait_for(self.waiter, self.budget, chunks, want);
        self.batch.handle_fresh(&fresh);
    }

    /// Requests a chunk again that was evicted before it was read.
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
        let length = |id| self.table.get(id).map_or(0, |entry| u64::from(entry.len));
        self.budget.charge(charged.ids().map(length).sum());
    }
}
