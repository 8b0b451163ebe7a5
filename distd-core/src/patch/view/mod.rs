//! Views: the unpacked content of packed files.
//!
//! A packed file changes everywhere when one byte of its content does. Three kinds of files have
//! views:
//! - files of gzip members (an initrd, a changelog): the view is the concatenated plain text of the
//!   members;
//! - zip archives and PNG files: the view has the plain text of each deflate stream in its place
//!   between the other bytes;
//! - files of an EROFS image packed by LZ4, deflate or zstd: the view is their content, many files
//!   in one view.
//!
//! A **recipe** says how to pack a view again, bit for bit. The views of the old and the new
//! release are paired like any other bytes. While a patch set is applied, the device rebuilds the
//! new view, packs it again and writes the result. A gzip file within such an image has a view
//! within a view: packing the gzip file's view makes the view of the clusters, and packing that
//! makes the clusters.
//!
//! The origin makes recipes ([`unpack`], [`unpack_clusters`]) and offers only those that it has
//! tried with the code that the device runs ([`repack`]). A device unpacks its own old file with
//! [`unpack_with`], an order of magnitude quicker.
//!
//! Memory for views of deflate streams: unpacking and packing hold one piece at a time, at most
//! [`PIECE_PLAIN_MAX`] of plain text, and the packer's own state: 8 MB in all to pack the reference
//! initrd (130 MB of view), 10 MB to take it apart. For clusters: the content of the longest
//! cluster and the packer's state, which is 1.2 MB for LZ4, so 14 MB at most, and up to 20 MB more
//! for zstd's slowest level.

mod clusters;
mod corrections;
mod files;
mod gzip;
mod parts;
mod png;
mod recipe;
mod streams;
mod version;
mod zip;

pub use clusters::{
    ClusterFile, ClusterFiles, ClusterViews, NoView, cluster_files, groups, unpack_clusters,
    unpack_old_clusters,
};
pub use files::{Joined, PackedFile, packed_files};
pub use gzip::inflate;
pub use parts::parts;
pub use recipe::{LITERAL_MAX, PIECE_PLAIN_MAX, Unpacked, unpack};
use version::{ANY_CLUSTERS_VERSION, CLUSTERS_VERSION};
pub use version::{RECIPE_MAX, RecipeError, is_of_clusters, repack, unpack_with};
