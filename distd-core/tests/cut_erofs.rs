//! Tests of regions of real EROFS images, whole and damaged. Needs `mkfs.erofs` (Debian:
//! erofs-utils).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, Region, RegionKind, Regions, regions};
use tempfile::TempDir;

mod erofs_images;
use erofs_images::{DIR, FILE, Files, Noise, assert_covers, directory, forged, inode, mkfs};

/// Makes files of every awkward size, in nested directories, one of which has many entries.
fn sample_files(seed: u64) -> Files {
    let mut noise = Noise(seed);
    let mut files = Files::new();
    for size in
        [0, 1, 255, 256, 257, 513, 4095, 4096, 4097, 5000, 8191, 8192, 12_300, 65_536, 70_001, 300_000]
    {
        files.insert(format!("a/sizes/{size}"), noise.bytes(size));
    }
    for index in 0..400 {
        let len = (noise.next() % 9000) as usize;
        files.insert(format!("many/file-with-a-rather-long-name-{index:04}"), noise.bytes(len));
    }
    files.insert("deep/1/2/3/4/5/6/7/8/9/end".into(), noise.bytes(20_000));
    // Two thirds of the file are a hole.
    let mut sparse = noise.bytes(65_536);
    sparse.extend(vec![0; 262_144]);
    sparse.extend(noise.bytes(40_000));
    files.insert("sparse".into(), sparse);
    files
}

fn write_tree(root: &Path, files: &Files) {
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root"))
            .expect("a temporary directory is writable");
        fs::write(path, bytes).expect("a temporary directory is writable");
    }
    fs::hard_link(root.join("a/sizes/70001"), root.join("deep/hard")).expect("links work");
    fs::hard_link(root.join("a/sizes/513"), root.join("deep/hard-small")).expect("links work");
    symlink("short", root.join("link")).expect("links work");
    symlink("x".repeat(4000), root.join("deep/long-link")).expect("links work");
    fs::create_dir(root.join("empty-directory")).expect("a temporary directory is writable");
    // Attributes move the data behind an inode: tails and chunk tables.
    for path in ["a/sizes/5000", "a/sizes/257", "sparse", "many/file-with-a-rather-long-name-0000"] {
        for (name, len) in [("user.short", 3), ("user.long", 900)] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(root.join(path), name, &vec![b'v'; len], flags)
                .expect("these tests need a TMPDIR with user attributes");
        }
    }
}

/// Every set of options that changes where mkfs puts file data.
const LAYOUTS: [&[&str]; 7] = [
    &[],
    &["-Eforce-inode-extended"],
    &["-Eforce-inode-compact"],
    &["-Enoinline_data"],
    &["--chunksize=4096"],
    &["--chunksize=65536"],
    &["-Eforce-chunk-indexes", "--chunksize=8192"],
];

struct Sample {
    _dir: TempDir,
    image: Vec<u8>,
    files: Files,
}

fn sample(options: &[&str]) -> Sample {
    let dir = TempDir::new().expect("a temporary directory");
    let files = sample_files(1);
    let tree = dir.path().join("tree");
    write_tree(&tree, &files);
    let image = mkfs(options, &tree, &dir.path().join("image"));
    Sample { _dir: dir, image, files }
}

fn bytes_of<'i>(image: &'i [u8], region: &Region) -> &'i [u8] {
    &image[region.start as usize..region.end() as usize]
}

#[test]
fn a_files_regions_hold_that_files_bytes_in_every_layout() {
    for options in LAYOUTS {
        let Sample { image, files, .. } = sample(options);
        let regions = regions(&image);
        assert_covers(&regions, image.len(), &format!("{options:?}"));
        assert!(image.windows(900).any(|window| window.iter().all(|byte| *byte == b'v')), "no attributes");
        let mut pieces: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
        for region in regions.all().iter().filter(|region| region.kind == RegionKind::File) {
            let name = regions.name(region).expect("every file has a name");
            let name = std::str::from_utf8(name).expect("our names are text");
            pieces.entry(name).or_default().push(bytes_of(&image, region));
        }
        let mapped: BTreeMap<&str, Vec<u8>> = pieces
            .into_iter()
            .map(|(name, mut pieces)| {
                // Regions are in artifact order, and an inline tail may lie before its file's
                // blocks.
                let tail = pieces.iter().position(|piece| piece.len() % 4096 != 0);
                if let Some(tail) = tail {
                    let tail = pieces.remove(tail);
                    pieces.push(tail);
                }
                (name, pieces.concat())
            })
            .collect();
        let chunked = options.iter().any(|option| option.contains("chunksize"));
        for (path, bytes) in &files {
            // A hard link may be found by either name.
            let other = match path.as_str() {
                "a/sizes/70001" => "deep/hard",
                "a/sizes/513" => "deep/hard-small",
                same => same,
            };
            let got = mapped.get(path.as_str()).or_else(|| mapped.get(other));
            let label = format!("{path} with {options:?}");
            if path == "sparse" && chunked {
                // The hole has no blocks. The two ends of the file remain.
                let got = got.expect(&label);
                assert!(got.starts_with(&bytes[..65_536]) && got.len() < bytes.len(), "{label}");
                let end = &got[got.len().next_multiple_of(4096) - 40_960..];
                assert!(end[..40_000] == bytes[327_680..], "{label}: other bytes");
                continue;
            }
            // Shorter data stays between the inodes: an empty file, or a short tail behind whole
            // blocks.
            let Some(got) = got else {
                assert!(bytes.len() < 256, "{label}: no region");
                continue;
            };
            let common = got.len().min(bytes.len());
            assert!(got[..common] == bytes[..common], "{label}: other bytes");
            assert!(bytes.len() - common < 256, "{label}: {} of {} bytes", common, bytes.len());
            assert!(
                got[common..].iter().all(|byte| *byte == 0) && got.len() - common < 4096,
                "{label}: padding"
            );
        }
        // Only files are mapped. Directories and symlinks are metadata.
        for name in mapped.keys() {
            assert!(files.contains_key(*name) || name.starts_with("deep/hard"), "{name} with {options:?}");
        }
    }
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

#[test]
fn a_file_added_to_the_tree_changes_no_other_files_chunks() {
    for options in [&[][..], &["-Enoinline_data"], &["-Eforce-inode-extended"]] {
        let dir = TempDir::new().expect("a temporary directory");
        let tree = dir.path().join("tree");
        let files = sample_files(2);
        write_tree(&tree, &files);
        let before = chunk_hashes(&mkfs(options, &tree, &dir.path().join("before")));
        fs::write(tree.join("a/added"), Noise(3).bytes(123_457)).expect("writable");
        let after = chunk_hashes(&mkfs(options, &tree, &dir.path().join("after")));
        assert!(before.len() > 100);
        // Newer versions of mkfs decide whether a tail is inline by the bytes already in its block.
        let moved = before.iter().filter(|(file, chunks)| after.get(*file) != Some(chunks)).count();
        assert!(moved * 100 < before.len(), "{moved} of {} files with {options:?}", before.len());
        let new: Vec<_> = after.keys().filter(|key| !before.contains_key(*key)).collect();
        assert_eq!(new, [b"a/added"]);
    }
}

#[test]
fn bytes_behind_the_file_system_are_a_plain_region() {
    let mut image = sample(&[]).image;
    let used = image.len();
    image.extend(vec![7; 10_001]);
    let regions = regions(&image);
    assert_covers(&regions, image.len(), "image with a tail");
    let last = regions.all().last().expect("not empty");
    assert_eq!((last.start, last.kind), (used as u64, RegionKind::Plain));
    assert!(regions.all().len() > 100);
}

#[test]
fn every_flipped_byte_of_the_superblock_still_gives_a_cover() {
    let image = sample(&[]).image;
    for at in 1024..1024 + 144 {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = image.clone();
            damaged[at] ^= flip;
            assert_covers(&regions(&damaged), damaged.len(), &format!("byte {at} xor {flip:#x}"));
        }
    }
}

#[test]
fn every_truncation_still_gives_a_cover() {
    let image = sample(&["--chunksize=4096"]).image;
    for len in (0..image.len()).step_by(4099).chain([1, 1023, 1024, 1027, 1028, 1151, 1152, image.len() - 1])
    {
        assert_covers(&regions(&image[..len]), len, &format!("{len} of {} bytes", image.len()));
    }
}

#[test]
fn random_damage_in_the_metadata_still_gives_a_cover() {
    for options in [&[][..], &["-Eforce-inode-extended"], &["--chunksize=4096"], &["-zlz4"]] {
        let Sample { image, .. } = sample(options);
        // Only metadata is read, so only damage there has an effect.
        let places: Vec<usize> = regions(&image)
            .all()
            .iter()
            .filter(|region| region.kind != RegionKind::File)
            .flat_map(|region| region.start as usize..region.end() as usize)
            .collect();
        for seed in 0..300 {
            let mut noise = Noise(seed);
            let mut damaged = image.clone();
            for _ in 0..1 + noise.next() % 8 {
                let place = places[noise.next() as usize % places.len()];
                damaged[place] = match noise.next() % 3 {
                    0 => 0xff,
                    1 => 0,
                    _ => noise.next() as u8,
                };
            }
            assert_covers(&regions(&damaged), damaged.len(), &format!("{options:?}, seed {seed}"));
        }
    }
}

#[test]
fn a_hand_made_image_is_read_as_intended() {
    let root = directory(&[("f", 129, 1), ("g", 130, 1), ("h", 131, 1)]);
    let inodes = [
        inode(DIR, 0, root.len() as u32, 16),
        inode(FILE, 0, 8000, 17),
        // This file shares a block with the first and has one of its own.
        inode(FILE, 0, 8192, 18),
        // This file is a hole.
        inode(FILE, 0, 8192, u32::MAX),
    ];
    let image = forged(&inodes, &[root, vec![1; 4096], vec![2; 4096], vec![3; 4096]]);
    let regions = regions(&image);
    assert_covers(&regions, image.len(), "forged");
    let files: Vec<_> = regions.all().iter().filter(|r| r.kind == RegionKind::File).collect();
    assert_eq!(
        files.iter().map(|r| (r.start / 4096, r.len / 4096, regions.name(r))).collect::<Vec<_>>(),
        [(17, 2, Some(&b"f"[..])), (19, 1, Some(b"g"))]
    );
}

#[test]
fn hostile_images_are_one_plain_region() {
    let one = |inodes: &[[u8; 32]], blocks: &[Vec<u8>], what: &str| {
        let image = forged(inodes, blocks);
        assert_eq!(regions(&image), Regions::plain(image.len() as u64), "{what}");
    };
    let cycle = directory(&[("again", 128, 2)]);
    one(&[inode(DIR, 0, cycle.len() as u32, 16)], &[cycle], "a directory inside itself");

    let twice = directory(&[("a", 129, 2), ("b", 129, 2)]);
    let inner = directory(&[("f", 130, 1)]);
    one(
        &[inode(DIR, 0, twice.len() as u32, 16), inode(DIR, 0, inner.len() as u32, 17), inode(FILE, 0, 0, 0)],
        &[twice, inner],
        "a directory with two parents",
    );

    one(&[inode(DIR, 0, u32::MAX, 16)], &[vec![0; 4096]], "a directory of 4 GiB");
    let root = directory(&[("f", 129, 1)]);
    let dir = inode(DIR, 0, root.len() as u32, 16);
    one(&[dir, inode(FILE, 0, u32::MAX, 16)], std::slice::from_ref(&root), "a file behind the end");
    one(&[dir, inode(FILE, 0, 4096, u32::MAX - 1)], std::slice::from_ref(&root), "a block behind the end");
    one(&[dir, inode(FILE, 4, u32::MAX, 0)], std::slice::from_ref(&root), "a chunk table behind the end");
    one(&[dir, inode(FILE, 7, 1, 0)], std::slice::from_ref(&root), "an unknown layout");
    one(&[dir, inode(0o30_644, 0, 1, 0)], std::slice::from_ref(&root), "an unknown file type");
}

#[test]
fn a_directory_that_unfolds_without_end_stops_early() {
    // A chunk-based root. The table behind its inode names one block of entries 14 000 times, and
    // with longer images the work would grow with the square of the length. All entries are "." and
    // give nothing.
    let dots = directory(&[(".", 128, 2)]);
    let mut block = dots.clone();
    block.resize(4096, 0);
    let chunks = 8000u32;
    let mut image = forged(&[inode(DIR, 4, chunks * 4096, 0)], &[block]);
    for index in 0..chunks as usize {
        let at = 4096 + 32 + 4 * index;
        image[at..at + 4].copy_from_slice(&16u32.to_le_bytes());
    }
    assert_covers(&regions(&image), image.len(), "dots");

    // Many directories share the block of their entries, and each entry list names all of them.
    let names: Vec<String> = (0..200).map(|n| format!("{n:03}")).collect();
    let entries: Vec<_> = names.iter().zip(129..).map(|(name, nid)| (name.as_str(), nid, 2)).collect();
    let shared = directory(&entries);
    let inodes = vec![inode(DIR, 0, shared.len() as u32, 16); 201];
    let image = forged(&inodes, &[shared]);
    assert_eq!(regions(&image), Regions::plain(image.len() as u64));
}
