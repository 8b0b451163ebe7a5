//! `/v1/uploads`: uploads of chunks that the publisher cut.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use bytes::{Buf, Bytes};
use distd_core::bounds::CHUNK_BYTES_MAX;
use distd_core::cut::CutParams;
use distd_core::manifest::Kind;
use distd_core::names::Name;
use distd_core::packing::Codec;
use distd_core::{ArtifactHash, ChunkHash};
use distd_peer::clock::unix_now;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, ToAdminister, ToPublish};
use super::body::{At, Incoming, Perhaps};
use super::products::Cut;
use super::releases::{self, Release};
use super::spool::{Spooled, Use};
use super::{ApiError, App};
use crate::db::{OpenUpload, UploadId, UploadRow};
use crate::ingest::{ChunkSink, CommitRequest, IncomingChunk, Run};
use crate::origin::signed;

/// Most hashes in one request for the missing chunks.
const HASHES_MAX: u64 = 65_536;

/// Largest body of chunk records, bytes.
const CHUNKS_BYTES_MAX: u64 = 32 << 20;

/// Largest chunk list of a commit, bytes: 6.7 million runs, about 100 GB of artifact.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// Length of a chunk record's head, bytes: hash, codec, raw length, stored length.
const RECORD_HEAD: usize = 32 + 1 + 4 + 4;

/// Length of a run in a chunk list, bytes: hash, length, repeat.
const RUN_BYTES: usize = 32 + 4 + 4;

/// Most chunks of an artifact, repeats counted: 16 TiB in chunks of the largest default size.
/// Bounds the time that a short list with large repeat counts can take.
const ARTIFACT_CHUNKS_MAX: u64 = 1 << 28;

/// An open upload.
#[derive(Serialize, ToSchema)]
pub(super) struct Upload {
    /// Id of the upload, 32 hexadecimal digits.
    upload: String,
    /// Cut parameters for the artifact.
    cut: Cut,
    /// Whether the upload was begun before. If so, ask which chunks are missing.
    resumed: bool,
}

/// Result of a request that sent chunks.
#[derive(Serialize, ToSchema)]
pub(super) struct Stored {
    /// Number of chunks that the origin did not have.
    stored: u64,
}

/// Announcement of the artifact that an upload is to become.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Announced {
    /// Length of the artifact, bytes. An upload that could never be committed is refused at once.
    bytes: Option<u64>,
}

/// Begins an upload of a version, or resumes the open one that the token began. Creates the product
/// if it does not exist.
#[utoipa::path(post, path = "/v1/products/{product}/releases/{version}/uploads", tag = "uploads",
    params(("product" = String, Path), ("version" = String, Path)), request_body = Option<Announced>,
    responses((status = 200, body = Upload)), security(("token" = ["publish"])))]
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At((product, version)): At<(Name, Name)>,
    Perhaps(announced): Perhaps<Announced>,
) -> Result<Json<Upload>, ApiError> {
    caller.may(&product)?;
    let ingest = app.origin.ingest();
    if let Some(bytes) = announced.bytes {
        ingest.check_announced(bytes)?;
    }
    ingest.check_room(0)?;
    let now = signed(unix_now());
    let (row, _) = app.origin.db().ensure_product(&product, CutParams::default(), now).await?;
    let (upload, resumed) = ingest.begin_or_resume(&product, &version, &caller.publisher(), now).await?;
    Ok(Json(Upload { resumed, upload: upload.id.to_string(), cut: row.cut.into() }))
}

/// Row of the upload if the caller's token began it. For other tokens the upload does not exist, so
/// its id alone reveals nothing.
async fn own<N>(app: &App, caller: &Caller<N>, text: &str) -> Result<UploadRow, ApiError> {
    let id = upload_id(text)?;
    match app.origin.db().upload(&id).await? {
        Some(row) if row.token == caller.token => Ok(row),
        _ => Err(ApiError::unknown_upload(format!("this token has no upload {id}"))),
    }
}

fn upload_id(text: &str) -> Result<UploadId, ApiError> {
    text.parse().map_err(|_| ApiError::unknown_upload("there is no upload of this id".to_owned()))
}

/// Tells which chunks have to be sent: bit `i`, most significant first, is set if the chunk of hash
/// `i` is missing.
#[utoipa::path(post, path = "/v1/uploads/{upload}/missing", tag = "uploads", params(("upload" = String, Path)),
    request_body(content = Vec<u8>, description = "Hashes of 32 bytes, at most 65536", content_type = "application/octet-stream"),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")),
    security(("token" = ["publish"])))]
pub(super) async fn missing(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At(upload): At<String>,
    body: Incoming<{ HASHES_MAX * 32 }>,
) -> Result<impl IntoResponse, ApiError> {
    let upload = own(&app, &caller, &upload).await?;
    upload.must_be_open()?;
    let body = body.whole().await?;
    let (hashes, rest) = body.as_chunks::<32>();
    if !rest.is_empty() {
        let message = format!("the body has {} bytes, which is not a multiple of 32", body.len());
        return Err(ApiError::bad_request(message, "send hashes of 32 bytes back to back"));
    }
    let hashes: Vec<ChunkHash> = hashes.iter().map(|hash| ChunkHash(*hash)).collect();
    let mut bitmap = vec![0u8; hashes.len().div_ceil(8)];
    for index in app.origin.ingest().missing_from(&upload, &hashes).await? {
        let index = index as usize;
        bitmap[index / 8] |= 0x80 >> (index % 8);
    }
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bitmap))
}

/// Stores chunks. They are durable when the answer is 200.
#[utoipa::path(post, path = "/v1/uploads/{upload}/chunks", tag = "uploads", params(("upload" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description =
        "Records: hash (32 bytes), codec (1), raw length (4, big-endian), stored length (4), stored bytes; at most 32 MiB"),
    responses((status = 200, body = Stored)), security(("token" = ["publish"])))]
pub(super) async fn chunks(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At(upload): At<String>,
    body: Incoming<CHUNKS_BYTES_MAX>,
) -> Result<Json<Stored>, ApiError> {
    let upload = own(&app, &caller, &upload).await?;
    upload.must_be_open()?;
    // The body is received before a sink is taken: there are few sinks, and a slow caller must not
    // hold one.
    let spooled = app.spool(&caller.token, body.with_deadline(), Use::Once).await?;
    // The sink works in a task of its own, so the end of the connection cannot stop it between the
    // write of a pack and the insertion of the pack's row.
    let at = app.clone();
    let stored = app.detached(async move {
        let sink = at.origin.ingest().sink(&upload, signed(unix_now())).await?;
        feed(spooled, sink).await
    });
    Ok(Json(Stored { stored: stored.await? }))
}

/// Splits the body into chunks and stores them. Returns the number of new chunks.
async fn feed(mut body: Spooled, mut sink: ChunkSink) -> Result<u64, ApiError> {
    let mut records = Records::default();
    while let Some(mut piece) = body.next().await.map_err(ApiError::internal)? {
        while let Some(chunk) = records.take(&mut piece.bytes)? {
            sink.push(chunk).await?;
        }
    }
    records.end()?;
    // Give the body's memory and place back before the last pack is stored.
    drop(body);
    Ok(sink.finish().await?)
}

/// Parser of chunk records that arrive in pieces.
#[derive(Default)]
struct Records {
    /// Number of records that were returned.
    count: u64,
    /// Bytes of the next record's head that have arrived.
    head: Vec<u8>,
    /// Next record, once its head is whole, with the bytes of its chunk that have arrived.
    begun: Option<IncomingRecord>,
}

struct IncomingRecord {
    hash: ChunkHash,
    codec: Codec,
    raw_len: u32,
    stored_len: usize,
    bytes: Vec<u8>,
}

impl Records {
    /// Takes bytes from the front of `piece`, and returns the next record once it is whole. Its
    /// lengths are checked before its chunk arrives.
    fn take(&mut self, piece: &mut Bytes) -> Result<Option<IncomingChunk>, ApiError> {
        if self.begun.is_none() {
            let taken = piece.split_to(piece.len().min(RECORD_HEAD - self.head.len()));
            self.head.extend_from_slice(&taken);
            if self.head.len() < RECORD_HEAD {
                return Ok(None);
            }
            self.begun = Some(read_head(&self.head, self.count)?);
            self.head.clear();
        }
        let Some(record) = &mut self.begun else { return Ok(None) };
        // The bytes are copied, so that a chunk does not keep its whole piece in memory.
        let taken = piece.split_to(piece.len().min(record.stored_len - record.bytes.len()));
        record.bytes.extend_from_slice(&taken);
        if record.bytes.len() < record.stored_len {
            return Ok(None);
        }
        self.count += 1;
        let whole = self.begun.take().map(|IncomingRecord { hash, codec, raw_len, bytes, .. }| {
            IncomingChunk { hash, codec, raw_len, bytes: bytes.into() }
        });
        Ok(whole)
    }

    /// Refuses a body whose last record is not whole.
    fn end(&self) -> Result<(), ApiError> {
        if self.head.is_empty() && self.begun.is_none() {
            return Ok(());
        }
        let message = format!("record number {} is incomplete", self.count);
        Err(ApiError::bad_request(message, "send whole records"))
    }
}

/// Parses the head of a record, [`RECORD_HEAD`] bytes.
fn read_head(head: &[u8], index: u64) -> Result<IncomingRecord, ApiError> {
    let bad = |what: &str| {
        let next = "send records of hash[32] codec[1] raw_len[4] stored_len[4] bytes, \
                    with stored_len at most raw_len and raw_len at most 1048576";
        Err(ApiError::bad_request(format!("record number {index} has {what}"), next))
    };
    let (hash, mut numbers) = head.split_at(32);
    let hash = ChunkHash::from_slice(hash).expect("the head begins with 32 bytes of hash");
    let Some(codec) = Codec::from_code(numbers.get_u8()) else { return bad("an unknown codec") };
    let (raw_len, stored_len) = (numbers.get_u32(), numbers.get_u32() as usize);
    if raw_len == 0 || raw_len as usize > CHUNK_BYTES_MAX || stored_len == 0 || stored_len > raw_len as usize
    {
        return bad("a length out of bounds");
    }
    Ok(IncomingRecord { hash, codec, raw_len, stored_len, bytes: Vec::with_capacity(stored_len) })
}

/// Body of a commit, a msgpack map.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitBody<'a> {
    kind: KindWord,
    #[serde(default)]
    listing_bytes: u64,
    cut: CutParams,
    bytes: u64,
    blake3: ArtifactHash,
    #[serde(borrow)]
    chunks: &'a serde_bytes::Bytes,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindWord {
    File,
    Tree,
}

fn commit_request(body: &[u8]) -> Result<CommitRequest, ApiError> {
    let bad = |message: String| {
        ApiError::bad_request(message, "correct the body as docs/http-api.md describes it, \"Commit\"")
    };
    let parsed: CommitBody<'_> =
        rmp_serde::from_slice(body).map_err(|e| bad(format!("the body is not a commit: {e}")))?;
    let (records, rest) = parsed.chunks.as_chunks::<RUN_BYTES>();
    if !rest.is_empty() {
        return Err(bad(format!("the length of the chunk list is not a multiple of {RUN_BYTES} bytes")));
    }
    let mut count = 0u64;
    let mut runs = Vec::with_capacity(records.len());
    for record in records {
        let (hash, mut numbers) = record.split_at(32);
        let hash = ChunkHash::from_slice(hash).expect("a record begins with 32 bytes of hash");
        let run = Run { hash, len: numbers.get_u32(), repeat: numbers.get_u32() };
        count = count.saturating_add(u64::from(run.repeat));
        runs.push(run);
    }
    if count > ARTIFACT_CHUNKS_MAX {
        return Err(bad(format!("the artifact has {count} chunks, more than {ARTIFACT_CHUNKS_MAX}")));
    }
    let kind = match parsed.kind {
        KindWord::File if parsed.listing_bytes != 0 => {
            return Err(bad("the artifact is a file, and a file has no listing".to_owned()));
        }
        KindWord::File => Kind::File,
        KindWord::Tree => Kind::Tree { listing_bytes: parsed.listing_bytes },
    };
    Ok(CommitRequest { kind, cut: parsed.cut, runs, blake3: parsed.blake3, bytes: parsed.bytes })
}

/// Commits an upload: makes a release of its chunks.
#[utoipa::path(post, path = "/v1/uploads/{upload}/commit", tag = "uploads", params(("upload" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/msgpack", description =
        "Map of kind, listing_bytes, cut [min, avg, max], bytes, blake3 and chunks: records of hash (32), length (4), repeat (4)"),
    responses(
        (status = 201, description = "Released", body = Release),
        (status = 200, description = "The version was already released with these bytes", body = Release)
    ), security(("token" = ["publish"])))]
pub(super) async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At(upload): At<String>,
    body: Incoming<LIST_BYTES_MAX>,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    let upload = own(&app, &caller, &upload).await?;
    let spooled = app.spool(&caller.token, body.with_deadline(), Use::Once).await?;
    // Room for the list is taken once the list is whole, so that a slow caller holds up nobody.
    let room = app.list_room(spooled.len()).await;
    let body = spooled.read().await.map_err(ApiError::internal)?;
    let request = commit_request(&body)?;
    drop(body);
    // The check of the stored chunks stops if the caller goes away; the change of rows does not.
    let prepared = app.origin.ingest().prepare(upload, request).await?;
    let at = app.clone();
    let work = app.detached(async move {
        let _room = room;
        let now = signed(unix_now());
        let committed = at.origin.ingest().finish(prepared, &caller.row.label, now).await?;
        releases::publish(&at, committed).await
    });
    work.await
}

/// Open upload in the list for admins.
#[derive(Serialize, ToSchema)]
pub(super) struct OpenUploadInfo {
    upload: String,
    product: String,
    version: String,
    /// Bytes of its packs.
    bytes: u64,
    /// Label of the token that began it.
    by: String,
    /// Id of that token.
    token: String,
    /// Time at which it began, unix seconds.
    created: i64,
    /// Time at which it expires unless more chunks arrive, unix seconds.
    expires: i64,
}

/// Open uploads.
#[derive(Serialize, ToSchema)]
pub(super) struct UploadList {
    uploads: Vec<OpenUploadInfo>,
}

/// Lists all open uploads, oldest first.
#[utoipa::path(get, path = "/v1/uploads", tag = "uploads", responses(
    (status = 200, body = UploadList)
), security(("token" = ["admin"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
) -> Result<Json<UploadList>, ApiError> {
    let info = |OpenUpload { row, bytes }| OpenUploadInfo {
        upload: row.id.to_string(),
        product: row.product.to_string(),
        version: row.version.to_string(),
        bytes,
        by: row.created_by,
        token: row.token,
        created: row.created,
        expires: row.expires,
    };
    let uploads = app.origin.db().uploads_open().await?.into_iter().map(info).collect();
    Ok(Json(UploadList { uploads }))
}

/// Aborts an upload and frees its space. An admin may abort every upload.
#[utoipa::path(delete, path = "/v1/uploads/{upload}", tag = "uploads", params(("upload" = String, Path)),
    responses((status = 204, description = "Aborted")), security(("token" = ["publish"])))]
pub(super) async fn abort(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At(upload): At<String>,
) -> Result<StatusCode, ApiError> {
    let upload = if caller.admin { upload_id(&upload)? } else { own(&app, &caller, &upload).await?.id };
    let at = app.clone();
    app.detached(async move { Ok(at.origin.ingest().abort(&upload).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(codec: u8, raw_len: u32, stored_len: u32, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![7; 32];
        out.push(codec);
        out.extend(raw_len.to_be_bytes());
        out.extend(stored_len.to_be_bytes());
        out.extend(bytes);
        out
    }

    #[test]
    fn records_are_returned_once_they_are_whole_wherever_a_piece_ends() {
        let whole = [record(0, 3, 3, b"abc"), record(1, 9, 2, b"de")].concat();
        let first = RECORD_HEAD + 3;
        for len in 1..=whole.len() {
            let mut records = Records::default();
            let (mut out, mut came) = (Vec::new(), 0);
            for piece in whole.chunks(len) {
                came += piece.len();
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(chunk) = records.take(&mut piece).expect("a valid record") {
                    out.push(chunk.bytes);
                }
                assert!(piece.is_empty(), "a piece is used up");
                let due = usize::from(came >= first) + usize::from(came == whole.len());
                assert_eq!(out.len(), due, "{came} bytes in pieces of {len}");
                assert_eq!(records.end().is_ok(), came == first || came == whole.len(), "{came}");
            }
            assert_eq!(out, [&b"abc"[..], b"de"]);
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_their_bytes_arrive() {
        for (codec, raw, stored) in
            [(9, 3, 3), (0, 0, 0), (0, 3, 0), (0, 3, 4), (1, 1 << 21, 5), (1, u32::MAX, u32::MAX)]
        {
            let mut piece = Bytes::from(record(codec, raw, stored, b""));
            assert!(Records::default().take(&mut piece).is_err(), "{codec} {raw} {stored}");
        }
    }

    #[test]
    fn malformed_commits_are_refused() {
        for bad in [
            &b""[..],
            b"\x80",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xa6chunks\xc6\xff\xff\xff\xffabc",
            b"\xa4file",
            b"{}",
        ] {
            assert!(commit_request(bad).is_err(), "{bad:?}");
        }
    }
}
