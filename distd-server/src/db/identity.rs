//! The realm and the id of a database.
//!
//! Table `identity`: the realm and the database's own id, one row.

use sqlx::Row;

use super::{Db, DbError, failed};

/// Number of rows in a database, to tell an empty one from one that was in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Releases.
    pub releases: u64,
    /// Packs, of open uploads too.
    pub packs: u64,
    /// Nodes that enrolled.
    pub nodes: u64,
    /// API tokens.
    pub tokens: u64,
}

impl Contents {
    /// Whether the database is unused.
    pub fn is_new(&self) -> bool {
        *self == Self { releases: 0, packs: 0, nodes: 0, tokens: 0 }
    }
}

impl Db {
    /// The realm that the database belongs to, by the SHA-256 of its CA; `None` until it is
    /// recorded.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn realm(&self) -> Result<Option<String>, DbError> {
        let row = sqlx::query("SELECT realm FROM identity").fetch_optional(&self.pool).await;
        row.and_then(|row| row.map(|row| row.try_get("realm")).transpose())
            .map_err(failed("read whose database this is"))
    }

    /// Records the realm of the database; the first one stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_realm(&self, realm: &str) -> Result<(), DbError> {
        sqlx::query("INSERT INTO identity (one, realm) VALUES (1, $1) ON CONFLICT (one) DO NOTHING")
            .bind(realm.to_owned())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("record whose database this is"))
    }

    /// Returns the id of the database, whose realm is recorded. A database without an id gets the
    /// id `fresh`, for ever.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn id(&self, fresh: &str) -> Result<String, DbError> {
        let what = "read which database this is";
        sqlx::query("UPDATE identity SET id = $1 WHERE id IS NULL")
            .bind(fresh.to_owned())
            .execute(&self.pool)
            .await
            .map_err(failed(what))?;
        let row = sqlx::query("SELECT id FROM identity").fetch_one(&self.pool).await;
        row.and_then(|row| row.try_get("id")).map_err(failed(what))
    }

    /// The id of the database; `None` until a process has taken a store with it.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn known_id(&self) -> Result<Option<String>, DbError> {
        let row = sqlx::query("SELECT id FROM identity").fetch_optional(&self.pool).await;
        row.and_then(|row| row.map(|row| row.try_get::<Option<String>, _>("id")).transpose())
            .map(Option::flatten)
            .map_err(failed("read which database this is"))
    }

    /// Number of rows of each kind.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn contents(&self) -> Result<Contents, DbError> {
        use super::row::Columns;
        let what = failed("count what the database holds");
        let count = async || -> Result<Contents, sqlx::Error> {
            let row = sqlx::query(
                "SELECT (SELECT COUNT(*) FROM releases) AS releases, (SELECT COUNT(*) FROM packs) AS packs, \
                 (SELECT COUNT(*) FROM nodes) AS nodes, (SELECT COUNT(*) FROM api_tokens) AS tokens",
            )
            .fetch_one(&self.pool)
            .await?;
            Ok(Contents {
                releases: row.number("releases")?,
                packs: row.number("packs")?,
                nodes: row.number("nodes")?,
                tokens: row.number("tokens")?,
            })
        };
        count().await.map_err(what)
    }
}
