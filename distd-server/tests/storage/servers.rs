//! A PostgreSQL database and a prefix in an S3 bucket for one test, if `tests/run.sh` names the
//! servers.

use sqlx::{AnyConnection, Connection, Executor};

/// Database that a test made; [`Postgres::end`] drops it.
pub(crate) struct Postgres {
    server: String,
    name: String,
    /// Address of the database.
    pub(crate) url: String,
}

impl Postgres {
    /// Creates a database; `None` if no server is named.
    pub(crate) async fn create() -> Option<Self> {
        let server = named("DISTD_TEST_POSTGRES_URL")?;
        sqlx::any::install_default_drivers();
        let name = format!("distd_test_{}", random());
        let mut admin = AnyConnection::connect(&server).await.expect("PostgreSQL server");
        admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("create database");
        let mut url = url::Url::parse(&server).expect("a URL");
        url.set_path(&name);
        Some(Self { server, name, url: url.to_string() })
    }

    pub(crate) async fn end(self) {
        let mut admin = AnyConnection::connect(&self.server).await.expect("PostgreSQL server");
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        admin.execute(sqlx::AssertSqlSafe(drop)).await.expect("drop database");
    }
}

/// A new prefix in the bucket; `None` if no bucket is named.
pub(crate) fn s3() -> Option<String> {
    named("DISTD_TEST_S3_URL").map(|bucket| beside(&bucket).expect("a URL"))
}

/// Another prefix in the bucket of `store`; `None` if `store` is not a URL.
pub(crate) fn beside(store: &str) -> Option<String> {
    let mut url = url::Url::parse(store).ok()?;
    url.set_path(&format!("/{}", random()));
    Some(url.to_string())
}

fn named(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok();
    if value.is_none() {
        eprintln!("NOT RUN: set {variable} to run this test (tests/run.sh does)");
    }
    value
}

pub(crate) fn random() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("random");
    hex::encode(bytes)
}
