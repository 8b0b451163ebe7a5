//! Groups of nodes. Each change is a transaction that holds the row `fleet` of `counters`.
//!
//! Table `node_groups`: name and selector of each group; the group `everyone` has no row.
//!
//! Table `node_group_members`: the nodes of groups that list theirs.

use std::collections::BTreeSet;

use distd_core::NodeId;
use distd_core::bounds::GROUPS_MAX;
use distd_core::fleet::{Selector, Selectors};
use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::audit::append;
use super::bulk::ROWS_MAX;
use super::grants::grants_to;
use super::row::Columns;
use super::{Db, DbError, failed};

/// Definition of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// The nodes that a selector selects at any time.
    Selector(Selector),
    /// These nodes.
    Listed(BTreeSet<NodeId>),
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// Its name.
    pub name: Name,
    /// Its selector; `None` for a group that lists its nodes.
    pub selector: Option<Selector>,
    /// Number of nodes that it lists, also of nodes that have not enrolled.
    pub listed: u64,
}

/// Result of making or replacing a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutGroup {
    /// There was none of this name.
    Made,
    /// The group has another definition now, or the same.
    Replaced,
    /// The realm has [`GROUPS_MAX`] groups; nothing was changed.
    TooMany,
    /// Grants name the group, and its selector would have facts; nothing was changed.
    Granted(Vec<u64>),
}

/// Result of removing a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoveGroup {
    /// The group is gone.
    Removed,
    /// Grants of these ids name the group; nothing was changed.
    Granted(Vec<u64>),
    /// There is no such group.
    Unknown,
}

/// Begins a transaction that changes groups or grants: such transactions take turns, and every
/// process sees by the counter that its copy is out of date.
pub(super) async fn begin_fleet(db: &Db) -> Result<Transaction<'static, Any>, DbError> {
    let mut tx = db.begin_write().await?;
    sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'fleet'")
        .execute(&mut *tx)
        .await
        .map_err(failed("lock groups and grants"))?;
    Ok(tx)
}

/// The selector of a group, which is `None` for a group that lists its nodes; `None` when there is
/// no such group.
pub(super) async fn selector_of(
    tx: &mut Transaction<'static, Any>,
    group: &Name,
) -> Result<Option<Option<Selector>>, sqlx::Error> {
    let row = sqlx::query("SELECT selector FROM node_groups WHERE name = $1")
        .bind(group.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(read_selector).transpose()
}

fn read_selector(row: &AnyRow) -> Result<Option<Selector>, sqlx::Error> {
    row.text_or_none("selector")?.map(|_| row.parsed("selector")).transpose()
}

impl Db {
    /// Number of the state of groups and grants; it grows with each change.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn fleet_generation(&self) -> Result<u64, DbError> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'fleet'").fetch_one(&self.pool).await;
        row.and_then(|row| row.number("value")).map_err(failed("read the state of the groups"))
    }

    /// Every group but `everyone`, by name.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn groups(&self) -> Result<Vec<GroupRow>, DbError> {
        let rows = sqlx::query(
            "SELECT g.name AS name, g.selector AS selector, \
             (SELECT COUNT(*) FROM node_group_members m WHERE m.group_name = g.name) AS listed \
             FROM node_groups g ORDER BY g.name",
        )
        .fetch_all(&self.pool)
        .await;
        let read = |row: &AnyRow| {
            Ok(GroupRow {
                name: row.parsed("name")?,
                selector: read_selector(row)?,
                listed: row.number("listed")?,
            })
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the groups"))
    }

    /// Groups that have a selector, by name.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn selectors(&self) -> Result<Selectors, DbError> {
        let sql = "SELECT name, selector FROM node_groups WHERE selector IS NOT NULL";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| {
            rows.iter().map(|row| Ok((row.parsed("name")?, row.parsed("selector")?))).collect()
        })
        .map_err(failed("read the selectors of groups"))
    }

    /// Definition of a group; `None` when there is no such group.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn group(&self, name: &Name) -> Result<Option<Members>, DbError> {
        let what = "read the group";
        let row = sqlx::query("SELECT selector FROM node_groups WHERE name = $1")
            .bind(name.to_string())
            .fetch_optional(&self.pool)
            .await;
        let selector =
            row.and_then(|row| row.as_ref().map(read_selector).transpose()).map_err(failed(what))?;
        match selector {
            None => Ok(None),
            Some(Some(selector)) => Ok(Some(Members::Selector(selector))),
            Some(None) => {
                let rows = sqlx::query("SELECT node FROM node_group_members WHERE group_name = $1")
                    .bind(name.to_string())
                    .fetch_all(&self.pool)
                    .await;
                let nodes = rows.and_then(|rows| rows.iter().map(|row| row.parsed("node")).collect());
                nodes.map(|nodes| Some(Members::Listed(nodes))).map_err(failed(what))
            }
        }
    }

    /// Makes a group, or gives it another definition.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_group(&self, name: &Name, members: &Members) -> Result<PutGroup, DbError> {
        let what = "record the group";
        let mut tx = begin_fleet(self).await?;
        let known = selector_of(&mut tx, name).await.map_err(failed(what))?.is_some();
        if !known {
            let row = sqlx::query("SELECT COUNT(*) AS groups FROM node_groups").fetch_one(&mut *tx).await;
            let groups = row.and_then(|row| row.number("groups")).map_err(failed(what))?;
            if groups >= GROUPS_MAX as u64 {
                return Ok(PutGroup::TooMany);
            }
        }
        let selector = match members {
            Members::Selector(selector) => Some(selector),
            Members::Listed(_) => None,
        };
        if selector.is_some_and(Selector::uses_facts) {
            let grants = grants_to(&mut tx, name).await.map_err(failed(what))?;
            if !grants.is_empty() {
                return Ok(PutGroup::Granted(grants));
            }
        }
        sqlx::query(
            "INSERT INTO node_groups (name, selector) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET selector = excluded.selector",
        )
        .bind(name.to_string())
        .bind(selector.map(ToString::to_string))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        sqlx::query("DELETE FROM node_group_members WHERE group_name = $1")
            .bind(name.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if let Members::Listed(nodes) = members {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            for batch in nodes.chunks(ROWS_MAX) {
                let sql = format!(
                    "INSERT INTO node_group_members (group_name, node) VALUES {}",
                    self.engine.values(batch.len(), 2)
                );
                let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
                for node in batch {
                    query = query.bind(name.to_string()).bind(node.clone());
                }
                query.execute(&mut *tx).await.map_err(failed(what))?;
            }
        }
        let details = match members {
            Members::Selector(selector) => json!({"selector": selector.to_string()}),
            Members::Listed(nodes) => {
                let mut ids = blake3::Hasher::new();
                for node in nodes {
                    ids.update(&node.0);
                }
                json!({"listed": nodes.len(), "nodes_blake3": ids.finalize().to_hex().as_str()})
            }
        };
        append(&mut tx, &self.acting, "group.set", name.as_str(), &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(if known { PutGroup::Replaced } else { PutGroup::Made })
    }

    /// Removes a group that no grant names.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn remove_group(&self, name: &Name) -> Result<RemoveGroup, DbError> {
        let what = "remove the group";
        let mut tx = begin_fleet(self).await?;
        let grants = grants_to(&mut tx, name).await.map_err(failed(what))?;
        if !grants.is_empty() {
            return Ok(RemoveGroup::Granted(grants));
        }
        let gone = sqlx::query("DELETE FROM node_groups WHERE name = $1")
            .bind(name.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if gone.rows_affected() == 0 {
            return Ok(RemoveGroup::Unknown);
        }
        append(&mut tx, &self.acting, "group.remove", name.as_str(), &json!({}))
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(RemoveGroup::Removed)
    }
}
