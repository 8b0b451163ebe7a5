//! Partition tables of the master boot record, with logical partitions in an extended one.

use std::ops::Range;

use super::{PARTITIONS_MAX, Partition};
use crate::cut::ReadAt;
use crate::cut::bytes::u32_at;

/// Bytes of a sector. Disks with larger ones have a GPT, or count in 512 bytes all the same.
const SECTOR: u64 = 512;

/// Offset of the table in its sector, and length of one of its four entries.
const TABLE: usize = 446;
const ENTRY: usize = 16;

/// Types of partitions that hold logical ones.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];

/// Type of the one partition that stands for a whole disk with a GPT.
const PROTECTIVE: u8 = 0xEE;

/// Entry of a table, in sectors.
struct Entry {
    kind: u8,
    start: u64,
    count: u64,
}

/// Reads the table in the first sector. `None` if it is not one, or is damaged anywhere.
pub(super) fn partitions<R: ReadAt + ?Sized>(artifact: &R) -> Option<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for entry in table(artifact, 0)?.into_iter().flatten() {
        if entry.kind == PROTECTIVE {
            return None;
        }
        // Logical partitions lie in the one extended partition.
        if !EXTENDED.contains(&entry.kind) {
            partitions.push(partition(artifact, &entry, 0)?);
        } else if extended.replace(entry.start..entry.start.checked_add(entry.count)?).is_some() {
            return None;
        }
    }
    if let Some(extended) = extended {
        logical(artifact, &extended, &mut partitions)?;
    }
    (!partitions.is_empty()).then_some(partitions)
}

/// Follows the chain of tables in an extended partition, one for each logical partition.
fn logical<R: ReadAt + ?Sized>(
    artifact: &R,
    extended: &Range<u64>,
    partitions: &mut Vec<Partition>,
) -> Option<()> {
    let mut at = extended.start;
    // Tables lie one behind the other in the order of the chain. Some may be empty.
    for _ in 0..=PARTITIONS_MAX {
        let [first, next, ..] = table(artifact, at)?;
        if let Some(entry) = first {
            if partitions.len() == PARTITIONS_MAX {
                return None;
            }
            partitions.push(partition(artifact, &entry, at)?);
        }
        let Some(next) = next else { return Some(()) };
        let next = extended.start.checked_add(next.start)?;
        if next <= at || next >= extended.end {
            return None;
        }
        at = next;
    }
    None
}

fn partition<R: ReadAt + ?Sized>(artifact: &R, entry: &Entry, base: u64) -> Option<Partition> {
    let start = (base + entry.start) * SECTOR;
    let range = start..start + entry.count * SECTOR;
    if range.is_empty() || start == 0 || range.end > artifact.len() {
        return None;
    }
    let role = match entry.kind {
        0xEF => Some("esp"),
        0x01 | 0x04 | 0x06 | 0x0B | 0x0C | 0x0E => Some("fat"),
        0x83 => Some("linux"),
        _ => None,
    };
    Some(Partition { range, padding: 0, role, label: String::new() })
}

/// Reads the table in a sector; entries without a type are `None`. `None` if it is not a table.
fn table<R: ReadAt + ?Sized>(artifact: &R, at: u64) -> Option<[Option<Entry>; 4]> {
    let mut sector = [0; SECTOR as usize];
    artifact.read_exact_at(&mut sector, at.checked_mul(SECTOR)?).ok()?;
    if sector[510..] != [0x55, 0xAA] {
        return None;
    }
    let mut entries = [None, None, None, None];
    for (entry, raw) in entries.iter_mut().zip(sector[TABLE..510].chunks_exact(ENTRY)) {
        // Other boot sectors have code or text here.
        if raw[0] & 0x7F != 0 {
            return None;
        }
        if raw[4] != 0 {
            *entry = Some(Entry {
                kind: raw[4],
                start: u64::from(u32_at(raw, 8)),
                count: u64::from(u32_at(raw, 12)),
            });
        } else if raw != [0; ENTRY] {
            return None;
        }
    }
    Some(entries)
}
