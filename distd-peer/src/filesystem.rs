//! Operations on files that several parts share: replacing a file at once, making a name durable,
//! lock files, and free space.
//!
//! The owner and the mode of a file are checked elsewhere: by `trust::files`, and for files beside
//! artifacts by the device's `disk::side`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Type of a FAT file system for statfs(2), `MSDOS_SUPER_MAGIC`.
const FAT: rustix::fs::FsWord = 0x4d44;

/// A step of the replacement of a file that failed.
#[derive(Debug)]
pub struct StepFailed {
    /// The step, as a verb: "write" or "replace".
    pub step: &'static str,
    /// Error of the system.
    pub cause: io::Error,
}

/// Writes `bytes` to `part`, the open and empty file at `part_path`, and renames it to `path`,
/// durably: a crash leaves the old file at `path` or the new one.
///
/// # Errors
/// [`StepFailed`]; then there is no file at `part_path`, if it can be removed.
pub fn replace_by(mut part: File, part_path: &Path, path: &Path, bytes: &[u8]) -> Result<(), StepFailed> {
    let write = |part: &mut File| part.write_all(bytes).and_then(|()| part.sync_all());
    if let Err(cause) = write(&mut part) {
        // A partial file is of no use. The first error matters more than one of its removal.
        let _ = fs::remove_file(part_path);
        return Err(StepFailed { step: "write", cause });
    }
    if let Err(cause) = fs::rename(part_path, path) {
        let _ = fs::remove_file(part_path);
        return Err(StepFailed { step: "replace", cause });
    }
    sync_renamed(path).map_err(|cause| StepFailed { step: "replace", cause })
}

/// Renames the file at `from` to `to`, durably.
///
/// # Errors
/// As the system reports.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_renamed(to)
}

/// Makes the new name of a file durable.
///
/// On FAT, Linux makes a new directory entry of no length, and writes length and place of the file
/// into it with the file's inode, some 30 s later. A sync of the directory alone would make the
/// empty entry durable.
///
/// # Errors
/// As the system reports.
pub fn sync_renamed(path: &Path) -> io::Result<()> {
    let parent = parent_of(path);
    if rustix::fs::statfs(parent)?.f_type == FAT {
        // The inode comes first, so that the directory is not made durable without it.
        File::open(path)?.sync_all()?;
    }
    File::open(parent)?.sync_all()
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a change of names in the directory of `path` durable.
///
/// # Errors
/// As the system reports.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent_of(path))?.sync_all()
}

/// Waits until no other process has the lock file at `path`, which is created if there is none.
/// The lock ends when the file is dropped.
///
/// # Errors
/// As the system reports.
pub fn lock(path: &Path) -> io::Result<File> {
    let file = open_lock(path)?;
    file.lock()?;
    Ok(file)
}

/// Takes the lock file at `path`, which is created if there is none; `None` if another process has
/// it.
///
/// # Errors
/// As the system reports.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    taken(open_lock(path)?, File::try_lock)
}

/// Takes the lock file at `path` together with other processes that take it so; `None` if another
/// process has it for itself.
///
/// # Errors
/// As the system reports; [`io::ErrorKind::NotFound`] if there is no such file.
pub fn try_lock_shared(path: &Path) -> io::Result<Option<File>> {
    taken(File::open(path)?, File::try_lock_shared)
}

fn taken(file: File, take: fn(&File) -> Result<(), TryLockError>) -> io::Result<Option<File>> {
    match take(&file) {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size, bytes.
    pub total: u64,
    /// Bytes that this user may still write.
    pub free: u64,
    /// Free inodes; `None` if the file system creates inodes as needed.
    pub inodes: Option<u64>,
}

impl Space {
    /// Returns the space of the file system that holds `path`.
    ///
    /// # Errors
    /// As the system reports.
    pub fn at(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        // Some FUSE file systems report no size of a fragment.
        let bytes = |fragments: u64| fragments.saturating_mul(stat.f_frsize.max(1));
        let inodes = (stat.f_files > 0).then_some(stat.f_favail);
        Ok(Self { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail), inodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_failed_write_leaves_the_old_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (part, path) = (dir.path().join("f.part"), dir.path().join("f"));
        replace_by(File::create(&part).expect("create"), &part, &path, b"old").expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert!(!part.exists());
        fs::write(&part, b"").expect("write");
        let read_only = File::open(&part).expect("open");
        let failed = replace_by(read_only, &part, &path, b"new").expect_err("opened for reading");
        assert_eq!(failed.step, "write");
        assert!(!part.exists() && fs::read(&path).expect("read") == b"old");
        let missing = dir.path().join("none/f");
        let file = File::create(&part).expect("create");
        assert_eq!(replace_by(file, &part, &missing, b"new").expect_err("no directory").step, "replace");
        assert!(!part.exists(), "no temporary file stays");
    }

    #[test]
    fn a_lock_file_is_taken_once_or_by_several_who_share_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        assert_eq!(try_lock_shared(&path).expect_err("no file").kind(), io::ErrorKind::NotFound);
        let held = try_lock(&path).expect("lock").expect("free");
        assert!(try_lock(&path).expect("lock").is_none());
        assert!(try_lock_shared(&path).expect("lock").is_none());
        drop(held);
        let shared = [try_lock_shared(&path).expect("lock"), try_lock_shared(&path).expect("lock")];
        assert!(shared.iter().all(Option::is_some) && try_lock(&path).expect("lock").is_none());
        drop(shared);
        lock(&path).expect("free again");
    }

    #[test]
    fn a_file_system_has_no_more_free_than_it_has() {
        let space = Space::at(Path::new("/")).expect("space");
        assert!(space.free <= space.total && space.total > 0);
        assert!(Space::at(Path::new("/no-such-path")).is_err());
    }
}
