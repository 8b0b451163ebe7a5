//! `/v1/products`: products and the cut parameters of their releases.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{Cut, FileName, NewProduct, Product, ProductList};
use distd_core::cut::CutParams;
use distd_core::file_name::FilePattern;
use distd_core::names::Name;
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToPublish, ToRead};
use super::body::{JsonBody, PathParams};
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::ProductRow;
use crate::origin::signed;

pub(super) fn routes() -> Vec<Route> {
    routes![create, list, show, set_file_name, remove_file_name]
}

fn shown(row: ProductRow) -> Product {
    Product {
        name: row.name.to_string(),
        cut: row.cut.into(),
        created: row.created,
        file_name: row.file_name.map(|pattern| pattern.to_string()),
        retention: None,
    }
}

/// Creates a product, or changes the cut parameters of later releases of an existing one.
#[utoipa::path(post, path = "/v1/products", tag = "products", request_body = NewProduct, responses(
    (status = 201, description = "Created", body = Product),
    (status = 200, description = "The product already existed", body = Product)
), security(("token" = ["publish"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    JsonBody(new): JsonBody<NewProduct>,
) -> Result<(StatusCode, Json<Product>), ApiError> {
    let name: Name = new.name.parse().map_err(|e| {
        ApiError::bad_request(format!("{:?} is not a product name: {e}", new.name), "choose another name")
    })?;
    caller.may(&name)?;
    let cut = match new.cut {
        Some(Cut { min, avg, max }) => Some(
            CutParams::new(min, avg, max)
                .map_err(|e| ApiError::bad_request(e.to_string(), "choose other sizes, or leave out cut"))?,
        ),
        None => None,
    };
    let db = caller.db(&app);
    let (mut row, made) = db.ensure_product(&name, cut.unwrap_or_default(), signed(unix_now())).await?;
    if let Some(cut) = cut.filter(|cut| *cut != row.cut) {
        db.set_product_cut(&name, cut).await?;
        row.cut = cut;
    }
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(shown(row))))
}

/// Lists the products for which the token is valid, by name.
#[utoipa::path(get, path = "/v1/products", tag = "products", responses(
    (status = 200, body = ProductList)
), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
) -> Result<Json<ProductList>, ApiError> {
    let rows = app.origin.db().products().await?.into_iter().filter(|row| caller.products.has(&row.name));
    let mut retentions = app.origin.db().retentions().await?;
    let shown = |row: ProductRow| {
        let retention = retentions.remove(&row.name);
        Product { retention, ..shown(row) }
    };
    Ok(Json(ProductList { products: rows.map(shown).collect() }))
}

/// Describes one product.
#[utoipa::path(get, path = "/v1/products/{product}", tag = "products", params(("product" = String, Path)), responses(
    (status = 200, body = Product)
), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(name): PathParams<Name>,
) -> Result<Json<Product>, ApiError> {
    caller.may(&name)?;
    let row = find(&app, &name).await?;
    let retention = app.origin.db().retentions().await?.remove(&name);
    Ok(Json(Product { retention, ..shown(row) }))
}

/// Sets the file name of a product. The documents of its channels then have sums of the files,
/// which the origin computes before it answers.
#[utoipa::path(put, path = "/v1/products/{product}/file-name", tag = "products", params(("product" = String, Path)),
    request_body = FileName, responses((status = 200, body = Product)), security(("token" = ["publish"])))]
pub(super) async fn set_file_name(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams(name): PathParams<Name>,
    JsonBody(wanted): JsonBody<FileName>,
) -> Result<Json<Product>, ApiError> {
    caller.may(&name)?;
    let pattern: FilePattern = wanted.name.parse().map_err(|e| {
        ApiError::bad_request(format!("{:?} is no file name: {e}", wanted.name), "choose another name")
    })?;
    change_file_name(&app, caller, &name, Some(pattern)).await?;
    Ok(Json(shown(find(&app, &name).await?)))
}

/// Removes the file name of a product, and with it the sums in the documents of its channels.
#[utoipa::path(delete, path = "/v1/products/{product}/file-name", tag = "products", params(("product" = String, Path)),
    responses((status = 204, description = "Removed")), security(("token" = ["publish"])))]
pub(super) async fn remove_file_name(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams(name): PathParams<Name>,
) -> Result<StatusCode, ApiError> {
    caller.may(&name)?;
    change_file_name(&app, caller, &name, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change_file_name(
    app: &Arc<App>,
    caller: Caller<ToPublish>,
    name: &Name,
    pattern: Option<FilePattern>,
) -> Result<(), ApiError> {
    let (at, name) = (app.clone(), name.clone());
    let work = app.detached(async move {
        let db = caller.db(&at);
        if !at.origin.set_file_name(&db, &name, pattern.as_ref()).await? {
            return Err(ApiError::unknown_product(&name));
        }
        let pattern = pattern.as_ref().map(FilePattern::as_str);
        tracing::info!(product = %name, pattern, by = caller.row.label, "file name set");
        Ok(())
    });
    work.await
}

/// Row of the product, or the refusal for an unknown product.
pub(super) async fn find(app: &App, name: &Name) -> Result<ProductRow, ApiError> {
    app.origin.db().product(name).await?.ok_or_else(|| ApiError::unknown_product(name))
}
