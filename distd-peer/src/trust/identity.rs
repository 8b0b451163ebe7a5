//! Identity of a node: its key, its certificate, and the CA and TUF root it trusts.
//!
//! The files are `DIR/node.key` (Ed25519, PKCS#8 PEM, 0600), `DIR/node.pem` (certificate),
//! `DIR/realm-ca.pem`, `DIR/root.json` (TUF root to start from) and `DIR/root.checked` (hash of
//! `root.json`, once the origin has confirmed it). The key is made once and never leaves the
//! machine.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::enroll::{EnrollReply, EnrollRequest, NONCE_BYTES, Refusal, RenewRequest};
use super::files::{self, FileError};
use super::seal::{SealError, SealedReply};
use super::token::{JoinToken, sha256};
use crate::random;

/// Certificate name of the origin, whichever address it has.
pub const ORIGIN_NAME: &str = "origin.distd.internal";
/// Certificate name of all nodes that may be dialled as a parent: the origin and relays.
pub const PARENT_NAME: &str = "parent.distd.internal";
/// Certificate name of relays.
pub const RELAY_NAME: &str = "relay.distd.internal";
/// Certificate name of devices.
pub const LEAF_NAME: &str = "leaf.distd.internal";

/// File with the SHA-256 of the `root.json` that the origin has confirmed.
const ROOT_CHECKED: &str = "root.checked";

pub use distd_core::NodeId;

/// Returns the node id that belongs to a DER SubjectPublicKeyInfo.
pub fn node_id_of_spki(spki_der: &[u8]) -> NodeId {
    NodeId(sha256(spki_der)[..16].try_into().expect("half of a SHA-256"))
}

use distd_core::role::Role;

/// Returns the DNS names in a certificate of this role.
pub fn certificate_names(role: Role) -> &'static [&'static str] {
    match role {
        Role::Origin => &[ORIGIN_NAME, PARENT_NAME],
        Role::Relay => &[PARENT_NAME, RELAY_NAME],
        Role::Leaf => &[LEAF_NAME],
    }
}

/// Fields that distd reads from a certificate. Parsing verifies nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    /// Id of the node that holds the certificate.
    pub node_id: NodeId,
    /// Role that the certificate grants.
    pub role: Role,
    /// Start of validity, unix seconds.
    pub not_before: u64,
    /// End of validity, unix seconds.
    pub not_after: u64,
    /// Serial number, lower-case hex.
    pub serial: String,
}

/// Reason why bytes are not a certificate of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// The bytes are not DER, or not PEM around it.
    #[error("the certificate is malformed")]
    Malformed,
    /// The certificate contains none of the realm's role names.
    #[error("the certificate names no distd role")]
    NoRole,
}

impl CertInfo {
    /// Parses a DER certificate.
    pub fn parse(der: &[u8]) -> Result<Self, CertError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| CertError::Malformed)?;
        let names = cert.subject_alternative_name().map_err(|_| CertError::Malformed)?;
        let has = |name: &str| {
            names.as_ref().is_some_and(|san| {
                san.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(d) if *d == name))
            })
        };
        let role = if has(ORIGIN_NAME) {
            Role::Origin
        } else if has(RELAY_NAME) {
            Role::Relay
        } else if has(LEAF_NAME) {
            Role::Leaf
        } else {
            return Err(CertError::NoRole);
        };
        let seconds = |t: i64| u64::try_from(t).map_err(|_| CertError::Malformed);
        Ok(Self {
            node_id: node_id_of_spki(cert.public_key().raw),
            role,
            not_before: seconds(cert.validity().not_before.timestamp())?,
            not_after: seconds(cert.validity().not_after.timestamp())?,
            serial: hex::encode(cert.raw_serial()),
        })
    }

    /// Whether two thirds of the validity are over at `now` (unix seconds). Renewal is due then;
    /// the remaining third is for an origin that is away.
    pub fn needs_renewal(&self, now: u64) -> bool {
        let lifetime = self.not_after.saturating_sub(self.not_before);
        now >= self.not_before.saturating_add(lifetime / 3 * 2)
    }

    /// Whether the certificate has expired at `now` (unix seconds).
    pub fn is_expired(&self, now: u64) -> bool {
        now > self.not_after
    }
}

/// Reason why a node has no usable identity, or could not accept the one it was given.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// `node.key` is damaged.
    #[error("{0} is damaged; delete it with node.pem beside it and enrol again")]
    Key(PathBuf, #[source] rcgen::Error),
    /// A stored certificate is damaged.
    #[error("{0} is damaged; delete it and enrol again")]
    Certificate(PathBuf, #[source] CertError),
    /// A certificate request could not be made.
    #[error("could not make a certificate request")]
    Request(#[source] rcgen::Error),
    /// The reply is not sealed by the realm, or does not answer this request.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The origin refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This directory belongs to a node of another realm.
    #[error("{0} is enrolled in another realm; use another --data directory")]
    OtherRealm(PathBuf),
    /// The certificate in the reply is for another key, not signed by the CA, or malformed.
    #[error("the origin's reply holds no certificate for this node; try again")]
    BadReply,
    /// There is no certificate to renew.
    #[error("this node is not enrolled; enrol it with a join token")]
    NotEnrolled,
}

/// A node's key and, once enrolled, its certificate and CA.
pub struct NodeIdentity {
    dir: PathBuf,
    key: KeyPair,
    node_id: NodeId,
    enrolled: Option<Enrolled>,
}

struct Enrolled {
    cert: CertificateDer<'static>,
    info: CertInfo,
    ca: CertificateDer<'static>,
    root_json: Vec<u8>,
    root_checked: bool,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("dir", &self.dir)
            .field("node_id", &self.node_id)
            .field("cert", &self.cert())
            .finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Loads the identity in `dir`, or makes a new key there.
    ///
    /// # Errors
    /// [`IdentityError`], in particular for a key that other users may read.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        files::create_private_dir(dir)?;
        let path = dir.join("node.key");
        let pem = loop {
            if let Some(pem) = files::read_secret(&path)? {
                break pem;
            }
            files::create_secret(&path, generate_ed25519_pem().as_bytes())?;
        };
        let key = key_from_pem(&pem).map_err(|e| IdentityError::Key(path, e))?;
        let node_id = node_id_of_spki(&key.subject_public_key_info());
        let mut this = Self { dir: dir.to_owned(), key, node_id, enrolled: None };
        this.enrolled = this.load_enrolled()?;
        Ok(this)
    }

    fn load_enrolled(&self) -> Result<Option<Enrolled>, IdentityError> {
        let [cert, ca, root] = ["node.pem", "realm-ca.pem", "root.json"].map(|name| self.dir.join(name));
        let (Some(cert_pem), Some(ca_pem), Some(root_json)) =
            (files::read(&cert)?, files::read(&ca)?, files::read(&root)?)
        else {
            return Ok(None);
        };
        let damaged = |path: &Path| {
            let path = path.to_owned();
            move |e| IdentityError::Certificate(path, e)
        };
        let cert_der = certificate_from_pem(&cert_pem).map_err(damaged(&cert))?;
        let info = CertInfo::parse(&cert_der).map_err(damaged(&cert))?;
        if info.node_id != self.node_id {
            // A new key beside an old certificate counts as not enrolled.
            return Ok(None);
        }
        let ca = certificate_from_pem(&ca_pem).map_err(damaged(&ca))?;
        let mark = files::read(&self.dir.join(ROOT_CHECKED))?.unwrap_or_default();
        let root_checked = mark.trim_ascii() == hex::encode(sha256(&root_json)).as_bytes();
        Ok(Some(Enrolled { cert: cert_der, info, ca, root_json, root_checked }))
    }

    /// Id of this node.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Contents of the present certificate; `None` before enrolment.
    pub fn cert(&self) -> Option<&CertInfo> {
        self.enrolled.as_ref().map(|e| &e.info)
    }

    /// The present certificate; `None` before enrolment.
    pub fn cert_der(&self) -> Option<&CertificateDer<'static>> {
        self.enrolled.as_ref().map(|e| &e.cert)
    }

    /// The realm CA's certificate; `None` before enrolment.
    pub fn ca_der(&self) -> Option<&CertificateDer<'static>> {
        self.enrolled.as_ref().map(|e| &e.ca)
    }

    /// The TUF root of the enrolment or of a later correction by the origin; `None` before
    /// enrolment.
    pub fn root_json(&self) -> Option<&[u8]> {
        self.enrolled.as_ref().map(|e| e.root_json.as_slice())
    }

    /// The private key for TLS.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    /// Whether another certificate is due at `now` (unix seconds): there is none, two thirds of its
    /// validity are over, or the origin has not confirmed the TUF root yet.
    pub fn needs_renewal(&self, now: u64) -> bool {
        self.cert().is_none_or(|c| c.needs_renewal(now)) || !self.root_checked()
    }

    /// Makes a PKCS#10 certificate request with this node's key.
    pub fn csr_der(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.node_id.to_string());
        let csr = params.serialize_request(&self.key).map_err(IdentityError::Request)?;
        Ok(csr.der().to_vec())
    }

    /// Makes the request for a first certificate, signed with a join token.
    pub fn enroll_request(
        &self,
        token: &JoinToken,
        role: Role,
        label: &str,
    ) -> Result<EnrollRequest, IdentityError> {
        let csr_der = self.csr_der()?;
        Ok(EnrollRequest {
            token_public_key: token.public_key().to_vec(),
            token_signature: token.sign_csr(role, label, &csr_der),
            csr_der,
            label: label.to_owned(),
            role,
            nonce: random::bytes::<NONCE_BYTES>().to_vec(),
        })
    }

    /// Makes the request for the next certificate.
    pub fn renew_request(&self) -> Result<RenewRequest, IdentityError> {
        let held = self.enrolled.as_ref().ok_or(IdentityError::NotEnrolled)?;
        Ok(RenewRequest {
            csr_der: self.csr_der()?,
            cert_der: held.cert.to_vec(),
            nonce: random::bytes::<NONCE_BYTES>().to_vec(),
            root_sha256: sha256(&held.root_json).to_vec(),
        })
    }

    /// Installs the origin's answer to an enrolment that asked for `role`. `request` and `reply`
    /// are the bytes as sent and received. The reply must be sealed by the CA that the token names,
    /// and the certificate must be for this key. Everything is checked before anything is written.
    ///
    /// # Errors
    /// [`IdentityError`]; [`IdentityError::Refused`] if the origin refused.
    pub fn install_enrolled(
        &mut self,
        token: &JoinToken,
        role: Role,
        request: &[u8],
        reply: &[u8],
    ) -> Result<(), IdentityError> {
        let (ca, reply) = open_sealed(reply, request, token.ca_fingerprint())?;
        let response = match reply {
            EnrollReply::Enrolled(response) => response,
            EnrollReply::Refused(refusal) => return Err(refusal.into()),
            EnrollReply::Renewed(_) => return Err(IdentityError::BadReply),
        };
        let named = certificate_from_pem(response.ca_pem.as_bytes());
        if named.is_ok_and(|named| named != ca) || response.node_id != self.node_id.to_string() {
            return Err(IdentityError::BadReply);
        }
        let ca_path = self.dir.join("realm-ca.pem");
        if let Some(old) = files::read(&ca_path)? {
            let same = certificate_from_pem(&old).is_ok_and(|old| old == ca);
            if !same {
                return Err(IdentityError::OtherRealm(self.dir.clone()));
            }
        }
        let (cert, info) = self.check_cert(&response.cert_chain_pem, &ca, role)?;
        let root_json = response.root_json.clone().into_bytes();
        // The certificate comes last: with it the node counts as enrolled.
        files::write_atomic(&ca_path, response.ca_pem.as_bytes(), 0o644)?;
        let root_is_new = self.root_json() != Some(root_json.as_slice());
        if root_is_new && !self.root_checked() {
            self.set_metadata_aside()?;
        }
        files::write_atomic(&self.dir.join("root.json"), &root_json, 0o644)?;
        self.mark_root_checked(&root_json)?;
        files::write_atomic(&self.dir.join("node.pem"), response.cert_chain_pem.as_bytes(), 0o644)?;
        self.enrolled = Some(Enrolled { cert, info, ca, root_json, root_checked: true });
        Ok(())
    }

    /// Installs the origin's answer to a renewal, sealed by the CA held here. If the origin says
    /// that the TUF root held here was never its own, its root replaces that one, and the metadata
    /// verified under the old root is set aside.
    ///
    /// # Errors
    /// [`IdentityError`]; [`IdentityError::Refused`] if the origin refused.
    pub fn install_renewed(&mut self, request: &[u8], reply: &[u8]) -> Result<(), IdentityError> {
        let held = self.enrolled.as_ref().ok_or(IdentityError::NotEnrolled)?;
        let (ca, reply) = open_sealed(reply, request, &sha256(&held.ca))?;
        let response = match reply {
            EnrollReply::Renewed(response) => response,
            EnrollReply::Refused(refusal) => return Err(refusal.into()),
            EnrollReply::Enrolled(_) => return Err(IdentityError::BadReply),
        };
        let (cert, info) = self.check_cert(&response.cert_chain_pem, &ca, held.info.role)?;
        let mut root_json = held.root_json.clone();
        if let Some(own) = &response.root_json {
            tracing::error!(
                "the TUF root this node started from was never the realm's: the peer that answered its \
                 enrolment forged it. The realm's own root has replaced it. Artifacts installed before may be \
                 forged, too: pull them again"
            );
            root_json = own.clone().into_bytes();
            self.set_metadata_aside()?;
            files::write_atomic(&self.dir.join("root.json"), &root_json, 0o644)?;
        }
        self.mark_root_checked(&root_json)?;
        files::write_atomic(&self.dir.join("node.pem"), response.cert_chain_pem.as_bytes(), 0o644)?;
        self.enrolled = Some(Enrolled { cert, info, ca, root_json, root_checked: true });
        Ok(())
    }

    /// Whether the origin has confirmed, in a sealed reply, the TUF root that this node started
    /// from.
    pub fn root_checked(&self) -> bool {
        self.enrolled.as_ref().is_some_and(|e| e.root_checked)
    }

    fn mark_root_checked(&self, root_json: &[u8]) -> Result<(), IdentityError> {
        let text = format!("{}\n", hex::encode(sha256(root_json)));
        Ok(files::write_atomic(&self.dir.join(ROOT_CHECKED), text.as_bytes(), 0o644)?)
    }

    /// Moves the TUF state out of the way, so that nothing verified under a foreign root is used
    /// any more. The files are kept for an investigation.
    fn set_metadata_aside(&self) -> Result<(), IdentityError> {
        let from = self.dir.join("tuf");
        for n in 0.. {
            let to = self.dir.join(format!("tuf.refused-{n}"));
            if to.exists() {
                continue;
            }
            return match std::fs::rename(&from, &to) {
                Ok(()) => Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(cause) => Err(FileError::Io { action: "set aside", path: from, cause }.into()),
            };
        }
        Ok(())
    }

    fn check_cert(
        &self,
        pem: &str,
        ca: &[u8],
        role: Role,
    ) -> Result<(CertificateDer<'static>, CertInfo), IdentityError> {
        let der = certificate_from_pem(pem.as_bytes()).map_err(|_| IdentityError::BadReply)?;
        let info = CertInfo::parse(&der).map_err(|_| IdentityError::BadReply)?;
        if info.node_id != self.node_id || info.role != role || !is_signed_by(&der, ca) {
            return Err(IdentityError::BadReply);
        }
        Ok((der, info))
    }
}

/// Opens a sealed reply. Returns the CA certificate that sealed it, and the reply inside.
fn open_sealed(
    reply: &[u8],
    request: &[u8],
    ca_fingerprint: &[u8; 32],
) -> Result<(CertificateDer<'static>, EnrollReply), IdentityError> {
    let sealed = SealedReply::decode(reply)?;
    let ca = sealed.verify(request, ca_fingerprint)?;
    let reply = EnrollReply::decode(&sealed.reply).map_err(|_| IdentityError::BadReply)?;
    Ok((ca, reply))
}

/// Whether the certificate is signed by the CA's key. Does not check validity or names.
pub fn is_signed_by(cert_der: &[u8], ca_der: &[u8]) -> bool {
    let (Ok((_, cert)), Ok((_, ca))) =
        (X509Certificate::from_der(cert_der), X509Certificate::from_der(ca_der))
    else {
        return false;
    };
    cert.issuer() == ca.subject() && cert.verify_signature(Some(ca.public_key())).is_ok()
}

/// Returns the first certificate of a PEM file.
pub fn certificate_from_pem(pem: &[u8]) -> Result<CertificateDer<'static>, CertError> {
    CertificateDer::from_pem_slice(pem).map_err(|_| CertError::Malformed)
}

/// Returns the key of a node, to sign what proves that the node made it.
///
/// # Errors
/// When the key is none that can sign, which an enrolled node's is not.
pub fn key_of(identity: &NodeIdentity) -> Result<KeyPair, rcgen::Error> {
    KeyPair::try_from(identity.private_key().secret_der())
}

/// Parses a key pair from PKCS#8 PEM.
pub fn key_from_pem(pem: &[u8]) -> Result<KeyPair, rcgen::Error> {
    let text = std::str::from_utf8(pem).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
    KeyPair::from_pem(text)
}

/// Generates an Ed25519 private key as PKCS#8 PEM, version 1. OpenSSL 3.0 does not read version 2,
/// which also contains the public key.
pub fn generate_ed25519_pem() -> String {
    let rng = aws_lc_rs::rand::SystemRandom::new();
    let der = Ed25519KeyPair::generate_pkcs8v1(&rng).expect("the system has a random source");
    to_pem("PRIVATE KEY", der.as_ref())
}

/// Encodes one DER object as PEM, in lines of 64 characters.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_only_the_owner_can_read_its_key() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = dir.path().join("data");
        let first = NodeIdentity::load_or_create(&data).expect("create");
        let again = NodeIdentity::load_or_create(&data).expect("load");
        assert_eq!(first.node_id(), again.node_id());
        assert!(first.needs_renewal(0), "no certificate yet");
        assert_eq!(first.node_id().to_string().parse(), Ok(first.node_id()));

        let key = data.join("node.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = NodeIdentity::load_or_create(&data).expect_err("refused");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_an_error_and_not_a_new_identity() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        files::create_secret(&dir.path().join("node.key"), b"-----BEGIN").expect("write");
        assert!(matches!(NodeIdentity::load_or_create(dir.path()), Err(IdentityError::Key(..))));
    }

    #[test]
    fn renewal_is_due_after_two_thirds_of_the_validity() {
        let info = CertInfo {
            node_id: NodeId([0; 16]),
            role: Role::Leaf,
            not_before: 1000,
            not_after: 1000 + 3000,
            serial: String::new(),
        };
        assert!(!info.needs_renewal(2999));
        assert!(info.needs_renewal(3000));
        assert!(!info.is_expired(4000));
        assert!(info.is_expired(4001));
    }
}
