//! Notes that operators leave for each other.

use serde::{Deserialize, Serialize};

/// Note to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewNote {
    /// Text of the note, made of the signs that labels may have.
    pub note: String,
}

/// A note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Note {
    /// Text of the note.
    pub note: String,
    /// Label of the author's token.
    pub author: String,
    /// Time of its creation, unix seconds.
    pub created: i64,
}

/// Notes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NoteList {
    /// Notes, newest first.
    pub notes: Vec<Note>,
}
