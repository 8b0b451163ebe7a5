//! One image, end to end: pushed, pulled through a relay, updated.

use std::fs;
use std::process::Command;

use distd_tests::lab::{Lab, Outcome, binary, same};
use distd_tests::{Rng, artifacts};

#[test]
fn an_update_through_a_relay_is_bit_exact_and_costs_the_origin_once() {
    let mut lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 11);
    lab.push(&v1, "os", "1").ok();
    let relay = lab.relay("relay", lab.quic());
    for device in ["d1", "d2"] {
        lab.enroll(device, &relay.addresses[0]);
    }
    let slot1 = lab.path("slot1");
    let first = lab.pull("d1", "os@1", &slot1, &[]).ok();
    assert!(same(&slot1, &v1));
    assert_eq!(first.number("held_bytes"), 0);
    assert_eq!(first.json["wire_bytes_by_source"]["origin"], 0, "everything came over the relay");

    lab.push(&v2, "os", "2").ok();
    let slot2 = lab.path("slot2");
    let update = lab.pull("d1", "os@2", &slot2, &[&slot1]).ok();
    assert!(same(&slot2, &v2));
    assert!(update.number("wire_bytes") < first.number("wire_bytes") / 2, "{}", update.json);
    assert_eq!(update.number("refetched_verified_bytes"), 0);
    assert!(update.number("held_bytes") > 0);

    let before = lab.served_bytes();
    let other = lab.path("other");
    lab.pull("d2", "os@2", &other, &[&slot1]).ok();
    assert!(same(&other, &v2));
    let cost = lab.served_bytes() - before;
    assert!(cost < 100_000, "the second device cost the origin {cost} bytes");

    // The same pull again: nothing to do, nothing fetched.
    let again = lab.pull("d1", "os@2", &slot2, &[]).ok();
    assert_eq!(again.number("fetched_bytes"), 0);
    assert!(lab.origin().peak_bytes() < 250 << 20);
    assert!(relay.peak_bytes() < 150 << 20);
}

#[test]
fn push_and_http_upload_give_the_same_manifest_and_bytes() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 12);
    let pushed = lab.push(&v1, "cli", "1").ok();
    let file = v1.display().to_string();
    let (status, body) = lab.curl("/v1/products/whole/releases/1/content", &["-T", &file]);
    assert_eq!(status, 201, "{body}");
    let release: serde_json::Value = serde_json::from_str(&body).expect("a release");
    assert_eq!(release["manifest"], pushed.json["manifest"]);
    assert_eq!(release["blake3"], pushed.json["blake3"]);
    let printed = blake3::hash(&fs::read(&v1).expect("read")).to_string();
    assert_eq!(release["blake3"], printed.as_str());

    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    lab.pull("d", "whole@1", &out, &[]).ok();
    assert!(same(&out, &v1));
}

#[test]
fn a_channel_moves_devices_and_a_seed_without_manifest_is_cut_on_the_spot() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 13);
    lab.push(&v1, "os", "1").ok();
    lab.push(&v2, "os", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    lab.pull("d", "os:stable", &out, &[]).ok();
    assert!(same(&out, &v1));
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    let next = lab.path("next");
    let update = lab.pull("d", "os:stable", &next, &[&v1]).ok();
    assert!(same(&next, &v2));
    assert!(update.number("held_bytes") > update.number("artifact_bytes") / 2, "{}", update.json);
    // Into the same file: its old content is the seed.
    let into = lab.pull("d", "os:stable", &out, &[]).ok();
    assert!(same(&out, &v2));
    assert!(into.number("held_bytes") > into.number("artifact_bytes") / 2);
}

#[test]
fn a_directory_comes_back_with_its_links_modes_and_bytes() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let lab = Lab::start();
    let mut rng = Rng::new(14);
    let tree = lab.path("tree");
    artifacts::system_tree(&tree, 120, &mut rng);
    let script = tree.join("usr/lib/part1/script");
    fs::write(&script, "#!/bin/sh\n").expect("write");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o4755)).expect("mode");
    fs::create_dir(tree.join("empty")).expect("directory");
    lab.push(&tree, "tree", "1").ok();
    artifacts::update_tree(&tree, &mut rng);
    lab.push(&tree, "tree", "2").ok();
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    lab.pull("d", "tree@1", &out, &[]).ok();
    let update = lab.pull("d", "tree@2", &out, &[]).ok();
    assert!(update.number("held_bytes") > update.number("artifact_bytes") / 2, "{}", update.json);
    let diff = Command::new("diff").arg("-r").arg("--no-dereference").arg(&tree).arg(&out).output();
    let diff = diff.expect("run diff");
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    let meta = fs::metadata(out.join("usr/lib/part1/script")).expect("script");
    assert_eq!(meta.mode() & 0o7777, 0o4755);
    assert_eq!(fs::read_link(out.join("lib")).expect("link").to_str(), Some("usr/lib"));
    assert!(!lab.path("out.distd-part").exists(), "nothing is left behind");
}

#[test]
fn a_block_device_is_written_in_place_and_serves_as_seed() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 15);
    let devices = LoopDevices::new(&lab, 2, 64 << 20);
    lab.push(&v1, "os", "1").ok();
    lab.push(&v2, "os", "2").ok();
    lab.enroll("d", lab.quic());
    lab.pull("d", "os@1", devices.path(0), &[]).ok();
    let update = lab.pull("d", "os@2", devices.path(1), &[devices.path(0)]).ok();
    assert!(update.number("held_bytes") > update.number("artifact_bytes") / 2, "{}", update.json);
    let want = fs::read(&v2).expect("read");
    let got = fs::read(devices.path(1)).expect("read the device");
    assert!(got[..want.len()] == want[..]);
    // In place over the old release: chunks that are right already are not fetched.
    let over = lab.pull("d", "os@2", devices.path(0), &[]).ok();
    assert!(over.number("held_bytes") > 0, "{}", over.json);
    assert!(fs::read(devices.path(0)).expect("read")[..want.len()] == want[..]);
    let small = LoopDevices::new(&lab, 1, 1 << 20);
    let refused = lab.pull("d", "os@2", small.path(0), &[]);
    assert_eq!(refused.code, 7, "{}", refused.stderr);
}

struct LoopDevices(Vec<std::path::PathBuf>);

impl LoopDevices {
    fn new(lab: &Lab, count: usize, bytes: u64) -> Self {
        let mut paths = Vec::new();
        for n in 0..count {
            let backing = lab.path(&format!("backing-{bytes}-{n}"));
            fs::File::create(&backing).and_then(|f| f.set_len(bytes)).expect("backing file");
            let made = Command::new("losetup").args(["-f", "--show"]).arg(&backing).output();
            let made = made.expect("run losetup");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            paths.push(String::from_utf8_lossy(&made.stdout).trim().into());
        }
        Self(paths)
    }

    fn path(&self, n: usize) -> &std::path::Path {
        &self.0[n]
    }
}

impl Drop for LoopDevices {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = Command::new("losetup").arg("-d").arg(path).status();
        }
    }
}

#[test]
fn the_program_of_devices_alone_keeps_a_device_up_to_date() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 13);
    lab.push(&v1, "os", "1").ok();
    lab.push(&v2, "os", "2").ok();
    let run = |args: &[&str]| {
        let mut command = Command::new(binary("distd-device"));
        command.arg("--json").arg("--data").arg(lab.path("d")).args(args);
        Outcome::of(command.output().expect("run distd-device"))
    };
    let token = lab.join_token("leaf", 1);
    run(&["enroll", "--parent", lab.quic(), "--token", &token]).ok();
    // Tests stay on the loopback interface.
    lab.configure("d", "mdns = false\n");
    let slot = lab.path("slot").display().to_string();
    run(&["pull", "os@1", "--out", &slot]).ok();
    let update = run(&["pull", "os@2", "--out", &slot]).ok();
    assert!(update.number("held_bytes") > 0, "{}", update.json);
    run(&["verify", &slot]).ok();
    assert!(same(lab.path("slot").as_path(), &v2));
    // The program has no command of a release engineer.
    let refused = run(&["push", &slot, "--product", "os", "--version", "3"]);
    assert_eq!(refused.code, 2, "{}", refused.json);
    assert!(
        refused.json["error"]["message"].as_str().expect("a message").contains("push"),
        "{}",
        refused.json
    );
}
