//! Product, version and channel names, with one validator for origin, relays and devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bounds::NAME_BYTES_MAX;

/// Reason why a string is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The string is empty or longer than the bound; its length in bytes.
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes, this one has {0}")]
    Length(usize),
    /// A character that is not allowed, or not as the first one.
    #[error(
        "a name is made of a-z A-Z 0-9 . _ + - and starts with a letter or digit; {0:?} is not allowed there"
    )]
    Character(char),
}

/// Name of a product, a version or a channel: `[A-Za-z0-9][A-Za-z0-9._+-]*`, at most 100 bytes.
///
/// The alphabet has no separator, no percent sign and no leading dot, so a name is the same string
/// in a path, a URL and a TUF target name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.is_empty() || s.len() > NAME_BYTES_MAX {
            return Err(NameError::Length(s.len()));
        }
        for (i, c) in s.chars().enumerate() {
            let allowed = c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '.' | '_' | '+' | '-'));
            if !allowed {
                return Err(NameError::Character(c));
            }
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A release as a device asks for it: by version (`PRODUCT@VERSION`) or by channel
/// (`PRODUCT:CHANNEL`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `PRODUCT@VERSION`.
    Release {
        /// The product.
        product: Name,
        /// Its version.
        version: Name,
    },
    /// `PRODUCT:CHANNEL`.
    Channel {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
    },
}

/// Reason why a string names neither a release nor a channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// The string has neither `@` nor `:`.
    #[error("write PRODUCT@VERSION or PRODUCT:CHANNEL")]
    Shape,
    /// One part of the string is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Wanted {
    /// Returns the product.
    pub fn product(&self) -> &Name {
        match self {
            Self::Release { product, .. } | Self::Channel { product, .. } => product,
        }
    }

    /// Returns the name of the TUF target with the answer: `releases/P/V` or `channels/P/C`
    /// (docs/formats.md, "TUF targets").
    pub fn target_name(&self) -> String {
        match self {
            Self::Release { product, version } => release_target(product, version),
            Self::Channel { product, channel } => channel_target(product, channel),
        }
    }
}

impl Wanted {
    /// Returns the release or channel of a TUF target name; `None` for any other target.
    pub fn of_target(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once('/')?;
        let (product, name) = rest.split_once('/')?;
        let (product, name) = (product.parse().ok()?, name.parse().ok()?);
        match kind {
            "releases" => Some(Self::Release { product, version: name }),
            "channels" => Some(Self::Channel { product, channel: name }),
            _ => None,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { product, version } => write!(f, "{product}@{version}"),
            Self::Channel { product, channel } => write!(f, "{product}:{channel}"),
        }
    }
}

impl FromStr for Wanted {
    type Err = WantedError;

    fn from_str(s: &str) -> Result<Self, WantedError> {
        if let Some((product, version)) = s.split_once('@') {
            Ok(Self::Release { product: product.parse()?, version: version.parse()? })
        } else if let Some((product, channel)) = s.split_once(':') {
            Ok(Self::Channel { product: product.parse()?, channel: channel.parse()? })
        } else {
            Err(WantedError::Shape)
        }
    }
}

/// Returns the TUF target name of a release.
pub fn release_target(product: &Name, version: &Name) -> String {
    format!("releases/{product}/{version}")
}

/// Returns the TUF target name of a channel document.
pub fn channel_target(product: &Name, channel: &Name) -> String {
    format!("channels/{product}/{channel}")
}

/// Returns the TUF target name of the list of a product's patch sets.
pub fn patches_target(product: &Name) -> String {
    format!("patches/{product}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "-flag", ".hidden", "a b", "a%2f", "é", "a\0b", "a\\b"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(101).parse::<Name>().is_err());
        for good in ["a", "os-image", "12.1+deb12u3", "A_b"] {
            assert!(good.parse::<Name>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_release_and_a_channel_are_told_apart() {
        assert_eq!("os@1.2".parse::<Wanted>().expect("release").target_name(), "releases/os/1.2");
        assert_eq!("os:stable".parse::<Wanted>().expect("channel").target_name(), "channels/os/stable");
        assert_eq!("os".parse::<Wanted>(), Err(WantedError::Shape));
        for text in ["os@1.2", "os:stable"] {
            let wanted: Wanted = text.parse().expect("a release or channel");
            assert_eq!(wanted.to_string(), text);
            assert_eq!(Wanted::of_target(&wanted.target_name()), Some(wanted));
        }
        for other in ["patches/os", "releases/os", "channels/os/../x", "releases/os/1/2"] {
            assert_eq!(Wanted::of_target(other), None);
        }
    }
}
