//! Codec 1: zstd with the base as prefix; with an empty base a solid segment.
//!
//! The payload is one zstd frame (RFC 8878) with neither content size nor checksum: the manifest
//! has the length, and a hash of each target chunk. The base is what zstd calls a prefix: raw
//! content that precedes the target in the window, so a match may reach into it. The window covers
//! base and target.
//!
//! Decoding writes straight into the target. It needs no separate window buffer and ignores the
//! window size in the frame.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound};

use super::PatchError;

/// Smallest window that zstd accepts, log2 of its bytes.
const WINDOW_LOG_MIN: u32 = 10;
/// Smallest hash table, log2 of its entries: a smaller table saves nothing.
const HASH_LOG_MIN: u32 = 12;
/// Largest chain table, log2 of its entries: enough for the largest base and target, which need a
/// window of 25 bits.
const CHAIN_LOG_MAX: u32 = 26;

pub(super) fn encode(base: &[u8], target: &[u8], level: i32) -> Option<Vec<u8>> {
    let mut context = CCtx::create();
    let window = (base.len() + target.len()).max(2);
    let window_log = (usize::BITS - (window - 1).leading_zeros()).max(WINDOW_LOG_MIN);
    let parameters = [
        CParameter::CompressionLevel(level.clamp(1, 22)),
        CParameter::WindowLog(window_log),
        // The tables of the levels are made for a stream and forget all but the last MiB of a long
        // base. These tables have a place for every position of the window (a binary tree takes
        // two).
        CParameter::HashLog((window_log - 1).max(HASH_LOG_MIN)),
        CParameter::ChainLog((window_log + 1).min(CHAIN_LOG_MAX)),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ];
    for parameter in parameters {
        context.set_parameter(parameter).ok()?;
    }
    if !base.is_empty() {
        context.ref_prefix(base).ok()?;
    }
    let mut payload = vec![0; compress_bound(target.len())];
    let written = context.compress2(&mut payload[..], target).ok()?;
    payload.truncate(written);
    payload.shrink_to_fit();
    Some(payload)
}

pub(super) fn decode(base: &[u8], payload: &[u8], target_len: usize) -> Result<Vec<u8>, PatchError> {
    let mut context = DCtx::create();
    if !base.is_empty() {
        context
            .ref_prefix(base)
            .map_err(|_| PatchError::Damaged("zstd does not accept the base as prefix"))?;
    }
    let mut target = vec![0; target_len];
    let written = context
        .decompress(&mut target[..], payload)
        .map_err(|_| PatchError::Damaged("not a zstd frame, or one that unpacks to more than expected"))?;
    if written == target_len { Ok(target) } else { Err(PatchError::Length(target_len)) }
}
