//! Reader for FAT file systems (12, 16 and 32 bits, long names), such as an EFI system partition.

mod dir;
mod table;

use std::ops::Range;

use self::dir::{Entry, Names};
use self::table::{Clusters, Table};
use super::bytes::{u16_at, u32_at};
use super::found::Found;
use super::gzip::Budget;
use super::pe::KernelImages;
use super::{ReadAt, RegionKind, Regions};
use crate::bounds::{ARTIFACT_BYTES_MAX, PATH_BYTES_MAX, REGIONS_MAX};

/// Deepest directory read. Paths of 4096 bytes could nest deeper; systems do not.
const DEPTH_MAX: usize = 64;

/// Largest cluster, bytes: Windows formats up to 256 KiB.
const CLUSTER_BYTES_MAX: u64 = 256 << 10;

/// Shortest file that is a region of its own, bytes. Sending shorter data again costs about as much
/// as an entry in the manifest.
const FILE_MIN: u64 = 256;

/// Clusters below which a file system is FAT12, and FAT16 (Microsoft, "FAT: General Overview of
/// On-Disk Format").
const FAT12_BELOW: u64 = 4085;
const FAT16_BELOW: u64 = 65_525;

/// Returns the regions of a FAT file system; `None` for anything else.
pub(super) fn regions<R: ReadAt + ?Sized>(volume: &R, budget: &mut Budget) -> Option<Regions> {
    let layout = Layout::read(volume)?;
    let table = Table::new(volume, layout.table.clone(), layout.bits)?;
    let mut walk = Walk {
        volume,
        clusters: Clusters::new(layout.clusters),
        found: Found::new(volume.len()),
        kernels: KernelImages::new(volume.len()),
        layout,
        table,
    };
    walk.run(budget)?;
    walk.lay_out()
}

/// Layout of a file system according to its boot sector. Ranges are in bytes.
#[derive(Clone, Debug)]
struct Layout {
    /// Bits of a table entry: 12, 16 or 32.
    bits: u8,
    cluster_bytes: u64,
    /// First copy of the table.
    table: Range<u64>,
    copies: u64,
    /// Root directory, where it lies apart from the clusters.
    root: Range<u64>,
    /// First cluster of the root directory, else.
    root_cluster: u32,
    /// Offset of cluster 2, the first one.
    data: u64,
    /// Number of clusters.
    clusters: u64,
}

impl Layout {
    fn read<R: ReadAt + ?Sized>(volume: &R) -> Option<Self> {
        let mut boot = [0; 512];
        if volume.len() > ARTIFACT_BYTES_MAX {
            return None;
        }
        volume.read_exact_at(&mut boot, 0).ok()?;
        let sector = u64::from(u16_at(&boot, 11));
        let per_cluster = u64::from(boot[13]);
        let is_jump = matches!(boot[..3], [0xEB, _, 0x90] | [0xE9, ..]);
        if !is_jump || boot[510..] != [0x55, 0xAA] || !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return None;
        }
        if !per_cluster.is_power_of_two() || per_cluster * sector > CLUSTER_BYTES_MAX {
            return None;
        }
        let either = |short: u16, long: u32| if short == 0 { u64::from(long) } else { u64::from(short) };
        let reserved = u64::from(u16_at(&boot, 14));
        let copies = u64::from(boot[16]);
        let root_entries = u64::from(u16_at(&boot, 17));
        let sectors = either(u16_at(&boot, 19), u32_at(&boot, 32));
        let table_sectors = either(u16_at(&boot, 22), u32_at(&boot, 36));
        let root_sectors = (root_entries * 32).div_ceil(sector);
        let in_front = reserved + copies * table_sectors + root_sectors;
        if reserved == 0 || !(1..=4).contains(&copies) || table_sectors == 0 || sectors <= in_front {
            return None;
        }
        let clusters = (sectors - in_front) / per_cluster;
        let bits = match clusters {
            0 => return None,
            // Only FAT32 has its root directory in clusters, and the wide length of the table.
            _ if root_entries == 0 && u16_at(&boot, 22) == 0 => 32,
            1..FAT12_BELOW => 12,
            FAT12_BELOW..FAT16_BELOW => 16,
            _ => return None,
        };
        let table = reserved * sector..(reserved + table_sectors) * sector;
        let entries = (table.end - table.start) * 8 / u64::from(bits);
        let root = (in_front - root_sectors) * sector;
        if sectors * sector > volume.len() || entries < clusters + 2 || (bits != 32 && root_entries == 0) {
            return None;
        }
        Some(Self {
            bits,
            cluster_bytes: per_cluster * sector,
            table,
            copies,
            root: root..root + root_entries * 32,
            root_cluster: if bits == 32 { u32_at(&boot, 44) } else { 0 },
            data: in_front * sector,
            clusters,
        })
    }

    /// Returns the offset of a cluster.
    fn offset(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster - 2) * self.cluster_bytes
    }
}

/// Directory that is still to be read.
struct Pending {
    path: Vec<u8>,
    depth: usize,
    parts: Vec<Range<u64>>,
}

struct Walk<'v, R: ReadAt + ?Sized> {
    volume: &'v R,
    layout: Layout,
    table: Table<'v, R>,
    clusters: Clusters,
    found: Found,
    kernels: KernelImages,
}

impl<R: ReadAt + ?Sized> Walk<'_, R> {
    /// Reads all directories. `None` if the volume cannot be read; damage in a directory or a chain
    /// only ends that directory or chain.
    fn run(&mut self, budget: &mut Budget) -> Option<()> {
        let root = if self.layout.bits == 32 {
            self.chain(self.layout.root_cluster, u64::MAX)?
        } else {
            vec![self.layout.root.clone()]
        };
        let mut pending = vec![Pending { path: Vec::new(), depth: 0, parts: root }];
        // Paths that are held take no more memory than the volume has bytes.
        let mut held = self.volume.len().saturating_add(1 << 20);
        while let Some(directory) = pending.pop() {
            let mut names = Names::default();
            let mut raw = vec![0; dir::ENTRY * 128];
            'parts: for part in &directory.parts {
                let mut at = part.start;
                while at < part.end {
                    let len = raw.len().min((part.end - at) as usize);
                    self.volume.read_exact_at(&mut raw[..len], at).ok()?;
                    at += len as u64;
                    for entry in raw[..len].chunks_exact(dir::ENTRY) {
                        match names.entry(entry) {
                            Entry::End => break 'parts,
                            Entry::None => {}
                            Entry::Dir { name, cluster } if directory.depth < DEPTH_MAX => {
                                // Each cluster is taken once, so directories end.
                                let parts = self.chain(cluster, u64::MAX)?;
                                let path = join(&directory.path, &name);
                                if !parts.is_empty() && path.len() <= PATH_BYTES_MAX {
                                    held = held.checked_sub(path.len() as u64 + 64)?;
                                    pending.push(Pending { path, depth: directory.depth + 1, parts });
                                }
                            }
                            Entry::Dir { .. } => {}
                            Entry::File { name, cluster, size } => {
                                self.file(&join(&directory.path, &name), cluster, size, budget)?;
                            }
                        }
                    }
                }
            }
        }
        Some(())
    }

    fn file(&mut self, path: &[u8], cluster: u32, size: u64, budget: &mut Budget) -> Option<()> {
        let mut left = size;
        let mark = self.found.mark();
        for part in self.chain(cluster, size)? {
            let len = left.min(part.end - part.start);
            left -= len;
            if size >= FILE_MIN {
                self.found.add(part.start, part.start + len, RegionKind::File)?;
            }
        }
        if !self.kernels.split(self.volume, path, size, mark, &mut self.found, budget)? {
            self.found.finish_file(mark, path);
        }
        Some(())
    }

    /// Takes the clusters of a chain, as many as hold `size` bytes; returns their runs. Ends at
    /// damage, and at a cluster that another chain has. `None` if the table cannot be read.
    fn chain(&mut self, first: u32, size: u64) -> Option<Vec<Range<u64>>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut next = Some(first);
        let mut left = size.div_ceil(self.layout.cluster_bytes);
        while let Some(cluster) = next.filter(|cluster| left > 0 && self.clusters.take(*cluster)) {
            left -= 1;
            let start = self.layout.offset(cluster);
            let end = start + self.layout.cluster_bytes;
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
            next = self.table.next(cluster)?;
        }
        Some(runs)
    }

    /// Fills the bytes between the files. Each copy of the table is a region, so that its chunks
    /// equal those of the others, and so is each run of clusters that no directory or file has.
    fn lay_out(self) -> Option<Regions> {
        let Self { layout, clusters, found, .. } = self;
        let mut in_front: Vec<u64> = (0..=layout.copies)
            .map(|n| layout.table.start + n * (layout.table.end - layout.table.start))
            .collect();
        in_front.push(layout.data);
        let used = layout.offset(2) + layout.clusters * layout.cluster_bytes;
        found.lay_out_between(|out, end| {
            for border in &in_front {
                let to = end.min(*border);
                out.push(to.saturating_sub(out.total()), RegionKind::Metadata, None);
            }
            while out.total() < end {
                let at = out.total();
                if at >= used || out.all().len() + 3 > REGIONS_MAX {
                    out.push(end - at, RegionKind::Plain, None);
                    break;
                }
                // Behind the end of a file, the rest of its last cluster.
                let number = (at - layout.data) / layout.cluster_bytes;
                let taken = clusters.is_taken(number);
                let behind = clusters.run_end(number, (end - layout.data).div_ceil(layout.cluster_bytes));
                let to = (layout.data + behind * layout.cluster_bytes).min(end);
                let kind = if taken { RegionKind::Metadata } else { RegionKind::Plain };
                out.push(to - at, kind, None);
            }
        })
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
