//! State of the fleet in the database.

use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::{Held, RolloutId};
use distd_server::db::{DeviceFilter, FleetGroup, HeldFrom, OnChannel, ReportCounts};

use super::rollouts::{attempt, begun, node, realm, report, running};
use super::*;

async fn groups(world: &World, since: i64) -> Vec<FleetGroup> {
    let mut groups = world.db.fleet_groups(None, None, since).await.expect("sums");
    groups.sort_by_key(|group| format!("{:?}", group.on));
    groups
}

fn state(on: &OnChannel) -> Option<(AttemptState, u32, &str)> {
    on.attempt.as_ref().map(|attempt| (attempt.state, attempt.number, attempt.failure.as_str()))
}

on_every_back_end! {
    async fn devices_that_reported_the_same_are_one_group(world: World) {
        realm(world).await;
        begun(world, 1, "3").await;
        let held = running("stable", Some("2"), Some(Held::Wave { wave: 2, of: 4 }));
        let new = running("stable", Some("3"), None);
        let (a, b, c) = (node(world, "a").await, node(world, "b").await, node(world, "c").await);
        let d = node(world, "d").await;
        report(world, &a, 1, &held, None, NOW).await;
        report(world, &b, 1, &held, None, NOW + 5).await;
        report(world, &c, 1, &new, Some(&attempt(2, AttemptState::RolledBack)), NOW + 5).await;
        let found = groups(world, NOW + 1).await;
        let counts: Vec<_> = found.iter().map(|g| (state(&g.on), g.devices, g.online)).collect();
        assert_eq!(counts, [(None, 2, 1), (Some((AttemptState::RolledBack, 2, "health")), 1, 1)]);
        assert_eq!(found[0].on.held, Some(HeldFrom::new(Held::Wave { wave: 2, of: 4 }, None)));
        assert_eq!(found[0].on.version, Some(name("2")));
        assert_eq!(world.db.device_count().await.expect("count"), 4);
        let counts = world.db.report_counts(None, None, NOW + 1).await.expect("count");
        assert_eq!(counts, ReportCounts { reported: 3, online: 2, following: 3 });
        // A node that follows two channels of a product is one device.
        let report = distd_core::fleet::report::Report {
            sequence: 2, at: 7, boot: vec![3; 16], ..Default::default()
        };
        let beta = running("beta", None, None);
        world.db.put_report(&a, &report, &[&held, &beta], &[], NOW + 6).await.expect("recorded");
        let os = name("os");
        let counts = world.db.report_counts(Some(&os), None, NOW + 1).await.expect("count");
        assert_eq!(counts, ReportCounts { reported: 3, online: 3, following: 3 });
        let beta = world.db.fleet_groups(Some(&os), Some(&name("beta")), NOW).await.expect("sums");
        assert_eq!((beta.len(), beta[0].devices, &beta[0].on.version), (1, 1, &None));
        // A report without a channel.
        world.db.put_report(&d, &report, &[], &[], NOW + 6).await.expect("recorded");
        let counts = world.db.report_counts(None, None, NOW).await.expect("count");
        assert_eq!((counts.reported, counts.following), (4, 3));
        // Revoked nodes are no devices.
        world.db.revoke_node(&b.to_string(), NOW).await.expect("revoked");
        assert_eq!(world.db.device_count().await.expect("count"), 3);
        assert_eq!(world.db.report_counts(None, None, NOW).await.expect("count").reported, 3);
        assert_eq!(groups(world, NOW).await.iter().map(|group| group.devices).sum::<u64>(), 3);
    }

    async fn a_group_knows_the_attempt_at_the_rollout_under_way(world: World) {
        realm(world).await;
        let row = begun(world, 1, "3").await;
        let (a, runs) = (node(world, "a").await, running("stable", Some("2"), None));
        report(world, &a, 1, &runs, Some(&attempt(1, AttemptState::Fetching)), NOW).await;
        let of = async || groups(world, NOW).await.remove(0).on;
        assert_eq!(state(&of().await), Some((AttemptState::Fetching, 1, "")));
        // A report that names the attempt no more: it is still the newest.
        report(world, &a, 2, &runs, None, NOW + 1).await;
        assert_eq!(state(&of().await), Some((AttemptState::Fetching, 1, "")));
        // The origin ends the attempt by itself.
        assert_eq!(world.db.time_out_attempts(&RolloutId([1; 16]), 60, NOW + 61).await.expect("asked"), 1);
        assert_eq!(state(&of().await), Some((AttemptState::Failed, 1, "timeout")));
        let found = world.db.attempts_of_node(&a.to_string()).await.expect("list");
        assert_eq!((found.len(), found[0].attempt.state, found[0].version.as_str()), (1, AttemptState::Failed, "3"));
        // When the rollout has ended, its attempts say nothing about the channel.
        world.db.set_rollout_stage(&row, distd_server::db::RolloutStage::RolledBack, "", &MoveBy::origin(), NOW).await.expect("set");
        report(world, &a, 3, &runs, Some(&attempt(1, AttemptState::Failed)), NOW + 70).await;
        assert_eq!(state(&of().await), None);
    }

    async fn devices_are_found_by_what_they_reported_and_by_their_labels(world: World) {
        realm(world).await;
        begun(world, 1, "3").await;
        let held = running("stable", Some("2"), Some(Held::Wave { wave: 2, of: 4 }));
        let new = running("stable", Some("3"), None);
        let (a, b, c) = (node(world, "a").await, node(world, "b").await, node(world, "c").await);
        report(world, &a, 1, &held, None, NOW).await;
        report(world, &b, 1, &new, Some(&attempt(2, AttemptState::RolledBack)), NOW).await;
        report(world, &c, 1, &new, None, NOW).await;
        let found = groups(world, NOW).await;
        assert_eq!(found.len(), 3);
        let ids = async |filter: &DeviceFilter<'_>| {
            let found = world.db.devices(filter, "", 9).await.expect("list");
            found.into_iter().map(|device| device.id).collect::<Vec<_>>()
        };
        // Each group leads to its own devices, also where values are missing.
        for group in &found {
            let states = [group.key.clone()];
            let of_group = ids(&DeviceFilter { states: Some(&states), ..DeviceFilter::default() }).await;
            let wanted = match (&group.on.held, &group.on.attempt) {
                (Some(_), _) => &a,
                (None, Some(_)) => &b,
                (None, None) => &c,
            };
            assert_eq!(of_group, [wanted.to_string()], "{group:?}");
        }
        let all: Vec<_> = found.iter().map(|group| group.key.clone()).collect();
        assert_eq!(ids(&DeviceFilter { states: Some(&all), ..DeviceFilter::default() }).await.len(), 3);
        assert!(ids(&DeviceFilter { states: Some(&[]), ..DeviceFilter::default() }).await.is_empty());

        let operator = |id: &str, key: &str, value: &str| {
            let (id, key, value) = (id.to_owned(), key.parse().expect("a key"), value.parse().expect("a value"));
            async move {
                let set = std::iter::once((key, value)).collect();
                world.db.change_labels(&id, &set, &BTreeSet::new()).await.expect("changed")
            }
        };
        operator(&a.to_string(), "site", "7").await;
        operator(&b.to_string(), "site", "8").await;
        for (selector, wanted) in [
            ("site=7", vec![&a]),
            ("site in (7, 8)", vec![&a, &b]),
            ("site=7,role=leaf", vec![&a]),
            ("site=7,kind=till", vec![]),
            ("fact.site=7", vec![]),
            // The database leaves other conditions to the caller.
            ("site!=7", vec![&a, &b, &c]),
            ("!site", vec![&a, &b, &c]),
        ] {
            let parsed: distd_core::fleet::Selector = selector.parse().expect("a selector");
            let filter = DeviceFilter { selectors: vec![&parsed], ..DeviceFilter::default() };
            let mut wanted: Vec<_> = wanted.into_iter().map(ToString::to_string).collect();
            wanted.sort();
            assert_eq!(ids(&filter).await, wanted, "{selector}");
        }
    }

    async fn devices_come_in_pages_by_id(world: World) {
        realm(world).await;
        let mut ids = Vec::new();
        for label in ["a", "b", "c"] {
            let node = node(world, label).await;
            if label != "c" {
                let version = if label == "a" { "1" } else { "2" };
                report(world, &node, 1, &running("stable", Some(version), None), None, NOW).await;
            }
            ids.push(node.to_string());
        }
        ids.sort();
        let page = async |filter: &DeviceFilter<'_>, after: &str, limit| {
            let found = world.db.devices(filter, after, limit).await.expect("list");
            found.into_iter().map(|device| device.id).collect::<Vec<_>>()
        };
        let all = DeviceFilter::default();
        assert_eq!(page(&all, "", 2).await, ids[..2]);
        assert_eq!(page(&all, &ids[1], 2).await, ids[2..]);
        let (os, beta, one) = (name("os"), name("beta"), name("1"));
        let of = DeviceFilter { product: Some(&os), ..all.clone() };
        assert_eq!(page(&of, "", 9).await.len(), 2);
        assert_eq!(page(&DeviceFilter { channel: Some(&beta), ..of.clone() }, "", 9).await.len(), 0);
        let found = world.db.devices(&DeviceFilter { version: Some(&one), ..of.clone() }, "", 9).await.expect("list");
        assert_eq!((found.len(), found[0].channels.len(), found[0].reported), (1, 1, Some(NOW)));
    }
}
