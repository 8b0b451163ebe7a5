//! HANDSHAKE: the options on which both sides must agree before anything else (RFC 7574 §7).

use bytes::{Buf, BufMut, Bytes};

use crate::ManifestId;
use crate::bounds::CAPABILITY_FRAME_MAX;
use crate::proto::codec::DecodeError;

/// Version this build speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// Options of RFC 7574 §7 that this build sends; 128 and up are private.
mod option {
    pub(super) const VERSION: u8 = 0;
    pub(super) const MINIMUM_VERSION: u8 = 1;
    pub(super) const SWARM_ID: u8 = 2;
    pub(super) const INTEGRITY_METHOD: u8 = 3;
    pub(super) const HASH_FUNCTION: u8 = 4;
    pub(super) const ADDRESSING_METHOD: u8 = 6;
    pub(super) const SUPPORTED_MESSAGES: u8 = 8;
    pub(super) const CHUNK_SIZE: u8 = 9;
    pub(super) const CAPABILITY: u8 = 128;
    pub(super) const FETCHES_UPSTREAM: u8 = 129;
    pub(super) const EXCHANGES: u8 = 130;
    pub(super) const END: u8 = 255;
}

/// Manifest tree: private value of option 3 (the RFC's 1 is its own binary Merkle tree).
const INTEGRITY_MANIFEST: u8 = 128;
/// BLAKE3: private value of option 4.
const HASH_BLAKE3: u8 = 128;
/// 64-bit chunk ranges (RFC 7574 §8.3).
const ADDRESSING_CHUNK_RANGES_64: u8 = 4;
/// Chunks of varying size (RFC 7574 §7.10).
const CHUNK_SIZE_VARIABLE: u32 = u32::MAX;
/// Types 0, 1, 3, 4, 8, 9, 10, 11 (MSB first, RFC 7574 §7.9). The ALPN implies the extensions and
/// PEX.
const SUPPORTED: [u8; 2] = [0b1101_1000, 0b1111_0000];

/// The handshake of one swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Highest version the sender speaks.
    pub version: u8,
    /// Lowest version the sender speaks.
    pub minimum_version: u8,
    /// Id of the manifest, which names the swarm.
    pub manifest: ManifestId,
    /// Signed capability of the sender, opaque here; empty if it has none. At most
    /// [`CAPABILITY_FRAME_MAX`] bytes.
    pub capability: Bytes,
    /// Whether the sender fetches chunks it does not hold from a parent of its own. It may be asked
    /// for chunks that it did not announce.
    pub fetches_upstream: bool,
    /// Whether the sender exchanges chunks with its neighbours. Its peer record is then the next
    /// frame.
    pub exchanges: bool,
}

impl Handshake {
    /// Returns the handshake of this build for `manifest`.
    pub fn new(manifest: ManifestId) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            minimum_version: PROTOCOL_VERSION,
            manifest,
            capability: Bytes::new(),
            fetches_upstream: false,
            exchanges: false,
        }
    }

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&[option::VERSION, self.version, option::MINIMUM_VERSION, self.minimum_version]);
        out.put_u8(option::SWARM_ID);
        out.put_u16(32);
        out.put_slice(&self.manifest.0);
        out.put_slice(&[option::INTEGRITY_METHOD, INTEGRITY_MANIFEST, option::HASH_FUNCTION, HASH_BLAKE3]);
        out.put_slice(&[option::ADDRESSING_METHOD, ADDRESSING_CHUNK_RANGES_64]);
        out.put_slice(&[option::SUPPORTED_MESSAGES, SUPPORTED.len() as u8]);
        out.put_slice(&SUPPORTED);
        out.put_u8(option::CHUNK_SIZE);
        out.put_u32(CHUNK_SIZE_VARIABLE);
        if !self.capability.is_empty() {
            out.put_u8(option::CAPABILITY);
            out.put_u16(
                u16::try_from(self.capability.len()).expect("a capability is bounded where it is decoded"),
            );
            out.put_slice(&self.capability);
        }
        if self.fetches_upstream {
            out.put_slice(&[option::FETCHES_UPSTREAM, 1]);
        }
        if self.exchanges {
            out.put_slice(&[option::EXCHANGES, 1]);
        }
        out.put_u8(option::END);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        let short = |_| DecodeError::Length(name);
        let field = |field| DecodeError::Field(name, field);
        let (mut version, mut minimum, mut manifest) = (None, None, None);
        let (mut integrity, mut hash, mut addressing, mut chunk_size) = (None, None, None, None);
        let mut capability = Bytes::new();
        let mut fetches_upstream = false;
        let mut exchanges = false;
        loop {
            match body.try_get_u8().map_err(short)? {
                option::VERSION => version = Some(body.try_get_u8().map_err(short)?),
                option::MINIMUM_VERSION => minimum = Some(body.try_get_u8().map_err(short)?),
                option::SWARM_ID => {
                    let len = body.try_get_u16().map_err(short)? as usize;
                    if len != 32 || body.remaining() < len || manifest.is_some() {
                        return Err(field("swarm id"));
                    }
                    manifest = ManifestId::from_slice(&body.split_to(len));
                }
                option::INTEGRITY_METHOD => integrity = Some(body.try_get_u8().map_err(short)?),
                option::HASH_FUNCTION => hash = Some(body.try_get_u8().map_err(short)?),
                option::ADDRESSING_METHOD => addressing = Some(body.try_get_u8().map_err(short)?),
                option::SUPPORTED_MESSAGES => {
                    let len = body.try_get_u8().map_err(short)? as usize;
                    if body.remaining() < len {
                        return Err(DecodeError::Length(name));
                    }
                    body.advance(len);
                }
                option::CHUNK_SIZE => chunk_size = Some(body.try_get_u32().map_err(short)?),
                option::CAPABILITY => {
                    let len = body.try_get_u16().map_err(short)? as usize;
                    if len > CAPABILITY_FRAME_MAX || body.remaining() < len {
                        return Err(field("capability"));
                    }
                    capability = body.split_to(len);
                }
                option::FETCHES_UPSTREAM => fetches_upstream = body.try_get_u8().map_err(short)? == 1,
                option::EXCHANGES => exchanges = body.try_get_u8().map_err(short)? == 1,
                option::END if body.is_empty() => break,
                option::END => return Err(DecodeError::Length(name)),
                // The RFC gives unknown options no length, so they cannot be skipped.
                _ => return Err(field("option")),
            }
        }
        if (integrity, hash, addressing, chunk_size)
            != (
                Some(INTEGRITY_MANIFEST),
                Some(HASH_BLAKE3),
                Some(ADDRESSING_CHUNK_RANGES_64),
                Some(CHUNK_SIZE_VARIABLE),
            )
        {
            return Err(field("method"));
        }
        let version = version.filter(|v| *v != 0).ok_or_else(|| field("version"))?;
        Ok(Self {
            version,
            minimum_version: minimum.unwrap_or(version),
            manifest: manifest.ok_or_else(|| field("swarm id"))?,
            capability,
            fetches_upstream,
            exchanges,
        })
    }
}
