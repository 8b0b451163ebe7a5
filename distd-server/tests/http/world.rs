//! Origin of one test, and the requests that tests send to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, regions};
use distd_core::packing::Packer;
use distd_peer::trust::tls::{TrustAnchor, https_client};
use distd_peer::trust::token::ApiToken;
use distd_server::config::{CommandLine, Settings};
use distd_server::db::ApiTokenRow;
use distd_server::run::{Running, start};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn settings(data: &Path, more: &[(&'static str, &str)]) -> Settings {
    let mut line = CommandLine::new();
    line.insert("data", vec![data.display().to_string()]);
    line.insert("http", vec!["127.0.0.1:0".to_owned()]);
    line.insert("quic", vec!["127.0.0.1:0".to_owned()]);
    // The bytes of removed releases go at once.
    line.insert("removal_grace", vec!["0".to_owned()]);
    for (key, value) in more {
        line.insert(key, vec![(*value).to_owned()]);
    }
    Settings::resolve(&line, |_| None, None).expect("settings")
}

pub(crate) fn https(fingerprint: [u8; 32]) -> Client {
    let mut tls = https_client(&TrustAnchor::Fingerprint(fingerprint));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let builder = Client::builder().tls_backend_preconfigured(tls);
    builder.redirect(reqwest::redirect::Policy::none()).build().expect("a client")
}

/// Origin of one test, and its admin.
pub(crate) struct World {
    pub(crate) running: Running,
    pub(crate) client: Client,
    pub(crate) token: String,
    pub(crate) directory: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::open(tempfile::tempdir().expect("tempdir")).await
    }

    pub(crate) async fn open(directory: TempDir) -> Self {
        Self::open_with(directory, &[]).await
    }

    pub(crate) async fn open_with(directory: TempDir, more: &[(&'static str, &str)]) -> Self {
        let running = start(&settings(directory.path(), more)).await.expect("starts");
        let token = std::fs::read_to_string(directory.path().join("admin.token")).expect("the first token");
        let token = token.trim().to_owned();
        let parsed: ApiToken = token.parse().expect("a token");
        Self { client: https(*parsed.ca_fingerprint()), running, token, directory }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.running.plain { "http" } else { "https" };
        format!("{scheme}://{}{path}", self.running.http)
    }

    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.token)
    }

    pub(crate) async fn json(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::GET, path, None).await
    }

    pub(crate) async fn post_bytes(&self, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).body(body)).await
    }

    pub(crate) async fn put_content(
        &self,
        product: &str,
        version: &str,
        body: Vec<u8>,
    ) -> (StatusCode, Value) {
        let path = format!("/v1/products/{product}/releases/{version}/content");
        answer(self.request(Method::PUT, &path).body(body)).await
    }

    pub(crate) async fn begin(&self, product: &str, version: &str) -> (String, bool) {
        let path = format!("/v1/products/{product}/releases/{version}/uploads");
        let (status, upload) = self.json(Method::POST, &path, None).await;
        assert_eq!(status, StatusCode::OK, "{upload}");
        (text(&upload["upload"]), upload["resumed"].as_bool().expect("resumed"))
    }

    pub(crate) async fn missing(&self, upload: &str, hashes: &[ChunkHash]) -> Vec<bool> {
        let body: Vec<u8> = hashes.iter().flat_map(|h| *h.as_bytes()).collect();
        let path = format!("/v1/uploads/{upload}/missing");
        let response = self.request(Method::POST, &path).body(body).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        let bitmap = response.bytes().await.expect("a bitmap");
        assert_eq!(bitmap.len(), hashes.len().div_ceil(8));
        (0..hashes.len()).map(|i| bitmap[i / 8] & (0x80 >> (i % 8)) != 0).collect()
    }

    /// Token with these scopes, put into the database without the API.
    pub(crate) async fn token_with(&self, scopes: &str, expires: Option<i64>) -> String {
        self.token_for(scopes, "*", expires).await
    }

    /// The same, for products that match these patterns.
    pub(crate) async fn token_for(&self, scopes: &str, products: &str, expires: Option<i64>) -> String {
        let token = ApiToken::generate(self.running.origin.realm().ca_fingerprint());
        let row = ApiTokenRow {
            secret_sha256: token.secret_hash(),
            label: scopes.to_owned(),
            scopes: scopes.to_owned(),
            products: products.to_owned(),
            created: 1,
            expires,
            revoked: None,
        };
        self.running.origin.db().put_api_token(&row).await.expect("recorded");
        token.to_secret_string()
    }

    pub(crate) fn packs(&self) -> Vec<PathBuf> {
        files(&self.directory.path().join("objects/packs"))
    }

    /// Value of one metric of `/metrics`.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.bare(Method::GET, "/metrics").send().await.expect("an answer").text().await;
        let text = text.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("the metric is there").parse().expect("a number")
    }

    /// Waits until no body is under way and none takes space.
    pub(crate) async fn no_bodies(&self) {
        eventually("bodies give back their space", async || {
            self.metric("distd_http_bodies").await == 0
                && self.metric("distd_http_bodies_memory_bytes").await == 0
                && self.metric("distd_http_bodies_disk_bytes").await == 0
        })
        .await;
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let body = response.bytes().await.expect("its body");
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
    if !status.is_success() {
        assert!(value["error"]["code"].is_string() && value["error"]["message"].is_string(), "{value}");
        assert_ne!(value["error"]["next"], "", "every failure names the next step: {value}");
    }
    (status, value)
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
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

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Artifact as a publisher cuts it.
pub(crate) struct Cut {
    pub(crate) chunks: Vec<(ChunkHash, Vec<u8>)>,
    pub(crate) whole: Vec<u8>,
}

pub(crate) fn cut(whole: &[u8]) -> Cut {
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

pub(crate) fn record(hash: &ChunkHash, raw: &[u8]) -> Vec<u8> {
    let packed = Packer::new(3).pack(raw);
    let mut out = hash.as_bytes().to_vec();
    out.push(packed.codec.code());
    out.extend(packed.raw_len.to_be_bytes());
    out.extend((packed.bytes.len() as u32).to_be_bytes());
    out.extend(&packed.bytes[..]);
    out
}

#[derive(serde::Serialize)]
pub(crate) struct CommitBody<'a> {
    pub(crate) kind: &'a str,
    pub(crate) listing_bytes: u64,
    pub(crate) cut: CutParams,
    pub(crate) bytes: u64,
    #[serde(with = "serde_bytes")]
    pub(crate) blake3: [u8; 32],
    #[serde(with = "serde_bytes")]
    pub(crate) chunks: Vec<u8>,
}

impl Cut {
    pub(crate) fn hashes(&self) -> Vec<ChunkHash> {
        self.chunks.iter().map(|(hash, _)| *hash).collect()
    }

    pub(crate) fn records(&self, wanted: &[bool]) -> Vec<u8> {
        let chunks = self.chunks.iter().zip(wanted).filter(|(_, wanted)| **wanted);
        chunks.flat_map(|((hash, raw), _)| record(hash, raw)).collect()
    }

    pub(crate) fn commit(&self) -> Vec<u8> {
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

    pub(crate) async fn push(&self, world: &World, product: &str, version: &str) -> (StatusCode, Value) {
        let (upload, _) = world.begin(product, version).await;
        let missing = world.missing(&upload, &self.hashes()).await;
        let path = format!("/v1/uploads/{upload}/chunks");
        let (status, stored) = world.post_bytes(&path, self.records(&missing)).await;
        assert_eq!(status, StatusCode::OK, "{stored}");
        assert_eq!(stored["stored"], missing.iter().filter(|m| **m).count());
        world.post_bytes(&format!("/v1/uploads/{upload}/commit"), self.commit()).await
    }
}
