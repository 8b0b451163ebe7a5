//! Boot loaders of a [`Machine`](super::Machine): each chooses a slot at each start, as the real
//! one does by what the device told it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::disks::Loop;
use crate::lab::wait_until;

/// A boot loader.
pub trait Firmware {
    /// Its names for the two slots.
    fn names(&self) -> [String; 2] {
        ["a".to_owned(), "b".to_owned()]
    }

    /// Options of the agent.
    fn options(&self) -> Vec<String>;

    /// Environment of the agent.
    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Chooses the slot that is started now, by its index.
    fn start(&mut self) -> usize;

    /// The system runs from this slot.
    fn running(&mut self, _slot: usize) {}
}

fn run(program: &str, args: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn options(kind: &str, path: &Path) -> Vec<String> {
    ["--boot-loader", kind, "--boot-path"]
        .map(str::to_owned)
        .into_iter()
        .chain([path.display().to_string()])
        .collect()
}

/// Index of a slot that is called `a` or `b`.
fn index(name: &str) -> usize {
    ["a", "b"].iter().position(|known| *known == name.trim()).unwrap_or_else(|| panic!("no slot {name}"))
}

/// A board whose boot loader a program of the operator stands for.
pub struct Board {
    dir: PathBuf,
}

impl Board {
    /// Makes one that starts slot `a`.
    pub fn make(dir: &Path, _: &[Loop; 2]) -> Box<dyn Firmware> {
        let at = dir.display();
        script(
            &dir.join("boot"),
            &format!(
                "cd {at}\ncase $1 in\nbooted) cat booted;;\ndefault) cat default;;\nonce) echo $2 >once;;\n\
                 keep) echo $2 >default; rm -f once;;\n*) exit 2;;\nesac"
            ),
        );
        fs::write(dir.join("default"), "a\n").expect("write");
        Box::new(Self { dir: dir.to_owned() })
    }
}

impl Firmware for Board {
    fn options(&self) -> Vec<String> {
        options("command", &self.dir.join("boot"))
    }

    fn start(&mut self) -> usize {
        let once = fs::read_to_string(self.dir.join("once")).ok();
        let _ = fs::remove_file(self.dir.join("once"));
        index(&once.unwrap_or_else(|| fs::read_to_string(self.dir.join("default")).expect("read")))
    }

    fn running(&mut self, slot: usize) {
        fs::write(self.dir.join("booted"), ["a\n", "b\n"][slot]).expect("write");
    }
}

/// GRUB, whose environment block its own tool reads and writes.
pub struct Grub {
    block: PathBuf,
}

impl Grub {
    /// Makes one that starts slot `a`.
    pub fn make(dir: &Path, _: &[Loop; 2]) -> Box<dyn Firmware> {
        let block = dir.join("grubenv");
        let at = block.to_str().expect("a path");
        run("grub-editenv", &[at, "create"], "");
        run("grub-editenv", &[at, "set", "saved_entry=a", "timeout_style=hidden"], "");
        Box::new(Self { block })
    }
}

impl Firmware for Grub {
    fn options(&self) -> Vec<String> {
        options("grub", &self.block)
    }

    fn start(&mut self) -> usize {
        let at = self.block.to_str().expect("a path");
        let list = run("grub-editenv", &[at, "list"], "");
        let value = |name: &str| {
            let found = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        assert_eq!(value("timeout_style"), "hidden", "other variables stay: {list}");
        let next = value("next_entry");
        if next.is_empty() {
            return index(&value("saved_entry"));
        }
        run("grub-editenv", &[at, "set", "next_entry="], "");
        index(&next)
    }
}

/// U-Boot with two copies of its environment, which its own tools read and write.
pub struct UBoot {
    config: PathBuf,
}

impl UBoot {
    /// Makes one that starts slot `a`.
    pub fn make(dir: &Path, _: &[Loop; 2]) -> Box<dyn Firmware> {
        let (config, file) = (dir.join("fw_env.config"), dir.join("uboot.env"));
        fs::write(&file, vec![0; 0x8000]).expect("write");
        let at = file.display();
        fs::write(&config, format!("# two copies\n{at} 0x0 0x4000\n{at} 0x4000 0x4000\n")).expect("write");
        let defaults = dir.join("defaults");
        fs::write(&defaults, "distd_slot=a\nbootdelay=0\n").expect("write");
        let (config_at, defaults) = (config.to_str().expect("a path"), defaults.to_str().expect("a path"));
        run("fw_setenv", &["-c", config_at, "-f", defaults, "bootdelay", "2"], "");
        // Environments of real boards are long, and are printed in the order of the names.
        run("fw_setenv", &["-c", config_at, "boot_targets", &"mmc0 ".repeat(2000)], "");
        Box::new(Self { config })
    }

    fn value(&self, name: &str) -> String {
        let list = run("fw_printenv", &["-c", self.config.to_str().expect("a path")], "");
        let found = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    }
}

impl Firmware for UBoot {
    fn options(&self) -> Vec<String> {
        options("u-boot", &self.config)
    }

    fn start(&mut self) -> usize {
        assert_eq!(self.value("bootdelay"), "2", "other variables stay");
        let once = self.value("distd_once");
        if once.is_empty() {
            return index(&self.value("distd_slot"));
        }
        let at = self.config.to_str().expect("a path");
        run("fw_setenv", &["-c", at, "distd_once"], "");
        index(&once)
    }
}

/// systemd-boot: its menu is sorted, and its tries are counted, as its documentation says. The real
/// one runs in `tests/vm`.
pub struct SystemdBoot {
    esp: PathBuf,
    /// Whether a release is started by a unified kernel image that it has as a partition.
    is_unified: bool,
}

/// An entry, in the order of the menu.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Entries without tries left are the last.
    is_spent: bool,
    version: std::cmp::Reverse<u64>,
    file: String,
    /// Tries left and made, of an entry whose tries are counted.
    tries: Option<(u32, u32)>,
}

impl SystemdBoot {
    /// Makes one that starts slot `a`.
    pub fn make(dir: &Path, _: &[Loop; 2]) -> Box<dyn Firmware> {
        Box::new(Self::of(dir, false))
    }

    /// As [`make`](Self::make), of a device whose releases are the partitions `root`, for the
    /// slot's device, and `uki`, for a file on the EFI system partition.
    pub fn unified(dir: &Path, _: &[Loop; 2]) -> Box<dyn Firmware> {
        Box::new(Self::of(dir, true))
    }

    fn of(dir: &Path, is_unified: bool) -> Self {
        let esp = dir.join("esp");
        fs::create_dir_all(esp.join("loader/entries")).expect("a directory");
        fs::write(esp.join("loader/entries/distd-a.conf"), "title factory\nsort-key distd\n").expect("write");
        Self { esp, is_unified }
    }

    fn entries(&self) -> Vec<Entry> {
        let read = |file: String| {
            let text = fs::read_to_string(self.esp.join("loader/entries").join(&file)).expect("read");
            let version = text.lines().find_map(|line| line.strip_prefix("version ")).unwrap_or("0");
            let tries = file.trim_end_matches(".conf").split_once('+').map(|(_, counts)| {
                let (left, done) = counts.split_once('-').unwrap_or((counts, "0"));
                (left.parse().expect("a number"), done.parse().expect("a number"))
            });
            let is_spent = tries.is_some_and(|(left, _)| left == 0);
            Entry { is_spent, version: std::cmp::Reverse(version.parse().expect("a number")), file, tries }
        };
        let names = fs::read_dir(self.esp.join("loader/entries"))
            .expect("list")
            .map(|e| e.expect("an entry").file_name());
        let names =
            names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.ends_with(".conf"));
        let mut entries: Vec<Entry> = names.map(read).collect();
        entries.sort();
        entries
    }
}

impl Firmware for SystemdBoot {
    fn options(&self) -> Vec<String> {
        let mut options = options("systemd-boot", &self.esp);
        if self.is_unified {
            let place = format!("uki={}/distd/{{slot}}/uki.efi", self.esp.display());
            let partitions = ["--unified-kernel", "uki", "--partition", "root", "--partition", &place];
            options.extend(partitions.map(str::to_owned));
        } else {
            let kernel = ["--kernel", "boot/vmlinuz", "--kernel-options", "root=PARTLABEL=root-{slot} ro"];
            options.extend(kernel.map(str::to_owned));
        }
        options
    }

    fn start(&mut self) -> usize {
        let entries = self.entries();
        let first = entries.first().expect("an entry");
        let slot = first.file.strip_prefix("distd-").expect("one of ours").chars().next().expect("a slot");
        let entry = fs::read_to_string(self.esp.join("loader/entries").join(&first.file)).expect("read");
        if let Some((left @ 1.., done)) = first.tries {
            let dir = self.esp.join("loader/entries");
            let counted = format!("distd-{slot}+{}-{}.conf", left - 1, done + 1);
            fs::rename(dir.join(&first.file), dir.join(counted)).expect("rename");
        }
        if first.version.0 > 0 {
            let image = entry
                .lines()
                .find_map(|line| line.strip_prefix(if self.is_unified { "efi /" } else { "linux /" }));
            let kernel = fs::read_to_string(self.esp.join(image.expect("an image"))).expect("a kernel");
            // The tests' releases have their versions in their kernels.
            let version = kernel.strip_prefix("kernel ").expect("the kernel of a release");
            let title = format!("title os {version} ");
            assert!(entry.starts_with(&title), "{} has kernel {version}", first.file);
        }
        index(&slot.to_string())
    }
}

/// RAUC's service over a bus of its own, with a boot loader that counts tries.
pub struct Rauc {
    dir: PathBuf,
    bus: Child,
    service: Option<Child>,
}

impl Rauc {
    /// Makes one that starts slot `rootfs.0` and gives a slot two tries.
    ///
    /// # Panics
    /// When the bus does not start.
    pub fn make(dir: &Path, disks: &[Loop; 2]) -> Box<dyn Firmware> {
        Self::with_tries(2, dir, disks)
    }

    /// As [`make`](Self::make), with one try, as RAUC's own script for GRUB.
    ///
    /// # Panics
    /// When the bus does not start.
    pub fn with_one_try(dir: &Path, disks: &[Loop; 2]) -> Box<dyn Firmware> {
        Self::with_tries(1, dir, disks)
    }

    fn with_tries(tries: u32, dir: &Path, disks: &[Loop; 2]) -> Box<dyn Firmware> {
        let at = dir.display();
        script(
            &dir.join("backend"),
            &format!(
                "cd {at}\ncase $1 in\nget-primary)\n  for slot in $(cat order); do\n    \
                 [ $(cat tries-$slot) = 0 ] || {{ echo $slot; exit 0; }}\n  done\n  exit 1;;\n\
                 set-primary)\n  other=$(tr -d \"$2 \" <order); echo $2 $other >order; echo {tries} >tries-$2;;\n\
                 get-state) [ $(cat tries-$2) = 0 ] && echo bad || echo good;;\n\
                 set-state) [ $3 = good ] && echo {tries} >tries-$2 || echo 0 >tries-$2;;\nesac"
            ),
        );
        fs::write(dir.join("order"), "A B\n").expect("write");
        fs::write(dir.join("tries-A"), format!("{tries}\n")).expect("write");
        fs::write(dir.join("tries-B"), "0\n").expect("write");
        let slot = |number: usize, name: &str| {
            let device = disks[number].path().display();
            format!("[slot.rootfs.{number}]\ndevice={device}\ntype=raw\nbootname={name}\n")
        };
        let config = format!(
            "[system]\ncompatible=machine\nbootloader=custom\nstatusfile={at}/rauc.status\n\
             [handlers]\nbootloader-custom-backend={at}/backend\n{}{}",
            slot(0, "A"),
            slot(1, "B")
        );
        fs::write(dir.join("rauc.conf"), config).expect("write");
        let bus_config = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>system</type>\
             <listen>unix:path={at}/bus</listen><policy context=\"default\"><allow send_destination=\"*\"/>\
             <allow receive_sender=\"*\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>"
        );
        fs::write(dir.join("bus.conf"), bus_config).expect("write");
        let bus =
            Command::new("dbus-daemon").arg(format!("--config-file={at}/bus.conf")).arg("--nofork").spawn();
        let bus = bus.expect("start dbus-daemon");
        wait_until("the bus listens", || dir.join("bus").exists());
        Box::new(Self { dir: dir.to_owned(), bus, service: None })
    }

    fn address(&self) -> String {
        format!("unix:path={}/bus", self.dir.display())
    }

    fn stop_service(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

impl Firmware for Rauc {
    fn names(&self) -> [String; 2] {
        ["rootfs.0".to_owned(), "rootfs.1".to_owned()]
    }

    fn options(&self) -> Vec<String> {
        vec!["--boot-loader".to_owned(), "rauc".to_owned()]
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), self.address())]
    }

    fn start(&mut self) -> usize {
        self.stop_service();
        let order = fs::read_to_string(self.dir.join("order")).expect("read");
        for slot in order.split_whitespace() {
            let file = self.dir.join(format!("tries-{slot}"));
            let tries: u32 = fs::read_to_string(&file).expect("read").trim().parse().expect("a number");
            if tries > 0 {
                fs::write(&file, format!("{}\n", tries - 1)).expect("write");
                return index(&slot.to_lowercase());
            }
        }
        panic!("RAUC's boot loader has no slot left");
    }

    fn running(&mut self, slot: usize) {
        let mut command = Command::new("rauc");
        command.arg("--conf").arg(self.dir.join("rauc.conf")).arg("service");
        command.arg(format!("--override-boot-slot={}", ["A", "B"][slot]));
        let log = fs::File::create(self.dir.join("rauc.log")).expect("a file");
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .stderr(log.try_clone().expect("a file"))
            .stdout(log);
        self.service = Some(command.spawn().expect("start rauc"));
        let address = self.address();
        wait_until("RAUC's service answers", || {
            let mut status = Command::new("rauc");
            status.arg("status").env("DBUS_SYSTEM_BUS_ADDRESS", &address);
            status.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
    }
}

impl Drop for Rauc {
    fn drop(&mut self) {
        self.stop_service();
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}
