//! The origin's database: SQLite by default, PostgreSQL by URL, one SQL text for both.
//!
//! One file per table family, one transaction per function, every time is an argument in unix
//! seconds. The head of a file describes its tables; `migrations/` is added to, never edited.

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
mod schema;
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
pub use reports::{AttemptRow, Follower, HeldFrom, PutReport, ReportRow, RunningRow};
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
use sqlx::migrate::MigrateError;
use sqlx::{Any, AnyPool, Executor, Row, Transaction};
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
    migration!("0024_by_policy"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_with_odd_characters_becomes_a_url_that_means_it() {
        let url = sqlite_url("/tmp/a b?c#d%.sqlite", "", Access::Write).expect("utf-8");
        assert_eq!(url, "sqlite:///tmp/a%20b%3Fc%23d%25.sqlite?mode=rwc");
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
}
