//! Halt notice: a small statement that a rollout stands still, which travels between nodes while
//! the origin is away (docs/rollouts.md, "Halt notices").
//!
//! This module knows the bytes. The caller checks the signature, since the core has no
//! cryptography for it.

use bytes::Bytes;

use super::rollout::RolloutId;

/// Most bytes of a notice with its signature.
pub const HALT_BYTES_MAX: usize = BODY_BYTES + SIGNATURE_MAX;

/// Time after which a notice is not taken, kept or passed on any more, seconds: metadata that a
/// device holds from before the notice has expired by then, so the device begins nothing by it.
pub const HALT_SECONDS: u64 = 30 * 24 * 3600;

/// Bytes of a notice without its signature.
const BODY_BYTES: usize = 16 + 8 + 8;

/// Most bytes of an ECDSA P-256 signature in ASN.1.
const SIGNATURE_MAX: usize = 72;

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-halt-v1\0";

/// A notice that a rollout stands still. It names neither product nor channel: the id is random,
/// so the notice tells nothing to a node that does not hold the rollout's document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HaltNotice {
    /// The rollout.
    pub rollout: RolloutId,
    /// Counter of the channel's document that stopped the rollout. The notice is about documents
    /// with a lower counter; a device that holds this document or a later one obeys the document.
    pub counter: u64,
    /// Time at which the origin made the notice, unix seconds.
    pub made: u64,
}

/// Reason why bytes are no notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the halt notice is malformed")]
pub struct HaltMalformed;

/// A notice and its signature, as they travel: rollout, counter and time (u64 each, big-endian),
/// signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHalt {
    /// The notice.
    pub notice: HaltNotice,
    /// ECDSA P-256 signature with SHA-256, ASN.1, by the CA's key over [`halt_message`].
    pub signature: Bytes,
}

/// Returns the bytes that the CA's key signs for a notice.
pub fn halt_message(notice: &HaltNotice) -> Vec<u8> {
    [DOMAIN, &notice.body()].concat()
}

/// Whether a message that the CA's key is to sign is a [`halt_message`].
pub fn is_halt_message(message: &[u8]) -> bool {
    message.strip_prefix(DOMAIN).is_some_and(|body| HaltNotice::of_body(body).is_some())
}

impl HaltNotice {
    fn body(&self) -> Vec<u8> {
        [&self.rollout.0[..], &self.counter.to_be_bytes(), &self.made.to_be_bytes()].concat()
    }

    fn of_body(body: &[u8]) -> Option<Self> {
        let (rollout, rest) = body.split_first_chunk::<16>()?;
        let (counter, rest) = rest.split_first_chunk::<8>()?;
        let made = rest.try_into().ok()?;
        Some(Self {
            rollout: RolloutId(*rollout),
            counter: u64::from_be_bytes(*counter),
            made: u64::from_be_bytes(made),
        })
    }

    /// Whether the notice is too old at `now` (unix seconds) to matter. A clock that is behind
    /// makes no notice old.
    pub fn is_over(&self, now: u64) -> bool {
        self.made.saturating_add(HALT_SECONDS) < now
    }
}

impl SignedHalt {
    /// Encodes notice and signature.
    pub fn encode(&self) -> Bytes {
        [&self.notice.body()[..], &self.signature].concat().into()
    }

    /// Decodes bytes from the network or a file. The signature is not checked yet.
    ///
    /// # Errors
    /// [`HaltMalformed`].
    pub fn decode(bytes: &Bytes) -> Result<Self, HaltMalformed> {
        if bytes.len() <= BODY_BYTES || bytes.len() > HALT_BYTES_MAX {
            return Err(HaltMalformed);
        }
        let notice = HaltNotice::of_body(&bytes[..BODY_BYTES]).ok_or(HaltMalformed)?;
        Ok(Self { notice, signature: bytes.slice(BODY_BYTES..) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> HaltNotice {
        HaltNotice { rollout: RolloutId([7; 16]), counter: 258, made: 1_700_000_000 }
    }

    #[test]
    fn a_notice_has_these_bytes() {
        let signed = SignedHalt { notice: notice(), signature: vec![0xee; 72].into() };
        let bytes = signed.encode();
        assert_eq!(bytes.len(), 104, "at most; the page about the protocol says so");
        assert_eq!(bytes.len(), HALT_BYTES_MAX);
        let expected =
            format!("{}{}{}{}", "07".repeat(16), "0000000000000102", "000000006553f100", "ee".repeat(72));
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(SignedHalt::decode(&bytes), Ok(signed));
        for wrong in [&bytes[..31], &bytes[..32], &[&bytes[..], b"x"].concat()] {
            assert_eq!(SignedHalt::decode(&Bytes::copy_from_slice(wrong)), Err(HaltMalformed));
        }
    }

    #[test]
    fn the_signer_tells_the_message_from_others() {
        let message = halt_message(&notice());
        assert!(message.starts_with(b"distd-halt-v1\0") && is_halt_message(&message));
        for other in [&message[1..], &message[..message.len() - 1], &[&message[..], b"x"].concat()] {
            assert!(!is_halt_message(other));
        }
    }

    #[test]
    fn a_notice_ends_by_its_age_and_not_by_a_clock_that_is_behind() {
        assert!(!notice().is_over(0) && !notice().is_over(notice().made + HALT_SECONDS));
        assert!(notice().is_over(notice().made + HALT_SECONDS + 1));
        assert!(!HaltNotice { made: u64::MAX, ..notice() }.is_over(u64::MAX));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_notice_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Ok(signed) = SignedHalt::decode(&bytes) {
                proptest::prop_assert_eq!(signed.encode(), bytes);
            }
        }
    }
}
