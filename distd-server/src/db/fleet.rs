//! State of the fleet: sums over what devices reported, and the devices with what they reported.
//! Relays and revoked nodes are no devices.

use distd_core::api::NODE_ATTEMPTS_MAX;
use distd_core::fleet::Selector;
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use sqlx::any::AnyRow;

use super::conditions::Conditions;
use super::reports::{AttemptRow, HeldFrom, read_attempt, read_held, read_state};
use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// Report of a device about one channel, as far as the state of its update is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnChannel {
    /// Product.
    pub product: Name,
    /// Channel.
    pub channel: Name,
    /// Version that runs; `None` while there is none.
    pub version: Option<Name>,
    /// Why the device does not install the release of the channel's rollout.
    pub held: Option<HeldFrom>,
    /// Newest attempt at the rollout that was under way when the report came.
    pub attempt: Option<OnRollout>,
}

/// An attempt at a rollout, as far as the state of an update is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnRollout {
    /// The rollout.
    pub rollout: RolloutId,
    /// State.
    pub state: AttemptState,
    /// Number of the attempt on the device, from 1.
    pub number: u32,
    /// Kind of the failure; empty without one.
    pub failure: String,
}

/// All that decides the state of an update, as the database has it: product, channel, version,
/// held, rollout, state of the attempt, and kind of its failure, and the number of the attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateKey {
    texts: Vec<Option<String>>,
    attempt: Option<u64>,
}

impl StateKey {
    /// Columns of the texts, in the order of `node_running_state`, with their names in [`CHANNEL`].
    const COLUMNS: [(&str, &str); 7] = [
        ("product", "product"),
        ("channel", "channel"),
        ("version", "version"),
        ("held", "held"),
        ("rollout", "rollout"),
        ("attempt_state", "state"),
        ("failure", "failure"),
    ];

    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let texts = Self::COLUMNS.into_iter().map(|(_, name)| row.text_or_none(name));
        Ok(Self { texts: texts.collect::<Result<_, _>>()?, attempt: row.number_or_none("attempt")? })
    }
}

/// Devices that reported the same about one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetGroup {
    /// Their report.
    pub on: OnChannel,
    /// The same as the database has it.
    pub key: StateKey,
    /// Devices.
    pub devices: u64,
    /// Devices of these that are online.
    pub online: u64,
}

/// Devices by their reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportCounts {
    /// Devices that have reported.
    pub reported: u64,
    /// Devices of these that are online.
    pub online: u64,
    /// Devices of these that follow a channel.
    pub following: u64,
}

/// Conditions on devices that SQL looks at. A device has a channel for which all of those on
/// product, channel and version hold.
#[derive(Clone, Debug, Default)]
pub struct DeviceFilter<'a> {
    /// Only devices that follow a channel of this product.
    pub product: Option<&'a Name>,
    /// Only devices that follow a channel of this name.
    pub channel: Option<&'a Name>,
    /// Only devices that run this version.
    pub version: Option<&'a Name>,
    /// Only devices that these may select. The database looks at the values that they name, and the
    /// caller at the rest.
    pub selectors: Vec<&'a Selector>,
    /// Only devices with one of these states on a channel.
    pub states: Option<&'a [StateKey]>,
}

/// Condition on devices that a selector may select, with the values of its parameters.
fn narrow_by_values(conditions: Conditions, selector: &Selector) -> Conditions {
    selector.required_values().fold(conditions, |conditions, (is_fact, key, values)| {
        let source = if is_fact { "= 'fact'" } else { "<> 'fact'" };
        let among = vec!["{}"; values.len()].join(", ");
        let sql = format!(
            "id IN (SELECT node FROM node_labels WHERE key = {{}} AND value IN ({among}) AND source {source})"
        );
        let values = values.iter().map(ToString::to_string);
        conditions.and_each(&sql, std::iter::once(key.to_string()).chain(values))
    })
}

/// Condition on devices in one of these states. There may be none of them.
fn narrow_by_states(conditions: Conditions, states: &[StateKey]) -> Conditions {
    let mut values = Vec::new();
    let mut one_of = Vec::new();
    for state in states {
        let texts = StateKey::COLUMNS.iter().zip(&state.texts).map(|((column, _), text)| match text {
            Some(text) => {
                values.push(text.clone());
                format!("g.{column} = {{}}")
            }
            None => format!("g.{column} IS NULL"),
        });
        let mut parts: Vec<String> = texts.collect();
        parts.push(match state.attempt {
            Some(number) => format!("g.attempt = {number}"),
            None => "g.attempt IS NULL".to_owned(),
        });
        one_of.push(format!("({})", parts.join(" AND ")));
    }
    let one_of = if one_of.is_empty() { "1 = 0".to_owned() } else { one_of.join(" OR ") };
    conditions.and_each(&format!("id IN (SELECT g.node FROM node_running g WHERE {one_of})"), values)
}

/// A device and what it reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Node id.
    pub id: String,
    /// Name that operators see.
    pub label: String,
    /// Time of its newest report.
    pub reported: Option<UnixSeconds>,
    /// The channels that it follows, by name.
    pub channels: Vec<OnChannel>,
}

/// A node's newest attempt at a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAttemptRow {
    /// The rollout.
    pub rollout: RolloutId,
    /// Product.
    pub product: Name,
    /// Channel.
    pub channel: Name,
    /// Version that the rollout leads to.
    pub version: Name,
    /// The attempt.
    pub attempt: AttemptRow,
    /// Time at which the origin last heard of it.
    pub received: UnixSeconds,
}

/// Condition on a column with a node id: the node is a device that counts.
fn counts(node: &str) -> String {
    format!("{node} NOT IN (SELECT id FROM nodes WHERE revoked IS NOT NULL OR role <> 'leaf')")
}

/// Columns that [`read_channel`] reads.
const CHANNEL: &str =
    "r.product, r.channel, r.version, r.held, r.rollout, r.attempt_state AS state, r.attempt, r.failure";

fn read_channel(row: &AnyRow) -> Result<OnChannel, sqlx::Error> {
    let attempt = match read_state(row)? {
        None => None,
        Some(state) => Some(OnRollout {
            rollout: row.parsed("rollout")?,
            state,
            number: row.number32("attempt")?,
            failure: row.text_or_none("failure")?.unwrap_or_default(),
        }),
    };
    Ok(OnChannel {
        product: row.parsed("product")?,
        channel: row.parsed("channel")?,
        version: row.text_or_none("version")?.map(|_| row.parsed("version")).transpose()?,
        held: read_held(row)?,
        attempt,
    })
}

impl Db {
    /// Devices by channel and by all that decides the state of their update. Online is a device
    /// whose report came at `since` or later.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn fleet_groups(
        &self,
        product: Option<&Name>,
        channel: Option<&Name>,
        since: UnixSeconds,
    ) -> Result<Vec<FleetGroup>, DbError> {
        let conditions = Conditions::after(1).and("r.product = {}", product).and("r.channel = {}", channel);
        let sql = format!(
            "SELECT {CHANNEL}, COUNT(*) AS devices, SUM(CASE WHEN r.received >= $1 THEN 1 ELSE 0 END) AS online \
             FROM node_running r WHERE {}{} GROUP BY r.product, r.channel, r.version, r.held, r.rollout, \
             r.attempt_state, r.attempt, r.failure",
            counts("r.node"),
            conditions.sql
        );
        let query = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(since));
        let group = |row: &AnyRow| {
            Ok(FleetGroup {
                on: read_channel(row)?,
                key: StateKey::read(row)?,
                devices: row.number("devices")?,
                online: row.number("online")?,
            })
        };
        let rows = query.fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(group).collect()).map_err(failed("sum up the fleet"))
    }

    /// Number of devices.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn device_count(&self) -> Result<u64, DbError> {
        let sql = "SELECT COUNT(*) AS devices FROM nodes WHERE role = 'leaf' AND revoked IS NULL";
        let row = sqlx::query(sql).fetch_one(&self.pool).await;
        row.and_then(|row| row.number("devices")).map_err(failed("count the devices"))
    }

    /// Devices by their reports: all of them, or those that follow a channel of this product or
    /// name. Online is a device whose report came at `since` or later.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn report_counts(
        &self,
        product: Option<&Name>,
        channel: Option<&Name>,
        since: UnixSeconds,
    ) -> Result<ReportCounts, DbError> {
        let conditions = Conditions::after(1).and("product = {}", product).and("channel = {}", channel);
        let from = match conditions.is_empty() {
            true => "node_reports".to_owned(),
            false => format!(
                "(SELECT node, MAX(received) AS received, 1 AS follows FROM node_running WHERE 1 = 1{} GROUP BY node) x",
                conditions.sql
            ),
        };
        let sql = format!(
            "SELECT COUNT(*) AS reported, COALESCE(SUM(CASE WHEN received >= $1 THEN 1 ELSE 0 END), 0) AS online, \
             COALESCE(SUM(CASE WHEN follows > 0 THEN 1 ELSE 0 END), 0) AS following FROM {from} WHERE {}",
            counts("node")
        );
        let row =
            conditions.bind(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(since)).fetch_one(&self.pool).await;
        let read = |row: AnyRow| {
            Ok(ReportCounts {
                reported: row.number("reported")?,
                online: row.number("online")?,
                following: row.number("following")?,
            })
        };
        row.and_then(read).map_err(failed("count the reports"))
    }

    /// At most `limit` devices with ids greater than `after`, by id. Of a device that passes the
    /// filter all channels are read.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn devices(
        &self,
        filter: &DeviceFilter<'_>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<DeviceRow>, DbError> {
        let what = "list the devices";
        let DeviceFilter { product, channel, version, selectors, states } = filter;
        let mut conditions = Conditions::after(2)
            .and("f.product = {}", *product)
            .and("f.channel = {}", *channel)
            .and("f.version = {}", *version);
        if !conditions.is_empty() {
            conditions.sql = format!(
                " AND EXISTS (SELECT 1 FROM node_running f WHERE f.node = nodes.id{})",
                conditions.sql
            );
        }
        conditions = selectors.iter().fold(conditions, |sql, selector| narrow_by_values(sql, selector));
        if let Some(states) = states {
            conditions = narrow_by_states(conditions, states);
        }
        let passes = &conditions.sql;
        let sql = format!(
            "SELECT n.id AS id, n.label AS label, p.received AS received, {CHANNEL} FROM \
             (SELECT id, label FROM nodes WHERE role = 'leaf' AND revoked IS NULL AND id > $1{passes} \
             ORDER BY id LIMIT $2) n LEFT JOIN node_reports p ON p.node = n.id LEFT JOIN node_running r ON r.node = n.id \
             ORDER BY n.id, r.product, r.channel"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(after.to_owned()).bind(i64::from(limit));
        let rows = conditions.bind(query).fetch_all(&self.pool).await.map_err(failed(what))?;
        let mut devices: Vec<DeviceRow> = Vec::new();
        let mut put = |row: &AnyRow| -> Result<(), sqlx::Error> {
            let id = row.text("id")?;
            if devices.last().is_none_or(|device| device.id != id) {
                let (label, reported) = (row.text("label")?, row.time_or_none("received")?);
                devices.push(DeviceRow { id, label, reported, channels: Vec::new() });
            }
            if let (Some(device), Some(_)) = (devices.last_mut(), row.text_or_none("product")?) {
                device.channels.push(read_channel(row)?);
            }
            Ok(())
        };
        rows.iter().try_for_each(&mut put).map_err(failed(what))?;
        Ok(devices)
    }

    /// Reports of one node about the channels that it follows, by name.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn channels_of_node(&self, node: &str) -> Result<Vec<OnChannel>, DbError> {
        let sql =
            format!("SELECT {CHANNEL} FROM node_running r WHERE r.node = $1 ORDER BY r.product, r.channel");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(node.to_owned()).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read_channel).collect())
            .map_err(failed("read what the node runs"))
    }

    /// Newest attempt of a node at each rollout, the newest rollout first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn attempts_of_node(&self, node: &str) -> Result<Vec<NodeAttemptRow>, DbError> {
        // By rollout: there are few rollouts, and no index of attempts by node.
        let rows = sqlx::query(
            "SELECT o.id AS rollout, o.product, o.channel, o.version, a.node, a.number, a.state, a.failure, \
             a.detail, a.seconds, a.disk, a.neighbours, a.relay, a.origin, a.received \
             FROM rollouts o JOIN rollout_attempts a ON a.rollout = o.id AND a.node = $1 \
             ORDER BY o.created DESC, o.id LIMIT $2",
        )
        .bind(node.to_owned())
        .bind(i64::from(NODE_ATTEMPTS_MAX))
        .fetch_all(&self.pool)
        .await;
        let attempt = |row: &AnyRow| {
            Ok(NodeAttemptRow {
                rollout: row.parsed("rollout")?,
                product: row.parsed("product")?,
                channel: row.parsed("channel")?,
                version: row.parsed("version")?,
                attempt: read_attempt(row)?,
                received: row.time("received")?,
            })
        };
        rows.and_then(|rows| rows.iter().map(attempt).collect()).map_err(failed("list the node's attempts"))
    }
}
