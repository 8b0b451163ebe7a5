//! Hash trees in bundles of RAUC in the format `verity`: a SquashFS, the tree without a superblock,
//! a CMS signature with the manifest in it, and the length of the signature.

use super::{Algorithm, HashArea, HashFormat, SALT_MAX};
use crate::cut::ReadAt;

/// Longest signature that RAUC accepts, bytes.
const SIGNATURE_MAX: u64 = 64 << 10;

/// Block size of data and hashes, as a power of two: RAUC uses no other.
const BLOCK_BITS: u8 = 12;

/// Line that starts a manifest's section with the tree's parameters.
const SECTION: &[u8] = b"[bundle]\n";

/// Finds the tree of a bundle. The manifest is read without a look at the signature: a wrong one
/// costs good cuts, and a tree that does not follow from its data is not computed.
pub(super) fn locate<R: ReadAt + ?Sized>(volume: &R) -> Option<HashArea> {
    let mut magic = [0; 4];
    volume.read_exact_at(&mut magic, 0).ok()?;
    if &magic != b"hsqs" {
        return None;
    }
    let mut len = [0; 8];
    let end = volume.len().checked_sub(8)?;
    volume.read_exact_at(&mut len, end).ok()?;
    let len = u64::from_be_bytes(len);
    let start = end.checked_sub(len).filter(|_| len <= SIGNATURE_MAX)?;
    let mut signature = vec![0; len as usize];
    volume.read_exact_at(&mut signature, start).ok()?;
    let at = signature.windows(SECTION.len()).position(|line| line == SECTION)?;
    let mut lines = signature[at + SECTION.len()..].split(|byte| *byte == b'\n');
    let (mut size, mut salt) = (None, None);
    for line in lines.by_ref().take_while(|line| !line.starts_with(b"[") && line.is_ascii()) {
        let line = std::str::from_utf8(line).ok()?;
        match line.split_once('=') {
            Some(("verity-size", value)) => size = value.parse::<u64>().ok(),
            Some(("verity-salt", value)) => salt = hex::decode(value).ok(),
            _ => {}
        }
    }
    let salt = salt.filter(|salt| salt.len() <= SALT_MAX)?;
    let (algorithm, data_bits, hash_bits) = (Algorithm::Sha256, BLOCK_BITS, BLOCK_BITS);
    let format = HashFormat { algorithm, salt_first: true, data_bits, hash_bits, salt };
    let tree = start.checked_sub(size?).filter(|tree| *tree > 0 && tree.is_multiple_of(1 << BLOCK_BITS))?;
    let blocks = tree >> BLOCK_BITS;
    (Some(format.tree_bytes(blocks)) == size).then_some(HashArea { start: tree, tree, format, blocks })
}
