//! Addresses of the bytes of a job.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::Side;
use super::ranges::bytes_of;
use crate::cut::ReadAt;
use crate::patch::references::{Extent, HEAD_BYTES, Layout, extents};

/// Layout of a base or target while chunks are added to it.
#[derive(Default)]
pub(super) struct Growing {
    /// Bytes so far.
    len: usize,
    /// Number of each file and its extents, by side and region.
    files: BTreeMap<(u8, usize), (u16, Vec<Extent>)>,
    extents: Vec<Extent>,
    /// Whether any file has addresses of its own.
    has_addresses: bool,
}

impl Growing {
    /// Adds chunks of a side; `number` tells the sides apart.
    pub(super) fn add<R: ReadAt + ?Sized>(
        &mut self,
        side: Side<'_, R>,
        number: u8,
        chunks: &Range<u32>,
    ) -> io::Result<()> {
        let Some(first) = side.chunks.get(chunks.start as usize) else { return Ok(()) };
        let end = first.offset + bytes_of(side.chunks, chunks.clone());
        let regions = side.regions.all();
        let mut at = first.offset;
        let mut index = regions.partition_point(|region| region.end() <= at);
        while at < end {
            let Some(region) = regions.get(index) else { break };
            let (file, of_file) = self.file(side, number, index)?;
            let to = end.min(region.end());
            // Regions are below 2^44 bytes, and a job has a few hundred MiB of each.
            let (from, until) = ((at - region.start) as usize, (to - region.start) as usize);
            let behind = of_file.partition_point(|extent| extent.at <= from);
            let inside = of_file[behind.saturating_sub(1)..].iter().take_while(|extent| extent.at < until);
            let place = self.len;
            for extent in inside {
                let skipped = from.saturating_sub(extent.at);
                self.extents.push(Extent {
                    at: place + extent.at.max(from) - from,
                    file,
                    address: extent.address.wrapping_add(skipped as u64),
                });
            }
            self.len += until - from;
            at = to;
            index += 1;
        }
        Ok(())
    }

    /// Returns the number of a region's file, and the extents of the whole file.
    fn file<R: ReadAt + ?Sized>(
        &mut self,
        side: Side<'_, R>,
        number: u8,
        index: usize,
    ) -> io::Result<(u16, Vec<Extent>)> {
        if let Some(known) = self.files.get(&(number, index)) {
            return Ok(known.clone());
        }
        let region = &side.regions.all()[index];
        let mut head = vec![0; usize::try_from(region.len).unwrap_or(HEAD_BYTES).min(HEAD_BYTES)];
        side.bytes.read_exact_at(&mut head, region.start)?;
        let file = u16::try_from(self.files.len()).unwrap_or(u16::MAX);
        let mut found = extents(&head, file);
        self.has_addresses |= !found.is_empty();
        if found.is_empty() {
            found.push(Extent { at: 0, file, address: 0 });
        }
        self.files.insert((number, index), (file, found.clone()));
        Ok((file, found))
    }

    /// Returns the layout; an empty one if no file has addresses.
    pub(super) fn finish(self) -> Layout {
        if self.has_addresses { Layout::of(self.extents, self.len) } else { Layout::default() }
    }
}
