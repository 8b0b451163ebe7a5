//! A machine's clock that is wrong once, or stays wrong: the device's reaction, and its recovery
//! without help.
//!
//! `faketime` shifts the clock of one process.

use std::process::Command;

use distd_tests::lab::{Lab, Outcome, binary, same};

/// A pull of `os@1` by `device` with its clock set by `faketime`; `None`: with the real clock.
fn pull(lab: &Lab, device: &str, clock: Option<&str>) -> Outcome {
    let out = lab.path(&format!("out-{device}"));
    let plain = lab.pull_command(device, "os@1", &out, &[]);
    let Some(clock) = clock else { return outcome(plain) };
    let mut command = Command::new("faketime");
    command.args(["-f", clock]).arg(binary("distd")).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // Time-outs use the monotonic clock, which nobody sets.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    outcome(command)
}

fn outcome(mut command: Command) -> Outcome {
    Outcome::of(command.output().expect("run it (package faketime)"))
}

#[test]
fn a_clock_that_was_ahead_once_does_not_lock_a_device_out() {
    let lab = Lab::start();
    let artifact = lab.path("a");
    std::fs::write(&artifact, b"an artifact of a few bytes").expect("write");
    lab.push(&artifact, "os", "1").ok();
    // A hardware clock in local time, an hour too late, nearly a day: metadata is still valid. With
    // a later clock the metadata's own dates refuse it.
    for (clock, code) in [("+10m", 0), ("+10h", 0), ("+23h", 0), ("+20d", 4), ("+25d", 4), ("+73y", 6)] {
        let device = format!("d{}", clock.trim_start_matches('+'));
        lab.enroll(&device, lab.quic());
        let ahead = pull(&lab, &device, Some(clock));
        assert_eq!(ahead.code, code, "{clock}: {}", ahead.stderr);
        assert!(code == 0 || ahead.stderr.contains("clock"), "{clock}: {}", ahead.stderr);
        let after = pull(&lab, &device, None);
        assert_eq!(after.code, 0, "after {clock}: {}", after.stderr);
        assert!(same(&lab.path(&format!("out-{device}")), &artifact), "{clock}");
    }
}

#[test]
fn a_clock_that_is_behind_is_named() {
    let lab = Lab::start();
    let artifact = lab.path("a");
    std::fs::write(&artifact, b"an artifact of a few bytes").expect("write");
    lab.push(&artifact, "os", "1").ok();
    lab.enroll("d", lab.quic());
    for (clock, code) in [("-30m", 0), ("@1970-01-02 00:00:00", 6), ("-2d", 6)] {
        let behind = pull(&lab, "d", Some(clock));
        assert_eq!(behind.code, code, "{clock}: {}", behind.stderr);
        assert!(code == 0 || behind.stderr.contains("clock"), "{clock}: {}", behind.stderr);
        assert_eq!(pull(&lab, "d", None).code, 0, "after {clock}");
    }
}

#[test]
fn a_certificate_that_ended_while_no_parent_answers_is_no_refusal() {
    let mut lab = Lab::start();
    let artifact = lab.path("a");
    std::fs::write(&artifact, b"an artifact of a few bytes").expect("write");
    lab.push(&artifact, "os", "1").ok();
    lab.enroll("d", lab.quic());
    lab.stop_origin();
    let ended = pull(&lab, "d", Some("+30h"));
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    assert!(ended.stderr.contains("clock"), "{}", ended.stderr);
    lab.start_origin();
    assert_eq!(pull(&lab, "d", None).code, 0);
}
