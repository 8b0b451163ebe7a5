//! Which chunks a publisher may know of.
//!
//! A token for some products would learn, by asking which chunks are missing, what other products hold, and could have
//! bytes released by their hash without having them. So to such a token a chunk is known when a release of its products
//! has it, or when it sent the chunk.

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

/// Chunk ids of products, as far as somebody asked. Made again when a product's releases are others.
#[derive(Debug, Default)]
pub(super) struct ProductChunks(Mutex<HashMap<Name, Arc<Known>>>);

#[derive(Debug, Default)]
struct Known {
    manifests: BTreeSet<ManifestId>,
    ids: ChunkRanges,
}

impl Ingest {
    /// Ids of the chunks that releases and patch sets of a product have.
    ///
    /// # Errors
    /// [`IngestError`]. A manifest that is lost counts for nothing.
    pub async fn product_chunks(&self, product: &Name) -> Result<ChunkRanges, IngestError> {
        let mut manifests: BTreeSet<ManifestId> =
            self.db.releases(product).await?.into_iter().map(|release| release.manifest).collect();
        let sets = self.db.patch_sets(product).await?;
        manifests.extend(sets.into_iter().filter_map(|row| row.set));
        let known = {
            let kept = self.visible.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.get(product).cloned().unwrap_or_default()
        };
        if known.manifests == manifests {
            return Ok(known.ids.clone());
        }
        // What was withdrawn must not stay known.
        let grown = known.manifests.is_subset(&manifests);
        let (mut ids, before) =
            if grown { (known.ids.clone(), known.manifests.clone()) } else { Default::default() };
        for manifest in manifests.difference(&before) {
            match self.manifest(manifest).await {
                Ok(manifest) => ids.extend(&manifest.entries().map(|at| at.entry.id).collect()),
                Err(IngestError::MissingManifest(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut kept = self.visible.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= PRODUCTS_MAX && !kept.contains_key(product) {
            kept.clear();
        }
        kept.insert(product.clone(), Arc::new(Known { manifests, ids: ids.clone() }));
        Ok(ids)
    }

    /// Whether all of these chunks are in releases of `products`.
    ///
    /// # Errors
    /// [`IngestError`].
    pub async fn may_see(&self, products: &Products, chunks: &[ChunkId]) -> Result<bool, IngestError> {
        if products.are_all() {
            return Ok(true);
        }
        let seen = self.seen_by(products).await?;
        Ok(chunks.iter().all(|chunk| seen.iter().any(|ids| ids.contains(*chunk))))
    }

    async fn seen_by(&self, products: &Products) -> Result<Vec<ChunkRanges>, IngestError> {
        let mut seen = Vec::new();
        for product in self.db.products().await? {
            if products.has(&product.name) {
                seen.push(self.product_chunks(&product.name).await?);
            }
        }
        Ok(seen)
    }

    /// Where those chunks lie that some release of these products has and the store did not lose. In the order given.
    pub(super) async fn released_to(
        &self,
        products: &Products,
        hashes: &[ChunkHash],
    ) -> Result<Vec<Option<Location>>, IngestError> {
        let mut found = self.released(hashes).await?;
        if !products.are_all() {
            let ids = self.db.chunk_ids(hashes).await?;
            let seen = self.seen_by(products).await?;
            for (place, id) in found.iter_mut().zip(ids) {
                let known = id.is_some_and(|id| seen.iter().any(|ids| ids.contains(id)));
                *place = place.take().filter(|_| known);
            }
        }
        Ok(found)
    }
}
