//! Contract of the origin's storage on every back end: SQLite and PostgreSQL, directory and S3.
//!
//! PostgreSQL runs if `DISTD_TEST_POSTGRES_URL` names a server on which databases may be created,
//! and S3 if `DISTD_TEST_S3_URL` names a bucket. `tests/run.sh` sets both.

#[path = "storage/audit.rs"]
mod audit;
#[path = "storage/ddi.rs"]
mod ddi;
#[path = "storage/fleet.rs"]
mod fleet;
#[path = "storage/receipts.rs"]
mod receipts;
#[path = "storage/rollouts.rs"]
mod rollouts;
#[path = "storage/space.rs"]
mod space;
#[path = "storage/state.rs"]
mod state;
#[path = "storage/webhooks.rs"]
mod webhooks;
#[path = "storage/world.rs"]
mod world;

use std::collections::BTreeSet;

use distd_core::bounds::CHUNK_BYTES_MAX;
use distd_core::cut::{Batches, CutParams, regions};
use distd_core::fleet::LabelMap;
use distd_core::manifest::Kind;
use distd_core::packing::{Codec, HashedChunk, PackedChunk, Packer, Unpacker};
use distd_core::ranges::ChunkRanges;
use distd_core::{ArtifactHash, ChunkHash, ChunkId};
use distd_server::db::{
    ApiTokenRow, BeginCommit, ChannelMove, ChannelRow, ChunkRow, Db, EnrolOutcome, Enrolment, JoinTokenRow,
    Leaving, Location, MoveBy, MovedChunk, NodeRow, PutCertificate, RevokeToken, SetChannelOutcome, Unless,
    UploadId, UploadState, Withdraw,
};
use distd_server::ingest::{
    CommitRequest, EMPTIED_SECONDS, FileHandle, FileRequest, Ingest, IngestError, Run, SweepScope,
    UPLOAD_SECONDS,
};
use distd_server::publisher::Publisher;
use distd_server::store::{Chunks, Store};
use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, BufReader};
use world::{World, name, noise, on_every_back_end};

const NOW: i64 = 1_800_000_000;

/// Artifact cut as the command line cuts it.
struct Artifact {
    bytes: Vec<u8>,
    chunks: Vec<HashedChunk>,
    request: CommitRequest,
}

fn artifact(bytes: Vec<u8>) -> Artifact {
    let cut = CutParams::default();
    let regions = regions(&bytes);
    let mut batches = Batches::new(&bytes, regions.all(), cut);
    let (mut chunks, mut runs, mut packer) = (Vec::new(), Vec::<Run>::new(), Packer::new(3));
    while let Some(batch) = batches.next_batch(Vec::new()).expect("memory reads") {
        for chunk in batch.chunks() {
            let hash = ChunkHash::of(chunk.data);
            match runs.last_mut() {
                Some(run) if run.hash == hash => run.repeat += 1,
                _ => runs.push(Run { hash, len: chunk.data.len() as u32, repeat: 1 }),
            }
            chunks.push(HashedChunk { hash, packed: packer.pack(chunk.data) });
        }
    }
    let blake3 = blake3::hash(&bytes).into();
    let request = CommitRequest { kind: Kind::File, cut, runs, blake3, bytes: bytes.len() as u64 };
    Artifact { bytes, chunks, request }
}

impl Artifact {
    fn hashes(&self) -> Vec<ChunkHash> {
        self.chunks.iter().map(|c| c.hash).collect()
    }
}

fn opened(path: &std::path::Path) -> FileHandle {
    FileHandle::open(path).expect("opens")
}

async fn begin(ingest: &Ingest, version: &str) -> UploadId {
    let product = name("os");
    ingest.db().ensure_product(&product, CutParams::default(), NOW).await.expect("product");
    ingest.begin_upload(&product, &name(version), &Publisher::unbound("ci"), NOW).await.expect("upload").id
}

/// Uploads the missing chunks and commits.
async fn push(
    ingest: &Ingest,
    version: &str,
    artifact: &Artifact,
) -> Result<distd_server::ingest::CommitResult, IngestError> {
    let upload = begin(ingest, version).await;
    let missing = ingest.missing(&upload, &artifact.hashes()).await?;
    let chunks = missing.iter().map(|n| artifact.chunks[*n as usize].clone()).collect();
    ingest.put_chunks(&upload, chunks, NOW).await?;
    ingest.commit(&upload, artifact.request.clone(), "ci", NOW).await
}

/// Reads a release through the serving side, chunk by chunk.
async fn read_back(world: &World, manifest: &distd_core::ManifestId) -> Vec<u8> {
    let manifest = world.ingest.manifest(manifest).await.expect("manifest");
    let chunks = Chunks::new(world.db.clone(), world.store.clone());
    let mut unpacker = Unpacker::default();
    let mut out = Vec::new();
    for at in manifest.entries() {
        let chunk = chunks.chunk(at.entry.id).await.expect("read").expect("given");
        assert_eq!((chunk.hash, chunk.raw_len), (at.entry.hash, at.entry.len));
        let raw = unpacker.unpack(chunk.codec, &chunk.bytes, chunk.raw_len, &chunk.hash);
        out.extend_from_slice(raw.expect("stored chunks verify"));
    }
    out
}

/// A token for devices, by the first byte of its key, with so many uses, for ten seconds.
fn join_token(key: &str, uses_left: u64) -> JoinTokenRow {
    JoinTokenRow {
        public_key: key.repeat(32),
        role: "leaf".into(),
        uses_left,
        expires: NOW + 10,
        label: "site 7".into(),
        created: NOW,
        revoked: None,
    }
}

fn node_key(node: &str) -> Vec<u8> {
    ChunkHash::of(node.as_bytes()).as_bytes().to_vec()
}

fn node_id(node: &str) -> String {
    hex::encode(&node_key(node)[..16])
}

async fn enrol(world: &World, token: &JoinTokenRow, node: &str, now: i64) -> EnrolOutcome {
    let (id, public_key) = (node_id(node), node_key(node));
    let token = &token.public_key;
    let wanted = Enrolment { token, node: &id, public_key: &public_key, role: "leaf", label: node, now };
    world.db.enrol(&wanted).await.expect("enrol")
}

on_every_back_end! {
    async fn a_pushed_release_reads_back_and_its_update_stores_only_new_chunks(world: World) {
        let mut bytes = noise(1, 3 << 20);
        bytes.extend_from_slice(&[0; 1 << 20]);
        bytes.extend_from_slice(&"compressible ".repeat(50_000).into_bytes());
        let v1 = artifact(bytes.clone());
        let done = push(&world.ingest, "1", &v1).await.expect("push");
        assert!(!done.already_existed);
        assert_eq!(read_back(world, &done.manifest).await, v1.bytes);

        let distinct: BTreeSet<_> = v1.hashes().into_iter().collect();
        assert_eq!(done.new_chunks, distinct.len() as u64);
        // New ids are 1, 2, 3… in the order of the artifact.
        let manifest = world.ingest.manifest(&done.manifest).await.expect("manifest");
        let mut highest = 0;
        for at in manifest.entries() {
            assert!(at.entry.id.0 <= highest + 1, "ids follow the artifact");
            highest = highest.max(at.entry.id.0);
        }
        assert_eq!(world.db.last_chunk_id().await.expect("counter"), highest);

        bytes.splice(1_000_000..1_000_000, noise(2, 20_000));
        let v2 = artifact(bytes);
        let upload = begin(&world.ingest, "2").await;
        let missing = world.ingest.missing(&upload, &v2.hashes()).await.expect("missing");
        assert!(missing.len() < 8, "an insertion changes few chunks, not {}", missing.len());
        let done = push(&world.ingest, "2", &v2).await.expect("push");
        assert_eq!(read_back(world, &done.manifest).await, v2.bytes);
        assert!(world.db.last_chunk_id().await.expect("counter") > highest, "new ids come after the old ones");
    }

    async fn wrong_bytes_are_refused_by_place_and_hash_and_never_stored(world: World) {
        let good = artifact(noise(3, 300_000));
        let upload = begin(&world.ingest, "1").await;
        let mut chunks = good.chunks.clone();
        let other = ChunkHash::of(b"other");
        chunks[2].hash = other;
        let error = world.ingest.put_chunks(&upload, chunks, NOW).await.expect_err("wrong bytes");
        let IngestError::BadChunk { index: 2, cause } = &error else { panic!("{error:?}") };
        assert!(cause.to_string().contains(&other.to_string()));
        assert_eq!(world.ingest.missing(&upload, &[other]).await.expect("missing"), [0]);

        let chunk = |raw_len, len| HashedChunk {
            hash: other,
            packed: PackedChunk { codec: Codec::Raw, raw_len, bytes: vec![0; len].into() },
        };
        let most = CHUNK_BYTES_MAX as u32;
        for bad in [chunk(0, 0), chunk(5, 0), chunk(5, 6), chunk(most + 1, 5), chunk(u32::MAX, 5)] {
            let error = world.ingest.put_chunks(&upload, vec![bad], NOW).await.expect_err("out of bounds");
            assert!(matches!(error, IngestError::ChunkBounds { index: 0 }), "{error:?}");
        }
        // A frame that unpacks to more bytes than it states.
        let bomb = Packer::new(3).pack(&vec![0; CHUNK_BYTES_MAX]);
        let bad = HashedChunk { hash: other, packed: PackedChunk { raw_len: 50_000, ..bomb } };
        let error = world.ingest.put_chunks(&upload, vec![bad], NOW).await.expect_err("a bomb");
        assert!(matches!(error, IngestError::BadChunk { index: 0, .. }), "{error:?}");
        assert_eq!(world.objects().await, Vec::<String>::new());
    }

    async fn an_upload_is_resumed_where_it_stopped(world: World) {
        let whole = artifact(noise(4, 1 << 20));
        let upload = begin(&world.ingest, "1").await;
        let half = whole.chunks.len() / 2;
        let new = world.ingest.put_chunks(&upload, whole.chunks[..half].to_vec(), NOW).await.expect("half");
        assert_eq!(new, half as u64);
        let again = begin(&world.ingest, "1").await;
        assert_eq!(again, upload);
        let missing = world.ingest.missing(&again, &whole.hashes()).await.expect("missing");
        assert_eq!(missing, (half as u32..whole.chunks.len() as u32).collect::<Vec<_>>());
        // All chunks are sent again, and those that are there are not stored twice.
        let new = world.ingest.put_chunks(&again, whole.chunks.clone(), NOW).await.expect("all");
        assert_eq!(new, (whole.chunks.len() - half) as u64);
        let done = world.ingest.commit(&again, whole.request.clone(), "ci", NOW).await.expect("commit");
        assert_eq!(read_back(world, &done.manifest).await, whole.bytes);
    }

    async fn the_same_version_with_the_same_bytes_is_found_and_with_others_refused(world: World) {
        let first = artifact(noise(5, 400_000));
        let done = push(&world.ingest, "1", &first).await.expect("push");
        let before = world.objects().await;
        let again = push(&world.ingest, "1", &first).await.expect("push again");
        assert!(again.already_existed);
        assert_eq!((again.manifest, &again.root), (done.manifest, &done.root));
        let error = push(&world.ingest, "1", &artifact(noise(6, 400_000))).await.expect_err("other bytes");
        assert!(matches!(error, IngestError::VersionTaken { .. }), "{error:?}");
        assert_eq!(world.objects().await, before, "a refused version leaves no object");
    }

    async fn a_commit_that_does_not_add_up_makes_no_release_and_can_be_repeated(world: World) {
        let good = artifact(noise(7, 500_000));
        let upload = begin(&world.ingest, "1").await;
        let commit = |change: &dyn Fn(&mut CommitRequest)| {
            let mut request = good.request.clone();
            change(&mut request);
            let (ingest, upload) = (world.ingest.clone(), upload.clone());
            async move { ingest.commit(&upload, request, "ci", NOW).await }
        };
        let last = good.chunks.len() - 1;
        world.ingest.put_chunks(&upload, good.chunks[..last].to_vec(), NOW).await.expect("most");
        let error = commit(&|_| {}).await.expect_err("one chunk is missing");
        assert!(matches!(error, IngestError::MissingChunk(hash) if hash == good.chunks[last].hash), "{error:?}");
        world.ingest.put_chunks(&upload, good.chunks[last..].to_vec(), NOW).await.expect("the last");
        let error = commit(&|r| r.blake3 = ArtifactHash([1; 32])).await.expect_err("another hash");
        assert!(matches!(error, IngestError::WrongArtifact { .. }), "{error:?}");
        let error = commit(&|r| r.runs.swap(0, 1)).await.expect_err("another order");
        assert!(matches!(error, IngestError::WrongArtifact { .. }), "{error:?}");
        for change in [
            (&|r: &mut CommitRequest| r.bytes += 1) as &dyn Fn(&mut CommitRequest),
            &|r| r.runs[0].repeat = 0,
            &|r| r.runs[0].repeat = u32::MAX,
            &|r| r.runs[0].len = u32::MAX,
            &|r| { r.runs[0].len -= 1; r.bytes -= 1 },
            &|r| r.kind = Kind::Tree { listing_bytes: u64::MAX },
        ] {
            let error = commit(change).await.expect_err("a list that contradicts itself");
            assert!(matches!(error, IngestError::BadList(_)), "{error:?}");
        }
        assert_eq!(world.db.releases(&name("os")).await.expect("list"), []);
        assert_eq!(world.db.last_chunk_id().await.expect("counter"), 0);
        let done = commit(&|_| {}).await.expect("all chunks are there");
        assert_eq!(read_back(world, &done.manifest).await, good.bytes);
        let late = world.ingest.put_chunks(&upload, good.chunks.clone(), NOW).await.expect_err("over");
        assert!(matches!(late, IngestError::UploadOver(_)), "{late:?}");
    }

    async fn concurrent_commits_share_chunks_and_never_an_id(world: World) {
        let common = noise(8, 600_000);
        let pushes = (0..4u8).map(|n| {
            let ingest = world.ingest.clone();
            let mut bytes = noise(20 + u64::from(n), 200_000);
            bytes.extend_from_slice(&common);
            async move {
                let artifact = artifact(bytes);
                let done = push(&ingest, &format!("v{n}"), &artifact).await.expect("push");
                (done, artifact.bytes)
            }
        });
        let done = join_all(pushes).await;
        let mut by_id = std::collections::BTreeMap::new();
        let mut given = 0;
        for (result, bytes) in &done {
            assert_eq!(&read_back(world, &result.manifest).await, bytes);
            given += result.new_chunks;
            let manifest = world.ingest.manifest(&result.manifest).await.expect("manifest");
            for at in manifest.entries() {
                assert_eq!(*by_id.entry(at.entry.id).or_insert(at.entry.hash), at.entry.hash);
            }
        }
        let hashes: BTreeSet<_> = by_id.values().collect();
        assert_eq!(hashes.len(), by_id.len(), "each hash has one id");
        assert_eq!(given, by_id.len() as u64);
        assert_eq!(world.db.last_chunk_id().await.expect("counter"), given, "no gaps");
    }

    async fn the_space_of_an_aborted_or_expired_upload_comes_back(world: World) {
        let a = artifact(noise(9, 300_000));
        let upload = begin(&world.ingest, "1").await;
        world.ingest.put_chunks(&upload, a.chunks.clone(), NOW).await.expect("chunks");
        assert_eq!(world.objects().await.len(), 1);
        assert!(world.db.pack_bytes().await.expect("sum") > 250_000);
        world.ingest.abort(&upload).await.expect("abort");
        assert_eq!(world.objects().await, Vec::<String>::new());
        assert_eq!(world.db.pack_bytes().await.expect("sum"), 0);
        let error = world.ingest.abort(&upload).await.expect_err("twice");
        assert!(matches!(error, IngestError::UploadOver(_)), "{error:?}");
        let unknown = UploadId::from_random([1; 16]);
        let error = world.ingest.abort(&unknown).await.expect_err("never begun");
        assert!(matches!(error, IngestError::UnknownUpload(_)), "{error:?}");

        let upload = begin(&world.ingest, "1").await;
        world.ingest.put_chunks(&upload, a.chunks[..3].to_vec(), NOW).await.expect("chunks");
        // Further chunks, sent ten hours later, move the end of the upload.
        world.ingest.put_chunks(&upload, a.chunks[3..].to_vec(), NOW + 36_000).await.expect("chunks");
        assert_eq!(world.ingest.expire(NOW + UPLOAD_SECONDS + 1).await.expect("expire"), 0);
        assert_eq!(world.ingest.expire(NOW + 36_000 + UPLOAD_SECONDS + 1).await.expect("expire"), 1);
        assert_eq!(world.objects().await, Vec::<String>::new());
        let row = world.db.upload(&upload).await.expect("read").expect("remembered");
        assert_eq!(row.state, UploadState::Aborted);
        world.ingest.expire(NOW + 30 * 86_400).await.expect("expire");
        assert_eq!(world.db.upload(&upload).await.expect("read"), None, "the row is deleted after a month");
    }

    async fn the_sweep_at_start_deletes_orphans_and_nothing_else(world: World) {
        let a = artifact(noise(10, 300_000));
        let done = push(&world.ingest, "1", &a).await.expect("push");
        let open = begin(&world.ingest, "2").await;
        let b = artifact(noise(11, 300_000));
        world.ingest.put_chunks(&open, b.chunks.clone(), NOW).await.expect("chunks");
        let before = world.objects().await;
        world.store.put("packs/00/00000000000000000000000000000000", &b"a pack without rows"[..]).await.expect("put");
        world.store.put(&format!("manifests/{}", ArtifactHash([3; 32])), &b"of nothing"[..]).await.expect("put");

        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let now = now.as_secs() as i64;
        // Another replica may be about to record the objects. Uploads of this test end in the
        // future.
        let swept = world.ingest.sweep_orphans(SweepScope::Shared, now.min(NOW)).await.expect("sweep");
        assert_eq!((swept.packs, swept.manifests, swept.uploads), (0, 0, 0));
        let swept = world.ingest.sweep_orphans(SweepScope::Alone, NOW).await.expect("sweep");
        assert_eq!((swept.packs, swept.manifests, swept.uploads), (1, 1, 0));
        assert_eq!(world.objects().await, before);
        assert_eq!(read_back(world, &done.manifest).await, a.bytes);
        assert!(world.ingest.missing(&open, &b.hashes()).await.expect("missing").is_empty());
    }

    async fn a_pack_without_new_chunks_is_deleted_at_commit(world: World) {
        let a = artifact(noise(12, 300_000));
        // Two publishers send the same chunks for different versions. When the second one commits,
        // all chunks are already released.
        let (one, two) = (begin(&world.ingest, "1").await, begin(&world.ingest, "2").await);
        world.ingest.put_chunks(&one, a.chunks.clone(), NOW).await.expect("chunks");
        world.ingest.put_chunks(&two, a.chunks.clone(), NOW).await.expect("chunks");
        assert_eq!(world.objects().await.len(), 2);
        let first = world.ingest.commit(&one, a.request.clone(), "ci", NOW).await.expect("commit");
        let second = world.ingest.commit(&two, a.request.clone(), "ci", NOW).await.expect("commit");
        assert_eq!((second.manifest, second.new_chunks), (first.manifest, 0));
        assert_eq!(world.objects().await.len(), 2, "one pack, one manifest");
    }

    async fn a_pack_that_is_mostly_unused_is_emptied_and_deleted_a_day_later(world: World) {
        let mut bytes = noise(70, 600_000);
        let shared = bytes.clone();
        bytes.extend_from_slice(&noise(71, 3 << 20));
        let one = push(&world.ingest, "1", &artifact(bytes)).await.expect("push");
        let mut bytes = shared;
        bytes.extend_from_slice(&noise(72, 100_000));
        let two = push(&world.ingest, "2", &artifact(bytes.clone())).await.expect("push");
        let chunks = async |id| world.ingest.manifest_chunks(id).await.expect("read").expect("there");
        let unneeded = chunks(&one.manifest).await.difference(&chunks(&two.manifest).await);
        let (os, version) = (name("os"), name("1"));
        let marked = world.db.mark_removing(&os, &version, Unless::Used, NOW).await.expect("marked");
        assert!(matches!(marked, Withdraw::Marked(_)));
        let leaving = Leaving { releases: vec![one.release.clone()], sets: Vec::new() };
        let tx = world.db.begin_removal(leaving).await.expect("begin");
        let objects = tx.finish(&unneeded.ids().collect::<Vec<_>>()).await.expect("finish");
        assert!(objects.is_empty(), "both packs are in use");
        let before = world.db.pack_bytes().await.expect("a sum");

        let done = world.ingest.compact(NOW).await.expect("compacts");
        assert_eq!((done.packs, done.deleted, done.more), (1, 0, false));
        assert!(done.chunks >= 2, "{done:?}");
        assert_eq!(read_back(world, &two.manifest).await, bytes);
        let done = world.ingest.compact(NOW + EMPTIED_SECONDS).await.expect("compacts");
        assert_eq!((done.packs, done.deleted), (0, 1));
        assert_eq!(read_back(world, &two.manifest).await, bytes);
        let after = world.db.pack_bytes().await.expect("a sum");
        assert!(before > 3_600_000 && after < 900_000, "{before} -> {after}");
        let packs = world.objects().await.into_iter().filter(|name| name.starts_with("packs/"));
        assert_eq!(packs.count(), 2);
        assert!(world.ingest.look_for_losses().await.expect("looked").is_empty());
    }

    async fn chunks_move_by_the_thousand_and_those_that_moved_meanwhile_stay(world: World) {
        // More than two statements, and a statement that is not full.
        let rows = chunks_in_a_pack(world, 2_300).await;
        let moved: Vec<_> = rows
            .iter()
            .map(|row| MovedChunk { id: row.id, from: row.location, offset: 10_000 - row.location.offset })
            .collect();
        let (last, rest) = moved.split_last().expect("chunks");
        let only = std::slice::from_ref(last);
        assert_eq!(world.db.move_chunks("packs/bb/last", 1, only, NOW).await.expect("moves"), 1);
        // The last has moved and one more has another place than was read.
        let mut all = moved.clone();
        all[1_500].from.offset += 1;
        assert_eq!(world.db.move_chunks("packs/bb/all", 1, &all, NOW).await.expect("moves"), 2_298);
        let packs = world.db.packs().await.expect("packs");
        let pack_of = |object: &str| packs.iter().find(|(_, name, _)| name == object).expect("a row").0;
        let (from, to, last_to) = (rows[0].location.pack, pack_of("packs/bb/all"), pack_of("packs/bb/last"));
        let mut found = world.db.chunks_by_id(&rows.iter().map(|row| row.id).collect::<Vec<_>>()).await.expect("rows");
        found.sort_by_key(|row| row.id);
        for (n, (row, chunk)) in found.iter().zip(&moved).enumerate() {
            let (pack, offset) = match n {
                1_500 => (from, chunk.from.offset),
                _ if n == rest.len() => (last_to, chunk.offset),
                _ => (to, chunk.offset),
            };
            let expected = Location { pack, offset, ..chunk.from };
            assert_eq!((row.id, row.location), (chunk.id, expected), "{n}");
        }
        // The pack is not empty yet; with its last chunk gone it is.
        assert_eq!(world.db.emptied_bytes().await.expect("a sum"), 0);
        let last = &moved[1_500..1_501];
        assert_eq!(world.db.move_chunks("packs/bb/rest", 1, last, NOW).await.expect("moves"), 1);
        assert_eq!(world.db.emptied_bytes().await.expect("a sum"), 2_300);
        assert_eq!(world.db.move_chunks("packs/bb/none", 1, &moved, NOW).await.expect("moves"), 0);
        let packs = world.db.packs().await.expect("packs");
        assert!(packs.iter().all(|(_, object, _)| object != "packs/bb/none"), "nothing is recorded for none");
    }

    async fn runs_of_ids_are_served_in_order_within_their_budget(world: World) {
        let a = artifact(noise(13, 4 << 20));
        push(&world.ingest, "1", &a).await.expect("push");
        let last = world.db.last_chunk_id().await.expect("counter");
        let chunks = Chunks::new(world.db.clone(), world.store.clone());
        let mut next = 1;
        while next <= last {
            let run = chunks.run(ChunkId(next), ChunkId(u64::MAX), 300_000).await.expect("run");
            assert!(run.len() == 1 || run.iter().map(|c| c.bytes.len()).sum::<usize>() <= 300_000);
            for chunk in run {
                assert_eq!(chunk.id, ChunkId(next));
                assert_eq!(chunks.chunk(chunk.id).await.expect("one"), Some(chunk));
                next += 1;
            }
        }
        assert_eq!(chunks.run(ChunkId(last + 1), ChunkId(u64::MAX), 1).await.expect("run"), []);
        for id in [0, last + 1, i64::MAX as u64, u64::MAX] {
            assert_eq!(chunks.chunk(ChunkId(id)).await.expect("one"), None);
        }
        let rows = chunks.rows(&[ChunkId(2), ChunkId(u64::MAX), ChunkId(1)]).await.expect("rows");
        assert_eq!(rows.iter().map(|r| r.map(|r| r.id.0)).collect::<Vec<_>>(), [Some(2), None, Some(1)]);
    }

    async fn chunk_sizes_are_summed_by_ranges_of_ids(world: World) {
        push(&world.ingest, "1", &artifact(noise(5, 18 << 20))).await.expect("push");
        let last = world.db.last_chunk_id().await.expect("counter");
        let rows = world.db.chunks_in(ChunkId(1), ChunkId(last), u32::MAX).await.expect("rows");
        // More ranges than one statement takes: every other id, and one that does not exist.
        let ranges: ChunkRanges = (1..=last).step_by(2).chain([last + 9]).map(ChunkId).collect();
        let wanted = rows.iter().filter(|row| ranges.contains(row.id));
        let cost = wanted.fold((0, 0), |(chunks, bytes), row| (chunks + 1, bytes + u64::from(row.location.stored_len)));
        assert_eq!(world.db.chunks_cost(&ranges).await.expect("cost"), cost);
        assert_eq!(world.db.chunks_cost(&ChunkRanges::new()).await.expect("cost"), (0, 0));
    }

    async fn a_file_cut_by_the_origin_has_the_manifest_id_that_the_command_line_gets(world: World) {
        let mut bytes = noise(14, 9 << 20);
        bytes.extend_from_slice(&vec![0; 5 << 20]);
        bytes.extend_from_within(..2 << 20);
        let spool = world.directory.path().join("spooled");
        std::fs::write(&spool, &bytes).expect("spool");
        let product = name("os");
        world.db.ensure_product(&product, CutParams::default(), NOW).await.expect("product");
        let request = FileRequest { product, version: name("1"), cut: CutParams::default(), by: Publisher::unbound("curl") };
        let done = world.ingest.ingest_file(&request, opened(&spool), NOW).await.expect("ingest");
        assert_eq!(read_back(world, &done.manifest).await, bytes);
        let again = world.ingest.ingest_file(&request, opened(&spool), NOW).await.expect("again");
        assert_eq!((again.already_existed, again.manifest), (true, done.manifest));

        let other = World::sqlite_and_directory().await;
        let pushed = push(&other.ingest, "1", &artifact(bytes.clone())).await.expect("push");
        assert_eq!(pushed.manifest, done.manifest);

        bytes[0] ^= 1;
        std::fs::write(&spool, &bytes).expect("spool");
        let error = world.ingest.ingest_file(&request, opened(&spool), NOW).await.expect_err("other bytes");
        assert!(matches!(error, IngestError::VersionTaken { .. }), "{error:?}");
        std::fs::write(&spool, b"").expect("spool");
        let empty = FileRequest { version: name("empty"), ..request.clone() };
        let error = world.ingest.ingest_file(&empty, opened(&spool), NOW).await.expect_err("empty");
        assert!(matches!(error, IngestError::BadList(_)), "{error:?}");
        let unknown = FileRequest { product: name("nobody"), ..request };
        let error = world.ingest.ingest_file(&unknown, opened(&spool), NOW).await.expect_err("no product");
        assert!(matches!(error, IngestError::UnknownProduct(_)), "{error:?}");
        other.end().await;
    }

    async fn channels_count_their_changes(world: World) {
        let (product, stable) = (name("os"), name("stable"));
        for version in ["1", "2"] {
            push(&world.ingest, version, &artifact(noise(15, 50_000))).await.expect("push");
        }
        let set = |version: &'static str| {
            let (db, product, stable) = (world.db.clone(), product.clone(), stable.clone());
            async move {
                let version = name(version);
                let to =
                    ChannelMove { product: &product, channel: &stable, version: &version, downgrade: false };
                db.set_channel(to, &MoveBy::origin(), NOW).await.expect("set")
            }
        };
        assert!(matches!(set("1").await, SetChannelOutcome::Set { row, from: None } if row.counter == 1));
        assert!(matches!(set("1").await, SetChannelOutcome::Unchanged(row) if row.counter == 1));
        assert!(matches!(set("2").await, SetChannelOutcome::Set { row, from: Some(_) } if row.counter == 2));
        assert_eq!(set("3").await, SetChannelOutcome::UnknownRelease);
        assert_eq!(world.db.channels().await.expect("list").len(), 1);
        let row = world.db.channel(&product, &stable).await.expect("read").expect("set");
        assert_eq!(row.version, name("2"));

        let unpublished = async || {
            let mut releases = world.db.all_releases().await.expect("list");
            releases.retain(|release| release.published.is_none());
            releases
        };
        assert_eq!(unpublished().await.len(), 2);
        world.db.mark_published(&product, &name("1"), NOW).await.expect("mark");
        let left = unpublished().await;
        assert_eq!(left.iter().map(|r| r.version.clone()).collect::<Vec<_>>(), [name("2")]);
    }

    async fn a_channel_goes_back_only_on_order_and_every_change_is_kept(world: World) {
        let (product, db) = (name("os"), &world.db);
        for version in ["1", "2", "3"] {
            push(&world.ingest, version, &artifact(noise(15, 50_000))).await.expect("push");
        }
        let releases = db.releases(&product).await.expect("list");
        let versions: Vec<_> = releases.iter().map(|row| row.version.to_string()).collect();
        assert_eq!(versions, ["3", "2", "1"], "made in the same second, and numbered one after the other");
        let last = releases[0].sequence;
        let ci = MoveBy { token: "0123456789abcdef".into(), label: "ci".into() };
        let set = async |channel: &str, version: &str, downgrade: bool, now: i64| {
            let (channel, version) = (name(channel), name(version));
            let to = ChannelMove { product: &product, channel: &channel, version: &version, downgrade };
            db.set_channel(to, &ci, now).await.expect("set")
        };
        let order = |outcome: SetChannelOutcome| match outcome {
            SetChannelOutcome::Set { row, .. } => row.downgrade_from,
            other => panic!("not set: {other:?}"),
        };
        let older = |version: &str| SetChannelOutcome::Older { newest: Some(name(version)) };
        assert_eq!(order(set("stable", "3", false, NOW).await), None);
        assert_eq!(set("stable", "1", false, NOW).await, older("3"));
        // The order covers all releases so far, whatever the clock says. Later releases are not
        // covered.
        assert_eq!(order(set("stable", "1", true, NOW - 9).await), Some(last));
        assert!(matches!(set("stable", "1", true, NOW).await, SetChannelOutcome::Unchanged(_)), "the same order again");
        // The order was for that step only, up or down.
        assert_eq!(set("stable", "2", false, NOW).await, older("3"));
        assert_eq!(order(set("stable", "3", false, NOW).await), None);
        assert_eq!(order(set("stable", "2", true, NOW + 100).await), Some((NOW + 100) as u64 * 1000 + 999));
        push(&world.ingest, "4", &artifact(noise(15, 50_000))).await.expect("push");
        let four = db.release(&product, &name("4")).await.expect("read").expect("pushed").sequence;
        assert_eq!(four, (NOW + 101) as u64 * 1000);
        // There is now a release that the earlier order did not cover.
        assert_eq!(order(set("stable", "2", true, NOW).await), Some(four));

        // A channel that is removed and made again keeps its history.
        assert!(db.remove_channel(&product, &name("stable"), &ci, NOW).await.expect("remove"));
        assert!(!db.remove_channel(&product, &name("stable"), &ci, NOW).await.expect("none"));
        assert_eq!(set("stable", "2", false, NOW).await, older("3"));
        assert_eq!(order(set("stable", "3", false, NOW).await), None);
        assert_eq!(order(set("other", "1", false, NOW).await), None, "another channel has a history of its own");

        let history = async |before, limit| {
            let rows = db.channel_moves(&product, &name("stable"), before, limit).await.expect("read");
            let text = |version: &Option<_>| version.as_ref().map_or("-".to_owned(), ToString::to_string);
            assert!(rows.iter().all(|row| row.by == ci));
            let line = |row: &distd_server::db::MoveRow| {
                let order = if row.downgrade_from.is_some() { "!" } else { "" };
                format!("{}>{}{order}", text(&row.from), text(&row.to))
            };
            (rows.iter().map(line).collect::<Vec<_>>().join(" "), rows.last().map(|row| row.id))
        };
        let (first, last) = history(None, 5).await;
        assert_eq!(first, "->3 2>- 2>2! 3>2! 1>3");
        assert_eq!(history(last, 5).await.0, "3>1! ->3");

        // A later change that is signed is taken over, and so is its order. The releases to which
        // the channel pointed are not known, so the order's bound counts as the highest.
        let signed = ChannelRow {
            product: product.clone(), channel: name("stable"), version: name("1"), counter: 70,
            updated: NOW, downgrade_from: Some(four + 50),
        };
        for _ in 0..2 {
            db.take_over_channel(&signed, NOW).await.expect("take over");
            assert_eq!(db.channel(&product, &name("stable")).await.expect("read"), Some(signed.clone()));
        }
        let moves = db.channel_moves(&product, &name("stable"), None, 9).await.expect("read");
        assert_eq!((moves.len(), &moves[0].by), (8, &MoveBy::origin()));
        assert_eq!(set("stable", "4", false, NOW).await, SetChannelOutcome::Older { newest: None });
        push(&world.ingest, "5", &artifact(noise(15, 50_000))).await.expect("push");
        assert_eq!(order(set("stable", "5", false, NOW).await), None);
    }

    async fn a_join_token_enrols_no_more_nodes_than_it_states(world: World) {
        let token = join_token("ab", 2);
        world.db.put_join_token(&token, &LabelMap::new()).await.expect("put");
        assert!(matches!(enrol(world, &token, "a", NOW).await, EnrolOutcome::Enrolled(t) if t.uses_left == 1));
        let again = enrol(world, &token, "a", NOW).await;
        assert!(matches!(again, EnrolOutcome::EnrolledAgain(t) if t.uses_left == 1));
        assert_eq!(enrol(world, &token, "late", NOW + 11).await, EnrolOutcome::Expired);
        // Five nodes enrol at once, and one use is left.
        let all = join_all(["b", "c", "d", "e", "f"].map(|node| enrol(world, &token, node, NOW + 10))).await;
        assert_eq!(all.iter().filter(|u| matches!(u, EnrolOutcome::Enrolled(_))).count(), 1, "{all:?}");
        assert_eq!(all.iter().filter(|u| **u == EnrolOutcome::UsedUp).count(), 4, "{all:?}");
        assert_eq!(world.db.join_token_uses().await.expect("count")[&token.public_key], 2);
        assert_eq!(world.db.nodes().await.expect("list").len(), 2, "a node that was refused has no row");
        assert!(world.db.revoke_join_token(&token.public_key, NOW + 7).await.expect("revoke"));
        assert!(!world.db.revoke_join_token("nobody", NOW).await.expect("revoke"));
        // A revoked token does not work either for a node that it enrolled before.
        assert_eq!(enrol(world, &token, "a", NOW).await, EnrolOutcome::TokenRevoked);
        assert_eq!(world.db.join_tokens().await.expect("list")[0].revoked, Some(NOW + 7));
    }

    async fn a_refused_enrolment_changes_nothing(world: World) {
        let (token, other) = (join_token("ab", 2), join_token("cd", 2));
        world.db.put_join_token(&token, &LabelMap::new()).await.expect("put");
        world.db.put_join_token(&other, &LabelMap::new()).await.expect("put");
        assert!(matches!(enrol(world, &token, "a", NOW).await, EnrolOutcome::Enrolled(_)));
        assert!(world.db.revoke_node(&node_id("a"), NOW + 1).await.expect("revoke"));
        let before = (world.db.nodes().await.expect("list"), world.db.join_tokens().await.expect("list"));
        let (b, key) = (node_id("b"), node_key("b"));
        let wanted = Enrolment {
            token: &other.public_key, node: &b, public_key: &key, role: "leaf", label: "renamed", now: NOW,
        };
        let unknown = "ef".repeat(32);
        for (wanted, refused) in [
            (Enrolment { node: &node_id("a"), public_key: &node_key("a"), ..wanted }, EnrolOutcome::NodeRevoked),
            (Enrolment { role: "relay", ..wanted }, EnrolOutcome::WrongRole),
            (Enrolment { now: other.expires + 1, ..wanted }, EnrolOutcome::Expired),
            (Enrolment { token: &unknown, ..wanted }, EnrolOutcome::UnknownToken),
        ] {
            assert_eq!(world.db.enrol(&wanted).await.expect("asked"), refused);
            let after = (world.db.nodes().await.expect("list"), world.db.join_tokens().await.expect("list"));
            assert_eq!(after, before, "{refused:?}");
        }
        assert_eq!(world.db.join_token_uses().await.expect("count").len(), 1);
    }

    async fn a_revocation_during_an_enrolment_comes_before_or_after_it(world: World) {
        // Each round is a race. In any order, a node that is told yes has a row and a use, and a
        // revocation of node and token that came first is seen.
        for round in 0..20 {
            let token = join_token(&format!("{round:02x}"), 1);
            world.db.put_join_token(&token, &LabelMap::new()).await.expect("put");
            let first = format!("{round}-first");
            assert!(matches!(enrol(world, &token, &first, NOW).await, EnrolOutcome::Enrolled(_)));
            let id = node_id(&first);
            let (again, revoked) =
                tokio::join!(enrol(world, &token, &first, NOW), world.db.revoke_node_and_tokens(&id, NOW + 5));
            assert_eq!(revoked.expect("no deadlock"), Some(vec![token.public_key.clone()]));
            assert!(matches!(again, EnrolOutcome::EnrolledAgain(_) | EnrolOutcome::NodeRevoked), "{again:?}");
            assert_eq!(enrol(world, &token, &first, NOW).await, EnrolOutcome::NodeRevoked);
            assert_eq!(enrol(world, &token, "another", NOW).await, EnrolOutcome::TokenRevoked);
            let node = world.db.node(&id).await.expect("read").expect("there");
            assert_eq!(node.revoked, Some(NOW + 5));
        }
    }

    async fn a_certificate_is_recorded_without_the_rest_of_the_row(world: World) {
        let token = join_token("ab", 9);
        world.db.put_join_token(&token, &LabelMap::new()).await.expect("put");
        assert!(matches!(enrol(world, &token, "a", NOW).await, EnrolOutcome::Enrolled(_)));
        let id = node_id("a");
        let before = world.db.node(&id).await.expect("read").expect("there");
        let put = |serial: &'static str, expires| world.db.put_certificate(&id, serial, expires);
        // A new label comes between the read of a row and the certificate.
        let key = node_key("a");
        let renamed = Enrolment {
            token: &token.public_key, node: &id, public_key: &key, role: "leaf", label: "renamed", now: NOW + 5,
        };
        assert!(matches!(world.db.enrol(&renamed).await.expect("again"), EnrolOutcome::EnrolledAgain(_)));
        assert_eq!(put("0a", NOW + 100).await.expect("put"), PutCertificate::Recorded);
        let after = world.db.node(&id).await.expect("read").expect("there");
        let expected = NodeRow {
            label: "renamed".into(), cert_serial: "0a".into(), cert_expires: NOW + 100, ..before
        };
        assert_eq!(after, expected);
        // The next enrolment keeps the certificate: it is still valid, and a revocation must name
        // the node.
        assert!(matches!(enrol(world, &token, "a", NOW).await, EnrolOutcome::EnrolledAgain(_)));
        assert!(world.db.revoke_node(&id, NOW + 5).await.expect("revoke"));
        assert_eq!(world.db.nodes_revoked(NOW + 100).await.expect("list"), std::slice::from_ref(&id));
        assert_eq!(put("0b", NOW + 900).await.expect("put"), PutCertificate::NodeRevoked);
        assert!(world.db.nodes_revoked(NOW + 101).await.expect("list").is_empty());
        let nobody = node_id("nobody");
        let unknown = world.db.put_certificate(&nobody, "0c", NOW).await.expect("asked");
        assert_eq!(unknown, PutCertificate::UnknownNode);
    }

    async fn nodes_and_api_tokens_are_stored_and_read_back(world: World) {
        let node = NodeRow {
            id: "0".repeat(32), public_key: vec![1, 2, 3], role: "relay".into(), label: "büro".into(),
            enrolled: NOW, cert_serial: "0a".into(), cert_expires: NOW + 86_400, revoked: None,
        };
        world.db.put_node(&node).await.expect("put");
        assert!(world.db.revoke_node(&node.id, NOW + 5).await.expect("revoke"));
        assert!(!world.db.revoke_node("nobody", NOW).await.expect("revoke"));
        let renewed = NodeRow { cert_serial: "0b".into(), enrolled: NOW + 9, ..node.clone() };
        world.db.put_node(&renewed).await.expect("put");
        let found = world.db.node(&node.id).await.expect("read").expect("there");
        assert_eq!(found, NodeRow { enrolled: NOW, revoked: Some(NOW + 5), ..renewed });
        assert_eq!(world.db.nodes().await.expect("list"), [found]);

        let token = ApiTokenRow {
            secret_sha256: [9; 32], label: "ci".into(), scopes: "read,publish".into(), products: "os,app-*".into(), created: NOW,
            expires: Some(NOW + 60), revoked: None,
        };
        world.db.put_api_token(&token).await.expect("put");
        let found = world.db.api_token(&[9; 32]).await.expect("read").expect("there");
        assert_eq!(found, token);
        assert!(found.is_valid(NOW + 60) && !found.is_valid(NOW + 61));
        assert_eq!(world.db.revoke_api_token(&[9; 32], NOW).await.expect("revoke"), RevokeToken::Revoked);
        let found = world.db.api_token(&[9; 32]).await.expect("read").expect("there");
        assert!(!found.is_valid(NOW));
        assert_eq!(world.db.api_token(&[8; 32]).await.expect("read"), None);
    }

    async fn of_two_admins_that_revoke_each_other_at_once_one_remains(world: World) {
        for round in 0..8u8 {
            let admins = [[2 * round; 32], [2 * round + 1; 32]];
            for secret_sha256 in admins {
                world.db.put_api_token(&ApiTokenRow {
                    secret_sha256, label: "admin".into(), scopes: "admin".into(), products: "*".into(),
                    created: NOW, expires: None, revoked: None,
                }).await.expect("put");
            }
            // The admin that remained in the round before is revoked, too.
            let before: Vec<_> = world.db.api_tokens().await.expect("list").into_iter()
                .filter(|token| token.is_valid(NOW)).map(|token| token.secret_sha256).collect();
            let done = join_all(before.iter().map(|token| world.db.revoke_api_token(token, NOW))).await;
            let refused = done.into_iter().filter(|done| *done.as_ref().expect("asked") == RevokeToken::LastAdmin);
            assert_eq!(refused.count(), 1);
            let valid = world.db.api_tokens().await.expect("list").into_iter().filter(|token| token.is_valid(NOW));
            assert_eq!(valid.count(), 1, "round {round}");
        }
        assert_eq!(world.db.revoke_api_token(&[99; 32], NOW).await.expect("asked"), RevokeToken::Unknown);
    }

    async fn objects_are_put_read_listed_and_deleted(world: World) {
        let store = &world.store;
        store.check().await.expect("ready");
        assert_eq!(store.get("tuf/root.json").await.expect("get"), None);
        store.put("tuf/root.json", &b"0123456789"[..]).await.expect("put");
        store.put("tuf/root.json", &b"abcdefghij"[..]).await.expect("replace");
        assert_eq!(store.get("tuf/root.json").await.expect("get").as_deref(), Some(&b"abcdefghij"[..]));
        assert_eq!(&store.get_range("tuf/root.json", 2..5).await.expect("range")[..], b"cde");
        assert_eq!(&store.get_range("tuf/root.json", 7..500).await.expect("range")[..], b"hij");
        assert!(store.get_range("tuf/none", 0..1).await.is_err());
        assert_eq!(store.len("tuf/root.json").await.expect("len"), Some(10));
        assert_eq!(store.len("tuf/none").await.expect("len"), None);
        assert_eq!(world.objects().await, ["tuf/root.json"]);
        store.delete("tuf/root.json").await.expect("delete");
        store.delete("tuf/root.json").await.expect("a second delete is not an error");
        assert_eq!(world.objects().await, Vec::<String>::new());
    }

    async fn a_database_opens_again_as_it_was(world: World) {
        push(&world.ingest, "1", &artifact(noise(16, 50_000))).await.expect("push");
        world.db.close().await;
        let db = Db::open(&world.address).await.expect("open again");
        assert_eq!(db.releases(&name("os")).await.expect("list").len(), 1);
        assert_eq!(db.products().await.expect("list").len(), 1);
        db.ping().await.expect("ping");
        db.close().await;
    }
}

#[tokio::test]
async fn a_damaged_pack_is_noticed_before_a_release_names_it() {
    let world = World::sqlite_and_directory().await;
    let a = artifact(noise(17, 300_000));
    let upload = begin(&world.ingest, "1").await;
    world.ingest.put_chunks(&upload, a.chunks.clone(), NOW).await.expect("chunks");
    let pack = world.directory.path().join("objects").join(&world.objects().await[0]);
    let mut bytes = std::fs::read(&pack).expect("read");
    bytes[100_000] ^= 1;
    std::fs::write(&pack, &bytes).expect("write");
    let error = world.ingest.commit(&upload, a.request.clone(), "ci", NOW).await.expect_err("damaged");
    assert!(matches!(error, IngestError::StoredChunk(_)), "{error:?}");
    std::fs::write(&pack, &bytes[..100_000]).expect("write");
    let error = world.ingest.commit(&upload, a.request.clone(), "ci", NOW).await.expect_err("truncated");
    assert!(matches!(error, IngestError::Read(_)), "{error:?}");
    world.end().await;
}

/// Hands each call to the runtime, as the HTTP layer does. This has to compile and never runs.
#[expect(dead_code, reason = "the check is that it compiles")]
fn every_call_can_be_spawned(ingest: Ingest, chunks: Chunks, file: FileRequest, commit: CommitRequest) {
    let upload = UploadId::from_random([0; 16]);
    tokio::spawn(async move {
        let _ = ingest.begin_upload(&file.product, &file.version, &Publisher::unbound("ci"), NOW).await;
        let _ = ingest.missing(&upload, &[]).await;
        let _ = ingest.put_chunks(&upload, Vec::new(), NOW).await;
        let _ = ingest.commit(&upload, commit, "ci", NOW).await;
        let _ = ingest.ingest_file(&file, opened(std::path::Path::new("")), NOW).await;
        let _ = ingest.abort(&upload).await;
        let _ = ingest.sweep_orphans(SweepScope::Shared, NOW).await;
        let _ = chunks.chunk(ChunkId(1)).await;
        let _ = chunks.run(ChunkId(1), ChunkId(2), 1).await;
    });
}

#[tokio::test]
async fn errors_of_malformed_addresses_say_what_to_write() {
    for bad in ["", "sqlite:", "mysql://x", "/just/a/path"] {
        let error = Db::open(bad).await.expect_err(bad);
        assert!(error.to_string().contains("sqlite:PATH"), "{error}");
    }
    for bad in ["", "ftp://x", "s3://", "s3://bucket?surprise=1"] {
        let error = Store::open(bad).expect_err(bad);
        assert!(error.to_string().contains("s3://BUCKET"), "{error}");
    }
}

#[tokio::test]
async fn temporary_files_of_interrupted_puts_are_swept() {
    let world = World::sqlite_and_directory().await;
    let a = artifact(noise(18, 50_000));
    push(&world.ingest, "1", &a).await.expect("push");
    let left = world.directory.path().join("objects/packs/aa");
    std::fs::create_dir_all(&left).expect("mkdir");
    std::fs::write(left.join("aaaa#1"), b"half a pack").expect("write");
    let swept = world.ingest.sweep_orphans(world.ingest.scope_at_start(), NOW).await.expect("sweep");
    assert_eq!((swept.temporary, swept.packs, swept.manifests), (1, 0, 0));
    assert!(!left.join("aaaa#1").exists());
    world.end().await;
}

/// Kills a publisher's origin at random moments and checks the state that remains.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_chunks_survive_kill_9_and_all_others_are_swept() {
    let directory = tempfile::tempdir().expect("tempdir");
    let me = std::env::current_exe().expect("own path");
    let mut acknowledged = 0;
    for round in 0..8u64 {
        let mut child = tokio::process::Command::new(&me)
            .args(["--ignored", "--exact", "child_that_ingests_until_killed", "--nocapture"])
            .env("DISTD_TEST_CHILD_DIR", directory.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("spawn");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let count = |line: &str| line.split("acknowledged ").nth(1)?.parse::<u64>().ok();
        if round < 4 {
            tokio::time::sleep(std::time::Duration::from_millis(150 + 90 * round)).await;
        } else {
            // Half of the children are killed after an acknowledgement, however slow a machine is.
            while let Some(line) = lines.next_line().await.expect("read") {
                if let Some(count) = count(&line) {
                    acknowledged = acknowledged.max(count);
                    break;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(60 * (round - 4))).await;
        }
        child.start_kill().expect("kill");
        while let Some(line) = lines.next_line().await.expect("read") {
            acknowledged = acknowledged.max(count(&line).unwrap_or(0));
        }
        child.wait().await.expect("wait");
        eprintln!("round {round}: {acknowledged} chunks acknowledged before the kill");

        let world = World::open(directory.path()).await;
        world.ingest.sweep_orphans(SweepScope::Alone, NOW).await.expect("sweep");
        let upload = begin(&world.ingest, "kill").await;
        let whole = artifact(noise(19, 24 << 20));
        let acked: Vec<ChunkHash> = whole.hashes()[..acknowledged as usize].to_vec();
        assert!(world.ingest.missing(&upload, &acked).await.expect("missing").is_empty(), "round {round}");
        let known = world.db.packs_known(&world.objects().await).await.expect("known");
        assert!(known.iter().all(|known| *known), "round {round}: an object without a row");
        if round == 7 {
            let done = push(&world.ingest, "kill", &whole).await.expect("finish");
            assert_eq!(read_back(&world, &done.manifest).await, whole.bytes);
        }
        world.db.close().await;
    }
    assert!(acknowledged > 0, "no child lived long enough to get an acknowledgement");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by acknowledged_chunks_survive_kill_9_and_all_others_are_swept"]
async fn child_that_ingests_until_killed() {
    let Ok(directory) = std::env::var("DISTD_TEST_CHILD_DIR") else { return };
    let world = World::open(std::path::Path::new(&directory)).await;
    let whole = artifact(noise(19, 24 << 20));
    let upload = begin(&world.ingest, "kill").await;
    let mut done = 0;
    for batch in whole.chunks.chunks(16) {
        world.ingest.put_chunks(&upload, batch.to_vec(), NOW).await.expect("put");
        done += batch.len();
        println!("acknowledged {done}");
    }
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
}

/// Peak resident memory of this process so far, MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("Linux tells the peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

/// Measures; run with `--run-ignored only --no-capture`. `DISTD_MEASURE_MIB` MiB of noise are cut
/// to an average of 4 KiB: 5200 give as many chunks as 20 GB cut to 16 KiB.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_a_large_file() {
    use std::io::Write;
    let mib: usize = std::env::var("DISTD_MEASURE_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(1024);
    let world = World::sqlite_and_directory().await;
    let spool = world.directory.path().join("spooled");
    let mut file = std::fs::File::create(&spool).expect("spool");
    for n in 0..mib {
        file.write_all(&noise(n as u64, 1 << 20)).expect("spool");
    }
    drop(file);
    let cut = CutParams::new(1024, 4096, 16_384).expect("valid");
    world.db.ensure_product(&name("os"), cut, NOW).await.expect("product");
    let request =
        FileRequest { product: name("os"), version: name("1"), cut, by: Publisher::unbound("curl") };
    let before = peak_mib();
    let start = std::time::Instant::now();
    let done = world.ingest.ingest_file(&request, opened(&spool), NOW).await.expect("ingest");
    println!(
        "{mib} MiB, {} chunks: {:?}, peak {} MiB (before: {before} MiB)",
        done.release.chunk_count,
        start.elapsed(),
        peak_mib()
    );
    world.end().await;
}

/// A database with this many chunks in a pack, `pack_offset` of each its number; their rows.
async fn chunks_in_a_pack(world: &World, count: u32) -> Vec<ChunkRow> {
    let upload = begin(&world.ingest, "1").await;
    let pack = world.db.record_pack(&upload, "packs/aa/from", u64::from(count), &[], NOW, NOW).await;
    let pack = pack.expect("record").expect("the upload is open");
    let location = |n| Location { pack, offset: n, stored_len: 1, raw_len: 1, codec: Codec::Raw };
    let chunks: Vec<_> =
        (0..count).map(|n| (ChunkHash::of(&n.to_be_bytes()), location(u64::from(n)))).collect();
    let BeginCommit::Ready(mut tx) = world.db.begin_commit(&upload).await.expect("begin") else { panic!() };
    let ids = tx.give_ids(&chunks).await.expect("give ids");
    tx.finish(None).await.expect("commit");
    let row = |(id, (hash, location))| ChunkRow { id, hash, location };
    ids.into_iter().zip(chunks).map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_four_thousand_moved_chunks() {
    for world in [Some(World::sqlite_and_directory().await), World::postgres_and_directory().await] {
        let Some(world) = world else { continue };
        let rows = chunks_in_a_pack(&world, 200_000).await;
        for (n, rows) in rows.chunks(4000).step_by(10).enumerate() {
            let moved: Vec<_> = rows
                .iter()
                .map(|row| MovedChunk { id: row.id, from: row.location, offset: row.location.offset + 7 })
                .collect();
            let start = std::time::Instant::now();
            let done = world.db.move_chunks(&format!("packs/bb/{n}"), 1, &moved, NOW).await;
            assert_eq!(done.expect("moved"), 4000);
            println!("{}: 4000 chunks moved in {:?}", &world.address[..8], start.elapsed());
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_seventy_thousand_rows() {
    for world in [Some(World::sqlite_and_directory().await), World::postgres_and_directory().await] {
        let Some(world) = world else { continue };
        let upload = begin(&world.ingest, "1").await;
        let hashes: Vec<ChunkHash> = (0..70_000u32).map(|n| ChunkHash::of(&n.to_be_bytes())).collect();
        let start = std::time::Instant::now();
        assert_eq!(world.ingest.missing(&upload, &hashes).await.expect("missing").len(), 70_000);
        let missing = start.elapsed();
        let start = std::time::Instant::now();
        let index = vec![0; 70_000 * 41];
        let pack = world.db.record_pack(&upload, "packs/aa/x", 70_000, &index, NOW, NOW).await;
        let pack = pack.expect("record").expect("the upload is open");
        let record = start.elapsed();
        let place = |n| Location { pack, offset: n, stored_len: 1, raw_len: 1, codec: Codec::Raw };
        let chunks: Vec<_> = hashes.iter().zip(0..).map(|(hash, n)| (*hash, place(n))).collect();
        let start = std::time::Instant::now();
        let BeginCommit::Ready(mut tx) = world.db.begin_commit(&upload).await.expect("begin") else {
            panic!()
        };
        assert!(tx.ids(&hashes).await.expect("ids").iter().all(Option::is_none));
        assert_eq!(tx.give_ids(&chunks).await.expect("give ids").len(), 70_000);
        let assign = start.elapsed();
        drop(tx);
        println!("{}: missing {missing:?}, record {record:?}, assign {assign:?}", &world.address[..8]);
        world.end().await;
    }
}
