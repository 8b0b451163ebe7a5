//! `/v1/uploads`: uploads of chunks that the publisher cut.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use distd_core::ChunkHash;
use distd_core::api::{
    Announced, CHUNKS_BYTES_MAX, Commit, HASHES_MAX, LIST_BYTES_MAX, OpenUploadInfo, RECORD_HEAD_BYTES,
    RecordHead, Release, Stored, Upload, UploadList,
};
use distd_core::cut::CutParams;
use distd_core::names::Name;
use distd_core::packing::{HashedChunk, PackedChunk};
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToPublish, ToView};
use super::body::{Incoming, OptionalJsonBody, PathParams};
use super::releases;
use super::route::{Route, routes};
use super::spool::{Spooled, Use};
use super::{ApiError, App};
use crate::db::{OpenUpload, UploadId, UploadRow};
use crate::ingest::{CommitRequest, PackingSink};
use crate::origin::signed;

pub(super) fn routes() -> Vec<Route> {
    routes![begin, missing, chunks, commit, list, abort]
}

/// Begins an upload of a version, or resumes the open one that the token began. Creates the product
/// if it does not exist.
#[utoipa::path(post, path = "/v1/products/{product}/releases/{version}/uploads", tag = "uploads",
    params(("product" = String, Path), ("version" = String, Path)), request_body = Option<Announced>,
    responses((status = 200, body = Upload)), security(("token" = ["publish"])))]
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    OptionalJsonBody(announced): OptionalJsonBody<Announced>,
) -> Result<Json<Upload>, ApiError> {
    caller.may(&product)?;
    let ingest = app.origin.ingest();
    if let Some(bytes) = announced.bytes {
        ingest.check_announced(bytes)?;
        // A version that is released already takes nothing more.
        if app.origin.db().release(&product, &version).await?.is_none() {
            ingest.check_quotas(&product, &caller.token, 0, bytes).await?;
        }
    }
    ingest.check_room(0)?;
    let now = signed(unix_now());
    // Last of all: what is refused must not end a removal that can still be undone.
    let (at, of) = (app.clone(), (product.clone(), version.clone()));
    app.detached(async move { Ok(at.origin.make_way(&of.0, &of.1).await?) }).await?;
    let (row, _) = caller.db(&app).ensure_product(&product, CutParams::default(), now).await?;
    let (upload, resumed) = ingest.begin_or_resume(&product, &version, &caller.publisher(), now).await?;
    Ok(Json(Upload { resumed, upload: upload.id.to_string(), cut: row.cut }))
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
    PathParams(upload): PathParams<String>,
    body: Incoming<{ HASHES_MAX as u64 * 32 }>,
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
    PathParams(upload): PathParams<String>,
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
async fn feed(mut body: Spooled, mut sink: PackingSink) -> Result<u64, ApiError> {
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
    head: RecordHead,
    bytes: Vec<u8>,
}

impl Records {
    /// Takes bytes from the front of `piece`, and returns the next record once it is whole. Its
    /// lengths are checked before its chunk arrives.
    fn take(&mut self, piece: &mut Bytes) -> Result<Option<HashedChunk>, ApiError> {
        if self.begun.is_none() {
            let taken = piece.split_to(piece.len().min(RECORD_HEAD_BYTES - self.head.len()));
            self.head.extend_from_slice(&taken);
            if self.head.len() < RECORD_HEAD_BYTES {
                return Ok(None);
            }
            self.begun = Some(read_head(&self.head, self.count)?);
            self.head.clear();
        }
        let Some(record) = &mut self.begun else { return Ok(None) };
        // The bytes are copied, so that a chunk does not keep its whole piece in memory.
        let taken = piece.split_to(piece.len().min(record.head.stored_len as usize - record.bytes.len()));
        record.bytes.extend_from_slice(&taken);
        if record.bytes.len() < record.head.stored_len as usize {
            return Ok(None);
        }
        self.count += 1;
        let whole = self.begun.take().map(|IncomingRecord { head, bytes }| {
            let RecordHead { hash, codec, raw_len, .. } = head;
            HashedChunk { hash, packed: PackedChunk { codec, raw_len, bytes: bytes.into() } }
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

/// Parses the head of a record, and makes room for its chunk.
fn read_head(head: &[u8], index: u64) -> Result<IncomingRecord, ApiError> {
    let head = head.try_into().expect("the head is whole");
    let head = RecordHead::decode(head).map_err(|what| {
        let next = "send records of hash[32] codec[1] raw_len[4] stored_len[4] bytes, \
                    with stored_len at most raw_len and raw_len at most 1048576";
        ApiError::bad_request(format!("record number {index} has {what}"), next)
    })?;
    Ok(IncomingRecord { head, bytes: Vec::with_capacity(head.stored_len as usize) })
}

fn commit_request(body: &[u8]) -> Result<CommitRequest, ApiError> {
    let (commit, runs) = Commit::decode(body).map_err(|error| {
        let next = "correct the body as docs/http-api.md describes it, \"Commit\"";
        ApiError::bad_request(error.to_string(), next)
    })?;
    let Commit { cut, bytes, blake3, .. } = commit;
    Ok(CommitRequest { kind: commit.kind(), cut, runs, blake3, bytes })
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
    PathParams(upload): PathParams<String>,
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

/// Lists all open uploads, oldest first.
#[utoipa::path(get, path = "/v1/uploads", tag = "uploads", responses(
    (status = 200, body = UploadList)
), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
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
    PathParams(upload): PathParams<String>,
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
        let first = RECORD_HEAD_BYTES + 3;
        for len in 1..=whole.len() {
            let mut records = Records::default();
            let (mut out, mut came) = (Vec::new(), 0);
            for piece in whole.chunks(len) {
                came += piece.len();
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(chunk) = records.take(&mut piece).expect("a valid record") {
                    out.push(chunk.packed.bytes);
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
