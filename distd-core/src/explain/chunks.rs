//! Chunks of the old artifact, and chunks of the new artifact that the old one lacks.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use crate::ChunkHash;
use crate::cut::{Batches, CutChunk, CutParams, ReadAt, Regions};
use crate::packing::Packer;

/// Half a chunk hash. An attacker gains nothing from two chunks that agree in 128 bits: a table
/// would count one of them as held.
pub(super) type Key = [u8; 16];

/// Chunks of the old artifact, each with its region. Takes 20 bytes a chunk, about 1/800 of the
/// artifact.
pub(super) struct Held(Vec<(Key, u32)>);

/// Chunk that the old artifact lacks, at its first place in the new artifact.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    pub(super) key: Key,
    pub(super) region: u32,
    /// Length in bytes.
    pub(super) raw: u32,
    /// Packed length, which is sent, in bytes.
    pub(super) wire: u32,
}

/// Content that a region of the new artifact shares with the old artifact.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegionHeld {
    pub(super) region: u32,
    pub(super) bytes: u64,
    /// Old region that most of these bytes come from, if one region has more than half.
    pub(super) from: u32,
    /// Lead of `from` in the majority vote: bytes for it minus bytes against it.
    votes: u64,
}

/// Result of scanning a part of the new artifact.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) fresh: Vec<Fresh>,
    pub(super) held: Vec<RegionHeld>,
    /// Number of chunks, repeats included.
    pub(super) chunks: u64,
}

/// Keys of chunks. Remembers the key of the longest chunk of zeros.
#[derive(Default)]
pub(super) struct Keys(Option<Key>);

impl Keys {
    pub(super) fn of(&mut self, chunk: &CutChunk<'_>) -> Key {
        // All chunks known to be zero are equal.
        if chunk.zero { *self.0.get_or_insert_with(|| key(chunk.data)) } else { key(chunk.data) }
    }
}

pub(super) fn key(data: &[u8]) -> Key {
    *ChunkHash::of(data).as_bytes().first_chunk().expect("16 of 32 bytes")
}

impl Held {
    pub(super) fn of(parts: impl IntoIterator<Item = Vec<(Key, u32)>>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        parts.for_each(|part| all.extend(part));
        all.sort_unstable();
        all.dedup_by_key(|(key, _)| *key);
        all.shrink_to_fit();
        Self(all)
    }

    /// Returns the first region that contains the chunk.
    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.0.binary_search_by_key(key, |(key, _)| *key).ok().map(|index| self.0[index].1)
    }
}

/// Returns the chunks of some regions of the old artifact.
pub(super) fn list<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    part: Range<usize>,
    params: CutParams,
    advance: &dyn Fn(u64),
) -> io::Result<Vec<(Key, u32)>> {
    let (mut out, mut keys) = (Vec::new(), Keys::default());
    each_chunk(artifact, regions, part, params, advance, |region, chunk| {
        let key = keys.of(&chunk);
        // A hole is the same chunk over and over.
        if out.last() != Some(&(key, region)) {
            out.push((key, region));
        }
    })?;
    Ok(out)
}

/// Finds the chunks in some regions of the new artifact that are not in `held`, and counts the
/// bytes that are.
pub(super) fn scan<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    part: Range<usize>,
    (params, level): (CutParams, i32),
    held: &Held,
    advance: &dyn Fn(u64),
) -> io::Result<Scan> {
    let (mut scan, mut keys, mut packer) = (Scan::default(), Keys::default(), Packer::new(level));
    let mut seen = BTreeSet::new();
    each_chunk(artifact, regions, part, params, advance, |region, chunk| {
        scan.chunks += 1;
        let key = keys.of(&chunk);
        // A chunk is at most `CHUNK_BYTES_MAX`.
        let raw = chunk.data.len() as u32;
        match held.find(&key) {
            Some(from) => scan.count_held(region, u64::from(raw), from),
            None if seen.insert(key) => {
                let wire = packer.pack(chunk.data).bytes.len() as u32;
                scan.fresh.push(Fresh { key, region, raw, wire });
            }
            None => {}
        }
    })?;
    Ok(scan)
}

impl Scan {
    /// Merges consecutive parts.
    pub(super) fn of(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        for part in parts {
            all.fresh.extend(part.fresh);
            all.held.extend(part.held);
            all.chunks += part.chunks;
        }
        // A chunk that occurs in two parts is sent once.
        let mut seen = BTreeSet::new();
        all.fresh.retain(|fresh| seen.insert(fresh.key));
        all
    }

    fn count_held(&mut self, region: u32, bytes: u64, from: u32) {
        match self.held.last_mut().filter(|last| last.region == region) {
            Some(last) => {
                last.bytes += bytes;
                // Majority vote of Boyer and Moore, which needs to remember only one candidate.
                if last.from == from {
                    last.votes += bytes;
                } else if let Some(votes) = last.votes.checked_sub(bytes) {
                    last.votes = votes;
                } else {
                    (last.from, last.votes) = (from, bytes - last.votes);
                }
            }
            None => self.held.push(RegionHeld { region, bytes, from, votes: bytes }),
        }
    }

    /// Raw bytes and bytes on the wire of all fresh chunks.
    pub(super) fn cost(&self) -> (u64, u64) {
        self.fresh
            .iter()
            .fold((0, 0), |(raw, wire), fresh| (raw + u64::from(fresh.raw), wire + u64::from(fresh.wire)))
    }
}

fn each_chunk<R: ReadAt + ?Sized>(
    artifact: &R,
    regions: &Regions,
    part: Range<usize>,
    params: CutParams,
    advance: &dyn Fn(u64),
    mut each: impl FnMut(u32, CutChunk<'_>),
) -> io::Result<()> {
    let mut region = part.start;
    let mut batches = Batches::new(artifact, &regions.all()[part], params);
    let mut buffer = Vec::new();
    while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
        for chunk in batch.chunks() {
            while regions.all()[region].end() <= chunk.offset {
                region += 1;
            }
            // There are at most `REGIONS_MAX` regions.
            each(region as u32, chunk);
        }
        advance(batch.data().len() as u64);
        buffer = batch.into_buffer();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut::RegionKind;

    #[test]
    fn the_origin_of_most_of_a_region_wins_the_vote() {
        let mut scan = Scan::default();
        for (bytes, from) in [(10, 1), (30, 2), (5, 3), (40, 2), (10, 1)] {
            scan.count_held(7, bytes, from);
        }
        assert_eq!((scan.held[0].from, scan.held[0].bytes), (2, 95));
    }

    #[test]
    fn a_fresh_chunk_counts_once_however_often_and_in_however_many_parts() {
        let piece: Vec<u8> = (0..4000u32).flat_map(|n| (n * 7919).to_le_bytes()).collect();
        let new = piece.repeat(4);
        let parts = (0..4).map(|_| (piece.len() as u64, RegionKind::Plain, None));
        let regions = Regions::from_parts(parts).expect("small");
        let held = Held::of([]);
        let options = (CutParams::default(), 1);
        let half = |part| scan(&new, &regions, part, options, &held, &|_| {}).expect("memory");
        let all = Scan::of([half(0..2), half(2..4)]);
        assert_eq!(all.cost().0, piece.len() as u64);
        assert!(all.fresh.iter().all(|fresh| fresh.region == 0));
    }
}
