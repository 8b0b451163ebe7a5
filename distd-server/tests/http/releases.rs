//! Releases: both kinds of upload, interrupted uploads, and packs.

use std::time::Duration;

use distd_core::manifest::Manifest;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_of_upload_give_the_same_manifest_and_an_update_sends_only_new_chunks() {
    let world = World::new().await;
    let image = noise(1, 3 << 20);
    let (status, sent_whole) = world.put_content("whole", "1", image.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{sent_whole}");
    assert_eq!(sent_whole["blake3"], blake3::hash(&image).to_string());

    // Nothing is missing, because the origin already has these chunks.
    let first = cut(&image);
    let (upload, resumed) = world.begin("cut", "1").await;
    assert!(!resumed);
    assert!(world.missing(&upload, &first.hashes()).await.iter().all(|missing| !missing));
    let commit = format!("/v1/uploads/{upload}/commit");
    let (status, sent_cut) = world.post_bytes(&commit, first.commit()).await;
    assert_eq!(status, StatusCode::CREATED, "{sent_cut}");
    assert_eq!(sent_cut["manifest"], sent_whole["manifest"]);
    // A client that lost the answer repeats its commit.
    assert_eq!(world.post_bytes(&commit, first.commit()).await, (StatusCode::OK, sent_cut));

    // For the update the other kind of upload comes first.
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
    world.no_bodies().await;

    // The manifest is read as a file and node by node.
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
async fn a_version_pushed_again_has_the_same_bytes_or_is_refused() {
    let world = World::new().await;
    let image = noise(3, 200_000);
    assert_eq!(world.put_content("os", "1", image.clone()).await.0, StatusCode::CREATED);
    assert_eq!(world.put_content("os", "1", image).await.0, StatusCode::OK);
    let (status, error) = world.put_content("os", "1", noise(4, 200_000)).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("version_taken")));
    let (status, error) = cut(&noise(4, 200_000)).push(&world, "os", "1").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("version_taken")));
    assert_eq!(world.packs().len(), 1, "a refused release is not kept");
    world.no_bodies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_leaves_nothing() {
    let world = World::new().await;
    let path = "/v1/products/os/releases/1/content";
    let pieces = futures::stream::iter((0..40).map(|n| match n {
        39 => Err(std::io::Error::other("the cable is pulled")),
        n => Ok(noise(n, 1 << 18)),
    }));
    let put = world.request(Method::PUT, path).body(reqwest::Body::wrap_stream(pieces)).send().await;
    assert!(put.is_err());
    world.no_bodies().await;
    assert_eq!(world.get("/v1/products/os/releases/1").await.0, StatusCode::NOT_FOUND);
    assert!(world.packs().is_empty());

    // The same happens in the middle of chunks, and then the upload is aborted.
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
    assert!(world.packs().is_empty(), "the space is free again");
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
    // The time is enough to send the list, and mostly too short to wait for the release.
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
    // A caller that expects a 100 Continue gets the answer without sending its body.
    let began = std::time::Instant::now();
    let put = world.bare(Method::PUT, "/v1/products/os/releases/1/content").header("expect", "100-continue");
    let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let put = put.body(reqwest::Body::wrap_stream(never)).send().await.expect("an answer");
    assert_eq!(put.status(), StatusCode::UNAUTHORIZED);
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waited for the body");
}
