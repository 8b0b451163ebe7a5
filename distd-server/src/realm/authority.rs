//! The certificate authority's key and certificate, as files.

use std::path::Path;

use distd_peer::trust::files;
use distd_peer::trust::identity::certificate_from_pem;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::ca::{RealmError, load_or_create_key, make_ca};

/// The CA of a realm.
pub(crate) struct Authority {
    pub(crate) key: KeyPair,
    pub(super) cert: CertificateDer<'static>,
    pub(crate) pem: String,
    /// Its subject, DER: the issuer of whatever it signs.
    pub(crate) subject: Vec<u8>,
}

impl Authority {
    /// Loads the CA in `keys/realm`, or makes it at `now` (unix seconds). A crash in between is continued.
    ///
    /// # Errors
    /// [`RealmError`]; a damaged CA is never replaced.
    pub(crate) fn load_or_create(keys: &Path, now: u64) -> Result<Self, RealmError> {
        let dir = keys.join("realm");
        files::create_private_dir(&dir)?;
        let path = dir.join("ca.pem");
        let key_path = dir.join("ca.key");
        // A certificate without its key: a new key would help nobody, and hide that the old one is elsewhere.
        if !key_path.exists() && path.exists() {
            return Err(RealmError::KeyMissing(key_path));
        }
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
        // A certificate of another key would let every handshake fail far from here.
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(RealmError::Mismatch(path));
        }
        let subject = parsed.subject().as_raw().to_vec();
        Ok(Self { key, cert, pem, subject })
    }
}
