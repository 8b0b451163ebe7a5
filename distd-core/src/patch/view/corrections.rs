//! Deflate streams that fit into one piece: text and corrections.
//!
//! Crate `preflate-rs` says how a stream differs from what a zlib of some settings would have made of its text.

use std::panic::{AssertUnwindSafe, catch_unwind};

use preflate_rs::{PreflateConfig, preflate_whole_deflate_stream, recreate_whole_deflate_stream};

/// Longest search of a chain: zlib's and gzip's level 9.
const CHAIN_MAX: u32 = 4096;

/// How streams are taken apart that unpack to at most `plain_max` bytes.
pub(super) fn config(plain_max: usize) -> PreflateConfig {
    PreflateConfig { max_chain_length: CHAIN_MAX, plain_text_limit: plain_max, verify_compression: false }
}

/// `None` when `work` panics, as that crate does on some damaged input. What it worked on is not used any more then.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Corrections that make `packed`, one whole stream, of its text. `None` where there are none.
pub(super) fn of(packed: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let (found, _) = caught(|| preflate_whole_deflate_stream(packed, &config(text.len() + 1)))?.ok()?;
    (apply(text, &found.corrections)? == packed).then_some(found.corrections)
}

/// The stream of a text. `None` for corrections that do not fit.
pub(super) fn apply(text: &[u8], corrections: &[u8]) -> Option<Vec<u8>> {
    caught(|| recreate_whole_deflate_stream(text, corrections))?.ok()
}
