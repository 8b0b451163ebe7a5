//! Files that hold keys and trust. They are created exclusively, replaced atomically, and refused
//! if other users may read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::filesystem;
use rustix::fs::{CWD, Gid, OFlags, RenameFlags, Uid};
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
    /// The file is secret, and belongs neither to root nor to the user of this process.
    #[error("{path} belongs to another user, who could change it; run: chown root {path}")]
    Foreign {
        /// Path of the file.
        path: PathBuf,
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

/// Permission bits that a secret file may have that this process keeps itself.
const KEPT_MODE_MAX: u32 = 0o700;

/// Permission bits that a secret file may have that was handed to this process by name.
const GRANTED_MODE_MAX: u32 = 0o750;

/// Checks the permission bits of an open secret file against the most that it may have.
fn check_mode(meta: &fs::Metadata, path: &Path, max: u32) -> Result<(), FileError> {
    let mode = meta.mode() & 0o777;
    if mode & !max != 0 && keeps_modes_beside(path) {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Checks a secret file that another program handed to this one, such as a credential of systemd or
/// a secret of a container, which come with mode 0440. The file must belong to root or to this
/// user, must not be writable by its group, and must be closed to other users.
///
/// # Errors
/// [`FileError::Foreign`] and [`FileError::TooOpen`].
pub fn check_granted(meta: &fs::Metadata, path: &Path) -> Result<(), FileError> {
    if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
        return Err(FileError::Foreign { path: path.to_owned() });
    }
    check_mode(meta, path, GRANTED_MODE_MAX)
}

/// Like [`read`], but refuses a file on which the group or others have any right.
pub fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("open", path)(e)),
    };
    // Use the mode of the open file, so that the file checked is the file read.
    let meta = file.metadata().map_err(FileError::io("inspect", path))?;
    check_mode(&meta, path, KEPT_MODE_MAX)?;
    read_bounded(file, path).map(Some)
}

/// Whether a file created with mode 0600 beside `path` gets that mode. On FAT every file has the
/// one mode of the mount.
fn keeps_modes_beside(path: &Path) -> bool {
    let Ok(probe) = Temporary::write(path, b"", 0o600) else { return true };
    let mode = fs::symlink_metadata(&probe.path).map(|meta| meta.mode() & 0o777);
    // The probe is empty, and its lock says that no other process uses its name.
    let _ = fs::remove_file(&probe.path);
    mode.map_or(true, |mode| mode == 0o600)
}

/// Reads a secret file that another program handed to this one, by the rule of [`check_granted`];
/// `None` if it does not exist.
pub fn read_granted(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("open", path)(e)),
    };
    check_granted(&file.metadata().map_err(FileError::io("inspect", path))?, path)?;
    read_bounded(file, path).map(Some)
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
    let temporary = Temporary::write(path, bytes, 0o600)?;
    let tmp = &temporary.path;
    let linked = match fs::hard_link(tmp, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        // FAT, exFAT and some FUSE file systems have no hard links, and report it with various
        // errors.
        Err(_) => match rustix::fs::renameat_with(CWD, tmp, CWD, path, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => claim(tmp, path),
            renamed => renamed.map_err(Into::into),
        },
        linked => linked,
    };
    // Already renamed if the file system has no hard links; its name may be another process's then.
    if is_at(&temporary.file, tmp).map_err(FileError::io("inspect", tmp))? {
        remove(tmp)?;
    }
    match linked {
        Ok(()) => filesystem::sync_renamed(path).map(|()| true).map_err(FileError::io("sync", path)),
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

/// Replaces `path` by these bytes, durably. A crash leaves the old file or the new one, and beside
/// it at most one temporary file, which the next call for this path removes.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let tmp = Temporary::path_for(path);
    // The open file holds its lock until the rename.
    let part = Temporary::create(&tmp, mode).map_err(FileError::io("write", path))?;
    filesystem::replace_by(part, &tmp, path, bytes)
        .map_err(|failed| FileError::io(failed.step, path)(failed.cause))
}

/// Like [`write_atomic`], for a file that others may read: with exactly this mode, whatever the
/// umask, and with `owner`, if any.
pub fn write_atomic_as(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<(Uid, Gid)>,
) -> Result<(), FileError> {
    let tmp = Temporary::path_for(path);
    let part = Temporary::create(&tmp, 0o600).map_err(FileError::io("write", path))?;
    let set = || {
        if let Some((user, group)) = owner {
            let meta = part.metadata()?;
            if (meta.uid(), meta.gid()) != (user.as_raw(), group.as_raw()) {
                rustix::fs::fchown(&part, Some(user), Some(group))?;
            }
        }
        part.set_permissions(fs::Permissions::from_mode(mode))
    };
    if let Err(error) = set() {
        // The empty file is useless, and the first error is the one to report.
        let _ = fs::remove_file(&tmp);
        return Err(FileError::io("set the owner and mode of", path)(error));
    }
    filesystem::replace_by(part, &tmp, path, bytes)
        .map_err(|failed| FileError::io(failed.step, path)(failed.cause))
}

/// Removes `path`. A missing file is not an error.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(FileError::io("remove", path)(e)),
    }
}

/// A complete file beside another file, on its way to that file's name. Its name is fixed, so that
/// a process that is killed leaves one such file at most, and its lock says that a process uses it.
struct Temporary {
    path: PathBuf,
    /// Holds the lock.
    file: File,
}

impl Temporary {
    /// Path of the temporary file for `path`.
    fn path_for(path: &Path) -> PathBuf {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        path.with_file_name(format!(".{name}.part"))
    }

    /// Writes a temporary file for `path`, durably. Waits for other processes that do the same.
    fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<Self, FileError> {
        let tmp = Self::path_for(path);
        let mut file = Self::create(&tmp, mode).map_err(FileError::io("write", path))?;
        if let Err(e) = file.write_all(bytes).and_then(|()| file.sync_all()) {
            // The incomplete file is useless, and the first error is the one to report.
            let _ = fs::remove_file(&tmp);
            return Err(FileError::io("write", path)(e));
        }
        Ok(Self { path: tmp, file })
    }

    /// Creates and locks the file at `tmp`, after it removed a file that another process left.
    fn create(tmp: &Path, mode: u32) -> io::Result<File> {
        loop {
            match OpenOptions::new().write(true).create_new(true).mode(mode).open(tmp) {
                Ok(file) => {
                    lock(&file)?;
                    // Another process may have taken the file for a left one before it was locked.
                    if is_at(&file, tmp)? {
                        return Ok(file);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Self::remove_left(tmp)?,
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until no process uses the file at `tmp`, and removes it if it is still there then.
    fn remove_left(tmp: &Path) -> io::Result<()> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().write(true).custom_flags(flags).open(tmp) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Another user's command left it in a directory of this one.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return fs::remove_file(tmp),
            Err(e) => return Err(e),
        };
        lock(&file)?;
        match is_at(&file, tmp)? {
            true => fs::remove_file(tmp),
            false => Ok(()),
        }
    }
}

/// Waits for the lock of a file. Where the file system has no locks the file counts as locked.
fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::NOLCK.raw_os_error()) => Ok(()),
        locked => locked,
    }
}

/// Whether an open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
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
        let claim = |bytes: &[u8]| {
            let temporary = Temporary::write(&path, bytes, 0o600).expect("write");
            let claimed = claim(&temporary.path, &path);
            remove(&temporary.path).expect("remove");
            claimed
        };
        claim(b"one").expect("nobody has it");
        assert_eq!(claim(b"two").expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read_secret(&path).expect("read"), Some(b"one".to_vec()));
        fs::write(&path, b"").expect("as a crash leaves it");
        claim(b"three").expect("an empty file is none");
        assert_eq!(read_secret(&path).expect("read"), Some(b"three".to_vec()));
    }

    #[test]
    fn no_temporary_file_stays_after_a_failed_replacement_or_for_longer_than_the_next() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, left) = (dir.path().join("k"), dir.path().join(".k.part"));
        fs::create_dir(&path).expect("a directory where the file belongs");
        fs::write(path.join("in"), b"").expect("write");
        write_atomic(&path, b"one", 0o600).expect_err("a directory that is not empty");
        assert!(!left.exists());
        fs::remove_dir_all(&path).expect("remove");

        fs::write(&left, b"as a killed process leaves it").expect("write");
        write_atomic(&path, b"two", 0o600).expect("write");
        assert_eq!(read_secret(&path).expect("read"), Some(b"two".to_vec()));
        assert!(!left.exists());
    }

    #[test]
    fn many_writers_of_one_file_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        std::thread::scope(|scope| {
            for byte in 0..8u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_atomic(path, &[byte; 100], 0o600).expect("write");
                    }
                });
            }
        });
        let bytes = read_secret(&path).expect("read").expect("a file");
        assert!(bytes.len() == 100 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_granted_secret_may_be_read_by_its_group_and_by_nobody_else() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        assert_eq!(read_granted(&path).expect("none"), None);
        create_secret(&path, b"one").expect("create");
        for (mode, is_good) in
            [(0o600, true), (0o440, true), (0o400, true), (0o444, false), (0o660, false), (0o450, true)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(read_granted(&path).is_ok(), is_good, "{mode:o}");
        }
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
