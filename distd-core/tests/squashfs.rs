//! Tests of SquashFS images made by `mksquashfs` (Debian: squashfs-tools): their regions, and the
//! views of their blocks, whole and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use distd_core::cut::{Joined, ReadAt, RegionKind, regions};
use distd_core::patch::view::{Found, Group, Layer, cost, find, packs_again, repack, unpack_base};
use proptest::prelude::*;
use tempfile::TempDir;

mod disk_images;
mod erofs_images;
use disk_images::{has, named, run};
use erofs_images::{Files, Noise, assert_covers};

/// Longest view, bytes.
const VIEW_MAX: u64 = 64 << 20;

/// Options of the packers, with the settings that images have most.
const PACKERS: [&[&str]; 11] = [
    &["-comp", "gzip"],
    &["-comp", "gzip", "-Xcompression-level", "6", "-b", "65536"],
    &["-comp", "gzip", "-Xwindow-size", "10", "-b", "1048576"],
    &["-comp", "xz"],
    &["-comp", "xz", "-b", "1048576"],
    &["-comp", "xz", "-Xdict-size", "50%", "-Xbcj", "x86,arm"],
    &["-comp", "lz4"],
    &["-comp", "lz4", "-Xhc", "-b", "4096"],
    &["-comp", "gzip", "-no-fragments"],
    &["-comp", "xz", "-always-use-fragments", "-no-exports", "-no-xattrs"],
    &["-comp", "gzip", "-noI", "-noX", "-noId"],
];

/// Text of which packing makes about a third.
fn text(noise: &mut Noise, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < len {
        out.extend_from_slice(format!("{:x} ", noise.next() % 4096).repeat(1 + out.len() % 3).as_bytes());
    }
    out.truncate(len);
    out
}

fn files() -> Files {
    let mut noise = Noise(11);
    let mut files = Files::new();
    for size in [0, 1, 60, 255, 256, 1024, 4097, 70_000, 131_072, 300_001, 2_500_000] {
        files.insert(format!("a/sizes/{size}"), text(&mut noise, size));
    }
    for index in 0..400 {
        let len = 300 + 7 * index;
        files.insert(format!("many/file-with-a-rather-long-name-{index:04}"), text(&mut noise, len));
    }
    files.insert("noise".into(), noise.bytes(200_000));
    let mut sparse = text(&mut noise, 131_072);
    sparse.extend(vec![0; 2 << 20]);
    sparse.extend(text(&mut noise, 140_000));
    files.insert("sparse".into(), sparse);
    files.insert("twice".into(), files["a/sizes/300001"].clone());
    files
}

fn image(dir: &Path, files: &Files, options: &[&str]) -> Vec<u8> {
    let (tree, image) = (dir.join("tree"), dir.join("image"));
    for (path, bytes) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
    let _ = fs::hard_link(tree.join("a/sizes/70000"), tree.join("many/hard"));
    let (tree, path) = (tree.to_str().expect("text"), image.to_str().expect("text"));
    let always = ["-noappend", "-quiet", "-no-progress", "-all-time", "0", "-mkfs-time", "0"];
    run("mksquashfs", &[&[tree, path], options, &always].concat());
    fs::read(image).expect("mksquashfs left an image")
}

/// Returns the names that the bytes of a file may have: equal files have one place, and so have
/// hard links.
fn names_of(path: &str) -> Vec<&str> {
    match path {
        "twice" | "a/sizes/300001" => vec!["twice", "a/sizes/300001"],
        "a/sizes/70000" => vec![path, "many/hard"],
        _ => vec![path],
    }
}

fn found(image: &[u8]) -> Found {
    find(Layer::Image, image, &regions(image), |_, _| true).expect("memory reads")
}

/// Packed bytes of the files with a view.
fn packed(image: &[u8], parts: &[std::ops::Range<u64>]) -> Vec<u8> {
    let joined = Joined { artifact: image, parts };
    let mut bytes = vec![0; joined.len() as usize];
    joined.read_exact_at(&mut bytes, 0).expect("memory reads");
    bytes
}

/// Makes the views of all files, checks that they pack again and that devices make the same views
/// of old ones, and returns the content in the views by name.
fn content(image: &[u8], what: &str) -> BTreeMap<String, Vec<u8>> {
    let found = found(image);
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for group in &found.groups {
        let mut view = Cursor::new(Vec::new());
        let made = group.unpack(image, VIEW_MAX, &mut view).expect("memory reads and writes");
        for (file, result) in group.files.iter().zip(&made.files) {
            assert!(result.is_ok(), "{what}, {}: {result:?}", String::from_utf8_lossy(&file.name));
        }
        let view = view.into_inner();
        let wanted = packed(image, &made.parts(&group.files));
        assert!(packs_again(&made.recipe, &mut &view[..], &wanted), "{what}");
        assert!(cost(&made.recipe).is_ok(), "{what}");
        assert!(made.recipe.len() * 20 < wanted.len(), "{what}: {} bytes of recipe", made.recipe.len());
        for (name, range) in made.named(&group.files, 0) {
            let bytes = &view[range.start as usize..range.end as usize];
            all.entry(String::from_utf8(name).expect("text")).or_default().extend_from_slice(bytes);
        }
        let mut old = Cursor::new(Vec::new());
        let made_old = group.unpack_old(image, VIEW_MAX, &mut old).expect("memory reads and writes");
        assert!(old.into_inner() == view, "{what}: the view of old files is another one");
        let mut on_device = Vec::new();
        let old_packed = packed(image, &made_old.parts(&group.files));
        let bytes = unpack_base(&made_old.recipe, &old_packed, VIEW_MAX, &mut on_device);
        assert_eq!(bytes.expect("own recipe"), view.len() as u64, "{what}");
        assert!(on_device == view, "{what}");
    }
    all
}

#[test]
fn all_blocks_of_an_image_have_views_with_the_content_of_the_files() {
    if !has("mksquashfs") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let files = files();
    for options in PACKERS {
        let what = format!("{options:?}");
        let image = image(dir.path(), &files, options);
        let found = regions(&image[..]);
        assert_covers(&found, image.len(), &what);
        let mut content = content(&image, &what);
        // Blocks that are not packed are in the image as they are. A file's end lies behind them.
        for region in found.all().iter().filter(|region| region.kind == RegionKind::File) {
            let name = found.name(region).expect("files have names");
            let bytes = &image[region.start as usize..region.end() as usize];
            let all = content.entry(String::from_utf8_lossy(name).into_owned()).or_default();
            *all = [bytes, all].concat();
        }
        for (path, bytes) in files.iter().filter(|(path, bytes)| bytes.len() >= 256 && *path != "sparse") {
            let got = names_of(path).iter().find_map(|other| content.get(*other));
            assert!(got == Some(bytes), "{path} with {what}: {:?}", got.map(Vec::len));
        }
        // Blocks of zeros have no place.
        let sparse = content.get("sparse").expect("the sparse file");
        let wanted = &files["sparse"];
        assert!(sparse.starts_with(&wanted[..131_072]) && sparse.len() < wanted.len(), "{what}");
        let is_packed = !options.contains(&"-noI");
        assert_eq!(content.contains_key("/inodes"), is_packed, "{what}");
        if is_packed {
            let names = &content["/directories"];
            assert!(names.windows(14).any(|name| name == b"file-with-a-ra"), "{what}");
        }
    }
}

#[test]
fn files_that_are_not_packed_have_regions_with_their_bytes() {
    if !has("mksquashfs") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let files = files();
    let image = image(dir.path(), &files, &["-comp", "gzip", "-noD", "-noF", "-always-use-fragments"]);
    let found = regions(&image[..]);
    assert_covers(&found, image.len(), "stored");
    let mapped = named(&image, &found);
    for (path, bytes) in files.iter().filter(|(path, bytes)| bytes.len() >= 256 && *path != "sparse") {
        // A file's end lies in another place than its blocks, and the image packs shorter ends.
        let got = names_of(path).iter().find_map(|other| mapped.get(*other)).map(Vec::len);
        assert_eq!(got, Some(bytes.len()), "{path}");
    }
    assert!(found.all().iter().all(|region| match found.name(region) {
        Some(name) if !name.starts_with(b"/") => region.kind == RegionKind::File,
        _ => true,
    }));
}

/// Makes a disk with an image in its one partition.
fn disk_of(dir: &Path, image: &[u8]) -> Vec<u8> {
    let (disk, table) = (dir.join("disk"), dir.join("table"));
    let mut bytes = vec![0; 1 << 20];
    bytes.extend_from_slice(image);
    bytes.resize((bytes.len() + (1 << 20)).next_multiple_of(1 << 20), 0);
    fs::write(&disk, &bytes).expect("writable");
    let sectors = image.len().div_ceil(512);
    let text = format!("label: gpt\nstart=2048, size={sectors}, name=\"system-a\"\n");
    fs::write(&table, text).expect("writable");
    run("sh", &["-c", &format!("sfdisk -q {} < {}", disk.display(), table.display())]);
    fs::read(disk).expect("a disk")
}

#[test]
fn an_image_in_a_partition_has_the_same_views() {
    if !has("mksquashfs") || !has("sfdisk") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let image = image(dir.path(), &files(), PACKERS[0]);
    let disk = disk_of(dir.path(), &image);
    let alone = content(&image, "alone");
    let inside = content(&disk, "in a partition");
    let moved: BTreeMap<String, Vec<u8>> =
        alone.into_iter().map(|(name, bytes)| (format!("system///{name}"), bytes)).collect();
    assert!(moved == inside, "{:?}", inside.keys().next());
}

#[test]
fn a_file_that_lies_behind_all_numbers_has_no_view() {
    if !has("mksquashfs") || !has("sfdisk") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    // The inode of a file with two names has an offset of eight bytes, and its length behind it.
    let mut image = image(dir.path(), &files(), &["-comp", "gzip", "-noI", "-no-fragments"]);
    let len = 70_000u64.to_le_bytes();
    let places: Vec<usize> = (8..image.len() - 8).filter(|at| image[*at..at + 8] == len).collect();
    assert!(!places.is_empty());
    for at in places {
        image[at - 8..at].copy_from_slice(&(u64::MAX - 100_000).to_le_bytes());
    }
    for artifact in [disk_of(dir.path(), &image), image] {
        assert_covers(&regions(&artifact[..]), artifact.len(), "behind all numbers");
        assert!(found(&artifact).groups.is_empty());
    }
}

/// Small image and its groups.
fn small() -> Option<(Vec<u8>, Vec<Group>)> {
    if !has("mksquashfs") {
        return None;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let mut noise = Noise(3);
    let mut files = Files::new();
    for index in 0..40 {
        files.insert(format!("dir-{}/file-{index}", index % 3), text(&mut noise, 900 + 40 * index));
    }
    files.insert("big".into(), text(&mut noise, 30_000));
    let image = image(dir.path(), &files, &["-comp", "gzip", "-b", "4096"]);
    let groups = found(&image).groups;
    Some((image, groups))
}

#[test]
fn damaged_images_are_covered_and_their_views_still_come_back() {
    let Some((image, _)) = small() else { return };
    let mut noise = Noise(5);
    for round in 0..600 {
        let mut damaged = image.clone();
        // Half of the damage is in the superblock and in the tables.
        let from = if round % 2 == 0 { image.len() - 3000 } else { 0 };
        for _ in 0..=noise.next() % 3 {
            let at = match noise.next() % 3 {
                0 => noise.next() as usize % 96,
                _ => from + noise.next() as usize % (image.len() - from),
            };
            damaged[at] = noise.next() as u8;
        }
        if noise.next().is_multiple_of(4) {
            damaged.truncate(noise.next() as usize % image.len());
        }
        assert_covers(&regions(&damaged[..]), damaged.len(), &format!("round {round}"));
        for group in found(&damaged).groups {
            let mut view = Cursor::new(Vec::new());
            let made = group.unpack(&damaged[..], VIEW_MAX, &mut view).expect("memory reads and writes");
            if !made.recipe.is_empty() {
                let mut view = view.into_inner();
                view.truncate(made.view_bytes as usize);
                let wanted = packed(&damaged, &made.parts(&group.files));
                assert!(packs_again(&made.recipe, &mut &view[..], &wanted), "round {round}");
            }
            group.unpack_old(&damaged[..], VIEW_MAX, &mut Cursor::new(Vec::new())).expect("memory reads");
        }
    }
}

#[test]
fn a_table_that_leads_round_in_circles_ends() {
    let Some((image, _)) = small() else { return };
    // The root directory once more, as a directory in itself: its inode's place stands at byte 32.
    let root: [u8; 8] = image[32..40].try_into().expect("eight bytes");
    let mut noise = Noise(8);
    for _ in 0..200 {
        let mut damaged = image.clone();
        let at = 64 + 8 * (noise.next() as usize % 4);
        damaged[at..at + 8].copy_from_slice(&root);
        damaged[32..40].copy_from_slice(&(noise.next() % 4000).to_le_bytes());
        assert_covers(&regions(&damaged[..]), damaged.len(), "circles");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_recipes_are_refused_or_bounded(
        head in prop::sample::select(vec![[6u8, 1, 12], [6, 4, 20], [6, 5, 17], [6, 6, 12], [6, 2, 12], [6, 1, 60]]),
        steps in prop::collection::vec(any::<u8>(), 0..60),
        view in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let recipe = [&head[..], &steps].concat();
        let mut out = Vec::new();
        let _ = repack(&recipe, &mut &view[..], &mut out);
        prop_assert!(out.len() <= 2 * view.len() + steps.len() + 4096, "{} bytes", out.len());
        let mut out = Vec::new();
        let _ = unpack_base(&recipe, &view, 1 << 20, &mut out);
        prop_assert!(out.len() <= 1 << 20);
    }
}
