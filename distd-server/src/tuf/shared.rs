//! Stores of metadata to which more than one process may write at a time.
//!
//! One process signs, but nothing tells it in time that another one has taken its place: it may
//! have stood still between the look at its right and the write. So no write may harm what another
//! process has written. A file with a version in its name is written only where there is none, and
//! `timestamp.json`, which makes the others current, only over the one that was read.

use async_trait::async_trait;
use bytes::Bytes;
use distd_peer::trust::tuf::{DirStore, MetadataStore, StoreError};

/// A store with writes that depend on what is there. The default ones are for a store that only one
/// process writes.
#[async_trait]
pub trait SharedStore: MetadataStore {
    /// Writes a file unless there is one of this name with other bytes; `false` when there is.
    async fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, StoreError> {
        match self.get(name).await? {
            Some(found) => Ok(found == bytes),
            None => self.put(name, bytes).await.map(|()| true),
        }
    }

    /// Writes a file in place of one with the bytes `before`, or where there is none for `None`;
    /// `false` when there is another one, and nothing is written then.
    async fn put_over(&self, name: &str, bytes: Bytes, before: Option<&Bytes>) -> Result<bool, StoreError> {
        let found = self.get(name).await?;
        if found.as_ref() != before {
            return Ok(found.as_ref() == Some(&bytes));
        }
        self.put(name, bytes).await.map(|()| true)
    }
}

impl SharedStore for DirStore {}
