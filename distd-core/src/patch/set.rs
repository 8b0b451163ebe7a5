//! Index of a patch set: its patches, their bases and the chunks they rebuild.
//!
//! A set belongs to a pair of manifests and is itself an artifact of kind
//! [`Kind::PatchSet`](crate::manifest::Kind::PatchSet): the packed index, cut into chunks of at
//! most `CHUNK_BYTES_MAX`, and behind it the payload of each patch, one chunk each. So payloads are
//! numbered, stored, cached and swarmed like all chunks, and a node with the set's manifest can
//! tell which peer sent a wrong byte. Bytes: docs/formats.md, "Patch set".

use std::ops::RangeInclusive;

use super::cost::{Cost, MEMORY_CLASSES};
use super::{PatchChunkId, PatchMethod};
use crate::ManifestId;
use crate::bounds::{
    CHUNK_BYTES_MAX, PATCH_BASE_BYTES_MAX, PATCH_INDEX_BYTES_MAX, PATCH_SET_BASES_MAX,
    PATCH_TARGET_BYTES_MAX, PATCHES_MAX, VIEW_BYTES_MAX,
};
use crate::proto::{put_varint, take_varint, unzigzag, zigzag};

/// First bytes of an index.
const MAGIC: &[u8; 8] = b"distdps1";

/// Most base or target chunks of one patch: the limit on base bytes, in chunks of the smallest
/// size.
const CHUNKS_MAX: u64 = (PATCH_BASE_BYTES_MAX / 64) as u64;

/// Most chunks of a view: its largest size in chunks of 4 KiB, a quarter of the default average.
const VIEW_CHUNKS_MAX: u64 = VIEW_BYTES_MAX / 4096;

/// Method by which a patch turns base and payload into the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A codec that works in memory, within the limits of patches.
    Buffer(PatchMethod),
    /// Unpacks packed files of the old release into their view. The payload is the unpack recipe
    /// ([`view::unpack_base`](super::view::unpack_base)), for gzip one byte. Streaming.
    Inflate(Cost),
    /// Packs a view again ([`view::repack`](super::view::repack)). The payload is the recipe.
    /// Streaming.
    Repack(Cost),
    /// Computes a part of a hash tree from its data ([`hash_tree`](super::hash_tree)). The payload
    /// is the recipe. Streaming.
    HashTree,
    /// Rebuilds a large file ([`rebuild_large`](super::rebuild_large)). The payload is the patch,
    /// or its last part; the base ends in the parts before. The base is held in memory, the target
    /// streams.
    Large(Cost),
}

/// Numbers of the methods that state no cost.
const INFLATE: u8 = 128;
const REPACK: u8 = 129;
const HASH_TREE: u8 = 130;

/// Numbers of [`Method::Inflate`] with the first class of memory, and of [`Method::Repack`] with
/// the first classes of memory and speed. Each class of speed has the numbers of all classes of
/// memory.
const INFLATE_FROM: u8 = 144;
/// Number of [`Method::Large`] with the first class of memory.
const LARGE_FROM: u8 = 160;
const REPACK_FROM: u8 = 192;

impl Method {
    /// Returns the method with this number; `None` if this build does not know it.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            INFLATE => Some(Self::Inflate(Cost::UNSTATED)),
            REPACK => Some(Self::Repack(Cost::UNSTATED)),
            HASH_TREE => Some(Self::HashTree),
            LARGE_FROM..REPACK_FROM => Cost::of_classes(number - LARGE_FROM, 0).map(Self::Large),
            INFLATE_FROM..LARGE_FROM => Cost::of_classes(number - INFLATE_FROM, 0).map(Self::Inflate),
            REPACK_FROM.. => {
                let number = number - REPACK_FROM;
                Cost::of_classes(number % MEMORY_CLASSES, number / MEMORY_CLASSES).map(Self::Repack)
            }
            _ => PatchMethod::from_number(number).map(Self::Buffer),
        }
    }

    /// Most base chunks of a patch of a streaming method.
    pub const STREAM_BASES_MAX: u64 = VIEW_CHUNKS_MAX;

    /// Number of the method in an index. The index does not state how fast packed files unpack.
    pub fn number(self) -> u8 {
        match self {
            Self::Buffer(method) => method.number(),
            Self::Inflate(cost) => cost.classes().map_or(INFLATE, |(memory, _)| INFLATE_FROM + memory),
            Self::Repack(cost) => {
                cost.classes().map_or(REPACK, |(memory, rate)| REPACK_FROM + rate * MEMORY_CLASSES + memory)
            }
            Self::HashTree => HASH_TREE,
            Self::Large(cost) => LARGE_FROM + cost.classes().map_or(0, |(memory, _)| memory),
        }
    }

    /// Cost of a patch of the method, as the index states it.
    pub fn cost(self) -> Cost {
        match self {
            Self::Inflate(cost) | Self::Repack(cost) | Self::Large(cost) => cost,
            Self::Buffer(_) | Self::HashTree => Cost::UNSTATED,
        }
    }

    /// Most memory that a patch of the method needs beside its chunks, bytes. `None` for methods
    /// whose memory follows from the lengths of base and target.
    pub fn memory(self) -> Option<u64> {
        match self {
            Self::Buffer(_) => None,
            Self::Inflate(_) | Self::Repack(_) | Self::HashTree | Self::Large(_) => {
                Some(self.cost().memory())
            }
        }
    }

    /// Returns the maximum numbers of base chunks and of raw target bytes. Numbers from 128 on
    /// stand for streaming methods, known or not.
    fn limits(number: u8) -> (u64, u64) {
        if number >= 128 {
            (VIEW_CHUNKS_MAX, VIEW_BYTES_MAX)
        } else {
            (CHUNKS_MAX, PATCH_TARGET_BYTES_MAX as u64)
        }
    }
}

/// Run of consecutive chunks that a patch rebuilds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRun {
    /// Id of the first chunk.
    pub first: PatchChunkId,
    /// Raw length of each chunk in bytes; never empty.
    pub lens: Vec<u32>,
}

impl TargetRun {
    /// Returns the ids with their raw lengths.
    pub fn chunks(&self) -> impl Iterator<Item = (PatchChunkId, u32)> + '_ {
        (0..).map(|n| self.first.plus(n)).zip(self.lens.iter().copied())
    }
}

/// Patch of a set. Payloads follow the index in the order of the patches, one chunk each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPatch {
    /// Number of the method. A build that does not know it skips this patch, but can use the rest
    /// of the set.
    pub codec: u8,
    /// Bytes that the targets would cost as chunks, as the origin packed them.
    pub packed: u64,
    /// Base: the raw bytes of these chunks, concatenated. Empty for a solid segment.
    pub bases: Vec<RangeInclusive<PatchChunkId>>,
    /// Rebuilt chunks, in the order of their bytes in the target.
    pub targets: Vec<TargetRun>,
}

impl SetPatch {
    /// Method of the payload; `None` if this build does not know it.
    pub fn method(&self) -> Option<Method> {
        Method::from_number(self.codec)
    }

    /// Returns the ids of the base chunks.
    pub fn base_ids(&self) -> impl Iterator<Item = PatchChunkId> + '_ {
        self.bases.iter().flat_map(|range| PatchChunkId::each(*range.start(), *range.end()))
    }

    /// Returns the target chunks with their raw lengths.
    pub fn target_chunks(&self) -> impl Iterator<Item = (PatchChunkId, u32)> + '_ {
        self.targets.iter().flat_map(TargetRun::chunks)
    }

    /// Raw bytes of all targets together.
    pub fn target_bytes(&self) -> usize {
        self.target_chunks().map(|(_, len)| len as usize).sum()
    }
}

/// All patches of a set, in an order in which each base is available when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetIndex {
    /// Manifest that the set starts from.
    pub from: ManifestId,
    /// Manifest that the set leads to.
    pub to: ManifestId,
    /// Patches, in the order of use.
    pub patches: Vec<SetPatch>,
}

/// Error for bytes that are not a valid index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// The bytes are not an index of this version.
    #[error("not the index of a patch set, or of a version that this build does not read")]
    Magic,
    /// The index is cut off, has bytes behind its end, or is not packed as it should be.
    #[error("the index of a patch set is damaged")]
    Damaged,
    /// A number is outside its bounds.
    #[error("the index of a patch set has {0} out of bounds")]
    Bounds(&'static str),
}

/// Ids behind the last range of each kind. First ids are encoded as steps from there: ranges are in
/// artifact order, so most steps are 0.
#[derive(Default)]
struct Steps {
    bases: u64,
    targets: u64,
    /// Base chunks named so far.
    base_chunks: u64,
}

fn put_step(out: &mut Vec<u8>, first: PatchChunkId, last: &mut u64, count: u64) {
    put_varint(out, zigzag(first.number() as i64 - *last as i64));
    put_varint(out, count);
    *last = first.number() + count;
}

impl SetIndex {
    /// Moves the ids of view chunks into the span of set number `set`, so that sets used together
    /// do not refer to each other's views.
    pub fn move_views(&mut self, set: usize) {
        for patch in &mut self.patches {
            for range in &mut patch.bases {
                *range = range.start().in_set(set)..=range.end().in_set(set);
            }
            for run in &mut patch.targets {
                run.first = run.first.in_set(set);
            }
        }
    }

    /// Packs the index, as it stands at the start of the set.
    ///
    /// # Panics
    /// If an id is 2^61 or above, which neither origins nor views reach.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.from.as_bytes());
        out.extend_from_slice(self.to.as_bytes());
        put_varint(&mut out, self.patches.len() as u64);
        let mut last = Steps::default();
        for patch in &self.patches {
            put_varint(&mut out, u64::from(patch.codec));
            put_varint(&mut out, patch.packed);
            put_varint(&mut out, patch.bases.len() as u64);
            for range in &patch.bases {
                let (first, last_id) = (*range.start(), *range.end());
                put_step(&mut out, first, &mut last.bases, last_id.number() - first.number() + 1);
            }
            put_varint(&mut out, patch.targets.len() as u64);
            for run in &patch.targets {
                put_step(&mut out, run.first, &mut last.targets, run.lens.len() as u64);
                for len in &run.lens {
                    put_varint(&mut out, u64::from(*len));
                }
            }
        }
        zstd::bulk::compress(&out, 19).expect("compressing memory to memory does not fail")
    }

    /// Unpacks an index from the start of a set.
    ///
    /// # Errors
    /// [`SetError`] for invalid bytes. A returned index keeps the limits on bytes of base and
    /// target. Memory is a small multiple of the unpacked index, which is at most
    /// [`PATCH_INDEX_BYTES_MAX`] bytes.
    pub fn decode(packed: &[u8]) -> Result<Self, SetError> {
        let claimed = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
        let bytes = claimed.filter(|bytes| *bytes <= PATCH_INDEX_BYTES_MAX).ok_or(SetError::Damaged)?;
        let raw = zstd::bulk::decompress(packed, bytes as usize).map_err(|_| SetError::Damaged)?;
        let rest = raw.strip_prefix(MAGIC).ok_or(SetError::Magic)?;
        let (ids, mut rest) = rest.split_at_checked(64).ok_or(SetError::Damaged)?;
        let id = |bytes: &[u8]| ManifestId::from_slice(bytes).ok_or(SetError::Damaged);
        let (from, to) = (id(&ids[..32])?, id(&ids[32..])?);
        let count = take(&mut rest)?;
        // Each patch takes at least four bytes.
        if count > PATCHES_MAX as u64 || count > rest.len() as u64 / 4 {
            return Err(SetError::Bounds("the number of patches"));
        }
        let mut last = Steps::default();
        let mut patches = Vec::with_capacity(count as usize);
        for _ in 0..count {
            patches.push(take_patch(&mut rest, &mut last)?);
        }
        if rest.is_empty() { Ok(Self { from, to, patches }) } else { Err(SetError::Damaged) }
    }
}

fn take(rest: &mut &[u8]) -> Result<u64, SetError> {
    take_varint(rest).ok_or(SetError::Damaged)
}

/// Decodes a range of ids; also returns their number.
fn take_step(rest: &mut &[u8], last: &mut u64) -> Result<(RangeInclusive<PatchChunkId>, u64), SetError> {
    let bad = SetError::Bounds("a chunk id");
    let first = (*last as i64).checked_add(unzigzag(take(rest)?)).ok_or(bad)?;
    let first = u64::try_from(first).map_err(|_| bad)?;
    let count = take(rest)?;
    let end = first.checked_add(count).ok_or(bad)?;
    let (first, last_id) = PatchChunkId::range_of_numbers(first, end).ok_or(bad)?;
    *last = end;
    Ok((first..=last_id, count))
}

fn take_patch(rest: &mut &[u8], last: &mut Steps) -> Result<SetPatch, SetError> {
    let codec = u8::try_from(take(rest)?).map_err(|_| SetError::Bounds("a codec"))?;
    let (chunks_max, bytes_max) = Method::limits(codec);
    let packed = take(rest)?;
    let ranges = take(rest)?;
    // Each range takes at least two bytes.
    if ranges > rest.len() as u64 / 2 {
        return Err(SetError::Bounds("the number of base ranges"));
    }
    let (mut bases, mut chunks) = (Vec::with_capacity(ranges as usize), 0);
    for _ in 0..ranges {
        let (range, count) = take_step(rest, &mut last.bases)?;
        chunks += count;
        last.base_chunks += count;
        if chunks > chunks_max || last.base_chunks > PATCH_SET_BASES_MAX {
            return Err(SetError::Bounds("the number of base chunks"));
        }
        bases.push(range);
    }
    let runs = take(rest)?;
    // Each run takes at least three bytes.
    if runs == 0 || runs > rest.len() as u64 / 3 {
        return Err(SetError::Bounds("the number of targets"));
    }
    let (mut targets, mut bytes) = (Vec::with_capacity(runs as usize), 0u64);
    for _ in 0..runs {
        let (range, count) = take_step(rest, &mut last.targets)?;
        if count > rest.len() as u64 {
            return Err(SetError::Bounds("the number of target chunks"));
        }
        let mut lens = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let len = take(rest)?;
            if len == 0 || len > CHUNK_BYTES_MAX as u64 {
                return Err(SetError::Bounds("a chunk length"));
            }
            bytes += len;
            lens.push(len as u32);
        }
        if bytes > bytes_max {
            return Err(SetError::Bounds("the number of bytes that a patch rebuilds"));
        }
        targets.push(TargetRun { first: *range.start(), lens });
    }
    Ok(SetPatch { codec, packed, bases, targets })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ChunkId;

    fn sample() -> SetIndex {
        let id = |n| PatchChunkId::from(ChunkId(n));
        SetIndex {
            from: ManifestId([1; 32]),
            to: ManifestId([2; 32]),
            patches: vec![
                SetPatch {
                    codec: 1,
                    packed: 50_000,
                    bases: vec![],
                    targets: vec![TargetRun { first: id(900), lens: vec![4096, 70, 65_536] }],
                },
                SetPatch {
                    codec: 2,
                    packed: 9,
                    bases: vec![id(3)..=id(40), id(900)..=id(901), id(1)..=id(1)],
                    targets: vec![
                        TargetRun { first: id(903), lens: vec![1] },
                        TargetRun { first: id(910), lens: vec![1 << 20] },
                    ],
                },
            ],
        }
    }

    #[test]
    fn an_index_survives_encoding_and_its_bytes_never_change() {
        let index = sample();
        let packed = index.encode();
        assert_eq!(SetIndex::decode(&packed), Ok(index));
        const GOLDEN: &[u8] = include_bytes!("testdata/set_index_v1.bin");
        let raw = |packed| zstd::bulk::decompress(packed, 1000).expect("zstd");
        // A newer zstd may pack better; the unpacked bytes may not change.
        assert_eq!(raw(GOLDEN), raw(&packed));
        assert_eq!(SetIndex::decode(GOLDEN), Ok(sample()));
    }

    fn repack(raw: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(raw, 1).expect("zstd")
    }

    #[test]
    fn a_damaged_index_is_refused_or_differs_and_stays_within_bounds() {
        let raw = zstd::bulk::decompress(&sample().encode(), 1000).expect("zstd");
        for at in 0..raw.len() {
            assert!(SetIndex::decode(&repack(&raw[..at])).is_err(), "cut to {at}");
            for bit in 0..8 {
                let mut bad = raw.clone();
                bad[at] ^= 1 << bit;
                if let Ok(index) = SetIndex::decode(&repack(&bad)) {
                    assert_ne!(index, sample());
                    let fits = |p: &SetPatch| p.target_bytes() as u64 <= Method::limits(p.codec).1;
                    assert!(index.patches.iter().all(fits));
                }
            }
        }
        let mut long = raw;
        long.push(0);
        assert_eq!(SetIndex::decode(&repack(&long)), Err(SetError::Damaged));
        assert_eq!(SetIndex::decode(b""), Err(SetError::Damaged));
        let bomb = repack(&vec![0; PATCH_INDEX_BYTES_MAX as usize + 1]);
        assert_eq!(SetIndex::decode(&bomb), Err(SetError::Damaged));
    }

    #[test]
    fn a_few_bytes_cannot_name_unbounded_base_chunks() {
        let patch = |n: u64| SetPatch {
            codec: 1,
            packed: 1,
            bases: vec![ChunkId(1).into()..=ChunkId(CHUNKS_MAX).into()],
            targets: vec![TargetRun { first: ChunkId(CHUNKS_MAX + n).into(), lens: vec![1] }],
        };
        let most = PATCH_SET_BASES_MAX / CHUNKS_MAX;
        let mut index = SetIndex { patches: (1..=most).map(patch).collect(), ..sample() };
        assert_eq!(SetIndex::decode(&index.encode()).as_ref(), Ok(&index));
        index.patches.push(patch(most + 1));
        let refused = Err(SetError::Bounds("the number of base chunks"));
        assert_eq!(SetIndex::decode(&index.encode()), refused);
    }

    #[test]
    fn every_method_has_a_number_of_its_own_and_most_numbers_are_free() {
        let known: Vec<u8> = (0..=u8::MAX).filter(|number| Method::from_number(*number).is_some()).collect();
        for number in &known {
            assert_eq!(Method::from_number(*number).map(Method::number), Some(*number));
        }
        let streaming: Vec<u8> =
            [128, 129, 130].into_iter().chain(144..=151).chain(160..=167).chain(192..=223).collect();
        assert_eq!(known, [&[1, 2, 3], &streaming[..]].concat());
        let cost = Cost::new(880 << 20, 1_000_000).expect("a class");
        assert_eq!(Method::Repack(cost).number(), 222);
        assert_eq!(Method::Inflate(cost).number(), 150);
        assert_eq!(Method::Large(cost).number(), 166);
        assert_eq!(Method::Repack(cost).memory(), Some(1 << 30));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_index_or_an_error(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut all = MAGIC.to_vec();
            all.extend([7; 64]);
            all.extend(raw);
            let _ = SetIndex::decode(&repack(&all));
        }
    }
}
