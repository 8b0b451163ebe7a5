//! Updaters that know nothing of distd get releases from the gateway of a device.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use distd_tests::Rng;
use distd_tests::lab::{Daemon, Lab, Outcome, run, same, wait_until};

/// Bytes that nothing packs.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    Rng::new(seed).bytes(bytes)
}

/// `bytes` with a hundred of them overwritten at each of `places` places.
fn change(bytes: &[u8], seed: u64, places: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut changed = bytes.to_vec();
    for _ in 0..places {
        let at = rng.below(changed.len() as u64 - 100) as usize;
        changed[at..at + 100].copy_from_slice(&rng.bytes(100));
    }
    changed
}

/// A device with a gateway.
struct Gateway<'l> {
    lab: &'l Lab,
    agent: Daemon,
    url: String,
}

impl<'l> Gateway<'l> {
    fn start(lab: &'l Lab, options: &[&str]) -> Self {
        if !lab.path("till").exists() {
            lab.enroll("till", lab.quic());
        }
        let mut command = lab.agent_command("till", "127.0.0.1:0");
        command.args(["--gateway", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
        if !options.contains(&"--offer") {
            command.args(["--offer", "os:stable"]);
        }
        command.args(options);
        let agent = Daemon::start(command, &lab.path("till.log"), "agent listening on ");
        let url = agent.said("gateway on ").trim_end_matches("/r/").to_owned();
        Self { lab, agent, url }
    }

    /// Address of a file.
    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Runs curl; returns the status, the headers in lower case and the body.
    fn curl(&self, path: &str, args: &[&str]) -> Answer {
        let head = self.lab.path("head");
        let mut command = Command::new("curl");
        command.args(["-sS", "--http1.1", "-w", "%{stderr}%{http_code}", "-D"]).arg(&head);
        let output = command.args(args).arg(self.at(path)).output().expect("run curl");
        let status = String::from_utf8_lossy(&output.stderr);
        let status = status[status.len().saturating_sub(3)..].parse().unwrap_or(0);
        let head = fs::read_to_string(head).unwrap_or_default().to_lowercase();
        Answer { status, head, body: output.stdout }
    }

    /// Waits until the gateway has a release whole.
    fn wait_for(&self, version: &str) {
        let kept = self.lab.path(&format!("till/gateway/os/{version}/image.distd"));
        wait_until("the gateway has the release", || kept.exists());
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Pushes `bytes` as a release of `os`.
fn push(lab: &Lab, version: &str, bytes: &[u8]) -> PathBuf {
    let path = lab.path(&format!("release-{version}"));
    fs::write(&path, bytes).expect("write");
    lab.push(&path, "os", version).ok();
    path
}

fn set_channel(lab: &Lab, version: &str) {
    lab.admin(&["channel", "set", "os:stable", version]).ok();
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    // No proxy of the machine's.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

#[test]
fn updaters_download_a_release_in_every_shape_of_request() {
    let lab = Lab::start();
    let bytes = noise(1, 6_000_000);
    let release = push(&lab, "1", &bytes);
    set_channel(&lab, "1");
    let gateway = Gateway::start(&lab, &[]);
    let out = lab.path("out");

    let head = gateway.curl("/r/os/stable/os.img", &["-I"]);
    assert_eq!(head.status, 200);
    assert!(head.head.contains("content-length: 6000000"), "{}", head.head);
    assert!(head.head.contains("content-location: /r/os/1/os.img"), "{}", head.head);
    let etag = format!("etag: \"{}\"", blake3::hash(&bytes).to_hex());
    assert!(head.head.contains(&etag), "{}", head.head);

    let whole = gateway.curl("/r/os/stable/os.img", &[]);
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    gateway.wait_for("1");
    let by_version = gateway.curl("/r/os/1/any-name", &[]);
    assert_eq!((by_version.status, by_version.body == bytes), (200, true));
    for (range, expected) in [
        ("0-3", &bytes[..4]),
        ("5999992-5999999", &bytes[5_999_992..]),
        ("-8", &bytes[5_999_992..]),
        ("131072-262143", &bytes[131_072..262_144]),
    ] {
        let part = gateway.curl("/r/os/stable/os.img", &["-r", range]);
        assert_eq!((part.status, part.body == expected), (206, true), "{range}");
    }
    assert_eq!(gateway.curl("/r/os/stable/os.img", &["-r", "6000000-"]).status, 416);
    let many = gateway.curl("/r/os/stable/os.img", &["-r", "0-9,1000-1009"]);
    assert!(many.status == 206 && many.head.contains("content-type: multipart/byteranges; boundary=distd"));
    assert!(many.body.windows(10).any(|ten| ten == &bytes[1000..1010]));

    // Real downloaders, whole and resumed.
    fs::write(&out, &bytes[..1_234_567]).expect("write");
    run(tool("curl").args(["-sSf", "-C", "-", "-o"]).arg(&out).arg(gateway.at("/r/os/stable/os.img"))).ok();
    assert!(same(&out, &release), "curl -C -");
    fs::write(&out, &bytes[..4_000_000]).expect("write");
    run(tool("wget").args(["-q", "-c", "-O"]).arg(&out).arg(gateway.at("/r/os/stable/os.img"))).ok();
    assert!(same(&out, &release), "wget -c");
    let dir = lab.path("aria");
    let aria = ["-x8", "-s8", "-k1M", "--quiet", "--file-allocation=none", "-o", "os.img", "-d"];
    run(tool("aria2c").args(aria).arg(&dir).arg(gateway.at("/r/os/stable/os.img"))).ok();
    assert!(same(&dir.join("os.img"), &release), "aria2c -x8");
    run(tool("curl").args(["-sSf", "--http2-prior-knowledge", "-o"]).arg(&out).arg(gateway.at("/r/os/1/x")))
        .ok();
    assert!(same(&out, &release), "HTTP/2");

    // What is not there, or not offered, is refused with the next step.
    for (path, says) in [
        ("/r/os/2/x", "does not offer os@2"),
        ("/r/app/stable/x", "does not offer app"),
        ("/r/os/stable", "an address here is"),
        ("/r/os/stable/.hidden", "is no name"),
        ("/r/os/stable/..%2fx", "an address here is"),
        ("/r/os/stable/SHA256SUMS", "have no names"),
    ] {
        let refused = gateway.curl(path, &["--path-as-is"]);
        assert!(refused.status == 404 && refused.text().contains(says), "{path}: {}", refused.text());
        assert!(refused.text().contains("\nnext: "), "{path}: {}", refused.text());
    }
    assert_eq!(gateway.curl("/r/os/stable/x", &["-X", "DELETE"]).status, 405);
    assert_eq!(gateway.curl("/r/os/stable/x", &["-H", "Host: evil.example"]).status, 421);
    assert!(gateway.agent.metric("distd_gateway_sent_bytes_total") > 12_000_000);
    assert!(gateway.agent.metric("distd_gateway_refused_total") >= 6);
}

#[test]
fn the_uplink_carries_the_difference_and_the_updater_gets_the_whole() {
    let lab = Lab::start();
    let first = noise(2, 4_000_000);
    push(&lab, "1", &first);
    set_channel(&lab, "1");
    let gateway = Gateway::start(&lab, &["--follow-poll-seconds", "1"]);
    // The gateway follows the channel, so the release is here before anyone asks.
    gateway.wait_for("1");
    let second = change(&first, 3, 20);
    let release = push(&lab, "2", &second);
    let before = lab.metric("distd_quic_chunk_bytes_total");
    set_channel(&lab, "2");
    gateway.wait_for("2");
    let carried = lab.metric("distd_quic_chunk_bytes_total") - before;
    assert!(carried < 1_000_000, "{carried} bytes for a small change");
    let out = lab.path("out");
    run(tool("curl").args(["-sSf", "-o"]).arg(&out).arg(gateway.at("/r/os/2/os.img"))).ok();
    assert!(same(&out, &release));
    assert_eq!(lab.metric("distd_quic_chunk_bytes_total") - before, carried, "nothing more for the download");

    // Old releases go, the one before stays.
    push(&lab, "3", &change(&second, 4, 5));
    set_channel(&lab, "3");
    gateway.wait_for("3");
    let first = lab.path("till/gateway/os/1");
    wait_until("the oldest release is removed", || !first.exists());
    assert!(lab.path("till/gateway/os/2/image").exists());
    assert_eq!(gateway.curl("/r/os/2/x", &["-I"]).status, 200, "it is still here");
    assert_eq!(gateway.curl("/r/os/1/x", &["-I"]).status, 404);
}

#[test]
fn a_release_is_read_while_it_arrives_and_a_part_of_it_comes_first() {
    let lab = Lab::start();
    let bytes = noise(5, 8_000_000);
    push(&lab, "1", &bytes);
    set_channel(&lab, "1");
    lab.enroll("till", lab.quic());
    // Slow enough that the release is on its way while its last bytes are asked for.
    lab.configure("till", "[limits]\ndownload_bytes_per_second = 1000000\n");
    let gateway = Gateway::start(&lab, &["--offer", "os"]);
    let kept = lab.path("till/gateway/os/1/image.distd");
    for (range, expected) in [
        ("0-3", &bytes[..4]),
        ("7999992-7999999", &bytes[7_999_992..]),
        ("7900000-7999991", &bytes[7_900_000..7_999_992]),
        ("4000000-4004095", &bytes[4_000_000..4_004_096]),
    ] {
        let part = gateway.curl("/r/os/stable/os.img", &["-r", range]);
        assert_eq!((part.status, part.body == expected), (206, true), "{range}: {}", part.text());
        assert!(!kept.exists(), "the release came whole before {range}");
    }
    let whole = gateway.curl("/r/os/stable/os.img", &[]);
    assert!(whole.status == 200 && whole.body == bytes);
    gateway.wait_for("1");
}

#[test]
fn casync_extracts_a_release_with_a_seed() {
    let lab = Lab::start();
    let first = noise(20, 3_000_000);
    let second = change(&first, 21, 10);
    let (old, new) = (push(&lab, "1", &first), push(&lab, "2", &second));
    set_channel(&lab, "2");
    let gateway = Gateway::start(&lab, &[]);
    let out = lab.path("out");
    let index = gateway.at("/r/os/stable/os.img.caibx");
    let mut casync = tool("casync");
    casync.current_dir(lab.path("")).args(["extract", "--seed-output=no"]);
    run(casync.arg(format!("--seed={}", old.display())).arg(&index).arg(&out)).ok();
    assert!(same(&out, &new));
    // From its own chunk store as well, of a version by its number.
    fs::remove_file(&out).expect("remove");
    let mut casync = tool("casync");
    run(casync.current_dir(lab.path("")).arg("extract").arg(gateway.at("/r/os/2/x.caibx")).arg(&out)).ok();
    assert!(same(&out, &new));
}

#[test]
fn a_download_that_is_resumed_after_the_channel_moved_gets_a_clean_answer() {
    let mut lab = Lab::start();
    let first = noise(7, 2_000_000);
    let second = change(&first, 8, 10);
    push(&lab, "1", &first);
    let two = push(&lab, "2", &second);
    set_channel(&lab, "1");
    {
        let gateway = Gateway::start(&lab, &["--offer", "os:stable", "--follow-poll-seconds", "1"]);
        let begun = gateway.curl("/r/os/stable/os.img", &[]);
        assert!(begun.body == first);
        set_channel(&lab, "2");
        gateway.wait_for("2");
        wait_until("the gateway knows that the channel moved", || {
            gateway.curl("/r/os/stable/os.img", &["-I"]).head.contains("content-location: /r/os/2/")
        });
        let out = lab.path("out");
        let url = gateway.at("/r/os/stable/os.img");
        // None of them joins two releases; each can go on with the old one by its version.
        for mut resume in [tool("curl"), tool("wget")] {
            fs::write(&out, &first[..1_000_000]).expect("write");
            let args: &[&str] = match resume.get_program().to_str() {
                Some("curl") => &["-sS", "-C", "-", "-o"],
                _ => &["-q", "-c", "-O"],
            };
            let ended = run(resume.args(args).arg(&out).arg(&url));
            assert_ne!(ended.code, 0, "{resume:?}");
            assert_eq!(fs::read(&out).expect("read"), &first[..1_000_000], "{resume:?}");
            let by_version = gateway.at("/r/os/1/os.img");
            let mut again = tool(&resume.get_program().to_string_lossy());
            run(again.args(args).arg(&out).arg(&by_version)).ok();
            assert!(fs::read(&out).expect("read") == first, "{again:?}");
        }
        let tagged = format!("If-Range: \"{}\"", blake3::hash(&first).to_hex());
        let whole = gateway.curl("/r/os/stable/os.img", &["-r", "1000-", "-H", &tagged]);
        assert!(whole.status == 200 && whole.body == second);
    }
    // Without its origin a gateway gives what it has, also after a restart.
    lab.stop_origin();
    let gateway = Gateway::start(&lab, &[]);
    let out = lab.path("out");
    run(tool("curl").args(["-sSf", "-o"]).arg(&out).arg(gateway.at("/r/os/stable/os.img"))).ok();
    assert!(same(&out, &two));
}

#[test]
fn a_gateway_with_tokens_serves_nobody_without_one() {
    let lab = Lab::start();
    let bytes = noise(9, 100_000);
    push(&lab, "1", &bytes);
    set_channel(&lab, "1");
    lab.enroll("till", lab.quic());
    let made = lab.device("till", &["gateway", "token", "add", "shop"]).ok();
    let token = made.json["token"].as_str().expect("a token").to_owned();
    let kept = fs::read_to_string(lab.path("till/gateway-tokens.json")).expect("the file of tokens");
    assert!(!kept.contains(&token));
    let gateway = Gateway::start(&lab, &[]);
    let refused = gateway.curl("/r/os/stable/x", &[]);
    assert!(
        refused.status == 401 && refused.text().contains("distd gateway token add"),
        "{}",
        refused.text()
    );
    assert!(refused.head.contains("www-authenticate: basic"));
    let bearer = format!("Authorization: Bearer {token}");
    assert!(gateway.curl("/r/os/stable/x", &["-H", &bearer]).body == bytes);
    assert!(gateway.curl("/r/os/stable/x", &["-u", &format!("shop:{token}")]).body == bytes);
    assert!(gateway.curl(&format!("/t/{token}/r/os/stable/x"), &[]).body == bytes);
    assert_eq!(gateway.curl("/t/x/r/os/stable/x", &[]).status, 401);
    assert_eq!(gateway.curl("/nothing", &[]).status, 401, "a path says nothing to strangers");
    lab.device("till", &["gateway", "token", "rm", "shop"]).ok();
    assert_eq!(gateway.curl("/r/os/stable/x", &["-H", &bearer]).status, 401);
    assert!(!gateway.agent.log().contains(&token), "no token in the log");

    // With a certificate of the site it speaks TLS.
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=shop \
                  -addext subjectAltName=IP:127.0.0.1 2>/dev/null";
    run(Command::new("sh").current_dir(lab.path("")).args(["-c", script])).ok();
    drop(gateway);
    lab.device(
        "till",
        &["gateway", "token", "add", "other", "--out", &lab.path("token").display().to_string()],
    )
    .ok();
    let (chain, key) = (lab.path("cert.pem"), lab.path("key.pem"));
    let options = [
        "--gateway-certificate",
        chain.to_str().expect("text"),
        "--gateway-key",
        key.to_str().expect("text"),
    ];
    let gateway = Gateway::start(&lab, &options);
    assert!(gateway.url.starts_with("https://"), "{}", gateway.url);
    let token = fs::read_to_string(lab.path("token")).expect("the token");
    let pair = format!("x:{}", token.trim());
    let trusted = ["--cacert", options[1], "-u", &pair, "--http2"];
    assert!(gateway.curl("/r/os/stable/x", &trusted).body == bytes);
    assert_eq!(gateway.curl("/r/os/stable/x", &trusted[..2]).status, 401);
    assert_eq!(gateway.curl("/r/os/stable/x", &trusted[2..]).status, 0, "the certificate is not trusted");

    // Beyond loopback a gateway needs a certificate.
    let mut command = lab.agent_command("till", "127.0.0.1:0");
    command.args(["--gateway", "0.0.0.0:0", "--offer", "os:stable"]);
    let open = Outcome::of(command.output().expect("run distd"));
    assert!(open.code == 2 && open.stderr.contains("has no certificate"), "{}", open.stderr);
}

#[test]
fn a_device_without_a_grant_gives_nobody_the_release() {
    let lab = Lab::start_without_grants(&[]);
    push(&lab, "1", &noise(10, 100_000));
    set_channel(&lab, "1");
    let gateway = Gateway::start(&lab, &[]);
    let refused = gateway.curl("/r/os/stable/x", &[]);
    assert_eq!(refused.status, 403, "{}", refused.text());
    lab.admin(&["grant", "add", "everyone", "os"]).ok();
    wait_until("the device has the right", || gateway.curl("/r/os/stable/x", &[]).status == 200);
}

/// Path of the gateway's directory for a release, to be damaged.
fn image(lab: &Lab, version: &str) -> PathBuf {
    lab.path(&format!("till/gateway/os/{version}/image"))
}

#[test]
fn a_file_that_was_changed_on_the_disk_is_not_given_after_a_restart() {
    let lab = Lab::start();
    let bytes = noise(11, 1_000_000);
    let release = push(&lab, "1", &bytes);
    set_channel(&lab, "1");
    drop({
        let gateway = Gateway::start(&lab, &[]);
        gateway.wait_for("1");
        gateway.agent
    });
    let mut damaged = bytes.clone();
    damaged[500_000] ^= 1;
    fs::write(image(&lab, "1"), &damaged).expect("write");
    let gateway = Gateway::start(&lab, &[]);
    let out = lab.path("out");
    run(tool("curl").args(["-sSf", "-o"]).arg(&out).arg(gateway.at("/r/os/stable/x"))).ok();
    assert!(same(&out, &release));
    // The download may end before the release is put in its place.
    wait_until("the file is mended", || same(&image(&lab, "1"), &release));
}
