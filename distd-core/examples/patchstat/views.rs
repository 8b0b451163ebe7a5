//! Views of both sides, appended to the artifacts.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use distd_core::cut::{ReadAt, RegionKind, Regions};
use distd_core::patch::Method;
use distd_core::patch::pair::{ChunkSpan, Need, Of, Side, fold, needs as needs_of, needs_beside};
use distd_core::patch::view::{self, ClusterFile, ClusterViews};

use crate::{Artifact, Error, Options, cut};

/// Most bytes of views of one artifact: this tool keeps them in memory.
const VIEWS_MAX: u64 = 3 << 30;

/// Artifact with the views of some of its files behind it.
pub(crate) struct Extended {
    artifact: Artifact,
    pub(crate) views: Vec<u8>,
    regions: Regions,
    chunks: Vec<ChunkSpan>,
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

/// File with a view: its name, its parts, and the range of the view.
struct Viewed {
    name: Vec<u8>,
    parts: Vec<Range<u64>>,
    view: Range<u64>,
}

/// Patch that unpacks or packs: turns the chunks in `bases` into the chunks in `targets`.
pub(crate) struct Pass {
    pub(crate) method: Method,
    pub(crate) of: Of,
    pub(crate) bases: Vec<Range<u64>>,
    pub(crate) targets: Vec<Range<u64>>,
    pub(crate) payload: Vec<u8>,
}

impl Extended {
    pub(crate) fn new(artifact: Artifact, regions: Regions, chunks: Vec<ChunkSpan>) -> Self {
        Self { artifact, views: Vec::new(), regions, chunks }
    }

    pub(crate) fn artifact_len(&self) -> u64 {
        self.artifact.1
    }

    pub(crate) fn side(&self) -> Side<'_, Self> {
        Side { bytes: self, regions: &self.regions, chunks: &self.chunks }
    }

    fn span(&self, part: &Range<u64>) -> Range<usize> {
        span(&self.chunks, part)
    }

    /// Adds regions and chunks for views. The packed regions lose their names, so that only the
    /// views have them.
    fn extend(&mut self, viewed: &[Viewed], inside: bool, threads: usize) -> Result<(), Error> {
        let hidden: HashSet<u64> =
            viewed.iter().flat_map(|file| &file.parts).map(|part| part.start).collect();
        let mut parts: Vec<(u64, RegionKind, Option<Vec<u8>>)> = Vec::new();
        for region in self.regions.all() {
            let name = self.regions.name(region).filter(|_| inside || !hidden.contains(&region.start));
            parts.push((region.len, region.kind, name.map(<[u8]>::to_vec)));
        }
        for file in viewed {
            if inside {
                let parts_of = view::parts(self, file.view.clone(), &file.name)?;
                parts.extend(parts_of.into_iter().map(|(len, kind, name)| (len, kind, Some(name))));
            } else {
                parts.push((file.view.end - file.view.start, RegionKind::File, Some(file.name.clone())));
            }
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
    for pass in passes.iter().filter(|pass| pass.method == Method::Repack) {
        for part in &pass.targets {
            made[new.span(part)].fill(true);
        }
    }
    let artifact = new.chunks.partition_point(|chunk| chunk.offset < new.artifact.1);
    *needs = needs_beside(&old.chunks, &new.chunks, artifact, |index| made[index]);
}

/// Calls `work` with each group, on several threads; returns the results in order.
fn in_parallel<T: Send>(
    groups: &[Range<usize>],
    threads: usize,
    work: impl Fn(Range<usize>) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(group) = groups.get(index) else { return Ok::<_, Error>(()) };
                        let result = work(group.clone())?;
                        done.lock().map_err(|_| "a thread panicked")?.insert(index, result);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(done.into_inner().map_err(|_| "a thread panicked")?.into_values().collect())
}

fn parts_of(files: &[ClusterFile], made: &ClusterViews) -> Vec<Range<u64>> {
    let with = files.iter().zip(&made.files).filter(|(_, made)| made.is_ok());
    with.flat_map(|(file, _)| file.parts.clone()).collect()
}

/// Records the files with views and the ranges of their views, and returns the pass that makes or
/// unpacks the files.
fn placed(files: &[ClusterFile], made: &ClusterViews, base: u64, of: Of, viewed: &mut Vec<Viewed>) -> Pass {
    for (file, made) in files.iter().zip(&made.files) {
        if let Ok(range) = made {
            let view = base + range.start..base + range.end;
            viewed.push(Viewed { name: file.name.clone(), parts: file.parts.clone(), view });
        }
    }
    let (parts, view) = (parts_of(files, made), std::iter::once(base..base + made.view_bytes).collect());
    let payload = made.recipe.clone();
    match of {
        Of::Old => Pass { method: Method::Inflate, of, bases: parts, targets: view, payload },
        Of::New => Pass { method: Method::Repack, of, bases: view, targets: parts, payload },
    }
}

pub(crate) fn of_clusters(
    old: &mut Extended,
    new: &mut Extended,
    needs: &mut Vec<Need>,
    options: &Options,
    passes: &mut Vec<Pass>,
) -> Result<(), Error> {
    let started = Instant::now();
    let wanted = |part: &Range<u64>| needs[new.span(part)].contains(&Need::Wanted);
    let found = view::cluster_files(&new.artifact, &new.regions, |_, parts| parts.iter().any(wanted));
    let mut why: BTreeMap<String, usize> = BTreeMap::new();
    for (_, reason) in &found.without {
        *why.entry(reason.to_string()).or_default() += 1;
    }
    let names: HashSet<Vec<u8>> = found.files.iter().map(|file| fold(&file.name)).collect();
    let back = needs_of(&new.chunks, &old.chunks);
    let old_found = view::cluster_files(&old.artifact, &old.regions, |name, parts| {
        let lost = || parts.iter().any(|part| back[old.span(part)].iter().any(|need| *need != Need::Held));
        names.contains(&fold(name)) || (options.views > 1 && lost())
    });

    let groups = view::groups(&found.files);
    let made = in_parallel(&groups, options.threads, |group| {
        let mut sink = io::Cursor::new(Vec::new());
        let made = view::unpack_clusters(&new.artifact, &found.files[group], VIEWS_MAX, &mut sink)?;
        let mut view = sink.into_inner();
        view.truncate(made.view_bytes as usize);
        Ok((made, view))
    })?;
    let took = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let numbers: Vec<Range<usize>> = (0..groups.len()).map(|n| n..n + 1).collect();
    in_parallel(&numbers, options.threads, |number| {
        let (made, view) = &made[number.start];
        if view.is_empty() {
            return Ok(());
        }
        let parts = parts_of(&found.files[groups[number.start].clone()], made);
        let packed = view::Joined { artifact: &new.artifact, parts: &parts };
        let (mut again, mut before) = (Vec::new(), vec![0; packed.len() as usize]);
        view::repack(&made.recipe, &mut &view[..], &mut again)?;
        packed.read_exact_at(&mut before, 0)?;
        if again == before { Ok(()) } else { Err("a view packs to other bytes than the file's".into()) }
    })?;
    let repack = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let old_groups = view::groups(&old_found.files);
    let old_made = in_parallel(&old_groups, options.threads, |group| {
        let mut sink = io::Cursor::new(Vec::new());
        let files = &old_found.files[group];
        let made = view::unpack_old_clusters(&old.artifact, files, VIEWS_MAX, &mut sink)?;
        let mut view = sink.into_inner();
        view.truncate(made.view_bytes as usize);
        Ok((made, view))
    })?;
    let old_took = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let (mut viewed, mut old_viewed) = (Vec::new(), Vec::new());
    for (group, (made, view)) in old_groups.iter().zip(&old_made) {
        let pass =
            placed(&old_found.files[group.clone()], made, ReadAt::len(&*old), Of::Old, &mut old_viewed);
        let packed = view::Joined { artifact: &old.artifact, parts: &pass.bases };
        let mut again = Vec::new();
        view::unpack_with(&made.recipe, &packed, VIEWS_MAX, &mut again)?;
        assert!(again == *view, "an old file unpacks to another view");
        old.views.extend_from_slice(view);
        passes.push(pass);
    }
    let unpack = started.elapsed().as_secs_f64();
    for (group, (made, view)) in groups.iter().zip(&made) {
        for result in &made.files {
            if let Err(reason) = result {
                *why.entry(reason.to_string()).or_default() += 1;
            }
        }
        let pass = placed(&found.files[group.clone()], made, ReadAt::len(&*new), Of::New, &mut viewed);
        new.views.extend_from_slice(view);
        passes.push(pass);
    }
    println!(
        "cluster views: {} files in {} groups, {} bytes; {} old files in {} groups, {} bytes",
        viewed.len(),
        groups.len(),
        new.views.len(),
        old_viewed.len(),
        old_groups.len(),
        old.views.len()
    );
    println!("  without a view: {why:?}");
    println!("  make {took:.1} s, make old {old_took:.1} s; repack {repack:.1} s, unpack {unpack:.1} s");
    old.extend(&old_viewed, false, options.threads)?;
    new.extend(&viewed, false, options.threads)?;
    update(old, new, needs, passes);
    Ok(())
}

pub(crate) fn of_streams(
    old: &mut Extended,
    new: &mut Extended,
    needs: &mut Vec<Need>,
    options: &Options,
    passes: &mut Vec<Pass>,
) -> Result<(), Error> {
    let (mut viewed, mut old_viewed) = (Vec::new(), Vec::new());
    for file in view::packed_files(&*new, &new.regions)? {
        if !file.parts.iter().any(|part| needs[new.span(part)].contains(&Need::Wanted)) {
            continue;
        }
        let started = Instant::now();
        let mut sink = io::Cursor::new(Vec::new());
        let packed = view::Joined { artifact: &*new, parts: &file.parts };
        let Some(unpacked) = view::unpack(&packed, VIEWS_MAX, &mut sink)? else {
            println!("no view of {} ({} bytes)", String::from_utf8_lossy(&file.name), packed.len());
            continue;
        };
        let took = started.elapsed().as_secs_f64();
        let mut view = sink.into_inner();
        view.truncate(unpacked.view_bytes as usize);
        let started = Instant::now();
        let (mut again, mut before) = (Vec::new(), vec![0; packed.len() as usize]);
        view::repack(&unpacked.recipe, &mut &view[..], &mut again)?;
        packed.read_exact_at(&mut before, 0)?;
        assert!(again == before, "a view packs to other bytes than the file's");
        if packed.len() > 100 << 10 {
            println!(
                "view of {}: {} packed, {} unpacked, recipe {}; unpack {took:.1} s, repack {:.1} s",
                String::from_utf8_lossy(&file.name),
                packed.len(),
                unpacked.view_bytes,
                unpacked.recipe.len(),
                started.elapsed().as_secs_f64()
            );
        }
        let from = ReadAt::len(&*new);
        let range = from..from + view.len() as u64;
        new.views.extend(view);
        passes.push(Pass {
            method: Method::Repack,
            of: Of::New,
            bases: vec![range.clone()],
            targets: file.parts.clone(),
            payload: unpacked.recipe,
        });
        viewed.push(Viewed { name: file.name, parts: file.parts, view: range });
    }
    let names: HashSet<Vec<u8>> = viewed.iter().map(|file| fold(&file.name)).collect();
    for file in view::packed_files(&*old, &old.regions)? {
        if names.contains(&fold(&file.name)) {
            let from = ReadAt::len(&*old);
            let mut view = Vec::new();
            let packed = view::Joined { artifact: &*old, parts: &file.parts };
            view::unpack_with(&[file.version], &packed, VIEWS_MAX, &mut view)?;
            let range = from..from + view.len() as u64;
            old.views.extend(view);
            passes.push(Pass {
                method: Method::Inflate,
                of: Of::Old,
                bases: file.parts.clone(),
                targets: vec![range.clone()],
                payload: vec![file.version],
            });
            old_viewed.push(Viewed { name: file.name, parts: file.parts, view: range });
        }
    }
    println!("views of gzip, zip and png files: {} new, {} old", viewed.len(), old_viewed.len());
    old.extend(&old_viewed, true, options.threads)?;
    new.extend(&viewed, true, options.threads)?;
    update(old, new, needs, passes);
    Ok(())
}
