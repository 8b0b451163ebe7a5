//! Tests of files in EROFS images that LZ4 and other algorithms packed: they come back bit for bit
//! from their views, and no recipe does harm. Needs `mkfs.erofs`.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use distd_core::bounds::VIEW_BYTES_MAX;
use distd_core::cut::erofs::PACKED_INODE_NAME;
use distd_core::cut::{ReadAt, regions};
use distd_core::patch::view::{
    Found, Group, Joined, Layer, NoView, RecipeError, Unpacked, find, repack, unpack_base,
};
use distd_core::patch::{Effort, PatchMethod, encode};
use proptest::prelude::*;
use tempfile::TempDir;

mod erofs_images;
use erofs_images::{Files, Noise, newer_mkfs, try_mkfs, try_mkfs_of};

/// Options every version knows, and whether each packed file then has a view.
const KNOWN: [(&[&str], bool); 11] = [
    (&["-zlz4"], true),
    (&["-zlz4hc"], true),
    (&["-zlz4hc,12"], true),
    (&["-zlz4hc,3"], true),
    (&["-zlz4", "-C65536"], true),
    (&["-zlz4hc,9", "-C65536"], true),
    (&["-zlz4hc", "-C65536", "-Eztailpacking"], true),
    (&["-zlz4", "-Eztailpacking"], true),
    (&["-zlz4hc", "--max-extent-bytes=16384"], true),
    (&["-zlz4", "-Elegacy-compress"], false),
    (&["-zlz4hc", "-Elegacy-compress"], false),
];

/// Options that newer versions know.
const OFFERED: [&[&str]; 4] = [
    &["-zlz4hc", "-C65536", "-Efragments"],
    &["-zlz4hc", "-Eall-fragments"],
    &["-zlz4hc", "-Ededupe"],
    &["-zlz4hc", "-b1024", "-C8192"],
];

/// Options for algorithms of version 1.8 and later, and the part of the packed bytes that the
/// recipe may take: one in this many.
const ALGORITHMS: [(&[&str], usize); 11] = [
    (&["-zzstd"], 40),
    (&["-zzstd", "-C65536"], 40),
    (&["-zzstd,3", "-C65536", "-Eztailpacking"], 40),
    (&["-zzstd,9", "-C65536", "-Efragments"], 40),
    (&["-zzstd,22", "-C1048576"], 40),
    (&["-zlibdeflate"], 40),
    (&["-zlibdeflate,9", "-C65536", "-Eztailpacking"], 40),
    // `deflate` has a packer of its own, so the recipe has corrections of each stream.
    (&["-zdeflate", "-C65536"], 5),
    (&["-zdeflate,9", "-C65536", "-Eztailpacking"], 5),
    (&["-zzstd,6:lz4hc,9", "-C65536"], 40),
    (&["-zlz4hc:libdeflate", "-C65536", "-Eztailpacking"], 40),
];

/// Text that compresses about threefold, with stretches that do not.
fn text(noise: &mut Noise, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8192);
    while out.len() < len {
        if noise.next().is_multiple_of(3000) {
            let run = (noise.next() % 20_000) as usize;
            out.extend(noise.bytes(run));
        }
        let word = noise.next() % 300;
        out.extend_from_slice(format!("{} ", word * word * word * 7919).as_bytes());
    }
    out.truncate(len);
    out
}

fn sample_files(seed: u64) -> Files {
    let mut noise = Noise(seed);
    let mut files = Files::new();
    for size in [1, 255, 4095, 4096, 4097, 8192, 12_300, 65_536, 70_001, 300_000, 1_500_000] {
        files.insert(format!("sizes/{size}"), text(&mut noise, size));
    }
    for index in 0..60 {
        let len = (noise.next() % 30_000) as usize;
        files.insert(format!("many/file-{index:04}"), text(&mut noise, len));
    }
    files.insert("noise".into(), noise.bytes(50_000));
    files.insert("zeros".into(), vec![0; 9_000_000]);
    let zeros = [text(&mut noise, 100_000), vec![0; 3_000_000], text(&mut noise, 100_000)].concat();
    files.insert("zeros-within".into(), zeros);
    files
}

fn image(files: &Files, options: &[&str]) -> Result<Vec<u8>, String> {
    let dir = TempDir::new().expect("a temporary directory");
    let tree = dir.path().join("tree");
    write_tree(&tree, files);
    try_mkfs(options, &tree, &dir.path().join("image"))
}

fn write_tree(root: &Path, files: &Files) {
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
}

/// Packed files of an image in one group, and the files without a view.
struct AllFiles {
    group: Option<Group>,
    without: Vec<(Vec<u8>, NoView)>,
}

impl AllFiles {
    fn len(&self) -> usize {
        self.group.as_ref().map_or(0, |group| group.files.len())
    }

    fn group(&self) -> &Group {
        self.group.as_ref().expect("packed files")
    }
}

fn all_files(image: &[u8]) -> AllFiles {
    let found = find(Layer::Image, image, &regions(image), |_, _| true).expect("memory reads");
    let Found { groups, without } = found;
    // The newest form of recipes describes the clusters of all groups.
    let format = groups.iter().map(|group| group.format).max_by_key(|format| format.version());
    let files = groups.into_iter().flat_map(|group| group.files).collect();
    AllFiles { group: format.map(|format| Group { format, files }), without }
}

/// Makes the view of a group. Returns the view, the result, and the bytes of the parts.
fn views(image: &[u8], group: &Group, old: bool) -> (Vec<u8>, Unpacked, Vec<u8>) {
    let mut sink = Cursor::new(Vec::new());
    let made = if old {
        group.unpack_old(image, VIEW_BYTES_MAX, &mut sink)
    } else {
        group.unpack(image, VIEW_BYTES_MAX, &mut sink)
    }
    .expect("memory reads");
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    assert_eq!(view.len() as u64, made.view_bytes);
    let parts = made.parts(&group.files);
    let joined = Joined { artifact: image, parts: &parts };
    let mut packed = vec![0; joined.len() as usize];
    joined.read_exact_at(&mut packed, 0).expect("memory reads");
    (view, made, packed)
}

fn packed_again(recipe: &[u8], view: &[u8]) -> Result<Vec<u8>, RecipeError> {
    let mut out = Vec::new();
    let written = repack(recipe, &mut &view[..], &mut out)?;
    assert_eq!(written, out.len() as u64);
    Ok(out)
}

/// Checks all views of an image. Returns the number of files with a view, the bytes of the recipe,
/// and the packed bytes.
fn check(files: &Files, image: &[u8], what: &str) -> (usize, usize, usize) {
    let found = all_files(image);
    let Some(group) = &found.group else { return (0, 0, 0) };
    let (view, made, packed) = views(image, group, false);
    let mut with = 0;
    for (file, result) in group.files.iter().zip(&made.files) {
        let Ok(range) = result else { continue };
        with += 1;
        let name = String::from_utf8_lossy(&file.name).into_owned();
        let range = range.start as usize..range.end as usize;
        if file.name != PACKED_INODE_NAME {
            // A fragment at the end of a file is not in its view.
            assert!(files[&name].starts_with(&view[range.clone()]), "{what}: {name}");
        }
    }
    if with > 0 {
        assert!(packed_again(&made.recipe, &view).expect("sound") == packed, "{what}");
    }
    let (old_view, old, old_packed) = views(image, group, true);
    assert!(old.files.iter().all(Result::is_ok), "{what}: {:?}", old.files);
    let mut unpacked = Vec::new();
    unpack_base(&old.recipe, &old_packed, VIEW_BYTES_MAX, &mut unpacked).expect("sound");
    assert!(unpacked == old_view, "{what}");
    assert!(old_view.len() <= view.len() || with < found.len(), "{what}");
    (with, made.recipe.len(), packed.len())
}

#[test]
fn every_file_of_every_image_comes_back_bit_for_bit() {
    let files = sample_files(1);
    for (options, all) in KNOWN {
        let image = image(&files, options).unwrap_or_else(|message| panic!("{options:?}: {message}"));
        let found = all_files(&image);
        let (with, recipe, packed) = check(&files, &image, &format!("{options:?}"));
        println!("{options:?}: {with} of {} files, recipe {recipe} of {packed}", found.len());
        assert!(found.without.iter().all(|(_, why)| matches!(why, NoView::Plain | NoView::NoClusters)));
        assert!(found.len() > 40, "{options:?}: {}", found.len());
        if all {
            assert_eq!(with, found.len(), "{options:?}");
            assert!(recipe * 40 < packed, "{options:?}: {recipe} of {packed}");
        }
    }
    for options in OFFERED {
        match image(&files, options) {
            Ok(image) => println!("{options:?}: {:?}", check(&files, &image, &format!("{options:?}"))),
            Err(_) => eprintln!("not offered here: {options:?}"),
        }
    }
}

#[test]
fn files_of_every_algorithm_come_back_bit_for_bit() {
    let Some(mkfs) = newer_mkfs() else { return };
    let files = sample_files(2);
    let dir = TempDir::new().expect("a temporary directory");
    let tree = dir.path().join("tree");
    write_tree(&tree, &files);
    for (options, part) in ALGORITHMS {
        let image = try_mkfs_of(&mkfs, options, &tree, &dir.path().join("image"));
        let image = image.unwrap_or_else(|message| panic!("{options:?}: {message}"));
        let found = all_files(&image);
        let (with, recipe, packed) = check(&files, &image, &format!("{options:?}"));
        println!("{options:?}: {with} of {} files, recipe {recipe} of {packed}", found.len());
        assert!(found.without.iter().all(|(_, why)| matches!(why, NoView::Plain | NoView::NoClusters)));
        assert!(with > 4, "{options:?}: {with}");
        // Versions of libdeflate differ now and then, and corrections take too large a part of
        // small files.
        let most = if part < 40 { 80 } else { 95 };
        assert!(with * 100 >= found.len() * most, "{options:?}: {with}");
        assert!(recipe * part < packed, "{options:?}: {recipe} of {packed}");
    }
    // Files of an algorithm without a coder here stay packed.
    let image = try_mkfs_of(&mkfs, &["-zlzma"], &tree, &dir.path().join("image")).expect("known to it");
    let found = all_files(&image);
    assert!(found.group.is_none());
    assert!(found.without.iter().any(|(_, why)| *why == NoView::Algorithm));
}

#[test]
fn small_insertions_cost_little_only_with_views() {
    let mut noise = Noise(7);
    let before = text(&mut noise, 500_000);
    // Nearly every match of a packer reaches back over an insertion and gets another distance.
    let after: Vec<u8> = before.chunks(2000).flat_map(|piece| [b"new ".as_slice(), piece].concat()).collect();
    let newer = newer_mkfs();
    let of_newer =
        ["-zzstd", "-zzstd,15", "-zlibdeflate", "-zdeflate,9"].map(|option| (newer.as_deref(), option));
    for (program, option) in [(Some("mkfs.erofs".as_ref()), "-zlz4hc")].into_iter().chain(of_newer) {
        let Some(program) = program else { continue };
        let sides = [&before, &after].map(|bytes| {
            let files = Files::from([("usr/bin/tool".to_owned(), bytes.clone())]);
            let dir = TempDir::new().expect("a temporary directory");
            let tree = dir.path().join("tree");
            write_tree(&tree, &files);
            let image = try_mkfs_of(program, &[option, "-C65536"], &tree, &dir.path().join("image"));
            let image = image.unwrap_or_else(|message| panic!("{option}: {message}"));
            let found = all_files(&image);
            assert_eq!(found.len(), 1, "{option}: {:?}", found.without);
            let new = views(&image, found.group(), false);
            let old = views(&image, found.group(), true);
            (new, old)
        });
        let [(_, (old_view, old, old_packed)), ((new_view, new, new_packed), _)] = sides;
        let cost = |base: &[u8], target: &[u8]| {
            let effort = Effort { level: 9 };
            [PatchMethod::Zstd, PatchMethod::Suffix]
                .into_iter()
                .filter_map(|codec| encode(codec, base, target, effort))
                .map(|payload| payload.len())
                .min()
                .expect("small enough")
        };
        let with = cost(&old_view, &new_view) + old.recipe.len() + new.recipe.len();
        let without = cost(&old_packed, &new_packed);
        println!("{option}: {with} bytes with views, {without} without");
        // The recipe has the corrections for a packer that is not known here.
        let (most, part) = if option.starts_with("-zdeflate") { (15_000, 4) } else { (2500, 20) };
        assert!(with < most, "{option}: {with} bytes");
        assert!(without > part * with, "{option}: {without} bytes without, {with} with views");
    }
}

#[test]
fn groups_hold_all_files_in_order() {
    let files = sample_files(3);
    let image = image(&files, &["-zlz4hc"]).expect("mkfs.erofs");
    let found = find(Layer::Image, &image, &regions(&image), |_, _| true).expect("memory reads");
    let starts: Vec<_> =
        found.groups.iter().flat_map(|group| &group.files).map(|file| file.parts[0].start).collect();
    assert!(starts.is_sorted() && starts.len() > 40);
}

/// Makes one small image, its new and old views, and the bytes of their parts.
fn small() -> (Vec<u8>, Unpacked, Vec<u8>, Vec<u8>, Unpacked, Vec<u8>) {
    let mut noise = Noise(5);
    let files: Files =
        [("a", 30_000), ("b", 9000)].map(|(name, len)| (name.into(), text(&mut noise, len))).into();
    let image = image(&files, &["-zlz4hc", "-C16384", "-Eztailpacking"]).expect("mkfs.erofs");
    let found = all_files(&image);
    assert_eq!(found.len(), 2);
    let (view, made, packed) = views(&image, found.group(), false);
    let (old_view, old, _) = views(&image, found.group(), true);
    (view, made, packed, old_view, old, image)
}

#[test]
fn damaged_recipes_are_errors_or_other_bytes_and_never_panics() {
    let (view, made, packed, old_view, old, _) = small();
    for len in 0..made.recipe.len() {
        let cut = packed_again(&made.recipe[..len], &view);
        assert!(cut.is_err() || cut.is_ok_and(|out| out.len() < packed.len()), "cut to {len}");
    }
    for at in 0..made.recipe.len() {
        for bit in 0..8 {
            let mut flipped = made.recipe.clone();
            flipped[at] ^= 1 << bit;
            let _ = packed_again(&flipped, &view);
        }
    }
    for at in 0..old.recipe.len() {
        let _ = unpack_base(&old.recipe[..at], &packed, VIEW_BYTES_MAX, &mut Vec::new());
        for bit in 0..8 {
            let mut flipped = old.recipe.clone();
            flipped[at] ^= 1 << bit;
            let _ = unpack_base(&flipped, &packed, VIEW_BYTES_MAX, &mut Vec::new());
        }
    }
    // The view is shorter than the recipe expects.
    assert!(matches!(packed_again(&made.recipe, &view[..100]), Err(RecipeError::Io(_))));
    // Damage in the old clusters ends the old view, or changes it.
    for at in (0..packed.len()).step_by(97) {
        let mut rotten = packed.clone();
        rotten[at] ^= 0x55;
        let mut out = Vec::new();
        let len = unpack_base(&old.recipe, &rotten, VIEW_BYTES_MAX, &mut out).expect("the recipe is sound");
        assert!(len == out.len() as u64 && out.len() <= old_view.len() + (1 << 20));
    }
    for len in [0, 1, 5000, packed.len() - 1] {
        let mut out = Vec::new();
        unpack_base(&old.recipe, &packed[..len], VIEW_BYTES_MAX, &mut out).expect("the recipe is sound");
        assert!(old_view.starts_with(&out) && out.len() < old_view.len());
    }
}

#[test]
fn numbers_that_lie_are_refused_before_they_cost_anything() {
    let huge = [0xFF; 8];
    let eight = |number: u64| (number | 0xC0 << 56).to_be_bytes();
    let file = |plain: u64, window: u64| [&[2, 0, 0x31][..], &eight(plain), &eight(window)].concat();
    let view = vec![0; 4 << 20];
    let damaged = |recipe: &[u8]| {
        assert!(matches!(packed_again(recipe, &view), Err(RecipeError::Damaged(_))), "{recipe:?}")
    };
    damaged(&[]);
    damaged(&[0]);
    damaged(&[99]);
    damaged(&vec![2; (1 << 20) + 1]);
    // An impossible file, window and block.
    damaged(&file(VIEW_BYTES_MAX + 1, 1 << 20));
    damaged(&file(1000, 1 << 30));
    damaged(&[2, 0, 0xF1, 1, 1]);
    // Pieces before any file, a file that ends early, unknown pieces.
    damaged(&[2, 4, 1]);
    damaged(&file(1000, 1000));
    damaged(&[&file(1000, 1000)[..], &[10, 1]].concat());
    // Settings, capacities, counts and lengths above all bounds.
    for piece in [&[1, 13, 0x50, 0, 1][..], &[1, 9], &[1, 9, 0], &[1, 9, 0x50, 0, 0], &[4, 0], &[5, 1, 0]] {
        damaged(&[&file(1000, 1000)[..], piece].concat());
    }
    for kind in [4, 5, 6, 7, 9] {
        damaged(&[&file(1000, 1000)[..], &[kind], &huge].concat());
    }
    damaged(&[&file(1000, 1000)[..], &[1, 9], &huge, &[1]].concat());
    damaged(&[&file(1000, 1000)[..], &[1, 9, 0x50, 0], &huge].concat());
    // The newer form: windows out of range, settings that the form or the window does not have,
    // corrections that are too long or do not fit.
    let newer = |window: u8| [&[4, 0, 0x31][..], &eight(1000), &eight(1000), &[window]].concat();
    for window in [1, 9, 21, 255] {
        damaged(&newer(window));
    }
    damaged(&[&newer(0)[..], &[2, 66, 0x50, 0, 1, 8]].concat());
    damaged(&[&file(1000, 1000)[..], &[2, 33, 0x50, 0, 1, 8]].concat());
    for piece in [
        &[2, 65, 0x50, 0, 1, 8][..],
        &[2, 88, 0x50, 0, 1, 8],
        &[2, 32, 0x50, 0, 1, 8],
        &[2, 45, 0x50, 0, 1, 8],
    ] {
        damaged(&[&newer(19)[..], piece].concat());
    }
    for kind in [10, 11] {
        damaged(&[&newer(19)[..], &[kind], &huge].concat());
        damaged(&[&newer(19)[..], &[kind, 8], &huge].concat());
        damaged(&[&newer(19)[..], &[kind, 8, 3, 1, 2, 3]].concat());
        damaged(&[&file(1000, 1000)[..], &[kind, 8, 3, 1, 2, 3]].concat());
    }
    // Clusters that overlap without end: each takes all there is and moves on by one byte.
    let overlapping = [&file(4 << 20, 4 << 20)[..], &[3, 9, 0x90, 0, 0, 0, 1].repeat(100_000)].concat();
    damaged(&overlapping);
    // One byte becomes a block of 64 KiB. A gigabyte is the most there may be.
    let blocks = [&[2, 0, 0x71][..], &eight(4 << 20), &eight(1), &[4, 1].repeat(20_000)].concat();
    assert!(matches!(repack(&blocks, &mut &view[..], &mut std::io::sink()), Err(RecipeError::Damaged(_))));

    let bad = |recipe: &[u8]| {
        let result = unpack_base(recipe, &view, VIEW_BYTES_MAX, &mut Vec::new());
        assert!(matches!(result, Err(RecipeError::Damaged(_))), "{recipe:?}");
    };
    bad(&[]);
    bad(&[2]);
    bad(&[2, 0]);
    bad(&[4, 8, 1, 1, 1, 8]);
    bad(&[4, 8, 1, 4, 1, 8]);
    bad(&[&[2][..], &huge].concat());
    bad(&[2, 5, 9]);
    bad(&[&[2, 5, 1, 1][..], &huge].concat());
    bad(&[2, 5, 2, 1, 1, 6]);
}

#[test]
fn a_bomb_ends_at_the_bound() {
    let files = Files::from([("zeros".to_owned(), vec![0; 50_000_000])]);
    let image = image(&files, &["-zlz4hc", "-C65536"]).expect("mkfs.erofs");
    let found = all_files(&image);
    let group = found.group();
    let mut sink = Cursor::new(Vec::new());
    let made = group.unpack(&image, 1 << 20, &mut sink).expect("memory reads");
    assert_eq!((made.files, made.recipe.len()), (vec![Err(NoView::TooLong)], 0));
    let (_, old, packed) = views(&image, group, true);
    let mut out = Vec::new();
    let written = unpack_base(&old.recipe, &packed, 20 << 20, &mut out).expect("sound");
    assert!(written <= 20 << 20 && out.len() as u64 == written);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_recipes_never_panic(mut recipe in prop::collection::vec(any::<u8>(), 1..200), small in any::<bool>()) {
        recipe[0] = 2;
        if small {
            // Recipes with small numbers are decoded further.
            recipe[1..].iter_mut().for_each(|byte| *byte &= 0x0F);
        }
        let view = text(&mut Noise(1), 20_000);
        let _ = repack(&recipe, &mut &view[..], &mut std::io::sink());
        let _ = unpack_base(&recipe, &view, 1 << 20, &mut std::io::sink());
    }
}
