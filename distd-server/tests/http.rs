//! The HTTP API of a whole origin on port 0: TLS, tokens, both ways in, and everything callers get wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, regions};
use distd_core::manifest::Manifest;
use distd_core::packing::Packer;
use distd_peer::trust::enroll::{EnrollReply, RefusalCode};
use distd_peer::trust::identity::{NodeIdentity, Role};
use distd_peer::trust::tls::{TrustAnchor, https_client};
use distd_peer::trust::token::{ApiToken, JoinToken};
use distd_server::config::{CommandLine, Settings};
use distd_server::db::ApiTokenRow;
use distd_server::run::{Running, StartError, start};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

fn settings(data: &Path, more: &[(&'static str, &str)]) -> Settings {
    let mut line = CommandLine::new();
    line.insert("data", vec![data.display().to_string()]);
    line.insert("http", vec!["127.0.0.1:0".to_owned()]);
    line.insert("quic", vec!["127.0.0.1:0".to_owned()]);
    for (key, value) in more {
        line.insert(key, vec![(*value).to_owned()]);
    }
    Settings::resolve(&line, |_| None, None).expect("settings")
}

fn https(fingerprint: [u8; 32]) -> Client {
    let mut tls = https_client(&TrustAnchor::Fingerprint(fingerprint));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Client::builder().tls_backend_preconfigured(tls).build().expect("a client")
}

/// An origin of one test's own, and its admin.
struct World {
    running: Running,
    client: Client,
    token: String,
    directory: TempDir,
}

impl World {
    async fn new() -> Self {
        Self::open(tempfile::tempdir().expect("tempdir")).await
    }

    async fn open(directory: TempDir) -> Self {
        let running = start(&settings(directory.path(), &[])).await.expect("starts");
        let token = std::fs::read_to_string(directory.path().join("admin.token")).expect("the first token");
        let token = token.trim().to_owned();
        let parsed: ApiToken = token.parse().expect("a token");
        Self { client: https(*parsed.ca_fingerprint()), running, token, directory }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.running.http)
    }

    fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.token)
    }

    async fn json(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::GET, path, None).await
    }

    async fn post_bytes(&self, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).body(body)).await
    }

    async fn put_content(&self, product: &str, version: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let path = format!("/v1/products/{product}/releases/{version}/content");
        answer(self.request(Method::PUT, &path).body(body)).await
    }

    async fn begin(&self, product: &str, version: &str) -> (String, bool) {
        let path = format!("/v1/products/{product}/releases/{version}/uploads");
        let (status, upload) = self.json(Method::POST, &path, None).await;
        assert_eq!(status, StatusCode::OK, "{upload}");
        (text(&upload["upload"]), upload["resumed"].as_bool().expect("resumed"))
    }

    async fn missing(&self, upload: &str, hashes: &[ChunkHash]) -> Vec<bool> {
        let body: Vec<u8> = hashes.iter().flat_map(|h| *h.as_bytes()).collect();
        let path = format!("/v1/uploads/{upload}/missing");
        let response = self.request(Method::POST, &path).body(body).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        let bitmap = response.bytes().await.expect("a bitmap");
        assert_eq!(bitmap.len(), hashes.len().div_ceil(8));
        (0..hashes.len()).map(|i| bitmap[i / 8] & (0x80 >> (i % 8)) != 0).collect()
    }

    /// A token with these scopes, put into the database behind the API.
    async fn token_with(&self, scopes: &str, expires: Option<i64>) -> String {
        let token = ApiToken::generate(self.running.origin.realm().ca_fingerprint());
        let row = ApiTokenRow {
            secret_sha256: token.secret_hash(),
            label: scopes.to_owned(),
            scopes: scopes.to_owned(),
            created: 1,
            expires,
            revoked: None,
        };
        self.running.origin.db().put_api_token(&row).await.expect("recorded");
        token.to_secret_string()
    }

    fn packs(&self) -> Vec<PathBuf> {
        files(&self.directory.path().join("objects/packs"))
    }

    fn spooled(&self) -> Vec<PathBuf> {
        files(&self.directory.path().join("spool"))
    }
}

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let body = response.bytes().await.expect("its body");
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
    if !status.is_success() {
        assert!(value["error"]["code"].is_string() && value["error"]["message"].is_string(), "{value}");
        assert_ne!(value["error"]["next"], "", "every failure says what to do: {value}");
    }
    (status, value)
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { todo.push(path) } else { found.push(path) }
        }
    }
    found
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// An artifact as a publisher cuts it.
struct Cut {
    chunks: Vec<(ChunkHash, Vec<u8>)>,
    whole: Vec<u8>,
}

fn cut(whole: &[u8]) -> Cut {
    let regions = regions(whole);
    let mut batches = Batches::new(whole, regions.all(), CutParams::default());
    let mut chunks = Vec::new();
    while let Some(batch) = batches.next_batch(Vec::new()).expect("memory reads") {
        for chunk in batch.chunks() {
            chunks.push((ChunkHash::of(chunk.data), chunk.data.to_vec()));
        }
    }
    Cut { chunks, whole: whole.to_vec() }
}

fn record(hash: &ChunkHash, raw: &[u8]) -> Vec<u8> {
    let packed = Packer::new(3).pack(raw);
    let mut out = hash.as_bytes().to_vec();
    out.push(packed.codec.code());
    out.extend(packed.raw_len.to_be_bytes());
    out.extend((packed.bytes.len() as u32).to_be_bytes());
    out.extend(&packed.bytes[..]);
    out
}

#[derive(serde::Serialize)]
struct CommitBody<'a> {
    kind: &'a str,
    listing_bytes: u64,
    cut: CutParams,
    bytes: u64,
    #[serde(with = "serde_bytes")]
    blake3: [u8; 32],
    #[serde(with = "serde_bytes")]
    chunks: Vec<u8>,
}

impl Cut {
    fn hashes(&self) -> Vec<ChunkHash> {
        self.chunks.iter().map(|(hash, _)| *hash).collect()
    }

    fn records(&self, wanted: &[bool]) -> Vec<u8> {
        let chunks = self.chunks.iter().zip(wanted).filter(|(_, wanted)| **wanted);
        chunks.flat_map(|((hash, raw), _)| record(hash, raw)).collect()
    }

    fn commit(&self) -> Vec<u8> {
        let mut chunks = Vec::new();
        for (hash, raw) in &self.chunks {
            chunks.extend(hash.as_bytes());
            chunks.extend((raw.len() as u32).to_be_bytes());
            chunks.extend(1u32.to_be_bytes());
        }
        let body = CommitBody {
            kind: "file",
            listing_bytes: 0,
            cut: CutParams::default(),
            bytes: self.whole.len() as u64,
            blake3: *blake3::hash(&self.whole).as_bytes(),
            chunks,
        };
        rmp_serde::to_vec_named(&body).expect("encodes")
    }

    async fn push(&self, world: &World, product: &str, version: &str) -> (StatusCode, Value) {
        let (upload, _) = world.begin(product, version).await;
        let missing = world.missing(&upload, &self.hashes()).await;
        let path = format!("/v1/uploads/{upload}/chunks");
        let (status, stored) = world.post_bytes(&path, self.records(&missing)).await;
        assert_eq!(status, StatusCode::OK, "{stored}");
        assert_eq!(stored["stored"], missing.iter().filter(|m| **m).count());
        world.post_bytes(&format!("/v1/uploads/{upload}/commit"), self.commit()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_in_give_the_same_manifest_and_an_update_sends_only_what_is_new() {
    let world = World::new().await;
    let image = noise(1, 3 << 20);
    let (status, sent_whole) = world.put_content("whole", "1", image.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{sent_whole}");
    assert_eq!(sent_whole["blake3"], blake3::hash(&image).to_string());

    // Nothing is missing, for the origin has these chunks.
    let first = cut(&image);
    let (upload, resumed) = world.begin("cut", "1").await;
    assert!(!resumed);
    assert!(world.missing(&upload, &first.hashes()).await.iter().all(|missing| !missing));
    let commit = format!("/v1/uploads/{upload}/commit");
    let (status, sent_cut) = world.post_bytes(&commit, first.commit()).await;
    assert_eq!(status, StatusCode::CREATED, "{sent_cut}");
    assert_eq!(sent_cut["manifest"], sent_whole["manifest"]);
    // An answer that got lost is asked for again.
    assert_eq!(world.post_bytes(&commit, first.commit()).await, (StatusCode::OK, sent_cut));

    // The other way round for an update.
    let mut update = image.clone();
    update[1 << 20..][..5000].copy_from_slice(&noise(2, 5000));
    let update = cut(&update);
    let (upload, _) = world.begin("cut", "2").await;
    let missing = world.missing(&upload, &update.hashes()).await.into_iter().filter(|m| *m).count();
    assert!((1..8).contains(&missing), "{missing} of {}", update.chunks.len());
    assert!(world.begin("cut", "2").await.1, "the same upload");
    let (status, sent_cut) = update.push(&world, "cut", "2").await;
    assert_eq!(status, StatusCode::CREATED, "{sent_cut}");
    let (status, sent_whole) = world.put_content("whole", "2", update.whole.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{sent_whole}");
    assert_eq!(sent_cut["manifest"], sent_whole["manifest"]);

    assert_eq!(world.get("/v1/products/whole/releases/2").await, (StatusCode::OK, sent_whole.clone()));
    let (_, list) = world.get("/v1/products/whole/releases").await;
    assert_eq!(list["releases"].as_array().expect("a list").len(), 2);
    assert!(world.spooled().is_empty());

    // The manifest as a file, its nodes one by one.
    let id = text(&sent_whole["manifest"]);
    let bytes = world.request(Method::GET, &format!("/v1/manifests/{id}")).send().await.expect("answer");
    let manifest = Manifest::from_file_bytes(bytes.bytes().await.expect("bytes")).expect("a manifest");
    assert_eq!(manifest.id().to_string(), id);
    for (_, hash) in manifest.nodes_missing_from(&[]) {
        let path = format!("/v1/manifests/{id}/nodes/{hash}");
        let node = world.request(Method::GET, &path).send().await.expect("answer").bytes().await;
        assert_eq!(Some(&node.expect("bytes")), manifest.node(&hash));
    }
    let root = world.request(Method::GET, &format!("/v1/manifests/{id}/nodes/{id}")).send().await;
    assert_eq!(root.expect("answer").bytes().await.expect("bytes"), *manifest.root_bytes());
    world.running.stop(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_pushed_again_is_the_same_or_refused() {
    let world = World::new().await;
    let image = noise(3, 200_000);
    assert_eq!(world.put_content("os", "1", image.clone()).await.0, StatusCode::CREATED);
    assert_eq!(world.put_content("os", "1", image).await.0, StatusCode::OK);
    let (status, error) = world.put_content("os", "1", noise(4, 200_000)).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("version_taken")));
    let (status, error) = cut(&noise(4, 200_000)).push(&world, "os", "1").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("version_taken")));
    assert_eq!(world.packs().len(), 1, "what was refused is not kept");
    assert!(world.spooled().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let world = World::new().await;
    let path = "/v1/products/os/releases/1/content";
    let pieces = futures::stream::iter((0..40).map(|n| match n {
        39 => Err(std::io::Error::other("the cable is pulled")),
        n => Ok(noise(n, 1 << 18)),
    }));
    let put = world.request(Method::PUT, path).body(reqwest::Body::wrap_stream(pieces)).send().await;
    assert!(put.is_err());
    eventually("the spooled file goes", async || world.spooled().is_empty()).await;
    assert_eq!(world.get("/v1/products/os/releases/1").await.0, StatusCode::NOT_FOUND);
    assert!(world.packs().is_empty());

    // The same in the middle of chunks, and then the upload is given up.
    let image = cut(&noise(5, 2 << 20));
    let (upload, _) = world.begin("os", "1").await;
    let records = image.records(&vec![true; image.chunks.len()]);
    let half = records[..records.len() / 2].to_vec();
    let chunks = format!("/v1/uploads/{upload}/chunks");
    let pieces = futures::stream::iter([Ok(half), Err(std::io::Error::other("the cable is pulled"))]);
    let post = world.request(Method::POST, &chunks).body(reqwest::Body::wrap_stream(pieces)).send().await;
    assert!(post.is_err());
    assert_eq!(world.post_bytes(&chunks, records.clone()).await.0, StatusCode::OK);
    assert_eq!(world.packs().len(), 1);
    let upload_path = format!("/v1/uploads/{upload}");
    assert_eq!(world.json(Method::DELETE, &upload_path, None).await.0, StatusCode::NO_CONTENT);
    assert!(world.packs().is_empty(), "the space came back");
    let (status, error) = world.post_bytes(&chunks, records).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("conflict")));
    assert_eq!(world.json(Method::DELETE, &upload_path, None).await.0, StatusCode::CONFLICT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_found_or_repeated() {
    let world = World::new().await;
    let image = cut(&noise(6, 8 << 20));
    let (upload, _) = world.begin("os", "1").await;
    let all = vec![true; image.chunks.len()];
    let chunks = format!("/v1/uploads/{upload}/chunks");
    assert_eq!(world.post_bytes(&chunks, image.records(&all)).await.0, StatusCode::OK);
    let commit = world.request(Method::POST, &format!("/v1/uploads/{upload}/commit")).body(image.commit());
    // Long enough to send the list, mostly too short to wait for the release.
    let _ = tokio::time::timeout(Duration::from_millis(30), commit.send()).await;
    eventually("released or still open", async || {
        let (status, _) = world.get("/v1/products/os/releases/1").await;
        if status == StatusCode::OK {
            return true;
        }
        let again = format!("/v1/uploads/{upload}/commit");
        let (status, release) = world.post_bytes(&again, image.commit()).await;
        assert!(status.is_success(), "{release}");
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_needed_and_must_be_enough() {
    let world = World::new().await;
    let ask = async |token: Option<&str>, method: Method, path: &str| {
        let mut request = world.bare(method, path).body("{}");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let (status, value) = answer(request).await;
        (status.as_u16(), value["error"]["code"].as_str().unwrap_or("").to_owned())
    };
    let unauthorised = (401, "unauthorised".to_owned());
    let forbidden = (403, "forbidden".to_owned());
    let foreign = ApiToken::generate([7; 32]).to_secret_string();
    let expired = world.token_with("read", Some(5)).await;
    let (products, get, post) = ("/v1/products", Method::GET, Method::POST);
    for bad in [None, Some("x"), Some(""), Some("distd-api-v1.a.b"), Some(&foreign), Some(&expired)] {
        assert_eq!(ask(bad, get.clone(), products).await, unauthorised, "{bad:?}");
    }
    let read = world.token_with("read", None).await;
    let publish = world.token_with("publish", None).await;
    let channel = world.token_with("channel", Some(i64::MAX)).await;
    assert_eq!(ask(Some(&read), get.clone(), products).await.0, 200);
    assert_eq!(ask(Some(&publish), get.clone(), products).await, forbidden);
    assert_eq!(ask(Some(&read), post.clone(), products).await, forbidden);
    let uploads = "/v1/products/os/releases/1/uploads";
    assert_eq!(ask(Some(&read), post.clone(), uploads).await, forbidden);
    assert_eq!(ask(Some(&publish), post.clone(), uploads).await.0, 200);
    let stable = "/v1/products/os/channels/stable";
    assert_eq!(ask(Some(&publish), Method::PUT, stable).await, forbidden);
    assert_eq!(ask(Some(&channel), Method::PUT, stable).await.0, 400, "allowed, but the body is nothing");
    for path in ["/v1/tokens", "/v1/join-tokens", "/v1/nodes/00/revoke"] {
        assert_eq!(ask(Some(&channel), post.clone(), path).await, forbidden, "{path}");
    }
    assert_eq!(ask(Some(&read), Method::GET, "/v1/nodes").await, forbidden);
    // A body is not read before its sender is known.
    let put = world.bare(Method::PUT, "/v1/products/os/releases/1/content").body(noise(1, 100));
    assert_eq!(answer(put).await.0, StatusCode::UNAUTHORIZED);
    assert!(world.spooled().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_listed_and_revoked() {
    let world = World::new().await;
    let new = json!({"label": "ci", "scopes": ["publish", "read"], "expires_in": 3600});
    let (status, made) = world.json(Method::POST, "/v1/tokens", Some(new)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let (token, id) = (text(&made["token"]), text(&made["id"]));
    assert_eq!(
        world.bare(Method::GET, "/v1/products").bearer_auth(&token).send().await.expect("answer").status(),
        200
    );
    let (_, list) = world.get("/v1/tokens").await;
    let listed = list["tokens"].as_array().expect("a list").iter().find(|t| t["id"] == id.as_str());
    let listed = listed.expect("it is listed").clone();
    assert_eq!((&listed["label"], &listed["scopes"]), (&json!("ci"), &json!(["read", "publish"])));
    assert!(!list.to_string().contains(token.rsplit('.').next().expect("a secret")));
    let path = format!("/v1/tokens/{id}");
    assert_eq!(world.json(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(
        world.bare(Method::GET, "/v1/products").bearer_auth(&token).send().await.expect("answer").status(),
        401
    );

    // Nobody locks themselves out.
    let admin: ApiToken = world.token.parse().expect("a token");
    let path = format!("/v1/tokens/{}", hex::encode(&admin.secret_hash()[..8]));
    assert_eq!(world.json(Method::DELETE, &path, None).await.0, StatusCode::CONFLICT);
    assert_eq!(world.json(Method::DELETE, "/v1/tokens/0000", None).await.0, StatusCode::NOT_FOUND);
    for bad in [
        json!({"label": "x", "scopes": []}),
        json!({"label": "x", "scopes": ["root"]}),
        json!({"label": "x".repeat(300), "scopes": ["read"]}),
        json!({"label": "x\n", "scopes": ["read"]}),
        json!({"label": "x", "scopes": ["read"], "expires_in": 0}),
        json!({"label": "x", "scopes": ["read"], "expires_in": u64::MAX}),
        json!({"label": "x", "scopes": ["read"], "surprise": 1}),
    ] {
        assert_eq!(world.json(Method::POST, "/v1/tokens", Some(bad.clone())).await.0, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_enrols_over_https_with_a_join_token_and_is_revoked() {
    let world = World::new().await;
    let new = json!({"role": "relay", "uses": 1, "expires_in": 600, "label": "office"});
    let (status, made) = world.json(Method::POST, "/v1/join-tokens", Some(new)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let token: JoinToken = text(&made["token"]).parse().expect("a join token");
    let directory = tempfile::tempdir().expect("tempdir");
    let mut node = NodeIdentity::load_or_create(directory.path()).expect("an identity");
    let enroll = async |body: Vec<u8>| {
        let response = world.bare(Method::POST, "/v1/enroll").body(body).send().await.expect("answer");
        assert_eq!(response.status(), StatusCode::OK);
        EnrollReply::decode(&response.bytes().await.expect("bytes")).expect("a reply")
    };
    let request = distd_peer::trust::enroll::EnrollMessage::Enroll(
        node.enroll_request(&token, Role::Relay, "office").expect("a request"),
    );
    match enroll(request.encode()).await {
        EnrollReply::Enrolled(response) => node.install_enrolled(&token, &response).expect("a certificate"),
        other => panic!("{other:?}"),
    }
    let (_, list) = world.get("/v1/nodes").await;
    assert_eq!((&list["nodes"][0]["label"], &list["nodes"][0]["role"]), (&json!("office"), &json!("relay")));
    let id = text(&list["nodes"][0]["id"]);
    assert_eq!(id, node.node_id().to_string());
    let revoke = format!("/v1/nodes/{id}/revoke");
    assert_eq!(world.json(Method::POST, &revoke, None).await.0, StatusCode::NO_CONTENT);
    match enroll(request.encode()).await {
        EnrollReply::Refused(refusal) => assert_eq!(refusal.code, RefusalCode::Revoked),
        other => panic!("{other:?}"),
    }
    match enroll(b"junk".to_vec()).await {
        EnrollReply::Refused(refusal) => assert_eq!(refusal.code, RefusalCode::BadRequest),
        other => panic!("{other:?}"),
    }
    for bad in [
        json!({"role": "origin", "uses": 1, "expires_in": 600, "label": ""}),
        json!({"role": "relay", "uses": 0, "expires_in": 600, "label": ""}),
        json!({"role": "relay", "uses": 1, "expires_in": 0, "label": ""}),
        json!({"role": "king", "label": ""}),
    ] {
        assert_eq!(world.json(Method::POST, "/v1/join-tokens", Some(bad.clone())).await.0, 400, "{bad}");
    }
    assert_eq!(world.json(Method::POST, "/v1/nodes/00/revoke", None).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_move_and_are_signed() {
    let world = World::new().await;
    for version in ["1", "2"] {
        let image = noise(version.len() as u64 + version.as_bytes()[0] as u64, 100_000);
        assert_eq!(world.put_content("os", version, image).await.0, StatusCode::CREATED);
    }
    let path = "/v1/products/os/channels/stable";
    let (status, error) = world.get(path).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_channel")));
    for (version, counter) in [("1", 1), ("2", 2), ("2", 2), ("1", 3)] {
        let (status, channel) = world.json(Method::PUT, path, Some(json!({"version": version}))).await;
        assert_eq!(status, StatusCode::OK, "{channel}");
        assert_eq!((&channel["version"], &channel["counter"]), (&json!(version), &json!(counter)));
        let (_, release) = world.get(&format!("/v1/products/os/releases/{version}")).await;
        assert_eq!(channel["manifest"], release["manifest"]);
        assert_eq!(world.get(path).await, (StatusCode::OK, channel));
    }
    let (_, list) = world.get("/v1/products/os/channels").await;
    assert_eq!(list["channels"].as_array().expect("a list").len(), 1);
    let (status, error) = world.json(Method::PUT, path, Some(json!({"version": "3"}))).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_version")));
    let elsewhere = "/v1/products/none/channels/stable";
    let (status, error) = world.json(Method::PUT, elsewhere, Some(json!({"version": "1"}))).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_product")));

    // TUF has them, without a token.
    let timestamp = world.bare(Method::GET, "/tuf/timestamp.json").send().await.expect("answer");
    assert_eq!(timestamp.headers()["cache-control"], "no-cache");
    let timestamp: Value = timestamp.json().await.expect("JSON");
    let snapshot = &timestamp["signed"]["meta"]["snapshot.json"]["version"];
    let (status, snapshot) = answer(world.bare(Method::GET, &format!("/tuf/{snapshot}.snapshot.json"))).await;
    assert_eq!(status, StatusCode::OK);
    let version = &snapshot["signed"]["meta"]["channels.json"]["version"];
    let (_, channels) = answer(world.bare(Method::GET, &format!("/tuf/{version}.channels.json"))).await;
    assert!(channels["signed"]["targets"]["channels/os/stable"].is_object(), "{channels}");
    for bad in
        ["/tuf/none.json", "/tuf/pruning.json", "/tuf/..%2frealm%2fca.key", "/tuf/.hidden", "/tuf/a//b"]
    {
        assert_eq!(answer(world.bare(Method::GET, bad)).await.0, StatusCode::NOT_FOUND, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_are_plain_ranges() {
    let world = World::new().await;
    assert_eq!(world.put_content("os", "1", noise(7, 3 << 20)).await.0, StatusCode::CREATED);
    let pack = world.packs().pop().expect("a pack");
    let whole = std::fs::read(&pack).expect("readable");
    let path = format!("/v1/packs/{}", pack.file_name().and_then(|n| n.to_str()).expect("a name"));
    let get = async |headers: &[(&str, &str)]| {
        let mut request = world.request(Method::GET, &path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.expect("answer")
    };
    let response = get(&[]).await;
    assert_eq!(response.status(), 200);
    let etag = response.headers()["etag"].to_str().expect("text").to_owned();
    assert_eq!(response.content_length(), Some(whole.len() as u64));
    assert_eq!(response.bytes().await.expect("bytes"), whole);

    let response = get(&[("range", "bytes=1000000-2500000"), ("if-range", &etag)]).await;
    assert_eq!(response.status(), 206);
    let range = format!("bytes 1000000-2500000/{}", whole.len());
    assert_eq!(response.headers()["content-range"], range.as_str());
    assert_eq!(response.bytes().await.expect("bytes"), whole[1_000_000..=2_500_000]);
    let response = get(&[("range", "bytes=-8")]).await;
    assert_eq!(response.bytes().await.expect("bytes"), whole[whole.len() - 8..]);
    let response = get(&[("range", "bytes=0-1"), ("if-range", "\"another\"")]).await;
    assert_eq!(response.status(), 200);
    let response = get(&[("range", "bytes=99999999-")]).await;
    assert_eq!(response.status(), 416);
    assert_eq!(response.headers()["content-range"], format!("bytes */{}", whole.len()).as_str());
    let head = world.request(Method::HEAD, &path).send().await.expect("answer");
    assert_eq!(
        (head.status().as_u16(), head.headers()["content-length"].to_str().expect("text")),
        (200, whole.len().to_string().as_str())
    );
    for bad in ["00", "../../realm/ca.key", "zz", &"0".repeat(32)] {
        assert_eq!(world.get(&format!("/v1/packs/{}", bad.replace('/', "%2f"))).await.0, 404, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_caller_that_is_still_sending() {
    let world = World::new().await;
    let body = noise(12, 20 << 20);
    for _ in 0..5 {
        let put = world.bare(Method::PUT, "/v1/products/os/releases/1/content").body(body.clone());
        assert_eq!(answer(put).await.0, StatusCode::UNAUTHORIZED);
    }
    // One that asks first is told without sending.
    let began = std::time::Instant::now();
    let put = world.bare(Method::PUT, "/v1/products/os/releases/1/content").header("expect", "100-continue");
    let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let put = put.body(reqwest::Body::wrap_stream(never)).send().await.expect("an answer");
    assert_eq!(put.status(), StatusCode::UNAUTHORIZED);
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waited for the body");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_nothing_breaks() {
    let world = World::new().await;
    let image = cut(&noise(8, 300_000));
    let (upload, _) = world.begin("os", "1").await;
    let at = |what: &str| format!("/v1/uploads/{upload}/{what}");
    let (hash, raw) = &image.chunks[0];
    let good = record(hash, raw);
    let head = |codec: u8, raw: u32, stored: u32| {
        let mut out = hash.as_bytes().to_vec();
        out.push(codec);
        out.extend(raw.to_be_bytes());
        out.extend(stored.to_be_bytes());
        out
    };
    let mut flipped = good.clone();
    flipped[60] ^= 1;
    let mut bomb = head(1, 1 << 20, 13);
    bomb.extend([0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    let bad = StatusCode::BAD_REQUEST;
    for (what, body, expected) in [
        ("chunks", good[..good.len() - 1].to_vec(), bad),
        ("chunks", good[..20].to_vec(), bad),
        ("chunks", head(0, u32::MAX, u32::MAX), bad),
        ("chunks", head(0, 0, 0), bad),
        ("chunks", head(7, 4, 4), bad),
        ("chunks", head(1, 4, 5), bad),
        ("chunks", flipped, unprocessable),
        ("chunks", bomb, unprocessable),
        ("chunks", vec![0; 33 << 20], StatusCode::PAYLOAD_TOO_LARGE),
        ("missing", vec![0; 33], bad),
        ("missing", vec![0; 32 * 65_537], StatusCode::PAYLOAD_TOO_LARGE),
        ("commit", Vec::new(), bad),
        ("commit", b"{}".to_vec(), bad),
        ("commit", vec![0xdf, 0xff, 0xff, 0xff, 0xff], bad),
        ("commit", b"\x81\xa6chunks\xc6\xff\xff\xff\xff".to_vec(), bad),
        ("commit", vec![0x91; 100_000], bad),
        ("commit", image.commit(), StatusCode::CONFLICT),
    ] {
        let len = body.len();
        let (status, error) = world.post_bytes(&at(what), body).await;
        assert_eq!(status, expected, "{what} of {len} bytes: {error}");
    }
    // Lists that contradict themselves.
    let commit = |change: &dyn Fn(&mut BTreeMap<String, rmpv>)| {
        let mut map: BTreeMap<String, rmpv> = BTreeMap::from([
            ("kind".into(), rmpv::Text("file")),
            ("listing_bytes".into(), rmpv::Number(0)),
            ("cut".into(), rmpv::Numbers([4096, 16384, 65536])),
            ("bytes".into(), rmpv::Number(image.whole.len() as u64)),
            ("blake3".into(), rmpv::Bin(blake3::hash(&image.whole).as_bytes().to_vec())),
            (
                "chunks".into(),
                rmpv::Bin(hash.as_bytes().iter().copied().chain([0, 0, 16, 0, 0, 0, 0, 1]).collect()),
            ),
        ]);
        change(&mut map);
        rmp_serde::to_vec_named(&map).expect("encodes")
    };
    let with = |key: &'static str, value: rmpv| {
        commit(&move |map| {
            map.insert(key.to_owned(), value.clone());
        })
    };
    let run = |len: u32, repeat: u32| {
        let mut out = hash.as_bytes().to_vec();
        out.extend(len.to_be_bytes());
        out.extend(repeat.to_be_bytes());
        rmpv::Bin(out)
    };
    for body in [
        with("kind", rmpv::Text("device")),
        with("listing_bytes", rmpv::Number(5)),
        with("cut", rmpv::Numbers([0, 0, 0])),
        with("bytes", rmpv::Number(u64::MAX)),
        with("blake3", rmpv::Bin(vec![0; 31])),
        with("chunks", rmpv::Bin(vec![0; 39])),
        with("chunks", run(1, u32::MAX)),
        with("chunks", run(u32::MAX, u32::MAX)),
        with("chunks", run(0, 1)),
        with("surprise", rmpv::Number(1)),
        commit(&|map| {
            map.remove("cut");
        }),
    ] {
        let (status, error) = world.post_bytes(&at("commit"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    }

    let unknown = "0".repeat(64);
    for (method, path, expected) in [
        (Method::GET, "/v1/nothing".to_owned(), 404),
        (Method::PATCH, "/v1/products".to_owned(), 405),
        (Method::GET, "/v1/products/a%2fb".to_owned(), 400),
        (Method::GET, "/v1/products/..%2f..".to_owned(), 400),
        (Method::GET, "/v1/products/%ff".to_owned(), 400),
        (Method::GET, "/v1/products/none".to_owned(), 404),
        (Method::GET, "/v1/products/none/releases".to_owned(), 404),
        (Method::GET, "/v1/products/os/releases/9".to_owned(), 404),
        (Method::POST, format!("/v1/products/{}/releases/1/uploads", "x".repeat(101)), 400),
        (Method::POST, "/v1/uploads/zz/chunks".to_owned(), 404),
        (Method::POST, format!("/v1/uploads/{}/commit", "0".repeat(32)), 404),
        (Method::DELETE, format!("/v1/uploads/{}", "0".repeat(32)), 404),
        (Method::GET, "/v1/manifests/xyz".to_owned(), 400),
        (Method::GET, format!("/v1/manifests/{unknown}"), 404),
        (Method::GET, format!("/v1/manifests/{unknown}/nodes/{unknown}"), 404),
        (Method::POST, "/v1/products".to_owned(), 400),
    ] {
        assert_eq!(world.json(method.clone(), &path, None).await.0.as_u16(), expected, "{method} {path}");
    }
    for body in [
        json!({"name": "../x"}),
        json!({"name": "x", "cut": {"min": 1, "avg": 2, "max": 3}}),
        json!({"name": 1}),
        json!([]),
        json!({"name": "x", "surprise": true}),
    ] {
        assert_eq!(world.json(Method::POST, "/v1/products", Some(body.clone())).await.0, 400, "{body}");
    }

    // It still works.
    let (status, release) = image.push(&world, "os", "1").await;
    assert_eq!(status, StatusCode::CREATED, "{release}");
    assert!(world.running.stop(Duration::from_secs(10)).await);
}

/// Just enough msgpack to lie in.
#[derive(Clone, serde::Serialize)]
#[serde(untagged)]
#[expect(non_camel_case_types, reason = "stands for the crate of this name")]
enum rmpv {
    Text(&'static str),
    Number(u64),
    Numbers([u64; 3]),
    Bin(#[serde(with = "serde_bytes")] Vec<u8>),
}

#[tokio::test(flavor = "multi_thread")]
async fn products_are_made_once_and_cut_as_told() {
    let world = World::new().await;
    let cut = json!({"min": 1024, "avg": 4096, "max": 8192});
    let (status, product) =
        world.json(Method::POST, "/v1/products", Some(json!({"name": "os", "cut": cut}))).await;
    assert_eq!((status, &product["cut"]), (StatusCode::CREATED, &cut));
    let (status, product) = world.json(Method::POST, "/v1/products", Some(json!({"name": "os"}))).await;
    assert_eq!((status, &product["cut"]), (StatusCode::OK, &cut), "what was not said stays");
    let other = json!({"min": 2048, "avg": 4096, "max": 8192});
    let (status, product) =
        world.json(Method::POST, "/v1/products", Some(json!({"name": "os", "cut": other}))).await;
    assert_eq!((status, &product["cut"]), (StatusCode::OK, &other));
    let (_, release) = world.put_content("os", "1", noise(9, 200_000)).await;
    assert!(release["chunks"].as_u64().expect("a number") > 200_000 / 8192, "{release}");
    assert_eq!(world.get("/v1/products/os").await.1["cut"], other);
    assert_eq!(world.get("/v1/products").await.1["products"].as_array().expect("a list").len(), 1);
    let (status, refused) = world.put_content("os", "empty", Vec::new()).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("bad_request")));
}

#[tokio::test(flavor = "multi_thread")]
async fn its_state_is_told_without_a_token() {
    let world = World::new().await;
    let health = world.bare(Method::GET, "/healthz").send().await.expect("answer");
    assert_eq!((health.status().as_u16(), health.text().await.expect("text")), (200, "ok\n".to_owned()));
    let (status, ready) = answer(world.bare(Method::GET, "/readyz")).await;
    assert_eq!((status, &ready["ready"]), (StatusCode::OK, &json!(true)), "{ready}");
    assert_eq!(answer(world.bare(Method::GET, "/v1/version")).await.1["api"], "v1");
    let (_, document) = answer(world.bare(Method::GET, "/v1/openapi.json")).await;
    assert!(document["paths"]["/v1/uploads/{upload}/commit"]["post"].is_object());

    let response =
        world.request(Method::GET, "/v1/products/none").header("x-request-id", "mine-1").send().await;
    assert_eq!(response.expect("answer").headers()["x-request-id"], "mine-1");
    let response = world.request(Method::GET, "/v1/products/none").header("x-request-id", "a b").send().await;
    assert_eq!(response.expect("answer").headers()["x-request-id"].len(), 16);
    world.put_content("os", "1", noise(10, 100_000)).await;
    let metrics =
        world.bare(Method::GET, "/metrics").send().await.expect("answer").text().await.expect("text");
    for line in [
        "distd_http_requests_total{method=\"GET\",route=\"/v1/products/{product}\",status=\"404\"} 2",
        "distd_releases_made_total 1",
        "distd_ingest_bytes_total 100000",
        "distd_uploads_open 0",
        "distd_database_up 1",
        "distd_quic_chunks_total 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }

    // The database goes away.
    world.running.origin.db().close().await;
    let response = world.bare(Method::GET, "/readyz").send().await.expect("answer");
    assert_eq!(response.status(), 503);
    let ready: Value = response.json().await.expect("JSON");
    assert_eq!((&ready["database"], &ready["store"]), (&json!("does not answer"), &json!("ok")));
    let (status, error) = world.get("/v1/products").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert_eq!(world.bare(Method::GET, "/healthz").send().await.expect("answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn started_again_it_carries_on_and_a_second_process_is_refused() {
    let world = World::new().await;
    let (_, release) = world.put_content("os", "1", noise(11, 100_000)).await;
    match start(&settings(world.directory.path(), &[])).await {
        Err(StartError::InUse(path)) => assert_eq!(path, world.directory.path()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two on one directory"),
    }
    let World { running, directory, token, .. } = world;
    assert!(running.stop(Duration::from_secs(10)).await);
    let world = World::open(directory).await;
    assert_eq!(world.token, token);
    assert_eq!(world.get("/v1/products/os/releases/1").await, (StatusCode::OK, release));
    let (_, tokens) = world.get("/v1/tokens").await;
    assert_eq!(tokens["tokens"].as_array().expect("a list").len(), 1);

    use std::os::unix::fs::PermissionsExt;
    let mode =
        std::fs::metadata(world.directory.path().join("admin.token")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_realm_is_not_believed_and_plain_http_stays_on_loopback() {
    let world = World::new().await;
    let stranger = https([9; 32]).get(world.url("/healthz")).send().await;
    assert!(stranger.is_err(), "a certificate of a realm that was not asked for");
    let plain = Client::builder()
        .tls_backend_preconfigured(https_client(&TrustAnchor::Fingerprint([0; 32])))
        .build()
        .expect("a client");
    let over_tls = plain.get(format!("http://{}/healthz", world.running.http)).send().await;
    assert!(over_tls.is_err(), "plain HTTP at the HTTPS port");

    let directory = tempfile::tempdir().expect("tempdir");
    let running = start(&settings(directory.path(), &[("http_plain", "true")])).await.expect("starts");
    let answer = plain.get(format!("http://{}/healthz", running.http)).send().await.expect("answer");
    assert_eq!(answer.status(), 200);
    assert!(running.stop(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_at_once_are_served() {
    let world = Arc::new(World::new().await);
    let mut pushes = tokio::task::JoinSet::new();
    for n in 0..6u64 {
        let world = world.clone();
        pushes.spawn(async move {
            let image = noise(100 + n, 1 << 20);
            let version = n.to_string();
            if n % 2 == 0 {
                world.put_content("os", &version, image).await
            } else {
                cut(&image).push(&world, "os", &version).await
            }
        });
    }
    while let Some(pushed) = pushes.join_next().await {
        let (status, release) = pushed.expect("no panic");
        assert_eq!(status, StatusCode::CREATED, "{release}");
    }
    assert_eq!(
        world.get("/v1/products/os/releases").await.1["releases"].as_array().expect("a list").len(),
        6
    );
}
