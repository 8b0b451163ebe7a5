//! Files on this machine: reads at any offset that skip holes, hashes on all cores, and change
//! detection.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use distd_core::ArtifactHash;
use distd_core::cut::ReadAt;
use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;

use crate::whole_hash::{PIECE_BYTES, Pieces, whole_hash};

/// Metadata that identifies the state of a file. If any field differs, the file was written or
/// replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Takes the stamp from a file's metadata.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A regular file or block device that any number of threads read at any offset.
///
/// Holes of a sparse file are not read: 64 GiB of holes cost only the time to fill buffers with
/// zeros.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    len: u64,
    stamp: Stamp,
    /// The run of data or hole found last; `None` when the file has no holes.
    extent: Option<Mutex<Extent>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    start: u64,
    end: u64,
    hole: bool,
}

impl FileReader {
    /// Opens a regular file or a block device. Anything else is an error; a fifo, for one, would
    /// block.
    ///
    /// # Errors
    /// As the system reports; [`io::ErrorKind::InvalidInput`] for any other file type.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Non-blocking, so that opening a fifo returns. The flag changes nothing for files and
        // block devices.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        Self::of_file(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
    }

    /// Wraps an open file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_file(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let len = if meta.is_file() {
            meta.len()
        } else if meta.file_type().is_block_device() {
            seek(&file, SeekFrom::End(0))?
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a regular file nor a block device",
            ));
        };
        // Block counts are in units of 512 bytes, whatever the block size of the file system is.
        let sparse = meta.is_file() && meta.blocks().saturating_mul(512) < len;
        Ok(Self { file, len, stamp: Stamp::of(&meta), extent: sparse.then(Mutex::default) })
    }

    /// Returns the stamp of the file at the time it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Returns whether the open file still has the stamp it was opened with.
    ///
    /// # Errors
    /// As the system reports.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(Stamp::of(&self.file.metadata()?) == self.stamp)
    }

    /// Returns the run of data or hole that contains `offset`.
    fn extent_at(&self, known: &Mutex<Extent>, offset: u64) -> Extent {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if !(known.start..known.end).contains(&offset) {
            *known = self.find_extent(offset);
        }
        *known
    }

    fn find_extent(&self, offset: u64) -> Extent {
        let data = Extent { start: offset, end: self.len, hole: false };
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) if at > offset => Extent { start: offset, end: at.min(self.len), hole: true },
            Ok(_) => match seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(end) if end > offset => Extent { start: offset, end: end.min(self.len), hole: false },
                _ => data,
            },
            // There is no data from here to the end. A file that was cut short meanwhile gives the
            // same answer, hence the check of the length; the read of the last byte then fails.
            Err(Errno::NXIO) if self.file.metadata().is_ok_and(|meta| meta.len() >= self.len) => {
                Extent { start: offset, end: self.len, hole: true }
            }
            // The file system does not support holes: treat everything as data.
            Err(_) => data,
        }
    }
}

impl ReadAt for FileReader {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(known) = &self.extent else { return self.file.read_exact_at(buf, offset) };
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            if at >= self.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let extent = self.extent_at(known, at);
            let run = usize::try_from(extent.end - at).unwrap_or(usize::MAX).min(buf.len() - done);
            let piece = &mut buf[done..done + run];
            if extent.hole {
                piece.fill(0);
            } else {
                self.file.read_exact_at(piece, at)?;
            }
            done += run;
        }
        Ok(())
    }
}

/// Returns the BLAKE3 of everything in `source`, as `b3sum` prints it.
///
/// # Errors
/// As reading reports.
pub fn hash_reader(
    source: &(impl ReadAt + ?Sized),
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<ArtifactHash> {
    whole_hash(source.len(), || Read { source, progress, buffer: vec![0; PIECE_BYTES] })
}

/// Reader of one hashing thread.
struct Read<'s, S: ?Sized> {
    source: &'s S,
    progress: &'s (dyn Fn(u64) + Sync),
    buffer: Vec<u8>,
}

impl<S: ReadAt + ?Sized> Pieces for Read<'_, S> {
    fn piece(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        self.source.read_exact_at(&mut self.buffer[..len], offset)?;
        (self.progress)(len as u64);
        Ok(&self.buffer[..len])
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn holes_read_as_zeros_and_data_between_them_as_it_is() {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.set_len(20 << 20).expect("grow");
        for (offset, byte) in [(5 << 20, 1), (5 << 20 | 70_000, 2), (19 << 20, 3)] {
            file.seek(io::SeekFrom::Start(offset)).expect("seek");
            file.write_all(&[byte; 10_000]).expect("write");
        }
        let mut plain = vec![0; 20 << 20];
        file.read_exact_at(&mut plain, 0).expect("read");
        let reader = FileReader::of_file(file).expect("reader");
        let mut sparse = vec![9; 20 << 20];
        reader.read_exact_at(&mut sparse, 0).expect("read");
        assert!(sparse == plain);
        let mut piece = vec![9; 4096];
        reader.read_exact_at(&mut piece, (5 << 20) - 96).expect("read");
        assert_eq!(piece, plain[(5 << 20) - 96..(5 << 20) + 4000]);
        assert!(reader.read_exact_at(&mut piece, (20 << 20) - 1).is_err(), "beyond the end");
        let hash = hash_reader(&reader, &|_| {}).expect("hash");
        assert_eq!(hash, blake3::hash(&plain).into());
    }

    #[test]
    fn a_file_cut_short_while_it_is_read_is_an_error_and_not_a_hole() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(8 << 20).expect("grow");
        let reader = FileReader::open(file.path()).expect("reader");
        file.as_file().set_len(1 << 20).expect("shrink");
        assert!(reader.read_exact_at(&mut [0; 4096], 6 << 20).is_err());
        assert!(!reader.is_unchanged().expect("stat"));
    }

    #[test]
    fn a_directory_or_a_fifo_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(FileReader::open(dir.path()).is_err());
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
        assert!(FileReader::open(&fifo).is_err());
    }

    #[test]
    fn an_empty_file_has_the_hash_of_nothing() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let reader = FileReader::open(file.path()).expect("reader");
        assert_eq!(hash_reader(&reader, &|_| {}).expect("hash"), blake3::hash(b"").into());
    }
}
