//! Mounted file systems, as `/proc/PID/mountinfo` lists them (proc_pid_mountinfo(5)).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest mountinfo read, in bytes. The mounts of ten thousand containers take some 2 MB.
const MOUNTINFO_BYTES_MAX: u64 = 64 << 20;

/// File systems that show the kernel's own objects. Making a regular file there fails or puts it
/// into memory.
const KERNEL_FILE_SYSTEMS: [&str; 8] =
    ["devtmpfs", "devpts", "proc", "sysfs", "cgroup", "cgroup2", "securityfs", "debugfs"];

/// One mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount point.
    pub point: PathBuf,
    /// Device number of the file system: major and minor.
    pub device: (u32, u32),
    /// Type of the file system.
    pub kind: String,
    /// Source of the file system's bytes: a device node, as it was named to `mount`.
    pub source: PathBuf,
    /// Whether the file system is mounted writable, here or at another mount point.
    pub writable: bool,
}

/// Returns the mounts that this process sees.
///
/// # Errors
/// When `/proc` is missing; nothing else tells what is mounted.
pub fn here() -> io::Result<Vec<Mount>> {
    of_process(Path::new("/proc/self"))
}

fn of_process(proc: &Path) -> io::Result<Vec<Mount>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(proc.join("mountinfo"))?.take(MOUNTINFO_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Returns the mounts of every other mount namespace that this process may inspect, each namespace
/// once. Their paths are as the processes of that namespace see them.
pub fn elsewhere() -> Vec<Mount> {
    of_others(|_| true)
}

/// Like [`elsewhere`], but only for namespaces whose root is the root of this process, so that
/// paths mean the same there as here. A container has another root, and a volume in it may have any
/// path.
pub fn elsewhere_below_this_root() -> Vec<Mount> {
    let root = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let here = root(Path::new("/proc/self/root"));
    of_others(|process| here.is_some() && root(&process.join("root")) == here)
}

fn of_others(is_asked_for: impl Fn(&Path) -> bool) -> Vec<Mount> {
    let mut seen: BTreeSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let numeric = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let path = process.path();
        // A process may end meanwhile, or belong to another user.
        if numeric
            && let Ok(namespace) = fs::read_link(path.join("ns/mnt"))
            && !seen.contains(&namespace)
            && is_asked_for(&path)
            && seen.insert(namespace)
        {
            found.extend(of_process(&path).unwrap_or_default());
        }
    }
    found
}

/// Returns the mounts at `path` and below it.
pub fn at_or_below<'m>(mounts: &'m [Mount], path: &Path) -> impl Iterator<Item = &'m Mount> {
    mounts.iter().filter(move |mount| mount.point.starts_with(path))
}

/// Returns whether `path` lies in a file system that shows the kernel's own objects.
pub fn is_the_kernels(mounts: &[Mount], path: &Path) -> bool {
    // Of several mounts at one point the last in the list hides the others; `max_by_key` returns
    // the last maximum.
    let covering = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    let nearest = covering.max_by_key(|mount| mount.point.components().count());
    nearest.is_some_and(|mount| KERNEL_FILE_SYSTEMS.contains(&mount.kind.as_str()))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (_id, _parent) = (fields.next()?, fields.next()?);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let _root = fields.next()?;
    let point = unescape(fields.next()?);
    // The optional fields end with a dash.
    let mut behind = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(behind.next()?).into_owned();
    let source = unescape(behind.next()?);
    let writable = behind.next()?.split(|byte| *byte == b',').any(|option| option == b"rw");
    Some(Mount { point, device, kind, source, writable })
}

/// Decodes a field: space, tab, line feed and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u32, |sum, digit| {
                (b'0'..=b'7').contains(digit).then(|| sum * 8 + u32::from(*digit - b'0'))
            })
        };
        match behind.get(..3).filter(|_| first == b'\\').and_then(octal).and_then(|n| u8::try_from(n).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts() -> Vec<Mount> {
        let lines = [
            &b"21 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw"[..],
            b"22 21 0:6 / /dev rw,nosuid shared:2 master:3 - devtmpfs udev rw,size=4k",
            b"23 22 0:22 / /dev/shm rw - tmpfs tmpfs rw",
            b"24 21 7:0 /in\\040side /srv/a\\040b\\134c ro - erofs /dev/loop0 ro",
            b"25 21 8:2 /data /srv/app/data ro - ext4 /dev/sda2 rw",
            b"garbage",
            b"",
        ];
        lines.iter().filter_map(|line| parse(line)).collect()
    }

    #[test]
    fn a_line_is_read_with_its_escapes_and_optional_fields() {
        let mounts = mounts();
        assert_eq!(mounts.len(), 5);
        let image = &mounts[3];
        assert_eq!(image.point, Path::new("/srv/a b\\c"));
        assert_eq!((image.device, image.kind.as_str(), image.writable), ((7, 0), "erofs", false));
        assert!(mounts[4].writable, "the file system is writable though this mount of it is not");
    }

    #[test]
    fn mounts_below_a_path_are_found_by_whole_names() {
        let mounts = mounts();
        let below = |path: &str| at_or_below(&mounts, Path::new(path)).count();
        assert_eq!(below("/srv/app"), 1);
        assert_eq!(below("/srv/app/data"), 1);
        assert_eq!(below("/srv/ap"), 0);
        assert_eq!(below("/srv/app/data/x"), 0);
        assert_eq!(below("/srv"), 2);
    }

    #[test]
    fn the_nearest_mount_decides_whether_a_path_is_the_kernels() {
        let mounts = mounts();
        assert!(is_the_kernels(&mounts, Path::new("/dev/mmcblk9")));
        assert!(!is_the_kernels(&mounts, Path::new("/dev/shm/x")));
        assert!(!is_the_kernels(&mounts, Path::new("/srv/x")));
    }

    #[test]
    fn this_process_sees_a_root() {
        assert!(here().expect("mountinfo").iter().any(|mount| mount.point == Path::new("/")));
    }
}
