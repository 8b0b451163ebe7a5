//! Views of SquashFS images: the content of files, of the ends of files, and of the image's tables.
//!
//! Each block of a SquashFS image is packed by itself, so a change of a byte changes a block. A
//! block of fragments has the ends of many files, mostly whole small files, and all of them change
//! their places when one of them grows; and so does every inode. The view is the content, with the
//! names of the files, and the tables unpacked.
//!
//! `files.rs` finds the blocks and decides which of them share a view. `make.rs` makes view and
//! recipe of a group of the new release, `old.rs` those of a group of the old release; both compose
//! recipes of the steps in `steps.rs`. A device packs with `repack.rs` and unpacks with
//! `unpack.rs`. The packers are in `coder.rs`.
//!
//! # Recipe, version 6
//!
//! Numbers are varints as in RFC 9000 §16. Behind the version byte stand the number of the
//! algorithm as in the image (1 zlib, 4 xz, 5 LZ4, 6 zstd) and log2 of the length of a block. Then
//! follow steps up to the end, each a byte and its fields:
//!
//! ```text
//! 0  setting    see below; for all steps behind it
//! 1  packed     count, bytes of view each
//! 2  stored     bytes of view
//! 3  table      bytes of view
//! 4  corrected  bytes of view, two bytes, length, corrections as in recipes of version 1
//! 5  literal    length, bytes
//! ```
//!
//! The bytes of view of 1 are packed in blocks of the image's length, the last of each run shorter
//! if they do not fill it. 2 copies bytes of the view. The bytes of 3 are packed in blocks of 8192
//! bytes, each behind two bytes: its length, and bit 15 if it is not packed, because packing it
//! does not make it shorter. 4 is one block: a zlib stream with the two bytes as its header. 5
//! replaces content that the view lacks.
//!
//! *Setting* is for zlib its level and log2 of the window; for xz preset, properties and filters as
//! in recipes of version 5, without the extra byte; for LZ4 1 for its slow mode, else 0; for zstd
//! its level. An xz block is a file as `lzma_stream_buffer_encode` makes it with CRC32.
//!
//! # Unpack recipe, version 6
//!
//! It begins as a recipe does. Steps:
//!
//! ```text
//! 1  packed     count, bytes of each block
//! 2  stored     bytes
//! 3  table      bytes, in blocks with headers
//! ```

mod coder;
mod files;
mod make;
mod map;
mod old;
mod repack;
mod steps;
mod unpack;

pub(super) use files::find;
pub(super) use map::BlockMap;

use std::io::{self, Read, Write};

use super::error::RecipeError;
use super::format::{Layer, Packed, Unpacked, ViewFormat, ViewLimits, ViewSink};
use super::reader::Reader;
use crate::cut::ReadAt;
use crate::cut::squashfs::{BLOCK_BITS, Packing};
use crate::patch::Cost;

/// First byte of recipes.
const VERSION: u8 = 6;

const STEP_SETTING: u8 = 0;
const STEP_PACKED: u8 = 1;
const STEP_STORED: u8 = 2;
const STEP_TABLE: u8 = 3;
const STEP_CORRECTED: u8 = 4;
const STEP_LITERAL: u8 = 5;

/// Blocks of SquashFS images.
pub(super) static SQUASHFS: SquashFs = SquashFs;

/// Format of the blocks of SquashFS images.
#[derive(Debug)]
pub(super) struct SquashFs;

impl ViewFormat for SquashFs {
    fn version(&self) -> u8 {
        VERSION
    }

    fn name(&self) -> &'static str {
        "squashfs"
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
        make::unpack(packed, limits, view)
    }

    fn unpack_old(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        old::unpack(packed, limits, view)
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

/// What recipes and unpack recipes begin with.
#[derive(Clone, Copy, Debug)]
struct Head {
    packing: Packing,
    /// Most bytes of content in a block of data.
    block_bytes: usize,
}

impl Head {
    fn take(reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        let packing = Packing::from_number(u16::from(reader.expect_byte()?));
        let packing = packing.ok_or(RecipeError::Damaged("unknown algorithm"))?;
        let bits = u16::from(reader.expect_byte()?);
        if !BLOCK_BITS.contains(&bits) {
            return Err(RecipeError::Damaged("a number is out of bounds"));
        }
        Ok(Self { packing, block_bytes: 1 << bits })
    }

    fn put(map: &BlockMap, out: &mut Vec<u8>) {
        out.extend_from_slice(&[map.packing.number(), map.block_bytes.trailing_zeros() as u8]);
    }
}
