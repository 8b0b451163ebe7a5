//! Tests of regions and extent maps of compressed EROFS images. Needs `mkfs.erofs`; options that
//! its version does not offer are left out, see [`samples`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use distd_core::ChunkHash;
use distd_core::cut::erofs::{Codecs, Coding, Extent, ExtentData, PACKED_INODE_NAME, PackedFile, Reader};
use distd_core::cut::{Batches, CutParams, RegionKind, Regions, regions};
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use tempfile::TempDir;

mod erofs_images;
use erofs_images::{Files, Noise, assert_covers, mkfs, try_mkfs};

/// Sets of options that change how mkfs stores compressed data, and that every version knows.
const KNOWN: [&[&str]; 13] = [
    &["-zlz4"],
    &["-zlz4hc"],
    &["-zlz4hc,12"],
    &["-zlz4", "-C65536"],
    &["-zlz4hc", "-C16384"],
    &["-zlz4", "-Elegacy-compress"],
    &["-zlz4", "-Elegacy-compress", "-C65536"],
    &["-zlz4", "-Eztailpacking"],
    &["-zlz4", "-C65536", "-Eztailpacking"],
    &["-zlz4hc", "-Elegacy-compress,ztailpacking"],
    &["-zlz4", "-Eforce-inode-compact"],
    &["-zlz4", "-Eforce-inode-extended,noinline_data"],
    &["-zlz4", "--max-extent-bytes=16384"],
];
const OFFERED: [&[&str]; 24] = [
    &["-zlz4", "-Efragments"],
    &["-zlz4", "-C65536", "-Efragments"],
    &["-zlz4", "-Elegacy-compress,fragments"],
    &["-zlz4", "-Eall-fragments"],
    &["-zlz4", "-Eall-fragments,fragdedupe=inode"],
    &["-zlz4", "-Ededupe"],
    &["-zlz4", "-C32768", "-Ededupe"],
    &["-zlz4", "-Efragments,dedupe"],
    &["-zlz4", "-Eall-fragments,dedupe"],
    &["-zlz4", "-Efragments,dedupe,ztailpacking"],
    &["-zlz4", "-b1024"],
    &["-zlz4", "-b1024", "-C8192", "-Eztailpacking"],
    &["-zlzma"],
    &["-zlzma", "-C65536", "-Efragments"],
    &["-zlzma", "-C65536", "-Eztailpacking"],
    &["-zdeflate"],
    &["-zdeflate", "-C65536", "-Ededupe"],
    &["-zlibdeflate", "-Eztailpacking"],
    &["-zzstd"],
    &["-zzstd", "-C65536"],
    &["-zzstd", "-C65536", "-Efragments,dedupe"],
    &["-zzstd", "-Elegacy-compress,ztailpacking"],
    &["-zlz4:zstd", "-C65536", "--compress-hints=HINTS"],
    &["-zlz4:lzma", "-Elegacy-compress", "--compress-hints=HINTS"],
];

/// Text that compresses about threefold, with stretches that do not.
fn text(noise: &mut Noise, len: usize) -> Vec<u8> {
    let words: Vec<String> = (0..200u64).map(|n| format!("{} ", n * n * n * 7919)).collect();
    let mut out = Vec::with_capacity(len + 8192);
    while out.len() < len {
        if noise.next().is_multiple_of(3000) {
            let run = (noise.next() % 9000) as usize;
            out.extend(noise.bytes(run));
        }
        out.extend_from_slice(words[noise.next() as usize % words.len()].as_bytes());
    }
    out.truncate(len);
    out
}

fn sample_files(seed: u64) -> Files {
    let mut noise = Noise(seed);
    let mut files = Files::new();
    for size in [0, 1, 255, 257, 4095, 4096, 4097, 8192, 12_300, 65_536, 70_001, 300_000, 1_500_000] {
        files.insert(format!("a/sizes/{size}"), text(&mut noise, size));
    }
    for index in 0..150 {
        let len = (noise.next() % 20_000) as usize;
        files.insert(format!("many/file-{index:04}"), text(&mut noise, len));
    }
    files.insert("noise".into(), noise.bytes(50_000));
    files.insert("zeros".into(), vec![0; 3_000_000]);
    // The same content again with something in front, for deduplication and partial references.
    let common = text(&mut noise, 200_000);
    for (name, front) in [("twin/1", 0), ("twin/2", 5000), ("twin/3", 77)] {
        let mut bytes = text(&mut noise, front);
        bytes.extend_from_slice(&common);
        files.insert(name.into(), bytes);
    }
    files
}

fn write_tree(root: &Path, files: &Files) {
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
}

/// Makes an image from one tree for each set of options that this mkfs offers.
fn samples(files: &Files) -> impl Iterator<Item = (&'static [&'static str], Vec<u8>)> {
    let dir = TempDir::new().expect("a temporary directory");
    let tree = dir.path().join("tree");
    write_tree(&tree, files);
    let hints = dir.path().join("hints");
    fs::write(&hints, "65536 1 twin/.*\n").expect("writable");
    let hints = format!("--compress-hints={}", hints.display());
    let all = KNOWN.iter().map(|o| (*o, true)).chain(OFFERED.iter().map(|o| (*o, false)));
    all.filter_map(move |(options, known)| {
        let filled: Vec<&str> =
            options.iter().map(|o| if o.ends_with("HINTS") { hints.as_str() } else { o }).collect();
        let image = dir.path().join("image");
        match try_mkfs(&filled, &tree, &image) {
            Ok(image) => Some((options, image)),
            Err(message) if known => panic!("mkfs.erofs {options:?}: {message}"),
            Err(_) => {
                eprintln!("not offered here: {options:?}");
                None
            }
        }
    })
}

/// Path, inode number, size and extents of one compressed file.
type Map = (Vec<u8>, u64, u64, Vec<Extent>);

fn maps(image: &[u8]) -> Vec<Map> {
    let reader = Reader::open(image).expect("an image");
    let mut out = Vec::new();
    reader
        .packed_files(|file| {
            let extents = file.extents().and_then(Iterator::collect);
            let name = file.path().escape_ascii().to_string();
            let extents: Vec<Extent> = extents.unwrap_or_else(|error| panic!("{name}: {error}"));
            let again = reader.packed_file(file.nid()).expect("found a moment ago");
            assert_eq!((again.size(), again.path()), (file.size(), &b""[..]));
            out.push((file.path().to_vec(), file.nid(), file.size(), extents));
            ControlFlow::Continue(())
        })
        .expect("sound");
    out
}

/// Returns the content as an independent reader sees it.
fn content(fs: &EroFS<SliceImage<'_>>, nid: u64) -> std::io::Result<Vec<u8>> {
    let inode = fs.get_inode(nid).map_err(std::io::Error::other)?;
    let mut bytes = Vec::new();
    fs.open_inode_file(inode).map_err(std::io::Error::other)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Unpacks the first bytes of an LZ4 block, as many as `out` has room for.
fn lz4_prefix(input: &[u8], out: &mut [u8]) -> Option<()> {
    fn long(short: u8, input: &mut impl Iterator<Item = u8>) -> Option<usize> {
        let mut len = usize::from(short);
        let mut more = if short == 15 { 255 } else { 0 };
        while more == 255 {
            more = input.next()?;
            len += usize::from(more);
        }
        Some(len)
    }
    let mut input = input.iter().copied();
    let mut at = 0;
    while at < out.len() {
        let token = input.next()?;
        for _ in 0..long(token >> 4, &mut input)?.min(out.len() - at) {
            out[at] = input.next()?;
            at += 1;
        }
        if at == out.len() {
            break;
        }
        let back = usize::from(u16::from_le_bytes([input.next()?, input.next()?]));
        for _ in 0..(long(token & 15, &mut input)? + 4).min(out.len() - at) {
            out[at] = *out.get(at.checked_sub(back)?)?;
            at += 1;
        }
    }
    Some(())
}

/// Unpacks an extent by the map alone; `None` for algorithms without a decoder here.
fn unpack(image: &[u8], codecs: Codecs, block: usize, extent: &Extent, packed: &[u8]) -> Option<Vec<u8>> {
    let (start, len, coding, partial) = match extent.data {
        ExtentData::Fragment { offset } => {
            return Some(packed[offset as usize..(offset + extent.len) as usize].to_vec());
        }
        ExtentData::Cluster { start, len, coding, partial, .. } => (start as usize, len, coding, partial),
    };
    let cluster = &image[start..start + len as usize];
    let mut out = vec![0; extent.len as usize];
    let front = if codecs.zeros_in_front { cluster.iter().take_while(|b| **b == 0).count() } else { 0 };
    match coding {
        Coding::Shifted => out = cluster[..out.len()].to_vec(),
        Coding::Interlaced => {
            for (index, byte) in out.iter_mut().enumerate() {
                *byte = cluster[(extent.start as usize + index) % block];
            }
        }
        Coding::Lz4 => lz4_prefix(&cluster[front..], &mut out).expect("an LZ4 block"),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(&cluster[front..]).expect("zstd is here");
            decoder.read_exact(&mut out).expect("a zstd frame");
            assert!(partial || decoder.read(&mut [0]).expect("its end") == 0);
        }
        Coding::Lzma | Coding::Deflate => return None,
    }
    Some(out)
}

#[test]
fn maps_give_the_content_of_every_file_in_every_layout() {
    let files = sample_files(1);
    let mut seen = BTreeSet::new();
    for (options, image) in samples(&files) {
        let reader = Reader::open(&image[..]).expect("an image");
        let codecs = reader.codecs().expect("known algorithms");
        let blocks = if options.contains(&"-C65536") && options[0].starts_with("-zlz4") { 16 } else { 0 };
        assert!(codecs.lz4_cluster_blocks >= blocks, "{options:?}: {codecs:?}");
        assert_eq!(codecs.lzma_dictionary_bytes > 0, options[0].contains("lzma"), "{options:?}");
        assert_eq!(codecs.zstd_window_bits > 0, options[0].contains("zstd"), "{options:?}");
        let fs = EroFS::new(SliceImage::new(&image)).expect("an image");
        let packed = reader.packed_nid().map(|nid| content(&fs, nid).expect("readable")).unwrap_or_default();
        let maps = maps(&image);
        assert!(maps.len() > 100, "{options:?}: {} compressed files", maps.len());
        for (path, nid, size, extents) in &maps {
            let label = format!("{} with {options:?}", path.escape_ascii());
            let truth = match files.get(std::str::from_utf8(path).expect("our names")) {
                Some(bytes) => bytes.clone(),
                None => {
                    assert_eq!(path, PACKED_INODE_NAME, "{label}");
                    content(&fs, *nid).expect("readable")
                }
            };
            assert_eq!(*size, truth.len() as u64, "{label}");
            let mut at = 0;
            for extent in extents {
                assert_eq!(extent.start, at, "{label}");
                assert!(extent.len > 0, "{label}");
                at += extent.len;
                let block = reader.block_bytes() as usize;
                let want = &truth[extent.start as usize..at as usize];
                if let Some(got) = unpack(&image, codecs, block, extent, &packed) {
                    assert!(got == want, "{label}: other bytes in {extent:?}");
                }
                seen.insert(match extent.data {
                    ExtentData::Fragment { .. } => "fragment".to_owned(),
                    ExtentData::Cluster { coding, partial, inline, .. } => {
                        format!("{coding:?} partial {partial} inline {inline}")
                    }
                });
            }
            assert_eq!(at, *size, "{label}");
        }
    }
    println!("{seen:#?}");
    for kind in [
        "Lz4 partial false inline false",
        "Lz4 partial false inline true",
        "Shifted partial false inline false",
    ] {
        assert!(seen.contains(kind), "no {kind}");
    }
}

#[test]
fn damage_in_a_cluster_is_damage_in_its_extent_alone() {
    // For the algorithms that are not unpacked above: the other reader says which content a cluster
    // holds.
    let files = sample_files(5);
    for (options, image) in samples(&files) {
        if options[0] == "-zlibdeflate" {
            // mkfs leaves the window size 0 here, which Linux accepts and the other reader does
            // not.
            continue;
        }
        let maps = maps(&image);
        let mut noise = Noise(6);
        for _ in 0..12 {
            let (path, nid, _, extents) = &maps[noise.next() as usize % maps.len()];
            let extent = extents[noise.next() as usize % extents.len()];
            let ExtentData::Cluster { start, len, .. } = extent.data else { continue };
            let label = format!("{} {extent:?} with {options:?}", path.escape_ascii());
            let Some(truth) = files.get(std::str::from_utf8(path).expect("our names")) else { continue };
            let mut damaged = image.clone();
            damaged[start as usize..(start + len) as usize].fill(0xff);
            let fs = EroFS::new(SliceImage::new(&damaged)).expect("an image");
            let range = extent.start as usize..(extent.start + extent.len) as usize;
            let read = range_of(&fs, *nid, &extent);
            assert!(read.is_err() || read.ok().as_deref() != Some(&truth[range]), "{label}: not in use");
            for other in extents.iter().filter(|other| other.data != extent.data).take(20) {
                match other.data {
                    ExtentData::Cluster { start: from, .. } if from != start => {}
                    _ => continue,
                }
                let range = other.start as usize..(other.start + other.len) as usize;
                let bytes = range_of(&fs, *nid, other).expect(&label);
                assert!(bytes == truth[range], "{label}: {other:?} changed");
            }
        }
    }
}

fn range_of(fs: &EroFS<SliceImage<'_>>, nid: u64, extent: &Extent) -> erofs_rs::Result<Vec<u8>> {
    let file = fs.open_inode_file(fs.get_inode(nid)?)?;
    let (mut bytes, mut at) = (vec![0; extent.len as usize], 0);
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], extent.start + at as u64)? {
            0 => return Err(erofs_rs::Error::OutOfBounds("short".into())),
            n => at += n,
        }
    }
    Ok(bytes)
}

#[test]
fn every_cluster_is_in_a_packed_region_and_nothing_is_left_unmapped() {
    let files = sample_files(2);
    for (options, image) in samples(&files) {
        let regions = regions(&image);
        assert_covers(&regions, image.len(), &format!("{options:?}"));
        let metadata = regions.all().iter().filter(|region| region.kind == RegionKind::Metadata);
        let metadata: u64 = metadata.map(|region| region.len).sum();
        assert!(metadata * 4 < image.len() as u64, "{options:?}: {metadata} of {}", image.len());
        assert!(regions.all().iter().all(|region| region.kind != RegionKind::Plain), "{options:?}");
        for (path, _, _, extents) in maps(&image) {
            let label = format!("{} with {options:?}", path.escape_ascii());
            for extent in extents {
                let ExtentData::Cluster { start, len, inline, .. } = extent.data else { continue };
                if inline && len < 256 {
                    continue;
                }
                let first = regions.all().partition_point(|region| region.end() <= start);
                let covering = regions.all()[first..].iter().take_while(|region| region.start < start + len);
                for region in covering {
                    assert_eq!(region.kind, RegionKind::Packed, "{label}");
                    let own = regions.name(region) == Some(&path[..]);
                    let shared = options.iter().any(|option| option.contains("dedupe"));
                    assert!(own || shared, "{label}: belongs to {:?}", regions.name(region));
                    assert!(!inline || (region.start, region.len) == (start, len), "{label}");
                }
            }
        }
    }
}

#[test]
fn unsupported_files_stay_in_plain_regions() {
    let dir = TempDir::new().expect("a temporary directory");
    let tree = dir.path().join("tree");
    let files = sample_files(7);
    write_tree(&tree, &files);
    let image = dir.path().join("image");
    // With data on another device, the whole image is one region.
    let device = format!("--blobdev={}", dir.path().join("blob").display());
    let multi = mkfs(&["--chunksize=65536", &device], &tree, &image);
    assert_eq!(regions(&multi), Regions::plain(multi.len() as u64));
    // With encoded extents, or inodes in the metabox, only their files have no map.
    for options in [
        &["-zlz4", "-E48bit"][..],
        &["-zlz4", "-C65536", "-E48bit,fragments"],
        &["-zzstd", "-C65536", "-E48bit,ztailpacking"],
        &["-zlz4", "-m4096"],
        &["-zlz4", "-Eforce-inode-compact,48bit", "-m4096"],
    ] {
        let Ok(image) = try_mkfs(options, &tree, &image) else {
            eprintln!("not offered here: {options:?}");
            continue;
        };
        let features = u16::from_le_bytes([image[1024 + 80], image[1024 + 81]]);
        if features & 0x180 == 0 {
            // Old versions ignore options they do not know.
            eprintln!("not offered here: {options:?}");
            continue;
        }
        let regions = regions(&image);
        assert_covers(&regions, image.len(), &format!("{options:?}"));
        let reader = Reader::open(&image[..]).expect("an image");
        let mut errors = BTreeSet::new();
        let visit = |file: PackedFile<'_, '_, [u8]>| {
            let all: Result<Vec<_>, _> = file.extents().and_then(Iterator::collect);
            errors.extend(all.err().map(|error| error.to_string()));
            ControlFlow::Continue(())
        };
        reader.packed_files(visit).expect("sound");
        let plain = regions.all().iter().any(|region| region.kind == RegionKind::Plain);
        assert!(plain && errors.iter().all(|e| e.starts_with("not supported")), "{options:?}: {errors:?}");
    }
    // With compression options and chunks, files in chunks are not compressed, and are mapped.
    let chunked = mkfs(&["-zlz4", "--chunksize=8192"], &tree, &image);
    let regions = regions(&chunked);
    assert_covers(&regions, chunked.len(), "chunks");
    assert!(regions.all().iter().all(|region| region.kind != RegionKind::Plain));
}

/// Returns the hashes of the chunks in each file's regions.
fn chunk_hashes(image: &[u8]) -> BTreeMap<Vec<u8>, BTreeSet<ChunkHash>> {
    let regions = regions(image);
    let mut by_file: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (index, region) in regions.all().iter().enumerate() {
        let Some(name) = regions.name(region) else { continue };
        let mut batches = Batches::new(image, &regions.all()[index..=index], CutParams::default());
        while let Some(batch) = batches.next_batch(Vec::new()).expect("memory is readable") {
            by_file.entry(name.to_vec()).or_default().extend(batch.chunks().map(|c| ChunkHash::of(c.data)));
        }
    }
    by_file
}

fn inline_files(maps: &[Map]) -> BTreeSet<Vec<u8>> {
    let inline = |e: &Extent| matches!(e.data, ExtentData::Cluster { inline: true, .. });
    maps.iter().filter(|map| map.3.iter().any(inline)).map(|map| map.0.clone()).collect()
}

#[test]
fn a_change_moves_no_chunk_of_another_file_and_none_before_it_in_its_own() {
    for options in KNOWN {
        let dir = TempDir::new().expect("a temporary directory");
        let tree = dir.path().join("tree");
        let mut files = sample_files(3);
        write_tree(&tree, &files);
        let before = mkfs(options, &tree, &dir.path().join("before"));
        let (before_maps, before) = (maps(&before), chunk_hashes(&before));
        // One more file, in front of most others, and another file that grows in its last third.
        let mut noise = Noise(4);
        fs::write(tree.join("a/added"), text(&mut noise, 123_457)).expect("writable");
        let changed = "a/sizes/1500000";
        let bytes = files.get_mut(changed).expect("it is there");
        let insert = noise.bytes(6000);
        bytes.splice(1_000_000..1_000_000, insert);
        fs::write(tree.join(changed), bytes).expect("writable");
        let after = mkfs(options, &tree, &dir.path().join("after"));
        let (after_maps, after) = (maps(&after), chunk_hashes(&after));
        let (before_inline, after_inline) = (inline_files(&before_maps), inline_files(&after_maps));

        // Every file large enough for clusters has regions, and almost nothing moved.
        assert!(before_maps.len() > 100, "{options:?}");
        for (path, _, _, extents) in &before_maps {
            let outside = |e: &Extent| matches!(e.data, ExtentData::Cluster { inline: false, .. });
            if extents.iter().any(outside) {
                assert!(before.contains_key(path), "{} with {options:?}", path.escape_ascii());
            }
        }
        // Whether an end is inline depends on the bytes already in its block.
        let mut repacked = 0;
        for (file, chunks) in &before {
            let label = format!("{} with {options:?}", file.escape_ascii());
            let Some(now) = after.get(file) else {
                assert!(after_inline.contains(file), "{label}: gone");
                repacked += 1;
                continue;
            };
            if file == changed.as_bytes() {
                let kept = chunks.intersection(now).count();
                assert!(
                    kept * 2 > chunks.len() && kept < chunks.len(),
                    "{label}: {kept} of {}",
                    chunks.len()
                );
            } else if before_inline.contains(file) == after_inline.contains(file) {
                assert_eq!(now, chunks, "{label}");
            } else {
                repacked += 1;
            }
        }
        assert!(repacked * 20 < before.len(), "{options:?}: {repacked} of {}", before.len());
        let new: Vec<_> = after.keys().filter(|key| !before.contains_key(*key)).collect();
        assert!(new.contains(&&b"a/added".to_vec()) && new.len() <= 1 + repacked, "{options:?}: {new:?}");
    }
}
