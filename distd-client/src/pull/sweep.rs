//! Removal of a tree that was replaced, except files that were edited or added on the device.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use distd_core::tree::{Entry, EntryKind, Listing};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::same_time;
use super::left_out::LeftOut;
use crate::disk::beneath::Beneath;
use crate::disk::remove;

/// Result of removing a replaced tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    /// Everything in the tree was as distd had left it, and was removed.
    Gone,
    /// Files that were edited or added remain, with the directories that contain them.
    Left,
}

/// Removes the entries of `listing` from the tree at `root`, as far as they are unchanged. Files
/// that were edited or added stay. No mount is entered.
///
/// # Errors
/// Errors of the system. Only entries of the listing were removed before.
pub(super) fn sweep(root: &Path, listing: &Listing, left_out: &LeftOut) -> io::Result<Sweep> {
    let beneath = Beneath::open(root)?;
    let mut dirs = Vec::new();
    for entry in listing.entries() {
        if entry.kind == EntryKind::Dir {
            dirs.push(entry);
        }
    }
    // Entries can be removed only from a directory that this user may write to.
    remove::make_changeable(beneath.root().as_fd())?;
    for dir in &dirs {
        if let Ok(handle) = open(&beneath, dir) {
            remove::make_changeable(handle.as_fd())?;
        }
    }
    // Children before parents.
    for entry in listing.entries().iter().rev() {
        if entry.kind == EntryKind::Dir || !is_unchanged(&beneath, listing, left_out, entry) {
            continue;
        }
        let at = beneath.at(entry.path.as_bytes())?;
        rustix::fs::unlinkat(&at.dir, at.name, AtFlags::empty())?;
    }
    for dir in dirs.iter().rev() {
        let Ok(at) = beneath.at(dir.path.as_bytes()) else { continue };
        match rustix::fs::unlinkat(&at.dir, at.name, AtFlags::REMOVEDIR) {
            // The directory is not empty, is gone, or is not a directory any more.
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
        beneath.forget();
    }
    drop(beneath);
    match rustix::fs::unlinkat(CWD, root, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Sweep::Gone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Sweep::Left),
        Err(error) => Err(error.into()),
    }
}

fn open(beneath: &Beneath, dir: &Entry) -> io::Result<OwnedFd> {
    let at = beneath.at(dir.path.as_bytes())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&at.dir, at.name, flags, Mode::empty())?)
}

/// Returns whether an entry exists and is still what distd put there. A file counts as unchanged if
/// its length and its time are the same. The length alone counts if the listing has no times
/// (version 1), or if the pull left the times out.
fn is_unchanged(beneath: &Beneath, listing: &Listing, left_out: &LeftOut, entry: &Entry) -> bool {
    let Ok(at) = beneath.at(entry.path.as_bytes()) else { return false };
    let path = at.short_path();
    let Ok(meta) = std::fs::symlink_metadata(&path) else { return false };
    let kind = meta.file_type();
    let same_file = |of: &Entry| match of.kind {
        EntryKind::File { size } => {
            let same_time = of.modified.is_none_or(|time| left_out.has_times() || same_time(&meta, time));
            kind.is_file() && meta.size() == size && same_time
        }
        _ => false,
    };
    match &entry.kind {
        EntryKind::File { .. } => same_file(entry),
        EntryKind::HardLink { target } => listing.get(target.as_bytes()).is_some_and(same_file),
        EntryKind::Dir => kind.is_dir(),
        EntryKind::Symlink { target } => {
            std::fs::read_link(&path).is_ok_and(|leads| leads.as_os_str().as_bytes() == &**target)
        }
        EntryKind::Fifo => kind.is_fifo(),
        EntryKind::CharDev { rdev } => kind.is_char_device() && meta.rdev() == *rdev,
        EntryKind::BlockDev { rdev } => kind.is_block_device() && meta.rdev() == *rdev,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::tree_source::TreeSource;

    /// Returns a tree as a pull leaves it, and its listing.
    fn installed() -> (tempfile::TempDir, std::path::PathBuf, Listing) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("etc/sub")).expect("mkdir");
        fs::write(root.join("etc/conf"), "a=1").expect("write");
        fs::write(root.join("etc/sub/deep"), "deep").expect("write");
        fs::hard_link(root.join("etc/conf"), root.join("same")).expect("link");
        symlink("etc", root.join("link")).expect("link");
        let listing = TreeSource::open(&root).expect("list").listing().clone();
        (dir, root, listing)
    }

    #[test]
    fn an_unchanged_tree_is_removed_even_with_read_only_directories() {
        let (_dir, root, listing) = installed();
        for closed in ["etc/sub", "etc", ""] {
            fs::set_permissions(root.join(closed), fs::Permissions::from_mode(0o555)).expect("chmod");
        }
        assert_eq!(sweep(&root, &listing, &LeftOut::default()).expect("sweep"), Sweep::Gone);
        assert!(!root.exists());
    }

    #[test]
    fn only_added_or_edited_files_stay() {
        let (_dir, root, listing) = installed();
        fs::write(root.join("etc/conf"), "a=2").expect("write");
        fs::create_dir(root.join("var")).expect("mkdir");
        fs::write(root.join("var/db"), "mine").expect("write");
        fs::remove_file(root.join("link")).expect("remove");
        fs::create_dir(root.join("link")).expect("mkdir");
        assert_eq!(sweep(&root, &listing, &LeftOut::default()).expect("sweep"), Sweep::Left);
        assert_eq!(fs::read(root.join("etc/conf")).expect("read"), b"a=2");
        assert_eq!(fs::read(root.join("var/db")).expect("read"), b"mine");
        assert!(root.join("link").is_dir());
        assert!(!root.join("etc/sub").exists());
    }
}
