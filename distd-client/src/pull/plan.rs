//! Plan of a pull: what it would do, before any byte of the artifact is transferred.

use std::path::Path;
use std::sync::Arc;

use distd_core::bounds::TREE_LISTING_BYTES_MAX;
use distd_core::error::Chain;
use distd_core::manifest::{ChunkAt, Kind, Manifest};
use distd_core::patch::Choice;
use distd_core::planner;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchConfig;
use distd_core::{ChunkHash, ChunkId};
use distd_peer::table::ChunkTable;

use super::entries::ZeroChunk;
use super::kept::{is_block_device, staging_path};
use super::report::{PlanReport, SourcePlan};
use super::request::PullRequest;
use super::run::{ask, prepare, received};
use super::seeds::{SeedFile, open_file};
use super::staging::Staging;
use crate::disk::side;
use crate::disk::spread::Places;

/// Approximate rate at which a device reads, hashes and writes, in bytes per second
/// (docs/benchmarks.md, "Against others").
const COPY_RATE: f64 = 500e6;

/// Bytes that a pull overwrites but keeps where they are right: a block device, or the part of the
/// artifact from an interrupted pull.
struct InPlace {
    bytes: SeedFile,
    buffer: Vec<u8>,
}

impl InPlace {
    fn open(out: &Path, data: &Path, manifest: &Manifest) -> Option<Self> {
        let bytes = match manifest.root().kind {
            Kind::Tree { .. } => {
                let staging = Staging::of(out);
                let listing = staging.is_begun_for(manifest.id()).then_some(staging.listing())?;
                let listing = side::read_anyones(&listing, TREE_LISTING_BYTES_MAX).ok()?;
                SeedFile::of_tree(&staging.tree(), listing).ok()?
            }
            // The pull compares the bytes in the places before it writes them.
            _ if Places::of(out, data).ok()?.is_some() => return None,
            _ if is_block_device(out) => SeedFile::File(open_file(out).ok()?),
            _ => SeedFile::File(open_file(&staging_path(out)).ok()?),
        };
        Some(Self { bytes, buffer: Vec::new() })
    }

    fn has(&mut self, at: &ChunkAt) -> bool {
        self.buffer.resize(at.entry.len as usize, 0);
        let read = self.bytes.read_at(at.offset, &mut self.buffer);
        read.is_ok() && ChunkHash::of(&self.buffer) == at.entry.hash
    }
}

/// Plans a pull; writes nothing.
///
/// # Errors
/// As [`pull`](super::pull).
pub async fn plan(request: &PullRequest) -> anyhow::Result<PlanReport> {
    let prepared = prepare(request, ask(request).await?, None).await?;
    let zero = ZeroChunk::new(prepared.manifest.root().cut.max());
    let mut in_place = request
        .target
        .as_ref()
        .and_then(|target| InPlace::open(target.path(), &request.data, &prepared.manifest));
    let mut plan = planner::plan(&prepared.manifest, FetchConfig::default().batch_chunks, |at| {
        zero.is(at)
            || prepared.index.find(&at.entry.hash, at.entry.len).is_some()
            || in_place.as_mut().is_some_and(|there| there.has(at))
    });
    let choice = if prepared.offers.sets.is_empty() {
        Choice { chunks: plan.fetch.ids().collect(), ..Choice::default() }
    } else {
        let table = Arc::new(ChunkTable::of(&prepared.manifest));
        let held = (&prepared.seeds.held_manifests()[..], &*prepared.index);
        let choice = prepared.offers.choose_before((&table, &plan.fetch), held, prepared.link);
        let raw = |id: &ChunkId| table.get(*id).map_or(0, |entry| u64::from(entry.len));
        plan.fetch_raw_bytes = choice.chunks.iter().map(raw).sum();
        choice
    };
    let fetch: ChunkRanges = choice.chunks.iter().copied().collect();
    let is_fetched = prepared.manifest.entries().filter(|at| fetch.contains(at.entry.id));
    let placed: u64 = is_fetched.map(|at| u64::from(at.entry.len)).sum();
    let batch = FetchConfig::default().batch_chunks.max(1);
    let requests_of = |count: u64| count.div_ceil(batch);
    let requests = [requests_of(choice.patches.len() as u64), requests_of(fetch.len())];
    let cost = prepared.session.parents.cost(prepared.manifest.id(), &fetch).await;
    if let Err(error) = &cost {
        tracing::warn!(
            error = %Chain(error),
            "no parent could tell the size of the chunks on the wire"
        );
    }
    let fetch_bytes = cost.ok().filter(|cost| cost.chunks == fetch.len()).map(|cost| cost.bytes);
    let link = prepared.link;
    let sources = vec![
        SourcePlan {
            source: "seeds",
            artifact_bytes: plan.held_bytes,
            wire_bytes: Some(0),
            requests: 0,
            seconds: plan.held_bytes as f64 / COPY_RATE,
        },
        SourcePlan {
            source: "patches",
            artifact_bytes: plan.artifact_bytes.saturating_sub(plan.held_bytes + placed),
            wire_bytes: Some(choice.payload_bytes),
            requests: requests[0],
            seconds: link.seconds(choice.payload_bytes) + choice.processor.as_secs_f64(),
        },
        SourcePlan {
            source: "chunks",
            artifact_bytes: placed,
            wire_bytes: fetch_bytes,
            requests: requests[1],
            seconds: link.seconds(fetch_bytes.unwrap_or(plan.fetch_raw_bytes)),
        },
    ];
    Ok(PlanReport {
        product: prepared.product,
        version: prepared.version,
        downgraded_from: prepared.step.back_from(),
        manifest: prepared.manifest.id(),
        artifact_bytes: plan.artifact_bytes,
        held_bytes: plan.held_bytes,
        fetch_bytes,
        fetch_raw_bytes: plan.fetch_raw_bytes,
        fetch_chunks: fetch.len(),
        fetch_ranges: fetch.range_count(),
        patches: choice.patches.len() as u64,
        patch_bytes: choice.payload_bytes,
        patched_chunk_bytes: choice.saved_bytes,
        batches: requests.iter().sum(),
        wire_bytes: received(&prepared.session),
        sources,
    })
}
