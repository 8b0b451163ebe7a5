//! Who calls: a bearer token, looked up by the hash of its secret, and what it may do.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::trust::token::ApiToken;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::connections::Authenticated;
use super::{ApiError, App};
use crate::db::{ApiTokenRow, MoveBy};
use crate::origin::signed;
use crate::publisher::{Products, Publisher};

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read products, releases, channels, manifests and packs.
    Read,
    /// Make products and releases.
    Publish,
    /// Move channels.
    Channel,
    /// Order devices back to an older release when moving a channel.
    Downgrade,
    /// Everything, tokens and nodes too.
    Admin,
}

impl Scope {
    const ALL: [Self; 5] = [Self::Read, Self::Publish, Self::Channel, Self::Downgrade, Self::Admin];

    /// Its word, in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish",
            Self::Channel => "channel",
            Self::Downgrade => "downgrade",
            Self::Admin => "admin",
        }
    }

    /// Scopes as a token's row has them; words of a newer version give nothing.
    pub(super) fn of_row(scopes: &str) -> Vec<Self> {
        Self::ALL.into_iter().filter(|scope| scopes.split(',').any(|s| s == scope.as_str())).collect()
    }

    /// As a token's row has them.
    pub(super) fn to_row(scopes: &[Self]) -> String {
        let words: Vec<_> =
            Self::ALL.iter().filter(|s| scopes.contains(s)).map(|scope| scope.as_str()).collect();
        words.join(",")
    }
}

/// A scope as a type, so that a handler's signature says what it needs.
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
/// Any token that is valid will do.
pub(super) struct AnyToken;

needs!(ToRead => Read, ToPublish => Publish, ToMoveChannels => Channel, ToAdminister => Admin);

/// A caller with the right to `N`.
pub(super) struct Caller<N> {
    /// The token's row.
    pub(super) row: ApiTokenRow,
    /// Id of the token.
    pub(super) token: String,
    /// The products it is for.
    pub(super) products: Products,
    /// It may do everything.
    pub(super) admin: bool,
    /// It may order downgrades.
    downgrades: bool,
    need: PhantomData<N>,
}

impl<N> Caller<N> {
    /// Refuses a product that the token is not for. Before anything is looked up: the answer is the same whether or not
    /// there is such a product.
    pub(super) fn may(&self, product: &Name) -> Result<(), ApiError> {
        if self.products.has(product) { Ok(()) } else { Err(ApiError::other_product(product)) }
    }

    /// Refuses to order a downgrade without the scope for it: whoever holds a token that moves
    /// channels, and no more, cannot lead devices back.
    pub(super) fn may_downgrade(&self) -> Result<(), ApiError> {
        if self.downgrades { Ok(()) } else { Err(ApiError::forbidden(Scope::Downgrade.as_str())) }
    }

    /// As the one who moves channels.
    pub(super) fn mover(&self) -> MoveBy {
        MoveBy { token: self.token.clone(), label: self.row.label.clone() }
    }

    /// As the one who makes uploads.
    pub(super) fn publisher(&self) -> Publisher {
        Publisher {
            label: self.row.label.clone(),
            token: self.token.clone(),
            products: self.products.clone(),
        }
    }
}

/// Bytes of a token's id, out of the hash of its secret.
const ID_BYTES: usize = 8;

/// Names a token in lists and for revocation.
pub(super) fn token_id(secret_sha256: &[u8; 32]) -> String {
    hex::encode(&secret_sha256[..ID_BYTES])
}

impl<N: Need> FromRequestParts<Arc<App>> for Caller<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let header =
            parts.headers.get(AUTHORIZATION).ok_or_else(|| ApiError::unauthorised("a token is needed"))?;
        let no_token = || ApiError::unauthorised("the Authorization header holds no API token");
        let (scheme, token) = header.to_str().ok().and_then(|t| t.split_once(' ')).ok_or_else(no_token)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(no_token());
        }
        let token: ApiToken = token.parse().map_err(|_| no_token())?;
        // Looked up by hash: how long it takes says nothing about any secret.
        let row = app.origin.db().api_token(&token.secret_hash()).await?;
        let row = row.ok_or_else(|| ApiError::unauthorised("this token is not known here"))?;
        if !row.is_valid(signed(unix_now())) {
            return Err(ApiError::unauthorised("this token has expired or was revoked"));
        }
        if let Some(authenticated) = parts.extensions.get::<Authenticated>() {
            authenticated.set();
        }
        let scopes = Scope::of_row(&row.scopes);
        if let Some(scope) =
            N::SCOPE.filter(|scope| !scopes.contains(scope) && !scopes.contains(&Scope::Admin))
        {
            return Err(ApiError::forbidden(scope.as_str()));
        }
        // Whoever may make tokens may have one for any product.
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
    fn scopes_survive_their_row() {
        assert_eq!(Scope::of_row("publish,future,read"), [Scope::Read, Scope::Publish]);
        assert_eq!(Scope::to_row(&[Scope::Admin, Scope::Read]), "read,admin");
        assert_eq!(Scope::of_row(""), []);
    }
}
