//! Withdrawn releases and removed channels, and the space that they free.

use std::sync::Arc;

use distd_server::db::{Leaving, Unless, Withdraw};
use distd_server::origin::ObjectMetadata;
use distd_server::signer::KeyHolder;
use distd_server::store::Store;
use distd_server::tuf::{Options, TufRepository};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

async fn delete(world: &World, path: &str) -> (StatusCode, Value) {
    world.json(Method::DELETE, path, None).await
}

async fn point(world: &World, channel: &str, version: &str) {
    let path = format!("/v1/products/os/channels/{channel}");
    let (status, answer) = world.json(Method::PUT, &path, Some(json!({"version": version}))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

/// Versions that the repository lists for devices.
async fn listed(world: &World) -> Vec<String> {
    let directory = world.directory.path();
    let store = Store::open(&directory.join("objects").display().to_string()).expect("store");
    let metadata = Arc::new(ObjectMetadata::new(store));
    let keys = KeyHolder::in_dir(directory);
    let now = distd_peer::clock::unix_now();
    let repository = TufRepository::open(metadata, &keys, Options::default(), now).await.expect("opens");
    let listed = repository.listed().await.expect("listed");
    listed.releases.iter().map(|release| release.version.to_string()).collect()
}

fn manifests(world: &World) -> usize {
    files(&world.directory.path().join("objects/manifests")).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_release_frees_its_space_and_shared_chunks_stay() {
    let world = World::new().await;
    let common = noise(50, 300_000);
    let (only, other) = (noise(51, 300_000), noise(52, 300_000));
    let mut two = common.clone();
    two.extend_from_slice(&other);
    world.put_content("os", "1", common.clone()).await;
    world.put_content("os", "2", two.clone()).await;
    world.put_content("os", "3", only.clone()).await;
    // The same bytes are released once more, so the manifest has two names.
    world.put_content("other", "3", only.clone()).await;
    point(&world, "stable", "1").await;
    assert_eq!((world.packs().len(), manifests(&world)), (3, 3));

    let (status, error) = delete(&world, "/v1/products/os/releases/1").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("in_use")));
    assert!(error["error"]["message"].to_string().contains("os:stable"), "{error}");
    assert_eq!(delete(&world, "/v1/products/os/releases/9").await.0, StatusCode::NOT_FOUND);

    assert_eq!(delete(&world, "/v1/products/os/releases/3").await.0, StatusCode::NO_CONTENT);
    assert_eq!((world.packs().len(), manifests(&world)), (3, 3), "another product has the same bytes");
    assert_eq!(world.get("/v1/products/os/releases/3").await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v1/products/other/releases/3").await.0, StatusCode::OK);
    assert_eq!(delete(&world, "/v1/products/other/releases/3").await.0, StatusCode::NO_CONTENT);
    assert_eq!((world.packs().len(), manifests(&world)), (2, 2));
    assert_eq!(listed(&world).await, ["1", "2"]);

    // The chunks that 1 and 2 share stay for 2.
    point(&world, "stable", "2").await;
    assert_eq!(delete(&world, "/v1/products/os/releases/1").await.0, StatusCode::NO_CONTENT);
    assert_eq!((world.packs().len(), manifests(&world)), (2, 1));
    let origin = world.running.origin.clone();
    let (_, release) = world.get("/v1/products/os/releases/2").await;
    let manifest =
        origin.ingest().manifest(&text(&release["manifest"]).parse().expect("an id")).await.expect("there");
    for at in manifest.entries() {
        let chunk = origin.chunks().chunk(at.entry.id).await.expect("can be read").expect("is there");
        assert_eq!(chunk.hash, at.entry.hash);
    }
    let served = world.get(&format!("/v1/manifests/{}", "0".repeat(64))).await.0;
    assert_eq!(served, StatusCode::NOT_FOUND);
    drop(origin);

    // The last release and its channel go, too.
    assert_eq!(delete(&world, "/v1/products/os/channels/stable").await.0, StatusCode::NO_CONTENT);
    assert_eq!(delete(&world, "/v1/products/os/channels/stable").await.0, StatusCode::NOT_FOUND);
    assert_eq!(delete(&world, "/v1/products/os/releases/2").await.0, StatusCode::NO_CONTENT);
    assert_eq!((world.packs().len(), manifests(&world)), (0, 0));
    // A release that is pushed again is stored again.
    assert_eq!(world.put_content("os", "2", two).await.0, StatusCode::CREATED);
    assert_eq!(world.packs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_upload_keeps_its_packs_and_learns_which_chunks_are_gone() {
    let world = World::new().await;
    let image = cut(&noise(53, 300_000));
    assert_eq!(image.push(&world, "os", "1").await.0, StatusCode::CREATED);
    let mut more = image.whole.clone();
    more.extend(noise(54, 200_000));
    let more = cut(&more);
    let (upload, _) = world.begin("os", "2").await;
    let missing = world.missing(&upload, &more.hashes()).await;
    assert!(missing.iter().any(|missing| !missing), "a part is known");
    world.post_bytes(&format!("/v1/uploads/{upload}/chunks"), more.records(&missing)).await;
    assert_eq!(delete(&world, "/v1/products/os/releases/1").await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.packs().len(), 1, "the upload's pack stays");
    let (status, error) = world.post_bytes(&format!("/v1/uploads/{upload}/commit"), more.commit()).await;
    assert_eq!(status, StatusCode::CONFLICT, "{error}");
    assert_eq!(more.push(&world, "os", "2").await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_interrupted_at_any_step_is_finished_at_the_next_start() {
    for step in ["marked", "not listed", "rows gone"] {
        let world = World::new().await;
        world.put_content("os", "1", noise(55, 200_000)).await;
        world.put_content("os", "2", noise(56, 200_000)).await;
        let db = world.running.origin.db();
        let (os, one) = ("os".parse().expect("a name"), "1".parse().expect("a name"));
        let Withdraw::Marked(release) = db.mark_removing(&os, &one, Unless::Used, 1).await.expect("marked")
        else {
            panic!()
        };
        let manifest = world.running.origin.ingest().manifest(&release.manifest).await.expect("there");
        if step == "rows gone" {
            let leaving = Leaving { releases: vec![release.clone()], sets: Vec::new() };
            let tx = db.begin_removal(leaving).await.expect("begin");
            let ids: Vec<_> = manifest.entries().map(|at| at.entry.id).collect();
            assert_eq!(tx.finish(&ids).await.expect("finish").len(), 1);
        }
        assert_eq!(world.packs().len(), 2);
        let World { running, directory, .. } = world;
        assert!(running.stop(std::time::Duration::from_secs(10)).await);
        if step != "marked" {
            let store = Store::open(&directory.path().join("objects").display().to_string()).expect("store");
            let (metadata, keys) =
                (Arc::new(ObjectMetadata::new(store)), KeyHolder::in_dir(directory.path()));
            let now = distd_peer::clock::unix_now();
            let repository =
                TufRepository::open(metadata, &keys, Options::default(), now).await.expect("opens");
            repository.remove_release(&os, &one, now).await.expect("removed");
        }
        let world = World::open(directory).await;
        // The bytes go when the origin looks after its space, which it does first of all.
        eventually("the removal ends", async || world.packs().len() == 1 && manifests(&world) == 1).await;
        assert_eq!(world.get("/v1/products/os/releases/1").await.0, StatusCode::NOT_FOUND, "{step}");
        assert_eq!(world.get("/v1/products/os/releases/2").await.0, StatusCode::OK, "{step}");
        assert_eq!(listed(&world).await, ["2"], "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_sets_of_a_withdrawn_release_are_deleted_with_it() {
    let directory = tempfile::tempdir().expect("tempdir");
    let world = World::open_with(directory, &[("patch_level", "3")]).await;
    let text_of = |n: u64| -> Vec<u8> {
        (0..40_000u64)
            .flat_map(|line| format!("{:016x} {}\n", (line * 7 + n / 9) % 977, line).into_bytes())
            .collect()
    };
    world.put_content("os", "1", text_of(1)).await;
    world.put_content("os", "2", text_of(20)).await;
    let ready = async |count: usize| {
        let (_, sets) = world.get("/v1/products/os/patches").await;
        let sets = sets["patches"].as_array().expect("a list");
        sets.len() == count && sets.iter().all(|set| set["state"] == "ready")
    };
    eventually("the sets are made", async || ready(3).await).await;
    let before = (world.packs().len(), manifests(&world));
    assert!(before.0 > 2, "sets have packs of their own: {before:?}");
    assert_eq!(delete(&world, "/v1/products/os/releases/1").await.0, StatusCode::NO_CONTENT);
    assert!(ready(1).await, "only the set from nothing to 2 is left");
    assert_eq!(delete(&world, "/v1/products/os/releases/2").await.0, StatusCode::NO_CONTENT);
    assert_eq!((world.packs().len(), manifests(&world)), (0, 0));
}
