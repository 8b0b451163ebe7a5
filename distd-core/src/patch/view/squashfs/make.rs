//! Conversion of blocks to view and recipe, at the origin.

use std::io::{self, SeekFrom, Write};

use super::coder::{Packer, Setting};
use super::map::{BlockMap, Content};
use super::repack::{adler, cost};
use super::steps::Steps;
use super::{Head, VERSION};
use crate::cut::ReadAt;
use crate::cut::squashfs::{HEADER_BYTES, Packing, Unpacker, header, header_of};
use crate::patch::view::corrections;
use crate::patch::view::error::NoView;
use crate::patch::view::format::{Packed, RECIPE_MAX, Unpacked, ViewLimits, ViewSink};

/// A view of a file is not worth it if its recipe takes more than one part in this many of the
/// packed bytes.
const RECIPE_PART: usize = 4;

/// Least recipe of a file that is taken, bytes: a short table needs its step.
const RECIPE_MIN: usize = 64;

/// Blocks for which all settings are tried, per file and per group. Each trial costs some ten times
/// the packing.
const TRIED_OF_FILE: u32 = 1;
const TRIED_OF_GROUP: u32 = 4;

/// Makes view and recipe of a group of the new release. The view is written to `sink` from the
/// current position on.
///
/// Each block is packed again and compared, so a recipe always fits. Memory: two blocks, and the
/// packer's state.
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
    let mut recipe = vec![VERSION];
    Head::put(first, &mut recipe);
    let mut making = Making {
        artifact: packed.artifact,
        memory: limits.memory,
        steps: Steps::behind(recipe, u64::from(first.block_bytes)),
        packer: Packer::default(),
        unpacker: Unpacker::new(first.packing),
        last: [None, None],
        tries_left: TRIED_OF_GROUP,
        block: Vec::new(),
        plain: Vec::new(),
        out: Vec::new(),
    };
    for file in packed.files {
        sink.seek(SeekFrom::Start(start + made.view_bytes))?;
        let (mark, before) = (making.steps.mark(), making.steps.len());
        let result = match &file.blocks {
            Some(map) => making.file(map, limits.bytes - made.view_bytes, &mut sink)?,
            None => Err(NoView::NoClusters),
        };
        let packed_bytes: u64 = file.parts.iter().map(|part| part.end - part.start).sum();
        let most = (packed_bytes as usize / RECIPE_PART).max(RECIPE_MIN);
        let result = result.and_then(|bytes| {
            let len = making.steps.len();
            if bytes == 0 || len > before.saturating_add(most) {
                return Err(NoView::NotReproduced);
            }
            if len > RECIPE_MAX {
                return Err(NoView::TooLong);
            }
            let from = made.view_bytes;
            made.view_bytes += bytes;
            Ok(from..made.view_bytes)
        });
        if result.is_err() {
            making.steps.back_to(mark);
        }
        made.files.push(result);
    }
    sink.seek(SeekFrom::Start(start + made.view_bytes))?;
    let recipe = making.steps.finish();
    if made.view_bytes > 0 && cost(&recipe[1..]).is_ok() {
        made.recipe = recipe;
    } else {
        made.files.iter_mut().for_each(|file| *file = file.clone().and(Err(NoView::NotWorth)));
        made.view_bytes = 0;
    }
    Ok(made)
}

struct Making<'a> {
    artifact: &'a dyn ReadAt,
    /// Most memory of a packer, bytes.
    memory: u64,
    steps: Steps,
    packer: Packer,
    unpacker: Unpacker,
    /// Settings that packed the last block of data, and the last block of a table.
    last: [Option<Setting>; 2],
    /// Blocks for which all settings may still be tried.
    tries_left: u32,
    block: Vec<u8>,
    plain: Vec<u8>,
    out: Vec<u8>,
}

impl Making<'_> {
    /// Adds one file. Returns the bytes of its view, at most `max`.
    fn file(&mut self, map: &BlockMap, max: u64, sink: &mut dyn Write) -> io::Result<Result<u64, NoView>> {
        let (mut bytes, mut tries, mut at) = (0, TRIED_OF_FILE, map.start);
        let is_table = matches!(map.content, Content::Table(_));
        let (lens, table_end) = match &map.content {
            Content::File(blocks) => (blocks.clone(), at),
            Content::Fragment(block, _) => (vec![*block], at),
            Content::Table(len) => (Vec::new(), at + len),
        };
        let mut lens = lens.into_iter();
        loop {
            let (len, is_stored) = if is_table {
                if at == table_end {
                    break;
                }
                let mut raw = [0; HEADER_BYTES];
                self.artifact.read_exact_at(&mut raw, at)?;
                at += HEADER_BYTES as u64;
                header(raw)
            } else {
                let Some(len) = lens.next() else { break };
                (len.bytes() as usize, len.is_stored())
            };
            if len > map.plain_max() {
                return Ok(Err(NoView::Damaged));
            }
            self.block.resize(len, 0);
            self.artifact.read_exact_at(&mut self.block, at)?;
            at += len as u64;
            if len == 0 {
                continue;
            }
            if is_stored {
                self.plain.clone_from(&self.block);
            } else {
                self.plain.resize(map.plain_max(), 0);
                let Some(made) = self.unpacker.unpack(&self.block, &mut self.plain).filter(|made| *made > 0)
                else {
                    return Ok(Err(NoView::Damaged));
                };
                self.plain.truncate(made);
            }
            if self.plain.len() as u64 > max - bytes {
                return Ok(Err(NoView::TooLong));
            }
            if self.tell(map, is_table, is_stored, &mut tries) {
                sink.write_all(&self.plain)?;
                bytes += self.plain.len() as u64;
            }
        }
        Ok(Ok(bytes))
    }

    /// Adds a block to the recipe. Returns whether its content belongs to the view.
    fn tell(&mut self, map: &BlockMap, is_table: bool, is_stored: bool, tries: &mut u32) -> bool {
        let bytes = self.plain.len() as u64;
        if is_stored && !is_table {
            self.steps.stored(bytes);
            return true;
        }
        let setting = match is_stored {
            // A block of a table that is stored shows nothing of its setting: the last one has to
            // leave it as it is.
            true => self.last[1].clone().filter(|setting| {
                self.packer.pack(setting, &self.plain, bytes as usize - 1, &mut self.out).is_none()
            }),
            false => self.setting(map, is_table, tries),
        };
        if let Some(setting) = setting {
            self.steps.setting(&setting);
            if is_table {
                self.steps.table(bytes)
            } else {
                self.steps.packed(bytes)
            }
            self.last[usize::from(is_table)] = Some(setting);
            return true;
        }
        if !is_table && let Some((header, corrections)) = self.corrections(map.packing) {
            self.steps.corrected(bytes, header, &corrections);
            return true;
        }
        if is_table {
            let header = header_of(self.block.len(), is_stored);
            self.steps.literal(&[&header[..], &self.block].concat());
        } else {
            self.steps.literal(&self.block);
        }
        false
    }

    /// Finds the setting that packs the content to the same block.
    fn setting(&mut self, map: &BlockMap, is_table: bool, tries: &mut u32) -> Option<Setting> {
        // A block that is not shorter than its content would have been stored.
        let room = if is_table { self.plain.len() - 1 } else { map.block_bytes as usize };
        let mut is_right = |setting: &Setting| {
            setting.memory(u64::from(map.block_bytes)) <= self.memory
                && self.packer.pack(setting, &self.plain, room, &mut self.out).is_some()
                && self.out == self.block
        };
        // Tables and data may have different settings, but mostly have the same level.
        let likely = [usize::from(is_table), usize::from(!is_table)];
        let likely = likely.into_iter().filter_map(|index| self.last[index].as_ref());
        let likely: Vec<Setting> = likely.filter_map(|setting| setting.for_block(&self.block)).collect();
        if let Some(setting) = likely.iter().find(|setting| is_right(setting)) {
            return Some(setting.clone());
        }
        if *tries == 0 || self.tries_left == 0 {
            return None;
        }
        *tries -= 1;
        self.tries_left -= 1;
        let all = Setting::of(map.packing, &self.block).into_iter();
        all.filter(|setting| !likely.contains(setting)).find(|setting| is_right(setting))
    }

    /// Returns the header of a zlib stream, and the corrections that make the stream, if they are
    /// worth it.
    fn corrections(&self, packing: Packing) -> Option<([u8; 2], Vec<u8>)> {
        let (Packing::Gzip, [first, second, stream @ ..]) = (packing, &self.block[..]) else { return None };
        let (stream, check) = stream.split_at_checked(stream.len().checked_sub(4)?)?;
        let corrections = corrections::of(stream, &self.plain)?;
        let is_worth = corrections.len() < self.block.len() / RECIPE_PART;
        (is_worth && check == adler(&self.plain)).then_some(([*first, *second], corrections))
    }
}
