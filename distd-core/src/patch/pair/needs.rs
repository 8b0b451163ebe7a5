//! What is to be rebuilt.

use super::ChunkSpan;

/// What the device knows about a chunk of the new release before any patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The old release has it.
    Held,
    /// To be rebuilt.
    Wanted,
    /// Neither: a repeat of a wanted one, or a chunk that comes from elsewhere. Never a target, never a base.
    Other,
}

/// Which chunks of `new` the `old` release lacks; of equal ones the first is wanted.
pub fn needs(old: &[ChunkSpan], new: &[ChunkSpan]) -> Vec<Need> {
    needs_beside(old, new, |_| false)
}

/// The same where the chunks with indices that `made` takes come from views: unless held they are [`Need::Other`], and
/// of equal ones the first of the others is wanted.
///
/// The two meet: a file in an image that compresses badly lies in plain clusters, which have chunks in common with
/// the file's view.
pub fn needs_beside(old: &[ChunkSpan], new: &[ChunkSpan], made: impl Fn(usize) -> bool) -> Vec<Need> {
    let mut held: Vec<_> = old.iter().map(|chunk| chunk.hash).collect();
    held.sort_unstable();
    let mut order: Vec<_> = new.iter().zip(0u32..).map(|(chunk, index)| (chunk.hash, index)).collect();
    order.sort_unstable();
    let mut needs = vec![Need::Held; new.len()];
    let mut previous = None;
    for (hash, index) in order {
        if held.binary_search(&hash).is_ok() {
            continue;
        }
        let other = made(index as usize) || previous == Some(hash);
        needs[index as usize] = if other { Need::Other } else { Need::Wanted };
        if !other {
            previous = Some(hash);
        }
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkHash;

    #[test]
    fn a_chunk_that_a_view_makes_and_another_place_has_is_wanted_once_there() {
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
        assert_eq!(needs_beside(&old, &new, |index| index < 3), [Held, Other, Other, Wanted, Wanted, Other]);
    }
}
