//! Bodies that wait on the disk until they are whole: a slow caller holds neither memory nor anybody's turn.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempPath;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::body::Incoming;
use super::{ApiError, App};

/// Bodies of one token on their way at once.
const BODIES_MAX: usize = 16;

/// How long a caller waits for one of its token's places.
const WAIT: Duration = Duration::from_secs(30);

/// Bytes between two looks at quota and disk.
const LOOK_BYTES: u64 = 8 << 20;

/// What tokens have on their way.
#[derive(Default)]
pub(super) struct Spooling(Mutex<HashMap<String, OfToken>>);

struct OfToken {
    places: Arc<Semaphore>,
    bytes: u64,
    users: usize,
}

/// A token's place, and the bytes it has spooled.
pub(super) struct Place {
    spooling: Arc<Spooling>,
    token: String,
    bytes: u64,
    _permit: OwnedSemaphorePermit,
}

impl Spooling {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, OfToken>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn leave(&self, token: &str, bytes: u64) {
        self.with(|tokens| {
            if let Some(of) = tokens.get_mut(token) {
                of.bytes -= bytes;
                of.users -= 1;
                if of.users == 0 {
                    tokens.remove(token);
                }
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.spooling.leave(&self.token, self.bytes);
    }
}

impl Place {
    /// Counts more bytes; gives how many the token has spooled.
    fn add(&mut self, bytes: u64) -> u64 {
        self.bytes += bytes;
        self.spooling.with(|tokens| {
            tokens.get_mut(&self.token).map_or(bytes, |of| {
                of.bytes += bytes;
                of.bytes
            })
        })
    }
}

/// A body that came whole.
pub(super) struct Spooled {
    pub(super) path: TempPath,
    /// Its length, bytes.
    pub(super) bytes: u64,
    _place: Place,
}

impl App {
    /// A place for a body of a token's; waits while the token has all of its own.
    async fn place(&self, token: &str) -> Result<Place, ApiError> {
        let places = self.spooling.with(|tokens| {
            let new = || OfToken { places: Arc::new(Semaphore::new(BODIES_MAX)), bytes: 0, users: 0 };
            let of = tokens.entry(token.to_owned()).or_insert_with(new);
            of.users += 1;
            of.places.clone()
        });
        // Leaves when the caller does, too.
        let user = User { spooling: self.spooling.clone(), token: token.to_owned(), leaves: true };
        match timeout(WAIT, places.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(user.stay(permit)),
            _ => Err(ApiError::busy("this token has as many requests on their way as it may have")),
        }
    }

    /// Takes a whole body to the disk. `kept` says that its bytes count against the token's quota.
    pub(super) async fn spool<const MAX: u64>(
        &self,
        token: &str,
        mut body: Incoming<MAX>,
        kept: bool,
    ) -> Result<Spooled, ApiError> {
        let ingest = self.origin.ingest();
        ingest.check_room(body.announced().unwrap_or(0))?;
        if kept {
            ingest.check_quota(token, body.announced().unwrap_or(0)).await?;
        }
        let mut place = self.place(token).await?;
        let (file, path) = create(self.origin.spool()).await.map_err(ApiError::internal)?;
        let mut file = tokio::fs::File::from_std(file);
        let (mut bytes, mut unlooked) = (0, 0);
        while let Some(piece) = body.next().await? {
            self.metrics.received_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            file.write_all(&piece).await.map_err(ApiError::internal)?;
            bytes += piece.len() as u64;
            unlooked += piece.len() as u64;
            let spooled = place.add(piece.len() as u64);
            if unlooked >= LOOK_BYTES {
                unlooked = 0;
                ingest.check_room(0)?;
                if kept {
                    ingest.check_quota(token, spooled).await?;
                }
            }
        }
        file.flush().await.map_err(ApiError::internal)?;
        Ok(Spooled { path, bytes, _place: place })
    }
}

/// Whoever waits for a place.
struct User {
    spooling: Arc<Spooling>,
    token: String,
    leaves: bool,
}

impl User {
    fn stay(mut self, permit: OwnedSemaphorePermit) -> Place {
        self.leaves = false;
        let (spooling, token) = (self.spooling.clone(), self.token.clone());
        Place { spooling, token, bytes: 0, _permit: permit }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.leaves {
            self.spooling.leave(&self.token, 0);
        }
    }
}

async fn create(directory: &Path) -> std::io::Result<(std::fs::File, TempPath)> {
    let directory = directory.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        tempfile::Builder::new().prefix("upload-").tempfile_in(directory).map(|file| file.into_parts())
    });
    made.await.expect("making a file does not panic")
}

impl Spooled {
    /// Removes it. Unlinking gigabytes takes a while.
    pub(super) async fn remove(self) {
        let Self { path, _place, .. } = self;
        let removed = tokio::task::spawn_blocking(move || path.close());
        if let Err(error) = removed.await.expect("removing a file does not panic") {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not remove a spooled file");
        }
    }
}
