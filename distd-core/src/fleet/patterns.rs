//! Patterns of names, in which `*` stands for any characters, and what a grant is for: a pattern of
//! products and one of channels.

use std::fmt;
use std::str::FromStr;

use crate::bounds::NAME_BYTES_MAX;
use crate::names::Name;

/// A text that no name can match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no pattern of names: write a name of at most {NAME_BYTES_MAX} bytes, with * for any characters"
)]
pub struct PatternError(pub String);

/// Pattern of names of products or channels: a name, in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern of all names.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the pattern `*`.
    pub fn is_all(&self) -> bool {
        self.0 == "*"
    }

    /// Whether the pattern matches the whole name.
    pub fn matches(&self, name: &Name) -> bool {
        matches(self.0.as_bytes(), name.as_str().as_bytes())
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-' | '*');
        if !(1..=NAME_BYTES_MAX).contains(&s.len()) || !s.chars().all(plain) {
            return Err(PatternError(s.to_owned()));
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Compares in time proportional to the product of both lengths: on a mismatch the last `*` takes
/// one byte more.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Releases that a grant is for, written `PRODUCT` or `PRODUCT:CHANNEL`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleasePattern {
    /// Pattern of products.
    pub product: NamePattern,
    /// Pattern of channels. With `None` also releases in no channel belong to the pattern.
    pub channel: Option<NamePattern>,
}

impl ReleasePattern {
    /// All releases of all products, also those in no channel.
    pub fn all() -> Self {
        Self { product: NamePattern::all(), channel: None }
    }

    /// Whether a release of `product` that is or was in these channels belongs to the pattern.
    pub fn covers<'a>(&self, product: &Name, channels: impl IntoIterator<Item = &'a Name>) -> bool {
        self.product.matches(product)
            && self
                .channel
                .as_ref()
                .is_none_or(|pattern| channels.into_iter().any(|name| pattern.matches(name)))
    }
}

impl FromStr for ReleasePattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        match s.split_once(':') {
            None => Ok(Self { product: s.parse()?, channel: None }),
            Some((product, channel)) => {
                Ok(Self { product: product.parse()?, channel: Some(channel.parse()?) })
            }
        }
    }
}

impl fmt::Display for ReleasePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.product)?;
        match &self.channel {
            Some(channel) => write!(f, ":{channel}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(s: &str) -> Name {
        s.parse().expect("a name")
    }

    #[test]
    fn patterns_match_whole_names() {
        let cases = [
            ("*", "os", true),
            ("os", "os", true),
            ("os", "os2", false),
            ("os", "xos", false),
            ("os-*", "os-a", true),
            ("os-*", "os-", true),
            ("os-*", "os", false),
            ("*-os", "a-os", true),
            ("*-os", "a-os-b", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("**", "x", true),
            ("*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, text, expected) in cases {
            let pattern: NamePattern = pattern.parse().expect("a pattern");
            assert_eq!(pattern.matches(&name(text)), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_that_no_name_can_match_is_refused() {
        for bad in ["", "a,b", "a b", "../x", "ö", "a:b", &"x".repeat(101)] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
        }
        for bad in ["", ":", "os:", ":stable", "os:a:b", "os@1"] {
            assert!(bad.parse::<ReleasePattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_without_a_channel_is_also_for_releases_in_no_channel() {
        let (stable, beta) = (name("stable"), name("beta"));
        let covers = |pattern: &str, product: &str, channels: &[&Name]| {
            let parsed: ReleasePattern = pattern.parse().expect("a pattern");
            assert_eq!(parsed.to_string(), pattern);
            parsed.covers(&name(product), channels.iter().copied())
        };
        assert!(covers("os:stable", "os", &[&beta, &stable]));
        assert!(!covers("os:stable", "os", &[&beta]));
        assert!(covers("os-*:*", "os-a", &[&beta]));
        assert!(!covers("os-*:*", "os-a", &[]));
        assert!(covers("os", "os", &[]) && covers("os", "os", &[&beta]));
        assert!(!covers("os", "os2", &[&stable]));
        assert!(ReleasePattern::all().covers(&name("any"), []));
    }

    /// The same comparison, by its definition.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                naive(rest, name) || name.split_first().is_some_and(|(_, name)| naive(pattern, name))
            }
            (Some((a, pattern)), Some((b, name))) => a == b && naive(pattern, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_defined(pattern in "[ab*]{1,8}", text in "[ab]{1,10}") {
            let parsed: NamePattern = pattern.parse().expect("a pattern");
            prop_assert_eq!(parsed.matches(&name(&text)), naive(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
