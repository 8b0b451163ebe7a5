//! The origin's object store: a directory, or a bucket of an S3-compatible server.
//!
//! Objects are immutable: packs ([`pack`]), manifests and TUF metadata. An object that was put is
//! durable when [`Store::put`] returns; nothing is ever visible half-written. docs/store.md has the
//! layout.

mod chunks;
pub mod pack;
mod reader;

pub use chunks::{ChunkReadError, Chunks, StoredChunk};
pub use reader::{PackReader, ReadError};

use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};

use crate::db::UnixSeconds;

/// Time for one request. A pack of 32 MiB must pass within it, so 3 Mbit/s suffice; the retries of
/// the client come on top.
const S3_REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Error of the object store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address has no form that is known.
    #[error(
        "cannot use the store address {0:?}: write a directory or s3://BUCKET[/PREFIX][?endpoint=URL&region=R]"
    )]
    Address(String),
    /// The directory could not be made.
    #[error("could not create the store directory {}: check its parent's permissions and free space", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// The directory is not there.
    #[error("there is no store directory {}: check --store and --data", .0.display())]
    Absent(PathBuf),
    /// The store could not be set up.
    #[error(
        "could not open the store {address}: check the address and, for S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Open {
        /// The address.
        address: String,
        /// The cause.
        #[source]
        cause: object_store::Error,
    },
    /// An object that must be there is not.
    #[error("object {0} is missing from the store")]
    Missing(String),
    /// A request failed.
    #[error("could not {action} object {name}: check the store's free space and connection, then try again")]
    Request {
        /// The request.
        action: &'static str,
        /// The object.
        name: String,
        /// The cause.
        #[source]
        cause: object_store::Error,
    },
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// Length, bytes.
    pub bytes: u64,
    /// Time at which it was put.
    pub modified: UnixSeconds,
}

/// The directory of a store's address; `None` for S3.
pub(crate) fn directory_of(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("file://").unwrap_or(address);
    (!path.is_empty() && !path.contains("://")).then(|| PathBuf::from(path))
}

/// An object store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Root of a directory store, for operations that the object interface does not have.
    directory: Option<PathBuf>,
}

impl Store {
    /// Opens a directory (created if absent) or
    /// `s3://BUCKET[/PREFIX][?endpoint=URL&region=REGION]`. S3 credentials come from the usual
    /// `AWS_*` variables or the instance.
    ///
    /// # Errors
    /// [`StoreError`]. S3 is not asked anything yet: use [`check`](Self::check).
    pub fn open(address: &str) -> Result<Self, StoreError> {
        if address.starts_with("s3://") {
            return Self::open_s3(address);
        }
        if address.is_empty() || (address.contains("://") && !address.starts_with("file://")) {
            return Err(StoreError::Address(address.to_owned()));
        }
        Self::open_directory(FsPath::new(address.strip_prefix("file://").unwrap_or(address)))
    }

    /// As [`open`](Self::open), for a store that is there: no directory is made.
    ///
    /// # Errors
    /// [`StoreError::Absent`], and as [`open`](Self::open).
    pub fn open_present(address: &str) -> Result<Self, StoreError> {
        match directory_of(address).filter(|directory| !directory.is_dir()) {
            Some(directory) => Err(StoreError::Absent(directory)),
            None => Self::open(address),
        }
    }

    /// Opens a directory, created if absent. Every put is flushed to the medium, its directory too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_directory(path: &FsPath) -> Result<Self, StoreError> {
        let directory = |cause| StoreError::Directory { path: path.to_owned(), cause };
        std::fs::create_dir_all(path).map_err(directory)?;
        let root = path.canonicalize().map_err(directory)?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|cause| StoreError::Open { address: path.display().to_string(), cause })?
            .with_fsync(true);
        Ok(Self { objects: Arc::new(objects), directory: Some(root) })
    }

    fn open_s3(address: &str) -> Result<Self, StoreError> {
        let malformed = || StoreError::Address(address.to_owned());
        let url = url::Url::parse(address).map_err(|_| malformed())?;
        let bucket = url.host_str().filter(|b| !b.is_empty()).ok_or_else(malformed)?;
        let mut client = ClientOptions::new().with_timeout(S3_REQUEST_TIMEOUT);
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        for (key, value) in url.query_pairs() {
            match &*key {
                "endpoint" => {
                    client = client.with_allow_http(value.starts_with("http://"));
                    builder = builder.with_endpoint(value);
                }
                "region" => builder = builder.with_region(value),
                _ => return Err(malformed()),
            }
        }
        let objects = builder
            .with_client_options(client)
            .build()
            .map_err(|cause| StoreError::Open { address: address.to_owned(), cause })?;
        let prefix = Path::from_url_path(url.path()).map_err(|_| malformed())?;
        let objects: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() {
            Arc::new(objects)
        } else {
            Arc::new(PrefixStore::new(objects, prefix))
        };
        Ok(Self { objects, directory: None })
    }

    /// Whether the store is a directory of this machine.
    pub fn is_local(&self) -> bool {
        self.directory.is_some()
    }

    /// The directory of a directory store.
    pub fn directory(&self) -> Option<&FsPath> {
        self.directory.as_deref()
    }

    /// Asks the store something cheap: for `/readyz` and for a clear error at start.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn check(&self) -> Result<(), StoreError> {
        match self.objects.list(Some(&Path::from("ready"))).next().await {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(cause)) => Err(request("list", "ready", cause)),
        }
    }

    /// Stores an object, replacing one of this name. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Request`]: nothing, or the old object, is there then.
    pub async fn put(&self, name: &str, payload: impl Into<PutPayload>) -> Result<(), StoreError> {
        let put = self.objects.put(&Path::from(name), payload.into()).await;
        put.map(drop).map_err(|cause| request("store", name, cause))
    }

    /// Stores an object unless there is one of this name; `false` when there is. Of several
    /// processes that do this to a bucket at once, one succeeds, provided that the bucket's server
    /// knows conditional puts (`If-None-Match`). A directory store has only one process.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn put_new(&self, name: &str, payload: impl Into<PutPayload>) -> Result<bool, StoreError> {
        if self.is_local() {
            // The library would use a hard link, which not every file system has.
            if self.len(name).await?.is_some() {
                return Ok(false);
            }
            return self.put(name, payload).await.map(|()| true);
        }
        let put = self.objects.put_opts(&Path::from(name), payload.into(), PutMode::Create.into()).await;
        match put {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(cause) => Err(request("store", name, cause)),
        }
    }

    /// Stores an object in place of one with the bytes `before`, or where there is none for `None`;
    /// `false` when there is another one, and nothing is stored then. Of several processes that do
    /// this to a bucket at once, one succeeds, provided that the bucket's server knows conditional
    /// puts (`If-Match`). A directory store has only one process.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn put_over(
        &self,
        name: &str,
        bytes: Bytes,
        before: Option<&Bytes>,
    ) -> Result<bool, StoreError> {
        let Some(before) = before else {
            return Ok(self.put_new(name, bytes.clone()).await? || self.get(name).await? == Some(bytes));
        };
        let failed = |cause| request("store", name, cause);
        let (found, version) = match self.objects.get(&Path::from(name)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(cause) => return Err(request("read", name, cause)),
            Ok(found) => {
                let version =
                    UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
                (found.bytes().await.map_err(|cause| request("read", name, cause))?, version)
            }
        };
        if found != *before {
            return Ok(found == bytes);
        }
        if self.is_local() {
            return self.put(name, bytes).await.map(|()| true);
        }
        let mode = PutMode::Update(version);
        match self.objects.put_opts(&Path::from(name), bytes.clone().into(), mode.into()).await {
            Ok(_) => Ok(true),
            // A request whose answer was lost is sent again, and finds what it has stored itself.
            Err(object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. }) => {
                Ok(self.get(name).await? == Some(bytes))
            }
            Err(cause) => Err(failed(cause)),
        }
    }

    /// A whole object, or `None`.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let failed = |cause| request("read", name, cause);
        match self.objects.get(&Path::from(name)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(cause) => Err(failed(cause)),
        }
    }

    /// Bytes `range` of an object. Short when the object ends inside the range.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Request`] (also for a range that begins behind the
    /// end).
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.objects.get_range(&Path::from(name), range).await.map_err(|cause| match cause {
            object_store::Error::NotFound { .. } => StoreError::Missing(name.to_owned()),
            cause => request("read", name, cause),
        })
    }

    /// An object's length in bytes, or `None` when it is not there.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn len(&self, name: &str) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&Path::from(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(cause) => Err(request("look at", name, cause)),
        }
    }

    /// Deletes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.objects.delete(&Path::from(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(request("delete", name, cause)),
        }
    }

    /// The objects below `prefix` (whole path segments), in no particular order.
    pub fn list(&self, prefix: &str) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        let name = prefix.to_owned();
        self.objects
            .list(Some(&Path::from(prefix)))
            .map_ok(|meta| ObjectInfo {
                name: meta.location.to_string(),
                bytes: meta.size,
                modified: meta.last_modified.timestamp(),
            })
            .map_err(move |cause| request("list", &name, cause))
            .boxed()
    }

    /// Deletes what interrupted puts left in a directory store: temporary files, which a listing
    /// does not show. No other process may put meanwhile. Returns their number.
    ///
    /// # Errors
    /// [`StoreError::Directory`].
    pub async fn sweep_interrupted_puts(&self) -> Result<u64, StoreError> {
        let Some(root) = self.directory.clone() else { return Ok(0) };
        tokio::task::spawn_blocking(move || {
            let mut swept = 0;
            sweep_temporary(&root, &mut swept)
                .map(|()| swept)
                .map_err(|cause| StoreError::Directory { path: root, cause })
        })
        .await
        .expect("sweeping a directory does not panic")
    }
}

/// `object_store` writes `NAME#N` and renames it to `NAME`.
fn sweep_temporary(directory: &FsPath, swept: &mut u64) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sweep_temporary(&entry.path(), swept)?;
        } else if entry.file_name().as_encoded_bytes().contains(&b'#') {
            std::fs::remove_file(entry.path())?;
            *swept += 1;
        }
    }
    Ok(())
}

fn request(action: &'static str, name: &str, cause: object_store::Error) -> StoreError {
    StoreError::Request { action, name: name.to_owned(), cause }
}
