use distd_core::ArtifactHash;
use distd_core::api::PatchSetState;

use super::*;
use crate::db::PatchSetKey;

const NOW: UnixSeconds = 1_800_000_000;

fn name(text: impl ToString) -> Name {
    text.to_string().parse().expect("a name")
}

fn id(n: u64) -> ManifestId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    ManifestId(bytes)
}

/// Release `n` of a product, made `n` days after the first.
fn release(product: &str, n: u64, of: u64) -> HeldRelease {
    let created = NOW - (of - n) as i64 * DAY;
    let row = ReleaseRow {
        product: name(product),
        version: name(n),
        manifest: id(n),
        blake3: ArtifactHash([0; 32]),
        bytes: 1,
        chunk_count: 1,
        kind: "file".to_owned(),
        created,
        created_by: String::new(),
        published: Some(created),
        sequence: n,
    };
    HeldRelease { row, withdrawn: None, removing: None, pin: None }
}

/// Releases 1 to `count` of `os`, the newest first.
fn releases(count: u64) -> Vec<HeldRelease> {
    (1..=count).rev().map(|n| release("os", n, count)).collect()
}

fn channel(channel: &str, version: u64) -> ChannelRow {
    ChannelRow {
        product: name("os"),
        channel: name(channel),
        version: name(version),
        counter: 1,
        updated: NOW,
        downgrade_from: None,
    }
}

fn set(from: u64, to: u64, bytes: u64) -> PatchSetRow {
    let from_manifest = if from == 0 { ManifestId::NOTHING } else { id(from) };
    PatchSetRow {
        key: PatchSetKey { product: name("os"), from: from_manifest, to: id(to) },
        from_version: (from > 0).then(|| name(from)),
        to_version: name(to),
        state: PatchSetState::Ready,
        set: Some(id(1_000_000 + from * 1000 + to)),
        bytes,
        packed: bytes,
        patches: 1,
        requested_by: String::new(),
        error: None,
        created: NOW - 9 * DAY,
        started: None,
        finished: Some(NOW - 9 * DAY),
    }
}

fn policy(keep: Option<u32>, days: Option<u32>) -> BTreeMap<Name, Retention> {
    BTreeMap::from([(name("os"), Retention { keep, days, may_empty: false })])
}

fn lots(plan: &Plan, lot: GcLot) -> Vec<u64> {
    let of = plan.verdicts.iter().filter(|verdict| verdict.lot == lot);
    let mut found: Vec<u64> =
        of.map(|verdict| verdict.release.row.version.as_str().parse().expect("a number")).collect();
    found.sort_unstable();
    found
}

fn reasons(plan: &Plan, version: u64) -> Vec<KeepReason> {
    let of = |verdict: &&Verdict| verdict.release.row.version == name(version);
    plan.verdicts.iter().find(of).expect("there").kept.iter().map(|(reason, _)| *reason).collect()
}

#[test]
fn without_a_policy_everything_stays() {
    let plan = plan(Facts { releases: releases(9), ..Facts::default() }, 100, NOW);
    assert_eq!(lots(&plan, GcLot::Keep).len(), 9);
    assert_eq!(reasons(&plan, 1), [KeepReason::NoPolicy]);
}

#[test]
fn each_reason_keeps_its_release_and_is_named() {
    let mut facts = Facts {
        releases: releases(40),
        retention: policy(Some(2), Some(5)),
        channels: vec![channel("stable", 20), channel("old", 20)],
        ..Facts::default()
    };
    let key = |version: u64| (name("os"), name(version));
    facts.uses.running.insert(key(3), 7);
    facts.uses.pinned_nodes.insert(key(4), 1);
    facts.uses.actions.insert(key(5), 2);
    facts.uses.rollouts.insert(key(21), vec![name("stable")]);
    facts.releases[40 - 6].pin = Some("audit".to_owned());
    // Withdrawn a day ago, and long ago; the days of the policy count from then.
    facts.releases[40 - 7].withdrawn = Some(NOW - DAY);
    facts.releases[40 - 8].withdrawn = Some(NOW - 6 * DAY);
    facts.releases[40 - 9].removing = Some(NOW - 1);
    facts.releases[40 - 9].withdrawn = Some(NOW - 1);
    let plan = plan(facts, 100, NOW);
    assert_eq!(lots(&plan, GcLot::Keep), [3, 4, 5, 6, 7, 20, 21, 36, 37, 38, 39, 40]);
    assert_eq!(lots(&plan, GcLot::Removing), [9]);
    for (version, reason) in [
        (3, KeepReason::Running),
        (4, KeepReason::NodePin),
        (5, KeepReason::Action),
        (6, KeepReason::Pinned),
        (7, KeepReason::Withdrawn),
        (20, KeepReason::Channel),
        (21, KeepReason::Rollout),
        (36, KeepReason::Age),
        (40, KeepReason::Newest),
    ] {
        assert_eq!(reasons(&plan, version), [reason], "{version}");
    }
    let stable = plan.verdicts.iter().find(|v| v.release.row.version == name(20)).expect("there");
    assert_eq!(stable.kept[0].1, "old, stable");
}

#[test]
fn a_run_removes_the_oldest_up_to_its_bound_and_the_rest_later() {
    let facts = Facts { releases: releases(30), retention: policy(Some(3), None), ..Facts::default() };
    let plan = plan(facts, 10, NOW);
    assert_eq!(lots(&plan, GcLot::Remove), (1..=10).collect::<Vec<_>>());
    assert_eq!(lots(&plan, GcLot::Later), (11..=27).collect::<Vec<_>>());
}

#[test]
fn a_policy_that_would_remove_all_removes_nothing_unless_it_may() {
    let facts = |may_empty| {
        let retention = Retention { keep: Some(0), days: None, may_empty };
        let retention = BTreeMap::from([(name("os"), retention)]);
        Facts { releases: releases(3), retention, ..Facts::default() }
    };
    let refused = plan(facts(false), 100, NOW);
    assert_eq!(refused.would_empty, BTreeSet::from([name("os")]));
    assert_eq!(reasons(&refused, 1), [KeepReason::LastOfProduct]);
    assert_eq!(refused.removed().count(), 0);
    assert_eq!(plan(facts(true), 100, NOW).removed().count(), 3);
}

#[test]
fn withdrawn_releases_do_not_count_as_the_newest() {
    let mut facts = Facts { releases: releases(6), retention: policy(Some(2), None), ..Facts::default() };
    facts.releases[0].withdrawn = Some(NOW - 40 * DAY);
    let plan = plan(facts, 100, NOW);
    assert_eq!(lots(&plan, GcLot::Keep), [4, 5]);
}

#[test]
fn releases_inside_a_route_of_patches_stay_for_those_that_need_it() {
    let facts = |direct: u64| {
        let mut facts = Facts {
            releases: releases(40),
            retention: policy(Some(1), None),
            channels: vec![channel("stable", 30)],
            // The newest first, as the list of devices.
            sets: vec![set(10, 30, direct), set(20, 30, 5), set(10, 20, 5)],
            ..Facts::default()
        };
        facts.uses.running.insert((name("os"), name(10)), 1);
        facts
    };
    // Two short legs beat a long one, and the release between them stays.
    let long = plan(facts(100), 100, NOW);
    assert_eq!(reasons(&long, 20), [KeepReason::RouteBase]);
    assert_eq!(lots(&long, GcLot::Keep), [10, 20, 30, 40]);
    assert_eq!(long.sets, [], "the direct set is still one that devices may choose");
    let short = plan(facts(3), 100, NOW);
    assert_eq!(lots(&short, GcLot::Keep), [10, 30, 40]);
    let gone: Vec<_> = short.sets.iter().map(|set| (set.row.key.from, set.reason)).collect();
    assert_eq!(gone, [(id(20), SetReason::ReleaseGoes), (id(10), SetReason::ReleaseGoes)]);
}

#[test]
fn sets_that_nobody_can_take_go_and_others_stay() {
    let mut facts = Facts {
        releases: releases(100),
        channels: vec![channel("stable", 60)],
        sets: vec![
            // Nobody has 5; a channel left 6 a week ago; devices run 7.
            set(5, 60, 1),
            set(6, 60, 1),
            set(7, 60, 1),
            // Nobody wants 50; 60 is the channel's, 100 the newest, 90 ten days old.
            set(7, 50, 1),
            set(7, 100, 1),
            set(60, 90, 1),
            set(0, 50, 1),
            set(0, 60, 1),
            set(0, 100, 1),
        ],
        ..Facts::default()
    };
    facts.uses.running.insert((name("os"), name(7)), 3);
    facts.uses.left.insert((name("os"), name(6)), NOW - 7 * DAY);
    let mut fresh = set(5, 50, 1);
    fresh.finished = Some(NOW - 60);
    facts.sets.push(fresh);
    let gone = plan(facts.clone(), 100, NOW).sets;
    let gone: Vec<_> = gone.iter().map(|set| (set.row.key.from, set.row.key.to, set.reason)).collect();
    assert_eq!(
        gone,
        [
            (id(5), id(60), SetReason::NobodyHas),
            (id(7), id(50), SetReason::NobodyWants),
            (ManifestId::NOTHING, id(50), SetReason::NobodyWants),
        ]
    );
    // Devices see so many sets, and no more.
    facts.sets = (1..=80).map(|n| set(7, 100, n)).collect();
    let gone = plan(facts, 100, NOW).sets;
    assert!(gone.len() == 16 && gone.iter().all(|set| set.reason == SetReason::Unlisted), "{gone:?}");
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn no_plan_gives_up_what_is_used_or_pinned_or_more_than_its_bound() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let count = 1 + random.below(30);
        let mut facts = Facts { releases: releases(count), ..Facts::default() };
        let retention = Retention {
            keep: (random.below(3) > 0).then(|| random.below(6) as u32),
            days: (random.below(3) > 0).then(|| random.below(9) as u32),
            may_empty: random.below(2) == 0,
        };
        facts.retention.insert(name("os"), retention);
        let mut used = BTreeSet::new();
        let key = |version: u64| (name("os"), name(version));
        for _ in 0..random.below(6) {
            let version = 1 + random.below(count);
            let held = &mut facts.releases[(count - version) as usize];
            match random.below(6) {
                0 if held.withdrawn.is_none() => facts.channels.push(channel("stable", version)),
                1 => drop(facts.uses.running.insert(key(version), 1)),
                2 => drop(facts.uses.rollouts.insert(key(version), vec![name("beta")])),
                3 => held.pin = Some(String::new()),
                4 => drop(facts.uses.pinned_nodes.insert(key(version), 1)),
                _ => {
                    held.withdrawn = Some(NOW - random.below(50) as i64 * DAY);
                    continue;
                }
            }
            used.insert(version);
        }
        for _ in 0..random.below(12) {
            facts.sets.push(set(random.below(count + 1), 1 + random.below(count), 1 + random.below(50)));
        }
        facts.sets.retain(|set| set.key.from != set.key.to);
        let max = random.below(8) as u32;
        let made = plan(facts.clone(), max, NOW);
        let removed = lots(&made, GcLot::Remove);
        assert!(removed.len() <= max as usize, "seed {seed}");
        assert!(removed.iter().all(|version| !used.contains(version)), "seed {seed}: {removed:?} {used:?}");
        let live = |verdict: &&Verdict| verdict.release.withdrawn.is_none();
        let all = made.verdicts.iter().filter(live).count();
        let stay = made.verdicts.iter().filter(live).filter(|verdict| verdict.lot != GcLot::Remove).count();
        assert!(retention.may_empty || all == 0 || stay > 0, "seed {seed}: nothing is left");
        for verdict in &made.verdicts {
            let kept = verdict.lot == GcLot::Keep;
            assert_eq!(kept, !verdict.kept.is_empty(), "seed {seed}: what stays has a reason");
        }
        // Without the bound the same releases go, now or later.
        let unbounded = plan(facts, u32::MAX, NOW);
        let mut going = [removed, lots(&made, GcLot::Later)].concat();
        going.sort_unstable();
        assert_eq!(lots(&unbounded, GcLot::Remove), going, "seed {seed}");
        // A route that devices take keeps all its ends.
        for set in &unbounded.sets {
            let ends = [set.row.key.from, set.row.key.to];
            let both = ends.iter().all(|end| {
                *end == ManifestId::NOTHING
                    || unbounded
                        .verdicts
                        .iter()
                        .any(|v| v.release.row.manifest == *end && v.lot == GcLot::Keep)
            });
            assert_eq!(both, set.reason != SetReason::ReleaseGoes, "seed {seed}");
        }
    }
}
