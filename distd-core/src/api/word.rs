//! [`Word`]: a word of an answer, such as a state or a kind.

use std::fmt;

use serde::de::IntoDeserializer;
use serde::de::value::Error;
use serde::{Deserialize, Serialize};

/// A word of an answer: one of `T`, or one that this build does not know.
///
/// A later origin may have words that an older client does not know. The client keeps and shows
/// such a word as it came, instead of refusing the whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word<T> {
    /// A word that this build knows.
    Known(T),
    /// Another word, verbatim.
    Other(String),
}

impl<'de, T: Deserialize<'de>> Word<T> {
    /// Reads a word, as it stands in SQL and JSON.
    pub fn from_text(text: &'de str) -> Self {
        let known = T::deserialize(IntoDeserializer::<Error>::into_deserializer(text));
        known.map_or_else(|_| Self::Other(text.to_owned()), Self::Known)
    }
}

impl<T> Word<T> {
    /// The word, if this build knows it.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(word) => Some(word),
            Self::Other(_) => None,
        }
    }
}

impl<T> From<T> for Word<T> {
    fn from(word: T) -> Self {
        Self::Known(word)
    }
}

/// The empty word, for a field that older origins do not send.
impl<T> Default for Word<T> {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(word) if word == other)
    }
}

/// Writes the word as in JSON, without the quotes.
impl<T: Serialize> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use crate::api::{
        GrantState, JoinTokenState, PatchSetState, ReleaseKind, RolloutStage, Scope, TokenState,
    };
    use crate::fleet::Right;
    use crate::role::Role;

    use super::*;

    /// Checks that `text` is read as `word`, and that `word` is written and shown as `text`.
    fn stands_for<T>(text: &str, word: T)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
    {
        let json = format!("{text:?}");
        let read: Word<T> = serde_json::from_str(&json).expect("a word");
        assert_eq!(read, Word::from_text(text));
        assert_eq!(read, word);
        assert_eq!(serde_json::to_string(&Word::from(word)).expect("JSON"), json);
        assert_eq!(read.to_string(), text);
    }

    #[test]
    fn words_are_these_texts() {
        stands_for("file", ReleaseKind::File);
        stands_for("tree", ReleaseKind::Tree);
        stands_for("relay", Role::Relay);
        stands_for("leaf", Role::Leaf);
        stands_for("valid", TokenState::Valid);
        stands_for("expired", TokenState::Expired);
        stands_for("revoked", TokenState::Revoked);
        stands_for("valid", JoinTokenState::Valid);
        stands_for("used up", JoinTokenState::UsedUp);
        stands_for("expired", JoinTokenState::Expired);
        stands_for("revoked", JoinTokenState::Revoked);
        stands_for("queued", PatchSetState::Queued);
        stands_for("building", PatchSetState::Building);
        stands_for("ready", PatchSetState::Ready);
        stands_for("failed", PatchSetState::Failed);
        stands_for("valid", GrantState::Valid);
        stands_for("expired", GrantState::Expired);
        for right in Right::ALL {
            stands_for(right.as_str(), right);
        }
        for scope in Scope::ALL {
            stands_for(scope.as_str(), scope);
        }
        for state in PatchSetState::ALL {
            stands_for(state.as_str(), state);
        }
        for stage in RolloutStage::ALL {
            stands_for(stage.as_str(), stage);
        }
    }

    #[test]
    fn a_word_of_a_later_origin_is_kept_and_shown_as_it_came() {
        let word: Word<ReleaseKind> = serde_json::from_str(r#""bundle of 2""#).expect("a word");
        assert_eq!(word, Word::Other("bundle of 2".to_owned()));
        assert_ne!(word, ReleaseKind::File);
        assert_eq!(word.to_string(), "bundle of 2");
        assert_eq!(serde_json::to_string(&word).expect("JSON"), r#""bundle of 2""#);
        assert!(serde_json::from_str::<Word<ReleaseKind>>("7").is_err());
    }
}
