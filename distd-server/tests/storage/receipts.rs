//! The log of receipts in the database: it grows, and nothing else.

use distd_core::NodeId;
use distd_core::fleet::receipts::{
    Entry, LogId, Receipt, RestartEvent, SignedReceipt, TreeHash, consistency, extends, includes, inclusion,
    leaf_hash, node_of_key, root, subtrees_for,
};
use distd_core::fleet::report::{HeadSeen, LogReport, Report};
use distd_server::db::{PutReport, RECEIPTS_PER_DAY_MAX};
use sqlx::{AnyPool, AssertSqlSafe};

use super::*;

const KEY: [u8; 32] = [7; 32];

fn receipt(number: u64) -> SignedReceipt {
    let receipt = Receipt {
        number,
        at: 1,
        boot: [1; 16],
        manifest: None,
        rollout: None,
        wave: 0,
        product: name("os"),
        version: name("1"),
        slot: None,
    };
    SignedReceipt { key: KEY, signature: [2; 64], receipt }
}

/// Enrols a node.
async fn known(world: &World, node: &NodeId) {
    let token = join_token("ab", 99);
    // The token or the node may be there already.
    let _ = world.db.put_join_token(&token, &LabelMap::new()).await;
    let (id, key) = (node.to_string(), node.0.repeat(2));
    let wanted = Enrolment {
        token: &token.public_key,
        node: &id,
        public_key: &key,
        role: "leaf",
        label: "x",
        now: NOW,
    };
    let _ = world.db.enrol(&wanted).await;
}

async fn report(world: &World, sequence: u64, receipts: Vec<SignedReceipt>, now: i64) -> PutReport {
    let head = Some(HeadSeen { size: sequence, at: 9 });
    let log = LogReport { head, fault: "x".into(), hidden: 1, ..LogReport::default() };
    let report = Report { sequence, boot: vec![3; 16], log, ..Report::default() };
    known(world, &node_of_key(&KEY)).await;
    let put = world.db.put_report_with(&node_of_key(&KEY), &report, &[], &[], receipts, now).await;
    put.expect("recorded")
}

async fn root_of(world: &World, size: u64) -> TreeHash {
    let hashes = world.db.log_hashes(&subtrees_for(|hashes| root(size, hashes))).await.expect("hashes");
    root(size, &mut |at| hashes[&at])
}

/// Changes the database without distd.
async fn tamper(world: &World, sql: &str) -> Result<(), sqlx::Error> {
    let pool = AnyPool::connect(&world.address.replace("sqlite:/", "sqlite:///")).await.expect("connects");
    let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&pool).await;
    pool.close().await;
    done.map(drop)
}

on_every_back_end! {
    async fn the_log_of_each_size_is_the_beginning_of_the_next(world: World) {
        let (mut leaves, mut roots) = (Vec::new(), vec![root_of(world, 0).await]);
        for number in 1..=20 {
            assert_eq!(report(world, number, vec![receipt(number)], NOW).await, PutReport::Recorded);
            leaves.push(receipt(number).leaf());
            roots.push(root_of(world, number).await);
            assert_eq!(world.db.log_size().await.expect("size"), number);
            for old in 0..=number {
                let asked = subtrees_for(|hashes| consistency(old, number, hashes));
                let hashes = world.db.log_hashes(&asked).await.expect("hashes");
                let proof = consistency(old, number, &mut |at| hashes[&at]);
                let roots = ((old, &roots[old as usize]), (number, &roots[number as usize]));
                assert!(extends(roots.0, roots.1, &proof), "{old} to {number}");
            }
        }
        for (number, leaf) in (0..).zip(&leaves) {
            assert_eq!(world.db.log_number(leaf).await.expect("asked"), Some(number));
            let hashes = world.db.log_hashes(&subtrees_for(|hashes| inclusion(number, 20, hashes))).await.expect("hashes");
            let proof = inclusion(number, 20, &mut |at| hashes[&at]);
            assert!(includes(*leaf, number, 20, &roots[20], &proof));
        }
        assert_eq!(world.db.log_number(&leaf_hash(b"x")).await.expect("asked"), None);
        let page = world.db.log_entries(18, 10).await.expect("entries");
        assert_eq!(page.iter().map(|row| row.number).collect::<Vec<_>>(), [18, 19]);
        assert_eq!(page[1].entry, receipt(20).entry());
        let about = node_of_key(&KEY).to_string();
        let last = world.db.last_log_entry("receipt", &about).await.expect("asked").expect("one");
        assert_eq!(last.number, 19);
        let seen = world.db.node_log(&about).await.expect("asked").expect("one");
        assert_eq!((seen.size, seen.fault.as_str(), seen.hidden), (20, "x", 1));
    }

    async fn a_receipt_twice_is_one_entry_and_a_node_has_its_bounds(world: World) {
        report(world, 1, vec![receipt(1), receipt(1), receipt(2)], NOW).await;
        report(world, 2, vec![receipt(2), receipt(3)], NOW).await;
        assert_eq!(world.db.log_size().await.expect("size"), 3);
        // A report that is known brings nothing.
        assert_eq!(report(world, 2, vec![receipt(4)], NOW).await, PutReport::Known);
        assert_eq!(world.db.log_size().await.expect("size"), 3);
        report(world, 3, (4..200).map(receipt).collect(), NOW).await;
        assert_eq!(world.db.log_size().await.expect("size"), RECEIPTS_PER_DAY_MAX);
        report(world, 4, vec![receipt(200)], NOW + 24 * 3600 - 1).await;
        assert_eq!(world.db.log_size().await.expect("size"), RECEIPTS_PER_DAY_MAX);
        report(world, 5, vec![receipt(200)], NOW + 24 * 3600).await;
        assert_eq!(world.db.log_size().await.expect("size"), RECEIPTS_PER_DAY_MAX + 1);
    }

    async fn the_database_refuses_to_change_or_delete_entries(world: World) {
        report(world, 1, vec![receipt(1), receipt(2)], NOW).await;
        let id = world.db.log_id(LogId([1; 16]), NOW).await.expect("an id");
        for sql in [
            "UPDATE receipt_log SET at = 0 WHERE number = 0",
            "DELETE FROM receipt_log WHERE number = 1",
            "UPDATE receipt_tree SET place = 9",
            "DELETE FROM receipt_tree",
            "UPDATE receipt_logs SET began = 0",
            "DELETE FROM receipt_logs",
        ] {
            let error = tamper(world, sql).await.expect_err(sql).to_string();
            assert!(error.contains("only added to"), "{sql}: {error}");
        }
        assert_eq!(world.db.log_id(LogId([2; 16]), NOW).await.expect("an id"), id);
    }

    async fn a_log_continues_under_another_id(world: World) {
        let first = world.db.log_id(LogId([1; 16]), NOW).await.expect("an id");
        report(world, 1, vec![receipt(1)], NOW).await;
        let event = Entry::Restart(RestartEvent { at: 1, log: "00".into(), before: String::new() });
        let second = LogId([2; 16]);
        world.db.restart_log(second, &event, NOW).await.expect("continued");
        assert_eq!(world.db.log_id(LogId([3; 16]), NOW).await.expect("an id"), second);
        assert!(world.db.had_log_id(&first, &second).await.expect("asked"));
        assert!(!world.db.had_log_id(&second, &second).await.expect("asked"));
        assert!(!world.db.had_log_id(&LogId([9; 16]), &second).await.expect("asked"));
        assert_eq!(world.db.log_size().await.expect("size"), 2);
    }

    async fn reports_at_once_make_one_log(world: World) {
        for n in 1..=8_u8 {
            known(world, &node_of_key(&[n; 32])).await;
        }
        let reports = (1..=8_u8).map(|n| {
            let signed = SignedReceipt { key: [n; 32], ..receipt(1) };
            let node: NodeId = signed.node();
            let report = Report { sequence: 1, boot: vec![3; 16], ..Report::default() };
            async move { world.db.put_report_with(&node, &report, &[], &[], vec![signed], NOW).await }
        });
        assert!(join_all(reports).await.into_iter().all(|done| done.is_ok()));
        assert_eq!(world.db.log_size().await.expect("size"), 8);
        let entries = world.db.log_entries(0, 10).await.expect("entries");
        let leaves: Vec<_> = entries.iter().map(|row| leaf_hash(&row.entry)).collect();
        let mut hash = |at: distd_core::fleet::receipts::Subtree| {
            let start = (at.place as usize) << at.level;
            let mut level = leaves[start..start + (1 << at.level)].to_vec();
            while level.len() > 1 {
                level = level.chunks(2).map(|two| distd_core::fleet::receipts::node_hash(&two[0], &two[1])).collect();
            }
            level[0]
        };
        assert_eq!(root_of(world, 8).await, root(8, &mut hash));
    }
}
