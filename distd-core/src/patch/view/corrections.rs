//! Corrections for deflate streams that fit into one piece.
//!
//! The crate `preflate-rs` describes how a stream differs from the one that zlib with some settings
//! would have made of the same text.

use std::panic::{AssertUnwindSafe, catch_unwind};

use preflate_rs::{PreflateConfig, preflate_whole_deflate_stream, recreate_whole_deflate_stream};

/// Longest search of a match chain: that of level 9 in zlib and gzip.
const CHAIN_MAX: u32 = 4096;

/// Returns the settings to take apart streams that unpack to at most `plain_max` bytes.
pub(super) fn config(plain_max: usize) -> PreflateConfig {
    PreflateConfig { max_chain_length: CHAIN_MAX, plain_text_limit: plain_max, verify_compression: false }
}

/// Runs `work`; `None` if it panics, as `preflate-rs` does on some damaged input. The state that
/// `work` used must not be used after a panic.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Returns the corrections that make `packed`, one whole stream, from its text; `None` if there are
/// none.
pub(super) fn of(packed: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let (found, _) = caught(|| preflate_whole_deflate_stream(packed, &config(text.len() + 1)))?.ok()?;
    (apply(text, &found.corrections)? == packed).then_some(found.corrections)
}

/// Packs a text; `None` if the corrections do not fit it.
pub(super) fn apply(text: &[u8], corrections: &[u8]) -> Option<Vec<u8>> {
    caught(|| recreate_whole_deflate_stream(text, corrections))?.ok()
}
