//! Status, headers and body of a response.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use super::body::{Body, Piece};
use super::casync::Indexes;
use super::ranges::{Asked, parse_ranges};
use super::resumed::Resumed;
use super::{Address, Found, Item, Reference, Refusal, Releases};
use crate::random;

/// File with the sum of a release's file, in the form of `sha256sum`.
const SUMS: &str = "SHA256SUMS";

/// File with the OpenPGP signature over that text.
const SIGNATURE: &str = "SHA256SUMS.gpg";

/// Type of the content of releases: a gateway does not look into them.
const OCTETS: &str = "application/octet-stream";

/// Caching of what never changes at its address.
const IMMUTABLE: &str = "private, max-age=31536000, immutable";

/// Suffix of the name of casync's index of a file.
const INDEX_SUFFIX: &str = ".caibx";

/// Memory of a gateway from one request to the next. It can be lost at any time.
#[derive(Debug, Default)]
pub struct Remembered {
    resumed: Resumed,
    indexes: Indexes,
}

/// The caller, as far as an answer depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Address of the caller.
    pub address: IpAddr,
    /// Memory of the gateway.
    pub remembered: &'a Remembered,
}

/// Answers a request for `address`. The caller may read the product: whoever calls this has checked
/// that.
pub async fn answer(
    releases: &dyn Releases,
    method: &Method,
    address: &Address,
    headers: &HeaderMap,
    caller: Caller<'_>,
) -> Response<Body> {
    if method != Method::GET && method != Method::HEAD {
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here", "");
        let mut response = refusal.into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match respond(releases, method, address, headers, caller).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn respond(
    releases: &dyn Releases,
    method: &Method,
    address: &Address,
    headers: &HeaderMap,
    caller: Caller<'_>,
) -> Result<Response<Body>, Refusal> {
    let found = releases.find(address).await?;
    let indexes = &caller.remembered.indexes;
    let file = match &address.item {
        Item::Chunk(id) => return Ok(octets(indexes.chunk(releases, &found, id).await?, true)),
        Item::File(file) => file.as_str(),
    };
    if let Some(response) = sums(file, &found)? {
        return Ok(response);
    }
    if let Some(indexed) = file.strip_suffix(INDEX_SUFFIX)
        && found.file.as_ref().is_none_or(|named| named.name == indexed)
    {
        return Ok(octets(indexes.file(releases, &found).await?, false));
    }
    check_name(file, &found)?;
    let etag = format!("\"{}\"", hex::encode(found.blake3));
    let mut response = Response::new(Body::text(Bytes::new()));
    describe(response.headers_mut(), &address.reference, file, &found, &etag);
    if let Some(status) = precondition(headers, &etag) {
        if status == StatusCode::PRECONDITION_FAILED {
            return Err(Refusal::new(
                status,
                "the file is another one by now",
                "download it from its beginning",
            ));
        }
        *response.status_mut() = status;
        return Ok(response);
    }
    let asked = asked(method, headers, &etag, found.bytes);
    let is_rest = match &asked {
        Asked::One(range) => range.start > 0,
        // The release may be shorter than what was downloaded of another one.
        Asked::Outside => true,
        Asked::Whole | Asked::Many(_) => false,
    };
    if is_rest
        && !headers.contains_key(header::IF_RANGE)
        && caller.remembered.resumed.would_join(caller.address, &address.reference, &found.blake3)
    {
        let message = format!(
            "{} is {} by now: the rest of it does not fit what was downloaded",
            address.reference, found.version
        );
        let next = "remove the partial file and download it again, or resume the address with the version";
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, message, next));
    }
    let begins = method == Method::GET && !is_rest;
    if begins {
        caller.remembered.resumed.began(caller.address, &address.reference, found.blake3);
    }
    let (pieces, is_part) = match asked {
        Asked::Outside => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            insert(response.headers_mut(), header::CONTENT_RANGE, format!("bytes */{}", found.bytes));
            response.headers_mut().remove(header::CONTENT_TYPE);
            return Ok(response);
        }
        Asked::Whole => (vec![Piece::Part(0..found.bytes)], false),
        Asked::One(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let text = format!("bytes {}-{}/{}", range.start, range.end - 1, found.bytes);
            insert(response.headers_mut(), header::CONTENT_RANGE, text);
            (vec![Piece::Part(range)], true)
        }
        Asked::Many(ranges) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let boundary = format!("distd{:016x}{:016x}", random::number(), random::number());
            let kind = format!("multipart/byteranges; boundary={boundary}");
            insert(response.headers_mut(), header::CONTENT_TYPE, kind);
            (multipart(&boundary, ranges, found.bytes), true)
        }
    };
    let bytes: u64 = pieces.iter().map(Piece::len).sum();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    if method == Method::GET {
        let file = releases.open(&found).await?;
        *response.body_mut() = Body::of(Some(file), pieces, is_part);
    }
    Ok(response)
}

/// Makes the response of an index or a chunk for casync.
fn octets(bytes: Bytes, is_immutable: bool) -> Response<Body> {
    let length = bytes.len();
    let mut response = Response::new(Body::text(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(OCTETS));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let caching = if is_immutable { IMMUTABLE } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    response
}

/// Returns the response for `SHA256SUMS` or its signature; `None` for another file.
fn sums(file: &str, found: &Found) -> Result<Option<Response<Body>>, Refusal> {
    if file != SUMS && file != SIGNATURE {
        return Ok(None);
    }
    let product = &found.product;
    let Some(named) = &found.file else {
        let message = format!("the files of {product} have no names, so there is no list of them");
        let next = format!("give them a name: distd product set {product} --file-name '{product}_@v.img'");
        return Err(Refusal::not_found(message, next));
    };
    let Some((text, signature)) = &named.sums else {
        let message = format!("no channel vouches for the sum of {product}@{}", found.version);
        return Err(Refusal::not_found(message, "ask for the list at the address of a channel"));
    };
    let (body, kind) = match (file, signature) {
        (SUMS, _) => (Bytes::from(text.clone()), "text/plain; charset=utf-8"),
        (_, Some(signature)) => (signature.clone(), "application/pgp-signature"),
        (_, None) => {
            let next = "look at the origin's log: its signer has no OpenPGP key";
            return Err(Refusal::not_found("the realm did not sign this list", next));
        }
    };
    let length = body.len();
    let mut response = Response::new(Body::text(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(Some(response))
}

/// Refuses a name that is not the file's. Where a product gives no names, any name will do.
fn check_name(file: &str, found: &Found) -> Result<(), Refusal> {
    match &found.file {
        Some(named) if named.name != file => {
            let message = format!("{}@{} has no file {file}", found.product, found.version);
            Err(Refusal::not_found(message, format!("its file is {}", named.name)))
        }
        _ => Ok(()),
    }
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: String) {
    // Digits, names and hexadecimal text: nothing that a header may not have.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Sets the headers that every answer about a file has.
fn describe(headers: &mut HeaderMap, reference: &Reference, file: &str, found: &Found, etag: &str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(OCTETS));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert(headers, header::ETAG, etag.to_owned());
    let is_version = !found.by_channel && reference.name == found.version;
    let caching = if is_version { IMMUTABLE } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    let place = format!("/r/{}/{}/{file}", found.product, found.version);
    insert(headers, header::CONTENT_LOCATION, place);
}

/// Status by `If-Match` and `If-None-Match`; `None` to go on.
fn precondition(headers: &HeaderMap, etag: &str) -> Option<StatusCode> {
    let names_it = |name: header::HeaderName, weak: bool| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let tags = values.flat_map(|value| value.split(',')).map(str::trim);
        let mut tags = tags.map(|tag| if weak { tag.strip_prefix("W/").unwrap_or(tag) } else { tag });
        tags.any(|tag| tag == "*" || tag == etag)
    };
    if headers.contains_key(header::IF_MATCH) && !names_it(header::IF_MATCH, false) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    names_it(header::IF_NONE_MATCH, true).then_some(StatusCode::NOT_MODIFIED)
}

/// Part that a request asks for. A range for another version of the file does not count.
fn asked(method: &Method, headers: &HeaderMap, etag: &str, bytes: u64) -> Asked {
    let is_same = headers.get(header::IF_RANGE).is_none_or(|tag| tag == etag);
    if method != Method::GET || !is_same {
        return Asked::Whole;
    }
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    range.map_or(Asked::Whole, |range| parse_ranges(range, bytes))
}

/// Pieces of a `multipart/byteranges` body. SWUpdate looks for the boundary in lower case and
/// without quotes.
fn multipart(boundary: &str, ranges: Vec<std::ops::Range<u64>>, bytes: u64) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(2 * ranges.len() + 1);
    for range in ranges {
        let head = format!(
            "\r\n--{boundary}\r\ncontent-type: {OCTETS}\r\ncontent-range: bytes {}-{}/{bytes}\r\n\r\n",
            range.start,
            range.end - 1
        );
        pieces.push(Piece::Text(head.into()));
        pieces.push(Piece::Part(range));
    }
    pieces.push(Piece::Text(format!("\r\n--{boundary}--\r\n").into()));
    pieces
}

#[cfg(test)]
mod tests;
