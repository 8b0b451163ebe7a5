//! Signing keys: Ed25519, in files `tuf-keys/ROLE-KEYID.pem` (0600) or in a signer.
//!
//! A role may have several files: during a rotation, the old key and the new one. The metadata
//! tells which of them are in force, so a rotation may stop anywhere without harm. A missing root
//! key matters only when the root has to be signed, so root keys can be kept offline.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::identity::generate_ed25519_pem;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::Sign;

use crate::signer::{KeyHolder, PublicKey, SignerError, SignerLink, TUF_KEYS};

/// Reason why signing keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory could not be listed.
    #[error("could not list {0}")]
    List(PathBuf, #[source] std::io::Error),
    /// The file is not an Ed25519 key.
    #[error("{0} is not an Ed25519 key in PKCS#8 PEM: restore it from a backup")]
    Malformed(PathBuf),
    /// The holder lacks a private key that the metadata names.
    #[error(
        "no private key for the TUF role {role} in {place}: copy tuf-keys from the origin that made this repository"
    )]
    Missing {
        /// Role of the key.
        role: String,
        /// Place where the key was expected.
        place: String,
    },
    /// The file does not exist.
    #[error("there is no file {}", .0.display())]
    NoFile(PathBuf),
    /// The file exists, but has to be new.
    #[error("{} exists: name a new file", .0.display())]
    Exists(PathBuf),
    /// A key that metadata no longer lists cannot be moved.
    #[error("could not put {} aside", .0.display())]
    PutAside(PathBuf, #[source] std::io::Error),
    /// The file is not a public key.
    #[error("{} is not a public root key: give the .pub file that distd-server root new-key wrote", .0.display())]
    NotPublic(PathBuf),
    /// The signer failed or refused.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The root that is remembered beside the keys cannot be read.
    #[error("{} is not a TUF root: restore it from a backup of the keys", .0.display())]
    KnownRoot(PathBuf, #[source] serde_json::Error),
    /// The root is not one of this realm's.
    #[error("the holder of the keys refuses this root: {0}")]
    OtherRoot(String),
    /// A public key that the signer sent cannot be read.
    #[error("the signer sent a public key that cannot be read: run the origin and the signer of one release")]
    Public,
}

/// Directory of keys that a signer has put aside, within the directory of the keys.
const RETIRED: &str = "retired";

/// Private key of a TUF role.
pub(crate) struct SigningKey {
    pub(super) role: String,
    pub(super) id: Decoded<Hex>,
    pub(super) public: Key,
    private: Private,
}

enum Private {
    /// Key pair in this file.
    Here(PathBuf, Ed25519KeyPair),
    /// Key that the signer holds.
    Signer(Arc<SignerLink>),
}

impl SigningKey {
    /// Signs metadata in canonical form.
    ///
    /// # Errors
    /// [`KeyError::Signer`]
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.private {
            Private::Here(_, pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Private::Signer(link) => Ok(link.sign_metadata(&self.role, &self.id, message)?),
        }
    }

    fn to_public(&self) -> Result<PublicKey, KeyError> {
        let json = serde_json::to_string(&self.public).map_err(|_| KeyError::Public)?;
        Ok(PublicKey { role: self.role.clone(), json })
    }

    fn of_signer(link: &Arc<SignerLink>, public: PublicKey) -> Result<Self, KeyError> {
        let key: Key = serde_json::from_str(&public.json).map_err(|_| KeyError::Public)?;
        let id = key.key_id().map_err(|_| KeyError::Public)?;
        Ok(Self { role: public.role, id, public: key, private: Private::Signer(link.clone()) })
    }
}

/// Root key in a file of its own, on any machine.
pub struct OfflineKey(SigningKey);

impl std::fmt::Debug for OfflineKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OfflineKey({})", hex::encode(&self.0.id[..8]))
    }
}

impl OfflineKey {
    /// Makes a key in the new file `path` (0600), and its public half in the same path with `.pub`
    /// appended.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if the file exists; [`KeyError::File`].
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let pem = generate_ed25519_pem();
        let key = Self(parse("root", pem.as_bytes(), path.to_owned())?);
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        let key = match files::create_secret(path, pem.as_bytes())? {
            true => key,
            // An earlier call stopped between the two files: make the public half of the key that
            // exists.
            false if !Path::new(&public).exists() => Self::read(path)?,
            false => return Err(KeyError::Exists(path.to_owned())),
        };
        files::write_atomic(Path::new(&public), key.0.to_public()?.json.as_bytes(), 0o644)?;
        Ok(key)
    }

    /// Reads a private key, PKCS#8 PEM.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let pem = files::read_secret(path)?.ok_or_else(|| KeyError::NoFile(path.to_owned()))?;
        Ok(Self(parse("root", &pem, path.to_owned())?))
    }

    /// Id of the key, as metadata lists it.
    pub fn id(&self) -> &Decoded<Hex> {
        &self.0.id
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message)
    }
}

/// Reads a public key that [`OfflineKey::create`] wrote.
///
/// # Errors
/// [`KeyError`]
pub fn read_public_key(path: &Path) -> Result<Key, KeyError> {
    let json = files::read(path)?.ok_or_else(|| KeyError::NoFile(path.to_owned()))?;
    let key: Key = serde_json::from_slice(&json).map_err(|_| KeyError::NotPublic(path.to_owned()))?;
    match key {
        Key::Ed25519 { .. } => Ok(key),
        _ => Err(KeyError::NotPublic(path.to_owned())),
    }
}

/// All keys of a holder.
pub(crate) struct KeyRing {
    holder: KeyHolder,
    keys: Vec<SigningKey>,
}

impl KeyRing {
    /// Loads the keys that `holder` has now.
    ///
    /// # Errors
    /// [`KeyError`]
    pub(crate) fn load(holder: &KeyHolder) -> Result<Self, KeyError> {
        let mut keys = match holder {
            KeyHolder::ThisProcess(dir) => load_files(&dir.join(TUF_KEYS))?,
            KeyHolder::Signer(link) => {
                let (_, keys) = link.hello()?;
                let keys = keys.into_iter().map(|public| SigningKey::of_signer(link, public));
                keys.collect::<Result<Vec<_>, _>>()?
            }
        };
        // Directory order is not defined, and signatures should not depend on it.
        keys.sort_by(|a, b| (&a.role, &a.id).cmp(&(&b.role, &b.id)));
        Ok(Self { holder: holder.clone(), keys })
    }

    /// Makes a new key for `role`, which is durable before it is used. Returns its id.
    ///
    /// # Errors
    /// [`KeyError`]
    pub(crate) fn generate(&mut self, role: &str) -> Result<Decoded<Hex>, KeyError> {
        let key = match &self.holder {
            KeyHolder::ThisProcess(dir) => generate_in(&dir.join(TUF_KEYS), role)?,
            KeyHolder::Signer(link) => SigningKey::of_signer(link, link.generate(role)?)?,
        };
        let id = key.id.clone();
        self.keys.push(key);
        Ok(id)
    }

    /// All public keys.
    ///
    /// # Errors
    /// [`KeyError::Public`]
    pub(crate) fn public_keys(&self) -> Result<Vec<PublicKey>, KeyError> {
        self.keys.iter().map(SigningKey::to_public).collect()
    }

    /// Whether `role` has a key with this id, equal to `public` if that is given.
    pub(crate) fn has(&self, role: &str, id: &Decoded<Hex>, public: Option<&Key>) -> bool {
        let is_it = |key: &SigningKey| {
            key.role == role && key.id == *id && public.is_none_or(|public| *public == key.public)
        };
        self.keys.iter().any(is_it)
    }

    /// Public half of one key.
    ///
    /// # Errors
    /// [`KeyError::Missing`]
    pub(crate) fn public_key(&self, role: &str, id: &Decoded<Hex>) -> Result<PublicKey, KeyError> {
        let found = self.keys.iter().find(|key| key.role == role && key.id == *id);
        found.ok_or_else(|| self.missing(role))?.to_public()
    }

    /// The keys of one role.
    pub(super) fn of_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a SigningKey> {
        self.keys.iter().filter(move |k| k.role == role)
    }

    /// Keys of one role whose ids are in `ids`.
    pub(crate) fn keys_of(&self, role: &str, ids: &[Decoded<Hex>]) -> Vec<&SigningKey> {
        self.keys.iter().filter(|k| k.role == role && ids.contains(&k.id)).collect()
    }

    /// Removes the keys of a role that the metadata no longer lists. A signer puts them aside
    /// instead.
    pub(super) fn retire(&mut self, role: &str, listed: &[Decoded<Hex>]) -> Result<(), KeyError> {
        let unlisted = |key: &SigningKey| key.role == role && !listed.contains(&key.id);
        if let KeyHolder::Signer(link) = &self.holder
            && self.keys.iter().any(unlisted)
        {
            link.retire(role, &listed.iter().map(|id| &**id).collect::<Vec<_>>())?;
        }
        for key in self.keys.iter().filter(|key| unlisted(key)) {
            if let Private::Here(path, _) = &key.private {
                files::remove(path)?;
            }
        }
        self.keys.retain(|key| !unlisted(key));
        Ok(())
    }

    /// Moves the key files of a role that are not in `listed` to `tuf-keys/retired`. The signer
    /// cannot see which keys the metadata lists, so a wrong request must not destroy a key.
    pub(crate) fn put_aside(&mut self, role: &str, listed: &[Decoded<Hex>]) -> Result<(), KeyError> {
        let unlisted = |key: &SigningKey| key.role == role && !listed.contains(&key.id);
        for key in self.keys.iter().filter(|key| unlisted(key)) {
            let Private::Here(path, _) = &key.private else { continue };
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let aside = dir.join(RETIRED);
            files::create_private_dir(&aside)?;
            let to = aside.join(name);
            std::fs::rename(path, &to).map_err(|e| KeyError::PutAside(path.clone(), e))?;
            tracing::warn!(role, "a key that is no longer listed was put aside: delete {}", to.display());
        }
        self.keys.retain(|key| !unlisted(key));
        Ok(())
    }

    pub(crate) fn missing(&self, role: &str) -> KeyError {
        KeyError::Missing { role: role.to_owned(), place: self.holder.describe() }
    }
}

fn load_files(dir: &Path) -> Result<Vec<SigningKey>, KeyError> {
    files::create_private_dir(dir)?;
    let list = |e| KeyError::List(dir.to_owned(), e);
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(list)? {
        let path = entry.map_err(list)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((role, _)) = name.strip_suffix(".pem").and_then(|n| n.rsplit_once('-')) else {
            continue;
        };
        // A name with a dot in front is a temporary file of an interrupted write.
        if !role.starts_with('.')
            && let Some(pem) = files::read_secret(&path)?
        {
            keys.push(parse(role, &pem, path)?);
        }
    }
    Ok(keys)
}

fn generate_in(dir: &Path, role: &str) -> Result<SigningKey, KeyError> {
    let pem = generate_ed25519_pem();
    let mut key = parse(role, pem.as_bytes(), PathBuf::new())?;
    let path = dir.join(format!("{role}-{}.pem", hex::encode(&key.id[..8])));
    files::create_secret(&path, pem.as_bytes())?;
    if let Private::Here(at, _) = &mut key.private {
        *at = path;
    }
    Ok(key)
}

fn parse(role: &str, pem: &[u8], path: PathBuf) -> Result<SigningKey, KeyError> {
    let malformed = || KeyError::Malformed(path.clone());
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| malformed())?;
    let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
        .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()))
        .map_err(|_| malformed())?;
    let public = pair.tuf_key();
    let id = public.key_id().map_err(|_| malformed())?;
    Ok(SigningKey { role: role.to_owned(), id, public, private: Private::Here(path, pair) })
}
