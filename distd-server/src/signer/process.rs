//! The signer's side of the connection on standard input, which it serves until it ends.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use distd_peer::clock::unix_now;
use rcgen::SigningKey as _;
use tough::schema::decoded::{Decoded, Hex};

use super::openpgp::OpenPgpKey;
use super::policy::{Validity, check_certificate, check_metadata, check_statement, check_sum};
use super::roots::KnownRoots;
use super::wire::{self, Reply, Request, VERSION};
use super::{KeyHolder, TUF_KEYS};
use crate::realm::{Authority, RealmError};
use crate::tuf::{KeyError, KeyRing, key_roles};

/// Reason why the signer ended.
#[derive(Debug, thiserror::Error)]
pub enum SignerProcessError {
    /// Standard input is not a socket.
    #[error(
        "standard input is not a Unix socket: let distd-server serve or a systemd socket unit start the signer"
    )]
    NoSocket(#[source] io::Error),
    /// The CA's files cannot be used.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The TUF keys cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The connection broke.
    #[error("the connection from the origin broke")]
    Connection(#[source] io::Error),
}

/// Answers the requests that the origin sends over the Unix socket on standard input, with the keys
/// under `keys`, until the origin closes the socket. Creates a CA if there is none.
///
/// # Errors
/// [`SignerProcessError`]
pub fn run(keys: &Path, validity: Validity) -> Result<(), SignerProcessError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(SignerProcessError::NoSocket)?;
    let stream = UnixStream::from(socket);
    stream.peer_addr().map_err(SignerProcessError::NoSocket)?;
    answer(&stream, keys, validity)
}

/// Answers the requests of one connection until its end.
pub(super) fn answer(stream: &UnixStream, keys: &Path, validity: Validity) -> Result<(), SignerProcessError> {
    let mut signer = Signer::open(keys, validity)?;
    loop {
        let request = wire::receive(stream).map_err(SignerProcessError::Connection)?;
        let Some(request) = request else { return Ok(()) };
        let reply = signer.answer(request).unwrap_or_else(|why| {
            tracing::warn!(why, "a request was refused");
            Reply::Refused(why)
        });
        wire::send(stream, &reply).map_err(SignerProcessError::Connection)?;
    }
}

struct Signer {
    authority: Authority,
    ring: KeyRing,
    roots: KnownRoots,
    keys: PathBuf,
    validity: Validity,
}

impl Signer {
    fn open(keys: &Path, validity: Validity) -> Result<Self, SignerProcessError> {
        let authority = Authority::load_or_create(keys, unix_now())?;
        let (ring, roots) = Self::read_keys(keys)?;
        Ok(Self { authority, ring, roots, keys: keys.to_owned(), validity })
    }

    fn read_keys(keys: &Path) -> Result<(KeyRing, KnownRoots), KeyError> {
        Ok((KeyRing::load(&KeyHolder::in_dir(keys))?, KnownRoots::load(&keys.join(TUF_KEYS))?))
    }

    fn openpgp(&self, now: u64) -> Result<OpenPgpKey, String> {
        OpenPgpKey::load_or_create(&self.keys, now).map_err(|e| e.to_string())
    }

    fn answer(&mut self, request: Request) -> Result<Reply, String> {
        let now = unix_now();
        match request {
            Request::Hello { version: VERSION } => {
                // A command of an operator may have made keys or a root since the last connection.
                (self.ring, self.roots) = Self::read_keys(&self.keys).map_err(|e| e.to_string())?;
                let keys = self.ring.public_keys().map_err(|e| e.to_string())?;
                Ok(Reply::Hello { ca_pem: self.authority.pem.clone(), keys })
            }
            Request::Hello { version } => Err(format!(
                "the signer speaks version {VERSION}, the origin version {version}: run the origin and the signer of one release"
            )),
            Request::Generate { role } => {
                if !key_roles().any(|known| known == role) {
                    return Err(format!("there is no TUF role {role:?}"));
                }
                let id = self.ring.generate(&role).map_err(|e| e.to_string())?;
                tracing::info!(role, key = hex::encode(&id[..8]), "a TUF key was made");
                self.ring.public_key(&role, &id).map(Reply::Key).map_err(|e| e.to_string())
            }
            Request::Retire { role, listed } => {
                let listed: Vec<Decoded<Hex>> = listed.into_iter().map(|id| id.into_vec().into()).collect();
                self.ring.put_aside(&role, &listed).map_err(|e| e.to_string())?;
                Ok(Reply::Retired)
            }
            Request::Metadata { role, key_id, message } => {
                check_metadata(&role, &message, &self.ring, &self.roots, self.validity, now)?;
                let id: Decoded<Hex> = key_id.into();
                let key = self.ring.keys_of(&role, std::slice::from_ref(&id));
                let key = key.first().ok_or_else(|| self.ring.missing(&role).to_string())?;
                key.sign(&message).map(Reply::Signature).map_err(|e| e.to_string())
            }
            Request::Certificate { tbs } => {
                check_certificate(&tbs, &self.authority.subject, self.validity, now)?;
                self.authority.key.sign(&tbs).map(Reply::Signature).map_err(|e| e.to_string())
            }
            Request::Statement { message } => {
                check_statement(&message, self.validity, now)?;
                self.authority.key.sign(&message).map(Reply::Signature).map_err(|e| e.to_string())
            }
            Request::Root { root } => {
                self.roots.follow(&root).map(Reply::NewestRoot).map_err(|e| e.to_string())
            }
            Request::OpenPgp => Ok(Reply::OpenPgp(self.openpgp(now)?.public())),
            Request::Sum { line } => {
                check_sum(&line)?;
                Ok(Reply::Signature(self.openpgp(now)?.sign(&line, now)))
            }
        }
    }
}
