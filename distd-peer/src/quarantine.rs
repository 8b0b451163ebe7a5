//! Peers that sent wrong bytes. They are not asked for a day, across restarts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use distd_core::error::Chain;
use tokio::sync::watch;

use crate::trust::files;
use crate::trust::identity::NodeId;

/// How long such a peer is not asked: a day, as long as a certificate is valid. A repaired node is
/// therefore used again without any action.
const QUARANTINE_SECONDS: u64 = 24 * 3600;

/// Maximum number of entries. Beyond it the entries that end soonest are dropped.
const ENTRIES_MAX: usize = 10_000;

/// A list in a JSON file that maps a node id to the unix time in seconds until which the node is
/// not asked.
pub struct Quarantine {
    path: PathBuf,
    until: Mutex<BTreeMap<String, u64>>,
    changed: watch::Sender<()>,
}

impl Quarantine {
    /// Loads the list from `path`; a missing or unreadable file is an empty list.
    pub fn load(path: &Path) -> Self {
        let until = match files::read(path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "quarantine list is unreadable; starting with an empty list");
                BTreeMap::new()
            }),
            _ => BTreeMap::new(),
        };
        Self { path: path.to_owned(), until: Mutex::new(until), changed: watch::Sender::new(()) }
    }

    /// Path of the list's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unix time until which `node` is not asked; `None` if `node` may be asked.
    pub fn until(&self, node: &NodeId, now: u64) -> Option<u64> {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(&node.to_string()).copied().filter(|t| holds(*t, now))
    }

    /// Nodes that are not asked at `now`, most recently added first.
    pub fn nodes(&self, now: u64) -> Vec<NodeId> {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nodes: Vec<_> = until
            .iter()
            .filter(|(_, t)| holds(**t, now))
            .filter_map(|(node, t)| Some((*t, node.parse().ok()?)))
            .collect();
        nodes.sort_by_key(|(t, _)| std::cmp::Reverse(*t));
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Receiver that is marked as changed when a node is added.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Adds a node, starting at `now`, and writes the list.
    pub fn add(&self, node: NodeId, now: u64) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, t| holds(*t, now));
        until.insert(node.to_string(), now + QUARANTINE_SECONDS);
        while until.len() > ENTRIES_MAX {
            let Some(soonest) = until.iter().min_by_key(|(_, t)| **t).map(|(k, _)| k.clone()) else { break };
            until.remove(&soonest);
        }
        let text = serde_json::to_vec_pretty(&*until).expect("a map of strings to numbers always encodes");
        if let Err(error) = files::write_atomic(&self.path, &text, 0o600) {
            tracing::warn!(
                error = %Chain(&error),
                "quarantine list could not be written; it will be lost at the next restart"
            );
        }
        self.changed.send_replace(());
    }
}

/// Whether an entry that ends at `until` is in force at `now`. An entry that would last longer than
/// a day was written while the clock was ahead, and is ignored.
fn holds(until: u64, now: u64) -> bool {
    until > now && until <= now.saturating_add(QUARANTINE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_outlives_a_restart_and_ends_after_a_day() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("quarantine.json");
        let node = NodeId([3; 16]);
        Quarantine::load(&path).add(node, 1000);
        let again = Quarantine::load(&path);
        assert_eq!(again.until(&node, 1001), Some(1000 + QUARANTINE_SECONDS));
        assert_eq!(again.until(&node, 1000 + QUARANTINE_SECONDS), None);
        assert_eq!(again.until(&NodeId([4; 16]), 1001), None);
        assert_eq!(again.until(&node, 500), None, "written by a clock that was ahead");
        again.add(NodeId([4; 16]), 2000);
        assert_eq!(again.nodes(2001), [NodeId([4; 16]), node]);
        assert_eq!(again.nodes(1000 + QUARANTINE_SECONDS), [NodeId([4; 16])]);
    }
}
