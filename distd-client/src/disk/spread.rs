//! Disk images whose partitions lie in places of their own: the root file system in a partition of
//! this device, a unified kernel image in a file of its EFI system partition (docs/slots.md,
//! "Several images").
//!
//! The image of slot `a` has the path `STATE/disks/a`, a sparse file that holds what belongs to no
//! partition: the partition table, above all. `STATE/disks/a.places` says where the partitions lie.
//! Only the agent writes that file. It counts only in the state directory, where no release can put
//! one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use distd_core::cut::{LabelledPartition, ReadAt, labelled_partitions};
use distd_peer::trust::files;
use serde::{Deserialize, Serialize};

use super::side;
use crate::failure::{Code, Failure};
use crate::local::FileReader;

/// Directory of the images in the state directory.
const DISKS: &str = "disks";

/// Suffix of the file that says where the partitions of an image lie.
const PLACES: &str = ".places";

/// Maximum size of such a file, bytes.
const PLACES_BYTES_MAX: u64 = 64 << 10;

/// Places of the partitions of a disk image, by their labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Places(pub(crate) BTreeMap<String, PathBuf>);

/// Returns the path of the image whose partitions are those of the slot `name`.
pub(crate) fn path_of(data: &Path, name: &str) -> PathBuf {
    data.join(DISKS).join(name)
}

/// The error of a place that is a directory.
pub(crate) fn is_directory(place: &Path) -> anyhow::Error {
    anyhow!("{} is a directory, and a partition needs a device or a file", place.display())
}

impl Places {
    /// Returns the places of the partitions of the image at `path`; `None` for a path that is not
    /// in the directory of such images.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] when the places are missing or damaged: without them the image
    /// would be written as a file, and no slot would have it.
    pub(crate) fn of(path: &Path, data: &Path) -> anyhow::Result<Option<Self>> {
        let disks = data.join(DISKS);
        // `path` is in its one form, and the state directory may have another.
        let is_ours = path.parent().is_some_and(|parent| {
            parent == disks || std::fs::canonicalize(&disks).is_ok_and(|disks| parent == disks)
        });
        if !is_ours {
            return Ok(None);
        }
        let file = side::with_suffix(path, PLACES);
        let bytes = side::read(&file, PLACES_BYTES_MAX).map_err(Failure::from)?;
        let places = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        places.map(Some).ok_or_else(|| {
            let error = anyhow!("{} is missing or damaged: it says where partitions lie", file.display());
            Failure::new(Code::Local, error)
                .next("start the agent again, which writes it by its settings")
                .into()
        })
    }

    /// Keeps these as the places of the image at `path`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(crate) fn keep(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            files::create_private_dir(dir)?;
        }
        let text = serde_json::to_vec_pretty(self).context("places are text")?;
        Ok(side::write_atomic(&side::with_suffix(path, PLACES), &text).map_err(Failure::from)?)
    }

    /// Returns the partitions of an image, each with its place.
    ///
    /// # Errors
    /// Failures with [`Code::Integrity`] or [`Code::Usage`] when the image has no table, or not
    /// just these partitions.
    pub(crate) fn of_partitions(&self, image: &impl ReadAt) -> anyhow::Result<Vec<(Range<u64>, &Path)>> {
        let Some(partitions) = labelled_partitions(image) else {
            let error = anyhow!("the release is no disk image with a GUID partition table");
            let next =
                "push it with --artifact LABEL=FILE, or remove partitions from [follow] of client.toml";
            return Err(Failure::new(Code::Integrity, error).next(next).into());
        };
        let labels: Vec<&str> = partitions.iter().map(|partition| partition.label.as_str()).collect();
        let wrong = |error: anyhow::Error, next: &str| -> anyhow::Error {
            Failure::new(Code::Usage, error).next(next).into()
        };
        if let Some(missing) = self.0.keys().find(|label| !labels.contains(&label.as_str())) {
            let error = anyhow!("the release has no partition {missing:?}, it has {labels:?}");
            return Err(wrong(
                error,
                "push a release with this partition, or remove it from follow.partitions",
            ));
        }
        if let Some(twice) = labels.iter().enumerate().find(|(n, label)| labels[..*n].contains(label)) {
            let error = anyhow!("the release has two partitions with the label {:?}", twice.1);
            return Err(wrong(
                error,
                "give each partition of the image a label of its own, and push it again",
            ));
        }
        let placed = |LabelledPartition { label, range }: LabelledPartition| match self.0.get(&label) {
            Some(place) => Ok((range, place.as_path())),
            None => {
                let error =
                    anyhow!("the release has a partition {label:?}, for which this device has no place");
                Err(wrong(error, "add it to follow.partitions: LABEL=PATH"))
            }
        };
        partitions.into_iter().map(placed).collect()
    }
}

/// Part of a range of an image that lies in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the partition; `None` for bytes that belong to none.
    pub(crate) partition: Option<usize>,
    /// Offset in the partition, or in the image.
    pub(crate) offset: u64,
    /// Range of the buffer.
    pub(crate) buffer: Range<usize>,
}

/// Divides `len` bytes of an image from `offset` on by the partitions, which are in order and
/// apart.
pub(crate) fn pieces<'r>(
    partitions: impl Iterator<Item = &'r Range<u64>> + Clone,
    offset: u64,
    len: usize,
) -> Vec<Piece> {
    let end = offset + len as u64;
    let mut pieces = Vec::new();
    let mut at = offset;
    let mut push = |partition: Option<usize>, from: u64, to: u64, start: u64| {
        if from < to {
            let buffer = (from - offset) as usize..(to - offset) as usize;
            pieces.push(Piece { partition, offset: from - start, buffer });
        }
    };
    for (number, range) in partitions.enumerate() {
        if range.end <= at {
            continue;
        }
        if range.start >= end {
            break;
        }
        push(None, at, range.start, 0);
        let (from, to) = (range.start.max(at), range.end.min(end));
        push(Some(number), from, to, range.start);
        at = to;
    }
    push(None, at, end, 0);
    pieces
}

/// Bytes of a disk image in its places, for reading.
pub(crate) struct Spread {
    rest: File,
    partitions: Vec<(Range<u64>, File)>,
    /// Files that are longer or shorter than their partitions, with both lengths in bytes.
    wrong_lengths: Vec<(PathBuf, u64, u64)>,
}

impl Spread {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// When a file or device cannot be opened.
    pub(crate) fn open(path: &Path, places: &Places) -> anyhow::Result<Self> {
        let rest = side::open_regular(path).with_context(|| format!("could not open {}", path.display()))?;
        let table = FileReader::of_file(rest.try_clone()?)?;
        let (mut partitions, mut wrong_lengths) = (Vec::new(), Vec::new());
        for (range, place) in places.of_partitions(&table)? {
            let failed = || format!("could not open {}", place.display());
            // A pipe at the path does not block.
            let len = FileReader::open(place).with_context(failed)?.len();
            let file = File::open(place).with_context(failed)?;
            let wanted = range.end - range.start;
            if file.metadata().with_context(failed)?.is_file() && len != wanted {
                wrong_lengths.push((place.to_owned(), len, wanted));
            }
            partitions.push((range, file));
        }
        Ok(Self { rest, partitions, wrong_lengths })
    }

    /// Files that are longer or shorter than their partitions, with both lengths in bytes.
    pub(crate) fn wrong_lengths(&self) -> &[(PathBuf, u64, u64)] {
        &self.wrong_lengths
    }

    /// Reads bytes of the image.
    ///
    /// # Errors
    /// As the system reports.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for piece in pieces(self.partitions.iter().map(|(range, _)| range), offset, buffer.len()) {
            let file = piece.partition.map_or(&self.rest, |number| &self.partitions[number].1);
            file.read_exact_at(&mut buffer[piece.buffer], piece.offset)?;
        }
        Ok(())
    }

    /// Makes the image durable.
    ///
    /// # Errors
    /// As the system reports.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.partitions.iter().try_for_each(|(_, file)| file.sync_all())?;
        self.rest.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_in_the_state_directory_has_places() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().canonicalize().expect("a path").join("state");
        let places = Places([("root".to_owned(), PathBuf::from("/dev/null"))].into());
        let image = path_of(&data, "a");
        let of = |path: &Path| Places::of(path, &data);
        // An image without its places is no ordinary file.
        assert!(of(&image).is_err());
        places.keep(&image).expect("kept");
        assert_eq!(of(&image).expect("read"), Some(places.clone()));
        std::fs::write(side::with_suffix(&image, PLACES), b"{").expect("write");
        assert!(of(&image).is_err());
        // A release can put such files beside a path, but not in the state directory.
        let elsewhere = dir.path().join("disks/a");
        places.keep(&elsewhere).expect("kept");
        assert_eq!(of(&elsewhere).expect("read"), None);
        assert_eq!(of(&data.join("a")).expect("read"), None);
    }

    #[test]
    fn an_image_with_other_partitions_is_refused_with_their_names() {
        let disk = distd_core::cut::MadeDisk::new(&[("root", 5000), ("uki", 100)]).expect("laid out");
        let mut image = vec![0; disk.bytes() as usize];
        image[..disk.head().len()].copy_from_slice(disk.head());
        let places = |labels: &[&str]| {
            Places(
                labels.iter().map(|label| ((*label).to_owned(), PathBuf::from("/x").join(label))).collect(),
            )
        };
        let all = places(&["root", "uki"]);
        let found = all.of_partitions(&&image[..]).expect("both");
        assert_eq!(found[1], (disk.files()[1].clone(), Path::new("/x/uki")));
        for (labels, says) in [
            (&["root"][..], "has a partition \"uki\""),
            (&["root", "uki", "verity"], "no partition \"verity\""),
        ] {
            let error = places(labels).of_partitions(&&image[..]).expect_err("refused");
            assert!(error.to_string().contains(says), "{error:#}");
        }
        let error = all.of_partitions(&&[0; 5000][..]).expect_err("no table");
        assert_eq!(crate::failure::code_of(&error), Code::Integrity);
    }

    #[test]
    fn pieces_cover_a_range_once_and_in_order() {
        let layouts: [&[Range<u64>]; 5] =
            [&[], &[0..3, 5..6], &[2..3, 3..7], &[1..4, 6..7, 9..12], &[0..1, 5..6, 6..9]];
        for (ranges, offset, len) in layouts
            .iter()
            .flat_map(|ranges| (0..14).flat_map(move |offset| (0..14).map(move |len| (*ranges, offset, len))))
        {
            let mut next = offset;
            for piece in pieces(ranges.iter(), offset, len) {
                assert!(!piece.buffer.is_empty());
                assert_eq!(piece.buffer.start as u64, next - offset);
                let start = piece.partition.map_or(0, |number| ranges[number].start);
                assert_eq!(start + piece.offset, next);
                for byte in next..next + piece.buffer.len() as u64 {
                    let within = ranges.iter().position(|range| range.contains(&byte));
                    assert_eq!(within, piece.partition, "byte {byte} of {ranges:?}");
                }
                next += piece.buffer.len() as u64;
            }
            assert_eq!(next, offset + len as u64, "{len} bytes from {offset} of {ranges:?}");
        }
    }
}
