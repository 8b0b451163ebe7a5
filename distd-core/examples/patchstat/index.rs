//! Cost of a patch set's index.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use distd_core::patch::pair::{ChunkSpan, Of, Patch, Side};
use distd_core::patch::{PatchChunkId, SetIndex, SetPatch, TargetRun, ViewChunkId};
use distd_core::{ChunkHash, ChunkId, ManifestId};

use crate::views::{Extended, Pass};

/// Returns the number of patches in the index, the index's bytes, and its bytes without the passes
/// through views.
pub(crate) fn index(
    old: Side<'_, Extended>,
    new: Side<'_, Extended>,
    patches: &[(usize, Patch)],
    passes: &[Pass],
) -> (usize, usize, usize) {
    let ids = [ids(old, new, Of::Old), ids(old, new, Of::New)];
    let side = |of: Of| if of == Of::Old { old.chunks } else { new.chunks };
    let mut found: Vec<SetPatch> = patches
        .iter()
        .map(|(_, patch)| SetPatch {
            codec: if patch.large { 163 } else { patch.codec.number() },
            packed: 1000 + patch.payload.len() as u64,
            bases: patch
                .bases
                .iter()
                .flat_map(|span| ranges(&ids[span.of as usize][to_usize(&span.chunks)]))
                .collect(),
            targets: patch
                .targets
                .iter()
                .flat_map(|range| runs(&ids[Of::New as usize], new.chunks, to_usize(range)))
                .collect(),
        })
        .collect();
    let encode = |patches: Vec<SetPatch>| {
        let index = SetIndex { from: ManifestId([1; 32]), to: ManifestId([2; 32]), patches };
        (index.patches.len(), index.encode().len())
    };
    let without = encode(found.clone()).1;
    for pass in passes {
        let (chunks, ids) = (side(pass.of), &ids[pass.of as usize]);
        let span = |part: &Range<u64>| {
            chunks.partition_point(|chunk| chunk.offset < part.start)
                ..chunks.partition_point(|chunk| chunk.offset < part.end)
        };
        found.push(SetPatch {
            codec: pass.method.number(),
            packed: 1000,
            bases: pass.bases.iter().flat_map(|part| ranges(&ids[span(part)])).collect(),
            targets: pass.targets.iter().flat_map(|part| runs(ids, chunks, span(part))).collect(),
        });
    }
    let (count, all) = encode(found);
    (count, all, without)
}

fn to_usize(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Returns the ids of all chunks of a side. Chunks of the artifacts are numbered in order; chunks
/// of views have a range of ids of their own.
fn ids(old: Side<'_, Extended>, new: Side<'_, Extended>, of: Of) -> Vec<PatchChunkId> {
    let mut known: HashMap<ChunkHash, PatchChunkId> = HashMap::new();
    let mut next = PatchChunkId::from(ChunkId(1));
    for side in [old, new] {
        for chunk in side.chunks.iter().filter(|chunk| chunk.offset < side.bytes.artifact_len()) {
            known.entry(chunk.hash).or_insert_with(|| {
                let id = next;
                next = id.plus(1);
                id
            });
        }
    }
    next = ViewChunkId(0).into();
    for side in [old, new] {
        for chunk in side.chunks.iter().filter(|chunk| chunk.offset >= side.bytes.artifact_len()) {
            known.entry(chunk.hash).or_insert_with(|| {
                let id = next;
                next = id.plus(1);
                id
            });
        }
    }
    let side = if of == Of::Old { old } else { new };
    side.chunks.iter().map(|chunk| known[&chunk.hash]).collect()
}

fn ranges(ids: &[PatchChunkId]) -> Vec<RangeInclusive<PatchChunkId>> {
    let mut out: Vec<RangeInclusive<PatchChunkId>> = Vec::new();
    for id in ids {
        match out.last_mut() {
            Some(last) if last.end().plus(1) == *id => *last = *last.start()..=*id,
            _ => out.push(*id..=*id),
        }
    }
    out
}

fn runs(ids: &[PatchChunkId], chunks: &[ChunkSpan], range: Range<usize>) -> Vec<TargetRun> {
    let mut out: Vec<TargetRun> = Vec::new();
    for index in range {
        let (id, len) = (ids[index], chunks[index].len);
        match out.last_mut() {
            Some(run) if run.first.plus(run.lens.len() as u64) == id => run.lens.push(len),
            _ => out.push(TargetRun { first: id, lens: vec![len] }),
        }
    }
    out
}
