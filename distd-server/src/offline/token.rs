//! A new admin token, for an operator who has lost the last one.

use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::token::ApiToken;

use super::is_origin;
use crate::db::{ApiTokenRow, Db, DbError};
use crate::http::Scope;
use crate::origin::{Places, signed};
use crate::publisher::Products;
use crate::realm::{Realm, RealmError};

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not an origin's directory.
    #[error("{} holds no origin: give --data the directory that distd-server serve uses", .0.display())]
    NoOrigin(PathBuf),
    /// The file is there.
    #[error("{} exists: name a new file", .0.display())]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The CA.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The database is another realm's.
    #[error("the database belongs to another realm: give --db the database of this one")]
    ForeignDatabase,
}

/// Makes an admin token, whether or not the origin runs; into a new file for its owner alone, or as text.
///
/// # Errors
/// [`TokenError`].
pub async fn admin_token(
    places: &Places,
    label: &str,
    out: Option<&Path>,
) -> Result<Option<String>, TokenError> {
    if !is_origin(&places.data) {
        return Err(TokenError::NoOrigin(places.data.clone()));
    }
    let fingerprint = Realm::open(&places.data, &places.keys, unix_now())?.ca_fingerprint();
    let db = Db::open_present(&places.db).await?;
    if db.realm().await?.is_some_and(|realm| realm != hex::encode(fingerprint)) {
        return Err(TokenError::ForeignDatabase);
    }
    let token = ApiToken::generate(fingerprint);
    let text = token.to_secret_string();
    // The file comes first: a token that could not be written down would be lost.
    if let Some(path) = out
        && !files::create_secret(path, format!("{text}\n").as_bytes())?
    {
        return Err(TokenError::Exists(path.to_owned()));
    }
    let row = ApiTokenRow {
        secret_sha256: token.secret_hash(),
        label: label.to_owned(),
        scopes: Scope::Admin.as_str().to_owned(),
        products: Products::all().to_row(),
        created: signed(unix_now()),
        expires: None,
        revoked: None,
    };
    db.put_api_token(&row).await?;
    db.close().await;
    Ok(out.is_none().then_some(text))
}
