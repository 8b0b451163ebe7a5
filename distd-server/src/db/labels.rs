//! Labels of nodes and of join tokens.
//!
//! Table `node_labels`: key and value by node and source: the join token with which the node
//! enrolled last, an operator, or a fact that the node reported.
//!
//! Table `join_token_labels`: labels that a node gets when it enrols with the token.

use std::collections::{BTreeSet, HashMap};

use distd_core::api::label_texts;
use distd_core::bounds::LABELS_MAX;
use distd_core::fleet::{LabelKey, LabelMap, LabelValue, Labels, Member};
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::audit::append;
use super::row::{Columns, impossible};
use super::{Db, DbError, UnixSeconds, failed, nodes};

/// Purpose of a statement, for messages.
const LISTED: &str = "list the labels of nodes";

/// Nodes whose labels are read by one statement.
const NODES_AT_ONCE: usize = 500;

/// A node, as far as its rights are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Role, labels, and the groups that list it.
    pub member: Member,
    /// Time of its revocation.
    pub revoked: Option<UnixSeconds>,
    /// Number of the state of groups and grants when the row was read; it grows with each change
    /// of them.
    pub generation: u64,
}

/// Result of changing the labels that an operator gave a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeLabels {
    /// The labels are these now.
    Changed(Labels),
    /// The node would have more than [`LABELS_MAX`] labels of an operator; nothing was changed.
    TooMany,
    /// There is no such node.
    UnknownNode,
}

fn put(labels: &mut Labels, row: &AnyRow) -> Result<(), sqlx::Error> {
    let map = match row.text("source")?.as_str() {
        "token" => &mut labels.token,
        "operator" => &mut labels.operator,
        "fact" => &mut labels.facts,
        _ => return Err(impossible("source")),
    };
    let (key, value): (LabelKey, LabelValue) = (row.parsed("key")?, row.parsed("value")?);
    map.insert(key, value);
    Ok(())
}

fn put_all(all: &mut HashMap<String, Labels>, rows: &[AnyRow]) -> Result<(), sqlx::Error> {
    rows.iter().try_for_each(|row| put(all.entry(row.text("node")?).or_default(), row))
}

async fn labels_in(tx: &mut Transaction<'static, Any>, node: &str) -> Result<Labels, sqlx::Error> {
    let rows = sqlx::query("SELECT source, key, value FROM node_labels WHERE node = $1")
        .bind(node.to_owned())
        .fetch_all(&mut **tx)
        .await?;
    let mut labels = Labels::default();
    rows.iter().try_for_each(|row| put(&mut labels, row))?;
    Ok(labels)
}

/// Gives a node the labels of a join token, in place of those of the token it enrolled with before.
/// Returns whether its labels are others now.
pub(super) async fn take_from_token(
    tx: &mut Transaction<'static, Any>,
    node: &str,
    token: &str,
) -> Result<bool, sqlx::Error> {
    let before = labels_in(tx, node).await?.token;
    sqlx::query("DELETE FROM node_labels WHERE node = $1 AND source = 'token'")
        .bind(node.to_owned())
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "INSERT INTO node_labels (node, source, key, value) \
         SELECT n.id, 'token', l.key, l.value FROM join_token_labels l, nodes n WHERE l.token = $1 AND n.id = $2",
    )
    .bind(token.to_owned())
    .bind(node.to_owned())
    .execute(&mut **tx)
    .await?;
    Ok(labels_in(tx, node).await?.token != before)
}

/// Records the labels of a new join token.
pub(super) async fn put_on_token(
    tx: &mut Transaction<'static, Any>,
    token: &str,
    labels: &LabelMap,
) -> Result<(), sqlx::Error> {
    for (key, value) in labels {
        sqlx::query("INSERT INTO join_token_labels (token, key, value) VALUES ($1, $2, $3)")
            .bind(token.to_owned())
            .bind(key.to_string())
            .bind(value.to_string())
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

impl Db {
    /// Labels of every node that has any, by its id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn labels(&self) -> Result<HashMap<String, Labels>, DbError> {
        // An id is 32 hexadecimal digits.
        self.labels_between("", "g").await
    }

    /// Labels of the nodes with ids from `first` to `last` that have any, by id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn labels_between(&self, first: &str, last: &str) -> Result<HashMap<String, Labels>, DbError> {
        let rows =
            sqlx::query("SELECT node, source, key, value FROM node_labels WHERE node BETWEEN $1 AND $2")
                .bind(first.to_owned())
                .bind(last.to_owned())
                .fetch_all(&self.pool);
        let mut all = HashMap::new();
        rows.await.and_then(|rows| put_all(&mut all, &rows)).map_err(failed(LISTED))?;
        Ok(all)
    }

    /// Labels of these nodes, as far as they have any, by id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn labels_of<'n>(
        &self,
        nodes: impl Iterator<Item = &'n str>,
    ) -> Result<HashMap<String, Labels>, DbError> {
        let nodes: Vec<&str> = nodes.collect();
        let mut all = HashMap::new();
        for nodes in nodes.chunks(NODES_AT_ONCE) {
            let among: Vec<String> = (1..=nodes.len()).map(|number| format!("${number}")).collect();
            let among = among.join(", ");
            let sql = format!("SELECT node, source, key, value FROM node_labels WHERE node IN ({among})");
            let query = sqlx::query(sqlx::AssertSqlSafe(sql));
            let query = nodes.iter().fold(query, |query, node| query.bind((*node).to_owned()));
            let rows = query.fetch_all(&self.pool).await;
            rows.and_then(|rows| put_all(&mut all, &rows)).map_err(failed(LISTED))?;
        }
        Ok(all)
    }

    /// Labels of every join token that has any, by its public key.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn join_token_labels(&self) -> Result<HashMap<String, LabelMap>, DbError> {
        let rows = sqlx::query("SELECT token, key, value FROM join_token_labels").fetch_all(&self.pool);
        let read = |rows: Vec<AnyRow>| {
            let mut all: HashMap<String, LabelMap> = HashMap::new();
            for row in &rows {
                all.entry(row.text("token")?).or_default().insert(row.parsed("key")?, row.parsed("value")?);
            }
            Ok(all)
        };
        rows.await.and_then(read).map_err(failed("list the labels of join tokens"))
    }

    /// Sets and removes labels that an operator gave a node, in one transaction.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn change_labels(
        &self,
        node: &str,
        set: &LabelMap,
        remove: &BTreeSet<LabelKey>,
    ) -> Result<ChangeLabels, DbError> {
        let what = "change the labels of the node";
        let mut tx = self.begin_write().await?;
        if !nodes::lock(&mut *tx, node).await.map_err(failed(what))? {
            return Ok(ChangeLabels::UnknownNode);
        }
        for key in remove.iter().chain(set.keys()) {
            sqlx::query("DELETE FROM node_labels WHERE node = $1 AND source = 'operator' AND key = $2")
                .bind(node.to_owned())
                .bind(key.to_string())
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        }
        for (key, value) in set {
            sqlx::query("INSERT INTO node_labels (node, source, key, value) VALUES ($1, 'operator', $2, $3)")
                .bind(node.to_owned())
                .bind(key.to_string())
                .bind(value.to_string())
                .execute(&mut *tx)
                .await
                .map_err(failed(what))?;
        }
        let labels = labels_in(&mut tx, node).await.map_err(failed(what))?;
        if labels.operator.len() > LABELS_MAX {
            return Ok(ChangeLabels::TooMany);
        }
        let removed: Vec<_> = remove.iter().map(LabelKey::as_str).collect();
        let details = json!({"set": label_texts(set), "remove": removed});
        append(&mut tx, &self.acting, "node.label", node, &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(ChangeLabels::Changed(labels))
    }

    /// A node with its labels and the groups that list it; `None` when there is no such node.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn member(&self, node: &str) -> Result<Option<MemberRow>, DbError> {
        let what = "read the labels of the node";
        let row = sqlx::query(
            "SELECT n.role AS role, n.revoked AS revoked, c.value AS generation FROM nodes n, counters c \
             WHERE n.id = $1 AND c.name = 'fleet'",
        )
        .bind(node.to_owned())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed(what))?;
        let Some(row) = row else { return Ok(None) };
        let more = sqlx::query(
            "SELECT source, key, value FROM node_labels WHERE node = $1 \
             UNION ALL SELECT 'group', group_name, '' FROM node_group_members WHERE node = $2",
        )
        .bind(node.to_owned())
        .bind(node.to_owned())
        .fetch_all(&self.pool)
        .await
        .map_err(failed(what))?;
        let read = || -> Result<MemberRow, sqlx::Error> {
            let (mut labels, mut listed) = (Labels::default(), BTreeSet::new());
            for row in &more {
                match row.text("source")?.as_str() {
                    "group" => {
                        listed.insert(row.parsed("key")?);
                    }
                    _ => put(&mut labels, row)?,
                }
            }
            Ok(MemberRow {
                member: Member { role: row.parsed("role")?, labels, listed },
                revoked: row.time_or_none("revoked")?,
                generation: row.number("generation")?,
            })
        };
        read().map(Some).map_err(failed(what))
    }
}
