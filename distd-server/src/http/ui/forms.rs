//! Forms and addresses that a browser sends.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::super::body::{Incoming, PathParams, QueryParams};
use super::super::{ApiError, App};
use super::page::Stop;

/// Longest form, bytes.
const FORM_BYTES_MAX: u64 = 16 << 10;

/// Fields of a form. Of a field that is there twice, the last one counts.
pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    /// A field, unless it is absent or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// A field that the form needs.
    pub(super) fn need(&self, name: &str) -> Result<&str, ApiError> {
        self.get(name).ok_or_else(|| {
            ApiError::bad_request(format!("the field {name:?} is empty"), "go back and fill the field in")
        })
    }
}

impl FromRequest<Arc<App>> for Form {
    type Rejection = Stop;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Stop> {
        let body = Incoming::<FORM_BYTES_MAX>::from_request(request, app).await?.whole().await?;
        Ok(Self(form_urlencoded::parse(&body).into_owned().collect()))
    }
}

/// [`PathParams`] of a page: a person sees a page when they are wrong.
pub(super) struct PagePath<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for PagePath<T> {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Stop> {
        let PathParams(value) = PathParams::from_request_parts(parts, app).await?;
        Ok(Self(value))
    }
}

/// [`QueryParams`] of a page.
pub(super) struct PageQuery<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for PageQuery<T> {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Stop> {
        let QueryParams(value) = QueryParams::from_request_parts(parts, app).await?;
        Ok(Self(value))
    }
}
