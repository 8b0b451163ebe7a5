//! Every format in the list of formats with views keeps the list's promises: it is documented, has
//! golden files that still pack, comes back bit for bit, and is bounded against hostile recipes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use distd_core::patch::view::{
    FORMATS, HEAD_BYTES, Layer, RecipeError, ViewFormat, cost, packs_again, repack, unpack_base,
};
use proptest::prelude::*;

#[path = "fuzz_bodies/memory.rs"]
#[allow(unreachable_pub, reason = "shared with the fuzz targets")]
mod memory;
mod view_goldens;
use view_goldens::{Golden, VIEW_MAX, goldens, group, packed, unpacked};

fn all() -> Vec<Golden> {
    goldens(Path::new(env!("CARGO_MANIFEST_DIR")))
}

/// Most memory for a recipe, bytes: a piece of 9 MiB of plain text and the state of its packer, or
/// the longest cluster and zstd's packer (`patch::view`, "Memory"), doubled.
const MEMORY_MAX: usize = 64 << 20;

/// Returns the rows of the table in docs/formats.md, "Formats with views": version and name.
fn documented() -> Vec<(u8, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    let page = fs::read_to_string(path).expect("docs/formats.md");
    let (_, section) = page.split_once("### Formats with views\n").expect("the section");
    let section = section.split("\n#").next().unwrap_or_default();
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let version = cells.next()?.parse().ok()?;
        Some((version, cells.next()?.trim_matches('`').to_owned()))
    };
    section.lines().filter_map(row).collect()
}

#[test]
fn every_format_is_documented_and_has_a_name_of_its_own() {
    let listed: Vec<_> = FORMATS.iter().map(|format| (format.version(), format.name().to_owned())).collect();
    assert_eq!(listed, documented(), "docs/formats.md, \"Formats with views\"");
    let names: BTreeSet<_> = FORMATS.iter().map(|format| format.name()).collect();
    assert_eq!(names.len(), FORMATS.len());
}

#[test]
fn formats_that_share_a_version_read_each_others_recipes() {
    let all = all();
    let mut shared = Vec::new();
    for (index, one) in all.iter().enumerate() {
        for other in &all[index + 1..] {
            if one.format.version() != other.format.version() {
                continue;
            }
            shared.push((one.format.name(), other.format.name()));
            for (reader, golden) in [(one, other), (other, one)] {
                let mut out = Vec::new();
                reader.format.repack(&golden.recipe[1..], &mut &golden.view()[..], &mut out).expect("sound");
                assert!(out == golden.packed(), "{} reads {}", reader.format.name(), golden.format.name());
            }
        }
    }
    // A new format gets a version of its own.
    let streams = ["xz", "zstd", "kernel", "cpio"];
    let pairs = streams.iter().enumerate();
    let pairs = pairs.flat_map(|(index, one)| streams[index + 1..].iter().map(move |other| (*one, *other)));
    assert_eq!(shared, [("zip", "png")].into_iter().chain(pairs).collect::<Vec<_>>());
}

#[test]
fn a_file_is_detected_by_its_own_format_alone() {
    for golden in all() {
        let head = &golden.artifact[..HEAD_BYTES];
        let by: Vec<_> = FORMATS.iter().filter(|format| format.detects(head)).map(|f| f.name()).collect();
        match golden.format.layer() {
            Layer::File => assert_eq!(by, [golden.format.name()]),
            Layer::Image => assert!(by.is_empty(), "{by:?}"),
        }
        assert!(!golden.format.detects(&[0; HEAD_BYTES]) && !golden.format.detects(&[]));
    }
}

#[test]
fn golden_recipes_pack_their_views() {
    for golden in all() {
        let (name, view, wanted) = (golden.format.name(), golden.view(), golden.packed());
        assert!(!view.is_empty() && !wanted.is_empty(), "{name}");
        assert_eq!(golden.recipe[0], golden.format.version(), "{name}");
        let mut out = Vec::new();
        let written = repack(&golden.recipe, &mut &view[..], &mut out).expect("a golden recipe");
        assert!(out == wanted && written == wanted.len() as u64, "{name}");
        assert!(packs_again(&golden.recipe, &mut &view[..], &wanted), "{name}");
        assert!(!packs_again(&golden.recipe, &mut &view[..], &wanted[..wanted.len() - 1]), "{name}");
        assert!(golden.recipe.len() < wanted.len() / 2, "{name}: {} bytes", golden.recipe.len());
    }
}

/// Unpacks an artifact of a format, whatever the artifact's state. Checks that each file with a
/// view comes back from the view, and that a device makes the origin's view of the old files.
/// Returns whether there was a view.
fn comes_back(format: &'static dyn ViewFormat, artifact: &[u8]) -> bool {
    let Some(group) = group(format, artifact) else { return false };
    let (view, made) = unpacked(&group, artifact, false);
    if !made.recipe.is_empty() {
        assert_eq!(made.recipe[0], format.version());
        let mut out = Vec::new();
        let written = repack(&made.recipe, &mut &view[..], &mut out).expect("own recipe");
        assert!(out == packed(&group, artifact, &made) && written == out.len() as u64, "{}", format.name());
    }
    let (old_view, old) = unpacked(&group, artifact, true);
    if !old.recipe.is_empty() {
        assert_eq!(old.recipe[0], format.version());
        let packed = packed(&group, artifact, &old);
        let mut out = Vec::new();
        let written = unpack_base(&old.recipe, &packed, VIEW_MAX, &mut out).expect("own recipe");
        assert!(out == old_view && written == out.len() as u64, "{}", format.name());
    }
    !made.recipe.is_empty() && !old.recipe.is_empty()
}

#[test]
fn every_format_comes_back_bit_for_bit() {
    for golden in all() {
        assert!(comes_back(golden.format, &golden.artifact), "{}", golden.format.name());
    }
}

/// Runs a recipe on both sides of a device. An error is a valid end; a panic, a wrong count, or
/// more memory or bytes than allowed is not.
fn hostile(golden: &Golden, recipe: &[u8], view: &[u8], packed: &[u8]) {
    let mut out = Vec::new();
    // A device compares the cost with its memory first. That of C libraries is not counted below.
    if cost(recipe).is_ok_and(|cost| cost.memory() <= MEMORY_MAX as u64) {
        let result = memory::within(MEMORY_MAX, || repack(recipe, &mut &*view, &mut out));
        assert!(result.is_err() || result.is_ok_and(|written| written == out.len() as u64));
    } else if cost(recipe).is_err() {
        assert!(repack(recipe, &mut &*view, &mut out).is_err());
    }
    let max = 10_000;
    let mut out = Vec::new();
    let result = memory::within(MEMORY_MAX, || unpack_base(recipe, packed, max, &mut out));
    assert!(out.len() as u64 <= max, "{}", golden.format.name());
    assert!(result.is_err() || result.is_ok_and(|written| written == out.len() as u64));
}

#[test]
fn hostile_recipes_are_bounded() {
    std::panic::set_hook(Box::new(|info| {
        // `preflate-rs` panics on damaged corrections, which is no finding.
        if info.location().is_some_and(|at| at.file().contains("view_formats")) {
            eprintln!("{info}");
        }
    }));
    memory::alone(|| {
        for golden in all() {
            let (view, (old, packed)) = (golden.view(), golden.old());
            for sound in [&golden.recipe, &old] {
                for len in (0..sound.len()).step_by(sound.len().div_ceil(100)) {
                    hostile(&golden, &sound[..len], &view, &packed);
                }
                for at in (0..sound.len()).step_by(sound.len().div_ceil(50)) {
                    for byte in [0, 1, 0x7F, 0x80, 0xFF, sound[at] ^ 1] {
                        let mut damaged = sound.clone();
                        damaged[at] = byte;
                        hostile(&golden, &damaged, &view, &packed);
                    }
                }
            }
            // The largest numbers in every encoding, behind every first byte of a piece.
            for kind in 0..=16 {
                for number in [&[0xFF; 8][..], &[0xFF, 0xFF, 0xFF, 0x7F], &[0xC0, 0, 0, 0, 0x40, 0, 0, 0]] {
                    let recipe = [&[golden.format.version(), kind][..], &number.repeat(4)].concat();
                    hostile(&golden, &recipe, &view, &packed);
                }
            }
            let long = vec![golden.format.version(); (1 << 20) + 1];
            let refused = repack(&long, &mut &view[..], &mut Vec::new());
            assert!(matches!(refused, Err(RecipeError::Damaged(_))));
            assert!(repack(&golden.recipe, &mut &view[..view.len() - 1], &mut Vec::new()).is_err());
        }
    });
    let _ = std::panic::take_hook();
}

#[test]
fn unknown_versions_are_errors() {
    let known: BTreeSet<u8> = FORMATS.iter().map(|format| format.version()).collect();
    for version in (0..=u8::MAX).filter(|version| !known.contains(version)) {
        let recipe = [version, 1, 1];
        assert!(matches!(repack(&recipe, &mut &[0; 9][..], &mut Vec::new()), Err(RecipeError::Damaged(_))));
        let refused = unpack_base(&recipe, &[0; 9][..], 9, &mut Vec::new());
        assert!(matches!(refused, Err(RecipeError::Damaged(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn damaged_files_come_back_too(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for golden in all() {
            let mut artifact = golden.artifact;
            for (at, byte) in &damage {
                let at = at.index(artifact.len());
                artifact[at] = *byte;
            }
            if let Some(end) = end {
                artifact.truncate(end.index(artifact.len()));
            }
            comes_back(golden.format, &artifact);
        }
    }
}
