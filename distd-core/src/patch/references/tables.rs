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
    // The search takes 12 bytes for each byte of the gaps, and a job has room for five of each byte
    // of the base.
    if old.len == 0 || new.len == 0 || 12 * old.len > 5 * base.bytes.len() {
        return Vec::new();
    }
    // The gaps of the base as they are, and behind them once more with addresses for distances.
    let mut searched = Vec::with_capacity(2 * old.len);
    old.ranges().for_each(|gap| searched.extend_from_slice(&base.bytes[gap]));
    let entries = put_addresses(base, &old, &mut searched);
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
    for part in copied(&segments(&searched, &wanted)) {
        let mut done = 0;
        while done < part.len {
            let (at, new_left) = new.place(part.at + done);
            let (from, old_left) = old.place((part.base + done) % old.len);
            let len = (part.len - done).min(new_left).min(old_left);
            out.push(Copied { at, base: from, len });
            done += len;
        }
    }
    out
}

/// Appends the gaps of the base with addresses in place of distances.
fn put_addresses(base: Side<'_>, old: &Gaps, out: &mut Vec<u8>) -> Entries {
    let known = Known::new(base.layout, base.bytes.len());
    let mut entries = Entries { plain: Vec::new(), distances: Vec::new() };
    let mut cursor = Cursor::new(base.layout, base.bytes.len());
    for gap in old.ranges() {
        let mut at = gap.start;
        while at < gap.end {
            let site = cursor.key(at).0;
            if site & 3 != 0 || at + 4 > gap.end {
                out.push(base.bytes[at]);
                at += 1;
                continue;
            }
            let value = entry(base.bytes, at);
            let leads_to = moved(site, signed(value));
            let distance = if known.has(leads_to) { address(leads_to) as u32 } else { value };
            entries.plain.push(value);
            entries.distances.push(distance);
            out.extend_from_slice(&distance.to_le_bytes());
            at += 4;
        }
    }
    for list in [&mut entries.plain, &mut entries.distances] {
        list.sort_unstable();
        list.dedup();
    }
    entries
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
        let table = best.filter(|(hits, _)| hits * 3 > sites.len()).map(|(_, table)| table);
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
