//! Target of a pull: a file beside its final path, a block device, or a tree.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use distd_core::error::Chain;
use distd_core::manifest::{Kind, Manifest};
use distd_peer::filesystem;
use distd_peer::trust::files;

use super::kept::{is_block_device, part_path, staging_path};
use super::left_out::LeftOut;
use super::ours;
use super::staging::Staging;
use super::tree::{TreeTarget, staging_failure};
use crate::disk::device;
use crate::disk::lock::{self, Lock, Patience};
use crate::disk::room::Room;
use crate::disk::side::{self, SideError};
use crate::disk::xattrs;
use crate::failure::{Code, Failure};

/// Result of finishing a target.
#[derive(Debug, Default)]
pub(super) struct InPlace {
    /// Parts of the artifact that were left out.
    pub(super) left_out: LeftOut,
    /// Directory with files that were found in a tree and do not belong to distd; `None` if there
    /// were none.
    pub(super) found: Option<PathBuf>,
}

/// A place that takes an artifact's bytes by offset. Several threads call it at once.
pub(super) trait Target: Send + Sync {
    /// Writes verified bytes.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes verified bytes that are adjacent.
    fn write_pieces_at(&self, mut offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        for piece in pieces {
            self.write_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads bytes back. Bytes that were never written are an error or have an arbitrary value.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Makes the written bytes durable.
    fn sync(&self) -> io::Result<()>;

    /// Returns whether [`sync`](Self::sync) also waits for the writes of other programs.
    fn syncs_others(&self) -> bool {
        false
    }

    /// Creates the entries of a tree, once the tree's listing is written.
    ///
    /// # Errors
    /// Failures that name the entry that cannot be created.
    fn lay_out(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Returns whether bytes that were never written read as zeros.
    fn is_zeroed(&self) -> bool;

    /// Returns whether the target may contain bytes from an earlier pull or from before.
    fn may_hold_bytes(&self) -> bool;

    /// Returns a handle for the final check that reads the medium and not the cache, by offset; it
    /// accepts only aligned reads. `None` if there is no such handle; the check then uses
    /// [`read_at`](Self::read_at).
    fn medium(&self) -> Option<File>;

    /// Puts the complete, verified artifact in its final place.
    ///
    /// # Errors
    /// Failures with [`Code::Local`]; the same pull continues from there.
    fn finish(&self) -> anyhow::Result<InPlace>;

    /// Removes what is left of the work, after the manifest was kept.
    fn end(&self) {}
}

/// A file that becomes `out` at the end, or a block device that is written in place.
pub(super) struct FileTarget {
    file: File,
    out: PathBuf,
    /// Path of the unfinished file; `None` for a block device.
    part: Option<PathBuf>,
    resumed: bool,
    /// Whether something was at the target when the pull began.
    replaces: bool,
    /// Lock of the target, taken before the file is touched.
    _lock: Lock,
}

impl FileTarget {
    fn open(out: &Path, data: &Path, bytes: u64) -> anyhow::Result<Self> {
        let lock = part_path(out, data, ".distd-lock");
        if let Some(dir) = lock.parent() {
            files::create_private_dir(dir)?;
        }
        let lock = locked(Lock::take(lock), out)?;
        if is_block_device(out) {
            let file = device::open_claimed(out).map_err(Failure::from)?;
            // udev holds a lock while it examines a device that has just appeared (systemd,
            // "Locking Block Device Access").
            lock::lock(&file, out, Patience::Some).map_err(Failure::from)?;
            let room = size_of(&file).with_context(|| format!("could not size {}", out.display()))?;
            if room < bytes {
                let error = anyhow!("{} has {room} bytes, but the artifact has {bytes}", out.display());
                return Err(Failure::new(Code::Local, error).next("choose a larger install slot").into());
            }
            let out = out.to_owned();
            return Ok(Self { file, out, part: None, resumed: true, replaces: true, _lock: lock });
        }
        let part = staging_path(out);
        if fs::symlink_metadata(&part).is_ok_and(|meta| meta.is_dir()) {
            // A pull of a tree was interrupted here.
            Staging::of(out).clear().map_err(staging_failure)?;
        }
        let (file, resumed) = side::open(&part).map_err(Failure::from)?;
        file.set_len(bytes)
            .with_context(|| format!("could not size {}", part.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        let replaces = fs::symlink_metadata(out).is_ok();
        Ok(Self { file, out: out.to_owned(), part: Some(part), resumed, replaces, _lock: lock })
    }

    /// Copies the owner, attributes and mode of the file that is replaced. A file that replaces
    /// nothing stays readable by its owner alone, because an image may hold secrets.
    fn take_over(&self, old: &fs::Metadata) -> io::Result<()> {
        let part = self.part.as_ref().unwrap_or(&self.out);
        if (old.uid(), old.gid())
            != (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
            && std::os::unix::fs::fchown(&self.file, Some(old.uid()), Some(old.gid())).is_err()
        {
            // The file belongs to another user, so its owner cannot be set; this user may still be
            // a member of its group.
            let _ = std::os::unix::fs::fchown(&self.file, None, Some(old.gid()));
        }
        let mut buffer = vec![0; xattrs::BUFFER_BYTES];
        for xattr in xattrs::read(&self.out, &mut buffer)? {
            // These attributes describe the old content.
            if [&b"security.capability"[..], b"security.ima", b"security.evm"].contains(&&*xattr.name) {
                continue;
            }
            let name = std::os::unix::ffi::OsStrExt::from_bytes(&xattr.name);
            let name: &std::ffi::OsStr = name;
            let flags = rustix::fs::XattrFlags::empty();
            if let Err(error) = rustix::fs::fsetxattr(&self.file, name, &xattr.value, flags) {
                let name = name.display();
                tracing::warn!(path = %part.display(), %name, error = %Chain(&error), "attribute of the old file not kept");
            }
        }
        self.file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))
    }
}

/// Returns the lock, or the failure that another pull holds it.
pub(super) fn locked(lock: Result<Lock, SideError>, out: &Path) -> anyhow::Result<Lock> {
    match lock {
        Ok(lock) => Ok(lock),
        Err(SideError::Locked { .. }) => {
            let error = anyhow!("another pull writes {}", out.display());
            let next = "wait for it to end, or choose another --out";
            Err(Failure::new(Code::Local, error).next(next).into())
        }
        Err(error) => Err(Failure::from(error).into()),
    }
}

/// Refuses an artifact that cannot fit, before anything is fetched: `bytes` are the artifact's
/// without holes, `kept` those of the files that stay beside it.
fn check_room(out: &Path, data: &Path, bytes: u64, kept: u64) -> anyhow::Result<()> {
    let device = is_block_device(out);
    let side = part_path(out, data, ".distd-part-manifest");
    // The state directory may not exist yet.
    let dir = side.ancestors().skip(1).find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let Ok(room) = Room::at(dir) else { return Ok(()) };
    let part = staging_path(out);
    let there = match fs::symlink_metadata(&part) {
        Ok(meta) if meta.is_file() => meta.blocks().saturating_mul(512),
        // Measuring the part of a tree that is already there is not worth a walk.
        Ok(_) => return Ok(()),
        Err(_) => 0,
    };
    let needed = kept + if device { 0 } else { bytes };
    if room.is_too_small_for(needed, if device { 0 } else { there }) {
        let what = if device { "the manifest kept of it" } else { "the artifact" };
        let error = anyhow!(
            "{} free bytes in {} are not enough for {what} ({needed} bytes)",
            room.free,
            dir.display()
        );
        return Err(Failure::new(Code::Local, error).next("free some space, or choose another --out").into());
    }
    Ok(())
}

fn size_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

impl Target for FileTarget {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Writes in one call, which takes the file's lock once.
    fn write_pieces_at(&self, mut offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match rustix::io::pwritev(&self.file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_zeroed(&self) -> bool {
        !self.resumed
    }

    fn may_hold_bytes(&self) -> bool {
        self.resumed
    }

    fn medium(&self) -> Option<File> {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        // Opens the file itself, whatever has its name by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = OpenOptions::new().read(true).custom_flags(direct).open(path);
        if file.is_err() {
            // This is only advice. Without it the check may read the cache, which is no worse than
            // what other tools do.
            let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        }
        file.ok()
    }

    fn finish(&self) -> anyhow::Result<InPlace> {
        let place = || -> io::Result<()> {
            let Some(part) = &self.part else { return self.file.sync_all() };
            match fs::symlink_metadata(&self.out) {
                Ok(_) if !self.replaces => return Err(appeared()),
                Ok(old) if old.is_file() => self.take_over(&old)?,
                Ok(_) => return Err(io::Error::other("the target was replaced meanwhile")),
                Err(_) => {}
            }
            self.file.sync_all()?;
            match self.replaces {
                true => fs::rename(part, &self.out)?,
                false => rename_to_nothing(part, &self.out)?,
            }
            filesystem::sync_renamed(&self.out)
        };
        place()
            .with_context(|| format!("could not put {} in place", self.out.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        Ok(InPlace::default())
    }
}

/// Somebody else made a file at the target while the pull went on. It is theirs.
fn appeared() -> io::Error {
    io::Error::other("a file appeared there meanwhile: move it away and run the same command again")
}

/// Renames `part` to `out` where nothing is.
fn rename_to_nothing(part: &Path, out: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, part, CWD, out, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(appeared()),
        // Not every file system knows the flag; nothing was there a moment ago.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => fs::rename(part, out),
        done => Ok(done?),
    }
}

/// Refuses an artifact if an object of another kind is at the target.
///
/// # Errors
/// Failures with [`Code::Usage`].
pub(super) fn check_kind(out: &Path, kind: Kind) -> anyhow::Result<()> {
    let is = fs::metadata(out).ok();
    let (what, next) = match (kind, is) {
        (Kind::File, Some(meta)) if meta.is_dir() => {
            ("a directory, but the artifact is a file", "name a file with --out")
        }
        (Kind::Tree { .. }, Some(meta)) if meta.is_file() => {
            ("a file, but the artifact is a directory", "name a directory with --out")
        }
        (Kind::Tree { .. }, Some(meta)) if !meta.is_dir() => {
            ("a block device, but the artifact is a directory", "name a directory with --out")
        }
        (Kind::PatchSet { .. }, _) => {
            let error = anyhow!("the release is a patch set, which cannot be installed");
            return Err(Failure::new(Code::Integrity, error).next("tell the operator of the origin").into());
        }
        _ => return Ok(()),
    };
    let error = anyhow!("{} is {what}", out.display());
    Err(Failure::new(Code::Usage, error).next(next).into())
}

/// Opens the target for an artifact: `bytes` are its bytes without holes, `kept` the bytes of files
/// that stay beside it.
///
/// # Errors
/// Failures with [`Code::Local`]: no room, no permission, another pull at work.
pub(super) fn open(
    out: &Path,
    data: &Path,
    manifest: &Manifest,
    bytes: u64,
    kept: u64,
) -> anyhow::Result<Box<dyn Target>> {
    let root = manifest.root();
    check_kind(out, root.kind)?;
    check_room(out, data, bytes, kept)?;
    match root.kind {
        Kind::Tree { listing_bytes } => {
            ours::check_directory(out)?;
            Ok(Box::new(TreeTarget::open(out, manifest.id(), listing_bytes, root.bytes)?))
        }
        _ => Ok(Box::new(FileTarget::open(out, data, root.bytes)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_appears_while_the_pull_goes_on_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (out, data) = (dir.path().join("out"), dir.path().join("data"));
        let target = FileTarget::open(&out, &data, 4).expect("opens");
        target.write_at(0, b"ours").expect("written");
        fs::write(&out, b"mine").expect("written");
        assert!(target.finish().is_err());
        assert_eq!(fs::read(&out).expect("there"), b"mine");
        fs::remove_file(&out).expect("removed");
        target.finish().expect("in place");
        assert_eq!(fs::read(&out).expect("there"), b"ours");
        drop(target);

        let target = FileTarget::open(&out, &data, 4).expect("opens");
        target.write_at(0, b"next").expect("written");
        target.finish().expect("what was there at first is replaced");
        assert_eq!(fs::read(&out).expect("there"), b"next");
    }
}
