//! Locks: of one pull on its target, and on devices that other programs look at.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::side::{self, SideError};

/// How long a lock is waited for that some program holds for a moment. udev holds one while it looks at a device that has just
/// appeared, which takes a second or two.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// How long somebody else's lock is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not at all: another pull holds it, and will for as long as it takes.
    None,
    /// Some seconds: some program is looking at the device.
    Some,
}

/// Takes the lock of an open file.
///
/// A file system that knows no locks gives none, and a warning says so: a device is not left without updates for that.
///
/// # Errors
/// [`SideError::Locked`] when somebody else has it.
pub(crate) fn lock(file: &File, path: &Path, patience: Patience) -> Result<(), SideError> {
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
                tracing::warn!(path = %path.display(), %error, "no lock could be taken here: nothing stops a second pull");
                return Ok(());
            }
        }
    }
}

/// The lock of one pull on its target; the file is removed when the pull ends.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`.
    ///
    /// # Errors
    /// [`SideError`].
    pub(crate) fn take(path: PathBuf) -> Result<Self, SideError> {
        loop {
            let (file, _) = side::open(&path)?;
            lock(&file, &path, Patience::None)?;
            // The pull that held it before may have removed the file that this lock is on.
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
        // Left behind it does no harm.
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
    fn where_there_are_no_locks_a_pull_goes_on() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        // A handle of this kind takes none, as some network file systems take none of any.
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
