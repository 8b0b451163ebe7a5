//! Neighbours that lie about chunks and about their addresses.

use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::{Codec, Data, NodeRequest, PeerRecord};
use distd_core::ranges::ChunkRanges;
use distd_peer::capabilities::Permit;
use distd_peer::clock::unix_now;
use distd_peer::serve::{
    ChunkAnswer, Content, NodeBudget, NodesAnswer, ServeConfig, ServeError, Server, Swarm,
};
use distd_peer::trust::record::{RecordRefused, verify_record};
use distd_peer::trust::tls::PeerIdentity;
use distd_tests::artifacts;
use distd_tests::lab::{Lab, same};
use distd_tests::leaf::{Leaf, listed};
use tokio::sync::mpsc;

/// A server that announces everything and sends other bytes.
struct Liar {
    ids: ChunkRanges,
    asked: Arc<AtomicU64>,
}

#[async_trait]
impl Content for Liar {
    async fn permit(
        &self,
        _: &PeerIdentity,
        _: &Arc<NodeBudget>,
        _: ManifestId,
        _: &Bytes,
    ) -> Result<Permit, ServeError> {
        Ok(Permit::ALL)
    }

    async fn swarm(
        &self,
        _: &PeerIdentity,
        _: &Arc<NodeBudget>,
        _: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        Ok(Arc::new(Self { ids: self.ids.clone(), asked: self.asked.clone() }))
    }

    async fn metadata(&self, _: &PeerIdentity, _: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }

    async fn enroll(&self, _: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }
}

#[async_trait]
impl Swarm for Liar {
    fn fetches_upstream(&self) -> bool {
        false
    }

    fn ids(&self) -> ChunkRanges {
        self.ids.clone()
    }

    async fn held(&self) -> Result<ChunkRanges, ServeError> {
        Ok(self.ids.clone())
    }

    async fn nodes(&self, _: NodeRequest) -> Result<NodesAnswer, ServeError> {
        Ok(NodesAnswer::default())
    }

    async fn chunks(&self, _: &Arc<NodeBudget>, wanted: ChunkRanges, answers: mpsc::Sender<ChunkAnswer>) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        for id in wanted.ids() {
            let data = Data { id, codec: Codec::Raw, bytes: Bytes::from_static(b"not the chunk") };
            if answers.send(ChunkAnswer::Data(data)).await.is_err() {
                return;
            }
        }
    }
}

/// A release whose chunk ids a test may claim to hold: ids are given from one on.
fn released(lab: &Lab, rng_seed: u64) -> (std::path::PathBuf, ManifestId, ChunkRanges) {
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), rng_seed);
    let pushed = lab.push(&v1, "os", "1").ok();
    let manifest = pushed.json["manifest"].as_str().expect("a manifest").parse().expect("an id");
    let all = [distd_core::ChunkId(1)..=distd_core::ChunkId(pushed.number("chunks"))].into_iter().collect();
    (v1, manifest, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_neighbour_costs_no_right_byte_and_is_not_asked_for_a_day() {
    let lab = Lab::start();
    let (v1, manifest, ids) = released(&lab, 61);
    let liar = Leaf::enrolled(&lab, "liar").await;
    let asked = Arc::new(AtomicU64::new(0));
    let content = Arc::new(Liar { ids: ids.clone(), asked: asked.clone() });
    let server = Server::new(content, ServeConfig::default());
    tokio::spawn(server.run(liar.endpoint.clone()));
    let mut swarm = liar.join(&lab, manifest, liar.record(liar.address())).await;
    swarm.announce(&ids).await.expect("announced");
    assert!(listed(&mut swarm).await.is_empty(), "nobody else is there");

    lab.enroll("d", lab.quic());
    for round in 0..2 {
        let out = lab.path(&format!("out{round}"));
        let pulled = tokio::task::block_in_place(|| lab.pull("d", "os@1", &out, &[])).ok();
        assert!(same(&out, &v1));
        assert!(!pulled.stderr.contains("panicked"), "{}", pulled.stderr);
        let quarantine =
            fs::read_to_string(lab.path("d/quarantine.json")).expect("somebody is in quarantine");
        assert!(quarantine.contains(&liar.identity.node_id().to_string()), "{quarantine}");
        // In the first round, the batches that were open when the liar was caught; in the second
        // none.
        let so_far = asked.swap(0, Ordering::Relaxed);
        assert_eq!(so_far > 0, round == 0, "{so_far} batches asked of a liar in round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reported_by_two_is_reported_to_the_site_and_a_node_reported_by_one_is_not() {
    let lab = Lab::start();
    let (v1, manifest, ids) = released(&lab, 63);
    let liar = Leaf::enrolled(&lab, "liar").await;
    let content = Arc::new(Liar { ids: ids.clone(), asked: Arc::default() });
    let server = Server::new(content, ServeConfig::default());
    tokio::spawn(server.run(liar.endpoint.clone()));
    let mut swarm = liar.join(&lab, manifest, liar.record(liar.address())).await;
    swarm.announce(&ids).await.expect("announced");
    listed(&mut swarm).await;
    // A device driven by the test reports the same node, and another node that no other device
    // reports.
    let (voice, listener) = (Leaf::enrolled(&lab, "voice").await, Leaf::enrolled(&lab, "listener").await);
    let mut speaking = voice.join(&lab, manifest, voice.record(voice.address())).await;
    speaking.shun(&[liar.identity.node_id(), listener.identity.node_id()]).await.expect("said");
    let mut listening = listener.join(&lab, manifest, listener.record(listener.address())).await;
    listed(&mut listening).await;

    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    tokio::task::block_in_place(|| lab.pull("d", "os@1", &out, &[])).ok();
    assert!(same(&out, &v1));
    let heard = async {
        loop {
            match listening.next_event().await.expect("the origin answers").expect("the swarm is open") {
                ControlEvent::Shuns(nodes) => return nodes,
                _ => continue,
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(30), heard).await.expect("word of the liar");
    assert_eq!(heard, [liar.identity.node_id()].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_with_foreign_addresses_or_of_another_node_are_not_listed() {
    let lab = Lab::start();
    let (_, manifest, _) = released(&lab, 62);
    let honest = Leaf::enrolled(&lab, "honest").await;
    let elsewhere = Leaf::enrolled(&lab, "elsewhere").await;
    let thief = Leaf::enrolled(&lab, "thief").await;
    let record = honest.record(honest.address());
    let mut swarms = vec![honest.join(&lab, manifest, record.clone()).await];
    // Records with addresses at which their node is not, the record of another node, and a record
    // that was changed after it was signed.
    for victim in ["203.0.113.1:443", "192.168.1.1:9100"] {
        let victim = victim.parse().expect("an address");
        swarms.push(elsewhere.join(&lab, manifest, elsewhere.record(victim)).await);
    }
    swarms.push(thief.join(&lab, manifest, record.clone()).await);
    let forged = PeerRecord { sequence: u64::MAX, ..thief.record(thief.address()) };
    swarms.push(thief.join(&lab, manifest, forged).await);
    for swarm in &mut swarms {
        listed(swarm).await;
    }
    let asker = Leaf::enrolled(&lab, "asker").await;
    let mut swarm = asker.join(&lab, manifest, asker.record(asker.address())).await;
    assert_eq!(listed(&mut swarm).await, [record], "the honest one alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_valid_only_for_its_node_its_realm_and_its_time() {
    let (lab, other) = (Lab::start(), Lab::start());
    let leaf = Leaf::enrolled(&lab, "leaf").await;
    let foreign = Leaf::enrolled(&other, "foreign").await;
    let ca = leaf.identity.ca_der().expect("enrolled");
    let record = leaf.record(leaf.address());
    let now = unix_now();
    assert_eq!(verify_record(&record, ca, now), Ok(leaf.identity.node_id()));
    assert_eq!(verify_record(&record, ca, record.expires), Err(RecordRefused::Expiry));
    let long = PeerRecord { expires: now + 30 * 24 * 3600, ..record.clone() };
    assert_eq!(verify_record(&long, ca, now), Err(RecordRefused::Expiry));
    for changed in [
        PeerRecord { site: "elsewhere".into(), ..record.clone() },
        PeerRecord { resident: true, ..record.clone() },
        PeerRecord { addresses: vec!["10.0.0.1:1".parse().expect("an address")], ..record.clone() },
        PeerRecord { expires: record.expires + 1, ..record.clone() },
    ] {
        assert_eq!(verify_record(&changed, ca, now), Err(RecordRefused::Signature));
    }
    let theirs = foreign.record(foreign.address());
    assert_eq!(verify_record(&theirs, ca, now), Err(RecordRefused::Certificate));
    let borrowed = PeerRecord { certificate: theirs.certificate.clone(), ..record };
    assert_eq!(verify_record(&borrowed, ca, now), Err(RecordRefused::Certificate));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_record_is_not_advertised() {
    let lab = Lab::start();
    let (_, manifest, _) = released(&lab, 63);
    let soon = Leaf::enrolled(&lab, "soon").await;
    let later = Leaf::enrolled(&lab, "later").await;
    let expires = unix_now() + 3;
    let short = soon.record_of(1, vec![soon.address()], expires);
    let long = later.record(later.address());
    let mut swarms =
        vec![soon.join(&lab, manifest, short.clone()).await, later.join(&lab, manifest, long.clone()).await];
    for swarm in &mut swarms {
        listed(swarm).await;
    }
    let listed_to = async |name: &str| {
        let asker = Leaf::enrolled(&lab, name).await;
        let silent = asker.record_of(1, Vec::new(), unix_now() + 60);
        let mut swarm = asker.join(&lab, manifest, silent).await;
        let mut records = listed(&mut swarm).await;
        records.sort_by_key(|record| record.expires);
        records
    };
    let before = listed_to("early").await;
    // Three seconds may pass on a busy machine before the first question.
    assert!(before == [short, long.clone()] || unix_now() >= expires, "{before:?}");
    while unix_now() <= expires {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(listed_to("late").await, [long], "whose swarm is still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_advertises_many_addresses_is_dialled_at_few() {
    const PLACES: u64 = 12;
    let lab = Lab::start();
    let (v1, manifest, _) = released(&lab, 64);
    let liar = Leaf::enrolled(&lab, "liar").await;
    // Addresses with a socket each, where no node answers and arriving packets are counted.
    let places: Vec<_> = (0..PLACES).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket")).collect();
    lab.enroll("d", lab.quic());
    lab.configure("d", "[limits]\ndownload_bytes_per_second = 2000000\n");
    let out = lab.path("out");
    let pull = lab.start_pull("d", "os@1", &out, &[]);
    let mut swarms = Vec::new();
    for (n, place) in (1..).zip(&places) {
        place.set_nonblocking(true).expect("a socket");
        let record = liar.record_of(n, vec![place.local_addr().expect("bound")], unix_now() + 600);
        swarms.push(liar.join(&lab, manifest, record).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::task::block_in_place(|| pull.wait()).ok();
    assert!(same(&out, &v1));
    let knocked = places.iter().filter(|place| place.recv(&mut [0; 2000]).is_ok()).count();
    assert!((1..=4).contains(&knocked), "{knocked} of {PLACES} places were knocked at");
}
