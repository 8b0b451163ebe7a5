//! Superblocks of hash trees, at the start of a volume or behind its file system.

use super::{Algorithm, BLOCK_BITS, HashArea, HashFormat, SALT_MAX};
use crate::bounds::ARTIFACT_BYTES_MAX;
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at, u64_at};

const SIGNATURE: &[u8; 8] = b"verity\0\0";

/// Bytes of a superblock.
const BYTES: usize = 512;

/// Steps to which a file system is padded before a superblock follows, bytes.
const STEPS: [u64; 4] = [512, 4096, 64 << 10, 1 << 20];

impl HashArea {
    /// Reads the superblock at `start`; `None` if there is none whose tree lies in the volume.
    fn read<R: ReadAt + ?Sized>(volume: &R, start: u64) -> Option<Self> {
        let mut raw = [0; BYTES];
        if start.checked_add(BYTES as u64)? > volume.len().min(ARTIFACT_BYTES_MAX) {
            return None;
        }
        volume.read_exact_at(&mut raw, start).ok()?;
        if !raw.starts_with(SIGNATURE) || u32_at(&raw, 8) != 1 || u32_at(&raw, 12) > 1 {
            return None;
        }
        let name = raw[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
        let bits = |at: usize| {
            let size = u32_at(&raw, at);
            let bits = u8::try_from(size.trailing_zeros()).ok()?;
            (size.is_power_of_two() && BLOCK_BITS.contains(&bits)).then_some(bits)
        };
        let salt = usize::from(u16_at(&raw, 80));
        let format = HashFormat {
            algorithm: Algorithm::of_name(name)?,
            salt_first: u32_at(&raw, 12) == 1,
            data_bits: bits(64)?,
            hash_bits: bits(68)?,
            salt: raw.get(88..88 + salt).filter(|_| salt <= SALT_MAX)?.to_vec(),
        };
        let blocks = u64_at(&raw, 72);
        if blocks == 0 || blocks > ARTIFACT_BYTES_MAX >> format.data_bits {
            return None;
        }
        let tree = (start + BYTES as u64).next_multiple_of(format.hash_block());
        let found = Self { start, tree, format, blocks };
        found.fits(volume.len()).then_some(found)
    }
}

/// Finds the superblock of the hash tree in a volume: at its start, or behind the file system that
/// the volume holds.
pub(super) fn locate<R: ReadAt + ?Sized>(volume: &R) -> Option<HashArea> {
    let behind = || {
        let end = file_system_end(volume)?;
        STEPS.iter().find_map(|step| HashArea::read(volume, end.checked_next_multiple_of(*step)?))
    };
    HashArea::read(volume, 0).or_else(behind)
}

/// Returns the length of the file system in a volume according to its superblock: EROFS, ext and
/// SquashFS.
fn file_system_end<R: ReadAt + ?Sized>(volume: &R) -> Option<u64> {
    let mut raw = [0; 1152];
    volume.read_exact_at(&mut raw, 0).ok()?;
    let blocks = |count: u32, bits: u32| (bits <= 16).then(|| u64::from(count) << bits);
    if raw.starts_with(b"hsqs") {
        return Some(u64_at(&raw, 40));
    }
    if u32_at(&raw, 1024) == 0xE0F5_E1E2 {
        return blocks(u32_at(&raw, 1024 + 36), u32::from(raw[1024 + 12]));
    }
    if raw[1024 + 56..1024 + 58] == [0x53, 0xEF] {
        return blocks(u32_at(&raw, 1024 + 4), u32_at(&raw, 1024 + 24).checked_add(10)?);
    }
    None
}
