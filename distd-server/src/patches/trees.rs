//! Hash trees of dm-verity in a release, which devices compute from their data.

use std::io;
use std::ops::Range;

use distd_core::bounds::PATCH_SET_BASES_MAX;
use distd_core::cut::ReadAt;
use distd_core::patch::Method;
use distd_core::patch::hash_tree::{find, is_computed};
use distd_core::patch::pair::{ChunkSpan, Need};

use super::artifact::StoredArtifact;

/// Most base chunks of all patches of hash trees in a set: the rest is for the other patches.
const BASES_MAX: u64 = PATCH_SET_BASES_MAX / 2;

/// Part of a tree that a patch computes. Chunks are indices in the release.
#[derive(Debug)]
pub(super) struct TreePatch {
    /// Chunks of the data, or of a lower level of the tree.
    pub(super) bases: Range<u32>,
    /// Chunks of the part.
    pub(super) targets: Range<u32>,
    pub(super) recipe: Vec<u8>,
}

/// Finds the parts of hash trees of which a chunk is wanted, in an order in which their bases are
/// there, and tries each with the code that devices run. Blocks: reads all data of such a tree.
///
/// # Errors
/// Any error from reading the release.
pub(super) fn tree_patches(release: &StoredArtifact, needs: &[Need]) -> io::Result<Vec<TreePatch>> {
    let spans = release.spans();
    let (mut patches, mut base_chunks) = (Vec::new(), 0u64);
    for tree in find(release)? {
        for part in &tree.parts {
            let (source, target) = (tree.source(part), tree.target(part));
            let (bases, targets) = (covering(spans, &source), covering(spans, &target));
            let wanted = &needs[targets.start as usize..targets.end as usize];
            // A release that was cut by older rules has other borders.
            if !wanted.contains(&Need::Wanted) || bytes_of(spans, &targets) != target {
                continue;
            }
            base_chunks += u64::from(bases.end - bases.start);
            if u64::from(bases.end - bases.start) > Method::STREAM_BASES_MAX || base_chunks > BASES_MAX {
                tracing::info!(release = release.len(), "the data of a hash tree has too many chunks");
                continue;
            }
            let base = bytes_of(spans, &bases);
            let recipe = tree.recipe(part, source.start - base.start).encode();
            if is_computed(release, &recipe, &[base], target) {
                patches.push(TreePatch { bases, targets, recipe });
            } else {
                tracing::info!(release = release.len(), "a hash tree does not follow from its data");
            }
        }
    }
    Ok(patches)
}

/// Returns the chunks that cover a range of the release.
fn covering(spans: &[ChunkSpan], range: &Range<u64>) -> Range<u32> {
    let first = spans.partition_point(|span| span.offset + u64::from(span.len) <= range.start);
    let end = spans.partition_point(|span| span.offset < range.end);
    first as u32..end.max(first) as u32
}

/// Returns the range of the bytes of consecutive chunks.
fn bytes_of(spans: &[ChunkSpan], chunks: &Range<u32>) -> Range<u64> {
    let chunks = &spans[chunks.start as usize..chunks.end as usize];
    let start = chunks.first().map_or(0, |first| first.offset);
    start..chunks.last().map_or(start, |last| last.offset + u64::from(last.len))
}
