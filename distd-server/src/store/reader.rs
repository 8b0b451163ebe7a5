//! Reading packs: single chunks through a small cache of blocks, many chunks in long reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distd_core::lru::Lru;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::{Store, StoreError};
use crate::db::{Db, DbError, Location, PackId};

/// Bytes of a cached block. One request to S3 brings about thirty chunks that will be asked for
/// next, since ids and packs are both in artifact order.
const BLOCK_BYTES: u64 = 512 << 10;

/// Blocks held at most: 32 MiB.
const BLOCKS_MAX: u64 = 64;

/// Pack names held at most; about 100 bytes each.
const NAMES_MAX: usize = 16_384;

/// Gap in a pack that is read over rather than asked for separately, bytes: a request to S3 costs
/// as much as this.
const GAP_MAX: u64 = 64 << 10;

/// Longest single read, bytes.
const RUN_BYTES_MAX: u64 = 4 << 20;

/// Reads of one call under way at once: hides a store's latency.
const READS_AT_ONCE: usize = 4;

/// Error of reading stored chunks.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pack is shorter than its rows say, or has no row.
    #[error("pack {0:?} is damaged: restore the object store from its backup")]
    Damaged(PackId),
}

/// Reads chunks out of packs; cheap to clone. Holds at most 32 MiB of blocks.
#[derive(Clone, Debug)]
pub struct PackReader {
    db: Db,
    store: Store,
    shared: Arc<Mutex<Shared>>,
}

/// A block that the first task reads and the others wait for.
type Block = Arc<OnceCell<Bytes>>;

#[derive(Debug)]
struct Shared {
    names: HashMap<PackId, Arc<str>>,
    blocks: Lru<(PackId, u64), Block>,
}

impl Shared {
    fn new() -> Self {
        Self { names: HashMap::new(), blocks: Lru::new(BLOCKS_MAX) }
    }

    /// Returns the block's place, made if needed.
    fn block(&mut self, key: (PackId, u64)) -> Block {
        self.blocks.get_or_put(key, 1, Block::default)
    }
}

impl PackReader {
    /// A reader with an empty cache.
    pub fn new(db: Db, store: Store) -> Self {
        Self { db, store, shared: Arc::new(Mutex::new(Shared::new())) }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        // Nothing is left half-done inside the lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Object names of packs.
    async fn names(&self, packs: &[PackId]) -> Result<BTreeMap<PackId, Arc<str>>, ReadError> {
        let mut names = BTreeMap::new();
        let mut unknown = Vec::new();
        {
            let shared = self.shared();
            for pack in packs {
                match shared.names.get(pack) {
                    Some(name) => drop(names.insert(*pack, name.clone())),
                    None => unknown.push(*pack),
                }
            }
        }
        if !unknown.is_empty() {
            let found = self.db.pack_objects(&unknown).await?;
            let mut shared = self.shared();
            if shared.names.len() + found.len() > NAMES_MAX {
                shared.names.clear();
            }
            for (pack, name) in found {
                let name: Arc<str> = name.into();
                shared.names.insert(pack, name.clone());
                names.insert(pack, name);
            }
        }
        match packs.iter().find(|pack| !names.contains_key(pack)) {
            Some(pack) => Err(ReadError::Damaged(*pack)),
            None => Ok(names),
        }
    }

    /// The stored bytes of one chunk. Neighbours asked for next come from memory; several tasks
    /// that need the same block wait for one read.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_one(&self, at: &Location) -> Result<Bytes, ReadError> {
        let names = self.names(&[at.pack]).await?;
        let end = at.offset + u64::from(at.stored_len);
        let mut out = Vec::with_capacity(at.stored_len as usize);
        let mut position = at.offset;
        while position < end {
            let block = position / BLOCK_BYTES;
            let start = block * BLOCK_BYTES;
            let place = self.shared().block((at.pack, block));
            let bytes = place
                .get_or_try_init(|| self.store.get_range(&names[&at.pack], start..start + BLOCK_BYTES))
                .await?;
            let from = (position - start) as usize;
            let to = (end - start).min(BLOCK_BYTES) as usize;
            out.extend_from_slice(bytes.get(from..to).ok_or(ReadError::Damaged(at.pack))?);
            position = start + to as u64;
        }
        Ok(out.into())
    }

    /// The stored bytes of many chunks, in the order given, by few long reads that bypass the
    /// cache. The caller bounds their sum; they may share memory.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_many(&self, locations: &[Location]) -> Result<Vec<Bytes>, ReadError> {
        let mut packs: Vec<PackId> = locations.iter().map(|l| l.pack).collect();
        packs.sort_unstable();
        packs.dedup();
        let names = self.names(&packs).await?;
        let runs = runs(locations);
        let reads = runs.into_iter().map(|run| {
            let name = &names[&run.pack];
            async move {
                let bytes = self.store.get_range(name, run.start..run.end).await?;
                if bytes.len() as u64 != run.end - run.start {
                    return Err(ReadError::Damaged(run.pack));
                }
                Ok((run, bytes))
            }
        });
        let mut out = vec![Bytes::new(); locations.len()];
        let mut reads = stream::iter(reads).buffer_unordered(READS_AT_ONCE);
        while let Some((run, bytes)) = reads.try_next().await? {
            for index in run.members {
                let from = (locations[index].offset - run.start) as usize;
                out[index] = bytes.slice(from..from + locations[index].stored_len as usize);
            }
        }
        Ok(out)
    }
}

/// Chunks read together.
struct Run {
    pack: PackId,
    start: u64,
    end: u64,
    members: Vec<usize>,
}

fn runs(locations: &[Location]) -> Vec<Run> {
    let mut order: Vec<usize> = (0..locations.len()).collect();
    order.sort_unstable_by_key(|n| (locations[*n].pack, locations[*n].offset));
    let mut runs: Vec<Run> = Vec::new();
    for index in order {
        let at = &locations[index];
        let end = at.offset + u64::from(at.stored_len);
        match runs.last_mut() {
            Some(run)
                if run.pack == at.pack
                    && at.offset <= run.end + GAP_MAX
                    && end.max(run.end) - run.start <= RUN_BYTES_MAX =>
            {
                run.end = run.end.max(end);
                run.members.push(index);
            }
            _ => runs.push(Run { pack: at.pack, start: at.offset, end, members: vec![index] }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use distd_core::packing::Codec;

    use super::*;

    fn at(pack: u64, offset: u64, stored_len: u32) -> Location {
        Location { pack: PackId(pack), offset, stored_len, raw_len: stored_len, codec: Codec::Raw }
    }

    #[test]
    fn neighbours_are_read_together_and_strangers_are_not() {
        let locations =
            [at(1, 100, 50), at(2, 0, 10), at(1, 0, 100), at(1, 10 << 20, 5), at(1, 150, 7), at(1, 0, 100)];
        let shape: Vec<_> =
            runs(&locations).into_iter().map(|r| (r.pack.0, r.start, r.end, r.members.len())).collect();
        assert_eq!(shape, [(1, 0, 157, 4), (1, 10 << 20, (10 << 20) + 5, 1), (2, 0, 10, 1)]);
    }

    #[test]
    fn no_read_is_longer_than_its_bound() {
        let locations: Vec<_> = (0..1000).map(|n| at(1, n * 60_000, 60_000)).collect();
        let runs = runs(&locations);
        assert!(runs.iter().all(|r| r.end - r.start <= RUN_BYTES_MAX));
        assert_eq!(runs.iter().map(|r| r.members.len()).sum::<usize>(), 1000);
    }

    #[test]
    fn the_block_cache_stays_bounded() {
        let mut shared = Shared::new();
        for n in 0..1000 {
            shared.block((PackId(n), 0));
            shared.block((PackId(0), 0));
        }
        assert_eq!(shared.blocks.len() as u64, BLOCKS_MAX);
        assert!(shared.blocks.get(&(PackId(0), 0)).is_some(), "a block in use stays");
    }
}
