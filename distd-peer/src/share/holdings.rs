//! What is held of one swarm, as it grows.

use std::sync::{Mutex, PoisonError};

use distd_core::ChunkId;
use distd_core::ranges::ChunkRanges;
use tokio::sync::watch;

/// The chunks of one swarm that are verified and in place. Whoever subscribes learns that there are more.
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
    /// Starting with these.
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

    /// Takes one out that turned out to be something else; who was told of it will be refused.
    pub fn lose(&self, id: ChunkId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Whether it is held.
    pub fn contains(&self, id: ChunkId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// All of them now.
    pub fn snapshot(&self) -> ChunkRanges {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Marked as changed whenever something was added since it was last looked at.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }
}
