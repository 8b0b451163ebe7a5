//! The place where a device that follows a channel has its releases: a directory, or two slots.

use std::path::{Path, PathBuf};

use distd_core::names::Name;

use super::directory::Directory;
use super::simulated::SimulatedPlace;
use super::slots::Slots;
use crate::pull::version_at;

/// The place.
pub(super) enum Place {
    /// A directory with a link to the release that runs.
    Directory(Directory),
    /// Two slots that the system is started from.
    Slots(Slots),
    /// None: the device installs nothing.
    Simulated(SimulatedPlace),
}

/// Result of making a release the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activated {
    /// It runs.
    Now,
    /// It runs after a restart of the system.
    AfterRestart,
}

impl Place {
    /// Version that runs.
    ///
    /// # Errors
    /// When the place was changed by somebody else.
    pub(super) fn running(&self) -> anyhow::Result<Option<Name>> {
        match self {
            Self::Directory(directory) => directory.current(),
            Self::Slots(slots) => Ok(slots.running()),
            Self::Simulated(place) => place.running(),
        }
    }

    /// Path to which a release is written.
    pub(super) fn target(&self, version: &Name) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.release(version),
            Self::Slots(slots) => slots.other_path().to_owned(),
            Self::Simulated(place) => place.path().to_owned(),
        }
    }

    /// Path of a release that is here.
    pub(super) fn path_of(&self, version: &Name) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.release(version),
            Self::Slots(slots) => slots.path_with(version).unwrap_or(slots.other_path()).to_owned(),
            Self::Simulated(place) => place.path().to_owned(),
        }
    }

    /// Path of the release that runs.
    pub(super) fn path_that_runs(&self) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.link(),
            Self::Slots(slots) => slots.booted_path().to_owned(),
            Self::Simulated(place) => place.path().to_owned(),
        }
    }

    /// Whether a release that does not run is at the path to which it is written, whole.
    pub(super) fn holds(&self, product: &Name, version: &Name, data: &Path) -> bool {
        let at = match self {
            Self::Directory(directory) if !directory.has(version) => return false,
            Self::Directory(directory) => directory.release(version),
            Self::Slots(slots) => slots.other_path().to_owned(),
            Self::Simulated(_) => return false,
        };
        version_at(data, &at, product).as_ref() == Some(version)
    }

    /// Versions of the product beside the one that runs that are here, whole.
    pub(super) fn others_that_are_whole(&self, product: &Name, data: &Path) -> Vec<Name> {
        let paths = match self {
            Self::Directory(directory) => {
                let current = directory.current().ok().flatten().map(|version| directory.release(&version));
                directory.others(current.as_deref().unwrap_or(Path::new("")))
            }
            Self::Slots(slots) => vec![slots.other_path().to_owned()],
            Self::Simulated(_) => Vec::new(),
        };
        paths.iter().filter_map(|path| version_at(data, path, product)).collect()
    }

    /// Paths of other releases, whose chunks are used.
    pub(super) fn seeds(&self, target: &Path) -> Vec<PathBuf> {
        match self {
            Self::Directory(directory) => directory.others(target),
            Self::Slots(slots) => slots.seeds(),
            Self::Simulated(_) => Vec::new(),
        }
    }

    /// Name of the slot to which a release is written; `None` in a directory.
    pub(super) fn target_slot(&self) -> Option<&Name> {
        match self {
            Self::Directory(_) | Self::Simulated(_) => None,
            Self::Slots(slots) => Some(&slots.other().name),
        }
    }

    /// Name of the slot that runs; `None` in a directory.
    pub(super) fn booted_slot(&self) -> Option<&Name> {
        match self {
            Self::Directory(_) | Self::Simulated(_) => None,
            Self::Slots(slots) => Some(&slots.booted().name),
        }
    }

    /// Prepares the target for being written, so that it is never started half-written.
    ///
    /// # Errors
    /// When that cannot be made sure of.
    pub(super) async fn protect(&self) -> anyhow::Result<()> {
        match self {
            Self::Directory(_) | Self::Simulated(_) => Ok(()),
            Self::Slots(slots) => slots.protect().await,
        }
    }

    /// Makes a release that is whole the next one.
    ///
    /// # Errors
    /// When it could not be; the release so far stays.
    pub(super) async fn activate(&self, version: &Name) -> anyhow::Result<Activated> {
        match self {
            Self::Directory(directory) => directory.activate(version).map(|()| Activated::Now),
            Self::Slots(slots) => slots.try_once(version).await.map(|()| Activated::AfterRestart),
            Self::Simulated(place) => place.run(Some(version)).map(|()| Activated::Now),
        }
    }

    /// Makes the release that runs stay, because it works.
    ///
    /// # Errors
    /// When it could not be; it then runs until the next restart.
    pub(super) async fn confirm(&self) -> anyhow::Result<()> {
        match self {
            Self::Directory(_) | Self::Simulated(_) => Ok(()),
            Self::Slots(slots) => slots.confirm().await,
        }
    }

    /// Tells the boot loader that the slot which runs and is the default still works: some count
    /// each start.
    ///
    /// # Errors
    /// When the boot loader cannot be told.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        match self {
            Self::Directory(_) | Self::Simulated(_) => Ok(()),
            Self::Slots(slots) => slots.refresh().await,
        }
    }

    /// Makes the release before the one that runs the next one; `from` is its version.
    ///
    /// # Errors
    /// When it could not be.
    pub(super) async fn go_back(&self, from: Option<&Name>) -> anyhow::Result<Activated> {
        match self {
            Self::Directory(directory) => {
                match from {
                    Some(from) if directory.has(from) => directory.activate(from)?,
                    // The release before is gone, or there was none.
                    Some(_) | None => directory.deactivate()?,
                }
                Ok(Activated::Now)
            }
            Self::Slots(slots) => slots.leave().await.map(|()| Activated::AfterRestart),
            Self::Simulated(place) => place.run(from).map(|()| Activated::Now),
        }
    }

    /// Whether the release that runs runs until the next restart only, and no attempt says why.
    ///
    /// # Errors
    /// When the boot loader cannot be asked.
    pub(super) async fn is_unconfirmed(&self) -> anyhow::Result<bool> {
        match self {
            Self::Directory(_) | Self::Simulated(_) => Ok(false),
            Self::Slots(slots) => slots.is_unconfirmed().await,
        }
    }
}
