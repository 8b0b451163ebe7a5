//! Private keys away from the origin's process, and root keys away from its machine. Real
//! processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use distd_tests::lab::{Lab, binary, same, wait_until};
use distd_tests::rng::Rng;

fn server(args: &[&str]) -> Output {
    Command::new(binary("distd-server")).args(args).output().expect("run distd-server")
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", told(&output));
    told(&output)
}

fn artifact(lab: &Lab, seed: u64) -> PathBuf {
    let path = lab.path(&format!("artifact-{seed}"));
    fs::write(&path, Rng::new(seed).bytes(300_000)).expect("write");
    path
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Process ids of the signers that `parent` has started.
fn signers(parent: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    // Any thread may have started the signer.
    let threads = fs::read_dir(format!("/proc/{parent}/task")).expect("threads");
    let of_threads =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all: String = of_threads.chain([list]).collect::<Vec<_>>().join(" ");
    let mut found: Vec<u32> = all.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    found.sort_unstable();
    found.dedup();
    found.retain(|id| {
        fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.contains("signer"))
    });
    found
}

/// Whether a process exists and is no zombie.
fn runs(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(id: u32) {
    assert!(Command::new("kill").args(["-9", &id.to_string()]).status().expect("run kill").success());
}

#[test]
fn the_origin_signs_through_a_process_of_its_own_and_starts_it_again() {
    let mut lab = Lab::start();
    let origin = lab.origin().id();
    let [signer] = signers(origin)[..] else { panic!("one signer: {:?}", signers(origin)) };
    lab.enroll("a", lab.quic());
    let one = artifact(&lab, 1);
    lab.push(&one, "os", "1").ok();
    kill(signer);
    wait_until("the signer is gone", || !runs(signer));
    let two = artifact(&lab, 2);
    lab.push(&two, "os", "2").ok();
    lab.enroll("b", lab.quic());
    lab.pull("b", "os@2", &lab.path("out"), &[]).ok();
    assert!(same(&two, &lab.path("out")));
    let [again] = signers(origin)[..] else { panic!("one signer: {:?}", signers(origin)) };
    assert_ne!(again, signer);
    // A signer ends with its origin, however the origin ends.
    lab.origin().kill();
    wait_until("the signer ends with its origin", || !runs(again));
}

#[test]
fn the_keys_are_never_in_the_origins_memory() {
    let mut lab = Lab::start();
    let origin = lab.origin().id();
    lab.enroll("a", lab.quic());
    lab.push(&artifact(&lab, 3), "os", "1").ok();
    let mut secrets = Vec::new();
    for directory in ["origin/tuf-keys", "origin/realm"] {
        for entry in fs::read_dir(lab.path(directory)).expect("list") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.extension().is_some_and(|end| end == "pem" || end == "key") && name != "ca.pem" {
                let pem = fs::read_to_string(&path).expect("read");
                let der = rcgen::KeyPair::from_pem(&pem).expect("a key").serialize_der();
                // The seed of an Ed25519 key is its last 32 bytes; the secret of P-256 lies behind
                // a short head.
                let secret =
                    if name == "ca.key" || name == "origin.key" { &der[36..68] } else { &der[16..48] };
                secrets.push((name, secret.to_vec()));
            }
        }
    }
    let mut found = Vec::new();
    let maps = fs::read_to_string(format!("/proc/{origin}/maps")).expect("maps");
    let memory = fs::File::open(format!("/proc/{origin}/mem")).expect("memory");
    for line in
        maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (start, end) =
            line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("a number");
        let (start, end) = (number(start), number(end));
        if end - start > 1 << 30 {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).expect("fits")];
        if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, start).is_err() {
            continue;
        }
        for (name, secret) in &secrets {
            if bytes.windows(32).any(|window| window == secret) {
                found.push(name.clone());
            }
        }
    }
    found.sort();
    found.dedup();
    // The origin's TLS key is its own, and shows that this search finds a secret that is there.
    assert_eq!(found, ["origin.key"], "of {} secrets", secrets.len());
}

/// A signer behind a socket, as a systemd socket unit starts one: a process for each connection, on
/// standard input.
fn activate(socket: &Path, keys: &Path) {
    let listener = std::os::unix::net::UnixListener::bind(socket).expect("bind");
    let keys = keys.to_owned();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut command = Command::new(binary("distd-server"));
            command
                .arg("signer")
                .arg("--keys")
                .arg(&keys)
                .stdin(Stdio::from(std::os::fd::OwnedFd::from(stream)));
            command.stderr(Stdio::null());
            let mut child = command.spawn().expect("start a signer");
            std::thread::spawn(move || child.wait());
        }
    });
}

#[test]
fn a_signer_of_another_user_holds_the_keys_and_the_origins_directory_has_none() {
    let outside = tempfile::tempdir().expect("tempdir");
    let (socket, keys) = (outside.path().join("signer.sock"), outside.path().join("keys"));
    activate(&socket, &keys);
    let mut lab = Lab::start_with(&["--signer", &text(&socket)]);
    lab.enroll("a", lab.quic());
    let one = artifact(&lab, 4);
    lab.push(&one, "os", "1").ok();
    lab.pull("a", "os@1", &lab.path("out"), &[]).ok();
    assert!(same(&one, &lab.path("out")));
    assert!(!lab.path("origin/tuf-keys").exists() && !lab.path("origin/realm/ca.key").exists());
    assert!(keys.join("realm/ca.key").exists());
    lab.restart_origin();
    lab.pull("a", "os@1", &lab.path("out"), &[]).ok();
    // An origin without the setting does not make a second realm.
    lab.stop_origin();
    let data = text(&lab.path("origin"));
    let refused = server(&["serve", "--data", &data, "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"]);
    assert!(!refused.status.success());
    assert!(
        told(&refused).contains("ca.key is missing") || told(&refused).contains("signer"),
        "{}",
        told(&refused)
    );
    assert!(!lab.path("origin/realm/ca.key").exists(), "no new CA beside the old certificate");
    // Keys of roles are changed through the signer too, in the signer's own directory.
    succeeded(server(&[
        "keys",
        "rotate",
        "--role",
        "timestamp",
        "--data",
        &data,
        "--signer",
        &text(&socket),
    ]));
    succeeded(server(&["keys", "rotate", "--role", "snapshot", "--data", &data, "--keys", &text(&keys)]));
    lab.start_origin();
    // A backup holds everything that the origin has, which includes no key.
    let (backup, again) = (text(&outside.path().join("backup")), text(&outside.path().join("again")));
    succeeded(server(&["backup", &backup, "--data", &data, "--signer", &text(&socket)]));
    assert!(
        !Path::new(&backup).join("tuf-keys").exists() && !Path::new(&backup).join("realm/ca.key").exists()
    );
    let two = artifact(&lab, 5);
    lab.push(&two, "os", "2").ok();
    lab.pull("a", "os@2", &lab.path("out"), &[]).ok();
    assert!(same(&two, &lab.path("out")));
    lab.stop_origin();
    succeeded(server(&["restore", &backup, "--data", &again, "--signer", &text(&socket)]));
}

fn new_key(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    succeeded(server(&["root", "new-key", &text(&path)]));
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    path
}

fn public(key: &Path) -> String {
    text(key) + ".pub"
}

/// A copy of the waiting root, signed by `keys` as on another machine, without the origin's
/// directory.
fn sign(origin: &Path, away: &Path, keys: &[&Path]) -> PathBuf {
    let copy = away.join(format!(
        "copy-{}.json",
        keys.iter().map(|key| key.file_name().expect("a name").to_string_lossy()).collect::<String>()
    ));
    fs::copy(origin.join("root-next.json"), &copy).expect("copy");
    for key in keys {
        succeeded(server(&["root", "sign", &text(&copy), "--key", &text(key)]));
    }
    copy
}

#[test]
fn root_keys_of_several_people_never_come_near_the_origin() {
    let away = tempfile::tempdir().expect("tempdir");
    let (ann, ben, cem) =
        (new_key(away.path(), "ann"), new_key(away.path(), "ben"), new_key(away.path(), "cem"));
    let again = server(&["root", "new-key", &text(&ann)]);
    assert!(told(&again).contains("exists"), "{}", told(&again));
    let place = tempfile::tempdir().expect("tempdir");
    let data = place.path().join("origin");
    let data_text = text(&data);
    let (a, b) = (public(&ann), public(&ben));
    let settings = ["--offline-root", &a, "--offline-root", &b, "--root-threshold", "2"];
    let serve = |more: &[&str]| {
        let base = ["serve", "--data", &data_text, "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"];
        [&base[..], more].concat().iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()
    };
    let refused = |why: &str| {
        let arguments = serve(&settings);
        let output = server(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!output.status.success() && told(&output).contains(why), "{why}: {}", told(&output));
    };
    // The realm begins only with the signatures of both.
    refused("lacks 2 signatures by its own keys");
    let by_ann = sign(&data, away.path(), &[&ann]);
    succeeded(server(&["root", "install", &text(&by_ann), "--data", &data_text]));
    refused("lacks 1 signature by its own keys");
    // Without the options, no realm with a root key of the origin's own is made.
    let forgot = server(&serve(&[]).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(told(&forgot).contains("waits to be the first root"), "{}", told(&forgot));
    assert!(data.join("root-next.json").exists());
    // A signature by an unknown key does not count, and a key given twice counts once.
    let stranger = new_key(away.path(), "stranger");
    let by_others = sign(&data, away.path(), &[&stranger, &ann]);
    succeeded(server(&["root", "install", &text(&by_others), "--data", &data_text]));
    refused("lacks 1 signature by its own keys");
    let by_ben = sign(&data, away.path(), &[&ben]);
    succeeded(server(&["root", "install", &text(&by_ben), "--data", &data_text]));

    let mut lab = Lab::start_on(place, &settings);
    let keys = fs::read_dir(data.join("tuf-keys")).expect("list");
    assert!(
        keys.into_iter().all(|key| !key
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .starts_with("root-"))
    );
    lab.enroll("a", lab.quic());
    let one = artifact(&lab, 6);
    lab.push(&one, "os", "1").ok();
    lab.pull("a", "os@1", &lab.path("out"), &[]).ok();

    // Ben leaves, Cem comes, and snapshot and timestamp get new keys, while the origin runs.
    let shown = succeeded(server(&["root", "show", "--data", &data_text]));
    assert!(shown.contains("root: 2 of 2"), "{shown}");
    let ben_id = fs::read_to_string(&by_ben).expect("read");
    let ben_id = ben_id
        .split("\"keyid\": \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("an id")
        .to_owned();
    let online = server(&["keys", "rotate", "--role", "timestamp", "--data", &data_text]);
    assert!(told(&online).contains("another distd-server uses"), "{}", told(&online));
    let change = ["--add", &public(&cem), "--remove", &ben_id[..16], "--rotate", "snapshot,timestamp"];
    let prepare = [&["root", "prepare", "--data", &data_text][..], &change].concat();
    succeeded(server(&prepare));
    let waiting = server(&prepare);
    assert!(told(&waiting).contains("--replace"), "{}", told(&waiting));
    let before = fs::read_dir(data.join("tuf-keys")).expect("list").count();
    let hand_in = |keys: &[&Path]| {
        let copy = sign(&data, away.path(), keys);
        succeeded(server(&["root", "install", &text(&copy), "--data", &data_text]))
    };
    // Ann's first copy was damaged on its way. Her next one counts nevertheless.
    let damaged = sign(&data, away.path(), &[&ann]);
    let copy = fs::read_to_string(&damaged).expect("read");
    let (start, digit) = copy.rsplit_once("\"sig\": \"").expect("a signature");
    let other = if digit.starts_with('0') { "1" } else { "0" };
    fs::write(&damaged, format!("{start}\"sig\": \"{other}{}", &digit[1..])).expect("write");
    let said = succeeded(server(&["root", "install", &text(&damaged), "--data", &data_text]));
    assert!(said.contains("lacks 2 signatures by keys of the root before it and 2"), "{said}");
    // The old root asks for Ann and Ben, the new one for Ann and Cem.
    let said = hand_in(&[&ann, &cem]);
    assert!(said.contains("lacks 1 signature by keys of the root before it"), "{said}");
    assert!(data.join("root-next.json").exists());
    let said = hand_in(&[&ben]);
    assert!(said.contains("has all signatures"), "{said}");
    wait_until("the running origin takes the root over", || !data.join("root-next.json").exists());
    let shown = succeeded(server(&["root", "show", "--data", &data_text]));
    assert!(shown.contains("root 2") && !shown.contains(&ben_id), "{shown}");
    assert!(
        before >= fs::read_dir(data.join("tuf-keys")).expect("list").count(),
        "keys that no root lists are gone"
    );

    let two = artifact(&lab, 7);
    lab.push(&two, "os", "2").ok();
    lab.pull("a", "os@2", &lab.path("out"), &[]).ok();
    assert!(same(&two, &lab.path("out")), "a device of the old root follows");
    lab.enroll("b", lab.quic());
    lab.pull("b", "os@2", &lab.path("out-b"), &[]).ok();
    let in_force = fs::read_to_string(data.join("objects/tuf/2.root.json")).expect("read");
    assert_eq!(in_force.matches(r#""keyid""#).count(), 3, "one signature of each key: {in_force}");
    // A proposal that came too late is kept beside, with its signatures.
    let late = fs::read_to_string(&damaged).expect("read").replace("\"expires\": \"2", "\"expires\": \"3");
    fs::write(data.join("root-next.json"), &late).expect("write");
    let shown = succeeded(server(&["root", "show", &text(&data.join("root-next.json"))]));
    assert!(shown.contains("root 2, valid until 3"), "{shown}");
    lab.restart_origin();
    assert!(lab.origin().log().contains("run distd-server root prepare again"), "{}", lab.origin().log());
    let kept = fs::read_to_string(data.join("root-next.2-outdated.json")).expect("kept");
    assert!(kept == late && !data.join("root-next.json").exists());
    lab.pull("a", "os@2", &lab.path("out"), &[]).ok();
    // The settings of the first root and its files are not needed again.
    for file in [&a, &b] {
        fs::remove_file(file).expect("remove");
    }
    lab.restart_origin();
    let unknown = server(&["root", "prepare", "--data", &data_text, "--remove", "ffff"]);
    assert!(told(&unknown).contains("root show"), "{}", told(&unknown));
    let too_few = server(&["root", "prepare", "--data", &data_text, "--threshold", "3"]);
    assert!(told(&too_few).contains("no more signatures than keys"), "{}", told(&too_few));
}

#[test]
fn an_origin_that_began_with_its_own_root_key_gives_it_away() {
    let mut lab = Lab::start();
    lab.enroll("a", lab.quic());
    let away = tempfile::tempdir().expect("tempdir");
    let key = new_key(away.path(), "key");
    let data = lab.path("origin");
    let data_text = text(&data);
    let root_keys = || {
        let keys =
            fs::read_dir(data.join("tuf-keys")).expect("list").map(|key| key.expect("an entry").path());
        keys.filter(|key| text(key).contains("root-")).collect::<Vec<_>>()
    };
    let [old] = &root_keys()[..] else { panic!("one root key") };
    let id = old.file_stem().expect("a name").to_string_lossy().replace("root-", "");
    succeeded(server(&["root", "prepare", "--data", &data_text, "--add", &public(&key), "--remove", &id]));
    let copy = sign(&data, away.path(), &[&key]);
    let said = succeeded(server(&["root", "install", &text(&copy), "--data", &data_text]));
    assert!(said.contains("has all signatures"), "the old key is at hand: {said}");
    wait_until("the running origin takes the root over", || !data.join("root-next.json").exists());
    assert!(root_keys().is_empty(), "the old root key is out of use");
    let aside = data.join("tuf-keys/retired").join(old.file_name().expect("a name"));
    assert!(lab.origin().log().contains(&format!("delete {}", aside.display())), "{}", lab.origin().log());
    fs::remove_file(aside).expect("the old root key, put aside");
    let one = artifact(&lab, 8);
    lab.push(&one, "os", "1").ok();
    lab.pull("a", "os@1", &lab.path("out"), &[]).ok();
    lab.stop_origin();
    let refused = server(&["keys", "rotate", "--role", "snapshot", "--data", &data_text]);
    assert!(told(&refused).contains("root prepare --rotate snapshot"), "{}", told(&refused));
    lab.start_origin();
}

#[test]
fn a_damaged_or_foreign_root_is_named_and_changes_nothing() {
    let mut lab = Lab::start();
    let data = lab.path("origin");
    let data_text = text(&data);
    let next = data.join("root-next.json");
    let show = || server(&["root", "show", "--data", &data_text]);
    for bad in [&b"{}"[..], b"no json", &[0xff; 64]] {
        fs::write(&next, bad).expect("write");
        let output = show();
        assert!(!output.status.success() && told(&output).contains("root-next.json"), "{}", told(&output));
    }
    fs::write(&next, vec![b' '; (1 << 20) + 1]).expect("write");
    assert!(told(&show()).contains("longer than 1 MiB"), "{}", told(&show()));
    fs::remove_file(&next).expect("remove");
    // A damaged file does not keep the origin from starting and signing either.
    fs::write(&next, b"no json").expect("write");
    lab.restart_origin();
    lab.push(&artifact(&lab, 9), "os", "1").ok();
    assert!(lab.origin().log().contains("was not put in force"), "{}", lab.origin().log());
    fs::remove_file(&next).expect("remove");
    // Another realm's root of the next version.
    let other = Lab::start();
    succeeded(server(&["root", "prepare", "--data", &text(&other.path("origin"))]));
    let said = succeeded(server(&[
        "root",
        "install",
        &text(&other.path("origin/root-next.json")),
        "--data",
        &data_text,
    ]));
    assert!(said.contains("lacks 1 signature by keys of the root before it"), "{said}");
    let shown = succeeded(show());
    assert!(shown.contains("in force: root 1"), "{shown}");
}

#[test]
fn a_signer_without_a_socket_says_who_starts_it() {
    let keys = tempfile::tempdir().expect("tempdir");
    let mut command = Command::new(binary("distd-server"));
    command.args(["signer", "--keys"]).arg(keys.path()).stdin(Stdio::null());
    let output = command.output().expect("run");
    assert!(!output.status.success() && told(&output).contains("systemd socket unit"), "{}", told(&output));
    assert_eq!(fs::read_dir(keys.path()).expect("list").count(), 0, "no keys were made");
}
