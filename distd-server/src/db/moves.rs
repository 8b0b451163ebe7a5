//! The history of channels: every change, and who made it. Added to, never changed, never deleted.
//!
//! Table `channel_moves`: every change of every channel: when, from where to where, ordered back or
//! not, token and label; `highest`, the highest number the channel has pointed to. 100 to 200 bytes
//! a row.

use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Executor, Transaction};

use super::audit::{Actor, append};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// The token that moves a channel, or the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveBy {
    /// Id of the token; empty when the origin does it by itself.
    pub token: String,
    /// Its label.
    pub label: String,
}

impl MoveBy {
    /// The origin itself: it takes over what is signed, or found when the history began.
    pub fn origin() -> Self {
        Self { token: String::new(), label: String::new() }
    }
}

/// One change of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveRow {
    /// Number that grows with each change of any channel.
    pub id: u64,
    /// Time of the change.
    pub moved: UnixSeconds,
    /// The version it pointed to; `None` when it was made.
    pub from: Option<Name>,
    /// The version it points to since; `None` when it was removed.
    pub to: Option<Name>,
    /// Devices with releases up to this number were told to come back; `None` where that was not
    /// ordered.
    pub downgrade_from: Option<u64>,
    /// The token that moved it, or the origin.
    pub by: MoveBy,
}

pub(super) struct NewMove<'a> {
    pub(super) product: &'a Name,
    pub(super) channel: &'a Name,
    pub(super) from: Option<&'a Name>,
    pub(super) to: Option<&'a Name>,
    /// The highest number of a release that the channel has pointed to, this one included.
    pub(super) highest: u64,
    pub(super) downgrade_from: Option<u64>,
    pub(super) by: &'a MoveBy,
}

/// Inserts an entry, also into the audit log. Called last in a transaction.
pub(super) async fn insert(
    tx: &mut Transaction<'static, Any>,
    entry: &NewMove<'_>,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO channel_moves (product, channel, moved, from_version, to_version, highest, downgrade_from, \
         token, label) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(entry.product.to_string())
    .bind(entry.channel.to_string())
    .bind(now)
    .bind(entry.from.map(ToString::to_string))
    .bind(entry.to.map(ToString::to_string))
    .bind(signed(entry.highest))
    .bind(entry.downgrade_from.map(signed))
    .bind(entry.by.token.clone())
    .bind(entry.by.label.clone())
    .execute(&mut **tx)
    .await?;
    let action = if entry.to.is_some() { "channel.set" } else { "channel.remove" };
    let subject = format!("{}:{}", entry.product, entry.channel);
    let details = json!({
        "from": entry.from.map(Name::as_str),
        "to": entry.to.map(Name::as_str),
        "downgrade_from": entry.downgrade_from,
    });
    append(tx, &Actor::by(entry.by, now), action, &subject, &details).await
}

/// The highest number of a release that a channel has pointed to; `None` for a name that was never
/// a channel.
pub(super) async fn highest<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    channel: &Name,
) -> Result<Option<u64>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT highest FROM channel_moves WHERE product = $1 AND channel = $2 ORDER BY id DESC LIMIT 1",
    )
    .bind(product.to_string())
    .bind(channel.to_string())
    .fetch_optional(on)
    .await?;
    row.map(|row| row.number("highest")).transpose()
}

fn read(row: &AnyRow) -> Result<MoveRow, sqlx::Error> {
    let version = |column| -> Result<Option<Name>, sqlx::Error> {
        row.text_or_none(column)?.map(|_| row.parsed(column)).transpose()
    };
    Ok(MoveRow {
        id: row.number("id")?,
        moved: row.time("moved")?,
        from: version("from_version")?,
        to: version("to_version")?,
        downgrade_from: row.number_or_none("downgrade_from")?,
        by: MoveBy { token: row.text("token")?, label: row.text("label")? },
    })
}

impl Db {
    /// Returns at most `limit` changes of a channel, the newest first, that precede the change
    /// `before`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn channel_moves(
        &self,
        product: &Name,
        channel: &Name,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<MoveRow>, DbError> {
        let before = before.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX);
        let rows = sqlx::query(
            "SELECT id, moved, from_version, to_version, downgrade_from, token, label FROM channel_moves \
             WHERE product = $1 AND channel = $2 AND id < $3 ORDER BY id DESC LIMIT $4",
        )
        .bind(product.to_string())
        .bind(channel.to_string())
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("read the channel's history"))
    }
}
