//! Products and channels.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use distd_server::origin::ObjectMetadata;
use distd_server::signer::KeyHolder;
use distd_server::store::Store;
use distd_server::tuf::{Change, Options, TufRepository};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn products_are_made_once_and_cut_with_their_parameters() {
    let world = World::new().await;
    let cut = json!({"min": 1024, "avg": 4096, "max": 8192});
    let (status, product) =
        world.json(Method::POST, "/v1/products", Some(json!({"name": "os", "cut": cut}))).await;
    assert_eq!((status, &product["cut"]), (StatusCode::CREATED, &cut));
    let (status, product) = world.json(Method::POST, "/v1/products", Some(json!({"name": "os"}))).await;
    assert_eq!((status, &product["cut"]), (StatusCode::OK, &cut), "the cut stays if the request has none");
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
async fn channels_move_and_are_signed() {
    let world = World::new().await;
    for version in ["1", "2"] {
        let image = noise(version.len() as u64 + version.as_bytes()[0] as u64, 100_000);
        assert_eq!(world.put_content("os", version, image).await.0, StatusCode::CREATED);
    }
    let path = "/v1/products/os/channels/stable";
    let (status, error) = world.get(path).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_channel")));
    for (version, counter, downgrade) in
        [("1", 1, false), ("2", 2, false), ("2", 2, false), ("1", 3, true), ("1", 3, true), ("1", 3, false)]
    {
        let body = if downgrade {
            json!({"version": version, "downgrade": true})
        } else {
            json!({"version": version})
        };
        let (status, channel) = world.json(Method::PUT, path, Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{channel}");
        assert_eq!((&channel["version"], &channel["counter"]), (&json!(version), &json!(counter)));
        let (_, release) = world.get(&format!("/v1/products/os/releases/{version}")).await;
        assert_eq!(channel["manifest"], release["manifest"]);
        assert_eq!(world.get(path).await, (StatusCode::OK, channel));
    }
    let (_, list) = world.get("/v1/products/os/channels").await;
    assert_eq!(list["channels"].as_array().expect("a list").len(), 1);
    assert!(list["channels"][0]["downgrade_from"].is_u64(), "{list}");
    let (status, error) = world.json(Method::PUT, path, Some(json!({"version": "3"}))).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_version")));
    let elsewhere = "/v1/products/none/channels/stable";
    let (status, error) = world.json(Method::PUT, elsewhere, Some(json!({"version": "1"}))).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_product")));

    // TUF lists them, without a token.
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
async fn a_channel_goes_back_only_with_a_token_for_that_and_its_history_shows_it() {
    let world = World::new().await;
    for version in ["1", "2"] {
        assert_eq!(
            world.put_content("os", version, noise(version.len() as u64, 50_000)).await.0,
            StatusCode::CREATED
        );
    }
    let path = "/v1/products/os/channels/stable";
    let history = format!("{path}/history");
    let (status, error) = world.get(&history).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_channel")));
    let mover = world.token_for("channel", "*", None).await;
    let orderer = world.token_for("channel,downgrade", "*", None).await;
    let put = async |token: &str, body: Value| {
        answer(world.bare(Method::PUT, path).bearer_auth(token).json(&body)).await
    };
    assert_eq!(put(&mover, json!({"version": "2"})).await.0, StatusCode::OK);
    let (status, error) = put(&mover, json!({"version": "1"})).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("downgrade")));
    let said = error["error"]["message"].to_string();
    assert!(said.contains("os@1 is older than os@2"), "{said}");
    assert!(error["error"]["next"].to_string().contains("downgrade"), "{error}");
    let (status, error) = put(&orderer, json!({"version": "1", "downgrade": false})).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("downgrade")));
    // A stolen token that moves channels cannot lead devices back, not even by removing the channel
    // first.
    let (status, error) = put(&mover, json!({"version": "1", "downgrade": true})).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    let removed = world.bare(Method::DELETE, path).bearer_auth(&mover).send().await.expect("an answer");
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    assert_eq!(put(&mover, json!({"version": "1"})).await.0, StatusCode::CONFLICT);
    // The scope to order a downgrade is of no use without the scope to move channels.
    let alone = world.token_for("downgrade", "*", None).await;
    assert_eq!(put(&alone, json!({"version": "1", "downgrade": true})).await.0, StatusCode::FORBIDDEN);
    let (status, channel) = put(&orderer, json!({"version": "1", "downgrade": true})).await;
    assert_eq!(status, StatusCode::OK, "{channel}");
    let (_, release) = world.get("/v1/products/os/releases/2").await;
    let (order, two) = (channel["downgrade_from"].as_u64(), release["sequence"].as_u64());
    assert!(order >= two && two.is_some(), "{channel} {release}");

    let (status, all) = world.get(&history).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    let changes = all["changes"].as_array().expect("a list");
    let lines: Vec<_> = changes
        .iter()
        .map(|c| (c["from"].clone(), c["to"].clone(), c["downgrade"].clone(), c["label"].clone()))
        .collect();
    let line = |from: Value, to: Value, downgrade: bool, by: &str| (from, to, json!(downgrade), json!(by));
    assert_eq!(
        lines,
        [
            line(Value::Null, json!("1"), true, "channel,downgrade"),
            line(json!("2"), Value::Null, false, "channel"),
            line(Value::Null, json!("2"), false, "channel"),
        ]
    );
    assert_eq!((&all["before"], &changes[0]["downgrade_from"]), (&Value::Null, &channel["downgrade_from"]));
    let (_, tokens) = world.get("/v1/tokens").await;
    let ids: Vec<_> = tokens["tokens"].as_array().expect("a list").iter().map(|t| t["id"].clone()).collect();
    assert!(ids.contains(&changes[0]["token"]), "{all}");
    // The history contains no part of a secret.
    assert!(!all.to_string().contains("distd-api"), "{all}");

    // The history is read page by page.
    let (_, page) = world.get(&format!("{history}?limit=2")).await;
    assert_eq!(page["changes"].as_array().expect("a list")[..], changes[..2]);
    let (_, rest) = world.get(&format!("{history}?limit=2&before={}", page["before"])).await;
    assert_eq!(
        (rest["changes"].as_array().expect("a list").as_slice(), &rest["before"]),
        (&changes[2..], &Value::Null)
    );
    for bad in
        ["limit=0", "limit=1001", "limit=-1", "before=x", "surprise=1", "before=99999999999999999999999"]
    {
        let (status, error) = world.get(&format!("{history}?{bad}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}: {error}");
    }
    let (status, end) = world.get(&format!("{history}?before={}", u64::MAX)).await;
    assert_eq!((status, end["changes"].as_array().map(Vec::len)), (StatusCode::OK, Some(3)));
}

/// Fields that are signed beside a release of `os`.
async fn signed(directory: &Path, version: &str) -> Value {
    let repository = repository(directory).await;
    let listed = repository.listed().await.expect("listed");
    let release = listed.releases.into_iter().find(|r| r.version.as_str() == version).expect("listed");
    Value::Object(release.custom)
}

async fn repository(directory: &Path) -> TufRepository {
    let store = Store::open(&directory.join("objects").display().to_string()).expect("store");
    let metadata = Arc::new(ObjectMetadata::new(store));
    let now = distd_peer::clock::unix_now();
    let keys = KeyHolder::in_dir(directory);
    TufRepository::open(metadata, &keys, Options::default(), now).await.expect("opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_signed_without_a_number_get_one_at_the_next_start_and_signed_numbers_stay() {
    let world = World::new().await;
    for version in ["1", "2"] {
        let image = noise(60 + u64::from(version.as_bytes()[0]), 50_000);
        assert_eq!(world.put_content("os", version, image).await.0, StatusCode::CREATED);
    }
    let number = async |world: &World, version: &str| {
        world.get(&format!("/v1/products/os/releases/{version}")).await.1["sequence"]
            .as_u64()
            .expect("a number")
    };
    let (one, two) = (number(&world, "1").await, number(&world, "2").await);
    assert!(one < two);
    let was = signed(world.directory.path(), "1").await;
    assert_eq!(was["sequence"], one);

    // An origin of an earlier version signed the first release without a number. The second one is
    // signed with another number than the database has.
    let mut without = was.as_object().expect("a map").clone();
    without.remove("sequence");
    let mut other = signed(world.directory.path(), "2").await.as_object().expect("a map").clone();
    other.insert("sequence".into(), json!(two + 1000));
    let change = |version: &str, custom| Change::SetCustom {
        product: "os".parse().expect("a name"),
        version: version.parse().expect("a name"),
        custom,
    };
    let changes = vec![change("1", without.clone()), change("2", other), change("none", without)];
    let World { running, directory, .. } = world;
    assert!(running.stop(Duration::from_secs(10)).await);
    let now = distd_peer::clock::unix_now();
    repository(directory.path()).await.apply(changes, now).await.expect("signed");
    assert_eq!(signed(directory.path(), "1").await["sequence"], Value::Null);

    let world = World::open(directory).await;
    assert_eq!(signed(world.directory.path(), "1").await, was, "its own number, and all other fields");
    assert_eq!(number(&world, "2").await, two + 1000);
    assert_eq!(world.put_content("os", "3", noise(70, 50_000)).await.0, StatusCode::CREATED);
    assert_eq!(number(&world, "3").await, two + 1001, "after all numbers that devices know");
    assert_eq!(signed(world.directory.path(), "3").await["sequence"], two + 1001);
}
