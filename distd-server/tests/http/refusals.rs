//! Refusals of malformed requests.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::*;

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

    // The origin still works.
    let (status, release) = image.push(&world, "os", "1").await;
    assert_eq!(status, StatusCode::CREATED, "{release}");
    assert!(world.running.stop(Duration::from_secs(10)).await);
}

/// A small msgpack encoder that can also write malformed values.
#[derive(Clone, serde::Serialize)]
#[serde(untagged)]
#[expect(non_camel_case_types, reason = "stands for the crate of this name")]
enum rmpv {
    Text(&'static str),
    Number(u64),
    Numbers([u64; 3]),
    Bin(#[serde(with = "serde_bytes")] Vec<u8>),
}
