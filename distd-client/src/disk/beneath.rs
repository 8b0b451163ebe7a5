//! Access to the entries of a directory tree by handles: no link is followed, no mount is crossed,
//! and paths may be longer than the system's limit.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest path given to the system in one call, in bytes; the system's limit is 4095.
const PIECE_BYTES_MAX: usize = 4000;

/// A directory and everything below it.
#[derive(Debug)]
pub struct Beneath {
    root: Arc<OwnedFd>,
    /// Directory asked for last: entries come in the order of their paths, so the next entry is
    /// often in the same directory.
    last: Mutex<Option<Known>>,
}

/// A directory's path below the root, and its handle.
type Known = (Box<[u8]>, Arc<OwnedFd>);

/// The directory of an entry, and the entry's name in it.
#[derive(Debug)]
pub struct At<'p> {
    /// Handle of the directory (`O_PATH`). Calls that take a directory and a name accept it;
    /// reading the directory needs another handle.
    pub dir: Arc<OwnedFd>,
    /// Name of the entry.
    pub name: &'p OsStr,
}

impl At<'_> {
    /// Returns a short path of the entry, for the few calls that take no handle. If the entry is a
    /// link, the path names the link itself.
    pub fn short_path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.dir.as_raw_fd().to_string()).join(self.name)
    }
}

impl Beneath {
    /// Opens the directory at `path`; a link there is an error.
    ///
    /// # Errors
    /// As the system reports.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = Arc::new(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Self { root, last: Mutex::default() })
    }

    /// Returns the handle of the directory itself.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Locates the entry at `path`, whose names are separated by single slashes.
    ///
    /// # Errors
    /// As the system reports for the entry's directory; the entry itself need not exist.
    pub fn at<'p>(&self, path: &'p [u8]) -> io::Result<At<'p>> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        Ok(At { dir: self.dir(parent)?, name: OsStr::from_bytes(name) })
    }

    fn dir(&self, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        let lock = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((held, dir)) = &*lock()
            && **held == *path
        {
            return Ok(dir.clone());
        }
        let mut at = self.root.clone();
        let mut rest = path;
        while !rest.is_empty() {
            let piece = if rest.len() <= PIECE_BYTES_MAX {
                std::mem::take(&mut rest)
            } else {
                // A name has at most 255 bytes, so there is a slash.
                let slash = rest[..PIECE_BYTES_MAX].iter().rposition(|byte| *byte == b'/');
                let slash = slash.ok_or(io::ErrorKind::InvalidFilename)?;
                let piece = &rest[..slash];
                rest = &rest[slash + 1..];
                piece
            };
            at = Arc::new(open_dir(&at, piece)?);
        }
        *lock() = Some((path.into(), at.clone()));
        Ok(at)
    }

    /// Returns the names in the directory at `path` (empty for the root), in byte order.
    ///
    /// # Errors
    /// As the system reports; [`io::ErrorKind::CrossesDevices`] if `path` is or crosses a mount.
    pub fn names(&self, path: &[u8]) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // An `O_PATH` handle cannot be read.
        let dir = rustix::fs::openat(&*self.dir(path)?, c".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Drops cached handles, so that the tree can be moved or removed.
    pub fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Opens the file at `path`. Anything but a regular file is an error, and a pipe does not
    /// block.
    ///
    /// # Errors
    /// As the system reports.
    pub fn open_file(&self, path: &[u8], write: bool) -> io::Result<File> {
        let at = self.at(path)?;
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&at.dir, at.name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }
}

fn open_dir(dir: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        // The kernel is older than Linux 5.6, or a filter of system calls does not know `openat2`:
        // open one name after the other.
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut at: Option<OwnedFd> = None;
            for name in path.split(|byte| *byte == b'/') {
                at = Some(rustix::fs::openat(at.as_ref().unwrap_or(dir), name, flags, Mode::empty())?);
            }
            at.ok_or(Errno::NOENT)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_longer_than_the_systems_limit_is_reached_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let beneath = Beneath::open(dir.path()).expect("open");
        let name = "d".repeat(200);
        let mut path = Vec::new();
        for _ in 0..30 {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let at = beneath.at(&path).expect("the directory is there");
            rustix::fs::mkdirat(&at.dir, at.name, Mode::RWXU).expect("mkdir");
        }
        assert!(path.len() > 6000);
        path.extend_from_slice(b"/file");
        let at = beneath.at(&path).expect("the directory is there");
        let flags = OFlags::CREATE | OFlags::WRONLY;
        drop(rustix::fs::openat(&at.dir, at.name, flags, Mode::RUSR).expect("create"));
        assert!(beneath.open_file(&path, false).is_ok());
        assert!(fs::symlink_metadata(at.short_path()).expect("stat").is_file());
        symlink("/etc", dir.path().join("link")).expect("link");
        assert!(beneath.at(b"link/hostname").is_err());
        assert!(beneath.open_file(b"link", false).is_err());
        crate::disk::remove::remove_tree(&dir.path().join(&name)).expect("remove");
    }
}
