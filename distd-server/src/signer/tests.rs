//! Requests that a signer grants to an honest origin, and those that it refuses to an attacker who
//! controls the origin.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use distd_core::fleet::{Capability, Entitlement, Right, Rights, capability_message};
use distd_core::role::Role;
use distd_core::{ManifestId, NodeId};
use distd_peer::clock::unix_now;
use distd_peer::trust::capability::open as open_capability;
use distd_peer::trust::identity::certificate_names;
use distd_peer::trust::revoked::RevokedList;
use distd_peer::trust::tuf::{DirStore, MetadataStore};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519, PublicKeyData, SanType,
    SigningKey,
};
use serde_json::{Value, json};

use super::policy::Validity;
use super::process::answer;
use super::{KeyHolder, SignerError, SignerLink};
use crate::realm::Realm;
use crate::tuf::{Options, RotatableRole, TufRepository};

const DAY: u64 = 24 * 3600;

/// A signer behind a socket in `dir`, with its keys in `dir/keys`. It serves `connections` one
/// after the other.
fn signer(dir: &Path, connections: usize) -> KeyHolder {
    signer_with(dir, connections, Validity { node_seconds: DAY, bundle_seconds: 0 })
}

/// As [`signer`], with other bounds.
fn signer_with(dir: &Path, connections: usize, validity: Validity) -> KeyHolder {
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let keys = dir.join("keys");
    std::thread::spawn(move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept().expect("accept");
            answer(&stream, &keys, validity).expect("served to its end");
        }
    });
    KeyHolder::Signer(Arc::new(SignerLink::connect(path)))
}

fn link(holder: &KeyHolder) -> &SignerLink {
    match holder {
        KeyHolder::Signer(link) => link,
        KeyHolder::ThisProcess(_) => panic!("a signer"),
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, SignerError>, why: &str) {
    match result {
        Err(SignerError::Refused(said)) => assert!(said.contains(why), "{said}"),
        other => panic!("{why}: {other:?}"),
    }
}

#[tokio::test]
async fn an_origin_needs_no_private_key_of_its_own() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (holder, now) = (signer(dir.path(), 1), unix_now());
    let data = dir.path().join("origin");
    std::fs::create_dir(&data).expect("mkdir");
    let realm = Realm::open(&data, &holder, now).expect("a realm");
    realm.origin_cert(&["updates.example".to_owned()], now).expect("its own certificate");
    let node = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    for role in [Role::Leaf, Role::Relay] {
        realm.node_cert(&node, role, now).expect("a node's certificate");
    }
    realm.sign_revoked(&RevokedList { made: now, nodes: Vec::new() }).expect("a list of revoked nodes");
    realm.seal(b"request", b"reply".to_vec()).expect("a seal");

    let store = Arc::new(DirStore::new(data.join("repo")));
    let repository =
        TufRepository::open(store, &holder, Options::default(), now).await.expect("a repository");
    for role in [RotatableRole::Timestamp, RotatableRole::Snapshot, RotatableRole::Targets] {
        repository.rotate_key(role, now).await.expect("a new key");
    }
    assert!(
        !repository.refresh(now + 300 * DAY).await.is_ok_and(|done| done.signed.contains(&"root".to_owned()))
    );

    let of_origin: Vec<_> = std::fs::read_dir(data.join("realm")).expect("list").collect();
    assert_eq!(of_origin.len(), 2, "origin.key and ca.pem");
    assert!(!data.join("tuf-keys").exists() && !data.join("realm/ca.key").exists());
}

#[test]
fn a_second_connection_finds_the_same_ca() {
    let dir = tempfile::tempdir().expect("tempdir");
    let holder = signer(dir.path(), 2);
    let (pem, keys) = link(&holder).hello().expect("an answer");
    assert!(keys.is_empty());
    let socket = dir.path().join("socket");
    drop(holder);
    let again = SignerLink::connect(socket);
    assert_eq!(again.hello().expect("an answer").0, pem);
}

/// CA key that records the TBSCertificate which rcgen has it sign.
struct Recorder(KeyPair, std::sync::Mutex<Vec<u8>>);

impl PublicKeyData for Recorder {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for Recorder {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        *self.1.lock().expect("not poisoned") = message.to_vec();
        self.0.sign(message)
    }
}

fn tbs(ca_pem: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let ca = distd_peer::trust::identity::certificate_from_pem(ca_pem.as_bytes()).expect("a certificate");
    let recorder = Recorder(KeyPair::generate().expect("a key"), std::sync::Mutex::default());
    let mut params = CertificateParams::default();
    let names = certificate_names(Role::Leaf)
        .iter()
        .map(|name| SanType::DnsName((*name).try_into().expect("a name")));
    params.subject_alt_names = names.collect();
    let at = |seconds: u64| std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    params.not_before = at(unix_now()).into();
    params.not_after = at(unix_now() + DAY / 2).into();
    change(&mut params);
    let issuer = Issuer::from_ca_cert_der(&ca, &recorder).expect("an issuer");
    params.signed_by(&KeyPair::generate_for(&PKCS_ED25519).expect("a key"), &issuer).expect("signs");
    drop(issuer);
    recorder.1.into_inner().expect("not poisoned")
}

#[test]
fn no_certificate_outlasts_the_compromise_of_an_origin() {
    let dir = tempfile::tempdir().expect("tempdir");
    let holder = signer(dir.path(), 1);
    let link = link(&holder);
    let pem = link.hello().expect("an answer").0;
    link.sign_certificate(&tbs(&pem, |_| {})).expect("an ordinary certificate");
    let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
    let after =
        |seconds: u64| (std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_now() + seconds)).into();
    let ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    refused(link.sign_certificate(&tbs(&pem, ca)), "extension that no certificate");
    refused(
        link.sign_certificate(&tbs(&pem, |params| params.not_after = after(2 * DAY))),
        "longer than allowed",
    );
    let bank = |params: &mut CertificateParams| params.subject_alt_names = vec![dns("bank.example")];
    refused(link.sign_certificate(&tbs(&pem, bank)), "names of no role");
    let also = |params: &mut CertificateParams| params.subject_alt_names.push(dns("bank.example"));
    refused(link.sign_certificate(&tbs(&pem, also)), "names of no role");
    let origin = |params: &mut CertificateParams| {
        params.subject_alt_names = certificate_names(Role::Origin).iter().map(|name| dns(name)).collect();
        params.not_after = after(300 * DAY);
    };
    refused(link.sign_certificate(&tbs(&pem, origin)), "longer than allowed");
    let all = |params: &mut CertificateParams| {
        let names = [Role::Origin, Role::Relay].into_iter().flat_map(|role| certificate_names(role));
        params.subject_alt_names = names.map(|name| dns(name)).collect();
    };
    refused(link.sign_certificate(&tbs(&pem, all)), "names of no role");
    let other = Realm::load_or_create(&dir.path().join("other"), unix_now()).expect("another realm");
    refused(link.sign_certificate(&tbs(other.ca_pem(), |_| {})), "not this CA's");
    refused(link.sign_certificate(b"0\x03\x02\x01\x01"), "malformed");
    refused(link.sign_statement(&tbs(&pem, |_| {})), "certificates, seals");
    refused(link.sign_statement(b"distd-enroll-reply-v1\0short"), "certificates, seals");
}

#[tokio::test]
async fn no_metadata_outlasts_the_compromise_of_an_origin() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (holder, now) = (signer(dir.path(), 1), unix_now());
    let store = Arc::new(DirStore::new(dir.path().join("repo")));
    TufRepository::open(store.clone(), &holder, Options::default(), now).await.expect("a repository");
    let link = link(&holder);
    let keys = link.hello().expect("an answer").1;
    let id_of = |role: &str| {
        let key = keys.iter().find(|key| key.role == role).expect("a key");
        let key: tough::schema::key::Key = serde_json::from_str(&key.json).expect("a key");
        key.key_id().expect("an id").to_vec()
    };
    let sign = |role: &str, value: &Value| {
        link.sign_metadata(role, &id_of(role), &serde_json::to_vec(value).expect("JSON"))
    };
    let read = |name: &str| {
        let bytes = std::fs::read(dir.path().join("repo").join(name)).expect("a file");
        serde_json::from_slice::<Value>(&bytes).expect("JSON")["signed"].clone()
    };
    let (root, targets, timestamp) = (read("1.root.json"), read("1.targets.json"), read("timestamp.json"));
    for (role, value) in [("root", &root), ("targets", &targets), ("timestamp", &timestamp)] {
        sign(role, value).expect("as it was");
    }
    refused(sign("timestamp", &read("1.snapshot.json")), "signs only metadata");
    refused(sign("releases", &root), "signs only metadata");
    for (role, value, at) in [("timestamp", &timestamp, 3), ("root", &root, 400), ("targets", &targets, 100)]
    {
        let mut longer = value.clone();
        let end =
            jiff::Timestamp::from_second(i64::try_from(now + at * DAY).expect("a time")).expect("a time");
        longer["expires"] = json!(end.to_string());
        refused(sign(role, &longer), "longer than allowed");
        longer["expires"] = json!("soon");
        refused(sign(role, &longer), "longer than allowed");
    }
    // An attacker's own key, listed for each role.
    let foreign =
        tough::sign::Sign::tuf_key(&aws_lc_rs::signature::Ed25519KeyPair::generate().expect("a key"));
    let (id, foreign) = (hex::encode(foreign.key_id().expect("an id")), json!(foreign));
    for role in ["root", "targets", "snapshot", "timestamp"] {
        let mut changed = root.clone();
        changed["keys"][&id] = foreign.clone();
        changed["roles"][role]["keyids"].as_array_mut().expect("a list").push(json!(id));
        refused(sign("root", &changed), "does not hold");
    }
    let mut changed = targets.clone();
    changed["delegations"]["keys"][&id] = foreign;
    changed["delegations"]["roles"][0]["keyids"] = json!([id]);
    refused(sign("targets", &changed), "does not hold");
    for role in ["root", "targets", "snapshot", "timestamp"] {
        for keys in [json!([]), json!([hex::encode(id_of(role)), hex::encode(id_of(role))])] {
            let mut changed = root.clone();
            changed["roles"][role]["keyids"] = keys;
            refused(sign("root", &changed), "too few or repeated keys");
        }
        let mut changed = root.clone();
        changed["roles"][role]["threshold"] = json!(2);
        refused(sign("root", &changed), "too few or repeated keys");
    }
    // A known key, listed for a role that is not its own.
    let mut changed = root;
    let of_timestamp = changed["roles"]["timestamp"]["keyids"].clone();
    changed["roles"]["root"]["keyids"] = of_timestamp;
    refused(sign("root", &changed), "does not hold");

    refused(link.generate("releases-1"), "no TUF role");
    refused(link.generate("../timestamp"), "no TUF role");
    refused(
        link.sign_metadata("timestamp", &id_of("snapshot"), &serde_json::to_vec(&timestamp).expect("JSON")),
        "no private key",
    );
    // Retired keys are kept, so an operator can put them back.
    link.retire("timestamp", &[[0u8; 32]]).expect("an answer");
    refused(sign("timestamp", &timestamp), "no private key");
    let kept = std::fs::read_dir(dir.path().join("keys/tuf-keys/retired")).expect("list");
    for key in kept.map(|key| key.expect("an entry")) {
        std::fs::rename(key.path(), dir.path().join("keys/tuf-keys").join(key.file_name())).expect("back");
    }
    link.hello().expect("an answer");
    sign("timestamp", &timestamp).expect("as before");
}

/// The signer signs a successor of the newest root only with the same root keys. A change of the
/// root keys needs the key files themselves.
#[tokio::test]
async fn a_signer_follows_the_roots_and_keeps_the_root_keys() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (now, keys) = (unix_now(), dir.path().join("keys"));
    let store = Arc::new(DirStore::new(dir.path().join("repo")));
    let holder = signer(dir.path(), 1);
    let link = link(&holder);
    let repository =
        TufRepository::open(store.clone(), &holder, Options::default(), now).await.expect("opens");
    let public = link.hello().expect("an answer").1;
    let id = public.iter().find(|key| key.role == "root").expect("a key");
    let id =
        serde_json::from_str::<tough::schema::key::Key>(&id.json).expect("a key").key_id().expect("an id");
    let read =
        |version: u64| std::fs::read(dir.path().join(format!("repo/{version}.root.json"))).expect("a root");
    let sign = |root: &Value| link.sign_metadata("root", &id, &serde_json::to_vec(root).expect("JSON"));
    let of = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON")["signed"].clone();

    let first = of(&read(1));
    let of_version = |root: &Value, version: u64| {
        let mut root = root.clone();
        root["version"] = json!(version);
        root
    };
    sign(&of_version(&first, 2)).expect("the successor");
    refused(sign(&of_version(&first, 3)), "cannot follow root 1");
    let mut noted = of_version(&first, 2);
    noted["x-note"] = json!("of an attacker");
    refused(sign(&noted), "other root keys");
    let mut lacks = of_version(&first, 2);
    lacks["roles"].as_object_mut().expect("roles").remove("timestamp");
    refused(sign(&lacks), "other root keys");
    for role in [RotatableRole::Timestamp, RotatableRole::Snapshot, RotatableRole::Targets] {
        repository.rotate_key(role, now).await.expect("a new key");
    }
    let fourth = of(&read(4));
    sign(&fourth).expect("the newest root once more");
    for version in [2, 3] {
        refused(sign(&of_version(&fourth, version)), "cannot follow root 4");
    }
    assert!(repository.rotate_key(RotatableRole::Root, now).await.is_err());
    drop(repository);

    // With the key files themselves, the root key changes as well, and the signer follows.
    let here = KeyHolder::in_dir(&keys);
    let repository = TufRepository::open(store.clone(), &here, Options::default(), now).await.expect("opens");
    repository.rotate_key(RotatableRole::Root, now).await.expect("a new key");
    drop(repository);
    let repository = TufRepository::open(store, &holder, Options::default(), now).await.expect("opens");
    repository.rotate_key(RotatableRole::Timestamp, now).await.expect("a new key");
    // The chain of roots stays short, also if the origin reconnects.
    let mut version = 6;
    while repository.rotate_key(RotatableRole::Timestamp, now).await.is_ok() {
        version += 1;
        assert!(version < 20, "the number of roots a day is bounded");
        link.hello().expect("an answer");
    }
    assert_eq!(version, 16);

    // Malformed roots and roots of other realms.
    refused(link.follow_root(b"{}"), "malformed");
    let other = Arc::new(DirStore::new(dir.path().join("other")));
    let theirs = KeyHolder::in_dir(&dir.path().join("theirs"));
    TufRepository::open(other, &theirs, Options::default(), now).await.expect("another realm's");
    let theirs = std::fs::read(dir.path().join("other/1.root.json")).expect("a root");
    refused(link.follow_root(&theirs), "not the first root");
    let mut newest: Value = serde_json::from_slice(&read(16)).expect("JSON");
    for (version, why) in [(17, "signatures"), (18, "before it")] {
        newest["signed"]["version"] = json!(version);
        refused(link.follow_root(&serde_json::to_vec(&newest).expect("JSON")), why);
    }
    newest["signed"]["version"] = json!(16);
    newest["signed"]["expires"] = json!("2200-01-01T00:00:00Z");
    refused(link.follow_root(&serde_json::to_vec(&newest).expect("JSON")), "another root of this version");
    assert_eq!(link.follow_root(&read(2)).expect("an answer"), 16);
}

/// A signer that accepts requests and never answers costs each caller one wait at most.
#[test]
fn callers_do_not_queue_behind_a_signer_that_hangs() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let patience = std::time::Duration::from_millis(300);
    let link = SignerLink::connect(path).with_patience(patience);
    let (count, began) = (200, std::time::Instant::now());
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..count).map(|_| scope.spawn(|| link.hello())).collect();
        calls.into_iter().map(|call| call.join().expect("no panic")).collect()
    });
    drop(listener);
    let (mut timed_out, mut at_once) = (0, 0);
    for answer in answers {
        match answer {
            Err(SignerError::Broken(_)) => timed_out += 1,
            Err(SignerError::Hangs | SignerError::Busy) => at_once += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(timed_out + at_once, count);
    // This is far below one wait for each caller, whatever the machine's load.
    assert!(began.elapsed() < patience * 100, "{:?}, {timed_out} timed out", began.elapsed());
    assert!(timed_out <= 3, "{timed_out}");
}

#[test]
fn capabilities_are_signed_for_a_week_at_most() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (holder, now) = (signer(dir.path(), 1), unix_now());
    let data = dir.path().join("origin");
    std::fs::create_dir(&data).expect("mkdir");
    let realm = Realm::open(&data, &holder, now).expect("a realm");
    let for_days = |days: u64| {
        let manifests = vec![Entitlement { manifest: ManifestId([1; 32]), rights: Rights::ALL }];
        realm.sign_capability(Capability { node: None, issued: now, expires: now + days * DAY, manifests })
    };
    let week = for_days(7).expect("a capability");
    open_capability(&week.encode(), realm.ca_der()).expect("of this realm");
    assert!(for_days(8).is_err());
    // Bytes behind a capability in the message could mean anything.
    let message = [&capability_message(&week.body)[..], b"x"].concat();
    refused(link(&holder).sign_statement(&message), "signs only");
}

#[tokio::test]
async fn metadata_for_bundles_is_valid_for_as_long_as_the_operator_allows() {
    let now = unix_now();
    let made = |bundle_seconds: u64| async move {
        let dir = tempfile::tempdir().expect("tempdir");
        let holder = signer_with(dir.path(), 1, Validity { node_seconds: DAY, bundle_seconds });
        let data = dir.path().join("origin");
        std::fs::create_dir(&data).expect("mkdir");
        let realm = Realm::open(&data, &holder, now).expect("a realm");
        let store = Arc::new(DirStore::new(data.join("repo")));
        let repository = TufRepository::open(store.clone(), &holder, Options::default(), now).await;
        (dir, realm, store, repository.expect("a repository"))
    };
    let (_dir, realm, _, repository) = made(0).await;
    repository.sign_for_bundle(now + 3600, now).await.expect("shorter than usual");
    assert!(repository.sign_for_bundle(now + 3 * DAY, now).await.is_err());
    let for_days_with = |realm: &Realm, node: Option<NodeId>, days: u64, rights: Rights| {
        let manifests = vec![Entitlement { manifest: ManifestId([1; 32]), rights }];
        realm.sign_capability(Capability { node, issued: now, expires: now + days * DAY, manifests })
    };
    let read: Rights = [Right::Read].into_iter().collect();
    let for_days = |realm: &Realm, node, days| for_days_with(realm, node, days, read);
    assert!(for_days(&realm, None, 8).is_err());

    let (_dir, realm, store, repository) = made(20 * DAY).await;
    let version =
        |json: &[u8]| serde_json::from_slice::<Value>(json).expect("JSON")["signed"]["version"].as_u64();
    let signed = repository.sign_for_bundle(now + 20 * DAY, now).await.expect("allowed");
    let published = store.get("timestamp.json").await.expect("read").expect("a timestamp");
    assert_eq!(version(&published), version(&signed.timestamp).map(|version| version + 1));
    assert!(store.get(&signed.snapshot_name).await.expect("read").is_none(), "in no repository");
    assert!(repository.sign_for_bundle(now + 21 * DAY, now).await.is_err());
    for_days(&realm, None, 20).expect("of any node");
    assert!(for_days(&realm, None, 21).is_err());
    assert!(for_days(&realm, Some(NodeId([7; 16])), 8).is_err(), "only those of any node are in bundles");
    assert!(for_days_with(&realm, None, 8, Rights::ALL).is_err(), "only to read");
}

#[test]
fn the_openpgp_key_signs_lines_of_sums_and_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let holder = signer(dir.path(), 1);
    let public = holder.openpgp().expect("a key");
    assert_eq!(holder.openpgp().expect("the same"), public);
    let line = distd_core::file_name::sum_line(&[7; 32], "os_1.erofs");
    let signature = holder.sign_sum(&line).expect("a signature");
    // A signature packet of version 4 over bytes, by the key.
    assert_eq!((signature[0], &signature[2..4]), (0xc2, &[4, 0][..]));
    assert!(signature.windows(20).any(|part| part == public.fingerprint), "names its key");
    let digest = &line[..64];
    for other in [
        String::new(),
        line.repeat(2),
        format!("{digest}  ../os_1\n"),
        "Origin: Debian\nSuite: stable\n".to_owned(),
        line.trim_end().to_owned(),
    ] {
        refused(link(&holder).sign_sum(other.as_bytes()), "one line of SHA256SUMS");
    }
    // Without a process of its own the rule is the same.
    let here = KeyHolder::in_dir(&dir.path().join("keys"));
    assert_eq!(here.openpgp().expect("the same"), public);
    assert!(here.sign_sum(&line.repeat(2)).is_err() && here.sign_sum(&line).is_ok());
}
