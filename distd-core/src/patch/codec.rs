//! Patch codecs: numbers, bounds and errors.

use super::references::{self, Layout};
use super::{prefix, suffix};
use crate::bounds::{PATCH_BASE_BYTES_MAX, PATCH_PAYLOAD_BYTES_MAX, PATCH_TARGET_BYTES_MAX};

/// Method by which a payload rebuilds its target. The numbers are part of every format that names a
/// codec: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PatchMethod {
    /// One zstd frame with the base as prefix; without a base, a *solid segment* (module `prefix`).
    Zstd = 1,
    /// Suffix-array difference, its streams packed with zstd (module `suffix`).
    Suffix = 2,
    /// Suffix-array difference with references of executables predicted, coded by adaptive models
    /// (module `references`).
    References = 3,
}

impl PatchMethod {
    /// Every codec, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Suffix, Self::References];

    /// Stable number of the codec in formats.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the codec with this number; `None` if this build does not know it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.number() == number)
    }
}

/// Effort of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Level of everything packed with zstd, `1..=22`; other values are clamped.
    pub level: i32,
}

impl Default for Effort {
    /// Level 19: the highest level whose memory stays below ten times the base.
    fn default() -> Self {
        Self { level: 19 }
    }
}

/// Error that keeps a payload from rebuilding its target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The base, target or payload is longer than [`bounds`](crate::bounds) allows; nothing was
    /// allocated.
    #[error("{what} of {bytes} bytes is above the limit of {max}")]
    TooLong {
        /// Name of the part that is too long.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// Its limit in bytes.
        max: usize,
    },
    /// The payload is not of the codec's format, or does not fit the base.
    #[error("payload is damaged: {0}")]
    Damaged(&'static str),
    /// The payload is sound but rebuilds a target of another length.
    #[error("payload does not rebuild the expected {0} bytes")]
    Length(usize),
}

fn bound(what: &'static str, bytes: usize, max: usize) -> Result<(), PatchError> {
    if bytes <= max { Ok(()) } else { Err(PatchError::TooLong { what, bytes, max }) }
}

/// Returns a payload that makes [`decode`] return `target` when given `base`. `None` if no payload
/// is within the limits; the caller then splits the target or sends chunks.
///
/// At level 19 this takes about 0.3 s per MiB of base and target, [`PatchMethod::Suffix`] a quarter
/// of that, and up to 300 MB of memory for the largest base. [`PatchMethod::References`] has no
/// levels; base and target that are ELF files from their first byte on have their addresses.
pub fn encode(codec: PatchMethod, base: &[u8], target: &[u8], effort: Effort) -> Option<Vec<u8>> {
    bound("base", base.len(), PATCH_BASE_BYTES_MAX).ok()?;
    bound("target", target.len(), PATCH_TARGET_BYTES_MAX).ok()?;
    let payload = match codec {
        PatchMethod::Zstd => prefix::encode(base, target, effort.level),
        PatchMethod::Suffix => suffix::encode(base, target, effort.level),
        PatchMethod::References => {
            let layouts = [base, target].map(|bytes| Layout::of(references::extents(bytes, 0), bytes.len()));
            return encode_references(base, target, [&layouts[0], &layouts[1]], usize::MAX);
        }
    }?;
    (payload.len() <= PATCH_PAYLOAD_BYTES_MAX).then_some(payload)
}

/// Returns a payload of [`PatchMethod::References`] for a base and target with these addresses, as
/// [`encode`] does; `None` also if more than `extra_max` bytes resemble nothing in the base.
pub(super) fn encode_references(
    base: &[u8],
    target: &[u8],
    layouts: [&Layout; 2],
    extra_max: usize,
) -> Option<Vec<u8>> {
    bound("base", base.len(), PATCH_BASE_BYTES_MAX).ok()?;
    bound("target", target.len(), PATCH_TARGET_BYTES_MAX).ok()?;
    let payload = references::encode(base, target, layouts, extra_max)?;
    (payload.len() <= PATCH_PAYLOAD_BYTES_MAX).then_some(payload)
}

/// Rebuilds the target, exactly `target_len` bytes; the caller knows that length from the signed
/// manifest.
///
/// The result is *not* verified: the caller hashes each target chunk. Any payload, however hostile,
/// ends in that many bytes or an error, within `base + target + 16 MiB` of memory.
///
/// # Errors
/// [`PatchError`]; lengths are checked before anything is allocated.
pub fn decode(
    codec: PatchMethod,
    base: &[u8],
    payload: &[u8],
    target_len: usize,
) -> Result<Vec<u8>, PatchError> {
    bound("base", base.len(), PATCH_BASE_BYTES_MAX)?;
    bound("target", target_len, PATCH_TARGET_BYTES_MAX)?;
    bound("payload", payload.len(), PATCH_PAYLOAD_BYTES_MAX)?;
    match codec {
        PatchMethod::Zstd => prefix::decode(base, payload, target_len),
        PatchMethod::Suffix => suffix::decode(base, payload, target_len),
        PatchMethod::References => {
            let mut target = Vec::with_capacity(target_len);
            let mut sink = |bytes: &[u8]| {
                target.extend_from_slice(bytes);
                Ok(())
            };
            let decoded = references::decode(base, payload, target_len, &mut sink);
            decoded.map_err(|_| PatchError::Length(target_len))??;
            Ok(target)
        }
    }
}
