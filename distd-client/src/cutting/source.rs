//! An artifact on this machine: a file, a block device or a directory, as one sequence of bytes
//! that must not change while it is read.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use distd_core::bounds::ARTIFACT_BYTES_MAX;
use distd_core::cut::{ReadAt, Regions, regions};

use crate::disk::path::PathError;
use crate::failure::{Code, Failure};
use crate::local::{FileReader, Stamp};
use crate::text::human_bytes;
use crate::tree_source::{Skipped, TreeSource};

/// An artifact to push or to share.
pub enum Source {
    /// A file or a block device.
    File {
        /// Path as it was named.
        path: PathBuf,
        /// The open file.
        reader: FileReader,
    },
    /// A directory.
    Tree(Box<TreeSource>),
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
        let local = |e: io::Error| {
            let error = anyhow::Error::new(e).context(format!("could not open {}", path.display()));
            Failure::new(Code::Local, error)
        };
        if path == Path::new("-") {
            return Err(Failure::from(PathError::Stream("the artifact")).into());
        }
        let meta = std::fs::metadata(path).map_err(local)?;
        let source = if meta.is_dir() {
            Self::Tree(Box::new(TreeSource::open(path)?))
        } else {
            let reader = FileReader::open(path).map_err(|e| match e.kind() {
                io::ErrorKind::InvalidInput => {
                    let error =
                        anyhow!("{} is neither a file, a directory nor a block device", path.display());
                    Failure::new(Code::Unusable, error)
                }
                _ => local(e),
            })?;
            Self::File { path: path.to_owned(), reader }
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

    /// Returns the regions at which the artifact's format wants it cut.
    pub fn regions(&self) -> anyhow::Result<Regions> {
        match self {
            Self::File { reader, .. } => Ok(regions(reader)),
            Self::Tree(tree) => tree.regions(),
        }
    }

    /// Returns the length of a tree's listing in bytes; `None` for a file.
    pub fn listing_bytes(&self) -> Option<u64> {
        match self {
            Self::File { .. } => None,
            Self::Tree(tree) => Some(tree.listing_bytes()),
        }
    }

    /// Returns the parts of a tree that are not shipped.
    pub fn skipped(&self) -> Skipped {
        match self {
            Self::File { .. } => Skipped::default(),
            Self::Tree(tree) => tree.skipped(),
        }
    }

    /// Checks that the artifact did not change. Call it after everything was read.
    ///
    /// # Errors
    /// Failures with [`Code::Unusable`].
    pub fn check_unchanged(&self) -> anyhow::Result<()> {
        let (path, unchanged) = match self {
            Self::File { path, reader } => {
                // Compare both the open file and the file that has the name now: the file may have
                // been replaced.
                let same_name = || io::Result::Ok(Stamp::of(&std::fs::metadata(path)?) == reader.stamp());
                (path.as_path(), reader.is_unchanged().and_then(|same| Ok(same && same_name()?)))
            }
            Self::Tree(tree) => (tree.root(), tree.check_last().map(|()| true)),
        };
        match unchanged {
            Ok(true) => Ok(()),
            Ok(false) => Err(changed(anyhow!("{} changed while it was read", path.display()))),
            Err(error) => Err(self.read_failure(error)),
        }
    }

    /// Turns an error of reading into the failure of the push.
    pub fn read_failure(&self, error: io::Error) -> anyhow::Error {
        match self {
            Self::File { path, reader } => {
                let still_there = !matches!(reader.is_unchanged(), Ok(false));
                if error.kind() == io::ErrorKind::UnexpectedEof || !still_there {
                    return changed(anyhow!("{} changed while it was read", path.display()));
                }
                let error = anyhow::Error::new(error).context(format!("could not read {}", path.display()));
                let next = "check the disk it lies on, or build it again";
                Failure::new(Code::Unusable, error).next(next).into()
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
            Self::File { reader, .. } => reader.len(),
            Self::Tree(tree) => tree.len(),
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File { reader, .. } => reader.read_exact_at(buf, offset),
            Self::Tree(tree) => tree.read_exact_at(buf, offset),
        }
    }
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
