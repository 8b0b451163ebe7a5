//! The capabilities of this node, and the check of other nodes' capabilities (docs/fleet.md,
//! "Capabilities").
//!
//! A node asks a parent for the capability of a manifest when it first opens a swarm of it, and
//! again before the capability ends. A capability that is for any node is kept in a file, so that a
//! device that starts without its parents can still serve and fetch what needs no other proof.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::fleet::{Capability, CapabilityError, Entitlement, Rights};
use distd_core::lru::Lru;
use distd_core::{ManifestId, NodeId};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::clock::unix_now;
use crate::trust::capability::{self, CapabilityQuestion, CapabilityRefused};
use crate::trust::files;
use crate::trust::tuf::wire::Answer;

/// Most manifests of which capabilities are kept.
const HELD_MAX: u64 = 1024;

/// Most capabilities of other nodes whose signature is remembered as right.
const VERIFIED_MAX: u64 = 1024;

/// Most capabilities of any node in the file.
const FILE_MAX: usize = 64;

/// How long a parent is not asked again for a capability that it did not give.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Longest time for which a parent is not asked again for a newer capability than one that is still
/// valid; a tenth of its validity if that is shorter.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// Seconds by which a capability of any node must end later to take the place of one that need not
/// be renewed yet.
const CLEARLY_LATER: u64 = 3600;

/// Shortest validity left, seconds, for which a capability is written to the file.
const WORTH_WRITING: u64 = 60;

/// Most manifests of which it is remembered when they were asked for.
const ASKED_MAX: usize = 1024;

/// Rights of a node in the swarm of one manifest, and their end.
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

/// Capabilities for one manifest.
#[derive(Clone, Default)]
struct Held {
    /// That of this node.
    own: Option<Arc<Proof>>,
    /// That of any node.
    of_any: Option<Arc<Proof>>,
}

impl Held {
    /// Capabilities that let a node read the manifest at `now` (unix seconds), this node's first.
    fn valid(&self, manifest: &ManifestId, now: u64) -> impl Iterator<Item = &Arc<Proof>> {
        let both = [&self.own, &self.of_any].into_iter().flatten();
        both.filter(move |proof| proof.capability.rights(manifest, now).is_ok())
    }

    /// The capability to show for the manifest at `now` (unix seconds): this node's, unless that of
    /// any node, which ends later, gives as much.
    fn best(&self, manifest: &ManifestId, now: u64) -> Option<&Arc<Proof>> {
        let rights = |proof: &Proof| proof.capability.rights(manifest, now).unwrap_or_default();
        let mut valid = self.valid(manifest, now);
        let first = valid.next()?;
        Some(valid.next().filter(|of_any| rights(of_any).includes(rights(first))).unwrap_or(first))
    }
}

struct State {
    held: Lru<ManifestId, Held>,
    /// Capabilities of other nodes that proved something here, by the hash of their bytes.
    verified: Lru<[u8; 32], Arc<Capability>>,
    /// When a parent was last asked for the capability of a manifest, answered or not.
    asked: HashMap<ManifestId, Instant>,
    /// When a question for the capability of a manifest was last answered, or failed.
    settled: HashMap<ManifestId, Instant>,
    /// When no parent answered a question, until one does.
    unanswered: Option<Instant>,
}

/// Remembers that something happened to these manifests now; within the bound.
fn note(times: &mut HashMap<ManifestId, Instant>, manifests: &[ManifestId]) {
    if times.len() + manifests.len() > ASKED_MAX {
        times.retain(|_, at| at.elapsed() < RENEW_AGAIN);
    }
    for manifest in manifests {
        if times.len() < ASKED_MAX {
            times.insert(*manifest, Instant::now());
        }
    }
}

/// The capabilities that this node holds, and its judgement of those of others.
pub struct Capabilities {
    node: NodeId,
    ca: CertificateDer<'static>,
    state: Mutex<State>,
    /// Held while a parent is asked, so that many tasks that need the same capability ask once.
    asking: tokio::sync::Mutex<()>,
    /// Marked as changed when a capability of this node, or of any node, is replaced.
    changed: watch::Sender<()>,
    /// File with the capabilities of any node, if they are kept.
    path: Option<PathBuf>,
}

impl Capabilities {
    /// Loads the capabilities of any node that `node` keeps in the file at `path`. One that is
    /// damaged, or not signed by the CA, is left out.
    pub fn load(node: NodeId, ca: CertificateDer<'static>, path: &Path) -> Arc<Self> {
        let this = Self::empty(node, ca, Some(path));
        this.read_file();
        Arc::new(this)
    }

    /// Creates the capabilities of a node that keeps none over its process.
    pub fn in_memory(node: NodeId, ca: CertificateDer<'static>) -> Arc<Self> {
        Arc::new(Self::empty(node, ca, None))
    }

    fn empty(node: NodeId, ca: CertificateDer<'static>, path: Option<&Path>) -> Self {
        let state = State {
            held: Lru::new(HELD_MAX),
            verified: Lru::new(VERIFIED_MAX),
            asked: HashMap::new(),
            settled: HashMap::new(),
            unanswered: None,
        };
        Self {
            node,
            ca,
            state: Mutex::new(state),
            asking: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(()),
            path: path.map(Path::to_owned),
        }
    }

    /// Takes the capabilities in the file.
    fn read_file(&self) {
        let Some(path) = &self.path else { return };
        let kept: Vec<serde_bytes::ByteBuf> = match files::read(path) {
            Ok(Some(bytes)) => rmp_serde::from_slice(&bytes).unwrap_or_default(),
            _ => Vec::new(),
        };
        for bytes in kept.into_iter().take(FILE_MAX) {
            if let Err(error) = self.keep(&Bytes::from(bytes.into_vec())) {
                let (path, error) = (path.display(), Chain(&error));
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
    /// Returns whether it brought something new: other rights, or an end that is later than that of
    /// a capability which is due for renewal.
    fn keep(&self, bytes: &Bytes) -> Result<bool, CapabilityRefused> {
        let signed = capability::open(bytes, &self.ca)?;
        let is_own = match signed.capability.node {
            Some(node) if node != self.node => return Err(CapabilityError::OtherNode.into()),
            node => node.is_some(),
        };
        let now = unix_now();
        // The bytes may be part of a larger buffer, which would stay in memory with them.
        let bytes = Bytes::copy_from_slice(bytes);
        let proof = Arc::new(Proof { bytes, capability: signed.capability });
        let mut is_news = false;
        let mut state = self.state();
        for Entitlement { manifest, rights } in &proof.capability.manifests {
            let mut held = state.held.get(manifest).cloned().unwrap_or_default();
            let slot = if is_own { &mut held.own } else { &mut held.of_any };
            let is_better = slot.as_ref().is_none_or(|old| {
                let (old, new) = (&old.capability, &proof.capability);
                match old.rights(manifest, now) {
                    Ok(held) if is_own || held != *rights => new.issued > old.issued,
                    // A capability of any node is in a file, so one that is good for hours stays,
                    // and never gives way to one that ends earlier.
                    Ok(_) => {
                        new.expires > old.expires
                            && (old.renew_at() <= now || new.expires - old.expires > CLEARLY_LATER)
                    }
                    // It has ended, or a clock was wrong when it was made.
                    Err(_) => true,
                }
            });
            if is_better {
                *slot = Some(proof.clone());
                state.held.put(*manifest, held, 1);
                is_news = true;
            }
        }
        drop(state);
        if is_news {
            self.changed.send_replace(());
        }
        Ok(is_news)
    }

    /// Receiver that is marked as changed when a capability that this node can show is replaced.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes the capabilities in the answer to a question.
    ///
    /// # Errors
    /// [`CapabilityRefused`] when the answer is malformed or not the realm's; what was right before
    /// that is kept.
    pub fn take(&self, answer: &[u8]) -> Result<(), CapabilityRefused> {
        let files = Answer::decode(answer)?.files;
        // An answer has one file of each name.
        let file = |name: &str| files.iter().find(|(other, _)| other == name).map(|(_, bytes)| bytes);
        if let Some(bytes) = file(capability::FILE_OF_ANY) {
            self.take_of_any(bytes)?;
        }
        if let Some(bytes) = file(capability::FILE) {
            self.keep(bytes)?;
        }
        Ok(())
    }

    /// Remembers that a parent is asked for the capabilities of these manifests now.
    pub(crate) fn note_asked(&self, manifests: &[ManifestId]) {
        note(&mut self.state().asked, manifests);
    }

    /// Remembers that a parent answered the question for these manifests, or that none did.
    pub(crate) fn note_settled(&self, manifests: &[ManifestId], is_answered: bool) {
        let mut state = self.state();
        note(&mut state.settled, manifests);
        state.unanswered = (!is_answered).then(Instant::now);
    }

    /// Takes a capability of any node, as an answer brought it or another node showed it.
    ///
    /// # Errors
    /// [`CapabilityRefused`].
    pub fn take_of_any(&self, bytes: &Bytes) -> Result<(), CapabilityRefused> {
        if self.keep(bytes)? {
            self.write_file();
        }
        Ok(())
    }

    /// Writes the capabilities of any node that have not ended to the file, the newest first.
    fn write_file(&self) {
        let Some(path) = &self.path else { return };
        // A pull and an agent of one device write the same file.
        self.read_file();
        let now = unix_now();
        let mut kept: Vec<Arc<Proof>> = {
            let state = self.state();
            let of_any = state.held.values().filter_map(|held| held.of_any.clone());
            of_any.filter(|proof| proof.capability.expires > now + WORTH_WRITING).collect()
        };
        kept.sort_by(|a, b| (b.capability.issued, &b.bytes).cmp(&(a.capability.issued, &a.bytes)));
        kept.dedup_by(|a, b| a.bytes == b.bytes);
        let kept: Vec<&serde_bytes::Bytes> =
            kept.iter().take(FILE_MAX).map(|proof| serde_bytes::Bytes::new(&proof.bytes)).collect();
        let bytes = rmp_serde::to_vec(&kept).expect("bytes always encode");
        if let Err(error) = files::write_atomic(path, &bytes, 0o600) {
            tracing::warn!(
                error = %Chain(&error),
                "capabilities could not be written; this node asks for them again at its next start"
            );
        }
    }

    /// Returns the bytes of the capability to show for a manifest at `now` (unix seconds): this
    /// node's, or that of any node.
    pub fn proof(&self, manifest: &ManifestId, now: u64) -> Option<Bytes> {
        let mut state = self.state();
        state.held.get(manifest)?.best(manifest, now).map(|proof| proof.bytes.clone())
    }

    /// Capabilities of any node for these manifests, each once.
    pub fn of_any(&self, manifests: &[ManifestId]) -> Vec<Bytes> {
        let (mut state, now) = (self.state(), unix_now());
        let mut found: Vec<Bytes> = Vec::new();
        for manifest in manifests {
            let held = state.held.get(manifest).and_then(|held| held.of_any.as_ref());
            let valid = held.filter(|proof| proof.capability.rights(manifest, now).is_ok());
            found.extend(valid.map(|proof| proof.bytes.clone()).filter(|bytes| !found.contains(bytes)));
        }
        found
    }

    /// Time at which a parent should be asked for a newer capability, unix seconds; `None` without
    /// a valid one.
    pub fn renew_at(&self, manifest: &ManifestId, now: u64) -> Option<u64> {
        let mut state = self.state();
        let asked = state.asked.get(manifest).copied();
        let next = |proof: &Arc<Proof>| {
            let Capability { issued, expires, .. } = proof.capability;
            let pause = Duration::from_secs(expires.saturating_sub(issued) / 10).min(RENEW_AGAIN);
            let left = asked.map_or(Duration::ZERO, |at| pause.saturating_sub(at.elapsed()));
            proof.capability.renew_at().max(now.saturating_add(left.as_secs_f64().ceil() as u64))
        };
        state.held.get(manifest)?.valid(manifest, now).map(next).min()
    }

    /// The rights of this node on a manifest at `now` (unix seconds); none without a capability.
    pub fn rights(&self, manifest: &ManifestId, now: u64) -> Rights {
        let mut state = self.state();
        let Some(held) = state.held.get(manifest) else { return Rights::NONE };
        let rights =
            held.valid(manifest, now).filter_map(|proof| proof.capability.rights(manifest, now).ok());
        rights.fold(Rights::NONE, Rights::with)
    }

    /// Whether a question for the capability of the manifest was answered or failed a moment ago.
    pub fn was_settled(&self, manifest: &ManifestId) -> bool {
        self.state().settled.get(manifest).is_some_and(|at| at.elapsed() < ASK_AGAIN)
    }

    /// Whether no parent answered a question a moment ago, and none has answered since.
    pub fn is_unanswered(&self) -> bool {
        self.state().unanswered.is_some_and(|at| at.elapsed() < ASK_AGAIN)
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
        let judged = self.judge(peer, manifest, shown, now);
        let of_any = {
            let mut state = self.state();
            let proof = state.held.get(manifest).and_then(|held| held.of_any.as_ref());
            proof.and_then(|proof| {
                let capability = &proof.capability;
                Some(Permit { rights: capability.rights(manifest, now).ok()?, until: capability.expires })
            })
        };
        match (judged, of_any) {
            // The peer may have more time by that of any node than by its own.
            (Ok(own), Some(any)) if any.until > own.until && any.rights.includes(own.rights) => Ok(any),
            (Ok(own), _) => Ok(own),
            (Err(_), Some(any)) => Ok(any),
            (Err(refused), None) => Err(refused),
        }
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
        let key = *blake3::hash(shown).as_bytes();
        let known = self.state().verified.get(&key).cloned();
        let capability = match &known {
            Some(known) => known.clone(),
            None => Arc::new(capability::open(shown, &self.ca)?.capability),
        };
        let rights = capability.rights_of(peer, manifest, now)?;
        if known.is_none() {
            self.state().verified.put(key, capability.clone(), 1);
            if capability.node.is_none() {
                // Other nodes need to show it no more, also when the parents are away.
                self.take_of_any(shown)?;
            }
        }
        Ok(Permit { rights, until: capability.expires })
    }
}
