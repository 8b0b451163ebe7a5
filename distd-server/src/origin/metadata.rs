//! TUF metadata in the object store, beside packs and manifests, so that every replica serves the same.

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;

use super::owner::Owner;
use crate::store::Store;
use crate::tuf::{MetadataStore, StoreError};

const PREFIX: &str = "tuf/";

/// [`MetadataStore`] over the origin's [`Store`].
pub struct ObjectMetadata {
    store: Store,
    owner: Owner,
}

impl ObjectMetadata {
    /// Metadata under `tuf/` of `store`.
    pub fn new(store: Store) -> Self {
        Self { owner: Owner::new(store.clone()), store }
    }

    /// Refuses writes once `owner` has a claim on the store that is another's.
    pub(super) fn owned(owner: Owner, store: Store) -> Self {
        Self { store, owner }
    }
}

fn object(name: &str) -> String {
    format!("{PREFIX}{name}")
}

#[async_trait]
impl MetadataStore for ObjectMetadata {
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.store.get(&object(name)).await.map_err(|e| StoreError::new("read", name, e))
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.owner.check().await.map_err(|e| StoreError::new("write", name, e))?;
        self.store.put(&object(name), bytes).await.map_err(|e| StoreError::new("write", name, e))
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        let objects: Vec<_> =
            self.store.list(PREFIX).try_collect().await.map_err(|e| StoreError::new("list", PREFIX, e))?;
        Ok(objects.into_iter().filter_map(|o| o.name.strip_prefix(PREFIX).map(str::to_owned)).collect())
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.owner.check().await.map_err(|e| StoreError::new("delete", name, e))?;
        self.store.delete(&object(name)).await.map_err(|e| StoreError::new("delete", name, e))
    }
}
