//! Capabilities: what one node may do with some manifests, as the origin signed it
//! (docs/fleet.md, "Capabilities").
//!
//! This module knows the bytes and compares node, manifest and time. The caller checks the
//! signature, since the core has no cryptography for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::rights::{Right, Rights};
use crate::bounds::CAPABILITY_MANIFESTS_MAX;
use crate::{ManifestId, NodeId};

/// Most bytes of an encoded capability with its signature.
pub const CAPABILITY_BYTES_MAX: usize = HEAD_BYTES + CAPABILITY_MANIFESTS_MAX * ENTRY_BYTES + SIGNATURE_MAX;

/// Form of the bytes.
const FORM: u8 = 1;

/// Form, node, two times, number of manifests.
const HEAD_BYTES: usize = 1 + 16 + 8 + 8 + 1;

/// One manifest with its rights.
const ENTRY_BYTES: usize = 33;

/// Most bytes of an ECDSA P-256 signature in ASN.1, rounded up.
const SIGNATURE_MAX: usize = 80;

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-capability-v1\0";

/// Time by which the origin's clock may be ahead of the checker's, seconds.
const AHEAD_MAX: u64 = 3600;

/// Rights on one manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The manifest.
    pub manifest: ManifestId,
    /// The rights on it.
    pub rights: Rights,
}

/// A statement of the origin about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The node; `None`: any node of the realm, by its certificate alone.
    pub node: Option<NodeId>,
    /// Time at which the origin made it, unix seconds.
    pub issued: u64,
    /// Time from which it proves nothing any more, unix seconds.
    pub expires: u64,
    /// Rights by manifest, at most [`CAPABILITY_MANIFESTS_MAX`].
    pub manifests: Vec<Entitlement>,
}

/// A capability and its signature, as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCapability {
    /// The statement.
    pub capability: Capability,
    /// The signed bytes of the statement, without the domain.
    pub body: Bytes,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the CA's key over [`capability_message`].
    pub signature: Bytes,
}

/// Reason why bytes are no capability, or why a capability proves nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// The bytes do not parse.
    #[error("the capability is malformed")]
    Malformed,
    /// The capability is another node's.
    #[error("the capability belongs to another node")]
    OtherNode,
    /// It names other manifests, or gives no right to read this one.
    #[error("the capability does not let the node read this manifest")]
    NotGranted,
    /// It has expired, or was made in the future.
    #[error("the capability is not valid at this time")]
    Time,
}

/// Returns the bytes that the CA's key signs for the statement `body`.
pub fn capability_message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Returns the statement in a [`capability_message`]; `None` for any other message. The signer
/// asks, and signs nothing that could pass for another kind of message.
pub fn is_capability_message(message: &[u8]) -> Option<Capability> {
    let mut body = message.strip_prefix(DOMAIN)?;
    Capability::decode(&mut body).filter(|_| body.is_empty())
}

impl Capability {
    /// Encodes the statement. Manifests beyond [`CAPABILITY_MANIFESTS_MAX`] are left out.
    pub fn encode(&self) -> Bytes {
        let manifests = &self.manifests[..self.manifests.len().min(CAPABILITY_MANIFESTS_MAX)];
        let mut out = BytesMut::with_capacity(HEAD_BYTES + manifests.len() * ENTRY_BYTES);
        out.put_u8(FORM);
        out.put_slice(&self.node.map_or([0; 16], |node| node.0));
        out.put_u64(self.issued);
        out.put_u64(self.expires);
        out.put_u8(manifests.len() as u8);
        for Entitlement { manifest, rights } in manifests {
            out.put_slice(&manifest.0);
            out.put_u8(rights.bits());
        }
        out.freeze()
    }

    /// Reads a statement from the front of `from`.
    fn decode(from: &mut &[u8]) -> Option<Self> {
        if from.try_get_u8().ok()? != FORM {
            return None;
        }
        let mut node = [0; 16];
        from.try_copy_to_slice(&mut node).ok()?;
        let issued = from.try_get_u64().ok()?;
        let expires = from.try_get_u64().ok()?;
        let count = usize::from(from.try_get_u8().ok()?);
        if count > CAPABILITY_MANIFESTS_MAX || from.len() < count * ENTRY_BYTES {
            return None;
        }
        let mut manifests = Vec::with_capacity(count);
        for _ in 0..count {
            let mut manifest = [0; 32];
            from.try_copy_to_slice(&mut manifest).ok()?;
            let rights = Rights::from_bits(from.try_get_u8().ok()?);
            manifests.push(Entitlement { manifest: ManifestId(manifest), rights });
        }
        Some(Self { node: Some(NodeId(node)).filter(|node| node.0 != [0; 16]), issued, expires, manifests })
    }

    /// The rights on a manifest at `now` (unix seconds), whoever asks.
    ///
    /// # Errors
    /// [`CapabilityError::Time`], [`CapabilityError::NotGranted`].
    pub fn rights(&self, manifest: &ManifestId, now: u64) -> Result<Rights, CapabilityError> {
        if now >= self.expires || self.issued > now.saturating_add(AHEAD_MAX) {
            return Err(CapabilityError::Time);
        }
        let found = self.manifests.iter().find(|entitlement| entitlement.manifest == *manifest);
        let rights = found.map(|entitlement| entitlement.rights).unwrap_or_default();
        if rights.has(Right::Read) { Ok(rights) } else { Err(CapabilityError::NotGranted) }
    }

    /// The rights of `node` on a manifest at `now` (unix seconds).
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn rights_of(
        &self,
        node: &NodeId,
        manifest: &ManifestId,
        now: u64,
    ) -> Result<Rights, CapabilityError> {
        if self.node.is_some_and(|own| own != *node) {
            return Err(CapabilityError::OtherNode);
        }
        self.rights(manifest, now)
    }

    /// Time from which a new capability should be asked for, unix seconds: a third of the validity
    /// is left.
    pub fn renew_at(&self) -> u64 {
        self.expires.saturating_sub(self.expires.saturating_sub(self.issued) / 3)
    }
}

impl SignedCapability {
    /// Encodes statement and signature.
    pub fn encode(&self) -> Bytes {
        [&self.body[..], &self.signature[..]].concat().into()
    }

    /// Reads bytes from the network or a file. The signature is not checked.
    ///
    /// # Errors
    /// [`CapabilityError::Malformed`].
    pub fn decode(bytes: &Bytes) -> Result<Self, CapabilityError> {
        if bytes.len() > CAPABILITY_BYTES_MAX {
            return Err(CapabilityError::Malformed);
        }
        let mut rest = &bytes[..];
        let capability = Capability::decode(&mut rest).ok_or(CapabilityError::Malformed)?;
        let body = bytes.slice(..bytes.len() - rest.len());
        if rest.is_empty() || rest.len() > SIGNATURE_MAX {
            return Err(CapabilityError::Malformed);
        }
        Ok(Self { capability, signature: bytes.slice(body.len()..), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(n: u8) -> ManifestId {
        ManifestId([n; 32])
    }

    fn capability() -> Capability {
        let manifests = vec![
            Entitlement { manifest: manifest(1), rights: Rights::ALL },
            Entitlement { manifest: manifest(2), rights: [Right::Report].into_iter().collect() },
        ];
        Capability { node: Some(NodeId([7; 16])), issued: 1000, expires: 1900, manifests }
    }

    #[test]
    fn a_capability_survives_its_bytes_and_no_shorter_ones_parse() {
        let capability = capability();
        let body = capability.encode();
        let signed = SignedCapability { capability, body, signature: Bytes::from_static(&[9; 71]) };
        let bytes = signed.encode();
        assert_eq!(bytes.len(), 34 + 2 * 33 + 71);
        assert_eq!(SignedCapability::decode(&bytes), Ok(signed.clone()));
        for end in 0..=signed.body.len() {
            assert_eq!(SignedCapability::decode(&bytes.slice(..end)), Err(CapabilityError::Malformed));
        }
        let long = Bytes::from([&bytes[..], &[0; 10]].concat());
        assert_eq!(SignedCapability::decode(&long), Err(CapabilityError::Malformed));
        assert_eq!(is_capability_message(&capability_message(&signed.body)), Some(signed.capability));
        assert_eq!(is_capability_message(&capability_message(&bytes)), None);
        assert_eq!(is_capability_message(&signed.body), None);
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let bytes = capability().encode();
        let expected = format!(
            "01{}00000000000003e8000000000000076c02{}07{}04",
            "07".repeat(16),
            "01".repeat(32),
            "02".repeat(32)
        );
        assert_eq!(hex::encode(&bytes), expected);
    }

    #[test]
    fn rights_hold_for_one_node_some_manifests_and_a_while() {
        let capability = capability();
        let node = NodeId([7; 16]);
        assert_eq!(capability.rights_of(&node, &manifest(1), 1000), Ok(Rights::ALL));
        assert_eq!(capability.rights_of(&node, &manifest(1), 1899), Ok(Rights::ALL));
        assert_eq!(capability.rights_of(&node, &manifest(1), 1900), Err(CapabilityError::Time));
        let other = NodeId([8; 16]);
        assert_eq!(capability.rights_of(&other, &manifest(1), 1000), Err(CapabilityError::OtherNode));
        for unreadable in [2, 3] {
            let rights = capability.rights_of(&node, &manifest(unreadable), 1000);
            assert_eq!(rights, Err(CapabilityError::NotGranted));
        }
        // A clock that is a little behind the origin's does not matter; 1970 does.
        assert!(capability.rights_of(&node, &manifest(1), 990).is_ok());
        let later = Capability { issued: 1_000_000, expires: 1_000_900, ..capability.clone() };
        assert_eq!(later.rights_of(&node, &manifest(1), 0), Err(CapabilityError::Time));
        assert_eq!(capability.renew_at(), 1600);
        let anyones = Capability { node: None, ..capability };
        assert_eq!(anyones.rights_of(&other, &manifest(1), 1000), Ok(Rights::ALL));
    }
}
