//! Rates in both directions: they hold, and no peer is blamed for them.
//!
//! Times are bounded only from below: a limit that holds is never faster, whatever the load of the
//! machine.

use std::fs;

use distd_tests::artifacts;
use distd_tests::lab::{Lab, Outcome, same};

/// A rate that makes a pull of the test image last some seconds, bytes a second.
const SLOW: u64 = 4_000_000;

/// Asserts that a pull took as long as it must at `SLOW`, except for the bytes that may pass at
/// once.
fn assert_slow(outcome: &Outcome) {
    let seconds = outcome.json["seconds"].as_f64().expect("a number");
    let bytes = outcome.number("chunk_bytes");
    let least = (bytes as f64 - SLOW as f64 / 8.0) / SLOW as f64;
    assert!(least > 1.0, "the image is too small to tell: {bytes} bytes");
    assert!(seconds >= least, "{bytes} bytes in {seconds} s, {least} s at least");
}

#[test]
fn a_device_keeps_its_limits_by_class_time_and_peer() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 101);
    lab.push(&v1, "os", "1").ok();
    let window = "windows = [{ from = \"00:00\", to = \"24:00\", download_bytes_per_second";
    for (name, limits, class) in [
        ("class", format!("prefetch.download_bytes_per_second = {SLOW}\n"), "prefetch"),
        ("window", format!("download_bytes_per_second = 900000000\n{window} = {SLOW} }}]\n"), "update"),
        ("window-of-class", format!("{window} = {SLOW}, class = \"interactive\" }}]\n"), "interactive"),
        ("peer", format!("download_bytes_per_second_per_peer = {SLOW}\n"), "update"),
    ] {
        lab.enroll(name, lab.quic());
        lab.configure(name, &format!("[limits]\n{limits}"));
        let out = lab.path(&format!("out-{name}"));
        let pulled = lab.start_pull(name, "os@1", &out, &["--class", class]).wait().ok();
        assert!(same(&out, &v1));
        assert_slow(&pulled);
    }
    // Impossible values are reported before anything is done.
    lab.enroll("wrong", lab.quic());
    lab.configure("wrong", "[limits]\nupload_slots = 0\nwindows = [{ days = \"someday\" }]\n");
    let refused = lab.start_pull("wrong", "os@1", &lab.path("out"), &[]).wait();
    assert_ne!(refused.code, 0);
    for wrong in ["limits.upload_slots = 0", "someday", "limits.windows[0].from"] {
        assert!(refused.stderr.contains(wrong), "{}", refused.stderr);
    }
}

#[test]
fn a_relay_keeps_to_its_limits_in_both_directions() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 102);
    lab.push(&v1, "os", "1").ok();
    for (n, limits) in [
        format!("download_bytes_per_second = {SLOW}\n"),
        format!("upload_bytes_per_second = {SLOW}\n"),
        format!("upload_bytes_per_second_per_peer = {SLOW}\n"),
    ]
    .iter()
    .enumerate()
    {
        let file = lab.path(&format!("relay{n}.toml"));
        fs::write(&file, format!("[limits]\n{limits}")).expect("write");
        let args = ["--config", &file.display().to_string()];
        let relay = lab.relay_at(&format!("relay{n}"), lab.quic(), "127.0.0.1:0", &args);
        let device = format!("d{n}");
        lab.enroll(&device, &relay.addresses[0]);
        let out = lab.path(&format!("out{n}"));
        let pulled = lab.pull(&device, "os@1", &out, &[]).ok();
        assert!(same(&out, &v1));
        assert_eq!(pulled.json["wire_bytes_by_source"]["origin"], 0, "{}", pulled.json);
        assert_slow(&pulled);
    }
}

#[test]
fn neighbours_are_not_taken_for_slow_because_of_our_own_limit() {
    let mut lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 103);
    lab.push(&v1, "os", "1").ok();
    let holders = ["a", "b", "c"];
    for device in holders.into_iter().chain(["new"]) {
        lab.enroll(device, lab.quic());
        lab.pull(device, "os@1", &lab.path(&format!("slot-{device}")), &[]).ok();
    }
    let agents: Vec<_> = holders.iter().map(|device| lab.agent(device)).collect();
    for agent in &agents {
        agent.wait_for("announced reached=");
    }
    // This pull learns of all agents; afterwards they are the only sources.
    lab.pull("new", "os@1", &lab.path("hears"), &[]).ok();
    let known = fs::read_to_string(lab.path("new/neighbours.json")).expect("neighbours");
    assert!(agents.iter().all(|agent| known.contains(&agent.addresses[0])), "{known}");
    lab.stop_origin();
    let free = lab.pull("new", "os@1", &lab.path("free"), &[]).ok();
    lab.configure("new", "[limits]\ndownload_bytes_per_second = 1000000\n");
    let out = lab.path("held-back");
    let held_back = lab.pull("new", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
    let numbers = |outcome: &Outcome| {
        [outcome.number("requests"), outcome.number("wire_bytes"), outcome.number("duplicate_bytes")]
    };
    println!("requests, bytes, duplicates: {:?} free, {:?} held back", numbers(&free), numbers(&held_back));
    assert!(held_back.number("wire_bytes") <= free.number("wire_bytes") * 101 / 100, "{}", held_back.json);
    assert!(!held_back.stderr.contains("not asked any more"), "{}", held_back.stderr);
}
