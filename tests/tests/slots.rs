//! Devices with two slots, under each boot loader: an update, a release that does not start, one
//! that does not work, and the next update. Needs root and loop devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::disks::{Loop, can_mount};
use distd_tests::lab::{Lab, wait_until};
use distd_tests::machine::firmware::{Board, Firmware, Grub, Rauc, SystemdBoot, UBoot};
use distd_tests::machine::{Machine, PANICS};
use serde_json::Value;

/// Pushes a release: an EROFS image with a kernel and `text`. All have one size, so that nothing of
/// an earlier release stays behind a later one.
fn release(lab: &Lab, version: &str, text: &str) -> PathBuf {
    let (tree, image) = (lab.path(&format!("tree-{version}")), lab.path(&format!("release-{version}")));
    fs::create_dir_all(tree.join("boot")).expect("a directory");
    let kernel = tree.join("boot/vmlinuz");
    if fs::symlink_metadata(&kernel).is_err() {
        fs::write(kernel, format!("kernel {version}")).expect("write");
    }
    fs::write(tree.join("release"), format!("{version} {text:24}\n").repeat(2000)).expect("write");
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&tree).output().expect("mkfs.erofs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    lab.push(&image, "os", version).ok();
    image
}

fn set_channel(lab: &Lab, version: &str) {
    lab.admin(&["channel", "set", "os:stable", version]).ok();
}

/// Version that a device reports.
fn reported(lab: &Lab) -> Value {
    lab.admin(&["node", "ls"]).ok().json["nodes"][0]["running"][0]["version"].clone()
}

/// Tests all that a boot loader has to do for a device, by the orders of the agent.
fn updates_and_falls_back(make: fn(&Path, &[Loop; 2]) -> Box<dyn Firmware>) {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let images = [
        release(&lab, "1", ""),
        release(&lab, "2", ""),
        release(&lab, "3", PANICS),
        release(&lab, "4", "is sick"),
        release(&lab, "5", ""),
    ];
    set_channel(&lab, "1");
    let mut machine = Machine::new(&lab, "till", make);
    machine.hook("health", "[ \"$DISTD_VERSION\" != 4 ] || { echo no screen; exit 1; }");
    assert_eq!(machine.switch_on(), 0);
    wait_until("release 1 is reported", || reported(&lab) == "1");

    // An update: the other slot is written, starts, is checked and stays.
    set_channel(&lab, "2");
    assert_eq!(machine.restart_when_ordered(), 1, "release 2 starts: {}", machine.log());
    machine.wait_for_attempt("2", "succeeded");
    wait_until("release 2 is reported", || reported(&lab) == "2");
    assert!(machine.holds(0, &images[0]) && machine.holds(1, &images[1]));
    machine.cut_power();
    assert_eq!(machine.switch_on(), 1, "release 2 stays");

    // A release that panics is left by the boot loader.
    set_channel(&lab, "3");
    assert_eq!(machine.restart_when_ordered(), 1, "release 3 does not start");
    let attempt = machine.wait_for_attempt("3", "rolled_back");
    assert_eq!(attempt["failure"]["kind"], "boot", "{attempt}");
    assert!(machine.holds(1, &images[1]));

    // A release that starts and does not work is left by the device.
    set_channel(&lab, "4");
    assert_eq!(machine.restart_when_ordered(), 0, "release 4 starts: {}", machine.log());
    wait_until("release 4 is checked", || machine.attempt()["state"] == "checking");
    assert_eq!(machine.restart_when_ordered(), 1, "release 2 runs again: {}", machine.log());
    let attempt = machine.wait_for_attempt("4", "rolled_back");
    assert_eq!(attempt["failure"]["kind"], "health", "{attempt}");
    assert!(
        attempt["failure"]["detail"].as_str().is_some_and(|text| text.contains("no screen")),
        "{attempt}"
    );
    wait_until("release 2 is reported", || reported(&lab) == "2");

    // The next update replaces it.
    set_channel(&lab, "5");
    assert_eq!(machine.restart_when_ordered(), 0, "release 5 starts: {}", machine.log());
    machine.wait_for_attempt("5", "succeeded");
    machine.cut_power();
    assert_eq!(machine.switch_on(), 0, "release 5 stays");
    assert!(machine.holds(0, &images[4]) && machine.holds(1, &images[1]));
}

#[test]
fn a_program_of_the_operator_is_a_boot_loader() {
    updates_and_falls_back(Board::make);
}

#[test]
fn grub_starts_a_slot_once_by_its_environment_block() {
    updates_and_falls_back(Grub::make);
}

#[test]
fn uboot_starts_a_slot_once_by_its_environment() {
    updates_and_falls_back(UBoot::make);
}

#[test]
fn systemd_boot_starts_a_slot_once_by_counted_tries() {
    updates_and_falls_back(SystemdBoot::make);
}

#[test]
fn rauc_starts_a_slot_by_its_service() {
    updates_and_falls_back(Rauc::make);
}

#[test]
fn a_kernel_that_is_a_link_out_of_the_release_is_refused() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    release(&lab, "1", "");
    let tree = lab.path("tree-2");
    fs::create_dir_all(tree.join("boot")).expect("a directory");
    // The file is there in the system that runs.
    std::os::unix::fs::symlink("/bin/sh", tree.join("boot/vmlinuz")).expect("a link");
    release(&lab, "2", "");
    set_channel(&lab, "1");
    let mut machine = Machine::new(&lab, "till", SystemdBoot::make);
    machine.switch_on();
    wait_until("release 1 is reported", || reported(&lab) == "1");
    set_channel(&lab, "2");
    let attempt = machine.wait_for_attempt("2", "failed");
    let detail = attempt["failure"]["detail"].as_str().unwrap_or_default();
    assert!(
        attempt["failure"]["kind"] == "activation" && detail.contains("leads out of the release"),
        "{attempt}"
    );
    assert!(!machine.dir.join("restart").exists());
    machine.cut_power();
    assert_eq!(machine.switch_on(), 0);
}
