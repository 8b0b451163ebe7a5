//! A database and a store of one test's own.

mod servers;

use std::path::Path;

use distd_core::names::Name;
use distd_server::db::Db;
use distd_server::ingest::Ingest;
use distd_server::store::Store;
use futures::TryStreamExt;
use servers::Postgres;
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) db: Db,
    pub(crate) store: Store,
    pub(crate) ingest: Ingest,
    pub(crate) address: String,
    pub(crate) directory: TempDir,
    postgres: Option<Postgres>,
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
        let postgres = Postgres::create().await?;
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Self::directory_store(&directory);
        let mut world = Self::new(directory, postgres.url.clone(), store).await;
        world.postgres = Some(postgres);
        Some(world)
    }

    pub(crate) async fn sqlite_and_s3() -> Option<Self> {
        let store = Store::open(&servers::s3()?).expect("S3");
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
        if let Some(postgres) = self.postgres {
            postgres.end().await;
        }
    }
}

/// Makes three tests of each function: SQLite with a directory, PostgreSQL with a directory, SQLite
/// with S3.
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
