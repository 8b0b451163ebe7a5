//! Rollouts from their start to their end, on real agents over loopback.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use distd_core::NodeId;
use distd_core::fleet::rollout::{RolloutId, point};
use distd_peer::clock::unix_now;
use distd_tests::lab::{Daemon, Lab, same, wait_within};
use serde_json::Value;

const FOLLOWED: &str = "os:stable";

/// Longest wait for a fleet. Fifty agents share two cores with other tests.
const PATIENCE: Duration = Duration::from_secs(240);

/// Waits until `holds` returns true. Each look runs a command, so there are few of them.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    wait_within(PATIENCE, Duration::from_millis(300), what, holds);
}

/// Devices that follow `os:stable`, with their agents.
struct Fleet {
    agents: BTreeMap<String, Daemon>,
}

/// Makes the hooks directory of all devices. With release 2, a device works unless the lab has the
/// file `bad-DEVICE`, or once `once-DEVICE`; its check waits while the lab has `slow-DEVICE`.
fn hooks(lab: &Lab) -> PathBuf {
    let dir = lab.path("hooks");
    fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("health");
    let lab = lab.path("").display().to_string();
    let script = format!(
        "#!/bin/sh\n[ \"$DISTD_VERSION\" = 2 ] || exit 0\n\
         app=${{DISTD_PATH%/releases/*}}\ndevice=${{app##*/}}\n\
         while [ -e \"{lab}/slow-$device\" ]; do sleep 0.2; done\n\
         if [ -e \"{lab}/once-$device\" ]; then rm \"{lab}/once-$device\"; exit 1; fi\n\
         if [ -e \"{lab}/bad-$device\" ]; then echo no screen; exit 1; fi\n"
    );
    fs::write(&path, script).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

/// Makes or removes a file that the hook of a device looks for.
fn mark(lab: &Lab, kind: &str, device: &str, set: bool) {
    let path = lab.path(&format!("{kind}-{device}"));
    if set { fs::write(path, "").expect("write") } else { fs::remove_file(path).expect("remove") }
}

fn place(lab: &Lab, device: &str) -> PathBuf {
    lab.path("apps").join(device)
}

/// Starts the agent of a device that is enrolled.
fn follow(lab: &Lab, device: &str, hooks: &Path) -> Daemon {
    let mut command = lab.agent_command(device, "127.0.0.1:0");
    command.args(["--follow", FOLLOWED, "--follow-poll-seconds", "1", "--hook-seconds", "30"]);
    command.arg("--follow-into").arg(place(lab, device)).arg("--hooks").arg(hooks);
    Daemon::start(command, &lab.path(&format!("{device}.log")), "agent listening on ")
}

fn release(lab: &Lab, version: &str) -> PathBuf {
    let path = lab.path(&format!("release-{version}"));
    let mut bytes = vec![7; 200_000];
    bytes[..version.len()].copy_from_slice(version.as_bytes());
    fs::write(&path, bytes).expect("write");
    lab.push(&path, "os", version).ok();
    path
}

fn ok(lab: &Lab, args: &[&str]) -> Value {
    lab.admin(args).ok().json
}

/// Version that a device's link leads to.
fn current(lab: &Lab, device: &str) -> String {
    let to = fs::read_link(place(lab, device).join("current")).unwrap_or_default();
    to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Number of devices that report `version`.
fn reporting(lab: &Lab, version: &str) -> usize {
    let nodes = ok(lab, &["node", "ls"]);
    let nodes = nodes["nodes"].as_array().expect("a list").iter();
    nodes.filter(|node| node["running"][0]["version"] == version).count()
}

fn status(lab: &Lab) -> Value {
    ok(lab, &["rollout", "status", FOLLOWED])
}

fn state(status: &Value) -> &str {
    status["rollout"]["state"].as_str().expect("a state")
}

/// Waits until the newest rollout is in a state; returns its status.
fn wait_for_state(lab: &Lab, wanted: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = status(lab);
        if state(&status) == wanted {
            return status;
        }
        assert!(Instant::now() < deadline, "not {wanted} in time: {status}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Sum of a number over all waves.
fn sum(status: &Value, field: &str) -> u64 {
    status["waves"]
        .as_array()
        .expect("waves")
        .iter()
        .map(|wave| wave[field].as_u64().expect("a number"))
        .sum()
}

fn open_waves(status: &Value) -> usize {
    status["waves"].as_array().expect("waves").iter().filter(|wave| !wave["opened"].is_null()).count()
}

/// Sizes of waves as the fleet must be split, for a fleet of `nodes` in the order of their points.
fn wave_of(rollout: &str, nodes: &[NodeId], node: &NodeId, sizes: &[usize]) -> usize {
    let rollout: RolloutId = rollout.parse().expect("an id");
    let mut order: Vec<&NodeId> = nodes.iter().collect();
    order.sort_by_key(|node| point(&rollout, node));
    let at = order.iter().position(|other| *other == node).expect("one of the fleet");
    sizes.iter().position(|size| at < *size).expect("the last wave has all")
}

impl Fleet {
    /// Enrols and starts `count` devices, every second one behind `relay`.
    fn start(lab: &Lab, relay: Option<&Daemon>, count: usize) -> Self {
        let hooks = hooks(lab);
        let mut agents = BTreeMap::new();
        for n in 0..count {
            let device = format!("device-{n}");
            let parent = relay.filter(|_| n % 2 == 1).map_or(lab.quic(), |relay| &relay.addresses[0]);
            lab.enroll_at(None, &device, parent, &["--label", &device]);
            agents.insert(device.clone(), follow(lab, &device, &hooks));
        }
        Self { agents }
    }

    fn devices(&self) -> impl Iterator<Item = &String> {
        self.agents.keys()
    }

    fn running(&self, lab: &Lab, version: &str) -> Vec<&String> {
        self.devices().filter(|device| current(lab, device) == version).collect()
    }
}

/// Ids of the devices of the realm by their labels, which are the devices' names.
fn ids(lab: &Lab) -> BTreeMap<String, NodeId> {
    let nodes = ok(lab, &["node", "ls", "--where", "role=leaf"]);
    let nodes = nodes["nodes"].as_array().expect("a list").iter();
    let text = |node: &Value, field: &str| node[field].as_str().expect("text").to_owned();
    nodes.map(|node| (text(node, "label"), text(node, "id").parse().expect("an id"))).collect()
}

/// The time `seconds` from now, as the command line takes it.
fn soon(seconds: u64) -> String {
    let at = format!("@{}", unix_now() + seconds);
    let date = Command::new("date").args(["-u", "-d", &at, "+%FT%TZ"]).output().expect("run date");
    String::from_utf8_lossy(&date.stdout).trim().to_owned()
}

/// The whole of it: of fifty agents, two do not work with the new release. The rollout halts in
/// their wave; it goes on when told to, and ends at 100 %.
#[test]
fn a_rollout_to_fifty_agents_halts_at_the_second_failure_and_ends_when_resumed() {
    const DEVICES: usize = 50;
    let lab = Lab::start();
    release(&lab, "1");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let relay = lab.relay("relay", lab.quic());
    let fleet = Fleet::start(&lab, Some(&relay), DEVICES);
    wait_until("every device runs and reports release 1", || reporting(&lab, "1") == DEVICES);

    let second = release(&lab, "2");
    let start = ["rollout", "start", FOLLOWED, "2", "--waves", "10%,50%,100%", "--soak", "1s"];
    let gates = ["--success", "90%", "--halt-on", "2", "--timeout", "5m", "--not-before", &soon(5)];
    let begun = ok(&lab, &[&start[..], &gates[..]].concat());
    assert_eq!((state(&begun), open_waves(&begun)), ("open", 0));
    // Two devices of the second wave do not work. A third is slow, so that 18 of 20 cannot have
    // succeeded before both have failed.
    let id = begun["rollout"]["id"].as_str().expect("an id").to_owned();
    let ids = ids(&lab);
    let nodes: Vec<NodeId> = ids.values().copied().collect();
    let sizes = [DEVICES / 10, DEVICES / 2, DEVICES];
    let wave = |device: &str| wave_of(&id, &nodes, &ids[device], &sizes);
    let second_wave: Vec<&String> = ids.keys().filter(|device| wave(device) == 1).collect();
    let [first_bad, second_bad, slow, ..] = second_wave[..] else { panic!("a wave of twenty") };
    let bad = [first_bad, second_bad];
    bad.iter().for_each(|device| mark(&lab, "bad", device, true));
    mark(&lab, "slow", slow, true);

    let halted = wait_for_state(&lab, "halted");
    assert_eq!((open_waves(&halted), sum(&halted, "failed")), (2, 2), "{halted}");
    let members = halted["waves"].as_array().expect("waves").iter().map(|wave| wave["devices"].as_u64());
    assert_eq!(members.collect::<Vec<_>>(), [Some(5), Some(20), Some(25)]);
    let failures = halted["failures"].as_array().expect("a list");
    assert_eq!(failures.len(), 2);
    for failure in failures {
        assert_eq!((&failure["kind"], &failure["state"]), (&"health".into(), &"rolled_back".into()));
        assert!(failure["detail"].as_str().expect("text").contains("no screen"), "{failure}");
        assert_eq!(failure["wave"], 2);
    }
    assert_eq!(halted["rollout"]["reason"], "2 of 25 devices in open waves failed");
    // No device is ahead of its wave, and the bad ones are back.
    let ahead = || fleet.running(&lab, "2").into_iter().filter(|device| wave(device) > 1).count();
    assert_eq!(ahead(), 0);
    assert!(bad.iter().all(|device| current(&lab, device) == "1"));
    // The channel still leads to release 1, and the release of a rollout is in use.
    assert_eq!(ok(&lab, &["channel", "show", FOLLOWED])["version"], "1");
    assert_eq!(lab.admin(&["release", "rm", "os@2"]).code, 5);

    mark(&lab, "slow", slow, false);
    ok(&lab, &["rollout", "resume", FOLLOWED, "--reason", "two broken screens"]);
    let ended = wait_for_state(&lab, "complete");
    wait_until("all but two devices run release 2", || reporting(&lab, "2") == DEVICES - 2);
    assert_eq!(ok(&lab, &["channel", "show", FOLLOWED])["version"], "2");
    let events: Vec<_> = ended["events"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| e["event"].as_str().expect("text"))
        .collect();
    assert_eq!(events, ["started", "opened", "opened", "halted", "resumed", "opened", "complete"]);
    assert_eq!(ended["events"][4]["detail"], "two broken screens");
    // The devices on which the release failed do not try it again, though the channel leads to it.
    for device in bad {
        assert_eq!(current(&lab, device), "1");
        let log = fleet.agents[device].log();
        assert_eq!(log.matches("does not work; going back").count(), 1, "{log}");
    }
    assert!(same(&second, &place(&lab, slow).join("current")));
    let last = status(&lab);
    let bytes: u64 = ["bytes_disk", "bytes_neighbours", "bytes_relay", "bytes_origin"]
        .iter()
        .map(|source| sum(&last, source))
        .sum();
    assert!(bytes > 0, "{last}");
}

/// Enrols a device with a join token that has these labels, and starts its agent.
fn labelled(lab: &Lab, device: &str, labels: &str, hooks: &Path) -> Daemon {
    let made = ok(lab, &["token", "join", "--label", device, "--labels", labels]);
    let token = made["token"].as_str().expect("a token");
    lab.device(device, &["enroll", "--parent", lab.quic(), "--token", token, "--label", device]).ok();
    follow(lab, device, hooks)
}

/// Why a device does not install the release of a rollout, by its report.
fn held(lab: &Lab, id: &NodeId) -> String {
    let node = ok(lab, &["node", "show", &id.to_string()]);
    node["node"]["running"][0]["held"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn labels_pins_and_required_versions_decide_on_the_device() {
    let lab = Lab::start();
    for version in ["1", "1.5", "2"] {
        release(&lab, version);
    }
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let hooks = hooks(&lab);
    let _agents = [("a", "1"), ("b", "2"), ("c", "1")]
        .map(|(device, site)| labelled(&lab, device, &format!("site={site}"), &hooks));
    wait_until("every device runs and reports release 1", || reporting(&lab, "1") == 3);
    let ids = ids(&lab);
    ok(&lab, &["node", "pin", &ids["c"].to_string(), "os@1"]);

    let start =
        ["rollout", "start", FOLLOWED, "2", "--waves", "100%", "--soak", "1s", "--not-before", &soon(5)];
    let begun = ok(&lab, &[&start[..], &["--for", "site=1", "--requires", "1.5"]].concat());
    // Device c is pinned to another version, and b has another label.
    assert_eq!((sum(&begun, "devices"), &begun["rollout"]["for"]), (1, &"site=1".into()));
    wait_until("device a installs the required version first", || current(&lab, "a") == "1.5");
    wait_until("b and c say why they stay", || {
        held(&lab, &ids["b"]).contains("other labels") && held(&lab, &ids["c"]).contains("pinned")
    });
    wait_for_state(&lab, "complete");
    assert_eq!((current(&lab, "a"), current(&lab, "c")), ("2".into(), "1".into()));
    // The channel leads to release 2 now, for all but the pinned one.
    wait_until("device b follows the channel", || current(&lab, "b") == "2");
    assert_eq!(current(&lab, "c"), "1");
    ok(&lab, &["node", "unpin", &ids["c"].to_string(), "os"]);
    wait_until("device c follows the channel", || current(&lab, "c") == "2");
    // A selector that selects no device that follows the channel is refused, as is a version that
    // is not there.
    release(&lab, "3");
    let refused = lab.admin(&["rollout", "start", FOLLOWED, "3", "--for", "site=9"]);
    assert!(refused.code == 5 && refused.stderr.contains("follows os:stable"), "{}", refused.stderr);
    assert_eq!(lab.admin(&["rollout", "start", FOLLOWED, "3", "--requires", "7"]).code, 3);
    assert_eq!(lab.admin(&["rollout", "start", FOLLOWED, "3", "--requires", "3"]).code, 2);
    // A device has one agent that follows, in one directory, and a directory needs a channel.
    let other = lab.path("other").display().to_string();
    let agent = ["agent", "--listen", "127.0.0.1:0", "--follow-into", &other];
    let second = lab.device("a", &[&agent[..], &["--follow", FOLLOWED]].concat());
    assert!(second.code == 7 && second.stderr.contains("another process"), "{}", second.stderr);
    assert_eq!(lab.device("a", &agent).code, 2);
}

#[test]
fn a_rollout_goes_back_by_its_policy_and_by_order() {
    let lab = Lab::start();
    release(&lab, "1");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let fleet = Fleet::start(&lab, None, 2);
    wait_until("every device runs and reports release 1", || reporting(&lab, "1") == 2);
    release(&lab, "2");
    // One device works with release 2; the check of the other waits until the first is done.
    mark(&lab, "bad", "device-1", true);
    mark(&lab, "slow", "device-1", true);
    let waves = ["--waves", "100%", "--soak", "1s", "--halt-on", "1"];
    ok(&lab, &[&["rollout", "start", FOLLOWED, "2", "--after-halt", "back"][..], &waves].concat());
    wait_until("the good device has succeeded", || sum(&status(&lab), "succeeded") == 1);
    assert_eq!(lab.admin(&["channel", "set", FOLLOWED, "2"]).code, 5, "a rollout is under way");
    mark(&lab, "slow", "device-1", false);
    let ended = wait_for_state(&lab, "rolled_back");
    assert!(ended["rollout"]["reason"].as_str().expect("text").starts_with("1 of 2"), "{ended}");
    wait_until("both devices run release 1 again", || fleet.running(&lab, "1").len() == 2);

    // By an operator's order, after a pause.
    release(&lab, "3");
    ok(&lab, &[&["rollout", "start", FOLLOWED, "3"][..], &["--waves", "50%,100%", "--soak", "1h"]].concat());
    wait_until("the first wave has succeeded", || sum(&status(&lab), "succeeded") == 1);
    assert_eq!(state(&ok(&lab, &["rollout", "pause", FOLLOWED, "--reason", "lunch"])), "paused");
    assert_eq!(state(&ok(&lab, &["rollout", "pause", FOLLOWED])), "paused", "the order again");
    assert_eq!(lab.admin(&["rollout", "start", FOLLOWED, "3"]).code, 5);
    ok(&lab, &["rollout", "rollback", FOLLOWED, "--reason", "not today"]);
    wait_until("both devices run release 1", || fleet.running(&lab, "1").len() == 2);
    assert_eq!(lab.admin(&["rollout", "halt", FOLLOWED]).code, 5, "it has ended");
    let history = ok(&lab, &["rollout", "history", FOLLOWED]);
    let states: Vec<_> =
        history["rollouts"].as_array().expect("a list").iter().map(|r| &r["state"]).collect();
    assert_eq!(states, ["rolled_back", "rolled_back"]);
}

#[test]
fn a_first_release_that_does_not_work_is_not_left_running_and_the_next_is_tried() {
    let lab = Lab::start();
    release(&lab, "2");
    lab.admin(&["channel", "set", FOLLOWED, "2"]).ok();
    mark(&lab, "bad", "device-0", true);
    let fleet = Fleet::start(&lab, None, 1);
    let log = || fleet.agents["device-0"].log();
    wait_until("the device takes release 2 back", || log().contains("does not work; going back"));
    wait_until("nothing runs", || current(&lab, "device-0").is_empty());
    release(&lab, "3");
    lab.admin(&["channel", "set", FOLLOWED, "3"]).ok();
    wait_until("release 3 runs", || current(&lab, "device-0") == "3");
    // An order back to release 2 does not make it work.
    lab.admin(&["channel", "set", FOLLOWED, "2", "--downgrade"]).ok();
    let id = ids(&lab)["device-0"];
    wait_until("the device says why", || held(&lab, &id).contains("failed on this device"));
    assert_eq!(current(&lab, "device-0"), "3");
}

#[test]
fn a_release_that_failed_does_not_halt_the_rollout_of_the_next_one() {
    let lab = Lab::start();
    release(&lab, "1");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let fleet = Fleet::start(&lab, None, 1);
    wait_until("release 1 runs", || reporting(&lab, "1") == 1);
    release(&lab, "2");
    mark(&lab, "bad", "device-0", true);
    let policy = ["--waves", "100%", "--soak", "1s", "--halt-on", "1"];
    ok(&lab, &[&["rollout", "start", FOLLOWED, "2"][..], &policy].concat());
    wait_for_state(&lab, "halted");
    let id = ids(&lab)["device-0"];
    wait_until("the device says why", || held(&lab, &id).contains("failed on this device"));
    mark(&lab, "bad", "device-0", false);
    release(&lab, "3");
    // The device says so until it has heard of this one.
    ok(&lab, &[&["rollout", "start", FOLLOWED, "3"][..], &policy].concat());
    assert_eq!(sum(&status(&lab), "failed"), 0);
    wait_for_state(&lab, "complete");
    assert_eq!(fleet.running(&lab, "3").len(), 1);
}

#[test]
fn a_device_tries_as_often_as_the_rollout_allows() {
    let lab = Lab::start_without_grants(&[]);
    // A grant for the channel is enough for all that its rollout brings.
    lab.admin(&["grant", "add", "everyone", FOLLOWED]).ok();
    for version in ["1", "1.5", "2"] {
        release(&lab, version);
    }
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let fleet = Fleet::start(&lab, None, 1);
    wait_until("release 1 runs", || reporting(&lab, "1") == 1);
    mark(&lab, "once", "device-0", true);
    let start = ["rollout", "start", FOLLOWED, "2", "--waves", "100%", "--soak", "1s", "--halt-on", "1"];
    ok(&lab, &[&start[..], &["--attempts", "2", "--requires", "1.5"]].concat());
    let ended = wait_for_state(&lab, "complete");
    assert_eq!((sum(&ended, "succeeded"), sum(&ended, "failed")), (1, 0), "{ended}");
    assert_eq!(current(&lab, "device-0"), "2");
    let log = fleet.agents["device-0"].log();
    assert_eq!(log.matches("does not work; going back").count(), 1, "{log}");
}

/// The device had fetched release 2, and activated it never, when the rollout was halted.
#[test]
fn a_device_that_was_killed_before_it_activated_follows_its_channel_on() {
    let lab = Lab::start();
    release(&lab, "1");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let mut fleet = Fleet::start(&lab, None, 1);
    wait_until("release 1 runs", || reporting(&lab, "1") == 1);
    let hook = lab.path("hooks").join("activate");
    fs::write(&hook, "#!/bin/sh\n[ \"$DISTD_VERSION\" != 2 ] || sleep 600\n").expect("write");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("chmod");
    release(&lab, "2");
    ok(&lab, &["rollout", "start", FOLLOWED, "2", "--waves", "100%"]);
    let journal = lab.path("device-0").join("follow.json");
    let activates = || fs::read_to_string(&journal).expect("the journal").contains("activating");
    wait_until("the device activates release 2", activates);
    fleet.agents.get_mut("device-0").expect("the agent").kill();
    ok(&lab, &["rollout", "halt", FOLLOWED]);
    fleet.agents.insert("device-0".to_owned(), follow(&lab, "device-0", &lab.path("hooks")));
    let id = ids(&lab)["device-0"];
    wait_until("the device says why", || held(&lab, &id).contains("halted"));
    assert_eq!(current(&lab, "device-0"), "1");
    // A channel that goes on reaches it, though it had fetched a later release.
    let releases = fs::read_to_string(lab.path("device-0").join("releases.json")).expect("its releases");
    let releases: Value = serde_json::from_str(&releases).expect("JSON");
    assert_eq!(releases["channels"][0]["version"], "1", "{releases}");
}

/// A release that takes the device down while it is checked is not tried for ever.
#[test]
fn a_check_that_is_cut_off_three_times_takes_the_device_back() {
    let lab = Lab::start();
    release(&lab, "1");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let mut fleet = Fleet::start(&lab, None, 1);
    wait_until("release 1 runs", || reporting(&lab, "1") == 1);
    mark(&lab, "slow", "device-0", true);
    release(&lab, "2");
    lab.admin(&["channel", "set", FOLLOWED, "2"]).ok();
    let journal = lab.path("device-0").join("follow.json");
    let checks = || {
        let text = fs::read_to_string(&journal).expect("the journal");
        let journal: Value = serde_json::from_str(&text).expect("JSON");
        journal["entries"][0]["checks"].as_u64().unwrap_or_default()
    };
    for cut_off in 1..=3 {
        wait_until("the check runs", || current(&lab, "device-0") == "2" && checks() == cut_off);
        fleet.agents.get_mut("device-0").expect("the agent").kill();
        fleet.agents.insert("device-0".to_owned(), follow(&lab, "device-0", &lab.path("hooks")));
    }
    wait_until("the device is back", || current(&lab, "device-0") == "1");
    let id = ids(&lab)["device-0"];
    wait_until("the device says why", || held(&lab, &id).contains("failed on this device"));
    assert!(fleet.agents["device-0"].log().contains("the check was cut off 3 times"));
}

/// The patches are there before the first device begins, so none of them fetches chunks.
#[test]
fn the_first_wave_opens_when_the_patches_are_made() {
    let lab = Lab::start_with(&["--patches", "true"]);
    let noise = |seed: u64| -> Vec<u8> {
        let numbers =
            std::iter::successors(Some(seed), |n| Some(n.wrapping_mul(6364136223846793005).wrapping_add(1)));
        numbers.skip(1).take(250_000).flat_map(|n| n.to_be_bytes()[..4].to_vec()).collect()
    };
    let push = |version: &str, bytes: &[u8]| {
        let path = lab.path(&format!("noise-{version}"));
        fs::write(&path, bytes).expect("write");
        lab.push(&path, "os", version).ok();
    };
    let mut bytes = noise(1);
    push("1", &bytes);
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let _fleet = Fleet::start(&lab, None, 1);
    wait_until("the device runs and reports release 1", || reporting(&lab, "1") == 1);
    // Small changes everywhere: every chunk differs, and a patch is small.
    bytes.iter_mut().step_by(2000).for_each(|byte| *byte ^= 1);
    push("2", &bytes);
    ok(&lab, &["rollout", "start", FOLLOWED, "2", "--waves", "100%", "--soak", "1s"]);
    let ended = wait_for_state(&lab, "complete");
    let events = ended["events"].as_array().expect("a list");
    let opened = events.iter().find(|event| event["event"] == "opened").expect("a wave opened");
    assert_eq!(opened["detail"], "wave 1 of 1; patches from 1");
    let wire = sum(&ended, "bytes_origin") + sum(&ended, "bytes_neighbours");
    assert!(wire < 200_000, "{wire} of 1 000 000 bytes");
}

/// Makes the hook `consent` of all devices: a device agrees unless the lab has the file
/// `busy-DEVICE`.
fn consent(lab: &Lab, hooks: &Path) {
    let path = hooks.join("consent");
    let at = lab.path("").display().to_string();
    let script = format!(
        "#!/bin/sh\napp=${{DISTD_PATH%/releases/*}}\n\
         if [ -e \"{at}/busy-${{app##*/}}\" ]; then >\"{at}/asked-${{app##*/}}\"; exit 1; fi\n"
    );
    fs::write(&path, script).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// Two sites of two devices, of which one of each may be under way; the checks are slow.
#[test]
fn no_site_loses_more_devices_at_once_than_its_budget() {
    let lab = Lab::start();
    release(&lab, "1");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let (hooks, relay) = (hooks(&lab), lab.relay("relay", lab.quic()));
    let sites = [("a", "1"), ("b", "1"), ("c", "2"), ("d", "2")];
    let _agents = sites.map(|(device, site)| {
        let made = ok(&lab, &["token", "join", "--label", device, "--labels", &format!("site={site}")]);
        let token = made["token"].as_str().expect("a token");
        // The question for a turn passes through a relay too.
        let parent = if site == "1" { lab.quic() } else { &relay.addresses[0] };
        lab.device(device, &["enroll", "--parent", parent, "--token", token, "--label", device]).ok();
        follow(&lab, device, &hooks)
    });
    wait_until("every device runs and reports release 1", || reporting(&lab, "1") == 4);
    release(&lab, "2");
    sites.iter().for_each(|(device, _)| mark(&lab, "slow", device, true));
    let budget = ["--waves", "100%", "--soak", "1s", "--group-by", "site", "--max-unavailable", "1"];
    ok(&lab, &[&["rollout", "start", FOLLOWED, "2"][..], &budget].concat());

    let ids = ids(&lab);
    let has_begun = |device: &str| current(&lab, device) == "2";
    let waits = |device: &str| held(&lab, &ids[device]).contains("as many other devices");
    for site in [["a", "b"], ["c", "d"]] {
        wait_until("one device of the site is under way and the other waits", || {
            site.iter().any(|device| has_begun(device)) && site.iter().any(|device| waits(device))
        });
        assert_eq!(site.iter().filter(|device| has_begun(device)).count(), 1);
    }
    let under_way = status(&lab);
    let turns = under_way["turns"].as_array().expect("a list");
    let groups: Vec<_> = turns.iter().map(|turn| turn["group"].as_str().expect("text")).collect();
    assert!(groups.len() == 2 && groups.contains(&"1") && groups.contains(&"2"), "{under_way}");
    // A pull by hand reports nothing, so it takes no part.
    let elsewhere = lab.path("elsewhere").display().to_string();
    let waiting = sites.iter().map(|(device, _)| *device).find(|device| waits(device)).expect("one waits");
    let pulled = lab.device(waiting, &["pull", FOLLOWED, "--out", &elsewhere]).ok();
    assert_eq!(pulled.json["version"], "1", "{}", pulled.json);

    // The second of a site begins when the first has ended.
    let firsts: Vec<&str> =
        sites.iter().map(|(device, _)| *device).filter(|device| has_begun(device)).collect();
    for first in &firsts {
        mark(&lab, "slow", first, false);
    }
    wait_until("the others begin", || sites.iter().all(|(device, _)| has_begun(device)));
    for (device, _) in sites.iter().filter(|(device, _)| !firsts.contains(device)) {
        mark(&lab, "slow", device, false);
    }
    wait_for_state(&lab, "complete");
}

#[test]
fn a_rollout_waits_for_consent_and_windows_unless_it_is_forced() {
    let lab = Lab::start();
    let versions = ["1", "2", "3", "4"];
    for version in versions {
        release(&lab, version);
    }
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let hooks = hooks(&lab);
    let _agents = [("a", "0"), ("b", "1")]
        .map(|(device, ring)| labelled(&lab, device, &format!("ring={ring}"), &hooks));
    wait_until("every device runs and reports release 1", || reporting(&lab, "1") == 2);
    let ids = ids(&lab);
    let start = |version: &str, conditions: &[&str]| {
        let all = ["rollout", "start", FOLLOWED, version, "--waves", "1,100%", "--soak", "1s"];
        ok(&lab, &[&all[..], conditions].concat())
    };

    // Without the hook no device agrees to a soft rollout; the release is fetched meanwhile.
    let begun = start("2", &["--soft", "--first", "ring=0"]);
    assert_eq!(begun["rollout"]["conditions"]["urgency"], "soft");
    wait_until("device a, which comes first, waits for consent", || {
        held(&lab, &ids["a"]).contains("`consent`") && place(&lab, "a").join("releases/2").exists()
    });
    wait_until("device b waits for its wave", || held(&lab, &ids["b"]).contains("wave 2 of 2"));
    mark(&lab, "busy", "a", true);
    consent(&lab, &hooks);
    wait_until("the hook is asked", || lab.path("asked-a").exists());
    assert_eq!(current(&lab, "a"), "1");
    mark(&lab, "busy", "a", false);
    wait_for_state(&lab, "complete");
    assert_eq!(current(&lab, "b"), "2");

    // A window of the rollout that is closed now, and one that is open.
    let hour = (unix_now() / 3600 + 12) % 24;
    let closed = format!("{hour:02}:00-{:02}:00", (hour + 1) % 24);
    start("3", &["--window", &closed]);
    wait_until("device a or b waits for the window", || {
        ids.values().any(|id| held(&lab, id).contains("no window"))
    });
    ok(&lab, &["rollout", "halt", FOLLOWED]);
    assert!(ids.keys().all(|device| current(&lab, device) == "2"));

    // A forced rollout asks nobody.
    mark(&lab, "busy", "a", true);
    mark(&lab, "busy", "b", true);
    start("4", &[]);
    wait_until("a device waits for consent", || ids.values().any(|id| held(&lab, id).contains("`consent`")));
    ok(&lab, &["rollout", "halt", FOLLOWED]);
    start("4", &["--forced"]);
    wait_for_state(&lab, "complete");
    assert!(ids.keys().all(|device| current(&lab, device) == "4"));
    for wrong in
        [&["--forced", "--soft"][..], &["--rate", "5"], &["--max-unavailable", "2"], &["--first", "a=="]]
    {
        assert_eq!(
            lab.admin(&[&["rollout", "start", FOLLOWED, "4"][..], wrong].concat()).code,
            2,
            "{wrong:?}"
        );
    }
}

#[test]
fn a_channel_may_want_the_approval_of_a_second_token() {
    let lab = Lab::start();
    release(&lab, "1");
    release(&lab, "2");
    lab.admin(&["channel", "set", FOLLOWED, "1"]).ok();
    let fleet = Fleet::start(&lab, None, 1);
    wait_until("the device runs and reports release 1", || reporting(&lab, "1") == 1);
    ok(&lab, &["channel", "approval", FOLLOWED, "on"]);
    assert_eq!(ok(&lab, &["channel", "show", FOLLOWED])["approval"], true);
    // Nothing leads around it.
    for around in [&["channel", "set", FOLLOWED, "2"][..], &["channel", "rm", FOLLOWED]] {
        let refused = lab.admin(around);
        assert!(refused.code == 5 && refused.stderr.contains("second token"), "{}", refused.stderr);
    }
    let begun = ok(&lab, &["rollout", "start", FOLLOWED, "2", "--waves", "100%", "--soak", "1s"]);
    assert_eq!((&begun["waits_for"], &begun["rollout"]["approval"]), (&"approval".into(), &"wanted".into()));
    let id = begun["rollout"]["id"].as_str().expect("an id").to_owned();
    let approve = ["rollout", "approve", FOLLOWED, "--rollout", &id];
    let own = lab.admin(&approve);
    assert!(own.code == 4 && own.stderr.contains("another one approves"), "{}", own.stderr);
    // The origin takes a step each 5 seconds.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!((open_waves(&status(&lab)), current(&lab, "device-0")), (0, "1".to_owned()));

    let token = ok(&lab, &["token", "create", "--label", "second", "--scope", "channel,read"]);
    let mut second = lab.command("admin");
    second.env("DISTD_TOKEN", token["token"].as_str().expect("a token"));
    // An approval of something else is none.
    let other = lab.admin(&["rollout", "approve", FOLLOWED, "--rollout", &"0".repeat(32)]);
    assert!(other.code == 5 && other.stderr.contains("does not name it"), "{}", other.stderr);
    let approved = second.args(approve).args(["--reason", "tested"]).output().expect("run distd");
    assert!(approved.status.success(), "{}", String::from_utf8_lossy(&approved.stderr));
    let ended = wait_for_state(&lab, "complete");
    assert_eq!(
        (&ended["events"][1]["event"], &ended["events"][1]["label"]),
        (&"approved".into(), &"second".into())
    );
    assert_eq!(fleet.running(&lab, "2").len(), 1);
}
