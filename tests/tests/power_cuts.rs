//! Power cuts during an update of a device with two slots: each state in which a cut can leave the
//! disk, the state directory and the boot loader's environment is rebuilt from a recording of the
//! real agent, and checked. Needs root, loop devices and strace.
//!
//! `DISTD_TEST_CUT_STATES` is the number of states that are checked, and `DISTD_TEST_CUT_STARTS`
//! the number of those from which a machine is really started; both are small in a normal run.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_peer::filesystem;
use distd_tests::disks::{Loop, Mount, can_mount};
use distd_tests::faults::can_trace;
use distd_tests::lab::{Lab, wait_until};
use distd_tests::machine::Machine;
use distd_tests::machine::firmware::Grub;
use distd_tests::recorder::{self, Change, Event, Files, Storage};
use distd_tests::rng::Rng;

/// Seed of the choice of states.
const SEED: u64 = 15;

/// Bytes of a release: some 100 pages.
const RELEASE_BYTES: usize = 400_000;

fn setting(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().map_or(usual, |text| text.parse().expect("a number"))
}

/// Recording of one update, from the old release to the new one.
#[derive(Clone)]
struct Recording {
    events: Vec<Event>,
    /// Files of state directory and boot loader, and the disk of the second slot, at the beginning.
    files: Files,
    disk: Vec<u8>,
    new: Vec<u8>,
    grubenv: PathBuf,
}

/// Value of a variable of GRUB's environment block; `None` when the block cannot be read.
fn variable(files: &Files, grubenv: &Path, name: &str) -> Option<String> {
    let bytes = files.get(grubenv)?.as_ref()?;
    if bytes.len() != 1024 || !bytes.starts_with(b"# GRUB Environment Block\n") {
        return None;
    }
    let text = String::from_utf8_lossy(bytes);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Some(value.unwrap_or_default().to_owned())
}

/// Slots from which the machine may start, in order: once, and by default after that.
fn starts(files: &Files, grubenv: &Path) -> Result<Vec<String>, &'static str> {
    let next = variable(files, grubenv, "next_entry").ok_or("GRUB has no environment")?;
    let saved = variable(files, grubenv, "saved_entry").ok_or("GRUB has no environment")?;
    if saved.is_empty() {
        return Err("GRUB has no default");
    }
    Ok([next, saved].into_iter().filter(|slot| !slot.is_empty()).collect())
}

impl Recording {
    /// Reason why a device with these contents would not start a whole release; `None` when it
    /// would. Slot `a` is not written at all.
    fn fault(&self, disk: &[u8], files: &Files) -> Option<String> {
        let slots = match starts(files, &self.grubenv) {
            Ok(slots) => slots,
            Err(why) => return Some(why.to_owned()),
        };
        let is_whole = disk[..self.new.len()] == self.new[..];
        (slots.iter().any(|slot| slot == "b") && !is_whole)
            .then(|| format!("{slots:?} may start, and b is not whole"))
    }

    /// Number of events after which some pages of the disk are not durable.
    fn pending_disks(&self) -> usize {
        let mut storage = Storage::new(self.disk.clone(), Files::new());
        let pending = |event: &&Event| {
            storage.add(event);
            storage.pages.len() > 1
        };
        self.events.iter().filter(pending).count()
    }

    /// Goes through the states that power cuts can leave, until `wanted` distinct ones were checked
    /// at least. Calls `take` with some of them. Returns their number and the faults.
    fn replay(
        &self,
        wanted: usize,
        rng: &mut Rng,
        mut take: impl FnMut(usize, &[u8], &Files),
    ) -> (usize, Vec<String>) {
        let mut storage = Storage::new(self.disk.clone(), self.files.clone());
        let (mut seen, mut faults) = (HashSet::new(), Vec::new());
        let each = wanted / self.pending_disks().max(1) + 1;
        for (number, event) in self.events.iter().enumerate() {
            storage.add(event);
            let mut files = Vec::new();
            for count in 0..=storage.changes.len() {
                files.push(storage.files_with(count, true));
                files.push(storage.files_with(count, false));
            }
            let hash_of = |files: &Files| blake3::hash(format!("{files:?}").as_bytes());
            let hashes: Vec<blake3::Hash> = files.iter().map(hash_of).collect();
            let mut look_at = |disk: &[u8]| {
                let disk_hash = blake3::hash(disk);
                for (files, hash) in files.iter().zip(&hashes) {
                    if seen.insert((disk_hash, *hash)) {
                        faults
                            .extend(self.fault(disk, files).map(|fault| format!("event {number}: {fault}")));
                        take(number, disk, files);
                    }
                }
            };
            look_at(&storage.disk_with(|_| false));
            look_at(&storage.disk_with(|_| true));
            let pages: Vec<usize> = storage.pages.keys().copied().collect();
            for page in &pages {
                look_at(&storage.disk_with(|other| other != *page));
                look_at(&storage.disk_with(|other| other == *page));
            }
            // The more pages there are, the more of their subsets.
            let random = if pages.len() < 2 { 0 } else { (1usize << pages.len().min(20)).min(each) };
            for _ in 0..random {
                let chosen: Vec<usize> = pages.iter().copied().filter(|_| rng.below(2) == 1).collect();
                look_at(&storage.disk_with(|page| chosen.binary_search(&page).is_ok()));
            }
        }
        (seen.len(), faults)
    }
}

/// Records an update of a machine from release 1 to release 2, its restart included.
fn record(lab: &Lab, machine: &mut Machine<'_>, new: &Path) -> Recording {
    let state = lab.path("till");
    let (disk, grubenv) = (machine.disks[1].path().to_owned(), machine.dir.join("grubenv"));
    let block = || fs::read(&grubenv).expect("read");
    let mut files = recorder::files_below(&state);
    files.insert(grubenv.clone(), Some(block()));
    let before = fs::read(&disk).expect("read");
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    let mut events = Vec::new();
    for part in ["before", "after"] {
        let log = lab.path(&format!("trace-{part}"));
        machine.recorder = Some(log.clone());
        assert_eq!(machine.switch_on(), usize::from(part == "after"));
        if part == "after" {
            // The firmware's own change of its environment.
            let change = Change::Write { offset: 0, bytes: block() };
            events.push(Event::File { path: grubenv.clone(), change });
            events.push(Event::File { path: grubenv.clone(), change: Change::Flush });
            machine.wait_for_attempt("2", "succeeded");
        } else {
            let order = machine.dir.join("restart");
            wait_until("the device restarts", || order.exists());
        }
        machine.cut_power();
        events.extend(recorder::read(&log, &disk, &[&state, &grubenv]));
    }
    machine.recorder = None;
    Recording { events, files, disk: before, new: fs::read(new).expect("read"), grubenv }
}

/// Puts a state into a stopped machine.
fn put(lab: &Lab, machine: &Machine<'_>, disk: &[u8], files: &Files) {
    fs::write(machine.disks[1].path(), disk).expect("write the disk");
    let state = lab.path("till");
    fs::remove_dir_all(&state).expect("remove");
    fs::create_dir_all(&state).expect("a directory");
    // Directories come before what is in them.
    for (path, contents) in files {
        match contents {
            None => fs::create_dir_all(path).expect("a directory"),
            Some(bytes) => {
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(path, bytes).expect("write");
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
            }
        }
    }
}

#[test]
fn after_a_power_cut_at_any_write_a_whole_release_starts_and_the_update_ends() {
    if !can_mount() || !can_trace() {
        return;
    }
    let mut rng = Rng::announced("power_cuts", SEED);
    let lab = Lab::start();
    let image = |version: &str, bytes: &[u8]| {
        let path = lab.path(&format!("release-{version}"));
        fs::write(&path, bytes).expect("write");
        lab.push(&path, "os", version).ok();
        path
    };
    let mut bytes = rng.bytes(RELEASE_BYTES);
    let old = image("1", &bytes);
    // A third of the release is new.
    let changed = rng.bytes(RELEASE_BYTES / 3);
    bytes[RELEASE_BYTES / 3..][..changed.len()].copy_from_slice(&changed);
    let new = image("2", &bytes);
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    // A power cut while the new release is checked is no fault of it.
    let mut machine = Machine::new(&lab, "till", Grub::make).with(&["--boot-tries", "3"]);
    let recording = record(&lab, &mut machine, &new);
    assert!(machine.holds(0, &old) && machine.holds(1, &new));
    let writes = recording.events.iter().filter(|event| matches!(event, Event::Write { .. })).count();
    let flushes = recording.events.iter().filter(|event| matches!(event, Event::Flush { .. })).count();
    println!("{} events, {writes} writes and {flushes} flushes of the slot", recording.events.len());
    assert!(writes > 0 && flushes > 0);

    let wanted = setting("DISTD_TEST_CUT_STATES", 20_000);
    let starts = setting("DISTD_TEST_CUT_STARTS", 6);
    // Machines are started from states of all parts of the update.
    let mut chosen: BTreeMap<usize, (u64, Vec<u8>, Files)> = BTreeMap::new();
    let mut lots = Rng::new(rng.next_u64());
    let parts = recording.events.len().max(1);
    let (states, faults) = recording.replay(wanted, &mut rng, |event, disk, files| {
        let (part, lot) = (event * starts / parts, lots.next_u64());
        if chosen.get(&part).is_none_or(|(best, ..)| lot < *best) {
            chosen.insert(part, (lot, disk.to_vec(), files.clone()));
        }
    });
    println!("{states} states");
    assert!(faults.is_empty(), "{} of {states} states are broken, as {}", faults.len(), faults[0]);
    assert!(states >= wanted / 2, "only {states} states");

    // The check finds a device that orders a slot before it is durable.
    let without_flushes = Recording {
        events: recording.events.iter().filter(|e| !matches!(e, Event::Flush { .. })).cloned().collect(),
        ..recording.clone()
    };
    let (_, faults) = without_flushes.replay(wanted / 10, &mut rng, |_, _, _| {});
    assert!(!faults.is_empty(), "a slot that is never flushed is not found");

    for (part, (_, disk, files)) in chosen {
        put(&lab, &machine, &disk, &files);
        let slot = machine.switch_on();
        println!("start from part {part} of {starts}: slot {slot}");
        for _ in 0..4 {
            let (order, state) =
                (machine.dir.join("restart"), |machine: &Machine<'_>| machine.attempt()["state"].clone());
            wait_until("the update ends or the device restarts", || {
                order.exists() || state(&machine) == "succeeded" && machine.default_is(1)
            });
            if !order.exists() {
                break;
            }
            machine.restart_when_ordered();
        }
        assert!(machine.holds(1, &new) && machine.default_is(1), "part {part}: {}", machine.log());
        machine.cut_power();
    }
}

#[test]
fn an_agent_that_was_killed_before_the_slot_was_durable_flushes_it_before_it_starts() {
    if !can_mount() || !can_trace() {
        return;
    }
    let mut rng = Rng::announced("power_cuts_killed", SEED);
    let lab = Lab::start();
    for version in ["1", "2"] {
        let path = lab.path(&format!("release-{version}"));
        fs::write(&path, rng.bytes(RELEASE_BYTES)).expect("write");
        lab.push(&path, "os", version).ok();
    }
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    let mut machine = Machine::new(&lab, "till", Grub::make);
    let disk = machine.disks[1].path().to_owned();
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    machine.prepare_start(0);
    // The agent dies at its first flush of the slot, with all bytes in the cache of the system.
    let fault = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:signal=KILL:when=1", "-P"];
    let disk_text = disk.display().to_string();
    let args: Vec<&str> = fault.into_iter().chain([disk_text.as_str()]).collect();
    let traced = distd_tests::faults::traced(&machine.agent_command(), &args, &lab.path("trace-kill"));
    let status = { traced }.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    assert!(!status.expect("run strace").success(), "the agent was killed");
    let log = lab.path("trace");
    machine.recorder = Some(log.clone());
    machine.start_agent();
    let order = machine.dir.join("restart");
    wait_until("the device restarts", || order.exists());
    machine.cut_power();
    let grubenv = machine.dir.join("grubenv");
    let events = recorder::read(&log, &disk, &[&grubenv]);
    let ordered = events.iter().position(|event| {
        matches!(event, Event::File { path, change: Change::Write { bytes, .. } }
        if *path == grubenv && String::from_utf8_lossy(bytes).contains("next_entry=b"))
    });
    let ordered = ordered.expect("the order to start slot b");
    assert!(
        events[..ordered].iter().any(|event| matches!(event, Event::Flush { .. })),
        "the slot is flushed before it is to start"
    );
}

/// Linux gives a renamed file on FAT an entry without length and place, and writes these with the
/// inode: an EFI system partition would have an empty entry or kernel. Needs root, loop devices,
/// dosfstools and a kernel with vfat.
#[test]
fn a_file_that_was_renamed_on_fat_has_its_bytes_after_a_power_cut() {
    if !can_mount() {
        return;
    }
    let has_vfat = Command::new("modprobe").arg("vfat").status().is_ok_and(|status| status.success());
    let listed = fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\tvfat\n"));
    if !has_vfat && !listed {
        eprintln!("skipped: this kernel has no vfat");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = dir.path().join("disk");
    let made = Command::new("/usr/sbin/mkfs.vfat").args(["-C"]).arg(&disk).arg("8192").output();
    assert!(made.expect("mkfs.vfat; tests/run.sh installs it").status.success());
    let slot = Loop::over(&disk);
    let at = dir.path().join("mounted");
    let mounted = Mount::new(&[text(slot.path())], &at);
    let file = |name: &str| File::create(at.join(name)).expect("create");
    filesystem::replace_by(file("one.part"), &at.join("one.part"), &at.join("one.conf"), b"entry")
        .expect("replaced");
    fs::write(at.join("two+0-1.conf"), "entry").expect("write");
    File::open(at.join("two+0-1.conf")).and_then(|file| file.sync_all()).expect("sync");
    filesystem::rename(&at.join("two+0-1.conf"), &at.join("two.conf")).expect("renamed");
    // The power is cut.
    let left = dir.path().join("left");
    fs::copy(&disk, &left).expect("copy");
    let slot = Loop::over(&left);
    let again = dir.path().join("again");
    let after = Mount::new(&["-o", "ro", text(slot.path())], &again);
    for name in ["one.conf", "two.conf"] {
        assert_eq!(fs::read_to_string(again.join(name)).expect("there"), "entry", "{name}");
    }
    drop((after, mounted));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}
