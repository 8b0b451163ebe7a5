//! Getting a manifest from a parent with the fewest bytes and round trips.

use bytes::Bytes;
use distd_core::limits::{HELD_MANIFESTS_MAX, NODE_REQUEST_HASHES_MAX};
use distd_core::manifest::{Assembly, InsertError, Manifest, NodeError};
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{NodeRequest, ROOT_LEVEL};
use distd_core::{ManifestId, NodeHash};

use crate::net::{LinkError, SwarmHandle, WireError};

/// Why a manifest could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFetchError {
    /// The parent failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What it sent as root is not the manifest's.
    #[error("{0} sent a wrong root for manifest {1}")]
    WrongRoot(String, ManifestId),
    /// The root is unusable.
    #[error("the root of manifest {0} is unusable")]
    Root(ManifestId, #[source] NodeError),
    /// It sent a node that does not belong.
    #[error("{0} sent a wrong manifest node")]
    Node(String, #[source] InsertError),
    /// It does not have all nodes.
    #[error("{0} does not have the whole of manifest {1}")]
    Incomplete(String, ManifestId),
}

impl ManifestFetchError {
    /// Whether the parent said that it does not know the manifest.
    pub fn is_no_manifest(&self) -> bool {
        matches!(self, Self::Link(LinkError::Wire(_, WireError::Closed(CloseCode::NoManifest))))
    }

    /// Whether the parent lied: it is not to be asked again.
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
/// `root` is the root node where it is known already (out of TUF); otherwise it is fetched too and checked against `id`.
/// One round trip when the parent knows one of `held` (or there is none), else one a level.
///
/// # Errors
/// [`ManifestFetchError`].
pub async fn fetch_manifest(
    swarm: &SwarmHandle,
    id: ManifestId,
    root: Option<Bytes>,
    held: &[&Manifest],
) -> Result<Manifest, ManifestFetchError> {
    let address = || swarm.link.address().to_owned();
    let mut assembly = match root {
        Some(root) => Some(Assembly::new(root).map_err(|e| ManifestFetchError::Root(id, e))?),
        None => None,
    };
    if let Some(known) = &mut assembly {
        held.iter().for_each(|m| known.reuse(m));
        if known.missing().is_empty() {
            return finish(assembly, id, address());
        }
    }
    // Everything in one go.
    let request = NodeRequest {
        held: held.iter().take(HELD_MANIFESTS_MAX).map(|m| m.id()).collect(),
        hashes: if assembly.is_none() { vec![NodeHash(id.0)] } else { Vec::new() },
    };
    let mut failed = None;
    swarm
        .nodes(request, |node| {
            if failed.is_some() {
                return;
            }
            failed = take(&mut assembly, id, held, node.level, node.bytes, &address).err();
        })
        .await?;
    if let Some(error) = failed {
        return Err(error);
    }
    // Level by level for what did not come.
    loop {
        let missing = match &mut assembly {
            Some(assembly) => {
                held.iter().for_each(|m| assembly.reuse(m));
                assembly.missing()
            }
            None => return Err(ManifestFetchError::Incomplete(address(), id)),
        };
        if missing.is_empty() {
            return finish(assembly, id, address());
        }
        let hashes: Vec<_> = missing.iter().map(|(_, hash)| *hash).take(NODE_REQUEST_HASHES_MAX).collect();
        let mut came = 0;
        swarm
            .nodes(NodeRequest { held: Vec::new(), hashes }, |node| {
                if failed.is_none() {
                    came += 1;
                    failed = take(&mut assembly, id, held, node.level, node.bytes, &address).err();
                }
            })
            .await?;
        if let Some(error) = failed {
            return Err(error);
        }
        if came == 0 {
            return Err(ManifestFetchError::Incomplete(address(), id));
        }
    }
}

fn take(
    assembly: &mut Option<Assembly>,
    id: ManifestId,
    held: &[&Manifest],
    level: u8,
    bytes: Bytes,
    address: &impl Fn() -> String,
) -> Result<(), ManifestFetchError> {
    match assembly {
        None if level == ROOT_LEVEL => {
            let mut fresh = Assembly::new(bytes).map_err(|e| ManifestFetchError::Root(id, e))?;
            if fresh.id() != id {
                return Err(ManifestFetchError::WrongRoot(address(), id));
            }
            held.iter().for_each(|m| fresh.reuse(m));
            *assembly = Some(fresh);
            Ok(())
        }
        // The root again, from a parent that was not told we have it.
        Some(_) if level == ROOT_LEVEL => Ok(()),
        Some(assembly) => match assembly.insert(level, bytes) {
            Ok(_) => Ok(()),
            Err(e) => Err(ManifestFetchError::Node(address(), e)),
        },
        None => Err(ManifestFetchError::WrongRoot(address(), id)),
    }
}

fn finish(
    assembly: Option<Assembly>,
    id: ManifestId,
    address: String,
) -> Result<Manifest, ManifestFetchError> {
    assembly
        .and_then(|assembly| assembly.finish().ok())
        .filter(|manifest| manifest.id() == id)
        .ok_or(ManifestFetchError::Incomplete(address, id))
}
