//! Views of compressed files in EROFS images: the plain content of files packed by LZ4, deflate or
//! zstd.
//!
//! When a file changes by a byte, every cluster behind that byte begins elsewhere in the content
//! and packs to other bytes. The view is the content itself, which pairs with the old content. The
//! recipe states the settings with which the packer makes the same clusters again.
//!
//! One view holds many files, one behind the other: with a view for each file, most files would
//! save less than their view costs in the index of the set. `files.rs` finds the files and decides
//! which of them share a view. `make.rs` makes view and recipe of a group of the new release,
//! `old.rs` those of a group of the old release; both compose recipes of the steps in `steps.rs`. A
//! device packs with `repack.rs` and unpacks with `unpack.rs`.
//!
//! An inline cluster that is too short to be a region has no place in the chunks of the file; its
//! content is in the view but is not packed again. Content in the packed inode (fragments) is not
//! in the view. Clusters of MicroLZMA, whose coder has no safe binding, and files that share
//! clusters with others have no view ([`NoView`]).
//!
//! # Recipe, version 2
//!
//! Numbers are varints as in RFC 9000 §16. Behind the version byte follow steps up to the end, each
//! a byte and its fields:
//!
//! ```text
//! 0  file        flags (1 byte; bit 0: zeros fill a cluster in front, else behind; bits 4…7:
//!                log2 of block / 512), bytes of view, window
//! 1  clusters    setting (1 byte), capacity, count
//! 2  the same of known content   setting, capacity, count, bytes of view each
//! 3  the same, overlapping       setting, capacity, bytes of view until the next cluster
//! 4  plain       bytes of view
//! 5  turned      bytes of view (at most a block), offset in the block of the first one
//! 6  literal     bytes of view that it replaces, length, bytes of the artifact
//! 7  left out    bytes of view
//! 8  end         setting, capacity
//! 9  plain end   bytes of view
//! ```
//!
//! The packer fills at most *capacity* bytes with an LZ4 block made of the view from the current
//! position on. It is shown *window* bytes of the view (in 2 the content and no more), or the rest
//! of the file if that is less. Zeros fill the block up to whole blocks of the image (not in 8).
//! The next cluster begins behind the bytes that the packer took (in 3 earlier). *Setting* 0 is
//! `LZ4_compress_destSize`, 3 to 12 is `LZ4_compress_HC_destSize` at that level. 4 and 5 are bytes
//! of the view as they are, with zeros up to whole blocks; 9 is the same without zeros. The bytes
//! of 5 start in the middle of a block and continue at its front. A file ends where its bytes of
//! view are used up.
//!
//! # Recipe, version 4
//!
//! Version 4 is for clusters of any algorithm, and is used for groups that have any but LZ4. Step 0
//! has one more byte at its end, log2 of zstd's window (10 to 20, or 0 in an image without zstd).
//! Settings 33 to 44 are libdeflate at the levels 1 to 12; 64 is zstd at level −1, and 66 to 87 are
//! zstd at the levels 1 to 22. These packers pack all content they are given into *capacity* and 32
//! bytes, or fail, so they occur only in 2, and in 8 for the rest of the file. Deflate streams of
//! other packers have two more steps:
//!
//! ```text
//! 10 corrected      bytes of view, length of corrections, corrections as in recipes of version 1
//! 11 corrected end  the same, and no zeros
//! ```
//!
//! # Unpack recipe, version 2
//!
//! Behind the version byte stands the largest number of bytes that a cluster unpacks to; then
//! follow up to the end:
//!
//! ```text
//! 1  clusters    count, bytes of each: all content of each cluster
//! 2  clusters    count, bytes of each, bytes of content: that much of each cluster
//! 3  plain       bytes, bytes of padding behind them
//! 4  turned      bytes of the cluster, bytes of content, offset in the cluster of the first one
//! 5  left out    bytes
//! ```
//!
//! In version 4 the number of the algorithm stands before the count: 0 LZ4, 2 deflate, 3 zstd, as
//! in the image.

mod coder;
mod files;
mod make;
mod old;
mod repack;
mod steps;
mod unpack;

pub(super) use files::find;

use std::io::{self, Read, Write};

use super::error::{NoView, RecipeError};
use super::format::{Layer, Packed, PackedFile, Unpacked, ViewFormat, ViewLimits, ViewSink};
use super::map::ClusterMap;
use super::reader::Reader;
use crate::cut::ReadAt;
use crate::cut::erofs::{CLUSTER_BYTES_MAX, Coding, EXTENT_BYTES_MAX};

/// Clusters packed by LZ4 alone.
pub(super) static LZ4: Clusters = Clusters { form: Form::Lz4, name: "erofs-lz4" };

/// Clusters of any algorithm.
pub(super) static ANY: Clusters = Clusters { form: Form::Any, name: "erofs" };

/// Files in clusters of an EROFS image. The view is their content, many files in one view.
#[derive(Debug)]
pub(super) struct Clusters {
    form: Form,
    name: &'static str,
}

/// Form of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Version 2.
    Lz4,
    /// Version 4.
    Any,
}

impl Form {
    fn version(self) -> u8 {
        match self {
            Self::Lz4 => 2,
            Self::Any => 4,
        }
    }
}

impl ViewFormat for Clusters {
    fn version(&self) -> u8 {
        self.form.version()
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn layer(&self) -> Layer {
        Layer::Image
    }

    fn detects(&self, _head: &[u8]) -> bool {
        false
    }

    fn unpack(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        make::unpack(self.form, packed, limits.bytes, view)
    }

    fn unpack_old(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        old::unpack(self.form, packed, limits.bytes, view)
    }

    fn repack(&self, recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
        repack::repack(self.form, recipe, view, packed)
    }

    fn unpack_base(
        &self,
        recipe: &[u8],
        packed: &dyn ReadAt,
        max: u64,
        view: &mut dyn Write,
    ) -> Result<u64, RecipeError> {
        unpack::unpack(self.form, recipe, packed, max, view)
    }
}

/// Content shown to the packer beyond the longest cluster of a file, bytes. The packer looks ahead
/// only for the end of a match, which the end of the cluster mostly cuts off earlier; with more
/// than 64 KiB in all, LZ4 uses another table.
const LOOK_AHEAD: u64 = 128 << 10;

/// Longest window, bytes.
const WINDOW_MAX: u64 = EXTENT_BYTES_MAX + LOOK_AHEAD;

/// Bytes copied at once.
const COPY: usize = 64 << 10;

/// Returns the map of a file, if recipes of this form can describe its clusters.
fn map_of(form: Form, file: &PackedFile) -> Result<&ClusterMap, NoView> {
    let map = file.clusters.as_ref().ok_or(NoView::NoClusters)?;
    if form == Form::Any || map.is_lz4() { Ok(map) } else { Err(NoView::Algorithm) }
}

/// Algorithms with a decoder, by their numbers in an image.
const CODINGS: [(u8, Coding); 3] = [(0, Coding::Lz4), (2, Coding::Deflate), (3, Coding::Zstd)];

/// Returns the number of an algorithm in an unpack recipe. Only the algorithms in [`CODINGS`] occur
/// there.
fn number_of(coding: Coding) -> u8 {
    CODINGS.iter().find(|(_, known)| *known == coding).map_or(u8::MAX, |(number, _)| *number)
}

impl Reader<'_> {
    fn coding(&mut self) -> Result<Coding, RecipeError> {
        let number = self.expect_byte()?;
        let known = CODINGS.iter().find(|(known, _)| *known == number);
        known.map(|(_, coding)| *coding).ok_or(RecipeError::Damaged("unknown algorithm"))
    }

    /// Reads the length of a cluster in bytes.
    fn cluster(&mut self) -> Result<usize, RecipeError> {
        self.within(CLUSTER_BYTES_MAX)
    }
}
