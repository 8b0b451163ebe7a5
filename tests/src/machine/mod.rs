//! A device with two slots that starts, stops and restarts: its disks are loop devices, its agent
//! is the real one, and its [`Firmware`] does what a boot loader does, with the boot loader's own
//! tools where there are any. Needs root.
//!
//! The agent runs in a mount namespace of its own, in which the kernel's boot id and options are
//! those of the machine.

pub mod firmware;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::firmware::Firmware;
use crate::disks::Loop;
use crate::lab::{Daemon, Lab, wait_until};
use crate::recorder;

/// Size of a slot, bytes; larger than the releases of all tests.
const SLOT_BYTES: u64 = 512 << 10;

/// Text in a release that does not start: the system panics, and the firmware begins again.
pub const PANICS: &str = "THIS RELEASE PANICS";

/// Runs `mount --bind` for each pair of paths before the marker, and then the rest of its words.
const IN_NAMESPACE: &str = "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\" || exit 1; shift 2; done; shift; \
                            exec \"$@\"";

/// A device.
pub struct Machine<'l> {
    lab: &'l Lab,
    name: String,
    /// Directory of the machine's files.
    pub dir: PathBuf,
    /// Disks of slots `a` and `b`, or of whatever names the firmware has for them.
    pub disks: [Loop; 2],
    /// Boot loader.
    pub firmware: Box<dyn Firmware>,
    agent: Option<Daemon>,
    boots: u8,
    /// Log of the agent's writes and flushes, while they are recorded.
    pub recorder: Option<PathBuf>,
    /// Options of the agent, after those of the machine.
    options: Vec<String>,
}

impl<'l> Machine<'l> {
    /// Makes and enrols a device that runs release 1 of `os` in its first slot, and follows
    /// `os:stable`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(lab: &'l Lab, name: &str, make: impl FnOnce(&Path, &[Loop; 2]) -> Box<dyn Firmware>) -> Self {
        let machine = Self::of_factory(lab, name, make);
        let out = machine.disks[0].path().to_str().expect("a path");
        lab.device(name, &["pull", "os@1", "--out", out]).ok();
        machine
    }

    /// As [`new`](Self::new), of a device whose slots are as the factory left them: empty.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn of_factory(
        lab: &'l Lab,
        name: &str,
        make: impl FnOnce(&Path, &[Loop; 2]) -> Box<dyn Firmware>,
    ) -> Self {
        lab.enroll(name, lab.quic());
        let dir = lab.path(&format!("{name}.machine"));
        fs::create_dir_all(dir.join("hooks")).expect("a directory");
        let disks = ["a", "b"].map(|slot| Loop::new(&dir.join(format!("disk-{slot}")), SLOT_BYTES));
        let firmware = make(&dir, &disks);
        let machine = Self {
            lab,
            name: name.to_owned(),
            dir,
            disks,
            firmware,
            agent: None,
            boots: 0,
            recorder: None,
            options: Vec::new(),
        };
        machine.hook("health", "exit 0");
        machine
    }

    /// Adds options to those of the agent.
    pub fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Writes a hook of the device.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn hook(&self, name: &str, script: &str) {
        let path = self.dir.join("hooks").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    /// Switches the machine on: its firmware starts slots until one of them runs. Returns the index
    /// of that slot.
    ///
    /// # Panics
    /// When no slot starts.
    pub fn switch_on(&mut self) -> usize {
        let panics = |slot: usize| {
            let bytes = fs::read(self.disks[slot].path()).expect("read the disk");
            bytes.windows(PANICS.len()).any(|window| window == PANICS.as_bytes())
        };
        // No boot loader tries more than three times.
        let slot = (0..4).find_map(|_| Some(self.firmware.start()).filter(|slot| !panics(*slot)));
        let slot = slot.expect("no slot starts");
        self.prepare_start(slot);
        self.start_agent();
        slot
    }

    /// Makes a boot of the machine from a slot, without its agent.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn prepare_start(&mut self, slot: usize) {
        self.boots += 1;
        fs::write(self.dir.join("boot_id"), format!("{:032x}\n", self.boots)).expect("write");
        let name = self.firmware.names()[slot].clone();
        fs::write(self.dir.join("cmdline"), format!("quiet distd.slot={name}\n")).expect("write");
        let _ = fs::remove_file(self.dir.join("restart"));
        self.firmware.running(slot);
    }

    /// Whether the slot that starts by default is this one, by GRUB's environment block.
    pub fn default_is(&self, slot: usize) -> bool {
        let block = fs::read_to_string(self.dir.join("grubenv")).unwrap_or_default();
        block.contains(&format!("saved_entry={}\nnext_entry=\n", self.firmware.names()[slot]))
    }

    /// Starts the agent of a machine that runs.
    pub fn start_agent(&mut self) {
        let command = self.agent_command();
        let command = match &self.recorder {
            Some(log) => recorder::recorded(&command, log),
            None => command,
        };
        let log = self.lab.path(&format!("{}.log", self.name));
        self.agent = Some(Daemon::start(command, &log, "agent listening on "));
    }

    /// Command that runs the agent in the machine's mount namespace.
    pub fn agent_command(&self) -> Command {
        let inner = self.lab.agent_command(&self.name, "127.0.0.1:0");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", IN_NAMESPACE, "sh"]);
        command.arg(self.dir.join("boot_id")).arg("/proc/sys/kernel/random/boot_id");
        command.arg(self.dir.join("cmdline")).arg("/proc/cmdline").arg("--");
        command.arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        for (key, value) in self.firmware.environment() {
            command.env(key, value);
        }
        command.args(["--follow", "os:stable", "--follow-poll-seconds", "1", "--hook-seconds", "30"]);
        command.arg("--hooks").arg(self.dir.join("hooks"));
        for (name, disk) in self.firmware.names().iter().zip(&self.disks) {
            command.arg("--slot").arg(format!("{name}={}", disk.path().display()));
        }
        command.args(self.firmware.options());
        command.arg("--reboot-command").arg(format!("touch {}", self.dir.join("restart").display()));
        command.args(&self.options);
        command
    }

    /// Ends the agent at once, as a power cut does.
    pub fn cut_power(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        if self.recorder.is_some() {
            // strace ends with the agent, after it has written its log.
            let children = format!("/proc/{0}/task/{0}/children", agent.id());
            let children = fs::read_to_string(children).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)) {
                let _ = kill_process(child, Signal::KILL);
            }
            let status = format!("/proc/{}/stat", agent.id());
            wait_until("strace ends", || {
                !fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z "))
            });
        }
        agent.kill();
    }

    /// Waits until the device orders a restart, and restarts it. Returns the index of the slot that
    /// runs then.
    ///
    /// # Panics
    /// When it orders none in time.
    pub fn restart_when_ordered(&mut self) -> usize {
        let order = self.dir.join("restart");
        wait_until("the device restarts", || order.exists());
        self.cut_power();
        self.switch_on()
    }

    /// Newest attempt of the device, from its journal.
    pub fn attempt(&self) -> Value {
        let path = self.lab.path(&self.name).join("follow.json");
        let text = fs::read_to_string(path).unwrap_or_default();
        let journal: Value = serde_json::from_str(&text).unwrap_or_default();
        journal["entries"][0]["attempt"].clone()
    }

    /// Waits until the newest attempt is at a version and in a state.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_for_attempt(&self, version: &str, state: &str) -> Value {
        wait_until(&format!("the attempt at {version} is {state}: {}", self.attempt()), || {
            let attempt = self.attempt();
            attempt["version"] == version && attempt["state"] == state
        });
        self.attempt()
    }

    /// Bytes of a disk, as many as `like` has.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn holds(&self, slot: usize, like: &Path) -> bool {
        let (disk, wanted) =
            (fs::read(self.disks[slot].path()).expect("read"), fs::read(like).expect("read"));
        disk[..wanted.len()] == wanted
    }

    /// Text that the agent wrote to standard error.
    pub fn log(&self) -> String {
        self.agent.as_ref().map(Daemon::log).unwrap_or_default()
    }
}
