//! Conversion of old blocks to view and unpack recipe, at the origin.

use std::io::{self, SeekFrom, Write};

use super::map::{BlockMap, Content};
use super::steps::Steps;
use super::unpack::{Blocks, cost};
use super::{Head, VERSION};
use crate::cut::ReadAt;
use crate::cut::squashfs::BlockLen;
use crate::patch::view::error::NoView;
use crate::patch::view::format::{Packed, RECIPE_MAX, Unpacked, ViewLimits, ViewSink};

/// Writes the view of a group of the old release to `sink`, from the current position on, and makes
/// the recipe with which a device does the same.
///
/// # Errors
/// Any error from reading the artifact or writing to `sink`.
pub(super) fn unpack(
    packed: &Packed<'_>,
    limits: ViewLimits,
    mut sink: &mut dyn ViewSink,
) -> io::Result<Unpacked> {
    let start = sink.stream_position()?;
    let mut made = Unpacked { recipe: Vec::new(), view_bytes: 0, files: Vec::new() };
    let Some(first) = packed.files.iter().find_map(|file| file.blocks.as_ref()) else {
        made.files = packed.files.iter().map(|_| Err(NoView::NoClusters)).collect();
        return Ok(made);
    };
    let mut head = vec![VERSION];
    Head::put(first, &mut head);
    let mut steps = Steps::behind(head, 0);
    for file in packed.files {
        sink.seek(SeekFrom::Start(start + made.view_bytes))?;
        let mark = steps.mark();
        let max = limits.bytes - made.view_bytes;
        let result = match &file.blocks {
            Some(map) => tell(packed.artifact, map, max, &mut steps, &mut sink)?,
            None => Err(NoView::NoClusters),
        };
        let result = match result {
            Ok(0) => Err(NoView::NotWorth),
            Ok(_) if steps.len() > RECIPE_MAX => Err(NoView::TooLong),
            Ok(bytes) => {
                let from = made.view_bytes;
                made.view_bytes += bytes;
                Ok(from..made.view_bytes)
            }
            Err(why) => Err(why),
        };
        if result.is_err() {
            steps.back_to(mark);
        }
        made.files.push(result);
    }
    sink.seek(SeekFrom::Start(start + made.view_bytes))?;
    let recipe = steps.finish();
    if made.view_bytes > 0 && cost(&recipe[1..]).is_ok() {
        made.recipe = recipe;
    } else {
        made.files.iter_mut().for_each(|file| *file = file.clone().and(Err(NoView::NotWorth)));
        made.view_bytes = 0;
    }
    Ok(made)
}

/// Adds one file. Returns the bytes of its view, at most `max`.
fn tell(
    artifact: &dyn ReadAt,
    map: &BlockMap,
    max: u64,
    steps: &mut Steps,
    sink: &mut dyn Write,
) -> io::Result<Result<u64, NoView>> {
    let head = Head { packing: map.packing, block_bytes: map.block_bytes as usize };
    let mut blocks = Blocks::new(head, artifact, map.start, max, sink);
    let data = |len: &BlockLen, blocks: &mut Blocks<'_>, steps: &mut Steps| -> io::Result<bool> {
        let bytes = u64::from(len.bytes());
        if bytes == 0 {
            return Ok(true);
        }
        if len.is_stored() {
            steps.stored(bytes);
            return blocks.stored(bytes);
        }
        steps.packed(bytes);
        blocks.packed(bytes)
    };
    let is_whole = match &map.content {
        Content::File(lens) => {
            let mut is_whole = true;
            for len in lens {
                is_whole = is_whole && data(len, &mut blocks, steps)?;
            }
            is_whole
        }
        Content::Fragment(len, _) => data(len, &mut blocks, steps)?,
        Content::Table(bytes) => {
            steps.table(*bytes);
            blocks.table(*bytes)?
        }
    };
    Ok(if is_whole { Ok(blocks.written()) } else { Err(NoView::Damaged) })
}
