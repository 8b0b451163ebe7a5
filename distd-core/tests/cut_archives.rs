//! Tests of the regions of archives and gzip files: compared with naive models, and on archives of
//! tar and gzip.

use std::fs;
use std::path::Path;
use std::process::Command;

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, RegionKind, Regions, regions};
use distd_core::patch::view::parts;
use proptest::prelude::*;
use tempfile::TempDir;

mod erofs_images;
use erofs_images::{Noise, assert_covers};

type Members = Vec<(String, Vec<u8>)>;

fn padded(mut bytes: Vec<u8>, to: usize) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
    bytes
}

fn cpio_header(path: &str, size: usize) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for n in 0..13 {
        let number = match n {
            6 => size,
            11 => path.len() + 1,
            _ => 0,
        };
        out.extend_from_slice(format!("{number:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    padded(out, 4)
}

fn tar_header(path: &str, size: usize) -> Vec<u8> {
    let mut out = vec![0; 512];
    out[..path.len()].copy_from_slice(path.as_bytes());
    out[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    out[148..156].copy_from_slice(b"        ");
    out[156] = b'0';
    out[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = out.iter().map(|byte| u64::from(*byte)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Cpio,
    Tar,
}

impl Format {
    fn header(self, path: &str, size: usize) -> Vec<u8> {
        match self {
            Self::Cpio => cpio_header(path, size),
            Self::Tar => tar_header(path, size),
        }
    }

    fn block(self) -> usize {
        match self {
            Self::Cpio => 4,
            Self::Tar => 512,
        }
    }

    fn end(self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Cpio => ("TRAILER!!!", cpio_header("TRAILER!!!", 0)),
            Self::Tar => ("", vec![0; 1024]),
        }
    }

    fn archive(self, members: &Members) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, data) in members {
            out.extend(self.header(path, data.len()));
            out.extend(padded(data.clone(), self.block()));
        }
        out.extend(self.end().1);
        out
    }

    /// Returns the regions of its archive with `zeros` zero bytes behind it.
    fn model(self, members: &Members, zeros: usize) -> Vec<(u64, RegionKind, String)> {
        let (mut out, mut open) = (Vec::new(), 0);
        for (path, data) in members {
            open += self.header(path, data.len()).len();
            let padding = data.len().next_multiple_of(self.block()) - data.len();
            if data.len() < 256 {
                open += data.len() + padding;
                continue;
            }
            out.push((open as u64, RegionKind::Metadata, format!("{path}//")));
            out.push((data.len() as u64, RegionKind::File, path.clone()));
            open = padding;
        }
        let (name, end) = self.end();
        out.push(((open + end.len() + zeros) as u64, RegionKind::Metadata, format!("{name}//")));
        out
    }
}

fn listed(regions: &Regions) -> Vec<(u64, RegionKind, String)> {
    let name = |region| String::from_utf8_lossy(regions.name(region).unwrap_or_default()).into_owned();
    regions.all().iter().map(|region| (region.len, region.kind, name(region))).collect()
}

/// Archive members with relative names, which come back unchanged.
fn members() -> impl Strategy<Value = Members> {
    let data = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 1..300),
        (256usize..5000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ];
    prop::collection::vec(("[a-z]{1,8}(/[a-z.]{1,20}){0,3}", data), 0..12)
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Cpio), Just(Format::Tar)]
}

proptest! {
    #[test]
    fn concatenated_archives_have_the_regions_of_the_model(
        archives in prop::collection::vec((format(), members(), 0usize..5), 1..4), rest in any::<bool>(),
    ) {
        let (mut bytes, mut want) = (Vec::new(), Vec::new());
        for (format, members, zeros) in &archives {
            // A tar without members is only zeros, and an artifact does not start with the end of
            // an archive.
            if matches!(format, Format::Tar) && members.is_empty() {
                continue;
            }
            let zeros = zeros * 4;
            bytes.extend(format.archive(members));
            bytes.resize(bytes.len() + zeros, 0);
            want.extend(format.model(members, zeros));
        }
        if rest && !bytes.is_empty() {
            bytes.extend(b"something else");
            want.push((14, RegionKind::Plain, String::new()));
        }
        let found = regions(&bytes);
        assert_covers(&found, bytes.len(), "archives");
        prop_assert_eq!(listed(&found), want);
        // In a view, archives have the same borders, and borders around the header of each file.
        let inside = parts(&bytes, 0..bytes.len() as u64, b"v").expect("memory reads");
        prop_assert_eq!(inside.iter().map(|(len, ..)| len).sum::<u64>(), bytes.len() as u64);
        for (_, members, _) in &archives {
            for (path, data) in members.iter().filter(|(_, data)| !data.is_empty()) {
                let name = format!("v//{path}").into_bytes();
                prop_assert!(inside.contains(&(data.len() as u64, RegionKind::File, name)));
            }
        }
    }

    #[test]
    fn an_archive_that_ends_early_is_one_plain_region(
        format in format(), members in members(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = format.archive(&members);
        // Any cut removes at least a part of the archive's end. Half of a tar's end is still an
        // end.
        let sound = bytes.len() - if matches!(format, Format::Tar) { 512 } else { 0 };
        bytes.truncate(cut.index(sound));
        prop_assert_eq!(regions(&bytes), Regions::plain(bytes.len() as u64));
    }

    #[test]
    fn damage_anywhere_leaves_regions_that_cover(
        format in format(), members in members(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = format.archive(&members);
        let len = bytes.len();
        bytes[at.index(len)] = byte;
        assert_covers(&regions(&bytes), len, "damaged");
    }
}

fn tar(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").args(arguments).args(["-cf", "-", "-C"]).arg(dir).arg(".").output();
    let output = output.expect("tar is on every system these tests run on");
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn every_file_of_a_tar_archive_has_its_region_whatever_its_name() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut noise = Noise(3);
    let deep = format!("{}/{}", "d".repeat(90), "e".repeat(120));
    let names = ["plain", ".hidden", "sub/file", "with space/ä", &format!("{deep}/{}", "f".repeat(200))];
    for name in names {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        let len = 300 + (noise.next() % 9000) as usize;
        fs::write(path, noise.bytes(len)).expect("writable");
    }
    fs::write(dir.path().join("small"), "too short for a region").expect("writable");
    std::os::unix::fs::symlink("x".repeat(300), dir.path().join("link")).expect("link");
    for arguments in [&["--format=gnu"][..], &["--format=pax"], &["--format=posix", "--xattrs"]] {
        let bytes = tar(dir.path(), arguments);
        let found = regions(&bytes);
        assert_covers(&found, bytes.len(), "tar");
        assert_eq!(found.all().iter().filter(|region| region.kind == RegionKind::File).count(), names.len());
        for name in names {
            let data = fs::read(dir.path().join(name)).expect("readable");
            let region = found.all().iter().find(|region| found.name(region) == Some(name.as_bytes()));
            let region = region.unwrap_or_else(|| panic!("{arguments:?}: no region for {name}"));
            assert!(bytes[region.start as usize..region.end() as usize] == data, "{arguments:?}: {name}");
        }
    }
}

fn gzip(dir: &Path, name: &str, data: &[u8], arguments: &[&str]) -> Vec<u8> {
    fs::write(dir.join(name), data).expect("writable");
    let output =
        Command::new("gzip").args(arguments).arg("-c").arg(dir.join(name)).output().expect("run gzip");
    assert!(output.status.success());
    output.stdout
}

#[test]
fn each_member_of_a_gzip_file_is_a_region_and_an_initrd_has_all_of_it() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut noise = Noise(4);
    let text: Vec<u8> = (0..90_000).map(|_| b'a' + (noise.next() % 7) as u8).collect();
    let one = gzip(dir.path(), "one.txt", &text, &["-9"]);
    let two = gzip(dir.path(), "two", &text[..20_000], &["-n"]);
    let file = |bytes: &[u8], name: &str| (bytes.len() as u64, RegionKind::File, name.to_owned());
    let rest = |len| (len, RegionKind::Plain, String::new());

    let both = [&one[..], &two].concat();
    assert_eq!(listed(&regions(&both)), [file(&one, "one.txt"), file(&two, "one.txt")]);
    assert_eq!(listed(&regions(&two)), [file(&two, "gzip-1")]);
    // The files end at a member that is damaged, cut off, or states a wrong length.
    let mut bad = both.clone();
    *bad.last_mut().expect("not empty") ^= 1;
    assert_eq!(listed(&regions(&bad)), [file(&one, "one.txt"), rest(two.len() as u64)]);
    assert_eq!(regions(&one[..one.len() - 1]), Regions::plain(one.len() as u64 - 1));
    assert_eq!(regions(&vec![0u8; 10_000]), Regions::plain(10_000));

    let early: Members = vec![("kernel".into(), Vec::new()), ("kernel/ucode.bin".into(), vec![9; 5000])];
    let initrd = [Format::Cpio.archive(&early), vec![0; 508], two.clone(), vec![0; 100]].concat();
    let mut want = Format::Cpio.model(&early, 508);
    want.extend([file(&two, "gzip-1"), rest(100)]);
    assert_eq!(listed(&regions(&initrd)), want);
    // A main archive of an unknown compressor is one region behind the early archive.
    let initrd = [Format::Cpio.archive(&early), vec![0; 508], noise.bytes(3000)].concat();
    let mut want = Format::Cpio.model(&early, 508);
    want.push(rest(3000));
    assert_eq!(listed(&regions(&initrd)), want);
}

#[test]
fn a_bomb_is_given_up_and_is_one_plain_region() {
    let dir = TempDir::new().expect("a temporary directory");
    let bomb = gzip(dir.path(), "bomb", &vec![0; 80 << 20], &["-9"]);
    assert_eq!(regions(&bomb), Regions::plain(bomb.len() as u64));
}

/// Returns hash and length of each chunk.
fn chunks(bytes: &[u8]) -> Vec<(ChunkHash, u64)> {
    let found = regions(bytes);
    let mut batches = Batches::new(bytes, found.all(), CutParams::default());
    let mut out = Vec::new();
    while let Some(batch) = batches.next_batch(Vec::new()).expect("memory reads") {
        out.extend(batch.chunks().map(|chunk| (ChunkHash::of(chunk.data), chunk.data.len() as u64)));
    }
    out
}

#[test]
fn a_file_that_moves_within_an_archive_costs_its_header() {
    let mut noise = Noise(5);
    let mut members: Members =
        (0..60).map(|n| (format!("dir/file-{n}"), noise.bytes(700 + 113 * n))).collect();
    for format in [Format::Cpio, Format::Tar] {
        let old = chunks(&format.archive(&members));
        let moved = members.remove(40);
        members.insert(3, moved);
        let fresh: u64 = chunks(&format.archive(&members))
            .iter()
            .filter(|chunk| !old.contains(chunk))
            .map(|(_, len)| len)
            .sum();
        // Padding belongs to the header behind it. Three are new: the header of the moved file, and
        // those of the two files it moved between.
        assert!(fresh <= 3 * (512 + 600), "{format:?}: {fresh}");
    }
}
