//! Computation of a part of a tree, with the same code on origin and device.

use std::io::{Read, Write};

use super::hash::Hasher;
use crate::bounds::{CHUNK_BYTES_MAX, VIEW_BYTES_MAX};
use crate::cut::verity::{Algorithm, BLOCK_BITS, HashFormat, LEVELS_BYTES_MAX, SALT_MAX};
use crate::patch::view::RecipeError;
use crate::proto::{put_varint, take_varint};

/// Version of recipes; the first byte of each.
const VERSION: u8 = 1;

/// Description of a part of a tree: the payload of a patch of
/// [`Method::HashTree`](crate::patch::Method::HashTree). Bytes: docs/formats.md, "Hash trees".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Format of the tree. The data blocks are those of the source, which may be hash blocks.
    pub(super) format: HashFormat,
    pub(super) levels: u8,
    /// Bytes of the base in front of the first block.
    pub(super) skip: u64,
    /// Number of blocks of the source.
    pub(super) blocks: u64,
}

impl Recipe {
    /// Encodes the recipe.
    pub fn encode(&self) -> Vec<u8> {
        let HashFormat { algorithm, salt_first, data_bits, hash_bits, salt } = &self.format;
        let mut out =
            vec![VERSION, *algorithm as u8, u8::from(*salt_first), *data_bits, *hash_bits, self.levels];
        put_varint(&mut out, self.skip);
        put_varint(&mut out, self.blocks);
        out.extend_from_slice(salt);
        out
    }

    /// Decodes a recipe.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`] for anything that [`encode`](Self::encode) does not make, or that
    /// would take more memory than a part may.
    pub fn decode(raw: &[u8]) -> Result<Self, RecipeError> {
        let damaged = RecipeError::Damaged;
        let (fixed, mut rest) = raw.split_first_chunk::<6>().ok_or(damaged("it ends early"))?;
        let [version, algorithm, order, data_bits, hash_bits, levels] = *fixed;
        if version != VERSION {
            return Err(damaged("unknown version"));
        }
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|known| *known as u8 == algorithm)
            .ok_or(damaged("unknown algorithm"))?;
        let skip = take_varint(&mut rest).ok_or(damaged("it ends early"))?;
        let blocks = take_varint(&mut rest).ok_or(damaged("it ends early"))?;
        let format =
            HashFormat { algorithm, salt_first: order == 1, data_bits, hash_bits, salt: rest.to_vec() };
        let sound = BLOCK_BITS.contains(&data_bits)
            && BLOCK_BITS.contains(&hash_bits)
            && order <= 1
            && rest.len() <= SALT_MAX
            && skip <= CHUNK_BYTES_MAX as u64
            && (1..=VIEW_BYTES_MAX >> data_bits).contains(&blocks);
        if !sound || levels == 0 {
            return Err(damaged("a number is out of bounds"));
        }
        let recipe = Self { format, levels, skip, blocks };
        // One level is written as it is computed.
        let fits = levels == 1
            || usize::from(levels) == recipe.format.levels(blocks).len()
                && recipe.format.tree_bytes(blocks) <= LEVELS_BYTES_MAX;
        if fits { Ok(recipe) } else { Err(damaged("it has too many levels")) }
    }
}

/// Computes a part of a tree: reads the base once, in order, and writes the part to `out`. Returns
/// the number of bytes written.
///
/// Memory: 12 MiB at most. Some 300 MB of data a second on a core without instructions for SHA.
///
/// # Errors
/// [`RecipeError`] for a damaged recipe, or a base that ends early.
pub fn compute(recipe: &[u8], base: &mut dyn Read, out: &mut dyn Write) -> Result<u64, RecipeError> {
    let recipe = Recipe::decode(recipe)?;
    let hasher = Hasher::new(&recipe.format);
    let skipped = std::io::copy(&mut Read::take(&mut *base, recipe.skip), &mut std::io::sink())?;
    if skipped < recipe.skip {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    if recipe.levels == 1 {
        let mut written = 0;
        lowest(&recipe, &hasher, base, |block| {
            written += block.len() as u64;
            Ok(out.write_all(block)?)
        })?;
        return Ok(written);
    }
    let lowest_blocks = recipe.format.levels(recipe.blocks)[0];
    // The bounds of the recipe hold for its levels together.
    let mut levels: Vec<Vec<u8>> =
        vec![Vec::with_capacity((lowest_blocks << recipe.format.hash_bits) as usize)];
    lowest(&recipe, &hasher, base, |block| {
        levels[0].extend_from_slice(block);
        Ok(())
    })?;
    while let Some(below) = levels.last().filter(|_| levels.len() < usize::from(recipe.levels)) {
        let mut level = Vec::new();
        let blocks: Vec<&[u8]> = below.chunks_exact(recipe.format.hash_block() as usize).collect();
        for group in blocks.chunks(1 << recipe.format.per_block_bits()) {
            let end = level.len() + recipe.format.hash_block() as usize;
            group.iter().for_each(|block| hasher.append(block, &mut level));
            level.resize(end, 0);
        }
        levels.push(level);
    }
    let mut written = 0;
    for level in levels.iter().rev() {
        out.write_all(level)?;
        written += level.len() as u64;
    }
    Ok(written)
}

/// Computes the level over the blocks of the base, and passes each hash block to `each`.
fn lowest(
    recipe: &Recipe,
    hasher: &Hasher<'_>,
    base: &mut dyn Read,
    mut each: impl FnMut(&[u8]) -> Result<(), RecipeError>,
) -> Result<(), RecipeError> {
    let mut block = vec![0; 1 << recipe.format.data_bits];
    let (mut out, mut left) = (Vec::new(), recipe.blocks);
    while left > 0 {
        let here = left.min(1 << recipe.format.per_block_bits());
        out.clear();
        for _ in 0..here {
            base.read_exact(&mut block)?;
            hasher.append(&block, &mut out);
        }
        out.resize(recipe.format.hash_block() as usize, 0);
        each(&out)?;
        left -= here;
    }
    Ok(())
}
