//! Patch sets, from the queue to a device: rows on every engine, the making, and what crashes leave.

#[path = "storage/world.rs"]
mod world;

use distd_core::cut::CutParams;
use distd_core::names::Name;
use distd_core::packing::Codec;
use distd_core::{ArtifactHash, ChunkHash, ManifestId};
use distd_server::db::{Db, Location, MadeSet, PatchSetState, ReleaseRow};
use world::{World, name, on_every_back_end};

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

        let taken = db.take_patch_set(NOW + 2).await.expect("take").expect("one waits");
        assert_eq!((&taken.key, taken.state, taken.started), (&row.key, PatchSetState::Building, Some(NOW + 2)));
        // The origin ended here: the next start tries again.
        assert_eq!(db.requeue_patch_sets().await.expect("requeue"), 1);
        let taken = db.take_patch_set(NOW + 3).await.expect("take").expect("one waits");
        assert_eq!(taken.key, row.key);

        let mut tx = db.begin_patch_set(NOW + 4).await.expect("begin");
        let pack = tx.record_pack("packs/aa/one", 10).await.expect("pack");
        let (hash, other) = (ChunkHash([7; 32]), ChunkHash([8; 32]));
        assert_eq!(tx.ids(&[hash]).await.expect("ids"), [None]);
        let at = |offset| Location { pack, offset, stored_len: 5, raw_len: 5, codec: Codec::Raw };
        let ids = tx.give_ids(&[(hash, at(0)), (other, at(5))]).await.expect("give");
        let set = ManifestId([9; 32]);
        let made = MadeSet { set: Some(set), bytes: 10, packed: 70, patches: 1 };
        assert!(tx.finish(&row.key, &made).await.expect("finish"));

        assert_eq!(db.last_chunk_id().await.expect("counter"), ids[1].0);
        assert_eq!(db.chunk_ids(&[other, hash]).await.expect("ids"), [Some(ids[1]), Some(ids[0])]);
        assert_eq!(db.packs_known(&["packs/aa/one".to_owned()]).await.expect("packs"), [true]);
        // A set's manifest is served and stays, like a release's.
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

    async fn a_set_that_failed_is_tried_again_when_asked_for(world: World) {
        let db = &world.db;
        let os = product(db).await;
        let (one, two) = (release(&os, "1", 1), release(&os, "2", 2));
        let (row, _) = db.queue_patch_set(&one, &two, "ci", NOW).await.expect("queue");
        // Only what is being made can fail.
        db.fail_patch_set(&row.key, "early", NOW).await.expect("fail");
        assert!(db.take_patch_set(NOW).await.expect("take").is_some());
        assert!(db.take_patch_set(NOW).await.expect("take").is_none());
        db.fail_patch_set(&row.key, "a chunk is damaged", NOW + 1).await.expect("fail");
        let failed = db.patch_set(&row.key).await.expect("row").expect("there");
        assert_eq!((failed.state, failed.error.as_deref()), (PatchSetState::Failed, Some("a chunk is damaged")));
        let (row, queued) = db.queue_patch_set(&one, &two, "ci", NOW + 2).await.expect("queue");
        assert!(queued && row.state == PatchSetState::Queued && row.error.is_none());
    }

    async fn a_set_nobody_is_making_is_not_recorded(world: World) {
        let db = &world.db;
        let os = product(db).await;
        let (row, _) =
            db.queue_patch_set(&release(&os, "1", 1), &release(&os, "2", 2), "ci", NOW).await.expect("queue");
        let mut tx = db.begin_patch_set(NOW).await.expect("begin");
        let pack = tx.record_pack("packs/aa/one", 10).await.expect("pack");
        let at = Location { pack, offset: 0, stored_len: 5, raw_len: 5, codec: Codec::Raw };
        tx.give_ids(&[(ChunkHash([7; 32]), at)]).await.expect("give");
        assert!(!tx.finish(&row.key, &MadeSet::default()).await.expect("finish"));
        assert_eq!(db.last_chunk_id().await.expect("counter"), 0);
        assert_eq!(db.packs_known(&["packs/aa/one".to_owned()]).await.expect("packs"), [false]);
        // No set at all is a result, too.
        db.take_patch_set(NOW).await.expect("take").expect("one waits");
        let tx = db.begin_patch_set(NOW).await.expect("begin");
        assert!(tx.finish(&row.key, &MadeSet::default()).await.expect("finish"));
        let done = db.patch_set(&row.key).await.expect("row").expect("there");
        assert_eq!((done.state, done.set), (PatchSetState::Ready, None));
        assert!(db.patch_sets_usable(&os, 64).await.expect("usable").is_empty());
    }
}
