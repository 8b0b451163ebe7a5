//! Signed head of the log: the number of its entries and the root of its tree at a time.

use std::fmt;

use bytes::Bytes;

use super::merkle::{LOG_SIZE_MAX, TreeHash};

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-log-head-v1\0";

/// Bytes of an encoded head.
const HEAD_BYTES: usize = 16 + 8 + 32 + 8;

/// Most bytes of an ECDSA P-256 signature in ASN.1, rounded up.
const SIGNATURE_MAX: usize = 80;

/// Identity of a log: 16 random bytes, as text 32 hexadecimal digits. A log that lost entries
/// continues under another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId(pub [u8; 16]);

/// Reason why bytes or a text are no head or log id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the head of the log is malformed")]
pub struct HeadError;

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

impl std::str::FromStr for LogId {
    type Err = HeadError;

    fn from_str(s: &str) -> Result<Self, HeadError> {
        let mut id = [0; 16];
        hex::decode_to_slice(s, &mut id).map_err(|_| HeadError)?;
        Ok(Self(id))
    }
}

/// Head of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// The log.
    pub log: LogId,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree of these entries.
    pub root: TreeHash,
    /// Time at which the origin signed it, unix seconds.
    pub at: u64,
}

impl LogHead {
    /// Encodes the head: log id, size, root, time; numbers are big-endian.
    pub fn encode(&self) -> Bytes {
        let numbers = (self.size.to_be_bytes(), self.at.to_be_bytes());
        [&self.log.0[..], &numbers.0, &self.root.0, &numbers.1].concat().into()
    }

    fn decode(body: &[u8]) -> Result<Self, HeadError> {
        let body: &[u8; HEAD_BYTES] = body.try_into().map_err(|_| HeadError)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&body[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        let (mut log, mut root) = ([0; 16], [0; 32]);
        log.copy_from_slice(&body[..16]);
        root.copy_from_slice(&body[24..56]);
        let head = Self { log: LogId(log), size: number(16), root: TreeHash(root), at: number(56) };
        if head.size > LOG_SIZE_MAX { Err(HeadError) } else { Ok(head) }
    }

    /// Bytes that the CA's key signs.
    pub fn message(&self) -> Vec<u8> {
        [DOMAIN, &self.encode()].concat()
    }
}

/// Whether a message that the CA's key is to sign is that of a [`LogHead`].
pub fn is_head_message(message: &[u8]) -> bool {
    message.strip_prefix(DOMAIN).is_some_and(|body| LogHead::decode(body).is_ok())
}

/// A head and its signature, as they travel: u8 length of the signature, signature, head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    /// The head.
    pub head: LogHead,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the CA's key over [`LogHead::message`].
    pub signature: Bytes,
}

impl SignedHead {
    /// Encodes head and signature.
    pub fn encode(&self) -> Bytes {
        let length = u8::try_from(self.signature.len()).unwrap_or(u8::MAX);
        [&[length], &self.signature[..], &self.head.encode()].concat().into()
    }

    /// Decodes bytes from the network or a file. The signature is not checked yet.
    ///
    /// # Errors
    /// [`HeadError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, HeadError> {
        let (length, rest) = bytes.split_first().ok_or(HeadError)?;
        let length = usize::from(*length);
        if length > SIGNATURE_MAX || rest.len() != length + HEAD_BYTES {
            return Err(HeadError);
        }
        Ok(Self { head: LogHead::decode(&rest[length..])?, signature: bytes.slice(1..1 + length) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> LogHead {
        LogHead { log: LogId([1; 16]), size: 2, root: TreeHash([3; 32]), at: 4 }
    }

    #[test]
    fn a_head_survives_its_bytes_and_these_are_they() {
        let signed = SignedHead { head: head(), signature: vec![9; 71].into() };
        assert_eq!(SignedHead::decode(&signed.encode()), Ok(signed.clone()));
        let expected = format!("{}{:016x}{}{:016x}", "01".repeat(16), 2, "03".repeat(32), 4);
        assert_eq!(hex::encode(head().encode()), expected);
        assert!(is_head_message(&head().message()) && !is_head_message(&head().encode()));
        let huge = LogHead { size: LOG_SIZE_MAX + 1, ..head() };
        assert!(!is_head_message(&huge.message()));
        for bytes in [&b""[..], b"\x50", b"\x00", b"\xff"] {
            assert_eq!(SignedHead::decode(&Bytes::copy_from_slice(bytes)), Err(HeadError));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = SignedHead::decode(&bytes.into());
        }
    }
}
