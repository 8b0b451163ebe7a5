//! Prints the cost of an update without patches: regions, chunks, and the bytes of the new chunks.
//!
//! ```text
//! cargo run --release -p distd-core --example cutstat -- OLD NEW [LEVEL[,LEVEL…]] [MIN/AVG/MAX]
//! ```

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a tool beside the library: it opens files and a clock"
)]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, ReadAt, RegionKind, Regions, regions};

struct Artifact(File, u64);

impl ReadAt for Artifact {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Offset, length and hash of each chunk, in order.
type Chunks = Vec<(u64, u32, ChunkHash)>;

fn cut(artifact: &Artifact, regions: &Regions, params: CutParams, threads: usize) -> Result<Chunks, Error> {
    let parts = regions.split(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .into_iter()
            .map(|part| {
                scope.spawn(move || {
                    let mut batches = Batches::new(artifact, &regions.all()[part], params);
                    let (mut out, mut buffer) = (Chunks::new(), Vec::new());
                    while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
                        out.extend(
                            batch.chunks().map(|c| (c.offset, c.data.len() as u32, ChunkHash::of(c.data))),
                        );
                        buffer = batch.into_buffer();
                    }
                    Ok::<_, io::Error>(out)
                })
            })
            .collect();
        let mut all = Chunks::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| "a cutting thread panicked")??);
        }
        Ok(all)
    })
}

fn describe(name: &str, artifact: &Artifact, params: CutParams) -> Result<(Regions, Chunks), Error> {
    let begin = Instant::now();
    let regions = regions(artifact);
    let found = begin.elapsed();
    print!(
        "{name}: {} bytes, {} regions in {:.3} s:",
        artifact.len(),
        regions.all().len(),
        found.as_secs_f64()
    );
    for kind in [RegionKind::Plain, RegionKind::Metadata, RegionKind::File, RegionKind::Packed] {
        let of_kind = || regions.all().iter().filter(|region| region.kind == kind);
        print!(
            " {kind:?} {} of {} bytes;",
            of_kind().count(),
            of_kind().map(|region| region.len).sum::<u64>()
        );
    }
    let begin = Instant::now();
    let mut batches = Batches::new(artifact, regions.all(), params);
    let mut buffer = Vec::new();
    while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
        buffer = batch.into_buffer();
    }
    let alone = begin.elapsed();
    let begin = Instant::now();
    let chunks = cut(artifact, &regions, params, 2)?;
    println!(
        " {} chunks; cut {:.2} s on one thread, cut and hashed {:.2} s on two",
        chunks.len(),
        alone.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    );
    Ok((regions, chunks))
}

fn main() -> Result<(), Error> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [old, new, rest @ ..] = args.as_slice() else {
        return Err("usage: cutstat OLD NEW [LEVEL[,LEVEL...]] [MIN/AVG/MAX]".into());
    };
    let levels: Vec<i32> =
        rest.first().map_or("3", String::as_str).split(',').map(str::parse).collect::<Result<_, _>>()?;
    let params = match rest.get(1) {
        None => CutParams::default(),
        Some(sizes) => match sizes.split('/').map(str::parse).collect::<Result<Vec<_>, _>>()?.as_slice() {
            [min, avg, max] => CutParams::new(*min, *avg, *max)?,
            _ => return Err("sizes are MIN/AVG/MAX in bytes".into()),
        },
    };
    let open = |path: &str| -> io::Result<Artifact> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Artifact(file, len))
    };
    let (old, new) = (open(old)?, open(new)?);
    let (_, old_chunks) = describe("old", &old, params)?;
    let (regions, new_chunks) = describe("new", &new, params)?;

    let mut known: HashSet<ChunkHash> = old_chunks.iter().map(|chunk| chunk.2).collect();
    let fresh: Vec<_> = new_chunks.iter().filter(|chunk| known.insert(chunk.2)).copied().collect();
    let kind_of = |offset: u64| {
        let index = regions.all().partition_point(|region| region.end() <= offset);
        regions.all()[index].kind
    };
    let raw: u64 = fresh.iter().map(|chunk| u64::from(chunk.1)).sum();
    println!("new chunks: {} of {raw} bytes", fresh.len());
    for level in levels {
        let begin = Instant::now();
        let halves: Vec<_> = fresh.chunks(fresh.len().div_ceil(2).max(1)).collect();
        let totals = std::thread::scope(|scope| {
            let workers: Vec<_> = halves
                .iter()
                .map(|half| {
                    scope.spawn(|| -> Result<HashMap<RegionKind, (u64, u64, u64)>, Error> {
                        let mut compressor = zstd::bulk::Compressor::new(level)?;
                        let mut totals = HashMap::new();
                        let mut data = Vec::new();
                        for (offset, len, _) in *half {
                            data.resize(*len as usize, 0);
                            new.read_exact_at(&mut data, *offset)?;
                            let packed = compressor.compress(&data)?.len().min(data.len());
                            let total = totals.entry(kind_of(*offset)).or_insert((0, 0, 0));
                            total.0 += 1;
                            total.1 += u64::from(*len);
                            total.2 += packed as u64;
                        }
                        Ok(totals)
                    })
                })
                .collect();
            let mut sum: HashMap<RegionKind, (u64, u64, u64)> = HashMap::new();
            for worker in workers {
                for (kind, (n, raw, packed)) in
                    worker.join().map_err(|_| "a compressing thread panicked")??
                {
                    let total = sum.entry(kind).or_default();
                    *total = (total.0 + n, total.1 + raw, total.2 + packed);
                }
            }
            Ok::<_, Error>(sum)
        })?;
        let packed: u64 = totals.values().map(|total| total.2).sum();
        print!("level {level}: {packed} bytes in {:.1} s on two threads;", begin.elapsed().as_secs_f64());
        let mut totals: Vec<_> = totals.into_iter().collect();
        totals.sort_unstable_by_key(|(kind, _)| *kind);
        for (kind, (n, raw, packed)) in totals {
            print!(" {kind:?}: {n} chunks, {raw} -> {packed};");
        }
        println!();
    }
    Ok(())
}
