//! Networks without UDP: the same frames over TCP, directly and through a proxy.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use distd_tests::artifacts;
use distd_tests::lab::{Daemon, Lab, Outcome, same};
use distd_tests::netns::{FAR, Namespaces, SITE};
use distd_tests::proxy::{PROXY_PORT, Proxy};
use serde_json::Value;

fn over(outcome: &Outcome, parent: &str) -> Option<String> {
    outcome.json["transport"][parent].as_str().map(str::to_owned)
}

#[test]
fn a_device_enrols_and_pulls_over_tcp_through_a_relay_that_does_the_same() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 81);
    lab.push(&v1, "os", "1").ok();
    let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &["--transport", "https"]);
    let address = relay.addresses[0].as_str();
    let token = lab.join_token("leaf", 1);
    let how = ["--transport", "https"];
    let enroll = ["enroll", "--parent", address, "--token", &token];
    lab.device("d", &[&enroll[..], &how].concat()).ok();
    lab.configure("d", "mdns = false\ntransport = \"https\"\n");
    let (slot1, slot2) = (lab.path("slot1"), lab.path("slot2"));
    let first = lab.pull("d", "os@1", &slot1, &[]).ok();
    assert!(same(&slot1, &v1));
    assert_eq!(over(&first, address).as_deref(), Some("https"));
    lab.push(&v2, "os", "2").ok();
    let update = lab.pull("d", "os@2", &slot2, &[&slot1]).ok();
    assert!(same(&slot2, &v2));
    assert!(update.number("held_bytes") > update.number("artifact_bytes") / 2, "{}", update.json);

    // Received bytes are counted as over QUIC, because the frames are the same.
    lab.enroll("q", lab.quic());
    lab.configure("q", "transport = \"quic\"\n");
    let quic = lab.pull("q", "os@1", &lab.path("quic"), &[]).ok();
    assert_eq!(over(&quic, lab.quic()).as_deref(), Some("quic"));
    let direct = ["pull", "os@1", "--transport", "https", "--parent", lab.quic(), "--out"];
    let out = lab.path("direct").display().to_string();
    let https = lab.device("d", &[&direct[..], &[&out]].concat()).ok();
    assert_eq!(over(&https, lab.quic()).as_deref(), Some("https"));
    for name in ["chunk_bytes", "node_bytes"] {
        assert_eq!(https.number(name), quic.number(name), "{name}: {} {}", https.json, quic.json);
    }
    // Batches grow with each batch that ends, and the order in which they end depends on the
    // machine.
    let (a, b) = (https.number("requests"), quic.number("requests"));
    assert!(a.abs_diff(b) <= 3, "{a} requests over HTTPS, {b} over QUIC");
    let (a, b) = (https.number("wire_bytes"), quic.number("wire_bytes"));
    assert!(a.abs_diff(b) < b / 100, "{a} bytes over HTTPS, {b} over QUIC");
    assert_eq!(lab.metric("distd_quic_breaches_total"), 0);
}

#[test]
fn a_pull_over_tcp_that_is_killed_goes_on_where_it_was() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 82);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("d", lab.quic());
    lab.configure("d", "transport = \"https\"\n[limits]\ndownload_bytes_per_second = 4000000\n");
    let out = lab.path("out");
    let mut pull = lab.start_pull("d", "os@1", &out, &["--no-share"]);
    // Wait until some of the artifact is durable.
    let journal = lab.path("out.distd-part-journal");
    while fs::metadata(&journal).map_or(0, |meta| meta.len()) == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    pull.kill();
    assert!(!out.exists(), "what is in place is complete");
    let last = lab.pull("d", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
    assert_eq!((&last.json["resumed"], last.number("refetched_verified_bytes")), (&Value::Bool(true), 0));
    assert!(last.number("held_bytes") > 0, "{}", last.json);
    assert_eq!(over(&last, lab.quic()).as_deref(), Some("https"));
}

/// Runs `curl` as HTTP/2 client of the origin's port for nodes; returns its exit code and the HTTP
/// status.
fn curl(lab: &Lab, path: &str, args: &[&str]) -> (i32, String) {
    let port = lab.quic().rsplit(':').next().expect("a port");
    let output = Command::new("curl")
        .args(["-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "--max-time", "20"])
        .arg("--cacert")
        .arg(lab.path("origin/realm/ca.pem"))
        .args(["--resolve", &format!("parent.distd.internal:{port}:127.0.0.1")])
        .args(args)
        .arg(format!("https://parent.distd.internal:{port}{path}"))
        .output()
        .expect("run curl");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn unknown_clients_get_nothing_and_odd_requests_get_an_answer() {
    let lab = Lab::start();
    // This connection sends nothing, and is checked again below.
    let mut silent = TcpStream::connect(lab.quic()).expect("the origin listens");
    silent.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    lab.enroll("d", lab.quic());
    let (cert, key) = (lab.path("d/node.pem"), lab.path("d/node.key"));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let node = ["--cert", cert.as_str(), "--key", key.as_str()];
    for who in [&node[..], &[]] {
        assert_eq!(curl(&lab, "/", who), (0, "2 404".to_owned()));
        assert_eq!(curl(&lab, "/v1/xfer", who), (0, "2 405".to_owned()));
        assert_eq!(curl(&lab, "/v1/enroll", &[who, &["-X", "POST"]].concat()), (0, "2 404".to_owned()));
    }
    // HTTP/1.1 is not spoken here.
    assert_eq!(curl(&lab, "/v1/xfer", &["--http1.1", "--no-alpn", "-d", "x"]).1, "0 000");
    // With a certificate, bytes that are no frame are a breach, and the next stream is still
    // served. Without a certificate only an enrolment is read.
    let question = lab.path("question");
    fs::write(&question, b"\x03\x00\xff\xff\xff\xff\xff").expect("write");
    let post = ["--data-binary", &format!("@{}", question.display())];
    assert_ne!(curl(&lab, "/v1/xfer", &post).0, 0, "reset");
    assert_eq!(lab.metric("distd_quic_breaches_total"), 0);
    for breaches in 1..3 {
        assert_ne!(curl(&lab, "/v1/xfer", &[&node[..], &post].concat()).0, 0, "reset");
        assert_eq!(lab.metric("distd_quic_breaches_total"), breaches);
    }
    // A certificate of another realm does not pass the handshake.
    let other = Lab::start();
    other.enroll("d", other.quic());
    let (cert, key) = (other.path("d/node.pem"), other.path("d/node.key"));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let refused = lab.metric("distd_quic_connections_refused_total");
    assert_ne!(curl(&lab, "/", &["--cert", &cert, "--key", &key]).0, 0);
    assert_eq!(lab.metric("distd_quic_connections_refused_total"), refused + 1);
    assert_eq!(silent.read(&mut [0]).expect("closed in time"), 0, "whoever says nothing is left");
}

/// A device whose commands run in the site's namespace.
struct Site<'a> {
    lab: &'a Lab,
    namespaces: &'a Namespaces,
    environment: Vec<(&'static str, String)>,
}

impl Site<'_> {
    fn run(&self, device: &str, args: &[&str]) -> Outcome {
        let mut command = self.lab.command(device);
        command.args(args).envs(self.environment.iter().cloned());
        Outcome::of(self.namespaces.in_site(&command).output().expect("run distd"))
    }

    fn enroll(&self, device: &str, parent: &str) -> Outcome {
        let token = self.lab.join_token("leaf", 1);
        let outcome = self.run(device, &["enroll", "--parent", parent, "--token", &token]);
        if outcome.code == 0 {
            self.lab.configure(device, "mdns = false\n");
        }
        outcome
    }

    fn pull(&self, device: &str, wanted: &str, out: &Path) -> Outcome {
        self.run(device, &["pull", wanted, "--out", &out.display().to_string()])
    }
}

/// A relay in the site.
fn start_relay(lab: &Lab, namespaces: &Namespaces, args: &[&str]) -> Daemon {
    let mut relay = Command::new(distd_tests::lab::binary("distd-peer"));
    relay.args(["run", "--listen", &format!("{SITE}:0"), "--label", "relay"]).args(args);
    relay.arg("--data").arg(lab.path("relay")).env("DISTD_JOIN_TOKEN", lab.join_token("relay", 1));
    Daemon::start(namespaces.in_site(&relay), &lab.path("relay.log"), "relay listening on ")
}

#[test]
fn a_site_whose_udp_is_dropped_enrols_pulls_and_remembers() {
    let namespaces = Namespaces::new();
    let lab = Lab::start_at(namespaces.router(), FAR);
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 83);
    lab.push(&v1, "os", "1").ok();
    namespaces.cut("meta l4proto udp");
    let site = Site { lab: &lab, namespaces: &namespaces, environment: Vec::new() };
    let out = lab.path("out");

    // QUIC alone does not get through.
    let token = lab.join_token("leaf", 1);
    let stuck = site.run("q", &["enroll", "--transport", "quic", "--parent", lab.quic(), "--token", &token]);
    assert_eq!(stuck.code, 6, "{}", stuck.stderr);
    assert!(stuck.stderr.contains("UDP"), "{}", stuck.stderr);

    site.enroll("d", lab.quic()).ok();
    let first = site.pull("d", "os@1", &out).ok();
    assert!(same(&out, &v1));
    assert_eq!(over(&first, lab.quic()).as_deref(), Some("https"));
    let remembered =
        fs::read_to_string(lab.path("d/transports.json")).expect("what got through is remembered");
    let remembered: Value = serde_json::from_str(&remembered).expect("JSON");
    assert!(remembered[lab.quic()]["https_since"].as_u64().is_some(), "{remembered}");

    // A relay of the site does the same, and devices reach it over QUIC.
    let relay = start_relay(&lab, &namespaces, &["--parent", lab.quic()]);
    let address = relay.addresses[0].as_str();
    site.enroll("e", address).ok();
    lab.push(&v2, "os", "2").ok();
    let pulled = site.pull("e", "os@2", &lab.path("out2")).ok();
    assert!(same(&lab.path("out2"), &v2));
    assert_eq!(over(&pulled, address).as_deref(), Some("quic"));

    // UDP works again and TCP does not: the remembered transport does not prevent QUIC from being
    // found.
    namespaces.let_through();
    namespaces.cut("meta l4proto tcp");
    let update = site.pull("d", "os@2", &out).ok();
    assert!(same(&out, &v2));
    assert_eq!(over(&update, lab.quic()).as_deref(), Some("quic"));
    let forgotten = fs::read_to_string(lab.path("d/transports.json")).expect("readable");
    assert!(!forgotten.contains("https_since"), "{forgotten}");
}

/// A pull over QUIC; `happens` runs when some of the artifact is durable.
fn pull_half_way(seed: u64, happens: impl FnOnce(&Namespaces)) -> (Lab, Outcome) {
    let namespaces = Namespaces::new();
    let lab = Lab::start_at(namespaces.router(), FAR);
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), seed);
    lab.push(&v1, "os", "1").ok();
    let site = Site { lab: &lab, namespaces: &namespaces, environment: Vec::new() };
    site.enroll("d", lab.quic()).ok();
    // Slow enough that the pull is under way when it happens, also on a busy machine.
    lab.configure("d", "[limits]\ndownload_bytes_per_second = 700000\n");
    let out = lab.path("out");
    let mut command = lab.command("d");
    command.args(["pull", "os@1", "--no-share", "--out"]).arg(&out);
    let mut command = namespaces.in_site(&command);
    let pull = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start distd");
    // Wait until some of the artifact is durable.
    let journal = lab.path("out.distd-part-journal");
    while fs::metadata(&journal).map_or(0, |meta| meta.len()) == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    happens(&namespaces);
    let pulled = Outcome::of(pull.wait_with_output().expect("wait for distd")).ok();
    assert!(same(&out, &v1));
    assert_eq!(pulled.number("refetched_verified_bytes"), 0, "{}", pulled.json);
    (lab, pulled)
}

#[test]
fn a_pull_whose_udp_is_cut_off_half_way_goes_on_over_tcp() {
    let (lab, pulled) = pull_half_way(85, |namespaces| namespaces.cut("meta l4proto udp"));
    assert_eq!(over(&pulled, lab.quic()).as_deref(), Some("https"));
    let learned = fs::read_to_string(lab.path("d/transports.json")).expect("remembered");
    let learned: Value = serde_json::from_str(&learned).expect("JSON");
    assert_eq!(learned[lab.quic()]["starved"], 1, "{learned}");
}

#[test]
fn a_pull_whose_path_becomes_narrower_half_way_goes_on_over_quic() {
    // The smallest path on which QUIC must work: 1200 bytes behind the headers of IP and UDP.
    let (lab, pulled) = pull_half_way(86, |namespaces| namespaces.narrow(1228));
    assert_eq!(over(&pulled, lab.quic()).as_deref(), Some("quic"), "{}", pulled.json);
}

#[test]
fn everything_goes_through_a_proxy_that_wants_a_password() {
    let namespaces = Namespaces::new();
    let lab = Lab::start_at(namespaces.router(), FAR);
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 84);
    lab.push(&v1, "os", "1").ok();
    let port: u16 = lab.quic().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let at = |command: &Command| namespaces.at_router(command);
    let _proxy = Proxy::start(&lab.path(""), at, &FAR, port, "BasicAuth device s3.cret\n");
    // Only the proxy can be reached from the site.
    namespaces.cut("meta l4proto udp");
    namespaces.cut(&format!("tcp dport {port}"));
    let proxied = |user: &str| vec![("HTTPS_PROXY", format!("http://{user}@{FAR}:{PROXY_PORT}"))];
    // Where the proxy refuses, do not wait for UDP too.
    let https = |mut environment: Vec<_>| {
        environment.push(("DISTD_TRANSPORT", "https".to_owned()));
        environment
    };
    let site = |environment| Site { lab: &lab, namespaces: &namespaces, environment };

    let wrong = site(https(proxied("device:guess-7201"))).enroll("d", lab.quic());
    assert_eq!(wrong.code, 6, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("refused the credentials"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("guess-7201"), "{}", wrong.stderr);

    let through = site(proxied("device:s3.cret"));
    through.enroll("d", lab.quic()).ok();
    let out = lab.path("out");
    let first = through.pull("d", "os@1", &out).ok();
    assert!(same(&out, &v1));
    assert_eq!(over(&first, lab.quic()).as_deref(), Some("https"));

    // The same by configuration; NO_PROXY names a parent that cannot be reached directly.
    lab.push(&v2, "os", "2").ok();
    let url = format!("http://device:s3.cret@{FAR}:{PROXY_PORT}");
    lab.configure("d", &format!("transport = \"https\"\nproxy_url = \"{url}\"\n"));
    site(Vec::new()).pull("d", "os@2", &out).ok();
    assert!(same(&out, &v2));
    let direct = site(https(vec![("NO_PROXY", FAR.to_owned())])).pull("d", "os@1", &lab.path("direct"));
    assert_eq!(direct.code, 6, "{}", direct.stderr);

    // A relay of the site enrols, fetches and serves in the same way.
    let file = lab.path("relay.toml");
    fs::write(&file, format!("parents = [\"{}\"]\nproxy_url = \"{url}\"\n", lab.quic())).expect("write");
    let relay = start_relay(&lab, &namespaces, &["--config", &file.display().to_string()]);
    let near = site(Vec::new());
    near.enroll("e", &relay.addresses[0]).ok();
    let pulled = near.pull("e", "os@2", &lab.path("out2")).ok();
    assert!(same(&lab.path("out2"), &v2));
    assert_eq!(pulled.json["wire_bytes_by_source"]["origin"], 0, "{}", pulled.json);

    // A port to which the proxy does not connect.
    let elsewhere = format!("{FAR}:{}", port ^ 1);
    let refused = site(https(proxied("device:s3.cret"))).enroll("x", &elsewhere);
    assert!(
        refused.stderr.contains("refused to connect to") && refused.stderr.contains("403"),
        "{}",
        refused.stderr
    );
}
