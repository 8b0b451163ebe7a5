//! Views of both sides, appended to the artifacts.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use distd_core::cut::{ReadAt, RegionKind, Regions};
use distd_core::patch::Method;
use distd_core::patch::hash_tree;
use distd_core::patch::pair::{ChunkSpan, Need, Of, Side, fold, needs as needs_of, needs_beside};
use distd_core::patch::view::{self, Group, Layer, NoView, Unpacked};

use crate::{Artifact, Error, Options, cut};

/// Most bytes of views of one artifact: this tool keeps them in memory.
const VIEWS_MAX: u64 = 3 << 30;

/// Artifact with the views of some of its files behind it.
pub(crate) struct Extended {
    artifact: Artifact,
    pub(crate) views: Vec<u8>,
    regions: Regions,
    chunks: Vec<ChunkSpan>,
    /// Offset up to which files that are packed by themselves were looked for.
    searched: u64,
}

impl ReadAt for Extended {
    fn len(&self) -> u64 {
        self.artifact.1 + self.views.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let before = self.artifact.1.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (first, second) = buf.split_at_mut(before);
        self.artifact.read_exact_at(first, offset)?;
        if second.is_empty() {
            return Ok(());
        }
        self.views.read_exact_at(second, offset + before as u64 - self.artifact.1)
    }
}

/// Patch that unpacks, packs or hashes: turns the chunks in `bases` into the chunks in `targets`.
pub(crate) struct Pass {
    pub(crate) method: Method,
    pub(crate) of: Of,
    pub(crate) bases: Vec<Range<u64>>,
    pub(crate) targets: Vec<Range<u64>>,
    pub(crate) payload: Vec<u8>,
    /// Names and ranges of the files in the view.
    files: Vec<(Vec<u8>, Range<u64>)>,
}

impl Pass {
    /// Places a view at `start`.
    fn new(of: Of, group: &Group, made: &Unpacked, start: u64) -> Result<Self, Error> {
        let view = std::iter::once(start..start + made.view_bytes).collect();
        let (packed, files) = (made.parts(&group.files), made.named(&group.files, start));
        let (method, bases, targets) = match of {
            Of::Old => (Method::Inflate(view::unpack_cost(&made.recipe)?), packed, view),
            Of::New => (Method::Repack(view::cost(&made.recipe)?), view, packed),
        };
        Ok(Self { method, of, bases, targets, payload: made.recipe.clone(), files })
    }

    fn packed(&self) -> &[Range<u64>] {
        match self.of {
            Of::Old => &self.bases,
            Of::New => &self.targets,
        }
    }
}

impl Extended {
    pub(crate) fn new(artifact: Artifact, regions: Regions, chunks: Vec<ChunkSpan>) -> Self {
        Self { artifact, views: Vec::new(), regions, chunks, searched: 0 }
    }

    pub(crate) fn artifact_len(&self) -> u64 {
        self.artifact.1
    }

    pub(crate) fn side(&self) -> Side<'_, Self> {
        Side { bytes: self, regions: &self.regions, chunks: &self.chunks }
    }

    fn is_fresh(&self, parts: &[Range<u64>]) -> bool {
        parts.iter().all(|part| part.start >= self.searched)
    }

    fn span(&self, part: &Range<u64>) -> Range<usize> {
        span(&self.chunks, part)
    }

    /// Adds regions and chunks for views of a layer.
    fn extend(&mut self, layer: Layer, passes: &[Pass], threads: usize) -> Result<(), Error> {
        let hidden: HashSet<u64> = passes
            .iter()
            .filter(|_| layer.hides_names())
            .flat_map(|pass| pass.packed())
            .map(|part| part.start)
            .collect();
        let mut parts: Vec<(u64, RegionKind, Option<Vec<u8>>)> = Vec::new();
        for region in self.regions.all() {
            let name = self.regions.name(region).filter(|_| !hidden.contains(&region.start));
            parts.push((region.len, region.kind, name.map(<[u8]>::to_vec)));
        }
        for pass in passes {
            let inside = layer.parts(self, &pass.files)?;
            parts.extend(inside.into_iter().map(|(len, kind, name)| (len, kind, Some(name))));
        }
        let all = parts.iter().map(|(len, kind, name)| (*len, *kind, name.as_deref()));
        self.regions = Regions::from_parts(all).ok_or("too many regions")?;
        self.chunks = cut(self, &self.regions, threads)?;
        Ok(())
    }
}

fn span(chunks: &[ChunkSpan], part: &Range<u64>) -> Range<usize> {
    chunks.partition_point(|chunk| chunk.offset < part.start)
        ..chunks.partition_point(|chunk| chunk.offset < part.end)
}

/// Finds the needed chunks once views exist: chunks that views make are not needed.
fn update(old: &Extended, new: &Extended, needs: &mut Vec<Need>, passes: &[Pass]) {
    let mut made = vec![false; new.chunks.len()];
    for pass in passes.iter().filter(|pass| pass.of == Of::New) {
        for part in &pass.targets {
            made[new.span(part)].fill(true);
        }
    }
    let artifact = new.chunks.partition_point(|chunk| chunk.offset < new.artifact.1);
    *needs = needs_beside(&old.chunks, &new.chunks, artifact, |index| made[index]);
}

/// Calls `work` with each item, on several threads; returns the results in order.
fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    threads: usize,
    work: impl Fn(&I) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else { return Ok::<_, Error>(()) };
                        let result = work(item)?;
                        done.lock().map_err(|_| "a thread panicked")?.insert(index, result);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(done.into_inner().map_err(|_| "a thread panicked")?.into_values().collect())
}

/// Group with its view.
struct Viewed {
    group: Group,
    made: Unpacked,
    view: Vec<u8>,
}

/// Makes the views of groups.
fn made(artifact: &Extended, groups: Vec<Group>, of: Of, threads: usize) -> Result<Vec<Viewed>, Error> {
    in_parallel(&groups, threads, |group| {
        let mut sink = io::Cursor::new(Vec::new());
        let made = match of {
            Of::New => group.unpack(artifact, VIEWS_MAX, &mut sink)?,
            Of::Old => group.unpack_old(artifact, VIEWS_MAX, &mut sink)?,
        };
        let mut view = sink.into_inner();
        view.truncate(made.view_bytes as usize);
        Ok(Viewed { group: group.clone(), made, view })
    })
}

/// Packs or unpacks each view as a device does, and compares.
fn check(artifact: &Extended, viewed: &[Viewed], of: Of, threads: usize) -> Result<(), Error> {
    in_parallel(viewed, threads, |Viewed { group, made, view }| {
        if made.recipe.is_empty() {
            return Ok(());
        }
        let parts = made.parts(&group.files);
        let packed = view::Joined { artifact, parts: &parts };
        let same = match of {
            Of::New => view::packs_again(&made.recipe, &mut &view[..], &packed),
            Of::Old => {
                let mut again = Vec::new();
                view::unpack_base(&made.recipe, &packed, VIEWS_MAX, &mut again)?;
                again == *view
            }
        };
        if same { Ok(()) } else { Err(format!("a view of {} differs", group.format.name()).into()) }
    })?;
    Ok(())
}

/// Puts the views behind the artifact.
fn place(
    artifact: &mut Extended,
    layer: Layer,
    viewed: &[Viewed],
    of: Of,
    threads: usize,
) -> Result<Vec<Pass>, Error> {
    let mut passes = Vec::new();
    for Viewed { group, made, view } in viewed.iter().filter(|viewed| !viewed.made.recipe.is_empty()) {
        passes.push(Pass::new(of, group, made, ReadAt::len(&*artifact))?);
        artifact.views.extend_from_slice(view);
    }
    artifact.extend(layer, &passes, threads)?;
    Ok(passes)
}

/// Makes, checks and places the views of a layer on both sides.
pub(crate) fn of_layer(
    layer: Layer,
    old: &mut Extended,
    new: &mut Extended,
    needs: &mut Vec<Need>,
    options: &Options,
    passes: &mut Vec<Pass>,
) -> Result<(), Error> {
    let threads = options.threads;
    let wanted = |part: &Range<u64>| needs[new.span(part)].contains(&Need::Wanted);
    let found =
        view::find(layer, &*new, &new.regions, |_, parts| new.is_fresh(parts) && parts.iter().any(wanted))?;
    let searched = [ReadAt::len(&*old), ReadAt::len(&*new)];
    let started = Instant::now();
    let of_new = made(new, found.groups, Of::New, threads)?;
    let took = started.elapsed().as_secs_f64();
    let started = Instant::now();
    check(new, &of_new, Of::New, threads)?;
    let repack = started.elapsed().as_secs_f64();

    let with_view = of_new.iter().filter(|viewed| !viewed.made.recipe.is_empty());
    let names: HashSet<Vec<u8>> = with_view
        .flat_map(|viewed| viewed.made.named(&viewed.group.files, 0))
        .map(|(name, _)| fold(&name))
        .collect();
    let back = needs_of(&new.chunks, &old.chunks);
    let old_found = view::find(layer, &*old, &old.regions, |name, parts| {
        let lost = || parts.iter().any(|part| back[old.span(part)].iter().any(|need| *need != Need::Held));
        let has_view = names.contains(&fold(name)) || (layer == Layer::Image && options.views > 1 && lost());
        has_view && old.is_fresh(parts)
    })?;
    let started = Instant::now();
    let of_old = made(old, old_found.groups, Of::Old, threads)?;
    let old_took = started.elapsed().as_secs_f64();
    let started = Instant::now();
    check(old, &of_old, Of::Old, threads)?;
    let unpack = started.elapsed().as_secs_f64();

    println!("views of {layer:?}: {}; old: {}", summary(&of_new), summary(&of_old));
    println!("  without a view: {:?}", without(&found.without, &of_new));
    println!("  make {took:.1} s, make old {old_took:.1} s; repack {repack:.1} s, unpack {unpack:.1} s");
    let made_old = place(old, layer, &of_old, Of::Old, threads)?;
    let made_new = place(new, layer, &of_new, Of::New, threads)?;
    passes.extend(made_old.into_iter().chain(made_new));
    update(old, new, needs, passes);
    if layer == Layer::File {
        [old.searched, new.searched] = searched;
    }
    Ok(())
}

/// Finds the hash trees of the new artifact, computes each part as a device does, and compares.
pub(crate) fn hash_trees(
    old: &Extended,
    new: &Extended,
    needs: &mut Vec<Need>,
    passes: &mut Vec<Pass>,
) -> Result<(), Error> {
    let (before, started) = (passes.len(), Instant::now());
    let mut bytes = 0;
    for tree in hash_tree::find(&new.artifact)? {
        for part in &tree.parts {
            let (source, target) = (tree.source(part), tree.target(part));
            if !needs[new.span(&target)].contains(&Need::Wanted) {
                continue;
            }
            let first = new.chunks.partition_point(|chunk| chunk.offset <= source.start) - 1;
            let base = new.chunks[first].offset..source.end;
            let payload = tree.recipe(part, source.start - base.start).encode();
            if !hash_tree::is_computed(&new.artifact, &payload, std::slice::from_ref(&base), target.clone()) {
                return Err("a hash tree does not follow from its data".into());
            }
            bytes += target.end - target.start;
            passes.push(Pass {
                method: Method::HashTree,
                of: Of::New,
                bases: vec![base],
                targets: vec![target],
                payload,
                files: Vec::new(),
            });
        }
    }
    let took = started.elapsed().as_secs_f64();
    println!("hash trees: {} parts, {bytes} bytes, {took:.1} s", passes.len() - before);
    update(old, new, needs, passes);
    Ok(())
}

/// Numbers of files and views, and bytes of views and recipes, by format.
fn summary(viewed: &[Viewed]) -> String {
    let mut formats: BTreeMap<&str, (usize, usize, u64, usize)> = BTreeMap::new();
    for Viewed { group, made, .. } in viewed.iter().filter(|viewed| !viewed.made.recipe.is_empty()) {
        let (views, files, bytes, recipes) = formats.entry(group.format.name()).or_default();
        *views += 1;
        *files += made.files.iter().filter(|file| file.is_ok()).count();
        *bytes += made.view_bytes;
        *recipes += made.recipe.len();
    }
    let line = |(name, (views, files, bytes, recipes)): (&str, _)| {
        format!("{name} {files} files in {views} views, {bytes} bytes, recipes {recipes}")
    };
    if formats.is_empty() {
        "none".to_owned()
    } else {
        formats.into_iter().map(line).collect::<Vec<_>>().join("; ")
    }
}

/// Counts the reasons why files have no view.
fn without(found: &[(Vec<u8>, NoView)], viewed: &[Viewed]) -> BTreeMap<String, usize> {
    let mut why = BTreeMap::new();
    let made = viewed.iter().flat_map(|viewed| &viewed.made.files).filter_map(|file| file.as_ref().err());
    for reason in found.iter().map(|(_, reason)| reason).chain(made) {
        *why.entry(reason.to_string()).or_default() += 1;
    }
    why
}

/// View in memory.
#[derive(Default)]
struct Memory(io::Cursor<Vec<u8>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl ReadAt for Memory {
    fn len(&self) -> u64 {
        self.0.get_ref().len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.get_ref().read_exact_at(buf, offset)
    }
}

/// Prints the share of an image in which patches see content, and the files in which they do not.
pub(crate) fn print_transparency(artifact: &Artifact, regions: &Regions) -> Result<(), Error> {
    let started = Instant::now();
    let file = || Ok(Box::new(Memory::default()) as Box<dyn view::ViewFile>);
    let found = view::transparency(artifact, regions, view::ViewLimits::from(VIEWS_MAX), &file)?;
    println!(
        "transparency: {:.2} %, {} of {} bytes, {} packed with a view, {:.1} s",
        found.transparent() as f64 * 100.0 / found.bytes.max(1) as f64,
        found.transparent(),
        found.bytes,
        found.viewed,
        started.elapsed().as_secs_f64()
    );
    let mut reasons: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for file in &found.opaque {
        let (files, bytes) = reasons.entry(&file.reason).or_default();
        *files += 1;
        *bytes += file.bytes;
    }
    println!("  opaque: {reasons:?}");
    for file in found.opaque.iter().take(20) {
        println!("{:>10} {}: {}", file.bytes, String::from_utf8_lossy(&file.name), file.reason);
    }
    Ok(())
}
