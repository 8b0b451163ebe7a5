//! A release with the unpacked side of its packed files behind it.
//!
//! To the search for bases a view is more of the same artifact: bytes, regions and chunks. Its chunks exist only while a set
//! is made or applied, in a temporary file here and there, under ids of the set's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use distd_core::cut::{Batches, CutParams, ReadAt, RegionKind, Regions};
use distd_core::limits::{VIEW_BYTES_MAX, VIEW_IDS_FROM};
use distd_core::patch::pair::{ChunkSpan, Need, fold, needs};
use distd_core::patch::view::{self, Joined, PackedFile};
use distd_core::{ChunkHash, ChunkId};

use super::artifact::StoredArtifact;

/// A release and its views.
#[derive(Debug)]
pub(super) struct Viewed {
    stored: StoredArtifact,
    file: File,
    end: u64,
    pub(super) views: Vec<View>,
    regions: Regions,
    spans: Vec<ChunkSpan>,
    /// Of the view chunks.
    ids: Vec<ChunkId>,
}

/// One packed file and its view.
#[derive(Debug)]
pub(super) struct View {
    packed: PackedFile,
    /// Where the view lies, behind the release's own bytes.
    range: Range<u64>,
    /// How to pack it again; empty on the old side.
    pub(super) recipe: Vec<u8>,
}

/// Both releases of a set, and which chunks are to be rebuilt.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) old: Viewed,
    pub(super) new: Viewed,
    pub(super) needs: Vec<Need>,
}

impl Pair {
    /// Finds packed files that changed and unpacks them on both sides. Blocks; some seconds for an initrd.
    ///
    /// # Errors
    /// What reading the releases or writing to `spool` reports.
    pub(super) fn new(old: StoredArtifact, new: StoredArtifact, spool: &Path) -> io::Result<Self> {
        let before = needs(old.spans(), new.spans());
        let mut new = Viewed::new(new, spool)?;
        let mut names = BTreeSet::new();
        for packed in view::packed_files(&new.stored, &new.regions)? {
            let wanted = packed.parts.iter().any(|part| {
                let chunks = new.chunks_in(part);
                before[chunks.start as usize..chunks.end as usize].contains(&Need::Wanted)
            });
            if wanted && new.unpack(&packed)? {
                names.insert(fold(&packed.name));
            }
        }
        let mut old = Viewed::new(old, spool)?;
        for packed in view::packed_files(&old.stored, &old.regions)? {
            if names.contains(&fold(&packed.name)) {
                old.inflate(packed)?;
            }
        }
        let mut known = BTreeMap::new();
        let mut next = VIEW_IDS_FROM;
        old.finish(|_, _| {
            next += 1;
            ChunkId(next - 1)
        })?;
        for index in 0..old.spans.len() as u32 {
            known.entry(old.spans[index as usize].hash).or_insert(old.id(index));
        }
        for index in 0..new.spans.len() as u32 {
            known.entry(new.spans[index as usize].hash).or_insert(new.id(index));
        }
        new.finish(|hash, _| {
            *known.entry(*hash).or_insert_with(|| {
                next += 1;
                ChunkId(next - 1)
            })
        })?;
        let mut needs = needs(&old.spans, &new.spans);
        // The chunks of a packed file come out when its view is packed again.
        for view in &new.views {
            for part in &view.packed.parts {
                let chunks = new.chunks_in(part);
                for need in &mut needs[chunks.start as usize..chunks.end as usize] {
                    *need = if *need == Need::Wanted { Need::Other } else { *need };
                }
            }
        }
        Ok(Self { old, new, needs })
    }
}

impl Viewed {
    fn new(stored: StoredArtifact, spool: &Path) -> io::Result<Self> {
        let (regions, spans) = (stored.regions(), stored.spans().to_vec());
        let (end, file) = (stored.len(), tempfile::tempfile_in(spool)?);
        Ok(Self { stored, file, end, views: Vec::new(), regions, spans, ids: Vec::new() })
    }

    fn view_bytes(&self) -> u64 {
        self.end - self.stored.len()
    }

    /// Adds the view of a packed file, when it has one.
    fn unpack(&mut self, packed: &PackedFile) -> io::Result<bool> {
        let room = VIEW_BYTES_MAX.saturating_sub(self.view_bytes());
        let from = self.file.seek(SeekFrom::Start(self.view_bytes()))?;
        let joined = Joined { artifact: &self.stored, parts: &packed.parts };
        let Some(unpacked) = view::unpack(&joined, room, &mut self.file)? else {
            return Ok(false);
        };
        let range = self.end..self.end + unpacked.view_bytes;
        if !self.packs_again(from, &unpacked.recipe, &joined)? {
            tracing::error!("a view does not pack again and is not used");
            return Ok(false);
        }
        self.end = range.end;
        self.views.push(View { packed: packed.clone(), range, recipe: unpacked.recipe });
        Ok(true)
    }

    /// Whether the very code a device runs makes the packed file of the view.
    fn packs_again(&self, from: u64, recipe: &[u8], packed: &Joined<'_, StoredArtifact>) -> io::Result<bool> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(from))?;
        let mut same = Same { packed, at: 0, buffer: Vec::new() };
        let mut view = io::BufReader::with_capacity(1 << 20, file);
        Ok(view::repack(recipe, &mut view, &mut same).is_ok_and(|bytes| bytes == packed.len()))
    }

    /// Adds the view of an old packed file, as far as it is sound.
    fn inflate(&mut self, packed: PackedFile) -> io::Result<()> {
        let room = VIEW_BYTES_MAX.saturating_sub(self.view_bytes());
        self.file.seek(SeekFrom::Start(self.view_bytes()))?;
        let joined = Joined { artifact: &self.stored, parts: &packed.parts };
        let bytes = view::inflate(&joined, room, &mut self.file)?;
        if bytes > 0 {
            let range = self.end..self.end + bytes;
            self.end = range.end;
            self.views.push(View { packed, range, recipe: Vec::new() });
        }
        Ok(())
    }

    /// Cuts the views; `id` names each of their chunks.
    fn finish(&mut self, mut id: impl FnMut(&ChunkHash, u32) -> ChunkId) -> io::Result<()> {
        let mut parts: Vec<(u64, RegionKind, Option<Vec<u8>>)> = self
            .regions
            .all()
            .iter()
            .map(|region| (region.len, region.kind, self.regions.name(region).map(<[u8]>::to_vec)))
            .collect();
        let own = parts.len();
        for view in &self.views {
            let inside = view::parts(self, view.range.clone(), &view.packed.name)?;
            parts.extend(inside.into_iter().map(|(len, kind, name)| (len, kind, Some(name))));
        }
        let all = parts.iter().map(|(len, kind, name)| (*len, *kind, name.as_deref()));
        let regions = Regions::from_parts(all).ok_or(io::ErrorKind::InvalidData)?;
        let (mut spans, mut ids) = (Vec::new(), Vec::new());
        let mut batches = Batches::new(&*self, &regions.all()[own..], CutParams::default());
        let mut buffer = Vec::new();
        while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
            for chunk in batch.chunks() {
                let (len, hash) = (chunk.data.len() as u32, ChunkHash::of(chunk.data));
                ids.push(id(&hash, len));
                spans.push(ChunkSpan { offset: chunk.offset, len, hash });
            }
            buffer = batch.into_buffer();
        }
        self.spans.append(&mut spans);
        (self.regions, self.ids) = (regions, ids);
        Ok(())
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    pub(super) fn spans(&self) -> &[ChunkSpan] {
        &self.spans
    }

    /// The release itself.
    pub(super) fn stored(&self) -> &StoredArtifact {
        &self.stored
    }

    /// Chunks of the release itself; those of views come behind.
    pub(super) fn own_chunks(&self) -> u32 {
        self.stored.spans().len() as u32
    }

    /// The id of a chunk by its index.
    pub(super) fn id(&self, index: u32) -> ChunkId {
        match index.checked_sub(self.own_chunks()) {
            Some(of_view) => self.ids[of_view as usize],
            None => self.stored.id(index),
        }
    }

    /// What a chunk costs on the wire, bytes as stored; that of a view cannot be had there.
    pub(super) fn stored_len(&self, index: u32) -> Option<u64> {
        (index < self.own_chunks()).then(|| self.stored.stored_len(index))
    }

    fn chunks_in(&self, part: &Range<u64>) -> Range<u32> {
        let at = |offset| self.spans.partition_point(|span| span.offset < offset) as u32;
        at(part.start)..at(part.end)
    }

    /// Indices of the chunks of a packed file, in file order.
    pub(super) fn packed_chunks(&self, view: &View) -> Vec<u32> {
        view.packed.parts.iter().flat_map(|part| self.chunks_in(part)).collect()
    }

    /// Indices of the chunks of a view.
    pub(super) fn view_chunks(&self, view: &View) -> Range<u32> {
        self.chunks_in(&view.range)
    }
}

impl ReadAt for Viewed {
    fn len(&self) -> u64 {
        self.end
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let own = self.stored.len();
        let before = own.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (stored, views) = buf.split_at_mut(before);
        if !stored.is_empty() {
            self.stored.read_exact_at(stored, offset)?;
        }
        if views.is_empty() {
            return Ok(());
        }
        self.file.read_exact_at(views, offset + before as u64 - own)
    }
}

/// Compares what is written with a packed file.
struct Same<'a> {
    packed: &'a Joined<'a, StoredArtifact>,
    at: u64,
    buffer: Vec<u8>,
}

impl io::Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        self.packed.read_exact_at(&mut self.buffer, self.at)?;
        if self.buffer != bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
