//! Fuzz bodies of manifest nodes and files, compact leaves and tree listings.

use bytes::Bytes;
use distd_core::bounds::{ARTIFACT_BYTES_MAX, CHUNK_BYTES_MAX, NODE_BYTES_MAX};
use distd_core::cut::CutParams;
use distd_core::manifest::{
    Assembly, Builder, Entry, Kind, Manifest, Root, compact_leaf, expand_leaf, leaf_hash,
};
use distd_core::tree::Listing;
use distd_core::{ArtifactHash, ChunkHash, ChunkId};

use super::memory::within;

/// Most chunks to walk over: repeated nodes can make any number of them.
const WALKED: usize = 5000;

/// The first byte chooses the kind of input: a manifest file, a root node, a leaf or a compact
/// leaf.
pub fn manifest(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => file(data),
        1 => root(data),
        2 => leaf(data),
        _ => {
            let find = |id: ChunkId| id.0.is_multiple_of(3).then_some((ChunkHash([1; 32]), 5));
            if let Ok(bytes) = expand_leaf(data, find) {
                leaf(&bytes);
            }
        }
    }
}

fn file(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    // Nodes are slices of the file. Decoding a node takes a few times its length.
    let Ok(manifest) = within(8 * data.len() + (1 << 20), || Manifest::from_file_bytes(bytes)) else {
        return;
    };
    let again = Manifest::from_file_bytes(manifest.to_file_bytes()).expect("own bytes");
    assert_eq!(again.id(), manifest.id());
    assert_eq!(again.to_file_bytes(), manifest.to_file_bytes());
    walk(&manifest);
    assert_eq!(manifest.nodes_missing_from(&[]).len(), manifest.node_count());
    assert!(manifest.nodes_missing_from(&[&again]).is_empty());
    assert_eq!(manifest.changed_since(&again).count(), 0);

    // A manifest with the same nodes is assembled from them.
    let mut assembly = Assembly::new(manifest.root_bytes().clone()).expect("own root");
    assembly.reuse(&again);
    assert!(assembly.missing().is_empty());
    assert_eq!(assembly.finish().expect("complete").id(), manifest.id());
}

fn walk(manifest: &Manifest) {
    let root = manifest.root();
    assert!(root.bytes <= ARTIFACT_BYTES_MAX);
    let (mut chunks, mut bytes) = (0, 0);
    for at in manifest.entries().take(WALKED) {
        assert_eq!(at.offset, bytes);
        assert!((1..=root.cut.max()).contains(&at.entry.len) && at.entry.id.0 > 0);
        chunks += 1;
        bytes += u64::from(at.entry.len);
    }
    if chunks < WALKED as u64 {
        assert_eq!((chunks, bytes), (root.chunks, root.bytes));
    }
}

fn root(data: &[u8]) {
    let Ok(root) = Root::decode(data) else { return };
    assert!(data.len() <= NODE_BYTES_MAX);
    assert_eq!(root.encode(), data);
    if let Ok(assembly) = Assembly::new(Bytes::copy_from_slice(data)) {
        assert_eq!(assembly.id(), root.id());
        assert_eq!(assembly.missing().is_empty(), root.levels == 0);
    }
}

/// A leaf is the node of its entries, and its compact form stands for it.
fn leaf(data: &[u8]) {
    let Ok(compact) = compact_leaf(data, |_| false) else { return };
    if let Some(compact) = compact {
        assert_eq!(expand_leaf(&compact, |_| None).as_deref(), Ok(data));
    }
    let entries = entries(data);
    assert!(entries.iter().all(|entry| (1..=CHUNK_BYTES_MAX as u32).contains(&entry.len)));
    let mut builder = Builder::new(CutParams::new(64, 1 << 20, 1 << 20).expect("valid"), Kind::File);
    entries.iter().for_each(|entry| builder.push(*entry));
    let manifest = builder.finish(ArtifactHash([9; 32]));
    assert!(manifest.entries().map(|at| at.entry).eq(entries));
    // Unless one of its entries is a border, the leaf is the only node.
    if manifest.node_count() == 1 {
        assert_eq!(manifest.root().children[0].hash, leaf_hash(data));
    }
}

/// Returns the entries of a leaf.
fn entries(leaf: &[u8]) -> Vec<Entry> {
    let list: Vec<(u64, ChunkHash, u32)> = rmp_serde::from_slice(leaf).expect("a leaf");
    list.into_iter().map(|(id, hash, len)| Entry { id: ChunkId(id), hash, len }).collect()
}

/// A decoded listing encodes to the same bytes.
pub fn tree_listing(data: &[u8]) {
    let Ok(listing) = within(64 * data.len() + (1 << 20), || Listing::decode(data)) else { return };
    assert_eq!(listing.encode(), data);
    let sizes: u64 = listing.files(0).map(|(_, size, _)| size).sum();
    assert_eq!(sizes, listing.file_bytes());
    for entry in listing.entries() {
        assert_eq!(listing.get(entry.path.as_bytes()), Some(entry));
        assert!(entry.path.parent().is_none_or(|parent| listing.get(parent).is_some()));
    }
    if let Some(regions) = listing.regions(data.len() as u64) {
        assert_eq!(regions.total(), data.len() as u64 + sizes);
    }
}
