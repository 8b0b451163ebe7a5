//! A channel that is moved back: the origin wants an order, and devices do not follow without one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::disks::{Loop, can_mount};
use distd_tests::faults::{self, fingerprint};
use distd_tests::lab::{Lab, Outcome, same};
use distd_tests::rng::Rng;
use serde_json::{Value, json};

const REFUSED: i32 = 4;
const CONFLICT: i32 = 5;
const LOCAL: i32 = 7;

/// An origin with releases 1, 2 and 3 of `os` and `stable` at the third, and a device; also returns
/// the images.
fn lab() -> (Lab, Vec<PathBuf>) {
    let lab = Lab::start();
    let images: Vec<PathBuf> = (1..=3)
        .map(|version| {
            let path = lab.path(&format!("image-{version}"));
            fs::write(&path, Rng::new(version).bytes(300_000)).expect("write");
            lab.push(&path, "os", &version.to_string()).ok();
            path
        })
        .collect();
    lab.admin(&["channel", "set", "os:stable", "3"]).ok();
    lab.enroll("d", lab.quic());
    (lab, images)
}

/// Moves a channel of `os` back without the origin's API, as an attacker who can write to its
/// database would: signed, and without an order.
fn lead_back(lab: &mut Lab, channel: &str, version: &str) {
    lab.stop_origin();
    let change = "import sqlite3, sys\n\
        db = sqlite3.connect(sys.argv[1])\n\
        done = db.execute('UPDATE channels SET version = ?, counter = counter + 1, downgrade_from = NULL WHERE channel = ?', sys.argv[2:4])\n\
        assert done.rowcount >= 1\n\
        db.commit()\n";
    let mut python = Command::new("python3");
    python.args(["-c", change]).arg(lab.path("origin/distd.sqlite")).args([version, channel]);
    assert!(python.status().expect("run python3").success());
    lab.start_origin();
}

fn plan(lab: &Lab, wanted: &str, out: &Path, args: &[&str]) -> Outcome {
    lab.device("d", &[&["plan", wanted, "--out", &out.display().to_string()], args].concat())
}

#[track_caller]
fn refused(outcome: &Outcome, has: &str, offered: &str) {
    assert_eq!(outcome.code, REFUSED, "{} {}", outcome.stderr, outcome.json);
    let error = &outcome.json["error"];
    assert_eq!((&error["code"], &error["exit"]), (&json!("refused"), &json!(REFUSED)), "{}", outcome.json);
    assert!(error["next"].to_string().contains("--allow-downgrade"), "{error}");
    let downgrade = &outcome.json["downgrade"];
    assert_eq!(
        (&downgrade["has"], &downgrade["offered"]),
        (&json!(has), &json!(offered)),
        "{}",
        outcome.json
    );
}

#[test]
fn a_channel_goes_back_only_by_order_and_a_device_follows_only_an_order() {
    let (mut lab, images) = lab();
    let out = lab.path("slot");
    let first = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!(first.json["downgraded_from"], Value::Null);

    // The origin wants an order, from a token that may give one.
    let unordered = lab.admin(&["channel", "set", "os:stable", "1"]);
    assert_eq!(unordered.code, CONFLICT, "{}", unordered.stderr);
    assert!(unordered.stderr.contains("os@1 is older than os@3"), "{}", unordered.stderr);
    assert!(unordered.json["error"]["next"].to_string().contains("--downgrade"), "{}", unordered.json);
    let pushed = lab.admin(&[
        "push",
        &images[0].display().to_string(),
        "--product",
        "os",
        "--version",
        "1",
        "--channel",
        "stable",
    ]);
    assert_eq!(pushed.code, CONFLICT, "a push that moves a channel is no way around: {}", pushed.stderr);
    let thief = lab.path("thief.token").display().to_string();
    lab.admin(&["token", "create", "--scope", "channel", "--label", "thief", "--out", &thief]).ok();
    let ordered = lab.admin(&["channel", "set", "os:stable", "1", "--downgrade", "--token-file", &thief]);
    assert_eq!(ordered.code, REFUSED, "{}", ordered.stderr);

    // Although the move is signed, the device keeps its release: nothing is written or fetched.
    lead_back(&mut lab, "stable", "1");
    let before = fingerprint(&lab.path(""), "d");
    let served = lab.metric("distd_quic_chunk_bytes_total");
    refused(&lab.pull("d", "os:stable", &out, &[]), "3", "1");
    refused(&plan(&lab, "os:stable", &out, &[]), "3", "1");
    // The channel counts, whatever place the release is for.
    refused(&lab.pull("d", "os:stable", &lab.path("elsewhere"), &[&out]), "3", "1");
    refused(&lab.device("d", &["plan", "os:stable"]), "3", "1");
    let origin_apart = |mut all: std::collections::BTreeMap<PathBuf, String>| {
        all.retain(|path, _| {
            !path.starts_with("origin") && !path.starts_with("origin.log") && !path.starts_with("curl.config")
        });
        all
    };
    assert_eq!(origin_apart(fingerprint(&lab.path(""), "d")), origin_apart(before));
    assert_eq!(lab.metric("distd_quic_chunk_bytes_total"), served);
    assert!(same(&images[2], &out));
    // A device that never had a later release has nothing to compare with.
    lab.enroll("fresh", lab.quic());
    lab.pull("fresh", "os:stable", &lab.path("fresh-slot"), &[]).ok();

    // With an order the device goes back, and says so.
    let set = lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
    assert!(set.json["downgrade_from"].is_u64(), "{}", set.json);
    let planned = plan(&lab, "os:stable", &out, &[]).ok();
    assert_eq!(planned.json["downgraded_from"], "3");
    let back = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!((&back.json["downgraded_from"], &back.json["version"]), (&json!("3"), &json!("1")));
    assert!(same(&images[0], &out));
    let again = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!((&again.json["already_there"], &again.json["downgraded_from"]), (&json!(true), &Value::Null));

    // The order was for that step: moving on to 2 is a step back for a device that has 3.
    assert_eq!(lab.admin(&["channel", "set", "os:stable", "2"]).code, CONFLICT);
    lab.admin(&["channel", "set", "os:stable", "3"]).ok();
    let on = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!(on.json["downgraded_from"], Value::Null);
    assert!(same(&images[2], &out));

    // The history says who did what, newest first.
    let history = lab.admin(&["channel", "history", "os:stable"]).ok().json;
    let changes = history["changes"].as_array().expect("a list");
    let line = |c: &Value| (c["from"].clone(), c["to"].clone(), c["downgrade"].clone());
    let lines: Vec<_> = changes.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            (json!("1"), json!("3"), json!(false)),
            (json!("1"), json!("1"), json!(true)),
            (Value::Null, json!("3"), json!(false)),
        ]
    );
    assert!(changes.iter().all(|c| c["token"].is_string() && c["label"].is_string()), "{history}");
    let newest = lab.admin(&["channel", "history", "os:stable", "--limit", "1"]).ok().json;
    assert_eq!(newest["changes"].as_array().expect("a list")[..], changes[..1]);
    assert_eq!(lab.admin(&["channel", "history", "os:none"]).code, 3);
    let mut text = Command::new(distd_tests::lab::binary("distd"));
    text.arg("--data").arg(lab.path("admin")).args(["channel", "history", "os:stable"]);
    let text = String::from_utf8(text.output().expect("run distd").stdout).expect("text");
    assert!(text.starts_with("WHEN") && text.contains("ordered"), "{text}");
}

#[test]
fn a_downgrade_order_does_not_cover_later_releases() {
    let (lab, _) = lab();
    let out = lab.path("slot");
    lab.pull("d", "os:stable", &out, &[]).ok();
    lab.admin(&["channel", "set", "os:stable", "2", "--downgrade"]).ok();
    // Made a second after the order or in the same second: a later number.
    let four = lab.path("image-4");
    fs::write(&four, Rng::new(4).bytes(300_000)).expect("write");
    lab.push(&four, "os", "4").ok();
    lab.pull("d", "os@4", &out, &[]).ok();
    refused(&lab.pull("d", "os:stable", &out, &[]), "4", "2");
    assert!(same(&four, &out));
    // Ordered once more, for release 4 too.
    lab.admin(&["channel", "set", "os:stable", "2", "--downgrade"]).ok();
    let back = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!(back.json["downgraded_from"], "4");
}

#[test]
fn a_named_version_and_the_devices_policy_decide_too() {
    let (mut lab, images) = lab();
    let out = lab.path("slot");
    lab.pull("d", "os:stable", &out, &[]).ok();
    lead_back(&mut lab, "stable", "2");
    refused(&lab.pull("d", "os:stable", &out, &[]), "3", "2");
    // Naming a version is a choice: the device goes back and forward, and the channel's memory
    // stays.
    lab.pull("d", "os@1", &out, &[]).ok();
    assert!(same(&images[0], &out));
    refused(&lab.pull("d", "os:stable", &out, &[]), "3", "2");
    let allowed = Outcome::of(
        lab.pull_command("d", "os:stable", &out, &["--allow-downgrade"]).output().expect("run distd"),
    );
    assert_eq!(allowed.ok().json["downgraded_from"], "3");
    assert!(same(&images[1], &out));
    lab.pull("d", "os:stable", &out, &[]).ok();

    // Policy "never": not even by order, until the user allows it.
    let policy = |device: &str, word: &str| {
        lab.enroll(device, lab.quic());
        lab.configure(device, &format!("[policy]\ndowngrade = \"{word}\"\n"));
    };
    policy("never", "never");
    policy("always", "always");
    policy("misspelt", "sometimes");
    assert_eq!(lab.pull("misspelt", "os:stable", &lab.path("x"), &[]).code, LOCAL);
    let (never, always) = (lab.path("slot-never"), lab.path("slot-always"));
    lab.pull("never", "os:stable", &never, &[]).ok();
    lab.pull("always", "os:stable", &always, &[]).ok();
    lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
    let stays = lab.pull("never", "os:stable", &never, &[]);
    refused(&stays, "2", "1");
    assert!(stays.stderr.contains("never"), "{}", stays.stderr);
    assert!(same(&images[1], &never));
    let flag = lab.pull_command("never", "os:stable", &never, &["--allow-downgrade"]).output();
    Outcome::of(flag.expect("run distd")).ok();
    lab.admin(&["channel", "set", "os:stable", "3"]).ok();
    lab.pull("always", "os:stable", &always, &[]).ok();
    lead_back(&mut lab, "stable", "1");
    assert_eq!(lab.pull("always", "os:stable", &always, &[]).ok().json["downgraded_from"], "3");
    assert!(same(&images[0], &always));
}

#[test]
fn the_older_of_two_slots_does_not_permit_a_downgrade() {
    let (mut lab, images) = lab();
    let (a, b) = (lab.path("slot-a"), lab.path("slot-b"));
    lab.admin(&["channel", "rm", "os:stable"]).ok();
    lab.admin(&["channel", "set", "os:beta", "2"]).ok();
    lab.pull("d", "os:beta", &a, &[]).ok();
    lab.admin(&["channel", "set", "os:beta", "3"]).ok();
    lab.pull("d", "os:beta", &b, &[&a]).ok();
    lead_back(&mut lab, "beta", "2");
    // Slot a holds exactly that release; accepting it as an update would boot the device back.
    refused(&lab.pull("d", "os:beta", &a, &[]), "3", "2");
    refused(&lab.pull("d", "os:beta", &b, &[]), "3", "2");
    assert!(same(&images[1], &a) && same(&images[2], &b));
    lab.admin(&["channel", "set", "os:beta", "2", "--downgrade"]).ok();
    let back = lab.pull("d", "os:beta", &a, &[]).ok();
    assert_eq!((&back.json["already_there"], &back.json["downgraded_from"]), (&json!(true), &json!("3")));
    let other = lab.pull("d", "os:beta", &b, &[]).ok();
    assert_eq!(other.json["downgraded_from"], "3", "what is in the slot counts too");
}

#[test]
fn downgrade_rules_apply_to_trees_and_block_devices_too() {
    let mut lab = Lab::start();
    for version in ["1", "2"] {
        let tree = lab.path(&format!("tree{version}"));
        fs::create_dir(&tree).expect("mkdir");
        fs::write(tree.join("conf"), version.repeat(100)).expect("write");
        lab.push(&tree, "t", version).ok();
        let image = lab.path(&format!("image{version}"));
        fs::write(&image, Rng::new(version.len() as u64 + 40).bytes(1 << 20)).expect("write");
        fs::write(&image, [version.as_bytes(), &fs::read(&image).expect("read")[1..]].concat())
            .expect("write");
        lab.push(&image, "os", version).ok();
    }
    for product in ["t", "os"] {
        lab.admin(&["channel", "set", &format!("{product}:stable"), "2"]).ok();
    }
    lab.enroll("d", lab.quic());
    let tree = lab.path("tree");
    lab.pull("d", "t:stable", &tree, &[]).ok();
    let disk = can_mount().then(|| Loop::new(&lab.path("disk"), 2 << 20));
    if let Some(disk) = &disk {
        lab.pull("d", "os:stable", disk.path(), &[]).ok();
    }
    lead_back(&mut lab, "stable", "1");
    refused(&lab.pull("d", "t:stable", &tree, &[]), "2", "1");
    refused(&plan(&lab, "t:stable", &tree, &[]), "2", "1");
    assert_eq!(fs::read(tree.join("conf")).expect("read"), [b'2'; 100]);
    lab.admin(&["channel", "set", "t:stable", "1", "--downgrade"]).ok();
    lab.pull("d", "t:stable", &tree, &[]).ok();
    assert_eq!(fs::read(tree.join("conf")).expect("read"), [b'1'; 100]);
    if let Some(disk) = &disk {
        let first = |path: &Path| fs::read(path).expect("read")[0];
        refused(&lab.pull("d", "os:stable", disk.path(), &[]), "2", "1");
        refused(&plan(&lab, "os:stable", disk.path(), &[]), "2", "1");
        assert_eq!(first(&lab.path("disk")), b'2');
        lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
        lab.pull("d", "os:stable", disk.path(), &[]).ok();
        assert_eq!(first(&lab.path("disk")), b'1');
    }
}

/// A pull of `os:stable` that is killed at the call `call` on `path`, in any thread.
fn killed(lab: &Lab, out: &Path, call: &str, path: &str) {
    let pull = lab.pull_command("d", "os:stable", out, &["--no-share"]);
    let mut strace = Command::new("strace");
    // Without seccomp: with it strace injects nothing in a thread that made the call with another
    // path before.
    strace.args(["-f", "-qq", "-o"]).arg(lab.path("trace"));
    strace.args(["-e", &format!("trace={call}"), "-P", path]);
    strace.args(["-e", &format!("inject={call}:signal=KILL:when=1+"), "--"]);
    strace.arg(pull.get_program()).args(pull.get_args());
    let killed = faults::run(strace, &lab.path(""));
    assert_eq!(killed.code, -1, "not killed at {call} of {path}: {}", killed.stderr);
}

#[test]
fn a_kill_at_the_end_of_a_pull_loses_no_memory_of_releases() {
    if !faults::can_trace() {
        return;
    }
    let (mut lab, images) = lab();
    lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
    let out = lab.path("slot");
    let text = |path: PathBuf| path.display().to_string();
    // Points right before and at each change between the last check and the end.
    let points = [
        ("rename", text(lab.path("d/releases.json.part"))),
        ("fsync", text(lab.path("d/releases.json.part"))),
        ("rename", text(lab.path("slot.distd-part"))),
        ("rename", text(lab.path("slot.distd-part-manifest"))),
        ("rename", text(lab.path("d/installed.json.part"))),
    ];
    for (call, path) in points {
        // From 1, to which the order led, on to 3.
        Outcome::of(
            lab.pull_command("d", "os:stable", &out, &["--allow-downgrade"]).output().expect("run distd"),
        )
        .ok();
        assert!(same(&images[0], &out));
        lab.admin(&["channel", "set", "os:stable", "3"]).ok();
        let point = format!("{call} of {path}");
        killed(&lab, &out, call, &path);
        let arrived = same(&images[2], &out);
        assert!(arrived || same(&images[0], &out), "{point}: one or the other");
        lead_back(&mut lab, "stable", "1");
        let back = lab.pull("d", "os:stable", &out, &[]);
        if arrived {
            refused(&back, "3", "1");
        } else {
            assert!([0, REFUSED].contains(&back.code), "{point}: {}", back.stderr);
        }
        lab.admin(&["channel", "set", "os:stable", "3"]).ok();
        lab.pull("d", "os:stable", &out, &[]).ok();
        assert!(same(&images[2], &out), "{point}");
        lead_back(&mut lab, "stable", "1");
        refused(&lab.pull("d", "os:stable", &out, &[]), "3", "1");
    }
    // Killed on the way back, the device remembers the later of both.
    lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
    killed(&lab, &out, "rename", &text(lab.path("slot.distd-part-manifest")));
    lead_back(&mut lab, "stable", "2");
    refused(&lab.pull("d", "os:stable", &out, &[]), "3", "2");
}

#[test]
fn a_missing_or_damaged_memory_does_not_stop_a_pull_that_is_told_to_continue() {
    let (lab, images) = lab();
    let out = lab.path("slot");
    lab.pull("d", "os:stable", &out, &[]).ok();
    let state = lab.path("d/releases.json");
    assert_eq!(
        fs::metadata(&state)
            .map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777)
            .expect("stat"),
        0o600
    );
    // A device of an earlier release has no memory; the first pull remembers the release in place.
    fs::remove_file(&state).expect("remove");
    let there = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!(there.json["already_there"], true);
    assert!(state.exists());
    fs::write(&state, "{\"channels\": [").expect("write");
    for outcome in [lab.pull("d", "os:stable", &out, &[]), plan(&lab, "os:stable", &out, &[])] {
        assert_eq!(outcome.code, LOCAL, "{}", outcome.stderr);
        assert!(
            outcome.stderr.contains("releases.json") && outcome.stderr.contains("--allow-downgrade"),
            "{}",
            outcome.stderr
        );
    }
    lab.pull("d", "os@2", &out, &[]).ok();
    assert!(same(&images[1], &out));
    let mended = lab.pull_command("d", "os:stable", &out, &["--allow-downgrade"]).output();
    Outcome::of(mended.expect("run distd")).ok();
    lab.pull("d", "os:stable", &out, &[]).ok();
    assert!(same(&images[2], &out));
}

#[test]
fn a_rebuilt_database_keeps_the_order_of_releases_and_an_order_in_force() {
    let (mut lab, images) = lab();
    let out = lab.path("slot");
    lab.pull("d", "os:stable", &out, &[]).ok();
    lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
    let numbers = |lab: &Lab| -> Vec<(Value, Value)> {
        let all = lab.admin(&["release", "ls", "os"]).ok().json;
        all["releases"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|r| (r["version"].clone(), r["sequence"].clone()))
            .collect()
    };
    let before = numbers(&lab);
    lab.stop_origin();
    for end in ["", "-wal", "-shm"] {
        let path = lab.path(&format!("origin/distd.sqlite{end}"));
        if path.exists() {
            fs::remove_file(path).expect("remove");
        }
    }
    let mut fsck = Command::new(distd_tests::lab::binary("distd-server"));
    fsck.args(["fsck", "--repair", "--data"]).arg(lab.path("origin"));
    assert!(fsck.status().expect("run distd-server").success());
    lab.start_origin();
    // Grants were in the database alone.
    lab.admin(&["grant", "add", "everyone", "*", "--by-certificate"]).ok();
    assert_eq!(numbers(&lab), before);
    // The channel's past is lost; the order reached up to all releases that existed.
    assert_eq!(lab.admin(&["channel", "set", "os:stable", "2"]).code, CONFLICT);
    let token = lab.join_token("leaf", 1);
    lab.device("d", &["enroll", "--parent", lab.quic(), "--token", &token]).ok();
    let back = lab.pull("d", "os:stable", &out, &[]).ok();
    assert_eq!(back.json["downgraded_from"], "3");
    assert!(same(&images[0], &out));
    let history = lab.admin(&["channel", "history", "os:stable"]).ok().json;
    assert_eq!((&history["changes"][0]["to"], &history["changes"][0]["token"]), (&json!("1"), &Value::Null));
    // A new release has a higher number than all before.
    let four = lab.path("image-4");
    fs::write(&four, Rng::new(4).bytes(300_000)).expect("write");
    lab.push(&four, "os", "4").ok();
    lab.admin(&["channel", "set", "os:stable", "4"]).ok();
    lab.pull("d", "os:stable", &out, &[]).ok();
    assert!(same(&four, &out));
}
