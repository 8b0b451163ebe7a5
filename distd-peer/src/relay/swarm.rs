//! One open swarm of a relay: answers from its store, and fetches the rest from its parents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use distd_core::ChunkId;
use distd_core::error::Chain;
use distd_core::manifest::{Entry, Manifest};
use distd_core::packing::PackedChunk;
use distd_core::proto::frame::{Cost, Data, DontHaveReason, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchConfig;
use distd_core::swarm::rules::UPSTREAM_WAIT;
use tokio::sync::{SemaphorePermit, mpsc};

use super::demand::{Arrival, Demand, Waiter};
use crate::driver::{Driver, DriverHandle};
use crate::parents::Parents;
use crate::rates::Throttle;
use crate::serve::{ChunkAnswer, NodeBudget, NodesAnswer, ServeError, Swarm, answer_nodes};
use crate::store::{EdgeStore, Location};
use crate::table::ChunkTable;

/// How long the driver of a swarm is kept while nobody fetches from it.
const DRIVER_IDLE: Duration = Duration::from_secs(30);

/// Maximum number of chunks that one batch requests from upstream ahead of those its asker has
/// taken.
const AHEAD: usize = 128;

/// While others are in flight, fewer chunks than this are not requested on their own: each request
/// costs the driver a turn, and the parent may have to answer it with a batch of its own.
const AHEAD_STEP: usize = AHEAD / 2;

/// Maximum number of attempts, for one asker, to read a chunk that is evicted between arriving and
/// being read.
const EVICTED_TRIES: u32 = 3;

/// Number of chunks read from disk at once for one asker.
const READ_GROUP: usize = 8;

/// One open swarm of a relay.
pub(super) struct RelaySwarm {
    parents: Arc<Parents>,
    download: Option<Arc<Throttle>>,
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    store: Arc<EdgeStore>,
    pub(super) demand: Arc<Demand>,
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
        let demand = Arc::new(Demand::new(store.clone()));
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
        let (tx, arrivals) = mpsc::unbounded_channel();
        let mut asking = Asking {
            swarm: self,
            tx,
            later: known.difference(&here),
            room: None,
            waiter: Waiter {
                demand: &self.demand,
                driver: &driver,
                budget,
                table: &self.table,
                open: ChunkRanges::new(),
                own: ChunkRanges::new(),
                unsent: ChunkRanges::new(),
                arrivals,
                is_told: false,
            },
        };
        asking.top_up();
        for group in held.chunks(READ_GROUP) {
            let group = group.iter().map(|(entry, place)| (*entry, Some(*place))).collect();
            for (id, data) in self.read(group).await {
                match data {
                    Some(data) => answers.send(ChunkAnswer::Data(data)).await.ok()?,
                    // Evicted or damaged since the look-up.
                    None => drop(asking.later.insert(id)),
                }
            }
            asking.top_up();
        }
        let mut tries: HashMap<ChunkId, u32> = HashMap::new();
        let mut arrived = Vec::with_capacity(READ_GROUP);
        loop {
            if asking.waiter.open.is_empty() {
                if asking.later.is_empty() {
                    return Some(());
                }
                if budget.is_spent() {
                    let rest = std::mem::take(&mut asking.later);
                    return answers.send(ChunkAnswer::DontHave(rest, DontHaveReason::Busy)).await.ok();
                }
                tokio::select! {
                    () = asking.wait_for_room() => {}
                    () = answers.closed() => return None,
                }
                continue;
            }
            let count = tokio::select! {
                received = tokio::time::timeout(UPSTREAM_WAIT, asking.waiter.arrivals.recv_many(&mut arrived, READ_GROUP)) => received,
                () = answers.closed() => return None,
            };
            let Ok(1..) = count else {
                // The asker will ask again.
                asking.waiter.is_told = true;
                let mut rest = asking.waiter.open.clone();
                rest.extend(&asking.later);
                answers.send(ChunkAnswer::DontHave(rest, DontHaveReason::Upstream)).await.ok()?;
                return Some(());
            };
            let mut ready = Vec::with_capacity(arrived.len());
            for arrival in arrived.drain(..) {
                match arrival {
                    Arrival::Held(id) if asking.waiter.open.contains(id) => {
                        asking.waiter.unsent.insert(id);
                        ready.extend(self.table.get(id).map(|entry| (entry, None)));
                    }
                    Arrival::Held(_) => {}
                    Arrival::Gone(id) => asking.refuse(answers, id, DontHaveReason::NotHeld).await?,
                }
            }
            for (id, data) in self.read(ready).await {
                let tries = tries.entry(id).or_default();
                *tries += 1;
                match data {
                    Some(data) => {
                        if asking.waiter.open.contains(id) {
                            answers.send(ChunkAnswer::Data(data)).await.ok()?;
                            asking.sent(id);
                        }
                    }
                    None if *tries < EVICTED_TRIES => asking.again(id),
                    None => asking.refuse(answers, id, DontHaveReason::Busy).await?,
                }
            }
            asking.top_up();
        }
    }
}

/// The chunks of one batch that come from upstream, requested as far ahead as the asker's node is
/// allowed.
struct Asking<'a> {
    swarm: &'a RelaySwarm,
    tx: mpsc::UnboundedSender<Arrival>,
    /// Chunks not yet requested.
    later: ChunkRanges,
    /// Room taken from the asker's node for the open chunks and for those answered since the last
    /// [`Self::top_up`].
    room: Option<SemaphorePermit<'a>>,
    waiter: Waiter<'a>,
}

impl<'a> Asking<'a> {
    /// Gives back the room of answered chunks, and requests as many more as there is room for.
    fn top_up(&mut self) {
        let open = usize::try_from(self.waiter.open.len()).unwrap_or(usize::MAX);
        if let Some(room) = &mut self.room {
            drop(room.split(room.num_permits().saturating_sub(open)));
        }
        let most = AHEAD.saturating_sub(open);
        let left = usize::try_from(self.later.len()).unwrap_or(usize::MAX);
        let want = most.min(left);
        if want == 0 || self.waiter.budget.is_spent() {
            return;
        }
        let budget: &'a NodeBudget = self.waiter.budget;
        let got = want.min(budget.ahead().available_permits());
        if open > 0 && got < AHEAD_STEP.min(left) {
            return;
        }
        if let Ok(room) = budget.ahead().try_acquire_many(u32::try_from(got).unwrap_or(u32::MAX)) {
            self.ask(room, got);
        }
    }

    /// Waits until there is room for a few chunks, and requests them.
    async fn wait_for_room(&mut self) {
        let budget: &'a NodeBudget = self.waiter.budget;
        let few = AHEAD_STEP.min(usize::try_from(self.later.len()).unwrap_or(usize::MAX));
        // The semaphore is never closed.
        let Ok(room) = budget.ahead().acquire_many(few as u32).await else { return };
        self.ask(room, few);
        self.top_up();
    }

    fn ask(&mut self, room: SemaphorePermit<'a>, count: usize) {
        let next = self.later.take_first(count as u64);
        if next.is_empty() {
            return;
        }
        match &mut self.room {
            Some(held) => held.merge(room),
            None => self.room = Some(room),
        }
        self.waiter.open.extend(&next);
        self.want(&next);
    }

    fn want(&mut self, chunks: &ChunkRanges) {
        let (demand, driver) = (&self.swarm.demand, self.waiter.driver);
        let fresh = demand.wait_for(chunks, self.waiter.budget, &self.tx, |chunks| driver.want(chunks));
        self.waiter.own.extend(&fresh);
    }

    /// Requests a chunk again that was evicted before it was read.
    fn again(&mut self, id: ChunkId) {
        self.waiter.unsent.remove(id);
        self.want(&[id].into_iter().collect());
    }

    /// Removes a chunk that was sent to the asker or will not come.
    fn sent(&mut self, id: ChunkId) {
        self.waiter.unsent.remove(id);
        self.waiter.open.remove(id);
    }

    /// Answers that an open chunk will not come. `None` if the asker went away.
    async fn refuse(
        &mut self,
        answers: &mpsc::Sender<ChunkAnswer>,
        id: ChunkId,
        reason: DontHaveReason,
    ) -> Option<()> {
        if !self.waiter.open.contains(id) {
            return Some(());
        }
        self.sent(id);
        answers.send(ChunkAnswer::DontHave([id].into_iter().collect(), reason)).await.ok()
    }
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
