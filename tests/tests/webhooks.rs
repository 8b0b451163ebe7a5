//! Webhooks of a real origin, sent to real receivers over loopback.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use distd_tests::lab::{Lab, wait_until};
use distd_tests::receiver::{Receiver, Reply};
use serde_json::{Value, json};

const LOOPBACK: [&str; 2] = ["--webhook-network", "127.0.0.0/8"];

fn release(lab: &Lab, version: &str) {
    let path = lab.path(&format!("release-{version}"));
    fs::write(&path, [version.as_bytes(), &[7; 100_000]].concat()).expect("write");
    lab.push(&path, "os", version).ok();
}

/// Registers a receiver; returns the id of the webhook and the key.
fn add(lab: &Lab, url: &str, args: &[&str]) -> (String, String) {
    let added = lab.admin(&[&["webhook", "add", url][..], args].concat()).ok().json;
    let text = |field: &str| added[field].as_str().unwrap_or_default().to_owned();
    (text("id"), text("secret"))
}

fn listed(lab: &Lab, id: &str) -> Value {
    let list = lab.admin(&["webhook", "ls"]).ok().json;
    let hooks = list["webhooks"].as_array().expect("a list");
    hooks.iter().find(|hook| hook["id"] == id).expect("the webhook").clone()
}

fn kinds(versions: &[&str]) -> Vec<String> {
    versions.iter().map(|_| "release.published".to_owned()).collect()
}

#[test]
fn events_come_in_order_and_once_more_after_errors_and_after_a_kill() {
    let mut lab = Lab::start_with(&LOOPBACK);
    let (receiver, slow) = (Receiver::start(), Receiver::start());
    let (id, secret) = add(&lab, &receiver.url("/hook?key=of-the-receiver"), &["--label", "pager"]);
    // A receiver that never answers holds nobody else up.
    slow.will_reply((0..20).map(|_| Reply::Silent(Duration::from_secs(60))));
    add(&lab, &slow.url("/"), &["--event", "release.published,release.withdrawn"]);

    release(&lab, "1");
    wait_until("release 1 is told", || receiver.received().len() == 1);
    wait_until("the slow one was asked", || !slow.received().is_empty());

    // The receiver fails twice; the events behind wait, and come in order.
    receiver.will_reply([Reply::Status(500), Reply::Status(503)]);
    release(&lab, "2");
    release(&lab, "3");
    wait_until("all were told", || receiver.received().len() == 5);
    let versions: Vec<Value> =
        receiver.received().iter().map(|r| r.json()["data"]["version"].clone()).collect();
    assert_eq!(versions, ["1", "2", "2", "2", "3"]);
    let ids: Vec<String> = receiver.received().iter().map(|r| r.headers["webhook-id"].clone()).collect();
    assert!(ids[1] == ids[2] && ids[2] == ids[3] && ids[0] != ids[1] && ids[3] != ids[4], "{ids:?}");
    assert_eq!(receiver.kinds(), kinds(&["1", "2", "2", "2", "3"]));

    // The origin is killed while an event waits: the receiver does not answer the try.
    receiver.will_reply([Reply::Silent(Duration::from_secs(60))]);
    lab.admin(&["release", "withdraw", "os@2"]).ok();
    wait_until("the try has begun", || receiver.received().len() == 6);
    lab.restart_origin();
    wait_until("it is made again", || receiver.received().len() == 7);
    let received = receiver.received();
    assert_eq!(received[5].headers["webhook-id"], received[6].headers["webhook-id"]);
    let event = received[6].json();
    assert_eq!((&event["type"], &event["data"]["version"]), (&json!("release.withdrawn"), &json!("2")));
    assert!(event["data"]["by"].as_str().is_some_and(|by| by.starts_with("token ")), "{event}");
    wait_until("the webhook is healthy", || listed(&lab, &id)["state"] == "healthy");
    assert_eq!(listed(&lab, &id)["waiting"], 0);

    // The library of the Standard Webhooks takes each of them, and none with another body.
    let event = |r: &distd_tests::receiver::Received, body: &str| json!({"secret": secret, "headers": r.headers, "body": body});
    let all: Vec<Value> = received.iter().map(|r| event(r, &r.body)).collect();
    if let Some((verified, said)) = verified_outside(&all) {
        assert!(verified, "{said}");
        let (verified, said) =
            verified_outside(&[event(&received[0], "{\"type\":\"forged\"}")]).expect("it ran before");
        assert!(!verified && said.contains("No matching signature"), "{said}");
    }

    // The address may be secret, and the key is: no log and no audit entry has them.
    let audit = lab.admin(&["audit", "ls"]).ok().stdout;
    assert!(audit.contains("webhook.add") && !audit.contains("of-the-receiver"), "{audit}");
    let log = lab.origin().log();
    assert!(log.contains("event not taken") && !log.contains("of-the-receiver"), "{log}");
    let bare = secret.trim_start_matches("whsec_");
    assert!(!bare.is_empty() && !log.contains(bare) && !audit.contains(bare));
    let viewer = lab.admin(&["token", "create", "--scope", "view", "--label", "viewer"]).ok();
    let viewer = viewer.json["token"].as_str().expect("a token").to_owned();
    let header = format!("Authorization: Bearer {viewer}");
    let output = Command::new("curl")
        .args(["-sS", "--cacert"])
        .arg(lab.path("origin/realm/ca.pem"))
        .args(["--connect-to", &format!("::{}", lab.https()), "-H", &header, "https://localhost/v1/webhooks"])
        .output()
        .expect("run curl");
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(seen.contains("http://127.0.0.1") && !seen.contains("of-the-receiver"), "{seen}");

    let removed = lab.admin(&["webhook", "rm", &id]);
    assert_eq!(removed.code, 0);
    assert_eq!(lab.admin(&["webhook", "test", &id]).code, 3, "it is gone");
}

/// Whether the outside library takes events, and what it says; `None` where it is not installed.
fn verified_outside(events: &[Value]) -> Option<(bool, String)> {
    let Some(python) = std::env::var_os("DISTD_TEST_PYTHON") else {
        println!("skipped: DISTD_TEST_PYTHON names no Python with the library standardwebhooks");
        return None;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/webhook_check.py");
    let mut command = Command::new(python);
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run Python");
    let input = serde_json::to_vec(events).expect("JSON");
    child.stdin.take().expect("piped").write_all(&input).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Some((output.status.success(), said.concat()))
}

#[test]
fn redirects_are_not_followed_and_answers_are_bounded() {
    let lab = Lab::start_with(&LOOPBACK);
    let (receiver, elsewhere) = (Receiver::start(), Receiver::start());
    let (id, _) = add(&lab, &receiver.url("/"), &[]);

    receiver.will_reply([Reply::Redirect(elsewhere.url("/stolen"))]);
    let test = lab.admin(&["webhook", "test", &id]);
    assert!(test.code != 0 && test.stderr.contains("307") && test.stderr.contains("redirect"), "{test:?}");
    assert_eq!((receiver.received().len(), elsewhere.received().len()), (1, 0));

    // An answer without end: the event is taken, and the connection ends soon.
    receiver.will_reply([Reply::Endless]);
    let test = lab.admin(&["webhook", "test", &id]).ok();
    assert_eq!(test.json["delivered"], true);
    let answered = || receiver.received()[1].answered;
    wait_until("the sender goes away", || {
        let before = answered();
        std::thread::sleep(Duration::from_millis(300));
        answered() == before
    });
    // The buffers of the two sockets hold a few megabytes at most.
    assert!(answered() < 20 << 20, "{} bytes", answered());

    // An event that is refused does not hold the next one up.
    receiver.will_reply([Reply::Status(400)]);
    release(&lab, "1");
    wait_until("release 1 was refused", || receiver.received().len() >= 3);
    release(&lab, "2");
    wait_until("release 2 is told", || {
        receiver
            .received()
            .iter()
            .filter(|r| r.kind() == "release.published")
            .any(|r| r.json()["data"]["version"] == "2")
    });
    let log = lab.admin(&["webhook", "log", &id]).ok().json;
    assert!(log["deliveries"].as_array().expect("a list").len() == 2, "{log}");
}

#[test]
fn an_origin_sends_only_where_it_may() {
    let lab = Lab::start();
    let receiver = Receiver::start();
    for (url, why) in [
        (receiver.url("/"), "webhook_network"),
        ("https://10.0.0.1/".to_owned(), "webhook_network"),
        ("https://169.254.169.254/latest".to_owned(), "metadata"),
        ("http://example.com/".to_owned(), "https://"),
        ("https://me:secret@example.com/".to_owned(), "password"),
    ] {
        let refused = lab.admin(&["webhook", "add", &url]);
        assert!(refused.code != 0 && refused.stderr.contains(why), "{url}: {}", refused.stderr);
    }
    let refused = lab.admin(&["webhook", "add", "https://example.com/", "--event", "rollout.failed"]);
    assert!(refused.stderr.contains("rollout.halted"), "{}", refused.stderr);
    // A name that leads to a private address is refused when an event is sent.
    let port = receiver.address.port();
    let (id, _) = add(&lab, &format!("https://localhost:{port}/"), &[]);
    let test = lab.admin(&["webhook", "test", &id]);
    assert!(test.stderr.contains("webhook_network"), "{}", test.stderr);
    assert!(receiver.received().is_empty());
}
