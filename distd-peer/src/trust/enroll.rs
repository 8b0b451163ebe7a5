//! Bodies of the enrolment exchange, the same on QUIC (ALPN `distd-enroll/1`) and HTTPS (`POST /v1/enroll`).
//!
//! One message in, one reply out, then the stream ends. Relays forward both without reading them: a request
//! is signed with the join token's key, a reply with the realm CA's (`seal.rs`), so a relay can change neither.

use serde::{Deserialize, Serialize};

use super::identity::Role;

/// Largest message or reply, bytes.
pub const ENROLL_BYTES_MAX: usize = 64 << 10;

/// Largest label, bytes.
pub const LABEL_BYTES_MAX: usize = 200;

/// Random bytes in a request.
pub const NONCE_BYTES: usize = 16;

/// What a node asks of its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollMessage {
    /// A first certificate, or one after the last has been lost.
    Enroll(EnrollRequest),
    /// A certificate after the present one.
    Renew(RenewRequest),
}

/// What the origin answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollReply {
    /// To [`EnrollMessage::Enroll`].
    Enrolled(EnrollResponse),
    /// To [`EnrollMessage::Renew`].
    Renewed(RenewResponse),
    /// Neither.
    Refused(Refusal),
}

impl EnrollMessage {
    /// The random bytes of the request; empty where a node expects no sealed reply.
    pub fn nonce(&self) -> &[u8] {
        match self {
            Self::Enroll(request) => &request.nonce,
            Self::Renew(request) => &request.nonce,
        }
    }
}

/// A first certificate, please.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// PKCS#10 request; only its public key and self-signature matter.
    #[serde(with = "serde_bytes")]
    pub csr_der: Vec<u8>,
    /// Which join token: its Ed25519 public key, 32 bytes.
    #[serde(with = "serde_bytes")]
    pub token_public_key: Vec<u8>,
    /// The token's signature over [`enroll_message`], 64 bytes.
    #[serde(with = "serde_bytes")]
    pub token_signature: Vec<u8>,
    /// What operators see; at most [`LABEL_BYTES_MAX`].
    pub label: String,
    /// What the node wants to be.
    pub role: Role,
    /// [`NONCE_BYTES`] random bytes that tie the reply to this request; empty from a node made before
    /// replies were sealed.
    #[serde(default, with = "serde_bytes")]
    pub nonce: Vec<u8>,
}

/// The certificate and what it is worth nothing without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// The node's certificate.
    pub cert_chain_pem: String,
    /// The realm CA's certificate; its hash is in the join token.
    pub ca_pem: String,
    /// TUF root metadata to start from.
    pub root_json: String,
    /// The node id the origin saw.
    pub node_id: String,
}

/// The next certificate, please. The request's self-signature proves that the asker has the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS#10 request by the same key.
    #[serde(with = "serde_bytes")]
    pub csr_der: Vec<u8>,
    /// The certificate that is about to end or has ended.
    #[serde(with = "serde_bytes")]
    pub cert_der: Vec<u8>,
    /// As in [`EnrollRequest::nonce`].
    #[serde(default, with = "serde_bytes")]
    pub nonce: Vec<u8>,
    /// SHA-256 of the TUF root the node started from, for the origin to say whether that was ever its own;
    /// empty when the node does not ask.
    #[serde(default, with = "serde_bytes")]
    pub root_sha256: Vec<u8>,
}

/// The next certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// The node's certificate.
    pub cert_chain_pem: String,
    /// The realm's newest TUF root, when the one in [`RenewRequest::root_sha256`] was never the realm's.
    #[serde(default)]
    pub root_json: Option<String>,
}

/// Why the origin gave no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the origin refused: {}", self.code.advice())]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
}

/// Why the origin gave no certificate, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No such join token in this realm.
    UnknownToken,
    /// The join token's time is over.
    TokenExpired,
    /// The join token has no uses left.
    TokenUsedUp,
    /// The token's signature, or the request's own, does not verify.
    BadSignature,
    /// The token is for another role.
    WrongRole,
    /// The request is no PKCS#10 with an Ed25519 key, or a field is out of bounds.
    BadRequest,
    /// The node has been revoked.
    Revoked,
    /// A renewal by a node the origin does not know.
    UnknownNode,
    /// The certificate to renew is of another realm or has ended too long ago.
    CertificateRefused,
    /// The origin failed.
    Internal,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl RefusalCode {
    /// What happened and what to do next.
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

/// A body that is none.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Longer than [`ENROLL_BYTES_MAX`].
    #[error("an enrolment body of {0} bytes; at most {ENROLL_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Not the msgpack expected.
    #[error("the enrolment body is malformed")]
    Malformed(#[source] rmp_serde::decode::Error),
}

macro_rules! body {
    ($type:ty) => {
        impl $type {
            /// Its bytes: msgpack, maps with field names.
            pub fn encode(&self) -> Vec<u8> {
                rmp_serde::to_vec_named(self).expect("strings and bytes always encode")
            }

            /// From bytes of the network, at most [`ENROLL_BYTES_MAX`].
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

/// What a join token's key signs: a domain, the role, the label and the certificate request, so that a relay
/// in between can change none of them.
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
    fn bodies_survive_and_oversized_or_broken_ones_are_errors() {
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
