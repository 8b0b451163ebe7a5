//! The origin's database: SQLite by default, PostgreSQL by URL, one SQL text for both.
//!
//! One file per table family, one transaction per function, every time is an argument in unix
//! seconds. The head of a file describes its tables; `migrations/` is added to, never edited.
//!
//! Table `schema_floor`: number of the last migration that a program must know to work on the
//! schema, in one row.

mod api_tokens;
mod approvals;
mod audit;
mod bulk;
mod bundles;
mod channels;
mod chunks;
mod commit;
mod compact;
mod conditions;
mod ddi_actions;
mod ddi_devices;
mod ddi_tokens;
mod doomed;
mod enrol;
mod files;
mod fleet;
mod found;
mod grants;
mod groups;
mod history;
mod identity;
mod ids;
mod join_tokens;
mod labels;
mod lead;
mod lock;
mod moves;
mod nodes;
mod packs;
mod patch_sets;
mod pins;
mod products;
mod quotas;
mod receipts;
mod release_pins;
mod releases;
mod replicas;
mod reports;
mod restore;
mod retention;
mod rollouts;
mod row;
mod turns;
mod uploads;
mod usage;
mod web;
mod webhooks;
mod withdraw;

pub use api_tokens::{ApiTokenRow, RevokeToken, token_id};
pub use approvals::ApproveRollout;
use audit::Acting;
pub use audit::{Actor, AuditFilter, AuditRange};
pub use channels::{ChannelMove, ChannelRow, SetChannelOutcome};
pub use chunks::{ChunkRow, Location};
pub use commit::{BeginCommit, CommitTx, UnreleasedManifests};
pub(crate) use compact::SPARSE_MAX;
pub use compact::{MovedChunk, SparsePack};
pub use ddi_actions::{DdiActionRow, DdiState, NewDdiAction};
pub use ddi_devices::{DDI_KEY_PREFIX, DdiDeviceRow};
pub use ddi_tokens::{AdmitDdi, DdiTokenRow, PutDdiToken};
pub use enrol::{EnrolOutcome, Enrolment, PutCertificate};
pub use files::{FileDigests, FileSignature};
pub use fleet::{
    DeviceFilter, DeviceRow, FleetGroup, NodeAttemptRow, OnChannel, OnRollout, ReportCounts, StateKey,
};
pub use found::FOUND_MAX;
pub use grants::{AddGrants, GrantRow};
pub use groups::{GroupRow, Members, PutGroup, RemoveGroup};
pub use history::HistoryRow;
pub use identity::Contents;
pub use join_tokens::{JoinTokenRow, join_token_id};
pub use labels::{ChangeLabels, MemberRow};
pub use lead::{LeaderRow, TERM, Term};
pub use lock::{LockKind, SessionLock};
pub use moves::{MoveBy, MoveRow};
pub use nodes::NodeRow;
pub use packs::{PackId, PackIndexes, PackUsage};
pub use patch_sets::{
    HELD_SECONDS, MadeSet, Maker, PatchSetKey, PatchSetRow, PatchSetState, PatchSetTx, SetKind,
};
pub use pins::{PinNode, Pins};
pub use products::ProductRow;
pub use quotas::{OverQuota, QuotaOf, QuotaRow};
pub use receipts::{LogRow, NodeLogRow, RECEIPTS_PER_DAY_MAX, RECEIPTS_PER_NODE_MAX};
pub use releases::ReleaseRow;
pub use replicas::ReplicaRow;
pub use reports::{AttemptRow, Follower, PutReport, ReportRow, RunningRow};
pub use restore::Restoration;
pub use rollouts::{BeginRollout, NewRollout, RolloutEvent, RolloutRow, RolloutStage, WaveRow};
pub use turns::{TurnAsker, TurnRow};
pub use uploads::{BeginUpload, OpenUpload, UploadId, UploadRow, UploadState};
pub use usage::{ByRelease, HeldRelease, Uses};
pub use web::WebStamp;
pub(crate) use webhooks::host_of;
pub use webhooks::{DeliveryRow, Tried, WebhookRow, event_body, message_id};
pub use withdraw::{Division, Leaving, RemovalTx, Unless, Withdraw};

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Any, AnyPool, Executor, Row, SqlSafeStr, Transaction};
use tokio::sync::watch;

/// Unix time in seconds.
pub type UnixSeconds = i64;

/// Longest wait for another writer, milliseconds. The longest transaction is the commit of a
/// release with a million new chunks, measured at some ten seconds.
const BUSY_MS: u32 = 60_000;

/// Connections to PostgreSQL at most, from one replica.
const POSTGRES_CONNECTIONS_MAX: u32 = 8;

/// Connections to SQLite at most: one writes, the others read, each with up to 2 MB of pages; the
/// system caches the file.
const SQLITE_CONNECTIONS_MAX: u32 = 4;

/// Error of opening or asking the database.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The address has no form that is known.
    #[error("cannot use the database address {0:?}: write sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME")]
    Address(String),
    /// No connection. The address is shown without its password.
    #[error("could not open the database {address}: check that it runs and that this user may write to it")]
    Open {
        /// The address, redacted.
        address: String,
        /// The driver's error.
        #[source]
        cause: sqlx::Error,
    },
    /// A migration failed.
    #[error("could not bring the database schema up to date")]
    Migrate(#[source] MigrateError),
    /// A later version of distd-server has changed the schema, and this one cannot work on it.
    #[error(
        "the database {address} has schema {version}, of a later distd-server, which this one cannot work on: use \
         that version, or restore a backup that was made before it"
    )]
    TooNew {
        /// The address, redacted.
        address: String,
        /// Version of its schema.
        version: i64,
    },
    /// There is no such database, or it does not belong to an origin.
    #[error("there is no origin's database at {0}: check --db and --data")]
    Absent(String),
    /// The schema belongs to an earlier version of distd-server.
    #[error(
        "the database {address} has schema {version}, this distd-server writes schema {wanted}: start distd-server serve \
         of this version on it once"
    )]
    OtherVersion {
        /// The address, redacted.
        address: String,
        /// Version of its schema.
        version: i64,
        /// Version of this program's schema.
        wanted: usize,
    },
    /// SQLite did not take a setting that durability depends on.
    #[error(
        "SQLite keeps {setting} at {found}, distd needs {wanted}: put the database on a local file system"
    )]
    Setting {
        /// The pragma.
        setting: &'static str,
        /// Its required value.
        wanted: &'static str,
        /// Its value.
        found: String,
    },
    /// A statement failed.
    #[error("could not {what}")]
    Query {
        /// Purpose of the statement.
        what: &'static str,
        /// The driver's error.
        #[source]
        cause: sqlx::Error,
    },
}

/// Maps a driver's error, for `map_err`.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> DbError {
    move |cause| DbError::Query { what, cause }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

/// Right of the connections of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Write,
    /// As [`Write`](Self::Write), while no later leader than this one has begun.
    Lead(u64),
    /// The database refuses every write.
    Read,
}

/// Makes a session of PostgreSQL refuse every write.
const POSTGRES_READ_ONLY: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";

/// A pool of connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Db {
    pool: AnyPool,
    engine: Engine,
    /// Grows with each change of labels, groups, grants and revocations made through this pool.
    fleet: Arc<watch::Sender<u64>>,
    /// The one in whose name changes are made through this handle.
    acting: Acting,
}

impl Db {
    /// Opens `sqlite:PATH` (created if absent) or `postgres://…`, and applies pending migrations.
    ///
    /// SQLite runs in WAL mode with `synchronous = FULL`, so a committed transaction survives a
    /// power cut; the settings are read back.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn open(address: &str) -> Result<Self, DbError> {
        let db = Self::connect(address, Access::Write).await?;
        db.migrate(address).await?;
        Ok(db)
    }

    /// Applies pending migrations. A schema of a later version is left as it is, if this program
    /// can work on it.
    async fn migrate(&self, address: &str) -> Result<(), DbError> {
        match self.migrate_once(address).await {
            // An origin of a later version migrated between the look at the schema and the lock.
            Err(DbError::Migrate(MigrateError::VersionMissing(_))) => self.migrate_once(address).await,
            done => done,
        }
    }

    async fn migrate_once(&self, address: &str) -> Result<(), DbError> {
        let mut migrator = migrator(self.engine);
        // Nothing is there before the first migration.
        let version = self.schema_version().await.unwrap_or(0);
        if version > MIGRATIONS.len() as i64 {
            self.check_floor(address, version).await?;
            migrator.set_ignore_missing(true);
        }
        migrator.run(&self.pool).await.map_err(DbError::Migrate)
    }

    /// Version of the schema: the number of its last migration.
    async fn schema_version(&self) -> Result<i64, DbError> {
        let sql = "SELECT COALESCE(MAX(version), 0) AS version FROM _sqlx_migrations";
        let row = sqlx::query(sql).fetch_one(&self.pool).await;
        row.and_then(|row| row.try_get("version")).map_err(failed("read the version of the schema"))
    }

    /// Checks that this program can work on a schema of a later version.
    async fn check_floor(&self, address: &str, version: i64) -> Result<(), DbError> {
        let row = sqlx::query("SELECT migration FROM schema_floor WHERE id = 1").fetch_one(&self.pool).await;
        let floor: i64 = row
            .and_then(|row| row.try_get("migration"))
            .map_err(failed("read which versions can work on the schema"))?;
        match floor <= MIGRATIONS.len() as i64 {
            true => Ok(()),
            false => Err(DbError::TooNew { address: redact(address), version }),
        }
    }

    /// As [`open`](Self::open), for the leader with the term `epoch`: its connections end, and no
    /// new ones are made, once another process leads.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_leading(address: &str, epoch: u64) -> Result<Self, DbError> {
        let db = Self::connect(address, Access::Lead(epoch)).await?;
        db.migrate(address).await?;
        Ok(db)
    }

    /// Opens a database that is there, beside an origin that may be running on it: nothing is made
    /// and no migration runs.
    ///
    /// # Errors
    /// [`DbError::Absent`], [`DbError::OtherVersion`], and as [`open`](Self::open).
    pub async fn open_present(address: &str) -> Result<Self, DbError> {
        Self::open_at_this_version(address, Access::Write).await
    }

    /// As [`open_present`](Self::open_present), with connections that refuse every write.
    ///
    /// # Errors
    /// As [`open_present`](Self::open_present).
    pub async fn open_read_only(address: &str) -> Result<Self, DbError> {
        Self::open_at_this_version(address, Access::Read).await
    }

    /// Opens a database that is there, whose lock the caller holds, and applies pending migrations.
    ///
    /// # Errors
    /// [`DbError::Absent`], and as [`open`](Self::open).
    pub async fn open_and_migrate(address: &str) -> Result<Self, DbError> {
        match Self::open_present(address).await {
            Err(DbError::OtherVersion { .. }) => Self::open(address).await,
            other => other,
        }
    }

    async fn open_at_this_version(address: &str, access: Access) -> Result<Self, DbError> {
        if sqlite_path(address).is_some_and(|path| !path.is_file()) {
            return Err(DbError::Absent(redact(address)));
        }
        let db = Self::connect(address, access).await?;
        let version = db.schema_version().await.map_err(|_| DbError::Absent(redact(address)))?;
        let wanted = MIGRATIONS.len();
        match version.cmp(&(wanted as i64)) {
            Ordering::Less => Err(DbError::OtherVersion { address: redact(address), version, wanted }),
            Ordering::Equal => Ok(db),
            Ordering::Greater => db.check_floor(address, version).await.map(|()| db),
        }
    }

    /// Writes a consistent copy of a SQLite database to a new file, also while others write.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn snapshot(&self, to: &Path) -> Result<(), DbError> {
        let path = to.to_str().ok_or_else(|| DbError::Address(to.display().to_string()))?;
        let sql = format!("VACUUM INTO '{}'", path.replace('\'', "''"));
        let what = "copy the database";
        let mut connection = self.pool.acquire().await.map_err(failed(what))?;
        // SQLite regards the copy as a write to the database that is copied.
        connection.execute("PRAGMA query_only = OFF".into_raw()).await.map_err(failed(what))?;
        let done = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await;
        // The connection must not go back to the pool with another setting.
        connection.close().await.map_err(failed(what))?;
        done.map(drop).map_err(failed(what))
    }

    async fn connect(address: &str, access: Access) -> Result<Self, DbError> {
        sqlx::any::install_default_drivers();
        let (engine, url) = match address.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => {
                (Engine::Sqlite, sqlite_url(path, address, access)?)
            }
            Some(("postgres" | "postgresql", _)) => {
                let url = match access {
                    Access::Lead(epoch) => lead::leading(address, epoch)?,
                    Access::Write | Access::Read => address.to_owned(),
                };
                (Engine::Postgres, url)
            }
            _ => return Err(DbError::Address(redact(address))),
        };
        let open = |cause| DbError::Open { address: redact(address), cause };
        let options = AnyConnectOptions::from_str(&url).map_err(open)?;
        let connections_max = match engine {
            Engine::Sqlite => SQLITE_CONNECTIONS_MAX,
            Engine::Postgres => POSTGRES_CONNECTIONS_MAX,
        };
        let pool = AnyPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(Duration::from_secs(60))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    match (engine, access) {
                        (Engine::Sqlite, access) => {
                            connection.execute(sqlite_pragmas().as_str().into_raw()).await?;
                            if access == Access::Read {
                                connection.execute("PRAGMA query_only = ON".into_raw()).await?;
                            }
                        }
                        (Engine::Postgres, Access::Read) => {
                            connection.execute(POSTGRES_READ_ONLY.into_raw()).await?;
                        }
                        (Engine::Postgres, Access::Lead(epoch)) => {
                            lead::check_epoch(connection, epoch).await?;
                        }
                        (Engine::Postgres, Access::Write) => {}
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(open)?;
        let db = Self { pool, engine, fleet: Arc::default(), acting: Acting::origin(0) };
        if engine == Engine::Sqlite {
            db.check_sqlite_settings().await?;
        }
        Ok(db)
    }

    /// The same database, for acts of `actor` at `now`: the audit log names them. Without this the
    /// origin acts by itself.
    pub fn acting(&self, actor: impl Into<Actor>, now: UnixSeconds) -> Self {
        Self { acting: Acting { actor: actor.into(), at: now }, ..self.clone() }
    }

    /// Whether only one process at a time can use this database, as is so with SQLite.
    pub fn is_local(&self) -> bool {
        self.engine == Engine::Sqlite
    }

    /// A number that grows with each change of labels, groups, grants and revocations of nodes that
    /// is made through this pool.
    pub fn fleet_changed(&self) -> watch::Receiver<u64> {
        self.fleet.subscribe()
    }

    /// Says that labels, groups, grants or revocations have changed. Called after the commit: a
    /// reader that is woken finds the change.
    pub(crate) fn note_fleet_change(&self) {
        self.fleet.send_modify(|changes| *changes += 1);
    }

    /// Returns when the database answers; for `/readyz`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ping(&self) -> Result<(), DbError> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map(drop).map_err(failed("reach the database"))
    }

    /// Waits for statements under way and closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Begins a transaction that will write. On SQLite it takes the write lock at once: one that
    /// read first and wrote later could fail instead of waiting.
    async fn begin_write(&self) -> Result<Transaction<'static, Any>, DbError> {
        let begun = match self.engine {
            Engine::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await,
            Engine::Postgres => self.pool.begin().await,
        };
        begun.map_err(failed("begin a database transaction"))
    }

    async fn check_sqlite_settings(&self) -> Result<(), DbError> {
        let what = failed("read back SQLite's settings");
        let read = async || -> Result<[(&'static str, &'static str, String); 3], sqlx::Error> {
            let text =
                sqlx::query("PRAGMA journal_mode").fetch_one(&self.pool).await?.try_get::<String, _>(0)?;
            let sync = sqlx::query("PRAGMA synchronous").fetch_one(&self.pool).await?.try_get::<i64, _>(0)?;
            let keys =
                sqlx::query("PRAGMA foreign_keys").fetch_one(&self.pool).await?.try_get::<i64, _>(0)?;
            Ok([
                ("journal_mode", "wal", text),
                ("synchronous", "2", sync.to_string()),
                ("foreign_keys", "1", keys.to_string()),
            ])
        };
        for (setting, wanted, found) in read().await.map_err(what)? {
            if found != wanted {
                return Err(DbError::Setting { setting, wanted, found });
            }
        }
        Ok(())
    }
}

/// Lets a built statement text through sqlx's check for SQL made from input: this text is made from
/// constants.
trait IntoRaw {
    fn into_raw(self) -> sqlx::AssertSqlSafe<String>;
}

impl IntoRaw for &str {
    fn into_raw(self) -> sqlx::AssertSqlSafe<String> {
        sqlx::AssertSqlSafe(self.to_owned())
    }
}

fn sqlite_pragmas() -> String {
    format!(
        "PRAGMA busy_timeout = {BUSY_MS}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         PRAGMA foreign_keys = ON; PRAGMA cache_size = -16000"
    )
}

/// The file of a SQLite address; `None` for any other address.
pub(crate) fn sqlite_path(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("sqlite:").filter(|path| !path.is_empty())?;
    Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
}

/// The driver reads a percent-encoded URL; a path may hold anything.
fn sqlite_url(path: &str, address: &str, access: Access) -> Result<String, DbError> {
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = std::path::absolute(Path::new(path)).unwrap_or_else(|_| PathBuf::from(path));
    let path = path.to_str().ok_or_else(|| DbError::Address(address.to_owned()))?;
    let mut url = String::from("sqlite://");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-') {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str(match access {
        Access::Write | Access::Lead(_) => "?mode=rwc",
        // A connection that may not write the file leaves a log that a killed process has left as
        // it is. Where there is no log it could not remove the one that SQLite makes for readers.
        Access::Read if Path::new(&format!("{path}-wal")).exists() => "?mode=ro",
        Access::Read => "?mode=rw",
    });
    Ok(url)
}

/// The address without its password, for messages.
pub(crate) fn redact(address: &str) -> String {
    match url::Url::parse(address) {
        Ok(mut url) if url.password().is_some() => {
            // Fails only for URLs that cannot have a password.
            let _ = url.set_password(Some("…"));
            url.to_string()
        }
        _ => address.to_owned(),
    }
}

/// A migration: its name, and its text for SQLite and for PostgreSQL, which is one file except for
/// the first.
macro_rules! migration {
    ($name:literal) => {
        migration!($name, ".sql", ".sql")
    };
    ($name:literal, $sqlite:literal, $postgres:literal) => {
        (
            $name,
            include_str!(concat!("../../migrations/", $name, $sqlite)),
            include_str!(concat!("../../migrations/", $name, $postgres)),
        )
    };
}

/// Migrations in the order of the numbers with which their names start.
const MIGRATIONS: &[(&str, &str, &str)] = &[
    migration!("0001_origin", ".sqlite.sql", ".postgres.sql"),
    migration!("0002_pack_index"),
    migration!("0003_patch_sets"),
    migration!("0004_identity"),
    migration!("0005_publishers"),
    migration!("0006_out"),
    migration!("0007_pack_bytes"),
    migration!("0008_emptied"),
    migration!("0009_database_id"),
    migration!("0010_moves"),
    migration!("0011_fleet"),
    migration!("0012_rollouts"),
    migration!("0013_fleet_state"),
    migration!("0014_audit"),
    migration!("0015_conditions"),
    migration!("0016_receipts", ".sqlite.sql", ".postgres.sql"),
    migration!("0017_file_names"),
    migration!("0018_ddi"),
    migration!("0019_web"),
    migration!("0020_space"),
    migration!("0021_webhooks"),
    migration!("0022_replicas"),
    migration!("0023_side_by_side"),
];

/// Words of PostgreSQL in migrations, and those of SQLite that stand for them. Checksums are of the
/// text with SQLite's words, so an entry is never changed, and a new one must not occur in an older
/// migration.
const SQLITE_WORDS: [(&str, &str); 2] = [
    ("BYTEA", "BLOB"),
    // Both give no id twice.
    ("BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT"),
];

fn migrator(engine: Engine) -> Migrator {
    let for_sqlite = |sql: &str| {
        SQLITE_WORDS.iter().fold(sql.to_owned(), |sql, (postgres, sqlite)| sql.replace(postgres, sqlite))
    };
    let migrations = (1i64..)
        .zip(MIGRATIONS)
        .map(|(n, (file, sqlite, postgres))| {
            let sql = match engine {
                Engine::Sqlite => for_sqlite(sqlite),
                Engine::Postgres => (*postgres).to_owned(),
            };
            let name = file.split_once('_').map_or(*file, |(_, name)| name);
            let sql = sqlx::AssertSqlSafe(sql).into_sql_str();
            Migration::new(n, name.into(), MigrationType::Simple, sql, false)
        })
        .collect();
    Migrator::with_migrations(migrations)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_with_odd_characters_becomes_a_url_that_means_it() {
        let url = sqlite_url("/tmp/a b?c#d%.sqlite", "", Access::Write).expect("utf-8");
        assert_eq!(url, "sqlite:///tmp/a%20b%3Fc%23d%25.sqlite?mode=rwc");
    }

    /// Addresses of new databases: of SQLite, and of PostgreSQL when the tests know a server.
    async fn new_databases(dir: &Path, name: &str) -> Vec<String> {
        let mut addresses = vec![format!("sqlite:{}", dir.join("db").display())];
        if let Ok(server) = std::env::var("DISTD_TEST_POSTGRES_URL") {
            let db = Db::connect(&server, Access::Write).await.expect("a server");
            let schema = format!("{name}_{}", std::process::id());
            let sql = format!("CREATE DATABASE {schema}");
            db.pool.execute(sqlx::AssertSqlSafe(sql).into_sql_str()).await.expect("a database");
            db.close().await;
            addresses.push(format!("{}/{schema}", server.rsplit_once('/').expect("a URL").0));
        }
        addresses
    }

    /// Removes the databases of [`new_databases`] from PostgreSQL.
    async fn drop_databases(addresses: &[String]) {
        let Ok(server) = std::env::var("DISTD_TEST_POSTGRES_URL") else { return };
        let db = Db::connect(&server, Access::Write).await.expect("a server");
        for name in addresses.iter().skip(1).filter_map(|address| Some(address.rsplit_once('/')?.1)) {
            let sql = format!("DROP DATABASE {name}");
            db.pool.execute(sqlx::AssertSqlSafe(sql).into_sql_str()).await.expect("dropped");
        }
        db.close().await;
    }

    /// An origin of the version before goes on beside one of the next version, on the schema of
    /// that one, unless a migration says that it cannot.
    #[tokio::test]
    async fn a_schema_of_a_later_version_is_used_down_to_its_floor() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let addresses = new_databases(dir.path(), "later").await;
        for address in &addresses {
            let db = Db::open(address).await.expect("opens");
            let known = MIGRATIONS.len();
            let later = format!(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 SELECT {}, 'later', success, checksum, 1 FROM _sqlx_migrations WHERE version = 1",
                known + 1
            );
            for sql in [later, "ALTER TABLE nodes ADD COLUMN later TEXT NOT NULL DEFAULT ''".to_owned()] {
                db.pool.execute(sqlx::AssertSqlSafe(sql).into_sql_str()).await.expect("a later version");
            }
            db.close().await;
            for opened in [Db::open(address).await, Db::open_present(address).await] {
                let db = opened.expect("works on the later schema");
                assert_eq!(db.device_count().await.expect("reads"), 0);
                db.close().await;
            }
            let db = Db::open(address).await.expect("opens");
            let floor = format!("UPDATE schema_floor SET migration = {}", known + 1);
            db.pool.execute(sqlx::AssertSqlSafe(floor).into_sql_str()).await.expect("a floor");
            db.close().await;
            for opened in [Db::open(address).await, Db::open_present(address).await] {
                let error = opened.map(|_| ()).expect_err("the floor is above");
                assert!(
                    matches!(error, DbError::TooNew { version, .. } if version == known as i64 + 1),
                    "{error}"
                );
            }
        }
        drop_databases(&addresses).await;
    }

    /// Runs on PostgreSQL too, when the tests know a server.
    #[tokio::test]
    async fn releases_and_channels_from_before_get_numbers_and_the_beginning_of_a_history() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let addresses = new_databases(dir.path(), "before").await;
        for address in &addresses {
            let db = Db::connect(address, Access::Write).await.expect("connects");
            let mut before = migrator(db.engine);
            before.migrations.to_mut().truncate(6);
            before.run(&db.pool).await.expect("the schema of before");
            let hash = "00".repeat(32);
            let hash = match db.engine {
                Engine::Sqlite => format!("x'{hash}'"),
                Engine::Postgres => format!("decode('{hash}', 'hex')"),
            };
            let release = |product: &str, version: &str, created: i64| {
                format!(
                    "INSERT INTO releases (product, version, manifest, blake3, bytes, chunk_count, kind, created, \
                     created_by) VALUES ('{product}', '{version}', {hash}, {hash}, 1, 1, 'file', {created}, 'ci')"
                )
            };
            let product = |name: &str| {
                format!(
                    "INSERT INTO products (name, cut_min, cut_avg, cut_max, created) VALUES ('{name}', 4096, 16384, 65536, 1)"
                )
            };
            // Version 10 comes first by name, and was made last.
            let statements = [
                product("os"),
                product("app"),
                product("none"),
                release("os", "9", 100),
                release("os", "10", 300),
                release("os", "8", 50),
                release("app", "1", 200),
                "INSERT INTO channels (product, channel, version, counter, updated) VALUES ('os', 'stable', '9', 4, 120)"
                    .to_owned(),
            ];
            for sql in statements {
                db.pool.execute(sqlx::AssertSqlSafe(sql).into_sql_str()).await.expect("a row");
            }
            db.close().await;

            let db = Db::open(address).await.expect("migrates");
            let name = |text: &str| -> distd_core::names::Name { text.parse().expect("a name") };
            let os = db.releases(&name("os")).await.expect("list");
            let numbers: Vec<_> = os.iter().map(|row| (row.version.to_string(), row.sequence)).collect();
            assert_eq!(numbers, [("10".to_owned(), 3), ("9".to_owned(), 2), ("8".to_owned(), 1)]);
            let mut tx = db.begin_write().await.expect("begin");
            for (product, last) in [("os", Some(3)), ("app", Some(1)), ("none", Some(0)), ("other", None)] {
                let found = products::last_sequence(&mut *tx, &name(product), 0).await.expect("read");
                assert_eq!(found, last, "{product}");
            }
            // Later numbers are far above, and grow also when the clock stands still.
            for next in [1_000_000, 1_000_001, 1_000_002] {
                assert_eq!(products::next_sequence(&mut *tx, &name("os"), 1000).await.expect("next"), next);
            }
            drop(tx);
            let moves = db.channel_moves(&name("os"), &name("stable"), None, 9).await.expect("read");
            let [found] = &moves[..] else { panic!("one entry: {moves:?}") };
            assert_eq!((found.moved, &found.from, &found.to), (120, &None, &Some(name("9"))));
            assert_eq!((found.downgrade_from, &found.by), (None, &MoveBy::origin()));
            let back = ChannelMove {
                product: &name("os"),
                channel: &name("stable"),
                version: &name("8"),
                downgrade: false,
            };
            let outcome = db.set_channel(back, &MoveBy::origin(), 400).await.expect("set");
            assert_eq!(outcome, SetChannelOutcome::Older { newest: Some(name("9")) });
            db.close().await;
        }
        drop_databases(&addresses).await;
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = redact("postgres://me:secret@db/distd");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[tokio::test]
    async fn every_table_is_described_at_the_head_of_one_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let db = Db::open(&format!("sqlite:{}", dir.path().join("db").display())).await.expect("opens");
        let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%sqlx%' AND name NOT LIKE 'sqlite%'";
        let rows = sqlx::query(sql).fetch_all(&db.pool).await.expect("tables");
        let tables: BTreeSet<String> = rows.iter().map(|row| row.try_get(0).expect("a name")).collect();
        db.close().await;
        let sources =
            std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/db")).expect("readable");
        let mut described = BTreeSet::new();
        for source in sources {
            let text = std::fs::read_to_string(source.expect("an entry").path()).expect("a source file");
            for name in text.lines().filter_map(|line| line.strip_prefix("//! Table `")?.split('`').next()) {
                assert!(described.insert(name.to_owned()), "{name} is described twice");
            }
        }
        assert_eq!(described, tables);
    }

    /// A changed checksum would shut an origin out of its database.
    #[test]
    fn migrations_have_the_names_and_checksums_that_databases_remember() {
        // First bytes of SHA-384, for SQLite and for PostgreSQL.
        let remembered = [
            ("origin", "9ef349eb0c98bb83", "e6da1972b5e03caa"),
            ("pack_index", "32d96319000a03a0", "17ebf42305ab4bd1"),
            ("patch_sets", "b5fcd7ebcbfd603b", "86f0a2acded97f68"),
            ("identity", "af98834b841e8434", "af98834b841e8434"),
            ("publishers", "b60a16ef5d41b5a4", "b60a16ef5d41b5a4"),
            ("out", "b0d29e4790d7f8bf", "b0d29e4790d7f8bf"),
            ("pack_bytes", "ee893e2df041bdf0", "ee893e2df041bdf0"),
            ("emptied", "530ec2e99dbfe7cf", "530ec2e99dbfe7cf"),
            ("database_id", "730604a05c1cfed2", "730604a05c1cfed2"),
            ("moves", "be74c9a3367aade9", "ad0eead07e6d3394"),
            ("fleet", "16c78939fd390cd1", "2a8dff128b6f38ca"),
            ("rollouts", "880500cf9e1d7cbe", "6858e46a09658e71"),
            ("fleet_state", "47ec9b820e9e92bb", "47ec9b820e9e92bb"),
            ("audit", "f62989da0417e8f6", "58e1163c325ff142"),
            ("conditions", "ef860728dcbc4c90", "ef860728dcbc4c90"),
            ("receipts", "2ae90e20a38609b2", "e4f327b96cd7aefb"),
            ("file_names", "281c859b3f28ba18", "1ce025c0086e6f51"),
            ("ddi", "e5d9e856d46e2896", "15efb6932eda6de0"),
            ("web", "c3b1f286c09c0779", "253fa87d985f839f"),
            ("space", "b0c85ce1983e5f80", "b0c85ce1983e5f80"),
            ("webhooks", "cb2e4ec0cd2f0345", "6256d1896fd9c9a5"),
            ("replicas", "3f8f6da8e8cf47e8", "3f8f6da8e8cf47e8"),
            ("side_by_side", "c6eafbbdd1c96821", "c6eafbbdd1c96821"),
        ];
        for engine in [Engine::Sqlite, Engine::Postgres] {
            let known = migrator(engine);
            assert_eq!(known.migrations.len(), remembered.len(), "pin the new migration here too");
            for (((n, (file, ..)), migration), (name, sqlite, postgres)) in
                (1..).zip(MIGRATIONS).zip(known.iter()).zip(remembered)
            {
                assert!(file.starts_with(&format!("{n:04}_")), "{file}");
                assert_eq!((migration.version, &*migration.description), (n, name));
                let checksum = if engine == Engine::Sqlite { sqlite } else { postgres };
                assert_eq!(hex::encode(&migration.checksum[..8]), checksum, "{file} for {engine:?}");
            }
        }
    }
}
