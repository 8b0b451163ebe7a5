//! Packed files come back bit for bit, and no recipe does harm.

#![expect(clippy::disallowed_methods, reason = "a test may feed a pipe from a thread")]

use std::io::{Cursor, Write};
use std::process::{Command, Stdio};

use distd_core::cut::{RegionKind, Regions};
use distd_core::patch::view::{
    Joined, LITERAL_MAX, RECIPE_MAX, RecipeError, Unpacked, inflate, packed_files, repack, unpack,
};
use proptest::prelude::*;

/// Text that compresses, `len` bytes.
fn text(len: usize) -> Vec<u8> {
    let (mut out, mut state) = (Vec::new(), 1u32);
    while out.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(format!("line {} of {}\n", state >> 20, state >> 28).as_bytes());
    }
    out.truncate(len);
    out
}

/// What gzip makes of it; it is on every system these tests run on.
fn gzip(data: &[u8], level: u8) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .args(["-n", "-c", &format!("-{level}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip is installed");
    let mut input = child.stdin.take().expect("piped");
    let data = data.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&data));
    let out = child.wait_with_output().expect("gzip runs");
    writer.join().expect("no panic").expect("gzip reads all");
    out.stdout
}

fn taken_apart(file: &[u8]) -> Option<(Unpacked, Vec<u8>)> {
    let mut sink = Cursor::new(Vec::new());
    let unpacked = unpack(file, 1 << 30, &mut sink).expect("memory reads")?;
    let mut view = sink.into_inner();
    view.truncate(unpacked.view_bytes as usize);
    Some((unpacked, view))
}

fn packed_again(recipe: &[u8], view: &[u8]) -> Result<Vec<u8>, RecipeError> {
    let mut out = Vec::new();
    let written = repack(recipe, &mut &view[..], &mut out)?;
    assert_eq!(written, out.len() as u64);
    Ok(out)
}

#[test]
fn every_level_of_gzip_comes_back_from_a_small_recipe() {
    let plain = text(600_000);
    for level in [1, 6, 9] {
        let file = gzip(&plain, level);
        let (unpacked, view) = taken_apart(&file).expect("gzip has a view");
        assert!(view == plain, "level {level}");
        assert!(unpacked.recipe.len() < file.len() / 8, "level {level}: {}", unpacked.recipe.len());
        assert!(packed_again(&unpacked.recipe, &view).expect("sound") == file, "level {level}");
        let mut inflated = Vec::new();
        assert_eq!(inflate(&file, 1 << 30, &mut inflated).expect("memory reads"), plain.len() as u64);
        assert!(inflated == plain);
    }
}

#[test]
fn members_padding_and_a_lost_end_come_back() {
    let (first, second) = (text(100_000), text(50_000));
    let whole = [gzip(&first, 6), gzip(&second, 9), vec![0; 700]].concat();
    let (unpacked, view) = taken_apart(&whole).expect("a view");
    assert!(view == [first.clone(), second].concat());
    assert!(packed_again(&unpacked.recipe, &view).expect("sound") == whole);

    // The tail lies where no region shows it.
    let long = gzip(&text(3_000_000), 6);
    let cut = &long[..long.len() - 2000];
    let (unpacked, view) = taken_apart(cut).expect("a view of most of it");
    assert!(packed_again(&unpacked.recipe, &view).expect("sound") == cut);
    let mut inflated = Vec::new();
    inflate(cut, 1 << 30, &mut inflated).expect("memory reads");
    assert!(inflated.starts_with(&view) && inflated.len() > 2_900_000);
}

#[test]
fn what_is_no_gzip_or_not_worth_it_has_no_view() {
    let file = gzip(&text(100_000), 6);
    assert!(taken_apart(&[]).is_none());
    assert!(taken_apart(&text(100_000)).is_none());
    assert!(taken_apart(&file[..9]).is_none());
    assert!(taken_apart(&[&file[..], &vec![1; LITERAL_MAX as usize + 1]].concat()).is_none());
    let mut damaged = gzip(&text(3_000_000), 6);
    damaged[1000..2000].fill(0x55);
    if let Some((unpacked, view)) = taken_apart(&damaged) {
        assert!(packed_again(&unpacked.recipe, &view).expect("sound") == damaged);
    }
}

#[test]
fn a_bomb_ends_at_the_bound() {
    let bomb = gzip(&vec![0; 50 << 20], 9);
    assert!(bomb.len() < 60_000);
    let mut sink = Cursor::new(Vec::new());
    assert_eq!(unpack(&bomb, 1 << 20, &mut sink).expect("memory reads"), None);
    let mut out = Vec::new();
    let written = inflate(&bomb, 1 << 20, &mut out).expect("memory reads");
    assert!(written <= 1 << 20 && out.len() as u64 == written);
}

#[test]
fn damaged_recipes_are_errors_and_never_panics() {
    let file = gzip(&text(9_000), 6);
    let (unpacked, view) = taken_apart(&file).expect("a view");
    let recipe = unpacked.recipe;
    std::panic::set_hook(Box::new(|_| {}));
    for len in 0..recipe.len() {
        assert!(packed_again(&recipe[..len], &view).is_ok_and(|out| out == file) == (len == recipe.len()));
    }
    for at in 0..recipe.len() {
        for bit in 0..8 {
            let mut flipped = recipe.clone();
            flipped[at] ^= 1 << bit;
            let _ = packed_again(&flipped, &view);
        }
    }
    let _ = std::panic::take_hook();
    assert!(matches!(packed_again(&recipe, &view[..100]), Err(RecipeError::Io(_))));
    assert!(matches!(packed_again(&vec![1; RECIPE_MAX + 1], &view), Err(RecipeError::Damaged(_))));
    // A piece of a gigabyte.
    assert!(matches!(packed_again(&[1, 1, 0xFF, 0xFF, 0xFF, 0x7F, 0], &view), Err(RecipeError::Damaged(_))));
}

#[test]
fn a_file_in_two_parts_is_one_run_with_its_tail_last() {
    let file = gzip(&text(400_000), 6);
    let body = file.len() / 4096 * 4096;
    let artifact = [&file[body..], &file[..body], b"next"].concat();
    let tail = (file.len() - body) as u64;
    let regions = Regions::from_parts([
        (tail, RegionKind::File, Some(&b"a.gz"[..])),
        (body as u64, RegionKind::File, Some(b"a.gz")),
        (4, RegionKind::File, Some(b"b")),
    ])
    .expect("small");
    let found = packed_files(&artifact, &regions).expect("memory reads");
    assert_eq!(found.len(), 1);
    let joined = Joined { artifact: &artifact, parts: &found[0].parts };
    let mut sink = Cursor::new(Vec::new());
    let unpacked = unpack(&joined, 1 << 30, &mut sink).expect("memory reads").expect("a view");
    assert!(packed_again(&unpacked.recipe, sink.get_ref()).expect("sound") == file);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_recipes_never_panic(mut recipe in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(version) = recipe.first_mut() {
            *version = 1;
        }
        let _ = repack(&recipe, &mut &text(20_000)[..], &mut Vec::new());
    }

    #[test]
    fn random_bytes_behind_a_gzip_header_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let file = [&[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3][..], &bytes].concat();
        let _ = inflate(&file, 1 << 20, &mut Vec::new());
        let _ = unpack(&file, 1 << 20, &mut Cursor::new(Vec::new()));
    }
}
