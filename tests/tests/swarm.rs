//! Devices of one site serve each other: each byte crosses the uplink once.

use std::path::{Path, PathBuf};

use distd_tests::artifacts;
use distd_tests::lab::{Lab, Outcome, same, wait_until};

/// Number of devices that start at once.
const DEVICES: usize = 5;

/// Pulls `wanted` on all devices at once and returns their results.
fn pull_all(lab: &Lab, name: &str, wanted: &str, args: &[&str]) -> Vec<(PathBuf, Outcome)> {
    let outs: Vec<PathBuf> = (0..DEVICES).map(|n| lab.path(&format!("{name}-{n}"))).collect();
    let started: Vec<_> =
        outs.iter().enumerate().map(|(n, out)| lab.start_pull(&format!("d{n}"), wanted, out, args)).collect();
    outs.into_iter().zip(started.into_iter().map(|pull| pull.wait().ok())).collect()
}

fn assert_all_same(pulled: &[(PathBuf, Outcome)], image: &Path) {
    for (out, _) in pulled {
        assert!(same(out, image), "{}", out.display());
    }
}

#[test]
fn five_devices_right_under_an_origin_cost_it_little_more_than_one() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 51);
    lab.push(&v1, "os", "1").ok();
    for n in 0..DEVICES {
        lab.enroll(&format!("d{n}"), lab.quic());
    }
    let before = lab.served_bytes();
    lab.start_pull("d0", "os@1", &lab.path("alone"), &["--no-share"]).wait().ok();
    let one = lab.served_bytes() - before;

    let before = lab.served_bytes();
    let pulled = pull_all(&lab, "together", "os@1", &[]);
    let together = lab.served_bytes() - before;
    assert_all_same(&pulled, &v1);
    let said: Vec<_> = pulled.iter().map(|(_, outcome)| &outcome.json).collect();
    assert!(together * 10 <= one * 12, "{together} bytes for {DEVICES} devices, {one} for one: {said:?}");
    let from_neighbours: u64 = said
        .iter()
        .map(|json| json["wire_bytes_by_source"]["peer"].as_u64().expect("a number of bytes"))
        .sum();
    assert!(from_neighbours > 3 * one, "{from_neighbours} bytes from neighbours");
    assert!(said.iter().all(|json| json["refetched_verified_bytes"] == 0), "{said:?}");

    // The exchange is the reason for this bound: without it each device costs as much as one alone.
    let before = lab.served_bytes();
    pull_all(&lab, "apart", "os@1", &["--no-share"]);
    let apart = lab.served_bytes() - before;
    println!("one {one}, together {together}, apart {apart}");
    assert!(apart > 4 * one, "{apart} bytes for {DEVICES} devices that do not exchange");
}

/// The image behind a relay, so that a device's bytes from the relay and from the origin differ.
fn behind_a_relay(rng_seed: u64, devices: &[&str]) -> (Lab, distd_tests::lab::Daemon, PathBuf) {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), rng_seed);
    lab.push(&v1, "os", "1").ok();
    let relay = lab.relay("relay", lab.quic());
    for device in devices {
        lab.enroll(device, &relay.addresses[0]);
    }
    (lab, relay, v1)
}

/// An agent that has announced its installed artifacts.
fn announced_agent(lab: &Lab, device: &str) -> distd_tests::lab::Daemon {
    let agent = lab.agent(device);
    agent.wait_for("announced reached=");
    agent
}

#[test]
fn a_relay_killed_while_it_serves_five_devices_costs_the_origin_little_more_than_one() {
    let names: Vec<String> = (0..DEVICES).map(|n| format!("d{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (lab, mut relay, v1) = behind_a_relay(52, &names);
    let before = lab.served_bytes();
    lab.start_pull("d0", "os@1", &lab.path("alone"), &["--no-share", "--parent", lab.quic()]).wait().ok();
    let one = lab.served_bytes() - before;
    for name in &names {
        // Slow enough for the kill to strike in the middle.
        lab.configure(name, "[limits]\ndownload_bytes_per_second = 2000000\n");
    }

    let before = lab.served_bytes();
    let parents = ["--parent", &relay.addresses[0].clone(), "--parent", lab.quic()];
    let outs: Vec<PathBuf> = (0..DEVICES).map(|n| lab.path(&format!("out-{n}"))).collect();
    let pulls: Vec<_> =
        names.iter().zip(&outs).map(|(d, out)| lab.start_pull(d, "os@1", out, &parents)).collect();
    wait_until("half has come", || lab.served_bytes() - before > one / 2);
    relay.kill();
    let mut from_origin = 0;
    for (pull, out) in pulls.into_iter().zip(&outs) {
        let pulled = pull.wait().ok();
        from_origin += pulled.json["wire_bytes_by_source"]["origin"].as_u64().expect("a number");
        assert!(same(out, &v1));
    }
    let together = lab.served_bytes() - before;
    println!("one {one}, {DEVICES} devices and a dead relay {together}");
    assert!(from_origin > one / 5, "the relay was killed too late to matter: {from_origin}");
    assert!(together * 10 <= one * 12, "{together} bytes for {DEVICES} devices, {one} for one");
}

#[test]
fn an_agent_serves_installed_artifacts_to_its_site_without_origin_and_relay() {
    let (mut lab, mut relay, v1) = behind_a_relay(53, &["damaged", "whole", "new"]);
    for device in ["damaged", "whole"] {
        lab.pull(device, "os@1", &lab.path(&format!("slot-{device}")), &[]).ok();
    }
    let agents = [announced_agent(&lab, "damaged"), announced_agent(&lab, "whole")];
    // Once more, so that the first device learns of the second.
    let first = lab.pull("new", "os@1", &lab.path("first"), &[]).ok();
    assert!(same(&lab.path("first"), &v1));
    let by_source = |outcome: &Outcome, source: &str| {
        outcome.json["wire_bytes_by_source"][source].as_u64().expect("a number")
    };
    assert!(by_source(&first, "peer") > first.number("artifact_bytes") / 10, "{}", first.json);

    // Half of one image rots. A chunk that the agent then reads wrong is a miss and no failure.
    let image = std::fs::read(lab.path("slot-damaged")).expect("read");
    let half = image.len() / 2;
    let rotten: Vec<u8> =
        image.iter().enumerate().map(|(n, byte)| if n < half { *byte } else { byte ^ 0x55 }).collect();
    std::fs::write(lab.path("slot-damaged"), rotten).expect("write");
    // The new device knows only the agent with the damaged image.
    let known = std::fs::read_to_string(lab.path("new/neighbours.json")).expect("neighbours were remembered");
    let known: serde_json::Value = serde_json::from_str(&known).expect("JSON");
    let damaged = &agents[0].addresses[0];
    let lines = known.as_array().expect("a list");
    let one: Vec<_> = lines.iter().filter(|line| line["address"] == damaged.as_str()).collect();
    assert_eq!(one.len(), 1, "{known}");
    std::fs::write(lab.path("new/neighbours.json"), serde_json::to_vec(&one).expect("JSON")).expect("write");
    relay.kill();
    lab.stop_origin();
    let out = lab.path("second");
    let second = lab.start_pull("new", "os@1", &out, &[]).wait().ok();
    assert!(same(&out, &v1));
    assert_eq!(by_source(&second, "relay") + by_source(&second, "origin"), 0, "{}", second.json);
    assert!(second.number("wire_bytes") > 0 && second.number("held_bytes") == 0);
}

#[test]
fn a_device_with_the_last_release_serves_the_half_of_the_next_that_it_has() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 54);
    lab.push(&v1, "os", "1").ok();
    lab.push(&v2, "os", "2").ok();
    for device in ["old", "new"] {
        lab.enroll(device, lab.quic());
    }
    lab.pull("old", "os@1", &lab.path("slot"), &[]).ok();
    let agent = announced_agent(&lab, "old");
    let idle = agent.resident_bytes();
    let out = lab.path("out");
    let pulled = lab.pull("new", "os@2", &out, &[]).ok();
    assert!(same(&out, &v2));
    let peer = pulled.json["wire_bytes_by_source"]["peer"].as_u64().expect("a number");
    assert!(peer > pulled.number("wire_bytes") / 10, "{}", pulled.json);
    println!("agent: {idle} bytes idle, {} at most", agent.peak_bytes());
    assert!(idle < 30_000_000, "an idle agent takes {idle} bytes");
    assert!(agent.peak_bytes() < 60 << 20, "{} bytes", agent.peak_bytes());
}

#[test]
fn an_agent_is_no_parent_and_a_metered_device_runs_no_agent() {
    let (lab, _relay, _) = behind_a_relay(55, &["d", "other", "metered"]);
    lab.pull("d", "os@1", &lab.path("slot"), &[]).ok();
    let agent = announced_agent(&lab, "d");
    let address = &agent.addresses[0];
    let out = lab.path("out");
    let text = out.display().to_string();
    let refused = lab.device("other", &["pull", "os@1", "--out", &text, "--parent", address]);
    assert_ne!(refused.code, 0);
    assert!(!out.exists(), "{}", refused.stderr);
    let token = lab.join_token("leaf", 1);
    let refused = lab.device("fresh", &["enroll", "--parent", address, "--token", &token]);
    assert_ne!(refused.code, 0, "{}", refused.stderr);
    lab.configure("metered", "metered = true\n");
    let refused = lab.device("metered", &["agent", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
}

#[test]
fn one_upload_slot_serves_two_devices_in_turn_without_failures() {
    let (mut lab, mut relay, v1) = behind_a_relay(56, &["holder", "a", "b"]);
    for device in ["holder", "a", "b"] {
        lab.pull(device, "os@1", &lab.path(&format!("slot-{device}")), &[]).ok();
    }
    lab.configure(
        "holder",
        "[limits]\nupload_slots = 1\nupload_slots_per_peer = 1\nupload_bytes_per_second = 4000000\n",
    );
    let agent = announced_agent(&lab, "holder");
    // The two devices learn of the agent while they have a parent that advertises it.
    for device in ["a", "b"] {
        lab.pull(device, "os@1", &lab.path(&format!("again-{device}")), &[]).ok();
        let known = std::fs::read_to_string(lab.path(device).join("neighbours.json")).expect("neighbours");
        assert!(known.contains(&agent.addresses[0]), "{known}");
    }
    relay.kill();
    lab.stop_origin();
    let outs = ["a", "b"].map(|device| lab.path(&format!("out-{device}")));
    let pulls = ["a", "b"].iter().zip(&outs).map(|(device, out)| lab.start_pull(device, "os@1", out, &[]));
    let pulls: Vec<_> = pulls.collect();
    for (pull, out) in pulls.into_iter().zip(&outs) {
        let pulled = pull.wait().ok();
        assert!(same(out, &v1));
        assert!(!pulled.stderr.contains("not asked any more"), "{}", pulled.stderr);
    }
}
