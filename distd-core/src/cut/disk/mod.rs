//! Disk images: partition tables, and the partitions as volumes of their own.

mod gpt;
mod make;
mod mbr;
mod name;

use std::ops::Range;

use super::gzip::Budget;
use super::{Joined, ReadAt, RegionKind, Regions, erofs, pe, squashfs, volume};
use crate::bounds::{ARTIFACT_BYTES_MAX, REGIONS_MAX};

pub use make::{MadeDisk, MakeDiskError};

/// Separator between the name of a partition and the path of a file in it:
/// `root///usr/bin/mount`. It is no [`NAME_SEPARATOR`](super::NAME_SEPARATOR) followed by a path.
pub const PARTITION_SEPARATOR: &[u8] = b"///";

/// Most partitions of a disk. GPT has 128 by default, Linux numbers at most 255.
const PARTITIONS_MAX: usize = 256;

/// Bytes at the start of a partition that tell whether it is blank.
const BLANK_BYTES: usize = 4096;

/// Partition as its table describes it.
#[derive(Debug)]
struct Partition {
    /// Range in the artifact, bytes.
    range: Range<u64>,
    /// Bytes at the end of the range that are not of the file of which the partition was made.
    padding: u64,
    /// Use of the partition, if its type says more than the label.
    role: Option<&'static str>,
    /// Label; empty if the table has none.
    label: String,
}

/// Partition with a label, in a disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledPartition {
    /// Label.
    pub label: String,
    /// Range in the image, bytes, without what fills the last sector of a [`MadeDisk`]'s file.
    pub range: Range<u64>,
}

/// Returns the partitions in the GUID partition table of a disk image, in image order. Only the
/// table is read. `None` without a sound table, and where partitions overlap.
pub fn labelled_partitions<R: ReadAt + ?Sized>(image: &R) -> Option<Vec<LabelledPartition>> {
    let mut found = gpt::partitions(image)?;
    found.sort_by_key(|partition| partition.range.start);
    are_apart(&found).then_some(())?;
    let labelled = |Partition { range, padding, label, .. }| LabelledPartition {
        label,
        range: range.start..range.end - padding,
    };
    Some(found.into_iter().map(labelled).collect())
}

fn are_apart(partitions: &[Partition]) -> bool {
    partitions.windows(2).all(|two| two[0].range.end <= two[1].range.start)
}

/// Part of an artifact that one format reader reads: a partition of a disk, or a whole artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Range in the artifact, bytes.
    pub range: Range<u64>,
    /// Text in front of the names of the volume's regions: the partition's name and
    /// [`PARTITION_SEPARATOR`]; empty for a whole artifact.
    pub prefix: Vec<u8>,
}

impl Volume {
    /// Returns a reader of the volume.
    pub fn reader<'a, R: ReadAt + ?Sized>(&'a self, artifact: &'a R) -> Joined<'a, R> {
        Joined { artifact, parts: std::slice::from_ref(&self.range) }
    }

    /// Returns the name in the artifact of a region or file of the volume.
    pub fn name(&self, name: &[u8]) -> Vec<u8> {
        [&self.prefix, name].concat()
    }
}

/// Returns the path of a file in its partition, without the partition's name; `None` for a name
/// that belongs to no partition.
pub fn path_in_partition(name: &[u8]) -> Option<&[u8]> {
    let at = name.windows(PARTITION_SEPARATOR.len()).position(|three| three == PARTITION_SEPARATOR)?;
    Some(&name[at + PARTITION_SEPARATOR.len()..]).filter(|path| !path.is_empty())
}

/// Returns the volumes in which a file system may lie, in artifact order: the partitions of a disk,
/// or else the whole artifact.
pub fn volumes<R: ReadAt + ?Sized>(artifact: &R) -> Vec<Volume> {
    let whole = || vec![Volume { range: 0..artifact.len(), prefix: Vec::new() }];
    if erofs::is_image(artifact) || squashfs::is_image(artifact) {
        return whole();
    }
    partitions(artifact).unwrap_or_else(whole)
}

/// Returns the regions of a disk image; `None` for an artifact without a sound partition table.
pub(super) fn regions<R: ReadAt + ?Sized>(artifact: &R, budget: &mut Budget) -> Option<Regions> {
    let mut out = Regions::default();
    for volume in partitions(artifact)? {
        out.push(volume.range.start - out.total(), RegionKind::Metadata, None);
        let reader = volume.reader(artifact);
        let inside = volume::regions(&reader, budget)
            .filter(|inside| out.all().len() + inside.all().len() < REGIONS_MAX - 2 * PARTITIONS_MAX);
        match inside {
            Some(inside) => {
                for region in inside.all() {
                    let name = inside.name(region).map(|name| volume.name(name));
                    out.push(region.len, region.kind, name.as_deref());
                }
            }
            None => out.push(volume.range.end - volume.range.start, RegionKind::File, Some(&volume.prefix)),
        }
    }
    out.push(artifact.len() - out.total(), RegionKind::Metadata, None);
    Some(out)
}

/// Returns the partitions of a disk, in artifact order; `None` without a sound table.
fn partitions<R: ReadAt + ?Sized>(artifact: &R) -> Option<Vec<Volume>> {
    if artifact.len() > ARTIFACT_BYTES_MAX || pe::is_pe(artifact) {
        return None;
    }
    let mut partitions = gpt::partitions(artifact).or_else(|| mbr::partitions(artifact))?;
    partitions.sort_by_key(|partition| partition.range.start);
    let apart = are_apart(&partitions);
    let fits = partitions.last().is_some_and(|last| last.range.end <= artifact.len());
    if !apart || !fits {
        return None;
    }
    let blank: Vec<bool> =
        partitions.iter().map(|partition| is_blank(artifact, &partition.range)).collect::<Option<_>>()?;
    let names = name::names(&partitions, &blank);
    let volume = |(partition, name): (Partition, String)| Volume {
        range: partition.range,
        prefix: [name.as_bytes(), PARTITION_SEPARATOR].concat(),
    };
    Some(partitions.into_iter().zip(names).map(volume).collect())
}

fn is_blank<R: ReadAt + ?Sized>(artifact: &R, range: &Range<u64>) -> Option<bool> {
    let mut head = [0; BLANK_BYTES];
    let len = (range.end - range.start).min(BLANK_BYTES as u64) as usize;
    artifact.read_exact_at(&mut head[..len], range.start).ok()?;
    Some(head.iter().all(|byte| *byte == 0))
}
