//! The first page: the fleet, rollouts under way, and what needs somebody.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use distd_core::api::{FleetRelease, FleetStatus, RolloutStage, RolloutWave, Scope};
use distd_core::names::Name;

use super::super::auth::{ToRead, ToView};
use super::super::{ApiError, App, state};
use super::charts::{History, Part, bar, progress, series};
use super::filters;
use super::page::{Frame, Page, Stop};
use super::session::Visitor;
use super::sums;

/// Most rollouts under way that the page describes.
const ROLLOUTS_MAX: usize = 20;

/// Most channels of which the page draws the devices over time: those with the most devices.
const CHARTS_MAX: usize = 4;

/// Time that a chart shows, seconds.
const CHART_SECONDS: i64 = 30 * 86_400;

#[derive(Template)]
#[template(path = "ui/overview.html")]
struct Overview {
    frame: Frame,
    alerts: Vec<Alert>,
    fleet: Option<Fleet>,
    rollouts: Vec<UnderWay>,
    rollouts_left_out: usize,
}

/// Something that needs somebody.
struct Alert {
    text: String,
    to: String,
}

struct Fleet {
    status: Arc<FleetStatus>,
    update: Vec<Part>,
    contact: Vec<Part>,
    channels: Vec<Channel>,
}

/// A channel and the releases that run on its devices.
struct Channel {
    product: String,
    channel: String,
    devices: u64,
    /// Versions in the order of the bar.
    versions: Vec<String>,
    bar: Vec<Part>,
    history: Option<History>,
}

struct UnderWay {
    product: String,
    channel: String,
    version: String,
    from: String,
    state: String,
    reason: String,
    progress: Vec<Part>,
    wave: usize,
    waves: usize,
}

/// Parts of a bar of devices by the state of their update, with the words of the API.
fn update_parts(status: &FleetStatus) -> Vec<Part> {
    let update = &status.update;
    bar([
        ("up_to_date", "up to date", update.up_to_date),
        ("updating", "updating", update.updating),
        ("outdated", "outdated", update.outdated),
        ("failed", "failed", update.failed),
        ("held", "held", update.held),
        ("unknown", "unknown", update.unknown),
    ])
}

pub(super) async fn show(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, Stop> {
    let mut alerts = not_ready(&app).await;
    let fleet = match visitor.may(Scope::View) {
        true => Some(fleet_of(&app, &visitor, &mut alerts).await?),
        false => None,
    };
    let (rollouts, rollouts_left_out) = under_way(&app, &visitor, &mut alerts).await?;
    let frame = visitor.frame("Overview", "overview");
    Ok(Page(Overview { frame, alerts, fleet, rollouts, rollouts_left_out }).into_response())
}

async fn not_ready(app: &Arc<App>) -> Vec<Alert> {
    let (_, Json(ready)) = state::readyz(State(app.clone())).await;
    let parts = [
        ("database", ready.database),
        ("store", ready.store),
        ("metadata", ready.metadata),
        ("space", ready.space),
    ];
    let wrong = parts.into_iter().filter(|(_, state)| *state != "ok");
    wrong
        .map(|(part, state)| Alert { text: format!("The origin's {part}: {state}"), to: String::new() })
        .collect()
}

async fn fleet_of(app: &Arc<App>, visitor: &Visitor, alerts: &mut Vec<Alert>) -> Result<Fleet, Stop> {
    visitor.caller::<ToView>()?;
    let status = sums::of_fleet(app).await?;
    if status.update.failed > 0 {
        let devices = status.update.failed;
        let text = format!("{devices} device{} failed to update", if devices == 1 { "" } else { "s" });
        alerts.push(Alert { text, to: "/ui/nodes?update=failed".to_owned() });
    }
    let mut by_channel: BTreeMap<(String, String), Vec<FleetRelease>> = BTreeMap::new();
    for release in &status.releases {
        let key = (release.product.clone(), release.channel.clone());
        by_channel.entry(key).or_default().push(release.clone());
    }
    let mut channels: Vec<Channel> = by_channel
        .into_iter()
        .map(|((product, channel), releases)| {
            let part = |(at, release): (usize, &FleetRelease)| {
                let label = release.version.clone().unwrap_or_else(|| "none".to_owned());
                (series(at), label, release.devices)
            };
            let bar = bar(releases.iter().enumerate().map(part));
            let devices = releases.iter().map(|release| release.devices).sum();
            let versions =
                releases.iter().map(|release| release.version.clone().unwrap_or_default()).collect();
            Channel { product, channel, devices, versions, bar, history: None }
        })
        .collect();
    channels.sort_by_key(|channel| std::cmp::Reverse(channel.devices));
    for channel in channels.iter_mut().take(CHARTS_MAX) {
        let (Ok(product), Ok(name)) = (channel.product.parse::<Name>(), channel.channel.parse::<Name>())
        else {
            continue;
        };
        let rows = app.origin.db().history(&product, &name, status.at - CHART_SECONDS).await;
        let first: Vec<&str> = channel.versions.iter().map(String::as_str).collect();
        channel.history = History::of(&rows.map_err(ApiError::from)?, &first);
    }
    let contact = status.contact;
    let contact = bar([
        ("online", "online", contact.online),
        ("offline", "offline", contact.offline),
        ("unknown", "never heard of", contact.unknown),
    ]);
    Ok(Fleet { update: update_parts(&status), contact, channels, status })
}

async fn under_way(
    app: &Arc<App>,
    visitor: &Visitor,
    alerts: &mut Vec<Alert>,
) -> Result<(Vec<UnderWay>, usize), Stop> {
    if !visitor.may(Scope::Read) {
        return Ok((Vec::new(), 0));
    }
    let caller = visitor.caller::<ToRead>()?;
    let mut rows = app.origin.db().rollouts_under_way().await.map_err(ApiError::from)?;
    rows.retain(|row| caller.products.has(&row.product));
    let left_out = rows.len().saturating_sub(ROLLOUTS_MAX);
    rows.truncate(ROLLOUTS_MAX);
    let mut shown = Vec::new();
    for row in rows {
        let detail = sums::of_rollout(app, row.clone()).await?;
        if row.stage == RolloutStage::Halted {
            let text = format!("The rollout of {}@{} is halted: {}", row.product, row.version, row.reason);
            alerts.push(Alert { text, to: format!("/ui/products/{}/channels/{}", row.product, row.channel) });
        }
        let sum = |of: fn(&RolloutWave) -> u64| detail.waves.iter().map(of).sum::<u64>();
        shown.push(UnderWay {
            progress: progress(
                sum(|wave| wave.devices),
                sum(|wave| wave.succeeded),
                sum(|wave| wave.trying),
                sum(|wave| wave.failed),
            ),
            wave: detail.waves.iter().filter(|wave| wave.opened.is_some()).count(),
            waves: detail.waves.len(),
            product: row.product.to_string(),
            channel: row.channel.to_string(),
            version: row.version.to_string(),
            from: row.from.to_string(),
            state: row.stage.as_str().to_owned(),
            reason: row.reason,
        });
    }
    Ok((shown, left_out))
}
