//! `/v1/uploads`: chunks that the publisher cut.

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

/// Most hashes in one question.
const HASHES_MAX: u64 = 65_536;

/// Largest body of chunk records, bytes.
const CHUNKS_BYTES_MAX: u64 = 32 << 20;

/// Largest list of chunks, bytes: 6.7 million runs, some 100 GB of artifact.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// Bytes of a chunk record before the chunk: hash, codec, raw length, stored length.
const RECORD_HEAD: usize = 32 + 1 + 4 + 4;

/// Bytes of a run in the list of chunks: hash, length, repeat.
const RUN_BYTES: usize = 32 + 4 + 4;

/// Most chunks of an artifact, repeats counted: 16 TiB in chunks of the default's largest size. Bounds the time
/// a list of a few bytes can take.
const ARTIFACT_CHUNKS_MAX: u64 = 1 << 28;

/// An upload.
#[derive(Serialize, ToSchema)]
pub(super) struct Upload {
    /// Its id, 32 hexadecimal digits.
    upload: String,
    /// How to cut the artifact.
    cut: Cut,
    /// It was begun before: ask which chunks are missing.
    resumed: bool,
}

/// How many chunks were new.
#[derive(Serialize, ToSchema)]
pub(super) struct Stored {
    /// Chunks that the origin did not have.
    stored: u64,
}

/// What an upload is to become.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Announced {
    /// Length of the artifact: what could never be committed is refused now.
    bytes: Option<u64>,
}

/// Begins an upload, or goes on with the open one of this version that the token began. The product is made when it is not
/// there.
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

/// The upload, which must be this caller's: another's is none, so that its id says nothing.
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

/// Which chunks must be sent: bit `i`, most significant first, is set when hash `i` is missing.
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
        let message = format!("{} bytes are not a number of 32-byte hashes", body.len());
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

/// Takes chunks; when it answers 200 they are durable.
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
    // The body first: a sink, of which there are few, is taken when all of it is here.
    let spooled = app.spool(&caller.token, body.with_deadline(), Use::Once).await?;
    // The sink works in a task of its own, so that a connection that ends never stops it between a pack and
    // the pack's row.
    let at = app.clone();
    let stored = app.detached(async move {
        let sink = at.origin.ingest().sink(&upload, signed(unix_now())).await?;
        feed(spooled, sink).await
    });
    Ok(Json(Stored { stored: stored.await? }))
}

/// Cuts the body into chunks and stores them.
async fn feed(mut body: Spooled, mut sink: ChunkSink) -> Result<u64, ApiError> {
    let mut records = Records::default();
    while let Some(mut piece) = body.next().await.map_err(ApiError::internal)? {
        while let Some(chunk) = records.take(&mut piece.bytes)? {
            sink.push(chunk).await?;
        }
    }
    records.end()?;
    // The body's memory and place are not kept while the last pack is stored.
    drop(body);
    Ok(sink.finish().await?)
}

/// Chunk records out of the pieces of a body.
#[derive(Default)]
struct Records {
    /// Records that came out.
    count: u64,
    /// Of the next record as much of its head as came.
    head: Vec<u8>,
    /// The next record, once its head is whole: its bytes as far as they came.
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
    /// The next record, once it is whole, taken from the head of `piece`. Its lengths are checked
    /// before the rest is waited for.
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
        // A copy, so that a chunk that is kept does not keep its neighbours.
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

    /// Refuses a last record that is not whole.
    fn end(&self) -> Result<(), ApiError> {
        if self.head.is_empty() && self.begun.is_none() {
            return Ok(());
        }
        let message = format!("record number {} is cut off", self.count);
        Err(ApiError::bad_request(message, "send whole records"))
    }
}

/// A record of which nothing but the head, [`RECORD_HEAD`] bytes, has come.
fn read_head(head: &[u8], index: u64) -> Result<IncomingRecord, ApiError> {
    let bad = |what: &str| {
        let next = "a record is hash[32] codec[1] raw_len[4] stored_len[4] bytes; stored_len is at most raw_len, \
                    raw_len at most 1048576";
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

/// The body of a commit (msgpack map).
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
    let bad = |message: String| ApiError::bad_request(message, "see docs/http-api.md, \"Commit\"");
    let parsed: CommitBody<'_> =
        rmp_serde::from_slice(body).map_err(|e| bad(format!("the body is no commit: {e}")))?;
    let (records, rest) = parsed.chunks.as_chunks::<RUN_BYTES>();
    if !rest.is_empty() {
        return Err(bad(format!("the list of chunks is not made of records of {RUN_BYTES} bytes")));
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
        return Err(bad(format!("an artifact has at most {ARTIFACT_CHUNKS_MAX} chunks")));
    }
    let kind = match parsed.kind {
        KindWord::File if parsed.listing_bytes != 0 => return Err(bad("a file has no listing".to_owned())),
        KindWord::File => Kind::File,
        KindWord::Tree => Kind::Tree { listing_bytes: parsed.listing_bytes },
    };
    Ok(CommitRequest { kind, cut: parsed.cut, runs, blake3: parsed.blake3, bytes: parsed.bytes })
}

/// Makes a release of an upload.
#[utoipa::path(post, path = "/v1/uploads/{upload}/commit", tag = "uploads", params(("upload" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/msgpack", description =
        "Map of kind, listing_bytes, cut [min, avg, max], bytes, blake3 and chunks: records of hash (32), length (4), repeat (4)"),
    responses(
        (status = 201, description = "Released", body = Release),
        (status = 200, description = "The version had these bytes already", body = Release)
    ), security(("token" = ["publish"])))]
pub(super) async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At(upload): At<String>,
    body: Incoming<LIST_BYTES_MAX>,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    let upload = own(&app, &caller, &upload).await?;
    let spooled = app.spool(&caller.token, body.with_deadline(), Use::Once).await?;
    // Room is taken when the list is here: one that drips holds up nobody.
    let room = app.list_room(spooled.len()).await;
    let body = spooled.read().await.map_err(ApiError::internal)?;
    let request = commit_request(&body)?;
    drop(body);
    // Reading back ends with the caller; what changes rows does not.
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

/// An open upload as admins see it.
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
    /// When it began, unix seconds.
    created: i64,
    /// When it is given up unless more chunks come, unix seconds.
    expires: i64,
}

/// Open uploads.
#[derive(Serialize, ToSchema)]
pub(super) struct UploadList {
    uploads: Vec<OpenUploadInfo>,
}

/// Every open upload, the oldest first.
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

/// Gives an upload up; its space comes back. Admins may give up any.
#[utoipa::path(delete, path = "/v1/uploads/{upload}", tag = "uploads", params(("upload" = String, Path)),
    responses((status = 204, description = "Given up")), security(("token" = ["publish"])))]
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
    fn records_come_out_once_they_are_whole_wherever_the_pieces_end() {
        let whole = [record(0, 3, 3, b"abc"), record(1, 9, 2, b"de")].concat();
        let first = RECORD_HEAD + 3;
        for len in 1..=whole.len() {
            let mut records = Records::default();
            let (mut out, mut came) = (Vec::new(), 0);
            for piece in whole.chunks(len) {
                came += piece.len();
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(chunk) = records.take(&mut piece).expect("nothing is wrong with it") {
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
    fn lengths_out_of_bounds_are_refused_before_their_bytes_come() {
        for (codec, raw, stored) in
            [(9, 3, 3), (0, 0, 0), (0, 3, 0), (0, 3, 4), (1, 1 << 21, 5), (1, u32::MAX, u32::MAX)]
        {
            let mut piece = Bytes::from(record(codec, raw, stored, b""));
            assert!(Records::default().take(&mut piece).is_err(), "{codec} {raw} {stored}");
        }
    }

    #[test]
    fn a_commit_that_lies_about_its_lengths_is_refused() {
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
