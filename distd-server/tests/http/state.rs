//! State of the fleet over HTTP.

use distd_core::NodeId;
use distd_core::fleet::report::{
    Attempt, AttemptState, FailureKind, FailureNote, Report, Running, SourceBytes,
};
use distd_core::fleet::rollout::{Held, Policy, RolloutId, Threshold};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_server::db::{BeginRollout, MoveBy, NewRollout, NodeRow};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

const ROLLOUT: RolloutId = RolloutId([1; 16]);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(crate) fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub(crate) async fn node(world: &World, n: u8, role: &str) {
    let row = NodeRow {
        id: id(n).to_string(),
        public_key: vec![n],
        role: role.to_owned(),
        label: format!("till {n}"),
        enrolled: 1,
        cert_serial: String::new(),
        cert_expires: 0,
        revoked: None,
    };
    world.running.origin.db().put_node(&row).await.expect("recorded");
}

/// Records that a device runs `version` on `channel`, with its attempt, `age` seconds ago.
pub(crate) async fn reports(
    world: &World,
    n: u8,
    channel: &str,
    version: &str,
    held: Option<Held>,
    state: Option<AttemptState>,
    age: i64,
) {
    let failed = matches!(state, Some(AttemptState::Failed | AttemptState::RolledBack));
    let attempt = state.map(|state| Attempt {
        rollout: Some(ROLLOUT),
        product: name("os"),
        version: name("2"),
        number: 1,
        state,
        failure: failed.then(|| FailureNote::new(FailureKind::Health, "no screen")),
        began: 1,
        seconds: 7,
        bytes: SourceBytes { disk: 1, neighbours: 2, relay: 3, origin: 4 },
    });
    let runs = Running {
        product: name("os"),
        channel: name(channel),
        version: Some(name(version)),
        manifest: None,
        held,
        held_from: None,
    };
    let report = Report { sequence: 1, at: 7, boot: vec![3; 16], ..Report::default() };
    let attempts: Vec<_> = attempt.iter().map(|attempt| (ROLLOUT, attempt)).collect();
    let now = unix_now() as i64 - age;
    let put = world.running.origin.db().put_report(&id(n), &report, &[&runs], &attempts, now).await;
    put.expect("recorded");
}

/// A fleet with a device in each state: a rollout of os@2 to stable is under way.
async fn fleet(world: &World) {
    for (version, seed) in [("1", 1), ("2", 2)] {
        world.put_content("os", version, noise(seed, 30_000)).await;
    }
    let (status, _) =
        world.json(Method::PUT, "/v1/products/os/channels/stable", Some(json!({"version": "1"}))).await;
    assert_eq!(status, StatusCode::OK);
    for n in 1..=9 {
        node(world, n, "leaf").await;
    }
    node(world, 10, "relay").await;
    let new = NewRollout {
        id: ROLLOUT,
        product: &name("os"),
        channel: &name("stable"),
        version: &name("2"),
        policy: &Policy::default(),
        waves: &[Threshold(u64::MAX)],
    };
    let begun = world.running.origin.db().begin_rollout(&new, &MoveBy::origin(), unix_now() as i64).await;
    assert!(matches!(begun.expect("asked"), BeginRollout::Begun(_)));
    reports(world, 1, "stable", "2", None, Some(AttemptState::Succeeded), 0).await;
    reports(world, 2, "stable", "1", None, Some(AttemptState::Fetching), 0).await;
    reports(world, 3, "stable", "1", None, Some(AttemptState::RolledBack), 0).await;
    reports(world, 4, "stable", "1", Some(Held::Paused), None, 0).await;
    reports(world, 5, "stable", "1", None, None, 20_000).await;
    reports(world, 6, "beta", "1", None, None, 0).await;
    reports(world, 7, "stable", "1", Some(Held::Failed { attempts: 1 }), None, 0).await;
    reports(world, 8, "stable", "2", None, None, 0).await;
    let change = json!({"set": {"site": "7"}});
    for n in 1..=9u8 {
        if n != 2 {
            let path = format!("/v1/nodes/{}/labels", id(n));
            assert_eq!(world.json(Method::POST, &path, Some(change.clone())).await.0, StatusCode::OK);
        }
    }
    let (_, _) = world.json(Method::POST, &format!("/v1/nodes/{}/revoke", id(8)), None).await;
}

fn ids(page: &Value) -> Vec<u8> {
    let devices = page["devices"].as_array().expect("a list").iter();
    devices.map(|device| u8::from_str_radix(&text(&device["id"])[..2], 16).expect("digits")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_is_counted_and_listed_and_agrees_with_the_rollout() {
    let world = World::new().await;
    fleet(&world).await;
    let (status, sums) = world.get("/v1/fleet").await;
    assert_eq!(status, StatusCode::OK, "{sums}");
    // Neither the relay nor the revoked node counts.
    assert_eq!(sums["devices"], 8);
    assert_eq!(sums["contact"], json!({"online": 6, "offline": 1, "unknown": 1}));
    let update = json!({"up_to_date": 1, "outdated": 1, "updating": 1, "failed": 2, "held": 1, "unknown": 2});
    assert_eq!(sums["update"], update);
    assert_eq!(
        sums["failures"],
        json!([{"word": "earlier", "devices": 1}, {"word": "health", "devices": 1}])
    );
    assert_eq!(sums["held"], json!([{"word": "paused", "devices": 1}]));
    assert_eq!(
        sums["releases"],
        json!([
            {"product": "os", "channel": "beta", "version": "1", "devices": 1, "online": 1},
            {"product": "os", "channel": "stable", "version": "1", "devices": 5, "online": 4},
            {"product": "os", "channel": "stable", "version": "2", "devices": 1, "online": 1},
        ])
    );
    // The rollout counts the same devices in the same way.
    let (_, rollout) = world.get("/v1/products/os/channels/stable/rollout").await;
    let wave = &rollout["waves"][0];
    let counted = ["succeeded", "failed", "trying", "devices"].map(|field| wave[field].as_u64());
    assert_eq!(counted, [1, 2, 1, 6].map(Some), "{wave}");

    // Devices that are looked at one by one give the same sums.
    let (_, group) = world.json(Method::PUT, "/v1/groups/all", Some(json!({"selector": "role=leaf"}))).await;
    assert_eq!(group["selected"], 8, "{group}");
    let without_time = |mut sums: Value| {
        sums.as_object_mut().expect("an object").remove("at");
        sums
    };
    let (_, again) = world.get("/v1/fleet?group=all").await;
    assert_eq!(without_time(again), without_time(sums));
    let (_, stable) = world.get("/v1/fleet?product=os&channel=stable").await;
    assert_eq!((&stable["devices"], &stable["update"]["unknown"]), (&json!(6), &json!(0)));
    let (_, os) = world.get("/v1/fleet?product=os").await;
    assert_eq!(os["contact"], json!({"online": 6, "offline": 1, "unknown": 0}));
    let (_, other) = world.get("/v1/fleet?product=app").await;
    assert_eq!((&other["devices"], &other["releases"]), (&json!(0), &json!([])));
    let (_, site) = world.get("/v1/fleet?where=site%3D7&channel=stable").await;
    assert_eq!((&site["devices"], &site["update"]["updating"]), (&json!(5), &json!(0)), "{site}");

    let list = async |query: &str| {
        let (status, page) = world.get(&format!("/v1/fleet/nodes?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {page}");
        page
    };
    for (query, expected) in [
        ("", vec![1, 2, 3, 4, 5, 6, 7, 9]),
        ("update=up_to_date", vec![1]),
        ("update=updating", vec![2]),
        ("update=failed", vec![3, 7]),
        ("update=held", vec![4]),
        ("update=outdated", vec![5]),
        ("update=unknown", vec![6, 9]),
        ("update=unknown&product=os", vec![6]),
        ("contact=offline", vec![5]),
        ("contact=unknown", vec![9]),
        ("version=2", vec![1]),
        ("product=os&channel=stable&version=1&contact=online", vec![2, 3, 4, 7]),
        ("where=!site", vec![2]),
        ("group=all&where=site&update=failed", vec![3, 7]),
    ] {
        assert_eq!(ids(&list(query).await), expected, "{query}");
    }
    // Pages.
    let first = list("limit=3&update=failed").await;
    assert_eq!(first["after"], Value::Null);
    let first = list("limit=3").await;
    let second = list(&format!("limit=5&after={}", text(&first["after"]))).await;
    assert_eq!((ids(&first), ids(&second)), (vec![1, 2, 3], vec![4, 5, 6, 7, 9]));
    assert_eq!(second["after"], Value::Null);
    let failed = &list("update=failed").await["devices"][0]["channels"][0];
    assert_eq!(
        *failed,
        json!({"product": "os", "channel": "stable", "version": "1", "wanted": "2", "update": "failed", "held": null,
               "failure": "health"})
    );
    for (query, word) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("update=late", "update"),
        ("where=a%20b", "selector"),
    ] {
        let (status, answer) = world.get(&format!("/v1/fleet/nodes?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.to_string().contains(word), "{query}: {answer}");
    }
    assert_eq!(world.get("/v1/fleet?group=none").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_shown_with_all_that_is_known_about_it() {
    let world = World::new().await;
    fleet(&world).await;
    let (status, node) = world.get(&format!("/v1/fleet/nodes/{}", id(3))).await;
    assert_eq!(status, StatusCode::OK, "{node}");
    assert_eq!(node["contact"], "online");
    assert_eq!(node["node"]["labels"]["operator"], json!({"site": "7"}));
    assert_eq!(node["groups"], json!(["everyone"]));
    assert_eq!(node["channels"][0]["update"], "failed");
    let attempt = &node["attempts"][0];
    let bytes =
        ["bytes_disk", "bytes_neighbours", "bytes_relay", "bytes_origin"].map(|field| &attempt[field]);
    assert_eq!(bytes, [&json!(1), &json!(2), &json!(3), &json!(4)]);
    assert_eq!((&attempt["seconds"], &attempt["detail"]), (&json!(7), &json!("no screen")));
    let why = text(&node["why"][0]);
    assert!(
        why.starts_with("os:stable: the node runs 1, the release of the channel, by its report of 20"),
        "{why}"
    );
    let (_, silent) = world.get(&format!("/v1/fleet/nodes/{}", id(9))).await;
    assert_eq!((&silent["contact"], &silent["channels"]), (&json!("unknown"), &json!([])));
    assert!(text(&silent["why"][0]).contains("no report"), "{silent}");
    assert_eq!(world.get("/v1/fleet/nodes/00").await.0, StatusCode::NOT_FOUND);
}
