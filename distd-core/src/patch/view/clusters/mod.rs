//! Views of compressed files of EROFS images: the plain content of files packed by LZ4.
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
//! again; what lies in the packed inode (fragments) is not in the view. Clusters of other algorithms, and files that share clusters
//! with others, have no view ([`NoView`]).
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

use crate::cut::erofs::{CLUSTER_BYTES_MAX, EXTENT_BYTES_MAX};
use crate::patch::view::RecipeError;
use crate::proto::take_varint;

/// Content shown to the packer beyond the longest cluster of a file. It looks ahead for the end of a match only, which a
/// cluster's own end mostly cuts off before; above 64 KiB in all, LZ4 chooses another table.
const LOOK_AHEAD: u64 = 128 << 10;

/// Longest window.
const WINDOW_MAX: u64 = EXTENT_BYTES_MAX + LOOK_AHEAD;

/// Bytes copied at once.
const COPY: usize = 64 << 10;

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
