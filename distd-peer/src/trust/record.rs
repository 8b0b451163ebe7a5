//! Peer records: signed with this node's key, and verified by the receiver whichever peer forwards
//! them (docs/protocol.md, "Neighbours").

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use distd_core::bounds::RECORD_SECONDS_MAX;
use distd_core::proto::frame::PeerRecord;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::identity::{CertInfo, IdentityError, NodeId, NodeIdentity, is_signed_by, node_id_of_spki};
use super::tls::Credentials;
use crate::clock::unix_now;
use distd_core::role::Role;

/// Validity of the record of a pull, seconds. The pull makes a new one after half of that time.
const PULL_SECONDS: u64 = 600;

/// Validity of the record of an agent, seconds.
const AGENT_SECONDS: u64 = 3600;

/// Time by which another node's clock may be ahead of this node's, seconds.
const CLOCK_SECONDS: u64 = 300;

/// Constant part of a node's records.
#[derive(Clone, Debug)]
pub struct RecordText {
    /// Name of the node's site; empty leaves the choice to its parent.
    pub site: String,
    /// Whether the node continues to listen when a connection ends.
    pub resident: bool,
}

/// Signer of this node's records.
pub struct RecordSigner {
    key: KeyPair,
    node_id: NodeId,
    /// The certificate is replaced while the node runs.
    credentials: Arc<Credentials>,
    text: RecordText,
    sequence: AtomicU64,
}

impl RecordSigner {
    /// Creates a signer for the node of `identity`, with the certificate that `credentials`
    /// present.
    ///
    /// # Errors
    /// [`IdentityError::Key`], which cannot happen with a key that a certificate was made for.
    pub fn new(
        identity: &NodeIdentity,
        credentials: Arc<Credentials>,
        text: RecordText,
    ) -> Result<Self, IdentityError> {
        let key = KeyPair::try_from(identity.private_key().secret_der())
            .map_err(|e| IdentityError::Key("node.key".into(), e))?;
        Ok(Self::of_key(key, credentials, text))
    }

    /// Creates a signer with an Ed25519 key, for the node whose certificate `credentials` present.
    pub fn of_key(key: KeyPair, credentials: Arc<Credentials>, text: RecordText) -> Self {
        let node_id = node_id_of_spki(&key.subject_public_key_info());
        // Records of an earlier run of this node must have lower numbers.
        let sequence = AtomicU64::new(unix_now().saturating_mul(1000));
        Self { key, node_id, credentials, text, sequence }
    }

    /// Id of the node that signs.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Whether the node continues to listen when a connection ends.
    pub fn is_resident(&self) -> bool {
        self.text.resident
    }

    /// Validity of a record, seconds.
    pub fn seconds(&self) -> u64 {
        if self.text.resident { AGENT_SECONDS } else { PULL_SECONDS }
    }

    /// Signs a record with these addresses. No addresses means that the node serves nobody.
    ///
    /// # Errors
    /// [`IdentityError::Request`] if the key cannot sign.
    pub fn sign(&self, addresses: Vec<SocketAddr>) -> Result<PeerRecord, IdentityError> {
        let mut record = PeerRecord {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            expires: unix_now().saturating_add(self.seconds()),
            resident: self.text.resident,
            site: self.text.site.clone(),
            addresses,
            certificate: Bytes::copy_from_slice(&self.credentials.certificate()),
            signature: [0; 64],
        };
        let signature = self.key.sign(&record.signed_bytes()).map_err(IdentityError::Request)?;
        let wrong = |_| IdentityError::Request(rcgen::Error::CouldNotParseKeyPair);
        record.signature = signature.as_slice().try_into().map_err(wrong)?;
        Ok(record)
    }
}

/// Reason why a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordRefused {
    /// The certificate is not from this realm, not a device's, or not valid now.
    #[error("the certificate in the peer record is not a valid device certificate of this realm")]
    Certificate,
    /// The record has expired, or is valid for longer than allowed.
    #[error("the peer record has expired, or expires too late")]
    Expiry,
    /// The record is not signed by the certificate's key.
    #[error("the peer record is not signed by its node")]
    Signature,
}

/// Verifies a record at `now` (unix seconds) in the realm with this CA, and returns the node that
/// signed it.
///
/// # Errors
/// [`RecordRefused`].
pub fn verify_record(
    record: &PeerRecord,
    ca: &CertificateDer<'_>,
    now: u64,
) -> Result<NodeId, RecordRefused> {
    if record.expires <= now || record.expires > now.saturating_add(RECORD_SECONDS_MAX + CLOCK_SECONDS) {
        return Err(RecordRefused::Expiry);
    }
    let info = CertInfo::parse(&record.certificate).map_err(|_| RecordRefused::Certificate)?;
    let holds = !info.is_expired(now) && info.not_before <= now && info.role == Role::Leaf;
    if !holds || !is_signed_by(&record.certificate, ca) {
        return Err(RecordRefused::Certificate);
    }
    let (_, cert) = X509Certificate::from_der(&record.certificate).map_err(|_| RecordRefused::Certificate)?;
    let key = UnparsedPublicKey::new(&ED25519, &cert.public_key().subject_public_key.data);
    key.verify(&record.signed_bytes(), &record.signature).map_err(|_| RecordRefused::Signature)?;
    Ok(info.node_id)
}
