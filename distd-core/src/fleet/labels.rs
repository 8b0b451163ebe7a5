//! Labels of nodes: keys with values, kept apart by their source.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::bounds::{LABEL_KEY_MAX, LABEL_VALUE_MAX};

/// Key that no label can have: in selectors it names the role of the node's certificate.
pub const ROLE_KEY: &str = "role";

/// Prefix that no key of a label can have: in selectors it marks the key of a fact.
pub(super) const FACT_PREFIX: &str = "fact.";

/// Reason why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The key is empty or too long; its length in bytes.
    #[error("the key of a label has 1 to {LABEL_KEY_MAX} characters, this one has {0}: choose another key")]
    KeyLength(usize),
    /// A character that no key has at this place.
    #[error(
        "a key cannot have {character:?} there, as {key:?} has: use a-z, 0-9 and . _ - /, and begin with a letter or digit"
    )]
    KeyCharacter {
        /// The key.
        key: String,
        /// The character.
        character: char,
    },
    /// The value is too long; its length in bytes.
    #[error(
        "the value of a label has at most {LABEL_VALUE_MAX} characters, this one has {0}: choose another value"
    )]
    ValueLength(usize),
    /// A character that no value has.
    #[error("a value cannot have {character:?}, as {value:?} has: use letters, digits and . _ - / : + @")]
    ValueCharacter {
        /// The value.
        value: String,
        /// The character.
        character: char,
    },
    /// A key that has a meaning of its own in selectors.
    #[error(
        "{0:?} cannot be the key of a label, since selectors use it for something else: choose another key"
    )]
    Reserved(String),
    /// A text without `=`.
    #[error("{0:?} is no label: write KEY=VALUE")]
    NoValue(String),
}

/// Key of a label or fact: 1 to 63 characters of `a-z 0-9 . _ - /`, the first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelKey(String);

impl LabelKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a key may have the character, `first` or later.
    pub(super) fn allows(character: char, first: bool) -> bool {
        matches!(character, 'a'..='z' | '0'..='9') || !first && matches!(character, '.' | '_' | '-' | '/')
    }
}

impl FromStr for LabelKey {
    type Err = LabelError;

    fn from_str(s: &str) -> Result<Self, LabelError> {
        if !(1..=LABEL_KEY_MAX).contains(&s.len()) {
            return Err(LabelError::KeyLength(s.len()));
        }
        match s.chars().enumerate().find(|(at, c)| !Self::allows(*c, *at == 0)) {
            Some((_, character)) => Err(LabelError::KeyCharacter { key: s.to_owned(), character }),
            None => Ok(Self(s.to_owned())),
        }
    }
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Value of a label or fact: at most 63 characters of letters, digits and `. _ - / : + @`. It may
/// be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelValue(String);

impl LabelValue {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a value may have the character.
    pub(super) fn allows(character: char) -> bool {
        character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-' | '/' | ':' | '+' | '@')
    }
}

impl FromStr for LabelValue {
    type Err = LabelError;

    fn from_str(s: &str) -> Result<Self, LabelError> {
        if s.len() > LABEL_VALUE_MAX {
            return Err(LabelError::ValueLength(s.len()));
        }
        match s.chars().find(|c| !Self::allows(*c)) {
            Some(character) => Err(LabelError::ValueCharacter { value: s.to_owned(), character }),
            None => Ok(Self(s.to_owned())),
        }
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Labels of one source, by key.
pub type LabelMap = BTreeMap<LabelKey, LabelValue>;

/// Checks a key that a token or an operator gives a node.
///
/// # Errors
/// [`LabelError`], also for the keys that selectors use for something else: `role` and `fact.…`.
pub fn assignable_key(key: &str) -> Result<LabelKey, LabelError> {
    let parsed: LabelKey = key.parse()?;
    if key == ROLE_KEY || key.starts_with(FACT_PREFIX) {
        return Err(LabelError::Reserved(key.to_owned()));
    }
    Ok(parsed)
}

/// Reads a label, written `KEY=VALUE`, that a token or an operator gives a node.
///
/// # Errors
/// [`LabelError`].
pub fn assignable_label(text: &str) -> Result<(LabelKey, LabelValue), LabelError> {
    let (key, value) = text.split_once('=').ok_or_else(|| LabelError::NoValue(text.to_owned()))?;
    Ok((assignable_key(key)?, value.parse()?))
}

/// Labels of one node, by source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Labels of the join token with which the node enrolled last.
    pub token: LabelMap,
    /// Labels that an operator gave the node.
    pub operator: LabelMap,
    /// Facts that the node reported. They decide no rights.
    pub facts: LabelMap,
}

impl Labels {
    /// The value of a label: an operator's, else the token's. Facts are no labels.
    pub fn get(&self, key: &LabelKey) -> Option<&LabelValue> {
        self.operator.get(key).or_else(|| self.token.get(key))
    }

    /// The labels that hold, by key: an operator's replaces a token's of the same key.
    pub fn effective(&self) -> BTreeMap<&LabelKey, &LabelValue> {
        self.token.iter().chain(&self.operator).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_made_of_few_characters() {
        for good in ["a", "site", "7", "acme.com/rack_2-b", &"x".repeat(63)] {
            assert!(good.parse::<LabelKey>().is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "Site", "a b", "a=b", "ä", "a!", "a,b", &"x".repeat(64)] {
            assert!(bad.parse::<LabelKey>().is_err(), "{bad}");
        }
        for good in ["", "12", "Store-7", "10.0.0.1:80", "a@b+c/d_e", &"x".repeat(63)] {
            assert!(good.parse::<LabelValue>().is_ok(), "{good}");
        }
        for bad in ["a b", "a=b", "a,b", "(a", "a)", "!", "Köln", "\n", &"x".repeat(64)] {
            assert!(bad.parse::<LabelValue>().is_err(), "{bad}");
        }
        let error = "Site".parse::<LabelKey>().expect_err("upper case").to_string();
        assert!(error.contains("'S'") && error.contains("a-z"), "{error}");
    }

    #[test]
    fn reserved_keys_are_not_given_to_nodes() {
        assert!(matches!(assignable_label("role=relay"), Err(LabelError::Reserved(_))));
        assert!(matches!(assignable_label("fact.os=1"), Err(LabelError::Reserved(_))));
        assert!(matches!(assignable_label("site"), Err(LabelError::NoValue(_))));
        let (key, value) = assignable_label("site=12").expect("a label");
        assert_eq!((key.as_str(), value.as_str()), ("site", "12"));
        assert!(assignable_label("roles=a").is_ok() && assignable_label("site=").is_ok());
    }

    #[test]
    fn an_operators_label_replaces_a_tokens() {
        let map = |labels: &[&str]| labels.iter().map(|l| assignable_label(l).expect("a label")).collect();
        let labels = Labels {
            token: map(&["site=1", "kind=till"]),
            operator: map(&["site=2"]),
            facts: map(&["os=3", "site=4"]),
        };
        let get = |key: &str| labels.get(&key.parse().expect("a key")).map(LabelValue::as_str);
        assert_eq!((get("site"), get("kind"), get("os")), (Some("2"), Some("till"), None));
        let all: Vec<_> = labels.effective().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(all, ["kind=till", "site=2"]);
    }
}
