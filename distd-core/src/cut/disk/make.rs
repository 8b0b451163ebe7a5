//! Disk images made of files: a GUID partition table around them (UEFI specification, "GUID
//! Partition Table Disk Layout").
//!
//! The same labels and lengths always give the same table, so a release that is made twice has the
//! same bytes.

use std::ops::Range;

use super::PARTITIONS_MAX;
use super::gpt::{CRC, ENTRY, HEADER, MADE_OF_FILE, SIGNATURE};
use crate::bounds::ARTIFACT_BYTES_MAX;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Alignment of the partitions, bytes, as partitioning tools do it.
const ALIGN: u64 = 1 << 20;

/// Number of entries of a table, used or not.
const ENTRIES: usize = 128;

/// Bytes of a table.
const TABLE_BYTES: u64 = (ENTRIES * ENTRY) as u64;

/// Longest label, UTF-16 units.
const LABEL_UNITS_MAX: usize = 36;

/// Bit of an entry's attributes from which its type decides about them. Of a partition that was
/// made of a file they are the number of bytes between the end of the file and that of its last
/// sector.
pub(super) const PADDING_SHIFT: u32 = 48;

/// Reason why files cannot be the partitions of a disk image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MakeDiskError {
    /// There are no files, or more than a table has entries.
    #[error("a disk image has 1 to {ENTRIES} partitions, and {0} are named")]
    Count(usize),
    /// A label is empty, too long, or has a control character.
    #[error("{0:?} is no label of a partition: it has 1 to {LABEL_UNITS_MAX} characters")]
    Label(String),
    /// Two partitions have one label.
    #[error("two partitions have the label {0}")]
    Twice(String),
    /// A file has no bytes.
    #[error("the file of partition {0} is empty")]
    Empty(String),
    /// The image would be larger than an artifact may be.
    #[error("the files are larger than an artifact may be")]
    TooLarge,
}

/// Disk image with one partition for each of some files.
///
/// ```
/// use distd_core::cut::MadeDisk;
///
/// let disk = MadeDisk::new(&[("root", 5_000_000), ("uki", 1_000)])?;
/// assert_eq!(disk.files(), [0x100000..0x100000 + 5_000_000, 0x600000..0x600000 + 1_000]);
/// # Ok::<(), distd_core::cut::MakeDiskError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MadeDisk {
    head: Vec<u8>,
    tail: Vec<u8>,
    files: Vec<Range<u64>>,
    bytes: u64,
}

impl MadeDisk {
    /// Lays out partitions in this order, each a label and the length of its file in bytes.
    ///
    /// # Errors
    /// [`MakeDiskError`].
    pub fn new(parts: &[(&str, u64)]) -> Result<Self, MakeDiskError> {
        const { assert!(ENTRIES <= PARTITIONS_MAX) };
        if parts.is_empty() || parts.len() > ENTRIES {
            return Err(MakeDiskError::Count(parts.len()));
        }
        let mut table = vec![0; TABLE_BYTES as usize];
        let mut files = Vec::new();
        let mut identity = blake3::Hasher::new_derive_key("distd 2026-11 GUIDs of a disk made of files");
        let mut end = ALIGN;
        for (number, (label, len)) in parts.iter().enumerate() {
            let units: Vec<u16> = label.encode_utf16().collect();
            if units.is_empty() || units.len() > LABEL_UNITS_MAX || label.contains(char::is_control) {
                return Err(MakeDiskError::Label((*label).to_owned()));
            }
            if parts[..number].iter().any(|(before, _)| before == label) {
                return Err(MakeDiskError::Twice((*label).to_owned()));
            }
            if *len == 0 {
                return Err(MakeDiskError::Empty((*label).to_owned()));
            }
            let start = end;
            let sectors = len.div_ceil(SECTOR);
            let next = sectors.checked_mul(SECTOR).and_then(|bytes| start.checked_add(bytes));
            let next = next.and_then(|next| next.checked_next_multiple_of(ALIGN));
            end = next.filter(|end| *end <= ARTIFACT_BYTES_MAX - ALIGN).ok_or(MakeDiskError::TooLarge)?;
            identity
                .update(&(label.len() as u64).to_le_bytes())
                .update(label.as_bytes())
                .update(&len.to_le_bytes());
            let entry = &mut table[number * ENTRY..(number + 1) * ENTRY];
            entry[..16].copy_from_slice(&MADE_OF_FILE);
            entry[16..32].copy_from_slice(&guid_of(&identity));
            let last = start / SECTOR + sectors - 1;
            entry[32..40].copy_from_slice(&(start / SECTOR).to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            let padding = sectors * SECTOR - len;
            entry[48..56].copy_from_slice(&(padding << PADDING_SHIFT).to_le_bytes());
            for (to, unit) in entry[56..].chunks_exact_mut(2).zip(units) {
                to.copy_from_slice(&unit.to_le_bytes());
            }
            files.push(start..start + len);
        }
        let bytes = end + ALIGN;
        let last = bytes / SECTOR - 1;
        let disk = guid_of(&identity);
        let table_sectors = TABLE_BYTES / SECTOR;
        let header = |own: u64, other: u64, at: u64| {
            let usable = 2 + table_sectors..=last - 1 - table_sectors;
            header(&disk, &table, [own, other, *usable.start(), *usable.end(), at])
        };
        let head = [protective_mbr(last), header(1, last, 2), table.clone()].concat();
        let tail = [table.clone(), header(last, 1, last - table_sectors)].concat();
        Ok(Self { head, tail, files, bytes })
    }

    /// First bytes of the image: a protective MBR, the header and the table.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Last bytes of the image: the backup of the table and of the header.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Ranges of the files in the image, in order, bytes. All bytes that are in none of them, nor
    /// in [`head`](Self::head) or [`tail`](Self::tail), are zero.
    pub fn files(&self) -> &[Range<u64>] {
        &self.files
    }

    /// Length of the image, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A GUID of version 4 that depends on what was hashed.
fn guid_of(identity: &blake3::Hasher) -> [u8; 16] {
    let mut guid: [u8; 16] = *identity.finalize().as_bytes().first_chunk().expect("16 of 32 bytes");
    guid[7] = guid[7] & 0x0f | 0x40;
    guid[8] = guid[8] & 0x3f | 0x80;
    guid
}

/// A header: GUID of the disk, the table, and the sectors of the header, of the other header, the
/// first and the last usable one, and that of the table.
fn header(disk: &[u8; 16], table: &[u8], [own, other, first, last, at]: [u64; 5]) -> Vec<u8> {
    let mut header = vec![0; SECTOR as usize];
    header[..8].copy_from_slice(SIGNATURE);
    header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
    for (from, sector) in [(24, own), (32, other), (40, first), (48, last), (72, at)] {
        header[from..from + 8].copy_from_slice(&sector.to_le_bytes());
    }
    header[56..72].copy_from_slice(disk);
    header[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
    header[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
    header[88..92].copy_from_slice(&CRC.checksum(table).to_le_bytes());
    let checksum = CRC.checksum(&header[..HEADER]);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The MBR by which tools that do not know GPT see one partition that fills the disk.
fn protective_mbr(last: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&sectors.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

#[cfg(test)]
mod tests {
    use super::super::{LabelledPartition, labelled_partitions, volumes};
    use super::*;

    fn image(parts: &[(&str, u64)]) -> Vec<u8> {
        let disk = MadeDisk::new(parts).expect("laid out");
        let mut image = vec![0; disk.bytes() as usize];
        image[..disk.head().len()].copy_from_slice(disk.head());
        let tail = image.len() - disk.tail().len();
        image[tail..].copy_from_slice(disk.tail());
        for (number, file) in disk.files().iter().enumerate() {
            image[file.start as usize..file.end as usize].fill(number as u8 + 1);
        }
        image
    }

    #[test]
    fn a_made_disk_is_read_back_file_by_file() {
        let parts = [("root", 3_000_000), ("root-verity", 512), ("uki", 1), ("ä", 1 << 20)];
        let disk = MadeDisk::new(&parts).expect("laid out");
        let mut image = image(&parts);
        let read = labelled_partitions(&image[..]).expect("a table");
        let expected: Vec<_> = parts
            .iter()
            .zip(disk.files())
            .map(|((label, _), file)| LabelledPartition { label: (*label).to_owned(), range: file.clone() })
            .collect();
        assert_eq!(read, expected);
        assert_eq!(volumes(&image[..]).len(), 4, "cutting reads them as partitions");
        // The backup at the end is as good.
        image[512..1024].fill(0);
        let read: Vec<_> =
            labelled_partitions(&image[..]).expect("the backup").into_iter().map(|p| p.range).collect();
        assert_eq!(read, disk.files());
    }

    #[test]
    fn files_that_cannot_be_partitions_are_refused() {
        let refused = |parts: &[(&str, u64)]| MadeDisk::new(parts).expect_err("refused");
        assert_eq!(refused(&[]), MakeDiskError::Count(0));
        assert_eq!(refused(&[("a", 1); 129]), MakeDiskError::Count(129));
        assert_eq!(refused(&[("a", 1), ("a", 2)]), MakeDiskError::Twice("a".into()));
        assert_eq!(refused(&[("a", 0)]), MakeDiskError::Empty("a".into()));
        for label in ["", "a\n", &"x".repeat(37)] {
            assert_eq!(refused(&[(label, 1)]), MakeDiskError::Label(label.into()));
        }
        for len in [ARTIFACT_BYTES_MAX, u64::MAX] {
            assert_eq!(refused(&[("a", len)]), MakeDiskError::TooLarge);
        }
        assert!(MadeDisk::new(&[("a", 1); 1]).is_ok());
    }
}
