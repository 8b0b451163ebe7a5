//! Tests of regions of disk images, FAT file systems and unified kernel images made by the real
//! tools, whole and damaged.

use std::fs::{self, File};
use std::io::{Cursor, Write as _};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use distd_core::cut::{Joined, RegionKind, Regions, regions, volumes};
use distd_core::patch::view::{Layer, find, packs_again};
use proptest::prelude::*;
use tempfile::TempDir;

mod disk_images;
mod erofs_images;
use disk_images::{MIB, Part, fat, files_of, gpt, has, named, put, run, uki};
use erofs_images::{Files, Noise, assert_covers, mkfs};

const TOOLS: [&str; 5] = ["sgdisk", "sfdisk", "mkfs.vfat", "mcopy", "objcopy"];

fn has_tools() -> bool {
    TOOLS.iter().all(|tool| has(tool))
}

/// Makes an EROFS image of files whose content depends on `seed`.
fn erofs(dir: &TempDir, name: &str, seed: u64, options: &[&str]) -> Vec<u8> {
    let tree = dir.path().join(format!("{name}-tree"));
    let mut noise = Noise(seed);
    let mut files = Files::new();
    for index in 0..20 {
        let len = 3000 + (noise.next() % 60_000) as usize;
        let words: Vec<u8> = noise.bytes(len / 8).iter().flat_map(|byte| [b'a' + byte % 16; 8]).collect();
        files.insert(format!("usr/lib/file-{index}"), words);
    }
    for (path, bytes) in &files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
    mkfs(options, &tree, &dir.path().join(name))
}

/// Regions as tuples, from `start` on in an artifact.
fn listed(found: &Regions, start: u64, end: u64) -> Vec<(u64, u64, RegionKind, Option<Vec<u8>>)> {
    let inside = found.all().iter().filter(|region| region.start >= start && region.end() <= end);
    inside
        .map(|region| (region.start - start, region.len, region.kind, found.name(region).map(<[u8]>::to_vec)))
        .collect()
}

#[test]
fn partitions_of_a_gpt_are_cut_as_they_are_alone() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    for options in [&[][..], &["-zlz4hc", "-C65536"]] {
        let image = erofs(&dir, "root", 1, options);
        let esp = fat(&dir.path().join("esp"), 16, 9 * MIB, &[("EFI/BOOT/BOOTX64.EFI", &[7; 5000])]);
        let parts = [
            Part { kind: "ef00", label: "EFI System", at: 1, len: 9, bytes: &esp },
            Part { kind: "8304", label: "root-1.2", at: 10, len: 4, bytes: &image },
            Part { kind: "8300", label: "state", at: 14, len: 2, bytes: b"no file system" },
        ];
        let mut disk = gpt(&dir.path().join("disk"), 20, &parts);
        let found = regions(&disk[..]);
        assert_covers(&found, disk.len(), "a disk");
        let alone = regions(&image[..]);
        let expected: Vec<_> = listed(&alone, 0, image.len() as u64)
            .into_iter()
            .map(|(start, len, kind, name)| {
                (start, len, kind, name.map(|name| [&b"root///"[..], &name].concat()))
            })
            .collect();
        let inside = listed(&found, 10 * MIB, 10 * MIB + image.len() as u64);
        // The last region of the partition goes on behind the image.
        assert_eq!(inside[..], expected[..inside.len()]);
        assert!(inside.len() + 1 >= expected.len());
        let files = named(&disk, &found);
        assert_eq!(files["esp///EFI/BOOT/BOOTX64.EFI"], [7; 5000]);
        assert_eq!(files["state///"].len() as u64, 2 * MIB);
        // The copy of the table at the end serves when the first one is damaged.
        for at in [512, 1100] {
            let before = disk[at];
            disk[at] ^= 1;
            assert_eq!(regions(&disk[..]), found, "{at}");
            disk[at] = before;
        }
        disk[512] ^= 1;
        let end = disk.len();
        disk[end - 512] ^= 1;
        assert_eq!(regions(&disk[..]), Regions::plain(disk.len() as u64));
    }
}

#[test]
fn views_of_clusters_are_made_inside_partitions() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let image = erofs(&dir, "root", 1, &["-zlz4hc", "-C65536"]);
    let parts = [Part { kind: "8300", label: "root", at: 3, len: 4, bytes: &image }];
    let disk = gpt(&dir.path().join("disk"), 9, &parts);
    let view = |artifact: &[u8]| {
        let regions = regions(artifact);
        let found = find(Layer::Image, artifact, &regions, |_, _| true).expect("memory reads");
        assert_eq!((found.groups.len(), found.without.len()), (1, 0));
        let mut sink = Cursor::new(Vec::new());
        let made = found.groups[0].unpack(artifact, 1 << 30, &mut sink).expect("memory reads");
        let parts = made.parts(&found.groups[0].files);
        let view = sink.into_inner();
        assert!(packs_again(&made.recipe, &mut &view[..], &Joined { artifact, parts: &parts }));
        let names: Vec<_> = found.groups[0].files.iter().map(|file| file.name.clone()).collect();
        (names, view, made.recipe)
    };
    let (alone, inside) = (view(&image), view(&disk));
    assert!(alone.0.len() > 10);
    let expected: Vec<_> = alone.0.iter().map(|name| [&b"root///"[..], name].concat()).collect();
    assert_eq!(inside, (expected, alone.1, alone.2));
}

#[test]
fn names_survive_moved_partitions_swapped_slots_and_new_versions() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let (one, two) = (erofs(&dir, "one", 1, &[]), erofs(&dir, "two", 2, &[]));
    let names = |parts: &[Part<'_>]| -> Vec<String> {
        let disk = gpt(&dir.path().join("disk"), 20, parts);
        volumes(&disk[..]).into_iter().map(|volume| String::from_utf8(volume.prefix).expect("text")).collect()
    };
    let slot = |label, at, bytes| Part { kind: "8300", label, at, len: 4, bytes };
    let data = || slot("data", 1, &two[..]);
    assert_eq!(names(&[slot("root-1.2", 5, &one[..])]), ["root///"]);
    assert_eq!(names(&[data(), slot("root-1.3", 9, &two[..])]), ["data///", "root///"]);
    // The system is in slot a, then in slot b.
    assert_eq!(names(&[slot("root_a", 5, &one[..]), slot("root_b", 10, &[])]), ["root///", "root~2///"]);
    assert_eq!(names(&[slot("root_a", 5, &[]), slot("root_b", 10, &two[..])]), ["root~2///", "root///"]);
    // Numbers follow versions, not places.
    let slots = [slot("root-1.10", 5, &two[..]), slot("root-1.9", 10, &one[..])];
    assert_eq!(names(&slots), ["root~2///", "root///"]);
}

#[test]
fn a_dos_table_and_its_logical_partitions_are_read() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let image = erofs(&dir, "root", 1, &[]);
    let path = dir.path().join("disk");
    let file = File::create(&path).expect("writable");
    file.set_len(24 * MIB).expect("writable");
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", path.to_str().expect("text")])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk runs");
    let table = "label: dos\nstart=2048, size=8192, type=c\nstart=10240, type=5\nsize=8192, type=83\nsize=8192, type=83\n";
    sfdisk.stdin.take().expect("piped").write_all(table.as_bytes()).expect("written");
    assert!(sfdisk.wait().expect("ended").success());
    let disk = fs::read(&path).expect("a disk");
    let found = volumes(&disk[..]);
    let prefixes: Vec<_> = found.iter().map(|volume| String::from_utf8_lossy(&volume.prefix)).collect();
    assert_eq!(prefixes, ["fat///", "linux///", "linux~2///"]);
    file.write_all_at(&image, found[2].range.start).expect("writable");
    let disk = fs::read(&path).expect("a disk");
    // The blank partition comes last.
    let files = files_of(&disk);
    assert!(files.contains_key("linux///usr/lib/file-0"), "{:?}", files.keys());
    // A chain of tables that leads back to itself ends.
    let second = found[1].range.end as usize;
    let mut looped = disk.clone();
    assert_eq!(looped[second + 510..second + 512], [0x55, 0xAA]);
    looped[second + 446 + 16 + 4] = 5;
    looped[second + 446 + 16 + 12] = 1;
    assert_eq!(regions(&looped[..]), Regions::plain(looped.len() as u64));
}

#[test]
fn files_of_fat_have_their_bytes_whole_and_in_fragments() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    for (bits, bytes) in [(12, MIB), (16, 8 * MIB), (32, 40 * MIB)] {
        let path = dir.path().join(format!("fat{bits}"));
        let mut noise = Noise(bits.into());
        let [a, b, c] = [70_000, 40_001, 200_003].map(|len| noise.bytes(len));
        let long = "EFI/Linux/debian-6.12.107-amd64 with a long name ä.conf";
        fat(
            &path,
            bits,
            bytes,
            &[("first.bin", &a), (long, &b), ("EFI/KEEP.TXT", &[1; 300]), ("EFI/tiny", &[2; 100])],
        );
        // The third file fills the place of the first and goes on behind the others.
        run("mdel", &["-i", path.to_str().expect("text"), "::first.bin"]);
        put(&path, "EFI/third.bin", &c);
        let image = fs::read(&path).expect("an image");
        let found = regions(&image[..]);
        assert_covers(&found, image.len(), "FAT");
        let files = named(&image, &found);
        let label = format!("FAT{bits}: {:?}", files.keys());
        assert!(files.get(long).is_some_and(|bytes| *bytes == b), "{label}");
        assert!(files.get("EFI/third.bin").is_some_and(|bytes| *bytes == c), "{label}");
        assert!(files.get("EFI/KEEP.TXT").is_some_and(|bytes| bytes == &[1; 300]), "{label}");
        assert!(!files.contains_key("EFI/tiny") && !files.contains_key("first.bin"), "{label}");
        let parts = found.all().iter().filter(|region| found.name(region) == Some(b"EFI/third.bin")).count();
        assert!(parts == 2 || bits == 32, "{label}: {parts} parts");
        // Both copies of the table are regions of one length.
        let tables: Vec<_> = found.all().iter().filter(|r| r.kind == RegionKind::Metadata).take(3).collect();
        let of = |n: usize| &image[tables[n].start as usize..tables[n].end() as usize];
        assert_eq!(of(1), of(2), "{label}");
        // Chains that lead back to themselves or to each other end.
        for byte in [0x02, 0x03, 0x13, 0xEE] {
            let mut looped = image.clone();
            looped[tables[1].start as usize..tables[2].end() as usize].fill(byte);
            assert_covers(&regions(&looped[..]), looped.len(), &label);
        }
    }
}

#[test]
fn sections_of_a_unified_kernel_image_are_files() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let mut noise = Noise(5);
    let (kernel, os_release) = (noise.bytes(50_001), [b'x'; 400]);
    let words: Vec<u8> = noise.bytes(60_000).iter().flat_map(|byte| [b'a' + byte % 16; 8]).collect();
    fs::write(dir.path().join("words"), &words).expect("writable");
    run("gzip", &["-nk", dir.path().join("words").to_str().expect("text")]);
    let initrd = fs::read(dir.path().join("words.gz")).expect("gzip left a file");
    let sections: [(&str, &[u8]); 4] =
        [(".osrel", &os_release), (".cmdline", b"quiet"), (".linux", &kernel), (".initrd", &initrd)];
    let file = uki(dir.path(), &sections);

    let alone = files_of(&file);
    assert_covers(&regions(&file[..]), file.len(), "a unified kernel image");
    assert_eq!(alone[".linux"], kernel);
    assert_eq!(alone[".osrel"], os_release);
    assert_eq!(alone[".initrd//gzip-1"], initrd);
    assert!(!alone.contains_key(".cmdline"), "a short section is no region");

    let path = "EFI/Linux/debian_6.12.efi";
    let image = fat(&dir.path().join("esp"), 16, 9 * MIB, &[("a", &[1; 700]), (path, &file)]);
    let files = files_of(&image);
    assert_eq!(files[&format!("{path}//.linux")], kernel);
    assert_eq!(files[&format!("{path}//.initrd//gzip-1")], initrd);
    assert!(!files.contains_key(path));

    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("EFI/Linux")).expect("writable");
    fs::write(tree.join(path), &file).expect("writable");
    for options in [&[][..], &["-Enoinline_data"]] {
        let image = mkfs(options, &tree, &dir.path().join("erofs"));
        assert_covers(&regions(&image[..]), image.len(), "a unified kernel image in EROFS");
        let files = files_of(&image);
        assert_eq!(files[&format!("{path}//.linux")], kernel, "{options:?}");
        assert_eq!(files[&format!("{path}//.initrd//gzip-1")], initrd, "{options:?}");
    }
    // A program without a kernel stays whole.
    let plain = fs::read(dir.path().join("stub.efi")).expect("a stub");
    assert_eq!(regions(&plain[..]), Regions::plain(plain.len() as u64));
}

/// Makes a small disk with everything in it.
fn small_disk(dir: &TempDir) -> Vec<u8> {
    let image = erofs(dir, "root", 1, &["-zlz4hc"]);
    let file = uki(dir.path(), &[(".linux", &[3; 900]), (".initrd", &[4; 900])]);
    let esp = fat(&dir.path().join("esp"), 12, MIB, &[("EFI/Linux/x.efi", &file), ("EFI/b", &[5; 3000])]);
    let parts = [
        Part { kind: "ef00", label: "EFI System", at: 1, len: 1, bytes: &esp },
        Part { kind: "8304", label: "root", at: 2, len: 1, bytes: &image },
    ];
    gpt(&dir.path().join("disk"), 4, &parts)
}

/// Computes a CRC-32, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// Seals the header of a table again after a change.
fn seal(disk: &mut [u8], header: usize, sector: usize) {
    let entries = u64::from_le_bytes(disk[header + 72..header + 80].try_into().expect("8"));
    let entries = usize::try_from(entries).unwrap_or(usize::MAX).saturating_mul(sector);
    if let Some(table) = disk.get(entries..entries.saturating_add(128 * 128)) {
        let crc = crc32(table);
        disk[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
    }
    disk[header + 16..header + 20].fill(0);
    let crc = crc32(&disk[header..header + 92]);
    disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_table_of_large_sectors_is_read() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let disk = small_disk(&dir);
    let expected = files_of(&disk);
    // The same table, moved to sectors of 4096 bytes.
    let mut large = disk.clone();
    large[512..40 * 512].fill(0);
    let end = large.len();
    large[end - 40 * 512..].fill(0);
    large[4096..4096 + 92].copy_from_slice(&disk[512..512 + 92]);
    large[2 * 4096..2 * 4096 + 128 * 128].copy_from_slice(&disk[1024..1024 + 128 * 128]);
    for entry in 0..2 {
        for field in [32, 40] {
            let at = 2 * 4096 + entry * 128 + field;
            let value = u64::from_le_bytes(large[at..at + 8].try_into().expect("8"));
            let sectors = if field == 32 { value / 8 } else { (value + 1) / 8 - 1 };
            large[at..at + 8].copy_from_slice(&sectors.to_le_bytes());
        }
    }
    seal(&mut large, 4096, 4096);
    assert_eq!(files_of(&large), expected);
}

#[test]
fn hostile_tables_cost_good_cuts_and_nothing_else() {
    if !has_tools() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let disk = small_disk(&dir);
    let plain = Regions::plain(disk.len() as u64);
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut disk = disk.clone();
        let end = disk.len();
        disk[end - 512..].fill(0);
        change(&mut disk);
        seal(&mut disk, 512, 512);
        let found = regions(&disk[..]);
        assert_covers(&found, disk.len(), "hostile");
        found
    };
    assert_ne!(with(&|_| {}), plain);
    let second = 1024 + 128;
    let put = |disk: &mut [u8], at: usize, value: u64| disk[at..at + 8].copy_from_slice(&value.to_le_bytes());
    // Partitions that overlap, leave the disk, end before they begin, or are too many.
    assert_eq!(with(&|disk| put(disk, second + 32, 2049)), plain);
    assert_eq!(with(&|disk| put(disk, second + 40, u64::MAX)), plain);
    assert_eq!(with(&|disk| put(disk, second + 40, 1 << 55)), plain);
    assert_eq!(with(&|disk| put(disk, second + 40, 3)), plain);
    assert_eq!(with(&|disk| disk[512 + 80..512 + 88].fill(0xFF)), plain);
    assert_eq!(with(&|disk| put(disk, 512 + 72, u64::MAX / 600)), plain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1))]

    #[test]
    fn damaged_disks_are_covered(seed in any::<u64>()) {
        if !has_tools() {
            return Ok(());
        }
        let dir = TempDir::new().expect("a temporary directory");
        let disk = small_disk(&dir);
        let mut noise = Noise(seed);
        // Structures are at the starts of the disk and of its partitions.
        let places = [0, 512, MIB as usize, MIB as usize + 512, 2 * MIB as usize + 1024];
        for round in 0..600 {
            let mut damaged = disk.clone();
            for _ in 0..1 + noise.next() % 4 {
                let place = places[noise.next() as usize % places.len()];
                let at = place + (noise.next() % if round % 2 == 0 { 512 } else { 20_000 }) as usize;
                damaged[at] = noise.next() as u8;
            }
            if round % 3 == 0 {
                seal(&mut damaged, 512, 512);
            }
            assert_covers(&regions(&damaged[..]), damaged.len(), &format!("seed {seed}, round {round}"));
        }
    }
}
