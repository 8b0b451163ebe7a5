//! Prints the cost of an update with patches: bytes by codec and by path, time and memory. Applies
//! every patch and compares the result.
//!
//! ```text
//! cargo run --release -p distd-core --example patchstat -- \
//!     OLD NEW [--level N] [--threads N] [--targets MIB] [--views 0|1|2] [--transparency 0|1] \
//!     [--large 0|1]
//! ```

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a tool beside the library: it opens files, threads and a clock"
)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, ReadAt, Regions, regions};
use distd_core::packing::Packer;
use distd_core::patch::pair::{
    ChunkSpan, Need, Of, PairOptions, Patch, Side, build, needs as needs_of, pair as pair_up,
};
use distd_core::patch::view::Layer;
use distd_core::patch::{Effort, LargePayload, PatchMethod, decode, large_cost, rebuild_large};

mod index;
mod views;

use views::{Extended, Pass};

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Artifact(File, u64);

impl ReadAt for Artifact {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

fn open(path: &str) -> io::Result<Artifact> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok(Artifact(file, len))
}

fn cut<R: ReadAt + ?Sized>(artifact: &R, regions: &Regions, threads: usize) -> Result<Vec<ChunkSpan>, Error> {
    let parts = regions.split(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .into_iter()
            .map(|part| {
                scope.spawn(move || {
                    let mut batches = Batches::new(artifact, &regions.all()[part], CutParams::default());
                    let (mut out, mut buffer) = (Vec::new(), Vec::new());
                    while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
                        out.extend(batch.chunks().map(|chunk| ChunkSpan {
                            offset: chunk.offset,
                            len: chunk.data.len() as u32,
                            hash: ChunkHash::of(chunk.data),
                        }));
                        buffer = batch.into_buffer();
                    }
                    Ok::<_, io::Error>(out)
                })
            })
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| "a cutting thread panicked")??);
        }
        Ok(all)
    })
}

/// Returns the CPU seconds used so far, and the peak memory in MB.
fn usage() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    (ticks / 100.0, peak.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1000.0)
}

fn bytes<R: ReadAt + ?Sized>(side: Side<'_, R>, ranges: &[Range<u32>]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for chunk in ranges.iter().flat_map(|range| &side.chunks[range.start as usize..range.end as usize]) {
        let from = out.len();
        out.resize(from + chunk.len as usize, 0);
        side.bytes.read_exact_at(&mut out[from..], chunk.offset)?;
    }
    Ok(out)
}

/// Applies a patch and compares the result; returns the seconds taken without reading.
fn verify<R: ReadAt + ?Sized, S: ReadAt + ?Sized>(
    patch: &Patch,
    old: Side<'_, R>,
    new: Side<'_, S>,
) -> Result<f64, Error> {
    let mut base = Vec::new();
    for span in &patch.bases {
        base.extend(match span.of {
            Of::Old => bytes(old, std::slice::from_ref(&span.chunks))?,
            Of::New => bytes(new, std::slice::from_ref(&span.chunks))?,
        });
    }
    let target = bytes(new, &patch.targets)?;
    let begin = Instant::now();
    let rebuilt = if patch.large {
        large(base, &patch.payload, target.len())?
    } else {
        decode(patch.codec, &base, &patch.payload, target.len())?
    };
    let took = begin.elapsed().as_secs_f64();
    if rebuilt == target { Ok(took) } else { Err("a patch rebuilds other bytes than its target".into()) }
}

/// Rebuilds a large target as a device does.
fn large(mut base: Vec<u8>, coded: &[u8], len: usize) -> Result<Vec<u8>, Error> {
    let cost =
        large_cost(base.len() as u64, coded.len() as u64, len as u64).ok_or("no device has the memory")?;
    let payload = LargePayload::new(coded);
    payload.pieces.iter().for_each(|piece| base.extend_from_slice(piece));
    let mut out = Vec::with_capacity(len);
    let mut sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    };
    rebuild_large(&base, &payload.own, len as u64, cost.memory(), &mut sink)??;
    Ok(out)
}

struct Options {
    old: String,
    new: String,
    level: i32,
    threads: usize,
    targets: usize,
    views: usize,
    transparency: bool,
    large: bool,
}

fn options() -> Result<Options, Error> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: patchstat OLD NEW [--level N] [--threads N] [--targets MIB] [--views 0|1|2] \
                 [--transparency 0|1] [--large 0|1]";
    let mut found = Options {
        old: args.next().ok_or(usage)?,
        new: args.next().ok_or(usage)?,
        level: Effort::default().level,
        threads: 2,
        targets: 4,
        views: 1,
        transparency: false,
        large: true,
    };
    while let Some(name) = args.next() {
        let value = args.next().ok_or(usage)?;
        match name.as_str() {
            "--level" => found.level = value.parse()?,
            "--threads" => found.threads = value.parse()?,
            "--views" => found.views = value.parse()?,
            "--transparency" => found.transparency = value.parse::<u8>()? != 0,
            "--large" => found.large = value.parse::<u8>()? != 0,
            "--targets" => found.targets = value.parse()?,
            _ => return Err(usage.into()),
        }
    }
    Ok(found)
}

fn main() -> Result<(), Error> {
    let options = options()?;
    let (old_file, new_file) = (open(&options.old)?, open(&options.new)?);
    let begin = Instant::now();
    let (old_regions, new_regions) = (regions(&old_file), regions(&new_file));
    let old_chunks = cut(&old_file, &old_regions, options.threads)?;
    let new_chunks = cut(&new_file, &new_regions, options.threads)?;
    if options.transparency {
        views::print_transparency(&new_file, &new_regions)?;
    }
    let needs = needs_of(&old_chunks, &new_chunks);
    println!("cut: {:.1} s", begin.elapsed().as_secs_f64());

    let mut old = Extended::new(old_file, old_regions, old_chunks);
    let mut new = Extended::new(new_file, new_regions, new_chunks);
    let mut needs = needs;
    let mut passes = Vec::new();
    if options.views > 0 {
        for layer in Layer::ROUNDS {
            views::of_layer(layer, &mut old, &mut new, &mut needs, &options, &mut passes)?;
        }
        views::hash_trees(&old, &new, &mut needs, &mut passes)?;
    }
    println!(
        "views: {} and {} bytes, {:.1} s in all",
        old.views.len(),
        new.views.len(),
        begin.elapsed().as_secs_f64()
    );
    report(old.side(), new.side(), &needs, &options, &passes, begin)
}

fn report(
    old: Side<'_, Extended>,
    new: Side<'_, Extended>,
    needs: &[Need],
    options: &Options,
    passes: &[Pass],
    begin: Instant,
) -> Result<(), Error> {
    let pairing = PairOptions {
        target_bytes_max: options.targets << 20,
        large_memory_max: if options.large { u64::MAX } else { 0 },
        ..PairOptions::default()
    };
    let jobs = pair_up(old, new, needs, pairing)?;
    let targets: usize = jobs.iter().map(|job| job.targets.len()).sum();
    let bases: usize = jobs.iter().map(|job| job.bases.len()).sum();
    println!(
        "paired: {} jobs, {targets} ranges of chunks to rebuild, {bases} ranges of base chunks, {:.1} s",
        jobs.len(),
        begin.elapsed().as_secs_f64()
    );

    let next = AtomicUsize::new(0);
    let patches: Mutex<Vec<(usize, Patch)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|_| {
                scope.spawn(|| {
                    while let Some((index, job)) = {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        jobs.get(index).map(|job| (index, job))
                    } {
                        let built = build(job, old, new, Effort { level: options.level })?;
                        let mut patches = patches.lock().map_err(|_| "poisoned")?;
                        patches.extend(built.into_iter().map(|patch| (index, patch)));
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a building thread panicked")?)
    })?;
    let mut patches = patches.into_inner()?;
    patches.sort_by_key(|(index, patch)| (*index, patch.targets.first().map(|range| range.start)));
    let (cpu, peak) = usage();
    println!("built: {:.1} s wall, {cpu:.1} s CPU, {peak:.0} MB peak", begin.elapsed().as_secs_f64());

    let mut left: Vec<bool> = needs.iter().map(|need| *need == Need::Wanted).collect();
    let mut kinds: HashMap<String, (usize, usize, usize)> = HashMap::new();
    let mut paths: HashMap<String, (f64, f64)> = HashMap::new();
    let mut spent = |targets: &[Range<u32>], cost: usize| {
        let chunks =
            || targets.iter().flat_map(|range| &new.chunks[range.start as usize..range.end as usize]);
        let total: f64 = chunks().map(|chunk| f64::from(chunk.len)).sum();
        for chunk in chunks() {
            let region = new.regions.all().partition_point(|region| region.end() <= chunk.offset);
            let region = &new.regions.all()[region];
            let name = new.regions.name(region).map_or_else(
                || format!("({:?})", region.kind),
                |name| String::from_utf8_lossy(name).into_owned(),
            );
            let share = f64::from(chunk.len) / total;
            let path = paths.entry(name).or_default();
            path.0 += cost as f64 * share;
            path.1 += f64::from(chunk.len);
        }
    };
    let (mut sum, mut apply) = (0, 0.0);
    for (_, patch) in &patches {
        apply += verify(patch, old, new)?;
        spent(&patch.targets, patch.payload.len());
        let kind = match (patch.codec, patch.bases.is_empty()) {
            (PatchMethod::Zstd, true) => "solid".to_owned(),
            _ if patch.large => "large".to_owned(),
            (codec, _) => format!("{codec:?}"),
        };
        let kind = kinds.entry(kind).or_default();
        kind.0 += 1;
        kind.2 += patch.payload.len();
        sum += patch.payload.len();
        for index in patch.targets.iter().cloned().flatten() {
            assert!(std::mem::take(&mut left[index as usize]), "a chunk is rebuilt twice");
            kind.1 += new.chunks[index as usize].len as usize;
        }
    }
    let index = index::index(old, new, &patches, passes);
    println!("index: {} patches, {} bytes packed, {} bytes without views", index.0, index.1, index.2);
    let recipes: usize = passes.iter().map(|pass| Packer::new(19).pack(&pass.payload).bytes.len()).sum();
    println!("recipes: {}, {recipes} bytes packed", passes.len());
    sum += index.1 + recipes;
    let mut packer = Packer::new(options.level);
    for (index, _) in left.iter().enumerate().filter(|(_, left)| **left) {
        let range = index as u32..index as u32 + 1;
        let packed = packer.pack(&bytes(new, std::slice::from_ref(&range))?).bytes.len();
        spent(&[range], packed);
        let kind = kinds.entry("leftover".to_owned()).or_default();
        *kind = (kind.0 + 1, kind.1 + new.chunks[index].len as usize, kind.2 + packed);
        sum += packed;
    }
    println!("all patches rebuild their targets; {apply:.1} s of one core to apply them");
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_unstable();
    for (kind, (count, raw, packed)) in kinds {
        println!("{kind:>10}: {count:>5} of {raw:>11} raw bytes: {packed:>10}");
    }
    println!("{:>10}: {sum}", "total");
    let mut paths: Vec<_> = paths.into_iter().collect();
    paths.sort_unstable_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (path, (cost, raw)) in paths.into_iter().take(20) {
        println!("{cost:>10.0} of {raw:>10} {path}");
    }
    Ok(())
}
