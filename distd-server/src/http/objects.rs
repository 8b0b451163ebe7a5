//! Immutable objects of the store as response bodies, whole or in part.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;

use super::ApiError;
use crate::store::Store;

/// Bytes read from the store at once.
const PIECE: u64 = 1 << 20;

/// An object's bytes `range`, read as fast as the caller takes them.
fn stream(store: Store, object: String, range: Range<u64>) -> Body {
    Body::from_stream(stream::try_unfold(range, move |left| {
        let (store, object) = (store.clone(), object.clone());
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let end = left.end.min(left.start + PIECE);
            match store.get_range(&object, left.start..end).await {
                // A short one would let the response end early without anyone noticing here.
                Ok(bytes) if bytes.len() as u64 == end - left.start => Ok(Some((bytes, end..left.end))),
                Ok(_) => Err(std::io::Error::other("an object is shorter than it was")),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "an object cannot be read");
                    Err(std::io::Error::other(error))
                }
            }
        }
    }))
}

/// A whole immutable object.
pub(super) async fn whole(
    store: &Store,
    object: String,
    content_type: &'static str,
) -> Result<Option<Response>, ApiError> {
    let Some(len) = store.len(&object).await? else { return Ok(None) };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CONTENT_LENGTH, HeaderValue::from(len)),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
    ];
    Ok(Some((headers, stream(store.clone(), object, 0..len)).into_response()))
}

/// A part of an immutable object, as the `Range` of the request says, and how many bytes it has.
pub(super) async fn part(
    store: &Store,
    object: String,
    etag: &str,
    request: &HeaderMap,
) -> Result<Option<(Response, u64)>, ApiError> {
    let Some(len) = store.len(&object).await? else { return Ok(None) };
    let etag = HeaderValue::from_str(etag).expect("a hexadecimal name in quotes");
    // A range of something else is none of ours.
    let same = request.get(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let asked = request.get(header::RANGE).filter(|_| same).and_then(|value| value.to_str().ok());
    let (status, range) = match asked.map_or(Asked::Whole, |range| parse_range(range, len)) {
        Asked::Whole => (StatusCode::OK, 0..len),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Outside => {
            let outside = format!("bytes */{len}");
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            let value = HeaderValue::from_str(&outside).expect("digits");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            return Ok(Some((response, 0)));
        }
    };
    let bytes = range.end - range.start;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    headers.insert(header::ETAG, etag);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{len}", range.start, range.end - 1);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&value).expect("digits"));
    }
    Ok(Some(((status, headers, stream(store.clone(), object, range)).into_response(), bytes)))
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    Outside,
}

/// RFC 9110 §14: what is malformed, of another unit or of several parts is ignored, and all is sent.
fn parse_range(text: &str, len: u64) -> Asked {
    let Some(spec) = text.strip_prefix("bytes=") else { return Asked::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Asked::Whole };
    let number = |s: &str| -> Option<u64> {
        // `parse` would take a sign; a number too large to count is as far as can be.
        (!s.is_empty() && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().unwrap_or(u64::MAX))
    };
    match (first.is_empty(), number(first), last.is_empty(), number(last)) {
        (true, _, false, Some(0)) => Asked::Outside,
        (true, _, false, Some(_)) if len == 0 => Asked::Outside,
        (true, _, false, Some(suffix)) => Asked::Part(len.saturating_sub(suffix)..len),
        (false, Some(first), true, _) if first < len => Asked::Part(first..len),
        (false, Some(first), false, Some(last)) if first > last => Asked::Whole,
        (false, Some(first), false, Some(last)) if first < len => {
            Asked::Part(first..last.saturating_add(1).min(len))
        }
        (false, Some(_), true, _) | (false, Some(_), false, Some(_)) => Asked::Outside,
        _ => Asked::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (text, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-5", Asked::Part(2..6)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-30", Asked::Part(0..10)),
            ("bytes=5-99999999999999999999999", Asked::Part(5..10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=10-12", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=5-2", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("chunks=0-1", Asked::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Asked::Outside);
    }
}
