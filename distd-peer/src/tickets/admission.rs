//! The fetcher's side of an admission: shows the ticket, and brings a certificate home.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::ticket::SignedTicket;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_bytes::ByteBuf;

use super::message::{AdmissionReply, AdmissionRequest, MemberProof, Refusal};
use crate::net::{DialError, EnrollError, Outbound, WireError, exchange_enroll};
use crate::trust::identity::{CertInfo, NodeId, is_signed_by, node_id_of_spki};
use crate::trust::ticket::share_key_of;
use crate::trust::tls::{Credentials, TlsError, TrustAnchor};

/// Time for which one address of a sharer is tried alone, before the next one is tried too.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// Reason why a fetcher was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The ticket names no address, and none was given.
    #[error("the ticket names no address of the sharer")]
    NoAddress,
    /// Something answered at an address, and it is not this share.
    #[error("{0} is not the sharer of this ticket")]
    Stranger(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// No address could be reached.
    #[error("no address of the sharer could be reached")]
    Unreachable(#[source] Box<DialError>),
    /// The exchange broke off.
    #[error("the exchange with the sharer at {0} broke off")]
    Wire(String, #[source] WireError),
    /// No socket could be opened.
    #[error("could not open a socket")]
    Socket(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The sharer refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The reply has no certificate for this fetch.
    #[error("the sharer answered with something else than a certificate for this fetch")]
    BadReply,
    /// A key or a request could not be made.
    #[error("could not make a key for this fetch")]
    Key(#[from] rcgen::Error),
    /// The certificate is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl From<EnrollError> for AdmissionError {
    fn from(error: EnrollError) -> Self {
        match error {
            EnrollError::Bind(error) => Self::Socket(error.into()),
            EnrollError::Connect(address, cause) => Self::Stranger(address, cause),
            EnrollError::Dial(error) => Self::Unreachable(Box::new(error)),
            EnrollError::Wire(address, cause) => Self::Wire(address, cause),
        }
    }
}

/// Identity of one fetch: a key that is forgotten with it, and the share's certificate for it.
pub struct Admitted {
    /// The key.
    pub key: KeyPair,
    /// Id of the fetcher in the share.
    pub node: NodeId,
    /// Certificate of the share's CA.
    pub ca: CertificateDer<'static>,
    /// What the fetcher shows to the sharer and to other fetchers.
    pub credentials: Arc<Credentials>,
    /// Address at which the sharer answered first.
    pub address: String,
    /// The key as TLS takes it.
    pub private: PrivateKeyDer<'static>,
}

/// A fetcher that asks to be admitted.
pub struct Candidate {
    key: KeyPair,
    csr: Vec<u8>,
}

impl Candidate {
    /// Makes a key for one fetch.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "fetcher");
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// The certificate request, which a [`MemberProof`] signs.
    pub fn csr_der(&self) -> &[u8] {
        &self.csr
    }

    /// Shows the ticket at its addresses, or at `others` if there are some; the first address that
    /// answers as the share decides.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub async fn admit(
        self,
        ticket: &SignedTicket,
        others: &[String],
        member: Option<MemberProof>,
        outbound: &Arc<Outbound>,
    ) -> Result<Admitted, AdmissionError> {
        let addresses = if others.is_empty() { &ticket.ticket.addresses } else { others };
        let (csr, ticket_bytes) = (ByteBuf::from(self.csr.clone()), ByteBuf::from(ticket.encode().to_vec()));
        let request = AdmissionRequest { ticket: ticket_bytes, csr, member }.encode();
        let anchor = TrustAnchor::Key(ticket.ticket.key);
        let (address, reply) = first_answer(addresses, &anchor, outbound, &request).await?;
        let (cert, ca) = match AdmissionReply::decode(&reply).ok_or(AdmissionError::BadReply)? {
            AdmissionReply::Admitted { cert, ca } => {
                (CertificateDer::from(cert.into_vec()), CertificateDer::from(ca.into_vec()))
            }
            AdmissionReply::Refused(refusal) => return Err(AdmissionError::Refused(refusal)),
        };
        let node = node_id_of_spki(&self.key.subject_public_key_info());
        let is_mine = CertInfo::parse(&cert).is_ok_and(|info| info.node_id == node);
        if !is_mine || share_key_of(&ca) != Some(ticket.ticket.key) || !is_signed_by(&cert, &ca) {
            return Err(AdmissionError::BadReply);
        }
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let credentials = Credentials::new(&private, &cert, &ca)?;
        Ok(Admitted { key: self.key, node, ca, credentials, address, private })
    }
}

/// Asks at all addresses, each a moment after the one before it, and returns the first reply.
async fn first_answer(
    addresses: &[String],
    anchor: &TrustAnchor,
    outbound: &Arc<Outbound>,
    request: &[u8],
) -> Result<(String, Bytes), AdmissionError> {
    let ask = |(n, address): (usize, &String)| {
        let address = address.clone();
        async move {
            tokio::time::sleep(NEXT_ADDRESS * u32::try_from(n).unwrap_or(u32::MAX)).await;
            let reply = exchange_enroll(&address, anchor, outbound, request).await?;
            Ok::<_, EnrollError>((address, reply))
        }
    };
    let mut asked: FuturesUnordered<_> = addresses.iter().enumerate().map(ask).collect();
    let mut worst = AdmissionError::NoAddress;
    while let Some(answer) = asked.next().await {
        match answer.map_err(AdmissionError::from) {
            Ok(answer) => return Ok(answer),
            // A host that answers says more than one that does not.
            Err(AdmissionError::Unreachable(_))
                if matches!(worst, AdmissionError::Stranger(..) | AdmissionError::Wire(..)) => {}
            Err(error) => worst = error,
        }
    }
    Err(worst)
}
