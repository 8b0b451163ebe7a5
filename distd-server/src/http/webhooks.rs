//! `/v1/webhooks`: addresses to which the origin sends events.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{
    DeliveryState, EventKind, MadeWebhook, NewWebhook, WEBHOOKS_MAX, Webhook, WebhookDelivery,
    WebhookDeliveryList, WebhookList, WebhookRetry, WebhookState, WebhookTest, Word,
};
use distd_peer::clock::unix_now;
use distd_peer::random;

use super::auth::{Caller, ToAdminister, ToView};
use super::body::{JsonBody, PathParams};
use super::route::{Route, routes};
use super::tokens::check_label;
use super::{ApiError, App};
use crate::db::{DeliveryRow, Tried, WebhookRow, host_of};
use crate::origin::{SECRET_BYTES, secret_text, signed};

pub(super) fn routes() -> Vec<Route> {
    routes![list, create, remove, deliveries, test, retry]
}

fn unknown() -> ApiError {
    ApiError::unlisted("webhook of this id", "GET /v1/webhooks")
}

async fn find(app: &App, id: &str) -> Result<WebhookRow, ApiError> {
    app.origin.db().webhook(id).await?.ok_or_else(unknown)
}

/// Registers a webhook. The key of its signatures is shown in this answer alone.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", request_body = NewWebhook, responses(
    (status = 201, body = MadeWebhook)
), security(("token" = ["admin"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    JsonBody(new): JsonBody<NewWebhook>,
) -> Result<(StatusCode, Json<MadeWebhook>), ApiError> {
    check_label(&new.label)?;
    let url = app.origin.webhook_address(&new.url).map_err(|error| {
        let next = "give an address that this origin may send to; docs/webhooks.md says which";
        ApiError::bad_request(error.to_string(), next)
    })?;
    let mut events = Vec::new();
    for kind in EventKind::ALL {
        if new.events.iter().any(|word| word == kind.as_str()) {
            events.push(kind.as_str().to_owned());
        }
    }
    if let Some(unknown) = new.events.iter().find(|word| !events.contains(word)) {
        let all = EventKind::ALL.map(EventKind::as_str).join(", ");
        return Err(ApiError::bad_request(
            format!("{unknown:?} is no kind of event"),
            format!("choose of {all}"),
        ));
    }
    let secret = random::bytes::<SECRET_BYTES>();
    let row = WebhookRow {
        id: format!("wh_{}", hex::encode(random::bytes::<8>())),
        url: url.into(),
        events,
        label: new.label,
        secret: secret.to_vec(),
        created: signed(unix_now()),
        lost: 0,
        delivered: None,
        failing: None,
        error: None,
        waiting: 0,
        given_up: 0,
    };
    if !caller.db(&app).add_webhook(&row).await? {
        let message = format!("the realm can have {WEBHOOKS_MAX} webhooks, and has them");
        return Err(ApiError::conflict(message, "remove one with DELETE /v1/webhooks/{id}"));
    }
    let (id, host) = (row.id, host_of(&row.url));
    tracing::info!(id, host, by = caller.row.label, "webhook registered");
    Ok((StatusCode::CREATED, Json(MadeWebhook { id, secret: secret_text(&secret) })))
}

fn info(row: WebhookRow, is_admin: bool) -> Webhook {
    let state = match (row.failing, row.given_up > 0 || row.lost > 0) {
        (None, _) => WebhookState::Healthy,
        (Some(_), false) => WebhookState::Failing,
        (Some(_), true) => WebhookState::GivenUp,
    };
    Webhook {
        url: if is_admin { row.url } else { host_of(&row.url) },
        id: row.id,
        events: row.events.iter().map(|word| Word::from_text(word)).collect(),
        label: row.label,
        created: row.created,
        state: state.into(),
        waiting: row.waiting,
        given_up: row.given_up,
        lost: row.lost,
        delivered: row.delivered,
        failing: row.failing,
        error: row.error,
    }
}

/// Lists the webhooks and how they fare, the oldest first.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", responses(
    (status = 200, body = WebhookList)
), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToView>,
) -> Result<Json<WebhookList>, ApiError> {
    let rows = app.origin.db().webhooks().await?;
    Ok(Json(WebhookList { webhooks: rows.into_iter().map(|row| info(row, caller.admin)).collect() }))
}

/// Removes a webhook, and the events that wait for it.
#[utoipa::path(delete, path = "/v1/webhooks/{id}", tag = "webhooks", params(("id" = String, Path)), responses(
    (status = 204, description = "Removed")
), security(("token" = ["admin"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
) -> Result<StatusCode, ApiError> {
    if !caller.db(&app).remove_webhook(&id, signed(unix_now())).await? {
        return Err(unknown());
    }
    tracing::info!(id, by = caller.row.label, "webhook removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the newest events of a webhook and what came of them, the newest first.
#[utoipa::path(get, path = "/v1/webhooks/{id}/deliveries", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = WebhookDeliveryList)), security(("token" = ["view"])))]
pub(super) async fn deliveries(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    PathParams(id): PathParams<String>,
) -> Result<Json<WebhookDeliveryList>, ApiError> {
    find(&app, &id).await?;
    let rows = app.origin.db().webhook_deliveries(&id).await?;
    let shown = |row: DeliveryRow| WebhookDelivery {
        next: (row.state == DeliveryState::Waiting).then_some(row.next),
        message: row.message,
        event: row.event,
        at: row.at,
        state: row.state,
        tries: row.tries,
        result: row.result,
    };
    Ok(Json(WebhookDeliveryList { deliveries: rows.into_iter().map(shown).collect() }))
}

/// Sends an event of the kind `webhook.test` now, once, and tells what came of it.
#[utoipa::path(post, path = "/v1/webhooks/{id}/test", tag = "webhooks", params(("id" = String, Path)), responses(
    (status = 200, body = WebhookTest)
), security(("token" = ["admin"])))]
pub(super) async fn test(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
) -> Result<Json<WebhookTest>, ApiError> {
    let hook = find(&app, &id).await?;
    caller.db(&app).note_webhook_test(&id, signed(unix_now())).await?;
    let began = Instant::now();
    let tried = app.origin.test_webhook(&hook).await;
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let delivered = matches!(tried, Tried::Taken(_));
    let (Tried::Taken(result) | Tried::Refused(result) | Tried::Away(result)) = tried;
    Ok(Json(WebhookTest { delivered, result, milliseconds }))
}

/// Tries the events of a webhook that wait or were given up again, from the oldest on.
#[utoipa::path(post, path = "/v1/webhooks/{id}/retry", tag = "webhooks", params(("id" = String, Path)), responses(
    (status = 200, body = WebhookRetry)
), security(("token" = ["admin"])))]
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
) -> Result<Json<WebhookRetry>, ApiError> {
    let events = caller.db(&app).retry_webhook(&id, signed(unix_now())).await?.ok_or_else(unknown)?;
    tracing::info!(id, events, by = caller.row.label, "events are tried again");
    Ok(Json(WebhookRetry { events }))
}
