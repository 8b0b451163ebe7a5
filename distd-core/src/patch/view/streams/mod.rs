//! Views of files with streams of xz and zstd: `.xz` and `.zst` files, kernel images, and archives
//! with packed archives behind them, as an initrd has them.
//!
//! The view has the content of each stream in its place. Headers, checks and indexes of xz files
//! are in the recipe. Bytes around the streams of a kernel image, and archives that are not packed,
//! are in the view as they are. Short files share a view, because a view costs some hundred bytes
//! in a set.
//!
//! `scan.rs` takes a file apart, `make.rs` finds the settings that make its streams, and
//! `repack.rs` and `unpack.rs` are a device's sides. The coders are in `lzma2.rs` and `zstd.rs`.
//!
//! The origin tries settings until one makes the same bytes: liblzma and zstd, each in the version
//! that is built in. A stream made by a version that packs otherwise has no view. An attempt ends
//! at the first byte that differs. A stream costs at most four times its packing, or 32 MiB of
//! content packed with wrong settings where that is more (`make.rs`).
//!
//! zstd packs in a thread of its own, because that makes other bytes than packing without one, and
//! its tool does so.
//!
//! # Recipe, version 5
//!
//! Numbers are varints as in RFC 9000 §16. Behind the version byte follow steps up to the end, each
//! a byte and its fields:
//!
//! ```text
//! 0  literal   length, bytes
//! 1  copy      bytes of view, as they are
//! 2  LZMA2     bytes of view, preset, properties, filters
//! 3  zstd      bytes of view, level (zigzag), flags, log2 of the window
//! 4  gzip      bytes of view, length, pieces 0 to 2 as in recipes of version 1
//! 5  zeros     length
//! 6  cut       length, bytes that are dropped
//! ```
//!
//! 2 is the data of one xz block. *Preset* is one of `xz`'s, 0 to 9, plus 16 for the slower one.
//! *Properties* is LZMA's byte of literal and position bits. *Filters* is their number, and each
//! filter as in the header of a block: its number, the length of its properties, and these; the
//! last filter is LZMA2. 3 is one frame. A *window* of 0 is that of the level. *Flags*: bit 0 one
//! worker, bit 1 the call with the last content ends the frame, bit 2 all content in one call of at
//! most 16 MiB, bit 3 checksum, bit 4 the header states the length, bit 5 matches at a long
//! distance. Behind 6, *length* of the bytes that the next steps make are of the packed file, and
//! the bytes behind them are dropped: the last bytes of a file may lie among the inodes of an
//! image, where they belong to no chunk of the file.
//!
//! # Unpack recipe, version 5
//!
//! ```text
//! 0  skip      bytes
//! 1  copy      bytes
//! 2  LZMA2     packed bytes, filters
//! 3  zstd      packed bytes, log2 of the window
//! 4  gzip      packed bytes
//! 5  tail      packed bytes, length, bytes
//! ```
//!
//! Behind 5, the packed bytes go on with the bytes of the step where *packed bytes* of them end.
//!
//! Neither recipe states its memory. It follows from the steps ([`ViewFormat::cost`]), and a device
//! compares it with what the index of the set says before it packs.

pub(super) mod coder;
mod kernel;
pub(super) mod lzma2;
mod make;
mod repack;
mod scan;
mod unpack;
pub(super) mod xz;
mod zstd;

use std::io::{self, Read, Write};

use super::error::RecipeError;
use super::format::{Packed, Unpacked, ViewFormat, ViewLimits, ViewSink};
use crate::cut::{ReadAt, cpio};
use crate::patch::Cost;

pub(super) const STEP_LITERAL: u8 = 0;
pub(super) const STEP_COPY: u8 = 1;
pub(super) const STEP_LZMA2: u8 = 2;
pub(super) const STEP_ZSTD: u8 = 3;
pub(super) const STEP_GZIP: u8 = 4;
pub(super) const STEP_ZEROS: u8 = 5;
pub(super) const STEP_CUT: u8 = 6;

/// First byte of recipes.
const VERSION: u8 = 5;

/// Packed bytes of the files that share a view: some seconds of packing, so that a device's cores
/// share the work and little is lost with a view that fails.
const GROUP_BYTES: u64 = 512 << 10;

/// Files of xz streams.
pub(super) static XZ: Streams = Streams { kind: Kind::Xz, name: "xz" };

/// Files of zstd frames.
pub(super) static ZSTD: Streams = Streams { kind: Kind::Zstd, name: "zstd" };

/// Kernel images of x86.
pub(super) static KERNEL: Streams = Streams { kind: Kind::Kernel, name: "kernel" };

/// cpio archives with anything packed in or behind them.
pub(super) static ARCHIVE: Streams = Streams { kind: Kind::Archive, name: "cpio" };

/// Format of files with streams.
#[derive(Debug)]
pub(super) struct Streams {
    kind: Kind,
    name: &'static str,
}

/// Kind of a file, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Xz,
    Zstd,
    Kernel,
    Archive,
}

impl ViewFormat for Streams {
    fn version(&self) -> u8 {
        VERSION
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn detects(&self, head: &[u8]) -> bool {
        match self.kind {
            Kind::Xz => xz::is_magic(head),
            Kind::Zstd => head.starts_with(&zstd::MAGIC.to_le_bytes()),
            Kind::Kernel => kernel::is_magic(head),
            Kind::Archive => cpio::is_magic(head),
        }
    }

    fn shares(&self, head: &[u8]) -> Option<(u64, u64)> {
        let window = match self.kind {
            Kind::Xz => xz::dictionary(head)?,
            Kind::Zstd => zstd::window(head)?,
            Kind::Kernel | Kind::Archive => return None,
        };
        Some((window, GROUP_BYTES))
    }

    fn unpack(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        make::unpack(self.kind, packed, limits, view)
    }

    fn unpack_old(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        unpack::unpack_old(self.kind, packed, limits, view)
    }

    fn repack(&self, recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
        repack::repack(recipe, view, packed)
    }

    fn unpack_base(
        &self,
        recipe: &[u8],
        packed: &dyn ReadAt,
        max: u64,
        view: &mut dyn Write,
    ) -> Result<u64, RecipeError> {
        unpack::unpack(recipe, packed, max, view)
    }

    fn cost(&self, recipe: &[u8]) -> Result<Cost, RecipeError> {
        repack::cost(recipe)
    }

    fn unpack_cost(&self, recipe: &[u8]) -> Result<Cost, RecipeError> {
        unpack::cost(recipe)
    }
}
