//! Loop devices, mounts and a second user, for tests of how a device's disks can affect a pull. All
//! of these need root.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::lab::{Lab, Outcome, binary};

/// User and group that commands run as instead of root.
pub const USER: u32 = 1000;

/// Whether this machine lets tests mount and make loop devices. Prints the reason if not.
pub fn can_mount() -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "only root may mount"
    } else if !Path::new("/dev/loop-control").exists() {
        "there are no loop devices"
    } else {
        return true;
    };
    eprintln!("skipped: {why}");
    false
}

/// Whether the test runs as root. Prints why the test does nothing if not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: this needs root");
    }
    root
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over a new file; detached when dropped.
#[derive(Debug)]
pub struct Loop(PathBuf);

impl Loop {
    /// Makes a loop device of `bytes` bytes, over the file `backing`.
    ///
    /// # Panics
    /// If no loop device can be made.
    pub fn new(backing: &Path, bytes: u64) -> Self {
        File::create(backing).and_then(|file| file.set_len(bytes)).expect("backing file");
        Self::over(backing)
    }

    /// Makes a loop device over the existing file or device at `backing`.
    ///
    /// # Panics
    /// If no loop device can be made.
    pub fn over(backing: &Path) -> Self {
        Self(run(Command::new("losetup").args(["-f", "--show"]).arg(backing)).into())
    }

    /// Path of the device node.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Runs `mount ARGS AT`, after making the directory `AT`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn new(args: &[&str], at: &Path) -> Self {
        fs::create_dir_all(at).expect("mount point");
        Self::on(args, at)
    }

    /// Runs `mount ARGS AT` on an existing file or directory.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn on(args: &[&str], at: &Path) -> Self {
        run(Command::new("mount").args(args).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A mount in a mount namespace of its own, which ends with the one process in it.
#[derive(Debug)]
pub struct Elsewhere(Child);

impl Elsewhere {
    /// Runs `mount ARGS` in a new mount namespace.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(args: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", "mount \"$@\" && echo mounted && exec sleep 600", "sh"]).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("run unshare");
        let mut said = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("read");
        assert_eq!(said.trim(), "mounted");
        Self(child)
    }

    /// Ends the namespace's process, so that nothing is mounted there any more.
    ///
    /// # Panics
    /// When its process cannot be waited for.
    pub fn end(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        self.0.wait().expect("wait for it");
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.end();
    }
}

/// A device whose commands run as a user that is not root.
#[derive(Debug)]
pub struct User<'l> {
    lab: &'l Lab,
    program: PathBuf,
    /// Makes the device's own directory.
    pub home: PathBuf,
}

impl<'l> User<'l> {
    /// Enrols the device with the origin.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn new(lab: &'l Lab) -> Self {
        use std::os::unix::fs::PermissionsExt;
        // Every user may enter the directory, and the program may lie where only root can read.
        fs::set_permissions(lab.path(""), fs::Permissions::from_mode(0o755)).expect("chmod");
        let program = lab.path("distd-for-all");
        fs::copy(binary("distd"), &program).expect("copy the program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        let home = lab.path("user");
        fs::create_dir(&home).expect("mkdir");
        std::os::unix::fs::chown(&home, Some(USER), Some(USER)).expect("chown");
        let user = Self { lab, program, home };
        let token = user.lab.join_token("leaf", 1);
        user.run(&["enroll", "--parent", lab.quic(), "--token", &token]).ok();
        user
    }

    /// The command `distd` with `args`, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let id = USER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(&self.program);
        command.arg("--json").arg("--data").arg(self.home.join("state")).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `distd` with `args`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.command(args).output().expect("run setpriv"))
    }

    /// Pulls `wanted` to `out` without neighbours.
    pub fn pull(&self, wanted: &str, out: &Path) -> Outcome {
        self.run(&["pull", wanted, "--out", &out.display().to_string(), "--no-share"])
    }
}
