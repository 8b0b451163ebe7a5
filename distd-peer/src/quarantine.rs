//! Peers that sent wrong bytes. They are not asked for a day, across restarts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use distd_core::error::Chain;
use distd_core::swarm::QuarantineList;
use tokio::sync::watch;

use crate::trust::files;
use crate::trust::identity::NodeId;

/// A [`QuarantineList`] in a JSON file that maps a node id to the unix time in seconds until which
/// the node is not asked.
pub struct Quarantine {
    path: Option<PathBuf>,
    list: Mutex<QuarantineList>,
    changed: watch::Sender<()>,
}

impl Quarantine {
    /// Loads the list from `path`; a missing or unreadable file is an empty list.
    pub fn load(path: &Path) -> Self {
        let entries: BTreeMap<String, u64> = match files::read(path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "quarantine list is unreadable; starting with an empty list");
                BTreeMap::new()
            }),
            _ => BTreeMap::new(),
        };
        let list =
            entries.into_iter().filter_map(|(node, until)| Some((node.parse().ok()?, until))).collect();
        Self { path: Some(path.to_owned()), list: Mutex::new(list), changed: watch::Sender::new(()) }
    }

    /// Creates a list that ends with this process.
    pub fn in_memory() -> Self {
        Self { path: None, list: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Path of the list's file; `None` for a list that ends with this process.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The list, locked.
    pub(crate) fn list(&self) -> MutexGuard<'_, QuarantineList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unix time until which `node` is not asked; `None` if `node` may be asked.
    pub fn until(&self, node: &NodeId, now: u64) -> Option<u64> {
        self.list().until(node, now)
    }

    /// Nodes that are not asked at `now`, most recently added first.
    pub fn nodes(&self, now: u64) -> Vec<NodeId> {
        self.list().nodes(now)
    }

    /// Receiver that is marked as changed when a node is added.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Adds a node, starting at `now`, and writes the list.
    pub fn add(&self, node: NodeId, now: u64) {
        let mut list = self.list();
        list.add(node, now);
        let entries: BTreeMap<String, u64> =
            list.entries().map(|(node, until)| (node.to_string(), until)).collect();
        let text = serde_json::to_vec_pretty(&entries).expect("a map of strings to numbers always encodes");
        if let Some(path) = &self.path
            && let Err(error) = files::write_atomic(path, &text, 0o600)
        {
            tracing::warn!(
                error = %Chain(&error),
                "quarantine list could not be written; it will be lost at the next restart"
            );
        }
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use distd_core::swarm::QUARANTINE_SECONDS;

    use super::*;

    #[test]
    fn a_quarantine_outlives_a_restart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("quarantine.json");
        let node = NodeId([3; 16]);
        Quarantine::load(&path).add(node, 1000);
        let again = Quarantine::load(&path);
        assert_eq!(again.until(&node, 1001), Some(1000 + QUARANTINE_SECONDS));
        std::fs::write(&path, "garbage").expect("write");
        assert_eq!(Quarantine::load(&path).nodes(1001), []);
    }
}
