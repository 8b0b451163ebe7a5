//! Immutable objects of the store as response bodies, whole or as a range.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_core::error::Chain;
use futures::stream;

use super::ApiError;
use crate::store::Store;

/// Bytes read from the store at once.
const PIECE: u64 = 1 << 20;

/// Body of an object's bytes `range`. Reads from the store only as fast as the caller takes the
/// bytes.
fn stream(store: Store, object: String, range: Range<u64>) -> Body {
    Body::from_stream(stream::try_unfold(range, move |left| {
        let (store, object) = (store.clone(), object.clone());
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let end = left.end.min(left.start + PIECE);
            match store.get_range(&object, left.start..end).await {
                // A short read would end the response early, and nothing here would notice.
                Ok(bytes) if bytes.len() as u64 == end - left.start => Ok(Some((bytes, end..left.end))),
                Ok(_) => Err(std::io::Error::other("an object of the store is shorter than before")),
                Err(error) => {
                    tracing::error!(
                        error = %Chain(&error),
                        "could not read an object of the store"
                    );
                    Err(std::io::Error::other(error))
                }
            }
        }
    }))
}

/// Response with a whole immutable object; `None` if the store does not have it.
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

/// Response with the part of an immutable object that the request's `Range` selects, and the number
/// of bytes in it; `None` if the store does not have the object.
pub(super) async fn part(
    store: &Store,
    object: String,
    etag: &str,
    request: &HeaderMap,
) -> Result<Option<(Response, u64)>, ApiError> {
    let Some(len) = store.len(&object).await? else { return Ok(None) };
    let (status, headers, range) = match select(request, etag, len) {
        Ok(selected) => selected,
        Err(outside) => return Ok(Some((*outside, 0))),
    };
    let bytes = range.end - range.start;
    Ok(Some(((status, headers, stream(store.clone(), object, range)).into_response(), bytes)))
}

/// Status, headers and byte range of a response with immutable bytes, `len` of them, as the
/// request's `Range` and `If-Range` select them.
///
/// # Errors
/// The response to a range that begins behind the end.
pub(super) fn select(
    request: &HeaderMap,
    etag: &str,
    len: u64,
) -> Result<(StatusCode, HeaderMap, Range<u64>), Box<Response>> {
    let etag = HeaderValue::from_str(etag).expect("a hexadecimal name in quotes");
    // With another version in `If-Range` the range does not apply, and the whole object is sent.
    let same = request.get(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let asked = request.get(header::RANGE).filter(|_| same).and_then(|value| value.to_str().ok());
    let (status, range) = match asked.map_or(RequestedRange::Whole, |range| parse_range(range, len)) {
        RequestedRange::Whole => (StatusCode::OK, 0..len),
        RequestedRange::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        RequestedRange::Outside => {
            let outside = format!("bytes */{len}");
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            let value = HeaderValue::from_str(&outside).expect("digits");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            return Err(Box::new(response));
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    headers.insert(header::ETAG, etag);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{len}", range.start, range.end - 1);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&value).expect("digits"));
    }
    Ok((status, headers, range))
}

#[derive(Debug, PartialEq, Eq)]
enum RequestedRange {
    Whole,
    Part(Range<u64>),
    Outside,
}

/// Parses a `Range` (RFC 9110 §14). A malformed one, one of another unit and one of several parts
/// are ignored, and the whole object is sent.
fn parse_range(text: &str, len: u64) -> RequestedRange {
    let Some(spec) = text.strip_prefix("bytes=") else { return RequestedRange::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return RequestedRange::Whole };
    let number = |s: &str| -> Option<u64> {
        // `parse` would accept a sign. A number that does not fit in 64 bits counts as the largest
        // one.
        (!s.is_empty() && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().unwrap_or(u64::MAX))
    };
    match (first.is_empty(), number(first), last.is_empty(), number(last)) {
        (true, _, false, Some(0)) => RequestedRange::Outside,
        (true, _, false, Some(_)) if len == 0 => RequestedRange::Outside,
        (true, _, false, Some(suffix)) => RequestedRange::Part(len.saturating_sub(suffix)..len),
        (false, Some(first), true, _) if first < len => RequestedRange::Part(first..len),
        (false, Some(first), false, Some(last)) if first > last => RequestedRange::Whole,
        (false, Some(first), false, Some(last)) if first < len => {
            RequestedRange::Part(first..last.saturating_add(1).min(len))
        }
        (false, Some(_), true, _) | (false, Some(_), false, Some(_)) => RequestedRange::Outside,
        _ => RequestedRange::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        for (text, expected) in [
            ("bytes=0-0", RequestedRange::Part(0..1)),
            ("bytes=2-5", RequestedRange::Part(2..6)),
            ("bytes=2-", RequestedRange::Part(2..10)),
            ("bytes=-3", RequestedRange::Part(7..10)),
            ("bytes=-30", RequestedRange::Part(0..10)),
            ("bytes=5-99999999999999999999999", RequestedRange::Part(5..10)),
            ("bytes=10-", RequestedRange::Outside),
            ("bytes=10-12", RequestedRange::Outside),
            ("bytes=-0", RequestedRange::Outside),
            ("bytes=5-2", RequestedRange::Whole),
            ("bytes=", RequestedRange::Whole),
            ("bytes=-", RequestedRange::Whole),
            ("bytes=+1-2", RequestedRange::Whole),
            ("bytes=0-1,3-4", RequestedRange::Whole),
            ("chunks=0-1", RequestedRange::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), RequestedRange::Outside);
    }
}
