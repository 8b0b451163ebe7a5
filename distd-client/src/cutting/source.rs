//! An artifact on this machine: a file, a block device, a directory, or a disk image made of files,
//! as one sequence of bytes that must not change while it is read.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use distd_core::bounds::ARTIFACT_BYTES_MAX;
use distd_core::cut::{MadeDisk, MakeDiskError, ReadAt, Regions, regions};

use crate::disk::path::PathError;
use crate::disk::spread::pieces;
use crate::failure::{Code, Failure};
use crate::local::{FileReader, Stamp};
use crate::text::human_bytes;
use crate::tree_source::{Skipped, TreeSource};

/// An artifact to push or to share.
pub enum Source {
    /// A file or a block device.
    File(FileSource),
    /// A directory.
    Tree(Box<TreeSource>),
    /// A disk image with a partition for each of these files.
    Disk {
        /// Table and places of the files.
        layout: MadeDisk,
        /// Files, in image order.
        files: Vec<FileSource>,
    },
}

/// A file or a block device that is read.
pub struct FileSource {
    /// Path as it was named.
    path: PathBuf,
    reader: FileReader,
}

impl FileSource {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let reader = FileReader::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => {
                let error = anyhow!("{} is neither a file, a directory nor a block device", path.display());
                Failure::new(Code::Unusable, error)
            }
            _ => not_opened(path)(e),
        })?;
        Ok(Self { path: path.to_owned(), reader })
    }

    /// Checks both the open file and the file that has the name now: it may have been replaced.
    fn check_unchanged(&self) -> anyhow::Result<()> {
        let same_name = || io::Result::Ok(Stamp::of(&std::fs::metadata(&self.path)?) == self.reader.stamp());
        match self.reader.is_unchanged().and_then(|same| Ok(same && same_name()?)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.changed()),
            Err(error) => Err(self.read_failure(error)),
        }
    }

    fn changed(&self) -> anyhow::Error {
        changed(anyhow!("{} changed while it was read", self.path.display()))
    }

    fn read_failure(&self, error: io::Error) -> anyhow::Error {
        let still_there = !matches!(self.reader.is_unchanged(), Ok(false));
        if error.kind() == io::ErrorKind::UnexpectedEof || !still_there {
            return self.changed();
        }
        let error = anyhow::Error::new(error).context(format!("could not read {}", self.path.display()));
        let next = "check the disk it lies on, or build it again";
        Failure::new(Code::Unusable, error).next(next).into()
    }
}

fn not_opened(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |e| {
        let error = anyhow::Error::new(e).context(format!("could not open {}", path.display()));
        Failure::new(Code::Local, error)
    }
}

/// Advice when an artifact changes while it is read.
const HOLD_STILL: &str = "use a copy or a snapshot that nobody writes to";

impl Source {
    /// Opens the artifact at `path`. The whole listing of a directory is read.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] or [`Code::Unusable`].
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let source = Self::open_any(path)?;
        if source.len() > 0 {
            return Ok(source);
        }
        let error = anyhow!("{} is empty", path.display());
        let next = "check the program that should have written it; a release has at least one byte";
        Err(Failure::new(Code::Unusable, error).next(next).into())
    }

    /// Opens the artifact at `path`, which may be empty.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_any(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Err(Failure::from(PathError::Stream("the artifact")).into());
        }
        let meta = std::fs::metadata(path).map_err(not_opened(path))?;
        let source = if meta.is_dir() {
            Self::Tree(Box::new(TreeSource::open(path)?))
        } else {
            Self::File(FileSource::open(path)?)
        };
        match source.len() {
            len if len > ARTIFACT_BYTES_MAX => {
                let (len, max) = (human_bytes(len), human_bytes(ARTIFACT_BYTES_MAX));
                let error = anyhow!("{} has {len}; an artifact has at most {max}", path.display());
                Err(Failure::new(Code::Unusable, error).next("ship it as several products").into())
            }
            _ => Ok(source),
        }
    }

    /// Opens a disk image with one partition for each of `parts`, a label and the path of a file or
    /// block device.
    ///
    /// # Errors
    /// Failures with [`Code::Local`], with [`Code::Unusable`] for a label or file that cannot be
    /// one.
    pub fn disk_of(parts: &[(String, PathBuf)]) -> anyhow::Result<Self> {
        if let Some((_, path)) = parts.iter().find(|(_, path)| path.is_dir()) {
            let path = path.display();
            let error = anyhow!("{path} is a directory; a partition is a file or a block device");
            return Err(Failure::new(Code::Unusable, error)
                .next("make an image of it: mkfs.erofs FILE DIR")
                .into());
        }
        let files: Vec<FileSource> =
            parts.iter().map(|(_, path)| FileSource::open(path)).collect::<anyhow::Result<_>>()?;
        let lengths = parts.iter().zip(&files).map(|((label, _), file)| (label.as_str(), file.reader.len()));
        let layout = MadeDisk::new(&lengths.collect::<Vec<_>>()).map_err(|error| {
            let next = match &error {
                MakeDiskError::Count(_) | MakeDiskError::TooLarge => "ship them as several products",
                MakeDiskError::Label(_) => "choose a shorter label: --artifact LABEL=FILE",
                MakeDiskError::Twice(_) => "name each label once: --artifact LABEL=FILE",
                MakeDiskError::Empty(_) => "check the program that should have written it",
            };
            Failure::new(Code::Unusable, error.into()).next(next)
        })?;
        Ok(Self::Disk { layout, files })
    }

    /// Returns the regions at which the artifact's format wants it cut.
    pub fn regions(&self) -> anyhow::Result<Regions> {
        match self {
            Self::File(file) => Ok(regions(&file.reader)),
            Self::Tree(tree) => tree.regions(),
            Self::Disk { .. } => Ok(regions(self)),
        }
    }

    /// Returns the length of a tree's listing in bytes; `None` for a file or an image.
    pub fn listing_bytes(&self) -> Option<u64> {
        match self {
            Self::Tree(tree) => Some(tree.listing_bytes()),
            Self::File(_) | Self::Disk { .. } => None,
        }
    }

    /// Returns the parts of a tree that are not shipped.
    pub fn skipped(&self) -> Skipped {
        match self {
            Self::Tree(tree) => tree.skipped(),
            Self::File(_) | Self::Disk { .. } => Skipped::default(),
        }
    }

    /// Checks that the artifact did not change. Call it after everything was read.
    ///
    /// # Errors
    /// Failures with [`Code::Unusable`].
    pub fn check_unchanged(&self) -> anyhow::Result<()> {
        match self {
            Self::File(file) => file.check_unchanged(),
            Self::Disk { files, .. } => files.iter().try_for_each(FileSource::check_unchanged),
            Self::Tree(tree) => tree.check_last().map_err(|error| self.read_failure(error)),
        }
    }

    /// Turns an error of reading into the failure of the push.
    pub fn read_failure(&self, error: io::Error) -> anyhow::Error {
        match self {
            Self::File(file) => file.read_failure(error),
            Self::Disk { files, .. } => {
                let wrong = files.iter().find(|file| !matches!(file.reader.is_unchanged(), Ok(true)));
                match wrong.or(files.first()) {
                    Some(file) => file.read_failure(error),
                    None => error.into(),
                }
            }
            Self::Tree(tree) => {
                let what = || format!("could not read all of {}", tree.root().display());
                let result: anyhow::Result<()> = Err(error).with_context(what);
                changed(result.err().unwrap_or_else(|| anyhow!(what())))
            }
        }
    }
}

fn changed(error: anyhow::Error) -> anyhow::Error {
    Failure::new(Code::Unusable, error).next(HOLD_STILL).into()
}

impl ReadAt for Source {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.reader.len(),
            Self::Tree(tree) => tree.len(),
            Self::Disk { layout, .. } => layout.bytes(),
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.reader.read_exact_at(buf, offset),
            Self::Tree(tree) => tree.read_exact_at(buf, offset),
            Self::Disk { layout, files } => read_disk(layout, files, buf, offset),
        }
    }
}

/// Reads bytes of a disk image that is made of files.
fn read_disk(layout: &MadeDisk, files: &[FileSource], buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= layout.bytes());
    end.ok_or(io::ErrorKind::UnexpectedEof)?;
    let (head, tail) = (layout.head(), layout.tail());
    let head_range = 0..head.len() as u64;
    let tail_range = layout.bytes() - tail.len() as u64..layout.bytes();
    let ranges = std::iter::once(&head_range).chain(layout.files()).chain(std::iter::once(&tail_range));
    for piece in pieces(ranges, offset, buffer.len()) {
        let buffer = &mut buffer[piece.buffer];
        let at = piece.offset as usize;
        match piece.partition {
            None => buffer.fill(0),
            Some(0) => buffer.copy_from_slice(&head[at..at + buffer.len()]),
            Some(number) => match files.get(number - 1) {
                Some(file) => file.reader.read_exact_at(buffer, piece.offset)?,
                None => buffer.copy_from_slice(&tail[at..at + buffer.len()]),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{advice, code_of};

    #[test]
    fn an_unusable_artifact_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").expect("write");
        let cases = [
            (dir.path().join("none"), Code::Local),
            (empty, Code::Unusable),
            ("/dev/null".into(), Code::Unusable),
        ];
        for (path, code) in cases {
            let error = Source::open(&path).map(|_| ()).expect_err("refused");
            assert_eq!(code_of(&error), code, "{}: {error:#}", path.display());
        }
    }

    #[test]
    fn a_disk_image_reads_as_its_table_and_the_files_in_their_partitions() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let parts: Vec<(String, PathBuf)> = [("root", 1_500_000), ("uki", 700)]
            .map(|(label, len): (&str, usize)| {
                let path = dir.path().join(label);
                std::fs::write(&path, vec![label.len() as u8; len]).expect("write");
                (label.to_owned(), path)
            })
            .into();
        let source = Source::disk_of(&parts).expect("opens");
        let mut image = vec![1; usize::try_from(source.len()).expect("small")];
        source.read_exact_at(&mut image, 0).expect("read");
        let found = distd_core::cut::labelled_partitions(&image[..]).expect("a table");
        for (partition, (label, path)) in found.iter().zip(&parts) {
            assert_eq!(partition.label, *label);
            let range = partition.range.start as usize..partition.range.end as usize;
            assert!(image[range] == std::fs::read(path).expect("read"), "{label}");
        }
        for step in [511, 4096, 1 << 20] {
            let mut again = vec![1; image.len()];
            for (number, piece) in again.chunks_mut(step).enumerate() {
                source.read_exact_at(piece, (number * step) as u64).expect("read");
            }
            assert!(again == image, "in steps of {step}");
        }
        assert!(source.read_exact_at(&mut [0; 2], source.len() - 1).is_err());
        source.check_unchanged().expect("nothing happened yet");
        std::fs::write(&parts[1].1, b"other").expect("write");
        let error = source.check_unchanged().expect_err("changed");
        assert!(error.to_string().contains("uki changed"), "{error:#}");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").expect("write");
        let error = Source::disk_of(&[("x".to_owned(), empty)]).map(|_| ()).expect_err("empty");
        assert_eq!(code_of(&error), Code::Unusable);
        let tree = [("x".to_owned(), dir.path().to_owned())];
        let error = Source::disk_of(&tree).map(|_| ()).expect_err("a directory");
        assert_eq!(code_of(&error), Code::Unusable);
        assert!(advice(&error).is_some() && error.to_string().contains("is a directory"), "{error:#}");
    }

    #[test]
    fn a_file_written_cut_or_replaced_while_it_is_read_is_noticed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("image");
        let write = |bytes: &[u8]| std::fs::write(&path, bytes).expect("write");
        let tests: [&dyn Fn(); 3] = [&|| write(&[1; 6000]), &|| write(&[0; 10]), &|| {
            std::fs::remove_file(&path).expect("remove");
            write(&[0; 5000]);
        }];
        for (n, change) in tests.into_iter().enumerate() {
            write(&[0; 5000]);
            let source = Source::open(&path).expect("open");
            source.check_unchanged().expect("nothing happened yet");
            change();
            let error = source.check_unchanged().expect_err("changed");
            assert_eq!(code_of(&error), Code::Unusable, "case {n}");
            assert_eq!(advice(&error).as_deref(), Some(HOLD_STILL));
        }
    }
}
