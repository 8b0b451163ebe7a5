//! Packed files of an artifact, and their grouping into views.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::error::NoView;
use super::format::{HEAD_BYTES, Layer, Packed, PackedFile, Unpacked, ViewFormat, ViewLimits, ViewSink};
use super::{FORMATS, clusters, squashfs};
use crate::cut::erofs::Reader;
use crate::cut::{ReadAt, RegionKind, Regions, volumes};

/// Smallest file worth a view, bytes.
const PACKED_MIN: u64 = 4096;

/// Shortest first part of a file that shows the format, bytes: the header of a gzip member.
const PART_MIN: u64 = 10;

/// Parts whose length is a multiple of this block size belong to a file's body; any other part is
/// its tail.
const BLOCK: u64 = 512;

/// Result of [`find`].
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Packed files that may have views, in groups.
    pub groups: Vec<Group>,
    /// Names of the files without a view, and the reasons.
    pub without: Vec<(Vec<u8>, NoView)>,
}

/// Packed files that share a view.
#[derive(Clone, Debug)]
pub struct Group {
    /// Format of the view.
    pub format: &'static dyn ViewFormat,
    /// Files in the order of the view.
    pub files: Vec<PackedFile>,
}

impl Group {
    /// Makes view and recipe of files of a new release ([`ViewFormat::unpack`]).
    ///
    /// # Errors
    /// Any error from reading the artifact or writing to `view`.
    pub fn unpack<R: ReadAt + ?Sized>(
        &self,
        artifact: &R,
        limits: impl Into<ViewLimits>,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        self.format.unpack(&Packed { artifact: &artifact, files: &self.files }, limits.into(), view)
    }

    /// Makes view and unpack recipe of files of an old release ([`ViewFormat::unpack_old`]).
    ///
    /// # Errors
    /// Any error from reading the artifact or writing to `view`.
    pub fn unpack_old<R: ReadAt + ?Sized>(
        &self,
        artifact: &R,
        limits: impl Into<ViewLimits>,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        self.format.unpack_old(&Packed { artifact: &artifact, files: &self.files }, limits.into(), view)
    }
}

/// Finds the packed files of a layer. `regions` are the regions of the artifact.
///
/// Only files whose name and parts `wanted` accepts are returned. In an image these are the files
/// that have clusters packed by LZ4, deflate or zstd, or the files, blocks of fragments and tables
/// of SquashFS, in the order of their first parts; nothing for an artifact that is not such an
/// image, or is damaged. Memory: 32 bytes per extent of these files. Other files are found by their
/// first [`HEAD_BYTES`] bytes, in order of name; those that may share a view
/// ([`ViewFormat::shares`]) are in one group.
///
/// # Errors
/// Any error from reading the artifact.
pub fn find<R: ReadAt + ?Sized>(
    layer: Layer,
    artifact: &R,
    regions: &Regions,
    mut wanted: impl FnMut(&[u8], &[Range<u64>]) -> bool,
) -> io::Result<Found> {
    match layer {
        Layer::Image => {
            let mut found = clusters::find(artifact, regions, &mut wanted);
            let blocks = squashfs::find(artifact, regions, wanted);
            found.groups.extend(blocks.groups);
            found.without.extend(blocks.without);
            Ok(found)
        }
        Layer::File => files(artifact, regions, wanted),
    }
}

/// Returns end and name of the packed region that starts at `start`.
pub(super) fn packed_region_at(regions: &Regions, start: u64) -> Option<(u64, Option<&[u8]>)> {
    let index = regions.all().binary_search_by_key(&start, |region| region.start).ok()?;
    let region = &regions.all()[index];
    (region.kind == RegionKind::Packed).then(|| (region.end(), regions.name(region)))
}

/// Splits files into groups that share a view, in order: each has files of at most `most` together,
/// or one file that is heavier.
pub(super) fn split_by_weight(
    files: Vec<PackedFile>,
    most: u64,
    weight: impl Fn(&PackedFile) -> u64,
) -> Vec<Vec<PackedFile>> {
    let (mut groups, mut sum): (Vec<Vec<PackedFile>>, u64) = (Vec::new(), 0);
    for file in files {
        let weight = weight(&file);
        sum = sum.saturating_add(weight);
        match groups.last_mut() {
            Some(group) if sum <= most => group.push(file),
            _ => {
                groups.push(vec![file]);
                sum = weight;
            }
        }
    }
    groups
}

/// Returns the format of a file that begins at `start`; `None` if it has no view.
///
/// # Errors
/// Any error from reading the artifact.
pub(super) fn format_at(
    artifact: &dyn ReadAt,
    start: u64,
    len: u64,
) -> io::Result<Option<&'static dyn ViewFormat>> {
    let head = head_at(artifact, start, len)?;
    Ok(FORMATS.iter().find(|format| format.detects(&head)).copied())
}

fn head_at(artifact: &dyn ReadAt, start: u64, len: u64) -> io::Result<[u8; HEAD_BYTES]> {
    let mut head = [0; HEAD_BYTES];
    let here = usize::try_from(len).unwrap_or(HEAD_BYTES).min(HEAD_BYTES);
    artifact.read_exact_at(&mut head[..here], start)?;
    Ok(head)
}

/// Finds files whose first bytes show a format.
///
/// A tail that lies among the inodes, before the body, is moved behind the body. If the guessed
/// order is wrong, the view ends early and the rest of the file becomes part of its recipe. A tail
/// that is too short for a region is known to the format, and is in no patch.
fn files<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    mut wanted: impl FnMut(&[u8], &[Range<u64>]) -> bool,
) -> io::Result<Found> {
    let mut files: BTreeMap<&[u8], Vec<Range<u64>>> = BTreeMap::new();
    for region in regions.all() {
        if let Some(name) = regions.name(region) {
            files.entry(name).or_default().push(region.start..region.end());
        }
    }
    let (mut found, mut open) = (Found::default(), Open::default());
    // Only packed files need their tails, and finding these takes a walk over all inodes.
    let tails = LazyCell::new(|| short_tails(artifact));
    for (name, mut parts) in files {
        let len: u64 = parts.iter().map(|part| part.end - part.start).sum();
        if len < PACKED_MIN || !wanted(name, &parts) {
            continue;
        }
        parts.sort_by_key(|part| part.start);
        let in_a_row = parts.windows(2).all(|two| two[0].end == two[1].start);
        // The members of one gzip file lie one behind the other, whatever their lengths, so keep
        // their order.
        if !in_a_row || packed_as(artifact, &parts[0])?.is_none() {
            parts.sort_by_key(|part| (!(part.end - part.start).is_multiple_of(BLOCK), part.start));
        }
        if let Some(format) = packed_as(artifact, &parts[0])? {
            let head = head_at(&artifact, parts[0].start, parts[0].end - parts[0].start)?;
            let tail = tails.get(name).cloned();
            let file = PackedFile { tail, ..PackedFile::new(name.to_vec(), parts) };
            open.add(&mut found.groups, format, &head, len, file);
        }
    }
    Ok(found)
}

/// Returns the ends of files that are too short for a region, by name, of all images in an
/// artifact.
fn short_tails<R: ReadAt + ?Sized>(artifact: &R) -> BTreeMap<Vec<u8>, Range<u64>> {
    let mut tails = BTreeMap::new();
    for volume in volumes(artifact) {
        let start = volume.range.start;
        let image = volume.reader(artifact);
        if let Some(reader) = Reader::open(&image) {
            // `None` means that the image is not sound. A view then ends early.
            let _ = reader.short_tails(|path, tail| {
                tails.insert(volume.name(path), start + tail.start..start + tail.end);
            });
        }
    }
    tails
}

/// Groups that take further files: index and packed bytes, by format and the number that the files
/// have in common.
#[derive(Default)]
struct Open(BTreeMap<(&'static str, u64), (usize, u64)>);

impl Open {
    /// Adds a file of `len` packed bytes to the group for it, or to a new one.
    fn add(
        &mut self,
        groups: &mut Vec<Group>,
        format: &'static dyn ViewFormat,
        head: &[u8],
        len: u64,
        file: PackedFile,
    ) {
        let shared = format.shares(head).filter(|(_, most)| len <= *most);
        if let Some((number, most)) = shared
            && let Some((index, bytes)) = self.0.get_mut(&(format.name(), number))
            && *bytes + len <= most
        {
            *bytes += len;
            groups[*index].files.push(file);
            return;
        }
        if let Some((number, _)) = shared {
            self.0.insert((format.name(), number), (groups.len(), len));
        }
        groups.push(Group { format, files: vec![file] });
    }
}

fn packed_as<R: ReadAt + ?Sized>(
    artifact: &R,
    part: &Range<u64>,
) -> io::Result<Option<&'static dyn ViewFormat>> {
    let len = part.end - part.start;
    if len < PART_MIN { Ok(None) } else { format_at(&artifact, part.start, len) }
}

/// Makes the recipe of a packed file, and writes its view to `sink` from the current position on.
/// `None` if a view of the file is not worth it, or its format is not known.
///
/// A view has at most `max` bytes.
///
/// # Errors
/// Any error from reading the file or writing to `sink`.
pub fn unpack<R: ReadAt + ?Sized>(
    file: &R,
    max: u64,
    sink: &mut dyn ViewSink,
) -> io::Result<Option<Unpacked>> {
    let Some(format) = format_at(&file, 0, file.len())? else { return Ok(None) };
    let parts = std::iter::once(0..file.len()).collect();
    let group = Group { format, files: vec![PackedFile::new(Vec::new(), parts)] };
    Ok(Some(group.unpack(file, max, sink)?).filter(|made| !made.recipe.is_empty()))
}
