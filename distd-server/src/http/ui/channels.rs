//! A channel: its rollout with waves and failures, and orders about it.

use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use distd_core::api::{
    Channel, ChannelChange, NewRollout, Release, Rollout, RolloutDetail, RolloutOrder, RolloutStage,
    RolloutVerb, RolloutWave, Scope,
};
use distd_core::fleet::report::SourceBytes;
use distd_core::names::Name;

use super::super::auth::{ToMoveChannels, ToRead};
use super::super::body::{JsonBody, PathParams, QueryParams};
use super::super::{ApiError, App, channels, releases, rollouts};
use super::charts::{Part, progress, sources};
use super::filters;
use super::forms::{Form, PagePath};
use super::page::{Frame, Page, Stop};
use super::products::offered;
use super::session::Visitor;
use super::sums;

/// Most earlier rollouts that the page lists.
const EARLIER_MAX: usize = 20;

/// Most releases that the form offers, the newest.
const LATER_MAX: usize = 200;

/// Most changes of the channel that the page lists.
const CHANGES_MAX: u32 = 20;

#[derive(Template)]
#[template(path = "ui/channel.html")]
struct ChannelPage {
    frame: Frame,
    channel: Channel,
    detail: Option<Arc<RolloutDetail>>,
    waves: Vec<Wave>,
    bytes: Vec<Part>,
    earlier: Vec<Rollout>,
    changes: Vec<ChannelChange>,
    /// Orders that can be given now, with what each does.
    orders: Vec<Order>,
    /// Releases to which a rollout can lead.
    later: Vec<Release>,
    can_start: bool,
}

struct Wave {
    wave: RolloutWave,
    parts: Vec<Part>,
}

struct Order {
    word: &'static str,
    label: &'static str,
    explained: &'static str,
}

const PAUSE: Order = Order {
    word: "pause",
    label: "Pause",
    explained: "No further device begins until the rollout is resumed.",
};
const RESUME: Order = Order { word: "resume", label: "Resume", explained: "The rollout goes on." };
const HALT: Order =
    Order { word: "halt", label: "Halt", explained: "No further device begins, as after too many failures." };
const ROLL_BACK: Order = Order {
    word: "rollback",
    label: "Roll back",
    explained: "The rollout ends, and devices that have the release go back to the channel's.",
};
const APPROVE: Order = Order {
    word: "approve",
    label: "Approve",
    explained: "The first wave may open. Another token than the one that began it approves.",
};

fn orders(detail: &RolloutDetail) -> Vec<Order> {
    let mut orders = match detail.rollout.state.known() {
        Some(RolloutStage::Open) => vec![PAUSE, HALT, ROLL_BACK],
        Some(RolloutStage::Paused | RolloutStage::Halted) => vec![RESUME, ROLL_BACK],
        _ => Vec::new(),
    };
    if detail.waits_for.as_deref() == Some("approval") {
        orders.insert(0, APPROVE);
    }
    orders
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PagePath((product, name)): PagePath<(Name, Name)>,
) -> Result<Response, Stop> {
    let caller = visitor.caller::<ToRead>()?;
    let at = || PathParams((product.clone(), name.clone()));
    let Json(channel) = channels::show(State(app.clone()), caller, at()).await?;
    let Json(list) = rollouts::list(State(app.clone()), visitor.caller()?, at()).await?;
    let detail = match rollouts::current(&app, &product, &name).await? {
        None => None,
        Some(row) => Some(sums::of_rollout(&app, row).await?),
    };
    let of = PathParams(product.clone());
    let Json(releases) = releases::list(State(app.clone()), visitor.caller()?, of, offered()).await?;
    let page = QueryParams(channels::Page::newest(CHANGES_MAX));
    let Json(history) = channels::history(State(app.clone()), visitor.caller()?, at(), page).await?;
    let may_move = visitor.may(Scope::Channel)
        && visitor.caller::<ToMoveChannels>().is_ok_and(|caller| caller.may_move(&product, &name).is_ok());
    let under_way = detail
        .as_ref()
        .is_some_and(|detail| detail.rollout.state.known().is_some_and(|stage| stage.as_seen().is_some()));
    let current = releases.releases.iter().find(|release| release.version == channel.version);
    let newest = current.and_then(|release| release.sequence);
    let mut later = releases.releases.clone();
    later.retain(|release| release.sequence > newest);
    later.truncate(LATER_MAX);
    let shown = detail.as_ref().map(|detail| detail.rollout.id.clone());
    let page = ChannelPage {
        frame: visitor.frame(format!("{product}:{name}"), "products"),
        waves: detail.iter().flat_map(|detail| &detail.waves).cloned().map(wave).collect(),
        bytes: detail.as_deref().map(bytes).unwrap_or_default(),
        orders: detail.as_deref().filter(|_| may_move).map(orders).unwrap_or_default(),
        earlier: list
            .rollouts
            .into_iter()
            .filter(|rollout| Some(&rollout.id) != shown.as_ref())
            .take(EARLIER_MAX)
            .collect(),
        changes: history.changes,
        can_start: may_move && !under_way && !later.is_empty(),
        channel,
        detail,
        later,
    };
    Ok(Page(page).into_response())
}

fn wave(wave: RolloutWave) -> Wave {
    let parts = progress(wave.devices, wave.succeeded, wave.trying, wave.failed);
    Wave { wave, parts }
}

/// Bytes by source over all waves.
fn bytes(detail: &RolloutDetail) -> Vec<Part> {
    let sum = |of: fn(&RolloutWave) -> u64| detail.waves.iter().map(of).fold(0, u64::saturating_add);
    sources(SourceBytes {
        disk: sum(|wave| wave.bytes_disk),
        neighbours: sum(|wave| wave.bytes_neighbours),
        relay: sum(|wave| wave.bytes_relay),
        origin: sum(|wave| wave.bytes_origin),
    })
}

/// Begins a rollout.
pub(super) async fn start(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PagePath((product, name)): PagePath<(Name, Name)>,
    form: Form,
) -> Result<Response, Stop> {
    visitor.check_word(form.get("word"))?;
    let text = |field: &str| form.get(field).map(|value| value.trim().to_owned());
    let minutes = |field: &str| -> Result<Option<u64>, ApiError> {
        let wrong = |_| {
            let message = format!("the field {field:?} holds no number of minutes");
            ApiError::bad_request(message, "go back and correct the field")
        };
        form.get(field)
            .map(|value| value.trim().parse::<u32>().map_err(wrong))
            .transpose()
            .map(|minutes| minutes.map(|minutes| u64::from(minutes) * 60))
    };
    let new = NewRollout {
        version: form.need("version")?.to_owned(),
        waves: text("waves"),
        soak: minutes("soak")?,
        success: text("success"),
        halt_on: text("halt_on"),
        selector: text("for"),
        ..NewRollout::default()
    };
    let to = format!("/ui/products/{product}/channels/{name}");
    let caller = visitor.caller()?;
    let at = PathParams((product, name));
    let (_, Json(_)) = rollouts::create(State(app), caller, at, JsonBody(new)).await?;
    Ok(Redirect::to(&to).into_response())
}

/// Gives an order about the rollout that is under way.
pub(super) async fn order(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PagePath((product, name)): PagePath<(Name, Name)>,
    form: Form,
) -> Result<Response, Stop> {
    visitor.check_word(form.get("word"))?;
    let word = form.need("order")?;
    let order: RolloutVerb = serde_json::from_value(serde_json::Value::from(word)).map_err(|_| {
        ApiError::bad_request(format!("{word:?} is no order"), "go back and load the page again")
    })?;
    // The rollout that the person saw, which may have been followed by another one.
    let wanted = RolloutOrder {
        order,
        rollout: form.get("rollout").map(str::to_owned),
        reason: form.get("reason").unwrap_or_default().trim().to_owned(),
    };
    let to = format!("/ui/products/{product}/channels/{name}");
    let at = PathParams((product, name));
    let Json(_) = rollouts::order(State(app), visitor.caller()?, at, JsonBody(wanted)).await?;
    Ok(Redirect::to(&to).into_response())
}
