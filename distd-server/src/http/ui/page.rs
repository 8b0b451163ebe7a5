//! Frame of each page, and what a person sees instead of a page.

use askama::Template;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use distd_peer::clock::unix_now;
use url::form_urlencoded;

use super::super::ApiError;
use crate::origin::signed;

/// Parts of a page that surround its contents.
pub(super) struct Frame {
    pub(super) title: String,
    /// Entry of the menu to which the page belongs.
    pub(super) section: &'static str,
    /// Label of the token of the person; `None` before they sign in.
    pub(super) who: Option<String>,
    /// Whether the person's token shows the fleet.
    pub(super) sees_fleet: bool,
    /// Whether it shows releases and rollouts.
    pub(super) sees_releases: bool,
    pub(super) form_word: String,
    /// Address of the page, for fetching it again.
    pub(super) path: String,
    /// Time at which the page was written, unix seconds.
    pub(super) now: i64,
    /// Whether the page is fetched again when something has changed.
    pub(super) is_live: bool,
}

impl Frame {
    /// Frame for somebody who has not signed in.
    pub(super) fn stranger(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            section: "",
            who: None,
            sees_fleet: false,
            sees_releases: false,
            form_word: String::new(),
            path: String::new(),
            now: signed(unix_now()),
            is_live: false,
        }
    }
}

/// A page to send.
pub(super) struct Page<T>(pub(super) T);

impl<T: Template> IntoResponse for Page<T> {
    fn into_response(self) -> Response {
        match self.0.render() {
            Ok(html) => Html(html).into_response(),
            Err(error) => ApiError::internal(error).into_response(),
        }
    }
}

/// A reason for which a person does not see the page.
pub(super) enum Stop {
    /// They have to sign in first.
    SignIn {
        /// The address to which they go then.
        back: String,
        /// Whether a script asked, in place of the browser.
        is_fetched: bool,
    },
    /// As at the API.
    Error(ApiError),
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

#[derive(Template)]
#[template(path = "ui/error.html")]
struct ErrorPage {
    frame: Frame,
    message: String,
    next: String,
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        match self {
            Self::SignIn { back, is_fetched } => {
                let query =
                    form_urlencoded::Serializer::new(String::new()).append_pair("back", &back).finish();
                let to = format!("/ui/sign-in?{query}");
                match (is_fetched, HeaderValue::from_str(&to)) {
                    // A script would put the form into the page.
                    (true, Ok(to)) => {
                        (StatusCode::UNAUTHORIZED, [(HeaderName::from_static("hx-redirect"), to)])
                            .into_response()
                    }
                    _ => Redirect::to(&to).into_response(),
                }
            }
            Self::Error(error) => {
                error.log();
                let (status, next) = (error.status(), error.advice());
                let message = error.message().to_owned();
                let title = status.canonical_reason().unwrap_or("Error");
                let mut response =
                    Page(ErrorPage { frame: Frame::stranger(title), message, next }).into_response();
                *response.status_mut() = status;
                response
            }
        }
    }
}
