//! Join tokens and API tokens, which operators copy from one machine to another.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::enroll::enroll_message;
use crate::random;
use distd_core::role::Role;

const JOIN_PREFIX: &str = "distd-join-v1";
const API_PREFIX: &str = "distd-api-v1";

/// Reason why a string is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The string is the other kind of token, or no token.
    #[error("this is not a {expected} token: it must start with \"{expected}.\"; copy the whole line")]
    Prefix {
        /// Prefix of the expected kind of token.
        expected: &'static str,
    },
    /// A part is missing, of the wrong length or not base64url.
    #[error("the token is damaged or cut off; copy the whole line, without spaces or line breaks")]
    Shape,
}

/// Permission to enrol in one realm: `distd-join-v1.FINGERPRINT.SEED`.
///
/// The fingerprint (SHA-256 of the realm CA certificate) makes enrolment safe on a hostile network:
/// the node knows the only CA to trust before it contacts any peer. The seed is an Ed25519 private
/// key. The origin keeps only the public half, so a request signed with the seed can pass through
/// untrusted relays.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    ca_fingerprint: [u8; 32],
    seed: [u8; 32],
}

impl JoinToken {
    /// Generates a random token for the realm with this CA fingerprint.
    pub fn generate(ca_fingerprint: [u8; 32]) -> Self {
        Self { ca_fingerprint, seed: random::bytes() }
    }

    /// SHA-256 of the realm CA certificate's DER.
    pub fn ca_fingerprint(&self) -> &[u8; 32] {
        &self.ca_fingerprint
    }

    /// Public half of the key, which the origin stores and by which it finds the token.
    pub fn public_key(&self) -> [u8; 32] {
        self.key_pair().public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// Signs an enrolment: the certificate request together with its role and label.
    pub fn sign_csr(&self, role: Role, label: &str, csr_der: &[u8]) -> Vec<u8> {
        self.key_pair().sign(&enroll_message(role, label, csr_der)).as_ref().to_vec()
    }

    /// Returns the token as text. The text is secret: print it once, to the person it is for.
    pub fn to_secret_string(&self) -> String {
        format_token(JOIN_PREFIX, &self.ca_fingerprint, &self.seed)
    }

    fn key_pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.seed).expect("any 32 bytes are an Ed25519 seed")
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(s: &str) -> Result<Self, TokenError> {
        let (ca_fingerprint, seed) = parse_token(JOIN_PREFIX, s)?;
        Ok(Self { ca_fingerprint, seed })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(ca {}, secret redacted)", hex::encode(&self.ca_fingerprint[..6]))
    }
}

/// Permission to use the HTTP API: `distd-api-v1.FINGERPRINT.SECRET`.
///
/// The secret is 256 random bits and cannot be guessed, so the origin stores its plain SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken {
    ca_fingerprint: [u8; 32],
    secret: [u8; 32],
}

impl ApiToken {
    /// Generates a random token for the realm with this CA fingerprint.
    pub fn generate(ca_fingerprint: [u8; 32]) -> Self {
        Self { ca_fingerprint, secret: random::bytes() }
    }

    /// SHA-256 of the realm CA certificate's DER, by which the client recognises the origin.
    pub fn ca_fingerprint(&self) -> &[u8; 32] {
        &self.ca_fingerprint
    }

    /// SHA-256 of the secret, which the origin stores and by which it finds the token.
    pub fn secret_hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }

    /// Returns the token as text, for the `Authorization: Bearer` header. The text is secret.
    pub fn to_secret_string(&self) -> String {
        format_token(API_PREFIX, &self.ca_fingerprint, &self.secret)
    }
}

impl FromStr for ApiToken {
    type Err = TokenError;

    fn from_str(s: &str) -> Result<Self, TokenError> {
        let (ca_fingerprint, secret) = parse_token(API_PREFIX, s)?;
        Ok(Self { ca_fingerprint, secret })
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiToken(ca {}, secret redacted)", hex::encode(&self.ca_fingerprint[..6]))
    }
}

/// SHA-256, used for fingerprints and token hashes. Chunks use BLAKE3.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn format_token(prefix: &str, fingerprint: &[u8; 32], secret: &[u8; 32]) -> String {
    format!("{prefix}.{}.{}", URL_SAFE_NO_PAD.encode(fingerprint), URL_SAFE_NO_PAD.encode(secret))
}

fn parse_token(prefix: &'static str, s: &str) -> Result<([u8; 32], [u8; 32]), TokenError> {
    let mut parts = s.trim().split('.');
    if parts.next() != Some(prefix) {
        return Err(TokenError::Prefix { expected: prefix });
    }
    let mut part = || {
        let text = parts.next().filter(|t| t.len() == 43).ok_or(TokenError::Shape)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Shape)?;
        <[u8; 32]>::try_from(bytes).map_err(|_| TokenError::Shape)
    };
    let out = (part()?, part()?);
    if parts.next().is_some() {
        return Err(TokenError::Shape);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_a_round_trip_as_text_and_hide_their_secret() {
        let join = JoinToken::generate([7; 32]);
        let text = join.to_secret_string();
        assert_eq!(text.parse::<JoinToken>().as_ref(), Ok(&join));
        assert_eq!(format!("{text}\n").parse::<JoinToken>().as_ref(), Ok(&join), "a copied line break");
        let secret = text.rsplit('.').next().expect("three parts");
        assert!(!format!("{join:?}").contains(secret));

        let api = ApiToken::generate([9; 32]);
        let text = api.to_secret_string();
        assert_eq!(text.parse::<ApiToken>().as_ref(), Ok(&api));
        assert!(!format!("{api:?}").contains(text.rsplit('.').next().expect("three parts")));
    }

    #[test]
    fn a_cut_foreign_or_padded_token_is_refused() {
        let text = JoinToken::generate([7; 32]).to_secret_string();
        assert!(matches!(text.parse::<ApiToken>(), Err(TokenError::Prefix { .. })));
        for n in 0..text.len() {
            assert!(text[..n].parse::<JoinToken>().is_err(), "{n} bytes");
        }
        assert_eq!(format!("{text}=").parse::<JoinToken>(), Err(TokenError::Shape));
        assert_eq!(format!("{text}.x").parse::<JoinToken>(), Err(TokenError::Shape));
    }
}
