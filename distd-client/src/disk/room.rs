//! Free space, checked before anything is fetched.

use distd_peer::filesystem::Space;
use std::io;
use std::path::Path;

/// Magic numbers of file systems that may compress data, so that more fits than they report: Btrfs,
/// ZFS, F2FS, bcachefs (linux/magic.h, OpenZFS).
const PACKING: [i64; 4] = [0x9123_683e, 0x2fc1_2fc1, 0xf2f5_2010, 0xca45_1a4e];

/// On a file system that compresses, room for one part in this many of the bytes is enough. A
/// guess: few artifacts compress better.
const PACKED_PART: u64 = 10;

/// Free space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that this user may still write.
    pub free: u64,
    packs: bool,
    /// Free inodes; `None` if the file system creates inodes as needed.
    inodes: Option<u64>,
}

impl Room {
    /// Returns the free space at `path`, which must exist.
    ///
    /// # Errors
    /// As the system reports.
    pub fn at(path: &Path) -> io::Result<Self> {
        let Space { free, inodes, .. } = Space::at(path)?;
        let kind = rustix::fs::statfs(path)?.f_type;
        // The width of `f_type` differs between architectures.
        let packs = PACKING.iter().any(|magic| i128::from(kind) & 0xffff_ffff == i128::from(*magic));
        Ok(Self { free, packs, inodes })
    }

    /// Returns whether `bytes` surely do not fit; `there` of them are on the disk already.
    pub fn is_too_small_for(&self, bytes: u64, there: u64) -> bool {
        let needed = if self.packs { bytes / PACKED_PART } else { bytes };
        self.free.saturating_add(there) < needed
    }

    /// Returns whether there are surely too few inodes for `entries`.
    pub fn has_too_few_inodes_for(&self, entries: u64) -> bool {
        self.inodes.is_some_and(|left| left < entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_already_there_count_and_compressing_file_systems_need_less_room() {
        let room = Room { free: 100, packs: false, inodes: Some(5) };
        assert!(!room.is_too_small_for(100, 0));
        assert!(room.is_too_small_for(101, 0));
        assert!(!room.is_too_small_for(101, 1));
        assert!(!Room { packs: true, ..room }.is_too_small_for(1000, 0));
        assert!(Room { packs: true, ..room }.is_too_small_for(2000, 0));
        assert!(room.has_too_few_inodes_for(6) && !room.has_too_few_inodes_for(5));
        assert!(!Room { inodes: None, ..room }.has_too_few_inodes_for(u64::MAX));
        assert!(Room::at(Path::new("/")).is_ok());
    }
}
