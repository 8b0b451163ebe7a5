//! Places of the data of uncompressed files.

use std::ops::Range;

use erofs_rs::types::{
    Inode, LAYOUT_CHUNK_FORMAT_48BIT, LAYOUT_CHUNK_FORMAT_BITS, LAYOUT_CHUNK_FORMAT_INDEXES, Layout,
};

use super::{Geometry, NID_METABOX, Reader, TAIL_MIN};
use crate::cut::bytes::{u16_at, u32_at};
use crate::cut::found::Found;
use crate::cut::{ReadAt, RegionKind};

/// Offset of the data union `inode_data`, the same in both inode forms.
const INODE_DATA_OFFSET: usize = 16;

impl<R: ReadAt + ?Sized> Reader<'_, R> {
    /// Adds the extents of one file's data, in whole blocks. `layout` is one of the three
    /// uncompressed layouts.
    ///
    /// The last part of an inline file lies behind its inode; it is an extent of its own exact
    /// length. `None` if an extent lies outside the image.
    pub(super) fn flat_runs(&self, inode: &Inode, layout: Layout, found: &mut Found) -> Option<()> {
        if inode.id() & NID_METABOX != 0 {
            // The inode lies in the metabox, a file that would have to be unpacked first.
            found.forget(found.mark());
            return Some(());
        }
        let size = inode.data_size();
        let block_bits = self.geometry.block_bits;
        if layout == Layout::ChunkBased {
            return self.chunks_of(inode, found);
        }
        // Blocks in front of the inline tail.
        let blocks = (size - 1) >> block_bits;
        let whole = if layout == Layout::FlatInline { blocks << block_bits } else { size };
        if whole > 0
            && let Some(block) = self.start_block(inode)?
        {
            add_blocks(block, whole, &self.geometry, found)?;
        }
        let tail = size - whole;
        if tail < TAIL_MIN {
            return Some(());
        }
        let start = self.behind_inode(inode)?.1;
        found.add(start, start.checked_add(tail)?, RegionKind::File)
    }

    /// Returns the place of an inline tail that is too short for a region of its own, if a file has
    /// one.
    pub(super) fn short_tail(&self, inode: &Inode) -> Option<Range<u64>> {
        if inode.layout() != Some(Layout::FlatInline) || inode.id() & NID_METABOX != 0 {
            return None;
        }
        let size = inode.data_size();
        let tail = size - (size.checked_sub(1)? >> self.geometry.block_bits << self.geometry.block_bits);
        let start = self.behind_inode(inode)?.1;
        let end = start.checked_add(tail).filter(|end| *end <= self.geometry.len)?;
        (tail < TAIL_MIN && tail < size).then_some(start..end)
    }

    /// Returns the first block of a flat file; the inner `None` stands for a hole.
    fn start_block(&self, inode: &Inode) -> Option<Option<u64>> {
        let (raw, _) = self.behind_inode(inode)?;
        let low = u64::from(u32_at(&raw, INODE_DATA_OFFSET));
        // With 48-bit addresses, the high bits replace the link count in a compact inode with one
        // link (format bit 4), and nb_blocks_hi in an extended inode.
        let compact_wide = raw[0] & 1 == 0 && raw[0] & 0x10 != 0;
        let extended_wide = raw[0] & 1 != 0 && self.geometry.wide;
        let wide = compact_wide || extended_wide;
        let block = if wide { low | u64::from(u16_at(&raw, 6)) << 32 } else { low };
        let hole = if wide { (1 << 48) - 1 } else { u64::from(u32::MAX) };
        Some((block != hole).then_some(block))
    }

    /// Adds the extents of a chunk-based file, from the block map or chunk index behind its inode.
    fn chunks_of(&self, inode: &Inode, found: &mut Found) -> Option<()> {
        let geometry = &self.geometry;
        let (raw, behind) = self.behind_inode(inode)?;
        let format = u16_at(&raw, INODE_DATA_OFFSET);
        let chunk_bits = u32::from(format & LAYOUT_CHUNK_FORMAT_BITS) + u32::from(geometry.block_bits);
        let indexed = format & LAYOUT_CHUNK_FORMAT_INDEXES != 0;
        let unit: u64 = if indexed { 8 } else { 4 };
        let mask: u64 = if indexed && format & LAYOUT_CHUNK_FORMAT_48BIT != 0 {
            (1 << 48) - 1
        } else {
            u64::from(u32::MAX)
        };
        let table = behind.checked_next_multiple_of(unit)?;
        let size = inode.data_size();
        let count = ((size - 1) >> chunk_bits) + 1;
        if table.checked_add(count.checked_mul(unit)?)? > geometry.len {
            return None;
        }
        // Adjacent chunks become one extent as long as the file is laid out in order.
        let mut run: Option<(u64, u64)> = None;
        let mut page = [0; 4096];
        for index in 0..count {
            let within = (index * unit) as usize % page.len();
            if within == 0 {
                let here = page.len().min(((count - index) * unit) as usize);
                self.image.read(&mut page[..here], table + index * unit)?;
            }
            let record = &page[within..within + unit as usize];
            let block = if indexed {
                // An image with a device table is not accepted, so the device id means nothing
                // here.
                u64::from(u32_at(record, 4)) | u64::from(u16_at(record, 0)) << 32
            } else {
                u64::from(u32_at(record, 0))
            } & mask;
            let bytes = (size - (index << chunk_bits)).min(1 << chunk_bits);
            run = match run {
                _ if block == mask => {
                    add_run(run, geometry, found)?;
                    None
                }
                Some((first, len))
                    if len.is_multiple_of(1 << geometry.block_bits)
                        && first + (len >> geometry.block_bits) == block =>
                {
                    Some((first, len.checked_add(bytes)?))
                }
                _ => {
                    add_run(run, geometry, found)?;
                    Some((block, bytes))
                }
            };
        }
        add_run(run, geometry, found)
    }
}

fn add_run(run: Option<(u64, u64)>, geometry: &Geometry, found: &mut Found) -> Option<()> {
    run.map_or(Some(()), |(block, bytes)| add_blocks(block, bytes, geometry, found))
}

/// Adds `bytes` from `block` on as data of the current file, up to the end of the last block.
fn add_blocks(block: u64, bytes: u64, geometry: &Geometry, found: &mut Found) -> Option<()> {
    let start = block.checked_mul(1 << geometry.block_bits)?;
    let end = start.checked_add(bytes)?;
    if end > geometry.len {
        return None;
    }
    // An artifact may end inside the last block, but only the block's padding may be missing.
    found.add(start, end.next_multiple_of(1 << geometry.block_bits).min(geometry.len), RegionKind::File)
}
