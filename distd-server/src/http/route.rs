//! Routes: handlers with their descriptions. The `#[utoipa::path]` of a handler states method and
//! address once, for the router and for the OpenAPI document.

use std::sync::Arc;

use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use utoipa::openapi::OpenApi;

use super::App;

/// A handler, its address, and its description.
pub(super) struct Route {
    /// Address in axum's form, in which `{*name}` stands for several segments.
    pub(super) path: String,
    pub(super) handler: MethodRouter<Arc<App>>,
    /// OpenAPI document of this handler alone.
    pub(super) document: OpenApi,
}

impl Route {
    /// Creates the route of `handler`. `document` is the OpenAPI document of this handler alone.
    pub(super) fn new<H: Handler<T, Arc<App>>, T: 'static>(mut document: OpenApi, handler: H) -> Self {
        let paths = &mut document.paths.paths;
        let (path, item) = paths.pop_first().expect("a handler has an address");
        let methods = [
            (MethodFilter::GET, &item.get),
            (MethodFilter::PUT, &item.put),
            (MethodFilter::POST, &item.post),
            (MethodFilter::DELETE, &item.delete),
        ];
        let (method, _) = methods.into_iter().find(|(_, said)| said.is_some()).expect("a method of the API");
        // OpenAPI has no form of its own for several segments.
        paths.insert(path.replace("{*", "{"), item);
        Self { path, handler: on(method, handler), document }
    }
}

/// Makes the [`Route`]s of handlers that have a `#[utoipa::path]`.
macro_rules! routes {
    ($($handler:ident),* $(,)?) => {
        vec![$({
            #[derive(utoipa::OpenApi)]
            #[openapi(paths($handler))]
            struct Document;
            $crate::http::route::Route::new(<Document as utoipa::OpenApi>::openapi(), $handler)
        }),*]
    };
}
pub(super) use routes;
