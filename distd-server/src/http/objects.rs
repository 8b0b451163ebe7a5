//! Immutable objects of the store as response bodies, whole or as a range.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_core::error::Chain;
use distd_peer::gateway::{Asked, parse_ranges};
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
    let (status, range) = match asked.map_or(Asked::Whole, |range| parse_range(range, len)) {
        Asked::Whole | Asked::Many(_) => (StatusCode::OK, 0..len),
        Asked::One(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Outside => {
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

/// Parses a `Range`. One of several parts is ignored, and the whole object is sent.
fn parse_range(text: &str, len: u64) -> Asked {
    if text.contains(',') { Asked::Whole } else { parse_ranges(text, len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        for (text, expected) in [
            ("bytes=0-0", Asked::One(0..1)),
            ("bytes=2-5", Asked::One(2..6)),
            ("bytes=2-", Asked::One(2..10)),
            ("bytes=-3", Asked::One(7..10)),
            ("bytes=-30", Asked::One(0..10)),
            ("bytes=5-99999999999999999999999", Asked::One(5..10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=10-12", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=5-2", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=0-1,", Asked::Whole),
            ("chunks=0-1", Asked::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Asked::Outside);
    }
}
