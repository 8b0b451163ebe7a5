//! Walks over manifests: every chunk, or only the chunks another manifest lacks.

use std::collections::BTreeSet;

use super::Manifest;
use super::node::{Child, Entry, decode_inner, decode_leaf};
use crate::NodeHash;

/// One chunk and its place in the artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAt {
    /// Byte offset in the artifact.
    pub offset: u64,
    /// Id, hash and length of the chunk.
    pub entry: Entry,
}

/// Depth-first walk that holds one node of each level.
#[derive(Debug)]
struct Walk<'a> {
    manifest: &'a Manifest,
    /// Siblings still to visit, with their level.
    stack: Vec<(u8, std::vec::IntoIter<Child>)>,
    leaf: std::vec::IntoIter<Entry>,
    offset: u64,
}

impl<'a> Walk<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        let mut stack = Vec::new();
        if let Some(level) = manifest.root.levels.checked_sub(1) {
            stack.push((level, manifest.root.children.clone().into_iter()));
        }
        Self { manifest, stack, leaf: Vec::new().into_iter(), offset: 0 }
    }

    fn next(&mut self, mut skip: impl FnMut(u8, &Child, u64) -> bool) -> Option<ChunkAt> {
        loop {
            if let Some(entry) = self.leaf.next() {
                let at = ChunkAt { offset: self.offset, entry };
                self.offset += u64::from(entry.len);
                return Some(at);
            }
            let (level, siblings) = self.stack.last_mut()?;
            let level = *level;
            let Some(child) = siblings.next() else {
                self.stack.pop();
                continue;
            };
            if skip(level, &child, self.offset) {
                self.offset += child.bytes;
                continue;
            }
            let bytes = &self.manifest.nodes[&child.hash];
            const SOUND: &str = "a Manifest holds only nodes that decoded once already";
            match level.checked_sub(1) {
                None => self.leaf = decode_leaf(bytes).expect(SOUND).into_iter(),
                Some(below) => {
                    self.stack.push((below, decode_inner(level, bytes).expect(SOUND).into_iter()));
                }
            }
        }
    }
}

/// Every chunk of a manifest in artifact order ([`Manifest::entries`]), or those from an offset on
/// ([`Manifest::entries_at`]).
#[derive(Debug)]
pub struct Entries<'a> {
    walk: Walk<'a>,
    /// Chunks that end at or before this offset are left out.
    from: u64,
}

impl<'a> Entries<'a> {
    pub(super) fn new(manifest: &'a Manifest, from: u64) -> Self {
        Self { walk: Walk::new(manifest), from }
    }
}

impl Iterator for Entries<'_> {
    type Item = ChunkAt;

    fn next(&mut self) -> Option<ChunkAt> {
        let from = self.from;
        loop {
            // Subtrees before the offset are skipped without a look at their nodes.
            let at = self.walk.next(|_, child, offset| offset.saturating_add(child.bytes) <= from)?;
            if at.offset.saturating_add(at.entry.len.into()) > from {
                return Some(at);
            }
        }
    }
}

/// The chunks of subtrees that another manifest lacks ([`Manifest::changed_since`]), in artifact
/// order.
#[derive(Debug)]
pub struct Changed<'a> {
    walk: Walk<'a>,
    held: &'a Manifest,
}

impl<'a> Changed<'a> {
    pub(super) fn new(manifest: &'a Manifest, held: &'a Manifest) -> Self {
        Self { walk: Walk::new(manifest), held }
    }
}

impl Iterator for Changed<'_> {
    type Item = ChunkAt;

    fn next(&mut self) -> Option<ChunkAt> {
        let held = self.held;
        self.walk.next(|_, child, _| held.nodes.contains_key(&child.hash))
    }
}

pub(super) fn nodes_missing_from(manifest: &Manifest, held: &[&Manifest]) -> Vec<(u8, NodeHash)> {
    let has = |hash: &NodeHash| held.iter().any(|m| m.nodes.contains_key(hash));
    let mut list = Vec::new();
    let mut level_children = manifest.root.children.clone();
    let mut level = manifest.root.levels;
    let mut seen = BTreeSet::new();
    while let Some(below) = level.checked_sub(1) {
        level = below;
        let mut next = Vec::new();
        for child in level_children {
            if has(&child.hash) || !seen.insert(child.hash) {
                continue;
            }
            list.push((level, child.hash));
            if level > 0 {
                let bytes = &manifest.nodes[&child.hash];
                next.extend(
                    decode_inner(level, bytes)
                        .expect("a Manifest holds only nodes that decoded once already"),
                );
            }
        }
        level_children = next;
    }
    list
}
