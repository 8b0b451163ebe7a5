//! Rollouts and reports in the database.

use distd_core::NodeId;
use distd_core::api::Approval;
use distd_core::fleet::report::{
    Attempt, AttemptState, FailureKind, FailureNote, Report, Running, SourceBytes,
};
use distd_core::fleet::rollout::{
    AfterHalt, Conditions, GroupBudget, Held, Policy, Rate, RolloutId, Threshold, TurnAnswer,
};
use distd_core::names::Name;
use distd_server::db::{
    ApproveRollout, BeginRollout, Follower, HeldFrom, NewRollout, PinNode, PutReport, RolloutRow,
    RolloutStage, TurnAsker,
};

use super::*;

/// A product with the releases 1, 2 and 3, and the channel stable at release 2.
pub(super) async fn realm(world: &World) {
    for (seed, version) in ["1", "2", "3"].into_iter().enumerate() {
        push(&world.ingest, version, &artifact(noise(seed as u64, 20_000))).await.expect("push");
    }
    for version in ["1", "2"] {
        set(world, version).await;
    }
}

async fn set(world: &World, version: &str) {
    let wanted = ChannelMove {
        product: &name("os"),
        channel: &name("stable"),
        version: &name(version),
        downgrade: false,
    };
    world.db.set_channel(wanted, &MoveBy::origin(), NOW).await.expect("set");
}

fn by() -> MoveBy {
    MoveBy { token: "ab".into(), label: "me".into() }
}

async fn begin(world: &World, id: u8, channel: &str, version: &str) -> BeginRollout {
    let policy = Policy {
        after_halt: AfterHalt::Back,
        not_before: Some(9),
        selector: Some("site=12".parse().expect("a selector")),
        requires: vec![name("1"), name("2")],
        ..Policy::default()
    };
    let new = NewRollout {
        id: RolloutId([id; 16]),
        product: &name("os"),
        channel: &name(channel),
        version: &name(version),
        policy: &policy,
        waves: &[Threshold(1 << 63), Threshold(u64::MAX)],
    };
    world.db.begin_rollout(&new, &by(), NOW).await.expect("asked")
}

pub(super) async fn begun(world: &World, id: u8, version: &str) -> RolloutRow {
    match begin(world, id, "stable", version).await {
        BeginRollout::Begun(row) => *row,
        other => panic!("{other:?}"),
    }
}

async fn counter(world: &World) -> u64 {
    world.db.channel(&name("os"), &name("stable")).await.expect("asked").expect("the channel").counter
}

pub(super) async fn node(world: &World, label: &str) -> NodeId {
    let token = join_token(&format!("a{label}"), 99);
    world.db.put_join_token(&token, &LabelMap::new()).await.expect("put");
    enrol(world, &token, label, NOW).await;
    node_id(label).parse().expect("an id")
}

pub(super) fn running(channel: &str, version: Option<&str>, held: Option<Held>) -> Running {
    let (product, channel) = (name("os"), name(channel));
    Running { product, channel, version: version.map(name), manifest: None, held, held_from: None }
}

pub(super) fn attempt(number: u32, state: AttemptState) -> Attempt {
    let failed = matches!(state, AttemptState::Failed | AttemptState::RolledBack);
    Attempt {
        rollout: Some(RolloutId([1; 16])),
        product: name("os"),
        version: name("3"),
        number,
        state,
        failure: failed.then(|| FailureNote::new(FailureKind::Health, "exit 1")),
        began: u64::MAX,
        seconds: 5,
        bytes: SourceBytes { disk: 1, neighbours: 2, relay: 3, origin: u64::MAX },
    }
}

/// Records a report at `now`, with an attempt at the rollout 1.
pub(super) async fn report(
    world: &World,
    node: &NodeId,
    sequence: u64,
    runs: &Running,
    attempt: Option<&Attempt>,
    now: i64,
) -> PutReport {
    let report = Report { sequence, at: 7, boot: vec![3; 16], ..Report::default() };
    let attempts: Vec<_> = attempt.map(|attempt| (RolloutId([1; 16]), attempt)).into_iter().collect();
    world.db.put_report(node, &report, &[runs], &attempts, now).await.expect("recorded")
}

async fn followers(world: &World, since: i64) -> Vec<(NodeId, Option<Name>, Option<(AttemptState, u32)>)> {
    let rollout = RolloutId([1; 16]);
    let found = world.db.followers(&name("os"), &name("stable"), Some(&rollout), since).await.expect("list");
    let mut found: Vec<_> =
        found.into_iter().map(|Follower { node, version, attempt, .. }| (node, version, attempt)).collect();
    found.sort();
    found
}

on_every_back_end! {
    async fn a_channel_has_one_rollout_to_a_later_release(world: World) {
        realm(world).await;
        assert_eq!(begin(world, 1, "beta", "3").await, BeginRollout::UnknownChannel);
        assert_eq!(begin(world, 1, "stable", "9").await, BeginRollout::UnknownRelease);
        assert_eq!(begin(world, 1, "stable", "2").await, BeginRollout::Same);
        assert_eq!(begin(world, 1, "stable", "1").await, BeginRollout::Older);
        let before = counter(world).await;
        let row = begun(world, 1, "3").await;
        assert_eq!(counter(world).await, before + 1, "the channel's document has changed");
        assert_eq!((row.from.as_str(), row.stage), ("2", RolloutStage::Open));
        assert_eq!(begin(world, 2, "stable", "3").await, BeginRollout::UnderWay(Box::new(row.clone())));
        assert_eq!(world.db.rollout(&row.id).await.expect("asked"), Some(row.clone()));
        assert_eq!(world.db.rollouts_under_way().await.expect("list"), std::slice::from_ref(&row));
        // What devices are to know is signed after it is recorded.
        let channel = vec![(name("os"), name("stable"))];
        assert_eq!(world.db.rollouts_unsigned().await.expect("list"), channel);
        let signed_as = async |counter| {
            world.db.rollouts_are_signed(&name("os"), &name("stable"), Some(counter)).await.expect("recorded");
            world.db.rollouts_unsigned().await.expect("list")
        };
        assert_eq!(signed_as(before).await, channel, "an earlier state was signed");
        assert_eq!(signed_as(before + 1).await, []);
        // A required version is in use, and in the channel.
        let used = world.db.mark_withdrawn(&name("os"), &name("1"), NOW).await.expect("asked");
        assert_eq!(used, Withdraw::InUse(vec![name("stable")]));

        // Waves open once, and only while the rollout is open.
        assert!(world.db.open_wave(&row, 0, "", NOW + 1).await.expect("opens"));
        assert_eq!(world.db.rollouts_unsigned().await.expect("list"), channel);
        assert!(!world.db.open_wave(&row, 0, "", NOW + 2).await.expect("asked"));
        assert!(world.db.set_rollout_stage(&row, RolloutStage::Paused, "lunch", &by(), NOW + 3).await.expect("set"));
        assert!(!world.db.open_wave(&row, 1, "", NOW + 4).await.expect("asked"));
        let stale = world.db.set_rollout_stage(&row, RolloutStage::Complete, "", &by(), NOW + 4).await.expect("asked");
        assert!(!stale, "an operator was faster");
        let waves = world.db.rollout_waves(&row.id).await.expect("waves");
        let opened: Vec<_> = waves.iter().map(|wave| (wave.upto.0, wave.opened)).collect();
        assert_eq!(opened, [(1 << 63, Some(NOW + 1)), (u64::MAX, None)]);

        // The release is in use. A halted rollout gives way to another one.
        let used = world.db.mark_withdrawn(&name("os"), &name("3"), NOW).await.expect("asked");
        assert_eq!(used, Withdraw::InUse(vec![name("stable")]));
        let paused = world.db.rollout(&row.id).await.expect("asked").expect("the rollout");
        world.db.set_rollout_stage(&paused, RolloutStage::Halted, "2 failed", &by(), NOW + 5).await.expect("set");
        world.db.forgive_failures(&row.id, 2).await.expect("recorded");
        let second = begun(world, 2, "3").await;
        let first = world.db.rollout(&row.id).await.expect("asked").expect("the rollout");
        assert_eq!((first.stage, first.forgiven), (RolloutStage::Superseded, 2));
        let under_way = world.db.rollout_under_way(&name("os"), &name("stable")).await.expect("asked");
        assert_eq!(under_way, Some(second.clone()));
        let listed = world.db.rollouts_of(&name("os"), &name("stable"), 9).await.expect("list");
        assert_eq!(listed.len(), 2);
        let events = world.db.rollout_events(&row.id).await.expect("events");
        let events: Vec<_> = events.iter().map(|e| (e.event.as_str(), e.by.label.as_str())).collect();
        assert_eq!(
            events,
            [("started", "me"), ("opened", ""), ("paused", "me"), ("halted", "me"), ("superseded", "me")]
        );
        world.db.set_rollout_stage(&second, RolloutStage::RolledBack, "", &by(), NOW + 6).await.expect("set");
        assert_eq!(world.db.rollouts_under_way().await.expect("list"), []);
        assert!(matches!(
            world.db.mark_withdrawn(&name("os"), &name("3"), NOW).await.expect("asked"),
            Withdraw::Marked(_)
        ));
    }

    async fn of_two_rollouts_of_a_channel_one_begins(world: World) {
        realm(world).await;
        let both = futures::future::join(begin(world, 1, "stable", "3"), begin(world, 2, "stable", "3")).await;
        let begun = |outcome: &BeginRollout| matches!(outcome, BeginRollout::Begun(_));
        assert!(begun(&both.0) != begun(&both.1), "{both:?}");
    }

    async fn the_newest_report_of_a_node_holds(world: World) {
        realm(world).await;
        begun(world, 1, "3").await;
        let (a, b) = (node(world, "a").await, node(world, "b").await);
        let held = Some(Held::Wave { wave: 2, of: 4 });
        let old = running("stable", None, held);
        let new = running("stable", Some("3"), None);
        assert_eq!(report(world, &a, 5, &old, None, NOW).await, PutReport::Recorded);
        assert_eq!(followers(world, NOW).await, [(a, None, None)]);
        let kept = world.db.reports(Some(&a.to_string())).await.expect("list");
        assert_eq!(kept[&a.to_string()].running[0].held, held.map(|held| HeldFrom::new(held, None)));
        // Sent twice, or overtaken on its way.
        let failed = attempt(1, AttemptState::RolledBack);
        assert_eq!(report(world, &a, 5, &new, Some(&failed), NOW + 1).await, PutReport::Known);
        assert_eq!(report(world, &a, 4, &new, Some(&failed), NOW + 1).await, PutReport::Known);
        assert_eq!(followers(world, NOW).await, [(a, None, None)]);
        // Numbers beyond those of the database are cut, not refused.
        assert_eq!(report(world, &a, 6, &new, Some(&failed), NOW + 2).await, PutReport::Recorded);
        assert_eq!(followers(world, NOW).await, [(a, Some(name("3")), Some((AttemptState::RolledBack, 1)))]);
        let attempts = world.db.attempts(&RolloutId([1; 16])).await.expect("list");
        assert_eq!((attempts[0].bytes.origin, attempts[0].failure.as_str()), (i64::MAX as u64, "health"));
        // An earlier attempt does not replace a later one.
        report(world, &a, 7, &new, Some(&attempt(2, AttemptState::Succeeded)), NOW + 3).await;
        report(world, &a, 8, &new, Some(&attempt(1, AttemptState::Failed)), NOW + 4).await;
        assert_eq!(followers(world, NOW).await, [(a, Some(name("3")), Some((AttemptState::Succeeded, 2)))]);
        // Other channels, silent nodes and revoked ones do not follow.
        report(world, &b, 1, &running("beta", Some("3"), None), None, NOW + 5).await;
        assert_eq!(followers(world, NOW).await.len(), 1);
        report(world, &b, 2, &running("stable", Some("1"), None), None, NOW + 6).await;
        assert_eq!(followers(world, NOW).await.len(), 2);
        // A node that tried the rollout counts, however long it is silent.
        assert_eq!(followers(world, NOW + 7).await.len(), 1);
        assert_eq!(followers(world, NOW + 7).await[0].0, a);
        world.db.revoke_node(&b.to_string(), NOW).await.expect("revoked");
        assert_eq!(followers(world, NOW + 6).await.len(), 1);
        assert_eq!(world.db.reports(None).await.expect("list").len(), 2);
    }

    async fn a_failure_is_kept_with_its_release(world: World) {
        realm(world).await;
        let a = node(world, "a").await;
        let failed = Some(Held::Failed { attempts: 2 });
        let runs = Running { held_from: Some(name("3")), ..running("stable", Some("2"), failed) };
        report(world, &a, 1, &runs, None, NOW).await;
        let kept = world.db.reports(None).await.expect("list").remove(&a.to_string()).expect("its report");
        let kept = kept.running[0].held.clone().expect("a reason");
        assert_eq!(kept, HeldFrom::new(Held::Failed { attempts: 2 }, Some(&name("3"))));
        assert_eq!((kept.now(&name("3")), kept.now(&name("4"))), (failed, None));
    }

    async fn an_attempt_without_an_end_fails_in_time_and_may_still_succeed(world: World) {
        realm(world).await;
        begun(world, 1, "3").await;
        let rollout = RolloutId([1; 16]);
        let (a, runs) = (node(world, "a").await, running("stable", Some("2"), None));
        report(world, &a, 1, &runs, Some(&attempt(1, AttemptState::Fetching)), NOW).await;
        // A sign of life does not prolong the attempt.
        report(world, &a, 2, &runs, Some(&attempt(1, AttemptState::Restarting)), NOW + 50).await;
        assert_eq!(world.db.time_out_attempts(&rollout, 60, NOW + 60).await.expect("asked"), 0);
        assert_eq!(world.db.time_out_attempts(&rollout, 60, NOW + 61).await.expect("asked"), 1);
        let attempts = world.db.attempts(&rollout).await.expect("list");
        assert_eq!((attempts[0].state, attempts[0].failure.as_str()), (AttemptState::Failed, "timeout"));
        report(world, &a, 3, &runs, Some(&attempt(1, AttemptState::Succeeded)), NOW + 99).await;
        assert_eq!(world.db.time_out_attempts(&rollout, 60, NOW + 999).await.expect("asked"), 0);
        assert_eq!(world.db.attempts(&rollout).await.expect("list")[0].state, AttemptState::Succeeded);
        // After a pause an attempt has its whole time again.
        report(world, &a, 4, &runs, Some(&attempt(2, AttemptState::Fetching)), NOW + 1000).await;
        world.db.restart_attempts(&rollout, NOW + 1050).await.expect("restarted");
        assert_eq!(world.db.time_out_attempts(&rollout, 60, NOW + 1100).await.expect("asked"), 0);
        // Another attempt has its own time.
        report(world, &a, 5, &runs, Some(&attempt(3, AttemptState::Fetching)), NOW + 2000).await;
        assert_eq!(world.db.time_out_attempts(&rollout, 60, NOW + 2060).await.expect("asked"), 0);
    }

    async fn a_node_is_pinned_to_released_versions_of_few_products(world: World) {
        realm(world).await;
        let a = node(world, "a").await.to_string();
        let pin = async |node: &str, version| world.db.pin_node(node, &name("os"), &name(version)).await.expect("asked");
        assert_eq!(pin(&a, "1").await, PinNode::Pinned);
        assert_eq!(pin(&a, "2").await, PinNode::Pinned);
        assert_eq!(pin(&a, "9").await, PinNode::UnknownRelease);
        assert_eq!(pin(&node_id("nobody"), "1").await, PinNode::UnknownNode);
        assert_eq!(world.db.pins_of(&a).await.expect("read"), [(name("os"), name("2"))].into());
        assert_eq!(world.db.pins_on(&name("os")).await.expect("list")[&a], name("2"));
        assert!(world.db.unpin_node(&a, &name("os")).await.expect("removed"));
        assert!(!world.db.unpin_node(&a, &name("os")).await.expect("asked"));
        assert!(world.db.pins_of(&a).await.expect("read").is_empty());
    }

    async fn a_turn_is_given_within_the_limits_of_the_group_and_of_the_fleet(world: World) {
        realm(world).await;
        let conditions = Conditions {
            at_once: Some(2),
            budget: Some(GroupBudget { by: "site".to_owned(), unavailable: 1 }),
            rate: Some(Rate { devices: 3, period: 1000 }),
            ..Conditions::default()
        };
        let policy = Policy { conditions: conditions.clone(), timeout: 100, ..Policy::default() };
        let (id, product, channel, version) = (RolloutId([1; 16]), name("os"), name("stable"), name("3"));
        let new = NewRollout {
            id,
            product: &product,
            channel: &channel,
            version: &version,
            policy: &policy,
            waves: &[Threshold(u64::MAX)],
        };
        let BeginRollout::Begun(row) = world.db.begin_rollout(&new, &by(), NOW).await.expect("asked") else {
            panic!("not begun")
        };
        assert_eq!(world.db.rollout(&id).await.expect("asked").expect("the rollout").policy.conditions, conditions);
        let [a, b, c, d] = ["ta", "tb", "tc", "td"].map(|label| node(world, label));
        let (a, b, c, d) = (a.await, b.await, c.await, d.await);
        let now = u64::try_from(NOW).expect("a time");
        let ask = async |node: &NodeId, group: &str, after: u64| {
            let asker = TurnAsker { node, group, number: 1 };
            world.db.take_turn(&row, &asker, now + after).await.expect("asked") == TurnAnswer::Begin
        };
        assert!(ask(&a, "1", 0).await && ask(&a, "1", 1).await, "a turn that is given again is the same");
        assert!(!ask(&b, "1", 2).await, "one of the group is under way");
        assert!(ask(&c, "2", 3).await);
        assert!(!ask(&d, "3", 4).await, "two are under way");
        let turns: Vec<_> = world.db.turns(&row, 9, now + 5).await.expect("listed").into_iter().map(|t| t.group).collect();
        assert_eq!(turns, ["1", "2"]);
        // A device that ends its attempt makes room, and so does no device that is silent.
        let runs = running("stable", Some("2"), None);
        report(world, &a, 1, &runs, Some(&attempt(1, AttemptState::Checking)), NOW + 5).await;
        assert!(!ask(&b, "1", 6).await);
        report(world, &a, 2, &runs, Some(&attempt(1, AttemptState::RolledBack)), NOW + 7).await;
        assert!(ask(&b, "1", 8).await);
        assert!(!ask(&d, "3", 9).await && !ask(&a, "1", 9).await, "two are under way");
        let groups = async |after: u64| {
            let turns = world.db.turns(&row, 9, now + after).await.expect("listed");
            turns.into_iter().map(|turn| turn.group).collect::<Vec<_>>()
        };
        assert_eq!(groups(9).await, ["2", "1"], "those that are over are not listed");
        report(world, &b, 1, &runs, Some(&attempt(1, AttemptState::Succeeded)), NOW + 10).await;
        assert!(!ask(&d, "3", 11).await, "three have begun within the period");
        assert!(!ask(&d, "2", 1004).await, "the one of its group is silent");
        assert!(ask(&d, "3", 1004).await);
    }

    async fn a_rollout_is_approved_by_another_token_than_the_one_that_began_it(world: World) {
        realm(world).await;
        let (os, stable) = (name("os"), name("stable"));
        world.db.set_approval(&os, &stable, true).await.expect("set");
        assert!(world.db.needs_approval(&os, &stable).await.expect("asked"));
        let row = begun(world, 1, "3").await;
        assert_eq!(row.approval, Approval::Wanted);
        let approve = async |row: &RolloutRow, by: &MoveBy| {
            world.db.approve_rollout(row, "seen", by, NOW + 1).await.expect("asked")
        };
        assert_eq!(approve(&row, &by()).await, ApproveRollout::SameToken);
        let other = MoveBy { token: "cd".into(), label: "you".into() };
        assert_eq!(approve(&row, &other).await, ApproveRollout::Approved);
        let row = world.db.rollout(&row.id).await.expect("asked").expect("the rollout");
        assert_eq!(row.approval, Approval::Given);
        assert_eq!(approve(&row, &by()).await, ApproveRollout::Approved, "it is already");
        let events = world.db.rollout_events(&row.id).await.expect("listed");
        let approved = events.last().expect("an event");
        assert_eq!((approved.event.as_str(), &approved.by), ("approved", &other));
        // The wish ends for the next rollout.
        world.db.set_approval(&os, &stable, false).await.expect("set");
        assert!(world.db.set_rollout_stage(&row, RolloutStage::Superseded, "", &by(), NOW).await.expect("set"));
        let next = begun(world, 2, "3").await;
        assert_eq!((next.approval, approve(&next, &other).await), (Approval::None, ApproveRollout::NotWanted));
    }
}
