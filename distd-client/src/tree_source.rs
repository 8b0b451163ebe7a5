//! A directory as one sequence of bytes: its listing, then its files in listing order.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;
use distd_core::bounds::{REGIONS_MAX, TREE_ENTRIES_MAX};
use distd_core::cut::{ReadAt, Regions};
use distd_core::tree::{Entry, EntryKind, Listing, RootDir, Time, TreePath, Xattr};
use rustix::io::Errno;

use crate::disk::beneath::{At, Beneath};
use crate::disk::mounts;
use crate::failure::{Code, Failure};
use crate::local::{FileReader, Stamp};

/// Size of a buffer for attributes, in bytes. Linux limits both a list of names and a value to this
/// size (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BUFFER: usize = crate::disk::xattrs::BUFFER_BYTES;

/// A directory read as a tree artifact.
pub struct TreeSource {
    root: PathBuf,
    beneath: Beneath,
    listing: Listing,
    encoded: Vec<u8>,
    files: Vec<TreeFile>,
    skipped: Skipped,
    /// File read last, kept open because files are read in order.
    last: Mutex<Option<(usize, FileReader)>>,
}

/// Number of entries of the directory that are not shipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Sockets; their connections cannot be shipped.
    pub sockets: u64,
    /// File systems mounted below the directory; they are not part of it.
    pub mounts: u64,
}

struct TreeFile {
    start: u64,
    size: u64,
    /// Index of the file's entry in the listing.
    entry: usize,
    /// Stamp of the file when the directory was listed.
    stamp: Stamp,
}

/// A file of the tree changed after the tree was listed.
#[derive(Debug, thiserror::Error)]
#[error("{0} changed while the directory was read")]
struct FileChanged(PathBuf);

impl TreeSource {
    /// Lists everything below `root`. No link is followed, except `root` itself, and no mount is
    /// entered.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] for entries that cannot be read, [`Code::Unusable`] for
    /// entries that cannot be shipped.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let root = fs::canonicalize(root).map_err(|e| failed(root, e))?;
        let beneath = Beneath::open(&root).map_err(|e| failed(&root, e))?;
        let mounted = mounts::here().unwrap_or_default();
        let mounted = mounts::at_or_below(&mounted, &root).map(|mount| mount.point.clone());
        let mut walk = Walk {
            beneath: &beneath,
            root: &root,
            mounted: mounted.filter(|point| *point != root).collect(),
            found: Vec::new(),
            skipped: Skipped::default(),
            buffer: vec![0; XATTR_BUFFER],
        };
        let top = walk.root_dir()?;
        walk.run()?;
        let Walk { mut found, skipped, .. } = walk;
        found.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        link_names(&mut found);
        let (entries, stamps): (Vec<Entry>, Vec<Stamp>) =
            found.into_iter().map(|found| (found.entry, found.stamp)).unzip();
        let unusable = |error: anyhow::Error| Failure::new(Code::Unusable, error);
        let listing = Listing::new(top, entries).map_err(|e| {
            unusable(anyhow::Error::new(e).context(format!("{} cannot be shipped as a tree", root.display())))
        })?;
        let encoded = listing.encode();
        let mut start = encoded.len() as u64;
        let mut files = Vec::new();
        for (entry, (line, stamp)) in listing.entries().iter().zip(stamps).enumerate() {
            if let EntryKind::File { size } = line.kind
                && size > 0
            {
                files.push(TreeFile { start, size, entry, stamp });
                start += size;
            }
        }
        Ok(Self { root, beneath, listing, encoded, files, skipped, last: Mutex::default() })
    }

    /// Returns the path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[cfg(test)]
    pub(crate) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Returns the length of the encoded listing, the first bytes of the sequence.
    pub fn listing_bytes(&self) -> u64 {
        self.encoded.len() as u64
    }

    /// Returns how many entries are not shipped.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// Returns the regions: the listing, then each file.
    ///
    /// # Errors
    /// A failure with [`Code::Unusable`] when there are too many files.
    pub fn regions(&self) -> anyhow::Result<Regions> {
        self.listing.regions(self.listing_bytes()).ok_or_else(|| {
            let error = anyhow!("{} has more than {REGIONS_MAX} files", self.root.display());
            Failure::new(Code::Unusable, error).next("ship it as several products or as an image").into()
        })
    }

    /// Checks that the file read last did not change. Each earlier file was checked when the next
    /// one was opened.
    pub fn check_last(&self) -> io::Result<()> {
        match self.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some((index, file)) => self.check(index, &file),
            None => Ok(()),
        }
    }

    fn below(&self, index: usize) -> &TreePath {
        &self.listing.entries()[self.files[index].entry].path
    }

    fn path(&self, index: usize) -> PathBuf {
        self.root.join(OsStr::from_bytes(self.below(index).as_bytes()))
    }

    fn check(&self, index: usize, file: &FileReader) -> io::Result<()> {
        if file.stamp() == self.files[index].stamp && file.is_unchanged()? {
            Ok(())
        } else {
            Err(io::Error::other(FileChanged(self.path(index))))
        }
    }

    fn open_file(&self, index: usize) -> io::Result<FileReader> {
        let opened = self.beneath.open_file(self.below(index).as_bytes(), false);
        let file = match opened.and_then(FileReader::of_file) {
            Ok(file) => file,
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::LOOP)) => {
                return Err(io::Error::other(FileChanged(self.path(index))));
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                return Err(io::Error::other(FileChanged(self.path(index))));
            }
            Err(e) => return Err(at(&self.path(index))(e)),
        };
        self.check(index, &file)?;
        Ok(file)
    }

    fn read_file(&self, index: usize, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(held, _)| *held != index) {
            if let Some((before, file)) = last.take() {
                self.check(before, &file)?;
            }
            *last = Some((index, self.open_file(index)?));
        }
        let (_, file) = last.as_ref().expect("set just above");
        file.read_exact_at(buf, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other(FileChanged(self.path(index))),
            _ => at(&self.path(index))(e),
        })
    }
}

/// Turns further names of a file into hard links to its first name.
fn link_names(found: &mut [Found]) {
    let mut first: BTreeMap<(u64, u64), TreePath> = BTreeMap::new();
    for Found { entry, file, .. } in found {
        let Some(file) = *file else { continue };
        if let Some(target) = first.get(&file) {
            entry.kind = EntryKind::HardLink { target: target.clone() };
            (entry.mode, entry.uid, entry.gid, entry.modified) = (0, 0, 0, None);
            entry.xattrs = Vec::new();
        } else {
            first.insert(file, entry.path.clone());
        }
    }
}

/// An error at one path. The source keeps the system's error number, on which the advice to the
/// user depends.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
struct AtPath {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// Adds the path to an error that does not name it.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |cause| io::Error::new(cause.kind(), AtPath { path: path.to_owned(), cause })
}

impl ReadAt for TreeSource {
    fn len(&self) -> u64 {
        self.listing_bytes() + self.listing.file_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let head =
            usize::try_from(self.listing_bytes().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (head, mut rest) = buf.split_at_mut(head);
        if !head.is_empty() {
            // The cast loses nothing: `head` is empty unless `offset` lies in the listing.
            let from = offset as usize;
            head.copy_from_slice(&self.encoded[from..from + head.len()]);
        }
        let mut offset = offset + head.len() as u64;
        let mut index = self.files.partition_point(|file| file.start + file.size <= offset);
        while !rest.is_empty() {
            let Some(file) = self.files.get(index) else { return Err(io::ErrorKind::UnexpectedEof.into()) };
            let inside = offset - file.start;
            let take = usize::try_from(file.size - inside).unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at_mut(take);
            self.read_file(index, piece, inside)?;
            rest = behind;
            offset += take as u64;
            index += 1;
        }
        Ok(())
    }
}

/// An entry of the walked directory.
struct Found {
    entry: Entry,
    stamp: Stamp,
    /// Device and inode of a file that has several names; `None` for other entries.
    file: Option<(u64, u64)>,
}

struct Walk<'w> {
    beneath: &'w Beneath,
    root: &'w Path,
    /// Mount points below the root.
    mounted: Vec<PathBuf>,
    found: Vec<Found>,
    skipped: Skipped,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn root_dir(&mut self) -> anyhow::Result<RootDir> {
        let meta = fs::metadata(self.root).map_err(|e| failed(self.root, e))?;
        let xattrs = self.xattrs(self.root).map_err(|e| failed(self.root, e))?;
        let mode = (meta.mode() & 0o7777) as u16;
        Ok(RootDir { mode, uid: meta.uid(), gid: meta.gid(), xattrs, modified: modified(&meta) })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut open: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(dir) = open.pop() {
            let full = |below: &[u8]| self.root.join(OsStr::from_bytes(below));
            let names = self.beneath.names(&dir).map_err(|e| failed(&full(&dir), e))?;
            for name in names {
                let mut below = dir.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.as_bytes());
                let path = self.root.join(OsStr::from_bytes(&below));
                let at = self.beneath.at(&below).map_err(|e| failed(&path, e))?;
                let meta = fs::symlink_metadata(at.short_path()).map_err(|e| failed(&path, e))?;
                let mounted = self.mounted.contains(&path);
                if mounted {
                    self.skipped.mounts += 1;
                    tracing::warn!(path = %path.display(), "a mounted file system is not part of the directory and is left out");
                }
                if meta.file_type().is_socket() {
                    self.skipped.sockets += 1;
                    tracing::info!(path = %path.display(), "socket left out");
                    continue;
                }
                if mounted && !meta.is_dir() {
                    continue;
                }
                if self.found.len() == TREE_ENTRIES_MAX {
                    let error = anyhow!("{} has more than {TREE_ENTRIES_MAX} entries", self.root.display());
                    let next = "ship it as several products or as an image";
                    return Err(Failure::new(Code::Unusable, error).next(next).into());
                }
                let entry = self.entry(&below, &at, &path, &meta)?;
                let file = (meta.is_file() && meta.nlink() > 1).then(|| (meta.dev(), meta.ino()));
                self.found.push(Found { entry, stamp: Stamp::of(&meta), file });
                // A mount point itself is shipped, as an empty directory.
                if meta.is_dir() && !mounted {
                    open.push(below);
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, below: &[u8], at: &At<'_>, path: &Path, meta: &Metadata) -> anyhow::Result<Entry> {
        let tree_path = TreePath::new(below).map_err(|e| {
            let error = anyhow::Error::new(e).context(format!("{} cannot be shipped", path.display()));
            Failure::new(Code::Unusable, error)
        })?;
        let file_type = meta.file_type();
        let kind = if file_type.is_file() {
            EntryKind::File { size: meta.len() }
        } else if file_type.is_dir() {
            EntryKind::Dir
        } else if file_type.is_symlink() {
            let target = fs::read_link(at.short_path()).map_err(|e| failed(path, e))?;
            EntryKind::Symlink { target: target.as_os_str().as_bytes().into() }
        } else if file_type.is_fifo() {
            EntryKind::Fifo
        } else if file_type.is_char_device() {
            EntryKind::CharDev { rdev: meta.rdev() }
        } else if file_type.is_block_device() {
            EntryKind::BlockDev { rdev: meta.rdev() }
        } else {
            let error = anyhow!("{} is of a kind that cannot be shipped", path.display());
            return Err(Failure::new(Code::Unusable, error).into());
        };
        let xattrs = self.xattrs(&at.short_path()).map_err(|e| failed(path, e))?;
        // The mask keeps only bits that the cast preserves.
        let mode = (meta.mode() & 0o7777) as u16;
        let modified = Some(modified(meta));
        Ok(Entry { path: tree_path, kind, mode, uid: meta.uid(), gid: meta.gid(), xattrs, modified })
    }

    fn xattrs(&mut self, path: &Path) -> io::Result<Vec<Xattr>> {
        crate::disk::xattrs::read(path, &mut self.buffer)
    }
}

fn modified(meta: &Metadata) -> Time {
    // The system keeps nanoseconds below a second.
    Time { seconds: meta.mtime(), nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0) }
}

fn failed(path: &Path, error: io::Error) -> Failure {
    let gone = error.kind() == io::ErrorKind::NotFound;
    let error = anyhow::Error::new(error).context(format!("could not read {}", path.display()));
    if gone {
        Failure::new(Code::Unusable, error).next("use a copy or a snapshot that nobody writes to")
    } else {
        Failure::new(Code::Local, error)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::failure::code_of;

    fn write(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).expect("write");
    }

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).expect("mkdir");
        write(&root.join("a/b/two"), b"22");
        write(&root.join("a-b"), b"dash");
        write(&root.join("a/empty"), b"");
        write(&root.join("z"), &[7; 10_000]);
        fs::set_permissions(root.join("z"), fs::Permissions::from_mode(0o4755)).expect("chmod");
        std::os::unix::fs::symlink("../outside", root.join("a/link")).expect("symlink");
        fs::hard_link(root.join("z"), root.join("zz")).expect("link");
        dir
    }

    #[test]
    fn a_tree_reads_as_its_listing_and_then_its_files_in_order() {
        let dir = sample();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).expect("socket");
        let tree = TreeSource::open(dir.path()).expect("open");
        drop(socket);
        assert_eq!(tree.skipped(), Skipped { sockets: 1, mounts: 0 });
        let paths: Vec<_> = tree.listing.entries().iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["a", "a-b", "a/b", "a/b/two", "a/empty", "a/link", "z", "zz"]);
        assert_eq!(tree.listing.entries()[6].mode, 0o4755);
        let mut expected = tree.listing.encode();
        expected.extend_from_slice(b"dash22");
        expected.extend_from_slice(&[7; 10_000]);
        let target = TreePath::new(b"z").expect("a path");
        assert_eq!(tree.listing.entries()[7].kind, EntryKind::HardLink { target });
        assert_eq!(tree.len(), expected.len() as u64);
        for step in [1, 7, 4096, expected.len()] {
            let mut got = vec![0; expected.len()];
            for (n, piece) in got.chunks_mut(step).enumerate() {
                tree.read_exact_at(piece, (n * step) as u64).expect("read");
            }
            assert!(got == expected, "in steps of {step}");
        }
        assert!(tree.read_exact_at(&mut [0; 2], tree.len() - 1).is_err());
        assert_eq!(tree.regions().expect("few files").total(), tree.len());
        tree.check_last().expect("nothing changed");
    }

    #[test]
    fn a_file_that_changes_is_named() {
        type Change<'a> = (&'a str, &'a dyn Fn(&Path));
        let change: [Change<'_>; 4] = [
            ("grown", &|path| write(path, &[7; 10_001])),
            ("shrunk", &|path| write(path, b"7")),
            ("gone", &|path| fs::remove_file(path).expect("remove")),
            ("now a link", &|path| {
                fs::remove_file(path).expect("remove");
                std::os::unix::fs::symlink("/etc/passwd", path).expect("symlink");
            }),
        ];
        for (what, change) in change {
            let dir = sample();
            let tree = TreeSource::open(dir.path()).expect("open");
            change(&dir.path().join("z"));
            let mut buf = vec![0; usize::try_from(tree.len()).expect("small")];
            let error = tree.read_exact_at(&mut buf, 0).expect_err(what);
            assert!(error.to_string().contains("/z changed"), "{what}: {error}");
        }
        let dir = sample();
        let tree = TreeSource::open(dir.path()).expect("open");
        let mut buf = vec![0; usize::try_from(tree.len()).expect("small")];
        tree.read_exact_at(&mut buf, 0).expect("read");
        write(&dir.path().join("z"), &[8; 10_000]);
        assert!(tree.check_last().is_err(), "written after it was read");
    }

    #[test]
    fn attributes_are_listed() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory");
        let path = dir.path().join("f");
        write(&path, b"x");
        let set = rustix::fs::lsetxattr(&path, "user.distd", b"value", rustix::fs::XattrFlags::empty());
        if set == Err(Errno::OPNOTSUPP) {
            return; // This file system has no attributes, so there is nothing to list.
        }
        set.expect("setxattr");
        let tree = TreeSource::open(dir.path()).expect("open");
        let xattrs = &tree.listing.entries()[0].xattrs;
        assert!(xattrs.iter().any(|x| &*x.name == b"user.distd" && &*x.value == b"value"));
    }

    #[test]
    fn a_long_path_is_listed_and_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let name = "d".repeat(250);
        let beneath = Beneath::open(dir.path()).expect("open");
        let mut path = Vec::new();
        for _ in 0..16 {
            path.extend_from_slice(name.as_bytes());
            let at = beneath.at(&path).expect("its directory is there");
            rustix::fs::mkdirat(&at.dir, at.name, rustix::fs::Mode::RWXU).expect("mkdir");
            path.push(b'/');
        }
        path.extend_from_slice(b"f");
        let at = beneath.at(&path).expect("its directory is there");
        write(&at.short_path(), b"deep");
        assert!(path.len() + dir.path().as_os_str().len() > 4030);
        let tree = TreeSource::open(dir.path()).expect("open");
        let mut buf = vec![0; usize::try_from(tree.len()).expect("small")];
        tree.read_exact_at(&mut buf, 0).expect("read");
        assert!(buf.ends_with(b"deep"));
        beneath.forget();
        crate::disk::remove::remove_tree(&dir.path().join(&name)).expect("remove");
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let error = TreeSource::open(Path::new("/nonexistent/tree")).map(|_| ()).expect_err("not there");
        assert_eq!(code_of(&error), Code::Unusable);
    }
}
