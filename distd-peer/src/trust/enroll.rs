//! Message bodies of the enrolment exchange, the same over QUIC (ALPN `distd-enroll/1`) and over
//! HTTPS (`POST /v1/enroll`).
//!
//! An exchange is one message, one reply, and the end of the stream. Relays forward both without
//! reading them. A request is signed with the join token's key and a reply with the realm CA's
//! (`seal.rs`), so a relay can change neither.

use serde::{Deserialize, Serialize};

use distd_core::role::Role;

/// Maximum size of a message or reply, bytes.
pub const ENROLL_BYTES_MAX: usize = 64 << 10;

/// Maximum length of a label, bytes.
pub const LABEL_BYTES_MAX: usize = 200;

/// Number of random bytes in a request.
pub const NONCE_BYTES: usize = 16;

/// Request of a node to its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollMessage {
    /// Asks for a first certificate, or for one that replaces a lost one.
    Enroll(EnrollRequest),
    /// Asks for the certificate that follows the present one.
    Renew(RenewRequest),
}

/// Answer of the origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollReply {
    /// Answer to [`EnrollMessage::Enroll`].
    Enrolled(EnrollResponse),
    /// Answer to [`EnrollMessage::Renew`].
    Renewed(RenewResponse),
    /// Refusal of either request.
    Refused(Refusal),
}

impl EnrollMessage {
    /// Random bytes of the request; empty if the node expects no sealed reply.
    pub fn nonce(&self) -> &[u8] {
        match self {
            Self::Enroll(request) => &request.nonce,
            Self::Renew(request) => &request.nonce,
        }
    }
}

/// Request for a first certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// PKCS#10 request. Only its public key and its self-signature are used.
    #[serde(with = "serde_bytes")]
    pub csr_der: Vec<u8>,
    /// Ed25519 public key of the join token, 32 bytes, by which the origin finds the token.
    #[serde(with = "serde_bytes")]
    pub token_public_key: Vec<u8>,
    /// The token's signature over [`enroll_message`], 64 bytes.
    #[serde(with = "serde_bytes")]
    pub token_signature: Vec<u8>,
    /// Name that operators see, at most [`LABEL_BYTES_MAX`] bytes.
    pub label: String,
    /// Role that the node asks for.
    pub role: Role,
    /// [`NONCE_BYTES`] random bytes that tie the reply to this request. Empty from a node of a
    /// version before replies were sealed.
    #[serde(default, with = "serde_bytes")]
    pub nonce: Vec<u8>,
}

/// Certificate of a newly enrolled node, with the CA certificate and TUF root that it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// The node's certificate, PEM.
    pub cert_chain_pem: String,
    /// The realm CA's certificate; its hash is in the join token.
    pub ca_pem: String,
    /// TUF root metadata to start from.
    pub root_json: String,
    /// Node id that the origin computed from the request.
    pub node_id: String,
}

/// Request for the next certificate. Its self-signature proves that the asker has the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS#10 request made with the same key.
    #[serde(with = "serde_bytes")]
    pub csr_der: Vec<u8>,
    /// The certificate that is about to expire or has expired.
    #[serde(with = "serde_bytes")]
    pub cert_der: Vec<u8>,
    /// Same as [`EnrollRequest::nonce`].
    #[serde(default, with = "serde_bytes")]
    pub nonce: Vec<u8>,
    /// SHA-256 of the TUF root that the node started from; the origin answers whether that root was
    /// ever its own. Empty if the node does not ask.
    #[serde(default, with = "serde_bytes")]
    pub root_sha256: Vec<u8>,
}

/// Answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// The node's next certificate, PEM.
    pub cert_chain_pem: String,
    /// Newest TUF root of the realm, if the one in [`RenewRequest::root_sha256`] was never the
    /// realm's.
    #[serde(default)]
    pub root_json: Option<String>,
}

/// Refusal by the origin to give a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the origin refused: {}", self.code.advice())]
pub struct Refusal {
    /// Reason of the refusal.
    pub code: RefusalCode,
}

/// Reason of a refusal, for programs. [`Self::advice`] is the text for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The realm has no such join token.
    UnknownToken,
    /// The join token has expired.
    TokenExpired,
    /// The join token has no uses left.
    TokenUsedUp,
    /// The token's signature, or the request's own, does not verify.
    BadSignature,
    /// The token is for another role.
    WrongRole,
    /// The request is not a PKCS#10 request with an Ed25519 key, or a field is out of bounds.
    BadRequest,
    /// The label contains characters that are displayed as something else than they are.
    BadLabel,
    /// The node has been revoked.
    Revoked,
    /// The origin does not know the node that asks for a renewal.
    UnknownNode,
    /// The certificate to renew is from another realm or expired too long ago.
    CertificateRefused,
    /// The origin failed.
    Internal,
    /// A code that a later version added.
    #[serde(other)]
    Unknown,
}

impl RefusalCode {
    /// Says what happened and what to do next.
    pub fn advice(self) -> &'static str {
        match self {
            Self::UnknownToken => "no such join token; make one with: distd token join",
            Self::TokenExpired => "the join token has expired; make a new one with: distd token join",
            Self::TokenUsedUp => {
                "the join token has been used up; make a new one with: distd token join --uses N"
            }
            Self::BadSignature => "the request's signature is wrong; copy the whole join token and try again",
            Self::WrongRole => {
                "the join token is for another role; make one with: distd token join --role ROLE"
            }
            Self::BadRequest => "the request is malformed; use the same version of distd on both sides",
            Self::BadLabel => {
                "the label cannot be used; choose another with --label: letters, digits, single blanks and plain signs"
            }
            Self::Revoked => "this node has been revoked; delete its node.key and enrol it as a new node",
            Self::UnknownNode => "the origin does not know this node; enrol it with a join token",
            Self::CertificateRefused => {
                "the node's certificate cannot be renewed; enrol again with a join token"
            }
            Self::Internal => "the origin could not complete it; look at its log and try again",
            Self::Unknown => "for a reason this version does not know; update distd",
        }
    }
}

/// A body that does not parse.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body is longer than [`ENROLL_BYTES_MAX`].
    #[error("an enrolment body of {0} bytes; at most {ENROLL_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The body is not the expected msgpack.
    #[error("the enrolment body is malformed")]
    Malformed(#[source] rmp_serde::decode::Error),
}

macro_rules! body {
    ($type:ty) => {
        impl $type {
            /// Encodes the body as msgpack, with maps that have field names.
            pub fn encode(&self) -> Vec<u8> {
                rmp_serde::to_vec_named(self).expect("strings and bytes always encode")
            }

            /// Decodes bytes from the network, at most [`ENROLL_BYTES_MAX`].
            pub fn decode(bytes: &[u8]) -> Result<Self, BodyError> {
                if bytes.len() > ENROLL_BYTES_MAX {
                    return Err(BodyError::TooLong(bytes.len()));
                }
                rmp_serde::from_slice(bytes).map_err(BodyError::Malformed)
            }
        }
    };
}
body!(EnrollMessage);
body!(EnrollReply);

/// Returns the bytes that a join token's key signs: a domain, the role, the label and the
/// certificate request. A relay in between can therefore change none of them.
pub fn enroll_message(role: Role, label: &str, csr_der: &[u8]) -> Vec<u8> {
    let mut out = b"distd-enroll-v1\0".to_vec();
    for part in [role.as_str().as_bytes(), label.as_bytes(), csr_der] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_a_round_trip_and_oversized_or_broken_ones_are_errors() {
        let message = EnrollMessage::Enroll(EnrollRequest {
            csr_der: vec![1; 300],
            token_public_key: vec![2; 32],
            token_signature: vec![3; 64],
            label: "branch".into(),
            role: Role::Leaf,
            nonce: vec![4; NONCE_BYTES],
        });
        let bytes = message.encode();
        assert_eq!(EnrollMessage::decode(&bytes).expect("round trip"), message);
        for n in 0..bytes.len() {
            assert!(EnrollMessage::decode(&bytes[..n]).is_err(), "{n} bytes");
        }
        assert!(matches!(EnrollMessage::decode(&vec![0; ENROLL_BYTES_MAX + 1]), Err(BodyError::TooLong(_))));
        let refused = EnrollReply::Refused(Refusal { code: RefusalCode::TokenExpired });
        assert_eq!(EnrollReply::decode(&refused.encode()).expect("round trip"), refused);
    }

    #[test]
    fn fields_of_the_signed_message_cannot_run_into_each_other() {
        assert_ne!(enroll_message(Role::Leaf, "a", b"bc"), enroll_message(Role::Leaf, "ab", b"c"));
    }
}
