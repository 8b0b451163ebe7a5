//! `/v1/openapi.json`: description of the API for programs.

use std::sync::{Arc, LazyLock};

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::OpenApi as OpenApiDocument;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::route::{Route, routes};

pub(super) fn routes() -> Vec<Route> {
    routes![show]
}

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut OpenApiDocument) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The parts that belong to no handler.
#[derive(OpenApi)]
#[openapi(
    info(title = "distd origin", description = "docs/http-api.md gives the reasons. A failure's body is an ErrorBody."),
    components(schemas(distd_core::api::ErrorBody)),
    modifiers(&BearerToken)
)]
struct Head;

static JSON: LazyLock<Arc<str>> = LazyLock::new(|| {
    let documents = super::routes().map(|route| route.document);
    let document = documents.fold(Head::openapi(), OpenApiDocument::merge_from);
    document.to_json().expect("the document is data").into()
});

/// Sends this document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses(
    (status = 200, description = "OpenAPI document", body = Object, content_type = "application/json")
))]
pub(super) async fn show() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], JSON.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_document_is_the_served_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let document: serde_json::Value = serde_json::from_str(&super::JSON).expect("JSON");
        let text = serde_json::to_string_pretty(&document).expect("a value") + "\n";
        distd_peer::settings::check_doc(&path, &text);
    }
}
