//! Join tokens and nodes, in SQL.

use async_trait::async_trait;
use distd_core::role::Role;
use distd_peer::clock::unix_now;
use distd_peer::trust::enroll::RefusalCode;
use distd_peer::trust::identity::{CertInfo, NodeId};

use super::signed;
use crate::db::{Db, DbError, EnrolOutcome, Enrolment, PutCertificate};
use crate::realm::{JoinTokens, Redemption, RegistryError};

/// [`JoinTokens`] over the origin's database.
pub(super) struct SqlRegistry<'a>(pub(super) &'a Db);

fn storage(error: DbError) -> RegistryError {
    RegistryError::Storage(error.into())
}

#[async_trait]
impl JoinTokens for SqlRegistry<'_> {
    async fn redeem(&self, redemption: Redemption<'_>) -> Result<(), RegistryError> {
        let (token, node) = (hex::encode(redemption.token), redemption.node_id.to_string());
        let wanted = Enrolment {
            token: &token,
            node: &node,
            public_key: redemption.node_spki,
            role: redemption.role.as_str(),
            label: redemption.label,
            now: signed(redemption.now),
        };
        let code = match self.0.enrol(&wanted).await.map_err(storage)? {
            EnrolOutcome::Enrolled(_) | EnrolOutcome::EnrolledAgain(_) => return Ok(()),
            EnrolOutcome::NodeRevoked => RefusalCode::Revoked,
            EnrolOutcome::WrongRole => RefusalCode::WrongRole,
            EnrolOutcome::Expired => RefusalCode::TokenExpired,
            EnrolOutcome::UsedUp => RefusalCode::TokenUsedUp,
            // A node does not learn which of the two applies.
            EnrolOutcome::UnknownToken | EnrolOutcome::TokenRevoked => RefusalCode::UnknownToken,
        };
        Err(RegistryError::Refused(code))
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
        let (node, serial) = (cert.node_id.to_string(), hex::encode(&cert.serial));
        let code =
            match self.0.put_certificate(&node, &serial, signed(cert.not_after)).await.map_err(storage)? {
                PutCertificate::Recorded => {
                    tracing::info!(node, now = unix_now(), "certificate issued");
                    return Ok(());
                }
                PutCertificate::NodeRevoked => RefusalCode::Revoked,
                PutCertificate::UnknownNode => RefusalCode::UnknownNode,
            };
        Err(RegistryError::Refused(code))
    }
}
