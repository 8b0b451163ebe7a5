//! Signing in with an API token. A browser holds a secret of its own, never the token, and the
//! session ends with the token.

use std::sync::Arc;

use askama::Template;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use distd_core::api::Scope;
use distd_peer::clock::unix_now;
use distd_peer::listener::Authenticated;
use distd_peer::random;
use serde::Deserialize;

use super::super::auth::{AnyToken, Caller, Need, scopes_of_row};
use super::super::serve::Encrypted;
use super::super::{ApiError, App};
use super::forms::{Form, PageQuery};
use super::page::{Frame, Page, Stop};
use crate::db::ApiTokenRow;
use crate::origin::signed;

/// Time after which a person signs in again, seconds.
pub(super) const SESSION_SECONDS: i64 = 12 * 3600;

/// Length of a session's secret, bytes.
const SECRET_BYTES: usize = 32;

/// Longest address to which signing in leads back, bytes. A browser drops longer cookies.
const BACK_BYTES_MAX: usize = 1000;

/// Name of the cookie. With the prefix a browser takes it over TLS alone, and from no other host.
fn cookie_name(is_encrypted: bool) -> &'static str {
    if is_encrypted { "__Host-distd-session" } else { "distd-session" }
}

/// Value of the cookie of this name in a request.
pub(super) fn cookie_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(other, _)| other.trim() == name).map(|(_, value)| value.trim())
}

/// A secret, as it stands in a cookie.
struct Secret([u8; SECRET_BYTES]);

impl Secret {
    fn of(headers: &HeaderMap, is_encrypted: bool) -> Option<Self> {
        let mut secret = [0; SECRET_BYTES];
        hex::decode_to_slice(cookie_of(headers, cookie_name(is_encrypted))?, &mut secret).ok()?;
        Some(Self(secret))
    }

    /// Name of the session in the database.
    fn hash(&self) -> [u8; 32] {
        digest(&SHA256, &self.0).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Word that each form of the session repeats. Another page cannot know it.
    fn form_word(&self) -> String {
        hex::encode(&blake3::derive_key("distd web form 2026-11", &self.0)[..16])
    }
}

/// A person who signed in.
pub(super) struct Visitor {
    row: ApiTokenRow,
    scopes: Vec<Scope>,
    /// Name of the session in the database.
    session: [u8; 32],
    form_word: String,
    /// Address of the request, without its host.
    path: String,
}

impl Visitor {
    /// Whether the person's token has a scope.
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// The person as a caller of the API.
    ///
    /// # Errors
    /// When the token lacks the scope of `N`.
    pub(super) fn caller<N: Need>(&self) -> Result<Caller<N>, ApiError> {
        Caller::of_row(self.row.clone())
    }

    /// Refuses a form that is not from one of this session's pages.
    pub(super) fn check_word(&self, word: Option<&str>) -> Result<(), ApiError> {
        let word = word.unwrap_or_default();
        verify_slices_are_equal(word.as_bytes(), self.form_word.as_bytes()).map_err(|_| {
            ApiError::bad_request(
                "the form is from a session that has ended",
                "go back, load the page again, and fill the form in again",
            )
        })
    }

    /// Name of the person's token in the database.
    pub(super) fn token(&self) -> [u8; 32] {
        self.row.secret_sha256
    }

    /// Whether the session and its token go on.
    pub(super) async fn goes_on(&self, app: &App) -> bool {
        let now = signed(unix_now());
        let row = app.origin.db().session(&self.session, now).await;
        row.is_ok_and(|row| row.is_some_and(|row| row.is_valid(now)))
    }

    /// Frame of a page for this person.
    pub(super) fn frame(&self, title: impl Into<String>, section: &'static str) -> Frame {
        Frame {
            title: title.into(),
            section,
            who: Some(self.row.label.clone()),
            sees_fleet: self.may(Scope::View),
            sees_releases: self.may(Scope::Read),
            form_word: self.form_word.clone(),
            path: self.path.clone(),
            now: signed(unix_now()),
            is_live: true,
        }
    }
}

impl FromRequestParts<Arc<App>> for Visitor {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Stop> {
        let path = parts.uri.path_and_query().map_or("/ui", |path| path.as_str()).to_owned();
        let is_fetched = parts.headers.contains_key("hx-request");
        let back = if parts.method == axum::http::Method::GET { path.clone() } else { String::new() };
        let sign_in = || Stop::SignIn { back: back.clone(), is_fetched };
        let secret = Secret::of(&parts.headers, is_encrypted(parts.extensions.get())).ok_or_else(sign_in)?;
        let now = signed(unix_now());
        let row = app.origin.db().session(&secret.hash(), now).await.map_err(ApiError::from)?;
        let row = row.filter(|row| row.is_valid(now)).ok_or_else(sign_in)?;
        if let Some(authenticated) = parts.extensions.get::<Authenticated>() {
            authenticated.set();
        }
        let scopes = scopes_of_row(&row.scopes);
        Ok(Self { row, scopes, session: secret.hash(), form_word: secret.form_word(), path })
    }
}

fn is_encrypted(connection: Option<&Encrypted>) -> bool {
    connection.is_some_and(|Encrypted(is_encrypted)| *is_encrypted)
}

/// Connection of a request: whether it is encrypted.
pub(super) struct OnConnection {
    pub(super) is_encrypted: bool,
    authenticated: Option<Authenticated>,
}

impl FromRequestParts<Arc<App>> for OnConnection {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Self::Rejection> {
        let authenticated = parts.extensions.get::<Authenticated>().cloned();
        Ok(Self { is_encrypted: is_encrypted(parts.extensions.get()), authenticated })
    }
}

#[derive(Template)]
#[template(path = "ui/sign_in.html")]
struct SignIn {
    frame: Frame,
    back: String,
    problem: Option<String>,
    /// Whether people can sign in at an OpenID provider.
    has_provider: bool,
}

impl SignIn {
    fn page(app: &App, back: String, problem: Option<String>) -> Page<Self> {
        let (frame, has_provider) = (Frame::stranger("Sign in"), app.provider.is_some());
        Page(Self { frame, back, problem, has_provider })
    }
}

/// Page to which a person wanted to go.
#[derive(Deserialize)]
pub(super) struct Back {
    #[serde(default)]
    pub(super) back: String,
}

/// An address of this page alone, so that a link cannot lead a person elsewhere after signing in.
pub(super) fn own(back: &str) -> &str {
    let path = back.split_once('?').map_or(back, |(path, _)| path);
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"/._+-".contains(&b);
    let is_own = back.len() <= BACK_BYTES_MAX
        && (path == "/ui" || path.starts_with("/ui/"))
        && path.bytes().all(is_name)
        && path.split('/').all(|segment| !matches!(segment, "." | ".."))
        && !["/ui/events", "/ui/oidc", "/ui/sign"].iter().any(|other| path.starts_with(other))
        && back.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    if is_own { back } else { "/ui" }
}

/// The form.
pub(super) async fn form(
    State(app): State<Arc<App>>,
    PageQuery(Back { back }): PageQuery<Back>,
) -> Page<impl Template> {
    SignIn::page(&app, own(&back).to_owned(), None)
}

/// Begins a session of the API token in the form.
pub(super) async fn sign_in(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    on: OnConnection,
    form: Form,
) -> Result<Response, Stop> {
    let token = form.get("token").unwrap_or_default().trim();
    let back = own(form.get("back").unwrap_or_default()).to_owned();
    let caller = match Caller::<AnyToken>::of_token(&app, token, on.authenticated.as_ref()).await {
        Ok(caller) => caller,
        Err(error) if error.status() == StatusCode::UNAUTHORIZED => {
            let page = SignIn::page(&app, back, Some(error.message().to_owned()));
            return Ok((StatusCode::UNAUTHORIZED, page).into_response());
        }
        Err(error) => return Err(error.into()),
    };
    end_old(&app, &headers, &on).await?;
    let cookie = begin(&app, &on, &caller.row.secret_sha256, signed(unix_now())).await?;
    tracing::info!(token = caller.token, label = caller.row.label, "signed in at the web page");
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&back)).into_response())
}

/// Ends the session that a browser has.
pub(super) async fn end_old(app: &App, headers: &HeaderMap, on: &OnConnection) -> Result<(), ApiError> {
    match Secret::of(headers, on.is_encrypted) {
        Some(secret) => Ok(app.origin.db().end_session(&secret.hash()).await?),
        None => Ok(()),
    }
}

/// Begins a session of the API token with this hash; returns its cookie.
pub(super) async fn begin(
    app: &App,
    on: &OnConnection,
    token: &[u8; 32],
    now: i64,
) -> Result<HeaderValue, ApiError> {
    let secret = Secret(random::bytes());
    let ends = now.saturating_add(SESSION_SECONDS);
    app.origin.db().begin_session(&secret.hash(), token, now, ends).await?;
    Ok(cookie(on, cookie_name(on.is_encrypted), &hex::encode(secret.0), SESSION_SECONDS))
}

/// Ends the session.
pub(super) async fn sign_out(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    on: OnConnection,
    visitor: Visitor,
    form: Form,
) -> Result<Response, Stop> {
    visitor.check_word(form.get("word"))?;
    end_old(&app, &headers, &on).await?;
    Ok((
        [(header::SET_COOKIE, cookie(&on, cookie_name(on.is_encrypted), "", 0))],
        Redirect::to("/ui/sign-in"),
    )
        .into_response())
}

/// A cookie for this connection that scripts do not see and other hosts do not get.
pub(super) fn cookie(on: &OnConnection, name: &str, value: &str, seconds: i64) -> HeaderValue {
    let secure = if on.is_encrypted { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&text).expect("hexadecimal digits are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_led_to_pages_of_this_origin_alone() {
        for back in ["/ui", "/ui/nodes?where=site%3Da", "/ui?x=1", "/ui/products/c++/releases/1..2?x=../y"] {
            assert_eq!(own(back), back);
        }
        for back in [
            "",
            "/",
            "//else.example/ui",
            "https://else.example/ui",
            "/ui/../v1",
            "/ui\\x",
            "/uix",
            "/ui/ x",
            "/ui/%2e%2e/v1",
            "/ui/events",
            "/ui/oidc/begin",
        ] {
            assert_eq!(own(back), "/ui", "{back:?}");
        }
    }

    #[test]
    fn the_secret_is_found_among_other_cookies() {
        let mut headers = HeaderMap::new();
        let value = "a".repeat(64);
        let cookies = format!("x=1; __Host-distd-session={value}; distd-session=00");
        headers.insert(header::COOKIE, cookies.parse().expect("a header value"));
        assert_eq!(Secret::of(&headers, true).map(|secret| secret.0), Some([0xaa; 32]));
        assert!(Secret::of(&headers, false).is_none(), "too short");
        assert_eq!(Secret([1; 32]).form_word().len(), 32);
        assert_ne!(Secret([1; 32]).form_word(), Secret([2; 32]).form_word());
    }
}
