//! Reading of indexes: a few at once, each once however many ask for it, and one that cannot be
//! read not again for each request.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::index::{Kind, Sha256};
use super::unpack::Packing;

/// Most indexes that are read at once. Each takes a core, and up to 208 MiB for its unpacker.
const READERS_MAX: usize = 2;

/// Time for which an index that could not be read is not read again. The reason may be a full disk.
const UNREAD: Duration = Duration::from_secs(600);

/// Most indexes of which that is remembered.
const UNREAD_MAX: usize = 1024;

/// What is read: the bytes of a file, as an index of a kind; `None` for a `Release`. The same bytes
/// may be listed as something else by another repository, which says nothing about this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    /// SHA-256 of the file.
    pub(super) sha256: Sha256,
    /// Kind and packing of an index.
    pub(super) index: Option<(Kind, Packing)>,
}

/// The readers of indexes.
#[derive(Debug)]
pub(super) struct Readers {
    permits: Arc<Semaphore>,
    unread: Mutex<HashMap<Reading, Instant>>,
    under_way: Mutex<HashMap<Reading, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for Readers {
    fn default() -> Self {
        let permits = Arc::new(Semaphore::new(READERS_MAX));
        Self { permits, unread: Mutex::default(), under_way: Mutex::default() }
    }
}

impl Readers {
    fn unread(&self) -> MutexGuard<'_, HashMap<Reading, Instant>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unread(&self, what: &Reading) -> bool {
        self.unread().get(what).is_some_and(|since| since.elapsed() < UNREAD)
    }

    fn was_unread(&self, what: Reading) {
        let mut unread = self.unread();
        if unread.len() >= UNREAD_MAX {
            unread.retain(|_, since| since.elapsed() < UNREAD);
        }
        if unread.len() >= UNREAD_MAX {
            unread.clear();
        }
        unread.insert(what, Instant::now());
    }

    fn lock(&self, what: Reading) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&what).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(what, Arc::downgrade(&lock));
        lock
    }

    /// Waits for a place among the readers.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("nobody closes it")
    }

    /// Does `work` on a thread of its own, unless `is_done` or it failed a while ago. The work goes
    /// on, and keeps its place, when the caller goes away.
    ///
    /// # Errors
    /// Those of `work`, once.
    pub(super) async fn read(
        self: &Arc<Self>,
        what: Reading,
        is_done: impl Fn() -> bool,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let alone = self.lock(what).lock_owned().await;
        if is_done() || self.is_unread(&what) {
            return Ok(());
        }
        let (place, readers) = (self.place().await, self.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = work();
            if read.is_err() {
                readers.was_unread(what);
            }
            drop((place, alone));
            read
        });
        read.await.unwrap_or_else(|_| {
            self.was_unread(what);
            Err(io::Error::other("the reader was given up"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn what(n: u8) -> Reading {
        Reading { sha256: [n; 32], index: Some((Kind::Packages, Packing::Xz)) }
    }

    #[tokio::test]
    async fn a_few_read_at_once_also_when_nobody_waits_for_them() {
        let readers = Arc::<Readers>::default();
        let (started, has_started) = mpsc::channel();
        let begun: Vec<_> = (0..READERS_MAX as u8 + 1)
            .map(|n| {
                let (gate, wait) = mpsc::channel::<()>();
                let (readers, started) = (readers.clone(), started.clone());
                let task = tokio::spawn(async move {
                    let work = move || {
                        started.send(n).map_err(io::Error::other)?;
                        let _ = wait.recv();
                        Ok(())
                    };
                    readers.read(what(n), || false, work).await
                });
                (gate, task)
            })
            .collect();
        let mut first = Vec::new();
        while first.len() < READERS_MAX {
            tokio::task::yield_now().await;
            first.extend(has_started.try_recv());
        }
        let (gates, tasks): (Vec<_>, Vec<_>) = begun.into_iter().unzip();
        // The askers of those that read go away.
        first.iter().for_each(|n| tasks[usize::from(*n)].abort());
        assert!(tokio::time::timeout(Duration::from_millis(50), readers.place()).await.is_err());
        assert!(has_started.try_recv().is_err(), "the third waits");
        drop(gates);
        let _all = (readers.place().await, readers.place().await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_read_once_in_a_while() {
        let readers = Arc::<Readers>::default();
        let tries = Arc::<AtomicUsize>::default();
        let read = |what: Reading| {
            let (readers, tries) = (readers.clone(), tries.clone());
            async move {
                let work = move || {
                    tries.fetch_add(1, Ordering::Relaxed);
                    Err(io::ErrorKind::InvalidData.into())
                };
                readers.read(what, || false, work).await.is_err()
            }
        };
        assert!(read(what(1)).await, "the first hears of it");
        assert!(!read(what(1)).await && !read(what(1)).await);
        // The same bytes as another index are another matter.
        assert!(read(Reading { index: Some((Kind::Packages, Packing::Gzip)), ..what(1) }).await);
        assert_eq!(tries.load(Ordering::Relaxed), 2);
        tokio::time::advance(UNREAD).await;
        assert!(read(what(1)).await);
        for n in 0..=UNREAD_MAX as u32 {
            let mut sha256 = [0; 32];
            sha256[..4].copy_from_slice(&n.to_le_bytes());
            readers.was_unread(Reading { sha256, index: None });
        }
        assert!(readers.unread().len() <= UNREAD_MAX);
    }

    #[tokio::test]
    async fn those_who_want_the_same_index_read_it_once() {
        let readers = Arc::<Readers>::default();
        let done = Arc::<AtomicUsize>::default();
        let all = (0..20).map(|_| {
            let (readers, done) = (readers.clone(), done.clone());
            tokio::spawn(async move {
                let (looks, works) = (done.clone(), done);
                let work = move || {
                    works.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                readers.read(what(1), || looks.load(Ordering::Relaxed) > 0, work).await.is_ok()
            })
        });
        assert!(futures::future::join_all(all).await.into_iter().all(|read| read.unwrap_or(false)));
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }
}
