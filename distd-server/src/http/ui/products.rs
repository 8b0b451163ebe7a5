//! Products, and the releases and patch sets of one.

use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use distd_core::api::{Channel, PatchSet, Product, Release};
use distd_core::names::Name;
use distd_core::{ChunkId, ManifestId};

use super::super::auth::ToRead;
use super::super::body::{PathParams, QueryParams};
use super::super::{App, channels, patches, products, releases};
use super::charts::{Part, bar};
use super::filters;
use super::forms::PagePath;
use super::page::{Frame, Page, Stop};
use super::session::Visitor;

#[derive(Template)]
#[template(path = "ui/products.html")]
struct Products {
    frame: Frame,
    products: Vec<Product>,
}

pub(super) async fn list(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, Stop> {
    let Json(list) = products::list(State(app), visitor.caller::<ToRead>()?).await?;
    let frame = visitor.frame("Products", "products");
    Ok(Page(Products { frame, products: list.products }).into_response())
}

#[derive(Template)]
#[template(path = "ui/product.html")]
struct OneProduct {
    frame: Frame,
    product: Product,
    channels: Vec<Channel>,
    releases: Vec<Release>,
    releases_left_out: usize,
    patches: Vec<PatchSet>,
}

/// Releases that devices may take.
pub(super) fn offered() -> QueryParams<releases::Which> {
    QueryParams(releases::Which::default())
}

/// Most releases that the page of a product lists, the newest.
const RELEASES_MAX: usize = 200;

/// Most patch sets that a page lists, the newest.
const PATCHES_MAX: usize = 50;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PagePath(name): PagePath<Name>,
) -> Result<Response, Stop> {
    let named = || PathParams(name.clone());
    let Json(product) = products::show(State(app.clone()), visitor.caller::<ToRead>()?, named()).await?;
    let Json(channels) = channels::list(State(app.clone()), visitor.caller()?, named()).await?;
    let Json(mut releases) =
        releases::list(State(app.clone()), visitor.caller()?, named(), offered()).await?;
    let Json(mut patches) = patches::list(State(app), visitor.caller()?, named()).await?;
    let releases_left_out = releases.releases.len().saturating_sub(RELEASES_MAX);
    releases.releases.truncate(RELEASES_MAX);
    patches.patches.truncate(PATCHES_MAX);
    let page = OneProduct {
        frame: visitor.frame(format!("Product {name}"), "products"),
        product,
        channels: channels.channels,
        releases: releases.releases,
        releases_left_out,
        patches: patches.patches,
    };
    Ok(Page(page).into_response())
}

#[derive(Template)]
#[template(path = "ui/release.html")]
struct OneRelease {
    frame: Frame,
    release: Release,
    channels: Vec<Channel>,
    before: Vec<Before>,
    patches: Vec<PatchSet>,
}

/// An earlier release, and what of this one a device with it has.
struct Before {
    version: String,
    parts: Vec<Part>,
    new_bytes: u64,
    new_chunks: u64,
}

/// Number of earlier releases with which a release is compared.
const BEFORE: usize = 3;

/// Most chunks of a release that is compared.
const CHUNKS_MAX: u64 = 250_000;

pub(super) async fn release(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PagePath((product, version)): PagePath<(Name, Name)>,
) -> Result<Response, Stop> {
    let caller = visitor.caller::<ToRead>()?;
    let at = PathParams((product.clone(), version.clone()));
    let Json(release) = releases::show(State(app.clone()), caller, at, offered()).await?;
    let named = || PathParams(product.clone());
    let Json(channels) = channels::list(State(app.clone()), visitor.caller()?, named()).await?;
    let Json(all) = releases::list(State(app.clone()), visitor.caller()?, named(), offered()).await?;
    let Json(patches) = patches::list(State(app.clone()), visitor.caller()?, named()).await?;
    let _turn = app.live.turn().await;
    let earlier = all.releases.iter().filter(|other| other.sequence < release.sequence).take(BEFORE);
    let mut before = Vec::new();
    for other in earlier.filter(|other| release.chunks.max(other.chunks) <= CHUNKS_MAX) {
        before.push(compare(&app, &release.manifest, other).await?);
    }
    let text = version.to_string();
    let page = OneRelease {
        // Each comparison reads two manifests, and they never change.
        frame: Frame { is_live: false, ..visitor.frame(format!("{product} {version}"), "products") },
        channels: channels.channels.into_iter().filter(|channel| channel.version == text).collect(),
        patches: patches.patches.into_iter().filter(|set| set.to == text).take(PATCHES_MAX).collect(),
        before,
        release,
    };
    Ok(Page(page).into_response())
}

/// Compares a release with an earlier one, chunk by chunk.
async fn compare(app: &Arc<App>, new: &ManifestId, old: &Release) -> Result<Before, Stop> {
    let (new, before) = (app.manifest(*new).await?, app.manifest(old.manifest).await?);
    let counted = tokio::task::spawn_blocking(move || {
        let held: std::collections::HashSet<ChunkId> = before.entries().map(|at| at.entry.id).collect();
        let mut seen = std::collections::HashSet::new();
        let (mut same, mut new_bytes, mut new_chunks) = (0u64, 0u64, 0u64);
        for at in new.entries() {
            let bytes = u64::from(at.entry.len);
            if held.contains(&at.entry.id) || !seen.insert(at.entry.id) {
                same += bytes;
            } else {
                new_bytes += bytes;
                new_chunks += 1;
            }
        }
        (same, new_bytes, new_chunks)
    });
    let (same, new_bytes, new_chunks) = counted.await.map_err(super::super::ApiError::internal)?;
    let parts = bar([("up_to_date", "already there", same), ("updating", "new", new_bytes)]);
    Ok(Before { version: old.version.clone(), parts, new_bytes, new_chunks })
}
