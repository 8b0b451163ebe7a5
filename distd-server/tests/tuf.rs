//! The TUF repository and the device's client, against each other and against attackers.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod tuf_cases;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::fleet::rollout::{RolloutDoc, RolloutId, RolloutState, Threshold};
use distd_core::names::Wanted;
use distd_peer::trust::tuf::wire::{Answer, Query};
use distd_peer::trust::tuf::{
    MetadataSource, Offline, PatchSetRef, PatchesDoc, Resolved, SourceError, TufClient, TufError,
};
use distd_server::signer::KeyHolder;
use distd_server::tuf::{
    Answerer, Change, DirStore, MetadataStore, Options, PublishError, Published, RepositoryError,
    RotatableRole, SharedStore, StoreError, TufRepository, release_roles,
};
use tuf_cases::{DAY, channel_doc, move_channel, name, open, publish, root_node};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn wanted(s: &str) -> Wanted {
    s.parse().unwrap()
}

/// Source with the origin's own answers.
struct Honest(Answerer);

impl Honest {
    fn over(dir: &Path) -> Arc<dyn MetadataSource> {
        Arc::new(Self(Answerer::new(Arc::new(DirStore::new(dir)))))
    }
}

#[async_trait]
impl MetadataSource for Honest {
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        Ok(self.0.answer(&query).await?)
    }
}

/// Parent that sends all of its files, requested or not.
struct Hostile(DirStore);

impl Hostile {
    fn over(dir: &Path) -> Arc<dyn MetadataSource> {
        Arc::new(Self(DirStore::new(dir)))
    }
}

#[async_trait]
impl MetadataSource for Hostile {
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        Query::decode(&query)?;
        let mut files = Vec::new();
        for name in self.0.list().await? {
            files.extend(self.0.get(&name).await?.map(|bytes| (name, bytes)));
        }
        Ok(Answer { files }.encode())
    }
}

struct Device {
    client: TufClient,
    _dir: tempfile::TempDir,
}

fn device(root: &Path) -> Device {
    let dir = tempfile::tempdir().unwrap();
    let client = TufClient::open(dir.path(), &std::fs::read(root).unwrap()).unwrap();
    Device { client, _dir: dir }
}

impl Device {
    async fn get(&self, source: Arc<dyn MetadataSource>, what: &str) -> Result<Resolved, TufError> {
        self.client.resolve(source, &wanted(what), now()).await
    }
}

/// A repository in `dir` with a release on a channel, the directory of its files, and a device that
/// has its first root.
async fn with_a_channel(dir: &Path) -> (TufRepository, PathBuf, Device) {
    let repo = open(dir, now()).await;
    publish(&repo, "1", 1, now()).await;
    move_channel(&repo, "1", 1, 1, now()).await;
    let store = dir.join("repo");
    let device = device(&store.join("1.root.json"));
    (repo, store, device)
}

#[tokio::test]
async fn a_device_gets_a_channel_in_one_round_trip_and_no_files_if_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, store, device) = with_a_channel(dir.path()).await;

    let first = device.get(Honest::over(&store), "os:stable").await.unwrap();
    assert_eq!((first.root_node, first.manifest), root_node(1));
    assert_eq!(first.version.as_str(), "1");
    assert_eq!(first.channel.unwrap().counter, 1);
    assert_eq!(first.custom["manifest"], root_node(1).1.to_string());
    assert_eq!(first.cost.round_trips, 1);
    assert!(first.cost.received_bytes < 4500, "{:?}", first.cost);

    let again = device.get(Honest::over(&store), "os:stable").await.unwrap();
    assert_eq!(again.cost.round_trips, 1);
    assert!(again.cost.received_bytes < 50, "{:?}", again.cost);

    publish(&repo, "2", 2, now()).await;
    move_channel(&repo, "2", 2, 2, now()).await;
    let next = device.get(Honest::over(&store), "os:stable").await.unwrap();
    assert_eq!(next.manifest, root_node(2).1);
    assert_eq!(next.cost.round_trips, 1);
    assert!(next.cost.received_bytes < 4000, "{:?}", next.cost);

    let offline = device.get(Arc::new(Offline), "os:stable").await.unwrap();
    assert_eq!(offline.manifest, root_node(2).1);
    let size = std::fs::metadata(store.join("timestamp.json")).unwrap().len();
    assert!(size < 600, "timestamp.json has {size} bytes");
}

#[tokio::test]
async fn held_metadata_can_be_used_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    publish(&repo, "1", 1, now()).await;
    let store = dir.path().join("repo");
    let device = device(&store.join("1.root.json"));
    device.get(Honest::over(&store), "os@1").await.unwrap();
    let later = device.client.resolve(Arc::new(Offline), &wanted("os@1"), now() + 2 * DAY).await;
    assert!(matches!(&later, Err(TufError::Expired { which }) if which == "timestamp"), "{later:?}");
    let later = device.client.resolve(Honest::over(&store), &wanted("os@1"), now() + 400 * DAY).await;
    assert!(matches!(&later, Err(TufError::Expired { which }) if which == "root"), "{later:?}");
}

#[tokio::test]
async fn a_clock_counts_as_behind_only_by_a_time_that_the_origin_signed() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    publish(&repo, "1", 1, now()).await;
    let store = dir.path().join("repo");
    let device = device(&store.join("1.root.json"));
    let at = async |source, now: u64| device.client.resolve(source, &wanted("os@1"), now).await;
    // The clock was ahead once, with and without an answer that is valid then.
    for ahead in [10 * 3600, 23 * 3600, 2 * DAY, 25 * DAY, 400 * DAY] {
        let _ = at(Honest::over(&store), now() + ahead).await;
        let _ = at(Arc::new(Offline), now() + ahead).await;
        at(Honest::over(&store), now()).await.unwrap();
        at(Arc::new(Offline), now()).await.unwrap();
    }
    at(Honest::over(&store), now() - 1800).await.unwrap();
    for behind in [2 * 3600, 2 * DAY, now()] {
        let refused = at(Honest::over(&store), now() - behind).await;
        assert!(matches!(refused, Err(TufError::ClockBehind { .. })), "{behind}: {refused:?}");
    }
    at(Honest::over(&store), now()).await.unwrap();
}

#[tokio::test]
async fn a_request_for_a_new_release_keeps_held_metadata_while_no_parent_answers() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    publish(&repo, "1", 1, now()).await;
    publish(&repo, "2", 2, now()).await;
    let store = dir.path().join("repo");
    let device = device(&store.join("1.root.json"));
    device.get(Honest::over(&store), "os@1").await.unwrap();
    device.get(Arc::new(Offline), "os@2").await.unwrap_err();
    device.get(Arc::new(Offline), "os@1").await.unwrap();
}

#[tokio::test]
async fn every_attack_is_refused_for_its_own_reason_and_does_not_lock_out_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let cases = tuf_cases::make(dir.path(), now()).await;
    let root = dir.path().join("root.json");
    for case in &cases {
        let device = device(&root);
        if !case.fresh {
            // Asks for another target than the attacked one, of which a verified copy could rightly
            // be used.
            device.get(Hostile::over(&dir.path().join("good")), "os@1").await.unwrap();
        }
        let what = case.target.replacen("releases/", "", 1).replace('/', "@");
        let result = device.get(Hostile::over(&dir.path().join(&case.dir)), &what).await;
        match (&result, case.refused) {
            (Ok(resolved), None) => assert_eq!(resolved.manifest, root_node(2).1, "{}", case.dir),
            (Err(e), Some(expected)) => {
                let got = format!("{e:?}");
                assert!(got.starts_with(expected), "{}: {} expected, got {got}", case.dir, expected);
                // The message alone says what to do; it does not contain the cause.
                assert!(e.to_string().len() > 20);
            }
            _ => panic!("{} ({}): {result:?}", case.dir, case.about),
        }
    }
}

#[tokio::test]
async fn a_refused_attack_leaves_the_device_able_to_use_the_honest_origin() {
    let dir = tempfile::tempdir().unwrap();
    let cases = tuf_cases::make(dir.path(), now()).await;
    let device = device(&dir.path().join("root.json"));
    device.get(Hostile::over(&dir.path().join("good")), "os@2").await.unwrap();
    // These attackers have no stolen key, so nothing that they send may have a lasting effect. A
    // timestamp that was refused because of its snapshot must not be remembered either
    // (CVE-2025-2888).
    let unsigned = [
        "rolled-back-snapshot",
        "older-state",
        "role-mixed",
        "timestamp-foreign-key",
        "timestamp-flipped",
        "flipped-target",
        "endless-target",
        "root-repeats",
        "root-of-a-thief",
    ];
    for case in cases.iter().filter(|c| unsigned.contains(&c.dir.as_str())) {
        device.get(Hostile::over(&dir.path().join(&case.dir)), "os@2").await.unwrap_err();
        let resolved = device.get(Honest::over(&dir.path().join("good")), "os@2").await;
        assert_eq!(resolved.unwrap().manifest, root_node(2).1, "after {}", case.dir);
    }
}

#[tokio::test]
async fn after_a_key_rotation_the_old_state_is_refused_on_every_attempt() {
    let dir = tempfile::tempdir().unwrap();
    tuf_cases::make(dir.path(), now()).await;
    let device = device(&dir.path().join("root.json"));
    device.get(Hostile::over(&dir.path().join("good")), "os@2").await.unwrap();
    let rotated = device.get(Hostile::over(&dir.path().join("rotated")), "os@2").await.unwrap();
    assert_eq!(rotated.manifest, root_node(2).1);
    for _ in 0..3 {
        // The new roots are missing here. The device must not fall back to the root of its
        // enrolment.
        let result = device.get(Hostile::over(&dir.path().join("good")), "os@2").await;
        assert!(matches!(result, Err(TufError::BadSignature { .. })), "{result:?}");
    }
    device.get(Hostile::over(&dir.path().join("rotated")), "os@2").await.unwrap();
}

#[tokio::test]
async fn a_damaged_cache_costs_a_round_trip_and_a_damaged_answer_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    publish(&repo, "1", 1, now()).await;
    let store = dir.path().join("repo");
    let data = tempfile::tempdir().unwrap();
    let root = std::fs::read(store.join("1.root.json")).unwrap();
    let client = TufClient::open(data.path(), &root).unwrap();
    client.resolve(Honest::over(&store), &wanted("os@1"), now()).await.unwrap();
    for entry in std::fs::read_dir(data.path().join("tuf/cache")).unwrap() {
        let path = entry.unwrap().path();
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x20;
        for damage in [bad, Vec::new(), good[..good.len() / 2].to_vec()] {
            std::fs::write(&path, damage).unwrap();
            let resolved = client.resolve(Honest::over(&store), &wanted("os@1"), now()).await;
            let resolved = resolved.unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
            assert!(resolved.cost.round_trips <= 2);
        }
    }

    struct Garbage;
    #[async_trait]
    impl MetadataSource for Garbage {
        async fn query(&self, _: Vec<u8>) -> Result<Vec<u8>, SourceError> {
            Ok(b"garbage".to_vec())
        }
    }
    let result = client.resolve(Arc::new(Garbage), &wanted("os@1"), now()).await;
    assert!(matches!(result, Err(TufError::Answer(_))), "{result:?}");
}

#[tokio::test]
async fn unknown_targets_and_taken_versions_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    publish(&repo, "1", 1, now()).await;
    let store = dir.path().join("repo");
    let device = device(&store.join("1.root.json"));
    for what in ["os@9", "os:stable", "none@1"] {
        let result = device.get(Honest::over(&store), what).await;
        assert!(matches!(result, Err(TufError::UnknownTarget(_))), "{what}: {result:?}");
    }
    let (os, one) = (name("os"), name("1"));
    let custom = serde_json::json!({ "manifest": root_node(1).1.to_string() }).as_object().unwrap().clone();
    let again = repo.publish_release(&os, &one, root_node(1).0, custom.clone(), now()).await;
    assert_eq!(again.unwrap(), Published::Unchanged);
    let other = repo.publish_release(&os, &one, root_node(2).0, custom.clone(), now()).await;
    assert!(matches!(other, Err(PublishError::VersionTaken(_))), "{other:?}");
    let junk = repo.publish_release(&os, &name("2"), Bytes::from_static(b"junk"), custom, now()).await;
    assert!(matches!(junk, Err(PublishError::Manifest { .. })), "{junk:?}");
    let dangling = repo.set_channel(&os, &name("stable"), channel_doc("7", 7, 1), now()).await;
    assert!(matches!(dangling, Err(PublishError::Channel { .. })), "{dangling:?}");
    move_channel(&repo, "1", 1, 1, now()).await;
    let used = repo.remove_release(&os, &one, now()).await;
    assert!(matches!(used, Err(PublishError::InUse { .. })), "{used:?}");
    repo.remove_channel(&os, &name("stable"), now()).await.unwrap();
    repo.remove_release(&os, &one, now()).await.unwrap();
    let result = device.get(Honest::over(&store), "os@1").await;
    assert!(matches!(result, Err(TufError::UnknownTarget(_))), "{result:?}");
}

#[tokio::test]
async fn a_list_of_patch_sets_is_published_replaced_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    let store = dir.path().join("repo");
    let id = |n: u8| ManifestId([n; 32]);
    let json = |product: &str, sets: u8| -> Bytes {
        let sets = (0..sets).map(|n| PatchSetRef { from: id(n), to: id(n + 1), set: id(n + 2), bytes: 9 });
        let doc = PatchesDoc { product: name(product), sets: sets.collect() };
        serde_json::to_vec(&doc).unwrap().into()
    };
    let listed = async || {
        let query = Query { latest: true, targets: vec!["patches/os".into()], ..Query::default() };
        let answer = Answerer::new(Arc::new(DirStore::new(&store))).answer(&query.encode()).await.unwrap();
        let files = Answer::decode(&answer).unwrap().files;
        let found = files.into_iter().find(|(name, _)| name.starts_with("targets/patches/"));
        found.map(|(_, bytes)| serde_json::from_slice::<PatchesDoc>(&bytes).unwrap().sets.len())
    };
    let set = async |json| repo.apply(vec![Change::SetPatches { product: name("os"), json }], now()).await;
    assert_eq!(listed().await, None);
    assert_eq!(set(json("os", 1)).await.unwrap(), Published::Changed);
    assert_eq!(set(json("os", 1)).await.unwrap(), Published::Unchanged);
    assert_eq!(listed().await, Some(1));
    assert_eq!(set(json("os", 64)).await.unwrap(), Published::Changed);
    assert_eq!(listed().await, Some(64));
    // A list of another product, an unreadable one, and one that is longer than a device accepts.
    for bad in [json("other", 1), Bytes::from_static(b"{}"), json("os", 250)] {
        assert!(matches!(set(bad).await, Err(PublishError::Patches { .. })));
    }
    assert_eq!(set(json("os", 0)).await.unwrap(), Published::Changed);
    assert_eq!(listed().await, None);
}

#[tokio::test]
async fn a_refresh_signs_only_metadata_that_expires_soon_and_prunes_after_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let start = now();
    let repo = open(dir.path(), start).await;
    publish(&repo, "1", 1, start).await;
    publish(&repo, "2", 2, start).await;
    let store = DirStore::new(dir.path().join("repo"));
    let quiet = repo.refresh(start + 3600).await.unwrap();
    assert!(quiet.signed.is_empty(), "{quiet:?}");
    assert_eq!(quiet.next, start + 16 * 3600);
    let next = repo.refresh(quiet.next).await.unwrap();
    assert_eq!(next.signed, ["timestamp"]);
    assert!(store.get("1.snapshot.json").await.unwrap().is_some(), "the old file is kept for a day");
    let later = repo.refresh(start + 2 * DAY).await.unwrap();
    assert!(later.pruned >= 3, "{later:?}");
    assert!(store.get("1.snapshot.json").await.unwrap().is_none());
    assert!(store.get("1.root.json").await.unwrap().is_some());
    let snapshot = repo.refresh(start + 5 * DAY).await.unwrap();
    assert_eq!(snapshot.signed, ["snapshot", "timestamp"]);
    let all = repo.refresh(start + 300 * DAY).await.unwrap();
    let bins = ["1", "2"].iter().flat_map(|n| release_roles(&format!("releases/os/{n}")));
    let delegated: BTreeSet<String> =
        bins.chain(["channels", "patches", "releases"].map(str::to_owned)).collect();
    let mut expected = vec!["root".to_owned()];
    expected.extend(delegated);
    expected.extend(["targets", "snapshot", "timestamp"].map(str::to_owned));
    assert_eq!(all.signed, expected);
    assert!(store.get("2.root.json").await.unwrap().is_some());
}

#[tokio::test]
async fn a_root_key_kept_elsewhere_is_needed_only_when_the_root_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let start = now();
    drop(open(dir.path(), start).await);
    let keys = dir.path().join("tuf-keys");
    for entry in std::fs::read_dir(&keys).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("root-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let repo = open(dir.path(), start).await;
    publish(&repo, "1", 1, start).await;
    assert!(!repo.refresh(start).await.unwrap().root_key_needed);
    assert!(repo.refresh(start + 300 * DAY).await.unwrap().root_key_needed);
    assert!(repo.rotate_key(RotatableRole::Timestamp, start).await.is_err());
}

#[tokio::test]
async fn a_repository_altered_in_its_store_is_never_signed_again() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    publish(&repo, "1", 1, now()).await;
    let file = dir.path().join(format!("repo/1.{}.json", release_roles("releases/os/1")[1]));
    let text = std::fs::read_to_string(&file).unwrap().replace("releases/os/1", "releases/os/6");
    std::fs::write(&file, text).unwrap();
    assert!(repo.refresh(now() + DAY).await.is_err());
    let custom = serde_json::Map::new();
    // Another release of the same bin, whose publication reads the altered file.
    let beside =
        (2_u32..).find(|n| release_roles(&format!("releases/os/{n}")) == release_roles("releases/os/1"));
    let beside = name(&beside.expect("some").to_string());
    let result = repo.publish_release(&name("os"), &beside, root_node(2).0, custom, now()).await;
    assert!(matches!(result, Err(PublishError::Repository(_))), "{result:?}");
}

#[tokio::test]
async fn a_foreign_root_in_the_store_is_not_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(&dir.path().join("ours"), now()).await;
    publish(&repo, "1", 1, now()).await;
    let thief = open(&dir.path().join("theirs"), now()).await;
    thief.rotate_key(RotatableRole::Timestamp, now()).await.unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs/repo"));
    let honest = repo.roots().await.unwrap();
    // In addition to ours: a next root, signed by its own keys.
    std::fs::copy(theirs.join("2.root.json"), ours.join("repo/2.root.json")).unwrap();
    drop(repo);
    let repo = open(&ours, now()).await;
    let roots = repo.roots().await.unwrap();
    assert_eq!((roots.newest, roots.sha256), (honest.newest, honest.sha256));
    publish(&repo, "2", 2, now()).await;
    // A rotation replaces it with the real one.
    repo.rotate_key(RotatableRole::Timestamp, now()).await.unwrap();
    assert_eq!(repo.roots().await.unwrap().sha256.len(), 2);
    drop(repo);
    // In place of ours: the whole repository of another realm.
    for entry in std::fs::read_dir(&theirs).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, ours.join("repo").join(path.file_name().unwrap())).unwrap();
        }
    }
    let store = Arc::new(DirStore::new(ours.join("repo")));
    let opened = TufRepository::open(store, &KeyHolder::in_dir(&ours), Options::default(), now()).await;
    assert!(opened.is_err(), "another realm's first root");
}

/// Store that counts the written files and bytes.
struct Counting {
    inner: DirStore,
    bytes: AtomicU64,
    writes: AtomicU64,
}

impl SharedStore for Counting {}

#[async_trait]
impl MetadataStore for Counting {
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(name).await
    }
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.put(name, bytes).await
    }
    async fn list(&self) -> Result<Vec<String>, StoreError> {
        self.inner.list().await
    }
    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }
}

/// Release whose signed fields are as long as real ones and have as little in common.
fn release(version: u32) -> Change {
    let mut custom = serde_json::Map::new();
    let hash = hex::encode(distd_peer::trust::token::sha256(&version.to_be_bytes()));
    for field in ["manifest", "blake3"] {
        custom.insert(field.to_owned(), hash.clone().into());
    }
    custom.insert("bytes".to_owned(), (u64::from(version) * 1_000_003).into());
    let root_node = root_node((version % 251) as u8).0;
    let (product, version) = (name("many"), name(&version.to_string()));
    Change::SetRelease { product, version, root_node, custom }
}

#[tokio::test]
async fn ten_thousand_releases_cost_a_device_and_a_publication_no_more_than_ten() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("repo");
    let store =
        Arc::new(Counting { inner: DirStore::new(&at), bytes: AtomicU64::new(0), writes: AtomicU64::new(0) });
    let keys = KeyHolder::in_dir(dir.path());
    let repo = TufRepository::open(store.clone(), &keys, Options::default(), now()).await.unwrap();
    repo.apply((1..=10).map(release).collect(), now()).await.unwrap();
    repo.apply((11..=10_000).map(release).collect(), now()).await.unwrap();
    let device = device(&at.join("1.root.json"));
    device.get(Honest::over(&at), "many@10000").await.unwrap();

    let before = (store.bytes.load(Ordering::SeqCst), store.writes.load(Ordering::SeqCst));
    repo.apply(vec![release(10_001)], now()).await.unwrap();
    let written = store.bytes.load(Ordering::SeqCst) - before.0;
    let writes = store.writes.load(Ordering::SeqCst) - before.1;
    assert!(written <= 64 << 10, "a publication writes {written} bytes");
    // The four files are the target, its bin, the snapshot and the timestamp.
    assert_eq!(writes, 4);
    let updated = device.get(Honest::over(&at), "many@10001").await.unwrap();
    assert_eq!(updated.cost.round_trips, 1);
    assert!(updated.cost.received_bytes <= 4 << 10, "a device receives {:?}", updated.cost);
    println!("with 10 000 releases: {written} bytes written, {:?}", updated.cost);
    steps_of_a_rollout(&repo, &at).await;

    // Another instance continues with the files in the store, and its refresh keeps all of them.
    let again = TufRepository::open(store.clone(), &keys, Options::default(), now()).await.unwrap();
    again.refresh(now()).await.unwrap();
    again.refresh(now() + 2 * DAY).await.unwrap();
    for version in ["1", "5000", "10001"] {
        let wanted = wanted(&format!("many@{version}"));
        device.client.resolve(Honest::over(&at), &wanted, now() + 2 * DAY).await.unwrap();
    }
}

/// Of a realm with 10 000 releases, 100 products and 64 patch sets a product, a device of a rollout
/// receives at most 4 KiB at each step, and little more where it has missed five.
async fn steps_of_a_rollout(repo: &TufRepository, at: &Path) {
    let step = |version: u32, counter: u64, rollout: Option<RolloutDoc>| {
        let mut doc = serde_json::json!({
            "product": "many", "channel": "stable", "version": version.to_string(),
            "manifest": root_node((version % 251) as u8).1.to_string(), "counter": counter,
        });
        if let Some(rollout) = rollout {
            doc["rollout"] = serde_json::to_value(rollout).unwrap();
        }
        let json = serde_json::to_vec(&doc).unwrap().into();
        Change::SetChannel { product: name("many"), channel: name("stable"), json }
    };
    let rollout = |open: usize| RolloutDoc {
        id: RolloutId([7; 16]),
        version: name("10002"),
        manifest: root_node((10_002 % 251) as u8).1,
        state: RolloutState::Open,
        waves: [1, 10, 50, 100].map(|n| Threshold(u64::MAX / 100 * n)).to_vec(),
        open,
        attempts: 2,
        timeout: 3600,
        selector: Some("site in (a, b, c), model = x300, ring != canary".to_owned()),
        windows: vec!["mon-fri 22:00-04:00".parse().unwrap()],
        ..RolloutDoc::unreadable()
    };
    let sets = |newest: u32| {
        let id = |n: u32| ManifestId(distd_peer::trust::token::sha256(&n.to_be_bytes()));
        let set = |n| PatchSetRef {
            from: id(n),
            to: id(n + 1),
            set: id(n + 1000),
            bytes: 1_000_003 * u64::from(n),
        };
        let doc = PatchesDoc { product: name("many"), sets: (newest - 64..newest).map(set).collect() };
        Change::SetPatches { product: name("many"), json: serde_json::to_vec(&doc).unwrap().into() }
    };
    let others = (0..100_u32).flat_map(|n| {
        let product = name(&format!("product-{n}"));
        let manifest = hex::encode(distd_peer::trust::token::sha256(&n.to_be_bytes()));
        let doc = serde_json::json!({
            "product": product, "channel": "stable", "version": "1", "manifest": manifest, "counter": n,
        });
        let json = serde_json::to_vec(&doc).unwrap().into();
        let (root_node, custom) = (root_node((n % 251) as u8).0, serde_json::Map::new());
        let of = product.clone();
        [
            Change::SetRelease { product: of, version: name("1"), root_node, custom },
            Change::SetChannel { product, channel: name("stable"), json },
        ]
    });
    repo.apply(others.chain([step(10_001, 1, None), sets(100)]).collect(), now()).await.unwrap();
    let (follower, late) = (device(&at.join("1.root.json")), device(&at.join("1.root.json")));
    let source = || Honest::over(at);
    for device in [&follower, &late] {
        let first = device.get(source(), "many:stable").await.unwrap();
        println!("a first answer: {:?}", first.cost);
    }
    // A release that is published with its patches, waves that open, and the channel that follows.
    let steps = [
        vec![release(10_002), sets(101)],
        vec![step(10_001, 2, Some(rollout(1)))],
        vec![step(10_001, 3, Some(rollout(2))), sets(102)],
        vec![step(10_001, 4, Some(rollout(4)))],
        vec![step(10_002, 5, None)],
    ];
    for changes in steps {
        repo.apply(changes, now()).await.unwrap();
        let updated = follower.get(source(), "many:stable").await.unwrap();
        println!("a step: {:?}", updated.cost);
        assert_eq!(updated.cost.round_trips, 1);
        assert!(updated.cost.received_bytes <= 4 << 10, "a device receives {:?}", updated.cost);
    }
    // A release that must be installed before is listed in a bin of its own.
    let requires = RolloutDoc { requires: vec![name("9999")], ..rollout(4) };
    repo.apply(vec![step(10_002, 6, Some(requires))], now()).await.unwrap();
    let updated = follower.get(source(), "many:stable").await.unwrap();
    println!("a step that requires another release: {:?}", updated.cost);
    assert!(updated.cost.received_bytes <= 4 << 10, "a device receives {:?}", updated.cost);
    repo.apply(vec![step(10_002, 7, None)], now()).await.unwrap();
    let caught_up = late.get(source(), "many:stable").await.unwrap();
    println!("all steps at once: {:?}", caught_up.cost);
    assert!(caught_up.cost.received_bytes <= 5 << 10, "a device receives {:?}", caught_up.cost);
    assert_eq!(caught_up.version.as_str(), "10002");
}

/// An origin that was restored from a backup has other files under names that devices hold, and a
/// disk loses bits: an answer over such a file is asked for again, whole.
#[tokio::test]
async fn an_answer_over_a_held_file_that_differs_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, store, device) = with_a_channel(dir.path()).await;
    device.get(Honest::over(&store), "os:stable").await.unwrap();
    let cache = device._dir.path().join("tuf/cache");
    let mut files = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let snapshot = files.find(|path| path.to_str().unwrap().contains("snapshot")).unwrap();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, bytes).unwrap();

    publish(&repo, "2", 2, now()).await;
    move_channel(&repo, "2", 2, 2, now()).await;
    let next = device.get(Honest::over(&store), "os:stable").await.unwrap();
    assert_eq!(next.manifest, root_node(2).1);
    assert_eq!(next.cost.round_trips, 2);
}

/// Source of files by the names for which `tough` asks: with a target's hash in front of the whole
/// name.
#[derive(Clone, Debug)]
struct Earlier(PathBuf);

#[async_trait]
impl tough::Transport for Earlier {
    async fn fetch(&self, url: url::Url) -> Result<tough::TransportStream, tough::TransportError> {
        let path = self.0.join(url.path().trim_start_matches('/'));
        match std::fs::read(path) {
            Ok(bytes) => Ok(Box::pin(futures::stream::once(async move { Ok(bytes.into()) }))),
            Err(_) => Err(tough::TransportError::new(tough::TransportErrorKind::FileNotFound, url)),
        }
    }
}

#[tokio::test]
async fn a_device_of_an_earlier_version_that_reads_all_roles_finds_every_release() {
    let dir = tempfile::tempdir().unwrap();
    let repo = open(dir.path(), now()).await;
    for version in 1..=9_u8 {
        publish(&repo, &version.to_string(), version, now()).await;
    }
    move_channel(&repo, "9", 9, 1, now()).await;
    let store = dir.path().join("repo");
    let root = std::fs::read(store.join("1.root.json")).unwrap();
    let url = |path: &str| url::Url::parse(&format!("repo:///{path}")).unwrap();
    let loader =
        tough::RepositoryLoader::new(&root, url(""), url("targets/")).transport(Earlier(store.clone()));
    let loaded = loader.load().await.unwrap();
    for wanted in (1..=9).map(|n| format!("releases/os/{n}")).chain(["channels/os/stable".to_owned()]) {
        let target = tough::TargetName::new(&wanted).unwrap();
        assert!(loaded.targets().signed.find_target(&target, false).is_ok(), "{wanted}");
    }
    // The query of such a device names every role that it holds, and the answer has the news of all
    // of them.
    let names: Vec<_> = (0..16_u8)
        .flat_map(|node| (0..32_u8).map(move |bin| (format!("releases-{node:x}-{bin:02x}"), 1)))
        .collect();
    let query = Query { root: 1, latest: true, roles: names, ..Query::default() };
    let encoded = query.encode();
    assert!(encoded.len() <= 16 << 10, "{} bytes", encoded.len());
    let answer = Answerer::new(Arc::new(DirStore::new(&store))).answer(&encoded).await.unwrap();
    let files = Answer::decode(&answer).unwrap().files;
    assert!(files.iter().any(|(name, _)| name.ends_with(".channels.json")), "{files:?}");
}

/// Store that fails every write from the nth on, as if the process had been killed before it.
struct Killed {
    inner: DirStore,
    writes_left: AtomicU64,
}

impl SharedStore for Killed {}

#[async_trait]
impl MetadataStore for Killed {
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(name).await
    }
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let left = self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        left.map_err(|_| StoreError::new("write", name, "killed"))?;
        self.inner.put(name, bytes).await
    }
    async fn list(&self) -> Result<Vec<String>, StoreError> {
        self.inner.list().await
    }
    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }
}

#[tokio::test]
async fn a_kill_between_any_two_writes_leaves_a_repository_that_verifies_and_can_continue() {
    for writes in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("repo");
        let killed = Arc::new(Killed { inner: DirStore::new(&store), writes_left: AtomicU64::new(writes) });
        let story = async {
            let keys = KeyHolder::in_dir(dir.path());
            let repo = TufRepository::open(killed.clone(), &keys, Options::default(), now()).await.ok()?;
            let none = serde_json::Map::new();
            let os = name("os");
            repo.publish_release(&os, &name("1"), root_node(1).0, none.clone(), now()).await.ok()?;
            repo.set_channel(&os, &name("stable"), channel_doc("1", 1, 1), now()).await.ok()?;
            for role in [
                RotatableRole::Timestamp,
                RotatableRole::Snapshot,
                RotatableRole::Root,
                RotatableRole::Targets,
            ] {
                repo.rotate_key(role, now()).await.ok()?;
            }
            repo.publish_release(&os, &name("2"), root_node(2).0, none, now()).await.ok()
        };
        let finished = story.await.is_some();
        let before = store.join("1.root.json");
        // Devices see this state now, before anything is repaired.
        if store.join("timestamp.json").exists() {
            let result = device(&before).get(Honest::over(&store), "os@1").await;
            let fine = matches!(result, Ok(_) | Err(TufError::UnknownTarget(_)));
            assert!(fine, "after {writes} writes: {result:?}");
        }
        // The next start continues from there.
        let repo = open(dir.path(), now()).await;
        let none = serde_json::Map::new();
        repo.publish_release(&name("os"), &name("1"), root_node(1).0, none.clone(), now()).await.unwrap();
        repo.publish_release(&name("os"), &name("2"), root_node(2).0, none, now()).await.unwrap();
        let resolved = device(&before).get(Honest::over(&store), "os@2").await;
        assert_eq!(resolved.unwrap().manifest, root_node(2).1, "after {writes} writes");
        if finished {
            assert!(writes > 20, "the test has more writes than that");
            break;
        }
    }
}

/// Store of a process that stands still before it writes a file of one name.
struct Frozen {
    inner: DirStore,
    /// Part of the name.
    before: &'static str,
    reached: tokio::sync::Semaphore,
    goes_on: tokio::sync::Semaphore,
}

impl Frozen {
    async fn pause(&self, name: &str) {
        if name.contains(self.before) {
            self.reached.add_permits(1);
            self.goes_on.acquire().await.unwrap().forget();
        }
    }
}

#[async_trait]
impl SharedStore for Frozen {
    async fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, StoreError> {
        self.pause(name).await;
        self.inner.put_new(name, bytes).await
    }
    async fn put_over(&self, name: &str, bytes: Bytes, before: Option<&Bytes>) -> Result<bool, StoreError> {
        self.pause(name).await;
        self.inner.put_over(name, bytes, before).await
    }
}

#[async_trait]
impl MetadataStore for Frozen {
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(name).await
    }
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put(name, bytes).await
    }
    async fn list(&self) -> Result<Vec<String>, StoreError> {
        self.inner.list().await
    }
    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }
}

#[tokio::test]
async fn a_process_that_stood_still_before_a_write_harms_nothing_that_another_one_published() {
    // A release and a channel: every role but the targets is written.
    for before in ["releases-", "channels", "snapshot", "timestamp"] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("repo");
        let other = open(dir.path(), now()).await;
        publish(&other, "1", 1, now()).await;
        move_channel(&other, "1", 1, 1, now()).await;
        let store = Arc::new(Frozen {
            inner: DirStore::new(&at),
            before,
            reached: tokio::sync::Semaphore::new(0),
            goes_on: tokio::sync::Semaphore::new(0),
        });
        let keys = KeyHolder::in_dir(dir.path());
        let frozen = TufRepository::open(store.clone(), &keys, Options::default(), now()).await.unwrap();
        let release = Change::SetRelease {
            product: name("os"),
            version: name("2"),
            root_node: root_node(2).0,
            custom: serde_json::Map::new(),
        };
        let channel =
            Change::SetChannel { product: name("os"), channel: name("stable"), json: channel_doc("2", 2, 3) };
        let changes = vec![release, channel];
        let meanwhile = async {
            store.reached.acquire().await.unwrap().forget();
            publish(&other, "3", 3, now()).await;
            move_channel(&other, "3", 3, 2, now()).await;
            store.goes_on.add_permits(1000);
        };
        let (applied, ()) = tokio::join!(frozen.apply(changes.clone(), now()), meanwhile);
        let elsewhere = matches!(applied, Err(PublishError::Repository(RepositoryError::PublishedElsewhere)));
        assert!(elsewhere, "{before}: {applied:?}");
        let device = device(&at.join("1.root.json"));
        for (wanted, version) in [("os@1", "1"), ("os@3", "3"), ("os:stable", "3")] {
            let resolved = device.get(Honest::over(&at), wanted).await.unwrap();
            assert_eq!(resolved.version.as_str(), version, "{before}");
        }
        assert!(device.get(Honest::over(&at), "os@2").await.is_err(), "{before}");
        // The same call again continues from what the other one published.
        frozen.apply(changes, now()).await.unwrap();
        for (wanted, version) in [("os@2", "2"), ("os@3", "3"), ("os:stable", "2")] {
            let resolved = device.get(Honest::over(&at), wanted).await.unwrap();
            assert_eq!(resolved.version.as_str(), version, "{before}");
        }
    }
}
