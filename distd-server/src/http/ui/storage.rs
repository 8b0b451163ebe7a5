//! Space: what takes it, what a collection would remove, and why each release stays.

use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use distd_core::api::{GcRelease, GcReport};

use super::super::auth::ToView;
use super::super::body::QueryParams;
use super::super::{App, gc};
use super::charts::{Part, bar};
use super::filters;
use super::page::{Frame, Page, Stop};
use super::session::Visitor;

/// Most releases that the page lists: those that alone take the most bytes.
const RELEASES_MAX: usize = 200;

#[derive(Template)]
#[template(path = "ui/storage.html")]
struct Storage {
    frame: Frame,
    report: GcReport,
    parts: Vec<Part>,
    releases: Vec<GcRelease>,
    left_out: usize,
}

pub(super) async fn show(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, Stop> {
    let _turn = app.live.turn().await;
    let look = QueryParams(gc::Look::default());
    let Json(mut report) = gc::report(State(app.clone()), visitor.caller::<ToView>()?, look).await?;
    let mut releases = std::mem::take(&mut report.releases);
    releases.sort_by_key(|release| std::cmp::Reverse(release.unique_bytes));
    let left_out = releases.len().saturating_sub(RELEASES_MAX);
    releases.truncate(RELEASES_MAX);
    let kept = report.live_bytes.saturating_sub(report.freed_bytes);
    let parts = bar([
        ("up_to_date", "releases and patch sets that stay", kept),
        ("outdated", "what a collection would remove now", report.freed_bytes),
        ("unknown", "dead in packs, freed by compaction", report.dead_bytes),
        ("held", "emptied packs, a day for their readers", report.emptied_bytes),
        ("updating", "open uploads", report.upload_bytes),
    ]);
    // The report reads every manifest, so an open page does not ask for it again by itself.
    let frame = Frame { is_live: false, ..visitor.frame("Storage", "storage") };
    Ok(Page(Storage { frame, report, parts, releases, left_out }).into_response())
}
