//! Requests to the signer and its replies. Each message is msgpack, preceded by its length in four
//! bytes, big-endian.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::openpgp::OpenPgpPublic;

/// Version of these messages.
pub(super) const VERSION: u32 = 3;

/// Longest message, bytes: `channels.json` of a large realm.
const MESSAGE_BYTES_MAX: u32 = 64 << 20;

/// The public half of a TUF key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PublicKey {
    /// The role that the key signs for.
    pub(crate) role: String,
    /// The key as TUF metadata lists it, JSON.
    pub(crate) json: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Checks the version, reloads the keys, and asks for the CA's certificate and the public TUF
    /// keys.
    Hello { version: u32 },
    /// Asks for a new key of a TUF role.
    Generate { role: String },
    /// Moves those keys of a role that are not in `listed` to the directory `retired`.
    Retire { role: String, listed: Vec<serde_bytes::ByteBuf> },
    /// Asks for the signature of one key under TUF metadata in canonical form.
    Metadata {
        /// Role that has the key: the bins of releases have that of `releases`.
        role: String,
        #[serde(with = "serde_bytes")]
        key_id: Vec<u8>,
        #[serde(with = "serde_bytes")]
        message: Vec<u8>,
    },
    /// Asks for the CA's signature under a certificate, DER of its TBSCertificate.
    Certificate {
        #[serde(with = "serde_bytes")]
        tbs: Vec<u8>,
    },
    /// Asks for the CA's signature over a reply to an enrolment (its seal) or over the list of
    /// revoked nodes.
    Statement {
        #[serde(with = "serde_bytes")]
        message: Vec<u8>,
    },
    /// Shows a root of the repository, signed, JSON. The signer checks it, and remembers it if it
    /// is the next one.
    Root {
        #[serde(with = "serde_bytes")]
        root: Vec<u8>,
    },
    /// Asks for the public half of the OpenPGP key, which is made at the first need.
    OpenPgp,
    /// Asks for the OpenPGP key's signature of one line of `SHA256SUMS`.
    Sum {
        #[serde(with = "serde_bytes")]
        line: Vec<u8>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Hello {
        ca_pem: String,
        keys: Vec<PublicKey>,
    },
    Key(PublicKey),
    Retired,
    Signature(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Version of the newest root that the signer knows.
    NewestRoot(u64),
    OpenPgp(OpenPgpPublic),
    /// Reason for the refusal of the request.
    Refused(String),
}

/// Writes one message.
pub(super) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MESSAGE_BYTES_MAX);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))?;
    to.write_all(&len.to_be_bytes())?;
    to.write_all(&body)?;
    to.flush()
}

/// Reads one message; `None` at the end of the stream, also within the length of a message.
pub(super) fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let len = u32::from_be_bytes(len);
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if len > MESSAGE_BYTES_MAX {
        return Err(invalid("the message is too long"));
    }
    // The buffer grows with the bytes that arrive, not with the announced length.
    let mut body = Vec::new();
    from.take(len.into()).read_to_end(&mut body)?;
    if body.len() as u64 != u64::from(len) {
        return Err(invalid("the message is incomplete"));
    }
    rmp_serde::from_slice(&body).map(Some).map_err(|_| invalid("the message is malformed"))
}
