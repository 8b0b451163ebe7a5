//! A new admin token, for an operator who has lost the last one.

use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::token::ApiToken;

use super::is_origin;
use super::own::ca_fingerprint;
use crate::db::{Actor, ApiTokenRow, Db, DbError};
use crate::http::Scope;
use crate::origin::{DisagreementError, Owner, Places, signed};
use crate::publisher::Products;
use crate::realm::RealmError;
use crate::store::{Store, StoreError};

/// Error of making a token.
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
    /// The CA cannot be used.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store belongs to another database, and with it the origin.
    #[error(transparent)]
    Disagreement(#[from] DisagreementError),
    /// The database is another realm's.
    #[error("the database belongs to another realm: give --db the database of this one")]
    ForeignDatabase,
}

/// Makes an admin token, whether or not the origin runs, in a new file that only its owner can
/// read, or as text. Writes one row to the database, which must be the one that the store belongs
/// to.
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
    let fingerprint = ca_fingerprint(&places.data)?;
    let store = Store::open_present(&places.store)?;
    let db = Db::open_present(&places.db).await?;
    if db.realm().await?.is_some_and(|realm| realm != hex::encode(fingerprint)) {
        return Err(TokenError::ForeignDatabase);
    }
    Owner::check_same(&db, &store, &places.store).await?;
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
    db.acting(Actor::operator(), row.created).put_api_token(&row).await?;
    db.close().await;
    Ok(out.is_none().then_some(text))
}
