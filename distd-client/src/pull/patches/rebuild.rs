//! A small update without the nodes of its manifest: the set is applied, the rebuilt chunks are
//! hashed, and the outline yields the manifest.
//!
//! Hashes and ids of thousands of short chunks would be larger than the change itself. Rebuilt
//! chunks are set aside in a file that then serves as one more seed, so the following pull needs no
//! special case.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use distd_core::manifest::{Builder, Entry, Manifest, Root};
use distd_core::patch::{Method, Outline, PatchChunkId};
use distd_core::planner::HeldIndex;
use distd_core::{ChunkHash, ChunkId};
use distd_peer::table::ChunkTable;
use distd_peer::trust::tuf::Resolved;

use super::apply::{Arrivals, Work, apply_all, held};
use super::offers::{Offers, Set};
use super::payloads::{PayloadSink, Payloads};
use super::transient::TransientChunks;
use crate::pull::network::{Network, PATIENCE};
use crate::pull::seeds::Seeds;

/// Largest number of raw bytes rebuilt this way, because they are written twice. Above it, the
/// nodes are a small part of the transfer.
const REBUILT_MAX: usize = 64 << 20;

/// Files of this stage.
pub(in crate::pull) struct Files {
    /// Payloads; the file stays until the pull is over, in case the pull is interrupted.
    pub(in crate::pull) payloads: PathBuf,
    /// Rebuilt chunks.
    pub(in crate::pull) rebuilt: PathBuf,
}

/// Result of the stage.
pub(in crate::pull) struct Rebuilt {
    pub(in crate::pull) manifest: Manifest,
    pub(in crate::pull) patches: u64,
    /// Bytes of payloads received.
    pub(in crate::pull) patch_bytes: u64,
    /// Raw bytes rebuilt.
    pub(in crate::pull) bytes: u64,
}

/// Returns the only set, if it is suitable for this stage.
fn suited(offers: &Offers) -> Option<&Set> {
    let [set] = &offers.sets[..] else { return None };
    let patches = &set.index.patches;
    // Views would take room beside the target; a hash tree, or a large file, takes only its own.
    let without_views = patches
        .iter()
        .all(|patch| matches!(patch.method(), Some(Method::Buffer(_) | Method::HashTree | Method::Large(_))));
    let bytes: usize = patches.iter().map(distd_core::patch::SetPatch::target_bytes).sum();
    (set.has_outline() && without_views && bytes <= REBUILT_MAX).then_some(set)
}

/// Rebuilds the chunks of `offers` and, with them, the manifest of `resolved`. The rebuilt chunks
/// become one more seed. `None` if the set is not suitable, or if the release that it starts from
/// is not held.
///
/// # Errors
/// The reason why the manifest could not be built; the caller gets it node by node instead.
/// Payloads that arrived stay in their file.
pub(in crate::pull) async fn rebuild(
    network: &Network,
    resolved: &Resolved,
    offers: &Arc<Offers>,
    seeds: &mut Arc<Seeds>,
    index: &mut Arc<HeldIndex>,
    files: &Files,
) -> anyhow::Result<Option<Rebuilt>> {
    let Some(set) = suited(offers) else { return Ok(None) };
    let Some(from) = seeds.manifests.iter().find(|manifest| manifest.id() == set.index.from) else {
        return Ok(None);
    };
    let root = Root::decode(&resolved.root_node)?;
    let before: Vec<Entry> = from.entries().map(|at| at.entry).collect();
    let tables = [Arc::new(ChunkTable::default()), Arc::new(ChunkTable::of(from))];
    let mut targets: Vec<PatchChunkId> =
        set.index.patches.iter().flat_map(|patch| patch.target_chunks()).map(|(id, _)| id).collect();
    targets.sort_unstable();
    targets.dedup();
    let wanted: Vec<ChunkId> = targets.iter().filter_map(|id| id.chunk()).collect();
    let payloads = Arc::new(Payloads::open(&files.payloads, 0, set)?);
    let mut choice = offers.choose_all(&wanted, |id| held(index, &tables, id).is_some());
    ensure!(choice.chunks.is_empty(), "the patches do not rebuild all chunks");
    choice.transient = targets;

    let arrivals = Arc::new(Arrivals::default());
    for at in choice.patches.iter().filter(|at| payloads.is_here(at.patch)) {
        arrivals.payload(*at);
    }
    let mut fetch = payloads.wanted(&choice.patches);
    fetch.extend(&payloads.outline_wanted());
    let work = Work {
        offers: offers.clone(),
        choice,
        payloads: vec![payloads.clone()],
        placer: None,
        seeds: seeds.clone(),
        index: index.clone(),
        tables,
        arrivals: arrivals.clone(),
        transient: TransientChunks::open(files.rebuilt.clone(), true),
    };
    let applying = tokio::task::spawn_blocking(move || {
        let applied = apply_all(&work);
        let transient = work.transient;
        (applied, transient)
    });
    let mut published = None;
    let fetched = if fetch.is_empty() {
        Ok(())
    } else {
        let sink = Arc::new(PayloadSink::new(payloads.clone(), arrivals.clone()));
        let table = Arc::new(ChunkTable::of(&set.manifest));
        published = network.publish(&set.manifest, &table, &payloads.holdings, payloads.clone());
        let fetching = network.fetch(set.manifest.id(), table, sink, fetch, published.as_ref());
        let arrived = || payloads.bytes.load(std::sync::atomic::Ordering::Relaxed);
        // Without the outline there is another way to the manifest.
        let fetched = network.unless_silent(Some(PATIENCE), arrived, fetching).await;
        fetched.map_err(anyhow::Error::from).and_then(|fetched| Ok(fetched?))
    };
    arrivals.all_fetched();
    let (applied, transient) = applying.await?;
    let (places, file) = (transient.list(), transient.into_file());
    let (applied, ()) = (applied?, fetched?);
    ensure!(applied.failed == 0, "{} patches failed", applied.failed);
    let outline = Outline::decode(&payloads.outline().context("the outline was not received")?)?;

    let file = file.context("the file of rebuilt chunks could not be created")?;
    let cut = root.cut;
    let built = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let hashed = hash_all(&file, &places)?;
        let find = |id: ChunkId| {
            let index = hashed.binary_search_by_key(&id, |(id, ..)| *id).ok()?;
            Some((hashed[index].1, hashed[index].3))
        };
        let entries = outline.entries(&before, find, root.chunks).context("the outline does not fit")?;
        let mut builder = Builder::new(cut, root.kind);
        for entry in entries {
            builder.push(entry);
        }
        Ok((builder.finish(root.blake3), file, hashed))
    });
    let (manifest, file, hashed) = built.await??;
    if manifest.id() != resolved.manifest {
        bail!("the outline gives another manifest");
    }
    // No other reference is left: the threads that applied patches have ended.
    let (Some(seeds), Some(index)) = (Arc::get_mut(seeds), Arc::get_mut(index)) else {
        bail!("seeds are in use")
    };
    let seed = seeds.add_file(file);
    let bytes = hashed.iter().map(|(_, _, _, len)| u64::from(*len)).sum();
    for (_, hash, offset, len) in hashed {
        index.insert(hash, len, distd_core::planner::HeldAt { seed, offset });
    }
    index.finish();
    // Serve the payloads until here, because a neighbour may be fetching the same.
    drop(published);
    let patch_bytes = payloads.bytes.load(std::sync::atomic::Ordering::Relaxed);
    Ok(Some(Rebuilt { manifest, patches: applied.patches, patch_bytes, bytes }))
}

type Hashed = (ChunkId, ChunkHash, u64, u32);

/// Returns the hash of each chunk in the file that is not one of a view, by id.
fn hash_all(file: &std::fs::File, places: &[(PatchChunkId, u64, u32)]) -> std::io::Result<Vec<Hashed>> {
    use std::os::unix::fs::FileExt;
    let mut buffer = Vec::new();
    places
        .iter()
        .filter_map(|(id, offset, len)| Some((id.chunk()?, offset, len)))
        .map(|(id, offset, len)| {
            buffer.resize(*len as usize, 0);
            file.read_exact_at(&mut buffer, *offset)?;
            Ok((id, ChunkHash::of(&buffer), *offset, *len))
        })
        .collect()
}
