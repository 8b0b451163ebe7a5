//! Responses of the proxy: headers, conditions, ranges and bodies.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Frame, SizeHint};

use super::flight::Failure;
use super::index::{Sha256, Sum};
use crate::gateway::{Asked, Body, FileBytes, Piece, Refusal, parse_ranges};

/// A body that is passed on as it comes.
type Passed = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Body of a response.
pub enum Reply {
    /// Text, or parts of a file.
    File(Body),
    /// A body that comes from a mirror; the length if it is known.
    Passed(Passed, Option<u64>),
}

/// Taker of the number of bytes that are handed on.
pub(super) type Sent = Arc<dyn Fn(u64) + Send + Sync>;

impl Reply {
    /// Calls `sent` with the number of bytes, each time that some are handed on.
    pub(super) fn counted(self, sent: Sent) -> Self {
        match self {
            Self::File(body) => Self::File(body.counted(sent)),
            Self::Passed(stream, length) => {
                let counted = stream.inspect_ok(move |bytes| sent(bytes.len() as u64));
                Self::Passed(Box::pin(counted), length)
            }
        }
    }

    /// A body that is passed on.
    pub(super) fn passed(
        stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: Option<u64>,
    ) -> Self {
        Self::Passed(Box::pin(stream), length)
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self::File(Body::text(Bytes::new()))
    }
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::File(body) => Pin::new(body).poll_frame(cx),
            Self::Passed(stream, _) => {
                stream.as_mut().poll_next(cx).map(|next| next.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::File(body) => body.is_end_stream(),
            Self::Passed(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::File(body) => body.size_hint(),
            Self::Passed(_, Some(length)) => SizeHint::with_exact(*length),
            Self::Passed(_, None) => SizeHint::default(),
        }
    }
}

/// A file that is given to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Described {
    pub(super) sum: Sum,
    /// `Last-Modified`, unix seconds.
    pub(super) modified: u64,
    /// Whether no mirror could say if the file is still the newest.
    pub(super) is_stale: bool,
}

/// Text of a date in a header.
pub(super) fn date(seconds: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A date for a file whose mirror gives none: the same for the same bytes, so that apt resumes a
/// download by it, and most likely another for others. It lies between 1970 and 2004.
pub(super) fn date_of(sha256: &Sha256) -> u64 {
    u64::from(u32::from_be_bytes([sha256[0], sha256[1], sha256[2], sha256[3]])) >> 2
}

fn etag(described: &Described) -> String {
    format!("\"{}\"", hex::encode(described.sum.sha256))
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: String) {
    // Digits and dates: nothing that a header may not have.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether the client has this very file.
pub(super) fn is_unmodified(headers: &HeaderMap, described: &Described) -> bool {
    if let Some(tags) = text_of(headers, header::IF_NONE_MATCH) {
        let etag = etag(described);
        return tags.split(',').map(str::trim).any(|tag| tag.trim_start_matches("W/") == etag || tag == "*");
    }
    let since =
        text_of(headers, header::IF_MODIFIED_SINCE).and_then(|text| httpdate::parse_http_date(text).ok());
    // apt sends the date that it was given. A later date proves nothing: a date that was made of
    // the hash steps back as often as not, and so does that of a mirror that was restored.
    since.is_some_and(|since| since == UNIX_EPOCH + Duration::from_secs(described.modified))
}

/// Part of the file that a request asks for. Several ranges are answered with the whole: apt asks
/// for one, and a request for many costs less than their answer.
fn asked(method: &Method, headers: &HeaderMap, described: &Described) -> Asked {
    let is_same = text_of(headers, header::IF_RANGE)
        .is_none_or(|tag| tag == etag(described) || tag == date(described.modified));
    if method != Method::GET || !is_same {
        return Asked::Whole;
    }
    match text_of(headers, header::RANGE).map(|range| parse_ranges(range, described.sum.bytes)) {
        Some(Asked::Many(_)) | None => Asked::Whole,
        Some(asked) => asked,
    }
}

/// Makes the response that gives a file, or a part of it.
pub(super) fn give(
    method: &Method,
    headers: &HeaderMap,
    described: &Described,
    file: Arc<dyn FileBytes>,
) -> Response<Reply> {
    let bytes = described.sum.bytes;
    let mut response = Response::new(Reply::empty());
    describe(response.headers_mut(), described);
    let range = match asked(method, headers, described) {
        Asked::One(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let text = format!("bytes {}-{}/{bytes}", range.start, range.end - 1);
            insert(response.headers_mut(), header::CONTENT_RANGE, text);
            range
        }
        Asked::Outside => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            insert(response.headers_mut(), header::CONTENT_RANGE, format!("bytes */{bytes}"));
            return response;
        }
        Asked::Whole | Asked::Many(_) => 0..bytes,
    };
    insert(response.headers_mut(), header::CONTENT_LENGTH, (range.end - range.start).to_string());
    if method == Method::GET {
        *response.body_mut() = Reply::File(Body::of(Some(file), vec![Piece::Part(range)], false));
    }
    response
}

/// Makes the response 304.
pub(super) fn not_modified(described: &Described) -> Response<Reply> {
    let mut response = Response::new(Reply::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    describe(response.headers_mut(), described);
    response
}

pub(super) fn describe(headers: &mut HeaderMap, described: &Described) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert(headers, header::LAST_MODIFIED, date(described.modified));
    insert(headers, header::ETAG, etag(described));
    if described.is_stale {
        headers.insert(header::WARNING, HeaderValue::from_static("110 distd \"Response is Stale\""));
    }
}

/// Makes the response for a file that could not be had.
pub(super) fn failed(failure: &Failure) -> Response<Reply> {
    let refusal = match failure {
        Failure::Status(status) => {
            let passed = matches!(status.as_u16(), 401 | 403 | 404 | 410);
            let status = if passed { *status } else { StatusCode::BAD_GATEWAY };
            Refusal::new(status, failure.to_string(), "")
        }
        Failure::WrongBytes(_) => {
            let next = "the mirror may be half-way through an update: try again, or use another mirror";
            Refusal::new(StatusCode::BAD_GATEWAY, failure.to_string(), next)
        }
        Failure::Unreachable(_) => Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            failure.to_string(),
            "look at the mirror and the network",
        ),
        Failure::Refused(_) => {
            let next =
                "name the host in [apt] of the settings: hosts, or private_hosts for a private network";
            Refusal::new(StatusCode::FORBIDDEN, failure.to_string(), next)
        }
        Failure::Disk => Refusal::new(StatusCode::INSUFFICIENT_STORAGE, failure.to_string(), "make room"),
    };
    refusal.into_response().map(Reply::File)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Described =
        Described { sum: Sum { sha256: [1; 32], bytes: 10 }, modified: 1_000_000_000, is_stale: false };

    fn request(fields: &[(header::HeaderName, &str)]) -> HeaderMap {
        let pairs =
            fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value")));
        pairs.collect()
    }

    #[test]
    fn conditions_are_obeyed() {
        let [same, later, before] = [1_000_000_000, 1_000_000_001, 999_999_999].map(date);
        let since = |text: &str| is_unmodified(&request(&[(header::IF_MODIFIED_SINCE, text)]), &FILE);
        assert!(since(&same) && !since(&later) && !since(&before) && !since("yesterday"));
        let tag = etag(&FILE);
        let none_match = |text: &str| is_unmodified(&request(&[(header::IF_NONE_MATCH, text)]), &FILE);
        assert!(none_match(&tag) && none_match(&format!("\"x\", W/{tag}")) && !none_match("\"x\""));
        let part = |if_range: &str| {
            asked(&Method::GET, &request(&[(header::RANGE, "bytes=4-"), (header::IF_RANGE, if_range)]), &FILE)
        };
        assert_eq!(part(&same), Asked::One(4..10));
        assert_eq!(part(&tag), Asked::One(4..10));
        assert_eq!(part(&before), Asked::Whole);
    }

    #[test]
    fn ranges_that_overlap_overflow_or_multiply_cost_one_answer() {
        let part = |text: &str| asked(&Method::GET, &request(&[(header::RANGE, text)]), &FILE);
        for (text, expected) in [
            ("bytes=0-3,2-5", Asked::Whole),
            ("bytes=0-1,4-5", Asked::Whole),
            ("bytes=0-0,0-0,0-0,0-0", Asked::Whole),
            ("bytes=5-99999999999999999999", Asked::One(5..10)),
            ("bytes=99999999999999999999-", Asked::Outside),
            ("bytes=-99999999999999999999", Asked::One(0..10)),
            ("bytes=18446744073709551615-18446744073709551615", Asked::Outside),
        ] {
            assert_eq!(part(text), expected, "{text}");
        }
        let many = (0..5000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(part(&format!("bytes={many}")), Asked::Whole);
    }

    #[test]
    fn a_file_without_a_date_gets_one_by_its_hash() {
        assert_eq!(date_of(&[0; 32]), 0);
        assert!(date_of(&[255; 32]) < 1_100_000_000);
        assert_ne!(date_of(&[1; 32]), date_of(&[2; 32]));
    }
}
