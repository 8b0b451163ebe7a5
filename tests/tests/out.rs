//! Revoked tokens and nodes and withdrawn releases stay out; and a disk that publishers have
//! filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::lab::{Lab, Outcome, same};
use distd_tests::rng::Rng;
use serde_json::Value;

fn artifact(lab: &Lab, seed: u64, len: usize) -> PathBuf {
    let path = lab.path(&format!("artifact-{seed}"));
    fs::write(&path, Rng::new(seed).bytes(len)).expect("write");
    path
}

fn enroll(lab: &Lab, device: &str, token: &str) -> Outcome {
    lab.device(device, &["enroll", "--parent", lab.quic(), "--token", token])
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().expect("a list").iter().map(|v| v.as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_join_token_is_listed_and_revoked_alone_or_with_its_node() {
    let lab = Lab::start();
    let make = |uses: &str| lab.admin(&["token", "join", "--uses", uses, "--label", "batch 7"]).ok().json;
    let made = make("5");
    let (token, id) = (made["token"].as_str().expect("a token"), made["id"].as_str().expect("an id"));
    enroll(&lab, "one", token).ok();
    let listed = lab.admin(&["token", "ls"]).ok().json;
    let join = &listed["join_tokens"][0];
    assert_eq!(
        (&join["id"], &join["nodes"], &join["uses_left"], &join["state"]),
        (&id.into(), &1.into(), &4.into(), &"valid".into())
    );

    // Only the node is revoked: a new key enrols with the same token.
    let nodes = lab.admin(&["node", "ls"]).ok().json;
    let node = nodes["nodes"][0]["id"].as_str().expect("an id").to_owned();
    lab.admin(&["node", "revoke", &node]).ok();
    assert_eq!(enroll(&lab, "one", token).code, 4, "its key is out");
    enroll(&lab, "two", token).ok();
    // The token is revoked too: neither a new node nor the node that enrolled with it before gets
    // in.
    let done = lab.admin(&["node", "revoke", &node, "--with-token"]).ok().json;
    assert_eq!(strings(&done["join_tokens"]), [id]);
    assert_eq!(enroll(&lab, "three", token).code, 4);
    assert_eq!(enroll(&lab, "two", token).code, 4);

    let other = make("1");
    let id = other["id"].as_str().expect("an id");
    lab.admin(&["token", "revoke", id]).ok();
    assert_eq!(enroll(&lab, "three", other["token"].as_str().expect("a token")).code, 4);
    let states: Vec<_> = lab.admin(&["token", "ls"]).ok().json["join_tokens"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|token| token["state"].clone())
        .collect();
    assert_eq!(states, ["revoked", "revoked"]);
    for unknown in [&["token", "revoke", "deadbeef"][..], &["node", "revoke", &"0".repeat(32)]] {
        let outcome = lab.admin(unknown);
        assert_eq!(outcome.code, 3, "{}", outcome.stderr);
        assert!(outcome.json["error"]["next"].to_string().contains("ls"), "{}", outcome.json);
    }
    for bad in [["--uses", "10001"], ["--expires", "91d"]] {
        let outcome = lab.admin(&[&["token", "join"][..], &bad].concat());
        assert_eq!(outcome.code, 2, "{bad:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_token_for_some_products_publishes_those_and_says_so() {
    let lab = Lab::start();
    let file = lab.path("team.token").display().to_string();
    let create = [
        "token",
        "create",
        "--scope",
        "publish,read",
        "--product",
        "app-*",
        "--label",
        "team",
        "--out",
        &file,
    ];
    lab.admin(&create).ok();
    let as_team = |args: &[&str]| lab.admin(&[args, &["--token-file", &file]].concat());
    let image = artifact(&lab, 1, 300_000).display().to_string();
    as_team(&["push", &image, "--product", "app-one", "--version", "1"]).ok();
    let refused = as_team(&["push", &image, "--product", "os", "--version", "1"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    let own = as_team(&["whoami"]).ok().json;
    assert_eq!(strings(&own["products"]), ["app-*"]);
    lab.admin(&["push", &image, "--product", "os", "--version", "1"]).ok();
    let listed = as_team(&["product", "ls"]).ok().json;
    assert_eq!(listed["products"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(as_team(&["release", "rm", "os@1"]).code, 4);

    // The list says that a token has expired.
    lab.admin(&["token", "create", "--scope", "read", "--label", "short", "--expires", "1s"]).ok();
    distd_tests::lab::wait_until("the token has expired", || {
        let listed = lab.admin(&["token", "ls"]).ok().json;
        let short = listed["tokens"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|token| token["label"] == "short")
            .cloned();
        short.expect("it is listed")["state"] == "expired"
    });
    lab.admin(&["logout"]).ok();
    assert_eq!(lab.admin(&["product", "ls"]).code, 2, "nothing is remembered");
}

#[test]
fn a_withdrawn_release_is_gone_for_devices_and_gives_its_space_back() {
    let mut lab = Lab::start();
    let (one, two) = (artifact(&lab, 2, 900_000), artifact(&lab, 3, 900_000));
    lab.push(&one, "os", "1").ok();
    lab.push(&two, "os", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.enroll("device", lab.quic());
    lab.pull("device", "os@1", &lab.path("out"), &[]).ok();
    let listed = lab.admin(&["release", "ls", "os"]).ok().json;
    let of = |version: &str| {
        let all = listed["releases"].as_array().expect("a list");
        all.iter().find(|release| release["version"] == version).expect("it is listed").clone()
    };
    assert_eq!(strings(&of("1")["channels"]), ["stable"]);

    let refused = lab.admin(&["release", "rm", "os@1"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.json["error"]["message"].to_string().contains("os:stable"), "{}", refused.json);
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    assert_eq!(lab.admin(&["channel", "ls"]).ok().json["channels"][0]["version"], "2");
    let before = lab.metric("distd_pack_bytes");
    lab.admin(&["release", "withdraw", "os@1"]).ok();
    assert_eq!(lab.metric("distd_pack_bytes"), before, "withdrawn bytes stay");
    assert_eq!(lab.pull("device", "os@1", &lab.path("again"), &[]).code, 3);
    let refused = lab.push(&one, "os", "1");
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.json["error"]["next"].to_string().contains("release restore os@1"), "{}", refused.json);
    lab.admin(&["release", "restore", "os@1"]).ok();
    lab.pull("device", "os@1", &lab.path("again"), &[]).ok();
    assert!(same(&one, &lab.path("again")));
    lab.admin(&["release", "rm", "os@1"]).ok();
    assert_eq!(lab.pull("device", "os@1", &lab.path("again"), &[]).code, 3);
    assert_eq!(lab.metric("distd_pack_bytes"), before, "within the grace its bytes stay");
    lab.admin(&["release", "rm", "os@1", "--now"]).ok();
    assert!(lab.metric("distd_pack_bytes") * 3 < before * 2, "a half of it came back");
    assert_eq!(lab.admin(&["release", "rm", "os@1"]).code, 3);
    let gone = lab.pull("device", "os@1", &lab.path("again"), &[]);
    assert_eq!(gone.code, 3, "{}", gone.stderr);
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&two, &lab.path("out")));
    // A restart changes nothing, and the version may be pushed again.
    lab.restart_origin();
    assert_eq!(lab.admin(&["release", "show", "os@1"]).code, 3);
    lab.admin(&["channel", "rm", "os:stable"]).ok();
    assert_eq!(lab.pull("device", "os:stable", &lab.path("out"), &[]).code, 3);
    lab.push(&one, "os", "1").ok();
    lab.pull("device", "os@1", &lab.path("again"), &[]).ok();
    assert!(same(&one, &lab.path("again")));
}

/// A file system in memory; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).expect("mkdir");
        let options = format!("size={size},mode=700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "distd-test"]).arg(at).status();
        assert!(done.expect("run mount").success());
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, because the origin may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_publishers_have_filled_still_enrols_signs_and_serves() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may mount");
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let disk = Tmpfs::mount(&directory.path().join("disk"), "160m");
    let store = disk.0.join("objects").display().to_string();
    let db = format!("sqlite:{}", disk.0.join("distd.sqlite").display());
    let lab = Lab::start_with(&["--store", &store, "--db", &db]);
    let first = artifact(&lab, 4, 900_000);
    lab.push(&first, "os", "1").ok();
    let mut seed = 100;
    loop {
        let file = artifact(&lab, seed, 30_000_000);
        let pushed = lab.push(&file, "fill", &seed.to_string());
        fs::remove_file(file).expect("remove");
        if pushed.code != 0 {
            assert!(
                pushed.stderr.contains("no space left") || pushed.json.to_string().contains("no space left")
            );
            break;
        }
        seed += 1;
        assert!(seed < 110, "160 MB are full at some time");
    }
    // A twentieth of the disk is left, and everything except publishing still works.
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.admin(&["token", "create", "--scope", "read", "--label", "more"]).ok();
    lab.enroll("device", lab.quic());
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&first, &lab.path("out")));
    let free = rustix::fs::statvfs(&disk.0).expect("statvfs");
    assert!(free.f_bavail * free.f_frsize > 4_000_000, "the reserve is there");
    drop(lab);
    drop(disk);
}
