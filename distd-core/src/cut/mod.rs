//! Cutting: splits an artifact into regions and each region into chunks.
//!
//! [`regions`] finds the borders that a format defines (files inside a file system or an archive),
//! so that inserting a file moves no cut inside another file. FastCDC then cuts inside each region;
//! a region border is always a cut. The same bytes and the same [`CutParams`] give the same chunks
//! on every machine, whatever the window size and however many threads share the work
//! (docs/formats.md, "Cutting").
//!
//! ```
//! use distd_core::cut::{Batches, CutParams, regions};
//!
//! let artifact: &[u8] = &[7; 300_000];
//! let regions = regions(artifact);
//! let mut batches = Batches::new(artifact, regions.all(), CutParams::default());
//! let mut at = 0;
//! while let Some(batch) = batches.next_batch(Vec::new())? {
//!     for chunk in batch.chunks() {
//!         assert_eq!(chunk.offset, at);
//!         at += chunk.data.len() as u64;
//!     }
//! }
//! assert_eq!(at, 300_000);
//! # Ok::<(), std::io::Error>(())
//! ```

pub(crate) mod archive;
mod batch;
mod bytes;
pub(crate) mod cpio;
mod disk;
pub mod erofs;
mod ext;
mod fat;
mod found;
pub(crate) mod gzip;
mod params;
mod pe;
mod read;
mod region;
pub(crate) mod squashfs;
mod tar;
pub(crate) mod verity;
mod volume;

pub use archive::NAME_SEPARATOR;
pub use batch::{Batch, Batches, CutChunk, WINDOW_BYTES};
pub use disk::{
    LabelledPartition, MadeDisk, MakeDiskError, PARTITION_SEPARATOR, Volume, labelled_partitions,
    path_in_partition, volumes,
};
pub use params::{CutParams, CutParamsError, Cutter};
pub use read::{Joined, ReadAt};
pub(crate) use read::{len_of, read_parts};
pub use region::{Region, RegionKind, Regions, regions};
