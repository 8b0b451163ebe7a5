//! Notes that operators leave for each other.
//!
//! Table `notes`: text, label of the author's token, time.

use sqlx::any::AnyRow;

use super::row::Columns;
use super::{Db, DbError, UnixSeconds, failed};

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteRow {
    /// Text of the note.
    pub note: String,
    /// Label of the author's token.
    pub author: String,
    /// Time of its creation.
    pub created: UnixSeconds,
}

fn read(row: &AnyRow) -> Result<NoteRow, sqlx::Error> {
    Ok(NoteRow { note: row.text("note")?, author: row.text("author")?, created: row.time("created")? })
}

impl Db {
    /// Records a note.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_note(&self, note: &NoteRow) -> Result<(), DbError> {
        sqlx::query("INSERT INTO notes (note, author, created) VALUES ($1, $2, $3)")
            .bind(note.note.clone())
            .bind(note.author.clone())
            .bind(note.created)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("record the note"))
    }

    /// The newest `limit` notes, the newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn notes(&self, limit: u32) -> Result<Vec<NoteRow>, DbError> {
        let rows = sqlx::query("SELECT note, author, created FROM notes ORDER BY id DESC LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the notes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_notes_come_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let db = Db::open(&format!("sqlite:{}", dir.path().join("db").display())).await.expect("opens");
        let note = |text: &str| NoteRow { note: text.to_owned(), author: "ops".to_owned(), created: 7 };
        for text in ["one", "two", "three"] {
            db.put_note(&note(text)).await.expect("recorded");
        }
        assert_eq!(db.notes(2).await.expect("list"), [note("three"), note("two")]);
        db.close().await;
    }
}
