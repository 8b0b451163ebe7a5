//! `/v1/openapi.json`: description of the API for programs.

use std::sync::{Arc, LazyLock};

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{
    channels, content, manifests, metrics, nodes, packs, patches, products, releases, state, tokens, tuf,
    uploads,
};

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "distd origin", description = "docs/http-api.md gives the reasons. A failure's body is an ErrorBody."),
    paths(
        state::healthz, state::readyz, metrics::metrics, state::version, show,
        products::create, products::list, products::show,
        releases::list, releases::show, releases::withdraw, content::put,
        uploads::begin, uploads::missing, uploads::chunks, uploads::commit, uploads::list, uploads::abort,
        manifests::show, manifests::node, packs::show,
        channels::list, channels::show, channels::put, channels::remove, channels::history,
        patches::list, patches::create,
        tokens::create, tokens::list, tokens::revoke, tokens::own,
        tokens::create_join, tokens::list_join, tokens::revoke_join,
        nodes::list, nodes::revoke, nodes::enroll,
        tuf::file
    ),
    components(schemas(distd_core::api::ErrorBody)),
    modifiers(&BearerToken)
)]
struct Document;

static JSON: LazyLock<Arc<str>> =
    LazyLock::new(|| Document::openapi().to_json().expect("the document is data").into());

/// Sends this document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses(
    (status = 200, description = "OpenAPI document", body = Object, content_type = "application/json")
))]
pub(super) async fn show() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], JSON.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_committed_document_is_the_served_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let document: serde_json::Value = serde_json::from_str(&super::JSON).expect("JSON");
        let text = serde_json::to_string_pretty(&document).expect("a value") + "\n";
        distd_peer::settings::check_doc(&path, &text);
    }

    #[test]
    fn every_route_is_documented_and_every_documented_route_exists() {
        let document: serde_json::Value = serde_json::from_str(&super::JSON).expect("JSON");
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for method in methods.as_object().expect("methods").keys() {
                documented.insert((method.to_uppercase(), path.clone()));
            }
        }
        let served: BTreeSet<_> = crate::http::routes()
            .into_iter()
            .map(|route| (route.method.to_string(), route.path.replace("{*", "{")))
            .collect();
        assert_eq!(documented, served);
    }
}
