//! The directory in which a tree is built, and the steps by which the tree replaces the old one.
//!
//! `OUT.distd-part/` contains `manifest` (the release and the directory for which it was begun),
//! `listing`, `laid` (exists once every entry was created), `tree`, and for a moment `old`. If any
//! step is interrupted, the same pull continues from the state it left: `manifest` names the inode
//! of the new tree, which shows whether that tree is at OUT already.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use distd_core::ManifestId;
use distd_core::error::Chain;
use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;

use super::kept::{LEFT_OUT_BYTES_MAX, identity, left_out_path, listing_path, read_left_out, staging_path};
use super::left_out::LeftOut;
use super::ours;
use super::sweep::{self, Sweep};
use crate::disk::mounts;
use crate::disk::remove::remove_tree;
use crate::disk::side::{self, SideError, with_suffix};
use distd_peer::filesystem;

/// Names of everything that distd creates in a staging directory.
const OWN_NAMES: [&str; 8] =
    ["manifest", "manifest.part", "listing", "laid", "left-out", "left-out.part", "tree", "old"];

/// Largest mark read, in bytes: an id and an inode.
const MARK_BYTES_MAX: u64 = 256;

/// Largest number of directories for files that were found in a tree and do not belong to it:
/// `OUT.distd-kept`, `OUT.distd-kept-2`, ….
const KEPT_MAX: usize = 10_000;

/// Reasons why a staging directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StagingError {
    /// The directory may belong to somebody else.
    #[error("{} is not a directory that distd made: {what}", path.display())]
    Foreign {
        /// Path of the directory.
        path: PathBuf,
        /// Reason, in words.
        what: String,
    },
    /// Something is mounted in the directory.
    #[error("something is mounted at {}", .0.display())]
    Mounted(PathBuf),
    /// A file in the directory cannot be used.
    #[error(transparent)]
    Side(#[from] SideError),
    /// The system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// Path on which the action failed.
        path: PathBuf,
        /// Error of the system.
        #[source]
        cause: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StagingError {
    move |cause| StagingError::Io { action, path: path.to_owned(), cause }
}

/// The staging directory of one target.
#[derive(Debug)]
pub(super) struct Staging {
    out: PathBuf,
    dir: PathBuf,
}

impl Staging {
    pub(super) fn of(out: &Path) -> Self {
        Self { out: out.to_owned(), dir: staging_path(out) }
    }

    /// Returns the directory in which the tree is built.
    pub(super) fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub(super) fn listing(&self) -> PathBuf {
        self.dir.join("listing")
    }

    fn laid(&self) -> PathBuf {
        self.dir.join("laid")
    }

    /// Returns the release and the inode of the tree that was begun.
    fn mark(&self) -> Option<(String, u64)> {
        let bytes = side::read_anyones(&self.dir.join("manifest"), MARK_BYTES_MAX).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (id, inode) = text.split_once(' ')?;
        Some((id.to_owned(), inode.trim().parse().ok()?))
    }

    /// Returns whether the tree that was built here is already at its place, so that only the rest
    /// of the pull was interrupted.
    pub(super) fn is_in_place(&self) -> bool {
        let inode = |path: &Path| identity(path).map(|(_, inode)| inode);
        self.mark().is_some_and(|(_, mark)| inode(&self.out) == Some(mark))
    }

    /// Returns whether the tree here was begun for `id` and can be continued.
    pub(super) fn is_begun_for(&self, id: ManifestId) -> bool {
        let inode = identity(&self.tree()).map(|(_, inode)| inode);
        // While entries are missing, nothing was fetched into the tree.
        self.mark() == inode.map(|inode| (id.to_string(), inode)) && self.laid().exists()
    }

    /// Refuses an object at the staging directory's path that distd did not create for this user,
    /// or that has something mounted in it.
    ///
    /// # Errors
    /// [`StagingError`].
    pub(super) fn check(&self) -> Result<(), StagingError> {
        let foreign = |what: String| Err(StagingError::Foreign { path: self.dir.clone(), what });
        let meta = match fs::symlink_metadata(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io_error("inspect", &self.dir))?,
        };
        if meta.file_type().is_symlink() {
            return foreign("it is a link".into());
        }
        if !side::may_be_ours(&self.dir, meta.uid()) {
            return foreign("another user made it".into());
        }
        if !meta.is_dir() {
            // Probably a file of an interrupted pull; that is checked when the file is opened or
            // removed.
            return Ok(());
        }
        let is_open = || meta.mode() & 0o022 != 0 && !side::is_without_links(&self.dir);
        if !fs::read_dir(&self.dir).is_ok_and(|mut list| list.next().is_none()) && is_open() {
            return foreign("others may write to it".into());
        }
        for entry in fs::read_dir(&self.dir).map_err(io_error("read", &self.dir))?.flatten() {
            let name = entry.file_name();
            if !OWN_NAMES.iter().any(|own| name == *own) {
                return foreign(format!("it holds {}", name.display()));
            }
        }
        let mounts = mounts::here().unwrap_or_default();
        match mounts::at_or_below(&mounts, &self.dir).next() {
            Some(mount) => Err(StagingError::Mounted(mount.point.clone())),
            None => Ok(()),
        }
    }

    /// Removes the staging directory or file that an earlier pull left. A tree that was replaced
    /// but not yet removed is retired as usual, so that files in it that distd did not put there
    /// are kept.
    ///
    /// # Errors
    /// [`StagingError`]; an object that may belong to somebody else is kept.
    pub(super) fn clear(&self) -> Result<(), StagingError> {
        self.check()?;
        match fs::symlink_metadata(&self.dir) {
            Err(_) => return Ok(()),
            Ok(meta) if !meta.is_dir() => return Ok(side::remove(&self.dir)?),
            Ok(_) => {}
        }
        for replaced in self.replaced() {
            self.retire(&replaced);
        }
        remove_tree(&self.dir).map_err(io_error("remove", &self.dir))
    }

    /// Returns trees in the staging directory that were at OUT before: all except the tree that was
    /// begun here.
    fn replaced(&self) -> Vec<PathBuf> {
        let begun = self.mark().map(|(_, inode)| inode);
        let was_at_out = |path: &PathBuf| {
            let old = path.file_name().is_some_and(|name| name == "old");
            identity(path).is_some_and(|(_, inode)| old || begun.is_some_and(|begun| begun != inode))
        };
        [self.tree(), self.dir.join("old")].into_iter().filter(was_at_out).collect()
    }

    /// Stores what was left out of the tree, until the tree is in its place.
    ///
    /// # Errors
    /// [`StagingError`].
    pub(super) fn keep_left_out(&self, left_out: &LeftOut) -> Result<(), StagingError> {
        let text = serde_json::to_vec(left_out).map_err(|e| io_error("write", &self.left_out())(e.into()))?;
        Ok(side::write_atomic(&self.left_out(), &text)?)
    }

    fn left_out(&self) -> PathBuf {
        self.dir.join("left-out")
    }

    /// Reads what was left out of the tree in place, while its pull is not finished.
    pub(super) fn read_left_out(&self) -> Option<LeftOut> {
        let bytes = side::read_anyones(&self.left_out(), LEFT_OUT_BYTES_MAX).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Finishes after the tree was put in its place: removes the replaced tree, and moves the files
    /// kept for the new tree beside it. Returns the directory with files that distd did not put
    /// into the old tree.
    ///
    /// # Errors
    /// [`StagingError`]; the call can be repeated.
    pub(super) fn settle(&self, replaced: Option<PathBuf>) -> Result<Option<PathBuf>, StagingError> {
        let mut replaced = replaced.map_or_else(|| self.replaced(), |path| vec![path]);
        replaced.retain(|path| path.exists());
        // Retire the old tree first: the listing beside the tree is still the old one.
        let mut found = None;
        for path in &replaced {
            found = self.retire(path).or(found);
        }
        if self.listing().exists() {
            fs::rename(self.listing(), listing_path(&self.out))
                .map_err(io_error("replace", &listing_path(&self.out)))?;
        }
        if let Some(left_out) = self.read_left_out() {
            let kept = left_out_path(&self.out);
            if left_out.is_empty() {
                side::remove(&kept)?;
                side::remove(&self.left_out())?;
            } else {
                side::replace(&self.left_out(), &kept)?;
            }
        }
        filesystem::sync_parent(&self.out).map_err(io_error("write", &self.out))?;
        Ok(found)
    }

    /// Creates the staging directory for `id`, or continues the one that is there; returns whether
    /// it continues.
    ///
    /// # Errors
    /// [`StagingError`].
    pub(super) fn begin(&self, id: ManifestId) -> Result<bool, StagingError> {
        self.check()?;
        if self.is_begun_for(id) {
            return Ok(true);
        }
        self.clear()?;
        let make = |path: &Path| -> io::Result<()> {
            DirBuilder::new().mode(0o700).create(path)?;
            // Without this, a default access list of the parent directory would apply to every
            // entry. On a file system without modes the call does no harm.
            rustix::fs::chmod(path, Mode::RWXU)?;
            for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
                match rustix::fs::lremovexattr(path, name) {
                    Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        make(&self.dir).map_err(io_error("create", &self.dir))?;
        make(&self.tree()).map_err(io_error("create", &self.tree()))?;
        let inode = identity(&self.tree()).map_or(0, |(_, inode)| inode);
        side::write_atomic(&self.dir.join("manifest"), format!("{id} {inode}").as_bytes())?;
        Ok(false)
    }

    /// Records that every entry of the tree was created.
    ///
    /// # Errors
    /// [`StagingError`].
    pub(super) fn set_laid(&self) -> Result<(), StagingError> {
        Ok(side::open(&self.laid()).map(drop)?)
    }

    /// Puts the tree in its place; returns the path to which the old tree was moved, if there was
    /// one.
    ///
    /// # Errors
    /// [`StagingError`]; the old tree is back at its place.
    pub(super) fn swap(&self) -> Result<Option<PathBuf>, StagingError> {
        self.swap_by(true)
    }

    /// Like [`swap`](Self::swap), with or without the system call that exchanges two directories in
    /// one step.
    fn swap_by(&self, exchange: bool) -> Result<Option<PathBuf>, StagingError> {
        let (tree, out) = (self.tree(), &self.out);
        let failed = |cause: io::Error| io_error("put the tree at", out)(cause);
        let Some(_) = identity(out) else {
            fs::rename(&tree, out).map_err(failed)?;
            return Ok(None);
        };
        // `rename` replaces an empty directory directly.
        if fs::read_dir(out).is_ok_and(|mut list| list.next().is_none()) && fs::rename(&tree, out).is_ok() {
            return Ok(None);
        }
        // A directory can move to another parent only if its owner may write to it.
        make_movable(out);
        if exchange {
            match rustix::fs::renameat_with(CWD, &tree, CWD, out, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(Some(tree)),
                Err(error) if !is_unsupported(error) => return Err(failed(error.into())),
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "directories cannot be exchanged here: they are renamed one after the other");
                }
            }
        }
        let aside = self.dir.join("old");
        match fs::rename(out, &aside) {
            Ok(()) => match fs::rename(&tree, out) {
                Ok(()) => Ok(Some(aside)),
                Err(error) => {
                    fs::rename(&aside, out).map_err(io_error("put back", out))?;
                    Err(failed(error))
                }
            },
            Err(error) if Errno::from_io_error(&error).is_some_and(|error| error == Errno::XDEV) => {
                self.replace_unmovable()
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Replaces a directory that cannot be renamed, such as one in a lower layer of overlayfs:
    /// removes distd's files from it, then gives the new tree its name. This is not atomic, but the
    /// new tree is complete, and the same pull continues after an interruption at any point.
    fn replace_unmovable(&self) -> Result<Option<PathBuf>, StagingError> {
        let out = &self.out;
        let failed = |cause: io::Error| io_error("replace", out)(cause);
        tracing::warn!(path = %out.display(), "the directory cannot be renamed here: it is removed before the new one gets its name");
        let layout = ours::installed_layout(out);
        let kept = match layout {
            Some(layout) => sweep::sweep(out, &layout.listing, &read_left_out(out)).map_err(failed)?,
            None => Sweep::Left,
        };
        if kept == Sweep::Left {
            let cause =
                io::Error::other("it holds files that distd did not put there, and cannot be renamed here");
            return Err(failed(cause));
        }
        fs::rename(self.tree(), out).map_err(failed)?;
        Ok(None)
    }

    /// Removes a tree that was replaced, except files that distd did not put there; returns the
    /// directory that has these files now.
    fn retire(&self, old: &Path) -> Option<PathBuf> {
        let swept = match ours::installed_layout(&self.out) {
            Some(layout) => sweep::sweep(old, &layout.listing, &read_left_out(&self.out)),
            None => match fs::remove_dir(old) {
                Ok(()) => Ok(Sweep::Gone),
                Err(_) => Ok(Sweep::Left),
            },
        };
        match swept {
            Ok(Sweep::Gone) => return None,
            Ok(Sweep::Left) => {}
            Err(error) => {
                tracing::warn!(path = %old.display(), error = %Chain(&error), "the replaced tree could not be removed completely")
            }
        }
        make_movable(old);
        for number in 1..=KEPT_MAX {
            let suffix = if number == 1 { ".distd-kept".to_owned() } else { format!(".distd-kept-{number}") };
            let kept = with_suffix(&self.out, &suffix);
            // Not every file system supports NOREPLACE. A plain rename could only replace an empty
            // directory.
            let renamed = match rustix::fs::renameat_with(CWD, old, CWD, &kept, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !kept.exists() => {
                    fs::rename(old, &kept)
                }
                other => other.map_err(Into::into),
            };
            match renamed {
                Ok(()) => {
                    tracing::warn!(path = %kept.display(), "files that distd did not put into the directory, or that were edited, are kept");
                    return Some(kept);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists) => {}
                Err(error) => {
                    tracing::warn!(path = %old.display(), error = %Chain(&error), "files found in the old tree could not be moved and stay here");
                    return Some(old.to_owned());
                }
            }
        }
        Some(old.to_owned())
    }

    /// Removes the staging directory once everything was moved out of it.
    pub(super) fn end(&self) {
        let own_only = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let holds_tree =
            own_only.into_iter().any(|entry| entry.file_name() == "tree" || entry.file_name() == "old");
        if holds_tree {
            // The staging directory still has an old tree that could not be moved; a warning named
            // it already.
            return;
        }
        if let Err(error) = remove_tree(&self.dir).and_then(|()| filesystem::sync_parent(&self.out)) {
            tracing::warn!(path = %self.dir.display(), error = %Chain(&error), "the staging directory was left behind");
        }
    }
}

/// Returns whether the error means that the file system cannot exchange directories. Filters of
/// system calls report EPERM.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV | Errno::PERM)
}

/// Gives the owner the right to write to a directory, without which the directory cannot be moved.
fn make_movable(path: &Path) {
    if let Ok(meta) = fs::symlink_metadata(path)
        && meta.is_dir()
        && meta.mode() & 0o300 != 0o300
        && meta.uid() == rustix::process::geteuid().as_raw()
    {
        // If this fails, the move fails as well and reports the reason.
        let _ = rustix::fs::chmod(path, Mode::from_raw_mode(meta.mode() & 0o7777 | 0o700));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let out = fs::canonicalize(dir.path()).expect("canonical").join("out");
        (dir, out)
    }

    fn staged(out: &Path) -> Staging {
        let staging = Staging::of(out);
        assert!(!staging.begin(ManifestId([1; 32])).expect("begin"));
        fs::write(staging.tree().join("new"), "new").expect("write");
        staging
    }

    #[test]
    fn a_tree_replaces_nothing_an_empty_directory_and_a_full_one() {
        for exchange in [true, false] {
            for before in ["nothing", "empty", "full", "full and closed"] {
                let (_dir, out) = dir();
                if before != "nothing" {
                    fs::create_dir(&out).expect("mkdir");
                }
                if before.starts_with("full") {
                    fs::write(out.join("old"), "old").expect("write");
                }
                if before.ends_with("closed") {
                    fs::set_permissions(&out, fs::Permissions::from_mode(0o555)).expect("chmod");
                }
                let staging = staged(&out);
                assert!(!staging.is_in_place());
                let old = staging.swap_by(exchange).expect("swap");
                assert!(staging.is_in_place(), "{before}");
                assert_eq!(fs::read(out.join("new")).expect("read"), b"new", "{before}");
                assert_eq!(old.is_some(), before.starts_with("full"), "{before}");
                if let Some(old) = old {
                    assert_eq!(fs::read(old.join("old")).expect("read"), b"old");
                    let kept = staging.retire(&old).expect("something is in it");
                    assert_eq!(kept, with_suffix(&out, ".distd-kept"));
                    assert_eq!(fs::read(kept.join("old")).expect("read"), b"old");
                }
                staging.end();
                assert!(!staging_path(&out).exists(), "{before}");
            }
        }
    }

    #[test]
    fn a_staging_directory_is_continued_for_its_release_and_replaced_for_another() {
        let (_dir, out) = dir();
        let staging = staged(&out);
        assert!(!staging.begin(ManifestId([1; 32])).expect("begin"), "not all entries were there");
        fs::write(staging.tree().join("new"), "new").expect("write");
        staging.set_laid().expect("mark");
        assert!(staging.begin(ManifestId([1; 32])).expect("begin"));
        assert!(staging.tree().join("new").exists());
        assert!(!staging.begin(ManifestId([2; 32])).expect("begin"));
        assert!(!staging.tree().join("new").exists());
    }

    #[test]
    fn foreign_files_in_staging_are_refused_and_kept() {
        let (_dir, out) = dir();
        let name = staging_path(&out);
        let elsewhere = out.with_file_name("elsewhere");
        fs::create_dir(&elsewhere).expect("mkdir");
        fs::write(elsewhere.join("manifest"), "x").expect("write");
        symlink(&elsewhere, &name).expect("link");
        assert!(matches!(Staging::of(&out).begin(ManifestId([1; 32])), Err(StagingError::Foreign { .. })));
        assert!(elsewhere.join("manifest").exists());
        fs::remove_file(&name).expect("remove");
        fs::create_dir(&name).expect("mkdir");
        fs::write(name.join("notes.txt"), "precious").expect("write");
        assert!(matches!(Staging::of(&out).clear(), Err(StagingError::Foreign { .. })));
        assert!(name.join("notes.txt").exists());
        fs::remove_file(name.join("notes.txt")).expect("remove");
        Staging::of(&out).clear().expect("an empty one is nobody's");
        fs::write(&name, "an image that was begun").expect("write");
        Staging::of(&out).begin(ManifestId([1; 32])).expect("what a pull of a file left");
    }

    #[test]
    fn clearing_after_an_interrupted_pull_keeps_files_of_the_replaced_tree() {
        let (_dir, out) = dir();
        fs::create_dir(&out).expect("mkdir");
        fs::write(out.join("mine"), "mine").expect("write");
        let staging = staged(&out);
        staging.swap_by(true).expect("swap");
        staging.clear().expect("clear");
        assert_eq!(fs::read(with_suffix(&out, ".distd-kept").join("mine")).expect("read"), b"mine");
    }
}
