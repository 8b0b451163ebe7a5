//! Outline of a manifest: the manifest's entries expressed through another manifest and a patch
//! set, without the hashes of the chunks that the set rebuilds.
//!
//! Where a small change moves block addresses, thousands of short chunks change, and their hashes
//! alone would be larger than the change. A device that applies the set anyway can hash the rebuilt
//! chunks. With the outline it then has every entry, builds the manifest, and checks the manifest's
//! id. So an outline needs no trust.
//!
//! Bytes: docs/formats.md, "Outline".

use std::collections::BTreeMap;

use crate::bounds::{CHUNK_BYTES_MAX, PATCH_INDEX_BYTES_MAX};
use crate::manifest::Entry;
use crate::proto::{put_varint, take_varint, unzigzag, zigzag};
use crate::{ChunkHash, ChunkId};

/// First bytes of an outline.
const MAGIC: &[u8; 8] = b"distdol1";

/// Run of consecutive entries of the described manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Run {
    /// Entries of the other manifest, from position `first` on.
    Copy { first: u64, count: u64 },
    /// Chunks that the set rebuilds, from id `first` on.
    Rebuilt { first: ChunkId, count: u64 },
    /// A chunk from elsewhere.
    Chunk(Entry),
}

/// Entries of a manifest without the hashes of rebuilt chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    runs: Vec<Run>,
}

/// Error for bytes that are not a valid outline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outline of a manifest is damaged")]
pub struct OutlineError;

impl Outline {
    /// Describes `to` by the entries of `from` and the chunks for which `is_rebuilt` is true.
    ///
    /// Memory: 24 bytes a chunk of `from`.
    pub fn new(from: &[Entry], to: &[Entry], is_rebuilt: impl Fn(ChunkId) -> bool) -> Self {
        let mut positions: BTreeMap<ChunkId, u64> = BTreeMap::new();
        for (entry, position) in from.iter().zip(0..) {
            positions.entry(entry.id).or_insert(position);
        }
        let mut runs: Vec<Run> = Vec::new();
        for entry in to {
            if is_rebuilt(entry.id) {
                match runs.last_mut() {
                    Some(Run::Rebuilt { first, count }) if first.0 + *count == entry.id.0 => *count += 1,
                    _ => runs.push(Run::Rebuilt { first: entry.id, count: 1 }),
                }
                continue;
            }
            // A chunk may occur several times in `from`: to continue the previous copy is the
            // cheapest encoding.
            if let Some(Run::Copy { first, count }) = runs.last_mut()
                && from.get((*first + *count) as usize) == Some(entry)
            {
                *count += 1;
                continue;
            }
            match positions.get(&entry.id) {
                Some(position) if from[*position as usize] == *entry => {
                    runs.push(Run::Copy { first: *position, count: 1 });
                }
                _ => runs.push(Run::Chunk(*entry)),
            }
        }
        Self { runs }
    }

    /// Packs the outline; `None` if it has more than [`PATCH_INDEX_BYTES_MAX`] bytes unpacked.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = MAGIC.to_vec();
        let mut expected = Expected::default();
        for run in &self.runs {
            match run {
                Run::Copy { first, count } => {
                    put_varint(&mut out, count << 2);
                    put_varint(&mut out, zigzag(*first as i64 - expected.position as i64));
                    expected.position = first + count;
                }
                Run::Rebuilt { first, count } => {
                    put_varint(&mut out, count << 2 | 1);
                    put_varint(&mut out, zigzag(first.0 as i64 - expected.id as i64));
                    expected.id = first.0 + count;
                    // Rebuilt chunks mostly replace the same number of chunks of `from`.
                    expected.position += count;
                }
                Run::Chunk(entry) => {
                    put_varint(&mut out, 2);
                    put_varint(&mut out, entry.id.0);
                    put_varint(&mut out, u64::from(entry.len));
                    out.extend_from_slice(entry.hash.as_bytes());
                    expected.position += 1;
                }
            }
        }
        let packed = zstd::bulk::compress(&out, 19).expect("compressing memory to memory does not fail");
        (out.len() as u64 <= PATCH_INDEX_BYTES_MAX).then_some(packed)
    }

    /// Unpacks an outline.
    ///
    /// # Errors
    /// [`OutlineError`] for invalid bytes. Memory is a small multiple of the unpacked outline,
    /// which is at most [`PATCH_INDEX_BYTES_MAX`] bytes.
    pub fn decode(packed: &[u8]) -> Result<Self, OutlineError> {
        let claimed = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
        let bytes = claimed.filter(|bytes| *bytes <= PATCH_INDEX_BYTES_MAX).ok_or(OutlineError)?;
        let raw = zstd::bulk::decompress(packed, bytes as usize).map_err(|_| OutlineError)?;
        let mut rest = raw.strip_prefix(MAGIC).ok_or(OutlineError)?;
        let mut runs = Vec::new();
        let mut expected = Expected::default();
        let step = |rest: &mut &[u8], from: u64| {
            let step = unzigzag(take_varint(rest).ok_or(OutlineError)?);
            let value = i64::try_from(from).ok().and_then(|from| from.checked_add(step));
            u64::try_from(value.ok_or(OutlineError)?).map_err(|_| OutlineError)
        };
        while !rest.is_empty() {
            let head = take_varint(&mut rest).ok_or(OutlineError)?;
            let (kind, count) = (head & 3, head >> 2);
            if kind < 2 && (count == 0 || count > 1 << 40) {
                return Err(OutlineError);
            }
            runs.push(match kind {
                0 => {
                    let first = step(&mut rest, expected.position)?;
                    expected.position = first.checked_add(count).ok_or(OutlineError)?;
                    Run::Copy { first, count }
                }
                1 => {
                    let first = step(&mut rest, expected.id)?;
                    expected.id = first.checked_add(count).ok_or(OutlineError)?;
                    expected.position = expected.position.checked_add(count).ok_or(OutlineError)?;
                    Run::Rebuilt { first: ChunkId(first), count }
                }
                2 => {
                    let id = take_varint(&mut rest).ok_or(OutlineError)?;
                    let len = take_varint(&mut rest).filter(|len| (1..=CHUNK_BYTES_MAX as u64).contains(len));
                    let (hash, behind) = rest.split_at_checked(32).ok_or(OutlineError)?;
                    rest = behind;
                    let hash = ChunkHash::from_slice(hash).ok_or(OutlineError)?;
                    expected.position = expected.position.checked_add(1).ok_or(OutlineError)?;
                    Run::Chunk(Entry { id: ChunkId(id), hash, len: len.ok_or(OutlineError)? as u32 })
                }
                _ => return Err(OutlineError),
            });
        }
        Ok(Self { runs })
    }

    /// Returns the manifest's entries. `None` when a run reaches outside `from`, when `rebuilt`
    /// lacks a chunk, or when there are more than `max` entries.
    pub fn entries(
        &self,
        from: &[Entry],
        rebuilt: impl Fn(ChunkId) -> Option<(ChunkHash, u32)>,
        max: u64,
    ) -> Option<Vec<Entry>> {
        let count = |run: &Run| match run {
            Run::Copy { count, .. } | Run::Rebuilt { count, .. } => *count,
            Run::Chunk(_) => 1,
        };
        let total = self.runs.iter().try_fold(0u64, |sum, run| sum.checked_add(count(run)))?;
        if total > max {
            return None;
        }
        let mut entries = Vec::with_capacity(total as usize);
        for run in &self.runs {
            match run {
                Run::Copy { first, count } => {
                    let first = usize::try_from(*first).ok()?;
                    entries.extend_from_slice(from.get(first..first.checked_add(*count as usize)?)?);
                }
                Run::Rebuilt { first, count } => {
                    for id in (first.0..first.0 + count).map(ChunkId) {
                        let (hash, len) = rebuilt(id)?;
                        entries.push(Entry { id, hash, len });
                    }
                }
                Run::Chunk(entry) => entries.push(*entry),
            }
        }
        Some(entries)
    }
}

/// Values that the next run is encoded relative to.
#[derive(Default)]
struct Expected {
    position: u64,
    id: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(n: u64) -> Entry {
        Entry { id: ChunkId(n), hash: ChunkHash::of(&n.to_be_bytes()), len: 1 + (n % 1000) as u32 }
    }

    fn entries(ids: &[u64]) -> Vec<Entry> {
        ids.iter().copied().map(entry).collect()
    }

    proptest! {
        #[test]
        fn entries_survive_encoding(
            from in prop::collection::vec(1u64..60, 0..80), to in prop::collection::vec(1u64..120, 0..80),
        ) {
            let (from, to) = (entries(&from), entries(&to));
            // The set rebuilds the chunks with ids above 80.
            let rebuilt = |id: ChunkId| id.0 > 80;
            let outline = Outline::new(&from, &to, rebuilt);
            let packed = outline.encode().expect("small");
            let back = Outline::decode(&packed).expect("own bytes");
            prop_assert_eq!(&back, &outline);
            let hash = |id: ChunkId| rebuilt(id).then(|| (entry(id.0).hash, entry(id.0).len));
            prop_assert_eq!(back.entries(&from, hash, 80), Some(to.clone()));
            if !to.is_empty() {
                prop_assert_eq!(back.entries(&from, hash, to.len() as u64 - 1), None);
            }
        }

        #[test]
        fn any_bytes_end_in_an_outline_or_an_error(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut all = MAGIC.to_vec();
            all.extend(raw);
            let packed = zstd::bulk::compress(&all, 1).expect("zstd");
            if let Ok(outline) = Outline::decode(&packed) {
                let _ = outline.entries(&entries(&[1, 2, 3]), |_| None, 1000);
            }
        }
    }

    #[test]
    fn an_outline_with_every_fifth_chunk_replaced_takes_under_200_bytes() {
        let from: Vec<u64> = (1..=50_000).collect();
        let to: Vec<u64> = from.iter().map(|n| if n % 5 == 0 { 60_000 + n / 5 } else { *n }).collect();
        let (from, to) = (entries(&from), entries(&to));
        let packed = Outline::new(&from, &to, |id| id.0 > 60_000).encode().expect("small");
        assert!(packed.len() < 200, "{}", packed.len());
        assert_eq!(Outline::decode(b""), Err(OutlineError));
    }
}
