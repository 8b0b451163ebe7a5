//! Users of releases: nodes, rollouts, and channels until a while ago; and all that a collection
//! has to know about each release.

use std::collections::BTreeMap;

use distd_core::names::Name;
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::ddi_actions::OPEN;
use super::releases::{self, ReleaseRow};
use super::row::Columns;
use super::{Db, DbError, PatchSetKey, UnixSeconds, failed};

const WHAT: &str = "look for what uses the releases";

/// A release in any state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRelease {
    /// The release.
    pub row: ReleaseRow,
    /// Time at which it was withdrawn; `None` while devices may take it.
    pub withdrawn: Option<UnixSeconds>,
    /// Time at which its removal began.
    pub removing: Option<UnixSeconds>,
    /// Why it is pinned; `None` when it is not.
    pub pin: Option<String>,
}

/// Numbers by product and version.
pub type ByRelease<T> = BTreeMap<(Name, Name), T>;

/// Users of releases, besides channels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Nodes that are not revoked and report the release as running, or whose DDI client does.
    pub running: ByRelease<u64>,
    /// Nodes that an operator pinned to the release.
    pub pinned_nodes: ByRelease<u64>,
    /// Open actions of DDI devices.
    pub actions: ByRelease<u64>,
    /// Channels to which rollouts under way bring the release, which began at it, or require it.
    pub rollouts: ByRelease<Vec<Name>>,
    /// Time at which a channel last ceased to point to the release.
    pub left: ByRelease<UnixSeconds>,
}

/// Number of nodes that report a release as running or that are pinned to it.
pub(super) async fn nodes_on<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    version: &Name,
) -> Result<u64, sqlx::Error> {
    let sql = format!(
        "SELECT COUNT(*) AS nodes FROM nodes WHERE revoked IS NULL AND (\
         id IN (SELECT node FROM node_running WHERE product = $1 AND version = $2) \
         OR id IN (SELECT node FROM ddi_devices WHERE product = $1 AND installed = $2) \
         OR id IN (SELECT node FROM ddi_actions WHERE product = $1 AND version = $2 AND {OPEN}) \
         OR id IN (SELECT node FROM node_pins WHERE product = $1 AND version = $2))"
    );
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(product.to_string()).bind(version.to_string());
    let row = query.fetch_one(on).await?;
    row.number("nodes")
}

impl Db {
    /// Releases of every product, or of one, in any state; the newest of each product first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn held_releases(&self, product: Option<&Name>) -> Result<Vec<HeldRelease>, DbError> {
        self.held(product.into_iter().map(|product| ("r.product", product))).await
    }

    /// A release in any state.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn held_release(&self, product: &Name, version: &Name) -> Result<Option<HeldRelease>, DbError> {
        let found = self.held([("r.product", product), ("r.version", version)]).await?;
        Ok(found.into_iter().next())
    }

    async fn held(&self, with: impl IntoIterator<Item = (&str, &Name)>) -> Result<Vec<HeldRelease>, DbError> {
        let columns: Vec<String> =
            releases::COLUMNS.split(", ").map(|column| format!("r.{column} AS {column}")).collect();
        let (mut conditions, mut values) = (vec!["1 = 1".to_owned()], Vec::new());
        for (column, value) in with {
            values.push(value.to_string());
            conditions.push(format!("{column} = ${}", values.len()));
        }
        let sql = format!(
            "SELECT {}, r.withdrawn AS withdrawn, r.removing AS removing, p.why AS why FROM releases r \
             LEFT JOIN release_pins p ON p.product = r.product AND p.version = r.version WHERE {} \
             ORDER BY r.product, r.sequence DESC, r.created DESC, r.version DESC",
            columns.join(", "),
            conditions.join(" AND ")
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for value in values {
            query = query.bind(value);
        }
        let read = |row: &AnyRow| {
            Ok(HeldRelease {
                row: releases::read(row)?,
                withdrawn: row.time_or_none("withdrawn")?,
                removing: row.time_or_none("removing")?,
                pin: row.text_or_none("why")?,
            })
        };
        let rows = query.fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the releases"))
    }

    /// Reads who uses releases.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn uses(&self) -> Result<Uses, DbError> {
        let running = "SELECT u.product AS product, u.version AS version, COUNT(*) AS n FROM (\
                       SELECT node, product, version FROM node_running WHERE version IS NOT NULL UNION \
                       SELECT node, product, installed AS version FROM ddi_devices WHERE installed IS NOT NULL) u \
                       JOIN nodes ON nodes.id = u.node AND nodes.revoked IS NULL GROUP BY u.product, u.version";
        let pinned = "SELECT p.product AS product, p.version AS version, COUNT(*) AS n FROM node_pins p \
                      JOIN nodes ON nodes.id = p.node AND nodes.revoked IS NULL GROUP BY p.product, p.version";
        let actions = format!(
            "SELECT product, version, COUNT(*) AS n FROM ddi_actions WHERE {OPEN} GROUP BY product, version"
        );
        let left = "SELECT product, from_version AS version, MAX(moved) AS n FROM channel_moves \
                    WHERE from_version IS NOT NULL GROUP BY product, from_version";
        let mut rollouts: ByRelease<Vec<Name>> = BTreeMap::new();
        for row in self.rollouts_under_way().await? {
            for version in [&row.version, &row.from] {
                let channels = rollouts.entry((row.product.clone(), version.clone())).or_default();
                channels.push(row.channel.clone());
            }
        }
        for (product, channel, versions) in self.versions_required().await? {
            for version in versions {
                rollouts.entry((product.clone(), version)).or_default().push(channel.clone());
            }
        }
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        let counted = |by: ByRelease<i64>| by.into_iter().map(|(name, n)| (name, count(n))).collect();
        Ok(Uses {
            running: counted(self.by_release(running).await?),
            pinned_nodes: counted(self.by_release(pinned).await?),
            actions: counted(self.by_release(&actions).await?),
            rollouts,
            left: self.by_release(left).await?,
        })
    }

    async fn by_release(&self, sql: &str) -> Result<ByRelease<i64>, DbError> {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()));
        let rows = query.fetch_all(&self.pool).await.map_err(failed(WHAT))?;
        let mut found = BTreeMap::new();
        for row in &rows {
            let (product, version) = (row.text("product"), row.text("version"));
            let (product, version) = (product.map_err(failed(WHAT))?, version.map_err(failed(WHAT))?);
            // A node may report any text as its version.
            if let (Ok(product), Ok(version)) = (product.parse(), version.parse()) {
                found.insert((product, version), row.time("n").map_err(failed(WHAT))?);
            }
        }
        Ok(found)
    }

    /// Marks patch sets that are ready as ones whose bytes go.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_sets_removing(&self, keys: &[PatchSetKey], now: UnixSeconds) -> Result<(), DbError> {
        let what = "remove patch sets";
        let mut tx = self.begin_write().await?;
        for key in keys {
            sqlx::query(
                "UPDATE patch_sets SET removing = $1 WHERE product = $2 AND from_manifest = $3 \
                 AND to_manifest = $4 AND removing IS NULL AND state = 'ready'",
            )
            .bind(now)
            .bind(key.product.to_string())
            .bind(key.from.as_bytes().as_slice())
            .bind(key.to.as_bytes().as_slice())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))
    }

    /// Time at which releases and patch sets were last collected, unix seconds; 0 before the first
    /// time.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn last_collection(&self) -> Result<UnixSeconds, DbError> {
        let what = "read when releases were last collected";
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'gc'").fetch_one(&self.pool).await;
        row.and_then(|row| row.time("value")).map_err(failed(what))
    }

    /// Notes that releases and patch sets were collected at `now`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn note_collection(&self, now: UnixSeconds) -> Result<(), DbError> {
        let done = sqlx::query("UPDATE counters SET value = $1 WHERE name = 'gc'").bind(now);
        done.execute(&self.pool).await.map(drop).map_err(failed("note when releases were collected"))
    }
}
