//! A tree as target: its listing first, then the bytes of each file, under a staging name; owners, modes and the final
//! name come last.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::Context;
use distd_core::ManifestId;
use distd_core::tree::{Entry, EntryKind, Listing};
use rustix::fs::{AtFlags, CWD, Gid, Mode, RenameFlags, Uid, XattrFlags};

use super::kept::{sync_parent, with_suffix};
use super::target::Target;
use crate::exit::{Code, Failure};

/// Name of the listing inside the staging directory; kept beside the tree at the end, for use as a seed.
pub(super) const LISTING_SUFFIX: &str = ".distd-tree";

/// The layout of a tree artifact: listing, then files.
pub(crate) struct Layout {
    listing_bytes: u64,
    listing: Listing,
    /// Offset in the artifact, size, position in the listing; files only, in order.
    files: Vec<(u64, u64, usize)>,
}

impl Layout {
    /// # Errors
    /// When the bytes are no listing.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, distd_core::tree::DecodeListingError> {
        let listing = Listing::decode(bytes)?;
        let listing_bytes = bytes.len() as u64;
        let mut files = Vec::new();
        let mut offset = listing_bytes;
        for (position, entry) in listing.entries().iter().enumerate() {
            if let EntryKind::File { size } = entry.kind {
                files.push((offset, size, position));
                offset += size;
            }
        }
        Ok(Self { listing_bytes, listing, files })
    }

    /// The parts of `[offset, offset + len)` behind the listing: entry, offset in its file, range of the buffer.
    pub(super) fn parts(&self, offset: u64, len: usize) -> Vec<(&Entry, u64, std::ops::Range<usize>)> {
        let end = offset + len as u64;
        let first = self.files.partition_point(|(start, size, _)| start + size <= offset);
        let mut parts = Vec::new();
        for (start, size, position) in &self.files[first..] {
            if *start >= end {
                break;
            }
            let from = (*start).max(offset);
            let to = (start + size).min(end);
            if from < to {
                let range = (from - offset) as usize..(to - offset) as usize;
                parts.push((&self.listing.entries()[*position], from - start, range));
            }
        }
        parts
    }
}

/// Path of an entry below `root`. [`distd_core::tree::TreePath`] has refused everything that could lead out of it.
pub(super) fn path_below(root: &Path, entry: &Entry) -> PathBuf {
    root.join(Path::new(std::ffi::OsStr::from_bytes(entry.path.as_bytes())))
}

/// The tree being built.
pub(super) struct TreeTarget {
    out: PathBuf,
    staging: PathBuf,
    root: PathBuf,
    listing_file: File,
    listing_bytes: u64,
    total: u64,
    layout: OnceLock<Layout>,
    /// The file written last: chunks of one file come in a row.
    last: Mutex<Option<(PathBuf, File)>>,
    /// Held from before the staging directory is touched.
    _lock: File,
    lock_path: PathBuf,
}

impl TreeTarget {
    pub(super) fn open(out: &Path, id: ManifestId, listing_bytes: u64, total: u64) -> anyhow::Result<Self> {
        if out.exists() && !out.is_dir() {
            let error = anyhow::anyhow!("{} is a file, the artifact a directory", out.display());
            return Err(Failure::new(Code::Usage, error).next("name a directory with --out").into());
        }
        let staging = with_suffix(out, ".distd-part");
        let lock_path = with_suffix(out, ".distd-lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock
            .with_context(|| format!("could not create {}", lock_path.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        if lock.try_lock().is_err() {
            let error = anyhow::anyhow!("another pull writes {}", out.display());
            return Err(Failure::new(Code::Local, error)
                .next("wait for it to end, or choose another --out")
                .into());
        }
        let open = || -> io::Result<File> {
            // What another release left there, or the old tree that an interrupted finish exchanged in, could redirect writes (a
            // link where this release has a directory): only the very directory that was begun for this release is gone on with.
            let mark = || -> io::Result<String> {
                Ok(format!("{id} {}", fs::symlink_metadata(staging.join("tree"))?.ino()))
            };
            let begun = fs::read_to_string(staging.join("manifest")).ok();
            if staging.exists() && (begun.is_none() || begun != mark().ok()) {
                fs::remove_dir_all(&staging)?;
            }
            match fs::DirBuilder::new().mode(0o700).create(&staging) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            match fs::DirBuilder::new().mode(0o700).create(staging.join("tree")) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            fs::write(staging.join("manifest"), mark()?)?;
            let path = staging.join("listing");
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            file.set_len(listing_bytes)?;
            Ok(file)
        };
        let listing_file = open()
            .with_context(|| format!("could not create {}", staging.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        Ok(Self {
            out: out.to_owned(),
            root: staging.join("tree"),
            staging,
            listing_file,
            listing_bytes,
            total,
            layout: OnceLock::new(),
            last: Mutex::new(None),
            _lock: lock,
            lock_path,
        })
    }

    /// The layout, once the listing is written; directories are made with it.
    fn layout(&self) -> io::Result<&Layout> {
        if let Some(layout) = self.layout.get() {
            return Ok(layout);
        }
        let mut bytes = vec![0; usize::try_from(self.listing_bytes).map_err(io::Error::other)?];
        self.listing_file.read_exact_at(&mut bytes, 0)?;
        let layout = Layout::new(&bytes).map_err(io::Error::other)?;
        if layout.listing_bytes + layout.listing.file_bytes() != self.total {
            return Err(io::Error::other("the listing does not describe this artifact"));
        }
        for entry in layout.listing.entries() {
            let path = path_below(&self.root, entry);
            match entry.kind {
                EntryKind::Dir => match fs::DirBuilder::new().mode(0o700).create(&path) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => {}
                },
                EntryKind::File { size } => {
                    let file = OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .mode(0o600)
                        .open(&path)?;
                    file.set_len(size)?;
                }
                _ => {}
            }
        }
        Ok(self.layout.get_or_init(|| layout))
    }

    fn with_file<T>(&self, entry: &Entry, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let path = path_below(&self.root, entry);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(held, _)| *held != path) {
            let file = no_follow().open(&path)?;
            *last = Some((path, file));
        }
        let (_, file) = last.as_ref().expect("set just above");
        work(file)
    }

    fn apply_attributes(&self, layout: &Layout) -> io::Result<()> {
        let root = rustix::process::geteuid().is_root();
        // Children before parents: a directory without write permission must not stop what is below it.
        for entry in layout.listing.entries().iter().rev() {
            let path = path_below(&self.root, entry);
            make_special(&path, &entry.kind)?;
            if root {
                let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                rustix::fs::chownat(CWD, &path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if !matches!(entry.kind, EntryKind::Symlink { .. }) {
                // After chown, which clears the set-id bits.
                rustix::fs::chmodat(
                    CWD,
                    &path,
                    Mode::from_raw_mode(u32::from(entry.mode & 0o7777)),
                    AtFlags::empty(),
                )?;
            }
            for xattr in &entry.xattrs {
                let name = std::ffi::OsStr::from_bytes(&xattr.name);
                match rustix::fs::lsetxattr(&path, name, &xattr.value, XattrFlags::empty()) {
                    // Only root may set trusted and security attributes, and some file systems keep none.
                    Err(e) if root && e != rustix::io::Errno::OPNOTSUPP => return Err(e.into()),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "attribute not set"),
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }
}

/// Opens for reading and writing, and never through a link.
fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}

fn make_special(path: &Path, kind: &EntryKind) -> io::Result<()> {
    use rustix::fs::FileType;
    let make_node = |file_type, rdev| -> io::Result<()> {
        match rustix::fs::mknodat(CWD, path, file_type, Mode::from_raw_mode(0o600), rdev) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => Ok(()),
            Err(e) => Err(e.into()),
        }
    };
    match kind {
        EntryKind::File { .. } | EntryKind::Dir => Ok(()),
        EntryKind::Symlink { target } => {
            match std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        }
        EntryKind::Fifo => make_node(FileType::Fifo, 0),
        EntryKind::CharDev { rdev } => make_node(FileType::CharacterDevice, *rdev),
        EntryKind::BlockDev { rdev } => make_node(FileType::BlockDevice, *rdev),
    }
}

impl Target for TreeTarget {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let in_listing = self.listing_bytes.saturating_sub(offset).min(bytes.len() as u64) as usize;
        if in_listing > 0 {
            self.listing_file.write_all_at(&bytes[..in_listing], offset)?;
        }
        if in_listing == bytes.len() {
            return Ok(());
        }
        let rest = &bytes[in_listing..];
        for (entry, at, range) in self.layout()?.parts(offset + in_listing as u64, rest.len()) {
            self.with_file(entry, |file| file.write_all_at(&rest[range], at))?;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let in_listing = self.listing_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if in_listing > 0 {
            self.listing_file.read_exact_at(&mut buffer[..in_listing], offset)?;
        }
        if in_listing == buffer.len() {
            return Ok(());
        }
        let rest = &mut buffer[in_listing..];
        for (entry, at, range) in self.layout()?.parts(offset + in_listing as u64, rest.len()) {
            self.with_file(entry, |file| file.read_exact_at(&mut rest[range], at))?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // One call for thousands of files: what else is dirty on this file system is little beside a release.
        rustix::fs::syncfs(&self.listing_file)?;
        Ok(())
    }

    fn is_zeroed(&self) -> bool {
        false
    }

    fn may_hold_bytes(&self) -> bool {
        true
    }

    fn medium(&self) -> Option<File> {
        None
    }

    fn finish(&self) -> anyhow::Result<()> {
        let place = || -> io::Result<()> {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let layout = self.layout()?;
            self.apply_attributes(layout)?;
            rustix::fs::syncfs(&self.listing_file)?;
            if self.out.exists() {
                rustix::fs::renameat_with(CWD, &self.root, CWD, &self.out, RenameFlags::EXCHANGE)?;
            } else {
                fs::rename(&self.root, &self.out)?;
            }
            fs::rename(self.staging.join("listing"), with_suffix(&self.out, LISTING_SUFFIX))?;
            sync_parent(&self.out)?;
            fs::remove_dir_all(&self.staging)?;
            fs::remove_file(&self.lock_path)
        };
        place()
            .with_context(|| format!("could not put {} in place", self.out.display()))
            .map_err(|e| Failure::new(Code::Local, e).into())
    }
}

#[cfg(test)]
mod tests {
    use distd_core::tree::TreePath;

    use super::*;

    #[test]
    fn a_range_over_several_files_is_split_at_their_borders() {
        let file = |path: &str, size| Entry {
            path: TreePath::new(path.as_bytes()).expect("valid"),
            kind: EntryKind::File { size },
            mode: 0o644,
            uid: 0,
            gid: 0,
            xattrs: Vec::new(),
        };
        let listing = Listing::new(vec![file("a", 10), file("b", 0), file("c", 5)]).expect("valid");
        let bytes = listing.encode();
        let start = bytes.len() as u64;
        let layout = Layout::new(&bytes).expect("own bytes");
        let parts = layout.parts(start + 8, 5);
        let seen: Vec<_> =
            parts.iter().map(|(e, at, r)| (e.path.as_bytes().to_vec(), *at, r.clone())).collect();
        assert_eq!(seen, [(b"a".to_vec(), 8, 0..2), (b"c".to_vec(), 0, 2..5)]);
        assert!(layout.parts(start + 15, 3).is_empty());
    }
}
