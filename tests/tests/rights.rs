//! Rights at each tier: what a node without a grant, with a part of the rights, with another's
//! capability, or with an expired one gets at the origin, at a relay and at a neighbour.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::NodeRequest;
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkId, ManifestId, NodeId};
use distd_peer::clock::unix_now;
use distd_peer::net::{Link, LinkError, Meter, SwarmLink, WireError};
use distd_peer::trust::identity::NodeIdentity;
use distd_tests::artifacts;
use distd_tests::lab::{Daemon, Lab, same};
use distd_tests::leaf::{Leaf, listed};

/// Validity of capabilities in these tests.
const VALIDITY: Duration = Duration::from_secs(10);

/// Arguments of the origin in these tests.
const SHORT: [&str; 2] = ["--capability-validity", "10s"];

/// A realm with an origin, a relay and a device that has release 1 and serves it.
struct World {
    lab: Lab,
    manifest: ManifestId,
    release: std::path::PathBuf,
    relay: Daemon,
    holder: Daemon,
    holder_id: NodeId,
}

/// Where a node asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Origin,
    Relay,
    Neighbour,
}

const TIERS: [Tier; 3] = [Tier::Origin, Tier::Relay, Tier::Neighbour];

impl World {
    /// The relay and the holder have every right on `os`, other nodes have none.
    fn start() -> Self {
        Self::start_in(Lab::start_without_grants(&SHORT))
    }

    fn start_in(lab: Lab) -> Self {
        let (release, _) = artifacts::release_pair(lab.path("").as_path(), 71);
        let pushed = lab.push(&release, "os", "1").ok();
        let manifest = pushed.json["manifest"].as_str().expect("a manifest").parse().expect("an id");
        lab.admin(&["channel", "set", "os:stable", "1"]).ok();
        lab.admin(&["group", "set", "relays", "role=relay", "--yes"]).ok();
        lab.admin(&["grant", "add", "relays", "os"]).ok();
        let relay = lab.relay("relay", lab.quic());
        lab.enroll("holder", &relay.addresses[0]);
        let holder_id = node_of(&lab, "holder");
        lab.admin(&["group", "set", "holders", "--nodes", &holder_id.to_string()]).ok();
        lab.admin(&["grant", "add", "holders", "os"]).ok();
        let out = lab.path("holder-out");
        lab.pull("holder", "os:stable", &out, &[]).ok();
        assert!(same(&out, &release));
        let holder = lab.agent("holder");
        Self { lab, manifest, release, relay, holder, holder_id }
    }

    /// Gives `leaf` rights on `os`, in a group of its own.
    fn grant(&self, leaf: &Leaf, rights: &str) -> String {
        let id = leaf.identity.node_id().to_string();
        self.lab.admin(&["group", "set", &id, "--nodes", &id]).ok();
        let made = self.lab.admin(&["grant", "add", &id, "os", "--rights", rights]).ok();
        made.json["grants"][0]["id"].as_u64().expect("an id").to_string()
    }

    async fn link(&self, leaf: &Leaf, tier: Tier) -> Arc<Link> {
        match tier {
            Tier::Origin => leaf.connect(self.lab.quic()).await.expect("the origin"),
            Tier::Relay => leaf.connect(&self.relay.addresses[0]).await.expect("the relay"),
            Tier::Neighbour => {
                let address: SocketAddr = self.holder.addresses[0].parse().expect("an address");
                let meter = Arc::new(Meter::default());
                let dialled =
                    Link::connect_neighbour(&leaf.endpoint, address, self.holder_id, &meter, unix_now());
                Arc::new(dialled.await.expect("the neighbour"))
            }
        }
    }

    async fn open(&self, leaf: &Leaf, tier: Tier, capability: Bytes) -> SwarmLink {
        let link = self.link(leaf, tier).await;
        let record = leaf.record(leaf.address());
        link.open_swarm_exchanging(self.manifest, capability, record).await.expect("sent")
    }

    /// Opens the swarm at a tier, and returns which operations are answered.
    async fn answered(&self, leaf: &Leaf, tier: Tier, capability: Bytes) -> Vec<&'static str> {
        let mut swarm = self.open(leaf, tier, capability).await;
        let handle = swarm.handle();
        let one: ChunkRanges = [ChunkId(1)..=ChunkId(1)].into_iter().collect();
        let mut answered = Vec::new();
        let everything = NodeRequest { held: Vec::new(), hashes: Vec::new() };
        if handle.nodes(everything, |_| ()).await.is_ok() {
            answered.push("nodes");
        }
        // A relay asks the origin what chunks cost.
        if self.lab.has_origin() && handle.cost(&one).await.is_ok() {
            answered.push("cost");
        }
        let mut events = Vec::new();
        loop {
            match tokio::time::timeout(Duration::from_secs(20), swarm.next_event()).await {
                Ok(Ok(Some(ControlEvent::Open(_)))) => events.push("handshake"),
                Ok(Ok(Some(ControlEvent::Have(_)))) => events.push("have"),
                Ok(Ok(Some(ControlEvent::Peers(_)))) => events.push("peers"),
                Ok(Ok(Some(_))) => {}
                Ok(Err(error)) if is_unauthorised(&error) => break,
                other => panic!("{tier:?}: {other:?}"),
            }
            if ["handshake", "have", "peers"].iter().all(|event| events.contains(event)) {
                break;
            }
        }
        events.sort_unstable();
        events.dedup();
        answered.extend(events);
        answered
    }
}

fn node_of(lab: &Lab, device: &str) -> NodeId {
    NodeIdentity::load_or_create(&lab.path(device)).expect("identity").node_id()
}

fn is_unauthorised(error: &LinkError) -> bool {
    matches!(error, LinkError::Wire(_, WireError::Closed(CloseCode::Unauthorised)))
}

/// Waits until the answerer ends the swarm because the node may not have it any more.
async fn ends_within(swarm: &mut SwarmLink, most: Duration) -> Duration {
    let started = Instant::now();
    let ended = async {
        loop {
            match swarm.next_event().await {
                Ok(Some(_)) => {}
                Err(error) if is_unauthorised(&error) => return,
                other => panic!("the swarm ended otherwise: {other:?}"),
            }
        }
    };
    tokio::time::timeout(most, ended).await.expect("the swarm ends in time");
    started.elapsed()
}

const EVERYTHING: [&str; 5] = ["nodes", "cost", "handshake", "have", "peers"];

#[tokio::test(flavor = "multi_thread")]
async fn each_right_opens_at_each_tier_what_it_says_and_no_more() {
    let world = tokio::task::block_in_place(World::start);
    let (none, reader, seeder) = (
        Leaf::enrolled(&world.lab, "none").await,
        Leaf::enrolled(&world.lab, "reader").await,
        Leaf::enrolled(&world.lab, "seeder").await,
    );
    tokio::task::block_in_place(|| {
        world.grant(&reader, "read");
        world.grant(&seeder, "read,seed");
    });
    let origin = world.link(&none, Tier::Origin).await;
    assert!(none.capability(&origin, world.manifest).await.is_empty(), "the origin gives none");
    let mut proofs = Vec::new();
    for leaf in [&reader, &seeder] {
        let relay = world.link(leaf, Tier::Relay).await;
        proofs.push(leaf.capability(&relay, world.manifest).await);
        assert!(proofs.last().is_some_and(|proof| !proof.is_empty()), "the relay passes one on");
    }
    for tier in TIERS {
        assert!(world.answered(&none, tier, Bytes::new()).await.is_empty(), "{tier:?}, without a grant");
        let stolen = world.answered(&none, tier, proofs[1].clone()).await;
        assert!(stolen.is_empty(), "{tier:?}, with another's capability: {stolen:?}");
        assert_eq!(world.answered(&reader, tier, proofs[0].clone()).await, EVERYTHING, "{tier:?}, reader");
        assert_eq!(world.answered(&seeder, tier, proofs[1].clone()).await, EVERYTHING, "{tier:?}, seeder");
    }
    // Only a node that may seed is advertised.
    for tier in [Tier::Origin, Tier::Relay] {
        let mut reading = world.open(&reader, tier, proofs[0].clone()).await;
        listed(&mut reading).await;
        let mut seeding = world.open(&seeder, tier, proofs[1].clone()).await;
        let told = listed(&mut seeding).await;
        assert!(
            !told.iter().any(|record| record.addresses.contains(&reader.address())),
            "{tier:?} advertises a mere reader"
        );
        let mut again = world.open(&reader, tier, proofs[0].clone()).await;
        let told = listed(&mut again).await;
        let ports: Vec<_> = told.iter().flat_map(|record| &record.addresses).map(|at| at.port()).collect();
        assert!(ports.contains(&seeder.address().port()), "{tier:?} does not advertise a seeder: {ports:?}");
        assert!(!ports.contains(&reader.address().port()), "{tier:?} advertises a mere reader: {ports:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_right_ends_at_the_origin_at_once_and_elsewhere_with_the_capability() {
    let mut world = tokio::task::block_in_place(World::start);
    let leaf = Leaf::enrolled(&world.lab, "leaf").await;
    let grant = tokio::task::block_in_place(|| world.grant(&leaf, "read,seed"));
    let origin = world.link(&leaf, Tier::Origin).await;
    let proof = leaf.capability(&origin, world.manifest).await;
    let mut open = Vec::new();
    for tier in TIERS {
        let mut swarm = world.open(&leaf, tier, proof.clone()).await;
        listed(&mut swarm).await;
        open.push(swarm);
    }
    tokio::task::block_in_place(|| world.lab.admin(&["grant", "rm", &grant]).ok());
    ends_within(&mut open[0], Duration::from_secs(5)).await;
    assert!(leaf.capability(&origin, world.manifest).await == proof, "the origin gives no new one");
    // The origin goes away: the bound does not depend on it.
    world.lab.stop_origin();
    for swarm in &mut open[1..] {
        ends_within(swarm, VALIDITY + Duration::from_secs(5)).await;
    }
    for tier in [Tier::Relay, Tier::Neighbour] {
        assert!(world.answered(&leaf, tier, proof.clone()).await.is_empty(), "{tier:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_refused_by_relay_and_neighbour_although_the_origin_is_away() {
    let mut world = tokio::task::block_in_place(World::start);
    let leaf = Leaf::enrolled(&world.lab, "leaf").await;
    tokio::task::block_in_place(|| world.grant(&leaf, "read"));
    let relay = world.link(&leaf, Tier::Relay).await;
    let proof = leaf.capability(&relay, world.manifest).await;
    let issued = Instant::now();
    let id = leaf.identity.node_id().to_string();
    tokio::task::block_in_place(|| world.lab.admin(&["node", "revoke", &id]).ok());
    // Neither the relay nor the neighbour learns of it.
    world.lab.stop_origin();
    let mut reading = world.open(&leaf, Tier::Neighbour, proof.clone()).await;
    ends_within(&mut reading, VALIDITY + Duration::from_secs(5)).await;
    assert!(issued.elapsed() < VALIDITY + Duration::from_secs(10));
    for tier in [Tier::Relay, Tier::Neighbour] {
        assert!(world.answered(&leaf, tier, proof.clone()).await.is_empty(), "{tier:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_certificate_alone_a_node_that_shows_nothing_gets_everything_also_without_the_origin() {
    let mut world = tokio::task::block_in_place(|| World::start_in(Lab::start_with(&SHORT)));
    // As a device of an earlier release, which knows no capabilities.
    let leaf = Leaf::enrolled(&world.lab, "leaf").await;
    for tier in TIERS {
        assert_eq!(world.answered(&leaf, tier, Bytes::new()).await, EVERYTHING, "{tier:?}");
    }
    world.lab.stop_origin();
    // The capabilities of single nodes have ended by then.
    tokio::time::sleep(VALIDITY).await;
    for tier in [Tier::Relay, Tier::Neighbour] {
        let answered = world.answered(&leaf, tier, Bytes::new()).await;
        assert_eq!(answered, ["nodes", "handshake", "have", "peers"], "{tier:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_certificate_alone_a_device_that_never_asked_gets_a_release_without_the_origin() {
    let lab = Lab::start_with(&SHORT);
    tokio::task::block_in_place(|| {
        let mut world = World::start_in(lab);
        world.lab.enroll("late", &world.relay.addresses[0]);
        world.lab.stop_origin();
        let out = world.lab.path("late-out");
        world.lab.pull("late", "os:stable", &out, &[]).ok();
        assert!(same(&out, &world.release));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_that_show_nothing_are_all_served_by_a_relay_that_has_to_ask_first() {
    let mut world = tokio::task::block_in_place(|| World::start_in(Lab::start_with(&SHORT)));
    world.relay = tokio::task::block_in_place(|| world.lab.relay("fresh", world.lab.quic()));
    let (one, two) = (Leaf::enrolled(&world.lab, "one").await, Leaf::enrolled(&world.lab, "two").await);
    let ask = async |leaf: &Leaf| {
        let mut swarm = world.open(leaf, Tier::Relay, Bytes::new()).await;
        matches!(swarm.next_event().await, Ok(Some(ControlEvent::Open(_))))
    };
    assert_eq!(tokio::join!(ask(&one), ask(&two), ask(&one), ask(&two)), (true, true, true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_transfer_renews_its_capability() {
    let world = tokio::task::block_in_place(World::start);
    tokio::task::block_in_place(|| {
        let relay = &world.relay.addresses[0];
        world.lab.enroll("slow", relay);
        let id = node_of(&world.lab, "slow").to_string();
        world.lab.admin(&["group", "set", "slow", "--nodes", &id]).ok();
        let bytes = std::fs::metadata(&world.release).expect("the release").len();
        // The pull takes more than twice as long as a capability is valid.
        let rate = bytes / (2 * VALIDITY.as_secs() + 5);
        world.lab.configure("slow", &format!("[limits]\ndownload_bytes_per_second = {rate}\n"));
        let out = world.lab.path("slow-out");
        let refused = world.lab.pull("slow", "os:stable", &out, &[]);
        assert_eq!(refused.code, 4, "{}", refused.stderr);
        assert!(refused.stderr.contains("grant"), "{}", refused.stderr);
        world.lab.admin(&["grant", "add", "slow", "os:stable", "--rights", "read"]).ok();
        let refusals = || {
            let logs = [world.relay.log(), world.holder.log()];
            logs.iter().map(|log| log.matches("swarm not served").count()).sum::<usize>()
        };
        let (started, before) = (Instant::now(), refusals());
        world.lab.pull("slow", "os:stable", &out, &[]).ok();
        assert!(started.elapsed() > VALIDITY, "the transfer was too short to show anything");
        assert_eq!(refusals(), before, "a swarm ended although its capability was renewed");
        assert!(same(&out, &world.release));
    });
}
