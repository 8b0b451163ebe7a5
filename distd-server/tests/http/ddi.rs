//! hawkBit's DDI, as its clients hold the dialogue: tokens, polls, artifacts, feedback, and
//! rollouts that hold for these devices too.

use std::time::Duration;

use distd_peer::trust::token::sha256;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

/// An origin that answers DDI, with the releases 1 to 3 of `os` and the channel `stable` at 1.
struct Realm(World);

/// A device and its header.
struct Device<'a> {
    realm: &'a Realm,
    id: String,
    header: String,
}

fn image(version: u8) -> Vec<u8> {
    [noise(version.into(), 1_200_000), vec![version; 2_000_000]].concat()
}

impl Realm {
    async fn new() -> Self {
        Self::with(&[("ddi", "true")]).await
    }

    async fn with(settings: &[(&'static str, &str)]) -> Self {
        // Rollouts must not wait for patches, which these devices do not use.
        let settings = [settings, &[("patches", "false")]].concat();
        let realm = Self(World::open_with(tempfile::tempdir().expect("tempdir"), &settings).await);
        for version in 1..=3 {
            let (status, made) = realm.0.put_content("os", &version.to_string(), image(version)).await;
            assert_eq!(status, StatusCode::CREATED, "{made}");
        }
        realm.point("1").await;
        let grant = json!({"group": "everyone", "releases": ["os*"]});
        assert_eq!(realm.0.json(Method::POST, "/v1/grants", Some(grant)).await.0, StatusCode::CREATED);
        realm
    }

    async fn point(&self, version: &str) {
        let path = "/v1/products/os/channels/stable";
        let (status, answer) = self.0.json(Method::PUT, path, Some(json!({"version": version}))).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    async fn token(&self, more: Value) -> Value {
        let mut body = json!({"product": "os", "channel": "stable", "label": "a token"});
        body.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        let (status, made) = self.0.json(Method::POST, "/v1/ddi/tokens", Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made
    }

    /// A device with a target token of its own.
    async fn device(&self, id: &str) -> Device<'_> {
        let made = self.token(json!({"target": id})).await;
        Device { realm: self, id: id.to_owned(), header: format!("TargetToken {}", text(&made["token"])) }
    }

    /// What the fleet knows about a device.
    async fn seen(&self, id: &str) -> Value {
        let (_, nodes) = self.0.get("/v1/nodes").await;
        let node = nodes["nodes"].as_array().expect("a list").iter().find(|node| node["label"] == id);
        let node = text(&node.expect("a node")["id"]);
        self.0.get(&format!("/v1/fleet/nodes/{node}")).await.1
    }

    async fn update_of(&self, id: &str) -> String {
        text(&self.seen(id).await["channels"][0]["update"])
    }

    async fn start(&self, version: &str, more: Value) -> Value {
        let mut body = json!({"version": version, "soak": 0});
        body.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        let path = "/v1/products/os/channels/stable/rollouts";
        let (status, begun) = self.0.json(Method::POST, path, Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{begun}");
        begun
    }

    async fn order(&self, order: &str) {
        let path = "/v1/products/os/channels/stable/rollout";
        let (status, answer) = self.0.json(Method::POST, path, Some(json!({"order": order}))).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    async fn rollout(&self) -> Value {
        self.0.get("/v1/products/os/channels/stable/rollout").await.1
    }

    /// Waits until the first `waves` waves of the rollout are open.
    async fn opened(&self, waves: usize) {
        eventually("waves open", async || {
            let rollout = self.rollout().await;
            let all = rollout["waves"].as_array().expect("a list");
            all.iter().filter(|wave| !wave["opened"].is_null()).count() == waves
        })
        .await;
    }
}

impl Device<'_> {
    fn url(&self, path: &str) -> String {
        format!("/DEFAULT/controller/v1/{}{path}", self.id)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.realm.0.bare(method, &self.url(path)).header("authorization", &self.header)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    async fn poll(&self) -> Value {
        let (status, root) = self.get("").await;
        assert_eq!(status, StatusCode::OK, "{root}");
        root
    }

    /// The address behind a link, from the device's own on; `None` without the link.
    async fn link(&self, name: &str) -> Option<String> {
        let root = self.poll().await;
        let href = root["_links"][name]["href"].as_str()?;
        let base = self.realm.0.url(&self.url(""));
        Some(href.strip_prefix(&base).expect("an address of this origin and device").to_owned())
    }

    /// Polls, and looks at the deployment that is offered.
    async fn deployment(&self) -> Option<Value> {
        let path = self.link("deploymentBase").await?;
        let (status, found) = self.get(&path).await;
        assert_eq!(status, StatusCode::OK, "{found}");
        Some(found)
    }

    async fn feedback(&self, path: &str, execution: &str, finished: &str, detail: &str) -> StatusCode {
        let body = json!({
            "id": "1", "time": "20261128T082558",
            "status": {"result": {"finished": finished}, "execution": execution, "details": [detail]},
        });
        self.post(path, body.to_string()).await
    }

    async fn post(&self, path: &str, body: String) -> StatusCode {
        self.request(Method::POST, path).body(body).send().await.expect("an answer").status()
    }

    /// Fetches the artifact of a deployment.
    async fn fetch(&self, deployment: &Value) -> Vec<u8> {
        let artifact = &deployment["deployment"]["chunks"][0]["artifacts"][0];
        let href = text(&artifact["_links"]["download"]["href"]);
        let request = self.realm.0.client.get(&href).header("authorization", &self.header);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        response.bytes().await.expect("bytes").to_vec()
    }

    /// Installs what is offered.
    async fn install(&self) -> String {
        let deployment = self.deployment().await.expect("a deployment");
        let id = text(&deployment["id"]);
        self.fetch(&deployment).await;
        let path = format!("/deploymentBase/{id}/feedback");
        assert_eq!(self.feedback(&path, "proceeding", "none", "Installing").await, StatusCode::OK);
        assert_eq!(self.feedback(&path, "closed", "success", "done").await, StatusCode::OK);
        text(&deployment["deployment"]["chunks"][0]["version"])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ddi_is_off_unless_switched_on() {
    let realm = Realm::with(&[]).await;
    let device = realm.device("till-1").await;
    assert_eq!(device.get("").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_installs_as_rauc_hawkbit_updater_does() {
    let realm = Realm::with(&[("ddi", "true"), ("ddi_poll", "1h")]).await;
    let named = json!({"name": "os_@v.raucb"});
    let set = realm.0.json(Method::PUT, "/v1/products/os/file-name", Some(named)).await;
    assert_eq!(set.0, StatusCode::OK);
    let device = realm.device("52:54:00:ab:cd:ef").await;
    let root = device.poll().await;
    assert_eq!(root["config"]["polling"]["sleep"], "01:00:00");
    assert!(root["_links"]["cancelAction"].is_null() && root["_links"]["confirmationBase"].is_null());
    let body = json!({
        "time": "20261128T082558", "status": {"result": {"finished": "success"}, "execution": "closed"},
        "data": {"HW Revision": "7", "serial": "a"},
    });
    let sent = device.request(Method::PUT, "/configData").json(&body).send().await.expect("an answer");
    assert_eq!(sent.status(), StatusCode::OK);
    assert_eq!(device.link("configData").await, None, "asked for once a day");
    let seen = realm.seen(&device.id).await;
    assert_eq!(seen["node"]["labels"]["facts"], json!({"hw-revision": "7", "serial": "a"}));
    assert_eq!((&seen["node"]["ddi"], &seen["contact"]), (&json!(true), &json!("online")));

    let path = device.link("deploymentBase").await.expect("a deployment");
    let (_, found) = device.get(&path).await;
    let id: u64 = text(&found["id"]).parse().expect("a decimal number");
    assert_eq!(path, format!("/deploymentBase/{id}"));
    let deployment = &found["deployment"];
    assert_eq!((&deployment["download"], &deployment["update"]), (&json!("forced"), &json!("forced")));
    let chunks = deployment["chunks"].as_array().expect("a list");
    let artifacts = chunks[0]["artifacts"].as_array().expect("a list");
    assert_eq!((chunks.len(), artifacts.len()), (1, 1), "clients refuse more");
    let (artifact, bytes) = (&artifacts[0], image(1));
    assert_eq!((&artifact["filename"], &artifact["size"]), (&json!("os_1.raucb"), &json!(bytes.len())));
    assert_eq!(artifact["hashes"]["sha256"], hex::encode(sha256(&bytes)));
    for (kind, len) in [("sha1", 40), ("md5", 32)] {
        assert_eq!(text(&artifact["hashes"][kind]).len(), len);
    }
    assert_eq!(device.fetch(&found).await, bytes);
    assert_eq!(realm.update_of(&device.id).await, "outdated", "no rollout has an attempt to show");

    // Broken off, and resumed.
    let href = text(&artifact["_links"]["download"]["href"]);
    let get = async |range: Option<&str>, tag: Option<&str>, method: Method| {
        let mut request = realm.0.client.request(method, &href).header("authorization", &device.header);
        for (name, value) in [("range", range), ("if-range", tag)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.send().await.expect("an answer")
    };
    let head = get(None, None, Method::HEAD).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["content-length"], bytes.len().to_string());
    let tag = head.headers()["etag"].to_str().expect("text").to_owned();
    for (from, to) in
        [(0, 3), (5_000, 1_300_000), (bytes.len() - 1, bytes.len() - 1), (1_100_000, bytes.len() - 1)]
    {
        let part = get(Some(&format!("bytes={from}-{to}")), Some(&tag), Method::GET).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers()["content-range"], format!("bytes {from}-{to}/{}", bytes.len()));
        assert!(part.bytes().await.expect("bytes") == bytes[from..=to], "{from}-{to}");
    }
    let other = get(Some("bytes=5-"), Some("\"other\""), Method::GET).await;
    assert_eq!(other.status(), StatusCode::OK);
    let outside = get(Some(&format!("bytes={}-", bytes.len())), None, Method::GET).await;
    assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let elsewhere = device.get(&format!("/softwaremodules/{id}/artifacts/os_2.raucb")).await;
    assert_eq!(elsewhere.0, StatusCode::NOT_FOUND);

    let feedback = format!("{path}/feedback");
    for step in 0..75 {
        let said = device.feedback(&feedback, "proceeding", "none", &format!("{step}% Installing")).await;
        assert_eq!(said, StatusCode::OK);
    }
    assert_eq!(
        device.feedback(&feedback, "closed", "success", "Software bundle installed").await,
        StatusCode::OK
    );
    assert_eq!(realm.update_of(&device.id).await, "up_to_date");
    assert_eq!(device.link("deploymentBase").await, None);
    // A second word about an action that is over changes nothing, and its artifact is gone.
    assert_eq!(device.feedback(&feedback, "closed", "failure", "again").await, StatusCode::OK);
    assert_eq!(realm.update_of(&device.id).await, "up_to_date");
    assert_eq!(get(None, None, Method::GET).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(device.get(&path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(device.get("/deploymentBase/x").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_speak_for_their_devices_alone() {
    let realm = Realm::new().await;
    let own = realm.device("till-1").await;
    own.poll().await;
    let gateway = realm.token(json!({"admits": 2, "labels": {"site": "12"}})).await;
    assert_eq!(gateway["node"], Value::Null);
    let header = format!("GatewayToken {}", text(&gateway["token"]));
    let through = |id: &str| Device { realm: &realm, id: id.to_owned(), header: header.clone() };
    let refused = async |device: &Device<'_>| {
        let (status, error) = device.get("").await;
        assert_eq!((status, &error["error"]["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthorised")));
    };
    // A gateway does not speak for a device that has a token of its own.
    refused(&through("till-1")).await;
    // New devices become nodes, with the labels of the token, as often as it allows.
    for id in ["gate-1", "gate-2", "gate-1"] {
        through(id).poll().await;
    }
    refused(&through("gate-3")).await;
    let seen = realm.seen("gate-1").await;
    assert_eq!(
        (&seen["node"]["labels"]["token"], &seen["node"]["role"]),
        (&json!({"site": "12"}), &json!("leaf"))
    );
    let (_, list) = realm.0.get("/v1/ddi/tokens").await;
    let listed: Vec<_> =
        list["tokens"].as_array().expect("a list").iter().map(|t| (&t["target"], &t["admits"])).collect();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&(&Value::Null, &json!(0))) && listed.contains(&(&json!("till-1"), &json!(0))));
    assert!(!list.to_string().contains(&text(&gateway["token"])), "shown once");

    // A target token is for its own device, and under its own word.
    let elsewhere = Device { realm: &realm, id: "gate-1".to_owned(), header: own.header.clone() };
    refused(&elsewhere).await;
    let wrong = own.header.replace("TargetToken", "GatewayToken");
    refused(&Device { realm: &realm, id: "till-1".to_owned(), header: wrong }).await;
    for header in ["", "TargetToken", "TargetToken x", "Bearer x", "TargetToken  "] {
        refused(&Device { realm: &realm, id: "till-1".to_owned(), header: header.to_owned() }).await;
    }
    for id in ["a%2fb", "a%20b", "%2e%2e%2f"] {
        let odd = Device { realm: &realm, id: id.to_owned(), header: header.clone() };
        assert_eq!(odd.get("").await.0, StatusCode::NOT_FOUND, "{id}");
    }

    // A gateway of another channel does not speak for these devices.
    let put = realm.0.json(Method::PUT, "/v1/products/os/channels/beta", Some(json!({"version": "1"}))).await;
    assert_eq!(put.0, StatusCode::OK);
    let other = realm.token(json!({"channel": "beta", "admits": 9})).await;
    let header = format!("GatewayToken {}", text(&other["token"]));
    refused(&Device { realm: &realm, id: "gate-1".to_owned(), header }).await;

    // A node that is revoked is served nothing, and does not come back by itself.
    let node = text(&realm.seen("gate-2").await["node"]["id"]);
    let gone =
        realm.0.request(Method::POST, &format!("/v1/nodes/{node}/revoke")).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    refused(&through("gate-2")).await;
    // A new target token lets the device in again, as another node.
    let again = realm.device("gate-2").await;
    again.poll().await;
    let (_, nodes) = realm.0.get("/v1/nodes").await;
    let of_device = nodes["nodes"].as_array().expect("a list").iter().filter(|n| n["label"] == "gate-2");
    assert_eq!(of_device.count(), 2);

    let path = format!("/v1/ddi/tokens/{}", text(&gateway["id"]));
    let revoked = realm.0.request(Method::DELETE, &path).send().await.expect("an answer");
    assert_eq!(revoked.status(), StatusCode::NO_CONTENT);
    refused(&through("gate-1")).await;
    let (_, log) = realm.0.get("/v1/audit?action=ddi-token").await;
    let acts: Vec<_> =
        log["entries"].as_array().expect("a list").iter().map(|e| text(&e["action"])).collect();
    assert_eq!(acts[0], "ddi-token.revoke");
    assert_eq!(acts.iter().filter(|act| *act == "ddi-token.make").count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_the_right_is_offered_nothing() {
    let realm = Realm::new().await;
    let device = realm.device("till-1").await;
    let (_, grants) = realm.0.get("/v1/grants").await;
    let path = format!("/v1/grants/{}", grants["grants"][0]["id"]);
    let gone = realm.0.request(Method::DELETE, &path).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(device.link("deploymentBase").await, None);
    assert_eq!(realm.seen("till-1").await["contact"], "unknown", "nor may it report");
    // Rights follow labels, as for all devices.
    let node = text(&realm.seen("till-1").await["node"]["id"]);
    let labels = json!({"set": {"kind": "till"}});
    let labelled = realm.0.json(Method::POST, &format!("/v1/nodes/{node}/labels"), Some(labels)).await;
    assert_eq!(labelled.0, StatusCode::OK);
    let group = realm.0.json(Method::PUT, "/v1/groups/tills", Some(json!({"selector": "kind=till"}))).await;
    assert_eq!(group.0, StatusCode::CREATED);
    let grant = json!({"group": "tills", "releases": ["os:stable"]});
    assert_eq!(realm.0.json(Method::POST, "/v1/grants", Some(grant)).await.0, StatusCode::CREATED);
    assert_eq!(device.install().await, "1");
    // A pin holds, and is lifted.
    let pin = format!("/v1/nodes/{node}/pins/os");
    let pinned = realm.0.request(Method::PUT, &pin).json(&json!({"version": "1"})).send().await;
    assert_eq!(pinned.expect("an answer").status(), StatusCode::NO_CONTENT);
    realm.point("2").await;
    assert_eq!(device.link("deploymentBase").await, None);
    assert!(realm.seen("till-1").await["why"][0].to_string().contains("pinned"));
    let lifted = realm.0.request(Method::DELETE, &pin).send().await.expect("an answer");
    assert_eq!(lifted.status(), StatusCode::NO_CONTENT);
    assert_eq!(device.install().await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn waves_open_for_devices_that_poll_and_a_halt_calls_them_back() {
    let realm = Realm::new().await;
    let ids = ["till-1", "till-2", "till-3", "till-4"];
    let mut devices = Vec::new();
    for id in ids {
        let device = realm.device(id).await;
        assert_eq!(device.install().await, "1");
        devices.push(device);
    }
    realm.start("2", json!({"waves": "1,100%", "success": "100%", "attempts": 2})).await;
    realm.opened(1).await;
    let mut first = None;
    for device in &devices {
        match device.link("deploymentBase").await {
            Some(_) => assert!(first.replace(device).is_none(), "the first wave has one device"),
            None => {
                assert_eq!(realm.update_of(&device.id).await, "held");
                assert!(realm.seen(&device.id).await["why"][0].to_string().contains("wave 2 of 2"));
            }
        }
    }
    let first = first.expect("a device of the first wave");

    // Under way, halted, and called back.
    let deployment = first.deployment().await.expect("a deployment");
    let id = text(&deployment["id"]);
    let feedback = format!("/deploymentBase/{id}/feedback");
    assert_eq!(first.feedback(&feedback, "proceeding", "none", "downloading").await, StatusCode::OK);
    assert_eq!(realm.update_of(&first.id).await, "updating");
    let attempt = realm.seen(&first.id).await["attempts"][0].clone();
    assert_eq!((&attempt["state"], &attempt["detail"]), (&json!("fetching"), &json!("downloading")));
    realm.order("halt").await;
    let root = first.poll().await;
    assert!(root["_links"]["deploymentBase"].is_null(), "clients start a download when both links are there");
    assert_eq!(first.link("cancelAction").await, Some(format!("/cancelAction/{id}")));
    let (_, cancel) = first.get(&format!("/cancelAction/{id}")).await;
    assert_eq!(cancel, json!({"id": id, "cancelAction": {"stopId": id}}));
    let href = text(&deployment["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download"]["href"]);
    let artifact = realm.0.client.get(href).header("authorization", &first.header).send().await;
    assert_eq!(artifact.expect("an answer").status(), StatusCode::NOT_FOUND, "no more bytes");
    let canceled = format!("/cancelAction/{id}/feedback");
    assert_eq!(first.feedback(&canceled, "closed", "success", "Action canceled.").await, StatusCode::OK);
    let root = first.poll().await;
    assert!(root["_links"]["cancelAction"].is_null() && root["_links"]["deploymentBase"].is_null(), "{root}");

    // The rollout goes on; the first device fails, tries again, and succeeds.
    realm.order("resume").await;
    realm.opened(1).await;
    let failing = first.deployment().await.expect("a deployment");
    let feedback = format!("/deploymentBase/{}/feedback", text(&failing["id"]));
    assert_ne!(text(&failing["id"]), id);
    assert_eq!(first.feedback(&feedback, "proceeding", "none", "Installing image").await, StatusCode::OK);
    assert_eq!(first.feedback(&feedback, "closed", "failure", "no space left").await, StatusCode::OK);
    let attempt = realm.seen(&first.id).await["attempts"][0].clone();
    assert_eq!((&attempt["state"], &attempt["failure"]), (&json!("failed"), &json!("activation")));
    assert_eq!((&attempt["detail"], &attempt["number"]), (&json!("no space left"), &json!(1)));
    assert_eq!(first.install().await, "2");
    let attempt = realm.seen(&first.id).await["attempts"][0].clone();
    assert_eq!((&attempt["state"], &attempt["number"]), (&json!("succeeded"), &json!(2)));
    assert_eq!(attempt["bytes_origin"], image(2).len());
    realm.opened(2).await;
    for device in devices.iter().filter(|device| device.id != first.id) {
        assert_eq!(device.install().await, "2");
    }
    eventually("the rollout completes", async || realm.rollout().await["rollout"]["state"] == "complete")
        .await;
    let (_, status) = realm.0.get("/v1/fleet?product=os").await;
    assert_eq!((&status["devices"], &status["update"]["up_to_date"]), (&json!(4), &json!(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_failures_as_allowed_end_a_devices_part() {
    let realm = Realm::new().await;
    let device = realm.device("till-1").await;
    assert_eq!(device.install().await, "1");
    realm.start("2", json!({"waves": "100%", "halt_on": "9", "attempts": 2})).await;
    realm.opened(1).await;
    for _ in 0..2 {
        let path = device.link("deploymentBase").await.expect("a deployment");
        // SWUpdate's closing feedback about an artifact without a hash is no JSON.
        let broken = "{\"id\": 1, \"status\":{\"result\":{\"finished\": \"failure\"},\"execution\":\"closed\",\"details\":[\"a\nb\"]}}";
        assert_eq!(device.post(&format!("{path}/feedback"), broken.to_owned()).await, StatusCode::OK);
    }
    assert_eq!(device.link("deploymentBase").await, None);
    assert_eq!(realm.update_of("till-1").await, "failed");
    assert_eq!(realm.seen("till-1").await["attempts"][0]["detail"], "a b");
    // The channel's own release is not tried again and again either.
    realm.order("rollback").await;
    realm.point("3").await;
    let path = device.link("deploymentBase").await.expect("a deployment");
    assert_eq!(device.feedback(&format!("{path}/feedback"), "closed", "failure", "no").await, StatusCode::OK);
    assert_eq!(device.link("deploymentBase").await, None);
    assert!(realm.seen("till-1").await["why"][0].to_string().contains("failed"));
    for bad in ["", "{}", "x"] {
        assert_eq!(device.post(&format!("{path}/feedback"), bad.to_owned()).await, StatusCode::BAD_REQUEST);
    }
    let long = "x".repeat(100_000);
    assert_eq!(device.post(&format!("{path}/feedback"), long).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_goes_back_only_by_order_and_its_attributes_tell_of_a_way_back() {
    let realm = Realm::new().await;
    let device = realm.device("till-1").await;
    realm.point("2").await;
    let says = async |version: &str| {
        let body = json!({"mode": "merge", "data": {"version": version}});
        let sent = device.request(Method::PUT, "/configData").json(&body).send().await.expect("an answer");
        assert_eq!(sent.status(), StatusCode::OK);
    };
    // A new device that says what it runs is not told to install that.
    says("2").await;
    assert_eq!(device.link("deploymentBase").await, None);
    assert_eq!(realm.update_of("till-1").await, "up_to_date");
    // It runs a later release than its channel: it stays.
    says("3").await;
    assert_eq!(device.link("deploymentBase").await, None);
    let body = json!({"version": "1", "downgrade": true});
    let (status, _) = realm.0.json(Method::PUT, "/v1/products/os/channels/stable", Some(body)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(device.install().await, "1");

    // It installed the release of a rollout, and boots into the one before.
    realm.point("2").await;
    assert_eq!(device.install().await, "2");
    realm
        .start("3", json!({"waves": "100%", "halt_on": "9", "attempts": 1, "success": "100%", "soak": 3600}))
        .await;
    realm.opened(1).await;
    assert_eq!(device.install().await, "3");
    says("2").await;
    let attempt = realm.seen("till-1").await["attempts"][0].clone();
    assert_eq!((&attempt["state"], &attempt["failure"]), (&json!("rolled_back"), &json!("boot")));
    assert_eq!(device.link("deploymentBase").await, None, "one attempt was allowed");
    assert_eq!(realm.update_of("till-1").await, "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_rollout_waits_for_a_confirmation_at_the_device() {
    let realm = Realm::new().await;
    let device = realm.device("till-1").await;
    assert_eq!(device.install().await, "1");
    realm.start("2", json!({"waves": "100%", "conditions": {"urgency": "soft"}})).await;
    realm.opened(1).await;
    assert_eq!(device.link("deploymentBase").await, None);
    let path = device.link("confirmationBase").await.expect("something to confirm");
    let (_, asked) = device.get(&path).await;
    assert_eq!(asked["confirmation"]["chunks"][0]["version"], "2");
    let id = text(&asked["id"]);
    assert_eq!(device.get(&format!("/deploymentBase/{id}")).await.0, StatusCode::NOT_FOUND);
    let feedback = format!("{path}/feedback");
    assert_eq!(device.post(&feedback, json!({"confirmation": "denied"}).to_string()).await, StatusCode::OK);
    assert_eq!(device.link("confirmationBase").await, Some(path.clone()));
    assert_eq!(
        device.post(&feedback, json!({"confirmation": "perhaps"}).to_string()).await,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        device.post(&feedback, json!({"confirmation": "confirmed"}).to_string()).await,
        StatusCode::OK
    );
    assert_eq!(device.install().await, "2");

    let (_, state) = device.get("/confirmationBase").await;
    assert_eq!(state["autoConfirm"], json!({"active": false}));
    assert_eq!(device.post("/confirmationBase/activateAutoConfirm", String::new()).await, StatusCode::OK);
    assert_eq!(device.get("/confirmationBase").await.1["autoConfirm"], json!({"active": true}));
    eventually("the rollout completes", async || realm.rollout().await["rollout"]["state"] == "complete")
        .await;
    realm.start("3", json!({"waves": "100%", "conditions": {"urgency": "soft"}})).await;
    realm.opened(1).await;
    assert_eq!(device.install().await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_hold_for_devices_that_poll() {
    let realm = Realm::new().await;
    let (one, two) = (realm.device("till-1").await, realm.device("till-2").await);
    for device in [&one, &two] {
        assert_eq!(device.install().await, "1");
    }
    realm.start("2", json!({"waves": "100%", "conditions": {"at_once": 1}})).await;
    realm.opened(1).await;
    assert!(one.deployment().await.is_some());
    assert_eq!(two.link("deploymentBase").await, None);
    assert!(realm.seen("till-2").await["why"][0].to_string().contains("as many other devices"));
    assert_eq!(one.install().await, "2");
    assert_eq!(two.install().await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_nobody_looked_at_follows_the_channel() {
    let realm = Realm::new().await;
    let device = realm.device("till-1").await;
    let first = device.link("deploymentBase").await.expect("a deployment");
    realm.point("2").await;
    let second = device.link("deploymentBase").await.expect("a deployment");
    assert_ne!(first, second, "no call back was needed");
    assert_eq!(device.install().await, "2");
    // A device that cannot stop any more goes on.
    realm.point("3").await;
    let path = device.link("deploymentBase").await.expect("a deployment");
    assert_eq!(device.get(&path).await.0, StatusCode::OK);
    let body = json!({"version": "2", "downgrade": true});
    let (status, _) = realm.0.json(Method::PUT, "/v1/products/os/channels/stable", Some(body)).await;
    assert_eq!(status, StatusCode::OK);
    let cancel = device.link("cancelAction").await.expect("a call back");
    assert_eq!(
        device.feedback(&format!("{cancel}/feedback"), "rejected", "none", "installing").await,
        StatusCode::OK
    );
    assert_eq!(device.link("deploymentBase").await, Some(path.clone()));
    assert_eq!(device.feedback(&format!("{path}/feedback"), "closed", "success", "").await, StatusCode::OK);
    assert_eq!(realm.seen("till-1").await["channels"][0]["version"], "3");
    // A restart of the origin forgets nothing.
    let World { running, directory, .. } = realm.0;
    assert!(running.stop(Duration::from_secs(10)).await);
    let world = World::open_with(directory, &[("ddi", "true")]).await;
    assert_eq!(world.get("/v1/ddi/tokens").await.1["tokens"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_calls_back_only_what_is_not_installed_yet() {
    let realm = Realm::new().await;
    let (one, two) = (realm.device("till-1").await, realm.device("till-2").await);
    for device in [&one, &two] {
        assert_eq!(device.install().await, "1");
    }
    realm.start("2", json!({"waves": "100%"})).await;
    realm.opened(1).await;
    let path = one.link("deploymentBase").await.expect("a deployment");
    let feedback = format!("{path}/feedback");
    assert_eq!(one.feedback(&feedback, "proceeding", "none", "Installing").await, StatusCode::OK);
    assert!(two.deployment().await.is_some());
    realm.order("pause").await;
    assert_eq!(one.link("deploymentBase").await, Some(path));
    assert!(two.link("cancelAction").await.is_some());
    assert_eq!(one.feedback(&feedback, "closed", "success", "").await, StatusCode::OK);
    assert_eq!(realm.seen("till-1").await["channels"][0]["version"], "2");
}
