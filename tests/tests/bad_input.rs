//! Bad input gives a clear error that says what to do next and a documented exit code; nothing is
//! lost, and nothing is left behind.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use distd_tests::lab::{Lab, Outcome, run, same};
use distd_tests::{Rng, artifacts};

const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const REFUSED: i32 = 4;
const CONFLICT: i32 = 5;
const NETWORK: i32 = 6;
const LOCAL: i32 = 7;
const INTEGRITY: i32 = 8;
const UNUSABLE: i32 = 9;

#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(says), "{:?} is not in: {}", says, outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[test]
fn artifacts_that_are_no_image_travel_as_plain_bytes() {
    let lab = Lab::start();
    let mut rng = Rng::announced("damaged images", 31);
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 31);
    lab.enroll("d", lab.quic());
    let image = fs::read(&v1).expect("read");
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("one-byte".into(), vec![7]),
        ("noise".into(), rng.bytes(300_000)),
        ("truncated".into(), image[..image.len() / 3].to_vec()),
        ("superblock-only".into(), image[..2048].to_vec()),
    ];
    for n in 0..4 {
        let mut bad = image[..2_000_000].to_vec();
        for _ in 0..200 {
            let at = 1024 + rng.below(60_000) as usize;
            bad[at] ^= 1 << rng.below(8);
        }
        cases.push((format!("flipped-{n}"), bad));
    }
    for (name, bytes) in cases {
        let file = lab.path(&name);
        fs::write(&file, &bytes).expect("write");
        lab.push(&file, "any", &name).ok();
        let out = lab.path("out");
        lab.pull("d", &format!("any@{name}"), &out, &[]).ok();
        assert!(same(&out, &file), "{name}");
    }
}

#[test]
fn an_empty_file_is_refused_by_push_and_by_http() {
    let lab = Lab::start();
    let empty = lab.path("empty");
    fs::write(&empty, b"").expect("write");
    fails(&lab.push(&empty, "os", "1"), UNUSABLE, "empty");
    let (status, body) =
        lab.curl("/v1/products/os/releases/1/content", &["-T", &empty.display().to_string()]);
    assert_eq!(status, 400, "{body}");
    fails(&lab.admin(&["release", "show", "os@1"]), NOT_FOUND, "next:");
}

#[test]
fn a_sparse_file_of_many_gigabytes_is_pushed_and_pulled_without_reading_its_holes() {
    let lab = Lab::start();
    let sparse = lab.path("sparse");
    let file = fs::File::create(&sparse).expect("create");
    file.set_len(4 << 30).expect("size");
    file.write_all_at(b"somewhere in the middle", 3 << 30).expect("write");
    let pushed = lab.push(&sparse, "sparse", "1").ok();
    assert!(pushed.number("uploaded_bytes") < 1_000_000, "{}", pushed.json);
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    let pulled = lab.pull("d", "sparse@1", &out, &[]).ok();
    assert!(pulled.number("wire_bytes") < 1_000_000, "{}", pulled.json);
    let mut bytes = [0; 23];
    fs::File::open(&out).and_then(|f| f.read_exact_at(&mut bytes, 3 << 30)).expect("read");
    assert_eq!(&bytes, b"somewhere in the middle");
}

#[test]
fn a_version_is_one_content_for_ever() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 32);
    let first = lab.push(&v1, "os", "1").ok();
    let again = lab.push(&v1, "os", "1").ok();
    assert_eq!(again.json["already_existed"], true);
    assert_eq!(again.json["manifest"], first.json["manifest"]);
    fails(&lab.push(&v2, "os", "1"), CONFLICT, "next:");
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    lab.pull("d", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
}

#[test]
fn an_error_names_the_thing_that_does_not_exist() {
    let lab = Lab::start();
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    fails(&lab.pull("d", "nothing@1", &out, &[]), NOT_FOUND, "nothing/1");
    fails(&lab.pull("d", "nothing:stable", &out, &[]), NOT_FOUND, "nothing/stable");
    fails(&lab.pull("d", "no-version", &out, &[]), USAGE, "PRODUCT@VERSION");
    fails(&lab.pull("d", "../etc@1", &out, &[]), USAGE, "name");
    fails(&lab.admin(&["release", "show", "nothing@1"]), NOT_FOUND, "next:");
    fails(&lab.admin(&["channel", "set", "nothing:stable", "1"]), NOT_FOUND, "next:");
    fails(&lab.push(Path::new("/does/not/exist"), "os", "1"), LOCAL, "/does/not/exist");
    assert!(!out.exists());
}

#[test]
fn seeds_that_lie_cost_bytes_and_nothing_else() {
    let lab = Lab::start();
    let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 33);
    lab.push(&v1, "os", "1").ok();
    lab.push(&v2, "os", "2").ok();
    lab.enroll("d", lab.quic());
    let seed = lab.path("seed");
    lab.pull("d", "os@1", &seed, &[]).ok();
    let good = fs::read(&seed).expect("read");
    let mut rng = Rng::new(33);
    let damage: [(&str, Vec<u8>); 4] = [
        ("a flipped byte each 50 kB", {
            let mut bytes = good.clone();
            bytes.iter_mut().step_by(50_000).for_each(|b| *b ^= 1);
            bytes
        }),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("unrelated", rng.bytes(1_000_000)),
        ("empty", Vec::new()),
    ];
    for (name, bytes) in damage {
        fs::write(&seed, &bytes).expect("damage the seed");
        let out = lab.path("out");
        lab.pull("d", "os@2", &out, &[&seed]).ok();
        assert!(same(&out, &v2), "{name}");
        fs::remove_file(&out).expect("remove");
    }
    fails(&lab.pull("d", "os@2", &lab.path("out"), &[Path::new("/no/seed")]), LOCAL, "/no/seed");
}

#[test]
fn tokens_and_certificates_of_another_realm_are_refused() {
    let lab = Lab::start();
    let other = Lab::start();
    let once = lab.join_token("leaf", 1);
    let enroll =
        |name: &str, token: &str| lab.device(name, &["enroll", "--parent", lab.quic(), "--token", token]);
    enroll("a", &once).ok();
    // The same node may use the token again, another node may not.
    enroll("a", &once).ok();
    fails(&enroll("b", &once), REFUSED, "used up");
    fails(&enroll("c", &lab.join_token("relay", 1)), REFUSED, "role");
    fails(&enroll("d", &other.join_token("leaf", 1)), REFUSED, "of its realm");
    fails(&enroll("e", "distd-join-v1.x.y"), REFUSED, "token");
    let short = lab.admin(&["token", "join", "--role", "leaf", "--expires", "1s"]).ok();
    let token = short.json["token"].as_str().expect("a token").to_owned();
    std::thread::sleep(std::time::Duration::from_millis(2500));
    fails(&enroll("f", &token), REFUSED, "expired");
    // A device of one realm at the other realm's origin.
    lab.push(&lab.path("origin/realm/ca.pem"), "os", "1").ok();
    let foreign = lab.device("a", &["pull", "os@1", "--out", "/nonexistent/x", "--parent", other.quic()]);
    assert!([REFUSED, NETWORK].contains(&foreign.code), "{}", foreign.stderr);
    // A device that is not enrolled.
    let out = lab.path("out").display().to_string();
    fails(
        &lab.device("nobody", &["pull", "os@1", "--out", &out, "--parent", lab.quic()]),
        REFUSED,
        "distd enroll",
    );
}

#[test]
fn a_key_that_others_may_read_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::start();
    lab.enroll("d", lab.quic());
    let key = lab.path("d/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("mode");
    fails(&lab.pull("d", "os@1", &lab.path("out"), &[]), REFUSED, "chmod 600");
}

#[test]
fn a_revoked_device_gets_nothing_more() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 34);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("d", lab.quic());
    let nodes = lab.admin(&["node", "ls"]).ok();
    let id = nodes.json.to_string().split('"').find(|s| s.len() == 32).expect("a node id").to_owned();
    lab.admin(&["node", "revoke", &id]).ok();
    let out = lab.path("out");
    let refused = lab.pull("d", "os@1", &out, &[]);
    assert_ne!(refused.code, 0);
    assert!(!out.exists());
}

#[test]
fn a_full_disk_is_reported_and_the_pull_continues_when_there_is_room() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 35);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("d", lab.quic());
    let mount = lab.path("small");
    fs::create_dir(&mount).expect("directory");
    let bytes = fs::metadata(&v1).expect("stat").len();
    let mounted = Tmpfs::new(&mount, bytes / 2);
    let out = mount.join("out");
    fails(&lab.pull("d", "os@1", &out, &[]), LOCAL, "next:");
    assert!(!out.exists(), "no partial artifact in place");
    mounted.resize(bytes * 2);
    lab.pull("d", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
}

struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn new(path: &'a Path, bytes: u64) -> Self {
        let this = Self(path);
        this.mount(&format!("size={bytes}"));
        this
    }

    fn mount(&self, options: &str) {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(self.0)
            .status();
        assert!(status.expect("run mount").success());
    }

    fn resize(&self, bytes: u64) {
        self.mount(&format!("remount,size={bytes}"));
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn an_artifact_that_rotted_is_found_and_repaired_by_pulling_again() {
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 36);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("d", lab.quic());
    let out = lab.path("out");
    lab.pull("d", "os@1", &out, &[]).ok();
    let path = out.display().to_string();
    lab.device("d", &["verify", &path]).ok();
    let file = fs::File::options().write(true).open(&out).expect("open");
    file.write_all_at(&[0xaa; 100], 1_000_000).expect("damage");
    fails(&lab.device("d", &["verify", &path]), INTEGRITY, "next:");
    let repaired = lab.pull("d", "os@1", &out, &[]).ok();
    assert!(same(&out, &v1));
    assert!(repaired.number("fetched_bytes") < 1_000_000, "{}", repaired.json);
}

#[test]
fn a_peer_that_does_not_answer_is_a_network_error() {
    let mut lab = Lab::start();
    lab.enroll("d", lab.quic());
    lab.stop_origin();
    fails(&lab.pull("d", "os@1", &lab.path("out"), &[]), NETWORK, "error:");
    fails(&lab.push(Path::new("/etc/hostname"), "os", "1"), NETWORK, "next:");
}

#[test]
fn an_agent_whose_port_another_program_has_says_so() {
    let lab = Lab::start();
    lab.enroll("d", lab.quic());
    let other = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let at = other.local_addr().expect("bound").to_string();
    fails(&run(&mut lab.agent_command("d", &at)), LOCAL, &format!("could not listen on {at}"));
}
