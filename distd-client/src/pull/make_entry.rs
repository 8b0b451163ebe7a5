//! Creation of the entries of a tree, before anything is fetched into them.

use std::fs::File;
use std::io;

use distd_core::tree::{Entry, EntryKind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::left_out::{LeftOut, Lost, shown};
use crate::disk::beneath::{At, Beneath};

/// Reasons why the entries of a tree cannot be created.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayOutError {
    /// Two names of the release are the same name for this file system.
    #[error(
        "{0} is there already under another name: this file system does not tell some names of the release apart"
    )]
    Twice(String),
    /// An entry cannot be created.
    #[error("could not make {path}, {what}")]
    Make {
        /// Path of the entry.
        path: String,
        /// Kind of the entry, in words.
        what: &'static str,
        /// Error of the system.
        #[source]
        cause: io::Error,
    },
}

pub(super) fn kind_in_words(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::File { .. } => "a file",
        EntryKind::Dir => "a directory",
        EntryKind::Symlink { .. } => "a symbolic link",
        EntryKind::Fifo => "a named pipe",
        EntryKind::CharDev { .. } => "a character device",
        EntryKind::BlockDev { .. } => "a block device",
        EntryKind::HardLink { .. } => "a hard link",
    }
}

/// Creates one entry. In a new staging directory the name must be free; if it exists, this file
/// system takes two names of the release for one.
pub(super) fn make(
    at: &At<'_>,
    entry: &Entry,
    beneath: &Beneath,
    left: &mut LeftOut,
    resumed: bool,
) -> io::Result<()> {
    let made = match &entry.kind {
        EntryKind::Dir => rustix::fs::mkdirat(&at.dir, at.name, Mode::RWXU),
        EntryKind::File { size } => return make_file(at, *size, resumed),
        EntryKind::Symlink { target } => rustix::fs::symlinkat(&**target, &at.dir, at.name),
        EntryKind::Fifo => make_node(at, FileType::Fifo, 0),
        EntryKind::CharDev { rdev } => make_node(at, FileType::CharacterDevice, *rdev),
        EntryKind::BlockDev { rdev } => make_node(at, FileType::BlockDevice, *rdev),
        EntryKind::HardLink { target } => {
            let first = beneath.at(target.as_bytes())?;
            match rustix::fs::linkat(&first.dir, first.name, &at.dir, at.name, AtFlags::empty()) {
                Err(error @ (Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::NOSYS | Errno::XDEV)) => {
                    left.add(&shown(entry), Lost::HardLink, &io::Error::from(error));
                    return make_file(at, 0, resumed);
                }
                other => other,
            }
        }
    };
    match made {
        Err(Errno::EXIST) if resumed => Ok(()),
        other => Ok(other?),
    }
}

fn make_node(at: &At<'_>, kind: FileType, rdev: u64) -> Result<(), Errno> {
    rustix::fs::mknodat(&at.dir, at.name, kind, Mode::RUSR | Mode::WUSR, rdev)
}

fn make_file(at: &At<'_>, size: u64, resumed: bool) -> io::Result<()> {
    let exclusive = if resumed { OFlags::empty() } else { OFlags::EXCL };
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | exclusive;
    let file = File::from(rustix::fs::openat(&at.dir, at.name, flags, Mode::RUSR | Mode::WUSR)?);
    if size > 0 { file.set_len(size) } else { Ok(()) }
}

/// Copies the content of `target` into the file that stands for a hard link.
pub(super) fn copy_link(beneath: &Beneath, at: &At<'_>, target: &[u8]) -> io::Result<()> {
    let mut from = beneath.open_file(target, false)?;
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut to = File::from(rustix::fs::openat(&at.dir, at.name, flags, Mode::empty())?);
    io::copy(&mut from, &mut to).map(drop)
}
