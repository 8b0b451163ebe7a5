//! Tests of views: packed files come back bit for bit, and no recipe does harm.

#![expect(clippy::disallowed_methods, reason = "a test may feed a pipe from a thread")]

use std::io::{Cursor, Write};
use std::process::{Command, Stdio};

use distd_core::cut::{RegionKind, Regions};
use distd_core::patch::view::{
    Joined, LITERAL_MAX, Layer, RECIPE_MAX, RecipeError, Unpacked, find, repack, unpack, unpack_base,
};
use proptest::prelude::*;

/// Returns `len` bytes of text, which compresses well.
fn text(len: usize) -> Vec<u8> {
    let (mut out, mut state) = (Vec::new(), 1u32);
    while out.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(format!("line {} of {}\n", state >> 20, state >> 28).as_bytes());
    }
    out.truncate(len);
    out
}

/// Packs `data` with gzip, which every system that runs these tests has.
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
        assert_eq!(
            unpack_base(&[1], &file, 1 << 30, &mut inflated).expect("memory reads"),
            plain.len() as u64
        );
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

    // The tail lies outside all regions.
    let long = gzip(&text(3_000_000), 6);
    let cut = &long[..long.len() - 2000];
    let (unpacked, view) = taken_apart(cut).expect("a view of most of it");
    assert!(packed_again(&unpacked.recipe, &view).expect("sound") == cut);
    let mut inflated = Vec::new();
    unpack_base(&[1], cut, 1 << 30, &mut inflated).expect("memory reads");
    assert!(inflated.starts_with(&view) && inflated.len() > 2_900_000);
}

#[test]
fn files_that_are_not_gzip_or_save_nothing_have_no_view() {
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
    let written = unpack_base(&[1], &bomb, 1 << 20, &mut out).expect("memory reads");
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
    let found = find(Layer::File, &artifact, &regions, |_, _| true).expect("memory reads").groups;
    assert_eq!(found.len(), 1);
    let joined = Joined { artifact: &artifact, parts: &found[0].files[0].parts };
    let mut sink = Cursor::new(Vec::new());
    let unpacked = unpack(&joined, 1 << 30, &mut sink).expect("memory reads").expect("a view");
    assert!(packed_again(&unpacked.recipe, sink.get_ref()).expect("sound") == file);
}

/// Returns the output of a Python `script`, which reads `data` from `sys.stdin.buffer` and writes a
/// file to `sys.stdout.buffer`.
fn python(script: &str, data: &[u8]) -> Vec<u8> {
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut input = child.stdin.take().expect("piped");
    let data = data.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&data));
    let out = child.wait_with_output().expect("python3 runs");
    writer.join().expect("no panic").expect("python3 reads all");
    assert!(out.status.success());
    out.stdout
}

/// Makes a zip archive of three files with a third of `data` each, one of them stored, and an empty
/// directory. A streamed archive has data descriptors.
fn zip(data: &[u8], level: u8, streamed: bool) -> Vec<u8> {
    let script = format!(
        "
import io, sys, zipfile
class Pipe(io.RawIOBase):
    def writable(self): return True
    def write(self, b): return sys.stdout.buffer.write(b)
data, out = sys.stdin.buffer.read(), io.BytesIO()
third = len(data) // 3
with zipfile.ZipFile({}, 'w', zipfile.ZIP_DEFLATED, compresslevel={level}) as z:
    for n, method in enumerate([8, 0, 8]):
        info = zipfile.ZipInfo(f'dir/file{{n}}')
        z.writestr(info, data[n * third:(n + 1) * third], method, {level})
    z.writestr(zipfile.ZipInfo('empty/'), b'')
    z.writestr(zipfile.ZipInfo('nothing'), b'', 8)
sys.stdout.buffer.write(out.getvalue())
",
        if streamed { "Pipe()" } else { "out" }
    );
    python(&script, data)
}

/// Makes a picture with `data` as its filtered rows, in IDAT chunks of `size`.
fn png(data: &[u8], level: u8, size: usize) -> Vec<u8> {
    let script = format!(
        r"
import struct, sys, zlib
def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
rows = sys.stdin.buffer.read()
z = zlib.compress(rows, {level})
out = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 999, len(rows) // 1000, 8, 0, 0, 0, 0))
out += chunk(b'tEXt', b'Comment\0made here')
out += b''.join(chunk(b'IDAT', z[at:at + {size}]) for at in range(0, len(z), {size}))
sys.stdout.buffer.write(out + chunk(b'IEND', b''))
"
    );
    python(&script, data)
}

/// Returns the view that the origin makes of a file, after checking that the file comes back bit
/// for bit, and the view that a device makes.
fn both_views(file: &[u8]) -> (Unpacked, Vec<u8>, Vec<u8>) {
    let (unpacked, view) = taken_apart(file).expect("a view");
    assert!(packed_again(&unpacked.recipe, &view).expect("sound") == file);
    let mut inflated = Vec::new();
    let written = unpack_base(&unpacked.recipe[..1], file, 1 << 30, &mut inflated).expect("memory reads");
    assert_eq!(written, inflated.len() as u64);
    (unpacked, view, inflated)
}

fn has(view: &[u8], part: &[u8]) -> bool {
    view.windows(part.len()).any(|window| window == part)
}

#[test]
fn zip_archives_come_back_from_small_recipes_and_their_view_has_all_files() {
    let plain = text(600_000);
    for (level, streamed) in [(1, false), (6, false), (9, false), (6, true)] {
        let file = zip(&plain, level, streamed);
        assert_eq!(file[6] & 8 != 0, streamed, "data descriptors");
        let (unpacked, view, inflated) = both_views(&file);
        assert!(unpacked.recipe.len() < file.len() / 20, "level {level}: {}", unpacked.recipe.len());
        for n in 0..3 {
            let third = &plain[n * 200_000..][..200_000];
            assert!(has(&view, &third[..5000]) && has(&view, &third[195_000..]), "level {level}, file {n}");
        }
        // Only parts that are shorter packed than unpacked differ.
        assert!(view.len().abs_diff(inflated.len()) <= 2 && inflated.starts_with(&view[..600_000]));
    }
}

#[test]
fn pngs_come_back_from_one_idat_and_from_many() {
    let rows = text(500_000);
    for (level, size) in [(1, usize::MAX >> 1), (6, 8192), (9, 32_768), (6, 1000)] {
        let file = png(&rows, level, size);
        let (unpacked, view, inflated) = both_views(&file);
        assert!(unpacked.recipe.len() < file.len() / 12, "level {level}: {}", unpacked.recipe.len());
        assert!(view == inflated, "level {level}, chunks of {size}: {} and {}", view.len(), inflated.len());
        assert!(has(&view, b"made here"), "level {level}, chunks of {size}");
        let at = view.len() - rows.len() - 4 - 12;
        assert!(view[at..].starts_with(&rows) && view.ends_with(b"IEND\xAE\x42\x60\x82"));
    }
}

#[test]
fn a_png_whose_chunks_are_damaged_or_of_many_lengths_has_no_view() {
    let file = png(&text(300_000), 6, 8192);
    let first = file.windows(4).position(|kind| kind == b"IDAT").expect("a chunk") - 4;
    // Damage the CRC of the first chunk.
    let mut damaged = file.clone();
    damaged[first + 8 + 8192] ^= 1;
    assert!(taken_apart(&damaged).is_none());
    assert!(taken_apart(&file[..file.len() / 2]).is_none(), "the last chunk is cut");
    assert!(taken_apart(&[&file[..first], &file[first + 8192 + 12 - 20..]].concat()).is_none());
    // A shorter chunk before longer ones: the last chunk of another picture.
    let other = png(&text(30_000), 6, 1 << 20);
    let from = other.windows(4).position(|kind| kind == b"IDAT").expect("a chunk") - 4;
    let short = [&file[..first], &other[from..other.len() - 12], &file[first..]].concat();
    assert!(taken_apart(&short).is_none());
}

#[test]
fn damaged_archives_have_views_of_their_sound_parts() {
    let file = zip(&text(600_000), 6, false);
    for cut in [file.len() - 1, file.len() - 300, file.len() - 20_000, file.len() / 2] {
        let (_, view, inflated) = both_views(&file[..cut]);
        assert!(view.len() > 190_000 && inflated.len() > 190_000);
    }
    let mut damaged = file.clone();
    damaged[20_000..20_100].fill(0x55);
    if let Some((unpacked, view)) = taken_apart(&damaged) {
        assert!(packed_again(&unpacked.recipe, &view).expect("sound") == damaged);
    }
    // Headers of files that do not exist. After some of them, the rest stays packed.
    let fake = [b"PK\x03\x04\x14\0\x08\0\x08\0".as_slice(), &[0; 20], &[0xFF; 20]].concat();
    let many = [fake.repeat(2000), file].concat();
    assert!(taken_apart(&many).is_none());
}

#[test]
fn bombs_in_archives_and_pictures_end_at_the_bound() {
    for bomb in [zip(&vec![0; 30 << 20], 9, true), png(&vec![0; 50 << 20], 9, 8192)] {
        let mut sink = Cursor::new(Vec::new());
        assert_eq!(unpack(&bomb[..], 1 << 20, &mut sink).expect("memory reads"), None);
        let mut out = Vec::new();
        let written = unpack_base(&[3], &bomb[..], 1 << 20, &mut out).expect("memory reads");
        assert!(written <= 1 << 20 && out.len() as u64 == written);
    }
}

#[test]
fn recipes_with_frames_that_do_not_fit_are_errors() {
    let view = text(1000);
    let framed = packed_again(&[3, 4, 4, 6, 3, 3, 3, 3, 3, 1], &view).expect("frames of 4 and 2");
    assert_eq!(framed[..8], *b"\0\0\0\x04IDAT");
    assert_eq!(framed[16..24], *b"\0\0\0\x02IDAT");
    assert_eq!((framed.len(), &framed[24..26], framed[30]), (31, &view[4..6], view[6]));
    for damaged in [
        &[3, 4, 0, 6][..],                  // IDAT chunks of length 0
        &[3, 4, 4, 0],                      // no bytes in IDAT chunks
        &[3, 4, 4],                         // without a total length
        &[3, 4, 4, 6, 3, 5],                // chunks that are not full
        &[3, 4, 4, 6, 3, 5, 4, 1, 1, 3, 2], // chunks within chunks
        &[3, 5, 1],                         // an unknown piece
        &[1, 3, 1],                         // a piece of another version
        &[1, 4, 1, 1, 0, 1, 0],
        &[4, 3, 1],
    ] {
        assert!(matches!(packed_again(damaged, &view), Err(RecipeError::Damaged(_))), "{damaged:?}");
    }
    assert!(matches!(packed_again(&[3, 3, 0xE9, 7], &view), Err(RecipeError::Io(_))), "more than there is");
}

#[test]
fn damaged_recipes_of_archives_and_pictures_never_panic() {
    std::panic::set_hook(Box::new(|_| {}));
    for file in [zip(&text(9000), 6, true), png(&text(9000), 6, 500)] {
        let (unpacked, view) = taken_apart(&file).expect("a view");
        for at in 0..unpacked.recipe.len() {
            for bit in 0..8 {
                let mut flipped = unpacked.recipe.clone();
                flipped[at] ^= 1 << bit;
                let _ = packed_again(&flipped, &view);
            }
            assert!(!packed_again(&unpacked.recipe[..at], &view).is_ok_and(|out| out == file));
        }
    }
    let _ = std::panic::take_hook();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_recipes_never_panic(mut recipe in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(version) = recipe.first_mut() {
            *version = if *version & 1 == 0 { 1 } else { 3 };
        }
        let _ = repack(&recipe, &mut &text(20_000)[..], &mut Vec::new());
    }

    #[test]
    fn random_bytes_behind_a_gzip_header_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let file = [&[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3][..], &bytes].concat();
        let _ = unpack_base(&[1], &file, 1 << 20, &mut Vec::new());
        let _ = unpack(&file, 1 << 20, &mut Cursor::new(Vec::new()));
    }

    #[test]
    fn random_bytes_in_archives_and_pictures_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..3000), told in any::<bool>(),
    ) {
        let len = if told { bytes.len() as u32 } else { 0 };
        let flags = if told { 0 } else { 8 };
        let zip = [b"PK\x03\x04\x14\0", &[flags, 0, 8][..], &[0; 9], &len.to_le_bytes(), &[0; 8], &bytes].concat();
        let chunk = [&b"IDAT\x78\x9C"[..], &bytes].concat();
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&chunk);
        let png_len = bytes.len() as u32 + 2;
        let png = [b"\x89PNG\r\n\x1A\n", &png_len.to_be_bytes()[..], &chunk, &crc.to_be_bytes()].concat();
        for file in [zip, png] {
            let _ = unpack_base(&[3], &file, 1 << 20, &mut Vec::new());
            if let Some((unpacked, view)) = taken_apart(&file) {
                prop_assert!(packed_again(&unpacked.recipe, &view).expect("sound") == file);
            }
        }
    }
}
