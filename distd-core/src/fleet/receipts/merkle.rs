//! The Merkle tree of the log of receipts: RFC 6962, section 2.1, with SHA-256. Proofs are made
//! from the hashes of complete subtrees, and checked as RFC 9162, section 2.1, says.

use std::fmt;

use sha2::{Digest, Sha256};

/// Largest number of entries of a log. It bounds a proof: 2^40 entries are 12 years of a thousand a
/// second several times over.
pub const LOG_SIZE_MAX: u64 = 1 << 40;

/// Most hashes in a proof; a consistency proof has at most one more than the tree has levels.
pub const PROOF_HASHES_MAX: usize = 48;

/// Hash of an entry or of a subtree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeHash(pub [u8; 32]);

/// Text that is no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash of the log has 64 hexadecimal digits")]
pub struct TreeHashError;

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeHash({self})")
    }
}

impl std::str::FromStr for TreeHash {
    type Err = TreeHashError;

    fn from_str(s: &str) -> Result<Self, TreeHashError> {
        let mut hash = [0; 32];
        hex::decode_to_slice(s, &mut hash).map_err(|_| TreeHashError)?;
        Ok(Self(hash))
    }
}

/// A complete subtree: `level` 0 is an entry, and the subtree has the entries
/// `place << level .. (place + 1) << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subtree {
    /// Level, from 0.
    pub level: u32,
    /// Place among the subtrees of the level, from 0.
    pub place: u64,
}

/// Source of the hashes of complete subtrees.
pub type Hashes<'a> = dyn FnMut(Subtree) -> TreeHash + 'a;

/// Hash of an entry.
pub fn leaf_hash(entry: &[u8]) -> TreeHash {
    TreeHash(Sha256::new_with_prefix([0]).chain_update(entry).finalize().into())
}

/// Hash of a subtree with these two halves.
pub fn node_hash(left: &TreeHash, right: &TreeHash) -> TreeHash {
    TreeHash(Sha256::new_with_prefix([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// Hash of the tree without entries.
pub fn empty_root() -> TreeHash {
    TreeHash(Sha256::digest([]).into())
}

/// Subtrees above level 0 that become complete with the entry `number`, the lowest first.
pub fn completed(number: u64) -> impl Iterator<Item = Subtree> {
    (1..=number.wrapping_add(1).trailing_zeros().min(63))
        .map(move |level| Subtree { level, place: number >> level })
}

/// Largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (63 - (count - 1).leading_zeros())
}

/// Hash of the entries `start..end`, as the tree has them.
fn range_hash(start: u64, end: u64, hashes: &mut Hashes<'_>) -> TreeHash {
    let count = end - start;
    if count.is_power_of_two() {
        let level = count.trailing_zeros();
        return hashes(Subtree { level, place: start >> level });
    }
    let middle = start + split(count);
    let left = range_hash(start, middle, hashes);
    node_hash(&left, &range_hash(middle, end, hashes))
}

/// Root of the tree of the first `size` entries.
pub fn root(size: u64, hashes: &mut Hashes<'_>) -> TreeHash {
    if size == 0 { empty_root() } else { range_hash(0, size, hashes) }
}

/// Proof that the entry `number` is in the tree of the first `size` entries; `number < size`.
pub fn inclusion(number: u64, size: u64, hashes: &mut Hashes<'_>) -> Vec<TreeHash> {
    let (mut start, mut end, mut proof) = (0, size, Vec::new());
    while end - start > 1 {
        let middle = start + split(end - start);
        if number < middle {
            proof.push(range_hash(middle, end, hashes));
            end = middle;
        } else {
            proof.push(range_hash(start, middle, hashes));
            start = middle;
        }
    }
    proof.reverse();
    proof
}

/// Proof that the tree of the first `old` entries is the beginning of that of the first `new`;
/// empty when `old` is 0 or `new`, or more than `new`.
pub fn consistency(old: u64, new: u64, hashes: &mut Hashes<'_>) -> Vec<TreeHash> {
    if old == 0 || old >= new {
        return Vec::new();
    }
    let (mut start, mut end, mut proof, mut whole) = (0, new, Vec::new(), true);
    while old != end {
        let middle = start + split(end - start);
        if old <= middle {
            proof.push(range_hash(middle, end, hashes));
            end = middle;
        } else {
            proof.push(range_hash(start, middle, hashes));
            (start, whole) = (middle, false);
        }
    }
    if !whole {
        proof.push(range_hash(start, end, hashes));
    }
    proof.reverse();
    proof
}

/// Complete subtrees whose hashes `make` asks for.
pub fn subtrees_for<T>(make: impl FnOnce(&mut Hashes<'_>) -> T) -> Vec<Subtree> {
    let mut asked = Vec::new();
    make(&mut |subtree| {
        asked.push(subtree);
        TreeHash([0; 32])
    });
    asked
}

/// Whether `proof` shows that an entry with the hash `leaf` has the number `number` in the tree of
/// `size` entries with this root (RFC 9162, section 2.1.3.2).
pub fn includes(leaf: TreeHash, number: u64, size: u64, root: &TreeHash, proof: &[TreeHash]) -> bool {
    if number >= size || size > LOG_SIZE_MAX {
        return false;
    }
    let (mut at, mut last, mut hash) = (number, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `old` entries is the beginning of the tree of `new`
/// entries, each with its root (RFC 9162, section 2.1.4.2).
pub fn extends(
    (old, old_root): (u64, &TreeHash),
    (new, new_root): (u64, &TreeHash),
    proof: &[TreeHash],
) -> bool {
    if old > new || new > LOG_SIZE_MAX {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    let mut hashes = proof.iter();
    // A complete subtree is its own first hash.
    let first = if old.is_power_of_two() { Some(old_root) } else { hashes.next() };
    let Some(first) = first else { return false };
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut of_old, mut of_new) = (*first, *first);
    for hash in hashes {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            of_old = node_hash(hash, &of_old);
            of_new = node_hash(hash, &of_new);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            of_new = node_hash(&of_new, hash);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && of_old == *old_root && of_new == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of the tests of the Certificate Transparency project, which RFC 6962 describes.
    const ENTRIES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

    /// Roots of the first 1 to 8 of these entries.
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// The hash of a range by the words of RFC 6962, section 2.1.
    fn naive(entries: &[Vec<u8>]) -> TreeHash {
        match entries {
            [] => empty_root(),
            [one] => leaf_hash(one),
            _ => {
                let k = (0..).map(|n| 1 << n).take_while(|k| *k < entries.len()).last().expect("two");
                node_hash(&naive(&entries[..k]), &naive(&entries[k..]))
            }
        }
    }

    fn of(entries: &[Vec<u8>]) -> impl FnMut(Subtree) -> TreeHash + '_ {
        |at: Subtree| {
            let count = 1 << at.level;
            let start = at.place as usize * count;
            naive(&entries[start..start + count])
        }
    }

    fn numbered(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|n| n.to_string().into_bytes()).collect()
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let entries = ENTRIES.map(|text| hex::decode(text).expect("hexadecimal")).to_vec();
        for (size, expected) in (1..).zip(ROOTS) {
            assert_eq!(root(size, &mut of(&entries)).to_string(), expected, "{size}");
        }
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(root(0, &mut of(&entries)).to_string(), empty);
        // Proofs of the same tests, by number and size, and by both sizes.
        let texts = |proof: Vec<TreeHash>| proof.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts(inclusion(5, 8, &mut of(&entries))),
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
        assert_eq!(
            texts(consistency(6, 8, &mut of(&entries))),
            [
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
    }

    #[test]
    fn every_proof_of_every_size_holds_and_no_changed_one_does() {
        let entries = numbered(64);
        for size in 1..=64_u64 {
            let whole = naive(&entries[..size as usize]);
            assert_eq!(root(size, &mut of(&entries)), whole);
            for number in 0..size {
                let leaf = leaf_hash(&entries[number as usize]);
                let proof = inclusion(number, size, &mut of(&entries));
                assert!(proof.len() <= PROOF_HASHES_MAX);
                assert!(includes(leaf, number, size, &whole, &proof), "{number} of {size}");
                assert!(!includes(leaf_hash(b"x"), number, size, &whole, &proof));
                assert!(!includes(leaf, number + 1, size, &whole, &proof));
                let longer = [&proof[..], &[leaf]].concat();
                assert!(!includes(leaf, number, size, &whole, &longer));
            }
            for old in 0..=size {
                let before = naive(&entries[..old as usize]);
                let proof = consistency(old, size, &mut of(&entries));
                assert!(extends((old, &before), (size, &whole), &proof), "{old} to {size}");
                // An entry of the old tree was changed, or taken out.
                if old > 0 {
                    let mut changed = entries[..old as usize].to_vec();
                    changed[old as usize / 2] = b"x".to_vec();
                    assert!(!extends((old, &naive(&changed)), (size, &whole), &proof), "{old} to {size}");
                    let mut shorter = entries[..size as usize].to_vec();
                    shorter.remove(old as usize / 2);
                    if old < size {
                        let rebuilt = naive(&shorter);
                        let proof = consistency(old, size - 1, &mut of(&shorter));
                        assert!(!extends((old, &before), (size - 1, &rebuilt), &proof));
                    }
                }
                let longer = [&proof[..], &[whole]].concat();
                assert!(!extends((old, &before), (size, &whole), &longer), "{old} to {size}");
                assert!(!extends((size + 1, &whole), (size, &whole), &proof));
            }
        }
    }

    #[test]
    fn subtrees_that_entries_complete_are_all_that_proofs_need() {
        let mut known: Vec<Subtree> = Vec::new();
        for size in 1..=64_u64 {
            known.push(Subtree { level: 0, place: size - 1 });
            known.extend(completed(size - 1));
            for number in 0..size {
                let mut asked = subtrees_for(|hashes| inclusion(number, size, hashes));
                asked.extend(subtrees_for(|hashes| consistency(number, size, hashes)));
                asked.extend(subtrees_for(|hashes| root(size, hashes)));
                assert!(asked.iter().all(|subtree| known.contains(subtree)), "{size}");
            }
        }
        assert_eq!(known.len(), 64 + 63);
        assert_eq!(completed(7).map(|at| (at.level, at.place)).collect::<Vec<_>>(), [(1, 3), (2, 1), (3, 0)]);
    }

    #[test]
    fn the_longest_proof_is_below_two_kilobytes() {
        let mut zero = |_: Subtree| TreeHash([0; 32]);
        let longest = consistency((1 << 39) + 1, LOG_SIZE_MAX - 1, &mut zero).len();
        assert!((40..=PROOF_HASHES_MAX).contains(&longest), "{longest}");
        const { assert!(PROOF_HASHES_MAX * 32 <= 2000) };
    }

    proptest::proptest! {
        #[test]
        fn no_proof_makes_the_checks_panic(
            sizes: (u64, u64), hashes in proptest::collection::vec(proptest::array::uniform32(0_u8..), 0..50)
        ) {
            let proof: Vec<_> = hashes.into_iter().map(TreeHash).collect();
            let root = empty_root();
            let _ = includes(root, sizes.0, sizes.1, &root, &proof);
            let _ = extends((sizes.0, &root), (sizes.1, &root), &proof);
        }
    }
}
