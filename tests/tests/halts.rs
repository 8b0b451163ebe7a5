//! Halt notices between real processes: through a relay, between neighbours, forged, replayed, and
//! where the parent takes no news streams.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::fleet::rollout::RolloutId;
use distd_core::fleet::{HaltNotice, SignedHalt, halt_message};
use distd_peer::clock::unix_now;
use distd_peer::net::{Link, Meter};
use distd_peer::news::NewsEvent;
use distd_peer::trust::identity::NodeIdentity;
use distd_tests::lab::{Daemon, Lab, wait_within};
use distd_tests::leaf::Leaf;
use distd_tests::rng::Rng;
use rcgen::{KeyPair, SigningKey};
use serde_json::Value;

const FOLLOWED: &str = "os:stable";

/// Longest wait for a fleet that shares two cores with other tests.
const PATIENCE: Duration = Duration::from_secs(240);

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    wait_within(PATIENCE, Duration::from_millis(20), what, holds);
}

fn place(lab: &Lab, device: &str) -> PathBuf {
    lab.path("apps").join(device)
}

/// Starts the agent of a device that is enrolled and looks at its channel every `poll` seconds.
fn follow(lab: &Lab, device: &str, poll: u32) -> Daemon {
    let mut command = lab.agent_command(device, "127.0.0.1:0");
    command.args(["--follow", FOLLOWED, "--follow-poll-seconds", &poll.to_string()]);
    command.arg("--follow-into").arg(place(lab, device)).arg("--hooks").arg(lab.path("no-hooks"));
    command.env("DISTD_LOG", "distd_peer::news=debug,distd_client::share=debug,info");
    Daemon::start(command, &lab.path(&format!("{device}.log")), "agent listening on ")
}

/// Version that a device's link leads to.
fn current(lab: &Lab, device: &str) -> String {
    let to = fs::read_link(place(lab, device).join("current")).unwrap_or_default();
    to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// State of the newest attempt of a device, if it is at `version`.
fn attempt(lab: &Lab, device: &str, version: &str) -> Option<String> {
    let text = fs::read(lab.path(device).join("follow.json")).ok()?;
    let journal: Value = serde_json::from_slice(&text).ok()?;
    let attempt = &journal["entries"][0]["attempt"];
    (attempt["version"] == version).then(|| attempt["state"].as_str().unwrap_or_default().to_owned())
}

/// Whether a node keeps a notice about a rollout.
fn knows(lab: &Lab, node: &str, rollout: &RolloutId) -> bool {
    let kept = fs::read(lab.path(node).join("halts")).unwrap_or_default();
    kept.windows(16).any(|id| id == rollout.0)
}

fn reporting(lab: &Lab, version: &str) -> usize {
    let nodes = lab.admin(&["node", "ls"]).ok().json;
    let nodes = nodes["nodes"].as_array().expect("a list").iter();
    nodes.filter(|node| node["running"][0]["version"] == version).count()
}

fn id_of(lab: &Lab, device: &str) -> NodeId {
    NodeIdentity::load_or_create(&lab.path(device)).expect("an identity").node_id()
}

/// Reason for which a device stays on its release, as an operator sees it.
fn why(lab: &Lab, device: &str) -> String {
    lab.admin(&["why", &id_of(lab, device).to_string()]).ok().json["why"].to_string()
}

fn start_rollout(lab: &Lab, args: &[&str]) -> RolloutId {
    let start = ["rollout", "start", FOLLOWED, "2", "--halt-on", "100%", "--success", "100%"];
    let begun = lab.admin(&[&start[..], args].concat()).ok().json;
    begun["rollout"]["id"].as_str().expect("an id").parse().expect("an id")
}

/// Pushes release 1, which is small, and points the channel to it; and release 2, of `len` bytes
/// that no compressor shrinks.
fn releases(lab: &Lab, len: usize) {
    for (version, bytes) in [("1", b"one".repeat(1000)), ("2", Rng::new(2).bytes(len))] {
        let path = lab.path(&format!("release-{version}"));
        fs::write(&path, bytes).expect("write");
        lab.push(&path, "os", version).ok();
    }
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
}

/// Sends a notice on a news stream of its own, and waits until the peer has ended that stream.
/// Returns whether the peer ended it well.
async fn send(link: &Link, notice: &Bytes) -> bool {
    let mut news = link.open_news().await.expect("a stream");
    if news.send(notice.clone()).await.is_err() {
        return false;
    }
    news.finish();
    loop {
        match news.next().await {
            Ok(Some(NewsEvent::Halt(_) | NewsEvent::Newer(_))) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Connects to the agent of a device as a neighbour.
async fn neighbour(leaf: &Leaf, lab: &Lab, device: &str, agent: &Daemon) -> Link {
    let address = agent.addresses[0].parse().expect("an address");
    let (node, meter) = (id_of(lab, device), Arc::new(Meter::default()));
    Link::connect_neighbour(&leaf.endpoint, address, node, &meter, unix_now()).await.expect("connects")
}

/// Agents that look once an hour begin, stop and end a rollout within seconds, because they are
/// told. A device that fetches stops before it activates. Notices that are forged, or old when the
/// rollout is resumed, change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_of_a_halt_and_of_its_end_and_believe_nobody_else() {
    let lab = Lab::start();
    releases(&lab, 4_000_000);
    let relay = lab.relay("relay", lab.quic());
    let devices: Vec<String> = (0..4).map(|n| format!("device-{n}")).collect();
    let mut agents = Vec::new();
    for device in &devices {
        lab.enroll_at(None, device, &relay.addresses[0], &["--label", device]);
        lab.configure(device, "[limits]\ndownload_bytes_per_second = 250000\n");
        agents.push(follow(&lab, device, 3600));
    }
    wait_until("every device runs release 1", || reporting(&lab, "1") == devices.len());

    let rollout = start_rollout(&lab, &["--waves", "1,100%", "--soak", "1s"]);
    let fetches = |device: &&String| attempt(&lab, device, "2").as_deref() == Some("fetching");
    wait_until("the device of the first wave is told and fetches", || devices.iter().any(|d| fetches(&d)));
    let first = devices.iter().find(fetches).expect("one fetches").clone();
    lab.admin(&["rollout", "halt", FOLLOWED]).ok();
    wait_until("every node has the notice", || {
        devices.iter().chain([&"relay".to_owned()]).all(|node| knows(&lab, node, &rollout))
    });
    wait_until("the device that fetches stops", || attempt(&lab, &first, "2").is_none());
    assert!(devices.iter().all(|device| current(&lab, device) == "1"));
    wait_until("an operator sees why", || why(&lab, &first).contains("halted"));

    let kept = Bytes::from(fs::read(lab.path("relay").join("halts")).expect("kept"));
    let (old, leaf) = (kept.slice(2..), Leaf::enrolled(&lab, "stranger").await);
    lab.admin(&["rollout", "resume", FOLLOWED]).ok();
    // A node with a certificate of the realm cannot stop the rollout.
    let (key, made) = (KeyPair::generate().expect("a key"), unix_now());
    let notice = HaltNotice { rollout, counter: u64::MAX, made };
    let signature = key.sign(&halt_message(&notice)).expect("signs").into();
    let forged = SignedHalt { notice, signature }.encode();
    let links = [
        leaf.connect(lab.quic()).await.expect("connects"),
        leaf.connect(&relay.addresses[0]).await.expect("connects"),
        neighbour(&leaf, &lab, &devices[0], &agents[0]).await.into(),
    ];
    for link in &links {
        assert!(!send(link, &forged).await, "{} takes a forged notice", link.address());
        assert!(send(link, &old).await, "{} ends the stream well", link.address());
    }
    for node in devices.iter().map(String::as_str).chain(["relay", "origin"]) {
        assert_eq!(fs::read(lab.path(node).join("halts")).expect("kept"), kept, "{node}");
    }
    // The second wave opens when the first has ended, and every device installs the release.
    wait_until("every device runs release 2", || devices.iter().all(|d| current(&lab, d) == "2"));
}

/// Prints the number of datagrams that an idle agent sends and receives in some seconds.
fn print_idle(agent: &Daemon, seconds: u64) {
    // Looks and announcements of the start are over.
    std::thread::sleep(Duration::from_secs(30));
    let calls = "trace=sendmsg,sendmmsg,recvmsg,recvmmsg";
    let traced = Command::new("timeout")
        .args([&seconds.to_string(), "strace", "-f", "-qq", "-e", calls, "-p", &agent.id().to_string()])
        .output()
        .expect("run strace");
    let text = String::from_utf8_lossy(&traced.stderr).into_owned();
    let count = |call: &str| text.lines().filter(|l| l.contains(call) && !l.contains("= -1")).count();
    println!("idle for {seconds} s: {} sent, {} received", count("sendm"), count("recvm"));
}

/// The origin dies when one device has the notice. The relay is dead too. The others learn it from
/// their neighbours.
#[test]
fn neighbours_tell_each_other_when_relay_and_origin_are_dead() {
    let count = std::env::var("DISTD_TEST_HALT_AGENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut lab = Lab::start();
    releases(&lab, 10_000);
    let mut relay = lab.relay("relay", lab.quic());
    let devices: Vec<String> = (0..count).map(|n| format!("device-{n}")).collect();
    let mut agents = Vec::new();
    for (n, device) in devices.iter().enumerate() {
        // One device reaches the origin without the relay.
        let origin = ["--parent", lab.quic()];
        lab.enroll_at(None, device, &relay.addresses[0], if n == 0 { &origin } else { &[] });
        agents.push(follow(&lab, device, 3600));
    }
    wait_until("every device runs release 1", || reporting(&lab, "1") == count);
    // The first announcement has nothing installed in it, and makes a device known to nobody.
    let has_announced = |agent: &Daemon| agent.log().matches(" announced").count() >= 2;
    wait_until("devices have announced themselves", || agents.iter().all(has_announced));
    wait_until("devices listen", || agents.iter().all(|agent| agent.log().contains("listening for news")));
    if let Some(seconds) = std::env::var("DISTD_TEST_HALT_IDLE").ok().and_then(|n| n.parse().ok()) {
        print_idle(&agents[1], seconds);
    }
    let rollout = start_rollout(&lab, &["--waves", "1,100%", "--soak", "1h"]);
    relay.kill();
    agents[0].wait_for(&format!("listening for news parent=\"{}\"", lab.quic()));
    lab.admin(&["rollout", "halt", FOLLOWED]).ok();
    let told = Instant::now();
    wait_until("one device has the notice", || knows(&lab, &devices[0], &rollout));
    lab.origin().kill();
    let dead = Instant::now();
    let deadline = dead + Duration::from_secs(30);
    while !devices.iter().all(|device| knows(&lab, device, &rollout)) {
        let logs = || agents.iter().map(Daemon::log).collect::<Vec<_>>().join("\n--\n");
        assert!(Instant::now() < deadline, "not in time: all devices have the notice\n{}", logs());
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "{count} agents: the last one knew {} ms after the order was answered, {} ms after the origin's death",
        told.elapsed().as_millis(),
        dead.elapsed().as_millis()
    );
}

/// A parent without news streams, as one of an earlier release: agents poll, as they did.
#[test]
fn agents_poll_where_the_parent_takes_no_news_streams() {
    let lab = Lab::start();
    releases(&lab, 10_000);
    let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &["--news-streams-max", "0"]);
    let devices = ["device-0", "device-1"];
    let mut agents = Vec::new();
    for device in devices {
        lab.enroll_at(None, device, &relay.addresses[0], &[]);
        agents.push(follow(&lab, device, 1));
    }
    wait_until("every device runs release 1", || reporting(&lab, "1") == devices.len());
    let rollout = start_rollout(&lab, &["--waves", "1,100%", "--soak", "1h"]);
    wait_until("one device runs release 2", || devices.iter().any(|d| current(&lab, d) == "2"));
    lab.admin(&["rollout", "halt", FOLLOWED]).ok();
    let other = devices.iter().find(|d| current(&lab, d) == "1").expect("the second wave has not begun");
    wait_until("the other device looks and sees the halt", || why(&lab, other).contains("halted"));
    assert!(knows(&lab, "relay", &rollout), "the relay itself is told");
    assert!(devices.iter().all(|d| !knows(&lab, d, &rollout)));
    assert!(agents.iter().all(|agent| !agent.log().contains("listening for news")));
}
