//! Selection of the chunks to rebuild.

use super::ChunkSpan;

/// State of a chunk of the new release on the device before any patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The old release has the chunk.
    Held,
    /// A patch must rebuild the chunk.
    Wanted,
    /// Neither: a repeat of a wanted chunk, or a chunk that comes from elsewhere. Never a target,
    /// never a base.
    Other,
}

/// Finds the chunks of `new` that the `old` release lacks. Of equal chunks, the first is wanted.
pub fn needs(old: &[ChunkSpan], new: &[ChunkSpan]) -> Vec<Need> {
    needs_beside(old, new, new.len(), |_| false)
}

/// Finds the chunks that the `old` release lacks, as [`needs`] does, in a release with views. The
/// chunks of the views start at index `artifact`; the chunks for which `made` is true are packed
/// again from views. Unless held, these chunks are [`Need::Other`], and so are their repeats in the
/// artifact. Of equal chunks in the views, the first that is not made is wanted, because a view
/// cannot come from a chunk that is made from it.
///
/// Made chunks and chunks of views can be equal: a file in an image that compresses badly lies in
/// plain clusters, which have chunks in common with the file's view.
pub fn needs_beside(
    old: &[ChunkSpan],
    new: &[ChunkSpan],
    artifact: usize,
    made: impl Fn(usize) -> bool,
) -> Vec<Need> {
    let mut held: Vec<_> = old.iter().map(|chunk| chunk.hash).collect();
    held.sort_unstable();
    let mut order: Vec<_> = new.iter().zip(0u32..).map(|(chunk, index)| (chunk.hash, index)).collect();
    order.sort_unstable();
    let mut needs = vec![Need::Held; new.len()];
    for equal in order.chunk_by(|(a, _), (b, _)| a == b) {
        if held.binary_search(&equal[0].0).is_ok() {
            continue;
        }
        let is_made = |index: u32| made(index as usize);
        let any_made = equal.iter().any(|(_, index)| is_made(*index));
        let mut others = equal.iter().filter(|(_, index)| !is_made(*index));
        let wanted = others.find(|(_, index)| !any_made || *index as usize >= artifact);
        for (_, index) in equal {
            let first = wanted.is_some_and(|(_, wanted)| wanted == index);
            needs[*index as usize] = if first { Need::Wanted } else { Need::Other };
        }
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkHash;

    #[test]
    fn a_chunk_that_a_view_makes_is_wanted_in_views_only() {
        let chunks = |hashes: &[u8]| -> Vec<ChunkSpan> {
            let span = |(at, hash): (usize, &u8)| ChunkSpan {
                offset: at as u64,
                len: 1,
                hash: ChunkHash([*hash; 32]),
            };
            hashes.iter().enumerate().map(span).collect()
        };
        let (old, new) = (chunks(&[1]), chunks(&[1, 2, 3, 2, 3, 2]));
        use Need::{Held, Other, Wanted};
        assert_eq!(needs(&old, &new), [Held, Wanted, Wanted, Other, Other, Other]);
        // The views start at index 4. Hash 2 is made, and repeated in the artifact and in a view;
        // hash 3 is made, and repeated in a view.
        let beside = needs_beside(&old, &new, 4, |index| index == 1 || index == 2);
        assert_eq!(beside, [Held, Other, Other, Other, Wanted, Wanted]);
        let beside = needs_beside(&old, &new, 6, |index| index == 1 || index == 2);
        assert_eq!(beside, [Held, Other, Other, Other, Other, Other]);
    }
}
