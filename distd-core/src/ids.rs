//! Names of things: one newtype per kind, so that none is mistaken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Ordinal the origin gave to a chunk hash, `1..=i64::MAX`.
///
/// Ids are handed out in artifact order, are never reused and say nothing about content
/// (docs/formats.md, "Chunk ids"). Zero is never given, so that it can mark "none" in a fixed field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkId(pub u64);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a string is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The string is not 64 hexadecimal digits.
    #[error("expected 64 hexadecimal digits")]
    NotHex,
}

macro_rules! hash_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// From exactly 32 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(&self.0[..6]))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut out = [0; 32];
                hex::decode_to_slice(s, &mut out).map_err(|_| ParseIdError::NotHex)?;
                Ok(Self(out))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    s.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                use serde::de::Error;
                if d.is_human_readable() {
                    let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                    s.parse().map_err(D::Error::custom)
                } else {
                    <serde_bytes::ByteArray<32>>::deserialize(d).map(|b| Self(b.into_array()))
                }
            }
        }
    };
}

hash_newtype! {
    /// BLAKE3-256 of a chunk's raw bytes: the identity, and the only test of validity.
    ChunkHash
}
hash_newtype! {
    /// Hash of a manifest node under the domain of its level (docs/formats.md, "Node hashes").
    NodeHash
}
hash_newtype! {
    /// Hash of a manifest's root node: names an artifact with its cutting and its chunk ids.
    ManifestId
}
hash_newtype! {
    /// BLAKE3-256 of a whole artifact, what `b3sum` prints for it.
    ArtifactHash
}

impl ManifestId {
    /// Stands for holding nothing at all: where a patch set of solid segments starts from. No manifest has it, since no
    /// node with this hash is known.
    pub const NOTHING: Self = Self([0; 32]);
}

/// Who a node is for as long as it has its key: the first 16 bytes of the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = hex::FromHexError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut out = [0; 16];
        hex::decode_to_slice(s, &mut out)?;
        Ok(Self(out))
    }
}

impl ChunkHash {
    /// Hash of `raw`.
    pub fn of(raw: &[u8]) -> Self {
        blake3::hash(raw).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_survives_text_and_msgpack() {
        let hash = ChunkHash::of(b"chunk");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let packed = rmp_serde::to_vec(&hash).expect("a hash always encodes");
        assert_eq!(packed.len(), 34, "bin8 header and 32 bytes");
        assert_eq!(rmp_serde::from_slice::<ChunkHash>(&packed).expect("round trip"), hash);
    }

    #[test]
    fn a_short_or_foreign_string_is_no_hash() {
        for bad in ["", "00", "zz", &"0".repeat(63), &"g".repeat(64)] {
            assert_eq!(bad.parse::<ManifestId>(), Err(ParseIdError::NotHex));
        }
    }
}
