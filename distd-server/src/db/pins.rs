//! Versions to which operators pinned nodes.
//!
//! Table `node_pins`: version by node and product.

use std::collections::{BTreeMap, HashMap};

use distd_core::bounds::PINS_MAX;
use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;

use super::audit::append;
use super::row::Columns;
use super::{Db, DbError, failed, nodes, releases};

/// Result of pinning a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinNode {
    /// The node is pinned.
    Pinned,
    /// There is no such node.
    UnknownNode,
    /// There is no such release.
    UnknownRelease,
    /// The node is pinned to versions of [`PINS_MAX`] other products.
    TooMany,
}

/// Pins of a node: version by product.
pub type Pins = BTreeMap<Name, Name>;

impl Db {
    /// Pins a node to a version of a product.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pin_node(&self, node: &str, product: &Name, version: &Name) -> Result<PinNode, DbError> {
        let what = "pin the node";
        let mut tx = self.begin_write().await?;
        if !nodes::lock(&mut *tx, node).await.map_err(failed(what))? {
            return Ok(PinNode::UnknownNode);
        }
        let release = releases::sequence_of(&mut *tx, product, version).await.map_err(failed(what))?;
        if release.is_none() {
            return Ok(PinNode::UnknownRelease);
        }
        sqlx::query(
            "INSERT INTO node_pins (node, product, version) VALUES ($1, $2, $3) \
             ON CONFLICT (node, product) DO UPDATE SET version = excluded.version",
        )
        .bind(node.to_owned())
        .bind(product.to_string())
        .bind(version.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        let row = sqlx::query("SELECT COUNT(*) AS pins FROM node_pins WHERE node = $1")
            .bind(node.to_owned())
            .fetch_one(&mut *tx)
            .await;
        if row.and_then(|row| row.number("pins")).map_err(failed(what))? > PINS_MAX as u64 {
            return Ok(PinNode::TooMany);
        }
        let details = json!({"product": product.to_string(), "version": version.to_string()});
        append(&mut tx, &self.acting, "node.pin", node, &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(PinNode::Pinned)
    }

    /// Removes the pin of a node to a version of a product; `false` when there is none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn unpin_node(&self, node: &str, product: &Name) -> Result<bool, DbError> {
        let what = "remove the pin";
        let mut tx = self.begin_write().await?;
        let done = sqlx::query("DELETE FROM node_pins WHERE node = $1 AND product = $2")
            .bind(node.to_owned())
            .bind(product.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let details = json!({"product": product.to_string()});
        append(&mut tx, &self.acting, "node.unpin", node, &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// Pins of one node.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pins_of(&self, node: &str) -> Result<Pins, DbError> {
        let rows = sqlx::query("SELECT product, version FROM node_pins WHERE node = $1")
            .bind(node.to_owned())
            .fetch_all(&self.pool)
            .await;
        let pin = |row: &AnyRow| Ok((row.parsed("product")?, row.parsed("version")?));
        rows.and_then(|rows| rows.iter().map(pin).collect()).map_err(failed("read the node's pins"))
    }

    /// Nodes that are pinned to a version of a product, with the version.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn pins_on(&self, product: &Name) -> Result<HashMap<String, Name>, DbError> {
        let rows = sqlx::query("SELECT node, version FROM node_pins WHERE product = $1")
            .bind(product.to_string())
            .fetch_all(&self.pool)
            .await;
        let pin = |row: &AnyRow| Ok((row.text("node")?, row.parsed("version")?));
        rows.and_then(|rows| rows.iter().map(pin).collect()).map_err(failed("list the pins"))
    }
}
