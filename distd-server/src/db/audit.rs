//! The audit log: every act that changes rights, rollouts, releases or tokens, in the transaction
//! of that act. Added to, never changed, never deleted.
//!
//! Table `audit_log`: number, time, actor, act, subject and details of each act; `hash` covers the
//! row and the hash before it, so a row cannot be changed or taken out unnoticed. 200 to 400 bytes
//! a row.

use distd_core::api::{AUDIT_PAGE_MAX, AuditEntry};
use distd_core::fleet::audit::{AuditChain, AuditFault, AuditHash, AuditHead, AuditRecord};
use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::conditions::Conditions;
use super::moves::MoveBy;
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed, webhooks};

/// The one who acts, as the log names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    name: String,
    label: String,
}

impl Actor {
    /// The origin itself.
    pub fn origin() -> Self {
        Self { name: "origin".to_owned(), label: String::new() }
    }

    /// An operator with a command on the origin's machine.
    pub fn operator() -> Self {
        Self { name: "operator".to_owned(), label: String::new() }
    }

    /// The holder of a join token: its id and label.
    pub fn join_token(id: &str, label: &str) -> Self {
        Self { name: format!("join token {id}"), label: label.to_owned() }
    }

    /// The holder of a token of DDI devices: its id and label.
    pub fn ddi_token(id: &str, label: &str) -> Self {
        Self { name: format!("DDI token {id}"), label: label.to_owned() }
    }
}

impl Actor {
    /// The one who acts, as the log names them.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl From<&MoveBy> for Actor {
    fn from(by: &MoveBy) -> Self {
        match by.token.is_empty() {
            true => Self::origin(),
            false => Self { name: format!("token {}", by.token), label: by.label.clone() },
        }
    }
}

impl Actor {
    /// The holder of an API token, or the origin itself.
    pub(super) fn by(by: &MoveBy, now: UnixSeconds) -> Acting {
        Acting { actor: by.into(), at: now }
    }
}

/// One who acts, and when.
#[derive(Clone, Debug)]
pub(super) struct Acting {
    pub(super) actor: Actor,
    pub(super) at: UnixSeconds,
}

impl Acting {
    pub(super) fn origin(now: UnixSeconds) -> Self {
        Self { actor: Actor::origin(), at: now }
    }

    /// The same one at another time.
    pub(super) fn at(&self, now: UnixSeconds) -> Self {
        Self { actor: self.actor.clone(), at: now }
    }
}

/// Adds an entry to the log, and tells the webhooks that ask for such acts; `details` is an object
/// without secrets. Called last in a transaction:
/// the lock of the number makes all transactions that add entries take turns until they end.
pub(super) async fn append(
    tx: &mut Transaction<'static, Any>,
    acting: &Acting,
    action: &str,
    subject: &str,
    details: &Value,
) -> Result<(), sqlx::Error> {
    let Acting { actor, at } = acting;
    let row = sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'audit' RETURNING value")
        .fetch_one(&mut **tx)
        .await?;
    let number = row.number("value")?;
    let before = sqlx::query("SELECT hash FROM audit_log WHERE number = $1")
        .bind(signed(number) - 1)
        .fetch_optional(&mut **tx)
        .await?;
    // Rows that somebody deleted are a gap that a check finds; acts go on.
    let before = before.map(|row| row.hash("hash")).transpose()?.map_or(AuditHash::START, AuditHash);
    let told = details.clone();
    let details = details.to_string();
    let record = AuditRecord {
        number,
        at: *at,
        actor: &actor.name,
        label: &actor.label,
        action,
        subject,
        details: &details,
    };
    let hash = record.hash(&before);
    sqlx::query(
        "INSERT INTO audit_log (number, at, actor, label, action, subject, details, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(signed(number))
    .bind(*at)
    .bind(actor.name.clone())
    .bind(actor.label.clone())
    .bind(action.to_owned())
    .bind(subject.to_owned())
    .bind(details)
    .bind(hash.0.to_vec())
    .execute(&mut **tx)
    .await?;
    webhooks::of_act(tx, acting, action, subject, &told).await
}

/// Entries that a request is about.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only entries of this time or later, unix seconds.
    pub since: Option<UnixSeconds>,
    /// Only acts of this actor: as the log names it, or the label of its token.
    pub actor: Option<String>,
    /// Only this act, or all acts that begin with this word and a dot.
    pub action: Option<String>,
    /// Only acts on this thing.
    pub subject: Option<String>,
}

/// Part of the log that a page shows.
#[derive(Clone, Copy, Debug)]
pub enum AuditRange {
    /// Entries with lower numbers, the highest first.
    Before(Option<u64>),
    /// Entries with higher numbers, the lowest first.
    After(u64),
}

fn read(row: &AnyRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        number: row.number("number")?,
        at: row.time("at")?,
        actor: row.text("actor")?,
        label: row.text("label")?,
        action: row.text("action")?,
        subject: row.text("subject")?,
        details: row.text("details")?,
        hash: AuditHash(row.hash("hash")?).to_string(),
    })
}

impl Db {
    /// Entries of the audit log that pass a filter, at most `limit`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn audit_entries(
        &self,
        filter: &AuditFilter,
        range: AuditRange,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, DbError> {
        let bound = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let (compared, number, order) = match range {
            AuditRange::Before(before) => ("<", before.map_or(i64::MAX, bound), "DESC"),
            AuditRange::After(after) => (">", bound(after), "ASC"),
        };
        let AuditFilter { since, actor, action, subject } = filter;
        let conditions = Conditions::after(2)
            .and("subject = {}", subject.as_ref())
            .and("(actor = {} OR label = {})", actor.as_ref())
            .and("(action = {} OR substr(action, 1, length({}) + 1) = {} || '.')", action.as_ref());
        let sql = format!(
            "SELECT number, at, actor, label, action, subject, details, hash FROM audit_log \
             WHERE number {compared} $1 AND at >= $2{} ORDER BY number {order} LIMIT {limit}",
            conditions.sql
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(number).bind(since.unwrap_or(i64::MIN));
        let query = conditions.bind(query);
        let rows = query.fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("read the audit log"))
    }

    /// Checks the chain of the whole log, and that it reaches the number that was given last.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn check_audit(&self) -> Result<Result<AuditHead, AuditFault>, DbError> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'audit'").fetch_one(&self.pool).await;
        let given = row.and_then(|row| row.number("value")).map_err(failed("read the audit log"))?;
        let mut chain = AuditChain::begin(None);
        let mut after = 0;
        loop {
            let all = AuditFilter::default();
            let page = self.audit_entries(&all, AuditRange::After(after), AUDIT_PAGE_MAX).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            for entry in &page {
                let hash = entry.hash.parse().unwrap_or(AuditHash::START);
                if let Err(fault) = chain.add(&entry.record(), hash) {
                    return Ok(Err(fault));
                }
            }
        }
        Ok(chain.end().and_then(|head| match head.number < given {
            true => Err(AuditFault::Truncated(given)),
            false => Ok(head),
        }))
    }
}
