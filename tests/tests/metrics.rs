//! The numbers that relays and agents give on the loopback interface.

use std::process::Command;

use distd_tests::artifacts;
use distd_tests::lab::{Daemon, Lab, same};

#[test]
fn an_agent_serves_metrics_only_on_loopback() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 121);
    lab.push(&v1, "os", "1").ok();
    for device in ["holder", "new"] {
        lab.enroll(device, lab.quic());
    }
    lab.pull("holder", "os@1", &lab.path("slot"), &[]).ok();
    let start = |metrics: &str| {
        let mut command = lab.agent_command("holder", "127.0.0.1:0");
        command.args(["--metrics", metrics]);
        command
    };
    let refused = start("0.0.0.0:0").output().expect("run distd");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("127.0.0.1"), "{refused:?}");

    let agent = Daemon::start(start("127.0.0.1:0"), &lab.path("agent.log"), "agent listening on ");
    agent.wait_for("announced reached=");
    assert_eq!(agent.metric("distd_quic_chunk_bytes_total"), 0);
    let out = lab.path("out");
    let pulled = lab.pull("new", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
    let from_neighbour = pulled.json["wire_bytes_by_source"]["peer"].as_u64().expect("a number");
    let served = agent.metric("distd_quic_chunk_bytes_total");
    assert!(served > 0 && served <= from_neighbour, "{served} bytes served, {from_neighbour} received");
    assert!(agent.metric("distd_fetch_bytes_total") > 0, "it spoke to the origin");
    assert_eq!(agent.metric("distd_share_misses_total") + agent.metric("distd_peers_quarantined"), 0);

    // Half of the image rots, and the numbers show it.
    let image = std::fs::read(lab.path("slot")).expect("read");
    let rotten: Vec<u8> = image.iter().map(|byte| byte ^ 0x55).collect();
    std::fs::write(lab.path("slot"), rotten).expect("write");
    lab.pull("new", "os@1", &lab.path("again"), &[]).ok();
    assert!(agent.metric("distd_share_misses_total") > 0);

    let url = agent.metrics_url();
    let status = |args: &[&str], url: &str| {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"])
            .args(args)
            .arg(url)
            .output()
            .expect("run curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(status(&[], &url), "200");
    assert_eq!(status(&["-X", "POST"], &url), "405");
    assert_eq!(status(&[], &url.replace("/metrics", "/")), "404");
}
