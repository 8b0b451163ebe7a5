//! GUID partition tables (UEFI specification, "GUID Partition Table Disk Layout").

use crc::{CRC_32_ISO_HDLC, Crc, Table};

use super::make::PADDING_SHIFT;
use super::{PARTITIONS_MAX, Partition};
use crate::cut::ReadAt;
use crate::cut::bytes::{u32_at, u64_at};

/// Sector sizes at which a table is looked for, bytes.
const SECTORS: [u64; 2] = [512, 4096];

pub(super) const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Bytes of a header that the specification defines.
pub(super) const HEADER: usize = 92;

/// Largest table, bytes: eight times the usual one.
const TABLE_BYTES_MAX: u64 = 128 << 10;

/// Bytes of an entry that the specification defines.
pub(super) const ENTRY: usize = 128;

pub(super) static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);

/// Type of a partition that was made of a file, by [`MadeDisk`](super::MadeDisk).
pub(super) const MADE_OF_FILE: [u8; 16] = guid(0x9F4E_61D2, 0x7B3C, 0x4D58, 0xA6E1, 0x6469_7374_6401);

/// Types of partitions whose use follows from the type: the type as it is stored, and the use.
/// Those of UAPI.2, "Discoverable Partitions Specification", for the architectures that boot Linux
/// images.
const ROLES: [([u8; 16], &str); 16] = [
    (guid(0xC12A_7328, 0xF81F, 0x11D2, 0xBA4B, 0x00A0_C93E_C93B), "esp"),
    (guid(0xBC13_C2FF, 0x59E6, 0x4262, 0xA352, 0xB275_FD6F_7172), "xbootldr"),
    (guid(0x4F68_BCE3, 0xE8CD, 0x4DB1, 0x96E7, 0xFBCA_F984_B709), "root"),
    (guid(0xB921_B045, 0x1DF0, 0x41C3, 0xAF44, 0x4C6F_280D_3FAE), "root"),
    (guid(0x69DA_D710, 0x2CE4, 0x4E3C, 0xB16C, 0x21A1_D49A_BED3), "root"),
    (guid(0x4447_9540, 0xF297, 0x41B2, 0x9AF7, 0xD131_D5F0_458A), "root"),
    (guid(0x8484_680C, 0x9521, 0x48C6, 0x9C11, 0xB072_0656_F69E), "usr"),
    (guid(0xB0E0_1050, 0xEE5F, 0x4390, 0x949A, 0x9101_B171_04E9), "usr"),
    (guid(0x2C73_57ED, 0xEBD2, 0x46D9, 0xAEC1, 0x23D4_37EC_2BF5), "root-verity"),
    (guid(0xDF33_00CE, 0xD69F, 0x4C92, 0x978C, 0x9BFB_0F38_D820), "root-verity"),
    (guid(0x77FF_5F63, 0xE7B6, 0x4633, 0xACF4, 0x1565_B864_C0E6), "usr-verity"),
    (guid(0x6E11_A4E7, 0xFBCA, 0x4DED, 0xB9E9, 0xE1A5_12BB_664E), "usr-verity"),
    (guid(0x4109_2B05, 0x9FC8, 0x4523, 0x994F, 0x2DEF_0408_B176), "root-verity-sig"),
    (guid(0x6DB6_9DE6, 0x29F4, 0x4758, 0xA7A5, 0x9621_90F0_0CE3), "root-verity-sig"),
    (guid(0xE7BB_33FB, 0x06CF, 0x4E81, 0x8273, 0xE543_B413_E2E2), "usr-verity-sig"),
    (guid(0xC23C_E4FF, 0x44BD, 0x4B00, 0xB2D4, 0xB41B_3419_E02A), "usr-verity-sig"),
];

/// Returns a GUID as it is stored: the first three fields with the low byte first.
const fn guid(a: u32, b: u16, c: u16, d: u16, e: u64) -> [u8; 16] {
    let (a, b, c, d, e) =
        (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes(), e.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], e[2], e[3], e[4], e[5], e[6], e[7]]
}

/// Reads the table at the start of the disk, or the one at its end if the first is damaged. `None`
/// if both are.
pub(super) fn partitions<R: ReadAt + ?Sized>(artifact: &R) -> Option<Vec<Partition>> {
    let first = SECTORS.iter().find_map(|sector| read(artifact, *sector, 1));
    first.or_else(|| {
        SECTORS.iter().find_map(|sector| read(artifact, *sector, (artifact.len() / sector).checked_sub(1)?))
    })
}

/// Reads the table whose header is in sector number `at`.
fn read<R: ReadAt + ?Sized>(artifact: &R, sector: u64, at: u64) -> Option<Vec<Partition>> {
    let mut header = vec![0; sector as usize];
    artifact.read_exact_at(&mut header, at * sector).ok()?;
    let size = u32_at(&header, 12) as usize;
    if !header.starts_with(SIGNATURE) || !(HEADER..=header.len()).contains(&size) {
        return None;
    }
    let checksum = u32_at(&header, 16);
    header[16..20].fill(0);
    if CRC.checksum(&header[..size]) != checksum || u64_at(&header, 24) != at {
        return None;
    }
    let count = u64::from(u32_at(&header, 80));
    let entry = u64::from(u32_at(&header, 84));
    let bytes = count.checked_mul(entry).filter(|bytes| *bytes <= TABLE_BYTES_MAX)?;
    if entry < ENTRY as u64 || !entry.is_power_of_two() {
        return None;
    }
    let mut table = vec![0; bytes as usize];
    artifact.read_exact_at(&mut table, u64_at(&header, 72).checked_mul(sector)?).ok()?;
    if CRC.checksum(&table) != u32_at(&header, 88) {
        return None;
    }
    let mut partitions = Vec::new();
    for raw in table.chunks_exact(entry as usize).filter(|raw| raw[..16] != [0; 16]) {
        let (first, last) = (u64_at(raw, 32), u64_at(raw, 40));
        let range = first.checked_mul(sector)?..last.checked_add(1)?.checked_mul(sector)?;
        if range.is_empty() || range.end > artifact.len() || partitions.len() == PARTITIONS_MAX {
            return None;
        }
        let is_file = raw[..16] == MADE_OF_FILE;
        let padding = if is_file { u64_at(raw, 48) >> PADDING_SHIFT } else { 0 };
        if padding >= range.end - range.start {
            return None;
        }
        let role = ROLES.iter().find(|(guid, _)| guid == &raw[..16]).map(|(_, role)| *role);
        partitions.push(Partition { range, padding, role, label: label(&raw[56..ENTRY]) });
    }
    (!partitions.is_empty()).then_some(partitions)
}

/// Decodes a label: UTF-16 up to the first zero.
fn label(raw: &[u8]) -> String {
    let units = raw.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    let units = units.take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
