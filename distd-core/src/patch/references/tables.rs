//! Alignment of tables of addresses, in which each entry differs from that of the base.
//!
//! The code around the tables shows where addresses moved. An entry of the target is written as the
//! entry that the base would have for the same address; then tables are equal where they list the
//! same addresses, and the suffix array finds that.

use std::ops::Range;

use super::align::{Copied, Gaps, Side, copied, joined};
use super::guide::Guide;
use super::layout::{Cursor, Key, address, beside, moved};
use super::sites::Known;
use crate::patch::matches::segments;

/// Bytes of the target that are taken for one kind of table.
const BLOCK: usize = 256;

/// A block is a table if more than one in this many of its entries are of its kind.
const TABLE_PART: usize = 3;

/// Kind of a table with entries of 4 bytes, see [`Mode`](super::sites::Mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Distance,
    Address,
    Below,
}

const TABLES: [Table; 3] = [Table::Distance, Table::Address, Table::Below];

fn entry(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |four| u32::from_le_bytes(*four))
}

fn signed(value: u32) -> u64 {
    i64::from(value as i32) as u64
}

/// Entries of the base's gaps as the target's are compared with them, ascending.
struct Entries {
    plain: Vec<u32>,
    distances: Vec<u32>,
}

struct Finder<'a> {
    target: Side<'a>,
    /// Map from the target to the base.
    inverse: Guide,
    entries: Entries,
    origin: u64,
}

/// Finds the parts of the target's gaps that are tables, or resemble the base's gaps as they are.
pub(super) fn find(base: Side<'_>, target: Side<'_>, good: &[Copied], origin: u64) -> Vec<Copied> {
    let known_segments = joined(good.to_vec(), target.bytes.len());
    let guide =
        Guide::new(&known_segments, (base.layout, base.bytes.len()), (target.layout, target.bytes.len()));
    let Some(guide) = guide else { return Vec::new() };
    let old = Gaps::new(good.iter().map(|part| part.base..part.base + part.len), base.bytes.len());
    let new = Gaps::new(good.iter().map(|part| part.at..part.at + part.len), target.bytes.len());
    if old.len == 0 || new.len == 0 {
        return Vec::new();
    }
    // The gaps of the base as they are, and behind them their tables of distances with addresses.
    let mut searched = Vec::with_capacity(old.len + old.len / 2);
    old.ranges().for_each(|gap| searched.extend_from_slice(&base.bytes[gap]));
    let (entries, tables) = put_addresses(base, &old, &mut searched);
    if !has_room((searched.len(), base.bytes.len()), (new.len, target.bytes.len())) {
        return Vec::new();
    }
    let finder = Finder { target, inverse: guide.inverse(), entries, origin };
    let mut wanted = Vec::with_capacity(new.len);
    let mut cursor = Cursor::new(target.layout, target.bytes.len());
    for gap in new.ranges() {
        let mut from = gap.start;
        while from < gap.end {
            let to = (from / BLOCK * BLOCK + BLOCK).min(gap.end);
            finder.put_block(from..to, &mut cursor, &mut wanted);
            from = to;
        }
    }
    let mut out = Vec::new();
    // The entries take as much as two more bytes for each byte of the gaps.
    drop(finder);
    for part in copied(&segments(&searched, &wanted)) {
        let mut done = 0;
        while done < part.len {
            let (at, new_left) = new.place(part.at + done);
            let from = part.base + done;
            let (from, old_left) = match from.checked_sub(old.len) {
                None => old.place(from),
                Some(from) => tables.place(from),
            };
            let len = (part.len - done).min(new_left).min(old_left);
            out.push(Copied { at, base: from, len });
            done += len;
        }
    }
    out
}

/// Returns whether a job has room for the search. The base is the bytes that are searched, and all
/// of its bytes; the target is the bytes of its gaps, and all of its bytes. The search takes five
/// bytes for each byte that is searched: the byte and its place in the suffix array.
fn has_room(base: (usize, usize), target: (usize, usize)) -> bool {
    5 * base.0 + target.0 <= 5 * base.1 + target.1
}

/// Appends those blocks of the base's gaps that are mostly distances, with addresses in place of
/// the distances. Returns the entries of all gaps, and the blocks.
fn put_addresses(base: Side<'_>, old: &Gaps, out: &mut Vec<u8>) -> (Entries, Gaps) {
    let known = Known::new(base.layout, base.bytes.len());
    let mut entries = Entries { plain: Vec::new(), distances: Vec::new() };
    let mut cursor = Cursor::new(base.layout, base.bytes.len());
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for gap in old.ranges() {
        let mut from = gap.start;
        while from < gap.end {
            let (to, start) = ((from / BLOCK * BLOCK + BLOCK).min(gap.end), out.len());
            let (mut at, mut sites, mut distances) = (from, 0, 0);
            while at < to {
                let site = cursor.key(at).0;
                if site & 3 != 0 || at + 4 > to {
                    out.push(base.bytes[at]);
                    at += 1;
                    continue;
                }
                let value = entry(base.bytes, at);
                let leads_to = moved(site, signed(value));
                let is_distance = known.has(leads_to);
                let distance = if is_distance { address(leads_to) as u32 } else { value };
                sites += 1;
                distances += usize::from(is_distance);
                entries.plain.push(value);
                entries.distances.push(distance);
                out.extend_from_slice(&distance.to_le_bytes());
                at += 4;
            }
            if distances * TABLE_PART > sites {
                match blocks.last_mut() {
                    Some(block) if block.end == from => block.end = to,
                    _ => blocks.push(from..to),
                }
            } else {
                out.truncate(start);
            }
            from = to;
        }
    }
    for list in [&mut entries.plain, &mut entries.distances] {
        list.sort_unstable();
        list.dedup();
    }
    (entries, Gaps::of(blocks))
}

impl Finder<'_> {
    /// Entry that the base would have for an entry of the target.
    fn in_base(&self, table: Table, site: Key, value: u32) -> u32 {
        let below = |address: u64| self.origin.wrapping_sub(1).wrapping_sub(address);
        let leads_to = match table {
            Table::Distance => moved(site, signed(value)),
            Table::Address => beside(site, signed(value)),
            Table::Below => beside(site, below(signed(value))),
        };
        let old = address(self.inverse.find(leads_to));
        (if table == Table::Below { below(old) } else { old }) as u32
    }

    /// Appends a block of the target as the base would have it.
    fn put_block(&self, block: Range<usize>, cursor: &mut Cursor, out: &mut Vec<u8>) {
        let bytes = self.target.bytes;
        let sites: Vec<(usize, Key)> = (block.start..block.end.saturating_sub(3))
            .map(|at| (at, cursor.key(at).0))
            .filter(|(_, site)| site & 3 == 0)
            .collect();
        let hits = |table: Table| {
            let list = if table == Table::Distance { &self.entries.distances } else { &self.entries.plain };
            let is_hit = |(at, site): &&(usize, Key)| {
                let value = entry(bytes, *at);
                value != 0 && list.binary_search(&self.in_base(table, *site, value)).is_ok()
            };
            sites.iter().filter(is_hit).count()
        };
        // A table that is in the base lists mostly what the base lists.
        let best = TABLES.into_iter().map(|table| (hits(table), table)).rev().max_by_key(|(hits, _)| *hits);
        let table = best.filter(|(hits, _)| hits * TABLE_PART > sites.len()).map(|(_, table)| table);
        let from = out.len();
        out.extend_from_slice(&bytes[block.clone()]);
        let Some(table) = table else { return };
        for (at, site) in sites {
            let value = self.in_base(table, site, entry(bytes, at));
            let place = from + at - block.start;
            out[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::pair::large_memory;

    #[test]
    fn a_search_that_has_room_keeps_the_bound_of_its_job() {
        let (base, target) = (50_000_000, 55_000_000);
        for share in 0..=40 {
            // Gaps, and nearly as many bytes of tables.
            let (searched, new) = (base / 20 * share, target / 20 * share.min(20));
            let taken = base + target + new + 5 * searched;
            if has_room((searched, base), (new, target)) {
                assert!(taken as u64 <= large_memory(base as u64, target as u64), "{share}");
            } else {
                assert!(share > 20, "{share}");
            }
        }
    }
}
