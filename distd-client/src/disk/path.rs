//! The one form of an artifact's path, however it was typed (docs/cli.md, "Paths of artifacts").
//!
//! The form is absolute, contains no link and does not end with a slash. The state kept for an
//! artifact is stored under that path, so `x`, `x/`, `./x`, a link to `x` and every name of one
//! block device are one artifact.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::device;
use super::mounts::{self, Mount};
use crate::failure::{Code, Failure};

/// Largest number of links followed in a row, the same as in the kernel.
const LINKS_MAX: usize = 40;

/// Kind of object at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing exists at the path.
    Nothing,
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A block device.
    Device,
}

impl Standing {
    fn of(meta: &Metadata) -> Result<Self, &'static str> {
        let kind = meta.file_type();
        if kind.is_file() {
            Ok(Self::File)
        } else if kind.is_dir() {
            Ok(Self::Dir)
        } else if kind.is_block_device() {
            Ok(Self::Device)
        } else if kind.is_char_device() {
            Err("a character device")
        } else if kind.is_fifo() {
            Err("a named pipe")
        } else {
            Err("a socket")
        }
    }
}

/// Purpose of a path in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The path of `--out`.
    Out,
    /// A path of `--seed`.
    Seed,
    /// The artifact to verify or to push.
    Artifact,
}

impl Role {
    fn option(self) -> &'static str {
        match self {
            Self::Out => "--out",
            Self::Seed => "--seed",
            Self::Artifact => "the artifact",
        }
    }
}

/// Reasons why a path cannot be an artifact's.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path is empty.
    #[error("{0} has no path")]
    Empty(&'static str),
    /// The path is `-`.
    #[error("{0} cannot be a stream: distd reads and writes at any offset")]
    Stream(&'static str),
    /// The object is neither a file, a directory nor a block device.
    #[error("{option} {} is {what}; it must be a file, a directory or a block device", path.display())]
    Kind {
        /// The option that named the path.
        option: &'static str,
        /// The path as typed.
        path: PathBuf,
        /// Kind of the object, in words.
        what: &'static str,
    },
    /// The path is the root directory, which has no name to put files beside.
    #[error("{0} cannot be the root directory")]
    Root(&'static str),
    /// Nothing exists at the path.
    #[error("{option} {} does not exist", path.display())]
    Missing {
        /// The option that named the path.
        option: &'static str,
        /// The path as typed.
        path: PathBuf,
    },
    /// The path is in a place for device nodes or for the kernel's own files.
    #[error("{} is not a block device, and distd puts no files there: they would be in memory only", .0.display())]
    NoDevice(PathBuf),
    /// The path contains a link that another user made.
    #[error("{} is a link that another user made", .0.display())]
    ForeignLink(PathBuf),
    /// The system refused.
    #[error("could not inspect {option} {}", path.display())]
    Io {
        /// The option that named the path.
        option: &'static str,
        /// The path as typed.
        path: PathBuf,
        /// Error of the system.
        #[source]
        cause: io::Error,
    },
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        let (code, next) = match &error {
            PathError::Empty(_) => {
                (Code::Usage, Some("name a file, a directory or a block device".to_owned()))
            }
            PathError::Stream(_) => {
                (Code::Usage, Some("name a file; one that is called - is written ./-".into()))
            }
            PathError::Kind { option, .. } => {
                (Code::Local, Some(format!("name a file, a directory or a block device as {option}")))
            }
            PathError::Root(_) => (Code::Local, Some("name a directory below it".into())),
            PathError::Missing { .. } => (Code::Local, None),
            PathError::NoDevice(_) => (
                Code::Local,
                Some("look at the device's name: lsblk, or ls -l /dev/disk/by-partlabel".into()),
            ),
            PathError::ForeignLink(_) => {
                (Code::Local, Some("if you trust the link, name the path that it leads to".into()))
            }
            PathError::Io { .. } => (Code::Local, None),
        };
        let failure = Self::new(code, error.into());
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}

/// An artifact's path in its one form, and the kind of object that was there when the path was
/// resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactPath {
    path: PathBuf,
    standing: Standing,
}

impl ArtifactPath {
    /// Resolves the path of `--out`. A link is followed even if its target does not exist yet: the
    /// artifact is put at the link's target.
    ///
    /// # Errors
    /// [`PathError`]; nothing was opened or created.
    pub fn target(typed: &Path) -> Result<Self, PathError> {
        let mounts = mounts::here().unwrap_or_default();
        Self::resolve(typed, Role::Out, &mounts)
    }

    /// Resolves the path of an object that must exist.
    ///
    /// # Errors
    /// [`PathError`]; nothing was opened.
    pub fn existing(typed: &Path, role: Role) -> Result<Self, PathError> {
        let found = Self::resolve(typed, role, &[])?;
        match found.standing {
            Standing::Nothing => Err(PathError::Missing { option: role.option(), path: typed.to_owned() }),
            _ => Ok(found),
        }
    }

    fn resolve(typed: &Path, role: Role, mounts: &[Mount]) -> Result<Self, PathError> {
        let option = role.option();
        if typed.as_os_str().is_empty() {
            return Err(PathError::Empty(option));
        }
        if typed == Path::new("-") {
            return Err(PathError::Stream(option));
        }
        let io = |cause| PathError::Io { option, path: typed.to_owned(), cause };
        // This removes `.`, double slashes and a slash at the end. The system resolves `..`, which
        // depends on links.
        let absolute: PathBuf = std::path::absolute(typed).map_err(io)?.components().collect();
        let (path, standing) = match fs::metadata(&absolute) {
            Ok(meta) => {
                let kind = |what| PathError::Kind { option, path: typed.to_owned(), what };
                let standing = Standing::of(&meta).map_err(kind)?;
                if role == Role::Out {
                    follow(&absolute, option)?;
                }
                let path = fs::canonicalize(&absolute).map_err(io)?;
                match standing {
                    Standing::Device => (device::node(meta.rdev(), path), standing),
                    _ => (path, standing),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && role == Role::Out => {
                (follow(&absolute, option)?, Standing::Nothing)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (absolute.clone(), Standing::Nothing),
            Err(error) => return Err(io(error)),
        };
        if path.file_name().is_none() {
            return Err(PathError::Root(option));
        }
        let a_file = standing != Standing::Device;
        let among_devices = |path: &Path| path.starts_with("/dev") || mounts::is_the_kernels(mounts, path);
        if role == Role::Out && a_file {
            // Check the typed path too: it may name a device although its link leads elsewhere.
            if let Some(path) = [&absolute, &path].into_iter().find(|path| among_devices(path)) {
                return Err(PathError::NoDevice(path.clone()));
            }
        }
        Ok(Self { path, standing })
    }

    /// Returns the path: absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the kind of object that was at the path.
    pub fn standing(&self) -> Standing {
        self.standing
    }
}

/// Returns where `path` leads if its last name is a link, or a chain of links. The result has no
/// links, as far as its directory exists.
fn follow(path: &Path, option: &'static str) -> Result<PathBuf, PathError> {
    let io = |cause| PathError::Io { option, path: path.to_owned(), cause };
    let mut at = path.to_owned();
    for _ in 0..LINKS_MAX {
        let (Some(dir), Some(name)) = (at.parent(), at.file_name()) else {
            return fs::canonicalize(&at).map_err(io);
        };
        let dir = match fs::canonicalize(dir) {
            // The missing directory is reported when something is to be created in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(at),
            other => other.map_err(io)?,
        };
        let here = dir.join(name);
        match fs::symlink_metadata(&here) {
            Ok(meta) if meta.file_type().is_symlink() => {
                // A link made by any other user could direct this user's writes anywhere.
                if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
                    return Err(PathError::ForeignLink(here));
                }
                let leads = fs::read_link(&here).map_err(io)?;
                at = dir.join(leads).components().collect();
            }
            Ok(_) => return Ok(here),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(here),
            Err(error) => return Err(io(error)),
        }
    }
    Err(io(rustix::io::Errno::LOOP.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn target(path: &Path) -> Result<PathBuf, PathError> {
        ArtifactPath::target(path).map(|found| found.path)
    }

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = fs::canonicalize(dir.path()).expect("canonical");
        (dir, path)
    }

    #[test]
    fn all_spellings_of_a_path_give_one_path() {
        let (_dir, root) = dir();
        fs::create_dir_all(root.join("d/sub")).expect("mkdir");
        fs::write(root.join("f"), "x").expect("write");
        symlink("d", root.join("link")).expect("link");
        symlink(root.join("link"), root.join("link2")).expect("link");
        symlink("f", root.join("file-link")).expect("link");
        symlink("new", root.join("dangling")).expect("link");
        let cases = [
            ("d", "d"),
            ("d/", "d"),
            ("d//", "d"),
            ("d/.", "d"),
            ("./d", "d"),
            ("d/sub/..", "d"),
            ("d/../f", "f"),
            ("f/", "f"),
            ("link", "d"),
            ("link/", "d"),
            ("link2", "d"),
            ("link/sub", "d/sub"),
            ("file-link", "f"),
            ("new", "new"),
            ("new/", "new"),
            ("d/new/.", "d/new"),
            ("link/new", "d/new"),
            ("dangling", "new"),
            ("dangling/", "new"),
        ];
        for (typed, expected) in cases {
            // Concatenated, not joined: `join` would drop the slash before the test sees it.
            let typed = PathBuf::from(format!("{}/{typed}", root.display()));
            assert_eq!(target(&typed).expect("a path"), root.join(expected), "{}", typed.display());
        }
        let standing = |name: &str| ArtifactPath::target(&root.join(name)).expect("a path").standing;
        assert_eq!(
            [standing("d"), standing("f"), standing("new")],
            [Standing::Dir, Standing::File, Standing::Nothing]
        );
    }

    #[test]
    fn a_path_that_cannot_be_an_artifact_is_refused_without_being_opened() {
        let (_dir, root) = dir();
        let fifo = root.join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
        let socket = root.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
        symlink(&fifo, root.join("to-fifo")).expect("link");
        for path in [fifo, socket, root.join("to-fifo"), "/dev/null".into()] {
            for role in [Role::Seed, Role::Artifact] {
                let error = ArtifactPath::existing(&path, role).expect_err("no artifact");
                assert!(matches!(error, PathError::Kind { .. }), "{error}");
            }
            assert!(matches!(target(&path), Err(PathError::Kind { .. })), "{}", path.display());
        }
        assert!(matches!(target(Path::new("-")), Err(PathError::Stream("--out"))));
        assert!(matches!(target(Path::new("")), Err(PathError::Empty("--out"))));
        assert!(matches!(target(Path::new("/")), Err(PathError::Root(_))));
        assert!(matches!(target(Path::new("/../..")), Err(PathError::Root(_))));
        assert_eq!(target(&root.join("none/x/")).expect("a path"), root.join("none/x"));
        assert!(matches!(
            ArtifactPath::existing(&root.join("none"), Role::Seed),
            Err(PathError::Missing { option: "--seed", .. })
        ));
        symlink("loop", root.join("loop")).expect("link");
        assert!(matches!(target(&root.join("loop")), Err(PathError::Io { .. })));
    }

    #[test]
    fn files_among_devices_are_refused() {
        let (_dir, root) = dir();
        symlink("/dev/distd-typo", root.join("typo")).expect("link");
        symlink("/dev", root.join("dev")).expect("link");
        let paths = [
            "/dev/distd-typo",
            "/dev/distd-typo/",
            "/dev/../dev/distd-typo",
            "/dev/disk/distd-typo",
            "/proc/distd-typo",
        ];
        for path in
            paths.map(PathBuf::from).into_iter().chain([root.join("typo"), root.join("dev/distd-typo")])
        {
            let error = target(&path).expect_err("no place for files");
            assert!(matches!(error, PathError::NoDevice(_)), "{}: {error}", path.display());
        }
    }

    #[test]
    fn a_link_of_another_user_is_not_followed() {
        if !rustix::process::geteuid().is_root() {
            return; // Only root can give a link away.
        }
        let (_dir, root) = dir();
        for (name, leads) in [("dangling", "new"), ("to-file", "f")] {
            fs::write(root.join("f"), "x").expect("write");
            symlink(leads, root.join(name)).expect("link");
            std::os::unix::fs::lchown(root.join(name), Some(65534), Some(65534)).expect("chown");
            assert!(matches!(target(&root.join(name)), Err(PathError::ForeignLink(_))), "{name}");
        }
    }
}
