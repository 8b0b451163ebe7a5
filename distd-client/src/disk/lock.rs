//! Locks: of a pull on its target, and on devices that other programs examine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::side::{self, SideError};
use distd_core::error::Chain;

/// Time to wait for a lock that a program holds for a moment. udev holds one while it examines a
/// device that has just appeared, which takes a second or two.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// Time to wait for a lock that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Do not wait: another pull holds the lock, for as long as that pull takes.
    None,
    /// Wait for some seconds: a program is examining the device.
    Some,
}

/// Takes the lock of an open file.
///
/// On a file system without locks the function only logs a warning: a device must not stay without
/// updates because of that.
///
/// # Errors
/// [`SideError::Locked`] when somebody else has the lock.
pub fn lock(file: &File, path: &Path, patience: Patience) -> Result<(), SideError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => {
                if patience == Patience::None || Instant::now() >= deadline {
                    return Err(SideError::Locked { path: path.to_owned() });
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(fs::TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "could not take a lock on this file system: nothing prevents a second pull at the same time");
                return Ok(());
            }
        }
    }
}

/// The lock of one pull on its target. The file is removed when the pull ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`.
    ///
    /// # Errors
    /// [`SideError`].
    pub fn take(path: PathBuf) -> Result<Self, SideError> {
        loop {
            let (file, _) = side::open(&path)?;
            lock(&file, &path, Patience::None)?;
            // A pull that held the lock before may have removed the file that is locked now. Try
            // again with the file that has the name now.
            let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
            if let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(&path))
                && same(open, named)
            {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A leftover lock file does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        let held = Lock::take(path.clone()).expect("free");
        assert!(matches!(Lock::take(path.clone()), Err(SideError::Locked { .. })));
        drop(held);
        drop(Lock::take(path.clone()).expect("free again"));
        assert!(!path.exists());
    }

    #[test]
    fn a_file_system_without_locks_is_no_error() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        // An `O_PATH` handle cannot be locked, just as no file can on some network file systems.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let handle = rustix::fs::open(file.path(), flags, rustix::fs::Mode::empty()).expect("open");
        lock(&File::from(handle), file.path(), Patience::None).expect("no lock is no error");
    }

    #[test]
    fn a_lock_held_for_a_moment_is_waited_for() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let holder = File::open(file.path()).expect("open");
        holder.lock_shared().expect("lock");
        let waiter = File::open(file.path()).expect("open");
        let taken = std::thread::scope(|scope| {
            let taken = scope.spawn(|| lock(&waiter, file.path(), Patience::Some));
            holder.unlock().expect("unlock");
            taken.join().expect("no panic")
        });
        taken.expect("taken once it was free");
    }
}
