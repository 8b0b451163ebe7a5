//! Two slots of a disk that the boot loader chooses between: a release is written to the one that
//! does not run, and starts with the next boot (docs/slots.md).

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use distd_core::names::Name;

use super::boot::{About, Loader, LoaderSettings, Slot, Spare, booted_slot, check_slots};
use crate::failure::{Code, Failure};
use crate::pull;

/// Two slots and their boot loader.
pub(super) struct Slots {
    slots: [Slot; 2],
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
        loader: &LoaderSettings,
        product: &Name,
        data: &Path,
    ) -> anyhow::Result<Self> {
        let slots = check_slots(slots)?;
        let loader = loader.open(&slots).await?;
        let booted = match loader.booted().await? {
            Some(name) => slots.iter().position(|slot| slot.name == name).ok_or_else(|| {
                let error = anyhow!("the system was started from slot {name}, which is not in follow.slots");
                Failure::new(Code::Local, error)
                    .next("compare the boot loader's names with those in follow.slots")
            })?,
            None => booted_slot(&slots)?,
        };
        Ok(Self { slots, loader, booted, product: product.clone(), data: data.to_owned() })
    }

    fn slot(&self, is_booted: bool) -> &Slot {
        &self.slots[if is_booted { self.booted } else { 1 - self.booted }]
    }

    /// Slot that runs.
    pub(super) fn booted(&self) -> &Slot {
        self.slot(true)
    }

    /// Slot that may be written.
    pub(super) fn other(&self) -> &Slot {
        self.slot(false)
    }

    /// Version of the product in a slot, if a pull has put it there whole.
    fn version_in(&self, slot: &Slot) -> Option<Name> {
        pull::version_at(&self.data, &slot.device, &self.product)
    }

    /// Version that runs; `None` when no pull of this device wrote it.
    pub(super) fn running(&self) -> Option<Name> {
        self.version_in(self.booted())
    }

    /// Device with a version: the slot that runs comes first.
    pub(super) fn device_of(&self, version: &Name) -> Option<&Path> {
        let slots = [self.booted(), self.other()];
        let found = slots.into_iter().find(|slot| self.version_in(slot).as_ref() == Some(version));
        found.map(|slot| slot.device.as_path())
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

    /// Whether the slot that runs is not the one that starts by default.
    ///
    /// # Errors
    /// When the boot loader cannot be asked.
    pub(super) async fn is_unconfirmed(&self) -> anyhow::Result<bool> {
        let default = self.loader.default_slot().await?;
        Ok(default.is_some_and(|default| default != self.booted().name))
    }
}
