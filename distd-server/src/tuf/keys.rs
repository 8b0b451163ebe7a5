//! Signing keys: `tuf-keys/ROLE-KEYID.pem`, Ed25519, 0600.
//!
//! A role may have several files: during a rotation the old key and the new one. Which of them count is said by
//! the metadata, not by the files, so a rotation cut off anywhere is safe. A missing root key is fine until
//! the root has to be signed: it can be kept offline.

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::identity::generate_ed25519_pem;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::Sign;

/// Why signing keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory could not be listed.
    #[error("could not list {0}")]
    List(PathBuf, #[source] std::io::Error),
    /// Not an Ed25519 key.
    #[error("{0} is no Ed25519 key in PKCS#8 PEM; restore it from a backup")]
    Malformed(PathBuf),
    /// The metadata names a key that is not here.
    #[error(
        "no private key for the TUF role {role} in {dir}; copy tuf-keys from the origin that made this repository"
    )]
    Missing {
        /// The role.
        role: String,
        /// The directory.
        dir: PathBuf,
    },
}

/// One private key.
pub(super) struct SigningKey {
    pub(super) role: String,
    pub(super) id: Decoded<Hex>,
    pub(super) public: Key,
    path: PathBuf,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// All private keys of a directory.
pub(super) struct KeyRing {
    dir: PathBuf,
    keys: Vec<SigningKey>,
}

impl KeyRing {
    pub(super) fn load(dir: &Path) -> Result<Self, KeyError> {
        files::create_private_dir(dir)?;
        let list = |e| KeyError::List(dir.to_owned(), e);
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(list)? {
            let path = entry.map_err(list)?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let Some((role, _)) = name.strip_suffix(".pem").and_then(|n| n.rsplit_once('-')) else {
                continue;
            };
            // A dot in front: a temporary file of a write that was cut off.
            if !role.starts_with('.')
                && let Some(pem) = files::read_secret(&path)?
            {
                keys.push(parse(role, &pem, path)?);
            }
        }
        // Directory order is not defined; signatures should not depend on it.
        keys.sort_by(|a, b| (&a.role, &a.id).cmp(&(&b.role, &b.id)));
        Ok(Self { dir: dir.to_owned(), keys })
    }

    /// A new key for `role`, durable before it is used.
    pub(super) fn generate(&mut self, role: &str) -> Result<Decoded<Hex>, KeyError> {
        let pem = generate_ed25519_pem();
        let mut key = parse(role, pem.as_bytes(), PathBuf::new())?;
        key.path = self.dir.join(format!("{role}-{}.pem", hex::encode(&key.id[..8])));
        files::create_secret(&key.path, pem.as_bytes())?;
        let id = key.id.clone();
        self.keys.push(key);
        Ok(id)
    }

    /// The keys of one role.
    pub(super) fn of_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a SigningKey> {
        self.keys.iter().filter(move |k| k.role == role)
    }

    /// The keys of one role that the metadata lists.
    pub(super) fn keys_of(&self, role: &str, ids: &[Decoded<Hex>]) -> Vec<&SigningKey> {
        self.keys.iter().filter(|k| k.role == role && ids.contains(&k.id)).collect()
    }

    /// Removes the keys of a role that the metadata no longer lists.
    pub(super) fn retire(&mut self, role: &str, listed: &[Decoded<Hex>]) -> Result<(), KeyError> {
        for key in self.keys.iter().filter(|k| k.role == role && !listed.contains(&k.id)) {
            files::remove(&key.path)?;
        }
        self.keys.retain(|k| k.role != role || listed.contains(&k.id));
        Ok(())
    }

    pub(super) fn missing(&self, role: &str) -> KeyError {
        KeyError::Missing { role: role.to_owned(), dir: self.dir.clone() }
    }
}

fn parse(role: &str, pem: &[u8], path: PathBuf) -> Result<SigningKey, KeyError> {
    let malformed = || KeyError::Malformed(path.clone());
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| malformed())?;
    let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
        .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()))
        .map_err(|_| malformed())?;
    let public = pair.tuf_key();
    let id = public.key_id().map_err(|_| malformed())?;
    Ok(SigningKey { role: role.to_owned(), id, public, path, pair })
}
