//! Hash trees of an artifact, with their data.

use std::io;
use std::ops::Range;

use super::hash::Hasher;
use super::{Recipe, compute};
use crate::cut::verity::{HashArea, HashFormat, Source, TreePart, locate};
use crate::cut::{Joined, ReadAt, Volume, volumes};
use crate::patch::view::Same;

/// Data blocks that are compared with a tree before the whole data is read, the first and the last
/// among them. A few are not enough: both ends of a file system may be zeros, as a blank partition
/// is.
const SAMPLES: u64 = 128;

/// Hash tree of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    format: HashFormat,
    /// Offset of the data in the artifact.
    data: u64,
    /// Offset of the tree in the artifact.
    tree: u64,
    /// Parts, in an order in which each part's source is there.
    pub parts: Vec<TreePart>,
}

impl Tree {
    /// Returns the range of a part in the artifact, bytes.
    pub fn target(&self, part: &TreePart) -> Range<u64> {
        self.tree + part.range.start..self.tree + part.range.end
    }

    /// Returns the range in the artifact of the bytes from which a part is computed: data, or parts
    /// before it.
    pub fn source(&self, part: &TreePart) -> Range<u64> {
        let Source { level, first, blocks } = &part.source;
        let (start, bits) = match level {
            Some(level) => (self.tree + level.start, self.format.hash_bits),
            None => (self.data, self.format.data_bits),
        };
        start + (first << bits)..start + ((first + blocks) << bits)
    }

    /// Returns the recipe of a part, for a base that has `skip` bytes in front of the
    /// [source](Self::source).
    pub fn recipe(&self, part: &TreePart, skip: u64) -> Recipe {
        let mut format = self.format.clone();
        if part.source.level.is_some() {
            format.data_bits = format.hash_bits;
        }
        Recipe { format, levels: part.levels, skip, blocks: part.source.blocks }
    }
}

/// Finds the hash trees of an artifact whose data is in it too: behind the data in one volume, or
/// each in a volume of its own. The data counts as found when sampled blocks have the hashes that
/// the tree says.
///
/// # Errors
/// Any error from reading the artifact.
pub fn find<R: ReadAt + ?Sized>(artifact: &R) -> io::Result<Vec<Tree>> {
    let volumes = volumes(artifact);
    let mut trees = Vec::new();
    // Each tree is computed from all of its data. Trees of the same data are of no use.
    let mut left = artifact.len();
    for volume in &volumes {
        let Some(area) = locate(&volume.reader(artifact)) else { continue };
        let candidates: Vec<&Volume> = if area.start > 0 {
            vec![volume]
        } else {
            volumes.iter().filter(|other| *other != volume).collect()
        };
        let tree = volume.range.start + area.tree;
        for candidate in candidates {
            let room = if area.start > 0 { area.start } else { candidate.range.end - candidate.range.start };
            let data = candidate.range.start;
            if area.data_bytes() <= room.min(left) && samples_match(artifact, &area, data, tree)? {
                left -= area.data_bytes();
                let parts = area.format.parts(area.blocks);
                trees.push(Tree { format: area.format.clone(), data, tree, parts });
                break;
            }
        }
    }
    Ok(trees)
}

/// Returns whether the hashes of [`SAMPLES`] data blocks are in the tree.
fn samples_match<R: ReadAt + ?Sized>(
    artifact: &R,
    area: &HashArea,
    data: u64,
    tree: u64,
) -> io::Result<bool> {
    let format = &area.format;
    let levels = format.levels(area.blocks);
    // The hash of a single block is the root, which is not stored.
    let Some((_, above)) = levels.split_first() else { return Ok(false) };
    let lowest = tree + (above.iter().sum::<u64>() << format.hash_bits);
    let hasher = Hasher::new(format);
    let mut block = vec![0; 1 << format.data_bits];
    for sample in 0..SAMPLES.min(area.blocks) {
        let index = (area.blocks - 1) * sample / (SAMPLES.min(area.blocks) - 1);
        artifact.read_exact_at(&mut block, data + (index << format.data_bits))?;
        let (mut hash, mut stored) = (Vec::new(), vec![0; format.algorithm.bytes()]);
        hasher.append(&block, &mut hash);
        artifact.read_exact_at(&mut stored, lowest + hasher.offset(index))?;
        if !hash.starts_with(&stored) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether [`compute`], which devices run as well, makes exactly the bytes of `target` from
/// the bytes of `base`.
pub fn is_computed<R: ReadAt + ?Sized>(
    artifact: &R,
    recipe: &[u8],
    base: &[Range<u64>],
    target: Range<u64>,
) -> bool {
    let len = target.end - target.start;
    let targets = [target];
    let (base, target) = (Joined { artifact, parts: base }, Joined { artifact, parts: &targets });
    let mut same = Same::of(&target);
    compute(recipe, &mut io::BufReader::with_capacity(1 << 20, Sequential(&base, 0)), &mut same)
        .is_ok_and(|written| written == len)
}

/// Reads an artifact from its start.
struct Sequential<'a, R: ?Sized>(&'a R, u64);

impl<R: ReadAt + ?Sized> io::Read for Sequential<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = buf.len().min(usize::try_from(self.0.len() - self.1).unwrap_or(usize::MAX));
        self.0.read_exact_at(&mut buf[..count], self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}
