//! hawkBit's Direct Device Integration API, for devices whose update client speaks it
//! (docs/ddi.md): `/{tenant}/controller/v1/{controller}` and below. It is there when the origin's
//! setting `ddi` switches it on.
//!
//! The address that hrefs begin with is a setting. A `Host` header would let a caller lead another
//! one elsewhere through a cache.

mod artifact;
pub(super) mod auth;
mod bodies;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use distd_core::error::Chain;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

pub(super) use tokens::routes as token_routes;

use self::auth::DdiCaller;
use self::bodies::{Answer, Attributes, Feedback};
use super::body::Incoming;
use super::{ApiError, App};
use crate::db::{DdiActionRow, DdiState, FileDigests, ReleaseRow};
use crate::origin::{DdiNews, DdiOffer, signed};

/// Largest body of a device, bytes: SWUpdate sends its log lines along, some kilobytes.
const BODY_BYTES_MAX: u64 = 64 << 10;

/// Longest time for a body.
const BODY: Duration = Duration::from_secs(30);

/// Longest time for which a poll waits for the digests of a release. Their computation goes on
/// then, and a later poll finds them.
const DIGESTS: Duration = Duration::from_secs(20);

/// Age of a device's attributes from which on they are asked for again, seconds.
const ATTRIBUTES_AGAIN: i64 = 24 * 3600;

/// Settings of the interface.
#[derive(Clone, Debug)]
pub struct DdiOptions {
    /// Address of this origin as devices reach it, without a slash at its end.
    pub url: String,
    /// Time between two polls of a device.
    pub poll: Duration,
}

impl DdiOptions {
    /// The time between two polls, as hawkBit writes it.
    fn sleep(&self) -> String {
        let seconds = self.poll.as_secs();
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// Adds the addresses of devices to the router.
pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    const BASE: &str = "/{tenant}/controller/v1/{controller}";
    let at = |path: &str| format!("{BASE}{path}");
    router
        .route(BASE, get(root))
        .route(&at("/configData"), put(attributes))
        .route(&at("/deploymentBase/{action}"), get(deployment))
        .route(&at("/deploymentBase/{action}/feedback"), post(deployment_feedback))
        .route(&at("/cancelAction/{action}"), get(cancellation))
        .route(&at("/cancelAction/{action}/feedback"), post(cancellation_feedback))
        .route(&at("/confirmationBase"), get(confirmations))
        .route(&at("/confirmationBase/activateAutoConfirm"), post(confirm_always))
        .route(&at("/confirmationBase/deactivateAutoConfirm"), post(confirm_each))
        .route(&at("/confirmationBase/{action}"), get(confirmation))
        .route(&at("/confirmationBase/{action}/feedback"), post(confirmation_feedback))
        .route(&at("/softwaremodules/{action}/artifacts/{file}"), get(artifact::send))
}

type DeviceBody = Incoming<BODY_BYTES_MAX>;

/// A poll: the time until the next, and links to what there is to do.
async fn root(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<Json<Value>, ApiError> {
    let mut links = Map::new();
    let mut link = |name: &str, href: String| drop(links.insert(name.to_owned(), json!({"href": href})));
    let DdiCaller { device, base, .. } = &caller;
    let now = signed(unix_now());
    if device.attributes.is_none_or(|at| now.saturating_sub(at) > ATTRIBUTES_AGAIN) {
        link("configData", format!("{base}/configData"));
    }
    match app.origin.ddi_poll(device).await? {
        DdiOffer::Nothing => {}
        DdiOffer::Cancel(action) => link("cancelAction", format!("{base}/cancelAction/{}", action.id)),
        DdiOffer::Confirm(action) => {
            link("confirmationBase", format!("{base}/confirmationBase/{}", action.id));
        }
        DdiOffer::Deploy(action) => {
            if has_digests(&app, &action).await? {
                link("deploymentBase", format!("{base}/deploymentBase/{}", action.id));
            }
        }
    }
    let sleep = caller.options.sleep();
    Ok(Json(json!({"config": {"polling": {"sleep": sleep}}, "_links": links})))
}

/// Whether the digests of an action's release are there, after a wait.
async fn has_digests(app: &App, action: &DdiActionRow) -> Result<bool, ApiError> {
    let Some(release) = app.origin.db().release(&action.product, &action.version).await? else {
        return Ok(false);
    };
    Ok(match timeout(DIGESTS, app.origin.file_digests(&release)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            let (product, version) = (&action.product, &action.version);
            tracing::error!(%product, %version, error = %Chain(&*error), "the release is not offered over DDI");
            false
        }
        Err(_) => false,
    })
}

/// The action of the address; 404 for one of another device, and for one that is over.
async fn open_action(app: &App, caller: &DdiCaller) -> Result<DdiActionRow, ApiError> {
    let action = known_action(app, caller).await?;
    match action.state.has_ended() {
        true => Err(no_action()),
        false => Ok(action),
    }
}

async fn known_action(app: &App, caller: &DdiCaller) -> Result<DdiActionRow, ApiError> {
    let id = caller.param("action").parse().map_err(|_| no_action())?;
    app.origin.db().ddi_action(&caller.device.node, id).await?.ok_or_else(no_action)
}

fn no_action() -> ApiError {
    ApiError::unlisted("open action of this id", "a poll")
}

/// The release of an action with its digests, and the name of its file.
async fn artifact_of(
    app: &App,
    action: &DdiActionRow,
) -> Result<(ReleaseRow, FileDigests, String), ApiError> {
    let DdiActionRow { product, version, .. } = action;
    let release = app.origin.db().release(product, version).await?;
    let release = release.ok_or_else(|| ApiError::unknown_version(product, version))?;
    let digests = app.origin.file_digests(&release).await.map_err(ApiError::internal)?;
    let pattern = app.origin.db().product(product).await?.and_then(|row| row.file_name);
    let name = pattern.map_or_else(|| plain_name(product, version), |pattern| pattern.name_of(version));
    Ok((release, digests, name))
}

/// Name of the file of a release whose product has no file name.
fn plain_name(product: &Name, version: &Name) -> String {
    format!("{product}-{version}")
}

/// One chunk with one artifact: some clients refuse more.
async fn chunks(app: &App, caller: &DdiCaller, action: &DdiActionRow) -> Result<Value, ApiError> {
    let (release, digests, name) = artifact_of(app, action).await?;
    let href = format!("{}/softwaremodules/{}/artifacts/{name}", caller.base, action.id);
    let mut links = Map::from_iter([("download".to_owned(), json!({"href": href}))]);
    if href.starts_with("http:") {
        links.insert("download-http".to_owned(), json!({"href": href}));
    }
    Ok(json!([{
        "part": "os",
        "name": action.product,
        "version": action.version,
        "artifacts": [{
            "filename": name,
            "size": release.bytes,
            "hashes": {
                "sha1": hex::encode(digests.sha1),
                "md5": hex::encode(digests.md5),
                "sha256": hex::encode(digests.sha256),
            },
            "_links": links,
        }],
    }]))
}

async fn deployment(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<Json<Value>, ApiError> {
    let action = open_action(&app, &caller).await?;
    if matches!(action.state, DdiState::Confirming | DdiState::Canceling) {
        return Err(no_action());
    }
    let chunks = chunks(&app, &caller, &action).await?;
    app.origin.ddi_begun(&caller.device, &action).await?;
    // Never "skip": SWUpdate answers it with a success.
    Ok(Json(json!({
        "id": action.id.to_string(),
        "deployment": {"download": "forced", "update": "forced", "chunks": chunks},
    })))
}

async fn deployment_feedback(
    State(app): State<Arc<App>>,
    caller: DdiCaller,
    body: DeviceBody,
) -> Result<(), ApiError> {
    let feedback = feedback_of(body).await?;
    let action = known_action(&app, &caller).await?;
    let news = match feedback.answer() {
        Answer::Succeeded => DdiNews::Succeeded,
        Answer::Failed => DdiNews::Failed { detail: feedback.last_words() },
        Answer::Works => DdiNews::Works { installs: feedback.installs(), detail: feedback.progress() },
        Answer::Canceled => {
            app.origin.ddi_canceled(&action, true).await?;
            return Ok(());
        }
    };
    let (id, node) = (action.id, &caller.device.node);
    tracing::debug!(%node, action = id, ?news, "a DDI device reports");
    Ok(app.origin.ddi_news(&caller.device, &action, &news).await?)
}

async fn feedback_of(body: DeviceBody) -> Result<Feedback, ApiError> {
    let bytes = body.within(BODY).whole().await?;
    Feedback::read(&bytes).ok_or_else(|| {
        ApiError::bad_request("the body is no feedback", "send status.execution and status.result.finished")
    })
}

async fn cancellation(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<Json<Value>, ApiError> {
    let action = open_action(&app, &caller).await?;
    if action.state != DdiState::Canceling {
        return Err(no_action());
    }
    let id = action.id.to_string();
    Ok(Json(json!({"id": id, "cancelAction": {"stopId": id}})))
}

async fn cancellation_feedback(
    State(app): State<Arc<App>>,
    caller: DdiCaller,
    body: DeviceBody,
) -> Result<(), ApiError> {
    let feedback = feedback_of(body).await?;
    let action = known_action(&app, &caller).await?;
    match feedback.answer() {
        Answer::Succeeded | Answer::Canceled => app.origin.ddi_canceled(&action, true).await?,
        // The device cannot stop any more.
        Answer::Failed => app.origin.ddi_canceled(&action, false).await?,
        Answer::Works => {}
    }
    Ok(())
}

async fn attributes(
    State(app): State<Arc<App>>,
    caller: DdiCaller,
    body: DeviceBody,
) -> Result<(), ApiError> {
    let bytes = body.within(BODY).whole().await?;
    let sent = Attributes::read(&bytes).ok_or_else(|| {
        ApiError::bad_request("the body has no attributes", "send an object `data` of texts")
    })?;
    let member = app.origin.db().member(&caller.device.node.to_string()).await?;
    let before = member.map(|row| row.member.labels.facts).unwrap_or_default();
    Ok(app.origin.ddi_attributes(&caller.device, &sent.applied_to(before)).await?)
}

async fn confirmations(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<Json<Value>, ApiError> {
    let DdiCaller { device, base, .. } = &caller;
    let (active, other) = match device.auto_confirm {
        true => (true, "deactivateAutoConfirm"),
        false => (false, "activateAutoConfirm"),
    };
    let mut links = Map::new();
    links.insert(other.to_owned(), json!({"href": format!("{base}/confirmationBase/{other}")}));
    let open = app.origin.db().open_ddi_action(&device.node).await?;
    if let Some(action) = open.filter(|action| action.state == DdiState::Confirming) {
        let href = format!("{base}/confirmationBase/{}", action.id);
        links.insert("confirmationBase".to_owned(), json!({"href": href}));
    }
    Ok(Json(json!({"autoConfirm": {"active": active}, "_links": links})))
}

async fn confirmation(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<Json<Value>, ApiError> {
    let action = open_action(&app, &caller).await?;
    if action.state != DdiState::Confirming {
        return Err(no_action());
    }
    let chunks = chunks(&app, &caller, &action).await?;
    Ok(Json(json!({
        "id": action.id.to_string(),
        "confirmation": {"download": "forced", "update": "forced", "chunks": chunks},
    })))
}

async fn confirmation_feedback(
    State(app): State<Arc<App>>,
    caller: DdiCaller,
    body: DeviceBody,
) -> Result<(), ApiError> {
    let bytes = body.within(BODY).whole().await?;
    let agreed = bodies::confirmed(&bytes).ok_or_else(|| {
        ApiError::bad_request("the body is no confirmation", "send `confirmation`: confirmed or denied")
    })?;
    let action = open_action(&app, &caller).await?;
    Ok(app.origin.ddi_confirmed(&action, agreed).await?)
}

async fn confirm_always(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<(), ApiError> {
    Ok(app.origin.db().set_ddi_auto_confirm(&caller.device.node, true).await?)
}

async fn confirm_each(State(app): State<Arc<App>>, caller: DdiCaller) -> Result<(), ApiError> {
    Ok(app.origin.db().set_ddi_auto_confirm(&caller.device.node, false).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_polls_is_written_as_hawkbit_does() {
        for (seconds, text) in [(300, "00:05:00"), (30, "00:00:30"), (86_400, "24:00:00"), (3661, "01:01:01")]
        {
            let options = DdiOptions { url: String::new(), poll: Duration::from_secs(seconds) };
            assert_eq!(options.sleep(), text);
        }
    }
}
