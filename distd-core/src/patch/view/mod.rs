//! Views: the unpacked side of packed files.
//!
//! A packed file changes everywhere when one byte in it does. Three kinds have views: files of gzip members (an initrd, a
//! changelog), whose view is the concatenated plain text of the members; zip archives and PNG files, whose view has the
//! plain text of each deflate stream in its place between the other bytes; and files of an EROFS image packed by LZ4, deflate or zstd,
//! whose view is their content, many files in one view. A **recipe** says how to pack a view again, bit for bit. The view of
//! the old release and that of the new one are paired like any other bytes; the new view is rebuilt in passing,
//! packed again and written. A gzip file within such an image has a view within a view: first the clusters' view is made of
//! its own, then the clusters of that.
//!
//! The origin makes recipes ([`unpack`], [`unpack_clusters`]) and offers none it has not tried with the code the device
//! runs ([`repack`]). A device unpacks its own old file with [`unpack_with`], an order of magnitude quicker.
//!
//! Memory of views of deflate streams: unpacking and packing again hold one piece at a time, at most [`PIECE_PLAIN_MAX`] of plain text
//! and what the packer keeps beside it: 8 MB in all to pack the reference initrd (130 MB of view), 10 MB to take it
//! apart. Of clusters: the content of the longest cluster and what the packer needs: 1.2 MB for LZ4, so 14 MB at the
//! very most, up to 20 MB more for zstd's slowest level.

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
