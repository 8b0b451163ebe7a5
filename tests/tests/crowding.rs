//! Nodes that ask for more than their share, and unknown clients: other nodes are still served.
//!
//! The attacker is an enrolled device that speaks the protocol over a connection of its own.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use distd_core::ManifestId;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{Handshake, NodeRequest, Ranges};
use distd_core::proto::stream::StreamKind;
use distd_core::ranges::ChunkRanges;
use distd_peer::net::client_endpoint;
use distd_peer::trust::identity::{LEAF_NAME, NodeIdentity, PARENT_NAME};
use distd_peer::trust::tls::{Credentials, quic_client};
use distd_tests::lab::{Lab, Outcome, same};
use distd_tests::rng::Rng;
use quinn::{Connection, Endpoint, RecvStream, SendStream};

/// A node's own connection, on which the test sends any frames it likes.
struct Rogue {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Rogue {
    /// Connects with the identity enrolled in `dir` to `address`, a parent or a device as `name`
    /// says.
    async fn connect(dir: &Path, address: &str, name: &str) -> Self {
        let identity = NodeIdentity::load_or_create(dir).expect("identity");
        let ca = identity.ca_der().expect("enrolled");
        let credentials = Credentials::of_node(&identity).expect("credentials");
        let endpoint = client_endpoint(false, quic_client(credentials, ca).expect("tls")).expect("socket");
        let address: SocketAddr = address.parse().expect("an address");
        let connection = endpoint.connect(address, name).expect("a config").await.expect("connected");
        Self { connection, _endpoint: endpoint }
    }

    async fn stream(&self, kind: StreamKind, frame: &Frame) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.expect("a stream");
        send.write_all(&kind.encode()).await.expect("written");
        send.write_all(&frame.encode()).await.expect("written");
        (send, recv)
    }

    /// Opens the swarm of a manifest, or returns the code with which it was refused.
    async fn open(&self, manifest: ManifestId) -> Result<(SendStream, RecvStream), CloseCode> {
        let frame = Frame::Handshake(Handshake::new(manifest));
        let (send, mut recv) = self.stream(StreamKind::Control, &frame).await;
        match recv.read(&mut [0; 16]).await {
            Ok(_) => Ok((send, recv)),
            Err(quinn::ReadError::Reset(code)) => Err(CloseCode::from_code(code.into_inner())),
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks for chunks of an open swarm, and does not read the answer.
    async fn ask(&self, control: &SendStream, chunks: &ChunkRanges) -> RecvStream {
        let kind = StreamKind::Batch { control: u64::from(control.id()) };
        let ranges = Ranges::split(chunks).next().expect("some");
        let (mut send, recv) = self.stream(kind, &Frame::Request(ranges)).await;
        send.finish().expect("open until now");
        recv
    }

    /// Asks for all nodes of an open swarm and counts the bytes of the answer.
    async fn nodes(&self, control: &SendStream) -> usize {
        let kind = StreamKind::Nodes { control: u64::from(control.id()) };
        let request = Frame::NodeRequest(NodeRequest { held: Vec::new(), hashes: Vec::new() });
        let (mut send, mut recv) = self.stream(kind, &request).await;
        send.finish().expect("open until now");
        recv.read_to_end(1 << 24).await.map_or(0, |bytes| bytes.len())
    }
}

/// Writes incompressible bytes that share no chunk with those of another `seed`.
fn noise(path: &Path, seed: u64, bytes: usize) {
    fs::write(path, Rng::new(seed + 1).bytes(bytes)).expect("write");
}

/// Releases one artifact and returns its path and its manifest id.
fn release(lab: &Lab, product: &str, seed: u64, bytes: usize) -> (PathBuf, ManifestId) {
    let path = lab.path(&format!("{product}.img"));
    noise(&path, seed, bytes);
    let pushed = lab.push(&path, product, "1").ok();
    let manifest = pushed.json["manifest"].as_str().expect("a manifest").parse().expect("an id");
    (path, manifest)
}

/// All chunk ids that such a small realm has given out.
fn any_chunks(count: u64) -> ChunkRanges {
    (1..=count).map(distd_core::ChunkId).collect()
}

fn pull(lab: &Lab, device: &str, product: &str, parent: &str) -> Outcome {
    let out = lab.path(&format!("{device}-{product}.out"));
    let text = out.display().to_string();
    let args = ["pull", &format!("{product}@1"), "--out", &text, "--parent", parent];
    tokio::task::block_in_place(|| lab.device(device, &args))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_many_open_swarms_takes_none_from_others() {
    let lab = Lab::start();
    let releases: Vec<_> = (0..26).map(|n| release(&lab, &format!("p{n}"), n, 60_000)).collect();
    let relay = lab.relay("relay", lab.quic());
    let address = relay.addresses[0].clone();
    lab.enroll("greedy", lab.quic());
    lab.enroll("honest", lab.quic());
    let rogue = Rogue::connect(&lab.path("greedy"), &address, PARENT_NAME).await;
    let mut held = Vec::new();
    let mut refused = Vec::new();
    for (_, manifest) in &releases {
        match rogue.open(*manifest).await {
            Ok(swarm) => held.push(swarm),
            Err(code) => refused.push(code),
        }
    }
    // A node may open more than eight swarms through a relay, and a swarm whose handshake was
    // answered answers its requests.
    assert!(held.len() >= 12 && !refused.is_empty(), "{} held, refused {refused:?}", held.len());
    assert!(refused.iter().all(|code| *code == CloseCode::Busy), "{refused:?}");
    for (control, _) in &held {
        assert!(rogue.nodes(control).await > 0);
    }
    for n in [0, 12, 25] {
        pull(&lab, "honest", &format!("p{n}"), &address).ok();
        assert!(same(&lab.path(&format!("honest-p{n}.out")), &releases[n].0));
    }
    // Places are free again when the node leaves its swarms.
    drop(held);
    for (reopened, (_, manifest)) in releases.iter().rev().take(12).enumerate() {
        let deadline = Instant::now() + Duration::from_secs(30);
        while rogue.open(*manifest).await.is_err() {
            assert!(Instant::now() < deadline, "no place after {reopened}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_unknown_manifests_neither_fill_a_relays_log_nor_slow_its_devices() {
    let lab = Lab::start();
    let (image, _) = release(&lab, "os", 1, 300_000);
    let relay = lab.relay("relay", lab.quic());
    lab.enroll("rogue", lab.quic());
    lab.enroll("honest", lab.quic());
    let rogue = Rogue::connect(&lab.path("rogue"), &relay.addresses[0], PARENT_NAME).await;
    let rogue = &rogue;
    let asking = async {
        for round in 0..25_u32 {
            let ask = |n: u32| async move {
                let mut id = [7; 32];
                id[..4].copy_from_slice(&(round * 60 + n).to_be_bytes());
                let code = rogue.open(ManifestId(id)).await.expect_err("nobody knows it");
                // The origin grants nothing for what it does not know.
                let refusals = [CloseCode::NoManifest, CloseCode::Busy, CloseCode::Unauthorised];
                assert!(refusals.contains(&code), "{code:?}");
            };
            futures::future::join_all((0..60).map(ask)).await;
        }
    };
    let pulling = async { pull(&lab, "honest", "os", &relay.addresses[0]).ok() };
    let ((), _) = tokio::join!(asking, pulling);
    assert!(same(&lab.path("honest-os.out"), &image));
    let lines = relay.log().lines().count();
    assert!(lines < 50, "{lines} lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_batches_take_no_upload_slot_from_others() {
    let lab = Lab::start();
    let (image, manifest) = release(&lab, "os", 3, 24 << 20);
    lab.enroll("rogue", lab.quic());
    lab.enroll("honest", lab.quic());
    let mut unread = Vec::new();
    let mut rogues = Vec::new();
    for _ in 0..3 {
        let rogue = Rogue::connect(&lab.path("rogue"), lab.quic(), PARENT_NAME).await;
        let (control, recv) = rogue.open(manifest).await.expect("room");
        for _ in 0..100 {
            unread.push(rogue.ask(&control, &any_chunks(2000)).await);
        }
        rogues.push((rogue, control, recv));
    }
    pull(&lab, "honest", "os", lab.quic()).ok();
    assert!(same(&lab.path("honest-os.out"), &image));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_node_replace_only_its_own() {
    let lab = Lab::start();
    let (image, _) = release(&lab, "os", 4, 300_000);
    let config = lab.path("peer.toml");
    fs::write(&config, "connections_max = 32\n").expect("write");
    let config = config.display().to_string();
    let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &["--config", &config]);
    lab.enroll("greedy", lab.quic());
    lab.enroll("honest", lab.quic());
    let first = Rogue::connect(&lab.path("greedy"), &relay.addresses[0], PARENT_NAME).await;
    let mut others = Vec::new();
    for _ in 0..40 {
        others.push(Rogue::connect(&lab.path("greedy"), &relay.addresses[0], PARENT_NAME).await);
    }
    // The node's oldest connection is closed first.
    first.connection.closed().await;
    pull(&lab, "honest", "os", &relay.addresses[0]).ok();
    assert!(same(&lab.path("honest-os.out"), &image));
    let open = others.iter().filter(|rogue| rogue.connection.close_reason().is_none()).count();
    assert!((1..=8).contains(&open), "{open} of its connections are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_handshakes_keep_no_device_out() {
    let lab = Lab::start();
    let (image, _) = release(&lab, "os", 5, 300_000);
    let relay = lab.relay("relay", lab.quic());
    lab.enroll("d", lab.quic());
    // First packets of clients that have not heard an answer, caught on their way to another
    // socket.
    let (caught, replay) = (udp().await, udp().await);
    let identity = NodeIdentity::load_or_create(&lab.path("d")).expect("identity");
    let credentials = Credentials::of_node(&identity).expect("credentials");
    let config = quic_client(credentials, identity.ca_der().expect("enrolled")).expect("tls");
    let endpoint = client_endpoint(false, config).expect("socket");
    let to = caught.local_addr().expect("bound");
    let relay_at: SocketAddr = relay.addresses[0].parse().expect("an address");
    let mut begun = Vec::new();
    let mut ids = BTreeSet::new();
    let mut buffer = [0; 2048];
    for _ in 0..1200 {
        begun.push(endpoint.connect(to, PARENT_NAME).expect("a config"));
        let (len, _) = caught.recv_from(&mut buffer).await.expect("a packet");
        // Byte 5 is the length of the destination connection id.
        ids.insert(buffer[6..6 + usize::from(buffer[5])].to_vec());
        replay.send_to(&buffer[..len], relay_at).await.expect("sent");
    }
    assert!(ids.len() > 500, "{} different handshakes", ids.len());
    // As many connections that send nothing over TCP.
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(tokio::net::TcpStream::connect(relay_at).await.expect("accepted by the system"));
    }
    pull(&lab, "d", "os", &relay.addresses[0]).ok();
    assert!(same(&lab.path("d-os.out"), &image));
    fs::remove_file(lab.path("d-os.out")).expect("remove");
    let out = lab.path("d-os.out").display().to_string();
    let args = ["pull", "os@1", "--out", &out, "--parent", &relay.addresses[0], "--transport", "https"];
    tokio::task::block_in_place(|| lab.device("d", &args)).ok();
}

async fn udp() -> tokio::net::UdpSocket {
    tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_fetches_little_for_a_node_that_reads_nothing() {
    let lab = Lab::start();
    let (image, manifest) = release(&lab, "os", 6, 96 << 20);
    let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &["--metrics", "127.0.0.1:0"]);
    lab.enroll("rogue", lab.quic());
    lab.enroll("honest", lab.quic());
    let rogue = Rogue::connect(&lab.path("rogue"), &relay.addresses[0], PARENT_NAME).await;
    let (control, _recv) = rogue.open(manifest).await.expect("room");
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(rogue.ask(&control, &any_chunks(5000)).await);
    }
    let fetched = || tokio::task::block_in_place(|| relay.metric("distd_fetch_bytes_total"));
    let mut before = 0;
    let quiet = async {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = fetched();
            if now > 1 << 20 && now == before {
                return now;
            }
            before = now;
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(60), quiet).await.expect("it comes to rest");
    assert!(came < 40 << 20, "{came} bytes of {} fetched for nobody", 96 << 20);
    pull(&lab, "honest", "os", &relay.addresses[0]).ok();
    assert!(same(&lab.path("honest-os.out"), &image));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_asked_for_unknown_manifests_still_serves_its_own() {
    let lab = Lab::start();
    let (_, installed) = release(&lab, "os", 7, 300_000);
    lab.enroll("d", lab.quic());
    lab.enroll("rogue", lab.quic());
    pull(&lab, "d", "os", lab.quic()).ok();
    let agent = lab.agent("d");
    let rogue = Rogue::connect(&lab.path("rogue"), &agent.addresses[0], LEAF_NAME).await;
    // All places of the node except one wait for unknown manifests; each of these handshakes is
    // refused in the end.
    let frame = |n: u8| Frame::Handshake(Handshake::new(ManifestId([n; 32])));
    let mut unknown = Vec::new();
    for n in 0..20 {
        unknown.push(rogue.stream(StreamKind::Control, &frame(n)).await);
    }
    let (control, _recv) = rogue.open(installed).await.expect("installed");
    assert!(rogue.nodes(&control).await > 0);
    for (_, recv) in &mut unknown {
        let answered = recv.read(&mut [0; 1]).await;
        assert!(matches!(answered, Err(quinn::ReadError::Reset(_))), "{answered:?}");
    }
}
