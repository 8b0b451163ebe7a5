//! Enrolled nodes.
//!
//! Table `nodes`: public key, role, last certificate, revocation.

use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::audit::append;
use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Node id, 32 hexadecimal digits.
    pub id: String,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// `relay` or `leaf`.
    pub role: String,
    /// Name that operators see.
    pub label: String,
    /// Time of its first enrolment.
    pub enrolled: UnixSeconds,
    /// Serial number of its last certificate, hexadecimal.
    pub cert_serial: String,
    /// End of that certificate.
    pub cert_expires: UnixSeconds,
    /// Time of its revocation: from then on it gets no certificate.
    pub revoked: Option<UnixSeconds>,
}

const COLUMNS: &str = "id, public_key, role, label, enrolled, cert_serial, cert_expires, revoked";

fn read(row: &AnyRow) -> Result<NodeRow, sqlx::Error> {
    Ok(NodeRow {
        id: row.text("id")?,
        public_key: row.blob("public_key")?,
        role: row.text("role")?,
        label: row.text("label")?,
        enrolled: row.time("enrolled")?,
        cert_serial: row.text("cert_serial")?,
        cert_expires: row.time("cert_expires")?,
        revoked: row.time_or_none("revoked")?,
    })
}

/// Locks the row of a node, so that two changes of the node take turns on PostgreSQL too; `false`
/// when there is no such node.
pub(super) async fn lock<'e>(on: impl Executor<'e, Database = Any>, node: &str) -> Result<bool, sqlx::Error> {
    let known = sqlx::query("UPDATE nodes SET label = label WHERE id = $1").bind(node.to_owned());
    Ok(known.execute(on).await?.rows_affected() == 1)
}

impl Db {
    /// Records an enrolment or a renewal. A node that is there keeps `enrolled` and `revoked`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_node(&self, node: &NodeRow) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO nodes (id, public_key, role, label, enrolled, cert_serial, cert_expires, revoked) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET role = excluded.role, \
             label = excluded.label, cert_serial = excluded.cert_serial, cert_expires = excluded.cert_expires",
        )
        .bind(node.id.clone())
        .bind(node.public_key.clone())
        .bind(node.role.clone())
        .bind(node.label.clone())
        .bind(node.enrolled)
        .bind(node.cert_serial.clone())
        .bind(node.cert_expires)
        .bind(node.revoked)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("record the node"))
    }

    /// One node.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn node(&self, id: &str) -> Result<Option<NodeRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM nodes WHERE id = $1"));
        let row = sqlx::query(sql).bind(id.to_owned()).fetch_optional(&self.pool).await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the node"))
    }

    /// Every node, by time of enrolment.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM nodes ORDER BY enrolled, id"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the nodes"))
    }

    /// Ids of revoked nodes whose last certificate has not ended at `now`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn nodes_revoked(&self, now: UnixSeconds) -> Result<Vec<String>, DbError> {
        let sql = "SELECT id FROM nodes WHERE revoked IS NOT NULL AND cert_expires >= $1 ORDER BY id";
        let rows = sqlx::query(sql).bind(now).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(|row| row.text("id")).collect())
            .map_err(failed("list the revoked nodes"))
    }

    /// Revokes a node; `false` when there is none. The time of the first revocation stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn revoke_node(&self, id: &str, now: UnixSeconds) -> Result<bool, DbError> {
        let what = "revoke the node";
        let mut tx = self.begin_write().await?;
        let done = sqlx::query("UPDATE nodes SET revoked = COALESCE(revoked, $1) WHERE id = $2")
            .bind(now)
            .bind(id.to_owned())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        append(&mut tx, &self.acting.at(now), "node.revoke", id, &json!({})).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(true)
    }
}
