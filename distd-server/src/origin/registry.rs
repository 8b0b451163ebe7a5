//! Join tokens and nodes, in SQL.

use async_trait::async_trait;
use distd_peer::clock::unix_now;
use distd_peer::trust::enroll::RefusalCode;
use distd_peer::trust::identity::{CertInfo, NodeId, Role};

use super::signed;
use crate::db::{Db, DbError, JoinTokenUse, NodeRow};
use crate::realm::{JoinTokens, Redemption, RegistryError};

/// [`JoinTokens`] over the origin's database.
pub(super) struct SqlRegistry<'a>(pub(super) &'a Db);

fn storage(error: DbError) -> RegistryError {
    RegistryError::Storage(error.into())
}

#[async_trait]
impl JoinTokens for SqlRegistry<'_> {
    async fn redeem(&self, redemption: Redemption<'_>) -> Result<(), RegistryError> {
        let refused = |code| Err(RegistryError::Refused(code));
        let id = redemption.node_id.to_string();
        let before = self.0.node(&id).await.map_err(storage)?;
        if before.as_ref().is_some_and(|node| node.revoked.is_some()) {
            return refused(RefusalCode::Revoked);
        }
        let key = hex::encode(redemption.token);
        // The role first: a token tried for the wrong role keeps its use.
        match self.0.join_token(&key).await.map_err(storage)? {
            None => return refused(RefusalCode::UnknownToken),
            Some(token) if token.role != redemption.role.as_str() => return refused(RefusalCode::WrongRole),
            Some(_) => {}
        }
        match self.0.use_join_token(&key, &id, signed(redemption.now)).await.map_err(storage)? {
            // A node is not told apart which.
            JoinTokenUse::Unknown | JoinTokenUse::Revoked => refused(RefusalCode::UnknownToken),
            JoinTokenUse::Expired => refused(RefusalCode::TokenExpired),
            JoinTokenUse::UsedUp => refused(RefusalCode::TokenUsedUp),
            JoinTokenUse::Taken(_) | JoinTokenUse::Again(_) => {
                let node = NodeRow {
                    id,
                    public_key: redemption.node_spki.to_vec(),
                    role: redemption.role.as_str().to_owned(),
                    label: redemption.label.to_owned(),
                    enrolled: before.map_or(signed(redemption.now), |node| node.enrolled),
                    cert_serial: String::new(),
                    cert_expires: 0,
                    revoked: None,
                };
                self.0.put_node(&node).await.map_err(storage)
            }
        }
    }

    async fn node_role(&self, node_id: NodeId) -> Result<Role, RegistryError> {
        let node = self.0.node(&node_id.to_string()).await.map_err(storage)?;
        let node = node.ok_or(RegistryError::Refused(RefusalCode::UnknownNode))?;
        if node.revoked.is_some() {
            return Err(RegistryError::Refused(RefusalCode::Revoked));
        }
        node.role.parse().map_err(|_| RegistryError::Refused(RefusalCode::UnknownNode))
    }

    async fn issued(&self, cert: &CertInfo) -> Result<(), RegistryError> {
        let Some(node) = self.0.node(&cert.node_id.to_string()).await.map_err(storage)? else {
            return Err(RegistryError::Refused(RefusalCode::UnknownNode));
        };
        let cert_serial = hex::encode(&cert.serial);
        let cert_expires = signed(cert.not_after);
        tracing::info!(node = node.id, now = unix_now(), "certificate issued");
        self.0.put_node(&NodeRow { cert_serial, cert_expires, ..node }).await.map_err(storage)
    }
}
