//! Devices with two slots, under each boot loader: an update, a release that does not start, one
//! that does not work, and the next update. Needs root and loop devices.

use std::fs;
use std::io::Write as _;
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
fn rauc_with_one_try_for_each_start_does_too() {
    updates_and_falls_back(Rauc::with_one_try);
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

/// Pushes a release of two partitions: an EROFS image, and a kernel for the EFI system partition.
fn release_of_partitions(lab: &Lab, version: &str, text: &str) -> [PathBuf; 2] {
    let tree = lab.path(&format!("tree-{version}"));
    let [root, uki] = ["root", "uki"].map(|name| lab.path(&format!("{name}-{version}")));
    fs::create_dir_all(&tree).expect("a directory");
    fs::write(tree.join("release"), format!("{version} {text:24}\n").repeat(2000)).expect("write");
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(&root).arg(&tree).output().expect("mkfs.erofs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Of no whole number of sectors.
    fs::write(&uki, format!("kernel {version}")).expect("write");
    let [root_option, uki_option] =
        [("root", &root), ("uki", &uki)].map(|(l, p)| format!("{l}={}", p.display()));
    let push = [
        "push",
        "--product",
        "os",
        "--version",
        version,
        "--artifact",
        &root_option,
        "--artifact",
        &uki_option,
    ];
    lab.admin(&push).ok();
    [root, uki]
}

/// The root file system and the kernel of a release are written and started together, or not at
/// all.
#[test]
fn the_partitions_of_a_release_are_one_update() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let [one, two, three] = [("1", ""), ("2", ""), ("3", PANICS)]
        .map(|(version, text)| release_of_partitions(&lab, version, text));
    set_channel(&lab, "1");
    let mut machine = Machine::of_factory(&lab, "till", SystemdBoot::unified);
    let kernel = |machine: &Machine<'_>, slot: &str| machine.dir.join(format!("esp/distd/{slot}/uki.efi"));
    let is = |path: &Path, like: &Path| fs::read(path).ok() == fs::read(like).ok();
    // The factory wrote slot a, and distd does not know it.
    fs::create_dir_all(machine.dir.join("esp/distd/a")).expect("a directory");
    fs::copy(&one[1], kernel(&machine, "a")).expect("copied");
    let root = fs::read(&one[0]).expect("read");
    fs::OpenOptions::new()
        .write(true)
        .open(machine.disks[0].path())
        .expect("open")
        .write_all(&root)
        .expect("write");
    assert_eq!(machine.switch_on(), 0);
    assert_eq!(machine.restart_when_ordered(), 1, "release 1 starts from slot b: {}", machine.log());
    machine.wait_for_attempt("1", "succeeded");
    assert!(
        machine.holds(1, &one[0]) && is(&kernel(&machine, "b"), &one[1]),
        "its length is that of the file"
    );
    let from_disk = machine.attempt()["bytes"]["disk"].as_u64().unwrap_or(0);
    assert!(from_disk > root.len() as u64, "the root came from slot a: {}", machine.attempt());

    set_channel(&lab, "2");
    assert_eq!(machine.restart_when_ordered(), 0, "release 2 starts: {}", machine.log());
    machine.wait_for_attempt("2", "succeeded");
    wait_until("release 2 is reported", || reported(&lab) == "2");
    assert!(machine.holds(0, &two[0]) && is(&kernel(&machine, "a"), &two[1]));
    assert!(machine.holds(1, &one[0]) && is(&kernel(&machine, "b"), &one[1]), "the slot before is whole");
    machine.cut_power();
    assert_eq!(machine.switch_on(), 0, "release 2 stays");

    // A release that panics is left, and the one before still has its own kernel.
    set_channel(&lab, "3");
    assert_eq!(machine.restart_when_ordered(), 0, "release 3 does not start");
    let attempt = machine.wait_for_attempt("3", "rolled_back");
    assert_eq!(attempt["failure"]["kind"], "boot", "{attempt}");
    assert!(machine.holds(0, &two[0]) && is(&kernel(&machine, "a"), &two[1]));
    assert!(machine.holds(1, &three[0]) && is(&kernel(&machine, "b"), &three[1]));

    // A release with a partition for which there is no place changes nothing.
    let root = format!("root={}", two[0].display());
    let push = ["push", "--product", "os", "--version", "4", "--artifact", &root, "--artifact"];
    let data = format!("data={}", one[1].display());
    lab.admin(&[&push[..], &[&data]].concat()).ok();
    set_channel(&lab, "4");
    let attempt = machine.wait_for_attempt("4", "failed");
    let detail = attempt["failure"]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("no partition \"uki\""), "{attempt}");
    // Neither does one that is a directory.
    lab.push(&lab.path("tree-2"), "os", "5").ok();
    set_channel(&lab, "5");
    let attempt = machine.wait_for_attempt("5", "failed");
    let detail = attempt["failure"]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("the slot takes a disk image"), "{attempt}");
    assert!(machine.holds(0, &two[0]) && is(&kernel(&machine, "a"), &two[1]));

    // A slot is checked as a whole, whatever place is damaged.
    machine.cut_power();
    let image = lab.path("till/disks/a");
    let image = image.to_str().expect("a path");
    lab.device("till", &["verify", image]).ok();
    fs::write(kernel(&machine, "a"), "kernel X").expect("write");
    let damaged = lab.device("till", &["verify", image]);
    assert_eq!(damaged.code, 8, "{}", damaged.json);
}

/// A machine that runs release 1 in slot 0, and reports it.
fn ready<'l>(
    lab: &'l Lab,
    make: impl FnOnce(&Path, &[Loop; 2]) -> Box<dyn Firmware>,
    options: &[&str],
) -> Machine<'l> {
    set_channel(lab, "1");
    let mut machine = Machine::new(lab, "till", make).with(options);
    assert_eq!(machine.switch_on(), 0);
    wait_until("release 1 is reported", || reported(lab) == "1");
    machine
}

/// While a device leaves a release, an order that takes the release back must not make the slot
/// that is left the default.
#[test]
fn a_device_that_is_leaving_a_release_does_nothing_else() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let images = ["1", "2", "3"].map(|version| release(&lab, version, ""));
    let mut machine = ready(&lab, Grub::make, &[]);
    machine.hook(
        "health",
        "[ \"$DISTD_VERSION\" != 2 ] || { [ \"$DISTD_SLOT\" = b ] && echo no screen; exit 1; }",
    );
    set_channel(&lab, "2");
    assert_eq!(machine.restart_when_ordered(), 1, "release 2 starts: {}", machine.log());
    let order = machine.dir.join("restart");
    wait_until("the device leaves release 2", || order.exists());
    // The restart takes its time, and the channel leads elsewhere meanwhile.
    set_channel(&lab, "3");
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(machine.default_is(0), "the slot that works is the default: {}", machine.log());
    assert_eq!(machine.attempt()["version"], "2", "{}", machine.log());
    machine.cut_power();
    assert_eq!(machine.switch_on(), 0, "release 1 runs again");
    let attempt = machine.wait_for_attempt("2", "rolled_back");
    assert_eq!(attempt["failure"]["kind"], "health", "{attempt}");
    assert!(
        attempt["failure"]["detail"].as_str().is_some_and(|text| text.contains("no screen")),
        "{attempt}"
    );
    assert!(machine.holds(0, &images[0]));
    assert_eq!(machine.restart_when_ordered(), 1, "release 3 starts");
    machine.wait_for_attempt("3", "succeeded");
    wait_until("the mark of the first boot is removed", || !lab.path("till/trying").exists());
}

/// A device that lost its journal in the first boot of a release that does not work leaves it, and
/// never overwrites the release that does.
#[test]
fn a_release_of_which_the_journal_was_lost_is_checked_before_anything_begins() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let images = ["1", "2", "3"].map(|version| release(&lab, version, ""));
    let mut machine = ready(&lab, Grub::make, &[]);
    machine.hook("health", "[ \"$DISTD_VERSION\" != 2 ]");
    set_channel(&lab, "2");
    let order = machine.dir.join("restart");
    wait_until("the device restarts into release 2", || order.exists());
    assert!(lab.path("till/trying").exists());
    machine.cut_power();
    fs::write(lab.path("till/follow.json"), "damaged").expect("write");
    set_channel(&lab, "3");
    assert_eq!(machine.switch_on(), 1, "release 2 starts");
    wait_until("the device restarts into the default", || order.exists());
    assert!(machine.default_is(0) && machine.holds(0, &images[0]), "{}", machine.log());
    machine.cut_power();
    assert_eq!(machine.switch_on(), 0, "release 1 runs again");
    assert_eq!(machine.restart_when_ordered(), 1, "release 3 starts: {}", machine.log());
    machine.wait_for_attempt("3", "succeeded");
}

/// A hook that the release brings and that cannot be run is the release's fault, so that the device
/// does not restart for ever.
#[test]
fn a_check_that_cannot_be_run_fails_the_release_once() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    for version in ["1", "2"] {
        release(&lab, version, "");
    }
    let mut machine = ready(&lab, Grub::make, &[]);
    set_channel(&lab, "2");
    let order = machine.dir.join("restart");
    wait_until("the device restarts into release 2", || order.exists());
    machine.cut_power();
    let health = machine.dir.join("hooks/health");
    fs::remove_file(&health).expect("remove");
    std::os::unix::fs::symlink("/no/such/program", &health).expect("a link");
    assert_eq!(machine.switch_on(), 1);
    assert_eq!(machine.restart_when_ordered(), 0, "release 1 runs again");
    let attempt = machine.wait_for_attempt("2", "rolled_back");
    assert_eq!(attempt["failure"]["kind"], "health", "{attempt}");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!order.exists() && machine.attempt() == attempt, "{}", machine.log());
}

/// RAUC's boot loaders count each start of a slot. Starts that have nothing to do with an update
/// must not use a good slot up.
#[test]
fn ordinary_restarts_do_not_use_up_the_tries_of_rauc() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    release(&lab, "1", "");
    let mut machine = ready(&lab, Rauc::make, &[]);
    for restart in 0..5 {
        machine.cut_power();
        assert_eq!(machine.switch_on(), 0, "restart {restart}");
        let left = machine.dir.join("tries-A");
        wait_until("the slot has all its tries again", || {
            fs::read_to_string(&left).is_ok_and(|left| left.trim() == "2")
        });
    }
}

#[test]
fn an_environment_of_uboot_that_is_not_the_boards_is_refused() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    release(&lab, "1", "");
    let mut machine = ready(&lab, UBoot::make, &[]);
    machine.cut_power();
    let config = machine.firmware.options();
    let config = config.iter().position(|option| option == "--boot-path").map(|at| config[at + 1].clone());
    let config = config.expect("a configuration");
    let set = Command::new("fw_setenv").args(["-c", &config, "distd_slot"]).status().expect("run fw_setenv");
    assert!(set.success());
    let outcome = machine.agent_command().output().expect("run the agent");
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.code() == Some(7) && said.contains("no variable distd_slot"), "{said}");
}

#[test]
fn an_entry_that_would_start_before_the_slots_is_refused() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    release(&lab, "1", "");
    let mut machine = ready(&lab, SystemdBoot::make, &[]);
    machine.cut_power();
    let options = machine.firmware.options();
    let esp =
        options.iter().position(|option| option == "--boot-path").map(|at| PathBuf::from(&options[at + 1]));
    let other = esp.expect("a partition").join("loader/entries/debian.conf");
    fs::write(&other, "title Debian\nsort-key debian\nversion 7\nlinux /vmlinuz\n").expect("write");
    let outcome = machine.agent_command().output().expect("run the agent");
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.code() == Some(7) && said.contains("starts before the slots"), "{said}");
    fs::remove_file(&other).expect("remove");
    assert_eq!(machine.switch_on(), 0);
}
