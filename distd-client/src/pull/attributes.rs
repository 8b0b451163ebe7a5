//! Owners, attributes, modes and times of a tree's entries.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use distd_core::tree::{Entry, EntryKind, RootDir, Time, Xattr};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::left_out::{LeftOut, Lost, SET_ID};
use crate::disk::beneath::At;
use crate::disk::room::Room;
use crate::disk::xattrs;

/// Room that the longest attribute and its name take (`XATTR_SIZE_MAX`), in bytes.
const XATTR_BYTES_MAX: u64 = 128 << 10;

/// Attributes of an entry as its listing states them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stated<'e> {
    /// `None` for a symbolic link, which has no mode of its own.
    pub(super) mode: Option<u16>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) xattrs: &'e [Xattr],
    pub(super) modified: Option<Time>,
}

impl<'e> Stated<'e> {
    /// Takes the attributes of an entry that is not a hard link.
    pub(super) fn of(entry: &'e Entry) -> Self {
        let link = matches!(entry.kind, EntryKind::Symlink { .. });
        Self {
            mode: (!link).then_some(entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            xattrs: &entry.xattrs,
            modified: entry.modified,
        }
    }

    pub(super) fn of_root(root: &'e RootDir) -> Self {
        Self {
            mode: Some(root.mode),
            uid: root.uid,
            gid: root.gid,
            xattrs: &root.xattrs,
            modified: Some(root.modified),
        }
    }
}

/// Returns whether an attribute is removed if the listing does not state it. These are attributes
/// that grant rights, and attributes whose absence the publisher may have intended. Labels of a
/// security module belong to the device.
pub(super) fn is_ours_to_remove(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
        || name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name == b"security.capability"
}

/// Sets the owner of an entry, as far as this process may.
pub(super) fn set_owner(at: &At<'_>, path: &str, stated: Stated<'_>, left: &mut LeftOut) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(at.short_path())?;
    if (meta.uid(), meta.gid()) == (stated.uid, stated.gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(stated.uid), Gid::from_raw(stated.gid));
    let set = |uid, gid| rustix::fs::chownat(&at.dir, at.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
    if let Err(error) = set(Some(uid), Some(gid)) {
        // This user may still be a member of the group.
        let _ = set(None, Some(gid));
        lost(left, at, path, Lost::Owner(stated.uid, stated.gid), error)?;
    }
    Ok(())
}

/// Sets the attributes of an entry and removes attributes that the listing does not state. This
/// must happen before the mode is set: attributes of a read-only entry cannot be changed.
pub(super) fn set_xattrs(
    at: &At<'_>,
    path: &str,
    stated: Stated<'_>,
    left: &mut LeftOut,
    buffer: &mut [u8],
) -> io::Result<()> {
    let short = at.short_path();
    let there = match xattrs::read(&short, buffer) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => return Err(error),
        other => other.unwrap_or_default(),
    };
    for there in there {
        let is_stated = stated.xattrs.iter().any(|xattr| xattr.name == there.name);
        if !is_stated
            && is_ours_to_remove(&there.name)
            && let Err(error) = rustix::fs::lremovexattr(&short, OsStr::from_bytes(&there.name))
        {
            lost(left, at, path, Lost::Xattr(&there.name), error)?;
        }
    }
    for xattr in stated.xattrs {
        let name = OsStr::from_bytes(&xattr.name);
        if let Err(error) = rustix::fs::lsetxattr(&short, name, &xattr.value, XattrFlags::empty()) {
            lost(left, at, path, Lost::Xattr(&xattr.name), error)?;
        }
    }
    Ok(())
}

/// Sets the mode of an entry and then its time. Set-id bits are left out if the owner could not be
/// set: the program would run as the user who pulled it.
pub(super) fn set_mode_and_time(
    at: &At<'_>,
    path: &str,
    stated: Stated<'_>,
    also: u16,
    left: &mut LeftOut,
) -> io::Result<()> {
    if let Some(mode) = stated.mode {
        let short = at.short_path();
        let mut wanted = mode;
        if mode & SET_ID != 0 && left.has_owner(stated.uid, stated.gid) {
            wanted &= !SET_ID;
            left.add(path, Lost::Mode(mode), &"its owner could not be set");
        }
        let raw = Mode::from_raw_mode(u32::from(wanted | also));
        let set = rustix::fs::chmodat(&at.dir, at.name, raw, AtFlags::empty());
        let is = std::fs::symlink_metadata(&short)?.mode() & 0o7777;
        if let Err(error) = set {
            lost(left, at, path, Lost::Mode(mode), error)?;
        } else if is != u32::from(wanted | also) {
            left.add(path, Lost::Mode(mode), &format!("it is {is:04o} here"));
        }
    }
    if let Some(time) = stated.modified {
        set_time(at, path, time, left)?;
    }
    Ok(())
}

fn set_time(at: &At<'_>, path: &str, time: Time, left: &mut LeftOut) -> io::Result<()> {
    let short = at.short_path();
    // Set both times: if one is omitted, file systems on libfuse 2 do nothing and report success.
    let was = std::fs::symlink_metadata(&short)?;
    let accessed = Timespec { tv_sec: was.atime(), tv_nsec: was.atime_nsec() };
    let modified = Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    let times = Timestamps { last_access: accessed, last_modification: modified };
    match rustix::fs::utimensat(&at.dir, at.name, &times, AtFlags::SYMLINK_NOFOLLOW) {
        Err(error) => lost(left, at, path, Lost::Time, error)?,
        Ok(()) if !same_time(&std::fs::symlink_metadata(&short)?, time) => {
            left.add(path, Lost::Time, &"this file system stores a different time");
        }
        Ok(()) => {}
    }
    Ok(())
}

/// Records a part of an entry as left out if this user or this file system cannot have it. An error
/// of the medium is returned instead: the same pull, run again later, sets what is missing.
fn lost(left: &mut LeftOut, at: &At<'_>, path: &str, what: Lost<'_>, error: Errno) -> io::Result<()> {
    let passes = match error {
        // ext4 reports ENOSPC also for attributes longer than it supports, however much space is
        // free.
        Errno::NOSPC if matches!(what, Lost::Xattr(_)) => {
            let dir = format!("/proc/self/fd/{}", at.dir.as_raw_fd());
            Room::at(Path::new(&dir)).is_ok_and(|room| room.free < XATTR_BYTES_MAX)
        }
        Errno::IO
        | Errno::NOSPC
        | Errno::DQUOT
        | Errno::ROFS
        | Errno::NOMEM
        | Errno::STALE
        | Errno::UCLEAN => true,
        _ => false,
    };
    if passes {
        return Err(error.into());
    }
    left.add(path, what, &io::Error::from(error));
    Ok(())
}

/// Returns whether a file has the stated time. File systems store times at different resolutions:
/// whole seconds, or even seconds on FAT.
pub(super) fn same_time(meta: &std::fs::Metadata, time: Time) -> bool {
    let there = (meta.mtime(), meta.mtime_nsec());
    if there == (time.seconds, i64::from(time.nanos)) {
        return true;
    }
    let apart = time.seconds.saturating_sub(there.0);
    // Some file systems store multiples of 100 ns or of a microsecond.
    let coarse = there.1 % 100 == 0 && apart == 0 && (i64::from(time.nanos) - there.1).abs() < 1000;
    coarse || (there.1 == 0 && (0..2).contains(&apart))
}
