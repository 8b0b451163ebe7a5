//! Interface of a format with views.

use std::fmt::Debug;
use std::io::{self, Read, Seek, Write};
use std::ops::Range;

use super::error::{NoView, RecipeError};
use super::map::ClusterMap;
use super::parts::parts;
use super::squashfs::BlockMap;
use crate::cut::{ReadAt, RegionKind, len_of, read_parts};
use crate::patch::Cost;

/// Largest recipe, bytes. The recipe of a 36 MB initrd has 5 kB.
pub const RECIPE_MAX: usize = 1 << 20;

/// Bytes at the start of a file that show its format: those of the header of a kernel image.
pub const HEAD_BYTES: usize = 0x250;

/// Packed format whose content can be cut, paired, and packed again bit for bit.
///
/// A format of packed files implements `version`, `name`, `detects`, `unpack`, `repack` and
/// `unpack_base`. The other functions have defaults that only formats of images replace.
pub trait ViewFormat: Debug + Sync {
    /// First byte of the format's recipes (docs/formats.md, "Formats with views"). A version is
    /// never reused. Formats may share one if they read each other's recipes.
    fn version(&self) -> u8;

    /// Name for logs and tools, and of the format's golden files.
    fn name(&self) -> &'static str;

    /// Place where the format's packed bytes lie.
    fn layer(&self) -> Layer {
        Layer::File
    }

    /// Returns whether a file that starts with `head` may be of this format. `head` has
    /// [`HEAD_BYTES`] bytes, the last of them zeros if the file is shorter. Never true for formats
    /// of [`Layer::Image`], which the image describes.
    fn detects(&self, head: &[u8]) -> bool;

    /// Returns a number that files have in common if they may share a view, and the most packed
    /// bytes of files in one view. `head` is as in [`detects`](Self::detects). `None` if each file
    /// has a view of its own.
    fn shares(&self, _head: &[u8]) -> Option<(u64, u64)> {
        None
    }

    /// Writes the view of packed bytes to `view` at the origin, from the current position on, and
    /// makes the recipe that packs the view again.
    ///
    /// The format packs everything again and compares, so a recipe always fits.
    ///
    /// # Errors
    /// Any error from reading the artifact or writing to `view`.
    fn unpack(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked>;

    /// Writes the view of packed bytes of an old release to `view` at the origin, from the current
    /// position on, and makes the recipe with which a device makes the same view
    /// ([`unpack_base`](Self::unpack_base)).
    ///
    /// # Errors
    /// Any error from reading the artifact or writing to `view`.
    fn unpack_old(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        match self.unpack_base(&[], packed, limits.bytes, &mut *view) {
            Ok(0) => Ok(Unpacked::without(NoView::NotWorth)),
            Ok(bytes) => Ok(Unpacked::of_file(vec![self.version()], bytes)),
            Err(RecipeError::Io(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Packs a view on a device: reads the view once, in order, and writes the packed bytes to
    /// `packed`. Returns their number. `recipe` lacks its version byte.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`] for a recipe that does not fit the view. Lengths are bounded before
    /// anything is allocated.
    fn repack(&self, recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError>;

    /// Writes the view of old packed bytes on a device, at most `max` bytes, and returns its
    /// length. `recipe` lacks its version byte.
    ///
    /// Stops at the first damage. The view serves as base, so a short one is still useful.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`] for a recipe of another format. Lengths are bounded before anything
    /// is allocated.
    fn unpack_base(
        &self,
        recipe: &[u8],
        packed: &dyn ReadAt,
        max: u64,
        view: &mut dyn Write,
    ) -> Result<u64, RecipeError>;

    /// Returns the cost of packing by a recipe, which lacks its version byte.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`] for a recipe that is not sound, or needs more than any [`Cost`].
    fn cost(&self, _recipe: &[u8]) -> Result<Cost, RecipeError> {
        Ok(Cost::UNSTATED)
    }

    /// Returns the cost of unpacking by an unpack recipe, which lacks its version byte.
    ///
    /// # Errors
    /// As [`cost`](Self::cost).
    fn unpack_cost(&self, _recipe: &[u8]) -> Result<Cost, RecipeError> {
        Ok(Cost::UNSTATED)
    }
}

/// Bounds of a view that the origin makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewLimits {
    /// Longest view, bytes.
    pub bytes: u64,
    /// Most memory for packing or unpacking, bytes: a file that needs more has no view.
    pub memory: u64,
}

/// A bound of the view's length alone.
impl From<u64> for ViewLimits {
    fn from(bytes: u64) -> Self {
        Self { bytes, memory: u64::MAX }
    }
}

/// Writer of a view that may start again where the view begins.
pub trait ViewSink: Write + Seek {}

impl<S: Write + Seek> ViewSink for S {}

/// Place where packed bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// In an image that packs the content of its files. A view is the content of many files.
    Image,
    /// In a file that is packed by itself. The file may lie in a view of an image, or of another
    /// file.
    File,
}

/// Part of a view: length in bytes, kind and name of a region.
pub type Part = (u64, RegionKind, Vec<u8>);

impl Layer {
    /// All layers.
    pub const ALL: [Self; 2] = [Self::Image, Self::File];

    /// Layers in the order in which they are unpacked: the image, then files three deep. A module
    /// in an initrd is two deep. A further file is looked for only in the views of the round before
    /// it, and no round follows one that found nothing.
    pub const ROUNDS: [Self; 4] = [Self::Image, Self::File, Self::File, Self::File];

    /// Returns whether a view takes over the names of the packed regions, because the view
    /// resembles the old content and the packed bytes do not.
    pub fn hides_names(self) -> bool {
        self == Self::Image
    }

    /// Returns the parts of views: the input of
    /// [`Regions::from_parts`](crate::cut::Regions::from_parts). `files` are the names of the files
    /// and the ranges of their content in `views`, one behind the other.
    ///
    /// # Errors
    /// Any error from reading the views.
    pub fn parts<R: ReadAt + ?Sized>(
        self,
        views: &R,
        files: &[(Vec<u8>, Range<u64>)],
    ) -> io::Result<Vec<Part>> {
        let mut out = Vec::new();
        for (name, range) in files {
            match self {
                Self::Image => out.push((range.end - range.start, RegionKind::File, name.clone())),
                Self::File => out.extend(parts(views, range.clone(), name)?),
            }
        }
        Ok(out)
    }
}

/// Packed file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedFile {
    /// Name of the file's regions.
    pub name: Vec<u8>,
    /// Ranges of the file's bytes in the artifact, in file order.
    pub parts: Vec<Range<u64>>,
    /// Description of the file's clusters, in an EROFS image.
    pub(super) clusters: Option<ClusterMap>,
    /// Description of the file's blocks, in a SquashFS image.
    pub(super) blocks: Option<BlockMap>,
    /// Range of the file's last bytes, if no region of it has them: a view needs them, but they are
    /// neither packed nor unpacked.
    pub(super) tail: Option<Range<u64>>,
}

impl PackedFile {
    /// Describes a file that is packed by itself.
    pub fn new(name: Vec<u8>, parts: Vec<Range<u64>>) -> Self {
        Self { name, parts, clusters: None, blocks: None, tail: None }
    }
}

/// Packed files that share a view, one behind the other: one file, or many files of an image.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    /// Artifact that contains the files.
    pub artifact: &'a dyn ReadAt,
    /// Files in the order of the view.
    pub files: &'a [PackedFile],
}

impl ReadAt for Packed<'_> {
    fn len(&self) -> u64 {
        len_of(self.files.iter().flat_map(|file| &file.parts))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        read_parts(self.artifact, self.files.iter().flat_map(|file| &file.parts), buf, offset)
    }
}

/// Result of unpacking at the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Recipe that packs the view again, or unpacks the old one, at most [`RECIPE_MAX`] bytes;
    /// empty if no file has a view.
    pub recipe: Vec<u8>,
    /// Length of the view in bytes, from the sink's initial position on. Bytes behind it do not
    /// count.
    pub view_bytes: u64,
    /// For each file its range in the view, or the reason why it has none. The recipe is for the
    /// parts of the files with a view, in order.
    pub files: Vec<Result<Range<u64>, NoView>>,
}

impl Unpacked {
    pub(super) fn of_file(recipe: Vec<u8>, view_bytes: u64) -> Self {
        let files = std::iter::once(Ok(0..view_bytes)).collect();
        Self { recipe, view_bytes, files }
    }

    pub(super) fn without(reason: NoView) -> Self {
        Self { recipe: Vec::new(), view_bytes: 0, files: vec![Err(reason)] }
    }

    /// Returns the ranges of the packed bytes that the recipe is for: the parts of the files with a
    /// view. `files` are those that were unpacked.
    pub fn parts(&self, files: &[PackedFile]) -> Vec<Range<u64>> {
        self.with_view(files).flat_map(|(file, _)| file.parts.iter().cloned()).collect()
    }

    /// Returns names and ranges of the files in the view, which begins at `start`. A packed file
    /// that holds others, such as a block with the ends of files, has the names of these.
    pub fn named(&self, files: &[PackedFile], start: u64) -> Vec<(Vec<u8>, Range<u64>)> {
        let named = |(file, range): (&PackedFile, &Range<u64>)| {
            let range = start + range.start..start + range.end;
            match &file.blocks {
                Some(map) => map.named(&file.name, range),
                None => vec![(file.name.clone(), range)],
            }
        };
        self.with_view(files).flat_map(named).collect()
    }

    fn with_view<'a>(
        &'a self,
        files: &'a [PackedFile],
    ) -> impl Iterator<Item = (&'a PackedFile, &'a Range<u64>)> {
        files.iter().zip(&self.files).filter_map(|(file, range)| Some((file, range.as_ref().ok()?)))
    }
}
