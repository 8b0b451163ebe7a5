//! Answers to NODE_REQUEST from complete manifests, the same for origin, relay and device.

use std::sync::Arc;

use distd_core::manifest::{Manifest, compact_leaf};
use distd_core::proto::frame::{COMPACT_LEAF, Node, NodeRequest, NodesEnd, ROOT_LEVEL};
use distd_core::ranges::ChunkRanges;
use distd_core::{ManifestId, NodeHash};

use super::NodesAnswer;

/// Maximum number of held manifests compared with.
const HELD_USED_MAX: usize = 2;

/// Answers for a node that has `manifest` and the manifests that `find` returns.
pub async fn answer_nodes<F, Fut>(manifest: &Manifest, request: &NodeRequest, find: F) -> NodesAnswer
where
    F: Fn(ManifestId) -> Fut,
    Fut: Future<Output = Option<Arc<Manifest>>>,
{
    let mut answer = NodesAnswer::default();
    let root_wanted = request.hashes.contains(&NodeHash(manifest.id().0));
    if root_wanted {
        answer.nodes.push(Node { level: ROOT_LEVEL, bytes: manifest.root_bytes().clone() });
    }
    let by_hash = request.hashes.len() > usize::from(root_wanted);
    if by_hash {
        for hash in &request.hashes {
            if hash.0 == manifest.id().0 {
                continue;
            }
            match manifest.node(hash) {
                // The asker knows the level: it asked because a parent node names the hash at that
                // level.
                Some(bytes) => {
                    answer.nodes.push(Node { level: level_of(manifest, hash), bytes: bytes.clone() })
                }
                None => answer.missing += 1,
            }
        }
        return answer;
    }
    let mut ids = request.held.clone();
    ids.sort_unstable();
    ids.dedup();
    let mut held = Vec::new();
    for id in ids {
        // Each manifest is parsed and kept while the answer is made. Two cover the manifests of a
        // device's slots.
        if held.len() < HELD_USED_MAX {
            held.extend(find(id).await);
        }
    }
    if held.is_empty() && !request.held.is_empty() {
        answer.missing = NodesEnd::HELD_UNKNOWN;
        return answer;
    }
    let held: Vec<&Manifest> = held.iter().map(AsRef::as_ref).collect();
    let known: ChunkRanges = held.iter().flat_map(|m| m.entries()).map(|at| at.entry.id).collect();
    for (level, hash) in manifest.nodes_missing_from(&held) {
        let bytes = manifest.node(&hash).expect("the manifest lists its own nodes").clone();
        let compact = match level {
            0 if !known.is_empty() => compact_leaf(&bytes, |id| known.contains(id)).ok().flatten(),
            _ => None,
        };
        answer.nodes.push(match compact {
            Some(bytes) => Node { level: COMPACT_LEAF, bytes },
            None => Node { level, bytes },
        });
    }
    answer
}

fn level_of(manifest: &Manifest, hash: &NodeHash) -> u8 {
    let bytes = manifest.node(hash).expect("looked up just before");
    // Leaves and inner nodes are hashed under different domains, so the hash itself tells them
    // apart. Inner nodes begin with their level.
    if distd_core::manifest::leaf_hash(bytes) == *hash {
        0
    } else {
        Manifest::inner_level(bytes).unwrap_or(0)
    }
}
