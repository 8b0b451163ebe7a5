//! Recipe versions: the first byte of a recipe names the kind of packed bytes.

use std::io::{self, Read, Write};

use super::{clusters, gzip, recipe, streams};
use crate::cut::{ReadAt, gzip as members};

/// Largest recipe, bytes. The recipe of a 36 MB initrd has 5 kB.
pub const RECIPE_MAX: usize = 1 << 20;

/// First byte of a recipe for members of a gzip file.
pub(super) const GZIP_VERSION: u8 = 1;

/// First byte of a recipe for LZ4 clusters of an EROFS image.
pub(super) const CLUSTERS_VERSION: u8 = 2;

/// First byte of a recipe for clusters of an EROFS image, of any algorithm.
pub(super) const ANY_CLUSTERS_VERSION: u8 = 4;

/// Returns whether a recipe is for clusters. The view of such a recipe has the content of many
/// files.
pub fn is_of_clusters(recipe: &[u8]) -> bool {
    matches!(recipe.first(), Some(&(CLUSTERS_VERSION | ANY_CLUSTERS_VERSION)))
}

/// First byte of a recipe for a zip archive or a PNG file.
pub(super) const STREAMS_VERSION: u8 = 3;

/// Returns the first byte of the recipes for a file that starts with `head`, ten bytes; `None` if
/// such a file has no view of its own.
pub(super) fn version_of(head: &[u8]) -> Option<u8> {
    if members::is_magic(head) {
        Some(GZIP_VERSION)
    } else {
        streams::is_magic(head).then_some(STREAMS_VERSION)
    }
}

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

/// Packs a view again: reads the view once, in order, and writes the region to `sink`. Returns the
/// region's length.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe that does not fit the view. Lengths are bounded before
/// anything is allocated.
pub fn repack(recipe: &[u8], view: &mut impl Read, sink: &mut impl Write) -> Result<u64, RecipeError> {
    match versioned(recipe)? {
        (version @ (GZIP_VERSION | STREAMS_VERSION), recipe) => recipe::repack(version, recipe, view, sink),
        (version @ (CLUSTERS_VERSION | ANY_CLUSTERS_VERSION), recipe) => {
            clusters::repack(version, recipe, view, sink)
        }
        _ => Err(RecipeError::Damaged("unknown version")),
    }
}

/// Writes the view of an old packed file, or at least of its sound part, and returns the view's
/// length. `recipe` is [`PackedFile::version`](super::PackedFile::version) alone, or comes from
/// [`unpack_old_clusters`](super::unpack_old_clusters).
///
/// Stops at the first damage in the file and at `max` bytes. The view serves as base, so a short
/// one is still useful.
///
/// # Errors
/// [`RecipeError::Damaged`] for a recipe of another format. Lengths are bounded before anything is
/// allocated.
pub fn unpack_with<R: ReadAt + ?Sized>(
    recipe: &[u8],
    file: &R,
    max: u64,
    sink: &mut impl Write,
) -> Result<u64, RecipeError> {
    match versioned(recipe)? {
        (GZIP_VERSION, _) => Ok(gzip::inflate(file, max, sink)?),
        (STREAMS_VERSION, _) => Ok(streams::inflate(file, max, sink)?),
        (version @ (CLUSTERS_VERSION | ANY_CLUSTERS_VERSION), recipe) => {
            clusters::unpack(version, recipe, file, max, sink)
        }
        _ => Err(RecipeError::Damaged("unknown version")),
    }
}

fn versioned(recipe: &[u8]) -> Result<(u8, &[u8]), RecipeError> {
    if recipe.len() > RECIPE_MAX {
        return Err(RecipeError::Damaged("it is too long"));
    }
    let (version, rest) = recipe.split_first().ok_or(RecipeError::Damaged("it ends early"))?;
    Ok((*version, rest))
}
