//! Hash algorithms of dm-verity.

use sha1::{Digest as _, Sha1};
use sha2::{Digest as _, Sha256, Sha512};

use crate::cut::verity::{Algorithm, HashFormat};

#[derive(Clone)]
enum State {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(state) => state.update(bytes),
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    fn append_to(self, out: &mut Vec<u8>) {
        match self {
            Self::Sha1(state) => out.extend_from_slice(&state.finalize()[..]),
            Self::Sha256(state) => out.extend_from_slice(&state.finalize()[..]),
            Self::Sha512(state) => out.extend_from_slice(&state.finalize()[..]),
        }
    }
}

/// Hashes blocks into the slots of a hash block.
pub(super) struct Hasher<'f> {
    format: &'f HashFormat,
    /// State behind the salt, where the salt comes first.
    start: State,
    /// Bytes from one hash to the next in a hash block.
    slot: usize,
}

impl<'f> Hasher<'f> {
    pub(super) fn new(format: &'f HashFormat) -> Self {
        let mut start = State::new(format.algorithm);
        let bytes = format.algorithm.bytes();
        if format.salt_first {
            start.update(&format.salt);
        }
        let slot = if format.salt_first { bytes.next_power_of_two() } else { bytes };
        Self { format, start, slot }
    }

    /// Appends the hash of a block to `out`, and zeros up to the next hash.
    pub(super) fn append(&self, block: &[u8], out: &mut Vec<u8>) {
        let mut state = self.start.clone();
        state.update(block);
        if !self.format.salt_first {
            state.update(&self.format.salt);
        }
        let end = out.len() + self.slot;
        state.append_to(out);
        out.resize(end, 0);
    }

    /// Returns the offset of hash number `index` of a level in the level.
    pub(super) fn offset(&self, index: u64) -> u64 {
        let bits = self.format.per_block_bits();
        let within = index & ((1 << bits) - 1);
        ((index >> bits) << self.format.hash_bits) + within * self.slot as u64
    }
}
