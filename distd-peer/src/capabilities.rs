//! The capabilities of this node, and the check of other nodes' capabilities (docs/fleet.md,
//! "Capabilities").
//!
//! A node asks a parent for the capability of a manifest when it first opens a swarm of it, and
//! again before the capability ends. A capability that is for any node is kept in a file, so that a
//! device that starts without its parents can still serve and fetch what needs no other proof.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::fleet::{Capability, CapabilityError, Rights};
use distd_core::lru::Lru;
use distd_core::{ManifestId, NodeId};
use rustls::pki_types::CertificateDer;

use crate::clock::unix_now;
use crate::trust::capability::{self, CapabilityQuestion, CapabilityRefused};
use crate::trust::files;
use crate::trust::tuf::wire::Answer;

/// Most manifests of which the capability is kept.
const HELD_MAX: u64 = 1024;

/// Most capabilities of other nodes whose signature is remembered as right.
const VERIFIED_MAX: u64 = 4096;

/// Most capabilities of any node in the file.
const FILE_MAX: usize = 64;

/// How long a manifest for which the origin gave no capability is not asked for again.
const REFUSED: Duration = Duration::from_secs(5);

/// Most manifests that are remembered as refused.
const REFUSED_MAX: usize = 1024;

/// What a node may do with the swarm of one manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The node's rights. They include [`distd_core::fleet::Right::Read`].
    pub rights: Rights,
    /// Time at which the permit ends, unix seconds.
    pub until: u64,
}

impl Permit {
    /// Every right without an end.
    pub const ALL: Self = Self { rights: Rights::ALL, until: u64::MAX };
}

/// A capability with the bytes that prove it.
struct Proof {
    bytes: Bytes,
    capability: Capability,
}

struct State {
    /// Capability by manifest: the one that ends last.
    held: Lru<ManifestId, Arc<Proof>>,
    /// Capabilities of other nodes, by their bytes.
    verified: Lru<Bytes, Arc<Capability>>,
    /// Manifests for which the origin gave no capability, and when.
    refused: HashMap<ManifestId, Instant>,
}

/// The capabilities that this node holds, and its judgement of those of others.
pub struct Capabilities {
    node: NodeId,
    ca: CertificateDer<'static>,
    state: Mutex<State>,
    /// Held while a parent is asked, so that many tasks that need the same capability ask once.
    asking: tokio::sync::Mutex<()>,
    /// File with the capabilities of any node.
    path: PathBuf,
}

impl Capabilities {
    /// Loads the capabilities of `node` that are kept in the file at `path`. One that is damaged,
    /// or not signed by the CA, is left out.
    pub fn load(node: NodeId, ca: CertificateDer<'static>, path: &Path) -> Arc<Self> {
        let state =
            State { held: Lru::new(HELD_MAX), verified: Lru::new(VERIFIED_MAX), refused: HashMap::new() };
        let this = Self {
            node,
            ca,
            state: Mutex::new(state),
            asking: tokio::sync::Mutex::default(),
            path: path.to_owned(),
        };
        this.read_file();
        Arc::new(this)
    }

    /// Takes the capabilities in the file.
    fn read_file(&self) {
        let kept: Vec<serde_bytes::ByteBuf> = match files::read(&self.path) {
            Ok(Some(bytes)) => rmp_serde::from_slice(&bytes).unwrap_or_default(),
            _ => Vec::new(),
        };
        for bytes in kept.into_iter().take(FILE_MAX) {
            if let Err(error) = self.keep(&Bytes::from(bytes.into_vec())) {
                let (path, error) = (self.path.display(), Chain(&error));
                tracing::info!(%path, error = %error, "a kept capability is not used");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Id of this node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Checks one capability and keeps it for each of its manifests, unless a later one is kept.
    fn keep(&self, bytes: &Bytes) -> Result<Arc<Proof>, CapabilityRefused> {
        let signed = capability::open(bytes, &self.ca)?;
        if signed.capability.node.is_some_and(|node| node != self.node) {
            return Err(CapabilityError::OtherNode.into());
        }
        let proof = Arc::new(Proof { bytes: bytes.clone(), capability: signed.capability });
        let mut state = self.state();
        for entitlement in &proof.capability.manifests {
            let manifest = entitlement.manifest;
            let later = |held: &Arc<Proof>| held.capability.expires > proof.capability.expires;
            if !state.held.get(&manifest).is_some_and(later) {
                state.held.put(manifest, proof.clone(), 1);
            }
            state.refused.remove(&manifest);
        }
        Ok(proof)
    }

    /// Takes the capabilities in the answer to a question, and remembers for a few seconds which of
    /// the manifests `asked` for came without.
    ///
    /// # Errors
    /// [`CapabilityRefused`] when the answer is malformed or not the realm's; what was right before
    /// that is kept.
    pub fn take(&self, answer: &[u8], asked: &[ManifestId]) -> Result<(), CapabilityRefused> {
        for (name, bytes) in &Answer::decode(answer)?.files {
            if name == capability::FILE {
                self.keep(bytes)?;
            } else if name == capability::FILE_OF_ANY {
                self.keep(bytes)?;
                self.write_file();
            }
        }
        let now = unix_now();
        let mut state = self.state();
        for manifest in asked {
            if state.proof(manifest, now).is_some() {
                continue;
            }
            if state.refused.len() >= REFUSED_MAX {
                state.refused.retain(|_, at| at.elapsed() < REFUSED);
            }
            if state.refused.len() < REFUSED_MAX {
                state.refused.insert(*manifest, Instant::now());
            }
        }
        Ok(())
    }

    /// Writes the capabilities of any node that have not ended to the file.
    fn write_file(&self) {
        // A pull and an agent of one device write the same file.
        self.read_file();
        let now = unix_now();
        let kept: BTreeSet<Bytes> = {
            let state = self.state();
            let of_any = state.held.values().filter(|proof| proof.capability.node.is_none());
            of_any.filter(|proof| proof.capability.expires > now).map(|proof| proof.bytes.clone()).collect()
        };
        let kept: Vec<&serde_bytes::Bytes> =
            kept.iter().take(FILE_MAX).map(|bytes| serde_bytes::Bytes::new(bytes)).collect();
        let bytes = rmp_serde::to_vec(&kept).expect("bytes always encode");
        if let Err(error) = files::write_atomic(&self.path, &bytes, 0o600) {
            tracing::warn!(
                error = %Chain(&error),
                "capabilities could not be written; this node asks for them again at its next start"
            );
        }
    }

    /// Returns the bytes of the capability for a manifest at `now` (unix seconds), and whether a
    /// new one should be asked for.
    pub fn proof(&self, manifest: &ManifestId, now: u64) -> Option<(Bytes, bool)> {
        let proof = self.state().proof(manifest, now)?;
        Some((proof.bytes.clone(), proof.capability.renew_at() <= now))
    }

    /// Time at which the capability for a manifest should be renewed, unix seconds; `None` without
    /// one.
    pub fn renew_at(&self, manifest: &ManifestId) -> Option<u64> {
        self.state().held.get(manifest).map(|proof| proof.capability.renew_at())
    }

    /// The rights of this node on a manifest at `now` (unix seconds); none without a capability.
    pub fn rights(&self, manifest: &ManifestId, now: u64) -> Rights {
        let proof = self.state().proof(manifest, now);
        proof.and_then(|proof| proof.capability.rights(manifest, now).ok()).unwrap_or_default()
    }

    /// Whether the origin gave no capability for the manifest a moment ago.
    pub fn was_refused(&self, manifest: &ManifestId) -> bool {
        self.state().refused.get(manifest).is_some_and(|at| at.elapsed() < REFUSED)
    }

    /// Question for the capabilities of some manifests, and of the releases that `targets` name.
    pub fn question(&self, manifests: Vec<ManifestId>, targets: Vec<String>) -> Bytes {
        CapabilityQuestion::new(self.node, manifests).encode(targets)
    }

    /// Waits for the turn to ask a parent.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.asking.lock().await
    }

    /// Decides at `now` (unix seconds) what `peer` may do with a manifest: by the capability that
    /// it showed, or by one of any node that is held here.
    ///
    /// # Errors
    /// [`CapabilityRefused`].
    pub fn permit(
        &self,
        peer: &NodeId,
        manifest: &ManifestId,
        shown: &Bytes,
        now: u64,
    ) -> Result<Permit, CapabilityRefused> {
        let refused = match self.judge(peer, manifest, shown, now) {
            Ok(permit) => return Ok(permit),
            Err(refused) => refused,
        };
        let proof = self.state().proof(manifest, now).filter(|proof| proof.capability.node.is_none());
        let proof = proof.ok_or(refused)?;
        let rights = proof.capability.rights(manifest, now)?;
        Ok(Permit { rights, until: proof.capability.expires })
    }

    fn judge(
        &self,
        peer: &NodeId,
        manifest: &ManifestId,
        shown: &Bytes,
        now: u64,
    ) -> Result<Permit, CapabilityRefused> {
        if shown.is_empty() {
            return Err(CapabilityError::NotGranted.into());
        }
        let known = self.state().verified.get(shown).cloned();
        let capability = match known {
            Some(known) => known,
            None => {
                let opened = Arc::new(capability::open(shown, &self.ca)?.capability);
                self.state().verified.put(shown.clone(), opened.clone(), 1);
                opened
            }
        };
        let rights = capability.rights_of(peer, manifest, now)?;
        Ok(Permit { rights, until: capability.expires })
    }
}

impl State {
    /// Capability for a manifest that has not ended at `now` (unix seconds).
    fn proof(&mut self, manifest: &ManifestId, now: u64) -> Option<Arc<Proof>> {
        self.held.get(manifest).filter(|proof| proof.capability.rights(manifest, now).is_ok()).cloned()
    }
}
