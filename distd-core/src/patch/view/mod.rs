//! Views: the unpacked content of packed files.
//!
//! A packed file changes everywhere when one byte of its content does. The [`FORMATS`] with views
//! belong to two layers ([`Layer`]):
//! - files packed by themselves: gzip members (an initrd, a changelog), whose view is the
//!   concatenated plain text of the members; zip archives and PNG files, whose view has the plain
//!   text of each deflate stream in its place between the other bytes; xz and zstd streams, in
//!   files, kernel images and behind archives;
//! - images: the files of an EROFS image that the image packs by LZ4, deflate or zstd, and the
//!   blocks of a SquashFS image; one view is the content of many files.
//!
//! A **recipe** says how to pack a view again, bit for bit. The views of the old and the new
//! release are paired like any other bytes. While a patch set is applied, the device rebuilds the
//! new view, packs it again and writes the result. A gzip file within such an image has a view
//! within a view: packing the gzip file's view makes the file's bytes in the view of the clusters,
//! and packing that view makes the clusters. Files lie three deep at most ([`Layer::ROUNDS`]).
//!
//! The origin finds packed files ([`find`]), makes recipes ([`Group::unpack`]) and offers only
//! those that it has tried with the code that the device runs ([`packs_again`]). A device packs
//! ([`repack`]) and unpacks its own old file ([`unpack_base`]), an order of magnitude quicker than
//! the origin.
//!
//! Memory for views of deflate streams: unpacking and packing hold one piece at a time, at most
//! [`PIECE_PLAIN_MAX`] of plain text, and the packer's own state: 8 MB in all to pack the reference
//! initrd (130 MB of view), 10 MB to take it apart. Memory for clusters: the content of the longest
//! cluster and the packer's state. With LZ4, whose packer has 1.2 MB of state, this is 14 MB at
//! most; zstd's slowest level takes up to 20 MB more. Memory for xz and zstd streams follows from
//! their settings: 13 MB for a kernel module, 770 MB for a kernel that is packed with zstd's
//! highest level. Their recipes state it as a [`Cost`], and a device chooses by it
//! ([`choose`](super::choose())).
//!
//! To add a format: CONTRIBUTING.md, "To add …".

mod clusters;
mod corrections;
mod error;
mod find;
mod format;
mod frames;
mod gzip;
mod map;
mod parts;
mod pieces;
mod png;
mod reader;
mod squashfs;
mod streams;
mod transparency;
mod zip;

use std::io::{self, Read, Write};

use super::Cost;
use crate::cut::ReadAt;

pub use crate::cut::Joined;
pub use error::{NoView, RecipeError};
pub use find::{Found, Group, find, unpack};
pub use format::{
    HEAD_BYTES, Layer, Packed, PackedFile, Part, RECIPE_MAX, Unpacked, ViewFormat, ViewLimits, ViewSink,
};
pub use parts::parts;
pub use pieces::{LITERAL_MAX, PIECE_PLAIN_MAX};
pub use transparency::{Opaque, Transparency, ViewFile, transparency};

/// All formats with views.
pub static FORMATS: &[&dyn ViewFormat] = &[
    &gzip::Gzip,
    &zip::Zip,
    &png::Png,
    &clusters::LZ4,
    &clusters::ANY,
    &streams::XZ,
    &streams::ZSTD,
    &streams::KERNEL,
    &streams::ARCHIVE,
    &squashfs::SQUASHFS,
];

/// Packs a view again: reads the view once, in order, and writes the packed bytes to `packed`.
/// Returns their number.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that does not fit the view. Lengths are bounded before
/// anything is allocated.
pub fn repack(recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
    let (mut formats, recipe) = formats_of(recipe)?;
    formats.next().ok_or(UNKNOWN)?.repack(recipe, view, packed)
}

/// Writes the view of old packed bytes, or at least of their sound part, and returns the view's
/// length. `recipe` comes from [`Group::unpack_old`].
///
/// Stops at the first damage in the packed bytes and at `max` bytes. The view serves as base, so a
/// short one is still useful.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe of another format. Lengths are bounded before anything is
/// allocated.
pub fn unpack_base<R: ReadAt + ?Sized>(
    recipe: &[u8],
    packed: &R,
    max: u64,
    view: &mut dyn Write,
) -> Result<u64, RecipeError> {
    let (mut formats, recipe) = formats_of(recipe)?;
    let first = formats.next().ok_or(UNKNOWN)?;
    // The file's own bytes tell apart formats that share a version.
    let format = match formats.next() {
        None => first,
        Some(_) => find::format_at(&packed, 0, packed.len())?
            .filter(|format| format.version() == first.version())
            .unwrap_or(first),
    };
    format.unpack_base(recipe, &packed, max, view)
}

/// Returns the cost of packing by a recipe.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that is not sound, or needs more than any [`Cost`].
pub fn cost(recipe: &[u8]) -> Result<Cost, RecipeError> {
    let (mut formats, recipe) = formats_of(recipe)?;
    formats.next().ok_or(UNKNOWN)?.cost(recipe)
}

/// Returns the cost of unpacking by an unpack recipe.
///
/// # Errors
/// As [`cost`].
pub fn unpack_cost(recipe: &[u8]) -> Result<Cost, RecipeError> {
    let (mut formats, recipe) = formats_of(recipe)?;
    formats.next().ok_or(UNKNOWN)?.unpack_cost(recipe)
}

/// Returns whether [`repack`], which devices run as well, makes exactly `packed` from `view`.
pub fn packs_again<R: ReadAt + ?Sized>(recipe: &[u8], view: &mut dyn Read, packed: &R) -> bool {
    let mut same = Same::of(&packed);
    repack(recipe, view, &mut same).is_ok_and(|bytes| bytes == packed.len())
}

const UNKNOWN: RecipeError = RecipeError::Damaged("unknown version");

/// Returns the formats of a recipe's version, and the recipe without it.
fn formats_of(recipe: &[u8]) -> Result<(impl Iterator<Item = &'static dyn ViewFormat>, &[u8]), RecipeError> {
    if recipe.len() > RECIPE_MAX {
        return Err(RecipeError::Damaged("it is too long"));
    }
    let (version, rest) = recipe.split_first().ok_or(RecipeError::Damaged("it ends early"))?;
    let version = *version;
    Ok((FORMATS.iter().copied().filter(move |format| format.version() == version), rest))
}

/// Writer that compares the bytes written to it with packed bytes.
pub(crate) struct Same<'a> {
    packed: &'a dyn ReadAt,
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> Same<'a> {
    pub(crate) fn of(packed: &'a dyn ReadAt) -> Self {
        Self { packed, at: 0, buffer: Vec::new() }
    }
}

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        self.packed.read_exact_at(&mut self.buffer, self.at)?;
        if self.buffer != bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
