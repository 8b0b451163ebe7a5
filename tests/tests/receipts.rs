//! Receipts of devices, their log, and the program that checks it without distd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::fleet::receipts::{Receipt, SignedReceipt};
use distd_core::fleet::report::{LogReport, Report, Running};
use distd_core::fleet::rollout::{RolloutId, point};
use distd_peer::clock::unix_now;
use distd_peer::trust::report::{ReportSigner, is_kept, question};
use distd_tests::lab::{Daemon, Lab, Outcome, binary, wait_within};
use distd_tests::leaf::Leaf;
use serde_bytes::ByteBuf;
use serde_json::Value;

const FOLLOWED: &str = "os:stable";

/// Longest wait: agents share two cores with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    wait_within(PATIENCE, Duration::from_millis(200), what, holds);
}

fn release(lab: &Lab, version: &str) {
    let path = lab.path(&format!("release-{version}"));
    fs::write(&path, version.repeat(100_000)).expect("write");
    lab.push(&path, "os", version).ok();
}

fn set_channel(lab: &Lab, version: &str) {
    lab.admin(&["channel", "set", FOLLOWED, version]).ok();
}

/// Starts the agent of a device that is enrolled.
fn follow(lab: &Lab, device: &str) -> Daemon {
    let mut command = lab.agent_command(device, "127.0.0.1:0");
    command.args(["--follow", FOLLOWED, "--follow-poll-seconds", "1", "--receipt-seconds", "2"]);
    command.arg("--follow-into").arg(lab.path("apps").join(device));
    Daemon::start(command, &lab.path(&format!("{device}.log")), "agent listening on ")
}

fn agents(lab: &Lab, devices: &[(&str, &str)]) -> Vec<Daemon> {
    fs::create_dir_all(lab.path("apps")).expect("a directory");
    let start = |(device, parent): &(&str, &str)| {
        lab.enroll_at(None, device, parent, &["--label", device]);
        follow(lab, device)
    };
    devices.iter().map(start).collect()
}

/// JSON of a file in the state directory of a node; null while it is missing.
fn kept(lab: &Lab, node: &str, file: &str) -> Value {
    let text = fs::read_to_string(lab.path(node).join(file)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Whether every receipt of a device, of which there are `count`, is known to be in the log.
fn is_proven(lab: &Lab, device: &str, count: u64) -> bool {
    let receipts = kept(lab, device, "receipts.json");
    receipts["number"] == count && receipts["waiting"] == serde_json::json!([])
}

fn id(lab: &Lab, label: &str) -> String {
    let nodes = lab.admin(&["node", "ls"]).ok().json;
    let nodes = nodes["nodes"].as_array().expect("a list").iter();
    let found = nodes.clone().find(|node| node["label"] == label).expect("a node");
    found["id"].as_str().expect("an id").to_owned()
}

fn fault(lab: &Lab, device: &str) -> String {
    let shown = lab.admin(&["fleet", "show", &id(lab, device)]).ok().json;
    shown["log"]["fault"].as_str().unwrap_or_default().to_owned()
}

fn export(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.path(name);
    lab.admin(&["receipts", "export", &path.display().to_string()]).ok();
    path
}

fn ca(lab: &Lab) -> PathBuf {
    lab.path("origin/realm/ca.pem")
}

/// Runs the program that shares no code with distd.
fn outside(lab: &Lab, export: &Path, heads: &[PathBuf]) -> Outcome {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/verify_receipts.py");
    let mut command = Command::new("python3");
    command.arg("-B").arg(program).arg(export).arg(ca(lab)).args(heads);
    Outcome::of(command.output().expect("run python3"))
}

/// Runs the check of the command line.
fn inside(lab: &Lab, export: &Path, heads: &[PathBuf]) -> Outcome {
    let (export, ca) = (export.display().to_string(), ca(lab).display().to_string());
    let heads: Vec<String> =
        heads.iter().flat_map(|head| ["--head".into(), head.display().to_string()]).collect();
    let heads = heads.iter().map(String::as_str);
    lab.admin(&["receipts", "verify", &export, "--ca", &ca].into_iter().chain(heads).collect::<Vec<_>>())
}

/// Asserts that both checks find the same faults; `words` must be in both, and in none for a log
/// that is right.
fn check(lab: &Lab, export: &Path, heads: &[PathBuf], words: &[&str]) {
    let (outside, inside) = (outside(lab, export, heads), inside(lab, export, heads));
    let codes = if words.is_empty() { (0, 0) } else { (1, 8) };
    let said = format!("{}{}\n{}{}", outside.stdout, outside.stderr, inside.stdout, inside.stderr);
    assert_eq!((outside.code, inside.code), codes, "{said}");
    for word in words {
        assert!(outside.stdout.contains(word) && inside.stderr.contains(word), "{word}: {said}");
    }
}

/// Does what somebody with the origin's machine can do: takes the entry `number` out, and builds
/// the log and its tree again as if it had never been there.
fn rebuild_without(lab: &Lab, number: usize) {
    const PROGRAM: &str = r#"
import hashlib, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
    db.execute(f"DROP TRIGGER {name}")
rows = db.execute("SELECT at, kind, subject, entry FROM receipt_log ORDER BY number").fetchall()
rows.pop(int(sys.argv[2]))
db.execute("DELETE FROM receipt_log")
db.execute("DELETE FROM receipt_tree")
levels = {}
for number, (at, kind, subject, entry) in enumerate(rows):
    hash = hashlib.sha256(b"\0" + entry).digest()
    db.execute("INSERT INTO receipt_log (number, hash, at, kind, subject, entry) VALUES (?, ?, ?, ?, ?, ?)",
               (number, hash, at, kind, subject, entry))
    levels[0, number] = hash
    level, place = 0, number
    while place % 2 == 1:
        hash = hashlib.sha256(b"\1" + levels[level, place - 1] + hash).digest()
        level, place = level + 1, place // 2
        levels[level, place] = hash
        db.execute("INSERT INTO receipt_tree (level, place, hash) VALUES (?, ?, ?)", (level, place, hash))
db.execute("UPDATE counters SET value = ? WHERE name = 'receipts'", (len(rows),))
db.commit()
"#;
    let database = lab.path("origin/distd.sqlite");
    let mut command = Command::new("python3");
    command.args(["-c", PROGRAM]).arg(database).arg(number.to_string());
    Outcome::of(command.output().expect("run python3")).ok();
    fs::remove_file(lab.path("origin/objects/log-head")).expect("the origin's own memory of its head");
}

/// Numbers of the entries with receipts in an export.
fn receipts_in(export: &Path) -> Vec<usize> {
    let text = fs::read_to_string(export).expect("the export");
    let rows = text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let is_receipt = |row: &Value| row["entry"].as_str().is_some_and(|entry| entry.starts_with("01"));
    rows.enumerate().filter(|(_, row)| is_receipt(row)).map(|(number, _)| number).collect()
}

/// The whole of it: a rollout on real agents, half of them behind a relay. The log is right, and
/// every device has the proof that its receipts are in it. Then the origin takes a receipt out.
#[test]
fn a_log_that_loses_a_receipt_is_refused_by_every_device_and_by_the_outside_program() {
    let mut lab = Lab::start();
    release(&lab, "1");
    set_channel(&lab, "1");
    let relay = lab.relay("relay", lab.quic());
    let direct = lab.quic().to_owned();
    let devices = [("one", direct.as_str()), ("two", &relay.addresses[0]), ("three", &direct)];
    let mut fleet = agents(&lab, &devices);
    for (device, _) in devices {
        wait_until("its first receipt is in the log", || is_proven(&lab, device, 1));
    }
    release(&lab, "2");
    let rollout = ["rollout", "start", FOLLOWED, "2", "--waves", "1,100%", "--soak", "1s"];
    lab.admin(&rollout).ok();
    for (device, _) in devices {
        wait_until("its second receipt is in the log", || is_proven(&lab, device, 2));
    }
    let ended = || lab.admin(&["rollout", "status", FOLLOWED]).ok().json["rollout"]["state"] == "complete";
    wait_until("the rollout ends", ended);
    let whole = export(&lab, "whole.jsonl");
    let heads = ["one", "two", "three", "relay"].map(|node| lab.path(node).join("log-head.json"));
    check(&lab, &whole, &heads, &[]);
    let said = outside(&lab, &whole, &heads).stdout;
    assert!(said.contains("6 receipts of 3 devices") && said.contains("os@2: 3 receipts"), "{said}");
    let listed = lab.admin(&["receipts", "ls"]).ok().json;
    let entries = listed["entries"].as_array().expect("a list").len();
    // Six receipts; the rollout began, opened two waves and was complete.
    assert_eq!(entries, 10, "{listed}");

    // A relay looks every 30 seconds.
    for node in ["one", "two", "three", "relay"] {
        wait_until("the node has the newest head", || kept(&lab, node, "log-head.json")["size"] == entries);
    }

    // One bit of the export is another one; a line is missing.
    let text = fs::read_to_string(&whole).expect("the export");
    let first = receipts_in(&whole)[0];
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[1 + first].rfind(r#""}"#).expect("the end of an entry");
    let mut changed = lines[1 + first].to_owned();
    let digit = if changed[last - 1..last] == *"0" { "1" } else { "0" };
    changed.replace_range(last - 1..last, digit);
    let forged = lab.path("forged.jsonl");
    fs::write(&forged, text.replace(lines[1 + first], &changed)).expect("write");
    assert_eq!((outside(&lab, &forged, &[]).code, inside(&lab, &forged, &[]).code), (1, 8));
    fs::write(&forged, text.replace(&format!("{}\n", lines[1 + first]), "")).expect("write");
    assert_eq!((outside(&lab, &forged, &[]).code, inside(&lab, &forged, &[]).code), (1, 8));

    // The origin hides that a device ran release 2, and signs the shorter log.
    let before = heads.clone().map(|path| fs::read(path).expect("a head"));
    lab.stop_origin();
    rebuild_without(&lab, *receipts_in(&whole).last().expect("a receipt"));
    lab.start_origin();
    for (device, _) in devices {
        wait_until("the device reports it", || fault(&lab, device).contains("shorter than before"));
        let evidence = kept(&lab, device, "log-evidence.json");
        assert!(evidence[0]["kept"]["size"].as_u64() > evidence[0]["seen"]["size"].as_u64(), "{evidence}");
    }
    wait_until("the relay has it too", || !kept(&lab, "relay", "log-evidence.json").is_null());
    assert_eq!(heads.clone().map(|path| fs::read(path).expect("a head")), before, "the true heads stay");
    assert!(fleet[0].log().contains("shorter than before"), "{}", fleet[0].log());
    let rebuilt = export(&lab, "rebuilt.jsonl");
    // In itself it has no fault but a gap that nobody sees at its end.
    check(&lab, &rebuilt, &[], &[]);
    check(&lab, &rebuilt, &heads[..1], &["is of a longer log: entries are gone"]);
    check(&lab, &rebuilt, &[lab.path("two").join("log-evidence.json")], &["entries are gone"]);

    // No device stops updating. The log grows past the heads, and is still another one.
    release(&lab, "3");
    set_channel(&lab, "3");
    for (device, _) in devices {
        let current = lab.path("apps").join(device).join("current");
        wait_until("the device installs release 3", || {
            fs::read_link(&current).is_ok_and(|to| to.ends_with("3"))
        });
    }
    let long = export(&lab, "long.jsonl");
    let grown = || lab.admin(&["receipts", "head"]).ok().number("size") > entries as u64;
    wait_until("the log is longer", grown);
    let grown = export(&lab, "grown.jsonl");
    assert_ne!(fs::read(&long).ok(), None);
    let said = outside(&lab, &grown, &heads[..1]);
    assert!(said.code == 1 && said.stdout.contains("the log was rewritten"), "{}", said.stdout);
    wait_until("a device has evidence of that", || {
        kept(&lab, "one", "log-evidence.json").to_string().contains("continues the one before")
    });
    fleet.iter_mut().for_each(Daemon::kill);
}

/// A device driven by the test that reports receipts.
struct Signer {
    leaf: Leaf,
    sequence: u64,
    number: u64,
}

impl Signer {
    async fn new(lab: &Lab, name: &str) -> Self {
        Self { leaf: Leaf::enrolled(lab, name).await, sequence: 0, number: 0 }
    }

    fn sign(&mut self, version: &str, rollout: Option<RolloutId>) -> SignedReceipt {
        self.number += 1;
        let receipt = Receipt {
            number: self.number,
            at: unix_now(),
            boot: [1; 16],
            manifest: None,
            rollout,
            wave: 0,
            product: "os".parse().expect("a name"),
            version: version.parse().expect("a name"),
            slot: None,
        };
        ReportSigner::new(&self.leaf.identity).and_then(|signer| signer.sign_receipt(receipt)).expect("signs")
    }

    /// Sends a report with receipts to the origin.
    async fn report(&mut self, lab: &Lab, receipts: &[&SignedReceipt]) {
        self.sequence += 1;
        let running = Running {
            product: "os".parse().expect("a name"),
            channel: "stable".parse().expect("a name"),
            version: Some("1".parse().expect("a name")),
            manifest: None,
            held: None,
            held_from: None,
        };
        let receipts = receipts.iter().map(|signed| ByteBuf::from(signed.for_report())).collect();
        let log = LogReport { receipts, ..LogReport::default() };
        let report = Report {
            sequence: self.sequence,
            boot: vec![1; 16],
            running: vec![running],
            log,
            ..Report::default()
        };
        let bytes: Bytes =
            ReportSigner::new(&self.leaf.identity).and_then(|s| s.sign(report)).expect("signs").bytes;
        let link = self.leaf.connect(lab.quic()).await.expect("connects");
        assert!(is_kept(&link.metadata(question(&[bytes])).await.expect("an answer")));
    }
}

fn size(lab: &Lab) -> u64 {
    lab.admin(&["receipts", "head"]).ok().number("size")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_ahead_of_its_wave_is_named_and_no_device_signs_for_another() {
    let lab = Lab::start();
    release(&lab, "1");
    set_channel(&lab, "1");
    let (mut a, mut b) = (Signer::new(&lab, "a").await, Signer::new(&lab, "b").await);
    let (of_a, of_b) = (a.sign("1", None), b.sign("1", None));
    // A receipt twice, in one report and in two, is one entry.
    a.report(&lab, &[&of_a, &of_a]).await;
    a.report(&lab, &[&of_a]).await;
    assert_eq!(size(&lab), 1);
    // A device with the receipt of another, which it overheard.
    a.report(&lab, &[&of_b]).await;
    assert_eq!(size(&lab), 1);
    b.report(&lab, &[&of_b]).await;
    assert_eq!(size(&lab), 2);

    release(&lab, "2");
    lab.admin(&["rollout", "start", FOLLOWED, "2", "--waves", "1,100%", "--soak", "1h"]).ok();
    let status = || lab.admin(&["rollout", "status", FOLLOWED]).ok().json;
    wait_until("the first wave opens", || !status()["waves"][0]["opened"].is_null());
    let rollout: RolloutId = status()["rollout"]["id"].as_str().expect("an id").parse().expect("an id");
    let at = |signer: &Signer| point(&rollout, &signer.leaf.identity.node_id());
    let (first, second) = if at(&a) < at(&b) { (&mut a, &mut b) } else { (&mut b, &mut a) };
    let signed = first.sign("2", Some(rollout));
    first.report(&lab, &[&signed]).await;
    check(&lab, &export(&lab, "right.jsonl"), &[], &[]);
    // The device of the second wave does not wait for it.
    let signed = second.sign("2", Some(rollout));
    second.report(&lab, &[&signed]).await;
    let node = second.leaf.identity.node_id();
    let ahead = format!("device {node} was ahead of its wave in rollout {rollout}");
    check(&lab, &export(&lab, "ahead.jsonl"), &[], &[&ahead]);

    // A device cannot fill the log.
    for _ in 0..20 {
        let many: Vec<_> = (0..4).map(|_| first.sign("1", None)).collect();
        first.report(&lab, &many.iter().collect::<Vec<_>>()).await;
    }
    let (all, text) = (export(&lab, "flood.jsonl"), id(&lab, "a"));
    let said = outside(&lab, &all, &[]).stdout;
    assert!(said.contains(&ahead), "{said} {text}");
    // Three receipts of the other device and events beside 64 of this one.
    assert_eq!(receipts_in(&all).len(), 64 + 2, "{said}");
}

/// The realm takes no receipts of a device: the device finds that out by itself.
#[test]
fn a_device_whose_receipts_are_left_out_says_so() {
    let lab = Lab::start_without_grants(&[]);
    lab.admin(&["grant", "add", "everyone", FOLLOWED, "--rights", "read,seed"]).ok();
    release(&lab, "1");
    set_channel(&lab, "1");
    let direct = lab.quic().to_owned();
    let agents = agents(&lab, &[("one", &direct)]);
    let hidden = || kept(&lab, "one", "receipts.json")["waiting"][0]["hidden"] == true;
    // Heads are signed at least every minute, and the receipt is sent twice.
    let deadline = Instant::now() + 2 * PATIENCE;
    while !hidden() {
        assert!(Instant::now() < deadline, "{}", kept(&lab, "one", "receipts.json"));
        std::thread::sleep(Duration::from_millis(500));
    }
    agents[0].wait_for("the realm's log hides a receipt of this device");
    // It may report again, and its receipt was not lost.
    lab.admin(&["grant", "add", "everyone", FOLLOWED]).ok();
    wait_until("the receipt is in the log", || is_proven(&lab, "one", 1));
    check(&lab, &export(&lab, "late.jsonl"), &[], &[]);
}

/// A database that was restored to an earlier state is no attack.
#[test]
fn a_log_of_a_restored_database_continues_under_another_id_and_devices_go_on() {
    let mut lab = Lab::start();
    release(&lab, "1");
    release(&lab, "2");
    set_channel(&lab, "1");
    let direct = lab.quic().to_owned();
    let _agents = agents(&lab, &[("one", &direct)]);
    wait_until("its first receipt is in the log", || is_proven(&lab, "one", 1));
    let files = ["distd.sqlite", "distd.sqlite-wal", "distd.sqlite-shm"];
    let copy = |lab: &Lab, from: &str, to: &str| {
        fs::create_dir_all(lab.path(to)).expect("a directory");
        for file in files {
            let _ = fs::remove_file(lab.path(to).join(file));
            if lab.path(from).join(file).exists() {
                fs::copy(lab.path(from).join(file), lab.path(to).join(file)).expect("copy");
            }
        }
    };
    lab.stop_origin();
    copy(&lab, "origin", "backup");
    lab.start_origin();
    set_channel(&lab, "2");
    wait_until("its second receipt is in the log", || is_proven(&lab, "one", 2));
    let before = lab.path("head-before.json");
    fs::copy(lab.path("one/log-head.json"), &before).expect("copy");
    lab.stop_origin();
    copy(&lab, "backup", "origin");
    lab.start_origin();
    lab.origin().wait_for("entries of the log of receipts are lost");
    wait_until("the device says so", || fault(&lab, "one").contains("begun anew"));
    let shown =
        |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).expect("a head")).expect("JSON");
    let now = lab.path("one/log-head.json");
    assert_ne!(shown(&now)["log"], shown(&before)["log"]);
    // The device goes on, and so does the log: it has the receipt again that was lost.
    wait_until("its second receipt is in the log again", || is_proven(&lab, "one", 2));
    let listed = lab.admin(&["receipts", "ls"]).ok().stdout;
    assert_eq!(receipts_in(&export(&lab, "again.jsonl")).len(), 2, "{listed}");
    release(&lab, "3");
    set_channel(&lab, "3");
    wait_until("its third receipt is in the log", || is_proven(&lab, "one", 3));
    let after = export(&lab, "after.jsonl");
    check(&lab, &after, &[now], &[]);
    assert!(outside(&lab, &after, &[]).stdout.contains("lost entries"));
    check(&lab, &after, &[before], &["is of another log"]);

    // Database and store of an earlier time: the origin itself remembers no later head.
    let (origin, backup) = (lab.path("origin"), lab.path("whole-backup"));
    let server = |command: &str| {
        let mut server = Command::new(binary("distd-server"));
        server.arg(command).arg(&backup).arg("--data").arg(&origin);
        let done = Outcome::of(server.output().expect("run distd-server"));
        assert_eq!(done.code, 0, "{}", done.stderr);
    };
    server("backup");
    release(&lab, "4");
    set_channel(&lab, "4");
    wait_until("its fourth receipt is in the log", || is_proven(&lab, "one", 4));
    let now = lab.path("one/log-head.json");
    let latest = shown(&now)["log"].clone();
    lab.stop_origin();
    fs::rename(&origin, lab.path("lost")).expect("rename");
    server("restore");
    lab.start_origin();
    wait_until("the device follows the log under its third id", || shown(&now)["log"] != latest);
    let faults = kept(&lab, "one", "log-evidence.json");
    let faults = faults.as_array().expect("a list").iter();
    assert!(
        faults.clone().all(|found| found["fault"].as_str().is_some_and(|text| text.contains("begun anew")))
    );
    check(&lab, &export(&lab, "restored.jsonl"), &[now], &[]);
}
