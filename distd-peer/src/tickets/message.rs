//! The request of a fetcher for a certificate of the share, and its reply: msgpack maps with field
//! names, at most 64 KiB each.

use std::fmt;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use distd_core::ticket::SignedTicket;
use rcgen::{KeyPair, SigningKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::trust::enroll::ENROLL_BYTES_MAX;
use crate::trust::identity::{CertInfo, NodeId, is_signed_by};
use crate::trust::token::sha256;

/// Domain separation of the signature of a node that proves which node of its realm it is.
const DOMAIN: &[u8] = b"distd-ticket-member-v1\0";

/// Request for a certificate of a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdmissionRequest {
    /// The signed ticket.
    pub(super) ticket: ByteBuf,
    /// PKCS#10 request, signed by the key that the fetcher made for this fetch.
    pub(super) csr: ByteBuf,
    /// Proof of which node of its realm the fetcher is, if the ticket is for some nodes alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) member: Option<MemberProof>,
}

/// Proof that a node of a realm makes this request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberProof {
    /// The node's certificate of its realm, DER.
    cert: ByteBuf,
    /// Signature of the node's key over domain, SHA-256 of the ticket and SHA-256 of the request.
    signature: ByteBuf,
}

fn member_message(ticket: &SignedTicket, csr_der: &[u8]) -> Vec<u8> {
    [DOMAIN, &sha256(&ticket.encode()), &sha256(csr_der)].concat()
}

impl MemberProof {
    /// Makes the proof of the node with this certificate and key.
    ///
    /// # Errors
    /// When signing fails.
    pub fn new(
        ticket: &SignedTicket,
        csr_der: &[u8],
        cert_der: &[u8],
        key: &KeyPair,
    ) -> Result<Self, rcgen::Error> {
        let signature = key.sign(&member_message(ticket, csr_der))?;
        Ok(Self { cert: ByteBuf::from(cert_der.to_vec()), signature: ByteBuf::from(signature) })
    }

    /// Returns the node of the realm with this CA that made the request; `None` if none did, or if
    /// its certificate is not valid at `now` (unix seconds).
    pub(super) fn node(
        &self,
        ticket: &SignedTicket,
        csr_der: &[u8],
        ca_der: &[u8],
        now: u64,
    ) -> Option<NodeId> {
        let info = CertInfo::parse(&self.cert).ok()?;
        if info.is_expired(now) || now < info.not_before || !is_signed_by(&self.cert, ca_der) {
            return None;
        }
        let (_, cert) = X509Certificate::from_der(&self.cert).ok()?;
        let key = UnparsedPublicKey::new(&ED25519, &cert.public_key().subject_public_key.data);
        key.verify(&member_message(ticket, csr_der), &self.signature).ok()?;
        Some(info.node_id)
    }
}

/// Reason why a sharer admits a fetcher not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The ticket is of another share, or was withdrawn.
    Unknown,
    /// The ticket's time is over.
    Expired,
    /// The ticket is for other nodes.
    Audience,
    /// The request is malformed.
    Request,
    /// The sharer failed for a reason of its own.
    Internal,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the share was withdrawn, or another share runs there now",
            Self::Expired => "the ticket's time is over by the sharer's clock",
            Self::Audience => "the ticket is for other nodes",
            Self::Request => "the sharer could not read the request",
            Self::Internal => "the sharer could not make a certificate",
        })
    }
}

/// Reply to an [`AdmissionRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AdmissionReply {
    /// The fetcher's certificate, and that of the share's CA, DER.
    Admitted { cert: ByteBuf, ca: ByteBuf },
    /// No certificate.
    Refused(Refusal),
}

impl AdmissionRequest {
    pub(super) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("bytes always encode")
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= ENROLL_BYTES_MAX).then(|| rmp_serde::from_slice(bytes).ok()).flatten()
    }
}

impl AdmissionReply {
    pub(super) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("bytes always encode")
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= ENROLL_BYTES_MAX).then(|| rmp_serde::from_slice(bytes).ok()).flatten()
    }
}
