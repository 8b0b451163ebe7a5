//! The growing set of chunks held of one swarm.

use std::sync::{Mutex, PoisonError};

use distd_core::ChunkId;
use distd_core::ranges::ChunkRanges;
use tokio::sync::watch;

/// The chunks of one swarm that are verified and in place. Subscribers learn when chunks are added.
#[derive(Debug)]
pub struct Holdings {
    held: Mutex<ChunkRanges>,
    grown: watch::Sender<()>,
}

impl Default for Holdings {
    fn default() -> Self {
        Self::new(ChunkRanges::new())
    }
}

impl Holdings {
    /// Creates a set that starts with `held`.
    pub fn new(held: ChunkRanges) -> Self {
        Self { held: Mutex::new(held), grown: watch::Sender::new(()) }
    }

    /// Adds chunks whose bytes were verified and written.
    pub fn add(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut added = false;
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            for id in ids {
                added |= held.insert(id);
            }
        }
        if added {
            self.grown.send_replace(());
        }
    }

    /// Removes a chunk that turned out to be damaged. Peers to which the chunk was announced will
    /// be refused.
    pub fn lose(&self, id: ChunkId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Whether the chunk is held.
    pub fn contains(&self, id: ChunkId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Copy of the set as it is now.
    pub fn snapshot(&self) -> ChunkRanges {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Receiver that is marked as changed when chunks are added.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }
}
