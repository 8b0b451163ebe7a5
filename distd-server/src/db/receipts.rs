//! The log of receipts: a Merkle tree that is added to, never changed, never deleted
//! (docs/receipts.md). Triggers of the database refuse all else.
//!
//! Table `receipt_log`: the entries.
//!
//! Table `receipt_tree`: hashes of the complete subtrees above the entries, one row for each entry
//! on average.
//!
//! Table `receipt_logs`: ids of the log, the last one in force.
//!
//! Table `node_logs`: what each node says about the log, one row a node.

use std::collections::BTreeMap;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::fleet::receipts::{
    Entry, LogId, SignedReceipt, Subtree, TreeHash, completed, leaf_hash, node_hash,
};
use distd_core::fleet::report::LogReport;
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::row::{Columns, claimed, impossible, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// Most receipts of one node that are taken within a day. An attempt at a rollout gives two.
pub const RECEIPTS_PER_DAY_MAX: u64 = 64;

/// Most receipts of one node that the log takes at all: at 300 bytes a receipt, 6 MB. A node with
/// an update a day and no failure reaches it in fifty years.
pub const RECEIPTS_PER_NODE_MAX: u64 = 20_000;

const DAY_SECONDS: i64 = 24 * 3600;

/// Entry of the log, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Number, from 0.
    pub number: u64,
    /// Time at which the origin added it.
    pub at: UnixSeconds,
    /// The bytes.
    pub entry: Bytes,
}

/// Claims of a node about the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLogRow {
    /// Number of entries in the head that it keeps.
    pub size: u64,
    /// Time of that head, unix seconds.
    pub head_at: u64,
    /// The fault that it found, in words; empty without one.
    pub fault: String,
    /// Number of its receipts that it found missing.
    pub hidden: u64,
    /// Time of the report.
    pub received: UnixSeconds,
}

async fn size(tx: &mut Transaction<'static, Any>) -> Result<u64, sqlx::Error> {
    // Locks the row: transactions that add entries take turns until they end.
    let sql = "UPDATE counters SET value = value WHERE name = 'receipts' RETURNING value";
    sqlx::query(sql).fetch_one(&mut **tx).await?.number("value")
}

async fn has(tx: &mut Transaction<'static, Any>, hash: &TreeHash) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT number FROM receipt_log WHERE hash = $1").bind(hash.0.to_vec());
    Ok(row.fetch_optional(&mut **tx).await?.is_some())
}

/// Adds an entry, unless the log has it; returns whether it was added. Called last in a
/// transaction.
pub(super) async fn append(
    tx: &mut Transaction<'static, Any>,
    entry: &Entry,
    at: UnixSeconds,
) -> Result<bool, sqlx::Error> {
    let bytes = entry.encode();
    let (kind, subject) = entry.about();
    let number = size(tx).await?;
    let mut hash = leaf_hash(&bytes);
    if has(tx, &hash).await? {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO receipt_log (number, hash, at, kind, subject, entry) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(signed(number))
    .bind(hash.0.to_vec())
    .bind(at)
    .bind(kind)
    .bind(subject)
    .bind(bytes.to_vec())
    .execute(&mut **tx)
    .await?;
    for Subtree { level, place } in completed(number) {
        let left = match level {
            1 => sqlx::query("SELECT hash FROM receipt_log WHERE number = $1").bind(signed(2 * place)),
            _ => sqlx::query("SELECT hash FROM receipt_tree WHERE place = $1 AND level = $2")
                .bind(signed(2 * place))
                .bind(i64::from(level) - 1),
        };
        let left = TreeHash(left.fetch_one(&mut **tx).await?.hash("hash")?);
        hash = node_hash(&left, &hash);
        sqlx::query("INSERT INTO receipt_tree (level, place, hash) VALUES ($1, $2, $3)")
            .bind(i64::from(level))
            .bind(signed(place))
            .bind(hash.0.to_vec())
            .execute(&mut **tx)
            .await?;
    }
    sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'receipts'").execute(&mut **tx).await?;
    Ok(true)
}

/// Adds the receipts of a node that the log does not have, as far as the bounds of the node allow,
/// and records what the node says about the log.
pub(super) async fn put_receipts(
    tx: &mut Transaction<'static, Any>,
    node: &NodeId,
    receipts: Vec<SignedReceipt>,
    log: &LogReport,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    if let Some(head) = &log.head {
        sqlx::query(
            "INSERT INTO node_logs (node, size, head_at, fault, hidden, received) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (node) DO UPDATE SET size = excluded.size, head_at = excluded.head_at, \
             fault = excluded.fault, hidden = excluded.hidden, received = excluded.received",
        )
        .bind(node.to_string())
        .bind(claimed(head.size))
        .bind(claimed(head.at))
        .bind(log.fault.clone())
        .bind(i64::from(log.hidden))
        .bind(now)
        .execute(&mut **tx)
        .await?;
    }
    for receipt in receipts {
        let entry = Entry::Receipt(receipt);
        if has(tx, &leaf_hash(&entry.encode())).await? {
            continue;
        }
        let row = sqlx::query(
            "SELECT COUNT(*) AS number, COALESCE(SUM(CASE WHEN at > $1 THEN 1 ELSE 0 END), 0) AS value \
             FROM receipt_log WHERE subject = $2",
        )
        .bind(now - DAY_SECONDS)
        .bind(node.to_string())
        .fetch_one(&mut **tx)
        .await?;
        if row.number("value")? >= RECEIPTS_PER_DAY_MAX || row.number("number")? >= RECEIPTS_PER_NODE_MAX {
            tracing::warn!(%node, "a node signs too many receipts: the log takes none of it until it has fewer within a day");
            break;
        }
        append(tx, &entry, now).await?;
    }
    Ok(())
}

fn log_row(row: &AnyRow) -> Result<LogRow, sqlx::Error> {
    Ok(LogRow { number: row.number("number")?, at: row.time("at")?, entry: row.blob("entry")?.into() })
}

impl Db {
    /// Adds an entry that is no receipt; `false` when the log has it.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn add_log_entry(&self, entry: &Entry, now: UnixSeconds) -> Result<bool, DbError> {
        let what = "add to the log of receipts";
        let mut tx = self.begin_write().await?;
        let added = append(&mut tx, entry, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(added)
    }

    /// Id of the log; `fresh` when it has none yet.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn log_id(&self, fresh: LogId, now: UnixSeconds) -> Result<LogId, DbError> {
        let what = "read the id of the log of receipts";
        sqlx::query(
            "INSERT INTO receipt_logs (number, id, began) VALUES (1, $1, $2) ON CONFLICT (number) DO NOTHING",
        )
        .bind(fresh.to_string())
        .bind(now)
        .execute(&self.pool)
        .await
        .map_err(failed(what))?;
        let row = sqlx::query("SELECT id FROM receipt_logs ORDER BY number DESC LIMIT 1");
        row.fetch_one(&self.pool).await.and_then(|row| row.parsed("id")).map_err(failed(what))
    }

    /// Whether the log had the id `before` in an earlier time, and has the id `now` instead.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn had_log_id(&self, before: &LogId, now: &LogId) -> Result<bool, DbError> {
        let row = sqlx::query("SELECT COUNT(*) AS value FROM receipt_logs WHERE id = $1 AND id <> $2")
            .bind(before.to_string())
            .bind(now.to_string())
            .fetch_one(&self.pool)
            .await;
        let count = row.and_then(|row| row.number("value"));
        Ok(count.map_err(failed("read the id of the log of receipts"))? > 0)
    }

    /// Continues the log under another id, with an entry that says so.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn restart_log(&self, id: LogId, event: &Entry, now: UnixSeconds) -> Result<(), DbError> {
        let what = "continue the log of receipts";
        let mut tx = self.begin_write().await?;
        sqlx::query(
            "INSERT INTO receipt_logs (number, id, began) SELECT COALESCE(MAX(number), 0) + 1, $1, $2 FROM receipt_logs",
        )
        .bind(id.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        append(&mut tx, event, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// Number of entries of the log.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn log_size(&self) -> Result<u64, DbError> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'receipts'").fetch_one(&self.pool);
        row.await.and_then(|row| row.number("value")).map_err(failed("read the size of the log of receipts"))
    }

    /// Entries of the log from the number `start` on, at most `limit`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn log_entries(&self, start: u64, limit: u32) -> Result<Vec<LogRow>, DbError> {
        let rows = sqlx::query(
            "SELECT number, at, entry FROM receipt_log WHERE number >= $1 ORDER BY number LIMIT $2",
        )
        .bind(claimed(start))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(log_row).collect()).map_err(failed("read the log of receipts"))
    }

    /// The newest entry of this kind about this thing.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn last_log_entry(&self, kind: &str, subject: &str) -> Result<Option<LogRow>, DbError> {
        let row = sqlx::query(
            "SELECT number, at, entry FROM receipt_log WHERE subject = $1 AND kind = $2 ORDER BY number DESC LIMIT 1",
        )
        .bind(subject.to_owned())
        .bind(kind.to_owned())
        .fetch_optional(&self.pool)
        .await;
        row.and_then(|row| row.as_ref().map(log_row).transpose()).map_err(failed("read the log of receipts"))
    }

    /// Number of the entry with this hash.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn log_number(&self, hash: &TreeHash) -> Result<Option<u64>, DbError> {
        let row = sqlx::query("SELECT number FROM receipt_log WHERE hash = $1")
            .bind(hash.0.to_vec())
            .fetch_optional(&self.pool)
            .await;
        row.and_then(|row| row.map(|row| row.number("number")).transpose())
            .map_err(failed("read the log of receipts"))
    }

    /// Hashes of complete subtrees of the log.
    ///
    /// # Errors
    /// [`DbError::Query`], also when the log does not have one of them.
    pub async fn log_hashes(&self, subtrees: &[Subtree]) -> Result<BTreeMap<Subtree, TreeHash>, DbError> {
        let what = "read the tree of the log of receipts";
        let mut hashes = BTreeMap::new();
        for at in subtrees {
            let query = match at.level {
                0 => sqlx::query("SELECT hash FROM receipt_log WHERE number = $1").bind(claimed(at.place)),
                level => sqlx::query("SELECT hash FROM receipt_tree WHERE place = $1 AND level = $2")
                    .bind(claimed(at.place))
                    .bind(i64::from(level)),
            };
            let row = query.fetch_optional(&self.pool).await.map_err(failed(what))?;
            let row = row.ok_or_else(|| impossible("hash")).map_err(failed(what))?;
            hashes.insert(*at, TreeHash(row.hash("hash").map_err(failed(what))?));
        }
        Ok(hashes)
    }

    /// Claims of a node about the log; `None` when it makes none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn node_log(&self, node: &str) -> Result<Option<NodeLogRow>, DbError> {
        let row = sqlx::query("SELECT size, head_at, fault, hidden, received FROM node_logs WHERE node = $1")
            .bind(node.to_owned())
            .fetch_optional(&self.pool)
            .await;
        let read = |row: &AnyRow| {
            Ok(NodeLogRow {
                size: row.number("size")?,
                head_at: row.number("head_at")?,
                fault: row.text("fault")?,
                hidden: row.number("hidden")?,
                received: row.time("received")?,
            })
        };
        row.and_then(|row| row.as_ref().map(read).transpose())
            .map_err(failed("read what the node says about the log"))
    }
}
