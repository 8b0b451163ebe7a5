//! kill -9 of every tier at random moments: nothing is lost, and no verified chunk is fetched
//! twice.
//!
//! `DISTD_TEST_KILLS` sets how many kills each tier gets (tests/soak/kills.sh uses 50).

use std::process::{Child, Stdio};
use std::time::Duration;

use distd_tests::lab::{Lab, same, wait_until_fetching};
use distd_tests::{Rng, artifacts};

/// Number of kills of each tier in the ordinary run.
const KILLS: u64 = 10;

/// Bytes that one interrupted attempt may have received without verifying them: the batches in
/// flight and the contents of the windows.
const IN_FLIGHT_MAX: u64 = 9 << 20;

fn kills() -> u64 {
    std::env::var("DISTD_TEST_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(KILLS)
}

fn spawn_pull(lab: &Lab, device: &str, wanted: &str, out: &std::path::Path) -> Child {
    let mut command = lab.command(device);
    command.arg("pull").arg(wanted).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start distd")
}

#[test]
fn a_device_killed_again_and_again_ends_with_the_image_and_repeats_nothing() {
    let mut rng = Rng::announced("device kills", 21);
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 21);
    lab.push(&v1, "os", "1").ok();
    let relay = lab.relay("relay", lab.quic());
    lab.enroll("d", &relay.addresses[0]);
    // The time of an undisturbed pull on this machine decides when to kill.
    let started = std::time::Instant::now();
    let undisturbed = lab.pull("d", "os@1", &lab.path("undisturbed"), &[]).ok();
    let usual = started.elapsed().as_micros() as u64;
    let out = lab.path("out");
    for _ in 0..kills() {
        let mut pull = spawn_pull(&lab, "d", "os@1", &out);
        std::thread::sleep(Duration::from_micros(rng.below(usual)));
        let _ = pull.kill();
        pull.wait().expect("wait");
        if out.exists() {
            assert!(same(&out, &v1), "what is in place is complete");
            // Starts again from nothing, until the kills are used up.
            std::fs::remove_file(&out).expect("remove");
        }
    }
    let last = lab.pull("d", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
    assert_eq!(last.number("refetched_verified_bytes"), 0);
    assert!(last.number("wire_bytes") <= undisturbed.number("wire_bytes") + IN_FLIGHT_MAX);
    let left: Vec<_> = std::fs::read_dir(lab.path(""))
        .expect("directory")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains("distd-part"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_relay_killed_while_it_fetches_loses_nothing_and_its_device_carries_on() {
    let mut rng = Rng::announced("relay kills", 22);
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 22);
    lab.push(&v1, "os", "1").ok();
    lab.push(&v2, "os", "2").ok();
    let mut relay = lab.relay("relay", lab.quic());
    let address = relay.addresses[0].clone();
    lab.enroll("d", &address);
    let mut round = 0;
    let (mut killed, mut caught) = (0, 0);
    while killed < kills() {
        round += 1;
        let (wanted, image) = if round % 2 == 1 { ("os@1", &v1) } else { ("os@2", &v2) };
        let out = lab.path(&format!("out{round}"));
        let mut pull = spawn_pull(&lab, "d", wanted, &out);
        caught += u64::from(wait_until_fetching(&mut pull, &out));
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(rng.below(250)));
            relay.kill();
            relay = lab.relay_at("relay", lab.quic(), &address, &[]);
            killed += 1;
        }
        let status = pull.wait().expect("wait");
        assert!(status.success(), "the pull of round {round} failed");
        assert!(same(&out, image));
        std::fs::remove_file(out).expect("remove");
    }
    assert!(caught > 0, "no kill struck a pull that fetched");
    // Each chunk crossed the uplink once, whatever was killed: both releases and little more.
    let served = lab.metric("distd_quic_chunks_total");
    let chunks = {
        let shown = |v: &str| lab.admin(&["release", "show", &format!("os@{v}")]).ok().number("chunks");
        shown("1") + shown("2")
    };
    // Chunks on the wire when a kill strikes are lost with the process: at most the batches in
    // flight each time.
    assert!(served <= chunks + killed * 3 * 1024, "{served} chunks served for {chunks}");
}

#[test]
fn an_origin_killed_during_uploads_has_each_release_whole_or_not_at_all() {
    let mut rng = Rng::announced("origin kills", 23);
    let mut lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 23);
    lab.enroll("d", lab.quic());
    let mut version = 0;
    for round in 0..kills() {
        version += 1;
        let image = if round % 2 == 0 { &v1 } else { &v2 };
        let mut command = lab.command("admin");
        command.arg("push").arg(image).args(["--product", "os", "--version", &version.to_string()]);
        let mut push = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start distd");
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        lab.restart_origin();
        push.wait().expect("wait");
        // The same push again completes the upload from any state that the kill left.
        let pushed = lab.push(image, "os", &version.to_string()).ok();
        let out = lab.path("out");
        let pulled = lab.pull("d", &format!("os@{version}"), &out, &[]).ok();
        assert_eq!(pulled.json["manifest"], pushed.json["manifest"]);
        assert!(same(&out, image), "round {round}");
    }
    let (status, body) = lab.curl("/readyz", &[]);
    assert_eq!(status, 200, "{body}");
}
