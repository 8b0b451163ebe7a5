//! Signing in at an OpenID provider: the code flow with PKCE (OpenID Connect Core 1.0, RFC 7636).
//!
//! The provider says who a person is and in which groups; the file of the setting `oidc` says which
//! scopes a group has. A person is an API token without a secret, so that pages, handlers and the
//! audit log see no difference.

mod provider;

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use distd_core::api::Scope;
use distd_core::error::Chain;
use distd_core::text::{is_label, shown};
use distd_peer::clock::unix_now;
use distd_peer::random;
use serde::Deserialize;

use super::super::auth::scopes_to_row;
use super::super::{ApiError, App};
use super::forms::PageQuery;
use super::page::Stop;
use super::session::{self, Back, OnConnection, cookie_of, own};
use crate::db::ApiTokenRow;
use crate::origin::signed;
pub use provider::{Provider, ProviderError};

/// Time that a person has at the provider, seconds.
const AWAY_SECONDS: i64 = 600;

/// Longest name of a person that is shown, characters.
const NAME_MAX: usize = 100;

/// Name of the cookie of a person who is at the provider.
fn cookie_name(is_encrypted: bool) -> &'static str {
    if is_encrypted { "__Host-distd-oidc" } else { "distd-oidc" }
}

/// Secret of one sign-in, in the browser's cookie. The words that the provider sees are made from
/// it, so that the origin keeps nothing for people who never come back.
struct Attempt {
    secret: [u8; 32],
    back: String,
}

impl Attempt {
    fn begin(back: &str) -> Self {
        Self { secret: random::bytes(), back: own(back).to_owned() }
    }

    fn word(&self, context: &str) -> String {
        URL_SAFE_NO_PAD.encode(blake3::derive_key(context, &self.secret))
    }

    fn state(&self) -> String {
        self.word("distd oidc state 2026-11")
    }

    fn nonce(&self) -> String {
        self.word("distd oidc nonce 2026-11")
    }

    /// Verifier of PKCE.
    fn verifier(&self) -> String {
        self.word("distd oidc verifier 2026-11")
    }

    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, self.verifier().as_bytes()))
    }

    fn cookie(&self) -> String {
        format!("{}.{}", hex::encode(self.secret), hex::encode(&self.back))
    }

    fn of(headers: &HeaderMap, is_encrypted: bool) -> Option<Self> {
        let (secret, back) = cookie_of(headers, cookie_name(is_encrypted))?.split_once('.')?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret, &mut bytes).ok()?;
        let back = String::from_utf8(hex::decode(back).ok()?).ok()?;
        Some(Self { secret: bytes, back: own(&back).to_owned() })
    }
}

fn provider(app: &App) -> Result<&Provider, ApiError> {
    app.provider.as_ref().ok_or_else(|| ApiError::not_found("OpenID provider; the setting oidc names one"))
}

/// Error for a provider that does not answer as it should. Its causes are for the log.
fn failed(error: &ProviderError) -> ApiError {
    tracing::warn!(error = %Chain(error), "signing in at the OpenID provider failed");
    ApiError::bad_gateway(
        "the OpenID provider did not sign you in",
        "try again; the origin's log says what it answered, and an API token signs in too",
    )
}

/// Leads a person to the provider.
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    on: OnConnection,
    PageQuery(Back { back }): PageQuery<Back>,
) -> Result<Response, Stop> {
    let provider = provider(&app)?;
    let attempt = Attempt::begin(&back);
    let to = provider.address(&attempt.state(), &attempt.nonce(), &attempt.challenge()).await;
    let to = to.map_err(|error| failed(&error))?;
    let cookie = session::cookie(&on, cookie_name(on.is_encrypted), &attempt.cookie(), AWAY_SECONDS);
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&to)).into_response())
}

/// Words with which the provider sends a person back.
#[derive(Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    code: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    error: String,
}

/// Begins a session of the person whom the provider names.
pub(super) async fn end(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    on: OnConnection,
    PageQuery(answer): PageQuery<Answer>,
) -> Result<Response, Stop> {
    let provider = provider(&app)?;
    let again = "sign in again";
    let attempt = Attempt::of(&headers, on.is_encrypted)
        .ok_or_else(|| ApiError::bad_request("this browser has no sign-in under way", again))?;
    verify_slices_are_equal(answer.state.as_bytes(), attempt.state().as_bytes())
        .map_err(|_| ApiError::bad_request("the answer is of another sign-in", again))?;
    if !answer.error.is_empty() {
        let message = format!("the OpenID provider said: {}", shown(&answer.error, NAME_MAX));
        return Err(ApiError::bad_request(message, again).into());
    }
    let person = provider.person(&answer.code, &attempt.verifier(), &attempt.nonce()).await;
    let person = person.map_err(|error| failed(&error))?;
    let scopes: BTreeSet<Scope> = person.groups.iter().flat_map(|group| provider.scopes(group)).collect();
    if scopes.is_empty() {
        tracing::info!(subject = %shown(&person.subject, NAME_MAX), "a person without a known group was refused");
        let sessions = app.origin.db().end_sessions(&provider.key_of(&person.subject)).await;
        sessions.map_err(ApiError::from)?;
        let message = "you are in no group that may use this page";
        let next = "ask who runs the origin to name one of your groups in the file of its setting oidc";
        return Err(ApiError::no_group(message, next).into());
    }
    let now = signed(unix_now());
    let ends = now.saturating_add(session::SESSION_SECONDS);
    let name = person
        .name
        .filter(|name| !name.is_empty() && is_label(name))
        .unwrap_or_else(|| "a person without a name".to_owned());
    let row = ApiTokenRow {
        secret_sha256: provider.key_of(&person.subject),
        label: shown(&name, NAME_MAX),
        scopes: scopes_to_row(&scopes.into_iter().collect::<Vec<_>>()),
        products: "*".to_owned(),
        created: now,
        expires: Some(ends),
        revoked: None,
    };
    let db = app.origin.db();
    if !db.put_person(&row, provider.issuer()).await.map_err(ApiError::from)? {
        let message = "your access to this origin was revoked";
        return Err(ApiError::no_group(message, "ask who runs the origin").into());
    }
    session::end_old(&app, &headers, &on).await?;
    let cookie = session::begin(&app, &on, &row.secret_sha256, now).await?;
    tracing::info!(
        label = row.label,
        scopes = row.scopes,
        "signed in at the web page by the OpenID provider"
    );
    let gone = session::cookie(&on, cookie_name(on.is_encrypted), "", 0);
    let cookies = AppendHeaders([(header::SET_COOKIE, cookie), (header::SET_COOKIE, gone)]);
    let referrer = [(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"))];
    Ok((cookies, referrer, Redirect::to(&attempt.back)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_in_is_found_again_in_its_cookie_alone() {
        let attempt = Attempt::begin("/ui/nodes?where=site%3Da");
        let mut headers = HeaderMap::new();
        let cookie = format!("__Host-distd-oidc={}", attempt.cookie());
        headers.insert(header::COOKIE, cookie.parse().expect("a header value"));
        let found = Attempt::of(&headers, true).expect("the sign-in");
        assert_eq!((found.state(), found.back), (attempt.state(), "/ui/nodes?where=site%3Da".to_owned()));
        assert!(Attempt::of(&headers, false).is_none());
        // The words that the provider sees reveal nothing of the rest.
        let words = [attempt.state(), attempt.nonce(), attempt.verifier(), attempt.challenge()];
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), 4);
        assert!(words.iter().all(|word| word.len() == 43), "{words:?}");
    }
}
