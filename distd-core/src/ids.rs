//! Identifiers. Each kind has its own newtype, so that the compiler refuses one in place of
//! another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number the origin gave to a chunk hash, `1..=i64::MAX`.
///
/// Ids are given in artifact order, are never reused and do not depend on content (docs/formats.md,
/// "Chunk ids"). Zero is never given, so a field of fixed size can use it for "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkId(pub u64);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Index of a chunk in its artifact, from 0. An artifact may have the same chunk at several
/// positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// Returns the position of the element at `index` of a list in artifact order.
    pub const fn of_index(index: usize) -> Self {
        Self(index as u64)
    }

    /// Returns the index in a list in artifact order.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Reason why a string is not an identifier.
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
            /// Returns the 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Makes the hash from exactly 32 bytes; `None` for any other length.
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
    /// BLAKE3-256 of a chunk's raw bytes. It identifies the chunk and is the only test of its
    /// validity.
    ChunkHash
}
hash_newtype! {
    /// Hash of a manifest node, in the hash domain of the node's level (docs/formats.md, "Node
    /// hashes").
    NodeHash
}
hash_newtype! {
    /// Hash of a manifest's root node. It identifies an artifact together with its cut and its
    /// chunk ids.
    ManifestId
}
hash_newtype! {
    /// BLAKE3-256 of a whole artifact, as `b3sum` prints it.
    ArtifactHash
}

impl ManifestId {
    /// Stands for "holds nothing": the `from` of a patch set of solid segments. No manifest has
    /// this id, since no node with this hash is known.
    pub const NOTHING: Self = Self([0; 32]);
}

/// Identity of a node for as long as the node keeps its key: the first 16 bytes of the SHA-256 of
/// its SubjectPublicKeyInfo.
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
    /// Returns the hash of `raw`.
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
