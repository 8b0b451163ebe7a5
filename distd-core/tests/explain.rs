//! Tests of explanations of real EROFS images, one rule each. Needs `mkfs.erofs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use distd_core::cut::{CutParams, regions};
use distd_core::explain::{Advice, Alone, Kind, Method, Options, PathCost, Report, explain};
use proptest::prelude::*;
use tempfile::TempDir;

mod erofs_images;
use erofs_images::{DIR, FILE, Files, Noise, directory, forged, inode, mkfs, try_mkfs};

fn explained(old: &[u8], new: &[u8]) -> Report {
    let (old_regions, new_regions) = (regions(old), regions(new));
    let report = explain((old, &old_regions), (new, &new_regions), Options::default(), &Alone);
    let report = report.expect("memory is readable");
    assert_sums(&report);
    report
}

/// Checks that every byte is counted exactly once, by kind and by path.
fn assert_sums(report: &Report) {
    for (raw, wire) in [
        report.kinds.iter().fold((0, 0), |sum, cost| (sum.0 + cost.raw_bytes, sum.1 + cost.wire_bytes)),
        report.paths.iter().fold((0, 0), |sum, cost| (sum.0 + cost.raw_bytes, sum.1 + cost.wire_bytes)),
    ] {
        assert_eq!((raw, wire), (report.raw_bytes, report.wire_bytes));
    }
}

/// Returns words, which compress about threefold.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = Noise(seed);
    let mut out = Vec::with_capacity(len + 32);
    while out.len() < len {
        out.extend_from_slice(format!("{} ", noise.next() % 60 * 7919 * 104_729).as_bytes());
    }
    out.truncate(len);
    out
}

fn files(list: &[(&str, Vec<u8>)]) -> Files {
    list.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect()
}

struct Lab(TempDir);

impl Lab {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }

    fn tree(&self, files: &Files) -> PathBuf {
        let tree = self.0.path().join("tree");
        if tree.exists() {
            fs::remove_dir_all(&tree).expect("writable");
        }
        for (path, bytes) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
            fs::write(path, bytes).expect("writable");
        }
        tree
    }

    fn image(&self, options: &[&str], files: &Files) -> Vec<u8> {
        mkfs(options, &self.tree(files), &self.0.path().join("image"))
    }
}

fn kinds(report: &Report) -> BTreeMap<Kind, u64> {
    report.kinds.iter().map(|cost| (cost.kind, cost.wire_bytes)).collect()
}

fn of<'r>(report: &'r Report, path: &str) -> Vec<&'r PathCost> {
    report.paths.iter().filter(|cost| cost.path.as_deref() == Some(path.as_bytes())).collect()
}

/// Returns the bytes the hint saves; `None` without such a hint.
fn saved(report: &Report, advice: Advice) -> Option<u64> {
    report.hints.iter().find(|hint| hint.advice == advice).map(|hint| hint.saves_bytes)
}

#[test]
fn files_are_new_changed_or_renamed() {
    let lab = Lab::new();
    let mut changed = Noise(2).bytes(200_000);
    let mut versioned = Noise(3).bytes(200_000);
    let tool = Noise(6).bytes(300_000);
    let old = files(&[
        ("same", Noise(1).bytes(200_000)),
        ("etc/changed", changed.clone()),
        ("etc/tiny", b"x".to_vec()),
        ("lib/libx.so.1.2.3", versioned.clone()),
        ("opt/elsewhere", tool.clone()),
        ("was/here", Noise(4).bytes(70_000)),
    ]);
    changed[50_000..50_010].fill(0);
    versioned[..190_000].copy_from_slice(&Noise(7).bytes(190_000));
    let mut other = tool;
    other[..10].fill(0);
    let new = files(&[
        ("same", Noise(1).bytes(200_000)),
        ("etc/changed", changed),
        ("etc/tiny", Noise(8).bytes(20_000)),
        ("lib/libx.so.1.3", versioned),
        ("bin/tool", other),
        ("is/there", Noise(4).bytes(70_000)),
        ("new", Noise(5).bytes(60_000)),
    ]);
    let report = explained(&lab.image(&[], &old), &lab.image(&[], &new));
    let kind = |path: &str| match of(&report, path)[..] {
        [cost] => (cost.kind, cost.old_path.as_deref().map(|old| String::from_utf8_lossy(old).into_owned())),
        ref costs => panic!("{path}: {costs:?}"),
    };
    assert_eq!(kind("etc/changed"), (Kind::Changed, None));
    // The file is too small for a region of its own, so only the directories name it.
    assert_eq!(kind("etc/tiny"), (Kind::Changed, None));
    assert_eq!(kind("new"), (Kind::New, None));
    assert_eq!(kind("lib/libx.so.1.3"), (Kind::Renamed, Some("lib/libx.so.1.2.3".into())));
    assert_eq!(kind("bin/tool"), (Kind::Renamed, Some("opt/elsewhere".into())));
    for path in ["same", "is/there"] {
        assert!(of(&report, path).is_empty(), "{path}");
    }
    assert_eq!((report.moved.files, report.moved.bytes / 4096), (1, 70_000 / 4096));
    assert!(of(&report, "etc/changed")[0].raw_bytes < 150_000, "only the chunks that differ");
    assert_eq!(saved(&report, Advice::SameContent), Some(of(&report, "lib/libx.so.1.3")[0].wire_bytes));
    assert_eq!(saved(&report, Advice::NoCompressedFiles), None);
}

/// Makes an image that keeps the times of its files, as builds without a fixed time do.
fn dated(lab: &Lab, files: &Files, seconds: u64) -> Vec<u8> {
    let tree = lab.tree(files);
    let dirs = (0..7).map(|n| format!("d{n}")).chain([".".to_owned()]);
    for path in files.keys().cloned().chain(dirs) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds + path.len() as u64);
        let times = fs::FileTimes::new().set_modified(time);
        fs::OpenOptions::new()
            .read(true)
            .open(tree.join(path))
            .and_then(|file| file.set_times(times))
            .expect("ours");
    }
    let image = lab.0.path().join("image");
    let output = Command::new("mkfs.erofs")
        .args(["-U11111111-2222-3333-4444-555555555555", "-Eforce-inode-extended", "--preserve-mtime"])
        .args([&image, &tree])
        .output()
        .expect("mkfs.erofs");
    assert!(output.status.success(), "{output:?}");
    fs::read(image).expect("an image")
}

fn many_small() -> Files {
    (0..1000u64).map(|n| (format!("d{}/file-{n}", n % 7), text(n, 5 + (n % 100) as usize))).collect()
}

#[test]
fn times_are_noise_and_counted_by_inode() {
    let lab = Lab::new();
    let mut files = many_small();
    files.insert("d0/body".into(), Noise(1).bytes(5000));
    let (old, new) = (dated(&lab, &files, 1_600_000_000), dated(&lab, &files, 1_700_000_000));
    let report = explained(&old, &new);
    let kinds = kinds(&report);
    assert!(kinds[&Kind::Times] * 10 > report.wire_bytes * 9, "{kinds:?}");
    let times = report.times.expect("inodes");
    assert!(times.inodes >= 1008 && times.differ_only_in_time >= 1000, "{times:?}");
    assert_eq!(saved(&report, Advice::FixTimes), Some(kinds[&Kind::Times]));
    let hint = report.hints.iter().find(|hint| hint.advice == Advice::FixTimes).expect("a hint");
    assert_eq!(hint.method, Method::Measured);

    // One file has another length, the other has other content of the same length. Both inodes
    // differ in more than their time.
    let mut changed = files.clone();
    changed.insert("d1/file-1".into(), Noise(1).bytes(100));
    changed.insert("d0/body".into(), Noise(2).bytes(5000));
    let again = explained(&old, &dated(&lab, &changed, 1_700_000_000));
    assert_eq!(again.times.expect("inodes").differ_only_in_time, times.differ_only_in_time - 2);

    let same = explained(&old, &dated(&lab, &files, 1_600_000_000));
    // Only the superblock states when the image was made.
    assert_eq!(same.times.expect("inodes").differ, 0);
    assert!(same.chunks <= 1, "{:?}", same.kinds);
}

#[test]
fn a_file_in_front_moves_addresses_and_that_is_no_noise_of_times() {
    let lab = Lab::new();
    let mut files = many_small();
    files.insert("z/body".into(), Noise(1).bytes(100_000));
    for n in 0..200 {
        files.insert(format!("y/{n}"), Noise(n).bytes(5000));
    }
    let old = lab.image(&[], &files);
    files.insert("a".into(), Noise(2).bytes(30_000));
    let report = explained(&old, &lab.image(&[], &files));
    let kinds = kinds(&report);
    assert!(kinds[&Kind::Metadata] > 2000 && !kinds.contains_key(&Kind::Times), "{kinds:?}");
    assert!(saved(&report, Advice::MovedData).is_some_and(|bytes| bytes > 1000), "{:?}", report.metadata);
    assert_eq!(saved(&report, Advice::FixIdentity), None);
}

#[test]
fn another_uuid_is_a_hint_of_its_own() {
    let lab = Lab::new();
    let files = many_small();
    let old = lab.image(&[], &files);
    // mkfs uses the last of two equal options.
    let new = lab.image(&["-U22222222-2222-3333-4444-555555555555"], &files);
    let report = explained(&old, &new);
    assert_eq!(kinds(&report).keys().collect::<Vec<_>>(), [&Kind::Metadata]);
    assert_eq!(saved(&report, Advice::FixIdentity), Some(report.wire_bytes));
}

#[test]
fn clusters_of_unchanged_content_count_as_compression() {
    let lab = Lab::new();
    for options in [&["-zlz4"][..], &["-zlz4hc", "-C65536"], &["-zzstd"], &["-zdeflate"]] {
        let body = text(1, 2_000_000);
        let old = files(&[("log", body.clone()), ("other", text(2, 100_000))]);
        let image = lab.0.path().join("image");
        let Ok(before) = try_mkfs(options, &lab.tree(&old), &image) else {
            eprintln!("not offered here: {options:?}");
            continue;
        };
        // One more line at the front changes the bytes of every cluster behind it.
        let mut longer = b"a line more\n".to_vec();
        longer.extend_from_slice(&body);
        let algorithms = if before[1024 + 80] & 2 == 0 { 1 } else { before[1024 + 84] };
        assert!(options[0].starts_with("-zlz4") || algorithms != 1, "{options:?}: lz4 after all");
        let new = files(&[("log", longer), ("other", text(2, 100_000))]);
        let report = explained(&before, &lab.image(options, &new));
        let uncompressed = report.uncompressed.expect("something compressed differs");
        assert_eq!((uncompressed.files, uncompressed.files_not_unpacked), (1, 0), "{options:?}");
        let kinds = kinds(&report);
        assert!(kinds[&Kind::Compression] * 10 > report.wire_bytes * 8, "{options:?}: {kinds:?}");
        let log: u64 = of(&report, "log").iter().map(|cost| cost.wire_bytes).sum();
        assert!(log * 10 > report.wire_bytes * 8);
        assert_eq!(saved(&report, Advice::NoCompression), Some(report.wire_bytes - uncompressed.wire_bytes));
        // The stated cost is the measured cost.
        let plain = explained(&lab.image(&[], &old), &lab.image(&[], &new));
        let file: u64 = of(&plain, "log").iter().map(|cost| cost.wire_bytes).sum();
        let said: u64 = log - kinds[&Kind::Compression];
        assert!(said.abs_diff(file) < 8192, "{options:?}: {said} for {file}");
    }
}

#[test]
fn new_content_costs_its_own_bytes_and_only_worse_packing_counts_as_compression() {
    let lab = Lab::new();
    let old = files(&[("log", text(1, 500_000))]);
    let new = files(&[("log", text(9, 500_000))]);
    let report = explained(&lab.image(&["-zlz4"], &old), &lab.image(&["-zlz4"], &new));
    let kinds = kinds(&report);
    let plain = explained(&lab.image(&[], &old), &lab.image(&[], &new));
    let file = of(&plain, "log")[0].wire_bytes;
    assert!(kinds[&Kind::Changed].abs_diff(file) < 8192, "{kinds:?} for {file}");
    assert!(kinds[&Kind::Compression] * 2 < report.wire_bytes, "{kinds:?}");
}

#[test]
fn ends_packed_together_are_fragments() {
    let lab = Lab::new();
    let mut files: Files = (0..200).map(|n| (format!("f{n}"), text(n, 6000))).collect();
    let options = &["-zlz4", "-Eall-fragments"];
    let Ok(old) = try_mkfs(options, &lab.tree(&files), &lab.0.path().join("image")) else {
        eprintln!("not offered here: {options:?}");
        return;
    };
    if old[1024 + 80] & 0x20 == 0 {
        // Old versions ignore options they do not know.
        eprintln!("not offered here: {options:?}");
        return;
    }
    files.insert("f100".into(), text(1000, 6500));
    let report = explained(&old, &lab.image(options, &files));
    let kinds = kinds(&report);
    assert!(kinds[&Kind::Fragments] * 2 > report.wire_bytes, "{kinds:?}");
    assert_eq!(saved(&report, Advice::NoFragments), Some(kinds[&Kind::Fragments]));
    // Once unpacked, all other files are found in the old image.
    let uncompressed = report.uncompressed.expect("measured");
    assert!(uncompressed.files >= 200 && uncompressed.files_not_unpacked == 0, "{uncompressed:?}");
    assert!(uncompressed.wire_bytes < kinds[&Kind::Fragments], "{uncompressed:?} {kinds:?}");
}

#[test]
fn a_compressed_file_that_changed_from_end_to_end_is_named() {
    let lab = Lab::new();
    let tree = |seed| {
        files(&[
            ("boot/initrd.img-6.1", Noise(seed).bytes(300_000)),
            ("usr/a.ko.xz", Noise(seed + 1).bytes(100_000)),
            // The first file compresses, whatever its name says. The second changes but has another
            // name. The third does not change.
            ("usr/words.gz", text(seed, 100_000)),
            ("usr/random", Noise(seed + 2).bytes(100_000)),
            ("usr/same.gz", Noise(0).bytes(100_000)),
        ])
    };
    let report = explained(&lab.image(&[], &tree(10)), &lab.image(&[], &tree(20)));
    let hint = report.hints.iter().find(|hint| hint.advice == Advice::NoCompressedFiles).expect("a hint");
    assert_eq!(hint.paths, [&b"boot/initrd.img-6.1"[..], b"usr/a.ko.xz"]);
    assert_eq!(hint.method, Method::AtMost);
    assert!(hint.saves_bytes.abs_diff(400_000) < 10_000, "{}", hint.saves_bytes);
}

#[test]
fn content_that_no_reader_knows_is_unknown() {
    let (mut old, new) = (Noise(1).bytes(300_000), Noise(1).bytes(300_000));
    old[100_000..150_000].fill(7);
    let report = explained(&old, &new);
    assert_eq!(kinds(&report).keys().collect::<Vec<_>>(), [&Kind::Unknown]);
    assert!(report.raw_bytes < 200_000 && report.times.is_none() && report.hints.is_empty());
    let nothing = explained(&new, &new);
    assert_eq!((nothing.chunks, nothing.paths.len(), nothing.wire_bytes), (0, 0, 0));
}

#[test]
fn a_content_that_unfolds_without_end_is_not_unpacked() {
    // A file of 1 TiB in a hole costs nothing. A compressed file that claims this size has no index
    // behind it.
    let root = directory(&[("f", 129, 1)]);
    let mut bomb = inode(FILE, 3, u32::MAX, 17);
    bomb[4..6].copy_from_slice(&FILE.to_le_bytes());
    let image = forged(&[inode(DIR, 0, root.len() as u32, 16), bomb], &[root, vec![1; 4096]]);
    explained(&[0; 5000], &image);
    explained(&image, &image[..image.len() - 1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Damage may remove names from an image, but never changes the sums.
    #[test]
    fn damage_never_breaks_the_sums(seed: u64, places in prop::collection::vec((0.0f64..1.0, any::<u8>()), 1..20)) {
        thread_local! {
            static IMAGES: Vec<Vec<u8>> = {
                let lab = Lab::new();
                let mut files = many_small();
                files.insert("z".into(), text(1, 300_000));
                [&[][..], &["-zlz4"], &["-zlz4", "-Eztailpacking"]].map(|o| lab.image(o, &files)).into()
            };
        }
        IMAGES.with(|images| {
            let image = &images[seed as usize % images.len()];
            let mut damaged = image.clone();
            for (place, byte) in places {
                let at = 1024 + (place * place * (image.len() - 1024) as f64) as usize;
                damaged[at] = byte;
            }
            explained(image, &damaged);
            explained(&damaged, image);
        });
    }
}

#[test]
fn other_sizes_and_levels_are_taken() {
    let (old, new) = (text(1, 100_000), text(2, 100_000));
    let small = CutParams::new(256, 1024, 4096).expect("valid");
    let sizes = [CutParams::default(), small].map(|params| {
        let options = Options { params, level: 3 };
        let report = explain((&old, &regions(&old)), (&new, &regions(&new)), options, &Alone);
        report.expect("memory is readable").chunks
    });
    assert!(sizes[1] > 4 * sizes[0], "{sizes:?}");
}
