//! List of nodes that were revoked while their certificates are still valid, signed by the realm's
//! CA.
//!
//! The origin makes the list, and relays fetch it through any parent ([`FILE`] in an answer to a
//! metadata question). Both end the connections of the nodes on it. A certificate is valid for a
//! day, so the list is short.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use distd_core::error::Chain;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::files;
use super::identity::NodeId;
use super::seal::{SealError, verify_by_ca};
use crate::clock::unix_now;

/// Name of the list in an answer to a metadata question.
pub const FILE: &str = "revoked";

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-revoked-v1\0";

/// Maximum size of a signed list, bytes: some 30 000 nodes revoked in a day.
const BYTES_MAX: usize = 1 << 20;

/// Maximum time by which the origin's clock may be ahead of this node's, seconds.
const AHEAD_MAX: u64 = 3600;

/// The list that the origin signs, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedList {
    /// Time at which the list was made, unix seconds.
    pub made: u64,
    /// Revoked nodes; in JSON 32 hexadecimal digits each.
    #[serde(with = "as_text")]
    pub nodes: Vec<NodeId>,
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::NodeId;

    pub(super) fn serialize<S: Serializer>(nodes: &[NodeId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(nodes.iter().map(NodeId::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NodeId>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let parsed: Result<Vec<NodeId>, _> = texts.iter().map(|text| text.parse()).collect();
        parsed.map_err(|_| serde::de::Error::custom("a node id has 32 hexadecimal digits"))
    }
}

/// A list with its signature, encoded as a msgpack map with field names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRevokedList {
    /// A [`RevokedList`] as JSON.
    #[serde(with = "serde_bytes")]
    pub list: Vec<u8>,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the CA's key over [`revoked_message`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// Reason why a list is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// The bytes do not parse, or are too many.
    #[error("the list of revoked nodes is malformed")]
    Malformed,
    /// The list is not signed by the realm's CA.
    #[error("the list of revoked nodes is not signed by the realm")]
    Seal(#[from] SealError),
}

/// Returns the bytes that the CA's key signs.
pub fn revoked_message(list: &[u8]) -> Vec<u8> {
    [DOMAIN, list].concat()
}

impl SignedRevokedList {
    /// Encodes the signed list.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("bytes always encode")
    }

    /// Decodes bytes from the network and checks the signature against the CA's certificate.
    ///
    /// # Errors
    /// [`RevokedError`].
    pub fn open(bytes: &[u8], ca_der: &[u8]) -> Result<RevokedList, RevokedError> {
        if bytes.len() > BYTES_MAX {
            return Err(RevokedError::Malformed);
        }
        let signed: Self = rmp_serde::from_slice(bytes).map_err(|_| RevokedError::Malformed)?;
        verify_by_ca(ca_der, &revoked_message(&signed.list), &signed.signature)?;
        serde_json::from_slice(&signed.list).map_err(|_| RevokedError::Malformed)
    }
}

#[derive(Default)]
struct Held {
    made: u64,
    nodes: HashSet<NodeId>,
}

/// The revoked nodes that this node knows of.
pub struct Revoked {
    held: RwLock<Held>,
    changed: watch::Sender<()>,
    /// File that keeps the signed list over a restart; `None` keeps it in memory only.
    path: Option<PathBuf>,
}

impl Default for Revoked {
    fn default() -> Self {
        Self { held: RwLock::default(), changed: watch::Sender::new(()), path: None }
    }
}

impl Revoked {
    /// Loads the list from `path`. The list is empty if the file is missing or not signed by the
    /// CA.
    pub fn load(path: &Path, ca_der: &[u8]) -> Arc<Self> {
        let this = Self { path: Some(path.to_owned()), ..Self::default() };
        if let Ok(Some(bytes)) = files::read(path) {
            match SignedRevokedList::open(&bytes, ca_der) {
                Ok(list) => drop(this.set(list, unix_now())),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %Chain(&error), "revocation list refused")
                }
            }
        }
        Arc::new(this)
    }

    /// Whether a node is revoked.
    pub fn holds(&self, node: &NodeId) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).nodes.contains(node)
    }

    /// Waits until `node` is revoked.
    pub async fn until(&self, node: NodeId) {
        let mut changed = self.changed.subscribe();
        while !self.holds(&node) {
            // The sender lives as long as `self`.
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Replaces the list without a check of its age. The origin calls this, since it makes the
    /// list.
    pub fn replace(&self, list: RevokedList) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        *held = Held { made: list.made, nodes: list.nodes.into_iter().collect() };
        drop(held);
        self.changed.send_replace(());
    }

    /// Takes a list whose signature was checked. Returns false if the list is older than the
    /// present one, or was made more than [`AHEAD_MAX`] after `now`: a list from the future would
    /// keep out all later ones.
    fn set(&self, list: RevokedList, now: u64) -> bool {
        let made = self.held.read().unwrap_or_else(PoisonError::into_inner).made;
        if list.made < made || list.made > now.saturating_add(AHEAD_MAX) {
            return false;
        }
        self.replace(list);
        true
    }

    /// Takes a signed list from a parent, and stores it if it names other nodes than the present
    /// one. A list that is older than the present one is ignored.
    ///
    /// # Errors
    /// [`RevokedError`].
    pub fn take(&self, bytes: &[u8], ca_der: &[u8]) -> Result<(), RevokedError> {
        let list = SignedRevokedList::open(bytes, ca_der)?;
        let is_news = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            let same = held.nodes.len() == list.nodes.len();
            !same || list.nodes.iter().any(|node| !held.nodes.contains(node))
        };
        let taken = self.set(list, unix_now());
        // Flash memory wears out, so a list of the same nodes is not written again.
        if let Some(path) = self.path.as_ref().filter(|_| taken && is_news)
            && let Err(error) = files::write_atomic(path, bytes, 0o600)
        {
            tracing::warn!(
                error = %Chain(&error),
                "list of revoked nodes could not be written; it will be lost at the next restart"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(made: u64, nodes: &[u8]) -> RevokedList {
        RevokedList { made, nodes: nodes.iter().map(|n| NodeId([*n; 16])).collect() }
    }

    #[tokio::test]
    async fn a_newly_revoked_node_is_reported_and_an_older_list_restores_none() {
        let revoked = Revoked::default();
        assert!(revoked.set(list(5, &[1]), 5));
        revoked.until(NodeId([1; 16])).await;
        let two = revoked.until(NodeId([2; 16]));
        tokio::pin!(two);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), &mut two).await.is_err());
        assert!(revoked.set(list(6, &[1, 2]), 5));
        two.await;
        assert!(!revoked.set(list(4, &[]), 6) && !revoked.set(list(99_999, &[]), 6));
        assert!(revoked.holds(&NodeId([1; 16])));
        assert!(revoked.set(list(7, &[2]), 7));
        assert!(!revoked.holds(&NodeId([1; 16])), "its certificate has ended");
    }

    #[test]
    fn an_unsigned_list_is_refused() {
        let signed =
            SignedRevokedList { list: b"{\"made\":1,\"nodes\":[]}".to_vec(), signature: vec![0; 70] };
        assert!(matches!(SignedRevokedList::open(b"junk", b""), Err(RevokedError::Malformed)));
        assert!(matches!(SignedRevokedList::open(&signed.encode(), b""), Err(RevokedError::Seal(_))));
    }
}
