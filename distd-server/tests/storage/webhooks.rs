//! Webhooks in the database: events are recorded with their acts, and tried in order.

use distd_core::api::{DeliveryState, EventKind, WEBHOOKS_MAX};
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::RolloutId;
use distd_server::db::{QuotaOf, RolloutStage, Tried, WebhookRow};

use super::rollouts::{attempt, begun, node, realm, report, running};
use super::*;

const DAY: i64 = 24 * 3600;

fn hook(id: &str, events: &[EventKind]) -> WebhookRow {
    WebhookRow {
        id: id.to_owned(),
        url: "https://hooks.example.com/secret".to_owned(),
        events: events.iter().map(|kind| kind.as_str().to_owned()).collect(),
        label: String::new(),
        secret: vec![7; 32],
        created: NOW,
        lost: 0,
        delivered: None,
        failing: None,
        error: None,
        waiting: 0,
        given_up: 0,
    }
}

/// Kinds of the events of a webhook, the oldest first.
async fn kinds(world: &World, id: &str) -> Vec<String> {
    let rows = world.db.webhook_deliveries(id).await.expect("list");
    rows.iter().rev().map(|row| row.event.to_string()).collect()
}

on_every_back_end! {
    async fn each_act_is_told_once_to_those_who_ask(world: World) {
        assert!(world.db.add_webhook(&hook("all", &[])).await.expect("added"));
        assert!(world.db.add_webhook(&hook("halts", &[EventKind::RolloutHalted])).await.expect("added"));
        realm(world).await;
        let (os, version) = (name("os"), name("1"));
        for _ in 0..2 {
            world.db.mark_published(&os, &version, NOW).await.expect("published");
        }
        assert_eq!(kinds(world, "all").await, ["release.published"]);
        let [published] = &world.db.webhook_deliveries("all").await.expect("list")[..] else { panic!("one") };
        let body: serde_json::Value = serde_json::from_str(&published.body).expect("JSON");
        assert_eq!((&body["data"]["product"], &body["data"]["version"]), (&"os".into(), &"1".into()), "{body}");
        assert!(body["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{body}");

        let till = node(world, "1").await;
        let row = begun(world, 1, "3").await;
        // A failure is told once, however often it is reported, and again for another attempt.
        let runs = running("stable", Some("1"), None);
        for (sequence, number, state) in [
            (1, 1, AttemptState::Fetching),
            (2, 1, AttemptState::Failed),
            (3, 1, AttemptState::Failed),
            (4, 2, AttemptState::Checking),
            (5, 2, AttemptState::RolledBack),
            (6, 2, AttemptState::RolledBack),
            (7, 3, AttemptState::Fetching),
        ] {
            report(world, &till, sequence, &runs, Some(&attempt(number, state)), NOW).await;
        }
        assert_eq!(world.db.time_out_attempts(&RolloutId([1; 16]), 60, NOW + 61).await.expect("asked"), 1);
        world.db.open_wave(&row, 0, "", NOW).await.expect("opened");
        let by = MoveBy::origin();
        world.db.set_rollout_stage(&row, RolloutStage::Halted, "2 failed", &by, NOW).await.expect("halted");
        let row = world.db.rollout(&row.id).await.expect("read").expect("it is there");
        world.db.set_rollout_stage(&row, RolloutStage::RolledBack, "", &by, NOW).await.expect("back");
        world.db.revoke_node(&till.to_string(), NOW).await.expect("revoked");
        let told = [
            "release.published", "node.enrolled", "rollout.started", "node.update_failed", "node.update_failed",
            "node.update_failed", "rollout.wave_opened", "rollout.halted", "rollout.rolled_back", "node.revoked",
        ];
        assert_eq!(kinds(world, "all").await, told);
        assert_eq!(kinds(world, "halts").await, ["rollout.halted"]);
        let halted = &world.db.webhook_deliveries("halts").await.expect("list")[0];
        assert!(halted.body.contains("2 failed") && halted.body.contains("\"by\":\"origin\""), "{}", halted.body);

        assert!(world.db.remove_webhook("halts", NOW).await.expect("removed"));
        assert!(!world.db.remove_webhook("halts", NOW).await.expect("asked"));
        for n in 1..WEBHOOKS_MAX {
            assert!(world.db.add_webhook(&hook(&n.to_string(), &[])).await.expect("added"), "{n}");
        }
        assert!(!world.db.add_webhook(&hook("too-many", &[])).await.expect("asked"));
    }

    async fn a_quota_is_told_of_once_until_there_is_room_again(world: World) {
        assert!(world.db.add_webhook(&hook("all", &[EventKind::QuotaNearlyFull])).await.expect("added"));
        realm(world).await;
        let of = QuotaOf::Product(name("os"));
        // Three releases of 20 000 bytes are there.
        assert!(world.db.set_quota(&of, None, Some(100_000), NOW).await.expect("set"));
        push(&world.ingest, "4", &artifact(noise(4, 12_000))).await.expect("push");
        assert_eq!(kinds(world, "all").await, Vec::<String>::new(), "72 %");
        push(&world.ingest, "5", &artifact(noise(5, 19_000))).await.expect("push");
        push(&world.ingest, "6", &artifact(noise(6, 5_000))).await.expect("push");
        assert_eq!(kinds(world, "all").await, ["quota.nearly_full"], "91 %, then 96 %");
        let told = &world.db.webhook_deliveries("all").await.expect("list")[0];
        assert!(told.body.contains("\"percent\":91"), "{}", told.body);
    }

    async fn events_are_tried_in_order_and_given_up_after_days(world: World) {
        assert!(world.db.add_webhook(&hook("all", &[])).await.expect("added"));
        realm(world).await;
        for version in ["1", "2", "3"] {
            world.db.mark_published(&name("os"), &name(version), NOW).await.expect("published");
        }
        let next = async |now| world.db.next_delivery("all", now).await.expect("asked");
        let first = next(NOW).await.expect("one waits");
        let away = Tried::Away("status 500".into());
        assert_eq!(world.db.record_try("all", &first, &away, NOW).await.expect("recorded"), DeliveryState::Waiting);
        // The receiver is away: nothing is tried, then the oldest comes first.
        assert_eq!(next(NOW + 1).await, None);
        assert!(world.db.webhooks_due(NOW + 1).await.expect("asked").is_empty());
        assert_eq!(world.db.webhooks_due(NOW + 10).await.expect("asked"), ["all"]);
        let again = next(NOW + 10).await.expect("one waits");
        assert_eq!((again.number, again.tries, &again.message), (first.number, 1, &first.message));
        // A refused event lets the others pass.
        let refused = Tried::Refused("status 400".into());
        world.db.record_try("all", &again, &refused, NOW + 10).await.expect("recorded");
        let second = next(NOW + 10).await.expect("one waits");
        assert!(second.number > first.number);
        let row = world.db.webhook("all").await.expect("read").expect("it is there");
        assert_eq!((row.failing, row.error.as_deref(), row.waiting), (Some(NOW), Some("status 400"), 3));
        let taken = Tried::Taken("status 204".into());
        world.db.record_try("all", &second, &taken, NOW + 11).await.expect("recorded");
        let row = world.db.webhook("all").await.expect("read").expect("it is there");
        assert_eq!((row.failing, row.error, row.delivered, row.waiting), (None, None, Some(NOW + 11), 2));
        // Days later: given up, and the one behind it is tried at once.
        let late = NOW + 3 * DAY;
        let old = next(late).await.expect("one waits");
        assert_eq!(world.db.record_try("all", &old, &away, late).await.expect("recorded"), DeliveryState::GivenUp);
        let third = next(late).await.expect("the next one");
        assert!(third.number > old.number);
        assert_eq!(world.db.delivery_counts().await.expect("counted"), (1, 1));
        assert_eq!(world.db.retry_webhook("all", late).await.expect("asked"), Some(2));
        assert_eq!(next(late).await.expect("one waits").number, old.number);
        assert_eq!(world.db.retry_webhook("none", late).await.expect("asked"), None);
        assert_eq!(world.db.forget_deliveries(late).await.expect("forgotten"), 0);
        assert_eq!(world.db.forget_deliveries(NOW + 8 * DAY).await.expect("forgotten"), 1, "the taken one");
    }
}
