//! A relay that lies: wrong bytes, wrong lengths, absurd counts, nothing. The device ends with the
//! right bytes or none, and remembers the liar.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ChunkId;
use distd_core::ManifestId;
use distd_core::proto::frame::{Codec, Data, DontHaveReason, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::role::Role;
use distd_peer::capabilities::Capabilities;
use distd_peer::capabilities::Permit;
use distd_peer::enrollment;
use distd_peer::net::{Dialer, Outbound, ResetKey, Transport, client_endpoint, parent_sockets};
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::relay::Relay;
use distd_peer::serve::{
    ChunkAnswer, Content, NodeBudget, NodesAnswer, ServeConfig, ServeError, Server, Swarm,
};
use distd_peer::store::{EdgeStore, StoreConfig};
use distd_peer::trust::enroll::{EnrollMessage, EnrollReply};
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::seal::SealedReply;
use distd_peer::trust::tls::{
    Credentials, PeerIdentity, TrustAnchor, https_parent, quic_client, quic_server,
};
use distd_tests::artifacts;
use distd_tests::lab::{Lab, same};
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Bytes that do not match the chunk's hash.
    WrongBytes,
    /// A zstd frame that unpacks to far more than the chunk.
    Bomb,
    /// A chunk that was not requested.
    Unasked,
    /// A DONT_HAVE for a range that was not requested.
    AbsurdRange,
    /// The end of the answer, without any frame in it.
    Silence,
    /// Manifest nodes with a changed byte.
    WrongNodes,
    /// TUF metadata with a changed byte.
    WrongMetadata,
    /// Another realm's TUF root in the reply to an enrolment.
    OtherRoot,
    /// The same root, after the request was changed so that the origin answers without a seal.
    OtherRootUnsealed,
}

/// A relay that is honest except for one lie.
struct Liar {
    inner: Arc<Relay>,
    lie: Lie,
    reported_bad_data: Arc<AtomicU64>,
    /// Swarms that stay open, as a relay keeps its swarms when no node has them open.
    kept: Mutex<Vec<Arc<dyn Swarm>>>,
}

struct LyingSwarm {
    inner: Arc<dyn Swarm>,
    lie: Lie,
    reported_bad_data: Arc<AtomicU64>,
}

#[async_trait]
impl Content for Liar {
    async fn permit(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
        shown: &Bytes,
    ) -> Result<Permit, ServeError> {
        self.inner.permit(peer, budget, manifest, shown).await
    }

    async fn swarm(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        let inner = self.inner.swarm(peer, budget, manifest).await?;
        let swarm: Arc<dyn Swarm> =
            Arc::new(LyingSwarm { inner, lie: self.lie, reported_bad_data: self.reported_bad_data.clone() });
        self.kept.lock().expect("no holder panics").push(swarm.clone());
        Ok(swarm)
    }

    async fn metadata(&self, peer: &PeerIdentity, query: Bytes) -> Result<Bytes, ServeError> {
        let mut answer = self.inner.metadata(peer, query).await?.to_vec();
        if self.lie == Lie::WrongMetadata
            && let Some(byte) = answer.last_mut()
        {
            *byte ^= 1;
        }
        Ok(answer.into())
    }

    async fn enroll(&self, body: Bytes) -> Result<Bytes, ServeError> {
        match self.lie {
            Lie::OtherRoot => {
                let reply = self.inner.enroll(body).await?;
                let mut sealed = SealedReply::decode(&reply).expect("the origin seals");
                sealed.reply = with_another_root(&sealed.reply);
                Ok(sealed.encode().into())
            }
            Lie::OtherRootUnsealed => {
                let EnrollMessage::Enroll(mut request) = EnrollMessage::decode(&body).expect("a request")
                else {
                    panic!("not an enrolment")
                };
                request.nonce.clear();
                let reply = self.inner.enroll(EnrollMessage::Enroll(request).encode().into()).await?;
                Ok(with_another_root(&reply).into())
            }
            _ => self.inner.enroll(body).await,
        }
    }
}

/// A reply to an enrolment that would make the device trust another realm.
fn with_another_root(reply: &[u8]) -> Vec<u8> {
    let reply = EnrollReply::decode(reply).expect("a reply");
    let EnrollReply::Enrolled(mut response) = reply else { panic!("refused: {reply:?}") };
    response.root_json = r#"{"signed":{"version":1},"signatures":[]}"#.to_owned();
    EnrollReply::Enrolled(response).encode()
}

#[async_trait]
impl Swarm for LyingSwarm {
    fn fetches_upstream(&self) -> bool {
        true
    }

    fn ids(&self) -> ChunkRanges {
        self.inner.ids()
    }

    fn reported_bad_data(&self) {
        self.reported_bad_data.fetch_add(1, Ordering::Relaxed);
    }

    async fn held(&self) -> Result<ChunkRanges, ServeError> {
        self.inner.held().await
    }

    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError> {
        let mut answer = self.inner.nodes(request).await?;
        if self.lie == Lie::WrongNodes {
            for node in &mut answer.nodes {
                let mut bytes = node.bytes.to_vec();
                if let Some(byte) = bytes.last_mut() {
                    *byte ^= 1;
                }
                node.bytes = bytes.into();
            }
        }
        Ok(answer)
    }

    async fn chunks(
        &self,
        budget: &Arc<NodeBudget>,
        wanted: ChunkRanges,
        answers: mpsc::Sender<ChunkAnswer>,
    ) {
        let Some(first) = wanted.ids().next() else { return };
        let data = |id, codec, bytes| ChunkAnswer::Data(Data { id, codec, bytes });
        let lie = match self.lie {
            Lie::WrongBytes => data(first, Codec::Raw, Bytes::from_static(b"not the chunk")),
            Lie::Bomb => {
                let packed = distd_core::packing::Packer::new(3).pack(&vec![0; 1 << 20]);
                data(first, packed.codec, packed.bytes)
            }
            Lie::Unasked => data(ChunkId(i64::MAX as u64), Codec::Raw, Bytes::from_static(b"surprise")),
            Lie::AbsurdRange => {
                let all = [ChunkId(1)..=ChunkId(i64::MAX as u64)].into_iter().collect();
                ChunkAnswer::DontHave(all, DontHaveReason::NotHeld)
            }
            Lie::Silence => return,
            Lie::WrongNodes | Lie::WrongMetadata | Lie::OtherRoot | Lie::OtherRootUnsealed => {
                return self.inner.chunks(budget, wanted, answers).await;
            }
        };
        let _ = answers.send(lie).await;
    }
}

/// Starts the liar. Returns its address, its server, and the number of peers that left because of
/// wrong bytes.
async fn start_liar(lab: &Lab, lie: Lie) -> (SocketAddr, Arc<Server>, Arc<AtomicU64>) {
    let dir = lab.path(&format!("liar-{lie:?}"));
    let mut identity = NodeIdentity::load_or_create(&dir).expect("identity");
    let token = lab.join_token("relay", 1).parse().expect("a token");
    let origin = vec![lab.quic().to_owned()];
    enrollment::enroll(
        &mut identity,
        &token,
        Role::Relay,
        "liar",
        &origin,
        &Outbound::direct(Transport::Auto),
    )
    .await
    .expect("enrolled");
    let ca = identity.ca_der().expect("enrolled").clone();
    let credentials = Credentials::of_node(&identity).expect("credentials");
    let dialler =
        client_endpoint(false, quic_client(credentials.clone(), &ca).expect("tls")).expect("socket");
    let quarantine = Arc::new(Quarantine::load(&dir.join("quarantine.json")));
    let dialer =
        Dialer::new(dialler, credentials.clone(), &ca, Outbound::direct(Transport::Auto)).expect("tls");
    let capabilities = Capabilities::load(identity.node_id(), ca.clone(), &dir.join("capabilities"));
    let parents = Arc::new(Parents::new(dialer, origin, quarantine, capabilities));
    let config = StoreConfig { min_free_bytes: 0, ..StoreConfig::default() };
    let (store, _) = EdgeStore::open(&dir.join("cache"), config).expect("store");
    let inner = Arc::new(Relay::new(Arc::new(store), parents, TrustAnchor::Ca(ca.clone())));
    let reported_bad_data = Arc::new(AtomicU64::new(0));
    let content = Liar { inner, lie, reported_bad_data: reported_bad_data.clone(), kept: Mutex::default() };
    let server = Server::new(Arc::new(content), ServeConfig::default());
    let listen = "127.0.0.1:0".parse().expect("an address");
    let reset = ResetKey::of_node(&identity.private_key());
    let config = quic_server(credentials.clone(), &ca).expect("tls");
    let (endpoint, listener) = parent_sockets(listen, &config, &reset).expect("sockets");
    let address = endpoint.local_addr().expect("bound");
    tokio::spawn(server.clone().run(endpoint));
    tokio::spawn(server.clone().run_tcp(listener, https_parent(credentials, &ca).expect("tls")));
    (address, server, reported_bad_data)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_relay_lies_about_the_device_gets_the_right_bytes_from_the_next_parent() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 41);
    lab.push(&v1, "os", "1").ok();
    for lie in [
        Lie::WrongBytes,
        Lie::Bomb,
        Lie::Unasked,
        Lie::AbsurdRange,
        Lie::Silence,
        Lie::WrongNodes,
        Lie::WrongMetadata,
    ] {
        let (address, _server, reported_bad_data) = start_liar(&lab, lie).await;
        let name = format!("d-{lie:?}");
        lab.enroll(&name, lab.quic());
        let out = lab.path("out");
        let text = out.display().to_string();
        let (liar, origin) = (address.to_string(), lab.quic().to_owned());
        let args = ["pull", "os@1", "--out", &text, "--parent", &liar, "--parent", &origin];
        let pulled = tokio::task::block_in_place(|| lab.device(&name, &args)).ok();
        assert!(same(&out, &v1), "{lie:?}");
        assert!(!pulled.stderr.contains("panicked"), "{}", pulled.stderr);
        let quarantine = fs::read_to_string(lab.path(&name).join("quarantine.json")).unwrap_or_default();
        let caught = matches!(lie, Lie::WrongBytes | Lie::Bomb);
        assert_eq!(!quarantine.is_empty(), caught, "{lie:?}: {quarantine}");
        // The liar learns why the device left, so that it fetches nothing more for the device.
        let told = async {
            while reported_bad_data.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let told = caught && tokio::time::timeout(Duration::from_secs(30), told).await.is_ok();
        assert_eq!((told, reported_bad_data.load(Ordering::Relaxed) > 0), (caught, caught), "{lie:?}");
        fs::remove_file(&out).expect("remove");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_cannot_choose_the_root_of_a_node_that_enrols_through_it() {
    let lab = Lab::start();
    for (n, lie) in [Lie::OtherRoot, Lie::OtherRootUnsealed].into_iter().enumerate() {
        let (liar, _server, _) = start_liar(&lab, lie).await;
        let (liar, origin) = (liar.to_string(), lab.quic().to_owned());
        let (token, name) = (lab.join_token("leaf", 1), format!("victim{n}"));
        let args = ["enroll", "--parent", &liar, "--token", &token];
        let refused = tokio::task::block_in_place(|| lab.device(&name, &args));
        assert_eq!(refused.code, 4, "{lie:?}: {}", refused.stderr);
        let state: Vec<_> = fs::read_dir(lab.path(&name)).expect("its state").flatten().collect();
        let names: Vec<_> = state.iter().map(|entry| entry.file_name()).collect();
        assert!(!names.iter().any(|n| n == "root.json" || n == "node.pem"), "{lie:?}: {names:?}");
        // The same token, past the liar: the next parent brings the origin's reply.
        let args = ["enroll", "--parent", &liar, "--parent", &origin, "--token", &token];
        tokio::task::block_in_place(|| lab.device(&name, &args)).ok();
        let root = fs::read(lab.path(&name).join("root.json")).expect("enrolled");
        let signed = fs::read(lab.path("origin/objects/tuf/1.root.json")).expect("the realm's root");
        assert!(root == signed, "{lie:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_only_a_liar_ends_with_an_error_and_no_file() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 42);
    lab.push(&v1, "os", "1").ok();
    let (address, server, _) = start_liar(&lab, Lie::WrongBytes).await;
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    let (text, liar) = (out.display().to_string(), address.to_string());
    let args = ["pull", "os@1", "--out", &text, "--parent", &liar];
    let failed = tokio::task::block_in_place(|| lab.device("d", &args));
    assert_ne!(failed.code, 0);
    assert!(failed.stderr.contains("next:"), "{}", failed.stderr);
    assert!(!out.exists());
    // A device does not ask a node in quarantine again.
    let before = server.counters.batches.load(Ordering::Relaxed);
    let again = tokio::task::block_in_place(|| lab.device("d", &args));
    assert_ne!(again.code, 0);
    assert!(again.stderr.contains("wrong bytes"), "{}", again.stderr);
    assert_eq!(server.counters.batches.load(Ordering::Relaxed), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_remembers_over_a_restart_which_of_its_parents_lied() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 43);
    lab.push(&v1, "os", "1").ok();
    let (liar, server, _) = start_liar(&lab, Lie::WrongBytes).await;
    let asked = || server.counters.batches.load(Ordering::Relaxed);
    let start = || {
        let args = ["--parent", lab.quic(), "--metrics", "127.0.0.1:0"];
        tokio::task::block_in_place(|| lab.relay_at("relay", &liar.to_string(), "127.0.0.1:0", &args))
    };
    let pull = |version: &str, relay: &str, image| {
        let (out, wanted) = (lab.path(&format!("out{version}")), format!("os@{version}"));
        let text = out.display().to_string();
        let args = ["pull", wanted.as_str(), "--out", &text, "--parent", relay];
        tokio::task::block_in_place(|| lab.device("d", &args)).ok();
        assert!(same(&out, image));
    };
    lab.enroll("d", lab.quic());
    let mut relay = start();
    pull("1", &relay.addresses[0], &v1);
    let before = asked();
    assert!(before > 0, "the relay did not ask the liar");
    assert_eq!(relay.metric("distd_peers_quarantined"), 1);
    relay.kill();
    let relay = start();
    assert_eq!(relay.metric("distd_peers_quarantined"), 1);
    lab.push(&v2, "os", "2").ok();
    pull("2", &relay.addresses[0], &v2);
    assert_eq!(asked(), before, "asked again");
}
