//! The realm's seal on the reply to an enrolment or renewal.
//!
//! A reply contains the root of trust of a node, and comes through relays. Therefore the CA's key,
//! whose fingerprint the operator put into the join token, signs every reply together with the
//! request it answers. A relay can neither change a reply nor replay an earlier one, as each
//! request has a nonce.

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::enroll::ENROLL_BYTES_MAX;
use super::token::sha256;

/// Domain separation of the signature. A certificate that the same key signs begins with DER's
/// 0x30, never with these bytes.
const DOMAIN: &[u8] = b"distd-enroll-reply-v1\0";

/// A reply as the origin sends it, encoded as a msgpack map with field names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedReply {
    /// The realm CA's certificate, DER.
    #[serde(with = "serde_bytes")]
    pub ca_der: Vec<u8>,
    /// An encoded [`super::enroll::EnrollReply`].
    #[serde(with = "serde_bytes")]
    pub reply: Vec<u8>,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the CA's key over [`seal_message`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// Reason why a reply is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The reply is not a sealed reply at all.
    #[error(
        "the reply is not sealed by the realm: the origin is older than this distd, or somebody in between \
         answered; nothing was changed. Upgrade the origin first, then try again"
    )]
    Unsealed,
    /// The reply is sealed by another CA.
    #[error(
        "the reply is not of the realm that the join token names: somebody in between answered; nothing was changed"
    )]
    ForeignCa,
    /// The signature does not match the reply and request.
    #[error(
        "the reply was changed on its way, or answers another request; nothing was changed. Enrol through another parent"
    )]
    Signature,
}

/// Returns the bytes that the CA's key signs: the domain, SHA-256 of the request, SHA-256 of the
/// reply.
pub fn seal_message(request: &[u8], reply: &[u8]) -> Vec<u8> {
    let mut out = DOMAIN.to_vec();
    out.extend_from_slice(&sha256(request));
    out.extend_from_slice(&sha256(reply));
    out
}

/// Whether `message` is a [`seal_message`]. The signer checks it, and signs nothing that could pass
/// for another kind of message.
pub fn is_seal_message(message: &[u8]) -> bool {
    message.len() == DOMAIN.len() + 64 && message.starts_with(DOMAIN)
}

impl SealedReply {
    /// Encodes the sealed reply.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("bytes always encode")
    }

    /// Decodes bytes from the network, at most [`ENROLL_BYTES_MAX`].
    ///
    /// # Errors
    /// [`SealError::Unsealed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SealError> {
        if bytes.len() > ENROLL_BYTES_MAX {
            return Err(SealError::Unsealed);
        }
        rmp_serde::from_slice(bytes).map_err(|_| SealError::Unsealed)
    }

    /// Checks the seal of the reply to `request` against the SHA-256 of the realm CA's certificate,
    /// and returns that certificate.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn verify(
        &self,
        request: &[u8],
        ca_fingerprint: &[u8; 32],
    ) -> Result<CertificateDer<'static>, SealError> {
        if sha256(&self.ca_der) != *ca_fingerprint {
            return Err(SealError::ForeignCa);
        }
        verify_by_ca(&self.ca_der, &seal_message(request, &self.reply), &self.signature)?;
        Ok(CertificateDer::from(self.ca_der.clone()))
    }
}

/// Checks a signature by the key of the CA with this certificate.
///
/// # Errors
/// [`SealError::ForeignCa`] if `ca_der` is not a certificate, [`SealError::Signature`] otherwise.
pub(super) fn verify_by_ca(ca_der: &[u8], message: &[u8], signature: &[u8]) -> Result<(), SealError> {
    let (_, ca) = X509Certificate::from_der(ca_der).map_err(|_| SealError::ForeignCa)?;
    let key = &ca.public_key().subject_public_key.data;
    let algorithm = &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1;
    aws_lc_rs::signature::UnparsedPublicKey::new(algorithm, key)
        .verify(message, signature)
        .map_err(|_| SealError::Signature)
}
