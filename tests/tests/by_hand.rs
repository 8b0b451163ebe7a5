//! Orders of somebody at a device to its agent: look, install now, put off, go back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use distd_peer::clock::unix_now;
use distd_tests::disks::can_mount;
use distd_tests::lab::{Daemon, Lab, Outcome, wait_until};
use distd_tests::machine::Machine;
use distd_tests::machine::firmware::Grub;

fn push(lab: &Lab, version: &str) {
    let path = lab.path(&format!("release-{version}"));
    fs::write(&path, version.repeat(100_000)).expect("write");
    lab.push(&path, "os", version).ok();
}

fn set_channel(lab: &Lab, version: &str) {
    lab.admin(&["channel", "set", "os:stable", version]).ok();
}

/// Option with the seconds between two looks.
const POLL: &str = "--follow-poll-seconds";

/// A device that follows the channel and looks by itself once an hour.
struct Till<'l> {
    lab: &'l Lab,
    place: PathBuf,
    agent: Option<Daemon>,
}

impl<'l> Till<'l> {
    fn new(lab: &'l Lab, options: &[&str]) -> Self {
        lab.enroll("till", lab.quic());
        let mut till = Self { lab, place: lab.path("app"), agent: None };
        till.start(options);
        till
    }

    fn start(&mut self, options: &[&str]) {
        self.agent = None;
        let mut command = self.lab.agent_command("till", "127.0.0.1:0");
        command.args(["--follow", "os:stable", "--time-zone", "UTC"]);
        if !options.contains(&POLL) {
            command.args([POLL, "3600"]);
        }
        command
            .arg("--follow-into")
            .arg(&self.place)
            .arg("--hooks")
            .arg(self.lab.path("hooks"))
            .args(options);
        self.agent = Some(Daemon::start(command, &self.lab.path("till.log"), "agent listening on "));
    }

    fn current(&self) -> String {
        let to = fs::read_link(self.place.join("current")).unwrap_or_default();
        to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn does(&self, args: &[&str]) -> Outcome {
        self.lab.device("till", args)
    }

    /// Whether the device says that it is held for this reason.
    fn is_held_by(&self, reason: &str) -> bool {
        is_held_by(self.lab, reason)
    }

    /// Whether a release runs that was found to work.
    fn has_installed(&self, version: &str) -> bool {
        let status = self.does(&["status"]);
        self.current() == version && status.code == 0 && status.json["attempt"]["state"] == "succeeded"
    }
}

fn is_held_by(lab: &Lab, reason: &str) -> bool {
    let status = lab.device("till", &["status"]);
    // The agent has not written its state yet.
    status.code == 0 && status.json["held"]["reason"] == reason
}

/// A window of two hours that opens in twelve, in UTC.
fn closed_window() -> String {
    let hour = |after: u64| (unix_now() / 3600 + after) % 24;
    format!("{:02}:00-{:02}:00", hour(12), hour(14))
}

#[test]
fn a_person_at_the_device_installs_now_and_puts_off() {
    let lab = Lab::start();
    for version in ["1", "2", "3"] {
        push(&lab, version);
    }
    set_channel(&lab, "1");
    let none = lab.device("nobody", &["update", "check"]);
    assert!(none.code == 7 && none.stderr.contains("distd agent --follow"), "{}", none.stderr);

    let closed = closed_window();
    let till = Till::new(&lab, &["--install-window", &closed]);
    // Outside its window the device waits, and a look changes nothing.
    wait_until("the device has looked", || till.is_held_by("window"));
    let found = till.does(&["update", "check"]).ok().json;
    assert_eq!((&found["wanted"], &found["version"]), (&"1".into(), &serde_json::Value::Null));
    assert_eq!(till.current(), "");
    // By hand the window does not hold.
    let done = till.does(&["update", "now"]).ok();
    assert_eq!((till.current().as_str(), &done.json["version"]), ("1", &"1".into()));
    assert!(done.stderr.contains("fetches 1") || done.stderr.is_empty(), "{}", done.stderr);
    assert_eq!(till.does(&["update", "now"]).ok().json["version"], "1", "it is up to date");

    // A look by hand finds a new release at once, and installs nothing.
    set_channel(&lab, "2");
    assert_eq!(till.does(&["update", "check"]).ok().json["wanted"], "2");
    assert_eq!(till.current(), "1");
}

#[test]
fn an_update_that_was_put_off_waits_until_it_is_ordered_or_forced() {
    let lab = Lab::start();
    for version in ["1", "2", "3"] {
        push(&lab, version);
    }
    set_channel(&lab, "1");
    let mut till = Till::new(&lab, &["--defer-seconds", "7200"]);
    wait_until("release 1 runs", || till.has_installed("1"));
    let put_off = till.does(&["update", "defer", "1h"]).ok().json;
    assert_eq!(put_off["held"]["reason"], "deferred");
    let until = put_off["held"]["until"].as_u64().expect("a time");
    assert!((3500..=3600).contains(&(until - unix_now())), "{until}");
    // Longer than the device allows is cut, also in several steps.
    let put_off = till.does(&["update", "defer", "7d"]).ok().json;
    assert!(put_off["held"]["until"].as_u64().expect("a time") - unix_now() <= 7200);

    set_channel(&lab, "2");
    till.start(&["--defer-seconds", "7200", POLL, "1"]);
    wait_until("the device waits", || till.is_held_by("deferred"));
    assert!(
        till.does(&["why"]).ok().json["why"][0].as_str().is_some_and(|why| why.contains("put updates off"))
    );
    assert_eq!(till.current(), "1");
    // The realm sees why.
    wait_until("the origin knows", || {
        lab.admin(&["fleet", "status"]).ok().json.to_string().contains("deferred")
    });
    // The end of the deferral lets the release in.
    till.does(&["update", "defer", "--off"]).ok();
    wait_until("release 2 runs", || till.has_installed("2"));

    // A forced rollout does not wait.
    till.does(&["update", "defer", "2h"]).ok();
    lab.admin(&["rollout", "start", "os:stable", "3", "--waves", "100%", "--soak", "1s", "--forced"]).ok();
    wait_until("release 3 runs", || till.has_installed("3"));
    // A device may forbid it.
    till.start(&["--defer-seconds", "0"]);
    let refused = till.does(&["update", "defer", "1h"]);
    assert!(refused.code == 5 && refused.stderr.contains("pause the rollout"), "{}", refused.stderr);
}

#[test]
fn a_device_goes_back_by_hand_and_stays_there() {
    let lab = Lab::start();
    for version in ["1", "2", "3"] {
        push(&lab, version);
    }
    set_channel(&lab, "1");
    let mut till = Till::new(&lab, &[POLL, "1"]);
    wait_until("release 1 runs", || till.has_installed("1"));
    let refused = till.does(&["rollback"]);
    assert!(refused.code == 5 && refused.stderr.contains("no other release"), "{}", refused.stderr);
    set_channel(&lab, "2");
    wait_until("release 2 runs", || till.has_installed("2"));
    let refused = till.does(&["rollback", "--to", "9"]);
    assert!(refused.code == 5 && refused.stderr.contains("release 9 is not here"), "{}", refused.stderr);

    let back = till.does(&["rollback"]).ok().json;
    assert_eq!((till.current().as_str(), &back["version"]), ("1", &"1".into()));
    assert_eq!(back["attempt"]["failure"]["kind"], "operator", "{back}");
    // It stays there, also after a restart of the agent, and the realm knows why.
    till.start(&[POLL, "1"]);
    wait_until("the device says why", || till.is_held_by("taken_back"));
    assert_eq!(till.current(), "1");
    wait_until("the origin knows", || {
        lab.admin(&["fleet", "status"]).ok().json.to_string().contains("taken_back")
    });
    let held = till.does(&["update", "now"]);
    assert!(held.code == 5 && held.stderr.contains("--again"), "{}", held.stderr);
    assert_eq!(till.current(), "1");
    // Told so, it installs the release again; another release comes by itself.
    till.does(&["update", "now", "--again"]).ok();
    assert_eq!(till.current(), "2");
    till.does(&["rollback"]).ok();
    set_channel(&lab, "3");
    wait_until("release 3 runs", || till.has_installed("3"));
}

#[test]
fn a_device_with_slots_goes_back_by_a_restart() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let images = ["1", "2"].map(|version| {
        let (tree, image) = (lab.path(&format!("tree-{version}")), lab.path(&format!("release-{version}")));
        fs::create_dir_all(tree.join("boot")).expect("a directory");
        fs::write(tree.join("boot/vmlinuz"), format!("kernel {version}")).expect("write");
        let made =
            Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&tree).output().expect("mkfs.erofs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        lab.push(&image, "os", version).ok();
        image
    });
    set_channel(&lab, "1");
    let mut machine = Machine::new(&lab, "till", Grub::make);
    assert_eq!(machine.switch_on(), 0);
    set_channel(&lab, "2");
    assert_eq!(machine.restart_when_ordered(), 1, "release 2 starts: {}", machine.log());
    machine.wait_for_attempt("2", "succeeded");
    // The agent answers when it has ordered the restart.
    let back = lab.device("till", &["rollback"]).ok().json;
    assert_eq!(back["going_back"], true, "{back}");
    assert_eq!(machine.restart_when_ordered(), 0, "release 1 runs again: {}", machine.log());
    let attempt = machine.wait_for_attempt("2", "rolled_back");
    assert_eq!(attempt["failure"]["kind"], "operator", "{attempt}");
    assert!(machine.holds(0, &images[0]) && machine.holds(1, &images[1]));
    machine.cut_power();
    assert_eq!(machine.switch_on(), 0, "release 1 stays");
    wait_until("the device says why", || is_held_by(&lab, "taken_back"));
}
