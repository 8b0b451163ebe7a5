//! Removal of a directory with everything in it, except what is mounted in it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Deepest directory that is entered. A path of 4096 bytes has at most 2048 names, and each level
/// costs one handle.
const DEPTH_MAX: usize = 2200;

/// Removes the directory at `path` and everything below it.
///
/// A directory in which something is mounted is an error, and the mounted file system is not
/// touched: the kernel refuses every step that would cross a mount, including bind mounts of the
/// same file system. No link is followed. If this process lacks the permission to change a
/// directory, it gives itself that permission first where it can.
///
/// # Errors
/// As the system reports; [`io::ErrorKind::CrossesDevices`] for a mount. Entries removed before the
/// error stay removed. A missing directory is no error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match open_top(path) {
        Ok(dir) => empty(&dir, 0)?,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

fn open_top(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::open(path, flags | OFlags::RDONLY, Mode::empty());
    match open() {
        Err(Errno::ACCESS) => {
            grant(rustix::fs::open(path, flags | OFlags::PATH, Mode::empty())?.as_fd())?;
            open()
        }
        other => other,
    }
}

/// Makes an open directory changeable for its owner. The handle may be one that cannot be read.
pub(super) fn grant(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // An `O_PATH` handle does not accept a change of mode, but this name leads to the directory
    // itself.
    let name = format!("/proc/self/fd/{}", dir.as_raw_fd());
    rustix::fs::chmod(name, Mode::RWXU)
}

/// Gives the owner of a directory the right to change it, if the right is missing and this process
/// may grant it.
///
/// # Errors
/// As the system reports.
pub fn make_changeable(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mode = rustix::fs::fstat(dir)?.st_mode & 0o7777;
    if mode & 0o300 == 0o300 || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Ok(grant(dir)?)
}

/// Opens the directory `name` in `dir`, and fails if something is mounted on it.
pub(super) fn open_below(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |access: OFlags| {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        match rustix::fs::openat2(dir, name, flags | access, Mode::empty(), resolve) {
            // The kernel is older than Linux 5.6, or a filter of system calls does not know
            // `openat2`.
            Err(Errno::NOSYS | Errno::PERM) => {
                let below = rustix::fs::openat(dir, name, flags | access, Mode::empty())?;
                if mount_of(below.as_fd())? == mount_of(dir)? { Ok(below) } else { Err(Errno::XDEV) }
            }
            other => other,
        }
    };
    match open(OFlags::RDONLY) {
        Err(Errno::ACCESS) => {
            grant(open(OFlags::PATH)?.as_fd())?;
            open(OFlags::RDONLY)
        }
        other => other,
    }
}

/// Returns numbers that distinguish mounts: the mount's id since Linux 5.8, before that only the
/// file system's device number.
fn mount_of(dir: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(dir)?;
    // `STATX_MNT_ID` of linux/stat.h.
    let mount = StatxFlags::from_bits_retain(0x1000);
    let number = rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, mount).map_or(0, |found| found.stx_mnt_id);
    Ok((stat.st_dev, number))
}

fn empty(dir: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deep"));
    }
    // Collect the names first: a directory that changes while it is read may return a name twice or
    // not at all.
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        let kind = match kind {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        let flags = if kind == FileType::Directory {
            empty(&open_below(dir.as_fd(), &name)?, depth + 1)?;
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        match rustix::fs::unlinkat(dir, &*name, flags) {
            Err(Errno::ACCESS) => {
                grant(dir.as_fd())?;
                rustix::fs::unlinkat(dir, &*name, flags)?;
            }
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_below_is_removed_and_link_targets_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("mkdir");
        fs::write(outside.join("precious"), "x").expect("write");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("mkdir");
        fs::write(tree.join("a/b/file"), "x").expect("write");
        symlink(&outside, tree.join("a/link")).expect("link");
        symlink("nowhere", tree.join("dangling")).expect("link");
        for closed in ["a/b", "a", ""] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o555)).expect("chmod");
        }
        remove_tree(&tree).expect("remove");
        assert!(!tree.exists());
        assert!(outside.join("precious").exists());
        remove_tree(&tree).expect("nothing there is no error");
        symlink(&outside, &tree).expect("link");
        assert!(remove_tree(&tree).is_err(), "a link is no directory");
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn a_mount_below_stays_even_on_the_same_file_system() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (volume, tree) = (dir.path().join("volume"), dir.path().join("tree"));
        fs::create_dir(&volume).expect("mkdir");
        fs::write(volume.join("db"), "keep").expect("write");
        fs::create_dir_all(tree.join("a/data")).expect("mkdir");
        let mount = |args: &[&std::ffi::OsStr]| std::process::Command::new(args[0]).args(&args[1..]).status();
        let at = tree.join("a/data");
        let bound = mount(&["mount".as_ref(), "--bind".as_ref(), volume.as_ref(), at.as_ref()]);
        if !rustix::process::geteuid().is_root() || !bound.is_ok_and(|status| status.success()) {
            eprintln!("skipped: only root may mount");
            return;
        }
        let error = remove_tree(&tree).expect_err("something is mounted in it");
        let unmounted = mount(&["umount".as_ref(), at.as_ref()]);
        assert!(unmounted.is_ok_and(|status| status.success()));
        assert_eq!(error.kind(), io::ErrorKind::CrossesDevices, "{error}");
        assert_eq!(fs::read(volume.join("db")).expect("read"), b"keep");
        remove_tree(&tree).expect("nothing is mounted any more");
    }

    #[test]
    fn deep_directories_are_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let top = dir.path().join("top");
        fs::create_dir(&top).expect("mkdir");
        let mut at = rustix::fs::open(&top, OFlags::DIRECTORY, Mode::empty()).expect("open");
        let name = "d".repeat(250);
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).expect("mkdir");
            at = rustix::fs::openat(&at, &name, OFlags::DIRECTORY, Mode::empty()).expect("open");
        }
        remove_tree(&top).expect("10 000 bytes of path");
        assert!(!top.exists());
    }
}
