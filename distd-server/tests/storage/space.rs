//! Withdrawn and removed releases, pins, policies, quotas and uses, in the database.

use distd_core::api::Retention;
use distd_server::db::{PatchSetKey, QuotaOf};

use super::rollouts::{begun, node, realm, report, running};
use super::*;

async fn pushed(world: &World, version: &str, seed: u64) -> distd_server::ingest::CommitResult {
    push(&world.ingest, version, &artifact(noise(seed, 90_000))).await.expect("push")
}

async fn states(world: &World) -> Vec<(String, bool, bool, Option<String>)> {
    let held = world.db.held_releases(Some(&name("os"))).await.expect("read");
    held.into_iter()
        .map(|held| {
            (held.row.version.to_string(), held.withdrawn.is_some(), held.removing.is_some(), held.pin)
        })
        .collect()
}

on_every_back_end! {
    async fn a_release_is_withdrawn_brought_back_and_removed(world: World) {
        let (os, one) = (name("os"), name("1"));
        let first = pushed(world, "1", 40).await;
        let marked = world.db.mark_withdrawn(&os, &one, NOW).await.expect("marked");
        assert!(matches!(&marked, Withdraw::Marked(row) if row.manifest == first.manifest));
        assert_eq!(world.db.release(&os, &one).await.expect("asked"), None);
        assert_eq!(world.db.every_release().await.expect("read").len(), 1);
        assert_eq!(world.db.manifests_named(&[first.manifest]).await.expect("asked"), [true]);
        assert_eq!(world.db.manifests_released(&[first.manifest]).await.expect("asked"), [false]);
        assert_eq!(world.db.oldest_removal().await.expect("asked"), None);
        // Its version cannot be pushed, whether an upload begins or is to be committed.
        let again = world.ingest.begin_upload(&os, &one, &Publisher::unbound("ci"), NOW).await;
        assert!(matches!(again, Err(IngestError::Withdrawn { .. })), "{again:?}");
        let back = world.db.bring_back(&os, &one, NOW).await.expect("asked").expect("a release");
        assert_eq!(back.sequence, first.release.sequence);
        assert_eq!(world.db.bring_back(&os, &one, NOW).await.expect("asked"), None);
        assert_eq!(states(world).await, [("1".to_owned(), false, false, None)]);

        // A removal that has begun can be taken back, and then takes nothing.
        world.db.mark_removing(&os, &one, Unless::Running, NOW).await.expect("marked");
        assert_eq!(world.db.oldest_removal().await.expect("asked"), Some(NOW));
        assert_eq!(world.db.removing(NOW - 1).await.expect("read"), []);
        let leaving = Leaving { releases: world.db.removing(NOW).await.expect("read"), sets: Vec::new() };
        world.db.bring_back(&os, &one, NOW).await.expect("asked").expect("a release");
        let mut tx = world.db.begin_removal(leaving.clone()).await.expect("begun");
        let division = tx.divide().await.expect("divided");
        assert!(division.unneeded.is_empty() && division.needed.contains(&first.manifest));
        assert_eq!(tx.finish(&[]).await.expect("finished"), [""; 0]);
        assert_eq!(states(world).await.len(), 1);
        assert!(world.db.pin_release(&os, &one, "why", "ci", NOW).await.expect("asked"));
        let pinned = world.db.mark_removing(&os, &one, Unless::Used, NOW).await.expect("asked");
        assert_eq!(pinned, Withdraw::Pinned("why".to_owned()));
        assert_eq!(states(world).await, [("1".to_owned(), false, false, Some("why".to_owned()))]);
        assert!(world.db.unpin_release(&os, &one, NOW).await.expect("asked"));
        assert!(!world.db.unpin_release(&os, &one, NOW).await.expect("asked"));
        let none = world.db.mark_withdrawn(&os, &name("9"), NOW).await.expect("asked");
        assert_eq!(none, Withdraw::Unknown);
    }

    async fn a_removal_keeps_what_withdrawn_releases_and_other_removals_share(world: World) {
        let os = name("os");
        let shared = noise(41, 150_000);
        let of = |seed: u64| artifact([shared.clone(), noise(seed, 60_000)].concat());
        for (version, seed) in [("1", 42), ("2", 43), ("3", 44)] {
            push(&world.ingest, version, &of(seed)).await.expect("push");
        }
        // 2 is withdrawn; the removal of 3 has begun and is not over.
        world.db.mark_withdrawn(&os, &name("2"), NOW).await.expect("marked");
        world.db.mark_removing(&os, &name("3"), Unless::Used, NOW + 9).await.expect("marked");
        let chosen = [(os.clone(), name("1")), (os.clone(), name("8"))];
        let marked = world.db.mark_all_removing(&chosen, NOW).await.expect("marked");
        assert_eq!(marked.len(), 1);
        let leaving = Leaving { releases: marked.clone(), sets: Vec::new() };
        let mut tx = world.db.begin_removal(leaving).await.expect("begun");
        let division = tx.divide().await.expect("divided");
        assert_eq!((division.unneeded.len(), division.needed.len()), (1, 2));
        let chunks = async |id| world.ingest.manifest_chunks(id).await.expect("read").expect("there");
        let mut free = chunks(&marked[0].manifest).await;
        for manifest in &division.needed {
            free = free.difference(&chunks(manifest).await);
        }
        assert!(!free.is_empty());
        tx.finish(&free.ids().collect::<Vec<_>>()).await.expect("finished");
        let rows = world.db.every_release().await.expect("read");
        assert_eq!(rows.len(), 2);
        for row in rows {
            read_back(world, &row.manifest).await;
        }
        assert!(world.ingest.look_for_losses().await.expect("looked").is_empty());
        let swept = world.ingest.sweep_orphans(SweepScope::Shared, i64::MAX / 2).await.expect("swept");
        assert_eq!(swept.manifests, 1, "that of the release that is gone, and no other");
    }

    async fn a_patch_set_goes_alone_and_with_its_release(world: World) {
        let (one, two) = (pushed(world, "1", 45).await, pushed(world, "2", 46).await);
        let (set, made) = world.db.queue_patch_set(&one.release, &two.release, "ci", NOW).await.expect("queued");
        assert!(made);
        let key: PatchSetKey = set.key.clone();
        // Only a set that is ready is marked.
        world.db.mark_sets_removing(std::slice::from_ref(&key), NOW).await.expect("asked");
        assert_eq!(world.db.sets_removing(i64::MAX).await.expect("read"), []);
        let kind = distd_server::db::SetKind::Pair;
        world.db.take_patch_set(kind, &Default::default(), NOW).await.expect("taken").expect("a set");
        let tx = world.db.begin_patch_set(NOW).await.expect("begun");
        let done = distd_server::db::MadeSet { set: Some(distd_core::ManifestId([9; 32])), ..Default::default() };
        assert!(tx.finish(&key, &Default::default(), &done).await.expect("finished"));
        assert_eq!(world.db.sets_ready().await.expect("read").len(), 1);
        world.db.mark_sets_removing(std::slice::from_ref(&key), NOW).await.expect("marked");
        assert_eq!(world.db.patch_sets_usable(&name("os"), 9).await.expect("read"), []);
        assert_eq!(world.db.oldest_removal().await.expect("asked"), Some(NOW));
        // Asked for again, it stays.
        let (set, changed) = world.db.queue_patch_set(&one.release, &two.release, "ci", NOW).await.expect("queued");
        assert!(changed && set.set.is_some());
        assert_eq!(world.db.patch_sets_usable(&name("os"), 9).await.expect("read").len(), 1);
        world.db.mark_sets_removing(std::slice::from_ref(&key), NOW).await.expect("marked");
        let leaving = Leaving { releases: Vec::new(), sets: vec![key.clone()] };
        let mut tx = world.db.begin_removal(leaving).await.expect("begun");
        let division = tx.divide().await.expect("divided");
        assert_eq!(division.unneeded.into_iter().collect::<Vec<_>>(), [distd_core::ManifestId([9; 32])]);
        // Asked for while the removal holds the lock, it is made again.
        let wanted = async { world.db.queue_patch_set(&one.release, &two.release, "ci", NOW).await };
        let mut wanted = std::pin::pin!(wanted);
        let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut wanted).await;
        assert!(early.is_err(), "it waits for the removal: {early:?}");
        let (objects, wanted) = tokio::join!(tx.finish(&[]), wanted);
        assert_eq!(objects.expect("finished"), [""; 0]);
        let (set, changed) = wanted.expect("queued");
        assert!(changed && set.set.is_none(), "{set:?}");
        world.db.mark_removing(&name("os"), &name("2"), Unless::Used, NOW).await.expect("marked");
        let leaving = Leaving { releases: world.db.removing(NOW).await.expect("read"), sets: Vec::new() };
        world.db.begin_removal(leaving).await.expect("begun").finish(&[]).await.expect("finished");
        assert_eq!(world.db.patch_set(&key).await.expect("read"), None);
        let two = pushed(world, "3", 46).await;
        let key = PatchSetKey { to: two.manifest, ..key };
        // Queued ones go with their release.
        world.db.queue_patch_set(&one.release, &two.release, "ci", NOW).await.expect("queued");
        world.db.mark_removing(&name("os"), &name("1"), Unless::Used, NOW).await.expect("marked");
        let leaving = Leaving { releases: world.db.removing(NOW).await.expect("read"), sets: Vec::new() };
        world.db.begin_removal(leaving).await.expect("begun").finish(&[]).await.expect("finished");
        assert_eq!(world.db.patch_set(&key).await.expect("read"), None);
    }

    async fn policies_and_quotas_are_stored_and_read_back(world: World) {
        let os = name("os");
        let retention = Retention { keep: Some(3), days: None, may_empty: true };
        assert!(!world.db.set_retention(&os, Some(retention), NOW).await.expect("asked"), "no product");
        let first = pushed(world, "1", 47).await;
        assert!(world.db.set_retention(&os, Some(retention), NOW).await.expect("set"));
        let later = Retention { keep: None, days: Some(9), may_empty: false };
        assert!(world.db.set_retention(&os, Some(later), NOW).await.expect("set"));
        assert_eq!(world.db.retentions().await.expect("read").get(&os), Some(&later));
        assert!(world.db.set_retention(&os, None, NOW).await.expect("removed"));
        assert!(!world.db.set_retention(&os, None, NOW).await.expect("asked"));
        assert!(world.db.retentions().await.expect("read").is_empty());
        assert_eq!(world.db.last_collection().await.expect("read"), 0);
        world.db.note_collection(NOW).await.expect("noted");
        assert_eq!(world.db.last_collection().await.expect("read"), NOW);

        let by = Publisher::unbound("ci").token;
        let (product, token) = (QuotaOf::Product(os.clone()), QuotaOf::Token(by.clone()));
        world.db.set_quota(&product, Some(100_000), Some(120_000), NOW).await.expect("set");
        world.db.set_quota(&token, None, Some(95_000), NOW).await.expect("set");
        let quotas = world.db.quotas().await.expect("read");
        assert_eq!((&quotas[0].of, &quotas[1].of), (&product, &token));
        assert_eq!((quotas[0].released, quotas[1].released), (90_000, 90_000));
        assert!((90_000..92_000).contains(&quotas[0].stored), "{quotas:?}");
        let over = async |stored, released| {
            let over = world.db.over_quota(&os, &by, stored, released).await.expect("asked");
            over.map(|over| (over.of.kind(), over.what, over.max, over.more))
        };
        assert_eq!(over(5000, 5000).await, None);
        assert_eq!(over(20_000, 0).await, Some(("product", "new chunks", 100_000, 20_000)));
        assert_eq!(over(0, 10_000).await, Some(("token", "releases", 95_000, 10_000)));
        // An open upload counts, and at the commit the release is refused.
        let two = artifact(noise(48, 60_000));
        let upload = begin(&world.ingest, "2").await;
        let refused = world.ingest.put_chunks(&upload, two.chunks.clone(), NOW).await;
        assert!(matches!(refused, Err(IngestError::OverQuota(_))), "{refused:?}");
        world.db.set_quota(&product, None, Some(120_000), NOW).await.expect("set");
        world.ingest.put_chunks(&upload, two.chunks.clone(), NOW).await.expect("stored");
        let quotas = world.db.quotas().await.expect("read");
        assert!(quotas[0].stored > 150_000, "{quotas:?}");
        let refused = world.ingest.commit(&upload, two.request.clone(), "ci", NOW).await;
        assert!(matches!(refused, Err(IngestError::OverQuota(_))), "{refused:?}");
        for of in [&product, &token] {
            assert!(world.db.set_quota(of, None, None, NOW).await.expect("removed"));
        }
        assert!(!world.db.set_quota(&token, None, None, NOW).await.expect("asked"));
        world.ingest.commit(&upload, two.request.clone(), "ci", NOW).await.expect("committed");
        assert_eq!(first.release.bytes, 90_000);
    }

    async fn what_nodes_and_channels_use_is_counted(world: World) {
        realm(world).await;
        let os = name("os");
        let of = |version: &str| (os.clone(), name(version));
        let uses = world.db.uses().await.expect("read");
        assert!(uses.running.is_empty() && uses.rollouts.is_empty() && uses.pinned_nodes.is_empty());
        assert_eq!(uses.left.into_iter().collect::<Vec<_>>(), [(of("1"), NOW)], "the channel left it");
        let device = node(world, "1").await;
        report(world, &device, 1, &running("stable", Some("1"), None), None, NOW).await;
        world.db.pin_node(&device.to_string(), &os, &name("3")).await.expect("pinned");
        let uses = world.db.uses().await.expect("read");
        assert_eq!(uses.running.into_iter().collect::<Vec<_>>(), [(of("1"), 1)]);
        assert_eq!(uses.pinned_nodes.into_iter().collect::<Vec<_>>(), [(of("3"), 1)]);
        for version in ["1", "3"] {
            let refused = world.db.mark_removing(&os, &name(version), Unless::Running, NOW).await;
            assert_eq!(refused.expect("asked"), Withdraw::Running(1), "{version}");
        }
        begun(world, 1, "3").await;
        let uses = world.db.uses().await.expect("read");
        let channels: Vec<_> = uses.rollouts.keys().map(|(_, version)| version.to_string()).collect();
        assert_eq!(channels, ["1", "2", "3"], "required, begun at, brought");
        let refused = world.db.mark_removing(&os, &name("3"), Unless::Used, NOW).await.expect("asked");
        assert_eq!(refused, Withdraw::InUse(vec![name("stable")]));
        let usage = world.db.pack_usage().await.expect("summed");
        assert!(usage.live <= usage.bytes && usage.dead() < 1000, "{usage:?}");
    }
}
