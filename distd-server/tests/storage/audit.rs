//! The audit log in the database: acts and entries are one, and a changed log is found.

use distd_core::fleet::audit::{AuditChain, AuditFault, AuditHead};
use distd_server::db::{Actor, AuditFilter, AuditRange};
use sqlx::{AnyPool, AssertSqlSafe};

use super::*;

/// Changes the database without distd.
async fn tamper(world: &World, sql: &str) {
    let pool = AnyPool::connect(&world.address.replace("sqlite:/", "sqlite:///")).await.expect("connects");
    sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&pool).await.expect("done");
    pool.close().await;
}

async fn entries(world: &World, filter: &AuditFilter) -> Vec<(u64, String, String, String)> {
    let found = world.db.audit_entries(filter, AuditRange::After(0), 1000).await.expect("list");
    found.into_iter().map(|entry| (entry.number, entry.actor, entry.action, entry.subject)).collect()
}

async fn check(world: &World) -> Result<AuditHead, AuditFault> {
    world.db.check_audit().await.expect("read")
}

fn by() -> MoveBy {
    MoveBy { token: "ab".into(), label: "me".into() }
}

/// Makes some acts: a join token, an enrolment, labels, a revocation.
async fn acts(world: &World) {
    let token = join_token("ab", 9);
    let db = world.db.acting(&by(), NOW);
    db.put_join_token(&token, &LabelMap::new()).await.expect("put");
    enrol(world, &token, "a", NOW + 1).await;
    let site = [("site".parse().expect("a key"), "1".parse().expect("a value"))].into();
    db.change_labels(&node_id("a"), &site, &BTreeSet::new()).await.expect("changed");
    db.revoke_node(&node_id("a"), NOW + 2).await.expect("revoked");
}

on_every_back_end! {
    async fn each_act_is_an_entry_with_the_one_who_acts(world: World) {
        assert_eq!(check(world).await.expect("an empty log").number, 0);
        acts(world).await;
        push(&world.ingest, "1", &artifact(noise(1, 20_000))).await.expect("push");
        let wanted = ChannelMove {
            product: &name("os"), channel: &name("stable"), version: &name("1"), downgrade: false,
        };
        world.db.set_channel(wanted, &by(), NOW).await.expect("set");
        let (token, a) = ("abababababababab", node_id("a"));
        let expected = [
            ("token ab", "join-token.make", token),
            ("join token abababababababab", "node.enrol", &a),
            ("token ab", "node.label", &a),
            ("token ab", "node.revoke", &a),
            ("origin", "product.set", "os"),
            ("token ci", "release.publish", "os@1"),
            ("token ab", "channel.set", "os:stable"),
        ];
        let expected: Vec<_> = (1..).zip(expected).map(|(n, (actor, action, subject))| {
            (n, actor.to_owned(), action.to_owned(), subject.to_owned())
        }).collect();
        assert_eq!(entries(world, &AuditFilter::default()).await, expected);
        assert_eq!(check(world).await.expect("a whole log").number, 7);
        // An act that changes nothing leaves none.
        world.db.set_channel(wanted, &by(), NOW).await.expect("asked");
        world.db.acting(&by(), NOW).revoke_node(&node_id("nobody"), NOW).await.expect("asked");
        assert_eq!(check(world).await.expect("a whole log").number, 7);
        // The time is that of the act; filters.
        let numbers = async |filter: AuditFilter| {
            entries(world, &filter).await.into_iter().map(|entry| entry.0).collect::<Vec<_>>()
        };
        let all = AuditFilter::default;
        assert_eq!(numbers(AuditFilter { since: Some(NOW + 1), ..all() }).await, [2, 4]);
        assert_eq!(numbers(AuditFilter { actor: Some("me".into()), ..all() }).await, [1, 3, 4, 7]);
        assert_eq!(numbers(AuditFilter { actor: Some("origin".into()), ..all() }).await, [5]);
        assert_eq!(numbers(AuditFilter { action: Some("node".into()), ..all() }).await, [2, 3, 4]);
        assert_eq!(numbers(AuditFilter { action: Some("node.label".into()), ..all() }).await, [3]);
        assert!(numbers(AuditFilter { action: Some("nod".into()), ..all() }).await.is_empty());
        assert_eq!(numbers(AuditFilter { subject: Some("os@1".into()), ..all() }).await, [6]);
        let newest = world.db.audit_entries(&all(), AuditRange::Before(None), 2).await.expect("list");
        assert_eq!(newest.iter().map(|entry| entry.number).collect::<Vec<_>>(), [7, 6]);
        let older = world.db.audit_entries(&all(), AuditRange::Before(Some(6)), 1).await.expect("list");
        assert_eq!(older[0].number, 5);
    }

    async fn a_changed_entry_is_found(world: World) {
        acts(world).await;
        tamper(world, "UPDATE audit_log SET subject = 'nobody' WHERE number = 3").await;
        assert_eq!(check(world).await, Err(AuditFault::Changed(3)));
    }

    async fn an_entry_that_is_taken_out_is_found(world: World) {
        acts(world).await;
        tamper(world, "DELETE FROM audit_log WHERE number = 2").await;
        assert_eq!(check(world).await, Err(AuditFault::Missing(2)));
    }

    async fn an_end_that_is_cut_off_is_found(world: World) {
        acts(world).await;
        let head = check(world).await.expect("a whole log");
        tamper(world, "DELETE FROM audit_log WHERE number > 2").await;
        assert_eq!(check(world).await, Err(AuditFault::Truncated(4)));
        // The next act goes on with the next number.
        world.db.acting(Actor::operator(), NOW).revoke_node(&node_id("a"), NOW).await.expect("revoked");
        assert_eq!(check(world).await, Err(AuditFault::Missing(3)));
        // The number set back, too: a noted head shows it.
        tamper(world, "DELETE FROM audit_log WHERE number > 2").await;
        tamper(world, "UPDATE counters SET value = 2 WHERE name = 'audit'").await;
        assert_eq!(check(world).await.expect("whole in itself").number, 2);
        let mut chain = AuditChain::begin(Some(head));
        for entry in world.db.audit_entries(&AuditFilter::default(), AuditRange::After(0), 9).await.expect("list") {
            chain.add(&entry.record(), entry.hash.parse().expect("a hash")).expect("whole in itself");
        }
        assert_eq!(chain.end(), Err(AuditFault::Truncated(4)));
    }

    async fn acts_at_once_make_one_chain(world: World) {
        let tokens: Vec<_> = ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"].map(|key| join_token(key, 1)).into();
        let labels = LabelMap::new();
        let all = tokens.iter().map(|token| world.db.put_join_token(token, &labels));
        assert!(join_all(all).await.into_iter().all(|done| done.is_ok()));
        assert_eq!(check(world).await.expect("a whole log").number, 8);
    }
}
