//! Tests of hash trees made by `veritysetup` (Debian: cryptsetup-bin): found, computed from their
//! data bit for bit, and refused where they do not follow from it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use distd_core::cut::{ReadAt, regions};
use distd_core::patch::hash_tree::{Recipe, Tree, compute, find, is_computed};
use distd_core::patch::view::RecipeError;
use proptest::prelude::*;
use tempfile::TempDir;

mod disk_images;
mod erofs_images;
#[path = "fuzz_bodies/memory.rs"]
#[allow(unreachable_pub, reason = "shared with the fuzz targets")]
mod memory;
use disk_images::{MIB, Part, gpt, has, run};
use erofs_images::{Files, Noise, assert_covers, mkfs};

/// Most memory for a part, bytes: the levels of 1 GiB of data, and their vectors as they grow.
const MEMORY_MAX: usize = 32 << 20;

fn root(dir: &Path, len: usize) -> Vec<u8> {
    let tree = dir.join("tree");
    let files =
        Files::from([("usr/lib/a".to_owned(), Noise(1).bytes(len)), ("usr/b".to_owned(), vec![b'x'; 5000])]);
    for (path, bytes) in &files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
    mkfs(&[], &tree, &dir.join("root"))
}

/// Runs `veritysetup format`.
fn format(data: &Path, hash: &Path, options: &[&str]) {
    let uuid = "--uuid=11111111-2222-3333-4444-555555555555";
    let paths = [data.to_str().expect("text"), hash.to_str().expect("text")];
    run("veritysetup", &[&["format", uuid], options, &paths].concat());
}

/// Computes each part of a tree in a copy of the artifact that has none, and compares.
fn assert_computed(artifact: &[u8], tree: &Tree) {
    let mut rebuilt = artifact.to_vec();
    for part in &tree.parts {
        let target = tree.target(part);
        rebuilt[target.start as usize..target.end as usize].fill(0x55);
    }
    for part in &tree.parts {
        let (source, target) = (tree.source(part), tree.target(part));
        // The base begins in front of the data, as chunks do.
        let skip = source.start.min(1000);
        let recipe = tree.recipe(part, skip).encode();
        assert!(recipe.len() < 300);
        let base = rebuilt[(source.start - skip) as usize..source.end as usize].to_vec();
        let mut out = Vec::new();
        let written = compute(&recipe, &mut &base[..], &mut out).expect("a good recipe");
        assert_eq!(written, target.end - target.start);
        rebuilt[target.start as usize..target.end as usize].copy_from_slice(&out);
        let base = source.start - skip..source.end;
        let bases = std::slice::from_ref(&base);
        assert!(is_computed(artifact, &recipe, bases, target.clone()));
        let mut damaged = artifact.to_vec();
        damaged[source.end as usize - 7] ^= 1;
        assert!(!is_computed(&damaged[..], &recipe, bases, target));
    }
    assert!(rebuilt == artifact);
}

#[test]
fn a_tree_behind_its_data_is_computed_whatever_its_format() {
    if !has("veritysetup") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let image = root(dir.path(), 3_000_000);
    let path = dir.path().join("with-tree");
    for options in [
        &[][..],
        &["--hash=sha1"],
        &["--hash=sha512", "--salt=-"],
        &["--data-block-size=1024", "--hash-block-size=1024", "--salt=0123456789abcdef"],
        &["--data-block-size=512", "--hash-block-size=4096"],
        &["--data-block-size=4096", "--hash-block-size=512", "--hash=sha1"],
        &["--format=0", "--hash=sha1", "--salt=00ff"],
        &["--format=0"],
    ] {
        for offset in [image.len() as u64, image.len().next_multiple_of(1 << 20) as u64] {
            let mut padded = image.clone();
            padded.resize(offset as usize, 0);
            fs::write(&path, &padded).expect("writable");
            let block = options.iter().find_map(|option| option.strip_prefix("--data-block-size="));
            let blocks = image.len() / block.map_or(4096, |block| block.parse().expect("a number"));
            let (offset, blocks) = (format!("--hash-offset={offset}"), format!("--data-blocks={blocks}"));
            format(&path, &path, &[&[&offset[..], &blocks[..]], options].concat());
            let artifact = fs::read(&path).expect("readable");
            let trees = find(&artifact[..]).expect("memory reads");
            assert_eq!(trees.len(), 1, "{options:?}");
            assert_computed(&artifact, &trees[0]);
            // Each part is one or more whole regions, and the image's regions stay.
            let found = regions(&artifact[..]);
            assert_covers(&found, artifact.len(), "an image with a tree");
            let borders: Vec<u64> = found.all().iter().map(|region| region.start).collect();
            for part in &trees[0].parts {
                assert!(borders.contains(&trees[0].target(part).start), "{options:?}");
            }
            assert_eq!(found.all()[0], regions(&image[..]).all()[0]);
        }
    }
}

#[test]
fn a_tree_in_a_partition_of_its_own_is_computed_from_another_partition() {
    if !has("veritysetup") || !has("sgdisk") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let image = root(dir.path(), 5_000_000);
    let hash = dir.path().join("hash");
    format(&dir.path().join("root"), &hash, &[]);
    let tree = fs::read(&hash).expect("veritysetup left a tree");
    let other = Noise(3).bytes(6_000_000);
    let parts = [
        Part { kind: "8300", label: "other", at: 1, len: 6, bytes: &other },
        Part { kind: "8304", label: "root-1.0", at: 7, len: 6, bytes: &image },
        Part { kind: "830c", label: "root-1.0-verity", at: 13, len: 1, bytes: &tree },
    ];
    let mut disk = gpt(&dir.path().join("disk"), 16, &parts);
    let trees = find(&disk[..]).expect("memory reads");
    assert_eq!(trees.len(), 1);
    assert_computed(&disk, &trees[0]);
    let source = trees[0].source(&trees[0].parts[0]);
    assert_eq!(source, 7 * MIB..7 * MIB + image.len() as u64);
    // Both ends of the data are zeros, and so is a blank partition in front of it.
    let (mut zeros, path) = (image.clone(), dir.path().join("zeros"));
    zeros[..1024].fill(0);
    zeros.resize(image.len() + 4096, 0);
    fs::write(&path, &zeros).expect("writable");
    format(&path, &hash, &["--data-block-size=1024"]);
    let tree = fs::read(&hash).expect("veritysetup left a tree");
    let parts = [
        Part { kind: "8304", label: "_empty", at: 1, len: 6, bytes: &[] },
        Part { kind: "8304", label: "root-1.0", at: 7, len: 6, bytes: &zeros },
        Part { kind: "830c", label: "root-1.0-verity", at: 13, len: 1, bytes: &tree },
    ];
    let blank = gpt(&dir.path().join("disk"), 16, &parts);
    assert_computed(&blank, &find(&blank[..]).expect("memory reads")[0]);
    // Without its data there is no tree to compute.
    disk[7 * MIB as usize] ^= 1;
    assert_eq!(find(&disk[..]).expect("memory reads"), []);
}

#[test]
fn the_tree_of_a_rauc_bundle_is_computed() {
    if !["rauc", "openssl", "mksquashfs"].iter().all(|tool| has(tool)) {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let key =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=t"];
    run("openssl", &[&key[..], &["-keyout", &at("key"), "-out", &at("cert"), "-days", "2"]].concat());
    fs::create_dir(at("content")).expect("writable");
    fs::write(at("content/root.img"), Noise(6).bytes(4_000_000)).expect("writable");
    let manifest =
        "[update]\ncompatible=t\nversion=1\n[bundle]\nformat=verity\n[image.rootfs]\nfilename=root.img\n";
    fs::write(at("content/manifest.raucm"), manifest).expect("writable");
    run("rauc", &["bundle", "--cert", &at("cert"), "--key", &at("key"), &at("content"), &at("bundle")]);
    let bundle = fs::read(at("bundle")).expect("rauc left a bundle");
    let trees = find(&bundle[..]).expect("memory reads");
    assert_eq!(trees.len(), 1);
    assert_computed(&bundle, &trees[0]);
    assert_covers(&regions(&bundle[..]), bundle.len(), "a bundle");
}

/// File read as an artifact.
struct OnDisk(File, u64);

impl ReadAt for OnDisk {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

#[test]
fn a_tree_of_much_data_is_cut_into_parts_that_fit() {
    if !has("veritysetup") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("artifact");
    // More than one part may have. The head of a SquashFS says where the data ends.
    let bytes = 640 * MIB;
    let mut head = b"hsqs".to_vec();
    head.resize(48, 0);
    head[40..48].copy_from_slice(&bytes.to_le_bytes());
    let file = File::options().create_new(true).read(true).write(true).open(&path).expect("writable");
    file.set_len(bytes).and_then(|()| file.write_all_at(&head, 0)).expect("writable");
    let (offset, blocks) = (format!("--hash-offset={bytes}"), format!("--data-blocks={}", bytes / 4096));
    format(&path, &path, &["--hash=sha1", &offset, &blocks]);
    let len = file.metadata().expect("readable").len();
    let artifact = OnDisk(file, len);

    let trees = find(&artifact).expect("readable");
    assert_eq!((trees.len(), trees[0].parts.len()), (1, 3), "two parts of the lowest level, and the rest");
    let found = regions(&artifact);
    let named = found.all().iter().filter(|region| found.name(region) == Some(b"/hash-tree")).count();
    assert_eq!((named, found.total()), (3, len));
    memory::alone(|| {
        for part in &trees[0].parts {
            let (source, target) = (trees[0].source(part), trees[0].target(part));
            assert!(source.end - source.start <= 512 * MIB);
            let recipe = trees[0].recipe(part, 0).encode();
            let sources = [source];
            assert!(memory::within(MEMORY_MAX, || is_computed(&artifact, &recipe, &sources, target)));
        }
    });
}

#[test]
fn a_recipe_survives_encoding_and_its_bytes_never_change() {
    let golden: &[u8] = &[1, 2, 1, 12, 12, 2, 0x05, 0x43, 0xE8, 0xAA, 0xBB];
    let recipe = Recipe::decode(golden).expect("a golden recipe");
    assert_eq!(recipe.encode(), golden);
    for at in 0..8 {
        assert!(matches!(Recipe::decode(&golden[..at]), Err(RecipeError::Damaged(_))), "{at}");
    }
    for (at, byte) in
        [(0, 2), (1, 0), (1, 4), (2, 2), (3, 8), (3, 17), (4, 8), (4, 17), (4, 0), (4, 200), (5, 0), (5, 3)]
    {
        let mut bad = golden.to_vec();
        bad[at] = byte;
        assert!(matches!(Recipe::decode(&bad), Err(RecipeError::Damaged(_))), "{at}");
    }
}

proptest! {
    #[test]
    fn hostile_recipes_are_bounded(
        fixed in prop::collection::vec(0u8..20, 6), rest in prop::collection::vec(any::<u8>(), 0..40), len in 0usize..20_000,
    ) {
        let recipe = [&fixed[..], &rest].concat();
        let base = vec![7; len];
        let mut out = Vec::new();
        memory::alone(|| {
            let result = memory::within(MEMORY_MAX, || compute(&recipe, &mut &base[..], &mut out));
            assert!(result.is_err() || result.is_ok_and(|written| written == out.len() as u64));
        });
    }
}
