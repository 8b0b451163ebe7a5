//! The web page: sessions, what each token sees and may do, and what a page never lets in.

use std::time::Duration;

use distd_peer::trust::token::ApiToken;
use distd_server::db::ApiTokenRow;
use reqwest::header::{CACHE_CONTROL, COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use crate::state::{node, reports};
use crate::world::*;

/// All pages of a realm with the product `os`, its release 1 and its channel `stable`.
const PAGES: [&str; 10] = [
    "/ui",
    "/ui/products",
    "/ui/products/os",
    "/ui/products/os/releases/1",
    "/ui/products/os/channels/stable",
    "/ui/nodes",
    "/ui/nodes?update=unknown&where=site%3Da",
    "/ui/storage",
    "/ui/access",
    "/ui/audit",
];

/// A browser with the cookie of a session.
struct Browser<'a> {
    world: &'a World,
    cookie: String,
}

impl<'a> Browser<'a> {
    async fn signed_in(world: &'a World, token: &str) -> Self {
        let response = sign_in(world, token, "/ui").await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        let cookie = response.headers()[SET_COOKIE].to_str().expect("text");
        Self { world, cookie: cookie.split(';').next().expect("a cookie").to_owned() }
    }

    async fn get(&self, path: &str) -> Response {
        let request = self.world.bare(Method::GET, path).header(COOKIE, &self.cookie);
        request.send().await.expect("an answer")
    }

    async fn page(&self, path: &str) -> String {
        let response = self.get(path).await;
        let (status, text) = (response.status(), response.text().await.expect("text"));
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        text
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Response {
        let request = self.world.bare(Method::POST, path).header(COOKIE, &self.cookie);
        request.body(encoded(form)).send().await.expect("an answer")
    }

    /// The word that the session's forms repeat.
    async fn word(&self) -> String {
        let page = self.page("/ui").await;
        let (_, rest) = page.split_once("name=\"word\" value=\"").expect("a form");
        rest.split_once('"').expect("a value").0.to_owned()
    }
}

fn encoded(form: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}

async fn sign_in(world: &World, token: &str, back: &str) -> Response {
    let form = encoded(&[("token", token), ("back", back)]);
    world.bare(Method::POST, "/ui/sign-in").body(form).send().await.expect("an answer")
}

/// A realm with a product, a release and a channel.
async fn with_release() -> World {
    let world = World::new().await;
    world.put_content("os", "1", noise(1, 200_000)).await;
    world.put_content("os", "2", noise(2, 200_000)).await;
    world.json(Method::PUT, "/v1/products/os/channels/stable", Some(json!({"version": "1"}))).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_what_a_token_may_see_and_nothing_to_strangers() {
    let world = with_release().await;
    let admin = Browser::signed_in(&world, &world.token).await;
    let viewer = Browser::signed_in(&world, &world.token_with("view,read", None).await).await;
    let reader = Browser::signed_in(&world, &world.token_for("read", "os", None).await).await;
    let other = Browser::signed_in(&world, &world.token_for("read", "app-*", None).await).await;
    for path in PAGES {
        let stranger = world.bare(Method::GET, path).send().await.expect("an answer");
        assert_eq!(stranger.status(), StatusCode::SEE_OTHER, "{path}");
        assert!(stranger.headers()[LOCATION].to_str().expect("text").starts_with("/ui/sign-in?back="));
        assert!(!stranger.text().await.expect("text").contains("stable"));

        for browser in [&admin, &viewer] {
            let page = browser.page(path).await;
            assert!(page.contains("<h1>") && page.contains("Sign out"), "{page}");
        }
        let is_of_fleet = path.contains("nodes")
            || path.ends_with("access")
            || path.ends_with("storage")
            || path.ends_with("audit");
        let wanted = if is_of_fleet { StatusCode::FORBIDDEN } else { StatusCode::OK };
        assert_eq!(reader.get(path).await.status(), wanted, "{path}");
        let is_of_product = path.contains("/products/os");
        let wanted = if is_of_fleet || is_of_product { StatusCode::FORBIDDEN } else { StatusCode::OK };
        assert_eq!(other.get(path).await.status(), wanted, "{path}");
    }
    assert!(!other.page("/ui/products").await.contains("/ui/products/os"));
    assert!(reader.page("/ui/products").await.contains("/ui/products/os"));
    assert!(reader.page("/ui").await.contains("Rollouts under way"));
    assert!(!reader.page("/ui").await.contains("<h2 id=\"fleet\">"));
    // A token that shows the fleet alone is not offered what it may not see.
    let seer = Browser::signed_in(&world, &world.token_with("view", None).await).await;
    let page = seer.page("/ui").await;
    assert!(!page.contains("Rollouts under way") && !page.contains("/ui/products"), "{page}");
    for (path, status) in [("/ui/nothing", 404), ("/ui/products/%20x", 400), ("/ui/audit?before=x", 400)] {
        let answer = admin.get(path).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert!(answer.headers().contains_key("content-security-policy"), "{path}");
        assert!(answer.text().await.expect("text").contains("<h1>"), "{path}");
    }
    let missing = admin.get("/ui/products/none").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert!(missing.text().await.expect("text").contains("there is no product none"));
    // Only those who may move the channel are offered to.
    assert!(admin.page("/ui/products/os/channels/stable").await.contains("Start a rollout"));
    assert!(!viewer.page("/ui/products/os/channels/stable").await.contains("Start a rollout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_keeps_scripts_frames_and_caches_out() {
    let world = with_release().await;
    let admin = Browser::signed_in(&world, &world.token).await;
    for path in PAGES.into_iter().chain(["/ui/sign-in", "/ui/products/none", "/ui/static/style-1.css"]) {
        let response = admin.get(path).await;
        let headers = response.headers().clone();
        let policy = headers["content-security-policy"].to_str().expect("text");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        let cached = headers[CACHE_CONTROL].to_str().expect("text");
        assert_eq!(cached.contains("immutable"), path.contains("/static/"), "{path}: {cached}");
        assert_eq!(cached == "no-store", !path.contains("/static/"), "{path}: {cached}");
        let text = response.text().await.expect("text");
        assert!(
            !text.contains("<style") && !text.contains(" style=") && !text.contains("<script>"),
            "{text}"
        );
    }
    // A browser is led to the page, and a program is not.
    let front =
        world.bare(Method::GET, "/").header("accept", "text/html,*/*").send().await.expect("an answer");
    assert_eq!(
        (front.status(), &front.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/ui".parse().expect("ok"))
    );
    let front = world.bare(Method::GET, "/").send().await.expect("an answer");
    assert_eq!(front.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_no_token_and_ends_with_its_token() {
    let world = with_release().await;
    let token = world.token_with("read,view", None).await;
    let response = sign_in(&world, &token, "/ui/nodes").await;
    assert_eq!(response.headers()[LOCATION], "/ui/nodes");
    let cookie = response.headers()[SET_COOKIE].to_str().expect("text").to_owned();
    for wanted in
        ["__Host-distd-session=", "; Path=/;", "HttpOnly", "SameSite=Lax", "Secure", "Max-Age=43200"]
    {
        assert!(cookie.contains(wanted), "{cookie}");
    }
    let secret = cookie.split(['=', ';']).nth(1).expect("a value");
    assert!(secret.len() == 64 && !token.contains(secret));
    let as_token =
        world.bare(Method::GET, "/v1/products").bearer_auth(secret).send().await.expect("an answer");
    assert_eq!(as_token.status(), StatusCode::UNAUTHORIZED);
    // The API takes no cookie.
    let browser = Browser { world: &world, cookie: cookie.split(';').next().expect("a cookie").to_owned() };
    assert_eq!(browser.get("/v1/products").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(browser.get("/ui/nodes").await.status(), StatusCode::OK);

    // Another page sends no form, also not the one for signing in.
    let form = encoded(&[("token", &token), ("back", "/ui")]);
    for (name, value) in [("Sec-Fetch-Site", "cross-site"), ("Origin", "https://else.example")] {
        let forged = world.bare(Method::POST, "/ui/sign-in").header(name, value).body(form.clone());
        let forged = forged.send().await.expect("an answer");
        assert_eq!(forged.status(), StatusCode::BAD_REQUEST, "{name}");
        assert!(forged.headers().get(SET_COOKIE).is_none());
    }
    let own = format!("https://{}", world.running.http);
    let sent =
        world.bare(Method::POST, "/ui/sign-in").header("Origin", own).header("Sec-Fetch-Site", "same-origin");
    let sent = sent.header(COOKIE, &browser.cookie).body(form).send().await.expect("an answer");
    assert_eq!(sent.status(), StatusCode::SEE_OTHER);
    // Signing in ends the session that the browser had.
    assert_eq!(browser.get("/ui/nodes").await.status(), StatusCode::SEE_OTHER);
    let cookie = sent.headers()[SET_COOKIE].to_str().expect("text");
    let browser = Browser { world: &world, cookie: cookie.split(';').next().expect("a cookie").to_owned() };
    assert_eq!(browser.get("/ui/nodes").await.status(), StatusCode::OK);

    // A wrong token begins nothing, nor does an address elsewhere lead anywhere.
    let wrong = sign_in(&world, "distd-api-v1.wrong", "/ui").await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(wrong.headers().get(SET_COOKIE).is_none());
    let elsewhere = sign_in(&world, &token, "//else.example/ui").await;
    assert_eq!(elsewhere.headers()[LOCATION], "/ui");

    let (_, list) = world.get("/v1/tokens").await;
    let tokens = list["tokens"].as_array().expect("a list");
    let id = text(&tokens.iter().find(|t| t["label"] == "read,view").expect("the token")["id"]);
    let (status, _) = world.json(Method::DELETE, &format!("/v1/tokens/{id}"), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(browser.get("/ui/nodes").await.status(), StatusCode::SEE_OTHER);
    // A script that fetches a page again is told where to go.
    let fetched =
        world.bare(Method::GET, "/ui/nodes").header(COOKIE, &browser.cookie).header("HX-Request", "true");
    let fetched = fetched.send().await.expect("an answer");
    assert_eq!(fetched.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(fetched.headers()["hx-redirect"], "/ui/sign-in?back=%2Fui%2Fnodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_started_and_ordered_by_forms_of_the_session_alone() {
    let world = with_release().await;
    node(&world, 1, "leaf").await;
    reports(&world, 1, "stable", "1", None, None, 0).await;
    let grant = json!({"group": "everyone", "releases": ["*"], "rights": ["read", "report"]});
    let (status, granted) = world.json(Method::POST, "/v1/grants", Some(grant)).await;
    assert_eq!(status, StatusCode::CREATED, "{granted}");
    let admin = Browser::signed_in(&world, &world.token).await;
    let viewer = Browser::signed_in(&world, &world.token_with("view,read", None).await).await;
    let word = admin.word().await;
    let start = "/ui/products/os/channels/stable/rollouts";
    let form = [("version", "2"), ("waves", "100%"), ("soak", "10"), ("success", ""), ("for", "site!=b")];
    let with = |word: &str, form: &[(&str, &str)]| -> Vec<(String, String)> {
        let pairs = form.iter().copied().chain([("word", word)]);
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let send = async |browser: &Browser<'_>, path: &str, word: &str, form: &[(&str, &str)]| {
        let form = with(word, form);
        let form: Vec<(&str, &str)> =
            form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        browser.post(path, &form).await
    };
    // Without the session's word, with another session's, and by a token that may only look.
    for wrong in ["", "0".repeat(32).as_str(), &viewer.word().await] {
        assert_eq!(send(&admin, start, wrong, &form).await.status(), StatusCode::BAD_REQUEST, "{wrong:?}");
    }
    let viewers = viewer.word().await;
    assert_eq!(send(&viewer, start, &viewers, &form).await.status(), StatusCode::FORBIDDEN);
    let (_, none) = world.get("/v1/products/os/channels/stable/rollouts").await;
    assert_eq!(none["rollouts"], json!([]));

    let wrong = send(&admin, start, &word, &[("version", "2"), ("soak", "soon")]).await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert!(wrong.text().await.expect("text").contains("no number of minutes"));
    let started = send(&admin, start, &word, &form).await;
    assert_eq!(started.status(), StatusCode::SEE_OTHER);
    assert_eq!(started.headers()[LOCATION], "/ui/products/os/channels/stable");
    let (_, shown) = world.get("/v1/products/os/channels/stable/rollout").await;
    let rollout = &shown["rollout"];
    assert_eq!(
        (&rollout["soak"], &rollout["for"], &rollout["state"]),
        (&json!(600), &json!("site!=b"), &json!("open"))
    );

    let order = "/ui/products/os/channels/stable/rollout";
    let id = text(&rollout["id"]);
    let halt = [("order", "halt"), ("rollout", id.as_str()), ("reason", "the <b>shop</b> called")];
    assert_eq!(send(&viewer, order, &viewers, &halt).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(send(&admin, order, &word, &[("order", "explode")]).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(send(&admin, order, &word, &halt).await.status(), StatusCode::SEE_OTHER);
    let page = admin.page("/ui/products/os/channels/stable").await;
    assert!(
        page.contains("state halted") && page.contains("the &#60;b&#62;shop&#60;/b&#62; called"),
        "{page}"
    );
    assert!(admin.page("/ui").await.contains("is halted"));
    // Without a browser's hand, a rollout that was seen earlier gets no order.
    let stale = [("order", "resume"), ("rollout", "0123456789abcdef0123456789abcdef")];
    assert_eq!(send(&admin, order, &word, &stale).await.status(), StatusCode::CONFLICT);
    assert_eq!(
        send(&admin, order, &word, &[("order", "resume"), ("rollout", &id)]).await.status(),
        StatusCode::SEE_OTHER
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_others_stand_on_a_page_as_texts() {
    let world = with_release().await;
    // The API takes no such label; another program may have written one.
    let token = ApiToken::generate(world.running.origin.realm().ca_fingerprint());
    let row = ApiTokenRow {
        secret_sha256: token.secret_hash(),
        label: "<script>alert(1)</script>\"'&".to_owned(),
        scopes: "read,view".to_owned(),
        products: "*".to_owned(),
        created: 1,
        expires: None,
        revoked: None,
    };
    world.running.origin.db().put_api_token(&row).await.expect("recorded");
    let browser = Browser::signed_in(&world, &token.to_secret_string()).await;
    for path in PAGES {
        let page = browser.page(path).await;
        assert!(!page.contains("alert(1)<") && page.contains("&#60;script&#62;alert(1)"), "{path}: {page}");
    }
    let page = browser.get("/ui/nodes?where=%22%3E%3Cimg%20src%3Dx%3E").await;
    let page = page.text().await.expect("text");
    assert!(!page.contains("<img src=x>"), "{page}");
    let page = browser.page("/ui/audit?actor=%22%3E%3Cimg%20src%3Dx%3E").await;
    assert!(!page.contains("<img src=x>"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_pages_are_told_of_changes_until_the_origin_stops() {
    let world = with_release().await;
    let browser = Browser::signed_in(&world, &world.token).await;
    let stranger = world.bare(Method::GET, "/ui/events").send().await.expect("an answer");
    assert_eq!(stranger.status(), StatusCode::SEE_OTHER);
    let mut events = browser.get("/ui/events").await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    // The origin looks every two seconds, and compares with its last look.
    let told = async {
        let mut count = 0;
        loop {
            let new = json!({"label": format!("token {count}"), "scopes": ["read"]});
            world.json(Method::POST, "/v1/tokens", Some(new)).await;
            count += 1;
            if let Ok(piece) = tokio::time::timeout(Duration::from_secs(1), events.chunk()).await {
                let piece = piece.expect("a piece").expect("an event");
                if String::from_utf8_lossy(&piece).contains("event: change\ndata: ") {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("an event in a minute");
    // A stream that goes on would hold the origin until its deadline.
    let World { running, directory: _directory, .. } = world;
    assert!(running.stop(Duration::from_secs(30)).await, "a stream held the origin");
}
