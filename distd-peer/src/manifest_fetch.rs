//! Fetching of a manifest from a parent with the fewest bytes and round trips.

use bytes::Bytes;
use distd_core::bounds::{HELD_MANIFESTS_MAX, MANIFEST_BYTES_MAX, NODE_REQUEST_HASHES_MAX};
use distd_core::manifest::{Assembly, InsertError, Manifest, NodeError, expand_leaf};
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{COMPACT_LEAF, Node, NodeRequest, ROOT_LEVEL};
use distd_core::{ManifestId, NodeHash};

use crate::net::{LinkError, SwarmHandle, WireError};
use crate::table::ChunkTable;

/// Reason why a manifest could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFetchError {
    /// The connection to the parent failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The parent sent a root node that does not have the manifest's id.
    #[error("{0} sent a wrong root for manifest {1}")]
    WrongRoot(String, ManifestId),
    /// The root cannot be used.
    #[error("the root of manifest {0} is unusable")]
    Root(ManifestId, #[source] NodeError),
    /// The parent sent a node that does not belong to the manifest.
    #[error("{0} sent a wrong manifest node")]
    Node(String, #[source] InsertError),
    /// The parent sent more bytes than are accepted.
    #[error("{0} sent more bytes of manifest {1} than are accepted")]
    TooLong(String, ManifestId),
    /// The parent does not have all nodes.
    #[error("{0} does not have all of manifest {1}")]
    Incomplete(String, ManifestId),
}

impl ManifestFetchError {
    /// Whether the parent said that it does not know the manifest.
    pub fn is_no_manifest(&self) -> bool {
        matches!(self, Self::Link(LinkError::Wire(_, WireError::Closed(CloseCode::NoManifest))))
    }

    /// Whether the parent sent wrong nodes or broke the protocol, and must not be asked again.
    pub fn is_breach(&self) -> bool {
        match self {
            Self::WrongRoot(..) | Self::Node(..) => true,
            Self::Link(e) => e.is_breach(),
            _ => false,
        }
    }
}

/// Fetches the nodes of `id` that none of `held` has.
///
/// `root` is the root node if it is already known (from TUF). Otherwise the root is fetched, too,
/// and checked against `id`. Takes one round trip if the parent knows one of `held` or if `held` is
/// empty, otherwise one round trip for each level.
///
/// # Errors
/// [`ManifestFetchError`]; [`ManifestFetchError::TooLong`] above `MANIFEST_BYTES_MAX`.
pub async fn fetch_manifest(
    swarm: &SwarmHandle,
    id: ManifestId,
    root: Option<Bytes>,
    held: &[&Manifest],
) -> Result<Manifest, ManifestFetchError> {
    fetch_manifest_within(swarm, id, root, held, MANIFEST_BYTES_MAX).await
}

/// Like [`fetch_manifest`], but accepts at most `bytes_max` bytes of nodes.
///
/// # Errors
/// [`ManifestFetchError`].
pub async fn fetch_manifest_within(
    swarm: &SwarmHandle,
    id: ManifestId,
    root: Option<Bytes>,
    held: &[&Manifest],
    bytes_max: u64,
) -> Result<Manifest, ManifestFetchError> {
    let mut taker = Taker {
        id,
        held,
        bytes_left: bytes_max,
        known: None,
        assembly: None,
        address: swarm.link.address().to_owned(),
        came: 0,
        failed: None,
    };
    if let Some(root) = root {
        let mut known = Assembly::new(root).map_err(|e| ManifestFetchError::Root(id, e))?;
        held.iter().for_each(|m| known.reuse(m));
        taker.assembly = Some(known);
    }
    let incomplete = |taker: &Taker<'_>| ManifestFetchError::Incomplete(taker.address.clone(), id);
    if taker.assembly.as_ref().is_none_or(|assembly| !assembly.missing().is_empty()) {
        // Ask for everything in one request.
        let request = NodeRequest {
            held: held.iter().take(HELD_MANIFESTS_MAX).map(|m| m.id()).collect(),
            hashes: if taker.assembly.is_none() { vec![NodeHash(id.0)] } else { Vec::new() },
        };
        swarm.nodes(request, |node| taker.take(node)).await?;
        taker.result()?;
    }
    // Ask level by level for the nodes that did not come.
    loop {
        let Some(assembly) = &mut taker.assembly else { return Err(incomplete(&taker)) };
        held.iter().for_each(|m| assembly.reuse(m));
        let missing = assembly.missing();
        if missing.is_empty() {
            break;
        }
        let hashes: Vec<_> = missing.iter().map(|(_, hash)| *hash).take(NODE_REQUEST_HASHES_MAX).collect();
        taker.came = 0;
        swarm.nodes(NodeRequest { held: Vec::new(), hashes }, |node| taker.take(node)).await?;
        taker.result()?;
        if taker.came == 0 {
            return Err(incomplete(&taker));
        }
    }
    let missing = incomplete(&taker);
    let manifest = taker.assembly.and_then(|assembly| assembly.finish().ok());
    manifest.filter(|manifest| manifest.id() == id).ok_or(missing)
}

/// Collects the nodes of one answer.
struct Taker<'a> {
    id: ManifestId,
    held: &'a [&'a Manifest],
    /// Chunks of `held` by id, built when the first compact leaf comes.
    known: Option<ChunkTable>,
    assembly: Option<Assembly>,
    address: String,
    came: u64,
    failed: Option<ManifestFetchError>,
    bytes_left: u64,
}

impl Taker<'_> {
    fn take(&mut self, node: Node) {
        if self.failed.is_none() {
            self.failed = self.try_take(node).err();
        }
    }

    fn try_take(&mut self, Node { level, bytes }: Node) -> Result<(), ManifestFetchError> {
        let id = self.id;
        // Count nodes that turn out to be held or unrequested, too: the sender decides how many of
        // them it sends.
        let too_long = || ManifestFetchError::TooLong(self.address.clone(), id);
        self.bytes_left = self.bytes_left.checked_sub(bytes.len() as u64).ok_or_else(too_long)?;
        let Some(assembly) = &mut self.assembly else {
            if level != ROOT_LEVEL {
                return Err(ManifestFetchError::WrongRoot(self.address.clone(), id));
            }
            let mut fresh = Assembly::new(bytes).map_err(|e| ManifestFetchError::Root(id, e))?;
            if fresh.id() != id {
                return Err(ManifestFetchError::WrongRoot(self.address.clone(), id));
            }
            self.held.iter().for_each(|m| fresh.reuse(m));
            self.assembly = Some(fresh);
            self.came += 1;
            return Ok(());
        };
        let (level, bytes) = match level {
            // The root again, from a parent that does not know we have it.
            ROOT_LEVEL => return Ok(()),
            COMPACT_LEAF => {
                let held = self.held;
                let known = self.known.get_or_insert_with(|| ChunkTable::of_those(held, |_| true));
                // A leaf that cannot be expanded here is later requested by hash: a held manifest
                // may be from another realm.
                let leaf = expand_leaf(&bytes, |id| known.get(id).map(|entry| (entry.hash, entry.len)));
                let Ok(leaf) = leaf else { return Ok(()) };
                (0, leaf)
            }
            level => (level, bytes),
        };
        match assembly.insert(level, bytes) {
            Ok(_) => {
                self.came += 1;
                Ok(())
            }
            // The node is held from elsewhere already, or was expanded with other ids than the
            // sender's. Neither is a breach, and neither is progress.
            Err(InsertError::Unasked(..)) => Ok(()),
            Err(e) => Err(ManifestFetchError::Node(self.address.clone(), e)),
        }
    }

    fn result(&mut self) -> Result<(), ManifestFetchError> {
        self.failed.take().map_or(Ok(()), Err)
    }
}
