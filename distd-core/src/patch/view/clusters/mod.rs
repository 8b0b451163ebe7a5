//! Views of compressed files of EROFS images: the plain content of files packed by LZ4, deflate or zstd.
//!
//! When a file changes by a byte, every cluster behind that byte begins elsewhere in the content and packs to other
//! bytes. The view is the content itself, which pairs with the old content; the recipe says with which settings the packer
//! makes the very clusters again.
//!
//! One view holds many files, one behind the other: a view each would cost more in the index of the set than most of
//! them save. [`cluster_files`] finds the files, [`groups`] says which go together, [`unpack_clusters`] makes view and
//! recipe of a group of the new release, [`unpack_old_clusters`] those of the old one.
//!
//! What has no place in the chunks of the file (an inline cluster below the size of a region) is in the view but not packed
//! again; what lies in the packed inode (fragments) is not in the view. Clusters of MicroLZMA, whose coder has no safe binding, and files
//! that share clusters with others have no view ([`NoView`]).
//!
//! # Recipe, version 2
//!
//! Numbers are varints as in RFC 9000 §16. Behind the version byte, up to the end, each a byte and what it says:
//!
//! ```text
//! 0  file        flags (1 byte; bit 0: zeros fill a cluster in front, else behind; bits 4…7: log2 of block / 512),
//!                bytes of view, window
//! 1  clusters    setting (1 byte), capacity, count
//! 2  the same of known content   setting, capacity, count, bytes of view each
//! 3  the same, overlapping       setting, capacity, bytes of view until the next cluster
//! 4  plain       bytes of view
//! 5  turned      bytes of view (at most a block), where in the block the first one is
//! 6  literal     bytes of view it stands for, length, bytes of the artifact
//! 7  left out    bytes of view
//! 8  end         setting, capacity
//! 9  plain end   bytes of view
//! ```
//!
//! The packer is asked to fill at most *capacity* bytes with an LZ4 block made of the view from here on, of which it is shown
//! *window* bytes (2: the content, no more) or what is left of the file. Zeros fill the block up to whole blocks (not 8).
//! The next cluster begins behind what the packer took (3: sooner). *Setting* 0 is `LZ4_compress_destSize`, 3 to 12 is
//! `LZ4_compress_HC_destSize` at that level. 4 and 5 are the view as it is, with zeros up to whole blocks; 9 has no zeros; 5 starts
//! in the middle of a block and goes on at its front. A file ends where its bytes of view are used up.
//!
//! # Recipe, version 4
//!
//! The same for clusters of any algorithm, and of groups with any but LZ4. 0 has one byte more at its end, log2 of zstd's window (10 to
//! 20, or 0 in an image without). Settings 33 to 44 are libdeflate at level 1 to 12, 64 and 66 to 87 zstd at level −1 and 1 to 22;
//! these pack all of the content they are given into *capacity* and 32 bytes or fail, so they stand in 2, and in 8 for what is left of the
//! file, alone. And for deflate streams of other packers:
//!
//! ```text
//! 10 corrected      bytes of view, length of corrections, corrections as in recipes of version 1
//! 11 corrected end  the same, and no zeros
//! ```
//!
//! # Unpack recipe, version 2
//!
//! Behind the version byte the most bytes a cluster unpacks to, then up to the end:
//!
//! ```text
//! 1  clusters    count, bytes of each: all that each unpacks to
//! 2  clusters    count, bytes of each, bytes of content: so much of each
//! 3  plain       bytes, bytes of padding behind them
//! 4  turned      bytes of the cluster, bytes of content, where in the cluster the first one is
//! 5  left out    bytes
//! ```
//!
//! In version 4 the number of an algorithm stands before the count: 0 LZ4, 2 deflate, 3 zstd, as in the image.

mod coder;
mod files;
mod make;
mod old;
mod repack;
mod unpack;

pub use files::{ClusterFile, ClusterFiles, NoView, cluster_files, groups};
pub use make::{ClusterViews, unpack_clusters};
pub use old::unpack_old_clusters;
pub(super) use repack::repack;
pub(super) use unpack::unpack;

use crate::cut::erofs::{CLUSTER_BYTES_MAX, Coding, EXTENT_BYTES_MAX};
use crate::patch::view::{ANY_CLUSTERS_VERSION, CLUSTERS_VERSION, RecipeError};
use crate::proto::take_varint;

/// Content shown to the packer beyond the longest cluster of a file. It looks ahead for the end of a match only, which a
/// cluster's own end mostly cuts off before; above 64 KiB in all, LZ4 chooses another table.
const LOOK_AHEAD: u64 = 128 << 10;

/// Longest window.
const WINDOW_MAX: u64 = EXTENT_BYTES_MAX + LOOK_AHEAD;

/// Bytes copied at once.
const COPY: usize = 64 << 10;

/// First byte of the recipes of a group: who knows no other algorithm packs LZ4 again as before.
fn version_for(files: &[ClusterFile]) -> u8 {
    if files.iter().all(ClusterFile::is_lz4) { CLUSTERS_VERSION } else { ANY_CLUSTERS_VERSION }
}

/// Algorithms that clusters are unpacked of, by their numbers in an image.
const CODINGS: [(u8, Coding); 3] = [(0, Coding::Lz4), (2, Coding::Deflate), (3, Coding::Zstd)];

/// Its number in an unpack recipe; only those in [`CODINGS`] stand there.
fn number_of(coding: Coding) -> u8 {
    CODINGS.iter().find(|(_, known)| *known == coding).map_or(u8::MAX, |(number, _)| *number)
}

/// What stands in a recipe of either kind.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn expect_byte(&mut self) -> Result<u8, RecipeError> {
        self.byte().ok_or(RecipeError::Damaged("it ends early"))
    }

    fn number(&mut self) -> Result<u64, RecipeError> {
        take_varint(&mut self.0).ok_or(RecipeError::Damaged("it ends early"))
    }

    /// A number from 1 to `max`.
    fn within(&mut self, max: u64) -> Result<usize, RecipeError> {
        let number = self.number()?;
        if number == 0 || number > max {
            return Err(RecipeError::Damaged("a number is out of bounds"));
        }
        usize::try_from(number).map_err(|_| RecipeError::Damaged("a number is out of bounds"))
    }

    fn coding(&mut self) -> Result<Coding, RecipeError> {
        let number = self.expect_byte()?;
        let known = CODINGS.iter().find(|(known, _)| *known == number);
        known.map(|(_, coding)| *coding).ok_or(RecipeError::Damaged("unknown algorithm"))
    }

    /// Bytes of a cluster.
    fn cluster(&mut self) -> Result<usize, RecipeError> {
        self.within(CLUSTER_BYTES_MAX)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], RecipeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecipeError::Damaged("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }
}
