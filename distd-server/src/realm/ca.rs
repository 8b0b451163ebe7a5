//! The certificate authority.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use distd_core::error::Chain;
use distd_core::fleet::receipts::{LogHead, SignedHead};
use distd_core::fleet::{
    Capability, HaltNotice, NodeStatement, SignedCapability, SignedHalt, SignedStatement, capability_message,
    halt_message, statement_message,
};
use distd_core::role::Role;
use distd_peer::net::ResetKey;
use distd_peer::random;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::identity::{
    CertError, CertInfo, certificate_from_pem, certificate_names, key_from_pem, to_pem,
};
use distd_peer::trust::revoked::{RevokedList, SignedRevokedList, revoked_message};
use distd_peer::trust::seal::{SealedReply, seal_message};
use distd_peer::trust::tls::{Credentials, TlsError};
use distd_peer::trust::token::sha256;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SigningKey,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::authority::{Authority, ca_end, warn_of_end};
use crate::signer::{KeyHolder, SignerError, SignerLink};

const DAY: u64 = 24 * 3600;
/// Validity of the CA, seconds.
const CA_SECONDS: u64 = 10 * 365 * DAY;
/// Validity of the origin's certificate, seconds.
const ORIGIN_SECONDS: u64 = 30 * DAY;
/// Validity of a node's certificate unless configured, seconds.
const NODE_SECONDS: u64 = DAY;
/// Time by which a certificate is backdated, seconds: a node's clock may be behind by as much.
const BACKDATE_SECONDS: u64 = 3600;

/// Error of loading the realm or of issuing a certificate.
#[derive(Debug, thiserror::Error)]
pub enum RealmError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key that cannot be read. A new CA would lock out every node, so none is made.
    #[error("{0} is damaged; restore it from a backup")]
    Key(PathBuf, #[source] rcgen::Error),
    /// A certificate without its key.
    #[error("{} is missing: restore it from a backup, or name the signer's directory (--keys) or socket (--signer)", .0.display())]
    KeyMissing(PathBuf),
    /// There are TUF keys and no realm, with which they were made.
    #[error(
        "{} is missing, and the TUF keys of its realm are there: restore it from a backup. Without one, begin a new \
         realm in a new data directory, push the releases there, and enrol each node again (operations.md, \"When \
         something is lost\")", .0.display()
    )]
    Lost(PathBuf),
    /// A key without its certificate, or a damaged one.
    #[error("{0} is missing or damaged; restore it from a backup")]
    Certificate(PathBuf),
    /// The CA has a name that no origin gives.
    #[error(
        "{0} was not made by distd-server: renew it with the tool that made it, with the same key and name"
    )]
    ForeignCa(PathBuf),
    /// The certificate of a CA with another key.
    #[error("{0} does not belong to the ca.key beside it; restore both from one backup")]
    Mismatch(PathBuf),
    /// A name that cannot stand in a certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    HostName(String, #[source] rcgen::Error),
    /// Signing failed.
    #[error("could not issue a certificate")]
    Issue(#[source] rcgen::Error),
    /// An issued certificate cannot be read back.
    #[error("the certificate just issued is unusable")]
    Unusable(#[source] CertError),
    /// Not usable for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The signer has no signature for this.
    #[error(transparent)]
    Signer(#[from] SignerError),
}

/// The CA's private key.
enum CaKey {
    Here(KeyPair),
    /// In a signer; the public key beside it, as the certificate has it.
    Signer(Arc<SignerLink>, Vec<u8>),
}

impl CaKey {
    fn of_signer(link: Arc<SignerLink>, ca: &CertificateDer<'_>) -> Result<Self, RealmError> {
        let unusable = || RealmError::Unusable(CertError::Malformed);
        let (_, parsed) = X509Certificate::from_der(ca).map_err(|_| unusable())?;
        let spki = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(|_| unusable())?;
        if *spki.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(unusable());
        }
        Ok(Self::Signer(link, spki.der_bytes().to_vec()))
    }

    /// Signs a seal or a list of revoked nodes.
    fn sign_statement(&self, message: &[u8]) -> Result<Vec<u8>, RealmError> {
        match self {
            Self::Here(key) => key.sign(message).map_err(RealmError::Issue),
            Self::Signer(link, _) => Ok(link.sign_statement(message)?),
        }
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::Here(key) => key.der_bytes(),
            Self::Signer(_, public) => public,
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Signs certificates alone.
impl SigningKey for CaKey {
    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Here(key) => key.sign(tbs),
            Self::Signer(link, _) => link.sign_certificate(tbs).map_err(|error| {
                tracing::error!(error = %Chain(&error), "no certificate was signed");
                rcgen::Error::RemoteKeyError
            }),
        }
    }
}

/// One realm's CA, and the key of its origin.
pub struct Realm {
    ca_key: CaKey,
    ca: CertificateDer<'static>,
    ca_pem: String,
    origin_key: KeyPair,
    node_seconds: u64,
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Realm(ca {})", hex::encode(&self.ca_fingerprint()[..6]))
    }
}

/// The origin's own certificate.
#[derive(Debug)]
pub struct OriginCert {
    /// Its content, which says whether to renew it.
    pub info: CertInfo,
    /// The certificate.
    pub der: CertificateDer<'static>,
}

impl Realm {
    /// Loads the realm in `DIR/realm`, or makes it at `now` (unix seconds). A crash in between is
    /// continued.
    pub fn load_or_create(data: &Path, now: u64) -> Result<Self, RealmError> {
        Self::open(data, &KeyHolder::in_dir(data), now)
    }

    /// Loads the realm whose CA `keys` holds, or makes it at `now` (unix seconds). The origin's own
    /// key is in `DIR/realm`.
    pub fn open(data: &Path, keys: &KeyHolder, now: u64) -> Result<Self, RealmError> {
        let (ca_key, ca, ca_pem) = match keys {
            KeyHolder::ThisProcess(dir) => {
                let Authority { key, cert, pem, .. } = Authority::load_or_create(dir, now)?;
                (CaKey::Here(key), cert, pem)
            }
            KeyHolder::Signer(link) => {
                let (pem, _) = link.hello()?;
                let ca = certificate_from_pem(pem.as_bytes()).map_err(RealmError::Unusable)?;
                (CaKey::of_signer(link.clone(), &ca)?, ca, pem)
            }
        };
        let dir = data.join("realm");
        files::create_private_dir(&dir)?;
        let origin_key = load_or_create_key(&dir.join("origin.key"))?;
        // Users of curl on this machine find the certificate here, wherever the key is.
        let path = dir.join("ca.pem");
        match files::read(&path)? {
            Some(known) if known == ca_pem.as_bytes() => {}
            // The holder of the keys has renewed the certificate.
            Some(known) if certificate_from_pem(&known).is_ok_and(|known| known == ca) => {
                files::write_atomic(&path, ca_pem.as_bytes(), 0o644)?;
            }
            Some(_) => return Err(RealmError::Mismatch(path)),
            None => files::write_atomic(&path, ca_pem.as_bytes(), 0o644)?,
        }
        warn_of_end(&ca_pem, now);
        Ok(Self { ca_key, ca, ca_pem, origin_key, node_seconds: NODE_SECONDS })
    }

    /// Latest end of the CA's certificates, unix seconds; `None` where no certificate can be read.
    pub fn ca_end(&self) -> Option<u64> {
        Some(ca_end(&self.ca_pem)).filter(|end| *end > 0)
    }

    /// Sets the validity of node certificates, seconds; at least a minute.
    #[must_use]
    pub fn with_node_validity(mut self, seconds: u64) -> Self {
        self.node_seconds = seconds.max(60);
        self
    }

    /// SHA-256 of the CA certificate's DER, which tokens carry.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        sha256(&self.ca)
    }

    /// The CA certificate.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The CA certificate as PEM, for `curl --cacert`.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Issues the origin's certificate at `now` (unix seconds), for its role names and these host
    /// names and addresses besides (`localhost` and the loopback addresses are always in it).
    pub fn origin_cert(&self, hosts: &[String], now: u64) -> Result<OriginCert, RealmError> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(hosts.iter().filter(|h| !h.is_empty()).cloned());
        names.sort();
        names.dedup();
        let der = self.sign(&self.origin_key, Role::Origin, &names, now, ORIGIN_SECONDS)?;
        Ok(OriginCert { info: CertInfo::parse(&der).map_err(RealmError::Unusable)?, der })
    }

    /// TLS credentials for the origin's certificate.
    pub fn credentials(&self, cert: &OriginCert) -> Result<Arc<Credentials>, RealmError> {
        Ok(Credentials::new(&self.origin_key_der(), &cert.der, &self.ca)?)
    }

    /// Puts a renewed certificate into credentials in use.
    pub fn replace_credentials(
        &self,
        credentials: &Credentials,
        cert: &OriginCert,
    ) -> Result<(), RealmError> {
        Ok(credentials.replace(&self.origin_key_der(), &cert.der, &self.ca)?)
    }

    /// Key that keeps the origin's stateless resets the same over restarts.
    pub fn reset_key(&self) -> ResetKey {
        ResetKey::of_node(&self.origin_key_der())
    }

    fn origin_key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.origin_key.serialize_der()))
    }

    /// Issues a node certificate for `key` at `now` (unix seconds).
    pub(crate) fn node_cert(
        &self,
        key: &impl PublicKeyData,
        role: Role,
        now: u64,
    ) -> Result<(String, CertInfo), RealmError> {
        let der = self.sign(key, role, &[], now, self.node_seconds)?;
        let info = CertInfo::parse(&der).map_err(RealmError::Unusable)?;
        Ok((to_pem("CERTIFICATE", &der), info))
    }

    /// Seals the reply to an enrolment or renewal, so that no relay can change it.
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub(crate) fn seal(&self, request: &[u8], reply: Vec<u8>) -> Result<SealedReply, RealmError> {
        let signature = self.ca_key.sign_statement(&seal_message(request, &reply))?;
        Ok(SealedReply { ca_der: self.ca.to_vec(), reply, signature })
    }

    /// Signs a capability.
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub fn sign_capability(&self, capability: Capability) -> Result<SignedCapability, RealmError> {
        let body = capability.encode();
        let signature = self.ca_key.sign_statement(&capability_message(&body))?.into();
        Ok(SignedCapability { capability, body, signature })
    }

    /// Signs a statement about a node.
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub fn sign_node_statement(&self, statement: NodeStatement) -> Result<SignedStatement, RealmError> {
        let body = statement.encode();
        let signature = self.ca_key.sign_statement(&statement_message(&body))?.into();
        Ok(SignedStatement { statement, body, signature })
    }

    /// Signs the answer that gives a node its turn in a rollout; `message` is that of
    /// [`distd_core::fleet::rollout::turn_message`].
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub fn sign_turn(&self, message: &[u8]) -> Result<Vec<u8>, RealmError> {
        self.ca_key.sign_statement(message)
    }

    /// Signs a halt notice.
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub fn sign_halt(&self, notice: HaltNotice) -> Result<SignedHalt, RealmError> {
        let signature = self.ca_key.sign_statement(&halt_message(&notice))?.into();
        Ok(SignedHalt { notice, signature })
    }

    /// Signs a head of the log of receipts.
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub fn sign_log_head(&self, head: LogHead) -> Result<SignedHead, RealmError> {
        let signature = self.ca_key.sign_statement(&head.message())?.into();
        Ok(SignedHead { head, signature })
    }

    /// Signs the list of revoked nodes.
    ///
    /// # Errors
    /// [`RealmError::Issue`] when signing failed.
    pub fn sign_revoked(&self, list: &RevokedList) -> Result<SignedRevokedList, RealmError> {
        let list = serde_json::to_vec(list).expect("numbers and ids always encode");
        let signature = self.ca_key.sign_statement(&revoked_message(&list))?;
        Ok(SignedRevokedList { list, signature })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        role: Role,
        hosts: &[String],
        now: u64,
        seconds: u64,
    ) -> Result<CertificateDer<'static>, RealmError> {
        let mut params = CertificateParams::default();
        let id = distd_peer::trust::identity::node_id_of_spki(&key.subject_public_key_info());
        params.distinguished_name = common_name(&id.to_string());
        params.serial_number = Some(random_serial());
        params.not_before = at(now.saturating_sub(BACKDATE_SECONDS));
        params.not_after = at(now.saturating_add(seconds));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        for name in certificate_names(role).iter().map(|s| (*s).to_owned()).chain(hosts.iter().cloned()) {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => {
                    let dns = name.as_str().try_into().map_err(|e| RealmError::HostName(name.clone(), e))?;
                    SanType::DnsName(dns)
                }
            });
        }
        let issuer = Issuer::from_ca_cert_der(&self.ca, &self.ca_key).map_err(RealmError::Issue)?;
        let cert = params.signed_by(key, &issuer).map_err(RealmError::Issue)?;
        Ok(cert.der().clone())
    }
}

pub(super) fn make_ca(key: &KeyPair, now: u64) -> Result<String, RealmError> {
    let mut params = CertificateParams::default();
    // A random part keeps two realms' CAs apart in a listing.
    let tag = hex::encode(&sha256(&key.subject_public_key_info())[..4]);
    params.distinguished_name = common_name(&format!("distd realm {tag}"));
    params.serial_number = Some(random_serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = at(now.saturating_sub(BACKDATE_SECONDS));
    params.not_after = at(now.saturating_add(CA_SECONDS));
    let cert = params.self_signed(key).map_err(RealmError::Issue)?;
    Ok(to_pem("CERTIFICATE", cert.der()))
}

pub(super) fn load_or_create_key(path: &Path) -> Result<KeyPair, RealmError> {
    let pem = loop {
        if let Some(pem) = files::read_secret(path)? {
            break pem;
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| RealmError::Key(path.to_owned(), e))?;
        files::create_secret(path, key.serialize_pem().as_bytes())?;
    };
    key_from_pem(&pem).map_err(|e| RealmError::Key(path.to_owned(), e))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn random_serial() -> SerialNumber {
    let mut bytes = random::bytes::<16>();
    // A positive DER integer of one length: neither a sign bit nor a leading zero.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn at<T: From<std::time::SystemTime>>(unix_seconds: u64) -> T {
    // Year 9999 is the last that a certificate can state.
    (UNIX_EPOCH + Duration::from_secs(unix_seconds.min(253_402_300_799))).into()
}
