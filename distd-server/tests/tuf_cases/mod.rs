//! Repositories that a client must accept or refuse, made with the real keys: those that a network
//! attacker can replay, and those that an attacker with one stolen online key can sign. Shared by
//! `tests/tuf.rs` (our client) and `examples/tuf-cases.rs`, whose output
//! `tests/python/tuf_check.py` checks with python-tuf.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use distd_core::cut::CutParams;
use distd_core::manifest::{Builder, Entry, Kind};
use distd_core::names::Name;
use distd_core::{ArtifactHash, ChunkHash, ChunkId, ManifestId};
use distd_server::signer::KeyHolder;
use distd_server::tuf::{
    DirStore, OfflineKey, Options, RootChange, RotatableRole, TufRepository, read_public_key, release_roles,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tough::TargetName;
use tough::schema::{
    Hashes, Metafile, PathPattern, PathSet, Role, RoleType, Root, Signature, Signed, Snapshot, Targets,
    Timestamp,
};
use tough::sign::Sign;

pub const DAY: u64 = 24 * 3600;

/// One repository directory, and the verdict of a client that has seen `good`.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Directory below the output.
    pub dir: String,
    /// The target to ask for.
    pub target: String,
    /// Name of our client's error; `None` if the repository must be accepted.
    pub refused: Option<&'static str>,
    /// Description of the fault.
    pub about: &'static str,
    /// Whether the client is new, so that it has not seen `good`.
    pub fresh: bool,
}

pub fn name(s: &str) -> Name {
    s.parse().expect("a name")
}

/// Root node of a manifest with one chunk that depends on `seed`.
pub fn root_node(seed: u8) -> (Bytes, ManifestId) {
    let mut builder = Builder::new(CutParams::default(), Kind::File);
    builder.push(Entry { id: ChunkId(u64::from(seed)), hash: ChunkHash::of(&[seed]), len: 1 });
    let manifest = builder.finish(ArtifactHash::from(blake3::hash(&[seed])));
    (manifest.root_bytes().clone(), manifest.id())
}

pub fn channel_doc(version: &str, seed: u8, counter: u64) -> Bytes {
    let manifest = root_node(seed).1.to_string();
    let doc = serde_json::json!({
        "product": "os", "channel": "stable", "version": version, "manifest": manifest, "counter": counter,
    });
    serde_json::to_vec(&doc).expect("JSON").into()
}

pub async fn open(dir: &Path, now: u64) -> TufRepository {
    let store = Arc::new(DirStore::new(dir.join("repo")));
    TufRepository::open(store, &KeyHolder::in_dir(dir), Options::default(), now).await.expect("a repository")
}

pub async fn publish(repo: &TufRepository, version: &str, seed: u8, now: u64) {
    let custom = serde_json::json!({ "manifest": root_node(seed).1.to_string() });
    let custom = custom.as_object().expect("an object").clone();
    let published = repo.publish_release(&name("os"), &name(version), root_node(seed).0, custom, now).await;
    published.expect("published");
}

pub async fn move_channel(repo: &TufRepository, version: &str, seed: u8, counter: u64, now: u64) {
    let doc = channel_doc(version, seed, counter);
    repo.set_channel(&name("os"), &name("stable"), doc, now).await.expect("channel set");
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Repository whose files can be changed and signed by an attacker who has stolen its keys.
pub struct Forge {
    pub repo: PathBuf,
    keys: PathBuf,
}

impl Forge {
    pub fn new(repo: &Path, keys: &Path) -> Self {
        Self { repo: repo.to_owned(), keys: keys.to_owned() }
    }

    pub fn read<T: DeserializeOwned>(&self, file: &str) -> Signed<T> {
        serde_json::from_slice(&std::fs::read(self.repo.join(file)).expect(file)).expect("metadata")
    }

    pub fn timestamp(&self) -> Timestamp {
        self.read::<Timestamp>("timestamp.json").signed
    }

    pub fn snapshot(&self) -> Snapshot {
        let at = self.timestamp().meta["snapshot.json"].version;
        self.read::<Snapshot>(&format!("{at}.snapshot.json")).signed
    }

    pub fn role(&self, role: &str) -> Targets {
        let at = self.snapshot().meta[&format!("{role}.json")].version;
        self.read::<Targets>(&format!("{at}.{role}.json")).signed
    }

    /// Writes metadata signed with the keys of the roles `signers`.
    pub fn write<T: Role + Clone>(&self, file: &str, role: &T, signers: &[&str]) -> Metafile {
        let message = role.canonical_form().expect("canonical");
        let mut signatures = Vec::new();
        for entry in std::fs::read_dir(&self.keys).expect("keys") {
            let path = entry.expect("entry").path();
            let file = path.file_name().expect("name").to_string_lossy().into_owned();
            if !signers.iter().any(|role| file.starts_with(&format!("{role}-"))) {
                continue;
            }
            let pem = std::fs::read(&path).expect("key");
            let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).expect("PEM");
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).expect("key");
            let keyid = pair.tuf_key().key_id().expect("key id");
            signatures.push(Signature { keyid, sig: pair.sign(&message).as_ref().to_vec().into() });
        }
        assert!(!signatures.is_empty(), "no key of {signers:?}");
        let bytes = serde_json::to_vec(&Signed { signed: role.clone(), signatures }).expect("JSON");
        std::fs::write(self.repo.join(file), &bytes).expect("write");
        Metafile {
            length: Some(bytes.len() as u64),
            hashes: Some(Hashes {
                sha256: digest(&SHA256, &bytes).as_ref().to_vec().into(),
                _extra: HashMap::new(),
            }),
            version: role.version(),
            _extra: HashMap::new(),
        }
    }

    /// Writes the next snapshot with `change`, and a timestamp for it: both keys are stolen.
    pub fn next_snapshot(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot();
        snapshot.version = snapshot.version.saturating_add(1);
        change(&mut snapshot);
        let at = self.write(&format!("{}.snapshot.json", snapshot.version), &snapshot, &["snapshot"]);
        self.next_timestamp(|t| {
            t.meta.insert("snapshot.json".into(), at);
        });
    }

    pub fn next_timestamp(&self, change: impl FnOnce(&mut Timestamp)) {
        let mut timestamp = self.timestamp();
        timestamp.version = timestamp.version.saturating_add(1);
        change(&mut timestamp);
        self.write("timestamp.json", &timestamp, &["timestamp"]);
    }
}

/// Makes all cases below `out`, with `root.json` to start from and `cases.json` to read.
pub async fn make(out: &Path, now: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |dir: &str, refused, about| {
        let (dir, target) = (dir.to_owned(), "releases/os/2".to_owned());
        // A client that already has this version need not fetch it, and rightly uses its own copy.
        let fresh = dir == "role-mixed";
        cases.push(Case { dir, target, refused, about, fresh });
    };
    let work = out.join("work");
    let keys = work.join("tuf-keys");

    // Two days ago there was only version 1. Its timestamp has expired, the rest is still valid.
    let then = now - 2 * DAY;
    let repo = open(&work, then).await;
    publish(&repo, "1", 1, then).await;
    move_channel(&repo, "1", 1, 1, then).await;
    copy_dir(&work.join("repo"), &out.join("expired-timestamp"));
    std::fs::copy(work.join("repo/1.root.json"), out.join("root.json")).expect("copy");
    // The same state, signed today: an attacker who has kept it replays it.
    repo.refresh(now - 3600).await.expect("refresh");
    copy_dir(&work.join("repo"), &out.join("older-state"));
    // The bin of version 2 already has another release, so that there is an older bin to go back
    // to.
    let bin = &release_roles("releases/os/2")[1];
    let beside = (3_u32..).find(|n| release_roles(&format!("releases/os/{n}"))[1] == *bin).expect("some");
    publish(&repo, &beside.to_string(), 3, now).await;
    publish(&repo, "2", 2, now).await;
    move_channel(&repo, "2", 2, 2, now).await;
    copy_dir(&work.join("repo"), &out.join("good"));
    drop(repo);
    let variant = |name: &str| {
        copy_dir(&out.join("good"), &out.join(name));
        Forge::new(&out.join(name), &keys)
    };

    add("good", None, "the current state");
    add("older-state", Some("RolledBack"), "an older state, complete and not expired, is replayed");

    let forge = variant("rolled-back-snapshot");
    let old: Signed<Snapshot> = forge.read("2.snapshot.json");
    let bytes = std::fs::read(forge.repo.join("2.snapshot.json")).expect("read");
    forge.next_timestamp(|t| {
        let mut at = t.meta["snapshot.json"].clone();
        at.version = old.signed.version;
        at.length = Some(bytes.len() as u64);
        at.hashes.as_mut().expect("hashes").sha256 = digest(&SHA256, &bytes).as_ref().to_vec().into();
        t.meta.insert("snapshot.json".into(), at);
    });
    add("rolled-back-snapshot", Some("RolledBack"), "a new timestamp points to an older snapshot");

    let forge = variant("rolled-back-role");
    let old: Signed<Targets> = forge.read("1.releases.json");
    let at = forge.write("1.releases.json", &old.signed, &["releases"]);
    forge.next_snapshot(|s| {
        s.meta.insert("releases.json".into(), at);
    });
    add("rolled-back-role", Some("RolledBack"), "a new snapshot lists an older releases role");

    let forge = variant("rolled-back-channels");
    forge.next_snapshot(|s| {
        let channels = s.meta.get_mut("channels.json").expect("channels");
        channels.version = NonZeroU64::MIN;
    });
    add("rolled-back-channels", Some("RolledBack"), "a new snapshot lists an older channels role");

    let forge = variant("role-gone");
    forge.next_snapshot(|s| {
        s.meta.remove("channels.json");
    });
    add("role-gone", Some("RolledBack"), "a new snapshot no longer lists the channels role");

    let forge = variant("role-version-mismatch");
    let role = forge.role("releases");
    let file = format!("{}.releases.json", role.version.saturating_add(1));
    let mut at = forge.write(&file, &role, &["releases"]);
    at.version = role.version.saturating_add(1);
    forge.next_snapshot(|s| {
        s.meta.insert("releases.json".into(), at);
    });
    add("role-version-mismatch", Some("Mismatch"), "releases.json states another version than the snapshot");

    let forge = variant("role-mixed");
    let mut role = forge.role("releases");
    role.targets.clear();
    forge.write(&format!("{}.releases.json", role.version), &role, &["releases"]);
    add("role-mixed", Some("Mismatch"), "releases.json of the same version with other contents");

    let forge = variant("role-foreign-key");
    let mut role = forge.role("releases");
    role.version = role.version.saturating_add(1);
    let at = forge.write(&format!("{}.releases.json", role.version), &role, &["channels"]);
    forge.next_snapshot(|s| {
        s.meta.insert("releases.json".into(), at);
    });
    add("role-foreign-key", Some("BadSignature"), "releases.json signed by the channels key");

    let forge = variant("role-expired");
    let mut role = forge.role("releases");
    role.version = role.version.saturating_add(1);
    role.expires = jiff_at(now - 60);
    let at = forge.write(&format!("{}.releases.json", role.version), &role, &["releases"]);
    forge.next_snapshot(|s| {
        s.meta.insert("releases.json".into(), at);
    });
    add("role-expired", Some("Expired"), "the releases role has expired");

    // The same faults in the bin that lists the release.
    let bin_file = format!("{bin}.json");
    let next_bin = |forge: &Forge, change: &dyn Fn(&mut Targets), signer: &str| {
        let mut role = forge.role(bin);
        role.version = role.version.saturating_add(1);
        change(&mut role);
        let at = forge.write(&format!("{}.{bin_file}", role.version), &role, &[signer]);
        forge.next_snapshot(|s| {
            s.meta.insert(bin_file.clone(), Metafile { length: None, hashes: None, ..at });
        });
    };
    let forge = variant("rolled-back-bin");
    forge.next_snapshot(|s| {
        s.meta.get_mut(&bin_file).expect("the bin").version = NonZeroU64::MIN;
    });
    add("rolled-back-bin", Some("RolledBack"), "a new snapshot lists an older bin");
    let forge = variant("bin-version-mismatch");
    let role = forge.role(bin);
    let file = format!("{}.{bin_file}", role.version.saturating_add(1));
    let mut at = forge.write(&file, &role, &["releases"]);
    at.version = role.version.saturating_add(1);
    forge.next_snapshot(|s| {
        s.meta.insert(bin_file.clone(), Metafile { length: None, hashes: None, ..at });
    });
    add("bin-version-mismatch", Some("Mismatch"), "a bin states another version than the snapshot");
    next_bin(&variant("bin-foreign-key"), &|_| {}, "channels");
    add("bin-foreign-key", Some("BadSignature"), "a bin signed by the channels key");
    next_bin(&variant("bin-expired"), &|role| role.expires = jiff_at(now - 60), "releases");
    add("bin-expired", Some("Expired"), "the bin has expired");
    let forge = variant("bin-gone");
    forge.next_snapshot(|s| {
        s.meta.remove(&bin_file);
    });
    add("bin-gone", Some("RolledBack"), "a new snapshot no longer lists the bin");

    let forge = variant("snapshot-expired");
    forge.next_snapshot(|s| s.expires = jiff_at(now - 60));
    add("snapshot-expired", Some("Expired"), "the snapshot has expired");

    let forge = variant("timestamp-foreign-key");
    let mut timestamp = forge.timestamp();
    timestamp.version = timestamp.version.saturating_add(1);
    forge.write("timestamp.json", &timestamp, &["snapshot"]);
    add("timestamp-foreign-key", Some("BadSignature"), "timestamp.json signed by the snapshot key");

    let forge = variant("timestamp-flipped");
    flip(&forge.repo.join("timestamp.json"), b"\"version\":");
    add("timestamp-flipped", Some("BadSignature"), "one digit of timestamp.json changed");

    let forge = variant("flipped-target");
    flip_first(&find_target(&forge.repo, "2"));
    add("flipped-target", Some("Mismatch"), "one byte of the release target flipped");

    let forge = variant("endless-target");
    let path = find_target(&forge.repo, "2");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes.resize(bytes.len() + (1 << 20), 0);
    std::fs::write(&path, bytes).expect("write");
    add("endless-target", Some("Mismatch"), "the release target continues after its signed length");

    let forge = variant("target-gone");
    std::fs::remove_file(find_target(&forge.repo, "2")).expect("remove");
    add("target-gone", Some("Missing"), "the release target's file is missing");

    // The channels role signs a release, which was not delegated to it.
    let forge = variant("outside-delegation");
    let mut channels = forge.role("channels");
    let release = TargetName::new("releases/os/2").expect("a name");
    channels.targets.insert(release.clone(), forge.role(bin).targets[&release].clone());
    channels.version = channels.version.saturating_add(1);
    let channels_at = forge.write(&format!("{}.channels.json", channels.version), &channels, &["channels"]);
    let mut releases = forge.role(bin);
    releases.targets.remove(&release);
    releases.version = releases.version.saturating_add(1);
    let at = forge.write(&format!("{}.{bin_file}", releases.version), &releases, &["releases"]);
    forge.next_snapshot(|s| {
        s.meta.insert("channels.json".into(), channels_at);
        s.meta.insert(bin_file.clone(), at);
    });
    add("outside-delegation", Some("UnknownTarget"), "the channels role signs a release");

    // A second role for the same paths after the terminating one (CVE-2025-2886).
    let forge = variant("behind-terminating");
    let mut releases = forge.role(bin);
    let stolen = releases.targets.remove(&release).expect("the release");
    releases.version = releases.version.saturating_add(1);
    let at = forge.write(&format!("{}.{bin_file}", releases.version), &releases, &["releases"]);
    let mut channels = forge.role("channels");
    channels.targets = HashMap::from([(release, stolen)]);
    channels.version = channels.version.saturating_add(1);
    let channels_at = forge.write(&format!("{}.channels.json", channels.version), &channels, &["channels"]);
    let mut targets = forge.role("targets");
    targets.version = targets.version.saturating_add(1);
    let delegations = targets.delegations.as_mut().expect("delegations");
    let second = delegations.roles.iter_mut().find(|r| r.name == "channels").expect("channels");
    second.paths = PathSet::Paths(vec![PathPattern::new("releases/*/*").expect("a pattern")]);
    let targets_at = forge.write(&format!("{}.targets.json", targets.version), &targets, &["targets"]);
    forge.next_snapshot(|s| {
        s.meta.insert(bin_file.clone(), at);
        s.meta.insert("channels.json".into(), channels_at);
        s.meta.insert("targets.json".into(), targets_at);
    });
    add("behind-terminating", Some("UnknownTarget"), "a role after a terminating delegation has the target");

    roots(out, &keys, now, &variant, &mut add).await;

    cases.push(Case {
        dir: "expired-timestamp".into(),
        target: "releases/os/1".into(),
        refused: Some("Expired"),
        about: "the timestamp has expired",
        fresh: true,
    });
    let json = serde_json::to_vec_pretty(&cases).expect("JSON");
    std::fs::write(out.join("cases.json"), json).expect("write");
    cases
}

/// Cases of roots that are not the next one, and of key rotation.
async fn roots(
    out: &Path,
    keys: &Path,
    now: u64,
    variant: &impl Fn(&str) -> Forge,
    add: &mut impl FnMut(&str, Option<&'static str>, &'static str),
) {
    let forge = variant("root-skips-a-version");
    let mut root = forge.read::<Root>("1.root.json").signed;
    root.version = NonZeroU64::new(3).expect("three");
    forge.write("2.root.json", &root, &["root"]);
    add("root-skips-a-version", Some("Mismatch"), "2.root.json states version 3");

    let forge = variant("root-repeats");
    std::fs::copy(forge.repo.join("1.root.json"), forge.repo.join("2.root.json")).expect("copy");
    add("root-repeats", Some("RolledBack"), "2.root.json is version 1 again");

    let forge = variant("root-of-a-thief");
    let mut root = forge.read::<Root>("1.root.json").signed;
    root.version = NonZeroU64::new(2).expect("two");
    let timestamp = root.roles[&RoleType::Timestamp].keyids.clone();
    root.roles.get_mut(&RoleType::Root).expect("root").keyids = timestamp;
    forge.write("2.root.json", &root, &["timestamp"]);
    add(
        "root-of-a-thief",
        Some("BadSignature"),
        "2.root.json signed by its own keys but not by the old ones",
    );

    thresholds(out, keys, now, add).await;

    // The repository itself rotates copies of the keys, so that the cases above keep theirs.
    let rotating = out.join("rotating");
    copy_dir(&out.join("good"), &rotating.join("repo"));
    copy_dir(keys, &rotating.join("tuf-keys"));
    let repo = open(&rotating, now).await;
    repo.rotate_key(RotatableRole::Snapshot, now).await.expect("rotate");
    repo.rotate_key(RotatableRole::Timestamp, now).await.expect("rotate");
    repo.rotate_key(RotatableRole::Root, now).await.expect("rotate");
    repo.rotate_key(RotatableRole::Targets, now).await.expect("rotate");
    repo.refresh(now).await.expect("refresh");
    copy_dir(&rotating.join("repo"), &out.join("rotated"));
    add("rotated", None, "all top-level keys changed, one after the other");
    std::fs::remove_dir_all(&rotating).expect("clean up");

    // The roots are new, but the metadata is the one before, signed by the retired keys.
    copy_dir(&out.join("rotated"), &out.join("rotated-then-old"));
    let file = "timestamp.json";
    std::fs::copy(out.join("good").join(file), out.join("rotated-then-old").join(file)).expect("copy");
    add("rotated-then-old", Some("BadSignature"), "new roots with the timestamp of the retired key");
}

/// Cases of roots that two of three keys must sign, two of which are kept elsewhere.
async fn thresholds(
    out: &Path,
    keys: &Path,
    now: u64,
    add: &mut impl FnMut(&str, Option<&'static str>, &'static str),
) {
    let made = out.join("of-three");
    copy_dir(&out.join("good"), &made.join("repo"));
    copy_dir(keys, &made.join("tuf-keys"));
    let repo = open(&made, now).await;
    let away = ["a", "b"].map(|name| OfflineKey::create(&made.join(name)).expect("a key"));
    let public = ["a.pub", "b.pub"].map(|name| read_public_key(&made.join(name)).expect("a public key"));
    let change = RootChange { add: public.to_vec(), threshold: NonZeroU64::new(2), ..RootChange::default() };
    let signed_by_all = async |change: &RootChange| {
        let mut root = repo.propose_root(change, now).await.expect("a proposal");
        for key in &away {
            assert!(root.sign(key).expect("signs"), "the root lists the key");
        }
        root
    };
    let second = signed_by_all(&change).await;
    assert!(repo.install_root(&second, now).await.expect("installed").is_none());
    let third = signed_by_all(&RootChange::default()).await;
    let third: serde_json::Value = serde_json::from_slice(&third.to_bytes()).expect("JSON");
    let mut signed = |name: &str, signers: &[usize], error, what| {
        let to = out.join(name);
        copy_dir(&made.join("repo"), &to);
        let mut root = third.clone();
        root["signatures"] = signers.iter().map(|n| third["signatures"][n].clone()).collect();
        std::fs::write(to.join("3.root.json"), root.to_string()).expect("write");
        add(name, error, what);
    };
    signed(
        "threshold-met",
        &[0, 2],
        None,
        "a root signed by two of three keys, as the root before it requires",
    );
    signed("threshold-missed", &[1], Some("BadSignature"), "a root signed by one key where two must sign");
    signed(
        "threshold-twice",
        &[1, 1],
        Some("BadSignature"),
        "a root signed twice by the same key where two must sign",
    );
    std::fs::remove_dir_all(&made).expect("clean up");
}

fn jiff_at(unix: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(unix.cast_signed()).expect("a time")
}

/// Raises the digit after `key` by one.
fn flip(path: &Path, key: &[u8]) {
    let mut bytes = std::fs::read(path).expect("read");
    let at = bytes.windows(key.len()).rposition(|w| w == key).expect("the key") + key.len();
    bytes[at] = b'0' + (bytes[at] - b'0' + 1) % 10;
    std::fs::write(path, bytes).expect("write");
}

fn flip_first(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(path, bytes).expect("write");
}

fn find_target(repo: &Path, version: &str) -> PathBuf {
    let dir = repo.join("targets/releases/os");
    let mut all = std::fs::read_dir(dir).expect("targets").map(|e| e.expect("entry").path());
    all.find(|p| p.to_string_lossy().ends_with(&format!(".{version}"))).expect("the target")
}
