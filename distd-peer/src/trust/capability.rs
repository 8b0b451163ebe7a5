//! Verification of capabilities, and the question for them on a metadata stream (docs/fleet.md,
//! "Capabilities").

use bytes::Bytes;
use distd_core::bounds::CAPABILITY_MANIFESTS_MAX;
use distd_core::fleet::{CapabilityError, SignedCapability, capability_message};
use distd_core::{ManifestId, NodeId};
use serde::{Deserialize, Serialize};

use super::seal::{SealError, verify_by_ca};
use super::tuf::wire::{Query, WireError};

/// Name of the capability of the asking node in an answer to a metadata question.
pub const FILE: &str = "capability";

/// Name of the capability of any node in an answer to a metadata question.
pub const FILE_OF_ANY: &str = "capability-of-any";

/// Question for capabilities, part of a [`Query`]. The targets of the query count too: the releases
/// they name, and the patch sets that lead to those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityQuestion {
    /// Node that the capability is for. A parent believes it only of a relay.
    pub node: serde_bytes::ByteArray<16>,
    /// Manifests that the node wants to open.
    #[serde(default)]
    pub manifests: Vec<ManifestId>,
}

impl CapabilityQuestion {
    /// Makes the question of `node`.
    pub fn new(node: NodeId, manifests: Vec<ManifestId>) -> Self {
        Self { node: serde_bytes::ByteArray::new(node.0), manifests }
    }

    /// The node that the capability is for.
    pub fn node(&self) -> NodeId {
        NodeId(*self.node)
    }

    /// Whether the question asks for more than one capability holds.
    pub(super) fn is_too_large(&self, targets: usize) -> bool {
        self.manifests.len() + targets > CAPABILITY_MANIFESTS_MAX
    }

    /// Encodes the question, with targets whose releases the node wants too.
    pub fn encode(self, targets: Vec<String>) -> Bytes {
        Query { capability: Some(self), targets, ..Query::default() }.encode().into()
    }
}

/// Reason why a capability is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityRefused {
    /// It does not parse, or proves something else.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// It is not signed by the realm's CA.
    #[error("the capability is not signed by the realm")]
    Seal(#[from] SealError),
    /// The answer that should bring it is malformed.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Decodes a capability from the network or a file and checks its signature against the CA's
/// certificate.
///
/// # Errors
/// [`CapabilityRefused`].
pub fn open(bytes: &Bytes, ca_der: &[u8]) -> Result<SignedCapability, CapabilityRefused> {
    let signed = SignedCapability::decode(bytes)?;
    verify_by_ca(ca_der, &capability_message(&signed.body), &signed.signature)?;
    Ok(signed)
}
