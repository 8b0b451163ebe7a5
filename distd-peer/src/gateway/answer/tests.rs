use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use distd_core::ManifestId;
use http_body::Body as _;

use super::super::{FileBytes, NamedFile};
use super::*;

/// A file of the bytes 0, 1, 2, … that hands on at most seven at a time.
#[derive(Default)]
struct File;

#[async_trait]
impl FileBytes for File {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        let end = range.end.min(range.start + 7);
        Ok((range.start..end).map(|byte| byte as u8).collect())
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Ok(vec![40, 10, 50])
    }
}

/// One release whose file has `bytes` bytes.
struct One {
    found: Mutex<Found>,
}

#[async_trait]
impl Releases for One {
    async fn find(&self, _address: &Address) -> Result<Found, Refusal> {
        Ok(self.found.lock().expect("not poisoned").clone())
    }

    async fn open(&self, _found: &Found) -> Result<Arc<dyn FileBytes>, Refusal> {
        Ok(Arc::new(File))
    }
}

fn one(file: Option<NamedFile>) -> One {
    let found = Found {
        product: "os".parse().expect("a name"),
        version: "2".parse().expect("a name"),
        by_channel: false,
        manifest: ManifestId([7; 32]),
        bytes: 100,
        blake3: [0xab; 32],
        file,
    };
    One { found: Mutex::new(found) }
}

fn etag() -> String {
    format!("\"{}\"", "ab".repeat(32))
}

struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

async fn ask(
    releases: &One,
    remembered: &Remembered,
    method: Method,
    path: &str,
    with: &[(&str, &str)],
) -> Answered {
    let (address, _) = Address::of_path(path).expect("an address");
    let mut headers = HeaderMap::new();
    for (name, value) in with {
        headers.append(name.parse::<header::HeaderName>().expect("a name"), value.parse().expect("a value"));
    }
    let caller = Caller { address: [127, 0, 0, 1].into(), remembered };
    let response = answer(releases, &method, &address, &headers, caller).await;
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        bytes.extend_from_slice(&frame.expect("bytes").into_data().expect("data"));
    }
    Answered { status: parts.status.as_u16(), headers: parts.headers, body: bytes }
}

async fn get(with: &[(&str, &str)]) -> Answered {
    ask(&one(None), &Remembered::default(), Method::GET, "/r/os/stable/x", with).await
}

fn all() -> Vec<u8> {
    (0..100).collect()
}

fn header<'a>(answered: &'a Answered, name: &str) -> &'a str {
    answered.headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

#[tokio::test]
async fn a_whole_file_has_its_length_its_hash_and_its_place() {
    let got = get(&[]).await;
    assert_eq!((got.status, got.body.as_slice()), (200, all().as_slice()));
    assert_eq!(header(&got, "content-length"), "100");
    assert_eq!(header(&got, "etag"), etag());
    assert_eq!(header(&got, "content-location"), "/r/os/2/x");
    assert_eq!(header(&got, "cache-control"), "no-cache");
    let head =
        ask(&one(None), &Remembered::default(), Method::HEAD, "/r/os/2/x", &[("range", "bytes=0-3")]).await;
    assert_eq!((head.status, head.body.len(), header(&head, "content-length")), (200, 0, "100"));
    assert!(header(&head, "cache-control").contains("immutable"));
    let post = ask(&one(None), &Remembered::default(), Method::POST, "/r/os/2/x", &[]).await;
    assert_eq!((post.status, header(&post, "allow")), (405, "GET, HEAD"));
}

#[tokio::test]
async fn one_range_is_a_part_of_the_file() {
    for (range, part) in [("bytes=0-3", 0..4), ("bytes=90-", 90..100), ("bytes=-8", 92..100)] {
        let got = get(&[("range", range)]).await;
        assert_eq!((got.status, got.body.as_slice()), (206, &all()[part.clone()]), "{range}");
        let expected = format!("bytes {}-{}/100", part.start, part.end - 1);
        assert_eq!(header(&got, "content-range"), expected);
    }
    let outside = get(&[("range", "bytes=100-")]).await;
    assert_eq!((outside.status, header(&outside, "content-range")), (416, "bytes */100"));
    assert_eq!(outside.body, b"");
}

#[tokio::test]
async fn several_ranges_are_parts_in_the_order_asked_for() {
    let got = get(&[("range", "bytes=50-59,0-9")]).await;
    assert_eq!(got.status, 206);
    let kind = header(&got, "content-type").to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
    assert!(boundary.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{boundary}");
    let mut expected = Vec::new();
    for part in [50..60, 0..10] {
        let head = format!(
            "\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes {}-{}/100\r\n\r\n",
            part.start,
            part.end - 1
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&all()[part]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert_eq!(got.body, expected);
    assert_eq!(header(&got, "content-length"), expected.len().to_string());
}

#[tokio::test]
async fn a_range_of_another_version_is_answered_with_the_whole_file() {
    let same = get(&[("range", "bytes=5-9"), ("if-range", &etag())]).await;
    assert_eq!((same.status, same.body), (206, all()[5..10].to_vec()));
    for other in ["\"00\"", "Sat, 28 Nov 2026 10:00:00 GMT", "W/\"ab\""] {
        let got = get(&[("range", "bytes=5-9"), ("if-range", other)]).await;
        assert_eq!((got.status, got.body.len()), (200, 100), "{other}");
    }
}

#[tokio::test]
async fn conditions_are_obeyed() {
    for tag in [etag(), format!("\"x\", W/{}", etag()), "*".to_owned()] {
        let got = get(&[("if-none-match", &tag)]).await;
        assert_eq!((got.status, got.body.len()), (304, 0), "{tag}");
        assert_eq!(header(&got, "etag"), etag());
    }
    assert_eq!(get(&[("if-none-match", "\"x\"")]).await.status, 200);
    assert_eq!(get(&[("if-match", &etag())]).await.status, 200);
    assert_eq!(get(&[("if-match", "\"x\"")]).await.status, 412);
}

#[tokio::test]
async fn a_download_is_not_resumed_into_another_release() {
    let (releases, remembered) = (one(None), Remembered::default());
    let path = "/r/os/stable/x";
    let rest = [("range", "bytes=40-")];
    // The gateway may have been started since: nothing is known then.
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &rest).await.status, 206);
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &[]).await.status, 200);
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &rest).await.status, 206);
    releases.found.lock().expect("not poisoned").blake3 = [1; 32];
    assert_eq!(
        ask(&releases, &remembered, Method::HEAD, path, &[]).await.status,
        200,
        "a look begins nothing"
    );
    let moved = ask(&releases, &remembered, Method::GET, path, &rest).await;
    assert_eq!(moved.status, 412);
    let text = String::from_utf8(moved.body).expect("text");
    assert!(
        text.contains("os/stable is 2 by now") && text.contains("next: remove the partial file"),
        "{text}"
    );
    // The new release may be shorter than what was downloaded of the old one.
    let behind = [("range", "bytes=100-")];
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &behind).await.status, 412);
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &rest).await.status, 412, "nothing began");
    let whole = [("range", "bytes=40-"), ("if-range", &*etag())];
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &whole).await.status, 200);
    assert_eq!(ask(&releases, &remembered, Method::GET, path, &rest).await.status, 206, "it began anew");
}

#[tokio::test]
async fn a_product_with_names_has_one_file_and_its_sum() {
    let text = format!("{}  os_2.img\n", "0".repeat(64));
    let named = NamedFile {
        name: "os_2.img".to_owned(),
        sums: Some((text.clone(), Some(Bytes::from_static(b"signature")))),
    };
    let releases = one(Some(named.clone()));
    let at = async |releases: &One, file: &str| {
        ask(releases, &Remembered::default(), Method::GET, &format!("/r/os/stable/{file}"), &[]).await
    };
    assert_eq!(at(&releases, "os_2.img").await.status, 200);
    let other = at(&releases, "os_1.img").await;
    assert_eq!(other.status, 404);
    assert!(String::from_utf8_lossy(&other.body).contains("its file is os_2.img"));
    let sums = at(&releases, "SHA256SUMS").await;
    assert_eq!((sums.status, sums.body), (200, text.into_bytes()));
    let signature = at(&releases, "SHA256SUMS.gpg").await;
    assert_eq!((signature.status, signature.body.as_slice()), (200, &b"signature"[..]));
    // Without a name, or a sum, there is no list, and never an empty one: systemd-sysupdate takes
    // an empty answer for a broken download.
    assert_eq!(at(&one(None), "SHA256SUMS").await.status, 404);
    assert_eq!(at(&one(None), "SHA256SUMS.gpg").await.status, 404);
    let unsigned = NamedFile { sums: named.sums.clone().map(|(text, _)| (text, None)), ..named.clone() };
    assert_eq!(at(&one(Some(unsigned)), "SHA256SUMS.gpg").await.status, 404);
    assert_eq!(at(&one(Some(NamedFile { sums: None, ..named })), "SHA256SUMS").await.status, 404);
}

#[tokio::test]
async fn casync_gets_an_index_and_its_chunks() {
    let (releases, remembered) = (one(None), Remembered::default());
    let index = ask(&releases, &remembered, Method::GET, "/r/os/stable/x.caibx", &[]).await;
    assert_eq!((index.status, index.body.len()), (200, 48 + 16 + 3 * 40 + 40));
    let number = |at: usize| u64::from_le_bytes(index.body[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!([number(24), number(32), number(40)], [1, 33, 50], "sizes of chunks");
    let mut whole = Vec::new();
    for (item, end) in [(0, 40), (1, 50), (2, 100)] {
        let at = 64 + 40 * item;
        assert_eq!(number(at), end);
        let id = hex::encode(&index.body[at + 8..at + 40]);
        let path = format!("/r/os/stable/default.castr/{}/{id}.cacnk", &id[..4]);
        let chunk = ask(&releases, &remembered, Method::GET, &path, &[]).await;
        assert_eq!(chunk.status, 200, "{path}");
        let raw = zstd::bulk::decompress(&chunk.body, 1000).expect("packed by zstd");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512_256, &raw);
        assert_eq!(hex::encode(digest), id);
        whole.extend(raw);
        // The channel moves on while the client fetches.
        if item == 1 {
            let mut found = releases.found.lock().expect("not poisoned");
            (found.manifest, found.version) = (ManifestId([8; 32]), "3".parse().expect("a name"));
        }
    }
    assert_eq!(whole, all());
    let none = format!("/r/os/stable/default.castr/0000/{}.cacnk", "0".repeat(64));
    assert_eq!(ask(&releases, &remembered, Method::GET, &none, &[]).await.status, 404);
}

/// A file whose bytes are gone after the first ones.
struct Broken;

#[async_trait]
impl FileBytes for Broken {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        match range.start {
            0 => Ok(Bytes::from_static(b"x")),
            _ => Err(io::Error::other("gone")),
        }
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Ok(vec![5])
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_ends_with_an_error_and_not_early() {
    let mut body = Body::of(Some(Arc::new(Broken)), vec![Piece::Part(0..5)], false);
    let mut next = async || std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
    assert!(matches!(next().await, Some(Ok(_))));
    assert!(matches!(next().await, Some(Err(_))));
    assert!(next().await.is_none());
}
