//! Ids of the chunks that patches read and rebuild.

use crate::ChunkId;

/// First number that stands for a chunk of a view. The origin, which counts from 1, does not get
/// this far.
const VIEWS_FROM: u64 = 1 << 60;

/// Most view chunks of one set, far more than it can use. Sets that are used together have
/// consecutive spans of this many numbers.
const SET_VIEW_CHUNKS: u64 = 1 << 32;

/// Number of a chunk of a view, from 0 in each patch set. Such a chunk exists only while a set is
/// made or applied, and cannot be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewChunkId(pub u64);

/// Chunk that a patch reads or rebuilds: a chunk of the origin ([`PatchChunkId::chunk`]) or a chunk
/// of a view ([`PatchChunkId::view_chunk`]).
///
/// It is one number, as in the index of a set (docs/formats.md, "Patch set"), and not an enum,
/// which would take twice the memory: a device holds one for each chunk that it wants, and ranges
/// of them for each patch. Chunks of the origin come before chunks of views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchChunkId(u64);

impl From<ChunkId> for PatchChunkId {
    fn from(id: ChunkId) -> Self {
        Self(id.0)
    }
}

impl From<ViewChunkId> for PatchChunkId {
    fn from(id: ViewChunkId) -> Self {
        Self(VIEWS_FROM + id.0)
    }
}

impl PatchChunkId {
    /// Returns the id of the origin's chunk; `None` for a chunk of a view.
    pub fn chunk(self) -> Option<ChunkId> {
        (self.0 < VIEWS_FROM).then_some(ChunkId(self.0))
    }

    /// Returns the number of the view's chunk; `None` for a chunk of the origin.
    pub fn view_chunk(self) -> Option<ViewChunkId> {
        self.0.checked_sub(VIEWS_FROM).map(ViewChunkId)
    }

    /// Returns the id that is `count` behind this one.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// Returns the ids of a range.
    pub(super) fn each(first: Self, last: Self) -> impl Iterator<Item = Self> {
        (first.0..=last.0).map(Self)
    }

    /// Moves a chunk of a view from the span of the first set to that of set number `set`.
    pub(super) fn in_set(self, set: usize) -> Self {
        self.view_chunk().map_or(self, |ViewChunkId(n)| ViewChunkId(n + set as u64 * SET_VIEW_CHUNKS).into())
    }

    /// Returns the number that stands for the chunk in the index of a set.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// Returns the chunks from `first` up to and without `end`, as numbers of an index. `None` if
    /// there is none, if some belong to views and some do not, or if the span of a set ends before.
    pub(super) fn range_of_numbers(first: u64, end: u64) -> Option<(Self, Self)> {
        let of_origin = first > 0 && end <= VIEWS_FROM;
        let of_views = first >= VIEWS_FROM && end <= VIEWS_FROM + SET_VIEW_CHUNKS;
        (first < end && (of_origin || of_views)).then_some((Self(first), Self(end - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_a_chunk_of_the_origin_or_of_a_view() {
        let (chunk, view) = (PatchChunkId::from(ChunkId(7)), PatchChunkId::from(ViewChunkId(7)));
        assert_eq!((chunk.chunk(), chunk.view_chunk()), (Some(ChunkId(7)), None));
        assert_eq!((view.chunk(), view.view_chunk()), (None, Some(ViewChunkId(7))));
        assert_eq!((chunk.number(), view.number()), (7, (1 << 60) + 7));
        assert!(chunk < view);
    }

    #[test]
    fn sets_used_together_have_different_view_chunks_and_the_same_chunks() {
        let (chunk, view) = (PatchChunkId::from(ChunkId(7)), PatchChunkId::from(ViewChunkId(7)));
        assert_eq!(chunk.in_set(2), chunk);
        assert_eq!((view.in_set(0), view.in_set(2).number()), (view, (1 << 60) + (2 << 32) + 7));
    }

    #[test]
    fn a_range_is_of_the_origin_or_of_views_and_never_empty() {
        let range = PatchChunkId::range_of_numbers;
        let views = 1 << 60;
        assert_eq!(range(1, 3), Some((PatchChunkId(1), PatchChunkId(2))));
        assert!(range(views - 1, views).is_some() && range(views, views + (1 << 32)).is_some());
        for (first, end) in [(0, 1), (3, 3), (views - 1, views + 1), (views, views + (1 << 32) + 1)] {
            assert_eq!(range(first, end), None, "{first}..{end}");
        }
    }
}
