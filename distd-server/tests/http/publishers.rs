//! Separation of publishers: by product, by upload, by the chunks that they may know of, and by
//! quota.

use std::time::Duration;

use distd_core::ChunkHash;
use distd_core::cut::CutParams;
use distd_core::fleet::rollout::{Policy, RolloutId, Threshold};
use distd_server::db::{BeginRollout, MoveBy, NewRollout};
use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

/// Rule of a route for a token that has the right scope.
#[derive(Clone, Copy, PartialEq)]
enum About {
    /// The route is about one product; another product is refused (403).
    Product,
    /// The route is about an upload or object; another one does not exist for the token (404).
    Thing,
    /// The route lists the items for which the token is valid.
    List,
}

/// Name of a chunk in casync's store that no release has.
const CHUNK_OF_CASYNC: &str = "0000000000000000000000000000000000000000000000000000000000000000.cacnk";

/// Paths of the routes that need no token in a header; one has it in its address.
const OPEN: [&str; 10] = [
    "/healthz",
    "/metrics",
    "/readyz",
    "/t/{token}/r/{product}/{release}/default.castr/{prefix}/{chunk}",
    "/t/{token}/r/{product}/{release}/{file}",
    "/tuf/{path}",
    "/v1/enroll",
    "/v1/openapi.json",
    "/v1/openpgp-key",
    "/v1/version",
];

/// Routes that change something, or show more than releases, with the scope that each needs. The
/// list is written by hand: a route that loses its scope has to lose it here too.
const RESTRICTED: [(&str, &str, &str); 65] = [
    ("GET", "/v1/audit", "view"),
    ("GET", "/v1/ddi/tokens", "view"),
    ("POST", "/v1/ddi/tokens", "admin"),
    ("DELETE", "/v1/ddi/tokens/{id}", "admin"),
    ("GET", "/v1/fleet", "view"),
    ("GET", "/v1/fleet/nodes", "view"),
    ("GET", "/v1/fleet/nodes/{id}", "view"),
    ("GET", "/v1/gc", "view"),
    ("POST", "/v1/gc", "admin"),
    ("GET", "/v1/grants", "view"),
    ("POST", "/v1/grants", "admin"),
    ("DELETE", "/v1/grants/{id}", "admin"),
    ("GET", "/v1/groups", "view"),
    ("DELETE", "/v1/groups/{group}", "admin"),
    ("GET", "/v1/groups/{group}", "view"),
    ("PUT", "/v1/groups/{group}", "admin"),
    ("GET", "/v1/join-tokens", "view"),
    ("POST", "/v1/join-tokens", "admin"),
    ("DELETE", "/v1/join-tokens/{id}", "admin"),
    ("GET", "/v1/nodes", "view"),
    ("GET", "/v1/nodes/{id}", "view"),
    ("POST", "/v1/nodes/{id}/labels", "admin"),
    ("DELETE", "/v1/nodes/{id}/pins/{product}", "admin"),
    ("PUT", "/v1/nodes/{id}/pins/{product}", "admin"),
    ("POST", "/v1/nodes/{id}/revoke", "admin"),
    ("POST", "/v1/products", "publish"),
    ("DELETE", "/v1/products/{product}/channels/{channel}", "channel"),
    ("PUT", "/v1/products/{product}/channels/{channel}", "channel"),
    ("PUT", "/v1/products/{product}/channels/{channel}/approval", "admin"),
    ("POST", "/v1/products/{product}/channels/{channel}/rollout", "channel"),
    ("POST", "/v1/products/{product}/channels/{channel}/rollouts", "channel"),
    ("DELETE", "/v1/products/{product}/file-name", "publish"),
    ("PUT", "/v1/products/{product}/file-name", "publish"),
    ("DELETE", "/v1/products/{product}/releases/{version}", "publish"),
    ("POST", "/v1/products/{product}/releases/{version}/bundle", "admin"),
    ("PUT", "/v1/products/{product}/releases/{version}/content", "publish"),
    ("POST", "/v1/products/{product}/releases/{version}/patches", "publish"),
    ("DELETE", "/v1/products/{product}/releases/{version}/pin", "publish"),
    ("PUT", "/v1/products/{product}/releases/{version}/pin", "publish"),
    ("POST", "/v1/products/{product}/releases/{version}/restore", "publish"),
    ("POST", "/v1/products/{product}/releases/{version}/uploads", "publish"),
    ("POST", "/v1/products/{product}/releases/{version}/withdraw", "publish"),
    ("DELETE", "/v1/products/{product}/retention", "admin"),
    ("PUT", "/v1/products/{product}/retention", "admin"),
    ("GET", "/v1/quotas", "view"),
    ("DELETE", "/v1/quotas/{kind}/{name}", "admin"),
    ("PUT", "/v1/quotas/{kind}/{name}", "admin"),
    ("GET", "/v1/receipts/entries", "view"),
    ("GET", "/v1/receipts/head", "view"),
    ("GET", "/v1/receipts/proof/consistency", "view"),
    ("GET", "/v1/receipts/proof/inclusion", "view"),
    ("GET", "/v1/tokens", "view"),
    ("POST", "/v1/tokens", "admin"),
    ("DELETE", "/v1/tokens/{id}", "admin"),
    ("GET", "/v1/uploads", "view"),
    ("DELETE", "/v1/uploads/{upload}", "publish"),
    ("POST", "/v1/uploads/{upload}/chunks", "publish"),
    ("POST", "/v1/uploads/{upload}/commit", "publish"),
    ("POST", "/v1/uploads/{upload}/missing", "publish"),
    ("GET", "/v1/webhooks", "view"),
    ("POST", "/v1/webhooks", "admin"),
    ("DELETE", "/v1/webhooks/{id}", "admin"),
    ("GET", "/v1/webhooks/{id}/deliveries", "view"),
    ("POST", "/v1/webhooks/{id}/retry", "admin"),
    ("POST", "/v1/webhooks/{id}/test", "admin"),
];

/// A route, as the OpenAPI document states it.
struct Route {
    method: Method,
    path: String,
    /// Scope that it needs, empty if any token will do; `None` for a route without a token.
    scope: Option<String>,
}

/// Every route of the document. The routes that delete what the others need come last.
fn routes(document: &Value) -> Vec<Route> {
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let scopes = operation["security"][0]["token"].as_array();
            routes.push(Route {
                method: method.to_uppercase().parse().expect("a method"),
                path: path.clone(),
                scope: scopes.map(|scopes| scopes.first().map(text).unwrap_or_default()),
            });
        }
    }
    routes.sort_by_key(|route| (route.method == Method::DELETE, route.path.clone()));
    routes
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_keeps_scopes_and_products_apart() {
    let world = World::new().await;
    let (_, document) = answer(world.bare(Method::GET, "/v1/openapi.json")).await;
    let routes = routes(&document);
    let open: Vec<_> = routes.iter().filter(|route| route.scope.is_none()).map(|route| &route.path).collect();
    assert_eq!(open, OPEN);
    let mut restricted: Vec<(&str, &str, &str)> = Vec::new();
    for Route { method, path, scope } in &routes {
        match scope.as_deref() {
            None => {}
            Some("" | "read") if method == Method::GET => {}
            Some(scope) => restricted.push((method.as_str(), path, scope)),
        }
    }
    restricted.sort_unstable_by_key(|(method, path, _)| (*path, *method));
    assert_eq!(restricted, RESTRICTED);

    // One product of another team, with a release, a channel and an upload.
    world.put_content("theirs", "1", noise(30, 200_000)).await;
    world.json(Method::PUT, "/v1/products/theirs/channels/stable", Some(json!({"version": "1"}))).await;
    let (_, release) = world.get("/v1/products/theirs/releases/1").await;
    let manifest = text(&release["manifest"]);
    let pack = world.packs()[0].file_name().expect("a name").to_string_lossy().into_owned();
    let (upload, _) = world.begin("theirs", "2").await;
    world.put_content("theirs", "3", noise(31, 200_000)).await;
    let (theirs, stable, three) = ("theirs".parse(), "stable".parse(), "3".parse());
    let new = NewRollout {
        id: RolloutId([1; 16]),
        product: &theirs.expect("a name"),
        channel: &stable.expect("a name"),
        version: &three.expect("a name"),
        policy: &Policy::default(),
        waves: &[Threshold(u64::MAX)],
    };
    let begun = world.running.origin.db().begin_rollout(&new, &MoveBy::origin(), 1).await.expect("asked");
    assert!(matches!(begun, BeginRollout::Begun(_)), "{begun:?}");

    for Route { method, path, scope } in routes {
        let Some(scope) = scope else { continue };
        let about = match &path {
            path if path.contains("{product}") || path == "/v1/products" && method == Method::POST => {
                About::Product
            }
            path if path.contains('{') => About::Thing,
            _ => About::List,
        };
        let unknown = "0".repeat(32);
        let segments = path.split('/').map(|segment| match segment {
            "{product}" => "theirs",
            "{version}" | "{release}" => "1",
            "{channel}" => "stable",
            "{prefix}" => "0000",
            "{chunk}" => CHUNK_OF_CASYNC,
            "{upload}" => &upload,
            "{manifest}" | "{node}" => &manifest,
            "{name}" => &pack,
            other if other.starts_with('{') => &unknown,
            other => other,
        });
        let path = segments.collect::<Vec<_>>().join("/");
        let bare = || world.bare(method.clone(), &path);
        assert_eq!(bare().send().await.expect("an answer").status(), 401, "{method} {path} without a token");
        if scope.is_empty() {
            continue;
        }
        let call = |token: &str| -> RequestBuilder {
            let body = match path.as_str() {
                "/v1/products" => json!({"name": "theirs"}).to_string(),
                path if path.ends_with("/stable") || path.ends_with("/rollouts") => {
                    json!({"version": "1"}).to_string()
                }
                path if path.ends_with("/rollout") => json!({"order": "halt"}).to_string(),
                path if path.ends_with("/approval") => json!({"wanted": true}).to_string(),
                path if path.ends_with("/bundle") => json!({"seconds": 60}).to_string(),
                path if path.ends_with("/patches") || path.ends_with("/pin") => "{}".to_owned(),
                path if path.ends_with("/file-name") => json!({"name": "os_@v"}).to_string(),
                _ => String::new(),
            };
            let request = bare().bearer_auth(token);
            if method == Method::GET { request } else { request.body(body) }
        };
        let status = async |token: String| call(&token).send().await.expect("an answer").status().as_u16();
        // The scope is needed, whatever the token's products are.
        for other in
            ["read", "view", "publish", "channel", "downgrade"].into_iter().filter(|other| *other != scope)
        {
            let got = status(world.token_for(other, "*", None).await).await;
            assert_eq!(got, 403, "{method} {path} with {other} alone");
        }
        // A token with one of these is for all products.
        if scope == "admin" || scope == "view" {
            let got = status(world.token_for(&scope, "*", None).await).await;
            assert!(!matches!(got, 401 | 403), "{method} {path} with {scope}: {got}");
            continue;
        }
        let got = status(world.token_for(&scope, "mine,my-*", None).await).await;
        let wanted = match about {
            About::Product => 403,
            About::Thing => 404,
            About::List => 200,
        };
        assert_eq!(got, wanted, "{method} {path} with {scope} for another product");
        // The answer is the same for a product that does not exist.
        if about == About::Product && path != "/v1/products" {
            let token = world.token_for(&scope, "mine", None).await;
            let path = path.replace("theirs", "nobodys");
            let body = match path.rsplit('/').next() {
                Some("stable" | "rollouts") => r#"{"version": "1"}"#,
                Some("rollout") => r#"{"order": "halt"}"#,
                Some("file-name") => r#"{"name": "os_@v"}"#,
                _ => "{}",
            };
            let request = world.bare(method.clone(), &path).bearer_auth(token).body(body);
            assert_eq!(request.send().await.expect("an answer").status().as_u16(), 403, "{method} {path}");
        }
        // The right product gives any answer but a refusal of the token. An upload belongs to its
        // token alone.
        let got = status(world.token_for(&scope, "the*", None).await).await;
        let own = about != About::Thing || scope == "read";
        // No release has the chunk.
        let is_answered = !matches!(got, 401 | 403 | 404) || got == 404 && path.ends_with(CHUNK_OF_CASYNC);
        assert_eq!(is_answered, own, "{method} {path} with {scope}: {got}");
    }
    let token = world.token_for("read", "mine", None).await;
    let (_, list) = answer(world.bare(Method::GET, "/v1/products").bearer_auth(token)).await;
    assert_eq!(list["products"], json!([]));
}

/// Begins an upload with a token.
async fn begin(world: &World, token: &str, product: &str, version: &str) -> (StatusCode, Value) {
    let path = format!("/v1/products/{product}/releases/{version}/uploads");
    answer(world.bare(Method::POST, &path).bearer_auth(token)).await
}

async fn post(
    world: &World,
    token: &str,
    upload: &Value,
    what: &str,
    body: Vec<u8>,
) -> (StatusCode, Vec<u8>) {
    let path = format!("/v1/uploads/{}/{what}", upload["upload"].as_str().expect("an id"));
    let response =
        world.bare(Method::POST, &path).bearer_auth(token).body(body).send().await.expect("answer");
    (response.status(), response.bytes().await.expect("body").to_vec())
}

fn hashes(hashes: &[ChunkHash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_belongs_to_its_token_alone() {
    let world = World::new().await;
    let (one, two) =
        (world.token_for("publish", "os", None).await, world.token_for("publish", "os", None).await);
    let image = cut(&noise(31, 200_000));
    let (_, first) = begin(&world, &one, "os", "7").await;
    let (status, second) = begin(&world, &two, "os", "7").await;
    assert_eq!((status, &second["resumed"]), (StatusCode::OK, &json!(false)));
    assert_ne!(first["upload"], second["upload"], "no token gets another's upload or keeps another out");
    assert_eq!(begin(&world, &one, "os", "7").await.1["resumed"], true);

    let all = image.records(&vec![true; image.chunks.len()]);
    let admin = world.token.clone();
    for other in [&two, &admin] {
        for (what, body) in [("missing", Vec::new()), ("chunks", all.clone()), ("commit", image.commit())] {
            assert_eq!(post(&world, other, &first, what, body).await.0, StatusCode::NOT_FOUND, "{what}");
        }
    }
    let path = format!("/v1/uploads/{}", text(&first["upload"]));
    let abort = |token: &str| world.bare(Method::DELETE, &path).bearer_auth(token).send();
    assert_eq!(abort(&two).await.expect("answer").status(), StatusCode::NOT_FOUND);
    assert_eq!(post(&world, &one, &first, "chunks", all.clone()).await.0, StatusCode::OK);

    // Admins see both uploads with their sizes, and may abort them.
    let (_, open) = world.get("/v1/uploads").await;
    let open = open["uploads"].as_array().expect("a list");
    assert_eq!(open.len(), 2);
    let held = |upload: &Value| {
        let found = open.iter().find(|open| open["upload"] == upload["upload"]).expect("it is listed");
        found["bytes"].as_u64().expect("bytes")
    };
    assert!(held(&first) > 190_000 && held(&second) == 0, "{open:?}");
    assert_eq!(abort(&admin).await.expect("answer").status(), StatusCode::NO_CONTENT);
    assert_eq!(world.packs().len(), 0);

    // The revocation of a token aborts its uploads.
    assert_eq!(post(&world, &two, &second, "chunks", all).await.0, StatusCode::OK);
    let (_, open) = world.get("/v1/uploads").await;
    let id = text(&open["uploads"][0]["token"]);
    assert_eq!(world.json(Method::DELETE, &format!("/v1/tokens/{id}"), None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/v1/uploads").await.1["uploads"], json!([]));
    assert_eq!(world.packs().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_of_another_team_is_neither_confirmed_nor_released_by_its_hash() {
    let world = World::new().await;
    let secret = cut(&noise(32, 300_000));
    assert_eq!(secret.push(&world, "theirs", "1").await.0, StatusCode::CREATED);
    let mine = world.token_for("publish,read", "mine-*", None).await;
    let (_, upload) = begin(&world, &mine, "mine-app", "1").await;
    let wanted = async |token: &str, upload: &Value| {
        let (status, bitmap) = post(&world, token, upload, "missing", hashes(&secret.hashes())).await;
        assert_eq!(status, StatusCode::OK);
        (0..secret.chunks.len()).filter(|i| bitmap[i / 8] & (0x80 >> (i % 8)) != 0).count()
    };
    assert_eq!(wanted(&mine, &upload).await, secret.chunks.len(), "for this token all of them are missing");
    let (status, body) = post(&world, &mine, &upload, "commit", secret.commit()).await;
    assert_eq!(status, StatusCode::CONFLICT, "{}", String::from_utf8_lossy(&body));

    // A publisher who has the bytes may send them. The origin accepts them, and the release is
    // whole.
    let all = secret.records(&vec![true; secret.chunks.len()]);
    assert_eq!(post(&world, &mine, &upload, "chunks", all).await.0, StatusCode::OK);
    assert_eq!(wanted(&mine, &upload).await, 0, "the token knows the chunks that it has sent");
    let (status, body) = post(&world, &mine, &upload, "commit", secret.commit()).await;
    assert_eq!(status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&body));
    // The chunks are stored once: the second pack had no new chunk.
    assert_eq!(world.packs().len(), 1);
    // From now on the team knows the chunks, in all of its products.
    let (_, next) = begin(&world, &mine, "mine-other", "1").await;
    assert_eq!(wanted(&mine, &next).await, 0);
    // A token for all products has known them from the start.
    let all = world.token_for("publish", "*", None).await;
    let (_, upload) = begin(&world, &all, "new", "1").await;
    assert_eq!(wanted(&all, &upload).await, 0);
    // A file that the origin cuts reveals no more.
    let other = world.token_for("publish", "third", None).await;
    let path = "/v1/products/third/releases/1/content";
    let put = world.bare(Method::PUT, path).bearer_auth(&other).body(secret.whole.clone());
    assert_eq!(answer(put).await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tokens_are_valid_for_all_products_and_new_ones_name_theirs() {
    let world = World::new().await;
    let make = async |body: Value| world.json(Method::POST, "/v1/tokens", Some(body)).await;
    let (status, _) = make(json!({"label": "team", "scopes": ["read"], "products": ["os", "app-*"]})).await;
    assert_eq!(status, StatusCode::CREATED);
    for bad in [json!([]), json!(["../x"]), json!(["a,b"]), json!([""])] {
        let (status, error) = make(json!({"label": "x", "scopes": ["read"], "products": bad})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    }
    let (status, error) = make(json!({"label": "x", "scopes": ["admin"], "products": ["os"]})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    let (_, tokens) = world.get("/v1/tokens").await;
    let products: Vec<_> =
        tokens["tokens"].as_array().expect("a list").iter().map(|t| &t["products"]).collect();
    assert!(products.contains(&&json!(["os", "app-*"])) && products.contains(&&json!(["*"])), "{tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_cannot_exceed_its_quotas() {
    let directory = tempfile::tempdir().expect("tempdir");
    let quotas = [("upload_bytes_max", "1048576"), ("uploads_max", "2"), ("artifact_bytes_max", "2097152")];
    let world = World::open_with(directory, &quotas).await;
    let token = world.token_for("publish", "os", None).await;
    let (_, first) = begin(&world, &token, "os", "1").await;
    assert_eq!(begin(&world, &token, "os", "2").await.0, StatusCode::OK);
    let (status, error) = begin(&world, &token, "os", "3").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::FORBIDDEN, &json!("quota")));
    assert_eq!(begin(&world, &token, "os", "1").await.0, StatusCode::OK, "an open upload is resumed");

    let small = cut(&noise(33, 700_000));
    let all = |image: &Cut| image.records(&vec![true; image.chunks.len()]);
    assert_eq!(post(&world, &token, &first, "chunks", all(&small)).await.0, StatusCode::OK);
    let more = cut(&noise(34, 700_000));
    let (status, body) = post(&world, &token, &first, "chunks", all(&more)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{}", String::from_utf8_lossy(&body));
    // Spooled bytes count, even if no length was announced.
    let stream = futures::stream::iter((0..20).map(|n| Ok::<_, std::io::Error>(noise(n, 1 << 20))));
    let path = "/v1/products/os/releases/big/content";
    let put = world.bare(Method::PUT, path).bearer_auth(&token).body(Body::wrap_stream(stream));
    let (status, error) = answer(put).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::FORBIDDEN, &json!("quota")));
    world.no_bodies().await;
    // A committed upload no longer counts.
    let (status, body) = post(&world, &token, &first, "commit", small.commit()).await;
    assert_eq!(status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&body));
    let other = world.token_for("publish", "os", None).await;
    assert_eq!(begin(&world, &other, "os", "9").await.0, StatusCode::OK, "each token has its own quotas");

    // An artifact that is too long is refused when it is announced, and when it is committed.
    let path = "/v1/products/os/releases/10/uploads";
    let announced = world.bare(Method::POST, path).bearer_auth(&other).json(&json!({"bytes": 2_097_153}));
    assert_eq!(answer(announced).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let (_, upload) = begin(&world, &other, "os", "10").await;
    let zeros = cut(&[0; 65_536]);
    post(&world, &other, &upload, "chunks", all(&zeros)).await;
    let commit = lie(&zeros, 1 << 19, 64 << 10);
    assert_eq!(post(&world, &other, &upload, "commit", commit).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

/// Commit that lists the first chunk `repeat` times with the length `len`.
fn lie(image: &Cut, repeat: u32, len: u32) -> Vec<u8> {
    let mut chunks = image.chunks[0].0.as_bytes().to_vec();
    chunks.extend(len.to_be_bytes());
    chunks.extend(repeat.to_be_bytes());
    let bytes = u64::from(repeat) * u64::from(len);
    let body = CommitBody {
        kind: "file",
        listing_bytes: 0,
        cut: CutParams::default(),
        bytes,
        blake3: [1; 32],
        chunks,
    };
    rmp_serde::to_vec_named(&body).expect("encodes")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_more_chunks_than_the_cut_makes_is_refused_at_once() {
    let world = World::new().await;
    let tiny = cut(b"x");
    let (upload, _) = world.begin("os", "1").await;
    world.post_bytes(&format!("/v1/uploads/{upload}/chunks"), tiny.records(&[true])).await;
    // Sixteen million chunks of one byte. Only a million are plausible, because an archive may have
    // a million members.
    let (status, error) =
        world.post_bytes(&format!("/v1/uploads/{upload}/commit"), lie(&tiny, 1 << 24, 1)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    let (status, error) =
        world.post_bytes(&format!("/v1/uploads/{upload}/commit"), lie(&tiny, 1 << 10, 1)).await;
    assert_eq!(
        status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "the largest allowed number of chunks is checked: {error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_commit_does_not_wait_for_a_large_one_and_the_large_one_ends_with_its_upload() {
    let world = World::new().await;
    let zeros = cut(&[0; 65_536]);
    let (upload, _) = world.begin("os", "large").await;
    world
        .post_bytes(&format!("/v1/uploads/{upload}/chunks"), zeros.records(&vec![true; zeros.chunks.len()]))
        .await;
    // 132 bytes describe 64 GiB with a wrong hash, which take minutes to hash.
    let path = format!("/v1/uploads/{upload}/commit");
    let large = tokio::spawn(world.request(Method::POST, &path).body(lie(&zeros, 1 << 20, 64 << 10)).send());
    let small = cut(&noise(35, 300_000));
    assert_eq!(small.push(&world, "os", "small").await.0, StatusCode::CREATED);
    assert!(!large.is_finished(), "the large artifact is still being hashed");
    assert_eq!(
        world.json(Method::DELETE, &format!("/v1/uploads/{upload}"), None).await.0,
        StatusCode::NO_CONTENT
    );
    let ended = large.await.expect("no panic").expect("an answer");
    assert_eq!(ended.status(), StatusCode::CONFLICT);

    // The hashing ends with its caller, too: the next large commit starts at once.
    let commit = async |version: &str| {
        let (upload, _) = world.begin("os", version).await;
        let path = format!("/v1/uploads/{upload}/chunks");
        world.post_bytes(&path, zeros.records(&vec![true; zeros.chunks.len()])).await;
        let path = format!("/v1/uploads/{upload}/commit");
        (tokio::spawn(world.request(Method::POST, &path).body(lie(&zeros, 1 << 20, 64 << 10)).send()), upload)
    };
    let (gone, _) = commit("gone").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    gone.abort();
    let (_, upload) = commit("next").await;
    assert_eq!(
        world.json(Method::DELETE, &format!("/v1/uploads/{upload}"), None).await.0,
        StatusCode::NO_CONTENT
    );
    assert!(world.running.stop(Duration::from_secs(10)).await, "no hashing goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_hold_up_nobody() {
    let world = World::new().await;
    let image = cut(&noise(36, 300_000));
    let (upload, _) = world.begin("os", "slow").await;
    let mut slow = Vec::new();
    // More bodies than there are sinks, and lists of the largest length.
    for what in ["chunks", "chunks", "chunks", "chunks", "commit", "commit"] {
        let (tx, body) = dripping();
        let path = format!("/v1/uploads/{upload}/{what}");
        let request = world.request(Method::POST, &path).header("content-length", 30 << 20).body(body);
        slow.push((tx, tokio::spawn(request.send())));
    }
    let count = slow.len() as u64;
    eventually("all bodies are under way and take no memory", async || {
        world.metric("distd_http_bodies").await == count
            && world.metric("distd_http_bodies_disk_bytes").await == count
            && world.metric("distd_http_bodies_memory_bytes").await == 0
    })
    .await;
    let (status, release) = image.push(&world, "os", "1").await;
    assert_eq!(status, StatusCode::CREATED, "{release}");
    assert_eq!(world.put_content("os", "2", noise(37, 300_000)).await.0, StatusCode::CREATED);
    assert!(slow.iter().all(|(_, request)| !request.is_finished()), "the slow bodies are still under way");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_take_bounded_memory_and_keep_their_bytes() {
    const MEMORY_MAX: u64 = 48 << 20;
    let world = World::new().await;
    let image = cut(&noise(39, 20 << 20));
    let all = image.records(&vec![true; image.chunks.len()]);
    let (upload, _) = world.begin("os", "1").await;
    let path = format!("/v1/uploads/{upload}/chunks");
    // Together they are twice as large as the bound, and none of them is whole.
    let mut begun = Vec::new();
    for _ in 0..5 {
        let (tx, rx) = futures::channel::mpsc::unbounded();
        tx.unbounded_send(Ok::<_, std::io::Error>(all[..all.len() - 1].to_vec())).expect("a receiver");
        let body = Body::wrap_stream(rx);
        begun.push((tx, tokio::spawn(world.request(Method::POST, &path).body(body).send())));
    }
    let received = 5 * (all.len() as u64 - 1);
    let mut most = 0;
    eventually("all bytes but the last ones have arrived", async || {
        most = most.max(world.metric("distd_http_bodies_memory_bytes").await);
        world.metric("distd_ingest_bytes_total").await == received
    })
    .await;
    assert!(most <= MEMORY_MAX, "{most}");
    eventually("bodies that stand still are on the disk", async || {
        world.metric("distd_http_bodies_disk_bytes").await == received
            && world.metric("distd_http_bodies_memory_bytes").await == 0
    })
    .await;
    for (tx, request) in begun {
        tx.unbounded_send(Ok(all[all.len() - 1..].to_vec())).expect("a receiver");
        drop(tx);
        assert_eq!(request.await.expect("no panic").expect("an answer").status(), StatusCode::OK);
    }
    world.no_bodies().await;
    let (status, release) = world.post_bytes(&format!("/v1/uploads/{upload}/commit"), image.commit()).await;
    assert_eq!(status, StatusCode::CREATED, "{release}");
}

/// Body of which one byte arrives, and more when its sender is used.
fn dripping() -> (futures::channel::mpsc::UnboundedSender<Result<Vec<u8>, std::io::Error>>, Body) {
    let (tx, rx) = futures::channel::mpsc::unbounded();
    tx.unbounded_send(Ok(vec![0])).expect("a receiver");
    (tx, Body::wrap_stream(rx))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_devices_refuse_is_not_released() {
    let world = World::new().await;
    let push = async |version: &str, listing: Vec<u8>, files: &[u8]| {
        let listing_bytes = listing.len() as u64;
        let whole = [listing.as_slice(), files].concat();
        let parts: Vec<&[u8]> =
            [&whole[..listing.len()], files].into_iter().filter(|p| !p.is_empty()).collect();
        let (upload, _) = world.begin("tree", version).await;
        let records: Vec<u8> = parts.iter().flat_map(|part| record(&ChunkHash::of(part), part)).collect();
        world.post_bytes(&format!("/v1/uploads/{upload}/chunks"), records).await;
        let mut chunks = Vec::new();
        for part in &parts {
            chunks.extend(ChunkHash::of(part).as_bytes());
            chunks.extend((part.len() as u32).to_be_bytes());
            chunks.extend(1u32.to_be_bytes());
        }
        let body = CommitBody {
            kind: "tree",
            listing_bytes,
            cut: CutParams::default(),
            bytes: whole.len() as u64,
            blake3: *blake3::hash(&whole).as_bytes(),
            chunks,
        };
        let body = rmp_serde::to_vec_named(&body).expect("encodes");
        world.post_bytes(&format!("/v1/uploads/{upload}/commit"), body).await
    };
    let good = listing("etc/motd", 5);
    assert_eq!(push("good", good.clone(), b"hello").await.0, StatusCode::CREATED);
    for (version, listing, files) in [
        ("noise", noise(38, 100), &b"hello"[..]),
        ("long", good.clone(), b"hello!"),
        ("short", good.clone(), b"hell"),
        ("cut", good[..good.len() - 1].to_vec(), b"hello"),
    ] {
        let (status, error) = push(version, listing, files).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{version}: {error}");
        assert_eq!(
            world.get(&format!("/v1/products/tree/releases/{version}")).await.0,
            StatusCode::NOT_FOUND
        );
    }
}

fn listing(path: &str, size: u64) -> Vec<u8> {
    use distd_core::tree::{Entry, EntryKind, Listing, RootDir, Time, TreePath};
    let modified = Time { seconds: 0, nanos: 0 };
    let entry = |path: &str, kind| Entry {
        path: TreePath::new(path.as_bytes()).expect("a path"),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        xattrs: Vec::new(),
        modified: Some(modified),
    };
    let root = RootDir { mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new(), modified };
    let (parent, _) = path.split_once('/').expect("a directory");
    let entries = vec![entry(parent, EntryKind::Dir), entry(path, EntryKind::File { size })];
    Listing::new(root, entries).expect("a listing").encode()
}
