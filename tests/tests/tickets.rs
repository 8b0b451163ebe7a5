//! Shares by ticket: a file or directory goes from one machine to others, of no realm and of one.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use distd_tests::lab::{Lab, Outcome, Running, binary, run, same, wait_until};
use distd_tests::{Rng, artifacts};

const USAGE: i32 = 2;
const REFUSED: i32 = 4;
const CONFLICT: i32 = 5;
const NETWORK: i32 = 6;
const INTEGRITY: i32 = 8;
const UNUSABLE: i32 = 9;

/// Bytes that a slow fetcher receives each second: a fetch lasts until the others have begun.
const SLOW: &str = "[limits]\ndownload_bytes_per_second = 4000000\n";

#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(says), "{:?} is not in: {}", says, outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

/// Machines without a realm, each with a directory.
struct Machines(tempfile::TempDir);

impl Machines {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, machine: &str) -> Command {
        let mut command = Command::new(binary("distd"));
        command.arg("--json").arg("--data").arg(self.path(machine)).stdin(Stdio::null());
        command
    }

    /// Gives a machine settings.
    fn configure(&self, machine: &str, settings: &str) {
        let dir = self.path(machine);
        fs::create_dir_all(&dir).expect("mkdir");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod");
        let path = dir.join("client.toml");
        fs::write(&path, settings).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    fn share(&self, path: &Path, args: &[&str]) -> Sharer {
        let mut command = self.command("sharer");
        command.arg("share").arg(path).args(["--listen", "127.0.0.1:0"]).args(args);
        Sharer::start(command)
    }

    fn fetch_command(&self, machine: &str, ticket: &str, out: &Path, args: &[&str]) -> Command {
        let mut command = self.command(machine);
        command.args(["fetch", ticket, "--listen", "127.0.0.1:0", "--out"]).arg(out).args(args);
        command
    }

    fn fetch(&self, machine: &str, ticket: &str, out: &Path, args: &[&str]) -> Outcome {
        run(&mut self.fetch_command(machine, ticket, out, args))
    }

    /// A file of random bytes.
    fn file(&self, name: &str, len: usize, rng_seed: u64) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, Rng::announced(name, rng_seed).bytes(len)).expect("write");
        path
    }

    /// Names in the directory that begin with `start`.
    fn left(&self, start: &str) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).expect("list").flatten();
        let mut left: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into()).collect();
        left.retain(|name| name.starts_with(start));
        left.sort();
        left
    }
}

/// A running share.
struct Sharer {
    child: Option<Child>,
    ticket: String,
}

impl Sharer {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the share");
        let out = child.stdout.as_mut().expect("piped");
        let mut ticket = Vec::new();
        let mut byte = [0];
        while out.read(&mut byte).expect("read the ticket") == 1 && byte[0] != b'\n' {
            ticket.push(byte[0]);
        }
        Self { child: Some(child), ticket: String::from_utf8(ticket).expect("ASCII") }
    }

    fn id(&self) -> u32 {
        self.child.as_ref().expect("runs").id()
    }

    /// Waits for the share to end by itself.
    fn wait(mut self) -> Outcome {
        let child = self.child.take().expect("waited for once");
        Outcome::of(child.wait_with_output().expect("wait for the share"))
    }

    /// Ends the share as ctrl-c does.
    fn stop(self) -> Outcome {
        let pid = rustix::process::Pid::from_raw(self.id().cast_signed()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        self.wait()
    }

    /// Kills the share as a power cut would.
    fn kill(mut self) {
        let mut child = self.child.take().expect("killed once");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Peak resident memory so far, bytes.
    fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the share runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel reports it");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
        kib * 1024
    }
}

impl Drop for Sharer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_file_of_any_size_arrives_and_is_done_at_once_the_second_time() {
    let machines = Machines::new();
    for (name, len) in [("empty", 0), ("one", 1), ("some", 5_000_000)] {
        let file = machines.file(name, len, 1);
        let share = machines.share(&file, &[]);
        let out = machines.path("out");
        let first = machines.fetch("f", &share.ticket, &out, &[]).ok();
        assert!(same(&out, &file), "{name}");
        assert_eq!(first.number("fetched_bytes"), len as u64);
        assert_eq!(first.json["already_there"], false);
        let again = machines.fetch("f", &share.ticket, &out, &[]).ok();
        assert_eq!(again.json["already_there"], true);
        assert!(again.number("wire_bytes") < 100_000, "{}", again.json);
        // The artifact alone is left.
        assert_eq!(machines.left("out"), ["out"]);
        fs::remove_file(&out).expect("remove");
        let said = share.stop().ok();
        assert_eq!(said.json["ended"], "ended");
        assert_eq!(said.number("completed"), 2);
    }
    assert!(!machines.path("f").exists(), "nothing is kept of a fetch");
}

#[test]
fn without_out_the_name_in_the_ticket_is_used() {
    let machines = Machines::new();
    let file = machines.file("named ä.bin", 1000, 2);
    let share = machines.share(&file, &[]);
    let dir = machines.path("there");
    fs::create_dir(&dir).expect("mkdir");
    let mut command = machines.command("f");
    command.current_dir(&dir).args(["fetch", &share.ticket]);
    run(&mut command).ok();
    assert!(same(&dir.join("named ä.bin"), &file));
}

#[test]
fn a_ticket_is_shown_without_a_connection() {
    let machines = Machines::new();
    let file = machines.file("image.iso", 70_000, 3);
    let share = machines.share(&file, &["--ttl", "90s", "--once", "--address", "nas.example:7"]);
    let ticket = share.ticket.clone();
    share.kill();
    let shown = run(machines.command("f").args(["ticket", "show", &ticket])).ok();
    assert_eq!(shown.json["name"], "image.iso");
    assert_eq!(shown.json["kind"], "file");
    assert_eq!(shown.number("bytes"), 70_000);
    assert_eq!(shown.json["once"], true);
    assert_eq!(shown.json["addresses"][0], "nas.example:7");
    assert_eq!(shown.json["for"], serde_json::Value::Null);
    let mut people = Command::new(binary("distd"));
    people.arg("--data").arg(machines.path("f")).args(["ticket", "show", "--qr", &ticket]);
    let drawn = run(&mut people).ok();
    assert!(drawn.stderr.contains('\u{2588}') && drawn.stdout.contains("image.iso"), "{}", drawn.stderr);
}

#[test]
fn a_name_with_a_meaning_needs_a_path_of_the_users() {
    let machines = Machines::new();
    let file = machines.file(".profile", 1000, 5);
    let share = machines.share(&file, &[]);
    let here = machines.path("home");
    fs::create_dir(&here).expect("mkdir");
    let mut command = machines.command("f");
    command.current_dir(&here).args(["fetch", &share.ticket, "--listen", "127.0.0.1:0"]);
    fails(&run(&mut command), USAGE, "--out PATH");
    assert_eq!(fs::read_dir(&here).expect("list").count(), 0);
    machines.fetch("f", &share.ticket, &here.join(".profile"), &[]).ok();
}

#[test]
fn wrong_tickets_are_refused_and_nothing_is_kept() {
    let machines = Machines::new();
    let file = machines.file("file", 300_000, 4);
    let share = machines.share(&file, &["--ttl", "1h"]);
    let out = machines.path("out");
    let ticket = share.ticket.clone();
    let fetch = |ticket: &str, args: &[&str]| machines.fetch("f", ticket, &out, args);
    fails(&fetch("hello", &[]), USAGE, "this is no ticket");
    fails(&fetch(&ticket[..ticket.len() - 5], &[]), USAGE, "typo");
    let mut typo = ticket.clone().into_bytes();
    typo[100] = if typo[100] == b'a' { b'b' } else { b'a' };
    fails(&fetch(&String::from_utf8(typo).expect("ASCII"), &[]), USAGE, "typo");
    // A ticket that was changed, with the right checksum.
    let mut forged = distd_core::ticket::SignedTicket::from_text(&ticket).expect("a ticket");
    forged.ticket.not_after += 1;
    forged.body = forged.ticket.encode();
    fails(&fetch(&forged.to_text(), &[]), REFUSED, "forged");
    fails(&fetch(&ticket, &["--expect", &"ab".repeat(32)]), INTEGRITY, "not the expected");
    fails(&fetch(&ticket, &["--expect", "abc"]), USAGE, "64 hexadecimal digits");
    // Another share at the same address.
    let at = |share: &str| {
        let shown = run(machines.command("f").args(["ticket", "show", share])).ok();
        shown.json["addresses"][0].as_str().expect("an address").to_owned()
    };
    let other = machines.share(&file, &[]);
    fails(&fetch(&ticket, &["--address", &at(&other.ticket)]), REFUSED, "not the sharer of this ticket");
    assert_eq!(machines.left("out"), Vec::<String>::new());
    // Something else is at the target.
    fs::write(&out, "mine").expect("write");
    fails(&fetch(&ticket, &[]), CONFLICT, "exists with other bytes");
    assert_eq!(fs::read(&out).expect("read"), b"mine");
    assert_eq!(machines.left("out"), ["out"]);
    fetch(&ticket, &["--force"]).ok();
    assert!(same(&out, &file));
    let blake3 = fetch(&ticket, &[]).ok().json["blake3"].as_str().expect("a hash").to_owned();
    fetch(&ticket, &["--expect", &blake3]).ok();
    // A part proves nothing of the hash of the whole, which the manifest only states.
    let cat = |expected: &str| {
        let args = ["cat", &ticket, "--range", "0-9", "--expect", expected];
        machines.command("f").args(args).output().expect("run distd").status.code()
    };
    assert_eq!(cat(&blake3), Some(INTEGRITY));
    let shown = run(machines.command("f").args(["ticket", "show", &ticket])).ok();
    assert_eq!(cat(shown.json["manifest"].as_str().expect("an id")), Some(0));
    share.stop().ok();
    fs::remove_file(&out).expect("remove");
    fails(&fetch(&ticket, &[]), NETWORK, "no address of the sharer could be reached");
    assert_eq!(machines.left("out"), Vec::<String>::new());
}

#[test]
fn a_share_ends_with_its_time_and_its_ticket_too() {
    let machines = Machines::new();
    let file = machines.file("file", 1000, 5);
    let share = machines.share(&file, &["--ttl", "1s"]);
    let ticket = share.ticket.clone();
    assert_eq!(share.wait().ok().json["ended"], "expired");
    let late = machines.fetch("f", &ticket, &machines.path("out"), &[]);
    fails(&late, REFUSED, "the ticket's time was over");
}

#[test]
fn a_share_for_one_fetch_ends_with_it() {
    let machines = Machines::new();
    let file = machines.file("file", 2_000_000, 6);
    let share = machines.share(&file, &["--once"]);
    machines.fetch("f", &share.ticket, &machines.path("out"), &["--no-seed"]).ok();
    let said = share.wait().ok();
    assert_eq!((said.json["ended"].as_str(), said.number("completed")), (Some("fetched"), 1));
}

#[test]
fn a_killed_fetch_resumes_and_fetches_no_verified_byte_twice() {
    let machines = Machines::new();
    let file = machines.file("file", 20_000_000, 7);
    let share = machines.share(&file, &[]);
    machines.configure("f", SLOW);
    let out = machines.path("out");
    let mut fetch = Running::start(machines.fetch_command("f", &share.ticket, &out, &["--no-seed"]));
    let journal = machines.path("out.distd-part-journal");
    wait_until("some progress is durable", || fs::metadata(&journal).is_ok_and(|meta| meta.len() > 0));
    fetch.kill();
    let resumed = machines.fetch("g", &share.ticket, &out, &["--no-seed"]).ok();
    assert!(same(&out, &file));
    assert_eq!(resumed.json["resumed"], true);
    assert_eq!(resumed.number("refetched_verified_bytes"), 0);
    assert!(resumed.number("held_bytes") > 0, "{}", resumed.json);
    assert_eq!(resumed.number("held_bytes") + resumed.number("fetched_bytes"), 20_000_000);
    assert!(resumed.number("wire_bytes") < resumed.number("fetched_bytes") + 300_000, "{}", resumed.json);
    assert_eq!(machines.left("out"), ["out"]);
}

#[test]
fn fetchers_serve_each_other_unless_told_not_to() {
    let machines = Machines::new();
    let len = 16_000_000;
    let file = machines.file("file", len, 8);
    let all = |args: &[&str]| -> (u64, Vec<Outcome>) {
        let share = machines.share(&file, &[]);
        let start = |n: u32| {
            machines.configure(&format!("f{n}"), SLOW);
            let out = machines.path(&format!("out{n}"));
            Running::start(machines.fetch_command(&format!("f{n}"), &share.ticket, &out, args))
        };
        let running: Vec<Running> = (0..3).map(start).collect();
        let said: Vec<Outcome> = running.into_iter().map(|fetch| fetch.wait().ok()).collect();
        for n in 0..3 {
            let out = machines.path(&format!("out{n}"));
            assert!(same(&out, &file), "fetcher {n}");
            fs::remove_file(out).expect("remove");
        }
        (share.stop().ok().number("sent_bytes"), said)
    };
    let (together, said) = all(&[]);
    let served: u64 = said.iter().map(|outcome| outcome.number("served_bytes")).sum();
    println!("the sharer sent {together}, the fetchers {served}");
    assert!(together < 2 * len as u64 && served > len as u64, "{together}: {said:?}");
    let (apart, said) = all(&["--no-seed"]);
    assert!(apart >= 3 * len as u64, "{apart}");
    assert!(said.iter().all(|outcome| outcome.number("served_bytes") == 0));
}

#[test]
fn a_withdrawn_share_ends_a_running_fetch_and_keeps_what_came() {
    let machines = Machines::new();
    let file = machines.file("file", 20_000_000, 9);
    let share = machines.share(&file, &[]);
    machines.configure("f", SLOW);
    let out = machines.path("out");
    let fetch = Running::start(machines.fetch_command("f", &share.ticket, &out, &[]));
    let journal = machines.path("out.distd-part-journal");
    wait_until("some progress is durable", || fs::metadata(&journal).is_ok_and(|meta| meta.len() > 0));
    let begun = Instant::now();
    share.stop().ok();
    fails(&fetch.wait(), REFUSED, "the share was withdrawn");
    assert!(begun.elapsed() < Duration::from_secs(20), "the fetch waited {:?}", begun.elapsed());
    assert!(!out.exists());
    // The same artifact in another share continues where the first one ended.
    let share = machines.share(&file, &[]);
    let resumed = machines.fetch("g", &share.ticket, &out, &[]).ok();
    assert!(same(&out, &file) && resumed.number("held_bytes") > 0, "{}", resumed.json);
}

#[test]
fn a_file_that_changes_under_the_share_is_never_delivered_as_what_it_was() {
    let machines = Machines::new();
    let file = machines.file("file", 4_000_000, 10);
    let share = machines.share(&file, &[]);
    let target = fs::File::options().write(true).open(&file).expect("open");
    target.write_all_at(b"other bytes", 2_000_000).expect("write");
    let out = machines.path("out");
    fails(&machines.fetch("f", &share.ticket, &out, &[]), UNUSABLE, "changed since it was shared");
    assert!(!out.exists());
    target.set_len(1_000_000).expect("truncate");
    fails(&machines.fetch("f", &share.ticket, &out, &[]), UNUSABLE, "changed since it was shared");
    assert!(!out.exists());
}

#[test]
fn a_sparse_file_costs_neither_memory_nor_disk() {
    let machines = Machines::new();
    let path = machines.path("sparse");
    let file = fs::File::create(&path).expect("create");
    // Hashing 64 GiB takes minutes in a debug build; tests/bench/share.sh shares that much.
    file.set_len(512 << 20).expect("grow");
    file.write_all_at(b"data", 300 << 20).expect("write");
    let share = machines.share(&path, &[]);
    let out = machines.path("out");
    let said = machines.fetch("f", &share.ticket, &out, &[]).ok();
    assert!(said.number("wire_bytes") < 1_000_000, "{}", said.json);
    assert!(same(&out, &path));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&out).expect("stat"));
    assert!(blocks * 512 < 2_000_000, "{blocks} blocks");
    assert!(share.peak_bytes() < 128 << 20, "{} bytes", share.peak_bytes());
}

#[test]
fn a_directory_arrives_with_its_links_and_modes() {
    let machines = Machines::new();
    let root = machines.path("photos");
    fs::create_dir_all(root.join("a/b")).expect("mkdir");
    for n in 0..2000 {
        fs::write(root.join(format!("a/{n}")), format!("file {n}")).expect("write");
    }
    fs::write(root.join("a/b/big"), Rng::announced("big", 11).bytes(3_000_000)).expect("write");
    fs::write(root.join("run"), "#!/bin/sh\n").expect("write");
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).expect("chmod");
    symlink("../outside", root.join("a/link")).expect("symlink");
    let share = machines.share(&root, &[]);
    let out = machines.path("out");
    machines.fetch("f", &share.ticket, &out, &[]).ok();
    let same = Command::new("diff").args(["-r", "--no-dereference"]).arg(&root).arg(&out).status();
    assert!(same.expect("run diff").success());
    let mode = fs::metadata(out.join("run")).expect("stat").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(machines.left("out"), ["out"]);
    let again = machines.fetch("f", &share.ticket, &out, &[]).ok();
    assert_eq!(again.json["already_there"], true);
    // A directory with files of somebody else is left alone, whatever is said.
    fs::write(out.join("mine"), "mine").expect("write");
    let refused = machines.fetch("f", &share.ticket, &out, &[]);
    assert_ne!(refused.code, 0);
    assert!(out.join("mine").exists());
}

#[test]
fn a_part_of_a_file_is_read_without_the_rest() {
    let machines = Machines::new();
    let len = 8_000_000;
    let file = machines.file("file", len, 13);
    let bytes = fs::read(&file).expect("read");
    let share = machines.share(&file, &[]);
    let cat = |ticket: &str, args: &[&str]| {
        let mut command = Command::new(binary("distd"));
        command.arg("--data").arg(machines.path("f")).args(["cat", ticket]).args(args);
        command.output().expect("run distd")
    };
    for (range, part) in [
        ("0-0", 0..1),
        ("3999990-4000009", 3_999_990..4_000_010),
        ("-1", len - 1..len),
        ("7999000-", 7_999_000..len),
    ] {
        let got = cat(&share.ticket, &["--range", range]);
        assert!(got.status.success() && got.stdout == bytes[part], "{range}");
    }
    assert!(cat(&share.ticket, &[]).stdout == bytes);
    for (range, code) in [("8000000-", UNUSABLE), ("9-3", USAGE), ("all", USAGE)] {
        let got = cat(&share.ticket, &["--range", range]);
        assert_eq!((got.status.code(), got.stdout.len()), (Some(code), 0), "{range}");
    }
    let sent = share.stop().ok().number("sent_bytes");
    assert!(sent < len as u64 + 2_000_000, "{sent} bytes for the file and four small parts");
    let root = machines.path("dir");
    fs::create_dir_all(root.join("a")).expect("mkdir");
    fs::write(root.join("a/one"), b"one").expect("write");
    fs::write(root.join("a/two"), &bytes).expect("write");
    fs::hard_link(root.join("a/two"), root.join("z")).expect("link");
    let share = machines.share(&root, &[]);
    assert_eq!(cat(&share.ticket, &["--path", "a/one"]).stdout, b"one");
    assert!(cat(&share.ticket, &["--path", "z", "--range", "5000-5999"]).stdout == bytes[5000..6000]);
    assert_eq!(cat(&share.ticket, &["--path", "none"]).status.code(), Some(3));
    assert_eq!(cat(&share.ticket, &[]).status.code(), Some(USAGE));
    assert_eq!(cat(&share.ticket, &["--path", "../etc/passwd"]).status.code(), Some(USAGE));
}

/// A realm with three devices.
fn realm() -> (Lab, PathBuf) {
    let lab = Lab::start();
    for device in ["a", "b", "c"] {
        lab.enroll(device, lab.quic());
    }
    let (image, _) = artifacts::release_pair(lab.path("").as_path(), 12);
    (lab, image)
}

fn node_of(lab: &Lab, device: &str) -> String {
    let list = lab.admin(&["node", "ls"]).ok();
    let cert = fs::read(lab.path(device).join("node.pem")).expect("read");
    let der = distd_peer::trust::identity::certificate_from_pem(&cert).expect("a certificate");
    let node = distd_peer::trust::identity::CertInfo::parse(&der).expect("a node").node_id.to_string();
    assert!(list.stdout.contains(&node));
    node
}

#[test]
fn a_ticket_for_a_node_or_a_group_is_good_for_nobody_else() {
    let (lab, image) = realm();
    let node = node_of(&lab, "b");
    let share = |device: &str, args: &[&str]| {
        let mut command = lab.command(device);
        command.arg("share").arg(&image).args(["--listen", "127.0.0.1:0"]).args(args);
        Sharer::start(command)
    };
    let fetch = |device: &str, ticket: &str| {
        let out = lab.path(&format!("out-{device}"));
        let _ = fs::remove_file(&out);
        lab.device(device, &["fetch", ticket, "--out", &out.display().to_string()])
    };
    let for_node = share("a", &["--for", &node]);
    fetch("b", &for_node.ticket).ok();
    assert!(same(&lab.path("out-b"), &image));
    fails(&fetch("c", &for_node.ticket), REFUSED, "the ticket is for node");
    fails(&fetch("nobody", &for_node.ticket), REFUSED, "this machine is in none");
    let other = Lab::start();
    other.enroll("x", other.quic());
    let out = other.path("out").display().to_string();
    fails(&other.device("x", &["fetch", &for_node.ticket, "--out", &out]), REFUSED, "another realm");
    // The members of a group are asked of the origin, with the token of the release engineer.
    lab.admin(&["group", "set", "blue", "--nodes", &node]).ok();
    let admin = lab.path("admin/client.toml");
    let settings = fs::read_to_string(&admin).expect("read");
    let server = settings.lines().filter(|line| line.starts_with("server") || line.starts_with("token"));
    lab.configure("a", &format!("{}\n", server.collect::<Vec<_>>().join("\n")));
    let for_group = share("a", &["--for", "blue"]);
    fetch("b", &for_group.ticket).ok();
    fails(&fetch("c", &for_group.ticket), REFUSED, "the ticket is for other nodes");
    assert!(!lab.path("out-c").exists());
}

#[test]
fn an_agent_serves_shares_until_they_are_removed() {
    let (lab, image) = realm();
    let mut agent = lab.agent("a");
    let image_text = image.display().to_string();
    let shared = lab.device("a", &["share", &image_text, "--agent", "--listen", "127.0.0.1:0"]);
    let ticket = shared.ok().stdout.lines().next().expect("a ticket").to_owned();
    let list = lab.device("a", &["share", "--ls"]).ok();
    let id = list.json["shares"][0]["id"].as_str().expect("a share").to_owned();
    let out = lab.path("out");
    let out_text = out.display().to_string();
    let fetch = || {
        let _ = fs::remove_file(&out);
        lab.device("stranger", &["fetch", &ticket, "--out", &out_text])
    };
    wait_until("the agent serves the share", || fetch().code == 0);
    assert!(same(&out, &image));
    // The share outlives the agent's process.
    agent.kill();
    drop(agent);
    let _agent = lab.agent("a");
    wait_until("the agent serves the share again", || fetch().code == 0);
    lab.device("a", &["share", "--rm", &id]).ok();
    wait_until("the share is withdrawn", || fetch().code != 0);
    let gone = lab.device("a", &["share", "--rm", &id]);
    fails(&gone, 3, "no share");
    assert_eq!(lab.device("a", &["share", "--ls"]).ok().json["shares"].as_array().map(Vec::len), Some(0));
}
