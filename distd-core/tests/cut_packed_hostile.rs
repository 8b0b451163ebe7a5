//! Tests with compressed EROFS images that no mkfs makes: from an index writer of these tests, with
//! damage, and with rules broken one by one.

use std::fs;
use std::ops::ControlFlow;

use distd_core::cut::erofs::{CLUSTER_BYTES_MAX, Coding, Extent, ExtentData, MapError, PackedFile, Reader};
use distd_core::cut::{RegionKind, Regions, regions};
use proptest::prelude::*;
use tempfile::TempDir;

mod erofs_images;
use erofs_images::{DIR, FILE, Noise, assert_covers, directory, forged, inode, try_mkfs};

const FULL: u16 = 1;
const COMPACT: u16 = 3;

const SHORT: u16 = 0x1;
const BIG: u16 = 0x6;
const INLINE: u16 = 0x8;
const FRAGMENT: u16 = 0x20;

/// Bit 11 of a distance. With it, the distance is a block count.
const COUNT: u16 = 1 << 11;

/// Image offset of the header of a forged file, and its inode number.
const HEADER: usize = 4096 + 64;
const NID: u64 = 129;

/// First block behind the metadata and the root directory.
const DATA: u32 = 17;

struct Forgery {
    layout: u16,
    size: u32,
    advice: u16,
    /// First and second algorithm, as in byte 6 of the header.
    algorithms: u8,
    cluster_bits: u8,
    /// First four bytes of the header.
    front: u32,
    index: Vec<u8>,
    features: u32,
    available: u16,
    blocks: usize,
}

impl Default for Forgery {
    fn default() -> Self {
        Self {
            layout: FULL,
            size: 4096,
            advice: 0,
            algorithms: 0,
            cluster_bits: 0,
            front: 0,
            index: full(&[(1, 0, DATA)]),
            features: 0x3b,
            available: 0xf,
            blocks: 40,
        }
    }
}

impl Forgery {
    fn image(&self) -> Vec<u8> {
        let root = directory(&[("f", NID, 1)]);
        let inodes = [inode(DIR, 0, root.len() as u32, 16), inode(FILE, self.layout, self.size, 0)];
        let mut blocks = vec![root];
        blocks.extend((0..self.blocks).map(|n| vec![(n % 255) as u8 + 1; 4096]));
        let mut image = forged(&inodes, &blocks);
        image[1024 + 80..1024 + 84].copy_from_slice(&self.features.to_le_bytes());
        image[1024 + 84..1024 + 86].copy_from_slice(&self.available.to_le_bytes());
        image[HEADER..HEADER + 4].copy_from_slice(&self.front.to_le_bytes());
        image[HEADER + 4..HEADER + 6].copy_from_slice(&self.advice.to_le_bytes());
        image[HEADER + 6] = self.algorithms;
        image[HEADER + 7] = self.cluster_bits;
        let start = HEADER + if self.layout == FULL { 16 } else { 8 };
        image[start..start + self.index.len()].copy_from_slice(&self.index);
        image
    }

    fn extents(&self) -> Result<Vec<Extent>, MapError> {
        let image = self.image();
        let reader = Reader::open(&image[..]).expect("a good superblock");
        let file = reader.packed_file(NID).expect("a compressed file");
        file.extents().and_then(Iterator::collect)
    }

    fn refused(&self, what: &str) {
        let image = self.image();
        let error = self.extents().expect_err(what);
        assert_ne!(error, MapError::Unreadable, "{what}");
        let regions = regions(&image);
        assert_covers(&regions, image.len(), what);
        assert!(regions.all().iter().all(|region| region.kind == RegionKind::Plain), "{what}");
    }
}

/// Returns entries of a full index, from kind and flags, offset, and block or distances.
fn full(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entry = |(kind, within, block): &(u16, u16, u32)| {
        let [a, b] = kind.to_le_bytes();
        let [c, d] = within.to_le_bytes();
        let [e, f, g, h] = block.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    };
    entries.iter().flat_map(entry).collect()
}

fn cluster(start: u64, len: u64, block: u32, blocks: u64, coding: Coding) -> Extent {
    let data = ExtentData::Cluster {
        start: u64::from(block) << 12,
        len: blocks << 12,
        coding,
        partial: false,
        inline: false,
    };
    Extent { start, len, data }
}

#[test]
fn two_algorithms_block_counts_and_offsets_in_a_full_index() {
    let forgery = Forgery {
        size: 7 * 4096 - 5,
        advice: BIG,
        algorithms: 0x30,
        index: full(&[
            (3, 0, DATA + 9),
            // Only the block count matters. The distances are nonsense.
            (2, 0, u32::from(COUNT | 3) | 0xffff << 16),
            (2, 0, 0),
            (0x8001, 100, DATA),
            (0, 50, DATA + 1),
            (1, 40, DATA + 12),
            (2, 0, u32::from(COUNT | 2)),
        ]),
        ..Forgery::default()
    };
    let mut partial = cluster(3 * 4096 + 100, 4096 - 50, DATA, 1, Coding::Lz4);
    if let ExtentData::Cluster { partial, .. } = &mut partial.data {
        *partial = true;
    }
    assert_eq!(
        forgery.extents().expect("good"),
        [
            cluster(0, 3 * 4096 + 100, DATA + 9, 3, Coding::Zstd),
            partial,
            cluster(4 * 4096 + 50, 4096 - 10, DATA + 1, 1, Coding::Shifted),
            cluster(5 * 4096 + 40, 2 * 4096 - 45, DATA + 12, 2, Coding::Lz4),
        ]
    );
    // Runs lie in the order of the content: blocks 9 to 12, then 0 to 2, then 12 to 14.
    let image = forgery.image();
    let regions = regions(&image);
    assert_covers(&regions, image.len(), "runs");
    let packed: Vec<_> = regions.all().iter().filter(|r| r.kind == RegionKind::Packed).collect();
    let block = |n: u64| (n - u64::from(DATA << 12)) / 4096;
    assert_eq!(
        packed.iter().map(|r| (block(r.start), r.len / 4096, regions.name(r))).collect::<Vec<_>>(),
        [(0, 2, Some(&b"f"[..])), (9, 3, Some(b"f")), (12, 2, Some(b"f"))]
    );
}

#[test]
fn extents_that_share_a_cluster_have_one_region() {
    let index = full(&[(0x8001, 0, DATA + 1), (0x8001, 0, DATA), (0x8001, 0, DATA + 1), (1, 0, DATA + 2)]);
    let forgery = Forgery { size: 4 * 4096, index, ..Forgery::default() };
    assert_eq!(forgery.extents().expect("good").len(), 4);
    let image = forgery.image();
    let regions = regions(&image);
    assert_covers(&regions, image.len(), "shared");
    let packed = regions.all().iter().filter(|r| r.kind == RegionKind::Packed);
    assert_eq!(packed.map(|r| r.len).sum::<u64>(), 3 * 4096);
}

#[test]
fn each_broken_rule_leaves_the_file_without_a_map() {
    let base = Forgery::default;
    assert_eq!(base().extents().expect("good"), [cluster(0, 4096, DATA, 1, Coding::Lz4)]);

    base_with(|f| f.index = full(&[(2, 0, 1)])).refused("no head at the start");
    base_with(|f| f.index = full(&[(1, 7, DATA)])).refused("a start that is not 0");
    base_with(|f| f.index = full(&[(1, 4096, DATA)])).refused("an offset behind its cluster");
    base_with(|f| f.size = u32::MAX).refused("an index behind the end");
    base_with(|f| (f.size, f.cluster_bits) = (u32::MAX, 15)).refused("a cluster of 12 MiB and more");
    base_with(|f| f.index = full(&[(1, 0, u32::MAX)])).refused("a block behind the end");
    base_with(|f| f.index = full(&[(1, 0, DATA + 40)])).refused("a block right behind the end");
    base_with(|f| f.available = 0xe).refused("an algorithm not listed");
    base_with(|f| (f.features, f.available) = (0x39, 9)).extents().expect("LZ4 needs no list");
    base_with(|f| (f.features, f.algorithms) = (0x39, 1)).refused("another one does");
    base_with(|f| f.algorithms = 4).refused("an unknown algorithm");
    base_with(|f| f.algorithms = 0x40).refused("an unknown second algorithm");
    base_with(|f| f.advice = 0x40).refused("unknown advice");
    base_with(|f| f.advice = SHORT).refused("encoded extents");
    base_with(|f| f.cluster_bits = 0x10).refused("reserved bits");
    base_with(|f| (f.advice, f.features) = (BIG, 0x39)).refused("block counts without the feature");
    let two = |second: u32| {
        base_with(|f| (f.size, f.advice, f.index) = (8192, BIG, full(&[(1, 0, DATA), (2, 0, second)])))
    };
    two(u32::from(COUNT | 1)).extents().expect("good");
    two(u32::from(COUNT)).refused("a count of 0");
    two(1).refused("no count");
    two(u32::from(COUNT | 41)).refused("a count behind the end");
    let mut huge = two(u32::from(COUNT | 257));
    huge.blocks = 300;
    huge.refused("more than 1 MiB");
    base_with(|f| (f.size, f.index) = (8192, full(&[(0, 0, DATA), (2, 0, 1)])))
        .refused("a long plain extent");
    base_with(|f| f.advice = INLINE).refused("an inline cluster without bytes");
    base_with(|f| (f.advice, f.front) = (INLINE, 4096 << 16)).refused("an inline cluster across blocks");
    base_with(|f| (f.advice, f.front) = (INLINE | FRAGMENT, 9 << 16)).refused("inline and fragment");
    base_with(|f| f.advice = FRAGMENT).refused("a fragment without a packed inode");
    base_with(|f| f.cluster_bits = 0x80).refused("all fragment without a packed inode");

    let compact = |edit: fn(&mut Forgery)| {
        base_with(|f| {
            (f.layout, f.index) = (COMPACT, vec![0; 8]);
            f.index[..2].copy_from_slice(&(1u16 << 12).to_le_bytes());
            f.index[4..].copy_from_slice(&(DATA - 1).to_le_bytes());
            edit(f);
        })
    };
    assert_eq!(compact(|_| ()).extents().expect("good"), [cluster(0, 4096, DATA, 1, Coding::Lz4)]);
    compact(|f| f.advice = 0x2).refused("block counts for one algorithm");
    compact(|f| f.cluster_bits = 3).refused("logical clusters of 32 KiB");
    compact(|f| (f.cluster_bits, f.advice, f.size) = (1, SHORT, 40 * 4096)).refused("2 bytes for 8 KiB");
    compact(|f| (f.size, f.index[2], f.index[3]) = (8192, 1, 0x28)).refused("a count where there is none");
    compact(|f| f.size = u32::MAX).refused("an index behind the end");
}

fn base_with(edit: impl FnOnce(&mut Forgery)) -> Forgery {
    let mut forgery = Forgery::default();
    edit(&mut forgery);
    forgery
}

#[test]
fn a_packed_inode_is_a_file_of_its_own_and_may_not_point_into_itself() {
    let forgery = base_with(|f| (f.advice, f.front) = (FRAGMENT, 77));
    let mut image = forgery.image();
    // The file itself is the packed inode.
    image[1024 + 96..1024 + 104].copy_from_slice(&NID.to_le_bytes());
    let reader = Reader::open(&image[..]).expect("an image");
    assert!(matches!(reader.packed_file(NID).expect("there").extents(), Err(MapError::Damaged(_))));
    // The packed inode is another inode, in a block of its own, one flat block long.
    let nid = 14 * 128u64;
    image[14 * 4096..14 * 4096 + 32].copy_from_slice(&inode(FILE, 0, 4096, DATA + 5));
    image[1024 + 96..1024 + 104].copy_from_slice(&nid.to_le_bytes());
    let reader = Reader::open(&image[..]).expect("an image");
    let extents: Result<Vec<_>, _> =
        reader.packed_file(NID).expect("there").extents().and_then(Iterator::collect);
    let data = ExtentData::Fragment { offset: 77 | u64::from(DATA) << 32 };
    assert_eq!(extents.expect("good"), [Extent { start: 0, len: 4096, data }]);
    let found = regions(&image);
    assert_covers(&found, image.len(), "packed inode");
    let named = found.all().iter().find(|r| found.name(r) == Some(b"/packed-inode")).expect("a region");
    assert_eq!((named.start, named.len), (u64::from(DATA + 5) << 12, 4096));
    // The packed inode does not exist.
    image[1024 + 96..1024 + 104].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(regions(&image), Regions::plain(image.len() as u64));
}

/// One physical cluster of the model: number of logical clusters it spans, offset of the next one's
/// start in its logical cluster, blocks, and the intended kind.
type Model = Vec<(u64, u16, u32, u16)>;

/// Number of the logical cluster, offset in it, first block, blocks, kind.
type Head = (u64, u16, u32, u32, u16);

/// Returns the heads that the model describes, and the number of logical clusters.
fn heads(model: &Model, big: bool) -> (Vec<Head>, u64) {
    let (mut number, mut block) = (0, DATA);
    let mut out = Vec::new();
    for (index, (span, within, blocks, kind)) in model.iter().enumerate() {
        let within = if index == 0 { 0 } else { *within };
        // The count is in the entry behind the head, so that entry has to exist.
        let blocks = if big && *span > 1 { *blocks } else { 1 };
        // A plain extent is no longer than its cluster.
        let next = model.get(index + 1).map_or(0, |next| next.1);
        let kind = if *kind == 0 && (*span > 1 || next > within) { 1 } else { *kind };
        out.push((number, within, block, blocks, kind));
        number += span;
        block += blocks;
    }
    (out, number)
}

/// Returns kind, low bits and distance to the next head of each logical cluster.
fn lclusters(heads: &[Head], count: u64, big: bool) -> Vec<(u16, u16, u16)> {
    let mut out = Vec::new();
    for (index, (number, within, _, blocks, kind)) in heads.iter().enumerate() {
        let end = heads.get(index + 1).map_or(count, |next| next.0);
        out.push((*kind, *within, 0));
        for at in number + 1..end {
            let back = (at - number) as u16;
            let low = if big && back == 1 { COUNT | *blocks as u16 } else { back };
            out.push((2, low, (end - at) as u16));
        }
    }
    out
}

/// Packs entries as a compact index, as erofs-utils describes it.
fn compact(heads: &[Head], count: u64, big: bool, short: bool) -> Vec<u8> {
    let entries = lclusters(heads, count, big);
    let start = HEADER as u64 + 8;
    let front = ((32 - start % 32) % 32 / 4).min(count);
    let middle = if short { (count - front) / 16 * 16 } else { 0 };
    let mut packs = Vec::new();
    let mut at = 0;
    while at < count {
        let slots = if at >= front && at < front + middle { 16 } else { 2 };
        packs.push((at, slots));
        at += slots;
    }
    let mut out = Vec::new();
    for (at, slots) in packs {
        let bytes = if slots == 16 { 32 } else { 8 };
        let bits = (bytes - 4) * 8 / slots as usize;
        let mut pack = vec![0u8; bytes];
        for slot in 0..slots as usize {
            let Some((kind, low, ahead)) = entries.get(at as usize + slot) else { continue };
            let last = slot + 1 == slots as usize && *kind == 2 && low & COUNT == 0;
            let value = u64::from(if last { *ahead } else { *low }) | u64::from(*kind) << 12;
            for bit in 0..14 {
                let to = slot * bits + bit;
                pack[to / 8] |= ((value >> bit & 1) as u8) << (to % 8);
            }
        }
        let first = heads.iter().find(|head| head.0 >= at);
        let counted = entries[at as usize].0 == 2 && entries[at as usize].1 & COUNT != 0;
        let base = match first {
            _ if counted => heads.iter().rfind(|head| head.0 < at).expect("a count has a head").2,
            Some(head) => head.2.wrapping_sub(u32::from(!big)),
            None => 0,
        };
        pack[bytes - 4..].copy_from_slice(&base.to_le_bytes());
        out.extend(pack);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_index_that_is_written_is_read_in_all_three_forms(
        model in prop::collection::vec((1u64..40, 0u16..4096, 1u32..6, prop::sample::select(vec![0u16, 1, 3])), 1..30),
        big: bool,
        cut in 0u32..4096,
    ) {
        let (heads, count) = heads(&model, big);
        // The last head must lie inside the content.
        let cut = if heads.last().is_some_and(|h| h.0 + 1 == count) { cut.min(4095 - u32::from(heads.last().map_or(0, |h| h.1))) } else { cut };
        let size = (count * 4096) as u32 - cut;
        let expected: Vec<_> = heads.iter().enumerate().map(|(index, head)| {
            let start = head.0 * 4096 + u64::from(head.1);
            let end = heads.get(index + 1).map_or(u64::from(size), |next| next.0 * 4096 + u64::from(next.1));
            let coding = match head.4 { 0 => Coding::Shifted, 1 => Coding::Deflate, _ => Coding::Lzma };
            cluster(start, end - start, head.2, u64::from(head.3), coding)
        }).collect();
        let blocks = heads.iter().map(|head| head.3 as usize).sum();
        let base = || Forgery {
            size, algorithms: 0x12, advice: if big { BIG } else { 0 }, blocks, ..Forgery::default()
        };
        let mut next = heads.iter();
        let entries: Vec<_> = lclusters(&heads, count, big).iter().map(|(kind, low, ahead)| match kind {
            2 => (2, 0, u32::from(*low) | u32::from(*ahead) << 16),
            kind => (*kind, *low, next.next().map_or(0, |head| head.2)),
        }).collect();
        let whole = Forgery { index: full(&entries), ..base() };
        prop_assert_eq!(whole.extents().expect("full"), &expected[..]);
        for short in [false, true] {
            let mut packed = Forgery { layout: COMPACT, index: compact(&heads, count, big, short), ..base() };
            packed.advice |= u16::from(short) * SHORT;
            prop_assert_eq!(packed.extents().expect("compact"), &expected[..], "short {}", short);
        }
    }
}

/// Checks that regions cover the image, and that extents follow each other inside it, whatever the
/// image is.
fn assert_sane(image: &[u8], what: &str) {
    assert_covers(&regions(image), image.len(), what);
    let Some(reader) = Reader::open(image) else { return };
    reader.codecs();
    let check = |file: PackedFile<'_, '_, [u8]>| {
        let mut at = 0;
        for extent in file.extents().into_iter().flatten() {
            let Ok(extent) = extent else { return ControlFlow::Continue(()) };
            assert_eq!(extent.start, at, "{what}");
            assert!(extent.len > 0, "{what}");
            at += extent.len;
            if let ExtentData::Cluster { start, len, .. } = extent.data {
                assert!(len > 0 && len <= CLUSTER_BYTES_MAX && start + len <= image.len() as u64, "{what}");
            }
        }
        assert!(at == 0 || at == file.size(), "{what}");
        ControlFlow::Continue(())
    };
    let _ = reader.packed_files(check);
}

/// Small images of several layouts.
fn small_images() -> Vec<(&'static str, Vec<u8>)> {
    let dir = TempDir::new().expect("a temporary directory");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).expect("writable");
    let mut noise = Noise(1);
    for (name, len) in [("a", 9000), ("b", 90_000), ("c", 300_000), ("d", 700), ("e", 40_000)] {
        let phrases: Vec<Vec<u8>> = (0..30).map(|_| noise.bytes(20)).collect();
        let mut bytes = Vec::new();
        while bytes.len() < len {
            bytes.extend_from_slice(&phrases[noise.next() as usize % phrases.len()]);
        }
        fs::write(tree.join(name), bytes).expect("writable");
    }
    let all = [
        "-Eforce-inode-compact",
        "-Elegacy-compress",
        "-Eztailpacking",
        "-Elegacy-compress,ztailpacking,force-inode-extended",
        "-Efragments,dedupe",
        "-Eall-fragments",
        "-C65536",
    ];
    let image = dir.path().join("image");
    all.iter().filter_map(|o| Some((*o, try_mkfs(&["-zlz4", o], &tree, &image).ok()?))).collect()
}

#[test]
fn every_flipped_byte_of_the_metadata_still_gives_a_cover() {
    for (options, image) in small_images() {
        let regions = regions(&image);
        assert!(regions.all().iter().any(|region| region.kind == RegionKind::Packed), "{options}");
        // A few bytes are enough of the empty rest of a block.
        let metadata = regions.all().iter().filter(|region| region.kind == RegionKind::Metadata);
        let places = metadata.flat_map(|region| region.start as usize..region.end() as usize);
        for at in places.filter(|at| image[*at] != 0 || at % 16 == 0) {
            for flip in [0x01, 0x08, 0x80, 0xff] {
                let mut damaged = image.clone();
                damaged[at] ^= flip;
                assert_sane(&damaged, &format!("{options}: byte {at} xor {flip:#x}"));
            }
        }
    }
}

#[test]
fn random_damage_and_truncation_still_give_a_cover() {
    for (options, image) in small_images() {
        let regions = regions(&image);
        let metadata = regions.all().iter().filter(|region| region.kind == RegionKind::Metadata);
        let places: Vec<_> =
            metadata.flat_map(|region| region.start as usize..region.end() as usize).collect();
        for seed in 0..400 {
            let mut noise = Noise(seed);
            let mut damaged = image.clone();
            for _ in 0..1 + noise.next() % 12 {
                let place = places[noise.next() as usize % places.len()];
                damaged[place] = match noise.next() % 3 {
                    0 => 0xff,
                    1 => damaged[place] ^ 1 << (noise.next() % 8),
                    _ => noise.next() as u8,
                };
            }
            damaged.truncate(image.len() - (noise.next() % 3 * 1000) as usize);
            assert_sane(&damaged, &format!("{options}, seed {seed}"));
        }
        for len in (0..image.len()).step_by(509) {
            assert_sane(&image[..len], &format!("{options}, {len} of {} bytes", image.len()));
        }
    }
}

#[test]
fn many_files_that_share_one_long_index_run_out_of_work() {
    // Attributes that reach over all inodes lead each file to the same long index. Without a bound,
    // the work would grow with the square of the length.
    let files = 2000u64;
    let names: Vec<String> = (0..files).map(|n| format!("{n:04}")).collect();
    let mut dirs = Vec::new();
    for part in names.chunks(200) {
        let first = names.iter().position(|name| name == &part[0]).expect("it is one") as u64;
        let entries: Vec<_> =
            part.iter().zip(128 + 1 + first..).map(|(n, nid)| (n.as_str(), nid, 1)).collect();
        let mut block = directory(&entries);
        block.resize(4096, 0);
        dirs.push(block);
    }
    let mut root = inode(DIR, 0, dirs.len() as u32 * 4096, 20);
    root[0] = 0;
    let mut image = vec![0; 20 * 4096];
    image[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 14..1024 + 16].copy_from_slice(&128u16.to_le_bytes());
    image[4096..4128].copy_from_slice(&root);
    image.extend(dirs.concat());
    // A header, and the head of an extent that continues to the end, where it turns out to be too
    // long.
    image.extend([0; 16]);
    image.extend(full(&[(1, 0, 1)]));
    let rest = full(&[(2, 0, 1); 512]);
    while image.len() < 40 << 20 {
        image.extend_from_slice(&rest);
    }
    image.truncate(40 << 20);
    let blocks = (image.len() / 4096) as u32;
    image[1024 + 36..1024 + 40].copy_from_slice(&blocks.to_le_bytes());
    for index in 0..files as usize {
        let mut raw = inode(FILE, FULL, u32::MAX, 0);
        let behind = (20 + dirs.len()) * 4096 - (4096 + 32 * (index + 1) + 32);
        raw[2..4].copy_from_slice(&((behind - 12).div_ceil(4) as u16 + 1).to_le_bytes());
        image[4096 + 32 * (index + 1)..][..32].copy_from_slice(&raw);
    }
    assert_eq!(regions(&image), Regions::plain(image.len() as u64));
    let reader = Reader::open(&image[..]).expect("an image");
    let mut errors = Vec::new();
    let _ = reader.packed_files(|file| {
        errors.extend(file.extents().and_then(|mut all| all.try_for_each(|e| e.map(|_| ()))).err());
        ControlFlow::Continue(())
    });
    let full = errors.iter().filter(|error| **error != MapError::Unreadable).count();
    assert!(full > 0 && full < 20 && full < errors.len(), "{full} of {} were read", errors.len());
}
