//! The running origin: its state, restarts, foreign realms, and many callers.

use std::sync::Arc;
use std::time::Duration;

use distd_peer::trust::tls::{TrustAnchor, https_client};
use distd_server::run::{StartError, start};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_shown_without_a_token() {
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

    // The database fails.
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
async fn a_restarted_origin_continues_and_a_second_process_is_refused() {
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
async fn a_foreign_realm_is_refused_and_plain_http_stays_on_loopback() {
    let world = World::new().await;
    let foreign = https([9; 32]).get(world.url("/healthz")).send().await;
    assert!(foreign.is_err(), "a certificate of another realm");
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

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_lock_nobody_out() {
    let world = World::new().await;
    // They come from many addresses, and they are more than there are slots.
    let mut idle = Vec::new();
    for n in 0..600u32 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let from = std::net::Ipv4Addr::from(0x7f00_0002 + n / 30);
        socket.bind((from, 0).into()).expect("a loopback address");
        idle.push(socket.connect(world.running.http).await.expect("connected"));
    }
    // Enrolments that send slowly lock nobody out either; they need no token.
    let (_tx, rx) = futures::channel::mpsc::unbounded::<Result<Vec<u8>, std::io::Error>>();
    let drip = world.bare(Method::POST, "/v1/enroll").header("content-length", 1000);
    let drip = tokio::spawn(drip.body(reqwest::Body::wrap_stream(rx)).send());
    assert_eq!(world.bare(Method::GET, "/healthz").send().await.expect("answer").status(), 200);
    let (status, release) = world.put_content("os", "1", noise(60, 300_000)).await;
    assert_eq!(status, StatusCode::CREATED, "{release}");
    drop(idle);
    drip.abort();
}
