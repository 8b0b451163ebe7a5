//! Refusals of a gateway: a status, what is wrong, and what to do next.

use http::{HeaderValue, StatusCode, header};

use super::Body;

/// A request that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the response.
    pub status: StatusCode,
    /// Reason, without a full stop.
    pub message: String,
    /// Next step of the caller; empty when the message says it.
    pub next: String,
    /// Time after which the same request may succeed, seconds.
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// Refuses with `status`.
    pub fn new(status: StatusCode, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { status, message: message.into(), next: next.into(), retry_after: None }
    }

    /// Says that something is not here.
    pub fn not_found(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message, next)
    }

    /// Says that the same request may succeed after `seconds`.
    pub fn later(message: impl Into<String>, next: impl Into<String>, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message, next) }
    }

    /// Makes the response: text for a person, in the words of the command line.
    pub fn into_response(self) -> http::Response<Body> {
        let mut text = format!("error: {}\n", self.message);
        if !self.next.is_empty() {
            text.push_str(&format!("next: {}\n", self.next));
        }
        let mut response = http::Response::new(Body::text(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"distd\""));
        }
        response
    }
}
