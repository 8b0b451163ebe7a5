//! Map of a file's clusters in an image.

use crate::cut::erofs::Coding;

/// Clusters of a file, as the image describes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClusterMap {
    /// Length of the file's view in bytes.
    pub(super) plain_bytes: u64,
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

impl ClusterMap {
    /// Returns whether all packed clusters are of LZ4.
    pub(super) fn is_lz4(&self) -> bool {
        self.pieces.iter().all(|piece| piece.turn.is_some() || piece.coding == Coding::Lz4)
    }

    /// Bytes of content in the clusters of the file's parts.
    pub(super) fn listed_bytes(&self) -> u64 {
        self.pieces.iter().filter(|piece| piece.listed).map(|piece| u64::from(piece.plain)).sum()
    }
}
