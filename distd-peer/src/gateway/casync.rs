//! A release for casync and desync: an index (`.caibx`) and a store of chunks.
//!
//! casync takes any borders of chunks, so these are the borders of the release's own chunks: a
//! chunk that two releases have in common has one name in both indexes. The names are SHA-512/256,
//! which nothing else here uses, so they are made when a client first asks for the index.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA512_256};
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::lru::Lru;
use distd_core::names::Name;
use http::StatusCode;
use tokio::sync::OnceCell;

use super::{FileBytes, Found, Refusal, Releases};

/// Indexes in memory, each some 130 bytes for a chunk with its file: 9 MB for an image of 1 GiB.
const INDEXES_MAX: u64 = 2;

/// Most chunks of a release with an index: 4 GiB in chunks of 16 KiB.
const CHUNKS_MAX: usize = 1 << 18;

/// Level of zstd for a chunk on its way, for speed: chunks go over the site's network.
const ZSTD_LEVEL: i32 = 1;

// casync, `src/caformat.h`.
const FORMAT_INDEX: u64 = 0x9682_4d9c_7b12_9ff9;
const FORMAT_TABLE: u64 = 0xe75b_9e11_2f17_417d;
const FORMAT_TABLE_TAIL: u64 = 0x4b4f_050e_5549_ecd1;
const FORMAT_SHA512_256: u64 = 0x2000_0000_0000_0000;
const INDEX_BYTES: u64 = 48;
const TABLE_HEAD_BYTES: u64 = 16;
const TABLE_ITEM_BYTES: u64 = 40;

/// Name of a chunk in casync's format.
pub(super) type CasyncId = [u8; 32];

/// Chunks of one release by their names in casync's format.
#[derive(Debug)]
struct Index {
    product: Name,
    /// Chunks in the order of the release.
    chunks: Vec<(CasyncId, u32)>,
    /// Chunks by name: name, number in `chunks`, offset in the release.
    by_id: Vec<(CasyncId, u32, u64)>,
    /// The `.caibx` file.
    file: Bytes,
    found: Found,
}

impl Index {
    /// Reads a release whole.
    async fn make(found: &Found, file: &dyn FileBytes) -> io::Result<Self> {
        let lengths = file.lengths().await?;
        if lengths.len() > CHUNKS_MAX {
            return Err(io::Error::other("the release has too many chunks for an index"));
        }
        let mut chunks = Vec::with_capacity(lengths.len());
        let mut lengths = lengths.into_iter();
        let (mut context, mut len) = (Context::new(&SHA512_256), lengths.next().unwrap_or(0));
        let (mut at, mut left) = (0, u64::from(len));
        while at < found.bytes {
            let mut bytes = file.read(at..found.bytes, false).await?;
            at += bytes.len() as u64;
            while !bytes.is_empty() {
                let part = bytes.split_to(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
                left -= part.len() as u64;
                context.update(&part);
                if left == 0 {
                    let id = std::mem::replace(&mut context, Context::new(&SHA512_256)).finish();
                    chunks.push((id.as_ref().try_into().map_err(io::Error::other)?, len));
                    len = lengths.next().unwrap_or(0);
                    left = u64::from(len);
                    if len == 0 && (at < found.bytes || !bytes.is_empty()) {
                        return Err(io::Error::other("the chunks of the release are shorter than it"));
                    }
                }
            }
        }
        let mut offset = 0;
        let mut by_id = Vec::with_capacity(chunks.len());
        for (number, (id, len)) in (0..).zip(&chunks) {
            by_id.push((*id, number, offset));
            offset += u64::from(*len);
        }
        by_id.sort_unstable();
        by_id.dedup_by_key(|(id, ..)| *id);
        let file = file_of(&chunks);
        Ok(Self { product: found.product.clone(), chunks, by_id, file, found: found.clone() })
    }

    /// Offset and length of a chunk in the release.
    fn place(&self, id: &CasyncId) -> Option<(u64, u32)> {
        let at = self.by_id.binary_search_by(|(other, ..)| other.cmp(id)).ok()?;
        let (_, number, offset) = self.by_id[at];
        Some((offset, self.chunks[number as usize].1))
    }
}

/// Makes the `.caibx` file.
fn file_of(chunks: &[(CasyncId, u32)]) -> Bytes {
    let mut file = Vec::with_capacity(chunks.len() * TABLE_ITEM_BYTES as usize + 128);
    let mut number = |number: u64| file.extend_from_slice(&number.to_le_bytes());
    let sizes = chunks.iter().map(|(_, len)| u64::from(*len));
    let largest = sizes.clone().max().unwrap_or(1);
    // Sizes with which a client would cut a seed by casync's own rule.
    let average = (sizes.sum::<u64>() / chunks.len().max(1) as u64).clamp(1, largest);
    for value in [INDEX_BYTES, FORMAT_INDEX, FORMAT_SHA512_256, 1, average, largest, u64::MAX, FORMAT_TABLE] {
        number(value);
    }
    let mut end = 0;
    for (id, len) in chunks {
        end += u64::from(*len);
        file.extend_from_slice(&end.to_le_bytes());
        file.extend_from_slice(id);
    }
    let table = TABLE_HEAD_BYTES + TABLE_ITEM_BYTES * (chunks.len() as u64 + 1);
    for value in [0, 0, INDEX_BYTES, table, FORMAT_TABLE_TAIL] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.into()
}

/// An index that the first request makes and others wait for.
type Place = Arc<OnceCell<Arc<Index>>>;

/// Indexes of the releases that were asked for last.
#[derive(Debug)]
pub(super) struct Indexes(Mutex<Lru<ManifestId, Place>>);

impl Default for Indexes {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(INDEXES_MAX)))
    }
}

fn unreadable(error: &io::Error) -> Refusal {
    Refusal::later(format!("the release could not be read: {error}"), "ask again", 10)
}

impl Indexes {
    async fn of(&self, releases: &dyn Releases, found: &Found) -> Result<Arc<Index>, Refusal> {
        let place = {
            let mut indexes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.get_or_put(found.manifest, 1, Place::default)
        };
        if let Some(index) = place.get() {
            return Ok(index.clone());
        }
        let (file, found) = (releases.open(found).await?, found.clone());
        // The index is made to its end also when its client gives up.
        let making = tokio::spawn(async move {
            place.get_or_try_init(|| async { Index::make(&found, &*file).await.map(Arc::new) }).await.cloned()
        });
        let made = making.await.map_err(io::Error::other).and_then(|made| made);
        made.map_err(|error| unreadable(&error))
    }

    /// The `.caibx` file of a release.
    ///
    /// # Errors
    /// [`Refusal`] when the release cannot be read.
    pub(super) async fn file(&self, releases: &dyn Releases, found: &Found) -> Result<Bytes, Refusal> {
        Ok(self.of(releases, found).await?.file.clone())
    }

    /// A chunk, packed, of the release `found` or of an earlier one of the product: a channel may
    /// move while a client fetches.
    ///
    /// # Errors
    /// [`Refusal`] when no indexed release has it, or the release cannot be read.
    pub(super) async fn chunk(
        &self,
        releases: &dyn Releases,
        found: &Found,
        id: &CasyncId,
    ) -> Result<Bytes, Refusal> {
        let known: Vec<Arc<Index>> = {
            let indexes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.values().filter_map(|place| place.get().cloned()).collect()
        };
        let of_product = |index: &&Arc<Index>| index.product == found.product;
        let has = known.iter().filter(of_product).find_map(|index| Some((index.clone(), index.place(id)?)));
        let (index, (offset, len)) = match has {
            Some(has) => has,
            None => {
                let index = self.of(releases, found).await?;
                let place = index.place(id).ok_or_else(|| {
                    let message =
                        format!("{}@{} has no chunk {}", found.product, found.version, hex::encode(id));
                    Refusal::not_found(message, "fetch the index again: the channel may have moved")
                })?;
                (index, place)
            }
        };
        let file = releases.open(&index.found).await?;
        let (mut raw, end) = (Vec::with_capacity(len as usize), offset + u64::from(len));
        while (raw.len() as u64) < u64::from(len) {
            let part = file.read(offset + raw.len() as u64..end, true).await;
            raw.extend_from_slice(&part.map_err(|error| unreadable(&error))?);
        }
        let packing = move || zstd::bulk::compress(&raw, ZSTD_LEVEL);
        let packed =
            tokio::task::spawn_blocking(packing).await.map_err(io::Error::other).and_then(|packed| packed);
        packed.map(Bytes::from).map_err(|error| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("a chunk could not be packed: {error}"),
                "",
            )
        })
    }
}
