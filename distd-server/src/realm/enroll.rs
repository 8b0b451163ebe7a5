//! Enrolment and renewal: from a request to a certificate, or a refusal.

use async_trait::async_trait;
use distd_core::role::Role;
use distd_core::text::is_label;
use distd_peer::trust::enroll::{
    EnrollMessage, EnrollReply, EnrollRequest, EnrollResponse, LABEL_BYTES_MAX, Refusal, RefusalCode,
    RenewRequest, RenewResponse, enroll_message,
};
use distd_peer::trust::identity::{CertInfo, NodeId, is_signed_by, node_id_of_spki};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::ca::{Realm, RealmError};

/// Time after its end in which a certificate may still be renewed, seconds: a device may lie in a
/// drawer for months. Its key and its row in the registry let it in; a revocation locks it out.
const RENEW_GRACE_SECONDS: u64 = 400 * 24 * 3600;

/// The realm's TUF roots.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// The newest, as JSON: the start of a node that enrols now.
    pub newest: String,
    /// SHA-256 of each version so far, the oldest first.
    pub sha256: Vec<[u8; 32]>,
}

/// One use of a join token by one node.
#[derive(Clone, Debug)]
pub struct Redemption<'a> {
    /// The token's Ed25519 public key. Its signature has been verified.
    pub token: [u8; 32],
    /// The node; the same node may redeem the same token again without using it up.
    pub node_id: NodeId,
    /// The node's SubjectPublicKeyInfo, DER.
    pub node_spki: &'a [u8],
    /// The role asked for.
    pub role: Role,
    /// Name that operators see.
    pub label: &'a str,
    /// Unix seconds.
    pub now: u64,
}

/// Refusal or error of the registry of tokens and nodes.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A decision.
    #[error("refused: {}", .0.advice())]
    Refused(RefusalCode),
    /// The storage failed.
    #[error("the registry of nodes could not be used")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The registry of join tokens and nodes.
#[async_trait]
pub trait JoinTokens: Send + Sync {
    /// In one transaction: the token exists, has not expired, is for this role, and has a use left
    /// or has been used by this node before; the node is not revoked. Then the use and the node are
    /// recorded.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] with `UnknownToken`, `TokenExpired`, `WrongRole`, `TokenUsedUp`
    /// or `Revoked`.
    async fn redeem(&self, redemption: Redemption<'_>) -> Result<(), RegistryError>;

    /// The role of an enrolled node.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] with `UnknownNode` or `Revoked`.
    async fn node_role(&self, node_id: NodeId) -> Result<Role, RegistryError>;

    /// Records the certificate that a node is about to be given, and nothing else about the node.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] with `UnknownNode` or `Revoked`; the node must not get the
    /// certificate then.
    async fn issued(&self, cert: &CertInfo) -> Result<(), RegistryError>;
}

/// Refusal or error that kept a request from a certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestRefused {
    /// The request itself is unacceptable.
    #[error("refused: {}", .0.advice())]
    Request(RefusalCode),
    /// The registry refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The CA failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
}

impl RequestRefused {
    /// The code that the node is sent.
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::Request(code) | Self::Registry(RegistryError::Refused(code)) => *code,
            Self::Registry(RegistryError::Storage(_)) | Self::Realm(_) => RefusalCode::Internal,
        }
    }
}

impl Realm {
    /// Answers one message of the enrolment exchange at `now` (unix seconds): bytes in, bytes out,
    /// over any transport. The second value is the cause of a refusal, for the log.
    pub async fn handle_enroll(
        &self,
        message: &[u8],
        roots: &Roots,
        now: u64,
        registry: &dyn JoinTokens,
    ) -> (Vec<u8>, Option<RequestRefused>) {
        let decoded = EnrollMessage::decode(message);
        // A node of an earlier release sends no nonce and reads no seal. It can renew until it is
        // updated.
        let sealed = !matches!(&decoded, Ok(message) if message.nonce().is_empty());
        let result = match decoded {
            Ok(EnrollMessage::Enroll(request)) => {
                self.enroll(&request, roots, now, registry).await.map(EnrollReply::Enrolled)
            }
            Ok(EnrollMessage::Renew(request)) => {
                self.renew(&request, roots, now, registry).await.map(EnrollReply::Renewed)
            }
            Err(_) => Err(RequestRefused::Request(RefusalCode::BadRequest)),
        };
        let (reply, why) = match result {
            Ok(reply) => (reply.encode(), None),
            Err(e) => (EnrollReply::Refused(Refusal { code: e.code() }).encode(), Some(e)),
        };
        if !sealed {
            return (reply, why);
        }
        match self.seal(message, reply) {
            Ok(sealed) => (sealed.encode(), why),
            // No node believes a reply without a seal: an empty reply says as much.
            Err(error) => (Vec::new(), Some(error.into())),
        }
    }

    /// A first certificate, against a join token.
    pub async fn enroll(
        &self,
        request: &EnrollRequest,
        roots: &Roots,
        now: u64,
        registry: &dyn JoinTokens,
    ) -> Result<EnrollResponse, RequestRefused> {
        let refused = RequestRefused::Request;
        let token: [u8; 32] =
            request.token_public_key.as_slice().try_into().map_err(|_| refused(RefusalCode::BadRequest))?;
        if request.label.len() > LABEL_BYTES_MAX {
            return Err(refused(RefusalCode::BadRequest));
        }
        if !is_label(&request.label) {
            return Err(refused(RefusalCode::BadLabel));
        }
        // No node enrols as the origin: only this host has such a certificate.
        if request.role == Role::Origin {
            return Err(refused(RefusalCode::WrongRole));
        }
        let message = enroll_message(request.role, &request.label, &request.csr_der);
        aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, token)
            .verify(&message, &request.token_signature)
            .map_err(|_| refused(RefusalCode::BadSignature))?;
        let key = node_key(&request.csr_der).map_err(refused)?;
        let node_spki = key.subject_public_key_info();
        let node_id = node_id_of_spki(&node_spki);
        registry
            .redeem(Redemption {
                token,
                node_id,
                node_spki: &node_spki,
                role: request.role,
                label: &request.label,
                now,
            })
            .await?;
        let (cert_chain_pem, info) = self.node_cert(&key, request.role, now)?;
        registry.issued(&info).await?;
        Ok(EnrollResponse {
            cert_chain_pem,
            ca_pem: self.ca_pem().to_owned(),
            root_json: roots.newest.clone(),
            node_id: node_id.to_string(),
        })
    }

    /// The next certificate, against the last one and a request signed by the same key.
    pub async fn renew(
        &self,
        request: &RenewRequest,
        roots: &Roots,
        now: u64,
        registry: &dyn JoinTokens,
    ) -> Result<RenewResponse, RequestRefused> {
        let refused = RequestRefused::Request;
        let key = node_key(&request.csr_der).map_err(refused)?;
        let node_id = node_id_of_spki(&key.subject_public_key_info());
        let last =
            CertInfo::parse(&request.cert_der).map_err(|_| refused(RefusalCode::CertificateRefused))?;
        let in_time = now <= last.not_after.saturating_add(RENEW_GRACE_SECONDS);
        if last.node_id != node_id || !in_time || !is_signed_by(&request.cert_der, self.ca_der()) {
            return Err(refused(RefusalCode::CertificateRefused));
        }
        let role = registry.node_role(node_id).await?;
        // The role is what the CA signed at the enrolment: a changed row in the database makes no
        // device a relay.
        if role == Role::Origin || role != last.role {
            return Err(refused(RefusalCode::WrongRole));
        }
        let (cert_chain_pem, info) = self.node_cert(&key, role, now)?;
        registry.issued(&info).await?;
        let asked: Result<[u8; 32], _> = request.root_sha256.as_slice().try_into();
        let foreign = asked.is_ok_and(|sha256| !roots.sha256.contains(&sha256));
        if foreign {
            tracing::error!(
                node = %node_id,
                "the node started from a TUF root that was never this realm's: whoever passed its enrolment on \
                 made it up; the node gets the realm's own now"
            );
        }
        Ok(RenewResponse { cert_chain_pem, root_json: foreign.then(|| roots.newest.clone()) })
    }
}

/// The public key of a PKCS#10 request that is signed by it. Nothing else in the request is looked
/// at: names and validity are the CA's to set.
fn node_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, RefusalCode> {
    let (rest, csr) = X509CertificationRequest::from_der(csr_der).map_err(|_| RefusalCode::BadRequest)?;
    if !rest.is_empty() {
        return Err(RefusalCode::BadRequest);
    }
    let spki = csr.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| RefusalCode::BadRequest)?;
    if *key.algorithm() != rcgen::PKCS_ED25519 {
        return Err(RefusalCode::BadRequest);
    }
    csr.verify_signature().map_err(|_| RefusalCode::BadSignature)?;
    Ok(key)
}
