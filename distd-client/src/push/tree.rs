//! A directory as one run of bytes: its listing, then its files in listing order.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;
use distd_core::cut::{ReadAt, Regions};
use distd_core::limits::{REGIONS_MAX, TREE_ENTRIES_MAX};
use distd_core::tree::{Entry, EntryKind, Listing, TreePath, Xattr};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::exit::{Code, Failure};
use crate::local::Stamp;

/// Linux lists at most this many bytes of attribute names, and a value is no longer (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BUFFER: usize = 64 << 10;

/// A directory read as a tree artifact.
pub(crate) struct TreeSource {
    root: PathBuf,
    listing: Listing,
    encoded: Vec<u8>,
    files: Vec<TreeFile>,
    sockets: u64,
    /// The file read last: reading goes through them in order.
    last: Mutex<Option<(usize, File)>>,
}

struct TreeFile {
    start: u64,
    size: u64,
    /// Position in the listing.
    entry: usize,
    /// What the file was when the directory was listed.
    stamp: Stamp,
}

/// A file of the tree is not what it was when the tree was listed.
#[derive(Debug, thiserror::Error)]
#[error("{0} changed while the directory was read")]
struct FileChanged(PathBuf);

impl TreeSource {
    /// Lists everything below `root`; no link is followed, except `root` itself.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] for what cannot be read, [`Code::Unusable`] for what cannot be shipped.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        let mut walk = Walk { found: Vec::new(), sockets: 0, buffer: vec![0; XATTR_BUFFER] };
        walk.run(root)?;
        let Walk { mut found, sockets, .. } = walk;
        found.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        let (entries, stamps): (Vec<Entry>, Vec<Stamp>) = found.into_iter().unzip();
        let unusable = |error: anyhow::Error| Failure::new(Code::Unusable, error);
        let listing = Listing::new(entries).map_err(|e| {
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
        Ok(Self { root: root.to_owned(), listing, encoded, files, sockets, last: Mutex::default() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn listing_bytes(&self) -> u64 {
        self.encoded.len() as u64
    }

    pub(crate) fn sockets_skipped(&self) -> u64 {
        self.sockets
    }

    /// The listing, then each file.
    ///
    /// # Errors
    /// A failure with [`Code::Unusable`] when there are too many files.
    pub(crate) fn regions(&self) -> anyhow::Result<Regions> {
        self.listing.regions(self.listing_bytes()).ok_or_else(|| {
            let error = anyhow!("{} has more than {REGIONS_MAX} files", self.root.display());
            Failure::new(Code::Unusable, error).next("ship it as several products or as an image").into()
        })
    }

    /// Whether the file read last is still what it was; the others were checked when the next was opened.
    pub(crate) fn check_last(&self) -> io::Result<()> {
        match self.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some((index, file)) => self.check(index, &file),
            None => Ok(()),
        }
    }

    fn path(&self, index: usize) -> PathBuf {
        let path = &self.listing.entries()[self.files[index].entry].path;
        self.root.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
    }

    fn check(&self, index: usize, file: &File) -> io::Result<()> {
        if Stamp::of(&file.metadata()?) == self.files[index].stamp {
            Ok(())
        } else {
            Err(io::Error::other(FileChanged(self.path(index))))
        }
    }

    fn open_file(&self, index: usize) -> io::Result<File> {
        let path = self.path(index);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::LOOP)) => {
                return Err(io::Error::other(FileChanged(path)));
            }
            Err(e) => return Err(at(&path)(e)),
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

/// Puts the path before an error that does not name it.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
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
            // Both fit: `head` is empty unless `offset` lies in the listing.
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

struct Walk {
    found: Vec<(Entry, Stamp)>,
    sockets: u64,
    buffer: Vec<u8>,
}

impl Walk {
    fn run(&mut self, root: &Path) -> anyhow::Result<()> {
        let mut open = vec![root.to_owned()];
        while let Some(dir) = open.pop() {
            let list = fs::read_dir(&dir).map_err(|e| failed(&dir, e))?;
            for item in list {
                let path = item.map_err(|e| failed(&dir, e))?.path();
                let meta = fs::symlink_metadata(&path).map_err(|e| failed(&path, e))?;
                if meta.file_type().is_socket() {
                    self.sockets += 1;
                    tracing::info!(path = %path.display(), "socket left out");
                    continue;
                }
                if self.found.len() == TREE_ENTRIES_MAX {
                    let error = anyhow!("{} has more than {TREE_ENTRIES_MAX} entries", root.display());
                    let next = "ship it as several products or as an image";
                    return Err(Failure::new(Code::Unusable, error).next(next).into());
                }
                let entry = self.entry(root, &path, &meta)?;
                self.found.push((entry, Stamp::of(&meta)));
                if meta.is_dir() {
                    open.push(path);
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, root: &Path, path: &Path, meta: &Metadata) -> anyhow::Result<Entry> {
        let below = path.strip_prefix(root).unwrap_or(path);
        let tree_path = TreePath::new(below.as_os_str().as_bytes()).map_err(|e| {
            let error = anyhow::Error::new(e).context(format!("{} cannot be shipped", path.display()));
            Failure::new(Code::Unusable, error)
        })?;
        let file_type = meta.file_type();
        let kind = if file_type.is_file() {
            EntryKind::File { size: meta.len() }
        } else if file_type.is_dir() {
            EntryKind::Dir
        } else if file_type.is_symlink() {
            let target = fs::read_link(path).map_err(|e| failed(path, e))?;
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
        let xattrs = self.xattrs(path).map_err(|e| failed(path, e))?;
        // The mask keeps what the cast would lose out of it.
        let mode = (meta.mode() & 0o7777) as u16;
        Ok(Entry { path: tree_path, kind, mode, uid: meta.uid(), gid: meta.gid(), xattrs })
    }

    fn xattrs(&mut self, path: &Path) -> io::Result<Vec<Xattr>> {
        let len = match rustix::fs::llistxattr(path, &mut self.buffer[..]) {
            Ok(len) => len,
            // The file system keeps none.
            Err(Errno::OPNOTSUPP) => 0,
            Err(e) => return Err(e.into()),
        };
        let names = self.buffer[..len].to_vec();
        let mut xattrs = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match rustix::fs::lgetxattr(path, name, &mut self.buffer[..]) {
                Ok(len) => xattrs.push(Xattr { name: name.into(), value: self.buffer[..len].into() }),
                // Gone since it was listed, or listed though it has no value here.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(xattrs)
    }
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
    use crate::exit::code_of;

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
        assert_eq!(tree.sockets_skipped(), 1);
        let paths: Vec<_> = tree.listing.entries().iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["a", "a-b", "a/b", "a/b/two", "a/empty", "a/link", "z", "zz"]);
        assert_eq!(tree.listing.entries()[6].mode, 0o4755);
        let mut expected = tree.listing.encode();
        expected.extend_from_slice(b"dash22");
        expected.extend_from_slice(&[7; 20_000]);
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
        write(&dir.path().join("zz"), &[8; 10_000]);
        assert!(tree.check_last().is_err(), "written after it was read");
    }

    #[test]
    fn attributes_are_listed() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory");
        let path = dir.path().join("f");
        write(&path, b"x");
        let set = rustix::fs::lsetxattr(&path, "user.distd", b"value", rustix::fs::XattrFlags::empty());
        if set == Err(Errno::OPNOTSUPP) {
            return; // This file system keeps none, so there is nothing to list.
        }
        set.expect("setxattr");
        let tree = TreeSource::open(dir.path()).expect("open");
        let xattrs = &tree.listing.entries()[0].xattrs;
        assert!(xattrs.iter().any(|x| &*x.name == b"user.distd" && &*x.value == b"value"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let error = TreeSource::open(Path::new("/nonexistent/tree")).map(|_| ()).expect_err("not there");
        assert_eq!(code_of(&error), Code::Unusable);
    }
}
