//! `/v1/products/{product}/channels/{channel}/rollouts`: rollouts of releases in waves.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{
    NewRollout, ROLLOUT_FAILURES_MAX, ROLLOUT_REASON_MAX, ROLLOUT_TURNS_MAX, ROLLOUTS_MAX, Rollout,
    RolloutDetail, RolloutEvent, RolloutFailure, RolloutList, RolloutOrder, RolloutTurn, RolloutWave,
};
use distd_core::fleet::SelectorError;
use distd_core::fleet::report::{AttemptState, SourceBytes};
use distd_core::fleet::rollout::{Conditions, Policy, RolloutId, WavesError};
use distd_core::names::{Name, NameError};
use distd_core::text::shown;
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToMoveChannels, ToRead};
use super::body::{JsonBody, PathParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::db::{RolloutRow, TurnRow};
use crate::origin::{self, RolloutStatus};

pub(super) fn routes() -> Vec<Route> {
    routes![list, show, create, order]
}

/// Longest text of a device that is shown, characters.
const DETAIL_MAX: usize = 200;

fn rollout(row: &RolloutRow) -> Rollout {
    let policy = &row.policy;
    Rollout {
        id: row.id.to_string(),
        product: row.product.to_string(),
        channel: row.channel.to_string(),
        version: row.version.to_string(),
        from: row.from.to_string(),
        state: row.stage.into(),
        reason: row.reason.clone(),
        waves: policy.waves.to_string(),
        soak: policy.gate.soak,
        success: policy.gate.success.to_string(),
        halt_on: policy.gate.halt_on.to_string(),
        after_halt: policy.after_halt.into(),
        attempts: policy.attempts,
        timeout: policy.timeout,
        not_before: policy.not_before,
        selector: policy.selector.as_ref().map(ToString::to_string),
        requires: policy.requires.iter().map(ToString::to_string).collect(),
        patch_wait: policy.patch_wait,
        conditions: policy.conditions.clone(),
        approval: row.approval.into(),
        created: row.created,
        updated: row.updated,
    }
}

/// Reads the policy of a request.
fn policy(new: &NewRollout) -> Result<Policy, ApiError> {
    fn parsed<T: std::str::FromStr<Err = WavesError>>(
        text: Option<&String>,
        default: T,
    ) -> Result<T, ApiError> {
        let wrong = |e: WavesError| ApiError::bad_request(e.to_string(), "correct the policy of the rollout");
        text.map_or(Ok(default), |text| text.parse().map_err(wrong))
    }
    let mut policy = Policy::default();
    policy.waves = parsed(new.waves.as_ref(), policy.waves)?;
    policy.gate.success = parsed(new.success.as_ref(), policy.gate.success)?;
    policy.gate.halt_on = parsed(new.halt_on.as_ref(), policy.gate.halt_on)?;
    policy.gate.soak = new.soak.unwrap_or(policy.gate.soak);
    policy.after_halt = new.after_halt.unwrap_or(policy.after_halt);
    policy.attempts = new.attempts.unwrap_or(policy.attempts);
    policy.timeout = new.timeout.unwrap_or(policy.timeout);
    policy.not_before = new.not_before;
    policy.patch_wait = new.patch_wait.unwrap_or(policy.patch_wait);
    policy.conditions = new.conditions.clone();
    if let Some(text) = &new.selector {
        let wrong = |e: SelectorError| {
            ApiError::bad_request(e.to_string(), "correct the selector; docs/fleet.md describes selectors")
        };
        policy.selector = Some(text.parse().map_err(wrong)?);
    }
    for version in &new.requires {
        let wrong = |e: NameError| {
            ApiError::bad_request(format!("{version:?} is no version: {e}"), "name a released version")
        };
        policy.requires.push(version.parse().map_err(wrong)?);
    }
    if new.requires.contains(&new.version) {
        let message = format!("the rollout of {} requires itself", new.version);
        return Err(ApiError::bad_request(message, "name versions that come before it, or none"));
    }
    Ok(policy)
}

fn turn(row: TurnRow) -> RolloutTurn {
    RolloutTurn { node: row.node.to_string(), group: row.group, given: row.granted }
}

/// A rollout with the sums of its attempts.
pub(super) async fn detail(app: &App, status: RolloutStatus) -> Result<RolloutDetail, ApiError> {
    let waits_for = app.origin.rollout_waits_for(&status).await?.map(str::to_owned);
    let RolloutStatus { row, waves, .. } = &status;
    let turns = match row.policy.conditions {
        Conditions { at_once: None, budget: None, .. } => Vec::new(),
        _ => app.origin.db().turns(row, ROLLOUT_TURNS_MAX, unix_now()).await?,
    };
    let attempts = app.origin.db().attempts(&row.id).await?;
    let events = app.origin.db().rollout_events(&row.id).await?;
    let mut bytes: HashMap<usize, SourceBytes> = HashMap::new();
    let mut failures = Vec::new();
    for attempt in attempts {
        let Some(wave) = status.wave_of(&attempt.node) else { continue };
        let sum = bytes.entry(wave).or_default();
        sum.disk = sum.disk.saturating_add(attempt.bytes.disk);
        sum.neighbours = sum.neighbours.saturating_add(attempt.bytes.neighbours);
        sum.relay = sum.relay.saturating_add(attempt.bytes.relay);
        sum.origin = sum.origin.saturating_add(attempt.bytes.origin);
        let has_failed = matches!(attempt.state, AttemptState::Failed | AttemptState::RolledBack);
        if has_failed && failures.len() < ROLLOUT_FAILURES_MAX {
            failures.push(RolloutFailure {
                node: attempt.node.to_string(),
                wave: wave + 1,
                attempt: attempt.number,
                state: attempt.state.into(),
                kind: attempt.failure,
                // A device writes what it likes.
                detail: shown(&attempt.detail, DETAIL_MAX),
            });
        }
    }
    let sizes = row.policy.waves.sizes();
    let wave = |(at, wave): (usize, &origin::WaveStatus)| {
        let bytes = bytes.remove(&at).unwrap_or_default();
        RolloutWave {
            size: sizes.get(at).map(ToString::to_string).unwrap_or_default(),
            opened: wave.row.opened,
            devices: wave.counts.members,
            succeeded: wave.counts.succeeded,
            failed: wave.counts.failed,
            trying: wave.counts.trying,
            bytes_disk: bytes.disk,
            bytes_neighbours: bytes.neighbours,
            bytes_relay: bytes.relay,
            bytes_origin: bytes.origin,
        }
    };
    let event = |event: crate::db::RolloutEvent| {
        let by_token = !event.by.token.is_empty();
        RolloutEvent {
            at: event.at,
            event: event.event,
            detail: event.detail,
            token: by_token.then_some(event.by.token),
            label: by_token.then_some(event.by.label),
        }
    };
    Ok(RolloutDetail {
        waves: waves.iter().enumerate().map(wave).collect(),
        rollout: rollout(row),
        waits_for,
        turns: turns.into_iter().map(turn).collect(),
        failures,
        events: events.into_iter().map(event).collect(),
    })
}

async fn known_channel(app: &App, product: &Name, channel: &Name) -> Result<(), ApiError> {
    if app.origin.db().channel(product, channel).await?.is_none() {
        products::find(app, product).await?;
        return Err(ApiError::unknown_channel(product, channel));
    }
    Ok(())
}

/// Lists the rollouts of a channel, the newest first.
#[utoipa::path(get, path = "/v1/products/{product}/channels/{channel}/rollouts", tag = "rollouts",
    params(("product" = String, Path), ("channel" = String, Path)),
    responses((status = 200, body = RolloutList)), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams((product, channel)): PathParams<(Name, Name)>,
) -> Result<Json<RolloutList>, ApiError> {
    caller.may(&product)?;
    let rows = app.origin.db().rollouts_of(&product, &channel, ROLLOUTS_MAX).await?;
    if rows.is_empty() {
        known_channel(&app, &product, &channel).await?;
    }
    Ok(Json(RolloutList { rollouts: rows.iter().map(rollout).collect() }))
}

/// The rollout of a channel that is under way, or else the newest.
pub(super) async fn current(
    app: &App,
    product: &Name,
    channel: &Name,
) -> Result<Option<RolloutRow>, ApiError> {
    let db = app.origin.db();
    Ok(match db.rollout_under_way(product, channel).await? {
        Some(row) => Some(row),
        None => db.rollouts_of(product, channel, 1).await?.into_iter().next(),
    })
}

/// Describes the rollout of a channel that is under way, or else the newest: its waves, the devices
/// on which it failed, and its changes.
#[utoipa::path(get, path = "/v1/products/{product}/channels/{channel}/rollout", tag = "rollouts",
    params(("product" = String, Path), ("channel" = String, Path)),
    responses((status = 200, body = RolloutDetail)), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams((product, channel)): PathParams<(Name, Name)>,
) -> Result<Json<RolloutDetail>, ApiError> {
    caller.may(&product)?;
    let Some(row) = current(&app, &product, &channel).await? else {
        known_channel(&app, &product, &channel).await?;
        return Err(ApiError::unlisted(
            &format!("rollout of {product}:{channel}"),
            "GET /v1/products/{product}/channels/{channel}/rollouts",
        ));
    };
    let status = app.origin.rollout_status(&row).await?;
    Ok(Json(detail(&app, status).await?))
}

/// Begins a rollout of a release to the devices of a channel, in waves. The channel points to the
/// release when every wave has succeeded.
#[utoipa::path(post, path = "/v1/products/{product}/channels/{channel}/rollouts", tag = "rollouts",
    params(("product" = String, Path), ("channel" = String, Path)), request_body = NewRollout,
    responses((status = 201, body = RolloutDetail)), security(("token" = ["channel"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToMoveChannels>,
    PathParams((product, channel)): PathParams<(Name, Name)>,
    JsonBody(new): JsonBody<NewRollout>,
) -> Result<(StatusCode, Json<RolloutDetail>), ApiError> {
    caller.may_move(&product, &channel)?;
    let policy = policy(&new)?;
    products::find(&app, &product).await?;
    let version: Name = new.version.parse().map_err(|_| ApiError::unknown_version(&product, &new.version))?;
    let at = app.clone();
    let work = app.detached(async move {
        let names = (&product, &channel, &version);
        let status = at.origin.start_rollout(names, &policy, &caller.mover()).await?;
        let (by, id) = (&caller.row.label, status.row.id);
        tracing::info!(%product, %channel, %version, rollout = %id, waves = %policy.waves, by, "rollout began");
        Ok(status)
    });
    let status = work.await?;
    Ok((StatusCode::CREATED, Json(detail(&app, status).await?)))
}

/// Pauses, resumes, halts or rolls back the rollout of a channel that is under way.
#[utoipa::path(post, path = "/v1/products/{product}/channels/{channel}/rollout", tag = "rollouts",
    params(("product" = String, Path), ("channel" = String, Path)), request_body = RolloutOrder,
    responses((status = 200, body = RolloutDetail)), security(("token" = ["channel"])))]
pub(super) async fn order(
    State(app): State<Arc<App>>,
    caller: Caller<ToMoveChannels>,
    PathParams((product, channel)): PathParams<(Name, Name)>,
    JsonBody(wanted): JsonBody<RolloutOrder>,
) -> Result<Json<RolloutDetail>, ApiError> {
    caller.may_move(&product, &channel)?;
    if wanted.reason.len() > ROLLOUT_REASON_MAX {
        let message = format!("a reason has at most {ROLLOUT_REASON_MAX} bytes, not {}", wanted.reason.len());
        return Err(ApiError::bad_request(message, "shorten the reason"));
    }
    let reason = shown(&wanted.reason, ROLLOUT_REASON_MAX);
    known_channel(&app, &product, &channel).await?;
    let order = wanted.order;
    let expected = wanted.rollout.as_deref().map(str::parse::<RolloutId>).transpose();
    let expected =
        expected.map_err(|e| ApiError::bad_request(e.to_string(), "name the rollout by its id"))?;
    let at = app.clone();
    let work = app.detached(async move {
        Ok(at
            .origin
            .order_rollout(&product, &channel, (order, expected.as_ref()), &reason, &caller.mover())
            .await?)
    });
    let status = work.await?;
    Ok(Json(detail(&app, status).await?))
}
