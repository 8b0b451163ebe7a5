//! The certificate authority's key and certificates, as files.
//!
//! The first certificate in `ca.pem` is the realm's identity: tokens and nodes know its hash, and
//! no node looks at its dates. Programs that verify HTTPS with OpenSSL do, so a renewed certificate
//! of the same key stands behind the first one in the file.

use std::path::Path;

use distd_peer::trust::files;
use distd_peer::trust::identity::{certificate_from_pem, to_pem};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::ca::{RealmError, load_or_create_key, make_ca};

/// A CA certificate that ends within this time is due for renewal, seconds.
const RENEWAL_SECONDS: u64 = 365 * 24 * 3600;

/// The CA of a realm.
pub(crate) struct Authority {
    pub(crate) key: KeyPair,
    pub(super) cert: CertificateDer<'static>,
    pub(crate) pem: String,
    /// Its subject, DER: the issuer of whatever it signs.
    pub(crate) subject: Vec<u8>,
}

impl Authority {
    /// Loads the CA in `keys/realm`, or makes it at `now` (unix seconds). A crash in between is
    /// continued.
    ///
    /// # Errors
    /// [`RealmError`]; a damaged CA is never replaced.
    pub(crate) fn load_or_create(keys: &Path, now: u64) -> Result<Self, RealmError> {
        let dir = keys.join("realm");
        let path = dir.join("ca.pem");
        let key_path = dir.join("ca.key");
        // The certificate is here without its key. A new key would be of no use, and would hide
        // that the old one is elsewhere.
        if !key_path.exists() && path.exists() {
            return Err(RealmError::KeyMissing(key_path));
        }
        // A realm is made together with the TUF keys. Where only these are, the realm was lost, and
        // a new one would be of no use to any node.
        let made_before =
            std::fs::read_dir(keys.join("tuf-keys")).is_ok_and(|mut keys| keys.next().is_some());
        if !path.exists() && !key_path.exists() && made_before {
            return Err(RealmError::Lost(path));
        }
        files::create_private_dir(&dir)?;
        let key = load_or_create_key(&key_path)?;
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = make_ca(&key, now)?;
                files::write_atomic(&path, pem.as_bytes(), 0o644)?;
                pem.into_bytes()
            }
        };
        let damaged = || RealmError::Certificate(path.clone());
        let cert = certificate_from_pem(&pem).map_err(|_| damaged())?;
        let pem = String::from_utf8(pem).map_err(|_| damaged())?;
        let (_, parsed) = X509Certificate::from_der(&cert).map_err(|_| damaged())?;
        // With the certificate of another key every handshake would fail later, and no error would
        // name this file.
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(RealmError::Mismatch(path));
        }
        let subject = parsed.subject().as_raw().to_vec();
        Ok(Self { key, cert, pem, subject })
    }

    /// Makes a new certificate of the same key at `now` (unix seconds), behind the first one in
    /// `keys/realm/ca.pem` and in place of an earlier renewed one. Returns its end, unix seconds.
    ///
    /// # Errors
    /// [`RealmError`]; the file is as it was then.
    pub(crate) fn renew(keys: &Path, now: u64) -> Result<u64, RealmError> {
        let path = keys.join("realm/ca.pem");
        if !path.exists() {
            return Err(RealmError::Certificate(path));
        }
        let authority = Self::load_or_create(keys, now)?;
        let renewed = make_ca(&authority.key, now)?;
        // Nodes' certificates name their issuer.
        let made = certificate_from_pem(renewed.as_bytes()).map_err(RealmError::Unusable)?;
        let (_, made) =
            X509Certificate::from_der(&made).map_err(|_| RealmError::Certificate(path.clone()))?;
        if made.subject().as_raw() != authority.subject {
            return Err(RealmError::ForeignCa(path));
        }
        let pem = to_pem("CERTIFICATE", &authority.cert) + &renewed;
        files::write_atomic(&path, pem.as_bytes(), 0o644)?;
        Ok(ca_end(&pem))
    }
}

/// Latest end of the certificates in a PEM file, unix seconds; 0 without one.
pub(crate) fn ca_end(pem: &str) -> u64 {
    let ends = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).filter_map(|der| {
        let (_, cert) = X509Certificate::from_der(&der).ok()?;
        u64::try_from(cert.validity().not_after.timestamp()).ok()
    });
    ends.max().unwrap_or(0)
}

/// Logs at `now` (unix seconds) that the certificates in `ca.pem` end soon.
pub(super) fn warn_of_end(pem: &str, now: u64) {
    if ca_end(pem) < now.saturating_add(RENEWAL_SECONDS) {
        tracing::warn!(
            "the CA's certificate ends within a year, and curl will refuse it then: run distd-server keys \
             renew-ca and give ca.pem to the users of the HTTP API"
        );
    }
}
