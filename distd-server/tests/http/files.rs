//! File names of products, sums of their releases, and signatures that GnuPG verifies.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use distd_core::fleet::report::{Report, Running};
use distd_core::fleet::rollout::Policy;
use distd_core::names::Name;
use distd_core::role::Role;
use distd_peer::trust::token::sha256;
use distd_peer::trust::tuf::{ChannelDoc, ChannelFiles};
use distd_server::db::MoveBy;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fleet::enrolled;
use crate::world::*;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// The signed document of `os:CHANNEL`, as text.
async fn document(world: &World, channel: &str) -> String {
    let (_, timestamp) = answer(world.bare(Method::GET, "/tuf/timestamp.json")).await;
    let version = &timestamp["signed"]["meta"]["snapshot.json"]["version"];
    let (_, snapshot) = answer(world.bare(Method::GET, &format!("/tuf/{version}.snapshot.json"))).await;
    let version = &snapshot["signed"]["meta"]["channels.json"]["version"];
    let (_, channels) = answer(world.bare(Method::GET, &format!("/tuf/{version}.channels.json"))).await;
    let target = &channels["signed"]["targets"][format!("channels/os/{channel}")];
    let path = format!("/tuf/targets/channels/os/{}.{channel}", text(&target["hashes"]["sha256"]));
    let response = world.bare(Method::GET, &path).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    response.text().await.expect("text")
}

async fn files(world: &World, channel: &str) -> Option<ChannelFiles> {
    serde_json::from_str::<ChannelDoc>(&document(world, channel).await).expect("a document").files
}

async fn set_channel(world: &World, channel: &str, version: &str) {
    let path = format!("/v1/products/os/channels/{channel}");
    let (status, answer) = world.json(Method::PUT, &path, Some(json!({"version": version}))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

async fn set_name(world: &World, pattern: &str) -> (StatusCode, Value) {
    let body = json!({"name": pattern});
    world.json(Method::PUT, "/v1/products/os/file-name", Some(body)).await
}

/// Whether GnuPG verifies the signature of a listing with the key that the origin shows; `None`
/// without gpg.
async fn verified(world: &World, listing: &str, signature: &[u8]) -> Option<bool> {
    let dir = tempfile::tempdir().expect("tempdir");
    let response = world.bare(Method::GET, "/v1/openpgp-key").send().await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/pgp-keys");
    let (key, ring, sig) = (dir.path().join("key.asc"), dir.path().join("ring.gpg"), dir.path().join("sig"));
    std::fs::write(&key, response.bytes().await.expect("bytes")).expect("written");
    std::fs::write(&sig, signature).expect("written");
    let dearmored = Command::new("gpg").arg("--dearmor").arg("-o").arg(&ring).arg(&key).status();
    match dearmored {
        Ok(status) => assert!(status.success()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no gpg");
            return None;
        }
        Err(error) => panic!("gpg: {error}"),
    }
    let mut gpgv = Command::new("gpgv");
    gpgv.arg("--homedir").arg(dir.path()).arg("--keyring").arg(&ring).arg(&sig).arg("-");
    let mut child = gpgv.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("gpgv runs");
    child.stdin.take().expect("piped").write_all(listing.as_bytes()).expect("written");
    Some(child.wait().expect("ends").success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_lists_the_signed_sums_of_its_releases_once_the_product_has_a_file_name() {
    let world = World::new().await;
    // Repeats, and more than one piece.
    let one = [noise(1, 1_500_000), vec![0; 3_000_000], noise(2, 700_000)].concat();
    let two = noise(3, 90_000);
    assert_eq!(world.put_content("os", "1", one.clone()).await.0, StatusCode::CREATED);
    assert_eq!(world.put_content("os", "2", two.clone()).await.0, StatusCode::CREATED);
    set_channel(&world, "stable", "1").await;
    let before = document(&world, "stable").await;
    assert!(!before.contains("files"), "{before}");
    let db = world.running.origin.db();
    assert_eq!(
        db.file_digests(&name("os"), &name("1")).await.expect("asked"),
        None,
        "not in the push's path"
    );

    let (status, product) = set_name(&world, "os_@v.erofs").await;
    assert_eq!((status, &product["file_name"]), (StatusCode::OK, &json!("os_@v.erofs")));
    assert_eq!(world.get("/v1/products").await.1["products"][0]["file_name"], "os_@v.erofs");
    let found = files(&world, "stable").await.expect("files");
    assert_eq!((found.name.as_str(), found.sums.len()), ("os_@v.erofs", 1));
    assert_eq!(found.sums[&name("1")].sha256, sha256(&one));
    let digests = db.file_digests(&name("os"), &name("1")).await.expect("asked").expect("computed");
    // sha1sum and md5sum say so.
    assert_eq!(digests.sha1, sum_of("sha1sum", &one)[..]);
    assert_eq!(digests.md5, sum_of("md5sum", &one)[..]);
    let listing = found.listing(&name("1")).expect("a listing");
    assert_eq!(listing, format!("{}  os_1.erofs\n", hex::encode(sha256(&one))));
    let signature = found.sums[&name("1")].signature.clone();
    if let Some(good) = verified(&world, &listing, &signature).await {
        assert!(good);
        assert_eq!(verified(&world, &listing.replace("os_1", "os_2"), &signature).await, Some(false));
    }

    // The next release is listed when the channel moves, and the document says nothing of others.
    set_channel(&world, "stable", "2").await;
    let found = files(&world, "stable").await.expect("files");
    assert_eq!(found.sums.keys().map(Name::as_str).collect::<Vec<_>>(), ["2"]);
    assert_eq!(found.sums[&name("2")].sha256, sha256(&two));

    // A restart signs nothing again.
    let signed = document(&world, "stable").await;
    let World { running, directory, .. } = world;
    assert!(running.stop(Duration::from_secs(10)).await);
    let world = World::open(directory).await;
    assert_eq!(document(&world, "stable").await, signed);

    // Another name is signed anew, and the counter grows once.
    let counter = |text: &str| serde_json::from_str::<ChannelDoc>(text).expect("a document").counter;
    for _ in 0..2 {
        assert_eq!(set_name(&world, "other-@v").await.0, StatusCode::OK);
        assert_eq!(counter(&document(&world, "stable").await), counter(&signed) + 1);
    }
    let found = files(&world, "stable").await.expect("files");
    let (listing, sum) = (found.listing(&name("2")).expect("a listing"), &found.sums[&name("2")]);
    assert!(listing.ends_with("  other-2\n"), "{listing}");
    assert_ne!(verified(&world, &listing, &sum.signature).await, Some(false));
    let gone = world.request(Method::DELETE, "/v1/products/os/file-name").send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(files(&world, "stable").await, None);
    let (_, log) = world.get("/v1/audit?action=product.set").await;
    let details: Vec<_> =
        log["entries"].as_array().expect("a list").iter().map(|e| text(&e["details"])).collect();
    assert_eq!(
        details[..3],
        [r#"{"file_name":null}"#, r#"{"file_name":"other-@v"}"#, r#"{"file_name":"os_@v.erofs"}"#]
    );
}

/// Digest of bytes as a program prints it.
fn sum_of(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    let output = Command::new(program).arg(file.path()).output().expect("coreutils");
    let text = String::from_utf8(output.stdout).expect("text");
    hex::decode(text.split_whitespace().next().expect("a digest")).expect("hexadecimal")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_name_takes_the_scope_publish_and_is_checked() {
    let world = World::new().await;
    assert_eq!(set_name(&world, "os_@v").await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.put_content("os", "1", noise(1, 1000)).await.0, StatusCode::CREATED);
    for bad in ["", "os", "@v@v", ".os_@v", "a/@v", "os_@v\n"] {
        let (status, error) = set_name(&world, bad).await;
        assert_eq!(
            (status, &error["error"]["code"]),
            (StatusCode::BAD_REQUEST, &json!("bad_request")),
            "{bad}"
        );
    }
    let put = async |token: &str| {
        let request = world.bare(Method::PUT, "/v1/products/os/file-name").bearer_auth(token);
        answer(request.json(&json!({"name": "os_@v"}))).await.0
    };
    assert_eq!(put(&world.token_with("read,channel", None).await).await, StatusCode::FORBIDDEN);
    assert_eq!(put(&world.token_for("publish", "app", None).await).await, StatusCode::FORBIDDEN);
    assert_eq!(put(&world.token_for("publish", "os", None).await).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_of_a_rollout_and_those_it_requires_have_sums_too() {
    let world = World::new().await;
    for (version, seed) in [("1", 1), ("2", 2), ("3", 3)] {
        assert_eq!(world.put_content("os", version, noise(seed, 30_000)).await.0, StatusCode::CREATED);
    }
    assert_eq!(set_name(&world, "os_@v").await.0, StatusCode::OK);
    set_channel(&world, "stable", "1").await;
    let (_keep, node) = enrolled(&world, Role::Leaf, json!({})).await;
    let running = Running {
        product: name("os"),
        channel: name("stable"),
        version: Some(name("1")),
        manifest: None,
        held: None,
        held_from: None,
    };
    let report = Report { sequence: 1, at: 1, boot: vec![1; 16], ..Default::default() };
    let (origin, now) = (&world.running.origin, distd_peer::clock::unix_now());
    origin.db().put_report(&node, &report, &[&running], &[], now as i64).await.expect("recorded");
    let policy = Policy { requires: vec![name("2")], ..Policy::default() };
    origin
        .start_rollout((&name("os"), &name("stable"), &name("3")), &policy, &MoveBy::origin())
        .await
        .expect("begins");
    let found = files(&world, "stable").await.expect("files");
    let sums: Vec<_> = found.sums.iter().map(|(version, sum)| (version.as_str(), sum.sha256)).collect();
    let sum = |seed| sha256(&noise(seed, 30_000));
    assert_eq!(sums, [("1", sum(1)), ("2", sum(2)), ("3", sum(3))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_the_store_has_lost_is_left_out_and_its_channel_still_moves() {
    let world = World::new().await;
    assert_eq!(world.put_content("os", "1", noise(1, 300_000)).await.0, StatusCode::CREATED);
    for pack in world.packs() {
        let bytes = std::fs::read(&pack).expect("a pack");
        std::fs::write(&pack, vec![0xff; bytes.len()]).expect("damaged");
    }
    assert_eq!(set_name(&world, "os_@v").await.0, StatusCode::OK);
    set_channel(&world, "stable", "1").await;
    let found = files(&world, "stable").await.expect("files");
    assert_eq!((found.name.as_str(), found.sums.len()), ("os_@v", 0));
}
