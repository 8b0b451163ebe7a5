//! Hash trees of dm-verity: where they lie, and their parts.
//!
//! A tree has levels: the hash of each data block is in a hash block of the lowest level, the hash
//! of each of these blocks in the level above, up to a level of one block. The highest level comes
//! first. Format: `veritysetup` of cryptsetup, and
//! <https://docs.kernel.org/admin-guide/device-mapper/verity.html>.
//!
//! A tree is a region of its own, or several if it is large, so that patches can compute it whole
//! ([`hash_tree`](crate::patch::hash_tree)).

mod bundle;
mod superblock;

use std::ops::{Range, RangeInclusive};

use super::{ReadAt, RegionKind, Regions, path_in_partition};

/// Name hint of a hash tree. No path of a file in a file system starts with a slash.
pub(crate) const HASH_TREE_NAME: &[u8] = b"/hash-tree";

/// Returns whether a name is that of a hash tree, in a partition or not.
pub(crate) fn is_hash_tree(name: &[u8]) -> bool {
    path_in_partition(name).unwrap_or(name) == HASH_TREE_NAME
}

/// Longest salt, bytes: the room that a superblock has.
pub(crate) const SALT_MAX: usize = 256;

/// Smallest and largest block size accepted, as powers of two. The kernel maps none above its page
/// size, which is at most 64 KiB.
pub(crate) const BLOCK_BITS: RangeInclusive<u8> = 9..=16;

/// Most bytes of data, or of a level, from which one part is computed. Half of the limit of a patch
/// ([`VIEW_BYTES_MAX`](crate::bounds::VIEW_BYTES_MAX)), because the base is whole chunks.
const SOURCE_BYTES_MAX: u64 = 512 << 20;

/// Most bytes of a part with several levels, which is computed in memory: the tree of 1 GiB of data
/// has 8.1 MiB with SHA-256, and patches of views take 12 MiB.
pub(crate) const LEVELS_BYTES_MAX: u64 = 12 << 20;

/// Hash algorithm. The numbers are part of recipes: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha1 = 1,
    /// The default of `veritysetup`.
    Sha256 = 2,
    Sha512 = 3,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    /// Returns the algorithm with a name in a superblock.
    fn of_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| {
            let known: &[u8] = match algorithm {
                Self::Sha1 => b"sha1",
                Self::Sha256 => b"sha256",
                Self::Sha512 => b"sha512",
            };
            name == known
        })
    }

    /// Length of a hash, bytes.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// Parameters of a hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HashFormat {
    pub(crate) algorithm: Algorithm,
    /// Whether the salt is hashed before the data, and each hash takes a power of two of bytes
    /// (type 1, what `veritysetup` makes). Otherwise behind, and without gaps (type 0, Chrome OS).
    pub(crate) salt_first: bool,
    /// Log2 of the size of data blocks.
    pub(crate) data_bits: u8,
    /// Log2 of the size of hash blocks.
    pub(crate) hash_bits: u8,
    pub(crate) salt: Vec<u8>,
}

impl HashFormat {
    pub(crate) fn hash_block(&self) -> u64 {
        1 << self.hash_bits
    }

    /// Log2 of the hashes in a block.
    pub(crate) fn per_block_bits(&self) -> u32 {
        (self.hash_block() / self.algorithm.bytes() as u64).ilog2()
    }

    /// Returns the number of hash blocks in each level over `blocks` blocks, from the lowest up.
    /// Empty for one data block, whose hash is the root.
    pub(crate) fn levels(&self, mut blocks: u64) -> Vec<u64> {
        let mut levels = Vec::new();
        while blocks > 1 {
            blocks = blocks.div_ceil(1 << self.per_block_bits());
            levels.push(blocks);
        }
        levels
    }

    /// Returns the length of the tree over `blocks` data blocks, bytes.
    pub(crate) fn tree_bytes(&self, blocks: u64) -> u64 {
        self.levels(blocks).iter().sum::<u64>() << self.hash_bits
    }

    /// Splits the tree over `blocks` data blocks into parts, each of which a patch can compute.
    /// They are in an order in which each part's source is there: the lowest level first.
    pub(crate) fn parts(&self, blocks: u64) -> Vec<TreePart> {
        let sizes = self.levels(blocks);
        let mut parts = Vec::new();
        let (mut source_blocks, mut source_bits) = (blocks, self.data_bits);
        for level in 0..sizes.len() {
            let above = sizes[level + 1..].iter().sum::<u64>() << self.hash_bits;
            let own = sizes[level] << self.hash_bits;
            let below =
                level.checked_sub(1).map(|below| above + own..above + own + (sizes[below] << self.hash_bits));
            if source_blocks << source_bits <= SOURCE_BYTES_MAX && above + own <= LEVELS_BYTES_MAX {
                let levels = (sizes.len() - level) as u8;
                let source = Source { level: below, first: 0, blocks: source_blocks };
                parts.push(TreePart { source, levels, range: 0..above + own });
                break;
            }
            let at_once = (SOURCE_BYTES_MAX >> source_bits >> self.per_block_bits()).max(1);
            let mut done = 0;
            while done < sizes[level] {
                let count = at_once.min(sizes[level] - done);
                let first = done << self.per_block_bits();
                let source_count = (count << self.per_block_bits()).min(source_blocks - first);
                let source = Source { level: below.clone(), first, blocks: source_count };
                let range = above + (done << self.hash_bits)..above + ((done + count) << self.hash_bits);
                parts.push(TreePart { source, levels: 1, range });
                done += count;
            }
            (source_blocks, source_bits) = (sizes[level], self.hash_bits);
        }
        parts
    }
}

/// Hash tree in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HashArea {
    /// Offset of the superblock, or of the tree where there is none, bytes. The data lies before it
    /// or in another volume.
    pub(crate) start: u64,
    /// Offset of the tree.
    pub(crate) tree: u64,
    pub(crate) format: HashFormat,
    /// Number of data blocks.
    pub(crate) blocks: u64,
}

impl HashArea {
    /// Length of the data, bytes.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.blocks << self.format.data_bits
    }

    /// Returns the ends of the tree's parts in the volume, ascending. The last one is the end of
    /// the tree.
    fn part_ends(&self) -> Vec<u64> {
        let parts = self.format.parts(self.blocks);
        let mut ends: Vec<u64> = parts.iter().map(|part| self.tree + part.range.end).collect();
        ends.sort_unstable();
        ends
    }

    /// Returns whether the tree lies in a volume of this length.
    fn fits(&self, len: u64) -> bool {
        self.tree.checked_add(self.format.tree_bytes(self.blocks)).is_some_and(|end| end <= len)
    }
}

/// Finds the hash tree in a volume: one with a superblock, or that of a bundle of RAUC.
pub(crate) fn locate<R: ReadAt + ?Sized>(volume: &R) -> Option<HashArea> {
    superblock::locate(volume).or_else(|| bundle::locate(volume))
}

/// Blocks from which a part is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Range of the level in the tree, bytes; `None` for the data.
    pub(crate) level: Option<Range<u64>>,
    /// First block of the level or of the data, and the number of blocks.
    pub(crate) first: u64,
    pub(crate) blocks: u64,
}

/// Part of a tree that one patch computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreePart {
    pub(crate) source: Source,
    /// Levels that are computed one above the other, all in the part.
    pub(crate) levels: u8,
    /// Range in the tree, bytes.
    pub(crate) range: Range<u64>,
}

/// Returns the regions of a volume with a hash tree, whose other regions are `inside`: the
/// superblock and the parts of the tree become regions of their own.
pub(super) fn with_tree(inside: &Regions, area: &HashArea, len: u64) -> Regions {
    let mut out = Regions::default();
    let copy = |out: &mut Regions, end: u64| {
        let done = out.total();
        for region in inside.all().iter().filter(|region| region.end() > done) {
            let to = region.end().min(end);
            out.push(to.saturating_sub(out.total()), region.kind, inside.name(region));
        }
    };
    copy(&mut out, area.start);
    out.push(area.tree - area.start, RegionKind::Metadata, None);
    for end in area.part_ends() {
        out.push(end - out.total(), RegionKind::Metadata, Some(HASH_TREE_NAME));
    }
    copy(&mut out, len);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(data_bits: u8, hash_bits: u8, algorithm: Algorithm) -> HashFormat {
        HashFormat { algorithm, salt_first: true, data_bits, hash_bits, salt: vec![7; 32] }
    }

    #[test]
    fn a_tree_has_the_levels_that_veritysetup_makes() {
        let format = format(12, 12, Algorithm::Sha256);
        for (blocks, levels) in
            [(1, vec![]), (2, vec![1]), (128, vec![1]), (129, vec![2, 1]), (16_385, vec![129, 2, 1])]
        {
            assert_eq!(format.levels(blocks), levels, "{blocks}");
        }
        assert_eq!(format.tree_bytes(16_385), 132 << 12);
    }

    #[test]
    fn parts_cover_a_tree_within_their_limits() {
        for (data_bits, hash_bits, algorithm) in [
            (12, 12, Algorithm::Sha256),
            (9, 9, Algorithm::Sha512),
            (16, 12, Algorithm::Sha1),
            (12, 16, Algorithm::Sha256),
        ] {
            let format = format(data_bits, hash_bits, algorithm);
            for blocks in [1, 2, 1000, 200_000, 5_000_000, 300_000_000] {
                let parts = format.parts(blocks);
                let mut ranges: Vec<_> = parts.iter().map(|part| part.range.clone()).collect();
                ranges.sort_by_key(|range| range.start);
                let mut at = 0;
                for range in ranges {
                    assert_eq!(range.start, at);
                    at = range.end;
                }
                assert_eq!(at, format.tree_bytes(blocks));
                let mut done: Vec<Range<u64>> = Vec::new();
                for part in &parts {
                    let bits = if part.source.level.is_some() { hash_bits } else { data_bits };
                    assert!(part.source.blocks << bits <= SOURCE_BYTES_MAX);
                    assert!(part.levels == 1 || part.range.end - part.range.start <= LEVELS_BYTES_MAX);
                    // The source of a part is the data, or was computed before.
                    if let Some(level) = &part.source.level {
                        let start = level.start + (part.source.first << hash_bits);
                        let source = start..start + (part.source.blocks << hash_bits);
                        let made = |at: &u64| done.iter().any(|range| range.contains(at));
                        assert!(made(&source.start) && made(&(source.end - 1)), "{blocks}");
                    }
                    done.push(part.range.clone());
                }
            }
        }
    }
}
