//! `/v1/products`: products and the cut parameters of their releases.

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

/// Product to create, or product whose cut parameters are to change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProduct {
    /// Name of the product.
    name: String,
    /// Cut parameters of its releases; 4096/16384/65536 for a new product when absent.
    cut: Option<Cut>,
}

/// A product.
#[derive(Serialize, ToSchema)]
pub(super) struct Product {
    /// Name of the product.
    name: String,
    /// Cut parameters of its next release.
    cut: Cut,
    /// Time of its creation, unix seconds.
    created: i64,
}

/// Products for which the token is valid.
#[derive(Serialize, ToSchema)]
pub(super) struct ProductList {
    products: Vec<Product>,
}

impl From<ProductRow> for Product {
    fn from(row: ProductRow) -> Self {
        Self { name: row.name.to_string(), cut: row.cut.into(), created: row.created }
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
    Given(new): Given<NewProduct>,
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
    let db = app.origin.db();
    let (mut row, made) = db.ensure_product(&name, cut.unwrap_or_default(), signed(unix_now())).await?;
    if let Some(cut) = cut.filter(|cut| *cut != row.cut) {
        db.set_product_cut(&name, cut).await?;
        row.cut = cut;
    }
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(row.into())))
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
    Ok(Json(ProductList { products: rows.map(Product::from).collect() }))
}

/// Describes one product.
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

/// Row of the product, or the refusal for an unknown product.
pub(super) async fn find(app: &App, name: &Name) -> Result<ProductRow, ApiError> {
    app.origin.db().product(name).await?.ok_or_else(|| ApiError::unknown_product(name))
}
