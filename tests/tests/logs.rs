//! Logs of a device, a relay and an origin: one request is found in all three, and no secret in
//! any.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use distd_tests::lab::{Daemon, Lab, binary, run, wait_until};
use distd_tests::receiver::{Receiver, Reply};
use serde_json::Value;

/// Objects of a log in JSON.
fn lines(text: &str) -> Vec<Value> {
    let object = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(object).collect()
}

/// Ids of requests in a log.
fn ids(text: &str) -> BTreeSet<String> {
    let id = |line: &Value| line["request"].as_str().map(str::to_owned);
    lines(text).iter().filter_map(id).collect()
}

/// A realm whose origin, relay and device log everything as JSON.
struct Site {
    lab: Lab,
    relay: Daemon,
}

impl Site {
    fn start(level: &str) -> Self {
        // The origin of the lab takes the environment of this test, which has one test a process.
        let lab = Lab::start_logging(&["--webhook-network", "127.0.0.0/8"], level);
        let mut command = Command::new(binary("distd-peer"));
        command
            .args(["run", "--parent", lab.quic(), "--listen", "127.0.0.1:0", "--data"])
            .arg(lab.path("relay"));
        command.env("DISTD_JOIN_TOKEN", lab.join_token("relay", 1));
        command.env("DISTD_LOG", level).env("DISTD_LOG_FORMAT", "json");
        let relay = Daemon::start(command, &lab.path("relay.log"), "relay listening on ");
        Self { lab, relay }
    }

    fn pull(&self, device: &str, wanted: &str, level: &str) -> String {
        let mut command = self.lab.pull_command(device, wanted, &self.lab.path("out"), &[]);
        command.env("DISTD_LOG", level).env("DISTD_LOG_FORMAT", "json");
        run(&mut command).ok().stderr
    }
}

#[test]
fn a_pull_is_found_in_the_logs_of_device_relay_and_origin() {
    let level = "distd::request=debug,info";
    let mut site = Site::start(level);
    let artifact = site.lab.path("a");
    fs::write(&artifact, [7; 50_000]).expect("write");
    site.lab.push(&artifact, "os", "1").ok();
    site.lab.enroll("d", &site.relay.addresses[0]);
    let device = ids(&site.pull("d", "os@1", level));
    assert_eq!(device.len(), 1, "{device:?}");
    let id = device.first().expect("an id");
    assert_eq!(id.len(), 16);
    assert!(ids(&site.relay.log()).contains(id), "{}", site.relay.log());
    let log = site.lab.origin().log();
    assert!(ids(&log).contains(id), "{log}");
    for line in lines(&log) {
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["target"].is_string(),
            "{line}"
        );
    }
    // Devices that ask the same share an answer of the relay, whatever their ids are.
    site.lab.enroll("e", &site.relay.addresses[0]);
    let again = ids(&site.pull("e", "os@1", level));
    assert!(ids(&site.relay.log()).is_superset(&again));
    assert_ne!(again, device);
}

/// Secrets in a file: a PEM block's lines, or the whole text.
fn secrets_in(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let body: Vec<String> =
        text.lines().filter(|line| !line.starts_with("-----")).map(|line| line.trim().to_owned()).collect();
    body.into_iter().filter(|line| line.len() >= 16).collect()
}

#[test]
fn no_log_has_a_secret() {
    let level = "trace";
    let mut site = Site::start(level);
    let lab = &site.lab;
    let receiver = Receiver::start();
    receiver.will_reply([Reply::Status(500)]);
    let mut secrets = vec!["password-of-the-proxy".to_owned(), "key-of-the-receiver".to_owned()];
    let mut said = String::new();
    // Commands of the operator, which print a secret on standard output once, and log on standard
    // error.
    let mut admin = |args: &[&str]| -> Value {
        let mut command = lab.command("admin");
        command.args(args).env("DISTD_LOG", level).env("DISTD_LOG_FORMAT", "json");
        let outcome = run(&mut command).ok();
        said.push_str(&outcome.stderr);
        outcome.json
    };
    let mut keep = |made: &Value, field: &str| {
        let secret = made[field].as_str().expect("a secret").to_owned();
        // The part behind the prefix and the realm's fingerprint is the secret itself.
        secrets.push(secret.clone());
        secret
    };
    let hook = admin(&["webhook", "add", &receiver.url("/x?k=key-of-the-receiver")]);
    let key = keep(&hook, "secret");
    keep(&admin(&["token", "create", "--scope", "read", "--label", "ci"]), "token");
    let leaf = keep(&admin(&["token", "join", "--role", "leaf"]), "token");
    let artifact = lab.path("a");
    fs::write(&artifact, [7; 50_000]).expect("write");
    admin(&["push", &artifact.display().to_string(), "--product", "os", "--version", "1"]);
    let mut enroll = lab.command("d");
    enroll.args(["enroll", "--parent", &site.relay.addresses[0], "--token", &leaf]);
    enroll.env("DISTD_LOG", level).env("DISTD_LOG_FORMAT", "json");
    said.push_str(&run(&mut enroll).ok().stderr);
    lab.configure("d", "mdns = false\n");
    said.push_str(&site.pull("d", "os@1", level));
    let mut proxied = lab.pull_command("d", "os@1", &lab.path("never"), &["--transport", "https"]);
    proxied.env("DISTD_PROXY_URL", "http://me:password-of-the-proxy@127.0.0.1:1");
    proxied.env("DISTD_LOG", level).env("DISTD_LOG_FORMAT", "json");
    said.push_str(&run(&mut proxied).stderr);
    wait_until("the event was taken", || receiver.received().len() >= 2);

    for path in [
        "d/node.key",
        "relay/node.key",
        "origin/admin.token",
        "origin/realm/ca.key",
        "origin/realm/origin.key",
    ] {
        let found = secrets_in(&lab.path(path));
        assert!(!found.is_empty(), "{path}");
        secrets.extend(found);
    }
    for key in fs::read_dir(lab.path("origin/tuf-keys")).expect("keys").flatten() {
        if key.path().is_file() && key.path().extension().is_none_or(|end| end != "json") {
            secrets.extend(secrets_in(&key.path()));
        }
    }
    secrets.push(key.trim_start_matches("whsec_").to_owned());
    assert!(secrets.len() >= 12, "{}", secrets.len());

    let relay = site.relay.log();
    let origin = site.lab.origin().log();
    for (program, log) in [("device and operator", &said), ("relay", &relay), ("origin", &origin)] {
        assert!(log.len() > 10_000, "{program} logs all it does: {} bytes", log.len());
        for secret in &secrets {
            let shown = &secret[..secret.len().min(8)];
            assert!(!log.contains(secret.as_str()), "the log of {program} has the secret {shown}…");
        }
    }
}
