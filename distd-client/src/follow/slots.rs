//! Two slots of a disk that the boot loader chooses between: a release is written to the one that
//! does not run, and starts with the next boot (docs/slots.md). A release is the image of the
//! slot's device, or a disk image whose partitions have places of their own in each slot.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use distd_core::names::Name;

use super::boot::{About, Loader, LoaderSettings, SLOT_NAME, Slot, Spare, booted_of, check_slots};
use crate::disk::path::{ArtifactPath, Standing};
use crate::disk::spread::{self, Places};
use crate::failure::{Code, Failure};
use crate::pull;

/// Partition of a release, and its place in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionPlace {
    /// Label of the partition in the release.
    pub label: String,
    /// Path of its place, with `{slot}` for the name of the slot; `None` for the slot's device.
    pub path: Option<String>,
}

impl std::str::FromStr for PartitionPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (label, path) = match text.split_once('=') {
            Some((label, path)) => (label.trim(), Some(path.trim())),
            None => (text.trim(), None),
        };
        let is_path = path.is_none_or(|path| path.starts_with('/') && path.contains(SLOT_NAME));
        match !label.is_empty() && is_path {
            true => Ok(Self { label: label.to_owned(), path: path.map(str::to_owned) }),
            false => Err(format!(
                "is neither LABEL nor LABEL=PATH with {SLOT_NAME} in an absolute path, as in \
                 root-verity=/dev/disk/by-partlabel/verity-{SLOT_NAME}"
            )),
        }
    }
}

impl std::fmt::Display for PartitionPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}={path}", self.label),
            None => f.write_str(&self.label),
        }
    }
}

/// Returns the places of the partitions in a slot.
fn places_in(slot: &Slot, partitions: &[PartitionPlace]) -> Places {
    let place = |partition: &PartitionPlace| {
        let path =
            partition.path.as_ref().map(|path| PathBuf::from(path.replace(SLOT_NAME, slot.name.as_str())));
        // Of a link, such as those in /dev/disk, only the device behind it is written.
        let path = path.map(|path| fs::canonicalize(&path).unwrap_or(path));
        (partition.label.clone(), path.unwrap_or_else(|| slot.device.clone()))
    };
    Places(partitions.iter().map(place).collect())
}

/// Returns the places of the partitions in both slots.
///
/// # Errors
/// Failures with [`Code::Usage`] when a label is there twice, when two partitions or both slots
/// have one place, or when a place can be none.
pub(super) fn check_places(slots: &[Slot; 2], partitions: &[PartitionPlace]) -> anyhow::Result<[Places; 2]> {
    let usage = |error: anyhow::Error, next: &str| -> anyhow::Error {
        Failure::new(Code::Usage, error).next(next).into()
    };
    let [a, b] = [&slots[0], &slots[1]].map(|slot| places_in(slot, partitions));
    if a.0.len() != partitions.len() {
        let error = anyhow!("a label is there twice in follow.partitions");
        return Err(usage(error, "name each partition once"));
    }
    // Names that differ only in case are one file on an EFI system partition.
    let mut taken: Vec<OsString> =
        slots.iter().map(|slot| slot.device.as_os_str().to_ascii_lowercase()).collect();
    for (places, own) in [(&a, &slots[0]), (&b, &slots[1])] {
        for place in places.0.values().filter(|place| **place != own.device) {
            let name = place.as_os_str().to_ascii_lowercase();
            if taken.contains(&name) {
                let error = anyhow!("{} is the place of two partitions, or of both slots", place.display());
                return Err(usage(error, "give each a place of its own in follow.partitions"));
            }
            taken.push(name);
            let standing = ArtifactPath::target(place).map_err(Failure::from)?.standing();
            if standing == Standing::Dir {
                return Err(usage(spread::is_directory(place), "correct follow.partitions"));
            }
        }
    }
    let own_device = partitions.iter().filter(|partition| partition.path.is_none()).count();
    if own_device > 1 {
        let error = anyhow!("{own_device} partitions have the slot's own device as their place");
        return Err(usage(error, "name the places of all but one: LABEL=PATH"));
    }
    Ok([a, b])
}

/// Returns the paths to which a release is written for the two slots, and keeps where its
/// partitions lie.
///
/// # Errors
/// As [`check_places`], and failures with [`Code::Local`] when the state directory cannot be
/// written.
fn paths_of(slots: &[Slot; 2], partitions: &[PartitionPlace], data: &Path) -> anyhow::Result<[PathBuf; 2]> {
    if partitions.is_empty() {
        return Ok([&slots[0], &slots[1]].map(|slot| slot.device.clone()));
    }
    let data = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let paths = [&slots[0], &slots[1]].map(|slot| spread::path_of(&data, slot.name.as_str()));
    for (path, places) in paths.iter().zip(check_places(slots, partitions)?) {
        if !matches!(Places::of(path, &data), Ok(Some(known)) if known == places) {
            places.keep(path)?;
        }
        if Places::of(path, &data)? != Some(places) {
            let error = anyhow!("what was written to {} is not there", path.display());
            return Err(Failure::new(Code::Local, error)
                .next("make disks/ a directory of the state directory")
                .into());
        }
    }
    Ok(paths)
}

/// Two slots and their boot loader.
pub(super) struct Slots {
    slots: [Slot; 2],
    /// Path to which a release is written, of each slot.
    paths: [PathBuf; 2],
    /// Partitions of a release; empty when it is the image of the slot's device.
    partitions: Vec<PartitionPlace>,
    loader: Box<dyn Loader>,
    /// Index of the slot from which the system was started.
    booted: usize,
    product: Name,
    data: PathBuf,
}

impl Slots {
    /// Opens the boot loader and finds the slot that runs.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] or [`Code::Local`]: a device that does not know its slots
    /// writes none.
    pub(super) async fn open(
        slots: &[(Name, PathBuf)],
        partitions: &[PartitionPlace],
        loader: &LoaderSettings,
        product: &Name,
        data: &Path,
    ) -> anyhow::Result<Self> {
        let slots = check_slots(slots)?;
        let paths = paths_of(&slots, partitions, data)?;
        let loader = loader.open(&slots).await?;
        let booted = booted_of(&*loader, &slots).await?;
        let (product, data, partitions) = (product.clone(), data.to_owned(), partitions.to_vec());
        Ok(Self { slots, paths, partitions, loader, booted, product, data })
    }

    /// Path of the release that runs.
    pub(super) fn booted_path(&self) -> &Path {
        &self.paths[self.booted]
    }

    /// Path to which a release is written.
    pub(super) fn other_path(&self) -> &Path {
        &self.paths[1 - self.booted]
    }

    /// Paths of the artifacts in the slot that runs: the release, or the partitions of an image
    /// that distd did not write.
    pub(super) fn seeds(&self) -> Vec<PathBuf> {
        let path = self.booted_path();
        if self.partitions.is_empty() || path.exists() {
            return vec![path.to_owned()];
        }
        places_in(self.booted(), &self.partitions).0.into_values().filter(|place| place.exists()).collect()
    }

    /// Slot that runs.
    pub(super) fn booted(&self) -> &Slot {
        &self.slots[self.booted]
    }

    /// Slot that may be written.
    pub(super) fn other(&self) -> &Slot {
        &self.slots[1 - self.booted]
    }

    /// Version of the product at the path of a slot, if a pull has put it there whole.
    fn version_at(&self, path: &Path) -> Option<Name> {
        pull::version_at(&self.data, path, &self.product)
    }

    /// Version that runs; `None` when no pull of this device wrote it.
    pub(super) fn running(&self) -> Option<Name> {
        self.version_at(self.booted_path())
    }

    /// Path with a version: the slot that runs comes first.
    pub(super) fn path_with(&self, version: &Name) -> Option<&Path> {
        let mut paths = [self.booted_path(), self.other_path()].into_iter();
        paths.find(|path| self.version_at(path).as_ref() == Some(version))
    }

    /// Makes sure that the boot loader starts only the slot that runs, because the other one is
    /// about to be written.
    ///
    /// # Errors
    /// When the boot loader cannot be told; then nothing may be written.
    pub(super) async fn protect(&self) -> anyhow::Result<()> {
        self.loader.keep(&self.booted().name, &self.other().name, Spare::Unusable).await
    }

    /// Makes the slot that runs the default. The other one has the release before, if that worked.
    ///
    /// # Errors
    /// When the boot loader cannot be told.
    pub(super) async fn confirm(&self) -> anyhow::Result<()> {
        self.loader.keep(&self.booted().name, &self.other().name, Spare::Whole).await
    }

    /// Tells the boot loader that the slot which runs, the default, still works.
    ///
    /// # Errors
    /// When the boot loader cannot be told.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        self.loader.refresh(&self.booted().name).await
    }

    /// Makes the slot that does not run the default, because the one that runs does not work.
    ///
    /// # Errors
    /// When the boot loader cannot be told.
    pub(super) async fn leave(&self) -> anyhow::Result<()> {
        self.loader.keep(&self.other().name, &self.booted().name, Spare::Unusable).await
    }

    /// Orders the next boot, and no other, from the slot that was written.
    ///
    /// # Errors
    /// When the boot loader cannot be told.
    pub(super) async fn try_once(&self, version: &Name) -> anyhow::Result<()> {
        let about = About { product: self.product.clone(), version: version.clone() };
        self.loader.try_once(&self.other().name, &about).await
    }

    /// Whether the slot that runs is not the one that starts next.
    ///
    /// # Errors
    /// When the boot loader cannot be asked.
    pub(super) async fn is_unconfirmed(&self) -> anyhow::Result<bool> {
        self.loader.would_leave(&self.booted().name).await
    }
}
