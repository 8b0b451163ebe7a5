//! Comparison of a tree with its listing: kinds, lengths, links, owners, modes, attributes and
//! times, and entries that are not listed.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use distd_core::tree::{Entry, EntryKind, Listing};
use serde::Serialize;

use super::attributes::{Stated, is_ours_to_remove, same_time};
use super::left_out::{LeftOut, shown};
use crate::disk::beneath::{At, Beneath};
use crate::disk::xattrs;

/// Number of differences that are named; further ones are only counted.
const NAMED_MAX: usize = 1000;

/// One difference between an entry and its listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// Path below the tree; empty for the tree itself.
    pub path: String,
    /// The difference, in words.
    pub what: String,
}

/// All differences of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Differences {
    /// The first thousand differences.
    pub named: Vec<Difference>,
    /// Number of all differences.
    pub count: u64,
}

impl Differences {
    pub(super) fn add(&mut self, path: impl Into<String>, what: impl Into<String>) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(Difference { path: path.into(), what: what.into() });
        }
    }
}

/// Compares the tree at `root` with its listing, except the content of files. Parts that were left
/// out at installation are no difference.
///
/// # Errors
/// When the directory itself cannot be opened. An entry below it that cannot be inspected is a
/// difference.
pub(super) fn compare(root: &Path, listing: &Listing, left_out: &LeftOut) -> io::Result<Differences> {
    let beneath = Beneath::open(root)?;
    let mut found = Differences::default();
    let mut buffer = vec![0; xattrs::BUFFER_BYTES];
    let mut compare =
        Compare { beneath: &beneath, listing, left_out, found: &mut found, buffer: &mut buffer };
    compare.root(root)?;
    for entry in listing.entries() {
        compare.entry(entry);
    }
    compare.additions();
    Ok(found)
}

struct Compare<'c> {
    beneath: &'c Beneath,
    listing: &'c Listing,
    left_out: &'c LeftOut,
    found: &'c mut Differences,
    buffer: &'c mut [u8],
}

impl Compare<'_> {
    fn root(&mut self, root: &Path) -> io::Result<()> {
        let Some(stated) = self.listing.root() else { return Ok(()) };
        let meta = std::fs::symlink_metadata(root)?;
        self.attributes("", root, &meta, Stated::of_root(stated));
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) {
        let path = shown(entry);
        let looked = self.beneath.at(entry.path.as_bytes()).and_then(|at| {
            let meta = std::fs::symlink_metadata(at.short_path())?;
            Ok((at, meta))
        });
        let (at, meta) = match looked {
            Ok(looked) => looked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.found.add(path, "is missing");
            }
            Err(error) => return self.found.add(path, format!("cannot be inspected: {error}")),
        };
        match self.kind(entry, &at, &meta) {
            Ok(true) => self.attributes(&path, &at.short_path(), &meta, Stated::of(entry)),
            Ok(false) => {}
            Err(what) => self.found.add(path, what),
        }
    }

    /// Returns whether the entry has attributes of its own; a wrong kind or content is an error.
    fn kind(&self, entry: &Entry, at: &At<'_>, meta: &Metadata) -> Result<bool, String> {
        let kind = meta.file_type();
        let must = |holds: bool, what: &str| if holds { Ok(true) } else { Err(what.to_owned()) };
        match &entry.kind {
            EntryKind::File { size } => {
                must(kind.is_file(), "is not a regular file")?;
                must(meta.size() == *size, &format!("has {} bytes instead of {size}", meta.size()))
            }
            EntryKind::Dir => must(kind.is_dir(), "is not a directory"),
            EntryKind::Symlink { target } => {
                must(kind.is_symlink(), "is not a symbolic link")?;
                let leads = std::fs::read_link(at.short_path()).map_err(|error| error.to_string())?;
                must(leads.as_os_str().as_bytes() == &**target, &format!("leads to {}", leads.display()))
            }
            EntryKind::Fifo => must(kind.is_fifo(), "is not a named pipe"),
            EntryKind::CharDev { rdev } => {
                must(kind.is_char_device() && meta.rdev() == *rdev, "is not the character device")
            }
            EntryKind::BlockDev { rdev } => {
                must(kind.is_block_device() && meta.rdev() == *rdev, "is not the block device")
            }
            EntryKind::HardLink { target } => {
                let first = self.beneath.at(target.as_bytes());
                let first = first.and_then(|at| std::fs::symlink_metadata(at.short_path()));
                let same = first.is_ok_and(|first| (first.dev(), first.ino()) == (meta.dev(), meta.ino()));
                if self.left_out.has_hard_links() && kind.is_file() {
                    let stated = self.listing.get(target.as_bytes()).map(|entry| &entry.kind);
                    let same_size = stated == Some(&EntryKind::File { size: meta.size() });
                    return must(same_size, "has another length").map(|_| false);
                }
                must(same, &format!("is not a hard link of {target}")).map(|_| false)
            }
        }
    }

    fn attributes(&mut self, path: &str, at: &Path, meta: &Metadata, stated: Stated<'_>) {
        let owner = (meta.uid(), meta.gid());
        if owner != (stated.uid, stated.gid) && !self.left_out.has_owner(stated.uid, stated.gid) {
            let what = format!("belongs to {}:{} instead of {}:{}", owner.0, owner.1, stated.uid, stated.gid);
            self.found.add(path, what);
        }
        let mode = stated.mode.and_then(|mode| self.left_out.mode_of(mode, stated.uid, stated.gid));
        if let Some(mode) = mode
            && meta.mode() & 0o7777 != u32::from(mode)
        {
            self.found.add(path, format!("has mode {:04o} instead of {mode:04o}", meta.mode() & 0o7777));
        }
        if let Some(time) = stated.modified
            && !self.left_out.has_times()
            && !same_time(meta, time)
        {
            self.found.add(path, "was modified at another time");
        }
        let there = match xattrs::read(at, self.buffer) {
            Ok(there) => there,
            Err(error) => {
                return self.found.add(path, format!("has attributes that cannot be read: {error}"));
            }
        };
        for xattr in stated.xattrs {
            let name = xattr.name.escape_ascii();
            match there.iter().find(|there| there.name == xattr.name) {
                _ if self.left_out.has_xattr(&xattr.name) => {}
                Some(there) if there.value == xattr.value => {}
                Some(_) => self.found.add(path, format!("has another value of the attribute {name}")),
                // The kernel shows attributes of the `trusted.` name space only to root.
                None if xattr.name.starts_with(b"trusted.") && !rustix::process::geteuid().is_root() => {}
                None => self.found.add(path, format!("lacks the attribute {name}")),
            }
        }
        for extra in there {
            let is_stated = stated.xattrs.iter().any(|xattr| xattr.name == extra.name);
            if !is_stated && is_ours_to_remove(&extra.name) && !self.left_out.has_xattr(&extra.name) {
                self.found.add(path, format!("has the unlisted attribute {}", extra.name.escape_ascii()));
            }
        }
    }

    /// Finds all entries that are not listed.
    fn additions(&mut self) {
        let dirs = self.listing.entries().iter().filter(|entry| entry.kind == EntryKind::Dir);
        let dirs = std::iter::once(&[][..]).chain(dirs.map(|entry| entry.path.as_bytes()));
        let mut seen = BTreeSet::new();
        for dir in dirs {
            // A directory that cannot be read was already named as a difference.
            for name in self.beneath.names(dir).unwrap_or_default() {
                let mut path = dir.to_vec();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.as_bytes());
                if self.listing.get(&path).is_none() && seen.insert(path.clone()) {
                    self.found.add(path.escape_ascii().to_string(), "is not in the release");
                }
            }
        }
    }
}
