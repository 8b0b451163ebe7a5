//! A release followed by the views of its packed files.
//!
//! For the search for bases a view is one more part of the artifact, with bytes, regions and
//! chunks. Its chunks exist only while a set is made or applied, in a temporary file on the origin
//! or the device, under ids that belong to the set.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use distd_core::ChunkHash;
use distd_core::bounds::VIEW_BYTES_MAX;
use distd_core::cut::{Batches, CutParams, ReadAt, RegionKind, Regions};
use distd_core::patch::pair::{ChunkSpan, Need, fold, needs, needs_beside};
use distd_core::patch::view::{self, Group, Joined, Layer, Unpacked, ViewLimits};
use distd_core::patch::{PatchChunkId, ViewChunkId};

use super::artifact::StoredArtifact;
use super::trees::{TreePatch, tree_patches};

/// Memory for packing a file that lies in a view, bytes: as much as every device has.
const INNER_MEMORY: u64 = 16 << 20;

/// Release followed by its views.
#[derive(Debug)]
pub(super) struct Viewed {
    stored: StoredArtifact,
    /// Bytes of the views.
    file: File,
    /// Length of the release and its views, bytes.
    end: u64,
    pub(super) views: Vec<View>,
    /// Number of views that are cut into chunks.
    cut: usize,
    /// Offset up to which files that are packed by themselves were looked for.
    searched: u64,
    regions: Regions,
    spans: Vec<ChunkSpan>,
    /// Ids of the chunks in the views: that of the release for a chunk which it has as well.
    ids: Vec<PatchChunkId>,
}

/// View of one packed file, or of a group of files.
#[derive(Debug)]
pub(super) struct View {
    /// Ranges of the packed file, in order; they lie in the release or in an earlier view.
    parts: Vec<Range<u64>>,
    /// Range of the view, after the release's own bytes.
    range: Range<u64>,
    /// Recipe that packs the view again; on the old side, the one that unpacks the file.
    pub(super) recipe: Vec<u8>,
    layer: Layer,
    /// Names and ranges of the files in it.
    files: Vec<(Vec<u8>, Range<u64>)>,
}

/// Both releases of a set, and the need for each chunk of the new one.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) old: Viewed,
    pub(super) new: Viewed,
    pub(super) needs: Vec<Need>,
    /// Number of ids that the chunks of views have.
    pub(super) view_chunks: u64,
    /// Parts of hash trees that devices compute, in order.
    pub(super) trees: Vec<TreePatch>,
}

impl Pair {
    /// Finds packed files that changed and unpacks them on both sides, each in at most `memory`
    /// bytes. Blocks; takes some seconds for an initrd, and a minute for a kernel that is packed
    /// with zstd's highest level.
    ///
    /// # Errors
    /// Errors of reading the releases or of writing to `spool`.
    pub(super) fn new(
        old: StoredArtifact,
        new: StoredArtifact,
        spool: &Path,
        memory: u64,
    ) -> io::Result<Self> {
        let (old, new) = (Viewed::new(old, spool)?, Viewed::new(new, spool)?);
        let trees = tree_patches(&new.stored, &needs(&old.spans, &new.spans))?;
        let mut pair = Self { old, new, needs: Vec::new(), view_chunks: 0, trees };
        let mut ids = Ids::default();
        for layer in Layer::ROUNDS {
            let found = pair.unpack(layer, memory)?;
            pair.name_views(&mut ids)?;
            if layer == Layer::File && !found {
                break;
            }
        }
        pair.view_chunks = ids.given;
        let Self { old, new, .. } = &pair;
        // Chunks of a packed file come from the repacking of its view, so no other patch has to
        // make them.
        let mut made = vec![false; new.spans.len()];
        for part in new.views.iter().flat_map(|view| &view.parts) {
            let chunks = new.chunks_in(part);
            made[chunks.start as usize..chunks.end as usize].fill(true);
        }
        for tree in &pair.trees {
            made[tree.targets.start as usize..tree.targets.end as usize].fill(true);
        }
        let own = new.own_chunks() as usize;
        pair.needs = needs_beside(&old.spans, &new.spans, own, |index| made[index]);
        Ok(pair)
    }

    /// Whether a part of the new release has a chunk that the old release lacks.
    fn is_wanted(before: &[Need], new: &Viewed, parts: &[Range<u64>]) -> bool {
        parts.iter().any(|part| {
            let chunks = new.chunks_in(part);
            before[chunks.start as usize..chunks.end as usize].contains(&Need::Wanted)
        })
    }

    /// Adds the views of a layer: of packed files that changed, and of the old files of the same
    /// names. Where a file has no view, its old file has none either: their regions keep their
    /// names, and the packed bytes of both are paired. Returns whether there were any.
    fn unpack(&mut self, layer: Layer, memory: u64) -> io::Result<bool> {
        let before = needs(&self.old.spans, &self.new.spans);
        let new = &self.new;
        let wanted = |parts: &[Range<u64>]| new.is_fresh(parts) && Self::is_wanted(&before, new, parts);
        let found = view::find(layer, new, &new.regions, |_, parts| wanted(parts))?;
        let searched = [self.old.end, self.new.end];
        let mut names = BTreeSet::new();
        for group in &found.groups {
            // A device that cannot pack a file within a view again cannot use the view, since the
            // file's chunks come from nowhere else.
            let is_inner =
                group.files.iter().flat_map(|file| &file.parts).any(|part| self.new.is_inner_part(part));
            let memory = if is_inner { memory.min(INNER_MEMORY) } else { memory };
            names.extend(self.new.add(group, memory)?.iter().map(|name| fold(name)));
        }
        let old = &self.old;
        let wanted = |name: &[u8], parts: &[Range<u64>]| old.is_fresh(parts) && names.contains(&fold(name));
        let found = view::find(layer, old, &old.regions, wanted)?;
        for group in &found.groups {
            self.old.add_old(group, memory)?;
        }
        if layer == Layer::File {
            [self.old.searched, self.new.searched] = searched;
        }
        Ok(!names.is_empty())
    }

    /// Cuts the views that were added and gives their chunks ids.
    fn name_views(&mut self, ids: &mut Ids) -> io::Result<()> {
        self.old.cut_views(|_| ids.fresh())?;
        ids.learn(&self.old);
        ids.learn(&self.new);
        self.new.cut_views(|hash| ids.of(hash))?;
        ids.learn(&self.new);
        Ok(())
    }
}

/// Ids by hash.
#[derive(Default)]
struct Ids {
    known: BTreeMap<ChunkHash, PatchChunkId>,
    /// Number of view chunks so far.
    given: u64,
}

impl Ids {
    fn fresh(&mut self) -> PatchChunkId {
        let id = ViewChunkId(self.given);
        self.given += 1;
        id.into()
    }

    fn of(&mut self, hash: &ChunkHash) -> PatchChunkId {
        if let Some(id) = self.known.get(hash) {
            return *id;
        }
        let id = self.fresh();
        self.known.insert(*hash, id);
        id
    }

    fn learn(&mut self, viewed: &Viewed) {
        for (span, index) in viewed.spans.iter().zip(0..) {
            self.known.entry(span.hash).or_insert_with(|| viewed.id(index));
        }
    }
}

impl Viewed {
    fn new(stored: StoredArtifact, spool: &Path) -> io::Result<Self> {
        let (regions, spans) = (stored.regions(), stored.spans().to_vec());
        let (end, file) = (stored.len(), tempfile::tempfile_in(spool)?);
        Ok(Self {
            stored,
            file,
            end,
            views: Vec::new(),
            cut: 0,
            searched: 0,
            regions,
            spans,
            ids: Vec::new(),
        })
    }

    fn view_bytes(&self) -> u64 {
        self.end - self.stored.len()
    }

    /// Returns whether a file lies where no file was looked for yet.
    fn is_fresh(&self, parts: &[Range<u64>]) -> bool {
        parts.iter().all(|part| part.start >= self.searched)
    }

    fn limits(&self, memory: u64) -> ViewLimits {
        ViewLimits { bytes: VIEW_BYTES_MAX.saturating_sub(self.view_bytes()), memory }
    }

    /// Adds the view of packed files of the new release, if they have one and it packs again.
    /// Returns the names of the files with a view.
    fn add(&mut self, group: &Group, memory: u64) -> io::Result<Vec<Vec<u8>>> {
        // A second handle: the file is read where earlier views lie, and written after them.
        let mut sink = Behind::new(&self.file, self.view_bytes());
        let made = group.unpack(&*self, self.limits(memory), &mut sink)?;
        if made.recipe.is_empty() {
            return Ok(Vec::new());
        }
        let parts = made.parts(&group.files);
        let view = io::Read::take(Behind::new(&self.file, self.view_bytes()), made.view_bytes);
        let mut view = io::BufReader::with_capacity(1 << 20, view);
        let packed = Joined { artifact: self, parts: &parts };
        if !view::packs_again(&made.recipe, &mut view, &packed) {
            tracing::error!(format = group.format.name(), "a view does not pack again and is not used");
            return Ok(Vec::new());
        }
        let names = made.named(&group.files, 0).into_iter().map(|(name, _)| name).collect();
        self.push(group, made);
        Ok(names)
    }

    /// Adds the view of packed files of the old release, as far as they are sound.
    fn add_old(&mut self, group: &Group, memory: u64) -> io::Result<()> {
        let mut sink = Behind::new(&self.file, self.view_bytes());
        let made = group.unpack_old(&*self, self.limits(memory), &mut sink)?;
        if !made.recipe.is_empty() {
            self.push(group, made);
        }
        Ok(())
    }

    fn push(&mut self, group: &Group, made: Unpacked) {
        let range = self.end..self.end + made.view_bytes;
        let (parts, files) = (made.parts(&group.files), made.named(&group.files, range.start));
        self.end = range.end;
        self.views.push(View { parts, range, recipe: made.recipe, layer: group.format.layer(), files });
    }

    /// Cuts the views that were added last; `id` gives each of their chunks an id.
    fn cut_views(&mut self, mut id: impl FnMut(&ChunkHash) -> PatchChunkId) -> io::Result<()> {
        let fresh = &self.views[self.cut..];
        // A file in clusters loses the name of its region to its view, because only the view
        // resembles other data.
        let hidden: BTreeSet<u64> = fresh
            .iter()
            .filter(|view| view.layer.hides_names())
            .flat_map(|view| &view.parts)
            .map(|part| part.start)
            .collect();
        let mut parts: Vec<(u64, RegionKind, Option<Vec<u8>>)> = Vec::new();
        for region in self.regions.all() {
            let name = self.regions.name(region).filter(|_| !hidden.contains(&region.start));
            parts.push((region.len, region.kind, name.map(<[u8]>::to_vec)));
        }
        let own = parts.len();
        for view in fresh {
            let inside = view.layer.parts(self, &view.files)?;
            parts.extend(inside.into_iter().map(|(len, kind, name)| (len, kind, Some(name))));
        }
        let all = parts.iter().map(|(len, kind, name)| (*len, *kind, name.as_deref()));
        let regions = Regions::from_parts(all).filter(|regions| regions.total() == self.end);
        let regions = regions.ok_or(io::ErrorKind::InvalidData)?;
        let (mut spans, mut ids) = (Vec::new(), Vec::new());
        let mut batches = Batches::new(&*self, &regions.all()[own..], CutParams::default());
        let mut buffer = Vec::new();
        while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
            for chunk in batch.chunks() {
                let (len, hash) = (chunk.data.len() as u32, ChunkHash::of(chunk.data));
                ids.push(id(&hash));
                spans.push(ChunkSpan { offset: chunk.offset, len, hash });
            }
            buffer = batch.into_buffer();
        }
        self.spans.append(&mut spans);
        self.ids.append(&mut ids);
        (self.regions, self.cut) = (regions, self.views.len());
        Ok(())
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    pub(super) fn spans(&self) -> &[ChunkSpan] {
        &self.spans
    }

    /// Release without its views.
    pub(super) fn stored(&self) -> &StoredArtifact {
        &self.stored
    }

    /// Number of chunks of the release itself; those of views have higher indices.
    pub(super) fn own_chunks(&self) -> u32 {
        self.stored.spans().len() as u32
    }

    /// Id of the chunk at `index`.
    pub(super) fn id(&self, index: u32) -> PatchChunkId {
        match index.checked_sub(self.own_chunks()) {
            Some(of_view) => self.ids[of_view as usize],
            None => self.stored.id(index).into(),
        }
    }

    /// Length of a chunk as stored, bytes, which is its cost on the wire. `None` for a chunk of a
    /// view, which cannot be fetched.
    pub(super) fn stored_len(&self, index: u32) -> Option<u64> {
        (index < self.own_chunks()).then(|| self.stored.stored_len(index))
    }

    fn chunks_in(&self, part: &Range<u64>) -> Range<u32> {
        let at = |offset| self.spans.partition_point(|span| span.offset < offset) as u32;
        at(part.start)..at(part.end)
    }

    /// Indices of the chunks of a packed file, in file order.
    pub(super) fn packed_chunks(&self, view: &View) -> Vec<u32> {
        view.parts.iter().flat_map(|part| self.chunks_in(part)).collect()
    }

    /// Whether a part of a packed file lies in a view.
    fn is_inner_part(&self, part: &Range<u64>) -> bool {
        part.start >= self.stored.len()
    }

    /// Whether the view's packed file is itself part of a view.
    pub(super) fn is_inner(&self, view: &View) -> bool {
        view.parts.iter().any(|part| self.is_inner_part(part))
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

/// Reader and writer of a file from an offset on, independent of other users of the file.
struct Behind<'f> {
    file: &'f File,
    from: u64,
    at: u64,
}

impl<'f> Behind<'f> {
    fn new(file: &'f File, from: u64) -> Self {
        Self { file, from, at: 0 }
    }
}

impl io::Write for Behind<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.from + self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for Behind<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(bytes, self.from + self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Behind<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
