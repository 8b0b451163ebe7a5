//! Tickets: the right to fetch one shared artifact, as text that people pass on (docs/tickets.md).
//!
//! This module knows the bytes and the text. The caller checks the signature, since the core has no
//! cryptography for it.

mod text;

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::bounds::{ADDRESS_BYTES_MAX, TICKET_ADDRESSES_MAX};
use crate::names::Name;
use crate::tree::TreePath;
use crate::{ManifestId, NodeId};

pub use text::{PREFIX, TicketTextError};

/// Form of the bytes.
const FORM: u8 = 1;

/// Most bytes of an ECDSA P-256 signature in ASN.1, rounded up.
const SIGNATURE_MAX: usize = 80;

/// Most bytes of a ticket with its signature: 189 of fixed fields and the longest audience, 256 of
/// the name, and 254 for each address, rounded up.
pub const TICKET_BYTES_MAX: usize = 3 << 10;

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-ticket-v1\0";

/// Flag of a share that ends with its first completed fetch.
const FLAG_ONCE: u8 = 1;

/// Public key of a share: a compressed point of P-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShareKey(pub [u8; 33]);

impl fmt::Display for ShareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ShareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShareKey({})", hex::encode(&self.0[..6]))
    }
}

/// Random number of a ticket, by which its share is listed and withdrawn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub [u8; 8]);

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketId({self})")
    }
}

/// Kind of the shared artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKind {
    /// A file.
    File,
    /// A directory.
    Tree,
}

/// Nodes for which a ticket is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whoever holds the ticket.
    Anyone,
    /// One node of a realm.
    Node {
        /// SHA-256 of the realm CA's certificate.
        realm: [u8; 32],
        /// The node.
        node: NodeId,
    },
    /// The nodes of one group of a realm. The sharer knows who they are.
    Group {
        /// SHA-256 of the realm CA's certificate.
        realm: [u8; 32],
        /// Name of the group.
        group: Name,
    },
}

impl Audience {
    /// Realm whose nodes the ticket is for; `None` when anyone may use it.
    pub fn realm(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Anyone => None,
            Self::Node { realm, .. } | Self::Group { realm, .. } => Some(realm),
        }
    }
}

/// Name under which a fetched artifact is stored when the fetcher names none: one component of a
/// path, UTF-8, without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedName(String);

impl SharedName {
    /// Checks a name; `None` when it is not one component of a path or has a control character.
    pub fn new(name: &str) -> Option<Self> {
        let is_plain = !name.contains('/') && !name.chars().any(char::is_control);
        (is_plain && TreePath::new(name.as_bytes()).is_ok()).then(|| Self(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The right to fetch one shared artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Public key of the share.
    pub key: ShareKey,
    /// Number of the ticket.
    pub id: TicketId,
    /// Manifest of the artifact.
    pub manifest: ManifestId,
    /// Kind of the artifact.
    pub kind: SharedKind,
    /// Length of the artifact in bytes; for a directory with its listing.
    pub bytes: u64,
    /// Time from which the ticket gives nothing any more, unix seconds.
    pub not_after: u64,
    /// Nodes for which it is good.
    pub audience: Audience,
    /// Whether the share ends with its first completed fetch.
    pub once: bool,
    /// Name of the file or directory.
    pub name: SharedName,
    /// Addresses of the sharer, `HOST:PORT`, at most [`TICKET_ADDRESSES_MAX`].
    pub addresses: Vec<String>,
}

/// A ticket and its signature, as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTicket {
    /// The ticket.
    pub ticket: Ticket,
    /// The signed bytes of the ticket, without the domain.
    pub body: Bytes,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the share's key over [`ticket_message`].
    pub signature: Bytes,
}

/// Reason why bytes are no ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// The bytes do not parse.
    #[error("the ticket is malformed")]
    Malformed,
    /// The ticket has a later form than this build knows.
    #[error("the ticket has form {0}, which this distd does not know")]
    Form(u8),
}

/// Returns the bytes that the share's key signs for the ticket `body`.
pub fn ticket_message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Whether a text is the address of a sharer: `HOST:PORT` in visible ASCII, with a port.
pub fn is_address(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    text.len() <= ADDRESS_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && text.rsplit_once(':').is_some_and(|(host, rest)| !host.is_empty() && port(rest))
}

fn put_short(out: &mut BytesMut, text: &str) {
    // Names and addresses are bounded by 255 bytes where they are made.
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

fn take_array<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    from.try_copy_to_slice(&mut out).ok()?;
    Some(out)
}

fn take_short<'b>(from: &mut &'b [u8]) -> Option<&'b str> {
    let len = usize::from(from.try_get_u8().ok()?);
    let (text, rest) = from.split_at_checked(len)?;
    *from = rest;
    std::str::from_utf8(text).ok()
}

impl Ticket {
    /// Encodes the ticket. Addresses beyond [`TICKET_ADDRESSES_MAX`] are left out.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(512);
        out.put_u8(FORM);
        out.put_slice(&self.key.0);
        out.put_slice(&self.id.0);
        out.put_slice(&self.manifest.0);
        out.put_u8(match self.kind {
            SharedKind::File => 0,
            SharedKind::Tree => 1,
        });
        out.put_u64(self.bytes);
        out.put_u64(self.not_after);
        out.put_u8(if self.once { FLAG_ONCE } else { 0 });
        match &self.audience {
            Audience::Anyone => out.put_u8(0),
            Audience::Node { realm, node } => {
                out.put_u8(1);
                out.put_slice(realm);
                out.put_slice(&node.0);
            }
            Audience::Group { realm, group } => {
                out.put_u8(2);
                out.put_slice(realm);
                put_short(&mut out, group.as_str());
            }
        }
        put_short(&mut out, self.name.as_str());
        let addresses = &self.addresses[..self.addresses.len().min(TICKET_ADDRESSES_MAX)];
        out.put_u8(addresses.len() as u8);
        addresses.iter().for_each(|address| put_short(&mut out, address));
        out.freeze()
    }

    /// Reads a ticket from the front of `from`.
    fn decode(from: &mut &[u8]) -> Result<Self, TicketError> {
        match from.try_get_u8() {
            Ok(FORM) => Self::fields(from).ok_or(TicketError::Malformed),
            Ok(0) | Err(_) => Err(TicketError::Malformed),
            Ok(form) => Err(TicketError::Form(form)),
        }
    }

    fn fields(from: &mut &[u8]) -> Option<Self> {
        let key = ShareKey(take_array(from)?);
        let id = TicketId(take_array(from)?);
        let manifest = ManifestId(take_array(from)?);
        let kind = match from.try_get_u8().ok()? {
            0 => SharedKind::File,
            1 => SharedKind::Tree,
            _ => return None,
        };
        let bytes = from.try_get_u64().ok()?;
        let not_after = from.try_get_u64().ok()?;
        let flags = from.try_get_u8().ok()?;
        let audience = match from.try_get_u8().ok()? {
            0 => Audience::Anyone,
            1 => Audience::Node { realm: take_array(from)?, node: NodeId(take_array(from)?) },
            2 => Audience::Group { realm: take_array(from)?, group: take_short(from)?.parse().ok()? },
            _ => return None,
        };
        let name = SharedName::new(take_short(from)?)?;
        let count = usize::from(from.try_get_u8().ok()?);
        if count > TICKET_ADDRESSES_MAX {
            return None;
        }
        let address = |from: &mut &[u8]| take_short(from).filter(|text| is_address(text)).map(str::to_owned);
        let addresses = (0..count).map(|_| address(from)).collect::<Option<_>>()?;
        let once = flags & FLAG_ONCE != 0;
        (flags & !FLAG_ONCE == 0).then_some(Self {
            key,
            id,
            manifest,
            kind,
            bytes,
            not_after,
            audience,
            once,
            name,
            addresses,
        })
    }
}

impl SignedTicket {
    /// Encodes ticket and signature.
    pub fn encode(&self) -> Bytes {
        [&self.body[..], &self.signature[..]].concat().into()
    }

    /// Reads bytes from the network or a text. The signature is not checked.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, TicketError> {
        if bytes.len() > TICKET_BYTES_MAX {
            return Err(TicketError::Malformed);
        }
        let mut rest = &bytes[..];
        let ticket = Ticket::decode(&mut rest)?;
        if rest.is_empty() || rest.len() > SIGNATURE_MAX {
            return Err(TicketError::Malformed);
        }
        let body = bytes.slice(..bytes.len() - rest.len());
        let signature = bytes.slice(body.len()..);
        Ok(Self { ticket, body, signature })
    }

    /// Returns the ticket as text.
    pub fn to_text(&self) -> String {
        text::encode(&self.encode())
    }

    /// Reads a ticket from text as a person pasted it: letters of either case, with blanks and line
    /// breaks anywhere. The signature is not checked.
    ///
    /// # Errors
    /// [`TicketTextError`].
    pub fn from_text(text: &str) -> Result<Self, TicketTextError> {
        Ok(Self::decode(&text::decode(text)?.into())?)
    }
}

#[cfg(test)]
mod tests;
