//! The manifest file: root and nodes in one piece, kept beside an artifact and in the origin's
//! object store.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::partial::{Assembly, InsertError};
use super::{Manifest, NodeError};
use crate::bounds::NODE_BYTES_MAX;

/// First bytes of a manifest file.
pub const FILE_MAGIC: &[u8; 8] = b"distdmf1";

/// Reason why a file is not a manifest file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The file does not begin with [`FILE_MAGIC`].
    #[error("not a distd manifest file")]
    Magic,
    /// The file ends inside a record, or lacks nodes that the root needs.
    #[error("manifest file is truncated")]
    Truncated,
    /// The root does not decode.
    #[error("manifest root is unusable")]
    Root(#[source] NodeError),
    /// A node does not decode, or does not belong to this manifest.
    #[error("manifest file is damaged")]
    Node(#[source] InsertError),
}

impl Manifest {
    /// Returns the manifest file's bytes: magic, root, then every distinct node once, highest level
    /// first (docs/formats.md, "Manifest file").
    pub fn to_file_bytes(&self) -> Bytes {
        let list = self.nodes_missing_from(&[]);
        let total: usize = list.iter().map(|(_, hash)| self.nodes[hash].len() + 5).sum();
        let mut out = BytesMut::with_capacity(FILE_MAGIC.len() + 4 + self.root_bytes.len() + total);
        out.put_slice(FILE_MAGIC);
        out.put_u32(self.root_bytes.len() as u32);
        out.put_slice(&self.root_bytes);
        for (level, hash) in list {
            let bytes = &self.nodes[&hash];
            out.put_u8(level);
            out.put_u32(bytes.len() as u32);
            out.put_slice(bytes);
        }
        out.freeze()
    }

    /// Reads a manifest file and checks every node against its parent.
    ///
    /// The nodes are slices of `bytes`, so the manifest takes as much memory as the file.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn from_file_bytes(mut bytes: Bytes) -> Result<Self, FileError> {
        if !bytes.starts_with(FILE_MAGIC) {
            return Err(FileError::Magic);
        }
        bytes.advance(FILE_MAGIC.len());
        let root = take(&mut bytes)?;
        let mut assembly = Assembly::new(root).map_err(FileError::Root)?;
        while bytes.has_remaining() {
            let level = bytes.get_u8();
            let node = take(&mut bytes)?;
            assembly.insert(level, node).map_err(FileError::Node)?;
        }
        assembly.finish().map_err(|_| FileError::Truncated)
    }
}

fn take(bytes: &mut Bytes) -> Result<Bytes, FileError> {
    let len = bytes.try_get_u32().map_err(|_| FileError::Truncated)? as usize;
    if len > NODE_BYTES_MAX || len > bytes.remaining() {
        return Err(FileError::Truncated);
    }
    Ok(bytes.split_to(len))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::cut::CutParams;
    use crate::manifest::{Builder, Entry, Kind};
    use crate::{ArtifactHash, ChunkHash, ChunkId};

    fn entry(n: u64) -> Entry {
        let hash = ChunkHash::of(&n.to_be_bytes());
        Entry { id: ChunkId(n + 1), hash, len: 4096 + (n % 60_000) as u32 }
    }

    fn manifest(chunks: impl IntoIterator<Item = u64>) -> Manifest {
        let mut builder = Builder::new(CutParams::default(), Kind::File);
        for n in chunks {
            builder.push(entry(n));
        }
        builder.finish(ArtifactHash([7; 32]))
    }

    #[test]
    fn every_chunk_count_to_1025_and_beyond_walks_back_in_order() {
        for count in (0..=1025).chain([4096, 70_001]) {
            let m = manifest(0..count);
            assert_eq!(m.root().chunks, count);
            let mut offset = 0;
            let mut walked = 0;
            for (n, at) in m.entries().enumerate() {
                assert_eq!(at.entry, entry(n as u64), "chunk {n} of {count}");
                assert_eq!(at.offset, offset);
                offset += u64::from(at.entry.len);
                walked += 1;
            }
            assert_eq!((walked, offset), (count, m.root().bytes));
        }
    }

    #[test]
    fn a_walk_from_an_offset_begins_with_the_chunk_that_has_its_byte() {
        for count in [0, 1, 255, 256, 257, 5000, 70_001] {
            let m = manifest(0..count);
            let all: Vec<_> = m.entries().collect();
            let borders = all.iter().step_by(977).flat_map(|at| {
                let end = at.offset + u64::from(at.entry.len);
                [at.offset, at.offset + 1, end - 1, end]
            });
            for offset in borders.chain([0, m.root().bytes, u64::MAX]) {
                let first = all.partition_point(|at| at.offset + u64::from(at.entry.len) <= offset);
                assert!(m.entries_at(offset).take(3).eq(all[first..].iter().copied().take(3)), "{offset}");
            }
        }
    }

    #[test]
    fn the_file_form_reads_back_and_any_flipped_byte_is_refused_or_another_id() {
        let m = manifest(0..300);
        let bytes = m.to_file_bytes();
        let back = Manifest::from_file_bytes(bytes.clone()).expect("own bytes");
        assert_eq!(back.id(), m.id());
        assert!(back.entries().eq(m.entries()));
        for i in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[i] ^= 1;
            match Manifest::from_file_bytes(bad.into()) {
                Err(_) => {}
                Ok(other) => assert_ne!(other.id(), m.id(), "flip at {i}"),
            }
            assert!(Manifest::from_file_bytes(bytes.slice(..i)).is_err(), "truncated to {i}");
        }
    }

    #[test]
    fn one_changed_chunk_changes_one_node_a_level() {
        let old = manifest(0..70_000);
        let new = manifest((0..70_000).map(|n| if n == 35_000 { 1_000_000 } else { n }));
        let missing = new.nodes_missing_from(&[&old]);
        // Two more nodes a level can change when the old or the new chunk is a border.
        assert!((1..=6).contains(&missing.len()), "{missing:?}");
        assert!(new.changed_since(&old).count() <= 512);
        assert!(new.changed_since(&old).any(|at| at.entry == entry(1_000_000)));
    }

    #[test]
    fn a_run_of_equal_chunks_costs_one_node_a_level_and_remainder() {
        let m = manifest(std::iter::repeat_n(3, 1 << 20));
        assert_eq!(m.root().chunks, 1 << 20);
        assert!(m.node_count() <= 8, "{}", m.node_count());
        assert_eq!(m.entries().count(), 1 << 20);
    }

    #[test]
    fn the_golden_manifest_keeps_its_bytes() {
        let m = manifest(0..40);
        const GOLDEN: &[u8] = include_bytes!("testdata/manifest_v1.bin");
        assert_eq!(m.to_file_bytes(), GOLDEN);
        assert_eq!(m.id().to_string(), include_str!("testdata/manifest_v1.id").trim());
    }

    proptest! {
        #[test]
        fn fetching_only_missing_nodes_gives_the_same_manifest(
            old in prop::collection::vec(0u64..5000, 0..3000),
            cut in 0usize..3000,
            insert in prop::collection::vec(5000u64..9000, 0..50),
        ) {
            let mut new = old.clone();
            let at = cut.min(new.len());
            new.splice(at..at, insert);
            let (old, new) = (manifest(old), manifest(new));
            let mut assembly = Assembly::new(new.root_bytes().clone()).expect("own root");
            assembly.reuse(&old);
            let mut asked = BTreeSet::new();
            loop {
                let missing = assembly.missing();
                if missing.is_empty() { break }
                for (level, hash) in missing {
                    prop_assert!(old.node(&hash).is_none(), "asked for a held node");
                    prop_assert!(asked.insert(hash), "asked twice");
                    assembly.insert(level, new.node(&hash).expect("own node").clone()).expect("own node fits");
                }
                assembly.reuse(&old);
            }
            let built = assembly.finish().expect("complete");
            prop_assert_eq!(built.id(), new.id());
            prop_assert!(built.entries().eq(new.entries()));
            prop_assert!(asked.len() >= new.nodes_missing_from(&[&old]).len());
        }

        #[test]
        fn random_bytes_are_never_a_manifest(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut file = FILE_MAGIC.to_vec();
            file.extend(bytes);
            prop_assert!(Manifest::from_file_bytes(file.into()).is_err());
        }
    }
}
