//! Statement about a node: its labels and pins, as the origin signed them for the node itself
//! (docs/fleet.md, "What a node knows about itself").
//!
//! This module knows the bytes. The caller checks the signature, since the core has no
//! cryptography for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::labels::{LabelKey, LabelMap, LabelValue, Labels};
use crate::NodeId;
use crate::bounds::{LABELS_MAX, PINS_MAX};
use crate::names::Name;

/// Most bytes of a statement with its signature. The longest labels and pins take some 16 kB.
pub const STATEMENT_BYTES_MAX: usize = 24 << 10;

/// Most bytes of an ECDSA P-256 signature in ASN.1, rounded up.
const SIGNATURE_MAX: usize = 80;

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-node-v1\0";

/// Labels and pins of one node, as the realm has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatement {
    /// The node.
    pub node: NodeId,
    /// Time at which the origin made it, unix seconds. A later one replaces it.
    pub issued: u64,
    /// Labels that hold, an operator's over a token's; at most twice [`LABELS_MAX`].
    pub labels: LabelMap,
    /// Version to which an operator pinned the node, by product; at most [`PINS_MAX`].
    pub pins: BTreeMap<Name, Name>,
}

/// The statement as msgpack, with names of fields.
#[derive(Serialize, Deserialize)]
struct Fields {
    node: serde_bytes::ByteArray<16>,
    issued: u64,
    labels: BTreeMap<String, String>,
    pins: BTreeMap<Name, Name>,
}

/// Reason why bytes are no statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// The bytes do not parse.
    #[error("the statement about the node is malformed")]
    Malformed,
    /// The statement is about another node.
    #[error("the statement is about another node")]
    OtherNode,
}

/// A statement and its signature, as they travel: u8 length of the signature, signature, msgpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedStatement {
    /// The statement.
    pub statement: NodeStatement,
    /// The signed bytes of the statement, without the domain.
    pub body: Bytes,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the CA's key over [`statement_message`].
    pub signature: Bytes,
}

/// Returns the bytes that the CA's key signs for the statement `body`.
pub fn statement_message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Whether a message that the CA's key is to sign is a [`statement_message`].
pub fn is_statement_message(message: &[u8]) -> bool {
    message.strip_prefix(DOMAIN).is_some_and(|body| NodeStatement::decode(body).is_ok())
}

impl NodeStatement {
    /// Encodes the statement.
    pub fn encode(&self) -> Bytes {
        let text = |(key, value): (&LabelKey, &LabelValue)| (key.to_string(), value.to_string());
        let fields = Fields {
            node: serde_bytes::ByteArray::new(self.node.0),
            issued: self.issued,
            labels: self.labels.iter().map(text).collect(),
            pins: self.pins.clone(),
        };
        rmp_serde::to_vec_named(&fields).expect("names and labels always encode").into()
    }

    fn decode(body: &[u8]) -> Result<Self, StatementError> {
        if body.len() > STATEMENT_BYTES_MAX {
            return Err(StatementError::Malformed);
        }
        let fields: Fields = rmp_serde::from_slice(body).map_err(|_| StatementError::Malformed)?;
        if fields.labels.len() > 2 * LABELS_MAX || fields.pins.len() > PINS_MAX {
            return Err(StatementError::Malformed);
        }
        let label = |(key, value): (String, String)| Some((key.parse().ok()?, value.parse().ok()?));
        Ok(Self {
            node: NodeId(*fields.node),
            issued: fields.issued,
            labels: fields
                .labels
                .into_iter()
                .map(label)
                .collect::<Option<_>>()
                .ok_or(StatementError::Malformed)?,
            pins: fields.pins,
        })
    }

    /// First 8 bytes of the BLAKE3 of the labels and pins: a node that holds a statement with the
    /// same ones needs no new one.
    pub fn digest(&self) -> u64 {
        let timeless = Self { issued: 0, ..self.clone() }.encode();
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(&timeless).as_bytes()[..8]);
        u64::from_be_bytes(first)
    }

    /// The labels, for a selector.
    pub fn for_selectors(&self) -> Labels {
        Labels { operator: self.labels.clone(), ..Labels::default() }
    }
}

impl SignedStatement {
    /// Encodes statement and signature.
    pub fn encode(&self) -> Bytes {
        let length = u8::try_from(self.signature.len()).unwrap_or(u8::MAX);
        [&[length], &self.signature[..], &self.body[..]].concat().into()
    }

    /// Decodes bytes from the network or a file. The signature is not checked yet.
    ///
    /// # Errors
    /// [`StatementError::Malformed`].
    pub fn decode(bytes: &Bytes) -> Result<Self, StatementError> {
        let (length, rest) = bytes.split_first().ok_or(StatementError::Malformed)?;
        let length = usize::from(*length);
        if length > SIGNATURE_MAX || length > rest.len() {
            return Err(StatementError::Malformed);
        }
        let (signature, body) = (bytes.slice(1..1 + length), bytes.slice(1 + length..));
        Ok(Self { statement: NodeStatement::decode(&body)?, body, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::assignable_label;
    use super::*;

    fn statement() -> NodeStatement {
        NodeStatement {
            node: NodeId([7; 16]),
            issued: 9,
            labels: ["site=12", "kind="]
                .iter()
                .map(|text| assignable_label(text).expect("a label"))
                .collect(),
            pins: [("os".parse().expect("a name"), "1.2".parse().expect("a name"))].into(),
        }
    }

    #[test]
    fn a_statement_survives_its_bytes() {
        let body = statement().encode();
        let signed = SignedStatement { statement: statement(), body, signature: vec![1; 70].into() };
        assert_eq!(SignedStatement::decode(&signed.encode()), Ok(signed.clone()));
        assert!(signed.encode().len() < 200, "{}", signed.encode().len());
        assert!(is_statement_message(&statement_message(&signed.body)));
        assert!(!is_statement_message(&signed.body) && !is_statement_message(&statement_message(b"x")));
        for bytes in [&b""[..], b"\x50", b"\x00", b"\xff"] {
            assert_eq!(
                SignedStatement::decode(&Bytes::copy_from_slice(bytes)),
                Err(StatementError::Malformed)
            );
        }
    }

    #[test]
    fn the_digest_is_of_labels_and_pins_alone() {
        let later = NodeStatement { issued: 99, ..statement() };
        assert_eq!(later.digest(), statement().digest());
        assert_ne!(NodeStatement { pins: BTreeMap::new(), ..statement() }.digest(), statement().digest());
        assert_ne!(NodeStatement { labels: LabelMap::new(), ..statement() }.digest(), statement().digest());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_statement_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = SignedStatement::decode(&bytes.into());
        }
    }
}
