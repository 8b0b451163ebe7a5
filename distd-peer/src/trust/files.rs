//! Files that hold keys and trust. They are created exclusively, replaced atomically, and refused
//! if other users may read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{filesystem, random};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// Maximum size of a key, certificate or root metadata file that is read, bytes. A certificate
/// chain has about 2 KiB, and a `root.json` with a dozen keys about 8 KiB.
pub const TRUST_FILE_BYTES_MAX: u64 = 1 << 20;

/// Reason why a file of the trust directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file is secret, and other users may read or write it.
    #[error("{path} is open to others (mode {mode:03o}); run: chmod 600 {path}")]
    TooOpen {
        /// Path of the file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// The file is longer than [`TRUST_FILE_BYTES_MAX`].
    #[error("{path} is longer than {TRUST_FILE_BYTES_MAX} bytes, the most such a file may have")]
    TooLong {
        /// Path of the file.
        path: PathBuf,
    },
    /// The system refused an operation.
    #[error("could not {action} {path}")]
    Io {
        /// Attempted operation, a verb for the message.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        cause: io::Error,
    },
}

impl FileError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { action, path: path.to_owned(), cause }
    }
}

/// Creates `dir` and its parents. Only the owner may access `dir` itself.
pub fn create_private_dir(dir: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        // The standard library also reports this if it could not check whether a directory exists.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(FileError::io("create", dir)(error)),
            Err(cause) => Err(FileError::io("inspect", dir)(cause)),
        },
        made => made.map_err(FileError::io("create", dir)),
    }
}

/// Returns the contents of `path`, at most [`TRUST_FILE_BYTES_MAX`]; `None` if the file does not
/// exist.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match File::open(path) {
        Ok(file) => read_bounded(file, path).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::io("open", path)(e)),
    }
}

/// Like [`read`], but refuses a file on which the group or others have any right.
pub fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("open", path)(e)),
    };
    // Use the mode of the open file, so that the file checked is the file read.
    let mode = file.metadata().map_err(FileError::io("inspect", path))?.mode() & 0o777;
    if mode & 0o077 != 0 && keeps_modes_beside(path) {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    read_bounded(file, path).map(Some)
}

/// Whether a file created with mode 0600 beside `path` gets that mode. On FAT every file has the
/// one mode of the mount.
fn keeps_modes_beside(path: &Path) -> bool {
    let Ok(probe) = write_temporary(path, b"", 0o600) else { return true };
    let mode = fs::symlink_metadata(&probe).map(|meta| meta.mode() & 0o777);
    // The probe is empty, and nothing uses its random name.
    let _ = fs::remove_file(&probe);
    mode.map_or(true, |mode| mode == 0o600)
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, FileError> {
    let mut out = Vec::new();
    file.take(TRUST_FILE_BYTES_MAX + 1).read_to_end(&mut out).map_err(FileError::io("read", path))?;
    if out.len() as u64 > TRUST_FILE_BYTES_MAX {
        return Err(FileError::TooLong { path: path.to_owned() });
    }
    Ok(out)
}

/// Creates `path` with mode 0600 and exactly these bytes. Returns false and leaves the file alone
/// if it exists. A crash leaves the complete file or none: the bytes are durable before the name is
/// linked.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let tmp = write_temporary(path, bytes, 0o600)?;
    let linked = match fs::hard_link(&tmp, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        // FAT, exFAT and some FUSE file systems have no hard links, and report it with various
        // errors.
        Err(_) => match rustix::fs::renameat_with(CWD, &tmp, CWD, path, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => claim(&tmp, path),
            renamed => renamed.map_err(Into::into),
        },
        linked => linked,
    };
    // Already renamed if the file system has no hard links.
    remove(&tmp)?;
    match linked {
        Ok(()) => filesystem::sync_parent(path).map(|()| true).map_err(FileError::io("sync", path)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(FileError::io("create", path)(e)),
    }
}

/// Renames `tmp` to `path` unless `path` exists, on systems that have no single call for it. A
/// crash between the two steps leaves an empty file, which the next attempt replaces.
fn claim(tmp: &Path, path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() == 0 => {}
            _ => return Err(e),
        },
        other => drop(other?),
    }
    fs::rename(tmp, path)
}

/// Replaces `path` by these bytes, durably. A crash leaves the old file or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let tmp = write_temporary(path, bytes, mode)?;
    filesystem::rename(&tmp, path).map_err(FileError::io("replace", path))
}

/// Removes `path`. A missing file is not an error.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(FileError::io("remove", path)(e)),
    }
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, FileError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let tmp = path.with_file_name(format!(".{name}.{}", hex::encode(random::bytes::<8>())));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(e) = write() {
        // The incomplete file is useless, and the first error is the one to report.
        let _ = fs::remove_file(&tmp);
        return Err(FileError::io("write", path)(e));
    }
    Ok(tmp)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_created_once_with_mode_600() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        assert!(create_secret(&path, b"one").expect("create"));
        assert!(!create_secret(&path, b"two").expect("exists"));
        assert_eq!(read_secret(&path).expect("read"), Some(b"one".to_vec()));
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "no temporary file stays");
    }

    #[test]
    fn without_hard_links_a_secret_is_created_once_and_an_empty_file_is_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        let claim = |bytes: &[u8]| claim(&write_temporary(&path, bytes, 0o600).expect("write"), &path);
        claim(b"one").expect("nobody has it");
        assert_eq!(claim(b"two").expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read_secret(&path).expect("read"), Some(b"one".to_vec()));
        fs::write(&path, b"").expect("as a crash leaves it");
        claim(b"three").expect("an empty file is none");
        assert_eq!(read_secret(&path).expect("read"), Some(b"three".to_vec()));
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_and_the_error_names_the_fix() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        create_secret(&path, b"one").expect("create");
        for mode in [0o640, 0o604, 0o620, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let error = read_secret(&path).expect_err("too open");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
}
