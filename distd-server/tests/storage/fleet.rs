//! Labels, groups and grants in the database.

use std::collections::BTreeSet;

use distd_core::bounds::{GRANTS_MAX, GROUPS_MAX};
use distd_core::fleet::{Audience, Grant, LabelKey, LabelMap, Labels, assignable_key, assignable_label};
use distd_core::names::Name;
use distd_core::{ManifestId, NodeId};
use distd_server::db::{AddGrants, ChangeLabels, ChannelMove, Members, MoveBy, PutGroup, RemoveGroup};

use super::*;

fn map(labels: &[&str]) -> LabelMap {
    labels.iter().map(|text| assignable_label(text).expect("a label")).collect()
}

fn keys(keys: &[&str]) -> BTreeSet<LabelKey> {
    keys.iter().map(|text| assignable_key(text).expect("a key")).collect()
}

fn grant(group: &str, releases: &str) -> Grant {
    Grant {
        group: name(group),
        rights: "read,seed".parse().expect("rights"),
        releases: releases.parse().expect("a pattern"),
        until: None,
        by_certificate: false,
    }
}

fn selector(text: &str) -> Members {
    Members::Selector(text.parse().expect("a selector"))
}

async fn labels_of(world: &World, node: &str) -> Labels {
    world.db.labels().await.expect("list").remove(&node_id(node)).unwrap_or_default()
}

on_every_back_end! {
    async fn a_node_has_the_labels_of_the_token_it_enrolled_with_last(world: World) {
        let (one, two) = (join_token("ab", 9), join_token("cd", 9));
        world.db.put_join_token(&one, &map(&["site=1", "kind=till"])).await.expect("put");
        world.db.put_join_token(&two, &map(&["site=2"])).await.expect("put");
        assert_eq!(world.db.join_token_labels().await.expect("list")[&one.public_key], map(&["site=1", "kind=till"]));
        let changed = world.db.fleet_changed();
        enrol(world, &one, "a", NOW).await;
        assert_eq!(labels_of(world, "a").await.token, map(&["site=1", "kind=till"]));
        assert!(!changed.has_changed().expect("open"), "nobody is connected to a node without a certificate");
        world.db.put_certificate(&node_id("a"), "0a", NOW + 5).await.expect("put");
        enrol(world, &two, "a", NOW).await;
        assert_eq!(labels_of(world, "a").await.token, map(&["site=2"]));
        assert!(changed.has_changed().expect("open"));
        // The token that was used before, again.
        enrol(world, &one, "a", NOW).await;
        assert_eq!(labels_of(world, "a").await.token, map(&["site=1", "kind=till"]));
        let late = enrol(world, &two, "a", NOW + 11).await;
        assert_eq!(late, EnrolOutcome::Expired);
        assert_eq!(labels_of(world, "a").await.token, map(&["site=1", "kind=till"]), "a refusal changes nothing");
    }

    async fn an_operator_changes_labels_within_their_bound(world: World) {
        let token = join_token("ab", 9);
        world.db.put_join_token(&token, &map(&["site=1"])).await.expect("put");
        enrol(world, &token, "a", NOW).await;
        let id = node_id("a");
        let changed = world.db.fleet_changed();
        let done = world.db.change_labels(&id, &map(&["site=2", "x="]), &keys(&["none"])).await.expect("change");
        let expected =
            Labels { token: map(&["site=1"]), operator: map(&["site=2", "x="]), facts: LabelMap::new() };
        assert_eq!(done, ChangeLabels::Changed(expected));
        assert!(changed.has_changed().expect("open"));
        world.db.change_labels(&id, &map(&["site=3"]), &keys(&["x"])).await.expect("change");
        assert_eq!(labels_of(world, "a").await.operator, map(&["site=3"]));
        let many: Vec<String> = (0..32).map(|n| format!("k{n}=v")).collect();
        let many = map(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(world.db.change_labels(&id, &many, &keys(&[])).await.expect("asked"), ChangeLabels::TooMany);
        assert_eq!(labels_of(world, "a").await.operator, map(&["site=3"]));
        let done = world.db.change_labels(&id, &many, &keys(&["site"])).await.expect("change");
        assert!(matches!(done, ChangeLabels::Changed(labels) if labels.operator.len() == 32));
        let unknown = world.db.change_labels(&node_id("b"), &many, &keys(&[])).await.expect("asked");
        assert_eq!(unknown, ChangeLabels::UnknownNode);
    }

    async fn groups_are_selectors_or_lists_and_stay_while_a_grant_names_them(world: World) {
        let token = join_token("ab", 9);
        world.db.put_join_token(&token, &map(&["kind=till"])).await.expect("put");
        enrol(world, &token, "a", NOW).await;
        let id: NodeId = node_id("a").parse().expect("an id");
        let many: BTreeSet<NodeId> =
            (0u32..2500).map(|n| NodeId(std::array::from_fn(|i| (n >> (8 * (i % 4))) as u8))).chain([id]).collect();
        let (tills, some) = (name("tills"), name("some"));
        let put = async |name: &Name, members: Members| world.db.put_group(name, &members).await.expect("put");
        assert_eq!(put(&tills, selector("kind = till")).await, PutGroup::Made);
        assert_eq!(put(&some, Members::Listed(many.clone())).await, PutGroup::Made);
        assert_eq!(world.db.group(&some).await.expect("read"), Some(Members::Listed(many.clone())));
        assert_eq!(world.db.group(&tills).await.expect("read"), Some(selector("kind=till")));
        assert_eq!(world.db.group(&name("none")).await.expect("read"), None);
        let listed: Vec<_> = world.db.groups().await.expect("list").into_iter().map(|g| (g.name, g.listed)).collect();
        assert_eq!(listed, [(some.clone(), many.len() as u64), (tills.clone(), 0)]);
        let row = world.db.member(&node_id("a")).await.expect("read").expect("a node");
        assert_eq!((row.member.listed, row.revoked), (BTreeSet::from([some.clone()]), None));
        assert_eq!(row.member.labels.token, map(&["kind=till"]));

        let (os, facts) = (grant("tills", "os:stable"), selector("fact.os=1"));
        let AddGrants::Added(rows) = world.db.add_grants(&tills, &[os], "me", NOW).await.expect("add") else {
            panic!("added")
        };
        assert_eq!(put(&tills, facts.clone()).await, PutGroup::Granted(vec![rows[0].id]));
        assert_eq!(world.db.remove_group(&tills).await.expect("asked"), RemoveGroup::Granted(vec![rows[0].id]));
        assert!(world.db.remove_grant(rows[0].id).await.expect("remove"));
        let generation = world.db.fleet_generation().await.expect("read");
        assert_eq!(world.db.remove_group(&tills).await.expect("asked"), RemoveGroup::Removed);
        assert_eq!(world.db.remove_group(&tills).await.expect("asked"), RemoveGroup::Unknown);
        assert_eq!(world.db.fleet_generation().await.expect("read"), generation + 1, "a refusal changes nothing");
        // A list becomes a selector, and its rows go.
        assert_eq!(put(&some, facts).await, PutGroup::Replaced);
        assert!(world.db.member(&node_id("a")).await.expect("read").expect("a node").member.listed.is_empty());
        let asked = world.db.add_grants(&some, &[grant("some", "os")], "me", NOW).await.expect("asked");
        assert_eq!(asked, AddGrants::Facts);
    }

    async fn grants_are_made_once_and_read_back(world: World) {
        let everyone = name("everyone");
        let grants = [
            Grant { until: Some(77), by_certificate: true, ..grant("everyone", "os-*:stable") },
            grant("everyone", "app"),
        ];
        let add = async |group: &Name, grants: &[Grant]| world.db.add_grants(group, grants, "me", NOW).await.expect("add");
        let AddGrants::Added(rows) = add(&everyone, &grants).await else { panic!("added") };
        assert_eq!(rows.iter().map(|row| row.grant.clone()).collect::<Vec<_>>(), grants);
        assert_eq!(world.db.grants().await.expect("list"), rows);
        assert_eq!(add(&everyone, &grants[1..]).await, AddGrants::Added(vec![rows[1].clone()]));
        assert_eq!(world.db.grants().await.expect("list").len(), 2);
        assert_eq!(add(&name("none"), &grants).await, AddGrants::UnknownGroup);
        assert!(world.db.remove_grant(rows[0].id).await.expect("remove"));
        assert!(!world.db.remove_grant(rows[0].id).await.expect("remove"));
        assert!(!world.db.remove_grant(u64::MAX).await.expect("remove"));
        let AddGrants::Added(again) = add(&everyone, &grants[..1]).await else { panic!("added") };
        assert!(again[0].id > rows[1].id, "no id is given twice");
    }

    async fn a_manifest_belongs_to_the_channels_that_have_pointed_to_its_release(world: World) {
        let ids = async |version: &str, seed: u64| -> ManifestId {
            push(&world.ingest, version, &artifact(noise(seed, 60_000))).await.expect("push").release.manifest
        };
        let (one, two, three) = (ids("1", 71).await, ids("2", 72).await, ids("3", 73).await);
        let os = name("os");
        for (channel, version) in [("stable", "1"), ("stable", "2"), ("beta", "2"), ("gone", "1")] {
            let (channel, version) = (name(channel), name(version));
            let wanted = ChannelMove { product: &os, channel: &channel, version: &version, downgrade: false };
            world.db.set_channel(wanted, &MoveBy::origin(), NOW).await.expect("set");
        }
        world.db.remove_channel(&os, &name("gone"), &MoveBy::origin(), NOW).await.expect("remove");
        let unknown = ManifestId([9; 32]);
        let found = world.db.audiences(&[one, two, three, unknown]).await.expect("read");
        let audience = |channels: &[&str]| {
            vec![Audience { product: name("os"), channels: channels.iter().map(|c| name(c)).collect() }]
        };
        assert_eq!(found[&one], audience(&["gone", "stable"]));
        assert_eq!(found[&two], audience(&["beta", "stable"]));
        assert_eq!(found[&three], audience(&[]));
        assert!(!found.contains_key(&unknown) && found.len() == 3);
        // The same bytes as another version are in no channel by that name.
        let same = ids("1b", 71).await;
        assert_eq!(same, one);
        assert_eq!(world.db.audiences(&[one]).await.expect("read")[&one], [audience(&["gone", "stable"]), audience(&[])].concat());
        // Many manifests at once, with one twice.
        let many: Vec<_> = (0..200).map(|n| if n % 7 == 0 { two } else { ManifestId([n; 32]) }).collect();
        assert_eq!(world.db.audiences(&many).await.expect("read"), [(two, audience(&["beta", "stable"]))].into());
        assert!(world.db.audiences(&[]).await.expect("read").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_grants_are_bounded() {
    let world = World::sqlite_and_directory().await;
    for n in 0..GROUPS_MAX {
        let made = world.db.put_group(&name(&format!("g{n}")), &selector("a")).await.expect("put");
        assert_eq!(made, PutGroup::Made);
    }
    let put = async |group: &str| world.db.put_group(&name(group), &selector("b")).await.expect("put");
    assert_eq!(put("more").await, PutGroup::TooMany);
    assert_eq!(put("g0").await, PutGroup::Replaced);
    let grants: Vec<Grant> = (0..=GRANTS_MAX).map(|n| grant("g0", &format!("os{n}"))).collect();
    let add =
        async |grants: &[Grant]| world.db.add_grants(&name("g0"), grants, "me", NOW).await.expect("add");
    assert_eq!(add(&grants).await, AddGrants::TooMany);
    assert_eq!(world.db.grants().await.expect("list"), [], "all or nothing");
    assert!(matches!(add(&grants[1..]).await, AddGrants::Added(_)));
    world.end().await;
}
