//! Block devices: their names, and whether anything uses them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, major, minor};

use super::mounts::{self, Mount};
use crate::failure::{Code, Failure};

/// Device number: major and minor.
type Number = (u32, u32);

/// One use of a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The device in use: the requested device, a partition of it, or the disk that it is a
    /// partition of.
    device: PathBuf,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Mounted {
        at: PathBuf,
        elsewhere: bool,
    },
    Swap,
    /// A device that is built on this device: device mapper, RAID or a loop device.
    Below(PathBuf),
    /// The kernel reports the device as in use, but not by whom.
    Claimed,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.display();
        match &self.what {
            What::Mounted { at, elsewhere: false } => write!(f, "{device} is mounted at {}", at.display()),
            What::Mounted { at, elsewhere: true } => {
                write!(f, "{device} is mounted in another mount namespace, at {} there", at.display())
            }
            What::Swap => write!(f, "{device} is swap space"),
            What::Below(other) => write!(f, "{device} is in use by {}", other.display()),
            What::Claimed => write!(f, "{device} is in use: mounted, or held by another program"),
        }
    }
}

/// Reasons why a block device cannot be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device is in use.
    #[error("{0}")]
    InUse(Use),
    /// The system refused.
    #[error("could not open {}", path.display())]
    Open {
        /// Path of the device.
        path: PathBuf,
        /// Error of the system.
        #[source]
        cause: io::Error,
    },
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let next = match &error {
            DeviceError::InUse(_) => "unmount it, or name the install slot that is not running",
            DeviceError::Open { .. } => "look at the device and its permissions: lsblk",
        };
        Self::new(Code::Local, error.into()).next(next)
    }
}

fn number_of(rdev: u64) -> Number {
    (major(rdev), minor(rdev))
}

fn sysfs((major, minor): Number) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Returns the number of the block device at `path`; `None` if `path` is no block device.
fn number_at(path: &Path) -> Option<Number> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| number_of(meta.rdev()))
}

/// Returns the kernel's own name for a device below `/dev`, if that node exists; else `path`. Thus
/// all nodes of a device and all links to them have one name.
pub(super) fn node(rdev: u64, path: PathBuf) -> PathBuf {
    let named = name_of(number_of(rdev));
    named.filter(|named| number_at(named) == Some(number_of(rdev))).unwrap_or(path)
}

fn name_of(number: Number) -> Option<PathBuf> {
    let text = fs::read_to_string(sysfs(number).join("uevent")).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// Returns the device, its partitions, and the disk that it is a partition of.
fn family(number: Number) -> Vec<Number> {
    let read = |dir: &Path| -> Option<Number> {
        let text = fs::read_to_string(dir.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let mut family = vec![number];
    let Ok(dir) = fs::canonicalize(sysfs(number)) else { return family };
    if dir.join("partition").exists() {
        family.extend(dir.parent().and_then(read));
    } else {
        let below = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        family.extend(below.filter(|path| path.join("partition").exists()).filter_map(|path| read(&path)));
    }
    family
}

/// Returns whether `mount` is on the device. File systems that span several devices have device
/// numbers of their own and are recognised by their source.
fn is_of(mount: &Mount, number: Number) -> bool {
    mount.device == number || (mount.source.is_absolute() && number_at(&mount.source) == Some(number))
}

/// Returns a use of the block device with this number; `None` when no use is known.
fn usage(rdev: u64, path: &Path) -> Option<Use> {
    let asked = number_of(rdev);
    let named = |number: Number| match number == asked {
        true => path.to_owned(),
        false => {
            name_of(number).unwrap_or_else(|| PathBuf::from(format!("device {}:{}", number.0, number.1)))
        }
    };
    let family = family(asked);
    let mounted = |mounts: &[Mount], elsewhere: bool| {
        family.iter().find_map(|number| {
            let mount = mounts.iter().find(|mount| is_of(mount, *number))?;
            let what = What::Mounted { at: mount.point.clone(), elsewhere };
            Some(Use { device: named(*number), what })
        })
    };
    let swap = || {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let swaps: Vec<Number> = swaps
            .lines()
            .skip(1)
            .filter_map(|line| number_at(Path::new(line.split_whitespace().next()?)))
            .collect();
        let number = family.iter().find(|number| swaps.contains(number))?;
        Some(Use { device: named(*number), what: What::Swap })
    };
    let below = || {
        family.iter().find_map(|number| {
            let mut held = fs::read_dir(sysfs(*number).join("holders")).into_iter().flatten().flatten();
            let held = held.next().map(|holder| Path::new("/dev").join(holder.file_name()));
            let other = held.or_else(|| loop_over(*number))?;
            Some(Use { device: named(*number), what: What::Below(other) })
        })
    };
    mounted(&mounts::here().unwrap_or_default(), false)
        .or_else(swap)
        .or_else(below)
        .or_else(|| mounted(&mounts::elsewhere(), true))
}

/// Returns the loop device that is backed by the block device. A loop device claims nothing, so the
/// kernel does not report its backing device as in use.
fn loop_over(number: Number) -> Option<PathBuf> {
    fs::read_dir("/sys/block").into_iter().flatten().flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let backing = text.trim_end_matches('\n');
        (number_at(Path::new(backing)) == Some(number)).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// Fails when something uses the block device at `path`.
///
/// # Errors
/// [`DeviceError`].
pub fn check_unused(path: &Path) -> Result<(), DeviceError> {
    let meta = fs::metadata(path).map_err(|cause| DeviceError::Open { path: path.to_owned(), cause })?;
    match usage(meta.rdev(), path) {
        Some(used) => Err(DeviceError::InUse(used)),
        None => Ok(()),
    }
}

/// Opens the block device at `path` for reading and writing and claims it, so that nobody can mount
/// it meanwhile.
///
/// # Errors
/// [`DeviceError::InUse`] when something uses the device, a partition of it, or the disk that it is
/// a partition of.
pub fn open_claimed(path: &Path) -> Result<File, DeviceError> {
    check_unused(path)?;
    // On a block device, `O_EXCL` without `O_CREAT` makes the same exclusive claim as file systems,
    // swap and partitions of the disk (open(2)).
    let flags = OFlags::EXCL.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(|cause| {
        match rustix::io::Errno::from_io_error(&cause) {
            Some(rustix::io::Errno::BUSY) => {
                let claimed = Use { device: path.to_owned(), what: What::Claimed };
                DeviceError::InUse(
                    fs::metadata(path).ok().and_then(|m| usage(m.rdev(), path)).unwrap_or(claimed),
                )
            }
            _ => DeviceError::Open { path: path.to_owned(), cause },
        }
    })
}

/// Returns a mount through which the device with this number may be written while it is read.
pub fn written_through(rdev: u64, path: &Path) -> Option<Use> {
    let family = family(number_of(rdev));
    let find = |mounts: Vec<Mount>, elsewhere: bool| {
        mounts.iter().filter(|mount| mount.writable).find_map(|mount| {
            let number = family.iter().find(|number| is_of(mount, **number))?;
            let device = if *number == family[0] { Some(path.to_owned()) } else { name_of(*number) };
            let what = What::Mounted { at: mount.point.clone(), elsewhere };
            Some(Use { device: device.unwrap_or_else(|| path.to_owned()), what })
        })
    };
    find(mounts::here().unwrap_or_default(), false).or_else(|| find(mounts::elsewhere(), true))
}
