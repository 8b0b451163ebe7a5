//! Runs the bodies of the fuzz targets over `fuzz/seeds`, over the golden bytes of the frames and
//! of the formats with views, and over damaged copies of all, so that defects a fuzzer found do not
//! return (docs/testing.md, "Fuzzing").

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

mod erofs_images;
#[path = "../src/proto/frame/golden.rs"]
mod frame_goldens;
pub mod fuzz_bodies;
mod view_goldens;

use erofs_images::Noise;
use fuzz_bodies::{TARGETS, Target, memory};
use view_goldens::goldens;

/// Number of damaged copies of each seed.
const DAMAGED: usize = 24;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn replay(target: &str) {
    let Target { seeds, body, .. } =
        TARGETS.iter().find(|listed| listed.name == target).expect("a target of this name");
    let dir = fuzz_dir().join("seeds").join(seeds);
    let mut paths: Vec<_> =
        fs::read_dir(&dir).expect("seeds").map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no seed", dir.display());
    let read = |path: PathBuf| (path.display().to_string(), fs::read(&path).expect("readable"));
    let mut inputs: Vec<_> = paths.into_iter().map(read).collect();
    for golden in goldens(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        let of_target = golden.seeds().into_iter().filter(|(dir, _)| dir == seeds);
        inputs.extend(of_target.map(|(_, seed)| (format!("golden {}", golden.format.name()), seed)));
    }
    if *seeds == "frames" {
        for (frame, _) in frame_goldens::golden() {
            // The first byte is the length of the pieces.
            inputs.push((format!("golden {frame:?}"), [&[7], &frame.encode()[..]].concat()));
        }
    }
    for (name, seed) in inputs {
        let mut noise = Noise(seed.len() as u64);
        for copy in 0..=DAMAGED {
            let mut input = seed.clone();
            if copy > 0 && !input.is_empty() {
                damage(&mut input, copy, &mut noise);
            }
            let run = AssertUnwindSafe(|| memory::alone(|| body(&input)));
            if catch_unwind(run).is_err() {
                let kept = std::env::temp_dir().join(format!("{target}-{}", blake3::hash(&input).to_hex()));
                fs::write(&kept, &input).expect("writable");
                panic!("{name} (copy {copy}) breaks a promise; the input is in {}", kept.display());
            }
        }
    }
}

/// Cuts off one copy in four, and flips bits or replaces bytes in the others.
fn damage(input: &mut Vec<u8>, copy: usize, noise: &mut Noise) {
    let mut at = |len: usize| (noise.next() % len as u64) as usize;
    if copy.is_multiple_of(4) {
        input.truncate(at(input.len()));
        return;
    }
    for _ in 0..copy.div_ceil(8) {
        let place = at(input.len());
        match copy % 4 {
            1 => input[place] ^= 1 << at(8),
            2 => input[place] = [0, 1, 0x7F, 0x80, 0xFF][at(5)],
            _ => input[place] = at(256) as u8,
        }
    }
}

macro_rules! replayed {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
    };
}

replayed! {
    regions erofs_maps archive_parts view_make patch_decode patch_encode patch_large set_index outline choose route view_unpack
    view_repack hash_tree manifest tree_listing frames
}

#[test]
fn every_target_is_fuzzed_and_replayed() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names, REPLAYED);
    names.sort();
    let entries = fs::read_dir(fuzz_dir().join("fuzz_targets")).expect("a directory");
    let stem = |path: PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    let mut built: Vec<_> = entries.map(|entry| stem(entry.expect("readable").path())).collect();
    built.sort();
    assert_eq!(built, names);
    let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).expect("readable");
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not built");
    }
}
