//! Tokens of a gateway's callers.
//!
//! A gateway keeps the SHA-256 of each token, so its state gives none away. A token is valid for
//! the whole gateway: which releases it offers is the gateway's own right.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::random;
use crate::trust::files::{self, FileError};
use crate::trust::token::sha256;

/// Name of the file with the tokens, in the state directory.
pub const TOKENS_FILE: &str = "gateway-tokens.json";

/// Prefix of a token's text.
const PREFIX: &str = "distd-gateway-v1.";

/// Most tokens of one gateway.
const TOKENS_MAX: usize = 1024;

/// Reasons why the tokens of a gateway could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file could not be read or written, or others may read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is damaged.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Reason.
        #[source]
        cause: serde_json::Error,
    },
    /// There are too many tokens.
    #[error("a gateway has at most {TOKENS_MAX} tokens")]
    TooMany,
    /// A token has the label already.
    #[error("there is a token {0:?} already")]
    Taken(String),
}

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayToken {
    /// Who uses it, in the operator's words.
    pub label: String,
    /// SHA-256 of its text, in hexadecimal digits.
    pub sha256: String,
}

/// The tokens of a gateway, read again when their file changes.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    tokens: Vec<GatewayToken>,
    /// Inode and time of the last change of the file that was read.
    read: Option<(u64, i64, i64)>,
}

impl Tokens {
    /// Reads the tokens in the state directory `data`; a missing file has none.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn open(data: &Path) -> Result<Self, TokensError> {
        let mut tokens = Self { path: data.join(TOKENS_FILE), tokens: Vec::new(), read: None };
        tokens.read_again()?;
        Ok(tokens)
    }

    /// Reads the file, if it has changed since.
    ///
    /// # Errors
    /// [`TokensError`]; the tokens are as before.
    pub fn read_again(&mut self) -> Result<(), TokensError> {
        let meta = std::fs::metadata(&self.path).ok();
        let written = meta.map(|meta| (meta.ino(), meta.ctime(), meta.ctime_nsec()));
        if written == self.read && self.read.is_some() {
            return Ok(());
        }
        self.tokens = match files::read_secret(&self.path)? {
            None => Vec::new(),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|cause| TokensError::Damaged { path: self.path.clone(), cause })?,
        };
        self.tokens.truncate(TOKENS_MAX);
        self.read = written;
        Ok(())
    }

    /// Returns the tokens as they are kept.
    pub fn list(&self) -> &[GatewayToken] {
        &self.tokens
    }

    /// Makes a token and keeps its hash. Returns its text, a secret that is nowhere else.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn make(&mut self, label: &str) -> Result<String, TokensError> {
        if self.tokens.len() >= TOKENS_MAX {
            return Err(TokensError::TooMany);
        }
        if self.tokens.iter().any(|token| token.label == label) {
            return Err(TokensError::Taken(label.to_owned()));
        }
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random::bytes::<32>()));
        let sha256 = hex::encode(sha256(text.as_bytes()));
        self.tokens.push(GatewayToken { label: label.to_owned(), sha256 });
        self.write()?;
        Ok(text)
    }

    /// Removes the token with this label; returns whether there was one.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn remove(&mut self, label: &str) -> Result<bool, TokensError> {
        let before = self.tokens.len();
        self.tokens.retain(|token| token.label != label);
        if self.tokens.len() == before {
            return Ok(false);
        }
        self.write()?;
        Ok(true)
    }

    fn write(&self) -> Result<(), TokensError> {
        let text = serde_json::to_vec_pretty(&self.tokens).expect("texts always encode");
        Ok(files::write_atomic(&self.path, &text, 0o600)?)
    }

    /// Whether a caller showed a token of this gateway. The hashes are compared, so the time that
    /// this takes says nothing about a secret.
    pub fn has(&self, shown: &str) -> bool {
        let hash = hex::encode(sha256(shown.as_bytes()));
        self.tokens.iter().any(|token| token.sha256 == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_valid_until_it_is_removed_also_by_another_process() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut here = Tokens::open(dir.path()).expect("no tokens");
        assert!(!here.has(""));
        let mut there = Tokens::open(dir.path()).expect("no tokens");
        let text = there.make("shop").expect("a token");
        assert!(there.has(&text) && !here.has(&text));
        assert!(matches!(there.make("shop"), Err(TokensError::Taken(_))));
        here.read_again().expect("reads");
        assert!(here.has(&text) && !here.has(&text[1..]));
        let kept = std::fs::read_to_string(dir.path().join(TOKENS_FILE)).expect("a file");
        assert!(!kept.contains(&text[PREFIX.len()..]), "the secret is not kept");
        assert!(there.remove("shop").expect("writes") && !there.remove("shop").expect("nothing to write"));
        here.read_again().expect("reads");
        assert!(!here.has(&text));
    }
}
