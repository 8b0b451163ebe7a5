//! Checks whether `--out` may be used: either distd put the content there, or nothing is there.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use distd_core::ChunkHash;
use distd_core::bounds::TREE_LISTING_BYTES_MAX;
use distd_core::error::Chain;
use distd_core::manifest::{Kind, Manifest};
use distd_core::tree::{Entry, EntryKind};
use rustix::fs::Access;

use super::kept::{listing_path, manifest_path, read_kept_manifest, staging_path};
use super::layout::Layout;
use super::staging::Staging;
use crate::disk::beneath::Beneath;
use crate::disk::device;
use crate::disk::mounts::{self, Mount};
use crate::disk::path::{ArtifactPath, Standing};
use crate::disk::side;
use crate::failure::{Code, Failure};

/// Number of entries examined in a directory that may be a tree of distd's. More entries would not
/// make the answer more certain.
const LOOKED_AT_MAX: usize = 2000;

/// Reasons why `--out` cannot be used.
#[derive(Debug, thiserror::Error)]
enum NotOurs {
    /// The directory is not empty.
    #[error("{} is not empty, and {why}", path.display())]
    Filled {
        /// Path of the directory.
        path: PathBuf,
        /// Reason why the directory is not taken for a tree of distd's.
        why: &'static str,
    },
    /// Something is mounted at or below the path.
    #[error("something is mounted at {}: it would be moved or hidden", .0.display())]
    Mounted(PathBuf),
    /// Something is mounted at or below the path in another mount namespace.
    #[error("something is mounted at {} in another mount namespace: it would be unmounted there", .0.display())]
    MountedElsewhere(PathBuf),
    /// Other users may write to the directory.
    #[error("others may write to {} (mode {mode:04o}), and could put a link where root writes", path.display())]
    Open {
        /// Path of the directory.
        path: PathBuf,
        /// Permission bits of the directory.
        mode: u32,
    },
    /// The directory of the path does not exist.
    #[error("the directory {} does not exist", .0.display())]
    NoDirectory(PathBuf),
    /// This user may not write to the directory.
    #[error("nothing can be written to {}", path.display())]
    Closed {
        /// Path of the directory.
        path: PathBuf,
        /// Error of the system.
        #[source]
        cause: io::Error,
    },
}

impl From<NotOurs> for Failure {
    fn from(error: NotOurs) -> Self {
        let next = match &error {
            NotOurs::Filled { .. } => {
                "name an empty or a new directory with --out, or move what is there away".to_owned()
            }
            NotOurs::Mounted(point) => format!("unmount it first: umount {}", point.display()),
            NotOurs::MountedElsewhere(_) => {
                "stop the service that has it mounted, then run the command again".to_owned()
            }
            NotOurs::Open { path, .. } => format!("remove that permission: chmod o-w,g-w {}", path.display()),
            NotOurs::NoDirectory(dir) => format!("make it: mkdir -p {}", dir.display()),
            NotOurs::Closed { .. } => "choose another --out, or another user".to_owned(),
        };
        Self::new(Code::Local, error.into()).next(next)
    }
}

/// Checks everything about `--out` that must be right before anything is fetched; changes nothing.
///
/// # Errors
/// Failures with [`Code::Local`].
pub(super) fn check(out: &ArtifactPath, data: &Path) -> anyhow::Result<()> {
    let path = out.path();
    if out.standing() == Standing::Device {
        return Ok(device::check_unused(path).map_err(Failure::from)?);
    }
    match check_parent(path) {
        // Nothing can be lost in a missing directory. Let it pass here, so that a release that does
        // not exist is reported first.
        Err(NotOurs::NoDirectory(_)) => return Ok(()),
        // If the release is already in place, no right to write is needed.
        Err(NotOurs::Closed { .. }) => {}
        other => other.map_err(Failure::from)?,
    }
    match out.standing() {
        Standing::Dir => {
            check_directory(path)?;
            check_filled(path, data).map_err(Failure::from)?;
        }
        _ => check_mounts(path).map_err(Failure::from)?,
    }
    Ok(())
}

/// Refuses a path in a directory that does not exist or cannot be written to.
///
/// # Errors
/// Failures with [`Code::Local`].
pub(super) fn check_directory_of(out: &ArtifactPath) -> anyhow::Result<()> {
    match out.standing() {
        Standing::Device => Ok(()),
        _ => Ok(check_parent(out.path()).map_err(Failure::from)?),
    }
}

/// Checks the directory that contains the artifact's name.
fn check_parent(path: &Path) -> Result<(), NotOurs> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let closed = |cause| NotOurs::Closed { path: dir.to_owned(), cause };
    let meta = fs::metadata(dir).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => NotOurs::NoDirectory(dir.to_owned()),
        _ => closed(cause),
    })?;
    let mode = meta.mode() & 0o7777;
    // Root's own group is root. In a sticky directory, users cannot rename or remove files of
    // others.
    let open = mode & 0o002 != 0 || (mode & 0o020 != 0 && meta.gid() != 0);
    let open = open && mode & 0o1000 == 0;
    if rustix::process::geteuid().is_root() && open && !side::is_without_links(dir) {
        return Err(NotOurs::Open { path: dir.to_owned(), mode });
    }
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| closed(error.into()))
}

fn check_mounts(path: &Path) -> Result<(), NotOurs> {
    let mounts = match mounts::here() {
        Ok(mounts) => mounts,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "could not list the mounts: none is entered, but a mount below the target is not reported");
            return Ok(());
        }
    };
    let staging = staging_path(path);
    let find = |mounts: &[Mount]| -> Option<PathBuf> {
        let mut found = mounts::at_or_below(mounts, path).chain(mounts::at_or_below(mounts, &staging));
        found.next().map(|mount| mount.point.clone())
    };
    if let Some(point) = find(&mounts) {
        return Err(NotOurs::Mounted(point));
    }
    // When a directory is removed here, the kernel unmounts what is mounted on it in other
    // namespaces.
    match find(&mounts::elsewhere_below_this_root()) {
        Some(point) => Err(NotOurs::MountedElsewhere(point)),
        None => Ok(()),
    }
}

/// Refuses a directory that cannot be replaced because something is mounted at or below it.
///
/// # Errors
/// Failures with [`Code::Local`].
pub(super) fn check_directory(path: &Path) -> anyhow::Result<()> {
    Ok(check_mounts(path).map_err(Failure::from)?)
}

/// Refuses a non-empty directory that is not a tree of distd's.
fn check_filled(path: &Path, data: &Path) -> Result<(), NotOurs> {
    let empty = fs::read_dir(path).is_ok_and(|mut list| list.next().is_none());
    if empty || Staging::of(path).is_in_place() {
        return Ok(());
    }
    match why_not_ours(path, data) {
        Some(why) => Err(NotOurs::Filled { path: path.to_owned(), why }),
        None => Ok(()),
    }
}

/// Returns why a directory is not taken for the tree whose manifest and listing are kept beside it;
/// `None` if it is that tree.
fn why_not_ours(path: &Path, data: &Path) -> Option<&'static str> {
    let Some(manifest) = read_kept_manifest(path, data) else {
        return Some(match manifest_path(path, data).exists() {
            true => "the manifest beside it cannot be read",
            false => "distd did not put it there: no manifest is kept beside it",
        });
    };
    let Kind::Tree { listing_bytes } = manifest.root().kind else {
        return Some("the manifest beside it is of a file");
    };
    let listing = side::read_anyones(&listing_path(path), TREE_LISTING_BYTES_MAX).unwrap_or_default();
    if !is_listing_of(&listing, listing_bytes, &manifest) {
        return Some("no listing that fits the manifest is kept beside it");
    }
    let Ok(layout) = Layout::new(&listing) else { return Some("the listing beside it cannot be read") };
    let Ok(beneath) = Beneath::open(path) else { return Some("it cannot be opened") };
    let entries = layout.listing.entries();
    let step = (entries.len() / LOOKED_AT_MAX).max(1);
    let looked: Vec<&Entry> = entries.iter().step_by(step).collect();
    let there = looked.iter().filter(|entry| is_there(&beneath, entry)).count();
    // Some entries may have been removed or replaced by hand. If most are missing, another
    // directory has taken the name.
    (there * 2 < looked.len() || entries.is_empty()).then_some("it does not hold what distd put there")
}

fn is_there(beneath: &Beneath, entry: &Entry) -> bool {
    let look = beneath.at(entry.path.as_bytes()).and_then(|at| fs::symlink_metadata(at.short_path()));
    look.is_ok_and(|meta| {
        let kind = meta.file_type();
        match entry.kind {
            EntryKind::File { .. } | EntryKind::HardLink { .. } => kind.is_file(),
            EntryKind::Dir => kind.is_dir(),
            EntryKind::Symlink { .. } => kind.is_symlink(),
            EntryKind::Fifo => kind.is_fifo(),
            EntryKind::CharDev { .. } => kind.is_char_device(),
            EntryKind::BlockDev { .. } => kind.is_block_device(),
        }
    })
}

/// Returns whether these bytes are the listing at the start of a manifest's artifact.
pub(super) fn is_listing_of(listing: &[u8], listing_bytes: u64, manifest: &Manifest) -> bool {
    if listing.len() as u64 != listing_bytes {
        return false;
    }
    let of_listing = manifest.entries().take_while(|at| at.offset < listing_bytes);
    of_listing.into_iter().all(|at| {
        // A listing has at most 256 MiB.
        let start = at.offset as usize;
        let piece = listing.get(start..start + at.entry.len as usize);
        piece.is_some_and(|piece| ChunkHash::of(piece) == at.entry.hash)
    })
}

/// Returns the layout of the tree at `path`, from the listing beside it.
pub(super) fn installed_layout(path: &Path) -> Option<Layout> {
    let listing = side::read_anyones(&listing_path(path), TREE_LISTING_BYTES_MAX).ok()?;
    Layout::new(&listing).ok()
}
