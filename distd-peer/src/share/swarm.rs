//! One artifact of this device, complete or partial, served chunk by chunk. Each chunk is hashed as
//! it is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use distd_core::manifest::{Entry, Manifest};
use distd_core::packing::{LEVEL_DEFAULT, Packer};
use distd_core::proto::frame::{Data, DontHaveReason, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkHash, ChunkId, ManifestId};
use tokio::sync::{mpsc, watch};

use super::Holdings;
use crate::serve::{ChunkAnswer, NodeBudget, NodesAnswer, ServeError, Swarm, answer_nodes};
use crate::table::ChunkTable;

/// Chunks read and packed in one go on a blocking thread.
const READ_GROUP: usize = 8;

/// Source of chunk bytes.
pub trait ChunkBytes: Send + Sync + 'static {
    /// Fills `buffer`, which has the chunk's length, with the presumed bytes of the chunk. Returns
    /// whether they could be read. The caller runs this on a blocking thread and checks the hash.
    fn read(&self, entry: &Entry, buffer: &mut [u8]) -> bool;
}

/// Other manifests known here, for neighbours that name the manifests they hold.
pub trait Manifests: Send + Sync + 'static {
    /// Returns one manifest by its id.
    fn manifest(&self, id: &ManifestId) -> Option<Arc<Manifest>>;
}

/// Counters of serving, over all swarms of a device.
#[derive(Debug, Default)]
pub struct ShareCounters {
    /// Chunks whose bytes could not be read or did not match when they were read. They are refused,
    /// not sent.
    pub misses: AtomicU64,
}

/// The part of one manifest that a device serves.
pub struct SharedSwarm {
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    holdings: Arc<Holdings>,
    bytes: Arc<dyn ChunkBytes>,
    known: Arc<dyn Manifests>,
    counters: Arc<ShareCounters>,
}

impl SharedSwarm {
    /// Creates a swarm that serves the chunks `holdings` of `manifest` out of `bytes`; `table`
    /// lists the manifest's chunks.
    pub fn new(
        manifest: Arc<Manifest>,
        table: Arc<ChunkTable>,
        holdings: Arc<Holdings>,
        bytes: Arc<dyn ChunkBytes>,
        known: Arc<dyn Manifests>,
        counters: Arc<ShareCounters>,
    ) -> Arc<Self> {
        Arc::new(Self { manifest, table, holdings, bytes, known, counters })
    }

    /// Returns the swarm as a server takes it.
    pub fn serving(swarm: Arc<Self>) -> Arc<dyn Swarm> {
        Arc::new(Serving(swarm))
    }

    /// Manifest of the swarm.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Chunks that the device holds.
    pub fn holdings(&self) -> &Arc<Holdings> {
        &self.holdings
    }

    /// Reads a few chunks. A chunk that cannot be read or does not match counts as a miss, and is
    /// not held any more.
    async fn read(self: &Arc<Self>, ids: Vec<ChunkId>) -> Vec<(ChunkId, Option<Data>)> {
        let this = self.clone();
        let work = move || {
            let mut packer = Packer::new(LEVEL_DEFAULT);
            let mut buffer = Vec::new();
            let mut read = |id: ChunkId| {
                let entry = this.table.get(id)?;
                buffer.resize(entry.len as usize, 0);
                if !this.bytes.read(&entry, &mut buffer) || ChunkHash::of(&buffer) != entry.hash {
                    this.counters.misses.fetch_add(1, Ordering::Relaxed);
                    this.holdings.lose(id);
                    return None;
                }
                let packed = packer.pack(&buffer);
                Some(Data { id, codec: packed.codec, bytes: packed.bytes })
            };
            ids.into_iter().map(|id| (id, read(id))).collect()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_default()
    }
}

/// [`Swarm`] implementation around an [`Arc`], as reading needs to hand the swarm to other threads.
pub(super) struct Serving(pub(super) Arc<SharedSwarm>);

#[async_trait]
impl Swarm for Serving {
    fn fetches_upstream(&self) -> bool {
        false
    }

    fn ids(&self) -> ChunkRanges {
        self.0.table.ids().clone()
    }

    fn growth(&self) -> Option<watch::Receiver<()>> {
        Some(self.0.holdings.subscribe())
    }

    async fn held(&self) -> Result<ChunkRanges, ServeError> {
        Ok(self.0.holdings.snapshot())
    }

    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError> {
        let find = |id| std::future::ready(self.0.known.manifest(&id));
        Ok(answer_nodes(&self.0.manifest, &request, find).await)
    }

    async fn chunks(
        &self,
        _budget: &Arc<NodeBudget>,
        wanted: ChunkRanges,
        answers: mpsc::Sender<ChunkAnswer>,
    ) {
        let known = wanted.intersection(self.0.table.ids());
        let held = known.intersection(&self.0.holdings.snapshot());
        for (rest, reason) in [
            (wanted.difference(&known), DontHaveReason::NotInSwarm),
            (known.difference(&held), DontHaveReason::NotHeld),
        ] {
            if !rest.is_empty() && answers.send(ChunkAnswer::DontHave(rest, reason)).await.is_err() {
                return;
            }
        }
        let ids: Vec<ChunkId> = held.ids().collect();
        for group in ids.chunks(READ_GROUP) {
            let mut open: ChunkRanges = group.iter().copied().collect();
            for (id, data) in self.0.read(group.to_vec()).await {
                if let Some(data) = data {
                    open.remove(id);
                    if answers.send(ChunkAnswer::Data(data)).await.is_err() {
                        return;
                    }
                }
            }
            let missed = ChunkAnswer::DontHave(open.clone(), DontHaveReason::NotHeld);
            if !open.is_empty() && answers.send(missed).await.is_err() {
                return;
            }
        }
    }
}
