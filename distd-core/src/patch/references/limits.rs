//! Bounds of the decoder's memory, by the length of the target. All of them are of the format.

/// Most segments of a target. The decoder keeps some 72 bytes of each.
pub(super) fn segments_max(target_len: usize) -> usize {
    (target_len / 64).clamp(4096, 1 << 18)
}

/// Most addresses, and most indices and addends of each kind, that are learned.
pub(super) struct Learned {
    pub(super) addresses: usize,
    pub(super) indices: usize,
}

impl Learned {
    pub(super) fn of(target_len: usize) -> Self {
        Self {
            addresses: (target_len / 128).clamp(4096, 1 << 18),
            indices: (target_len / 512).clamp(1024, 1 << 15),
        }
    }
}

/// Returns log2 of the slots that each model of literals has: a sixteenth of the target's bytes.
pub(super) fn table_bits(target_len: usize) -> u32 {
    (target_len >> 4).max(1).ilog2().clamp(12, 19)
}

/// Returns the memory of a decoder beside base, payload and target, bytes; an upper bound.
///
/// Segments and their map take at most 1.2 bytes for each byte of the target, what is learned 0.7,
/// and the models of literals 1.5. The largest bounds add up to less than 62 MiB.
pub(super) fn memory(target_len: u64) -> u64 {
    (2 << 20) + (target_len * 7 / 2).min(62 << 20)
}
