//! Views of stored containers, an example: blocks of plain bytes, each behind its length.
//!
//! A container is `STORED\0\x01`, then blocks of one size, the last with the rest: u32 length
//! (big-endian), bytes. The recipe is the size (u32) and the length of the view (u64).

use std::io::{self, Read, Write};

use super::error::{NoView, RecipeError};
use super::format::{Packed, Unpacked, ViewFormat, ViewSink};
use crate::cut::ReadAt;

const MAGIC: &[u8] = b"STORED\0\x01";

/// Longest block, bytes: a device holds one in memory.
const BLOCK_MAX: usize = 1 << 20;

/// Stored containers. The view has the bytes of all blocks.
#[derive(Debug)]
pub(super) struct Stored;

impl ViewFormat for Stored {
    fn version(&self) -> u8 {
        5
    }

    fn name(&self) -> &'static str {
        "stored"
    }

    fn detects(&self, head: &[u8]) -> bool {
        head.starts_with(MAGIC)
    }

    fn unpack(&self, packed: &Packed<'_>, max: u64, mut view: &mut dyn ViewSink) -> io::Result<Unpacked> {
        let blocks = blocks(packed, max, &mut view)?;
        if blocks.end < packed.len() || blocks.plain == 0 {
            return Ok(Unpacked::without(NoView::NotWorth));
        }
        let recipe = [&[self.version()][..], &blocks.size.to_be_bytes(), &blocks.plain.to_be_bytes()];
        Ok(Unpacked::of_file(recipe.concat(), blocks.plain))
    }

    fn repack(&self, recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
        let [a, b, c, d, len @ ..] = recipe else { return Err(RecipeError::Damaged("it ends early")) };
        let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let len = len.try_into().map_err(|_| RecipeError::Damaged("it has another length"))?;
        let mut left = u64::from_be_bytes(len);
        if !(1..=BLOCK_MAX).contains(&size) {
            return Err(RecipeError::Damaged("a block is too long"));
        }
        packed.write_all(MAGIC)?;
        let (mut written, mut block) = (MAGIC.len() as u64, vec![0; size]);
        while left > 0 {
            let here = size.min(usize::try_from(left).unwrap_or(size));
            view.read_exact(&mut block[..here])?;
            packed.write_all(&(here as u32).to_be_bytes())?;
            packed.write_all(&block[..here])?;
            written += 4 + here as u64;
            left -= here as u64;
        }
        Ok(written)
    }

    fn unpack_base(
        &self,
        _recipe: &[u8],
        packed: &dyn ReadAt,
        max: u64,
        view: &mut dyn Write,
    ) -> Result<u64, RecipeError> {
        Ok(blocks(packed, max, view)?.plain)
    }
}

/// Blocks at the start of a container that a recipe can describe.
struct Blocks {
    size: u32,
    /// Bytes in all blocks.
    plain: u64,
    /// Offset behind the last block.
    end: u64,
}

/// Copies the bytes of the blocks, at most `max`.
fn blocks(file: &dyn ReadAt, max: u64, view: &mut dyn Write) -> io::Result<Blocks> {
    let mut found = Blocks { size: 0, plain: 0, end: MAGIC.len() as u64 };
    let mut magic = [0; MAGIC.len()];
    if file.len() < found.end {
        return Ok(found);
    }
    file.read_exact_at(&mut magic, 0)?;
    let mut is_last = magic != MAGIC;
    while !is_last && file.len() - found.end >= 4 {
        let mut len = [0; 4];
        file.read_exact_at(&mut len, found.end)?;
        let len = u32::from_be_bytes(len);
        if found.size == 0 {
            found.size = len;
        }
        is_last = len < found.size;
        let fits = len > 0 && len <= found.size && len as usize <= BLOCK_MAX;
        let end = found.end + 4 + u64::from(len);
        if !fits || end > file.len() || found.plain + u64::from(len) > max {
            break;
        }
        let mut block = vec![0; len as usize];
        file.read_exact_at(&mut block, found.end + 4)?;
        view.write_all(&block)?;
        found.plain += u64::from(len);
        found.end = end;
    }
    Ok(found)
}
