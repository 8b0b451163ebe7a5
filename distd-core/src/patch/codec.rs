//! The codecs under one roof: numbers, bounds and errors.

use super::{prefix, suffix};
use crate::limits::{PATCH_BASE_BYTES_MAX, PATCH_PAYLOAD_BYTES_MAX, PATCH_TARGET_BYTES_MAX};

/// How a payload rebuilds its target. The numbers are part of every format that names a codec: never
/// reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// One zstd frame with the base as prefix; without a base a *solid segment* (module `prefix`).
    Zstd = 1,
    /// Suffix-array difference, its streams packed with zstd (module `suffix`).
    Suffix = 2,
}

impl Codec {
    /// Every codec, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Zstd, Self::Suffix];

    /// The stable number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The codec of a number; `None` for one this build does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.number() == number)
    }
}

/// How hard the encoder tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// zstd level of everything packed with zstd, `1..=22`; others are clamped.
    pub level: i32,
}

impl Default for Effort {
    /// Level 19: the last one whose memory stays below ten times the base.
    fn default() -> Self {
        Self { level: 19 }
    }
}

/// Why no target comes out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// More base, target or payload than [`limits`](crate::limits) allows; nothing was allocated.
    #[error("{what} of {bytes} bytes is above the limit of {max}")]
    TooLong {
        /// Which of the three.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The payload is not of the codec's format, or does not fit the base.
    #[error("payload is damaged: {0}")]
    Damaged(&'static str),
    /// The payload is sound and rebuilds another length.
    #[error("payload rebuilds another length than the {0} bytes wanted")]
    Length(usize),
}

fn bound(what: &'static str, bytes: usize, max: usize) -> Result<(), PatchError> {
    if bytes <= max { Ok(()) } else { Err(PatchError::TooLong { what, bytes, max }) }
}

/// Payload that makes [`decode`] return `target` when given `base`. `None` when there is none within the
/// limits, so that a caller splits the target or sends chunks.
///
/// At level 19 about 0.3 s per MiB of base and target, [`Codec::Suffix`] a quarter of that; up to 300 MB of memory for the
/// largest base.
pub fn encode(codec: Codec, base: &[u8], target: &[u8], effort: Effort) -> Option<Vec<u8>> {
    bound("base", base.len(), PATCH_BASE_BYTES_MAX).ok()?;
    bound("target", target.len(), PATCH_TARGET_BYTES_MAX).ok()?;
    let payload = match codec {
        Codec::Zstd => prefix::encode(base, target, effort.level),
        Codec::Suffix => suffix::encode(base, target, effort.level),
    }?;
    (payload.len() <= PATCH_PAYLOAD_BYTES_MAX).then_some(payload)
}

/// The target, exactly `target_len` bytes, which the caller knows from the signed manifest.
///
/// The result is *not* verified: the caller hashes each target chunk. Any payload, however hostile, ends in
/// these bytes or an error, within `base + target + 12 MiB` of memory.
///
/// # Errors
/// [`PatchError`]; lengths are checked before anything is allocated.
pub fn decode(codec: Codec, base: &[u8], payload: &[u8], target_len: usize) -> Result<Vec<u8>, PatchError> {
    bound("base", base.len(), PATCH_BASE_BYTES_MAX)?;
    bound("target", target_len, PATCH_TARGET_BYTES_MAX)?;
    bound("payload", payload.len(), PATCH_PAYLOAD_BYTES_MAX)?;
    match codec {
        Codec::Zstd => prefix::decode(base, payload, target_len),
        Codec::Suffix => suffix::decode(base, payload, target_len),
    }
}
