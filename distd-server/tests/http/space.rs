//! Withdrawn, removed and pinned releases, retention, collections and quotas.

use distd_core::api::REMOVALS_MAX;
use distd_server::db::MoveBy;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::state::{node, reports};
use crate::world::*;

async fn call(world: &World, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    world.json(method, &format!("/v1/{path}"), body).await
}

async fn ok(world: &World, method: Method, path: &str, body: Option<Value>) -> Value {
    let (status, answer) = call(world, method.clone(), path, body).await;
    assert!(status.is_success(), "{method} {path}: {answer}");
    answer
}

/// Code of a refusal.
async fn refused(world: &World, method: Method, path: &str, body: Option<Value>) -> (StatusCode, String) {
    let (status, answer) = call(world, method.clone(), path, body).await;
    assert!(!status.is_success(), "{method} {path}: {answer}");
    (status, text(&answer["error"]["code"]))
}

/// Versions of `os`, and for each the state that lists show.
async fn listed(world: &World, query: &str) -> Vec<String> {
    let list = ok(world, Method::GET, &format!("products/os/releases{query}"), None).await;
    list["releases"].as_array().expect("a list").iter().map(|release| text(&release["version"])).collect()
}

fn bytes_of_packs(world: &World) -> u64 {
    world.packs().iter().map(|path| std::fs::metadata(path).expect("there").len()).sum()
}

/// An origin whose packs are those of releases alone.
async fn quiet(more: &[(&'static str, &str)]) -> World {
    let settings = [&[("patches", "false")], more].concat();
    World::open_with(tempfile::tempdir().expect("tempdir"), &settings).await
}

/// Status of a request for a manifest.
async fn served(world: &World, manifest: &str) -> StatusCode {
    let request = world.request(Method::GET, &format!("/v1/manifests/{manifest}"));
    request.send().await.expect("an answer").status()
}

const ONE: &str = "products/os/releases/1";

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_release_keeps_its_bytes_and_comes_back() {
    let world = quiet(&[]).await;
    world.put_content("os", "1", noise(1, 200_000)).await;
    world.put_content("os", "2", noise(2, 200_000)).await;
    let before = bytes_of_packs(&world);
    ok(&world, Method::POST, &format!("{ONE}/withdraw"), None).await;
    // Twice is no fault.
    ok(&world, Method::POST, &format!("{ONE}/withdraw"), None).await;
    assert_eq!(call(&world, Method::GET, ONE, None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(listed(&world, "").await, ["2"]);
    assert_eq!(listed(&world, "?withdrawn=true").await, ["2", "1"]);
    let shown = ok(&world, Method::GET, &format!("{ONE}?withdrawn=true"), None).await;
    assert!(shown["withdrawn"].is_i64() && shown["removed_at"].is_null(), "{shown}");
    let manifest = text(&shown["manifest"]);
    assert_eq!(served(&world, &manifest).await, StatusCode::NOT_FOUND, "nobody gets it");
    assert_eq!(bytes_of_packs(&world), before);
    // The sweep leaves it alone, and a start does not list it.
    let ingest = world.running.origin.ingest();
    let swept = ingest.sweep_everything(i64::MAX / 2).await.expect("swept");
    assert_eq!((swept.packs, swept.manifests), (0, 0));
    let (status, error) = world.put_content("os", "1", noise(1, 200_000)).await;
    assert_eq!((status, text(&error["error"]["code"])), (StatusCode::CONFLICT, "withdrawn".to_owned()));
    assert_eq!(
        refused(&world, Method::POST, &format!("{ONE}/uploads"), None).await,
        (StatusCode::CONFLICT, "withdrawn".to_owned())
    );
    let World { running, directory, .. } = world;
    assert!(running.stop(std::time::Duration::from_secs(10)).await);
    let world = World::open_with(directory, &[("patches", "false")]).await;
    assert_eq!(call(&world, Method::GET, ONE, None).await.0, StatusCode::NOT_FOUND);
    ok(&world, Method::POST, &format!("{ONE}/restore"), None).await;
    let back = ok(&world, Method::GET, ONE, None).await;
    assert_eq!(text(&back["manifest"]), manifest);
    assert_eq!(served(&world, &manifest).await, StatusCode::OK);
    assert_eq!(
        refused(&world, Method::POST, &format!("{ONE}/restore"), None).await,
        (StatusCode::CONFLICT, "conflict".to_owned())
    );
    ok(&world, Method::PUT, "products/os/channels/stable", Some(json!({"version": "1"}))).await;
    assert_eq!(
        refused(&world, Method::POST, &format!("{ONE}/withdraw"), None).await,
        (StatusCode::CONFLICT, "in_use".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_removed_release_stay_for_the_grace() {
    let world = quiet(&[("removal_grace", "1h")]).await;
    let image = noise(3, 200_000);
    world.put_content("os", "1", image.clone()).await;
    let origin = world.running.origin.clone();
    let release = ok(&world, Method::GET, ONE, None).await;
    let manifest = text(&release["manifest"]).parse().expect("an id");
    let manifest = origin.ingest().manifest(&manifest).await.expect("there");
    let readable = async || {
        let mut found = 0;
        for at in manifest.entries() {
            let chunk = origin.chunks().chunk(at.entry.id).await.expect("read");
            found += usize::from(chunk.is_some_and(|chunk| chunk.hash == at.entry.hash));
        }
        found
    };
    let all = readable().await;
    ok(&world, Method::DELETE, ONE, None).await;
    assert_eq!(listed(&world, "").await, [""; 0]);
    let shown = ok(&world, Method::GET, &format!("{ONE}?withdrawn=true"), None).await;
    let (withdrawn, removed) = (shown["withdrawn"].as_i64(), shown["removed_at"].as_i64());
    assert_eq!(removed.zip(withdrawn).map(|(at, since)| at - since), Some(3600), "{shown}");
    assert_eq!(readable().await, all, "a download under way goes on");
    let now = distd_peer::clock::unix_now() as i64;
    origin.finish_removals(now).await.expect("nothing is due");
    assert_eq!(readable().await, all);
    // Until then it comes back.
    ok(&world, Method::POST, &format!("{ONE}/restore"), None).await;
    ok(&world, Method::GET, ONE, None).await;
    ok(&world, Method::DELETE, ONE, None).await;
    origin.finish_removals(now + 3700).await.expect("due");
    let ids: Vec<_> = manifest.entries().map(|at| at.entry.id).collect();
    let rows = origin.db().chunks_by_id(&ids).await.expect("read");
    assert_eq!((rows.len(), world.packs().len()), (0, 0));
    assert_eq!(
        refused(&world, Method::POST, &format!("{ONE}/restore"), None).await,
        (StatusCode::CONFLICT, "conflict".to_owned())
    );
    // A version that is pushed again does not wait for the grace of the one before.
    world.put_content("os", "1", image).await;
    ok(&world, Method::DELETE, ONE, None).await;
    assert_eq!(world.put_content("os", "1", noise(4, 100_000)).await.0, StatusCode::CREATED);
    assert_eq!(world.packs().len(), 1, "the bytes of the one before are gone");
    ok(&world, Method::DELETE, &format!("{ONE}?now=true"), None).await;
    assert_eq!(world.packs().len(), 0);
    ok(&world, Method::PUT, "products/os/retention", Some(json!({"keep": 1}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_pinned_or_runs_is_removed_only_on_a_stronger_order() {
    let world = quiet(&[]).await;
    for (version, seed) in [("1", 5), ("2", 6)] {
        world.put_content("os", version, noise(seed, 60_000)).await;
    }
    ok(&world, Method::PUT, "products/os/channels/stable", Some(json!({"version": "2"}))).await;
    node(&world, 1, "leaf").await;
    reports(&world, 1, "stable", "1", None, None, 0).await;
    ok(&world, Method::PUT, &format!("{ONE}/pin"), Some(json!({"why": "audit of 2027"}))).await;
    let shown = ok(&world, Method::GET, ONE, None).await;
    assert_eq!(shown["pinned"], "audit of 2027");
    let (status, error) = call(&world, Method::DELETE, ONE, None).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("pinned")));
    assert!(error["error"]["message"].to_string().contains("audit of 2027"), "{error}");
    ok(&world, Method::DELETE, &format!("{ONE}/pin"), None).await;
    assert_eq!(
        refused(&world, Method::DELETE, &format!("{ONE}?unless_running=true"), None).await,
        (StatusCode::CONFLICT, "running".to_owned())
    );
    ok(&world, Method::DELETE, ONE, None).await;
    assert_eq!(
        refused(&world, Method::PUT, &format!("{ONE}/pin"), Some(json!({}))).await,
        (StatusCode::NOT_FOUND, "unknown_version".to_owned())
    );
    let long = json!({"why": "x".repeat(201)});
    let two = "products/os/releases/2/pin";
    assert_eq!(refused(&world, Method::PUT, two, Some(long)).await.0, StatusCode::BAD_REQUEST);
}

/// Lot and reasons of each release of a report.
fn lots(report: &Value) -> Vec<(String, String, Vec<String>)> {
    let of = |release: &Value| {
        let kept = release["kept"].as_array().map(Vec::as_slice).unwrap_or_default();
        let reasons = kept.iter().map(|kept| text(&kept["reason"])).collect();
        (text(&release["version"]), text(&release["lot"]), reasons)
    };
    report["releases"].as_array().expect("a list").iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_removes_what_nothing_keeps_and_says_why_the_rest_stays() {
    let world = quiet(&[]).await;
    let shared = noise(20, 120_000);
    for version in 1..=6u64 {
        let mut image = shared.clone();
        image.extend(noise(30 + version, 60_000));
        world.put_content("os", &version.to_string(), image).await;
    }
    ok(&world, Method::PUT, "products/os/channels/stable", Some(json!({"version": "2"}))).await;
    node(&world, 1, "leaf").await;
    reports(&world, 1, "stable", "1", None, None, 0).await;
    ok(&world, Method::PUT, "products/os/releases/3/pin", Some(json!({}))).await;

    // Without a policy nothing goes, and the report says so.
    let report = ok(&world, Method::GET, "gc", None).await;
    assert!(
        lots(&report)
            .iter()
            .all(|(_, lot, reasons)| lot == "keep" && reasons.contains(&"no_policy".to_owned()))
    );
    let set = ok(&world, Method::PUT, "products/os/retention", Some(json!({"keep": 1}))).await;
    assert_eq!((&set["keeps"], &set["removes"]), (&json!(4), &json!(2)));
    let shown = ok(&world, Method::GET, "products/os", None).await;
    assert_eq!(shown["retention"], json!({"keep": 1}));

    let report = ok(&world, Method::GET, "gc?removals_max=1", None).await;
    let of = |version: &str, lot: &str, reasons: &[&str]| {
        (version.to_owned(), lot.to_owned(), reasons.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>())
    };
    let expected = [
        of("6", "keep", &["newest"]),
        of("5", "later", &[]),
        of("4", "remove", &[]),
        of("3", "keep", &["pinned"]),
        of("2", "keep", &["channel"]),
        of("1", "keep", &["running"]),
    ];
    assert_eq!(lots(&report), expected);
    let unique = report["releases"][2]["unique_bytes"].as_u64().expect("a number");
    assert!((60_000..90_000).contains(&unique), "what it shares is not its own: {unique}");
    assert_eq!(report["freed_bytes"].as_u64(), Some(unique));
    let before = bytes_of_packs(&world);
    assert_eq!(report["stored_bytes"].as_u64(), Some(before));
    assert_eq!(listed(&world, "").await.len(), 6, "a look removes nothing");

    // The run itself, by the origin's own period, with an entry in the audit log.
    let origin = world.running.origin.clone();
    let now = distd_peer::clock::unix_now() as i64;
    let done = origin.collect(REMOVALS_MAX, &MoveBy::origin(), now).await.expect("collected");
    assert_eq!((done.releases, done.later), (2, 0));
    assert_eq!(listed(&world, "").await, ["6", "3", "2", "1"]);
    assert!(before - bytes_of_packs(&world) >= 2 * 60_000);
    let audit = ok(&world, Method::GET, "audit?action=release.remove", None).await;
    let entries = audit["entries"].as_array().expect("entries");
    assert!(entries.len() == 2 && entries.iter().all(|entry| entry["actor"] == "origin"), "{audit}");
    // The dead share of the packs that stay is compacted away.
    let after = ok(&world, Method::POST, "gc", None).await;
    assert_eq!(lots(&after).iter().filter(|(_, lot, _)| lot != "keep").count(), 0);
    assert_eq!(after["freed_bytes"], 0);

    // What is no policy, or one that leaves nothing, is refused.
    world.put_content("alone", "1", noise(50, 50_000)).await;
    let none = Some(json!({"keep": 0}));
    assert_eq!(
        refused(&world, Method::PUT, "products/alone/retention", none).await,
        (StatusCode::CONFLICT, "would_empty".to_owned())
    );
    ok(&world, Method::PUT, "products/alone/retention", Some(json!({"keep": 0, "may_empty": true}))).await;
    ok(&world, Method::POST, "gc", Some(json!({"removals_max": 5}))).await;
    let left = ok(&world, Method::GET, "products/alone/releases", None).await;
    assert_eq!(left["releases"], json!([]));
    for (path, body) in [("gc", json!({"removals_max": 0})), ("gc", json!({"removals_max": 10_001}))] {
        assert_eq!(refused(&world, Method::POST, path, Some(body)).await.0, StatusCode::BAD_REQUEST);
    }
    let large = Some(json!({"days": 1_000_001}));
    assert_eq!(refused(&world, Method::PUT, "products/os/retention", large).await.0, StatusCode::BAD_REQUEST);
    ok(&world, Method::DELETE, "products/os/retention", None).await;
    let shown = ok(&world, Method::GET, "products/os", None).await;
    assert!(shown["retention"].is_null(), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_refused_before_the_bytes_come() {
    let world = quiet(&[]).await;
    assert_eq!(world.put_content("os", "1", noise(7, 100_000)).await.0, StatusCode::CREATED);
    let quota = "quotas/product/os";
    ok(&world, Method::PUT, quota, Some(json!({"release_bytes": 250_000}))).await;
    assert_eq!(world.put_content("os", "2", noise(8, 100_000)).await.0, StatusCode::CREATED);
    let before = bytes_of_packs(&world);
    let (status, error) = world.put_content("os", "3", noise(9, 100_000)).await;
    assert_eq!((status, text(&error["error"]["code"])), (StatusCode::FORBIDDEN, "quota".to_owned()));
    let message = text(&error["error"]["message"]);
    for part in ["product os", "250000", "200000", "100000", "releases"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(text(&error["error"]["next"]).contains("distd quota set"), "{error}");
    // An upload that says its length is refused before its first chunk, another at its commit.
    let announced = Some(json!({"bytes": 100_000}));
    let uploads = "products/os/releases/3/uploads";
    assert_eq!(refused(&world, Method::POST, uploads, announced).await.1, "quota");
    let image = cut(&noise(9, 100_000));
    assert_eq!(image.push(&world, "os", "3").await.0, StatusCode::FORBIDDEN);
    let (upload, _) = world.begin("os", "3").await;
    ok(&world, Method::DELETE, &format!("uploads/{upload}"), None).await;
    assert_eq!(bytes_of_packs(&world), before);
    // The same release again takes nothing.
    assert_eq!(world.put_content("os", "2", noise(8, 100_000)).await.0, StatusCode::OK);
    // Space that comes back can be used.
    ok(&world, Method::DELETE, ONE, None).await;
    assert_eq!(world.put_content("os", "3", noise(9, 100_000)).await.0, StatusCode::CREATED);

    // Bytes of new chunks count, for products and for tokens; chunks that are there do not.
    ok(&world, Method::PUT, quota, Some(json!({"stored_bytes": 350_000}))).await;
    assert_eq!(world.put_content("os", "4", noise(9, 100_000)).await.0, StatusCode::CREATED);
    assert_eq!(world.put_content("os", "5", noise(10, 200_000)).await.0, StatusCode::FORBIDDEN);
    ok(&world, Method::DELETE, quota, None).await;
    assert_eq!(world.put_content("os", "5", noise(10, 200_000)).await.0, StatusCode::CREATED);
    let own = ok(&world, Method::GET, "token", None).await;
    let of_token = format!("quotas/token/{}", text(&own["id"]));
    ok(&world, Method::PUT, &of_token, Some(json!({"stored_bytes": 500_000}))).await;
    let list = ok(&world, Method::GET, "quotas", None).await;
    let taken = list["quotas"][0]["stored_bytes"].as_u64().expect("a number");
    assert!((400_000..450_000).contains(&taken), "{list}");
    assert_eq!(world.put_content("app", "1", noise(11, 150_000)).await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.put_content("app", "1", noise(11, 50_000)).await.0, StatusCode::CREATED);
    for (path, body, status) in [
        ("quotas/product/none", json!({"stored_bytes": 1}), StatusCode::NOT_FOUND),
        ("quotas/token/none", json!({"stored_bytes": 1}), StatusCode::NOT_FOUND),
        ("quotas/node/x", json!({"stored_bytes": 1}), StatusCode::BAD_REQUEST),
        (quota, json!({}), StatusCode::BAD_REQUEST),
        (quota, json!({"stored_bytes": u64::MAX}), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(refused(&world, Method::PUT, path, Some(body)).await.0, status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_sets_that_nobody_can_take_are_removed_and_made_again_when_asked_for() {
    let directory = tempfile::tempdir().expect("tempdir");
    let settings = [("patch_level", "3"), ("solid_sets", "false")];
    let world = World::open_with(directory, &settings).await;
    let text_of = |n: u64| -> Vec<u8> {
        let line = |line: u64| format!("{:016x} {}\n", (line * 7 + n / 9) % 977, line).into_bytes();
        (0..30_000u64).flat_map(line).collect()
    };
    for (version, n) in [("1", 1), ("2", 20), ("3", 40)] {
        world.put_content("os", version, text_of(n)).await;
    }
    ok(&world, Method::PUT, "products/os/channels/stable", Some(json!({"version": "3"}))).await;
    let sets = async || {
        let list = ok(&world, Method::GET, "products/os/patches", None).await;
        let mut found = Vec::new();
        for set in list["patches"].as_array().expect("a list") {
            assert!(set["state"] != "failed", "{set}");
            if set["state"] == "ready" {
                found.push(format!("{}-{}", text(&set["from"]), text(&set["to"])));
            }
        }
        found.sort();
        found
    };
    eventually("the sets are made", async || sets().await == ["1-2", "2-3"]).await;
    let packs = world.packs().len();
    // A day later nobody has 1 and nobody wants 2; two months later nobody has 2 either.
    let origin = world.running.origin.clone();
    let now = distd_peer::clock::unix_now() as i64;
    let day = 24 * 3600;
    let fresh = origin.collect(REMOVALS_MAX, &MoveBy::origin(), now).await.expect("collected");
    assert_eq!((fresh.patch_sets, sets().await.len()), (0, 2), "fresh sets stay");
    let later = origin.collect(REMOVALS_MAX, &MoveBy::origin(), now + 60 * day).await.expect("collected");
    assert_eq!((later.releases, later.patch_sets), (0, 2));
    assert_eq!(sets().await, [""; 0]);
    assert!(world.packs().len() < packs);
    ok(&world, Method::POST, "products/os/releases/3/patches", Some(json!({"from": "1"}))).await;
    eventually("the set is made again", async || sets().await == ["1-3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_a_node_comes_to_run_is_not_removed_by_a_policy() {
    let world = quiet(&[("removal_grace", "1h")]).await;
    for version in ["1", "2", "3", "4"] {
        world.put_content("os", version, noise(version.as_bytes()[0].into(), 60_000)).await;
    }
    ok(&world, Method::PUT, "products/os/channels/stable", Some(json!({"version": "4"}))).await;
    ok(&world, Method::DELETE, "products/os/releases/3", None).await;
    ok(&world, Method::PUT, "products/os/retention", Some(json!({"keep": 1}))).await;
    let origin = world.running.origin.clone();
    let now = distd_peer::clock::unix_now() as i64;
    let done = origin.collect(REMOVALS_MAX, &MoveBy::origin(), now).await.expect("collected");
    assert_eq!(done.releases, 2);
    assert_eq!(listed(&world, "").await, ["4"]);
    // Nodes install what older metadata lists: a release of the policy, and one of an order.
    for (number, version) in [(1, "1"), (2, "3")] {
        node(&world, number, "leaf").await;
        reports(&world, number, "stable", version, None, None, 0).await;
    }
    origin.finish_removals(now + 3601).await.expect("finished");
    assert_eq!(listed(&world, "").await, ["4", "1"], "2 and 3 are gone");
    let back = ok(&world, Method::GET, "audit?action=release.unwithdraw", None).await;
    let entries = back["entries"].as_array().expect("entries");
    assert!(entries.len() == 1 && entries[0]["actor"] == "origin", "{back}");
    let after = origin.collect(REMOVALS_MAX, &MoveBy::origin(), now + 3602).await.expect("collected");
    assert_eq!(after.releases, 0, "it runs, so it is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_refused_leaves_a_removal_that_can_be_undone() {
    let world = quiet(&[("removal_grace", "1h")]).await;
    world.put_content("os", "1", noise(1, 200_000)).await;
    ok(&world, Method::DELETE, ONE, None).await;
    ok(&world, Method::PUT, "quotas/product/os", Some(json!({"release_bytes": 1000}))).await;
    let (status, error) = world.put_content("os", "1", noise(2, 200_000)).await;
    assert_eq!((status, text(&error["error"]["code"])), (StatusCode::FORBIDDEN, "quota".to_owned()));
    let announced = Some(json!({"bytes": 200_000}));
    assert_eq!(
        refused(&world, Method::POST, &format!("{ONE}/uploads"), announced).await,
        (StatusCode::FORBIDDEN, "quota".to_owned())
    );
    ok(&world, Method::POST, &format!("{ONE}/restore"), None).await;
    assert_eq!(listed(&world, "").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_has_a_bound() {
    let world = quiet(&[]).await;
    world.put_content("os", "1", noise(1, 200_000)).await;
    let empty = refused(&world, Method::PUT, "products/os/retention", Some(json!({}))).await;
    assert_eq!(empty, (StatusCode::BAD_REQUEST, "bad_request".to_owned()));
    ok(&world, Method::PUT, "products/os/retention", Some(json!({"keep": 1}))).await;
}

/// What opens the origin to mend it, such as fsck, does not know the grace of `serve`.
#[tokio::test(flavor = "multi_thread")]
async fn opening_an_origin_frees_nothing() {
    let world = quiet(&[("removal_grace", "30d")]).await;
    world.put_content("os", "1", noise(1, 200_000)).await;
    let os = "os".parse().expect("a name");
    let one = "1".parse().expect("a name");
    let days_ago = distd_peer::clock::unix_now() as i64 - 2 * 86_400;
    let unless = distd_server::db::Unless::Used;
    world.running.origin.db().mark_removing(&os, &one, unless, days_ago).await.expect("marked");
    let World { running, directory, .. } = world;
    assert!(running.stop(std::time::Duration::from_secs(10)).await);
    let places = distd_server::origin::Places::in_dir(directory.path());
    let origin = distd_server::origin::Origin::open(&places, Default::default()).await.expect("opens");
    assert_eq!(origin.db().removing(i64::MAX).await.expect("read").len(), 1);
    let by = MoveBy { token: String::new(), label: String::new() };
    origin.bring_back_release(&os, &one, &by).await.expect("its bytes are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_in_which_the_release_was_withdrawn_does_not_stop_the_origin() {
    let world = quiet(&[]).await;
    world.put_content("os", "1", noise(1, 200_000)).await;
    ok(&world, Method::POST, &format!("{ONE}/withdraw"), None).await;
    let World { running, directory, .. } = world;
    assert!(running.stop(std::time::Duration::from_secs(10)).await);
    let database = directory.path().join("distd.sqlite");
    let kept = directory.path().join("kept.sqlite");
    std::fs::copy(&database, &kept).expect("copied");

    let world = World::open_with(directory, &[("patches", "false")]).await;
    ok(&world, Method::POST, &format!("{ONE}/restore"), None).await;
    ok(&world, Method::PUT, "products/os/channels/stable", Some(json!({"version": "1"}))).await;
    let World { running, directory, .. } = world;
    assert!(running.stop(std::time::Duration::from_secs(10)).await);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(directory.path().join(format!("distd.sqlite{suffix}")));
    }
    std::fs::rename(&kept, &database).expect("put back");

    let world = World::open_with(directory, &[("patches", "false")]).await;
    let channel = ok(&world, Method::GET, "products/os/channels/stable", None).await;
    assert_eq!(channel["version"], "1");
    assert_eq!(listed(&world, "").await, ["1"], "the release counts again");
    let release = ok(&world, Method::GET, ONE, None).await;
    assert_eq!(served(&world, &text(&release["manifest"])).await, StatusCode::OK);
}
