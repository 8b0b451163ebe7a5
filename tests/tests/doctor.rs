//! `distd doctor`, `distd-peer doctor` and `distd-server doctor`: each finding with a real cause,
//! and none on a sound node.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use distd_tests::lab::{Lab, Outcome, binary, run};
use distd_tests::netns::{FAR, Namespaces};
use serde_json::Value;

/// Names of the checks that found something; the exit code says whether there are any.
fn findings(outcome: &Outcome) -> BTreeSet<String> {
    let checks = outcome.json["checks"].as_array().unwrap_or_else(|| panic!("checks: {outcome:?}"));
    let found: BTreeSet<String> = checks
        .iter()
        .filter(|check| check["verdict"] == "finding")
        .map(|check| {
            assert!(check["mend"].as_str().is_some_and(|mend| !mend.is_empty()), "{check}");
            check["check"].as_str().expect("a name").to_owned()
        })
        .collect();
    assert_eq!(outcome.code, i32::from(!found.is_empty()), "{outcome:?}");
    found
}

fn names(found: &[&str]) -> BTreeSet<String> {
    found.iter().map(|name| (*name).to_owned()).collect()
}

/// Text about one check.
fn says<'a>(outcome: &'a Outcome, check: &str) -> &'a str {
    let checks = outcome.json["checks"].as_array().expect("checks").iter();
    let found: Vec<&Value> = checks.filter(|found| found["check"] == check).collect();
    found.last().expect("the check")["says"].as_str().expect("a text")
}

fn device(lab: &Lab, name: &str, args: &[&str]) -> Command {
    let mut command = lab.command(name);
    command.arg("doctor").args(args);
    command
}

fn relay(lab: &Lab, name: &str, parent: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary("distd-peer"));
    command.args(["doctor", "--json", "--parent", parent, "--data"]).arg(lab.path(name)).args(args);
    command
}

fn origin(lab: &Lab, args: &[&str]) -> Command {
    let mut command = Command::new(binary("distd-server"));
    command.args(["doctor", "--json", "--http", lab.https(), "--quic", lab.quic(), "--data"]);
    command.arg(lab.path("origin")).args(args);
    command
}

/// The same command with its clock shifted.
fn shifted(command: &Command, by: &str) -> Command {
    let mut shifted = Command::new("faketime");
    shifted.args(["-f", by]).arg(command.get_program()).args(command.get_args());
    shifted.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    shifted
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Bytes and times of all files below a directory.
fn state_of(dir: &Path) -> BTreeSet<(String, u64, std::time::SystemTime)> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).expect("readable").flatten() {
            let meta = entry.metadata().expect("stat");
            if meta.is_dir() {
                left.push(entry.path());
            } else {
                let name = entry.path().display().to_string();
                found.insert((name, meta.len(), meta.modified().expect("a time")));
            }
        }
    }
    found
}

#[test]
fn a_sound_site_has_no_findings_and_wrong_clocks_rights_and_addresses_are_found() {
    let mut lab = Lab::start();
    let mut parent = lab.relay("relay", lab.quic());
    let address = parent.addresses[0].clone();
    lab.enroll("d", &address);
    let before = state_of(&lab.path("d"));
    let sound = run(&mut device(&lab, "d", &[]));
    assert_eq!(findings(&sound), names(&[]), "{sound:?}");
    for check in ["version", "rights", "disk", "certificate", "mtu", "udp", "parent", "clock"] {
        says(&sound, check);
    }
    assert_eq!(state_of(&lab.path("d")), before, "nothing is changed");
    assert_eq!(findings(&run(&mut relay(&lab, "relay", lab.quic(), &[]))), names(&[]));
    let sound = run(&mut origin(&lab, &[]));
    assert_eq!(findings(&sound), names(&[]), "{sound:?}");
    for check in
        ["rights", "disk", "certificate", "database", "store", "metadata", "root", "clock", "running", "udp"]
    {
        says(&sound, check);
    }
    let text = run(Command::new(binary("distd")).arg("--data").arg(lab.path("d")).arg("doctor"));
    assert!(text.code == 0 && text.stdout.ends_with("nothing found\n"), "{text:?}");

    // The clock of the device, of the relay, and of the origin's machine.
    let found = run(&mut shifted(&device(&lab, "d", &[]), "+10m"));
    assert_eq!(findings(&found), names(&["clock"]), "{found:?}");
    assert!(says(&found, "clock").contains("ahead of"), "{found:?}");
    let found = run(&mut shifted(&relay(&lab, "relay", lab.quic(), &[]), "-10m"));
    assert_eq!(findings(&found), names(&["clock"]), "{found:?}");
    let found = run(&mut shifted(&device(&lab, "d", &[]), "+2d"));
    // The certificates of its parents have ended too, by this clock.
    assert_eq!(findings(&found), names(&["certificate", "parent"]), "{found:?}");
    let found = run(&mut shifted(&origin(&lab, &[]), "+2d"));
    assert_eq!(findings(&found), names(&["metadata"]), "{found:?}");
    let found = run(&mut shifted(&origin(&lab, &[]), "-2h"));
    assert!(findings(&found).contains("clock"), "{found:?}");

    // Secrets that others can read.
    let key = lab.path("d/node.key");
    set_mode(&key, 0o644);
    assert_eq!(findings(&run(&mut device(&lab, "d", &[]))), names(&["certificate", "rights"]));
    set_mode(&key, 0o600);
    let token = lab.path("origin/admin.token");
    set_mode(&token, 0o640);
    let found = run(&mut origin(&lab, &[]));
    assert_eq!(findings(&found), names(&["rights"]));
    assert!(says(&found, "rights").contains("admin.token"), "{found:?}");
    set_mode(&token, 0o600);

    // A device that is not enrolled, a proxy that is not there, slots that are none.
    fs::create_dir(lab.path("new")).expect("a directory");
    set_mode(&lab.path("new"), 0o700);
    let found = run(&mut device(&lab, "new", &["--parent", &address]));
    assert_eq!(findings(&found), names(&["certificate"]), "{found:?}");
    assert!(!lab.path("new/node.key").exists(), "nothing is created");
    let mut proxied = device(&lab, "d", &[]);
    proxied.env("DISTD_PROXY_URL", "http://127.0.0.1:1");
    assert_eq!(findings(&run(&mut proxied)), names(&["parent", "proxy"]));
    let mut slots = device(&lab, "d", &[]);
    slots.env("DISTD_FOLLOW", "os:stable").env("DISTD_SLOTS", "a=/no/a,b=/no/b");
    slots.env("DISTD_BOOT_LOADER", "grub");
    assert_eq!(findings(&run(&mut slots)), names(&["slots"]));

    // A relay that is dead, a revoked device, an origin that is stopped.
    let node = lab.admin(&["node", "ls"]).ok().json;
    let nodes = node["nodes"].as_array().expect("a list").iter();
    let id =
        nodes.filter(|node| node["role"] == "leaf").map(|node| node["id"].as_str().expect("an id")).next();
    lab.admin(&["node", "revoke", id.expect("the device")]).ok();
    let found = run(&mut device(&lab, "d", &["--parent", lab.quic()]));
    assert_eq!(findings(&found), names(&["parent"]), "{found:?}");
    parent.kill();
    let found = run(&mut device(&lab, "d", &[]));
    assert_eq!(findings(&found), names(&["parent"]), "{found:?}");
    lab.stop_origin();
    let found = run(&mut origin(&lab, &[]));
    assert_eq!(findings(&found), names(&["running"]), "{found:?}");
    let found = run(&mut origin(&lab, &["--db", "sqlite:/no/such.sqlite"]));
    assert_eq!(findings(&found), names(&["database", "running"]), "{found:?}");
    let found = run(&mut relay(&lab, "relay", lab.quic(), &[]));
    assert_eq!(findings(&found), names(&["parent"]), "{found:?}");
}

#[test]
fn networks_without_udp_names_or_room_for_packets_are_found() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let net = Namespaces::new();
    let lab = Lab::start_at(net.router(), FAR);
    let site = |command: &Command| run(&mut net.in_site(command));
    let token = lab.join_token("leaf", 1);
    let mut enroll = lab.command("d");
    enroll.args(["enroll", "--parent", lab.quic(), "--token", &token]);
    site(&enroll).ok();
    assert_eq!(findings(&site(&device(&lab, "d", &[]))), names(&[]));

    net.cut("meta l4proto udp");
    let found = site(&device(&lab, "d", &[]));
    assert_eq!(findings(&found), names(&["udp"]), "{found:?}");
    assert_eq!(findings(&site(&device(&lab, "d", &["--transport", "https"]))), names(&[]));
    net.let_through();

    // No name server answers here.
    let found = site(&device(&lab, "d", &["--parent", "relay.example.invalid:4433"]));
    assert!(findings(&found).contains("dns"), "{found:?}");

    let mut narrow = Command::new("ip");
    narrow.args(["link", "set", "up0", "mtu", "1000"]);
    site(&narrow).ok();
    let found = site(&device(&lab, "d", &[]));
    assert!(findings(&found).contains("mtu"), "{found:?}");
    assert!(says(&found, "mtu").contains("1000"), "{found:?}");
}

#[test]
fn a_full_disk_is_found() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: a file system of its own needs root");
        return;
    }
    let lab = Lab::start();
    lab.enroll("d", lab.quic());
    let parent = lab.relay("relay", lab.quic());
    let small = lab.path("small");
    fs::create_dir(&small).expect("a directory");
    let mount =
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "none"]).arg(&small));
    if mount.code != 0 {
        println!("skipped: no file system can be mounted here: {}", mount.stderr);
        return;
    }
    for name in ["d", "relay"] {
        let to = small.join(name);
        fs::create_dir(&to).expect("a directory");
        set_mode(&to, 0o700);
        for entry in fs::read_dir(lab.path(name)).expect("readable").flatten() {
            if entry.path().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
            }
        }
    }
    let of_device = run(&mut device(&lab, "small/d", &[]));
    let of_relay = run(&mut relay(&lab, "small/relay", lab.quic(), &[]));
    run(Command::new("umount").arg(&small)).ok();
    assert_eq!(findings(&of_device), names(&["disk"]), "{of_device:?}");
    assert_eq!(findings(&of_relay), names(&["disk"]), "{of_relay:?}");
    drop(parent);
}
