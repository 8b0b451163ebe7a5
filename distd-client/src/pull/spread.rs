//! Target of a pull whose partitions lie in places of their own ([`crate::disk::spread`]).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, anyhow};
use distd_core::cut::ReadAt;
use distd_peer::filesystem;

use super::kept::staging_path;
use super::target::{FileTarget, InPlace, Target};
use crate::disk::path::{ArtifactPath, Standing};
use crate::disk::spread::{self, Piece, Places, pieces};
use crate::failure::{Code, Failure};

/// Bytes at the start of a disk image that are fetched first: they have its partition table.
pub(super) const HEAD_BYTES: u64 = 1 << 20;

/// A disk image whose partitions are written to their places, and what is between them to a sparse
/// file.
pub(super) struct SpreadTarget {
    rest: FileTarget,
    places: Places,
    data: PathBuf,
    bytes: u64,
    laid: OnceLock<Vec<(Range<u64>, FileTarget)>>,
}

/// The verified bytes at the start of the image, before its table is known. What is behind them may
/// be of an earlier image.
struct Head<'t> {
    rest: &'t FileTarget,
    head: u64,
    /// Length of the image, bytes.
    bytes: u64,
}

impl ReadAt for Head<'_> {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.head) {
            true => self.rest.read_at(offset, buffer),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Opens the place of a partition of `bytes` bytes.
///
/// A place that is a file is written in place, as a device is: the slot does not start meanwhile,
/// and its file system needs no room for one file more.
fn open_place(place: &Path, standing: Standing, data: &Path, bytes: u64) -> anyhow::Result<FileTarget> {
    let local = |error: io::Error| {
        let error = anyhow::Error::new(error).context(format!("could not prepare {}", place.display()));
        Failure::new(Code::Local, error)
    };
    match standing {
        Standing::Device => {}
        Standing::Dir => {
            let error = spread::is_directory(place);
            return Err(Failure::new(Code::Local, error).next("correct follow.partitions").into());
        }
        Standing::File | Standing::Nothing => {
            let part = staging_path(place);
            if standing == Standing::File && !part.exists() {
                filesystem::rename(place, &part).map_err(local)?;
            }
            // The directory of the slot is made, and none above it: a file system that is not
            // mounted would have none.
            if let Some(dir) = place.parent()
                && !dir.exists()
            {
                std::fs::create_dir(dir).and_then(|()| filesystem::sync_parent(dir)).map_err(local)?;
            }
        }
    }
    FileTarget::open(place, data, bytes)
}

impl SpreadTarget {
    pub(super) fn open(out: &Path, data: &Path, bytes: u64, places: Places) -> anyhow::Result<Self> {
        let rest = FileTarget::open(out, data, bytes)?;
        Ok(Self { rest, places, data: data.to_owned(), bytes, laid: OnceLock::new() })
    }

    fn laid(&self) -> &[(Range<u64>, FileTarget)] {
        self.laid.get().map_or(&[], Vec::as_slice)
    }

    fn each(&self, offset: u64, len: usize) -> impl Iterator<Item = (&FileTarget, Piece)> {
        let laid = self.laid();
        let pieces = pieces(laid.iter().map(|(range, _)| range), offset, len);
        pieces.into_iter().map(|piece| (piece.partition.map_or(&self.rest, |number| &laid[number].1), piece))
    }

    /// All files and devices of the image: the partitions first.
    fn all(&self) -> impl Iterator<Item = &FileTarget> {
        self.laid().iter().map(|(_, target)| target).chain([&self.rest])
    }
}

impl Target for SpreadTarget {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.each(offset, bytes.len())
            .try_for_each(|(target, piece)| target.write_at(piece.offset, &bytes[piece.buffer]))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.each(offset, buffer.len())
            .try_for_each(|(target, piece)| target.read_at(piece.offset, &mut buffer[piece.buffer]))
    }

    fn sync(&self) -> io::Result<()> {
        self.all().try_for_each(Target::sync)
    }

    fn head_bytes(&self) -> u64 {
        HEAD_BYTES
    }

    /// Opens the places of the partitions, and moves there what came with the head.
    fn lay_out(&self, head: u64) -> anyhow::Result<()> {
        if self.laid.get().is_some() {
            return Ok(());
        }
        let local = |error: io::Error| {
            let error =
                anyhow::Error::new(error).context("could not move the start of a partition to its place");
            Failure::new(Code::Local, error)
        };
        let image = Head { rest: &self.rest, head, bytes: self.bytes };
        let mut wanted = Vec::new();
        for (range, place) in self.places.of_partitions(&image)? {
            let found = ArtifactPath::target(place).map_err(Failure::from)?;
            wanted.push((range, found.path().to_owned(), found.standing()));
        }
        // A device that the system uses is refused here, before any file of its slot is touched.
        wanted.sort_by_key(|(_, _, standing)| *standing != Standing::Device);
        let mut laid = Vec::new();
        for (range, place, standing) in wanted {
            let target = open_place(&place, standing, &self.data, range.end - range.start)
                .with_context(|| format!("the place of a partition, {}, cannot be used", place.display()))?;
            // The head ends with a chunk, so this is at most that and HEAD_BYTES.
            let mut start = vec![0; head.min(range.end).saturating_sub(range.start) as usize];
            self.rest.read_at(range.start, &mut start).map_err(local)?;
            target.write_at(0, &start).map_err(local)?;
            laid.push((range, target));
        }
        laid.sort_by_key(|(range, _)| range.start);
        // Only this thread sets the value.
        self.laid.set(laid).map_err(|_| anyhow!("the partitions were laid out twice"))
    }

    fn is_zeroed(&self) -> bool {
        self.laid.get().is_none() && self.rest.is_zeroed()
    }

    fn may_hold_bytes(&self) -> bool {
        self.laid.get().is_some() || self.rest.may_hold_bytes()
    }

    /// Empties the cache, so that [`read_at`](Self::read_at) reads the media.
    fn medium(&self) -> Option<File> {
        self.all().for_each(FileTarget::forget_cache);
        None
    }

    fn finish(&self) -> anyhow::Result<InPlace> {
        self.all().try_for_each(|target| target.finish().map(drop))?;
        Ok(InPlace::default())
    }
}
