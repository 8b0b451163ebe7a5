//! An operator's work on the origin's machine: lost databases, backups, keys, tokens, checks. Real
//! processes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use distd_peer::trust::token::sha256;
use distd_tests::lab::{Daemon, Lab, Outcome, binary, same};
use distd_tests::rng::Rng;
use rcgen::PublicKeyData;

fn server(args: &[&str]) -> Output {
    Command::new(binary("distd-server")).args(args).output().expect("run distd-server")
}

/// Runs a command of `distd-server` on the lab's origin.
fn origin(lab: &Lab, args: &[&str]) -> Output {
    let data = lab.path("origin").display().to_string();
    server(&[args, &["--data", &data]].concat())
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn succeeded(output: Output) -> Output {
    assert!(output.status.success(), "{}", told(&output));
    output
}

/// Every file below a directory with its bytes.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).expect("list") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).expect("read"));
            }
        }
    }
    found
}

fn packs(lab: &Lab) -> Vec<PathBuf> {
    let objects = lab.path("origin/objects/packs");
    tree(&objects).into_keys().collect()
}

/// A file of noise, named by its seed.
fn artifact(lab: &Lab, seed: u64) -> PathBuf {
    let path = lab.path(&format!("artifact-{seed}"));
    fs::write(&path, Rng::new(seed).bytes(900_000)).expect("write");
    path
}

fn remove_database(lab: &Lab) {
    for path in tree(&lab.path("origin")).into_keys() {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("distd.sqlite")) {
            fs::remove_file(path).expect("remove");
        }
    }
}

#[test]
fn a_lost_database_is_refused_then_rebuilt_from_the_store_bit_for_bit() {
    let mut lab = Lab::start();
    let (one, two) = (artifact(&lab, 1), artifact(&lab, 2));
    lab.push(&one, "os", "1").ok();
    lab.push(&two, "app", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.stop_origin();
    remove_database(&lab);
    let before = tree(&lab.path("origin/objects"));

    for _ in 0..2 {
        let refused = origin(&lab, &["serve", "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"]);
        assert!(!refused.status.success());
        assert!(told(&refused).contains("is empty, but the store"), "{}", told(&refused));
        assert_eq!(tree(&lab.path("origin/objects")).len(), before.len(), "nothing was deleted");
    }
    let repaired = succeeded(origin(&lab, &["fsck", "--repair", "--json"]));
    let report = Outcome::of(repaired).json;
    assert_eq!(report["releases"], 2, "{report}");
    assert!(report["repaired"].to_string().contains("distd grant add"), "{report}");
    succeeded(origin(&lab, &["fsck", "--check-data"]));

    lab.start_origin();
    // Nodes, groups and grants were in the database alone.
    lab.admin(&["grant", "add", "everyone", "*", "--by-certificate"]).ok();
    // The first token is recorded again from its file.
    lab.enroll("device", lab.quic());
    lab.pull("device", "os:stable", &lab.path("out-1"), &[]).ok();
    lab.pull("device", "app@2", &lab.path("out-2"), &[]).ok();
    assert!(same(&one, &lab.path("out-1")) && same(&two, &lab.path("out-2")));
    // Existing chunks are known, and new chunks get ids that were never given before.
    let again = lab.push(&one, "os", "3").ok();
    assert_eq!(again.number("uploaded_chunks"), 0);
    let three = artifact(&lab, 3);
    lab.push(&three, "os", "4").ok();
    lab.pull("device", "os@4", &lab.path("out-3"), &[]).ok();
    assert!(same(&three, &lab.path("out-3")));
}

#[test]
fn a_database_of_yesterday_is_refused_and_brought_up_to_date_from_the_store() {
    let mut lab = Lab::start();
    let (one, two) = (artifact(&lab, 4), artifact(&lab, 5));
    lab.push(&one, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.enroll("device", lab.quic());
    lab.stop_origin();
    let yesterday = lab.path("yesterday.sqlite");
    fs::copy(lab.path("origin/distd.sqlite"), &yesterday).expect("copy");
    for (name, to) in
        [("distd.sqlite-wal", "yesterday.sqlite-wal"), ("distd.sqlite-shm", "yesterday.sqlite-shm")]
    {
        let file = lab.path("origin").join(name);
        if file.exists() {
            fs::copy(file, lab.path(to)).expect("copy");
        }
    }
    lab.start_origin();
    lab.push(&two, "os", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    lab.stop_origin();
    remove_database(&lab);
    for end in ["", "-wal", "-shm"] {
        let saved = lab.path(&format!("yesterday.sqlite{end}"));
        if saved.exists() {
            fs::copy(saved, lab.path(&format!("origin/distd.sqlite{end}"))).expect("copy");
        }
    }
    let before = packs(&lab);
    let refused = origin(&lab, &["serve", "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"]);
    assert!(told(&refused).contains("os@2"), "{}", told(&refused));
    let looked = origin(&lab, &["fsck"]);
    assert_eq!(looked.status.code(), Some(1), "{}", told(&looked));
    assert!(told(&looked).contains("os@2"), "{}", told(&looked));
    assert_eq!(packs(&lab), before);
    succeeded(origin(&lab, &["fsck", "--repair"]));
    lab.start_origin();
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&two, &lab.path("out")), "the channel points where it was signed to point");
}

#[test]
fn fsck_changes_nothing_by_itself_and_names_what_is_lost_and_what_has_rotted() {
    let mut lab = Lab::start();
    let (one, two) = (artifact(&lab, 6), artifact(&lab, 7));
    lab.push(&one, "os", "1").ok();
    lab.push(&two, "os", "2").ok();
    let running = origin(&lab, &["fsck"]);
    assert!(told(&running).contains("another distd-server uses"), "{}", told(&running));
    lab.stop_origin();
    succeeded(origin(&lab, &["fsck", "--check-data"]));

    let all = packs(&lab);
    let mut bytes = fs::read(&all[0]).expect("read");
    bytes[1000] ^= 1;
    fs::write(&all[0], &bytes).expect("rot");
    fs::write(lab.path("origin/objects/packs").join("stray"), b"x").expect("stray");
    let before = tree(&lab.path("origin/objects"));
    succeeded(origin(&lab, &["fsck"]));
    let looked = origin(&lab, &["fsck", "--check-data"]);
    assert_eq!(looked.status.code(), Some(1));
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(told(&looked).contains(&format!("{}: damaged", name(&all[0]))), "{}", told(&looked));
    fs::remove_file(&all[1]).expect("lose");
    let looked = origin(&lab, &["fsck", "--json"]);
    let report = Outcome::of(looked).json;
    assert_eq!(report["damaged"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(report["lost"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(report["unknown"].as_array().map(Vec::len), Some(1), "{report}");
    let mut after = tree(&lab.path("origin/objects"));
    after.insert(all[1].clone(), before[&all[1]].clone());
    assert_eq!(after, before, "looking changes nothing");
    let misused = origin(&lab, &["fsck", "--delete-unknown"]);
    assert!(told(&misused).contains("--repair"), "{}", told(&misused));

    // The damaged packs were moved away and their content pushed again: both releases are whole.
    let mended = origin(&lab, &["fsck", "--repair", "--check-data", "--delete-unknown"]);
    assert_eq!(mended.status.code(), Some(1), "two releases are still damaged: {}", told(&mended));
    lab.start_origin();
    assert_eq!(lab.admin(&["release", "show", "os@1"]).ok().json["damaged"], true);
    lab.push(&one, "os", "1").ok();
    lab.push(&two, "os", "2").ok();
    lab.enroll("device", lab.quic());
    for (version, file) in [("os@1", &one), ("os@2", &two)] {
        lab.pull("device", version, &lab.path("out"), &[]).ok();
        assert!(same(file, &lab.path("out")), "{version}");
    }
    lab.stop_origin();
    succeeded(origin(&lab, &["fsck", "--check-data"]));
}

#[test]
fn a_backup_made_while_serving_is_restored_and_devices_that_saw_more_go_on() {
    let mut lab = Lab::start();
    let (one, two, three) = (artifact(&lab, 8), artifact(&lab, 9), artifact(&lab, 10));
    lab.push(&one, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.enroll("device", lab.quic());
    let backup = lab.path("backup").display().to_string();
    succeeded(origin(&lab, &["backup", &backup]));
    let again = origin(&lab, &["backup", &backup]);
    assert!(told(&again).contains("is not empty"), "{}", told(&again));

    // Releases and channels made after the backup, which the restored origin does not know.
    lab.push(&two, "os", "2").ok();
    lab.push(&three, "os", "3").ok();
    lab.admin(&["channel", "set", "os:stable", "3"]).ok();
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    lab.stop_origin();
    let used = origin(&lab, &["restore", &backup]);
    assert!(told(&used).contains("is not empty"), "{}", told(&used));
    fs::rename(lab.path("origin"), lab.path("lost")).expect("rename");
    succeeded(origin(&lab, &["restore", &backup]));
    succeeded(origin(&lab, &["fsck", "--check-data"]));
    lab.start_origin();

    // The channel points to the release in the backup, and a device does not go back because an
    // origin was restored.
    let stays = lab.pull("device", "os:stable", &lab.path("out"), &[]);
    assert_eq!(stays.code, 4, "{}", stays.stderr);
    assert!(same(&three, &lab.path("out")));
    // With an order the device goes back, although this origin knows no later release than the one
    // the channel points to.
    lab.admin(&["channel", "set", "os:stable", "1", "--downgrade"]).ok();
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&one, &lab.path("out")), "what the backup had");
    lab.push(&three, "os", "3").ok();
    lab.admin(&["channel", "set", "os:stable", "3"]).ok();
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&three, &lab.path("out")));
    // A directory that is no complete backup is not restored.
    fs::remove_file(lab.path("backup/backup.json")).expect("as if cut off");
    let elsewhere = lab.path("elsewhere").display().to_string();
    let refused = server(&["restore", &backup, "--data", &elsewhere]);
    assert!(told(&refused).contains("is no whole backup"), "{}", told(&refused));
    assert!(!Path::new(&elsewhere).exists());
}

#[test]
fn a_backup_without_the_root_keys_says_what_to_do_with_them() {
    let mut lab = Lab::start();
    lab.push(&artifact(&lab, 11), "os", "1").ok();
    let safe = lab.path("safe");
    fs::create_dir(&safe).expect("mkdir");
    let mut moved = Vec::new();
    for key in tree(&lab.path("origin/tuf-keys")).into_keys() {
        let name = key.file_name().expect("a name").to_string_lossy().into_owned();
        if name.starts_with("root-") {
            fs::rename(&key, safe.join(&name)).expect("move");
            moved.push(name);
        }
    }
    let backup = lab.path("backup").display().to_string();
    succeeded(origin(&lab, &["backup", &backup]));
    lab.stop_origin();
    fs::rename(lab.path("origin"), lab.path("lost")).expect("rename");
    let restored = origin(&lab, &["restore", &backup]);
    assert!(!restored.status.success());
    assert!(told(&restored).contains("keys rotate"), "{}", told(&restored));
    for name in moved {
        fs::copy(safe.join(&name), lab.path("origin/tuf-keys").join(&name)).expect("bring");
    }
    succeeded(origin(&lab, &["keys", "rotate", "--role", "snapshot,timestamp"]));
    lab.start_origin();
}

#[test]
fn keys_are_changed_one_role_after_the_other_and_devices_follow() {
    let mut lab = Lab::start();
    lab.enroll("device", lab.quic());
    let unknown = origin(&lab, &["keys", "rotate", "--role", "releases"]);
    assert!(told(&unknown).contains("choose root, targets, snapshot or timestamp"), "{}", told(&unknown));
    let running = origin(&lab, &["keys", "rotate", "--role", "root"]);
    assert!(told(&running).contains("another distd-server uses"), "{}", told(&running));
    for (n, role) in
        ["timestamp", "snapshot", "targets", "root", "root,snapshot,timestamp"].into_iter().enumerate()
    {
        lab.stop_origin();
        let before: Vec<_> = tree(&lab.path("origin/tuf-keys")).into_keys().collect();
        succeeded(origin(&lab, &["keys", "rotate", "--role", role]));
        let after: Vec<_> = tree(&lab.path("origin/tuf-keys")).into_keys().collect();
        let changed = after.iter().filter(|key| !before.contains(key)).count();
        assert_eq!((changed, after.len()), (role.split(',').count(), before.len()), "{role}");
        lab.start_origin();
        let file = artifact(&lab, 20 + n as u64);
        lab.push(&file, "os", &n.to_string()).ok();
        lab.pull("device", &format!("os@{n}"), &lab.path("out"), &[]).ok();
        assert!(same(&file, &lab.path("out")), "{role}");
    }
}

#[test]
fn a_lost_admin_token_is_made_anew_on_the_origins_machine() {
    let mut lab = Lab::start();
    let file = lab.path("new.token");
    let path = file.display().to_string();
    succeeded(origin(&lab, &["admin-token", "--out", &path, "--label", "after the fire"]));
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let again = origin(&lab, &["admin-token", "--out", &path]);
    assert!(told(&again).contains("exists"), "{}", told(&again));
    let listed = lab.admin(&["token", "ls", "--token-file", &path]).ok();
    assert!(listed.json.to_string().contains("after the fire"), "{}", listed.json);
    // Printed, while the origin does not run.
    lab.stop_origin();
    let printed = succeeded(origin(&lab, &["admin-token"]));
    fs::write(&file, &printed.stdout).expect("write");
    lab.start_origin();
    lab.admin(&["token", "ls", "--token-file", &path]).ok();
    let stranger = server(&["admin-token", "--data", &lab.path("nowhere").display().to_string()]);
    assert!(told(&stranger).contains("holds no origin"), "{}", told(&stranger));
    assert!(!lab.path("nowhere").exists());
}

#[test]
fn other_users_can_read_nothing_of_an_origin_whatever_the_umask() {
    for umask in ["000", "022"] {
        let directory = tempfile::tempdir().expect("tempdir");
        let data = directory.path().join("origin");
        // A directory that existed before.
        if umask == "022" {
            fs::create_dir(&data).expect("mkdir");
            fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(binary("distd-server"));
        command.args(["serve", "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0", "--data"]).arg(&data);
        let log = directory.path().join("log");
        let origin = Daemon::start(command, &log, "origin listening on ");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&data), 0o700, "umask {umask}");
        for path in tree(&data).into_keys() {
            // The CA's certificate is meant to be read by all.
            if !path.ends_with("realm/ca.pem") {
                assert_eq!(mode(&path) & 0o077, 0, "{} under umask {umask}", path.display());
            }
        }
        drop(origin);
    }
}

/// The CA of a realm that began with a wrong clock, or ten years ago.
#[test]
fn an_ended_ca_is_renewed_with_its_key_and_nobody_enrols_again() {
    let place = tempfile::tempdir().expect("tempdir");
    let realm = place.path().join("origin/realm");
    fs::create_dir_all(&realm).expect("mkdir");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // The name that an origin gives to a CA with this key.
    let tag: String =
        sha256(&key.subject_public_key_info())[..4].iter().map(|b| format!("{b:02x}")).collect();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("distd realm {tag}"));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(1975, 3, 1), rcgen::date_time_ymd(1985, 3, 1));
    let ended = params.self_signed(&key).expect("a certificate").pem();
    fs::write(realm.join("ca.key"), key.serialize_pem()).expect("write");
    fs::set_permissions(realm.join("ca.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(realm.join("ca.pem"), &ended).expect("write");
    fs::set_permissions(place.path().join("origin"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::set_permissions(&realm, fs::Permissions::from_mode(0o700)).expect("chmod");

    let mut lab = Lab::start_on(place, &[]);
    let warnings = |lab: &mut Lab| lab.origin().log().matches("distd-server keys renew-ca").count();
    assert_eq!(warnings(&mut lab), 1, "{}", lab.origin().log());
    lab.enroll("a", lab.quic());
    let token = lab.join_token("leaf", 1);
    let curl = |lab: &Lab| {
        let url = format!("https://{}/healthz", lab.https());
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--cacert"]).arg(realm.join("ca.pem")).arg(url);
        let output = command.output().expect("run curl");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (answered, why) = curl(&lab);
    assert!(!answered && why.contains("expired"), "{why}");

    let data = lab.path("origin").display().to_string();
    for _ in 0..2 {
        let output = Command::new(binary("distd-server"))
            .args(["keys", "renew-ca", "--data", &data])
            .output()
            .expect("run distd-server");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let renewed = fs::read_to_string(realm.join("ca.pem")).expect("read");
    assert_eq!(renewed.matches("BEGIN CERTIFICATE").count(), 2, "the identity and one renewed certificate");
    assert!(renewed.replace("\r\n", "\n").starts_with(ended.replace("\r\n", "\n").trim_end()));
    let (answered, why) = curl(&lab);
    assert!(answered, "{why}");

    lab.restart_origin();
    assert_eq!(warnings(&mut lab), 1, "no second one: {}", lab.origin().log());
    assert!(curl(&lab).0);
    // A device of before, and a token of before.
    let artifact = artifact(&lab, 11);
    lab.push(&artifact, "os", "1").ok();
    lab.pull("a", "os@1", &lab.path("out"), &[]).ok();
    fs::write(lab.path("token"), token).expect("write");
    let token_file = lab.path("token").display().to_string();
    lab.device("b", &["enroll", "--parent", lab.quic(), "--token-file", &token_file]).ok();
    lab.pull("b", "os@1", &lab.path("out-b"), &[]).ok();
}

/// A realm with a release on a channel, a device that has it, and a copy of the origin's directory.
/// Then another release, which the copy lacks, and the origin stands still.
fn realm_with_a_backup(lab: &mut Lab) -> (PathBuf, [PathBuf; 2]) {
    let files = [artifact(lab, 31), artifact(lab, 32)];
    lab.push(&files[0], "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.enroll("device", lab.quic());
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    let backup = lab.path("backup");
    succeeded(origin(lab, &["backup", &backup.display().to_string()]));
    lab.push(&files[1], "os", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    lab.stop_origin();
    (backup, files)
}

/// Starts the origin, which must refuse, and say `why`, and make no key and no object. It may make
/// the directories and the lock, and the signer notes which root it has been shown.
fn refuses_to_start(lab: &Lab, why: &str) {
    let kept = || {
        let mut found: Vec<PathBuf> = Vec::new();
        let mut todo: Vec<PathBuf> =
            ["realm", "tuf-keys", "objects"].map(|name| lab.path("origin").join(name)).into();
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("an entry").path()));
            }
            let name = path.strip_prefix(lab.path("origin")).expect("below").display().to_string();
            let is_note = name.starts_with("tuf-keys/") && !name.ends_with(".pem");
            let is_note = is_note || ["tuf-keys", "objects", "objects/lock"].contains(&&*name);
            if path.exists() && !is_note {
                found.push(path);
            }
        }
        found.sort();
        found
    };
    let before = kept();
    let mut command = Command::new("timeout");
    command.arg("60").arg(binary("distd-server")).arg("serve").arg("--data").arg(lab.path("origin"));
    let refused = command.args(["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"]).output().expect("run");
    assert!(!refused.status.success() && told(&refused).contains(why), "{}", told(&refused));
    assert_eq!(kept(), before, "an origin that is refused makes no key and no object, and deletes nothing");
}

#[test]
fn lost_keys_of_the_realm_and_of_tuf_come_back_from_a_backup() {
    for (lost, why) in
        [("realm", "restore it from a backup"), ("tuf-keys", "no private key for the TUF role")]
    {
        let mut lab = Lab::start();
        let (backup, [_, two]) = realm_with_a_backup(&mut lab);
        fs::remove_dir_all(lab.path("origin").join(lost)).expect("lose");
        refuses_to_start(&lab, why);
        let copied = Command::new("cp").arg("-a").arg(backup.join(lost)).arg(lab.path("origin")).status();
        assert!(copied.expect("cp").success());
        lab.start_origin();
        // Nothing else has changed: not for the device, and not for what came after the backup.
        lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
        assert!(same(&two, &lab.path("out")), "{lost}");
    }
}

#[test]
fn lost_objects_come_back_from_a_backup_and_what_came_later_is_pushed_again() {
    let mut lab = Lab::start();
    let (backup, [one, two]) = realm_with_a_backup(&mut lab);
    fs::remove_dir_all(lab.path("origin/objects")).expect("lose");
    refuses_to_start(&lab, "restore it from a backup");
    fs::remove_dir_all(lab.path("origin/objects")).unwrap_or_default();
    let copied = Command::new("cp").arg("-a").arg(backup.join("objects")).arg(lab.path("origin")).status();
    assert!(copied.expect("cp").success());
    // The database knows a release that this store has not.
    origin(&lab, &["fsck", "--repair"]);
    lab.start_origin();
    lab.push(&two, "os", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    lab.pull("device", "os@1", &lab.path("out-1"), &[]).ok();
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&one, &lab.path("out-1")) && same(&two, &lab.path("out")));
}

#[test]
fn a_new_realm_takes_over_devices_with_what_they_have() {
    let mut gone = Lab::start();
    let (_, [one, two]) = realm_with_a_backup(&mut gone);
    let lab = Lab::start();
    for (file, version) in [(&one, "1"), (&two, "2")] {
        lab.push(file, "os", version).ok();
    }
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    // The device believes its old realm, until it gets a state directory for the new one.
    fs::rename(gone.path("device"), lab.path("device")).expect("the same machine");
    let token = lab.join_token("leaf", 1);
    let mut command = lab.command("device");
    command.args(["enroll", "--parent", lab.quic(), "--token", &token]);
    let refused = Outcome::of(command.output().expect("run distd"));
    assert!(refused.code != 0 && refused.stdout.contains("another realm"), "{}", refused.stdout);
    fs::rename(lab.path("device"), lab.path("device.old")).expect("put away");
    lab.enroll("device", lab.quic());
    let seed = gone.path("out");
    let again = lab.pull("device", "os@1", &lab.path("again"), &[&seed]).ok();
    assert_eq!(again.number("fetched_bytes"), 0, "its old release is a seed: {}", again.json);
    lab.pull("device", "os:stable", &lab.path("out"), &[]).ok();
    assert!(same(&two, &lab.path("out")));
}

#[test]
fn an_origin_that_moves_keeps_its_nodes() {
    let mut lab = Lab::start();
    let (_, [_, two]) = realm_with_a_backup(&mut lab);
    fs::rename(lab.path("origin"), lab.path("elsewhere")).expect("move");
    let mut command = Command::new(binary("distd-server"));
    command.arg("serve").arg("--data").arg(lab.path("elsewhere"));
    command.args([
        "--http",
        "127.0.0.1:0",
        "--quic",
        "127.0.0.1:0",
        "--name",
        "new.example",
        "--patches",
        "false",
    ]);
    let moved = Daemon::start(command, &lab.path("elsewhere.log"), "origin listening on ");
    let quic = moved.addresses.last().expect("an address of QUIC").clone();
    let quic = quic.trim_start_matches("quic://");
    let mut command = lab.command("device");
    command.args(["pull", "os:stable", "--parent", quic, "--out"]).arg(lab.path("out"));
    Outcome::of(command.output().expect("run distd")).ok();
    assert!(same(&two, &lab.path("out")));
}
