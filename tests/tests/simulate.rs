//! A fleet of simulated devices tries the policy of a rollout.

use std::fs;
use std::time::Duration;

use distd_tests::lab::{Lab, Running, wait_within};
use serde_json::Value;

const DEVICES: u64 = 40;

/// Longest wait for the fleet, which shares two cores with other tests.
const PATIENCE: Duration = Duration::from_secs(180);

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    wait_within(PATIENCE, Duration::from_millis(300), what, holds);
}

/// Starts the devices of the directory `fleet`, of which about this share fails.
fn simulate(lab: &Lab, fail: &str) -> Running {
    let token = lab.path("join");
    if !token.exists() {
        let devices = DEVICES.to_string();
        let made = lab.admin(&["token", "join", "--uses", &devices, "--labels", "simulated=yes"]).ok().json;
        fs::write(&token, made["token"].as_str().expect("a token")).expect("write");
    }
    let mut command = lab.command("simulator");
    command.args(["simulate", "os:stable", "--devices", &DEVICES.to_string(), "--parent", lab.quic()]);
    command.arg("--fleet").arg(lab.path("fleet")).arg("--token-file").arg(&token);
    command.args(["--fail", fail, "--fetch-time", "1s", "--check-time", "1s", "--follow-poll-seconds", "1"]);
    Running::start(command)
}

#[test]
fn a_simulated_fleet_halts_a_rollout_by_its_policy_and_ends_another() {
    let lab = Lab::start();
    for version in ["1", "2", "3"] {
        let path = lab.path(&format!("release-{version}"));
        fs::write(&path, version.repeat(1000)).expect("write");
        lab.push(&path, "os", version).ok();
    }
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    let running = |version: &str| {
        let status = lab.admin(&["fleet", "status"]).ok().json;
        let releases = status["releases"].as_array().expect("a list").clone();
        let of = releases.into_iter().find(|release| release["version"] == version);
        of.and_then(|release| release["devices"].as_u64()).unwrap_or(0)
    };
    let status = || lab.admin(&["rollout", "status", "os:stable"]).ok().json;
    let state = |status: &Value| status["rollout"]["state"].as_str().expect("a state").to_owned();
    let start = |version: &str| {
        let waves = ["--waves", "50%,100%", "--soak", "1s", "--halt-on", "2", "--for", "simulated=yes"];
        lab.admin(&[&["rollout", "start", "os:stable", version][..], &waves].concat()).ok();
    };

    // Half of the devices fail: the rollout halts in its first wave.
    let mut fleet = simulate(&lab, "50%");
    wait_until("every device reports release 1", || running("1") == DEVICES);
    start("2");
    wait_until("the rollout halts", || state(&status()) == "halted");
    let halted = status();
    assert!(halted["waves"][1]["opened"].is_null(), "{halted}");
    assert_eq!(halted["failures"][0]["kind"], "health", "{halted}");
    assert!(running("2") <= DEVICES / 2);
    fleet.kill();

    // The same devices, of which nearly none fails now, end another one.
    let _fleet = simulate(&lab, "0.0001%");
    start("3");
    wait_until("the rollout ends", || state(&status()) == "complete");
    wait_until("every device reports release 3", || running("3") == DEVICES);
    let nodes = lab.admin(&["fleet", "status"]).ok().json;
    assert_eq!(nodes["devices"], DEVICES, "no device enrolled twice");
}

#[test]
fn a_fleet_without_a_token_or_with_a_wrong_size_is_refused() {
    let lab = Lab::start();
    let (fleet, parent) = (lab.path("fleet").display().to_string(), lab.quic().to_owned());
    let simulate = |more: &[&str]| {
        let args = ["simulate", "os:stable", "--fleet", &fleet, "--parent", &parent];
        lab.device("simulator", &[&args[..], more].concat())
    };
    let none = simulate(&["--devices", "2"]);
    assert!(none.code == 2 && none.stderr.contains("--token-file"), "{}", none.stderr);
    assert_eq!(simulate(&["--devices", "0"]).code, 2);
    assert_eq!(simulate(&["--devices", "20001"]).code, 2);
}
