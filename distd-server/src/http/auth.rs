//! Authentication and authorisation of a request: its bearer token, found by the hash of the
//! secret, and the scopes and products of that token.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
pub use distd_core::api::Scope;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::listener::Authenticated;
use distd_peer::trust::token::ApiToken;

use super::{ApiError, App};
pub(super) use crate::db::token_id;
use crate::db::{ApiTokenRow, Db, MoveBy};
use crate::origin::signed;
use crate::publisher::{Products, Publisher};

/// Scopes in a token's row, a comma-separated list. Words that this version does not know are
/// ignored.
pub(super) fn scopes_of_row(scopes: &str) -> Vec<Scope> {
    Scope::ALL.into_iter().filter(|scope| scopes.split(',').any(|s| s == scope.as_str())).collect()
}

/// Comma-separated list for a token's row, in the order of [`Scope::ALL`].
pub(super) fn scopes_to_row(scopes: &[Scope]) -> String {
    let words: Vec<_> =
        Scope::ALL.iter().filter(|s| scopes.contains(s)).map(|scope| scope.as_str()).collect();
    words.join(",")
}

/// Scope as a type, so that a handler's signature names the scope that it needs.
pub(super) trait Need: Send + Sync {
    const SCOPE: Option<Scope>;
}

impl Need for AnyToken {
    const SCOPE: Option<Scope> = None;
}

macro_rules! needs {
    ($($name:ident => $scope:ident),*) => {$(
        pub(super) struct $name;
        impl Need for $name {
            const SCOPE: Option<Scope> = Some(Scope::$scope);
        }
    )*};
}
/// No particular scope: every valid token will do.
pub(super) struct AnyToken;

needs!(ToRead => Read, ToView => View, ToPublish => Publish, ToMoveChannels => Channel, ToAdminister => Admin);

/// Authenticated caller whose token has the scope of `N`.
pub(super) struct Caller<N> {
    /// Row of the token.
    pub(super) row: ApiTokenRow,
    /// Id of the token, as [`token_id`] makes it.
    pub(super) token: String,
    /// Products for which the token is valid.
    pub(super) products: Products,
    /// Whether the token has the scope `admin`.
    pub(super) admin: bool,
    /// Whether the token may order downgrades.
    downgrades: bool,
    need: PhantomData<N>,
}

impl<N> Caller<N> {
    /// Refuses a product for which the token is not valid. Handlers call this before they look
    /// anything up, so the answer is the same whether or not the product exists.
    pub(super) fn may(&self, product: &Name) -> Result<(), ApiError> {
        if self.products.has(product) { Ok(()) } else { Err(ApiError::other_product(product)) }
    }

    /// Refuses a channel that the token may not move.
    pub(super) fn may_move(&self, product: &Name, channel: &Name) -> Result<(), ApiError> {
        self.may(product)?;
        let may = self.products.has_channel(product, channel);
        if may { Ok(()) } else { Err(ApiError::other_channel(product, channel)) }
    }

    /// Refuses the order of a downgrade unless the token has the scope `downgrade` or `admin`. A
    /// token that can only move channels cannot lead devices back to an older release.
    pub(super) fn may_downgrade(&self) -> Result<(), ApiError> {
        if self.downgrades { Ok(()) } else { Err(ApiError::forbidden(Scope::Downgrade.as_str())) }
    }

    /// Caller as it is recorded in a channel's history.
    pub(super) fn mover(&self) -> MoveBy {
        MoveBy { token: self.token.clone(), label: self.row.label.clone() }
    }

    /// The database, for acts in the name of the caller now.
    pub(super) fn db(&self, app: &App) -> Db {
        app.origin.db().acting(&self.mover(), signed(unix_now()))
    }

    /// Caller as it is recorded in uploads and releases.
    pub(super) fn publisher(&self) -> Publisher {
        Publisher {
            label: self.row.label.clone(),
            token: self.token.clone(),
            products: self.products.clone(),
        }
    }
}

impl<N: Need> FromRequestParts<Arc<App>> for Caller<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let header = parts
            .headers
            .get(AUTHORIZATION)
            .ok_or_else(|| ApiError::unauthorised("this request needs an API token"))?;
        let (scheme, token) = header.to_str().ok().and_then(|t| t.split_once(' ')).ok_or_else(no_token)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(no_token());
        }
        Self::of_token(app, token, parts.extensions.get()).await
    }
}

fn no_token() -> ApiError {
    ApiError::unauthorised("the Authorization header holds no API token")
}

impl<N: Need> Caller<N> {
    /// The caller who showed the token `text`, whose connection is marked as authenticated.
    ///
    /// # Errors
    /// When the token is unknown or expired, or lacks the scope of `N`.
    pub(super) async fn of_token(
        app: &App,
        text: &str,
        connection: Option<&Authenticated>,
    ) -> Result<Self, ApiError> {
        let token: ApiToken = text.parse().map_err(|_| no_token())?;
        // The lookup is by hash, so its duration reveals nothing about any secret.
        let row = app.origin.db().api_token(&token.secret_hash()).await?;
        let row = row.ok_or_else(|| ApiError::unauthorised("this origin does not know this token"))?;
        if !row.is_valid(signed(unix_now())) {
            return Err(ApiError::unauthorised("this token has expired or was revoked"));
        }
        if let Some(authenticated) = connection {
            authenticated.set();
        }
        Self::of_row(row)
    }

    /// The caller with the valid token `row`.
    ///
    /// # Errors
    /// When the token lacks the scope of `N`.
    pub(super) fn of_row(row: ApiTokenRow) -> Result<Self, ApiError> {
        let scopes = scopes_of_row(&row.scopes);
        if let Some(scope) =
            N::SCOPE.filter(|scope| !scopes.contains(scope) && !scopes.contains(&Scope::Admin))
        {
            return Err(ApiError::forbidden(scope.as_str()));
        }
        // An admin can make a token for any product, so limits of products do not apply to admins.
        let admin = scopes.contains(&Scope::Admin);
        let products = if admin { Products::all() } else { Products::of_row(&row.products) };
        let downgrades = admin || scopes.contains(&Scope::Downgrade);
        let token = token_id(&row.secret_sha256);
        Ok(Self { row, token, products, admin, downgrades, need: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_from_a_row_and_unknown_words_are_ignored() {
        assert_eq!(scopes_of_row("publish,future,view,read"), [Scope::Read, Scope::View, Scope::Publish]);
        assert_eq!(scopes_to_row(&[Scope::Admin, Scope::Read]), "read,admin");
        assert_eq!(scopes_of_row(""), []);
    }
}
