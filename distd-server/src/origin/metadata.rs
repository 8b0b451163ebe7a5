//! TUF metadata in the object store, beside packs and manifests, so that every replica serves the
//! same.

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;

use super::owner::Owner;
use crate::store::Store;
use crate::tuf::{MetadataStore, SharedStore, StoreError};

const PREFIX: &str = "tuf/";

/// [`MetadataStore`] over the origin's [`Store`].
pub struct ObjectMetadata {
    store: Store,
    writes: Writes,
}

/// Right to write.
enum Writes {
    /// The process may write while its claim on the store holds.
    Owned(Owner),
    Refused,
}

/// Error of a write by a command that only reads.
#[derive(Debug, thiserror::Error)]
#[error(
    "this command changes nothing, but the repository was made by an earlier release and must be brought up to date: \
     start distd-server serve once"
)]
struct ReadOnly;

impl ObjectMetadata {
    /// Metadata under `tuf/` of `store`.
    pub fn new(store: Store) -> Self {
        Self::owned(Owner::new(store.clone()), store)
    }

    /// Metadata for a command that only reads: every write is refused.
    pub(crate) fn read_only(store: Store) -> Self {
        Self { store, writes: Writes::Refused }
    }

    /// Refuses writes once `owner` has a claim on the store that is another's.
    pub(crate) fn owned(owner: Owner, store: Store) -> Self {
        Self { store, writes: Writes::Owned(owner) }
    }

    /// Refuses `action` on the file `name` unless this process may write.
    async fn check(&self, action: &'static str, name: &str) -> Result<(), StoreError> {
        match &self.writes {
            Writes::Owned(owner) => owner.check().await.map_err(|e| StoreError::new(action, name, e)),
            Writes::Refused => Err(StoreError::new(action, name, ReadOnly)),
        }
    }
}

#[async_trait]
impl SharedStore for ObjectMetadata {
    async fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, StoreError> {
        self.check("write", name).await?;
        let failed = |e| StoreError::new("write", name, e);
        if self.store.put_new(&object(name), bytes.clone()).await.map_err(failed)? {
            return Ok(true);
        }
        Ok(self.get(name).await? == Some(bytes))
    }

    async fn put_over(&self, name: &str, bytes: Bytes, before: Option<&Bytes>) -> Result<bool, StoreError> {
        self.check("write", name).await?;
        let put = self.store.put_over(&object(name), bytes, before).await;
        put.map_err(|e| StoreError::new("write", name, e))
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
        self.check("write", name).await?;
        self.store.put(&object(name), bytes).await.map_err(|e| StoreError::new("write", name, e))
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        let objects: Vec<_> =
            self.store.list(PREFIX).try_collect().await.map_err(|e| StoreError::new("list", PREFIX, e))?;
        Ok(objects.into_iter().filter_map(|o| o.name.strip_prefix(PREFIX).map(str::to_owned)).collect())
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.check("delete", name).await?;
        self.store.delete(&object(name)).await.map_err(|e| StoreError::new("delete", name, e))
    }
}
