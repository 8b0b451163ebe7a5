//! Peer records: made with this node's key, and verified whoever passes them on (docs/protocol.md, "Neighbours").

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use distd_core::limits::RECORD_SECONDS_MAX;
use distd_core::proto::frame::PeerRecord;
use rcgen::{KeyPair, SigningKey};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::identity::{CertInfo, IdentityError, NodeId, NodeIdentity, Role, is_signed_by};
use super::tls::Credentials;
use crate::clock::unix_now;

/// How long the record of a pull holds, seconds; it makes another at half of it.
const PULL_SECONDS: u64 = 600;

/// How long the record of an agent holds, seconds.
const AGENT_SECONDS: u64 = 3600;

/// How far another node's clock may be ahead, seconds.
const CLOCK_SECONDS: u64 = 300;

/// What a node says of itself in its records.
#[derive(Clone, Debug)]
pub struct RecordText {
    /// Its site; empty when it leaves that to its parent.
    pub site: String,
    /// Whether it goes on listening when a connection ends.
    pub resident: bool,
}

/// Makes this node's records.
pub struct RecordSigner {
    key: KeyPair,
    node_id: NodeId,
    /// The certificate is replaced while the node runs.
    credentials: Arc<Credentials>,
    text: RecordText,
    sequence: AtomicU64,
}

impl RecordSigner {
    /// Signs as the node of `identity`, with the certificate that `credentials` present.
    ///
    /// # Errors
    /// [`IdentityError::Key`], which no key that made a certificate gives.
    pub fn new(
        identity: &NodeIdentity,
        credentials: Arc<Credentials>,
        text: RecordText,
    ) -> Result<Self, IdentityError> {
        let key = KeyPair::try_from(identity.private_key().secret_der())
            .map_err(|e| IdentityError::Key("node.key".into(), e))?;
        // Records of an earlier run of this node must count less.
        let sequence = AtomicU64::new(unix_now().saturating_mul(1000));
        Ok(Self { key, node_id: identity.node_id(), credentials, text, sequence })
    }

    /// Who signs.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Whether the node goes on listening when a connection ends.
    pub fn is_resident(&self) -> bool {
        self.text.resident
    }

    /// How long a record holds, seconds.
    pub fn seconds(&self) -> u64 {
        if self.text.resident { AGENT_SECONDS } else { PULL_SECONDS }
    }

    /// A record with these addresses; none when the node serves nobody.
    ///
    /// # Errors
    /// [`IdentityError::Request`], when the key cannot sign.
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

/// Why a record is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordRefused {
    /// Its certificate is none of this realm, or over.
    #[error("the certificate in the peer record is not one of this realm that holds now")]
    Certificate,
    /// It is over, or holds for longer than any may.
    #[error("the peer record has expired, or expires too late")]
    Expiry,
    /// Not signed by the certificate's key.
    #[error("the peer record is not signed by its node")]
    Signature,
}

/// Whose record it is, at `now` (unix seconds), for a realm with this CA.
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
