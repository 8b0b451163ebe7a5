//! Files of releases, and devices of hawkBit's DDI, in the database.

use distd_core::NodeId;
use distd_core::fleet::LabelMap;
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::RolloutId;
use distd_server::db::{
    AdmitDdi, DdiState, DdiTokenRow, FileDigests, FileSignature, NewDdiAction, PutDdiToken,
};

use super::rollouts::{attempt, begun, realm, report, running};
use super::*;

fn token(secret: u8, controller: Option<&str>, admits: u64) -> DdiTokenRow {
    DdiTokenRow {
        secret_sha256: [secret; 32],
        controller: controller.map(str::to_owned),
        product: name("os"),
        channel: name("stable"),
        label: "a token".to_owned(),
        labels: LabelMap::from_iter([("site".parse().expect("a key"), "12".parse().expect("a value"))]),
        admits,
        created: NOW,
        expires: Some(NOW + 10),
        revoked: None,
    }
}

on_every_back_end! {
    async fn digests_and_signatures_of_files_go_with_their_release(world: World) {
        realm(world).await;
        let (os, three, db) = (name("os"), name("3"), &world.db);
        let digests = FileDigests { sha256: [1; 32], sha1: [2; 20], md5: [3; 16] };
        assert_eq!(db.file_digests(&os, &three).await.expect("asked"), None);
        db.put_file_digests(&os, &three, &digests).await.expect("put");
        let other = FileDigests { sha256: [9; 32], ..digests };
        db.put_file_digests(&os, &three, &other).await.expect("the first ones stay");
        assert_eq!(db.file_digests(&os, &three).await.expect("asked"), Some(digests));
        assert_eq!(db.file_signature(&os, &three).await.expect("asked"), None);
        for signature in [vec![1], vec![2, 3]] {
            let signed = FileSignature { name: "os_3".to_owned(), signed_by: vec![4; 20], signature };
            db.put_file_signature(&os, &three, &signed).await.expect("put");
            assert_eq!(db.file_signature(&os, &three).await.expect("asked"), Some(signed));
        }
        assert!(db.put_file_digests(&os, &name("none"), &digests).await.is_err(), "no such release");
        let marked = db.mark_removing(&os, &three, Unless::Used, NOW).await.expect("asked");
        let Withdraw::Marked(release) = marked else { panic!("a release") };
        let leaving = Leaving { releases: vec![release], sets: Vec::new() };
        db.begin_removal(leaving).await.expect("begins").finish(&[]).await.expect("removed");
        assert_eq!(db.file_digests(&os, &three).await.expect("asked"), None);
    }

    async fn a_file_name_counts_as_a_change_of_each_channel(world: World) {
        realm(world).await;
        let (os, db) = (name("os"), &world.db);
        let counter = async || db.channel(&os, &name("stable")).await.expect("asked").expect("there").counter;
        let before = counter().await;
        let pattern = "os_@v.erofs".parse().expect("a pattern");
        for _ in 0..2 {
            assert!(db.set_file_name(&os, Some(&pattern), NOW).await.expect("set"));
            assert_eq!(counter().await, before + 1);
        }
        assert_eq!(db.product(&os).await.expect("asked").expect("there").file_name.as_ref(), Some(&pattern));
        assert!(!db.set_file_name(&name("none"), Some(&pattern), NOW).await.expect("asked"));
        db.take_over_file_name(&os, &"x@v".parse().expect("a pattern")).await.expect("asked");
        assert_eq!(db.product(&os).await.expect("asked").expect("there").file_name.as_ref(), Some(&pattern));
        assert!(db.set_file_name(&os, None, NOW).await.expect("removed"));
        assert_eq!(counter().await, before + 2);
    }

    async fn tokens_let_devices_in_as_often_as_they_allow(world: World) {
        realm(world).await;
        let (db, node) = (&world.db, |n: u8| NodeId([n; 16]));
        let unknown = DdiTokenRow { channel: name("none"), ..token(1, None, 1) };
        assert_eq!(db.put_ddi_token(&unknown, &node(1)).await.expect("asked"), PutDdiToken::UnknownChannel);
        let gateway = token(1, None, 1);
        assert_eq!(db.put_ddi_token(&gateway, &node(1)).await.expect("put"), PutDdiToken::Made(None));
        assert_eq!(db.ddi_token(&[1; 32]).await.expect("asked"), Some(gateway.clone()));
        assert!(gateway.is_valid(NOW + 10) && !gateway.is_valid(NOW + 11));
        // Of several requests at once one makes the node.
        let admitted = join_all((10..14).map(|n| async move {
            db.admit_ddi(&token(1, None, 1), "till", &NodeId([n; 16]), NOW).await.expect("asked")
        }));
        let admitted = admitted.await;
        let device = admitted.iter().find_map(|outcome| match outcome {
            AdmitDdi::Admitted(device) => Some(device.clone()),
            AdmitDdi::UsedUp => None,
        });
        let device = device.expect("let in");
        for outcome in &admitted {
            assert_eq!(*outcome, AdmitDdi::Admitted(device.clone()));
        }
        let other = db.admit_ddi(&gateway, "other", &node(20), NOW).await.expect("asked");
        assert_eq!(other, AdmitDdi::UsedUp);
        assert_eq!(db.ddi_token(&[1; 32]).await.expect("asked").expect("there").admits, 0);
        let member = db.member(&device.node.to_string()).await.expect("asked").expect("a node");
        assert_eq!(member.member.labels.token, token(1, None, 1).labels);
        assert!(!device.by_target && device.installed.is_none());
        // A target token takes the device over, and a revoked one gets another node.
        let PutDdiToken::Made(Some(same)) = db.put_ddi_token(&token(2, Some("till"), 0), &node(30)).await.expect("put")
        else { panic!("a device") };
        assert_eq!((same.node, same.by_target), (device.node, true));
        db.revoke_node(&device.node.to_string(), NOW).await.expect("revoked");
        let PutDdiToken::Made(Some(new)) = db.put_ddi_token(&token(3, Some("till"), 0), &node(31)).await.expect("put")
        else { panic!("a device") };
        assert_eq!((new.node, new.revoked), (node(31), None));
        db.revoke_ddi_token(&[2; 32], NOW).await.expect("revoked");
        assert_eq!(db.ddi_token(&[2; 32]).await.expect("asked").expect("there").revoked, Some(NOW));
        assert_eq!(db.ddi_tokens().await.expect("list").len(), 3);
    }

    async fn a_device_has_one_open_action(world: World) {
        realm(world).await;
        begun(world, 1, "3").await;
        let (db, node) = (&world.db, NodeId([7; 16]));
        db.put_ddi_token(&token(1, Some("till"), 0), &node).await.expect("put");
        let (os, three, rollout) = (name("os"), name("3"), RolloutId([1; 16]));
        let new = NewDdiAction {
            node: &node, product: &os, version: &three, rollout: Some(&rollout), number: 1, state: DdiState::Offered,
        };
        assert_eq!(db.open_ddi_action(&node).await.expect("asked"), None);
        let first = db.begin_ddi_action(&new, NOW).await.expect("made");
        assert_eq!(db.begin_ddi_action(&new, NOW).await.expect("the same"), first);
        assert_eq!((first.began, first.bytes, first.rollout), (None, 0, Some(rollout)));
        assert!(db.move_ddi_action(&first, DdiState::Fetching, NOW + 1).await.expect("moved"));
        assert!(!db.move_ddi_action(&first, DdiState::Fetching, NOW + 2).await.expect("too late"));
        db.add_ddi_bytes(first.id, 5).await.expect("counted");
        db.add_ddi_bytes(first.id, 6).await.expect("counted");
        let seen = db.ddi_action(&node, first.id).await.expect("asked").expect("there");
        assert_eq!((seen.began, seen.bytes, seen.state), (Some(NOW + 1), 11, DdiState::Fetching));
        assert_eq!(db.ddi_action(&NodeId([8; 16]), first.id).await.expect("asked"), None, "of another device");
        assert_eq!(db.ddi_action(&node, u64::MAX).await.expect("asked"), None);
        assert!(db.move_ddi_action(&seen, DdiState::Canceling, NOW).await.expect("moved"));
        let seen = db.open_ddi_action(&node).await.expect("asked").expect("open");
        assert!(db.move_ddi_action(&seen, DdiState::Fetching, NOW).await.expect("goes on"));
        let seen = db.open_ddi_action(&node).await.expect("asked").expect("open");
        assert!(seen.uncancelable && seen.began == Some(NOW + 1));
        // Ended ones are kept for a while.
        for _ in 0..20 {
            let open = db.begin_ddi_action(&new, NOW).await.expect("made");
            assert!(db.move_ddi_action(&open, DdiState::Failed, NOW).await.expect("moved"));
        }
        let newest = db.newest_ddi_action(&node).await.expect("asked").expect("there");
        assert_eq!(newest.state, DdiState::Failed);
        assert_eq!(db.ddi_action(&node, first.id).await.expect("asked"), None);

        // Reports in the device's name.
        assert_eq!(db.next_ddi_report(&node).await.expect("counted"), 1);
        assert_eq!(db.next_ddi_report(&node).await.expect("counted"), 2);
        assert_eq!(db.newest_attempt(&rollout, &node).await.expect("asked"), None);
        report(world, &node, 2, &running("stable", None, None), Some(&attempt(1, AttemptState::Fetching)), NOW).await;
        let found = db.newest_attempt(&rollout, &node).await.expect("asked");
        assert_eq!(found, Some((AttemptState::Fetching, 1)));
        db.note_progress(&rollout, &node, "7%", NOW).await.expect("noted");
        let detail = async || db.attempts_of_node(&node.to_string()).await.expect("list")[0].attempt.detail.clone();
        assert_eq!(detail().await, "7%");
        report(world, &node, 3, &running("stable", None, None), Some(&attempt(1, AttemptState::Failed)), NOW).await;
        db.note_progress(&rollout, &node, "late", NOW).await.expect("noted");
        assert_eq!(detail().await, "exit 1");
        db.set_ddi_installed(&node, Some(&name("2")), Some((&three, 9))).await.expect("set");
        db.set_ddi_auto_confirm(&node, true).await.expect("set");
        let facts = LabelMap::from_iter([("a".parse().expect("a key"), "1".parse().expect("a value"))]);
        for _ in 0..2 {
            db.put_ddi_facts(&node, &facts, NOW + 3).await.expect("put");
        }
        let device = db.ddi_device("till").await.expect("asked").expect("there");
        assert_eq!((device.installed, device.failed), (Some(name("2")), Some((three.clone(), 9))));
        assert_eq!((device.auto_confirm, device.attributes), (true, Some(NOW + 3)));
        let member = db.member(&node.to_string()).await.expect("asked").expect("a node");
        assert_eq!(member.member.labels.facts, facts);
    }
}
