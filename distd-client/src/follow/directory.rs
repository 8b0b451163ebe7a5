//! A directory of releases: `releases/VERSION`, each a file or a tree, and the link `current` to
//! one of them, which is replaced in one step.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use distd_core::names::Name;
use distd_peer::filesystem;

use crate::disk::remove::remove_tree;
use crate::disk::side::with_suffix;
use crate::failure::{Code, Failure};

/// Name of the directory of releases.
const RELEASES: &str = "releases";

/// Name of the link to the release that runs.
const CURRENT: &str = "current";

/// Name of the new link before it takes the place of the old one.
const NEXT: &str = ".distd-current";

/// File that one following process locks.
const LOCK: &str = ".distd-lock";

/// A directory with releases.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    keep: usize,
    /// Held while this process follows.
    _lock: fs::File,
}

/// Returns a failure of the local disk around `error`.
fn local(error: io::Error, what: &str, path: &Path) -> anyhow::Error {
    let error = anyhow::Error::new(error).context(format!("could not {what} {}", path.display()));
    Failure::new(Code::Local, error).into()
}

impl Directory {
    /// Opens the directory, which is made when it is missing. At least two releases are kept, so
    /// that there is one to go back to.
    ///
    /// # Errors
    /// Failures with [`Code::Local`], also when another process has the directory, or when
    /// `current` is there and no link to a release.
    pub(super) fn open(path: &Path, keep: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(path).map_err(|error| local(error, "make", path))?;
        // Other parts of the device know a release by its path in this form.
        let path = &fs::canonicalize(path).map_err(|error| local(error, "find", path))?;
        let releases = path.join(RELEASES);
        fs::create_dir_all(&releases).map_err(|error| local(error, "make", &releases))?;
        let lock_path = path.join(LOCK);
        let lock = filesystem::try_lock(&lock_path).map_err(|error| local(error, "lock", &lock_path))?;
        let lock = lock.ok_or_else(|| {
            let error = anyhow!("another process follows a channel in {}", path.display());
            Failure::new(Code::Local, error).next("stop that process, or name another directory")
        })?;
        let directory = Self { path: path.to_owned(), keep: keep.max(2), _lock: lock };
        directory.current()?;
        Ok(directory)
    }

    /// Whether a release is there.
    pub(super) fn has(&self, version: &Name) -> bool {
        fs::symlink_metadata(self.release(version)).is_ok()
    }

    /// Path of the link to the release that runs.
    pub(super) fn link(&self) -> PathBuf {
        self.path.join(CURRENT)
    }

    /// Path of a release, whether it is there or not.
    pub(super) fn release(&self, version: &Name) -> PathBuf {
        self.path.join(RELEASES).join(version.as_str())
    }

    /// Paths of the releases that are there, without the one at `but`: chunks are taken from them.
    /// The current one comes first. A directory that cannot be listed has none.
    pub(super) fn others(&self, but: &Path) -> Vec<PathBuf> {
        let current = self.current().ok().flatten().map(|version| self.release(&version));
        let entries = fs::read_dir(self.path.join(RELEASES)).into_iter().flatten().flatten();
        // Files beside a release, such as its manifest, have names of their own there.
        let is_release = |path: &PathBuf| path != but && with_suffix(path, ".distd").exists();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_release).collect();
        paths.sort_by_key(|path| current.as_ref() != Some(path));
        paths
    }

    /// Version of the release that `current` leads to; `None` while there is no link.
    ///
    /// # Errors
    /// Failures with [`Code::Local`], when `current` is no link to a release.
    pub(super) fn current(&self) -> anyhow::Result<Option<Name>> {
        let link = self.path.join(CURRENT);
        let to = match fs::read_link(&link) {
            Ok(to) => to,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let next = "move it away: distd makes a link of this name";
                let error = anyhow::Error::new(error).context(format!("{} is no link", link.display()));
                return Err(Failure::new(Code::Local, error).next(next).into());
            }
        };
        let version =
            to.strip_prefix(RELEASES).ok().and_then(Path::to_str).and_then(|name| name.parse().ok());
        match version {
            Some(version) => Ok(Some(version)),
            None => {
                let error = anyhow!("{} leads to {}, not into {RELEASES}", link.display(), to.display());
                Err(Failure::new(Code::Local, error)
                    .next("remove the link, or name another directory")
                    .into())
            }
        }
    }

    /// Makes `current` lead to a release, durably and in one step.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn activate(&self, version: &Name) -> anyhow::Result<()> {
        let release = self.release(version);
        fs::symlink_metadata(&release).map_err(|error| local(error, "find", &release))?;
        let (next, link) = (self.path.join(NEXT), self.path.join(CURRENT));
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(local(error, "remove", &next));
            }
            _ => {}
        }
        symlink(Path::new(RELEASES).join(version.as_str()), &next)
            .map_err(|error| local(error, "make", &next))?;
        filesystem::rename(&next, &link).map_err(|error| local(error, "replace", &link))
    }

    /// Removes `current`, because there was no release before the one that did not work.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn deactivate(&self) -> anyhow::Result<()> {
        let link = self.path.join(CURRENT);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local(error, "remove", &link)),
            _ => filesystem::sync_parent(&link).map_err(|error| local(error, "sync", &link)),
        }
    }

    /// Removes releases that were installed here, the oldest first, until as many as are to be kept
    /// are left. `ours` says whether this device installed what is at a path; the current release
    /// and `spare` stay, and so does everything that is not ours. `gone` is called with the path of
    /// each release that was removed.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn clean(
        &self,
        spare: Option<&Name>,
        ours: impl Fn(&Path) -> bool,
        gone: impl Fn(&Path) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let current = self.current()?;
        let releases = self.path.join(RELEASES);
        let mut found = Vec::new();
        for entry in fs::read_dir(&releases).map_err(|error| local(error, "list", &releases))? {
            let entry = entry.map_err(|error| local(error, "list", &releases))?;
            let version = entry.file_name().to_str().and_then(|name| name.parse::<Name>().ok());
            let path = entry.path();
            if version.is_none() || version == current || version.as_ref() == spare || !ours(&path) {
                continue;
            }
            let meta = entry.metadata().map_err(|error| local(error, "look at", &path))?;
            found.push((
                meta.modified().map_err(|error| local(error, "look at", &path))?,
                path,
                meta.is_dir(),
            ));
        }
        found.sort();
        let others =
            usize::from(current.is_some()) + usize::from(spare.is_some() && spare != current.as_ref());
        let stay = self.keep.saturating_sub(others);
        for (_, path, is_dir) in found.iter().take(found.len().saturating_sub(stay)) {
            // Somebody may have mounted a directory of theirs in a release.
            let removed = if *is_dir { remove_tree(path) } else { fs::remove_file(path) };
            removed.map_err(|error| local(error, "remove", path)).context("an old release stays")?;
            gone(path).map_err(|error| local(error, "clean up after", path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn current_leads_to_one_release_and_is_replaced_in_one_step() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let directory = Directory::open(&dir.path().join("app"), 2).expect("opens");
        assert!(Directory::open(&dir.path().join("app"), 2).is_err(), "one process at a time");
        assert_eq!(directory.current().expect("no link"), None);
        assert!(directory.activate(&name("1")).is_err(), "there is no release 1");
        for version in ["1", "2"] {
            fs::write(directory.release(&name(version)), version).expect("write");
            directory.activate(&name(version)).expect("activates");
            assert_eq!(directory.current().expect("a link"), Some(name(version)));
            assert_eq!(fs::read_to_string(dir.path().join("app/current")).expect("the release"), version);
        }
        // A crash between the two steps leaves a link that nobody uses.
        symlink("releases/1", dir.path().join("app").join(NEXT)).expect("a link");
        directory.activate(&name("1")).expect("activates");
        directory.deactivate().expect("no release");
        directory.deactivate().expect("still none");
        assert_eq!(directory.current().expect("no link"), None);
    }

    #[test]
    fn chunks_are_taken_from_the_other_releases() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let directory = Directory::open(dir.path(), 2).expect("opens");
        for file in ["1", "1.distd", "2", "2.distd", "3", "3.distd", "foreign"] {
            fs::write(directory.path.join(RELEASES).join(file), "x").expect("write");
        }
        directory.activate(&name("2")).expect("activates");
        let release = |version| directory.release(&name(version));
        assert_eq!(directory.others(&release("3")), [release("2"), release("1")]);
    }

    #[test]
    fn a_link_that_is_not_ours_is_refused() {
        for to in ["/etc", "releases/../x", "../releases/1"] {
            let dir = tempfile::tempdir().expect("temporary directory");
            symlink(to, dir.path().join(CURRENT)).expect("a link");
            let error = Directory::open(dir.path(), 2).expect_err(to);
            assert!(error.to_string().contains("leads to"), "{error:#}");
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join(CURRENT)).expect("a directory");
        assert!(format!("{:#}", Directory::open(dir.path(), 2).expect_err("no link")).contains("is no link"));
    }

    #[test]
    fn old_releases_of_ours_go_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let directory = Directory::open(dir.path(), 2).expect("opens");
        for (age, version) in ["5", "4", "3", "2", "1", "foreign"].iter().enumerate() {
            let path = directory.release(&name(version));
            fs::create_dir(&path).expect("a directory");
            fs::write(path.join("f"), "x").expect("write");
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(100 * age as u64);
            fs::File::open(&path).expect("open").set_modified(then).expect("a time");
        }
        directory.activate(&name("4")).expect("activates");
        let left = || {
            let entries = fs::read_dir(dir.path().join(RELEASES)).expect("list");
            let mut names: Vec<_> =
                entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.join(" ")
        };
        let ours = |path: &Path| !path.ends_with("foreign");
        directory.clean(Some(&name("2")), ours, |_| Ok(())).expect("cleans");
        assert_eq!(left(), "2 4 foreign");
        fs::create_dir(directory.release(&name("6"))).expect("a directory");
        directory.clean(None, ours, |_| Ok(())).expect("cleans");
        assert_eq!(left(), "4 6 foreign");
    }
}
