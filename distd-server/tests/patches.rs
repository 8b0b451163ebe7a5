//! Patch sets from the queue to a device: rows on every engine, the making, and recovery after
//! crashes.

#[path = "storage/world.rs"]
#[expect(dead_code, reason = "shared with tests that use all of it")]
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use distd_core::cut::CutParams;
use distd_core::manifest::{Kind, Manifest};
use distd_core::names::Name;
use distd_core::packing::{Codec, Unpacker};
use distd_core::patch::{Method as PatchMethod, SetIndex, decode};
use distd_core::role::Role;
use distd_core::{ArtifactHash, ChunkHash, ChunkId, ManifestId};
use distd_peer::serve::{ChunkAnswer, Content, NodeBudget};
use distd_peer::trust::identity::NodeId;
use distd_peer::trust::tls::PeerIdentity;
use distd_peer::trust::tuf::PatchesDoc;
use distd_peer::trust::tuf::wire::{Answer, Query};
use distd_server::config::{CommandLine, Settings};
use distd_server::db::{
    ChannelMove, Db, HELD_SECONDS, Location, MadeSet, Maker, MoveBy, NodeRow, PatchSetRow, PatchSetState,
    ReleaseRow, SetKind,
};
use distd_server::ingest::{FileHandle, FileRequest};
use distd_server::origin::{Origin, OriginContent, Places, RequestPatchesError, Tuning};
use distd_server::patches::PatchOptions;
use distd_server::publisher::Publisher;
use distd_server::run::{Running, start};
use distd_server::store::Store;
use distd_server::tuf::Answerer;
use futures::TryStreamExt;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use world::{World, name, noise, on_every_back_end};

const NOW: i64 = 1_800_000_000;

fn release(product: &Name, version: &str, n: u8) -> ReleaseRow {
    ReleaseRow {
        product: product.clone(),
        version: name(version),
        manifest: ManifestId([n; 32]),
        blake3: ArtifactHash([n; 32]),
        bytes: 1,
        chunk_count: 1,
        kind: "file".to_owned(),
        created: NOW,
        created_by: "ci".to_owned(),
        published: None,
        sequence: n.into(),
    }
}

async fn product(db: &Db) -> Name {
    let os = name("os");
    db.ensure_product(&os, CutParams::default(), NOW).await.expect("product");
    os
}

on_every_back_end! {
    async fn a_set_goes_from_the_queue_to_ready_once(world: World) {
        let db = &world.db;
        let os = product(db).await;
        let (one, two, three) = (release(&os, "1", 1), release(&os, "2", 2), release(&os, "3", 3));
        let (row, queued) = db.queue_patch_set(&one, &two, "ci", NOW).await.expect("queue");
        assert!(queued && row.state == PatchSetState::Queued && row.set.is_none() && row.error.is_none());
        let again = db.queue_patch_set(&one, &two, "other", NOW + 9).await.expect("queue");
        assert_eq!(again, (row.clone(), false));
        db.queue_patch_set(&two, &three, "ci", NOW + 1).await.expect("queue");
        assert_eq!(db.patch_sets_waiting().await.expect("count"), 2);

        let origin = Maker::default();
        let taken = db.take_patch_set(SetKind::Pair, &origin, NOW + 2).await.expect("take").expect("a queued set");
        assert_eq!((&taken.key, taken.state, taken.started), (&row.key, PatchSetState::Building, Some(NOW + 2)));
        // The origin ended here. The next start queues the set again.
        assert_eq!(db.requeue_patch_sets(NOW + 2).await.expect("requeue"), 1);
        let taken = db.take_patch_set(SetKind::Pair, &origin, NOW + 3).await.expect("take").expect("a queued set");
        assert_eq!(taken.key, row.key);

        let mut tx = db.begin_patch_set(NOW + 4).await.expect("begin");
        let pack = tx.record_pack("packs/aa/one", 10).await.expect("pack");
        let (hash, other) = (ChunkHash([7; 32]), ChunkHash([8; 32]));
        assert_eq!(tx.places(&[hash]).await.expect("places"), [None]);
        let at = |offset| Location { pack, offset, stored_len: 5, raw_len: 5, codec: Codec::Raw };
        let ids = tx.give_ids(&[(hash, at(0)), (other, at(5))]).await.expect("give");
        let set = ManifestId([9; 32]);
        let made = MadeSet { set: Some(set), bytes: 10, packed: 70, patches: 1 };
        assert!(tx.finish(&row.key, &origin, &made).await.expect("finish"));

        assert_eq!(db.last_chunk_id().await.expect("counter"), ids[1].0);
        assert_eq!(db.chunk_ids(&[other, hash]).await.expect("ids"), [Some(ids[1]), Some(ids[0])]);
        assert_eq!(db.packs_known(&["packs/aa/one".to_owned()]).await.expect("packs"), [true]);
        // A set's manifest is served and kept, like a release's.
        assert_eq!(db.manifests_released(&[set, ManifestId([5; 32])]).await.expect("named"), [true, false]);
        let unnamed = db.unreleased_manifests(&[set, ManifestId([5; 32])]).await.expect("unnamed");
        assert_eq!(unnamed.ids, [ManifestId([5; 32])]);
        unnamed.end().await.expect("end");
        let usable = db.patch_sets_usable(&os, 64).await.expect("usable");
        assert_eq!(usable.len(), 1);
        assert_eq!((usable[0].set, usable[0].bytes, usable[0].packed, usable[0].patches), (Some(set), 10, 70, 1));
        assert_eq!(db.patch_set(&row.key).await.expect("row").as_ref(), Some(&usable[0]));
        let versions: Vec<_> =
            db.patch_sets(&os).await.expect("list").into_iter().map(|row| row.to_version.to_string()).collect();
        assert_eq!(versions, ["3", "2"]);
    }

    async fn a_set_that_a_worker_does_not_hold_any_more_goes_to_another(world: World) {
        let db = &world.db;
        let os = product(db).await;
        let (row, _) =
            db.queue_patch_set(&release(&os, "1", 1), &release(&os, "2", 2), "ci", NOW).await.expect("queue");
        let (one, two) = (Maker("one".to_owned()), Maker("two".to_owned()));
        let take = async |by: &Maker, at| {
            let taken = db.take_patch_set(SetKind::Pair, by, at).await.expect("take");
            taken.map(|taken| taken.key)
        };
        let hold = async |by: &Maker, at| db.hold_patch_set(&row.key, by, at).await.expect("hold");
        assert_eq!(take(&one, NOW).await.as_ref(), Some(&row.key));
        assert_eq!(take(&two, NOW + HELD_SECONDS).await, None, "it is held");
        assert!(hold(&one, NOW + HELD_SECONDS).await);
        // A start of the origin takes nothing from a worker that holds it.
        assert_eq!(db.requeue_patch_sets(NOW + HELD_SECONDS).await.expect("requeue"), 0);
        let later = NOW + 2 * HELD_SECONDS + 1;
        assert_eq!(take(&two, later).await.as_ref(), Some(&row.key), "it was held no more");
        assert!(!hold(&one, later).await && hold(&two, later).await);

        let set = MadeSet { set: Some(ManifestId([9; 32])), bytes: 10, packed: 70, patches: 1 };
        let finish = async |by: &Maker| {
            let tx = db.begin_patch_set(later).await.expect("begin");
            tx.finish(&row.key, by, &set).await.expect("finish")
        };
        db.fail_patch_set(&row.key, &one, "too late", later).await.expect("fail");
        assert!(!finish(&one).await, "it is another's");
        assert!(finish(&two).await);
        // The signed list does not name it yet: nobody is told that it is ready.
        let state = async || {
            let row = db.patch_set(&row.key).await.expect("row").expect("a set");
            (row.state, db.patch_sets_waiting().await.expect("count"))
        };
        assert_eq!(state().await, (PatchSetState::Building, 1));
        assert_eq!(db.products_to_list().await.expect("products"), std::slice::from_ref(&os));
        assert_eq!(db.sets_to_list(&os).await.expect("sets"), std::slice::from_ref(&row.key));
        db.sets_are_listed(std::slice::from_ref(&row.key)).await.expect("listed");
        assert_eq!(state().await, (PatchSetState::Ready, 0));
        assert!(db.products_to_list().await.expect("products").is_empty());
    }

    async fn a_failed_set_is_tried_again_on_request(world: World) {
        let db = &world.db;
        let os = product(db).await;
        let (one, two) = (release(&os, "1", 1), release(&os, "2", 2));
        let (row, _) = db.queue_patch_set(&one, &two, "ci", NOW).await.expect("queue");
        // Only a set that is being made can fail.
        db.fail_patch_set(&row.key, &Maker::default(), "early", NOW).await.expect("fail");
        assert!(db.take_patch_set(SetKind::Pair, &Maker::default(), NOW).await.expect("take").is_some());
        assert!(db.take_patch_set(SetKind::Pair, &Maker::default(), NOW).await.expect("take").is_none());
        db.fail_patch_set(&row.key, &Maker::default(), "a chunk is damaged", NOW + 1).await.expect("fail");
        let failed = db.patch_set(&row.key).await.expect("row").expect("there");
        assert_eq!((failed.state, failed.error.as_deref()), (PatchSetState::Failed, Some("a chunk is damaged")));
        let (row, queued) = db.queue_patch_set(&one, &two, "ci", NOW + 2).await.expect("queue");
        assert!(queued && row.state == PatchSetState::Queued && row.error.is_none());
    }

    async fn a_set_that_nobody_is_making_is_not_recorded(world: World) {
        let db = &world.db;
        let os = product(db).await;
        let (row, _) =
            db.queue_patch_set(&release(&os, "1", 1), &release(&os, "2", 2), "ci", NOW).await.expect("queue");
        let mut tx = db.begin_patch_set(NOW).await.expect("begin");
        let pack = tx.record_pack("packs/aa/one", 10).await.expect("pack");
        let at = Location { pack, offset: 0, stored_len: 5, raw_len: 5, codec: Codec::Raw };
        tx.give_ids(&[(ChunkHash([7; 32]), at)]).await.expect("give");
        assert!(!tx.finish(&row.key, &Maker::default(), &MadeSet::default()).await.expect("finish"));
        assert_eq!(db.last_chunk_id().await.expect("counter"), 0);
        assert_eq!(db.packs_known(&["packs/aa/one".to_owned()]).await.expect("packs"), [false]);
        // A set without patches is a result, too.
        db.take_patch_set(SetKind::Pair, &Maker::default(), NOW).await.expect("take").expect("a queued set");
        let tx = db.begin_patch_set(NOW).await.expect("begin");
        assert!(tx.finish(&row.key, &Maker::default(), &MadeSet::default()).await.expect("finish"));
        let done = db.patch_set(&row.key).await.expect("row").expect("there");
        assert_eq!((done.state, done.set), (PatchSetState::Ready, None));
        assert!(db.patch_sets_usable(&os, 64).await.expect("usable").is_empty());
    }
}

/// Version from which a set starts; empty for a set from nothing.
fn from_of(row: &PatchSetRow) -> String {
    row.from_version.as_ref().map(Name::to_string).unwrap_or_default()
}

/// Origin of one test.
struct Realm {
    origin: Arc<Origin>,
    directory: TempDir,
}

fn tuning(enabled: bool, solid_sets: bool) -> Tuning {
    // A low level is enough, because these tests do not measure zstd.
    let patches = PatchOptions { enabled, solid_sets, level: 3, ..PatchOptions::default() };
    Tuning { patches, ..Tuning::default() }
}

impl Realm {
    /// Origin that makes no sets from nothing.
    async fn new(enabled: bool) -> Self {
        Self::tuned(tuning(enabled, false)).await
    }

    async fn tuned(tuning: Tuning) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let places = Places::in_dir(directory.path());
        Self { origin: Origin::open(&places, tuning).await.expect("an origin"), directory }
    }

    /// Opens the origin again, as after its process ended: nothing in memory remains.
    async fn again(self) -> Self {
        self.origin.db().close().await;
        let places = Places::in_dir(self.directory.path());
        let origin = Origin::open(&places, tuning(true, false)).await.expect("an origin");
        origin.sweep_at_start().await.expect("sweep");
        Self { origin, ..self }
    }

    /// Points a channel of the product to a version, whichever version it had before.
    async fn point(&self, channel: &str, version: &str) {
        let (product, channel, version) = (name("os"), name(channel), name(version));
        let to = ChannelMove { product: &product, channel: &channel, version: &version, downgrade: true };
        self.origin.set_channel(to, &MoveBy::origin()).await.expect("channel");
    }

    async fn push(&self, version: &str, bytes: &[u8]) -> ManifestId {
        let path = self.directory.path().join("artifact");
        std::fs::write(&path, bytes).expect("write");
        let request = FileRequest {
            product: name("os"),
            version: name(version),
            cut: CutParams::default(),
            by: Publisher::unbound("ci"),
        };
        let db = self.origin.db();
        db.ensure_product(&request.product, request.cut, NOW).await.expect("product");
        let now = NOW + version.len() as i64 + i64::from(version.as_bytes()[0]);
        let file = FileHandle::open(&path).expect("opens");
        let committed = self.origin.ingest().ingest_file(&request, file, now).await.expect("ingest");
        self.origin.publish_release(&committed).await.expect("publish");
        committed.manifest
    }

    async fn rows(&self) -> Vec<PatchSetRow> {
        self.origin.db().patch_sets(&name("os")).await.expect("rows")
    }

    /// Versions of each row, oldest row first.
    async fn pairs(&self) -> Vec<(String, String)> {
        let rows = self.rows().await;
        let mut pairs: Vec<_> = rows.iter().map(|row| (from_of(row), row.to_version.to_string())).collect();
        pairs.sort();
        pairs
    }

    /// Makes all queued sets.
    async fn make(&self) {
        let stop = CancellationToken::new();
        let maker = tokio::spawn(self.origin.clone().make_patches(stop.clone()));
        let made = async {
            while self.origin.db().patch_sets_waiting().await.expect("count") > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), made).await.expect("made in time");
        stop.cancel();
        // A set is published after its row is written. The maker ends only after both.
        maker.await.expect("the maker ends");
    }

    /// List of patch sets that devices see.
    async fn listed(&self) -> Option<PatchesDoc> {
        let query = Query { latest: true, targets: vec!["patches/os".into()], ..Query::default() };
        let answerer = Answerer::new(self.origin.metadata().clone());
        let answer =
            Answer::decode(&answerer.answer(&query.encode()).await.expect("answer")).expect("answer");
        let found = answer.files.into_iter().find(|(name, _)| name.starts_with("targets/patches/"));
        found.map(|(_, json)| serde_json::from_slice(&json).expect("a list"))
    }

    /// Raw bytes of a manifest's chunks, fetched as a device fetches them.
    async fn fetch(&self, manifest: &Manifest) -> BTreeMap<ChunkId, Vec<u8>> {
        let node = NodeId([7; 16]);
        let row = NodeRow {
            id: node.to_string(),
            public_key: vec![7],
            role: "leaf".into(),
            label: String::new(),
            enrolled: NOW,
            cert_serial: String::new(),
            cert_expires: i64::MAX,
            revoked: None,
        };
        self.origin.db().put_node(&row).await.expect("node");
        let peer = PeerIdentity { node_id: node, role: Role::Leaf, expires: u64::MAX };
        let content: Arc<dyn Content> = OriginContent::new(self.origin.clone()).into_content();
        let budget = NodeBudget::of(Role::Leaf);
        let swarm = content.swarm(&peer, &budget, manifest.id()).await.expect("served");
        let held = swarm.held().await.expect("held");
        let (tx, mut rx) = tokio::sync::mpsc::channel(64);
        let asking = tokio::spawn(async move { swarm.chunks(&budget, held, tx).await });
        let entries: BTreeMap<_, _> = manifest.entries().map(|at| (at.entry.id, at.entry)).collect();
        let (mut unpacker, mut got) = (Unpacker::default(), BTreeMap::new());
        while let Some(answer) = rx.recv().await {
            let ChunkAnswer::Data(data) = answer else { panic!("a chunk is missing") };
            let entry = entries[&data.id];
            let raw = unpacker.unpack(data.codec, &data.bytes, entry.len, &entry.hash).expect("sound");
            got.insert(data.id, raw.to_vec());
        }
        asking.await.expect("answered");
        assert_eq!(got.len(), entries.len());
        got
    }

    async fn manifest(&self, id: &ManifestId) -> Manifest {
        self.origin.ingest().manifest(id).await.expect("manifest")
    }

    /// Fetches the set between two manifests and applies all of it, as a device that holds `from`.
    /// Returns the index and the bytes of all payloads.
    async fn apply(&self, from: &ManifestId, to: &ManifestId) -> (SetIndex, u64) {
        let doc = self.listed().await.expect("a list");
        let listed = doc.sets.iter().find(|set| (set.from, set.to) == (*from, *to)).expect("listed");
        let set = self.manifest(&listed.set).await;
        let Kind::PatchSet { index_bytes } = set.root().kind else { panic!("{:?}", set.root().kind) };
        assert_eq!(set.root().bytes, listed.bytes);
        let chunks = self.fetch(&set).await;
        let pieces: Vec<&[u8]> = set.entries().map(|at| &chunks[&at.entry.id][..]).collect();
        assert_eq!(blake3::hash(&pieces.concat()), blake3::Hash::from(*set.root().blake3.as_bytes()));
        let (mut index, mut payloads) = (Vec::new(), &pieces[..]);
        while (index.len() as u64) < index_bytes {
            index.extend_from_slice(payloads[0]);
            payloads = &payloads[1..];
        }
        let index = SetIndex::decode(&index).expect("an index");
        assert_eq!((index.from, index.to), (*from, *to));

        let mut held = match *from {
            ManifestId::NOTHING => BTreeMap::new(),
            from => self.fetch(&self.manifest(&from).await).await,
        };
        let new = self.manifest(to).await;
        let hashes: BTreeMap<_, _> = new.entries().map(|at| (at.entry.id, at.entry.hash)).collect();
        let rebuilt: std::collections::BTreeSet<ChunkId> = index
            .patches
            .iter()
            .flat_map(|patch| patch.target_chunks())
            .filter_map(|(id, _)| id.chunk())
            .collect();
        // Chunks that no patch brings are fetched first.
        let fetched = self.fetch(&new).await.into_iter().filter(|(id, _)| !rebuilt.contains(id));
        held.extend(fetched.filter(|(id, _)| !rebuilt.contains(id)));
        for (patch, payload) in index.patches.iter().zip(payloads) {
            assert!((payload.len() as u64) < patch.packed, "a patch saves bytes");
            let base: Vec<&[u8]> =
                patch.base_ids().map(|id| &held[&id.chunk().expect("no view")][..]).collect();
            let Some(PatchMethod::Buffer(codec)) = patch.method() else { panic!("{}", patch.codec) };
            let target = decode(codec, &base.concat(), payload, patch.target_bytes()).expect("decodes");
            let mut rest = &target[..];
            for (id, len) in patch.target_chunks() {
                let id = id.chunk().expect("no view");
                let (chunk, behind) = rest.split_at(len as usize);
                rest = behind;
                assert_eq!(ChunkHash::of(chunk), hashes[&id]);
                assert!(
                    held.insert(id, chunk.to_vec()).is_none(),
                    "a chunk is rebuilt once, and not one that is held"
                );
            }
        }
        assert!(hashes.keys().all(|id| held.contains_key(id)));
        let bytes = payloads.iter().map(|payload| payload.len() as u64).sum();
        (index, bytes)
    }

    /// Names of packs in the store that no row names, and the number of all packs in the store.
    async fn strays(&self) -> (Vec<String>, usize) {
        let store: &Store = self.origin.ingest().store();
        let objects: Vec<_> = store.list("packs").try_collect().await.expect("list");
        let names: Vec<String> = objects.into_iter().map(|object| object.name).collect();
        let known = self.origin.db().packs_known(&names).await.expect("known");
        let strays = names.iter().zip(known).filter(|(_, known)| !known).map(|(name, _)| name.clone());
        (strays.collect(), names.len())
    }
}

/// Bytes that compress to about half.
fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len).iter().map(|byte| b"abcdefghijklmnop"[usize::from(byte & 15)]).collect()
}

/// Text of a dictionary that depends on `seed`, so that its chunks have words in common.
fn prose(seed: u64, len: usize) -> Vec<u8> {
    let words = noise(seed, 8 * 256);
    noise(seed + 1, len / 8).iter().flat_map(|n| &words[8 * usize::from(*n)..][..8]).copied().collect()
}

/// `bytes` with a few bytes changed in every 40 kB.
fn edited(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in (1000..bytes.len()).step_by(40_000) {
        bytes[at] ^= 0x55;
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_brings_a_set_that_rebuilds_it_from_the_release_before() {
    let realm = Realm::new(true).await;
    let old = [text(1, 2 << 20), noise(2, 1 << 20), vec![0; 1 << 20]].concat();
    let new = [edited(&old[..2 << 20]), old[2 << 20..].to_vec(), prose(3, 300_000)].concat();
    let from = realm.push("1", &old).await;
    assert!(realm.rows().await.is_empty() && realm.listed().await.is_none());
    let to = realm.push("2", &new).await;
    // A release of the same bytes needs no patch.
    realm.push("3", &new).await;
    assert_eq!(realm.pairs().await, [("1".to_owned(), "2".to_owned())]);
    realm.make().await;
    let row = &realm.rows().await[0];
    assert_eq!((row.state, row.error.as_deref()), (PatchSetState::Ready, None));
    let (index, payloads) = realm.apply(&from, &to).await;
    let packed: u64 = index.patches.iter().map(|patch| patch.packed).sum();
    assert_eq!((row.packed, row.patches), (packed, index.patches.len() as u64));
    assert!(row.bytes > payloads && payloads * 4 < packed, "{payloads} of {packed}");
    assert!(
        index.patches.iter().any(|patch| patch.bases.is_empty()),
        "new data is in a patch without a base"
    );
    assert!(realm.strays().await.0.is_empty());
    // A restart publishes the same list, and the sweep deletes nothing of it.
    let before = realm.listed().await;
    let realm = realm.again().await;
    assert_eq!(realm.listed().await, before);
    realm.apply(&from, &to).await;
}

fn image(directory: &Path, edit: bool) -> Vec<u8> {
    let tree = directory.join(if edit { "new" } else { "old" });
    std::fs::create_dir_all(tree.join("usr/bin")).expect("mkdir");
    for n in 0..30u64 {
        let bytes = text(100 + n, 20_000 + 7_000 * n as usize);
        let bytes = if edit && n % 3 == 0 { edited(&bytes) } else { bytes };
        std::fs::write(tree.join(format!("usr/bin/tool{n}")), bytes).expect("write");
    }
    if edit {
        std::fs::write(tree.join("usr/bin/added"), text(99, 50_000)).expect("write");
    }
    let image = tree.with_extension("erofs");
    let output = Command::new("mkfs.erofs")
        .args(["-T1700000000", "-U11111111-2222-3333-4444-555555555555"])
        .args([&image, &tree])
        .output()
        .expect("this test runs mkfs.erofs: install erofs-utils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(image).expect("mkfs.erofs left an image")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_patched_file_by_file() {
    let realm = Realm::new(true).await;
    let trees = tempfile::tempdir().expect("tempdir");
    let from = realm.push("1", &image(trees.path(), false)).await;
    let to = realm.push("2", &image(trees.path(), true)).await;
    realm.make().await;
    let (index, payloads) = realm.apply(&from, &to).await;
    let packed: u64 = index.patches.iter().map(|patch| patch.packed).sum();
    assert!(payloads * 3 < packed, "{payloads} of {packed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_can_be_rebuilt_from_its_solid_set_alone() {
    let realm = Realm::tuned(tuning(true, true)).await;
    let old = [prose(1, 2 << 20), prose(5, 1 << 20)].concat();
    let new = [edited(&old), prose(9, 300_000)].concat();
    let from = realm.push("1", &old).await;
    let to = realm.push("2", &new).await;
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(realm.pairs().await, [pair("", "1"), pair("", "2"), pair("1", "2")]);
    realm.make().await;
    let (index, payloads) = realm.apply(&ManifestId::NOTHING, &to).await;
    let packed: u64 = index.patches.iter().map(|patch| patch.packed).sum();
    let rebuilt: usize = index.patches.iter().map(|patch| patch.target_bytes()).sum();
    assert!(
        payloads < packed && rebuilt * 10 > new.len() * 9,
        "{rebuilt} of {}, {payloads} of {packed}",
        new.len()
    );
    realm.apply(&ManifestId::NOTHING, &from).await;
    // The set between the releases is not affected.
    let (_, between) = realm.apply(&from, &to).await;
    assert!(between * 3 < payloads);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_making_is_repeated_and_leaves_nothing_behind() {
    let realm = Realm::new(true).await;
    let old = text(1, 1 << 20);
    let from = realm.push("1", &old).await;
    let to = realm.push("2", &edited(&old)).await;
    // A stopped maker deletes the packs that it has stored.
    let row = realm
        .origin
        .db()
        .take_patch_set(SetKind::Pair, &Maker::default(), NOW)
        .await
        .expect("take")
        .expect("a queued set");
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(realm.origin.patches().make(&row, &stop).await.is_err());
    assert!(realm.strays().await.0.is_empty());
    // A killed maker leaves its row as it is, and packs that no row names.
    let stray = format!("packs/aa/aa{}", "0".repeat(30));
    realm.origin.ingest().store().put(&stray, vec![1, 2, 3]).await.expect("put");
    let building = async {
        let running = CancellationToken::new();
        realm.origin.patches().make(&row, &running).await
    };
    drop(tokio::time::timeout(Duration::from_millis(1), building).await);
    let realm = realm.again().await;
    assert_eq!(realm.strays().await.0, Vec::<String>::new());
    realm.make().await;
    realm.apply(&from, &to).await;
    let (strays, packs) = realm.strays().await;
    assert_eq!(strays, Vec::<String>::new());
    let realm = realm.again().await;
    assert_eq!(realm.strays().await.1, packs, "the sweep keeps the packs of sets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_made_by_an_origin_that_ended_before_it_was_listed_is_listed_at_the_next_start() {
    let realm = Realm::new(true).await;
    let old = text(1, 1 << 20);
    realm.push("1", &old).await;
    realm.push("2", &edited(&old)).await;
    let taken = realm.origin.db().take_patch_set(SetKind::Pair, &Maker::default(), NOW).await;
    let row = taken.expect("take").expect("a queued set");
    let made = realm.origin.patches().make(&row, &CancellationToken::new()).await.expect("make");
    assert!(made.is_some_and(|made| made.set.is_some()));
    assert_eq!(realm.rows().await[0].state, PatchSetState::Building);
    assert!(realm.listed().await.is_none());
    let realm = realm.again().await;
    assert_eq!(realm.rows().await[0].state, PatchSetState::Ready);
    assert_eq!(realm.listed().await.expect("a list").sets.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_could_not_be_signed_is_signed_at_the_next_turn() {
    let realm = Realm::new(true).await;
    let old = text(1, 1 << 20);
    realm.push("1", &old).await;
    realm.push("2", &edited(&old)).await;
    // The store cannot write the list where a file is in its way.
    let in_the_way = realm.directory.path().join("objects/tuf/targets/patches");
    std::fs::write(&in_the_way, b"").expect("write");
    let stop = CancellationToken::new();
    let maker = tokio::spawn(realm.origin.clone().make_patches(stop.clone()));
    while realm.rows().await[0].set.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    maker.await.expect("the maker ends");
    assert_eq!(realm.rows().await[0].state, PatchSetState::Building);
    std::fs::remove_file(&in_the_way).expect("remove");
    realm.make().await;
    assert_eq!(realm.rows().await[0].state, PatchSetState::Ready);
    assert_eq!(realm.listed().await.expect("a list").sets.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_with_nothing_in_common_is_solid_and_noise_gets_no_patch() {
    let realm = Realm::new(true).await;
    let from = realm.push("1", &prose(1, 500_000)).await;
    let to = realm.push("2", &prose(11, 500_000)).await;
    realm.push("3", &noise(3, 500_000)).await;
    realm.make().await;
    let (index, _) = realm.apply(&from, &to).await;
    assert!(index.patches.iter().all(|patch| patch.bases.is_empty()));
    let row = realm.rows().await.into_iter().find(|row| row.to_version == name("3")).expect("a row");
    assert_eq!((row.state, row.set, row.patches), (PatchSetState::Ready, None, 0));
    assert_eq!(realm.listed().await.expect("a list").sets.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_are_queued_from_the_releases_that_channels_point_to_and_move_to() {
    let realm = Realm::new(true).await;
    let os = name("os");
    let origin = &realm.origin;
    realm.push("1", &noise(1, 100_000)).await;
    realm.point("stable", "1").await;
    realm.point("edge", "1").await;
    realm.push("2", &noise(2, 100_000)).await;
    realm.point("edge", "2").await;
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(realm.pairs().await, [pair("1", "2")]);
    realm.push("3", &noise(3, 100_000)).await;
    assert_eq!(realm.pairs().await, [pair("1", "2"), pair("1", "3"), pair("2", "3")]);
    // The channel goes back, as an operator does in an emergency.
    realm.point("edge", "1").await;
    assert!(realm.pairs().await.contains(&pair("2", "1")));
    // The same request twice queues one set.
    let (row, queued) =
        origin.request_patches(&os, Some(&name("3")), &name("1"), "ci").await.expect("queued");
    assert!(queued && row.state == PatchSetState::Queued && row.requested_by == "ci");
    assert!(!origin.request_patches(&os, Some(&name("3")), &name("1"), "ci").await.expect("found").1);
    let same = origin.request_patches(&os, Some(&name("3")), &name("3"), "ci").await;
    assert!(matches!(same, Err(RequestPatchesError::Same { .. })), "{same:?}");
    let unknown = origin.request_patches(&os, Some(&name("9")), &name("3"), "ci").await;
    assert!(matches!(unknown, Err(RequestPatchesError::UnknownRelease { .. })), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_patches_queues_and_makes_none() {
    let realm = Realm::new(false).await;
    let old = text(1, 500_000);
    realm.push("1", &old).await;
    realm.push("2", &edited(&old)).await;
    let os = name("os");
    realm.point("stable", "1").await;
    realm.point("stable", "2").await;
    assert!(realm.rows().await.is_empty());
    let asked = realm.origin.request_patches(&os, Some(&name("1")), &name("2"), "ci").await;
    assert!(matches!(asked, Err(RequestPatchesError::Disabled)), "{asked:?}");
    realm.origin.clone().make_patches(CancellationToken::new()).await;
    assert!(realm.rows().await.is_empty() && realm.listed().await.is_none());
}

/// A whole origin over plain HTTP.
struct Http {
    running: Running,
    token: String,
    _directory: TempDir,
}

impl Http {
    async fn new(patches: &str) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut line = CommandLine::new();
        let data = directory.path().display().to_string();
        for (key, value) in [
            ("data", data.as_str()),
            ("http", "127.0.0.1:0"),
            ("quic", "127.0.0.1:0"),
            ("http_plain", "true"),
            ("patches", patches),
            ("patch_level", "3"),
        ] {
            line.insert(key, vec![value.to_owned()]);
        }
        let settings = Settings::resolve(&line, |_| None, None).expect("settings");
        let running = start(&settings).await.expect("starts");
        let token = std::fs::read_to_string(directory.path().join("admin.token")).expect("the first token");
        Self { running, token: token.trim().to_owned(), _directory: directory }
    }

    async fn ask(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let url = format!("http://{}{path}", self.running.http);
        let request = Client::new().request(method, url).bearer_auth(&self.token).body(body);
        let response = request.send().await.expect("an answer");
        let status = response.status();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn push(&self, version: &str, bytes: Vec<u8>) {
        let path = format!("/v1/products/os/releases/{version}/content");
        assert_eq!(self.ask(Method::PUT, &path, bytes).await.0, StatusCode::CREATED);
    }

    async fn request(&self, from: &str, to: &str) -> (StatusCode, Value) {
        let path = format!("/v1/products/os/releases/{to}/patches");
        self.ask(Method::POST, &path, json!({ "from": from }).to_string()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_origin_makes_requested_sets_and_reports_their_state() {
    let http = Http::new("true").await;
    let old = text(1, 300_000);
    http.push("1", old.clone()).await;
    http.push("2", edited(&old)).await;
    // An operator who goes back requests this set.
    let (status, row) = http.request("2", "1").await;
    assert_eq!((status, &row["from"], &row["to"]), (StatusCode::ACCEPTED, &json!("2"), &json!("1")), "{row}");
    assert_eq!(row["requested_by"], "first admin");
    let ready = async {
        loop {
            let (status, list) = http.ask(Method::GET, "/v1/products/os/patches", "").await;
            assert_eq!(status, StatusCode::OK);
            let rows = list["patches"].as_array().expect("a list").clone();
            assert_eq!(rows.len(), 4, "one of the release, one requested, one from nothing to each release");
            if rows.iter().all(|row| row["state"] == "ready") {
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let rows = tokio::time::timeout(Duration::from_secs(120), ready).await.expect("made in time");
    let sets = rows.iter().filter(|row| row["set"].is_string()).count();
    let (between, from_nothing): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["from"].is_string());
    assert!(between.iter().all(|row| row["set"].is_string()));
    assert!(between.iter().all(|row| row["bytes"].as_u64() < row["chunk_bytes"].as_u64()));
    assert!(from_nothing.iter().all(|row| row["from_manifest"].is_null()) && from_nothing.len() == 2);
    let path = "/v1/products/os/releases/2/patches";
    assert_eq!(http.ask(Method::POST, path, "{}").await.0, StatusCode::OK, "the set exists and is ready");
    assert_eq!(http.request("2", "1").await.0, StatusCode::OK, "it is ready");
    let (_, metrics) = http.ask(Method::GET, "/metrics", "").await;
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains(&format!("distd_patch_sets_total{{result=\"ready\"}} {sets}")), "{metrics}");
    assert!(metrics.contains("distd_patch_sets_waiting 0"), "{metrics}");

    for (from, to, status, code) in [
        ("9", "1", StatusCode::NOT_FOUND, "unknown_version"),
        ("1", "9", StatusCode::NOT_FOUND, "unknown_version"),
        ("../1", "1", StatusCode::NOT_FOUND, "unknown_version"),
        ("1", "1", StatusCode::CONFLICT, "conflict"),
    ] {
        let (got, body) = http.request(from, to).await;
        assert_eq!((got, &body["error"]["code"]), (status, &json!(code)), "{from} {to}: {body}");
        assert!(!body["error"]["next"].as_str().expect("a next step").is_empty());
    }
    let (status, body) = http.ask(Method::GET, "/v1/products/other/patches", "").await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_product")));
    assert!(http.running.stop(Duration::from_secs(10)).await, "it stops in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_patches_refuses_requests_for_them() {
    let http = Http::new("false").await;
    http.push("1", text(1, 100_000)).await;
    http.push("2", text(2, 100_000)).await;
    let (status, body) = http.request("1", "2").await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::CONFLICT, &json!("conflict")), "{body}");
    let (_, list) = http.ask(Method::GET, "/v1/products/os/patches", "").await;
    assert_eq!(list, json!({ "patches": [] }));
    assert!(http.running.stop(Duration::from_secs(10)).await);
}
