//! The layout of a tree artifact: its listing, then its files.

use std::ops::Range;

use distd_core::tree::{DecodeListingError, Entry, EntryKind, Listing};

/// Offsets of the files of a tree in the artifact.
pub(crate) struct Layout {
    pub(super) listing_bytes: u64,
    pub(super) listing: Listing,
    /// Offset in the artifact, size, and index in the listing; only files, in order.
    files: Vec<(u64, u64, usize)>,
}

impl Layout {
    /// Decodes a listing and computes the offsets of its files.
    ///
    /// # Errors
    /// When the bytes are not a valid listing.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, DecodeListingError> {
        let listing = Listing::decode(bytes)?;
        let listing_bytes = bytes.len() as u64;
        let mut files = Vec::new();
        let mut offset = listing_bytes;
        for (position, entry) in listing.entries().iter().enumerate() {
            if let EntryKind::File { size } = entry.kind {
                files.push((offset, size, position));
                offset += size;
            }
        }
        Ok(Self { listing_bytes, listing, files })
    }

    /// Returns the length of the artifact that the layout describes, in bytes.
    pub(super) fn total(&self) -> u64 {
        self.listing_bytes + self.listing.file_bytes()
    }

    /// Returns the parts of `[offset, offset + len)` after the listing, each as the entry, the
    /// offset in its file, and the range of the buffer.
    pub(super) fn parts(&self, offset: u64, len: usize) -> Vec<(&Entry, u64, Range<usize>)> {
        let end = offset + len as u64;
        let first = self.files.partition_point(|(start, size, _)| start + size <= offset);
        let mut parts = Vec::new();
        for (start, size, position) in &self.files[first..] {
            if *start >= end {
                break;
            }
            let from = (*start).max(offset);
            let to = (start + size).min(end);
            if from < to {
                let range = (from - offset) as usize..(to - offset) as usize;
                parts.push((&self.listing.entries()[*position], from - start, range));
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use distd_core::tree::{RootDir, Time, TreePath};

    use super::*;

    #[test]
    fn a_range_over_several_files_is_split_at_their_borders() {
        let modified = Time { seconds: 0, nanos: 0 };
        let file = |path: &str, size| Entry {
            path: TreePath::new(path.as_bytes()).expect("valid"),
            kind: EntryKind::File { size },
            mode: 0o644,
            uid: 0,
            gid: 0,
            xattrs: Vec::new(),
            modified: Some(modified),
        };
        let root = RootDir { mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new(), modified };
        let listing = Listing::new(root, vec![file("a", 10), file("b", 0), file("c", 5)]).expect("valid");
        let bytes = listing.encode();
        let start = bytes.len() as u64;
        let layout = Layout::new(&bytes).expect("own bytes");
        let parts = layout.parts(start + 8, 5);
        let seen: Vec<_> =
            parts.iter().map(|(e, at, r)| (e.path.as_bytes().to_vec(), *at, r.clone())).collect();
        assert_eq!(seen, [(b"a".to_vec(), 8, 0..2), (b"c".to_vec(), 0, 2..5)]);
        assert!(layout.parts(start + 15, 3).is_empty());
        assert_eq!(layout.total(), start + 15);
    }
}
