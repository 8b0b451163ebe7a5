//! The question of a device whether it may begin a rollout now, and the check of the answer
//! (docs/rollouts.md, "Turns").

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use distd_core::NodeId;
use distd_core::fleet::receipts::node_of_key;
use distd_core::fleet::rollout::{NONCE_BYTES, RolloutId, TurnAnswer, turn_message};
use serde::{Deserialize, Serialize};

use super::identity::IdentityError;
use super::report::ReportSigner;
use super::seal::{SealError, verify_by_ca};
use super::tuf::wire::{Answer, Query, WireError};
use crate::random;

/// Name of the turn in an answer to a metadata question: the signature of the realm's CA.
const FILE: &str = "turn";

/// Name of the file by which an origin says when the device asks again: seconds as text.
const LATER: &str = "turn-later";

/// Shortest and longest time after which a device asks again, seconds.
const WAIT: std::ops::RangeInclusive<u64> = 5..=3600;

/// Domain separation: the device's key signs these bytes before its question.
const ASK_DOMAIN: &[u8] = b"distd-turn-ask-v1\0";

/// Question for a turn, part of a [`Query`]. The device signs it, so that nobody takes turns for
/// others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnQuestion {
    /// Ed25519 key of the device.
    key: serde_bytes::ByteArray<32>,
    /// Signature of that key over [`ASK_DOMAIN`], the rollout, the number (u32) and the nonce.
    signature: serde_bytes::ByteArray<64>,
    rollout: serde_bytes::ByteArray<16>,
    /// Number of the attempt that the device wants to begin, from 1.
    pub number: u32,
    /// Random bytes, which the answer repeats under its signature.
    nonce: serde_bytes::ByteArray<NONCE_BYTES>,
}

/// Reason why an answer gives no turn and names no time.
#[derive(Debug, thiserror::Error)]
pub enum TurnRefused {
    /// The turn is not signed by the realm's CA for this question.
    #[error("the turn is not signed by the realm for this device and this question")]
    Seal(#[from] SealError),
    /// The answer is malformed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The origin knows no such question, or gives this device no turn in this rollout.
    #[error("the realm gives this device no turn in the rollout")]
    None,
}

fn ask_message(rollout: &RolloutId, number: u32, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    [ASK_DOMAIN, &rollout.0[..], &number.to_be_bytes(), &nonce[..]].concat()
}

impl TurnQuestion {
    /// Makes the question of the device whose key `signer` has.
    ///
    /// # Errors
    /// [`IdentityError::Request`] if the key cannot sign.
    pub fn new(signer: &ReportSigner, rollout: RolloutId, number: u32) -> Result<Self, IdentityError> {
        let nonce = random::bytes();
        let (key, signature) = signer.sign_message(&ask_message(&rollout, number, &nonce))?;
        Ok(Self {
            key: serde_bytes::ByteArray::new(key),
            signature: serde_bytes::ByteArray::new(signature),
            rollout: serde_bytes::ByteArray::new(rollout.0),
            number,
            nonce: serde_bytes::ByteArray::new(nonce),
        })
    }

    /// The device that signed the question; `None` when its signature is wrong.
    pub fn asker(&self) -> Option<NodeId> {
        let message = ask_message(&self.rollout(), self.number, &self.nonce);
        let key = UnparsedPublicKey::new(&ED25519, &self.key[..]);
        key.verify(&message, &self.signature[..]).ok().map(|()| self.node())
    }

    fn node(&self) -> NodeId {
        node_of_key(&self.key)
    }

    /// The rollout.
    pub fn rollout(&self) -> RolloutId {
        RolloutId(*self.rollout)
    }

    /// Encodes the question.
    pub fn encode(self) -> Bytes {
        Query { turn: Some(self), ..Query::default() }.encode().into()
    }

    /// Bytes that the CA's key signs to give the turn to `node`.
    pub fn message(&self, node: &NodeId) -> Vec<u8> {
        turn_message(node, &self.rollout(), &self.nonce)
    }

    /// Reads the answer to this question, whose turn the CA with this certificate signs.
    ///
    /// # Errors
    /// [`TurnRefused`].
    pub fn read(&self, answer: &[u8], ca_der: &[u8]) -> Result<TurnAnswer, TurnRefused> {
        let answer = Answer::decode(answer)?;
        let file =
            |wanted: &str| answer.files.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes);
        if let Some(signature) = file(FILE) {
            verify_by_ca(ca_der, &self.message(&self.node()), signature)?;
            return Ok(TurnAnswer::Begin);
        }
        // A wrong time delays this device alone.
        let seconds = file(LATER).and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
        seconds
            .map(|after| TurnAnswer::Wait(after.clamp(*WAIT.start(), *WAIT.end())))
            .ok_or(TurnRefused::None)
    }
}

/// Encodes the answer that gives a turn with the CA's signature, or names the seconds after which
/// the device asks again.
pub fn answer(turn: Result<Vec<u8>, u64>) -> Vec<u8> {
    let file = match turn {
        Ok(signature) => (FILE.to_owned(), signature.into()),
        Err(after) => (LATER.to_owned(), after.to_string().into()),
    };
    Answer { files: vec![file] }.encode()
}

/// Encodes the answer to a device that gets no turn.
pub fn no_answer() -> Vec<u8> {
    Answer::default().encode()
}
