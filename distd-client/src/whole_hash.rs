//! BLAKE3 of a whole artifact, computed on all cores.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use distd_core::ArtifactHash;

use crate::threads::on_all_cores;

/// Largest read, in bytes. A power of two of BLAKE3's chunks, so that pieces are subtrees.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Approximate number of subtrees of a long artifact: enough to share among cores, and few enough
/// to keep 32 bytes for each.
const SUBTREES: u64 = 4096;

/// Reader of one hashing thread.
pub(crate) trait Pieces {
    /// Returns the `len` bytes at `offset`. Both are multiples of [`PIECE_BYTES`], except the last
    /// length.
    ///
    /// # Errors
    /// As reading reports.
    fn piece(&mut self, offset: u64, len: usize) -> io::Result<&[u8]>;
}

/// Returns the BLAKE3 of `total` bytes, as `b3sum` prints it. Each thread makes its own reader with
/// `pieces` and hashes what it read while the data is in its cache: handing pieces to other threads
/// costs more than hashing them.
///
/// # Errors
/// As reading reports.
pub(crate) fn whole_hash<P: Pieces>(total: u64, pieces: impl Fn() -> P + Sync) -> io::Result<ArtifactHash> {
    let span = (total / SUBTREES).next_power_of_two().max(PIECE_BYTES as u64);
    if total <= span {
        let mut hasher = Hasher::new();
        update(&mut hasher, &mut pieces(), 0..total)?;
        return Ok(hasher.finalize().into());
    }
    let count = total.div_ceil(span);
    let values = Mutex::new(vec![ChainingValue::default(); count as usize]);
    let next = AtomicU64::new(0);
    let work = || {
        let mut pieces = pieces();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return Ok(());
            }
            let mut hasher = Hasher::new();
            hasher.set_input_offset(at * span);
            update(&mut hasher, &mut pieces, at * span..total.min((at + 1) * span))?;
            let value = hasher.finalize_non_root();
            values.lock().expect("no holder panics")[at as usize] = value;
        }
    };
    on_all_cores(work, || next.store(count, Ordering::Relaxed))?;
    let values = values.into_inner().expect("no holder panics");
    let (left, right) = values.split_at(left_of(values.len()));
    Ok(merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).into())
}

fn update(hasher: &mut Hasher, pieces: &mut impl Pieces, mut range: std::ops::Range<u64>) -> io::Result<()> {
    while !range.is_empty() {
        let len = usize::try_from(range.end - range.start).map_or(PIECE_BYTES, |len| len.min(PIECE_BYTES));
        hasher.update(pieces.piece(range.start, len)?);
        range.start += len as u64;
    }
    Ok(())
}

/// Returns how many of `count` subtrees (2 or more) are under the left child: the largest power of
/// two below `count`.
fn left_of(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn merged(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = values.split_at(left_of(values.len()));
    merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Of<'b>(&'b [u8]);

    impl Pieces for Of<'_> {
        fn piece(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
            assert!(offset.is_multiple_of(PIECE_BYTES as u64) && len <= PIECE_BYTES);
            self.0.get(offset as usize..offset as usize + len).ok_or(io::ErrorKind::UnexpectedEof.into())
        }
    }

    #[test]
    fn the_hash_equals_blake3_for_any_length() {
        let bytes: Vec<u8> = (0..9 * PIECE_BYTES as u32).map(|n| (n ^ n >> 11) as u8).collect();
        for pieces in [0, 1, 2, 3, 4, 5, 7, 8] {
            for more in [0, 1, 1023, 1024, 1025, PIECE_BYTES - 1] {
                let bytes = &bytes[..pieces * PIECE_BYTES + more];
                let hash = whole_hash(bytes.len() as u64, || Of(bytes)).expect("memory");
                assert_eq!(hash, blake3::hash(bytes).into(), "{pieces} pieces and {more} bytes");
            }
        }
    }

    /// Source of endless zeros.
    struct Zeros(Vec<u8>);

    impl Pieces for Zeros {
        fn piece(&mut self, _: u64, len: usize) -> io::Result<&[u8]> {
            Ok(&self.0[..len])
        }
    }

    #[test]
    fn a_subtree_may_be_longer_than_a_piece() {
        let (total, zeros) = ((SUBTREES + 3) * PIECE_BYTES as u64 + 5, vec![0; PIECE_BYTES]);
        let hash = whole_hash(total, || Zeros(zeros.clone())).expect("memory");
        let mut expected = Hasher::new();
        for at in (0..total).step_by(PIECE_BYTES) {
            expected.update(&zeros[..PIECE_BYTES.min((total - at) as usize)]);
        }
        assert_eq!(hash, expected.finalize().into());
    }

    #[test]
    fn a_read_error_is_returned() {
        let bytes = vec![1; 2 * PIECE_BYTES];
        for total in [2 * PIECE_BYTES as u64 + 1, 9 * PIECE_BYTES as u64] {
            assert!(whole_hash(total, || Of(&bytes)).is_err());
        }
    }
}
