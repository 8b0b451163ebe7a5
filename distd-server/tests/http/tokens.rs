//! Tokens and nodes: their rights, and how long they are valid.

use distd_core::role::Role;
use distd_peer::trust::enroll::{EnrollReply, RefusalCode};
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::seal::SealedReply;
use distd_peer::trust::token::{ApiToken, JoinToken};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_needed_and_has_to_have_the_scope() {
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
    assert_eq!(ask(Some(&channel), Method::PUT, stable).await.0, 400, "allowed, but the body is not valid");
    for path in ["/v1/tokens", "/v1/join-tokens", "/v1/nodes/00/revoke"] {
        assert_eq!(ask(Some(&channel), post.clone(), path).await, forbidden, "{path}");
    }
    assert_eq!(ask(Some(&read), Method::GET, "/v1/nodes").await, forbidden);
    // The body is not read before the caller is known.
    let put = world.bare(Method::PUT, "/v1/products/os/releases/1/content").body(noise(1, 100));
    assert_eq!(answer(put).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.metric("distd_ingest_bytes_total").await, 0);
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

    // The last admin cannot revoke their own token.
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
        response.bytes().await.expect("bytes")
    };
    let says = |reply: &[u8]| {
        let sealed = SealedReply::decode(reply).expect("a sealed reply");
        EnrollReply::decode(&sealed.reply).expect("a reply")
    };
    let request = distd_peer::trust::enroll::EnrollMessage::Enroll(
        node.enroll_request(&token, Role::Relay, "office").expect("a request"),
    );
    let reply = enroll(request.encode()).await;
    node.install_enrolled(&token, Role::Relay, &request.encode(), &reply).expect("a certificate");
    let (_, list) = world.get("/v1/nodes").await;
    assert_eq!((&list["nodes"][0]["label"], &list["nodes"][0]["role"]), (&json!("office"), &json!("relay")));
    let id = text(&list["nodes"][0]["id"]);
    assert_eq!(id, node.node_id().to_string());
    let revoke = format!("/v1/nodes/{id}/revoke");
    assert_eq!(world.json(Method::POST, &revoke, None).await.0, StatusCode::NO_CONTENT);
    match says(&enroll(request.encode()).await) {
        EnrollReply::Refused(refusal) => assert_eq!(refusal.code, RefusalCode::Revoked),
        other => panic!("{other:?}"),
    }
    match says(&enroll(b"junk".to_vec()).await) {
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
async fn a_token_for_a_channel_moves_that_channel_alone() {
    let world = World::new().await;
    let (status, body) = cut(&noise(5, 5000)).push(&world, "os", "1").await;
    assert!(status.is_success(), "{body}");
    let new = json!({"label": "test line", "scopes": ["channel"], "products": ["os:test*", "app"]});
    let (status, made) = world.json(Method::POST, "/v1/tokens", Some(new)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let token = text(&made["token"]);
    let ask = async |method: Method, channel: &str| {
        let request = world.bare(method, &format!("/v1/products/os/channels/{channel}"));
        let (status, value) = answer(request.bearer_auth(&token).json(&json!({"version": "1"}))).await;
        (status.as_u16(), value["error"]["code"].as_str().unwrap_or("").to_owned())
    };
    let refused = (403, "forbidden_product".to_owned());
    assert_eq!(ask(Method::PUT, "testing").await.0, 200);
    assert_eq!(ask(Method::PUT, "stable").await, refused);
    // The answer is the same whether or not the channel exists.
    let admin =
        world.json(Method::PUT, "/v1/products/os/channels/stable", Some(json!({"version": "1"}))).await;
    assert_eq!(admin.0, StatusCode::OK);
    for method in [Method::PUT, Method::DELETE] {
        assert_eq!(ask(method, "stable").await, refused);
    }
    assert_eq!(ask(Method::DELETE, "testing").await.0, 204);
    let (_, list) = world.get("/v1/tokens").await;
    let listed = list["tokens"].as_array().expect("tokens").iter().find(|one| one["id"] == made["id"]);
    assert_eq!(listed.expect("listed")["products"], json!(["os:test*", "app"]));
}
