//! Compaction: chunks move out of packs that are mostly unused, whose space is freed then.
//!
//! docs/store.md, "Compaction", has the order of writes and what each crash leaves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::packing::{HashedChunk, PackedChunk, Unpacker};
use tokio::task::spawn_blocking;

use super::{Ingest, IngestError};
use crate::db::{ChunkRow, MovedChunk, SPARSE_MAX, SparsePack, UnixSeconds};
use crate::store::pack::{PackWriter, object_name};
use crate::store::{ReadError, StoreError};
use distd_peer::random;

/// A pack is emptied when less than one in so many of its bytes is used: at that share a byte
/// copied frees one.
const USED_SHARE: u64 = 2;

/// Unused bytes of all packs take at most one in so many of the used ones: above that, packs of
/// which more than half is used are emptied too, the least used first. With the bytes of
/// [`EMPTIED_SHARE`] that wait for their readers apart, packs stay within 1.1 times of what their
/// chunks need.
const DEAD_SHARE: u64 = 12;

/// A pack is left alone when less than one in so many of its bytes is unused: a byte copied would
/// free less than a twentieth of one.
const SPARSE_SHARE: u64 = 20;

/// Time for which the object of an emptied pack stays, seconds: a reader that looked a chunk up
/// before finds the chunk there. The maker of a patch set remembers places for hours, and a backup
/// of the store compares objects with rows as long as it copies.
pub const EMPTIED_SECONDS: i64 = 24 * 3600;

/// Emptied packs that are still there take at most one in so many bytes of all packs, or
/// [`EMPTIED_BYTES`] where that is more. The new packs take less than half as much.
const EMPTIED_SHARE: u64 = 16;

/// See [`EMPTIED_SHARE`].
const EMPTIED_BYTES: u64 = 1 << 30;

/// Bytes of the packs that one call empties: some ten seconds of a disk.
const ROUND_BYTES: u64 = 1 << 30;

/// Stored bytes of chunks read in one go.
const READ_BYTES: u64 = 4 << 20;

/// The state of compaction: counters, and whether there is work.
#[derive(Debug)]
pub struct Compaction {
    enabled: bool,
    due: AtomicBool,
    /// Packs emptied.
    pub packs: AtomicU64,
    /// Stored bytes of chunks copied.
    pub copied_bytes: AtomicU64,
    /// Bytes of emptied packs deleted.
    pub deleted_bytes: AtomicU64,
}

impl Compaction {
    pub(super) fn new(enabled: bool) -> Self {
        Self {
            enabled,
            // The leftovers of earlier runs are not known after a start.
            due: AtomicBool::new(true),
            packs: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
            deleted_bytes: AtomicU64::new(0),
        }
    }

    /// Says that chunks were deleted, so that there may be something to do.
    pub fn wake(&self) {
        self.due.store(true, Ordering::Relaxed);
    }
}

/// The result of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Packs emptied.
    pub packs: u64,
    /// Chunks that lie in new packs now.
    pub chunks: u64,
    /// Objects of packs emptied earlier that were deleted.
    pub deleted: u64,
    /// Whether there is more to do now.
    pub more: bool,
}

/// A new pack that is durable and that no row names.
struct Copied {
    object: String,
    bytes: u64,
    chunks: Vec<MovedChunk>,
}

/// A new pack being filled.
#[derive(Default)]
struct Filling {
    writer: PackWriter,
    chunks: Vec<MovedChunk>,
}

impl Ingest {
    /// Moves chunks out of packs that are mostly unused, and deletes the objects of packs that were
    /// emptied a day ago. Call it hourly, one at a time; it does nothing until chunks were deleted.
    ///
    /// # Errors
    /// [`IngestError`]; nothing is lost, and what is left is done next time.
    pub async fn compact(&self, now: UnixSeconds) -> Result<Compacted, IngestError> {
        let mut done = Compacted::default();
        if !self.compaction.enabled {
            return Ok(done);
        }
        done.deleted = self.delete_emptied(now).await?;
        if !self.compaction.due.swap(false, Ordering::Relaxed) {
            return Ok(done);
        }
        let worked = self.compact_round(now, &mut done).await;
        if !matches!(worked, Ok(true)) {
            self.compaction.wake();
        }
        done.more &= worked.is_ok();
        worked.map(|_| done)
    }

    /// Empties packs, as many as one call may; `true` when none is left.
    async fn compact_round(&self, now: UnixSeconds, done: &mut Compacted) -> Result<bool, IngestError> {
        let all = self.db.pack_bytes().await?;
        let waiting = self.db.emptied_bytes().await?;
        let mut allowed = (all / EMPTIED_SHARE).max(EMPTIED_BYTES).saturating_sub(waiting);
        done.more = allowed > ROUND_BYTES;
        allowed = allowed.min(ROUND_BYTES);
        let mut filling = Filling::default();
        let usage = self.db.pack_usage().await?;
        let mut dead = usage.dead();
        for pack in self.db.sparse_packs(SPARSE_SHARE, SPARSE_MAX).await? {
            let half = pack.live_bytes.saturating_mul(USED_SHARE) < pack.bytes;
            if !half && dead.saturating_mul(DEAD_SHARE) <= usage.live {
                break;
            }
            if self.losses.has_pack(pack.id) {
                continue;
            }
            let Some(rest) = allowed.checked_sub(pack.bytes) else {
                self.swap_rest(filling, now, done).await?;
                return Ok(false);
            };
            allowed = rest;
            dead = dead.saturating_sub(pack.bytes - pack.live_bytes.min(pack.bytes));
            match self.empty_pack(pack, &mut filling, now, done).await {
                Ok(()) => done.packs += 1,
                // A damaged chunk stays where it is, and stays known as damaged.
                Err(
                    error @ (IngestError::StoredChunk(_)
                    | IngestError::Read(
                        ReadError::Damaged(_) | ReadError::Store(StoreError::Missing(_)),
                    )),
                ) => {
                    let error = tracing::field::display(Chain(&error));
                    tracing::error!(pack = ?pack.id, error, "a pack cannot be emptied: distd-server fsck --check-data");
                }
                Err(error) => return Err(error),
            }
        }
        self.swap_rest(filling, now, done).await?;
        done.more = false;
        Ok(true)
    }

    async fn empty_pack(
        &self,
        pack: SparsePack,
        filling: &mut Filling,
        now: UnixSeconds,
        done: &mut Compacted,
    ) -> Result<(), IngestError> {
        let rows = self.db.chunks_of_pack(pack.id).await?;
        if rows.is_empty() {
            return Ok(self.db.mark_if_empty(pack.id, now).await?);
        }
        let mut rows = &rows[..];
        while !rows.is_empty() {
            let mut bytes = 0;
            let fit = rows.iter().take_while(|row| {
                let before = bytes;
                bytes += u64::from(row.location.stored_len);
                before < READ_BYTES
            });
            let (batch, rest) = rows.split_at(fit.count());
            rows = rest;
            for (row, chunk) in self.read_checked(batch.to_vec()).await? {
                if filling.writer.is_full() {
                    let full = std::mem::take(filling);
                    self.swap_rest(full, now, done).await?;
                }
                let offset = u64::from(filling.writer.bytes());
                filling.writer.push(HashedChunk { hash: row.hash, packed: chunk });
                filling.chunks.push(MovedChunk { id: row.id, from: row.location, offset });
            }
        }
        self.compaction.packs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the chunks as they are stored, each compared with its hash: without this, the hash
    /// of the new pack would vouch for damage.
    async fn read_checked(&self, rows: Vec<ChunkRow>) -> Result<Vec<(ChunkRow, PackedChunk)>, IngestError> {
        let locations: Vec<_> = rows.iter().map(|row| row.location).collect();
        let stored = self.packs.read_many(&locations).await?;
        let check = spawn_blocking(move || {
            let mut unpacker = Unpacker::default();
            let mut out = Vec::with_capacity(rows.len());
            for (row, bytes) in rows.into_iter().zip(stored) {
                let at = &row.location;
                unpacker.unpack(at.codec, &bytes, at.raw_len, &row.hash).map_err(IngestError::StoredChunk)?;
                // A copy, without what lies between the chunks.
                let bytes = Bytes::copy_from_slice(&bytes);
                out.push((row, PackedChunk { codec: at.codec, raw_len: at.raw_len, bytes }));
            }
            Ok(out)
        });
        check.await.expect("unpacking does not panic")
    }

    /// Ends a pack, if it has begun.
    async fn swap_rest(
        &self,
        filling: Filling,
        now: UnixSeconds,
        done: &mut Compacted,
    ) -> Result<(), IngestError> {
        if !filling.chunks.is_empty() {
            let copied = self.put_copy(filling, now).await?;
            done.chunks += self.swap(copied, now).await?;
        }
        Ok(())
    }

    /// Does the first step: makes the new pack durable.
    async fn put_copy(&self, filling: Filling, now: UnixSeconds) -> Result<Copied, IngestError> {
        let Filling { writer, chunks } = filling;
        let sealed = spawn_blocking(move || writer.seal()).await.expect("sealing does not panic");
        self.check_room(sealed.bytes)?;
        let object = object_name(random::bytes());
        // The pack is noted as doomed before it is put, so that it can be deleted whatever comes of
        // it.
        self.db.doom(&object, now).await?;
        self.store.put(&object, sealed.payload).await?;
        Ok(Copied { object, bytes: sealed.bytes, chunks })
    }

    /// Does the second step: makes rows name the new pack.
    async fn swap(&self, copied: Copied, now: UnixSeconds) -> Result<u64, IngestError> {
        let Copied { object, bytes, chunks } = copied;
        let moved = self.db.move_chunks(&object, bytes, &chunks, now).await?;
        if moved == 0 {
            // All chunks of the pack were deleted meanwhile.
            self.delete_all(&[object]).await?;
            return Ok(0);
        }
        let stored: u64 = chunks.iter().map(|chunk| u64::from(chunk.from.stored_len)).sum();
        self.compaction.copied_bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(moved)
    }

    /// Does the last step: deletes packs without chunks when no reader can need them.
    async fn delete_emptied(&self, now: UnixSeconds) -> Result<u64, IngestError> {
        let (objects, bytes) = self.db.forget_emptied(now - EMPTIED_SECONDS).await?;
        self.delete_all(&objects).await?;
        self.compaction.deleted_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(objects.len() as u64)
    }

    /// Counters of compaction.
    pub fn compaction(&self) -> &Compaction {
        &self.compaction
    }

    /// Whether packs that are mostly unused are emptied.
    #[must_use]
    pub fn with_compaction(mut self, enabled: bool) -> Self {
        self.compaction = std::sync::Arc::new(Compaction::new(enabled));
        self
    }
}

#[cfg(test)]
mod tests {
    use distd_core::cut::CutParams;
    use distd_core::manifest::Kind;
    use distd_core::packing::{Codec, Packer};
    use distd_core::{ChunkHash, ManifestId};
    use futures::TryStreamExt;

    use super::*;
    use crate::db::{Db, Leaving, Unless, Withdraw};
    use crate::ingest::{CommitRequest, Run, SweepScope};
    use crate::publisher::Publisher;
    use crate::store::{Chunks, Store};

    fn cut() -> CutParams {
        CutParams::new(64 << 10, 256 << 10, 1 << 20).expect("within the bounds")
    }

    const NOW: UnixSeconds = 1_800_000_000;

    /// An origin's storage in a directory.
    struct World {
        ingest: Ingest,
        directory: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            Self::open(tempfile::tempdir().expect("tempdir")).await
        }

        /// Opens the storage as a process that starts does.
        async fn open(directory: tempfile::TempDir) -> Self {
            let address = format!("sqlite:{}/db", directory.path().display());
            let db = Db::open(&address).await.expect("database");
            let store = Store::open_directory(&directory.path().join("objects")).expect("store");
            let ingest = Ingest::new(db, store);
            let scope = ingest.scope_at_start();
            ingest.sweep_orphans(scope, NOW).await.expect("swept");
            Self { ingest, directory }
        }

        /// Ends without another step, as a kill does, and starts again.
        async fn killed(self) -> Self {
            self.ingest.db.close().await;
            Self::open(self.directory).await
        }

        /// A release of these chunks, whose packs hold what is new of them.
        async fn push(&self, version: &str, chunks: &[Vec<u8>]) -> ManifestId {
            let (os, version) = ("os".parse().expect("name"), version.parse().expect("name"));
            let ingest = &self.ingest;
            ingest.db.ensure_product(&os, cut(), NOW).await.expect("product");
            let by = Publisher::unbound("ci");
            let upload = ingest.begin_upload(&os, &version, &by, NOW).await.expect("begun").id;
            let mut packer = Packer::new(3);
            let incoming =
                chunks.iter().map(|raw| HashedChunk { hash: ChunkHash::of(raw), packed: packer.pack(raw) });
            ingest.put_chunks(&upload, incoming.collect(), NOW).await.expect("stored");
            let run = |raw: &Vec<u8>| Run { hash: ChunkHash::of(raw), len: raw.len() as u32, repeat: 1 };
            let whole = chunks.concat();
            let request = CommitRequest {
                kind: Kind::File,
                cut: cut(),
                runs: chunks.iter().map(run).collect(),
                blake3: blake3::hash(&whole).into(),
                bytes: whole.len() as u64,
            };
            ingest.commit(&upload, request, "ci", NOW).await.expect("committed").release.manifest
        }

        /// Withdraws a release of which these chunks are needed no more.
        async fn withdraw(&self, version: &str, unneeded: &[Vec<u8>]) {
            let db = &self.ingest.db;
            let (os, version) = ("os".parse().expect("name"), version.parse().expect("name"));
            let marked = db.mark_removing(&os, &version, Unless::Used, NOW);
            let Withdraw::Marked(release) = marked.await.expect("marked") else { panic!("no such release") };
            let hashes: Vec<_> = unneeded.iter().map(|raw| ChunkHash::of(raw)).collect();
            let ids: Vec<_> = db.chunk_ids(&hashes).await.expect("ids").into_iter().flatten().collect();
            let objects = db
                .begin_removal(Leaving { releases: vec![release], sets: Vec::new() })
                .await
                .expect("begun")
                .finish(&ids)
                .await
                .expect("gone");
            self.ingest.delete_all(&objects).await.expect("deleted");
            self.ingest.compaction.wake();
        }

        async fn packs(&self) -> Vec<(String, u64)> {
            let packs = self.ingest.store.list("packs").map_ok(|object| (object.name, object.bytes));
            packs.try_collect().await.expect("a listing")
        }

        async fn pack_bytes(&self) -> u64 {
            self.packs().await.iter().map(|(_, bytes)| bytes).sum()
        }

        fn chunks(&self) -> Chunks {
            Chunks::new(self.ingest.db.clone(), self.ingest.store.clone())
        }

        async fn is_whole(&self, chunks: &Chunks, manifest: &ManifestId) {
            let manifest = self.ingest.manifest(manifest).await.expect("the manifest");
            let mut unpacker = Unpacker::default();
            for at in manifest.entries() {
                let chunk = chunks.chunk(at.entry.id).await.expect("readable").expect("there");
                let raw = unpacker.unpack(chunk.codec, &chunk.bytes, chunk.raw_len, &at.entry.hash);
                assert_eq!(raw.expect("its bytes").len(), at.entry.len as usize);
            }
            assert!(self.ingest.look_for_losses().await.expect("looked").is_empty());
        }
    }

    fn noise(seed: u64, count: u64) -> Vec<Vec<u8>> {
        let chunk = |n: u64| {
            let mut raw = vec![0; 256 << 10];
            blake3::Hasher::new()
                .update(&seed.to_be_bytes())
                .update(&n.to_be_bytes())
                .finalize_xof()
                .fill(&mut raw);
            raw
        };
        (0..count).map(chunk).collect()
    }

    /// Two releases share three of the twenty chunks of the first one's pack; the first goes.
    async fn sparse(world: &World) -> (ManifestId, u64) {
        let (mut one, only) = (noise(1, 3), noise(2, 17));
        let mut two = one.clone();
        one.extend(only.clone());
        two.extend(noise(3, 2));
        world.push("1", &one).await;
        let two = world.push("2", &two).await;
        let before = world.pack_bytes().await;
        world.withdraw("1", &only).await;
        assert_eq!(world.pack_bytes().await, before, "of a pack that is partly used nothing comes back");
        (two, before)
    }

    const DELETED: UnixSeconds = NOW + EMPTIED_SECONDS;

    #[tokio::test(flavor = "multi_thread")]
    async fn space_comes_back_after_a_day_and_readers_find_their_chunks_all_the_time() {
        let world = World::new().await;
        let (two, before) = sparse(&world).await;
        let reader = world.chunks();
        world.is_whole(&reader, &two).await;
        let done = world.ingest.compact(NOW).await.expect("compacts");
        assert_eq!(done, Compacted { packs: 1, chunks: 3, ..Compacted::default() });
        assert_eq!(world.packs().await.len(), 3, "the old pack stays for those who read it");
        let again = world.ingest.compact(DELETED - 1).await.expect("compacts");
        assert_eq!(again, Compacted::default(), "nothing to do, and nothing is deleted early");
        let waiting = world.ingest.db.emptied_bytes().await.expect("a sum");
        assert!(waiting > 4 << 20, "{waiting}");
        let done = world.ingest.compact(DELETED).await.expect("compacts");
        assert_eq!(done, Compacted { deleted: 1, ..Compacted::default() });
        let after = world.pack_bytes().await;
        assert!(after < 6 * (256 << 10) && before > 21 * (256 << 10), "{before} -> {after}");
        assert_eq!(world.ingest.db.pack_bytes().await.expect("a sum"), after);
        let counted = world.ingest.compaction.deleted_bytes.load(Ordering::Relaxed);
        assert_eq!(counted, waiting);
        // Rows that a reader remembers name a pack that is gone.
        world.is_whole(&reader, &two).await;
        world.is_whole(&world.chunks(), &two).await;
        let world = world.killed().await;
        world.is_whole(&world.chunks(), &two).await;
        assert_eq!(world.pack_bytes().await, after);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn switched_off_it_changes_nothing() {
        let mut world = World::new().await;
        world.ingest = world.ingest.with_compaction(false);
        let (two, before) = sparse(&world).await;
        for now in [NOW, DELETED] {
            assert_eq!(world.ingest.compact(now).await.expect("does nothing"), Compacted::default());
        }
        assert_eq!(world.pack_bytes().await, before);
        world.is_whole(&world.chunks(), &two).await;
    }

    /// The pack that a round would put first.
    async fn filled(world: &World) -> Filling {
        let mut filling = Filling::default();
        let sparse = world.ingest.db.sparse_packs(SPARSE_SHARE, SPARSE_MAX).await.expect("rows");
        let mut done = Compacted::default();
        world.ingest.empty_pack(sparse[0], &mut filling, NOW, &mut done).await.expect("read");
        filling
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_kill_between_any_two_steps_loses_nothing_and_keeps_no_space() {
        for step in ["put", "swapped", "forgotten"] {
            let world = World::new().await;
            let (two, before) = sparse(&world).await;
            let copied = world.ingest.put_copy(filled(&world).await, NOW).await.expect("put");
            let object = copied.object.clone();
            if step != "put" {
                assert_eq!(world.ingest.swap(copied, NOW).await.expect("swapped"), 3);
            }
            if step == "forgotten" {
                let (objects, _) = world.ingest.db.forget_emptied(NOW).await.expect("forgotten");
                assert_eq!(objects.len(), 1);
            }
            let world = world.killed().await;
            world.is_whole(&world.chunks(), &two).await;
            let there = world.packs().await.iter().any(|(name, _)| *name == object);
            assert_eq!(there, step != "put", "{step}: a pack that no row names is swept, another stays");
            for now in [NOW, DELETED] {
                world.ingest.compact(now).await.expect("goes on");
            }
            world.is_whole(&world.chunks(), &two).await;
            let (after, packs) = (world.pack_bytes().await, world.packs().await.len());
            assert!(packs == 2 && after < 6 * (256 << 10) && before > 21 * (256 << 10), "{step}: {after}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn chunks_of_a_new_pack_that_is_lost_are_found_in_the_pack_that_was_emptied() {
        let world = World::new().await;
        let (two, _) = sparse(&world).await;
        let before: Vec<_> = world.packs().await.into_iter().map(|(name, _)| name).collect();
        assert_eq!(world.ingest.compact(NOW).await.expect("compacts").chunks, 3);
        let packs = world.packs().await;
        let new = packs.iter().find(|(name, _)| !before.contains(name)).expect("a new pack");
        world.ingest.store.delete(&new.0).await.expect("lost");
        assert_eq!(world.ingest.find_lost_chunks(NOW).await.expect("looks"), 3);
        world.is_whole(&world.chunks(), &two).await;
        // The pack is in use again, and is not deleted after its day.
        assert_eq!(world.ingest.db.emptied_bytes().await.expect("a sum"), 0);
        world.ingest.compact(DELETED).await.expect("compacts");
        world.ingest.compact(DELETED + EMPTIED_SECONDS).await.expect("compacts");
        world.is_whole(&world.chunks(), &two).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn chunks_deleted_meanwhile_are_not_brought_back() {
        let world = World::new().await;
        let (_, _) = sparse(&world).await;
        let some = world.ingest.put_copy(filled(&world).await, NOW).await.expect("put");
        let none = world.ingest.put_copy(filled(&world).await, NOW).await.expect("put");
        let gone = [noise(1, 3), noise(3, 2)].concat();
        world.withdraw("2", &gone[1..]).await;
        assert_eq!(world.ingest.swap(some, NOW).await.expect("swapped"), 1, "the one that is still there");
        assert_eq!(world.ingest.swap(none, NOW).await.expect("swapped"), 0);
        let hashes: Vec<_> = gone.iter().map(|raw| ChunkHash::of(raw)).collect();
        let left = world.ingest.db.chunk_ids(&hashes).await.expect("ids");
        assert_eq!(left.iter().flatten().count(), 1);
        world.ingest.compact(DELETED).await.expect("compacts");
        let swept = world.ingest.sweep_orphans(SweepScope::Alone, DELETED).await.expect("swept");
        assert_eq!(swept.packs, 0, "nothing was left over");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_chunk_is_not_copied_and_others_are() {
        let world = World::new().await;
        let (two, _) = sparse(&world).await;
        let (other, only) = (noise(4, 2), noise(5, 12));
        let all = [other.clone(), only.clone()].concat();
        world.push("3", &all).await;
        let four = world.push("4", &[other, noise(6, 1)].concat()).await;
        world.withdraw("3", &only).await;
        let damaged = world.ingest.manifest(&two).await.expect("manifest");
        let id = damaged.entries().next().expect("a chunk").entry.id;
        let row = world.ingest.db.chunks_by_id(&[id]).await.expect("rows")[0];
        assert_eq!(row.location.codec, Codec::Raw, "noise does not compress");
        let names = world.ingest.db.pack_objects(&[row.location.pack]).await.expect("names");
        let mut bytes = world.ingest.store.get(&names[0].1).await.expect("read").expect("there").to_vec();
        bytes[row.location.offset as usize] ^= 1;
        world.ingest.store.put(&names[0].1, bytes).await.expect("put");
        let done = world.ingest.compact(NOW).await.expect("goes on");
        assert_eq!((done.packs, done.chunks), (1, 2));
        world.ingest.compact(DELETED).await.expect("goes on");
        let row = world.ingest.db.chunks_by_id(&[id]).await.expect("rows")[0];
        let names = world.ingest.db.pack_objects(&[row.location.pack]).await.expect("names");
        assert!(
            world.ingest.store.len(&names[0].1).await.expect("asked").is_some(),
            "it stays to be looked at"
        );
        world.is_whole(&world.chunks(), &four).await;
    }
}
