//! Errors of views.

use std::io;

use crate::cut::erofs::MapError;

/// Error of packing a view or unpacking a file.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The recipe is not of the format, or does not fit the view.
    #[error("recipe is damaged: {0}")]
    Damaged(&'static str),
    /// Reading or writing the view or the region failed.
    #[error("could not read or write the view or the region")]
    Io(#[from] io::Error),
}

/// Reason why a packed file has no view.
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
    /// The file is damaged, most of it stays packed, or its recipe takes too many bytes.
    #[error("a view would not be worth it")]
    NotWorth,
}
