//! How far packets go: a site in a network namespace, and a router that counts the packets that
//! leave it.

use std::fs;

use distd_tests::artifacts;
use distd_tests::lab::{Daemon, Lab, Outcome, same};
use distd_tests::netns::{FAR, Namespaces, ROUTER, SITE};

#[test]
fn lan_only_takes_everything_from_the_site_and_no_packet_leaves_it() {
    let mut lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 71);
    lab.push(&v1, "os", "1").ok();
    // Both devices know the realm and the release; then they can no longer reach the origin.
    for device in ["holder", "new"] {
        lab.enroll(device, lab.quic());
        lab.pull(device, "os@1", &lab.path(&format!("slot-{device}")), &[]).ok();
    }
    lab.stop_origin();
    let namespaces = Namespaces::new();
    let listen = format!("{SITE}:4500");
    lab.configure("holder", "connectivity = \"lan_only\"\n");
    let command = namespaces.in_site(&lab.agent_command("holder", &listen));
    let _agent = Daemon::start(command, &lab.path("agent.log"), "agent listening on ");
    let holder = node_id(&lab, "holder");
    let known = format!("[{{\"node\":\"{holder}\",\"address\":\"{listen}\",\"heard\":{}}}]", u64::MAX >> 1);
    fs::write(lab.path("new/neighbours.json"), known).expect("write");

    let out = lab.path("out");
    let far = format!("{FAR}:7444");
    let pull = |how: &str, out: &std::path::Path| {
        let mut command = lab.command("new");
        command.args([
            "pull",
            "os@1",
            "--connectivity",
            how,
            "--parent",
            &far,
            "--parent",
            "origin.invalid:7444",
        ]);
        command.arg("--out").arg(out);
        Outcome::of(namespaces.in_site(&command).output().expect("run distd"))
    };
    let before = namespaces.packets_out();
    let pulled = pull("lan_only", &out).ok();
    assert!(same(&out, &v1));
    assert!(pulled.json["wire_bytes_by_source"]["peer"].as_u64().expect("a number") > 1 << 20);
    assert_eq!(namespaces.packets_out(), before, "packets left the site");

    // With `offline` not even the neighbour is asked; with `online` the count shows that it works.
    let offline = pull("offline", &lab.path("offline"));
    assert_ne!(offline.code, 0);
    assert_eq!(namespaces.packets_out(), before, "packets left the site");
    pull("online", &lab.path("online")).ok();
    assert!(namespaces.packets_out() > before, "a parent beyond the router is asked online");
}

#[test]
fn a_device_finds_an_unadvertised_neighbour_by_multicast() {
    let mut lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 72);
    lab.push(&v1, "os", "1").ok();
    for device in ["holder", "new"] {
        lab.enroll(device, lab.quic());
        lab.pull(device, "os@1", &lab.path(&format!("slot-{device}")), &[]).ok();
        let settings = lab.path(device).join("client.toml");
        let text = fs::read_to_string(&settings).expect("settings");
        fs::write(&settings, text.replace("mdns = false", "connectivity = \"lan_only\"")).expect("write");
    }
    lab.stop_origin();
    let namespaces = Namespaces::new();
    let command = namespaces.at_router(&lab.agent_command("holder", &format!("{ROUTER}:4500")));
    let _agent = Daemon::start(command, &lab.path("agent.log"), "agent listening on ");
    let out = lab.path("out");
    let mut command = lab.command("new");
    command.args(["pull", "os@1", "--out"]).arg(&out);
    let pulled = Outcome::of(namespaces.in_site(&command).output().expect("run distd")).ok();
    assert!(same(&out, &v1));
    assert!(pulled.json["wire_bytes_by_source"]["peer"].as_u64().expect("a number") > 1 << 20);
}

/// The node's id, from its certificate's name.
fn node_id(lab: &Lab, device: &str) -> String {
    distd_peer::trust::identity::NodeIdentity::load_or_create(&lab.path(device))
        .expect("an identity")
        .node_id()
        .to_string()
}
