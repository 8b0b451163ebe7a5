//! Windows of the week in which a device fetches and installs releases.

use std::fs;

use distd_peer::clock::unix_now;
use distd_tests::lab::{Daemon, Lab, wait_until};

/// A window of two hours, of which the first begins `hours` hours after this one, in UTC.
fn window(hours: u64) -> String {
    let hour = |after: u64| (unix_now() / 3600 + hours + after) % 24;
    format!("{:02}:00-{:02}:00", hour(0), hour(2))
}

#[test]
fn a_device_fetches_early_and_installs_when_its_window_opens() {
    let lab = Lab::start();
    let (place, closed) = (lab.path("app"), window(12));
    for version in ["1", "2"] {
        let path = lab.path(&format!("release-{version}"));
        fs::write(&path, version.repeat(100_000)).expect("write");
        lab.push(&path, "os", version).ok();
    }
    let set_channel = |version: &str| drop(lab.admin(&["channel", "set", "os:stable", version]).ok());
    let current = || {
        let to = fs::read_link(place.join("current")).unwrap_or_default();
        to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let follow = |options: &[&str]| {
        let mut command = lab.agent_command("till", "127.0.0.1:0");
        command.args(["--follow", "os:stable", "--follow-poll-seconds", "1", "--time-zone", "UTC"]);
        command.arg("--follow-into").arg(&place).arg("--hooks").arg(lab.path("no-hooks")).args(options);
        Daemon::start(command, &lab.path("till.log"), "agent listening on ")
    };
    let why = || {
        let nodes = lab.admin(&["node", "ls"]).ok().json;
        let id = nodes["nodes"][0]["id"].as_str().expect("an id").to_owned();
        lab.admin(&["why", &id]).ok().json.to_string()
    };
    set_channel("1");
    lab.enroll("till", lab.quic());
    let agent = follow(&[]);
    wait_until("release 1 runs", || current() == "1");
    drop(agent);

    // Neither window is open: nothing is fetched.
    set_channel("2");
    let agent = follow(&["--install-window", &closed, "--download-window", &closed]);
    wait_until("the device reports its window", || why().contains("window for updates"));
    assert!(!place.join("releases/2").exists());
    drop(agent);

    // The release is fetched, and no attempt begins.
    let agent = follow(&["--install-window", &closed]);
    wait_until("release 2 is fetched", || place.join("releases/2").exists());
    wait_until("the device reports its window", || why().contains("window for updates"));
    assert_eq!(current(), "1");
    let here = lab.device("till", &["status"]).ok().json;
    assert_eq!(
        (&here["version"], &here["wanted"], &here["held"]["reason"]),
        (&"1".into(), &"2".into(), &"window".into())
    );
    let here = lab.device("till", &["why"]).ok().json;
    assert!(here["why"][0].as_str().is_some_and(|why| why.contains("no window")), "{here}");
    let journal = fs::read_to_string(lab.path("till/follow.json")).expect("the journal");
    assert!(!journal.contains("\"version\": \"2\""), "{journal}");
    drop(agent);

    let _agent = follow(&["--install-window", &window(0)]);
    wait_until("release 2 runs", || current() == "2");
    wait_until("the device says so", || {
        let here = lab.device("till", &["status"]).ok().json;
        here["version"] == "2" && here["attempt"]["state"] == "succeeded"
    });
    // A device that follows no channel says what to do.
    let none = lab.device("other", &["status"]);
    assert!(none.code == 7 && none.stderr.contains("--follow"), "{}", none.stderr);
}
