//! Labels, groups and grants, and the rights that nodes have by them.

use distd_core::fleet::{Grant, ReleasePattern, Rights};
use distd_core::names::Name;
use distd_core::role::Role;
use distd_core::{ManifestId, NodeId};
use distd_peer::trust::enroll::EnrollMessage;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::token::JoinToken;
use distd_server::db::{AddGrants, Db};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::*;

/// Enrols a node with a new join token that has these labels.
pub(crate) async fn enrolled(world: &World, role: Role, labels: Value) -> (TempDir, NodeId) {
    let new = json!({"role": role, "label": "a node", "labels": labels});
    let (status, made) = world.json(Method::POST, "/v1/join-tokens", Some(new)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let directory = tempfile::tempdir().expect("tempdir");
    let id = enrol_at(world, &directory, role, &text(&made["token"])).await;
    (directory, id)
}

async fn enrol_at(world: &World, directory: &TempDir, role: Role, token: &str) -> NodeId {
    let token: JoinToken = token.parse().expect("a join token");
    let mut node = NodeIdentity::load_or_create(directory.path()).expect("an identity");
    let request = EnrollMessage::Enroll(node.enroll_request(&token, role, "a node").expect("a request"));
    let response =
        world.bare(Method::POST, "/v1/enroll").body(request.encode()).send().await.expect("an answer");
    let reply = response.bytes().await.expect("bytes");
    node.install_enrolled(&token, role, &request.encode(), &reply).expect("a certificate");
    node.node_id()
}

/// Publishes a release; returns its manifest.
async fn release(world: &World, product: &str, version: &str, seed: u64) -> ManifestId {
    let (status, release) = world.put_content(product, version, noise(seed, 30_000)).await;
    assert_eq!(status, StatusCode::CREATED, "{release}");
    serde_json::from_value(release["manifest"].clone()).expect("an id")
}

async fn point(world: &World, product: &str, channel: &str, version: &str) {
    let path = format!("/v1/products/{product}/channels/{channel}");
    let (status, answer) = world.json(Method::PUT, &path, Some(json!({"version": version}))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

async fn put_group(world: &World, name: &str, body: Value) -> (StatusCode, Value) {
    world.json(Method::PUT, &format!("/v1/groups/{name}"), Some(body)).await
}

async fn grant(world: &World, body: Value) -> u64 {
    let (status, made) = world.json(Method::POST, "/v1/grants", Some(body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["grants"][0]["id"].as_u64().expect("an id")
}

/// Rights of a node on each manifest, as text, and those by its certificate alone.
async fn rights(world: &World, node: &NodeId, manifests: &[ManifestId]) -> Vec<(String, String)> {
    let found = world.running.origin.rights_of(node, manifests).await.expect("rights");
    assert_eq!(found.iter().map(|f| f.manifest).collect::<Vec<_>>(), manifests);
    found.iter().map(|f| (f.rights.to_string(), f.by_certificate.to_string())).collect()
}

fn pair(rights: &str, by_certificate: &str) -> (String, String) {
    (rights.to_owned(), by_certificate.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_follow_labels_groups_grants_and_revocations_at_once() {
    let world = World::new().await;
    let one = release(&world, "os", "1", 1).await;
    let two = release(&world, "os", "2", 2).await;
    let app = release(&world, "app", "1", 3).await;
    point(&world, "os", "stable", "1").await;
    point(&world, "os", "stable", "2").await;
    let (_keep, till) = enrolled(&world, Role::Leaf, json!({"site": "12", "kind": "till"})).await;
    let (_keep, relay) = enrolled(&world, Role::Relay, json!({})).await;
    let (_, grants) = world.get("/v1/grants").await;
    assert_eq!(grants["grants"], json!([]), "a new realm grants nothing");
    let manifests = [one, two, app, ManifestId([7; 32])];
    let nothing = vec![pair("", ""); 4];
    assert_eq!(rights(&world, &till, &manifests).await, nothing);

    let mut changed = world.running.origin.fleet_changed();
    let (status, made) = put_group(&world, "tills", json!({"selector": "kind = till"})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(
        made,
        json!({"name": "tills", "selector": "kind=till", "listed": null, "selected": 1, "of": 2})
    );
    grant(&world, json!({"group": "tills", "releases": ["os:stable"], "rights": ["read", "seed"]})).await;
    assert!(changed.has_changed().expect("open"));
    changed.mark_unchanged();
    // Both releases: the channel has pointed to the first.
    let stable = pair("read,seed", "");
    assert_eq!(
        rights(&world, &till, &manifests).await,
        [stable.clone(), stable.clone(), pair("", ""), pair("", "")]
    );
    assert_eq!(rights(&world, &relay, &manifests).await, nothing);
    let relays =
        grant(&world, json!({"group": "everyone", "releases": ["os*"], "by_certificate": true})).await;
    let all = pair("read,seed,report", "read,seed,report");
    assert_eq!(
        rights(&world, &relay, &manifests).await,
        [all.clone(), all.clone(), pair("", ""), pair("", "")]
    );
    let (status, _) = world.json(Method::DELETE, &format!("/v1/grants/{relays}"), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(rights(&world, &relay, &manifests).await, nothing);

    // An operator's label replaces the token's, and takes the node out of the group.
    changed.mark_unchanged();
    let path = format!("/v1/nodes/{till}/labels");
    let (status, labels) = world.json(Method::POST, &path, Some(json!({"set": {"kind": "kiosk"}}))).await;
    assert_eq!(status, StatusCode::OK);
    let expected =
        json!({"token": {"site": "12", "kind": "till"}, "operator": {"kind": "kiosk"}, "facts": {}});
    assert_eq!(labels, expected);
    assert!(changed.has_changed().expect("open"));
    assert_eq!(rights(&world, &till, &manifests).await, nothing);
    world.json(Method::POST, &path, Some(json!({"remove": ["kind"]}))).await;
    assert_eq!(rights(&world, &till, &[one]).await, [stable]);

    // A list of nodes.
    put_group(&world, "some", json!({"nodes": [relay.to_string(), "0".repeat(32)]})).await;
    grant(
        &world,
        json!({"group": "some", "releases": ["app"], "rights": ["read"], "until": 4_000_000_000u64}),
    )
    .await;
    assert_eq!(rights(&world, &relay, &[app, one]).await, [pair("read", ""), pair("", "")]);

    // The node page says why.
    let (_, shown) = world.get(&format!("/v1/nodes/{till}")).await;
    assert_eq!(shown["groups"], json!(["everyone", "tills"]));
    assert_eq!((&shown["grants"][0]["releases"], &shown["grants"][1]), (&json!("os:stable"), &Value::Null));
    let (_, list) = world.get("/v1/nodes").await;
    let listed = list["nodes"].as_array().expect("a list").iter().find(|n| n["id"] == till.to_string());
    assert_eq!(listed.expect("it is listed")["labels"]["token"], json!({"site": "12", "kind": "till"}));
    let (_, tokens) = world.get("/v1/join-tokens").await;
    let tokens = tokens["join_tokens"].as_array().expect("a list");
    assert!(
        tokens.iter().any(|token| token["labels"] == json!({"site": "12", "kind": "till"})),
        "{tokens:?}"
    );

    changed.mark_unchanged();
    let revoke = format!("/v1/nodes/{till}/revoke");
    assert_eq!(world.json(Method::POST, &revoke, None).await.0, StatusCode::NO_CONTENT);
    assert!(changed.has_changed().expect("open"));
    assert_eq!(rights(&world, &till, &manifests).await, nothing);
    let (_, shown) = world.get(&format!("/v1/nodes/{till}")).await;
    assert_eq!(shown["grants"], json!([]), "{shown}");
    assert_eq!(rights(&world, &NodeId([1; 16]), &manifests).await, nothing, "an unknown node");
    assert!(world.running.origin.rights_of(&relay, &[]).await.expect("none").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_end_with_the_grant_that_makes_them_fewer_and_with_no_other() {
    let world = World::new().await;
    let os = release(&world, "os", "1", 1).await;
    let (_keep, node) = enrolled(&world, Role::Leaf, json!({"kind": "till"})).await;
    put_group(&world, "tills", json!({"selector": "kind=till"})).await;
    let (early, late) = (4_000_000_000u64, 4_000_000_500u64);
    let ends = async || {
        let found = world.running.origin.rights_of(&node, &[os]).await.expect("rights");
        (found[0].until, found[0].by_certificate_until)
    };
    grant(&world, json!({"group": "tills", "releases": ["os"], "rights": ["read"], "until": early})).await;
    assert_eq!(ends().await, (Some(early), None));
    // A later end of the same right counts, and then none: the earlier grants are superfluous.
    grant(&world, json!({"group": "tills", "releases": ["os*"], "rights": ["read"], "until": late})).await;
    assert_eq!(ends().await, (Some(late), None));
    let free = json!({"group": "everyone", "releases": ["os"], "rights": ["read"], "by_certificate": true});
    let (status, made) = world.json(Method::POST, "/v1/grants", Some(free)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(ends().await, (None, None));
    // A further right of the node's own ends alone: that of any node is not shortened by it.
    grant(&world, json!({"group": "tills", "releases": ["*"], "rights": ["read", "seed"], "until": early}))
        .await;
    assert_eq!(ends().await, (Some(early), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_enrols_with_another_token_has_the_labels_of_that_one() {
    let world = World::new().await;
    let one = release(&world, "os", "1", 1).await;
    let (directory, node) = enrolled(&world, Role::Leaf, json!({"site": "1"})).await;
    put_group(&world, "first", json!({"selector": "site=1"})).await;
    grant(&world, json!({"group": "first", "releases": ["*"]})).await;
    assert_eq!(rights(&world, &node, &[one]).await, [pair(&Rights::ALL.to_string(), "")]);
    let changed = world.running.origin.fleet_changed();
    let new = json!({"role": "leaf", "labels": {"site": "2"}});
    let (_, made) = world.json(Method::POST, "/v1/join-tokens", Some(new)).await;
    assert_eq!(enrol_at(&world, &directory, Role::Leaf, &text(&made["token"])).await, node);
    assert!(changed.has_changed().expect("open"));
    assert_eq!(rights(&world, &node, &[one]).await, [pair("", "")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_another_process_makes_or_removes_holds_at_once() {
    let world = World::new().await;
    let one = release(&world, "os", "1", 1).await;
    let (_keep, node) = enrolled(&world, Role::Leaf, json!({})).await;
    let file = world.directory.path().join("distd.sqlite");
    let other = Db::open_present(&format!("sqlite:{}", file.display())).await.expect("the same database");
    let everyone: Name = "everyone".parse().expect("a name");
    let wanted = Grant {
        group: everyone.clone(),
        rights: Rights::ALL,
        releases: ReleasePattern::all(),
        until: None,
        by_certificate: false,
    };
    assert_eq!(rights(&world, &node, &[one]).await, [pair("", "")]);
    let made = other.add_grants(&everyone, &[wanted], "other", 1).await.expect("made");
    assert_eq!(rights(&world, &node, &[one]).await, [pair("read,seed,report", "")]);
    let AddGrants::Added(rows) = made else { panic!("{made:?}") };
    other.remove_grant(rows[0].id).await.expect("removed");
    assert_eq!(rights(&world, &node, &[one]).await, [pair("", "")]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_made_listed_shown_page_by_page_and_removed() {
    let world = World::new().await;
    let mut ids = Vec::new();
    let mut keep = Vec::new();
    for n in 0..5 {
        let (directory, id) = enrolled(&world, Role::Leaf, json!({"n": n.to_string()})).await;
        keep.push(directory);
        ids.push(id.to_string());
    }
    ids.sort();
    let (_, first) = world.get("/v1/groups/everyone?limit=3").await;
    assert_eq!((&first["nodes"], &first["after"]), (&json!(ids[..3]), &json!(ids[2])));
    assert_eq!((&first["selected"], &first["of"]), (&json!(5), &json!(5)));
    let (_, second) = world.get(&format!("/v1/groups/everyone?limit=3&after={}", ids[2])).await;
    assert_eq!((&second["nodes"], &second["after"]), (&json!(ids[3..]), &Value::Null));

    put_group(&world, "few", json!({"selector": "n in (1, 2)"})).await;
    let (status, put) = put_group(&world, "few", json!({"nodes": [ids[0], ids[1], ids[1]]})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(put, json!({"name": "few", "selector": null, "listed": 2, "selected": 2, "of": 5}));
    world.json(Method::POST, &format!("/v1/nodes/{}/revoke", ids[0]), None).await;
    let (_, few) = world.get("/v1/groups/few").await;
    assert_eq!((&few["listed"], &few["selected"], &few["of"]), (&json!(2), &json!(1), &json!(4)));
    let id = grant(&world, json!({"group": "few", "releases": ["os", "app"]})).await;
    let (_, list) = world.get("/v1/groups").await;
    assert_eq!(
        list["groups"],
        json!([
            {"name": "everyone", "selector": "*", "listed": null, "grants": []},
            {"name": "few", "selector": null, "listed": 2, "grants": [id, id + 1]},
        ])
    );
    let remove = async || world.json(Method::DELETE, "/v1/groups/few", None).await;
    let (status, refused) = remove().await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::CONFLICT, &json!("in_use")));
    assert!(text(&refused["error"]["message"]).contains(&id.to_string()), "{refused}");
    for id in [id, id + 1] {
        world.json(Method::DELETE, &format!("/v1/grants/{id}"), None).await;
    }
    assert_eq!(remove().await.0, StatusCode::NO_CONTENT);
    assert_eq!(remove().await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v1/groups/few").await.0, StatusCode::NOT_FOUND);
    // The longest list of nodes is accepted, and no longer one.
    let many: Vec<String> = (0..10_001).map(|n| format!("{n:032x}")).collect();
    assert_eq!(put_group(&world, "many", json!({"nodes": many[1..]})).await.0, StatusCode::CREATED);
    assert_eq!(put_group(&world, "many", json!({"nodes": many})).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_repeated_is_one_grant() {
    let world = World::new().await;
    let body = json!({"group": "everyone", "releases": ["os:stable", "app-*"], "until": 4_000_000_000u64});
    let id = grant(&world, body.clone()).await;
    assert_eq!(grant(&world, body).await, id);
    let (_, list) = world.get("/v1/grants").await;
    let list = list["grants"].as_array().expect("a list");
    assert_eq!(list.len(), 2);
    assert_eq!(list[1]["releases"], "app-*");
    assert_eq!(list[0]["rights"], json!(["read", "seed", "report"]));
    assert_eq!((&list[0]["state"], &list[0]["created_by"]), (&json!("valid"), &json!("first admin")));
    let path = format!("/v1/grants/{id}");
    assert_eq!(world.json(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.json(Method::DELETE, &path, None).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_about_the_fleet_are_explained() {
    let world = World::new().await;
    let (_keep, node) = enrolled(&world, Role::Leaf, json!({})).await;
    put_group(&world, "facts", json!({"selector": "fact.os=1"})).await;
    put_group(&world, "tills", json!({"selector": "kind=till"})).await;
    grant(&world, json!({"group": "tills", "releases": ["os"]})).await;
    let labels = format!("/v1/nodes/{node}/labels");
    let many: serde_json::Map<String, Value> = (0..33).map(|n| (format!("k{n}"), json!(""))).collect();
    let (put, post, delete) = (Method::PUT, Method::POST, Method::DELETE);
    let cases = [
        (&put, "/v1/groups/x", json!({"selector": "a=1 b"}), 400, "character 5"),
        (&put, "/v1/groups/x", json!({"selector": "a", "nodes": []}), 400, "selector or a list"),
        (&put, "/v1/groups/x", json!({}), 400, "selector or a list"),
        (&put, "/v1/groups/x", json!({"nodes": ["12"]}), 400, "no node id"),
        (&put, "/v1/groups/x", json!({"selectro": "a"}), 400, "selectro"),
        (&put, "/v1/groups/-x", json!({"selector": "a"}), 400, "path"),
        (&put, "/v1/groups/everyone", json!({"selector": "a"}), 409, "everyone"),
        (&put, "/v1/groups/tills", json!({"selector": "fact.a"}), 409, "facts"),
        (&delete, "/v1/groups/everyone", json!({}), 409, "everyone"),
        (&post, "/v1/grants", json!({"group": "none", "releases": ["os"]}), 404, "none"),
        (&post, "/v1/grants", json!({"group": "facts", "releases": ["os"]}), 409, "facts"),
        (&post, "/v1/grants", json!({"group": "a b", "releases": ["os"]}), 400, "name"),
        (&post, "/v1/grants", json!({"group": "tills", "releases": []}), 400, "1 to 64"),
        (&post, "/v1/grants", json!({"group": "tills", "releases": ["os@1"]}), 400, "pattern"),
        (&post, "/v1/grants", json!({"group": "tills", "releases": ["os"], "rights": ["seed"]}), 400, "read"),
        (
            &post,
            "/v1/grants",
            json!({"group": "tills", "releases": ["os"], "rights": ["write"]}),
            400,
            "write",
        ),
        (&post, "/v1/grants", json!({"group": "tills", "releases": ["os"], "until": 5}), 400, "future"),
        (&post, "/v1/grants", json!({"group": "tills", "releases": ["os"], "until": -5}), 400, "future"),
        (
            &post,
            "/v1/grants",
            json!({"group": "tills", "releases": ["os"], "by_certificate": true}),
            400,
            "everyone",
        ),
        (&delete, "/v1/grants/x", json!({}), 400, "path"),
        (&post, &labels, json!({"set": {"role": "relay"}}), 400, "role"),
        (&post, &labels, json!({"set": {"Site": "1"}}), 400, "a-z"),
        (&post, &labels, json!({"set": {"site": "1 2"}}), 400, "letters"),
        (&post, &labels, json!({"set": many}), 400, "32"),
        (&post, &labels, json!({"set": {"a": "1"}, "remove": ["a"]}), 400, "both"),
        (&post, "/v1/nodes/00/labels", json!({"set": {"a": "1"}}), 404, "node"),
        (&post, "/v1/join-tokens", json!({"role": "leaf", "labels": {"role": "relay"}}), 400, "role"),
        (&post, "/v1/join-tokens", json!({"role": "leaf", "labels": many}), 400, "32"),
    ];
    for (method, path, body, status, word) in cases {
        let (got, answer) = world.json(method.clone(), path, Some(body.clone())).await;
        assert_eq!(got.as_u16(), status, "{path} {body}: {answer}");
        assert!(text(&answer["error"]["message"]).contains(word), "{path} {body}: {answer}");
        assert!(!answer.to_string().contains("\\n"), "an error is one line: {answer}");
    }
    assert_eq!(world.get("/v1/nodes/00").await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v1/groups/everyone?limit=0").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(world.get("/v1/groups/none").await.0, StatusCode::NOT_FOUND);
}
