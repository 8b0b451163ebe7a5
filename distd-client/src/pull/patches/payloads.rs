//! Payloads in a file beside the target, so that an interrupted pull does not fetch them again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::patch::PatchRef;
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkHash, ChunkId};
use distd_peer::driver::{ChunkSink, SinkError};
use distd_peer::share::{ChunkBytes, Holdings};

use super::Arrivals;
use super::offers::Set;
use crate::disk::side::{self, SideError};
use crate::pull::sink::ReceivedCounts;

/// File of one set: payloads at the offsets that they have in the set; the rest is a hole.
pub(in crate::pull) struct Payloads {
    file: File,
    set: usize,
    /// Payloads by patch number, followed by the pieces of the outline.
    payloads: Vec<Entry>,
    offsets: Vec<u64>,
    patches: usize,
    /// Chunk id of each payload with the patch number, sorted. Equal payloads are one chunk with
    /// several patch numbers.
    by_id: Vec<(ChunkId, usize)>,
    /// Whether each payload was in the file when the file was opened.
    here: Vec<bool>,
    /// Payloads that are in the file now, for neighbours.
    pub(in crate::pull) holdings: Arc<Holdings>,
    /// Packed bytes that arrived.
    pub(in crate::pull) bytes: AtomicU64,
}

impl Payloads {
    /// Opens the file for set number `set` and hashes what an earlier pull left in it.
    ///
    /// # Errors
    /// The error of creating the file.
    pub(in crate::pull) fn open(path: &Path, set: usize, body: &Set) -> Result<Self, SideError> {
        let (file, resumed) = side::open(path)?;
        let behind = body.outline.iter();
        let payloads: Vec<Entry> =
            body.payloads.iter().copied().chain(behind.clone().map(|at| at.entry)).collect();
        let offsets: Vec<u64> = body.offsets.iter().copied().chain(behind.map(|at| at.offset)).collect();
        let mut by_id: Vec<_> = payloads.iter().zip(0..).map(|(entry, patch)| (entry.id, patch)).collect();
        by_id.sort_unstable();
        let mut this = Self {
            by_id,
            file,
            set,
            here: vec![false; payloads.len()],
            payloads,
            offsets,
            patches: body.payloads.len(),
            holdings: Arc::default(),
            bytes: AtomicU64::new(0),
        };
        if resumed {
            this.here = (0..this.payloads.len()).map(|patch| this.read(patch).is_some()).collect();
            let here = this.by_id.iter().filter(|(_, patch)| this.here[*patch]);
            this.holdings.add(here.map(|(id, _)| *id));
        }
        Ok(this)
    }

    /// Returns whether the payload was in the file when the file was opened.
    pub(in crate::pull) fn is_here(&self, patch: usize) -> bool {
        self.here[patch]
    }

    /// Reads the payload; `None` if its hash is wrong.
    pub(in crate::pull) fn read(&self, patch: usize) -> Option<Vec<u8>> {
        let entry = self.payloads[patch];
        let mut bytes = vec![0; entry.len as usize];
        self.file.read_exact_at(&mut bytes, self.offsets[patch]).ok()?;
        (ChunkHash::of(&bytes) == entry.hash).then_some(bytes)
    }

    /// Returns the chunks to fetch for these patches.
    pub(in crate::pull) fn wanted(&self, patches: &[PatchRef]) -> ChunkRanges {
        patches
            .iter()
            .filter(|at| at.set == self.set && !self.here[at.patch])
            .map(|at| self.payloads[at.patch].id)
            .collect()
    }

    /// Returns the chunks to fetch for the outline.
    pub(super) fn outline_wanted(&self) -> ChunkRanges {
        (self.patches..self.payloads.len()).filter(|n| !self.here[*n]).map(|n| self.payloads[n].id).collect()
    }

    /// Reads the outline, once it was fetched.
    pub(super) fn outline(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in self.patches..self.payloads.len() {
            bytes.extend(self.read(piece)?);
        }
        Some(bytes)
    }
}

impl ChunkBytes for Payloads {
    fn read(&self, entry: &Entry, buffer: &mut [u8]) -> bool {
        let first = self.by_id.partition_point(|(id, _)| *id < entry.id);
        let Some((_, patch)) = self.by_id.get(first).filter(|(id, _)| *id == entry.id) else { return false };
        self.file.read_exact_at(buffer, self.offsets[*patch]).is_ok()
    }
}

/// Writes payloads as they arrive, and reports them to the waiting patches.
pub(in crate::pull) struct PayloadSink {
    payloads: Arc<Payloads>,
    arrivals: Arc<Arrivals>,
    pub(in crate::pull) received: ReceivedCounts,
}

impl PayloadSink {
    pub(in crate::pull) fn new(payloads: Arc<Payloads>, arrivals: Arc<Arrivals>) -> Self {
        Self { payloads, arrivals, received: ReceivedCounts::default() }
    }
}

impl ChunkSink for PayloadSink {
    fn accept(&self, entry: &Entry, packed: &PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        if !self.received.first(entry.id, packed) {
            return Ok(());
        }
        let Payloads { file, set, by_id, offsets, bytes, holdings, .. } = &*self.payloads;
        let first = by_id.partition_point(|(id, _)| *id < entry.id);
        for (_, patch) in by_id[first..].iter().take_while(|(id, _)| *id == entry.id) {
            file.write_all_at(raw, offsets[*patch]).map_err(|e| SinkError(e.into()))?;
            self.arrivals.payload(PatchRef { set: *set, patch: *patch });
        }
        holdings.add([entry.id]);
        bytes.fetch_add(packed.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
