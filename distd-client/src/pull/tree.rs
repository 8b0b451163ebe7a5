//! A tree as target. Its listing comes first, then all entries, then the bytes of each file, under
//! a staging name; modes, times and the final name come last.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, anyhow};
use distd_core::tree::{Entry, EntryKind};
use distd_core::{ManifestId, bounds::TREE_LISTING_BYTES_MAX};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{Stated, set_mode_and_time, set_owner, set_xattrs};
use super::layout::Layout;
use super::left_out::{LeftOut, Lost, shown};
use super::make_entry::{LayOutError, copy_link, kind_in_words, make};
use super::ours;
use super::staging::{Staging, StagingError};
use super::target::{InPlace, Target, locked};
use crate::disk::beneath::{At, Beneath};
use crate::disk::lock::Lock;
use crate::disk::room::Room;
use crate::disk::side::{self, with_suffix};
use crate::disk::xattrs;
use crate::failure::{Code, Failure};

/// Shorter reads are not checked for holes, because the check is not worth it. A guess: the longest
/// chunk.
const HOLE_BYTES_MIN: usize = 64 << 10;

/// The tree under construction.
pub(super) struct TreeTarget {
    out: PathBuf,
    staging: Staging,
    listing_file: File,
    listing_bytes: u64,
    total: u64,
    resumed: bool,
    laid: OnceLock<Laid>,
    left_out: Mutex<LeftOut>,
    /// File written last, kept open because chunks of one file come in a row.
    last: Mutex<Option<OpenFile>>,
    /// Lock of the target, taken before the staging directory is touched.
    _lock: Lock,
}

/// A file of the tree, with its path.
type OpenFile = (Box<[u8]>, Arc<File>);

/// The tree once its entries were created.
struct Laid {
    layout: Layout,
    beneath: Beneath,
}

impl TreeTarget {
    pub(super) fn open(out: &Path, id: ManifestId, listing_bytes: u64, total: u64) -> anyhow::Result<Self> {
        let lock = locked(Lock::take(with_suffix(out, ".distd-lock")), out)?;
        let staging = Staging::of(out);
        let resumed = staging.begin(id).map_err(staging_failure)?;
        let (listing_file, _) = side::open(&staging.listing()).map_err(Failure::from)?;
        listing_file
            .set_len(listing_bytes)
            .with_context(|| format!("could not size {}", staging.listing().display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        Ok(Self {
            out: out.to_owned(),
            staging,
            listing_file,
            listing_bytes,
            total,
            resumed,
            laid: OnceLock::new(),
            left_out: Mutex::default(),
            last: Mutex::default(),
            _lock: lock,
        })
    }

    /// Returns the layout and the tree, once [`lay_out`](Target::lay_out) was called.
    fn laid(&self) -> io::Result<&Laid> {
        self.laid.get().ok_or_else(|| io::Error::other("the tree has no entries yet"))
    }

    fn file(&self, laid: &Laid, entry: &Entry) -> io::Result<Arc<File>> {
        let path = entry.path.as_bytes();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((held, file)) = &*last
            && **held == *path
        {
            return Ok(file.clone());
        }
        let file = Arc::new(laid.beneath.open_file(path, true)?);
        *last = Some((path.into(), file.clone()));
        Ok(file)
    }

    /// Creates every entry and sets its owner and attributes, so that everything that must be left
    /// out is known before anything is fetched.
    fn make_entries(&self, layout: &Layout, beneath: &Beneath) -> anyhow::Result<()> {
        let mut left = LeftOut::default();
        for entry in layout.listing.entries() {
            let failed = |cause: io::Error| {
                let (path, what) = (shown(entry), kind_in_words(&entry.kind));
                match cause.kind() {
                    io::ErrorKind::AlreadyExists => LayOutError::Twice(path),
                    _ => LayOutError::Make { path, what, cause },
                }
            };
            let at = beneath.at(entry.path.as_bytes()).map_err(failed)?;
            let made = if self.resumed { self.remake(&at, entry) } else { Ok(()) };
            made.and_then(|()| make(&at, entry, beneath, &mut left, self.resumed)).map_err(failed)?;
            if !matches!(entry.kind, EntryKind::HardLink { .. }) {
                set_owner(&at, &shown(entry), Stated::of(entry), &mut left).map_err(failed)?;
            }
        }
        // Set attributes only after all entries exist: new entries would inherit a default access
        // list of their directory.
        let mut buffer = vec![0; xattrs::BUFFER_BYTES];
        for entry in layout.listing.entries() {
            if entry.xattrs.is_empty() {
                continue;
            }
            let context = || format!("could not set attributes of {}", entry.path);
            let at = beneath.at(entry.path.as_bytes()).with_context(context)?;
            set_xattrs(&at, &shown(entry), Stated::of(entry), &mut left, &mut buffer)
                .with_context(context)?;
        }
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner) = left;
        Ok(())
    }

    /// Makes an entry writable again if an interrupted pull had already set its final mode.
    fn remake(&self, at: &At<'_>, entry: &Entry) -> io::Result<()> {
        let mode = match entry.kind {
            EntryKind::Dir => Mode::RWXU,
            EntryKind::File { .. } => Mode::RUSR | Mode::WUSR,
            _ => return Ok(()),
        };
        match rustix::fs::chmodat(&at.dir, at.name, mode, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check_room(&self, layout: &Layout) -> anyhow::Result<()> {
        if self.resumed {
            return Ok(());
        }
        let parent = self.out.parent().unwrap_or(Path::new("/"));
        let Ok(room) = Room::at(parent) else { return Ok(()) };
        let entries = layout.listing.entries().len() as u64;
        if room.has_too_few_inodes_for(entries) {
            let error = anyhow!("{} has no room for {entries} more entries", parent.display());
            return Err(Failure::new(Code::Local, error).next("free some, or choose another --out").into());
        }
        Ok(())
    }

    /// Gives every entry its final attributes, in the order in which this is possible.
    fn finish_entries(&self, laid: &Laid) -> io::Result<()> {
        let mut buffer = vec![0; xattrs::BUFFER_BYTES];
        let mut left = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        // Losses were counted when the entries were created. Count them again while the attributes
        // are set for good.
        let known = left.clone();
        *left = LeftOut::default();
        let entries = laid.layout.listing.entries();
        let mut copies: BTreeMap<&[u8], Vec<&Entry>> = BTreeMap::new();
        if known.has_hard_links() {
            for link in entries {
                if let EntryKind::HardLink { target } = &link.kind {
                    copies.entry(target.as_bytes()).or_default().push(link);
                }
            }
        }
        // Children before parents: a directory without write permission must not block the entries
        // below it.
        for entry in entries.iter().rev() {
            let at = laid.beneath.at(entry.path.as_bytes())?;
            if let EntryKind::HardLink { target } = &entry.kind {
                if known.has_hard_links() {
                    copy_link(&laid.beneath, &at, target.as_bytes())?;
                    left.add(&shown(entry), Lost::HardLink, &"not here");
                }
                continue;
            }
            let (path, stated) = (shown(entry), Stated::of(entry));
            set_owner(&at, &path, stated, &mut left)?;
            set_xattrs(&at, &path, stated, &mut left, &mut buffer)?;
            set_mode_and_time(&at, &path, stated, 0, &mut left)?;
            // Files that stand for hard links get the attributes of the first name.
            for link in copies.get(entry.path.as_bytes()).into_iter().flatten() {
                let at = laid.beneath.at(link.path.as_bytes())?;
                set_owner(&at, &path, stated, &mut left)?;
                set_mode_and_time(&at, &path, stated, 0, &mut left)?;
            }
        }
        laid.beneath.forget();
        Ok(())
    }

    /// Sets the attributes of the tree's own directory: those in the listing, or else those of the
    /// directory that it replaces.
    fn finish_root(&self, laid: &Laid, also: u16) -> io::Result<()> {
        let staged = self.staging.tree();
        let dir = fs::symlink_metadata(&staged).map_or_else(|_| self.out.clone(), |_| staged.clone());
        let dir = if self.staging.is_in_place() { self.out.clone() } else { dir };
        let parent = dir.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle: OwnedFd = rustix::fs::open(parent, flags, Mode::empty())?;
        let at = At { dir: Arc::new(handle), name: dir.file_name().unwrap_or_default() };
        let mut left = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; xattrs::BUFFER_BYTES];
        match laid.layout.listing.root() {
            Some(root) => {
                let stated = Stated::of_root(root);
                if also != 0 {
                    set_owner(&at, "", stated, &mut left)?;
                    set_xattrs(&at, "", stated, &mut left, &mut buffer)?;
                }
                set_mode_and_time(&at, "", stated, also, &mut left)
            }
            None if also != 0 => {
                let (mode, owner) = match fs::symlink_metadata(&self.out) {
                    Ok(old) => (old.mode() & 0o7777, (old.uid(), old.gid())),
                    Err(_) => {
                        (0o755, (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()))
                    }
                };
                // A user who may not give the directory away keeps it.
                let _ = std::os::unix::fs::chown(&dir, Some(owner.0), Some(owner.1));
                Ok(rustix::fs::chmod(&dir, Mode::from_raw_mode(mode))?)
            }
            None => Ok(()),
        }
    }
}

pub(super) fn staging_failure(error: StagingError) -> Failure {
    let next = match &error {
        StagingError::Foreign { path, .. } => Some(format!("look into {} and move it away", path.display())),
        StagingError::Mounted(path) => Some(format!("unmount it: umount {}", path.display())),
        StagingError::Side(_) => None,
        StagingError::Io { .. } => {
            Some("look at the permissions of the directory, then run the command again".into())
        }
    };
    let failure = match error {
        StagingError::Side(error) => Failure::from(error),
        error => Failure::new(Code::Local, error.into()),
    };
    match next {
        Some(next) => failure.next(next),
        None => failure,
    }
}

/// Reads bytes from the file. If all of them lie in a hole, the buffer is filled with zeros and
/// nothing is read.
fn read_or_skip(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let end = offset + buffer.len() as u64;
    if buffer.len() >= HOLE_BYTES_MIN && file.metadata()?.len() >= end {
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) if data < end => {}
            Ok(_) | Err(Errno::NXIO) => {
                buffer.fill(0);
                return Ok(());
            }
            // The file system does not support holes.
            Err(_) => {}
        }
    }
    file.read_exact_at(buffer, offset)
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
        let (laid, rest) = (self.laid()?, &bytes[in_listing..]);
        for (entry, at, range) in laid.layout.parts(offset + in_listing as u64, rest.len()) {
            self.file(laid, entry)?.write_all_at(&rest[range], at)?;
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
        let (laid, rest) = (self.laid()?, &mut buffer[in_listing..]);
        for (entry, at, range) in laid.layout.parts(offset + in_listing as u64, rest.len()) {
            read_or_skip(&*self.file(laid, entry)?, &mut rest[range], at)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // One call for thousands of files. Other dirty data on this file system is little compared
        // with a release.
        rustix::fs::syncfs(&self.listing_file)?;
        Ok(())
    }

    fn syncs_others(&self) -> bool {
        true
    }

    fn is_zeroed(&self) -> bool {
        !self.resumed
    }

    fn may_hold_bytes(&self) -> bool {
        self.resumed
    }

    fn medium(&self) -> Option<File> {
        None
    }

    fn head_bytes(&self) -> u64 {
        self.listing_bytes
    }

    fn lay_out(&self, _head: u64) -> anyhow::Result<()> {
        if self.laid.get().is_some() {
            return Ok(());
        }
        if self.listing_bytes > TREE_LISTING_BYTES_MAX {
            let error = anyhow!("the release's listing is longer than a listing may be");
            return Err(Failure::new(Code::Integrity, error).next("tell whoever pushed the release").into());
        }
        let bad = |error: anyhow::Error| {
            let error = error.context("the release's listing cannot be used");
            Failure::new(Code::Integrity, error).next("tell whoever pushed the release")
        };
        let local = |error: anyhow::Error| Failure::new(Code::Local, error);
        let mut bytes = vec![0; usize::try_from(self.listing_bytes).map_err(|e| bad(e.into()))?];
        let read = self.listing_file.read_exact_at(&mut bytes, 0);
        read.with_context(|| format!("could not read {}", self.staging.listing().display()))
            .map_err(local)?;
        let layout = Layout::new(&bytes).map_err(|e| bad(e.into()))?;
        if layout.total() != self.total {
            return Err(bad(anyhow!("it does not describe this artifact")).into());
        }
        self.check_room(&layout)?;
        let tree = self.staging.tree();
        let beneath = Beneath::open(&tree).with_context(|| format!("could not open {}", tree.display()));
        let beneath = beneath.map_err(local)?;
        self.make_entries(&layout, &beneath).map_err(|error| {
            let failure = local(error.context(format!("{} cannot be put here", self.out.display())));
            failure.next("pull it as root, or to a file system that can hold it")
        })?;
        self.staging.set_laid().map_err(staging_failure)?;
        for line in self.left_out.lock().unwrap_or_else(PoisonError::into_inner).lines() {
            tracing::warn!("left out: {line}");
        }
        // Only this thread sets the value.
        let _ = self.laid.set(Laid { layout, beneath });
        Ok(())
    }

    fn finish(&self) -> anyhow::Result<InPlace> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let failed = |error: anyhow::Error| {
            let error = error.context(format!("could not put {} in place", self.out.display()));
            Failure::new(Code::Local, error).next("run the same command again: it goes on from here")
        };
        let laid = self.laid().map_err(|e| failed(e.into()))?;
        let local = |e: io::Error| failed(e.into());
        self.finish_entries(laid).map_err(local)?;
        self.finish_root(laid, 0o300).map_err(local)?;
        rustix::fs::syncfs(&self.listing_file).map_err(|e| local(e.into()))?;
        let left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.staging.keep_left_out(&left_out).map_err(|error| failed(error.into()))?;
        // Check again: something may have been put or mounted there meanwhile.
        ours::check_directory(&self.out)?;
        let replaced = self.staging.swap().map_err(|error| failed(error.into()))?;
        self.finish_root(laid, 0).map_err(local)?;
        let found = self.staging.settle(replaced).map_err(|error| failed(error.into()))?;
        Ok(InPlace { left_out, found })
    }

    fn end(&self) {
        self.staging.end();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::failure::code_of;

    /// A listing of version 1: a directory `d` of mode 0500, and in it a file of 5 bytes and mode
    /// 0444.
    const PLAIN: &[u8] = b"\x92\x01\x92\
        \x97\xc4\x01d\x01\x00\xcd\x01\x40\x00\x00\x90\
        \x97\xc4\x03d/f\x00\x05\xcd\x01\x24\x00\x00\x90";

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let out = fs::canonicalize(dir.path()).expect("canonical").join("out");
        (dir, out)
    }

    fn target(out: &Path, id: u8, listing: &[u8], total: u64) -> TreeTarget {
        let id = ManifestId([id; 32]);
        let target = TreeTarget::open(out, id, listing.len() as u64, total).expect("open");
        target.write_at(0, listing).expect("write the listing");
        target
    }

    #[test]
    fn a_tree_without_listed_root_has_the_mode_of_the_directory_it_replaces() {
        let (_dir, out) = dir();
        let bytes = PLAIN.len() as u64;
        for (id, mode) in [(1, 0o755), (2, 0o2710)] {
            if id == 2 {
                fs::set_permissions(&out, fs::Permissions::from_mode(mode)).expect("chmod");
            }
            let target = target(&out, id, PLAIN, bytes + 5);
            assert!(target.write_at(bytes, b"early").is_err(), "nothing is there to write to");
            target.lay_out(0).expect("make the entries");
            target.write_at(bytes, b"hello").expect("write");
            let mut back = [0; 5];
            target.read_at(bytes, &mut back).expect("read");
            assert_eq!(&back, b"hello");
            let in_place = target.finish().expect("finish");
            assert!(in_place.left_out.is_empty() && in_place.found.is_none(), "{:?}", in_place.found);
            target.end();
            let is = |path: &str| fs::metadata(out.join(path)).expect("stat").mode() & 0o7777;
            assert_eq!([is(""), is("d"), is("d/f")], [mode, 0o500, 0o444]);
            assert_eq!(fs::read(out.join("d/f")).expect("read"), b"hello");
        }
    }

    #[test]
    fn an_invalid_listing_is_blamed_on_the_release_and_not_on_the_disk() {
        let (_dir, out) = dir();
        let total = PLAIN.len() as u64 + 5;
        let twisted = [&PLAIN[..PLAIN.len() - 1], b"\x91"].concat();
        let outside = PLAIN.iter().map(|byte| if *byte == b'd' { b'.' } else { *byte }).collect::<Vec<_>>();
        for (n, (listing, total)) in
            [(&twisted[..], total), (&outside[..], total), (PLAIN, total + 1), (b"", 5)]
                .into_iter()
                .enumerate()
        {
            let target = target(&out, n as u8, listing, total);
            let error = target.lay_out(0).expect_err("no listing of this artifact");
            assert_eq!(code_of(&error), Code::Integrity, "{n}: {error:#}");
            assert!(
                fs::read_dir(target.staging.tree()).expect("list").next().is_none(),
                "{n}: nothing was made"
            );
        }
        assert!(!out.exists());
    }

    #[test]
    fn colliding_names_are_reported_before_anything_is_written() {
        let (_dir, out) = dir();
        let target = target(&out, 1, PLAIN, PLAIN.len() as u64 + 5);
        // Simulates a file system that takes another name for this one.
        fs::create_dir(target.staging.tree().join("d")).expect("mkdir");
        let error = format!("{:#}", target.lay_out(0).expect_err("it is there already"));
        assert!(error.contains("does not tell some names"), "{error}");
    }
}
