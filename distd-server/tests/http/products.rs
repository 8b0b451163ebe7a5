//! Products and channels.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

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
