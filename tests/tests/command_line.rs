//! Errors of the command line: they are printed as text and, where JSON was asked for, as the one
//! JSON object.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use distd_tests::lab::{Lab, Outcome, Running, binary};

const USAGE: i32 = 2;

/// Runs `distd` with only these arguments.
fn distd(args: &[&str]) -> Outcome {
    let mut command = Command::new(binary("distd"));
    Outcome::of(command.args(args).stdin(Stdio::null()).output().expect("run distd"))
}

#[test]
fn a_wrong_command_line_ends_with_the_json_that_was_asked_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().display().to_string();
    let push = |version: &'static str| ["--json", "push", "x", "--product", "v", "--version", version];
    let wrong: Vec<Vec<&str>> = vec![
        vec!["--json", "bogus"],
        vec!["bogus", "--json"],
        vec!["--json"],
        vec!["--json", "pull", "os@1"],
        vec!["--json", "pull", "os@1", "--out", "x", "--bogus"],
        vec!["--json", "pull", "os", "--out", "x"],
        vec!["--json", "pull", "os@1", "--out", ""],
        vec!["--json", "pull", "os@1", "--out", "x", "--parent", "foo"],
        vec!["--json", "pull", "os@1", "--out", "x", "--parent", "http://foo:1"],
        vec!["--json", "enroll", "--parent", "foo:0", "--token", "t"],
        push("1:2.0-1").to_vec(),
        push("2.0~rc1").to_vec(),
        push("2.0 rc").to_vec(),
        push("v/2").to_vec(),
    ];
    for mut args in wrong {
        args.extend(["--data", &data]);
        let outcome = distd(&args);
        assert_eq!(outcome.code, USAGE, "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.json["error"]["code"], "usage", "{args:?}: {}", outcome.json);
        assert_eq!(outcome.json["error"]["exit"], USAGE);
        assert!(
            outcome.json["error"]["message"].as_str().is_some_and(|text| text.len() > 3),
            "{}",
            outcome.json
        );
        assert!(outcome.stderr.contains("error:") || outcome.stderr.contains("Usage:"), "{}", outcome.stderr);
    }
    // Without a request for JSON there is only text; after `--` an argument like `--json` is a
    // name.
    for args in [&["bogus"][..], &["verify", "--", "--json", "--more"]] {
        let outcome = distd(args);
        assert_eq!((outcome.code, outcome.json.is_null()), (USAGE, true), "{args:?}");
    }
    for help in [&["--help"][..], &["--json", "help", "pull"], &["--version"]] {
        assert_eq!(distd(help).code, 0, "{help:?}");
    }
}

#[test]
fn logging_out_forgets_the_token() {
    let lab = Lab::start();
    lab.admin(&["release", "ls", "none"]);
    let out = lab.admin(&["logout"]).ok();
    assert!(out.json["server"].as_str().is_some_and(|server| server.contains(lab.https())), "{}", out.json);
    assert!(!fs::read_to_string(lab.path("admin/client.toml")).expect("read").contains("distd-api"));
    assert_eq!(lab.admin(&["release", "ls", "none"]).code, USAGE, "no server is known");
    assert!(lab.admin(&["logout"]).ok().json["server"].is_null());
}

#[test]
fn a_push_waits_for_an_origin_that_is_just_starting() {
    let mut lab = Lab::start();
    let file = lab.path("file");
    fs::write(&file, "content").expect("write");
    lab.stop_origin();
    let mut push = lab.command("admin");
    push.args(["push", &file.display().to_string(), "--product", "p", "--version", "1"]);
    let push = Running::start(push);
    // Long enough for the first connection to be refused on a busy machine; the test passes also if
    // it was not refused.
    std::thread::sleep(std::time::Duration::from_secs(1));
    lab.start_origin();
    push.wait().ok();
}

#[test]
fn a_token_is_accepted_in_the_form_that_containers_provide() {
    let lab = Lab::start();
    let server = format!("https://{}", lab.https());
    let token = lab.path("token");
    fs::copy(lab.path("origin/admin.token"), &token).expect("copy");
    for (mode, good) in [(0o440, true), (0o400, true), (0o444, false), (0o660, false)] {
        fs::set_permissions(&token, fs::Permissions::from_mode(mode)).expect("chmod");
        let outcome = lab
            .device("other", &["login", "--server", &server, "--token-file", &token.display().to_string()]);
        assert_eq!(outcome.code, if good { 0 } else { 7 }, "{mode:o}: {}", outcome.stderr);
        assert!(good || outcome.stderr.contains("--token-file -"), "{}", outcome.stderr);
    }
}

#[test]
fn clean_removes_leftovers_of_interrupted_pulls_and_nothing_else() {
    let lab = Lab::start();
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("f"), "x").expect("write");
    lab.push(&tree, "t", "1").ok();
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    lab.pull("d", "t@1", &out, &[]).ok();
    let clean = || lab.device("d", &["clean", &format!("{}/", out.display())]);
    assert_eq!(clean().ok().json["removed"], serde_json::json!([]));
    for suffix in ["-manifest", "-journal", "-patches", "-patches2", "-rebuilt", "-passing", "-journal.part"]
    {
        fs::write(lab.path(&format!("out.distd-part{suffix}")), "left").expect("write");
    }
    fs::create_dir_all(lab.path("out.distd-part/tree")).expect("mkdir");
    fs::write(lab.path("out.distd-part/listing"), "x").expect("write");
    assert_eq!(clean().ok().json["removed"].as_array().map(Vec::len), Some(8));
    let mut left: Vec<_> = fs::read_dir(lab.path(""))
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("out"))
        .collect();
    left.sort();
    assert_eq!(left, ["out", "out.distd", "out.distd-tree"]);
    lab.device("d", &["verify", &out.display().to_string()]).ok();
    fs::create_dir(lab.path("out.distd-part")).expect("mkdir");
    fs::write(lab.path("out.distd-part/notes.txt"), "precious").expect("write");
    assert_eq!(clean().code, 7);
    assert!(lab.path("out.distd-part/notes.txt").exists());
}
