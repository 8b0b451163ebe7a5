//! Chunks that a publisher may know of.
//!
//! A token for some products would learn, by asking which chunks are missing, what other products
//! hold, and could have bytes released by their hash without having them. So to such a token a
//! chunk is known when a release of its products has it, or when it sent the chunk.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::names::Name;
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkHash, ChunkId, ManifestId};

use super::{Ingest, IngestError};
use crate::db::Location;
use crate::publisher::Products;

/// Products remembered; the ids of one are a few hundred ranges for each release.
const PRODUCTS_MAX: usize = 64;

/// Chunk ids of products, as far as they were asked for. Made again when a product's releases are
/// others.
#[derive(Debug, Default)]
pub(super) struct ProductChunks(Mutex<HashMap<Name, Arc<Known>>>);

/// Chunks of one product.
#[derive(Debug, Default)]
pub(super) struct Known {
    manifests: BTreeSet<ManifestId>,
    ids: ChunkRanges,
}

/// Chunks that a publisher may know of.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// The chunks of every product.
    All,
    /// The chunks of some products.
    Of(Arc<[Arc<Known>]>),
}

impl Seen {
    fn has(&self, chunk: ChunkId) -> bool {
        match self {
            Self::All => true,
            Self::Of(products) => products.iter().any(|known| known.ids.contains(chunk)),
        }
    }
}

impl Ingest {
    /// Ids of the chunks that releases and patch sets of a product have. A manifest that is lost
    /// counts for nothing.
    async fn product_chunks(&self, product: &Name) -> Result<Arc<Known>, IngestError> {
        let mut manifests: BTreeSet<ManifestId> =
            self.db.releases(product).await?.into_iter().map(|release| release.manifest).collect();
        let sets = self.db.patch_sets(product).await?;
        manifests.extend(sets.into_iter().filter_map(|row| row.set));
        let known = {
            let kept = self.visible.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.get(product).cloned().unwrap_or_default()
        };
        if known.manifests == manifests {
            return Ok(known);
        }
        // A release that was withdrawn must not stay known.
        let grown = known.manifests.is_subset(&manifests);
        let (mut ids, before) =
            if grown { (known.ids.clone(), known.manifests.clone()) } else { Default::default() };
        for manifest in manifests.difference(&before) {
            if let Some(chunks) = self.manifest_chunks(manifest).await? {
                ids.extend(&chunks);
            }
        }
        let mut kept = self.visible.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= PRODUCTS_MAX && !kept.contains_key(product) {
            kept.clear();
        }
        let known = Arc::new(Known { manifests, ids });
        kept.insert(product.clone(), known.clone());
        Ok(known)
    }

    /// Whether all of these chunks are in releases of `products`.
    ///
    /// # Errors
    /// [`IngestError`].
    pub async fn may_see(&self, products: &Products, chunks: &[ChunkId]) -> Result<bool, IngestError> {
        let seen = self.seen_by(products).await?;
        Ok(chunks.iter().all(|chunk| seen.has(*chunk)))
    }

    /// The chunks that publishers of these products may know of now: asked once for each request.
    ///
    /// # Errors
    /// [`IngestError`].
    pub(super) async fn seen_by(&self, products: &Products) -> Result<Seen, IngestError> {
        if products.are_all() {
            return Ok(Seen::All);
        }
        let mut seen = Vec::new();
        for product in self.db.products().await? {
            if products.has(&product.name) {
                seen.push(self.product_chunks(&product.name).await?);
            }
        }
        Ok(Seen::Of(seen.into()))
    }

    /// Places of the chunks that are among `seen` and that the store did not lose. In the order
    /// given.
    pub(super) async fn released_to(
        &self,
        seen: &Seen,
        hashes: &[ChunkHash],
    ) -> Result<Vec<Option<Location>>, IngestError> {
        let found = self.released(hashes).await?;
        Ok(found.into_iter().map(|place| place.filter(|(id, _)| seen.has(*id)).map(|(_, at)| at)).collect())
    }
}
