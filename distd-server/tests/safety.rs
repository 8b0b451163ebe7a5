//! An origin with the wrong database or store, or with one that has lost something, on every back
//! end. The origin refuses, names the fault and repairs it, and never deletes anything that the
//! right database or store would need.

#[path = "storage/servers.rs"]
mod servers;
#[path = "http/world.rs"]
#[expect(dead_code, reason = "shared with tests that use all of it")]
mod world;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::names::Name;
use distd_server::db::{ChannelMove, MoveBy};
use distd_server::offline::{FsckOptions, fsck};
use distd_server::origin::{DisagreementError, OpenError, Origin, Places, Tuning};
use distd_server::patches::PatchOptions;
use distd_server::run::{StartError, start};
use distd_server::store::Store;
use distd_server::store::pack::read_index;
use futures::TryStreamExt;
use reqwest::{Method, StatusCode};
use servers::{Postgres, random};
use sqlx::{AnyConnection, Connection, Executor};
use tempfile::TempDir;
use world::{World, cut, files, noise, settings};

/// Database and store of one test, and the PostgreSQL databases to drop at its end.
struct Site {
    directory: Option<TempDir>,
    path: PathBuf,
    db: String,
    store: String,
    postgres: Vec<Postgres>,
}

impl Site {
    fn local() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().to_owned();
        let db = format!("sqlite:{}", path.join("distd.sqlite").display());
        let store = path.join("objects").display().to_string();
        Self { directory: Some(directory), path, db, store, postgres: Vec::new() }
    }

    async fn on_postgres() -> Option<Self> {
        let postgres = Postgres::create().await?;
        Some(Self { db: postgres.url.clone(), postgres: vec![postgres], ..Self::local() })
    }

    async fn on_s3() -> Option<Self> {
        Some(Self { store: servers::s3()?, ..Self::local() })
    }

    async fn open(&mut self) -> World {
        let directory = self.directory.take().expect("it was stopped");
        World::open_with(directory, &[("db", &self.db), ("store", &self.store), ("patches", "false")]).await
    }

    async fn close(&mut self, world: World) {
        let World { running, directory, .. } = world;
        assert!(running.stop(Duration::from_secs(10)).await, "nothing is under way");
        self.directory = Some(directory);
    }

    /// Error of a start with `db` and `store` instead of the site's own.
    async fn refused(&self, db: &str, store: &str) -> DisagreementError {
        let settings = settings(&self.path, &[("db", db), ("store", store)]);
        match start(&settings).await {
            Err(StartError::Open(OpenError::Disagreement(error))) => error,
            Err(error) => panic!("another error: {}", whole(&error)),
            Ok(_) => panic!("it started"),
        }
    }

    /// An empty database of the same engine.
    async fn empty_db(&mut self) -> String {
        if self.db.starts_with("sqlite:") {
            return format!("sqlite:{}", self.path.join(format!("{}.sqlite", random())).display());
        }
        let postgres = Postgres::create().await.expect("a server");
        let url = postgres.url.clone();
        self.postgres.push(postgres);
        url
    }

    /// An empty store of the same kind.
    fn empty_store(&self) -> String {
        servers::beside(&self.store).unwrap_or_else(|| self.path.join(random()).display().to_string())
    }

    fn places(&self) -> Places {
        Places {
            data: self.path.clone(),
            db: self.db.clone(),
            store: self.store.clone(),
            keys: distd_server::signer::KeyHolder::in_dir(&self.path),
        }
    }

    /// A second origin on the same database and store, with the same keys, as on a machine whose
    /// locks exclude nobody.
    async fn second(&self, first: &World) -> Arc<Origin> {
        // The directory has to outlive the origin, whose spool is in it.
        let data = tempfile::tempdir().expect("tempdir").keep();
        for directory in ["realm", "tuf-keys"] {
            let to = data.join(directory);
            std::fs::create_dir(&to).expect("made");
            for file in files(&first.directory.path().join(directory)) {
                std::fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("copied");
            }
        }
        let patches = PatchOptions { enabled: false, ..PatchOptions::default() };
        let tuning = Tuning { patches, ..Tuning::default() };
        Origin::open(&Places { data, ..self.places() }, tuning).await.expect("it takes over")
    }

    async fn object(&self, name: &str) -> Option<Bytes> {
        Store::open(&self.store).expect("store").get(name).await.expect("read")
    }

    async fn objects(&self) -> Vec<String> {
        let store = Store::open(&self.store).expect("store");
        let mut names = Vec::new();
        for prefix in ["packs", "manifests"] {
            names.extend(store.list(prefix).map_ok(|o| o.name).try_collect::<Vec<_>>().await.expect("list"));
        }
        names.sort();
        names
    }

    async fn end(self) {
        for postgres in self.postgres {
            postgres.end().await;
        }
    }
}

/// An error and its causes.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

macro_rules! on_every_back_end {
    ($(async fn $test:ident($site:ident: Site) $body:block)*) => {$(
        mod $test {
            use super::*;

            async fn run($site: &mut Site) $body

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite_and_a_directory() {
                let mut site = Site::local();
                run(&mut site).await;
                site.end().await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres_and_a_directory() {
                if let Some(mut site) = Site::on_postgres().await {
                    run(&mut site).await;
                    site.end().await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite_and_s3() {
                if let Some(mut site) = Site::on_s3().await {
                    run(&mut site).await;
                    site.end().await;
                }
            }
        }
    )*};
}

on_every_back_end! {
    async fn an_empty_database_beside_a_store_in_use_is_refused_and_nothing_is_deleted(site: Site) {
        let world = site.open().await;
        let (_, release) = world.put_content("os", "1", noise(1, 400_000)).await;
        site.close(world).await;
        let before = site.objects().await;
        assert!(!before.is_empty());

        let empty = site.empty_db().await;
        let store = site.store.clone();
        let error = site.refused(&empty, &store).await;
        assert!(matches!(error, DisagreementError::EmptyDatabase { releases: 1, packs: 1, .. }), "{error:?}");
        assert!(error.to_string().contains("distd-server fsck --repair"), "{error}");
        assert_eq!(site.objects().await, before);
        // The second start is refused, too, although the empty database now has its tables.
        assert!(matches!(site.refused(&empty, &store).await, DisagreementError::EmptyDatabase { .. }));
        assert_eq!(site.objects().await, before);

        let world = site.open().await;
        assert_eq!(world.get("/v1/products/os/releases/1").await, (StatusCode::OK, release));
        site.close(world).await;
    }

    async fn an_upload_alone_is_enough_to_tell_an_empty_database_from_the_right_one(site: Site) {
        let world = site.open().await;
        let image = cut(&noise(2, 400_000));
        let (upload, _) = world.begin("os", "1").await;
        let records = image.records(&vec![true; image.chunks.len()]);
        world.post_bytes(&format!("/v1/uploads/{upload}/chunks"), records).await;
        site.close(world).await;
        let before = site.objects().await;
        let (empty, store) = (site.empty_db().await, site.store.clone());
        assert!(matches!(site.refused(&empty, &store).await, DisagreementError::EmptyDatabase { .. }));
        assert_eq!(site.objects().await, before);
    }

    async fn an_empty_store_beside_a_database_in_use_is_refused_and_stays_empty(site: Site) {
        let world = site.open().await;
        world.put_content("os", "1", noise(3, 100_000)).await;
        site.close(world).await;
        let (db, empty) = (site.db.clone(), site.empty_store());
        let error = site.refused(&db, &empty).await;
        assert!(matches!(error, DisagreementError::EmptyStore { releases: 1, .. }), "{error:?}");
        let store = Store::open(&empty).expect("store");
        assert_eq!(store.list("tuf").try_collect::<Vec<_>>().await.expect("list"), [], "no repository was made");
    }

    async fn another_realms_database_and_store_are_refused(site: Site) {
        let world = site.open().await;
        world.put_content("os", "1", noise(4, 100_000)).await;
        site.close(world).await;
        let mut other = Site::local();
        let world = other.open().await;
        world.put_content("os", "1", noise(5, 100_000)).await;
        other.close(world).await;

        let before = (site.objects().await, other.objects().await);
        let error = other.refused(&site.db, &other.store).await;
        assert!(matches!(error, DisagreementError::ForeignDatabase { .. }), "{error:?}");
        let error = other.refused(&other.db, &site.store).await;
        assert!(matches!(error, DisagreementError::ForeignStore { .. }), "{error:?}");
        // Database and store belong to one realm, and the data directory to another.
        let error = other.refused(&site.db, &site.store).await;
        assert!(matches!(error, DisagreementError::ForeignDatabase { .. }), "{error:?}");
        assert_eq!((site.objects().await, other.objects().await), before);
    }

    async fn a_database_and_a_store_older_than_owners_are_adopted_once(site: Site) {
        let world = site.open().await;
        world.put_content("os", "1", noise(6, 100_000)).await;
        site.close(world).await;
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&site.db).await.expect("database");
        connection.execute("DELETE FROM identity").await.expect("forget");
        connection.close().await.expect("close");
        let store = Store::open(&site.store).expect("store");
        store.delete("realm").await.expect("forget");
        store.delete("owner").await.expect("forget");

        let world = site.open().await;
        assert_eq!(world.get("/v1/products/os/releases/1").await.0, StatusCode::OK);
        let realm = hex::encode(world.running.origin.realm().ca_fingerprint());
        assert_eq!(world.running.origin.db().realm().await.expect("read"), Some(realm.clone()));
        assert_eq!(store.get("realm").await.expect("get").as_deref(), Some(format!("{realm}\n").as_bytes()));
        site.close(world).await;
    }

    async fn a_lost_pack_is_found_at_start_and_the_same_image_pushed_again_brings_it_back(site: Site) {
        let world = site.open().await;
        let image = cut(&noise(7, 600_000));
        assert_eq!(image.push(&world, "os", "1").await.0, StatusCode::CREATED);
        let other = noise(8, 300_000);
        assert_eq!(world.put_content("os", "other", other.clone()).await.0, StatusCode::CREATED);
        site.close(world).await;

        // All packs are lost, not only those of the release that is pushed again.
        let store = Store::open(&site.store).expect("store");
        let packs: Vec<_> = site.objects().await.into_iter().filter(|o| o.starts_with("packs/")).collect();
        for pack in &packs {
            store.delete(pack).await.expect("lose it");
        }
        let world = site.open().await;
        let damaged = |releases: &serde_json::Value| -> Vec<String> {
            let all = releases["releases"].as_array().expect("a list").iter();
            all.filter(|r| r["damaged"] == true).map(|r| world::text(&r["version"])).collect()
        };
        let (_, releases) = world.get("/v1/products/os/releases").await;
        assert_eq!(damaged(&releases).len(), 2, "{releases}");

        let (upload, _) = world.begin("os", "1").await;
        assert!(world.missing(&upload, &image.hashes()).await.iter().all(|missing| *missing));
        let (status, answer) = image.push(&world, "os", "1").await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(damaged(&world.get("/v1/products/os/releases").await.1), ["other"]);
        assert_eq!(world.put_content("os", "other", other).await.0, StatusCode::OK);
        assert!(damaged(&world.get("/v1/products/os/releases").await.1).is_empty());
        let origin = world.running.origin.clone();
        let mut n = 1;
        while let Some(chunk) = origin.chunks().chunk(distd_core::ChunkId(n)).await.expect("can be read") {
            assert_eq!(chunk.id.0, n);
            n += 1;
        }
        assert!(n > 20, "there are chunks");
        drop(origin);
        site.close(world).await;
        let world = site.open().await;
        assert!(damaged(&world.get("/v1/products/os/releases").await.1).is_empty());
        site.close(world).await;
    }

    async fn a_lost_pack_comes_back_with_any_version_that_has_its_chunks(site: Site) {
        let world = site.open().await;
        let image = noise(9, 500_000);
        assert_eq!(world.put_content("os", "1", image.clone()).await.0, StatusCode::CREATED);
        site.close(world).await;
        let store = Store::open(&site.store).expect("store");
        for object in site.objects().await {
            store.delete(&object).await.expect("lose it");
        }
        let world = site.open().await;
        assert_eq!(world.put_content("os", "2", image.clone()).await.0, StatusCode::CREATED);
        let (_, one) = world.get("/v1/products/os/releases/1").await;
        assert_ne!(one["damaged"], true, "the same manifest and the same chunks: {one}");
        site.close(world).await;
    }

    async fn chunks_of_a_lost_pack_are_found_in_other_packs(site: Site) {
        let world = site.open().await;
        let (_, first) = world.put_content("os", "1", noise(20, 600_000)).await;
        let (_, second) = world.put_content("os", "2", noise(21, 300_000)).await;
        let db = world.running.origin.db();
        // A copy that no row names, as a compaction leaves it that was cut off, and its note.
        let packs = db.packs().await.expect("packs");
        let [(lost, object, _), (other, other_object, _)] = &packs[..] else { panic!("{packs:?}") };
        let chunks = db.pack_chunks(*lost).await.expect("chunks").len() as u64;
        assert!(chunks > 2 && !db.pack_chunks(*other).await.expect("chunks").is_empty());
        let copy = "packs/ff/ff000000000000000000000000000000";
        db.doom(copy, 1).await.expect("noted");
        site.close(world).await;
        let store = Store::open(&site.store).expect("store");
        let bytes = store.get(object).await.expect("get").expect("there");
        store.delete(object).await.expect("lose it");

        let looked = fsck(&site.places(), FsckOptions::default()).await.expect("looks");
        assert_eq!((&looked.lost, looked.damaged.len(), looked.found_again), (&vec![object.clone()], 1, 0));
        // A copy that is damaged proves nothing, however little of it is.
        let repair = FsckOptions { repair: true, ..FsckOptions::default() };
        let mut rotten = bytes.to_vec();
        rotten[100] ^= 1;
        store.put(copy, rotten).await.expect("put");
        let report = fsck(&site.places(), repair).await.expect("looks");
        assert_eq!((report.lost.len(), report.damaged.len(), report.found_again), (1, 1, 0), "{report}");

        store.put(copy, bytes.clone()).await.expect("put");
        let all = FsckOptions { delete_unknown: true, ..repair };
        let report = fsck(&site.places(), all).await.expect("repairs");
        assert_eq!((report.found_again, report.is_sound()), (chunks, true), "{report}");
        assert!(report.to_string().contains(&format!("found again: {chunks} chunks")), "{report}");
        assert_eq!(fsck(&site.places(), all).await.expect("again").found_again, 0);

        // The sweep at the start keeps the pack, and the release is served whole.
        let world = site.open().await;
        assert_eq!(world.get("/v1/products/os/releases/1").await.1, first);
        assert_eq!(world.get("/v1/products/os/releases/2").await.1, second);
        let origin = world.running.origin.clone();
        let packs = origin.db().packs().await.expect("packs");
        let names: Vec<&String> = packs.iter().map(|(_, object, _)| object).collect();
        assert_eq!(names, [other_object, copy]);
        let mut n = 1;
        while let Some(chunk) = origin.chunks().chunk(distd_core::ChunkId(n)).await.expect("can be read") {
            let mut unpacker = distd_core::packing::Unpacker::default();
            unpacker.unpack(chunk.codec, &chunk.bytes, chunk.raw_len, &chunk.hash).expect("its bytes");
            n += 1;
        }
        assert!(n > chunks);
        drop(origin);
        site.close(world).await;
    }

    async fn a_repair_that_was_killed_half_way_ends_right_when_it_is_repeated(site: Site) {
        let world = site.open().await;
        assert_eq!(world.put_content("os", "1", noise(22, 600_000)).await.0, StatusCode::CREATED);
        let packs = world.running.origin.db().packs().await.expect("packs");
        let (lost, object, bytes) = packs[0].clone();
        let chunks = world.running.origin.db().pack_chunks(lost).await.expect("chunks").len() as u64;
        site.close(world).await;
        let store = Store::open(&site.store).expect("store");
        let copy = "packs/ff/ff000000000000000000000000000000";
        let pack = store.get(&object).await.expect("get").expect("there");
        store.put(copy, pack.clone()).await.expect("put");
        store.delete(&object).await.expect("lose it");

        // The first transaction of the repair, and no step after it.
        let db = distd_server::db::Db::open_present(&site.db).await.expect("opens");
        let entries = read_index(&pack).expect("a pack");
        let is_lost = |pack| pack == lost;
        let moved = db.relocate_found(copy, bytes, &entries[..2], &is_lost, 1).await.expect("moves");
        assert_eq!(moved, 2);
        let again = db.relocate_found(copy, bytes, &entries[..2], &is_lost, 1).await.expect("again");
        assert_eq!(again, 0, "rows that have moved stay");
        db.close().await;
        let looked = fsck(&site.places(), FsckOptions::default()).await.expect("looks");
        assert_eq!((looked.lost.len(), looked.damaged.len()), (1, 1), "{looked}");
        let repair = FsckOptions { repair: true, ..FsckOptions::default() };
        let report = fsck(&site.places(), repair).await.expect("repairs");
        assert_eq!((report.found_again, report.is_sound()), (chunks - 2, true), "{report}");
        assert!(!site.objects().await.contains(&object));
    }

    async fn nothing_moves_to_the_pack_of_an_open_upload(site: Site) {
        let world = site.open().await;
        let image = cut(&noise(23, 400_000));
        assert_eq!(image.push(&world, "os", "1").await.0, StatusCode::CREATED);
        let origin = world.running.origin.clone();
        let (lost, object, _) = origin.db().packs().await.expect("packs")[0].clone();
        // Another publisher, who sees nothing of the product, has sent the same chunks.
        let theirs = world.token_for("publish", "app", None).await;
        let path = "/v1/products/app/releases/1/uploads";
        let app = "app".parse::<Name>().expect("a name");
        origin.db().ensure_product(&app, distd_core::cut::CutParams::default(), 1).await.expect("product");
        let begun = world.bare(Method::POST, path).bearer_auth(&theirs);
        let (status, begun) = world::answer(begun).await;
        assert_eq!(status, StatusCode::OK, "{begun}");
        let upload = world::text(&begun["upload"]);
        let all = vec![true; image.chunks.len()];
        let sent = world.bare(Method::POST, &format!("/v1/uploads/{upload}/chunks")).bearer_auth(&theirs);
        let (status, stored) = world::answer(sent.body(image.records(&all))).await;
        assert_eq!((status, &stored["stored"]), (StatusCode::OK, &all.len().into()), "{stored}");
        let packs = origin.db().packs().await.expect("packs");
        assert_eq!(packs.len(), 2, "{packs:?}");
        drop(origin);
        site.close(world).await;
        Store::open(&site.store).expect("store").delete(&object).await.expect("lose it");
        let repair = FsckOptions { repair: true, ..FsckOptions::default() };
        let report = fsck(&site.places(), repair).await.expect("looks");
        assert_eq!((report.found_again, report.lost.len()), (0, 1), "{report}");
        let world = site.open().await;
        let db = world.running.origin.db();
        assert!(!db.pack_chunks(lost).await.expect("chunks").is_empty());
        let id = db.uploads_open().await.expect("uploads")[0].row.id.clone();
        world.running.origin.ingest().abort(&id).await.expect("the upload ends as any other");
        site.close(world).await;
    }

    async fn a_store_of_another_database_is_refused_and_a_repair_takes_it_over(site: Site) {
        let world = site.open().await;
        let (_, release) = world.put_content("os", "1", noise(90, 100_000)).await;
        site.close(world).await;
        // The database poses as another one of this realm, on the same bucket, with the same
        // releases.
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&site.db).await.expect("database");
        connection.execute("UPDATE identity SET id = 'another'").await.expect("another id");
        connection.close().await.expect("close");
        let (before, said) = (site.objects().await, site.object("tuf/timestamp.json").await);
        let (db, store) = (site.db.clone(), site.store.clone());
        let error = site.refused(&db, &store).await;
        assert!(matches!(&error, DisagreementError::OtherDatabase { database, .. } if database == "another"), "{error:?}");
        assert!(error.to_string().contains("distd-server fsck --repair"), "{error}");
        assert_eq!((site.objects().await, site.object("tuf/timestamp.json").await), (before, said));

        let options = FsckOptions { repair: true, ..FsckOptions::default() };
        fsck(&site.places(), options).await.expect("repairs");
        let world = site.open().await;
        assert_eq!(world.get("/v1/products/os/releases/1").await, (StatusCode::OK, release));
        site.close(world).await;
    }

    async fn of_two_processes_on_one_store_the_one_that_started_last_signs(site: Site) {
        let world = site.open().await;
        assert_eq!(world.put_content("os", "1", noise(91, 100_000)).await.0, StatusCode::CREATED);
        let second = site.second(&world).await;
        let said = site.object("tuf/timestamp.json").await;
        let (status, error) = world.put_content("os", "2", noise(92, 100_000)).await;
        assert!(status.is_server_error(), "{status} {error}");
        assert_eq!(site.object("tuf/timestamp.json").await, said, "the first origin signs nothing any more");
        let name = |text: &str| -> Name { text.parse().expect("a name") };
        let (os, one) = (name("os"), name("1"));
        let point = async |channel: &str| {
            let channel = name(channel);
            let to = ChannelMove { product: &os, channel: &channel, version: &one, downgrade: false };
            second.set_channel(to, &MoveBy::origin()).await
        };
        point("stable").await.expect("the second origin may sign");
        assert_ne!(site.object("tuf/timestamp.json").await, said);

        // After a restart the first origin is the one that started last.
        site.close(world).await;
        let world = site.open().await;
        let error = point("beta").await.expect_err("overtaken");
        assert!(whole(&error).contains("has taken the store over"), "{}", whole(&error));
        assert_eq!(world.get("/v1/products/os/channels/stable").await.0, StatusCode::OK);
        let (_, two) = world.get("/v1/products/os/releases/2").await;
        assert_eq!(two["version"], "2", "its committed release is published now");
        second.db().close().await;
        site.close(world).await;
    }

    async fn two_processes_on_one_database_do_not_run(site: Site) {
        let world = site.open().await;
        let second = tempfile::tempdir().expect("tempdir");
        let store = second.path().join("objects").display().to_string();
        let begun = start(&settings(second.path(), &[("db", &site.db), ("store", &store)])).await;
        let Err(error) = begun else { panic!("two on one database") };
        assert!(whole(&error).contains("another distd-server uses the database"), "{}", whole(&error));
        assert!(!Path::new(&store).join("tuf").exists(), "no repository was made");
        site.close(world).await;
    }

    async fn releases_that_the_signed_list_has_lost_are_listed_again(site: Site) {
        let world = site.open().await;
        world.put_content("os", "1", noise(10, 50_000)).await;
        let store = Store::open(&site.store).expect("store");
        let tuf: Vec<_> = store.list("tuf").try_collect().await.expect("list");
        let mut saved = Vec::new();
        for object in tuf {
            saved.push((object.name.clone(), store.get(&object.name).await.expect("get").expect("there")));
        }
        world.put_content("os", "2", noise(11, 50_000)).await;
        let (status, _) = world.json(Method::PUT, "/v1/products/os/channels/stable", Some(
            serde_json::json!({"version": "2"}))).await;
        assert_eq!(status, StatusCode::OK);
        site.close(world).await;
        // Put the old metadata back, as another process did that signed over this one's list.
        for (name, bytes) in saved {
            store.put(&name, bytes.to_vec()).await.expect("put");
        }
        let world = site.open().await;
        let moved = serde_json::json!({"version": "1", "downgrade": true});
        let (status, _) = world.json(Method::PUT, "/v1/products/os/channels/stable", Some(moved)).await;
        assert_eq!(status, StatusCode::OK);
        let moved = serde_json::json!({"version": "2"});
        let (status, answer) = world.json(Method::PUT, "/v1/products/os/channels/stable", Some(moved)).await;
        assert_eq!(status, StatusCode::OK, "the release is listed: {answer}");
        site.close(world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_beside_a_newer_store_is_refused_and_nothing_is_deleted() {
    let mut site = Site::local();
    let world = site.open().await;
    world.put_content("os", "1", noise(12, 200_000)).await;
    site.close(world).await;
    let old = site.path.join("old");
    std::fs::create_dir(&old).expect("mkdir");
    let database: Vec<PathBuf> =
        files(&site.path).into_iter().filter(|f| f.display().to_string().contains("distd.sqlite")).collect();
    for file in &database {
        std::fs::copy(file, old.join(file.file_name().expect("a name"))).expect("copy");
    }
    let world = site.open().await;
    world.put_content("os", "2", noise(13, 200_000)).await;
    site.close(world).await;
    let before = site.objects().await;
    for file in files(&site.path) {
        if file.parent() == Some(&site.path) && file.display().to_string().contains("distd.sqlite") {
            std::fs::remove_file(&file).expect("remove");
        }
    }
    for file in files(&old) {
        std::fs::copy(&file, site.path.join(file.file_name().expect("a name"))).expect("copy");
    }
    let error = site.refused(&site.db, &site.store).await;
    let DisagreementError::OlderDatabase { count: 1, names } = &error else { panic!("{error:?}") };
    assert_eq!(names, "os@2");
    assert_eq!(site.objects().await, before);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_would_delete_much_deletes_nothing_and_serving_goes_on() {
    let mut site = Site::local();
    let world = site.open().await;
    world.put_content("os", "1", noise(14, 200_000)).await;
    site.close(world).await;
    let store = Store::open(&site.store).expect("store");
    let stray = |n: u32| format!("packs/aa/aa{n:030x}");
    for n in 0..9 {
        store.put(&stray(n), vec![1, 2, 3]).await.expect("put");
    }
    let before = site.objects().await;
    let world = site.open().await;
    assert_eq!(site.objects().await, before);
    assert_eq!(world.get("/readyz").await.0, StatusCode::OK);
    site.close(world).await;
    // Now there are as many orphans as a crash may leave.
    store.delete(&stray(0)).await.expect("delete");
    let world = site.open().await;
    assert_eq!(site.objects().await.len(), before.len() - 9);
    site.close(world).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_cannot_listen_deletes_nothing() {
    let mut site = Site::local();
    let world = site.open().await;
    world.put_content("os", "1", noise(15, 200_000)).await;
    site.close(world).await;
    let store = Store::open(&site.store).expect("store");
    store.put("packs/aa/aa000000000000000000000000000000", vec![1]).await.expect("put");
    let before = site.objects().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    for key in ["http", "quic"] {
        assert!(start(&settings(&site.path, &[(key, &address)])).await.is_err(), "{key}");
        assert_eq!(site.objects().await, before, "{key}");
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_store_do_not_run() {
    let mut site = Site::local();
    let world = site.open().await;
    let second = tempfile::tempdir().expect("tempdir");
    let begun = start(&settings(second.path(), &[("store", &site.store)])).await;
    let Err(error) = begun else { panic!("two on one store") };
    assert!(whole(&error).contains("another distd-server uses the store"), "{}", whole(&error));
    site.close(world).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_loses_its_postgres_lock_signs_nothing_after_a_second_and_ends() {
    let Some(mut site) = Site::on_postgres().await else { return };
    let world = site.open().await;
    assert_eq!(world.put_content("os", "1", noise(93, 100_000)).await.0, StatusCode::CREATED);
    // The second process waits for the lock. Then the connection that holds it ends.
    let mut waits = AnyConnection::connect(&site.db).await.expect("PostgreSQL");
    let mut admin = AnyConnection::connect(&site.db).await.expect("PostgreSQL");
    let held = "SELECT CAST(COUNT(*) AS BIGINT) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                (SELECT oid FROM pg_database WHERE datname = current_database()) AND granted = ";
    let count = async |admin: &mut AnyConnection, granted: &str| -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("{held}{granted}"));
        sqlx::query_scalar(sql).fetch_one(admin).await.expect("a count")
    };
    let got = tokio::spawn(async move {
        let locked =
            waits.execute("SELECT CAST(1 AS INT) FROM (SELECT pg_advisory_lock(431265903716)) l").await;
        locked.map(|_| waits)
    });
    let waits_since = std::time::Instant::now();
    while count(&mut admin, "false").await == 0 {
        assert!(waits_since.elapsed() < Duration::from_secs(60), "the second process waits for the lock");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let end = "SELECT CAST(pg_terminate_backend(pid) AS INT) FROM pg_locks WHERE locktype = 'advisory' AND granted \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    admin.execute(end).await.expect("terminated");
    let lock = got.await.expect("no panic").expect("the second process has the lock");
    let second = site.second(&world).await;

    let said = site.object("tuf/timestamp.json").await;
    let (status, error) = world.put_content("os", "2", noise(94, 100_000)).await;
    assert!(status.is_server_error(), "{status} {error}");
    assert_eq!(site.object("tuf/timestamp.json").await, said);
    let ends = tokio::time::timeout(Duration::from_secs(60), world.running.overtaken());
    ends.await.expect("the origin learns that another process has the database");
    second.db().close().await;
    drop((lock, admin));
    site.close(world).await;
    site.end().await;
}

/// A `distd-server serve` in a process of its own; killed when dropped.
struct Process {
    child: std::process::Child,
    /// Kept open: a process that cannot print ends.
    _out: BufReader<std::process::ChildStdout>,
    /// Address of HTTPS.
    http: String,
    log: PathBuf,
}

impl Process {
    fn serve(data: &Path, db: &str, store: &str) -> Self {
        let log = data.join("log");
        let mut command =
            server(&["serve", "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"], data, db, store);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(&log).expect("a log"));
        let mut child = command.spawn().expect("it starts");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("text");
        let http = line.strip_prefix("origin listening on https://").and_then(|rest| rest.split(' ').next());
        let Some(http) = http.map(str::to_owned) else {
            let _ = child.wait();
            panic!("it does not listen: {line}\n{}", std::fs::read_to_string(&log).expect("the log"));
        };
        Self { child, _out: out, http, log }
    }

    /// The exit code, if the process ends within `bound`.
    fn ended(&mut self, bound: Duration) -> Option<i32> {
        let until = std::time::Instant::now() + bound;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status.code();
            }
            if std::time::Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        std::net::TcpStream::connect(&self.http).is_ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `distd-server` with these arguments at these places.
fn server(args: &[&str], data: &Path, db: &str, store: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_distd-server"));
    command.args(args).arg("--data").arg(data).args(["--db", db, "--store", store]).env_remove("DISTD_LOG");
    command
}

/// Conduct of a command of `distd-server` that an operator runs on the origin's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conduct {
    /// Writes, and takes the store: refused while an origin runs.
    Owns,
    /// Changes one row or one file, beside a running origin.
    Beside,
    /// Changes nothing, and is refused while an origin runs.
    Looks,
    /// Changes nothing, beside a running origin.
    LooksBeside,
}

/// Every command but `serve`, `signer`, `restore` (which has a test of its own) and those that need
/// no origin. `{new}` is a path that is new for each run, `{root}` a root that was signed.
const COMMANDS: [(&[&str], Conduct); 11] = [
    (&["fsck"], Conduct::Looks),
    (&["fsck", "--check-data", "--json"], Conduct::Looks),
    (&["root", "show"], Conduct::LooksBeside),
    (&["backup", "{new}"], Conduct::LooksBeside),
    (&["admin-token", "--out", "{new}"], Conduct::Beside),
    (&["keys", "renew-ca"], Conduct::Beside),
    (&["root", "prepare", "--replace"], Conduct::Beside),
    (&["root", "install", "{root}"], Conduct::Beside),
    (&["fsck", "--repair"], Conduct::Owns),
    (&["fsck", "--repair", "--check-data", "--delete-unknown"], Conduct::Owns),
    (&["keys", "rotate", "--role", "snapshot,timestamp"], Conduct::Owns),
];

impl Site {
    /// Runs a command; returns its exit code and everything that it printed.
    fn run(&self, scratch: &Path, args: &[&str]) -> (Option<i32>, String) {
        let new = scratch.join(random()).display().to_string();
        let root = self.path.join("root-next.json").display().to_string();
        let args: Vec<&str> = args
            .iter()
            .map(|arg| match *arg {
                "{new}" => &new,
                "{root}" => &root,
                arg => arg,
            })
            .collect();
        let output = server(&args, &self.path, &self.db, &self.store).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    /// Everything of the origin's: files of the data directory, objects of the store, and rows.
    async fn everything(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for file in files(&self.path) {
            found.insert(file.display().to_string(), std::fs::read(&file).expect("read"));
        }
        let store = Store::open(&self.store).expect("store");
        let objects: Vec<_> = store.list("").try_collect().await.expect("a listing");
        for object in objects {
            let bytes = store.get(&object.name).await.expect("read").expect("there");
            found.insert(format!("object {}", object.name), bytes.to_vec());
        }
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&self.db).await.expect("database");
        for table in ["identity", "doomed", "counters", "releases", "packs", "chunks", "api_tokens", "nodes"]
        {
            let sql = sqlx::AssertSqlSafe(format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {table}"));
            let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("a count");
            found.insert(format!("rows of {table}"), count.to_be_bytes().to_vec());
        }
        connection.close().await.expect("close");
        found
    }
}

on_every_back_end! {
    async fn commands_that_write_own_the_store_and_those_that_read_change_nothing(site: Site) {
        let world = site.open().await;
        assert_eq!(world.put_content("os", "1", noise(40, 200_000)).await.0, StatusCode::CREATED);
        let scratch = tempfile::tempdir().expect("tempdir");
        // Beside the origin, in an order in which `install` finds the root that `prepare` has
        // written.
        for (args, conduct) in COMMANDS {
            let owner = site.object("owner").await;
            let (code, text) = site.run(scratch.path(), args);
            let refused = code == Some(1) && text.contains("another distd-server uses") && text.contains("stop it");
            match conduct {
                Conduct::Owns | Conduct::Looks => assert!(refused, "{args:?} ({code:?}): {text}"),
                Conduct::Beside | Conduct::LooksBeside => assert_eq!(code, Some(0), "{args:?}: {text}"),
            }
            assert_eq!(site.object("owner").await, owner, "{args:?}: the origin goes on");
        }
        assert_eq!(world.put_content("os", "2", noise(41, 100_000)).await.0, StatusCode::CREATED);
        site.close(world).await;

        for (args, conduct) in COMMANDS {
            let (before, owner) = (site.everything().await, site.object("owner").await);
            let (code, text) = site.run(scratch.path(), args);
            assert_eq!(code, Some(0), "{args:?}: {text}");
            let (after, owner_after) = (site.everything().await, site.object("owner").await);
            let same = |prefix: &str| {
                let of = |all: &BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
                    all.clone().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect()
                };
                of(&before) == of(&after)
            };
            match conduct {
                Conduct::Looks | Conduct::LooksBeside => {
                    let changed: Vec<_> =
                        after.iter().filter(|(name, bytes)| before.get(*name) != Some(bytes)).collect();
                    let names: Vec<_> = changed.iter().map(|(name, _)| name).collect();
                    assert!(before == after, "{args:?} has changed {names:?}");
                }
                Conduct::Beside => assert!(same("object "), "{args:?} has changed the store"),
                Conduct::Owns => assert_ne!(owner_after, owner, "{args:?} has not taken the store"),
            }
        }
        let world = site.open().await;
        assert_eq!(world.get("/v1/products/os/releases/2").await.0, StatusCode::OK);
        site.close(world).await;
    }

    async fn a_command_that_writes_is_refused_at_a_store_of_another_database(site: Site) {
        let world = site.open().await;
        assert_eq!(world.put_content("os", "1", noise(42, 100_000)).await.0, StatusCode::CREATED);
        site.close(world).await;
        let store = Store::open(&site.store).expect("store");
        store.put("owner", b"another process".to_vec()).await.expect("put");
        let before = site.objects().await;
        let scratch = tempfile::tempdir().expect("tempdir");
        for args in [&["keys", "rotate", "--role", "timestamp"][..], &["admin-token"]] {
            let (code, text) = site.run(scratch.path(), args);
            assert!(code == Some(1) && text.contains("belongs to database another"), "{args:?}: {text}");
        }
        assert_eq!(site.object("owner").await.as_deref(), Some(&b"another process"[..]));
        assert_eq!(site.objects().await, before);
        assert_eq!(site.run(scratch.path(), &["fsck", "--repair"]).0, Some(0));
        assert_ne!(site.object("owner").await.as_deref(), Some(&b"another process"[..]));
    }

    async fn a_process_that_is_overtaken_by_a_command_signs_nothing_more(site: Site) {
        let world = site.open().await;
        let second = site.second(&world).await;
        site.close(world).await;
        // The second has no lock, as on another machine, and a command runs on this one.
        let scratch = tempfile::tempdir().expect("tempdir");
        let (code, text) = site.run(scratch.path(), &["keys", "rotate", "--role", "timestamp"]);
        assert_eq!(code, Some(0), "{text}");
        let error = second.check_owner().await.expect_err("overtaken");
        assert!(whole(&error).contains("has taken the store over"), "{}", whole(&error));
        tokio::time::timeout(Duration::from_secs(60), second.overtaken()).await.expect("it learns of it");
        second.db().close().await;
    }

    async fn a_database_that_is_opened_for_reading_refuses_writes(site: Site) {
        let world = site.open().await;
        site.close(world).await;
        let db = distd_server::db::Db::open_read_only(&site.db).await.expect("opens");
        assert_eq!(db.contents().await.expect("a count").releases, 0);
        assert!(db.doom("packs/aa/x", 1).await.is_err());
        db.close().await;
        let db = distd_server::db::Db::open_present(&site.db).await.expect("opens");
        db.doom("packs/aa/x", 1).await.expect("another connection may");
        db.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_makes_no_directory_of_a_store_that_is_named_wrongly() {
    let mut site = Site::local();
    let world = site.open().await;
    site.close(world).await;
    let scratch = tempfile::tempdir().expect("tempdir");
    let wrong = scratch.path().join("wrong");
    let (db, store) = (format!("sqlite:{}", wrong.display()), wrong.display().to_string());
    for (db, store) in [(&site.db, &store), (&db, &site.store)] {
        for args in
            [&["fsck"][..], &["backup", "new"], &["keys", "rotate", "--role", "timestamp"], &["admin-token"]]
        {
            let mut command = server(args, &site.path, db, store);
            let output = command.current_dir(scratch.path()).output().expect("it runs");
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(!wrong.exists(), "{args:?}");
            let _ = std::fs::remove_dir(scratch.path().join("new"));
        }
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_owns_the_store_that_it_has_made() {
    let mut site = Site::local();
    let world = site.open().await;
    assert_eq!(world.put_content("os", "1", noise(43, 100_000)).await.0, StatusCode::CREATED);
    let scratch = tempfile::tempdir().expect("tempdir");
    let backup = scratch.path().join("backup").display().to_string();
    let (code, text) = site.run(scratch.path(), &["backup", &backup]);
    assert_eq!(code, Some(0), "{text}");
    // Into the places of the origin that runs, and of one that has stopped.
    for _ in 0..2 {
        let before = site.object("owner").await;
        let (code, text) = site.run(scratch.path(), &["restore", &backup]);
        assert!(code == Some(1) && text.contains("is not empty"), "{text}");
        assert_eq!(site.object("owner").await, before);
    }
    site.close(world).await;
    let made = Site::local();
    let (code, text) = made.run(scratch.path(), &["restore", &backup]);
    assert_eq!(code, Some(0), "{text}");
    let (old, new) =
        (site.object("owner").await.expect("an owner"), made.object("owner").await.expect("an owner"));
    let database = |owner: &Bytes| owner.split(|byte| *byte == b' ').next().map(<[u8]>::to_vec);
    assert_eq!(database(&old), database(&new), "the database is the same");
    assert_ne!(old, new, "the process is another");
    site.end().await;
    made.end().await;
}

#[test]
fn an_overtaken_origin_says_so_closes_its_ports_and_ends_with_3() {
    let site = Site::local();
    let mut first = Process::serve(&site.path, &site.db, &site.store);
    // As on a machine that does not see the locks of the first, with a copy of its keys.
    for lock in ["lock", "distd.sqlite-lock", "objects/lock"] {
        std::fs::remove_file(site.path.join(lock)).expect("it had the lock");
    }
    let second = tempfile::tempdir().expect("tempdir");
    for directory in ["realm", "tuf-keys"] {
        let to = second.path().join(directory);
        std::fs::create_dir(&to).expect("made");
        for file in files(&site.path.join(directory)) {
            std::fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("copied");
        }
    }
    assert!(first.answers());
    let mut second = Process::serve(second.path(), &site.db, &site.store);
    // Two looks at the owner, ten seconds for requests, and the patience of a busy machine.
    let code = first.ended(Duration::from_secs(60));
    let log = std::fs::read_to_string(&first.log).expect("the log");
    assert_eq!(code, Some(3), "{log}");
    for part in ["another distd-server has taken the store over", "stop the other one for good"] {
        assert!(log.contains(part), "{part} in\n{log}");
    }
    assert!(!first.answers(), "its port is closed");
    assert_eq!(second.ended(Duration::ZERO), None, "the second goes on");
    assert!(second.answers());
}
