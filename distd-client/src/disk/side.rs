//! Files beside an artifact: created so that nobody else can have made them, and read and written
//! only if they belong to this user.
//!
//! A directory that others may write to can contain anything under the names that distd uses: a
//! link to a valuable file, a file of another owner, a pipe. Every file that a pull opens beside
//! its target is opened here.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use distd_core::error::Chain;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Code, Failure};
use distd_peer::filesystem;

/// Longest name that Linux file systems take, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Reasons why a file beside the target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    /// Somebody else may have put the file there.
    #[error("{} is {what}, so distd may not have made it", path.display())]
    Foreign {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the object, in words.
        what: &'static str,
    },
    /// Another process holds the lock.
    #[error("another process holds a lock on {}", path.display())]
    Locked {
        /// Path of the file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        #[source]
        cause: io::Error,
    },
}

impl SideError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { action, path: path.to_owned(), cause }
    }
}

impl From<SideError> for Failure {
    fn from(error: SideError) -> Self {
        let next = match &error {
            SideError::Foreign { path, .. } => {
                format!("look at {}; if nothing needs it, remove it", path.display())
            }
            SideError::Locked { .. } => {
                "wait until the other program is done, then run the command again".to_owned()
            }
            SideError::Io { path, .. } => {
                let dir = path.parent().unwrap_or(Path::new("/"));
                format!("look at the permissions of {} and the space there", dir.display())
            }
        };
        Self::new(Code::Local, error.into()).next(next)
    }
}

/// Appends `suffix` to the last name of `path`. A name that would become too long is cut and gets a
/// hash of itself, to stay unique.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_bytes();
    if name.len() + suffix.len() <= NAME_BYTES_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        return PathBuf::from(name);
    }
    let tag = format!("~{}{suffix}", &blake3::hash(name).to_hex()[..16]);
    let mut short = name[..NAME_BYTES_MAX.saturating_sub(tag.len()).min(name.len())].to_vec();
    short.extend_from_slice(tag.as_bytes());
    path.with_file_name(OsString::from_vec(short))
}

/// Returns whether a file with this owner may belong to this user: either this user is the owner,
/// or the file system gives that owner to whatever this user creates. FAT does so for every user,
/// and NFS for root.
pub fn may_be_ours(path: &Path, owner: u32) -> bool {
    if owner == rustix::process::geteuid().as_raw() {
        return true;
    }
    let made = path.parent().and_then(|dir| tempfile::tempfile_in(dir).ok());
    made.and_then(|file| file.metadata().ok()).is_some_and(|meta| meta.uid() == owner)
}

/// Returns whether the file system of a directory has no symbolic links. In that case nobody can
/// put a link there, and permission bits mean nothing: FAT has neither, and shows the same bits for
/// all files.
pub fn is_without_links(dir: &Path) -> bool {
    let link = |path: &Path| std::os::unix::fs::symlink("distd", path);
    match tempfile::Builder::new().prefix(".distd-").make_in(dir, link) {
        Ok(_) => false,
        Err(error) => {
            let errno = Errno::from_io_error(&error);
            // FAT and exFAT of the kernel; file systems in user space; others.
            errno.is_some_and(|errno| [Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP].contains(&errno))
        }
    }
}

/// Returns why a file may belong to somebody else; `None` for a regular file that only this user
/// can have made.
fn foreign(path: &Path, meta: &fs::Metadata) -> Option<&'static str> {
    if meta.file_type().is_symlink() {
        Some("a link")
    } else if !meta.is_file() {
        Some("not a regular file")
    } else if meta.nlink() > 1 {
        Some("a file with more than one name")
    } else if !may_be_ours(path, meta.uid()) {
        Some("a file of another user")
    } else {
        None
    }
}

/// Opens a file of this user for reading and writing. The returned flag says whether the file
/// existed already.
///
/// A new file has mode 0600, whatever the umask. An existing file is never opened through a link,
/// and is used only if it belongs to this user and has no other name.
///
/// # Errors
/// [`SideError`].
pub fn open(path: &Path) -> Result<(File, bool), SideError> {
    // Another process may create or remove the file between the two calls. Three rounds are one
    // more than that race can take.
    for _ in 0..3 {
        match create_new(path) {
            Ok(file) => return Ok((file, false)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(SideError::io("create", path)(error)),
        }
        match open_existing(path, true) {
            Ok(file) => return Ok((file, true)),
            Err(SideError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(SideError::io("create", path)(io::ErrorKind::AlreadyExists.into()))
}

/// Creates an empty file of this user, and removes an existing one first.
///
/// # Errors
/// [`SideError`].
pub fn open_empty(path: &Path) -> Result<File, SideError> {
    remove(path)?;
    create_new(path).map_err(SideError::io("create", path))
}

fn create_new(path: &Path) -> io::Result<File> {
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(path)?;
    // A default access list of the directory may have widened the mode.
    use std::os::unix::fs::PermissionsExt;
    if file.metadata()?.mode() & 0o777 != 0o600 {
        // Not every file system has modes, and the check of the owner does not need them.
        let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
    }
    Ok(file)
}

fn open_existing(path: &Path, write: bool) -> Result<File, SideError> {
    let looked = fs::symlink_metadata(path).map_err(SideError::io("inspect", path))?;
    let refuse = |what| SideError::Foreign { path: path.to_owned(), what };
    if let Some(what) = foreign(path, &looked) {
        return Err(refuse(what));
    }
    // Non-blocking: a pipe that replaced the file meanwhile must not hang this process.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    let file = file.map_err(SideError::io("open", path))?;
    let meta = file.metadata().map_err(SideError::io("inspect", path))?;
    match foreign(path, &meta) {
        Some(what) => Err(refuse(what)),
        None => Ok(file),
    }
}

/// Reads a file of this user, at most `max` bytes; `None` when the file does not exist.
///
/// # Errors
/// [`SideError`].
pub fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, SideError> {
    let file = match open_existing(path, false) {
        Ok(file) => file,
        Err(SideError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(SideError::io("read", path))?;
    if bytes.len() as u64 > max {
        return Err(SideError::io("read", path)(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(bytes))
}

/// Reads a regular file of any owner, at most `max` bytes, for content that needs no trust in its
/// owner. A pipe at the path does not block.
///
/// # Errors
/// As the system reports.
pub fn read_anyones(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Removes a file of this user so that a power cut does not bring it back; a missing file is no
/// error.
///
/// # Errors
/// [`SideError`]. A file that somebody else may have put there is kept.
pub fn remove_durably(path: &Path) -> Result<(), SideError> {
    remove(path)?;
    filesystem::sync_parent(path).map_err(SideError::io("sync", path))
}

/// Opens a regular file for reading. Anything else is an error, and a pipe does not block.
///
/// # Errors
/// As the system reports.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// Removes a file of this user; a missing file is no error.
///
/// # Errors
/// [`SideError`]. A file that somebody else may have put there is kept.
pub fn remove(path: &Path) -> Result<(), SideError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SideError::io("inspect", path)(error)),
        Ok(meta) => {
            if let Some(what) = foreign(path, &meta) {
                return Err(SideError::Foreign { path: path.to_owned(), what });
            }
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SideError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file completely or not at all, readable by its owner alone: temporary file, sync,
/// rename, sync of the directory.
///
/// Unlike `distd_peer::trust::files::write_atomic` this function takes no lock: only the holder of
/// the artifact's lock writes files beside it.
///
/// # Errors
/// [`SideError`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), SideError> {
    let part = with_suffix(path, ".part");
    filesystem::replace_by(open_empty(&part)?, &part, path, bytes)
        .map_err(|failed| SideError::io(failed.step, path)(failed.cause))
}

/// Writes a value as JSON, as [`write_atomic`].
///
/// # Errors
/// As the system reports, and when the value is no JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    write_atomic(path, &text).map_err(io::Error::other)
}

/// Reads a value that [`write_json`] wrote, at most `max` bytes, for a file that a device can do
/// without: one that is missing, damaged or unreadable counts as empty, and the log tells of the
/// latter two.
pub fn read_json<T: DeserializeOwned + Default>(path: &Path, max: u64) -> T {
    let read = match read(path, max) {
        Ok(None) => return T::default(),
        Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) => Err(io::Error::other(error)),
    };
    read.unwrap_or_else(|error| {
        let path = path.display();
        tracing::warn!(%path, error = %Chain(&error), "the file cannot be read or is damaged; it begins anew");
        T::default()
    })
}

/// Renames the file of this user at `from` to `to`, durably.
///
/// # Errors
/// [`SideError`].
pub fn replace(from: &Path, to: &Path) -> Result<(), SideError> {
    filesystem::rename(from, to).map_err(SideError::io("replace", to))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use std::io::Write;

    use super::*;

    #[test]
    fn a_too_long_name_is_cut_and_stays_unique() {
        let path = Path::new("/d/short");
        assert_eq!(with_suffix(path, ".distd"), Path::new("/d/short.distd"));
        let long = |last: char| format!("/d/{}{last}", "x".repeat(250));
        let (a, b) =
            (with_suffix(Path::new(&long('a')), ".distd"), with_suffix(Path::new(&long('b')), ".distd"));
        assert_ne!(a, b);
        for name in [&a, &b] {
            assert_eq!(name.parent(), Some(Path::new("/d")));
            assert!(name.file_name().expect("a name").len() <= NAME_BYTES_MAX);
            assert!(name.to_string_lossy().ends_with(".distd"));
        }
    }

    #[test]
    fn files_that_others_may_have_made_are_refused_and_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let precious = dir.path().join("precious");
        fs::write(&precious, "precious").expect("write");
        let side = dir.path().join("side");
        type Make<'a> = (&'a str, &'a dyn Fn());
        let kinds: [Make<'_>; 4] = [
            ("link", &|| symlink(&precious, &side).expect("link")),
            ("dangling link", &|| symlink("nowhere", &side).expect("link")),
            ("hard link", &|| fs::hard_link(&precious, &side).expect("link")),
            ("fifo", &|| {
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &side, fifo, mode, 0).expect("mkfifo");
            }),
        ];
        for (name, make) in kinds {
            make();
            for result in [
                open(&side).map(drop),
                open_empty(&side).map(drop),
                remove(&side),
                read(&side, 100).map(drop),
            ] {
                assert!(matches!(result, Err(SideError::Foreign { .. })), "{name}: {result:?}");
            }
            // The rename replaces the link itself and writes nothing to the link's target.
            assert_eq!(fs::read(&precious).expect("read"), b"precious", "{name}");
            fs::remove_file(&side).expect("remove");
            assert!(!dir.path().join("nowhere").exists());
        }
        if rustix::process::geteuid().is_root() {
            fs::write(&side, "theirs").expect("write");
            std::os::unix::fs::chown(&side, Some(65534), Some(65534)).expect("chown");
            assert!(matches!(open(&side), Err(SideError::Foreign { .. })), "a file of another user");
            assert!(matches!(open_empty(&side), Err(SideError::Foreign { .. })));
            assert_eq!(fs::read(&side).expect("read"), b"theirs");
        }
    }

    #[test]
    fn new_files_are_for_their_owner_alone_and_old_ones_keep_their_bytes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("side");
        let (mut file, there) = open(&path).expect("open");
        assert!(!there);
        file.write_all(b"begun").expect("write");
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        assert!(open(&path).expect("open").1);
        assert_eq!(read(&path, 5).expect("read").as_deref(), Some(&b"begun"[..]));
        assert!(read(&path, 4).is_err(), "longer than it may be");
        write_atomic(&path, b"whole").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"whole");
        drop(open_empty(&path).expect("open"));
        assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
        remove(&path).expect("remove");
        remove(&path).expect("gone already");
        assert_eq!(read(&path, 5).expect("read"), None);
    }
}
