//! A bundle as content that this process serves to its own asker.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::manifest::node_hash;
use distd_core::proto::frame::{COMPACT_LEAF, Cost, DontHaveReason, Node, NodeRequest, NodesEnd, ROOT_LEVEL};
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkId, ManifestId, NodeHash};
use tokio::sync::mpsc;

use super::{Bundle, Head};
use crate::capabilities::Permit;
use crate::net::{Link, LocalParent, Outbound};
use crate::serve::{ChunkAnswer, Content, NodeBudget, NodesAnswer, ServeConfig, ServeError, Server, Swarm};
use crate::trust::capability::FILE_OF_ANY;
use crate::trust::tls::PeerIdentity;
use crate::trust::tuf::wire::{Answer, Query, version_of};
use crate::trust::tuf::{Answerer, MetadataStore, StoreError};

/// Address of the parent that a bundle is.
pub fn address_of(path: &Path) -> String {
    format!("bundle {}", path.display())
}

/// Lets `outbound` dial the bundle, which was opened at `path`, as a parent. Returns the parent's
/// address.
pub fn add_parent(outbound: &Outbound, path: &Path, bundle: Arc<Bundle>) -> String {
    let address = address_of(path);
    let node = bundle.node();
    let server = Server::new(Arc::new(BundleContent::new(bundle)), ServeConfig::default());
    outbound.add_local(&address, LocalParent::new(server, node));
    address
}

/// Connects to the bundle.
pub(crate) fn connect(bundle: &Arc<Bundle>) -> Link {
    let server = Server::new(Arc::new(BundleContent::new(bundle.clone())), ServeConfig::default());
    Link::local(&LocalParent::new(server, bundle.node()), "the bundle")
}

/// Files of the metadata in a bundle.
struct Files(BTreeMap<String, Bytes>);

#[async_trait]
impl MetadataStore for Files {
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(name).cloned())
    }

    async fn put(&self, name: &str, _: Bytes) -> Result<(), StoreError> {
        Err(StoreError::new("write", name, "a bundle is only read"))
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.0.keys().cloned().collect())
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        Err(StoreError::new("delete", name, "a bundle is only read"))
    }
}

impl Bundle {
    /// Answers questions from the bundle's metadata.
    pub(crate) fn answerer(&self) -> Answerer {
        Answerer::new(Arc::new(Files(self.metadata().iter().cloned().collect())))
    }

    /// Version of the timestamp in the bundle.
    pub(crate) fn timestamp(&self) -> Option<u64> {
        let (_, bytes) = self.metadata().iter().find(|(name, _)| name == "timestamp.json")?;
        version_of(bytes)
    }
}

/// A bundle, served.
struct BundleContent {
    bundle: Arc<Bundle>,
    metadata: Answerer,
}

impl BundleContent {
    fn new(bundle: Arc<Bundle>) -> Self {
        Self { metadata: bundle.answerer(), bundle }
    }
}

#[async_trait]
impl Content for BundleContent {
    async fn permit(
        &self,
        _: &PeerIdentity,
        _: &Arc<NodeBudget>,
        _: ManifestId,
        _: &Bytes,
    ) -> Result<Permit, ServeError> {
        // Whoever asks has the file.
        Ok(Permit::ALL)
    }

    async fn swarm(
        &self,
        _: &PeerIdentity,
        _: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        let swarm = self.bundle.swarm_of(&manifest).ok_or(ServeError::NoManifest(manifest))?;
        Ok(Arc::new(BundleSwarm { bundle: self.bundle.clone(), swarm }))
    }

    async fn metadata(&self, _: &PeerIdentity, query: Bytes) -> Result<Bytes, ServeError> {
        let internal = |e: Box<dyn std::error::Error + Send + Sync>| ServeError::Internal(e);
        let asked = Query::decode(&query).map_err(|e| internal(e.into()))?;
        if asked.capability.is_some() {
            let files = self.bundle.capabilities().iter().take(1);
            let files = files.map(|bytes| (FILE_OF_ANY.to_owned(), bytes.clone())).collect();
            return Ok(Answer { files }.encode().into());
        }
        let is_of_realm = asked.statement.is_some()
            || asked.turn.is_some()
            || asked.log.is_some()
            || !asked.reports.is_empty();
        if is_of_realm {
            return Err(ServeError::Upstream("a bundle cannot ask the realm".into()));
        }
        let answer = self.metadata.answer(&query).await.map_err(|e| internal(e.into()))?;
        Ok(answer.into())
    }

    async fn enroll(&self, _: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }
}

/// The part of one swarm that a bundle has.
struct BundleSwarm {
    bundle: Arc<Bundle>,
    swarm: usize,
}

impl BundleSwarm {
    fn part(&self) -> &super::SwarmPart {
        &self.bundle.swarms()[self.swarm]
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Bundle, usize) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ServeError> {
        let (bundle, swarm) = (self.bundle.clone(), self.swarm);
        let read = tokio::task::spawn_blocking(move || work(&bundle, swarm)).await;
        read.map_err(|e| ServeError::Internal(e.into()))?.map_err(|e| ServeError::Internal(e.into()))
    }
}

#[async_trait]
impl Swarm for BundleSwarm {
    fn fetches_upstream(&self) -> bool {
        false
    }

    fn ids(&self) -> ChunkRanges {
        self.part().held().clone()
    }

    async fn held(&self) -> Result<ChunkRanges, ServeError> {
        Ok(self.part().held().clone())
    }

    async fn cost(&self, wanted: &ChunkRanges) -> Result<Cost, ServeError> {
        let mut cost = Cost::default();
        for id in wanted.intersection(self.part().held()).ids() {
            cost.chunks += 1;
            cost.bytes += self.bundle.chunk_len(self.swarm, id).unwrap_or(0);
        }
        Ok(cost)
    }

    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError> {
        let nodes = self.read(|bundle, swarm| bundle.nodes(swarm)).await?;
        let (head, manifest) = (self.bundle.head(), self.part().manifest());
        Ok(select_nodes(nodes, &request, head, manifest))
    }

    async fn chunks(&self, _: &Arc<NodeBudget>, wanted: ChunkRanges, answers: mpsc::Sender<ChunkAnswer>) {
        let held = wanted.intersection(self.part().held());
        let rest = wanted.difference(&held);
        if !rest.is_empty()
            && answers.send(ChunkAnswer::DontHave(rest, DontHaveReason::NotHeld)).await.is_err()
        {
            return;
        }
        let ids: Vec<ChunkId> = held.ids().collect();
        for id in ids {
            let answer = match self.read(move |bundle, swarm| bundle.chunk(swarm, id)).await {
                Ok(Some(data)) => ChunkAnswer::Data(data),
                Ok(None) | Err(_) => {
                    ChunkAnswer::DontHave([id].into_iter().collect(), DontHaveReason::NotHeld)
                }
            };
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    }
}

/// Chooses from the nodes that a bundle has for a manifest. Those of the release lack what the
/// manifest of the earlier release has, so they help only an asker that holds it.
pub(super) fn select_nodes(
    nodes: Vec<Node>,
    request: &NodeRequest,
    head: &Head,
    manifest: ManifestId,
) -> NodesAnswer {
    let is_root = |hash: &&NodeHash| hash.0 == manifest.0;
    let hashes = request.hashes.len() - request.hashes.iter().filter(is_root).count();
    if hashes == 0 {
        let since = head.since.as_ref().filter(|_| manifest == head.release.manifest);
        let wants_root = !request.hashes.is_empty();
        let nodes = nodes.into_iter().filter(|node| wants_root || node.level != ROOT_LEVEL);
        return match since.is_none_or(|since| request.held.contains(&since.manifest)) {
            true => NodesAnswer { nodes: nodes.collect(), missing: 0 },
            false => NodesAnswer {
                nodes: nodes.filter(|node| node.level == ROOT_LEVEL).collect(),
                missing: NodesEnd::HELD_UNKNOWN,
            },
        };
    }
    let mut found = NodesAnswer::default();
    let whole = nodes.iter().filter(|node| node.level != COMPACT_LEAF);
    let by_hash: HashMap<NodeHash, &Node> = whole.map(|node| (hash_of(node, manifest), node)).collect();
    for hash in &request.hashes {
        match by_hash.get(hash) {
            Some(node) => found.nodes.push((*node).clone()),
            None => found.missing += 1,
        }
    }
    found
}

/// Hash by which a whole node is asked for: a root is asked for by the manifest's id.
fn hash_of(node: &Node, manifest: ManifestId) -> NodeHash {
    match node.level {
        ROOT_LEVEL => NodeHash(manifest.0),
        level => node_hash(level, &node.bytes),
    }
}
