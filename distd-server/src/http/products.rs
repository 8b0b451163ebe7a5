//! `/v1/products`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::cut::CutParams;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, ToPublish, ToRead};
use super::body::{At, Given};
use super::{ApiError, App};
use crate::db::ProductRow;
use crate::origin::signed;

/// Cut parameters, bytes.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cut {
    /// Smallest chunk.
    min: u32,
    /// Average chunk.
    avg: u32,
    /// Largest chunk.
    max: u32,
}

impl From<CutParams> for Cut {
    fn from(cut: CutParams) -> Self {
        Self { min: cut.min(), avg: cut.avg(), max: cut.max() }
    }
}

/// A product to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProduct {
    /// Its name.
    name: String,
    /// How to cut its releases; 4096/16384/65536 when absent.
    cut: Option<Cut>,
}

/// A product.
#[derive(Serialize, ToSchema)]
pub(super) struct Product {
    /// Its name.
    name: String,
    /// How its next release is cut.
    cut: Cut,
    /// When it was made, unix seconds.
    created: i64,
}

/// Products.
#[derive(Serialize, ToSchema)]
pub(super) struct ProductList {
    products: Vec<Product>,
}

impl From<ProductRow> for Product {
    fn from(row: ProductRow) -> Self {
        Self { name: row.name.to_string(), cut: row.cut.into(), created: row.created }
    }
}

/// Makes a product, or sets how later releases of one are cut.
#[utoipa::path(post, path = "/v1/products", tag = "products", request_body = NewProduct, responses(
    (status = 201, description = "Made", body = Product),
    (status = 200, description = "It was there", body = Product)
), security(("token" = ["publish"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    Given(new): Given<NewProduct>,
) -> Result<(StatusCode, Json<Product>), ApiError> {
    let name: Name = new.name.parse().map_err(|e| {
        ApiError::bad_request(format!("{:?} is no product name", new.name), format!("choose another: {e}"))
    })?;
    caller.may(&name)?;
    let cut = match new.cut {
        Some(Cut { min, avg, max }) => Some(
            CutParams::new(min, avg, max)
                .map_err(|e| ApiError::bad_request(e.to_string(), "choose other sizes, or leave out cut"))?,
        ),
        None => None,
    };
    let db = app.origin.db();
    let (mut row, made) = db.ensure_product(&name, cut.unwrap_or_default(), signed(unix_now())).await?;
    if let Some(cut) = cut.filter(|cut| *cut != row.cut) {
        db.set_product_cut(&name, cut).await?;
        row.cut = cut;
    }
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(row.into())))
}

/// Every product that the token is for, by name.
#[utoipa::path(get, path = "/v1/products", tag = "products", responses(
    (status = 200, body = ProductList)
), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
) -> Result<Json<ProductList>, ApiError> {
    let rows = app.origin.db().products().await?.into_iter().filter(|row| caller.products.has(&row.name));
    Ok(Json(ProductList { products: rows.map(Product::from).collect() }))
}

/// One product.
#[utoipa::path(get, path = "/v1/products/{product}", tag = "products", params(("product" = String, Path)), responses(
    (status = 200, body = Product)
), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    At(name): At<Name>,
) -> Result<Json<Product>, ApiError> {
    caller.may(&name)?;
    Ok(Json(find(&app, &name).await?.into()))
}

/// The product, or a refusal.
pub(super) async fn find(app: &App, name: &Name) -> Result<ProductRow, ApiError> {
    app.origin.db().product(name).await?.ok_or_else(|| ApiError::unknown_product(name))
}
