//! The directory of a gateway: `PRODUCT/VERSION/image`, with the files that a pull keeps beside it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use distd_core::names::Name;
use distd_peer::filesystem;
use distd_peer::trust::files;

use crate::disk::side::with_suffix;
use crate::failure::{Code, Failure};
use crate::pull::{self, read_kept_manifest, remove_side_files};

/// Name of a release's file.
const IMAGE: &str = "image";

/// File that one gateway locks.
const LOCK: &str = ".distd-lock";

/// A directory with the releases that a gateway offers.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    keep: usize,
    data: PathBuf,
    _lock: fs::File,
}

impl Directory {
    /// Opens the directory, which is made when it is missing. `data` is the state directory.
    ///
    /// # Errors
    /// Failures with [`Code::Local`], also when another gateway has the directory.
    pub(super) fn open(path: &Path, keep: usize, data: &Path) -> anyhow::Result<Self> {
        let local = |error: anyhow::Error| Failure::new(Code::Local, error);
        files::create_private_dir(path).map_err(|error| local(error.into()))?;
        // Other parts of the device know a release by its path in this form.
        let find = || format!("could not find {}", path.display());
        let path = fs::canonicalize(path).with_context(find).map_err(local)?;
        let lock_path = path.join(LOCK);
        let lock = filesystem::try_lock(&lock_path)
            .with_context(|| format!("could not lock {}", lock_path.display()))
            .map_err(local)?;
        let lock = lock.ok_or_else(|| {
            let error = anyhow!("another gateway keeps its releases in {}", path.display());
            local(error).next("stop that process, or name another directory")
        })?;
        Ok(Self { path, keep: keep.max(1), data: data.to_owned(), _lock: lock })
    }

    /// Path of a release's file, whether it is there or not.
    pub(super) fn image(&self, product: &Name, version: &Name) -> PathBuf {
        self.path.join(product.as_str()).join(version.as_str()).join(IMAGE)
    }

    /// Makes the directory of a release; returns the path of its file.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn make(&self, product: &Name, version: &Name) -> anyhow::Result<PathBuf> {
        let image = self.image(product, version);
        if let Some(dir) = image.parent() {
            fs::create_dir_all(dir)
                .with_context(|| format!("could not make {}", dir.display()))
                .map_err(|error| Failure::new(Code::Local, error))?;
        }
        Ok(image)
    }

    /// Whether a release is there, whole: its manifest is kept beside it only then. The manifest is
    /// not read, because callers ask this for each request.
    pub(super) fn has(&self, product: &Name, version: &Name) -> bool {
        let image = self.image(product, version);
        image.exists() && with_suffix(&image, ".distd").exists()
    }

    /// Paths of the other releases of a product that are there, whole, the newest first: chunks are
    /// taken from them.
    pub(super) fn others(&self, product: &Name, version: &Name) -> Vec<PathBuf> {
        let releases = self.releases(product).unwrap_or_default().into_iter().rev();
        let others = releases.filter(|(_, other)| other != version && self.has(product, other));
        others.map(|(_, other)| self.image(product, &other)).collect()
    }

    /// Versions of a product that have a directory, with the time of its last change, the oldest
    /// first.
    fn releases(&self, product: &Name) -> io::Result<Vec<(std::time::SystemTime, Name)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path.join(product.as_str()))? {
            let entry = entry?;
            let Some(version) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            found.push((entry.metadata()?.modified()?, version));
        }
        found.sort();
        Ok(found)
    }

    /// Removes releases of a product, the oldest first, until as many as are to be kept are left.
    /// Those in `spare` stay. A file that somebody reads is read to its end all the same.
    ///
    /// # Errors
    /// As the system reports; what was removed is gone.
    pub(super) fn clean(&self, product: &Name, spare: &BTreeSet<Name>) -> anyhow::Result<()> {
        let found = self.releases(product).context("could not list the releases of the gateway")?;
        let (spared, mut others): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(_, version)| spare.contains(version));
        // A release that is not whole is worth less than any that is.
        others.sort_by_key(|(changed, version)| (self.has(product, version), *changed));
        let stay = self.keep.saturating_sub(spared.len());
        for (_, version) in others.iter().take(others.len().saturating_sub(stay)) {
            self.remove(product, version)
                .with_context(|| format!("could not remove {product}@{version} from the gateway"))?;
            tracing::info!(%product, %version, "removed an old release from the gateway");
        }
        Ok(())
    }

    /// Removes a release: what a pull put there, and nothing else.
    fn remove(&self, product: &Name, version: &Name) -> anyhow::Result<()> {
        let image = self.image(product, version);
        pull::clean(&image, &self.data)?;
        if read_kept_manifest(&image, &self.data).is_some() {
            fs::remove_file(&image)?;
            remove_side_files(&image, &self.data)?;
        }
        match image.parent().map(fs::remove_dir) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn one_gateway_has_a_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let place = dir.path().join("gateway");
        let held = Directory::open(&place, 2, dir.path()).expect("opens");
        let error = Directory::open(&place, 2, dir.path()).expect_err("locked");
        assert!(error.to_string().contains("another gateway"), "{error:#}");
        drop(held);
        Directory::open(&place, 2, dir.path()).expect("opens again");
    }

    #[test]
    fn a_file_that_no_pull_made_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let directory = Directory::open(&dir.path().join("gateway"), 1, dir.path()).expect("opens");
        for version in ["1", "2"] {
            directory.make(&name("os"), &name(version)).expect("a directory");
        }
        let foreign = directory.image(&name("os"), &name("1")).with_file_name("notes");
        fs::write(&foreign, "mine").expect("write");
        let spare = BTreeSet::from([name("2")]);
        assert!(directory.clean(&name("os"), &spare).is_err(), "the directory is not empty");
        assert_eq!(fs::read_to_string(&foreign).expect("still there"), "mine");
        fs::remove_file(&foreign).expect("remove");
        directory.clean(&name("os"), &spare).expect("cleans");
        assert!(!directory.image(&name("os"), &name("1")).parent().expect("a parent").exists());
        assert!(directory.image(&name("os"), &name("2")).parent().expect("a parent").exists());
        assert!(!directory.has(&name("os"), &name("2")));
    }
}
