//! The audit log over HTTP: each request that changes something leaves an entry.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::state::{id, node, reports};
use crate::world::*;

/// Requests that leave no entry, and why.
const WITHOUT: [(&str, &str, &str); 4] = [
    ("DELETE", "/v1/uploads/{upload}", "an upload is no release"),
    (
        "POST",
        "/v1/products/{product}/releases/{version}/patches",
        "patches change neither releases nor rights",
    ),
    ("POST", "/v1/uploads/{upload}/chunks", "chunks are no release before the commit"),
    ("POST", "/v1/uploads/{upload}/missing", "a question"),
];

struct Log<'a> {
    world: &'a World,
    /// Actor of the admin.
    admin: String,
    seen: BTreeSet<(String, String)>,
    head: u64,
}

impl Log<'_> {
    /// Checks that the request to `route` that was just made left an entry, by the admin.
    async fn has(&mut self, method: &str, route: &str, action: &str) -> Value {
        let actor = self.admin.clone();
        self.has_by(&actor, method, route, action).await
    }

    async fn has_by(&mut self, actor: &str, method: &str, route: &str, action: &str) -> Value {
        self.seen.insert((method.to_owned(), route.to_owned()));
        let (status, page) = self.world.get(&format!("/v1/audit?after={}&limit=1000", self.head)).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let entries = page["entries"].as_array().expect("a list");
        let found = entries.iter().find(|entry| entry["action"] == action && entry["actor"] == actor);
        let found = found.unwrap_or_else(|| panic!("{method} {route} leaves no {action} by {actor}: {page}"));
        self.head = entries.last().expect("an entry")["number"].as_u64().expect("a number");
        assert!(!found.to_string().contains("distd-"), "no secret of a token: {found}");
        found.clone()
    }

    /// Makes a request of the admin and checks its entry.
    async fn call(
        &mut self,
        method: &str,
        route: &str,
        path: &str,
        body: Option<Value>,
        action: &str,
    ) -> Value {
        let (status, answer) = self.world.json(method.parse().expect("a method"), path, body).await;
        assert!(status.is_success(), "{method} {path}: {answer}");
        self.has(method, route, action).await;
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_that_changes_something_leaves_an_entry() {
    let directory = tempfile::tempdir().expect("tempdir");
    let world =
        World::open_with(directory, &[("bundle_validity", "2d"), ("webhook_network", "127.0.0.0/8")]).await;
    let (_, own) = world.get("/v1/token").await;
    let admin = format!("token {}", text(&own["id"]));
    let mut log = Log { world: &world, admin, seen: BTreeSet::new(), head: 0 };

    // Products, releases, channels.
    log.call("POST", "/v1/products", "/v1/products", Some(json!({"name": "os"})), "product.set").await;
    let content = "/v1/products/{product}/releases/{version}/content";
    world.put_content("os", "1", noise(1, 30_000)).await;
    let entry = log.has("PUT", content, "release.publish").await;
    assert_eq!((&entry["subject"], &entry["label"]), (&json!("os@1"), &json!("first admin")));
    world.begin("app", "1").await;
    log.has("POST", "/v1/products/{product}/releases/{version}/uploads", "product.set").await;
    assert_eq!(cut(&noise(2, 30_000)).push(&world, "os", "2").await.0, StatusCode::CREATED);
    log.has("POST", "/v1/uploads/{upload}/commit", "release.publish").await;
    let (route, stable) = ("/v1/products/{product}/channels/{channel}", "/v1/products/os/channels/stable");
    log.call("PUT", route, stable, Some(json!({"version": "2"})), "channel.set").await;
    let body = json!({"version": "1", "downgrade": true});
    let (status, _) = world.json(Method::PUT, stable, Some(body)).await;
    assert_eq!(status, StatusCode::OK);
    let entry = log.has("PUT", route, "channel.set").await;
    let details: Value = serde_json::from_str(&text(&entry["details"])).expect("JSON");
    assert_eq!((&details["from"], details["downgrade_from"].is_u64()), (&json!("2"), true), "{entry}");

    let (of_name, path) = ("/v1/products/{product}/file-name", "/v1/products/os/file-name");
    log.call("PUT", of_name, path, Some(json!({"name": "os_@v"})), "product.set").await;
    log.call("DELETE", of_name, path, None, "product.set").await;

    let body = json!({"product": "os", "channel": "stable"});
    let tokens = "/v1/ddi/tokens";
    let made = log.call("POST", tokens, tokens, Some(body), "ddi-token.make").await;
    let path = format!("{tokens}/{}", text(&made["id"]));
    log.call("DELETE", "/v1/ddi/tokens/{id}", &path, None, "ddi-token.revoke").await;

    // Rollouts.
    world.put_content("os", "3", noise(3, 30_000)).await;
    node(&world, 1, "leaf").await;
    reports(&world, 1, "stable", "1", None, None, 0).await;
    let (route, path) = (format!("{route}/rollouts"), format!("{stable}/rollouts"));
    log.call("POST", &route, &path, Some(json!({"version": "3"})), "rollout.started").await;
    let (route, path) = (route.trim_end_matches('s').to_owned(), path.trim_end_matches('s').to_owned());
    for (order, action) in
        [("pause", "paused"), ("resume", "resumed"), ("halt", "halted"), ("rollback", "rolled_back")]
    {
        let action = format!("rollout.{action}");
        log.call("POST", &route, &path, Some(json!({"order": order})), &action).await;
    }
    let route = "/v1/products/{product}/channels/{channel}";
    log.call("DELETE", route, stable, None, "channel.remove").await;
    let route = "/v1/products/{product}/releases/{version}/bundle";
    let body = json!({"seconds": 60});
    log.call("POST", route, "/v1/products/os/releases/2/bundle", Some(body), "release.bundle").await;
    let (route, path) = ("/v1/products/{product}/releases/{version}", "/v1/products/os/releases/2");
    log.call("POST", &format!("{route}/withdraw"), &format!("{path}/withdraw"), None, "release.withdraw")
        .await;
    log.call("POST", &format!("{route}/restore"), &format!("{path}/restore"), None, "release.unwithdraw")
        .await;
    let why = Some(json!({"why": "x"}));
    log.call("PUT", &format!("{route}/pin"), &format!("{path}/pin"), why, "release.pin").await;
    log.call("DELETE", &format!("{route}/pin"), &format!("{path}/pin"), None, "release.unpin").await;
    log.call("DELETE", route, path, None, "release.remove").await;
    world.put_content("os", "4", noise(4, 30_000)).await;
    let (route, path) = ("/v1/products/{product}/retention", "/v1/products/os/retention");
    log.call("PUT", route, path, Some(json!({"keep": 1})), "product.retention").await;
    log.call("POST", "/v1/gc", "/v1/gc", None, "release.remove").await;
    log.call("DELETE", route, path, None, "product.retention").await;
    let (route, path) = ("/v1/quotas/{kind}/{name}", "/v1/quotas/product/os");
    log.call("PUT", route, path, Some(json!({"stored_bytes": 1_000_000})), "quota.set").await;
    log.call("DELETE", route, path, None, "quota.remove").await;

    let (route, path) = ("/v1/products/{product}/channels/{channel}/approval", format!("{stable}/approval"));
    log.call("PUT", route, &path, Some(json!({"wanted": true})), "channel.approval").await;

    // Nodes.
    let one = format!("/v1/nodes/{}", id(1));
    let (labels, pin) = ("/v1/nodes/{id}/labels", "/v1/nodes/{id}/pins/{product}");
    log.call("POST", labels, &format!("{one}/labels"), Some(json!({"set": {"site": "1"}})), "node.label")
        .await;
    log.call("PUT", pin, &format!("{one}/pins/os"), Some(json!({"version": "1"})), "node.pin").await;
    log.call("DELETE", pin, &format!("{one}/pins/os"), None, "node.unpin").await;
    log.call("POST", "/v1/nodes/{id}/revoke", &format!("{one}/revoke"), None, "node.revoke").await;
    let enrolled = crate::fleet::enrolled(&world, "leaf".parse().expect("a role"), json!({})).await;
    let (_, list) = world.get("/v1/join-tokens").await;
    let join = text(&list["join_tokens"][0]["id"]);
    let entry = log.has_by(&format!("join token {join}"), "POST", "/v1/enroll", "node.enrol").await;
    assert_eq!(entry["subject"], enrolled.1.to_string());
    let body = Some(json!({"tokens": true}));
    log.call(
        "POST",
        "/v1/nodes/{id}/revoke",
        &format!("/v1/nodes/{}/revoke", enrolled.1),
        body,
        "join-token.revoke",
    )
    .await;

    // Groups, grants, tokens.
    let (route, path) = ("/v1/groups/{group}", "/v1/groups/tills");
    log.call("PUT", route, path, Some(json!({"selector": "site=1"})), "group.set").await;
    let body = json!({"group": "tills", "releases": ["os:stable"]});
    let made = log.call("POST", "/v1/grants", "/v1/grants", Some(body), "grant.add").await;
    let path_of_grant = format!("/v1/grants/{}", made["grants"][0]["id"]);
    log.call("DELETE", "/v1/grants/{id}", &path_of_grant, None, "grant.remove").await;
    log.call("DELETE", route, path, None, "group.remove").await;
    for (list, body, kind) in [
        ("/v1/tokens", json!({"label": "ci", "scopes": ["read"]}), "token"),
        ("/v1/join-tokens", json!({"role": "leaf"}), "join-token"),
    ] {
        let made = log.call("POST", list, list, Some(body), &format!("{kind}.make")).await;
        let path = format!("{list}/{}", text(&made["id"]));
        log.call("DELETE", &format!("{list}/{{id}}"), &path, None, &format!("{kind}.revoke")).await;
    }

    // Webhooks. Nothing listens at the port.
    let hooks = "/v1/webhooks";
    let body = json!({"url": "http://127.0.0.1:1/secret-path"});
    let made = log.call("POST", hooks, hooks, Some(body), "webhook.add").await;
    let path = format!("{hooks}/{}", text(&made["id"]));
    for (order, action) in [("test", "webhook.test"), ("retry", "webhook.retry")] {
        log.call("POST", &format!("{hooks}/{{id}}/{order}"), &format!("{path}/{order}"), None, action).await;
    }
    log.call("DELETE", &format!("{hooks}/{{id}}"), &path, None, "webhook.remove").await;
    let (_, page) = world.get("/v1/audit?action=webhook").await;
    assert!(!page.to_string().contains("secret-path"), "{page}");

    // All requests that change something are among these.
    let (_, document) = answer(world.bare(Method::GET, "/v1/openapi.json")).await;
    let mut seen = log.seen;
    seen.extend(WITHOUT.map(|(method, path, _)| (method.to_owned(), path.to_owned())));
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys().filter(|method| *method != "get") {
            let route = (method.to_uppercase(), path.clone());
            assert!(seen.contains(&route), "{route:?} is not tested: does it leave an entry?");
        }
    }
    let head = world.running.origin.db().check_audit().await.expect("read").expect("a whole log");
    assert!(head.number >= log.head, "{head}");
    for (query, word) in [("limit=0", "limit"), ("before=1&after=1", "before"), ("since=x", "since")] {
        let (status, answer) = world.get(&format!("/v1/audit?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.to_string().contains(word), "{answer}");
    }
}
