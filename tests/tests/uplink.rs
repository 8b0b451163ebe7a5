//! An office whose uplink is down, and whose relay is restarted meanwhile.

use distd_tests::lab::{Lab, same, wait_until};
use distd_tests::rng::Rng;

#[test]
fn a_relay_that_starts_without_its_uplink_serves_what_it_has_with_its_metadata() {
    let mut lab = Lab::start();
    let artifact = lab.path("a");
    std::fs::write(&artifact, Rng::new(11).bytes(700_000)).expect("write");
    lab.push(&artifact, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    let args = ["--metrics", "127.0.0.1:0"];
    let mut relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &args);
    let address = relay.addresses[0].clone();
    for device in ["first", "second"] {
        lab.enroll(device, &address);
    }
    let pull = |lab: &Lab, device: &str| {
        let out = lab.path(&format!("{device}.out"));
        let text = out.display().to_string();
        let pulled = lab.device(device, &["pull", "os:stable", "--out", &text, "--parent", &address]);
        (pulled, out)
    };
    pull(&lab, "first").0.ok();
    wait_until("the relay has kept the metadata", || lab.path("relay/metadata/timestamp.json").exists());
    assert_eq!(relay.metric("distd_relay_parent_up"), 1);
    let origin = lab.quic().to_owned();
    lab.stop_origin();
    relay.kill();
    let relay = lab.relay_at("relay", &origin, &address, &args);
    relay.wait_for("no parent answers");
    assert_eq!(relay.metric("distd_relay_parent_up"), 0);
    // A device that this relay never served before.
    let (pulled, out) = pull(&lab, "second");
    pulled.ok();
    assert!(same(&out, &artifact));
    assert!(relay.metric("distd_relay_metadata_stale_total") > 0);
    lab.start_origin();
    relay.wait_for("a parent answers again");
    assert_eq!(relay.log().matches("no parent answers").count(), 1, "{}", relay.log());
}
