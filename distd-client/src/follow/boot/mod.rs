//! Boot loaders: each chooses the slot from which the system starts, and can be told to start
//! another one once (docs/slots.md).
//!
//! A boot loader has one slot that starts by default, and may have an order to start another slot
//! at the next boot only. Whatever happens in that boot, the default stays until [`Loader::keep`]
//! changes it. Thus a release that does not start is left by itself.

mod command;
mod grub;
mod rauc;
mod systemd_boot;
mod uboot;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use async_trait::async_trait;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};

pub(super) use self::systemd_boot::{Kernel, Start};
use crate::failure::{Code, Failure};

/// Options with which the kernel was started.
const KERNEL_OPTIONS: &str = "/proc/cmdline";

/// Option of the kernel that names the slot.
const SLOT_OPTION: &str = "distd.slot=";

/// Usual mount point of the EFI system partition.
pub(super) const ESP: &str = "/boot/efi";

/// Text in a setting that stands for the name of the slot.
pub(super) const SLOT_NAME: &str = "{slot}";

/// Kind of a boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoaderKind {
    /// systemd-boot, by entries of the Boot Loader Specification with counted tries.
    SystemdBoot,
    /// GRUB, by `saved_entry` and `next_entry` of its environment block.
    Grub,
    /// U-Boot, by two variables of its environment.
    UBoot,
    /// The boot loader of RAUC, by the D-Bus interface of its service.
    Rauc,
    /// Any other, by a program of the operator.
    Command,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The boot loader's name for it.
    pub(super) name: Name,
    /// Its block device.
    pub(super) device: PathBuf,
}

/// A boot loader. Each order is durable when its function returns, and an order that is given again
/// changes nothing.
#[async_trait]
pub(super) trait Loader: Send + Sync {
    /// Slot from which the system was started; `None` when the boot loader cannot tell.
    async fn booted(&self) -> anyhow::Result<Option<Name>> {
        Ok(None)
    }

    /// Tells a boot loader that counts each start of a slot that this one, the default, works.
    async fn refresh(&self, _slot: &Name) -> anyhow::Result<()> {
        Ok(())
    }

    /// Slot that starts when no order is open; `None` when the boot loader names none.
    async fn default_slot(&self) -> anyhow::Result<Option<Name>>;

    /// Whether the boot loader would leave `booted`, the slot from which the system was started, at
    /// the next boot. One that names no default is not known to.
    async fn would_leave(&self, booted: &Name) -> anyhow::Result<bool> {
        Ok(self.default_slot().await?.is_some_and(|default| default != *booted))
    }

    /// Orders to start a slot at the next boot, once.
    async fn try_once(&self, slot: &Name, release: &About) -> anyhow::Result<()>;

    /// Makes a slot the default and withdraws an open order. After that the boot loader does not
    /// start `other`, whose contents may be about to change, unless `spare` says that they are
    /// whole.
    async fn keep(&self, slot: &Name, other: &Name, spare: Spare) -> anyhow::Result<()>;
}

/// State of the slot that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spare {
    /// It holds a release that worked.
    Whole,
    /// Its contents are unknown, or did not work.
    Unusable,
}

/// Release that is about to start, for menus.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// Product.
    pub(super) product: Name,
    /// Version.
    pub(super) version: Name,
}

/// Settings of a boot loader.
#[derive(Clone, Debug)]
pub(super) struct LoaderSettings {
    pub(super) kind: LoaderKind,
    /// Place where the boot loader keeps its choice; `None` for the usual one.
    pub(super) path: Option<PathBuf>,
    /// How a slot is started, for systemd-boot.
    pub(super) start: Option<Start>,
    /// State directory of the device.
    pub(super) data: PathBuf,
}

/// Returns a failure of the boot loader that says what to do next.
fn unusable(error: anyhow::Error, next: &str) -> anyhow::Error {
    Failure::new(Code::Local, error).next(next).into()
}

impl LoaderSettings {
    /// Opens the boot loader of a device with these slots.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when a setting is missing, with [`Code::Local`] when the boot
    /// loader cannot be used.
    pub(super) async fn open(&self, slots: &[Slot; 2]) -> anyhow::Result<Box<dyn Loader>> {
        let path = |usual: &str| self.path.clone().unwrap_or_else(|| usual.into());
        Ok(match self.kind {
            LoaderKind::Grub => Box::new(grub::Grub::open(&path("/boot/grub/grubenv"))?),
            LoaderKind::UBoot => Box::new(uboot::UBoot::open(&path("/etc/fw_env.config"), slots).await?),
            LoaderKind::Rauc => Box::new(rauc::Rauc::open(slots).await?),
            LoaderKind::SystemdBoot => {
                let Some(start) = self.start.clone() else {
                    let error = anyhow!("systemd-boot needs the kernel of a release");
                    let next = "name its path: --kernel boot/vmlinuz, or kernel in [follow] of client.toml; or the \
                                partition with a unified kernel image: --unified-kernel LABEL";
                    return Err(Failure::new(Code::Usage, error).next(next).into());
                };
                let scratch = self.data.join("mount");
                Box::new(systemd_boot::SystemdBoot::open(&path(ESP), start, slots, scratch)?)
            }
            LoaderKind::Command => {
                let Some(program) = self.path.clone() else {
                    let error = anyhow!("the boot loader is a command, and no program is named");
                    let next = "name it: --boot-path PROGRAM, or boot_path in [follow] of client.toml";
                    return Err(Failure::new(Code::Usage, error).next(next).into());
                };
                Box::new(command::Command::new(program))
            }
        })
    }
}

/// Finds the slot from which the system was started: by what the boot loader says, or else as
/// [`booted_slot`].
///
/// # Errors
/// Failures with [`Code::Local`] when nothing leads to one of the slots.
pub(super) async fn booted_of(loader: &dyn Loader, slots: &[Slot; 2]) -> anyhow::Result<usize> {
    let Some(name) = loader.booted().await? else { return booted_slot(slots) };
    slots.iter().position(|slot| slot.name == name).ok_or_else(|| {
        let error = anyhow!("the system was started from slot {name}, which is not in follow.slots");
        unusable(error, "compare the boot loader's names with those in follow.slots")
    })
}

/// Finds the slot from which the system was started: by the kernel's option `distd.slot=NAME`, or
/// by the device of the root directory.
///
/// # Errors
/// Failures with [`Code::Local`] when neither leads to one of the slots.
pub(super) fn booted_slot(slots: &[Slot; 2]) -> anyhow::Result<usize> {
    let options = fs::read_to_string(KERNEL_OPTIONS).unwrap_or_default();
    let named = options.split_whitespace().filter_map(|option| option.strip_prefix(SLOT_OPTION)).next_back();
    if let Some(named) = named {
        return slots.iter().position(|slot| slot.name.as_str() == named).ok_or_else(|| {
            let error = anyhow!("the kernel was started with {SLOT_OPTION}{named}, which is no slot");
            unusable(error, "compare the names in the boot loader's menu with those in follow.slots")
        });
    }
    let root = fs::metadata("/").map(|meta| meta.dev()).unwrap_or_default();
    let is_root = |slot: &Slot| fs::metadata(&slot.device).is_ok_and(|meta| meta.rdev() == root);
    slots.iter().position(is_root).ok_or_else(|| {
        let error = anyhow!("it is unknown which slot the system was started from");
        unusable(error, &format!("start the kernel with {SLOT_OPTION}NAME, the name of the slot"))
    })
}

/// Checks that the slots are two block devices of different names.
///
/// # Errors
/// Failures with [`Code::Usage`] or [`Code::Local`].
pub(super) fn check_slots(slots: &[(Name, PathBuf)]) -> anyhow::Result<[Slot; 2]> {
    let usage = |text: String| -> anyhow::Error {
        Failure::new(Code::Usage, anyhow!(text))
            .next("name two slots: --slot a=/dev/disk/by-partlabel/root-a --slot b=/dev/disk/by-partlabel/root-b")
            .into()
    };
    let [a, b] = slots else {
        return Err(usage(format!("{} slots are named, and two are needed", slots.len())));
    };
    if a.0 == b.0 || a.1 == b.1 {
        return Err(usage("two slots have one name or one device".to_owned()));
    }
    let slot = |(name, device): &(Name, PathBuf)| {
        let device = one_name(device)?;
        anyhow::Ok(Slot { name: name.clone(), device })
    };
    let slots = [slot(a)?, slot(b)?];
    if slots[0].device == slots[1].device {
        return Err(usage(format!("both slots are the device {}", slots[0].device.display())));
    }
    Ok(slots)
}

/// Returns the path of a slot in the form in which other parts of the device know it.
fn one_name(device: &Path) -> anyhow::Result<PathBuf> {
    use crate::disk::path::{ArtifactPath, Standing};
    let found = ArtifactPath::target(device).map_err(Failure::from)?;
    if found.standing() != Standing::Device {
        let error = anyhow!("{} is no block device", device.display());
        return Err(unusable(error, "look at the names: lsblk, or ls -l /dev/disk/by-partlabel"));
    }
    Ok(found.path().to_owned())
}
