//! Examination of the place where a device installs releases, for `distd doctor`.

use std::path::Path;

use distd_core::error::Chain;
use distd_peer::doctor::Examination;
use distd_peer::filesystem::Space;

use super::PlaceSettings;
use super::boot::{LoaderSettings, booted_of, booted_slot, check_slots};
use super::slots::{PartitionPlace, check_places};
use crate::config::Settings;
use crate::failure;

/// Free bytes below which a directory for releases is a finding: less than any system image.
const PLACE_BYTES_MIN: u64 = 64 << 20;

/// Checks the directory of releases, or the slots and their boot loader. Nothing is changed.
pub async fn examine_place(found: &mut Examination, settings: &Settings, data: &Path) {
    if settings.follow.is_none() {
        return found.skipped("slots", "this device follows no channel");
    }
    let place = match PlaceSettings::of(settings, data) {
        Ok(place) => place,
        Err(error) => return refused(found, "slots", &error),
    };
    match place {
        PlaceSettings::Directory { directory, .. } => match Space::at(&directory) {
            Ok(space) if space.free < PLACE_BYTES_MIN => found.finding(
                "slots",
                format!("{} bytes are free at {}", space.free, directory.display()),
                "delete what is not needed there, or keep fewer releases (follow.keep)",
            ),
            Ok(space) => {
                found.sound("slots", format!("{} bytes are free at {}", space.free, directory.display()));
            }
            Err(_) if directory.parent().is_some_and(Path::is_dir) => {
                found.sound("slots", format!("{} is made with the first release", directory.display()));
            }
            Err(error) => found.finding(
                "slots",
                format!("{} cannot be used: {error}", directory.display()),
                "make the directory above it, or correct follow.directory",
            ),
        },
        PlaceSettings::Slots { slots, partitions, loader, .. } => {
            slots_and_loader(found, &slots, &partitions, &loader).await;
        }
        PlaceSettings::Simulated(_) => found.skipped("slots", "a simulated device has no place"),
    }
}

fn refused(found: &mut Examination, check: &'static str, error: &anyhow::Error) {
    let mend =
        failure::next(error).unwrap_or_else(|| "correct [follow] of client.toml (slots.md)".to_owned());
    found.finding(check, Chain(error.as_ref()).to_string(), mend);
}

async fn slots_and_loader(
    found: &mut Examination,
    slots: &[(distd_core::names::Name, std::path::PathBuf)],
    partitions: &[PartitionPlace],
    settings: &LoaderSettings,
) {
    let slots = match check_slots(slots) {
        Ok(slots) => slots,
        Err(error) => return refused(found, "slots", &error),
    };
    if let Err(error) = check_places(&slots, partitions) {
        return refused(found, "slots", &error);
    }
    let loader = settings.open(&slots).await;
    let booted = match &loader {
        Ok(loader) => booted_of(&**loader, &slots).await,
        Err(_) => booted_slot(&slots),
    };
    match booted {
        Ok(booted) => found.sound("slots", format!("the system was started from {}", slots[booted].name)),
        Err(error) => refused(found, "slots", &error),
    }
    let loader = match loader {
        Ok(loader) => loader,
        Err(error) => return refused(found, "boot-loader", &error),
    };
    match loader.default_slot().await {
        Ok(Some(slot)) => found.sound("boot-loader", format!("its default is {slot}")),
        Ok(None) => found.finding(
            "boot-loader",
            "its default is none of the slots",
            "make the slot that works the default once, as slots.md says for this boot loader; where RAUC counts \
             tries, an agent that runs does so by itself",
        ),
        Err(error) => refused(found, "boot-loader", &error),
    }
}
