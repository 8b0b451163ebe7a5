//! Search for the compressed files of an image, and their grouping into views.

use std::ops::{ControlFlow, Range};

use crate::bounds::VIEW_BYTES_MAX;
use crate::cut::erofs::{Coding, Extent, ExtentData, MapError, Reader};
use crate::cut::{ReadAt, RegionKind, Regions};

/// Approximate bytes of content in one view. A device must have room for that much, and loses that
/// much of an update's patches when one of the view's chunks is damaged. Each view costs an entry
/// and two payloads in its set, some hundred bytes.
const GROUP_BYTES: u64 = 32 << 20;

/// Reason why a compressed file has no view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoView {
    /// The file's extents are not known.
    #[error("its extents are not known")]
    Map(#[source] MapError),
    /// The file has clusters of MicroLZMA or of an unknown algorithm.
    #[error("its algorithm has no views")]
    Algorithm,
    /// No cluster is packed, so patches of the file's chunks are as good as a view.
    #[error("none of its clusters is compressed")]
    Plain,
    /// The file has no clusters in regions of the artifact: all its content lies elsewhere.
    #[error("it has no clusters of its own")]
    NoClusters,
    /// The file has clusters that belong to other files too, or that it contains twice.
    #[error("it shares clusters")]
    Shared,
    /// The file is longer than a view may be.
    #[error("it is longer than a view may be")]
    TooLong,
    /// Clusters do not unpack as the map says.
    #[error("its clusters are damaged")]
    Damaged,
    /// The packer makes other clusters from the same content.
    #[error("packing its content again gives other bytes")]
    NotReproduced,
}

/// Compressed file that may have a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFile {
    /// Name of the file's regions.
    pub name: Vec<u8>,
    /// Ranges of the file's clusters in the artifact, in file order. Each range is a whole region.
    pub parts: Vec<Range<u64>>,
    /// Length of the file's view in bytes.
    pub plain_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) zeros_in_front: bool,
    /// Log2 of the image's zstd window, 0 if it has none.
    pub(super) window_bits: u8,
    pub(super) pieces: Vec<Piece>,
}

/// One extent. Takes 32 bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Offset of the cluster's first byte in the artifact.
    pub(super) start: u64,
    /// Length of the cluster in bytes.
    pub(super) packed: u32,
    /// Length of the extent in bytes.
    pub(super) plain: u32,
    pub(super) coding: Coding,
    /// Offset in a plain cluster at which the extent begins; `None` for a packed cluster.
    pub(super) turn: Option<u16>,
    /// Whether the cluster lies inline, at its exact length.
    pub(super) inline: bool,
    /// Whether the cluster lies in one of the file's parts.
    pub(super) listed: bool,
}

/// Result of [`cluster_files`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFiles {
    /// Files that may have a view, in the order of their first parts.
    pub files: Vec<ClusterFile>,
    /// Names of the files without a view, and the reasons.
    pub without: Vec<(Vec<u8>, NoView)>,
}

/// Finds the files of an EROFS image that have clusters packed by LZ4, deflate or zstd. Returns
/// nothing for an artifact that is not such an image, or is damaged.
///
/// `regions` are the regions of the artifact. Only files whose name and parts `wanted` accepts are
/// returned, and all files that are too long for a view. Memory: 32 bytes per extent of these
/// files.
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
        // Only the last extent can be a fragment. Its content lies in the packed inode, which may
        // have a view of its own.
        let ExtentData::Cluster { start, len, coding, inline, .. } = extent.data else { return };
        let turn = match coding {
            Coding::Lz4 | Coding::Deflate | Coding::Zstd => None,
            Coding::Shifted => Some(0),
            // Less than a block, and blocks have at most 64 KiB, so the offset fits into 16 bits.
            Coding::Interlaced => Some((extent.start % u64::from(self.block_bytes)) as u16),
            // `check` recognises this piece by its length: no other cluster has zero bytes.
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

    /// Returns whether recipes of the first form, for LZ4 alone, can describe the file's clusters.
    pub(super) fn is_lz4(&self) -> bool {
        self.pieces.iter().all(|piece| piece.turn.is_some() || piece.coding == Coding::Lz4)
    }

    /// Bytes that the file counts in its group. Deflate streams count more, because their
    /// corrections can take a tenth of them, and a recipe has no room for the corrections of a
    /// whole group.
    fn weight(&self) -> u64 {
        let deflated = self.pieces.iter().any(|piece| piece.coding == Coding::Deflate);
        self.plain_bytes * if deflated { 4 } else { 1 }
    }

    pub(super) fn packed_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }
}

/// Returns end and name of the packed region that starts at `start`.
fn region_at(regions: &Regions, start: u64) -> Option<(u64, Option<&[u8]>)> {
    let index = regions.all().binary_search_by_key(&start, |region| region.start).ok()?;
    let region = &regions.all()[index];
    (region.kind == RegionKind::Packed).then(|| (region.end(), regions.name(region)))
}

/// Decides which files share a view; returns ranges of indices, in order.
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
