//! Tests of views of xz and zstd streams: in files, in kernel images, behind archives, and within
//! each other. Needs `xz`, `gzip` and `mkfs.erofs`.

#![expect(clippy::disallowed_methods, reason = "a test may feed a pipe from a thread")]

use std::io::{Cursor, Write};
use std::process::{Command, Stdio};

use distd_core::cut::{ReadAt, RegionKind, Regions, regions};
use distd_core::patch::Cost;
use distd_core::patch::view::{
    Group, Joined, Layer, NoView, RecipeError, Unpacked, ViewLimits, cost, find, packs_again, repack, unpack,
    unpack_base, unpack_cost,
};
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

mod erofs_images;
use erofs_images::mkfs;

const VIEW_MAX: u64 = 1 << 30;

/// Returns `len` bytes that are like a program's: words that return, and numbers that grow.
fn content(len: usize, seed: u32) -> Vec<u8> {
    let (mut out, mut state) = (Vec::new(), seed);
    while out.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(format!("symbol_{:x} ", state >> 22).as_bytes());
        out.extend_from_slice(&[0xE8, (state >> 13) as u8, (state >> 19) as u8, 0, 0]);
        out.extend_from_slice(&(out.len() as u32 / 7).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Packs `data` with a program, which the system that runs these tests has.
fn packed_by(program: &str, options: &[&str], data: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-c")
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("these tests run {program}: install it ({error})"));
    let mut input = child.stdin.take().expect("piped");
    let data = data.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&data));
    let out = child.wait_with_output().expect("the program runs");
    writer.join().expect("no panic").expect("the program reads all");
    assert!(out.status.success(), "{program} {options:?}");
    out.stdout
}

fn xz(options: &[&str], data: &[u8]) -> Vec<u8> {
    packed_by("xz", options, data)
}

/// Packs `data` to one zstd frame with the library that is built in: another version makes other
/// bytes.
fn frame(parameters: &[CParameter], states_length: bool, data: &[u8]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).expect("a known parameter");
    }
    if states_length {
        context.set_pledged_src_size(Some(data.len() as u64)).expect("a new frame");
    }
    let mut out = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    let pieces: Vec<&[u8]> = data.chunks(1 << 17).collect();
    for (index, piece) in pieces.iter().enumerate() {
        let is_last = states_length && index + 1 == pieces.len();
        run(&mut context, piece, is_last, &mut buffer, &mut out);
    }
    if !states_length {
        run(&mut context, &[], true, &mut buffer, &mut out);
    }
    out
}

fn run(context: &mut CCtx<'_>, piece: &[u8], is_last: bool, buffer: &mut [u8], out: &mut Vec<u8>) {
    let end = if is_last { ZSTD_EndDirective::ZSTD_e_end } else { ZSTD_EndDirective::ZSTD_e_continue };
    let mut input = InBuffer::around(piece);
    loop {
        let mut output = OutBuffer::around(&mut *buffer);
        let left = context.compress_stream2(&mut output, &mut input, end).expect("packs");
        let made = output.pos();
        out.extend_from_slice(&buffer[..made]);
        if if is_last { left == 0 } else { input.pos() == piece.len() } {
            return;
        }
    }
}

fn taken_apart(file: &[u8]) -> Option<(Unpacked, Vec<u8>)> {
    let mut sink = Cursor::new(Vec::new());
    let unpacked = unpack(file, VIEW_MAX, &mut sink).expect("memory reads")?;
    let mut view = sink.into_inner();
    view.truncate(unpacked.view_bytes as usize);
    Some((unpacked, view))
}

/// Checks that a file comes back from its view, and that a device makes the same view of an old
/// file. Returns recipe and view.
fn comes_back(file: &[u8], what: &str) -> (Vec<u8>, Vec<u8>) {
    let (made, view) = taken_apart(file).unwrap_or_else(|| panic!("{what} has no view"));
    let mut out = Vec::new();
    let written = repack(&made.recipe, &mut &view[..], &mut out).expect("own recipe");
    assert!(out == file && written == file.len() as u64, "{what}");
    let (old, old_view) = old_of(file);
    let mut inflated = Vec::new();
    unpack_base(&old, file, VIEW_MAX, &mut inflated).expect("own recipe");
    assert!(inflated == view && old_view == view, "{what}: the old view is another");
    (made.recipe, view)
}

/// Makes unpack recipe and view of a file of an old release.
fn old_of(file: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (regions, mut sink) = (named(&[("f", file.len())]), Cursor::new(Vec::new()));
    let found = find(Layer::File, file, &regions, |_, _| true).expect("memory reads");
    let made = found.groups[0].unpack_old(file, VIEW_MAX, &mut sink).expect("memory reads");
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    (made.recipe, view)
}

fn named(files: &[(&str, usize)]) -> Regions {
    let regions = files.iter().map(|(name, len)| (*len as u64, RegionKind::File, Some(name.as_bytes())));
    Regions::from_parts(regions).expect("few regions")
}

#[test]
fn every_preset_filter_check_and_container_of_xz_comes_back() {
    let plain = content(140_000, 1);
    for (options, overhead) in [
        (&["-6"][..], 110),
        (&["-0"], 110),
        (&["-1"], 110),
        (&["-2"], 110),
        (&["-3"], 110),
        (&["-4"], 110),
        (&["-5"], 110),
        (&["-3e"], 110),
        (&["-5e"], 110),
        (&["-8e"], 110),
        (&["--check=none"], 110),
        (&["--check=sha256"], 140),
        (&["--check=crc32", "--lzma2=preset=6,dict=1MiB"], 110),
        (&["--check=crc32", "--x86", "--lzma2=preset=6,dict=1MiB"], 110),
        (&["--arm", "--lzma2=preset=3"], 110),
        (&["--delta=dist=4", "--lzma2=preset=6"], 110),
        (&["--lzma2=preset=6,lc=1,lp=2,pb=0"], 110),
        // Blocks with lengths in their headers, and without.
        (&["-T2", "--block-size=65536"], 200),
        (&["-T1", "--block-size=65536"], 200),
    ] {
        let file = xz(options, &plain);
        let (recipe, view) = comes_back(&file, &format!("xz {options:?}"));
        assert!(view == plain, "xz {options:?}");
        assert!(recipe.len() < overhead, "xz {options:?}: {} bytes", recipe.len());
    }
}

#[test]
fn streams_one_behind_the_other_and_their_padding_come_back() {
    let (first, second) = (content(90_000, 1), content(50_000, 2));
    let file = [xz(&["-6"], &first), vec![0; 8], xz(&["-2"], &second), vec![0; 3000]].concat();
    let (recipe, view) = comes_back(&file, "two streams");
    assert!(view == [first, second].concat() && recipe.len() < 220);
}

#[test]
fn streams_of_other_packers_and_of_too_long_dictionaries_have_no_view() {
    let plain = content(200_000, 1);
    assert!(taken_apart(&xz(&["--lzma2=preset=6,nice=100,mf=bt2"], &plain)).is_none());
    let mut file = xz(&["-6"], &plain);
    assert!(taken_apart(&file).is_some());
    // The dictionary stands behind the header of the stream, two bytes of the block's, and two of
    // the filter. 256 MiB, and the largest that there is.
    assert_eq!(file[14..17], [0x21, 1, 22]);
    for dictionary in [32, 40, 0xFF] {
        file[16] = dictionary;
        assert!(taken_apart(&file).is_none(), "{dictionary}");
    }
}

#[test]
fn a_view_is_made_only_within_the_memory_allowed_and_its_cost_is_stated() {
    let plain = content(200_000, 1);
    for (options, class) in [
        (&["--lzma2=preset=6,dict=1MiB"][..], 16 << 20),
        (&["-6"], 128 << 20),
        (&["-3"], 64 << 20),
        (&["--lzma2=preset=9"], 1 << 30),
    ] {
        let file = xz(options, &plain);
        let (made, _) = taken_apart(&file).expect("a view");
        let stated = cost(&made.recipe).expect("sound").memory();
        assert_eq!(stated, class, "xz {options:?}");
        let group = |memory| {
            let found = find(Layer::File, &file[..], &named(&[("f", file.len())]), |_, _| true);
            let group = found.expect("memory reads").groups.remove(0);
            let limits = ViewLimits { bytes: VIEW_MAX, memory };
            group.unpack(&file[..], limits, &mut Cursor::new(Vec::new())).expect("memory reads")
        };
        assert!(group(stated).files[0].is_ok());
        let refused = group(stated / 4);
        assert_eq!((refused.recipe.len(), &refused.files[0]), (0, &Err(NoView::NotReproduced)));
    }
    assert_eq!(cost(&[1]).expect("gzip's"), Cost::UNSTATED);
}

#[test]
fn a_bomb_ends_at_the_bound() {
    // A file of less than 4 KiB has no view anyway.
    let mut zeros: Vec<u8> =
        (0..8000u32).map(|n| (n.wrapping_mul(n | 1).wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    zeros.resize(30 << 20, 0);
    for bomb in [xz(&["-6"], &zeros), frame(&[CParameter::CompressionLevel(3)], true, &zeros)] {
        assert!((4096..20_000).contains(&bomb.len()), "{}", bomb.len());
        let mut sink = Cursor::new(Vec::new());
        assert_eq!(unpack(&bomb[..], 1 << 20, &mut sink).expect("memory reads"), None);
        assert!(sink.into_inner().len() <= 1 << 20);
        let (recipe, _) = old_of(&bomb);
        let mut out = Vec::new();
        let written = unpack_base(&recipe, &bomb[..], 1 << 20, &mut out).expect("memory reads");
        assert_eq!((written, out.len()), (1 << 20, 1 << 20));
    }
}

#[test]
fn frames_of_every_kind_of_packer_come_back() {
    let plain = content(1_300_000, 3);
    let level = CParameter::CompressionLevel;
    for (parameters, states_length) in [
        (&[level(3), CParameter::ChecksumFlag(true), CParameter::NbWorkers(1)][..], false),
        (&[level(9), CParameter::ChecksumFlag(true), CParameter::NbWorkers(1)], false),
        (&[level(9), CParameter::NbWorkers(2)], false),
        (&[level(19), CParameter::ChecksumFlag(true), CParameter::NbWorkers(1)], true),
        (&[level(1), CParameter::ChecksumFlag(true)], true),
        (&[level(-5), CParameter::ChecksumFlag(true)], true),
        (&[level(6)], false),
        (
            &[
                level(3),
                CParameter::EnableLongDistanceMatching(true),
                CParameter::WindowLog(27),
                CParameter::NbWorkers(1),
            ],
            false,
        ),
    ] {
        let what = format!("zstd {parameters:?} {states_length}");
        let file = frame(parameters, states_length, &plain);
        let (recipe, view) = comes_back(&file, &what);
        assert!(view == plain && recipe.len() < 40, "{what}: {} bytes", recipe.len());
    }
    let at_once = zstd::bulk::compress(&plain, 7).expect("packs");
    assert!(comes_back(&at_once, "one call").1 == plain);
}

#[test]
fn frames_between_frames_without_content_come_back() {
    let plain = content(100_000, 4);
    let one = frame(&[CParameter::CompressionLevel(3)], false, &plain);
    let skippable = [&[0x5E, 0x2A, 0x4D, 0x18, 40, 0, 0, 0][..], &[7; 40]].concat();
    let file = [one.clone(), skippable, one].concat();
    let (recipe, view) = comes_back(&file, "two frames");
    assert!(view == [plain.clone(), plain].concat() && recipe.len() < 100);
}

#[test]
fn a_frame_of_the_tool_comes_back_if_its_version_is_ours() {
    let Ok(version) = Command::new("zstd").arg("--version").output() else {
        eprintln!("NOT RUN: there is no zstd");
        return;
    };
    let ours = format!("v{}", zstd::zstd_safe::version_string());
    let is_ours = String::from_utf8_lossy(&version.stdout).contains(&ours);
    let plain = content(1_300_000, 5);
    for options in [&["-9"][..], &["-3"], &["-19"], &["--single-thread", "-12"], &["--long", "-6"]] {
        let file = packed_by("zstd", &[options, &["-q"]].concat(), &plain);
        match taken_apart(&file) {
            Some((made, view)) => {
                assert!(view == plain && packs_again(&made.recipe, &mut &view[..], &file[..]));
            }
            None => assert!(!is_ours, "zstd {options:?} {ours}"),
        }
    }
    if !is_ours {
        eprintln!("NOT RUN: zstd is not of version {ours}, which alone makes the same bytes");
    }
}

/// Returns a kernel image with a payload, as the boot protocol lays it out.
fn kernel(payload: &[u8]) -> Vec<u8> {
    let mut image = content(1024, 6);
    image[0x1F1] = 1;
    image[0x1FE..0x200].copy_from_slice(b"\x55\xAA");
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20Fu16.to_le_bytes());
    image[0x248..0x24C].copy_from_slice(&700u32.to_le_bytes());
    image[0x24C..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    image.extend(content(700, 7));
    image.extend_from_slice(payload);
    // The length of the content, and the rest of the program.
    image.extend_from_slice(&[0, 0, 8, 0]);
    image.extend(content(900, 8));
    image
}

#[test]
fn the_payload_of_a_kernel_image_is_unpacked_in_its_place() {
    let plain = content(300_000, 9);
    let payloads = [
        xz(&["--check=crc32", "--x86", "--lzma2=preset=6,dict=32MiB"], &plain),
        frame(&[CParameter::CompressionLevel(22), CParameter::NbWorkers(1)], false, &plain),
        packed_by("gzip", &["-n", "-9"], &plain),
    ];
    for payload in payloads {
        let image = kernel(&payload);
        let (_, view) = comes_back(&image, "a kernel");
        let start = 1024 + 700;
        assert!(view[..start] == image[..start] && view[start..].starts_with(&plain));
        // The four bytes behind a gzip member count as its padding.
        let behind = start + payload.len() + if payload.starts_with(&[0x1F, 0x8B]) { 4 } else { 0 };
        assert!(view.ends_with(&image[behind..]));
        assert_eq!(view.len(), start + plain.len() + image.len() - behind);
    }
    assert!(taken_apart(&kernel(&content(5000, 10))).is_none(), "nothing is packed");
    let mut damaged = kernel(&xz(&["-6"], &plain));
    damaged[0x24C..0x250].fill(0xFF);
    assert!(taken_apart(&damaged).is_none(), "the payload ends behind the file");
}

/// Returns a member of a cpio archive.
fn member(path: &str, data: &[u8]) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for n in 0..13 {
        let number = match n {
            6 => data.len(),
            11 => path.len() + 1,
            _ => 0,
        };
        out.extend_from_slice(format!("{number:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out: Vec<u8> = members.iter().flat_map(|(path, data)| member(path, data)).collect();
    out.extend(member("TRAILER!!!", b""));
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

#[test]
fn modules_in_an_initrd_are_views_within_a_view() {
    let options = &["--check=crc32", "--lzma2=preset=6,dict=1MiB"];
    let modules = [content(120_000, 11), content(90_000, 12)];
    let [one, other] = modules.each_ref().map(|plain| xz(options, plain));
    let early = archive(&[("kernel/x86/microcode/a.bin", &content(9000, 13)), ("lib/early.ko.xz", &one)]);
    let main = archive(&[("usr/bin/tool", &content(200_000, 14)), ("lib/late.ko.xz", &other)]);
    for behind in [
        frame(&[CParameter::CompressionLevel(9), CParameter::NbWorkers(1)], false, &main),
        packed_by("gzip", &["-n", "-6"], &main),
        main.clone(),
    ] {
        let initrd = [&early[..], &behind].concat();
        let (_, view) = comes_back(&initrd, "an initrd");
        assert!(view == [&early[..], &main].concat());
        // The second round finds the modules in the view of the first.
        let files = [(b"initrd".to_vec(), 0..view.len() as u64)];
        let parts = Layer::File.parts(&view[..], &files).expect("memory reads");
        let regions =
            Regions::from_parts(parts.iter().map(|(len, kind, name)| (*len, *kind, Some(&name[..]))));
        let regions = regions.expect("few regions");
        let found = find(Layer::File, &view[..], &regions, |_, _| true).expect("memory reads");
        let [group] = &found.groups[..] else { panic!("{:?}", found.groups) };
        let names: Vec<_> = group.files.iter().map(|file| String::from_utf8_lossy(&file.name)).collect();
        assert_eq!(names, ["initrd//lib/early.ko.xz", "initrd//lib/late.ko.xz"]);
        let mut sink = Cursor::new(Vec::new());
        let made = group.unpack(&view[..], VIEW_MAX, &mut sink).expect("memory reads");
        assert!(sink.into_inner() == modules.concat() && made.files.iter().all(Result::is_ok));
    }
    // An archive without anything packed is better without a view.
    assert!(taken_apart(&archive(&[("a", &content(20_000, 15))])).is_none());
}

/// Finds the groups of files that lie one behind the other.
fn groups(files: &[(&str, &[u8])]) -> (Vec<u8>, Vec<Group>) {
    let artifact: Vec<u8> = files.iter().flat_map(|(_, data)| data.iter().copied()).collect();
    let lens: Vec<(&str, usize)> = files.iter().map(|(name, data)| (*name, <[u8]>::len(data))).collect();
    let found = find(Layer::File, &artifact[..], &named(&lens), |_, _| true).expect("memory reads");
    (artifact, found.groups)
}

#[test]
fn short_files_of_one_dictionary_share_a_view_and_one_without_a_view_leaves_the_others() {
    let options = &["--check=crc32", "--lzma2=preset=6,dict=1MiB"];
    let plains = [content(60_000, 20), content(50_000, 21), content(70_000, 22)];
    let [a, b, c] = plains.each_ref().map(|plain| xz(options, plain));
    let foreign = xz(&["--lzma2=preset=6,dict=1MiB,nice=100,mf=bt2"], &plains[1]);
    let large_dictionary = xz(&["-6"], &plains[2]);
    let (artifact, groups) =
        groups(&[("a", &a), ("b", &foreign), ("c", &c), ("d", &large_dictionary), ("e", &b)]);
    let names = |group: &Group| group.files.iter().map(|file| file.name.clone()).collect::<Vec<_>>().concat();
    assert_eq!(groups.iter().map(names).collect::<Vec<_>>(), [b"abce".to_vec(), b"d".to_vec()]);
    let group = &groups[0];
    let mut sink = Cursor::new(Vec::new());
    let made = group.unpack(&artifact[..], VIEW_MAX, &mut sink).expect("memory reads");
    assert_eq!(made.files[1], Err(NoView::NotReproduced));
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    assert!(view == [&plains[0][..], &plains[2], &plains[1]].concat());
    let parts = made.parts(&group.files);
    let packed = Joined { artifact: &artifact[..], parts: &parts };
    assert!(packs_again(&made.recipe, &mut &view[..], &packed));
    // Each file costs some ninety bytes of recipe.
    assert!(made.recipe.len() < 280, "{}", made.recipe.len());

    // The old view has the file that the new one lacks: unpacking it needs no settings.
    let mut sink = Cursor::new(Vec::new());
    let old = group.unpack_old(&artifact[..], VIEW_MAX, &mut sink).expect("memory reads");
    assert!(old.files.iter().all(Result::is_ok));
    let parts = old.parts(&group.files);
    let packed = Joined { artifact: &artifact[..], parts: &parts };
    let mut inflated = Vec::new();
    unpack_base(&old.recipe, &packed, VIEW_MAX, &mut inflated).expect("own recipe");
    assert!(inflated == sink.into_inner());
    assert_eq!(unpack_cost(&old.recipe).expect("sound").memory(), 16 << 20);
    assert_eq!(packed.len(), (a.len() + foreign.len() + c.len() + b.len()) as u64);
}

#[test]
fn a_file_whose_last_bytes_lie_among_the_inodes_has_a_view() {
    // The tail of each file is shorter than a region may be.
    let is_short = |file: &Vec<u8>| (1..250).contains(&(file.len() % 4096)) && file.len() > 4096;
    let short = |seed| {
        let mut plains = (0..4000).map(|n| content(30_000 + 40 * n, seed));
        plains.find_map(|plain| {
            Some((xz(&["--lzma2=dict=1MiB"], &plain), plain)).filter(|(file, _)| is_short(file))
        })
    };
    let files: Vec<(Vec<u8>, Vec<u8>)> = [31, 32].into_iter().filter_map(short).collect();
    let dir = tempfile::tempdir().expect("temporary directory");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("mkdir");
    for (name, (file, _)) in ["a.ko.xz", "b.ko.xz"].iter().zip(&files) {
        std::fs::write(tree.join(name), file).expect("write");
    }
    let image = mkfs(&[], &tree, &dir.path().join("image"));
    let found = find(Layer::File, &image[..], &regions(&image[..]), |_, _| true).expect("memory reads");
    let [group] = &found.groups[..] else { panic!("{:?}", found.groups) };
    let plains: Vec<u8> = files.iter().flat_map(|(_, plain)| plain.clone()).collect();

    let mut sink = Cursor::new(Vec::new());
    let made = group.unpack(&image[..], VIEW_MAX, &mut sink).expect("memory reads");
    let view = sink.into_inner();
    assert!(made.files.iter().all(Result::is_ok) && view == plains);
    let parts = made.parts(&group.files);
    let packed = Joined { artifact: &image[..], parts: &parts };
    let whole: usize = files.iter().map(|(file, _)| file.len()).sum();
    assert!(packed.len() < whole as u64, "the tails have regions: {parts:?}");
    assert!(packs_again(&made.recipe, &mut &view[..], &packed));

    let mut sink = Cursor::new(Vec::new());
    let old = group.unpack_old(&image[..], VIEW_MAX, &mut sink).expect("memory reads");
    assert!(sink.into_inner() == plains);
    let mut inflated = Vec::new();
    unpack_base(&old.recipe, &packed, VIEW_MAX, &mut inflated).expect("own recipe");
    assert!(inflated == plains);
}

#[test]
fn recipes_that_ask_for_too_much_are_refused() {
    let view = content(5000, 1);
    let refused = |recipe: &[u8]| {
        let result = repack(recipe, &mut &view[..], &mut Vec::new());
        assert!(matches!(result, Err(RecipeError::Damaged(_))), "{recipe:?}: {result:?}");
        assert!(cost(recipe).is_err() || recipe[1] == 2, "{recipe:?}");
    };
    let lzma2 = |preset, properties, filters: &[u8]| [&[5, 2, 60, preset, properties][..], filters].concat();
    assert!(repack(&lzma2(6, 93, &[1, 0x21, 1, 16]), &mut &view[..], &mut Vec::new()).is_ok());
    refused(&lzma2(10, 93, &[1, 0x21, 1, 16])); // a preset that is not known
    refused(&lzma2(0x26, 93, &[1, 0x21, 1, 16]));
    refused(&lzma2(6, 255, &[1, 0x21, 1, 16])); // bits that LZMA does not take
    refused(&lzma2(6, 93, &[1, 0x21, 1, 32])); // a dictionary of 256 MiB
    refused(&lzma2(6, 93, &[1, 0x21, 1, 40]));
    refused(&lzma2(6, 93, &[0])); // no filter
    refused(&lzma2(6, 93, &[5, 4, 0, 4, 0, 4, 0, 4, 0, 0x21, 1, 16])); // too many
    refused(&lzma2(6, 93, &[2, 0x20, 0, 0x21, 1, 16])); // one that is not known
    refused(&[5, 3, 60, 63, 0, 0]); // level -32
    refused(&[5, 3, 60, 6, 0xFF, 0]); // flags
    refused(&[5, 3, 60, 6, 5, 0]); // a worker, and all in one call
    refused(&[5, 3, 60, 6, 0, 28]); // a window of 256 MiB
    refused(&[5, 9, 1]); // an unknown step
    // Packers of 1.7 GiB for a byte each.
    let many = [&[5][..], &[2, 1, 6, 93, 1, 0x21, 1, 30].repeat(100)].concat();
    refused(&many);
    // Numbers of four bytes; the longest tail that is cut has 4096 bytes.
    let number = |number: u32| (0x8000_0000 | number).to_be_bytes();
    let cut = |dropped| [&[5, 6, 0][..], &number(dropped), &[5, 1]].concat();
    assert!(cost(&cut(4096)).is_ok());
    refused(&cut(4097));
    // Zeros and content of more than 2 GiB.
    let zeros = [&[5][..], &number(1 << 29)].concat();
    assert!(cost(&[&[5][..], &zeros.repeat(4)].concat()).is_ok());
    refused(&[&[5][..], &zeros.repeat(5)].concat());
    assert!(unpack_cost(&[5, 2, 60, 1, 0x21, 1, 30]).is_ok_and(|cost| cost.memory() == 256 << 20));
    assert!(unpack_cost(&[5, 2, 60, 1, 0x21, 1, 32]).is_err() && unpack_cost(&[5, 3, 60, 28]).is_err());
}
