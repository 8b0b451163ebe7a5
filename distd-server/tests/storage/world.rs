//! A database and a store of one test's own.

use std::path::Path;

use distd_core::names::Name;
use distd_server::db::Db;
use distd_server::ingest::Ingest;
use distd_server::store::Store;
use futures::TryStreamExt;
use sqlx::{AnyConnection, Connection, Executor};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) db: Db,
    pub(crate) store: Store,
    pub(crate) ingest: Ingest,
    pub(crate) address: String,
    pub(crate) directory: TempDir,
    /// Server address and name of a database to drop in the end.
    postgres: Option<(String, String)>,
}

pub(crate) fn name(s: &str) -> Name {
    s.parse().expect("a name")
}

/// `len` bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn random() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("random");
    hex::encode(bytes)
}

fn not_run(variable: &str) {
    eprintln!("NOT RUN: set {variable} to run this test (tests/run.sh does)");
}

impl World {
    async fn new(directory: TempDir, address: String, store: Store) -> Self {
        let db = Db::open(&address).await.expect("database");
        let ingest = Ingest::new(db.clone(), store.clone());
        Self { db, store, ingest, address, directory, postgres: None }
    }

    fn directory_store(directory: &TempDir) -> Store {
        Store::open_directory(&directory.path().join("objects")).expect("store")
    }

    pub(crate) async fn sqlite_and_directory() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Self::directory_store(&directory);
        let address = format!("sqlite:{}/distd.sqlite", directory.path().display());
        Self::new(directory, address, store).await
    }

    /// On a directory that outlives this world.
    pub(crate) async fn open(path: &Path) -> Self {
        let store = Store::open_directory(&path.join("objects")).expect("store");
        let address = format!("sqlite:{}/distd.sqlite", path.display());
        Self::new(tempfile::tempdir().expect("tempdir"), address, store).await
    }

    pub(crate) async fn postgres_and_directory() -> Option<Self> {
        let Ok(server) = std::env::var("DISTD_TEST_POSTGRES_URL") else {
            not_run("DISTD_TEST_POSTGRES_URL");
            return None;
        };
        sqlx::any::install_default_drivers();
        let database = format!("distd_test_{}", random());
        let mut admin = AnyConnection::connect(&server).await.expect("PostgreSQL server");
        admin
            .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}")))
            .await
            .expect("create database");
        let mut url = url::Url::parse(&server).expect("a URL");
        url.set_path(&database);
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Self::directory_store(&directory);
        let mut world = Self::new(directory, url.to_string(), store).await;
        world.postgres = Some((server, database));
        Some(world)
    }

    pub(crate) async fn sqlite_and_s3() -> Option<Self> {
        let Ok(bucket) = std::env::var("DISTD_TEST_S3_URL") else {
            not_run("DISTD_TEST_S3_URL");
            return None;
        };
        let mut url = url::Url::parse(&bucket).expect("a URL");
        url.set_path(&format!("/{}", random()));
        let store = Store::open(url.as_str()).expect("S3");
        let directory = tempfile::tempdir().expect("tempdir");
        let address = format!("sqlite:{}/distd.sqlite", directory.path().display());
        Some(Self::new(directory, address, store).await)
    }

    /// Names of all objects, sorted.
    pub(crate) async fn objects(&self) -> Vec<String> {
        let mut names = Vec::new();
        for prefix in ["packs", "manifests", "tuf"] {
            let mut objects = self.store.list(prefix);
            while let Some(object) = objects.try_next().await.expect("list") {
                names.push(object.name);
            }
        }
        names.sort();
        names
    }

    pub(crate) async fn end(self) {
        self.db.close().await;
        if let Some((server, database)) = self.postgres {
            let mut admin = AnyConnection::connect(&server).await.expect("PostgreSQL server");
            let drop = format!("DROP DATABASE {database} WITH (FORCE)");
            admin.execute(sqlx::AssertSqlSafe(drop)).await.expect("drop database");
        }
    }
}

/// Makes three tests of each function: SQLite with a directory, PostgreSQL with a directory, SQLite with S3.
macro_rules! on_every_back_end {
    ($(async fn $test:ident($world:ident: World) $body:block)*) => {$(
        mod $test {
            use super::*;

            async fn run($world: &World) $body

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite_and_a_directory() {
                let world = World::sqlite_and_directory().await;
                run(&world).await;
                world.end().await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres_and_a_directory() {
                if let Some(world) = World::postgres_and_directory().await {
                    run(&world).await;
                    world.end().await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite_and_s3() {
                if let Some(world) = World::sqlite_and_s3().await {
                    run(&world).await;
                    world.end().await;
                }
            }
        }
    )*};
}
pub(crate) use on_every_back_end;
