//! News: what a node is told without asking (docs/protocol.md, "News"). The core's
//! [`News`] decides; this module verifies notices, keeps them on disk, and opens streams.
//!
//! [`parents`] keeps a news stream to a parent, [`neighbours`] tells neighbours, and
//! `serve/news.rs` answers both.

mod stream;

pub mod neighbours;
pub mod parents;

pub(crate) use stream::Passed;
pub use stream::{NewsEvent, NewsLink};

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::fleet::SignedHalt;
use distd_core::fleet::rollout::RolloutId;
use distd_core::swarm::{Judged, Neighbour, News, NewsFrom, Told};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};

use crate::clock::{monotonic_now, unix_now};
use crate::random;
use crate::trust::halt::{self, HaltRefused};

/// Most nodes remembered that told this one, for when it has news.
const CALLERS_MAX: usize = 64;

struct State {
    news: News,
    /// Counter and bytes of each notice.
    signed: BTreeMap<RolloutId, (u64, Bytes)>,
    /// Nodes that told this one, the latest last.
    callers: VecDeque<Neighbour>,
}

/// The news of this node, shared by all of its connections.
pub struct Newsroom {
    ca: CertificateDer<'static>,
    /// State directory that keeps the notices.
    data: PathBuf,
    state: Mutex<State>,
    /// One write of the file at a time, each with the newest state.
    writing: Mutex<()>,
    /// Counts changes of the notices.
    changes: watch::Sender<u64>,
    /// Version of metadata that this node announces to those that listen; 0 for none.
    announced: watch::Sender<u64>,
    /// Version that a parent announced; 0 for none.
    heard: watch::Sender<u64>,
    /// Signalled when the machine may have something to do.
    due: Notify,
}

impl Newsroom {
    /// Opens the news of the node whose state directory is `data`, with the notices that it kept.
    pub fn open(data: &Path, ca: CertificateDer<'static>) -> Arc<Self> {
        let mut news = News::new(random::number());
        let mut signed = BTreeMap::new();
        for kept in halt::kept(data, &ca, unix_now()) {
            news.restore(kept.notice);
            signed.insert(kept.notice.rollout, (kept.notice.counter, kept.encode()));
        }
        Arc::new(Self {
            ca,
            data: data.to_owned(),
            state: Mutex::new(State { news, signed, callers: VecDeque::new() }),
            writing: Mutex::default(),
            changes: watch::Sender::new(0),
            announced: watch::Sender::new(0),
            heard: watch::Sender::new(0),
            due: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bytes of a notice from the network. Blocks for a short time: checks the signature
    /// of what is news, and writes a file.
    ///
    /// # Errors
    /// [`HaltRefused`]: the sender breaks the protocol.
    pub fn take(&self, bytes: &Bytes, from: NewsFrom) -> Result<(SignedHalt, Judged), HaltRefused> {
        let signed = SignedHalt::decode(bytes)?;
        let judged = self.state().news.judge(unix_now(), &signed.notice);
        if judged != Judged::News {
            return Ok((signed, judged));
        }
        halt::verify(&signed, &self.ca)?;
        let judged = {
            let mut state = self.state();
            let judged = state.news.handle_notice(monotonic_now(), unix_now(), signed.notice, from);
            if judged == Judged::News {
                state.signed.insert(signed.notice.rollout, (signed.notice.counter, bytes.clone()));
                let State { news, signed, .. } = &mut *state;
                let held: Vec<RolloutId> = news.notices().map(|notice| notice.rollout).collect();
                signed.retain(|rollout, _| held.contains(rollout));
            }
            judged
        };
        if judged == Judged::News {
            tracing::info!(rollout = %signed.notice.rollout, counter = signed.notice.counter, ?from, "a rollout stands still");
            // Others are told before the disk is.
            self.changes.send_modify(|count| *count += 1);
            self.due.notify_one();
            self.write();
        }
        Ok((signed, judged))
    }

    fn write(&self) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let notices = self.notices();
        if let Err(error) = halt::keep(&self.data, notices.iter().map(|(_, _, bytes)| bytes)) {
            tracing::warn!(
                error = %Chain(&error),
                "halt notices could not be written; they will be lost at the next restart"
            );
        }
    }

    /// Rollout, counter and bytes of each notice.
    pub fn notices(&self) -> Vec<(RolloutId, u64, Bytes)> {
        let state = self.state();
        let all = state.signed.iter();
        all.map(|(rollout, (counter, bytes))| (*rollout, *counter, bytes.clone())).collect()
    }

    /// Receiver that is marked as changed with each notice that is news.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether a rollout stands still for a document of it with this counter of its channel.
    pub fn is_halted(&self, rollout: &RolloutId, counter: u64) -> bool {
        self.state().news.is_halted(rollout, counter)
    }

    /// This node holds a verified document of a rollout, with this counter of its channel.
    pub fn holds_document(&self, rollout: RolloutId, counter: u64) {
        self.state().news.handle_document(rollout, counter);
    }

    /// Announces metadata of this version to those that listen.
    pub fn announce(&self, version: u64) {
        self.announced.send_if_modified(|announced| {
            let is_newer = version > *announced;
            *announced = version.max(*announced);
            is_newer
        });
    }

    /// Versions to announce to those that listen.
    pub(crate) fn announced(&self) -> watch::Receiver<u64> {
        self.announced.subscribe()
    }

    /// Versions that parents announced.
    pub fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// A parent announced a version.
    fn hear(&self, version: u64) {
        self.state().news.handle_newer(monotonic_now(), version);
        self.heard.send_replace(version);
        self.due.notify_one();
    }

    /// A parent listens, or none does any more.
    fn set_parent(&self, is_connected: bool) {
        self.state().news.handle_parent(monotonic_now(), is_connected);
        self.due.notify_one();
    }

    /// A node at this address told this one.
    pub(crate) fn was_called(&self, caller: Neighbour) {
        let mut state = self.state();
        state.callers.retain(|known| known.node != caller.node);
        if state.callers.len() >= CALLERS_MAX {
            state.callers.pop_front();
        }
        state.callers.push_back(caller);
    }

    fn callers(&self) -> Vec<Neighbour> {
        self.state().callers.iter().rev().cloned().collect()
    }

    fn wants_neighbours(&self) -> bool {
        self.state().news.wants_neighbours(monotonic_now())
    }

    fn poll_tell(&self, neighbours: &[NodeId]) -> Option<NodeId> {
        self.state().news.poll_tell(monotonic_now(), neighbours)
    }

    fn poll_exchange(&self, neighbours: &[NodeId]) -> Option<NodeId> {
        self.state().news.poll_exchange(monotonic_now(), neighbours)
    }

    fn told(&self, node: NodeId, told: Told) {
        self.state().news.handle_told(node, told);
        self.due.notify_one();
    }

    /// Waits until the machine may have something to do: news, the end of a telling, or a time.
    async fn something_due(&self) {
        let now = monotonic_now();
        let due = self.state().news.poll_timeout(now);
        let wait = due.map_or(Duration::from_secs(3600), |due| due.since(now));
        tokio::select! {
            () = self.due.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Whether this node is to look for newer metadata now.
    fn poll_look(&self) -> bool {
        self.state().news.poll_look(monotonic_now())
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::{HaltNotice, halt_message};
    use rcgen::{CertificateParams, IsCa, KeyPair, SigningKey};

    use super::*;

    struct Realm {
        key: KeyPair,
        ca: CertificateDer<'static>,
    }

    fn realm() -> Realm {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a certificate").der().clone();
        Realm { key, ca }
    }

    fn notice(realm: &Realm, rollout: u8, counter: u64) -> Bytes {
        let notice = HaltNotice { rollout: RolloutId([rollout; 16]), counter, made: unix_now() };
        let signature = realm.key.sign(&halt_message(&notice)).expect("signs").into();
        SignedHalt { notice, signature }.encode()
    }

    #[test]
    fn a_notice_is_kept_over_restarts_and_a_foreign_one_is_refused() {
        let (ours, other) = (realm(), realm());
        let dir = tempfile::tempdir().expect("temporary directory");
        let room = Newsroom::open(dir.path(), ours.ca.clone());
        let mut changes = room.changes();
        let foreign = room.take(&notice(&other, 1, 5), NewsFrom::Parent);
        assert!(matches!(foreign, Err(HaltRefused::Seal(_))), "{foreign:?}");
        let mut changed = notice(&ours, 1, 5).to_vec();
        changed[20] ^= 1;
        assert!(matches!(room.take(&changed.into(), NewsFrom::Parent), Err(HaltRefused::Seal(_))));
        assert!(!changes.has_changed().expect("open") && !dir.path().join(halt::FILE_NAME).exists());
        let bytes = notice(&ours, 1, 5);
        println!("a notice has {} bytes", bytes.len());
        for expected in [Judged::News, Judged::Known] {
            assert_eq!(room.take(&bytes, NewsFrom::Parent).expect("valid").1, expected);
        }
        assert!(changes.has_changed().expect("open"));
        changes.mark_unchanged();
        let again = Newsroom::open(dir.path(), ours.ca.clone());
        assert!(again.is_halted(&RolloutId([1; 16]), 4) && !again.is_halted(&RolloutId([1; 16]), 5));
        assert_eq!(again.notices(), room.notices());
        assert!(Newsroom::open(dir.path(), other.ca.clone()).notices().is_empty(), "another realm's");
        // Half a file is half of the notices.
        assert_eq!(room.take(&notice(&ours, 2, 5), NewsFrom::Parent).expect("valid").1, Judged::News);
        let path = dir.path().join(halt::FILE_NAME);
        let whole = std::fs::read(&path).expect("kept");
        std::fs::write(&path, &whole[..whole.len() - 3]).expect("write");
        assert_eq!(Newsroom::open(dir.path(), ours.ca).notices().len(), 1);
    }
}
