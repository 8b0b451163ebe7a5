//! Finding the files, and which of them share a view.

use std::ops::{ControlFlow, Range};

use crate::cut::erofs::{Coding, Extent, ExtentData, MapError, Reader};
use crate::cut::{ReadAt, RegionKind, Regions};
use crate::limits::VIEW_BYTES_MAX;

/// Content of the files of one view, about: what a device has to have room for, and loses when a chunk of it has
/// rotted. Each view costs an entry and two payloads in its set, some hundred bytes.
const GROUP_BYTES: u64 = 32 << 20;

/// Why a compressed file has no view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoView {
    /// Its extents are not known.
    #[error("it has no map")]
    Map(#[source] MapError),
    /// Clusters of MicroLZMA, or of an algorithm not known.
    #[error("its algorithm has no views")]
    Algorithm,
    /// Nothing in it is packed: its chunks do as well.
    #[error("none of its clusters is packed")]
    Plain,
    /// All of it lies elsewhere.
    #[error("it has no clusters of its own")]
    NoClusters,
    /// Clusters that other files have too, or that it has twice.
    #[error("it shares clusters")]
    Shared,
    /// Longer than views may be.
    #[error("it is too long")]
    TooLong,
    /// Clusters that do not unpack as the map says.
    #[error("its clusters are damaged")]
    Damaged,
    /// The packer makes other clusters.
    #[error("its clusters cannot be packed again")]
    NotReproduced,
}

/// A compressed file that may have a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFile {
    /// The name of its regions.
    pub name: Vec<u8>,
    /// Where its clusters lie in the artifact, in file order: whole regions of it.
    pub parts: Vec<Range<u64>>,
    /// Bytes of its view.
    pub plain_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) zeros_in_front: bool,
    /// Log2 of the image's zstd window, 0 where it has none.
    pub(super) window_bits: u8,
    pub(super) pieces: Vec<Piece>,
}

/// One extent: 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// First byte of the cluster in the artifact.
    pub(super) start: u64,
    /// Bytes of the cluster.
    pub(super) packed: u32,
    /// Bytes of the extent.
    pub(super) plain: u32,
    pub(super) coding: Coding,
    /// Where in a plain cluster the extent begins, else nothing.
    pub(super) turn: Option<u16>,
    /// The cluster has its exact length.
    pub(super) inline: bool,
    /// It is in one of the parts.
    pub(super) listed: bool,
}

/// What [`cluster_files`] finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFiles {
    /// Those that may have a view, in the order of their first parts.
    pub files: Vec<ClusterFile>,
    /// Names of those that have none.
    pub without: Vec<(Vec<u8>, NoView)>,
}

/// The files of an EROFS image with clusters packed by LZ4, deflate or zstd; nothing of an artifact that is no such image, or damaged.
///
/// `regions` are the artifact's. Only files whose name and parts `wanted` takes are looked into. Memory: 32 bytes an
/// extent of these.
pub fn cluster_files<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    mut wanted: impl FnMut(&[u8], &[Range<u64>]) -> bool,
) -> ClusterFiles {
    let mut found = ClusterFiles::default();
    let Some(reader) = Reader::open(artifact) else { return found };
    let codecs = reader.codecs().unwrap_or_default();
    let _ = reader.packed_files(|file| {
        if file.size() > VIEW_BYTES_MAX {
            found.without.push((file.path().to_vec(), NoView::TooLong));
            return ControlFlow::Continue(());
        }
        let mut made = ClusterFile {
            name: file.path().to_vec(),
            parts: Vec::new(),
            plain_bytes: 0,
            block_bytes: reader.block_bytes() as u32,
            zeros_in_front: codecs.zeros_in_front,
            window_bits: codecs.zstd_window_bits,
            pieces: Vec::new(),
        };
        let result = file
            .extents()
            .and_then(|mut extents| {
                extents.try_for_each(|extent| extent.map(|extent| made.push(&extent, regions)))
            })
            .map_err(NoView::Map)
            .and_then(|()| made.check(regions));
        if wanted(&made.name, &made.parts) {
            match result {
                Ok(()) => found.files.push(made),
                Err(why) => found.without.push((made.name, why)),
            }
        }
        ControlFlow::Continue(())
    });
    found.files.sort_by_key(|file| file.parts.first().map(|part| part.start));
    found
}

impl ClusterFile {
    fn push(&mut self, extent: &Extent, regions: &Regions) {
        // Only the last extent can be a fragment. What is in the packed inode has a view there, if anywhere.
        let ExtentData::Cluster { start, len, coding, inline, .. } = extent.data else { return };
        let turn = match coding {
            Coding::Lz4 | Coding::Deflate | Coding::Zstd => None,
            Coding::Shifted => Some(0),
            // Within a block, so that it fits; 64 KiB blocks turn by less than that.
            Coding::Interlaced => Some((extent.start % u64::from(self.block_bytes)) as u16),
            // Told apart in `check`: no plain cluster holds nothing.
            Coding::Lzma => {
                let turn = Some(0);
                self.pieces.push(Piece { start, packed: 0, plain: 0, coding, turn, inline, listed: false });
                return;
            }
        };
        let listed = !inline || region_at(regions, start).is_some_and(|(end, _)| end == start + len);
        if listed {
            match self.parts.last_mut() {
                Some(part) if part.end == start && !inline => part.end = start + len,
                _ => self.parts.push(start..start + len),
            }
        }
        self.plain_bytes += extent.len;
        let (packed, plain) = (len as u32, extent.len as u32);
        self.pieces.push(Piece { start, packed, plain, coding, turn, inline, listed });
    }

    fn check(&self, regions: &Regions) -> Result<(), NoView> {
        let is_whole = |part: &Range<u64>| {
            region_at(regions, part.start)
                .is_some_and(|(end, name)| end == part.end && name == Some(self.name.as_slice()))
        };
        let long_turn = |piece: &Piece| {
            piece.turn.is_some_and(|turn| turn > 0) && (piece.packed != self.block_bytes || piece.inline)
        };
        if self.pieces.iter().any(|piece| piece.packed == 0 || long_turn(piece)) {
            return Err(NoView::Algorithm);
        }
        if self.parts.is_empty() {
            return Err(NoView::NoClusters);
        }
        if self.pieces.iter().all(|piece| piece.turn.is_some()) {
            return Err(NoView::Plain);
        }
        if !self.parts.iter().all(is_whole) {
            return Err(NoView::Shared);
        }
        Ok(())
    }

    /// Whether recipes of the first form, for LZ4 alone, say how its clusters are packed.
    pub(super) fn is_lz4(&self) -> bool {
        self.pieces.iter().all(|piece| piece.turn.is_some() || piece.coding == Coding::Lz4)
    }

    /// What it counts in its group, bytes: corrections of deflate streams can take a tenth of them, and a recipe has no
    /// room for as many as there would be.
    fn weight(&self) -> u64 {
        let deflated = self.pieces.iter().any(|piece| piece.coding == Coding::Deflate);
        self.plain_bytes * if deflated { 4 } else { 1 }
    }

    pub(super) fn packed_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }
}

/// End and name of the packed region that starts there.
fn region_at(regions: &Regions, start: u64) -> Option<(u64, Option<&[u8]>)> {
    let index = regions.all().binary_search_by_key(&start, |region| region.start).ok()?;
    let region = &regions.all()[index];
    (region.kind == RegionKind::Packed).then(|| (region.end(), regions.name(region)))
}

/// Which of the files share a view: ranges of indices, in order.
pub fn groups(files: &[ClusterFile]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (index, file) in files.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if bytes + file.weight() <= GROUP_BYTES => group.end += 1,
            _ => {
                groups.push(index..index + 1);
                bytes = 0;
            }
        }
        bytes += file.weight();
    }
    groups
}
