//! One open swarm of a relay: answers from its store, and fetches the rest from its parents.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use distd_core::ChunkId;
use distd_core::error::Chain;
use distd_core::manifest::{Entry, Manifest};
use distd_core::packing::PackedChunk;
use distd_core::proto::frame::{Cost, Data, DontHaveReason, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{FetchConfig, RelayedNext, RelayedRead};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::batch_fetch::BatchFetch;
use super::demand::{ChunkNews, SharedDemand};
use crate::clock::monotonic_now;
use crate::driver::{Driver, DriverHandle};
use crate::parents::Parents;
use crate::rates::Throttle;
use crate::serve::{ChunkAnswer, NodeBudget, NodesAnswer, ServeError, Swarm, answer_nodes};
use crate::store::{EdgeStore, Location};
use crate::table::ChunkTable;

/// How long the driver of a swarm is kept while nobody fetches from it.
const DRIVER_IDLE: Duration = Duration::from_secs(30);

/// Number of chunks read from disk at once for one asker.
const READ_GROUP: usize = 8;

/// One open swarm of a relay.
pub(super) struct RelaySwarm {
    parents: Arc<Parents>,
    download: Option<Arc<Throttle>>,
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    store: Arc<EdgeStore>,
    pub(super) demand: Arc<SharedDemand>,
    driver: Mutex<Option<Driven>>,
}

/// A running driver, and the time of its last use.
struct Driven {
    /// Shared with the batches that may still use it.
    handle: Arc<DriverHandle>,
    used: Instant,
}

impl RelaySwarm {
    pub(super) fn new(
        store: Arc<EdgeStore>,
        parents: Arc<Parents>,
        download: Option<Arc<Throttle>>,
        manifest: Arc<Manifest>,
    ) -> Self {
        let table = Arc::new(ChunkTable::of(&manifest));
        let demand = Arc::new(SharedDemand::new(store.clone()));
        Self { parents, download, manifest, table, store, demand, driver: Mutex::default() }
    }

    fn driver(&self) -> MutexGuard<'_, Option<Driven>> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the driver that fetches from the parents, started if there is none. It has the swarm
    /// open at the parents for as long as it runs.
    fn driving(&self) -> Arc<DriverHandle> {
        let mut driver = self.driver();
        let driven = driver.get_or_insert_with(|| {
            let config = FetchConfig::relay();
            let (parents, table, demand) = (self.parents.clone(), self.table.clone(), self.demand.clone());
            let (driver, handle) = Driver::new(parents, self.manifest.id(), table, demand, config);
            let driver = driver.limited(self.download.clone());
            tokio::spawn(async move {
                if let Err(error) = driver.run().await {
                    tracing::error!(
                        error = %Chain(&error),
                        "fetching for a swarm ended with an error"
                    );
                }
            });
            Driven { handle: Arc::new(handle), used: Instant::now() }
        });
        driven.used = Instant::now();
        driven.handle.clone()
    }

    /// Leaves the swarm at the parents if nobody has fetched from it for a while.
    pub(super) fn leave_when_idle(&self) {
        let mut driver = self.driver();
        let idle =
            |driven: &Driven| Arc::strong_count(&driven.handle) == 1 && driven.used.elapsed() > DRIVER_IDLE;
        if driver.as_ref().is_some_and(idle) {
            *driver = None;
        }
    }

    /// Reads a few chunks from disk, in one go on a blocking thread. `None` as a location means
    /// that it must be looked up.
    async fn read(&self, chunks: Vec<(Entry, Option<Location>)>) -> Vec<(ChunkId, Option<Data>)> {
        let (entries, places): (Vec<Entry>, Vec<Option<Location>>) = chunks.into_iter().unzip();
        let hashes: Vec<_> = entries.iter().map(|entry| entry.hash).collect();
        let (store, count) = (self.store.clone(), hashes.len());
        let reading = tokio::task::spawn_blocking(move || store.get_each(&hashes, &places));
        let read = match reading.await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "chunks could not be read");
                vec![None; count]
            }
            Err(_) => vec![None; count],
        };
        let data = |(entry, chunk): (Entry, Option<PackedChunk>)| {
            (entry.id, chunk.map(|chunk| Data { id: entry.id, codec: chunk.codec, bytes: chunk.bytes }))
        };
        entries.into_iter().zip(read).map(data).collect()
    }

    /// Returns those of the chunks that the store has, and their locations.
    fn held_of(&self, wanted: &ChunkRanges) -> Result<Vec<(Entry, Location)>, crate::store::StoreError> {
        let entries: Vec<_> = wanted.ids().filter_map(|id| self.table.get(id)).collect();
        let places = self.store.locate_each(entries.iter().map(|e| &e.hash))?;
        Ok(entries.into_iter().zip(places).filter_map(|(e, place)| Some((e, place?))).collect())
    }

    async fn answer(
        &self,
        budget: &Arc<NodeBudget>,
        wanted: ChunkRanges,
        answers: &mpsc::Sender<ChunkAnswer>,
    ) -> Option<()> {
        let known = wanted.intersection(self.table.ids());
        let foreign = wanted.difference(&known);
        if !foreign.is_empty() {
            answers.send(ChunkAnswer::DontHave(foreign, DontHaveReason::NotInSwarm)).await.ok()?;
        }
        let held = self.held_of(&known).unwrap_or_default();
        let here: ChunkRanges = held.iter().map(|(entry, _)| entry.id).collect();
        let driver = self.driving();
        let mut fetch = BatchFetch::new(&self.demand, &driver, budget, &self.table, known.difference(&here));
        fetch.top_up();
        for group in held.chunks(READ_GROUP) {
            let group = group.iter().map(|(entry, place)| (*entry, Some(*place))).collect();
            for (id, data) in self.read(group).await {
                match data {
                    Some(data) => answers.send(ChunkAnswer::Data(data)).await.ok()?,
                    None => fetch.batch.handle_lost(id),
                }
            }
            fetch.top_up();
        }
        let mut news = Vec::with_capacity(READ_GROUP);
        loop {
            let now = monotonic_now();
            let deadline = match fetch.batch.poll_next(now, || budget.is_spent()) {
                RelayedNext::Chunk(deadline) => deadline,
                RelayedNext::Room(permits) => {
                    tokio::select! {
                        () = fetch.wait_for_permits(permits) => continue,
                        () = answers.closed() => return None,
                    }
                }
                RelayedNext::Refuse(chunks, reason) => {
                    answers.send(ChunkAnswer::DontHave(chunks, reason)).await.ok()?;
                    continue;
                }
                RelayedNext::Done => return Some(()),
            };
            let receiving = fetch.news.recv_many(&mut news, READ_GROUP);
            tokio::select! {
                received = timeout(deadline.since(now), receiving) => {
                    // At the deadline, the batch says how the wait ends.
                    if received.is_err() {
                        continue;
                    }
                }
                () = answers.closed() => return None,
            }
            let mut ready = Vec::with_capacity(news.len());
            for of_chunk in news.drain(..) {
                match of_chunk {
                    ChunkNews::Held(id) if fetch.batch.handle_held(id) => {
                        ready.extend(self.table.get(id).map(|entry| (entry, None)));
                    }
                    ChunkNews::Gone(id) if fetch.batch.handle_gone(id) => {
                        refuse(answers, id, DontHaveReason::NotHeld).await?;
                    }
                    ChunkNews::Held(_) | ChunkNews::Gone(_) => {}
                }
            }
            for (id, data) in self.read(ready).await {
                match (fetch.batch.handle_read(id, data.is_some()), data) {
                    (RelayedRead::Send, Some(data)) => {
                        answers.send(ChunkAnswer::Data(data)).await.ok()?;
                        fetch.batch.handle_sent(id);
                    }
                    (RelayedRead::Again, _) => fetch.again(id),
                    (RelayedRead::Refuse(reason), _) => refuse(answers, id, reason).await?,
                    (RelayedRead::Nothing | RelayedRead::Send, _) => {}
                }
            }
            fetch.top_up();
        }
    }
}

/// Answers that a chunk will not come. `None` if the asker went away.
async fn refuse(answers: &mpsc::Sender<ChunkAnswer>, id: ChunkId, reason: DontHaveReason) -> Option<()> {
    answers.send(ChunkAnswer::DontHave([id].into_iter().collect(), reason)).await.ok()
}

#[async_trait]
impl Swarm for RelaySwarm {
    fn fetches_upstream(&self) -> bool {
        true
    }

    fn ids(&self) -> ChunkRanges {
        self.table.ids().clone()
    }

    fn reported_bad_data(&self) {
        if let Some(driven) = &*self.driver() {
            driven.handle.reported_bad_data();
        }
    }

    async fn held(&self) -> Result<ChunkRanges, ServeError> {
        let held = tokio::task::block_in_place(|| self.held_of(self.table.ids()))
            .map_err(|e| ServeError::Internal(e.into()))?;
        Ok(held.into_iter().map(|(entry, _)| entry.id).collect())
    }

    // The parents answer: the store does not know the size of chunks that it evicted or never had.
    async fn cost(&self, wanted: &ChunkRanges) -> Result<Cost, ServeError> {
        self.parents.cost(self.manifest.id(), wanted).await.map_err(|e| ServeError::Upstream(e.into()))
    }

    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError> {
        let store = &self.store;
        let find = |id| async move { store.manifest(&id).ok().flatten().map(Arc::new) };
        Ok(answer_nodes(&self.manifest, &request, find).await)
    }

    async fn chunks(
        &self,
        budget: &Arc<NodeBudget>,
        wanted: ChunkRanges,
        answers: mpsc::Sender<ChunkAnswer>,
    ) {
        // `None` means that the asker went away.
        let _ = self.answer(budget, wanted, &answers).await;
    }
}
