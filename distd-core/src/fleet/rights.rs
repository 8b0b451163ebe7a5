//! Rights of a node on releases.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One right of a node on a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Fetch chunks and manifests, and learn which nodes have them.
    Read,
    /// Serve them to neighbours, and be advertised to them.
    Seed,
    /// Report what the node runs.
    Report,
}

impl Right {
    /// All rights, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Read, Self::Seed, Self::Report];

    /// Word for the right in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Seed => "seed",
            Self::Report => "report",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Seed => 2,
            Self::Report => 4,
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is not a right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no right: write read, seed or report")]
pub struct UnknownRight(pub String);

impl FromStr for Right {
    type Err = UnknownRight;

    fn from_str(s: &str) -> Result<Self, UnknownRight> {
        Self::ALL.into_iter().find(|right| right.as_str() == s).ok_or_else(|| UnknownRight(s.to_owned()))
    }
}

/// A set of rights. As text the words are separated by commas; the empty text is no right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights(u8);

impl Rights {
    /// No right.
    pub const NONE: Self = Self(0);

    /// Every right.
    pub const ALL: Self = Self(7);

    /// Whether the right is in the set.
    pub fn has(self, right: Right) -> bool {
        self.0 & right.bit() != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every right of `other` is in the set.
    pub fn includes(self, other: Self) -> bool {
        self.0 | other.0 == self.0
    }

    /// The rights of both sets.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The rights of the set, in the order of [`Right::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }

    /// The set as one byte, as in a capability.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set of a byte. Bits without a meaning in this version are left out.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        Self(rights.into_iter().fold(0, |bits, right| bits | right.bit()))
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, right) in self.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            f.write_str(right.as_str())?;
        }
        Ok(())
    }
}

impl FromStr for Rights {
    type Err = UnknownRight;

    fn from_str(s: &str) -> Result<Self, UnknownRight> {
        s.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::parse::<Right>).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_survive_text_and_byte() {
        for bits in 0..=7 {
            let rights = Rights::from_bits(bits);
            assert_eq!(rights.bits(), bits);
            assert_eq!(rights.to_string().parse(), Ok(rights));
        }
        assert_eq!(Rights::from_bits(0xff), Rights::ALL);
        assert!(Rights::ALL.includes(Rights::NONE) && !Rights::from_bits(1).includes(Rights::from_bits(3)));
        assert_eq!("read, seed".parse::<Rights>().expect("rights").to_string(), "read,seed");
        assert_eq!("read,write".parse::<Rights>(), Err(UnknownRight("write".to_owned())));
    }
}
