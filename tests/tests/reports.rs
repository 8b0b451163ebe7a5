//! Reports of devices that lie, flood or may not report.

use bytes::Bytes;
use distd_core::fleet::report::{Report, Running};
use distd_peer::trust::report::{ReportSigner, is_kept, question};
use distd_tests::lab::{Lab, wait_until};
use distd_tests::leaf::Leaf;
use serde_json::Value;

/// A signed report of `leaf` that it runs `version` of `os:CHANNEL`.
fn report(leaf: &Leaf, sequence: u64, channel: &str, version: &str) -> Bytes {
    let running = Running {
        product: "os".parse().expect("a name"),
        channel: channel.parse().expect("a name"),
        version: Some(version.parse().expect("a name")),
        manifest: None,
        held: None,
        held_from: None,
    };
    let report = Report { sequence, at: 1, boot: vec![0; 16], running: vec![running], ..Report::default() };
    let signer = ReportSigner::new(&leaf.identity).expect("a signer");
    signer.sign(report).expect("signs").bytes
}

/// What the origin says that a node runs.
fn runs(lab: &Lab, leaf: &Leaf) -> Value {
    let node = lab.admin(&["node", "show", &leaf.identity.node_id().to_string()]).ok().json;
    node["node"]["running"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_reports_for_itself_alone_and_only_what_it_may() {
    let lab = Lab::start_without_grants(&[]);
    lab.admin(&["grant", "add", "everyone", "os:stable", "--by-certificate"]).ok();
    lab.admin(&["grant", "add", "everyone", "os:beta", "--rights", "read,seed"]).ok();
    let (a, b) = (Leaf::enrolled(&lab, "a").await, Leaf::enrolled(&lab, "b").await);
    let link = a.connect(lab.quic()).await.expect("connects");
    let send = async |reports: &[Bytes]| link.metadata(question(reports)).await;

    // The answer is the same, so that nobody learns which nodes there are.
    let others = send(&[report(&b, 1, "stable", "1")]).await.expect("an answer");
    assert!(is_kept(&others));
    assert_eq!(runs(&lab, &b), serde_json::json!([]));
    send(&[report(&a, 5, "stable", "1")]).await.expect("an answer");
    assert_eq!(runs(&lab, &a)[0]["version"], "1");
    // Replayed, overtaken, changed on the way, about a channel without the right.
    let mut changed = report(&a, 9, "stable", "9").to_vec();
    *changed.last_mut().expect("bytes") ^= 1;
    for bytes in [report(&a, 5, "stable", "2"), report(&a, 4, "stable", "2"), changed.into()] {
        send(&[bytes]).await.expect("an answer");
    }
    send(&[report(&a, 6, "beta", "2")]).await.expect("an answer");
    let known = runs(&lab, &a);
    assert_eq!((known.as_array().map(Vec::len), &known[0]["version"]), (Some(1), &"1".into()));

    // A device that floods is told to wait, and no other is.
    let mut refused = 0;
    for sequence in 10..50 {
        let link = a.connect(lab.quic()).await.expect("connects");
        refused += u32::from(link.metadata(question(&[report(&a, sequence, "stable", "3")])).await.is_err());
    }
    assert!((1..40).contains(&refused), "{refused}");
    let other = b.connect(lab.quic()).await.expect("connects");
    assert!(is_kept(&other.metadata(question(&[report(&b, 1, "stable", "1")])).await.expect("an answer")));
    assert_eq!(runs(&lab, &b)[0]["version"], "1");
    // A revoked device says nothing any more, through whomever.
    lab.admin(&["node", "revoke", &b.identity.node_id().to_string()]).ok();
    assert!(
        b.connect(lab.quic()).await.is_err()
            || other.metadata(question(&[report(&b, 2, "stable", "2")])).await.is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_keeps_reports_over_a_restart_until_its_origin_is_back() {
    let mut lab = Lab::start();
    let mut relay = lab.relay("relay", lab.quic());
    let leaf = Leaf::enrolled(&lab, "a").await;
    lab.stop_origin();
    let link = leaf.connect(&relay.addresses[0]).await.expect("connects");
    let answer = link.metadata(question(&[report(&leaf, 5, "stable", "1")])).await.expect("an answer");
    assert!(is_kept(&answer));
    let kept = lab.path("relay").join("reports");
    let files = || std::fs::read_dir(&kept).map_or(0, |entries| entries.count());
    assert_eq!(files(), 1);
    relay.kill();
    let address = relay.addresses[0].clone();
    let _relay = lab.relay_at("relay", lab.quic(), &address, &[]);
    lab.start_origin();
    wait_until("the relay hands the report over", || files() == 0);
    assert_eq!(runs(&lab, &leaf)[0]["version"], "1");
}
