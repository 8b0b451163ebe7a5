//! Programs of a later Debian release, run in a root directory of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Shell commands that make a root directory in which nothing of the real one is changed, and run
/// a program there: `$1` is the directory of packages, `$2` the directory for changes, the rest the
/// program.
const ENTER: &str = r#"
set -e
packages=$1 place=$2; shift 2
mount -t tmpfs tmpfs "$place/mnt"
mkdir "$place/mnt/work" "$place/mnt/root"
mount -t overlay overlay -o "lowerdir=$packages,upperdir=$place/changes,workdir=$place/work" "$place/mnt/root"
mount -t proc proc "$place/mnt/root/proc"
mount --rbind /dev "$place/mnt/root/dev"
mount --rbind /sys "$place/mnt/root/sys"
exec chroot "$place/mnt/root" "$@"
"#;

/// A root directory with packages of a later Debian release.
#[derive(Debug)]
pub struct LaterDebian {
    packages: PathBuf,
    place: PathBuf,
}

impl LaterDebian {
    /// The packages that `DISTD_TEST_LATER_DEBIAN` names, with a place for changes below `place`.
    /// `None`, with a line that says so, where there are none, or the test does not run as root.
    ///
    /// # Panics
    /// When the place cannot be made.
    pub fn open(place: &Path) -> Option<Self> {
        let Some(packages) = std::env::var_os("DISTD_TEST_LATER_DEBIAN").map(PathBuf::from) else {
            eprintln!("NOT RUN: set DISTD_TEST_LATER_DEBIAN to unpacked packages; tests/run.sh does");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT RUN: only root can make another root directory");
            return None;
        }
        for dir in ["changes", "work", "mnt"] {
            fs::create_dir_all(place.join(dir)).expect("a directory");
        }
        Some(Self { packages, place: place.to_owned() })
    }

    /// Path of a file there as it is after changes.
    pub fn changed(&self, path: &str) -> PathBuf {
        self.place.join("changes").join(path.trim_start_matches('/'))
    }

    /// Writes a file there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.changed(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("write");
    }

    /// The command of a program there. Each runs in a mount namespace of its own, one at a time.
    pub fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", ENTER, "enter"])
            .arg(&self.packages)
            .arg(&self.place)
            .args(program);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}
