//! Tests of regions of ext2, ext3 and ext4 file systems made by `mke2fs` and changed by `debugfs`
//! (Debian: e2fsprogs), whole and damaged.

use std::fs;
use std::path::Path;

use distd_core::cut::{RegionKind, regions};
use tempfile::TempDir;

mod disk_images;
mod erofs_images;
use disk_images::{files_of, has, named, run};
use erofs_images::{Files, Noise, assert_covers};

fn files() -> Files {
    let mut noise = Noise(9);
    let mut files = Files::new();
    for size in [0, 1, 60, 255, 256, 1023, 1024, 4096, 4097, 70_000, 300_001] {
        files.insert(format!("a/sizes/{size}"), noise.bytes(size));
    }
    for index in 0..300 {
        files.insert(format!("many/file-with-a-rather-long-name-{index:04}"), noise.bytes(300 + index));
    }
    let mut sparse = noise.bytes(65_536);
    sparse.extend(vec![0; 262_144]);
    sparse.extend(noise.bytes(40_000));
    files.insert("sparse".into(), sparse);
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
    let _ = fs::remove_file(&image);
    let (tree, path) = (tree.to_str().expect("text"), image.to_str().expect("text"));
    run(
        "mke2fs",
        &[&["-q", "-U", "11111111-2222-3333-4444-555555555555"], options, &["-d", tree, path, "24M"]]
            .concat(),
    );
    fs::read(image).expect("mke2fs left an image")
}

const KINDS: [&[&str]; 7] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-b", "4096", "-O", "^has_journal,inline_data", "-I", "256"],
    &["-t", "ext4", "-O", "^64bit,^flex_bg"],
    &["-t", "ext4", "-b", "2048", "-O", "bigalloc"],
    &["-t", "ext3"],
    &["-t", "ext2", "-b", "1024", "-I", "128"],
];

#[test]
fn files_of_every_kind_have_their_bytes() {
    if !has("mke2fs") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let files = files();
    for options in KINDS {
        let image = image(dir.path(), &files, options);
        let found = regions(&image[..]);
        assert_covers(&found, image.len(), &format!("{options:?}"));
        let mapped = named(&image, &found);
        for (path, bytes) in files.iter().filter(|(_, bytes)| bytes.len() >= 256) {
            let mut other = path.as_str();
            if path == "a/sizes/70000" && !mapped.contains_key(path) {
                other = "many/hard";
            }
            let got = mapped.get(other);
            if path == "sparse" && got.is_some_and(|got| got.len() < bytes.len()) {
                // Blocks of zeros are holes.
                let got = got.expect("checked");
                assert!(got.starts_with(&bytes[..65_536]) && got.ends_with(&bytes[327_680..]), "{options:?}");
                continue;
            }
            assert!(got == Some(bytes), "{path} with {options:?}: {:?}", got.map(Vec::len));
        }
        let journal = options.iter().all(|option| !option.contains("^has_journal")) && options[1] != "ext2";
        assert_eq!(mapped.contains_key("/journal"), journal, "{options:?}");
    }
}

#[test]
fn a_file_in_many_fragments_is_whole() {
    if !has("debugfs") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let files = files();
    for options in [&["-t", "ext4", "-b", "1024"][..], &["-t", "ext2", "-b", "1024"]] {
        image(dir.path(), &files, options);
        let path = dir.path().join("image");
        let bytes = Noise(4).bytes(900_000);
        let (filler, big) = (dir.path().join("filler"), dir.path().join("big"));
        fs::write(&filler, vec![7; 3000]).expect("writable");
        fs::write(&big, &bytes).expect("writable");
        // The disk is filled with small files, and every second one removed.
        let small = dir.path().join("commands");
        let mut commands = String::new();
        for index in 0..4000 {
            commands.push_str(&format!("write {} small-{index}\n", filler.display()));
        }
        for index in (0..4000).step_by(2) {
            commands.push_str(&format!("rm small-{index}\n"));
        }
        commands.push_str(&format!("write {} big\n", big.display()));
        fs::write(&small, commands).expect("writable");
        run("debugfs", &["-w", "-f", small.to_str().expect("text"), path.to_str().expect("text")]);
        let image = fs::read(&path).expect("an image");
        let found = regions(&image[..]);
        let parts = found.all().iter().filter(|region| found.name(region) == Some(b"big")).count();
        assert!(parts > 100, "{parts}");
        // The parts of a file are in file order where they are in the order of the disk.
        let mut got = files_of(&image)["big"].clone();
        let mut wanted = bytes;
        assert_eq!(got.len(), wanted.len());
        if got != wanted {
            got.sort_unstable();
            wanted.sort_unstable();
        }
        assert!(got == wanted, "{options:?}");
    }
}

#[test]
fn damage_costs_good_cuts_and_nothing_else() {
    if !has("mke2fs") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let mut few = files();
    few.retain(|path, _| !path.starts_with("many/file-with-a-rather-long-name-02"));
    let sound = image(dir.path(), &few, &["-t", "ext4", "-b", "1024"]);
    let found = regions(&sound[..]);
    let structures: Vec<_> = found
        .all()
        .iter()
        .filter(|region| region.kind == RegionKind::Metadata && region.len < 1 << 20)
        .collect();
    let mut noise = Noise(8);
    let mut others = 0;
    let mut image = sound.clone();
    for round in 0..400 {
        let mut before = Vec::new();
        for _ in 0..1 + noise.next() % 8 {
            let region = structures[noise.next() as usize % structures.len()];
            let at = if round % 4 == 0 {
                1024 + (noise.next() % 400) as usize
            } else {
                (region.start + noise.next() % region.len) as usize
            };
            before.push((at, image[at]));
            image[at] = if round % 3 == 0 { 0xFF } else { noise.next() as u8 };
        }
        let damaged = regions(&image[..]);
        assert_covers(&damaged, image.len(), &format!("round {round}"));
        others += usize::from(damaged != found);
        for (at, byte) in before.into_iter().rev() {
            image[at] = byte;
        }
    }
    assert!(others > 20, "{others} rounds changed a region");
}
