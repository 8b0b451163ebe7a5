//! Webhooks, and the events that wait for them. An event is recorded in the transaction of the act
//! that it is about, so it is sent if and only if the act is done, also after a crash.
//!
//! Table `webhooks`: addresses of operators, their keys and how they fare.
//!
//! Table `webhook_deliveries`: events on their way to each webhook, about 1 kB each; taken ones
//! are kept for a week, given-up ones for a month.

use distd_core::api::{DELIVERIES_MAX, DeliveryState, EventKind, WEBHOOKS_MAX, Word};
use distd_peer::random;
use serde_json::{Map, Value, json};
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::audit::{Acting, append};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// Most events that wait for one webhook. A receiver that is away for days loses later ones, and
/// the webhook says how many.
const WAITING_MAX: i64 = 10_000;

/// Time after which an event that no try brought to its receiver is given up, seconds.
const GIVE_UP_SECONDS: i64 = 3 * 24 * 3600;

/// Time for which events that were taken are kept, seconds.
const DELIVERED_SECONDS: i64 = 7 * 24 * 3600;

/// Time for which events that were given up are kept, seconds.
const GIVEN_UP_SECONDS: i64 = 30 * 24 * 3600;

/// Pauses after the first tries, seconds; the last one stays.
const PAUSES: [i64; 8] = [2, 10, 60, 300, 900, 3600, 2 * 3600, 4 * 3600];

/// Pause after so many tries, seconds.
fn pause_after(tries: u64) -> i64 {
    let last = PAUSES.len() - 1;
    PAUSES[usize::try_from(tries).unwrap_or(last).min(last)]
}

/// One webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Its id.
    pub id: String,
    /// Address.
    pub url: String,
    /// Kinds of events, as words; empty for every kind.
    pub events: Vec<String>,
    /// Text for operators.
    pub label: String,
    /// Key of the signatures.
    pub secret: Vec<u8>,
    /// Time of its registration.
    pub created: UnixSeconds,
    /// Events that were not kept.
    pub lost: u64,
    /// Time at which an event was taken last.
    pub delivered: Option<UnixSeconds>,
    /// Time since which every try has failed.
    pub failing: Option<UnixSeconds>,
    /// Reason why the newest try failed.
    pub error: Option<String>,
    /// Events that wait.
    pub waiting: u64,
    /// Events that were given up.
    pub given_up: u64,
}

/// One event on its way to a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its number, which grows with each event.
    pub number: u64,
    /// Id of the message.
    pub message: String,
    /// Kind of the event, a word.
    pub event: Word<EventKind>,
    /// Time of the event.
    pub at: UnixSeconds,
    /// Body of the request.
    pub body: String,
    /// State.
    pub state: Word<DeliveryState>,
    /// Tries so far.
    pub tries: u64,
    /// Time of the next try, while it waits.
    pub next: UnixSeconds,
    /// Result of the newest try.
    pub result: Option<String>,
}

/// Result of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The receiver took the event.
    Taken(String),
    /// The receiver does not take this event, but takes requests.
    Refused(String),
    /// The receiver takes nothing now.
    Away(String),
}

fn webhook(row: &AnyRow) -> Result<WebhookRow, sqlx::Error> {
    let events = row.text("events")?;
    Ok(WebhookRow {
        id: row.text("id")?,
        url: row.text("url")?,
        events: events.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        label: row.text("label")?,
        secret: row.blob("secret")?,
        created: row.time("created")?,
        lost: row.number("lost")?,
        delivered: row.time_or_none("delivered")?,
        failing: row.time_or_none("failing")?,
        error: row.text_or_none("error")?,
        waiting: row.number("waiting")?,
        given_up: row.number("given_up")?,
    })
}

fn delivery(row: &AnyRow) -> Result<DeliveryRow, sqlx::Error> {
    Ok(DeliveryRow {
        number: row.number("number")?,
        message: row.text("message")?,
        event: Word::from_text(&row.text("event")?),
        at: row.time("at")?,
        body: row.text("body")?,
        state: Word::from_text(&row.text("state")?),
        tries: row.number("tries")?,
        next: row.time("next_at")?,
        result: row.text_or_none("result")?,
    })
}

const WEBHOOKS: &str = "SELECT id, url, events, label, secret, created, lost, delivered, failing, error, \
     (SELECT COUNT(*) FROM webhook_deliveries d WHERE d.webhook = w.id AND d.state = 'waiting') AS waiting, \
     (SELECT COUNT(*) FROM webhook_deliveries d WHERE d.webhook = w.id AND d.state = 'given_up') AS given_up \
     FROM webhooks w";

const DELIVERIES: &str =
    "SELECT number, message, event, at, body, state, tries, next_at, result FROM webhook_deliveries";

/// Body of an event.
pub fn event_body(event: EventKind, at: UnixSeconds, data: &Value) -> String {
    let time = jiff::Timestamp::from_second(at).unwrap_or_default();
    json!({"type": event.as_str(), "timestamp": time.to_string(), "data": data}).to_string()
}

/// Fresh id of a message.
pub fn message_id() -> String {
    format!("msg_{}", hex::encode(random::bytes::<12>()))
}

/// Records an event for every webhook that asks for its kind. `data` is an object without secrets.
pub(super) async fn emit(
    tx: &mut Transaction<'static, Any>,
    event: EventKind,
    data: &Value,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query("SELECT id, events FROM webhooks ORDER BY id").fetch_all(&mut **tx).await?;
    let mut wanted = Vec::new();
    for row in &rows {
        let events = row.text("events")?;
        if events.is_empty() || events.split(',').any(|word| word == event.as_str()) {
            wanted.push(row.text("id")?);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    // The lock of the number makes events take turns until their transactions end, so that a later
    // number is never seen before an earlier one.
    let row = sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'webhook' RETURNING value")
        .fetch_one(&mut **tx)
        .await?;
    let number = row.number("value")?;
    let (message, body) = (message_id(), event_body(event, now, data));
    for id in wanted {
        let put = sqlx::query(
            "INSERT INTO webhook_deliveries (webhook, number, message, event, at, body, state, tries, next_at, result) \
             SELECT id, $1, $2, $3, $4, $5, 'waiting', 0, $6, NULL FROM webhooks WHERE id = $7 AND $8 > \
             (SELECT COUNT(*) FROM webhook_deliveries WHERE webhook = $9 AND state = 'waiting')",
        )
        .bind(signed(number))
        .bind(message.clone())
        .bind(event.as_str())
        .bind(now)
        .bind(body.clone())
        .bind(now)
        .bind(id.clone())
        .bind(WAITING_MAX)
        .bind(id.clone())
        .execute(&mut **tx)
        .await?;
        if put.rows_affected() == 0 {
            sqlx::query("UPDATE webhooks SET lost = lost + 1 WHERE id = $1")
                .bind(id)
                .execute(&mut **tx)
                .await?;
        }
    }
    Ok(())
}

/// The event of an act in the audit log, if webhooks are told of such acts.
fn kind_of(action: &str) -> Option<EventKind> {
    Some(match action {
        "release.withdraw" => EventKind::ReleaseWithdrawn,
        "release.unwithdraw" => EventKind::ReleaseRestored,
        "release.remove" => EventKind::ReleaseRemoved,
        "rollout.started" => EventKind::RolloutStarted,
        "rollout.opened" => EventKind::RolloutWaveOpened,
        "rollout.paused" => EventKind::RolloutPaused,
        "rollout.resumed" => EventKind::RolloutResumed,
        "rollout.halted" => EventKind::RolloutHalted,
        "rollout.complete" => EventKind::RolloutFinished,
        "rollout.rolled_back" => EventKind::RolloutRolledBack,
        "rollout.superseded" => EventKind::RolloutSuperseded,
        "node.enrol" => EventKind::NodeEnrolled,
        "node.revoke" => EventKind::NodeRevoked,
        _ => return None,
    })
}

/// Records the event of an act that the audit log has just taken, if there is one.
pub(super) async fn of_act(
    tx: &mut Transaction<'static, Any>,
    acting: &Acting,
    action: &str,
    subject: &str,
    details: &Value,
) -> Result<(), sqlx::Error> {
    let Some(event) = kind_of(action) else { return Ok(()) };
    let mut data = match details {
        Value::Object(details) => details.clone(),
        _ => Map::new(),
    };
    let (kind, _) = action.split_once('.').unwrap_or((action, ""));
    let mut put = |name: &str, text: &str| data.insert(name.to_owned(), text.into());
    match (kind, subject.split_once('@'), subject.split_once(':')) {
        ("release", Some((product, version)), _) => {
            put("product", product);
            put("version", version);
        }
        ("rollout", _, Some((product, channel))) => {
            put("product", product);
            put("channel", channel);
        }
        _ => {
            put("node", subject);
        }
    }
    put("by", acting.actor.name());
    emit(tx, event, &Value::Object(data), acting.at).await
}

impl Db {
    /// Registers a webhook; `false` when there are as many as there can be.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn add_webhook(&self, new: &WebhookRow) -> Result<bool, DbError> {
        let what = "register the webhook";
        let mut tx = self.begin_write().await?;
        // Registrations take turns.
        sqlx::query("UPDATE counters SET value = value WHERE name = 'webhook'")
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let put = sqlx::query(
            "INSERT INTO webhooks (id, url, events, label, secret, created, lost, delivered, failing, error, paused_until) \
             SELECT $1, $2, $3, $4, $5, $6, 0, NULL, NULL, NULL, 0 FROM counters \
             WHERE name = 'webhook' AND (SELECT COUNT(*) FROM webhooks) < $7",
        )
        .bind(new.id.clone())
        .bind(new.url.clone())
        .bind(new.events.join(","))
        .bind(new.label.clone())
        .bind(new.secret.clone())
        .bind(new.created)
        .bind(signed(WEBHOOKS_MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        if put.rows_affected() == 0 {
            return Ok(false);
        }
        // Path and query of an address may hold a secret of the receiver.
        let details = json!({"host": host_of(&new.url), "events": new.events, "label": new.label});
        append(&mut tx, &self.acting.at(new.created), "webhook.add", &new.id, &details)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// Removes a webhook and the events that wait for it; `false` when there is none.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn remove_webhook(&self, id: &str, now: UnixSeconds) -> Result<bool, DbError> {
        let what = "remove the webhook";
        let mut tx = self.begin_write().await?;
        let gone = sqlx::query("DELETE FROM webhooks WHERE id = $1")
            .bind(id.to_owned())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if gone.rows_affected() == 0 {
            return Ok(false);
        }
        append(&mut tx, &self.acting.at(now), "webhook.remove", id, &json!({}))
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// Has events that wait or were given up tried again now. Returns their number; `None` without
    /// such a webhook.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn retry_webhook(&self, id: &str, now: UnixSeconds) -> Result<Option<u64>, DbError> {
        let what = "try the events again";
        let mut tx = self.begin_write().await?;
        let known = sqlx::query("UPDATE webhooks SET paused_until = 0, lost = 0 WHERE id = $1")
            .bind(id.to_owned())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        if known.rows_affected() == 0 {
            return Ok(None);
        }
        let done = sqlx::query(
            "UPDATE webhook_deliveries SET state = 'waiting', next_at = $1, tries = 0 \
             WHERE webhook = $2 AND state <> 'delivered'",
        )
        .bind(now)
        .bind(id.to_owned())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?
        .rows_affected();
        append(&mut tx, &self.acting.at(now), "webhook.retry", id, &json!({ "events": done }))
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(Some(done))
    }

    /// Notes in the audit log that somebody tries a webhook.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn note_webhook_test(&self, id: &str, now: UnixSeconds) -> Result<(), DbError> {
        let what = "note the test of the webhook";
        let mut tx = self.begin_write().await?;
        append(&mut tx, &self.acting.at(now), "webhook.test", id, &json!({})).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// All webhooks, the oldest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn webhooks(&self) -> Result<Vec<WebhookRow>, DbError> {
        let sql = format!("{WEBHOOKS} ORDER BY created, id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(webhook).collect()).map_err(failed("list the webhooks"))
    }

    /// One webhook.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn webhook(&self, id: &str) -> Result<Option<WebhookRow>, DbError> {
        let sql = format!("{WEBHOOKS} WHERE id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_owned()).fetch_optional(&self.pool).await;
        row.and_then(|row| row.as_ref().map(webhook).transpose()).map_err(failed("read the webhook"))
    }

    /// Newest deliveries of a webhook, the newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn webhook_deliveries(&self, id: &str) -> Result<Vec<DeliveryRow>, DbError> {
        let sql = format!(
            "{DELIVERIES} WHERE webhook = $1 ORDER BY number DESC LIMIT {}",
            i64::from(DELIVERIES_MAX)
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_owned()).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(delivery).collect()).map_err(failed("list the deliveries"))
    }

    /// Webhooks that have an event to be tried at `now`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn webhooks_due(&self, now: UnixSeconds) -> Result<Vec<String>, DbError> {
        let rows = sqlx::query(
            "SELECT id FROM webhooks w WHERE paused_until <= $1 AND EXISTS (SELECT 1 FROM webhook_deliveries d \
             WHERE d.webhook = w.id AND d.state = 'waiting' AND d.next_at <= $2)",
        )
        .bind(now)
        .bind(now)
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(|row| row.text("id")).collect())
            .map_err(failed("look for events that wait"))
    }

    /// The oldest event of a webhook that is to be tried at `now`; `None` while it is paused.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn next_delivery(&self, id: &str, now: UnixSeconds) -> Result<Option<DeliveryRow>, DbError> {
        let sql = format!(
            "{DELIVERIES} WHERE webhook = $1 AND state = 'waiting' AND next_at <= $2 \
             AND EXISTS (SELECT 1 FROM webhooks WHERE id = $3 AND paused_until <= $4) ORDER BY number LIMIT 1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.to_owned())
            .bind(now)
            .bind(id.to_owned())
            .bind(now)
            .fetch_optional(&self.pool)
            .await;
        row.and_then(|row| row.as_ref().map(delivery).transpose()).map_err(failed("read the next event"))
    }

    /// Records the result of a try.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn record_try(
        &self,
        id: &str,
        tried: &DeliveryRow,
        result: &Tried,
        now: UnixSeconds,
    ) -> Result<DeliveryState, DbError> {
        let what = "record the delivery";
        let mut tx = self.begin_write().await?;
        let (state, next) = match result {
            Tried::Taken(_) => (DeliveryState::Delivered, now),
            _ if now.saturating_sub(tried.at) >= GIVE_UP_SECONDS => (DeliveryState::GivenUp, now),
            // Receivers that failed together are not tried again together.
            _ => {
                let pause = pause_after(tried.tries);
                let jitter = (pause as f64 * 0.25 * random::fraction()) as i64;
                (DeliveryState::Waiting, now.saturating_add(pause + jitter))
            }
        };
        let (Tried::Taken(text) | Tried::Refused(text) | Tried::Away(text)) = result;
        sqlx::query(
            "UPDATE webhook_deliveries SET state = $1, tries = tries + 1, next_at = $2, result = $3 \
             WHERE webhook = $4 AND number = $5 AND state = 'waiting'",
        )
        .bind(state.as_str())
        .bind(next)
        .bind(text.clone())
        .bind(id.to_owned())
        .bind(signed(tried.number))
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?;
        let query = match result {
            Tried::Taken(_) => sqlx::query(
                "UPDATE webhooks SET delivered = $1, failing = NULL, error = NULL, paused_until = 0 WHERE id = $2",
            )
            .bind(now)
            .bind(id.to_owned()),
            Tried::Refused(_) => {
                sqlx::query("UPDATE webhooks SET failing = COALESCE(failing, $1), error = $2 WHERE id = $3")
                    .bind(now)
                    .bind(text.clone())
                    .bind(id.to_owned())
            }
            Tried::Away(_) => sqlx::query(
                "UPDATE webhooks SET failing = COALESCE(failing, $1), error = $2, paused_until = $3 WHERE id = $4",
            )
            .bind(now)
            .bind(text.clone())
            // An event that was given up does not hold the next one back.
            .bind(if state == DeliveryState::GivenUp { 0 } else { next })
            .bind(id.to_owned()),
        };
        query.execute(&mut *tx).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(state)
    }

    /// Forgets events that were taken or given up long ago.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn forget_deliveries(&self, now: UnixSeconds) -> Result<u64, DbError> {
        sqlx::query(
            "DELETE FROM webhook_deliveries WHERE (state = 'delivered' AND next_at < $1) \
             OR (state = 'given_up' AND next_at < $2)",
        )
        .bind(now.saturating_sub(DELIVERED_SECONDS))
        .bind(now.saturating_sub(GIVEN_UP_SECONDS))
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("forget old deliveries"))
    }

    /// Number of events that wait, and of those that were given up.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn delivery_counts(&self) -> Result<(u64, u64), DbError> {
        let what = "count the deliveries";
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM webhook_deliveries WHERE state = 'waiting') AS waiting, \
             (SELECT COUNT(*) FROM webhook_deliveries WHERE state = 'given_up') AS given_up",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed(what))?;
        let count = |column| row.number(column).map_err(failed(what));
        Ok((count("waiting")?, count("given_up")?))
    }
}

/// Scheme, host and port of an address.
pub(crate) fn host_of(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(url) => url.origin().ascii_serialization(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_at_the_longest() {
        let pauses: Vec<i64> = (0..10).map(pause_after).collect();
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[8], pause_after(u64::MAX)), (2, 4 * 3600, 4 * 3600));
    }

    #[test]
    fn an_address_is_named_without_what_may_be_secret() {
        assert_eq!(host_of("https://hooks.example.com/T0/B0/secret?key=1"), "https://hooks.example.com");
        assert_eq!(host_of("http://[::1]:9000/x"), "http://[::1]:9000");
    }
}
