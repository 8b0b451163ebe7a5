//! The small realm of one share: its key is the CA, the sharer is the origin, and each fetcher gets
//! a certificate of it for a key that it made for this fetch (docs/tickets.md, "Admission").

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use distd_core::ManifestId;
use distd_core::fleet::{Capability, Entitlement, Rights, SignedCapability, capability_message};
use distd_core::role::Role;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::identity::{NodeId, certificate_names, node_id_of_spki};
use super::ticket::ShareSigner;
use super::tls::{Credentials, TlsError};
use crate::net::ResetKey;
use crate::random;

/// Time by which certificates begin before they are made, seconds: clocks differ.
const BACKDATE_SECONDS: u64 = 3600;

/// Validity of a capability, seconds. A fetcher serves others for so long after the share was
/// withdrawn; it asks for the next one when a third is left.
pub const CAPABILITY_SECONDS: u64 = 600;

/// Reason why the realm of a share cannot be made, or gives no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ShareRealmError {
    /// A key or certificate could not be made.
    #[error("could not make a certificate of the share")]
    Issue(#[from] rcgen::Error),
    /// The certificates are unusable for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate request is malformed, or not signed by its own key.
    #[error("the certificate request is not signed by its own key")]
    Request,
}

/// The CA of one share, and the certificate of its sharer.
pub struct ShareRealm {
    signer: ShareSigner,
    ca: CertificateDer<'static>,
    own_key: KeyPair,
    own: CertificateDer<'static>,
    not_after: u64,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let mut serial = random::bytes::<16>();
    // A positive DER integer of one length: neither a sign bit nor a leading zero.
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    // Year 9999 is the last that a certificate can state.
    let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    params.not_before = at(from).into();
    params.not_after = at(until).into();
}

impl ShareRealm {
    /// Makes the realm at `now`, for a share that ends at `not_after` (unix seconds).
    ///
    /// # Errors
    /// [`ShareRealmError::Issue`].
    pub fn new(signer: ShareSigner, now: u64, not_after: u64) -> Result<Self, ShareRealmError> {
        // The name depends on the key alone: certificates that a fetcher has stay good when the
        // sharer is started again.
        let mut params = named(&format!("distd share {}", hex::encode(&signer.public().0[1..9])));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        valid(&mut params, now.saturating_sub(BACKDATE_SECONDS), not_after.saturating_add(BACKDATE_SECONDS));
        let ca = params.self_signed(&signer.key)?.der().clone();
        let own_key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let own = issue(&signer, &ca, &own_key, Role::Origin, now, not_after)?;
        Ok(Self { signer, ca, own_key, own, not_after })
    }

    /// Key of the share.
    pub fn signer(&self) -> &ShareSigner {
        &self.signer
    }

    /// Certificate of the CA.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    fn own_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.own_key.serialize_der()))
    }

    /// Credentials of the sharer.
    ///
    /// # Errors
    /// [`ShareRealmError::Tls`].
    pub fn credentials(&self) -> Result<Arc<Credentials>, ShareRealmError> {
        Ok(Credentials::new(&self.own_key(), &self.own, &self.ca)?)
    }

    /// Key of the sharer's stateless resets.
    pub fn reset_key(&self) -> ResetKey {
        ResetKey::of_node(&self.own_key())
    }

    /// Makes the certificate of a fetcher for the key in its request, at `now` (unix seconds).
    ///
    /// # Errors
    /// [`ShareRealmError`].
    pub fn admit(&self, csr_der: &[u8], now: u64) -> Result<CertificateDer<'static>, ShareRealmError> {
        let request = |_| ShareRealmError::Request;
        let (rest, csr) = X509CertificationRequest::from_der(csr_der).map_err(request)?;
        let spki = csr.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| ShareRealmError::Request)?;
        let is_signed = || csr.verify_signature().is_ok();
        if !rest.is_empty() || *key.algorithm() != rcgen::PKCS_ED25519 || !is_signed() {
            return Err(ShareRealmError::Request);
        }
        issue(&self.signer, &self.ca, &key, Role::Leaf, now, self.not_after)
    }

    /// Signs the capability of a fetcher for the shared manifest, at `now` (unix seconds).
    ///
    /// # Errors
    /// [`ShareRealmError::Issue`].
    pub fn capability(
        &self,
        node: NodeId,
        manifest: ManifestId,
        now: u64,
    ) -> Result<SignedCapability, ShareRealmError> {
        let expires = now.saturating_add(CAPABILITY_SECONDS).min(self.not_after);
        let manifests = vec![Entitlement { manifest, rights: Rights::ALL }];
        let capability = Capability { node: Some(node), issued: now, expires, manifests };
        let body = capability.encode();
        let signature = self.signer.sign_message(&capability_message(&body))?.into();
        Ok(SignedCapability { capability, body, signature })
    }
}

fn issue(
    signer: &ShareSigner,
    ca: &CertificateDer<'_>,
    key: &impl PublicKeyData,
    role: Role,
    now: u64,
    not_after: u64,
) -> Result<CertificateDer<'static>, ShareRealmError> {
    let mut params = named(&node_id_of_spki(&key.subject_public_key_info()).to_string());
    valid(&mut params, now.saturating_sub(BACKDATE_SECONDS), not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    for name in certificate_names(role) {
        params.subject_alt_names.push(rcgen::SanType::DnsName((*name).try_into()?));
    }
    let issuer = Issuer::from_ca_cert_der(ca, &signer.key)?;
    Ok(params.signed_by(key, &issuer)?.der().clone())
}
