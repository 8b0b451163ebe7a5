//! `/v1/notes`: notes that operators leave for each other.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{NewNote, Note, NoteList};
use distd_core::text::is_label;
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToAdminister};
use super::body::Given;
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::NoteRow;
use crate::origin::signed;

/// Longest note, bytes.
const NOTE_BYTES_MAX: usize = 1000;

/// Notes of one listing.
const NOTES_MAX: u32 = 100;

pub(super) fn routes() -> Vec<Route> {
    routes![create, list]
}

fn shown(row: NoteRow) -> Note {
    Note { note: row.note, author: row.author, created: row.created }
}

/// Leaves a note.
#[utoipa::path(post, path = "/v1/notes", tag = "notes", request_body = NewNote, responses(
    (status = 201, body = Note)
), security(("token" = ["admin"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    Given(NewNote { note }): Given<NewNote>,
) -> Result<(StatusCode, Json<Note>), ApiError> {
    if note.is_empty() || note.len() > NOTE_BYTES_MAX || !is_label(&note) {
        let next = format!("write 1 to {NOTE_BYTES_MAX} bytes of the signs that a label may have");
        return Err(ApiError::bad_request("the note is too long or has signs that are not allowed", next));
    }
    let row = NoteRow { note, author: caller.row.label, created: signed(unix_now()) };
    app.origin.db().put_note(&row).await?;
    Ok((StatusCode::CREATED, Json(shown(row))))
}

/// Lists the newest notes, at most 100.
#[utoipa::path(get, path = "/v1/notes", tag = "notes", responses(
    (status = 200, body = NoteList)
), security(("token" = ["admin"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
) -> Result<Json<NoteList>, ApiError> {
    let rows = app.origin.db().notes(NOTES_MAX).await?;
    Ok(Json(NoteList { notes: rows.into_iter().map(shown).collect() }))
}
