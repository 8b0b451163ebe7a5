//! TLS configurations. The realm CA is the only root, and certificate names are roles, never hosts.
//!
//! A parent is always verified as `parent.distd.internal`, and an origin over HTTPS as
//! `origin.distd.internal`, whatever address was dialled. A device's certificate holds neither
//! name, so no device can pose as a parent.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};

use super::identity::{CertError, CertInfo, NodeId, NodeIdentity, ORIGIN_NAME, PARENT_NAME};
use super::ticket::share_key_of;
use super::token::sha256;
use distd_core::role::Role;
use distd_core::ticket::ShareKey;

pub use distd_core::proto::{ALPN as ALPN_DISTD, ALPN_ENROLL};

/// ALPN of the requests of a device to the proxy of its relay (docs/apt.md).
pub(crate) const ALPN_APT: &[u8] = b"distd-apt/1";

/// ALPN of HTTP/2.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";

/// Reason why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Key and certificate do not match, or one is unusable.
    #[error("the node's key and certificate do not work for TLS; enrol again")]
    Credentials(#[source] rustls::Error),
    /// The CA certificate is unusable.
    #[error("the realm CA's certificate is unusable; enrol again")]
    Ca(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The node has no certificate yet.
    #[error("this node is not enrolled; enrol it with a join token")]
    NotEnrolled,
}

/// The crypto provider of all configurations.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A key and certificate that connections present, replaceable while they are in use.
pub struct Credentials {
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    /// The certificate alone, for peers of the realm, which have the CA already.
    bare: Arc<CertifiedKey>,
    /// The certificate followed by the CA's, for a client that knows only the CA's fingerprint.
    with_ca: Arc<CertifiedKey>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Creates credentials from a private key, its certificate and the CA's.
    pub fn new(
        key: &PrivateKeyDer<'static>,
        cert: &CertificateDer<'static>,
        ca: &CertificateDer<'static>,
    ) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { current: RwLock::new(Current::new(key, cert, ca)?) }))
    }

    /// Creates credentials from an enrolled node's identity.
    pub fn of_node(identity: &NodeIdentity) -> Result<Arc<Self>, TlsError> {
        let (cert, ca) = identity.cert_der().zip(identity.ca_der()).ok_or(TlsError::NotEnrolled)?;
        Self::new(&identity.private_key(), cert, ca)
    }

    /// Presents another certificate from the next handshake on. Open connections keep the old one.
    pub fn replace(
        &self,
        key: &PrivateKeyDer<'static>,
        cert: &CertificateDer<'static>,
        ca: &CertificateDer<'static>,
    ) -> Result<(), TlsError> {
        let next = Current::new(key, cert, ca)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Certificate that is presented now.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.get().bare.cert[0].clone()
    }

    fn get(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Current {
    fn new(
        key: &PrivateKeyDer<'static>,
        cert: &CertificateDer<'static>,
        ca: &CertificateDer<'static>,
    ) -> Result<Self, TlsError> {
        let signer =
            rustls::crypto::aws_lc_rs::sign::any_supported_type(key).map_err(TlsError::Credentials)?;
        let bare = CertifiedKey::new(vec![cert.clone()], signer.clone());
        bare.keys_match().map_err(TlsError::Credentials)?;
        let with_ca = CertifiedKey::new(vec![cert.clone(), ca.clone()], signer);
        Ok(Self { bare: Arc::new(bare), with_ca: Arc::new(with_ca) })
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let enrolled = hello.alpn().is_some_and(|mut list| list.any(|p| p == ALPN_DISTD));
        let current = self.get();
        Some(if enrolled { current.bare } else { current.with_ca })
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get().bare)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Root of trust of a client.
#[derive(Clone, Debug)]
pub enum TrustAnchor {
    /// SHA-256 of the CA certificate's DER, from a token. The server sends the certificate itself.
    Fingerprint([u8; 32]),
    /// Key of the CA, from a ticket. The server sends the certificate itself.
    Key(ShareKey),
    /// The CA certificate.
    Ca(CertificateDer<'static>),
}

/// Verifier that checks a server against a trust anchor and a fixed name, whatever name was
/// dialled.
#[derive(Debug)]
struct FingerprintVerifier {
    anchor: TrustAnchor,
    name: ServerName<'static>,
    provider: Arc<CryptoProvider>,
}

impl FingerprintVerifier {
    fn new(anchor: &TrustAnchor, name: &'static str) -> Arc<Self> {
        let name = ServerName::try_from(name).expect("the role names are DNS names");
        Arc::new(Self { anchor: anchor.clone(), name, provider: provider() })
    }
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Only a certificate with exactly this fingerprint or key becomes a root, and it must have
        // signed the chain.
        let find = |is_ca: &dyn Fn(&[u8]) -> bool| {
            let found = intermediates.iter().find(|cert| is_ca(cert)).map(|cert| cert.clone().into_owned());
            found.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
        };
        let ca = match &self.anchor {
            TrustAnchor::Ca(ca) => ca.clone(),
            TrustAnchor::Fingerprint(fingerprint) => find(&|cert| sha256(cert) == *fingerprint)?,
            TrustAnchor::Key(key) => find(&|cert| share_key_of(cert) == Some(*key))?,
        };
        let bad = |_| rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let roots = roots(&ca).map_err(bad)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        verifier.verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn roots(ca: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store.add(ca.clone().into_owned()).map_err(|e| TlsError::Ca(e.into()))?;
    Ok(Arc::new(store))
}

/// Client configuration for QUIC to a parent: mutual TLS, ALPN `distd/1`. Dial with [`PARENT_NAME`]
/// as server name.
pub fn quic_client(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<quinn::ClientConfig, TlsError> {
    let mut config = dialling(credentials, ca)?;
    config.alpn_protocols = vec![ALPN_DISTD.to_vec()];
    Ok(into_quic_client(config))
}

/// Client configuration for HTTP/2 to a parent: mutual TLS, ALPN `h2` and `distd/1`. The latter
/// tells the parent that the CA is known here. Dial with [`PARENT_NAME`] as server name.
pub fn https_parent_client(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = dialling(credentials, ca)?;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_DISTD.to_vec()];
    Ok(config)
}

fn dialling(credentials: Arc<Credentials>, ca: &CertificateDer<'static>) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_root_certificates(roots(ca)?)
        .with_client_cert_resolver(credentials))
}

/// Client configuration for enrolment and renewal over QUIC: no client certificate, ALPN
/// `distd-enroll/1`. The parent is verified as [`PARENT_NAME`], whatever server name is dialled.
pub fn quic_enroll_client(anchor: &TrustAnchor) -> quinn::ClientConfig {
    let mut config = anonymous(anchor, PARENT_NAME);
    config.alpn_protocols = vec![ALPN_ENROLL.to_vec()];
    into_quic_client(config)
}

/// Client configuration for enrolment and renewal over HTTP/2: ALPN `h2` and `distd-enroll/1`.
pub fn https_enroll_client(anchor: &TrustAnchor) -> ClientConfig {
    let mut config = anonymous(anchor, PARENT_NAME);
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_ENROLL.to_vec()];
    config
}

fn anonymous(anchor: &TrustAnchor, name: &'static str) -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(FingerprintVerifier::new(anchor, name))
        .with_no_client_auth()
}

/// Client configuration for HTTPS to the origin, which is verified as [`ORIGIN_NAME`] whatever host
/// the URL names. The caller sets `alpn_protocols` for its HTTP client.
pub fn https_client(anchor: &TrustAnchor) -> ClientConfig {
    anonymous(anchor, ORIGIN_NAME)
}

/// Server configuration for QUIC, with both ALPNs. A client certificate that is present has been
/// verified against the realm CA, but it may be absent: every `distd/1` connection must pass
/// [`peer_identity`] before it is served.
pub fn quic_server(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<quinn::ServerConfig, TlsError> {
    Ok(into_quic_server(answering(credentials, ca, &[ALPN_DISTD, ALPN_ENROLL])?))
}

/// Server configuration for HTTP/2 to the same peers. A client without a certificate may only
/// enrol.
pub fn https_parent(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<ServerConfig, TlsError> {
    answering(credentials, ca, &[ALPN_HTTP2])
}

/// Server configuration for QUIC of a device, which its neighbours dial with
/// [`super::identity::LEAF_NAME`]. It does not offer enrolment.
pub fn quic_neighbour(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<quinn::ServerConfig, TlsError> {
    Ok(into_quic_server(answering(credentials, ca, &[ALPN_DISTD])?))
}

/// Server configuration for the requests of neighbours to the proxy for apt of a device. Clients
/// are dialled with [`apt_neighbour_client`].
///
/// # Errors
/// [`TlsError`].
pub fn apt_neighbour(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<ServerConfig, TlsError> {
    answering(credentials, ca, &[ALPN_APT])
}

/// Client configuration for the proxy for apt of a neighbour: mutual TLS. Dial with
/// [`super::identity::LEAF_NAME`].
///
/// # Errors
/// [`TlsError`].
pub fn apt_neighbour_client(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<ClientConfig, TlsError> {
    dialling(credentials, ca)
}

fn answering(
    credentials: Arc<Credentials>,
    ca: &CertificateDer<'static>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider())
        .clear_root_hint_subjects()
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::Ca(e.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(clients)
        .with_cert_resolver(credentials);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Server configuration for HTTPS: TLS 1.2 and 1.3, HTTP/1.1. Clients authenticate with tokens, not
/// certificates.
pub fn https_server(credentials: Arc<Credentials>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(credentials);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Server configuration of a gateway, with the certificate that its site trusts: TLS 1.2 and 1.3,
/// HTTP/1.1 and 2. Callers authenticate with tokens.
///
/// # Errors
/// When the key does not fit the certificate, or either cannot be used.
pub fn gateway_server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Client configuration for servers of the public web, verified by `roots`.
pub fn public_client(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn into_quic_server(config: ServerConfig) -> quinn::ServerConfig {
    let quic = quinn::crypto::rustls::QuicServerConfig::try_from(config)
        .expect("the provider has the suite of QUIC's initial packets");
    quinn::ServerConfig::with_crypto(Arc::new(quic))
}

fn into_quic_client(config: ClientConfig) -> quinn::ClientConfig {
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(config)
        .expect("the provider has the suite of QUIC's initial packets");
    quinn::ClientConfig::new(Arc::new(quic))
}

/// Identity of the peer of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Id of the peer's node.
    pub node_id: NodeId,
    /// Role that the peer's certificate grants.
    pub role: Role,
    /// End of validity of the peer's certificate, unix seconds. The connection should end then.
    pub expires: u64,
}

/// Reason why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// The peer did not negotiate `distd/1`.
    #[error("the peer did not ask for distd/1")]
    Alpn,
    /// The peer showed no certificate.
    #[error("the peer showed no certificate; enrol it with a join token")]
    NoCertificate,
    /// The certificate is not one that a distd realm issues.
    #[error("the peer's certificate is not one of a distd node")]
    Certificate(#[from] CertError),
    /// The certificate has expired or is not valid yet.
    #[error(
        "the peer's certificate is not valid now (it ends at {expires}, unix seconds); renew it and look at both clocks"
    )]
    NotValidNow {
        /// End of validity, unix seconds.
        expires: u64,
    },
}

/// Returns the identity of the peer of an established `distd/1` connection, at `now` (unix
/// seconds).
///
/// The handshake has verified the chain up to the realm CA. The time is checked again here, because
/// a resumed session brings the certificate of its first handshake.
pub fn peer_identity(connection: &quinn::Connection, now: u64) -> Result<PeerIdentity, PeerRefused> {
    if negotiated_alpn(connection).as_deref() != Some(ALPN_DISTD) {
        return Err(PeerRefused::Alpn);
    }
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(PeerRefused::NoCertificate)?;
    identity_in(&chain, now)
}

/// Returns the identity of the peer that showed `chain`, at `now` (unix seconds). The handshake has
/// verified the chain up to the realm CA.
pub(crate) fn identity_in(chain: &[CertificateDer<'_>], now: u64) -> Result<PeerIdentity, PeerRefused> {
    identity_of(chain.first().ok_or(PeerRefused::NoCertificate)?, now)
}

fn identity_of(cert: &[u8], now: u64) -> Result<PeerIdentity, PeerRefused> {
    let info = CertInfo::parse(cert)?;
    if info.is_expired(now) || now < info.not_before {
        return Err(PeerRefused::NotValidNow { expires: info.not_after });
    }
    Ok(PeerIdentity { node_id: info.node_id, role: info.role, expires: info.not_after })
}

/// ALPN of an established connection; `None` if none was negotiated.
pub fn negotiated_alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}
